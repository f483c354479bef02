// The interface of a balancing policy. One file per policy beside this one.
// A picker belongs to one worker, and to endpoints whose weights and usability do not change: the
// balancer makes a new one when they do. Hot: `pick` allocates nothing.

/** Endpoints among which a picker chooses; its picks are indexes into these arrays. */
export interface Members {
  readonly count: number;
  /** Above 0. */
  readonly weights: Float64Array;
  /** Position of each one's first word in the node state. */
  readonly positions: Int32Array;
  /** Hash of each one's address. */
  readonly hashes: Int32Array;
}

/** Chooses a member for a request. */
export interface Picker {
  /**
   * Index of the member to use, or -1 when there is none. `bits`: 32 random bits, or the hash of the
   * request's key, for which consistent-hash policies always give the same member.
   */
  pick(bits: number): number;
}

/** 32 random bits at a time, as signed numbers. */
export interface RandomSource {
  next(): number;
}

/** The time of the batch in progress, monotonic milliseconds. */
export interface Clock {
  readonly nowMs: number;
}

/** Whether all weights are the same. */
export function equalWeights(weights: ArrayLike<number>): boolean {
  for (let i = 1; i < weights.length; i++) if (weights[i] !== weights[0]) return false;
  return true;
}
