// Hash of a rate limit's key: the rounds of HalfSipHash-1-4, on bytes in memory, with a result of 64 bits.
//
// The seed is random and secret, so that nobody can choose keys that fall together, or that crowd one
// set of a table. One hash at a time: `begin`, any number of parts, `end`.
// The rounds are written out where they are used: a call, and a state in fields, would cost more than they do.
// Hot module: no allocation; one object per worker.
// Source: Aumasson and Bernstein, SipHash: a fast short-input PRF (2012), in its 32-bit variant.

/** State of the hash being made, and its result. */
export class KeyHash {
  /** The two halves of the result of `end`. */
  low = 0;
  high = 0;
  private v0 = 0;
  private v1 = 0;
  private v2 = 0;
  private v3 = 0;

  /** Begins a hash with the two words of a seed. */
  begin(seed0: number, seed1: number): void {
    this.v0 = seed0;
    this.v1 = seed1;
    this.v2 = 0x6c796765 ^ seed0;
    this.v3 = 0x74656462 ^ seed1;
  }

  /**
   * Adds a part of `length` bytes (-1: the part is not there), and its length, so that the same bytes cut into other
   * parts, or an absent part and an empty one, are different keys.
   */
  part(memory: Uint8Array, offset: number, length: number): void {
    const end = offset + length;
    let { v0, v1, v2, v3 } = this;
    let at = offset;
    for (; at + 4 <= end; at += 4) {
      const word = memory[at] | (memory[at + 1] << 8) | (memory[at + 2] << 16) | (memory[at + 3] << 24);
      v3 ^= word;
      v0 = (v0 + v1) | 0;
      v1 = ((v1 << 5) | (v1 >>> 27)) ^ v0;
      v0 = (v0 << 16) | (v0 >>> 16);
      v2 = (v2 + v3) | 0;
      v3 = ((v3 << 8) | (v3 >>> 24)) ^ v2;
      v0 = (v0 + v3) | 0;
      v3 = ((v3 << 7) | (v3 >>> 25)) ^ v0;
      v2 = (v2 + v1) | 0;
      v1 = ((v1 << 13) | (v1 >>> 19)) ^ v2;
      v2 = (v2 << 16) | (v2 >>> 16);
      v0 ^= word;
    }
    this.v0 = v0;
    this.v1 = v1;
    this.v2 = v2;
    this.v3 = v3;
    let rest = 0;
    for (let bits = 0; at < end; at++, bits += 8) rest |= memory[at] << bits;
    this.word(rest);
    this.word(length);
  }

  /** Adds a word. */
  word(word: number): void {
    let { v0, v1, v2 } = this;
    let v3 = this.v3 ^ word;
    v0 = (v0 + v1) | 0;
    v1 = ((v1 << 5) | (v1 >>> 27)) ^ v0;
    v0 = (v0 << 16) | (v0 >>> 16);
    v2 = (v2 + v3) | 0;
    v3 = ((v3 << 8) | (v3 >>> 24)) ^ v2;
    v0 = (v0 + v3) | 0;
    v3 = ((v3 << 7) | (v3 >>> 25)) ^ v0;
    v2 = (v2 + v1) | 0;
    v1 = ((v1 << 13) | (v1 >>> 19)) ^ v2;
    v2 = (v2 << 16) | (v2 >>> 16);
    this.v0 = v0 ^ word;
    this.v1 = v1;
    this.v2 = v2;
    this.v3 = v3;
  }

  /** Ends the hash; `low` and `high` are its result. */
  end(): void {
    let { v0, v1, v3 } = this;
    let v2 = this.v2 ^ 0xff;
    for (let round = 0; round < 4; round++) {
      v0 = (v0 + v1) | 0;
      v1 = ((v1 << 5) | (v1 >>> 27)) ^ v0;
      v0 = (v0 << 16) | (v0 >>> 16);
      v2 = (v2 + v3) | 0;
      v3 = ((v3 << 8) | (v3 >>> 24)) ^ v2;
      v0 = (v0 + v3) | 0;
      v3 = ((v3 << 7) | (v3 >>> 25)) ^ v0;
      v2 = (v2 + v1) | 0;
      v1 = ((v1 << 13) | (v1 >>> 19)) ^ v2;
      v2 = (v2 << 16) | (v2 >>> 16);
    }
    this.low = v1 ^ v3;
    this.high = v0 ^ v2;
  }
}
