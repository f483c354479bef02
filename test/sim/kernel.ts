// The Kernel interface wholly in memory, with virtual time and faults drawn from a seed.
//
// The code under test runs on it unchanged and cannot tell it from Linux, except that everything
// goes wrong more often. Other processes (clients, upstreams) are callbacks of the scheduler. They
// run while a system call is made, never between two, so that the world may change under the
// worker's feet at every call, as it does in reality: a reset between epoll_wait and recv, a FIN
// between two sends.
// Misuse that Linux would forgive or hide is an error here: descriptors that are not open, memory
// outside the caller's part, receives of no bytes.

import { Errno } from '../../core/ffi/errno.ts';
import {
  BATCH_MAX,
  BATCH_WORDS,
  EVENTS_MAX,
  KERNEL_RESERVED_BYTES,
  type Kernel,
  recvEach,
  SEGMENTS_MAX,
  sendEach,
} from '../../core/ffi/kernel.ts';
import { Lookup } from '../../core/ffi/original-destination.ts';
import { decodeSockaddr, encodeSockaddr, type HostPort } from '../../core/ffi/sockaddr.ts';
import { SimEpoll, SimEventfd, type SimFile } from './epoll.ts';
import type { Random } from './random.ts';
import type { Scheduler } from './scheduler.ts';
import { type LinkProfile, plainLink, SimListener, SimSocket } from './tcp.ts';

/** Descriptors 0 to 2 belong to standard input, output and error. */
const FIRST_FD = 3;
const ADDRESS_OFFSET = 16 * 1024;
const PAGE_BYTES = 4096;
/** Wall clock at virtual time 0. */
const WALL_ORIGIN_MS = Date.UTC(2026, 0, 1);

/** The code under test did what no program may do to its kernel. */
export class SimMisuse extends Error {}

/** How an attempt to connect to an endpoint goes. */
export type DialOutcome =
  /** The handshake completes after `delayMs`; 0: before `connect` returns. */
  | { type: 'accept'; delayMs: number }
  /** A reset answers after `delayMs`. */
  | { type: 'refuse'; delayMs: number }
  /** Nothing answers; the system gives up after `delayMs`. */
  | { type: 'timeout'; delayMs: number }
  /** `connect` itself fails. */
  | { type: 'error'; errno: number };

/** A server outside the worker. */
export interface Endpoint {
  dial(): DialOutcome;
  /** A connection was established; the endpoint owns its end. */
  connected(socket: SimSocket): void;
}

/** What a simulated kernel does to its user. Probabilities are per call. */
export interface KernelFaults {
  /** A send finds the system short of memory for a while. */
  sendSqueeze: number;
  /** `accept` fails with ECONNABORTED, as when the client has left meanwhile. */
  acceptAborted: number;
  /** `epollWait` is interrupted by a signal. */
  interrupted: number;
  /** Longest time a system call takes, in milliseconds; what is due meanwhile happens. */
  syscallMsMax: number;
}

/** No faults: calls take no time and never fail without a cause. */
export const noFaults: KernelFaults = { sendSqueeze: 0, acceptAborted: 0, interrupted: 0, syscallMsMax: 0 };

/** How a simulated kernel is set up. */
export interface SimKernelOptions {
  random: Random;
  scheduler: Scheduler;
  /** Size of `memory`, KERNEL_RESERVED_BYTES included. */
  memoryBytes: number;
  faults?: KernelFaults;
  /** The two directions of a new connection: from the worker, and to it. */
  links?: () => { out: LinkProfile; in: LinkProfile };
  /** Words per event: 3 as on x64, 4 as on arm64. */
  eventStride?: 3 | 4;
  /** Takes one line per system call of interest, for readable traces. */
  trace?: ((line: string) => void) | undefined;
}

/** The simulated kernel of one packet worker. */
export class SimKernel implements Kernel {
  readonly memory: Uint8Array;
  readonly batch = new Int32Array(BATCH_MAX * BATCH_WORDS);
  readonly events: Int32Array;
  readonly eventStride: number;
  readonly eventDataIndex: number;
  readonly addressOffset = ADDRESS_OFFSET;

