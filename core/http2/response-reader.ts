// Response heads of HTTP/2 upstreams as HTTP/1.1 text with positions, so that everything behind knows one form.
//
// The text is laid out where the caller wants it: the status line, the decoded lines as they are, an empty line.
// What RFC 9113 calls malformed is refused before; what is left is valid HTTP/1.1.
// Owned by one worker. Hot module: no allocation.
// Spec: RFC 9113 §8.1.1 (malformed), §8.2.2 (connection-specific fields), §8.3.2 (:status).

import { parseContentLength } from '../http1/framing.ts';
import { HeaderId } from '../http1/header-ids.ts';
import { FIELD_WORDS } from '../http1/header-table.ts';
import type { ResponseHead } from '../http1/message.ts';
import { putLineEnd, putText } from '../io/bytes.ts';
import type { Reactor } from '../io/reactor.ts';
import { PSEUDO_FIRST, PseudoId } from './pseudo-ids.ts';
import type { HeaderBlock } from './role.ts';
import { PHRASE_AT, STATUS_LINE_BYTES_MAX, statusLine } from './status-lines.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const WORDS = FIELD_WORDS;
const { CONNECTION, CONTENT_LENGTH, KEEP_ALIVE, PROXY_CONNECTION, TRANSFER_ENCODING, UPGRADE } = HeaderId;
const STATUS_PSEUDO = PseudoId.STATUS;
const STATUS_PSEUDO_BIT = 1 << (PseudoId.STATUS - PSEUDO_FIRST);
const STATUS_DIGITS = 3;
const DIGIT_0 = 48;

/** Fields that make a message malformed (RFC 9113 §8.2.2). */
const FORBIDDEN_BITS =
  (1 << CONNECTION) | (1 << KEEP_ALIVE) | (1 << PROXY_CONNECTION) | (1 << TRANSFER_ENCODING) | (1 << UPGRADE);
const CONTENT_LENGTH_BIT = 1 << CONTENT_LENGTH;

/** What `responseStatus` says of a head that cannot be used. */
export const HEAD_MALFORMED = -1;
export const HEAD_TOO_LARGE = -2;

/** Status of a decoded response head, 100 to 599, or HEAD_MALFORMED or HEAD_TOO_LARGE. */
export function responseStatus(memory: Uint8Array, block: HeaderBlock): number {
  const { decoder, headers } = block;
  if (decoder.tooLarge) return HEAD_TOO_LARGE;
  if (decoder.malformed !== 0 || decoder.pseudoSeen !== STATUS_PSEUDO_BIT) return HEAD_MALFORMED;
  if ((decoder.seen & FORBIDDEN_BITS) !== 0 || (decoder.repeated & CONTENT_LENGTH_BIT) !== 0) return HEAD_MALFORMED;
  if (headers.id(0) !== STATUS_PSEUDO || headers.valueLength(0) !== STATUS_DIGITS) return HEAD_MALFORMED;
  const at = headers.valueOffset(0);
  let status = 0;
  for (let i = at; i < at + STATUS_DIGITS; i++) {
    const digit = memory[i] - DIGIT_0;
    if (digit < 0 || digit > 9) return HEAD_MALFORMED;
    status = status * 10 + digit;
  }
  return status < 100 || status > 599 ? HEAD_MALFORMED : status;
}

/** Content-Length of a head that `responseStatus` has passed, -1 for none, or -2 when it is no number. */
export function responseContentLength(memory: Uint8Array, block: HeaderBlock): number {
  if ((block.decoder.seen & CONTENT_LENGTH_BIT) === 0) return -1;
  const { headers } = block;
  const field = headers.find(CONTENT_LENGTH);
  const value = parseContentLength(memory, headers.valueOffset(field), headers.valueLength(field));
  return value < 0 ? -2 : value;
}

/** Upper bound of the text that `writeResponseHead` writes. */
export function responseHeadBytesMax(block: HeaderBlock): number {
  return STATUS_LINE_BYTES_MAX + block.textLength + 2;
}

/**
 * Writes a head that `responseStatus` has passed as HTTP/1.1 text at `at` (`responseHeadBytesMax` bytes of room)
 * and fills `head`. `head.versionMinor` is 2, which only Via tells from others. Returns the offset after it.
 */
export function writeResponseHead(
  reactor: Reactor,
  at: number,
  block: HeaderBlock,
  status: number,
  contentLength: number,
  head: ResponseHead,
): number {
  const { memory, view } = reactor;
  const { headers: from, decoder } = block;
  const { headers } = head;
  const line = statusLine(status);
  const fieldsOffset = putText(view, at, line);
  let end = fieldsOffset;
  const fields = from.count - 1;
  if (fields > 0) {
    const start = from.nameOffset(1);
    const length = block.textOffset + block.textLength - start;
    memory.copyWithin(fieldsOffset, start, start + length);
    end += length;
    const shift = fieldsOffset - start;
    const { words } = headers;
    const source = from.words;
    const count = fields * WORDS;
    for (let word = 0; word < count; word += WORDS) {
      words[word] = source[word + WORDS] + shift;
      words[word + 1] = source[word + WORDS + 1];
      words[word + 2] = source[word + WORDS + 2] + shift;
      words[word + 3] = source[word + WORDS + 3];
      words[word + 4] = source[word + WORDS + 4];
    }
  }
  end = putLineEnd(view, end);
  headers.count = fields;
  head.status = status;
  head.reasonOffset = at + PHRASE_AT;
  head.reasonLength = line.length - PHRASE_AT - 2;
  head.versionMinor = 2;
  head.fieldsOffset = fieldsOffset;
  head.contentLength = contentLength;
  head.chunked = false;
  head.keepAlive = true;
  head.upgradeField = -1;
  head.connectionNamesFields = false;
  head.hasHopByHop = false;
  head.seen = decoder.seen;
  head.endOffset = end;
  return end;
}
