// What is sent: at once, or with others of its kind, and what a socket does not take of it.
//
//   `send`, `sendPair`    at once
//   `sendDeferred`        at the end of the batch, with those of other connections: one io_uring call for all
//   `sendGathered`        when whoever gathers is done: pieces for one socket in one call
//   `cork`                at once as far as the caller can tell, but the transport puts it together
//   what is not taken     in blocks, a chain for each connection, until `flush` after `writable`
//
// Invariant: bytes of one connection leave in the order in which they were given, whichever way. So every way in asks
// first for what the others still have: gathered, then deferred, then kept.
// Owned by one worker; works for the reactor's connections, knows no protocol.
// Hot module: no allocation, exception, promise, closure or log line.

import { Errno } from '../ffi/errno.ts';
import { BATCH_MAX, BATCH_WORDS, type Kernel, SEGMENTS_MAX } from '../ffi/kernel.ts';
import { type Arena, LARGE_BLOCK_BYTES } from './arena.ts';
import type { Connection } from './connection.ts';
import type { ReceiveArea } from './receive-area.ts';
import { partyOf } from './turns.ts';

/** Most sends put off to the end of a batch. */
const DEFERRED_MAX = 1024;

/** Words of a deferred send: generation, offset, length, and the block to free afterwards or 0. */
const DEFERRED_WORDS = 4;

/** Most bytes that are gathered for one socket: as much as a block holds, in case it takes none. */
const GATHERED_BYTES_MAX = LARGE_BLOCK_BYTES;

export class Output {
  private readonly kernel: Kernel;
  private readonly arena: Arena;
  private readonly memory: Uint8Array;
  private readonly receiveArea: ReceiveArea;
  private readonly segments = new Int32Array(SEGMENTS_MAX * 2);
  /** Deferred sends of this batch, and the next one to do: DEFERRED_WORDS of each. */
  private readonly deferredConnections: Connection[] = [];
  private readonly deferredWords = new Int32Array(DEFERRED_MAX * DEFERRED_WORDS);
  private deferredCount = 0;
  private deferredNext = 0;
  /** Connections of the operations in `kernel.batch`, while it is sent. */
  private readonly sending: Connection[] = [];
  /** Connections whose deferred send has failed, and the next one to be told; with their generations. */
  private readonly failedConnections: Connection[] = [];
  private readonly failedGenerations: number[] = [];
  private failedCount = 0;
  private failedNext = 0;
  /** What is sent with `sendGathered` is gathered, since somebody ends that. */
  private gathering = false;
  /** Connection that something is gathered for, and that: offset and length of each piece. */
  private gathered: Connection | null = null;
  private readonly gatheredSegments = new Int32Array(SEGMENTS_MAX * 2);
  private gatheredCount = 0;
  private gatheredBytes = 0;
  /** Connection whose transport is corked; with its generation. */
  private corked: Connection | null = null;
  private corkedGeneration = 0;

  constructor(kernel: Kernel, arena: Arena, receiveArea: ReceiveArea) {
    this.kernel = kernel;
    this.arena = arena;
    this.memory = kernel.memory;
    this.receiveArea = receiveArea;
  }

  // -- at once ------------------------------------------------------------------

  /**
   * Sends bytes now, or keeps what the socket does not take until it does. `more` says that
   * further bytes follow in this batch. Returns false when the connection has failed (`errno`
   * says how) or no block is left (`errno` is ENOBUFS); the caller must then close it.
   */
  send(connection: Connection, offset: number, length: number, more: boolean): boolean {
    if (this.gathered === connection && !this.flushGathered()) return false;
    if (connection.deferred && !this.flushOwn(connection)) return false;
    if (connection.outputBytes > 0) return this.keep(connection, offset, length);
    const count =
      connection.transport === null
        ? this.kernel.send(connection.fd, offset, length, more)
        : connection.transport.send(connection, offset, length);
    if (count === length) return true;
    return this.sentPart(connection, count, offset, length);
  }

