// Connections that are passed on unread: TCP routes, and TLS routes by SNI.
//
// Such a connection is an exchange of its own, from accept to close: it is counted, logged and
// recorded like a request. Its bytes stay in the socket until the upstream is connected; then
// tunnel.ts moves them.
// Owned by one worker. Hot module: no allocation, exception, promise, closure or log line.

import { Method } from '../http1/message.ts';
import { ErrorCode } from '../http2/errors.ts';
import type { Connection } from '../io/connection.ts';
import { CloseCause, Counter } from '../telemetry/metrics.ts';
import { Downstream } from './downstream.ts';
import { chooseEndpoint } from './endpoint-choice.ts';
import type { Exchange } from './exchange.ts';
import { Detail, Reason } from './reasons.ts';

const { CONNECT_ERROR } = ErrorCode;

export class DownstreamTcp extends Downstream {
  /**
   * Takes over a connection whose first bytes are for the upstream; `detecting`: unless they turn out to be HTTP
   * (detection.ts).
   */
  accepted(connection: Connection, detecting = false): void {
    const { context } = this;
    const { reactor, runtime } = context;
    connection.protocol = this;
    const exchange = this.attach(connection);
    this.identify(exchange);
    // For the upstream it is what a CONNECT is: a connection of its own, and then a tunnel.
    exchange.method = Method.CONNECT;
    exchange.requestComplete = true;
    exchange.tunnel = true;
    exchange.isConnection = true;
    exchange.detecting = detecting;
    if (connection.access !== null && !detecting) {
      const refused = context.authorizer.ofConnection(connection);
      exchange.allowedBy = context.authorizer.allowedBy;
      if (refused !== 0) {
        this.fail(exchange, 0, Reason.UNAUTHORIZED, refused, 0);
        return;
      }
    }
    const route = runtime.streamRoutes.lookup(connection.listener!.index, connection.serverName);
    exchange.streamRoute = route;
    if (route === null) {
      this.fail(exchange, 0, Reason.NO_ROUTE, Detail.NONE, 0);
      return;
    }
    const backend = route.pick(context.ids.next() >>> 1);
    if (backend >= 0) {
      exchange.backend = runtime.backendFor(backend, connection.workload);
      chooseEndpoint(context, exchange, null);
    }
    // Until there is a tunnel nothing is read; what has come already has had its event.
    connection.readReady = true;
    reactor.clearTimer(connection);
    context.upstream.start(exchange);
  }

  /** Ends a connection that is not served, with a record of the reason. */
  refuseConnection(connection: Connection, reason: number, detail: number): void {
    connection.protocol = this;
    const exchange = this.attach(connection);
    this.identify(exchange);
    exchange.method = Method.CONNECT;
    exchange.requestComplete = true;
    exchange.isConnection = true;
    this.fail(exchange, 0, reason, detail, 0);
  }

  /** The client's connection has failed before there was a tunnel. */
  left(connection: Connection): void {
    this.clientLeft(connection);
  }

  /** Before the tunnel: only the client's leaving is of interest. */
  readable(connection: Connection): void {
    const exchange = connection.exchange!;
    if (exchange.detecting) this.context.detection.clientSpoke(exchange);
    else if (connection.readHangup && this.context.reactor.socketError(connection) !== 0) this.clientLeft(connection);
  }

  writable(): void {}

  expired(connection: Connection): void {
    this.exchangeExpired(connection.exchange!);
  }

  /** Nobody can be told: the connection ends. */
  override fail(exchange: Exchange, _status: number, reason: number, detail: number, errno: number): void {
    const connection = exchange.downstream!;
    if (exchange.detecting) {
      this.context.detection.connectFailed(exchange);
      return;
    }
    exchange.reason = reason;
    exchange.detail = detail;
    exchange.errno = errno;
    connection.exchange = null;
    this.context.endExchange(exchange);
    this.close(connection, CloseCause.UPSTREAM_ABORT, true);
  }

  close(connection: Connection, cause: number, abort: boolean): void {
    const { reactor, metrics, counters } = this.context;
    metrics.countClose(cause);
    counters[Counter.DOWNSTREAM_OPEN]--;
    // The client of a tunnel is to tell a connection that failed from one that has ended (RFC 9113 §8.5).
    if (abort && connection.http2Stream !== null) connection.http2Stream.resetCode = CONNECT_ERROR;
    reactor.close(connection, abort);
  }

  writeConnected(): boolean {
    return true;
  }

  // There is no request, and so no response.
  writeUpgraded(): boolean {
    return false;
  }
  protected writeResponse(): boolean {
    return false;
  }
  protected writeBody(): boolean {
    return false;
  }
  protected writeInformational(): boolean {
    return false;
  }
  protected writeGenerated(): boolean {
    return false;
  }
  protected finish(): void {}
}
