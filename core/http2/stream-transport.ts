// The transport under every stream: what the reactor calls instead of the kernel.
//
// Received bytes are given on where they lie in the frame if somebody takes them at once, else they are kept in
// blocks, at most as many as the stream's window allowed. Windows are given back as bytes are taken, so
// that a slow consumer slows down its sender and nobody else.
// Owned by one worker. Hot module: no allocation, exception, promise, closure or log line.
// Spec: RFC 9113 §5.2 (flow control), §6.9 (WINDOW_UPDATE), §8.1 (ends of messages).

import { Errno } from '../ffi/errno.ts';
import { LARGE_BLOCK_BYTES } from '../io/arena.ts';
import type { Connection } from '../io/connection.ts';
import type { Reactor } from '../io/reactor.ts';
import type { Transport } from '../io/transport.ts';
import type { Http2Output } from './output.ts';
import type { Http2Session } from './session.ts';
import type { Http2Stream } from './stream.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { EAGAIN, ECONNRESET } = Errno;

/** What the transport needs of the engine: the end of a stream, and trailers behind its last byte. */
export interface StreamOwner {
  /** The connection of a stream is being closed: takes the stream out of everything. */
  release(stream: Http2Stream): void;
  /** Everything unsent has gone: sends the trailers that were kept (`stream.tailBlock`). */
  sendTail(stream: Http2Stream): void;
}

export class StreamTransport implements Transport {
  private readonly reactor: Reactor;
  private readonly output: Http2Output;
  private readonly owner: StreamOwner;

  constructor(reactor: Reactor, output: Http2Output, owner: StreamOwner) {
    this.reactor = reactor;
    this.output = output;
    this.owner = owner;
  }

  // -- Transport --------------------------------------------------------------------------

  /** Gives what was kept, then the end. */
  recv(connection: Connection, offset: number, length: number): number {
    const stream = connection.http2Stream!;
    if (stream.reset) return -ECONNRESET;
    if (stream.inputBytes === 0) {
      if (stream.frameBytes > 0) return this.recvFrame(connection, stream, offset, length);
      return stream.remoteEnded ? 0 : -EAGAIN;
    }
    const { arena, memory } = this.reactor;
    const block = stream.inputFirst;
    const end = block === stream.inputLast ? stream.inputEnd : block + LARGE_BLOCK_BYTES;
    const count = Math.min(length, end - stream.inputStart);
    memory.copyWithin(offset, stream.inputStart, stream.inputStart + count);
    stream.inputStart += count;
    stream.inputBytes -= count;
    if (stream.inputStart === end) {
      const next = block === stream.inputLast ? 0 : arena.next(block);
      arena.free(block);
      stream.inputFirst = next;
      stream.inputStart = next;
      if (next === 0) stream.inputLast = 0;
    }
    if (stream.inputBytes === 0 && stream.remoteEnded) connection.inputEnds = true;
    this.consumed(stream, count);
    return count;
  }

  private recvFrame(connection: Connection, stream: Http2Stream, offset: number, length: number): number {
    const count = Math.min(length, stream.frameBytes);
    this.reactor.memory.copyWithin(offset, stream.frameOffset, stream.frameOffset + count);
    stream.frameOffset += count;
    stream.frameBytes -= count;
    if (stream.frameBytes === 0 && stream.remoteEnded) connection.inputEnds = true;
    this.consumed(stream, count);
    return count;
  }

  send(connection: Connection, offset: number, length: number): number {
    const stream = connection.http2Stream!;
    const totalBytes = connection.outputBytes > 0 ? connection.outputBytes : length;
    const sent = this.output.sendData(stream, offset, length, totalBytes);
    if (sent === totalBytes && stream.tailBlock !== 0) this.owner.sendTail(stream);
    return sent;
  }

  /** Called after every receive. What had been offered where it lay has been taken when this is called. */
  hasMore(connection: Connection): boolean {
    const stream = connection.http2Stream!;
    const { offeredBytes } = stream;
    if (offeredBytes > 0) {
      stream.offeredBytes = 0;
      this.consumed(stream, offeredBytes);
    }
    return stream.inputBytes > 0 || stream.frameBytes > 0 || stream.remoteEnded || stream.reset;
  }

