// Parses an HTTP/1 request head in place: positions and decisions into a RequestHead, no strings.
//
// One pass from the first byte to the empty line, then a few checks on the known fields. It keeps
// no state between calls: a head that is not complete is parsed again from its start when
// more has come (see head-scan.ts for heads in many pieces), so where the input was split
// can never change the outcome.
// Owned by one worker. Hot module: runs for every request, allocates nothing.
// Spec: RFC 9112 §2.2 (line ends), §3 (request line), RFC 9110 §7.2 (Host), §10.1.1 (Expect).

import { authorityHostLength, parsePort } from './authority.ts';
import * as chars from './chars.ts';
import { ParseError } from './errors.ts';
import { FieldBits, parseFields } from './fields.ts';
import { applyFraming, requestProtectedIds } from './framing.ts';
import { HeaderId } from './header-ids.ts';
import { Method, type ParserLimits, type RequestHead, TargetForm } from './message.ts';
import { equalsLower, lowerLiteral, wordView } from './word-view.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { ASTERISK, COLON, CR, DIGIT_0, DOT, LF, QUESTION, SLASH, SP } = chars.Byte;
const { targetByte, tokenByte } = chars;
const { OTHER, OPTIONS, CONNECT } = Method;
const { HOST, EXPECT } = HeaderId;

/** Longest method token accepted, in bytes; the longest registered one has 16. */
export const METHOD_BYTES_MAX = 32;

/** Empty lines accepted before a request line (RFC 9112 §2.2 asks for at least one). */
const LEADING_LINES_MAX = 2;

const HOST_BIT = 1 << HOST;
const EXPECT_BIT = 1 << EXPECT;

/** "HTTP", "/1.1" and "/1.0" as little-endian words. */
const HTTP_WORD = 0x50545448;
const VERSION_11_WORD = 0x312e312f;
const VERSION_10_WORD = 0x302e312f;

const versionPrefix = Uint8Array.from(Buffer.from('HTTP/', 'latin1'));
const literalContinue = lowerLiteral('100-continue');
const literalHttp = lowerLiteral('http');
const literalHttps = lowerLiteral('https');

const methodNames = Object.entries(Method).filter(([name]) => name !== 'OTHER');
const METHOD_COUNT = methodNames.length + 1;
/**
 * By method number: length, first four bytes and last four bytes of the method and the space after
 * it, as little-endian words. No method is shorter than three bytes or longer than seven, so
 * these say it all.
 */
const methodLengths = new Uint8Array(METHOD_COUNT);
const methodFirstWords = new Int32Array(METHOD_COUNT);
const methodLastWords = new Int32Array(METHOD_COUNT);
for (const [name, method] of methodNames) {
  const bytes = Buffer.from(`${name} `, 'latin1');
  methodLengths[method] = name.length;
  methodFirstWords[method] = bytes.readInt32LE(0);
  methodLastWords[method] = bytes.readInt32LE(bytes.length - 4);
}

/** One per thread: parsing never nests. */
const bits = new FieldBits();

/**
 * Number of the method at `offset`, which a space follows; OTHER for an unknown token.
 * Case matters (RFC 9110 §9.1).
 */
export function methodNumber(memory: Uint8Array, offset: number, length: number): number {
  if (length < 3) return OTHER;
  const view = wordView(memory);
  const first = view.getInt32(offset, true);
  const last = view.getInt32(offset + length - 3, true);
  for (let method = 1; method < METHOD_COUNT; method++) {
    if (methodFirstWords[method] === first && methodLastWords[method] === last && methodLengths[method] === length) {
      return method;
    }
  }
  return OTHER;
}

/**
 * Minor version of the "HTTP/1.x" at `offset` followed by CRLF, 2 if more bytes are needed,
 * or -(ParseError). Anything of the form HTTP/digit.digit that is not 1.0 or 1.1 is unsupported.
 */
function requestVersion(memory: Uint8Array, offset: number, end: number): number {
  if (offset + 10 <= end && memory[offset + 8] === CR && memory[offset + 9] === LF) {
    const view = wordView(memory);
    if (view.getInt32(offset, true) === HTTP_WORD) {
      const version = view.getInt32(offset + 4, true);
      if (version === VERSION_11_WORD) return 1;
      if (version === VERSION_10_WORD) return 0;
    }
  }
  return slowVersion(memory, offset, end);
}

