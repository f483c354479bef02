// What can be wrong with a header block: connection errors of its encoding, and malformed fields.
// The decoder returns an HpackError negated, so that bad input costs no exception and no string; the
// numbers may reach logs and flight records: append only.
// Spec: RFC 7541 (encoding), RFC 9113 §4.3 (COMPRESSION_ERROR), §8.2, §8.3 (malformed fields).

/**
 * Errors in the encoding: the dynamic table is lost, so the connection ends with COMPRESSION_ERROR.
 * `HpackDecoder.decode` returns them negated.
 */
export const HpackError = {
  INDEX_INVALID: 1,
  TRUNCATED: 2,
  INTEGER_OVERFLOW: 3,
  HUFFMAN_EOS: 4,
  HUFFMAN_PADDING: 5,
  SIZE_UPDATE_TOO_LARGE: 6,
  SIZE_UPDATE_MISPLACED: 7,
  SIZE_UPDATE_MISSING: 8,
  TABLE_FLOODED: 9,
} as const;

const sentences: Record<keyof typeof HpackError, string> = {
  INDEX_INVALID: 'A header field refers to an entry that is in neither table.',
  TRUNCATED: 'The header block ends inside an integer or a string.',
  INTEGER_OVERFLOW: 'An integer in the header block has more than four continuation bytes.',
  HUFFMAN_EOS: 'A Huffman-encoded string holds the end-of-string symbol.',
  HUFFMAN_PADDING: 'A Huffman-encoded string ends in padding that is too long or not all ones.',
  SIZE_UPDATE_TOO_LARGE: 'A dynamic table size update is above the announced limit.',
  SIZE_UPDATE_MISPLACED: 'A dynamic table size update follows a header field.',
  SIZE_UPDATE_MISSING: 'The header block does not start with the size update that a lowered table limit requires.',
  TABLE_FLOODED: 'A header block over the size limit goes on filling the dynamic table at many times its own length.',
};

const byNumber: string[] = [];
for (const name of Object.keys(sentences) as (keyof typeof sentences)[]) byNumber[HpackError[name]] = sentences[name];

/**
 * Rules of RFC 9113 that a field can break: the message is malformed, a stream error (§8.1.1).
 * `HpackDecoder.malformed` says which was the first.
 */
export const Malformed = {
  NAME_EMPTY: 1,
  NAME_UPPER_CASE: 2,
  NAME_INVALID: 3,
  VALUE_INVALID: 4,
  VALUE_WHITE_SPACE: 5,
  PSEUDO_AFTER_REGULAR: 6,
  PSEUDO_UNKNOWN: 7,
  PSEUDO_DUPLICATE: 8,
} as const;

/** One plain sentence for the log and for the debug data of GOAWAY. */
export function hpackErrorSentence(error: number): string {
  return byNumber[error] ?? `Unknown HPACK error ${error}.`;
}
