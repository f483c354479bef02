// Rules that can never take a request, because others take all that they would.
//
// Control thread. A match is shadowed by an earlier one of equal precedence whose conditions are the
// same or fewer (the sources and certificates that it asks for; everything else that it asks for counts
// in the precedence), on all of its listeners; and by a regular expression that takes every path.
// Linear in the number of matches: only those with one hostname, path and set of conditions are compared.
// Spec: Gateway API, precedence of HTTPRouteRule.matches.

import { canonicalHostname } from './names.ts';
import { isMapping, type Mapping } from './semantics-walk.ts';
import type { Judged, Warn } from './warnings.ts';

/** One match for one hostname. */
interface Entry {
  route: number;
  rule: number;
  match: number;
  conditions: Mapping;
  /** Sorted conditions that do not count in the precedence: whoever has fewer takes more. */
  extras: string[];
  /** Names; null: all. */
  listeners: readonly string[] | null;
}

/** Who takes the requests of a match. */
interface Shadow {
  by: Entry;
  /** `by` alone does not, but several together do. */
  several: boolean;
  /** It does so by an expression that takes every path. */
  expression: boolean;
  /** Hostnames for which that is so. */
  hosts: string[];
}

/** Most entries that one is compared with; with more of them only some shadows are found. */
const COMPARED_MAX = 256;

/** Reports rules, routes and matches that never take a request. */
export function warnOfShadows({ config, input }: Judged, warn: Warn): void {
  const listeners = config.listeners.filter(({ protocols }) => protocols[0] !== 'tcp').map(({ name }) => name);
  const routes = (input.routes as readonly Mapping[]).map((route) => (route.kind === 'HTTP' ? route : null));
  const shadows = findShadows(routes, listeners);
  if (shadows.size === 0) return;
  for (const [index, route] of routes.entries()) if (route !== null) reportRoute(routes, index, shadows, warn);
}

/** The shadow over each match, by `idOf`. */
function findShadows(routes: readonly (Mapping | null)[], listeners: readonly string[]): Map<string, Shadow> {
  /** Entries by hostname and everything that counts in the precedence, in file order. */
  const rivals = new Map<string, Entry[]>();
  /** Entries with an expression for every path and no other condition, by hostname. */
  const everyPath = new Map<string, Entry[]>();
  for (const [host, entry] of entriesOf(routes)) {
    if (takesEveryPath(entry.conditions)) add(everyPath, host, entry);
  }
  const shadows = new Map<string, Shadow>();
  for (const [host, entry] of entriesOf(routes)) {
    const key = `${host} ${keyOf(entry.conditions)}`;
    let cover = coverOf(entry, rivals.get(key) ?? [], listeners);
    let expression = false;
    // Expressions go before prefixes, wherever they stand; gRPC is matched by paths of its own.
    if (cover === undefined && pathType(entry.conditions) === 'PathPrefix' && entry.conditions.grpc === undefined) {
      cover = coverOf(entry, everyPath.get(host) ?? [], listeners);
      expression = cover !== undefined;
    }
    add(rivals, key, entry);
    if (cover === undefined) continue;
    const id = idOf(entry.route, entry.rule, entry.match);
    const known = shadows.get(id);
    if (known === undefined) shadows.set(id, { ...cover, expression, hosts: [host] });
    else known.hosts.push(host);
  }
  return shadows;
}

/** Every match with every hostname of its route (empty: any), in file order. */
function* entriesOf(routes: readonly (Mapping | null)[]): Generator<[host: string, entry: Entry]> {
  for (const [route, item] of routes.entries()) {
    if (item === null) continue;
    const hosts = hostsOf(item);
    const listeners = (item.listeners as string[] | undefined) ?? null;
    for (const [rule, one] of (item.rules as Mapping[]).entries()) {
      for (const [match, conditions] of matchesOf(one).entries()) {
        const entry = { route, rule, match, conditions, extras: extrasOf(conditions), listeners };
        for (const host of hosts) yield [host, entry];
      }
    }
  }
}

