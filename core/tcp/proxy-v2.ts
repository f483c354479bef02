// Version 2 of the PROXY header, binary, read and written.
//
//   12 bytes prefix | version, command | family, transport | length (2) | addresses | additional fields
//
// Stateless. Hot module: no allocation.
// Spec: https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt (§2.2).

import { Family } from '../ffi/sockaddr.ts';
import type { PeerAddress } from '../io/connection.ts';
import {
  bothKnown,
  fitsIpv4,
  ipv4Word,
  PREFIX_V2,
  putText,
  readUint16,
  readWord,
  V2_HEADER_BYTES as V2_HEADER,
  wordAsIpv6,
  writeUint16,
  writeWord,
} from './proxy-bytes.ts';
import { ProxyError } from './proxy-errors.ts';
import { ProxyCommand, ProxyFamily, type ProxyHeader, type ProxyTlvs, ProxyTransport } from './proxy-header.ts';
import { CHECKSUM_TLV_BYTES as CHECKSUM_TLV, parseTlvs, putChecksum, putTlvs, tlvBytesMax } from './proxy-tlvs.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { INET, INET6 } = Family;
const { VERSION_UNKNOWN, COMMAND_UNKNOWN, FAMILY_UNKNOWN, TOO_LARGE, ADDRESSES_TRUNCATED } = ProxyError;
const { LOCAL, PROXY } = ProxyCommand;
const { STREAM } = ProxyTransport;
const UNIX = ProxyFamily.UNIX;
const V2_HEADER_BYTES = V2_HEADER;
const CHECKSUM_TLV_BYTES = CHECKSUM_TLV;

/** Longest header of version 2 that is accepted, its first 16 bytes included. */
export const PROXY_V2_BYTES_MAX = 4096;

/** Upper halves of the bytes 12 (version) and 13 (family). */
const VERSION_2 = 0x20;
const FAMILY_INET = 0x10;
const FAMILY_INET6 = 0x20;
const V2_INET_BYTES = 12;
const V2_INET6_BYTES = 36;
const V2_UNIX_BYTES = 216;

// -- reading -------------------------------------------------------------------------

/** Bytes of the addresses for a family and transport byte; -1: not defined, 0: not specified. */
function addressBytes(familyTransport: number): number {
  const family = familyTransport >> 4;
  const transport = familyTransport & 15;
  if (family > 3 || transport > 2) return -1;
  if (family === 0 || transport === 0) return 0;
  return family === 1 ? V2_INET_BYTES : family === 2 ? V2_INET6_BYTES : V2_UNIX_BYTES;
}

/**
 * Parses the header that starts at `offset`, its prefix known to be there; what is before `end` has arrived.
 * Returns what `parseProxyHeader` does.
 */
export function parseProxyV2(memory: Uint8Array, offset: number, end: number, result: ProxyHeader): number {
  if (offset + V2_HEADER_BYTES > end) {
    result.bytesNeeded = V2_HEADER_BYTES;
    return 0;
  }
  const versionCommand = memory[offset + 12];
  if (versionCommand >> 4 !== 2) return -VERSION_UNKNOWN;
  const command = versionCommand & 15;
  if (command !== LOCAL && command !== PROXY) return -COMMAND_UNKNOWN;
  const familyTransport = memory[offset + 13];
  const addresses = command === LOCAL ? 0 : addressBytes(familyTransport);
  if (addresses < 0) return -FAMILY_UNKNOWN;
  const size = V2_HEADER_BYTES + readUint16(memory, offset + 14);
  if (size > PROXY_V2_BYTES_MAX) return -TOO_LARGE;
  if (size < V2_HEADER_BYTES + addresses) return -ADDRESSES_TRUNCATED;
  if (offset + size > end) {
    result.bytesNeeded = size;
    return 0;
  }
  result.version = 2;
  result.command = command;
  if (addresses === 0) return size;

  result.transport = familyTransport & 15;
  const at = offset + V2_HEADER_BYTES;
  if (addresses === V2_INET_BYTES) readBinaryIpv4(memory, at, result);
  else if (addresses === V2_INET6_BYTES) readBinaryIpv6(memory, at, result);
  else result.family = UNIX;
  const error = parseTlvs(memory, offset, at + addresses, offset + size, result.tlvs);
  return error !== 0 ? error : size;
}

