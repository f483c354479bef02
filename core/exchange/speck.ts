// Speck64/128: a block cipher for two words, small and fast without special instructions. For names that must be neither
// guessed nor read (session-persistence.ts), not for data.
//
// Hot module: no allocation per block.
// Spec: Beaulieu et al.: The SIMON and SPECK families of lightweight block ciphers (2013), §4.

const ROUNDS = 27;

/** Encrypts and decrypts blocks of 64 bits under one key. */
export class Speck {
  /** Halves of the last result, signed. */
  high = 0;
  low = 0;
  private readonly keys = new Int32Array(ROUNDS);

  /** Words of the 128-bit key, the first one first (in the paper: k0, l0, l1, l2). */
  constructor(key0: number, key1: number, key2: number, key3: number) {
    const rest = [key1 | 0, key2 | 0, key3 | 0];
    let key = key0 | 0;
    for (let round = 0; round < ROUNDS; round++) {
      this.keys[round] = key;
      const word = rest[round % 3]!;
      const mixed = (((word >>> 8) | (word << 24)) + key) ^ round;
      rest[round % 3] = mixed | 0;
      key = ((key << 3) | (key >>> 29)) ^ mixed;
    }
  }

  /** Encrypts a block into `high` and `low`. */
  encrypt(high: number, low: number): void {
    const { keys } = this;
    let x = high | 0;
    let y = low | 0;
    for (let round = 0; round < ROUNDS; round++) {
      x = (((x >>> 8) | (x << 24)) + y) ^ keys[round]!;
      y = ((y << 3) | (y >>> 29)) ^ x;
    }
    this.high = x;
    this.low = y;
  }

  /** The reverse of `encrypt`. */
  decrypt(high: number, low: number): void {
    const { keys } = this;
    let x = high | 0;
    let y = low | 0;
    for (let round = ROUNDS - 1; round >= 0; round--) {
      y ^= x;
      y = (y >>> 3) | (y << 29);
      x = ((x ^ keys[round]!) - y) | 0;
      x = (x << 8) | (x >>> 24);
    }
    this.high = x;
    this.low = y;
  }
}
