// What comes before the protocol on an accepted connection: a PROXY protocol header, the TLS
// handshake. Then the connection is handed to the protocol that was agreed on.
//
//   PROXY --> HELLO --> HANDSHAKE --> HTTP/1.1, HTTP/2 or a stream route
//                 \--> passthrough: a stream route by SNI
//
// Header and ClientHello are peeked at first, so that a partial one costs no memory, and a passed-on
// hello is still whole in the socket. Owned by one worker; texts and objects are made once per
// handshake, nothing per request.
// Spec: RFC 8446 §4.1.2, RFC 6066 §3 (SNI), RFC 7301 (ALPN), the PROXY protocol.

import { Errno } from '../ffi/errno.ts';
import { Family } from '../ffi/sockaddr.ts';
import type { Connection, Protocol } from '../io/connection.ts';
import { proxyErrorSentence } from '../tcp/proxy-errors.ts';
import { ProxyHeader } from '../tcp/proxy-header.ts';
import { parseProxyHeader } from '../tcp/proxy-protocol.ts';
import { PROXY_V2_BYTES_MAX } from '../tcp/proxy-v2.ts';
import { CloseCause, Counter } from '../telemetry/metrics.ts';
import { Alpn, sessionAlpn } from '../tls/alpn.ts';
import {
  CLIENT_HELLO_BYTES_MAX,
  ClientHello,
  clientHelloErrorSentence,
  looksLikeHttp,
  parseClientHello,
} from '../tls/client-hello.ts';
import { TlsFailure } from '../tls/errors.ts';
import { peerCertificate, sessionResumed, sessionVersion } from '../tls/peer.ts';
import { HANDSHAKE_DONE, HANDSHAKE_FAILED, HANDSHAKE_WANT_READ } from '../tls/session.ts';
import { ClientCertificate } from './client-certificate.ts';
import type { ProxyContext } from './context.ts';
import type { ListenerRuntime } from './runtime.ts';

const { TLS_HANDSHAKES, TLS_RESUMED } = Counter;

/** States of a connection before its protocol. */
const PreambleState = { PROXY: 0, HELLO: 1, HANDSHAKE: 2 } as const;
const { HANDSHAKE, HELLO, PROXY } = PreambleState;

/** First byte of a TLS handshake record. */
const RECORD_HANDSHAKE = 22;

const encoder = new TextEncoder();
const tls12 = encoder.encode('TLSv1.2');
const tls13 = encoder.encode('TLSv1.3');

/** A fatal alert `unrecognized_name` in a record of its own (RFC 6066 §3, RFC 8446 §6). */
const unrecognizedName = new Uint8Array([21, 3, 3, 0, 2, 2, 112]);

export class Preamble implements Protocol {
  private readonly context: ProxyContext;
  private readonly proxyHeader = new ProxyHeader();
  private readonly hello = new ClientHello();

  constructor(context: ProxyContext) {
    this.context = context;
  }

  /** Takes over a freshly accepted connection, and hands it on as soon as its protocol is known. */
  accepted(connection: Connection): void {
    const { settings } = connection.listener!;
    connection.protocol = this;
    if (settings.proxyProtocol) {
      connection.state = PROXY;
      this.context.reactor.setTimer(connection, this.context.runtime.http.requestHeadTimeoutMs);
      return;
    }
    this.afterProxy(connection);
  }

  readable(connection: Connection): void {
    if (connection.state === PROXY) this.readProxyHeader(connection);
    else if (connection.state === HELLO) this.readHello(connection);
    else this.handshake(connection);
  }

  writable(connection: Connection): void {
    if (connection.state === HANDSHAKE) this.handshake(connection);
  }

  sendFailed(): void {}

  expired(connection: Connection): void {
    if (connection.state !== PROXY) this.context.metrics.countTlsFailure(TlsFailure.TIMEOUT);
    this.close(connection, CloseCause.TIMEOUT);
  }

