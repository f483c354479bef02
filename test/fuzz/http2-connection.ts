// Fuzzes whole HTTP/2 connections: valid conversations, mutated frame by frame, with a worker on the simulated
// kernel, in place of a client or of an upstream.
//
// What must hold whatever comes: no exception, no spinning, bounded memory; the connection goes on (a PING
// is answered) or ends, in order with GOAWAY; what reaches upstreams is valid; other connections do not notice;
// and nothing is left behind.
// `node test/fuzz/http2-connection.ts --seeds N [--start S]` runs many.

import { parseArgs } from 'node:util';
import { compileSnapshot } from '../../config/compile.ts';
import type { Config } from '../../config/config.ts';
import { loadConfig } from '../../config/load.ts';
import { kernelMemoryBytes } from '../../core/io/arena.ts';
import { createByteRing } from '../../core/telemetry/byte-ring.ts';
import { createFlightBuffer } from '../../core/telemetry/flight-layout.ts';
import { createMetricsBuffer } from '../../core/telemetry/metrics.ts';
import { PacketWorker } from '../../core/workers/packet-worker.ts';
import { CodecError, declaredFraming, latin1, MessageReader } from '../sim/http-codec.ts';
import {
  codeNames,
  encodeBlock,
  encodeFrame,
  encodeSettings,
  type Field,
  Flags,
  type Frame,
  FrameReader,
  HeaderDecoder,
  HeaderEncoder,
  preface,
  Type,
  wordAt,
  words,
} from '../sim/http2-codec.ts';
import { SimKernel } from '../sim/kernel.ts';
import { type Pace, Peer, type StreamEnd } from '../sim/peer.ts';
import { Random } from '../sim/random.ts';
import { Scheduler } from '../sim/scheduler.ts';
import type { SimSocket } from '../sim/tcp.ts';

/** Which side of the gateway is attacked. */
export type Target = 'client' | 'upstream';

/** Both. */
export const targets: readonly Target[] = ['client', 'upstream'];

const address = { host: '127.0.0.1', port: 8080 };
const plainUpstream = { host: '10.1.0.1', port: 80 };
const http2Upstream = { host: '10.2.0.1', port: 80 };
const bufferBytes = 4 * 1024 * 1024;
const connectionsMax = 64;

/** Virtual time in which every conversation must have come to an end. Above all timeouts together. */
const END_MS_MAX = 100_000;
/** Batches that may return at once although nothing moved. */
const IDLE_BATCHES_MAX = 64;
/** 16 KiB blocks that may be in use: the window of one connection, and a few for everything else. */
const BLOCKS_MAX = 64 + 64;
const BODY = 'hello from the upstream';

let config: Config | undefined;

function loaded(): Config {
  if (config !== undefined) return config;
  const result = loadConfig(
    `listeners: [{name: main, address: "${address.host}:${address.port}"}]
timeouts: {requestHead: 5s, idle: 10s, streamIdle: 10s, tunnelIdle: 10s}
routes:
  - {name: http2, hostnames: [http2.test], rules: [{backendRefs: [{name: http2}]}]}
  - {name: plain, rules: [{backendRefs: [{name: plain}]}]}
backends:
  - {name: plain, endpoints: ["10.1.0.1:80"], idleTimeout: 10s}
  - {name: http2, endpoints: ["10.2.0.1:80"], idleTimeout: 10s, connectTimeout: 5s, protocol: h2c}
`,
    'fuzz.yaml',
    {},
  );
  if ('errors' in result) throw new Error(JSON.stringify(result.errors));
  config = result.config;
  return config;
}

// -- peers -----------------------------------------------------------------------------------

const plainPace: Pace = { reactionMsMax: 0.1, writeBytesMax: 65_536, readBytesMax: 65_536, pauseMsMax: 0.1 };

/** A peer that sends given bytes and keeps what comes. */
class RawPeer extends Peer {
  readonly pieces: Uint8Array[] = [];
  end: StreamEnd | undefined;
  /** Called with everything that comes. */
  onBytes: ((bytes: Uint8Array) => void) | undefined;

