// The policies by their published properties: shares, bounds, and what moves when an endpoint goes.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { hashText } from '../../../../core/lb/hash.ts';
import { LeastRequest, WeightedLeastRequest } from '../../../../core/lb/least-request.ts';
import { Maglev } from '../../../../core/lb/maglev.ts';
import { EndpointWord } from '../../../../core/lb/node-state.ts';
import { observeFailure, observeLatency, PeakEwma } from '../../../../core/lb/peak-ewma.ts';
import type { Members, Picker } from '../../../../core/lb/picker.ts';
import { WeightedRandom } from '../../../../core/lb/random.ts';
import { pointsPerWeight, RING_POINTS_MAX, RingHash, RingPoints } from '../../../../core/lb/ring-hash.ts';
import { RoundRobin } from '../../../../core/lb/round-robin.ts';
import { bitsOf, countPicks, membersOf } from './fixture.ts';

const { ACTIVE, LATENCY_US, WORDS } = EndpointWord;

/** Keys of requests. */
const keys = Int32Array.from({ length: 20_000 }, (_, i) => hashText(`user-${i}`, 0));

/** A ring of all that is configured. */
function ring(members: Members, sizeMin: number, sizeMax: number): RingHash {
  return new RingHash(members, pointsPerWeight(members.weights, sizeMin, sizeMax));
}

function without(members: Members, gone: number): Members {
  const left = [...members.hashes.keys()].filter((i) => i !== gone);
  return {
    count: left.length,
    weights: Float64Array.from(left, (i) => members.weights[i]!),
    positions: Int32Array.from(left, (i) => members.positions[i]!),
    hashes: Int32Array.from(left, (i) => members.hashes[i]!),
  };
}

/** Share of the keys that go elsewhere when `gone` goes: those it had, and others. */
function moved(make: (members: Members) => Picker, members: Members, gone: number): { own: number; others: number } {
  const before = make(members);
  const after = make(without(members, gone));
  let own = 0;
  let others = 0;
  for (const key of keys) {
    const was = before.pick(key);
    const now = after.pick(key);
    if (was === gone) own++;
    else if (was !== (now >= gone ? now + 1 : now)) others++;
  }
  return { own: own / keys.length, others: others / keys.length };
}

test('no policy picks among no endpoints, and every policy picks the only one', () => {
  const words = new Int32Array(WORDS);
  const clock = { nowMs: 1 };
  const makers: ((members: Members) => Picker)[] = [
    (members) => new RoundRobin(members.weights, 0.5),
    (members) => new WeightedRandom(members.weights),
    (members) => new LeastRequest(members, words, 3),
    (members) => new WeightedLeastRequest(members, words, 5),
    (members) => ring(members, 1024, 8192),
    (members) => new Maglev(members, 251),
    (members) => new PeakEwma(members, words, clock, 1000),
  ];
  for (const make of makers) {
    const none = make(membersOf([]));
    const one = make(membersOf([3]));
    for (const bits of [0, -1, 1 << 31, 12_345]) {
      assert.equal(none.pick(bits), -1, none.constructor.name);
      assert.equal(one.pick(bits), 0, one.constructor.name);
    }
  }
});

test('Random: shares are those of the weights, however different', () => {
  const weights = [1, 2, 3, 1000, 0.5, 1];
  const sum = weights.reduce((total, weight) => total + weight);
  const picker = new WeightedRandom(weights);
  const bits = bitsOf(7);
  const picks = 400_000;
  const counts = countPicks(weights.length, picks, () => picker.pick(bits.next()));
  weights.forEach((weight, i) => {
    const expected = (picks * weight) / sum;
    // Five standard deviations of a count.
    assert.ok(Math.abs(counts[i]! - expected) < 5 * Math.sqrt(expected), `${i}: ${counts[i]} of ${expected}`);
  });
});

