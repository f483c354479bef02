// Metrics of backends: endpoints by their health, checks, ejections. Read from the node state at a scrape.
//
// Control thread. A part of the table in metrics.ts.

import { ejectionCauseNames } from '../../core/lb/outlier-detection.ts';
import type { MetricDefinition, Sample } from './metrics.ts';
import type { BackendState, EndpointState } from './state.ts';

/** States that tell an endpoint's use; each endpoint is in one. */
const endpointUses = ['usable', 'unhealthy', 'ejected', 'draining'] as const;

/** Whether requests go to an endpoint, and if not, why. */
export function useOf({ draining, ejected, health }: EndpointState): (typeof endpointUses)[number] {
  if (draining) return 'draining';
  if (health === 'unhealthy') return 'unhealthy';
  return ejected ? 'ejected' : 'usable';
}

/** Metrics of backends, in the order of the exposition. */
export const backendMetrics: readonly MetricDefinition[] = [
  perBackend(
    'backend_endpoints',
    'gauge',
    'Endpoints of a backend, by whether they get requests and if not, why.',
    'state',
    ({ endpoints }) => {
      const uses = endpoints.map(useOf);
      return endpointUses.map((use) => [use, uses.filter((other) => other === use).length]);
    },
  ),
  perBackend(
    'health_checks_total',
    'counter',
    'Active health checks, by outcome: success; refusal, the endpoint says that it is not well; failure, no answer; timeout.',
    'outcome',
    ({ checks }) => Object.entries(checks ?? {}),
  ),
  perBackend(
    'outlier_ejections_total',
    'counter',
    'Ejections of endpoints by outlier detection, by cause.',
    'cause',
    ({ ejections }) => (ejections ?? []).map((count, cause) => [ejectionCauseNames[cause]!, count]),
  ),
];

function perBackend(
  name: string,
  type: 'counter' | 'gauge',
  help: string,
  label: string,
  values: (backend: BackendState) => [string, number][],
): MetricDefinition {
  return {
    name: `portcullis_${name}`,
    type,
    help,
    labels: ['backend', label],
    collect: ({ state }): Sample[] =>
      state.backends.flatMap((backend) =>
        values(backend).map(([value, count]) => ({ labels: { backend: backend.name, [label]: value }, value: count })),
      ),
  };
}
