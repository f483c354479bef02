// The receive area of a worker: how much of it is still needed, and so where the next receive goes.
//
//   needed by receives ahead, deferred sends or a hold | the next receive, with room in front of it and behind
//
// Bytes that somebody needs after their event stay where they were received, and further receives go behind them:
// mostly nothing is copied, and mostly the same few pages are used again. `input.ts` receives into it, `output.ts`
// sends from it at the end of a batch, and whoever handles a receive piece by piece holds it meanwhile.
// Invariant: nothing is received in front of `nextOffset`, and the room goes back as soon as nobody needs it.
// Owned by one worker. Hot module: no allocation, exception, promise, closure or log line.

import {
  type Arena,
  BULK_RECEIVE_BYTES_MAX,
  HEADROOM_BYTES,
  RECEIVE_AREA_BYTES,
  RECEIVE_BYTES_MAX,
  TAILROOM_BYTES,
} from './arena.ts';

const CACHE_LINE_BYTES = 64;

/** Held input may reach as far into the receive area as leaves room for the largest receive behind it. */
const HELD_BYTES_MAX =
  RECEIVE_AREA_BYTES - BULK_RECEIVE_BYTES_MAX - 2 * HEADROOM_BYTES - 2 * TAILROOM_BYTES - CACHE_LINE_BYTES;

export class ReceiveArea {
  private readonly offset: number;
  /** Bytes from `offset` on that messages received ahead, deferred sends and `hold` need. */
  private aheadBytes = 0;
  private deferredBytes = 0;
  private heldBytes = 0;
  /** Bytes that any of those needs. */
  private stagedBytes = 0;

  constructor(arena: Arena) {
    this.offset = arena.receiveOffset;
  }

  /** Where the next receive goes. */
  get nextOffset(): number {
    return this.offset + this.stagedBytes;
  }

  /** Whether a receive of `bytes` fits at `nextOffset`, with the room around it. */
  hasRoom(bytes: number): boolean {
    return this.stagedBytes + HEADROOM_BYTES + bytes + TAILROOM_BYTES <= RECEIVE_AREA_BYTES;
  }

  /** Messages have been received ahead from `nextOffset` to `end`, with the room around each, and wait there. */
  keepAhead(end: number): void {
    this.aheadBytes = end - this.offset;
    this.stagedBytes = this.aheadBytes;
  }

  /** No message that was received ahead is left. */
  releaseAhead(): void {
    this.aheadBytes = 0;
    this.restage();
  }

  /** Bytes up to `end` are sent at the end of the batch; they may also lie elsewhere. */
  keepDeferred(end: number): void {
    const bytes = end - this.offset;
    if (bytes <= 0 || bytes > RECEIVE_AREA_BYTES) return;
    // The next receive goes behind it, with room in front for a head of its own.
    const stagedBytes = ((bytes + CACHE_LINE_BYTES - 1) & -CACHE_LINE_BYTES) + HEADROOM_BYTES;
    if (stagedBytes > this.deferredBytes) this.deferredBytes = stagedBytes;
    if (stagedBytes > this.stagedBytes) this.stagedBytes = stagedBytes;
  }

  /** All deferred sends are done. */
  releaseDeferred(): void {
    this.deferredBytes = 0;
    this.restage();
  }

  /**
   * Keeps what the last `fill` has put at [input.offset, end) where it is while handlers of other connections run, which
   * may fill too. Returns what `release` is to be given afterwards, or -1: there is no room for that in the receive
   * area, and `input.keep` must move the bytes to a block first.
   */
  hold(end: number): number {
    const before = this.heldBytes;
    const bytes = end + TAILROOM_BYTES - this.offset;
    // In a block, or in front of everything that a nested receive may write to.
    if (bytes <= 0 || bytes > RECEIVE_AREA_BYTES) return before;
    if (bytes > HELD_BYTES_MAX) return -1;
    if (bytes > before) {
      this.heldBytes = ((bytes + CACHE_LINE_BYTES - 1) & -CACHE_LINE_BYTES) + HEADROOM_BYTES;
      this.restage();
    }
    return before;
  }

  /** Ends a hold; `before` is what `hold` returned. */
  release(before: number): void {
    this.heldBytes = before;
    this.restage();
  }

  /** Most bytes of a receive that `hold` can hold while other connections fill. */
  get heldReceiveBytesMax(): number {
    const end = this.stagedBytes + HEADROOM_BYTES + BULK_RECEIVE_BYTES_MAX + TAILROOM_BYTES;
    return end <= HELD_BYTES_MAX ? BULK_RECEIVE_BYTES_MAX : RECEIVE_BYTES_MAX;
  }

  private restage(): void {
    this.stagedBytes = Math.max(this.aheadBytes, this.deferredBytes, this.heldBytes);
  }
}
