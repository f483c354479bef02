// Compressed and mirrored requests on the simulated kernel: peers that are slow, cut, or leave, small buffers
// everywhere, a compressor that fails; from seeds. What a client gets whole must decode to what the upstream
// sent; what was cut must look cut; and when all is over nothing may be left in use.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { gunzipSync, zstdDecompressSync } from 'node:zlib';
import { compileSnapshot } from '../../config/compile.ts';
import { loadConfig } from '../../config/load.ts';
import { kernelMemoryBytes } from '../../core/io/arena.ts';
import { createByteRing } from '../../core/telemetry/byte-ring.ts';
import { createFlightBuffer } from '../../core/telemetry/flight-layout.ts';
import { Counter, createMetricsBuffer, WorkerMetrics } from '../../core/telemetry/metrics.ts';
import { InlineCompressor } from '../../core/workers/compress-inline.ts';
import { PacketWorker } from '../../core/workers/packet-worker.ts';
import { SimKernel } from './kernel.ts';
import { Random } from './random.ts';
import { Scheduler } from './scheduler.ts';
import { plainLink, type SimSocket } from './tcp.ts';

const SEEDS = 150;
const listenerAddress = { host: '127.0.0.1', port: 8080 };
const appAddress = { host: '10.0.0.1', port: 80 };
const mirrorAddress = { host: '10.0.0.2', port: 80 };

const config = `
listeners: [{name: main, address: "127.0.0.1:8080"}]
routes:
  - name: all
    rules:
      - filters:
          - {type: Compression, compression: {encodings: [gzip, zstd], minSize: 0}}
          - {type: RequestMirror, requestMirror: {backendRef: {name: mirror}, bodyBuffer: 4KiB, timeout: 2s}}
        backendRefs: [{name: app}]
backends:
  - {name: app, endpoints: ["10.0.0.1:80"]}
  - {name: mirror, endpoints: ["10.0.0.2:80"]}
`;

function latin1(text: string): Buffer {
  return Buffer.from(text, 'latin1');
}

/** Bytes that a process writes as its socket takes them, and what it has read. */
class End {
  readonly socket: SimSocket;
  readonly read: Buffer[] = [];
  outgoing: Buffer = Buffer.alloc(0);
  closesAfter = false;
  gone = false;

  constructor(socket: SimSocket) {
    this.socket = socket;
  }

  /** A step of random size in each direction. */
  step(random: Random, readMax: number): void {
    if (this.gone) return;
    if (this.outgoing.length > 0) {
      const count = this.socket.send(this.outgoing.subarray(0, random.size(1, 5000)));
      if (count > 0) this.outgoing = this.outgoing.subarray(count);
    } else if (this.closesAfter) {
      this.leave(false);
      return;
    }
    const chunk = new Uint8Array(random.size(1, readMax));
    const count = this.socket.recv(chunk);
    if (count > 0) this.read.push(Buffer.from(chunk.subarray(0, count)));
  }

  text(): string {
    return Buffer.concat(this.read).toString('latin1');
  }

  leave(abort: boolean): void {
    if (this.gone) return;
    this.gone = true;
    if (abort) this.socket.abort();
    else this.socket.closed();
  }
}

/** Body of a chunked message, or undefined if it is not complete. */
function dechunk(bytes: Buffer): Buffer | undefined {
  const parts: Buffer[] = [];
  for (let at = 0; ; ) {
    const lineEnd = bytes.indexOf('\r\n', at);
    if (lineEnd < 0) return undefined;
    const length = Number.parseInt(bytes.subarray(at, lineEnd).toString('latin1'), 16);
    if (length === 0)
      return bytes.subarray(lineEnd + 2).toString('latin1') === '\r\n' ? Buffer.concat(parts) : undefined;
    const start = lineEnd + 2;
    if (bytes.length < start + length + 2) return undefined;
    parts.push(bytes.subarray(start, start + length));
    at = start + length + 2;
  }
}

interface Tally {
  complete: number;
  coded: number;
  cut: number;
  left: number;
  mirrored: number;
}

interface Plan {
  client: End;
  body: Buffer;
  requestBody: string;
  fault: 'none' | 'cut' | 'leave';
  served: boolean;
}

