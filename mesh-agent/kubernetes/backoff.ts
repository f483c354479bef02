// How long to wait before asking again: longer after every failure in a row, and never at the same moment as
// everybody else. Pure but for the random number. Control threads.

/** First and longest wait, in milliseconds. */
export interface BackoffSettings {
  firstMs: number;
  maxMs: number;
}

/** Quick enough that a restarted API server is noticed at once, slow enough not to keep it down. */
export const DEFAULT_BACKOFF: BackoffSettings = { firstMs: 250, maxMs: 30_000 };

/** Waits that double, with the upper half left to chance. */
export class Backoff {
  private readonly settings: BackoffSettings;
  private readonly random: () => number;
  private failures = 0;

  constructor(settings: BackoffSettings = DEFAULT_BACKOFF, random: () => number = Math.random) {
    this.settings = settings;
    this.random = random;
  }

  /** Milliseconds until the next attempt; at least `atLeastMs`, which the server may have asked for. */
  next(atLeastMs = 0): number {
    const { firstMs, maxMs } = this.settings;
    const fullMs = Math.min(maxMs, firstMs * 2 ** Math.min(this.failures, 30));
    this.failures++;
    const waitMs = fullMs * (0.5 + this.random() / 2);
    // On top of what was asked for, or all who were told the same come back together.
    return atLeastMs > waitMs ? atLeastMs + this.random() * firstMs : waitMs;
  }

  /** Something worked: the next failure waits as short as the first. */
  reset(): void {
    this.failures = 0;
  }
}

/** Resolves after the time, or as soon as the signal aborts. */
export function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) return resolve();
    const done = (): void => {
      clearTimeout(timer);
      signal.removeEventListener('abort', done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal.addEventListener('abort', done);
  });
}
