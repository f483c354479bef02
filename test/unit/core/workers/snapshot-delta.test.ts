// What differs between two snapshots: nothing may be lost on the way, and what has not changed must stay what it was.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { BackendSettings, Snapshot } from '../../../../core/workers/snapshot.ts';
import {
  applyDelta,
  type SnapshotDelta,
  SnapshotDeltas,
  snapshotDelta,
} from '../../../../core/workers/snapshot-delta.ts';
import { Random } from '../../../sim/random.ts';
import { endpointSettings, plainBackend, snapshotOf } from '../exchange/support.ts';

const backend = (name: string, ...addresses: string[]): BackendSettings => ({
  ...structuredClone(plainBackend),
  name,
  endpoints: addresses.map((address) => endpointSettings(address)),
});

/** A snapshot of a node proxy whose connections to these addresses go to the listener of that number. */
function meshSnapshot(epoch: number, backends: BackendSettings[], destinations: Record<string, number>): Snapshot {
  const entries = Object.entries(destinations).map(([key, listener]) => [key, { listener, identity: null }] as const);
  return {
    ...snapshotOf({}, backends, epoch),
    mesh: {
      workloads: [],
      counters: new SharedArrayBuffer(8),
      policyNumbers: { policies: [], details: [] },
      destinations: new Map(entries),
      discovery: null,
      otherListener: -1,
      inbound: { auto: 0, http: 1, tcp: 2 },
      inboundProtocols: new Map(),
    },
  };
}

/** What a worker has after a message. */
function received(before: Snapshot | null, message: Snapshot | SnapshotDelta): Snapshot {
  const copy = structuredClone(message);
  return 'base' in copy ? applyDelta(before!, copy) : copy;
}

test('whatever comes, goes, moves and changes, the worker ends up with the same snapshot', () => {
  const random = new Random(11);
  const names = Array.from({ length: 12 }, (_, index) => `b${index}`);
  let sent: Snapshot | null = null;
  let worker: Snapshot | null = null;
  for (let epoch = 1; epoch <= 200; epoch++) {
    const chosen = names.filter(() => random.float() < 0.7);
    if (random.float() < 0.3) chosen.reverse();
    const backends = chosen.map((name) => backend(name, `10.0.0.${random.int(1, 3)}:80`));
    const listeners = backends.map(({ name }) => ({ name, port: random.int(1, 2) }) as never);
    const streamRoutes = chosen.map((name, index) => ({ name, listeners: [index], hostnames: [], backendRefs: [] }));
    const next: Snapshot = {
      ...meshSnapshot(epoch, backends, Object.fromEntries(chosen.map((name) => [name, random.int(0, 1)]))),
      ...{ listeners, streamRoutes, refPolicies: chosen.map((name) => ({ name }) as never) },
      tls: { contexts: chosen.map((key) => ({ key }) as never), ticketKeys: [new Uint8Array([epoch])] },
    };
    worker = received(worker, new SnapshotDeltas().between(sent, next));
    // Shared memory is not compared by what is in it, and a worker never looks at whose it is.
    const plain = ({ routes, nodeState, mesh, ...rest }: Snapshot) => ({ ...rest, mesh: { ...mesh, counters: 0 } });
    assert.deepEqual(plain(worker), plain(next), `epoch ${epoch}`);
    sent = next;
  }
});

test('one endpoint of a thousand services travels alone, and all other services stay the same objects', () => {
  const names = Array.from({ length: 1000 }, (_, index) => `b${index}`);
  const before = meshSnapshot(
    1,
    names.map((name) => backend(name, '10.0.0.1:80')),
    { 'a:80': 0, 'b:80': 1 },
  );
  const after = meshSnapshot(
    2,
    names.map((name) => backend(name, name === 'b7' ? '10.0.0.2:80' : '10.0.0.1:80')),
    {
      'a:80': 0,
      'b:80': 1,
    },
  );
  const worker = received(null, before);
  const delta = snapshotDelta(before, { ...after, routes: before.routes });
  assert.deepEqual(
    delta.backends.items.map(({ name }) => name),
    ['b7'],
  );
  assert.deepEqual([delta.routes, delta.mesh!.destinations, delta.listeners.places], [null, null, null]);
  const next = received(worker, delta);
  const changed = names.filter((_, index) => next.backends[index] !== worker.backends[index]);
  assert.deepEqual(changed, ['b7']);
  assert.equal(next.backends[7]!.endpoints[0]!.address, '10.0.0.2:80');
  assert.deepEqual([next.routes === worker.routes, next.epoch], [true, 2]);
  assert.equal(next.mesh!.destinations, worker.mesh!.destinations);
  assert.equal(
    worker.backends[7]!.endpoints[0]!.address,
    '10.0.0.1:80',
    'exchanges in flight go on with what they had',
  );
});

test('a worker that has nothing gets everything, and a delta to something else is refused', () => {
  const first = snapshotOf({}, [backend('a')], 1);
  const second = snapshotOf({}, [backend('a')], 2);
  const deltas = new SnapshotDeltas();
  assert.equal(deltas.between(null, second), second);
  const delta = deltas.between(first, second);
  assert.ok('base' in delta);
  assert.equal(deltas.between(first, second), delta, 'made once for all workers');
  assert.equal(new SnapshotDeltas().between(first, meshSnapshot(2, [], {})).epoch, 2);
  assert.throws(() => applyDelta(second, delta), /change of snapshot 1 for a worker that has 2/);
});
