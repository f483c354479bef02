// The body of a request, kept in arena blocks up to a limit: to be sent again, or to somebody else as well.
//
//   taken (wanted by one or more) --> filling --> whole
//                                        \--> overflowed: longer than the limit, or no block was left
//
// Holds payload as it goes upstream, without chunk framing, after translations (gRPC-Web). Trailers are not
// kept: a body that ends with some overflows. An overflow frees the blocks and costs the request nothing but
// what the buffer was wanted for.
// Every piece has room around it for a chunk header and what ends a chunk, so that it can be framed in place.
// A buffer is one exchange's; whoever needs it for longer holds it (`hold`, `release`).
// Owned by one worker. Hot module: no allocation, exception, promise, closure or log line per request.

import type { HeaderTable } from '../http1/header-table.ts';
import { type Arena, LARGE_BLOCK_BYTES, SMALL_BLOCK_BYTES } from '../io/arena.ts';

/** Largest limit of a buffer, bytes. */
export const REQUEST_BUFFER_BYTES_MAX: number = 1024 * 1024;

/** Room before the payload of a block: a chunk header (CHUNK_HEADER_BYTES_MAX). */
const ROOM_BEFORE = 16;
/** Room behind it: the end of a chunk, and the last chunk. */
const ROOM_BEHIND = 16;
const SMALL_PAYLOAD_BYTES = SMALL_BLOCK_BYTES - ROOM_BEFORE - ROOM_BEHIND;
const LARGE_PAYLOAD_BYTES = LARGE_BLOCK_BYTES - ROOM_BEFORE - ROOM_BEHIND;

/** With more of the arena in use than this, no further body is kept. */
const USED_SHARE_MAX = 0.75;

/** Blocks of the largest buffer: a small one may come first. */
const PIECES_MAX = Math.ceil(REQUEST_BUFFER_BYTES_MAX / LARGE_PAYLOAD_BYTES) + 1;

/** Payload bytes of one request body. Made by RequestBuffers only. */
export class RequestBuffer {
  /** Most bytes that are kept. */
  bytesMax = 0;
  /** Bytes kept; 0 after an overflow. */
  length = 0;
  /** Not kept any more, and never whole. */
  overflowed = false;
  /** The whole body is here. */
  whole = false;
  /** Who needs it: the exchange, and others. */
  holders = 0;
  /** Pieces: block after block. */
  pieceCount = 0;
  private readonly blocks = new Int32Array(PIECES_MAX);
  private readonly lengths = new Int32Array(PIECES_MAX);
  private readonly arena: Arena;

  constructor(arena: Arena) {
    this.arena = arena;
  }

  /** Where piece `index` (below `pieceCount`) lies. */
  pieceOffset(index: number): number {
    return this.blocks[index] + ROOM_BEFORE;
  }

  /** Bytes of piece `index`; it may grow while the body is not whole. */
  pieceLength(index: number): number {
    return this.lengths[index];
  }

  /**
   * Keeps a copy of a payload (`length` may be 0); `end`: the body ends with it, and with these trailers (null: none).
   * To be called before the payload is framed in place. Does nothing after an overflow.
   */
  append(offset: number, length: number, end: boolean, trailers: HeaderTable | null): void {
    if (this.overflowed) return;
    if (this.length + length > this.bytesMax || trailers !== null) {
      this.overflow();
      return;
    }
    const { arena, blocks, lengths } = this;
    const { memory } = arena;
    let from = offset;
    let left = length;
    while (left > 0) {
      let piece = this.pieceCount - 1;
      let room = piece < 0 ? 0 : arena.sizeOf(blocks[piece]) - ROOM_BEFORE - ROOM_BEHIND - lengths[piece];
      if (room === 0) {
        // Most bodies are small; and what is kept must leave room for requests as such.
        const small = piece < 0 && left <= SMALL_PAYLOAD_BYTES;
        const scarce = arena.usedBytes > arena.capacityBytes * USED_SHARE_MAX || piece + 1 === PIECES_MAX;
        const block = scarce ? 0 : arena.allocate(small ? SMALL_BLOCK_BYTES : LARGE_BLOCK_BYTES);
        if (block === 0) {
          this.overflow();
          return;
        }
        piece = this.pieceCount++;
        blocks[piece] = block;
        lengths[piece] = 0;
        room = arena.sizeOf(block) - ROOM_BEFORE - ROOM_BEHIND;
      }
      const count = Math.min(left, room);
      const to = blocks[piece] + ROOM_BEFORE + lengths[piece];
      memory.copyWithin(to, from, from + count);
      lengths[piece] += count;
      this.length += count;
      from += count;
      left -= count;
    }
    if (end) this.whole = true;
  }

  /** Gives up keeping the body. */
  overflow(): void {
    this.overflowed = true;
    this.freeBlocks();
  }

  /** Frees all blocks. */
  freeBlocks(): void {
    for (let piece = 0; piece < this.pieceCount; piece++) this.arena.free(this.blocks[piece]);
    this.pieceCount = 0;
    this.length = 0;
    this.whole = false;
  }
}

/** The buffers of one worker: taken, held and released, never garbage. */
export class RequestBuffers {
  private readonly arena: Arena;
  private readonly free: RequestBuffer[] = [];

  constructor(arena: Arena) {
    this.arena = arena;
  }

  /**
   * An empty buffer for a body, of which at most `bytesMax` (up to REQUEST_BUFFER_BYTES_MAX) are kept; `current` if
   * the exchange has one, with the larger limit of the two. Before the first byte of the body.
   */
  want(current: RequestBuffer | null, bytesMax: number): RequestBuffer {
    if (current !== null) {
      if (bytesMax > current.bytesMax) current.bytesMax = bytesMax;
      return current;
    }
    const buffer = this.free.pop() ?? new RequestBuffer(this.arena);
    buffer.bytesMax = bytesMax;
    buffer.length = 0;
    buffer.overflowed = false;
    buffer.whole = false;
    buffer.holders = 1;
    return buffer;
  }

  /** One more needs the buffer: it stays until that one, too, has released it. */
  hold(buffer: RequestBuffer): void {
    buffer.holders++;
  }

  /** One of those who needed the buffer does so no more; with the last one its blocks are freed. */
  release(buffer: RequestBuffer): void {
    if (--buffer.holders > 0) return;
    buffer.freeBlocks();
    this.free.push(buffer);
  }
}