test('RoundRobin: an endpoint worth less than a place of the longest round gets no more than its share', () => {
  const weights = [...new Array<number>(200).fill(1000), 1];
  const picker = new RoundRobin(weights, 0);
  const bits = bitsOf(3);
  const picks = 2_000_000;
  const counts = countPicks(weights.length, picks, () => picker.pick(bits.next()));
  const expected = picks / 200_001;
  assert.ok(Math.abs(counts[200]! - expected) < 5 * Math.sqrt(expected), `${counts[200]} of ${expected}`);
  assert.ok(Math.abs(counts[0]! - picks / 200) < picks / 200 / 20, `${counts[0]}`);
});

test('LeastRequest: two choices keep the longest queue far below that of one', () => {
  const count = 100;
  const longest = (choices: number): number => {
    const words = new Int32Array(count * WORDS);
    const members = membersOf(new Array<number>(count).fill(1));
    const picker = choices === 1 ? new WeightedRandom(members.weights) : new LeastRequest(members, words, choices);
    const bits = bitsOf(11);
    // Balls into bins: as many requests as endpoints, none of which ends.
    for (let i = 0; i < 100 * count; i++) words[picker.pick(bits.next()) * WORDS + ACTIVE]!++;
    return Math.max(...Array.from({ length: count }, (_, i) => words[i * WORDS + ACTIVE]!)) - 100;
  };
  // Above the mean: about sqrt(2 m ln n / n) = 30 for one choice, ln ln n / ln 2 = 2.2 for two (Mitzenmacher).
  const [one, two, five] = [longest(1), longest(2), longest(5)];
  assert.ok(one > 15, `one choice: ${one}`);
  assert.ok(two <= 5, `two choices: ${two}`);
  assert.ok(five <= 2, `five choices: ${five}`);
});

test('LeastRequest: a stuck endpoint gets nothing while others are idle', () => {
  const words = new Int32Array(3 * WORDS);
  words[WORDS + ACTIVE] = 50;
  const picker = new LeastRequest(membersOf([1, 1, 1]), words, 2);
  const bits = bitsOf(1);
  assert.equal(countPicks(3, 3000, () => picker.pick(bits.next()))[1], 0);
});

test('LeastRequest with weights: shares by weight while idle, and by weight / (requests + 1) under load', () => {
  const words = new Int32Array(3 * WORDS);
  const picker = new WeightedLeastRequest(membersOf([1, 2, 5]), words, 9);
  assert.deepEqual(
    countPicks(3, 8000, () => picker.pick()).map((count) => Math.round(count / 1000)),
    [1, 2, 5],
  );
  // Four requests make the heavy one worth 5 / 5: as much as the light one.
  words[2 * WORDS + ACTIVE] = 4;
  const loaded = countPicks(3, 8000, () => picker.pick());
  assert.deepEqual(
    loaded.map((count) => Math.round(count / 1000)),
    [2, 4, 2],
  );
});

test('RingHash: the size follows minimum, maximum and weights', () => {
  assert.equal(ring(membersOf([1, 1, 1, 1]), 1024, 8192).size, 1024);
  // Envoy's scale: the lightest gets a whole number of points.
  assert.equal(ring(membersOf([1, 1, 1]), 1024, 8192).size, 1026);
  assert.equal(ring(membersOf([1, 999]), 10, 1 << 20).size, 1000);
  // The lightest has its half a point or a whole one.
  assert.ok(Math.abs(ring(membersOf([1, 999]), 10, 500).size - 500) <= 1);
  const many = ring(membersOf([...new Array<number>(999).fill(1000), 1]), 1024, 1 << 23);
  assert.ok(Math.abs(many.size / RING_POINTS_MAX - 1) < 0.01, `${many.size}`);
  assert.equal(ring(membersOf(new Array<number>(1000).fill(1)), 1, 10).size, 1000, 'nobody is left out');
});

