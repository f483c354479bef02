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
  /** Threads go from key to key together: all take the same new key, or one the new one and one the key before. */
  lockstep?: 'insert' | 'evict';
}

/** The two halves of the hash of a key in these tests. */
export function hashOf(key: number): [number, number] {
  return [Math.imul(key + 1, 0x9e37_79b1), Math.imul(key + 1, 0x85eb_ca6b) | 0];
}

const { buffer, settings, worker, keys, takes, startMs, spanMs, gate, threads, lockstep } = workerData as Job;
const table = new LimitTable(buffer, settings, worker);
const gates = new Int32Array(gate);

/** Waits until all threads have come here so often, and goes on with them at the same moment. */
function meet(times: number): void {
  Atomics.add(gates, 0, 1);
  while (Atomics.load(gates, 0) < threads * times);
}

/** Takes `takes` from keys at a time, all threads in step: the same new key, or (`evict`) a new one and the one before. */
function inStep(evict: boolean): Int32Array {
  const allowed = new Int32Array(keys + 1);
  for (let key = 1; key <= keys; key++) {
    const own = evict ? key - worker : key;
    const [low, high] = evict ? [0, own + 1] : hashOf(own);
    const nowMs = startMs + spanMs * key;
    meet(key);
    for (let i = 0; i < takes; i++) if (table.take(low, high, nowMs)) allowed[key]!++;
  }
  return allowed;
}

function freely(): Int32Array {
  const allowed = new Int32Array(Math.max(keys, 1));
  meet(1);
  for (let i = 0; i < takes; i++) {
    const key = keys === 0 ? 0 : (i + worker * 7) % keys;
    const [low, high] = keys === 0 ? [0, 0] : hashOf(key);
    if (table.take(low, high, startMs + (spanMs * i) / takes)) allowed[key]!++;
  }
  return allowed;
}

parentPort!.postMessage(lockstep === undefined ? freely() : inStep(lockstep === 'evict'));
