// The access log seen from the control thread: starts the writer thread, and tells it what to do.
//
// Owned by the control thread. The writer is the only consumer of the rings; if its thread dies it
// is started again and goes on at the ring's tail, so nothing is lost or written twice but the line
// it was writing.

import { Worker } from 'node:worker_threads';

/** `workerData` of the writer thread. */
export interface SinkStart {
  path: string;
  rings: SharedArrayBuffer[];
}

/** What the control thread tells the writer. */
export type SinkCommand =
  | { type: 'reopen'; path: string; token: number }
  | { type: 'rings'; rings: SharedArrayBuffer[] }
  | { type: 'flush'; token: number }
  | { type: 'close' };

/** What the writer tells the control thread. `failures` counts since the thread's start. */
export type SinkReport =
  | { type: 'error'; message: string; failures: number }
  | { type: 'flushed'; token: number }
  | { type: 'reopened'; token: number; opened: boolean }
  | { type: 'closed' };

/** Called with one sentence when the log cannot be written; at most once per 10 seconds and cause. */
export type SinkErrorHandler = (message: string, failures: number) => void;

/** How long `flush` and `reopen` wait for a disk that does not answer. */
const ANSWER_TIMEOUT_MS = 5000;

/** How long `close` waits for the writer thread, which itself gives a slow pipe two seconds. */
const CLOSE_TIMEOUT_MS = 5000;

/** Pause before a dead writer thread is started again. */
const RESTART_MS = 1000;

/** Writes the lines of several rings to one file, on a thread of its own. */
export class AccessLogSink {
  private path: string;
  private rings: SharedArrayBuffer[];
  private readonly onError: SinkErrorHandler;
  private worker: Worker | undefined;
  private restartTimer: NodeJS.Timeout | undefined;
  /** Calls of `flush` and `reopen` that wait for the writer's answer. */
  private readonly waiters = new Map<number, (done: boolean) => void>();
  private nextToken = 1;
  private onClosed: (() => void) | undefined;
  private closing: Promise<void> | undefined;

  /**
   * Starts writing to `path` (`-`: standard output). `rings[i]` is worker i's, from `createByteRing`.
   * A path that cannot be opened is reported through `onError` and tried again twice a second.
   */
  constructor(path: string, rings: readonly SharedArrayBuffer[], onError: SinkErrorHandler = () => {}) {
    this.path = path;
    this.rings = [...rings];
    this.onError = onError;
    this.launch();
  }

  /**
   * Opens the file again, under another path if one is given: after logrotate, or a reload. Lines
   * logged while this happens go to either file, but none to both or neither. Resolves to whether the
   * file is open now; if not, the cause is reported through `onError`, and it is tried again.
   */
  reopen(path = this.path): Promise<boolean> {
    this.path = path;
    return this.ask((token) => ({ type: 'reopen', path, token }), ANSWER_TIMEOUT_MS);
  }

  /** Also reads the rings beyond those known so far, after workers were added. */
  setRings(rings: readonly SharedArrayBuffer[]): void {
    this.rings = [...rings];
    this.send({ type: 'rings', rings: this.rings });
  }

  /** Resolves to true once all lines logged before are written; to false when the disk did not take them in time. */
  flush(timeoutMs = ANSWER_TIMEOUT_MS): Promise<boolean> {
    return this.ask((token) => ({ type: 'flush', token }), timeoutMs);
  }

  /** Writes what is there and ends the thread. Call it after the workers have stopped logging. */
  close(): Promise<void> {
    this.closing ??= this.shutDown();
    return this.closing;
  }

  private async shutDown(): Promise<void> {
    clearTimeout(this.restartTimer);
    const worker = this.worker;
    if (worker !== undefined) {
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, CLOSE_TIMEOUT_MS);
        this.onClosed = () => {
          clearTimeout(timer);
          resolve();
        };
        worker.postMessage({ type: 'close' } satisfies SinkCommand);
      });
      // Not awaited: a thread inside a system call cannot be ended.
      void worker.terminate();
    }
    for (const settle of [...this.waiters.values()]) settle(false);
  }

  private launch(): void {
    const start: SinkStart = { path: this.path, rings: this.rings };
    const worker = new Worker(new URL('./access-log-writer.ts', import.meta.url), {
      name: 'access-log',
      // Node options of the main program (an --eval, for one) are not this thread's.
      execArgv: [],
      workerData: start,
    });
    worker.on('message', (report: SinkReport) => this.receive(report));
    worker.on('error', (error) => this.onError(`the access log writer failed: ${String(error)}`, 1));
    worker.on('exit', () => {
      this.worker = undefined;
      this.onClosed?.();
      for (const settle of [...this.waiters.values()]) settle(false);
      if (this.closing !== undefined) return;
      this.restartTimer = setTimeout(() => this.launch(), RESTART_MS);
      this.restartTimer.unref();
    });
    // Logging alone must not keep the process alive. Last: a message listener takes the hold again.
    worker.unref();
    this.worker = worker;
  }

  private receive(report: SinkReport): void {
    switch (report.type) {
      case 'error':
        this.onError(report.message, report.failures);
        break;
      case 'flushed':
        this.waiters.get(report.token)?.(true);
        break;
      case 'reopened':
        this.waiters.get(report.token)?.(report.opened);
        break;
      case 'closed':
        this.onClosed?.();
        break;
    }
  }

  /** Sends a command and waits for its answer; false when there is nobody to give one, or not in time. */
  private ask(command: (token: number) => SinkCommand, timeoutMs: number): Promise<boolean> {
    if (this.worker === undefined || this.closing !== undefined) return Promise.resolve(false);
    const token = this.nextToken++;
    return new Promise((resolve) => {
      const settle = (done: boolean): void => {
        clearTimeout(timer);
        this.waiters.delete(token);
        resolve(done);
      };
      const timer = setTimeout(() => settle(false), timeoutMs);
      this.waiters.set(token, settle);
      this.send(command(token));
    });
  }

  private send(command: SinkCommand): void {
    if (this.closing === undefined) this.worker?.postMessage(command);
  }
}
