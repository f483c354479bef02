// What can be wrong with an HTTP/1 message: one number, one status and one plain sentence each.
// The parsers return these numbers negated, so that bad input costs no exception and no string.
// The numbers reach logs, counters and flight records (`DETAIL_PARSE + error`): append only.
// Spec: RFC 9112 (syntax, framing), RFC 9110 §15.5, §15.6 (statuses).

/** Parse error numbers. */
export const ParseError = {
  METHOD_INVALID: 1,
  METHOD_TOO_LONG: 2,
  TARGET_INVALID: 3,
  URI_TOO_LONG: 4,
  TARGET_FORM_INVALID: 5,
  TARGET_SCHEME_UNSUPPORTED: 6,
  TARGET_AUTHORITY_INVALID: 7,
  VERSION_MISSING: 8,
  VERSION_INVALID: 9,
  VERSION_UNSUPPORTED: 10,
  STATUS_LINE_INVALID: 11,
  STATUS_CODE_INVALID: 12,
  REASON_PHRASE_INVALID: 13,
  LEADING_EMPTY_LINES: 14,
  BARE_CR: 15,
  BARE_LF: 16,
  HEAD_TOO_LARGE: 17,
  TOO_MANY_FIELDS: 18,
  FIELD_NAME_EMPTY: 19,
  FIELD_NAME_INVALID: 20,
  FIELD_COLON_MISSING: 21,
  FIELD_SPACE_BEFORE_COLON: 22,
  FIELD_FOLDED: 23,
  FIELD_VALUE_INVALID: 24,
  HOST_MISSING: 25,
  HOST_DUPLICATE: 26,
  HOST_INVALID: 27,
  CONTENT_LENGTH_INVALID: 28,
  CONTENT_LENGTH_DUPLICATE: 29,
  CONTENT_LENGTH_TOO_LARGE: 30,
  CONTENT_LENGTH_WITH_TRANSFER_ENCODING: 31,
  TRANSFER_ENCODING_INVALID: 32,
  TRANSFER_ENCODING_DUPLICATE: 33,
  TRANSFER_ENCODING_IN_HTTP10: 34,
  TRANSFER_CODING_UNSUPPORTED: 35,
  CONNECTION_INVALID: 36,
  CONNECTION_NAMES_PROTECTED_FIELD: 37,
  EXPECTATION_UNKNOWN: 38,
  CONNECT_WITH_CONTENT: 39,
  CHUNK_SIZE_INVALID: 40,
  CHUNK_SIZE_TOO_LARGE: 41,
  CHUNK_EXTENSION_INVALID: 42,
  CHUNK_EXTENSION_TOO_LARGE: 43,
  CHUNK_END_INVALID: 44,
  TRAILERS_TOO_LARGE: 45,
  TRAILER_FORBIDDEN: 46,
} as const;

/** A parse error number. */
export type ParseError = (typeof ParseError)[keyof typeof ParseError];

/** Name of a parse error, as in `ParseError`. */
export type ParseErrorName = keyof typeof ParseError;

