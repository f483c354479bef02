// Exact situations on the simulated kernel that random runs meet only rarely. Each was a mistake once.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { compileSnapshot } from '../../config/compile.ts';
import { loadConfig } from '../../config/load.ts';
import { Detail } from '../../core/exchange/reasons.ts';
import { Errno } from '../../core/ffi/errno.ts';
import { kernelMemoryBytes } from '../../core/io/arena.ts';
import { createByteRing } from '../../core/telemetry/byte-ring.ts';
import { createFlightBuffer } from '../../core/telemetry/flight-layout.ts';
import { createMetricsBuffer } from '../../core/telemetry/metrics.ts';
import { PacketWorker } from '../../core/workers/packet-worker.ts';
import type { EndpointReport, WorkerMessage } from '../../core/workers/protocol.ts';
import { encodeFrame, encodeSettings, Flags, FrameReader, HeaderEncoder, preface, Type } from './http2-codec.ts';
import { SimKernel } from './kernel.ts';
import { Random } from './random.ts';
import { Scheduler } from './scheduler.ts';
import { plainLink, type SimSocket } from './tcp.ts';

const listenerAddress = { host: '127.0.0.1', port: 8080 };
const upstreamAddress = { host: '10.0.0.1', port: 80 };

/** A worker with one route to one upstream; the texts are added to its configuration, the rule and the backend. */
class Bench {
  readonly scheduler = new Scheduler();
  /** The upstream's ends of the connections made to it. */
  readonly upstreams: SimSocket[] = [];
  /** Messages of the worker. */
  readonly posted: WorkerMessage[] = [];
  /** Whether the upstream refuses connections. */
  refuses = false;
  /** Connections to the upstream that have been tried. */
  dials = 0;
  private readonly kernel: SimKernel;
  private readonly worker: PacketWorker;

  constructor(extra: string, rule = '', outBufferBytes = plainLink.sendBufferBytes, backend = '') {
    const bufferBytes = 1024 * 1024;
    const out = { ...plainLink, sendBufferBytes: outBufferBytes, receiveBufferBytes: outBufferBytes };
    this.kernel = new SimKernel({
      random: new Random(1),
      scheduler: this.scheduler,
      memoryBytes: kernelMemoryBytes(bufferBytes),
      links: () => ({ out, in: plainLink }),
    });
    const connectionsMax = 16;
    const start = {
      index: 0,
      wakeFd: this.kernel.eventfd(),
      bufferBytes,
      connectionsMax,
      metrics: createMetricsBuffer(),
      accessLog: createByteRing(65536),
      flightRecords: createFlightBuffer(),
      descriptors: new SharedArrayBuffer(connectionsMax * 4),
    };
    this.worker = new PacketWorker(
      this.kernel,
      start,
      (message) => this.posted.push(message),
      null,
      (words) => words.fill(7),
    );
    const loaded = loadConfig(
      `listeners: [{name: main, address: "127.0.0.1:8080"}]
routes: [{name: all, rules: [{backendRefs: [{name: one}]${rule}}]}]
backends: [{name: one, endpoints: ["10.0.0.1:80"]${backend}}]
${extra}`,
      'test.yaml',
      {},
    );
    if ('errors' in loaded) throw new Error(JSON.stringify(loaded.errors));
    this.kernel.setEndpoint(upstreamAddress, {
      dial: () => {
        this.dials++;
        return this.refuses ? { type: 'refuse', delayMs: 0 } : { type: 'accept', delayMs: 0 };
      },
      connected: (socket) => this.upstreams.push(socket),
    });
    const listenerFds = [this.kernel.createListener(listenerAddress)];
    this.worker.handle({ type: 'snapshot', snapshot: compileSnapshot(loaded.config, 1, new Map()), listenerFds });
  }

  /** A client's connection. */
  dial(): SimSocket {
    const client = this.kernel.dialIn(listenerAddress, { host: '10.9.0.1', port: 5000 });
    this.run(1);
    return client;
  }

  /** Lets the worker run for a while. */
  run(ms: number): void {
    const endMs = this.scheduler.nowMs + ms;
    while (this.scheduler.nowMs < endMs) this.worker.runBatch(Math.ceil(endMs - this.scheduler.nowMs));
  }

