// SipHash-2-4: a short hash that nobody can compute, or try values against, without its 128-bit key.
//
// The recorder of requests puts it in the place of secrets, so that equal ones can be told to be equal
// and none can be read. Arithmetic on halves of 64-bit words, since BigInts allocate.
// Owned by one worker. Hot module: no allocation per call.
// Spec: Aumasson, Bernstein: SipHash: a fast short-input PRF (2012).

/** Words of a key. */
export const HASH_KEY_WORDS = 4;

/** Hashes ranges of bytes under one key. */
export class KeyedHash {
  /** Halves of the last result. */
  high = 0;
  low = 0;
  private readonly key: Int32Array;
  // The state: four 64-bit words in halves.
  private h0 = 0;
  private l0 = 0;
  private h1 = 0;
  private l1 = 0;
  private h2 = 0;
  private l2 = 0;
  private h3 = 0;
  private l3 = 0;

  /** `key` has HASH_KEY_WORDS words: low and high half of its first eight bytes, then of the others. */
  constructor(key: ArrayLike<number>) {
    this.key = Int32Array.from(key);
  }

  /** Hashes `length` bytes at `offset` into `high` and `low`. */
  hash(memory: Uint8Array, offset: number, length: number): void {
    const { key } = this;
    // "somepseudorandomlygeneratedbytes", mixed with the key.
    this.h0 = key[1]! ^ 0x736f6d65;
    this.l0 = key[0]! ^ 0x70736575;
    this.h1 = key[3]! ^ 0x646f7261;
    this.l1 = key[2]! ^ 0x6e646f6d;
    this.h2 = key[1]! ^ 0x6c796765;
    this.l2 = key[0]! ^ 0x6e657261;
    this.h3 = key[3]! ^ 0x74656462;
    this.l3 = key[2]! ^ 0x79746573;
    const whole = length & ~7;
    const end = offset + whole;
    for (let at = offset; at < end; at += 8) this.block(word(memory, at), word(memory, at + 4));
    // The last block: what is left, and the length in its top byte.
    let low = 0;
    let high = (length & 0xff) << 24;
    for (let i = 0; i < length - whole; i++) {
      const byte = memory[end + i]!;
      if (i < 4) low |= byte << (i * 8);
      else high |= byte << ((i - 4) * 8);
    }
    this.block(low, high);
    this.l2 ^= 0xff;
    for (let i = 0; i < 4; i++) this.round();
    this.high = this.h0 ^ this.h1 ^ this.h2 ^ this.h3;
    this.low = this.l0 ^ this.l1 ^ this.l2 ^ this.l3;
  }

  private block(low: number, high: number): void {
    this.h3 ^= high;
    this.l3 ^= low;
    this.round();
    this.round();
    this.h0 ^= high;
    this.l0 ^= low;
  }

  private round(): void {
    let { h0, l0, h1, l1, h2, l2, h3, l3 } = this;
    let sum = (l0 >>> 0) + (l1 >>> 0);
    h0 = (h0 + h1 + (sum > 0xffffffff ? 1 : 0)) | 0;
    l0 = sum | 0;
    let swap = (h1 << 13) | (l1 >>> 19);
    l1 = ((l1 << 13) | (h1 >>> 19)) ^ l0;
    h1 = swap ^ h0;
    swap = h0;
    h0 = l0;
    l0 = swap;
    sum = (l2 >>> 0) + (l3 >>> 0);
    h2 = (h2 + h3 + (sum > 0xffffffff ? 1 : 0)) | 0;
    l2 = sum | 0;
    swap = (h3 << 16) | (l3 >>> 16);
    l3 = ((l3 << 16) | (h3 >>> 16)) ^ l2;
    h3 = swap ^ h2;
    sum = (l0 >>> 0) + (l3 >>> 0);
    h0 = (h0 + h3 + (sum > 0xffffffff ? 1 : 0)) | 0;
    l0 = sum | 0;
    swap = (h3 << 21) | (l3 >>> 11);
    l3 = ((l3 << 21) | (h3 >>> 11)) ^ l0;
    h3 = swap ^ h0;
    sum = (l2 >>> 0) + (l1 >>> 0);
    h2 = (h2 + h1 + (sum > 0xffffffff ? 1 : 0)) | 0;
    l2 = sum | 0;
    swap = (h1 << 17) | (l1 >>> 15);
    l1 = ((l1 << 17) | (h1 >>> 15)) ^ l2;
    h1 = swap ^ h2;
    swap = h2;
    this.h2 = l2;
    this.l2 = swap;
    this.h0 = h0;
    this.l0 = l0;
    this.h1 = h1;
    this.l1 = l1;
    this.h3 = h3;
    this.l3 = l3;
  }
}

function word(memory: Uint8Array, at: number): number {
  return memory[at]! | (memory[at + 1]! << 8) | (memory[at + 2]! << 16) | (memory[at + 3]! << 24);
}
