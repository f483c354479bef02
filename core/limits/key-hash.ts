// Hash of a rate limit's key: the rounds of HalfSipHash-1-4, on bytes in memory, with a result of 64 bits.
//
// The seed is random and secret, so that nobody can choose keys that fall together, or that crowd one
// set of a table. One hash at a time: `begin`, any number of parts, `end`.
// A part is its length and then its bytes in words, of which the last two overlap if need be: where one part ends and the
// next begins is known from what has been hashed before, whatever the bytes are.
// The rounds stand in two places, so that a part is one loop with its state in registers.
// Hot module: no allocation; one object per worker.
// Source: Aumasson and Bernstein, SipHash: a fast short-input PRF (2012), in its 32-bit variant.

/** Rounds without a message at the end. */
const FINAL_ROUNDS = 4;

/** A part that is shorter than a word. */
const shortWord = new DataView(new ArrayBuffer(4));

/** One to three bytes with zeros after them, as a word of its own. */
function padded(view: DataView, offset: number, length: number): DataView {
  let bytes = 0;
  for (let i = 0; i < length; i++) bytes |= view.getUint8(offset + i) << (i * 8);
  shortWord.setInt32(0, bytes, true);
  return shortWord;
}

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
   * Adds a part of `length` bytes (-1: the part is not there), so that the same bytes cut into other
   * parts, or an absent part and an empty one, are different keys. Reads nothing outside the range.
   */
  part(view: DataView, offset: number, length: number): void {
    let { v0, v1, v2, v3 } = this;
    let source = view;
    let at = offset | 0;
    let end = (at + length) | 0;
    if (length < 4 && length > 0) {
      source = padded(view, offset, length);
      at = 0;
      end = 4;
    }
    const last = (end - 4) | 0;
    let word = length | 0;
    for (;;) {
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
      if (at >= end) break;
      if (at > last) at = last;
      word = source.getInt32(at, true);
      at = (at + 4) | 0;
    }
    this.v0 = v0;
    this.v1 = v1;
    this.v2 = v2;
    this.v3 = v3;
  }

  /** Ends the hash; `low` and `high` are its result. */
  end(): void {
    let { v0, v1, v2, v3 } = this;
    v2 ^= 0xff;
    for (let i = 0; i < FINAL_ROUNDS; i++) {
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
