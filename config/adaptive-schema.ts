// Schema of `backends[].adaptiveConcurrency`, and its normalised form.
//
// Control thread. Terms and defaults are those of Envoy's adaptive concurrency filter.

import type { Static } from 'typebox';
import type { AdaptiveConcurrencySettings } from '../core/lb/gradient.ts';
import { duration, integer } from './kinds.ts';
import { mapping, maybe } from './schema-builder.ts';
import { parseDurationMs } from './units.ts';

/** Schema of `backends[].adaptiveConcurrency`. */
export const adaptiveConcurrencySchema = mapping(
  {
    sampleInterval: maybe(
      duration({
        default: '100ms',
        minMs: 10,
        maxMs: 60_000,
        description: 'How often latencies are looked at and the limit is set anew.',
      }),
    ),
    percentile: maybe(
      integer({ default: 50, min: 1, max: 99, description: 'Percentile of the latencies that is looked at.' }),
    ),
    minLimit: maybe(
      integer({
        default: 3,
        min: 1,
        max: 100_000,
        description: 'Least limit; also the one under which the least latency is measured.',
      }),
    ),
    maxLimit: maybe(integer({ default: 1000, min: 1, max: 1_000_000, description: 'Greatest limit.' })),
    minRtt: maybe(
      mapping(
        {
          interval: maybe(
            duration({
              default: '60s',
              minMs: 100,
              description: 'Time between two measurements of the least latency.',
            }),
          ),
          jitter: maybe(
            integer({
              default: 15,
              min: 0,
              max: 100,
              description: 'Percent by which that time is longer at random, so that gateways do not measure together.',
            }),
          ),
          requests: maybe(
            integer({ default: 50, min: 5, max: 100_000, description: 'Requests that one measurement takes.' }),
          ),
          buffer: maybe(
            integer({
              default: 25,
              min: 0,
              max: 1000,
              description: 'Percent that latencies may be above the least one before the limit is lowered.',
            }),
          ),
        },
        { default: {}, description: 'How the latency without load is measured: with `minLimit` requests at a time.' },
      ),
    ),
  },
  {
    description:
      'Limit the requests in progress by how much slower the backend becomes (gradient controller). Requests beyond it get 503. Absent: no such limit.',
  },
);

/** The settings of a backend. */
export function adaptiveSettings(
  input: Static<typeof adaptiveConcurrencySchema> | undefined,
): AdaptiveConcurrencySettings | null {
  if (input === undefined) return null;
  const minRtt = input.minRtt!;
  return {
    sampleIntervalMs: parseDurationMs(String(input.sampleInterval))!,
    percentile: input.percentile!,
    limitMin: input.minLimit!,
    limitMax: input.maxLimit!,
    minRttIntervalMs: parseDurationMs(String(minRtt.interval))!,
    minRttJitterPercent: minRtt.jitter!,
    minRttRequests: minRtt.requests!,
    minRttBufferPercent: minRtt.buffer!,
  };
}
