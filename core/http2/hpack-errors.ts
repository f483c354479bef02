// What can be wrong with a header block: connection errors of its encoding, and malformed fields.
// The decoder returns an HpackError negated, so that bad input costs no exception and no string; the
// numbers may reach logs and flight records: append only.
// Spec: RFC 7541 (encoding), RFC 9113 §4.3 (COMPRESSION_ERROR), §8.2, §8.3 (malformed fields).

/** Errors in the encoding: the dynamic table is lost, so the connection ends with COMPRESSION_ERROR. */
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

/** A negated result of `HpackDecoder.decode`. */
export type HpackError = (typeof HpackError)[keyof typeof HpackError];

/** Name of an HpackError. */
export type HpackErrorName = keyof typeof HpackError;

const errorSentences: Record<HpackErrorName, string> = {
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

/** Rules of RFC 9113 that a field can break: the message is malformed, a stream error (§8.1.1). */
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

/** A value of `HpackDecoder.malformed` other than 0. */
export type Malformed = (typeof Malformed)[keyof typeof Malformed];

/** Name of a Malformed. */
export type MalformedName = keyof typeof Malformed;

const malformedSentences: Record<MalformedName, string> = {
  NAME_EMPTY: 'A header field has no name.',
  NAME_UPPER_CASE: 'A header field name holds an upper-case letter.',
  NAME_INVALID: 'A header field name holds a byte that is not allowed in one.',
  VALUE_INVALID: 'A header field value holds a control byte.',
  VALUE_WHITE_SPACE: 'A header field value starts or ends with white space.',
  PSEUDO_AFTER_REGULAR: 'A pseudo-header field follows a regular field.',
  PSEUDO_UNKNOWN: 'A pseudo-header field is not one that HTTP/2 defines.',
  PSEUDO_DUPLICATE: 'A pseudo-header field is given more than once.',
};

/** Names by number. */
function namesByNumber<Name extends string>(numbers: Readonly<Record<Name, number>>): readonly Name[] {
  const names: Name[] = [];
  for (const name of Object.keys(numbers) as Name[]) names[numbers[name]] = name;
  return names;
}

const errorNames = namesByNumber(HpackError);
const malformedNames = namesByNumber(Malformed);

/** Name of an error (positive, as in `HpackError`), such as `INDEX_INVALID`; `UNKNOWN` for a number that is none. */
export function hpackErrorName(error: number): HpackErrorName | 'UNKNOWN' {
  return errorNames[error] ?? 'UNKNOWN';
}

/** One plain sentence for the log. */
export function hpackErrorSentence(error: number): string {
  const name = errorNames[error];
  return name === undefined ? `Unknown HPACK error ${error}.` : errorSentences[name];
}

/** Name of a broken rule, such as `NAME_UPPER_CASE`; `UNKNOWN` for a number that is none. */
export function malformedName(malformed: number): MalformedName | 'UNKNOWN' {
  return malformedNames[malformed] ?? 'UNKNOWN';
}

/** One plain sentence for the log. */
export function malformedSentence(malformed: number): string {
  const name = malformedNames[malformed];
  return name === undefined ? `Unknown malformed field ${malformed}.` : malformedSentences[name];
}
