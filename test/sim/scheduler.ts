// Virtual time: a clock that jumps from one planned event to the next.
//
// Events run in order of time, and in order of planning where times are equal, so a run depends
// on nothing but its seed. No event runs inside another.

interface Planned {
  atMs: number;
  order: number;
  run: () => void;
}

/** A virtual clock with the events planned on it. Times are milliseconds with fractions. */
export class Scheduler {
  /** Virtual now. Starts above zero because a time of 0 often stands for "not set". */
  nowMs = 1000;
  /** Events run so far. */
  executed = 0;
  private readonly heap: Planned[] = [];
  private order = 0;
  private running = false;

  /** Plans `run` after `delayMs` >= 0. There is no cancelling: `run` checks whether it still applies. */
  after(delayMs: number, run: () => void): void {
    this.at(this.nowMs + delayMs, run);
  }

  /** Plans `run` at a time; a time that has passed means at once, after what is planned already. */
  at(atMs: number, run: () => void): void {
    const heap = this.heap;
    let index = heap.length;
    const planned = { atMs: Math.max(atMs, this.nowMs), order: this.order++, run };
    heap.push(planned);
    while (index > 0) {
      const parent = (index - 1) >> 1;
      if (before(heap[parent]!, planned)) break;
      heap[index] = heap[parent]!;
      index = parent;
    }
    heap[index] = planned;
  }

  /** Time of the next event, or Infinity when nothing is planned. */
  nextMs(): number {
    return this.heap.length === 0 ? Number.POSITIVE_INFINITY : this.heap[0]!.atMs;
  }

  /** Number of events that are planned. */
  get pending(): number {
    return this.heap.length;
  }

  /** Moves the clock to `toMs` and runs everything due by then. Does nothing inside an event. */
  advanceTo(toMs: number): void {
    if (this.running) return;
    this.running = true;
    try {
      while (this.heap.length > 0 && this.heap[0]!.atMs <= toMs) {
        const planned = this.takeFirst();
        this.nowMs = Math.max(this.nowMs, planned.atMs);
        this.executed++;
        planned.run();
      }
      this.nowMs = Math.max(this.nowMs, toMs);
    } finally {
      this.running = false;
    }
  }

  private takeFirst(): Planned {
    const heap = this.heap;
    const first = heap[0]!;
    const last = heap.pop()!;
    if (heap.length === 0) return first;
    let index = 0;
    for (;;) {
      let child = index * 2 + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && before(heap[child + 1]!, heap[child]!)) child++;
      if (before(last, heap[child]!)) break;
      heap[index] = heap[child]!;
      index = child;
    }
    heap[index] = last;
    return first;
  }
}

function before(a: Planned, b: Planned): boolean {
  return a.atMs < b.atMs || (a.atMs === b.atMs && a.order < b.order);
}
