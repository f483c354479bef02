// Warnings about what a configuration opens up: the admin port, certificates that nobody verifies.
// Control thread.

import { isIP } from 'node:net';
import { isMapping, type Mapping } from './semantics-walk.ts';
import type { Judged, Warn } from './warnings.ts';

/** Reports what is more open than it needs to be. */
export function warnOfExposure({ config, input }: Judged, warn: Warn): void {
  if (config.admin !== null && !isLoopback(config.admin.host)) {
    const what = `the admin port has no authentication, and ${config.admin.address} can be reached from other machines`;
    warn('exposed-admin', ['admin', 'address'], `${what}; use 127.0.0.1, or make sure that only operators reach it`);
  }
  for (const [index, { tls, name }] of config.backends.entries()) {
    if (tls === null) continue;
    const path = ['backends', index, 'tls'];
    if (!tls.verify) {
      warn(
        'no-verification',
        [...path, 'insecureSkipVerify'],
        `any certificate is taken for backend ${JSON.stringify(name)}, also that of an attacker in between; name the authority in caCertificates instead`,
      );
    }
  }
  for (const [route, { rules }] of (input.routes as readonly Mapping[]).entries()) {
    for (const [rule, { filters }] of (rules as Mapping[]).entries()) {
      for (const [filter, { cors }] of ((filters as Mapping[] | undefined) ?? []).entries()) {
        if (!isMapping(cors) || cors.allowCredentials !== true) continue;
        if (!Array.isArray(cors.allowOrigins) || !cors.allowOrigins.includes('*')) continue;
        const path = ['routes', route, 'rules', rule, 'filters', filter, 'cors', 'allowCredentials'];
        warn(
          'credentials-everywhere',
          path,
          'scripts of every site may act with the cookies of your users; list the origins that need this',
        );
      }
    }
  }
}

function isLoopback(host: string): boolean {
  return isIP(host) === 4 ? host.startsWith('127.') : host === '::1';
}
