// Endpoints that original destinations make: one per address, kept by what is connected, forgotten when full.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  DESTINATIONS_MAX,
  DestinationEndpoints,
  MeshRuntime,
  WorkloadRuntime,
} from '../../../../core/exchange/mesh-runtime.ts';
import type { Connection } from '../../../../core/io/connection.ts';
import { Endpoint } from '../../../../core/lb/endpoint.ts';
import { PeerSide, WorkloadCounters } from '../../../../core/telemetry/workload-metrics.ts';

function destinations(): DestinationEndpoints {
  const counters = new WorkloadCounters(null, 0, -1);
  return new DestinationEndpoints(
    [],
    (place) => new Endpoint(place),
    () => counters.peer(PeerSide.DESTINATION, 'outside'),
  );
}

const address = (i: number): string => `10.${(i >> 16) & 255}.${(i >> 8) & 255}.${i & 255}:80`;

test('an address is one endpoint, with its own host and port', () => {
  const made = destinations();
  assert.equal(made.endpointOf('10.0.0.1:80'), 0);
  assert.equal(made.endpointOf('[fd00::1]:443'), 1);
  assert.equal(made.endpointOf('10.0.0.1:81'), 2);
  assert.equal(made.endpointOf('10.0.0.1:80'), 0);
  assert.equal(made.endpointOf(null), -1);
  assert.deepEqual(
    made.endpoints.map((endpoint) => endpoint.address),
    ['10.0.0.1:80', '[fd00::1]:443', '10.0.0.1:81'],
  );
});

test('the next snapshot keeps the addresses with connections only', () => {
  const before = destinations();
  for (const text of ['10.0.0.1:80', '10.0.0.2:80', '10.0.0.3:80']) before.endpointOf(text);
  before.endpoints[1]!.addIdle({ idleNext: null, idlePrevious: null } as Connection);
  // It has had connections of HTTP/2, and has none now.
  before.endpoints[2]!.http2 = { members: [] } as unknown as Endpoint['http2'];
  const after = destinations();
  after.keep(before);
  assert.deepEqual(
    after.endpoints.map((endpoint) => endpoint.address),
    ['10.0.0.2:80'],
  );
});

test('a full table makes room by forgetting what is not in use, and never moves what is', () => {
  const made = destinations();
  for (let i = 0; i < DESTINATIONS_MAX; i++) assert.equal(made.endpointOf(address(i)), i);
  assert.ok(made.isFull);
  assert.equal(made.endpointOf('192.0.2.1:80'), -1);
  made.endpoints[7]!.addIdle({ idleNext: null, idlePrevious: null } as Connection);
  const forgotten = made.forget(new Set([5]), 1000);
  assert.equal(forgotten.length, DESTINATIONS_MAX - 2);
  assert.ok(!made.mayForget(1500), 'not at once again');
  assert.ok(made.mayForget(2000));
  assert.equal(made.endpointOf(address(5)), 5);
  assert.equal(made.endpointOf(address(7)), 7);
  const index = made.endpointOf('192.0.2.1:80');
  assert.ok(index >= 0 && index !== 5 && index !== 7);
  assert.equal(made.endpoints[index]!.address, '192.0.2.1:80');
  assert.equal(made.endpoints.length, DESTINATIONS_MAX);
});

test('delivery never leads to another workload, and what is reached as of the mesh is of the mesh', () => {
  const settings = {
    ...{ uid: 'w', name: 'shop/w', identity: 'spiffe://d/ns/shop/sa/w', addresses: ['10.0.0.1'], namespaceFd: -1 },
    ...{ mark: 0, certificate: null, strict: true, slot: -1, connectionsMax: 0, connectionsPerSecondMax: 0 },
    ...{ bufferPercentMax: 0, authorization: null },
  };
  const destinations = new Map([
    ['10.0.0.2', { listener: 0, identity: 'spiffe://d/ns/shop/sa/other' }],
    ['10.0.0.3', { listener: 0, identity: null }],
  ]);
  const workload = new WorkloadRuntime(settings);
  const mesh = Object.assign(Object.create(MeshRuntime.prototype), { settings: { destinations } }) as MeshRuntime;
  const at = (host: string) => (['own', 'mesh', 'any'] as const).map((scope) => mesh.identityAt(host, scope, workload));
  assert.deepEqual(at('10.0.0.1'), [null, null, null]);
  assert.deepEqual(at('10.0.0.2'), [undefined, 'spiffe://d/ns/shop/sa/other', null]);
  assert.deepEqual(at('10.0.0.3'), [undefined, null, null]);
  assert.deepEqual(at('192.0.2.1'), [undefined, undefined, null]);
  assert.equal(
    new DestinationEndpoints(
      [],
      () => null,
      () => null!,
    ).endpointOf('10.0.0.2:80'),
    -1,
  );
  const before = workload.key;
  workload.settings = { ...settings, namespaceFd: 7 };
  assert.notEqual(workload.key, before, 'another namespace has other connections');
});
