// Carries a rotation out: events of proxies in, steps taken one at a time, each on disk before it has effect.
//
// Owns the state. Everything that changes the phase runs in one queue; what proxies say is noted at once, and
// may hold up a step until the moment that it is taken. Control thread.

import {
  advance,
  afterRestart,
  forgetGone,
  type RotationPhase,
  type RotationState,
  signerId,
  type Waiting,
  waitingFor,
} from './rotation.ts';
import type { RotationStore } from './rotation-store.ts';

/** Where a rotation stands. */
export interface RotationStatus {
  phase: RotationPhase;
  sinceMs: number;
  /** Sequence of the present trust bundle. */
  sequence: number;
  activeRoot: string;
  /** Null: no rotation. */
  nextRoot: string | null;
  /** Proxies that it waits for, and why. */
  waiting: Waiting[];
  /** Number of proxies that are connected. */
  connected: number;
}

/** What the keeper needs of its owner. */
export interface KeeperOptions {
  store: RotationStore;
  nowMs: () => number;
  /** How long a proxy that is gone is waited for. */
  goneWaitMs: number;
  /** Gives a step effect; it is on disk. `signerChanged`: another root signs from now on. */
  entered: (state: RotationState, signerChanged: boolean) => Promise<void>;
  /** A step could not be stored after an event; the next event or `proceed` tries again. */
  failed: (error: Error) => void;
}

/** The state of a rotation, and the order of its steps. */
export class RotationKeeper {
  private readonly options: KeeperOptions;
  private current: RotationState;
  private saved: RotationState;
  private queue: Promise<unknown> = Promise.resolve();

  /** `state` is as it was stored. */
  constructor(state: RotationState, options: KeeperOptions) {
    this.options = options;
    this.saved = state;
    this.current = afterRestart(state, options.nowMs());
  }

  /** The present state. */
  get state(): RotationState {
    return this.current;
  }

  /** Where the rotation stands. */
  status(): RotationStatus {
    const { current: state, options } = this;
    return {
      phase: state.phase,
      sinceMs: state.phaseSinceMs,
      sequence: state.sequence,
      activeRoot: state.activeId,
      nextRoot: state.nextId,
      waiting: waitingFor(state, options.nowMs(), options.goneWaitMs),
      connected: Object.values(state.proxies).filter(({ goneSinceMs }) => goneSinceMs === null).length,
    };
  }

  /** Notes what a proxy did, and takes the steps that follow from it. */
  note(change: (state: RotationState) => RotationState): void {
    const state = change(this.current);
    if (state === this.current) return;
    this.current = state;
    this.enqueue(() => this.takeSteps()).catch(this.options.failed);
  }

  /**
   * Takes a step that somebody asked for. `prepare` runs first and gives the state to go to; its error, or that
   * of the disk, rejects and leaves everything as it was.
   */
  step(prepare: (state: RotationState) => RotationState | Promise<RotationState>): Promise<void> {
    return this.enqueue(async () => {
      const next = await prepare(this.current);
      await this.save(next);
      await this.enter(next);
      await this.takeSteps();
    });
  }

  /** Takes the steps that time allows; runs `first` before, in the queue. */
  proceed(first: () => Promise<void> = async () => {}): Promise<void> {
    return this.enqueue(async () => {
      await first();
      const { nowMs, goneWaitMs } = this.options;
      if (this.current.phase === 'idle') this.current = forgetGone(this.current, nowMs(), goneWaitMs);
      await this.takeSteps();
    });
  }

  /** Resolves when everything that was called for is done and on disk, or has failed. */
  async settled(): Promise<void> {
    let seen: Promise<unknown>;
    do {
      seen = this.queue;
      await seen;
    } while (seen !== this.queue);
  }

  private enqueue(action: () => Promise<void>): Promise<void> {
    const step = this.queue.then(action);
    this.queue = step.catch(() => {});
    return step;
  }

  private async takeSteps(): Promise<void> {
    const { nowMs, goneWaitMs } = this.options;
    for (;;) {
      if (this.current !== this.saved) await this.save(this.current);
      const next = advance(this.current, nowMs(), goneWaitMs);
      if (next === this.current) return;
      await this.save(next);
      // A proxy that came while the disk was busy has its say: the step is taken back before anybody saw it.
      if (advance(this.current, nowMs(), goneWaitMs).phase === next.phase) await this.enter(next);
    }
  }

  private async enter(next: RotationState): Promise<void> {
    const signerChanged = signerId(next) !== signerId(this.current);
    this.current = { ...next, proxies: this.current.proxies };
    await this.options.entered(this.current, signerChanged);
  }

  private async save(state: RotationState): Promise<void> {
    await this.options.store.save(state);
    this.saved = state;
  }
}