  /** Most descriptors that may be open at once; may change while running. */
  descriptorsMax = 1024;
  /** Grows with everything that moves on: bytes, connections, closes. For detecting a spinning loop. */
  progress = 0;
  /** Descriptor exhaustion reported so far (EMFILE). */
  exhaustedCount = 0;

  private readonly random: Random;
  private readonly scheduler: Scheduler;
  private readonly faults: KernelFaults;
  private readonly links: () => { out: LinkProfile; in: LinkProfile };
  private readonly trace: ((line: string) => void) | undefined;
  private readonly files: (SimFile | undefined)[] = [];
  private readonly listeners = new Map<string, SimListener>();
  private readonly endpoints = new Map<string, Endpoint>();
  private openCount = 0;
  private nextPort = 40000;

  constructor(options: SimKernelOptions) {
    this.random = options.random;
    this.scheduler = options.scheduler;
    this.faults = options.faults ?? noFaults;
    this.links = options.links ?? (() => ({ out: plainLink, in: plainLink }));
    this.trace = options.trace;
    this.memory = new Uint8Array(new ArrayBuffer(options.memoryBytes));
    this.eventStride = options.eventStride ?? 3;
    this.eventDataIndex = this.eventStride === 3 ? 1 : 2;
    this.events = new Int32Array(this.memory.buffer, 0, EVENTS_MAX * this.eventStride);
  }

  // -- for the world outside the worker -----------------------------------------

  /** Opens a listening socket on an address and returns its descriptor (never limited). */
  createListener(address: HostPort, backlog = 128): number {
    const listener = new SimListener(address, backlog);
    this.listeners.set(key(address), listener);
    return this.install(listener);
  }

  /** Makes a server reachable under an address, or takes it away. */
  setEndpoint(address: HostPort, endpoint: Endpoint | undefined): void {
    if (endpoint === undefined) this.endpoints.delete(key(address));
    else this.endpoints.set(key(address), endpoint);
  }

  /**
   * A client outside starts connecting to a listener; it is told through `onWake`. `original`: it was going there, and
   * a rule has redirected it.
   */
  dialIn(address: HostPort, from: HostPort, original: HostPort | null = null): SimSocket {
    const links = this.links();
    const client = new SimSocket(this.scheduler, this.random, links.in, from, address);
    client.original = original;
    const delayMs = this.random.between(links.in.delayMinMs, links.in.delayMaxMs);
    this.scheduler.after(delayMs, () => this.offer(client, links.out));
    return client;
  }

  /** Open descriptors with the kind of what they stand for. */
  openDescriptors(): { fd: number; kind: string }[] {
    return this.files.flatMap((file, fd) => (file === undefined ? [] : [{ fd, kind: file.kind }]));
  }

  // -- time ------------------------------------------------------------------------

  nowMs(): number {
    return this.scheduler.nowMs;
  }

  wallMs(): number {
    return WALL_ORIGIN_MS + this.scheduler.nowMs;
  }

  // -- epoll and eventfd -------------------------------------------------------------

  epollCreate(): number {
    return this.openCount >= this.descriptorsMax ? -Errno.EMFILE : this.install(new SimEpoll());
  }

  epollAdd(epoll: number, fd: number, events: number, slot: number, generation: number): number {
    this.tick();
    const file = this.file(fd, 'epollAdd');
    return this.epoll(epoll).add(fd, file, events, slot, generation) ? 0 : -Errno.EEXIST;
  }

  epollModify(epoll: number, fd: number, events: number, slot: number, generation: number): number {
    this.tick();
    this.file(fd, 'epollModify');
    return this.epoll(epoll).modify(fd, events, slot, generation) ? 0 : -Errno.ENOENT;
  }

  epollDelete(epoll: number, fd: number): number {
    this.tick();
    this.file(fd, 'epollDelete');
    return this.epoll(epoll).remove(fd) ? 0 : -Errno.ENOENT;
  }

