// Metrics of adaptive concurrency, by backend. Runs on the control thread.

import type { MetricDefinition } from './metrics.ts';
import type { AdaptiveConcurrencyState } from './state.ts';

function metric(
  name: string,
  type: 'counter' | 'gauge',
  help: string,
  value: (state: AdaptiveConcurrencyState) => number,
): MetricDefinition {
  return {
    name: `portcullis_adaptive_concurrency_${name}`,
    type,
    help,
    labels: ['backend'],
    collect: ({ state }) =>
      state.adaptiveConcurrency.map((backend) => ({ labels: { backend: backend.backend }, value: value(backend) })),
  };
}

/** Metrics of backends with adaptive concurrency. */
export const adaptiveMetrics: readonly MetricDefinition[] = [
  metric('limit', 'gauge', 'Requests that the backend may have in progress.', ({ limit }) => limit),
  metric('in_progress', 'gauge', 'Requests that it has in progress.', ({ inProgress }) => inProgress),
  metric('refused_total', 'counter', 'Requests refused because the limit was reached.', ({ refused }) => refused),
  metric('measuring', 'gauge', '1 while its least latency is measured.', ({ measuring }) => (measuring ? 1 : 0)),
  metric('min_rtt_seconds', 'gauge', 'Its least latency; 0: not known yet.', ({ minRttMs }) => minRttMs / 1000),
  metric(
    'sample_rtt_seconds',
    'gauge',
    'Its latency in the last sample interval; 0: not known yet.',
    ({ sampleRttMs }) => sampleRttMs / 1000,
  ),
];
