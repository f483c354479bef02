// HTTP/2 connections to upstreams: opening them, giving their streams to exchanges, keep-alive, and their end.
//
//   CONNECTING --> SETTINGS awaited --> in use <--> idle --> GOAWAY, closed
//        \--------------\--> failed: those who wait are answered if there is no other connection
//
// What is said on a stream is upstream-http2.ts's business; which connection is next, lb/http2-pool.ts's.
// Owned by one worker. Hot module: no allocation, exception, promise, closure or log line per request.
// Spec: RFC 9113 §6.7 (PING), §6.8 (GOAWAY), §9.1 (connection management).

import { PING_BYTES, writePing } from '../http2/frames.ts';
import type { Http2Limits, Http2Session } from '../http2/session.ts';
import type { Connection, Protocol } from '../io/connection.ts';
import { noTransport } from '../io/transport.ts';
import type { Endpoint } from '../lb/endpoint.ts';
import { type Http2Member, Http2Pool } from '../lb/http2-pool.ts';
import { CloseCause, Counter } from '../telemetry/metrics.ts';
import type { BackendSettings, HttpSettings } from '../workers/snapshot.ts';
import { AttemptEnd } from './attempt-tracker.ts';
import { type ConnectOwner, isConnectTimeout } from './connector.ts';
import type { ProxyContext } from './context.ts';
import type { Exchange } from './exchange.ts';
import { Detail, Reason } from './reasons.ts';
import type { BackendRuntime } from './runtime.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { UPSTREAM_IDLE, UPSTREAM_OPEN, UPSTREAM_HTTP2_PING_TIMEOUTS } = Counter;

/** Window of a response: what a stream holds for a client that does not read. */
const STREAM_WINDOW_BYTES = 128 * 1024;

/** Largest window of a connection (RFC 9113 §6.9.1). */
const WINDOW_BYTES_MAX = 0x7fff_ffff;

/** An upstream is no attacker; these bounds only end what has gone mad. */
const RESETS_PER_SECOND_MAX = 100_000;
const CONTROL_FRAMES_PER_SECOND_MAX = 100_000;

/** Time for the upstream's settings, which a busy one may send late, at least; connectTimeout if that is longer. */
const HANDSHAKE_MS_MIN = 10_000;

/** A connection without streams is asked for a sign of life less often. */
const IDLE_PING_FACTOR = 4;

/** Gives a stream of a connection, which has room for one, to an exchange. */
export interface StreamOpener extends ConnectOwner {
  openStream(exchange: Exchange, member: Http2Member): void;
  open(connection: Connection, limits: Http2Limits): Http2Session;
}

export class Http2Connections implements Protocol {
  private readonly context: ProxyContext;
  private readonly opener: StreamOpener;
  /** Connections of all endpoints that have not been closed. */
  private readonly members: Http2Member[] = [];
  /** Whose timer asks for signs of life; made with the first connection that wants them. */
  private clock: Connection | null = null;
  private clockSet = false;

  constructor(context: ProxyContext, opener: StreamOpener) {
    this.context = context;
    this.opener = opener;
  }

  // -- exchanges -------------------------------------------------------------------------------

  /** Gives an exchange a stream, now or later. */
  place(exchange: Exchange, endpoint: Endpoint): void {
    endpoint.http2 ??= new Http2Pool(endpoint);
    const pool = endpoint.http2;
    const backend = exchange.runtime!.backends[exchange.backend];
    const { http2 } = backend.settings;
    // Those who wait come first.
    const member = pool.waiting > 0 ? null : pool.pick(http2);
    if (member !== null) {
      this.give(exchange, member, backend);
    } else if (backend.settings.policy.circuitBreaker !== null && !this.mayWait(exchange, backend)) {
      return;
    } else if (!pool.enqueue(exchange)) {
      this.context.upstream.failed(exchange, 503, Reason.UPSTREAM_OVERFLOW, Detail.STREAM_QUEUE_FULL, 0);
      return;
    }
    this.grow(pool, backend);
  }

  /** Asks the backend's circuit breaker whether one more request may wait; fails it if not. */
  private mayWait(exchange: Exchange, backend: BackendRuntime): boolean {
    const { upstream } = this.context;
    if (upstream.breakers.admitPending(exchange, backend)) {
      exchange.downstreamSide!.progress(exchange);
      return true;
    }
    upstream.failed(exchange, 503, Reason.UPSTREAM_OVERFLOW, Detail.PENDING_LIMIT, 0);
    return false;
  }

