// The PROXY protocol, versions 1 (text) and 2 (binary): who the client of a load balancer in front is,
// and the same said to a backend. The header precedes everything else on a connection.
//
// Nothing here decides whether a header is expected: that is configuration, because a client that may
// choose could name any address. Everything that does not match the protocol is an error, after which
// the connection has to be closed.
// Stateless, apart from scratch that no call leaves in use. Hot module: no allocation.
// Spec: https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt (§2.1 version 1, §2.2 version 2).

import { Family } from '../ffi/sockaddr.ts';
import type { PeerAddress } from '../io/connection.ts';

const { INET, INET6 } = Family;

/** Longest line of version 1 with its line end (§2.1). */
export const PROXY_V1_BYTES_MAX = 107;

/** Longest header of version 2 that is accepted, its first 16 bytes included. */
export const PROXY_V2_BYTES_MAX = 4096;

/** What can be wrong with a PROXY header. Appended to only: the numbers reach logs and counters. */
export const ProxyError = {
  NOT_PROXY: 1,
  LINE_TOO_LONG: 2,
  LINE_END_INVALID: 3,
  PROTOCOL_UNKNOWN: 4,
  ADDRESS_INVALID: 5,
  PORT_INVALID: 6,
  VERSION_UNKNOWN: 7,
  COMMAND_UNKNOWN: 8,
  FAMILY_UNKNOWN: 9,
  TOO_LARGE: 10,
  ADDRESSES_TRUNCATED: 11,
  TLV_MALFORMED: 12,
  TLV_DUPLICATE: 13,
  CHECKSUM_WRONG: 14,
} as const;

/** Name of a PROXY error, as in `ProxyError`. */
export type ProxyErrorName = keyof typeof ProxyError;

const { NOT_PROXY, LINE_TOO_LONG, LINE_END_INVALID, PROTOCOL_UNKNOWN, ADDRESS_INVALID, PORT_INVALID } = ProxyError;
const { VERSION_UNKNOWN, COMMAND_UNKNOWN, FAMILY_UNKNOWN, TOO_LARGE, ADDRESSES_TRUNCATED } = ProxyError;
const { TLV_MALFORMED, TLV_DUPLICATE, CHECKSUM_WRONG } = ProxyError;

const sentences: Record<ProxyErrorName, string> = {
  NOT_PROXY: 'The connection does not start with a PROXY protocol header.',
  LINE_TOO_LONG: 'The PROXY line does not end within 107 bytes.',
  LINE_END_INVALID: 'The PROXY line does not end in a carriage return and a line feed.',
  PROTOCOL_UNKNOWN: 'The PROXY line names neither TCP4, TCP6 nor UNKNOWN.',
  ADDRESS_INVALID: 'The PROXY line holds a malformed address.',
  PORT_INVALID: 'The PROXY line holds a malformed port.',
  VERSION_UNKNOWN: 'The binary PROXY header has a version other than 2.',
  COMMAND_UNKNOWN: 'The binary PROXY header has a command other than LOCAL and PROXY.',
  FAMILY_UNKNOWN: 'The binary PROXY header has an address family or a transport that is not defined.',
  TOO_LARGE: 'The binary PROXY header is larger than the limit.',
  ADDRESSES_TRUNCATED: 'The binary PROXY header is too short for its addresses.',
  TLV_MALFORMED: 'The binary PROXY header holds a TLV whose length does not fit.',
  TLV_DUPLICATE: 'The binary PROXY header holds a TLV twice.',
  CHECKSUM_WRONG: 'The checksum of the binary PROXY header is wrong.',
};

const names: ProxyErrorName[] = [];
for (const name of Object.keys(sentences) as ProxyErrorName[]) names[ProxyError[name]] = name;

/** Name of an error number, such as `NOT_PROXY`; `UNKNOWN` for a number that is none. */
export function proxyErrorName(error: number): ProxyErrorName | 'UNKNOWN' {
  return names[error] ?? 'UNKNOWN';
}

/** One plain sentence for logs. */
export function proxyErrorSentence(error: number): string {
  const name = names[error];
  return name === undefined ? 'Unknown PROXY protocol error.' : sentences[name];
}

/** Whose connection it is (§2.2). */
export const ProxyCommand = {
  /** The sender's own, a health check for instance: the connection's real addresses count. */
  LOCAL: 0,
  /** Somebody else's, whom the sender relays. */
  PROXY: 1,
} as const;

