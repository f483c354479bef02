// Bytes of tunnels in HTTP/2 on the simulated kernel: frames of one receive leave with one call, whole and in order,
// however little the other side takes, and whatever ends the tunnel in the middle.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { compileSnapshot } from '../../config/compile.ts';
import { loadConfig } from '../../config/load.ts';
import { kernelMemoryBytes } from '../../core/io/arena.ts';
import { createByteRing } from '../../core/telemetry/byte-ring.ts';
import { createFlightBuffer } from '../../core/telemetry/flight-layout.ts';
import { createMetricsBuffer } from '../../core/telemetry/metrics.ts';
import { PacketWorker } from '../../core/workers/packet-worker.ts';
import { encodeFrame, encodeSettings, Flags, FrameReader, HeaderEncoder, preface, Type, words } from './http2-codec.ts';
import { SimKernel } from './kernel.ts';
import { Random } from './random.ts';
import { Scheduler } from './scheduler.ts';
import { plainLink, type SimSocket } from './tcp.ts';

const listenerAddress = { host: '127.0.0.1', port: 8080 };
const upstreamAddress = { host: '10.0.0.1', port: 80 };
const none = new Uint8Array(0);

/** `count` frames of `length` bytes each, and their payload. */
function dataFrames(streamId: number, count: number, length: number, from = 0): { frames: Buffer; payload: Buffer } {
  const payload = Buffer.from(Uint8Array.from({ length: count * length }, (_, index) => (index * 7 + from) % 251));
  const frames = Array.from({ length: count }, (_, index) =>
    encodeFrame(Type.DATA, 0, streamId, payload.subarray(index * length, (index + 1) * length)),
  );
  return { frames: Buffer.concat(frames), payload };
}

/** A worker with a client that speaks HTTP/2, and upstreams that it has tunnels to: WebSockets (RFC 8441). */
class Bench {
  readonly client: SimSocket;
  /** The upstreams' ends, by the number of the tunnel. */
  readonly upstreams: SimSocket[] = [];
  /** Lines of system calls that send. */
  sends: string[] = [];
  private readonly scheduler = new Scheduler();
  private readonly worker: PacketWorker;
  private readonly encoder = new HeaderEncoder(new Random(1));

  constructor(upstreamBufferBytes: number, tunnels: number) {
    const bufferBytes = 4 * 1024 * 1024;
    const narrow = { ...plainLink, sendBufferBytes: upstreamBufferBytes, receiveBufferBytes: upstreamBufferBytes };
    const wide = { ...plainLink, sendBufferBytes: 1 << 20, receiveBufferBytes: 1 << 20 };
    const kernel = new SimKernel({
      random: new Random(1),
      scheduler: this.scheduler,
      memoryBytes: kernelMemoryBytes(bufferBytes),
      // The first connection is the client's.
      links: () => (this.client === undefined ? { out: wide, in: wide } : { out: narrow, in: narrow }),
      trace: (line) => {
        if (/^(send|writev) /.test(line)) this.sends.push(line);
      },
    });
    const start = {
      ...{ index: 0, wakeFd: kernel.eventfd(), bufferBytes, connectionsMax: 32, metrics: createMetricsBuffer() },
      ...{ accessLog: createByteRing(65536), flightRecords: createFlightBuffer() },
      descriptors: new SharedArrayBuffer(34 * 4),
    };
    this.worker = new PacketWorker(
      kernel,
      start,
      () => undefined,
      null,
      (bytes) => bytes.fill(7),
    );
    const loaded = loadConfig(
      `listeners: [{name: main, address: "127.0.0.1:8080"}]
routes: [{name: all, rules: [{backendRefs: [{name: one}]}]}]
backends: [{name: one, endpoints: ["10.0.0.1:80"]}]`,
      'test.yaml',
      {},
    );
    if ('errors' in loaded) throw new Error(JSON.stringify(loaded.errors));
    kernel.setEndpoint(upstreamAddress, {
      dial: () => ({ type: 'accept', delayMs: 0 }),
      connected: (socket) => this.upstreams.push(socket),
    });
    const listenerFds = [kernel.createListener(listenerAddress)];
    this.worker.handle({ type: 'snapshot', snapshot: compileSnapshot(loaded.config, 1, new Map()), listenerFds });
    this.client = kernel.dialIn(listenerAddress, { host: '10.9.0.1', port: 5000 });
    this.run(1);
    this.send(preface, encodeSettings([]), encodeFrame(Type.SETTINGS, Flags.ACK, 0, none));
    for (let number = 0; number < tunnels; number++) this.open(number);
    this.sends = [];
  }

