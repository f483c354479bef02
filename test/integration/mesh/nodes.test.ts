// Three nodes with a proxy each: what applications that know nothing of a mesh see of it.

import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { runScript, startApp, startNginx } from '../../support/mesh/apps.ts';
import { eventually, meshSkipReason, TestMesh } from '../../support/mesh/mesh.ts';
import type { MeshPlan } from '../../support/mesh/plan.ts';

const plan: MeshPlan = {
  nodes: {
    one: { 'web-0': {}, 'cart-0': {} },
    two: { 'feed-0': {}, stranger: { member: false } },
    three: { 'cart-1': {}, 'page-0': {} },
  },
  services: {
    cart: [{ port: 80, targetPort: 8080, protocol: 'http' }],
    page: [{ port: 80, targetPort: 8080, protocol: 'http' }],
    feed: [
      { port: 80, targetPort: 8080, protocol: 'http' },
      { port: 81, targetPort: 8081, protocol: 'http2' },
      { port: 443, targetPort: 50_051, protocol: 'grpc' },
      { port: 7000, targetPort: 7000, protocol: 'tcp' },
      { port: 7001, targetPort: 7001, protocol: 'tcp' },
      { port: 8000, targetPort: 8080, protocol: 'auto' },
      { port: 8001, targetPort: 8082, protocol: 'auto' },
      { port: 8002, targetPort: 7000, protocol: 'auto' },
      { port: 8003, targetPort: 7001, protocol: 'auto' },
    ],
  },
};

const skip = meshSkipReason('curl', 'nginx', 'wrk');

/** Requests were read, not passed on as bytes: by the node of the client, and by that of the server. */
function assertRequests({ headers }: { headers: Record<string, string> }): void {
  assert.match(headers['x-request-id'] ?? '', /^[0-9a-f-]{36}$/);
  assert.match(headers['x-forwarded-client-cert'] ?? '', /URI=spiffe:\/\/cluster\.local\/ns\/shop\/sa\/web/);
}

