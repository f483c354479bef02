// Schema of `overload`: from where on the gateway does without what is least important.
//
// Control thread. What is done at which level is in gateway/overload.ts.

import { duration, integer } from './kinds.ts';
import { mapping, maybe } from './schema-builder.ts';

/** A share in percent from which on load is shed. */
function threshold(fallback: number, description: string) {
  return maybe(integer({ default: fallback, min: 0, max: 99, zero: 'not watched', description }));
}

/** Schema of `overload`. */
export const overloadSchema = mapping(
  {
    descriptors: threshold(95, 'Percent of the open files that the process may have.'),
    connections: threshold(
      0,
      'Percent of `limits.maxConnections` of any worker. Where it is not watched, connections beyond that limit are closed at once.',
    ),
    buffers: threshold(90, 'Percent of `limits.bufferMemory` of any worker.'),
    memory: threshold(
      95,
      "Percent of the memory that the process may have: of the container's limit, or of the machine.",
    ),
    loopLag: maybe(
      duration({
        default: '0s',
        zero: 'not watched',
        description:
          'Time that one round of a worker takes, which is how long an event may wait. With 100ms, new connections wait from there on, and requests are refused from two and three times that on.',
      }),
    ),
  },
  {
    default: {},
    description:
      'When the gateway itself is overloaded: from each of these thresholds on it accepts no new connections, a third of the way to 100 percent further it refuses requests of rules with `priority: low`, and after two thirds those of `priority: default` too, with 503 and Retry-After.',
  },
);
