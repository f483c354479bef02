// Socket addresses: the kernel's binary form (sockaddr_in, sockaddr_in6), and text.
// Both structs start with the family (16 bit, host order: little-endian on x64 and arm64) and the
// port (16 bit, network order). Source: netinet/in.h, RFC 4291 §2.2, RFC 5952 §4 (IPv6 text).

import { isIP } from 'node:net';

/** Address families (sys/socket.h). */
export const Family = { INET: 2, INET6: 10 } as const;

/** Bytes of sockaddr_in and sockaddr_in6. */
export const SOCKADDR_IN_BYTES = 16;
export const SOCKADDR_IN6_BYTES = 28;

/** An IP address and port. `host` is text without brackets; `port` is 0 to 65535. */
export interface HostPort {
  host: string;
  port: number;
}

/**
 * Encodes an IP address and port for `connect` and `bind`.
 * Returns undefined when `host` is not an IPv4 or IPv6 address.
 */
export function encodeSockaddr(host: string, port: number): Uint8Array | undefined {
  const version = isIP(host);
  if (version === 0) return undefined;
  const out = new Uint8Array(version === 4 ? SOCKADDR_IN_BYTES : SOCKADDR_IN6_BYTES);
  out[0] = version === 4 ? Family.INET : Family.INET6;
  out[2] = port >> 8;
  out[3] = port & 255;
  if (version === 4) {
    out.set(host.split('.').map(Number), 4);
  } else {
    out.set(ipv6Bytes(host), 8);
  }
  return out;
}

/** Decodes a socket address at `offset`; undefined for other families than IPv4 and IPv6. */
export function decodeSockaddr(bytes: Uint8Array, offset: number): HostPort | undefined {
  const family = bytes[offset]! | (bytes[offset + 1]! << 8);
  const port = (bytes[offset + 2]! << 8) | bytes[offset + 3]!;
  if (family === Family.INET) {
    return { host: bytes.subarray(offset + 4, offset + 8).join('.'), port };
  }
  if (family === Family.INET6) return { host: ipv6Text(bytes, offset + 8), port };
  return undefined;
}

function ipv6Bytes(host: string): Uint8Array {
  const out = new Uint8Array(16);
  let text = host.replace(/%.*$/, '');
  const v4 = /^(.*:)(\d+)\.(\d+)\.(\d+)\.(\d+)$/.exec(text);
  if (v4 !== null) {
    const [, head, a, b, c, d] = v4;
    text = `${head}${((Number(a) << 8) | Number(b)).toString(16)}:${((Number(c) << 8) | Number(d)).toString(16)}`;
  }
  const [left, right] = text.split('::');
  const groups = (part: string | undefined): number[] =>
    part === undefined || part === '' ? [] : part.split(':').map((group) => Number.parseInt(group, 16));
  const head = groups(left);
  const tail = groups(right);
  const all = text.includes('::') ? [...head, ...new Array(8 - head.length - tail.length).fill(0), ...tail] : head;
  all.forEach((group, index) => {
    out[index * 2] = group >> 8;
    out[index * 2 + 1] = group & 255;
  });
  return out;
}

function ipv6Text(bytes: Uint8Array, offset: number): string {
  const groups: number[] = [];
  for (let i = 0; i < 8; i++) groups.push((bytes[offset + i * 2]! << 8) | bytes[offset + i * 2 + 1]!);
  if (groups.slice(0, 5).every((group) => group === 0) && groups[5] === 0xffff) {
    return bytes.subarray(offset + 12, offset + 16).join('.');
  }
  let bestStart = -1;
  let bestLength = 1;
  for (let i = 0; i < 8; i++) {
    let length = 0;
    while (i + length < 8 && groups[i + length] === 0) length++;
    if (length > bestLength) {
      bestStart = i;
      bestLength = length;
    }
  }
  const hex = groups.map((group) => group.toString(16));
  if (bestStart < 0) return hex.join(':');
  return `${hex.slice(0, bestStart).join(':')}::${hex.slice(bestStart + bestLength).join(':')}`;
}