  constructor(socket: SimSocket, scheduler: Scheduler, random: Random, pace: Pace, first: Uint8Array) {
    super(socket, scheduler, random, pace);
    this.write(first);
  }

  say(bytes: Uint8Array): void {
    this.write(bytes);
  }

  finish(): void {
    this.finishSending();
  }

  leave(how: 'close' | 'reset'): void {
    this.close(how);
  }

  protected connected(): void {}

  protected received(bytes: Uint8Array): void {
    this.pieces.push(Uint8Array.from(bytes));
    this.onBytes?.(bytes);
  }

  protected ended(how: StreamEnd): void {
    this.end = how;
  }

  protected cut(): void {}
}

/** Answers every request of one HTTP/1.1 connection, and fails at what is not valid. */
function answerPlain(peer: RawPeer, violations: string[]): void {
  const reader = new MessageReader({
    head: (head) => declaredFraming(head) ?? { type: 'none' },
    body: () => {},
    end: () => peer.say(latin1(`HTTP/1.1 200 OK\r\nContent-Length: ${BODY.length}\r\n\r\n${BODY}`)),
  });
  peer.onBytes = (bytes) => {
    try {
      reader.feed(bytes);
    } catch (error) {
      if (!(error instanceof CodecError)) throw error;
      violations.push(`an upstream received what is not HTTP: ${error.message}`);
      peer.leave('reset');
    }
  };
}

/** A careful HTTP/2 client with one request at a time. */
class Control {
  readonly answers: string[] = [];
  private readonly peer: RawPeer;
  private readonly encoder: HeaderEncoder;
  private readonly decoder = new HeaderDecoder();
  private readonly reader = new FrameReader();
  private readonly violations: string[];
  /** Requests sent. */
  asked = 0;
  private id = 1;
  private body = '';
  private status = '';

  constructor(peer: RawPeer, random: Random, violations: string[]) {
    this.peer = peer;
    this.encoder = new HeaderEncoder(random);
    this.violations = violations;
    peer.onBytes = (bytes) => this.reader.feed(bytes, (frame) => this.take(frame));
  }

  ask(host: string): void {
    const block = this.encoder.encode([
      [':method', 'GET'],
      [':scheme', 'http'],
      [':authority', host],
      [':path', '/control'],
    ]);
    this.peer.say(encodeFrame(Type.HEADERS, Flags.END_HEADERS | Flags.END_STREAM, this.id, block));
    this.id += 2;
    this.asked++;
  }

  leave(): void {
    this.peer.leave('close');
  }

  get ended(): boolean {
    return this.peer.end !== undefined;
  }

  private take(frame: Frame): void {
    const { type, flags, payload } = frame;
    if (type === Type.GOAWAY && wordAt(payload, 1) !== 0) this.violations.push('the control connection got GOAWAY');
    else if (type === Type.SETTINGS && (flags & Flags.ACK) === 0) {
      this.peer.say(encodeFrame(Type.SETTINGS, Flags.ACK, 0, new Uint8Array(0)));
    } else if (type === Type.HEADERS) {
      this.status = this.decoder.decode(payload).find(([name]) => name === ':status')?.[1] ?? '?';
    } else if (type === Type.DATA) {
      this.body += Buffer.from(payload).toString('latin1');
    } else if (type === Type.RST_STREAM) {
      this.answers.push('reset');
      return;
    }
    if ((type !== Type.HEADERS && type !== Type.DATA) || (flags & Flags.END_STREAM) === 0) return;
    this.answers.push(this.status === '200' ? `200 ${this.body}` : this.status);
    this.body = '';
  }
}

// -- conversations ------------------------------------------------------------------------------

