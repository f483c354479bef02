// Active health checks of traffic policies, as node proxies and a sidecar make them: through tunnels.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { BackendState, EndpointState } from '../../../gateway/admin/state.ts';
import type { NodeMeshPage } from '../../../mesh-agent/node/node-admin.ts';
import { startApp } from '../../support/mesh/apps.ts';
import { eventually, meshSkipReason, TestMesh } from '../../support/mesh/mesh.ts';
import { writeSidecar } from '../../support/mesh/sidecar.ts';
import type { Answer } from '../../support/mesh/sockets.ts';
import { portcullis, Running } from '../support.ts';

/** Often, with all the time that a busy machine needs, and without requests to whom nobody has found well. */
const CHECK = 'interval: 100ms, timeout: 10s, jitter: 0, unhealthyThreshold: 1, healthyThreshold: 1';

const policyFor = (service: string, check: string): string => `kind: TrafficPolicy
metadata: {name: ${service}, namespace: shop}
spec:
  service: ${service}
  backend:
    loadBalancer: {panicThreshold: 0}
    healthCheck: {${check}, ${CHECK}}
`;

/** Lets identities in to a service's workloads, and nobody else. */
const allowOnly = (app: string, ...principals: string[]): string => `kind: AuthorizationPolicy
metadata: {name: ${app}-only, namespace: shop}
spec:
  selector: {matchLabels: {app: ${app}}}
  action: ALLOW
  rules: [{from: [{source: {principals: [${principals.join(', ')}]}}]}]
`;

const TRAFFIC = [
  policyFor('cart', 'path: /healthz'),
  policyFor('api', 'path: /healthz'),
  policyFor('bank', 'type: TCP'),
  policyFor('legacy', 'type: TCP'),
];
const documents = (...more: string[]): string => [...TRAFFIC, ...more].join('---\n');

const WEB = 'cluster.local/ns/shop/sa/web';
const NODE_ONE = 'cluster.local/node/one';
const NODE_TWO = 'cluster.local/node/two';
const SIDE = 'cluster.local/ns/shop/sa/side';

const http = { port: 8080, kind: 'http' } as const;
const backendOf = (service: string, port: number): string => `shop/${service}.shop.svc.cluster.local:${port}`;

