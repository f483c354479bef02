// One packet worker seen from the control thread: a place that a living thread fills.
//
// A thread that dies is replaced by another in the same slot, with the same listening sockets,
// shared areas and wake-up descriptor, and is brought to the current snapshot; callers who wait
// for `apply` wait on the slot, not on the thread.
// Owned by the control thread.
//
//   starting --ready--> running --died--> waiting --delay--> starting
//   any state --retire (drain or stop)--> the next death is final: gone

import { Worker } from 'node:worker_threads';
import { closeRing } from '../ffi/io-uring.ts';
import { closeDescriptor } from '../ffi/listen.ts';
import { unmapMemory } from '../ffi/memory.ts';
import { wake } from '../ffi/process.ts';
import type { CompressorLink } from './compressor-pool.ts';
import type { Log } from './log.ts';
import { RESOURCE_LIMITS, takeEarly } from './prestart.ts';
import type {
  AcmeChallengeSettings,
  ControlMessage,
  DestinationAnswer,
  DestinationQuestion,
  EndpointReport,
  LimitAnswer,
  LimitQuestion,
  ReloadReport,
  UsedDestinations,
  WorkerMessage,
  WorkerStart,
} from './protocol.ts';
import { RestartBackoff } from './restart-backoff.ts';
import type { Snapshot } from './snapshot.ts';
import { SnapshotDeltas } from './snapshot-delta.ts';

/** A ping without an answer for this long makes a worker unhealthy. */
const UNHEALTHY_AFTER_MS = 10_000;

/** How long a stopping worker may take before its thread is ended from outside. */
const STOP_GRACE_MS = 1000;

/** A ping token that no ordinary ping uses, see `drain`. */
const DRAIN_TOKEN = -1;

/** What a worker looks like from outside. */
export interface WorkerState {
  index: number;
  /** A thread runs and has reported ready. */
  up: boolean;
  /** Up, and answering pings. */
  healthy: boolean;
  /** Threads that replaced a dead one. */
  restarts: number;
  /** Wall-clock time of the last answer to a ping, in ms since 1970; 0: none yet. */
  lastPongMs: number;
  /** Epoch of the snapshot the worker runs on; 0: none yet. */
  epochApplied: number;
}

/** One worker's place. */
export class WorkerSlot {
  readonly index: number;
  private readonly file: URL;
  private readonly start: WorkerStart;
  private readonly log: Log;
  private readonly onEndpoint: (report: EndpointReport) => void;
  /** Told of requests that global rate limits count. */
  onLimitQuestions: (questions: LimitQuestion[]) => void = () => {};
  /** Told of destinations that the thread does not know. */
  onDestinationQuestions: (questions: DestinationQuestion[]) => void = () => {};
  /** Those who wait to be told which destinations are in use, by token. */
  private readonly useWaiters = new Map<number, (used: UsedDestinations) => void>();
  private readonly backoff = new RestartBackoff();

  private thread: Worker | undefined;
  private ready = false;
  private retiring = false;
  private cause: unknown;
  private startedMs = 0;
  private restartTimer: NodeJS.Timeout | undefined;
  private restarts = 0;
  private epochApplied = 0;
  private lastPongWallMs = 0;
  private nextToken = 1;
  /** Monotonic time of the oldest ping that has no answer; 0: none. */
  private unansweredSinceMs = 0;

  private current: { snapshot: Snapshot; listenerFds: number[] } | undefined;
  /** What the thread has been given last; null: nothing. */
  private sent: Snapshot | null = null;
  private challenges: AcmeChallengeSettings = { http: [], tls: [] };
  private readonly applyWaiters: { epoch: number; resolve: (report: ReloadReport) => void }[] = [];
  private onDrainBegun: (() => void) | undefined;
  private onDrained: ((remaining: number) => void) | undefined;
  private readonly exitWaiters: (() => void)[] = [];

  /** A thread of this slot has started. */
  onReady: (slot: WorkerSlot) => void = () => {};

  /** `onEndpoint` gets what the worker has seen of an endpoint. */
  constructor(file: URL, start: WorkerStart, log: Log, onEndpoint: (report: EndpointReport) => void) {
    this.file = file;
    this.index = start.index;
    this.start = start;
    this.log = log;
    this.onEndpoint = onEndpoint;
  }

