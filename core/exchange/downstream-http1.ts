// The client's side of HTTP/1: request heads and bodies in, responses out, one exchange at a time.
//
//            bytes              head complete              response sent
//   IDLE ----------> HEAD ---------------------> ACTIVE ------------------> IDLE (keep-alive)
//    |                |  bad or late head          |                          or LINGER / closed
//    +--- timeout ----+--------> generated error   +--- client gone ---> closed, upstream cancelled
//
// While an exchange is active nothing is read beyond its request body: pipelined requests wait in
// the socket, or in one block if they came along, and are answered in order.
// A client that finishes sending (FIN) while it waits for a response has left, and its exchange is
// cancelled: HTTP/1.1 has no half-close, and nginx, Envoy and Go treat it the same way. Only a FIN
// that comes together with the request's last bytes is taken for "this was my last request".
// Owned by one worker. Hot module: no allocation, exception, promise, closure or log line.
// Spec: RFC 9112 §9 (connections), RFC 9110 §10.1.1 (Expect), §7.8 (Upgrade).

import { Errno } from '../ffi/errno.ts';
import { Shutdown } from '../ffi/kernel.ts';
import { ParseError, parseErrorStatus } from '../http1/errors.ts';
import { findHeadEnd } from '../http1/head-scan.ts';
import { Method, type ResponseHead, TargetForm } from '../http1/message.ts';
import { parseRequestHead } from '../http1/request-parser.ts';
import { BULK_RECEIVE_BYTES_MAX, LARGE_BLOCK_BYTES, RECEIVE_BYTES_MAX, SMALL_BLOCK_BYTES } from '../io/arena.ts';
import type { Connection, Protocol } from '../io/connection.ts';
import { FILL_AGAIN, FILL_END, FILL_ERROR, FILL_FULL, FILL_NO_BUFFER } from '../io/reactor.ts';
import { CloseCause, Counter } from '../telemetry/metrics.ts';
import { BodyPiece, readRequestBody, startRequestChunks } from './body.ts';
import type { ProxyContext } from './context.ts';
import { BodyFraming, type Exchange } from './exchange.ts';
import { valueEquals } from './fields.ts';
import { DETAIL_PARSE, Detail, Reason } from './reasons.ts';
import { requestHeadBytesMax, writeRequestHead } from './request-head.ts';
import { ResponseWriter } from './response-writer.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { CHUNKED, CLOSE, LENGTH } = BodyFraming;
const { DOWNSTREAM_ACCEPTED, DOWNSTREAM_BYTES_IN, DOWNSTREAM_OPEN } = Counter;

/** States of a downstream connection. */
export const DownstreamState = {
  /** No byte of a request is known. */
  IDLE: 0,
  /** Part of a request head is kept. */
  HEAD: 1,
  /** An exchange is in progress. */
  ACTIVE: 2,
  /** Our side is finished; what the client still sends is thrown away, so that no reset destroys the response. */
  LINGER: 3,
} as const;

const { ACTIVE, HEAD, IDLE, LINGER } = DownstreamState;

/** How long an ended connection waits for the client to close; long enough for a round trip or two. */
const LINGER_MS = 2000;

/** Receives per turn of one connection, so that a fast sender does not starve the others. */
const RECEIVES_PER_TURN = 8;

const emptyBytes = new Uint8Array(0);

export class DownstreamHttp1 implements Protocol {
  private readonly context: ProxyContext;
  private readonly writer: ResponseWriter;
  private readonly piece = new BodyPiece();

  constructor(context: ProxyContext) {
    this.context = context;
    this.writer = new ResponseWriter(context);
  }

  // -- events -------------------------------------------------------------------

  /** Takes over a freshly accepted connection. */
  accepted(connection: Connection): void {
    const { reactor, runtime, counters } = this.context;
    connection.state = IDLE;
    counters[DOWNSTREAM_ACCEPTED]++;
    counters[DOWNSTREAM_OPEN]++;
    reactor.setTimer(connection, runtime.http.requestHeadTimeoutMs);
  }

