// The upstream's side of HTTP/1: choosing an endpoint, getting a connection, the request out and
// the response back.
//
//   established --> HEAD --> BODY --> IDLE (in its endpoint's pool) --> HEAD ...
//                     \--------\---> closed (close-delimited, not reusable, failed)
//
// A kept connection may be closed by the other side at the very moment a request is sent on it. If
// not one byte of an answer came, the request is sent again, once, on a new connection, provided
// that it cannot have been acted upon or is idempotent, and no body bytes are gone.
// Owned by one worker. Hot module: no allocation, exception, promise, closure or log line.
// Spec: RFC 9112 §6.3 (message length), §9.3.1 (retrying requests); RFC 9110 §9.2.2 (idempotent).

import { Errno } from '../ffi/errno.ts';
import { findHeadEnd } from '../http1/head-scan.ts';
import { Method } from '../http1/message.ts';
import { parseResponseHead } from '../http1/response-parser.ts';
import { BULK_RECEIVE_BYTES_MAX, RECEIVE_BYTES_MAX } from '../io/arena.ts';
import type { Connection, Protocol } from '../io/connection.ts';
import { FILL_AGAIN, FILL_END, FILL_ERROR } from '../io/input.ts';
import type { Endpoint } from '../lb/endpoint.ts';
import { Counter } from '../telemetry/metrics.ts';
import { BodyPiece, frameChunk, framedOffset, putBodyEnd, readResponseBody, startResponseChunks } from './body.ts';
import { IDLE_LOOK_MS } from './circuit-breaker.ts';
import { type ConnectOwner, isConnectTimeout } from './connector.ts';
import type { ProxyContext } from './context.ts';
import { BodyFraming, type Exchange } from './exchange.ts';
import { isIdempotent } from './methods.ts';
import { DETAIL_PARSE, Detail, Reason } from './reasons.ts';
import { mayReplay } from './retries.ts';
import type { UpstreamSide } from './upstream-side.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { CHUNKED, CLOSE, LENGTH, NONE, STREAM } = BodyFraming;
const { STALE_RETRIES, UPSTREAM_BYTES_IN, UPSTREAM_BYTES_OUT, UPSTREAM_IDLE, UPSTREAM_OPEN, UPSTREAM_REUSED } = Counter;

/** States of an upstream connection. */
export const UpstreamState = {
  /** An exchange uses it; the response head is awaited. */
  HEAD: 1,
  /** An exchange uses it; the response body is passing. */
  BODY: 2,
  /** Kept for the next request. */
  IDLE: 3,
} as const;

const { BODY, HEAD, IDLE } = UpstreamState;

/** Receives per turn of one connection, so that a fast upstream does not starve the others. */
const RECEIVES_PER_TURN = 8;

export class UpstreamHttp1 implements Protocol, UpstreamSide, ConnectOwner {
  private readonly context: ProxyContext;
  private readonly piece = new BodyPiece();

  constructor(context: ProxyContext) {
    this.context = context;
  }

  // -- connections --------------------------------------------------------------

  /** Sends the exchange to an endpoint, on a kept connection if there is one. */
  begin(exchange: Exchange, endpoint: Endpoint): void {
    exchange.upstreamSide = this;
    // What is sent again at once, like a tunnel, gets a connection that nothing else has used.
    const kept = !exchange.resent && exchange.method !== Method.CONNECT ? this.takeKept(exchange, endpoint) : null;
    if (kept === null) {
      this.connectOrWait(exchange, endpoint);
      return;
    }
    this.useKept(exchange, kept);
  }

  /** Like `begin` for one that has waited; `reserved`: the circuit breaker has a place for a new connection. */
  beginAdmitted(exchange: Exchange, endpoint: Endpoint, reserved: boolean): void {
    if (!reserved) this.begin(exchange, endpoint);
    else this.connect(exchange, endpoint, true);
  }