  /** Ends a connection that has not got further (drain, shutdown). */
  close(connection: Connection, cause: number): void {
    const { reactor, metrics, counters } = this.context;
    metrics.countClose(cause);
    counters[Counter.DOWNSTREAM_OPEN]--;
    reactor.close(connection, false);
  }

  // -- PROXY protocol ---------------------------------------------------------------

  private readProxyHeader(connection: Connection): void {
    const { reactor, memory, counters } = this.context;
    const { scratchOffset } = reactor.arena;
    const count = this.peek(connection, scratchOffset, PROXY_V2_BYTES_MAX);
    if (count <= 0) return;
    const { proxyHeader } = this;
    const bytes = parseProxyHeader(memory, scratchOffset, count, proxyHeader);
    if (bytes === 0) {
      if (connection.readHangup) this.closedEarly(connection);
      return;
    }
    if (bytes < 0) {
      counters[Counter.PROXY_HEADER_ERRORS]++;
      this.context.connectionLog.tell(connection, 'PROXY header refused', proxyErrorSentence(-bytes));
      this.close(connection, CloseCause.PROTOCOL_ERROR);
      return;
    }
    const { source, family } = proxyHeader;
    if (family === Family.INET || family === Family.INET6) {
      connection.peerFamily = source.peerFamily;
      connection.peerPort = source.peerPort;
      connection.peer0 = source.peer0;
      connection.peer1 = source.peer1;
      connection.peer2 = source.peer2;
      connection.peer3 = source.peer3;
    }
    reactor.kernel.recv(connection.fd, scratchOffset, bytes);
    reactor.clearTimer(connection);
    connection.readReady = true;
    this.afterProxy(connection);
    if (connection.protocol !== null) connection.protocol.readable(connection);
  }

  private afterProxy(connection: Connection): void {
    const { settings } = connection.listener!;
    if (settings.tls !== null) {
      connection.protocol = this;
      connection.state = HELLO;
      this.context.reactor.setTimer(connection, settings.tls.handshakeTimeoutMs);
    } else {
      this.context.handOver(connection, Alpn.NONE);
    }
  }

  // -- TLS ---------------------------------------------------------------------------

  private readHello(connection: Connection): void {
    const { reactor, memory, metrics } = this.context;
    const { scratchOffset } = reactor.arena;
    const count = this.peek(connection, scratchOffset, CLIENT_HELLO_BYTES_MAX);
    if (count <= 0) return;
    if (memory[scratchOffset] !== RECORD_HANDSHAKE) {
      const http = looksLikeHttp(memory, scratchOffset, count);
      if (http === 0) return;
      metrics.countTlsFailure(http > 0 ? TlsFailure.PLAIN_HTTP : TlsFailure.NOT_TLS);
      if (http > 0) this.context.downstreamHttp1.refusePlain(connection);
      else this.close(connection, CloseCause.PROTOCOL_ERROR);
      return;
    }
    const { hello } = this;
    const result = parseClientHello(memory, scratchOffset, count, scratchOffset + CLIENT_HELLO_BYTES_MAX, hello);
    if (result === 0) {
      if (connection.readHangup) this.closedEarly(connection);
      return;
    }
    if (result < 0) {
      metrics.countTlsFailure(TlsFailure.PROTOCOL_ERROR);
      this.context.connectionLog.tell(connection, 'TLS handshake failed', clientHelloErrorSentence(-result));
      this.close(connection, CloseCause.PROTOCOL_ERROR);
      return;
    }
    connection.serverName =
      hello.serverNameLength === 0 ? null : this.text(hello.serverNameOffset, hello.serverNameLength);
    if (connection.serverName !== null) connection.serverNameBytes = encoder.encode(connection.serverName);
    const listener = connection.listener!;
    const { tls } = listener.settings;
    if (tls === null) {
      // A reload took TLS off the listener while the hello was on its way.
      metrics.countTlsFailure(TlsFailure.UNRECOGNIZED_NAME);
      this.close(connection, CloseCause.PROTOCOL_ERROR);
      return;
    }
    if (tls.passthrough) {
      reactor.clearTimer(connection);
      this.context.downstreamTcp.accepted(connection);
      return;
    }
    this.begin(connection, listener);
  }