  readable(connection: Connection): void {
    switch (connection.state) {
      case IDLE:
      case HEAD:
        this.readHead(connection);
        return;
      case ACTIVE: {
        const exchange = connection.exchange!;
        if (!exchange.requestComplete) this.pumpRequest(exchange);
        else if (connection.readHangup) this.clientHungUp(connection, exchange);
        return;
      }
      default:
        this.discard(connection);
    }
  }

  writable(connection: Connection): void {
    if (connection.outputBytes === 0) return;
    const { reactor } = this.context;
    const before = connection.outputBytes;
    if (!reactor.flush(connection)) {
      this.writeFailed(connection);
      return;
    }
    const exchange = connection.exchange;
    if (connection.outputBytes < before) {
      if (exchange !== null) this.progress(exchange);
      else if (connection.state === IDLE) reactor.setTimer(connection, this.context.runtime.http.idleTimeoutMs);
    }
    if (connection.outputBytes > 0) return;
    if (exchange === null) return;
    if (exchange.responseComplete) this.finish(exchange);
    else if (exchange.upstream !== null) reactor.resume(exchange.upstream);
  }

  expired(connection: Connection): void {
    switch (connection.state) {
      case IDLE:
        this.close(connection, CloseCause.IDLE_TIMEOUT, false);
        return;
      case HEAD:
        this.refuseHead(connection, 408, Reason.DOWNSTREAM_TIMEOUT, Detail.REQUEST_HEAD_TIMER);
        return;
      case ACTIVE:
        this.exchangeExpired(connection.exchange!);
        return;
      default:
        this.close(connection, CloseCause.TIMEOUT, connection.outputBytes > 0);
    }
  }

  // -- request head ---------------------------------------------------------------

  private readHead(connection: Connection): void {
    const { reactor, memory, runtime, requestHead } = this.context;
    const limits = runtime.requestLimits;
    // A pipelined request may already be here whole.
    let fresh = connection.state === IDLE && connection.inputLength > 0;
    for (;;) {
      let offset = connection.inputOffset;
      let length = connection.inputLength;
      if (fresh) {
        fresh = false;
      } else {
        if (!connection.readReady) return;
        const status = reactor.fill(connection);
        if (status <= 0) {
          this.headFillFailed(connection, status);
          return;
        }
        this.context.counters[DOWNSTREAM_BYTES_IN] += status - length;
        offset = reactor.inputOffset;
        length = reactor.inputLength;
      }
      if (connection.state === HEAD && length <= limits.headBytesMax) {
        // Only parse again once the end is here: a head sent byte by byte costs no more than a whole one.
        if (findHeadEnd(memory, offset, length, offset + connection.inputScanned) < 0) {
          connection.inputScanned = length;
          if (!connection.readReady) return;
          continue;
        }
      }
      const result = parseRequestHead(memory, offset, length, limits, requestHead);
      if (result > 0) {
        this.begin(connection, offset, length);
        return;
      }
      if (result < 0) {
        this.refuseParse(connection, -result);
        return;
      }
      if (!reactor.keepInput(connection, offset, length)) {
        this.refuseHead(connection, 503, Reason.OVERLOAD, Detail.NO_BUFFERS);
        return;
      }
      connection.inputScanned = length;
      if (connection.state === IDLE) {
        connection.state = HEAD;
        if (connection.exchanges > 0) {
          reactor.setTimer(connection, runtime.http.requestHeadTimeoutMs);
        }
      }
    }
  }

  private headFillFailed(connection: Connection, status: number): void {
    switch (status) {
      case FILL_AGAIN:
        return;
      case FILL_END:
        // Between requests this is how keep-alive ends; within a head there is nobody to answer.
        this.close(connection, CloseCause.CLIENT, false);
        return;
      case FILL_FULL:
        this.refuseParse(connection, ParseError.HEAD_TOO_LARGE);
        return;
      case FILL_NO_BUFFER:
        this.refuseHead(connection, 503, Reason.OVERLOAD, Detail.NO_BUFFERS);
        return;
      default:
        this.close(connection, CloseCause.CLIENT_RESET, false);
    }
  }

