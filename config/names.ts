// Addresses, hostnames, paths and tokens in the configuration: what is valid, and what is wrong otherwise.
//
// Control thread. The `...Problem` functions return undefined for a valid value, else the rest of a
// sentence that starts with the value ("... has no port").
// Spec: RFC 9110 §5.6.2 (token), RFC 3986 §3.3 (path), RFC 1123 §2.1 and RFC 5890 (hostnames),
// Gateway API Hostname and HTTPPathMatch.

import { isIP } from 'node:net';
import { domainToASCII } from 'node:url';
import { decodeSockaddr, encodeSockaddr } from '../core/ffi/sockaddr.ts';

/** A host and port as written in the configuration. `host` is a lower-case name or IP text without brackets. */
export interface Address {
  host: string;
  /** 0 to 65535. */
  port: number;
  /** Whether `host` is an IP address. */
  isIp: boolean;
}

/** Pattern of an RFC 9110 token, for the JSON Schema. */
export const TOKEN_PATTERN = "^[!#$%&'*+.^_`|~0-9A-Za-z-]+$";

/** Pattern of the name of a listener, route or backend, for the JSON Schema. */
export const NAME_PATTERN = '^[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?$';

/** Splits `host:port` or `[ipv6]:port`; a string says what is wrong. `:port` gives an empty host. */
export function parseAddress(text: string): Address | string {
  const bracketed = /^\[([^\]]*)\](.*)$/.exec(text);
  let host: string;
  let rest: string;
  if (bracketed !== null) {
    host = bracketed[1]!;
    rest = bracketed[2]!;
    if (isIP(host) !== 6 || host.includes('%')) return 'has no IPv6 address inside its brackets';
  } else {
    const colon = text.lastIndexOf(':');
    host = colon < 0 ? text : text.slice(0, colon);
    rest = colon < 0 ? '' : text.slice(colon);
    if (host.includes(':')) {
      return isIP(text) === 6 || isIP(host) === 6 ? 'is an IPv6 address without brackets' : 'has more than one colon';
    }
  }
  if (rest === '') return 'has no port';
  if (!/^:\d{1,5}$/.test(rest) || Number(rest.slice(1)) > 65535) return 'has a port that is not a number up to 65535';
  const port = Number(rest.slice(1));
  const version = isIP(host);
  if (version > 0) return { host: canonicalIp(host), port, isIp: true };
  if (host === '') return { host, port, isIp: false };
  const name = host.endsWith('.') ? host.slice(0, -1) : host;
  const problem = dnsNameProblem(name.toLowerCase());
  if (problem !== undefined) return problem;
  return { host: name.toLowerCase(), port, isIp: false };
}

/** What is wrong with an address that a socket is to listen on. */
export function listenAddressProblem(text: string): string | undefined {
  const address = parseAddress(text);
  if (typeof address === 'string') return address;
  return address.isIp || address.host === '' || address.host === 'localhost'
    ? undefined
    : 'names a host, but only an IP address can be listened on';
}

/** The IP address and port to listen on; `text` is valid. `:port` means every IPv4 address. */
export function listenAddress(text: string): Address {
  const address = parseAddress(text);
  if (typeof address === 'string') throw new Error(`address "${text}" ${address}`);
  if (address.host === '') return { host: '0.0.0.0', port: address.port, isIp: true };
  if (address.host === 'localhost') return { host: '127.0.0.1', port: address.port, isIp: true };
  return address;
}

/** What is wrong with the address of an endpoint. */
export function endpointAddressProblem(text: string): string | undefined {
  const address = parseAddress(text);
  if (typeof address === 'string') return address;
  if (address.host === '') return 'has no host';
  return address.port === 0 ? 'has port 0' : undefined;
}