  private open(number: number): void {
    const block = this.encoder.encode([
      [':method', 'CONNECT'],
      [':protocol', 'websocket'],
      [':scheme', 'http'],
      [':authority', 'a.test'],
      [':path', '/'],
    ]);
    this.send(encodeFrame(Type.HEADERS, Flags.END_HEADERS, 2 * number + 1, block));
    const upstream = this.upstreams[number]!;
    read(upstream);
    upstream.send(
      Buffer.from('HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n', 'latin1'),
    );
    this.run(5);
  }

  /** Sends from the client, and lets the worker run. */
  send(...parts: Uint8Array[]): void {
    const bytes = Buffer.concat(parts);
    assert.equal(this.client.send(bytes), bytes.length);
    this.run(5);
  }

  run(ms: number): void {
    const endMs = this.scheduler.nowMs + ms;
    while (this.scheduler.nowMs < endMs) this.worker.runBatch(Math.ceil(endMs - this.scheduler.nowMs));
  }

  get stats(): ReturnType<PacketWorker['stats']> {
    return this.worker.stats();
  }
}

function read(socket: SimSocket, bytesMax = 1 << 20): Buffer {
  const chunk = new Uint8Array(bytesMax);
  const count = socket.recv(chunk);
  return Buffer.from(chunk.subarray(0, Math.max(count, 0)));
}

/** Reads a little at a time until nothing comes any more. */
function readSlowly(bench: Bench, socket: SimSocket, bytesMax: number): Buffer {
  const parts: Buffer[] = [];
  for (let silent = 0; silent < 5; ) {
    const part = read(socket, bytesMax);
    silent = part.length === 0 ? silent + 1 : 0;
    parts.push(part);
    bench.run(2);
  }
  return Buffer.concat(parts);
}

test('frames of a tunnel that come together leave together', () => {
  const bench = new Bench(1 << 18, 1);
  const { frames, payload } = dataFrames(1, 4, 16_000);
  bench.send(frames);
  assert.deepEqual(read(bench.upstreams[0]!), payload);
  const upstream = bench.sends.filter((line) => line.startsWith('writev'));
  assert.equal(upstream.length, 1, bench.sends.join('\n'));
});

test('frames of several tunnels go where they belong, each in order', () => {
  const bench = new Bench(1 << 18, 3);
  const sent = [0, 1, 2].map((number) => dataFrames(2 * number + 1, 3, 5000, number));
  // Two of the first, then all in turns, as a node sends what waits for its turn.
  const piece = (number: number, first: number, count: number) =>
    sent[number]!.frames.subarray(first * 5009, (first + count) * 5009);
  bench.send(piece(0, 0, 2), piece(1, 0, 1), piece(2, 0, 2), piece(0, 2, 1), piece(1, 1, 2), piece(2, 2, 1));
  sent.forEach(({ payload }, number) => {
    assert.deepEqual(read(bench.upstreams[number]!), payload, `tunnel ${number}`);
  });
});

