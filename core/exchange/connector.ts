// Opening connections to upstreams, up to the point where a request can be sent.
//
//   CONNECTING --> [PROXY header] --> [TLS HANDSHAKE] --> owner.established
//        \---------------------------------\--> refused, failed, timed out --> owner.notEstablished
//
// Until then the connection is this module's; then it is its owner's, the protocol spoken on it.
// Owned by one worker. Hot module: no allocation, exception, promise, closure or log line.

import { Errno } from '../ffi/errno.ts';
import type { Connection, PeerAddress, Protocol } from '../io/connection.ts';
import type { Endpoint } from '../lb/endpoint.ts';
import { writeProxyV1 } from '../tcp/proxy-v1.ts';
import { writeProxyV2 } from '../tcp/proxy-v2.ts';
import { Counter } from '../telemetry/metrics.ts';
import { Alpn, sessionAlpn } from '../tls/alpn.ts';
import type { TlsContext } from '../tls/context.ts';
import { TlsFailure } from '../tls/errors.ts';
import { sessionResumed } from '../tls/peer.ts';
import { HANDSHAKE_DONE, HANDSHAKE_FAILED, HANDSHAKE_WANT_READ } from '../tls/session.ts';
import type { BackendTlsSettings } from '../workers/snapshot.ts';
import type { ProxyContext } from './context.ts';
import { DETAIL_TLS, Detail, Reason } from './reasons.ts';
import type { BackendRuntime } from './runtime.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { UPSTREAM_CONNECT_FAILURES, UPSTREAM_OPEN, UPSTREAM_OPENED } = Counter;

/** States of a connection that is not established. */
const CONNECTING = 0;
const HANDSHAKE = 1;

/** The protocol that a connection is opened for. */
export interface ConnectOwner extends Protocol {
  /** The connection can be used. */
  established(connection: Connection): void;
  /** It cannot; `connector.reason`, `detail` and `errno` say why. The owner closes it. */
  notEstablished(connection: Connection): void;
}

/** Whether a connection was not established because it took too long: a 504, not a 503. */
export function isConnectTimeout(detail: number): boolean {
  return detail === Detail.CONNECT_TIMER || detail === DETAIL_TLS + TlsFailure.TIMEOUT;
}

export class Connector implements Protocol {
  /** Why the last connection was not established. */
  reason = 0;
  detail = 0;
  /** Positive error number that belongs to it, or 0. */
  errno = 0;
  private readonly context: ProxyContext;
  private readonly destination: PeerAddress = { peerFamily: 0, peerPort: 0, peer0: 0, peer1: 0, peer2: 0, peer3: 0 };

  constructor(context: ProxyContext) {
    this.context = context;
  }

  /**
   * Begins to connect; the owner hears of the outcome in a later event. Returns null when the system
   * refuses at once (`reason`, `detail` and `errno` say why).
   */
  connect(endpoint: Endpoint, backend: BackendRuntime, owner: ConnectOwner): Connection | null {
    if (endpoint.tunnel !== null) return this.context.upstreamTunnels.connect(endpoint, backend, owner);
    const { reactor, counters } = this.context;
    const { workload } = endpoint;
    if (workload !== null && (workload.removed || (backend.settings.tls !== null && workload.tlsContext === null))) {
      // Its namespace may be closed, and the number of its descriptor may stand for that of another.
      const detail = workload.removed ? Detail.WORKLOAD_GONE : Detail.NO_CERTIFICATE;
      counters[UPSTREAM_CONNECT_FAILURES]++;
      this.failed(Reason.UPSTREAM_CONNECT_FAILURE, detail, 0);
      return null;
    }
    const fd =
      workload === null
        ? reactor.kernel.connect(endpoint.sockaddr)
        : reactor.kernel.connectIn(endpoint.sockaddr, workload.settings.namespaceFd, workload.settings.mark);
    if (fd < 0) {
      counters[UPSTREAM_CONNECT_FAILURES]++;
      if (fd === -Errno.EMFILE || fd === -Errno.ENFILE || fd === -Errno.ENOBUFS || fd === -Errno.ENOMEM) {
        this.failed(Reason.OVERLOAD, Detail.NO_DESCRIPTORS, -fd);
      } else {
        this.failed(Reason.UPSTREAM_CONNECT_FAILURE, Detail.CONNECT_ERRNO, -fd);
      }
      return null;
    }
    const connection = reactor.openStream(fd, this);
    if (connection === null) {
      this.failed(Reason.OVERLOAD, Detail.NO_CONNECTION_SLOTS, 0);
      return null;
    }
    counters[UPSTREAM_OPENED]++;
    counters[UPSTREAM_OPEN]++;
    connection.endpoint = endpoint;
    connection.state = CONNECTING;
    connection.backend = backend;
    connection.connectOwner = owner;
    reactor.setTimer(connection, backend.settings.connectTimeoutMs);
    return connection;
  }

