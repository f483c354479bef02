// Load that goes on while workloads of a service are replaced, and while a neighbour asks for far too much.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ConstantLoad, startApp } from '../../support/mesh/apps.ts';
import { eventually, meshSkipReason, TestMesh } from '../../support/mesh/mesh.ts';

const skip = meshSkipReason();
const http = { port: 8080, kind: 'http' } as const;

test('a mesh of three nodes under load', { skip }, async (t) => {
  const mesh = await TestMesh.create(
    t,
    {
      nodes: {
        one: { 'web-0': {}, 'flood-0': {}, 'cart-0': {} },
        two: { 'cart-1': {}, 'page-0': {} },
        three: { 'cart-2': {}, 'desk-0': {} },
      },
      services: {
        cart: [{ port: 80, targetPort: 8080, protocol: 'http' }],
        page: [{ port: 80, targetPort: 8080, protocol: 'http' }],
        desk: [{ port: 80, targetPort: 8080, protocol: 'http' }],
      },
      policies: `
kind: TrafficPolicy
metadata: {name: cart, namespace: shop}
spec:
  service: cart
  rules: [{retry: {attempts: 3, conditions: [connect-failure, refused-stream, reset, gateway-error]}}]
  backend: {retryBudget: {percent: 100}}
`,
    },
    { more: 'limits: {connections: 40}' },
  );
  const carts = { 'cart-0': 'one', 'cart-1': 'two', 'cart-2': 'three' } as const;
  const names = Object.keys(carts) as (keyof typeof carts)[];
  const apps = new Map(
    await Promise.all(names.map(async (name) => [name, await startApp(mesh.at(name), name, http)] as const)),
  );
  for (const name of ['page-0', 'desk-0']) await startApp(mesh.at(name), name, http);
  const web = mesh.at('web-0');
  const load = (service: string, perConnection: number, rate = 400) =>
    new ConstantLoad(web, { url: `http://${mesh.vip(service)}/`, lanes: 4, perConnection, rate });
  const restart = async (name: keyof typeof carts): Promise<void> => {
    apps.get(name)!.kill('SIGTERM');
    await apps.get(name)!.finished;
    apps.set(name, await startApp(mesh.at(name), name, http));
  };

  // A new root of the mesh comes in meanwhile: renewals are spread over twenty seconds. Nothing is tried again at the desk.
  const { activeRoot: oldRoot, phase } = (await mesh.status()).ca;
  assert.equal(phase, 'idle');
  const throughout = load('desk', 20, 100);
  await throughout.more(1);
  await mesh.command('rotate', '--config', mesh.controlFile);

  await t.test('workloads that are drained and started again, one after another, cost no request', async () => {
    const running = load('cart', 20);
    await running.more(1);
    for (const name of names) {
      await mesh.changeWorkload(carts[name], name, { status: 'draining' });
      await running.more(1);
      await restart(name);
      await mesh.changeWorkload(carts[name], name, { status: 'healthy' });
      await running.more(1);
    }
    const { requests, failures } = await running.stop();
    assert.deepEqual(failures, [], `of ${requests} requests`);
  });

  await t.test('nor do those that end without being drained, as requests are tried again', async () => {
    const running = load('cart', 20);
    await running.more(1);
    for (const name of names) {
      await restart(name);
      await running.more(1);
    }
    const { requests, failures } = await running.stop();
    assert.deepEqual(failures, [], `of ${requests} requests`);
  });

  await t.test(
    'a workload that opens far too many connections is held to its limit, and its neighbour served',
    async () => {
      const flood = mesh.at('flood-0');
      let open = 0;
      let closed = 0;
      for (let count = 0; count < 200; count++) {
        const socket = await mesh.clients.connect(flood, mesh.vip('page'), 80);
        open++;
        socket.on('error', () => {});
        socket.on('close', () => closed++);
        socket.resume();
      }
      // Those within the limit stay open, but not for ever, as they say nothing.
      await eventually('most were closed', () => closed >= 100);
      assert.ok(closed < open, `${closed} of ${open} connections were closed`);
      const running = load('page', 1);
      await running.more(3);
      const { requests, failures } = await running.stop();
      assert.deepEqual(failures, [], `of ${requests} requests`);
    },
  );

  await t.test('a new root of the mesh has been taken over by every node, and that cost no request', async () => {
    const root = await eventually('the rotation is over', async () => {
      const { ca } = await mesh.status();
      if (ca.phase !== 'idle' || ca.activeRoot === oldRoot) throw new Error(JSON.stringify(ca));
      return ca.activeRoot;
    });
    await throughout.more(1);
    const { requests, failures } = await throughout.stop();
    assert.deepEqual(failures, [], `of ${requests} requests`);
    for (const node of mesh.nodes.values()) {
      assert.deepEqual((await node.status()).trust.roots, [root], `${node.name} trusts the new root only`);
    }
  });
});
