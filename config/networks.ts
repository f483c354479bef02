// IP networks as the configuration names them: an address, or an address and the length of its prefix.
// Control thread. IPv4 addresses written in IPv6 (::ffff:10.0.0.1) are IPv4 everywhere (RFC 4291 §2.5.5.2).

import { isIP } from 'node:net';
import { decodeSockaddr, encodeSockaddr } from '../core/ffi/sockaddr.ts';

/** A network. */
export interface NetworkConfig {
  version: 4 | 6;
  /** Length of the prefix: up to 32, or 128. */
  bits: number;
  /** The address in network order, four bytes a number; one for IPv4, four for IPv6. Nothing behind the prefix. */
  words: number[];
}

/** Reads a network, or says what is wrong with it (to follow the text), and perhaps what was meant. */
export function parseNetwork(text: string): NetworkConfig | { problem: string; hint?: string } {
  const [, host, length] = /^([^/]*)(?:\/(.*))?$/s.exec(text)!;
  let family = isIP(host!);
  if (family === 0 || host!.includes('%')) {
    return { problem: length === undefined ? 'is not an IP address' : 'is not an IP address with a prefix length' };
  }
  let max = family === 4 ? 32 : 128;
  if (length !== undefined && (!/^(0|[1-9]\d{0,2})$/.test(length) || Number(length) > max)) {
    return { problem: `has no prefix length from 0 to ${max}` };
  }
  let bits = length === undefined ? max : Number(length);
  const sockaddr = encodeSockaddr(host!, 0)!;
  const view = new DataView(sockaddr.buffer, family === 4 ? 4 : 8);
  let words = Array.from({ length: max / 32 }, (_, index) => view.getInt32(index * 4));
  if (family === 6 && bits >= 96 && words[0] === 0 && words[1] === 0 && words[2] === 0xffff) {
    family = 4;
    max = 32;
    bits -= 96;
    words = [words[3]!];
  }
  const masked = words.map((word, index) => word & maskOf(bits - index * 32));
  if (masked.some((word, index) => word !== words[index])) {
    return { problem: 'has bits behind its prefix', hint: `${addressText(family, masked)}/${bits}` };
  }
  return { version: family === 4 ? 4 : 6, bits, words };
}

/** One text for each IP address (RFC 5952), IPv4 in its own notation; anything else as it is. */
export function canonicalAddress(text: string): string {
  const sockaddr = encodeSockaddr(text, 0);
  return sockaddr === undefined || text.includes('%') ? text : decodeSockaddr(sockaddr, 0)!.host;
}

/** The first `bits` bits of a word. */
function maskOf(bits: number): number {
  if (bits >= 32) return -1;
  return bits <= 0 ? 0 : -1 << (32 - bits);
}

function addressText(family: number, words: readonly number[]): string {
  const bytes = new Uint8Array(28);
  const view = new DataView(bytes.buffer);
  bytes[0] = family === 4 ? 2 : 10;
  words.forEach((word, index) => {
    view.setInt32((family === 4 ? 4 : 8) + index * 4, word);
  });
  return decodeSockaddr(bytes, 0)!.host;
}
