// Detection of the protocol on ports that do not declare one: who speaks first, in which order, and who leaves.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { encodeFrame, encodeSettings, Flags, FrameReader, HeaderEncoder, preface, Type } from './http2-codec.ts';
import { type BenchServer, MeshBench, PORTS, send, textOf, VIP } from './mesh-bench.ts';
import { Random } from './random.ts';
import { plainLink, type SimSocket } from './tcp.ts';

const GET = 'GET /a HTTP/1.1\r\nHost: a\r\n\r\n';
const OK = 'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok';

const AT = [VIP, PORTS.auto] as const;

/** Answers requests of HTTP, repeats everything else, and says good-bye after the end of that. */
function answer(server: BenchServer): void {
  server.onConnected = (socket) => {
    let all = '';
    let repeats = false;
    let done = false;
    socket.onWake = () => {
      const text = textOf(socket);
      all += text;
      repeats ||= all !== '' && !'GET '.startsWith(all.slice(0, 4));
      if (repeats && text !== '') send(socket, repeats && all.length === text.length ? all : text);
      while (!repeats && all.includes('\r\n\r\n')) {
        all = all.slice(all.indexOf('\r\n\r\n') + 4);
        send(socket, OK);
      }
      if (!socket.ended || socket.readableBytes > 0 || done) return;
      done = true;
      if (repeats || all === '') send(socket, 'bye');
      socket.closed();
    };
  };
}

function assertNothingLeft(bench: MeshBench, note = ''): void {
  assert.deepEqual(bench.stats, { connections: 0, exchanges: 0, blocksInUse: 0 }, note);
  assert.deepEqual(bench.gauges, { downstream: 0, inFlight: 0, upstream: 0, tunnels: 0 }, note);
}

/** Ends everything that may be kept. */
function finish(bench: MeshBench, ...clients: SimSocket[]): void {
  for (const client of clients) client.closed();
  bench.run(10);
  for (const socket of bench.server.sockets) socket.closed();
  bench.run(10);
}

test('HTTP that comes byte by byte is served as HTTP, with no connection but that of the request', () => {
  const bench = new MeshBench();
  const client = bench.leave(1, ...AT);
  for (const byte of GET) {
    send(client, byte);
    bench.run(1);
  }
  bench.run();
  assert.match(textOf(bench.server.last), /^GET \/a HTTP\/1\.1\r\n/);
  send(bench.server.last, OK);
  bench.run();
  assert.match(textOf(client), /^HTTP\/1\.1 200 OK/);
  assert.deepEqual(bench.details, []);
  finish(bench, client);
  assertNothingLeft(bench);
});

test('the preface of HTTP/2 makes a connection HTTP/2', () => {
  const bench = new MeshBench();
  answer(bench.server);
  const client = bench.leave(1, ...AT);
  const block = new HeaderEncoder(new Random(1)).encode([
    [':method', 'GET'],
    [':scheme', 'http'],
    [':authority', 'a.test'],
    [':path', '/'],
  ]);
  const head = encodeFrame(Type.HEADERS, Flags.END_HEADERS | Flags.END_STREAM, 1, block);
  client.send(Buffer.concat([preface, encodeSettings([]), head]));
  bench.run(10);
  let body = '';
  new FrameReader().feed(Buffer.from(textOf(client), 'latin1'), (frame) => {
    if (frame.type === Type.DATA) body += Buffer.from(frame.payload).toString('latin1');
  });
  assert.equal(body, 'ok');
  finish(bench, client);
  assertNothingLeft(bench);
});

test('a server that speaks first reaches a client that waits for it', () => {
  const bench = new MeshBench();
  bench.server.onConnected = (socket) => send(socket, '220 ready\r\n');
  const client = bench.leave(1, ...AT);
  bench.run();
  assert.equal(textOf(client), '220 ready\r\n');
  send(client, 'EHLO a\r\n');
  bench.run();
  assert.equal(textOf(bench.server.last), 'EHLO a\r\n');
  finish(bench, client);
  assertNothingLeft(bench);
});

