// What simulated clients and upstreams have in common: a process at the other end of a connection,
// that takes its time, reads and writes in pieces of any size, and leaves when it likes.

import { Errno } from '../../core/ffi/errno.ts';
import { Shutdown } from '../../core/ffi/kernel.ts';
import { ByteQueue } from './byte-queue.ts';
import type { Random } from './random.ts';
import type { Scheduler } from './scheduler.ts';
import { type SimSocket, SocketState } from './tcp.ts';

/** How a peer goes about its connection. */
export interface Pace {
  /** Longest time until it reacts to anything, in milliseconds. */
  reactionMsMax: number;
  /** Most bytes it gives to one send. */
  writeBytesMax: number;
  /** Most bytes it takes with one receive. */
  readBytesMax: number;
  /** Longest pause between two reads or writes. */
  pauseMsMax: number;
}

/** How a stream of bytes came to its end. */
export type StreamEnd = 'fin' | 'reset' | 'refused';

/** A process with one connection. */
export abstract class Peer {
  protected readonly socket: SimSocket;
  protected readonly scheduler: Scheduler;
  protected readonly random: Random;
  /** Set when this end is done with the connection: nothing more is read or written. */
  gone = false;
  private readonly pace: Pace;
  private readonly outgoing = new ByteQueue();
  private readonly chunk: Uint8Array;
  private connectionSeen = false;
  private endSeen = false;
  private planned = false;
  private finishing = false;
  private finished = false;
  private writtenBytes = 0;
  private cutAtBytes = Number.POSITIVE_INFINITY;
  private cutHow: 'close' | 'reset' | 'stall' = 'close';
  private stalled = false;
  private resetSeen = false;
  private sendFailed = false;
  private leaving: 'close' | 'reset' | undefined;

  constructor(socket: SimSocket, scheduler: Scheduler, random: Random, pace: Pace) {
    this.socket = socket;
    this.scheduler = scheduler;
    this.random = random;
    this.pace = pace;
    this.chunk = new Uint8Array(pace.readBytesMax);
    socket.onWake = () => this.plan(this.random.float() * pace.reactionMsMax);
    this.plan(0);
  }

  /** The connection is there. */
  protected abstract connected(): void;
  /** Bytes came in. */
  protected abstract received(bytes: Uint8Array): void;
  /** The other end has finished, or the connection failed. Called once. */
  protected abstract ended(how: StreamEnd): void;
  /** This end cut the connection as planned by `cutAt`. */
  protected abstract cut(how: 'close' | 'reset' | 'stall'): void;

  /** Queues bytes for sending; bytes for a connection that takes no more are forgotten. */
  protected write(bytes: Uint8Array): void {
    if (this.sendFailed || this.gone) return;
    this.outgoing.push(bytes);
    this.plan(0);
  }

  /** Bytes that were queued and not sent yet. */
  protected get unsentBytes(): number {
    return this.outgoing.length;
  }

  /** Ends sending once everything queued has gone; reading goes on. */
  protected finishSending(): void {
    this.finishing = true;
    this.plan(0);
  }

  /** Closes, or resets, once everything queued has been handed to the system. */
  protected closeAfterSending(how: 'close' | 'reset'): void {
    this.leaving = how;
    this.plan(0);
  }

  /** Does nothing any more, but leaves the connection open: a process that hangs. */
  protected freeze(): void {
    this.gone = true;
    this.socket.onWake = null;
  }

  /** Everything queued has been sent; called again whenever that becomes true. */
  protected drained(): void {}

  /** Closes at once, whatever is queued or unread. */
  protected close(how: 'close' | 'reset'): void {
    if (this.gone) return;
    this.gone = true;
    if (how === 'reset') this.socket.abort();
    else this.socket.closed();
  }

  /** After so many sent bytes: close, reset, or fall silent for good. */
  protected cutAt(bytes: number, how: 'close' | 'reset' | 'stall'): void {
    this.cutAtBytes = bytes;
    this.cutHow = how;
  }

  /** Acts after a while. */
  protected plan(delayMs: number): void {
    if (this.planned || this.gone) return;
    this.planned = true;
    this.scheduler.after(delayMs, () => {
      this.planned = false;
      this.act();
    });
  }

  private act(): void {
    if (this.gone) return;
    if (!this.connectionSeen) {
      if (this.socket.state === SocketState.CONNECTING) return;
      this.connectionSeen = true;
      if (this.socket.state === SocketState.ESTABLISHED) this.connected();
    }
    const wrote = this.writeSome();
    if (this.gone) return;
    const read = this.readSome();
    if (this.gone) return;
    if (wrote || read) this.plan(this.random.float() * this.pace.pauseMsMax);
  }

  /** Sends once; true if there is more to do that needs no wake-up. */
  private writeSome(): boolean {
    if (this.outgoing.length === 0) {
      if (this.leaving !== undefined) {
        this.close(this.leaving);
        return false;
      }
      if (this.finishing && !this.finished) {
        this.finished = true;
        this.socket.shutdown(Shutdown.WRITE);
      }
      return false;
    }
    if (this.stalled) return false;
    const room = this.cutAtBytes - this.writtenBytes;
    const bytes = this.outgoing.peek(Math.min(room, this.random.size(1, this.pace.writeBytesMax)));
    const count = this.socket.send(bytes);
    if (count < 0) {
      if (count === -Errno.EAGAIN) return false;
      // Nobody will take the rest; what was sent to us may still be read. A reset that is reported
      // here is reported once: the receive that follows would look like an orderly end.
      if (count === -Errno.ECONNRESET) this.resetSeen = true;
      this.outgoing.clear();
      this.sendFailed = true;
      return true;
    }
    this.writtenBytes += count;
    this.outgoing.drop(count);
    if (this.writtenBytes >= this.cutAtBytes) {
      this.cutAtBytes = Number.POSITIVE_INFINITY;
      if (this.cutHow === 'stall') this.stalled = true;
      else this.close(this.cutHow);
      this.cut(this.cutHow);
      return false;
    }
    if (this.outgoing.length === 0) this.drained();
    return this.outgoing.length > 0 || this.finishing || this.leaving !== undefined;
  }

  /** Receives once; true if more may be waiting. */
  private readSome(): boolean {
    if (this.endSeen) return false;
    const count = this.socket.recv(this.chunk);
    if (count > 0) {
      this.received(this.chunk.subarray(0, count));
      return true;
    }
    if (count === -Errno.EAGAIN) return false;
    this.endSeen = true;
    if (count === -Errno.ECONNREFUSED) this.ended('refused');
    else this.ended(count === 0 && !this.resetSeen ? 'fin' : 'reset');
    return false;
  }
}
