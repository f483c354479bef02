// Token buckets of one rate limit in shared memory, exact across all workers: GCRA on 32-bit words.
//
// A bucket is one word: the time at which it will be full again ("theoretical arrival time", TAT). A
// request moves that time on by one emission interval; if it would then lie further ahead than a whole
// bucket takes to fill, the request is over the limit. One compare-and-swap decides, so that however
// many workers ask at a time, no more than `burst` plus the rate are ever let through.
//
//   header | counters of worker 0, 1 ... | bucket, or sets of buckets
//
// Time is counted in ticks, a whole number (`cost`) of which is one emission interval, so that nothing is
// rounded away. Ticks wrap around; the control thread sweeps the table often enough that no bucket is
// ever older than that (`sweep`).
//
// Keys: a set is one cache line of a lock, a common bucket, and seven ways of a tag and a bucket. The low half of a
// key's hash chooses the set, and the high half is its tag: two keys of one set have the same tag once in
// 2^32. A way whose bucket is full again is as good as none, and is given to the next key that comes;
// keys for which no way of their set is free share the set's common bucket (and are counted). Buckets are found and charged without
// a lock; the lock of a set is taken only to give a way to a new key, since two workers must not do that
// at a time. Whoever takes a way from a key marks its bucket first (MOVING), which makes a charge at that moment
// fail and look again.
// Hot module: no allocation, exception, promise, closure or log line per request.
// Source: ITU-T I.371 (generic cell rate algorithm).

import type { RateLimitSettings } from './limit-settings.ts';

/** Words of the header. */
const Header = { SETS: 0, WORKERS: 1, SEED0: 2, SEED1: 3, WORDS: 16 } as const;

/** Counters of one worker, as 64-bit floats: one cache line. */
export const LimitCounter = {
  ALLOWED: 0,
  DENIED: 1,
  /** Of both: requests whose key shared a common bucket, since the table was full where it belongs. */
  SHARED: 2,
  /** Decided by Redis, and decided by the `failure` setting since Redis did not answer. */
  GLOBAL: 3,
  FALLBACK: 4,
  COUNT: 8,
} as const;

/** Words of a set: lock, common bucket, and a tag and a bucket for each of seven ways. */
const SET_WORDS = 16;
const COMMON = 1;
const FIRST_WAY = 2;
const WAYS = (SET_WORDS - FIRST_WAY) / 2;

/** Content of a bucket whose way is being given to another key. */
const MOVING = -0x8000_0000;

/** Most ticks of an emission interval: finer needs nobody, and would wrap around sooner. */
const COST_MAX = 1024;
/** Most ticks that a whole bucket may take to fill, far from a wrap around. */
const FILL_TICKS_MAX = 2 ** 28;
/** Workers see the time of their batch: a bucket may have been charged by one that is so far ahead. */
const SKEW_MS = 10_000;
const SKEW_TICKS_MAX = 2 ** 29;

/** Attempts to take the lock of a set before sleeping, and sleeps of a millisecond before it counts as left behind. */
const LOCK_SPINS = 200;
const LOCK_SLEEPS = 20;

/** Attempts to find a key whose way is taken from it again and again. */
const FIND_TRIES = 8;

/** Result of a charge: the bucket is another key's now. */
const GONE = -1;

const { SHARED } = LimitCounter;

/** The numbers of a limit in ticks. */
export interface LimitTicks {
  ticksPerMs: number;
  /** Ticks of one request. */
  cost: number;
  /** Ticks that a whole bucket takes to fill. */
  fill: number;
}

/** Requests per millisecond, at most 1000, and a burst of at most 2^28 give whole numbers here. */
export function limitTicks({ requests, periodMs, burst }: RateLimitSettings): LimitTicks {
  const intervalUs = (periodMs * 1000) / requests;
  const cost = Math.max(1, Math.floor(Math.min(COST_MAX, intervalUs, FILL_TICKS_MAX / burst)));
  return { ticksPerMs: (cost * requests) / periodMs, cost, fill: cost * burst };
}

/** Milliseconds after which the ticks of a limit wrap around. */
export function wrapMs(settings: RateLimitSettings): number {
  return 2 ** 32 / limitTicks(settings).ticksPerMs;
}

