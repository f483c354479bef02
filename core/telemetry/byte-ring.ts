// A ring of bytes in shared memory from one writing thread to one reading thread.
//
// The producer writes bytes at masked positions past `head` and publishes them by moving `head`;
// the consumer takes bytes from `tail` and frees them by moving `tail`. Each side moves only its
// own word, so no lock is needed and a producer that dies in the middle of a line leaves nothing
// behind. Positions are counters that wrap at 2^32; only their difference matters.
// Hot module (producer side): allocates nothing.

/**
 * Words of the header: bytes published, bytes freed, and the word a sleeping consumer waits on. The
 * last is always 0: waiting on HEAD itself would wake the consumer for every line.
 */
export const RingWord = { HEAD: 0, TAIL: 1, WAKE: 2 } as const;

/** Bytes before the data. Head and tail share a cache line; the data does not. */
const RING_HEADER_BYTES = 64;

/** Data bytes of a ring unless told otherwise: about 10,000 JSON lines. */
const RING_BYTES_DEFAULT = 4 * 1024 * 1024;

/** An empty ring of `bytes` data bytes, a power of two from 64 to 2^30 (RangeError otherwise). */
export function createByteRing(bytes = RING_BYTES_DEFAULT): SharedArrayBuffer {
  if (bytes < 64 || bytes > 2 ** 30 || (bytes & (bytes - 1)) !== 0) {
    throw new RangeError(`a ring's size must be a power of two from 64 bytes to 1 GiB, not ${bytes}`);
  }
  return new SharedArrayBuffer(RING_HEADER_BYTES + bytes);
}

/** Producer side. Write to `data[position & mask]` from `begin()` on, then `publish(position)`. */
export class RingProducer {
  readonly data: Uint8Array;
  readonly mask: number;
  private readonly words: Int32Array;
  private readonly capacity: number;

  /**
   * Continues where the last producer of this ring stopped. Several producers may follow each other
   * or take turns on one thread (old and new snapshot): the position is kept only in the ring.
   */
  constructor(ring: SharedArrayBuffer) {
    this.capacity = ring.byteLength - RING_HEADER_BYTES;
    this.data = new Uint8Array(ring, RING_HEADER_BYTES);
    this.mask = this.capacity - 1;
    this.words = new Int32Array(ring, 0, RING_HEADER_BYTES / 4);
  }

  /** Bytes that may be written now. */
  free(): number {
    return this.capacity - ((this.words[RingWord.HEAD] - Atomics.load(this.words, RingWord.TAIL)) | 0);
  }

  /** Position of the next byte: small, so that positions of one write stay small integers. */
  begin(): number {
    return this.words[RingWord.HEAD] & this.mask;
  }

  /**
   * Makes all bytes up to `position` visible to the consumer. Wakes it only when the ring passes
   * half full: until then its own timer is early enough, and the packet path makes no system call.
   */
  publish(position: number): void {
    const head = this.words[RingWord.HEAD];
    const before = (head - Atomics.load(this.words, RingWord.TAIL)) | 0;
    const length = position - (head & this.mask);
    Atomics.store(this.words, RingWord.HEAD, (head + length) | 0);
    const half = this.capacity >>> 1;
    if (before < half && before + length >= half) Atomics.notify(this.words, RingWord.WAKE);
  }
}

/** Consumer side. `readable` bytes lie from `offset` on, contiguous up to the end of `data`. */
export class RingConsumer {
  readonly data: Uint8Array;
  readonly words: Int32Array;
  private readonly mask: number;
  private tail: number;

  /** Continues where the last consumer of this ring stopped. */
  constructor(ring: SharedArrayBuffer) {
    this.data = new Uint8Array(ring, RING_HEADER_BYTES);
    this.mask = this.data.length - 1;
    this.words = new Int32Array(ring, 0, RING_HEADER_BYTES / 4);
    this.tail = Atomics.load(this.words, RingWord.TAIL);
  }

  /** Bytes published and not yet freed. */
  used(): number {
    return (Atomics.load(this.words, RingWord.HEAD) - this.tail) | 0;
  }

  /** Position up to which bytes are published now, for `hasPassed`. */
  head(): number {
    return Atomics.load(this.words, RingWord.HEAD);
  }

  /** Whether all bytes before an earlier `head()` have been freed. */
  hasPassed(head: number): boolean {
    return ((this.tail - head) | 0) >= 0;
  }

  /** Index in `data` of the byte `skip` bytes after the first one not yet freed. */
  index(skip: number): number {
    return (this.tail + skip) & this.mask;
  }

  /** Gives `length` bytes back to the producer. */
  free(length: number): void {
    this.tail = (this.tail + length) | 0;
    Atomics.store(this.words, RingWord.TAIL, this.tail);
  }
}
