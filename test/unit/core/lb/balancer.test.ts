// The balancer: what it takes from health, priorities, zones, labels and slow start, and when it looks again.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { PickFailure } from '../../../../core/lb/balancer.ts';
import { hashText } from '../../../../core/lb/hash.ts';
import { CheckState, createNodeState, EndpointWord } from '../../../../core/lb/node-state.ts';
import type { BalancerPolicy } from '../../../../core/lb/settings.ts';
import { NodeSlots } from '../../../../core/workers/node-slots.ts';
import { Bench, countPicks } from './fixture.ts';

const { ACTIVE, CHECK, DRAINING, STARTED_AT_MS, WAS_UNUSABLE, WITHHELD_PERMILLE } = EndpointWord;
const { HEALTHY, UNHEALTHY } = CheckState;

const policies: BalancerPolicy[] = ['RoundRobin', 'LeastRequest', 'Random', 'RingHash', 'Maglev', 'PeakEWMA'];

function near(actual: readonly number[], expected: readonly number[], tolerance = 0.02): void {
  expected.forEach((share, i) => {
    assert.ok(Math.abs(actual[i]! - share) <= tolerance, `${i}: ${actual.join(' ')}, expected ${expected.join(' ')}`);
  });
}

for (const policy of policies) {
  test(`${policy}: unhealthy, ejected and draining endpoints get nothing, and get their share when they are back`, () => {
    const bench = new Bench([{}, {}, {}, {}, {}, {}, {}], { policy, ringSizeMin: 8192 });
    near(bench.shares(), new Array<number>(7).fill(1 / 7), 0.03);
    bench.set(1, CHECK, UNHEALTHY);
    bench.set(3, DRAINING, 1);
    bench.set(5, WITHHELD_PERMILLE, 1000);
    near(bench.shares(), [0.25, 0, 0.25, 0, 0.25, 0, 0.25], 0.04);
    for (const gone of [1, 3, 5]) assert.equal(bench.balancer.isUsable(gone), false);
    bench.set(1, CHECK, HEALTHY);
    bench.set(3, DRAINING, 0);
    bench.set(5, WITHHELD_PERMILLE, 0);
    near(bench.shares(), new Array<number>(7).fill(1 / 7), 0.03);
  });

  test(`${policy}: an attempt that is to avoid an endpoint gets another one whenever there is one`, () => {
    const bench = new Bench([{ weight: 1000 }, {}], { policy, panicThresholdPercent: 0 });
    bench.exchange.avoidEndpoint = 0;
    for (let i = 0; i < 300; i++) assert.equal(bench.pick(), 1);
    bench.set(1, CHECK, UNHEALTHY);
    assert.equal(bench.pick(), 0);
  });

  test(`${policy}: a share that passive health withholds is missing from the weight`, () => {
    const bench = new Bench([{}, {}, {}], { policy, ringSizeMin: 8192, panicThresholdPercent: 0 });
    bench.set(2, WITHHELD_PERMILLE, 950);
    // PeakEWMA divides cost by weight, which is not the same as shares by weight.
    if (policy === 'PeakEWMA') return;
    near(bench.shares(), [20 / 41, 20 / 41, 1 / 41], 0.03);
  });
}

test('withheld shares are those of outlier detection: a backend without it knows none', () => {
  const bench = new Bench([{}, {}, {}], { policy: 'Random' });
  bench.backend.policy.outlierDetection = null;
  const balancer = bench.another();
  bench.set(0, WITHHELD_PERMILLE, 1000);
  bench.set(1, WITHHELD_PERMILLE, 500);
  const counts = countPicks(3, 6000, () => balancer.pick(bench.exchange));
  near(
    counts.map((count) => count / 6000),
    [1 / 3, 1 / 3, 1 / 3],
    0.03,
  );
  assert.equal(balancer.isUsable(0), true);
});

