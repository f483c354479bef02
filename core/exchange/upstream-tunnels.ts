// Connections to upstreams inside tunnels: each is a CONNECT stream of an HTTP/2 connection over TLS (HBONE).
//
//   connect --> WAITING (for a stream) --> ASKED (CONNECT sent) --2xx--> its owner's, like any connection
//                  \------------------------\--> refused, connection lost, out of time --> owner.notEstablished
//
// To its owner such a connection is one of a socket: requests, further HTTP/2 sessions and tunnels run in it. Many
// tunnels share the few connections to one address (`Endpoint.tunnel` of the endpoint, with the TLS identity of the
// backend). A tunnel that the peer says it has not acted on (REFUSED_STREAM, GOAWAY) is asked for again.
// Owned by one worker. Works per connection, not per request.
// Spec: RFC 9113 §8.5 (CONNECT), §6.8 (GOAWAY); Istio's HBONE: CONNECT in mutual TLS, port 15008.

import { Errno } from '../ffi/errno.ts';
import { ErrorCode } from '../http2/errors.ts';
import { RequestEncoder } from '../http2/request-encoder.ts';
import { responseStatus } from '../http2/response-reader.ts';
import type { HeaderBlock, Http2Role } from '../http2/role.ts';
import type { Http2Session } from '../http2/session.ts';
import type { Http2Stream } from '../http2/stream.ts';
import type { Connection, Protocol } from '../io/connection.ts';
import { noTransport, type Transport } from '../io/transport.ts';
import type { Endpoint } from '../lb/endpoint.ts';
import { CloseCause, Counter } from '../telemetry/metrics.ts';
import type { ConnectOwner } from './connector.ts';
import type { ProxyContext } from './context.ts';
import { clientLimits, sendPing } from './http2-connections.ts';
import { Detail, Reason } from './reasons.ts';
import type { BackendRuntime } from './runtime.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { UPSTREAM_OPEN, UPSTREAM_OPENED, UPSTREAM_CONNECT_FAILURES, UPSTREAM_HTTP2_PING_TIMEOUTS } = Counter;
const { CANCEL, PROTOCOL_ERROR, REFUSED_STREAM } = ErrorCode;

/** States of a connection that is not established. */
const WAITING = 0;
const ASKED = 1;

/** Times that one connection is asked for again when a peer has not acted on its stream. */
const ASKED_AGAIN_MAX = 3;

/** An HTTP/2 connection that carries tunnels, from the attempt to connect until it is closed. */
class Carrier {
  readonly pool: TunnelPool;
  readonly connection: Connection;
  /** Null until it is established. */
  session: Http2Session | null = null;
  /** Takes no more streams; closes when the last one has ended. */
  retired = false;
  /** When the certificate of the other end runs out, milliseconds since 1970: it takes no more streams then. */
  usableUntilMs = 0;
  /** The TLS session of the connection has been kept for the next one. */
  resumptionSaved = false;

  constructor(pool: TunnelPool, connection: Connection) {
    this.pool = pool;
    this.connection = connection;
  }
}

/** The carriers of one worker to one address with one identity, and the connections that wait for a stream. */
export class TunnelPool {
  readonly endpoint: Endpoint;
  readonly carriers: Carrier[] = [];
  readonly waiting: Connection[] = [];

  constructor(endpoint: Endpoint) {
    this.endpoint = endpoint;
  }
}

export class UpstreamTunnels implements Protocol, ConnectOwner, Http2Role, Transport {
  readonly isServer = false;
  readonly bytesInCounter = Counter.UPSTREAM_BYTES_IN;
  readonly bytesOutCounter = Counter.UPSTREAM_BYTES_OUT;
  readonly lingerState = 0;
  readonly streamProtocol: Protocol = this;
  private readonly context: ProxyContext;
  private readonly encoder: RequestEncoder;
  private readonly carriers: Carrier[] = [];
  /** Whose timer asks silent carriers for a sign of life; made with the first. */
  private clock: Connection | null = null;
  private clockSet = false;

  constructor(context: ProxyContext) {
    this.context = context;
    this.encoder = new RequestEncoder(context.reactor, context.http2.output);
  }

  // -- connections through tunnels ---------------------------------------------------------

  /** Like Connector.connect, for an endpoint behind a tunnel. */
  connect(endpoint: Endpoint, backend: BackendRuntime, owner: ConnectOwner): Connection | null {
    const { reactor, counters, connector } = this.context;
    const connection = reactor.openVirtual(this, this);
    if (connection === null) {
      connector.failed(Reason.OVERLOAD, Detail.NO_CONNECTION_SLOTS, 0);
      return null;
    }
    counters[UPSTREAM_OPENED]++;
    counters[UPSTREAM_OPEN]++;
    connection.tunnelled = true;
    connection.endpoint = endpoint;
    connection.backend = backend;
    connection.connectOwner = owner;
    connection.askedAgain = 0;
    reactor.setTimer(connection, backend.settings.connectTimeoutMs);
    // Its owner does not know of it yet: a refusal has to come later.
    this.queue(connection);
    reactor.enqueue(connection);
    return connection;
  }

