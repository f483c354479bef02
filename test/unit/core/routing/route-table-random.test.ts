// The route table against a plain implementation of the Gateway API's rules, on random tables and
// requests. The seed is printed; ROUTE_TABLE_SEED repeats a run.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { compileRouteTable } from '../../../../config/compile-routes.ts';
import type { MatchConfig, RouteConfig } from '../../../../config/config.ts';
import type { TextMatchConfig } from '../../../../config/match-normalise.ts';
import { RouteTable } from '../../../../core/routing/route-table.ts';
import {
  buildTable,
  lookup,
  lookupRequest,
  type RequestSketch,
  type RouteSketch,
  sketchMatch,
  sketchRoutes,
} from './table-fixture.ts';

const seed = Number(process.env.ROUTE_TABLE_SEED ?? Date.now() % 2 ** 31);

interface Request {
  host: string;
  path: string;
  listener: string;
  method: string;
  /** Names in lower case; equal names are joined already. */
  headers: Map<string, string>;
  /** First values, decoded. */
  query: Map<string, string>;
}

/**
 * Every match competes: the most specific hostname, then Exact, then regular expressions, then the
 * longest prefix, then methods, numbers of fields and of parameters, then file order.
 */
function naiveLookup(routes: RouteConfig[], request: Request): number {
  const name = request.host.toLowerCase().replace(/\.$/, '');
  let best = -1;
  let bestScore: number[] = [];
  let index = -1;
  for (const route of routes) {
    for (const rule of route.rules) {
      index++;
      if (route.listeners !== null && !route.listeners.includes(request.listener)) continue;
      for (const hostname of route.hostnames ?? ['']) {
        const suffix = hostname.slice(1);
        const wildcard = hostname.startsWith('*.');
        if (wildcard ? !(name.endsWith(suffix) && name.length > suffix.length) : hostname !== '' && hostname !== name) {
          continue;
        }
        for (const match of rule.matches) {
          if (!pathHolds(match, request.path) || !conditionsHold(match, request)) continue;
          const hostScore = hostname === '' ? 0 : wildcard ? 1 : 2;
          const { type, value } = match.path;
          const pathScore = type === 'Exact' ? 2 : type === 'RegularExpression' ? 1 : 0;
          const prefix = type === 'PathPrefix' ? value.replace(/\/$/, '').length : 0;
          const { method = null, headers = [], queryParams = [] } = match.conditions ?? {};
          const counts = [method === null ? 0 : 1, headers.length, queryParams.length];
          const score = [hostScore, hostname.length, pathScore, prefix, ...counts];
          if (best < 0 || isHigher(score, bestScore)) {
            best = index;
            bestScore = score;
          }
        }
      }
    }
  }
  return best;
}

function pathHolds({ path: { type, value } }: MatchConfig, path: string): boolean {
  if (type === 'Exact') return value === path;
  if (type === 'RegularExpression') return new RegExp(`^(?:${value})$`).test(path);
  const prefix = value.replace(/\/$/, '');
  return path === prefix || path.startsWith(`${prefix}/`);
}

function conditionsHold({ conditions }: MatchConfig, request: Request): boolean {
  if (conditions == null) return true;
  const holds = (wanted: TextMatchConfig, actual: Map<string, string>): boolean => {
    const value = actual.get(wanted.name);
    if (value === undefined) return false;
    return wanted.type === 'Exact' ? value === wanted.value : new RegExp(`^(?:${wanted.value})$`).test(value);
  };
  return (
    (conditions.method === null || conditions.method === request.method) &&
    conditions.headers.every((header) => holds(header, request.headers)) &&
    conditions.queryParams.every((parameter) => holds(parameter, request.query))
  );
}

function isHigher(a: number[], b: number[]): boolean {
  const at = a.findIndex((value, index) => value !== b[index]);
  return at >= 0 && a[at]! > b[at]!;
}

/** The numbers that a test draws from its seed: whole ones below a limit. */
function randomOf(start: number): (below: number) => number {
  let state = start;
  return (below) => {
    // mulberry32: small, and the same everywhere.
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) % below;
  };
}

test(`random tables route like the plain rules (seed ${seed})`, () => {
  const random = randomOf(seed);
  const pick = <T>(list: readonly T[]): T => list[random(list.length)]!;
  const several = <T>(make: () => T): T[] => Array.from({ length: 1 + random(3) }, make);
  // Few labels and segments, so that hosts and paths overlap in every way.
  const host = (): string => several(() => pick(['a', 'b', 'com', 'aa'])).join('.');
  const path = (): string => `/${several(() => pick(['x', 'y', 'xx', '', 'x%2F'])).join('/')}`;
  let matched = 0;
  for (let round = 0; round < 300; round++) {
    const sketches: RouteSketch[] = Array.from({ length: random(12) }, () => ({
      ...(random(3) === 0 ? { listeners: several(() => pick(['l0', 'l1', 'l35'])) } : {}),
      ...(random(4) === 0 ? {} : { hostnames: several(() => (random(2) === 0 ? `*.${host()}` : host())) }),
      rules: several(() => several(() => (random(3) === 0 ? `=${path()}` : random(4) === 0 ? '/' : path()))),
    }));
    const table = buildTable(sketches);
    const routes = sketchRoutes(sketches);
    for (let i = 0; i < 60; i++) {
      const requestHost = pick([host(), `${host()}.${host()}`, host().toUpperCase(), `${host()}.`, `.${host()}`, '']);
      const requestPath = pick([path(), `${path()}/`, path() + path(), '/']);
      const listener = pick([0, 1, 2, 35]);
      const expected = naiveLookup(routes, {
        host: requestHost,
        path: requestPath,
        listener: `l${listener}`,
        method: 'GET',
        headers: new Map(),
        query: new Map(),
      });
      if (expected >= 0) matched++;
      const actual = lookup(table, requestHost, requestPath, listener);
      assert.equal(
        actual,
        expected,
        `seed ${seed}, round ${round}: ${requestHost} ${requestPath} on l${listener} in ${JSON.stringify(sketches)}`,
      );
    }
  }
  assert.ok(matched > 1000, 'the requests must exercise the tables');
});

