// The upstream's side of HTTP/2: an exchange is a stream of a connection that many share.
//
//   no stream yet (see http2-connections.ts) --> HEAD --> KEPT --> BODY --> closed
//
// A response head is kept until its first DATA, or the end of the batch, so that both leave with one send.
// Streams that the upstream says it has not acted on (REFUSED_STREAM, GOAWAY) are sent again elsewhere,
// whatever their method, as long as no body bytes are gone.
// Owned by one worker. Hot module: no allocation, exception, promise, closure or log line.
// Spec: RFC 9113 §5.4.2 (stream errors), §6.8 (GOAWAY), §8 (messages), §8.7 (reliability); RFC 8441 (WebSocket).

import { createHash } from 'node:crypto';
import { Errno } from '../ffi/errno.ts';
import { HeaderId } from '../http1/header-ids.ts';
import { Method, type ParserLimits, ResponseHead } from '../http1/message.ts';
import { parseResponseHead } from '../http1/response-parser.ts';
import * as errors from '../http2/errors.ts';
import { RequestEncoder } from '../http2/request-encoder.ts';
import * as reader from '../http2/response-reader.ts';
import type { HeaderBlock, Http2Role } from '../http2/role.ts';
import type { Http2Limits, Http2Session } from '../http2/session.ts';
import { statusLine } from '../http2/status-lines.ts';
import type { Http2Stream } from '../http2/stream.ts';
import {
  BULK_RECEIVE_BYTES_MAX,
  HEADROOM_BYTES,
  LARGE_BLOCK_BYTES,
  RECEIVE_BYTES_MAX,
  TAILROOM_BYTES,
} from '../io/arena.ts';
import { putRange, putText, Text } from '../io/bytes.ts';
import type { Connection, Protocol } from '../io/connection.ts';
import { FILL_AGAIN, FILL_END, FILL_ERROR, FILL_FULL } from '../io/input.ts';
import type { Endpoint } from '../lb/endpoint.ts';
import type { Http2Member } from '../lb/http2-pool.ts';
import { CloseCause, Counter } from '../telemetry/metrics.ts';
import { BodyPiece, keepTrailers, readResponseBody } from './body.ts';
import type { ProxyContext } from './context.ts';
import { BodyFraming, type Exchange } from './exchange.ts';
import { Http2Connections, type StreamOpener } from './http2-connections.ts';
import { isIdempotent } from './methods.ts';
import { Detail, Reason } from './reasons.ts';
import { mayReplay } from './retries.ts';
import type { UpstreamSide } from './upstream-side.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { CONTENT_LENGTH } = HeaderId;
const { CHUNKED, CLOSE, LENGTH, NONE, STREAM } = BodyFraming;
const { NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, CANCEL, REFUSED_STREAM } = errors.ErrorCode;
const { HEAD_TOO_LARGE, responseStatus, responseContentLength, responseHeadBytesMax, writeResponseHead } = reader;
const { STALE_RETRIES, UPSTREAM_REUSED, UPSTREAM_HTTP2_STREAMS } = Counter;
const { UPSTREAM_HTTP2_REFUSED_RETRIES, UPSTREAM_HTTP2_GOAWAYS } = Counter;
const { UPSTREAM_CONNECTION_TERMINATION, UPSTREAM_PROTOCOL_ERROR, UPSTREAM_TIMEOUT, OVERLOAD } = Reason;

/** States of a stream to an upstream. */
const HEAD = 1;
/** The response head is here and has not been passed on. */
const KEPT = 2;
const BODY = 3;

/** Receives per turn of one stream, so that a fast upstream does not starve the others. */
const RECEIVES_PER_TURN = 8;

/** Bodies up to this size are copied behind their head, so that both leave with one send. */
const JOINED_BYTES_MAX = 16 * 1024;

/** Attempts of a request that upstreams refuse to act on. */
const REFUSED_ATTEMPTS_MAX = 3;

/** The text of a head that was decoded and checked is within all limits. */
const anyLimits: ParserLimits = { headBytesMax: LARGE_BLOCK_BYTES, headerCountMax: 256, uriBytesMax: 0 };

