// What is received: input in the receive area while it is handled, in blocks where it has to wait.
//
//   epoll says ready --> received, alone or ahead with others --> `fill` --> used up, or what is left over is kept
//
// Bytes lie in the shared receive area (receive-area.ts) unless the connection keeps some already: then they are
// received behind those, so that a handler sees its unread input in one piece. What is small is received ahead, for a
// whole group of events with one system call; handlers notice nothing, since it waits for their `fill`.
// Invariant: whatever `fill` gives has HEADROOM_BYTES in front of it and TAILROOM_BYTES behind, and nothing of it is
// lost or seen twice: it is either used or given to `keep`.
// Owned by one worker; works for the reactor's connections, knows no protocol.
// Hot module: no allocation, exception, promise, closure or log line.

import { Errno } from '../ffi/errno.ts';
import { BATCH_MAX, BATCH_WORDS, Epoll, type Kernel } from '../ffi/kernel.ts';
import {
  AHEAD_BYTES_MAX,
  AHEAD_STRIDE_BYTES,
  type Arena,
  HEADROOM_BYTES,
  LARGE_BLOCK_BYTES,
  RECEIVE_BYTES_MAX,
  SMALL_BLOCK_BYTES,
  TAILROOM_BYTES,
} from './arena.ts';
import type { Connection } from './connection.ts';
import type { Output } from './output.ts';
import type { ReadyQueue } from './ready-queue.ts';
import type { ReceiveArea } from './receive-area.ts';
import { partyOf } from './turns.ts';

/** A receive this short makes its connection one whose next message is received ahead. */
const SMALL_INPUT_BYTES = 1024;

/** Results of a receive ahead besides counts and negative error numbers: end of the stream, no block to keep it. */
const AHEAD_END = -0x10000;
const AHEAD_NO_BUFFER = -0x10001;

/** Why a connection that was ready is not: nothing had come. */
const NOTHING_AHEAD = -Errno.EAGAIN;

/** Result of `fill` when there is nothing to read now. */
export const FILL_AGAIN = -1;
/** Result of `fill` when the peer has finished sending, and all it sent has been taken. */
export const FILL_END = 0;
/** Result of `fill` after a receive error; `connection.errno` says which. */
export const FILL_ERROR = -2;
/** Result of `fill` when no block is left to hold what has to be kept. */
export const FILL_NO_BUFFER = -3;
/** Result of `fill` when the unread input already fills a large block. */
export const FILL_FULL = -4;

export class Input {
  /** Bytes available after `fill`: where, and how many. */
  offset = 0;
  length = 0;

  private readonly kernel: Kernel;
  private readonly arena: Arena;
  private readonly memory: Uint8Array;
  private readonly receiveArea: ReceiveArea;
  private readonly output: Output;
  private readonly ready: ReadyQueue;
  /** By slot. */
  private readonly connections: readonly (Connection | undefined)[];
  /** Connections of the present group that something was received for ahead of their turn. */
  private readonly aheadConnections: Connection[] = [];
  private readonly aheadGenerations = new Int32Array(BATCH_MAX);
  private aheadCount = 0;

  /** `connections` are those of the reactor, by slot; those that are to be read again go to `ready`. */
  constructor(
    kernel: Kernel,
    arena: Arena,
    receiveArea: ReceiveArea,
    output: Output,
    ready: ReadyQueue,
    connections: readonly (Connection | undefined)[],
  ) {
    this.kernel = kernel;
    this.arena = arena;
    this.memory = kernel.memory;
    this.receiveArea = receiveArea;
    this.output = output;
    this.ready = ready;
    this.connections = connections;
  }

