// One endpoint as a worker sees it: its address and its idle connections.
//
// Endpoints are kept by address across snapshots, so that a reload keeps warm connections. The idle
// list is last-in-first-out: the most recently used connection is the least likely to have been
// closed by the other side, and surplus ones age out. Owned by one worker. Hot: no allocation.

import type { WorkloadRuntime } from '../exchange/mesh-runtime.ts';
import type { TunnelPool } from '../exchange/upstream-tunnels.ts';
import { encodeSockaddr } from '../ffi/sockaddr.ts';
import type { Connection } from '../io/connection.ts';
import type { EndpointSettings } from '../workers/snapshot.ts';
import type { Http2Pool } from './http2-pool.ts';

export class Endpoint {
  /** Tells apart what must not share connections: address, protocol and TLS settings. */
  readonly key: string;
  /** `ip:port`. */
  readonly address: string;
  readonly addressBytes: Uint8Array;
  /** Binary address for `connect`. */
  readonly sockaddr: Uint8Array;
  /** Head of the idle list, most recently used first. */
  idle: Connection | null = null;
  idleCount = 0;
  /** The last attempt to connect failed. */
  failing = false;
  /** Reactor time of the last failed attempt, in milliseconds. */
  failedMs = 0;
  /** Reactor time of the last report that it fails, in milliseconds. */
  failureReportedMs = Number.NEGATIVE_INFINITY;
  /** A failure has been reported that no success has followed yet. */
  failureOpen = false;
  /** What lets the next TLS handshake resume the last session (TlsSessions.takeResumption); 0: nothing. */
  resumption = 0;
  /** The way there is a tunnel: where that begins; null: it can be reached itself. */
  tunnel: Endpoint | null = null;
  /** Names of which its certificate must have one, instead of the backend's; null: the backend's count. */
  verifyNames: readonly string[] | null = null;
  /** Node proxies: whose connections these are, made in its network namespace; null: the process's own. */
  workload: WorkloadRuntime | null = null;
  /** Tunnels that begin here; made with the first. */
  tunnels: TunnelPool | null = null;
  /** Connections of an endpoint that speaks HTTP/2; made with the first. */
  http2: Http2Pool | null = null;
  /** No snapshot of this worker refers to it any more: connections end with their exchange. */
  removed = false;

  /** Throws when `settings.host` is not an IP address: names are resolved before. */
  constructor(settings: Pick<EndpointSettings, 'address' | 'host' | 'port'>, key: string = settings.address) {
    const sockaddr = encodeSockaddr(settings.host, settings.port);
    if (sockaddr === undefined) throw new Error(`endpoint ${settings.address} has no IP address`);
    this.key = key;
    this.address = settings.address;
    this.addressBytes = new TextEncoder().encode(settings.address);
    this.sockaddr = sockaddr;
  }

  /** Takes the most recently used idle connection, or null. */
  takeIdle(): Connection | null {
    const connection = this.idle;
    if (connection !== null) this.removeIdle(connection);
    return connection;
  }

  /** Puts a connection into the idle list. */
  addIdle(connection: Connection): void {
    connection.idlePrevious = null;
    connection.idleNext = this.idle;
    if (this.idle !== null) this.idle.idlePrevious = connection;
    this.idle = connection;
    this.idleCount++;
  }

  /** Removes a connection that is in the idle list. */
  removeIdle(connection: Connection): void {
    if (connection.idleNext !== null) connection.idleNext.idlePrevious = connection.idlePrevious;
    if (connection.idlePrevious !== null) connection.idlePrevious.idleNext = connection.idleNext;
    else this.idle = connection.idleNext;
    connection.idleNext = null;
    connection.idlePrevious = null;
    this.idleCount--;
  }
}
