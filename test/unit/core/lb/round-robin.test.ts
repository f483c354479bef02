// Weighted round robin: exact shares in every round, spread evenly, wherever a worker begins.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { RoundRobin } from '../../../../core/lb/round-robin.ts';
import { seededRandom } from '../io/seed.ts';

/** Longest round before weights are scaled down. */
const ROUND_LENGTH_MAX = 16384;

function picks(picker: RoundRobin, count: number): number[] {
  return Array.from({ length: count }, () => picker.pick(0));
}

function counts(list: number[], endpoints: number): number[] {
  const result = new Array<number>(endpoints).fill(0);
  for (const endpoint of list) result[endpoint]++;
  return result;
}

function sumOf(weights: number[]): number {
  return weights.reduce((sum, weight) => sum + weight, 0);
}

/** Longest run of one endpoint, the round being repeated. */
function longestRun(round: number[], endpoint: number): number {
  let longest = 0;
  let run = 0;
  for (const each of [...round, ...round]) {
    run = each === endpoint ? run + 1 : 0;
    longest = Math.max(longest, run);
  }
  return longest;
}

test('a backend without endpoints has nothing to pick', () => {
  const picker = new RoundRobin([], 0.7);
  assert.deepEqual(picks(picker, 3), [-1, -1, -1]);
});

test('equal weights take turns', () => {
  for (const weight of [1, 100]) {
    const list = picks(new RoundRobin([weight, weight, weight], 0), 9);
    assert.deepEqual(new Set(list.slice(0, 3)), new Set([0, 1, 2]));
    assert.deepEqual(list.slice(3, 6), list.slice(0, 3));
    assert.deepEqual(list.slice(6), list.slice(0, 3));
  }
});

test('every round gives each endpoint exactly its share, from any start', () => {
  const weights = [5, 1, 3, 7];
  for (const seed of [0, 0.3, 0.5, 0.999, 1]) {
    const picker = new RoundRobin(weights, seed);
    for (let round = 0; round < 3; round++) assert.deepEqual(counts(picks(picker, 16), 4), weights, `${seed}`);
  }
});

test('many light endpoints come evenly between the turns of a heavy one', () => {
  const light = 100;
  const weights = [3 * light, ...new Array<number>(light).fill(1)];
  const round = picks(new RoundRobin(weights, 0), 4 * light);
  assert.ok(longestRun(round, 0) <= 8, `${longestRun(round, 0)} picks of the heavy one in a row`);
  // A stretch of 40 picks owes 10 to the light ones.
  for (let start = 0; start + 40 <= round.length; start++) {
    const lightPicks = round.slice(start, start + 40).filter((endpoint) => endpoint > 0).length;
    assert.ok(lightPicks >= 7 && lightPicks <= 13, `${lightPicks} from ${start}`);
  }
});

test('a common divisor of the weights makes the round shorter', () => {
  // Scaled to the longest round instead, these would not come out even after seven picks.
  const picker = new RoundRobin([500_000, 100_000, 100_000], 0);
  for (let round = 0; round < 3000; round++) assert.deepEqual(counts(picks(picker, 7), 3), [5, 1, 1]);
});

test('the others come between the turns of a heavy endpoint, not after all of them', () => {
  const round = picks(new RoundRobin([5, 1, 1], 0), 7);
  assert.ok(longestRun(round, 0) <= 3, round.join(' '));
  const wide = picks(new RoundRobin([30, ...new Array<number>(10).fill(1)], 0), 40);
  assert.ok(longestRun(wide, 0) <= 6, wide.join(' '));
  assert.ok(longestRun(picks(new RoundRobin([1, 1, 5], 0), 7), 2) <= 3);
});

test('at any point of any round, each endpoint is close to its share of the picks so far', (t) => {
  const { random, label } = seededRandom(t);
  for (let i = 0; i < 200; i++) {
    const weights = Array.from({ length: random.int(1, 12) }, () =>
      random.pick([1, random.int(1, 9), random.int(1, 300)]),
    );
    const sum = sumOf(weights);
    const picker = new RoundRobin(weights, random.float());
    const soFar = new Array<number>(weights.length).fill(0);
    const about = `${label}: weights ${weights.join(' ')}`;
    for (let pick = 1; pick <= sum; pick++) {
      soFar[picker.pick(0)]++;
      for (const [endpoint, weight] of weights.entries()) {
        const distance = Math.abs(soFar[endpoint] - (pick * weight) / sum);
        assert.ok(distance <= 6, `${about}: endpoint ${endpoint} is ${distance} off`);
      }
    }
    assert.deepEqual(soFar, weights, about);
  }
});

test('weights too large for a round are scaled, and up to 16 endpoints keep their shares within 0.2 % of the whole', (t) => {
  const { random, label } = seededRandom(t);
  for (let i = 0; i < 20; i++) {
    const weights = Array.from({ length: random.int(2, 16) }, () => random.size(1, 1_000_000));
    weights[0] = 999_983;
    const sum = sumOf(weights);
    const picker = new RoundRobin(weights, random.float());
    // The length of the round is not visible; over many rounds its rest does not count.
    const total = 20 * (ROUND_LENGTH_MAX + weights.length);
    for (const [endpoint, count] of counts(picks(picker, total), weights.length).entries()) {
      const off = Math.abs(count / total - weights[endpoint] / sum);
      assert.ok(off < 0.002, `${label}: weights ${weights.join(' ')}: endpoint ${endpoint} is ${off} off`);
      assert.ok(count > 0, `${label}: endpoint ${endpoint} is never picked`);
    }
  }
});

test('workers that start elsewhere pick other endpoints first', () => {
  const firsts = [0, 0.25, 0.5, 0.75].map((seed) => new RoundRobin([1, 1, 1, 1], seed).pick(0));
  assert.equal(new Set(firsts).size, 4);
});
