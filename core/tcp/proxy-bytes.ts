// What both versions of the PROXY header are made of: how they begin, numbers in network order, and the addresses of a
// connection in the form in which they are sent.
// Stateless. Hot module: no allocation.
// Spec: https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt (§2.1, §2.2).

import { Family } from '../ffi/sockaddr.ts';
import type { PeerAddress } from '../io/connection.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { INET, INET6 } = Family;

/** What a line of version 1 begins with (§2.1). */
export const PREFIX_V1: Uint8Array = new TextEncoder().encode('PROXY ');

/** What a header of version 2 begins with (§2.2). */
export const PREFIX_V2: Uint8Array = new Uint8Array([
  0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a,
]);

/** Bytes of a header of version 2 before its addresses. */
export const V2_HEADER_BYTES = 16;

export function readUint16(memory: Uint8Array, at: number): number {
  return (memory[at] << 8) | memory[at + 1];
}

export function readWord(memory: Uint8Array, at: number): number {
  return (memory[at] << 24) | (memory[at + 1] << 16) | (memory[at + 2] << 8) | memory[at + 3];
}

export function writeUint16(memory: Uint8Array, at: number, value: number): number {
  memory[at] = value >>> 8;
  memory[at + 1] = value;
  return at + 2;
}

export function writeWord(memory: Uint8Array, at: number, value: number): number {
  return writeUint16(memory, writeUint16(memory, at, value >>> 16), value);
}

/** Whether [at, end) starts with `text`: 1, 0 as far as it goes, or -1. */
export function startsWith(memory: Uint8Array, at: number, end: number, text: Uint8Array): number {
  for (let i = 0; i < text.length; i++) {
    if (at + i >= end) return 0;
    if (memory[at + i] !== text[i]) return -1;
  }
  return 1;
}

export function putText(memory: Uint8Array, at: number, text: Uint8Array): number {
  for (let i = 0; i < text.length; i++) memory[at + i] = text[i];
  return at + text.length;
}

/** Whether both addresses are known, so that they can be sent. */
export function bothKnown(source: PeerAddress, destination: PeerAddress): boolean {
  return isIp(source.peerFamily) && isIp(destination.peerFamily);
}

function isIp(family: number): boolean {
  return family === INET || family === INET6;
}

/** The words of an address as IPv6: IPv4 becomes IPv4-mapped (RFC 4291 §2.5.5.2). */
export function wordAsIpv6(address: PeerAddress, index: number): number {
  if (address.peerFamily === INET) return index === 3 ? address.peer0 : index === 2 ? 0xffff : 0;
  return index === 0 ? address.peer0 : index === 1 ? address.peer1 : index === 2 ? address.peer2 : address.peer3;
}

/** An IPv4-mapped address or an IPv4 address: it can be sent as IPv4, which every receiver knows. */
export function fitsIpv4(address: PeerAddress): boolean {
  return (
    address.peerFamily === INET ||
    (address.peerFamily === INET6 && address.peer0 === 0 && address.peer1 === 0 && address.peer2 === 0xffff)
  );
}

/** The address as IPv4, of one that fits. */
export function ipv4Word(address: PeerAddress): number {
  return address.peerFamily === INET ? address.peer0 : address.peer3;
}
