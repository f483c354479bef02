// How the endpoint of a recorded request is now, and what is left of its backend, for `explain`.
//
// Control thread, for the admin port: the record tells what was then, this what the health of endpoints is
// at the time of asking.

import { Reason } from '../core/exchange/reasons.ts';
import type { FlightRecord } from '../core/telemetry/flight-reader.ts';
import { useOf } from './admin/backend-metrics.ts';
import type { BackendState, EndpointState } from './admin/state.ts';

/** Sentences about the endpoint or backend of a record; none where all is well. */
export function endpointNow(
  { endpoint, backend, reason }: Pick<FlightRecord, 'endpoint' | 'backend' | 'reason'>,
  backends: readonly BackendState[],
): string[] {
  const state = backends.find(({ name }) => name === backend);
  if (state === undefined) return [];
  const found = state.endpoints.find(({ address }) => address === endpoint);
  if (found !== undefined) {
    const sentence = sentenceOf(found);
    return sentence === undefined ? [] : [`Now, endpoint ${endpoint} ${sentence}.`];
  }
  if (reason !== Reason.NO_HEALTHY_UPSTREAM) return [];
  const unusable = state.endpoints.filter((other) => useOf(other) !== 'usable');
  if (unusable.length === 0) return [];
  return [
    `Now, ${unusable.length} of the ${state.endpoints.length} endpoints of "${backend}" get no requests; see /backends.`,
  ];
}

function sentenceOf(endpoint: EndpointState): string | undefined {
  const { health, healthCause, ejectionCause, sharePercent } = endpoint;
  switch (useOf(endpoint)) {
    case 'draining':
      return 'is draining and gets no new requests';
    case 'unhealthy':
      return `is unhealthy by its health checks${healthCause === '' ? '' : `: ${healthCause}`}`;
    case 'ejected':
      return `is ejected by outlier detection: ${ejectionCause}`;
    default:
      if (sharePercent < 100) return `returns from ejection, with ${sharePercent} % of its share: ${ejectionCause}`;
      return health === 'healthy' ? 'is healthy by its health checks' : undefined;
  }
}
