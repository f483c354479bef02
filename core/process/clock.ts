// Time and chance for what lasts for days (certificates), so that tests can run years in a millisecond.
// Control threads only.

/** What such code knows of time and chance. */
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

/** Resolves after `delayMs`; rejects with the signal's reason as soon as it is aborted. */
export function sleep(clock: Clock, delayMs: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal.aborted) {
      reject(signal.reason);
      return;
    }
    const aborted = (): void => {
      clock.clearTimer(timer);
      reject(signal.reason);
    };
    const timer = clock.setTimer(() => {
      signal.removeEventListener('abort', aborted);
      resolve();
    }, delayMs);
    signal.addEventListener('abort', aborted, { once: true });
  });
}
