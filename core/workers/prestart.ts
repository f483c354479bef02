// The first packet thread, started before anything else: it loads its modules while the control thread
// loads its own and reads the configuration, which takes both about as long.
//
// Imports nothing of ours, so that it can be called at once. Control thread, and once in the first
// packet thread.

import { parentPort, receiveMessageOnPort, Worker } from 'node:worker_threads';
import type { WorkerStart } from './protocol.ts';

/**
 * Heap limits of a packet thread. Its buffers are outside the heap (WorkerStart.memory); the
 * heap holds connection objects, at well under 1 KiB each. A thread that passes this has a leak,
 * and is better replaced than allowed to take the process down with it. Requests allocate nothing, so a young
 * generation of the usual 50 MiB would only fill with what is left of snapshots, and stay resident.
 */
export const RESOURCE_LIMITS = { maxOldGenerationSizeMb: 1024, maxYoungGenerationSizeMb: 6, stackSizeMb: 4 };

/** Module that a packet thread runs. */
export const WORKER_FILE = new URL('./worker.ts', import.meta.url);

/** What a thread that was started early has for `workerData`: where it waits until its real data are there. */
export interface EarlyStart {
  /** That of the worker it will be. */
  index: 0;
  gate: Int32Array<SharedArrayBuffer>;
}

let early: { thread: Worker; gate: EarlyStart['gate'] } | undefined;

/** Starts a thread for the first `takeEarly`. */
export function startEarly(): void {
  const gate = new Int32Array(new SharedArrayBuffer(4));
  const thread = new Worker(WORKER_FILE, {
    workerData: { index: 0, gate } satisfies EarlyStart,
    name: 'packet-0',
    resourceLimits: RESOURCE_LIMITS,
  });
  early = { thread, gate };
  // One that cannot start is nobody's; whoever starts the next one hears why.
  const forget = (): void => {
    early = undefined;
  };
  thread.on('error', forget);
  thread.on('exit', forget);
}

/** The thread that was started early to run `file`, once, with `start` as its data; undefined when there is none. */
export function takeEarly(file: URL, start: WorkerStart): Worker | undefined {
  if (early === undefined || file.href !== WORKER_FILE.href) return undefined;
  const { thread, gate } = early;
  early = undefined;
  thread.removeAllListeners();
  thread.postMessage(start);
  Atomics.store(gate, 0, 1);
  Atomics.notify(gate, 0);
  return thread;
}

/** In a packet thread: its data, which one that was started early waits for. */
export function awaitStart(workerData: WorkerStart | EarlyStart): WorkerStart {
  if (!isEarly(workerData)) return workerData;
  Atomics.wait(workerData.gate, 0, 0);
  return receiveMessageOnPort(parentPort!)!.message as WorkerStart;
}

function isEarly(workerData: WorkerStart | EarlyStart): workerData is EarlyStart {
  return 'gate' in workerData;
}