test('RingHash: a ring of the points of more endpoints is the one that would be made anew', () => {
  const weights = Array.from({ length: 60 }, (_, i) => 1 + (i % 5));
  const all = membersOf(weights);
  const perWeight = pointsPerWeight(weights, 4096, 8192);
  const points = new RingPoints(all.hashes, all.weights, perWeight);
  for (const keep of [(i: number) => i % 3 !== 0, (i: number) => i > 57, () => true, () => false]) {
    const kept = weights.keys().filter(keep).toArray();
    const memberOf = new Int32Array(weights.length).fill(-1);
    kept.forEach((i, member) => {
      memberOf[i] = member;
    });
    const members: Members = {
      count: kept.length,
      // Every second one is worth less for a while.
      weights: Float64Array.from(kept, (i, member) => weights[i]! * (member % 2 === 0 ? 1 : 0.3)),
      positions: Int32Array.from(kept, (i) => all.positions[i]!),
      hashes: Int32Array.from(kept, (i) => all.hashes[i]!),
    };
    const anew = new RingHash(members, perWeight);
    const passed = new RingHash(members, perWeight, points, memberOf);
    assert.equal(passed.size, anew.size);
    for (let i = 0; i < 5000; i++) assert.equal(passed.pick(i * 858_993), anew.pick(i * 858_993));
  }
});

test('RingHash: shares come near the weights, and a key stays where it is', () => {
  const members = membersOf([1, 1, 2, 4]);
  const whole = ring(members, 8192, 1 << 20);
  const counts = [0, 0, 0, 0];
  for (const key of keys) counts[whole.pick(key)]!++;
  [1, 1, 2, 4].forEach((weight, i) => {
    const expected = weight / 8;
    assert.ok(Math.abs(counts[i]! / keys.length - expected) < 0.1 * expected + 0.01, `${i}: ${counts[i]}`);
  });
  const again = ring(members, 8192, 1 << 20);
  for (const key of keys) assert.equal(again.pick(key), whole.pick(key));
});

test('RingHash: when one of ten goes, its keys move and no others', () => {
  const members = membersOf(new Array<number>(10).fill(1));
  for (let gone = 0; gone < 10; gone++) {
    // As many points for each whether there are ten or nine, so that only the owner's go.
    const make = (some: Members): Picker => ring(some, 200 * some.count, 1 << 20);
    const { own, others } = moved(make, members, gone);
    assert.ok(own > 0.07 && own < 0.13, `${gone}: ${own}`);
    assert.equal(others, 0);
  }
});

test('Maglev: shares are within 1 % of equal, and within 2 % of the weights', () => {
  const equal = new Maglev(membersOf(new Array<number>(20).fill(1)), 65_537);
  const places = new Array<number>(20).fill(0);
  for (let place = 0; place < 65_537; place++) places[equal.pick(place)]!++;
  for (const count of places) assert.ok(Math.abs(count / (65_537 / 20) - 1) < 0.01, `${count}`);
  const weights = [1, 2, 3, 10];
  const weighted = new Maglev(membersOf(weights), 65_537);
  const byWeight = [0, 0, 0, 0];
  for (let place = 0; place < 65_537; place++) byWeight[weighted.pick(place)]!++;
  weights.forEach((weight, i) => {
    assert.ok(Math.abs(byWeight[i]! / ((65_537 * weight) / 16) - 1) < 0.02, `${i}: ${byWeight[i]}`);
  });
});

test('Maglev: when one of n goes, its 1/n of the keys move and few others', () => {
  for (const count of [5, 20, 50]) {
    const members = membersOf(new Array<number>(count).fill(1));
    const { own, others } = moved((some) => new Maglev(some, 65_537), members, count >> 1);
    assert.ok(Math.abs(own * count - 1) < 0.15, `${count}: ${own}`);
    // The paper's figure for a table of 65537: a few percent of the rest.
    assert.ok(others < 0.04, `${count}: ${others} of the others`);
  }
});

test('Maglev: the order of the configuration does not matter', () => {
  const members = membersOf([1, 2, 3, 4, 5]);
  const turned: Members = {
    count: 5,
    weights: members.weights.toReversed(),
    positions: members.positions.toReversed(),
    hashes: members.hashes.toReversed(),
  };
  const one = new Maglev(members, 1009);
  const other = new Maglev(turned, 1009);
  for (let place = 0; place < 1009; place++) assert.equal(other.pick(place), 4 - one.pick(place));
});

