// The arena: all buffers of one worker, cut from the kernel's one block of memory.
//
//   reserved | receive area | scratch area | edit area | small blocks ... | large blocks ...
//
// Bytes are received into the one receive area, which stays in the CPU cache, and are mostly sent
// from there. Blocks hold only what must outlive an event: a request head until its response has
// come, a partial head, bytes that a slow peer would not take yet. An idle connection owns none.
// Blocks are named by their offset; 0 is "no block". Freed blocks are reused last-in-first-out, so
// that few pages are ever touched; large ones beyond a reserve go back to the system.
// Owned by one worker. Hot module: no allocation.

import { BATCH_MAX, KERNEL_RESERVED_BYTES, type Kernel } from '../ffi/kernel.ts';
import type { Party } from './turns.ts';

/** Small blocks keep request heads (a browser's is 350 to 1,500 bytes). */
export const SMALL_BLOCK_BYTES = 2 * 1024;

/** Large blocks keep large heads and unsent body bytes: one receive fits into one block. */
export const LARGE_BLOCK_BYTES = 64 * 1024;

/** Free room kept before received bytes, so that a rewritten head or chunk header fits in front of a body. */
export const HEADROOM_BYTES = 1024;

/** Room after received bytes for what ends a chunk. */
export const TAILROOM_BYTES = 64;

/** Most bytes one receive takes where what is left over must fit into one large block. */
export const RECEIVE_BYTES_MAX = LARGE_BLOCK_BYTES - HEADROOM_BYTES - TAILROOM_BYTES;

/**
 * Most bytes one receive takes in the middle of a large body, and so most bytes that one stream
 * holds for a slow reader. Fewer, larger receives cost less CPU per byte.
 */
export const BULK_RECEIVE_BYTES_MAX = 128 * 1024 - HEADROOM_BYTES - TAILROOM_BYTES;

/** Most bytes that are received ahead for one connection (see Input.receiveAhead). */
export const AHEAD_BYTES_MAX = 2 * 1024 - TAILROOM_BYTES;

/** Distance between messages received ahead: each has room around it. */
export const AHEAD_STRIDE_BYTES = HEADROOM_BYTES + AHEAD_BYTES_MAX + TAILROOM_BYTES;

/**
 * The receive area. Messages received ahead, and those whose sending is put off to the end of the batch,
 * stay in it while further ones are received behind them; a whole batch ahead leaves room for the
 * largest receive.
 */
export const RECEIVE_AREA_BYTES = BATCH_MAX * AHEAD_STRIDE_BYTES + 192 * 1024;

/** Scratch for building generated responses and rewritten heads. */
export const SCRATCH_BYTES = LARGE_BLOCK_BYTES + SMALL_BLOCK_BYTES;

/** Most bytes of field lines that are added to one response (see core/exchange/response-lines.ts). */
export const RESPONSE_LINES_BYTES_MAX = 16 * 1024;

/**
 * A second scratch, for what is put together while a message lies in the first: request heads that filters
 * change, and field lines that are added to responses.
 */
export const EDIT_BYTES = LARGE_BLOCK_BYTES + RESPONSE_LINES_BYTES_MAX;

const BLOCKS_OFFSET = KERNEL_RESERVED_BYTES + RECEIVE_AREA_BYTES + SCRATCH_BYTES + EDIT_BYTES;

/** Free large blocks that stay resident; further ones are given back when freed. */
const RESIDENT_FREE_LARGE_BLOCKS = 64;

/** Share of the buffer memory that is cut into small blocks. */
const SMALL_SHARE = 1 / 8;

/** Least buffer memory a worker can run with. */
export const BUFFER_BYTES_MIN = 1024 * 1024;

/** Size of the kernel memory for a worker that may use `bufferBytes` of blocks. */
export function kernelMemoryBytes(bufferBytes: number): number {
  return BLOCKS_OFFSET + Math.max(bufferBytes, BUFFER_BYTES_MIN);
}

export class Arena {
  readonly memory: Uint8Array;
  /** Where bytes are received when the connection holds none yet. */
  readonly receiveOffset = KERNEL_RESERVED_BYTES + HEADROOM_BYTES;
  /** SCRATCH_BYTES for building messages; its content lasts until the next event. */
  readonly scratchOffset = KERNEL_RESERVED_BYTES + RECEIVE_AREA_BYTES;
  /** EDIT_BYTES; the content is of use only until the head that it is for has been written. */
  readonly editOffset = KERNEL_RESERVED_BYTES + RECEIVE_AREA_BYTES + SCRATCH_BYTES;
  /** Who takes blocks now, where owners are kept (`keepOwners`); null: nobody in particular. */
  party: Party | null = null;