  private connectOrWait(exchange: Exchange, endpoint: Endpoint): void {
    const backend = exchange.runtime!.backends[exchange.backend];
    const { breakers } = this.context.upstream;
    if (backend.settings.policy.circuitBreaker === null) this.connect(exchange, endpoint, false);
    else if (breakers.admitConnection(exchange, backend)) this.connect(exchange, endpoint, true);
    // A second attempt is for speed: it must not wait, least of all before others.
    else if (exchange.isHedge) this.refuseToWait(exchange);
    else breakers.wait(exchange, backend);
  }

  private refuseToWait(exchange: Exchange): void {
    this.context.upstream.failed(exchange, 503, Reason.UPSTREAM_OVERFLOW, Detail.PENDING_LIMIT, 0);
  }

  private useKept(exchange: Exchange, kept: Connection): void {
    const { reactor, counters } = this.context;
    counters[UPSTREAM_IDLE]--;
    counters[UPSTREAM_REUSED]++;
    exchange.reusedConnection = true;
    exchange.upstreamConnectionUses = kept.exchanges;
    exchange.upstreamConnectionAgeMs = reactor.nowMs - kept.openedMs;
    reactor.clearTimer(kept);
    this.use(exchange, kept);
  }

  /**
   * Takes a kept connection of an endpoint, or null. One that has ended since the last batch costs an
   * idempotent request without body a retry, but any other its answer: for those it is looked at once more.
   */
  private takeKept(exchange: Exchange, endpoint: Endpoint): Connection | null {
    const { input } = this.context;
    for (;;) {
      const kept = endpoint.idle;
      if (kept === null) return null;
      if (exchange.requestComplete && isIdempotent(exchange.method)) break;
      if (input.isSilent(kept)) break;
      this.closeIdle(kept);
    }
    return endpoint.takeIdle();
  }

  /** Opens a connection; `reserved`: the circuit breaker counts it already. */
  private connect(exchange: Exchange, endpoint: Endpoint, reserved: boolean): void {
    exchange.reusedConnection = false;
    exchange.upstreamConnectionUses = 0;
    exchange.upstreamConnectionAgeMs = 0;
    const backend = exchange.runtime!.backends[exchange.backend];
    const connection = this.context.connector.connect(endpoint, backend, this);
    if (connection === null) {
      if (reserved) this.context.upstream.breakers.notOpened(backend);
      this.connectFailed(exchange);
      return;
    }
    if (reserved) this.context.upstream.breakers.opened(connection, backend);
    connection.exchange = exchange;
    exchange.upstream = connection;
  }

  established(connection: Connection): void {
    const { reactor, tunnel } = this.context;
    const exchange = connection.exchange!;
    if (exchange.method === Method.CONNECT) {
      exchange.connectedMs = reactor.nowMs;
      connection.exchanges++;
      tunnel.startConnect(exchange);
      return;
    }
    this.use(exchange, connection);
  }

  notEstablished(connection: Connection): void {
    const exchange = connection.exchange!;
    this.close(connection, false);
    this.connectFailed(exchange);
  }

  private connectFailed(exchange: Exchange): void {
    const { reason, detail, errno } = this.context.connector;
    const status = isConnectTimeout(detail) ? 504 : 503;
    this.context.upstream.failed(exchange, status, reason, detail, errno);
  }

  // -- events -------------------------------------------------------------------

  readable(connection: Connection): void {
    switch (connection.state) {
      case IDLE:
        // The end of a kept connection, or bytes that nobody asked for: either way of no more use.
        if (this.context.input.fill(connection) !== FILL_AGAIN) this.closeIdle(connection);
        return;
      default:
        this.pumpResponse(connection);
    }
  }

  writable(connection: Connection): void {
    const exchange = connection.exchange;
    if (connection.outputBytes === 0 || exchange === null) return;
    const { output } = this.context;
    if (!output.flush(connection)) {
      this.writeFailed(exchange);
      return;
    }
    const downstream = exchange.downstreamSide!;
    downstream.progress(exchange);
    if (connection.outputBytes > 0) return;
    if (!exchange.requestComplete || exchange.replayNext >= 0) downstream.pumpRequest(exchange);
  }

