// Compiles routes into the flat table that packet workers read in place.
//
// Runs on the control thread, or in a Piscina thread for large tables (compile-job.ts); so it takes
// and returns only what can be cloned or shared. Two steps: collect hosts, paths and candidates in
// maps, then write them into one SharedArrayBuffer.
// Invariants: candidates of a path are in the order of their precedence; hash tables are at most half full.
// Layout: core/routing/route-table-format.ts. Precedence: Gateway API, HTTPRouteRule.matches.

import { HASH_SEED, hashByte, hashMix, hashPathKey } from '../core/routing/route-hash.ts';
import {
  Candidate,
  Header,
  Host,
  Path,
  PathKind,
  Ref,
  ROUTE_TABLE_MAGIC,
  ROUTE_TABLE_VERSION,
  Route,
  Rule,
  RuleFlag,
  Slot,
} from '../core/routing/route-table-format.ts';
import { ConditionCompiler, type ConditionPlace, precedenceOf } from './compile-conditions.ts';
import { collectPolicies } from './compile-policies.ts';
import type { Config, MatchConfig, RouteConfig } from './config.ts';
import { TextPool } from './text-pool.ts';

/** What the compiler needs of a configuration. */
export interface RouteTableInput {
  /** Names in the order of `Snapshot.listeners`. */
  listeners: string[];
  /** Names in the order of `Snapshot.backends`. */
  backends: string[];
  routes: RouteConfig[];
}

/** The part of a configuration that the route table is made of. */
export function routeTableInput(config: Pick<Config, 'listeners' | 'routes' | 'backends'>): RouteTableInput {
  return {
    listeners: config.listeners.map(({ name }) => name),
    backends: config.backends.map(({ name }) => name),
    routes: config.routes,
  };
}

/** Compiles the routes of a valid configuration on the calling thread. */
export function compileRoutes(config: Pick<Config, 'listeners' | 'routes' | 'backends'>): SharedArrayBuffer {
  return compileRouteTable(routeTableInput(config));
}

/** Compiles a route table. Throws on a reference that validation would have refused. */
export function compileRouteTable(input: RouteTableInput): SharedArrayBuffer {
  return write(collect(input));
}

interface HostBuild {
  /** Null: any host, which is not looked up. */
  key: string | null;
  hasExact: boolean;
  prefixDepths: number;
  /** Index of the path entry with its regular expressions, or -1. */
  expressions: number;
}

interface CandidateBuild {
  rule: number;
  listenerSet: number;
  conditions: ConditionPlace;
  precedence: number[];
}

interface PathBuild {
  key: string;
  host: number;
  kind: number;
  /** In file order. */
  candidates: CandidateBuild[];
}

/** Everything that will be written, as lists of numbers in the order of the layout. */
interface Build {
  text: TextPool;
  conditions: ConditionCompiler;
  rules: number[];
  refs: number[];
  routeNames: string[];
  listenerSets: number[];
  listenerSetWords: number;
  /** Host that stands for any, by listener. */
  listenerHosts: number[];
  hosts: HostBuild[];
  paths: PathBuild[];
  hostDotsMax: number;
  prefixDepthMax: number;
}

function collect(input: RouteTableInput): Build {
  const text = new TextPool();
  const build: Build = {
    text,
    conditions: new ConditionCompiler(text),
    rules: [],
    refs: [],
    routeNames: [],
    listenerSets: [],
    listenerSetWords: Math.ceil(input.listeners.length / 32),
    listenerHosts: [],
    hosts: [{ key: null, hasExact: false, prefixDepths: 0, expressions: -1 }],
    paths: [],
    hostDotsMax: 0,
    prefixDepthMax: 0,
  };
  const backendIndexes = new Map(input.backends.map((name, index) => [name, index]));
  const listenerIndexes = new Map(input.listeners.map((name, index) => [name, index]));
  const hostIndexes = new Map<string, number>();
  build.listenerHosts = addListenerHosts(build, input.routes, listenerIndexes);
  const pathIndexes = new Map<string, number>();
  const policies = collectPolicies(input.routes);

  for (const [routeIndex, route] of input.routes.entries()) {
    build.routeNames.push(route.name);
    const anyHost = anyHostOf(build, route, listenerIndexes);
    // What is found by its listener's own host needs no set.
    const listenerSet = anyHost > 0 && route.hostnames === null ? -1 : addListenerSet(build, route, listenerIndexes);
    const hosts = route.hostnames?.map((hostname) => addHost(build, hostname, hostIndexes)) ?? [anyHost];
    for (const [ruleIndex, rule] of route.rules.entries()) {
      const index = build.rules.length / Rule.WORDS;
      const refStart = build.refs.length / Ref.WORDS;
      let weightTotal = 0;
      for (const ref of rule.backendRefs) {
        build.refs.push(indexOf(backendIndexes, ref.name, 'backend'), ref.weight, policies.ofRef(ref));
        weightTotal += ref.weight;
      }
      // In the order of `Rule`.
      build.rules.push(
        rule.requestTimeoutMs,
        rule.backendRequestTimeoutMs,
        refStart,
        rule.backendRefs.length,
        weightTotal,
        routeIndex,
        ruleIndex + 1,
        rule.grpcWeb ? RuleFlag.GRPC_WEB : 0,
        policies.ofRule(rule),
      );
      for (const match of rule.matches) {
        const candidate: CandidateBuild = {
          rule: index,
          listenerSet,
          conditions: build.conditions.add(match),
          precedence: precedenceOf(match),
        };
        for (const host of hosts) addPath(build, host, match.path, pathIndexes).candidates.push(candidate);
      }
    }
  }
  return build;
}

