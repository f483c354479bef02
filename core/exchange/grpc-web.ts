// gRPC-Web to gRPC and back: content types, base64 of the -text variant, and the trailers that a
// browser cannot read, as a last frame of the body.
//
//   client  application/grpc-web[-text]      gateway      application/grpc   upstream (HTTP/2)
//     |  messages (-text: in base64)     --->         --->  messages
//     |  messages, frame 0x80 = trailers <---         <---  messages, trailers
//
// Requests shrink in place; responses grow, so they are encoded slice by slice into memory of the
// caller. State is a few numbers: input may be split at any byte, and a stream of any length costs
// the same. One GrpcWebState belongs to an exchange and stays with it in the pool.
// Owned by one worker. Hot module: no allocation per message.
// Spec: gRPC-Web (PROTOCOL-WEB), gRPC over HTTP/2 (Length-Prefixed-Message), RFC 4648 §4 (base64).

import { HeaderId } from '../http1/header-ids.ts';
import { FIELD_WORDS, type HeaderTable } from '../http1/header-table.ts';
import type { RequestHead, ResponseHead } from '../http1/message.ts';
import { putRange } from '../io/bytes.ts';
import { type BodyPiece, CHUNK_HEADER_BYTES_MAX } from './body.ts';
import {
  dropRequestField,
  findField,
  GRPC_TYPE_BYTES,
  GrpcKind,
  grpcKind,
  grpcTypeExtraBytes,
  isGrpc,
} from './grpc.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { CONTENT_LENGTH, CONTENT_TYPE, KEEP_ALIVE } = HeaderId;
const { WEB, WEB_TEXT } = GrpcKind;

const encoder = new TextEncoder();
const acceptName = encoder.encode('accept');
const webSuffixes = ['', '', '-web', '-web-text'].map((text) => encoder.encode(text));

/** What can be wrong with a body; negative, so that it can stand where a length is expected. */
export const GrpcWebError = {
  /** The request body is not base64, or ends within a group of four. */
  BASE64_INVALID: -1,
  /** The upstream's body is no sequence of gRPC messages. */
  MESSAGE_INVALID: -2,
  /** The upstream's body ends within a message. */
  MESSAGE_TRUNCATED: -3,
  /** The upstream's trailers are larger than TRAILER_FRAME_BYTES_MAX. */
  TRAILERS_TOO_LARGE: -4,
} as const;

/** Bytes of a frame before its payload: flags, and the length as four bytes, high one first. */
const FRAME_HEADER_BYTES = 5;

/** Largest trailer frame, its header included. */
export const TRAILER_FRAME_BYTES_MAX = 16 * 1024;

/** Flags of the frame that holds trailers (PROTOCOL-WEB: most significant bit). */
const TRAILER_FLAG = 0x80;

/** Phase of the decoder after `xx=`, where only the second `=` may follow. */
const SECOND_PADDING = 4;

/** Where the translation of one exchange stands. */
export class GrpcWebState {
  /** The request body comes in base64. */
  requestText = false;
  /** The response body goes in base64. */
  responseText = false;
  /** The response is one of gRPC and is translated; others pass as they are. */
  translating = false;

  // -- base64 of the request: characters seen of the current group, or SECOND_PADDING, and their bits
  decodePhase = 0;
  decodeBits = 0;

  // -- base64 of the response: bytes that wait for a group of three
  encodeCount = 0;
  encodeBits = 0;

  // -- messages of the response
  /** Bytes of the current frame header that have come; FRAME_HEADER_BYTES never stays. */
  headerBytes = 0;
  /** Length read so far while the header comes, then payload bytes still to come; up to 2^32 - 1. */
  messageRemaining = 0;

  // -- the piece of the response being written
  /** Payload bytes of it that are done with. */
  pieceTaken = 0;
  /** A PieceStep. */
  pieceStep = 0;

  /** Makes the state ready for an exchange whose content type is `requestKind` and whose client takes `responseKind`. */
  start(requestKind: number, responseKind: number): void {
    this.requestText = requestKind === WEB_TEXT;
    this.responseText = responseKind === WEB_TEXT;
    this.translating = false;
    this.decodePhase = 0;
    this.decodeBits = 0;
    this.encodeCount = 0;
    this.encodeBits = 0;
    this.headerBytes = 0;
    this.messageRemaining = 0;
    this.pieceTaken = 0;
    this.pieceStep = 0;
  }
}

