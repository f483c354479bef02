// What the system's files say about names: the hosts file, and search domains.
//
// Control thread. Files are small and read anew for each lookup that needs them, so that a change takes
// effect with the next one.
// Spec: hosts(5), resolv.conf(5).

import { readFileSync } from 'node:fs';
import { isIP } from 'node:net';

/** Where the system keeps them. */
export interface SystemFiles {
  hosts: string;
  resolvConf: string;
}

export const systemFiles: SystemFiles = { hosts: '/etc/hosts', resolvConf: '/etc/resolv.conf' };

/** Most search domains that are tried, as in the C library. */
const SEARCH_MAX = 6;

/** Addresses of a name (lower case) in a hosts file; none when it is not there. */
export function addressesInHosts(name: string, files: SystemFiles = systemFiles): string[] {
  const addresses: string[] = [];
  for (const line of linesOf(files.hosts)) {
    const [address, ...names] = line.split(/\s+/);
    if (address !== undefined && isIP(address) > 0 && names.some((known) => known.toLowerCase() === name)) {
      addresses.push(address);
    }
  }
  return addresses;
}

/** The full names that a name (lower case, without a dot at its end) may stand for, in the order of trying. */
export function searchNames(name: string, files: SystemFiles = systemFiles): string[] {
  let domains: string[] = [];
  let dotsMin = 1;
  for (const line of linesOf(files.resolvConf)) {
    const [word, ...values] = line.split(/\s+/);
    if (word === 'search' || word === 'domain') domains = values;
    if (word !== 'options') continue;
    for (const option of values) {
      const dots = /^ndots:(\d+)$/.exec(option);
      if (dots !== null) dotsMin = Math.min(15, Number(dots[1]));
    }
  }
  const searched = domains
    .slice(0, SEARCH_MAX)
    .map((domain) => domain.toLowerCase().replace(/^\.|\.$/g, ''))
    .filter((domain) => domain !== '')
    .map((domain) => `${name}.${domain}`);
  const dots = name.split('.').length - 1;
  return dots >= dotsMin ? [name, ...searched] : [...searched, name];
}

/** Lines of a file without comments; none when it cannot be read. */
function linesOf(file: string): string[] {
  let text: string;
  try {
    text = readFileSync(file, 'utf8');
  } catch {
    return [];
  }
  return text
    .split('\n')
    .map((line) => line.replace(/[#;].*$/, '').trim())
    .filter((line) => line !== '');
}
