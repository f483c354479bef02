// What is open when policies, modes or egress of a node proxy change, on the simulated kernel.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { AuthorizationSettings } from '../../core/authorization/settings.ts';
import { Errno } from '../../core/ffi/errno.ts';
import { type ShortPolicy, settingsOf } from '../unit/core/authorization/support.ts';
import { addressOf, BACKEND, MeshBench, PORTS, send, textOf, VIP } from './mesh-bench.ts';
import type { SimSocket } from './tcp.ts';

function authorization(...policies: ShortPolicy[]): { settings: { authorization: AuthorizationSettings } } {
  return { settings: { authorization: settingsOf(policies) } };
}

/** Denies the paths, or what cannot be seen of any. */
const noPath = (path: string): ShortPolicy => ({
  name: 'shop/no-path',
  action: 'deny',
  rules: [{ to: [{ paths: [path] }] }],
});
const nobody: ShortPolicy = { name: 'shop/nobody', rules: [{ from: [{ identities: ['*'] }] }] };

/** A request that is being answered: its response has begun, and goes on for ever. */
function begin(bench: MeshBench, app: ReturnType<MeshBench['serve']>, path: string): SimSocket {
  const client = bench.arrive(1, 80);
  bench.run();
  send(client, `GET ${path} HTTP/1.1\r\nHost: a\r\nX-Kind: slow\r\n\r\n`);
  bench.run();
  assert.match(textOf(app.last), new RegExp(`^GET ${path} `));
  send(app.last, 'HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nfirst');
  bench.run();
  assert.match(textOf(client), /first$/);
  return client;
}

function upgrade(bench: MeshBench, app: ReturnType<MeshBench['serve']>, path: string): SimSocket {
  const client = bench.arrive(1, 80);
  bench.run();
  send(client, `GET ${path} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n`);
  bench.run();
  assert.match(textOf(app.last), new RegExp(`^GET ${path} `));
  send(app.last, 'HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n');
  bench.run();
  assert.match(textOf(client), /^HTTP\/1\.1 101 /);
  return client;
}

test('a policy that comes later ends what it does not let in: TCP, requests in progress, WebSockets', () => {
  const bench = new MeshBench();
  const http = bench.serve({ host: addressOf(1), port: 80 });
  const tcp = bench.serve({ host: addressOf(1), port: 9000 });
  const stream = bench.arrive(1, 9000);
  bench.run();
  const streamAt = tcp.last;
  const slow = begin(bench, http, '/events');
  const slowAt = http.last;
  const socket = upgrade(bench, http, '/chat');
  const socketAt = http.last;
  // One that has not been answered yet can be told.
  const waiting = bench.arrive(1, 80);
  bench.run();
  send(waiting, 'GET /wait HTTP/1.1\r\nHost: a\r\n\r\n');
  bench.run();
  const waitingAt = http.last;
  bench.use(authorization(nobody));
  bench.run();
  for (const server of [streamAt, slowAt, socketAt, waitingAt]) assert.ok(server.ended, 'the workload sees its end');
  for (const client of [stream, slow, socket]) assert.ok(client.ended);
  assert.match(textOf(waiting), /^HTTP\/1\.1 403 /);
  assert.deepEqual(bench.details, Array(4).fill('not_allowed_by_shop/nobody'));
  for (const client of [waiting, slow]) client.closed();
  bench.run();
  assert.deepEqual(bench.stats, { connections: 0, exchanges: 0, blocksInUse: 0 });
  assert.deepEqual(bench.gauges, { downstream: 0, inFlight: 0, upstream: 0, tunnels: 0 });
});

test('requests and WebSockets in progress are judged by the request that began them', () => {
  const bench = new MeshBench();
  const http = bench.serve({ host: addressOf(1), port: 80 });
  const [slow, kept] = ['/secret/a', '/open'].map((path) => begin(bench, http, path)) as [SimSocket, SimSocket];
  const keptAt = http.last;
  const [chat, other] = ['/secret/chat', '/chat'].map((path) => upgrade(bench, http, path)) as [SimSocket, SimSocket];
  const otherAt = http.last;
  bench.use(authorization(noPath('/secret/*')));
  bench.run();
  assert.ok(slow.ended && chat.ended);
  send(other, 'ping');
  send(keptAt, 'more');
  bench.run();
  assert.equal(textOf(otherAt), 'ping');
  assert.equal(textOf(kept), 'more');
  // By fields, too.
  bench.use(
    authorization({ name: 'shop/kinds', rules: [{ when: [{ key: 'request.headers[x-kind]', values: ['quick'] }] }] }),
  );
  bench.run();
  assert.ok(kept.ended && other.ended);
  assert.deepEqual(bench.details, [
    'denied_by_shop/no-path rule 1',
    'denied_by_shop/no-path rule 1',
    'not_allowed_by_shop/kinds',
    'not_allowed_by_shop/kinds',
  ]);
});

