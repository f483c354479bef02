// Circuit breakers from the configuration as written to what workers use.
// Control thread. Runs on valid input with its defaults.

import type { BreakerLimits, BreakerSettings } from '../core/lb/attempt-settings.ts';
import type { ConfigInput } from './schema.ts';
import { parseDurationMs } from './units.ts';

type BreakerInput = NonNullable<ConfigInput['backends'][number]['circuitBreaker']>;
type LimitsInput = Pick<BreakerInput, 'maxConnections' | 'maxPendingRequests' | 'maxRequests' | 'maxRetries'>;

/** Circuit breaker of a backend; null: none. */
export function breakerSettings(input: BreakerInput | undefined): BreakerSettings | null {
  if (input === undefined) return null;
  return {
    normal: breakerLimits(input),
    high: input.highPriority === undefined ? null : breakerLimits(input.highPriority),
    pendingTimeoutMs: parseDurationMs(String(input.pendingTimeout!))!,
  };
}

function breakerLimits(input: LimitsInput): BreakerLimits {
  return {
    connectionsMax: input.maxConnections ?? 0,
    pendingMax: input.maxPendingRequests!,
    requestsMax: input.maxRequests ?? 0,
    retriesMax: input.maxRetries ?? 0,
  };
}
