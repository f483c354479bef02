// Metrics of the workloads of a node proxy, and whom they talk to. Runs on the control thread.

import {
  PeerSide,
  peerProtocolNames,
  readPeers,
  readWorkload,
  WorkloadCounter,
} from '../../core/telemetry/workload-metrics.ts';
import type { MetricDefinition, Sample, Scrape } from './metrics.ts';
import type { GraphEdge, WorkloadCountersState } from './state.ts';

export type { GraphEdge };

/** Who is meant where a connection in plain text has shown no identity. */
const UNKNOWN = 'unknown';

/** Metrics of workloads; a gateway has no values for them. */
export const workloadMetrics: readonly MetricDefinition[] = [
  byDirection('connections_open', 'gauge', 'Connections of a workload open now; tunnels carry those of other nodes.', [
    ['outbound', WorkloadCounter.OUTBOUND_OPEN],
    ['inbound', WorkloadCounter.INBOUND_OPEN],
    ['tunnel', WorkloadCounter.TUNNELS_OPEN],
  ]),
  byDirection('connections_total', 'counter', 'Connections that a workload has begun, and that have come to it.', [
    ['outbound', WorkloadCounter.OUTBOUND_ACCEPTED],
    ['inbound', WorkloadCounter.INBOUND_ACCEPTED],
    ['tunnel', WorkloadCounter.TUNNELS_ACCEPTED],
  ]),
  byDirection('requests_total', 'counter', 'Requests that a workload has sent, and that have come to it.', [
    ['outbound', WorkloadCounter.OUTBOUND_REQUESTS],
    ['inbound', WorkloadCounter.INBOUND_REQUESTS],
  ]),
  byDirection('failures_total', 'counter', 'Requests and unread connections that ended with a 5xx, or failed.', [
    ['outbound', WorkloadCounter.OUTBOUND_FAILURES],
    ['inbound', WorkloadCounter.INBOUND_FAILURES],
  ]),
  byDirection('bytes_total', 'counter', 'Payload that a workload has sent, and that it has received.', [
    ['sent', WorkloadCounter.SENT_BYTES],
    ['received', WorkloadCounter.RECEIVED_BYTES],
  ]),
  family(
    'denied_total',
    'counter',
    'Requests and connections to a workload that policies have refused.',
    [],
    (words) => [{ labels: {}, value: words[WorkloadCounter.DENIED]! }],
  ),
  family(
    'limited_total',
    'counter',
    'Requests and connections that a limit of the workload has refused.',
    [],
    (words) => [{ labels: {}, value: words[WorkloadCounter.LIMITED]! }],
  ),
  family('busy_seconds_total', 'counter', 'Time that workers have spent on a workload (sampled).', [], (words) => [
    { labels: {}, value: words[WorkloadCounter.BUSY_MS]! / 1000 },
  ]),
  family('buffer_bytes', 'gauge', 'Buffers of the workers that a workload holds.', [], (words) => [
    { labels: {}, value: words[WorkloadCounter.BUFFER_BYTES]! },
  ]),
];

/** Who talks to whom, as the workloads of this node have seen it; workloads of one name are one. */
export function graphEdges({ buffer, workloads }: WorkloadCountersState): GraphEdge[] {
  const edges = new Map<string, GraphEdge>();
  for (const { slot, name: workload } of workloads) {
    for (const { side, protocol, name, ...counts } of readPeers(buffer, slot)) {
      const called = side === PeerSide.DESTINATION;
      const source = called ? workload : name || UNKNOWN;
      const destination = called ? name : workload;
      const key = JSON.stringify([side, source, destination, protocol]);
      const edge = edges.get(key);
      if (edge === undefined) {
        const reporter = called ? 'source' : 'destination';
        edges.set(key, { reporter, source, destination, protocol: peerProtocolNames[protocol]!, ...counts });
        continue;
      }
      edge.connections += counts.connections;
      edge.requests += counts.requests;
      edge.failures += counts.failures;
      edge.denied += counts.denied;
    }
  }
  return [...edges.values()];
}

function byDirection(
  name: string,
  type: MetricDefinition['type'],
  help: string,
  counters: readonly (readonly [direction: string, counter: number])[],
): MetricDefinition {
  return family(name, type, help, ['direction'], (words) =>
    counters.map(([direction, counter]) => ({ labels: { direction }, value: words[counter]! })),
  );
}

function family(
  name: string,
  type: MetricDefinition['type'],
  help: string,
  labels: readonly string[],
  valuesOf: (words: Float64Array) => Sample[],
): MetricDefinition {
  return {
    name: `portcullis_workload_${name}`,
    type,
    help,
    labels: ['workload', ...labels],
    collect: (scrape) => samplesOf(scrape, valuesOf),
  };
}

/** Values of all workloads; those of one name are one, as no two series may have the same labels. */
function samplesOf({ state: { workloads: state } }: Scrape, valuesOf: (words: Float64Array) => Sample[]): Sample[] {
  if (state === undefined) return [];
  const byName = new Map<string, Float64Array>();
  for (const { slot, name } of state.workloads) {
    const words = readWorkload(state.buffer, slot);
    const known = byName.get(name);
    if (known === undefined) byName.set(name, words);
    else
      known.forEach((value, index) => {
        known[index] = value + words[index]!;
      });
  }
  return [...byName].flatMap(([workload, words]) =>
    valuesOf(words).map(({ labels, value }) => ({ labels: { workload, ...labels }, value })),
  );
}