// -- heads ----------------------------------------------------------------------

/**
 * GrpcKind in which the client of a gRPC-Web request wants its response: what Accept names first,
 * if that is gRPC-Web, else that of the request (WEB or WEB_TEXT).
 */
export function grpcWebResponseKind(memory: Uint8Array, head: RequestHead, requestKind: number): number {
  const { headers } = head;
  const field = findField(memory, headers, acceptName, 0);
  if (field < 0) return requestKind;
  const kind = grpcKind(memory, headers.valueOffset(field), headers.valueLength(field));
  return kind >= WEB ? kind : requestKind;
}

/**
 * Makes a gRPC-Web request head (content type of GrpcKind `kind`) one of gRPC, in place: the content
 * type loses `-web` or `-web-text`, with spaces before it in their stead, and the length of a body
 * that will be decoded does not pass. TE is for the caller to add.
 */
export function retypeRequest(memory: Uint8Array, head: RequestHead, kind: number): void {
  const { headers } = head;
  const field = headers.find(CONTENT_TYPE);
  const offset = headers.valueOffset(field);
  const extra = grpcTypeExtraBytes[kind];
  for (let i = GRPC_TYPE_BYTES - 1; i >= 0; i--) memory[offset + extra + i] = memory[offset + i];
  for (let i = 0; i < extra; i++) memory[offset + i] = 32;
  const word = field * FIELD_WORDS;
  headers.words[word + 2] = offset + extra;
  headers.words[word + 3] -= extra;
  if (kind !== WEB_TEXT) return;
  for (let length = headers.find(CONTENT_LENGTH); length >= 0; length = headers.find(CONTENT_LENGTH, length + 1)) {
    dropRequestField(head, length);
  }
}

/** Room that `retypeResponse` needs before the head. */
export const RETYPE_RESPONSE_BYTES_MAX = 9;

/**
 * Makes a gRPC response head that starts at `headOffset` one of gRPC-Web (`kind` WEB or WEB_TEXT):
 * the content type gains `-web` or `-web-text`, for which everything before moves left by up to
 * RETYPE_RESPONSE_BYTES_MAX bytes, and Content-Length does not pass, since the body grows. Returns
 * the new offset of the head, or -1 with nothing changed if it is no gRPC response.
 */
export function retypeResponse(memory: Uint8Array, headOffset: number, head: ResponseHead, kind: number): number {
  const { headers } = head;
  const { words } = headers;
  const field = headers.find(CONTENT_TYPE);
  if (field < 0 || !isGrpc(memory, headers.valueOffset(field), headers.valueLength(field))) return -1;
  const suffix = webSuffixes[kind];
  const shift = suffix.length;
  const insertAt = headers.valueOffset(field) + GRPC_TYPE_BYTES;
  memory.copyWithin(headOffset - shift, headOffset, insertAt);
  for (let i = 0; i < shift; i++) memory[insertAt - shift + i] = suffix[i];
  head.reasonOffset -= shift;
  head.fieldsOffset -= shift;
  for (let word = 0; word <= field * FIELD_WORDS; word += FIELD_WORDS) {
    words[word] -= shift;
    words[word + 2] -= shift;
  }
  words[field * FIELD_WORDS + 3] += shift;
  head.contentLength = -1;
  for (let length = headers.find(CONTENT_LENGTH); length >= 0; length = headers.find(CONTENT_LENGTH, length + 1)) {
    words[length * FIELD_WORDS + 4] = KEEP_ALIVE;
    head.seen |= 1 << KEEP_ALIVE;
  }
  return headOffset - shift;
}

// -- base64 of requests -----------------------------------------------------------

const INVALID = 64;
const PADDING = 65;

/** Value of each character; INVALID, or PADDING for "=". */
const sextets = new Uint8Array(256).fill(INVALID);
const characters = encoder.encode('ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/');
characters.forEach((character, value) => {
  sextets[character] = value;
});
sextets[61] = PADDING;

