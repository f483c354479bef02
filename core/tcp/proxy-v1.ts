// Version 1 of the PROXY header, a line of text, read and written.
//
//   PROXY TCP4 192.0.2.1 198.51.100.1 56324 443 CR LF
//
// Stateless, apart from scratch that no call leaves in use. Hot module: no allocation.
// Spec: https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt (§2.1).

import { Family } from '../ffi/sockaddr.ts';
import type { PeerAddress } from '../io/connection.ts';
import { bothKnown, fitsIpv4, ipv4Word, PREFIX_V1, putText, startsWith, wordAsIpv6 } from './proxy-bytes.ts';
import { ProxyError } from './proxy-errors.ts';
import { ProxyCommand, type ProxyHeader, ProxyTransport } from './proxy-header.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { INET, INET6 } = Family;
const { LINE_TOO_LONG, LINE_END_INVALID, PROTOCOL_UNKNOWN, ADDRESS_INVALID, PORT_INVALID } = ProxyError;
const { PROXY } = ProxyCommand;
const { STREAM } = ProxyTransport;
const PREFIX_BYTES = PREFIX_V1.length;

/** Longest line of version 1 with its line end (§2.1). */
export const PROXY_V1_BYTES_MAX = 107;
/** Shortest one: `PROXY UNKNOWN`. */
export const PROXY_V1_BYTES_MIN = 15;

const encoder = new TextEncoder();
const UNKNOWN = encoder.encode('UNKNOWN');
const TCP4 = encoder.encode('TCP4 ');
const TCP6 = encoder.encode('TCP6 ');

const CR = 0x0d;
const LF = 0x0a;
const SP = 0x20;
const DOT = 0x2e;
const DIGIT_0 = 0x30;
const DIGIT_9 = 0x39;
const COLON = 0x3a;

/** Groups of the IPv6 address being read. */
const groups = new Uint16Array(8);

// -- reading -------------------------------------------------------------------------

/**
 * Parses the line that starts at `offset`, its "PROXY " known to be there; what is before `end` has arrived.
 * Returns what `parseProxyHeader` does.
 */
export function parseProxyV1(memory: Uint8Array, offset: number, end: number, result: ProxyHeader): number {
  // No address is read before the line is whole (§2.1).
  const limit = offset + PROXY_V1_BYTES_MAX;
  let lineEnd = (offset + PREFIX_BYTES) | 0;
  while (lineEnd < end && lineEnd < limit && memory[lineEnd] !== CR && memory[lineEnd] !== LF) lineEnd++;
  if (lineEnd + 1 >= limit) return -LINE_TOO_LONG;
  if (lineEnd < end && memory[lineEnd] === LF) return -LINE_END_INVALID;
  if (lineEnd + 1 >= end) {
    // Either the line feed is missing, or at least both bytes of the line end.
    result.bytesNeeded = lineEnd - offset + 2;
    return 0;
  }
  if (memory[lineEnd + 1] !== LF) return -LINE_END_INVALID;
  result.version = 1;
  result.command = PROXY;
  const error = parseLineFields(memory, offset + PREFIX_BYTES, lineEnd, result);
  return error !== 0 ? error : lineEnd + 2 - offset;
}

/** Parses what is between "PROXY " and the line end: 0, or -(ProxyError). */
function parseLineFields(memory: Uint8Array, at: number, end: number, result: ProxyHeader): number {
  if (startsWith(memory, at, end, UNKNOWN) > 0) {
    const after = at + UNKNOWN.length;
    return after === end || memory[after] === SP ? 0 : -PROTOCOL_UNKNOWN;
  }
  const ipv4 = startsWith(memory, at, end, TCP4) > 0;
  if (!ipv4 && startsWith(memory, at, end, TCP6) <= 0) return -PROTOCOL_UNKNOWN;
  const { source, destination } = result;
  let i = readAddress(memory, at + TCP4.length, end, ipv4, source);
  if (i < 0) return -ADDRESS_INVALID;
  i = readAddress(memory, i, end, ipv4, destination);
  if (i < 0) return -ADDRESS_INVALID;
  let fieldEnd = wordEnd(memory, i, end);
  source.peerPort = readPort(memory, i, fieldEnd);
  if (source.peerPort < 0 || fieldEnd === end) return -PORT_INVALID;
  i = fieldEnd + 1;
  fieldEnd = wordEnd(memory, i, end);
  destination.peerPort = readPort(memory, i, fieldEnd);
  if (destination.peerPort < 0 || fieldEnd !== end) return -PORT_INVALID;
  result.family = source.peerFamily;
  result.transport = STREAM;
  return 0;
}