for (const policy of ['RingHash', 'Maglev'] as const) {
  test(`${policy}: an endpoint that returns by steps takes and gives keys of its own share, and hardly any others move`, () => {
    const bench = new Bench(new Array<object>(100).fill({}), { policy });
    bench.exchange.hashed = true;
    const places = (): number[] =>
      Array.from({ length: 10_000 }, (_, key) => {
        bench.exchange.hash = hashText(`${key}`, 0);
        return bench.pick();
      });
    const whole = places();
    let before = 0;
    for (const withheld of [1000, 990, 900, 500]) {
      bench.set(7, WITHHELD_PERMILLE, withheld);
      const now = places();
      const own = now.filter((endpoint) => endpoint === 7).length;
      // A hundredth of 1/100 of the keys is hardly one of these; a point of the ring is more.
      const least = withheld === 1000 || policy === 'Maglev' ? 0 : 1;
      assert.ok(withheld === 1000 ? own === 0 : own >= Math.max(least, before), `${withheld}: ${own} after ${before}`);
      before = own;
      const others = now.filter((endpoint, key) => whole[key] !== 7 && endpoint !== whole[key]).length;
      if (policy === 'RingHash') assert.equal(others, 0, `${withheld}`);
      else assert.ok(others < 500, `${withheld}: ${others}`);
    }
    bench.set(7, WITHHELD_PERMILLE, 0);
    assert.deepEqual(places(), whole);
  });
}

test('RingHash: a whole ring rests after it was made for as long as its real size asks', () => {
  // The lightest has one point, so that the ring has 80,001 of them and not 1024.
  const bench = new Bench([{ weight: 1 }, { weight: 40_000 }, { weight: 40_000 }], { policy: 'RingHash' });
  bench.pick();
  bench.set(1, CHECK, UNHEALTHY);
  assert.equal(bench.shares(1000)[1], 0);
  bench.node.words[bench.node.endpointAt(1) + CHECK] = HEALTHY;
  bench.node.changed(bench.backend.slot);
  bench.clock.nowMs += 90;
  assert.equal(bench.shares(1000)[1], 0);
  bench.clock.nowMs += 20;
  assert.notEqual(bench.shares(1000)[1], 0);
});

test('a retry leaves its level and its zone when nothing else is there', () => {
  const levels = new Bench([{}, { priority: 1 }, { priority: 2 }]);
  levels.exchange.avoidEndpoint = 0;
  for (let i = 0; i < 20; i++) assert.equal(levels.pick(), 1);
  levels.set(1, CHECK, UNHEALTHY);
  for (let i = 0; i < 20; i++) assert.equal(levels.pick(), 2);
  levels.set(2, DRAINING, 1);
  assert.equal(levels.pick(), 0, 'there is no other');
  // Zone a keeps two thirds of its requests, and b gets the rest.
  const zones = new Bench(
    [...'abb'].map((zone) => ({ zone })),
    { zoneAware: { zone: 'a', endpointsMin: 1 } },
  );
  zones.exchange.avoidEndpoint = 0;
  for (const share of zones.shares(300).slice(1)) assert.ok(share > 0.3, `${share}`);
  // It keeps all of them, so that b has no group.
  const rich = new Bench(
    [...'ab'].map((zone) => ({ zone })),
    { zoneAware: { zone: 'a', endpointsMin: 1 } },
  );
  assert.deepEqual(rich.shares(100), [1, 0]);
  rich.exchange.avoidEndpoint = 0;
  assert.deepEqual(rich.shares(100), [0, 1]);
});

test('health that changes without a new generation is not looked at: a pick costs one load', () => {
  const bench = new Bench([{}, {}]);
  bench.pick();
  bench.node.words[bench.node.endpointAt(0) + CHECK] = UNHEALTHY;
  near(bench.shares(1000), [0.5, 0.5]);
  bench.node.changed(bench.backend.slot);
  near(bench.shares(1000), [0, 1]);
});

test('a wave of changes in a large backend is taken in with pauses, and then as a whole', () => {
  const bench = new Bench(Array.from({ length: 1000 }, () => ({})));
  bench.pick();
  bench.set(7, CHECK, UNHEALTHY);
  assert.equal(bench.shares(1000)[7], 0);
  bench.node.words[bench.node.endpointAt(8) + CHECK] = UNHEALTHY;
  bench.node.changed(bench.backend.slot);
  assert.notEqual(bench.shares(1000)[8], 0);
  // 1000 endpoints cost ten milliseconds of rest.
  bench.clock.nowMs += 10;
  assert.equal(bench.shares(1000)[8], 0);
});

