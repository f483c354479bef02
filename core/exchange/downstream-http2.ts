// The client's side of HTTP/2: requests in, responses out, one exchange per stream.
//
// Frames and flow control are the engine's (core/http2); a stream is a connection without a descriptor, on
// which the base class works as on a socket. A stream lives exactly as long as its exchange, which
// begins with the request's header block; what is left of the stream when the exchange ends is reset.
// Extended CONNECT (WebSocket over HTTP/2) goes upstream as an HTTP/1.1 upgrade, and becomes a tunnel.
// Owned by one worker. Hot module: no allocation, exception, promise, closure or log line.
// Spec: RFC 9113 §8 (messages), §6.8 (GOAWAY), RFC 8441 (extended CONNECT).

import { Errno } from '../ffi/errno.ts';
import { parsePort } from '../http1/authority.ts';
import { ParseError, parseErrorStatus } from '../http1/errors.ts';
import type { HeaderTable } from '../http1/header-table.ts';
import { Method, type RequestHead, ResponseHead } from '../http1/message.ts';
import { parseResponseHead } from '../http1/response-parser.ts';
import type { Http2Engine } from '../http2/engine.ts';
import { ErrorCode } from '../http2/errors.ts';
import {
  REQUEST_MALFORMED as MALFORMED,
  REQUEST_NO_BUFFER as NO_BUFFER,
  RequestFields,
} from '../http2/request-fields.ts';
import { type ResponseAdditions, ResponseFields } from '../http2/response-fields.ts';
import type { HeaderBlock, Http2Role } from '../http2/role.ts';
import type { Http2Limits, Http2Session } from '../http2/session.ts';
import type { Http2Stream } from '../http2/stream.ts';
import type { Connection } from '../io/connection.ts';
import { CloseCause, Counter } from '../telemetry/metrics.ts';
import { type BodyPiece, keepTrailers } from './body.ts';
import type { ProxyContext } from './context.ts';
import { Downstream } from './downstream.ts';
import { DownstreamState } from './downstream-http1.ts';
import { BodyFraming, type Exchange, HttpVersion } from './exchange.ts';
import { connectionNames, valueEquals } from './fields.ts';
import { GENERATED_BYTES_MAX } from './generated.ts';
import { DETAIL_PARSE, Detail, Reason } from './reasons.ts';
import { prepareRequest } from './request-preparation.ts';
import { LeftOut } from './response-head.ts';
import { editResponseHead, hasResponseLines, ResponseEdit } from './response-lines.ts';
import { ResponseWriter } from './response-writer.ts';
import type { Runtime } from './runtime.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { ACTIVE, IDLE, LINGER } = DownstreamState;
const { STREAM } = BodyFraming;
const { HTTP_2 } = HttpVersion;
const { TUNNEL_IDENTITY } = Detail;
const { CONNECT } = Method;
const { NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, CANCEL, CONNECT_ERROR, REFUSED_STREAM } = ErrorCode;
const { DOWNSTREAM_BYTES_IN, DOWNSTREAM_BYTES_OUT, DOWNSTREAM_OPEN } = Counter;
const REQUEST_MALFORMED = MALFORMED;
const REQUEST_NO_BUFFER = NO_BUFFER;

/** Limits for parsing our own generated responses. */
const generatedLimits = { headBytesMax: GENERATED_BYTES_MAX, headerCountMax: 64, uriBytesMax: 0 };

export class DownstreamHttp2 extends Downstream implements Http2Role {
  readonly isServer = true;
  readonly bytesInCounter: number = DOWNSTREAM_BYTES_IN;
  readonly bytesOutCounter: number = DOWNSTREAM_BYTES_OUT;
  readonly lingerState: number = LINGER;
  readonly streamProtocol = this;
  private readonly engine: Http2Engine;
  private readonly requestFields: RequestFields;
  private readonly responseFields: ResponseFields;
  private readonly writer: ResponseWriter;
  private readonly generatedHead = new ResponseHead();
  private readonly edit = new ResponseEdit();
  private readonly additions: ResponseAdditions = {
    server: null,
    via: null,
    upgraded: false,
    linesOffset: 0,
    linesLength: 0,
    secret: false,
    isNamed: connectionNames,
  };
  /** Limits as of the configuration that was in force last. */
  private limits: Http2Limits | null = null;
  private limitsOf: Runtime | null = null;

