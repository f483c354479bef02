// The client's side of an exchange, whatever its protocol: moving the body of a request, the response, deadlines,
// generated answers and failures. What a request's head decides is in request-preparation.ts; downstream-http1.ts and
// downstream-http2.ts add how messages are read and written.
// Owned by one worker. Hot module: no allocation, exception, promise, closure or log line.

import { Errno } from '../ffi/errno.ts';
import { HeaderTable } from '../http1/header-table.ts';
import { Method, type ResponseHead } from '../http1/message.ts';
import { parseResponseHead } from '../http1/response-parser.ts';
import { BULK_RECEIVE_BYTES_MAX, RECEIVE_BYTES_MAX, SCRATCH_BYTES, SMALL_BLOCK_BYTES } from '../io/arena.ts';
import type { Connection, Protocol } from '../io/connection.ts';
import { FILL_AGAIN, FILL_END, FILL_FULL, FILL_NO_BUFFER } from '../io/input.ts';
import { CloseCause, Counter } from '../telemetry/metrics.ts';
import { BodyPiece, readRequestBody } from './body.ts';
import type { ProxyContext } from './context.ts';
import { CorsState } from './cors.ts';
import { isDue, nextDeadlineMs } from './deadlines.ts';
import { BodyFraming, type Exchange } from './exchange.ts';
import { FaultState } from './faults.ts';
import { GrpcKind, putGrpcEnd } from './grpc.ts';
import {
  atMessageEnd,
  decodeRequestPiece,
  nextResponsePiece,
  retypeResponse,
  startResponsePiece,
  WEB_SCRATCH_BYTES,
} from './grpc-web.ts';
import { countShed, shedRetrySeconds } from './overload.ts';
import { DETAIL_PARSE, Detail, Reason } from './reasons.ts';
import { ResponseLines } from './response-lines.ts';
import { LimitState } from './rule-limits.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { CHUNKED, CLOSE, LENGTH, NONE, STREAM } = BodyFraming;
const { DOWNSTREAM_BYTES_IN } = Counter;
const { WEB } = GrpcKind;

/** Limits for parsing our own answers. */
const localLimits = { headBytesMax: SCRATCH_BYTES, headerCountMax: 64, uriBytesMax: 0 };

/** Receives per turn of one connection, so that a fast sender does not starve the others. */
const RECEIVES_PER_TURN = 8;

export abstract class Downstream implements Protocol {
  protected readonly context: ProxyContext;
  protected readonly piece = new BodyPiece();
  /** Parts of a response that is translated to gRPC-Web, and the trailers of an RPC that this proxy ends. */
  private readonly webPiece = new BodyPiece();
  private readonly endTrailers = new HeaderTable();

  constructor(context: ProxyContext) {
    this.context = context;
  }

  abstract readable(connection: Connection): void;
  abstract writable(connection: Connection): void;
  abstract expired(connection: Connection): void;

  /** Writes the final response head with the first piece of its body. False: the connection has failed. */
  protected abstract writeResponse(
    exchange: Exchange,
    headOffset: number,
    head: ResponseHead,
    piece: BodyPiece,
  ): boolean;
  /** Writes a further piece of the response body. False: the connection has failed. */
  protected abstract writeBody(exchange: Exchange, piece: BodyPiece): boolean;
  /** Writes a 1xx head (not 101). False: the connection has failed. */
  protected abstract writeInformational(exchange: Exchange, headOffset: number, head: ResponseHead): boolean;
  /** Writes a response of this proxy's own. False: the connection has failed. */
  protected abstract writeGenerated(exchange: Exchange, status: number): boolean;
  /** Says that the connection which a CONNECT asked for is there. False: the connection has failed. */
  abstract writeConnected(exchange: Exchange): boolean;
  /**
   * Passes a 101 on. The head lies at `offset`; `length` bytes are there, and those behind the head
   * belong to the new protocol. False: the connection has failed.
   */
  abstract writeUpgraded(exchange: Exchange, offset: number, length: number, head: ResponseHead): boolean;
  /** The response is complete and its last byte has gone: ends the exchange. */
  protected abstract finish(exchange: Exchange): void;
  /** Closes a connection, or resets a stream, that has no exchange. */
  abstract close(connection: Connection, cause: number, abort: boolean): void;