  private begin(connection: Connection, listener: ListenerRuntime): void {
    const { kernel, arena } = this.context.reactor;
    const sessions = this.context.tlsSessions!;
    const offersAcme = this.context.acme.challengeFor(connection.serverName, this.context.memory, this.hello);
    const context = offersAcme ?? listener.contextFor(connection.serverName);
    if (context === null) {
      this.context.metrics.countTlsFailure(TlsFailure.UNRECOGNIZED_NAME);
      this.context.memory.set(unrecognizedName, arena.scratchOffset);
      kernel.send(connection.fd, arena.scratchOffset, unrecognizedName.length, false);
      this.close(connection, CloseCause.PROTOCOL_ERROR);
      return;
    }
    const ssl = sessions.accept(context, connection.fd);
    if (ssl === 0) {
      this.context.metrics.countTlsFailure(sessions.failure);
      this.context.connectionLog.tell(connection, 'TLS handshake failed', sessions.failureText);
      this.close(connection, CloseCause.PROTOCOL_ERROR);
      return;
    }
    connection.tls = ssl;
    // From here on whoever closes the connection frees the session with it: a drain, too.
    connection.transport = this.context.tlsTransport;
    connection.state = HANDSHAKE;
    this.handshake(connection);
  }

  private handshake(connection: Connection): void {
    const { reactor, metrics, counters } = this.context;
    const sessions = this.context.tlsSessions!;
    const result = sessions.handshake(connection.tls);
    if (result === HANDSHAKE_DONE) {
      counters[TLS_HANDSHAKES]++;
      if (sessionResumed(connection.tls)) counters[TLS_RESUMED]++;
      connection.readReady = true;
      reactor.clearTimer(connection);
      connection.tlsVersion = sessionVersion(connection.tls) === 'TLSv1.3' ? tls13 : tls12;
      if (connection.listener!.validatesClients) {
        const certificate = peerCertificate(connection.tls);
        if (certificate !== null) connection.clientCertificate = new ClientCertificate(certificate);
      }
      this.context.handOver(connection, sessionAlpn(connection.tls));
      if (connection.workload !== null) this.context.trust.accepted(connection);
      // What came with the handshake's last bytes has no event of its own.
      if (connection.protocol !== null) connection.protocol.readable(connection);
    } else if (result === HANDSHAKE_WANT_READ) {
      connection.readReady = false;
    } else if (result === HANDSHAKE_FAILED) {
      metrics.countTlsFailure(sessions.failure);
      this.context.connectionLog.tell(connection, 'TLS handshake failed', sessions.failureText);
      this.close(connection, CloseCause.PROTOCOL_ERROR);
    }
  }

  /** Bytes at the front of the socket; 0 when there is nothing to look at now, or the connection has ended. */
  private peek(connection: Connection, offset: number, length: number): number {
    const count = this.context.reactor.kernel.peek(connection.fd, offset, length);
    if (count > 0) return count;
    if (count === -Errno.EAGAIN || count === -Errno.EINTR) {
      connection.readReady = false;
      return 0;
    }
    this.closedEarly(connection);
    return 0;
  }

  /** The client has gone before it said what it wants. */
  private closedEarly(connection: Connection): void {
    if (connection.state !== PROXY) this.context.metrics.countTlsFailure(TlsFailure.PEER_CLOSED);
    this.close(connection, CloseCause.CLIENT);
  }

  private text(offset: number, length: number): string {
    let text = '';
    for (let i = 0; i < length; i++) text += String.fromCharCode(this.context.memory[offset + i]);
    return text;
  }
}