  private queue(connection: Connection): void {
    const outer = connection.endpoint!.tunnel!;
    connection.state = WAITING;
    outer.tunnels ??= new TunnelPool(outer);
    outer.tunnels.waiting.push(connection);
  }

  /** Begins to serve a connection that waits. */
  readable(connection: Connection): void {
    if (connection.state === WAITING) this.serve(connection.endpoint!.tunnel!.tunnels!, connection.backend!.tunnel!);
  }

  writable(): void {}

  sendFailed(): void {}

  expired(connection: Connection): void {
    if (connection === this.clock) this.keepAlive(connection);
    else this.refuse(connection, Detail.CONNECT_TIMER, 0);
  }

  /** Gives streams to those who wait, and opens a carrier where there is none to come. */
  private serve(pool: TunnelPool, backend: BackendRuntime): void {
    const { settings } = backend;
    this.retireExpired(pool);
    while (pool.waiting.length > 0) {
      const carrier = pick(pool, settings.http2.streamsPerConnectionMax);
      if (carrier === null) break;
      this.ask(pool.waiting.shift()!, carrier);
    }
    if (pool.waiting.length === 0) return;
    const opening = pool.carriers.some(({ session, retired }) => !retired && !session?.settingsReceived);
    const usable = pool.carriers.filter(({ retired }) => !retired).length;
    if (opening || usable >= settings.http2.connectionsMax) return;
    if (this.open(pool, backend) === null) this.refuseAll(pool);
  }

  private open(pool: TunnelPool, backend: BackendRuntime): Carrier | null {
    const connection = this.context.connector.connect(pool.endpoint, backend, this);
    if (connection === null) return null;
    const carrier = new Carrier(pool, connection);
    pool.carriers.push(carrier);
    this.carriers.push(carrier);
    return carrier;
  }

  /** Sends the CONNECT of a connection. */
  private ask(connection: Connection, carrier: Carrier): void {
    const { http2 } = this.context;
    const session = carrier.session!;
    const stream = http2.streams.openOn(session, connection);
    connection.state = ASKED;
    stream.resetCode = CANCEL;
    if (!this.encoder.writeConnect(stream, connection.endpoint!.addressBytes)) {
      this.refuse(connection, Detail.NO_BUFFERS, 0, Reason.OVERLOAD);
    }
  }

  /** The connection is not to be had. */
  private refuse(
    connection: Connection,
    detail: number,
    errno: number,
    reason: number = Reason.UPSTREAM_CONNECT_FAILURE,
  ): void {
    this.context.counters[UPSTREAM_CONNECT_FAILURES]++;
    this.context.connector.failed(reason, detail, errno);
    connection.connectOwner!.notEstablished(connection);
  }

  /** No carrier can be made; the connector says why. */
  private refuseAll(pool: TunnelPool): void {
    const { connector } = this.context;
    const { reason, detail, errno } = connector;
    const { waiting } = pool;
    // What follows a refusal may end others that wait, or add some.
    for (let count = waiting.length; count > 0 && waiting.length > 0; count--) {
      const connection = waiting.shift()!;
      connector.failed(reason, detail, errno);
      connection.connectOwner!.notEstablished(connection);
    }
  }

  // -- transport of a connection that waits -------------------------------------------------

  recv(): number {
    return -Errno.EAGAIN;
  }

  send(): number {
    return -Errno.EAGAIN;
  }

  hasMore(): boolean {
    return false;
  }

  shutdownWrite(): void {}

  error(): number {
    return 0;
  }

  /** Nobody wants the connection any more, before it had a stream. */
  close(connection: Connection): void {
    const { waiting } = connection.endpoint!.tunnel!.tunnels!;
    const index = waiting.indexOf(connection);
    if (index >= 0) waiting.splice(index, 1);
  }

  // -- carriers: connecting -------------------------------------------------------------------

  established(connection: Connection): void {
    const { reactor, connector, http2, runtime, trust } = this.context;
    const carrier = this.carrierOf(connection);
    const { settings } = connection.backend!;
    carrier.usableUntilMs = trust.usableUntilMs(connection);
    if (carrier.usableUntilMs <= reactor.wallMs) {
      // Roots have changed during the handshake, or it took up a session from before the certificate ran out.
      connector.forgetResumption(connection.endpoint!);
      connector.failed(Reason.UPSTREAM_CONNECT_FAILURE, Detail.TUNNEL_UNTRUSTED, 0);
      this.notEstablished(connection);
      return;
    }
    const session = http2.open(connection, this, clientLimits(settings, runtime.http));
    session.owner = carrier;
    session.lastFrameMs = reactor.nowMs;
    carrier.session = session;
    this.startClock(settings.http2.pingIntervalMs);
    if (connection.readReady) reactor.enqueue(connection);
  }