  /** Like `send` for two pieces that lie apart, with one system call. */
  sendPair(connection: Connection, offset1: number, length1: number, offset2: number, length2: number): boolean {
    if (this.gathered === connection && !this.flushGathered()) return false;
    if (connection.deferred && !this.flushOwn(connection)) return false;
    if (connection.outputBytes > 0) {
      return this.keep(connection, offset1, length1) && this.keep(connection, offset2, length2);
    }
    if (connection.transport !== null) {
      return this.send(connection, offset1, length1, true) && this.send(connection, offset2, length2, false);
    }
    const segments = this.segments;
    segments[0] = offset1;
    segments[1] = length1;
    segments[2] = offset2;
    segments[3] = length2;
    const count = this.kernel.writev(connection.fd, segments, 2);
    if (count === length1 + length2) return true;
    if (count > length1) return this.sentPart(connection, count - length1, offset2, length2);
    const kept = this.sentPart(connection, count, offset1, length1) && this.keep(connection, offset2, length2);
    // After an interruption the socket may have room, so that no event would come for the second piece.
    return kept && (count !== -Errno.EINTR || this.flush(connection));
  }

  private sendOnce(connection: Connection, offset: number, length: number): number {
    if (connection.transport !== null) return connection.transport.send(connection, offset, length);
    return this.kernel.send(connection.fd, offset, length, false);
  }

  // -- at the end of the batch --------------------------------------------------

  /** Whether sends wait for `flushDeferred`. */
  get hasDeferred(): boolean {
    return this.deferredCount > 0;
  }

  /**
   * Sends bytes at the end of the batch, all such sends of the batch in a row: the kernel's send path
   * and the JavaScript between two of them then do not push each other out of the processor's caches.
   * The bytes lie in the receive area, or in a block that stays as it is until the end of the batch.
   * A failure is told to `protocol.sendFailed`. When too many wait already, it sends at once and
   * returns what `send` does; else true.
   */
  sendDeferred(connection: Connection, offset: number, length: number): boolean {
    if (connection.deferred || this.deferredCount === DEFERRED_MAX) return this.send(connection, offset, length, false);
    this.defer(connection, offset, length, 0);
    this.receiveArea.keepDeferred(offset + length);
    return true;
  }

  /** Like `sendDeferred` for the first `length` bytes of a block, which is taken over and is freed. */
  sendBlockDeferred(connection: Connection, block: number, length: number): boolean {
    if (connection.deferred || this.deferredCount === DEFERRED_MAX) {
      const sent = this.send(connection, block, length, false);
      this.arena.free(block);
      return sent;
    }
    this.defer(connection, block, length, block);
    return true;
  }

  /**
   * Gives back a block that has just been sent from. If `sendDeferred` has put that off, the block is
   * taken over and freed when the bytes have left.
   */
  freeSent(block: number): void {
    if (this.deferredCount > this.deferredNext) {
      const word = (this.deferredCount - 1) * DEFERRED_WORDS;
      const offset = this.deferredWords[word + 1];
      if (offset >= block && offset < block + this.arena.sizeOf(block) && this.deferredWords[word + 3] === 0) {
        this.deferredWords[word + 3] = block;
        return;
      }
    }
    this.arena.free(block);
  }

  private defer(connection: Connection, offset: number, length: number, block: number): void {
    const index = this.deferredCount++;
    const word = index * DEFERRED_WORDS;
    connection.deferred = true;
    this.deferredConnections[index] = connection;
    this.deferredWords[word] = connection.generation;
    this.deferredWords[word + 1] = offset;
    this.deferredWords[word + 2] = length;
    this.deferredWords[word + 3] = block;
  }

