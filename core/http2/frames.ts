// HTTP/2 frames as bytes: the frame header, the rules that hold for each frame alone, and the
// frames that have no state to speak of. Streams, windows and header blocks are others' business.
//
// A frame is handled in three steps: read the four header fields, `checkFrame` (needs no payload, so
// a bad frame is known after 9 bytes), then the reader of its type. Readers rely on `checkFrame`.
// Writers return the offset after the frame; they write exactly that range and check nothing.
// Stateless. Hot module: no allocation.
// Spec: RFC 9113 §3.4 (preface), §4 (frames), §6 (types), RFC 7540 §5.3.1 (dependency on itself),
// RFC 9218 §7.1 (PRIORITY_UPDATE, which is ignored like every unknown type).

import * as errors from './errors.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { SCOPE_STREAM } = errors;
const { ERROR_CODE_MAX } = errors;
const { INTERNAL_ERROR } = errors.ErrorCode;
const {
  FRAME_TOO_LARGE,
  FRAME_TOO_SHORT,
  GOAWAY_LENGTH,
  PADDING_TOO_LONG,
  PING_LENGTH,
  PRIORITY_LENGTH,
  PRIORITY_ON_ITSELF,
  PUSH_PROMISE_RECEIVED,
  RST_STREAM_LENGTH,
  SETTINGS_ACK_LENGTH,
  SETTINGS_LENGTH,
  STREAM_ID_NOT_ZERO,
  STREAM_ID_ZERO,
  WINDOW_UPDATE_LENGTH,
  WINDOW_UPDATE_ZERO,
} = errors.FrameError;

/** Bytes of a frame header (RFC 9113 §4.1). */
export const FRAME_HEADER_BYTES = 9;

/** Largest payload that every endpoint must take (RFC 9113 §4.2), and the largest that can be announced. */
export const FRAME_BYTES_MAX_DEFAULT = 16_384;
export const FRAME_BYTES_MAX_LIMIT = 16_777_215;

/** Bytes of the frames of fixed size, headers included. */
export const RST_STREAM_BYTES = 13;
export const PING_BYTES = 17;
export const WINDOW_UPDATE_BYTES = 13;
export const SETTINGS_ACK_BYTES = 9;
/** Bytes of a GOAWAY frame without debug data. */
export const GOAWAY_BYTES_MIN = 17;
/** Bytes of one setting in a SETTINGS frame. */
export const SETTING_BYTES = 6;

/** Frame types (RFC 9113 §6). */
export const FrameType = {
  DATA: 0x0,
  HEADERS: 0x1,
  PRIORITY: 0x2,
  RST_STREAM: 0x3,
  SETTINGS: 0x4,
  PUSH_PROMISE: 0x5,
  PING: 0x6,
  GOAWAY: 0x7,
  WINDOW_UPDATE: 0x8,
  CONTINUATION: 0x9,
  /** RFC 9218 §7.1. Ignored. */
  PRIORITY_UPDATE: 0x10,
} as const;

/** Frame flags; which of them mean something depends on the type. */
export const Flag = {
  /** DATA, HEADERS. */
  END_STREAM: 0x1,
  /** SETTINGS, PING. */
  ACK: 0x1,
  /** HEADERS, CONTINUATION. */
  END_HEADERS: 0x4,
  /** DATA, HEADERS. */
  PADDED: 0x8,
  /** HEADERS: five bytes of dependency and weight precede the header block (deprecated). */
  PRIORITY: 0x20,
} as const;

const { DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS } = FrameType;
const { PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION } = FrameType;
const { ACK, PADDED } = Flag;
const FLAG_PRIORITY = Flag.PRIORITY;

/** What a client sends first (RFC 9113 §3.4): "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n". */
export const PREFACE: Uint8Array = new TextEncoder().encode('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n');
export const PREFACE_BYTES = 24;

// -- reading ---------------------------------------------------------------------

/**
 * How many of the bytes at [offset, offset + length) are the client preface so far: PREFACE_BYTES once
 * it is whole (whatever follows), less if more bytes are needed to tell, -1 if it is something else.
 * An HTTP/1 request differs at its second byte, or at the latest ("PRI" is a token) at its version.
 */
