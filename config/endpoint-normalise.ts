// Endpoints and DNS from the configuration as written to the one the program uses.
//
// Control thread. A part of normalise.ts, with its terms: valid input, defaults filled in.

import type { DnsConfig, EndpointConfig } from './config.ts';
import { formatAddress, parseAddress, SRV_PREFIX } from './names.ts';
import type { ConfigInput } from './schema.ts';
import { parseDurationMs } from './units.ts';

/** Port of DNS (RFC 1035 §4.2). */
const DNS_PORT = 53;

/** Where the address of an endpoint leads. */
export function endpointPlace(address: string): Pick<EndpointConfig, 'host' | 'port' | 'isIp' | 'srv'> {
  if (address.startsWith(SRV_PREFIX)) {
    const host = address.slice(SRV_PREFIX.length).toLowerCase().replace(/\.$/, '');
    return { host, port: 0, isIp: false, srv: true };
  }
  const parsed = parseAddress(address);
  if (typeof parsed === 'string') throw new Error(`address "${address}" ${parsed}`);
  return { ...parsed, srv: false };
}

/** How names are looked up. */
export function dnsConfig(input: NonNullable<ConfigInput['dns']>): DnsConfig {
  return {
    servers: (input.servers ?? []).map((server) => {
      const parsed = parseAddress(server);
      return typeof parsed === 'string' ? formatAddress(server, DNS_PORT) : formatAddress(parsed.host, parsed.port);
    }),
    timeoutMs: parseDurationMs(String(input.timeout))!,
    ttlMinMs: parseDurationMs(String(input.minTtl))!,
    ttlMaxMs: parseDurationMs(String(input.maxTtl))!,
  };
}