/** Address family of a PROXY header that is neither Family.INET nor Family.INET6. */
export const ProxyFamily = {
  /** Not said (LOCAL, UNKNOWN, AF_UNSPEC): the connection's real addresses count. */
  NONE: 0,
  /** Unix sockets (AF_UNIX of sys/socket.h): likewise. */
  UNIX: 1,
} as const;

/** Transport of the relayed connection (§2.2). */
export const ProxyTransport = { NONE: 0, STREAM: 1, DGRAM: 2 } as const;

/** Bits of `ProxyTlvs.sslClient` (§2.2.6). */
export const SslClient = {
  /** The client used TLS. */
  SSL: 1,
  /** It presented a certificate on this connection. */
  CERT_CONN: 2,
  /** It presented a certificate at least once in the TLS session. */
  CERT_SESS: 4,
} as const;

/** A run of bytes in memory. */
export class ByteRange {
  /** -1: absent. */
  offset = -1;
  length = 0;

  /** Makes the range absent. */
  clear(): void {
    this.offset = -1;
    this.length = 0;
  }

  /** Makes it [offset, offset + length). */
  set(offset: number, length: number): void {
    this.offset = offset;
    this.length = length;
  }
}

/**
 * The additional fields of version 2 (§2.2.1 to §2.2.7), as positions in memory; valid as long as the
 * bytes that were parsed. The same object says what `writeProxyV2` adds.
 */
export class ProxyTlvs {
  /** Application protocol, as in ALPN. */
  readonly alpn = new ByteRange();
  /** Host name the client asked for, UTF-8: its SNI. As sent: neither checked nor in lower case. */
  readonly authority = new ByteRange();
  /** Opaque identifier of the connection, up to 128 bytes. */
  readonly uniqueId = new ByteRange();
  /** Name of a network namespace, ASCII. */
  readonly netns = new ByteRange();
  /** The SSL TLV is there, and with it `sslClient`, `sslVerify` and some of the ranges below. */
  ssl = false;
  /** Bits of `SslClient`. */
  sslClient = 0;
  /** 0: the client presented a certificate and it was verified. A signed 32-bit number. */
  sslVerify = 0;
  /** TLS version such as `TLSv1.3`. */
  readonly sslVersion = new ByteRange();
  /** Common name of the client's certificate, UTF-8. */
  readonly sslCommonName = new ByteRange();
  /** Cipher, and the algorithms of the server certificate's signature and key. */
  readonly sslCipher = new ByteRange();
  readonly sslSignature = new ByteRange();
  readonly sslKey = new ByteRange();
  /** Parsed: a CRC32C was there, and right. To write: add one. */
  checksum = false;

  /** Removes everything. */
  reset(): void {
    this.alpn.clear();
    this.authority.clear();
    this.uniqueId.clear();
    this.netns.clear();
    this.ssl = false;
    this.sslClient = 0;
    this.sslVerify = 0;
    this.sslVersion.clear();
    this.sslCommonName.clear();
    this.sslCipher.clear();
    this.sslSignature.clear();
    this.sslKey.clear();
    this.checksum = false;
  }
}

/** What a PROXY header says. */
export class ProxyHeader {
  /** After a return of 0: bytes from the header's begin that are needed to get further. A lower bound. */
  bytesNeeded = 0;
  /** 1 or 2. */
  version = 0;
  /** A ProxyCommand. UNKNOWN of version 1 is PROXY with no family. */
  command = 0;
  /** Family.INET or Family.INET6: `source` and `destination` are known; otherwise a ProxyFamily. */
  family = 0;
  /** A ProxyTransport. */
  transport = 0;
  /** The client, and the address that it connected to. `peerFamily` is `family`, or 0. */
  readonly source: PeerAddress = { peerFamily: 0, peerPort: 0, peer0: 0, peer1: 0, peer2: 0, peer3: 0 };
  readonly destination: PeerAddress = { peerFamily: 0, peerPort: 0, peer0: 0, peer1: 0, peer2: 0, peer3: 0 };
  /** Version 2 with addresses; all absent otherwise. */
  readonly tlvs = new ProxyTlvs();

  /** Back to "nothing known". */
  reset(): void {
    this.bytesNeeded = 0;
    this.version = 0;
    this.command = 0;
    this.family = 0;
    this.transport = 0;
    clearAddress(this.source);
    clearAddress(this.destination);
    this.tlvs.reset();
  }
}

const encoder = new TextEncoder();
/** §2.1 and §2.2. */
const PREFIX_V1 = encoder.encode('PROXY ');
const PREFIX_V2 = Uint8Array.of(0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a);
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

