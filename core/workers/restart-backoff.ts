// When a dead packet worker is replaced: at once the first time, then more and more slowly.
// A worker that dies over and over (a poisoned snapshot, a broken machine) must not burn a core,
// and one that dies once a day must be back before anyone notices.
// Owned by the control thread. Pure: times come from the caller.

/** Second restart waits this long; each further one twice as long. */
const RESTART_DELAY_FIRST_MS = 250;
/** Longest wait before a restart. */
const RESTART_DELAY_MAX_MS = 10_000;
/** A worker that lived this long starts again without delay. */
export const HEALTHY_AFTER_MS = 60_000;

/** Restart delays of one worker index. */
export class RestartBackoff {
  private nextDelayMs = 0;

  /** Delay in milliseconds before the replacement of a worker that lived for `lifetimeMs`. */
  next(lifetimeMs: number): number {
    const delayMs = lifetimeMs >= HEALTHY_AFTER_MS ? 0 : this.nextDelayMs;
    this.nextDelayMs = delayMs === 0 ? RESTART_DELAY_FIRST_MS : Math.min(delayMs * 2, RESTART_DELAY_MAX_MS);
    return delayMs;
  }
}
