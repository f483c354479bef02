// Writing texts, numbers and addresses into memory, without making strings.
//
// Constant texts are kept as 8-byte words and stored a word at a time: they are written several
// times per request, and a call into the engine's own copy costs more than they do. The last word
// may spill up to 7 bytes beyond the text, so callers write forwards and leave room at the end.
// (An ASCII text is never the bit pattern of a NaN, which an engine might change in passing.)
// Hot module: no allocation. Every function returns the offset after what it wrote.

import { Family } from '../ffi/sockaddr.ts';
import type { PeerAddress } from './connection.ts';

const encoder = new TextEncoder();

/** No bytes: stands for a text that is absent. */
export const noBytes = new Uint8Array(0);

/** Bytes that a text or number may spill beyond its end. */
export const SPILL_BYTES = 8;

/** A constant text, prepared for `putText`. */
export class Text {
  readonly length: number;
  readonly bytes: Uint8Array;
  readonly words: Float64Array;

  /** Throws for a text that is not ASCII: its words could be NaNs. */
  constructor(text: string) {
    const bytes = encoder.encode(text);
    if (bytes.some((byte) => byte > 0x7e)) throw new Error(`"${text}" is not ASCII`);
    this.length = bytes.length;
    this.words = new Float64Array(Math.ceil(bytes.length / 8));
    this.bytes = new Uint8Array(this.words.buffer);
    this.bytes.set(bytes);
  }
}

/** Writes a constant text. Spills: see above. */
export function putText(view: DataView, at: number, text: Text): number {
  const { words } = text;
  for (let i = 0; i < words.length; i++) view.setFloat64(at + i * 8, words[i], true);
  return at + text.length;
}

/** Writes a line end. */
export function putLineEnd(view: DataView, at: number): number {
  view.setUint16(at, 0x0a0d, true);
  return at + 2;
}

/** Copies prepared bytes, exactly as many as there are. */
export function putBytes(memory: Uint8Array, at: number, bytes: Uint8Array): number {
  for (let i = 0; i < bytes.length; i++) memory[at + i] = bytes[i];
  return at + bytes.length;
}

/** Copies bytes that already lie in the same memory, to a range that does not start inside the source. */
export function putRange(memory: Uint8Array, at: number, start: number, length: number): number {
  if (length > 24) memory.copyWithin(at, start, start + length);
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

/** Writes the address of a peer as text: dotted IPv4, or IPv6 in the form of RFC 5952 §4. Spills. */
export function putPeer(view: DataView, at: number, peer: PeerAddress): number {
  if (peer.peerFamily === Family.INET) return putIpv4(view, at, peer.peer0);
  if (peer.peerFamily !== Family.INET6) return putText(view, at, unknownPeer);
  // IPv4-mapped addresses (RFC 4291 §2.5.5.2) are written as the IPv4 address they are.
  if (peer.peer0 === 0 && peer.peer1 === 0 && peer.peer2 === 0xffff) return putIpv4(view, at, peer.peer3);
  return putIpv6(view, at, peer);
}

/** Longest text that `putPeer` writes. */
export const PEER_TEXT_BYTES_MAX = 45;

const unknownPeer = new Text('unknown');

/** Text of each octet with a dot behind it, and its length with the dot. */
const octetWords = new Int32Array(256);
const octetLengths = new Uint8Array(256);
for (let octet = 0; octet < 256; octet++) {
  const bytes = encoder.encode(`${octet}.`);
  octetLengths[octet] = bytes.length;
  bytes.forEach((byte, index) => {
    octetWords[octet] |= byte << (index * 8);
  });
}

function putIpv4(view: DataView, at: number, word: number): number {
  for (let shift = 24; shift >= 0; shift -= 8) {
    const octet = (word >>> shift) & 255;
    view.setInt32(at, octetWords[octet], true);
    at += octetLengths[octet];
  }
  return at - 1;
}

function putIpv6(view: DataView, at: number, peer: PeerAddress): number {
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
      view.setUint8(at++, 58);
      if (i === 0) view.setUint8(at++, 58);
      i += zerosLength - 1;
      continue;
    }
    at = putHexGroup(view, at, group(peer, i));
    if (i < 7) view.setUint8(at++, 58);
  }
  return at;
}

function group(peer: PeerAddress, index: number): number {
  const word = index < 2 ? peer.peer0 : index < 4 ? peer.peer1 : index < 6 ? peer.peer2 : peer.peer3;
  return (index & 1) === 0 ? word >>> 16 : word & 0xffff;
}

/** A group without leading zeros. */
function putHexGroup(view: DataView, at: number, value: number): number {
  let started = false;
  for (let shift = 12; shift >= 0; shift -= 4) {
    const digit = (value >>> shift) & 15;
    if (digit === 0 && !started && shift > 0) continue;
    started = true;
    view.setUint8(at++, digit < 10 ? 48 + digit : 87 + digit);
  }
  return at;
}

/** Two hexadecimal digits of each byte, lower case, first digit in the lower half. */
const hexPairs = new Uint16Array(256);
for (let byte = 0; byte < 256; byte++) {
  const [high, low] = encoder.encode(byte.toString(16).padStart(2, '0'));
  hexPairs[byte] = high | (low << 8);
}

/** Writes the lowest 16 bits of a word as four hexadecimal digits, lower case. */
export function putHex16(view: DataView, at: number, word: number): number {
  view.setUint16(at, hexPairs[(word >>> 8) & 255], true);
  view.setUint16(at + 2, hexPairs[word & 255], true);
  return at + 4;
}