test('what changed policies still let in goes on, and a policy on trial ends nothing but counts', () => {
  const bench = new MeshBench();
  const tcp = bench.serve({ host: addressOf(1), port: 9000 });
  const http = bench.serve({ host: addressOf(1), port: 80 });
  const stream = bench.arrive(1, 9000);
  bench.run();
  const socket = upgrade(bench, http, '/chat');
  bench.use(authorization({ ...nobody, name: 'shop/trial', dryRun: true }));
  bench.run();
  assert.equal(bench.trialsOf('shop/trial'), 2);
  bench.use(authorization({ name: 'shop/here', rules: [{ from: [{ ipBlocks: ['10.9.0.0/16'] }] }] }));
  bench.run();
  send(stream, 'still');
  send(socket, 'here');
  bench.run();
  assert.deepEqual([textOf(tcp.last), textOf(http.last)], ['still', 'here']);
  assert.deepEqual(bench.details, []);
  const lines = bench.posted.flatMap((message) => (message.type === 'log' ? [message.message] : []));
  assert.equal(lines.filter((line) => line.startsWith('dry run: ')).length, 1, lines.join('\n'));
});

test('a change to strict ends plain connections, whatever they carry', () => {
  const bench = new MeshBench();
  const http = bench.serve({ host: addressOf(1), port: 80 });
  const tcp = bench.serve({ host: addressOf(1), port: 9000 });
  bench.arrive(1, 9000);
  bench.run();
  const socket = upgrade(bench, http, '/chat');
  bench.use({ settings: { strict: true } });
  bench.run();
  assert.ok(socket.ended && tcp.last.ended && http.last.ended);
  assert.deepEqual(bench.details, ['plaintext_refused', 'plaintext_refused']);
});

test('a change to egress: refuse ends what has left the mesh, and nothing else', () => {
  const bench = new MeshBench();
  const outside = bench.serve({ host: '192.0.2.7', port: 5432 });
  const silent = bench.serve({ host: '192.0.2.8', port: 5432 });
  silent.delayMs = 60_000;
  const left = bench.leave(1, '192.0.2.7', 5432);
  const leaving = bench.leave(1, '192.0.2.8', 5432);
  const inside = bench.arrive(1, 9000);
  const app = bench.serve({ host: addressOf(1), port: 9000 });
  bench.run();
  send(left, 'select 1');
  bench.run();
  assert.equal(textOf(outside.last), 'select 1');
  bench.use({ egressRefused: true });
  bench.run();
  assert.ok(outside.last.ended);
  assert.deepEqual([left.state, leaving.state], ['closed', 'closed']);
  assert.deepEqual(bench.details, ['egress_refused', 'egress_refused']);
  send(inside, 'hello');
  bench.run();
  assert.equal(textOf(app.last), 'hello');
});

test('very many open connections are judged in turns that hold nobody up', () => {
  const count = 600;
  const bench = new MeshBench({ connectionsMax: 2 * count + 64, bufferBytes: 8 * 1024 * 1024 });
  bench.kernel.descriptorsMax = 4 * count;
  const tcp = bench.serve({ host: addressOf(1), port: 9000 });
  const clients: SimSocket[] = [];
  for (let i = 0; i < count; i++) {
    clients.push(bench.arrive(1, 9000));
    if (i % 100 === 99) bench.run(20);
  }
  bench.run(20);
  assert.equal(tcp.sockets.length, count);
  const open = (): number => bench.gauges.tunnels;
  assert.equal(open(), count);
  bench.use(authorization({ name: 'shop/here', rules: [{ from: [{ ipBlocks: ['10.9.0.0/16'] }] }] }));
  for (let batch = 0; batch < 3; batch++) bench.batch();
  // A change in the middle of a pass counts for all, those that have been judged before, too.
  bench.use(authorization(nobody));
  assert.equal(open(), count, 'not within the change itself');
  let batches = 0;
  for (let before = open(); before > 0; before = open()) {
    bench.batch();
    batches++;
    assert.ok(before - open() <= 64, `${before - open()} in one batch`);
    assert.ok(batches < 50, `${open()} are still open`);
  }
  assert.ok(batches > 1);
  bench.run();
  assert.ok(clients.every(({ ended }) => ended));
  assert.deepEqual(bench.stats, { connections: 0, exchanges: 0, blocksInUse: 0 });
});

