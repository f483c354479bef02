// Circuit breaker of a backend: schema of its keys.
// Control thread. The words are Envoy's (circuit_breakers.thresholds).

import { duration, integer } from './kinds.ts';
import { mapping, maybe } from './schema-builder.ts';

const LIMIT_MAX = 10_000_000;

function limits() {
  return {
    maxConnections: maybe(
      integer({
        min: 1,
        max: LIMIT_MAX,
        description:
          'Most open connections. HTTP/1.1 requests beyond wait for one. With HTTP/2 every worker may have one to each endpoint in any case. Absent: no limit.',
      }),
    ),
    maxPendingRequests: maybe(
      integer({
        default: 1024,
        min: 1,
        max: LIMIT_MAX,
        description: 'Most requests that wait for a connection, or for a stream of one. The next one gets 503 (UO).',
      }),
    ),
    maxRequests: maybe(
      integer({
        min: 1,
        max: LIMIT_MAX,
        description: 'Most requests in progress. The next one gets 503 (UO). Absent: no limit.',
      }),
    ),
    maxRetries: maybe(
      integer({
        min: 1,
        max: LIMIT_MAX,
        description: 'Most further attempts in progress or waiting for their time. Absent: no limit but the budget.',
      }),
    ),
  };
}

export const breakerSchema = mapping(
  {
    ...limits(),
    pendingTimeout: maybe(
      duration({
        default: '1s',
        maxMs: 600_000,
        description: 'Longest time that a request waits for a connection or a stream. Then 503 (UO).',
      }),
    ),
    highPriority: maybe(
      mapping(limits(), {
        description:
          'Limits of rules with `priority: high`, whose requests are counted by themselves; connections are counted together. Absent: they are counted with all others.',
      }),
    ),
  },
  { description: 'Limits on what is in use of the backend at a time, all workers together. Absent: none.' },
);