export function matchPreface(memory: Uint8Array, offset: number, length: number): number {
  let matched = 0;
  while (matched < PREFACE_BYTES && matched < length) {
    if (memory[offset + matched] !== PREFACE[matched]) return -1;
    matched++;
  }
  return matched;
}

/** Payload length of the frame whose header is at `at`: 0 to 2^24 - 1, the header not included. */
export function frameLength(memory: Uint8Array, at: number): number {
  return (memory[at] << 16) | (memory[at + 1] << 8) | memory[at + 2];
}

/** Type of the frame whose header is at `at`: a FrameType, or 0 to 255. */
export function frameType(memory: Uint8Array, at: number): number {
  return memory[at + 3];
}

/** Flags of the frame whose header is at `at`. */
export function frameFlags(memory: Uint8Array, at: number): number {
  return memory[at + 4];
}

/** Stream of the frame whose header is at `at`: 0 to 2^31 - 1, the reserved bit ignored (RFC 9113 §4.1). */
export function frameStreamId(memory: Uint8Array, at: number): number {
  return readUint31(memory, at + 5);
}

/**
 * Reads 31 bits in network order and ignores the highest one: stream identifiers and increments.
 * In a GOAWAY payload, the last stream that the peer will act on is at its begin.
 */
export function readUint31(memory: Uint8Array, at: number): number {
  return ((memory[at] & 0x7f) << 24) | (memory[at + 1] << 16) | (memory[at + 2] << 8) | memory[at + 3];
}

/**
 * Reads an error code: RST_STREAM has it at its payload's begin, GOAWAY 4 bytes later. Codes that
 * RFC 9113 does not define count as INTERNAL_ERROR (§7 allows that and forbids anything special).
 */
export function readErrorCode(memory: Uint8Array, at: number): number {
  const code = (memory[at] << 24) | (memory[at + 1] << 16) | (memory[at + 2] << 8) | memory[at + 3];
  return code >= 0 && code <= ERROR_CODE_MAX ? code : INTERNAL_ERROR;
}

/** Reads the increment of a WINDOW_UPDATE payload: 1 to 2^31 - 1, or -(error) for 0 (RFC 9113 §6.9). */
export function readWindowIncrement(memory: Uint8Array, at: number, streamId: number): number {
  const increment = readUint31(memory, at);
  if (increment !== 0) return increment;
  return -(streamId === 0 ? WINDOW_UPDATE_ZERO : WINDOW_UPDATE_ZERO | SCOPE_STREAM);
}

/** The error of a frame beyond the size limit (RFC 9113 §4.2): whether more than its stream is affected. */
function tooLarge(type: number, streamId: number): number {
  if (streamId === 0) return FRAME_TOO_LARGE;
  switch (type) {
    case HEADERS:
    case SETTINGS:
    case PUSH_PROMISE:
    case CONTINUATION:
    // Of these any size but their own is a connection error (§6.4, §6.7, §6.8, §6.9).
    case RST_STREAM:
    case PING:
    case GOAWAY:
    case WINDOW_UPDATE:
      return FRAME_TOO_LARGE;
    default:
      return FRAME_TOO_LARGE | SCOPE_STREAM;
  }
}

/** Bytes that a DATA or HEADERS frame must at least have for the fields that its flags announce. */
function fieldBytes(type: number, flags: number): number {
  const padLength = (flags & PADDED) !== 0 ? 1 : 0;
  return type === HEADERS && (flags & FLAG_PRIORITY) !== 0 ? padLength + 5 : padLength;
}

/**
 * Checks what can be said about a frame from its header alone (RFC 9113 §4.2 and §6.1 to §6.10).
 *
 * `frameBytesMax` is the limit that we announced. Returns 0, or an error (errors.ts). An error with
 * SCOPE_STREAM leaves the connection usable: the caller skips the payload, which for DATA still
 * counts against the connection's window (§6.9). Flags without meaning and unknown types pass (§4.1,
 * §5.5). A PUSH_PROMISE is always an error: clients must not send it (§8.4) and we never enable it
 * towards servers. Whether the stream is in a state for the frame is not looked at.
 */