  // -- request head ---------------------------------------------------------------

  protected attach(connection: Connection): Exchange {
    const exchange = this.context.beginExchange();
    exchange.downstream = connection;
    exchange.downstreamSide = this;
    connection.exchange = exchange;
    connection.exchanges++;
    return exchange;
  }

  /** Refuses a prepared exchange (`status` as `prepareRequest` returned it), or sends it upstream. */
  protected dispatch(exchange: Exchange, status: number): void {
    const { reactor, runtime } = this.context;
    const connection = exchange.downstream!;
    const { requestBodyBytesMax } = runtime.http;
    if (status === 431) {
      this.refuse(exchange, 431, Reason.REQUEST_TOO_LARGE, Detail.HEAD_TOO_LARGE);
    } else if (status === 400) {
      this.refuse(exchange, 400, Reason.DOWNSTREAM_PROTOCOL_ERROR, Detail.GRPC_TIMEOUT_INVALID);
    } else if (status === 403) {
      this.refuse(exchange, 403, Reason.UNAUTHORIZED, exchange.detail);
    } else if (status !== 0) {
      this.refuse(exchange, 503, Reason.OVERLOAD, Detail.NO_BUFFERS);
    } else if (this.context.local.answers(exchange)) {
      this.answerLocally(exchange);
    } else if (exchange.shed) {
      this.shed(exchange);
    } else if (exchange.method === Method.CONNECT && !connection.listener!.settings.allowConnect) {
      this.refuse(exchange, 501, Reason.CONNECT_REFUSED, Detail.NONE);
    } else if (exchange.rule < 0) {
      this.refuse(exchange, 404, Reason.NO_ROUTE, Detail.NONE);
    } else if (requestBodyBytesMax > 0 && exchange.requestRemaining > requestBodyBytesMax) {
      this.refuse(exchange, 413, Reason.REQUEST_TOO_LARGE, Detail.BODY_TOO_LARGE);
    } else if (exchange.clientFinished && reactor.socketError(connection) !== 0) {
      // Reset before its request was read: no event will say so again.
      connection.errno = Errno.ECONNRESET;
      this.clientLeft(connection);
    } else if (exchange.limitState !== 0 && !this.context.limitGate.passes(exchange)) {
      // It has been refused, or waits for the answer of Redis.
    } else {
      this.progress(exchange);
      if (!this.filtered(exchange)) this.context.upstream.start(exchange);
    }
  }

  /**
   * What filters of the rule do before a request goes to a backend, in Envoy's order: CORS, faults, redirects and
   * direct responses. Returns whether the exchange is answered, or waits.
   */
  private filtered(exchange: Exchange): boolean {
    const filters = exchange.policy === null ? null : exchange.policy.filters;
    if (filters === null) return false;
    const { local, reactor } = this.context;
    const { redirect, direct, fault } = filters;
    if ((exchange.cors & CorsState.PREFLIGHT) !== 0) {
      local.preflight();
    } else if ((exchange.fault & FaultState.DELAY) !== 0) {
      exchange.fault = (exchange.fault & ~FaultState.DELAY) | FaultState.DELAYING | FaultState.DELAYED;
      exchange.resumeMs = reactor.nowMs + fault!.delayMs;
      this.progress(exchange);
      return true;
    } else if ((exchange.fault & FaultState.ABORT) !== 0) {
      exchange.fault &= ~FaultState.ABORT;
      const answer = fault!.answerFor(exchange.grpc);
      if (answer === null) {
        this.refuse(exchange, fault!.status, Reason.FAULT_INJECTED, Detail.FAULT_ABORT);
        return true;
      }
      exchange.reason = Reason.FAULT_INJECTED;
      exchange.detail = Detail.FAULT_ABORT;
      local.fixed(answer);
    } else if (redirect !== null && exchange.method !== Method.CONNECT) {
      local.redirect(exchange, redirect);
    } else if (direct !== null) {
      local.direct(exchange, direct);
    } else {
      return false;
    }
    this.answerLocally(exchange);
    return true;
  }