  /**
   * Sends now what one connection has deferred, so that what follows keeps its place. Calls no handler:
   * returns false when the connection has failed (`errno` says how).
   */
  flushOwn(connection: Connection): boolean {
    connection.deferred = false;
    for (let index = this.deferredCount - 1; index >= this.deferredNext; index--) {
      const word = index * DEFERRED_WORDS;
      if (this.deferredConnections[index] !== connection) continue;
      if (this.deferredWords[word] !== connection.generation) continue;
      // Done, even if the connection defers again in this batch.
      this.deferredWords[word] = (connection.generation - 1) | 0;
      const offset = this.deferredWords[word + 1];
      const length = this.deferredWords[word + 2];
      let sent = true;
      if (connection.outputBytes > 0) {
        sent = this.keep(connection, offset, length);
      } else {
        const count = this.sendOnce(connection, offset, length);
        if (count !== length) sent = this.sentPart(connection, count, offset, length);
      }
      this.freeDeferred(word);
      return sent;
    }
    return true;
  }

  private freeDeferred(word: number): void {
    const block = this.deferredWords[word + 3];
    if (block === 0) return;
    this.deferredWords[word + 3] = 0;
    this.arena.free(block);
  }

  /** Does all deferred sends now. A failure handler may defer, send or flush again. */
  flushDeferred(): void {
    const { batch } = this.kernel;
    const words = this.deferredWords;
    while (this.deferredNext < this.deferredCount) {
      const first = this.deferredNext;
      let count = 0;
      let index = first;
      for (; index < this.deferredCount && count < BATCH_MAX; index++) {
        const connection = this.deferredConnections[index];
        const word = index * DEFERRED_WORDS;
        if (connection.generation !== words[word] || !connection.deferred) {
          this.freeDeferred(word);
          continue;
        }
        connection.deferred = false;
        if (connection.outputBytes > 0) {
          if (!this.keep(connection, words[word + 1], words[word + 2])) this.noteFailed(connection);
          this.freeDeferred(word);
          continue;
        }
        if (connection.transport !== null) {
          const sent = connection.transport.send(connection, words[word + 1], words[word + 2]);
          if (sent !== words[word + 2] && !this.sentPart(connection, sent, words[word + 1], words[word + 2])) {
            this.noteFailed(connection);
          }
          this.freeDeferred(word);
          continue;
        }
        const operation = count++ * BATCH_WORDS;
        batch[operation] = connection.fd;
        batch[operation + 1] = words[word + 1];
        batch[operation + 2] = words[word + 2];
        this.sending[count - 1] = connection;
      }
      this.deferredNext = index;
      if (count > 0) this.kernel.sendBatch(count);
      // No handler runs before all results are known: one may send more on a connection further down.
      for (let i = 0; i < count; i++) {
        const operation = i * BATCH_WORDS;
        const result = batch[operation + 3];
        if (result === batch[operation + 2]) continue;
        const connection = this.sending[i];
        if (!this.sentPart(connection, result, batch[operation + 1], batch[operation + 2])) this.noteFailed(connection);
      }
      for (let i = first; i < index; i++) this.freeDeferred(i * DEFERRED_WORDS);
      if (this.failedCount > 0) this.tellFailed();
    }
    this.deferredNext = 0;
    this.deferredCount = 0;
    this.receiveArea.releaseDeferred();
  }

  // -- failures -----------------------------------------------------------------

  /** Whether a failure waits for `tellFailed`. */
  get hasFailed(): boolean {
    return this.failedCount > 0;
  }

  /** Has a connection told that it has failed, when no other handler is under way. */
  private noteFailed(connection: Connection): void {
    this.failedConnections[this.failedCount] = connection;
    this.failedGenerations[this.failedCount++] = connection.generation;
  }

  /** Tells the connections of which a put-off send has failed. */
  tellFailed(): void {
    while (this.failedNext < this.failedCount) {
      const index = this.failedNext++;
      const connection = this.failedConnections[index];
      if (connection.generation === this.failedGenerations[index]) connection.protocol!.sendFailed(connection);
    }
    this.failedNext = 0;
    this.failedCount = 0;
  }

  // -- gathered -----------------------------------------------------------------

  /**
   * Until `endGathering` is given the result, what is sent with `sendGathered` stays where it is. To be called around
   * handlers that are given one piece of a receive after the other.
   */
  beginGathering(): boolean {
    const before = this.gathering;
    this.gathering = true;
    return before;
  }

