// Gives memory back that a node proxy has needed for a while: the engine collects garbage only as it allocates, and the C
// heap keeps what was freed, so what a large change or a compilation has left behind would stay resident.
//
// A collection stops the control thread for 30 to 100 ms; it is made after changes, and never often. Trimming takes 3 ms.

import { getHeapStatistics, setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { trimHeap } from '../ffi/process.ts';

/** Time without a change before memory is given back: what the last of several leaves behind goes with the rest. */
const QUIET_MS = 300;

/** Time between two collections in terms of what the last one took: they may have a twentieth of the thread. */
const REST_SHARE = 20;

/** How often the C heap is trimmed: threads that compile hot code free all that they have needed, wherever that lies. */
const TRIM_EVERY_MS = 3_000;

/** Heap that has come since the last collection before it is worth another one. */
const GROWTH_BYTES = 2 * 1024 * 1024;

/** Gives back memory of the calling thread, and of the C heap of all. */
export class MemoryReturn {
  private timer: NodeJS.Timeout | undefined;
  private trimming: NodeJS.Timeout | undefined;
  private nextMs = 0;
  /** Heap in use after the last collection. */
  private usedBytes = 0;
  private collect: (() => void) | undefined;

  /** Something has been done that leaves garbage. */
  changed(): void {
    this.trimming ??= setInterval(trimHeap, TRIM_EVERY_MS).unref();
    clearTimeout(this.timer);
    const waitMs = Math.max(QUIET_MS, this.nextMs - performance.now());
    this.timer = setTimeout(() => this.giveBack(), waitMs).unref();
  }

  /** Ends. */
  close(): void {
    clearTimeout(this.timer);
    clearInterval(this.trimming);
  }

  private giveBack(): void {
    if (getHeapStatistics().used_heap_size - this.usedBytes < GROWTH_BYTES) return;
    const startMs = performance.now();
    this.collect ??= collector();
    this.collect();
    trimHeap();
    this.usedBytes = getHeapStatistics().used_heap_size;
    const endMs = performance.now();
    this.nextMs = endMs + REST_SHARE * (endMs - startMs);
  }
}

/** The engine's collector, which only contexts made with the flag have. */
function collector(): () => void {
  setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc') as (options: object) => void;
  setFlagsFromString('--no-expose-gc');
  // The kind that moves what is left together, or most pages would stay for the sake of some of their bytes.
  return () => collect({ type: 'major', execution: 'sync', flavor: 'last-resort' });
}
