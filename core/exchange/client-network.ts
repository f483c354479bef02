// What counts as one client where clients are told apart by address: an IPv4 address, or the /64 network of an
// IPv6 address, which is what one client has. An IPv4-mapped address (RFC 4291 §2.5.5.2) is the IPv4 address it is.
// Hot module: no allocation.

import { Family } from '../ffi/sockaddr.ts';
import type { PeerAddress } from '../io/connection.ts';

const { INET6 } = Family;

/** Whether an address is an IPv4 one, perhaps written as IPv6. */
export function isIpv4(client: PeerAddress): boolean {
  return client.peerFamily !== INET6 || (client.peer0 === 0 && client.peer1 === 0 && client.peer2 === 0xffff);
}

/** First word of a client's network. */
export function networkFirst(client: PeerAddress): number {
  return client.peerFamily === INET6 && isIpv4(client) ? client.peer3 : client.peer0;
}

/** Second word of a client's network; 0 for IPv4. */
export function networkSecond(client: PeerAddress): number {
  return isIpv4(client) ? 0 : client.peer1;
}
