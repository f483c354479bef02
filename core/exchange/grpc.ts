// gRPC over HTTP: telling its requests from others, its deadlines, and answers of this proxy's own
// in the form that its clients read (a status 200 head that carries grpc-status and grpc-message).
//
// Messages, metadata and trailers pass as they are: to everything else an RPC is a stream of bytes.
// Stateless; texts are prepared once. Hot module: no allocation.
// Spec: gRPC over HTTP/2 (Requests, Responses, Trailers-Only), gRPC status codes, gRPC
// http-grpc-status-mapping; RFC 9110 §8.3.1 (media types).

import { parseErrorSentence } from '../http1/errors.ts';
import { HeaderId } from '../http1/header-ids.ts';
import { FIELD_WORDS, type HeaderTable } from '../http1/header-table.ts';
import type { RequestHead } from '../http1/message.ts';
import { putDecimal, putLineEnd, putText, Text } from '../io/bytes.ts';
import type { Reactor } from '../io/reactor.ts';
import { valueEquals } from './fields.ts';
import { putFirstFields, putLastFields } from './generated.ts';
import { DETAIL_PARSE, DETAIL_TLS, Detail, detailSentence, REASON_COUNT, Reason, reasonText } from './reasons.ts';
import type { DateLine } from './response-head.ts';
import type { Runtime } from './runtime.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { KEEP_ALIVE, OTHER } = HeaderId;

// -- requests -------------------------------------------------------------------

/** What a content type says of a message. From WEB on it is gRPC-Web. */
export const GrpcKind = {
  /** No gRPC. */
  NONE: 0,
  /** `application/grpc`, with `+proto` and the like. */
  GRPC: 1,
  /** `application/grpc-web`: the same messages, trailers inside the body. */
  WEB: 2,
  /** `application/grpc-web-text`: gRPC-Web in base64. */
  WEB_TEXT: 3,
} as const;

const { GRPC, NONE, WEB, WEB_TEXT } = GrpcKind;

const encoder = new TextEncoder();
const mediaType = encoder.encode('application/grpc');
const webSuffix = encoder.encode('-web');
const textSuffix = encoder.encode('-text');

/** Bytes of `application/grpc`, where `-web` begins in a content type of gRPC-Web. */
export const GRPC_TYPE_BYTES = mediaType.length;

/** Bytes that the content type of each GrpcKind has more than that of gRPC: `-web`, `-web-text`. */
export const grpcTypeExtraBytes: readonly number[] = [0, 0, 4, 9];

/**
 * GrpcKind of the content type (or of the first media type of an Accept field) in
 * [offset, offset + length). Media types are case-insensitive; subtype suffixes and parameters are
 * the application's business.
 */
export function grpcKind(memory: Uint8Array, offset: number, length: number): number {
  const end = offset + length;
  let at = after(memory, offset, end, mediaType);
  if (at < 0) return NONE;
  let kind: number = GRPC;
  const web = after(memory, at, end, webSuffix);
  if (web >= 0) {
    kind = WEB;
    at = web;
    const text = after(memory, at, end, textSuffix);
    if (text >= 0) {
      kind = WEB_TEXT;
      at = text;
    }
  }
  if (at === end) return kind;
  switch (memory[at]) {
    case 43: // "+"
    case 59: // ";"
    case 44: // ","
    case 32:
    case 9:
      return kind;
    default:
      return NONE;
  }
}

/** Whether a content type is that of gRPC itself; false for gRPC-Web. */
export function isGrpc(memory: Uint8Array, valueOffset: number, valueLength: number): boolean {
  return grpcKind(memory, valueOffset, valueLength) === GRPC;
}

/** Offset after `text` (lower case) at `at`, or -1 if something else is there. */
function after(memory: Uint8Array, at: number, end: number, text: Uint8Array): number {
  const textEnd = at + text.length;
  return textEnd <= end && valueEquals(memory, at, text.length, text) ? textEnd : -1;
}

/** First field at or after `from` that has the name (lower case), which must not be a known header's; or -1. */
export function findField(memory: Uint8Array, headers: HeaderTable, name: Uint8Array, from: number): number {
  const { count, words } = headers;
  for (let field = from; field < count; field++) {
    const word = field * FIELD_WORDS;
    if (words[word + 4] !== OTHER || words[word + 1] !== name.length) continue;
    if (valueEquals(memory, words[word], name.length, name)) return field;
  }
  return -1;
}

