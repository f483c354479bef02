// What the policies of a workload can know of a connection that comes to it, gathered when it comes.
// Owned by one worker. Works per connection, nothing per request.

import { ConnectionAccess } from '../authorization/connection-access.ts';
import { ConnectionFacts } from '../authorization/connection-facts.ts';
import { parseAddress } from '../authorization/network.ts';
import type { Connection } from '../io/connection.ts';
import { hostOf, type WorkloadRuntime } from './mesh-runtime.ts';

/**
 * The access of a connection to `workload`, whose destination is known, and who has sent it. `trustedHops`: proxies in
 * front that name clients.
 */
export function accessOf(connection: Connection, workload: WorkloadRuntime, trustedHops: number): ConnectionAccess {
  const { destination, clientCertificate, serverName, tlsVersion } = connection;
  const { peerFamily, peerPort, peer0, peer1, peer2, peer3 } = connection;
  // Of a tunnel, TLS is that of the tunnel: what is inside has not been looked at.
  const looked = connection.http2Stream === null && tlsVersion.length > 0;
  const facts = new ConnectionFacts({
    identity: clientCertificate?.verified ? clientCertificate.spiffeId : '',
    peer: { peerFamily, peerPort, peer0, peer1, peer2, peer3 },
    destination: destination === null ? null : parseAddress(hostOf(destination)),
    port: destination === null ? 0 : Number(destination.slice(destination.lastIndexOf(':') + 1)),
    serverName: looked ? (serverName ?? '') : null,
    clientIsPeer: trustedHops === 0,
  });
  return new ConnectionAccess(workload, facts);
}
