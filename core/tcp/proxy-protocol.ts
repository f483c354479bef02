// The PROXY protocol, versions 1 (text) and 2 (binary): who the client of a load balancer in front is,
// and the same said to a backend. The header precedes everything else on a connection.
//
//   parseProxyHeader --> proxy-v1.ts                      --> ProxyHeader (proxy-header.ts)
//                   \--> proxy-v2.ts --> proxy-tlvs.ts --/    or an error (proxy-errors.ts)
//
// Nothing here decides whether a header is expected: that is configuration, because a client that may
// choose could name any address. Everything that does not match the protocol is an error, after which
// the connection has to be closed.
// Stateless. Hot module: no allocation.
// Spec: https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt (§2.1 version 1, §2.2 version 2).

import { PREFIX_V1, PREFIX_V2, startsWith, V2_HEADER_BYTES } from './proxy-bytes.ts';
import { ProxyError } from './proxy-errors.ts';
import type { ProxyHeader } from './proxy-header.ts';
import { PROXY_V1_BYTES_MIN, parseProxyV1 } from './proxy-v1.ts';
import { parseProxyV2 } from './proxy-v2.ts';

const { NOT_PROXY } = ProxyError;

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
  if (text > 0) return parseProxyV1(memory, offset, end, result);
  const binary = startsWith(memory, offset, end, PREFIX_V2);
  if (binary > 0) return parseProxyV2(memory, offset, end, result);
  if (text < 0 && binary < 0) return -NOT_PROXY;
  result.bytesNeeded = binary === 0 && text < 0 ? V2_HEADER_BYTES : PROXY_V1_BYTES_MIN;
  return 0;
}