  /** Takes back an exchange that has no stream yet. */
  withdraw(exchange: Exchange): void {
    if (!exchange.waiting) return;
    if (exchange.pendingDeadlineMs > 0) this.context.upstream.breakers.pendingEnded(exchange);
    exchange.runtime!.backends[exchange.backend].endpoints[exchange.endpoint].http2!.dequeue(exchange);
  }

  /** A stream may have become free: serves those who wait, and opens further connections for the rest if `mayGrow`. */
  private serve(pool: Http2Pool, mayGrow: boolean): void {
    while (pool.first !== null) {
      const exchange = pool.first;
      const backend = exchange.runtime!.backends[exchange.backend];
      const member = pool.pick(backend.settings.http2);
      if (member === null) {
        if (mayGrow) this.grow(pool, backend);
        return;
      }
      pool.dequeue(exchange);
      if (exchange.pendingDeadlineMs > 0) this.context.upstream.breakers.pendingEnded(exchange);
      this.give(exchange, member, backend);
    }
  }

  /** Gives an exchange a stream of a connection that has room. */
  private give(exchange: Exchange, member: Http2Member, backend: BackendRuntime): void {
    // One that a backend without a breaker has opened, at an address that both have, counts once it is used.
    if (member.connection.breakerSlot < 0 && backend.settings.policy.circuitBreaker !== null) {
      this.context.upstream.breakers.countOpen(member.connection, backend);
    }
    this.opener.openStream(exchange, member);
  }

  /** Opens as many connections as the pool wants. */
  private grow(pool: Http2Pool, backend: BackendRuntime): void {
    while (pool.wantsConnection(backend.settings.http2)) {
      if (this.connect(pool, backend) !== null) continue;
      this.notGrown(pool);
      return;
    }
  }

  /** A connection could not be made. Another attempt now would be no better. */
  private notGrown(pool: Http2Pool): void {
    if (!pool.hasHope) {
      this.failWaiting(pool, 0, 0, 0, 0);
      return;
    }
    pool.forgiveRefusals();
    this.serve(pool, false);
  }

  /** Fails all who wait: with what the connector says, or with a reason if that is not 0. */
  private failWaiting(pool: Http2Pool, status: number, reason: number, detail: number, errno: number): void {
    const { connector } = this.context;
    if (reason === 0) {
      reason = connector.reason;
      detail = connector.detail;
      errno = connector.errno;
      status = connectStatus(detail);
    }
    const { upstream } = this.context;
    const blamed: number[] = [];
    for (let count = pool.waiting; count > 0 && pool.first !== null; count--) {
      const exchange = pool.first;
      pool.dequeue(exchange);
      // However many have waited for it: one connection is one failure of the endpoint, in each backend that it is in.
      if (exchange.tracked) {
        const { endpoints } = exchange.runtime!.backends[exchange.backend].settings;
        const { slot } = endpoints[exchange.endpoint];
        if (blamed.includes(slot)) upstream.endTracking(exchange, AttemptEnd.CANCELLED, reason, detail);
        else blamed.push(slot);
      }
      upstream.failed(exchange, status, reason, detail, errno);
    }
  }

  // -- connecting --------------------------------------------------------------------------------

  private connect(pool: Http2Pool, backend: BackendRuntime): Http2Member | null {
    const { breakers } = this.context.upstream;
    const counted = backend.settings.policy.circuitBreaker !== null;
    if (counted) {
      // No worker is cut off: its only connection to an endpoint is opened whatever others have.
      if (!pool.hasHope) breakers.countConnection(backend);
      else if (!breakers.admitConnection(null, backend)) return null;
    }
    const connection = this.context.connector.connect(pool.endpoint, backend, this.opener);
    if (connection === null) {
      if (counted) breakers.notOpened(backend);
      return null;
    }
    if (counted) breakers.opened(connection, backend);
    const member = pool.add(connection);
    member.pingIntervalMs = backend.settings.http2.pingIntervalMs;
    member.pingTimeoutMs = backend.settings.http2.pingTimeoutMs;
    this.members.push(member);
    return member;
  }

