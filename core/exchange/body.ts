// Bodies in HTTP/1 framing: taking payload out of what arrived, and framing it for the other side.
// Both directions use it. Payload stays where it was received; chunk headers are written in front
// of it and line ends behind it, over bytes that are done with.
// Spec: RFC 9112 §6.3, §7.1. Hot module: no allocation.

import { Errno } from '../ffi/errno.ts';
import { ChunkedState, ChunkPhase, decodeChunked, writeChunkHeader } from '../http1/chunked.ts';
import { HeaderId } from '../http1/header-ids.ts';
import type { HeaderTable } from '../http1/header-table.ts';
import { LARGE_BLOCK_BYTES } from '../io/arena.ts';
import { putBytes, putRange } from '../io/bytes.ts';
import type { Connection } from '../io/connection.ts';
import type { Reactor } from '../io/reactor.ts';
import { BodyFraming, type Exchange } from './exchange.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { CHUNKED, CLOSE, LENGTH, STREAM } = BodyFraming;

/** Largest trailer section, and so what a sender of trailers can make us keep. */
export const TRAILER_BYTES_MAX = 8 * 1024;

/** Payload of one piece of input, as found by `readBody`. One per worker. */
export class BodyPiece {
  payloadOffset = 0;
  payloadLength = 0;
  /** Bytes of the input that are done with; the rest stays with the connection. */
  consumed = 0;
  /** The body is complete. */
  end = false;
  /** Positive parse error, or 0. */
  error = 0;
  /** Trailer fields of a body that has ended with some; else null. */
  trailers: HeaderTable | null = null;
}

/** Takes the payload of the request body out of [offset, offset + length). */
export function readRequestBody(
  memory: Uint8Array,
  offset: number,
  length: number,
  exchange: Exchange,
  piece: BodyPiece,
): void {
  if (exchange.requestFraming === CHUNKED) {
    readChunks(memory, offset, length, exchange.requestChunks!, piece);
    return;
  }
  if (exchange.requestFraming === STREAM) {
    stream(offset, length, exchange.downstream!, piece);
    return;
  }
  const count = Math.min(length, exchange.requestRemaining);
  exchange.requestRemaining -= count;
  plain(offset, count, exchange.requestRemaining === 0, piece);
}

/** Takes the payload of the response body out of [offset, offset + length). */
export function readResponseBody(
  memory: Uint8Array,
  offset: number,
  length: number,
  exchange: Exchange,
  piece: BodyPiece,
): void {
  switch (exchange.responseFraming) {
    case CHUNKED:
      readChunks(memory, offset, length, exchange.responseChunks!, piece);
      return;
    case LENGTH: {
      const count = Math.min(length, exchange.responseRemaining);
      exchange.responseRemaining -= count;
      plain(offset, count, exchange.responseRemaining === 0, piece);
      return;
    }
    case CLOSE:
      plain(offset, length, false, piece);
      return;
    case STREAM:
      stream(offset, length, exchange.upstream!, piece);
      return;
    default:
      plain(offset, 0, true, piece);
  }
}

/** Makes the chunk decoder of the request ready; creates it at the first chunked request. */
export function startRequestChunks(exchange: Exchange): void {
  exchange.requestChunks ??= new ChunkedState();
  exchange.requestChunks.reset();
}

/** Makes the chunk decoder of the response ready; creates it at the first chunked response. */
export function startResponseChunks(exchange: Exchange): void {
  exchange.responseChunks ??= new ChunkedState();
  exchange.responseChunks.reset();
}

function plain(offset: number, count: number, end: boolean, piece: BodyPiece): void {
  piece.payloadOffset = offset;
  piece.payloadLength = count;
  piece.consumed = count;
  piece.end = end;
  piece.error = 0;
  piece.trailers = null;
}

/** Bytes of an HTTP/2 stream; none: its end has come by itself. */
function stream(offset: number, length: number, connection: Connection, piece: BodyPiece): void {
  plain(offset, length, length === 0 || connection.inputEnds, piece);
  if (piece.end) piece.trailers = connection.trailers;
}

function readChunks(memory: Uint8Array, offset: number, length: number, state: ChunkedState, piece: BodyPiece): void {
  // `-` alone would make the usual 0 a -0, which is no small integer.
  piece.error = 0 - decodeChunked(memory, offset, length, state, TRAILER_BYTES_MAX);
  piece.payloadOffset = state.payloadOffset;
  piece.payloadLength = state.payloadLength;
  piece.consumed = state.consumed;
  piece.end = piece.error === 0 && state.phase === ChunkPhase.DONE;
  piece.trailers = piece.end && state.trailers.count > 0 ? state.trailers : null;
}