const upgradeLines = new Text('connection: upgrade\r\nupgrade: websocket');
const acceptLine = new Text('\r\nsec-websocket-accept: ');
const lineEnd = new Text('\r\n');
/** RFC 6455 §1.3. */
const WEBSOCKET_GUID = '258EAFA5-E914-47DA-95CA-C5AB0DC85B11';
/** Bytes that an answer to an extended CONNECT grows by, besides the protocol's name. */
const UPGRADE_BYTES = 160;

export class UpstreamHttp2 implements Protocol, UpstreamSide, StreamOpener, Http2Role {
  readonly isServer = false;
  readonly bytesInCounter = Counter.UPSTREAM_BYTES_IN;
  readonly bytesOutCounter = Counter.UPSTREAM_BYTES_OUT;
  readonly lingerState = 0;
  readonly streamProtocol: Protocol = this;
  readonly connections: Http2Connections;
  private readonly context: ProxyContext;
  private readonly encoder: RequestEncoder;
  private readonly piece = new BodyPiece();
  /** The head written last, whose it is, and where it lies. */
  private readonly responseHead = new ResponseHead();
  private responseOf: Connection | null = null;
  private responseGeneration = 0;
  private responseOffset = 0;
  /** What is wrong with the head that was refused last. */
  private headFault = 0;

  constructor(context: ProxyContext) {
    this.context = context;
    this.connections = new Http2Connections(context, this);
    this.encoder = new RequestEncoder(context.reactor, context.http2.output);
  }

  // -- connections --------------------------------------------------------------

  /** Sends the exchange to an endpoint, as soon as it has a stream. */
  begin(exchange: Exchange, endpoint: Endpoint): void {
    exchange.upstreamSide = this;
    exchange.upstream = null;
    this.connections.place(exchange, endpoint);
  }

  established(connection: Connection): void {
    this.connections.established(connection);
  }

  notEstablished(connection: Connection): void {
    this.connections.notEstablished(connection);
  }

  open(connection: Connection, limits: Http2Limits): Http2Session {
    return this.context.http2.open(connection, this, limits);
  }

  streamsAvailable(session: Http2Session): void {
    this.connections.streamsAvailable(session);
  }

  sessionIdle(session: Http2Session): void {
    this.connections.sessionIdle(session);
  }

  sessionClosed(_connection: Connection, session: Http2Session, cause: number, errno: number): void {
    this.connections.sessionClosed(session, cause, errno);
  }

  // -- request --------------------------------------------------------------------

  openStream(exchange: Exchange, member: Http2Member): void {
    const { reactor, counters, http2 } = this.context;
    const downstream = exchange.downstreamSide!;
    const session = member.session!;
    if (exchange.upgradeRequested && !session.peer.enableConnectProtocol) {
      this.context.upstream.failed(exchange, 502, Reason.NOT_IMPLEMENTED, Detail.EXTENDED_CONNECT_MISSING, 0);
      return;
    }
    const stream = http2.streams.open(session, this);
    if (stream === null) {
      this.context.upstream.failed(exchange, 503, OVERLOAD, Detail.NO_CONNECTION_SLOTS, 0);
      return;
    }
    const { settings } = exchange.runtime!.backends[exchange.backend];
    const connection = stream.connection!;
    connection.state = HEAD;
    connection.endpoint = member.pool.endpoint;
    connection.exchange = exchange;
    exchange.upstream = connection;
    exchange.connectedMs = reactor.nowMs;
    exchange.reusedConnection = member.uses > 0;
    exchange.upstreamConnectionUses = member.uses;
    exchange.upstreamConnectionAgeMs = reactor.nowMs - session.connection.openedMs;
    if (member.uses > 0) counters[UPSTREAM_REUSED]++;
    counters[UPSTREAM_HTTP2_STREAMS]++;
    member.uses++;
    this.connections.setIdle(member, false);
    const usesMax = settings.requestsPerConnectionMax;
    if (usesMax > 0 && member.uses >= usesMax) member.retired = true;

    const whole = exchange.requestComplete && !exchange.upgradeRequested && exchange.replayNext < 0;
    if (!this.encoder.write(stream, exchange, settings.tls !== null, whole)) {
      const { tooLarge } = this.encoder;
      this.close(connection, CANCEL);
      if (tooLarge) this.context.upstream.failed(exchange, 431, Reason.REQUEST_TOO_LARGE, Detail.HEAD_TOO_LARGE, 0);
      else this.context.upstream.failed(exchange, 503, OVERLOAD, Detail.NO_BUFFERS, 0);
      return;
    }
    exchange.requestSent = true;
    downstream.progress(exchange);
    if (!exchange.requestComplete || exchange.replayNext >= 0) downstream.pumpRequest(exchange);
  }

