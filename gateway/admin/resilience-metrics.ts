// Metrics of retries and circuit breakers. A part of metrics.ts, with its terms.
// Runs on the control thread.

import { RetryEnd, retryEndNames } from '../../core/exchange/retry-outcome.ts';
import { retryCauseNames } from '../../core/lb/attempt-settings.ts';
import { Counter } from '../../core/telemetry/metrics.ts';
import type { MetricDefinition, Sample } from './metrics.ts';
import { type AdminState, type BreakerLimitState, breakerStateNames } from './state.ts';

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
        .slice(RetryEnd.EXHAUSTED, RetryEnd.HEDGE_WON),
  },
  {
    name: 'portcullis_hedges_total',
    type: 'counter',
    help: 'Second attempts that were sent since the first had no answer for long, by whose answer was used.',
    labels: ['outcome'],
    collect: ({ totals }) => [
      { labels: { outcome: 'won' }, value: totals[Counter.HEDGES_WON]! },
      { labels: { outcome: 'lost' }, value: totals[Counter.HEDGES]! - totals[Counter.HEDGES_WON]! },
    ],
  },
  {
    name: 'portcullis_hedges_not_made_total',
    type: 'counter',
    help: 'Second attempts that were due and were not sent, since the budget of the rule was used up.',
    labels: [],
    collect: ({ totals }) => [{ labels: {}, value: totals[Counter.HEDGES_NOT_MADE]! }],
  },
  {
    name: 'portcullis_circuit_breaker_state',
    type: 'gauge',
    help: '2: open, the limit refuses something; 1: half open, it refuses no more and is on trial; 0: closed.',
    labels: breakerLabels,
    collect: ({ state }) => perLimit(state, (limit) => breakerStateNames.indexOf(limit.state)),
  },
  {
    name: 'portcullis_endpoint_circuit_breaker_state',
    type: 'gauge',
    help: 'Endpoints under outlier detection. 2: open, it is ejected; 1: half open, it returns by steps; 0: closed.',
    labels: ['backend', 'endpoint'],
    collect: ({ state }) =>
      state.backends.flatMap(({ name, endpoints }) =>
        endpoints.flatMap(({ address, circuitBreaker }) => {
          if (circuitBreaker === null) return [];
          const labels = { backend: name, endpoint: address };
          return [{ labels, value: breakerStateNames.indexOf(circuitBreaker) }];
        }),
      ),
  },
  {
    name: 'portcullis_circuit_breaker_limit',
    type: 'gauge',
    help: 'Limits of circuit breakers.',
    labels: breakerLabels,
    collect: ({ state }) => perLimit(state, ({ max }) => max),
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
