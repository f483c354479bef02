// Header blocks: HEADERS and CONTINUATION joined, decoded, and given to whom they are for.
//
// Every block is decoded, also for streams that are gone: later blocks build on its table. One that is whole in
// its frame is decoded where it lies; pieces are joined in a block of their own, with bounds on bytes and frames.
// Owned by one worker. Hot module: no allocation once the tables have grown.
// Spec: RFC 9113 §4.3 (header compression), §6.2 (HEADERS), §6.10 (CONTINUATION), §8.1 (message framing).

import * as table from '../http1/header-table.ts';
import { LARGE_BLOCK_BYTES, SCRATCH_BYTES } from '../io/arena.ts';
import type { Reactor } from '../io/reactor.ts';
import { Counter } from '../telemetry/metrics.ts';
import * as errors from './errors.ts';
import { FloodKind, type Floods } from './floods.ts';
import * as frames from './frames.ts';
import * as hpack from './hpack-decoder.ts';
import { hpackErrorSentence } from './hpack-errors.ts';
import type { HeaderBlock } from './role.ts';
import type { Http2Session } from './session.ts';
import type { Shutdowns } from './shutdown.ts';
import type { Http2Stream } from './stream.ts';
import type { Streams } from './streams.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { PROTOCOL_ERROR, STREAM_CLOSED, REFUSED_STREAM, COMPRESSION_ERROR, INTERNAL_ERROR, ENHANCE_YOUR_CALM } =
  errors.ErrorCode;
const { ERROR_CODE_MASK, SCOPE_STREAM, RULE_SHIFT } = errors;
const { END_STREAM, END_HEADERS } = frames.Flag;
const { readHeadersContent } = frames;
const { OUTPUT_SPARE_BYTES, TABLE_BYTES_DEFAULT } = hpack;
const { HEADER_COUNT_CAPACITY } = table;

/** Pseudo-header fields, which do not count as fields. */
const PSEUDO_MAX = 6;

/** CONTINUATION frames of one block; honest ones are full. */
const CONTINUATIONS_MAX = 16;

/** Bytes of the scratch area before the text: others use its begin in passing, and heads grow to the left. */
const ROOM_BEFORE_BYTES = 1024;

export class HeaderBlocks {
  private readonly reactor: Reactor;
  private readonly memory: Uint8Array;
  private readonly streams: Streams;
  private readonly floods: Floods;
  private readonly shutdowns: Shutdowns;
  private readonly content = new frames.FrameContent();
  private readonly block: HeaderBlock;

  constructor(reactor: Reactor, streams: Streams, floods: Floods, shutdowns: Shutdowns) {
    this.reactor = reactor;
    this.memory = reactor.memory;
    this.streams = streams;
    this.floods = floods;
    this.shutdowns = shutdowns;
    const { scratchOffset } = reactor.arena;
    this.block = {
      headers: new table.HeaderTable(),
      decoder: new hpack.HpackDecoder(TABLE_BYTES_DEFAULT, 0),
      textOffset: scratchOffset + ROOM_BEFORE_BYTES,
      textLength: 0,
      roomBefore: ROOM_BEFORE_BYTES,
      textLimit: scratchOffset + SCRATCH_BYTES - OUTPUT_SPARE_BYTES,
    };
  }

  /** A HEADERS frame. */
  headers(session: Http2Session, flags: number, id: number, at: number, length: number): void {
    const { content } = this;
    const error = readHeadersContent(this.memory, at, length, flags, id, content);
    if (error !== 0 && (error & SCOPE_STREAM) === 0) {
      this.shutdowns.failFrame(session, error);
      return;
    }
    if (!this.numberIsRight(session, id)) return;
    if ((flags & END_HEADERS) !== 0) {
      this.complete(session, flags, id, error, content.offset, content.length);
      return;
    }
    session.blockStreamId = id;
    session.blockFlags = flags;
    session.blockError = error;
    session.blockLength = 0;
    session.blockFrames = 0;
    this.shutdowns.blockBegun(session);
    this.append(session, content.offset, content.length);
  }

  /** A CONTINUATION frame. */
  continuation(session: Http2Session, flags: number, id: number, at: number, length: number): void {
    if (session.blockStreamId === 0) {
      this.shutdowns.fail(session, PROTOCOL_ERROR, 'A CONTINUATION frame continues nothing.');
      return;
    }
    if (++session.blockFrames > CONTINUATIONS_MAX || !this.append(session, at, length)) {
      this.floods.flood(session, FloodKind.CONTINUATION);
      return;
    }
    if ((flags & END_HEADERS) === 0) return;
    const { blockBuffer } = session;
    session.blockStreamId = 0;
    session.blockBuffer = 0;
    this.complete(session, session.blockFlags, id, session.blockError, blockBuffer, session.blockLength);
    if (blockBuffer !== 0) this.reactor.arena.free(blockBuffer);
  }

