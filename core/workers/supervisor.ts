// The supervisor: keeps one packet worker per slot alive and brings all of them to one snapshot.
//
// Owned by the control thread. Knows snapshots and sockets, not configuration.
// Invariant: a listening socket is closed only after its worker has let go of it.

import { openRing, type RingMemory } from '../ffi/io-uring.ts';
import { mapMemory } from '../ffi/memory.ts';
import { openWakeup } from '../ffi/process.ts';
import { kernelMemoryBytes } from '../io/arena.ts';
import { CompressorPool } from './compressor-pool.ts';
import { EndpointLog } from './endpoint-log.ts';
import type { ListeningSockets, ListenPlan } from './listening-sockets.ts';
import type { Log } from './log.ts';
import type {
  AcmeChallengeSettings,
  DestinationAnswer,
  DestinationQuestion,
  LimitAnswer,
  LimitQuestion,
  ReloadReport,
  UsedDestinations,
  WorkerStart,
} from './protocol.ts';
import type { Snapshot } from './snapshot.ts';
import { SnapshotDeltas } from './snapshot-delta.ts';
import { WorkerSlot, type WorkerState } from './worker-slot.ts';

/** How often workers are asked for a sign of life. */
const PING_INTERVAL_MS = 1000;

/**
 * How long `apply` waits for all workers. One that needs longer is busy or dying; it still gets
 * the snapshot, and its removed sockets are closed when it does.
 */
const APPLY_TIMEOUT_MS = 10_000;
/** How long those that run wait for the others once one of them has switched: what comes next is for all of them. */
const OTHERS_MS = 1000;

/** Time beyond the drain timeout after which a silent worker counts as stuck. */
const DRAIN_MARGIN_MS = 2000;

/** Extra entries of the descriptor table: the worker's epoll instance and its spare (see Reactor). */
const EXTRA_DESCRIPTORS = 2;

/** What a supervisor is made of. */
export interface SupervisorOptions {
  workerCount: number;
  /** Module that a packet thread runs. */
  workerFile: URL;
  /** Bytes of buffers and connection slots of each worker. */
  bufferBytes: number;
  connectionsMax: number;
  /** Whether batches of system calls go through io_uring where the system allows it. */
  ioUring: boolean;
  /** Shared areas of one worker; called once per index. */
  shared: (index: number) => Pick<WorkerStart, 'metrics' | 'accessLog' | 'flightRecords'>;
  sockets: ListeningSockets;
  log: Log;
  /** Gets the requests that global rate limits count, and what to call with their answers. Absent: nobody answers. */
  onLimitQuestions?: (questions: LimitQuestion[], answer: (answers: LimitAnswer[]) => void) => void;
  /** Node proxies: told of destinations that workers do not know, see `answerDestinations`. */
  onDestinationQuestions?: (questions: DestinationQuestion[]) => void;
}

/** What became of one hand-over, over all workers. */
export interface ApplyReport extends ReloadReport {
  /** From hand-over to the last worker's answer, in milliseconds. */
  durationMs: number;
  /** Workers that had not answered in time. */
  late: number;
}

/** Starts, feeds, watches and stops the packet workers. */
export class Supervisor {
  private readonly slots: WorkerSlot[] = [];
  private readonly sockets: ListeningSockets;
  private readonly log: Log;
  private readonly endpoints: EndpointLog;
  private readonly compressors: CompressorPool;
  private pingTimer: NodeJS.Timeout | undefined;
  /** Why batches of system calls do not go through io_uring: a positive error number, or 0. */
  ringErrno = 0;

  /** Starts all threads; they wait for the first `apply`. Throws when no wake-up descriptor can be had. */
  constructor(options: SupervisorOptions) {
    this.sockets = options.sockets;
    this.log = options.log;
    this.endpoints = new EndpointLog(options.log);
    this.compressors = new CompressorPool(this.slots, options.log);
    for (let index = 0; index < options.workerCount; index++) {
      const wakeFd = openWakeup();
      if (wakeFd < 0) throw new Error(`no wake-up descriptor for worker ${index} (error ${-wakeFd})`);
      const start: WorkerStart = {
        index,
        wakeFd,
        memory: mapMemory(kernelMemoryBytes(options.bufferBytes)),
        ring: options.ioUring ? this.openRing() : null,
        connectionsMax: options.connectionsMax,
        descriptors: new SharedArrayBuffer((options.connectionsMax + EXTRA_DESCRIPTORS) * 4),
        ...options.shared(index),
      };
      const slot = new WorkerSlot(options.workerFile, start, options.log, (report) => this.endpoints.note(report));
      slot.onReady = () => this.compressors.join(slot);
      slot.onLimitQuestions = (questions) =>
        options.onLimitQuestions?.(questions, (answers) => slot.answerLimits(answers));
      slot.onDestinationQuestions = (questions) => options.onDestinationQuestions?.(questions);
      this.slots.push(slot);
      slot.launch();
    }
    this.pingTimer = setInterval(() => {
      for (const slot of this.slots) slot.ping();
    }, PING_INTERVAL_MS);
  }