  private refuseParse(connection: Connection, error: number): void {
    const { metrics } = this.context;
    metrics.countParseError(error);
    const status = parseErrorStatus(error);
    let reason: number = Reason.DOWNSTREAM_PROTOCOL_ERROR;
    let detail = DETAIL_PARSE + error;
    if (error === ParseError.HEAD_TOO_LARGE) detail = Detail.HEAD_TOO_LARGE;
    else if (error === ParseError.URI_TOO_LONG) detail = Detail.URI_TOO_LONG;
    else if (error === ParseError.TOO_MANY_FIELDS) detail = Detail.TOO_MANY_HEADERS;
    if (status === 413 || status === 414 || status === 431) reason = Reason.REQUEST_TOO_LARGE;
    else if (status === 501) reason = Reason.NOT_IMPLEMENTED;
    this.refuseHead(connection, status, reason, detail);
  }

  /** Answers a head that cannot be used, and ends the connection: where the next request starts is unknown. */
  private refuseHead(connection: Connection, status: number, reason: number, detail: number): void {
    const exchange = this.attach(connection);
    const block = this.context.reactor.arena.allocate(SMALL_BLOCK_BYTES);
    if (block !== 0) {
      exchange.headBlock = block;
      exchange.requestIdOffset = block;
      exchange.requestIdLength = this.context.ids.put(this.context.reactor.view, block) - block;
    }
    this.refuse(exchange, status, reason, detail);
  }

  private attach(connection: Connection): Exchange {
    const exchange = this.context.beginExchange();
    exchange.downstream = connection;
    connection.exchange = exchange;
    connection.state = ACTIVE;
    connection.exchanges++;
    return exchange;
  }

  /** A complete head at `offset`; `length` bytes are there, body and pipelined requests included. */
  private begin(connection: Connection, offset: number, length: number): void {
    const { reactor, runtime, requestHead: head } = this.context;
    const exchange = this.attach(connection);
    const http = runtime.http;
    const listener = connection.listener!;
    exchange.method = head.method;
    exchange.versionMinor = head.versionMinor;
    exchange.lastRequest = !head.keepAlive;
    exchange.keepAlive =
      head.keepAlive &&
      // A refused CONNECT may have tunnel bytes behind it, which are no requests (RFC 9110 §9.3.6).
      head.method !== Method.CONNECT &&
      !this.context.draining &&
      !listener.removed &&
      (http.requestsPerConnectionMax === 0 || connection.exchanges < http.requestsPerConnectionMax);
    if (head.chunked) {
      exchange.requestFraming = CHUNKED;
      startRequestChunks(exchange);
    } else if (head.contentLength > 0) {
      exchange.requestFraming = LENGTH;
      exchange.requestRemaining = head.contentLength;
    } else {
      exchange.requestComplete = true;
      exchange.clientFinished = connection.readHangup;
    }
    if (
      head.upgradeField >= 0 &&
      exchange.requestComplete &&
      head.method === Method.GET &&
      this.upgradeAllowed(head.headers.valueOffset(head.upgradeField), head.headers.valueLength(head.upgradeField))
    ) {
      exchange.upgradeRequested = true;
    }
    const rule = this.route(listener.index);
    let endpointAddress: Uint8Array = emptyBytes;
    if (rule >= 0) {
      exchange.rule = rule;
      const requestTimeoutMs = runtime.routes.requestTimeoutMs(rule);
      if (requestTimeoutMs > 0) exchange.requestDeadlineMs = reactor.nowMs + requestTimeoutMs;
      endpointAddress = this.context.upstream.choose(exchange);
    }
    const bytes = requestHeadBytesMax(head, runtime, endpointAddress.length);
    const block = bytes > LARGE_BLOCK_BYTES ? 0 : reactor.arena.allocate(bytes);
    if (block !== 0) {
      exchange.headBlock = block;
      writeRequestHead(reactor, block, head, exchange, runtime, connection, endpointAddress, this.context.ids);
    }
    // Only now may the bytes behind the head move.
    const rest = offset + length - head.endOffset;
    const kept = reactor.keepInput(connection, head.endOffset, rest);
    connection.inputScanned = 0;
    if (block === 0 || !kept) {
      if (bytes > LARGE_BLOCK_BYTES) this.refuse(exchange, 431, Reason.REQUEST_TOO_LARGE, Detail.HEAD_TOO_LARGE);
      else this.refuse(exchange, 503, Reason.OVERLOAD, Detail.NO_BUFFERS);
      return;
    }
    if (head.method === Method.CONNECT && !listener.settings.allowConnect) {
      this.refuse(exchange, 501, Reason.CONNECT_REFUSED, Detail.NONE);
    } else if (rule < 0) {
      this.refuse(exchange, 404, Reason.NO_ROUTE, Detail.NONE);
    } else if (http.requestBodyBytesMax > 0 && exchange.requestRemaining > http.requestBodyBytesMax) {
      this.refuse(exchange, 413, Reason.REQUEST_TOO_LARGE, Detail.BODY_TOO_LARGE);
    } else if (exchange.clientFinished && reactor.kernel.socketError(connection.fd) !== 0) {
      // Reset before its request was read: no event will say so again.
      connection.errno = Errno.ECONNRESET;
      this.clientLeft(connection);
    } else {
      this.progress(exchange);
      this.context.upstream.start(exchange);
    }
  }