  readable(connection: Connection): void {
    if (connection.state === HANDSHAKE) this.handshake(connection);
  }

  sendFailed(): void {}

  writable(connection: Connection): void {
    if (connection.state === HANDSHAKE) {
      this.handshake(connection);
      return;
    }
    const { reactor } = this.context;
    const errno = reactor.kernel.socketError(connection.fd);
    if (errno !== 0) {
      this.refuse(connection, Detail.CONNECT_ERRNO, errno);
      return;
    }
    const { settings } = connection.backend!;
    if (settings.proxyProtocol !== 0) {
      const sent = this.sendProxyHeader(connection, settings.proxyProtocol);
      if (sent < 0) {
        this.refuse(connection, Detail.CONNECT_ERRNO, -sent);
        return;
      }
    }
    if (settings.tls === null) this.established(connection);
    else this.startTls(connection, settings.tls);
  }

  expired(connection: Connection): void {
    if (connection.state === HANDSHAKE) {
      this.context.metrics.countUpstreamTlsFailure(TlsFailure.TIMEOUT);
      this.refuse(connection, DETAIL_TLS + TlsFailure.TIMEOUT, 0);
    } else {
      this.refuse(connection, Detail.CONNECT_TIMER, 0);
    }
  }

  private established(connection: Connection): void {
    this.context.reactor.clearTimer(connection);
    const owner = connection.connectOwner!;
    connection.connectOwner = null;
    connection.protocol = owner;
    connection.state = 0;
    owner.established(connection);
  }

  // -- TLS ---------------------------------------------------------------------------

  private startTls(connection: Connection, tls: BackendTlsSettings): void {
    const sessions = this.context.tlsSessions!;
    const { workload } = connection.endpoint!;
    const context = workload === null ? this.tlsContextOf(connection.backend!) : workload.tlsContext;
    const ssl =
      context === null
        ? 0
        : sessions.connect(
            context,
            connection.fd,
            tls.serverName,
            connection.endpoint!.verifyNames ?? tls.verifyNames,
            connection.endpoint!.resumption,
          );
    if (ssl === 0) {
      this.tlsFailed(connection, context === null ? TlsFailure.INTERNAL : sessions.failure, sessions.failureText);
      return;
    }
    connection.tls = ssl;
    // From here on whoever closes the connection frees the session with it: a client that leaves, too.
    connection.transport = this.context.tlsTransport;
    connection.state = HANDSHAKE;
    this.handshake(connection);
  }

  /** The TLS context for a backend; that in force where the connection has been begun under an older configuration. */
  private tlsContextOf(backend: BackendRuntime): TlsContext | null {
    const { tlsContext, settings, isTunnel } = backend;
    if (tlsContext === null || !tlsContext.released) return tlsContext;
    const { backends } = this.context.runtime;
    for (let i = 0; i < backends.length; i++) {
      if (backends[i].settings.name !== settings.name) continue;
      return isTunnel ? (backends[i].tunnel?.tlsContext ?? null) : backends[i].tlsContext;
    }
    return null;
  }

