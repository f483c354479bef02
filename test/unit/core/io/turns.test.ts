// Turns of workloads: rounds, places of slots that change hands, and that none is lost.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Party, RESUMED, Turns } from '../../../../core/io/turns.ts';
import { Random } from '../../../sim/random.ts';

const IN = 1;
const OUT = 4;

function party(): Party {
  return new Party(new Float64Array(1), 0);
}

/** Takes turns: slot, generation and bits of each. */
function take(turns: Turns, max: number): { slot: number; generation: number; bits: number }[] {
  const events = new Int32Array(512 * 3);
  const count = turns.take(events, 3, 1, max);
  return Array.from({ length: count }, (_, i) => ({
    bits: events[i * 3]!,
    slot: events[i * 3 + 1]!,
    generation: events[i * 3 + 2]!,
  }));
}

function slots(turns: Turns, max: number): number[] {
  return take(turns, max).map(({ slot }) => slot);
}

test('each party has one turn per round, in the order in which its connections became ready', () => {
  const turns = new Turns(100);
  const [many, few] = [party(), party()];
  for (let slot = 0; slot < 5; slot++) turns.add(slot, 0, IN, many);
  for (let slot = 50; slot < 52; slot++) turns.add(slot, 0, IN, few);
  assert.deepEqual(slots(turns, 4), [0, 50, 1, 51]);
  turns.add(60, 0, IN, few);
  assert.deepEqual(slots(turns, 100), [2, 60, 3, 4]);
  assert.equal(turns.waiting, 0);
  assert.deepEqual(slots(turns, 100), []);
});

test('what is reported of a connection that waits is added to what it waits for', () => {
  const turns = new Turns(10);
  const one = party();
  turns.add(3, 7, IN, one);
  turns.add(3, 7, OUT, one);
  turns.add(3, 7, RESUMED, one);
  assert.deepEqual(take(turns, 10), [{ slot: 3, generation: 7, bits: IN | OUT | RESUMED }]);
});

test('a slot that changes hands while it waits keeps nothing of its occupant but that it was to be resumed', () => {
  const turns = new Turns(10);
  const [before, after] = [party(), party()];
  turns.add(3, 7, IN | RESUMED, before);
  turns.add(3, 8, OUT, after);
  assert.deepEqual(take(turns, 10), [{ slot: 3, generation: 8, bits: OUT | RESUMED }]);
  assert.deepEqual([before.waiting, after.waiting], [0, 0]);
});

test('one with few ready connections is noticed beside one with many, and only there', () => {
  const turns = new Turns(100);
  const [many, few] = [party(), party()];
  for (let slot = 0; slot < 20; slot++) turns.add(slot, 0, IN, many);
  take(turns, 4);
  assert.equal(turns.tookLight, false);
  assert.equal(turns.isShared, false);
  turns.add(50, 0, IN, few);
  assert.deepEqual(slots(turns, 2), [4, 50]);
  assert.equal(turns.tookLight, true);
  assert.equal(turns.isShared, true);
  take(turns, 2);
  assert.equal(turns.tookLight, false);
  assert.equal(turns.isShared, true, 'for a while');
});

test('a workload that has all turns again is alone after a while', () => {
  const turns = new Turns(100);
  const [one, other] = [party(), party()];
  turns.add(1, 0, IN, one);
  turns.add(2, 0, IN, other);
  take(turns, 2);
  assert.equal(turns.isShared, true);
  // The worker itself is nobody to share with.
  turns.add(3, 0, IN, turns.nobody);
  for (let turn = 0; turns.isShared; turn++) {
    assert.ok(turn < 100_000, 'it never ends');
    turns.add(2, 0, IN, other);
    take(turns, 2);
  }
});

test('in any order of additions and turns none is lost, doubled or kept from its turn', () => {
  for (let seed = 1; seed <= 50; seed++) {
    const random = new Random(seed);
    const turns = new Turns(64);
    const parties = [party(), party(), party()];
    const waiting = new Map<number, number>();
    for (let step = 0; step < 500; step++) {
      if (random.chance(0.7)) {
        const slot = random.int(0, 63);
        turns.add(slot, 0, IN, parties[slot % 3]!);
        if (!waiting.has(slot)) waiting.set(slot, step);
      } else {
        for (const slot of slots(turns, random.int(1, 10))) {
          const since = waiting.get(slot);
          assert.ok(since !== undefined, `seed ${seed}`);
          // Nobody of the same party has waited for longer.
          for (const [other, otherSince] of waiting) if (other % 3 === slot % 3) assert.ok(otherSince >= since);
          waiting.delete(slot);
        }
      }
      assert.equal(turns.waiting, waiting.size);
    }
    assert.deepEqual(slots(turns, 64).sort(), [...waiting.keys()].sort());
  }
});