  private memberOf(connection: Connection): Http2Member {
    const { members } = connection.endpoint!.http2!;
    let index = 0;
    while (members[index].connection !== connection) index++;
    return members[index];
  }

  /** The connection can be used: begins to speak HTTP/2. Its first streams wait for the settings of the upstream. */
  established(connection: Connection): void {
    const { reactor, runtime } = this.context;
    const member = this.memberOf(connection);
    const { settings } = connection.backend!;
    const { http } = runtime;
    const session = this.opener.open(connection, clientLimits(settings, http));
    session.owner = member;
    session.lastFrameMs = reactor.nowMs;
    member.session = session;
    this.setIdle(member, true);
    this.startClock(member);
    if (connection.readReady) reactor.enqueue(connection);
  }

  /** A connection could not be made; `connector` says why. */
  notEstablished(connection: Connection): void {
    const member = this.memberOf(connection);
    this.drop(member);
    if (member.pool.waiting > 0) this.notGrown(member.pool);
  }

  /** Closes a connection that is not established. */
  private drop(member: Http2Member): void {
    this.forget(member);
    this.context.reactor.close(member.connection, true);
  }

  private forget(member: Http2Member): void {
    this.setIdle(member, false);
    member.retired = true;
    if (member.connection.breakerSlot >= 0) this.context.upstream.breakers.closed(member.connection);
    member.pool.remove(member);
    const index = this.members.indexOf(member);
    if (index >= 0) this.members.splice(index, 1);
    this.context.counters[UPSTREAM_OPEN]--;
  }

  // -- sessions ----------------------------------------------------------------------------------

  /** Counts a connection among the idle ones, or not. */
  setIdle(member: Http2Member, idle: boolean): void {
    if (member.idle === idle) return;
    member.idle = idle;
    this.context.counters[UPSTREAM_IDLE] += idle ? 1 : -1;
  }

  /** The upstream has announced settings, or a stream has ended. */
  streamsAvailable(session: Http2Session): void {
    const member = session.owner as Http2Member | null;
    if (member === null || !session.settingsReceived) return;
    const { pool } = member;
    pool.streamsKnown = session.peer.maxConcurrentStreams;
    this.serve(pool, true);
    if (session.streamCount === 0 && (this.context.draining || pool.endpoint.removed)) this.retire(member);
  }

  /** The last stream of a connection has ended. */
  sessionIdle(session: Http2Session): void {
    const member = session.owner as Http2Member | null;
    if (member === null) return;
    const { draining } = this.context;
    if (member.retired || draining || member.pool.endpoint.removed) this.retire(member);
    else this.setIdle(member, true);
  }

  /** Gives a connection no more streams, and ends it when it has none; those who wait go to others. */
  retire(member: Http2Member): void {
    const { session, pool } = member;
    member.retired = true;
    if (session !== null && session.streamCount === 0) {
      this.setIdle(member, false);
      this.context.http2.shutdowns.finish(session, CloseCause.FINISHED);
    }
    if (pool.waiting > 0) this.serve(pool, true);
  }

  /** A connection has been closed, its streams have been told. */
  sessionClosed(session: Http2Session, cause: number, errno: number): void {
    const member = session.owner as Http2Member;
    const { pool } = member;
    this.forget(member);
    if (this.pingMissed(session)) this.context.counters[UPSTREAM_HTTP2_PING_TIMEOUTS]++;
    if (pool.waiting === 0) return;
    if (pool.hasHope || (session.settingsReceived && member.uses > 0)) {
      this.serve(pool, true);
      return;
    }
    // It has not been of any use: another would not be either.
    let status = 502;
    let reason: number = Reason.UPSTREAM_CONNECTION_TERMINATION;
    let detail: number = errno === 0 ? Detail.UPSTREAM_FIN : Detail.UPSTREAM_RESET;
    if (session.fatal !== 0) {
      reason = Reason.UPSTREAM_PROTOCOL_ERROR;
      detail = session.settingsReceived ? Detail.UPSTREAM_HTTP2_INVALID : Detail.UPSTREAM_NOT_HTTP2;
      if (cause === CloseCause.TIMEOUT) status = 504;
    }
    this.failWaiting(pool, status, reason, detail, errno);
  }

  // -- drain, reload, shutdown ---------------------------------------------------------------------