/**
 * Decodes the next piece of a base64 body in place: the decoded bytes lie at `offset` afterwards.
 * Padding may come at the end of any group of four, not only of the last (PROTOCOL-WEB). Returns the
 * number of decoded bytes (at most `length`), or GrpcWebError.BASE64_INVALID.
 */
export function decodeBase64(memory: Uint8Array, offset: number, length: number, state: GrpcWebState): number {
  const end = (offset + length) | 0;
  let at = offset | 0;
  let dest = at;
  let phase = state.decodePhase;
  let bits = state.decodeBits;
  while (at < end) {
    if (phase === 0) {
      // Whole groups without padding: nearly all of them.
      while (at + 4 <= end) {
        const a = sextets[memory[at]];
        const b = sextets[memory[at + 1]];
        const c = sextets[memory[at + 2]];
        const d = sextets[memory[at + 3]];
        if ((a | b | c | d) >= INVALID) break;
        const group = (a << 18) | (b << 12) | (c << 6) | d;
        memory[dest] = group >>> 16;
        memory[dest + 1] = group >>> 8;
        memory[dest + 2] = group;
        dest = (dest + 3) | 0;
        at = (at + 4) | 0;
      }
      if (at >= end) break;
    }
    const sextet = sextets[memory[at++]];
    if (sextet === PADDING) {
      // The bits that padding cuts off must be zero (RFC 4648 §3.5): one text for one content.
      if (phase === 2 && (bits & 0x0f) === 0) phase = SECOND_PADDING;
      else if ((phase === 3 && (bits & 0x03) === 0) || phase === SECOND_PADDING) phase = 0;
      else return GrpcWebError.BASE64_INVALID;
      continue;
    }
    if (sextet === INVALID || phase === SECOND_PADDING) return GrpcWebError.BASE64_INVALID;
    // Bits of bytes that are written already fall out at the top.
    bits = ((bits << 6) | sextet) & 0xffff;
    // A character after the first of a group completes a byte, never before it is read itself.
    if (phase > 0) memory[dest++] = bits >>> (6 - 2 * phase);
    phase = phase === 3 ? 0 : phase + 1;
  }
  state.decodePhase = phase;
  state.decodeBits = bits;
  return dest - offset;
}

/** Whether a base64 body may end here. */
export function base64Complete(state: GrpcWebState): boolean {
  return state.decodePhase === 0;
}

// -- base64 of responses ----------------------------------------------------------

/** Most bytes that encoding `length` bytes writes, those that waited included. */
export function base64BytesMax(length: number): number {
  return (((length + 4) / 3) | 0) * 4;
}

/**
 * Encodes [offset, offset + length) to `dest` (`base64BytesMax(length)` of room, not overlapping).
 * Up to two bytes wait for more, until `endBase64`. Returns the offset after what was written.
 */
export function encodeBase64(
  memory: Uint8Array,
  offset: number,
  length: number,
  dest: number,
  state: GrpcWebState,
): number {
  const end = (offset + length) | 0;
  let at = offset | 0;
  let out = dest | 0;
  let count = state.encodeCount;
  let bits = state.encodeBits;
  while (at < end) {
    if (count === 0) {
      while (at + 3 <= end) {
        const group = (memory[at] << 16) | (memory[at + 1] << 8) | memory[at + 2];
        memory[out] = characters[group >>> 18];
        memory[out + 1] = characters[(group >>> 12) & 63];
        memory[out + 2] = characters[(group >>> 6) & 63];
        memory[out + 3] = characters[group & 63];
        out = (out + 4) | 0;
        at = (at + 3) | 0;
      }
      if (at >= end) break;
    }
    bits = (bits << 8) | memory[at++];
    count++;
    if (count < 3) continue;
    memory[out] = characters[bits >>> 18];
    memory[out + 1] = characters[(bits >>> 12) & 63];
    memory[out + 2] = characters[(bits >>> 6) & 63];
    memory[out + 3] = characters[bits & 63];
    out = (out + 4) | 0;
    count = 0;
    bits = 0;
  }
  state.encodeCount = count;
  state.encodeBits = bits;
  return out;
}