  /**
   * Makes unread bytes of a connection available at `offset` / `length`: what it kept
   * plus what one receive brings. Without kept bytes they lie in the shared receive area and are
   * valid only until the next `fill`. Returns the number of available bytes if any are new,
   * or one of the FILL_ values. `bytesMax` (up to BULK_RECEIVE_BYTES_MAX) may be larger than the
   * default only when at most RECEIVE_BYTES_MAX of them will have to be kept as input.
   */
  fill(connection: Connection, bytesMax = RECEIVE_BYTES_MAX): number {
    if (connection.ahead !== 0) return this.takeAhead(connection);
    if (!this.receiveArea.hasRoom(bytesMax)) {
      const { generation } = connection;
      this.output.flushDeferred();
      // A failure handler may have closed this very connection.
      if (connection.generation !== generation) return FILL_AGAIN;
    }
    let offset = this.receiveArea.nextOffset;
    let capacity = bytesMax;
    if (connection.inputLength > 0) {
      const status = this.makeRoom(connection);
      if (status !== 0) return status;
      offset = connection.inputOffset + connection.inputLength;
      capacity = connection.inputBlock + this.arena.sizeOf(connection.inputBlock) - TAILROOM_BYTES - offset;
    }
    const { transport } = connection;
    const count =
      transport === null
        ? this.kernel.recv(connection.fd, offset, capacity)
        : transport.recv(connection, offset, capacity);
    if (count > 0) {
      if (transport === null) {
        // A short read has emptied the socket, unless the end of the stream is waiting behind it.
        if (count < capacity && !connection.readHangup) connection.readReady = false;
        connection.smallInput = count <= SMALL_INPUT_BYTES;
      } else {
        connection.readReady = transport.hasMore(connection);
      }
      if (connection.inputLength > 0) {
        connection.inputLength += count;
        this.offset = connection.inputOffset;
        this.length = connection.inputLength;
      } else {
        this.offset = offset;
        this.length = count;
      }
      return this.length;
    }
    if (count === -Errno.EAGAIN) {
      connection.readReady = false;
      return FILL_AGAIN;
    }
    if (count === -Errno.EINTR) {
      this.ready.add(connection);
      return FILL_AGAIN;
    }
    connection.readReady = false;
    connection.readEnded = true;
    if (count === 0) return FILL_END;
    connection.errno = -count;
    return FILL_ERROR;
  }

  /**
   * Whether nothing has come on a connection that nothing is expected from: neither bytes nor its end.
   * Takes them if there are any, so the connection is of no use when the answer is no.
   */
  isSilent(connection: Connection): boolean {
    if (connection.ahead !== 0 && connection.ahead !== NOTHING_AHEAD) return false;
    const { scratchOffset } = this.arena;
    if (connection.transport !== null) return connection.transport.recv(connection, scratchOffset, 1) === -Errno.EAGAIN;
    return this.kernel.recv(connection.fd, scratchOffset, 1) === -Errno.EAGAIN;
  }

  // -- kept input --------------------------------------------------------------

  /**
   * Keeps `length` bytes at `offset` as the connection's unread input; they lie either in the
   * receive area or at the end of what it kept already. Returns false when no block is left.
   */
  keep(connection: Connection, offset: number, length: number): boolean {
    if (length === 0) {
      this.free(connection);
      return true;
    }
    if (connection.inputBlock !== 0) {
      connection.inputOffset = offset;
      connection.inputLength = length;
      return true;
    }
    const block = this.arena.allocate(length + HEADROOM_BYTES + TAILROOM_BYTES);
    if (block === 0) return false;
    this.memory.copyWithin(block + HEADROOM_BYTES, offset, offset + length);
    connection.inputBlock = block;
    connection.inputOffset = block + HEADROOM_BYTES;
    connection.inputLength = length;
    return true;
  }

  /** Drops unread input. */
  free(connection: Connection): void {
    if (connection.inputBlock === 0) return;
    this.arena.free(connection.inputBlock);
    connection.inputBlock = 0;
    connection.inputOffset = 0;
    connection.inputLength = 0;
    connection.inputScanned = 0;
  }

  /** Moves kept input to the start of its block, or into a larger one, so that a receive has room. */
  private makeRoom(connection: Connection): number {
    const block = connection.inputBlock;
    const start = block + HEADROOM_BYTES;
    const roomBytes = this.arena.sizeOf(block) - HEADROOM_BYTES - TAILROOM_BYTES - connection.inputLength;
    if (roomBytes >= this.arena.sizeOf(block) >> 2) {
      if (connection.inputOffset !== start) {
        this.memory.copyWithin(start, connection.inputOffset, connection.inputOffset + connection.inputLength);
        connection.inputOffset = start;
      }
      return 0;
    }
    if (this.arena.sizeOf(block) === LARGE_BLOCK_BYTES) {
      if (roomBytes <= 0) return FILL_FULL;
      if (connection.inputOffset !== start) {
        this.memory.copyWithin(start, connection.inputOffset, connection.inputOffset + connection.inputLength);
        connection.inputOffset = start;
      }
      return 0;
    }
    const larger = this.arena.allocate(SMALL_BLOCK_BYTES + 1);
    if (larger === 0) return FILL_NO_BUFFER;
    this.memory.copyWithin(
      larger + HEADROOM_BYTES,
      connection.inputOffset,
      connection.inputOffset + connection.inputLength,
    );
    this.arena.free(block);
    connection.inputBlock = larger;
    connection.inputOffset = larger + HEADROOM_BYTES;
    return 0;
  }

  // -- received ahead -----------------------------------------------------------