/**
 * Hosts that stand for any host, by listener. A listener that shares no route with others has one of its own, so that
 * thousands of listeners (one for each service of a mesh) do not have all their rules tried one after the other.
 */
function addListenerHosts(build: Build, routes: readonly RouteConfig[], indexes: Map<string, number>): number[] {
  const hosts: number[] = new Array(Math.max(1, indexes.size)).fill(0);
  if (routes.some(({ listeners }) => listeners === null)) return hosts;
  const sharing = new Set(routes.flatMap(({ listeners }) => (listeners!.length > 1 ? listeners! : [])));
  const alone = new Set(routes.filter(({ hostnames }) => hostnames === null).flatMap(({ listeners }) => listeners!));
  for (const name of alone) {
    if (sharing.has(name)) continue;
    hosts[indexOf(indexes, name, 'listener')] = build.hosts.length;
    build.hosts.push({ key: null, hasExact: false, prefixDepths: 0, expressions: -1 });
  }
  return hosts;
}

/** Host under which a route for any host is found. */
function anyHostOf(build: Build, { listeners }: RouteConfig, indexes: Map<string, number>): number {
  return listeners?.length === 1 ? build.listenerHosts[indexOf(indexes, listeners[0]!, 'listener')]! : 0;
}

/** Index of the set of listeners that a route is bound to; -1 for all. */
function addListenerSet(build: Build, route: RouteConfig, indexes: Map<string, number>): number {
  if (route.listeners === null) return -1;
  const set: number[] = new Array(build.listenerSetWords).fill(0);
  for (const name of route.listeners) {
    const index = indexOf(indexes, name, 'listener');
    set[index >>> 5]! |= 1 << (index & 31);
  }
  build.listenerSets.push(...set);
  return build.listenerSets.length / build.listenerSetWords - 1;
}

function addHost(build: Build, hostname: string, indexes: Map<string, number>): number {
  const key = hostname.startsWith('*.') ? hostname.slice(1) : hostname;
  const existing = indexes.get(key);
  if (existing !== undefined) return existing;
  const index = build.hosts.length;
  indexes.set(key, index);
  build.hosts.push({ key, hasExact: false, prefixDepths: 0, expressions: -1 });
  if (key.startsWith('.')) build.hostDotsMax = Math.max(build.hostDotsMax, key.split('.').length - 1);
  return index;
}

function addPath(
  build: Build,
  host: number,
  { type, value }: MatchConfig['path'],
  indexes: Map<string, number>,
): PathBuild {
  const kind = type === 'Exact' ? PathKind.EXACT : type === 'PathPrefix' ? PathKind.PREFIX : PathKind.EXPRESSION;
  const key =
    kind === PathKind.EXPRESSION ? '' : kind === PathKind.PREFIX && value.endsWith('/') ? value.slice(0, -1) : value;
  const id = `${host} ${kind} ${key}`;
  const known = indexes.get(id);
  if (known !== undefined) return build.paths[known]!;
  const index = build.paths.length;
  const entry = build.hosts[host]!;
  if (kind === PathKind.EXACT) {
    entry.hasExact = true;
  } else if (kind === PathKind.EXPRESSION) {
    entry.expressions = index;
  } else {
    const depth = key === '' ? 0 : key.split('/').length - 1;
    entry.prefixDepths |= 1 << Math.min(depth, 31);
    build.prefixDepthMax = Math.max(build.prefixDepthMax, depth);
  }
  const path: PathBuild = { key, host, kind, candidates: [] };
  indexes.set(id, index);
  build.paths.push(path);
  return path;
}

/** The candidates of a path: the most specific conditions first, and equal ones in file order. */
function inOrder(candidates: CandidateBuild[]): CandidateBuild[] {
  return candidates.toSorted(({ precedence: a }, { precedence: b }) => {
    const at = a.findIndex((value, index) => value !== b[index]);
    return at < 0 ? 0 : b[at]! - a[at]!;
  });
}