/** Writes the bytes that wait, padded, at `dest` (4 bytes of room). Returns the offset after them. */
export function endBase64(memory: Uint8Array, dest: number, state: GrpcWebState): number {
  const { encodeCount, encodeBits } = state;
  if (encodeCount === 0) return dest;
  const group = encodeCount === 1 ? encodeBits << 16 : encodeBits << 8;
  memory[dest] = characters[group >>> 18];
  memory[dest + 1] = characters[(group >>> 12) & 63];
  memory[dest + 2] = encodeCount === 1 ? 61 : characters[(group >>> 6) & 63];
  memory[dest + 3] = 61;
  state.encodeCount = 0;
  state.encodeBits = 0;
  return dest + 4;
}

// -- messages and trailers ----------------------------------------------------------

/**
 * Follows the messages of a response through the next piece of its body. Returns 0, or
 * GrpcWebError.MESSAGE_INVALID when a frame has flags that gRPC does not know, such as those of a
 * trailer frame, which only this proxy may write.
 */
export function followMessages(memory: Uint8Array, offset: number, length: number, state: GrpcWebState): number {
  const end = (offset + length) | 0;
  let at = offset | 0;
  let headerBytes = state.headerBytes;
  let remaining = state.messageRemaining;
  while (at < end) {
    if (headerBytes === 0 && remaining > 0) {
      const available = end - at;
      if (remaining >= available) {
        remaining -= available;
        break;
      }
      at = (at + remaining) | 0;
      remaining = 0;
      continue;
    }
    const byte = memory[at++];
    if (headerBytes === 0) {
      if (byte > 1) return GrpcWebError.MESSAGE_INVALID;
    } else {
      remaining = remaining * 256 + byte;
    }
    headerBytes++;
    if (headerBytes === FRAME_HEADER_BYTES) headerBytes = 0;
  }
  state.headerBytes = headerBytes;
  state.messageRemaining = remaining;
  return 0;
}

/** Whether what has come so far ends with a whole message. */
export function atMessageEnd(state: GrpcWebState): boolean {
  return state.headerBytes === 0 && state.messageRemaining === 0;
}

/** Size of the frame that `putTrailerFrame` writes, or GrpcWebError.TRAILERS_TOO_LARGE. */
export function trailerFrameBytes(trailers: HeaderTable): number {
  let bytes = FRAME_HEADER_BYTES;
  for (let field = 0; field < trailers.count; field++) {
    bytes += trailers.nameLength(field) + trailers.valueLength(field) + 4;
  }
  return bytes > TRAILER_FRAME_BYTES_MAX ? GrpcWebError.TRAILERS_TOO_LARGE : bytes;
}

/**
 * Writes trailers as the last frame of a gRPC-Web body at `at` (`trailerFrameBytes` of room): lines
 * `name: value` with names in lower case. They are no fields of ours any more, so all of them pass.
 * Returns the offset after the frame.
 */
export function putTrailerFrame(memory: Uint8Array, at: number, trailers: HeaderTable): number {
  let dest = at + FRAME_HEADER_BYTES;
  for (let field = 0; field < trailers.count; field++) {
    const name = trailers.nameOffset(field);
    const nameLength = trailers.nameLength(field);
    for (let i = 0; i < nameLength; i++) {
      const byte = memory[name + i];
      memory[dest++] = byte >= 65 && byte <= 90 ? byte | 32 : byte;
    }
    memory[dest++] = 58;
    memory[dest++] = 32;
    dest = putRange(memory, dest, trailers.valueOffset(field), trailers.valueLength(field));
    memory[dest++] = 13;
    memory[dest++] = 10;
  }
  const length = dest - at - FRAME_HEADER_BYTES;
  memory[at] = TRAILER_FLAG;
  memory[at + 1] = 0;
  memory[at + 2] = length >>> 16;
  memory[at + 3] = length >>> 8;
  memory[at + 4] = length;
  return dest;
}

// -- pieces -----------------------------------------------------------------------

/**
 * Makes a piece of a gRPC-Web request body one of gRPC, in place. Returns 0, or
 * GrpcWebError.BASE64_INVALID.
 */
export function decodeRequestPiece(memory: Uint8Array, piece: BodyPiece, state: GrpcWebState): number {
  if (!state.requestText) return 0;
  const length = decodeBase64(memory, piece.payloadOffset, piece.payloadLength, state);
  if (length < 0) return length;
  piece.payloadLength = length;
  return piece.end && !base64Complete(state) ? GrpcWebError.BASE64_INVALID : 0;
}

