// A client without a socket: that of requests which the proxy itself makes out of one that it has (mirror.ts,
// hedges.ts). Such a request is an exchange like others towards its upstream, and nobody reads its answer.
// Owned by one worker. Hot module: no allocation, exception, promise, closure or log line per request.

import type { Connection } from '../io/connection.ts';
import { Counter } from '../telemetry/metrics.ts';
import { Downstream } from './downstream.ts';
import type { Exchange } from './exchange.ts';

const { REQUESTS_IN_FLIGHT } = Counter;

export abstract class VirtualClient extends Downstream {
  /**
   * An exchange on a connection without a socket, which asks for what `parent` asks for, in its name; it counts in no
   * number of requests. Its head is that of the parent, `shift` bytes further on.
   */
  protected attachCopy(connection: Connection, parent: Exchange, shift: number): Exchange {
    const copy = this.attach(connection);
    const client = parent.downstream!;
    this.context.counters[REQUESTS_IN_FLIGHT]--;
    connection.peerFamily = client.peerFamily;
    connection.peerPort = client.peerPort;
    connection.peer0 = client.peer0;
    connection.peer1 = client.peer1;
    connection.peer2 = client.peer2;
    connection.peer3 = client.peer3;
    connection.workload = client.workload;
    connection.destination = client.destination;
    copy.runtime = parent.runtime;
    copy.headOffset = parent.headOffset + shift;
    copy.headLength = parent.headLength;
    copy.methodLength = parent.methodLength;
    copy.pathOffset = parent.pathOffset + shift;
    copy.pathLength = parent.pathLength;
    copy.hostOffset = parent.hostOffset + shift;
    copy.hostLength = parent.hostLength;
    copy.rewrittenPathLength = parent.rewrittenPathLength;
    copy.rewrittenHostOffset = parent.rewrittenHostOffset + shift;
    copy.rewrittenHostLength = parent.rewrittenHostLength;
    copy.secretRequest = parent.secretRequest;
    copy.requestIdOffset = parent.requestIdOffset + shift;
    copy.requestIdLength = parent.requestIdLength;
    copy.method = parent.method;
    copy.requestFraming = parent.requestFraming;
    copy.keepAlive = true;
    copy.rule = parent.rule;
    return copy;
  }

  /** Ends such an exchange, whose upstream has been let go. */
  protected endCopy(copy: Exchange): void {
    const connection = copy.downstream!;
    connection.exchange = null;
    this.context.endExchange(copy);
    this.context.reactor.close(connection, false);
  }

  readable(_connection: Connection): void {}

  writable(): void {}

  expired(connection: Connection): void {
    if (connection.exchange !== null) this.exchangeExpired(connection.exchange);
  }

  protected writeInformational(): boolean {
    return true;
  }

  writeConnected(): boolean {
    return false;
  }

  writeUpgraded(): boolean {
    return false;
  }

  close(connection: Connection): void {
    this.context.reactor.close(connection, false);
  }
}