test('health checks inside the mesh', { skip: meshSkipReason() }, async (t) => {
  const mesh = await TestMesh.create(
    t,
    {
      nodes: {
        one: { 'web-0': {}, 'cart-0': {} },
        two: { 'cart-1': {}, 'api-0': {}, 'bank-0': {}, 'side-0': { sidecar: true }, 'legacy-0': { member: false } },
      },
      services: {
        cart: [{ port: 80, targetPort: 8080, protocol: 'http' }],
        api: [{ port: 80, targetPort: 8080, protocol: 'http2' }],
        bank: [{ port: 7000, targetPort: 7000, protocol: 'auto' }],
        legacy: [{ port: 7000, targetPort: 7000, protocol: 'tcp' }],
      },
      policies: documents(),
    },
    // Whatever does not go through a tunnel is refused.
    { mode: 'strict' },
  );
  const { clients } = mesh;
  const web = mesh.at('web-0');
  await Promise.all([
    startApp(mesh.at('cart-0'), 'cart-0', http),
    startApp(mesh.at('cart-1'), 'cart-1', http),
    startApp(mesh.at('api-0'), 'api-0', { port: 8080, kind: 'h2c' }),
    startApp(mesh.at('legacy-0'), 'legacy-0', { port: 7000, kind: 'echo' }),
  ]);
  let bank = await startApp(mesh.at('bank-0'), 'bank-0', { port: 7000, kind: 'echo' });

  type Ask = (path: string) => Promise<Answer>;
  const one: Ask = (path) => mesh.node('one').ask(path);

  /** Waits until an endpoint is in a state by its checks, on the admin page; returns all that is said of it. */
  const found = (ask: Ask, backend: string, workload: string, health: string, cause = /^$/): Promise<EndpointState> =>
    eventually(`${workload} is ${health}`, async () => {
      const { body } = await ask('/backends');
      const { backends } = JSON.parse(body) as { backends: BackendState[] };
      const endpoints = backends.find(({ name }) => name === backend)?.endpoints ?? [];
      const endpoint = endpoints.find(({ address }) => address.startsWith(`${mesh.at(workload).address}:`));
      if (endpoint?.health === health && cause.test(endpoint.healthCause)) return endpoint;
      throw new Error(JSON.stringify(endpoints));
    });

  /** Who answers so many requests to the cart. */
  const answering = async (requests: number): Promise<string[]> => {
    const names = new Set<string>();
    for (let i = 0; i < requests; i++) {
      const { status, body } = await clients.request(web, mesh.vip('cart'), 80, { path: '/items' });
      names.add(status === 200 ? JSON.parse(body).app : `${status}`);
    }
    return [...names].sort();
  };

  /** Sets what a workload answers to its checks, from inside. */
  const setHealth = async (workload: string, status: number): Promise<void> => {
    const { address } = mesh.at(workload);
    const options = { method: 'PUT', path: '/healthz', body: `${status}` };
    assert.equal((await clients.request(mesh.at(workload), address, 8080, options)).status, 200);
  };

  const cart = backendOf('cart', 80);

  await t.test('workloads that are well are found so, on either node', async () => {
    assert.equal((await answering(1)).length, 1);
    await found(one, cart, 'cart-0', 'healthy');
    await found(one, cart, 'cart-1', 'healthy');
    await eventually('both answer', async () => (await answering(4)).length === 2);
  });

  await t.test('checks come through tunnels, with the identity of the node', async () => {
    for (const [node, workload] of [
      ['one', 'shop/cart-0'],
      ['two', 'shop/cart-1'],
    ]) {
      const entry = await eventually(`a check of ${workload}`, () =>
        mesh
          .node(node)
          .accessLog()
          .find((one) => one.side === 'inbound' && one.workload === workload && one.path === '/healthz'),
      );
      assert.deepEqual([entry.peer, entry.method, entry.status], [`spiffe://${NODE_ONE}`, 'GET', 200]);
    }
    // Nobody is asked as a workload, or by the proxy of a node that has no use for the service.
    const checks = mesh
      .node('two')
      .accessLog()
      .filter((one) => one.path === '/healthz');
    assert.deepEqual([...new Set(checks.map(({ peer }) => peer))], [`spiffe://${NODE_ONE}`]);
  });

  await t.test('one that says that it is not well gets nothing until it says that it is', async () => {
    for (const [sick, well] of [
      ['cart-1', 'cart-0'],
      ['cart-0', 'cart-1'],
    ] as const) {
      await setHealth(sick, 503);
      await found(one, cart, sick, 'unhealthy', /^it answered with status 503$/);
      assert.deepEqual(await answering(20), [well]);
      // It serves all the same, as the page of its checks is another one.
      assert.equal((await clients.request(web, mesh.at(sick).address, 8080, { path: '/items' })).status, 200);
      await setHealth(sick, 200);
      await found(one, cart, sick, 'healthy');
      await eventually(`${sick} answers again`, async () => (await answering(4)).includes(sick));
    }
    const metrics = await mesh.node('one').page('/metrics');
    assert.match(metrics, /^portcullis_health_checks_total\{[^}]*outcome="refusal"[^}]*\} [1-9]/m);
  });

  await t.test('policies apply to checks, and the reason says whom they do not allow', async () => {
    await mesh.change({ policies: documents(allowOnly('cart', WEB)) });
    const cause = new RegExp(`^its authorization policies do not allow spiffe://${NODE_ONE}$`);
    await found(one, cart, 'cart-0', 'unhealthy', cause);
    await found(one, cart, 'cart-1', 'unhealthy', cause);
    await mesh.change({ policies: documents(allowOnly('cart', WEB, 'cluster.local/node/*')) });
    await found(one, cart, 'cart-0', 'healthy');
    await found(one, cart, 'cart-1', 'healthy');
    assert.ok((await answering(4)).every((name) => name.startsWith('cart-')));
    await mesh.change({ policies: documents() });
  });

  await t.test('ports of HTTP/2 are asked by HTTP/2', async () => {
    const { status } = await clients.requestHttp2(web, mesh.vip('api'), 80, '/items');
    assert.equal(status, 200);
    await found(one, backendOf('api', 80), 'api-0', 'healthy');
    await setHealthHttp2(500);
    await found(one, backendOf('api', 80), 'api-0', 'unhealthy', /^it answered with status 500$/);
  });

  /** As `setHealth`, for the API: its port takes nothing but HTTP/2. */
  async function setHealthHttp2(status: number): Promise<void> {
    const url = `http://${mesh.at('api-0').address}:8080/healthz`;
    await mesh.curl('api-0', url, '--http2-prior-knowledge', '-X', 'PUT', '-d', `${status}`);
  }

  await t.test('TCP checks see whether the application listens, and policies', async () => {
    const name = backendOf('bank', 7000);
    assert.equal(await clients.exchange(web, mesh.vip('bank'), 7000, 'ping', 4), 'ping');
    await found(one, name, 'bank-0', 'healthy');
    bank.kill('SIGKILL');
    await bank.finished;
    await found(one, name, 'bank-0', 'unhealthy', /^connection reset behind the tunnel: nothing listens there/);
    bank = await startApp(mesh.at('bank-0'), 'bank-0', { port: 7000, kind: 'echo' });
    await found(one, name, 'bank-0', 'healthy');
    await mesh.change({ policies: documents(allowOnly('bank', WEB)) });
    await found(one, name, 'bank-0', 'unhealthy', new RegExp(`policies refuse spiffe://${NODE_ONE}$`));
    await mesh.change({ policies: documents() });
    await found(one, name, 'bank-0', 'healthy');
  });

  await t.test('workloads without tunnels are checked in plain text', async () => {
    const { address } = mesh.at('legacy-0');
    const legacy = {
      kind: 'Workload',
      metadata: { name: 'legacy-0', namespace: 'shop', labels: { app: 'legacy' } },
      spec: { addresses: [address], serviceAccount: 'legacy', node: 'two', protocol: 'none' },
    };
    await mesh.change({ policies: documents(`${JSON.stringify(legacy)}\n`) });
    assert.equal(await clients.exchange(web, mesh.vip('legacy'), 7000, 'ping', 4), 'ping');
    await found(one, backendOf('legacy', 7000), 'legacy-0', 'healthy');
  });

  await t.test('a sidecar checks with the identity of its workload', async () => {
    const file = await writeSidecar(mesh, 'side-0');
    const sidecar = new Running(mesh.at('side-0').spawn(portcullis, ['mesh', 'node', '--config', file]));
    const side = mesh.at('side-0');
    const ask: Ask = (path) => clients.request(side, '127.0.0.1', 9902, { path });
    await eventually('the sidecar serves', async () => {
      const { workloads } = JSON.parse((await ask('/mesh')).body) as NodeMeshPage;
      if (workloads[0]?.served && workloads[0].capture === 'installed') return true;
      throw new Error(`${JSON.stringify(workloads)}\n${sidecar.stderr}`);
    });
    assert.equal((await clients.request(side, mesh.vip('cart'), 80)).status, 200);
    await found(ask, cart, 'cart-0', 'healthy');
    await found(ask, cart, 'cart-1', 'healthy');
    await eventually('a check of the sidecar', () =>
      mesh
        .node('two')
        .accessLog()
        .some(({ path, peer }) => path === '/healthz' && peer === `spiffe://${SIDE}`),
    );
    await mesh.change({ policies: documents(allowOnly('cart', WEB, NODE_ONE, NODE_TWO)) });
    await found(ask, cart, 'cart-0', 'unhealthy', new RegExp(`do not allow spiffe://${SIDE}$`));
    await found(one, cart, 'cart-0', 'healthy');
    // What has no tunnel is not captured on its way, where a connection would always be taken.
    assert.equal(await clients.exchange(side, mesh.vip('bank'), 7000, 'ping', 4), 'ping');
    await found(ask, backendOf('bank', 7000), 'bank-0', 'healthy');
  });
});