  notEstablished(connection: Connection): void {
    const carrier = this.carrierOf(connection);
    this.forget(carrier);
    this.context.reactor.close(connection, true);
    // Those that there are may get room.
    if (carrier.pool.carriers.every(({ retired }) => retired)) this.refuseAll(carrier.pool);
  }

  private carrierOf(connection: Connection): Carrier {
    return this.carriers.find((carrier) => carrier.connection === connection)!;
  }

  private forget(carrier: Carrier): void {
    const { carriers } = carrier.pool;
    carrier.retired = true;
    carriers.splice(carriers.indexOf(carrier), 1);
    this.carriers.splice(this.carriers.indexOf(carrier), 1);
    this.context.counters[UPSTREAM_OPEN]--;
  }

  // -- carriers: what the engine tells ----------------------------------------------------------

  head(stream: Http2Stream, block: HeaderBlock): number {
    const { memory } = this.context;
    const connection = stream.connection!;
    const status = responseStatus(memory, block);
    if (status < 0 || status === 101) return PROTOCOL_ERROR;
    if (status < 200) return stream.remoteEnded ? PROTOCOL_ERROR : 0;
    if (status >= 300) {
      this.refuse(connection, Detail.TUNNEL_REFUSED, 0);
      return 0;
    }
    stream.headReceived = true;
    stream.contentLength = -1;
    const carrier = stream.session!.owner as Carrier;
    if (!carrier.resumptionSaved) {
      carrier.resumptionSaved = true;
      if (!carrier.pool.endpoint.removed) this.context.connector.saveResumption(carrier.connection);
    }
    this.context.reactor.clearTimer(connection);
    const owner = connection.connectOwner!;
    connection.connectOwner = null;
    connection.protocol = owner;
    connection.state = 0;
    // What has not come will be told.
    connection.readReady = stream.remoteEnded;
    owner.established(connection);
    return 0;
  }

  streamReset(stream: Http2Stream, errorCode: number): void {
    const connection = stream.connection!;
    if (connection.protocol !== this) this.lost(stream, connection);
    else if (errorCode === REFUSED_STREAM) this.askAgain(stream, connection);
    else this.refuse(connection, Detail.UPSTREAM_STREAM_RESET, 0);
  }

  streamFailed(stream: Http2Stream): void {
    const connection = stream.connection!;
    if (connection.protocol !== this) this.lost(stream, connection);
    else this.refuse(connection, Detail.RESPONSE_HEAD_INVALID, 0);
  }

  /** The stream under an established connection is no more. */
  private lost(stream: Http2Stream, connection: Connection): void {
    const { context } = this;
    connection.errno = Errno.ECONNRESET;
    const { generation } = connection;
    if (stream.remoteEnded) {
      // It only says that it takes no more, or goes after its last byte: what has come is read first.
      stream.reset = false;
      stream.localEnded = true;
      connection.readReady = true;
      context.output.free(connection);
      if (connection.protocol === context.tunnel) context.tunnel.upstreamOver(connection);
      else if (connection.protocol === context.upstreamHttp1) context.upstreamHttp1.readRest(connection);
      else connection.protocol!.readable(connection);
      if (connection.generation !== generation) return;
      stream.reset = true;
    }
    if (connection.http2Session !== null) context.http2.shutdowns.lost(connection.http2Session);
    else if (connection.protocol === context.upstreamHttp1) context.upstreamHttp1.lost(connection);
    else connection.protocol!.sendFailed(connection);
  }

  /** The peer has not acted on the CONNECT: another stream is asked for. */
  private askAgain(stream: Http2Stream, connection: Connection): void {
    if (++connection.askedAgain > ASKED_AGAIN_MAX) {
      this.refuse(connection, Detail.UPSTREAM_STREAM_REFUSED, 0);
      return;
    }
    stream.reset = true;
    this.context.http2.streams.release(stream);
    connection.http2Stream = null;
    connection.transport = this;
    this.queue(connection);
    this.context.reactor.enqueue(connection);
  }

  goaway(session: Http2Session): void {
    const carrier = session.owner as Carrier;
    carrier.retired = true;
    for (let stream = session.takeUnacted(); stream !== null; stream = session.takeUnacted()) {
      const connection = stream.connection!;
      if (connection.protocol === this) this.askAgain(stream, connection);
      else this.lost(stream, connection);
    }
    if (session.streamCount === 0) this.finish(session);
  }