/** Upper halves of the bytes 12 (version) and 13 (family) of version 2. */
const VERSION_2 = 0x20;
const FAMILY_INET = 0x10;
const FAMILY_INET6 = 0x20;
const V2_HEADER_BYTES = 16;
const V2_INET_BYTES = 12;
const V2_INET6_BYTES = 36;
const V2_UNIX_BYTES = 216;
const TLV_HEADER_BYTES = 3;
const SSL_HEADER_BYTES = 5;
const CHECKSUM_BYTES = 4;
const UNIQUE_ID_BYTES_MAX = 128;

const TLV_ALPN = 0x01;
const TLV_AUTHORITY = 0x02;
const TLV_CRC32C = 0x03;
const TLV_UNIQUE_ID = 0x05;
const TLV_SSL = 0x20;
const TLV_SSL_VERSION = 0x21;
const TLV_SSL_COMMON_NAME = 0x22;
const TLV_SSL_CIPHER = 0x23;
const TLV_SSL_SIGNATURE = 0x24;
const TLV_SSL_KEY = 0x25;
const TLV_NETNS = 0x30;

const { LOCAL, PROXY } = ProxyCommand;
const { STREAM } = ProxyTransport;
const UNIX = ProxyFamily.UNIX;

/** Groups of the IPv6 address being read. */
const groups = new Uint16Array(8);

function clearAddress(address: PeerAddress): void {
  address.peerFamily = 0;
  address.peerPort = 0;
  address.peer0 = 0;
  address.peer1 = 0;
  address.peer2 = 0;
  address.peer3 = 0;
}

function readUint16(memory: Uint8Array, at: number): number {
  return (memory[at] << 8) | memory[at + 1];
}

function readWord(memory: Uint8Array, at: number): number {
  return (memory[at] << 24) | (memory[at + 1] << 16) | (memory[at + 2] << 8) | memory[at + 3];
}

function writeUint16(memory: Uint8Array, at: number, value: number): number {
  memory[at] = value >>> 8;
  memory[at + 1] = value;
  return at + 2;
}

function writeWord(memory: Uint8Array, at: number, value: number): number {
  return writeUint16(memory, writeUint16(memory, at, value >>> 16), value);
}

/** Whether [at, end) starts with `text`: 1, 0 as far as it goes, or -1. */
function startsWith(memory: Uint8Array, at: number, end: number, text: Uint8Array): number {
  for (let i = 0; i < text.length; i++) {
    if (at + i >= end) return 0;
    if (memory[at + i] !== text[i]) return -1;
  }
  return 1;
}

/**
 * Parses the PROXY header, of either version, that starts at `offset`; `length` bytes have arrived.
 *
 * Returns its length in bytes, 0 if more are needed (`result.bytesNeeded`), or -(ProxyError). More
 * bytes never change an answer other than 0. Reads nothing outside the range. `result` is valid
 * after a positive return only.
 *
 * The line of version 1 is taken strictly, except that an IPv6 address may end in dotted IPv4, as
 * HAProxy itself writes IPv4-mapped ones. What follows UNKNOWN is skipped, and so is the
 * whole block of version 2 after LOCAL and with an unspecified family or transport (§2.2).
 */
export function parseProxyHeader(memory: Uint8Array, offset: number, length: number, result: ProxyHeader): number {
  result.reset();
  const end = (offset + length) | 0;
  const text = startsWith(memory, offset, end, PREFIX_V1);
  if (text > 0) return parseLine(memory, offset, end, result);
  const binary = startsWith(memory, offset, end, PREFIX_V2);
  if (binary > 0) return parseBinary(memory, offset, end, result);
  if (text < 0 && binary < 0) return -NOT_PROXY;
  result.bytesNeeded = binary === 0 && text < 0 ? V2_HEADER_BYTES : PREFIX_V1.length + UNKNOWN.length + 2;
  return 0;
}

// -- version 1 ---------------------------------------------------------------------

