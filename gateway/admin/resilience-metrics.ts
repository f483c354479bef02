// Metrics of retries and circuit breakers. A part of metrics.ts, with its terms.
// Runs on the control thread.

import { RetryEnd, retryEndNames } from '../../core/exchange/retry-outcome.ts';
import { retryCauseNames } from '../../core/lb/attempt-settings.ts';
import { Counter } from '../../core/telemetry/metrics.ts';
import type { MetricDefinition, Sample } from './metrics.ts';
import type { AdminState, BreakerLimitState } from './state.ts';

const breakerLabels = ['backend', 'priority', 'limit'];

/** In the order of the exposition. */
export const resilienceMetrics: readonly MetricDefinition[] = [
  {
    name: 'portcullis_retries_total',
    type: 'counter',
    help: 'Further attempts that the retries of rules have brought, by what was wrong with the one before.',
    labels: ['cause'],
    collect: ({ totals }) =>
      retryCauseNames.map((cause, index) => ({ labels: { cause }, value: totals[Counter.RETRIES + index]! })),
  },
  {
    name: 'portcullis_retries_succeeded_total',
    type: 'counter',
    help: 'Requests for which a further attempt brought an answer that needed no other.',
    labels: [],
    collect: ({ totals }) => [{ labels: {}, value: totals[Counter.RETRIES_SUCCEEDED]! }],
  },
  {
    name: 'portcullis_retries_not_made_total',
    type: 'counter',
    help: 'Failures that a rule retries and that were passed on all the same, by why.',
    labels: ['why'],
    collect: ({ totals }) =>
      retryEndNames
        .map((why, end) => ({ labels: { why }, value: totals[Counter.RETRIES_NOT_MADE + end]! }))
        .slice(RetryEnd.EXHAUSTED),
  },
  {
    name: 'portcullis_circuit_breaker_open',
    type: 'gauge',
    help: '1 while a limit of a circuit breaker is reached.',
    labels: breakerLabels,
    collect: ({ state }) => perLimit(state, ({ open }) => (open ? 1 : 0)),
  },
  {
    name: 'portcullis_circuit_breaker_in_use',
    type: 'gauge',
    help: 'What counts towards a limit of a circuit breaker now: connections, or requests.',
    labels: breakerLabels,
    collect: ({ state }) => perLimit(state, ({ inUse }) => inUse),
  },
  {
    name: 'portcullis_circuit_breaker_overflows_total',
    type: 'counter',
    help: 'What circuit breakers have refused. A connection that is refused has its request wait.',
    labels: breakerLabels,
    collect: ({ state }) => perLimit(state, ({ overflows }) => overflows),
  },
];

function perLimit(state: AdminState, value: (limit: BreakerLimitState) => number): Sample[] {
  return state.circuitBreakers.flatMap(({ backend, limits }) =>
    limits.map((limit) => ({
      labels: { backend, priority: limit.priority, limit: limit.limit },
      value: value(limit),
    })),
  );
}