/** What one side of a valid conversation sends, frame by frame. */
function conversation(random: Random, target: Target): Uint8Array[] {
  const frames: Uint8Array[] = [encodeSettings(random.chance(0.5) ? [] : [[4, random.int(0, 100_000)]])];
  const encoder = new HeaderEncoder(random.fork());
  const acks = random.int(0, 2);
  for (let i = 0; i < acks; i++) frames.push(encodeFrame(Type.SETTINGS, Flags.ACK, 0, new Uint8Array(0)));
  const streams = random.int(1, 6);
  for (let i = 0; i < streams; i++) {
    const id = 2 * i + 1;
    const fields = target === 'client' ? requestFields(random, i) : responseFields(random);
    const bare = random.chance(0.4);
    frames.push(encodeBlock(encoder.encode(fields), id, bare, random));
    for (let piece = random.int(0, 3); !bare && piece > 0; piece--) {
      frames.push(encodeFrame(Type.DATA, 0, id, new Uint8Array(random.size(1, 16_384))));
    }
    if (!bare && random.chance(0.3)) frames.push(encodeBlock(encoder.encode([['x-end', 'b']]), id, true, random));
    else if (!bare) frames.push(encodeFrame(Type.DATA, Flags.END_STREAM, id, new Uint8Array(random.size(0, 1000))));
    if (random.chance(0.3))
      frames.push(encodeFrame(Type.WINDOW_UPDATE, 0, random.pick([0, id]), words(random.size(1, 1e6))));
    if (random.chance(0.2)) frames.push(encodeFrame(Type.PING, 0, 0, words(random.next(), random.next())));
    if (random.chance(0.2)) frames.push(encodeFrame(Type.PRIORITY, 0, id + 2, Buffer.from([0, 0, 0, 0, 9])));
    if (random.chance(0.1)) frames.push(encodeFrame(Type.RST_STREAM, 0, id, words(8)));
    if (random.chance(0.1)) frames.push(encodeSettings([[random.int(1, 9), random.size(0, 1e6)]]));
  }
  if (random.chance(0.2)) frames.push(encodeFrame(Type.GOAWAY, 0, 0, words(random.int(0, 9), 0)));
  return frames;
}

function requestFields(random: Random, i: number): Field[] {
  const tunnel = random.chance(0.1);
  const fields: Field[] = [
    [':method', tunnel ? 'CONNECT' : random.pick(['GET', 'POST', 'HEAD', 'PUT'])],
    [':scheme', 'http'],
    [':authority', random.pick(['plain.test', 'http2.test'])],
    [':path', `/${i}`],
  ];
  if (tunnel) fields.push([':protocol', 'websocket']);
  if (random.chance(0.3)) fields.push(['x-long', 'v'.repeat(random.size(1, 10_000))]);
  if (random.chance(0.2)) fields.push(['cookie', 'a=1'], ['cookie', 'b=2']);
  if (random.chance(0.1)) fields.push(['expect', '100-continue']);
  return fields;
}

function responseFields(random: Random): Field[] {
  const fields: Field[] = [[':status', random.pick(['200', '204', '304', '404', '103', '500'])]];
  if (random.chance(0.3)) fields.push(['x-long', 'v'.repeat(random.size(1, 10_000))]);
  if (random.chance(0.2)) fields.push(['content-length', String(random.size(0, 2000))]);
  return fields;
}