  shutdownWrite(connection: Connection): void {
    const stream = connection.http2Stream!;
    if (connection.outputBytes > 0) stream.ending = true;
    else this.output.endStream(stream);
  }

  error(connection: Connection): number {
    return connection.http2Stream!.reset ? ECONNRESET : 0;
  }

  close(connection: Connection, _abort: boolean): void {
    this.owner.release(connection.http2Stream!);
  }

  // -- receiving ------------------------------------------------------------------------------

  /** Keeps bytes that nobody took. Returns false when no block is left. */
  keep(stream: Http2Stream, offset: number, length: number): boolean {
    const { arena, memory } = this.reactor;
    while (length > 0) {
      let last = stream.inputLast;
      let room = last === 0 ? 0 : last + arena.sizeOf(last) - stream.inputEnd;
      if (room === 0 || (room < length && arena.sizeOf(last) !== LARGE_BLOCK_BYTES)) {
        const block = arena.allocate(last === 0 ? length : LARGE_BLOCK_BYTES);
        if (block === 0) return false;
        const isLarge = arena.sizeOf(block) === LARGE_BLOCK_BYTES;
        if (isLarge) arena.setNext(block, 0);
        if (last === 0) {
          stream.inputFirst = block;
          stream.inputStart = block;
          stream.inputEnd = block;
        } else if (arena.sizeOf(last) === LARGE_BLOCK_BYTES) {
          arena.setNext(last, block);
          stream.inputEnd = block;
        } else {
          // Small blocks cannot be chained: what is in this one moves.
          const unread = stream.inputEnd - stream.inputStart;
          memory.copyWithin(block, stream.inputStart, stream.inputEnd);
          arena.free(last);
          stream.inputFirst = block;
          stream.inputStart = block;
          stream.inputEnd = block + unread;
        }
        stream.inputLast = block;
        last = block;
        room = block + arena.sizeOf(block) - stream.inputEnd;
      }
      const part = Math.min(length, room);
      memory.copyWithin(stream.inputEnd, offset, offset + part);
      stream.inputEnd += part;
      stream.inputBytes += part;
      offset += part;
      length -= part;
    }
    return true;
  }

  /** Frees what was kept, and gives the connection's window back for it. */
  dropKept(stream: Http2Stream): void {
    const { arena } = this.reactor;
    this.consumedByConnection(stream.session!, stream.inputBytes + stream.offeredBytes + stream.frameBytes);
    stream.offeredBytes = 0;
    stream.frameBytes = 0;
    let block = stream.inputFirst;
    while (block !== 0) {
      const next = block === stream.inputLast ? 0 : arena.next(block);
      arena.free(block);
      block = next;
    }
    stream.inputFirst = 0;
    stream.inputLast = 0;
    stream.inputBytes = 0;
  }

  /** Bytes of a stream have been taken: gives both windows back, in halves. */
  consumed(stream: Http2Stream, bytes: number): void {
    const session = stream.session!;
    this.consumedByConnection(session, bytes);
    stream.receiveDueBytes += bytes;
    if (stream.receiveDueBytes * 2 < session.limits.streamWindowBytes) return;
    // Nothing more will come on it.
    if (stream.remoteEnded || stream.reset) return;
    const dueBytes = stream.receiveDueBytes;
    stream.receiveDueBytes = 0;
    stream.receiveWindowBytes += dueBytes;
    this.output.putWindowUpdate(session, stream.id, dueBytes);
  }

  /** The same for bytes that no stream counts: padding, and DATA of streams that are gone. */
  consumedByConnection(session: Http2Session, bytes: number): void {
    session.receiveDueBytes += bytes;
    if (session.receiveDueBytes * 2 < session.limits.connectionWindowBytes) return;
    const dueBytes = session.receiveDueBytes;
    session.receiveDueBytes = 0;
    session.receiveWindowBytes += dueBytes;
    this.output.putWindowUpdate(session, 0, dueBytes);
  }
}
