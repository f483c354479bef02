// What node proxies count for their workloads, with real tunnels between them.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { GraphEdge } from '../../../gateway/admin/workload-metrics.ts';
import { startApp } from '../../support/mesh/apps.ts';
import { eventually, meshSkipReason, TestMesh } from '../../support/mesh/mesh.ts';
import type { MeshPlan } from '../../support/mesh/plan.ts';

const plan: MeshPlan = {
  nodes: { one: { 'web-0': {} }, two: { 'cart-0': {} } },
  services: { cart: [{ port: 80, targetPort: 8080, protocol: 'http' }] },
};

const skip = meshSkipReason('curl');

/** The graph of a node, once its first edge has so many requests: a client may be faster than the counters. */
function graph(mesh: TestMesh, node: string, requests: number): Promise<GraphEdge[]> {
  return eventually(`node ${node} has counted`, async () => {
    const text = await mesh.node(node).page('/mesh/graph');
    const edges = JSON.parse(text) as GraphEdge[];
    if (edges[0]?.requests !== requests) throw new Error(text);
    return edges;
  });
}

/** Value of a series of a node; 0: there is none. */
async function seriesValue(mesh: TestMesh, node: string, series: string): Promise<number> {
  const line = (await mesh.node(node).page('/metrics')).split('\n').find((text) => text.startsWith(series));
  return line === undefined ? 0 : Number(line.slice(series.length + 1));
}

test('both nodes of a request count it for their workload, and know the other end', { skip }, async (t) => {
  const mesh = await TestMesh.create(t, plan);
  await startApp(mesh.at('cart-0'), 'cart-0', { port: 8080, kind: 'http' });
  for (let i = 0; i < 3; i++) await mesh.curl('web-0', `http://${mesh.vip('cart')}/`);

  const [out] = await graph(mesh, 'one', 3);
  assert.match(out!.destination, /cart.*:80$/);
  const { destination: _, ...rest } = out!;
  const counted = { protocol: 'http', connections: 3, requests: 3, failures: 0, denied: 0 };
  assert.deepEqual(rest, { reporter: 'source', source: 'shop/web-0', ...counted });
  const [arrived, ...others] = await graph(mesh, 'two', 3);
  assert.deepEqual(others, []);
  assert.equal(arrived!.reporter, 'destination');
  assert.equal(arrived!.source, mesh.identity('web-0'));
  assert.equal(arrived!.destination, 'shop/cart-0');
  assert.equal(arrived!.requests, 3);

  const outbound = 'portcullis_workload_requests_total{workload="shop/web-0",direction="outbound"}';
  await eventually('it is in its metrics', async () => (await seriesValue(mesh, 'one', outbound)) === 3);
  const inbound = 'portcullis_workload_requests_total{workload="shop/cart-0",direction="inbound"}';
  await eventually('it is in those of the other', async () => (await seriesValue(mesh, 'two', inbound)) === 3);
  const tunnels = 'portcullis_workload_connections_total{workload="shop/cart-0",direction="tunnel"}';
  assert.ok((await seriesValue(mesh, 'two', tunnels)) >= 1);
});