  /**
   * Brings all workers to a snapshot and a set of listening sockets. Each worker's removed sockets
   * are closed as soon as it has switched: it has then accepted what was queued on them.
   */
  async apply(snapshot: Snapshot, plan: ListenPlan): Promise<ApplyReport> {
    const startMs = performance.now();
    if (snapshot.rulePolicies.some(({ compression }) => compression !== null)) await this.compressors.start();
    this.sockets.commit(plan);
    const total: ApplyReport = {
      kept: 0,
      drained: 0,
      closed: 0,
      upstreamClosed: 0,
      pauseMs: 0,
      durationMs: 0,
      late: this.slots.length,
    };
    const deltas = new SnapshotDeltas();
    // At the beginning threads are slow to start, and there is nothing that could come next.
    const runs = this.states().some(({ epochApplied }) => epochApplied > 0);
    const all = this.slots.map(async (slot) => {
      const fds = plan.listeners.map((listener) => listener.fds[slot.index]!);
      const report = await slot.apply(snapshot, fds, deltas);
      this.sockets.closeOf(slot.index, plan.removed);
      total.kept += report.kept;
      total.drained += report.drained;
      total.closed += report.closed;
      total.upstreamClosed += report.upstreamClosed;
      total.pauseMs = Math.max(total.pauseMs, report.pauseMs);
      total.late--;
    });
    await within(runs ? withOthers(all, OTHERS_MS) : Promise.all(all), APPLY_TIMEOUT_MS);
    if (total.late > 0) {
      this.log('warn', 'not all workers have switched to the new snapshot yet', {
        epoch: snapshot.epoch,
        workers: total.late,
      });
    }
    return { ...total, durationMs: performance.now() - startMs };
  }

  /** Gives all workers new session ticket keys, 80 bytes each, newest first. */
  useTicketKeys(keys: Uint8Array[]): void {
    for (const slot of this.slots) slot.useTicketKeys(keys);
  }

  /** Tells all workers what is known of destinations. */
  answerDestinations(answers: readonly DestinationAnswer[]): void {
    for (const slot of this.slots) slot.answerDestinations(answers);
  }

  /** Which destinations have been in use since this was last asked. */
  async usedDestinations(): Promise<UsedDestinations> {
    const reports = await Promise.all(this.slots.map((slot) => slot.usedDestinations()));
    return { hosts: reports.flatMap(({ hosts }) => hosts), all: reports.some(({ all }) => all) };
  }

  /** Gives all workers the ACME challenges that are open now. */
  useChallenges(challenges: AcmeChallengeSettings): void {
    for (const slot of this.slots) slot.useChallenges(challenges);
  }

  /**
   * Stops accepting, lets running exchanges end, and resolves to the number of connections that
   * were cut because they had not ended within `timeoutMs`.
   */
  async drain(idleGraceMs: number, timeoutMs: number): Promise<number> {
    const listeners = this.sockets.current;
    let silent = this.slots.length;
    let remaining = 0;
    const all = this.slots.map(async (slot) => {
      // Once the worker accepts no more, new clients must be refused, not left waiting.
      const cut = await slot.drain(idleGraceMs, timeoutMs, () => this.sockets.closeOf(slot.index, listeners));
      remaining += cut;
      silent--;
    });
    await within(Promise.all(all), timeoutMs + DRAIN_MARGIN_MS);
    if (silent > 0) this.log('error', 'workers did not answer while draining', { workers: silent });
    return remaining + silent;
  }

  /** Ends all threads and closes all listening sockets. */
  async stop(): Promise<void> {
    clearInterval(this.pingTimer);
    await Promise.all(this.slots.map((slot) => slot.stop()));
    await this.compressors.stop();
    for (const slot of this.slots) this.sockets.closeOf(slot.index, this.sockets.current);
  }

  /** State of every worker, by index. */
  states(): WorkerState[] {
    return this.slots.map((slot) => slot.state());
  }

  private openRing(): RingMemory | null {
    const ring = openRing();
    if (typeof ring !== 'number') return ring;
    this.ringErrno = ring;
    return null;
  }
}

/** Waits for the first of some promises, and for the others not longer than `othersMs` after it. */
async function withOthers(all: readonly Promise<unknown>[], othersMs: number): Promise<void> {
  await Promise.race(all);
  await within(Promise.all(all), othersMs);
}

/** Waits for a promise, but not longer than `timeoutMs`. */
async function within(promise: Promise<unknown>, timeoutMs: number): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  const timeout = new Promise<void>((resolve) => {
    timer = setTimeout(resolve, timeoutMs);
  });
  await Promise.race([promise, timeout]);
  clearTimeout(timer);
}
