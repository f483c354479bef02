// The client's address behind trusted proxies: the entry of X-Forwarded-For that the outermost
// trusted proxy added. With `hops` trusted proxies in front, that is the entry `hops` places before
// our own peer, which is the last one. Anything further left was written by the client.
// Hot where trustedHops is configured: no allocation for IPv4.

import { encodeSockaddr, Family } from '../ffi/sockaddr.ts';
import { HeaderId } from '../http1/header-ids.ts';
import type { HeaderTable } from '../http1/header-table.ts';
import type { PeerAddress } from '../io/connection.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { X_FORWARDED_FOR } = HeaderId;

const client: PeerAddress = { peerFamily: 0, peerPort: 0, peer0: 0, peer1: 0, peer2: 0, peer3: 0 };

/**
 * Reads the client's address out of the X-Forwarded-For value at `offset` (our peer is its last
 * entry). Falls back to `peer` when there are too few entries or the entry is not an IP address.
 * The result is valid until the next call.
 */
export function readForwardedClient(
  memory: Uint8Array,
  offset: number,
  length: number,
  hops: number,
  peer: PeerAddress,
): PeerAddress {
  let end = offset + length;
  for (let skip = hops; skip > 0; skip--) {
    let comma = end - 1;
    while (comma >= offset && memory[comma] !== 44) comma--;
    if (comma < offset) return peer;
    end = comma;
  }
  let start = end;
  while (start > offset && memory[start - 1] !== 44) start--;
  while (start < end && (memory[start] === 32 || memory[start] === 9)) start++;
  while (end > start && (memory[end - 1] === 32 || memory[end - 1] === 9)) end--;
  return readAddress(memory, start, end) ? client : peer;
}

/**
 * Reads the client's address out of the X-Forwarded-For fields of a head as it was received, to which
 * `peer` has not been added yet. `hops` is 1 or more. Otherwise like `readForwardedClient`.
 */
export function readClientOfHead(
  memory: Uint8Array,
  headers: HeaderTable,
  hops: number,
  peer: PeerAddress,
): PeerAddress {
  let ahead = hops;
  for (let field = headers.count - 1; field >= 0; field--) {
    const length = headers.valueLength(field);
    if (headers.id(field) !== X_FORWARDED_FOR || length === 0) continue;
    const offset = headers.valueOffset(field);
    let entries = 1;
    for (let i = offset; i < offset + length; i++) if (memory[i] === 44) entries++;
    if (ahead <= entries) return readForwardedClient(memory, offset, length, ahead - 1, peer);
    ahead -= entries;
  }
  return peer;
}

function readAddress(memory: Uint8Array, start: number, end: number): boolean {
  if (end - start > 45 || end === start) return false;
  let word = 0;
  let octet = -1;
  let dots = 0;
  for (let i = start; i < end; i++) {
    const byte = memory[i];
    if (byte >= 48 && byte <= 57) {
      // No IPv4 octet has a leading zero (some would read it as octal), but a group of IPv6 may.
      if (octet === 0) return readIpv6(memory, start, end);
      octet = Math.max(octet, 0) * 10 + byte - 48;
      // The first group of an IPv6 address may look like this: 2001:db8::1.
      if (octet > 255) return readIpv6(memory, start, end);
    } else if (byte === 46 && octet >= 0 && dots < 3) {
      word = (word << 8) | octet;
      octet = -1;
      dots++;
    } else {
      return readIpv6(memory, start, end);
    }
  }
  if (dots !== 3 || octet < 0) return false;
  client.peerFamily = Family.INET;
  client.peerPort = 0;
  client.peer0 = (word << 8) | octet;
  return true;
}

function readIpv6(memory: Uint8Array, start: number, end: number): boolean {
  if (memory[start] === 91 && memory[end - 1] === 93) return readIpv6(memory, start + 1, end - 1);
  let text = '';
  for (let i = start; i < end; i++) text += String.fromCharCode(memory[i]);
  const sockaddr = encodeSockaddr(text, 0);
  if (sockaddr === undefined || sockaddr.length < 24) return false;
  const view = new DataView(sockaddr.buffer);
  client.peerFamily = Family.INET6;
  client.peerPort = 0;
  client.peer0 = view.getInt32(8);
  client.peer1 = view.getInt32(12);
  client.peer2 = view.getInt32(16);
  client.peer3 = view.getInt32(20);
  return true;
}