test('changes that follow each other faster than all can be judged hold no judgement up', () => {
  const bench = new MeshBench({ workloads: [1, 2], connectionsMax: 1024, bufferBytes: 8 * 1024 * 1024 });
  bench.kernel.descriptorsMax = 2048;
  const kept = bench.serve({ host: addressOf(1), port: 9000 });
  const denied = bench.serve({ host: addressOf(2), port: 9000 });
  for (let i = 0; i < 300; i++) {
    bench.arrive(1, 9000);
    if (i % 100 === 99) bench.run(20);
  }
  // Behind very many that go on.
  const last = bench.arrive(2, 9000);
  bench.run(20);
  assert.deepEqual([kept.sockets.length, denied.sockets.length], [300, 1]);
  bench.use(
    authorization({ name: 'shop/one', rules: [{ when: [{ key: 'destination.ip', values: [addressOf(1)] }] }] }),
  );
  let changes = 0;
  for (; bench.details.length === 0; changes++) {
    assert.ok(changes < 100, 'it is never judged');
    bench.batch();
    bench.use({});
  }
  assert.ok(changes > 2, 'a turn is shorter than all of it');
  bench.run();
  assert.ok(last.ended);
  assert.deepEqual(bench.details, ['not_allowed_by_shop/one']);
  assert.equal(bench.gauges.tunnels, 300);
});

test('without a valid certificate of its own a workload has no tunnels, and nothing goes in plain text instead', () => {
  const bench = new MeshBench({ endpointIdentity: 'spiffe://cluster.local/ns/shop/sa/peer' });
  const tunnels = bench.serve({ ...BACKEND, port: 15_008 });
  const client = bench.leave(1, VIP, PORTS.http);
  const stream = bench.leave(1, VIP, PORTS.tcp);
  bench.run();
  send(client, 'GET / HTTP/1.1\r\nHost: a\r\n\r\n');
  bench.run();
  assert.match(textOf(client), /^HTTP\/1\.1 503 /);
  assert.equal(stream.state, 'closed');
  assert.deepEqual([bench.server.dials, tunnels.dials], [0, 0]);
  assert.deepEqual(bench.details, ['no_certificate', 'no_certificate']);
  // What has nothing to do with tunnels goes on.
  const outside = bench.serve({ host: '192.0.2.7', port: 5432 });
  const left = bench.leave(1, '192.0.2.7', 5432);
  bench.run();
  send(left, 'select 1');
  bench.run();
  assert.equal(textOf(outside.last), 'select 1');
});

test('a drain does not wait for clients that say nothing on ports whose protocol is found out', () => {
  const bench = new MeshBench({ workloads: [1, 2] });
  // One whose server says nothing either, one whose server cannot be connected yet, one that has no server.
  bench.leave(1, VIP, PORTS.auto);
  bench.serve({ host: addressOf(2), port: 7000 }).delayMs = 60_000;
  bench.arrive(2, 7000);
  bench.arrive(1, 7000);
  bench.run();
  assert.equal(bench.gauges.downstream, 3);
  bench.drain(100, 20_000);
  bench.run(200);
  const drained = bench.posted.filter((message) => message.type === 'drained');
  assert.deepEqual(drained, [{ type: 'drained', remaining: 0 }]);
  assert.equal(bench.gauges.downstream, 0);
});

test('a silent client of such a port goes with its workload', () => {
  const bench = new MeshBench({ workloads: [1, 2] });
  const silent = bench.leave(2, VIP, PORTS.auto);
  bench.run();
  bench.use({ workloads: [1] });
  bench.run();
  assert.ok(silent.ended);
  assert.ok(bench.server.last.ended);
});

test('a connection that cannot be marked is not made, and the record names the error', () => {
  const bench = new MeshBench();
  bench.kernel.connectIn = () => -Errno.EPERM;
  const client = bench.leave(1, VIP, PORTS.tcp);
  bench.run();
  assert.equal(client.state, 'closed');
  assert.deepEqual(bench.details, ['connect_errno']);
  assert.deepEqual(bench.errnos, [Errno.EPERM]);
});