/** Mutates some frames of a conversation. */
function mutate(random: Random, frames: Uint8Array[]): void {
  for (let count = random.int(1, 4); count > 0 && frames.length > 0; count--) {
    const at = random.int(0, frames.length - 1);
    const frame = Buffer.from(frames[at]!);
    const kind = random.pick([
      'type',
      'flags',
      'id',
      'length',
      'bytes',
      'duplicate',
      'flood',
      'remove',
      'swap',
      'cut',
      'grow',
      'insert',
      'reserved',
    ] as const);
    switch (kind) {
      case 'type':
        frame[3] = random.chance(0.8) ? random.int(0, 9) : random.int(0, 255);
        break;
      case 'flags':
        frame[4] = random.chance(0.5) ? frame[4]! ^ (1 << random.int(0, 7)) : random.int(0, 255);
        break;
      case 'id':
        frame.writeUInt32BE(random.pick([0, 1, 2, 3, 5, 7, 101, 2 ** 31 - 1, random.int(0, 20)]), 5);
        break;
      case 'length':
        frame.writeUIntBE(random.pick([0, 1, 4, 5, 8, 16_384, 16_385, 2 ** 24 - 1, random.int(0, 20_000)]), 0, 3);
        break;
      case 'bytes':
        for (let n = random.int(1, 8); n > 0 && frame.length > 9; n--) {
          frame[random.int(9, frame.length - 1)] = random.int(0, 255);
        }
        break;
      case 'duplicate':
        frames.splice(random.int(0, frames.length), 0, frame);
        continue;
      case 'flood':
        // Enough for the limits, little enough for the time.
        if (frame.length < 40) frames.splice(at, 0, Buffer.concat(Array.from({ length: 1200 }, () => frame)));
        continue;
      case 'remove':
        frames.splice(at, 1);
        continue;
      case 'swap': {
        const other = random.int(0, frames.length - 1);
        frames[at] = frames[other]!;
        frames[other] = frame;
        continue;
      }
      case 'cut':
        resize(frames, at, frame.subarray(9, 9 + random.int(0, frame.length - 9)));
        continue;
      case 'grow':
        resize(frames, at, Buffer.concat([frame.subarray(9), new Uint8Array(random.size(1, 300))]));
        continue;
      case 'insert': {
        const payload = Uint8Array.from({ length: random.size(0, 60) }, () => random.int(0, 255));
        frames.splice(at, 0, encodeFrame(random.int(0, 10), random.int(0, 255), random.int(0, 12), payload));
        continue;
      }
      default:
        frame[5] = frame[5]! | 0x80;
    }
    frames[at] = frame;
  }
}

function resize(frames: Uint8Array[], at: number, payload: Uint8Array): void {
  const frame = Buffer.from(frames[at]!);
  const block = encodeFrame(frame[3]!, frame[4]!, frame.readUInt32BE(5) & 0x7fff_ffff, payload);
  frames[at] = block;
}

// -- one run ------------------------------------------------------------------------------------------

/** What came of a run. */
export interface FuzzReport {
  /** Broken rules; empty when all is well. */
  violations: string[];
  /** How attacking clients were turned down (code of GOAWAY), or what clients of the attacking upstream got. */
  endings: string[];
}

/** The run of one seed. */
class Fuzz {
  readonly endings: string[] = [];
  readonly violations: string[] = [];
  private readonly random: Random;
  private readonly scheduler = new Scheduler();
  private readonly kernel: SimKernel;
  private readonly worker: PacketWorker;
  private readonly target: Target;
  private readonly upstreams: RawPeer[] = [];
  private idleBatches = 0;
  private port = 5000;

  constructor(seed: number, target: Target) {
    this.random = new Random(seed);
    this.target = target;
    this.kernel = new SimKernel({
      random: this.random.fork(),
      scheduler: this.scheduler,
      memoryBytes: kernelMemoryBytes(bufferBytes),
    });
    const start = {
      index: 0,
      wakeFd: this.kernel.eventfd(),
      bufferBytes,
      connectionsMax,
      metrics: createMetricsBuffer(),
      accessLog: createByteRing(65_536),
      flightRecords: createFlightBuffer(),
      descriptors: new SharedArrayBuffer(connectionsMax * 4),
    };
    const report = (message: { type: string; level?: string; message?: string }): void => {
      if (message.type === 'log' && message.level === 'error') this.violations.push(`logged: ${message.message}`);
    };
    this.worker = new PacketWorker(this.kernel, start, report, null, (random) => random.fill(7));
    this.kernel.setEndpoint(plainUpstream, {
      dial: () => ({ type: 'accept', delayMs: 0 }),
      connected: (socket) => {
        const peer = this.peer(socket, plainPace, new Uint8Array(0));
        answerPlain(peer, this.violations);
        this.upstreams.push(peer);
      },
    });
    this.kernel.setEndpoint(http2Upstream, {
      dial: () => ({ type: 'accept', delayMs: 0 }),
      connected: (socket) => this.upstreams.push(this.http2Peer(socket)),
    });
    const listenerFds = [this.kernel.createListener(address)];
    this.worker.handle({ type: 'snapshot', snapshot: compileSnapshot(loaded(), 1, new Map()), listenerFds });
  }

