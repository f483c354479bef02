// What a change has left behind goes without anything else being allocated.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { MemoryReturn } from '../../../../core/process/memory-return.ts';

test('garbage of a change is collected soon after it, though nothing asks for memory', {
  timeout: 60_000,
}, async (t) => {
  const memory = new MemoryReturn();
  t.after(() => memory.close());
  const collected = new WeakRef(Array.from({ length: 300_000 }, (_, index) => ({ index })));
  // The reference is good for this turn, and a collection by the engine itself would take more allocation than follows.
  memory.changed();
  const usedBytes = process.memoryUsage().heapUsed;
  while (collected.deref() !== undefined) await delay(20);
  assert.ok(process.memoryUsage().heapUsed < usedBytes - 8 * 1024 * 1024);
});