  expired(connection: Connection): void {
    if (connection.state !== IDLE) return;
    const { reactor, upstream } = this.context;
    const { settings } = connection.backend!;
    const leftMs = connection.idleSinceMs + settings.idleTimeoutMs - reactor.nowMs;
    // One that a circuit breaker counts looks now and then whether its place is wanted, or is one too many.
    if (connection.breakerSlot < 0 || leftMs <= 0 || upstream.breakers.isUnwanted(connection.breakerSlot)) {
      this.closeIdle(connection);
    } else {
      reactor.setTimer(connection, Math.ceil(Math.min(leftMs, IDLE_LOOK_MS)));
    }
  }

  sendFailed(connection: Connection): void {
    const exchange = connection.exchange!;
    // Not one byte of the head has gone, unless what is left of it found no buffer.
    exchange.requestSent = connection.errno === Errno.ENOBUFS;
    this.writeFailed(exchange);
  }

  // -- request --------------------------------------------------------------------

  /** Puts an exchange on a connection that is ready, and sends its head. */
  private use(exchange: Exchange, connection: Connection): void {
    const { counters, output, reactor } = this.context;
    const downstream = exchange.downstreamSide!;
    connection.state = HEAD;
    connection.exchange = exchange;
    connection.exchanges++;
    exchange.upstream = connection;
    exchange.connectedMs = reactor.nowMs;
    const client = exchange.downstream!;
    let sent: boolean;
    if (
      exchange.requestFraming === LENGTH &&
      client.inputLength > 0 &&
      !exchange.requestComplete &&
      !exchange.bodyStreamed &&
      exchange.replayNext < 0
    ) {
      sent = this.sendHeadWithBody(exchange, connection);
    } else {
      counters[UPSTREAM_BYTES_OUT] += exchange.headLength;
      if (exchange.requestComplete && exchange.replayNext < 0) {
        sent = output.sendDeferred(connection, exchange.headOffset, exchange.headLength);
      } else {
        sent = output.send(connection, exchange.headOffset, exchange.headLength, false);
      }
    }
    if (!sent) {
      this.writeFailed(exchange);
      return;
    }
    exchange.requestSent = true;
    downstream.progress(exchange);
    if (!exchange.requestComplete || exchange.replayNext >= 0) downstream.pumpRequest(exchange);
  }

  /** A small body usually comes with its head: both leave with one system call. */
  private sendHeadWithBody(exchange: Exchange, connection: Connection): boolean {
    const { counters, input, output } = this.context;
    const client = exchange.downstream!;
    const count = Math.min(client.inputLength, exchange.requestRemaining);
    const offset = client.inputOffset;
    if (!output.sendPair(connection, exchange.headOffset, exchange.headLength, offset, count)) return false;
    counters[UPSTREAM_BYTES_OUT] += exchange.headLength + count;
    exchange.requestRemaining -= count;
    exchange.requestBodyBytes += count;
    exchange.bodyStreamed = true;
    if (exchange.requestBuffer !== null) {
      exchange.requestBuffer.append(offset, count, exchange.requestRemaining === 0, null);
    }
    exchange.requestComplete = exchange.requestRemaining === 0;
    if (exchange.requestComplete && exchange.mirrorNext !== null) this.context.mirrors.requestComplete(exchange);
    exchange.clientFinished = client.readHangup;
    input.keep(client, offset + count, client.inputLength - count);
    return true;
  }

  /** Whether body bytes can be passed on now: the head has gone and nothing is queued. */
  acceptsBody(exchange: Exchange): boolean {
    const connection = exchange.upstream;
    return (
      connection !== null && connection.protocol === this && connection.outputBytes === 0 && !connection.writeEnded
    );
  }

