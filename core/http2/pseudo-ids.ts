// Pseudo-header fields of HTTP/2, numbered beside the known fields of HTTP/1.
// They stand in the header table under these ids. No field line of HTTP/1 can have one, and they have no
// bit in FieldBits; the decoder keeps a bit set of its own for them.
// Spec: RFC 9113 §8.3.1 (requests), §8.3.2 (responses), RFC 8441 §4 (:protocol).

/** Ids of pseudo-header fields; above every HeaderId. */
export const PseudoId = {
  METHOD: 64,
  SCHEME: 65,
  AUTHORITY: 66,
  PATH: 67,
  STATUS: 68,
  PROTOCOL: 69,
} as const;

/** A pseudo-header id. */
export type PseudoId = (typeof PseudoId)[keyof typeof PseudoId];

/** Lowest pseudo-header id: `1 << (id - PSEUDO_FIRST)` is an id's bit in `pseudoSeen`. */
export const PSEUDO_FIRST = 64;

/** Names in the order of the ids, with their colon. */
export const pseudoNames: readonly string[] = [':method', ':scheme', ':authority', ':path', ':status', ':protocol'];

const nameBytes: readonly Uint8Array[] = pseudoNames.map((name) => new TextEncoder().encode(name));

/** Id of the pseudo-header name at `offset` (with its colon, case as it is), or 0 for an unknown one. */
export function pseudoId(memory: Uint8Array, offset: number, length: number): number {
  for (let index = 0; index < nameBytes.length; index++) {
    const name = nameBytes[index];
    if (name.length !== length) continue;
    let same = 0;
    while (same < length && memory[offset + same] === name[same]) same++;
    if (same === length) return PSEUDO_FIRST + index;
  }
  return 0;
}