test('a client that speaks first, and no HTTP, is passed on with every byte', () => {
  const bench = new MeshBench();
  answer(bench.server);
  const client = bench.leave(1, ...AT);
  send(client, 'G');
  bench.run();
  send(client, 'ive me\x00\x01');
  bench.run();
  assert.equal(textOf(client), 'Give me\x00\x01');
  finish(bench, client);
  assertNothingLeft(bench);
});

for (const [what, says, comes] of [
  ['HTTP', GET, /^HTTP\/1\.1 200 OK/],
  ['something else', '\x01\x02', /^\x01\x02$/],
] as const) {
  test(`both are silent at first, then the client speaks ${what}`, () => {
    const bench = new MeshBench();
    answer(bench.server);
    const client = bench.leave(1, ...AT);
    bench.run(3000);
    assert.equal(bench.server.dials, 1, 'the server has been asked');
    send(client, says);
    bench.run();
    assert.match(textOf(client), comes);
    assert.deepEqual(bench.details, []);
    finish(bench, client);
    assertNothingLeft(bench);
  });
}

test('a client that finishes without a word is answered by a server that does so after the end', () => {
  const bench = new MeshBench();
  answer(bench.server);
  const client = bench.leave(1, ...AT);
  bench.run();
  client.shutdown(1);
  bench.run();
  assert.equal(textOf(client), 'bye');
  client.closed();
  bench.run();
  assertNothingLeft(bench);
});

test('a client that speaks HTTP after its server could not be reached gets an answer, not a reset', () => {
  const bench = new MeshBench();
  bench.server.refuses = true;
  const client = bench.leave(1, ...AT);
  bench.run(100);
  assert.equal(client.state, 'established');
  assert.deepEqual(bench.details, []);
  send(client, GET);
  bench.run();
  assert.match(textOf(client), /^HTTP\/1\.1 503 /);
  // Anything else has nobody to go to.
  const other = bench.leave(1, ...AT);
  send(other, '\x01');
  bench.run();
  assert.equal(other.state, 'closed');
  assert.deepEqual(bench.details, ['connect_errno', 'connect_errno']);
  finish(bench, client);
  assertNothingLeft(bench);
});

for (const [what, leave] of [
  ['resets', (client: SimSocket) => client.abort()],
  ['closes', (client: SimSocket) => client.closed()],
] as const) {
  test(`a client that ${what} while nothing is known leaves nothing behind`, () => {
    for (const delayMs of [0, 50]) {
      const bench = new MeshBench();
      bench.server.delayMs = delayMs;
      const client = bench.leave(1, ...AT);
      bench.run(delayMs === 0 ? 20 : 5);
      leave(client);
      bench.run(100);
      for (const socket of bench.server.sockets) socket.closed();
      bench.run();
      assertNothingLeft(bench);
    }
  });
}

test('connections on which nobody ever speaks end, with a server and without', () => {
  for (const refuses of [false, true]) {
    const bench = new MeshBench();
    bench.server.refuses = refuses;
    bench.leave(1, ...AT);
    bench.run(200_000);
    assertNothingLeft(bench, `refuses: ${refuses}`);
  }
});

test('a server that has spoken first is remembered: what its clients say first is passed on unread', () => {
  const bench = new MeshBench();
  bench.server.onConnected = (socket) => send(socket, 'hello');
  const first = bench.leave(1, ...AT);
  bench.run();
  assert.equal(textOf(first), 'hello');
  const second = bench.leave(1, ...AT);
  send(second, GET);
  bench.run();
  assert.equal(textOf(bench.server.last), GET, 'no field has been added');
});

