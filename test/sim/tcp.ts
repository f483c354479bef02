// TCP of the simulated kernel: two sockets, and between them two directions that split, delay and
// hold back bytes, but never lose, double or reorder them.
//
// What a socket answers follows Linux, since event loops depend on its finer points:
// - bytes that arrived stay readable after FIN and after RST; an error is reported by one call, and
//   only then is the end of the stream seen; after a FIN the end is seen without the error;
// - closing with unread bytes, or bytes arriving after the close, answers with RST, and what was
//   still unsent is lost: so a response can be lost to a close that comes too soon;
// - a sender that found no room is woken when a third of its buffer is free, and only then.
// Source: tcp(7), net/ipv4/tcp.c, tcp_input.c. Checked against the real kernel in kernel.test.ts.

import { Errno } from '../../core/ffi/errno.ts';
import { Epoll } from '../../core/ffi/kernel.ts';
import type { HostPort } from '../../core/ffi/sockaddr.ts';
import { ByteQueue } from './byte-queue.ts';
import { SimFile } from './epoll.ts';
import type { Random } from './random.ts';
import type { Scheduler } from './scheduler.ts';

/** How one direction of a connection behaves. */
export interface LinkProfile {
  /** One segment takes this long, in milliseconds. */
  delayMinMs: number;
  delayMaxMs: number;
  /** Segments are 1 to this many bytes, mostly small. */
  segmentBytesMax: number;
  /** This many bytes at the start travel in segments of 1 to 3 bytes. */
  dribbleBytes: number;
  /** Size of the sender's buffer, 1 or more bytes. */
  sendBufferBytes: number;
  /** Size of the receiver's buffer, 1 or more bytes. */
  receiveBufferBytes: number;
}

/** A direction that is fast and roomy: nothing is split that need not be. */
export const plainLink: LinkProfile = {
  delayMinMs: 0.01,
  delayMaxMs: 0.01,
  segmentBytesMax: 65536,
  dribbleBytes: 0,
  sendBufferBytes: 1 << 18,
  receiveBufferBytes: 1 << 18,
};

const SHUT_RECEIVE = 1;
const SHUT_SEND = 2;
const SHUT_BOTH = SHUT_RECEIVE | SHUT_SEND;

/** Where a socket is in its life. */
export const SocketState = {
  CONNECTING: 'connecting',
  ESTABLISHED: 'established',
  /** Reset, refused, or finished in both directions. */
  CLOSED: 'closed',
} as const;

/** One end of a connection. */
export class SimSocket extends SimFile {
  readonly kind = 'socket';
  state: (typeof SocketState)[keyof typeof SocketState] = SocketState.CONNECTING;
  /** The other end; null until the connection is established. */
  peer: SimSocket | null = null;
  /** The next `close` sends RST. */
  abortOnClose = false;
  /** Called, outside of any system call of the owner, whenever something happened here. */
  onWake: (() => void) | null = null;
  /** The owner has closed it; what was sent may still be on its way. */
  orphaned = false;
  readonly local: HostPort;
  readonly remote: HostPort;
  /** Where the connection was going before it was redirected; null: it was not. */
  original: HostPort | null = null;

  private readonly scheduler: Scheduler;
  private readonly random: Random;
  private readonly link: LinkProfile;
  private readonly received = new ByteQueue();
  private readonly unsent = new ByteQueue();
  private receiveBufferBytes = 0;
  private inFlightBytes = 0;
  private sentBytes = 0;
  private lastArrivalMs = 0;
  /** SO_ERROR: a positive error number, reported once. */
  private error = 0;
  private shut = 0;
  private finReceived = false;
  private finSent = false;
  private finArrived = false;
  private resetSent = false;
  private noSpace = false;
  private squeezed = false;

  /** `link` is the direction from this end to the other. */
  constructor(scheduler: Scheduler, random: Random, link: LinkProfile, local: HostPort, remote: HostPort) {
    super();
    this.scheduler = scheduler;
    this.random = random;
    this.link = link;
    this.local = local;
    this.remote = remote;
  }

  /** Joins two ends. Each then counts as established once `establish` is called on it. */
  static join(a: SimSocket, b: SimSocket): void {
    a.peer = b;
    b.peer = a;
    a.receiveBufferBytes = b.link.receiveBufferBytes;
    b.receiveBufferBytes = a.link.receiveBufferBytes;
  }

  /** The handshake is complete for this end. */
  establish(): void {
    if (this.state !== SocketState.CONNECTING) return;
    this.state = SocketState.ESTABLISHED;
    this.wake(0);
  }

