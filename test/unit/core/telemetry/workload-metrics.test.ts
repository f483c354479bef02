// Counters of workloads in shared memory: workers apart and together, peers, and what a successor finds.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  clearWorkload,
  createWorkloadMetrics,
  isWorkloadOpen,
  PeerCounter,
  PeerProtocol,
  PeerSide,
  readPeers,
  readWorkload,
  resetWorkloadGauges,
  WORKLOAD_PEERS,
  WorkloadCounter,
  WorkloadCounters,
} from '../../../../core/telemetry/workload-metrics.ts';

const { OUTBOUND_OPEN, OUTBOUND_REQUESTS } = WorkloadCounter;
const { DESTINATION, SOURCE } = PeerSide;
const { HTTP, TCP } = PeerProtocol;
const { CONNECTIONS, REQUESTS } = PeerCounter;

function add({ words, base }: WorkloadCounters, counter: number, value: number): void {
  words[base + counter]! += value;
}

test('what workers count for a workload is summed, and nothing of another is in it', () => {
  const buffer = createWorkloadMetrics(2);
  add(new WorkloadCounters(buffer, 0, 3), OUTBOUND_REQUESTS, 5);
  add(new WorkloadCounters(buffer, 1, 3), OUTBOUND_REQUESTS, 7);
  add(new WorkloadCounters(buffer, 1, 4), OUTBOUND_REQUESTS, 100);
  assert.equal(readWorkload(buffer, 3)[OUTBOUND_REQUESTS], 12);
  assert.equal(readWorkload(buffer, 2)[OUTBOUND_REQUESTS], 0);
});

test('a peer is one place per side and protocol, in all workers and for their successors', () => {
  const buffer = createWorkloadMetrics(2);
  for (const worker of [0, 1, 0]) {
    const counters = new WorkloadCounters(buffer, worker, 1);
    counters.peer(DESTINATION, 'shop/cart:80').count(HTTP, REQUESTS);
    counters.peer(DESTINATION, 'shop/cart:80').count(TCP, CONNECTIONS);
    counters.peer(SOURCE, 'spiffe://é').count(HTTP, REQUESTS);
  }
  const none = { connections: 0, requests: 0, failures: 0, denied: 0 };
  assert.deepEqual(
    readPeers(buffer, 1).sort((a, b) => a.side - b.side || a.protocol - b.protocol),
    [
      { side: DESTINATION, protocol: TCP, name: 'shop/cart:80', ...none, connections: 3 },
      { side: DESTINATION, protocol: HTTP, name: 'shop/cart:80', ...none, requests: 3 },
      { side: SOURCE, protocol: HTTP, name: 'spiffe://é', ...none, requests: 3 },
    ],
  );
});

test('peers beyond the places are counted together, and none is lost', () => {
  const buffer = createWorkloadMetrics(1);
  const counters = new WorkloadCounters(buffer, 0, 0);
  const names = Array.from({ length: 500 }, (_, i) => `peer-${i}`);
  for (const name of [...names, ...names]) counters.peer(DESTINATION, name).count(HTTP, REQUESTS);
  const peers = readPeers(buffer, 0);
  assert.equal(peers.length, WORKLOAD_PEERS);
  assert.equal(
    peers.reduce((sum, { requests }) => sum + requests, 0),
    1000,
  );
  assert.equal(peers.find(({ name }) => name === 'others')!.requests, 1000 - 2 * (WORKLOAD_PEERS - 1));
});

test('names that are longer than their place are cut, and stay apart from their neighbours', () => {
  const buffer = createWorkloadMetrics(1);
  const counters = new WorkloadCounters(buffer, 0, 0);
  counters.peer(DESTINATION, 'a'.repeat(1000)).count(HTTP, REQUESTS);
  counters.peer(DESTINATION, 'b').count(HTTP, REQUESTS);
  const names = readPeers(buffer, 0).map(({ name }) => name);
  assert.match(names[0]!, /^a{200,}$/);
  assert.equal(names[1], 'b');
});

test('a new worker resets the gauges of its predecessor and goes on with its counters', () => {
  const buffer = createWorkloadMetrics(2);
  for (const worker of [0, 1]) {
    const counters = new WorkloadCounters(buffer, worker, 2);
    add(counters, OUTBOUND_OPEN, 4);
    add(counters, OUTBOUND_REQUESTS, 9);
  }
  resetWorkloadGauges(buffer, 1);
  assert.equal(readWorkload(buffer, 2)[OUTBOUND_OPEN], 4);
  assert.equal(readWorkload(buffer, 2)[OUTBOUND_REQUESTS], 18);
  assert.ok(isWorkloadOpen(buffer, 2));
  resetWorkloadGauges(buffer, 0);
  assert.ok(!isWorkloadOpen(buffer, 2));
});

test('a cleared slot has neither counters nor peers', () => {
  const buffer = createWorkloadMetrics(2);
  const counters = new WorkloadCounters(buffer, 1, 2);
  add(counters, OUTBOUND_REQUESTS, 9);
  counters.peer(DESTINATION, 'a').count(HTTP, REQUESTS);
  clearWorkload(buffer, 2);
  assert.ok(readWorkload(buffer, 2).every((value) => value === 0));
  assert.deepEqual(readPeers(buffer, 2), []);
});
