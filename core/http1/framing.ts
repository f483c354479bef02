// How long a message's body is and whether its connection lasts: Content-Length,
// Transfer-Encoding, Connection and Upgrade. The same rules for requests and responses.
//
// This is where request smuggling is decided, so everything on which two parsers could differ is an
// error: a second Content-Length even if equal (RFC 9112 §6.3 would allow it), any list in it,
// Content-Length beside Transfer-Encoding (§6.1 would let the latter win), Transfer-Encoding
// in HTTP/1.0 or in two fields.
// Owned by one worker. Hot module: no allocation.
// Spec: RFC 9112 §6 (body), §9.3 (persistence), RFC 9110 §7.6.1 (Connection), §7.8 (Upgrade).

import * as chars from './chars.ts';
import { ParseError } from './errors.ts';
import type { FieldBits } from './fields.ts';
import { knownHeaderId } from './header-hash.ts';
import { HeaderId, headerNames } from './header-ids.ts';
import type { HeaderTable } from './header-table.ts';
import { equalsLower, lowerLiteral } from './word-view.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { COMMA, DIGIT_0, HTAB, SP } = chars.Byte;
const { tokenByte } = chars;

/** What the framing rules read and write; both head classes have it. */
export interface MessageFraming {
  readonly headers: HeaderTable;
  versionMinor: number;
  contentLength: number;
  chunked: boolean;
  keepAlive: boolean;
  upgradeField: number;
  connectionNamesFields: boolean;
  hasHopByHop: boolean;
}

const CONNECTION_BIT = 1 << HeaderId.CONNECTION;
const CONTENT_LENGTH_BIT = 1 << HeaderId.CONTENT_LENGTH;
const TRANSFER_ENCODING_BIT = 1 << HeaderId.TRANSFER_ENCODING;
const UPGRADE_BIT = 1 << HeaderId.UPGRADE;

/**
 * Fields that concern one connection only. RFC 9110 §7.6.1 plus those that RFC 9113 §8.2.2 and
 * older practice add; a message without any of them can be forwarded without looking at each field.
 */
const HOP_BY_HOP_BITS =
  CONNECTION_BIT |
  TRANSFER_ENCODING_BIT |
  UPGRADE_BIT |
  (1 << HeaderId.KEEP_ALIVE) |
  (1 << HeaderId.PROXY_CONNECTION) |
  (1 << HeaderId.TE) |
  (1 << HeaderId.TRAILER) |
  (1 << HeaderId.HTTP2_SETTINGS) |
  (1 << HeaderId.PROXY_AUTHENTICATE) |
  (1 << HeaderId.PROXY_AUTHORIZATION);

function idTable(ids: readonly number[]): Uint8Array {
  const table = new Uint8Array(headerNames.length);
  for (const id of ids) table[id] = 1;
  return table;
}

/**
 * Fields that a request's Connection must not name. Naming one makes a proxy remove it, which
 * is a known way to change a request's framing, its host or its sender's identity between
 * two hops; no honest client does it (RFC 9110 §7.6.1 forbids it).
 */
export const requestProtectedIds: Uint8Array = idTable([
  HeaderId.HOST,
  HeaderId.CONTENT_LENGTH,
  HeaderId.TRANSFER_ENCODING,
  HeaderId.EXPECT,
  HeaderId.X_FORWARDED_FOR,
  HeaderId.X_FORWARDED_PROTO,
  HeaderId.X_FORWARDED_HOST,
  HeaderId.FORWARDED,
  HeaderId.X_FORWARDED_CLIENT_CERT,
  HeaderId.AUTHORIZATION,
  HeaderId.COOKIE,
  HeaderId.CONTENT_TYPE,
  HeaderId.CONTENT_ENCODING,
  HeaderId.CONTENT_RANGE,
]);

/**
 * The same for responses. Some origin servers do name Transfer-Encoding there; it is replaced on
 * every hop anyway, so that does no harm.
 */