  /** Some batches that wait for nothing, with just enough time in between for bytes to arrive. */
  runQuickly(batches = 10): void {
    for (let i = 0; i < batches; i++) {
      this.scheduler.advanceTo(this.scheduler.nowMs + 0.02);
      this.worker.runBatch(0);
    }
  }

  /** Connections that the worker has. */
  get connections(): number {
    return this.worker.stats().connections;
  }

  /** Lets bytes travel while the worker is busy elsewhere. */
  travel(): void {
    this.scheduler.advanceTo(this.scheduler.nowMs + 1);
  }
}

function text(socket: SimSocket, bytesMax = 100_000): string {
  const chunk = new Uint8Array(bytesMax);
  const count = socket.recv(chunk);
  return count > 0 ? Buffer.from(chunk.subarray(0, count)).toString('latin1') : '';
}

/** Reads until the end of the stream, giving the worker time in between. */
function readToEnd(bench: Bench, socket: SimSocket): string {
  let all = '';
  for (let round = 0; round < 1000 && !(socket.ended && socket.readableBytes === 0); round++) {
    all += text(socket, 40);
    bench.run(1);
  }
  return all + text(socket);
}

function bytes(value: string): Uint8Array {
  return Buffer.from(value, 'latin1');
}

test('a reset that a send is told about first does not end a response in order', () => {
  const bench = new Bench('');
  const client = bench.dial();
  client.send(bytes('POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n'));
  bench.run(5);
  const upstream = bench.upstreams[0]!;
  assert.match(text(upstream), /^POST \/ HTTP\/1\.1\r\n/);
  upstream.send(bytes('HTTP/1.1 200 OK\r\n\r\npart of the answer'));
  bench.run(5);
  // Both arrive before the worker looks, the client's bytes first.
  client.send(bytes('0123456789'));
  upstream.abort();
  bench.travel();
  bench.run(5);
  const answer = readToEnd(bench, client);
  assert.match(answer, /part of the answer/);
  assert.doesNotMatch(answer, /\r\n0\r\n\r\n$/, 'the response looks complete');
});

test('the answer to a request that ran out of time reaches a client that reads slowly', () => {
  const bench = new Bench('', ', timeouts: {request: 1s}', 50);
  const client = bench.dial();
  client.send(bytes('GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n'));
  bench.run(1500);
  const answer = readToEnd(bench, client);
  const length = Number(/content-length: (\d+)/i.exec(answer)?.[1]);
  assert.match(answer, /^HTTP\/1\.1 504 /);
  assert.equal(answer.length - answer.indexOf('\r\n\r\n') - 4, length);
});

test('the last response of a connection survives a request that was already on its way', () => {
  const bench = new Bench('limits: {maxRequestsPerConnection: 1}', '', 200);
  const client = bench.dial();
  client.send(bytes('GET /1 HTTP/1.1\r\nHost: a\r\n\r\n'));
  bench.run(5);
  bench.upstreams[0]!.send(bytes(`HTTP/1.1 200 OK\r\nContent-Length: 300\r\n\r\n${'x'.repeat(300)}`));
  bench.run(5);
  let answer = text(client, 60);
  // Everything is with the system now, and a part of it has no room at the client yet.
  bench.run(5);
  client.send(bytes('GET /2 HTTP/1.1\r\nHost: a\r\n\r\n'));
  bench.run(5);
  answer += readToEnd(bench, client);
  assert.match(answer, /^HTTP\/1\.1 200 /);
  assert.match(answer, /connection: close/i);
  assert.equal(answer.length - answer.indexOf('\r\n\r\n') - 4, 300);
});

test('a whole response survives that the next one is cut while a further request is unread', () => {
  const bench = new Bench('', '', 200);
  const client = bench.dial();
  client.send(bytes('GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n'));
  bench.run(5);
  const upstream = bench.upstreams[0]!;
  upstream.send(bytes(`HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n${'x'.repeat(100)}`));
  bench.run(5);
  assert.match(text(upstream), /GET \/2 /);
  client.send(bytes('GET /3 HTTP/1.1\r\nHost: a\r\n\r\n'));
  bench.run(5);
  upstream.send(bytes(`HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n${'y'.repeat(20)}`));
  bench.run(5);
  upstream.closed();
  bench.run(5);
  const answer = readToEnd(bench, client);
  assert.match(answer, /^HTTP\/1\.1 200 OK\r\n(.+\r\n)+\r\nx{100}HTTP\/1\.1 200 OK\r\n/);
  assert.match(answer, /\r\n\r\ny{20}$/, 'the second response looks cut');
  assert.equal(client.state, 'established', 'no reset');
  client.closed();
  bench.run(5);
  assert.equal(bench.connections, 0);
});

