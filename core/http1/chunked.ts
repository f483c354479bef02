// Decodes a chunked body in place: payload stays where it arrived, framing disappears between it.
//
//   SIZE_FIRST -> SIZE -> [EXTENSION ...] -> LINE_LF -> DATA -> DATA_CR -> DATA_LF -> SIZE_FIRST
//                                               \-> (size 0) TRAILERS -> DONE
//
// All state is a few numbers, so input may be split at any byte and a connection at rest holds no
// buffer; only the trailer section is left with the caller until it is whole. Stricter than the
// grammar in one place: no white space around chunk extensions. RFC 9112 §7.1.1 lets recipients
// drop it, nobody sends it, and parsers disagree about it, which is what smuggling is made of.
// Owned by one worker. Hot module: no allocation per call.
// Spec: RFC 9112 §7.1 (chunked), RFC 9110 §5.6.4 (quoted-string), §6.5 (trailers).

import * as chars from './chars.ts';
import { ParseError } from './errors.ts';
import { FieldBits, parseFields } from './fields.ts';
import { findEmptyLine } from './head-scan.ts';
import { HeaderId } from './header-ids.ts';
import { HEADER_COUNT_CAPACITY, HeaderTable } from './header-table.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { BACKSLASH, CR, DIGIT_0, DQUOTE, EQUALS, LF, SEMICOLON } = chars.Byte;
const { fieldByte, hexDigitPlusOne, quotedByte, tokenByte } = chars;

/** Where a decoder stands: the next byte it expects. */
export const ChunkPhase = {
  SIZE_FIRST: 0,
  SIZE: 1,
  EXTENSION_NAME_FIRST: 2,
  EXTENSION_NAME: 3,
  EXTENSION_VALUE_FIRST: 4,
  EXTENSION_VALUE: 5,
  EXTENSION_QUOTED: 6,
  EXTENSION_ESCAPE: 7,
  EXTENSION_QUOTED_END: 8,
  LINE_LF: 9,
  DATA: 10,
  DATA_CR: 11,
  DATA_LF: 12,
  TRAILERS: 13,
  DONE: 14,
} as const;

/** Most digits of a chunk size, leading zeros included. */
const SIZE_DIGITS_MAX = 16;
/** Most bytes of extensions on one chunk line, and in one body: they are dropped, so they only cost. */
const EXTENSION_LINE_BYTES_MAX = 4 * 1024;
const EXTENSION_BODY_BYTES_MAX = 16 * 1024;
/** Payload runs up to this many bytes are moved by a loop: cheaper than the call to copyWithin. */
const COPY_LOOP_BYTES_MAX = 32;

/** Fields that would change what the head already decided (RFC 9110 §6.5.1). */
const FORBIDDEN_TRAILER_BITS =
  (1 << HeaderId.HOST) |
  (1 << HeaderId.CONTENT_LENGTH) |
  (1 << HeaderId.TRANSFER_ENCODING) |
  (1 << HeaderId.CONNECTION) |
  (1 << HeaderId.UPGRADE) |
  (1 << HeaderId.EXPECT);

/** One per thread: parsing never nests. */
const bits = new FieldBits();

/** One body being decoded. Reused for every body of a connection; call `reset` before each. */
export class ChunkedState {
  /** A ChunkPhase; DONE once the empty line after the trailers is consumed. */
  phase = 0;
  /** Size read so far, then payload bytes left in the current chunk; up to 2^53 - 1. */
  remaining = 0;
  /** Digits of the current chunk size. */
  digits = 0;
  /** Extension bytes on the current line and in the whole body. */
  lineExtensionBytes = 0;
  bodyExtensionBytes = 0;
  /** Bytes of an incomplete trailer section that are already known to hold no end. */
  trailerScanned = 0;

  // -- results of the last call ------------------------------------------------
  /** Payload found in the input, made contiguous; valid until the buffer is reused. */
  payloadOffset = 0;
  payloadLength = 0;
  /** Bytes of the input that are done with. */
  consumed = 0;
  /** The caller must keep the input from `consumed` on and call again with more bytes after it. */
  needTrailers = false;
  /**
   * Trailer fields once `phase` is DONE; positions are into the input that held them. Valid until
   * that buffer is reused. Empty when there are none.
   */
  readonly trailers = new HeaderTable();

