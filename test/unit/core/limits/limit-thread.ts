// A thread that takes from a limit's table as fast as it can, for limit-table.test.ts.

import { parentPort, workerData } from 'node:worker_threads';
import type { RateLimitSettings } from '../../../../core/limits/limit-settings.ts';
import { LimitTable } from '../../../../core/limits/limit-table.ts';

/** What the thread does. */
export interface Job {
  buffer: SharedArrayBuffer;
  settings: RateLimitSettings;
  worker: number;
  /** Keys 0 to `keys` - 1 are taken in turn, from a place of the thread's own; 0: a limit without keys. */
  keys: number;
  /** So often, each at a time of its own: `startMs` plus the share of `spanMs` that has been done. */
  takes: number;
  startMs: number;
  spanMs: number;
  /** Threads wait until as many as this have come. */
  gate: SharedArrayBuffer;
  threads: number;
}

/** The two halves of the hash of a key in these tests. */
export function hashOf(key: number): [number, number] {
  return [Math.imul(key + 1, 0x9e37_79b1), Math.imul(key + 1, 0x85eb_ca6b) | 0];
}

const { buffer, settings, worker, keys, takes, startMs, spanMs, gate, threads } = workerData as Job;
const table = new LimitTable(buffer, settings, worker);
const allowed = new Int32Array(Math.max(keys, 1));
const gates = new Int32Array(gate);
Atomics.add(gates, 0, 1);
while (Atomics.load(gates, 0) < threads);
for (let i = 0; i < takes; i++) {
  const key = keys === 0 ? 0 : (i + worker * 7) % keys;
  const [low, high] = keys === 0 ? [0, 0] : hashOf(key);
  if (table.take(low, high, startMs + (spanMs * i) / takes)) allowed[key]++;
}
parentPort!.postMessage(allowed);