for (const [what, stays] of [
  ['waits', true],
  ['has finished sending', false],
] as const) {
  test(`a response that is cut by a broken request body keeps what was queued; its client ${what}`, () => {
    const bench = new Bench('', '', 200);
    const client = bench.dial();
    client.send(bytes('POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n'));
    bench.run(5);
    const upstream = bench.upstreams[0]!;
    upstream.send(bytes(`HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n${'y'.repeat(700)}`));
    bench.run(5);
    client.send(bytes('no size\r\n'));
    bench.run(5);
    if (!stays) {
      client.shutdown(1);
      bench.run(5);
    }
    const answer = readToEnd(bench, client);
    assert.match(answer, /^HTTP\/1\.1 200 OK\r\n(.+\r\n)+\r\ny{700}$/);
    assert.ok(client.ended);
    if (stays) {
      assert.equal(client.state, 'established', 'no reset');
      client.closed();
      bench.run(5);
    }
    assert.equal(bench.connections, 0);
  });
}

/** A client whose request has been refused with its body unread. */
function refused(bench: Bench): SimSocket {
  const client = bench.dial();
  client.send(bytes(`POST / HTTP/1.1\r\nHost: a\r\nContent-Length: ${2 ** 30}\r\n\r\n`));
  bench.run(1);
  assert.match(text(client), /^HTTP\/1\.1 413 /);
  assert.ok(client.ended);
  return client;
}

test('a slow client of one response has the usual time for its next request', () => {
  const bench = new Bench('', '', 200);
  const client = bench.dial();
  client.send(bytes('GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HT'));
  bench.run(5);
  bench.upstreams[0]!.send(bytes(`HTTP/1.1 200 OK\r\nContent-Length: 300\r\n\r\n${'x'.repeat(300)}`));
  bench.run(5);
  let answer = '';
  for (let i = 0; i < 100; i++) {
    answer += text(client, 20);
    bench.run(10);
  }
  assert.match(answer, /x{300}$/);
  client.send(bytes('TP/1.1\r\nHost: a\r\n\r\n'));
  bench.run(5);
  assert.match(text(bench.upstreams[0]!), /GET \/2 /);
});

test('a client that goes on sending after its last response is waited for, but not for ever', () => {
  const bench = new Bench('limits: {maxRequestBodySize: 100}');
  const client = refused(bench);
  for (let second = 0; second < 4; second++) {
    client.send(bytes('more of the body'));
    bench.run(1000);
    assert.equal(bench.connections, 1);
  }
  for (let second = 0; second < 2; second++) {
    client.send(bytes('more of the body'));
    bench.run(1000);
  }
  assert.equal(bench.connections, 0);
});

test('a client that falls silent after its last response is waited for less long', () => {
  const bench = new Bench('limits: {maxRequestBodySize: 100}');
  refused(bench);
  bench.run(1000);
  assert.equal(bench.connections, 1);
  bench.run(2000);
  assert.equal(bench.connections, 0);
});

test('what a client sends after its last response is read to a limit', () => {
  const bench = new Bench('limits: {maxRequestBodySize: 100}');
  const client = refused(bench);
  const piece = new Uint8Array(256 * 1024);
  const startMs = bench.scheduler.nowMs;
  let sent = 0;
  while (bench.connections > 0 && bench.scheduler.nowMs < startMs + 4000) {
    sent += Math.max(0, client.send(piece));
    bench.run(1);
  }
  assert.ok(sent >= 64 * 1024 * 1024, `${sent} bytes`);
  assert.equal(bench.connections, 0);
});

