// What exchanges of a node proxy count for the workload that they belong to, and for its peer.
//
// Owned by one worker. Hot module: no allocation per request. A gateway never comes here.

import type { Connection } from '../io/connection.ts';
import { type Peer, PeerCounter, PeerProtocol, PeerSide, WorkloadCounter } from '../telemetry/workload-metrics.ts';
import { type Exchange, HttpVersion } from './exchange.ts';
import { Detail, Reason } from './reasons.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { CONNECTIONS, DENIED, FAILURES, REQUESTS } = PeerCounter;
const { GRPC, HTTP, TCP } = PeerProtocol;
const { SOURCE } = PeerSide;
const {
  DENIED: WORKLOAD_DENIED,
  LIMITED,
  OUTBOUND_FAILURES,
  OUTBOUND_REQUESTS,
  RECEIVED_BYTES,
  SENT_BYTES,
} = WorkloadCounter;
const { DELAY_INJECTED, OVERLOAD, UNAUTHORIZED } = Reason;
const { DISCOVERY_LIMIT, WORKLOAD_CONNECTIONS, WORKLOAD_RATE } = Detail;
const { HTTP_2 } = HttpVersion;

/** Whether a connection comes to its workload. It has a workload. */
export function isInbound(connection: Connection): boolean {
  if (connection.access !== null) return true;
  // Refused before anybody has asked policies.
  const mesh = connection.listener === null ? null : connection.listener.settings.mesh;
  return mesh !== null && (mesh.role === 'inbound' || mesh.role === 'tunnels');
}

/** Who is at the other end of an exchange; null: that has not been found out. */
function peerOf(exchange: Exchange, connection: Connection): Peer | null {
  const { access, clientCertificate } = connection;
  if (access !== null) {
    const identity = clientCertificate?.verified ? clientCertificate.spiffeId : '';
    access.peer ??= connection.workload!.counters.peer(SOURCE, identity);
    return access.peer;
  }
  if (exchange.backend < 0) return null;
  const { destinations, peer } = exchange.runtime!.backends[exchange.backend];
  return destinations === null || exchange.endpoint < 0 ? peer : destinations.peers[exchange.endpoint]!;
}

/** A connection that is passed on unread has reached its destination. It belongs to a workload. */
export function countJoined(exchange: Exchange): void {
  const peer = peerOf(exchange, exchange.downstream!);
  if (peer !== null) peer.count(TCP, CONNECTIONS);
}

/** Bytes are passed on in a tunnel. Its client belongs to a workload. */
export function countPassed(connection: Connection, fromClient: boolean, length: number): void {
  const { words, base } = connection.workload!.counters;
  words[base + (isInbound(connection) === fromClient ? RECEIVED_BYTES : SENT_BYTES)]! += length;
}

/** An exchange whose client belongs to a workload has ended. */
export function countEnded(exchange: Exchange): void {
  const connection = exchange.downstream!;
  const { words, base } = connection.workload!.counters;
  const { detail, isConnection, reason } = exchange;
  const inbound = isInbound(connection);
  const side = base + (inbound ? 1 : 0);
  const denied = reason === UNAUTHORIZED;
  const failed = !denied && (exchange.status >= 500 || (reason !== 0 && reason !== DELAY_INJECTED));
  if (!isConnection) words[side + OUTBOUND_REQUESTS]!++;
  if (failed) words[side + OUTBOUND_FAILURES]!++;
  if (denied) words[base + WORKLOAD_DENIED]!++;
  if (
    reason === OVERLOAD &&
    (detail === DISCOVERY_LIMIT || (detail >= WORKLOAD_CONNECTIONS && detail <= WORKLOAD_RATE))
  )
    words[base + LIMITED]!++;
  // Of tunnels they have been counted as they passed.
  if (!exchange.tunnel) {
    words[base + (inbound ? RECEIVED_BYTES : SENT_BYTES)]! += exchange.requestBodyBytes;
    words[base + (inbound ? SENT_BYTES : RECEIVED_BYTES)]! += exchange.responseBodyBytes;
  }
  const peer = peerOf(exchange, connection);
  if (peer === null) return;
  const protocol = isConnection ? TCP : exchange.grpc > 0 ? GRPC : HTTP;
  if (!isConnection) {
    peer.count(protocol, REQUESTS);
    // The connection that carries it counts once, however many requests it brings.
    const { http2Stream } = connection;
    const carrier =
      exchange.httpVersion === HTTP_2 && http2Stream !== null ? http2Stream.session!.connection : connection;
    if (carrier.peer !== peer) {
      carrier.peer = peer;
      peer.count(protocol, CONNECTIONS);
    }
  }
  if (failed) peer.count(protocol, FAILURES);
  if (denied) peer.count(protocol, DENIED);
}