  epollWait(epoll: number, timeoutMs: number): number {
    // The system call takes whole milliseconds; a fraction would be cut off and turn into a spin.
    if (!Number.isInteger(timeoutMs)) throw new SimMisuse(`epollWait for ${timeoutMs} ms, not a whole number`);
    this.tick();
    const instance = this.epoll(epoll);
    if (this.faults.interrupted > 0 && this.random.chance(this.faults.interrupted)) return -Errno.EINTR;
    const scheduler = this.scheduler;
    const endMs = timeoutMs < 0 ? Number.POSITIVE_INFINITY : scheduler.nowMs + timeoutMs;
    for (;;) {
      const count = instance.hasReady() ? this.report(instance) : 0;
      if (count > 0 || scheduler.nowMs >= endMs) return count;
      const nextMs = Math.min(endMs, scheduler.nextMs());
      if (nextMs === Number.POSITIVE_INFINITY) throw new SimMisuse('epollWait without limit, and nothing will happen');
      scheduler.advanceTo(nextMs);
    }
  }

  eventfd(): number {
    return this.openCount >= this.descriptorsMax ? -Errno.EMFILE : this.install(new SimEventfd());
  }

  eventfdWrite(fd: number): number {
    this.eventfdOf(fd).add();
    return 8;
  }

  eventfdRead(fd: number): number {
    return this.eventfdOf(fd).take() ? 8 : -Errno.EAGAIN;
  }

  // -- sockets ---------------------------------------------------------------------------

  accept(listener: number): number {
    this.tick();
    const file = this.file(listener, 'accept');
    if (!(file instanceof SimListener)) throw new SimMisuse(`accept on descriptor ${listener}, a ${file.kind}`);
    // Like Linux, which takes a descriptor before it looks at the queue: EMFILE hides EAGAIN.
    if (this.openCount >= this.descriptorsMax) return this.exhausted('accept');
    const socket = file.take();
    if (socket === undefined) return -Errno.EAGAIN;
    this.progress++;
    if (this.random.chance(this.faults.acceptAborted)) {
      socket.abort();
      return -Errno.ECONNABORTED;
    }
    this.putAddress(socket.remote);
    const fd = this.install(socket);
    this.trace?.(`accept ${fd} from ${key(socket.remote)}`);
    return fd;
  }

  connectIn(sockaddr: Uint8Array): number {
    return this.connect(sockaddr);
  }

  originalDestination(fd: number): number {
    const { original } = this.socket(fd, 'originalDestination');
    if (original === null) return -Errno.ENOENT;
    this.putAddress(original);
    return Lookup.FOUND;
  }

  connect(sockaddr: Uint8Array): number {
    this.tick();
    const address = decodeSockaddr(sockaddr, 0);
    if (address === undefined) return -Errno.EAFNOSUPPORT;
    if (this.openCount >= this.descriptorsMax) return this.exhausted('connect');
    const endpoint = this.endpoints.get(key(address));
    const links = this.links();
    const local = { host: '10.0.0.1', port: this.port() };
    const socket = new SimSocket(this.scheduler, this.random, links.out, local, address);
    const outcome = this.dialOutcome(address, endpoint, links.in);
    if (outcome.type === 'error') return -outcome.errno;
    this.progress++;
    const fd = this.install(socket);
    if (endpoint === undefined && outcome.type === 'accept') {
      this.scheduler.after(outcome.delayMs, () => this.offer(socket, links.in));
    } else {
      this.playOutcome(socket, outcome, () => {
        const other = new SimSocket(this.scheduler, this.random, links.in, address, local);
        SimSocket.join(socket, other);
        socket.establish();
        other.establish();
        endpoint!.connected(other);
      });
    }
    this.trace?.(`connect ${fd} to ${key(address)} (${outcome.type})`);
    return fd;
  }

  socketError(fd: number): number {
    this.tick();
    return this.socket(fd, 'socketError').takeError();
  }

  localAddress(fd: number): number {
    const file = this.file(fd, 'localAddress');
    this.putAddress(file instanceof SimListener ? file.address : this.socket(fd, 'localAddress').local);
    return 0;
  }

  recv(fd: number, offset: number, length: number): number {
    this.tick();
    const socket = this.socket(fd, 'recv');
    const count = socket.recv(this.range(offset, length, 'recv'));
    if (count > 0) this.progress++;
    this.trace?.(`recv ${fd} = ${count}${this.preview(offset, count)}`);
    return count;
  }

