// Serves what is ready on a node proxy, turn by turn: whose turn it is says turns.ts, this asks the system in between.
//
//   events, ready queue --> turns of workloads --> a few of them --> dispatched --> what else is ready? --> ...
//
// Gateways have no workloads, and no turn loop: the reactor serves their events as they come.
// While a turn is served, `arena.party` is the workload that it is of, which the blocks taken meanwhile count for.
// Owned by the reactor. Hot module: no allocation, exception, promise, closure or log line per event.

import { Epoll, type Kernel } from '../ffi/kernel.ts';
import type { Arena } from './arena.ts';
import type { Connection } from './connection.ts';
import { dispatch } from './dispatch.ts';
import type { Input } from './input.ts';
import type { ReadyQueue } from './ready-queue.ts';
import { partyOf, RESUMED, Turns } from './turns.ts';

/** Turns that are taken before what they wrote leaves, where one workload has them all, and where several do. */
const TURNS_PER_BATCH = 64;
const TURNS_PER_SHARED_BATCH = 16;

/** Turns that are taken before the system is asked who else is ready: what somebody else may have to wait for. */
const TURNS_PER_LOOK = 8;

export class TurnLoop {
  readonly turns: Turns;
  /** The next batch is measured, turn by turn (`Party.busyMs`). */
  measured = false;

  private readonly kernel: Kernel;
  private readonly epoll: number;
  private readonly arena: Arena;
  private readonly input: Input;
  private readonly ready: ReadyQueue;
  /** By slot. */
  private readonly connections: readonly (Connection | undefined)[];

  /** `connections` are those of the reactor, by slot, of which there are at most `slotsMax`. */
  constructor(
    kernel: Kernel,
    epoll: number,
    arena: Arena,
    input: Input,
    ready: ReadyQueue,
    connections: readonly (Connection | undefined)[],
    slotsMax: number,
  ) {
    this.turns = new Turns(slotsMax);
    this.kernel = kernel;
    this.epoll = epoll;
    this.arena = arena;
    this.input = input;
    this.ready = ready;
    this.connections = connections;
  }

  /**
   * Lets everything that is ready wait for its turn, the `count` events in `kernel.events` included, and serves those
   * whose turn it is. Returns how many.
   */
  run(count: number): number {
    const { epoll, input, kernel, ready, turns } = this;
    const { events, eventStride, eventDataIndex } = kernel;
    this.arena.party = null;
    this.queueEvents(count);
    // Only those that wait already: what queues itself in this batch has its turn in the next.
    for (let left = ready.count; left > 0; left--) {
      const slot = ready.take();
      const connection = this.connections[slot];
      if (connection === undefined) continue;
      turns.add(slot, connection.generation, RESUMED, partyOf(connection) ?? turns.nobody);
    }
    for (let served = 0; ; ) {
      const taken = turns.take(events, eventStride, eventDataIndex, TURNS_PER_LOOK);
      if (taken > 1) input.receiveAhead(0, taken);
      this.serve(taken);
      if (input.hasAhead) input.endAhead();
      served += taken;
      // What the others wrote can wait for more of the same; what one of few turns wrote would wait for theirs.
      const most = turns.isShared ? TURNS_PER_SHARED_BATCH : TURNS_PER_BATCH;
      if (turns.waiting === 0 || turns.tookLight || served >= most) return served;
      this.queueEvents(kernel.epollWait(epoll, 0));
    }
  }

  private queueEvents(count: number): void {
    const { connections, turns } = this;
    const { events, eventStride, eventDataIndex } = this.kernel;
    for (let i = 0; i < count; i++) {
      const word = i * eventStride;
      const slot = events[word + eventDataIndex];
      const generation = events[word + eventDataIndex + 1];
      const connection = connections[slot];
      if (connection === undefined || connection.generation !== generation) continue;
      turns.add(slot, generation, events[word], partyOf(connection) ?? turns.nobody);
    }
  }

  /** Serves the `count` turns that have been taken, and written to `kernel.events`. */
  private serve(count: number): void {
    const { arena, connections, kernel, measured, turns } = this;
    const { events, eventStride, eventDataIndex } = kernel;
    let beforeMs = measured ? kernel.nowMs() : 0;
    for (let i = 0; i < count; i++) {
      const word = i * eventStride;
      const bits = events[word];
      const connection = connections[events[word + eventDataIndex]]!;
      // The handler may close it.
      const party = partyOf(connection);
      arena.party = party;
      if ((bits & RESUMED) === 0) {
        dispatch(connections, events, word, eventDataIndex);
      } else {
        connection.queued = false;
        events[word] = bits & ~RESUMED;
        if (events[word] !== 0) dispatch(connections, events, word, eventDataIndex);
        if ((events[word] & ~Epoll.OUT) === 0 && connection.protocol !== null) connection.protocol.readable(connection);
      }
      if (measured) {
        const afterMs = kernel.nowMs();
        (party ?? turns.nobody).busyMs += afterMs - beforeMs;
        beforeMs = afterMs;
      }
    }
    arena.party = null;
  }
}