/** Makes the rewriting of a request head leave a field out: gives it the id of one that never passes. */
export function dropRequestField(head: RequestHead, field: number): void {
  head.headers.words[field * FIELD_WORDS + 4] = KEEP_ALIVE;
  head.seen |= 1 << KEEP_ALIVE;
}

// -- deadlines ------------------------------------------------------------------

/**
 * Longest timeout that is told apart, 12 days in milliseconds: what is longer counts as this. It
 * keeps the numbers small, and no timer of ours runs so long.
 */
export const GRPC_TIMEOUT_MAX_MS = 0x3fff_ffff;

/** Most digits of a timeout (gRPC over HTTP/2, TimeoutValue). */
const TIMEOUT_DIGITS_MAX = 8;

/** Largest number that has TIMEOUT_DIGITS_MAX digits. */
const TIMEOUT_VALUE_MAX = 99_999_999;

/**
 * The value of grpc-timeout in whole milliseconds, rounded up, at most GRPC_TIMEOUT_MAX_MS.
 * -1 if it is malformed: it must be one to eight digits and a unit (H, M, S, m, u or n).
 */
export function parseGrpcTimeout(memory: Uint8Array, offset: number, length: number): number {
  const digits = length - 1;
  if (digits < 1 || digits > TIMEOUT_DIGITS_MAX) return -1;
  let value = 0;
  for (let i = 0; i < digits; i++) {
    const digit = memory[offset + i] - 48;
    if (digit < 0 || digit > 9) return -1;
    value = (value * 10 + digit) | 0;
  }
  switch (memory[offset + digits]) {
    case 72: // "H"
      return scaled(value, 3_600_000);
    case 77: // "M"
      return scaled(value, 60_000);
    case 83: // "S"
      return scaled(value, 1000);
    case 109: // "m"
      return value;
    case 117: // "u"
      return Math.ceil(value / 1000) | 0;
    case 110: // "n"
      return Math.ceil(value / 1_000_000) | 0;
    default:
      return -1;
  }
}

function scaled(value: number, unitMs: number): number {
  const valueMax = (GRPC_TIMEOUT_MAX_MS / unitMs) | 0;
  return value > valueMax ? GRPC_TIMEOUT_MAX_MS : Math.imul(value, unitMs);
}

const timeoutName = encoder.encode('grpc-timeout');
const timeoutLine = new Text('grpc-timeout: ');

/** Most bytes that `putGrpcTimeout` writes, spill included. */
export const GRPC_TIMEOUT_LINE_BYTES_MAX = 32;

/**
 * What the client allows the RPC of `head`: milliseconds as `parseGrpcTimeout` says,
 * GRPC_TIMEOUT_MAX_MS if it does not say, or -1 if what it says is malformed or said twice.
 */
export function clientTimeoutMs(memory: Uint8Array, head: RequestHead): number {
  const { headers } = head;
  const field = findField(memory, headers, timeoutName, 0);
  if (field < 0) return GRPC_TIMEOUT_MAX_MS;
  if (findField(memory, headers, timeoutName, field + 1) >= 0) return -1;
  return parseGrpcTimeout(memory, headers.valueOffset(field), headers.valueLength(field));
}

/**
 * Takes what the client says of the timeout out of `head`, as `putGrpcTimeout` will say something
 * shorter. Only its positions are changed, not its bytes.
 */
export function dropClientTimeout(memory: Uint8Array, head: RequestHead): void {
  const field = findField(memory, head.headers, timeoutName, 0);
  if (field >= 0) dropRequestField(head, field);
}

/** Writes the line `grpc-timeout: ...` for a timeout > 0 and returns the offset after it. Spills, see io/bytes.ts. */
export function putGrpcTimeout(reactor: Reactor, at: number, timeoutMs: number): number {
  const { memory, view } = reactor;
  let dest = putText(view, at, timeoutLine);
  if (timeoutMs <= TIMEOUT_VALUE_MAX) {
    dest = putDecimal(memory, dest, timeoutMs);
    memory[dest++] = 109; // "m"
  } else {
    // Rounded down: the upstream must never be allowed more than the client is.
    dest = putDecimal(memory, dest, Math.floor(timeoutMs / 1000));
    memory[dest++] = 83; // "S"
  }
  return putLineEnd(view, dest);
}