  streamsAvailable(session: Http2Session): void {
    const carrier = session.owner as Carrier | null;
    if (carrier === null || !session.settingsReceived) return;
    this.serve(carrier.pool, carrier.connection.backend!);
    // Whoever it was opened for has left: nobody else would ever end it.
    if (session.streamCount === 0) this.sessionIdle(session);
  }

  sessionIdle(session: Http2Session): void {
    const carrier = session.owner as Carrier | null;
    if (carrier === null) return;
    if (carrier.retired || this.context.draining || carrier.pool.endpoint.removed) this.finish(session);
  }

  sessionClosed(_connection: Connection, session: Http2Session, _cause: number, errno: number): void {
    const carrier = session.owner as Carrier;
    const { pool, connection } = carrier;
    this.forget(carrier);
    const { pingDeadlineMs } = session;
    if (pingDeadlineMs > 0 && pingDeadlineMs <= this.context.reactor.nowMs) {
      this.context.counters[UPSTREAM_HTTP2_PING_TIMEOUTS]++;
    }
    if (pool.waiting.length === 0) return;
    if (session.settingsReceived) {
      this.serve(pool, connection.backend!);
      return;
    }
    const detail = errno === 0 ? Detail.UPSTREAM_NOT_HTTP2 : Detail.UPSTREAM_RESET;
    this.context.connector.failed(Reason.UPSTREAM_CONNECT_FAILURE, detail, errno);
    this.refuseAll(pool);
  }

  private finish(session: Http2Session): void {
    this.context.http2.shutdowns.finish(session, CloseCause.FINISHED);
  }

  /** Those whose other end has a certificate that has run out take no more streams. */
  private retireExpired(pool: TunnelPool): void {
    const { wallMs } = this.context.reactor;
    for (let i = pool.carriers.length - 1; i >= 0; i--) {
      const carrier = pool.carriers[i]!;
      const { session } = carrier;
      if (session === null || carrier.retired || carrier.usableUntilMs > wallMs) continue;
      carrier.retired = true;
      if (session.streamCount === 0) this.finish(session);
    }
  }

  // -- reload, drain, shutdown --------------------------------------------------------------------

  /** Ends the carriers to an address as soon as they have no streams. */
  retireAll(endpoint: Endpoint): void {
    if (endpoint.tunnels === null) return;
    for (const carrier of [...endpoint.tunnels.carriers]) {
      // Those being opened, and those that somebody waits for, end after that (sessionIdle).
      if (carrier.session === null || endpoint.tunnels.waiting.length > 0) continue;
      carrier.retired = true;
      if (carrier.session.streamCount === 0) this.finish(carrier.session);
    }
  }

  /** Closes everything at once. */
  closeAll(): void {
    for (const carrier of [...this.carriers]) {
      if (carrier.session !== null) this.context.http2.shutdowns.terminate(carrier.session);
      else {
        this.forget(carrier);
        this.context.reactor.close(carrier.connection, true);
      }
    }
    if (this.clock !== null) this.context.reactor.close(this.clock, false);
    this.clock = null;
  }

  // -- signs of life ---------------------------------------------------------------------------------

  private startClock(intervalMs: number): void {
    if (intervalMs === 0 || this.clockSet) return;
    const { reactor } = this.context;
    this.clock ??= reactor.openVirtual(this, noTransport);
    if (this.clock === null) return;
    this.clockSet = true;
    reactor.setTimer(this.clock, intervalMs);
  }

  /** Asks the carriers that have been silent for a sign of life: the node at the other end may be gone. */
  private keepAlive(clock: Connection): void {
    const { reactor } = this.context;
    const { nowMs } = reactor;
    let nextMs = Number.POSITIVE_INFINITY;
    for (const { session, connection } of this.carriers) {
      const { pingIntervalMs, pingTimeoutMs } = connection.backend!.settings.http2;
      if (session === null || pingIntervalMs === 0 || session.closing) continue;
      let dueMs = session.lastFrameMs + pingIntervalMs;
      if (dueMs <= nowMs) {
        sendPing(this.context, session, pingTimeoutMs);
        dueMs = nowMs + pingIntervalMs;
      }
      nextMs = Math.min(nextMs, dueMs);
    }
    this.clockSet = nextMs !== Number.POSITIVE_INFINITY;
    if (this.clockSet) reactor.setTimer(clock, Math.max(1, Math.ceil(nextMs - nowMs)));
  }
}

/** The carrier with the fewest streams that takes one more, or null. */
function pick(pool: TunnelPool, streamsMax: number): Carrier | null {
  let best: Carrier | null = null;
  for (const carrier of pool.carriers) {
    const { session } = carrier;
    if (session === null || carrier.retired || session.closing || session.isDraining || !session.settingsReceived)
      continue;
    if (session.streamCount >= Math.min(session.peer.maxConcurrentStreams, streamsMax)) continue;
    if (best === null || session.streamCount < best.session!.streamCount) best = carrier;
  }
  return best;
}
