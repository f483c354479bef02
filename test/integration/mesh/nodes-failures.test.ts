// What goes on when parts of the mesh are gone: a node's proxy, the control plane, the network.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Detail, Reason } from '../../../core/exchange/reasons.ts';
import { startApp } from '../../support/mesh/apps.ts';
import { eventually, meshSkipReason, TestMesh } from '../../support/mesh/mesh.ts';

const skip = meshSkipReason('curl');

test('a mesh of three nodes with parts that fail', { skip }, async (t) => {
  const mesh = await TestMesh.create(t, {
    nodes: {
      one: { 'web-0': {}, stranger: { member: false } },
      two: { 'feed-0': {}, 'reader-0': {}, 'late-0': {} },
      three: { 'page-0': {} },
    },
    services: {
      feed: [
        { port: 80, targetPort: 8080, protocol: 'http' },
        { port: 7000, targetPort: 7000, protocol: 'tcp' },
      ],
      page: [{ port: 80, targetPort: 8080, protocol: 'http' }],
      // Nobody asks for it until nobody can tell what it is.
      news: [{ port: 80, targetPort: 8080, protocol: 'http' }],
      late: [{ port: 80, targetPort: 8080, protocol: 'http' }],
    },
  });
  const http = { port: 8080, kind: 'http' } as const;
  await Promise.all([
    startApp(mesh.at('feed-0'), 'feed-0', http, { port: 7000, kind: 'banner' }),
    startApp(mesh.at('page-0'), 'page-0', http),
    startApp(mesh.at('late-0'), 'late-0', http),
    startApp(mesh.at('stranger'), 'stranger', http),
  ]);
  const { clients } = mesh;
  const web = mesh.at('web-0');
  const ask = async (service: string, from = web): Promise<string> => {
    const { status, body } = await clients.request(from, mesh.vip(service), 80);
    return status === 200 ? JSON.parse(body).app : `${status}`;
  };
  const outcome = (promise: Promise<unknown>): Promise<unknown> => promise.then(String, (error) => error.code);
  const works = (service: string, from = web): Promise<unknown> =>
    eventually(`${service} answers`, async () => (await ask(service, from)) === `${service}-0`);
  /** Waits for the last record of the node that asks: a client may be faster. */
  const recorded = (is: (record: { reason: number; detail: number }) => boolean): Promise<true> =>
    eventually('it is recorded', async () => {
      const { requests } = JSON.parse(await mesh.node('one').page('/requests?limit=1'));
      if (requests.length === 0 || !is(requests[0])) throw new Error(JSON.stringify(requests));
      return true;
    });
  await t.test('a node is told of what its workloads use when they use it, and of nothing else', async () => {
    const known = async () => {
      const { mesh: counts, discovery } = await mesh.node('one').status();
      return { ...counts, ...discovery };
    };
    const before = { workloads: 1, services: 0, policies: 0, addresses: 0, outside: 0, asking: 0, queued: 0 };
    assert.deepEqual(await known(), before);
    assert.equal(await ask('feed'), 'feed-0', 'the first connection works');
    assert.deepEqual(await known(), { ...before, workloads: 2, services: 1, addresses: 1 });
    assert.equal(await ask('page'), 'page-0');
    assert.match(await clients.exchange(web, mesh.at('feed-0').address, 7000, ''), /^220 feed-0/);
    const { status } = await clients.request(web, mesh.at('stranger').address, 8080);
    assert.equal(status, 200);
    assert.deepEqual(await known(), { ...before, workloads: 3, services: 2, addresses: 3, outside: 1 });
    const { mesh: others } = await mesh.node('three').status();
    assert.deepEqual(others, { workloads: 1, services: 1, policies: 0 }, 'its own workload, and the service of that');
  });

  await t.test('a node whose proxy is killed lets nothing in or out, and the others go on', async () => {
    await mesh.node('two').kill();
    assert.equal(await ask('feed'), '503');
    assert.equal(await ask('page'), 'page-0');
    const feed = mesh.at('feed-0').address;
    const stranger = mesh.at('stranger');
    assert.equal(await outcome(clients.exchange(stranger, feed, 8080, '')), 'ECONNREFUSED', 'nothing gets in');
    const reader = mesh.at('reader-0');
    for (const [host, port] of [
      [mesh.vip('page'), 80],
      [mesh.at('page-0').address, 8080],
      [stranger.address, 8080],
    ] as const) {
      assert.equal(
        await outcome(clients.exchange(reader, host, port, '')),
        'ECONNREFUSED',
        `nothing gets out to ${host}`,
      );
    }
    await mesh.node('two').start();
    await works('feed');
    await works('page', reader);
  });

  await t.test('a proxy that is told to end finishes what is under way, on either side', async () => {
    for (const node of ['two', 'one']) {
      const socket = await clients.connect(web, mesh.vip('feed'), 80);
      socket.write('POST / HTTP/1.1\r\nhost: feed\r\nconnection: close\r\ncontent-length: 8\r\n\r\nsoon');
      const answer = (async () => {
        let text = '';
        for await (const chunk of socket.setEncoding('utf8')) text += chunk;
        return text;
      })();
      await eventually('the request is under way', async () =>
        /^portcullis_requests_in_flight [1-9]/m.test(await mesh.node(node).page('/metrics')),
      );
      const { proxy } = mesh.node(node);
      proxy!.kill('SIGTERM');
      await proxy!.log(/info draining/);
      socket.write('late');
      assert.match(await answer, /^HTTP\/1\.1 200 /, node);
      const { code, stderr } = await proxy!.finished;
      assert.equal(code, 0, stderr);
      const at = mesh.at(node === 'one' ? 'web-0' : 'reader-0');
      assert.equal(await outcome(clients.exchange(at, mesh.vip('page'), 80, '')), 'ECONNREFUSED', 'closed meanwhile');
      await mesh.node(node).start();
      await works('feed');
    }
  });

  await t.test('a control plane that hangs: what is known goes on, and the rest once it does', async () => {
    mesh.control.kill('SIGSTOP');
    assert.equal(await ask('feed'), 'feed-0');
    assert.equal(await outcome(clients.exchange(web, mesh.vip('late'), 80, '')), 'ECONNRESET');
    await recorded(({ reason }) => reason === Reason.NO_ROUTE);
    mesh.control.kill('SIGCONT');
    await works('late');
  });

  await t.test('without the control plane all goes on, also with a proxy that starts meanwhile', async () => {
    await mesh.killControl();
    assert.equal(await ask('feed'), 'feed-0');
    await mesh.node('two').kill();
    await mesh.node('two').start();
    await works('feed');
    await works('page', mesh.at('reader-0'));
    assert.match(await clients.exchange(web, mesh.vip('feed'), 7000, ''), /^220 feed-0/);
  });

  await t.test('what no workload of the node has used before is refused meanwhile, with the reason', async () => {
    assert.equal(await outcome(clients.exchange(web, mesh.vip('news'), 80, '')), 'ECONNRESET');
    await recorded(({ reason, detail }) => reason === Reason.NO_ROUTE && detail === Detail.DISCOVERY_AWAY);
    await mesh.node('one').kill();
    await mesh.node('one').start();
    await works('feed');
    const { status } = await clients.request(web, mesh.at('stranger').address, 8080);
    assert.equal(status, 200, 'what was known to be outside still is');
  });

  await t.test('when it comes back, what has changed meanwhile is taken over', async () => {
    const changed = mesh.changeWorkload('three', 'page-0', { status: 'unhealthy' }).catch(() => {});
    await mesh.startControl();
    await changed;
    await eventually('what could not be told is known', async () => (await ask('news')) === '503');
    await mesh.changeWorkload('three', 'page-0', { status: 'unhealthy' });
    await eventually('the page is gone', async () => (await ask('page')) === '503');
    await mesh.changeWorkload('three', 'page-0', { status: 'healthy' });
    await works('page');
  });

  await t.test('a node that is cut off is missed, the rest goes on, and afterwards all is as before', async () => {
    const heal = await mesh.cut('two', 'forward', 'input', 'output');
    const late = await web.run('curl', ['-sS', '--max-time', '1', `http://${mesh.vip('feed')}/`]);
    assert.ok(late.code === 28 || /50[34]/.test(late.stdout), `${late.code} ${late.stdout}`);
    assert.equal(await ask('page'), 'page-0');
    await heal();
    await works('feed');
    await works('page', mesh.at('reader-0'));
    await mesh.changeWorkload('two', 'feed-0', { status: 'unhealthy' });
    await mesh.changeWorkload('two', 'feed-0', { status: 'healthy' });
    await works('feed');
  });
});