  /** Sends a piece of the request body. Returns false when the connection has failed. */
  sendBody(exchange: Exchange, piece: BodyPiece): boolean {
    const { counters, memory, output, reactor } = this.context;
    const connection = exchange.upstream!;
    // The body of a stream without Content-Length: see request-fields.ts.
    const chunked =
      exchange.requestFraming === CHUNKED || (exchange.requestFraming === STREAM && exchange.requestRemaining < 0);
    const ended = chunked && piece.end;
    exchange.bodyStreamed = true;
    if (piece.payloadLength > 0) {
      let start = piece.payloadOffset;
      let end = start + piece.payloadLength;
      if (chunked) {
        end = frameChunk(memory, start, piece.payloadLength, ended && piece.trailers === null);
        start = framedOffset();
      }
      counters[UPSTREAM_BYTES_OUT] += end - start;
      if (!output.send(connection, start, end - start, ended && piece.trailers !== null)) return false;
    }
    if (ended && (piece.trailers !== null || piece.payloadLength === 0)) {
      const start = reactor.arena.scratchOffset;
      const end = putBodyEnd(memory, start, piece.trailers);
      counters[UPSTREAM_BYTES_OUT] += end - start;
      return output.send(connection, start, end - start, false);
    }
    return true;
  }

  /**
   * The request cannot be written any further. An upstream may answer early and close (413, say):
   * its response may be waiting, so it is read before anything is decided.
   */
  writeFailed(exchange: Exchange): void {
    const { output } = this.context;
    const connection = exchange.upstream!;
    output.free(connection);
    if (connection.errno === Errno.ENOBUFS) {
      this.close(connection, true);
      this.context.upstream.failed(exchange, 503, Reason.OVERLOAD, Detail.NO_BUFFERS, 0);
      return;
    }
    if (exchange.requestSent) {
      connection.writeEnded = true;
      connection.reusable = false;
      connection.readReady = true;
      this.pumpResponse(connection);
      return;
    }
    this.fault(exchange, Reason.UPSTREAM_CONNECTION_TERMINATION, Detail.UPSTREAM_WRITE_FAILED, connection.errno);
  }

  // -- response -------------------------------------------------------------------

  /** Moves response bytes to the client for as long as it takes them; with `all`, those that are here in any case. */
  private pumpResponse(connection: Connection, all = false): void {
    const { counters, input, reactor } = this.context;
    const exchange = connection.exchange!;
    const downstream = exchange.downstreamSide!;
    const client = exchange.downstream!;
    if (connection.deferred) {
      // If it has ended, or spoken, that was before the request was sent on it.
      if (input.fill(connection) === FILL_AGAIN) return;
      this.fault(exchange, Reason.UPSTREAM_CONNECTION_TERMINATION, Detail.UPSTREAM_FIN, 0);
      return;
    }
    for (let turn = 0; ; turn++) {
      // Paused while the client has not taken what it was sent; resumed by its writable event.
      if (!connection.readReady || ((client.outputBytes > 0 || exchange.responsePaused) && !all)) return;
      if (turn >= RECEIVES_PER_TURN && !all) {
        reactor.enqueue(connection);
        return;
      }
      const kept = connection.inputLength;
      const bytesMax = connection.state === BODY ? BULK_RECEIVE_BYTES_MAX : RECEIVE_BYTES_MAX;
      const status = input.fill(connection, bytesMax);
      if (status <= 0) {
        if (status !== FILL_AGAIN) this.responseFillFailed(connection, exchange, status);
        return;
      }
      counters[UPSTREAM_BYTES_IN] += status - kept;
      if (exchange.firstByteMs === 0) exchange.firstByteMs = reactor.nowMs;
      downstream.progress(exchange);
      const going =
        connection.state === HEAD
          ? this.readHead(connection, exchange, input.offset, input.length)
          : this.readBody(connection, exchange, input.offset, input.length);
      if (!going) return;
    }
  }