/** Most bytes `frameChunk` writes before a payload. */
export const CHUNK_HEADER_BYTES_MAX = 10;

const lastChunk = new Uint8Array([48, 13, 10]);
const lastChunkAndEnd = new Uint8Array([48, 13, 10, 13, 10]);

/** Where a framed piece starts; set by `frameChunk`. */
let framedStart = 0;

/** Start of the piece that `frameChunk` framed last. */
export function framedOffset(): number {
  return framedStart;
}

/**
 * Frames a non-empty payload as one chunk, in place, and ends the body after it when `last` (only
 * for a body without trailers). There must be CHUNK_HEADER_BYTES_MAX free bytes before it and 7
 * after it. Returns the offset after the frame; `framedOffset()` is its start.
 */
export function frameChunk(memory: Uint8Array, payloadOffset: number, payloadLength: number, last: boolean): number {
  framedStart = writeChunkHeader(memory, payloadOffset, payloadLength);
  let at = payloadOffset + payloadLength;
  memory[at++] = 13;
  memory[at++] = 10;
  return last ? putBytes(memory, at, lastChunkAndEnd) : at;
}

/**
 * Writes the end of a chunked body at `at`: the last chunk, the trailer fields that may be
 * forwarded (RFC 9110 §6.5.1), and the empty line. Returns the offset after it.
 * Room needed: the size of the trailer section (TRAILER_BYTES_MAX), a byte per field, and 5 bytes.
 */
export function putBodyEnd(memory: Uint8Array, at: number, trailers: HeaderTable | null): number {
  if (trailers === null) return putBytes(memory, at, lastChunkAndEnd);
  let dest = putBytes(memory, at, lastChunk);
  for (let field = 0; field < trailers.count; field++) {
    if (!mayTrail(trailers.id(field))) continue;
    dest = putRange(memory, dest, trailers.nameOffset(field), trailers.nameLength(field));
    memory[dest++] = 58;
    memory[dest++] = 32;
    dest = putRange(memory, dest, trailers.valueOffset(field), trailers.valueLength(field));
    memory[dest++] = 13;
    memory[dest++] = 10;
  }
  memory[dest] = 13;
  memory[dest + 1] = 10;
  return dest + 2;
}

/**
 * Keeps the trailers of a message that goes out on an HTTP/2 stream until everything before them has gone. Returns
 * false when there is no room (`errno` is ENOBUFS).
 */
export function keepTrailers(reactor: Reactor, connection: Connection, trailers: HeaderTable): boolean {
  const stream = connection.http2Stream!;
  let bytes = lastChunk.length + 2;
  for (let field = 0; field < trailers.count; field++) {
    bytes += trailers.nameLength(field) + trailers.valueLength(field) + 4;
  }
  const block = bytes <= LARGE_BLOCK_BYTES ? reactor.arena.allocate(bytes) : 0;
  if (block === 0) {
    connection.errno = Errno.ENOBUFS;
    return false;
  }
  stream.tailBlock = block;
  stream.tailOffset = lastChunk.length;
  stream.tailLength = putBodyEnd(reactor.memory, block, trailers) - block;
  stream.tailSecret = trailers.secret;
  return true;
}

/** Fields for framing, routing, authentication or this connection have no place in trailers. */
function mayTrail(id: number): boolean {
  switch (id) {
    case HeaderId.KEEP_ALIVE:
    case HeaderId.PROXY_CONNECTION:
    case HeaderId.TE:
    case HeaderId.TRAILER:
    case HeaderId.X_FORWARDED_FOR:
    case HeaderId.X_FORWARDED_PROTO:
    case HeaderId.X_FORWARDED_HOST:
    case HeaderId.FORWARDED:
    case HeaderId.AUTHORIZATION:
    case HeaderId.PROXY_AUTHORIZATION:
    case HeaderId.PROXY_AUTHENTICATE:
    case HeaderId.COOKIE:
    case HeaderId.SET_COOKIE:
    case HeaderId.CONTENT_TYPE:
    case HeaderId.CONTENT_ENCODING:
    case HeaderId.CONTENT_RANGE:
    case HeaderId.CACHE_CONTROL:
    case HeaderId.MAX_FORWARDS:
      return false;
    default:
      return true;
  }
}