/**
 * Writes a shorter timeout over one that `putGrpcTimeout` has written and whose value ends at `end`: in the same unit,
 * with zeros in front. Rounded down, but not to 0, which would not be valid everywhere.
 */
export function reduceGrpcTimeout(memory: Uint8Array, end: number, timeoutMs: number): void {
  let value = memory[end - 1] === 109 ? timeoutMs : Math.max(1, Math.floor(timeoutMs / 1000));
  for (let at = end - 2; memory[at] >= 48 && memory[at] <= 57; at--) {
    memory[at] = 48 + (value % 10);
    value = Math.floor(value / 10);
  }
}

// -- statuses -------------------------------------------------------------------

/** gRPC status codes. */
export const GrpcStatus = {
  OK: 0,
  CANCELLED: 1,
  UNKNOWN: 2,
  INVALID_ARGUMENT: 3,
  DEADLINE_EXCEEDED: 4,
  NOT_FOUND: 5,
  ALREADY_EXISTS: 6,
  PERMISSION_DENIED: 7,
  RESOURCE_EXHAUSTED: 8,
  FAILED_PRECONDITION: 9,
  ABORTED: 10,
  OUT_OF_RANGE: 11,
  UNIMPLEMENTED: 12,
  INTERNAL: 13,
  UNAVAILABLE: 14,
  DATA_LOSS: 15,
  UNAUTHENTICATED: 16,
} as const;

/** Statuses that follow from the reason alone; other reasons go by the HTTP status. */
const reasonStatuses: Readonly<Record<number, number>> = {
  [Reason.NO_ROUTE]: GrpcStatus.UNIMPLEMENTED,
  [Reason.NO_HEALTHY_UPSTREAM]: GrpcStatus.UNAVAILABLE,
  [Reason.UPSTREAM_CONNECT_FAILURE]: GrpcStatus.UNAVAILABLE,
  [Reason.UPSTREAM_CONNECTION_TERMINATION]: GrpcStatus.UNAVAILABLE,
  [Reason.STALE_UPSTREAM_CONNECTION]: GrpcStatus.UNAVAILABLE,
  [Reason.UPSTREAM_TIMEOUT]: GrpcStatus.DEADLINE_EXCEEDED,
  [Reason.UPSTREAM_OVERFLOW]: GrpcStatus.UNAVAILABLE,
  // What a gRPC library reports of a stream that its peer broke the protocol on.
  [Reason.UPSTREAM_PROTOCOL_ERROR]: GrpcStatus.INTERNAL,
  // As Envoy does: clients retry UNAVAILABLE, and take RESOURCE_EXHAUSTED for the server's own answer.
  [Reason.RATE_LIMITED]: GrpcStatus.UNAVAILABLE,
  [Reason.DOWNSTREAM_CONNECTION_TERMINATION]: GrpcStatus.CANCELLED,
  [Reason.DOWNSTREAM_PROTOCOL_ERROR]: GrpcStatus.INTERNAL,
  [Reason.DOWNSTREAM_TIMEOUT]: GrpcStatus.DEADLINE_EXCEEDED,
  // What gRPC libraries say of a message or of metadata above their limits.
  [Reason.REQUEST_TOO_LARGE]: GrpcStatus.RESOURCE_EXHAUSTED,
  [Reason.NOT_IMPLEMENTED]: GrpcStatus.UNIMPLEMENTED,
  [Reason.OVERLOAD]: GrpcStatus.UNAVAILABLE,
  [Reason.DRAIN_TIMEOUT]: GrpcStatus.UNAVAILABLE,
  [Reason.CONNECT_REFUSED]: GrpcStatus.UNIMPLEMENTED,
  [Reason.INTERNAL]: GrpcStatus.INTERNAL,
};

const BY_HTTP_STATUS = -1;
const statusOfReason = new Int8Array(REASON_COUNT).fill(BY_HTTP_STATUS);
for (const [reason, status] of Object.entries(reasonStatuses)) statusOfReason[Number(reason)] = status;

/** gRPC status that a generated response with this HTTP status and reason is to carry. */
export function grpcStatusOf(status: number, reason: number): number {
  const known = reason < REASON_COUNT ? statusOfReason[reason] : BY_HTTP_STATUS;
  return known === BY_HTTP_STATUS ? grpcStatusOfHttp(status) : known;
}