  /** Makes the state ready for the first byte of a new body. */
  reset(): void {
    this.phase = ChunkPhase.SIZE_FIRST;
    this.remaining = 0;
    this.digits = 0;
    this.lineExtensionBytes = 0;
    this.bodyExtensionBytes = 0;
    this.trailerScanned = 0;
    this.payloadOffset = 0;
    this.payloadLength = 0;
    this.consumed = 0;
    this.needTrailers = false;
    this.trailers.count = 0;
  }
}

/** Phase after a byte that ends an element of the chunk line: CR ends the line, `;` starts an extension. */
function afterElement(byte: number, error: number): number {
  if (byte === CR) return ChunkPhase.LINE_LF;
  if (byte === SEMICOLON) return ChunkPhase.EXTENSION_NAME_FIRST;
  return byte === LF ? -ParseError.BARE_LF : -error;
}

/** Phase after `byte` inside an extension, or -(ParseError). */
function extensionPhase(phase: number, byte: number): number {
  switch (phase) {
    case ChunkPhase.EXTENSION_NAME_FIRST:
      return tokenByte[byte] !== 0 ? ChunkPhase.EXTENSION_NAME : -ParseError.CHUNK_EXTENSION_INVALID;
    case ChunkPhase.EXTENSION_NAME:
      if (tokenByte[byte] !== 0) return phase;
      if (byte === EQUALS) return ChunkPhase.EXTENSION_VALUE_FIRST;
      return afterElement(byte, ParseError.CHUNK_EXTENSION_INVALID);
    case ChunkPhase.EXTENSION_VALUE_FIRST:
      if (byte === DQUOTE) return ChunkPhase.EXTENSION_QUOTED;
      return tokenByte[byte] !== 0 ? ChunkPhase.EXTENSION_VALUE : -ParseError.CHUNK_EXTENSION_INVALID;
    case ChunkPhase.EXTENSION_VALUE:
      return tokenByte[byte] !== 0 ? phase : afterElement(byte, ParseError.CHUNK_EXTENSION_INVALID);
    case ChunkPhase.EXTENSION_QUOTED:
      if (quotedByte[byte] !== 0) return phase;
      if (byte === DQUOTE) return ChunkPhase.EXTENSION_QUOTED_END;
      return byte === BACKSLASH ? ChunkPhase.EXTENSION_ESCAPE : -ParseError.CHUNK_EXTENSION_INVALID;
    case ChunkPhase.EXTENSION_ESCAPE:
      return fieldByte[byte] !== 0 ? ChunkPhase.EXTENSION_QUOTED : -ParseError.CHUNK_EXTENSION_INVALID;
    default:
      return afterElement(byte, ParseError.CHUNK_EXTENSION_INVALID);
  }
}

/** Adds `size` payload bytes at `from` to the payload of this call, moving them only if there is a gap. */
function appendPayload(memory: Uint8Array, state: ChunkedState, from: number, size: number): void {
  if (state.payloadLength === 0) {
    state.payloadOffset = from;
    state.payloadLength = size;
    return;
  }
  const to = state.payloadOffset + state.payloadLength;
  if (to !== from) {
    if (size > COPY_LOOP_BYTES_MAX) memory.copyWithin(to, from, from + size);
    else for (let i = 0; i < size; i++) memory[to + i] = memory[from + i];
  }
  state.payloadLength += size;
}

/** Handles the trailer section at `start`: offset after it, `start` if it is incomplete, or -(ParseError). */
function decodeTrailers(
  memory: Uint8Array,
  start: number,
  inputEnd: number,
  state: ChunkedState,
  bytesMax: number,
): number {
  const tooLong = inputEnd - start >= bytesMax;
  const end = tooLong ? start + bytesMax : inputEnd;
  const sectionEnd = findEmptyLine(memory, start, end, start + state.trailerScanned);
  if (sectionEnd < 0) {
    if (tooLong) return -ParseError.TRAILERS_TOO_LARGE;
    state.trailerScanned = end - start;
    return start;
  }
  const after = parseFields(memory, start, sectionEnd, HEADER_COUNT_CAPACITY, state.trailers, bits);
  if (after < 0) return after;
  if ((bits.seen & FORBIDDEN_TRAILER_BITS) !== 0) return -ParseError.TRAILER_FORBIDDEN;
  return after;
}