  constructor(context: ProxyContext) {
    super(context);
    this.engine = context.http2;
    this.requestFields = new RequestFields(context.reactor, context.ids);
    this.responseFields = new ResponseFields(context.reactor, context.http2.output);
    this.writer = new ResponseWriter(context);
  }

  // -- connections ----------------------------------------------------------------

  /** Takes over a freshly accepted connection whose protocol is HTTP/2 (by ALPN, or because the listener speaks no other). */
  accepted(connection: Connection): void {
    this.open(connection);
    this.context.reactor.resume(connection);
  }

  /** Takes over a connection from HTTP/1 with the bytes that have come, among them the preface. */
  takeOver(connection: Connection, offset: number, length: number): void {
    const { input } = this.context;
    if (!input.keep(connection, offset, length)) {
      this.context.downstreamHttp1.close(connection, CloseCause.SHED, true);
      return;
    }
    connection.inputScanned = 0;
    this.open(connection);
    this.engine.readable(connection);
  }

  private open(connection: Connection): void {
    connection.state = IDLE;
    this.engine.open(connection, this, this.currentLimits());
  }

  private currentLimits(): Http2Limits {
    const { runtime } = this.context;
    const { http } = runtime;
    if (this.limits === null || this.limitsOf !== runtime) {
      this.limitsOf = runtime;
      this.limits = {
        concurrentStreamsMax: http.http2.concurrentStreamsMax,
        streamWindowBytes: http.http2.streamWindowBytes,
        connectionWindowBytes: http.http2.connectionWindowBytes,
        resetsPerSecondMax: http.http2.resetsPerSecondMax,
        controlFramesPerSecondMax: http.http2.controlFramesPerSecondMax,
        headBytesMax: http.requestHeadBytesMax,
        headerCountMax: http.headerCountMax,
        headTimeoutMs: http.requestHeadTimeoutMs,
        idleTimeoutMs: http.idleTimeoutMs,
        stallTimeoutMs: http.streamIdleTimeoutMs,
      };
    }
    return this.limits;
  }

  /** Closes an HTTP/2 connection that has no streams, and announces the end to one that has. Returns whether it did close. */
  closeIfIdle(connection: Connection): boolean {
    const { shutdowns } = this.engine;
    const session = connection.http2Session!;
    if (session.streamCount > 0) {
      shutdowns.announce(session);
      return false;
    }
    shutdowns.finish(session, CloseCause.DRAIN);
    return true;
  }

  /** Ends an HTTP/2 connection at once, with all its streams (shutdown, drain timeout). */
  terminateConnection(connection: Connection): void {
    this.engine.shutdowns.terminate(connection.http2Session!);
  }

  // -- role: what the engine tells --------------------------------------------------

  head(stream: Http2Stream, block: HeaderBlock): number {
    const { context } = this;
    const { requestHead: head, runtime } = context;
    const result = this.requestFields.read(block, stream.remoteEnded, runtime.requestLimits, head);
    if (result === REQUEST_MALFORMED) return PROTOCOL_ERROR;
    if (result === REQUEST_NO_BUFFER) return REFUSED_STREAM;
    this.countRequest(stream.session!);
    const connection = stream.connection!;
    if (result <= 0 && head.method === CONNECT && head.upgradeField < 0 && connection.listener!.tunnels !== null) {
      return this.acceptTunnel(stream, connection, head);
    }
    const exchange = this.attach(connection);
    connection.state = ACTIVE;
    exchange.httpVersion = HTTP_2;
    exchange.keepAlive = true;
    exchange.requestComplete = stream.remoteEnded;
    if (result > 0) {
      this.refuseParsed(exchange, result);
      return 0;
    }
    stream.contentLength = head.contentLength;
    exchange.method = head.method;
    exchange.secretRequest = block.decoder.secret;
    const extended = head.upgradeField >= 0;
    if (extended || head.method === CONNECT) {
      // What comes belongs to the tunnel.
      exchange.requestComplete = true;
    } else if (!stream.remoteEnded) {
      exchange.requestFraming = STREAM;
      exchange.requestRemaining = head.contentLength;
    }
    if (extended && !this.upgradeAllowed(head.headers, head.upgradeField)) {
      this.identify(exchange);
      this.refuse(exchange, 501, Reason.NOT_IMPLEMENTED, Detail.NONE);
      return 0;
    }
    exchange.upgradeRequested = extended;
    this.dispatch(exchange, prepareRequest(this.context, exchange));
    return 0;
  }

