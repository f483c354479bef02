// Metrics of compressed responses and mirrored requests. A part of metrics.ts, with its terms.
// Runs on the control thread.

import { Counter } from '../../core/telemetry/metrics.ts';
import type { MetricDefinition } from './metrics.ts';

/** In the order of the exposition. */
export const bodyMetrics: readonly MetricDefinition[] = [
  {
    name: 'portcullis_compressed_responses_total',
    type: 'counter',
    help: 'Responses that were compressed, by content coding.',
    labels: ['encoding'],
    collect: ({ totals }) =>
      ['gzip', 'br', 'zstd'].map((encoding, index) => ({
        labels: { encoding },
        value: totals[Counter.COMPRESSED_RESPONSES + index]!,
      })),
  },
  single(
    'compression_bytes_in_total',
    'counter',
    'Bytes of response bodies given to the compressor.',
    Counter.COMPRESSION_BYTES_IN,
  ),
  single(
    'compression_bytes_out_total',
    'counter',
    'Bytes that the compressor has made of them.',
    Counter.COMPRESSION_BYTES_OUT,
  ),
  single(
    'compression_skipped_total',
    'counter',
    'Responses that were sent as they are since the compressor had no place for them, or was not running.',
    Counter.COMPRESSION_SKIPPED,
  ),
  single('mirrors_in_flight', 'gauge', 'Mirrored requests that wait or are under way.', Counter.MIRRORS_IN_FLIGHT),
  {
    name: 'portcullis_mirrored_requests_total',
    type: 'counter',
    help: 'Mirrored requests that were sent, by what became of them: answered with any status, or failed.',
    labels: ['outcome'],
    collect: ({ totals }) => [
      { labels: { outcome: 'answered' }, value: totals[Counter.MIRRORS_ANSWERED]! },
      { labels: { outcome: 'failed' }, value: totals[Counter.MIRRORS_FAILED]! },
    ],
  },
  {
    name: 'portcullis_mirrors_dropped_total',
    type: 'counter',
    help: 'Requests that were to be mirrored and were not: the body is too large (or has trailers), too many are in flight, no buffer or connection slot is left, or the request has never been complete.',
    labels: ['why'],
    collect: ({ totals }) => [
      { labels: { why: 'body' }, value: totals[Counter.MIRRORS_DROPPED_BODY]! },
      { labels: { why: 'limit' }, value: totals[Counter.MIRRORS_DROPPED_LIMIT]! },
      { labels: { why: 'resources' }, value: totals[Counter.MIRRORS_DROPPED_RESOURCES]! },
      { labels: { why: 'incomplete' }, value: totals[Counter.MIRRORS_DROPPED_INCOMPLETE]! },
    ],
  },
];

function single(name: string, type: 'counter' | 'gauge', help: string, counter: number): MetricDefinition {
  return {
    name: `portcullis_${name}`,
    type,
    help,
    labels: [],
    collect: ({ totals }) => [{ labels: {}, value: totals[counter]! }],
  };
}