  /**
   * Receives small messages of a group of events with one system call, before any of them is handled.
   * Handlers notice nothing: the bytes wait for their `fill`. Which connections get it is learnt from
   * what they received last, since bytes beyond AHEAD_BYTES_MAX would take a second receive.
   */
  receiveAhead(first: number, end: number): void {
    const { kernel, connections } = this;
    const { batch, events, eventStride, eventDataIndex } = kernel;
    let offset = this.receiveArea.nextOffset;
    let count = 0;
    for (let i = first; i < end; i++) {
      const word = i * eventStride;
      const bits = events[word];
      if ((bits & (Epoll.IN | Epoll.RDHUP | Epoll.HUP | Epoll.ERR)) !== Epoll.IN) continue;
      const connection = connections[events[word + eventDataIndex]];
      if (connection === undefined || !connection.smallInput) continue;
      if (connection.generation !== events[word + eventDataIndex + 1]) continue;
      if (connection.inputLength > 0 || connection.ahead !== 0) continue;
      const operation = count * BATCH_WORDS;
      batch[operation] = connection.fd;
      batch[operation + 1] = offset;
      batch[operation + 2] = AHEAD_BYTES_MAX;
      this.aheadConnections[count] = connection;
      this.aheadGenerations[count] = connection.generation;
      offset += AHEAD_STRIDE_BYTES;
      count++;
    }
    if (count < 2) return;
    kernel.recvBatch(count);
    this.aheadCount = count;
    this.receiveArea.keepAhead(offset);
    for (let i = 0; i < count; i++) {
      const connection = this.aheadConnections[i];
      const result = batch[i * BATCH_WORDS + 3];
      connection.ahead = result === 0 ? AHEAD_END : result;
      connection.aheadOffset = batch[i * BATCH_WORDS + 1];
    }
  }

  /** What was received ahead, as `fill` gives it. */
  private takeAhead(connection: Connection): number {
    const result = connection.ahead;
    connection.ahead = 0;
    if (result > 0) {
      // A message that fills the room may go on behind it, and so may one that has waited for its turn.
      if (connection.transport !== null) connection.readReady = connection.transport.hasMore(connection);
      else if (result === AHEAD_BYTES_MAX) connection.smallInput = false;
      else if (!connection.readHangup && connection.aheadBlock === 0) connection.readReady = false;
      this.offset = connection.aheadOffset;
      this.length = result;
      if (connection.aheadBlock !== 0) {
        // Handlers rewrite what they get in place, and need the room around it.
        if (!this.receiveArea.hasRoom(RECEIVE_BYTES_MAX)) {
          const { generation } = connection;
          this.output.flushDeferred();
          if (connection.generation !== generation) return FILL_AGAIN;
        }
        const offset = this.receiveArea.nextOffset;
        this.memory.copyWithin(offset, connection.aheadOffset, connection.aheadOffset + result);
        this.offset = offset;
        this.freeAhead(connection);
      }
      return result;
    }
    if (result === AHEAD_NO_BUFFER) return FILL_NO_BUFFER;
    if (result === -Errno.EINTR) {
      this.ready.add(connection);
      return FILL_AGAIN;
    }
    connection.readReady = false;
    if (result === NOTHING_AHEAD) return FILL_AGAIN;
    connection.readEnded = true;
    if (result === AHEAD_END) return FILL_END;
    connection.errno = -result;
    return FILL_ERROR;
  }

  /** Whether something received ahead waits for `endAhead`. */
  get hasAhead(): boolean {
    return this.aheadCount > 0;
  }

  /** After the group: what a paused connection has not taken moves out of the receive area. */
  endAhead(): void {
    for (let i = 0; i < this.aheadCount; i++) {
      const connection = this.aheadConnections[i];
      if (connection.ahead === 0 || connection.generation !== this.aheadGenerations[i]) continue;
      if (connection.ahead === NOTHING_AHEAD) {
        connection.ahead = 0;
        connection.readReady = false;
      } else if (connection.ahead > 0) {
        if (this.arena.keepsOwners) this.arena.party = partyOf(connection);
        const block = this.arena.allocate(connection.ahead);
        this.arena.party = null;
        if (block === 0) {
          connection.ahead = AHEAD_NO_BUFFER;
        } else {
          this.memory.copyWithin(block, connection.aheadOffset, connection.aheadOffset + connection.ahead);
          connection.aheadBlock = block;
          connection.aheadOffset = block;
        }
      }
    }
    this.aheadCount = 0;
    this.receiveArea.releaseAhead();
  }

  /** Drops what was received ahead. */
  freeAhead(connection: Connection): void {
    connection.ahead = 0;
    if (connection.aheadBlock === 0) return;
    this.arena.free(connection.aheadBlock);
    connection.aheadBlock = 0;
  }
}
