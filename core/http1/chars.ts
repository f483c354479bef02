// Byte classes of HTTP/1 as tables of 256: one lookup says whether a byte may stand in a place.
// Immutable after load. Hot modules index them with a byte; 0 always means "not allowed here".
// Spec: RFC 9110 §5.6.2 (token), §5.5 (field values), RFC 9112 §3.2 (target), RFC 3986 §3.2.2 (host).

/** Bytes that the grammar names, by their usual names. */
export const Byte = {
  HTAB: 0x09,
  LF: 0x0a,
  CR: 0x0d,
  SP: 0x20,
  DQUOTE: 0x22,
  PERCENT: 0x25,
  ASTERISK: 0x2a,
  COMMA: 0x2c,
  DOT: 0x2e,
  SLASH: 0x2f,
  DIGIT_0: 0x30,
  DIGIT_9: 0x39,
  COLON: 0x3a,
  SEMICOLON: 0x3b,
  EQUALS: 0x3d,
  QUESTION: 0x3f,
  BRACKET_OPEN: 0x5b,
  BACKSLASH: 0x5c,
  BRACKET_CLOSE: 0x5d,
} as const;

/** Marks the bytes of `text` and the inclusive ranges in `ranges`. */
function byteClass(text: string, ranges: readonly (readonly [number, number])[]): Uint8Array {
  const table = new Uint8Array(256);
  for (let i = 0; i < text.length; i++) table[text.charCodeAt(i)] = 1;
  for (const [first, last] of ranges) table.fill(1, first, last + 1);
  return table;
}

const digits = [0x30, 0x39] as const;
const upper = [0x41, 0x5a] as const;
const lower = [0x61, 0x7a] as const;

/** tchar (RFC 9110 §5.6.2): methods, field names, list tokens. */
export const tokenByte: Uint8Array = byteClass("!#$%&'*+-.^_`|~", [digits, upper, lower]);

/** Lower-case form of each tchar; 0 for any other byte. */
export const tokenLower: Uint8Array = tokenByte.map((allowed, byte) =>
  allowed === 0 ? 0 : byte >= 0x41 && byte <= 0x5a ? byte + 0x20 : byte,
);

/** Inside a field value (RFC 9110 §5.5): VCHAR, obs-text, SP and HTAB. */
export const fieldByte: Uint8Array = byteClass('\t', [
  [0x20, 0x7e],
  [0x80, 0xff],
]);

/**
 * Request target: 1 for an allowed byte, 2 for `?`.
 * RFC 3986 allows fewer bytes, but browsers send `"<>\^{|}` and backquote unescaped in practice, and
 * nginx and Envoy forward them; refusing them would break real sites and win nothing, since none
 * of them can end the target. Refused: controls, space, DEL, `#` (a fragment is never sent) and
 * bytes from 0x80, which servers decode differently.
 */
export const targetByte: Uint8Array = byteClass('', [[0x21, 0x7e]]);
targetByte[0x23] = 0;
targetByte[Byte.QUESTION] = 2;

/** reg-name and IPv4address (RFC 3986 §3.2.2) without `%`, whose two digits need a check of their own. */
export const hostByte: Uint8Array = byteClass("-._~!$&'()*+,;=", [digits, upper, lower]);

/** Value of a hexadecimal digit plus one; 0 for any other byte. */
export const hexDigitPlusOne: Uint8Array = new Uint8Array(256);
for (let value = 0; value < 16; value++) {
  const digit = value.toString(16);
  hexDigitPlusOne[digit.charCodeAt(0)] = value + 1;
  hexDigitPlusOne[digit.toUpperCase().charCodeAt(0)] = value + 1;
}

/** qdtext (RFC 9110 §5.6.4): inside a quoted string, except `"` and `\`. */
export const quotedByte: Uint8Array = fieldByte.slice();
quotedByte[Byte.DQUOTE] = 0;
quotedByte[Byte.BACKSLASH] = 0;