  /** Ends the connections to an endpoint as soon as they have no streams. Returns how many had none. */
  retireAll(endpoint: Endpoint): number {
    const pool = endpoint.http2;
    if (pool === null) return 0;
    let count = 0;
    for (const member of [...pool.members]) {
      // Those being opened, and those without streams that somebody waits for, end after that.
      if (member.session === null || pool.waiting > 0) continue;
      if (member.session.streamCount === 0) count++;
      this.retire(member);
    }
    return count;
  }

  /** Closes everything at once. */
  closeAll(): void {
    for (const member of [...this.members]) {
      if (member.session === null) this.drop(member);
      else this.context.http2.shutdowns.terminate(member.session);
    }
    if (this.clock !== null) this.context.reactor.close(this.clock, false);
    this.clock = null;
  }

  // -- signs of life ---------------------------------------------------------------------------------

  private startClock(member: Http2Member): void {
    if (member.pingIntervalMs === 0) return;
    const { reactor } = this.context;
    this.clock ??= reactor.openVirtual(this, noTransport);
    if (this.clock === null || this.clockSet) return;
    this.clockSet = true;
    reactor.setTimer(this.clock, member.pingIntervalMs);
  }

  /** Asks the connections that have been silent for a sign of life, and sets the clock to the next one. */
  expired(clock: Connection): void {
    const { reactor } = this.context;
    const { nowMs } = reactor;
    let nextMs = Number.POSITIVE_INFINITY;
    for (const member of this.members) {
      const { session, pingIntervalMs } = member;
      if (session === null || pingIntervalMs === 0 || session.closing) continue;
      const intervalMs = session.streamCount > 0 ? pingIntervalMs : pingIntervalMs * IDLE_PING_FACTOR;
      let dueMs = session.lastFrameMs + intervalMs;
      if (dueMs <= nowMs) {
        sendPing(this.context, session, member.pingTimeoutMs);
        dueMs = nowMs + pingIntervalMs;
      }
      // One that gets a stream meanwhile is not to wait for the longer time.
      nextMs = Math.min(nextMs, dueMs, nowMs + pingIntervalMs);
    }
    this.clockSet = nextMs !== Number.POSITIVE_INFINITY;
    if (this.clockSet) reactor.setTimer(clock, Math.max(1, Math.ceil(nextMs - nowMs)));
  }

  /** Whether a connection ends because its ping was not answered. */
  pingMissed(session: Http2Session): boolean {
    const { pingDeadlineMs } = session;
    return pingDeadlineMs > 0 && pingDeadlineMs <= this.context.reactor.nowMs;
  }

  readable(): void {}

  writable(): void {}

  sendFailed(): void {}
}

function connectStatus(detail: number): number {
  return isConnectTimeout(detail) ? 504 : 503;
}

/** Asks a connection for a sign of life, unless it has been asked. */
export function sendPing({ reactor, http2 }: ProxyContext, session: Http2Session, timeoutMs: number): void {
  if (session.pingDeadlineMs > 0) return;
  const at = http2.output.reserve(session, PING_BYTES);
  if (at === 0) return;
  http2.output.commit(session, writePing(reactor.memory, at, 0, session.nextStreamId));
  session.pingDeadlineMs = reactor.nowMs + timeoutMs;
  session.pingTimeoutMs = timeoutMs;
  session.pingEnd = (session.writtenBytes + session.outLength) | 0;
  http2.shutdowns.arm(session);
}

/** Limits of a connection to an upstream. */
export function clientLimits(settings: BackendSettings, http: HttpSettings): Http2Limits {
  return {
    concurrentStreamsMax: 0,
    streamWindowBytes: STREAM_WINDOW_BYTES,
    // No stream whose client is slow may stop the others.
    connectionWindowBytes: Math.min(
      WINDOW_BYTES_MAX,
      STREAM_WINDOW_BYTES * (settings.http2.streamsPerConnectionMax + 1),
    ),
    resetsPerSecondMax: RESETS_PER_SECOND_MAX,
    controlFramesPerSecondMax: CONTROL_FRAMES_PER_SECOND_MAX,
    headBytesMax: http.responseHeadBytesMax,
    headerCountMax: http.headerCountMax,
    headTimeoutMs: Math.max(settings.connectTimeoutMs, HANDSHAKE_MS_MIN),
    idleTimeoutMs: settings.idleTimeoutMs,
    stallTimeoutMs: http.streamIdleTimeoutMs,
  };
}