  acceptsBody(exchange: Exchange): boolean {
    const connection = exchange.upstream;
    return (
      connection !== null && connection.protocol === this && connection.outputBytes === 0 && !connection.writeEnded
    );
  }

  sendBody(exchange: Exchange, piece: BodyPiece): boolean {
    const { http2, output, reactor } = this.context;
    const connection = exchange.upstream!;
    const stream = connection.http2Stream!;
    const { payloadLength, trailers } = piece;
    exchange.bodyStreamed = true;
    if (piece.end) {
      if (trailers !== null && !keepTrailers(reactor, connection, trailers)) return false;
      stream.ending = true;
    }
    if (payloadLength > 0 && !output.send(connection, piece.payloadOffset, payloadLength, false)) return false;
    if (piece.end && connection.outputBytes === 0 && !stream.localEnded) {
      if (stream.tailBlock !== 0) http2.streams.sendTail(stream);
      else http2.output.endStream(stream);
    }
    return true;
  }

  /** What the upstream has answered may still come; if the connection is lost, its end is told by itself. */
  writeFailed(exchange: Exchange): void {
    const { output } = this.context;
    const connection = exchange.upstream!;
    output.free(connection);
    connection.writeEnded = true;
    if (connection.errno !== Errno.ENOBUFS) return;
    this.close(connection, CANCEL);
    this.context.upstream.failed(exchange, 503, OVERLOAD, Detail.NO_BUFFERS, 0);
  }

  // -- events -------------------------------------------------------------------

  readable(connection: Connection): void {
    if (connection.state !== HEAD) this.pump(connection, false);
  }

  writable(connection: Connection): void {
    const exchange = connection.exchange;
    if (connection.outputBytes === 0 || exchange === null) return;
    const { output } = this.context;
    const before = connection.outputBytes;
    if (!output.flush(connection)) {
      this.writeFailed(exchange);
      return;
    }
    const downstream = exchange.downstreamSide!;
    if (connection.outputBytes < before) downstream.progress(exchange);
    if (connection.outputBytes > 0) return;
    if (!exchange.requestComplete || exchange.replayNext >= 0) downstream.pumpRequest(exchange);
  }

  expired(): void {}

  sendFailed(connection: Connection): void {
    this.writeFailed(connection.exchange!);
  }

  /** Nothing has come behind the head in this batch: passes it on by itself. */
  batchEnd(connection: Connection): void {
    if (connection.state !== KEPT) return;
    const { piece } = this;
    piece.payloadLength = 0;
    piece.end = false;
    piece.trailers = null;
    this.sendHead(connection, connection.exchange!);
  }

  // -- response -------------------------------------------------------------------