/** gRPC status for an HTTP status alone (http-grpc-status-mapping). */
function grpcStatusOfHttp(status: number): number {
  switch (status) {
    case 400:
      return GrpcStatus.INTERNAL;
    case 401:
      return GrpcStatus.UNAUTHENTICATED;
    case 403:
      return GrpcStatus.PERMISSION_DENIED;
    case 404:
      return GrpcStatus.UNIMPLEMENTED;
    case 429:
    case 502:
    case 503:
    case 504:
      return GrpcStatus.UNAVAILABLE;
    default:
      return GrpcStatus.UNKNOWN;
  }
}

/** HTTP status for each gRPC status, as Envoy has them. */
const httpStatuses = [200, 499, 500, 400, 504, 404, 409, 403, 429, 400, 409, 400, 501, 500, 503, 500, 401] as const;

/** HTTP status for a gRPC status; 500 for one that gRPC does not know. */
export function httpStatusOfGrpc(status: number): number {
  return status >= 0 && status < httpStatuses.length ? httpStatuses[status] : 500;
}

const statusField = new TextEncoder().encode('grpc-status');
const STATUS_DIGITS_MAX = 8;

/** grpc-status of an RPC that ended with its head (Trailers-Only), or -1: none, or not a number. */
export function grpcStatusInHead(memory: Uint8Array, headers: HeaderTable): number {
  const field = findField(memory, headers, statusField, 0);
  if (field < 0) return -1;
  const offset = headers.valueOffset(field);
  const length = headers.valueLength(field);
  if (length === 0 || length > STATUS_DIGITS_MAX) return -1;
  let status = 0;
  for (let i = 0; i < length; i++) {
    const digit = memory[offset + i] - 48;
    if (digit < 0 || digit > 9) return -1;
    status = status * 10 + digit;
  }
  return status;
}

// -- answers of this proxy --------------------------------------------------------

const statusLine = new Text('HTTP/1.1 200 OK\r\n');
/** Content-Length is for HTTP/1 clients; on a stream it agrees with what is sent (RFC 9113 §8.1.1). */
const contentLines = [
  '',
  'content-type: application/grpc\r\ncontent-length: 0\r\n',
  'content-type: application/grpc-web+proto\r\ncontent-length: 0\r\n',
  'content-type: application/grpc-web-text+proto\r\ncontent-length: 0\r\n',
].map((text) => new Text(text));
const statusName = new Text('grpc-status: ');
const messageName = new Text('grpc-message: ');
const idText = new Text(' Request id: ');

const sentences: Text[] = [];
for (let reason = 0; reason < REASON_COUNT; reason++) {
  const text = reasonText(reason);
  sentences.push(new Text(percentEncoded(`${text.flag}: ${text.sentence}`)));
}

/** Sentence of each parse error met so far, made when first needed. */
const parseSentences: (Text | undefined)[] = [];

function parseSentence(error: number): Text {
  let text = parseSentences[error];
  if (text === undefined) {
    text = new Text(percentEncoded(` ${parseErrorSentence(error)}`));
    parseSentences[error] = text;
  }
  return text;
}

const noText = new Text('');
const badTimeout = new Text(percentEncoded(` ${detailSentence(Detail.GRPC_TIMEOUT_INVALID)}`));
const badBody = new Text(percentEncoded(` ${detailSentence(Detail.GRPC_WEB_BODY_INVALID)}`));

/** What a detail adds to the sentence of its reason: only what the client itself has done. */
function explanation(detail: number): Text {
  switch (detail) {
    case Detail.GRPC_TIMEOUT_INVALID:
      return badTimeout;
    case Detail.GRPC_WEB_BODY_INVALID:
      return badBody;
    default:
      return detail >= DETAIL_PARSE && detail < DETAIL_TLS ? parseSentence(detail - DETAIL_PARSE) : noText;
  }
}

/** Writes the value of grpc-message: flag and sentence of the reason, and the request id. Spills. */
function putMessage(
  reactor: Reactor,
  at: number,
  reason: number,
  detail: number,
  idOffset: number,
  idLength: number,
): number {
  const { memory, view } = reactor;
  let dest = putText(view, at, sentences[reason]);
  dest = putText(view, dest, explanation(detail));
  if (idLength === 0) return dest;
  dest = putText(view, dest, idText);
  return putPercentEncoded(memory, dest, idOffset, idLength);
}

