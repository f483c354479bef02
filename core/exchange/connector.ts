// Opening connections to upstreams, up to the point where a request can be sent.
//
//   connect(2) --> established --> owner.established
//        \--> refused, timed out --> owner.notEstablished
//
// Until then the connection is this module's; then it is its owner's, the protocol spoken on it.
// Owned by one worker. Hot module: no allocation, exception, promise, closure or log line.

import { Errno } from '../ffi/errno.ts';
import type { Connection, Protocol } from '../io/connection.ts';
import type { Endpoint } from '../lb/endpoint.ts';
import { Counter } from '../telemetry/metrics.ts';
import type { BackendSettings } from '../workers/snapshot.ts';
import type { ProxyContext } from './context.ts';
import { Detail, Reason } from './reasons.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { UPSTREAM_CONNECT_FAILURES, UPSTREAM_OPEN, UPSTREAM_OPENED } = Counter;

/** The protocol that a connection is opened for. */
export interface ConnectOwner extends Protocol {
  /** The connection can be used. */
  established(connection: Connection): void;
  /** It cannot; `connector.reason`, `detail` and `errno` say why. The owner closes it. */
  notEstablished(connection: Connection): void;
}

export class Connector implements Protocol {
  /** Why the last connection was not established. */
  reason = 0;
  detail = 0;
  /** Positive error number that belongs to it, or 0. */
  errno = 0;
  private readonly context: ProxyContext;

  constructor(context: ProxyContext) {
    this.context = context;
  }

  /**
   * Begins to connect; the owner hears of the outcome in a later event. Returns null when the system
   * refuses at once (`reason`, `detail` and `errno` say why).
   */
  connect(endpoint: Endpoint, settings: BackendSettings, owner: ConnectOwner): Connection | null {
    const { reactor, counters } = this.context;
    const fd = reactor.kernel.connect(endpoint.sockaddr);
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
    connection.connectOwner = owner;
    reactor.setTimer(connection, settings.connectTimeoutMs);
    return connection;
  }

  readable(): void {}

  sendFailed(): void {}

  writable(connection: Connection): void {
    const { reactor } = this.context;
    const errno = reactor.socketError(connection);
    if (errno !== 0) {
      this.refuse(connection, Detail.CONNECT_ERRNO, errno);
      return;
    }
    reactor.clearTimer(connection);
    const owner = connection.connectOwner!;
    connection.connectOwner = null;
    connection.protocol = owner;
    owner.established(connection);
  }

  expired(connection: Connection): void {
    this.refuse(connection, Detail.CONNECT_TIMER, 0);
  }

  private refuse(connection: Connection, detail: number, errno: number): void {
    this.context.counters[UPSTREAM_CONNECT_FAILURES]++;
    this.failed(Reason.UPSTREAM_CONNECT_FAILURE, detail, errno);
    connection.connectOwner!.notEstablished(connection);
  }

  private failed(reason: number, detail: number, errno: number): void {
    this.reason = reason;
    this.detail = detail;
    this.errno = errno;
  }
}