  /** Starts the thread; `apply` may be called right after. */
  launch(): void {
    this.cause = undefined;
    this.ready = false;
    this.sent = null;
    this.unansweredSinceMs = 0;
    this.startedMs = performance.now();
    const thread =
      takeEarly(this.file, this.start) ??
      new Worker(this.file, {
        workerData: this.start,
        name: `packet-${this.index}`,
        resourceLimits: RESOURCE_LIMITS,
      });
    this.thread = thread;
    thread.on('message', (message: WorkerMessage) => this.receive(message));
    thread.on('error', (error) => {
      this.cause = error;
    });
    thread.on('exit', (code) => this.died(code));
  }

  /**
   * Hands a snapshot over. Resolves when the slot's thread has switched to it, or to a later one;
   * a thread that dies meanwhile leaves that to its replacement. `deltas` are shared by the slots that get this snapshot.
   */
  apply(snapshot: Snapshot, listenerFds: number[], deltas = new SnapshotDeltas()): Promise<ReloadReport> {
    this.current = { snapshot, listenerFds };
    const applied = new Promise<ReloadReport>((resolve) => this.applyWaiters.push({ epoch: snapshot.epoch, resolve }));
    this.sendSnapshot(deltas);
    return applied;
  }

  /** Hands new session ticket keys over; a thread that starts later gets them with its snapshot. */
  useTicketKeys(keys: Uint8Array[]): void {
    if (this.current !== undefined) {
      const { snapshot, listenerFds } = this.current;
      this.current = { snapshot: { ...snapshot, tls: { ...snapshot.tls, ticketKeys: keys } }, listenerFds };
    }
    if (this.ready) this.post({ type: 'ticketKeys', keys });
  }

  /** Descriptor that wakes the thread, also across restarts. */
  get wakeFd(): number {
    return this.start.wakeFd;
  }

  /** Joins the thread with a compressor thread, or (null) says that there is none. */
  useCompressor(link: CompressorLink | null): void {
    if (this.ready) this.post({ type: 'compressor', link });
  }

  /** Hands the open ACME challenges over, to a thread that starts later too. */
  useChallenges(challenges: AcmeChallengeSettings): void {
    this.challenges = challenges;
    if (this.ready) this.post({ type: 'acmeChallenges', challenges });
  }

  /**
   * Begins to drain; the thread is not replaced any more. `begun` is called once the worker has
   * stopped accepting. Resolves to the number of connections that were cut: those open at the
   * timeout, or those that a dying worker left behind.
   */
  drain(idleGraceMs: number, timeoutMs: number, begun: () => void): Promise<number> {
    this.retire();
    if (this.thread === undefined) {
      begun();
      return Promise.resolve(0);
    }
    this.onDrainBegun = begun;
    const drained = new Promise<number>((resolve) => {
      this.onDrained = resolve;
    });
    this.post({ type: 'drain', idleGraceMs, timeoutMs });
    // Messages keep their order: the answer to this ping means that `drain` has been handled.
    this.post({ type: 'ping', token: DRAIN_TOKEN });
    return drained;
  }

  /** Ends the thread now; it is not replaced. Resolves when it is gone. */
  async stop(): Promise<void> {
    this.retire();
    const thread = this.thread;
    if (thread === undefined) return;
    const gone = new Promise<void>((resolve) => this.exitWaiters.push(resolve));
    this.post({ type: 'stop' });
    const timer = setTimeout(() => {
      // A thread inside epoll_wait does not notice `terminate` until something wakes it.
      thread.terminate();
      wake(this.start.wakeFd);
    }, STOP_GRACE_MS);
    await gone;
    clearTimeout(timer);
  }

  /** Hands answers to questions of `onLimitQuestions` over; those for a thread that is gone are lost with it. */
  answerLimits(answers: LimitAnswer[]): void {
    if (this.ready) this.post({ type: 'rateLimitAnswers', answers });
  }

  /** Says what is known of destinations; a thread that starts later has to ask. */
  answerDestinations(answers: readonly DestinationAnswer[]): void {
    if (this.ready) this.post({ type: 'destinationAnswers', answers });
  }

  /** Which destinations have been in use since this was last asked; any may have been when a thread has died meanwhile. */
  usedDestinations(): Promise<UsedDestinations> {
    if (!this.ready) return Promise.resolve({ hosts: [], all: true });
    const token = this.nextToken++;
    return new Promise((resolve) => {
      this.useWaiters.set(token, resolve);
      this.post({ type: 'reportDestinations', token });
    });
  }

  /** Asks for a sign of life; to be called about once a second. */
  ping(): void {
    if (!this.ready) return;
    if (this.unansweredSinceMs === 0) this.unansweredSinceMs = performance.now();
    this.post({ type: 'ping', token: this.nextToken++ });
  }

