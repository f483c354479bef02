// A kernel that does exactly what a test tells it: one event list, one clock, one queue per socket.
//
// For unit tests of core/io and of code that only needs the reactor's memory. No timing, no chance;
// whole runs with faults belong to test/sim.

import { Errno } from '../../../../core/ffi/errno.ts';
import { BATCH_MAX, BATCH_WORDS, EVENTS_MAX, type Kernel, recvEach, sendEach } from '../../../../core/ffi/kernel.ts';
import { BUFFER_BYTES_MIN, kernelMemoryBytes } from '../../../../core/io/arena.ts';
import type { Connection, Protocol } from '../../../../core/io/connection.ts';
import { Reactor } from '../../../../core/io/reactor.ts';

/** What a socket answers when it is asked to take bytes: how many at most, or a negative error number. */
export type SendAnswer = number;

/** One socket: what it will bring, what it has taken. */
export class FakeSocket {
  /** Bytes or negative error numbers that receives bring, in order; nothing left means EAGAIN. */
  readonly incoming: (Uint8Array | number)[] = [];
  /** The peer has finished: receives bring 0 once `incoming` is used up. */
  finished = false;
  /** Answers of the next sends; when used up, `defaultAnswer` counts. */
  readonly answers: SendAnswer[] = [];
  defaultAnswer: SendAnswer = Number.POSITIVE_INFINITY;
  /** All bytes taken, in order. */
  readonly taken: number[] = [];
  /** Calls of send and writev. */
  sendCalls = 0;
  /** Largest number of segments of one call, and the largest receive asked for. */
  segmentsMax = 0;
  receiveAskedMax = 0;
  closed = false;
  aborted = false;
  /** `more` of the last send. */
  more = false;
  slot = -1;
  generation = -1;
  watched = 0;

  /** Bytes taken so far, as a buffer. */
  get takenBytes(): Buffer {
    return Buffer.from(this.taken);
  }
}

/** See the top of this file. */
export class FakeKernel implements Kernel {
  readonly memory: Uint8Array;
  readonly events: Int32Array;
  readonly eventStride = 3;
  readonly eventDataIndex = 1;
  readonly batch = new Int32Array(BATCH_MAX * BATCH_WORDS);
  readonly addressOffset = 16 * 1024;
  /** Time of both clocks; tests set it. */
  timeMs = 1000;
  wallTimeMs = 1_700_000_000_000;
  /** Timeout of the last epollWait. */
  waitedMs = Number.NaN;
  /** Answer of the next epollAdd calls: 0 or a negative error number. */
  addAnswer = 0;
  /** What release was called with. */
  readonly released: { offset: number; length: number }[] = [];
  private readonly sockets = new Map<number, FakeSocket>();
  private readonly pending: { slot: number; generation: number; bits: number }[] = [];
  private nextFd = 10;

  constructor(bufferBytes = BUFFER_BYTES_MIN) {
    this.memory = new Uint8Array(new ArrayBuffer(kernelMemoryBytes(bufferBytes)));
    this.events = new Int32Array(this.memory.buffer, 0, EVENTS_MAX * 3);
  }

  // -- for tests -----------------------------------------------------------------

  /** A descriptor of a new socket. */
  create(): number {
    const fd = this.nextFd++;
    this.sockets.set(fd, new FakeSocket());
    return fd;
  }

  /** The socket behind a descriptor. */
  socket(fd: number): FakeSocket {
    const socket = this.sockets.get(fd);
    if (socket === undefined) throw new Error(`descriptor ${fd} is not open`);
    return socket;
  }

  /** Has the next wait report `bits` for whoever watches `socket` now. */
  raise(socket: FakeSocket, bits: number): void {
    this.pending.push({ slot: socket.slot, generation: socket.generation, bits });
  }

  // -- Kernel ----------------------------------------------------------------------

  nowMs(): number {
    return this.timeMs;
  }
  wallMs(): number {
    return this.wallTimeMs;
  }
  epollCreate(): number {
    return 3;
  }
  epollAdd(_epoll: number, fd: number, events: number, slot: number, generation: number): number {
    if (this.addAnswer < 0) return this.addAnswer;
    Object.assign(this.socket(fd), { watched: events, slot, generation });
    return 0;
  }
  epollModify(epoll: number, fd: number, events: number, slot: number, generation: number): number {
    return this.epollAdd(epoll, fd, events, slot, generation);
  }
  epollDelete(_epoll: number, fd: number): number {
    this.socket(fd).watched = 0;
    return 0;
  }
  epollWait(_epoll: number, timeoutMs: number): number {
    this.waitedMs = timeoutMs;
    const count = Math.min(this.pending.length, EVENTS_MAX);
    for (const [index, event] of this.pending.splice(0, count).entries()) {
      this.events.set([event.bits, event.slot, event.generation], index * 3);
    }
    return count;
  }
  eventfd(): number {
    return this.create();
  }
  eventfdWrite(): number {
    return 0;
  }
  eventfdRead(): number {
    return -Errno.EAGAIN;
  }
  accept(): number {
    return -Errno.EAGAIN;
  }
  connectIn(): number {
    return this.connect();
  }

  originalDestination(): number {
    return -2;
  }