export function checkFrame(
  length: number,
  type: number,
  flags: number,
  streamId: number,
  frameBytesMax: number,
): number {
  if (length > frameBytesMax) return tooLarge(type, streamId);
  switch (type) {
    case DATA:
      if (streamId === 0) return STREAM_ID_ZERO;
      return length < fieldBytes(type, flags) ? FRAME_TOO_SHORT | SCOPE_STREAM : 0;
    case HEADERS:
      if (streamId === 0) return STREAM_ID_ZERO;
      return length < fieldBytes(type, flags) ? FRAME_TOO_SHORT : 0;
    case PRIORITY:
      if (streamId === 0) return STREAM_ID_ZERO;
      return length !== 5 ? PRIORITY_LENGTH | SCOPE_STREAM : 0;
    case RST_STREAM:
      if (streamId === 0) return STREAM_ID_ZERO;
      return length !== 4 ? RST_STREAM_LENGTH : 0;
    case SETTINGS:
      if (streamId !== 0) return STREAM_ID_NOT_ZERO;
      if ((flags & ACK) !== 0) return length !== 0 ? SETTINGS_ACK_LENGTH : 0;
      return length % SETTING_BYTES !== 0 ? SETTINGS_LENGTH : 0;
    case PUSH_PROMISE:
      return PUSH_PROMISE_RECEIVED;
    case PING:
      if (streamId !== 0) return STREAM_ID_NOT_ZERO;
      return length !== 8 ? PING_LENGTH : 0;
    case GOAWAY:
      if (streamId !== 0) return STREAM_ID_NOT_ZERO;
      return length < 8 ? GOAWAY_LENGTH : 0;
    case WINDOW_UPDATE:
      return length !== 4 ? WINDOW_UPDATE_LENGTH : 0;
    case CONTINUATION:
      return streamId === 0 ? STREAM_ID_ZERO : 0;
    default:
      return 0;
  }
}

/** The part of a payload that is neither padding nor priority: data, or a piece of a header block. */
export class FrameContent {
  /** Where it starts. */
  offset = 0;
  /** Its length in bytes, 0 included. */
  length = 0;
}

/**
 * Finds the data in a DATA payload of `length` bytes at `at`; `checkFrame` has passed.
 *
 * Only the first byte of the payload needs to have arrived, and only if it is padded. What the frame
 * has beyond `content.length` is padding, which counts in flow control (RFC 9113 §6.1). Returns 0 or
 * an error, which is the connection's.
 */
export function readDataContent(
  memory: Uint8Array,
  at: number,
  length: number,
  flags: number,
  content: FrameContent,
): number {
  if ((flags & PADDED) === 0) {
    content.offset = at;
    content.length = length;
    return 0;
  }
  const padding = memory[at];
  if (padding >= length) return PADDING_TOO_LONG;
  content.offset = at + 1;
  content.length = length - 1 - padding;
  return 0;
}

/**
 * Finds the piece of a header block in a HEADERS payload of `length` bytes at `at`; `checkFrame` has
 * passed and the first 6 bytes (or all) have arrived.
 *
 * Priority fields are skipped (RFC 9113 §5.3.2). Returns 0 or an error; with a stream that depends on
 * itself (RFC 7540 §5.3.1) that is a stream error, `content` is set all the same, and the block
 * must be decoded before the stream is reset, or the connection's compression state is lost.
 */
export function readHeadersContent(
  memory: Uint8Array,
  at: number,
  length: number,
  flags: number,
  streamId: number,
  content: FrameContent,
): number {
  let start = at;
  let left = length;
  let error = 0;
  let padding = 0;
  if ((flags & PADDED) !== 0) {
    padding = memory[start];
    start = (start + 1) | 0;
    left = (left - 1) | 0;
  }
  if ((flags & FLAG_PRIORITY) !== 0) {
    error = checkPriority(memory, start, streamId);
    start = (start + 5) | 0;
    left = (left - 5) | 0;
  }
  if (padding > left) return PADDING_TOO_LONG;
  content.offset = start;
  content.length = left - padding;
  return error;
}

/**
 * Checks a PRIORITY payload, or the priority fields of HEADERS, at `at`: 0, or a stream error when
 * `streamId` depends on itself (RFC 7540 §5.3.1). Nothing else about priorities is used.
 */
export function checkPriority(memory: Uint8Array, at: number, streamId: number): number {
  return readUint31(memory, at) === streamId ? PRIORITY_ON_ITSELF | SCOPE_STREAM : 0;
}