  /** Nothing that this end sends arrives before `atMs` (the other end's handshake). */
  holdUntil(atMs: number): void {
    this.lastArrivalMs = Math.max(this.lastArrivalMs, atMs);
  }

  /** The attempt to connect failed with a positive error number. */
  fail(errno: number): void {
    if (this.state !== SocketState.CONNECTING) return;
    this.die(errno);
  }

  override wake(key: number): void {
    super.wake(key);
    this.onWake?.();
  }

  poll(): number {
    let bits = 0;
    if (this.shut === SHUT_BOTH || this.state === SocketState.CLOSED) bits |= Epoll.HUP;
    if ((this.shut & SHUT_RECEIVE) !== 0) bits |= Epoll.IN | Epoll.RDHUP;
    if (this.state !== SocketState.CONNECTING) {
      if (this.received.length > 0) bits |= Epoll.IN;
      if ((this.shut & SHUT_SEND) !== 0 || this.hasRoom()) bits |= Epoll.OUT;
      else this.noSpace = true;
    }
    if (this.error !== 0) bits |= Epoll.ERR;
    return bits;
  }

  /** Bytes that `recv` could take now. */
  get readableBytes(): number {
    return this.received.length;
  }

  /** Whether the other end has finished sending (its FIN has arrived), or the connection is reset. */
  get ended(): boolean {
    return (this.shut & SHUT_RECEIVE) !== 0;
  }

  /** Bytes accepted by `send` that the other end's buffer does not have yet. */
  get undeliveredBytes(): number {
    return this.unsent.length + this.inFlightBytes;
  }

  /** recv(2): the number of bytes put into `target`, 0 at the end, or a negative error number. */
  recv(target: Uint8Array): number {
    const available = this.received.length;
    if (available > 0) {
      const count = Math.min(available, target.length);
      target.set(this.received.peek(count));
      this.received.drop(count);
      this.peer?.transmit();
      return count;
    }
    if (this.finReceived) return 0;
    if (this.error !== 0) return -this.takeError();
    if ((this.shut & SHUT_RECEIVE) !== 0) return 0;
    return this.state === SocketState.CLOSED ? -Errno.ENOTCONN : -Errno.EAGAIN;
  }

  /** recv(2) with MSG_PEEK. */
  peek(target: Uint8Array): number {
    const count = Math.min(this.received.length, target.length);
    if (count > 0) {
      target.set(this.received.peek(count));
      return count;
    }
    return this.finReceived || (this.shut & SHUT_RECEIVE) !== 0 ? 0 : this.error !== 0 ? -this.error : -Errno.EAGAIN;
  }

  /** send(2) with MSG_NOSIGNAL: the number of bytes taken, or a negative error number. */
  send(bytes: Uint8Array): number {
    if (this.state === SocketState.CONNECTING) return -Errno.EAGAIN;
    if (this.error !== 0) return -this.takeError();
    if ((this.shut & SHUT_SEND) !== 0) return -Errno.EPIPE;
    const room = this.squeezed ? 0 : this.link.sendBufferBytes - this.undeliveredBytes;
    if (room <= 0) {
      this.noSpace = true;
      return -Errno.EAGAIN;
    }
    const count = Math.min(room, bytes.length);
    if (count < bytes.length) this.noSpace = true;
    this.unsent.push(bytes.subarray(0, count));
    this.transmit();
    return count;
  }

  /** Takes and clears SO_ERROR: 0 or a positive error number. */
  takeError(): number {
    const error = this.error;
    this.error = 0;
    return error;
  }

  /** shutdown(2): 0, or a negative error number. */
  shutdown(how: number): number {
    if (this.state !== SocketState.ESTABLISHED) return -Errno.ENOTCONN;
    this.shut |= how + 1;
    this.transmit();
    this.wake(0);
    return 0;
  }

  /** close(2): finishes sending, or resets when bytes were left unread or `abortOnClose` is set. */
  closed(): void {
    if (this.orphaned) return;
    this.orphaned = true;
    this.onWake = null;
    const wasEstablished = this.state === SocketState.ESTABLISHED;
    this.shut = SHUT_BOTH;
    if (!wasEstablished || this.received.length > 0 || this.abortOnClose) {
      const finished = this.state === SocketState.CLOSED;
      this.state = SocketState.CLOSED;
      if (!finished) this.sendReset();
    } else {
      this.transmit();
    }
    this.received.clear();
  }

  /** Resets the connection now, whatever is unread or unsent. */
  abort(): void {
    this.abortOnClose = true;
    this.closed();
  }

  /**
   * Lets the system run short of memory for this socket for a while: sends find no room, and the
   * wake-up comes when it is over.
   */
  squeeze(durationMs: number): void {
    if (this.squeezed) return;
    this.squeezed = true;
    this.scheduler.after(durationMs, () => {
      this.squeezed = false;
      this.writeSpace();
    });
  }

