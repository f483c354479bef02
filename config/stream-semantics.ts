// Checks of routes and the listeners they belong to: HTTP requests, TCP connections, TLS by SNI.
//
// Control thread. Like semantics.ts it takes nothing for granted about shapes and skips what is wrong
// already. Spec: Gateway API TCPRoute and TLSRoute (TLS.Mode: Passthrough).

import { describeValue } from './errors.ts';
import { canonicalHostname, hostnameProblem } from './names.ts';
import { isMapping, items, type Mapping, mappings, type Report, refuse } from './semantics-walk.ts';
import { listenerProtocols } from './tls-normalise.ts';
import { isAddress } from './tls-semantics.ts';
import { pathText } from './validate.ts';
import type { Path } from './yaml.ts';

/** The kind of route that a listener takes. */
type Kind = 'HTTP' | 'TCP' | 'TLS';

const suits: Record<Kind, string> = {
  HTTP: 'a listener with protocol http/1.1, h2 or h2c',
  TCP: 'a listener with protocols: [tcp] that does not pass TLS through',
  TLS: 'a listener with tls.mode: Passthrough',
};

/** Reports all violations. */
export function checkStreams(root: Mapping, report: Report): void {
  const kinds = listenerKinds(root);
  /** Where a listener and name (empty: any) are taken already. */
  const taken = new Map<string, Path>();
  const withTls = new Set(
    [...mappings(root.backends, [])].filter(([{ tls }]) => tls !== undefined).map(([{ name }]) => name),
  );
  for (const [route, path] of mappings(root.routes, ['routes'])) {
    const kind = route.kind ?? 'HTTP';
    if (kind !== 'HTTP' && kind !== 'TCP' && kind !== 'TLS') continue;
    const listeners = checkListeners(route, kind, path, kinds, report);
    if (kind === 'HTTP') continue;
    checkRules(route, kind, path, report);
    if (kind === 'TCP' && route.hostnames !== undefined) {
      const problem = 'connections of kind TCP have no hostname';
      refuse(report, [...path, 'hostnames'], problem, 'kind: TLS to choose by SNI', undefined, 'key');
    }
    if (kind === 'TLS') checkTlsRoute(route, path, withTls, report);
    checkTaken(route, kind, path, listeners, taken, report);
  }
}

/** What each listener takes; one whose protocols cannot be told is left out. */
function listenerKinds(root: Mapping): Map<string, Kind> {
  const kinds = new Map<string, Kind>();
  for (const [{ name, protocols, tls }] of mappings(root.listeners, [])) {
    if (typeof name !== 'string' || (protocols !== undefined && !Array.isArray(protocols))) continue;
    if (tls !== undefined && !isMapping(tls)) continue;
    if (tls?.mode === 'Passthrough') kinds.set(name, 'TLS');
    else kinds.set(name, listenerProtocols({ protocols, tls })[0] === 'tcp' ? 'TCP' : 'HTTP');
  }
  return kinds;
}

/** Names of the route's listeners, as written or by default. */
function checkListeners(route: Mapping, kind: Kind, path: Path, kinds: Map<string, Kind>, report: Report): string[] {
  if (route.listeners === undefined) {
    const suitable = [...kinds].filter(([, other]) => other === kind).map(([name]) => name);
    if (suitable.length === 0 && kind !== 'HTTP') {
      refuse(report, [...path, 'kind'], `${describeValue(kind)} suits none of the listeners`, suits[kind]);
    }
    return suitable;
  }
  const names: string[] = [];
  for (const [name, at] of items(route.listeners, [...path, 'listeners'])) {
    const other = typeof name === 'string' ? kinds.get(name) : undefined;
    if (other === undefined) continue;
    if (other === kind) {
      names.push(name as string);
      continue;
    }
    const problem = `the listener ${JSON.stringify(name)} takes routes of kind ${other}, not ${kind}`;
    refuse(report, at, problem, route.kind === undefined ? `kind: ${other}, or ${suits[kind]}` : suits[kind]);
  }
  return names;
}

/** A connection has nothing to match, so there is one rule, and it names backends only. */
function checkRules(route: Mapping, kind: Kind, path: Path, report: Report): void {
  for (const [rule, at] of mappings(route.rules, [...path, 'rules'])) {
    if (at[at.length - 1] !== 0) {
      refuse(report, at, `a route of kind ${kind} has one rule`, 'one rule with all backendRefs');
      return;
    }
    for (const key of [
      'matches',
      'timeouts',
      'retry',
      'hedge',
      'priority',
      'filters',
      'rateLimits',
      'sessionPersistence',
    ]) {
      if (rule[key] === undefined) continue;
      const problem = `has no meaning in a route of kind ${kind}`;
      refuse(report, [...at, key], problem, 'backendRefs only', undefined, 'key');
    }
  }
}

function checkTlsRoute(route: Mapping, path: Path, withTls: Set<unknown>, report: Report): void {
  for (const [name, at] of items(route.hostnames, [...path, 'hostnames'])) {
    if (typeof name !== 'string' || hostnameProblem(name) !== undefined || !isAddress(name)) continue;
    refuse(report, at, `${describeValue(name)} is an IP address, which clients never name in SNI`, 'a DNS name');
  }
  for (const [rule, at] of mappings(route.rules, [...path, 'rules'])) {
    for (const [ref, refPath] of mappings(rule.backendRefs, [...at, 'backendRefs'])) {
      if (!withTls.has(ref.name)) continue;
      const problem = `the backend ${describeValue(ref.name)} has tls, but what is passed through is TLS already`;
      refuse(report, [...refPath, 'name'], problem, 'a backend without tls');
    }
  }
}

/** Of two routes for the same connections, the later one would never get any. */
function checkTaken(
  route: Mapping,
  kind: Kind,
  path: Path,
  listeners: readonly string[],
  taken: Map<string, Path>,
  report: Report,
): void {
  const names: [string, Path][] = [];
  for (const [name, at] of items(kind === 'TLS' ? route.hostnames : undefined, [...path, 'hostnames'])) {
    if (typeof name === 'string' && hostnameProblem(name) === undefined) names.push([canonicalHostname(name), at]);
  }
  if (kind === 'TCP' || route.hostnames === undefined) names.push(['', path]);
  for (const [name, at] of names) {
    for (const listener of new Set(listeners)) {
      const key = `${listener} ${name}`;
      const first = taken.get(key);
      if (first === undefined) {
        taken.set(key, at);
      } else if (first !== at && !startsWith(first, path)) {
        const what = name === '' ? 'all connections' : JSON.stringify(name);
        const problem = `${what} of the listener ${JSON.stringify(listener)} ${name === '' ? 'are' : 'is'} taken already by ${pathText(first)}`;
        const expected = kind === 'TLS' ? 'different hostnames' : 'one TCP route for each listener';
        refuse(report, at, problem, expected);
        break;
      }
    }
  }
}

/** Names that one route repeats are reported as such elsewhere. */
function startsWith(path: Path, start: Path): boolean {
  return start.every((step, index) => path[index] === step);
}
