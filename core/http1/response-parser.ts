// Parses an HTTP/1 response head in place: positions and decisions into a ResponseHead, no strings.
//
// As strict about fields and framing as the request parser: what an upstream sends decides
// where the next client's response begins. Whether a body follows also depends on the request's
// method and on the status (RFC 9112 §6.3); that is the exchange's business.
// Owned by one worker. Hot module: runs for every response, allocates nothing.
// Spec: RFC 9112 §4 (status line), RFC 9110 §15 (status codes).

import * as chars from './chars.ts';
import { ParseError } from './errors.ts';
import { FieldBits, parseFields } from './fields.ts';
import { applyFraming, responseProtectedIds } from './framing.ts';
import type { ParserLimits, ResponseHead } from './message.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { CR, DIGIT_0, DOT, LF, SP } = chars.Byte;
const { fieldByte } = chars;

const versionPrefix = Uint8Array.from(Buffer.from('HTTP/', 'latin1'));

/** Offset of the first status digit from the start of the line: "HTTP/1.1 ". */
const STATUS_AT = 9;

/** One per thread: parsing never nests. */
const bits = new FieldBits();

/** The part of the status line before the status code: 1 if well formed, 0, or -(ParseError). */
function checkVersion(memory: Uint8Array, offset: number, end: number, head: ResponseHead): number {
  for (let i = 0; i < 5; i++) {
    if (offset + i >= end) return 0;
    if (memory[offset + i] !== versionPrefix[i]) return -ParseError.STATUS_LINE_INVALID;
  }
  if (offset + 5 >= end) return 0;
  const major = memory[offset + 5] - DIGIT_0;
  if (major < 0 || major > 9) return -ParseError.STATUS_LINE_INVALID;
  if (offset + 6 >= end) return 0;
  if (memory[offset + 6] !== DOT) return -ParseError.STATUS_LINE_INVALID;
  if (offset + 7 >= end) return 0;
  const minor = memory[offset + 7] - DIGIT_0;
  if (minor < 0 || minor > 9) return -ParseError.STATUS_LINE_INVALID;
  if (offset + 8 >= end) return 0;
  if (memory[offset + 8] !== SP) return -ParseError.STATUS_LINE_INVALID;
  if (major !== 1 || minor > 1) return -ParseError.VERSION_UNSUPPORTED;
  head.versionMinor = minor;
  return 1;
}

/** The parse proper, on at most `limits.headBytesMax` bytes: offset after the head, 0, or an error. */
function parseWithin(
  memory: Uint8Array,
  offset: number,
  end: number,
  limits: ParserLimits,
  head: ResponseHead,
): number {
  const version = checkVersion(memory, offset, end, head);
  if (version <= 0) return version;

  end |= 0;
  let i = (offset + STATUS_AT) | 0;
  let status = 0;
  for (let digits = 0; digits < 3; digits++, i++) {
    if (i >= end) return 0;
    const digit = memory[i] - DIGIT_0;
    if (digit < 0 || digit > 9) return -ParseError.STATUS_CODE_INVALID;
    status = status * 10 + digit;
  }
  if (status < 100 || status > 599) return -ParseError.STATUS_CODE_INVALID;
  head.status = status;

  if (i >= end) return 0;
  let byte = memory[i];
  // RFC 9112 §4 asks for a space even before an empty reason; many servers leave out both.
  if (byte === SP) {
    if (++i >= end) return 0;
    byte = memory[i];
    head.reasonOffset = i;
    while (fieldByte[byte] !== 0) {
      if (++i >= end) return 0;
      byte = memory[i];
    }
  } else {
    if (fieldByte[byte] !== 0) return -ParseError.STATUS_CODE_INVALID;
    head.reasonOffset = i;
  }
  head.reasonLength = i - head.reasonOffset;
  if (byte !== CR) return byte === LF ? -ParseError.BARE_LF : -ParseError.REASON_PHRASE_INVALID;
  if (++i >= end) return 0;
  if (memory[i] !== LF) return -ParseError.BARE_CR;
  head.fieldsOffset = ++i;

  const after = parseFields(memory, i, end, limits.headerCountMax, head.headers, bits);
  if (after <= 0) return after;
  head.seen = bits.seen;
  const framingResult = applyFraming(memory, head, bits, responseProtectedIds);
  if (framingResult < 0) return framingResult;
  head.endOffset = after;
  return after;
}

/**
 * Parses the response head at `offset`. Returns
 * - > 0: bytes of the head, the empty line included; `out` is filled,
 * - 0: the head is not complete in `length` bytes and nothing is wrong so far,
 * - < 0: -(ParseError); `out` holds nothing of use.
 *
 * Reads only [offset, offset + length). `limits.uriBytesMax` is not used. An incomplete head that
 * is already over a limit is an error.
 */
export function parseResponseHead(
  memory: Uint8Array,
  offset: number,
  length: number,
  limits: ParserLimits,
  out: ResponseHead,
): number {
  const tooLong = length >= limits.headBytesMax;
  const end = offset + (tooLong ? limits.headBytesMax : length);
  const result = parseWithin(memory, offset, end, limits, out);
  if (result > 0) return result - offset;
  return result === 0 && tooLong ? -ParseError.HEAD_TOO_LARGE : result;
}
