// The route table against a plain implementation of the Gateway API's rules, on random tables and
// requests. The seed is printed; ROUTE_TABLE_SEED repeats a run.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { compileRouteTable } from '../../../../config/compile-routes.ts';
import type { RouteConfig } from '../../../../config/config.ts';
import { RouteTable } from '../../../../core/routing/route-table.ts';
import { buildTable, lookup, type RouteSketch, sketchRoutes } from './table-fixture.ts';

const seed = Number(process.env.ROUTE_TABLE_SEED ?? Date.now() % 2 ** 31);

/** Every rule competes: the most specific hostname, then Exact, then the longest prefix, then file order. */
function naiveLookup(routes: RouteConfig[], host: string, path: string, listener: string): number {
  const name = host.toLowerCase().replace(/\.$/, '');
  let best = -1;
  let bestScore: number[] = [];
  let index = -1;
  for (const route of routes) {
    for (const rule of route.rules) {
      index++;
      if (route.listeners !== null && !route.listeners.includes(listener)) continue;
      for (const hostname of route.hostnames ?? ['']) {
        const suffix = hostname.slice(1);
        const wildcard = hostname.startsWith('*.');
        if (wildcard ? !(name.endsWith(suffix) && name.length > suffix.length) : hostname !== '' && hostname !== name) {
          continue;
        }
        for (const { path: match } of rule.matches) {
          const prefix = match.value.replace(/\/$/, '');
          const exact = match.type === 'Exact';
          if (exact ? match.value !== path : !(path === prefix || path.startsWith(`${prefix}/`))) continue;
          const hostScore = hostname === '' ? 0 : wildcard ? 1 : 2;
          const score = [hostScore, hostname.length, exact ? 1 : 0, exact ? 0 : prefix.length];
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

function isHigher(a: number[], b: number[]): boolean {
  const at = a.findIndex((value, index) => value !== b[index]);
  return at >= 0 && a[at]! > b[at]!;
}

test(`random tables route like the plain rules (seed ${seed})`, () => {
  let state = seed;
  const random = (below: number): number => {
    // mulberry32: small, and the same everywhere.
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) % below;
  };
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
      const expected = naiveLookup(routes, requestHost, requestPath, `l${listener}`);
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