  /** Refuses a request that the gateway, being overloaded, does without. */
  private shed(exchange: Exchange): void {
    const { runtime, ids } = this.context;
    const { workload } = exchange.downstream!;
    const isFull = workload?.isFull ?? false;
    if (!isFull) countShed(exchange, runtime.node);
    exchange.retryAfterSeconds = shedRetrySeconds(ids.next());
    exchange.responseLines |= ResponseLines.RETRY_AFTER;
    this.refuse(exchange, 503, Reason.OVERLOAD, isFull ? Detail.WORKLOAD_BUFFERS : Detail.SHED);
  }

  /** Goes on with an exchange that had to wait before it could be sent upstream. */
  goOn(exchange: Exchange): void {
    this.dispatch(exchange, 0);
  }

  /** Answers with what `context.local` has written, and reads no more of the request. */
  private answerLocally(exchange: Exchange): void {
    const { memory, responseHead: head, local } = this.context;
    const { piece } = this;
    const length = parseResponseHead(memory, local.offset, local.length, localLimits, head);
    if (length <= 0) throw new Error('a local answer is no valid response');
    const withBody = exchange.method !== Method.HEAD && head.contentLength > 0;
    exchange.generated = true;
    exchange.responseOutFraming = withBody ? LENGTH : NONE;
    piece.payloadOffset = head.endOffset;
    piece.payloadLength = withBody ? head.contentLength : 0;
    piece.end = true;
    piece.trailers = null;
    this.progress(exchange);
    if (this.sendResponse(exchange, local.offset, head, piece)) this.responseComplete(exchange);
  }

  /** Gives an exchange whose head cannot be used what an answer needs: a request id. */
  protected identify(exchange: Exchange): void {
    const { reactor, ids } = this.context;
    const block = reactor.arena.allocate(SMALL_BLOCK_BYTES);
    if (block === 0) return;
    exchange.headBlock = block;
    exchange.requestIdOffset = block;
    exchange.requestIdLength = ids.put(reactor.view, block) - block;
  }

  // -- request body ---------------------------------------------------------------

  /** Moves request body bytes upstream for as long as both sides allow. Also called to resume. */
  pumpRequest(exchange: Exchange): void {
    if (exchange.replayNext >= 0 && !this.replay(exchange)) return;
    const { counters, input, memory, reactor, upstream } = this.context;
    const connection = exchange.downstream!;
    const { piece } = this;
    // Kept bytes that did not end in progress (a partial trailer section) need more behind them.
    let fresh = connection.inputLength > 0 && connection.inputScanned === 0;
    for (let turn = 0; ; turn++) {
      if (exchange.responseComplete || !upstream.acceptsBody(exchange)) return;
      let offset = connection.inputOffset;
      let length = connection.inputLength;
      if (fresh) {
        fresh = false;
      } else {
        if (!connection.readReady) return;
        if (turn >= RECEIVES_PER_TURN) {
          reactor.enqueue(connection);
          return;
        }
        const status = input.fill(connection, bulkBytes(exchange));
        if (status > 0) {
          // Those of a stream have been counted with its frames.
          if (exchange.requestFraming !== STREAM) counters[DOWNSTREAM_BYTES_IN] += status - length;
          offset = input.offset;
          length = input.length;
        } else if (status !== FILL_END || exchange.requestFraming !== STREAM) {
          this.bodyFillFailed(exchange, status);
          return;
        }
      }
      readRequestBody(memory, offset, length, exchange, piece);
      if (piece.error !== 0) {
        this.context.metrics.countParseError(piece.error);
        upstream.cancel(exchange);
        this.fail(exchange, 400, Reason.DOWNSTREAM_PROTOCOL_ERROR, DETAIL_PARSE + piece.error, 0);
        return;
      }
      if (exchange.grpc >= WEB && decodeRequestPiece(memory, piece, exchange.grpcWeb!) !== 0) {
        upstream.cancel(exchange);
        this.fail(exchange, 400, Reason.DOWNSTREAM_PROTOCOL_ERROR, Detail.GRPC_WEB_BODY_INVALID, 0);
        return;
      }
      exchange.requestBodyBytes += piece.payloadLength;
      const bytesMax = exchange.runtime!.http.requestBodyBytesMax;
      if (bytesMax > 0 && exchange.requestBodyBytes > bytesMax) {
        upstream.cancel(exchange);
        this.fail(exchange, 413, Reason.REQUEST_TOO_LARGE, Detail.BODY_TOO_LARGE, 0);
        return;
      }
      if (exchange.requestBuffer !== null) {
        exchange.requestBuffer.append(piece.payloadOffset, piece.payloadLength, piece.end, piece.trailers);
      }
      exchange.requestComplete = piece.end;
      exchange.clientFinished = connection.readHangup;
      if (piece.end && exchange.mirrorNext !== null) this.context.mirrors.requestComplete(exchange);
      this.progress(exchange);
      const alive = upstream.sendBody(exchange, piece);
      const rest = length - piece.consumed;
      if (!input.keep(connection, offset + piece.consumed, rest)) {
        if (connection.exchange !== exchange) return;
        upstream.cancel(exchange);
        this.fail(exchange, 503, Reason.OVERLOAD, Detail.NO_BUFFERS, 0);
        return;
      }
      if (!alive) {
        upstream.writeFailed(exchange);
        return;
      }
      if (piece.end) {
        connection.inputScanned = 0;
        return;
      }
      connection.inputScanned = rest;
    }
  }

