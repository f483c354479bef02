// Retries, retry budgets and priorities from the configuration as written to what workers use.
// Control thread. Runs on valid input with its defaults.

import {
  type HedgeSettings,
  Priority,
  type RetryBudgetSettings,
  RetryCause,
  type RetrySettings,
} from '../core/lb/attempt-settings.ts';
import type { ConfigInput } from './schema.ts';
import { parseDurationMs, parseSizeBytes } from './units.ts';

type RuleInput = ConfigInput['routes'][number]['rules'][number];
type RetryInput = NonNullable<RuleInput['retry']>;
type HedgeInput = NonNullable<RuleInput['hedge']>;
type BudgetInput = NonNullable<ConfigInput['backends'][number]['retryBudget']>;
type Condition = NonNullable<RetryInput['conditions']>[number];

/** How much longer than `backoff` the longest wait is, unless configured. */
const BACKOFF_GROWTH = 10;

const { CONNECT_FAILURE, REFUSED_STREAM, RESET_BEFORE_REQUEST, RESET, TIMEOUT } = RetryCause;

const resets = (1 << RESET_BEFORE_REQUEST) | (1 << RESET) | (1 << TIMEOUT);
const anyFailure = resets | (1 << CONNECT_FAILURE) | (1 << REFUSED_STREAM);

/** What each condition stands for: failures (bits), statuses, statuses of RPCs (bits). */
const meanings: Record<Condition, { failures?: number; codes?: readonly number[]; grpcStatuses?: number }> = {
  'connect-failure': { failures: 1 << CONNECT_FAILURE },
  'refused-stream': { failures: 1 << REFUSED_STREAM },
  'reset-before-request': { failures: 1 << RESET_BEFORE_REQUEST },
  reset: { failures: resets },
  '5xx': { failures: anyFailure, codes: Array.from({ length: 100 }, (_, index) => 500 + index) },
  'gateway-error': { failures: anyFailure, codes: [502, 503, 504] },
  'retriable-4xx': { codes: [409] },
  'retriable-status-codes': {},
  cancelled: { grpcStatuses: 1 << 1 },
  'deadline-exceeded': { grpcStatuses: 1 << 4 },
  internal: { grpcStatuses: 1 << 13 },
  'resource-exhausted': { grpcStatuses: 1 << 8 },
  unavailable: { grpcStatuses: 1 << 14 },
};

/** Retries of a rule; null: none. */
export function retrySettings(input: RetryInput | undefined): RetrySettings | null {
  if (input === undefined) return null;
  const codes = new Set(input.codes!);
  let failures = 0;
  let grpcStatuses = 0;
  for (const condition of input.conditions!) {
    const meaning = meanings[condition];
    failures |= meaning.failures ?? 0;
    grpcStatuses |= meaning.grpcStatuses ?? 0;
    for (const code of meaning.codes ?? []) codes.add(code);
  }
  const backoffMs = durationMs(input.backoff!);
  return {
    attempts: input.attempts!,
    failures,
    codes: [...codes].sort((a, b) => a - b),
    grpcStatuses,
    backoffMs,
    backoffMaxMs: input.maxBackoff === undefined ? backoffMs * BACKOFF_GROWTH : durationMs(input.maxBackoff),
    retryUnsafe: input.retryUnsafe!,
    bodyBufferBytes: parseSizeBytes(String(input.bodyBuffer!))!,
    retryAfterMaxMs: input.retryAfter! ? durationMs(input.maxRetryAfter!) : 0,
  };
}

/** Hedging of a rule, whose name is `place`; null: none. */
export function hedgeSettings(input: HedgeInput | undefined, place: string): HedgeSettings | null {
  if (input === undefined) return null;
  const quantile = input.quantile ?? 0;
  return {
    key: quantile > 0 ? place : '',
    delayMs: durationMs(quantile > 0 ? input.minDelay! : input.delay!),
    quantile,
    budgetPercent: input.budgetPercent!,
  };
}

/** Retry budget of a backend. */
export function retryBudgetSettings(input: BudgetInput): RetryBudgetSettings {
  return { percent: input.percent!, minPerSecond: input.minPerSecond! };
}

/** Number of a rule's priority. */
export function priorityNumber(input: NonNullable<RuleInput['priority']>): number {
  return input === 'high' ? Priority.HIGH : input === 'low' ? Priority.LOW : Priority.DEFAULT;
}

function durationMs(value: string | number): number {
  return parseDurationMs(String(value))!;
}
