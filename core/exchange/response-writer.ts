// Writes responses to the client's connection: the upstream's, in place, and generated ones.
//
// Bytes that the socket does not take stay queued with the connection. Nothing here decides about
// connections or exchanges: a failed send is only reported, and downstream-http1.ts acts on it.
// Owned by one worker. Hot module: no allocation, exception, promise, closure or log line.
// Spec: RFC 9112 §6 (framing), §7.1 (chunked), §9.6 (Connection: close).

import { Method, ResponseHead } from '../http1/message.ts';
import { parseResponseHead } from '../http1/response-parser.ts';
import { putText, Text } from '../io/bytes.ts';
import type { Connection } from '../io/connection.ts';
import { Counter } from '../telemetry/metrics.ts';
import { type BodyPiece, frameChunk, framedOffset, putBodyEnd } from './body.ts';
import type { ProxyContext } from './context.ts';
import { BodyFraming, type Exchange } from './exchange.ts';
import { GENERATED_BYTES_MAX, GeneratedConnection, generatedBodyBytes, writeGenerated } from './generated.ts';
import { writeGeneratedGrpc } from './grpc.ts';
import {
  ConnectionOption,
  FURTHER_LINES_BYTES_MAX,
  LeftOut,
  OutFraming,
  rewriteResponseHead,
} from './response-head.ts';
import { editResponseHead, hasResponseLines, ResponseEdit } from './response-lines.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { CHUNKED, CLOSE } = BodyFraming;
const { DOWNSTREAM_BYTES_OUT } = Counter;

const connectEstablished = new Text('HTTP/1.1 200 OK\r\n\r\n');

/** Limits for parsing our own generated responses. */
const generatedLimits = { headBytesMax: GENERATED_BYTES_MAX, headerCountMax: 64, uriBytesMax: 0 };

/** The line end that ends a head. */
const EMPTY_LINE_BYTES = 2;

/** Larger responses are sent at once: they would crowd the receive area. */
const DEFERRED_BYTES_MAX = 16 * 1024;

/** Writes responses of one worker. Every method returns false when the client's connection has failed. */
export class ResponseWriter {
  private readonly context: ProxyContext;
  private readonly edit = new ResponseEdit();
  private readonly generatedHead = new ResponseHead();

  constructor(context: ProxyContext) {
    this.context = context;
  }

  /**
   * Writes the final response head with the first piece of its body. The head lies at `headOffset`,
   * the piece behind it in the same buffer; both are rewritten there.
   */
  response(exchange: Exchange, headOffset: number, head: ResponseHead, piece: BodyPiece): boolean {
    const { context } = this;
    const { counters, memory, output, reactor } = context;
    const connection = exchange.downstream!;
    let option: number = ConnectionOption.NONE;
    if (!exchange.keepAlive) option = ConnectionOption.CLOSE;
    else if (exchange.versionMinor === 0) option = ConnectionOption.KEEP_ALIVE;
    exchange.status = head.status;
    exchange.responseStarted = true;
    exchange.responseBodyBytes = piece.payloadLength;

    const chunked = exchange.responseOutFraming === CHUNKED;
    const outFraming = chunked
      ? OutFraming.CHUNKED
      : exchange.responseOutFraming === CLOSE || head.status === 204
        ? OutFraming.NONE
        : OutFraming.KEEP;
    let bodyStart = head.endOffset;
    if (piece.payloadLength > 0) {
      bodyStart = chunked ? piece.payloadOffset - chunkHeaderBytes(piece.payloadLength) : piece.payloadOffset;
    }
    const { edit } = this;
    edit.linesLength = 0;
    edit.leftOut = 0;
    if (hasResponseLines(exchange)) editResponseHead(context, exchange, head, edit);
    const linesInPlace = edit.linesLength <= FURTHER_LINES_BYTES_MAX;
    let start = rewriteResponseHead(
      reactor,
      headOffset,
      head,
      Math.max(bodyStart, head.endOffset),
      outFraming,
      option,
      exchange.runtime!,
      context.date,
      edit.linesOffset,
      linesInPlace ? edit.linesLength : 0,
      edit.leftOut,
    );
    if (bodyStart < head.endOffset) {
      // The chunk header needs room that the head's end takes: move the head left.
      const shift = head.endOffset - bodyStart;
      memory.copyWithin(start - shift, start, head.endOffset);
      start -= shift;
    }
    if (!linesInPlace) {
      if (!this.sendHeadPart(exchange, start, bodyStart)) return false;
      start = bodyStart - EMPTY_LINE_BYTES;
    }
    let end = bodyStart;
    const ended = piece.end && chunked;
    if (piece.payloadLength > 0) {
      end = chunked
        ? frameChunk(memory, piece.payloadOffset, piece.payloadLength, ended && piece.trailers === null)
        : piece.payloadOffset + piece.payloadLength;
    }
    counters[DOWNSTREAM_BYTES_OUT] += end - start;
    const bodyEndFollows = ended && (piece.trailers !== null || piece.payloadLength === 0);
    if (bodyEndFollows) return output.send(connection, start, end - start, true) && this.bodyEnd(exchange, piece);
    if (piece.end && mayDefer(exchange, connection) && end - start <= DEFERRED_BYTES_MAX) {
      return output.sendDeferred(connection, start, end - start);
    }
    return output.send(connection, start, end - start, false);
  }

