// Retries of a rule, the retry budget of a backend, and the priority of a rule: schema of their keys.
//
// Control thread. Spec: Gateway API HTTPRouteRetry (attempts, codes, backoff); Envoy's retry_on for conditions.

import { boolean, decimal, duration, integer, oneOf, size } from './kinds.ts';
import { list, mapping, maybe } from './schema-builder.ts';

/** Conditions for a further attempt. */
const retryConditions = [
  'connect-failure',
  'refused-stream',
  'reset-before-request',
  'reset',
  '5xx',
  'gateway-error',
  'retriable-4xx',
  'retriable-status-codes',
  'cancelled',
  'deadline-exceeded',
  'internal',
  'resource-exhausted',
  'unavailable',
] as const;

export const retrySchema = mapping(
  {
    attempts: maybe(
      integer({
        default: 1,
        min: 1,
        max: 10,
        description: 'Most further attempts after the first one. Each has `timeouts.backendRequest`.',
      }),
    ),
    conditions: maybe(
      list(
        oneOf(retryConditions, {
          description:
            '`connect-failure`: no connection. `refused-stream`: REFUSED_STREAM or GOAWAY. `reset-before-request`: connection lost before a byte of the request was sent. `reset`: lost, or no answer within `timeouts.backendRequest`. `gateway-error`: 502, 503, 504 and all of these. `5xx`: any 5xx and all of these. `retriable-4xx`: 409. `retriable-status-codes`: those in `codes`. The others are statuses of RPCs, in responses without messages, and are retried although RPCs are POST.',
        }),
        {
          default: ['connect-failure', 'refused-stream', 'reset'],
          minItems: 1,
          maxItems: 13,
          description: 'What is tried again, besides the statuses in `codes`.',
        },
      ),
    ),
    codes: maybe(
      list(integer({ min: 400, max: 599, description: 'Status of a response.' }), {
        default: [],
        maxItems: 200,
        description: 'Statuses of responses to try again.',
      }),
    ),
    backoff: maybe(
      duration({
        default: '25ms',
        maxMs: 60_000,
        description: 'The wait before an attempt is random, up to this, and up to twice as much with each further one.',
      }),
    ),
    maxBackoff: maybe(
      duration({ maxMs: 600_000, description: 'Most that the wait grows to. Default: ten times `backoff`.' }),
    ),
    retryUnsafe: maybe(
      boolean({
        default: false,
        description:
          'Try again also what the backend may have acted on and whose method is not idempotent (POST, PATCH). Such a request may then take effect twice.',
      }),
    ),
    bodyBuffer: maybe(
      size({
        default: '64KiB',
        minBytes: 0,
        maxBytes: 1024 * 1024,
        description:
          'Longest request body that is kept for another attempt. A request with a longer one is not tried again once its body has been sent. 0: none is kept.',
      }),
    ),
    retryAfter: maybe(
      boolean({
        default: true,
        description: 'Wait at least as long as Retry-After of a response with 429 or 503 asks for.',
      }),
    ),
    maxRetryAfter: maybe(
      duration({
        default: '5s',
        maxMs: 600_000,
        description: 'A response whose Retry-After asks for more than this is passed on instead.',
      }),
    ),
  },
  { description: 'Further attempts at a backend when one has failed. Absent: none.' },
);

export const hedgeSchema = mapping(
  {
    delay: maybe(
      duration({
        minMs: 1,
        maxMs: 600_000,
        description:
          'The second attempt is sent when there is no answer after this time. Absent: `quantile` says when, which is required then.',
      }),
    ),
    quantile: maybe(
      decimal({
        min: 0.5,
        max: 0.999,
        description:
          'The second attempt is sent when there is no answer after the time in which this share of the requests of the rule are answered: `0.95` hedges the slowest twentieth. Learned by each worker from its last half to whole minute, as soon as it has 100 requests. Absent: `delay` says when.',
      }),
    ),
    minDelay: maybe(
      duration({
        default: '10ms',
        maxMs: 600_000,
        description: 'With `quantile`: the least time, whatever was learned.',
      }),
    ),
    budgetPercent: maybe(
      integer({
        default: 2,
        min: 1,
        max: 100,
        description:
          'Most second attempts, as a share of the requests to the backend of the last ten seconds that have `hedge` or `retry`, all workers together, but at least one: so much load hedging may add, not more.',
      }),
    ),
  },
  {
    description:
      'A second attempt at another endpoint for a request that takes long, while the first goes on; the first good answer is used. For requests without body whose method is GET, HEAD, OPTIONS or TRACE. Absent: none.',
  },
);

export const retryBudgetSchema = mapping(
  {
    percent: maybe(
      integer({
        default: 20,
        min: 0,
        max: 100,
        description: 'Most further attempts, as a share of the requests of the last ten seconds.',
      }),
    ),
    minPerSecond: maybe(
      integer({
        default: 3,
        min: 0,
        max: 100_000,
        description: 'Further attempts per second that are allowed in any case, as a mean over ten seconds.',
      }),
    ),
  },
  {
    default: {},
    description:
      'Bound on retries, for all workers and rules together; counts requests of rules with `retry`. On by default.',
  },
);

/** Importance of a rule's requests. */
export const prioritySchema = oneOf(['high', 'default', 'low'], {
  default: 'default',
  description:
    'Importance of the requests. `high` has limits of its own in circuit breakers (`circuitBreaker.highPriority`); `low` is shed first when the gateway is overloaded.',
});