  head(stream: Http2Stream, block: HeaderBlock): number {
    const { memory, output, reactor } = this.context;
    const connection = stream.connection!;
    let exchange = connection.exchange!;
    const status = responseStatus(memory, block);
    if (status < 0) {
      this.headFault = status === HEAD_TOO_LARGE ? Detail.RESPONSE_HEAD_TOO_LARGE : Detail.RESPONSE_HEAD_INVALID;
      return PROTOCOL_ERROR;
    }
    if (status === 101 || (status < 200 && stream.remoteEnded)) {
      this.headFault = status === 101 ? Detail.UNEXPECTED_UPGRADE : Detail.RESPONSE_HEAD_INVALID;
      return PROTOCOL_ERROR;
    }
    const contentLength = responseContentLength(memory, block);
    const empty = exchange.method === Method.HEAD || status === 204 || status === 304;
    if (contentLength < -1 || (stream.remoteEnded && contentLength > 0 && !empty)) {
      this.headFault = contentLength < -1 ? Detail.RESPONSE_HEAD_INVALID : Detail.UPSTREAM_LENGTH_MISMATCH;
      return PROTOCOL_ERROR;
    }
    const bytes = HEADROOM_BYTES + responseHeadBytesMax(block) + UPGRADE_BYTES + TAILROOM_BYTES;
    if (bytes > LARGE_BLOCK_BYTES) {
      this.headFault = Detail.RESPONSE_HEAD_TOO_LARGE;
      return PROTOCOL_ERROR;
    }
    const at = reactor.arena.allocate(bytes);
    if (at === 0) {
      this.headFault = Detail.NO_BUFFERS;
      return INTERNAL_ERROR;
    }
    exchange.firstByteMs = exchange.firstByteMs === 0 ? reactor.nowMs : exchange.firstByteMs;
    exchange.secretResponse = block.decoder.secret;
    if (exchange.upgradeRequested && status >= 200 && status < 300) {
      stream.headReceived = true;
      this.upgraded(connection, exchange, at, block);
      return 0;
    }
    const start = at + HEADROOM_BYTES;
    const head = this.responseHead;
    // Whose it was is still to be sent, and must be read again: this one may not be kept at all.
    this.responseOf = null;
    const end = writeResponseHead(reactor, start, block, status, contentLength, head);
    if (status < 200) {
      const sent = exchange.downstreamSide!.sendInformational(exchange, start, head);
      output.freeSent(at);
      if (sent) exchange.downstreamSide!.progress(exchange);
      return 0;
    }
    if (exchange.rival !== null) {
      const winner = this.context.upstream.hedges.answered(exchange, head);
      if (winner === null) {
        output.freeSent(at);
        return 0;
      }
      winner.secretResponse = block.decoder.secret;
      exchange = winner;
    }
    if (this.context.upstream.answered(exchange, head)) {
      output.freeSent(at);
      return 0;
    }
    stream.headReceived = true;
    stream.contentLength = empty ? -1 : contentLength;
    this.responseOf = connection;
    this.responseGeneration = connection.generation;
    this.responseOffset = start;
    connection.inputBlock = at;
    connection.inputOffset = start;
    connection.inputLength = end - start;
    connection.inputScanned = end - start;
    connection.state = KEPT;
    this.frameResponse(exchange, empty, contentLength);
    if (stream.remoteEnded || empty) {
      const { piece } = this;
      piece.payloadLength = 0;
      piece.end = true;
      piece.trailers = null;
      if (this.sendHead(connection, exchange)) this.complete(exchange);
    } else {
      reactor.atBatchEnd(connection);
    }
    return 0;
  }

  /** Decides how the body is framed towards the client (RFC 9112 §6.3). */
  private frameResponse(exchange: Exchange, empty: boolean, contentLength: number): void {
    exchange.responseFraming = empty ? NONE : STREAM;
    if (empty) {
      exchange.responseOutFraming = NONE;
    } else if (contentLength >= 0) {
      exchange.responseOutFraming = LENGTH;
    } else if (exchange.versionMinor === 1) {
      exchange.responseOutFraming = CHUNKED;
    } else {
      // An HTTP/1.0 client takes the end of the connection for the end of the body.
      exchange.responseOutFraming = CLOSE;
      exchange.keepAlive = false;
    }
  }

  /** Moves response bytes to the client for as long as it takes them; with `all`, those that are here in any case. */
  private pump(connection: Connection, all: boolean): void {
    const { input, memory, reactor } = this.context;
    const exchange = connection.exchange!;
    const downstream = exchange.downstreamSide!;
    const client = exchange.downstream!;
    const { piece } = this;
    for (let turn = 0; ; turn++) {
      // Paused while the client has not taken what it was sent; resumed by its writable event.
      if (!connection.readReady || ((client.outputBytes > 0 || exchange.responsePaused) && !all)) return;
      if (turn >= RECEIVES_PER_TURN && !all) {
        reactor.enqueue(connection);
        return;
      }
      const kept = connection.state === KEPT;
      const headLength = kept ? connection.inputLength : 0;
      const status = input.fill(connection, kept ? RECEIVE_BYTES_MAX : BULK_RECEIVE_BYTES_MAX);
      let offset = 0;
      let length = 0;
      if (status > 0) {
        offset = input.offset;
        length = input.length;
        if (kept && offset === connection.inputOffset) {
          // Received behind the head.
          offset += headLength;
          length -= headLength;
          connection.inputLength = headLength;
        } else if (kept && length <= JOINED_BYTES_MAX) {
          offset = this.join(connection, offset, length);
        }
      } else if (status === FILL_FULL) {
        // The head leaves no room for bytes behind it.
        this.batchEnd(connection);
        if (connection.state !== BODY) return;
        continue;
      } else if (status !== FILL_END) {
        if (status === FILL_ERROR)
          this.fault(exchange, 502, UPSTREAM_CONNECTION_TERMINATION, Detail.UPSTREAM_STREAM_RESET, 0);
        else if (status !== FILL_AGAIN) this.fault(exchange, 503, OVERLOAD, Detail.NO_BUFFERS, 0);
        return;
      }
      downstream.progress(exchange);
      readResponseBody(memory, offset, length, exchange, piece);
      const { end } = piece;
      if (!kept) {
        if (!downstream.sendResponseBody(exchange, piece)) return;
      } else if (length === 0 || this.isBehind(connection, offset)) {
        if (!this.sendHead(connection, exchange)) return;
      } else {
        // Too much to be copied behind the head: the head goes first.
        const { trailers } = piece;
        this.batchEnd(connection);
        if (connection.state !== BODY || connection.exchange !== exchange) return;
        piece.payloadOffset = offset;
        piece.payloadLength = length;
        piece.end = end;
        piece.trailers = trailers;
        if (!downstream.sendResponseBody(exchange, piece)) return;
      }
      if (end) {
        this.complete(exchange);
        return;
      }
    }
  }