  /** Takes one or more heads (1xx come first) and the first body bytes. Returns whether to read on. */
  private readHead(connection: Connection, exchange: Exchange, offset: number, length: number): boolean {
    const { input, memory, reactor, responseHead: head, tunnel } = this.context;
    const downstream = exchange.downstreamSide!;
    const limits = exchange.runtime!.responseLimits;
    if (connection.inputScanned > 0 && length <= limits.headBytesMax) {
      // A head that comes in pieces is parsed again only once its end is here.
      if (findHeadEnd(memory, offset, length, offset + connection.inputScanned) < 0) {
        connection.inputScanned = length;
        return true;
      }
    }
    connection.inputScanned = 0;
    for (;;) {
      const result = parseResponseHead(memory, offset, length, limits, head);
      if (result === 0) {
        if (input.keep(connection, offset, length)) {
          connection.inputScanned = length;
          return true;
        }
        this.fault(exchange, Reason.OVERLOAD, Detail.NO_BUFFERS, 0);
        return false;
      }
      if (result < 0) {
        this.fault(exchange, Reason.UPSTREAM_PROTOCOL_ERROR, DETAIL_PARSE - result, 0);
        return false;
      }
      if (head.status === 101) {
        if (exchange.upgradeRequested) tunnel.startUpgrade(exchange, offset, length, head);
        else this.fault(exchange, Reason.UPSTREAM_PROTOCOL_ERROR, Detail.UNEXPECTED_UPGRADE, 0);
        return false;
      }
      if (head.status >= 200) break;
      // An informational head is passed on by itself; its bytes may be rewritten in place.
      const end = head.endOffset;
      if (!downstream.sendInformational(exchange, offset, head)) return false;
      length -= end - offset;
      offset = end;
      if (length === 0) {
        input.free(connection);
        return true;
      }
    }
    if (exchange.rival !== null) {
      const winner = this.context.upstream.hedges.answered(exchange, head);
      if (winner === null) return false;
      if (winner !== exchange) {
        // Who reads on must do so for the client's exchange.
        if (this.takeResponse(connection, winner, offset, length)) reactor.enqueue(connection);
        return false;
      }
    }
    return this.takeResponse(connection, exchange, offset, length);
  }

  /** Takes a final head, which has been read, and the first body bytes. Returns whether to read on. */
  private takeResponse(connection: Connection, exchange: Exchange, offset: number, length: number): boolean {
    const { memory, responseHead: head } = this.context;
    const downstream = exchange.downstreamSide!;
    this.frameResponse(exchange);
    connection.state = BODY;
    const { piece } = this;
    const bodyLength = offset + length - head.endOffset;
    readResponseBody(memory, head.endOffset, bodyLength, exchange, piece);
    if (piece.error !== 0) {
      this.fault(exchange, Reason.UPSTREAM_PROTOCOL_ERROR, DETAIL_PARSE + piece.error, 0);
      return false;
    }
    const restOffset = head.endOffset + piece.consumed;
    const rest = bodyLength - piece.consumed;
    const reusable = head.keepAlive && exchange.responseFraming !== CLOSE;
    if (!reusable) connection.reusable = false;
    // Where the response ends, for one that is not wanted.
    connection.wholeResponse = piece.end && rest === 0;
    if (this.context.upstream.answered(exchange, head)) return false;
    if (!downstream.sendResponse(exchange, offset, head, piece)) return false;
    return this.pieceDone(connection, exchange, restOffset, rest);
  }

  private readBody(connection: Connection, exchange: Exchange, offset: number, length: number): boolean {
    const { memory } = this.context;
    const downstream = exchange.downstreamSide!;
    const { piece } = this;
    readResponseBody(memory, offset, length, exchange, piece);
    if (piece.error !== 0) {
      this.fault(exchange, Reason.UPSTREAM_PROTOCOL_ERROR, DETAIL_PARSE + piece.error, 0);
      return false;
    }
    if (!downstream.sendResponseBody(exchange, piece)) return false;
    return this.pieceDone(connection, exchange, offset + piece.consumed, length - piece.consumed);
  }