test('without a usable endpoint the failure says why', () => {
  const bench = new Bench([{ labels: { v: 'a' } }, {}], { panicThresholdPercent: 0 });
  bench.set(0, CHECK, UNHEALTHY);
  bench.set(1, DRAINING, 1);
  assert.equal(bench.pick(), -1);
  assert.equal(bench.balancer.failure(bench.exchange), PickFailure.UNUSABLE);
  bench.ask({ v: 'none' });
  assert.equal(bench.pick(), -1);
  assert.equal(bench.balancer.failure(bench.exchange), PickFailure.SUBSET_EMPTY);
  const empty = new Bench([]);
  assert.equal(empty.pick(), -1);
  assert.equal(empty.balancer.failure(empty.exchange), PickFailure.NONE);
});

test('below the panic threshold all endpoints but draining ones are used, which is logged once per change', () => {
  const bench = new Bench([{}, {}, {}, {}, {}]);
  bench.set(4, DRAINING, 1);
  bench.pick();
  bench.set(0, CHECK, UNHEALTHY);
  bench.set(1, CHECK, UNHEALTHY);
  near(bench.shares(2000), [0, 0, 0.5, 0.5, 0]);
  assert.equal(bench.balancer.inPanic, false);
  bench.set(2, CHECK, UNHEALTHY);
  near(bench.shares(2000), [0.25, 0.25, 0.25, 0.25, 0]);
  assert.equal(bench.balancer.inPanic, true);
  assert.equal(bench.panicLevels, 1);
  // Another worker finds the state as it is noted already.
  bench.another().pick(bench.exchange);
  bench.set(3, CHECK, UNHEALTHY);
  near(bench.shares(2000), [0.25, 0.25, 0.25, 0.25, 0]);
  for (let i = 0; i < 4; i++) bench.set(i, CHECK, HEALTHY);
  near(bench.shares(2000), [0.25, 0.25, 0.25, 0.25, 0]);
  assert.equal(bench.balancer.inPanic, false);
  assert.deepEqual(
    bench.lines.map((line) => line.replace(/, so that.*/, '')),
    [
      'warn backend b: 1 of 4 endpoints are usable',
      'info backend b: only usable endpoints are used again, 4 of 4 endpoints are usable',
    ],
  );
});

test('levels of priority take the load in their order, by 1.4 times what is usable of them', () => {
  const bench = new Bench([
    { priority: 7 },
    { priority: 7 },
    ...Array.from({ length: 4 }, () => ({ priority: 2 })),
    { priority: 9 },
  ]);
  near(bench.shares(4000), [0, 0, 0.25, 0.25, 0.25, 0.25, 0]);
  bench.set(2, CHECK, UNHEALTHY);
  near(bench.shares(4000), [0, 0, 0, 1 / 3, 1 / 3, 1 / 3, 0]);
  bench.set(3, CHECK, UNHEALTHY);
  near(bench.shares(), [0.15, 0.15, 0, 0, 0.35, 0.35, 0]);
  bench.set(4, CHECK, UNHEALTHY);
  bench.set(0, CHECK, UNHEALTHY);
  // 35 and 70 are more than 100 together.
  near(bench.shares(), [0, 0.65, 0, 0, 0, 0.35, 0]);
  bench.set(5, CHECK, UNHEALTHY);
  near(bench.shares(), [0, 0.7, 0, 0, 0, 0, 0.3]);
  assert.deepEqual(bench.lines, []);
});

test('a key keeps its level as long as the loads of the levels stay', () => {
  const bench = new Bench([{}, {}, { priority: 1 }, { priority: 1 }], { policy: 'Maglev' });
  bench.set(0, CHECK, UNHEALTHY);
  bench.exchange.hashed = true;
  const levels = [0, 0];
  for (let key = 0; key < 1000; key++) {
    bench.exchange.hash = hashText(`${key}`, 0);
    const first = bench.pick();
    for (let i = 0; i < 3; i++) assert.equal(bench.pick(), first);
    levels[first < 2 ? 0 : 1]!++;
  }
  assert.ok(Math.abs(levels[0]! / 1000 - 0.7) < 0.05, levels.join(' '));
});

