// Request ids: random UUIDs (RFC 9562 §5.4), written straight into memory.
// The generator is xoshiro128**, seeded once from the system: unique across workers and restarts,
// not a secret. Owned by one worker. Hot: no allocation.

import { putHex16 } from '../io/bytes.ts';

/** Length of a request id in text. */
export const REQUEST_ID_BYTES = 36;

/** The system's random numbers, or the simulation's. */
export type RandomWords = (words: Uint32Array) => void;

export class RequestIds {
  private readonly state = new Uint32Array(4);

  /** Seeds the generator with four words from `random`. */
  constructor(random: RandomWords) {
    random(this.state);
    if (this.state.every((word) => word === 0)) this.state[0] = 1;
  }

  /** Next 32 random bits, as a signed number: those need no boxed number. */
  next(): number {
    const state = this.state;
    const scrambled = Math.imul(state[1], 5);
    const result = Math.imul((scrambled << 7) | (scrambled >>> 25), 9);
    const shifted = state[1] << 9;
    state[2] ^= state[0];
    state[3] ^= state[1];
    state[1] ^= state[2];
    state[0] ^= state[3];
    state[2] ^= shifted;
    state[3] = (state[3] << 11) | (state[3] >>> 21);
    return result;
  }

  /** Writes a new id; returns the offset after it. */
  put(view: DataView, at: number): number {
    const word0 = this.next();
    const word1 = this.next();
    const word2 = this.next();
    const word3 = this.next();
    putHex16(view, at, word0 >>> 16);
    putHex16(view, at + 4, word0);
    view.setUint8(at + 8, 45);
    putHex16(view, at + 9, word1 >>> 16);
    view.setUint8(at + 13, 45);
    putHex16(view, at + 14, (word1 & 0x0fff) | 0x4000);
    view.setUint8(at + 18, 45);
    putHex16(view, at + 19, ((word2 >>> 16) & 0x3fff) | 0x8000);
    view.setUint8(at + 23, 45);
    putHex16(view, at + 24, word2);
    putHex16(view, at + 28, word3 >>> 16);
    return putHex16(view, at + 32, word3);
  }
}