/** Status and sentence by name; the type makes the compiler ask for a line per error. */
const texts: Record<ParseErrorName, readonly [status: number, sentence: string]> = {
  METHOD_INVALID: [400, 'The request does not start with a method (a token and one space).'],
  // RFC 9112 §3: 501 for a method longer than any the server implements.
  METHOD_TOO_LONG: [501, 'The request method is longer than 32 bytes.'],
  TARGET_INVALID: [400, 'The request target is empty or holds a byte that is not allowed in one.'],
  URI_TOO_LONG: [414, 'The request target is longer than the limit.'],
  TARGET_FORM_INVALID: [400, 'The request target has a form that does not fit its method.'],
  TARGET_SCHEME_UNSUPPORTED: [400, 'The request target is an absolute URI that is neither http nor https.'],
  TARGET_AUTHORITY_INVALID: [400, 'The host or port in the request target is missing or malformed.'],
  VERSION_MISSING: [400, 'The request line has no HTTP version (HTTP/0.9 is not served).'],
  VERSION_INVALID: [400, 'The HTTP version is malformed.'],
  VERSION_UNSUPPORTED: [505, 'The HTTP version is neither 1.0 nor 1.1.'],
  STATUS_LINE_INVALID: [502, 'The response does not start with an HTTP/1 status line.'],
  STATUS_CODE_INVALID: [502, 'The status code is not three digits from 100 to 599.'],
  REASON_PHRASE_INVALID: [502, 'The reason phrase holds a control byte.'],
  LEADING_EMPTY_LINES: [400, 'More than two empty lines precede the request line.'],
  BARE_CR: [400, 'A carriage return is not followed by a line feed.'],
  BARE_LF: [400, 'A line ends in a line feed without a carriage return.'],
  HEAD_TOO_LARGE: [431, 'The message head is larger than the limit.'],
  TOO_MANY_FIELDS: [431, 'The message has more header fields than the limit.'],
  FIELD_NAME_EMPTY: [400, 'A header field has no name.'],
  FIELD_NAME_INVALID: [400, 'A header field name holds a byte that is not allowed in one.'],
  FIELD_COLON_MISSING: [400, 'A header line has no colon.'],
  FIELD_SPACE_BEFORE_COLON: [400, 'White space follows a header field name.'],
  FIELD_FOLDED: [400, 'A header line starts with white space (line folding is not accepted).'],
  FIELD_VALUE_INVALID: [400, 'A header field value holds a control byte.'],
  HOST_MISSING: [400, 'The HTTP/1.1 request has no Host field.'],
  HOST_DUPLICATE: [400, 'The request has more than one Host field.'],
  HOST_INVALID: [400, 'The Host field is not a valid host with an optional port.'],
  CONTENT_LENGTH_INVALID: [400, 'Content-Length is not a decimal number.'],
  CONTENT_LENGTH_DUPLICATE: [400, 'Content-Length is given more than once.'],
  CONTENT_LENGTH_TOO_LARGE: [400, 'Content-Length is larger than can be counted.'],
  CONTENT_LENGTH_WITH_TRANSFER_ENCODING: [400, 'Content-Length and Transfer-Encoding are both present.'],
  TRANSFER_ENCODING_INVALID: [400, 'Transfer-Encoding is malformed, or chunked is not its one last coding.'],
  TRANSFER_ENCODING_DUPLICATE: [400, 'Transfer-Encoding is given more than once.'],
  TRANSFER_ENCODING_IN_HTTP10: [400, 'Transfer-Encoding is not allowed in an HTTP/1.0 message.'],
  TRANSFER_CODING_UNSUPPORTED: [501, 'Transfer-Encoding names a coding other than chunked.'],
  CONNECTION_INVALID: [400, 'Connection is not a list of tokens.'],
  CONNECTION_NAMES_PROTECTED_FIELD: [400, 'Connection names a field that must not be removed.'],
  EXPECTATION_UNKNOWN: [417, 'Expect asks for something other than 100-continue.'],
  CONNECT_WITH_CONTENT: [400, 'The CONNECT request announces content.'],
  CHUNK_SIZE_INVALID: [400, 'A chunk does not start with its size in hexadecimal digits.'],
  CHUNK_SIZE_TOO_LARGE: [400, 'A chunk size has more than 16 digits or is larger than can be counted.'],
  CHUNK_EXTENSION_INVALID: [400, 'A chunk extension is malformed.'],
  CHUNK_EXTENSION_TOO_LARGE: [400, 'The chunk extensions are larger than the limit.'],
  CHUNK_END_INVALID: [400, 'The data of a chunk is not followed by a line end.'],
  TRAILERS_TOO_LARGE: [431, 'The trailer section is larger than the limit.'],
  TRAILER_FORBIDDEN: [400, 'The trailer section holds a field that is only allowed in a head.'],
};

const names: ParseErrorName[] = [];
for (const name of Object.keys(ParseError) as ParseErrorName[]) names[ParseError[name]] = name;

/** Name of an error number, such as `BARE_LF`; `UNKNOWN` for a number that is none. */
export function parseErrorName(error: number): ParseErrorName | 'UNKNOWN' {
  return names[error] ?? 'UNKNOWN';
}

/**
 * Status that answers a request with this error (400, 414, 417, 431, 501 or 505). Errors that only
 * responses have give 502; for any other error in an upstream's message the caller answers 502 too.
 */
export function parseErrorStatus(error: number): number {
  const name = names[error];
  return name === undefined ? 400 : texts[name][0];
}

/** One plain sentence for log and `explain`. */
export function parseErrorSentence(error: number): string {
  const name = names[error];
  return name === undefined ? `Unknown parse error ${error}.` : texts[name][1];
}