  /** Sends what has been gathered; `before` is what `beginGathering` returned. Failures are told at the end of the batch. */
  endGathering(before: boolean): void {
    this.gathering = before;
    if (this.gathered === null) return;
    const connection = this.gathered;
    if (!this.flushGathered()) this.noteFailed(connection);
  }

  /**
   * Like `send`, but pieces that follow each other on one socket leave with one system call where somebody gathers
   * them. The bytes stay as they are until then. A failure may be told to `protocol.sendFailed` instead.
   */
  sendGathered(connection: Connection, offset: number, length: number): boolean {
    if (!this.gathering || connection.transport !== null || connection.outputBytes > 0 || connection.deferred) {
      return this.send(connection, offset, length, false);
    }
    const before = this.gathered;
    if (before !== connection) {
      if (before !== null && !this.flushGathered()) this.noteFailed(before);
      this.gathered = connection;
    } else if (this.gatheredCount === SEGMENTS_MAX || this.gatheredBytes + length > GATHERED_BYTES_MAX) {
      if (!this.flushGathered()) return false;
      if (connection.outputBytes > 0) return this.keep(connection, offset, length);
      this.gathered = connection;
    }
    const word = this.gatheredCount++ * 2;
    this.gatheredSegments[word] = offset;
    this.gatheredSegments[word + 1] = length;
    this.gatheredBytes += length;
    return true;
  }

  /** Sends now what is gathered for a connection, so that its unsent output is known. False: it has failed. */
  flushGather(connection: Connection): boolean {
    return this.gathered !== connection || this.flushGathered();
  }

  private flushGathered(): boolean {
    const connection = this.gathered!;
    const { gatheredSegments: segments, gatheredCount: count, gatheredBytes: bytes, kernel } = this;
    this.gathered = null;
    this.gatheredCount = 0;
    this.gatheredBytes = 0;
    const sent =
      count === 1
        ? kernel.send(connection.fd, segments[0], segments[1], false)
        : kernel.writev(connection.fd, segments, count);
    if (sent === bytes) return true;
    if (sent < 0 && sent !== -Errno.EAGAIN && sent !== -Errno.EINTR) {
      connection.errno = -sent;
      return false;
    }
    let before = Math.max(sent, 0);
    for (let i = 0; i < count; i++) {
      const length = segments[i * 2 + 1];
      const skipped = Math.min(before, length);
      before -= skipped;
      if (skipped < length && !this.keep(connection, segments[i * 2] + skipped, length - skipped)) return false;
    }
    // After an interruption the socket may have room, so that no event would come.
    return sent !== -Errno.EINTR || this.flush(connection);
  }

  // -- corked -------------------------------------------------------------------

  /**
   * What is sent on a connection from now on may wait for `uncork`, if its transport can do that: one system call
   * and few packets then serve for all of it. Whoever corks a connection uncorks it at the end of the batch
   * (`atBatchEnd`). Only one is corked at a time: another one that is gets uncorked.
   */
  cork(connection: Connection): void {
    const before = this.corked;
    if (before === connection && this.corkedGeneration === connection.generation) return;
    const { transport } = connection;
    if (transport === null || transport.cork === undefined || connection.outputBytes > 0) return;
    if (before !== null && before.generation === this.corkedGeneration && !this.uncork(before)) this.noteFailed(before);
    if (!transport.cork(connection)) return;
    this.corked = connection;
    this.corkedGeneration = connection.generation;
  }

  /** Sends what has waited, if the connection is corked. Returns false when it has failed, as `send` does. */
  uncork(connection: Connection): boolean {
    if (this.corked !== connection) return true;
    this.corked = null;
    if (this.corkedGeneration !== connection.generation) return true;
    const status = connection.transport!.uncork!(connection);
    if (status === 0) return true;
    // The byte stands for what the transport has not got rid of; its value is never looked at.
    return this.sentPart(connection, status, this.arena.receiveOffset, 1);
  }