  private readonly kernel: Kernel;
  private readonly largeOffset: number;
  private readonly smallFree: Int32Array;
  private readonly largeFree: Int32Array;
  /** Next block of a chain, by large block index. */
  private readonly largeNext: Int32Array;
  private smallFreeCount = 0;
  private largeFreeCount = 0;
  private smallTouched = 0;
  private largeTouched = 0;
  private smallUsed = 0;
  private largeUsed = 0;
  /** Who has taken each block, small ones first; null: nobody asks. */
  private owners: (Party | null)[] | null = null;

  constructor(kernel: Kernel) {
    this.kernel = kernel;
    this.memory = kernel.memory;
    const bytes = kernel.memory.length - BLOCKS_OFFSET;
    if (bytes < BUFFER_BYTES_MIN) throw new RangeError(`an arena needs at least ${BUFFER_BYTES_MIN} bytes of blocks`);
    const smallCount = Math.floor((bytes * SMALL_SHARE) / SMALL_BLOCK_BYTES);
    this.largeOffset = BLOCKS_OFFSET + smallCount * SMALL_BLOCK_BYTES;
    const largeCount = Math.floor((kernel.memory.length - this.largeOffset) / LARGE_BLOCK_BYTES);
    this.smallFree = new Int32Array(smallCount);
    this.largeFree = new Int32Array(largeCount);
    this.largeNext = new Int32Array(largeCount);
  }

  /** Blocks in use, small and large. */
  get used(): number {
    return this.smallUsed + this.largeUsed;
  }

  /** Bytes of blocks in use. */
  get usedBytes(): number {
    return this.smallUsed * SMALL_BLOCK_BYTES + this.largeUsed * LARGE_BLOCK_BYTES;
  }

  /** Bytes of all blocks. */
  get capacityBytes(): number {
    return this.smallFree.length * SMALL_BLOCK_BYTES + this.largeFree.length * LARGE_BLOCK_BYTES;
  }

  /** From now on the bytes of each block count for whoever is `party` when it is taken. */
  keepOwners(): void {
    this.owners ??= new Array(this.smallFree.length + this.largeFree.length).fill(null);
  }

  /** Whether `party` is asked when blocks are taken. */
  get keepsOwners(): boolean {
    return this.owners !== null;
  }

  /** Takes a block of at least `bytes` (at most LARGE_BLOCK_BYTES); 0 when none is left. */
  allocate(bytes: number): number {
    const block = this.take(bytes);
    if (this.owners !== null && block !== 0 && this.party !== null) {
      this.owners[this.indexOf(block)] = this.party;
      this.party.words[this.party.bufferWord]! += this.sizeOf(block);
    }
    return block;
  }

  private take(bytes: number): number {
    if (bytes <= SMALL_BLOCK_BYTES) {
      if (this.smallFreeCount > 0) {
        this.smallUsed++;
        return this.smallFree[--this.smallFreeCount];
      }
      if (this.smallTouched < this.smallFree.length) {
        this.smallUsed++;
        return BLOCKS_OFFSET + this.smallTouched++ * SMALL_BLOCK_BYTES;
      }
    }
    if (this.largeFreeCount > 0) {
      this.largeUsed++;
      return this.largeFree[--this.largeFreeCount];
    }
    if (this.largeTouched < this.largeFree.length) {
      this.largeUsed++;
      return this.largeOffset + this.largeTouched++ * LARGE_BLOCK_BYTES;
    }
    return 0;
  }

  /** Gives a block back. Every block is freed exactly once, by its owner. */
  free(block: number): void {
    if (this.owners !== null) {
      const index = this.indexOf(block);
      const owner = this.owners[index];
      if (owner !== null) {
        this.owners[index] = null;
        owner.words[owner.bufferWord]! -= this.sizeOf(block);
      }
    }
    if (block < this.largeOffset) {
      this.smallUsed--;
      this.smallFree[this.smallFreeCount++] = block;
      return;
    }
    this.largeUsed--;
    this.largeFree[this.largeFreeCount++] = block;
    if (this.largeFreeCount > RESIDENT_FREE_LARGE_BLOCKS) this.kernel.release(block, LARGE_BLOCK_BYTES);
  }

  private indexOf(block: number): number {
    return block < this.largeOffset
      ? (block - BLOCKS_OFFSET) / SMALL_BLOCK_BYTES
      : this.smallFree.length + (block - this.largeOffset) / LARGE_BLOCK_BYTES;
  }

  /** Size of a block. */
  sizeOf(block: number): number {
    return block < this.largeOffset ? SMALL_BLOCK_BYTES : LARGE_BLOCK_BYTES;
  }

  /** The block after a large block in its chain; 0 at the end. */
  next(block: number): number {
    return this.largeNext[(block - this.largeOffset) / LARGE_BLOCK_BYTES];
  }

  /** Links a large block to the next one of its chain, or to 0. */
  setNext(block: number, next: number): void {
    this.largeNext[(block - this.largeOffset) / LARGE_BLOCK_BYTES] = next;
  }
}