/**
 * Decodes [offset, offset + length) as the next piece of a chunked body.
 *
 * Payload is compacted in place: afterwards the payload bytes of this input lie at
 * `state.payloadOffset`, `state.payloadLength` of them (nothing moves when the input holds one run
 * of payload). `state.consumed` says how much input is done with; what follows a finished body is
 * left alone. Returns 0, or -(ParseError), after which the state must be reset.
 *
 * If `state.needTrailers`, the input ends within the trailer section: keep the bytes from `consumed` on,
 * append more, and call again with all of them (they may have moved). `maxTrailerBytes` bounds that
 * section, its empty line included, and must be at least 2.
 */
export function decodeChunked(
  memory: Uint8Array,
  offset: number,
  length: number,
  state: ChunkedState,
  maxTrailerBytes: number,
): number {
  const end = (offset + length) | 0;
  let i = offset | 0;
  let phase = state.phase;
  state.payloadOffset = offset;
  state.payloadLength = 0;
  state.needTrailers = false;
  while (i < end && phase !== ChunkPhase.DONE) {
    if (phase === ChunkPhase.DATA) {
      const available = end - i;
      const size = state.remaining < available ? state.remaining | 0 : available;
      appendPayload(memory, state, i, size);
      i += size;
      state.remaining -= size;
      if (state.remaining === 0) phase = ChunkPhase.DATA_CR;
      continue;
    }
    if (phase === ChunkPhase.TRAILERS) {
      const after = decodeTrailers(memory, i, end, state, maxTrailerBytes);
      if (after < 0) return after;
      if (after === i) {
        state.needTrailers = true;
        break;
      }
      i = after;
      phase = ChunkPhase.DONE;
      break;
    }
    const byte = memory[i++];
    switch (phase) {
      case ChunkPhase.SIZE_FIRST:
      case ChunkPhase.SIZE: {
        const digit = hexDigitPlusOne[byte] - 1;
        if (digit >= 0) {
          if (++state.digits > SIZE_DIGITS_MAX) return -ParseError.CHUNK_SIZE_TOO_LARGE;
          state.remaining = state.remaining * 16 + digit;
          if (state.remaining > Number.MAX_SAFE_INTEGER) return -ParseError.CHUNK_SIZE_TOO_LARGE;
          phase = ChunkPhase.SIZE;
          break;
        }
        if (phase === ChunkPhase.SIZE_FIRST) return -ParseError.CHUNK_SIZE_INVALID;
        phase = afterElement(byte, ParseError.CHUNK_SIZE_INVALID);
        if (phase < 0) return phase;
        break;
      }
      case ChunkPhase.LINE_LF:
        if (byte !== LF) return -ParseError.BARE_CR;
        phase = state.remaining === 0 ? ChunkPhase.TRAILERS : ChunkPhase.DATA;
        state.digits = 0;
        state.lineExtensionBytes = 0;
        break;
      case ChunkPhase.DATA_CR:
        if (byte !== CR) return byte === LF ? -ParseError.BARE_LF : -ParseError.CHUNK_END_INVALID;
        phase = ChunkPhase.DATA_LF;
        break;
      case ChunkPhase.DATA_LF:
        if (byte !== LF) return -ParseError.BARE_CR;
        phase = ChunkPhase.SIZE_FIRST;
        break;
      default:
        phase = extensionPhase(phase, byte);
        if (phase < 0) return phase;
        state.lineExtensionBytes++;
        state.bodyExtensionBytes++;
        if (
          state.lineExtensionBytes > EXTENSION_LINE_BYTES_MAX ||
          state.bodyExtensionBytes > EXTENSION_BODY_BYTES_MAX
        ) {
          return -ParseError.CHUNK_EXTENSION_TOO_LARGE;
        }
        break;
    }
  }
  state.phase = phase;
  state.consumed = i - offset;
  return 0;
}

/**
 * Writes the line "HEX\r\n" of a chunk with `payloadLength` bytes (0 to 2^31 - 1) so that it ends
 * at `end`, directly before its payload, and returns its offset. It takes at most 10 bytes.
 */
export function writeChunkHeader(memory: Uint8Array, end: number, payloadLength: number): number {
  let at = end - 1;
  memory[at] = LF;
  memory[--at] = CR;
  do {
    const digit = payloadLength & 15;
    memory[--at] = digit < 10 ? DIGIT_0 + digit : 0x41 + digit - 10;
    payloadLength >>>= 4;
  } while (payloadLength !== 0);
  return at;
}