  private peer(socket: SimSocket, pace: Pace, first: Uint8Array): RawPeer {
    return new RawPeer(socket, this.scheduler, this.random.fork(), pace, first);
  }

  /** An upstream that says what the conversation has, whatever it is asked. */
  private http2Peer(socket: SimSocket): RawPeer {
    const { random } = this;
    const frames = conversation(random, 'upstream');
    if (this.target === 'upstream') mutate(random, frames);
    const [settings, ...rest] = frames.length > 0 ? frames : [new Uint8Array(0)];
    const peer = this.peer(socket, this.pace(), settings!);
    // The rest comes once there are streams.
    let told = false;
    let bytes = 0;
    peer.onBytes = (part) => {
      bytes += part.length;
      if (told || bytes < 150) return;
      told = true;
      peer.say(Buffer.concat(rest));
      if (random.chance(0.3)) peer.finish();
    };
    return peer;
  }

  private pace(): Pace {
    const { random } = this;
    return {
      reactionMsMax: random.pick([0.05, 5]),
      writeBytesMax: random.pick([3, 500, 65_536]),
      readBytesMax: 65_536,
      pauseMsMax: 0.1,
    };
  }

  private dial(pace: Pace, first: Uint8Array): RawPeer {
    return this.peer(this.kernel.dialIn(address, { host: '10.9.0.1', port: this.port++ }), pace, first);
  }

  run(): void {
    const { random, violations } = this;
    const hello = Buffer.concat([preface, encodeSettings([])]);
    const control = new Control(this.dial(plainPace, hello), random.fork(), violations);
    control.ask('plain.test');
    this.until(() => control.answers.length === 1, 1000);
    const attackers: RawPeer[] = [];
    const probes: Control[] = [];
    if (this.target === 'client') {
      for (let count = random.int(1, 2); count > 0; count--) attackers.push(this.attack());
    } else {
      for (let count = random.int(1, 4); count > 0; count--) {
        const probe = new Control(this.dial(plainPace, hello), random.fork(), violations);
        for (let asks = random.int(1, 4); asks > 0; asks--) probe.ask('http2.test');
        probes.push(probe);
      }
    }
    control.ask('plain.test');
    this.until(() => control.answers.length === 2, 1000);
    const expected = `200 ${BODY}`;
    if (control.answers.join() !== `${expected},${expected}`) violations.push(`control answers: ${control.answers}`);
    control.leave();
    // Whatever was said, it is over in time, be it that the other side falls silent.
    this.until(() => attackers.every((peer) => peer.end !== undefined), END_MS_MAX);
    for (const peer of attackers) this.checkEnd(peer);
    this.until(() => probes.every((probe) => probe.ended), END_MS_MAX);
    for (const probe of probes) {
      if (!probe.ended) violations.push('a client of a bad upstream was kept for ever');
      if (probe.answers.length < probe.asked) violations.push('a client of a bad upstream got no answer');
      this.endings.push(...probe.answers.map((answer) => answer.slice(0, 5)));
    }
    for (const peer of [...attackers, ...this.upstreams]) peer.leave('close');
    this.until(() => this.worker.stats().connections === 0, END_MS_MAX);
    for (const [name, value] of Object.entries(this.worker.stats())) {
      if (value !== 0) violations.push(`${value} ${name} left at the end`);
    }
    this.worker.handle({ type: 'stop' });
  }