  /**
   * Sends what has been kept of the body in a further attempt. Returns whether the attempt has caught up with the
   * client, which has more to send.
   */
  private replay(exchange: Exchange): boolean {
    const { upstream } = this.context;
    const { piece } = this;
    const buffer = exchange.requestBuffer!;
    while (exchange.replayNext >= 0) {
      if (exchange.responseComplete || !upstream.acceptsBody(exchange)) return false;
      const index = exchange.replayNext;
      const last = index + 1 >= buffer.pieceCount;
      exchange.replayNext = last ? -1 : index + 1;
      // A body without a byte has no piece, but an end.
      const has = index < buffer.pieceCount;
      if (!has && !buffer.whole) break;
      piece.payloadOffset = has ? buffer.pieceOffset(index) : 0;
      piece.payloadLength = has ? buffer.pieceLength(index) : 0;
      piece.end = last && buffer.whole;
      piece.error = 0;
      piece.trailers = null;
      this.progress(exchange);
      if (!upstream.sendBody(exchange, piece)) {
        upstream.writeFailed(exchange);
        return false;
      }
    }
    return !exchange.requestComplete;
  }

  protected bodyFillFailed(exchange: Exchange, status: number): void {
    switch (status) {
      case FILL_AGAIN:
        return;
      case FILL_FULL:
      case FILL_NO_BUFFER:
        this.context.upstream.cancel(exchange);
        this.fail(exchange, 503, Reason.OVERLOAD, Detail.NO_BUFFERS, 0);
        return;
      default:
        this.clientLeft(exchange.downstream!);
    }
  }

  // -- response -------------------------------------------------------------------

  /**
   * Sends the final response head with the first piece of its body. Returns false when the client's
   * connection has failed and the exchange is over.
   */
  sendResponse(exchange: Exchange, headOffset: number, head: ResponseHead, piece: BodyPiece): boolean {
    if (exchange.grpc >= WEB) return this.sendWebResponse(exchange, headOffset, head, piece);
    if (exchange.coding !== 0) return this.sendCodedResponse(exchange, headOffset, head, piece);
    return this.sent(exchange, this.writeResponse(exchange, headOffset, head, piece));
  }

  /** Sends a further piece of the response body. Returns false like `sendResponse`. */
  sendResponseBody(exchange: Exchange, piece: BodyPiece): boolean {
    if (exchange.grpc >= WEB && exchange.grpcWeb!.translating) return this.sendWebBody(exchange, piece);
    if (exchange.compression !== null) return this.compress(exchange, piece);
    return this.sent(exchange, this.writeBody(exchange, piece));
  }

  /** `sendResponse` for a client of gRPC-Web. */
  private sendWebResponse(exchange: Exchange, headOffset: number, head: ResponseHead, piece: BodyPiece): boolean {
    const { memory } = this.context;
    const { webPiece } = this;
    const web = exchange.grpcWeb!;
    const start = retypeResponse(memory, headOffset, head, exchange.grpc);
    if (start < 0) return this.sent(exchange, this.writeResponse(exchange, headOffset, head, piece));
    web.translating = true;
    // The body grows by its trailers, and by base64, so that its announced length does not hold.
    if (exchange.responseOutFraming === LENGTH) {
      exchange.responseOutFraming = exchange.versionMinor === 1 ? CHUNKED : CLOSE;
      if (exchange.versionMinor !== 1) exchange.keepAlive = false;
    }
    webPiece.payloadLength = 0;
    webPiece.end = piece.end && piece.payloadLength === 0 && piece.trailers === null;
    webPiece.trailers = null;
    if (!this.sent(exchange, this.writeResponse(exchange, start, head, webPiece))) return false;
    return webPiece.end || this.sendWebBody(exchange, piece);
  }

