// Checks of endpoints that look at more than one place.
//
// Control thread. A part of semantics.ts, with its terms: nothing is taken for granted about shapes.

import { describeValue } from './errors.ts';
import { formatAddress, parseAddress, SRV_PREFIX } from './names.ts';
import { isMapping, items, type Mapping, mappings, type Report, refuse, unique } from './semantics-walk.ts';
import { parseDurationMs } from './units.ts';
import { about } from './validate.ts';
import type { Path } from './yaml.ts';

/** Reports what is wrong with endpoints and with how their names are looked up. */
export function checkEndpoints(root: Mapping, report: Report): void {
  for (const [backend, path] of mappings(root.backends, ['backends'])) {
    const { endpoints, endpointsFile, tls } = backend;
    if (endpoints === undefined && endpointsFile === undefined) {
      const problem = `${about(path)}key "endpoints" is missing`;
      report({ path, part: 'value', problem, expected: 'a list, or endpointsFile' });
    }
    checkDistinct(endpoints, [...path, 'endpoints'], report);
    if (isMapping(tls)) checkServerName(backend, tls, path, report);
  }
  if (isMapping(root.dns)) checkTtls(root.dns, report);
}

/** Reports endpoints of a list that stand there twice. */
export function checkDistinct(endpoints: unknown, path: Path, report: Report): void {
  const seen = new Map<string, Path>();
  for (const [endpoint, endpointPath] of items(endpoints, path)) {
    const address = isMapping(endpoint) ? endpoint.address : endpoint;
    if (typeof address !== 'string') continue;
    const at = isMapping(endpoint) ? [...endpointPath, 'address'] : endpointPath;
    const expected = 'each endpoint once, with a weight for a larger share';
    const parsed = address.startsWith(SRV_PREFIX) ? address.toLowerCase().replace(/\.$/, '') : parseAddress(address);
    if (typeof parsed !== 'string') {
      unique(seen, formatAddress(parsed.host, parsed.port), at, 'the endpoint', expected, report);
    } else if (parsed.startsWith(SRV_PREFIX)) {
      unique(seen, parsed, at, 'the endpoint', expected, report);
    }
  }
}

/** Names that are not written here cannot be verified by what is written here. */
function checkServerName(backend: Mapping, tls: Mapping, path: Path, report: Report): void {
  if (tls.insecureSkipVerify === true || tls.serverName !== undefined || tls.subjectAltNames !== undefined) return;
  const hasSrv = [...items(backend.endpoints, [])].some(([endpoint]) => {
    const address = isMapping(endpoint) ? endpoint.address : endpoint;
    return typeof address === 'string' && address.startsWith(SRV_PREFIX);
  });
  if (!hasSrv && backend.endpointsFile === undefined) return;
  const source = hasSrv ? 'SRV records say' : 'endpointsFile says';
  const problem = `key "serverName" is missing, and only ${source} where the endpoints are`;
  const expected = 'serverName: the name in the certificate of the backend';
  refuse(report, [...path, 'tls'], problem, expected, undefined, 'key');
}

function checkTtls(dns: Mapping, report: Report): void {
  const minMs = parseDurationMs(String(dns.minTtl ?? ''));
  const maxMs = parseDurationMs(String(dns.maxTtl ?? ''));
  if (minMs === undefined || maxMs === undefined || minMs <= maxMs) return;
  const problem = `${describeValue(dns.minTtl)} is longer than dns.maxTtl`;
  refuse(report, ['dns', 'minTtl'], problem, `at most ${describeValue(dns.maxTtl)}`);
}