  state(): WorkerState {
    const up = this.thread !== undefined && this.ready;
    const silentMs = this.unansweredSinceMs === 0 ? 0 : performance.now() - this.unansweredSinceMs;
    return {
      index: this.index,
      up,
      healthy: up && silentMs < UNHEALTHY_AFTER_MS,
      restarts: this.restarts,
      lastPongMs: this.lastPongWallMs,
      epochApplied: up ? this.epochApplied : 0,
    };
  }

  private post(message: ControlMessage): void {
    this.thread?.postMessage(message);
    wake(this.start.wakeFd);
  }

  private sendSnapshot(deltas: SnapshotDeltas): void {
    // A starting thread gets it when it reports ready.
    if (!this.ready || this.current === undefined) return;
    const { snapshot, listenerFds } = this.current;
    this.post({ type: 'snapshot', snapshot: deltas.between(this.sent, snapshot), listenerFds });
    this.sent = snapshot;
  }

  private receive(message: WorkerMessage): void {
    switch (message.type) {
      case 'ready':
        this.ready = true;
        // Before the snapshot: what that asks to be compressed then is.
        this.onReady(this);
        this.sendSnapshot(new SnapshotDeltas());
        if (this.challenges.http.length + this.challenges.tls.length > 0) this.useChallenges(this.challenges);
        break;
      case 'applied':
        this.applied(message.epoch, message.report);
        break;
      case 'pong':
        this.lastPongWallMs = Date.now();
        this.unansweredSinceMs = 0;
        if (message.token === DRAIN_TOKEN) this.drainBegun();
        break;
      case 'drained':
        this.drained(message.remaining);
        break;
      case 'rateLimitQuestions':
        this.onLimitQuestions(message.questions);
        break;
      case 'destinationQuestions':
        this.onDestinationQuestions(message.questions);
        break;
      case 'destinationsUsed':
        this.useWaiters.get(message.token)?.(message.used);
        this.useWaiters.delete(message.token);
        break;
      case 'endpoint':
        this.onEndpoint(message.report);
        break;
      case 'log':
        this.log(message.level, message.message, { worker: this.index });
        break;
    }
  }

  private applied(epoch: number, report: ReloadReport): void {
    this.epochApplied = epoch;
    for (let i = this.applyWaiters.length - 1; i >= 0; i--) {
      if (this.applyWaiters[i]!.epoch > epoch) continue;
      this.applyWaiters.splice(i, 1)[0]!.resolve(report);
    }
  }

  private drainBegun(): void {
    this.onDrainBegun?.();
    this.onDrainBegun = undefined;
  }

  private drained(remaining: number): void {
    this.drainBegun();
    this.onDrained?.(remaining);
    this.onDrained = undefined;
  }

  private retire(): void {
    this.retiring = true;
    clearTimeout(this.restartTimer);
    this.restartTimer = undefined;
  }

  private died(code: number): void {
    this.thread = undefined;
    this.ready = false;
    this.epochApplied = 0;
    for (const resolve of this.useWaiters.values()) resolve({ hosts: [], all: true });
    this.useWaiters.clear();
    const left = this.closeLeftOpen();
    const lifetimeMs = performance.now() - this.startedMs;
    if (this.retiring) {
      if (this.cause !== undefined) this.logDeath(code, left, undefined);
      this.drained(left);
      unmapMemory(this.start.memory);
      if (this.start.ring !== null) closeRing(this.start.ring);
      for (const resolve of this.exitWaiters.splice(0)) resolve();
      return;
    }
    const delayMs = this.backoff.next(lifetimeMs);
    this.logDeath(code, left, delayMs);
    this.restarts++;
    this.restartTimer = setTimeout(() => this.launch(), delayMs);
  }

  private logDeath(code: number, connectionsCut: number, restartInMs: number | undefined): void {
    const cause = this.cause;
    this.log('error', 'packet worker died', {
      worker: this.index,
      cause:
        cause instanceof Error
          ? (cause.stack ?? cause.message)
          : cause === undefined
            ? `exit code ${code}`
            : String(cause),
      connectionsCut,
      restartInMs,
    });
  }

  /**
   * Closes what a dead thread left open, so that its peers learn of it; returns the number of
   * connections. Entries beyond the connection slots are descriptors of another kind.
   */
  private closeLeftOpen(): number {
    const descriptors = new Int32Array(this.start.descriptors);
    let count = 0;
    for (let slot = 0; slot < descriptors.length; slot++) {
      const fd = descriptors[slot]! - 1;
      if (fd < 0) continue;
      descriptors[slot] = 0;
      closeDescriptor(fd);
      if (slot < this.start.connectionsMax) count++;
    }
    return count;
  }
}
