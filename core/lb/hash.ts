// Hash functions for consistent hashing: the same on every node and in every version, since
// gateways side by side have to send the same key to the same endpoint.
// MurmurHash3 (x86, 32 bits): public-domain algorithm by Austin Appleby. Not against attackers: who may
// choose keys may choose their endpoint.
// Hot module: no allocation.

/** Mixes a word so that every bit of it matters for every bit of the result. */
export function mix(word: number): number {
  let hash = word | 0;
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
  return hash ^ (hash >>> 16);
}

/** Hash of a range of bytes, 32 bits as a signed number. */
export function hashBytes(memory: Uint8Array, offset: number, length: number, seed: number): number {
  let hash = seed | 0;
  let at = offset | 0;
  const wordsEnd = (at + (length & ~3)) | 0;
  for (; at < wordsEnd; at = (at + 4) | 0) {
    hash ^= scramble(memory[at] | (memory[at + 1] << 8) | (memory[at + 2] << 16) | (memory[at + 3] << 24));
    hash = (Math.imul((hash << 13) | (hash >>> 19), 5) + 0xe6546b64) | 0;
  }
  let rest = 0;
  for (let i = (length & 3) - 1; i >= 0; i--) rest = (rest << 8) | memory[at + i];
  return mix(hash ^ scramble(rest) ^ length);
}

/** Continues a hash with one more word. */
export function hashWord(hash: number, word: number): number {
  const next = (hash ^ scramble(word)) | 0;
  return (Math.imul((next << 13) | (next >>> 19), 5) + 0xe6546b64) | 0;
}

function scramble(word: number): number {
  const product = Math.imul(word, 0xcc9e2d51);
  return Math.imul((product << 15) | (product >>> 17), 0x1b873593);
}

const encoder = new TextEncoder();

/** Hash of a text. Not for the packet path. */
export function hashText(text: string, seed: number): number {
  const bytes = encoder.encode(text);
  return hashBytes(bytes, 0, bytes.length, seed);
}

const WORDS = 2 ** 32;

/** A place of 0 to `count` - 1 for 32 random bits, each as likely. */
export function placeOf(bits: number, count: number): number {
  return Math.floor(((bits >>> 0) / WORDS) * count) | 0;
}