test('zones: the own one first, and others for what it cannot carry', () => {
  const zones = [...'aabbbbccc'].map((zone) => ({ zone }));
  const bench = new Bench(zones, { zoneAware: { zone: 'a', endpointsMin: 6 } });
  // 2/9 of the weight where 1/3 is sent: two thirds stay, the rest goes to b, which alone has more than its third.
  near(bench.shares(), [1 / 3, 1 / 3, 1 / 12, 1 / 12, 1 / 12, 1 / 12, 0, 0, 0]);
  const rich = new Bench(zones, { zoneAware: { zone: 'b', endpointsMin: 6 } });
  near(rich.shares(), [0, 0, 0.25, 0.25, 0.25, 0.25, 0, 0, 0]);
  for (const gone of [2, 3, 4, 5]) rich.set(gone, CHECK, UNHEALTHY);
  // Nothing is left of b: five endpoints are fewer than six, so zones do not matter.
  near(rich.shares(), [0.2, 0.2, 0, 0, 0, 0, 0.2, 0.2, 0.2]);
});

test('subsets: only endpoints with all the labels, each subset with its own health', () => {
  const bench = new Bench([
    { labels: { v: '1', tier: 'x' } },
    { labels: { v: '2', tier: 'x' } },
    { labels: { v: '2', tier: 'y' } },
    {},
  ]);
  bench.ask({ v: '2' });
  near(bench.shares(1000), [0, 0.5, 0.5, 0]);
  bench.ask({ v: '2', tier: 'y' });
  near(bench.shares(1000), [0, 0, 1, 0]);
  const subset = bench.exchange.refPolicy!.subset!;
  assert.deepEqual(
    [0, 1, 2, 3].map((i) => bench.balancer.isInSubset(i, subset)),
    [false, false, true, false],
  );
  bench.ask({ v: '2' });
  bench.set(1, CHECK, UNHEALTHY);
  near(bench.shares(1000), [0, 0, 1, 0]);
  bench.exchange.refPolicy = null;
  near(bench.shares(3000), [1 / 3, 0, 1 / 3, 1 / 3]);
});

test('slow start: a new endpoint comes to its weight in steps over the window', () => {
  const bench = new Bench([{}, {}], { slowStart: { windowMs: 10_000, aggression: 1, minWeightPercent: 10 } });
  bench.node.words[bench.node.endpointAt(1) + STARTED_AT_MS] = 1000;
  const share = (factor: number): number[] => [1 / (1 + factor), factor / (1 + factor)];
  near(bench.shares(), share(0.1), 0.005);
  // Between two steps the weight stays.
  bench.clock.nowMs = 1999;
  near(bench.shares(), share(0.1), 0.005);
  bench.clock.nowMs = 6000;
  near(bench.shares(), share(0.5), 0.005);
  bench.clock.nowMs = 11_000;
  near(bench.shares(), [0.5, 0.5], 0.005);
  assert.equal(bench.word(1, STARTED_AT_MS), 0, 'it has started, also when the clock begins anew');
});

test('slow start: aggression lifts the beginning', () => {
  const bench = new Bench([{}, {}], { slowStart: { windowMs: 10_000, aggression: 2, minWeightPercent: 1 } });
  bench.node.words[bench.node.endpointAt(1) + STARTED_AT_MS] = 1000;
  bench.clock.nowMs = 1000 + 2500;
  // (1/4) ^ (1/2)
  near(bench.shares(), [2 / 3, 1 / 3], 0.005);
});

test('slow start: an endpoint that is usable again starts anew, once for all workers', () => {
  const bench = new Bench([{}, {}], {
    panicThresholdPercent: 0,
    slowStart: { windowMs: 10_000, aggression: 1, minWeightPercent: 10 },
  });
  bench.set(1, CHECK, UNHEALTHY);
  near(bench.shares(100), [1, 0]);
  bench.clock.nowMs = 49_000;
  bench.set(1, CHECK, HEALTHY);
  near(bench.shares(), [10 / 11, 1 / 11], 0.005);
  bench.clock.nowMs = 55_000;
  const late = bench.another();
  late.pick(bench.exchange);
  assert.equal(bench.word(1, STARTED_AT_MS), 50_000);
});

