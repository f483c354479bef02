// PeakEWMA, as Finagle and Linkerd document it: of two endpoints drawn at random the one with the lower
// latency x (requests in progress + 1) is taken. The latency is a moving average that rises at once to
// a peak and falls slowly, so that a slow endpoint is felt with its first slow answer.
//
// Averages lie in the node state: all workers write and read the same. Two that write at once may
// lose one observation, which the next one makes good.
// Owned by one worker. Hot module: no allocation.

import { mix, placeOf } from './hash.ts';
import { EndpointWord } from './node-state.ts';
import type { Clock, Members, Picker } from './picker.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { ACTIVE, LATENCY_AT_MS, LATENCY_US } = EndpointWord;

const STEP = 0x9e3779b9 | 0;
/** Cost of an endpoint that has requests and no answer yet: one request is enough to try it out. */
const UNKNOWN_COST = 1e12;
/** Clocks of two workers differ by a batch at most; an older stamp is from before the count of milliseconds began anew. */
const SKEW_MS_MAX = 10_000;
/** Longest latency that is kept, microseconds. */
const LATENCY_US_MAX = 2_000_000_000;
/** A failed attempt counts as this many times what the endpoint was thought to take, up to a bound. */
const FAILURE_FACTOR = 10;
const FAILURE_US_MIN = 10_000;
const FAILURE_US_MAX = 10_000_000;

/** Share of its weight that a value has kept since `stampMs`. */
function weightSince(stampMs: number, nowMs: number, decayMs: number): number {
  const ageMs = ((nowMs | 0) - stampMs) | 0;
  if (ageMs <= 0) return ageMs > -SKEW_MS_MAX ? 1 : 0;
  return Math.exp(-ageMs / decayMs);
}

export class PeakEwma implements Picker {
  private readonly positions: Int32Array;
  private readonly weights: Float64Array;
  private readonly words: Int32Array;
  private readonly clock: Clock;
  private readonly decayMs: number;

  /** `words`: of the node state. */
  constructor(members: Members, words: Int32Array, clock: Clock, decayMs: number) {
    this.positions = members.positions;
    this.weights = members.weights;
    this.words = words;
    this.clock = clock;
    this.decayMs = decayMs;
  }

  pick(bits: number): number {
    const count = this.positions.length;
    if (count < 2) return count - 1;
    const first = placeOf(mix(bits), count);
    let second = placeOf(mix(bits + STEP), count - 1);
    if (second >= first) second++;
    return this.cost(second) < this.cost(first) ? second : first;
  }

  /** What a request more would wait for at a member: microseconds, by weight. */
  private cost(member: number): number {
    const { words } = this;
    const at = this.positions[member];
    const active = words[at + ACTIVE];
    const latencyUs = words[at + LATENCY_US];
    let cost: number;
    if (latencyUs === 0) {
      cost = active === 0 ? 0 : UNKNOWN_COST + active;
    } else {
      const kept = latencyUs * weightSince(words[at + LATENCY_AT_MS], this.clock.nowMs, this.decayMs);
      cost = Math.max(kept, 1) * (active + 1);
    }
    return cost / this.weights[member];
  }
}

/** Spreads rounding: an average that changes by less than a microsecond at a time must not stand still. */
let dither = 0;

/** An answer came after `sampleUs` microseconds: notes it at an endpoint's position in the node state. */
export function observeLatency(words: Int32Array, at: number, sampleUs: number, nowMs: number, decayMs: number): void {
  const before = words[at + LATENCY_US];
  let latencyUs = sampleUs;
  if (before > sampleUs) {
    const kept = weightSince(words[at + LATENCY_AT_MS], nowMs, decayMs);
    latencyUs = before * kept + sampleUs * (1 - kept);
  }
  dither += 0.6180339887498949;
  if (dither >= 1) dither -= 1;
  words[at + LATENCY_US] = Math.min(Math.max(Math.floor(latencyUs + dither), 1), LATENCY_US_MAX);
  words[at + LATENCY_AT_MS] = nowMs | 0;
}

/**
 * An attempt failed after `elapsedUs`, or was answered with an error of the server: a refusal comes fast, and must
 * not make the endpoint look like the fastest.
 */
export function observeFailure(words: Int32Array, at: number, elapsedUs: number, nowMs: number, decayMs: number): void {
  const known = words[at + LATENCY_US] * weightSince(words[at + LATENCY_AT_MS], nowMs, decayMs);
  const penaltyUs = Math.min(Math.max(known * FAILURE_FACTOR, FAILURE_US_MIN), FAILURE_US_MAX);
  observeLatency(words, at, Math.max(elapsedUs, penaltyUs), nowMs, decayMs);
}