  /**
   * A CONNECT on a listener that ends tunnels: the stream becomes a connection of the listener that the tunnel leads
   * to, with the client certificate of the connection that carries it.
   */
  private acceptTunnel(stream: Http2Stream, connection: Connection, head: RequestHead): number {
    const { counters, memory } = this.context;
    const end = head.authorityOffset + head.authorityLength;
    // CONNECT without a port is malformed, and has been refused.
    const port = parsePort(memory, head.authorityOffset + head.hostLength + 1, end);
    const target =
      connection.workload === null
        ? connection.listener!.tunnelTarget(port)
        : this.context.mesh.tunnelTarget(connection, head, port);
    const limit =
      connection.workload === null || target === null || stream.remoteEnded
        ? 0
        : this.context.mesh.admitTunnelled(connection);
    if (target === null || stream.remoteEnded || limit !== 0) {
      const exchange = this.attach(connection);
      exchange.httpVersion = HTTP_2;
      exchange.requestComplete = true;
      exchange.method = CONNECT;
      this.identify(exchange);
      if (target === null) this.refuse(exchange, 404, Reason.NO_ROUTE, Detail.TUNNEL_NOWHERE);
      else if (limit === TUNNEL_IDENTITY) {
        // An honest client has a newer certificate by now, and opens another connection with it.
        this.engine.shutdowns.finish(stream.session!, CloseCause.DRAIN);
        this.refuse(exchange, 403, Reason.UNAUTHORIZED, limit);
      } else if (limit !== 0) this.refuse(exchange, 503, Reason.OVERLOAD, limit);
      else this.refuse(exchange, 400, Reason.DOWNSTREAM_PROTOCOL_ERROR, Detail.NONE);
      return 0;
    }
    if (!this.writeTunnelHead(connection)) return INTERNAL_ERROR;
    stream.contentLength = -1;
    counters[Counter.DOWNSTREAM_ACCEPTED]++;
    counters[DOWNSTREAM_OPEN]++;
    this.context.mesh.serve(connection, target);
    return 0;
  }

  /** The last request that a connection may carry is known as soon as it has come. */
  private countRequest(session: Http2Session): void {
    const { requestsPerConnectionMax } = this.context.runtime.http;
    const { connection } = session;
    connection.exchanges++;
    if (requestsPerConnectionMax > 0 && connection.exchanges >= requestsPerConnectionMax) {
      this.engine.shutdowns.finish(session, CloseCause.FINISHED);
    }
  }

  private upgradeAllowed(headers: HeaderTable, field: number): boolean {
    const { memory, runtime } = this.context;
    for (const protocol of runtime.upgradeProtocols) {
      if (valueEquals(memory, headers.valueOffset(field), headers.valueLength(field), protocol)) return true;
    }
    return false;
  }

  private refuseParsed(exchange: Exchange, error: number): void {
    this.context.metrics.countParseError(error);
    const status = parseErrorStatus(error);
    let detail = DETAIL_PARSE + error;
    if (error === ParseError.HEAD_TOO_LARGE) detail = Detail.HEAD_TOO_LARGE;
    else if (error === ParseError.URI_TOO_LONG) detail = Detail.URI_TOO_LONG;
    else if (error === ParseError.TOO_MANY_FIELDS) detail = Detail.TOO_MANY_HEADERS;
    const isTooLarge = status === 414 || status === 431;
    this.identify(exchange);
    this.refuse(exchange, status, isTooLarge ? Reason.REQUEST_TOO_LARGE : Reason.DOWNSTREAM_PROTOCOL_ERROR, detail);
  }

  streamReset(stream: Http2Stream, _errorCode: number): void {
    const connection = stream.connection!;
    connection.errno = Errno.ECONNRESET;
    if (connection.http2Session !== null) this.engine.shutdowns.lost(connection.http2Session);
    else if (connection.protocol !== this) connection.protocol!.sendFailed(connection);
    else if (connection.exchange !== null) this.clientLeft(connection);
    else this.context.reactor.close(connection, true);
  }

