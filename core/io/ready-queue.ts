// Connections that are to be read again without an event: resumed readers, and those that have used their turn.
//
// A ring of slots. A slot is in it at most once (`connection.queued`), so it never overflows; its present occupant is
// served, which may not be the one that was added: a protocol takes a `readable` for nothing.
// Owned by one worker. Hot module: no allocation, exception, promise, closure or log line.

import type { Connection } from './connection.ts';

export class ReadyQueue {
  /** Slots in the queue. */
  count = 0;
  private readonly slots: Int32Array;
  private readonly slotsMax: number;
  private head = 0;

  /** For so many connection slots. */
  constructor(slotsMax: number) {
    this.slotsMax = slotsMax;
    this.slots = new Int32Array(slotsMax);
  }

  /** Puts a connection at the end, if it is not in the queue. */
  add(connection: Connection): void {
    if (connection.queued) return;
    connection.queued = true;
    let tail = this.head + this.count;
    if (tail >= this.slotsMax) tail -= this.slotsMax;
    this.slots[tail] = connection.slot;
    this.count++;
  }

  /** Takes the first slot; there must be one. Whoever serves it sets `queued` to false. */
  take(): number {
    const slot = this.slots[this.head];
    if (++this.head === this.slotsMax) this.head = 0;
    this.count--;
    return slot;
  }
}
