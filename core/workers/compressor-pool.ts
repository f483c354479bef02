// The compressor thread seen from the control thread: started when a snapshot first needs it, replaced when it
// dies, and joined with the packet workers by one shared area each.
//
// Whoever of the two starts anew gets a new area, so that neither has to understand what a dead one left
// behind. While there is no thread, workers are told so, and responses pass as they are.
// Owned by the control thread.

import { once } from 'node:events';
import { Worker } from 'node:worker_threads';
import { createArea } from './compress-layout.ts';
import type { Log } from './log.ts';
import { RestartBackoff } from './restart-backoff.ts';

/** What the compressor thread is told: a worker's thread is new. */
export interface CompressMessage {
  worker: number;
  area: SharedArrayBuffer;
  /** Descriptor that wakes the worker. */
  wakeFd: number;
}

/** A packet worker's link to the compressor; null: there is none now. */
export interface CompressorLink {
  area: SharedArrayBuffer;
  bell: SharedArrayBuffer;
}

/** A packet worker, as the pool needs it. */
export interface CompressorUser {
  readonly index: number;
  readonly wakeFd: number;
  /** Takes a new link, or learns that there is none. */
  useCompressor(link: CompressorLink | null): void;
}

/** How long a first snapshot waits for the thread; without it responses pass as they are. */
const START_WAIT_MS = 5000;

/** Starts, feeds, watches and stops the compressor thread. */
export class CompressorPool {
  private readonly users: readonly CompressorUser[];
  private readonly log: Log;
  private readonly backoff = new RestartBackoff();
  private thread: Worker | undefined;
  private ready = false;
  private bell = new SharedArrayBuffer(4);
  private started: Promise<void> | undefined;
  private startedMs = 0;
  private restartTimer: NodeJS.Timeout | undefined;
  private cause: unknown;
  private stopping = false;

  constructor(users: readonly CompressorUser[], log: Log) {
    this.users = users;
    this.log = log;
  }

  /** Starts the thread if it has not been yet, and resolves when it serves (or takes too long). */
  start(): Promise<void> {
    if (this.stopping) return Promise.resolve();
    this.started ??= new Promise((resolve) => {
      const timer = setTimeout(resolve, START_WAIT_MS);
      this.launch(() => {
        clearTimeout(timer);
        resolve();
      });
    });
    return this.started;
  }

  /** A packet worker's thread is new: joins it with the compressor, if there is one. */
  join(user: CompressorUser): void {
    if (!this.ready) return;
    const area = createArea();
    this.thread!.postMessage({ worker: user.index, area, wakeFd: user.wakeFd } satisfies CompressMessage);
    user.useCompressor({ area, bell: this.bell });
  }

  /** Ends the thread. */
  async stop(): Promise<void> {
    this.stopping = true;
    clearTimeout(this.restartTimer);
    const { thread } = this;
    if (thread === undefined) return;
    // Ended while it loads native code, it would take the process with it.
    if (!this.ready) await Promise.race([once(thread, 'message'), once(thread, 'exit')]).catch(() => {});
    await thread.terminate();
  }

  private launch(whenReady: () => void): void {
    this.cause = undefined;
    this.startedMs = performance.now();
    this.bell = new SharedArrayBuffer(4);
    const thread = new Worker(new URL('./compress-thread.ts', import.meta.url), {
      workerData: this.bell,
      name: 'compressor',
    });
    this.thread = thread;
    thread.once('message', () => {
      this.ready = true;
      for (const user of this.users) this.join(user);
      whenReady();
    });
    thread.on('error', (error) => {
      this.cause = error;
    });
    thread.on('exit', (code) => this.died(code));
  }

  private died(code: number): void {
    this.thread = undefined;
    this.ready = false;
    if (this.stopping) return;
    for (const user of this.users) user.useCompressor(null);
    const restartInMs = this.backoff.next(performance.now() - this.startedMs);
    const { cause } = this;
    this.log('error', 'compressor thread died', {
      cause: cause instanceof Error ? (cause.stack ?? cause.message) : `exit code ${code}`,
      restartInMs,
    });
    this.restartTimer = setTimeout(() => this.launch(() => {}), restartInMs);
  }
}