/** The same byte by byte: for lines cut short, other versions and errors. */
function slowVersion(memory: Uint8Array, offset: number, end: number): number {
  for (let i = 0; i < 5; i++) {
    if (offset + i >= end) return 2;
    const byte = memory[offset + i];
    if (byte === versionPrefix[i]) continue;
    if (byte === LF) return -ParseError.BARE_LF;
    return byte === CR && i === 0 ? -ParseError.VERSION_MISSING : -ParseError.VERSION_INVALID;
  }
  const at = offset + 5;
  if (at >= end) return 2;
  const major = memory[at] - DIGIT_0;
  if (major < 0 || major > 9) return -ParseError.VERSION_INVALID;
  if (at + 1 >= end) return 2;
  if (memory[at + 1] !== DOT) return -ParseError.VERSION_INVALID;
  if (at + 2 >= end) return 2;
  const minor = memory[at + 2] - DIGIT_0;
  if (minor < 0 || minor > 9) return -ParseError.VERSION_INVALID;
  if (at + 3 >= end) return 2;
  if (memory[at + 3] === LF) return -ParseError.BARE_LF;
  if (memory[at + 3] !== CR) return -ParseError.VERSION_INVALID;
  if (at + 4 >= end) return 2;
  if (memory[at + 4] !== LF) return -ParseError.BARE_CR;
  return major === 1 && minor <= 1 ? minor : -ParseError.VERSION_UNSUPPORTED;
}

/**
 * Splits an absolute-form target into authority and path (RFC 9112 §3.2.2): 0 or -(ParseError).
 * `query` is the offset of the first `?`, or -1.
 */
function parseAbsoluteForm(memory: Uint8Array, head: RequestHead, query: number): number {
  const start = head.targetOffset;
  const end = start + head.targetLength;
  let i = start;
  while (i < end && memory[i] !== COLON) i++;
  if (i + 2 >= end || memory[i + 1] !== SLASH || memory[i + 2] !== SLASH) {
    return -ParseError.TARGET_FORM_INVALID;
  }
  if (!equalsLower(memory, start, i - start, literalHttp) && !equalsLower(memory, start, i - start, literalHttps)) {
    return -ParseError.TARGET_SCHEME_UNSUPPORTED;
  }
  const authority = i + 3;
  i = authority;
  while (i < end && memory[i] !== SLASH && memory[i] !== QUESTION) i++;
  // Userinfo needs "@", which no host byte is: RFC 9110 §4.2.4 wants it treated as an error.
  const hostLength = authorityHostLength(memory, authority, i - authority);
  if (hostLength < 0) return -ParseError.TARGET_AUTHORITY_INVALID;
  head.targetForm = TargetForm.ABSOLUTE;
  head.authorityOffset = authority;
  head.authorityLength = i - authority;
  head.hostLength = hostLength;
  head.pathOffset = i;
  head.pathLength = end - i;
  head.pathOnlyLength = (query < 0 ? end : query) - i;
  return 0;
}

/** Authority-form, only for CONNECT: host and port are both required (RFC 9110 §9.3.6). */
function parseAuthorityForm(memory: Uint8Array, head: RequestHead): number {
  const { targetOffset, targetLength } = head;
  const hostLength = authorityHostLength(memory, targetOffset, targetLength);
  if (hostLength < 0 || hostLength === targetLength) return -ParseError.TARGET_AUTHORITY_INVALID;
  if (parsePort(memory, targetOffset + hostLength + 1, targetOffset + targetLength) === 0) {
    return -ParseError.TARGET_AUTHORITY_INVALID;
  }
  head.targetForm = TargetForm.AUTHORITY;
  head.authorityOffset = targetOffset;
  head.authorityLength = targetLength;
  head.hostLength = hostLength;
  head.pathOffset = targetOffset + targetLength;
  head.pathLength = 0;
  head.pathOnlyLength = 0;
  return 0;
}

/** Decides the form of the target and fills path and, if it has one, authority: 0 or -(ParseError). */
function parseTarget(memory: Uint8Array, head: RequestHead, query: number): number {
  const start = head.targetOffset;
  head.authorityOffset = start;
  head.authorityLength = 0;
  head.hostLength = 0;
  if (head.method === CONNECT) return parseAuthorityForm(memory, head);
  const first = memory[start];
  if (first === SLASH) {
    head.targetForm = TargetForm.ORIGIN;
  } else if (first === ASTERISK && head.targetLength === 1) {
    if (head.method !== OPTIONS) return -ParseError.TARGET_FORM_INVALID;
    head.targetForm = TargetForm.ASTERISK;
  } else {
    return parseAbsoluteForm(memory, head, query);
  }
  head.pathOffset = start;
  head.pathLength = head.targetLength;
  head.pathOnlyLength = query < 0 ? head.targetLength : query - start;
  return 0;
}

/** Host rules of RFC 9110 §7.2 and RFC 9112 §3.2, stricter in that 1.0 may not repeat Host either. */
function applyHost(memory: Uint8Array, head: RequestHead): number {
  if ((bits.seen & HOST_BIT) === 0) return head.versionMinor === 1 ? -ParseError.HOST_MISSING : 0;
  if ((bits.repeated & HOST_BIT) !== 0) return -ParseError.HOST_DUPLICATE;
  const table = head.headers;
  const field = table.find(HOST);
  const length = table.valueLength(field);
  if (length === 0) return 0;
  const offset = table.valueOffset(field);
  const hostLength = authorityHostLength(memory, offset, length);
  if (hostLength < 0) return -ParseError.HOST_INVALID;
  // The authority of the target overrides Host (RFC 9112 §3.2.2), but a bad Host is still refused.
  if (head.authorityLength === 0) {
    head.authorityOffset = offset;
    head.authorityLength = length;
    head.hostLength = hostLength;
  }
  return 0;
}