  /**
   * Sends a head that ends at `headEnd` up to its empty line, and the further lines behind it, which are too long
   * for the room before the head.
   */
  private sendHeadPart(exchange: Exchange, start: number, headEnd: number): boolean {
    const { counters, output } = this.context;
    const { linesOffset, linesLength } = this.edit;
    const connection = exchange.downstream!;
    const length = headEnd - EMPTY_LINE_BYTES - start;
    counters[DOWNSTREAM_BYTES_OUT] += length + linesLength;
    return output.send(connection, start, length, true) && output.send(connection, linesOffset, linesLength, true);
  }

  /** Writes a further piece of the response body. */
  body(exchange: Exchange, piece: BodyPiece): boolean {
    const { counters, memory, output } = this.context;
    const connection = exchange.downstream!;
    const chunked = exchange.responseOutFraming === CHUNKED;
    const ended = piece.end && chunked;
    if (piece.payloadLength > 0) {
      exchange.responseBodyBytes += piece.payloadLength;
      let start = piece.payloadOffset;
      let end = start + piece.payloadLength;
      if (chunked) {
        end = frameChunk(memory, start, piece.payloadLength, ended && piece.trailers === null);
        start = framedOffset();
      }
      counters[DOWNSTREAM_BYTES_OUT] += end - start;
      if (!output.send(connection, start, end - start, ended && piece.trailers !== null)) return false;
    }
    if (ended && (piece.trailers !== null || piece.payloadLength === 0)) return this.bodyEnd(exchange, piece);
    return true;
  }

  /** Passes a 1xx head on (not 101). */
  informational(exchange: Exchange, headOffset: number, head: ResponseHead): boolean {
    const { counters, date, output, reactor } = this.context;
    // HTTP/1.0 clients do not know 1xx (RFC 9110 §15.2).
    if (exchange.versionMinor === 0) return true;
    const start = rewriteResponseHead(
      reactor,
      headOffset,
      head,
      head.endOffset,
      OutFraming.NONE,
      ConnectionOption.NONE,
      exchange.runtime!,
      date,
    );
    const length = head.endOffset - start;
    counters[DOWNSTREAM_BYTES_OUT] += length;
    return output.send(exchange.downstream!, start, length, false);
  }

  /** Writes a response of this proxy's own; its body is left out for HEAD. */
  generated(exchange: Exchange, status: number): boolean {
    const { counters, output, reactor } = this.context;
    const start = reactor.arena.scratchOffset;
    const end = this.putGenerated(exchange, status);
    if (hasResponseLines(exchange)) return this.generatedWithLines(exchange, start, end);
    counters[DOWNSTREAM_BYTES_OUT] += end - start;
    return output.send(exchange.downstream!, start, end - start, false);
  }

  /** Sends the generated response in [start, end) with the changes and lines that somebody has for it. */
  private generatedWithLines(exchange: Exchange, start: number, end: number): boolean {
    const { context, generatedHead: head, edit } = this;
    const { counters, memory, output, reactor } = context;
    const connection = exchange.downstream!;
    if (parseResponseHead(memory, start, end - start, generatedLimits, head) <= 0) return false;
    editResponseHead(context, exchange, head, edit);
    let option: number = ConnectionOption.NONE;
    if (!exchange.keepAlive) option = ConnectionOption.CLOSE;
    else if (exchange.versionMinor === 0) option = ConnectionOption.KEEP_ALIVE;
    // It is put together anew where the lines are added before their end: there is nothing before scratch memory.
    const bodyStart = head.endOffset;
    const first = rewriteResponseHead(
      reactor,
      start,
      head,
      bodyStart,
      OutFraming.KEEP,
      option,
      exchange.runtime!,
      context.date,
      0,
      0,
      // It names its server itself, and has not come by way of anybody.
      LeftOut.SERVER | LeftOut.VIA,
    );
    if (edit.linesLength > 0) {
      if (!this.sendHeadPart(exchange, first, bodyStart)) return false;
      counters[DOWNSTREAM_BYTES_OUT] += end - bodyStart + EMPTY_LINE_BYTES;
      return output.send(connection, bodyStart - EMPTY_LINE_BYTES, end - bodyStart + EMPTY_LINE_BYTES, false);
    }
    counters[DOWNSTREAM_BYTES_OUT] += end - first;
    return output.send(connection, first, end - first, false);
  }

