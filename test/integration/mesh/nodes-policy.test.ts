// Who may reach whom, as the node proxies decide it.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { test } from 'node:test';
import type { GraphEdge } from '../../../gateway/admin/workload-metrics.ts';
import { startApp } from '../../support/mesh/apps.ts';
import { eventually, meshSkipReason, TestMesh } from '../../support/mesh/mesh.ts';

const POLICIES = `
kind: AuthorizationPolicy
metadata: {name: readers, namespace: shop}
spec:
  selector: {matchLabels: {app: cart}}
  action: ALLOW
  rules:
    - from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]
      to: [{operation: {methods: [GET], ports: [8080]}}]
---
kind: AuthorizationPolicy
metadata: {name: no-admin, namespace: shop}
spec:
  selector: {matchLabels: {app: cart}}
  action: DENY
  rules: [{to: [{operation: {paths: ["/admin*"]}}]}]
---
kind: AuthorizationPolicy
metadata: {name: tellers, namespace: shop}
spec:
  selector: {matchLabels: {app: bank}}
  action: ALLOW
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/cart]}}]}]
---
kind: AuthorizationPolicy
metadata: {name: rehearsal, namespace: shop}
spec:
  selector: {matchLabels: {app: open}}
  action: DENY
  dryRun: true
  rules: [{to: [{operation: {methods: [GET]}}]}]
`;

/** Closed without a byte, an error, or the answer of a proxy that does not know any further. */
const REFUSED = /^(|ECONN.*|HTTP\/1\.1 503 [\s\S]*)$/;

const skip = meshSkipReason();