for (const [bufferBytes, rounds] of [
  [1000, 2],
  [20_000, 8],
] as const) {
  test(`a reader with room for ${bufferBytes} bytes gets everything in order, and holds up nobody's memory`, () => {
    const bench = new Bench(bufferBytes, 1);
    const expected: Buffer[] = [];
    const received: Buffer[] = [];
    for (let round = 0; round < rounds; round++) {
      const { frames, payload } = dataFrames(1, 4, 16_384, round);
      expected.push(payload);
      bench.send(frames);
      // What is gathered for a socket, and the window of its stream, in blocks of 64 KiB.
      assert.ok(bench.stats.blocksInUse <= 8, `${bench.stats.blocksInUse} blocks`);
      received.push(readSlowly(bench, bench.upstreams[0]!, bufferBytes));
    }
    assert.deepEqual(Buffer.concat(received), Buffer.concat(expected));
  });
}

test('tunnels that have waited for the window of their connection get everything, each in order', () => {
  const bench = new Bench(1 << 18, 2);
  const [first, second] = [dataFrames(1, 12, 16_384, 1).payload, dataFrames(3, 12, 16_384, 2).payload];
  const reader = new FrameReader();
  const received: [Buffer[], Buffer[]] = [[], []];
  bench.client.send(encodeFrame(Type.WINDOW_UPDATE, 0, 1, words(1 << 20)));
  bench.client.send(encodeFrame(Type.WINDOW_UPDATE, 0, 3, words(1 << 20)));
  bench.upstreams[0]!.send(first);
  bench.upstreams[1]!.send(second);
  bench.run(5);
  // The window of the connection is what both have waited for.
  bench.send(encodeFrame(Type.WINDOW_UPDATE, 0, 0, words(1 << 20)));
  reader.feed(readSlowly(bench, bench.client, 1 << 20), ({ type, streamId, payload }) => {
    if (type !== Type.DATA) return;
    received[(streamId - 1) / 2]!.push(Buffer.from(payload));
  });
  assert.ok(Buffer.concat(received[0]).equals(first));
  assert.ok(Buffer.concat(received[1]).equals(second));
});

test('the end of a tunnel behind its last frames comes after them', () => {
  for (const bufferBytes of [1000, 1 << 18]) {
    const bench = new Bench(bufferBytes, 1);
    const { frames, payload } = dataFrames(1, 3, 10_000);
    bench.send(frames, encodeFrame(Type.DATA, Flags.END_STREAM, 1, none));
    const upstream = bench.upstreams[0]!;
    assert.deepEqual(readSlowly(bench, upstream, bufferBytes), payload);
    assert.equal(upstream.ended, true);
    upstream.closed();
    bench.run(5);
    assert.deepEqual(bench.stats, { connections: 1, exchanges: 0, blocksInUse: 0 });
  }
});

test('a reset behind frames of a tunnel ends it alone, and leaves nothing behind', () => {
  const bench = new Bench(1000, 2);
  const lost = dataFrames(1, 3, 10_000);
  const kept = dataFrames(3, 2, 300, 5);
  bench.send(lost.frames, encodeFrame(Type.RST_STREAM, 0, 1, words(8)), kept.frames);
  assert.deepEqual(readSlowly(bench, bench.upstreams[1]!, 1000), kept.payload);
  const got = readSlowly(bench, bench.upstreams[0]!, 1000);
  assert.deepEqual(got, lost.payload.subarray(0, got.length), 'nothing but what was sent');
  bench.upstreams[1]!.closed();
  bench.run(5);
  bench.client.closed();
  bench.run(5);
  assert.deepEqual(bench.stats, { connections: 0, exchanges: 0, blocksInUse: 0 });
});

test('an upstream that is gone fails its tunnel, and those beside it go on', () => {
  const bench = new Bench(1 << 18, 2);
  bench.upstreams[0]!.abortOnClose = true;
  bench.upstreams[0]!.closed();
  const reader = new FrameReader();
  const { frames, payload } = dataFrames(3, 3, 400);
  bench.send(dataFrames(1, 3, 400).frames, frames, dataFrames(1, 1, 400).frames);
  assert.deepEqual(read(bench.upstreams[1]!), payload);
  const resets: number[] = [];
  reader.feed(read(bench.client), ({ type, streamId }) => {
    if (type === Type.RST_STREAM) resets.push(streamId);
  });
  assert.deepEqual(resets, [1]);
});