  /** Whether a payload lies directly behind the kept head. */
  private isBehind(connection: Connection, offset: number): boolean {
    return offset === connection.inputOffset + connection.inputLength;
  }

  /** Copies a payload behind the kept head. Returns where it lies then; where it was, if there is no room. */
  private join(connection: Connection, offset: number, length: number): number {
    const { reactor, memory } = this.context;
    const { arena } = reactor;
    const { inputBlock: block, inputLength: headLength } = connection;
    let start = connection.inputOffset;
    if (start + headLength + length + TAILROOM_BYTES > block + arena.sizeOf(block)) {
      if (HEADROOM_BYTES + headLength + length + TAILROOM_BYTES > LARGE_BLOCK_BYTES) return offset;
      const larger = arena.allocate(LARGE_BLOCK_BYTES);
      if (larger === 0) return offset;
      memory.copyWithin(larger + HEADROOM_BYTES, start, start + headLength);
      arena.free(block);
      start = larger + HEADROOM_BYTES;
      connection.inputBlock = larger;
      connection.inputOffset = start;
    }
    const behind = start + headLength;
    memory.copyWithin(behind, offset, offset + length);
    return behind;
  }

  /**
   * Passes the kept head on, with `piece`, which lies behind it. Returns false when the client's connection has
   * failed, and the exchange is over.
   */
  private sendHead(connection: Connection, exchange: Exchange): boolean {
    const { memory, output } = this.context;
    const { piece, responseHead: head } = this;
    const { inputBlock: block, inputOffset: start } = connection;
    const isLast =
      this.responseOf === connection &&
      this.responseGeneration === connection.generation &&
      this.responseOffset === start;
    if (!isLast) {
      parseResponseHead(memory, start, connection.inputLength, anyLimits, head);
      head.versionMinor = 2;
    }
    if (piece.payloadLength === 0) piece.payloadOffset = head.endOffset;
    connection.state = BODY;
    connection.inputBlock = 0;
    connection.inputOffset = 0;
    connection.inputLength = 0;
    connection.inputScanned = 0;
    this.responseOf = null;
    const sent = exchange.downstreamSide!.sendResponse(exchange, start, head, piece);
    output.freeSent(block);
    return sent;
  }

  /** The upstream takes the WebSocket: answers as an HTTP/1.1 server would, and joins the two sides. */
  private upgraded(connection: Connection, exchange: Exchange, at: number, block: HeaderBlock): void {
    const { memory, output } = this.context;
    const head = this.responseHead;
    const start = at + HEADROOM_BYTES;
    this.responseOf = null;
    let end = this.writeUpgraded(exchange, start, block);
    const result = parseResponseHead(memory, start, end - start, anyLimits, head);
    end = start + Math.max(result, 0);
    head.versionMinor = 2;
    connection.http2Stream!.resetCode = CANCEL;
    connection.state = BODY;
    this.context.tunnel.startUpgrade(exchange, start, end - start, head);
    output.freeSent(at);
  }