function write(build: Build): SharedArrayBuffer {
  const { text, conditions } = build;
  const routes = build.routeNames.flatMap((name) => text.add(name));
  const hosts = build.hosts.flatMap(({ key, hasExact, prefixDepths, expressions }) => [
    ...text.add(key ?? ''),
    hasExact ? 1 : 0,
    prefixDepths,
    expressions,
  ]);
  const candidates: number[] = [];
  const paths: number[] = [];
  for (const path of build.paths) {
    const start = candidates.length / Candidate.WORDS;
    paths.push(...text.add(path.key), path.host, path.kind, start, path.candidates.length);
    for (const { rule, listenerSet, conditions: place } of inOrder(path.candidates)) {
      // In the order of `Candidate`.
      candidates.push(rule, listenerSet, ...place);
    }
  }
  const hostSlots = slots(build.hosts.map(({ key }) => (key === null ? null : hashMix(hashFromEnd(key)))));
  const pathSlots = slots(build.paths.map(({ key, host, kind }) => hashPathKey(hashFromStart(key), host, kind)));

  const header: number[] = new Array(Header.WORDS).fill(0);
  header[Header.MAGIC] = ROUTE_TABLE_MAGIC;
  header[Header.VERSION] = ROUTE_TABLE_VERSION;
  header[Header.RULE_COUNT] = build.rules.length / Rule.WORDS;
  header[Header.ROUTE_COUNT] = routes.length / Route.WORDS;
  header[Header.REF_COUNT] = build.refs.length / Ref.WORDS;
  header[Header.LISTENER_SET_WORDS] = build.listenerSetWords;
  header[Header.HOST_COUNT] = hosts.length / Host.WORDS;
  header[Header.HOST_SLOT_MASK] = hostSlots.length / Slot.WORDS - 1;
  header[Header.PATH_COUNT] = paths.length / Path.WORDS;
  header[Header.PATH_SLOT_MASK] = pathSlots.length / Slot.WORDS - 1;
  header[Header.CANDIDATE_COUNT] = candidates.length / Candidate.WORDS;
  header[Header.BYTE_COUNT] = text.length;
  header[Header.HOST_BYTES_MAX] = longest(build.hosts);
  header[Header.HOST_DOTS_MAX] = build.hostDotsMax;
  header[Header.PATH_BYTES_MAX] = longest(build.paths);
  header[Header.PREFIX_DEPTH_MAX] = build.prefixDepthMax;
  header[Header.NEEDS_CLIENT] = conditions.needsClient ? 1 : 0;

  const sections: [headerWord: number, words: ArrayLike<number>][] = [
    [Header.RULES, build.rules],
    [Header.ROUTES, routes],
    [Header.REFS, build.refs],
    [Header.LISTENER_SETS, build.listenerSets],
    [Header.LISTENER_HOSTS, [0, ...build.listenerHosts]],
    [Header.HOSTS, hosts],
    [Header.HOST_SLOTS, hostSlots],
    [Header.PATHS, paths],
    [Header.PATH_SLOTS, pathSlots],
    [Header.CANDIDATES, candidates],
    [Header.CONDITIONS, conditions.words],
    [Header.EXPRESSIONS, conditions.expressionSection()],
  ];
  let end: number = Header.WORDS;
  for (const [word, section] of sections) {
    header[word] = end;
    end += section.length;
  }
  header[Header.BYTES] = end * 4;

  const buffer = new SharedArrayBuffer(end * 4 + Math.ceil(text.length / 4) * 4);
  const words = new Int32Array(buffer);
  words.set(header);
  for (const [word, section] of sections) words.set(section, header[word]);
  text.copyTo(new Uint8Array(buffer, end * 4));
  return buffer;
}

/** An open-addressing table with linear probing, at most half full. `null` entries are left out. */
function slots(hashes: (number | null)[]): Int32Array {
  let count = 2;
  while (count < hashes.length * 2) count *= 2;
  const words = new Int32Array(count * Slot.WORDS);
  for (const [entry, hash] of hashes.entries()) {
    if (hash === null) continue;
    let slot = hash & (count - 1);
    while (words[slot * Slot.WORDS + Slot.ENTRY] !== 0) slot = (slot + 1) & (count - 1);
    words[slot * Slot.WORDS + Slot.HASH] = hash;
    words[slot * Slot.WORDS + Slot.ENTRY] = entry + 1;
  }
  return words;
}

/** Keys are ASCII: validation refuses other letters in hostnames and paths. */
function hashFromStart(key: string): number {
  let hash = HASH_SEED;
  for (let i = 0; i < key.length; i++) hash = hashByte(hash, key.charCodeAt(i));
  return hash;
}

function hashFromEnd(key: string): number {
  let hash = HASH_SEED;
  for (let i = key.length - 1; i >= 0; i--) hash = hashByte(hash, key.charCodeAt(i));
  return hash;
}

function longest(entries: { key: string | null }[]): number {
  return entries.reduce((max, { key }) => Math.max(max, key?.length ?? 0), 0);
}

function indexOf(indexes: Map<string, number>, name: string, what: string): number {
  const index = indexes.get(name);
  if (index === undefined) throw new Error(`there is no ${what} "${name}"`);
  return index;
}