/** Expect: 100-continue counts in 1.1 and is ignored in 1.0; anything else cannot be met (417). */
function applyExpect(memory: Uint8Array, head: RequestHead): number {
  const table = head.headers;
  for (let field = table.find(EXPECT); field >= 0; field = table.find(EXPECT, field + 1)) {
    if (!equalsLower(memory, table.valueOffset(field), table.valueLength(field), literalContinue)) {
      return -ParseError.EXPECTATION_UNKNOWN;
    }
  }
  head.expectContinue = head.versionMinor === 1;
  return 0;
}

/** The parse proper, on at most `limits.headBytesMax` bytes: offset after the head, 0, or an error. */
function parseWithin(memory: Uint8Array, offset: number, end: number, limits: ParserLimits, head: RequestHead): number {
  end |= 0;
  let i = offset | 0;
  for (let lines = 0; i < end && memory[i] === CR; lines++) {
    if (lines === LEADING_LINES_MAX) return -ParseError.LEADING_EMPTY_LINES;
    if (i + 1 >= end) return 0;
    if (memory[i + 1] !== LF) return -ParseError.BARE_CR;
    i += 2;
  }

  const methodOffset = i;
  const methodStop = Math.min(i + METHOD_BYTES_MAX, end);
  while (i < methodStop && tokenByte[memory[i]] !== 0) i++;
  if (i >= end) return 0;
  if (memory[i] !== SP || i === methodOffset) {
    if (i - methodOffset === METHOD_BYTES_MAX && tokenByte[memory[i]] !== 0) return -ParseError.METHOD_TOO_LONG;
    return memory[i] === LF ? -ParseError.BARE_LF : -ParseError.METHOD_INVALID;
  }
  head.methodOffset = methodOffset;
  head.methodLength = i - methodOffset;
  head.method = methodNumber(memory, methodOffset, i - methodOffset);

  const targetOffset = ++i;
  // One byte past the limit decides it, whether or not the rest of the target is here yet.
  const targetStop = Math.min(i + limits.uriBytesMax, end);
  let query = -1;
  for (; i < targetStop; i++) {
    const kind = targetByte[memory[i]];
    if (kind === 1) continue;
    if (kind === 0) break;
    if (query < 0) query = i;
  }
  if (i >= end) return 0;
  const afterTarget = memory[i];
  if (afterTarget !== SP || i === targetOffset) {
    if (targetByte[afterTarget] !== 0) return -ParseError.URI_TOO_LONG;
    if (afterTarget === LF) return -ParseError.BARE_LF;
    return afterTarget === CR && i > targetOffset ? -ParseError.VERSION_MISSING : -ParseError.TARGET_INVALID;
  }
  head.targetOffset = targetOffset;
  head.targetLength = i - targetOffset;

  const versionMinor = requestVersion(memory, ++i, end);
  if (versionMinor < 0) return versionMinor;
  if (versionMinor === 2) return 0;
  head.versionMinor = versionMinor;
  // After the version, so that "PRI * HTTP/2.0" is a version and not a form that we do not speak.
  const targetResult = parseTarget(memory, head, query);
  if (targetResult < 0) return targetResult;

  const after = parseFields(memory, i + 10, end, limits.headerCountMax, head.headers, bits);
  if (after <= 0) return after;
  head.seen = bits.seen;
  const hostResult = applyHost(memory, head);
  if (hostResult < 0) return hostResult;
  const framingResult = applyFraming(memory, head, bits, requestProtectedIds);
  if (framingResult < 0) return framingResult;
  // RFC 9110 §9.3.6: CONNECT has no content; a length before a tunnel is an invitation to smuggle.
  if (head.method === CONNECT && (head.chunked || head.contentLength > 0)) {
    return -ParseError.CONNECT_WITH_CONTENT;
  }
  head.expectContinue = false;
  if ((bits.seen & EXPECT_BIT) !== 0) {
    const expectResult = applyExpect(memory, head);
    if (expectResult < 0) return expectResult;
  }
  head.endOffset = after;
  return after;
}

/**
 * Parses the request head at `offset`. Returns
 * - > 0: bytes of the head, empty lines before and after it included; `out` is filled,
 * - 0: the head is not complete in `length` bytes and nothing is wrong so far,
 * - < 0: -(ParseError); `out` holds nothing of use.
 *
 * Reads only [offset, offset + length). An incomplete head that is already over a limit is an
 * error, and a prefix of a head never gives another error than the whole head does.
 */
export function parseRequestHead(
  memory: Uint8Array,
  offset: number,
  length: number,
  limits: ParserLimits,
  out: RequestHead,
): number {
  const tooLong = length >= limits.headBytesMax;
  const end = offset + (tooLong ? limits.headBytesMax : length);
  const result = parseWithin(memory, offset, end, limits, out);
  if (result > 0) return result - offset;
  return result === 0 && tooLong ? -ParseError.HEAD_TOO_LARGE : result;
}
