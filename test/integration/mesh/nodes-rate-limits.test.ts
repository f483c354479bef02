// Rate limits of services with `global: true`: counted in a real Redis for all proxies together, and by each alone
// where there is none, or it does not answer.

import assert from 'node:assert/strict';
import { appendFileSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import type { NodeMeshPage } from '../../../mesh-agent/node/node-admin.ts';
import { startApp } from '../../support/mesh/apps.ts';
import { eventually, meshSkipReason, TestMesh } from '../../support/mesh/mesh.ts';
import type { MeshPlan } from '../../support/mesh/plan.ts';
import { writeSidecar } from '../../support/mesh/sidecar.ts';
import type { Answer } from '../../support/mesh/sockets.ts';
import { portcullis, Running } from '../support.ts';

const REDIS_PORT = 6379;
const CART = 'shop/cart.shop.svc.cluster.local';
const FEED = 'shop/feed.shop.svc.cluster.local';

/** Two services that know nothing of each other call their limits the same. */
const POLICIES = `kind: TrafficPolicy
metadata: {name: cart, namespace: shop}
spec:
  service: cart
  rules: [{rateLimits: [{name: total, requests: 10, period: 1h, key: [{header: x-key}], global: true}]}]
---
kind: TrafficPolicy
metadata: {name: feed, namespace: shop}
spec:
  service: feed
  rules: [{rateLimits: [{name: total, requests: 3, period: 1h, key: [{header: x-key}], global: true}]}]
`;

const plan: MeshPlan = {
  nodes: {
    one: { 'web-0': {}, 'feed-0': {} },
    two: { 'web-1': {}, 'cart-0': {} },
    three: { 'web-2': { sidecar: true } },
  },
  services: {
    cart: [{ port: 80, targetPort: 8080, protocol: 'http' }],
    feed: [{ port: 80, targetPort: 8080, protocol: 'auto' }],
  },
  policies: POLICIES,
};

/** So many of the first status, then so many of the second. */
function split(first: number, second: number): number[] {
  return [...Array(first).fill(200), ...Array(second).fill(429)];
}

test('global rate limits in a mesh', { skip: meshSkipReason('redis-server', 'redis-cli') }, async (t) => {
  const mesh = await TestMesh.create(t, plan, { mode: 'strict', egress: 'refuse', without: ['three'] });
  const { clients } = mesh;
  const http = { port: 8080, kind: 'http' } as const;
  await Promise.all(['cart-0', 'feed-0'].map((name) => startApp(mesh.at(name), name, http)));
  const ask = (from: string, service: string, key: string): Promise<Answer> =>
    clients.request(mesh.at(from), mesh.vip(service), 80, { headers: { 'x-key': key } });
  const askAll = (from: string, service: string, key: string, count: number): Promise<Answer[]> =>
    Promise.all(Array.from({ length: count }, () => ask(from, service, key)));
  const statuses = async (from: string, service: string, key: string, count: number): Promise<number[]> =>
    (await askAll(from, service, key, count)).map(({ status }) => status).sort();
  const nodes = [mesh.node('one'), mesh.node('two')];
  const sidecarPage = async (path: string): Promise<string> =>
    (await clients.request(mesh.at('web-2'), '127.0.0.1', 9902, { path })).body;

  const redisAt = mesh.network.get('control');
  const startRedis = async (): Promise<Running> => {
    const args = ['--port', String(REDIS_PORT), '--bind', redisAt.address, '--requirepass', 'secret', '--save', ''];
    const redis = new Running(redisAt.spawn('redis-server', [...args, '--dir', mesh.directory]));
    await redis.printed(/Ready to accept connections/);
    return redis;
  };
  const redisSection = (failure: string): string =>
    `redis: {address: "${redisAt.address}:${REDIS_PORT}", password: secret, timeout: 10s, failure: ${failure}}\n`;
  const configure = (failure: string): void => {
    for (const { directory, proxy } of nodes) {
      const file = join(directory, 'node.yaml');
      const rest = readFileSync(file, 'utf8').replace(/^redis: .*\n/m, '');
      writeFileSync(file, rest + redisSection(failure));
      proxy!.kill('SIGHUP');
    }
  };

  await t.test('without redis every node counts alone, and says so in its log and on /mesh', async () => {
    for (const web of ['web-0', 'web-1']) {
      assert.deepEqual(await statuses(web, 'cart', 'a', 12), split(10, 2), web);
      // The limit of that name of another service has numbers of its own.
      assert.deepEqual(await statuses(web, 'feed', 'a', 5), split(3, 2), web);
    }
    for (const node of nodes) {
      const alone = (key: string): string =>
        `${key}: global rate limits (total) are counted on this node alone, which has no redis`;
      await eventually(`${node.name} names both`, async () => {
        assert.deepEqual((await node.status()).problems, [alone(CART), alone(FEED)]);
        return true;
      });
      const said = [...node.proxy!.stderr.matchAll(/warn the mesh is not served as it is written/g)];
      assert.equal(said.length, 2, `once for each: ${node.proxy!.stderr}`);
    }
  });

  // Nothing of its workload's may go past it, so its own connection to redis must not count as that.
  const sidecarFile = await writeSidecar(mesh, 'web-2', 'egress: refuse\n');
  let redis = await startRedis();
  const proxies = nodes.map(({ proxy }) => proxy!);
  await t.test('with redis, which a reload brings, all proxies together let exactly as many through', async () => {
    configure('local');
    appendFileSync(sidecarFile, redisSection('local'));
    const sidecar = new Running(mesh.at('web-2').spawn(portcullis, ['mesh', 'node', '--config', sidecarFile]));
    proxies.push(sidecar);
    await Promise.all(proxies.map((proxy) => proxy.log(/info redis connected/)));
    await eventually('the sidecar serves', async () => {
      const { workloads } = JSON.parse(await sidecarPage('/mesh')) as NodeMeshPage;
      if (workloads[0]?.served !== true || workloads[0].capture !== 'installed') throw new Error(sidecar.stderr);
      return true;
    });
    const askers = ['web-0', 'web-1', 'web-2'];
    const answers = (await Promise.all(askers.map((web) => askAll(web, 'cart', 'b', 12)))).flat();
    assert.deepEqual(answers.map(({ status }) => status).sort(), split(10, 26));
    for (const { status, headers } of answers) {
      assert.equal(headers['ratelimit-policy'], '"total";q=10;w=3600');
      const seconds = Number(headers['retry-after'] ?? 0);
      assert.ok(status === 200 ? seconds === 0 : seconds > 0 && seconds <= 361, `${status} ${seconds}`);
    }
    assert.deepEqual(
      (await Promise.all(askers.map((web) => statuses(web, 'feed', 'b', 2)))).flat().sort(),
      split(3, 3),
    );
    for (const node of nodes) assert.deepEqual((await node.status()).problems, []);
    let counted = 0;
    for (const page of await Promise.all([...nodes.map((node) => node.page('/metrics')), sidecarPage('/metrics')])) {
      const match = page.match(
        /^portcullis_rate_limit_global_total\{limit="shop\/cart\.shop\.svc\.cluster\.local\/total",by="redis"\} (\d+)$/m,
      );
      assert.ok(Number(match?.[1]) > 0, page);
      counted += Number(match![1]);
    }
    assert.equal(counted, 36);
  });

  await t.test('redis has one count for each service and key, whoever asked', async () => {
    const args = ['-h', redisAt.address, '-a', 'secret', '--no-auth-warning', 'keys', 'portcullis:limit:*'];
    const { stdout } = await redisAt.run('redis-cli', args);
    const names = stdout.trim().split('\n').sort();
    assert.deepEqual(
      names.map((name) => name.replace(/:[A-Za-z0-9_-]{22}$/, '')),
      [`portcullis:limit:${CART}/total`, `portcullis:limit:${FEED}/total`],
    );
  });

  await t.test(
    'redis killed, `local`: each node counts by the same numbers; and together when it is back',
    async () => {
      redis.kill('SIGKILL');
      await redis.finished;
      await Promise.all(proxies.map((proxy) => proxy.log(/warn redis does not answer: .*failure=local/)));
      for (const web of ['web-0', 'web-1', 'web-2'])
        assert.deepEqual(await statuses(web, 'cart', 'c', 12), split(10, 2), web);
      redis = await startRedis();
      // The sidecar connects anew, now that its workload is captured, whose connections may not leave the mesh.
      await Promise.all(proxies.map((proxy) => proxy.log(/info redis is back/)));
      const answers = await Promise.all(['web-0', 'web-1', 'web-2'].map((web) => statuses(web, 'cart', 'c', 8)));
      assert.deepEqual(answers.flat().sort(), split(10, 14));
    },
  );

  await t.test('redis killed, `closed`: everything that it would count is refused', async () => {
    redis.kill('SIGKILL');
    await redis.finished;
    await Promise.all(nodes.map(({ proxy }) => proxy!.log(/warn redis does not answer/, 2)));
    configure('closed');
    for (const [index, web] of ['web-0', 'web-1'].entries()) {
      let asked = 0;
      // A key for each request: by the numbers alone none of them would be refused.
      const { headers } = await eventually(`node ${index} refuses`, async () => {
        const answer = await ask(web, 'cart', `d${asked++}`);
        return answer.status === 429 && answer;
      });
      assert.equal(headers['retry-after'], '1');
    }
  });
});