  /** Writes the 101 that stands for the answer to an extended CONNECT. Once per WebSocket: may allocate. */
  private writeUpgraded(exchange: Exchange, at: number, block: HeaderBlock): number {
    const { reactor, memory } = this.context;
    const { view } = reactor;
    const { headers } = block;
    let end = putText(view, at, statusLine(101));
    end = putText(view, end, upgradeLines);
    const key = this.encoder.findWebSocketKey(exchange);
    if (key >= 0) {
      const accept = createHash('sha1')
        .update(this.encoder.valueText(key) + WEBSOCKET_GUID)
        .digest('base64');
      end = putText(view, putText(view, end, acceptLine), new Text(accept));
    }
    end = putText(view, end, lineEnd);
    for (let field = 1; field < headers.count; field++) {
      // A tunnel has no length.
      if (headers.id(field) === CONTENT_LENGTH) continue;
      end = putRange(
        memory,
        end,
        headers.nameOffset(field),
        headers.nameLength(field) + headers.valueLength(field) + 4,
      );
    }
    return putText(view, end, lineEnd);
  }

  /** The response is complete: lets the stream go, then the client's side goes on. */
  private complete(exchange: Exchange): void {
    const downstream = exchange.downstreamSide!;
    const connection = exchange.upstream!;
    const { session } = connection.http2Stream!;
    const member = session!.owner as Http2Member;
    member.refuses = false;
    if (!member.resumptionSaved) {
      member.resumptionSaved = true;
      if (session!.connection.tls !== 0 && !member.pool.endpoint.removed) {
        this.context.connector.saveResumption(session!.connection);
      }
    }
    // A request body that is not complete has no reader any more (RFC 9113 §8.1).
    this.close(connection, NO_ERROR);
    if (exchange.attemptDeadlineMs > 0) {
      // The backend has done its part; how long the client takes is not its business.
      exchange.attemptDeadlineMs = 0;
      downstream.progress(exchange);
    }
    this.context.upstream.completed(exchange);
    downstream.responseComplete(exchange);
  }

  // -- failure and end ----------------------------------------------------------------

  streamReset(stream: Http2Stream, errorCode: number): void {
    const session = stream.session!;
    const connection = stream.connection!;
    if (this.endsOtherwise(stream)) return;
    const exchange = connection.exchange!;
    if (session.closing) {
      this.connectionLost(exchange, session);
    } else if (errorCode === REFUSED_STREAM) {
      (session.owner as Http2Member).refuses = true;
      this.notActedOn(exchange, Detail.UPSTREAM_STREAM_REFUSED);
    } else {
      let detail: number = Detail.UPSTREAM_STREAM_RESET;
      if (errorCode === CANCEL) detail = Detail.UPSTREAM_STREAM_CANCELLED;
      else if (errorCode === INTERNAL_ERROR) detail = Detail.UPSTREAM_STREAM_FAILED;
      this.fault(exchange, 502, UPSTREAM_CONNECTION_TERMINATION, detail, 0);
    }
  }

  streamFailed(stream: Http2Stream): void {
    const connection = stream.connection!;
    let detail = this.headFault;
    this.headFault = 0;
    if (connection.protocol !== this) {
      connection.protocol!.sendFailed(connection);
      return;
    }
    const exchange = connection.exchange!;
    if (detail === Detail.NO_BUFFERS) {
      this.fault(exchange, 503, OVERLOAD, detail, 0);
      return;
    }
    if (detail === 0) {
      const { contentLength, receivedBytes } = stream;
      const wrongLength =
        contentLength >= 0 && receivedBytes !== contentLength && (stream.remoteEnded || receivedBytes > contentLength);
      detail = wrongLength ? Detail.UPSTREAM_LENGTH_MISMATCH : Detail.UPSTREAM_HTTP2_INVALID;
    }
    this.fault(exchange, 502, UPSTREAM_PROTOCOL_ERROR, detail, 0);
  }

  /** Streams that are no plain exchange in progress: tunnels, and responses that are here whole. */
  private endsOtherwise(stream: Http2Stream): boolean {
    const connection = stream.connection!;
    if (connection.protocol !== this) {
      if (stream.remoteEnded) {
        stream.reset = false;
        stream.localEnded = true;
        connection.readReady = true;
        this.context.output.free(connection);
        this.context.tunnel.upstreamOver(connection);
      } else {
        connection.errno = Errno.ECONNRESET;
        connection.protocol!.sendFailed(connection);
      }
      return true;
    }
    if (!stream.remoteEnded || !stream.headReceived) return false;
    // It only says that it wants no more of the request (RFC 9113 §8.1), or goes after its last byte.
    const { output } = this.context;
    const { generation } = connection;
    stream.reset = false;
    stream.localEnded = true;
    connection.writeEnded = true;
    connection.readReady = true;
    output.free(connection);
    this.pump(connection, true);
    if (connection.generation !== generation) return true;
    stream.reset = true;
    return false;
  }

