// What one proxied request costs in JavaScript alone: a whole packet worker over a kernel that does
// nothing. Every receive brings the same request or response, every send succeeds.
// `node bench/core/exchange.ts [connections] [seconds]` prints nanoseconds per request.

import { compileSnapshot } from '../../config/compile.ts';
import { loadConfig } from '../../config/load.ts';
import { Errno } from '../../core/ffi/errno.ts';
import { BATCH_MAX, BATCH_WORDS, Epoll, EVENTS_MAX, type Kernel, recvEach, sendEach } from '../../core/ffi/kernel.ts';
import { kernelMemoryBytes } from '../../core/io/arena.ts';
import { createByteRing } from '../../core/telemetry/byte-ring.ts';
import { createFlightBuffer } from '../../core/telemetry/flight-recorder.ts';
import { createMetricsBuffer } from '../../core/telemetry/metrics.ts';
import { PacketWorker } from '../../core/workers/packet-worker.ts';

const connections = Number(process.argv[2] ?? 64);
const seconds = Number(process.argv[3] ?? 3);

const encoder = new TextEncoder();
const request = encoder.encode(
  'GET /b/128 HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n' +
    'User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0 Safari/537.36\r\n' +
    'Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif\r\n' +
    'Accept-Language: en-US,en;q=0.9\r\n' +
    'Cookie: session=0123456789abcdef0123456789abcdef; theme=dark\r\n\r\n',
);
const response = encoder.encode(
  `HTTP/1.1 200 OK\r\nServer: tiny\r\nContent-Type: text/plain\r\nContent-Length: 128\r\n\r\n${'x'.repeat(128)}`,
);

/** A kernel whose clients always have a request ready, and whose upstream answers at once. */
class NullKernel implements Kernel {
  readonly memory = new Uint8Array(kernelMemoryBytes(16 * 1024 * 1024));
  readonly events = new Int32Array(EVENTS_MAX * 3);
  readonly eventStride = 3;
  readonly eventDataIndex = 1;
  readonly batch = new Int32Array(BATCH_MAX * BATCH_WORDS);
  readonly addressOffset = 0;
  /** Requests whose response has been sent. */
  answered = 0;
  private nextFd = 10;
  private waiting = connections;
  private readonly slots = new Int32Array(4096);
  private readonly generations = new Int32Array(4096);
  private readonly upstream = new Uint8Array(4096);
  /** A message waits to be received. */
  private readonly pending = new Uint8Array(4096);
  private readonly ready = new Int32Array(8192);
  private readyHead = 0;
  private readyTail = 0;
  private nowValue = 0;
  listener = 5;

  nowMs(): number {
    this.nowValue += 0.1;
    return this.nowValue;
  }
  wallMs(): number {
    return 1.7e12 + this.nowValue;
  }
  epollCreate(): number {
    return 3;
  }
  epollAdd(_epoll: number, fd: number, _events: number, slot: number, generation: number): number {
    this.slots[fd] = slot;
    this.generations[fd] = generation;
    this.pending[fd] = this.upstream[fd] === 1 ? 0 : 1;
    if (fd >= 10 || fd === this.listener) this.push(fd);
    return 0;
  }
  epollModify(): number {
    return 0;
  }
  epollDelete(): number {
    return 0;
  }
  epollWait(): number {
    let count = 0;
    while (this.readyHead < this.readyTail && count < 64) {
      const fd = this.ready[this.readyHead++ & 8191];
      this.events[count * 3] = Epoll.IN | Epoll.OUT;
      this.events[count * 3 + 1] = this.slots[fd];
      this.events[count * 3 + 2] = this.generations[fd];
      count++;
    }
    return count;
  }
  eventfd(): number {
    return 4;
  }
  eventfdWrite(): number {
    return 0;
  }
  eventfdRead(): number {
    return 0;
  }
  accept(): number {
    if (this.waiting === 0) return -Errno.EAGAIN;
    this.waiting--;
    this.memory[0] = 2;
    this.memory[4] = 127;
    this.memory[7] = 1;
    return this.nextFd++;
  }
  connectIn(): number {
    return -1;
  }
  originalDestination(): number {
    return -1;
  }
  connect(): number {
    const fd = this.nextFd++;
    this.upstream[fd] = 1;
    return fd;
  }
  socketError(): number {
    return 0;
  }
  localAddress(): number {
    return 0;
  }
  recv(fd: number, offset: number): number {
    if (this.pending[fd] === 0) return -Errno.EAGAIN;
    this.pending[fd] = 0;
    const bytes = this.upstream[fd] === 1 ? response : request;
    this.memory.set(bytes, offset);
    return bytes.length;
  }
  send(fd: number, _offset: number, length: number): number {
    if (this.upstream[fd] === 0) this.answered++;
    this.pending[fd] = 1;
    this.push(fd);
    return length;
  }
  peek(): number {
    return -11;
  }
  recvBatch(count: number): void {
    recvEach(this, 0, count);
  }

  sendBatch(count: number): void {
    sendEach(this, 0, count);
  }

  writev(): number {
    return -Errno.EPIPE;
  }
  shutdown(): number {
    return 0;
  }
  abortOnClose(): number {
    return 0;
  }
  close(): number {
    return 0;
  }
  release(): number {
    return 0;
  }
  private push(fd: number): void {
    this.ready[this.readyTail++ & 8191] = fd;
  }
}

const loaded = loadConfig(
  'listeners: [{name: http, address: "127.0.0.1:8080"}]\n' +
    'routes: [{name: r, rules: [{backendRefs: [{name: b}]}]}]\n' +
    'backends: [{name: b, endpoints: ["127.0.0.1:9000"]}]\n',
  'bench.yaml',
  {},
);
if (!('config' in loaded)) throw new Error('the configuration of the benchmark is invalid');
const kernel = new NullKernel();
const worker = new PacketWorker(
  kernel,
  {
    index: 0,
    wakeFd: 4,
    connectionsMax: 4096,
    metrics: createMetricsBuffer(),
    accessLog: createByteRing(),
    flightRecords: createFlightBuffer(),
    descriptors: new SharedArrayBuffer(4096 * 4),
  },
  () => undefined,
  null,
);
const snapshot = compileSnapshot(loaded.config, 1, new Map());
worker.handle({ type: 'snapshot', snapshot, listenerFds: [kernel.listener] });

function run(forMs: number): number {
  const start = kernel.answered;
  const startNs = process.hrtime.bigint();
  const endNs = startNs + BigInt(Math.round(forMs * 1e6));
  let nowNs = startNs;
  do {
    for (let i = 0; i < 200; i++) worker.runBatch(0);
    nowNs = process.hrtime.bigint();
  } while (nowNs < endNs);
  return Number(nowNs - startNs) / (kernel.answered - start);
}

run(1000);
const rounds = Array.from({ length: 5 }, () => run((seconds * 1000) / 5)).sort((a, b) => a - b);
process.stdout.write(
  `${connections} connections: ${rounds[2].toFixed(0)} ns of JavaScript per request (best ${rounds[0].toFixed(0)})\n`,
);