  private hasRoom(): boolean {
    return !this.squeezed && this.undeliveredBytes * 3 <= this.link.sendBufferBytes * 2;
  }

  private writeSpace(): void {
    if (!this.noSpace || !this.hasRoom()) return;
    this.noSpace = false;
    this.wake(Epoll.OUT);
  }

  /** Puts on the wire what the other end has room for; then FIN, if sending is over. */
  private transmit(): void {
    const peer = this.peer;
    if (peer === null || this.state !== SocketState.ESTABLISHED || this.finSent) return;
    while (this.unsent.length > 0) {
      const window = peer.receiveBufferBytes - peer.received.length - this.inFlightBytes;
      if (window <= 0) return;
      const bytes = this.unsent.take(Math.min(window, this.segmentBytes()));
      this.inFlightBytes += bytes.length;
      this.sentBytes += bytes.length;
      this.scheduler.at(this.arrivalMs(), () => {
        this.inFlightBytes -= bytes.length;
        peer.arrive(bytes);
        this.writeSpace();
      });
    }
    if ((this.shut & SHUT_SEND) === 0) return;
    this.finSent = true;
    this.scheduler.at(this.arrivalMs(), () => peer.arriveFin());
  }

  private segmentBytes(): number {
    if (this.sentBytes < this.link.dribbleBytes) return this.random.int(1, 3);
    // Long transfers end up in full segments, or the number of events would make runs slow.
    if (this.sentBytes > this.link.segmentBytesMax * 16) return this.link.segmentBytesMax;
    return this.random.size(1, this.link.segmentBytesMax);
  }

  private arrivalMs(): number {
    const delayMs = this.random.between(this.link.delayMinMs, this.link.delayMaxMs);
    this.lastArrivalMs = Math.max(this.lastArrivalMs, this.scheduler.nowMs + delayMs);
    return this.lastArrivalMs;
  }

  private arrive(bytes: Uint8Array): void {
    if (this.orphaned || this.state === SocketState.CLOSED) {
      this.state = SocketState.CLOSED;
      this.sendReset();
      return;
    }
    this.received.push(bytes);
    this.wake(Epoll.IN);
  }

  private arriveFin(): void {
    const peer = this.peer!;
    peer.finArrived = true;
    if (this.state === SocketState.CLOSED) return;
    this.finReceived = true;
    this.shut |= SHUT_RECEIVE;
    this.finishIfDone();
    peer.finishIfDone();
    this.wake(0);
  }

  /** Both directions have ended in order: nothing can be reset any more. */
  private finishIfDone(): void {
    if (!this.finReceived || !this.finArrived || this.state === SocketState.CLOSED) return;
    this.state = SocketState.CLOSED;
    this.wake(0);
  }

  private sendReset(): void {
    const peer = this.peer;
    this.unsent.clear();
    if (this.resetSent || peer === null) return;
    this.resetSent = true;
    this.scheduler.at(this.arrivalMs(), () => peer.arriveReset());
  }

  private arriveReset(): void {
    if (this.state === SocketState.CLOSED) return;
    const closeWait = this.finReceived && (this.shut & SHUT_SEND) === 0;
    this.die(closeWait ? Errno.EPIPE : Errno.ECONNRESET);
  }

  private die(errno: number): void {
    this.state = SocketState.CLOSED;
    this.error = errno;
    this.shut = SHUT_BOTH;
    this.unsent.clear();
    this.wake(0);
  }
}

/** A listening socket with its queue of connections that wait to be accepted. */
export class SimListener extends SimFile {
  readonly kind = 'listener';
  readonly address: HostPort;
  private readonly backlog: number;
  private readonly queue: SimSocket[] = [];
  private open = true;

  constructor(address: HostPort, backlog: number) {
    super();
    this.address = address;
    this.backlog = backlog;
  }

  poll(): number {
    return this.queue.length > 0 ? Epoll.IN : 0;
  }

  closed(): void {
    this.open = false;
    for (const socket of this.queue) socket.abort();
    this.queue.length = 0;
  }

  /** A connection arrives; false if it is refused because nobody listens or the queue is full. */
  offer(socket: SimSocket): boolean {
    if (!this.open || this.queue.length >= this.backlog) return false;
    this.queue.push(socket);
    this.wake(Epoll.IN);
    return true;
  }

  /** The connection that has waited longest, if any. */
  take(): SimSocket | undefined {
    return this.queue.shift();
  }

  /** Connections waiting to be accepted. */
  get waiting(): number {
    return this.queue.length;
  }
}