export const responseProtectedIds: Uint8Array = idTable([HeaderId.CONTENT_LENGTH]);

/** Options found in Connection. */
const OPTION_CLOSE = 1;
const OPTION_KEEP_ALIVE = 2;
const OPTION_UPGRADE = 4;
const OPTION_FIELD = 8;

const literalChunked = lowerLiteral('chunked');
const literalClose = lowerLiteral('close');
const literalKeepAlive = lowerLiteral('keep-alive');
const literalUpgrade = lowerLiteral('upgrade');

/** Content-Length value, 0 to 2^53 - 1, or -(ParseError). Digits only: no sign, space or list. */
export function parseContentLength(memory: Uint8Array, offset: number, length: number): number {
  if (length === 0) return -ParseError.CONTENT_LENGTH_INVALID;
  let value = 0;
  for (let i = offset; i < offset + length; i++) {
    const digit = memory[i] - DIGIT_0;
    if (digit < 0 || digit > 9) {
      // A list of lengths is a second Content-Length in disguise (RFC 9112 §6.3).
      return memory[i] === COMMA && i > offset
        ? -ParseError.CONTENT_LENGTH_DUPLICATE
        : -ParseError.CONTENT_LENGTH_INVALID;
    }
    value = value * 10 + digit;
    if (value > Number.MAX_SAFE_INTEGER) return -ParseError.CONTENT_LENGTH_TOO_LARGE;
  }
  return value;
}

/**
 * 0 if the value is exactly `chunked`, ignoring case; else -(ParseError).
 * A well-formed list that ends in one `chunked` is a coding we do not have (501, RFC 9112 §6.1);
 * anything else leaves the length of the body open (400, RFC 9112 §6.3).
 */
function checkTransferEncoding(memory: Uint8Array, offset: number, length: number): number {
  if (equalsLower(memory, offset, length, literalChunked)) return 0;
  const end = offset + length;
  let chunkedCount = 0;
  let lastIsChunked = false;
  let i = offset;
  for (;;) {
    const start = i;
    while (i < end && tokenByte[memory[i]] !== 0) i++;
    if (i === start) return -ParseError.TRANSFER_ENCODING_INVALID;
    lastIsChunked = equalsLower(memory, start, i - start, literalChunked);
    if (lastIsChunked) chunkedCount++;
    while (i < end && (memory[i] === SP || memory[i] === HTAB)) i++;
    if (i === end) break;
    if (memory[i++] !== COMMA) return -ParseError.TRANSFER_ENCODING_INVALID;
    while (i < end && (memory[i] === SP || memory[i] === HTAB)) i++;
  }
  return lastIsChunked && chunkedCount === 1
    ? -ParseError.TRANSFER_CODING_UNSUPPORTED
    : -ParseError.TRANSFER_ENCODING_INVALID;
}

/** Options of one Connection field as OPTION_ bits, or -(ParseError). Empty elements are skipped. */
function connectionOptions(memory: Uint8Array, offset: number, length: number, protectedIds: Uint8Array): number {
  // What nearly every Connection field says.
  if (equalsLower(memory, offset, length, literalKeepAlive)) return OPTION_KEEP_ALIVE;
  if (equalsLower(memory, offset, length, literalClose)) return OPTION_CLOSE;
  const end = offset + length;
  let options = 0;
  let i = offset;
  while (i < end) {
    const byte = memory[i];
    if (byte === COMMA || byte === SP || byte === HTAB) {
      i++;
      continue;
    }
    const start = i;
    while (i < end && tokenByte[memory[i]] !== 0) i++;
    const tokenLength = i - start;
    if (tokenLength === 0) return -ParseError.CONNECTION_INVALID;
    while (i < end && (memory[i] === SP || memory[i] === HTAB)) i++;
    if (i < end && memory[i] !== COMMA) return -ParseError.CONNECTION_INVALID;
    if (equalsLower(memory, start, tokenLength, literalKeepAlive)) {
      options |= OPTION_KEEP_ALIVE;
    } else if (equalsLower(memory, start, tokenLength, literalClose)) {
      options |= OPTION_CLOSE;
    } else if (equalsLower(memory, start, tokenLength, literalUpgrade)) {
      options |= OPTION_UPGRADE;
    } else {
      if (protectedIds[knownHeaderId(memory, start, tokenLength)] !== 0) {
        return -ParseError.CONNECTION_NAMES_PROTECTED_FIELD;
      }
      options |= OPTION_FIELD;
    }
  }
  return options;
}