function parseLine(memory: Uint8Array, offset: number, end: number, result: ProxyHeader): number {
  // No address is read before the line is whole (§2.1).
  const limit = offset + PROXY_V1_BYTES_MAX;
  let lineEnd = (offset + PREFIX_V1.length) | 0;
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
  const error = parseLineFields(memory, offset + PREFIX_V1.length, lineEnd, result);
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

// -- version 2 ---------------------------------------------------------------------

/** Bytes of the addresses for a family and transport byte; -1: not defined, 0: not specified. */
function addressBytes(familyTransport: number): number {
  const family = familyTransport >> 4;
  const transport = familyTransport & 15;
  if (family > 3 || transport > 2) return -1;
  if (family === 0 || transport === 0) return 0;
  return family === 1 ? V2_INET_BYTES : family === 2 ? V2_INET6_BYTES : V2_UNIX_BYTES;
}

function parseBinary(memory: Uint8Array, offset: number, end: number, result: ProxyHeader): number {
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

/** Stores a TLV that may occur once: 0, or -(ProxyError). */
function setOnce(range: ByteRange, offset: number, length: number): number {
  if (range.offset >= 0) return -TLV_DUPLICATE;
  range.set(offset, length);
  return 0;
}

/** Parses the TLVs in [at, end) of the header at `header`, which `end` ends: 0, or -(ProxyError). */
function parseTlvs(memory: Uint8Array, header: number, at: number, end: number, tlvs: ProxyTlvs): number {
  let checksumAt = -1;
  let i = at | 0;
  while (i < end) {
    if (i + TLV_HEADER_BYTES > end) return -TLV_MALFORMED;
    const type = memory[i];
    const size = readUint16(memory, i + 1);
    const value = (i + TLV_HEADER_BYTES) | 0;
    i = (value + size) | 0;
    if (i > end) return -TLV_MALFORMED;
    let error = 0;
    switch (type) {
      case TLV_ALPN:
        error = setOnce(tlvs.alpn, value, size);
        break;
      case TLV_AUTHORITY:
        error = setOnce(tlvs.authority, value, size);
        break;
      case TLV_CRC32C:
        if (checksumAt >= 0) return -TLV_DUPLICATE;
        if (size !== CHECKSUM_BYTES) return -TLV_MALFORMED;
        checksumAt = value;
        break;
      case TLV_UNIQUE_ID:
        error = size > UNIQUE_ID_BYTES_MAX ? -TLV_MALFORMED : setOnce(tlvs.uniqueId, value, size);
        break;
      case TLV_SSL:
        error = tlvs.ssl ? -TLV_DUPLICATE : parseSsl(memory, value, i, tlvs);
        break;
      case TLV_NETNS:
        error = setOnce(tlvs.netns, value, size);
        break;
      default:
        // NOOP (§2.2.4) and types of others.
        break;
    }
    if (error !== 0) return error;
  }
  if (checksumAt < 0) return 0;
  tlvs.checksum = readWord(memory, checksumAt) === headerChecksum(memory, header, checksumAt, end);
  return tlvs.checksum ? 0 : -CHECKSUM_WRONG;
}

/** Parses the value of the SSL TLV in [at, end) (§2.2.6): 0, or -(ProxyError). */
function parseSsl(memory: Uint8Array, at: number, end: number, tlvs: ProxyTlvs): number {
  if (at + SSL_HEADER_BYTES > end) return -TLV_MALFORMED;
  tlvs.ssl = true;
  tlvs.sslClient = memory[at];
  tlvs.sslVerify = readWord(memory, at + 1);
  let i = (at + SSL_HEADER_BYTES) | 0;
  while (i < end) {
    if (i + TLV_HEADER_BYTES > end) return -TLV_MALFORMED;
    const range = sslRange(tlvs, memory[i]);
    const size = readUint16(memory, i + 1);
    const value = (i + TLV_HEADER_BYTES) | 0;
    i = (value + size) | 0;
    if (i > end) return -TLV_MALFORMED;
    if (range !== null && setOnce(range, value, size) !== 0) return -TLV_DUPLICATE;
  }
  return 0;
}

function sslRange(tlvs: ProxyTlvs, type: number): ByteRange | null {
  switch (type) {
    case TLV_SSL_VERSION:
      return tlvs.sslVersion;
    case TLV_SSL_COMMON_NAME:
      return tlvs.sslCommonName;
    case TLV_SSL_CIPHER:
      return tlvs.sslCipher;
    case TLV_SSL_SIGNATURE:
      return tlvs.sslSignature;
    case TLV_SSL_KEY:
      return tlvs.sslKey;
    default:
      return null;
  }
}

/** CRC32C (RFC 9260 Appendix A: reflected polynomial 0x1edc6f41), by byte. */
const crcTable = new Int32Array(256);
for (let byte = 0; byte < 256; byte++) {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = (crc & 1) !== 0 ? (crc >>> 1) ^ 0x82f63b78 : crc >>> 1;
  crcTable[byte] = crc;
}

/** Checksum of the header in [at, end) with the four bytes at `checksumAt` taken as zeros (§2.2.3). */
function headerChecksum(memory: Uint8Array, at: number, checksumAt: number, end: number): number {
  const checksumEnd = checksumAt + CHECKSUM_BYTES;
  let crc = -1;
  for (let i = at | 0; i < end; i++) {
    const byte = i >= checksumAt && i < checksumEnd ? 0 : memory[i];
    crc = crcTable[(crc ^ byte) & 255] ^ (crc >>> 8);
  }
  return ~crc;
}

// -- writing -------------------------------------------------------------------------

/** Whether both addresses are known, so that they can be sent. */
function bothKnown(source: PeerAddress, destination: PeerAddress): boolean {
  return isIp(source.peerFamily) && isIp(destination.peerFamily);
}

function isIp(family: number): boolean {
  return family === INET || family === INET6;
}

/** The words of an address as IPv6: IPv4 becomes IPv4-mapped (RFC 4291 §2.5.5.2). */
function wordAsIpv6(address: PeerAddress, index: number): number {
  if (address.peerFamily === INET) return index === 3 ? address.peer0 : index === 2 ? 0xffff : 0;
  return index === 0 ? address.peer0 : index === 1 ? address.peer1 : index === 2 ? address.peer2 : address.peer3;
}

/** An IPv4-mapped address or an IPv4 address: it can be sent as IPv4, which every receiver knows. */
function fitsIpv4(address: PeerAddress): boolean {
  return (
    address.peerFamily === INET ||
    (address.peerFamily === INET6 && address.peer0 === 0 && address.peer1 === 0 && address.peer2 === 0xffff)
  );
}

function ipv4Word(address: PeerAddress): number {
  return address.peerFamily === INET ? address.peer0 : address.peer3;
}

function putText(memory: Uint8Array, at: number, text: Uint8Array): number {
  for (let i = 0; i < text.length; i++) memory[at + i] = text[i];
  return at + text.length;
}

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
  let checksumAt = -1;
  if (tlvs !== null) {
    at = putTlv(memory, at, TLV_ALPN, tlvs.alpn);
    at = putTlv(memory, at, TLV_AUTHORITY, tlvs.authority);
    at = putTlv(memory, at, TLV_UNIQUE_ID, tlvs.uniqueId);
    at = putTlv(memory, at, TLV_NETNS, tlvs.netns);
    if (tlvs.ssl) at = putSsl(memory, at, tlvs);
    if (tlvs.checksum) {
      memory[at] = TLV_CRC32C;
      checksumAt = writeUint16(memory, at + 1, CHECKSUM_BYTES);
      at = checksumAt + CHECKSUM_BYTES;
    }
  }
  writeUint16(memory, header + 14, at - header - V2_HEADER_BYTES);
  if (checksumAt >= 0) writeWord(memory, checksumAt, headerChecksum(memory, header, checksumAt, at));
  return at;
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
  const fixed = V2_HEADER_BYTES + V2_INET6_BYTES;
  if (tlvs === null) return fixed;
  const values =
    tlvs.alpn.length +
    tlvs.authority.length +
    tlvs.uniqueId.length +
    tlvs.netns.length +
    tlvs.sslVersion.length +
    tlvs.sslCommonName.length +
    tlvs.sslCipher.length +
    tlvs.sslSignature.length +
    tlvs.sslKey.length;
  return fixed + 11 * TLV_HEADER_BYTES + SSL_HEADER_BYTES + CHECKSUM_BYTES + values;
}

/** Writes one TLV, or nothing for an absent range. */
function putTlv(memory: Uint8Array, at: number, type: number, value: ByteRange): number {
  if (value.offset < 0) return at;
  memory[at] = type;
  at = writeUint16(memory, at + 1, value.length);
  memory.copyWithin(at, value.offset, value.offset + value.length);
  return at + value.length;
}

function putSsl(memory: Uint8Array, at: number, tlvs: ProxyTlvs): number {
  const value = at + TLV_HEADER_BYTES;
  memory[at] = TLV_SSL;
  memory[value] = tlvs.sslClient;
  let end = writeWord(memory, value + 1, tlvs.sslVerify);
  end = putTlv(memory, end, TLV_SSL_VERSION, tlvs.sslVersion);
  end = putTlv(memory, end, TLV_SSL_COMMON_NAME, tlvs.sslCommonName);
  end = putTlv(memory, end, TLV_SSL_CIPHER, tlvs.sslCipher);
  end = putTlv(memory, end, TLV_SSL_SIGNATURE, tlvs.sslSignature);
  end = putTlv(memory, end, TLV_SSL_KEY, tlvs.sslKey);
  writeUint16(memory, at + 1, end - value);
  return end;
}