test('PeakEWMA: the average comes to a steady latency from above and from below', () => {
  for (const start of [1_000_000, 100]) {
    const words = new Int32Array(WORDS);
    observeLatency(words, 0, start, 0, 1000);
    for (let ms = 1; ms <= 10_000; ms++) observeLatency(words, 0, 5000, ms, 1000);
    assert.ok(Math.abs(words[LATENCY_US]! - 5000) < 100, `from ${start}: ${words[LATENCY_US]}`);
  }
});

test('PeakEWMA: a peak counts at once, and has lost its weight after some decay times', () => {
  const words = new Int32Array(WORDS);
  observeLatency(words, 0, 1000, 0, 1000);
  observeLatency(words, 0, 200_000, 1, 1000);
  assert.ok(words[LATENCY_US]! >= 200_000);
  observeLatency(words, 0, 1000, 1001, 1000);
  // 1/e of the peak is left after one decay time.
  assert.ok(Math.abs(words[LATENCY_US]! - (200_000 / Math.E + 1000 * (1 - 1 / Math.E))) < 5, `${words[LATENCY_US]}`);
});

test('PeakEWMA: small steps add up although averages are whole microseconds', () => {
  const words = new Int32Array(WORDS);
  observeLatency(words, 0, 600, 0, 10_000);
  // Each step alone would move the average by less than half a microsecond.
  for (let ms = 1; ms <= 30_000; ms++) observeLatency(words, 0, 500, ms, 10_000);
  assert.ok(Math.abs(words[LATENCY_US]! - 505) <= 5, `${words[LATENCY_US]}`);
});

test('PeakEWMA: one slow endpoint of ten gets next to nothing, and its share again when it has recovered', () => {
  const count = 10;
  const words = new Int32Array(count * WORDS);
  const clock = { nowMs: 0 };
  const picker = new PeakEwma(membersOf(new Array<number>(count).fill(1)), words, clock, 1000);
  const bits = bitsOf(5);
  const run = (slowUs: number, requests: number): number[] => {
    return countPicks(count, requests, () => {
      const endpoint = picker.pick(bits.next());
      clock.nowMs += 1;
      observeLatency(words, endpoint * WORDS, endpoint === 3 ? slowUs : 1000, clock.nowMs, 1000);
      return endpoint;
    });
  };
  run(100_000, 1000);
  const slow = run(100_000, 10_000);
  assert.ok(slow[3]! < 100, `slow: ${slow[3]} of 10000`);
  run(1000, 20_000);
  const recovered = run(1000, 10_000);
  assert.ok(recovered[3]! > 500 && recovered[3]! < 2000, `recovered: ${recovered[3]} of 10000`);
});

test('PeakEWMA: an endpoint that fails fast is not the fastest', () => {
  const words = new Int32Array(2 * WORDS);
  const clock = { nowMs: 0 };
  const picker = new PeakEwma(membersOf([1, 1]), words, clock, 1000);
  const bits = bitsOf(2);
  observeLatency(words, 0, 2000, 0, 1000);
  observeFailure(words, WORDS, 50, 0, 1000);
  for (let i = 0; i < 100; i++) assert.equal(picker.pick(bits.next()), 0);
  const first = words[WORDS + LATENCY_US]!;
  observeFailure(words, WORDS, 50, 1, 1000);
  assert.ok(words[WORDS + LATENCY_US]! > 5 * first, 'further failures weigh more');
});

test('PeakEWMA: an endpoint without any answer is tried with one request, not with all', () => {
  const words = new Int32Array(2 * WORDS);
  const picker = new PeakEwma(membersOf([1, 1]), words, { nowMs: 0 }, 1000);
  const bits = bitsOf(4);
  observeLatency(words, 0, 2000, 0, 1000);
  assert.equal(picker.pick(bits.next()), 1);
  words[WORDS + ACTIVE] = 1;
  for (let i = 0; i < 50; i++) assert.equal(picker.pick(bits.next()), 0);
});
