// Time and chance for identities, so that tests can run years in a millisecond.
// Control threads only.

/** What the code of identities knows of time and chance. */
export interface Clock {
  /** Wall-clock time in milliseconds since 1970; certificates are dated by it. */
  nowMs(): number;
  /** Calls back once, `delayMs` (at most 2^31 - 1) from now; what it returns is for `clearTimer`. */
  setTimer(callback: () => void, delayMs: number): unknown;
  /** Takes a timer back; harmless when it has fired. */
  clearTimer(timer: unknown): void;
  /** A random number in [0, 1), for jitter only; never for secrets. */
  random(): number;
}

/** The system's clock. Its timers do not keep the process alive. */
export const systemClock: Clock = {
  nowMs: Date.now,
  setTimer: (callback, delayMs) => setTimeout(callback, delayMs).unref(),
  clearTimer: (timer) => clearTimeout(timer as NodeJS.Timeout),
  random: Math.random,
};