/**
 * Writes the trailers that end an RPC whose response has begun and cannot go on, at `at`
 * (GENERATED_BYTES_MAX of room), and their positions into `trailers`. Arguments as for
 * `writeGeneratedGrpc`.
 */
export function putGrpcEnd(
  reactor: Reactor,
  at: number,
  trailers: HeaderTable,
  status: number,
  reason: number,
  detail: number,
  idOffset: number,
  idLength: number,
): void {
  const { memory, view } = reactor;
  let dest = putText(view, at, statusName);
  const statusOffset = dest;
  dest = putDecimal(memory, dest, grpcStatusOf(status, reason));
  setField(trailers, 0, at, statusName.length - 2, statusOffset, dest - statusOffset);
  const messageLine = putLineEnd(view, dest);
  const messageOffset = putText(view, messageLine, messageName);
  dest = putMessage(reactor, messageOffset, reason, detail, idOffset, idLength);
  setField(trailers, 1, messageLine, messageName.length - 2, messageOffset, dest - messageOffset);
  putLineEnd(view, dest);
  trailers.count = 2;
}

function setField(
  table: HeaderTable,
  field: number,
  nameOffset: number,
  nameLength: number,
  valueOffset: number,
  valueLength: number,
): void {
  const { words } = table;
  const word = field * FIELD_WORDS;
  words[word] = nameOffset;
  words[word + 1] = nameLength;
  words[word + 2] = valueOffset;
  words[word + 3] = valueLength;
  words[word + 4] = OTHER;
}

/**
 * Writes a response of this proxy's own to an RPC at `at` (GENERATED_BYTES_MAX of room): a head
 * without a body (Trailers-Only) in HTTP/1 form. `kind` is the client's GrpcKind (GRPC or above);
 * `status`, `reason` and `detail` are those that `writeGenerated` would get, and the message says
 * what its body would. The request id lies at `idOffset`; `connection` is a GeneratedConnection.
 * Returns the offset after the head.
 */
export function writeGeneratedGrpc(
  reactor: Reactor,
  at: number,
  kind: number,
  status: number,
  reason: number,
  detail: number,
  idOffset: number,
  idLength: number,
  connection: number,
  runtime: Runtime,
  date: DateLine,
): number {
  const { memory, view } = reactor;
  let dest = putText(view, at, statusLine);
  dest = putFirstFields(reactor, dest, runtime, date);
  dest = putText(view, dest, contentLines[kind]);
  dest = putText(view, dest, statusName);
  dest = putDecimal(memory, dest, grpcStatusOf(status, reason));
  dest = putLineEnd(view, dest);
  dest = putText(view, dest, messageName);
  dest = putMessage(reactor, dest, reason, detail, idOffset, idLength);
  dest = putLineEnd(view, dest);
  return putLastFields(reactor, dest, reason, idOffset, idLength, connection, runtime);
}

/** Whether a byte may stand for itself in grpc-message: printable ASCII without "%". */
function isPlain(byte: number): boolean {
  return byte >= 0x20 && byte <= 0x7e && byte !== 0x25;
}

/** A text as the value of grpc-message (Percent-Encoded). */
export function percentEncoded(text: string): string {
  let encoded = '';
  for (const byte of encoder.encode(text)) {
    encoded += isPlain(byte) ? String.fromCharCode(byte) : `%${byte.toString(16).toUpperCase().padStart(2, '0')}`;
  }
  return encoded;
}

/** Writes a range of the same memory percent-encoded: up to three bytes for one. Returns the offset after it. */
function putPercentEncoded(memory: Uint8Array, at: number, start: number, length: number): number {
  let dest = at;
  for (let i = 0; i < length; i++) {
    const byte = memory[start + i];
    if (isPlain(byte)) {
      memory[dest++] = byte;
    } else {
      memory[dest++] = 37;
      memory[dest++] = hexDigit(byte >>> 4);
      memory[dest++] = hexDigit(byte & 15);
    }
  }
  return dest;
}

function hexDigit(value: number): number {
  return value < 10 ? 48 + value : 55 + value;
}
