// The timer wheel against a plain list of deadlines, and its corners by name.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { TICK_MS, TimerWheel } from '../../../../core/io/timer-wheel.ts';
import { seededRandom } from './seed.ts';

/** Span of the ring; deadlines beyond it pass through its last bucket. */
const RING_MS = 8192 * TICK_MS;

/** Runs the wheel from one moment to another in steps, and notes when each slot fired. */
function runUntil(wheel: TimerWheel, fromMs: number, toMs: number, stepMs: number): [slot: number, atMs: number][] {
  const fired: [number, number][] = [];
  for (let nowMs = fromMs; nowMs <= toMs; nowMs += stepMs) {
    wheel.nowMs = nowMs;
    wheel.advance(nowMs, (slot) => fired.push([slot, nowMs]));
  }
  return fired;
}

test('a deadline fires once, not before its time and at most one tick after', () => {
  for (const deadlineMs of [0.5, 1, 9.999, 10, 10.001, 15, 20, 1234.567]) {
    const wheel = new TimerWheel(4, 0);
    wheel.set(2, deadlineMs);
    const fired = runUntil(wheel, 0, 2000, 0.5);
    assert.equal(fired.length, 1, `${deadlineMs}`);
    assert.equal(fired[0][0], 2);
    assert.ok(
      fired[0][1] >= deadlineMs && fired[0][1] <= deadlineMs + TICK_MS,
      `${deadlineMs} fired at ${fired[0][1]}`,
    );
    assert.equal(wheel.get(2), Number.POSITIVE_INFINITY);
  }
});

test('a delay counts from the current time of the wheel', () => {
  const wheel = new TimerWheel(1, 500);
  wheel.nowMs = 730.25;
  wheel.setDelay(0, 100);
  assert.equal(wheel.get(0), 830.25);
});

test('a deadline in the past fires within a tick', () => {
  const wheel = new TimerWheel(1, 0);
  runUntil(wheel, 0, 1000, 100);
  wheel.set(0, 3);
  const fired = runUntil(wheel, 1000, 1000 + TICK_MS, 1);
  assert.deepEqual(fired, [[0, 1000 + TICK_MS]]);
});

test('moved later it fires only then; moved earlier it fires then', () => {
  const wheel = new TimerWheel(2, 0);
  wheel.set(0, 100);
  wheel.set(0, 5000);
  wheel.set(1, 5000);
  wheel.set(1, 100);
  const fired = runUntil(wheel, 0, 6000, 10);
  assert.deepEqual(fired, [
    [1, 100],
    [0, 5000],
  ]);
});

test('moved later and then cleared it never fires', () => {
  const wheel = new TimerWheel(1, 0);
  wheel.set(0, 50);
  wheel.set(0, 500);
  wheel.clear(0);
  assert.deepEqual(runUntil(wheel, 0, 1000, 10), []);
  assert.equal(wheel.waitMs(1000), -1);
});

test('beyond the ring: fires at its time after several turns', () => {
  for (const deadlineMs of [RING_MS - 1, RING_MS, RING_MS + 1, 3.5 * RING_MS]) {
    const wheel = new TimerWheel(1, 0);
    wheel.set(0, deadlineMs);
    const fired = runUntil(wheel, 0, deadlineMs + 2 * TICK_MS, 1);
    assert.equal(fired.length, 1, `${deadlineMs}`);
    assert.ok(
      fired[0][1] >= deadlineMs && fired[0][1] <= deadlineMs + TICK_MS,
      `${deadlineMs} fired at ${fired[0][1]}`,
    );
  }
});

test('one advance over a very long time fires everything that is due, and nothing else', () => {
  const wheel = new TimerWheel(3, 0);
  wheel.set(0, 10);
  wheel.set(1, 10 * RING_MS);
  wheel.set(2, 21 * RING_MS);
  const fired: number[] = [];
  wheel.advance(20 * RING_MS, (slot) => fired.push(slot));
  assert.deepEqual(fired.sort(), [0, 1]);
  assert.equal(wheel.get(2), 21 * RING_MS);
});

test('after idling far longer than the ring, a new deadline is still on time', () => {
  const wheel = new TimerWheel(1, 0);
  const nowMs = 50.5 * RING_MS;
  wheel.nowMs = nowMs;
  wheel.setDelay(0, 250);
  const fired = runUntil(wheel, nowMs, nowMs + 1000, 1);
  assert.equal(fired.length, 1);
  assert.ok(fired[0][1] >= nowMs + 250 && fired[0][1] <= nowMs + 250 + TICK_MS);
});