// -- writing ---------------------------------------------------------------------

/** Writes 32 bits in network order; `value` from -2^31 to 2^32 - 1, taken modulo 2^32. */
function writeUint32(memory: Uint8Array, at: number, value: number): number {
  memory[at] = value >>> 24;
  memory[at + 1] = value >>> 16;
  memory[at + 2] = value >>> 8;
  memory[at + 3] = value;
  return at + 4;
}

/** Writes a frame header for a payload of `length` bytes, and returns where that payload starts. */
export function writeFrameHeader(
  memory: Uint8Array,
  at: number,
  length: number,
  type: number,
  flags: number,
  streamId: number,
): number {
  memory[at] = length >>> 16;
  memory[at + 1] = length >>> 8;
  memory[at + 2] = length;
  memory[at + 3] = type;
  memory[at + 4] = flags;
  return writeUint32(memory, at + 5, streamId);
}

/**
 * Writes a SETTINGS frame with the first `count` pairs of `pairs`, an identifier and a value each:
 * FRAME_HEADER_BYTES + SETTING_BYTES * count bytes.
 */
export function writeSettings(memory: Uint8Array, at: number, pairs: Uint32Array, count: number): number {
  at = writeFrameHeader(memory, at, count * SETTING_BYTES, SETTINGS, 0, 0);
  for (let i = 0; i < count; i++) {
    const id = pairs[i * 2];
    memory[at] = id >>> 8;
    memory[at + 1] = id;
    at = writeUint32(memory, at + 2, pairs[i * 2 + 1]);
  }
  return at;
}

/** Writes a SETTINGS acknowledgement: SETTINGS_ACK_BYTES. */
export function writeSettingsAck(memory: Uint8Array, at: number): number {
  return writeFrameHeader(memory, at, 0, SETTINGS, ACK, 0);
}

/** Writes a PING whose eight bytes are the words `high` and `low`: PING_BYTES. */
export function writePing(memory: Uint8Array, at: number, high: number, low: number): number {
  at = writeFrameHeader(memory, at, 8, PING, 0, 0);
  at = writeUint32(memory, at, high);
  return writeUint32(memory, at, low);
}

/** Answers the PING whose payload is at `payloadAt`, which may be overwritten by this: PING_BYTES. */
export function writePingAck(memory: Uint8Array, at: number, payloadAt: number): number {
  const high = readWord(memory, payloadAt);
  const low = readWord(memory, payloadAt + 4);
  at = writeFrameHeader(memory, at, 8, PING, ACK, 0);
  at = writeUint32(memory, at, high);
  return writeUint32(memory, at, low);
}

/** Reads 32 bits in network order as a signed integer: the words of a PING payload. */
export function readWord(memory: Uint8Array, at: number): number {
  return (memory[at] << 24) | (memory[at + 1] << 16) | (memory[at + 2] << 8) | memory[at + 3];
}

/**
 * Writes a GOAWAY with the last stream acted on, an ErrorCode, and all of `debug` (a sentence in
 * ASCII; empty for none): GOAWAY_BYTES_MIN + debug.length.
 */
export function writeGoaway(
  memory: Uint8Array,
  at: number,
  lastStreamId: number,
  code: number,
  debug: Uint8Array,
): number {
  at = writeFrameHeader(memory, at, 8 + debug.length, GOAWAY, 0, 0);
  at = writeUint32(memory, at, lastStreamId);
  at = writeUint32(memory, at, code);
  for (let i = 0; i < debug.length; i++) memory[at + i] = debug[i];
  return at + debug.length;
}

/** Writes a RST_STREAM with an ErrorCode: RST_STREAM_BYTES. */
export function writeRstStream(memory: Uint8Array, at: number, streamId: number, code: number): number {
  at = writeFrameHeader(memory, at, 4, RST_STREAM, 0, streamId);
  return writeUint32(memory, at, code);
}

/** Writes a WINDOW_UPDATE (stream 0: the connection's window); increment 1 to 2^31 - 1: WINDOW_UPDATE_BYTES. */
export function writeWindowUpdate(memory: Uint8Array, at: number, streamId: number, incrementBytes: number): number {
  at = writeFrameHeader(memory, at, 4, WINDOW_UPDATE, 0, streamId);
  return writeUint32(memory, at, incrementBytes);
}