function readBinaryIpv4(memory: Uint8Array, at: number, result: ProxyHeader): void {
  const { source, destination } = result;
  result.family = INET;
  source.peerFamily = INET;
  destination.peerFamily = INET;
  source.peer0 = readWord(memory, at);
  destination.peer0 = readWord(memory, at + 4);
  source.peerPort = readUint16(memory, at + 8);
  destination.peerPort = readUint16(memory, at + 10);
}

function readBinaryIpv6(memory: Uint8Array, at: number, result: ProxyHeader): void {
  const { source, destination } = result;
  result.family = INET6;
  readIpv6Words(memory, at, source);
  readIpv6Words(memory, at + 16, destination);
  source.peerPort = readUint16(memory, at + 32);
  destination.peerPort = readUint16(memory, at + 34);
}

function readIpv6Words(memory: Uint8Array, at: number, out: PeerAddress): void {
  out.peerFamily = INET6;
  out.peer0 = readWord(memory, at);
  out.peer1 = readWord(memory, at + 4);
  out.peer2 = readWord(memory, at + 8);
  out.peer3 = readWord(memory, at + 12);
}

// -- writing -------------------------------------------------------------------------

/**
 * Writes the header of version 2 for a TCP connection with the fields of `tlvs` (null: none), whose
 * ranges lie in the same memory outside the room written to; returns the offset after it.
 *
 * Families as in `writeProxyV1`. When an address is not known, that is a LOCAL header without fields:
 * PROXY with AF_UNSPEC would say more, but receivers may refuse it, and HAProxy 2.6 does. The result is
 * at most `proxyV2BytesMax(tlvs)` long, for which the caller has room.
 */
export function writeProxyV2(
  memory: Uint8Array,
  at: number,
  source: PeerAddress,
  destination: PeerAddress,
  tlvs: ProxyTlvs | null,
): number {
  if (!bothKnown(source, destination)) return writeProxyV2Local(memory, at);
  const ipv4 = fitsIpv4(source) && fitsIpv4(destination);
  const header = at;
  at = putText(memory, at, PREFIX_V2);
  memory[at] = VERSION_2 | PROXY;
  memory[at + 1] = (ipv4 ? FAMILY_INET : FAMILY_INET6) | STREAM;
  at = header + V2_HEADER_BYTES;
  if (ipv4) {
    at = writeWord(memory, at, ipv4Word(source));
    at = writeWord(memory, at, ipv4Word(destination));
  } else {
    for (let index = 0; index < 4; index++) at = writeWord(memory, at, wordAsIpv6(source, index));
    for (let index = 0; index < 4; index++) at = writeWord(memory, at, wordAsIpv6(destination, index));
  }
  at = writeUint16(memory, at, source.peerPort);
  at = writeUint16(memory, at, destination.peerPort);
  if (tlvs !== null) at = putTlvs(memory, at, tlvs);
  const end = tlvs?.checksum === true ? at + CHECKSUM_TLV_BYTES : at;
  writeUint16(memory, header + 14, end - header - V2_HEADER_BYTES);
  // Over all that is there, the length included.
  if (end > at) putChecksum(memory, header, at);
  return end;
}

/** Writes the 16 bytes of a version 2 header for a connection of our own: a health check. */
export function writeProxyV2Local(memory: Uint8Array, at: number): number {
  at = putText(memory, at, PREFIX_V2);
  memory[at] = VERSION_2 | LOCAL;
  memory[at + 1] = 0;
  return writeUint16(memory, at + 2, 0);
}

/** Upper bound of what `writeProxyV2` writes; must be at most 65551, the longest header there is. */
export function proxyV2BytesMax(tlvs: ProxyTlvs | null): number {
  return V2_HEADER_BYTES + V2_INET6_BYTES + (tlvs === null ? 0 : tlvBytesMax(tlvs));
}