test(`random tables with conditions and regular expressions route like the plain rules (seed ${seed})`, () => {
  const random = randomOf(seed ^ 0x5bd1e995);
  const pick = <T>(list: readonly T[]): T => list[random(list.length)]!;
  const upTo = <T>(count: number, make: () => T): T[] => Array.from({ length: random(count + 1) }, make);
  const path = (): string => pick(['/', '/x', '/x/y', '/y', '/xx']);
  const names = ['a', 'b', 'user-agent', 'c'];
  const values = ['1', '2', '1,2', '1 2'];
  const texts = (): TextMatchConfig[] => {
    const chosen = upTo(2, () => pick(names));
    return [...new Set(chosen)].map((name) =>
      random(3) === 0
        ? { name, type: 'RegularExpression', value: pick(['.*', '1.*', '[12]', '(1|2)(,(1|2))*']) }
        : { name, type: 'Exact', value: pick(values) },
    );
  };
  const match = (): MatchConfig => {
    const sketch = pick([`=${path()}`, path(), path(), `~${pick(['/.*', '/x+', '/(x|y)/?.*', '.*y', '/xx?'])}`]);
    return sketchMatch(sketch, {
      method: random(3) === 0 ? pick(['GET', 'POST', 'PURGE']) : null,
      headers: random(2) === 0 ? texts() : [],
      queryParams: random(2) === 0 ? texts() : [],
    });
  };
  let matched = 0;
  for (let round = 0; round < 200; round++) {
    const sketches: RouteSketch[] = Array.from({ length: 1 + random(6) }, () => ({
      ...(random(5) === 0 ? { listeners: ['l1'] } : {}),
      ...(random(2) === 0 ? {} : { hostnames: [pick(['h', '*.h', 'g.h'])] }),
      rules: Array.from({ length: 1 + random(3) }, () => Array.from({ length: 1 + random(2) }, match)),
    }));
    const table = buildTable(sketches);
    const routes = sketchRoutes(sketches);
    for (let i = 0; i < 40; i++) {
      const fields = upTo(3, () => [pick(names), pick(values)] as const);
      const parameters = upTo(3, () => [pick(names), pick(values)] as const);
      const query = parameters.map(([name, value]) => `${name}=${value.replace(' ', '%20')}`).join('&');
      const sketch: RequestSketch = {
        method: pick(['GET', 'POST', 'PURGE']),
        host: pick(['h', 'g.h', 'i.g.h', 'x']),
        target: pick([path(), `${path()}/`, '/x/y/z']) + (query === '' ? '' : `?${query}`),
        headers: [
          'content-length: 0',
          ...fields.map(([name, value]) => `${pick([name, name.toUpperCase()])}: ${value}`),
        ],
        listener: random(2),
      };
      const headers = new Map<string, string>();
      for (const [name, value] of fields)
        headers.set(name, headers.has(name) ? `${headers.get(name)},${value}` : value);
      const expected = naiveLookup(routes, {
        host: sketch.host!,
        path: sketch.target!.replace(/\?.*/, ''),
        listener: `l${sketch.listener}`,
        method: sketch.method!,
        headers,
        query: new Map(parameters.toReversed()),
      });
      if (expected >= 0) matched++;
      const actual = lookupRequest(table, sketch);
      assert.equal(actual, expected, `seed ${seed}, round ${round}: ${JSON.stringify([sketch, sketches])}`);
    }
  }
  assert.ok(matched > 1000, 'the requests must exercise the tables');
});

test('10,000 rules for 1,000 hosts and 10 prefixes each find their own requests', () => {
  const routes: RouteConfig[] = [];
  for (let h = 0; h < 1000; h++) {
    const prefixes = Array.from({ length: 10 }, (_, p) => [`/service-${p}/v1`]);
    routes.push({
      ...sketchRoutes([{ hostnames: [`host-${h}.example.com`], rules: prefixes }])[0]!,
      name: `host-${h}`,
    });
  }
  const table = new RouteTable(compileRouteTable({ listeners: ['l0'], backends: ['b'], routes }));
  assert.equal(table.ruleCount, 10_000);
  for (let h = 0; h < 1000; h++) {
    for (let p = 0; p < 10; p++) {
      const rule = lookup(table, `host-${h}.example.com`, `/service-${p}/v1/items`);
      assert.equal(rule, h * 10 + p);
      assert.equal(table.ruleLabel(rule), `host-${h} rule ${p + 1}`);
    }
    assert.equal(lookup(table, `host-${h}.example.com`, '/service-1'), -1);
  }
  assert.equal(lookup(table, 'host-1000.example.com', '/service-0/v1'), -1);
});
