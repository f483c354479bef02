// What a node proxy shows of its workloads: /metrics and /mesh/graph.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  createWorkloadMetrics,
  PeerCounter,
  PeerProtocol,
  PeerSide,
  WorkloadCounter,
  WorkloadCounters,
} from '../../../../core/telemetry/workload-metrics.ts';
import { fakeState, startAdmin } from './support.ts';

const buffer = createWorkloadMetrics(2);
const workloads = [
  { slot: 0, name: 'shop/web' },
  { slot: 1, name: 'shop/cart' },
  { slot: 2, name: 'shop/cart' },
];
const [web, cart, cartToo] = [0, 1, 2].map((slot) => new WorkloadCounters(buffer, slot % 2, slot));

function add({ words, base }: WorkloadCounters, counter: number, value: number): void {
  words[base + counter]! += value;
}

add(web!, WorkloadCounter.OUTBOUND_OPEN, 2);
add(web!, WorkloadCounter.BUSY_MS, 1500);
add(cart!, WorkloadCounter.INBOUND_REQUESTS, 3);
add(cartToo!, WorkloadCounter.INBOUND_REQUESTS, 4);
const service = web!.peer(PeerSide.DESTINATION, 'shop/cart.shop:80');
service.count(PeerProtocol.HTTP, PeerCounter.CONNECTIONS);
service.count(PeerProtocol.HTTP, PeerCounter.REQUESTS);
service.count(PeerProtocol.HTTP, PeerCounter.FAILURES);
for (const counters of [cart!, cartToo!]) {
  counters.peer(PeerSide.SOURCE, 'spiffe://a/ns/shop/sa/web').count(PeerProtocol.HTTP, PeerCounter.DENIED);
}
cart!.peer(PeerSide.SOURCE, '').count(PeerProtocol.TCP, PeerCounter.CONNECTIONS);

test('metrics of workloads carry their names, and workloads of one name are one', async (t) => {
  const { ask } = await startAdmin(t, { ...fakeState(), workloads: { buffer, workloads } });
  const { body } = await ask('/metrics');
  const values = new Map(
    [...body.matchAll(/^(portcullis_workload_\w+\{.*\}) (\S+)$/gm)].map(([, series, value]) => [series, Number(value)]),
  );
  assert.equal(values.get('portcullis_workload_connections_open{workload="shop/web",direction="outbound"}'), 2);
  assert.equal(values.get('portcullis_workload_busy_seconds_total{workload="shop/web"}'), 1.5);
  assert.equal(values.get('portcullis_workload_requests_total{workload="shop/cart",direction="inbound"}'), 7);
  const series = [...body.matchAll(/^(portcullis_workload_\w+\{.*\}) /gm)];
  assert.equal(series.length, values.size, 'no series twice');
});

test('a gateway has no metrics of workloads, and no graph', async (t) => {
  const { ask } = await startAdmin(t, fakeState());
  assert.doesNotMatch((await ask('/metrics')).body, /^portcullis_workload_/m);
  assert.equal((await ask('/mesh/graph')).status, 404);
});

test('the graph says who talks to whom, from both ends', async (t) => {
  const { ask } = await startAdmin(t, { ...fakeState(), workloads: { buffer, workloads } });
  const { status, body } = await ask('/mesh/graph');
  assert.equal(status, 200);
  const none = { connections: 0, requests: 0, failures: 0, denied: 0 };
  assert.deepEqual(JSON.parse(body), [
    {
      reporter: 'source',
      source: 'shop/web',
      destination: 'shop/cart.shop:80',
      protocol: 'http',
      ...none,
      connections: 1,
      requests: 1,
      failures: 1,
    },
    {
      reporter: 'destination',
      source: 'spiffe://a/ns/shop/sa/web',
      destination: 'shop/cart',
      protocol: 'http',
      ...none,
      denied: 2,
    },
    {
      reporter: 'destination',
      source: 'unknown',
      destination: 'shop/cart',
      protocol: 'tcp',
      ...none,
      connections: 1,
    },
  ]);
});