test('applications in a mesh of three nodes', { skip }, async (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'portcullis-nginx-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  const mesh = await TestMesh.create(t, plan);
  const http = { port: 8080, kind: 'http' } as const;
  await Promise.all([
    startApp(mesh.at('cart-0'), 'cart-0', http),
    startApp(mesh.at('cart-1'), 'cart-1', http),
    startApp(
      mesh.at('feed-0'),
      'feed-0',
      http,
      { port: 8081, kind: 'h2c' },
      { port: 8082, kind: 'h2c' },
      { port: 50_051, kind: 'grpc' },
      { port: 7000, kind: 'echo' },
      { port: 7001, kind: 'banner' },
    ),
    startApp(mesh.at('stranger'), 'stranger', http, { port: 7001, kind: 'banner' }),
    startNginx(mesh.at('page-0'), directory, 8080, 'a page of nginx'),
  ]);
  const { clients } = mesh;
  const web = mesh.at('web-0');
  const feed = mesh.vip('feed');

  await t.test('a service is reached by its virtual address, on other nodes and on the own one', async () => {
    const reached = new Set<string>();
    await eventually('both carts were reached', async () => {
      const { status, body } = await clients.request(web, mesh.vip('cart'), 80, { path: '/items?x=1' });
      assert.equal(status, 200, body);
      const { app, url, headers, from } = JSON.parse(body);
      assert.deepEqual([url, headers.host], ['/items?x=1', `${mesh.vip('cart')}:80`], 'nothing is rewritten');
      assert.ok(String(from).length > 0);
      reached.add(app);
      return reached.size === 2;
    });
  });

  await t.test('both nodes have it in their logs, under one id', async () => {
    const { body } = await clients.request(web, feed, 80, { path: '/logged' });
    const id = JSON.parse(body).headers['x-request-id'];
    assert.equal(typeof id, 'string');
    for (const name of ['one', 'two']) {
      await eventually(`it is in the log of ${name}`, () =>
        mesh
          .node(name)
          .accessLog()
          .some((entry) => entry.requestId === id && entry.path === '/logged'),
      );
    }
  });

  await t.test('IPv6 is the same', async () => {
    const { status, body } = await clients.request(web, mesh.vip6('feed'), 80);
    assert.deepEqual([status, JSON.parse(body).app], [200, 'feed-0']);
  });

  await t.test('curl, nginx and wrk do not notice', async () => {
    assert.equal(await mesh.curl('web-0', `http://${mesh.vip('page')}/index.html`), 'a page of nginx');
    // It runs for a time, in which a busy machine may let it do nothing.
    let requests = 0;
    while (requests === 0) {
      const args = ['-t1', '-c8', '-d1s', '--timeout', '20s', `http://${mesh.vip('page')}/`];
      const { code, stdout } = await web.run('wrk', args);
      assert.equal(code, 0);
      assert.doesNotMatch(stdout, /Socket errors|Non-2xx/);
      requests = Number(/^ +(\d+) requests in /m.exec(stdout)![1]);
    }
  });

  await t.test('bodies of both directions arrive whole', async () => {
    const body = 'abcdefgh'.repeat(64 * 1024);
    const answer = await clients.request(web, feed, 80, { method: 'POST', path: '/upload', body });
    assert.equal(JSON.parse(answer.body).bytes, body.length);
    assert.equal((await clients.request(web, feed, 80, { path: '/bytes/3000000' })).body.length, 3_000_000);
  });

  await t.test('an upgraded connection carries bytes both ways', async () => {
    for (const port of [80, 8000]) {
      const head = 'GET / HTTP/1.1\r\nhost: feed\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n';
      const socket = await clients.connect(web, feed, port);
      socket.write(head);
      let text = '';
      for await (const chunk of socket.setEncoding('utf8')) {
        if (text === '') socket.end('over the mesh and back');
        text += chunk;
      }
      assert.match(text, /^HTTP\/1\.1 101 [\s\S]*\r\n\r\nover the mesh and back$/);
    }
  });

  await t.test('HTTP/2 with prior knowledge and gRPC stay what they are', async () => {
    const text = await mesh.curl('web-0', `http://${feed}:81/h2`, '--http2-prior-knowledge');
    assert.equal(JSON.parse(text).httpVersion, '2.0');
    const calls = { target: `${feed}:443`, say: ['hello', 'fail', 'again'], count: 5 };
    const { code, stdout, stderr } = await runScript(web, './grpc-client.ts', calls);
    assert.equal(code, 0, stderr);
    assert.deepEqual(JSON.parse(stdout), {
      answers: ['feed-0: hello', 'status 9: feed-0 does not want to', 'feed-0: again'],
      streamed: [1, 2, 3, 4, 5].map((number) => `feed-0 ${number}`),
    });
  });

  await t.test('bytes of TCP pass as they are, and a server may speak first', async () => {
    const bytes = 'x'.repeat(200_000);
    assert.equal(await clients.exchange(web, feed, 7000, bytes, bytes.length), bytes);
    assert.equal(await clients.exchange(web, feed, 7001, ''), '220 feed-0 speaks first\r\n');
  });

  await t.test('a client may end its half of a connection', async () => {
    const socket = await clients.connect(web, feed, 7000);
    socket.end('last words');
    let text = '';
    for await (const chunk of socket.setEncoding('utf8')) text += chunk;
    assert.equal(text, 'last words');
  });

  await t.test('HTTP/1.1 is found out where no protocol is declared', async () => {
    const { status, body } = await clients.request(web, feed, 8000, { path: '/detected' });
    assert.deepEqual([status, JSON.parse(body).url], [200, '/detected']);
    assertRequests(JSON.parse(body));
  });

  await t.test('so is HTTP/2, whose servers speak before clients that take their time', async () => {
    for (const waitMs of [50, 0, 50]) {
      const { status, body } = await clients.requestHttp2(web, feed, 8001, '/detected', waitMs);
      assert.equal(status, 200, body);
      assertRequests(JSON.parse(body));
    }
    assert.match(await mesh.curl('web-0', `http://${feed}:8001/h2`, '--http2-prior-knowledge'), /"app":"feed-0"/);
  });

  await t.test('and everything else is passed on, whoever speaks first', async () => {
    assert.equal(await clients.exchange(web, feed, 8002, '\0 not HTTP', 10), '\0 not HTTP');
    for (let count = 0; count < 2; count++) {
      assert.equal(await clients.exchange(web, feed, 8003, ''), '220 feed-0 speaks first\r\n');
    }
  });

  await t.test('a workload is reached by its own address, too', async () => {
    const { status, body } = await clients.request(web, mesh.at('cart-1').address, 8080);
    assert.deepEqual([status, JSON.parse(body).app], [200, 'cart-1']);
    assert.match(await clients.exchange(web, mesh.at('feed-0').address, 7001, ''), /^220 feed-0/);
  });

  await t.test('addresses outside of the mesh are reached as they are', async () => {
    const { address } = mesh.at('stranger');
    const { status, body } = await clients.request(web, address, 8080);
    assert.deepEqual([status, JSON.parse(body).app], [200, 'stranger']);
    assert.equal(JSON.parse(body).from, `::ffff:${web.address}`, 'from the workload, not from its node');
    assert.match(await clients.exchange(web, address, 7001, ''), /^220 stranger/);
  });

  await t.test('who is not in the mesh reaches workloads in plain text where that is permitted', async () => {
    const { status, body } = await clients.request(mesh.at('stranger'), mesh.at('cart-1').address, 8080);
    assert.deepEqual([status, JSON.parse(body).app], [200, 'cart-1']);
  });

  await t.test('a port where nobody listens is refused, and a service without endpoints unavailable', async () => {
    await assert.rejects(clients.exchange(web, mesh.at('stranger').address, 9, ''), /ECONNRE/);
    await mesh.changeWorkload('three', 'page-0', { status: 'unhealthy' });
    await eventually('there is no page', async () => {
      const { status } = await clients.request(web, mesh.vip('page'), 80);
      return status === 503;
    });
    await mesh.changeWorkload('three', 'page-0', { status: 'healthy' });
    await eventually('there is a page', async () => {
      const { status } = await clients.request(web, mesh.vip('page'), 80);
      return status === 200;
    });
  });

  await t.test('a workload that comes to the mesh is reached by tunnel, and as before when it has left', async () => {
    const { address } = mesh.at('stranger');
    const ask = async () => JSON.parse((await clients.request(web, address, 8080)).body);
    const rules = async () => (await mesh.at('stranger').run('nft', ['list', 'tables'])).stdout;
    await mesh.changeWorkload('two', 'stranger', { member: true });
    await eventually('it is in the mesh', async () => 'x-forwarded-client-cert' in (await ask()).headers);
    assert.match(await rules(), /portcullis/);
    await mesh.changeWorkload('two', 'stranger', { member: false });
    await eventually('it has left', async () => (await ask()).from === `::ffff:${web.address}`);
    await eventually('its rules are gone', async () => (await rules()) === '');
  });
});
