// Hash functions of the route table: the compiler and the reader must agree on every bit.
//
// FNV-1a, a byte at a time, because it can stop at any byte and give the hash of what came so far:
// one pass over a path yields the hash of each of its prefixes. A mixer spreads the result, since
// FNV's low bits alone choose badly. Entries are compared byte by byte after a hit, so a collision
// costs a probe, never a wrong route. Request bytes are only looked up, never stored: nobody outside
// can make the table's chains longer.
// Hot module: integers only.

/** Hash of no bytes. */
export const HASH_SEED = 0x811c9dc5 | 0;

/** Hash of the bytes so far followed by `byte`. */
export function hashByte(hash: number, byte: number): number {
  return Math.imul(hash ^ byte, 0x01000193);
}

/** Spreads a hash over all 32 bits (signed). */
export function hashMix(hash: number): number {
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
  return hash ^ (hash >>> 16);
}

/** Final hash of a path key: the path's bytes, the host it belongs to and how it matches. */
export function hashPathKey(pathHash: number, host: number, kind: number): number {
  return hashMix(pathHash ^ Math.imul(host * 2 + kind + 1, 0x9e3779b1));
}

/** ASCII lower case of one byte. */
export function lowerByte(byte: number): number {
  return byte >= 65 && byte <= 90 ? byte | 32 : byte;
}
