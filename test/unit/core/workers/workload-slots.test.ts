// Places of workloads among the counters: kept, rested, given on, and shared when there are too many.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  readWorkload,
  WORKLOAD_SLOTS,
  WorkloadCounter,
  WorkloadCounters,
} from '../../../../core/telemetry/workload-metrics.ts';
import type { WorkloadSettings } from '../../../../core/workers/mesh-settings.ts';
import { WorkloadSlots } from '../../../../core/workers/workload-slots.ts';

const HOUR_MS = 3_600_000;

function workload(uid: string): WorkloadSettings {
  return { uid, name: `shop/${uid}` } as WorkloadSettings;
}

function workloads(from: number, to: number): WorkloadSettings[] {
  return Array.from({ length: to - from }, (_, i) => workload(`w${from + i}`));
}

test('a workload keeps its place, also when it leaves and returns', () => {
  const slots = new WorkloadSlots(1);
  const [a, b] = slots.assign([workload('a'), workload('b')], 0);
  assert.notEqual(a!.slot, b!.slot);
  slots.keepOnly([b!], 1);
  assert.deepEqual(slots.workloads, [{ slot: b!.slot, name: 'shop/b' }]);
  const [c, again] = slots.assign([workload('c'), workload('a')], 2);
  assert.equal(again!.slot, a!.slot);
  assert.notEqual(c!.slot, a!.slot);
});

test('too many workloads share the last place', () => {
  const slots = new WorkloadSlots(1);
  const given = slots.assign(workloads(0, WORKLOAD_SLOTS + 10), 0);
  assert.equal(new Set(given.map(({ slot }) => slot)).size, WORKLOAD_SLOTS);
  assert.equal(given.filter(({ slot }) => slot === WORKLOAD_SLOTS - 1).length, 11);
  assert.equal(slots.workloads.length, WORKLOAD_SLOTS);
  assert.equal(slots.workloads.at(-1)!.name, 'others');
});

test('a place is given on after a time, empty, and not while a connection is counted in it', () => {
  const slots = new WorkloadSlots(1);
  const first = slots.assign(workloads(0, WORKLOAD_SLOTS - 1), 0);
  const counters = first.slice(0, 2).map(({ slot }) => new WorkloadCounters(slots.buffer, 0, slot));
  counters[0]!.words[counters[0]!.base + WorkloadCounter.INBOUND_OPEN] = 1;
  counters[1]!.words[counters[1]!.base + WorkloadCounter.INBOUND_REQUESTS] = 5;
  slots.keepOnly(first.slice(2), 0);
  const [early] = slots.assign([workload('early')], 1000);
  assert.equal(early!.slot, WORKLOAD_SLOTS - 1, 'shared');
  const [late] = slots.assign([workload('late')], HOUR_MS);
  assert.equal(late!.slot, first[1]!.slot);
  assert.ok(readWorkload(slots.buffer, late!.slot).every((value) => value === 0));
});
