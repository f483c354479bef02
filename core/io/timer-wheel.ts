// The timer wheel: one deadline per connection slot, moved for the price of a store.
//
// Nearly every deadline is moved later before it runs out (each byte of progress moves it), so the
// wheel is lazy: a slot stays in the bucket it was first put in, and when that bucket comes up the
// slot is put into a later one if its deadline has moved. Only an earlier deadline relinks at once.
// One ring of buckets of TICK_MS; a deadline beyond the ring waits in its last bucket and is put
// back from there. Deadlines fire late by up to one tick, never early.
// Owned by one worker. Hot module: no allocation after construction.

/** Width of a bucket. */
export const TICK_MS = 10;

/** Buckets of the ring: 8192 x 10 ms = 82 s, more than the usual idle timeout. */
const BUCKETS = 8192;
const NONE = -1;

export class TimerWheel {
  private readonly deadlines: Float64Array;
  /** Tick under which a slot is linked, or NONE. 32 bits would run out after 248 days. */
  private readonly linkedTick: Float64Array;
  private readonly nextSlot: Int32Array;
  private readonly previousSlot: Int32Array;
  private readonly bucketHead = new Int32Array(BUCKETS).fill(NONE);
  /** Bit per bucket that is not empty, so that the next one is found quickly. */
  private readonly occupied = new Int32Array(BUCKETS / 32);
  private readonly due: Int32Array;
  private readonly originMs: number;
  /** Current monotonic time, which `setDelay` counts from; kept up to date by the owner. */
  nowMs: number;
  private currentTick = 0;
  /** No bucket before this tick is occupied. */
  private earliestTick = Number.MAX_SAFE_INTEGER;

  /** A wheel for slots 0 to `slots` - 1; `nowMs` is the current monotonic time. */
  constructor(slots: number, nowMs: number) {
    this.deadlines = new Float64Array(slots).fill(Number.POSITIVE_INFINITY);
    this.linkedTick = new Float64Array(slots).fill(NONE);
    this.nextSlot = new Int32Array(slots);
    this.previousSlot = new Int32Array(slots);
    this.due = new Int32Array(slots);
    this.originMs = nowMs;
    this.nowMs = nowMs;
  }

  /** Sets the deadline of a slot, in monotonic milliseconds; Infinity for none. */
  set(slot: number, deadlineMs: number): void {
    this.deadlines[slot] = deadlineMs;
    this.place(slot);
  }

  /**
   * Sets the deadline of a slot to `delayMs` (a whole number) after `nowMs`. For the packet path:
   * an integer argument needs no boxed number.
   */
  setDelay(slot: number, delayMs: number): void {
    this.deadlines[slot] = this.nowMs + delayMs;
    this.place(slot);
  }

  /** Links a slot under its deadline, unless it is linked early enough already. */
  private place(slot: number): void {
    const deadlineMs = this.deadlines[slot];
    if (deadlineMs === Number.POSITIVE_INFINITY) return;
    const linked = this.linkedTick[slot];
    if (linked !== NONE) {
      if ((linked - 1) * TICK_MS <= deadlineMs - this.originMs) return;
      const tick = this.tickOf(deadlineMs);
      if (linked <= tick) return;
      this.unlink(slot);
      this.link(slot, tick);
      return;
    }
    this.link(slot, this.tickOf(deadlineMs));
  }

  /** Removes the deadline of a slot. */
  clear(slot: number): void {
    this.deadlines[slot] = Number.POSITIVE_INFINITY;
  }

  /** The deadline of a slot; Infinity for none. */
  get(slot: number): number {
    return this.deadlines[slot];
  }

  /** Milliseconds from `nowMs` until `advance` has something to do; -1 when nothing is scheduled. */
  waitMs(nowMs: number): number {
    if (this.earliestTick === Number.MAX_SAFE_INTEGER) return -1;
    return Math.max(0, Math.ceil(this.originMs + this.earliestTick * TICK_MS - nowMs));
  }

  /** Whether `advance` has something to do at `nowMs`. */
  isDue(nowMs: number): boolean {
    return this.originMs + this.earliestTick * TICK_MS <= nowMs;
  }

  /** Calls `expired(slot)` for every slot whose deadline is at or before `nowMs`, once each. */
  advance(nowMs: number, expired: (slot: number) => void): void {
    const nowTick = Math.floor((nowMs - this.originMs) / TICK_MS);
    while (this.earliestTick <= nowTick) {
      const tick = this.earliestTick;
      this.currentTick = Math.max(this.currentTick, tick);
      const count = this.takeBucket(tick);
      this.earliestTick = this.nextOccupied(tick + 1);
      for (let i = 0; i < count; i++) {
        const slot = this.due[i];
        // A callback before this one may have put the slot back already.
        if (this.linkedTick[slot] !== NONE) continue;
        const deadlineMs = this.deadlines[slot];
        if (deadlineMs <= nowMs) {
          this.deadlines[slot] = Number.POSITIVE_INFINITY;
          expired(slot);
        } else if (deadlineMs !== Number.POSITIVE_INFINITY) {
          this.link(slot, this.tickOf(deadlineMs));
        }
      }
    }
    this.currentTick = Math.max(this.currentTick, nowTick);
  }

  /** First tick at which a deadline has passed, within the ring and after the current tick. */
  private tickOf(deadlineMs: number): number {
    const tick = Math.ceil((deadlineMs - this.originMs) / TICK_MS);
    return Math.min(Math.max(tick, this.currentTick + 1), this.currentTick + BUCKETS - 1);
  }

  private link(slot: number, tick: number): void {
    const bucket = tick % BUCKETS;
    const head = this.bucketHead[bucket];
    this.nextSlot[slot] = head;
    this.previousSlot[slot] = NONE;
    if (head !== NONE) this.previousSlot[head] = slot;
    this.bucketHead[bucket] = slot;
    this.occupied[bucket >> 5] |= 1 << (bucket & 31);
    this.linkedTick[slot] = tick;
    if (tick < this.earliestTick) this.earliestTick = tick;
  }

  private unlink(slot: number): void {
    const bucket = this.linkedTick[slot] % BUCKETS;
    const next = this.nextSlot[slot];
    const previous = this.previousSlot[slot];
    if (next !== NONE) this.previousSlot[next] = previous;
    if (previous !== NONE) this.nextSlot[previous] = next;
    else {
      this.bucketHead[bucket] = next;
      if (next === NONE) this.occupied[bucket >> 5] &= ~(1 << (bucket & 31));
    }
    this.linkedTick[slot] = NONE;
  }

  /** Empties the bucket of `tick` into `due`. */
  private takeBucket(tick: number): number {
    const bucket = tick % BUCKETS;
    let count = 0;
    for (let slot = this.bucketHead[bucket]; slot !== NONE; slot = this.nextSlot[slot]) {
      this.due[count++] = slot;
      this.linkedTick[slot] = NONE;
    }
    this.bucketHead[bucket] = NONE;
    this.occupied[bucket >> 5] &= ~(1 << (bucket & 31));
    return count;
  }

  /** First occupied tick at or after `from`, or MAX_SAFE_INTEGER. */
  private nextOccupied(from: number): number {
    for (let step = 0; step < BUCKETS; ) {
      const bucket = (from + step) % BUCKETS;
      const word = this.occupied[bucket >> 5] >>> (bucket & 31);
      if (word !== 0) return from + step + (31 - Math.clz32(word & -word));
      step += 32 - (bucket & 31);
    }
    return Number.MAX_SAFE_INTEGER;
  }
}