/** Makes the table of a limit for so many workers, with full buckets. `random` gives the two words of its seed. */
export function createLimitTable(
  settings: RateLimitSettings,
  workers: number,
  nowMs: number,
  random: (words: Int32Array<ArrayBuffer>) => void,
): SharedArrayBuffer {
  const sets = settings.key.length === 0 ? 0 : 2 ** Math.ceil(Math.log2(Math.max(settings.keysMax / 2, 1)));
  const words = Header.WORDS + workers * LimitCounter.COUNT * 2 + Math.max(sets, 1) * SET_WORDS;
  const buffer = new SharedArrayBuffer(words * 4);
  const header = new Int32Array(buffer);
  const seed = new Int32Array(2);
  random(seed);
  header[Header.SETS] = sets;
  header[Header.WORKERS] = workers;
  header[Header.SEED0] = seed[0]!;
  header[Header.SEED1] = seed[1]!;
  const now = notMoving((nowMs * limitTicks(settings).ticksPerMs) | 0);
  for (let set = 0; set < Math.max(sets, 1); set++) {
    header[Header.WORDS + workers * LimitCounter.COUNT * 2 + set * SET_WORDS + COMMON] = now;
  }
  return buffer;
}

/** A limit's table as one thread uses it. */
export class LimitTable {
  readonly seed0: number = 0;
  readonly seed1: number = 0;
  /** This worker's counters; for a thread that is no worker those of worker 0, to be left alone. */
  readonly counters: Float64Array;
  private readonly words: Int32Array;
  // Fields without a value would be undefined at first, and the engine would never again count on a number. These three
  // may be whole or not.
  private readonly ticksPerMs: number = Number.NaN;
  private readonly requestsPerTick: number = Number.NaN;
  private readonly secondsPerTick: number = Number.NaN;
  private readonly first: number = 0;
  private readonly sets: number = 0;
  private readonly setMask: number = 0;
  private readonly cost: number = 0;
  private readonly fill: number = 0;
  /** Ticks by which a TAT can lie ahead; one that lies further ahead has been passed by the clock long ago. */
  private readonly aheadMax: number = 0;
  /** Of the last charge: ticks by which the TAT lies ahead. */
  private used = 0;

  /** `worker` is the index of a packet worker, or -1 for the control thread. */
  constructor(buffer: SharedArrayBuffer, settings: RateLimitSettings, worker: number) {
    const { ticksPerMs, cost, fill } = limitTicks(settings);
    const words = new Int32Array(buffer);
    const workers = words[Header.WORKERS]!;
    this.words = words;
    this.sets = words[Header.SETS]!;
    this.setMask = this.sets - 1;
    this.seed0 = words[Header.SEED0]!;
    this.seed1 = words[Header.SEED1]!;
    const countersAt = Header.WORDS * 4 + Math.max(worker, 0) * LimitCounter.COUNT * 8;
    this.counters = new Float64Array(buffer, countersAt, LimitCounter.COUNT);
    this.first = Header.WORDS + workers * LimitCounter.COUNT * 2;
    this.ticksPerMs = ticksPerMs;
    this.requestsPerTick = 1 / cost;
    this.secondsPerTick = 1 / (ticksPerMs * 1000);
    this.cost = cost;
    this.fill = fill;
    this.aheadMax = fill + Math.min(SKEW_TICKS_MAX, Math.ceil(SKEW_MS * ticksPerMs));
  }

  /** Whether requests are counted by key. */
  get keyed(): boolean {
    return this.sets > 0;
  }

  /**
   * Takes a request from the bucket of a key, given by both halves of its hash (0 for a limit without
   * keys). Returns whether there was one; `remaining` and the seconds tell of it either way. Counting is the caller's.
   * `nowMs` is the time of the monotonic clock that all threads share.
   */
  take(hashLow: number, hashHigh: number, nowMs: number): boolean {
    return this.takeAt(hashLow, hashHigh, this.ticksAt(nowMs));
  }

  /** A time of that clock in ticks. So small that it is compiled into any caller, and the time is not boxed on its way. */
  ticksAt(nowMs: number): number {
    return (nowMs * this.ticksPerMs) | 0;
  }

  /** As `take`, at a time in ticks. */
  takeAt(hashLow: number, hashHigh: number, now: number): boolean {
    return (this.sets === 0 ? this.charge(this.first + COMMON, now) : this.takeKeyed(hashLow, hashHigh, now)) === 1;
  }