test('bytes behind a response that no request asked for are never taken for the next response', () => {
  const bench = new Bench('');
  const client = bench.dial();
  client.send(bytes('GET /1 HTTP/1.1\r\nHost: a\r\n\r\n'));
  bench.run(5);
  const upstream = bench.upstreams[0]!;
  upstream.send(
    bytes('HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil'),
  );
  bench.run(5);
  assert.match(text(client), /ok$/);
  client.send(bytes('GET /2 HTTP/1.1\r\nHost: a\r\n\r\n'));
  bench.run(5);
  assert.equal(bench.upstreams.length, 2, 'the second request needs a connection of its own');
  bench.upstreams[1]!.send(bytes('HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood'));
  bench.run(5);
  assert.match(text(client), /good$/);
});

test('a failing endpoint is reported at most every ten seconds, and once more when a new connection works', () => {
  const bench = new Bench('drainTimeout: 1s\ntimeouts: {idle: 5m}');
  const client = bench.dial();
  const reports = (): EndpointReport[] => {
    const messages = bench.posted.splice(0);
    return messages.flatMap((message) => (message.type === 'endpoint' ? [message.report] : []));
  };
  const ask = (): string => {
    client.send(bytes('GET / HTTP/1.1\r\nHost: a\r\n\r\n'));
    bench.run(5);
    if (!bench.refuses) {
      bench.upstreams.at(-1)!.send(bytes('HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n'));
      bench.run(5);
    }
    return text(client).slice(9, 12);
  };
  const fails = { address: '10.0.0.1:80', backend: 'one', detail: Detail.CONNECT_ERRNO, errno: Errno.ECONNREFUSED };
  const works = { address: '10.0.0.1:80', backend: 'one', detail: 0, errno: 0 };
  assert.equal(ask(), '200');
  assert.deepEqual(reports(), []);

  bench.refuses = true;
  for (let i = 0; i < 5; i++) assert.equal(ask(), '503');
  assert.deepEqual(reports(), [fails]);
  bench.run(10_000);
  for (let i = 0; i < 5; i++) ask();
  assert.deepEqual(reports(), [fails], 'it still fails');

  bench.refuses = false;
  for (let i = 0; i < 3; i++) assert.equal(ask(), '200');
  assert.deepEqual(reports(), [works]);

  // It comes and goes faster than anybody wants to read.
  for (let i = 0; i < 10; i++) {
    bench.refuses = !bench.refuses;
    ask();
  }
  assert.deepEqual(reports(), []);
});

test('an answer on a connection from before does not make a failing endpoint work again', () => {
  const bench = new Bench('');
  const [early, late] = [bench.dial(), bench.dial()];
  early!.send(bytes('GET /early HTTP/1.1\r\nHost: a\r\n\r\n'));
  bench.run(5);
  bench.refuses = true;
  late!.send(bytes('GET /late HTTP/1.1\r\nHost: a\r\n\r\n'));
  bench.run(5);
  assert.match(text(late!), /^HTTP\/1\.1 503 /);
  bench.upstreams[0]!.send(bytes('HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n'));
  bench.run(5);
  assert.match(text(early!), /^HTTP\/1\.1 200 /);
  // On the connection that was kept: the endpoint accepts no new ones still.
  early!.send(bytes('GET /kept HTTP/1.1\r\nHost: a\r\n\r\n'));
  bench.run(5);
  bench.upstreams[0]!.send(bytes('HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n'));
  bench.run(5);
  assert.match(text(early!), /^HTTP\/1\.1 200 /);
  const reports = bench.posted.flatMap((message) => (message.type === 'endpoint' ? [message.report.detail] : []));
  assert.deepEqual(reports, [Detail.CONNECT_ERRNO]);
});

