// Entry of a packet worker thread: runs batches for as long as it lives.
//
// The loop stays in JavaScript and sleeps in epoll_wait; messages of the control thread are taken
// from the port directly when the eventfd says so. It returns to Node's own loop only now and then,
// so that the engine's housekeeping tasks can run; that costs nothing that could be measured.

import { flushCompileCache } from 'node:module';
import { parentPort, receiveMessageOnPort, workerData } from 'node:worker_threads';
import { createLinuxKernel } from '../ffi/linux.ts';
import { TlsSessions } from '../tls/session.ts';
import { PacketWorker } from './packet-worker.ts';
import { awaitStart, type EarlyStart } from './prestart.ts';
import type { ControlMessage, WorkerMessage, WorkerStart } from './protocol.ts';

/** Longest time between two returns to Node's loop while there is work. */
const NODE_TURN_MS = 100;

/** Longest sleep, so that an idle worker's housekeeping runs too; costs one wake-up per interval. */
const SLEEP_MS_MAX = 10_000;

const port = parentPort;
if (port === null) throw new Error('core/workers/worker.ts runs as a worker thread only');
const start = awaitStart(workerData as WorkerStart | EarlyStart);

const kernel = createLinuxKernel(start.memory, start.ring);
const sessions = new TlsSessions(start.memory);
const worker = new PacketWorker(kernel, start, (message: WorkerMessage) => port.postMessage(message), sessions);

function takeMessages(): void {
  worker.messagesWaiting = false;
  for (let next = receiveMessageOnPort(port!); next !== undefined; next = receiveMessageOnPort(port!)) {
    worker.handle(next.message as ControlMessage);
  }
}

function turn(): void {
  const endMs = worker.nowMs + NODE_TURN_MS;
  do {
    worker.runBatch(SLEEP_MS_MAX);
    if (worker.messagesWaiting) takeMessages();
    if (worker.stopped) {
      port!.close();
      return;
    }
  } while (worker.nowMs < endMs);
  setImmediate(turn);
}

port.postMessage({ type: 'ready' } satisfies WorkerMessage);
takeMessages();
// Otherwise only a thread that ends in order keeps what it has compiled for the next start, and one that compiles keeps
// the compiler: 10 MiB.
if (start.index === 0) setImmediate(flushCompileCache);
setImmediate(turn);