  send(fd: number, offset: number, length: number, _more: boolean): number {
    this.tick();
    const count = this.sendBytes(fd, this.range(offset, length, 'send'));
    this.trace?.(`send ${fd} ${length} = ${count}${this.preview(offset, count)}`);
    return count;
  }

  peek(fd: number, offset: number, length: number): number {
    this.tick();
    return this.traced('peek', fd, this.socket(fd, 'peek').peek(this.range(offset, length, 'peek')));
  }

  recvBatch(count: number): void {
    if (count < 1 || count > BATCH_MAX) throw new SimMisuse(`recvBatch of ${count} operations`);
    recvEach(this, 0, count);
  }

  sendBatch(count: number): void {
    if (count < 1 || count > BATCH_MAX) throw new SimMisuse(`sendBatch of ${count} operations`);
    sendEach(this, 0, count);
  }

  writev(fd: number, segments: Int32Array, count: number): number {
    this.tick();
    if (count < 1 || count > SEGMENTS_MAX) throw new SimMisuse(`writev of ${count} segments`);
    const parts: Uint8Array[] = [];
    for (let i = 0; i < count; i++) parts.push(this.range(segments[i * 2]!, segments[i * 2 + 1]!, 'writev'));
    return this.traced('writev', fd, this.sendBytes(fd, Buffer.concat(parts)));
  }

  shutdown(fd: number, how: number): number {
    this.tick();
    this.progress++;
    const file = this.file(fd, 'shutdown');
    if (file instanceof SimListener) {
      // Linux stops listening: what has not been accepted is reset, newcomers are refused.
      this.listeners.delete(key(file.address));
      file.closed();
      return this.traced('shutdown', fd, 0);
    }
    return this.traced('shutdown', fd, this.socket(fd, 'shutdown').shutdown(how));
  }

  abortOnClose(fd: number): number {
    this.socket(fd, 'abortOnClose').abortOnClose = true;
    return 0;
  }

  close(fd: number): number {
    this.tick();
    const file = this.file(fd, 'close');
    for (const item of [...file.watchers]) item.owner.remove(fd);
    this.files[fd] = undefined;
    this.openCount--;
    this.progress++;
    if (file instanceof SimListener) this.listeners.delete(key(file.address));
    this.trace?.(`close ${fd}${file instanceof SimSocket && file.abortOnClose ? ' with reset' : ''}`);
    file.closed();
    return 0;
  }

  release(offset: number, length: number): number {
    this.range(offset, length, 'release');
    const start = Math.ceil(offset / PAGE_BYTES) * PAGE_BYTES;
    const end = Math.floor((offset + length) / PAGE_BYTES) * PAGE_BYTES;
    if (end > start) this.memory.fill(0, start, end);
    return 0;
  }

  // -- inside ------------------------------------------------------------------------------

  /** A system call takes a moment, in which other processes and the network go on. */
  private tick(): void {
    const most = this.faults.syscallMsMax;
    if (most > 0) this.scheduler.advanceTo(this.scheduler.nowMs + this.random.float() * most);
  }

  private report(instance: SimEpoll): number {
    let word = 0;
    const count = instance.collect(EVENTS_MAX, (item, bits) => {
      this.events[word] = bits;
      this.events[word + this.eventDataIndex] = item.slot;
      this.events[word + this.eventDataIndex + 1] = item.generation;
      word += this.eventStride;
      this.trace?.(`event ${item.fd} bits 0x${bits.toString(16)}`);
    });
    return count;
  }

  private sendBytes(fd: number, bytes: Uint8Array): number {
    const socket = this.socket(fd, 'send');
    if (this.faults.sendSqueeze > 0 && this.random.chance(this.faults.sendSqueeze)) {
      // Part of the bytes may still go; the rest finds no room until the squeeze is over.
      const taken = this.random.chance(0.5) ? socket.send(bytes.subarray(0, this.random.size(1, bytes.length))) : 0;
      socket.squeeze(this.random.between(0.05, 20));
      if (taken < 0 || taken === bytes.length) return taken;
      const refused = socket.send(bytes.subarray(taken));
      if (taken === 0) return refused;
      this.progress++;
      return taken;
    }
    const count = socket.send(bytes);
    if (count > 0) this.progress++;
    return count;
  }