test('the last response on an HTTP/2 connection reaches a slow client whole before the connection closes', () => {
  const bench = new Bench('limits: {maxRequestsPerConnection: 1}', '', 1000);
  const client = bench.dial();
  const block = new HeaderEncoder(new Random(1)).encode([
    [':method', 'GET'],
    [':scheme', 'http'],
    [':authority', 'a.test'],
    [':path', '/'],
  ]);
  const head = encodeFrame(Type.HEADERS, Flags.END_HEADERS | Flags.END_STREAM, 1, block);
  const acknowledgement = encodeFrame(Type.SETTINGS, Flags.ACK, 0, new Uint8Array(0));
  client.send(Buffer.concat([preface, encodeSettings([]), head, acknowledgement]));
  bench.run(10);
  const body = 'b'.repeat(8000);
  bench.upstreams[0]!.send(Buffer.from(`HTTP/1.1 200 OK\r\nContent-Length: ${body.length}\r\n\r\n${body}`));
  bench.run(10);
  const reader = new FrameReader();
  let received = 0;
  let ended = false;
  // Far longer than a closed connection lingers.
  for (let second = 0; second < 60 && !(client.ended && client.readableBytes === 0); second++) {
    reader.feed(Buffer.from(text(client, 500), 'latin1'), (frame) => {
      if (frame.type !== Type.DATA) return;
      received += frame.payload.length;
      ended = (frame.flags & Flags.END_STREAM) !== 0;
    });
    bench.run(1000);
  }
  assert.equal(received, body.length);
  assert.ok(ended);
});

const h2c = ', protocol: h2c';

test('a connection that fails is one failure of its endpoint, however many requests have waited for it', () => {
  const outliers = 'outlierDetection: {consecutive5xx: 2}, loadBalancer: {panicThreshold: 0}';
  const bench = new Bench('', '', undefined, `${h2c}, ${outliers}`);
  const clients = [bench.dial(), bench.dial(), bench.dial()];
  const ask = (): string[] => {
    for (const client of clients) client.send(bytes('GET / HTTP/1.1\r\nHost: a\r\n\r\n'));
    bench.run(5);
    return clients.map((client) => text(client).slice(9, 12));
  };
  bench.refuses = true;
  assert.deepEqual(ask(), ['503', '503', '503']);
  assert.equal(bench.dials, 1, 'all have waited for one connection');
  assert.deepEqual(ask(), ['503', '503', '503']);
  assert.equal(bench.dials, 2, 'one failure does not eject');
  assert.deepEqual(ask(), ['503', '503', '503']);
  assert.equal(bench.dials, 2, 'two do');
});

/** The upstream's end of an HTTP/2 connection; answers settings and pings, and the first stream once that has ended. */
class Http2Server {
  private readonly socket: SimSocket;
  private readonly reader = new FrameReader();
  private prefaceLeft = preface.length;
  requestBytes = 0;

  constructor(socket: SimSocket) {
    this.socket = socket;
    socket.send(Buffer.concat([encodeSettings([]), encodeFrame(Type.SETTINGS, Flags.ACK, 0, bytes(''))]));
  }

  /** Takes at most so many bytes. */
  read(bytesMax: number): void {
    const chunk = Buffer.from(text(this.socket, bytesMax), 'latin1');
    const skipped = Math.min(this.prefaceLeft, chunk.length);
    this.prefaceLeft -= skipped;
    this.reader.feed(chunk.subarray(skipped), (frame) => {
      if (frame.type === Type.DATA) this.requestBytes += frame.payload.length;
      if (frame.type === Type.PING && (frame.flags & Flags.ACK) === 0) {
        this.socket.send(encodeFrame(Type.PING, Flags.ACK, 0, frame.payload));
      }
      if (frame.type !== Type.DATA || (frame.flags & Flags.END_STREAM) === 0) return;
      const block = new HeaderEncoder(new Random(1)).encode([[':status', '204']]);
      this.socket.send(encodeFrame(Type.HEADERS, Flags.END_HEADERS | Flags.END_STREAM, 1, block));
    });
  }
}

for (const [what, streamIdle, ping] of [
  ['streams that move', '5s', 'pingInterval: 0s'],
  ['pings that have not left', '60s', 'pingInterval: 1s, pingTimeout: 2s'],
] as const) {
  test(`an upstream that takes HTTP/2 slowly is not given up: ${what}`, () => {
    const bench = new Bench(`timeouts: {streamIdle: ${streamIdle}}`, '', 200, `${h2c}, http2: {${ping}}`);
    const client = bench.dial();
    const body = 'b'.repeat(8000);
    client.send(bytes(`POST / HTTP/1.1\r\nHost: a\r\nContent-Length: ${body.length}\r\n\r\n${body}`));
    bench.run(10);
    const server = new Http2Server(bench.upstreams[0]!);
    for (let second = 0; second < 60 && client.readableBytes === 0; second++) {
      server.read(200);
      bench.run(1000);
    }
    assert.match(text(client), /^HTTP\/1\.1 204 /);
    assert.equal(server.requestBytes, body.length);
  });
}