  private handshake(connection: Connection): void {
    const { counters } = this.context;
    const sessions = this.context.tlsSessions!;
    const result = sessions.handshake(connection.tls);
    if (result === HANDSHAKE_FAILED) {
      this.tlsFailed(connection, sessions.failure, sessions.failureText);
      return;
    }
    if (result === HANDSHAKE_WANT_READ) connection.readReady = false;
    if (result !== HANDSHAKE_DONE) return;
    if (connection.backend!.settings.protocol === 'h2' && sessionAlpn(connection.tls) !== Alpn.H2) {
      this.tlsFailed(connection, TlsFailure.ALPN_MISMATCH, 'the upstream did not choose h2');
      return;
    }
    counters[Counter.UPSTREAM_TLS_HANDSHAKES]++;
    if (sessionResumed(connection.tls)) counters[Counter.UPSTREAM_TLS_RESUMED]++;
    // Session tickets may have come with the last handshake message.
    connection.readReady = true;
    this.established(connection);
  }

  private tlsFailed(connection: Connection, failure: number, text: string): void {
    this.context.metrics.countUpstreamTlsFailure(failure);
    this.context.connectionLog.tell(connection, 'TLS handshake failed', text);
    this.refuse(connection, DETAIL_TLS + failure, 0);
  }

  /** Keeps what lets the next handshake with this endpoint be short. After the first bytes were received. */
  saveResumption(connection: Connection): void {
    const sessions = this.context.tlsSessions!;
    const endpoint = connection.endpoint!;
    const resumption = sessions.takeResumption(connection.tls);
    if (resumption === 0) return;
    this.forgetResumption(endpoint);
    endpoint.resumption = resumption;
  }

  /** The next handshake with an endpoint is a full one. */
  forgetResumption(endpoint: Endpoint): void {
    if (endpoint.resumption !== 0) this.context.tlsSessions!.freeResumption(endpoint.resumption);
    endpoint.resumption = 0;
  }

  // -- PROXY protocol ------------------------------------------------------------------

  /** Sends the header of the client that the connection is for. Returns a negative error number on failure. */
  private sendProxyHeader(connection: Connection, version: number): number {
    const { reactor, memory } = this.context;
    const { destination } = this;
    const exchange = connection.exchange!;
    // A second attempt is made for the client of the first.
    const client = (exchange.isHedge ? exchange.rival! : exchange).downstream!;
    destination.peerFamily = client.peerFamily;
    // A mirrored request has come by no listener of its own.
    destination.peerPort = client.listener === null ? 0 : client.listener.settings.port;
    destination.peer0 = 0;
    destination.peer1 = 0;
    destination.peer2 = 0;
    destination.peer3 = 0;
    if (client.fd >= 0 && reactor.kernel.localAddress(client.fd) >= 0) reactor.readAddress(destination);
    const start = reactor.arena.scratchOffset;
    const end =
      version === 1
        ? writeProxyV1(memory, start, client, destination)
        : writeProxyV2(memory, start, client, destination, null);
    const count = reactor.kernel.send(connection.fd, start, end - start, false);
    // The send buffer of a new connection takes more than any header.
    return count === end - start ? 0 : count < 0 ? count : -Errno.EPIPE;
  }

  private refuse(connection: Connection, detail: number, errno: number): void {
    this.context.counters[UPSTREAM_CONNECT_FAILURES]++;
    this.failed(Reason.UPSTREAM_CONNECT_FAILURE, detail, errno);
    connection.connectOwner!.notEstablished(connection);
  }

  /** Says why a connection is not established. */
  failed(reason: number, detail: number, errno: number): void {
    this.reason = reason;
    this.detail = detail;
    this.errno = errno;
  }
}