  moved(stream: Http2Stream): void {
    const connection = stream.connection!;
    if (connection.protocol !== this || connection.exchange === null) return;
    connection.exchange.downstreamSide!.progress(connection.exchange);
  }

  goaway(session: Http2Session, _errorCode: number): void {
    this.context.counters[UPSTREAM_HTTP2_GOAWAYS]++;
    const member = session.owner as Http2Member;
    member.retired = true;
    for (let stream = session.takeUnacted(); stream !== null; stream = session.takeUnacted()) {
      const connection = stream.connection!;
      if (connection.protocol === this) this.notActedOn(connection.exchange!, Detail.UPSTREAM_GOAWAY);
      else connection.protocol!.sendFailed(connection);
    }
    this.connections.retire(member);
  }

  /** The upstream says that it has not acted on a stream: any request may be sent again (RFC 9113 §8.7). */
  private notActedOn(exchange: Exchange, detail: number): void {
    const mayRetry = mayReplay(exchange) && !exchange.responseStarted && exchange.attempts < REFUSED_ATTEMPTS_MAX;
    if (!mayRetry) {
      this.fault(exchange, 502, UPSTREAM_CONNECTION_TERMINATION, detail, 0);
      return;
    }
    this.context.counters[UPSTREAM_HTTP2_REFUSED_RETRIES]++;
    this.sendAgain(exchange);
  }

  private connectionLost(exchange: Exchange, session: Http2Session): void {
    const { errno } = session.connection;
    if (session.fatal !== 0) {
      this.fault(exchange, 502, UPSTREAM_PROTOCOL_ERROR, Detail.UPSTREAM_HTTP2_INVALID, 0);
    } else if (this.connections.pingMissed(session)) {
      this.fault(exchange, 504, UPSTREAM_TIMEOUT, Detail.UPSTREAM_PING_TIMER, 0);
    } else if (session.closeCause === CloseCause.TIMEOUT) {
      this.fault(exchange, 504, UPSTREAM_TIMEOUT, Detail.UPSTREAM_STALL_TIMER, 0);
    } else if (errno === Errno.ENOBUFS) {
      this.fault(exchange, 503, OVERLOAD, Detail.NO_BUFFERS, 0);
    } else {
      const detail = errno === 0 ? Detail.UPSTREAM_FIN : Detail.UPSTREAM_RESET;
      const isStale = exchange.reusedConnection && exchange.firstByteMs === 0 && !exchange.resent;
      if (isStale && mayReplay(exchange) && isIdempotent(exchange.method)) {
        this.context.counters[STALE_RETRIES]++;
        exchange.resent = true;
        this.sendAgain(exchange);
        return;
      }
      this.fault(exchange, 502, UPSTREAM_CONNECTION_TERMINATION, detail, errno);
    }
  }

  private sendAgain(exchange: Exchange): void {
    this.close(exchange.upstream!, CANCEL);
    this.context.upstream.start(exchange);
  }

  /** The attempt has failed: answers, or cuts the response that has begun. */
  private fault(exchange: Exchange, status: number, reason: number, detail: number, errno: number): void {
    this.close(exchange.upstream!, CANCEL);
    this.context.upstream.failed(exchange, status, reason, detail, errno);
  }

  /** The response is not wanted, and neither is what is left of it. */
  discard(exchange: Exchange): void {
    const connection = exchange.upstream!;
    this.close(connection, connection.http2Stream!.remoteEnded ? NO_ERROR : CANCEL);
  }

  cancel(exchange: Exchange): void {
    if (exchange.upstream !== null) this.close(exchange.upstream, CANCEL);
    else this.connections.withdraw(exchange);
  }

  /** Ends a stream, with a RST_STREAM if it has not ended by itself, and takes it off its exchange. */
  private close(connection: Connection, resetCode: number): void {
    if (connection.exchange !== null) connection.exchange.upstream = null;
    connection.exchange = null;
    connection.http2Stream!.resetCode = resetCode;
    this.context.reactor.close(connection, false);
  }
}