test('an upstream that takes HTTP/2 no further is given up', () => {
  const bench = new Bench('timeouts: {streamIdle: 5s}', '', 200, `${h2c}, http2: {pingInterval: 0s}`);
  const client = bench.dial();
  const body = 'b'.repeat(8000);
  client.send(bytes(`POST / HTTP/1.1\r\nHost: a\r\nContent-Length: ${body.length}\r\n\r\n${body}`));
  bench.run(10);
  const server = new Http2Server(bench.upstreams[0]!);
  server.read(200);
  bench.run(4000);
  assert.equal(client.readableBytes, 0);
  bench.run(2000);
  assert.match(text(client), /^HTTP\/1\.1 504 /);
});

test('a client that takes a response slowly on HTTP/2 gets it whole', () => {
  const bench = new Bench('timeouts: {streamIdle: 5s}', '', 1000);
  const client = bench.dial();
  const block = new HeaderEncoder(new Random(1)).encode([
    [':method', 'GET'],
    [':scheme', 'http'],
    [':authority', 'a.test'],
    [':path', '/'],
  ]);
  const head = encodeFrame(Type.HEADERS, Flags.END_HEADERS | Flags.END_STREAM, 1, block);
  client.send(Buffer.concat([preface, encodeSettings([]), head, encodeFrame(Type.SETTINGS, Flags.ACK, 0, bytes(''))]));
  bench.run(10);
  // More than one frame: the rest of the stream waits for its turn while the first frame leaves.
  const body = 'b'.repeat(40_000);
  bench.upstreams[0]!.send(Buffer.from(`HTTP/1.1 200 OK\r\nContent-Length: ${body.length}\r\n\r\n${body}`));
  bench.run(10);
  const reader = new FrameReader();
  let received = 0;
  let ended = false;
  for (let second = 0; second < 100 && !ended; second++) {
    reader.feed(Buffer.from(text(client, 1000), 'latin1'), (frame) => {
      assert.notEqual(frame.type, Type.RST_STREAM);
      if (frame.type !== Type.DATA) return;
      received += frame.payload.length;
      ended = (frame.flags & Flags.END_STREAM) !== 0;
    });
    bench.run(1000);
  }
  assert.equal(received, body.length);
  assert.ok(ended);
});

test('a copy of a request waits until the request has been answered, but not for long', () => {
  const bench = new Bench('', ', filters: [{type: RequestMirror, requestMirror: {backendRef: {name: one}}}]');
  const answer = bytes('HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n');
  const client = bench.dial();
  client.send(bytes('GET / HTTP/1.1\r\nHost: a\r\n\r\n'));
  bench.runQuickly();
  const upstream = bench.upstreams[0]!;
  assert.match(text(upstream), /^GET/);
  upstream.send(answer);
  bench.runQuickly();
  assert.match(text(client), /^HTTP\/1\.1 200/);
  assert.equal(bench.dials, 1, 'the copy was under way beside the request');
  assert.match(text(upstream), /^GET/, 'the moment is quiet, and the copy waits');
  upstream.send(answer);
  bench.runQuickly();

  client.send(bytes('GET / HTTP/1.1\r\nHost: a\r\n\r\n'));
  bench.runQuickly();
  assert.match(text(upstream), /^GET/);
  assert.equal(bench.dials, 1);
  bench.run(3);
  assert.equal(text(client), '');
  assert.match(text(bench.upstreams[1]!), /^GET/, 'a slow answer holds up the copy');
});

test('copies of requests are sent while others are under way all the time', () => {
  const bench = new Bench('', ', filters: [{type: RequestMirror, requestMirror: {backendRef: {name: one}}}]');
  const clients = Array.from({ length: 3 }, () => bench.dial());
  for (const client of clients) client.send(bytes('GET / HTTP/1.1\r\nHost: a\r\n\r\n'));
  bench.runQuickly();
  assert.equal(bench.dials, 3);
  bench.run(3);
  assert.equal(bench.dials, 6);
});