/** Where the next space in [at, end) is, or `end`. */
function wordEnd(memory: Uint8Array, at: number, end: number): number {
  while (at < end && memory[at] !== SP) at++;
  return at;
}

/** Reads an address that a space follows: the offset after that space, or -1. */
function readAddress(memory: Uint8Array, at: number, end: number, ipv4: boolean, out: PeerAddress): number {
  const fieldEnd = wordEnd(memory, at, end);
  if (fieldEnd === end) return -1;
  if (ipv4) {
    if (!readIpv4Groups(memory, at, fieldEnd, 0)) return -1;
    out.peerFamily = INET;
    out.peer0 = (groups[0] << 16) | groups[1];
    return fieldEnd + 1;
  }
  if (!readIpv6(memory, at, fieldEnd)) return -1;
  out.peerFamily = INET6;
  out.peer0 = (groups[0] << 16) | groups[1];
  out.peer1 = (groups[2] << 16) | groups[3];
  out.peer2 = (groups[4] << 16) | groups[5];
  out.peer3 = (groups[6] << 16) | groups[7];
  return fieldEnd + 1;
}

/** Reads all of [at, end) as a number to 65535 without leading zeros, or -1. */
function readPort(memory: Uint8Array, at: number, end: number): number {
  const digits = end - at;
  if (digits === 0 || digits > 5 || (digits > 1 && memory[at] === DIGIT_0)) return -1;
  let port = 0;
  for (; at < end; at++) {
    if (memory[at] < DIGIT_0 || memory[at] > DIGIT_9) return -1;
    port = port * 10 + memory[at] - DIGIT_0;
  }
  return port <= 0xffff ? port : -1;
}

/** Reads all of [at, end) as dotted IPv4 without leading zeros, into groups `to` and `to + 1`. */
function readIpv4Groups(memory: Uint8Array, at: number, end: number, to: number): boolean {
  let word = 0;
  let i = at;
  for (let octets = 0; octets < 4; octets++) {
    if (octets > 0 && (i >= end || memory[i++] !== DOT)) return false;
    const start = i;
    let octet = 0;
    while (i < end && memory[i] >= DIGIT_0 && memory[i] <= DIGIT_9) {
      if (i - start === 3) return false;
      octet = octet * 10 + memory[i++] - DIGIT_0;
    }
    if (i === start || octet > 255 || (i - start > 1 && memory[start] === DIGIT_0)) return false;
    word = (word << 8) | octet;
  }
  if (i !== end) return false;
  groups[to] = word >>> 16;
  groups[to + 1] = word;
  return true;
}

/** Value of a hexadecimal digit, or -1. */
function hexDigit(byte: number): number {
  if (byte >= DIGIT_0 && byte <= DIGIT_9) return byte - DIGIT_0;
  const lower = byte | 0x20;
  return lower >= 0x61 && lower <= 0x66 ? lower - 0x57 : -1;
}