test('slow start: a worker that looks while another one notes a return finds the start', (t) => {
  const bench = new Bench([{}, {}], {
    panicThresholdPercent: 0,
    slowStart: { windowMs: 10_000, aggression: 1, minWeightPercent: 10 },
  });
  bench.set(1, CHECK, UNHEALTHY);
  bench.pick();
  const flag = bench.node.endpointAt(1) + WAS_UNUSABLE;
  const seen: number[] = [];
  const look = (at: number): void => {
    if (at === flag && bench.node.words[flag] === 0) seen.push(bench.word(1, STARTED_AT_MS));
  };
  for (const name of ['store', 'compareExchange'] as const) {
    const original = Atomics[name] as (...words: unknown[]) => number;
    t.mock.method(Atomics, name, (words: Int32Array, at: number, ...rest: number[]) => {
      const result = original(words, at, ...rest);
      look(at);
      return result;
    });
  }
  bench.set(1, CHECK, HEALTHY);
  bench.pick();
  assert.deepEqual(seen, [bench.clock.nowMs]);
});

test('slow start: endpoints that come to a known backend start now, those that it begins with do not', () => {
  const { backend } = new Bench([{}, {}, {}]);
  const slots = new NodeSlots(1, createNodeState(1, 8, 2));
  const started = (endpoint: number): number =>
    slots.state.words[slots.state.endpointAt(backend.endpoints[endpoint]!.slot) + STARTED_AT_MS]!;
  const third = backend.endpoints.pop()!;
  slots.assign([backend], 5000);
  assert.deepEqual([started(0), started(1)], [0, 0]);
  backend.endpoints.push(third);
  slots.assign([backend], 6000);
  slots.assign([backend], 7000);
  assert.deepEqual([started(0), started(1), started(2)], [0, 0, 6000]);
});

test('LeastRequest counts the requests of all workers', () => {
  const bench = new Bench([{}, {}], { policy: 'LeastRequest' });
  bench.node.add(bench.node.endpointAt(0) + ACTIVE, 3);
  near(bench.shares(500), [0, 1]);
  near(
    Array.from({ length: 2 }, (_, i) => (bench.another().pick(bench.exchange) === i ? 1 : 0)),
    [0, 1],
  );
});

test('a balancer suits a backend that has not changed, and no other', () => {
  const bench = new Bench([{ zone: 'a' }, { labels: { v: '1' } }, { labels: { v: '1', track: 'beta' } }]);
  const same = structuredClone(bench.backend);
  assert.equal(bench.balancer.suits(same, bench.node), true);
  same.endpoints[2]!.policy.place.labels = { track: 'beta', v: '1' };
  assert.equal(bench.balancer.suits(same, bench.node), true, 'labels have no order');
  const changes: ((backend: typeof same) => void)[] = [
    (backend) => backend.endpoints.pop(),
    (backend) => void (backend.endpoints[0]!.weight = 2),
    (backend) => void (backend.endpoints[0]!.slot = 9),
    (backend) => void (backend.endpoints[0]!.policy.place.zone = 'b'),
    (backend) => void (backend.endpoints[1]!.policy.place.labels.v = '2'),
    (backend) => void (backend.endpoints[1]!.policy.place.labels.track = 'beta'),
    (backend) => void (backend.endpoints[1]!.policy.place.labels = {}),
    (backend) => void (backend.endpoints[1]!.policy.place.priority = 1),
    (backend) => void (backend.policy.balancer!.policy = 'Random'),
    (backend) => void (backend.policy.outlierDetection = null),
    (backend) => void (backend.name = 'other'),
  ];
  for (const change of changes) {
    const other = structuredClone(bench.backend);
    change(other);
    assert.equal(bench.balancer.suits(other, bench.node), false, String(change));
  }
});