  streamFailed(stream: Http2Stream, errorCode: number): void {
    const { exchange } = stream.connection!;
    if (exchange !== null && exchange.reason === Reason.NONE) exchange.reason = Reason.DOWNSTREAM_PROTOCOL_ERROR;
    this.streamReset(stream, errorCode);
  }

  moved(stream: Http2Stream): void {
    const connection = stream.connection!;
    if (connection.protocol === this && connection.exchange !== null) this.progress(connection.exchange);
  }

  goaway(): void {}

  streamsAvailable(): void {}

  sessionIdle(session: Http2Session): void {
    const { listener, workload } = session.connection;
    const removed = listener!.removed || workload?.removed === true;
    if (session.goawayNoticeSent || this.context.draining || removed) {
      this.engine.shutdowns.finish(session, CloseCause.DRAIN);
    }
  }

  sessionClosed(_connection: Connection, _session: Http2Session, cause: number): void {
    this.context.metrics.countClose(cause);
    this.context.counters[DOWNSTREAM_OPEN]--;
  }

  // -- events of streams ----------------------------------------------------------------

  readable(connection: Connection): void {
    const { exchange } = connection;
    if (exchange !== null && !exchange.requestComplete) this.pumpRequest(exchange);
  }

  writable(connection: Connection): void {
    if (connection.outputBytes === 0) return;
    const { output } = this.context;
    const before = connection.outputBytes;
    if (!output.flush(connection)) {
      this.writeFailed(connection);
      return;
    }
    const exchange = connection.exchange;
    if (exchange === null) return;
    if (connection.outputBytes < before) this.progress(exchange);
    if (connection.outputBytes > 0) return;
    if (exchange.responseComplete) this.finish(exchange);
    else this.drained(exchange);
  }

  expired(connection: Connection): void {
    if (connection.exchange !== null) this.exchangeExpired(connection.exchange);
    else this.close(connection, CloseCause.TIMEOUT, true);
  }

  // -- response ---------------------------------------------------------------------------

  override sendResponse(exchange: Exchange, headOffset: number, head: ResponseHead, piece: BodyPiece): boolean {
    // To an extended CONNECT a good status would say that there is a tunnel (RFC 8441 §5).
    if (exchange.upgradeRequested && head.status < 300) {
      this.context.upstream.cancel(exchange);
      this.fail(exchange, 502, Reason.UPSTREAM_PROTOCOL_ERROR, Detail.NONE, 0);
      return false;
    }
    return super.sendResponse(exchange, headOffset, head, piece);
  }

  protected writeResponse(exchange: Exchange, _headOffset: number, head: ResponseHead, piece: BodyPiece): boolean {
    const bodyless = piece.end && piece.payloadLength === 0 && piece.trailers === null;
    exchange.status = head.status;
    exchange.responseStarted = true;
    if (!this.writeFinalHead(exchange, head, bodyless)) return false;
    return bodyless || this.writePiece(exchange, piece);
  }

  protected writeBody(exchange: Exchange, piece: BodyPiece): boolean {
    return this.writePiece(exchange, piece);
  }

  protected writeInformational(exchange: Exchange, _headOffset: number, head: ResponseHead): boolean {
    return this.writeHead(exchange, head, head.status, false, false);
  }

  protected writeGenerated(exchange: Exchange, status: number): boolean {
    const { memory, output, reactor } = this.context;
    const head = this.generatedHead;
    const start = reactor.arena.scratchOffset;
    const length = this.writer.putGenerated(exchange, status) - start;
    if (parseResponseHead(memory, start, length, generatedLimits, head) <= 0) return false;
    const bodyLength = start + length - head.endOffset;
    if (!this.writeFinalHead(exchange, head, bodyLength === 0)) return false;
    if (bodyLength === 0) return true;
    const connection = exchange.downstream!;
    connection.http2Stream!.ending = true;
    return output.send(connection, head.endOffset, bodyLength, false);
  }

  writeConnected(exchange: Exchange): boolean {
    return this.writeTunnelHead(exchange.downstream!);
  }

  /** Says that there is a tunnel. */
  private writeTunnelHead(connection: Connection): boolean {
    const { additions } = this;
    const head = this.generatedHead;
    head.status = 200;
    head.headers.count = 0;
    head.fieldsOffset = 0;
    head.endOffset = 0;
    head.seen = 0;
    head.versionMinor = 1;
    head.connectionNamesFields = false;
    additions.server = null;
    additions.via = null;
    additions.upgraded = false;
    additions.secret = false;
    if (this.responseFields.write(connection.http2Stream!, head, 200, additions, false)) return true;
    connection.errno = Errno.ENOBUFS;
    return false;
  }