  /** Joins a fragment. Returns false when the block gets too large. */
  private append(session: Http2Session, offset: number, length: number): boolean {
    const joined = session.blockLength + length;
    if (joined > session.limits.headBytesMax || joined > LARGE_BLOCK_BYTES) return false;
    if (session.blockBuffer === 0) {
      session.blockBuffer = this.reactor.arena.allocate(LARGE_BLOCK_BYTES);
      if (session.blockBuffer === 0) {
        this.shutdowns.fail(session, INTERNAL_ERROR, 'No buffer is free.');
        return true;
      }
    }
    const to = session.blockBuffer + session.blockLength;
    this.memory.copyWithin(to, offset, offset + length);
    session.blockLength = joined;
    return true;
  }

  /** Whether a HEADERS frame may have this stream number (RFC 9113 §5.1.1); else the connection ends. */
  private numberIsRight(session: Http2Session, id: number): boolean {
    if (session.isServer) {
      if ((id & 1) === 0) {
        this.shutdowns.fail(session, PROTOCOL_ERROR, 'A client used an even stream number.');
        return false;
      }
      if (id > session.lastPeerStreamId || session.stream(id) !== null || session.wasReset(id)) return true;
      if (id > session.goawayLastId) return true;
      this.shutdowns.fail(session, STREAM_CLOSED, 'HEADERS on a stream that has ended, or with a number too low.');
      return false;
    }
    if (!this.streams.isIdle(session, id)) return true;
    this.shutdowns.fail(session, PROTOCOL_ERROR, 'HEADERS on a stream that has not been opened.');
    return false;
  }

  /** Decodes a whole block and finds out what it is. */
  private complete(
    session: Http2Session,
    flags: number,
    id: number,
    error: number,
    offset: number,
    length: number,
  ): void {
    const { block, memory } = this;
    const { limits } = session;
    const decoder = session.decoder ?? this.makeDecoder(session);
    block.decoder = decoder;
    const bytesMax = Math.min(block.textLimit - block.textOffset, limits.headBytesMax + OUTPUT_SPARE_BYTES);
    const countMax = Math.min(limits.headerCountMax + PSEUDO_MAX, HEADER_COUNT_CAPACITY);
    const result = decoder.decode(memory, offset, length, block.textOffset, bytesMax, block.headers, countMax);
    if (result < 0) {
      this.shutdowns.fail(session, COMPRESSION_ERROR, hpackErrorSentence(-result));
      return;
    }
    block.textLength = decoder.outLength;
    const stream = session.stream(id);
    if (stream === null) {
      if (session.isServer && id > session.lastPeerStreamId) this.opened(session, flags, id, error);
      else this.floods.control(session, FloodKind.OTHER);
      return;
    }
    if (stream.remoteEnded) this.streams.failStream(stream, STREAM_CLOSED, 0);
    else if (error !== 0) this.streams.failStream(stream, error & ERROR_CODE_MASK, error >> RULE_SHIFT);
    else if (stream.headReceived) this.trailers(stream, flags);
    else this.head(stream, flags);
  }

  private makeDecoder(session: Http2Session): hpack.HpackDecoder {
    const decoder = new hpack.HpackDecoder(TABLE_BYTES_DEFAULT, session.limits.headBytesMax);
    session.decoder = decoder;
    return decoder;
  }

  /** A client opens a stream. */
  private opened(session: Http2Session, flags: number, id: number, error: number): void {
    session.lastPeerStreamId = id;
    // The client has been told that these are not acted on (RFC 9113 §6.8).
    if (session.goawaySent) return;
    if (error !== 0 || session.peerStreams >= session.limits.concurrentStreamsMax) {
      this.floods.causedReset(session);
      this.streams.putReset(session, id, error !== 0 ? error & ERROR_CODE_MASK : REFUSED_STREAM);
      return;
    }
    const stream = this.streams.accept(session, id, session.role.streamProtocol);
    if (stream === null) this.streams.putReset(session, id, REFUSED_STREAM);
    else {
      stream.headReceived = true;
      this.head(stream, flags);
    }
  }

  private head(stream: Http2Stream, flags: number): void {
    const connection = stream.connection!;
    const { generation } = connection;
    stream.remoteEnded = (flags & END_STREAM) !== 0;
    const code = stream.session!.role.head(stream, this.block);
    if (code === 0 || connection.generation !== generation) return;
    this.reactor.timers.clear(connection.slot);
    this.countMalformed(code);
    this.streams.failStream(stream, code, 0);
  }

  private trailers(stream: Http2Stream, flags: number): void {
    const { decoder } = this.block;
    const wrong =
      (flags & END_STREAM) === 0 ||
      decoder.malformed !== 0 ||
      decoder.pseudoCount > 0 ||
      (stream.contentLength >= 0 && stream.receivedBytes !== stream.contentLength);
    let code: number = 0;
    if (wrong) code = PROTOCOL_ERROR;
    else if (decoder.tooLarge) code = ENHANCE_YOUR_CALM;
    else if (!this.streams.trailers.receive(stream, this.block)) code = INTERNAL_ERROR;
    if (code !== 0) {
      this.countMalformed(code);
      this.streams.failStream(stream, code, 0);
      return;
    }
    stream.remoteEnded = true;
    const connection = stream.connection!;
    connection.readReady = true;
    connection.protocol!.readable(connection);
  }

  private countMalformed(code: number): void {
    if (code === PROTOCOL_ERROR) this.streams.counters[Counter.HTTP2_MALFORMED]++;
  }
}
