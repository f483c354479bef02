// Writing texts, numbers and addresses into memory, without making strings.
// Hot module: no allocation. Every function returns the offset after what it wrote.

import { Family } from '../ffi/sockaddr.ts';
import type { PeerAddress } from './connection.ts';

const encoder = new TextEncoder();

/** Bytes of a text, for constants that are written often. */
export function bytesOf(text: string): Uint8Array {
  return encoder.encode(text);
}

/** Copies prepared bytes. A plain loop: the texts are short, and a native call costs more. */
export function putBytes(memory: Uint8Array, at: number, bytes: Uint8Array): number {
  for (let i = 0; i < bytes.length; i++) memory[at + i] = bytes[i];
  return at + bytes.length;
}

/** Copies bytes that already lie in the same memory. */
export function putRange(memory: Uint8Array, at: number, start: number, length: number): number {
  if (length > 48) memory.copyWithin(at, start, start + length);
  else for (let i = 0; i < length; i++) memory[at + i] = memory[start + i];
  return at + length;
}

/** Writes a whole number >= 0 in decimal. */
export function putDecimal(memory: Uint8Array, at: number, value: number): number {
  let digits = 1;
  for (let bound = 10; bound <= value; bound *= 10) digits++;
  for (let i = at + digits - 1; i >= at; i--) {
    const rest = Math.floor(value / 10);
    memory[i] = 48 + (value - rest * 10);
    value = rest;
  }
  return at + digits;
}

/** Writes the address of a peer as text: dotted IPv4, or IPv6 in the form of RFC 5952 §4. */
export function putPeer(memory: Uint8Array, at: number, peer: PeerAddress): number {
  if (peer.peerFamily === Family.INET) return putIpv4(memory, at, peer.peer0);
  if (peer.peerFamily !== Family.INET6) return putBytes(memory, at, unknownPeer);
  // IPv4-mapped addresses (RFC 4291 §2.5.5.2) are written as the IPv4 address they are.
  if (peer.peer0 === 0 && peer.peer1 === 0 && peer.peer2 === 0xffff) return putIpv4(memory, at, peer.peer3);
  return putIpv6(memory, at, peer);
}

/** Longest text that `putPeer` writes. */
export const PEER_TEXT_BYTES_MAX = 45;

const unknownPeer = bytesOf('unknown');

function putIpv4(memory: Uint8Array, at: number, word: number): number {
  at = putDecimal(memory, at, word >>> 24);
  memory[at++] = 46;
  at = putDecimal(memory, at, (word >>> 16) & 255);
  memory[at++] = 46;
  at = putDecimal(memory, at, (word >>> 8) & 255);
  memory[at++] = 46;
  return putDecimal(memory, at, word & 255);
}

function putIpv6(memory: Uint8Array, at: number, peer: PeerAddress): number {
  let zerosStart = -1;
  let zerosLength = 1;
  for (let i = 0; i < 8; i++) {
    let length = 0;
    while (i + length < 8 && group(peer, i + length) === 0) length++;
    if (length > zerosLength) {
      zerosStart = i;
      zerosLength = length;
    }
  }
  for (let i = 0; i < 8; i++) {
    if (i === zerosStart) {
      memory[at++] = 58;
      if (i === 0) memory[at++] = 58;
      i += zerosLength - 1;
      continue;
    }
    at = putHex(memory, at, group(peer, i));
    if (i < 7) memory[at++] = 58;
  }
  return at;
}

function group(peer: PeerAddress, index: number): number {
  const word = index < 2 ? peer.peer0 : index < 4 ? peer.peer1 : index < 6 ? peer.peer2 : peer.peer3;
  return (index & 1) === 0 ? word >>> 16 : word & 0xffff;
}

function putHex(memory: Uint8Array, at: number, value: number): number {
  let started = false;
  for (let shift = 12; shift >= 0; shift -= 4) {
    const digit = (value >>> shift) & 15;
    if (digit === 0 && !started && shift > 0) continue;
    started = true;
    memory[at++] = hexDigits[digit];
  }
  return at;
}

const hexDigits = bytesOf('0123456789abcdef');

/** Writes the lowest `digits` hexadecimal digits of a 32-bit word, lower case. */
export function putHexWord(memory: Uint8Array, at: number, word: number, digits: number): number {
  for (let i = digits - 1; i >= 0; i--) {
    memory[at + i] = hexDigits[word & 15];
    word >>>= 4;
  }
  return at + digits;
}
