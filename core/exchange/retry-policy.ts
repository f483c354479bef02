// The retries of a rule, prepared for the packet path. Made once per snapshot and policy, immutable.

import type { RetrySettings } from '../lb/attempt-settings.ts';

/** Statuses are below this. */
const STATUS_MAX = 600;

export class RetryPolicy {
  readonly settings: RetrySettings;
  /** By status: 1 if a response with it is retried. */
  private readonly codes = new Uint8Array(STATUS_MAX);

  constructor(settings: RetrySettings) {
    this.settings = settings;
    for (const code of settings.codes) this.codes[code] = 1;
  }

  /** Whether a response with this status is retried. */
  wantsStatus(status: number): boolean {
    return status < STATUS_MAX && this.codes[status] === 1;
  }
}