  /**
   * Puts a response of this proxy's own together in scratch memory, as HTTP/1 text, and notes it in the
   * exchange. Returns the offset after it; nothing is sent.
   */
  putGenerated(exchange: Exchange, status: number): number {
    const { reactor, date } = this.context;
    // An RPC fails by its own status, in a response that HTTP calls good.
    exchange.status = exchange.grpc === 0 ? status : 200;
    exchange.generated = true;
    exchange.responseStarted = true;
    let option: number = GeneratedConnection.DEFAULT;
    if (!exchange.keepAlive) option = GeneratedConnection.CLOSE;
    else if (exchange.versionMinor === 0) option = GeneratedConnection.KEEP_ALIVE;
    const start = reactor.arena.scratchOffset;
    const { reason, detail, requestIdOffset: idOffset, requestIdLength: idLength } = exchange;
    const runtime = exchange.runtime!;
    let end: number;
    if (exchange.grpc !== 0) {
      const kind = exchange.grpc;
      end = writeGeneratedGrpc(reactor, start, kind, status, reason, detail, idOffset, idLength, option, runtime, date);
      exchange.responseBodyBytes = 0;
    } else {
      const withBody = exchange.method !== Method.HEAD;
      end = writeGenerated(reactor, start, status, reason, detail, idOffset, idLength, option, withBody, runtime, date);
      exchange.responseBodyBytes = generatedBodyBytes();
    }
    if (end - start > GENERATED_BYTES_MAX) throw new Error('a generated response is longer than its room');
    return end;
  }

  /** Answers a CONNECT whose connection is there. */
  connected(exchange: Exchange): boolean {
    const { counters, output, reactor } = this.context;
    const start = reactor.arena.scratchOffset;
    const end = putText(reactor.view, start, connectEstablished);
    counters[DOWNSTREAM_BYTES_OUT] += end - start;
    return output.send(exchange.downstream!, start, end - start, false);
  }

  /** Passes a 101 on, with what follows its head. */
  upgraded(exchange: Exchange, offset: number, length: number, head: ResponseHead): boolean {
    const { counters, date, output, reactor } = this.context;
    const start = rewriteResponseHead(
      reactor,
      offset,
      head,
      head.endOffset,
      OutFraming.NONE,
      ConnectionOption.UPGRADE,
      exchange.runtime!,
      date,
    );
    const bytes = offset + length - start;
    counters[DOWNSTREAM_BYTES_OUT] += bytes;
    return output.send(exchange.downstream!, start, bytes, false);
  }

  private bodyEnd(exchange: Exchange, piece: BodyPiece): boolean {
    const { counters, memory, output, reactor } = this.context;
    const start = reactor.arena.scratchOffset;
    const end = putBodyEnd(memory, start, piece.trailers);
    counters[DOWNSTREAM_BYTES_OUT] += end - start;
    return output.send(exchange.downstream!, start, end - start, false);
  }
}

function chunkHeaderBytes(payloadLength: number): number {
  return ((35 - Math.clz32(payloadLength)) >> 2) + 2;
}

/**
 * Whether a complete response may wait for the end of the batch: it lies in the receive area or in a block of its
 * own, nothing of this connection is waiting, and the connection goes on afterwards.
 */
function mayDefer(exchange: Exchange, connection: Connection): boolean {
  return (
    exchange.keepAlive &&
    exchange.requestComplete &&
    connection.outputBytes === 0 &&
    !connection.deferred &&
    !connection.readHangup &&
    exchange.upstream !== null &&
    exchange.upstream.inputBlock === 0 &&
    // A response that came on a stream lies in a block of its own (upstream-http2.ts), if it is passed on as it is.
    (exchange.upstream.fd >= 0 || exchange.grpc === 0)
  );
}