  writeUpgraded(exchange: Exchange, offset: number, length: number, head: ResponseHead): boolean {
    exchange.status = 200;
    if (!this.writeHead(exchange, head, 200, true, false)) return false;
    const early = offset + length - head.endOffset;
    exchange.responseBodyBytes += early;
    return early === 0 || this.context.output.send(exchange.downstream!, head.endOffset, early, false);
  }

  /** Writes a final response head, with the changes and lines that somebody has for it. */
  private writeFinalHead(exchange: Exchange, head: ResponseHead, endStream: boolean): boolean {
    if (!hasResponseLines(exchange)) return this.writeHead(exchange, head, head.status, false, endStream);
    const { additions, context } = this;
    const { edit } = this;
    editResponseHead(context, exchange, head, edit);
    additions.linesOffset = edit.linesOffset;
    // The empty line behind them.
    additions.linesLength = edit.linesLength === 0 ? 0 : edit.linesLength + 2;
    const written = this.writeHead(exchange, head, head.status, false, endStream, edit.leftOut);
    additions.linesLength = 0;
    return written;
  }

  private writeHead(
    exchange: Exchange,
    head: ResponseHead,
    status: number,
    upgraded: boolean,
    endStream: boolean,
    leftOut = 0,
  ): boolean {
    const { additions } = this;
    const runtime = exchange.runtime!;
    const connection = exchange.downstream!;
    // A generated response names its server itself, and has not come by way of anybody.
    const generated = head === this.generatedHead;
    additions.server = generated || (leftOut & LeftOut.SERVER) !== 0 ? null : runtime.serverField;
    additions.via = generated || (leftOut & LeftOut.VIA) !== 0 ? null : runtime.viaFields[head.versionMinor];
    additions.upgraded = upgraded;
    additions.secret = exchange.secretResponse && !generated;
    if (this.responseFields.write(connection.http2Stream!, head, status, additions, endStream)) return true;
    connection.errno = Errno.ENOBUFS;
    return false;
  }

  /** Sends a piece of the body; the stream ends with the last one. */
  private writePiece(exchange: Exchange, piece: BodyPiece): boolean {
    const { output, reactor } = this.context;
    const { streams } = this.engine;
    const connection = exchange.downstream!;
    const stream = connection.http2Stream!;
    exchange.responseBodyBytes += piece.payloadLength;
    if (piece.end) {
      if (piece.trailers !== null && !keepTrailers(reactor, connection, piece.trailers)) return false;
      stream.ending = true;
    }
    if (piece.payloadLength > 0 && !output.send(connection, piece.payloadOffset, piece.payloadLength, false))
      return false;
    if (piece.end && connection.outputBytes === 0 && !stream.localEnded) {
      if (stream.tailBlock !== 0) streams.sendTail(stream);
      else this.engine.output.endStream(stream);
    }
    return true;
  }

  // -- end of a stream -------------------------------------------------------------------

  /** The last byte of the response is on its way. */
  protected finish(exchange: Exchange): void {
    const connection = exchange.downstream!;
    // What the client still sends is of no use (RFC 9113 §8.1).
    connection.http2Stream!.resetCode = NO_ERROR;
    connection.exchange = null;
    this.context.endExchange(exchange);
    this.context.reactor.close(connection, false);
  }

  /** Resets a stream that has no exchange any more. */
  close(connection: Connection, cause: number, abort: boolean): void {
    connection.http2Stream!.resetCode = resetCodeOf(cause, abort);
    this.context.reactor.close(connection, abort);
  }
}

/** What a stream that ends for a cause is reset with. */
function resetCodeOf(cause: number, abort: boolean): number {
  switch (cause) {
    case CloseCause.TUNNEL_END:
      return abort ? CONNECT_ERROR : NO_ERROR;
    case CloseCause.TIMEOUT:
    case CloseCause.DRAIN:
    case CloseCause.CLIENT:
    case CloseCause.CLIENT_RESET:
      return CANCEL;
    default:
      return INTERNAL_ERROR;
  }
}