  connect(): number {
    return this.create();
  }
  socketError(): number {
    return 0;
  }
  localAddress(): number {
    return 0;
  }
  recv(fd: number, offset: number, length: number): number {
    const socket = this.socket(fd);
    if (length <= 0 || offset + length > this.memory.length) throw new Error(`receive of ${length} at ${offset}`);
    socket.receiveAskedMax = Math.max(socket.receiveAskedMax, length);
    const next = socket.incoming[0];
    if (next === undefined) return socket.finished ? 0 : -Errno.EAGAIN;
    if (typeof next === 'number') {
      socket.incoming.shift();
      return next;
    }
    const part = next.subarray(0, length);
    this.memory.set(part, offset);
    if (part.length === next.length) socket.incoming.shift();
    else socket.incoming[0] = next.subarray(part.length);
    return part.length;
  }
  send(fd: number, offset: number, length: number, more: boolean): number {
    this.socket(fd).more = more;
    return this.take(fd, [[offset, length]]);
  }
  peek(fd: number, offset: number, length: number): number {
    const next = this.socket(fd).incoming[0];
    if (next === undefined) return this.socket(fd).finished ? 0 : -Errno.EAGAIN;
    if (typeof next === 'number') return next;
    const part = next.subarray(0, length);
    this.memory.set(part, offset);
    return part.length;
  }
  recvBatch(count: number): void {
    recvEach(this, 0, count);
  }

  sendBatch(count: number): void {
    sendEach(this, 0, count);
  }

  writev(fd: number, segments: Int32Array, count: number): number {
    const list = Array.from({ length: count }, (_, i) => [segments[i * 2], segments[i * 2 + 1]] as const);
    return this.take(fd, list);
  }
  shutdown(): number {
    return 0;
  }
  abortOnClose(fd: number): number {
    this.socket(fd).aborted = true;
    return 0;
  }
  close(fd: number): number {
    const socket = this.sockets.get(fd);
    if (socket !== undefined) socket.closed = true;
    this.sockets.delete(fd);
    return 0;
  }
  release(offset: number, length: number): number {
    this.memory.fill(0, offset, offset + length);
    this.released.push({ offset, length });
    return 0;
  }

  private take(fd: number, segments: (readonly [number, number])[]): number {
    const socket = this.socket(fd);
    socket.sendCalls++;
    socket.segmentsMax = Math.max(socket.segmentsMax, segments.length);
    const answer = socket.answers.shift() ?? socket.defaultAnswer;
    if (answer < 0) return answer;
    let left = answer;
    let count = 0;
    for (const [offset, length] of segments) {
      if (length <= 0) throw new Error(`a segment of ${length} bytes`);
      const part = Math.min(left, length);
      for (let i = 0; i < part; i++) socket.taken.push(this.memory[offset + i]);
      left -= part;
      count += part;
    }
    return count;
  }
}

/** A protocol that writes down its calls, and may do something on each. */
export class RecordingProtocol implements Protocol {
  /** `readable 3`: event and slot, in order. */
  readonly calls: string[] = [];
  onReadable: (connection: Connection) => void = () => undefined;
  onWritable: (connection: Connection) => void = () => undefined;
  onExpired: (connection: Connection) => void = () => undefined;
  onSendFailed: (connection: Connection) => void = () => undefined;

  readable(connection: Connection): void {
    this.calls.push(`readable ${connection.slot}`);
    this.onReadable(connection);
  }
  writable(connection: Connection): void {
    this.calls.push(`writable ${connection.slot}`);
    this.onWritable(connection);
  }
  expired(connection: Connection): void {
    this.calls.push(`expired ${connection.slot}`);
    this.onExpired(connection);
  }
  sendFailed(connection: Connection): void {
    this.calls.push(`sendFailed ${connection.slot}`);
    this.onSendFailed(connection);
  }

  /** The calls so far; forgets them. */
  takeCalls(): string[] {
    return this.calls.splice(0);
  }
}

/** A reactor over a new fake kernel, and a way to open connections on it. */
export interface Bench {
  kernel: FakeKernel;
  reactor: Reactor;
  protocol: RecordingProtocol;
  descriptors: Int32Array;
  /** A new connection with its socket. */
  open(): { connection: Connection; socket: FakeSocket };
}

/** See `Bench`. */
export function openBench(options: { slots?: number; bufferBytes?: number } = {}): Bench {
  const slots = options.slots ?? 8;
  const kernel = new FakeKernel(options.bufferBytes);
  const descriptors = new Int32Array(slots + 2);
  const reactor = new Reactor(kernel, slots, descriptors);
  const protocol = new RecordingProtocol();
  return {
    kernel,
    reactor,
    protocol,
    descriptors,
    open: () => {
      const fd = kernel.create();
      const socket = kernel.socket(fd);
      const connection = reactor.openStream(fd, protocol);
      if (connection === null) throw new Error('no slot is free');
      return { connection, socket };
    },
  };
}

/** `length` bytes that differ from their neighbours and repeat only after 251. */
export function pattern(length: number, from = 0): Uint8Array {
  const bytes = new Uint8Array(length);
  for (let i = 0; i < length; i++) bytes[i] = (from + i) % 251;
  return bytes;
}
