// Hash of a rate limit's key: the rounds of HalfSipHash-1-4, on bytes in memory, with a result of 64 bits.
//
// The seed is random and secret, so that nobody can choose keys that fall together, or that crowd one
// set of a table. One hash at a time: `begin`, any number of parts, `end`.
// Whatever is added goes through one loop, which keeps the state out of fields for as long as it runs.
// Hot module: no allocation; one object per worker.
// Source: Aumasson and Bernstein, SipHash: a fast short-input PRF (2012), in its 32-bit variant.

/** Rounds without a message at the end. */
const FINAL_ROUNDS = 4;

/** For what is not in memory. */
const nothing = new DataView(new ArrayBuffer(0));

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
  part(view: DataView, offset: number, length: number): void {
    const words = length < 0 ? 0 : length >> 2;
    const end = offset + length;
    let rest = 0;
    for (let at = offset + words * 4, bits = 0; at < end; at++, bits += 8) rest |= view.getUint8(at) << bits;
    this.rounds(words + 2, view, offset, words, rest, length);
  }

  /** Adds two words. */
  pair(first: number, second: number): void {
    this.rounds(2, nothing, 0, 0, first, second);
  }

  /** Ends the hash; `low` and `high` are its result. */
  end(): void {
    this.v2 ^= 0xff;
    this.rounds(FINAL_ROUNDS, nothing, 0, 0, 0, 0);
    this.low = this.v1 ^ this.v3;
    this.high = this.v0 ^ this.v2;
  }

  /** So many rounds: on `words` words at `offset`, then on `next`, then on `last`. */
  private rounds(count: number, view: DataView, offset: number, words: number, next: number, last: number): void {
    let { v0, v1, v2, v3 } = this;
    for (let i = 0; i < count; i++) {
      const word = i < words ? view.getInt32(offset + i * 4, true) : i === words ? next : last;
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
  }
}