  /** Whether `cork` is in force for a connection. */
  isCorked(connection: Connection): boolean {
    return this.corked === connection && this.corkedGeneration === connection.generation;
  }

  // -- what a socket has not taken ----------------------------------------------

  private sentPart(connection: Connection, count: number, offset: number, length: number): boolean {
    if (count >= 0) return this.keep(connection, offset + count, length - count);
    if (count === -Errno.EAGAIN) return this.keep(connection, offset, length);
    if (count === -Errno.EINTR) return this.keep(connection, offset, length) && this.flush(connection);
    connection.errno = -count;
    return false;
  }

  private keep(connection: Connection, offset: number, length: number): boolean {
    while (length > 0) {
      let last = connection.outputLast;
      if (last === 0 || connection.outputEnd === last + LARGE_BLOCK_BYTES) {
        // Also at the end of a batch, when it is nobody's turn.
        if (this.arena.keepsOwners) this.arena.party = partyOf(connection) ?? this.arena.party;
        const block = this.arena.allocate(LARGE_BLOCK_BYTES);
        if (block === 0) {
          connection.errno = Errno.ENOBUFS;
          return false;
        }
        this.arena.setNext(block, 0);
        if (last === 0) {
          connection.outputFirst = block;
          connection.outputStart = block;
        } else {
          this.arena.setNext(last, block);
        }
        connection.outputLast = block;
        connection.outputEnd = block;
        last = block;
      }
      const part = Math.min(length, last + LARGE_BLOCK_BYTES - connection.outputEnd);
      this.memory.copyWithin(connection.outputEnd, offset, offset + part);
      connection.outputEnd += part;
      connection.outputBytes += part;
      offset += part;
      length -= part;
    }
    return true;
  }

  /**
   * Sends kept output as far as the socket takes it. Returns false when the connection has failed.
   * `outputBytes` is 0 afterwards if everything has gone.
   */
  flush(connection: Connection): boolean {
    while (connection.outputBytes > 0) {
      const count = this.writeChain(connection);
      if (count === -Errno.EAGAIN) return true;
      if (count === -Errno.EINTR) continue;
      if (count < 0) {
        connection.errno = -count;
        return false;
      }
      this.drop(connection, count);
    }
    return true;
  }

  private writeChain(connection: Connection): number {
    const first = connection.outputFirst;
    if (first === connection.outputLast) {
      return this.sendOnce(connection, connection.outputStart, connection.outputBytes);
    }
    if (connection.transport !== null) {
      const length = first + LARGE_BLOCK_BYTES - connection.outputStart;
      return connection.transport.send(connection, connection.outputStart, length);
    }
    const segments = this.segments;
    let count = 0;
    let start = connection.outputStart;
    for (let block = first; block !== 0 && count < SEGMENTS_MAX; block = this.arena.next(block)) {
      const end = block === connection.outputLast ? connection.outputEnd : block + LARGE_BLOCK_BYTES;
      segments[count * 2] = start;
      segments[count * 2 + 1] = end - start;
      count++;
      const next = this.arena.next(block);
      start = next;
    }
    return this.kernel.writev(connection.fd, segments, count);
  }

  private drop(connection: Connection, count: number): void {
    connection.outputBytes -= count;
    while (count > 0) {
      const block = connection.outputFirst;
      const end = block === connection.outputLast ? connection.outputEnd : block + LARGE_BLOCK_BYTES;
      const part = Math.min(count, end - connection.outputStart);
      connection.outputStart += part;
      count -= part;
      if (connection.outputStart < end) return;
      const next = this.arena.next(block);
      this.arena.free(block);
      connection.outputFirst = next;
      connection.outputStart = next;
      if (next === 0) connection.outputLast = 0;
    }
  }

  /** Drops unsent output. */
  free(connection: Connection): void {
    let block = connection.outputFirst;
    while (block !== 0) {
      const next = this.arena.next(block);
      this.arena.free(block);
      block = next;
    }
    connection.outputFirst = 0;
    connection.outputLast = 0;
    connection.outputBytes = 0;
  }
}