  private dialOutcome(address: HostPort, endpoint: Endpoint | undefined, link: LinkProfile): DialOutcome {
    if (endpoint !== undefined) return endpoint.dial();
    const delayMs = this.random.between(link.delayMinMs, link.delayMaxMs);
    return { type: this.listeners.has(key(address)) ? 'accept' : 'refuse', delayMs };
  }

  private playOutcome(socket: SimSocket, outcome: DialOutcome, established: () => void): void {
    if (outcome.type === 'error') return;
    const play = (): void => {
      if (socket.orphaned) return; // The attempt was given up.
      if (outcome.type === 'accept') established();
      else socket.fail(outcome.type === 'refuse' ? Errno.ECONNREFUSED : Errno.ETIMEDOUT);
    };
    if (outcome.delayMs === 0 && outcome.type === 'accept') play();
    else this.scheduler.after(outcome.delayMs, play);
  }

  /** The first packet of a client reaches a listener: the connection queues there, or is refused. */
  private offer(client: SimSocket, link: LinkProfile): void {
    if (client.orphaned) return;
    const server = new SimSocket(this.scheduler, this.random, link, client.remote, client.local);
    server.original = client.original;
    const listener = this.listeners.get(key(client.remote));
    const delayMs = this.random.between(link.delayMinMs, link.delayMaxMs);
    if (listener === undefined || !listener.offer(server)) {
      this.scheduler.after(delayMs, () => client.fail(Errno.ECONNREFUSED));
      return;
    }
    SimSocket.join(client, server);
    server.establish();
    server.holdUntil(this.scheduler.nowMs + delayMs);
    this.scheduler.after(delayMs, () => client.establish());
  }

  private install(file: SimFile): number {
    let fd = FIRST_FD;
    while (this.files[fd] !== undefined) fd++;
    this.files[fd] = file;
    this.openCount++;
    return fd;
  }

  private exhausted(call: string): number {
    this.exhaustedCount++;
    this.trace?.(`${call}: no descriptor left`);
    return -Errno.EMFILE;
  }

  private file(fd: number, call: string): SimFile {
    const file = this.files[fd];
    if (file === undefined) throw new SimMisuse(`${call} on descriptor ${fd}, which is not open`);
    return file;
  }

  private socket(fd: number, call: string): SimSocket {
    const file = this.file(fd, call);
    if (!(file instanceof SimSocket)) throw new SimMisuse(`${call} on descriptor ${fd}, a ${file.kind}`);
    return file;
  }

  private epoll(fd: number): SimEpoll {
    const file = this.file(fd, 'epoll');
    if (!(file instanceof SimEpoll)) throw new SimMisuse(`epoll call on descriptor ${fd}, a ${file.kind}`);
    return file;
  }

  private eventfdOf(fd: number): SimEventfd {
    const file = this.file(fd, 'eventfd');
    if (!(file instanceof SimEventfd)) throw new SimMisuse(`eventfd call on descriptor ${fd}, a ${file.kind}`);
    return file;
  }

  private range(offset: number, length: number, call: string): Uint8Array {
    const valid = Number.isInteger(offset) && Number.isInteger(length) && length > 0;
    if (!valid || offset < KERNEL_RESERVED_BYTES || offset + length > this.memory.length) {
      throw new SimMisuse(`${call} of ${length} bytes at ${offset}, outside the caller's memory`);
    }
    return this.memory.subarray(offset, offset + length);
  }

  private putAddress(address: HostPort): void {
    this.memory.set(encodeSockaddr(address.host, address.port)!, ADDRESS_OFFSET);
  }

  private port(): number {
    this.nextPort = this.nextPort >= 60999 ? 40000 : this.nextPort + 1;
    return this.nextPort;
  }

  private preview(offset: number, count: number): string {
    if (count <= 0) return '';
    const text = Buffer.from(this.memory.subarray(offset, offset + Math.min(count, 60))).toString('latin1');
    return ` ${JSON.stringify(text).replace(/[^ -~]/g, '?')}`;
  }

  private traced(call: string, fd: number, result: number): number {
    this.trace?.(`${call} ${fd} = ${result}`);
    return result;
  }
}

function key(address: HostPort): string {
  return `${address.host}:${address.port}`;
}