  /** After `take`: requests that the bucket still has. */
  get remaining(): number {
    const free = this.fill - this.used;
    // Half a tick more makes this exact in spite of rounding, and a division costs several times as much.
    return free <= 0 ? 0 : ((free + 0.5) * this.requestsPerTick) | 0;
  }

  /** After `take`: whole seconds until there is one again, rounded up. 0: there is one. */
  get retrySeconds(): number {
    const missing = this.cost + this.used - this.fill;
    return missing <= 0 ? 0 : Math.ceil(missing * this.secondsPerTick) | 0;
  }

  /** After `take`: whole seconds until the bucket is full, rounded up. */
  get fullSeconds(): number {
    return Math.ceil(this.used * this.secondsPerTick) | 0;
  }

  /**
   * Gives back what `take` has just taken, for a request that is refused by another limit after all. What
   * has become another key's meanwhile is left alone.
   */
  giveBack(hashLow: number, hashHigh: number): void {
    const { words } = this;
    const tag = tagOf(hashHigh);
    let at = this.first + COMMON;
    let way = -1;
    if (this.sets > 0) {
      const set = this.first + (hashLow & this.setMask) * SET_WORDS;
      way = this.find(set, tag);
      at = way < 0 ? set + COMMON : way + 1;
    }
    // Each turn but the last means that another worker has made progress.
    for (;;) {
      const tat = Atomics.load(words, at);
      if (tat === MOVING || (way >= 0 && Atomics.load(words, way) !== tag)) return;
      if (Atomics.compareExchange(words, at, tat, notMoving((tat - this.cost) | 0)) === tat) return;
    }
  }

  private takeKeyed(hashLow: number, hashHigh: number, now: number): number {
    const { words } = this;
    const set = this.first + (hashLow & this.setMask) * SET_WORDS;
    const tag = tagOf(hashHigh);
    for (let tries = 0; tries < FIND_TRIES; tries++) {
      const way = this.find(set, tag);
      if (way >= 0) {
        const allowed = this.charge(way + 1, now);
        // If the way was given to another key before it was charged, then its tag is seen as well: that is written first.
        // A refusal has only read, so that it has to look again in order.
        const gone = allowed === GONE || (allowed === 0 && Atomics.load(words, way + 1) === MOVING);
        if (!gone && words[way] === tag) return allowed;
      }
      const allowed = this.claim(set, tag, now);
      if (allowed !== GONE) return allowed;
    }
    return this.chargeCommon(set, now);
  }

  /** Position of a key's way, which may be another's at any moment; -1: it has none. */
  private find(set: number, tag: number): number {
    const { words } = this;
    const end = set + SET_WORDS;
    for (let way = set + FIRST_WAY; way < end; way += 2) if (words[way] === tag) return way;
    return -1;
  }

  /**
   * Takes a request from the bucket at `at`: 1 or 0, or GONE.
   *
   * The bucket is first read as memory is, without the call into the engine that a read by Atomics costs. What is read may
   * be out of date, and then the exchange fails.
   */
  private charge(at: number, now: number): number {
    const { words, cost, fill, aheadMax } = this;
    let tat = words[at]!;
    // Each turn but the last means that another worker has made progress.
    for (;;) {
      if (tat === MOVING) return GONE;
      let used = (tat - now) | 0;
      if (used < 0 || used > aheadMax) used = 0;
      const next = used + cost;
      if (next > fill) {
        this.used = used;
        return 0;
      }
      const found = Atomics.compareExchange(words, at, tat, notMoving((now + next) | 0));
      if (found === tat) {
        this.used = next;
        return 1;
      }
      tat = found;
    }
  }

  private chargeCommon(set: number, now: number): number {
    this.counters[SHARED]++;
    return this.charge(set + COMMON, now);
  }