function runSeed(seed: number, tally: Tally): void {
  const random = new Random(seed);
  const scheduler = new Scheduler();
  const buffers = random.pick([64, 1000, 20_000, 1 << 18]);
  const link = { ...plainLink, sendBufferBytes: buffers, receiveBufferBytes: buffers };
  const kernel = new SimKernel({
    random: random.fork(),
    scheduler,
    memoryBytes: kernelMemoryBytes(1024 * 1024),
    links: () => ({ out: link, in: link }),
  });
  const metrics = createMetricsBuffer();
  const worker = new PacketWorker(
    kernel,
    {
      index: 0,
      wakeFd: kernel.eventfd(),
      connectionsMax: 64,
      metrics,
      accessLog: createByteRing(65_536),
      flightRecords: createFlightBuffer(),
      descriptors: new SharedArrayBuffer(66 * 4),
    },
    () => {},
    null,
    (words) => {
      for (let i = 0; i < words.length; i++) words[i] = random.next();
    },
  );
  const loaded = loadConfig(config, 'test.yaml', {});
  if ('errors' in loaded) throw new Error(JSON.stringify(loaded.errors));
  const apps: End[] = [];
  const mirrors: End[] = [];
  kernel.setEndpoint(appAddress, {
    dial: () => ({ type: 'accept', delayMs: 0 }),
    connected: (socket) => apps.push(new End(socket)),
  });
  const mirrorFault = random.pick(['none', 'none', 'refuse', 'silent', 'reset']);
  kernel.setEndpoint(mirrorAddress, {
    dial: () => (mirrorFault === 'refuse' ? { type: 'refuse', delayMs: 0 } : { type: 'accept', delayMs: 0 }),
    connected: (socket) => mirrors.push(new End(socket)),
  });
  const listenerFds = [kernel.createListener(listenerAddress)];
  const compressor = new InlineCompressor(random.int(1, 4), random.size(60, 4000), random.size(20, 3000));
  worker.useCompressor(compressor);
  worker.handle({ type: 'snapshot', snapshot: compileSnapshot(loaded.config, 1, new Map()), listenerFds });
  const counters = new WorkerMetrics(metrics).counters;
  const run = (ms: number): void => {
    const endMs = scheduler.nowMs + ms;
    while (scheduler.nowMs < endMs) worker.runBatch(Math.ceil(endMs - scheduler.nowMs));
  };

  const plans: Plan[] = [];
  for (let i = 0, count = random.int(1, 4); i < count; i++) {
    const client = new End(kernel.dialIn(listenerAddress, { host: '10.9.0.1', port: 5000 + i }));
    const requestBody = random.chance(0.5) ? '' : 'r'.repeat(random.size(1, 6000));
    const length = requestBody === '' ? '' : `Content-Length: ${requestBody.length}\r\n`;
    const coding = random.pick(['gzip', 'zstd', 'gzip, zstd;q=0.5']);
    const method = requestBody === '' ? 'GET' : 'POST';
    client.outgoing = latin1(
      `${method} /${i} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAccept-Encoding: ${coding}\r\n${length}\r\n${requestBody}`,
    );
    const body = latin1(Array.from({ length: random.size(0, 1500) }, () => random.int(10, 99)).join(' '));
    const fault = random.pick(['none', 'none', 'none', 'cut', 'leave'] as const);
    plans.push({ client, body, requestBody, fault, served: false });
  }

  /** Requests on an upstream's connection that it has not answered yet. */
  const request = (end: End): Plan | undefined => {
    const match = /^(?:GET|POST) \/(\d+) HTTP\/1\.1\r\n.*?\r\n\r\n/s.exec(end.text());
    if (match === null) return undefined;
    const plan = plans[Number(match[1])]!;
    const whole = end.text().length >= match[0].length + plan.requestBody.length;
    if (whole) assert.equal(end.text().slice(match[0].length), plan.requestBody);
    return whole ? plan : undefined;
  };
  const answer = (end: End, plan: Plan): void => {
    plan.served = true;
    const { body } = plan;
    const cutAt = plan.fault === 'cut' ? random.int(0, Math.max(body.length - 1, 0)) : body.length;
    const head = 'HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n';
    if (random.chance(0.5)) {
      end.outgoing = Buffer.concat([latin1(`${head}Content-Length: ${body.length}\r\n\r\n`), body.subarray(0, cutAt)]);
    } else {
      const pieces: Buffer[] = [latin1(`${head}Transfer-Encoding: chunked\r\n\r\n`)];
      for (let at = 0; at < cutAt; ) {
        const piece = body.subarray(at, Math.min(at + random.size(1, 3000), cutAt));
        pieces.push(latin1(`${piece.length.toString(16)}\r\n`), piece, latin1('\r\n'));
        at += piece.length;
      }
      if (plan.fault !== 'cut') pieces.push(latin1('0\r\n\r\n'));
      end.outgoing = Buffer.concat(pieces);
    }
    end.closesAfter = true;
  };

  const seen = new Set<End>();
  const failAt = random.chance(0.15) ? random.int(5, 200) : -1;
  for (let round = 0; round < 6000; round++) {
    if (round === failAt) compressor.failing = true;
    if (round === failAt + 1) compressor.failing = false;
    for (const plan of plans) {
      plan.client.step(random, buffers);
      if (plan.fault === 'leave' && random.chance(0.02)) plan.client.leave(random.chance(0.5));
    }
    for (const end of apps) {
      end.step(random, 5000);
      const plan = end.outgoing.length === 0 && !end.closesAfter && !end.gone ? request(end) : undefined;
      if (plan !== undefined) answer(end, plan);
    }
    for (const end of mirrors) {
      end.step(random, 5000);
      if (end.gone || end.closesAfter || request(end) === undefined) continue;
      if (!seen.has(end)) tally.mirrored++;
      seen.add(end);
      if (mirrorFault === 'reset') end.leave(true);
      if (mirrorFault === 'none') {
        end.outgoing = latin1(`HTTP/1.1 503 No\r\nContent-Length: 9\r\n\r\nforgotten`);
        end.closesAfter = true;
      }
    }
    run(random.chance(0.1) ? 5 : 1);
    if (plans.every(({ client }) => client.gone || (client.socket.ended && client.socket.readableBytes === 0))) break;
  }

  for (const [index, { client, body, fault }] of plans.entries()) {
    if (client.gone) {
      tally.left++;
      continue;
    }
    const what = `request ${index}, ${fault}`;
    const all = Buffer.concat(client.read);
    const headEnd = all.indexOf('\r\n\r\n') + 4;
    const head = all.subarray(0, headEnd).toString('latin1');
    assert.ok(client.socket.ended, `${what}: has not ended`);
    assert.match(head, /^HTTP\/1\.1 (200|502) /, what);
    if (head.startsWith('HTTP/1.1 502')) {
      assert.notEqual(fault, 'none', what);
      tally.cut++;
      continue;
    }
    const chunked = /transfer-encoding: chunked/i.test(head);
    const rest = all.subarray(headEnd);
    const whole = chunked ? dechunk(rest) : rest;
    const coding = /content-encoding: (\w+)/i.exec(head)?.[1];
    const announced = Number(/content-length: (\d+)/i.exec(head)?.[1] ?? -1);
    if (whole === undefined || (!chunked && announced !== whole.length)) {
      assert.ok(fault !== 'none' || failAt >= 0, `${what}: was cut`);
      tally.cut++;
      continue;
    }
    let decoded = whole;
    if (coding === 'gzip') decoded = gunzipSync(whole);
    else if (coding === 'zstd') decoded = zstdDecompressSync(whole);
    if (coding !== undefined) tally.coded++;
    assert.ok(decoded.equals(body), `${what}: ${decoded.length} of ${body.length} bytes`);
    // An empty body cannot be cut.
    assert.ok(fault !== 'cut' || body.length === 0, `${what}: looks complete`);
    tally.complete++;
  }

  for (const { client } of plans) client.leave(false);
  run(500);
  for (const end of [...apps, ...mirrors]) end.leave(false);
  // Mirrors that never answer are given up.
  run(4000);
  assert.deepEqual(worker.stats(), { connections: 0, exchanges: 0, blocksInUse: 0 });
  assert.equal(compressor.used, 0, 'slots of the compressor are in use');
  assert.equal(counters[Counter.MIRRORS_IN_FLIGHT], 0);
  assert.equal(counters[Counter.REQUESTS_IN_FLIGHT], 0);
}

test('whatever peers and compressor do, bodies arrive whole or cut, and nothing is left in use', (context) => {
  const tally: Tally = { complete: 0, coded: 0, cut: 0, left: 0, mirrored: 0 };
  for (let seed = 1; seed <= SEEDS; seed++) {
    try {
      runSeed(seed, tally);
    } catch (error) {
      throw new Error(`seed ${seed}: ${error instanceof Error ? error.message : error}`, { cause: error });
    }
  }
  context.diagnostic(JSON.stringify(tally));
  // A simulation in which nothing succeeds, or nothing fails, shows nothing.
  for (const [name, count] of Object.entries(tally)) assert.ok(count > SEEDS / 15, `${name}: ${count}`);
});
