// What a change leaves as it was goes on in the worker as it is: a service that nobody has touched costs nothing.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { WorkloadRuntime } from '../../../../core/exchange/mesh-runtime.ts';
import { Runtime } from '../../../../core/exchange/runtime.ts';
import type { Endpoint } from '../../../../core/lb/endpoint.ts';
import { NodeState } from '../../../../core/lb/node-state.ts';
import { createWorkloadMetrics } from '../../../../core/telemetry/workload-metrics.ts';
import { TlsContexts } from '../../../../core/tls/contexts.ts';
import type { WorkloadSettings } from '../../../../core/workers/mesh-settings.ts';
import type { BackendSettings, Snapshot } from '../../../../core/workers/snapshot.ts';
import { endpointSettings, plainBackend, snapshotOf } from './support.ts';

const backend = (name: string, address: string, slot: number): BackendSettings => ({
  ...{ ...plainBackend, name, slot },
  endpoints: [{ ...endpointSettings(address), slot, identity: 'spiffe://cluster.local/ns/shop/sa/cart' }],
});

const workload = (more: Partial<WorkloadSettings> = {}): WorkloadSettings => ({
  ...{ uid: 'w', name: 'shop/w', identity: 'spiffe://cluster.local/ns/shop/sa/w', addresses: [], namespaceFd: -1 },
  ...{ mark: 0, certificate: null, strict: true, slot: -1, connectionsMax: 0, connectionsPerSecondMax: 0 },
  ...{ bufferPercentMax: 0, authorization: null },
  ...more,
});

/** A worker's way from snapshot to snapshot. */
class Worker {
  readonly endpoints = new Map<string, Endpoint>();
  runtime!: Runtime;
  private readonly first = snapshotOf({});
  private readonly node = new NodeState(this.first.nodeState, 0);

  use(backends: BackendSettings[], workloads: WorkloadSettings[] | null): Runtime {
    const { endpoints } = this;
    const snapshot: Snapshot = { ...this.first, backends, mesh: workloads === null ? null : meshOf(workloads) };
    for (const endpoint of endpoints.values()) endpoint.removed = true;
    const environment = { random: { next: () => 0 }, clock: { nowMs: 0 }, log: () => {} };
    const previous = this.runtime ?? null;
    this.runtime = new Runtime(snapshot, this.node, endpoints, new TlsContexts(() => {}), environment, previous);
    for (const [key, { removed }] of endpoints) if (removed) endpoints.delete(key);
    return this.runtime;
  }

  addresses(): string[] {
    return [...this.endpoints.values()].map(({ address }) => address).sort();
  }
}

function meshOf(workloads: WorkloadSettings[]): Snapshot['mesh'] {
  return {
    ...{ workloads, counters: createWorkloadMetrics(1), policyNumbers: { policies: [], details: [] } },
    ...{ destinations: new Map(), discovery: null, otherListener: -1, inbound: { auto: 0, http: 0, tcp: 0 } },
    inboundProtocols: new Map(),
  };
}

test('in a gateway, backends that have not changed stay with their endpoints; others are made anew', () => {
  const worker = new Worker();
  const [a, b] = [backend('a', '10.0.0.1:1', 0), backend('b', '10.0.0.2:1', 1)];
  const before = worker.use([a, b], null);
  const after = worker.use([backend('new', '10.0.0.3:1', 2), a, backend('b', '10.0.0.9:1', 1)], null);
  assert.equal(after.backends[1], before.backends[0], 'also in another place');
  assert.notEqual(after.backends[2], before.backends[1]);
  assert.deepEqual(worker.addresses(), ['10.0.0.1:1', '10.0.0.3:1', '10.0.0.9:1']);
  // The same that another object says is as good for balancing, and is what exchanges see.
  const again = structuredClone(a);
  assert.equal(worker.use([again], null).backends[0]!.settings, again);
  assert.equal(worker.runtime.backends[0]!.balancer, before.backends[0]!.balancer);
});

test('a node proxy makes what workloads use, and nothing of other services', () => {
  const worker = new Worker();
  const [a, b] = [backend('a', '10.0.0.1:1', 0), backend('b', '10.0.0.2:1', 1)];
  const before = worker.use([a, b], [workload()]);
  assert.deepEqual([before.backends.length, worker.endpoints.size], [0, 0]);
  const used = before.backends[before.backendFor(1, before.mesh!.workloads[0]!)]!;
  assert.deepEqual(worker.addresses(), ['10.0.0.2:1', '10.0.0.2:15008']);
  assert.equal(used.endpoints[0]!.tunnel!.verifyNames![0], 'spiffe://cluster.local/ns/shop/sa/cart');
  assert.equal(before.backends[before.backendFor(1, before.mesh!.workloads[0]!)], used);
});

test('what a workload uses stays as it is while its service and the workload do, with the endpoints behind its tunnels', () => {
  const worker = new Worker();
  const [a, b] = [backend('a', '10.0.0.1:1', 0), backend('b', '10.0.0.2:1', 1)];
  const before = worker.use([a, b], [workload()]);
  const of = (runtime: Runtime, index: number) => runtime.backends[runtime.backendFor(index, only(runtime))]!;
  const [usedA, usedB] = [of(before, 0), of(before, 1)];
  // Another place in the list, and another service has changed.
  const after = worker.use([b, backend('a', '10.0.0.7:1', 0)], [workload()]);
  assert.equal(of(after, 0), usedB);
  assert.notEqual(of(after, 1), usedA);
  assert.deepEqual(worker.addresses(), ['10.0.0.2:1', '10.0.0.2:15008', '10.0.0.7:1', '10.0.0.7:15008']);
  // In another namespace, connections of before are no good.
  const moved = worker.use([b], [workload({ namespaceFd: 5 })]);
  assert.notEqual(of(moved, 0), usedB);
  assert.notEqual(of(moved, 0).endpoints[0], usedB.endpoints[0]);
  assert.equal(usedB.endpoints[0]!.removed, true);
  // A workload that has left takes its endpoints along.
  worker.use([b], []);
  assert.deepEqual(worker.addresses(), []);
});

function only({ mesh }: Runtime): WorkloadRuntime {
  return mesh!.workloads[0]!;
}
