// epoll of the simulated kernel, with the semantics of Linux that event loops come to depend on.
//
// Like the original it keeps a ready list and asks a file for its state only when an event is
// about to be reported. What follows from that, and is therefore the same here:
// - an edge is a wake-up of the file (data, FIN, write space, error), not a change of a bit, so
//   every arrival reports again, and it reports the whole state (IN comes with OUT when there is room);
// - an edge whose cause is gone by the time of the wait reports what is left, or nothing;
// - adding or modifying reports once if the file is ready at that moment;
// - a level-triggered item goes back to the end of the list and is asked again at the next wait;
// - closing a descriptor takes its pending events with it.
// Source: epoll(7); fs/eventpoll.c. test/sim/kernel.test.ts compares it with the real kernel.

import { Epoll } from '../../core/ffi/kernel.ts';

/** Bits that are reported whether asked for or not. */
const ALWAYS = Epoll.ERR | Epoll.HUP;

/** Something that can be watched. */
export abstract class SimFile {
  /** The epoll items that watch this file. */
  readonly watchers: EpollItem[] = [];
  /** What kind of file, for traces and leak reports. */
  abstract readonly kind: string;

  /** The current readiness bits. */
  abstract poll(): number;
  /** The last descriptor of the file was closed by the process that owned it. */
  abstract closed(): void;

  /** Tells every watcher that something happened. `key`: the bits concerned, or 0 for any. */
  wake(key: number): void {
    for (const item of this.watchers) item.owner.notify(item, key);
  }
}

/** One watched descriptor. */
export interface EpollItem {
  readonly owner: SimEpoll;
  readonly fd: number;
  readonly file: SimFile;
  events: number;
  slot: number;
  generation: number;
  ready: boolean;
}

/** One epoll instance. */
export class SimEpoll extends SimFile {
  readonly kind = 'epoll';
  private readonly items = new Map<number, EpollItem>();
  private readyList: EpollItem[] = [];

  poll(): number {
    return this.hasReady() ? Epoll.IN : 0;
  }

  closed(): void {
    for (const fd of [...this.items.keys()]) this.remove(fd);
  }

  /** Watches a file; false if the descriptor is watched already. */
  add(fd: number, file: SimFile, events: number, slot: number, generation: number): boolean {
    if (this.items.has(fd)) return false;
    const item: EpollItem = { owner: this, fd, file, events, slot, generation, ready: false };
    this.items.set(fd, item);
    file.watchers.push(item);
    this.queueIfReady(item);
    return true;
  }

  /** Changes what is watched for and asks the file afresh; false if the descriptor is not watched. */
  modify(fd: number, events: number, slot: number, generation: number): boolean {
    const item = this.items.get(fd);
    if (item === undefined) return false;
    item.events = events;
    item.slot = slot;
    item.generation = generation;
    this.queueIfReady(item);
    return true;
  }

  /** Ends watching; false if the descriptor was not watched. */
  remove(fd: number): boolean {
    const item = this.items.get(fd);
    if (item === undefined) return false;
    this.items.delete(fd);
    item.file.watchers.splice(item.file.watchers.indexOf(item), 1);
    if (item.ready) this.readyList = this.readyList.filter((other) => other !== item);
    return true;
  }

  /** A watched file woke up; called by `SimFile.wake`. */
  notify(item: EpollItem, key: number): void {
    if (item.ready || (key !== 0 && (key & (item.events | ALWAYS)) === 0)) return;
    item.ready = true;
    this.readyList.push(item);
  }

  /** Reports up to `max` events in order of arrival and returns how many. */
  collect(max: number, report: (item: EpollItem, bits: number) => void): number {
    const list = this.readyList;
    this.readyList = [];
    const again: EpollItem[] = [];
    let count = 0;
    let index = 0;
    for (; index < list.length && count < max; index++) {
      const item = list[index]!;
      item.ready = false;
      const bits = item.file.poll() & (item.events | ALWAYS);
      if (bits === 0) continue;
      report(item, bits);
      count++;
      if ((item.events & Epoll.ET) === 0) {
        item.ready = true;
        again.push(item);
      }
    }
    this.readyList = [...list.slice(index), ...this.readyList, ...again];
    return count;
  }

  /** Whether a wait would have something to look at. */
  hasReady(): boolean {
    return this.readyList.length > 0;
  }

  /** Number of watched descriptors. */
  get size(): number {
    return this.items.size;
  }

  private queueIfReady(item: EpollItem): void {
    if ((item.file.poll() & (item.events | ALWAYS)) !== 0) this.notify(item, 0);
  }
}

/** A wake-up counter (eventfd(2)). */
export class SimEventfd extends SimFile {
  readonly kind = 'eventfd';
  private count = 0;

  poll(): number {
    return Epoll.OUT | (this.count > 0 ? Epoll.IN : 0);
  }

  closed(): void {}

  /** Adds one wake-up. */
  add(): void {
    this.count++;
    this.wake(Epoll.IN);
  }

  /** Takes all wake-ups; false if there were none. */
  take(): boolean {
    if (this.count === 0) return false;
    this.count = 0;
    return true;
  }
}