  /** Rule for the head being worked on, or -1. */
  private route(listener: number): number {
    const { memory, reactor, runtime, requestHead: head } = this.context;
    let pathOffset = head.pathOffset;
    let pathLength = head.pathOnlyLength;
    if (pathLength === 0 || head.targetForm >= TargetForm.AUTHORITY) {
      // "*", a CONNECT authority or an absolute target without path: routed like "/".
      pathOffset = reactor.arena.scratchOffset;
      pathLength = 1;
      memory[pathOffset] = 47;
    }
    return runtime.routes.lookup(memory, listener, head.authorityOffset, head.hostLength, pathOffset, pathLength);
  }

  private upgradeAllowed(offset: number, length: number): boolean {
    for (const protocol of this.context.runtime.upgradeProtocols) {
      if (valueEquals(this.context.memory, offset, length, protocol)) return true;
    }
    return false;
  }

  // -- request body ---------------------------------------------------------------

  /** Moves request body bytes upstream for as long as both sides allow. Also called to resume. */
  pumpRequest(exchange: Exchange): void {
    const { reactor, memory, counters, upstream } = this.context;
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
        const status = reactor.fill(connection, bulkBytes(exchange));
        if (status <= 0) {
          this.bodyFillFailed(exchange, status);
          return;
        }
        counters[DOWNSTREAM_BYTES_IN] += status - length;
        offset = reactor.inputOffset;
        length = reactor.inputLength;
      }
      readRequestBody(memory, offset, length, exchange, piece);
      if (piece.error !== 0) {
        this.context.metrics.countParseError(piece.error);
        upstream.cancel(exchange);
        this.fail(exchange, 400, Reason.DOWNSTREAM_PROTOCOL_ERROR, DETAIL_PARSE + piece.error, 0);
        return;
      }
      exchange.requestBodyBytes += piece.payloadLength;
      const bytesMax = exchange.runtime!.http.requestBodyBytesMax;
      if (bytesMax > 0 && exchange.requestBodyBytes > bytesMax) {
        upstream.cancel(exchange);
        this.fail(exchange, 413, Reason.REQUEST_TOO_LARGE, Detail.BODY_TOO_LARGE, 0);
        return;
      }
      exchange.requestComplete = piece.end;
      exchange.clientFinished = connection.readHangup;
      this.progress(exchange);
      const alive = upstream.sendBody(exchange, piece);
      const rest = length - piece.consumed;
      if (!reactor.keepInput(connection, offset + piece.consumed, rest)) {
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

  private bodyFillFailed(exchange: Exchange, status: number): void {
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
   * Sends the final response head with the first piece of its body (see ResponseWriter). Returns
   * false when the client's connection has failed and the exchange is over.
   */
  sendResponse(exchange: Exchange, headOffset: number, head: ResponseHead, piece: BodyPiece): boolean {
    // An early response ends the connection (see `finish`), and the client should know (RFC 9112 §9.6).
    if (this.context.draining || exchange.downstream!.listener!.removed || !exchange.requestComplete) {
      exchange.keepAlive = false;
    }
    return this.sent(exchange, this.writer.response(exchange, headOffset, head, piece));
  }

  /** Sends a further piece of the response body. Returns false like `sendResponse`. */
  sendResponseBody(exchange: Exchange, piece: BodyPiece): boolean {
    return this.sent(exchange, this.writer.body(exchange, piece));
  }

  /** Passes a 1xx head on (not 101). Returns false like `sendResponse`. */
  sendInformational(exchange: Exchange, headOffset: number, head: ResponseHead): boolean {
    return this.sent(exchange, this.writer.informational(exchange, headOffset, head));
  }

  private sent(exchange: Exchange, ok: boolean): boolean {
    if (!ok) this.writeFailed(exchange.downstream!);
    return ok;
  }

  /** The response is complete and handed over; the upstream has been let go. */
  responseComplete(exchange: Exchange): void {
    exchange.responseComplete = true;
    if (exchange.downstream!.outputBytes === 0) this.finish(exchange);
  }

  /** The last byte of the response has gone to the socket. */
  private finish(exchange: Exchange): void {
    const { context } = this;
    const { reactor, runtime } = context;
    const connection = exchange.downstream!;
    // A request body that nobody waits for any more may be of any size: the connection ends instead.
    const gone = connection.readHangup && connection.inputLength === 0 && !connection.readReady;
    const keep = exchange.keepAlive && exchange.requestComplete && !gone;
    // A client that was not told in time may be sending its next request.
    const mayCome = !exchange.requestComplete || (!exchange.lastRequest && !connection.readHangup);
    const failed = exchange.reason !== 0 && !exchange.keepAlive;
    connection.exchange = null;
    context.endExchange(exchange);
    if (!keep) {
      if (mayCome) connection.readReady = true;
      this.endGracefully(connection, failed ? CloseCause.PROTOCOL_ERROR : CloseCause.FINISHED);
      return;
    }
    connection.state = IDLE;
    reactor.setTimer(connection, runtime.http.idleTimeoutMs);
    reactor.resume(connection);
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
      this.cut(exchange, CloseCause.UPSTREAM_ABORT);
      return;
    }
    if (!exchange.requestComplete || this.context.draining) exchange.keepAlive = false;
    // The deadline that has just passed must not cut off the answer that says so.
    exchange.requestDeadlineMs = 0;
    exchange.attemptDeadlineMs = 0;
    this.progress(exchange);
    if (this.sent(exchange, this.writer.generated(exchange, status))) this.responseComplete(exchange);
  }

  /** Cuts a connection in the middle of its response. */
  private cut(exchange: Exchange, cause: number): void {
    const connection = exchange.downstream!;
    // Without a length or chunks a plain close would look like the regular end of the body.
    const abort = exchange.responseOutFraming === CLOSE || exchange.tunnel;
    connection.exchange = null;
    this.context.endExchange(exchange);
    this.close(connection, cause, abort);
  }

  /** A hang-up while a response is awaited. The FIN that came with the request is no news, a reset is. */
  private clientHungUp(connection: Connection, exchange: Exchange): void {
    if (exchange.clientFinished) {
      connection.errno = this.context.reactor.kernel.socketError(connection.fd);
      if (connection.errno === 0) return;
    }
    this.clientLeft(connection);
  }

  /** The client has closed or reset while its exchange was in progress. */
  private clientLeft(connection: Connection): void {
    const exchange = connection.exchange!;
    const errno = connection.errno !== 0 ? connection.errno : this.context.reactor.kernel.socketError(connection.fd);
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
    let delayMs = exchange.runtime!.http.streamIdleTimeoutMs;
    if (exchange.requestDeadlineMs > 0)
      delayMs = Math.min(delayMs, wholeMs(exchange.requestDeadlineMs - reactor.nowMs));
    if (exchange.attemptDeadlineMs > 0)
      delayMs = Math.min(delayMs, wholeMs(exchange.attemptDeadlineMs - reactor.nowMs));
    reactor.setTimer(exchange.downstream!, delayMs);
  }

  private exchangeExpired(exchange: Exchange): void {
    const { reactor, upstream } = this.context;
    const connection = exchange.downstream!;
    const blockedOnClient = connection.outputBytes > 0;
    let status = 504;
    let reason: number = Reason.UPSTREAM_TIMEOUT;
    let detail: number = Detail.UPSTREAM_IDLE_TIMER;
    if (blockedOnClient) {
      reason = Reason.DOWNSTREAM_TIMEOUT;
      detail = Detail.DOWNSTREAM_WRITE_TIMER;
    } else if (exchange.requestDeadlineMs > 0 && exchange.requestDeadlineMs <= reactor.nowMs) {
      detail = Detail.REQUEST_TIMER;
    } else if (exchange.attemptDeadlineMs > 0 && exchange.attemptDeadlineMs <= reactor.nowMs) {
      detail = Detail.BACKEND_REQUEST_TIMER;
    } else if (!exchange.requestComplete && upstream.acceptsBody(exchange)) {
      status = 408;
      reason = Reason.DOWNSTREAM_TIMEOUT;
      detail = Detail.REQUEST_BODY_TIMER;
    }
    upstream.cancel(exchange);
    if (exchange.responseComplete || blockedOnClient) {
      // It has not even taken the response before, or is in the middle of this one: nobody to answer.
      exchange.reason = reason;
      exchange.detail = detail;
      connection.exchange = null;
      this.context.endExchange(exchange);
      this.close(connection, CloseCause.TIMEOUT, true);
      return;
    }
    this.fail(exchange, status, reason, detail, 0);
  }

  // -- end of a connection --------------------------------------------------------------

  /** Ends a connection after its last response, without destroying what is on its way to the client. */
  private endGracefully(connection: Connection, cause: number): void {
    const { reactor } = this.context;
    const unread = connection.inputLength > 0 || (connection.readReady && !connection.readEnded);
    reactor.freeInput(connection);
    if (!unread) {
      this.close(connection, cause, false);
      return;
    }
    // A close with unread input sends a reset, which can overtake the response (RFC 9112 §9.6).
    reactor.kernel.shutdown(connection.fd, Shutdown.WRITE);
    connection.state = LINGER;
    reactor.setTimer(connection, LINGER_MS);
    reactor.enqueue(connection);
  }

  private discard(connection: Connection): void {
    const { reactor } = this.context;
    for (let turn = 0; turn < RECEIVES_PER_TURN; turn++) {
      if (!connection.readReady) return;
      const status = reactor.fill(connection);
      if (status === FILL_AGAIN) return;
      if (status === FILL_END || status === FILL_ERROR) {
        this.close(connection, CloseCause.FINISHED, false);
        return;
      }
    }
    reactor.enqueue(connection);
  }

  /** Closes a connection that has no exchange. */
  close(connection: Connection, cause: number, abort: boolean): void {
    const { reactor, metrics, counters } = this.context;
    // The response before may still wait for the end of the batch.
    if (connection.deferred && !abort) reactor.flushOwn(connection);
    metrics.countClose(cause);
    counters[DOWNSTREAM_OPEN]--;
    reactor.close(connection, abort);
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

  /** Closes a connection that is between requests; others are left to end by themselves. Returns whether it did. */
  closeIfIdle(connection: Connection): boolean {
    if (connection.state !== IDLE || connection.inputLength > 0 || connection.readReady) return false;
    if (connection.outputBytes > 0) return false;
    this.close(connection, CloseCause.DRAIN, false);
    return true;
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

/** Whole milliseconds until a deadline, never too few. */
function wholeMs(ms: number): number {
  return ms <= 0 ? 0 : Math.ceil(ms);
}