  private pieceDone(connection: Connection, exchange: Exchange, restOffset: number, rest: number): boolean {
    const { input } = this.context;
    if (this.piece.end) {
      this.complete(exchange, rest > 0);
      return false;
    }
    if (input.keep(connection, restOffset, rest)) return true;
    this.fault(exchange, Reason.OVERLOAD, Detail.NO_BUFFERS, 0);
    return false;
  }

  /** Decides how the response body is framed on both sides (RFC 9112 §6.3). */
  private frameResponse(exchange: Exchange): void {
    const { responseHead: head } = this.context;
    const modern = exchange.versionMinor === 1;
    if (exchange.method === Method.HEAD || head.status === 204 || head.status === 304) {
      exchange.responseFraming = NONE;
      exchange.responseOutFraming = NONE;
      return;
    }
    if (head.contentLength >= 0 && !head.chunked) {
      exchange.responseFraming = head.contentLength === 0 ? NONE : LENGTH;
      exchange.responseRemaining = head.contentLength;
      exchange.responseOutFraming = LENGTH;
      return;
    }
    if (head.chunked) {
      exchange.responseFraming = CHUNKED;
      startResponseChunks(exchange);
    } else {
      exchange.responseFraming = CLOSE;
    }
    // An HTTP/1.0 client takes the end of the connection for the end of the body.
    exchange.responseOutFraming = modern ? CHUNKED : CLOSE;
    if (!modern) exchange.keepAlive = false;
  }

  /** The response is complete: lets the connection go, then the client's side goes on. */
  private complete(exchange: Exchange, leftOver: boolean): void {
    const downstream = exchange.downstreamSide!;
    this.release(exchange, leftOver);
    if (exchange.attemptDeadlineMs > 0) {
      // The backend has done its part; how long the client takes is not its business.
      exchange.attemptDeadlineMs = 0;
      downstream.progress(exchange);
    }
    this.context.upstream.completed(exchange);
    downstream.responseComplete(exchange);
  }

  /** The response is not wanted. What is not here whole would have to be waited for: the connection ends with it. */
  discard(exchange: Exchange): void {
    const connection = exchange.upstream!;
    if (connection.wholeResponse) this.release(exchange, false);
    else this.close(connection, true);
  }

  /** A response has come whole: keeps its connection, or closes it. */
  private release(exchange: Exchange, leftOver: boolean): void {
    const { counters, draining, input, reactor, upstream } = this.context;
    const connection = exchange.upstream!;
    const endpoint = connection.endpoint!;
    const backend = exchange.runtime!.backends[exchange.backend];
    const { settings } = backend;
    const usesMax = settings.requestsPerConnectionMax;
    exchange.upstream = null;
    // It may be older than the configuration.
    connection.backend = backend;
    if (connection.breakerSlot < 0 && settings.policy.circuitBreaker !== null) {
      upstream.breakers.countConnection(backend);
      upstream.breakers.opened(connection, backend);
    }
    if (connection.tls !== 0 && connection.exchanges === 1 && !endpoint.removed)
      this.context.connector.saveResumption(connection);
    if (
      connection.reusable &&
      settings.proxyProtocol === 0 && // It speaks of one client.
      !leftOver &&
      exchange.requestComplete &&
      exchange.replayNext < 0 &&
      connection.outputBytes === 0 &&
      !connection.readReady && // More may have come than was asked for.
      !connection.readHangup &&
      !endpoint.removed &&
      !draining &&
      endpoint.idleCount < settings.idleConnectionsMax &&
      (usesMax === 0 || connection.exchanges < usesMax) &&
      (connection.breakerSlot < 0 || !upstream.breakers.isUnwanted(connection.breakerSlot))
    ) {
      input.free(connection);
      connection.exchange = null;
      connection.state = IDLE;
      endpoint.addIdle(connection);
      counters[UPSTREAM_IDLE]++;
      if (connection.breakerSlot < 0) {
        reactor.setTimer(connection, settings.idleTimeoutMs);
      } else {
        connection.idleSinceMs = reactor.nowMs;
        reactor.setTimer(connection, Math.min(settings.idleTimeoutMs, IDLE_LOOK_MS));
        upstream.breakers.wake();
      }
    } else {
      this.close(connection, false);
    }
  }

