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

import { ParseError, parseErrorStatus } from '../http1/errors.ts';
import { findHeadEnd } from '../http1/head-scan.ts';
import { Method, type ResponseHead } from '../http1/message.ts';
import { parseRequestHead } from '../http1/request-parser.ts';
import { matchPreface, PREFACE_BYTES as prefaceBytes } from '../http2/frames.ts';
import type { Connection } from '../io/connection.ts';
import { FILL_AGAIN, FILL_END, FILL_ERROR, FILL_FULL, FILL_NO_BUFFER } from '../io/input.ts';
import { CloseCause, Counter } from '../telemetry/metrics.ts';
import { type BodyPiece, startRequestChunks } from './body.ts';
import type { ProxyContext } from './context.ts';
import { Downstream } from './downstream.ts';
import { BodyFraming, type Exchange } from './exchange.ts';
import { valueEquals } from './fields.ts';
import { DETAIL_PARSE, Detail, Reason } from './reasons.ts';
import { prepareRequest } from './request-preparation.ts';
import { ResponseWriter } from './response-writer.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { CHUNKED, CLOSE, LENGTH } = BodyFraming;
const { DOWNSTREAM_BYTES_IN, DOWNSTREAM_OPEN } = Counter;

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
const PREFACE_BYTES = prefaceBytes;

/** How long an ended connection waits for the client to close, or for a sign of it; long enough for a round trip or two. */
const LINGER_MS = 2000;

/** The same in all, if the client goes on sending; LINGER_MS while the gateway drains, or is short of connections. */
const LINGER_MS_MAX = 5000;

/** Most bytes that are thrown away: whoever sends more has had the time to read the response. */
const LINGER_BYTES_MAX = 64 * 1024 * 1024;

/** Receives per turn of one connection, so that a fast sender does not starve the others. */
const RECEIVES_PER_TURN = 8;

export class DownstreamHttp1 extends Downstream {
  private readonly writer: ResponseWriter;

  constructor(context: ProxyContext) {
    super(context);
    this.writer = new ResponseWriter(context);
  }

  // -- events -------------------------------------------------------------------