/** Applies all Connection fields and the version (RFC 9112 §9.3) to `head`: 0 or -(ParseError). */
function applyConnection(memory: Uint8Array, head: MessageFraming, bits: FieldBits, protectedIds: Uint8Array): number {
  const table = head.headers;
  let options = 0;
  for (let field = table.find(HeaderId.CONNECTION); field >= 0; field = table.find(HeaderId.CONNECTION, field + 1)) {
    const found = connectionOptions(memory, table.valueOffset(field), table.valueLength(field), protectedIds);
    if (found < 0) return found;
    options |= found;
  }
  if ((options & OPTION_CLOSE) !== 0) head.keepAlive = false;
  else if ((options & OPTION_KEEP_ALIVE) !== 0) head.keepAlive = true;
  head.connectionNamesFields = (options & OPTION_FIELD) !== 0;
  // Upgrade is ignored in HTTP/1.0 (RFC 9110 §7.8), and where two fields would leave the choice open.
  if (
    (options & OPTION_UPGRADE) !== 0 &&
    (bits.seen & UPGRADE_BIT) !== 0 &&
    (bits.repeated & UPGRADE_BIT) === 0 &&
    head.versionMinor === 1
  ) {
    const field = table.find(HeaderId.UPGRADE);
    if (table.valueLength(field) > 0) head.upgradeField = field;
  }
  return 0;
}

/**
 * Fills the framing members of `head` from its fields; `head.versionMinor` must be set already.
 * Returns 0 or -(ParseError). `protectedIds` marks the ids that Connection must not name.
 */
export function applyFraming(
  memory: Uint8Array,
  head: MessageFraming,
  bits: FieldBits,
  protectedIds: Uint8Array,
): number {
  const seen = bits.seen;
  head.contentLength = -1;
  head.chunked = false;
  head.keepAlive = head.versionMinor === 1;
  head.upgradeField = -1;
  head.connectionNamesFields = false;
  head.hasHopByHop = (seen & HOP_BY_HOP_BITS) !== 0;

  if ((seen & (TRANSFER_ENCODING_BIT | CONTENT_LENGTH_BIT)) !== 0) {
    const table = head.headers;
    if ((seen & TRANSFER_ENCODING_BIT) !== 0) {
      if ((seen & CONTENT_LENGTH_BIT) !== 0) return -ParseError.CONTENT_LENGTH_WITH_TRANSFER_ENCODING;
      if ((bits.repeated & TRANSFER_ENCODING_BIT) !== 0) return -ParseError.TRANSFER_ENCODING_DUPLICATE;
      if (head.versionMinor === 0) return -ParseError.TRANSFER_ENCODING_IN_HTTP10;
      const field = table.find(HeaderId.TRANSFER_ENCODING);
      const result = checkTransferEncoding(memory, table.valueOffset(field), table.valueLength(field));
      if (result < 0) return result;
      head.chunked = true;
    } else {
      if ((bits.repeated & CONTENT_LENGTH_BIT) !== 0) return -ParseError.CONTENT_LENGTH_DUPLICATE;
      const field = table.find(HeaderId.CONTENT_LENGTH);
      const value = parseContentLength(memory, table.valueOffset(field), table.valueLength(field));
      if (value < 0) return value;
      head.contentLength = value;
    }
  }
  if ((seen & CONNECTION_BIT) !== 0) return applyConnection(memory, head, bits, protectedIds);
  return 0;
}