  /** `sendResponseBody` for a client of gRPC-Web. */
  private sendWebBody(exchange: Exchange, piece: BodyPiece): boolean {
    const { memory, reactor } = this.context;
    const { webPiece } = this;
    const web = exchange.grpcWeb!;
    if (startResponsePiece(memory, piece, web) !== 0) {
      this.context.upstream.cancel(exchange);
      this.fail(exchange, 502, Reason.UPSTREAM_PROTOCOL_ERROR, Detail.GRPC_WEB_RESPONSE_INVALID, 0);
      return false;
    }
    while (nextResponsePiece(memory, piece, web, reactor.arena.scratchOffset, webPiece)) {
      if (!this.sent(exchange, this.writeBody(exchange, webPiece))) return false;
    }
    return true;
  }

  /** `sendResponse` where the rule compresses responses. */
  private sendCodedResponse(exchange: Exchange, headOffset: number, head: ResponseHead, piece: BodyPiece): boolean {
    const { webPiece } = this;
    const start = this.context.compression.begin(exchange, headOffset, head, piece);
    if (exchange.compression === null) return this.sent(exchange, this.writeResponse(exchange, start, head, piece));
    if (exchange.responseOutFraming === LENGTH) {
      exchange.responseOutFraming = exchange.versionMinor === 1 ? CHUNKED : CLOSE;
      if (exchange.versionMinor !== 1) exchange.keepAlive = false;
    }
    webPiece.payloadOffset = head.endOffset;
    webPiece.payloadLength = 0;
    webPiece.end = false;
    webPiece.trailers = null;
    if (!this.sent(exchange, this.writeResponse(exchange, start, head, webPiece))) return false;
    return this.compress(exchange, piece);
  }

  /** Hands a piece of the response body to the compressor. Returns false like `sendResponse`. */
  private compress(exchange: Exchange, piece: BodyPiece): boolean {
    if (this.context.compression.push(exchange, piece)) return true;
    this.context.upstream.cancel(exchange);
    this.fail(exchange, 503, Reason.OVERLOAD, Detail.NO_BUFFERS, 0);
    return false;
  }

  /** Sends what the compressor has given back. Returns false like `sendResponse`. */
  sendCompressed(exchange: Exchange, piece: BodyPiece): boolean {
    this.progress(exchange);
    return this.sent(exchange, this.writeBody(exchange, piece));
  }

  /** The compressed body is complete, and so was the upstream's. */
  compressionComplete(exchange: Exchange): void {
    this.responseComplete(exchange);
  }

  /** The compressor has failed in the middle of a body: the client must see that it is cut. */
  compressionFailed(exchange: Exchange): void {
    this.context.upstream.cancel(exchange);
    this.fail(exchange, 500, Reason.INTERNAL, Detail.COMPRESSOR_FAILED, 0);
  }

  /** The client has taken what it was sent: more is fetched. */
  protected drained(exchange: Exchange): void {
    if (exchange.compression !== null) this.context.compression.drained(exchange);
    else if (exchange.upstream !== null) this.context.reactor.resume(exchange.upstream);
  }

  /** Passes a 1xx head on (not 101). Returns false like `sendResponse`. */
  sendInformational(exchange: Exchange, headOffset: number, head: ResponseHead): boolean {
    return this.sent(exchange, this.writeInformational(exchange, headOffset, head));
  }

  protected sent(exchange: Exchange, ok: boolean): boolean {
    if (!ok) this.writeFailed(exchange.downstream!);
    return ok;
  }

  /** The response is complete and handed over; the upstream has been let go. */
  responseComplete(exchange: Exchange): void {
    if (exchange.compression !== null && this.context.compression.upstreamDone(exchange)) return;
    exchange.responseComplete = true;
    if (exchange.downstream!.outputBytes === 0) this.finish(exchange);
  }

  // -- generated responses and failures -----------------------------------------------