  /** A client that sends a mutated conversation. */
  private attack(): RawPeer {
    const { random } = this;
    const frames = conversation(random, 'client');
    mutate(random, frames);
    const start = Buffer.from(preface);
    if (random.chance(0.03)) start[random.int(0, start.length - 1)] = random.int(0, 255);
    const bytes = Buffer.concat([start, ...frames]);
    const peer = this.dial(this.pace(), random.chance(0.1) ? bytes.subarray(0, random.int(0, bytes.length)) : bytes);
    if (random.chance(0.2)) peer.finish();
    return peer;
  }

  /** What came back must be frames, or the answer to something that is no HTTP/2, and the end must be in order. */
  private checkEnd(peer: RawPeer): void {
    const { violations } = this;
    if (peer.end === undefined) {
      violations.push('a connection on which nothing happens was kept for ever');
      return;
    }
    const bytes = Buffer.concat(peer.pieces);
    if (bytes.subarray(0, 5).toString('latin1') === 'HTTP/') {
      this.endings.push('HTTP/1');
      return;
    }
    let goaway = false;
    let ending = 'none';
    try {
      new FrameReader().feed(bytes, ({ type, streamId, payload }) => {
        if (type > Type.CONTINUATION || type === Type.PUSH_PROMISE) throw new CodecError(`a frame of type ${type}`);
        if (type === Type.GOAWAY) {
          goaway = true;
          if (streamId !== 0 || payload.length < 8) throw new CodecError('a malformed GOAWAY');
          ending = codeNames[wordAt(payload, 1)] ?? '?';
        } else if (goaway && type === Type.SETTINGS) throw new CodecError('SETTINGS after GOAWAY');
      });
    } catch (error) {
      if (!(error instanceof CodecError)) throw error;
      violations.push(`a client received what is not HTTP/2: ${error.message}`);
    }
    this.endings.push(ending);
  }

  /** Runs until something is the case, or time is up. */
  private until(reached: () => boolean, limitMs: number): void {
    const endMs = this.scheduler.nowMs + limitMs;
    while (!reached() && this.scheduler.nowMs < endMs) this.batch();
  }

  private batch(): void {
    const before = this.kernel.progress + this.scheduler.executed;
    const beforeMs = this.scheduler.nowMs;
    const events = this.worker.runBatch(1000);
    const { blocksInUse } = this.worker.stats();
    if (blocksInUse > BLOCKS_MAX + 2 * connectionsMax) throw new Error(`${blocksInUse} blocks in use`);
    const slept = this.scheduler.nowMs - beforeMs > 0.9;
    const moved = this.kernel.progress + this.scheduler.executed !== before;
    if (moved || (events === 0 && slept)) this.idleBatches = 0;
    else if (++this.idleBatches > IDLE_BATCHES_MAX) throw new Error('the worker spins');
  }
}

/** Runs one seed. Deterministic for a seed. */
export function fuzzConnection(seed: number, target: Target): FuzzReport {
  const fuzz = new Fuzz(seed, target);
  try {
    fuzz.run();
  } catch (error) {
    fuzz.violations.push(error instanceof Error ? (error.stack ?? error.message) : String(error));
  }
  return { violations: fuzz.violations, endings: fuzz.endings };
}

if (import.meta.main) {
  const { values } = parseArgs({
    options: { seeds: { type: 'string', default: '1000' }, start: { type: 'string', default: '1' } },
  });
  const start = Number(values.start);
  const tally: Record<string, number> = {};
  let failures = 0;
  for (let seed = start; seed < start + Number(values.seeds) && failures < 10; seed++) {
    for (const target of targets) {
      const { violations, endings } = fuzzConnection(seed, target);
      for (const ending of endings) tally[`${target} ${ending}`] = (tally[`${target} ${ending}`] ?? 0) + 1;
      if (violations.length === 0) continue;
      failures++;
      console.log(`seed ${seed} ${target}: ${violations.slice(0, 3).join('\n  ')}`);
    }
  }
  console.log(`${failures} failed; ${JSON.stringify(tally)}`);
  process.exitCode = failures > 0 ? 1 : 0;
}