/** Reports one route: as a whole, or its rules, or their matches. */
function reportRoute(
  routes: readonly (Mapping | null)[],
  index: number,
  shadows: Map<string, Shadow>,
  warn: Warn,
): void {
  const route = routes[index]!;
  const rules = route.rules as Mapping[];
  const hostCount = hostsOf(route).length;
  const nameOf = ({ by, several }: Shadow): string => {
    const rule = `rule ${by.rule + 1}`;
    const name =
      by.route === index ? `${rule} of this route` : `${rule} of route ${JSON.stringify(routes[by.route]!.name)}`;
    return several ? `${name}, together with others,` : name;
  };
  const reports: (() => void)[] = [];
  const dead: Shadow[] = [];
  for (const [number, rule] of rules.entries()) {
    const path = ['routes', index, 'rules', number];
    const found = matchesOf(rule).map((_match, match) => shadows.get(idOf(index, number, match)));
    const whole = found.filter((shadow) => shadow !== undefined && shadow.hosts.length === hostCount);
    const [first] = whole;
    if (first !== undefined && whole.length === found.length) {
      dead.push(first);
      const [why, advice] = first.expression
        ? [', whose regular expression goes before all prefixes,', 'narrow the expression']
        : ['', 'put it first'];
      const message = `this rule never takes a request, because ${nameOf(first)}${why} takes them all; remove it, or ${advice}`;
      reports.push(() => warn('shadowed-rule', path, message));
      continue;
    }
    for (const [match, shadow] of found.entries()) {
      if (shadow === undefined) continue;
      const everywhere = shadow.hosts.length === hostCount;
      const where = everywhere ? '' : ` for ${shadow.hosts.join(', ')}`;
      const advice = everywhere ? 'remove it, or make the two differ' : 'keep the hostname in one of the two';
      const message = `this match never takes a request${where}, because ${nameOf(shadow)} takes them all; ${advice}`;
      reports.push(() => warn('shadowed-match', [...path, 'matches', match], message));
    }
  }
  if (dead.length < rules.length) {
    for (const report of reports) report();
    return;
  }
  const all = dead.length > 1 ? 'and others take' : 'takes';
  const message = `this route never takes a request, because ${nameOf(dead[0]!)} ${all} them all; remove it, or make its hostnames, paths or conditions differ`;
  warn('shadowed-route', ['routes', index], message);
}

/** Who takes everything that `entry` would: one of `others`, or several that have its listeners together. */
function coverOf(
  entry: Entry,
  others: readonly Entry[],
  allListeners: readonly string[],
): { by: Entry; several: boolean } | undefined {
  const left = new Set(entry.listeners ?? allListeners);
  let first: Entry | undefined;
  for (const other of others.slice(0, COMPARED_MAX)) {
    if (other.route === entry.route && other.rule === entry.rule && other.match === entry.match) continue;
    if (!other.extras.every((condition) => entry.extras.includes(condition))) continue;
    if (other.listeners === null) return { by: other, several: false };
    const before = left.size;
    for (const name of other.listeners) left.delete(name);
    if (left.size < before) first ??= other;
    if (left.size === 0 && first !== undefined) return { by: first, several: first !== other };
  }
  return undefined;
}

function hostsOf(route: Mapping): string[] {
  return [...new Set(((route.hostnames as string[] | undefined) ?? ['']).map(canonicalHostname))];
}

/** The matches of a rule; no match is one that everything meets. */
function matchesOf({ matches }: Mapping): Mapping[] {
  return (matches as Mapping[]).length > 0 ? (matches as Mapping[]) : [{}];
}

/** What counts in the precedence, as text: equal texts compete by their order in the file. */
function keyOf(match: Mapping): string {
  const { path, sourceAddresses: _source, clientCertificate: _certificate, ...rest } = match;
  const value = isMapping(path) ? String(path.value) : '/';
  const type = pathType(match);
  // A slash at the end of a prefix says nothing.
  const canonical = type === 'PathPrefix' ? value.replace(/(?<=.)\/$/, '') : value;
  const conditions = Object.entries(rest)
    .filter(([, condition]) => condition !== undefined && !(Array.isArray(condition) && condition.length === 0))
    .map(([name, condition]) => `${name}=${canonicalCondition(name, condition)}`);
  return JSON.stringify([type, canonical, conditions.sort()]);
}

function canonicalCondition(name: string, condition: unknown): string {
  if (!Array.isArray(condition)) return canonicalJson(condition);
  const items = condition.map((item) =>
    name === 'headers' && isMapping(item) ? { ...item, name: String(item.name).toLowerCase() } : item,
  );
  return items.map(canonicalJson).sort().join(',');
}

function canonicalJson(value: unknown): string {
  if (!isMapping(value)) return JSON.stringify(value);
  return JSON.stringify(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1)));
}

/** Conditions that do not count in the precedence. The more addresses a list has, the more it takes. */
function extrasOf(match: Mapping): string[] {
  const extras: string[] = [];
  for (const name of ['sourceAddresses', 'clientCertificate']) {
    const condition = match[name];
    if (condition === undefined || (Array.isArray(condition) && condition.length === 0)) continue;
    extras.push(`${name}=${canonicalCondition(name, condition)}`);
  }
  return extras;
}

function pathType(match: Mapping): unknown {
  return isMapping(match.path) ? match.path.type : 'PathPrefix';
}

/** Whether a match has no condition but a regular expression that every path fits. */
function takesEveryPath(match: Mapping): boolean {
  if (pathType(match) !== 'RegularExpression' || !isMapping(match.path)) return false;
  if (!['.*', '/.*', '^.*$', '^/.*$', '.+', '^.+$'].includes(String(match.path.value))) return false;
  return Object.entries(match).every(
    ([name, value]) => name === 'path' || value === undefined || (Array.isArray(value) && value.length === 0),
  );
}

function idOf(route: number, rule: number, match: number): string {
  return `${route} ${rule} ${match}`;
}

function add(map: Map<string, Entry[]>, key: string, entry: Entry): void {
  const list = map.get(key);
  if (list === undefined) map.set(key, [entry]);
  else list.push(entry);
}
