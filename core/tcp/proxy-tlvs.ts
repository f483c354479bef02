// The additional fields (TLVs) of version 2 of the PROXY header, read and written, and its checksum.
//
//   type | length (2) | value          in the value of the SSL field: flags | verification (4) | fields of its own
//
// Stateless. Hot module: no allocation.
// Spec: https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt (§2.2.1 to §2.2.7).

import { readUint16, readWord, writeUint16, writeWord } from './proxy-bytes.ts';
import { ProxyError } from './proxy-errors.ts';
import type { ByteRange, ProxyTlvs } from './proxy-header.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { TLV_MALFORMED, TLV_DUPLICATE, CHECKSUM_WRONG } = ProxyError;

const TLV_HEADER_BYTES = 3;
const SSL_HEADER_BYTES = 5;
const CHECKSUM_BYTES = 4;
const UNIQUE_ID_BYTES_MAX = 128;

/** Bytes of the field with the checksum. */
export const CHECKSUM_TLV_BYTES: number = TLV_HEADER_BYTES + CHECKSUM_BYTES;

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

// -- reading -------------------------------------------------------------------------

/** Parses the TLVs in [at, end) of the header at `header`, which `end` ends: 0, or -(ProxyError). */
export function parseTlvs(memory: Uint8Array, header: number, at: number, end: number, tlvs: ProxyTlvs): number {
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

/** Stores a TLV that may occur once: 0, or -(ProxyError). */
function setOnce(range: ByteRange, offset: number, length: number): number {
  if (range.offset >= 0) return -TLV_DUPLICATE;
  range.set(offset, length);
  return 0;
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

/** Writes the fields of `tlvs` but for the checksum, whose place is behind them; returns the offset after them. */
export function putTlvs(memory: Uint8Array, at: number, tlvs: ProxyTlvs): number {
  at = putTlv(memory, at, TLV_ALPN, tlvs.alpn);
  at = putTlv(memory, at, TLV_AUTHORITY, tlvs.authority);
  at = putTlv(memory, at, TLV_UNIQUE_ID, tlvs.uniqueId);
  at = putTlv(memory, at, TLV_NETNS, tlvs.netns);
  return tlvs.ssl ? putSsl(memory, at, tlvs) : at;
}

/** Writes, at `at`, the checksum that ends the header at `header`, of which all else is written. */
export function putChecksum(memory: Uint8Array, header: number, at: number): void {
  memory[at] = TLV_CRC32C;
  const value = writeUint16(memory, at + 1, CHECKSUM_BYTES);
  writeWord(memory, value, headerChecksum(memory, header, value, value + CHECKSUM_BYTES));
}

/** Upper bound of what `putTlvs` and `putChecksum` write. */
export function tlvBytesMax(tlvs: ProxyTlvs): number {
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
  return 11 * TLV_HEADER_BYTES + SSL_HEADER_BYTES + CHECKSUM_BYTES + values;
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