  /** Takes over a freshly accepted connection. */
  accepted(connection: Connection): void {
    const { reactor, runtime } = this.context;
    connection.state = IDLE;
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
        if (!exchange.requestComplete) this.continueRequest(connection, exchange);
        else if (connection.readHangup) this.clientHungUp(connection, exchange);
        return;
      }
      default:
        this.discard(connection);
    }
  }

  writable(connection: Connection): void {
    if (connection.outputBytes === 0) return;
    const { output, reactor } = this.context;
    const before = connection.outputBytes;
    if (!output.flush(connection)) {
      this.writeFailed(connection);
      return;
    }
    const exchange = connection.exchange;
    if (connection.outputBytes < before) {
      if (exchange !== null) this.progress(exchange);
      else if (connection.state === IDLE) reactor.setTimer(connection, this.context.runtime.http.idleTimeoutMs);
      else if (connection.state === LINGER) this.waitOn(connection);
    }
    if (connection.outputBytes > 0) return;
    if (exchange === null) {
      if (connection.state === LINGER) reactor.shutdownWrite(connection);
      return;
    }
    if (exchange.responseComplete) this.finish(exchange);
    else this.drained(exchange);
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
    const { input, memory, requestHead, runtime } = this.context;
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
        const status = input.fill(connection);
        if (status <= 0) {
          this.headFillFailed(connection, status);
          return;
        }
        this.context.counters[DOWNSTREAM_BYTES_IN] += status - length;
        offset = input.offset;
        length = input.length;
      }
      if (connection.exchanges === 0 && connection.listener!.settings.http2 && connection.tls === 0) {
        const matched = matchPreface(memory, offset, length);
        if (matched === PREFACE_BYTES) {
          this.context.downstreamHttp2.takeOver(connection, offset, length);
          return;
        }
        // "PRI * HTTP/2.0" must not be parsed before it is whole.
        if (matched === length) {
          if (!this.waitForHead(connection, offset, length)) return;
          // If it is something else after all, the search for its end starts from the beginning.
          connection.inputScanned = 0;
          continue;
        }
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
      if (!this.waitForHead(connection, offset, length)) return;
    }
  }

  /** Keeps part of a head. Returns false when it cannot be kept, and the request has been refused. */
  private waitForHead(connection: Connection, offset: number, length: number): boolean {
    const { input, reactor, runtime } = this.context;
    if (!input.keep(connection, offset, length)) {
      this.refuseHead(connection, 503, Reason.OVERLOAD, Detail.NO_BUFFERS);
      return false;
    }
    connection.inputScanned = length;
    if (connection.state === IDLE) {
      connection.state = HEAD;
      if (connection.exchanges > 0) reactor.setTimer(connection, runtime.http.requestHeadTimeoutMs);
    }
    return true;
  }

  /** Answers plain HTTP that came to a TLS port. */
  refusePlain(connection: Connection): void {
    connection.protocol = this;
    this.refuseHead(connection, 400, Reason.DOWNSTREAM_PROTOCOL_ERROR, Detail.PLAIN_HTTP);
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
    connection.state = ACTIVE;
    this.identify(exchange);
    this.refuse(exchange, status, reason, detail);
  }

  /** A complete head at `offset`; `length` bytes are there, body and pipelined requests included. */
  private begin(connection: Connection, offset: number, length: number): void {
    const { input, requestHead: head, runtime } = this.context;
    const exchange = this.attach(connection);
    connection.state = ACTIVE;
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
      (connection.workload === null || !connection.workload.removed) &&
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
    const status = prepareRequest(this.context, exchange);
    // Only now may the bytes behind the head move.
    const kept = input.keep(connection, head.endOffset, offset + length - head.endOffset);
    connection.inputScanned = 0;
    this.dispatch(exchange, kept ? status : 503);
  }

  private upgradeAllowed(offset: number, length: number): boolean {
    for (const protocol of this.context.runtime.upgradeProtocols) {
      if (valueEquals(this.context.memory, offset, length, protocol)) return true;
    }
    return false;
  }

  // -- response -------------------------------------------------------------------

  protected writeResponse(exchange: Exchange, headOffset: number, head: ResponseHead, piece: BodyPiece): boolean {
    // An early response ends the connection (see `finish`), and the client should know (RFC 9112 §9.6).
    const { listener, workload } = exchange.downstream!;
    const leaving = this.context.draining || listener!.removed || workload?.removed === true;
    if (leaving || !exchange.requestComplete) {
      exchange.keepAlive = false;
    } else if (this.context.runtime.node.connectionsScarce) {
      exchange.keepAlive = false;
    }
    return this.writer.response(exchange, headOffset, head, piece);
  }

  protected writeBody(exchange: Exchange, piece: BodyPiece): boolean {
    return this.writer.body(exchange, piece);
  }

  protected writeInformational(exchange: Exchange, headOffset: number, head: ResponseHead): boolean {
    return this.writer.informational(exchange, headOffset, head);
  }

  protected writeGenerated(exchange: Exchange, status: number): boolean {
    return this.writer.generated(exchange, status);
  }

  writeConnected(exchange: Exchange): boolean {
    return this.writer.connected(exchange);
  }

  writeUpgraded(exchange: Exchange, offset: number, length: number, head: ResponseHead): boolean {
    return this.writer.upgraded(exchange, offset, length, head);
  }

  /** The last byte of the response has gone to the socket. */
  protected finish(exchange: Exchange): void {
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

  /** More of a request body, or the end of its client, which nobody reads while the exchange waits for something. */
  private continueRequest(connection: Connection, exchange: Exchange): void {
    if (connection.readHangup && exchange.upstream === null) {
      const errno = this.context.reactor.socketError(connection);
      if (errno !== 0) {
        connection.errno = errno;
        this.clientLeft(connection);
        return;
      }
    }
    this.pumpRequest(exchange);
  }

  /** A hang-up while a response is awaited. The FIN that came with the request is no news, a reset is. */
  private clientHungUp(connection: Connection, exchange: Exchange): void {
    if (exchange.clientFinished) {
      connection.errno = this.context.reactor.socketError(connection);
      if (connection.errno === 0) return;
    }
    this.clientLeft(connection);
  }

  // -- end of a connection --------------------------------------------------------------

  /** Whole responses to earlier requests may still be on their way: a reset would take them along. */
  protected override cut(exchange: Exchange, cause: number): void {
    // Only a reset says that a body without length or chunks is not whole.
    if (exchange.responseOutFraming === CLOSE || exchange.tunnel) {
      super.cut(exchange, cause);
      return;
    }
    const connection = exchange.downstream!;
    const mayCome = !exchange.requestComplete || (!exchange.lastRequest && !connection.readHangup);
    connection.exchange = null;
    this.context.endExchange(exchange);
    if (mayCome) connection.readReady = true;
    this.endGracefully(connection, cause);
  }

  /** Ends a connection after its last response, without destroying what is on its way to the client. */
  private endGracefully(connection: Connection, cause: number): void {
    const { draining, input, metrics, output, reactor, runtime } = this.context;
    const unread = connection.inputLength > 0 || (connection.readReady && !connection.readEnded);
    input.free(connection);
    if (connection.deferred && !output.flushOwn(connection)) {
      this.close(connection, CloseCause.CLIENT_RESET, true);
      return;
    }
    if (!unread && connection.outputBytes === 0) {
      this.close(connection, cause, false);
      return;
    }
    // A close with unread input sends a reset, which can overtake the response (RFC 9112 §9.6).
    const lingerMs = draining || runtime.node.connectionsScarce ? LINGER_MS : LINGER_MS_MAX;
    metrics.countClose(cause);
    connection.state = LINGER;
    connection.lingerEndMs = reactor.nowMs + lingerMs;
    connection.discardedBytes = 0;
    this.waitOn(connection);
    if (connection.outputBytes === 0) reactor.shutdownWrite(connection);
    reactor.enqueue(connection);
  }

  /** The client of an ended connection is still there: waits on, but not for ever. */
  private waitOn(connection: Connection): void {
    const { reactor } = this.context;
    const leftMs = Math.max(0, Math.ceil(connection.lingerEndMs - reactor.nowMs));
    reactor.setTimer(connection, Math.min(LINGER_MS, leftMs));
  }

  private discard(connection: Connection): void {
    const { input, reactor } = this.context;
    for (let turn = 0; turn < RECEIVES_PER_TURN; turn++) {
      if (!connection.readReady) return;
      const status = input.fill(connection);
      if (status === FILL_AGAIN) return;
      // A client that only says that it has no more requests takes what is left for it.
      if (status === FILL_END && connection.outputBytes > 0) return;
      if (status === FILL_END || status === FILL_ERROR) {
        this.close(connection, CloseCause.FINISHED, false);
        return;
      }
      if (status > 0) connection.discardedBytes += status;
      if (connection.discardedBytes > LINGER_BYTES_MAX) {
        this.close(connection, CloseCause.TIMEOUT, false);
        return;
      }
      this.waitOn(connection);
    }
    reactor.enqueue(connection);
  }

  /** Closes a connection that has no exchange. */
  close(connection: Connection, cause: number, abort: boolean): void {
    const { counters, metrics, output, reactor } = this.context;
    // The response before may still wait for the end of the batch.
    if (connection.deferred && !abort) output.flushOwn(connection);
    // One that lingers has been counted by what ended it.
    if (connection.state !== LINGER) metrics.countClose(cause);
    counters[DOWNSTREAM_OPEN]--;
    reactor.close(connection, abort);
  }

  /** Closes a connection that is between requests; others are left to end by themselves. Returns whether it did. */
  closeIfIdle(connection: Connection): boolean {
    if (connection.state !== IDLE || connection.inputLength > 0 || connection.readReady) return false;
    if (connection.outputBytes > 0) return false;
    this.close(connection, CloseCause.DRAIN, false);
    return true;
  }
}
