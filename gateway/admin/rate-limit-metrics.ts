// Metrics of rate limits, by the name of the limit, and of the Redis that counts the global ones.
// Read from the limits' tables in shared memory when a scrape comes. Runs on the control thread.

import { LimitCounter } from '../../core/limits/limit-table.ts';
import type { MetricDefinition, Sample } from './metrics.ts';
import type { RateLimitingState } from './state.ts';

/** One value of a limit. */
function limits(state: RateLimitingState | null, counter: number, labels: Record<string, string> = {}): Sample[] {
  if (state === null) return [];
  return state.tables.counters(counter).map(({ name, value }) => ({ labels: { limit: name, ...labels }, value }));
}

/** One value of Redis, where it is used. */
function redis(
  state: RateLimitingState | null,
  samples: (redis: NonNullable<RateLimitingState['redisState']>) => Sample[],
) {
  return state === null || state.redisState === null ? [] : samples(state.redisState);
}

/** Metrics of rate limits. */
export const rateLimitMetrics: readonly MetricDefinition[] = [
  {
    name: 'portcullis_rate_limit_requests_total',
    type: 'counter',
    help: 'Requests that a rate limit has counted, by what it said; with dryRun those over the limit pass all the same.',
    labels: ['limit', 'result'],
    collect: ({ state }) => [
      ...limits(state.rateLimiting, LimitCounter.ALLOWED, { result: 'allowed' }),
      ...limits(state.rateLimiting, LimitCounter.DENIED, { result: 'denied' }),
    ],
  },
  {
    name: 'portcullis_rate_limit_shared_total',
    type: 'counter',
    help: 'Requests whose key shared a bucket with others, because the table of the limit had no room (maxKeys).',
    labels: ['limit'],
    collect: ({ state }) => limits(state.rateLimiting, LimitCounter.SHARED),
  },
  {
    name: 'portcullis_rate_limit_global_total',
    type: 'counter',
    help: 'Requests that a global rate limit has counted, by who decided: redis, or the failure policy.',
    labels: ['limit', 'by'],
    collect: ({ state }) => [
      ...limits(state.rateLimiting, LimitCounter.GLOBAL, { by: 'redis' }).filter(({ value }) => value > 0),
      ...limits(state.rateLimiting, LimitCounter.FALLBACK, { by: 'failure_policy' }).filter(({ value }) => value > 0),
    ],
  },
  {
    name: 'portcullis_redis_up',
    type: 'gauge',
    help: '1 while the Redis that counts global rate limits answers.',
    labels: [],
    collect: ({ state }) => redis(state.rateLimiting, ({ up }) => [{ labels: {}, value: up ? 1 : 0 }]),
  },
  {
    name: 'portcullis_redis_questions_total',
    type: 'counter',
    help: 'Requests that Redis was asked about, by whether it answered in time.',
    labels: ['result'],
    collect: ({ state }) =>
      redis(state.rateLimiting, ({ answered, unanswered }) => [
        { labels: { result: 'answered' }, value: answered },
        { labels: { result: 'unanswered' }, value: unanswered },
      ]),
  },
  {
    name: 'portcullis_redis_outages_total',
    type: 'counter',
    help: 'Times that Redis went away.',
    labels: [],
    collect: ({ state }) => redis(state.rateLimiting, ({ outages }) => [{ labels: {}, value: outages }]),
  },
];