/** `host:port`, with brackets around IPv6. */
export function formatAddress(host: string, port: number): string {
  return host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`;
}

/** What is wrong with a hostname that a route matches: exact, or `*.` and a suffix. */
export function hostnameProblem(text: string): string | undefined {
  const host = text.toLowerCase();
  if (host === '') return 'is empty';
  if (host === '*') return 'matches every host, which is what a route without hostnames does';
  if (/^\[.*\]$/.test(host)) return isIP(host.slice(1, -1)) === 6 ? undefined : 'is not an IPv6 address in brackets';
  if (/:\d*$/.test(host)) return 'has a port, but hostnames are matched without it';
  if (host.includes('/')) return 'is not a hostname';
  const wildcard = host.startsWith('*.');
  const name = (wildcard ? host.slice(2) : host).replace(/\.$/, '');
  if (name.includes('*')) return 'has a * that is not its whole first label';
  if (isIP(name) === 4) return wildcard ? 'is a wildcard for an IP address' : undefined;
  if (wildcard && /^[0-9.]+$/.test(name)) return 'is a wildcard for an IP address';
  return dnsNameProblem(name);
}

/** What is wrong with the name of one server: a DNS name without a wildcard, or an IP address. */
export function serverNameProblem(text: string): string | undefined {
  if (isIP(text) > 0) return text.includes('%') ? 'has a zone' : undefined;
  if (text.startsWith('*')) return 'is a wildcard, but one server is meant';
  if (/:\d*$/.test(text)) return 'has a port';
  const name = text.toLowerCase().replace(/\.$/, '');
  return name === '' ? 'is empty' : dnsNameProblem(name);
}

/** What is wrong with a name that a certificate may have: as `serverNameProblem`, or a URI. */
export function subjectAltNameProblem(text: string): string | undefined {
  if (!text.includes('://')) return serverNameProblem(text);
  return /^[a-z][a-z0-9+.-]*:\/\/[\x21-\x7e]+$/i.test(text) && URL.canParse(text) ? undefined : 'is not a URI';
}

/** The form in which a valid hostname is matched: lower case, without a dot at its end. */
export function canonicalHostname(text: string): string {
  const host = text.toLowerCase().replace(/\.$/, '');
  return host.startsWith('[') ? `[${canonicalIp(host.slice(1, -1))}]` : host;
}

/** What is wrong with the path of a match. */
export function pathProblem(text: string): string | undefined {
  if (!text.startsWith('/')) return 'does not start with /';
  if (text.includes('?')) return 'has a query, but only the path is matched';
  if (text.includes('#')) return 'has a fragment, which clients never send';
  if (/%(?![0-9A-Fa-f]{2})/.test(text)) return 'has a % that is not followed by two hexadecimal digits';
  const bad = /[^A-Za-z0-9\-._~!$&'()*+,;=:@%/]/u.exec(text);
  return bad === null
    ? undefined
    : `has the character ${JSON.stringify(bad[0])}, which a path carries only percent-encoded`;
}

/** Whether `text` is a token. */
export function isToken(text: string): boolean {
  return new RegExp(TOKEN_PATTERN).test(text);
}

function dnsNameProblem(name: string): string | undefined {
  if (/[^\x00-\x7f]/.test(name)) {
    return `has letters outside ASCII, which HTTP carries as ${JSON.stringify(domainToASCII(name) || 'xn--...')}`;
  }
  if (name.length > 253) return 'is longer than 253 characters';
  const labels = name.split('.');
  if (labels.some((label) => label === '')) return 'has an empty label';
  if (labels.some((label) => label.length > 63)) return 'has a label longer than 63 characters';
  // Underscores are not hostnames by RFC 1123, but exist in service names that people route to.
  if (!labels.every((label) => /^[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?$/.test(label))) return 'is not a hostname';
  return /^\d+$/.test(labels[labels.length - 1]!) ? 'is neither an IPv4 address nor a hostname' : undefined;
}

/** One text for each IP address, so that `[::1]` and `[0:0::1]` are the same (RFC 5952). */
function canonicalIp(host: string): string {
  return decodeSockaddr(encodeSockaddr(host, 0)!, 0)!.host;
}

/** Begins the address of an endpoint that stands for SRV records. */
export const SRV_PREFIX = 'srv:';

/** What is wrong with the name of SRV records (RFC 2782): `_service._proto.name`, or any other DNS name. */
export function srvNameProblem(text: string): string | undefined {
  const name = text.toLowerCase().replace(/\.$/, '');
  if (name === '') return 'has no name';
  if (/:\d*$/.test(name)) return 'has a port, which is what SRV records are to tell';
  if (isIP(name) > 0) return 'is an IP address, not the name of SRV records';
  return dnsNameProblem(name);
}

/** What is wrong with the address of a name server: an IP address, with or without port. */
export function dnsServerProblem(text: string): string | undefined {
  if (isIP(text) > 0 && !text.includes('%')) return undefined;
  const address = parseAddress(text);
  if (typeof address === 'string') return address === 'has no port' ? 'is not an IP address' : address;
  if (!address.isIp) return 'is not an IP address';
  return address.port === 0 ? 'has port 0' : undefined;
}
