// `portcullis mesh graph`: edges of several nodes, and nodes that do not answer.

import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { type TestContext, test } from 'node:test';
import { runCli } from '../../../../gateway/cli.ts';
import type { GraphEdge } from '../../../../mesh-agent/node/node-admin.ts';

const CART_PORT = 'shop/cart.shop.svc.cluster.local:80';
const WEB = 'spiffe://cluster.local/ns/shop/sa/web';
const zero = { connections: 0, requests: 0, failures: 0, denied: 0 };
const called: GraphEdge = {
  ...{ reporter: 'source', source: 'shop/web', destination: CART_PORT, protocol: 'http', ...zero },
  ...{ connections: 2, requests: 70, failures: 1 },
};
const caller: GraphEdge = {
  ...{ reporter: 'destination', source: WEB, destination: 'shop/cart', protocol: 'http', ...zero },
  ...{ connections: 3, requests: 60, denied: 4 },
};

/** The admin port of a node with this graph; null: it has none, as a gateway. Its address. */
async function node(t: TestContext, edges: GraphEdge[] | null): Promise<string> {
  const server = createServer(({ url }, response) => {
    response.statusCode = url === '/mesh/graph' && edges !== null ? 200 : 404;
    response.end(JSON.stringify(edges));
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.after(() => server.close());
  return `127.0.0.1:${(server.address() as AddressInfo).port}`;
}

async function graph(...args: string[]): Promise<{ code: number; out: string; err: string }> {
  let [out, err] = ['', ''];
  const io = { out: (text: string) => void (out += text), err: (text: string) => void (err += text) };
  return { code: await runCli(['mesh', 'graph', ...args], io), out, err };
}

test('edges of all nodes that are asked are one table, the same ones added up', async (t) => {
  const nodes = [await node(t, [called, caller]), await node(t, [called]), await node(t, [])];
  const { code, out, err } = await graph('--admin', nodes.join(','));
  assert.deepEqual([code, err], [0, '']);
  assert.deepEqual(
    out
      .trimEnd()
      .split('\n')
      .map((line) => line.split(/ {2,}/)),
    [
      ['SOURCE', 'DESTINATION', 'PROTOCOL', 'CONNECTIONS', 'REQUESTS', 'FAILURES', 'DENIED', 'SEEN AT'],
      ['shop/web', CART_PORT, 'http', '4', '140', '2', '0', 'source'],
      [WEB, 'shop/cart', 'http', '3', '60', '0', '4', 'destination'],
    ],
  );
  const json = await graph('--json', '--admin', nodes.join());
  assert.deepEqual(JSON.parse(json.out), [{ ...called, connections: 4, requests: 140, failures: 2 }, caller]);
  assert.match((await graph('--admin', nodes[2]!)).out, /nobody has talked to anybody yet/);
});

test('nodes that do not answer are named, and the others are shown all the same', async (t) => {
  const [good, gateway] = [await node(t, [called]), await node(t, null)];
  const { code, out, err } = await graph('--admin', `127.0.0.1:1,${good},${gateway}`);
  assert.equal(code, 1);
  assert.match(out, /shop\/web/);
  assert.match(err, /cannot reach the admin port 127\.0\.0\.1:1: .*; is the node proxy running/);
  assert.match(err, new RegExp(`${gateway} answered 404; is that the admin port of a node proxy`));
  const none = await graph('--admin', gateway);
  assert.deepEqual([none.code, none.out], [1, '']);
  assert.match(none.err, /answered 404/);
});