/** Reads all of [at, end) as an IPv6 address (RFC 4291 §2.2) into `groups`. */
function readIpv6(memory: Uint8Array, at: number, end: number): boolean {
  let count = 0;
  // Groups before the "::"; -1: none yet.
  let gap = -1;
  let i = at;
  if (i < end && memory[i] === COLON) {
    // Only a "::" may begin with a colon; its second one is seen below.
    if (i + 1 >= end || memory[i + 1] !== COLON) return false;
    i++;
  } else if (i === end) {
    return false;
  }
  for (;;) {
    if (i < end && memory[i] === COLON && (i > at || count > 0)) {
      // The second colon of a "::".
      if (gap >= 0) return false;
      gap = count;
      if (++i === end) break;
    }
    if (count === 8) return false;
    const start = i;
    let group = 0;
    let digit = 0;
    while (i < end && (digit = hexDigit(memory[i])) >= 0) {
      if (i - start === 4) return false;
      group = (group << 4) | digit;
      i++;
    }
    if (i < end && memory[i] === DOT) {
      if (count > 6 || !readIpv4Groups(memory, start, end, count)) return false;
      count += 2;
      break;
    }
    if (i === start) return false;
    groups[count++] = group;
    if (i === end) break;
    // A colon, and after it another colon or a group.
    if (memory[i] !== COLON || i + 1 === end) return false;
    i++;
  }
  if (gap < 0) return count === 8;
  // A "::" stands for at least one group.
  if (count === 8) return false;
  groups.copyWithin(8 - (count - gap), gap, count);
  groups.fill(0, gap, 8 - (count - gap));
  return true;
}

// -- writing -------------------------------------------------------------------------

/** Writes a number of 0 to 65535 in decimal. */
function putDecimal(memory: Uint8Array, at: number, value: number): number {
  let unit = 10_000;
  while (unit > 1 && unit > value) unit = (unit / 10) | 0;
  while (unit > 0) {
    const digit = (value / unit) | 0;
    memory[at++] = DIGIT_0 + digit;
    value -= digit * unit;
    unit = (unit / 10) | 0;
  }
  return at;
}

function putIpv4(memory: Uint8Array, at: number, word: number): number {
  for (let shift = 24; shift >= 0; shift -= 8) {
    at = putDecimal(memory, at, (word >>> shift) & 255);
    if (shift > 0) memory[at++] = DOT;
  }
  return at;
}

/** Writes an address as eight groups of hexadecimal digits: §2.1 asks for no particular compression. */
function putIpv6(memory: Uint8Array, at: number, address: PeerAddress): number {
  for (let index = 0; index < 8; index++) {
    const word = wordAsIpv6(address, index >> 1);
    const group = (index & 1) === 0 ? word >>> 16 : word & 0xffff;
    if (index > 0) memory[at++] = COLON;
    let shift = 12;
    while (shift > 0 && group >>> shift === 0) shift -= 4;
    for (; shift >= 0; shift -= 4) {
      const digit = (group >>> shift) & 15;
      memory[at++] = digit < 10 ? DIGIT_0 + digit : 0x57 + digit;
    }
  }
  return at;
}

/**
 * Writes the line of version 1 for a TCP connection, at most PROXY_V1_BYTES_MAX bytes, and returns the
 * offset after it. TCP4 when both addresses are IPv4 or IPv4-mapped, else TCP6 (an IPv4 one
 * becomes IPv4-mapped); UNKNOWN when one of them is not known.
 */
export function writeProxyV1(memory: Uint8Array, at: number, source: PeerAddress, destination: PeerAddress): number {
  at = putText(memory, at, PREFIX_V1);
  if (!bothKnown(source, destination)) {
    at = putText(memory, at, UNKNOWN);
  } else {
    const ipv4 = fitsIpv4(source) && fitsIpv4(destination);
    at = putText(memory, at, ipv4 ? TCP4 : TCP6);
    at = ipv4 ? putIpv4(memory, at, ipv4Word(source)) : putIpv6(memory, at, source);
    memory[at++] = SP;
    at = ipv4 ? putIpv4(memory, at, ipv4Word(destination)) : putIpv6(memory, at, destination);
    memory[at++] = SP;
    at = putDecimal(memory, at, source.peerPort);
    memory[at++] = SP;
    at = putDecimal(memory, at, destination.peerPort);
  }
  memory[at++] = CR;
  memory[at++] = LF;
  return at;
}
