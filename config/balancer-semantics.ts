// Checks of load balancing: keys that only some policies have, primes, sessions, subsets.
//
// Control thread. Like semantics.ts it takes nothing for granted about shapes and skips what is wrong
// already.

import { COOKIE_PATH_BYTES_MAX } from './balancer-normalise.ts';
import { loadBalancerSchema } from './balancer-schema.ts';
import { describeValue } from './errors.ts';
import { nodeOf } from './schema-builder.ts';
import { isMapping, type Mapping, mappings, type Report, refuse } from './semantics-walk.ts';
import type { Path } from './yaml.ts';

const policies = nodeOf(loadBalancerSchema).properties!.policy!.enum!;

/** Policies that choose by a key. */
const hashPolicies = ['RingHash', 'Maglev'];

/** Keys that one policy has for itself. */
const ownKeys: Record<string, string> = {
  choiceCount: 'LeastRequest',
  ringHash: 'RingHash',
  maglev: 'Maglev',
  peakEwma: 'PeakEWMA',
};

/** Keys of which a place of `hashOn` has one. */
const hashKeys = ['header', 'cookie', 'sourceAddress', 'queryParam'];

/** Reports all violations. */
export function checkBalancing(root: Mapping, report: Report): void {
  for (const [{ loadBalancer }, path] of mappings(root.backends, ['backends'])) {
    if (isMapping(loadBalancer)) checkBalancer(loadBalancer, [...path, 'loadBalancer'], root.zone, report);
  }
  for (const [route, path] of mappings(root.routes, ['routes'])) {
    const isHttp = route.kind === undefined || route.kind === 'HTTP';
    for (const [rule, at] of mappings(route.rules, [...path, 'rules'])) {
      if (isMapping(rule.sessionPersistence)) {
        checkSession(rule.sessionPersistence, [...at, 'sessionPersistence'], report);
      }
      if (isHttp) continue;
      for (const [ref, refPath] of mappings(rule.backendRefs, [...at, 'backendRefs'])) {
        if (ref.subset === undefined) continue;
        const problem = `has no meaning in a route of kind ${describeValue(route.kind)}`;
        refuse(report, [...refPath, 'subset'], problem, 'a backend of its own', undefined, 'key');
      }
    }
  }
}

function checkBalancer(balancer: Mapping, path: Path, zone: unknown, report: Report): void {
  checkHashOn(balancer.hashOn, [...path, 'hashOn'], report);
  const policy = balancer.policy ?? 'RoundRobin';
  // A policy that does not exist has been reported.
  if (!policies.includes(policy as string)) return;
  const byHash = hashPolicies.includes(policy as string);
  for (const [key, owner] of Object.entries(ownKeys)) {
    if (balancer[key] === undefined || policy === owner) continue;
    refuse(report, [...path, key], `has no meaning with policy ${policy}`, `policy: ${owner}`, undefined, 'key');
  }
  if (Array.isArray(balancer.hashOn) && balancer.hashOn.length > 0 && !byHash) {
    const expected = 'policy: RingHash or policy: Maglev';
    refuse(report, [...path, 'hashOn'], `has no meaning with policy ${policy}`, expected, undefined, 'key');
  }
  for (const key of ['zoneAware', 'slowStart']) {
    if (balancer[key] === undefined || !byHash) continue;
    const problem = `has no meaning with policy ${policy}, which gives a key to one endpoint`;
    refuse(report, [...path, key], problem, 'another policy', undefined, 'key');
  }
  if (balancer.zoneAware !== undefined && !byHash && zone === undefined) {
    const problem = 'needs to know the zone of this gateway';
    refuse(report, [...path, 'zoneAware'], problem, 'zone: NAME at the top level', undefined, 'key');
  }
  const { ringHash, maglev } = balancer;
  if (isMapping(ringHash)) checkRing(ringHash, [...path, 'ringHash'], report);
  if (isMapping(maglev) && typeof maglev.tableSize === 'number' && !isPrime(maglev.tableSize)) {
    const near = nextPrime(maglev.tableSize);
    const problem = `${maglev.tableSize} is not a prime`;
    refuse(report, [...path, 'maglev', 'tableSize'], problem, 'a prime number', String(near));
  }
}

function checkHashOn(hashOn: unknown, path: Path, report: Report): void {
  for (const [item, at] of mappings(hashOn, path)) {
    if (isMapping(item.cookie) && typeof item.cookie.path === 'string') {
      const { length } = item.cookie.path;
      const problem = `is ${length} characters long, which browsers take no notice of`;
      const expected = `a path of at most ${COOKIE_PATH_BYTES_MAX} characters`;
      if (length > COOKIE_PATH_BYTES_MAX) refuse(report, [...at, 'cookie', 'path'], problem, expected);
    }
    const used = hashKeys.filter((key) => item[key] !== undefined && item[key] !== false);
    const known = Object.keys(item).every((key) => hashKeys.includes(key));
    if (used.length === 1 || !known) continue;
    const problem = used.length === 0 ? 'names no key' : `names ${used.length} keys: ${used.join(' and ')}`;
    refuse(report, at, problem, `one of ${hashKeys.join(', ')}; further keys as further items`);
  }
}

function checkRing({ minimumRingSize = 1024, maximumRingSize = 8_388_608 }: Mapping, path: Path, report: Report): void {
  if (typeof minimumRingSize !== 'number' || typeof maximumRingSize !== 'number') return;
  if (minimumRingSize <= maximumRingSize) return;
  const problem = `a ring of at least ${minimumRingSize} points cannot have at most ${maximumRingSize}`;
  refuse(report, path, problem, 'minimumRingSize up to maximumRingSize', undefined, 'key');
}

function checkSession(session: Mapping, path: Path, report: Report): void {
  const { cookieConfig } = session;
  if (session.type === 'Header' && cookieConfig !== undefined) {
    refuse(report, [...path, 'cookieConfig'], 'has no meaning with type Header', 'type: Cookie', undefined, 'key');
    return;
  }
  if (!isMapping(cookieConfig) || cookieConfig.lifetimeType !== 'Permanent') return;
  if (session.absoluteTimeout !== undefined) return;
  const at = [...path, 'cookieConfig', 'lifetimeType'];
  refuse(report, at, '"Permanent" needs an end', 'absoluteTimeout beside cookieConfig');
}

function isPrime(value: number): boolean {
  if (value < 2 || !Number.isInteger(value)) return false;
  for (let divisor = 2; divisor * divisor <= value; divisor++) if (value % divisor === 0) return false;
  return true;
}

function nextPrime(value: number): number {
  let prime = Math.max(2, value);
  while (!isPrime(prime)) prime++;
  return prime;
}