test('no client can make a port of HTTP one of TCP', () => {
  const bench = new MeshBench();
  // Says so to those who are silent for too long.
  bench.server.onConnected = (socket) => {
    bench.scheduler.after(500, () => {
      if (!socket.orphaned && socket.readableBytes === 0) send(socket, 'HTTP/1.1 408 Request Timeout\r\n\r\n');
    });
  };
  const odd = [bench.leave(1, ...AT), bench.leave(1, ...AT), bench.leave(1, ...AT)];
  send(odd[0]!, '\x01\x02\x03');
  odd[1]!.shutdown(1);
  bench.run(2000);
  assert.match(textOf(odd[2]!), /408/);
  const client = bench.leave(1, ...AT);
  send(client, GET);
  bench.run();
  assert.match(textOf(bench.server.last), /x-request-id/, 'it is a request');
});

test('a client that speaks first to a server which does so delays its other clients a second, and only once', () => {
  const bench = new MeshBench();
  bench.server.onConnected = (socket) => send(socket, 'hello');
  const odd = bench.leave(1, ...AT);
  send(odd, GET);
  bench.run();
  const client = bench.leave(1, ...AT);
  bench.run(1500);
  assert.equal(textOf(client), 'hello');
  const next = bench.leave(1, ...AT);
  bench.run(5);
  assert.equal(textOf(next), 'hello');
});

test('whatever clients and servers do in whatever order, HTTP is answered and nothing leaks', () => {
  for (let seed = 1; seed <= 300; seed++) {
    const random = new Random(seed);
    const slow = random.chance(0.5);
    const link = () => ({
      ...plainLink,
      delayMaxMs: slow ? 3 : 0.01,
      segmentBytesMax: random.chance(0.3) ? 5 : 65_536,
      dribbleBytes: random.chance(0.3) ? 40 : 0,
    });
    const bench = new MeshBench({ seed, links: () => ({ out: link(), in: link() }) });
    const manner = random.pick(['answers', 'greets', 'refuses', 'silent', 'leaves'] as const);
    bench.server.refuses = manner === 'refuses';
    bench.server.delayMs = random.pick([0, 0, 2, 30]);
    if (manner === 'answers') answer(bench.server);
    if (manner === 'greets') {
      bench.server.onConnected = (socket) => bench.scheduler.after(random.between(0, 5), () => send(socket, 'hello'));
    }
    if (manner === 'leaves') {
      bench.server.onConnected = (socket) => bench.scheduler.after(random.between(0, 5), () => socket.closed());
    }
    const clients: { socket: SimSocket; says: string; leaves: string; speaksMs: number }[] = [];
    const count = random.int(1, 4);
    for (let i = 0; i < count; i++) {
      const socket = bench.leave(1, ...AT);
      const says = random.pick([GET, GET, '\x16\x03', 'GIVE me', '']);
      const leaves = random.pick(['stays', 'stays', 'finishes', 'closes', 'resets']);
      const speaksMs = random.pick([0, 0.02, 1, 10, 1500]);
      clients.push({ socket, says, leaves, speaksMs });
      bench.scheduler.after(speaksMs, () => send(socket, says.slice(0, 3)));
      bench.scheduler.after(speaksMs + random.between(0, 4), () => send(socket, says.slice(3)));
      bench.scheduler.after(speaksMs + random.between(4, 20), () => {
        if (leaves === 'finishes') socket.shutdown(1);
        if (leaves === 'closes') socket.closed();
        if (leaves === 'resets') socket.abort();
      });
      bench.run(random.pick([0.5, 5, 40]));
    }
    bench.run(3000);
    for (const { socket, says, leaves, speaksMs } of clients) {
      if (leaves !== 'stays' || says !== GET) continue;
      const note = `seed ${seed}, ${manner}`;
      if (manner === 'answers') assert.match(textOf(socket), /^HTTP\/1\.1 200 OK/, note);
      // Who is silent for long is taken for no client of HTTP.
      if (manner === 'refuses' && speaksMs < 1000) assert.match(textOf(socket), /^HTTP\/1\.1 503 /, note);
    }
    finish(bench, ...clients.map(({ socket }) => socket));
    bench.run(130_000);
    assertNothingLeft(bench, `seed ${seed}, ${manner}`);
    assert.ok(bench.kernel.openDescriptors().filter(({ kind }) => kind === 'socket').length === 0, `seed ${seed}`);
  }
});