  /** Answers before anything was sent upstream. The rest of the request is not read. */
  refuse(exchange: Exchange, status: number, reason: number, detail: number): void {
    this.fail(exchange, status, reason, detail, 0);
  }

  /**
   * Ends an exchange that went wrong and whose upstream has been let go: with a generated response
   * while none has begun, else by cutting the connection so that the client sees the truncation.
   */
  fail(exchange: Exchange, status: number, reason: number, detail: number, errno: number): void {
    exchange.reason = reason;
    exchange.detail = detail;
    exchange.errno = errno;
    if (exchange.responseStarted) {
      if (exchange.grpc !== 0 && this.endRpc(exchange, status)) return;
      this.cut(exchange, CloseCause.UPSTREAM_ABORT);
      return;
    }
    if (!exchange.requestComplete || this.context.draining) exchange.keepAlive = false;
    // The deadline that has just passed must not cut off the answer that says so.
    exchange.requestDeadlineMs = 0;
    exchange.attemptDeadlineMs = 0;
    this.progress(exchange);
    if (this.sent(exchange, this.writeGenerated(exchange, status))) this.responseComplete(exchange);
  }

  /**
   * Ends an RPC whose response has begun and cannot go on: with trailers that say why, which its client
   * reports, where a cut would only be a broken stream to it. False where they have no place.
   */
  private endRpc(exchange: Exchange, status: number): boolean {
    const { reactor } = this.context;
    const { webPiece, endTrailers } = this;
    const framing = exchange.responseOutFraming;
    if (framing !== CHUNKED && framing !== STREAM) return false;
    const web = exchange.grpc >= WEB;
    if (web && (!exchange.grpcWeb!.translating || !atMessageEnd(exchange.grpcWeb!))) return false;
    if (!exchange.requestComplete) exchange.keepAlive = false;
    exchange.requestDeadlineMs = 0;
    exchange.attemptDeadlineMs = 0;
    this.progress(exchange);
    putGrpcEnd(
      reactor,
      reactor.arena.scratchOffset + WEB_SCRATCH_BYTES,
      endTrailers,
      status,
      exchange.reason,
      exchange.detail,
      exchange.requestIdOffset,
      exchange.requestIdLength,
    );
    const piece = web ? this.piece : webPiece;
    piece.payloadOffset = reactor.arena.scratchOffset;
    piece.payloadLength = 0;
    piece.end = true;
    piece.trailers = endTrailers;
    const ok = web ? this.sendWebBody(exchange, piece) : this.sent(exchange, this.writeBody(exchange, piece));
    if (ok) this.responseComplete(exchange);
    return true;
  }

  /** Cuts a connection in the middle of its response. */
  protected cut(exchange: Exchange, cause: number): void {
    const connection = exchange.downstream!;
    // Without a length or chunks a plain close would look like the regular end of the body.
    const abort = exchange.responseOutFraming === CLOSE || exchange.tunnel;
    connection.exchange = null;
    this.context.endExchange(exchange);
    this.close(connection, cause, abort);
  }

  /** The client has closed or reset while its exchange was in progress. */
  protected clientLeft(connection: Connection): void {
    const exchange = connection.exchange!;
    const errno = connection.errno !== 0 ? connection.errno : this.context.reactor.socketError(connection);
    if (exchange.reason === Reason.NONE) {
      exchange.reason = Reason.DOWNSTREAM_CONNECTION_TERMINATION;
      exchange.detail = errno === 0 ? Detail.DOWNSTREAM_FIN : Detail.DOWNSTREAM_RESET;
      exchange.errno = errno;
    }
    this.context.upstream.cancel(exchange);
    connection.exchange = null;
    this.context.endExchange(exchange);
    this.close(connection, errno === 0 ? CloseCause.CLIENT : CloseCause.CLIENT_RESET, false);
  }

  sendFailed(connection: Connection): void {
    this.writeFailed(connection);
  }

  /** A send has failed; `connection.errno` says how. */
  writeFailed(connection: Connection): void {
    const exchange = connection.exchange;
    if (exchange !== null) {
      if (exchange.reason === Reason.NONE) {
        exchange.reason = Reason.DOWNSTREAM_CONNECTION_TERMINATION;
        exchange.detail = Detail.DOWNSTREAM_WRITE_FAILED;
        exchange.errno = connection.errno;
      }
      this.context.upstream.cancel(exchange);
      connection.exchange = null;
      this.context.endExchange(exchange);
    }
    this.close(connection, CloseCause.CLIENT_RESET, true);
  }

