// A workload with a proxy of its own, beside others that the proxies of their nodes serve.

import assert from 'node:assert/strict';
import { appendFileSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import type { NodeMeshPage } from '../../../mesh-agent/node/node-admin.ts';
import { startApp } from '../../support/mesh/apps.ts';
import { eventually, meshSkipReason, TestMesh } from '../../support/mesh/mesh.ts';
import type { MeshPlan } from '../../support/mesh/plan.ts';
import { writeSidecar } from '../../support/mesh/sidecar.ts';
import { portcullis, Running } from '../support.ts';

const http = { port: 8080, kind: 'http' } as const;

/** All that a sidecar may do: with this, root is allowed little more than anybody. */
const ONLY_NET_ADMIN = ['--bounding-set=-all,+net_admin', '--inh-caps=-all,+net_admin', '--no-new-privs'];

/** Some of the requests to the cart go to workloads with certain labels. */
const POLICIES = `kind: TrafficPolicy
metadata: {name: cart, namespace: shop}
spec:
  service: cart
  rules:
    - matches: [{headers: [{name: x-version, value: v2}]}]
      backendRefs: [{name: cart, subset: {version: v2}}]
    - matches: [{headers: [{name: x-version, value: v3}]}]
      backendRefs: [{name: cart, subset: {version: v3}}]
    - backendRefs: [{name: cart, subset: {version: v1}}]
---
kind: AuthorizationPolicy
metadata: {name: web, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/cart]}}]}]
---
kind: AuthorizationPolicy
metadata: {name: cart, namespace: shop}
spec:
  selector: {matchLabels: {app: cart}}
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]}]
`;

const plan: MeshPlan = {
  nodes: {
    one: { 'web-0': { sidecar: true }, stranger: { member: false } },
    two: {
      'cart-0': { labels: { version: 'v1' } },
      'cart-1': { labels: { version: 'v2' } },
      'api-0': {},
      // Its sidecar is not there (yet).
      'lone-0': { sidecar: true },
    },
  },
  services: {
    cart: [{ port: 80, targetPort: 8080, protocol: 'http' }],
    web: [{ port: 80, targetPort: 8080, protocol: 'http' }],
  },
  policies: POLICIES,
};

test('a workload with a sidecar in a mesh of node proxies', { skip: meshSkipReason() }, async (t) => {
  const mesh = await TestMesh.create(t, plan, { without: ['one'] });
  const { clients } = mesh;
  const at = (name: string) => mesh.at(name);
  const file = await writeSidecar(mesh, 'web-0', 'accessLog: {path: access.log}\n');
  const launch = (): Running => {
    const command = [...ONLY_NET_ADMIN, portcullis, 'mesh', 'node', '--config', file];
    return new Running(at('web-0').spawn('setpriv', command));
  };
  const ask = (path: string) => clients.request(at('web-0'), '127.0.0.1', 9902, { path });
  const page = async (): Promise<NodeMeshPage> => JSON.parse((await ask('/mesh')).body);
  const serves = (sidecar: Running) =>
    eventually('the sidecar serves', async () => {
      const [workload, ...others] = (await page()).workloads;
      if (workload?.served !== true || workload.capture !== 'installed') {
        throw new Error(`${JSON.stringify(workload)}\n${sidecar.stderr}`);
      }
      return { workload, others };
    });
  const rules = async (name: string): Promise<string> => (await at(name).run('nft', ['list', 'tables'])).stdout;
  const statusOf = async (from: string, service: string): Promise<number> =>
    (await clients.request(at(from), mesh.vip(service), 80)).status;

  await Promise.all(['web-0', 'cart-0', 'cart-1', 'stranger'].map((name) => startApp(at(name), name, http)));
  assert.equal(await rules('lone-0'), '', 'the proxy of the node leaves it alone');
  assert.deepEqual(
    (await mesh.node('two').status()).workloads.map(({ workload }) => workload),
    ['shop/api-0', 'shop/cart-0', 'shop/cart-1'],
  );
  let sidecar = launch();
  const { workload, others } = await serves(sidecar);

  await t.test('it serves this workload and no other, with the right to change rules and no other', async () => {
    assert.deepEqual(
      [workload.workload, workload.identity, workload.problems, others],
      ['shop/web-0', mesh.identity('web-0'), [], []],
    );
    assert.match(await rules('web-0'), /inet portcullis/);
    assert.match(await mesh.command('workloads', '--admin', mesh.controlAdmin), /^shop\/web-0 +one \(sidecar\) /m);
    const status = readFileSync(`/proc/${sidecar.pid}/status`, 'utf8');
    assert.match(status, /^CapEff:\s+0{12}1000$/m, 'CAP_NET_ADMIN');
  });

  await t.test('it talks to workloads of node proxies as who it is, in both directions', async () => {
    const { status, body } = await clients.request(at('web-0'), mesh.vip('cart'), 80);
    assert.equal(status, 200, body);
    assert.match(
      JSON.parse(body).headers['x-forwarded-client-cert'],
      /URI=spiffe:\/\/cluster\.local\/ns\/shop\/sa\/web/,
    );
    const back = await clients.request(at('cart-0'), mesh.vip('web'), 80);
    assert.equal(back.status, 200, back.body);
    const seen = JSON.parse(back.body);
    assert.deepEqual(
      [seen.app, seen.headers['x-forwarded-client-cert'].includes(mesh.identity('cart-0'))],
      ['web-0', true],
    );
  });

  await t.test('rules choose among workloads by their labels', async () => {
    const ask = async (headers: Record<string, string>): Promise<unknown> => {
      const { status, body } = await clients.request(at('web-0'), mesh.vip('cart'), 80, { headers });
      return status === 200 ? JSON.parse(body).app : status;
    };
    for (let count = 0; count < 3; count++) {
      assert.deepEqual(
        [await ask({}), await ask({ 'x-version': 'v2' }), await ask({ 'x-version': 'v3' })],
        ['cart-0', 'cart-1', 503],
      );
    }
    await mesh.changeWorkload('two', 'cart-1', { labels: { version: 'v3' } });
    await eventually('labels that have changed count', async () => (await ask({ 'x-version': 'v3' })) === 'cart-1');
    assert.equal(await ask({ 'x-version': 'v2' }), 503);
  });

  await t.test('the logs of both proxies name workload, side, peer, service and policy', async () => {
    const { body } = await clients.request(at('web-0'), mesh.vip('cart'), 80, { path: '/logged' });
    const id = JSON.parse(body).headers['x-request-id'];
    const entry = (file: string): Promise<Record<string, unknown>> =>
      eventually(`it is in ${file}`, () => {
        const line = readFileSync(file, 'utf8')
          .split('\n')
          .find((text) => text.includes(id));
        if (line === undefined) return undefined;
        const { workload, side, peer, service, policy } = JSON.parse(line);
        return { workload, side, peer, service, policy };
      });
    assert.deepEqual(await entry(join(mesh.directory, 'sidecar', 'access.log')), {
      ...{ workload: 'shop/web-0', side: 'outbound', peer: mesh.identity('cart-0') },
      ...{ service: 'shop/cart.shop.svc.cluster.local:80', policy: null },
    });
    assert.deepEqual(await entry(join(mesh.node('two').directory, 'access.log')), {
      ...{ workload: 'shop/cart-0', side: 'inbound', peer: mesh.identity('web-0') },
      ...{ service: null, policy: 'shop/cart' },
    });
    const denied = await clients.request(at('api-0'), mesh.vip('cart'), 80, { path: '/denied' });
    assert.equal(denied.status, 403);
    const record = await eventually('it is recorded', async () => {
      const { requests } = JSON.parse(await mesh.node('two').page('/requests?workload=shop/cart-0'));
      return requests[0]?.path.text === '/denied' && requests[0];
    });
    assert.deepEqual([record.peer, record.policy], [mesh.identity('api-0'), 'shop/cart']);
    assert.deepEqual(JSON.parse(await mesh.node('two').page('/requests?workload=shop/other')).requests, []);
  });

  await t.test('policies decide by identity at either proxy, and plain text is refused', async () => {
    assert.equal(await statusOf('api-0', 'cart'), 403, 'on the same node');
    assert.equal(await statusOf('api-0', 'web'), 403);
    await assert.rejects(clients.request(at('stranger'), at('web-0').address, 8080), /ECONNRESET|hang up/);
  });

  await t.test(
    'what the mesh says of plain text to a workload goes before what its proxy is configured to',
    async () => {
      const ask = () => clients.request(at('stranger'), at('cart-1').address, 8080);
      assert.equal((await ask()).status, 403, 'let in as from nobody, whom the policy does not allow');
      await mesh.changeWorkload('two', 'cart-1', { mode: 'strict' });
      await eventually('it is refused', () =>
        ask().then(
          () => false,
          (error: Error) => /ECONNRESET|hang up/.test(error.message),
        ),
      );
      const { workloads } = await mesh.node('two').status();
      assert.deepEqual(
        workloads.map(({ workload, mode }) => [workload, mode]),
        [
          ['shop/api-0', 'permissive'],
          ['shop/cart-0', 'permissive'],
          ['shop/cart-1', 'strict'],
        ],
      );
    },
  );

  await t.test(
    'after a crash nothing goes around it, and the next one finds the control plane in spite of the rules',
    async () => {
      sidecar.kill('SIGKILL');
      await sidecar.finished;
      await assert.rejects(clients.request(at('web-0'), at('stranger').address, 8080), /ECONNREFUSED/);
      appendFileSync(file, 'capture: {failClosed: false}\n');
      sidecar = launch();
      await serves(sidecar);
      await eventually('it is connected', async () => (await page()).controlPlane.synced);
      assert.equal(await statusOf('web-0', 'cart'), 200);
    },
  );

  await t.test('SIGTERM finishes what runs, and a capture that fails open ends', async () => {
    const { socket, done } = await openRequest(mesh);
    sidecar.kill('SIGTERM');
    await sidecar.log(/info draining/);
    socket.write('late');
    assert.match(await done, /^HTTP\/1\.1 200 /);
    const { code, stderr } = await sidecar.finished;
    assert.equal(code, 0, stderr);
    await eventually('its rules are gone', async () => (await rules('web-0')) === '');
    assert.equal((await clients.request(at('web-0'), at('stranger').address, 8080)).status, 200);
  });
});

/** A request of the workload whose body has not ended. */
async function openRequest(mesh: TestMesh) {
  const socket = await mesh.clients.connect(mesh.at('web-0'), mesh.vip('cart'), 80);
  socket.write('POST /upload HTTP/1.1\r\nhost: cart\r\nconnection: close\r\ncontent-length: 8\r\n\r\nsoon');
  const done = (async () => {
    let text = '';
    for await (const chunk of socket.setEncoding('utf8')) text += chunk;
    return text;
  })();
  // The proxy has it once the server has been reached.
  await eventually('it is under way', async () => {
    const { body } = await mesh.clients.request(mesh.at('web-0'), '127.0.0.1', 9902, { path: '/metrics' });
    return /^portcullis_workload_connections_open\{[^}]*direction="outbound"[^}]*\} [1-9]/m.test(body);
  });
  return { socket, done };
}