  private responseFillFailed(connection: Connection, exchange: Exchange, status: number): void {
    if (status === FILL_END) {
      // A reset is reported once: after a send has been told, the receive looks like an orderly end.
      const reset = connection.errno === Errno.ECONNRESET;
      if (connection.state === BODY && exchange.responseFraming === CLOSE && !reset) {
        const { piece } = this;
        piece.payloadLength = 0;
        piece.consumed = 0;
        piece.end = true;
        piece.trailers = null;
        if (exchange.downstreamSide!.sendResponseBody(exchange, piece)) this.complete(exchange, false);
        return;
      }
      this.fault(exchange, Reason.UPSTREAM_CONNECTION_TERMINATION, Detail.UPSTREAM_FIN, 0);
    } else if (status === FILL_ERROR) {
      this.fault(exchange, Reason.UPSTREAM_CONNECTION_TERMINATION, Detail.UPSTREAM_RESET, connection.errno);
    } else if (connection.state === HEAD) {
      this.fault(exchange, Reason.UPSTREAM_PROTOCOL_ERROR, Detail.RESPONSE_HEAD_TOO_LARGE, 0);
    } else {
      this.fault(exchange, Reason.OVERLOAD, Detail.NO_BUFFERS, 0);
    }
  }

  // -- failure and end ----------------------------------------------------------------

  /** The attempt has failed: sends the request again where that is safe, else answers or cuts. */
  private fault(exchange: Exchange, reason: number, detail: number, errno: number): void {
    const { counters } = this.context;
    const connection = exchange.upstream!;
    const answered = exchange.firstByteMs > 0;
    if (connection.deferred) exchange.requestSent = false;
    this.close(connection, reason !== Reason.UPSTREAM_CONNECTION_TERMINATION);
    if (reason === Reason.UPSTREAM_CONNECTION_TERMINATION && exchange.reusedConnection && !answered) {
      if (mayReplay(exchange) && (!exchange.requestSent || isIdempotent(exchange.method))) {
        counters[STALE_RETRIES]++;
        exchange.resent = true;
        this.context.upstream.start(exchange);
        return;
      }
      reason = Reason.STALE_UPSTREAM_CONNECTION;
    }
    this.context.upstream.failed(exchange, reason === Reason.OVERLOAD ? 503 : 502, reason, detail, errno);
  }

  /** Drops the upstream side of an exchange that ends for another reason. */
  cancel(exchange: Exchange): void {
    if (exchange.upstream !== null) this.close(exchange.upstream, exchange.requestSent);
    else if (exchange.waiting) this.context.upstream.breakers.withdraw(exchange);
  }

  /** Nothing more can come on a connection: what has is the client's, however slowly that takes it. */
  readRest(connection: Connection): void {
    if (connection.state === BODY) this.pumpResponse(connection, true);
    else this.readable(connection);
  }

  /** The stream that stands for a connection has been reset (upstream-tunnels.ts). */
  lost(connection: Connection): void {
    if (connection.state === IDLE) this.closeIdle(connection);
    else
      this.fault(connection.exchange!, Reason.UPSTREAM_CONNECTION_TERMINATION, Detail.UPSTREAM_RESET, connection.errno);
  }

  /** Closes a connection that is in use or connecting, and takes it off its exchange. */
  private close(connection: Connection, abort: boolean): void {
    if (connection.exchange !== null) connection.exchange.upstream = null;
    if (connection.breakerSlot >= 0) this.context.upstream.breakers.closed(connection);
    this.context.counters[UPSTREAM_OPEN]--;
    this.context.reactor.close(connection, abort);
  }

  /** Closes a kept connection. */
  closeIdle(connection: Connection): void {
    connection.endpoint!.removeIdle(connection);
    this.context.counters[UPSTREAM_IDLE]--;
    this.close(connection, false);
  }
}
