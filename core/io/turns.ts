// Fair turns on a node proxy: connections that are ready wait by the workload that they belong to, and workloads are
// served in rounds, one connection of each at a time. A gateway has no workloads, and is served in the order of epoll.
//
// The system hands over at most a few hundred events at once, in the order in which they happened: behind a workload
// with thousands of busy connections another one would wait for all of them. So only a few are served before the
// system is asked again, and what it reports meanwhile takes its place in the round.
// Owned by the turn loop (turn-loop.ts), which serves them.
// Hot module: no allocation, exception, promise, closure or log line.

import type { Connection } from './connection.ts';

/** Somebody who shares a worker with others: a workload. */
export class Party {
  /** Bytes of buffers that it holds, at `bufferWord` of `words`, which may be shared memory. */
  readonly words: Float64Array;
  readonly bufferWord: number;
  /** Milliseconds that its turns have taken in a batch that is measured. */
  busyMs = 0;
  /** Ready connections: first and last slot, and how many. Of use to Turns only. */
  first = -1;
  last = -1;
  waiting = 0;
  /** Who is next in the round. */
  next: Party | null = null;

  constructor(words: Float64Array, bufferWord: number) {
    this.words = words;
    this.bufferWord = bufferWord;
  }

  /** Bytes of buffers that it holds. */
  get bufferBytes(): number {
    return this.words[this.bufferWord]!;
  }
}

/** Whose turn it is when a connection is served; null: nobody's. */
export function partyOf({ workload, endpoint }: Connection): Party | null {
  return workload ?? (endpoint === null ? null : endpoint.workload);
}

/** Bit of a turn that was asked for by `Reactor.enqueue`, among those of epoll: none of those that it reports. */
export const RESUMED = 1 << 27;

/** So many ready connections are few, where more than so many wait in all. */
const LIGHT_TURNS_MAX = 2;
const BUSY_TURNS = 8;

/** For so many turns a workload is thought to be one of several after another one had a turn: some 100 ms under load. */
const SHARED_TURNS = 8192;

export class Turns {
  /** Connections that belong to nobody: what the worker needs for itself. They are a party like the others. */
  readonly nobody = new Party(new Float64Array(1), 0);
  /** Connections that wait for their turn. */
  waiting = 0;
  /** Whether the last turns were also those of somebody with few connections ready, beside others with many. */
  tookLight = false;
  /** Whose the last turn was, and for how many more turns there is thought to be somebody else. */
  private takenBy: Party | null = null;
  private sharedTurns = 0;
  /** By slot: what has been reported, for which occupant, who is behind it, and whether it waits. */
  private readonly bits: Int32Array;
  private readonly generations: Int32Array;
  private readonly behind: Int32Array;
  private readonly queued: Uint8Array;
  private firstParty: Party | null = null;
  private lastParty: Party | null = null;

  /** For so many connection slots. */
  constructor(slotsMax: number) {
    this.bits = new Int32Array(slotsMax);
    this.generations = new Int32Array(slotsMax);
    this.behind = new Int32Array(slotsMax);
    this.queued = new Uint8Array(slotsMax);
  }

  /** A connection is ready; what is reported of one that waits already is added to that. */
  add(slot: number, generation: number, bits: number, party: Party): void {
    if (this.queued[slot] === 1) {
      if (this.generations[slot] === generation) {
        this.bits[slot]! |= bits;
      } else {
        // Of an earlier occupant only the place is left, and that the reactor takes the slot for queued.
        this.generations[slot] = generation;
        this.bits[slot] = bits | (this.bits[slot]! & RESUMED);
      }
      return;
    }
    this.queued[slot] = 1;
    this.generations[slot] = generation;
    this.bits[slot] = bits;
    this.behind[slot] = -1;
    this.waiting++;
    if (party.waiting++ === 0) {
      party.first = slot;
      this.join(party);
    } else {
      this.behind[party.last] = slot;
    }
    party.last = slot;
  }

  /**
   * Takes the next turns, at most `max`, and writes them to `events` in the form of the system's (Kernel.events).
   * Returns how many.
   */
  take(events: Int32Array, stride: number, dataIndex: number, max: number): number {
    let count = 0;
    let word = 0;
    const isBusy = this.waiting > BUSY_TURNS;
    this.tookLight = false;
    while (count < max && this.firstParty !== null) {
      const party = this.firstParty;
      this.firstParty = party.next;
      party.next = null;
      const slot = party.first;
      party.first = this.behind[slot]!;
      if (isBusy && party.waiting <= LIGHT_TURNS_MAX) this.tookLight = true;
      if (party !== this.takenBy && party !== this.nobody) {
        if (this.takenBy !== null) this.sharedTurns = SHARED_TURNS;
        this.takenBy = party;
      } else if (this.sharedTurns > 0) this.sharedTurns--;
      this.queued[slot] = 0;
      this.waiting--;
      if (--party.waiting > 0) this.join(party);
      events[word] = this.bits[slot]!;
      events[word + dataIndex] = slot;
      events[word + dataIndex + 1] = this.generations[slot]!;
      word += stride;
      count++;
    }
    return count;
  }

  /** Whether more than one workload has had turns of late. */
  get isShared(): boolean {
    return this.sharedTurns > 0;
  }

  /** Puts a party at the end of the round. */
  private join(party: Party): void {
    if (this.firstParty === null) this.firstParty = party;
    else this.lastParty!.next = party;
    this.lastParty = party;
  }
}