test('a worker that has run for a year still moves deadlines earlier', () => {
  const wheel = new TimerWheel(2, 0);
  const yearMs = 365 * 24 * 3600 * 1000;
  wheel.advance(yearMs, () => undefined);
  wheel.nowMs = yearMs;
  wheel.setDelay(0, 60_000);
  wheel.setDelay(1, 60_000);
  wheel.setDelay(0, 100);
  const fired = runUntil(wheel, yearMs, yearMs + 70_000, 10);
  assert.deepEqual(fired, [
    [0, yearMs + 100],
    [1, yearMs + 60_000],
  ]);
});

test('a callback may set, move and clear any slot, itself included', () => {
  const wheel = new TimerWheel(4, 0);
  for (const slot of [0, 1, 2, 3]) wheel.set(slot, 20);
  const fired: string[] = [];
  const act = (slot: number, nowMs: number): void => {
    fired.push(`${slot} at ${nowMs}`);
    if (fired.length !== 1) return;
    // The first to fire deals with all the others, which are due in the same bucket.
    const others = [0, 1, 2, 3].filter((each) => each !== slot);
    wheel.clear(others[0]);
    wheel.set(others[1], nowMs + 30);
    wheel.set(others[2], nowMs + 100);
    wheel.set(others[2], nowMs + 60);
    wheel.set(slot, nowMs + 90);
  };
  for (let nowMs = 0; nowMs <= 500; nowMs += 10) wheel.advance(nowMs, (slot) => act(slot, nowMs));
  const first = Number(fired[0][0]);
  const others = [0, 1, 2, 3].filter((each) => each !== first);
  assert.deepEqual(fired, [`${first} at 20`, `${others[1]} at 50`, `${others[2]} at 80`, `${first} at 110`]);
});

test('tells how long there is nothing to do', () => {
  const wheel = new TimerWheel(2, 0);
  assert.equal(wheel.waitMs(0), -1);
  assert.equal(wheel.isDue(1e9), false);
  wheel.set(0, 105);
  const waitMs = wheel.waitMs(2.5);
  assert.ok(Number.isInteger(waitMs) && waitMs >= 102.5 && waitMs <= 102.5 + TICK_MS, `${waitMs}`);
  assert.equal(wheel.isDue(104), false);
  assert.equal(wheel.isDue(110), true);
  assert.equal(wheel.waitMs(500), 0);
});

test('random use agrees with a list of deadlines', (t) => {
  const { random, label } = seededRandom(t);
  for (let round = 0; round < 30; round++) {
    const slots = random.int(1, 40);
    const originMs = random.between(0, 1e7);
    let nowMs = originMs;
    const wheel = new TimerWheel(slots, originMs);
    const reference = new Array<number>(slots).fill(Number.POSITIVE_INFINITY);
    /** Slots set while behind the clock fire up to one tick after the time of setting. */
    const floorMs = new Array<number>(slots).fill(0);
    const set = (slot: number): void => {
      // Short, usual, beyond the ring, and in the past.
      const delayMs = random.pick([random.between(0, 30), random.between(0, 5000), random.between(0, 4 * RING_MS), -5]);
      if (random.chance(0.5) && delayMs >= 0) {
        wheel.setDelay(slot, Math.floor(delayMs));
        reference[slot] = nowMs + Math.floor(delayMs);
      } else {
        wheel.set(slot, nowMs + delayMs);
        reference[slot] = nowMs + delayMs;
      }
      floorMs[slot] = nowMs;
    };
    const change = (): void => {
      const slot = random.int(0, slots - 1);
      if (random.chance(0.15)) {
        wheel.clear(slot);
        reference[slot] = Number.POSITIVE_INFINITY;
      } else set(slot);
    };
    for (let step = 0; step < 2000; step++) {
      for (let count = random.int(0, 4); count > 0; count--) change();
      const waitMs = wheel.waitMs(nowMs);
      // Mostly as the reactor does it; now and then late, or too early.
      if (waitMs >= 0 && random.chance(0.6)) nowMs += waitMs;
      else nowMs += random.pick([0, random.between(0, 15), random.between(0, 3000), random.between(0, 2 * RING_MS)]);
      wheel.nowMs = nowMs;
      const atMs = nowMs;
      wheel.advance(nowMs, (slot) => {
        assert.ok(reference[slot] <= atMs, `${label}: slot ${slot} fired ${reference[slot] - atMs} ms early`);
        reference[slot] = Number.POSITIVE_INFINITY;
        if (random.chance(0.3)) change();
      });
      for (let slot = 0; slot < slots; slot++) {
        // The last digits of a fraction may be lost on the way to a tick.
        const latestMs = Math.max(reference[slot], floorMs[slot]) + TICK_MS + 1e-6;
        assert.ok(latestMs > nowMs, `${label}: slot ${slot} is ${nowMs - reference[slot]} ms late`);
        assert.equal(wheel.get(slot), reference[slot], label);
      }
    }
  }
});