/** What of a response piece is to be written next. */
const PieceStep = { PAYLOAD: 0, TRAILERS: 1, DONE: 2 } as const;
const { DONE, PAYLOAD, TRAILERS } = PieceStep;

/** Payload bytes that are encoded at once, and where the trailer frame is put together: see WEB_SCRATCH_BYTES. */
const SLICE_BYTES = 30 * 1024;
const FRAME_AT = CHUNK_HEADER_BYTES_MAX + 44 * 1024;

/** Scratch memory that `nextResponsePiece` uses, with room for chunk framing around what it writes. */
export const WEB_SCRATCH_BYTES = FRAME_AT + TRAILER_FRAME_BYTES_MAX + 64;

/**
 * Begins the translation of a piece of a gRPC response body. Returns 0, or what is wrong with it
 * (a GrpcWebError): nothing of it can be written then, and unless it is MESSAGE_TRUNCATED the state is
 * still that of what was written before.
 */
export function startResponsePiece(memory: Uint8Array, piece: BodyPiece, state: GrpcWebState): number {
  state.pieceTaken = 0;
  state.pieceStep = PAYLOAD;
  if (piece.trailers !== null && trailerFrameBytes(piece.trailers) < 0) return GrpcWebError.TRAILERS_TOO_LARGE;
  const error = followMessages(memory, piece.payloadOffset, piece.payloadLength, state);
  if (error !== 0) return error;
  return piece.end && !atMessageEnd(state) ? GrpcWebError.MESSAGE_TRUNCATED : 0;
}

/**
 * Puts the next part of the piece that `startResponsePiece` began into `out`, as it goes to the
 * client: false when there is none left. Base64 and the trailer frame are built in
 * [scratch, scratch + WEB_SCRATCH_BYTES), so each part must be written before the next is asked for.
 * Base64 is padded where a message ends, so that the client need not wait for the next one to read it.
 */
export function nextResponsePiece(
  memory: Uint8Array,
  piece: BodyPiece,
  state: GrpcWebState,
  scratch: number,
  out: BodyPiece,
): boolean {
  out.error = 0;
  out.trailers = null;
  out.end = false;
  out.payloadLength = 0;
  if (state.pieceStep === PAYLOAD) {
    if (nextPayload(memory, piece, state, scratch, out)) {
      if (piece.end && piece.trailers !== null) {
        state.pieceStep = TRAILERS;
      } else {
        state.pieceStep = DONE;
        out.end = piece.end;
      }
    }
    if (out.payloadLength > 0 || out.end) return true;
  }
  if (state.pieceStep !== TRAILERS) return false;
  state.pieceStep = DONE;
  const frame = scratch + FRAME_AT;
  const frameBytes = putTrailerFrame(memory, frame, piece.trailers!) - frame;
  out.payloadOffset = frame;
  out.payloadLength = frameBytes;
  if (state.responseText) {
    const at = scratch + CHUNK_HEADER_BYTES_MAX;
    out.payloadOffset = at;
    out.payloadLength = endBase64(memory, encodeBase64(memory, frame, frameBytes, at, state), state) - at;
  }
  out.end = true;
  return true;
}

/** The next payload bytes; none, if all of them wait for more in base64. Returns whether they are the last. */
function nextPayload(
  memory: Uint8Array,
  piece: BodyPiece,
  state: GrpcWebState,
  scratch: number,
  out: BodyPiece,
): boolean {
  const rest = piece.payloadLength - state.pieceTaken;
  let taken = rest;
  if (state.responseText) {
    if (taken > SLICE_BYTES) taken = SLICE_BYTES;
    const at = scratch + CHUNK_HEADER_BYTES_MAX;
    let end = encodeBase64(memory, piece.payloadOffset + state.pieceTaken, taken, at, state);
    if (taken === rest && atMessageEnd(state)) end = endBase64(memory, end, state);
    out.payloadOffset = at;
    out.payloadLength = end - at;
  } else {
    out.payloadOffset = piece.payloadOffset;
    out.payloadLength = taken;
  }
  state.pieceTaken += taken;
  return taken === rest;
}