  // -- timers -----------------------------------------------------------------------

  /** Moves the deadline of an exchange after a byte of progress. */
  progress(exchange: Exchange): void {
    const { reactor } = this.context;
    reactor.setTimer(exchange.downstream!, nextDeadlineMs(exchange, reactor.nowMs));
  }

  protected exchangeExpired(exchange: Exchange): void {
    const { reactor, upstream } = this.context;
    const connection = exchange.downstream!;
    const blockedOnClient = connection.outputBytes > 0;
    if (exchange.resumeMs > 0 && exchange.resumeMs <= reactor.nowMs) {
      exchange.resumeMs = 0;
      if (exchange.limitState === LimitState.WAITING) {
        this.context.limitGate.unanswered(exchange);
        return;
      }
      this.progress(exchange);
      if ((exchange.fault & FaultState.DELAYING) !== 0) {
        exchange.fault &= ~FaultState.DELAYING;
        if (!this.filtered(exchange)) upstream.start(exchange);
        return;
      }
      upstream.resume(exchange);
      return;
    }
    if (exchange.hedgeAtMs > 0 && exchange.hedgeAtMs <= reactor.nowMs && !isDue(exchange, reactor.nowMs)) {
      upstream.hedges.due(exchange);
      return;
    }
    let status = 504;
    let reason: number = Reason.UPSTREAM_TIMEOUT;
    let detail: number = Detail.UPSTREAM_IDLE_TIMER;
    if (blockedOnClient) {
      reason = Reason.DOWNSTREAM_TIMEOUT;
      detail = Detail.DOWNSTREAM_WRITE_TIMER;
    } else if (exchange.requestDeadlineMs > 0 && exchange.requestDeadlineMs <= reactor.nowMs) {
      detail = exchange.grpcDeadline ? Detail.GRPC_TIMER : Detail.REQUEST_TIMER;
    } else if (exchange.attemptDeadlineMs > 0 && exchange.attemptDeadlineMs <= reactor.nowMs) {
      detail = Detail.BACKEND_REQUEST_TIMER;
    } else if (exchange.pendingDeadlineMs > 0 && exchange.pendingDeadlineMs <= reactor.nowMs) {
      status = 503;
      reason = Reason.UPSTREAM_OVERFLOW;
      detail = Detail.PENDING_TIMER;
    } else if (!exchange.requestComplete && upstream.acceptsBody(exchange)) {
      status = 408;
      reason = Reason.DOWNSTREAM_TIMEOUT;
      detail = Detail.REQUEST_BODY_TIMER;
    }
    // Requests that have no connection yet, and clients that do not send, are not the endpoint's fault.
    const blameless = exchange.upstream === null || (!exchange.requestComplete && upstream.acceptsBody(exchange));
    upstream.timedOut(exchange);
    if (exchange.responseComplete || blockedOnClient) {
      // It has not even taken the response before, or is in the middle of this one: nobody to answer.
      exchange.reason = reason;
      exchange.detail = detail;
      connection.exchange = null;
      this.context.endExchange(exchange);
      this.close(connection, CloseCause.TIMEOUT, true);
      return;
    }
    if (blameless) upstream.givenUp(exchange, status, reason, detail);
    else upstream.failed(exchange, status, reason, detail, 0);
  }

  /** Ends what is in progress on a connection at once (shutdown, drain timeout). */
  terminate(connection: Connection): void {
    const exchange = connection.exchange;
    if (exchange !== null) {
      exchange.reason = Reason.DRAIN_TIMEOUT;
      this.context.upstream.cancel(exchange);
      connection.exchange = null;
      this.context.endExchange(exchange);
    }
    this.close(connection, CloseCause.DRAIN, exchange !== null);
  }
}

/**
 * Most bytes to receive of a request body at once: many, but never beyond the end of the body, since
 * a pipelined request behind it would have to be kept.
 */
function bulkBytes(exchange: Exchange): number {
  const remaining = exchange.requestFraming === LENGTH ? exchange.requestRemaining : 0;
  return Math.max(RECEIVE_BYTES_MAX, Math.min(remaining, BULK_RECEIVE_BYTES_MAX));
}