test('policies and strict mode on the nodes', { skip }, async (t) => {
  const mesh = await TestMesh.create(
    t,
    {
      nodes: {
        one: { 'web-0': {}, 'thief-0': {}, 'cart-1': {} },
        two: { 'cart-0': {}, 'bank-0': {}, 'open-0': {}, stranger: { member: false } },
      },
      services: {
        cart: [{ port: 80, targetPort: 8080, protocol: 'http' }],
        bank: [{ port: 7000, targetPort: 7000, protocol: 'tcp' }],
        open: [{ port: 80, targetPort: 8080, protocol: 'http' }],
      },
      policies: POLICIES,
    },
    { mode: 'strict', egress: 'refuse' },
  );
  const http = { port: 8080, kind: 'http' } as const;
  await Promise.all([
    startApp(mesh.at('cart-0'), 'cart-0', http),
    startApp(mesh.at('cart-1'), 'cart-1', http),
    startApp(mesh.at('open-0'), 'open-0', http),
    startApp(mesh.at('bank-0'), 'bank-0', { port: 7000, kind: 'banner' }, { port: 7001, kind: 'echo' }),
    startApp(mesh.at('stranger'), 'stranger', http),
  ]);
  const { clients } = mesh;
  const web = mesh.at('web-0');
  const thief = mesh.at('thief-0');
  const stranger = mesh.at('stranger');
  const ask = async (from: typeof web, method: string, path: string, at = mesh.vip('cart'), port = 80) => {
    const { status, body } = await clients.request(from, at, port, { method, path });
    return { status, body };
  };

  /** What comes back from a request in plain text; the error's code when the connection fails. */
  const outcome = (from: typeof web, host: string, port: number): Promise<string> =>
    clients
      .exchange(from, host, port, 'GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n')
      .catch((error) => error.code ?? error.message);

  await t.test('what is allowed passes, what is not is answered with 403 and the reason', async () => {
    assert.equal((await ask(web, 'GET', '/items')).status, 200);
    for (const [from, method, path] of [
      [web, 'POST', '/items'],
      [web, 'GET', '/admin/keys'],
      [thief, 'GET', '/items'],
    ] as const) {
      // Both of the service's workloads refuse: the one on the same node, too.
      for (const workload of ['cart-0', 'cart-1']) {
        const { status, body } = await ask(from, method, path, mesh.at(workload).address, 8080);
        assert.equal(status, 403, `${from.name} ${method} ${path} ${workload}: ${body}`);
      }
      assert.equal((await ask(from, method, path)).status, 403);
    }
  });

  await t.test('the log of the node says which policy decided', async () => {
    const denied = await eventually('both are in the log', () => {
      const entries = mesh
        .node('two')
        .accessLog()
        .filter(({ status }) => status === 403);
      return entries.length >= 3 && entries;
    });
    const texts = denied.map((entry) => JSON.stringify(entry));
    assert.ok(
      texts.some((text) => /shop\/no-admin/.test(text)),
      texts.join('\n'),
    );
  });

  await t.test('TCP is closed before a byte has passed', async () => {
    assert.equal(await clients.exchange(mesh.at('cart-0'), mesh.vip('bank'), 7000, ''), '220 bank-0 speaks first\r\n');
    const refused = await clients
      .exchange(web, mesh.vip('bank'), 7000, '')
      .catch((error) => error.code ?? error.message);
    assert.ok(refused === '' || refused === 'ECONNRESET', refused);
  });

  await t.test('the graph of the node says who was denied', async () => {
    for (const [account, workload] of [
      ['thief', 'cart-0'],
      ['web', 'bank-0'],
    ]) {
      await eventually(`${account} was denied ${workload}`, async () => {
        const edges = JSON.parse(await mesh.node('two').page('/mesh/graph')) as GraphEdge[];
        const edge = edges.find(
          ({ source, destination }) => source.endsWith(`/sa/${account}`) && destination.endsWith(`/${workload}`),
        );
        if (edge === undefined || edge.denied === 0) throw new Error(JSON.stringify(edges));
        return true;
      });
    }
  });

  await t.test('a rehearsed denial lets through', async () => {
    assert.equal((await ask(web, 'GET', '/', mesh.vip('open'))).status, 200);
  });

  await t.test('strict: nobody gets in without a certificate of the mesh', async () => {
    for (const workload of ['cart-0', 'cart-1', 'open-0']) {
      assert.match(await outcome(stranger, mesh.at(workload).address, 8080), REFUSED, workload);
    }
  });

  await t.test('nor by way of the ports of the proxy itself', async () => {
    const cart = mesh.at('cart-0').address;
    for (const [from, host, port] of [
      [stranger, cart, 15_001],
      [stranger, cart, 15_006],
      [web, cart, 15_001],
      [web, cart, 15_006],
      [web, '127.0.0.1', 15_001],
      [web, '127.0.0.1', 15_006],
    ] as const) {
      assert.match(await outcome(from, host, port), REFUSED, `${from.name} to ${host}:${port}`);
    }
    assert.equal((await ask(web, 'GET', '/items')).status, 200);
  });

  await t.test('egress refused: addresses outside of the mesh are not reached', async () => {
    assert.match(await outcome(web, mesh.at('stranger').address, 8080), REFUSED);
  });

  await t.test('open connections that a new policy does not let in are closed, WebSockets among them', async () => {
    const stream = await clients.connect(mesh.at('cart-0'), mesh.at('bank-0').address, 7001);
    const socket = await clients.connect(web, mesh.vip('cart'), 80);
    const closed = [stream, socket].map(
      (one) => new Promise((resolve) => one.on('error', () => {}).on('close', resolve)),
    );
    stream.write('hello');
    assert.equal(String((await once(stream, 'data'))[0]), 'hello');
    socket.write('GET /chat HTTP/1.1\r\nhost: cart\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n');
    assert.match(String((await once(socket, 'data'))[0]), /^HTTP\/1\.1 101 /);
    await mesh.change({ policies: POLICIES.replace('/admin*', '/chat*').replace('sa/cart]', 'sa/bank]') });
    await Promise.all(closed);
    await eventually('the log says why', () => {
      const details = mesh
        .node('two')
        .accessLog()
        .map(({ detail }) => detail);
      if (!details.includes('not_allowed_by_shop/tellers')) throw new Error(details.join('\n'));
      return true;
    });
  });

  await t.test('a policy that changes counts at once, on connections that are open, too', async () => {
    await mesh.change({ policies: POLICIES.replace('methods: [GET], ', '').replace('/admin*', '/items*') });
    await eventually('the new policies count', async () => (await ask(web, 'POST', '/')).status === 200);
    await eventually('the new denial counts', async () => (await ask(web, 'GET', '/items')).status === 403);
    assert.equal((await ask(web, 'GET', '/admin/keys')).status, 200);
    await mesh.change({ policies: '' });
    await eventually('without policies everybody may', async () => (await ask(thief, 'GET', '/items')).status === 200);
  });
});