  /**
   * Gives a key that is not in its set a way, and takes its first request; GONE: it is there after all. It gets
   * the way that has been full for the longest time, so that keys which come now and then keep theirs.
   */
  private claim(set: number, tag: number, now: number): number {
    const { words, cost } = this;
    this.lock(set);
    const own = this.find(set, tag);
    // Still moving: who wanted to give it to another key has died over that.
    if (own >= 0 && Atomics.load(words, own + 1) !== MOVING) {
      this.unlock(set);
      return GONE;
    }
    for (let tries = 0; tries < WAYS; tries++) {
      const way = own >= 0 ? own : this.longestFull(set, now);
      if (way < 0) break;
      const tat = Atomics.load(words, way + 1);
      // Charged just now by the key that has it: it is in use again.
      if (tat !== MOVING && words[way] !== 0 && this.idleTicks(tat, now) < 0) continue;
      if (Atomics.compareExchange(words, way + 1, tat, MOVING) !== tat) continue;
      Atomics.store(words, way, tag);
      Atomics.store(words, way + 1, notMoving((now + cost) | 0));
      this.unlock(set);
      this.used = cost;
      return 1;
    }
    this.unlock(set);
    return this.chargeCommon(set, now);
  }

  /** The way of a set whose bucket has been full for the longest time, or which no key has yet; -1: all are in use. */
  private longestFull(set: number, now: number): number {
    const { words } = this;
    const end = set + SET_WORDS;
    let chosen = -1;
    let longest = -1;
    for (let way = set + FIRST_WAY; way < end; way += 2) {
      if (words[way] === 0) return way;
      const idle = this.idleTicks(words[way + 1]!, now);
      if (idle <= longest) continue;
      longest = idle;
      chosen = way;
    }
    return chosen;
  }

  /** Ticks for which a bucket has been full, -1 for one that is not. */
  private idleTicks(tat: number, now: number): number {
    const ahead = (tat - now) | 0;
    if (ahead > this.aheadMax) return 0x7fff_ffff;
    return ahead > 0 ? -1 : (now - tat) & 0x7fff_ffff;
  }

  /** The lock is held for a few dozen instructions: who waits longer waits for a thread that is not running. */
  private lock(set: number): void {
    const { words } = this;
    for (let sleeps = 0; sleeps < LOCK_SLEEPS; sleeps++) {
      for (let spins = 0; spins < LOCK_SPINS; spins++) {
        if (Atomics.compareExchange(words, set, 0, 1) === 0) return;
      }
      Atomics.wait(words, set, 1, 1);
    }
    // Its holder has died, or nearly so: the lock is taken over.
  }

  private unlock(set: number): void {
    Atomics.store(this.words, set, 0);
  }

  /**
   * Brings buckets that are full to the present, so that none is taken for one that is in use when ticks have
   * wrapped around. Returns the number of keys with a bucket that is not full. For the control thread, at least twice per
   * `wrapMs`.
   */
  sweep(nowMs: number): number {
    const now = (nowMs * this.ticksPerMs) | 0;
    let inUse = 0;
    this.refresh(this.first + COMMON, now);
    for (let set = 0; set < this.sets; set++) {
      const at = this.first + set * SET_WORDS;
      this.refresh(at + COMMON, now);
      for (let way = at + FIRST_WAY; way < at + SET_WORDS; way += 2) {
        if (this.words[way] !== 0 && this.refresh(way + 1, now)) inUse++;
      }
    }
    return inUse;
  }

  /** Whether a bucket is not full; one that is gets the present time. */
  private refresh(at: number, now: number): boolean {
    const { words } = this;
    const tat = Atomics.load(words, at);
    const ahead = (tat - now) | 0;
    if (tat === MOVING || (ahead > 0 && ahead <= this.aheadMax)) return true;
    Atomics.compareExchange(words, at, tat, notMoving(now));
    return false;
  }
}

/** Sums a counter (LimitCounter) over all workers of a table. */
export function limitCounter(buffer: SharedArrayBuffer, counter: number): number {
  const workers = new Int32Array(buffer, 0, Header.WORDS)[Header.WORKERS]!;
  const counters = new Float64Array(buffer, Header.WORDS * 4, workers * LimitCounter.COUNT);
  let sum = 0;
  for (let worker = 0; worker < workers; worker++) sum += counters[worker * LimitCounter.COUNT + counter]!;
  return sum;
}

/** 0 stands for a way that no key has. */
function tagOf(hash: number): number {
  return hash === 0 ? 1 : hash;
}

/** One tick later where a time happens to be the mark. */
function notMoving(tat: number): number {
  return tat === MOVING ? MOVING + 1 : tat;
}
