// The way of a sidecar to the control plane: bytes, ends and failures.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { NamespaceSockets } from '../../../../core/ffi/netns.ts';
import { CAPTURE_MARK } from '../../../../mesh-agent/capture/spec.ts';
import { ControlRelay, REDIS_SOCKET, relayPath, relayProblem } from '../../../../mesh-agent/node/control-relay.ts';
import { temporaryDirectory } from '../commands/support.ts';
import { logLines } from '../control/support.ts';

/** A relay to an address; sockets that it opens are as asked for, but for the mark, which takes a right. */
async function start(t: TestContext, address: string, ...socket: [name: string, peer: string] | []) {
  const directory = temporaryDirectory(t);
  const sockets = new NamespaceSockets();
  const marks: unknown[] = [];
  const open: NamespaceSockets['open'] = (target, request) => {
    const { mark, ...rest } = request;
    marks.push(mark);
    return sockets.open(target, rest);
  };
  const { log, lines } = logLines();
  const relay = new ControlRelay(address, directory, { open } as NamespaceSockets, log, ...socket);
  await relay.start();
  t.after(async () => {
    relay.close();
    await sockets.close();
  });
  const path = relayPath(directory, socket[0]);
  assert.equal(relay.target, `unix:${path}`);
  return { relay, lines, marks, path, dial: () => connect(path) };
}

async function listen(t: TestContext, serve: (socket: Socket) => void): Promise<string> {
  const server = createServer({ allowHalfOpen: true }, serve);
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => server.close());
  return `127.0.0.1:${(server.address() as { port: number }).port}`;
}

async function readAll(socket: Socket): Promise<string> {
  let text = '';
  for await (const chunk of socket.setEncoding('utf8')) text += chunk;
  return text;
}

test('bytes and ends pass in both directions, over a marked socket', async (t) => {
  const address = await listen(t, (socket) => {
    let text = '';
    socket.on('data', (chunk) => (text += chunk));
    socket.on('end', () => socket.end(text.toUpperCase()));
  });
  const { dial, marks } = await start(t, address);
  const [one, two] = [dial(), dial()];
  one.end('first');
  two.write('sec');
  two.end('ond');
  assert.deepEqual(await Promise.all([readAll(one), readAll(two)]), ['FIRST', 'SECOND']);
  assert.deepEqual(marks, [CAPTURE_MARK, CAPTURE_MARK]);
});

test('while nobody is there connections end, the log says so once, and again after it was there', async (t) => {
  const probe = createServer();
  probe.listen(0, '127.0.0.1');
  await once(probe, 'listening');
  const { port } = probe.address() as { port: number };
  await new Promise((resolve) => probe.close(resolve));
  const { dial, lines } = await start(t, `127.0.0.1:${port}`);
  const refused = async (): Promise<void> => {
    const socket = dial();
    socket.write('hello');
    assert.equal(await readAll(socket).catch(() => ''), '');
  };
  await refused();
  await refused();
  assert.equal(lines.length, 1);
  assert.match(lines[0]!, /warn the control plane cannot be reached .*ECONNREFUSED/);
  const server = createServer((socket) => socket.end('here'));
  server.listen(port, '127.0.0.1');
  await once(server, 'listening');
  assert.equal(await readAll(dial()), 'here');
  await new Promise((resolve) => server.close(resolve));
  await refused();
  assert.equal(lines.length, 2);
});

test('connections that cannot be accepted are said, and the next one is', async (t) => {
  const { relay, lines, dial } = await start(t, await listen(t, (socket) => socket.end('here')));
  const { server } = relay as unknown as { server: Server };
  for (let i = 0; i < 2; i++) server.emit('error', new Error('accept EMFILE'));
  assert.equal(lines.length, 1);
  assert.match(lines[0]!, /warn the control plane cannot be reached .*accept EMFILE/);
  assert.equal(await readAll(dial()), 'here');
});

test('a relay that cannot listen says so to who starts it', async (t) => {
  const { log, lines } = logLines();
  const directory = join(temporaryDirectory(t), 'none');
  const relay = new ControlRelay('127.0.0.1:1', directory, new NamespaceSockets(), log);
  await assert.rejects(relay.start(), { syscall: 'listen' });
  assert.deepEqual(lines, []);
});

test('a name that nobody has is said, and a directory without room for a socket is known before', async (t) => {
  const { dial, lines } = await start(t, 'control.invalid:15012');
  assert.equal(await readAll(dial()), '');
  assert.match(lines.join(), /control\.invalid/);
  const base = temporaryDirectory(t);
  assert.equal(relayProblem(base), undefined);
  assert.match(relayProblem(join(base, 'x'.repeat(107)))!, /^is \d+ bytes too long/);
});

test('one to redis has a socket of its own, and leads elsewhere when that has moved', async (t) => {
  const [one, two] = [await listen(t, (to) => to.end('one')), await listen(t, (to) => to.end('two'))];
  const { relay, lines, path, dial } = await start(t, one, REDIS_SOCKET, 'redis');
  assert.match(path, /\/redis\.sock$/);
  assert.equal(await readAll(dial()), 'one');
  relay.aim(two);
  assert.equal(await readAll(dial()), 'two');
  relay.aim('redis.invalid:6379');
  assert.equal(await readAll(dial()), '');
  assert.match(lines.join(), /warn redis cannot be reached .*redis\.invalid:6379/);
});
