// LeastRequest and endpoints that refuse connections: an endpoint that fails at once has the fewest requests in progress.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  LEFT_OUT_FIRST_MS,
  LEFT_OUT_MOST_MS,
  leftOutMs,
  noteConnectFailure,
} from '../../../../core/lb/connect-failures.ts';
import { EndpointWord } from '../../../../core/lb/node-state.ts';
import type { BalancerSettings } from '../../../../core/lb/settings.ts';
import { Bench, countPicks, type Sketch } from './fixture.ts';

/** A backend of so many endpoints under a steady load, some of which refuse connections. */
class Load {
  readonly bench: Bench;
  readonly refusing: ReadonlySet<number>;
  readonly refused: number[] = [];

  constructor(endpoints: readonly Sketch[], refusing: number[], settings: Partial<BalancerSettings> = {}) {
    this.bench = new Bench(endpoints, { policy: 'LeastRequest', ...settings });
    this.refusing = new Set(refusing);
  }

  /** One request every millisecond, each of which takes `requestMs`; returns how many went to each endpoint. */
  run(requests: number, requestMs = 20): number[] {
    const { node, clock, backend } = this.bench;
    const ends: number[] = [];
    return countPicks(backend.endpoints.length, requests, () => {
      clock.nowMs += 1;
      const ended = ends.length >= requestMs ? ends.shift()! : -1;
      if (ended >= 0) node.add(node.endpointAt(ended) + EndpointWord.ACTIVE, -1);
      const endpoint = this.bench.pick();
      if (this.refusing.has(endpoint)) {
        this.refused.push(clock.nowMs);
        noteConnectFailure(node, backend.slot, endpoint, clock.nowMs);
        ends.push(-1);
      } else {
        node.add(node.endpointAt(endpoint) + EndpointWord.ACTIVE, 1);
        ends.push(endpoint);
      }
      return endpoint;
    });
  }
}

const equal = Array.from({ length: 10 }, (): Sketch => ({}));
const weighted = Array.from({ length: 10 }, (_, i): Sketch => ({ weight: 1 + (i % 3) }));

for (const [what, endpoints] of [['equal', equal] as const, ['different', weighted] as const]) {
  test(`an endpoint that refuses gets a handful of requests a minute, with ${what} weights`, () => {
    const load = new Load(endpoints, [4]);
    const counts = load.run(60_000);
    // After 0, 1, 3, 7, 15, 31 and 47 s.
    assert.ok(counts[4]! >= 5 && counts[4]! <= 8, `${counts}`);
    const others = counts.filter((_, i) => i !== 4);
    assert.ok(Math.min(...others) > 2000, `${counts}`);
  });
}

test('the time for which it is left out doubles up to its bound', () => {
  const load = new Load(equal, [4]);
  load.run(120_000);
  const pauses = load.refused.slice(1).map((ms, i) => ms - load.refused[i]!);
  const expected = [1000, 2000, 4000, 8000, 16_000, 16_000, 16_000];
  expected.forEach((ms, i) => {
    assert.ok(pauses[i]! >= ms && pauses[i]! < ms * 1.2, `${pauses}`);
  });
});

test('a failure after as long in peace is a first one again', () => {
  const { bench } = new Load(equal, []);
  const { node, backend } = bench;
  const at = node.endpointAt(3);
  const fail = (nowMs: number): number => {
    noteConnectFailure(node, backend.slot, 3, nowMs);
    return leftOutMs(node.words, at, nowMs);
  };
  assert.equal(fail(5000), LEFT_OUT_FIRST_MS);
  assert.equal(fail(5500), 500, 'what was under way changes nothing');
  assert.equal(fail(6100), 2 * LEFT_OUT_FIRST_MS);
  assert.equal(fail(10_000), 2 * 2 * LEFT_OUT_FIRST_MS);
  assert.equal(fail(18_000), LEFT_OUT_FIRST_MS);
});

test('times are right when the 32-bit clock begins anew, and a stamp of long ago is none of now', () => {
  const { bench } = new Load(equal, []);
  const { node, backend } = bench;
  const wrap = 2 ** 31;
  noteConnectFailure(node, backend.slot, 3, wrap - 100);
  assert.equal(leftOutMs(node.words, node.endpointAt(3), wrap + 300), LEFT_OUT_FIRST_MS - 400);
  assert.equal(leftOutMs(node.words, node.endpointAt(3), wrap + 2000), 0);
  assert.equal(leftOutMs(node.words, node.endpointAt(3), wrap + 2 ** 31 + 5000), 0);
  assert.ok(LEFT_OUT_MOST_MS < 60_000);
});

test('it comes back by itself when its time is over, and takes its share', () => {
  const load = new Load(equal, []);
  const { bench } = load;
  noteConnectFailure(bench.node, bench.backend.slot, 4, bench.clock.nowMs);
  assert.equal(load.run(LEFT_OUT_FIRST_MS - 2)[4], 0);
  assert.ok(load.run(2000)[4]! > 150);
});

test('where all endpoints refuse all are used: it is not an ejection', () => {
  const load = new Load(equal, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
  assert.ok(Math.min(...load.run(5000)) > 300);
  assert.equal(load.bench.panicLevels, 0);
});

test('a zone that refuses hands its requests over to another one', () => {
  const endpoints: Sketch[] = [{ zone: 'a' }, { zone: 'a' }, { zone: 'b' }, { zone: 'b' }];
  const load = new Load(endpoints, [0, 1], { zoneAware: { zone: 'a', endpointsMin: 1 } });
  const counts = load.run(10_000);
  assert.ok(counts[0]! + counts[1]! < 20, `${counts}`);
});

test('other policies go on as they are', () => {
  const load = new Load(equal, [4], { policy: 'RoundRobin' });
  assert.ok(load.run(1000).every((count) => count >= 98 && count <= 102));
  const keyed = new Load(equal, [4], { policy: 'RingHash' });
  const { exchange } = keyed.bench;
  exchange.hashed = true;
  const before = Array.from({ length: 200 }, (_, i) => {
    exchange.hash = Math.imul(i, 0x9e3779b9);
    return keyed.bench.pick();
  });
  noteConnectFailure(keyed.bench.node, keyed.bench.backend.slot, 4, keyed.bench.clock.nowMs);
  keyed.bench.clock.nowMs += 1;
  before.forEach((endpoint, i) => {
    exchange.hash = Math.imul(i, 0x9e3779b9);
    assert.equal(keyed.bench.pick(), endpoint);
  });
});
