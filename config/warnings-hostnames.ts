// Warnings about hostnames of routes that no certificate of their listeners is for.
//
// Control thread. Reads the names in certificates that are not told which hostnames they are for; a file
// that cannot be read is an error elsewhere, and its listener is left alone here.

import { X509Certificate } from 'node:crypto';
import { readFileSync } from 'node:fs';
import type { ListenerConfig } from './config.ts';
import type { Judged, Warn } from './warnings.ts';

/** Reports hostnames whose clients would be shown a certificate for something else. */
export function warnOfHostnames({ config, input }: Judged, warn: Warn): void {
  const names = new Map<string, Set<string> | null>();
  const namesOf = (listener: ListenerConfig): Set<string> | null => {
    const known = names.get(listener.name);
    if (known !== undefined) return known;
    const read = certificateNames(listener);
    names.set(listener.name, read);
    return read;
  };
  const indexes = new Map(input.routes.map(({ name }, index) => [name, index]));
  for (const route of config.routes) {
    if (route.hostnames === null) continue;
    const bound = config.listeners.filter(
      ({ name, protocols }) => protocols[0] !== 'tcp' && (route.listeners === null || route.listeners.includes(name)),
    );
    const withTls = bound.filter(({ tls }) => tls !== null);
    if (withTls.length === 0) continue;
    for (const [index, hostname] of route.hostnames.entries()) {
      if (withTls.some((listener) => isCovered(hostname, namesOf(listener)))) continue;
      const where = withTls.map(({ name }) => JSON.stringify(name)).join(', ');
      const path = ['routes', indexes.get(route.name)!, 'hostnames', index];
      warn(
        'uncovered-hostname',
        path,
        `no certificate of listener ${where} is for ${hostname}, so clients will refuse the connection; add a certificate, or list the hostname with one that is for it`,
      );
    }
  }
}

/** Null: not known. */
function isCovered(hostname: string, names: Set<string> | null): boolean {
  if (names === null || names.has(hostname)) return true;
  // A wildcard stands for one label (RFC 6125 §6.4.3).
  const dot = hostname.indexOf('.');
  return !hostname.startsWith('*') && dot > 0 && names.has(`*${hostname.slice(dot)}`);
}

function certificateNames({ tls }: ListenerConfig): Set<string> | null {
  const names = new Set<string>(tls!.acme?.hostnames ?? []);
  for (const { hostnames, certificateFile } of tls!.certificates) {
    const found = hostnames ?? dnsNames(certificateFile);
    if (found === null) return null;
    for (const name of found) names.add(name);
  }
  return names;
}

/** DNS names of the first certificate in a file that is no authority's, or null. */
function dnsNames(file: string): string[] | null {
  let text: string;
  try {
    text = readFileSync(file, 'latin1');
  } catch {
    return null;
  }
  const blocks = text.match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g) ?? [];
  try {
    const certificates = blocks.map((block) => new X509Certificate(block));
    const own = certificates.find(({ ca }) => !ca) ?? certificates[0];
    if (own === undefined) return null;
    return [...(own.subjectAltName ?? '').matchAll(/DNS:([^,"\s]+)/g)].map(([, name]) => name!.toLowerCase());
  } catch {
    return null;
  }
}
