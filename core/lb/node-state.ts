// Numbers about endpoints and backends that all workers of a node share: load, health, limits.
//
// One SharedArrayBuffer of 32-bit words, changed by atomic operations only:
//
//   header | endpoints (slots) | backends (slots) | shares of worker 0 | shares of worker 1 ...
//
// The control thread gives every endpoint of a backend, and every backend, a slot that it keeps
// across snapshots (core/workers/node-slots.ts); settings carry the slot. Counts of what is in
// progress are also kept per worker ("shares"), so that what a crashed worker had counted can be
// taken back by the one that replaces it.
// Hot module: no allocation. Times in words are whole milliseconds of the monotonic clock that all
// threads share, cut to 32 bits: compare them by the sign of their difference.

/** Words before the first endpoint: capacities, so that both sides agree, and what concerns the whole gateway. */
const Header = {
  ENDPOINTS_MAX: 0,
  BACKENDS_MAX: 1,
  WORKERS: 2,
  /** OverloadLevel (core/exchange/overload.ts). Written by the control thread. */
  OVERLOAD: 3,
  /** Not 0: connections are scarce, and are closed after the request that they carry. Written by the control thread. */
  CONNECTIONS_SCARCE: 4,
  /** Requests shed so far, of rules with priority low and of all others. */
  SHED_LOW: 5,
  SHED_OTHERS: 6,
  /** Tells this state from another one: threads get an object of their own for the same memory with every message. */
  ID: 7,
  WORDS: 16,
} as const;

/** Endpoints of all backends that a node can know at a time; the memory of unused slots is never touched. */
const NODE_ENDPOINTS_MAX = 32_768;
/** Backends that a node can know at a time. */
export const NODE_BACKENDS_MAX = 8192;

/** Words of an endpoint's slot. A slot that is given to a new endpoint starts with zeros. */
export const EndpointWord = {
  /** Requests in progress (a count with shares). */
  ACTIVE: 0,
  /** Result of active health checks, CheckState. Written by the control thread. */
  CHECK: 1,
  /** Not 0: gets no new requests, although it is still listed. Written by the control thread. */
  DRAINING: 2,
  /** Share of its weight that passive health takes from it, in 1/1000: 0 is none, 1000 ejected. */
  WITHHELD_PERMILLE: 3,
  /** Errors in a row, for outlier detection. */
  CONSECUTIVE_5XX: 4,
  CONSECUTIVE_GATEWAY_FAILURES: 5,
  /** Requests and failures of the current interval of outlier detection. */
  INTERVAL_REQUESTS: 6,
  INTERVAL_FAILURES: 7,
  /** Ejections so far, and when the last one began. */
  EJECTIONS: 8,
  EJECTED_AT_MS: 9,
  /** Moving average of the time to the first byte, microseconds, and when it was last written. */
  LATENCY_US: 10,
  LATENCY_AT_MS: 11,
  /** When it began to be used, for slow start; 0: long ago. */
  STARTED_AT_MS: 12,
  /** 1: a balancer has seen that it cannot be used, and its return is a start, for slow start. */
  WAS_UNUSABLE: 13,
  /** Cause of the last ejection (EjectionCause), the figure that led to it, and all ejections of this endpoint. */
  EJECTION_CAUSE: 16,
  EJECTION_FIGURE: 17,
  EJECTED_TIMES: 18,
  /** When the present share of a gradual return began. */
  RAMPED_AT_MS: 19,
  /** When no connection could be made, and for how long LeastRequest leaves it out since then; 0: that has not happened. */
  CONNECT_FAILED_AT_MS: 20,
  LEFT_OUT_FOR_MS: 21,
  WORDS: 32,
} as const;

/** Values of EndpointWord.CHECK. */
export const CheckState = {
  /** Not checked, or no result yet that would say otherwise: usable. */
  UNKNOWN: 0,
  HEALTHY: 1,
  UNHEALTHY: 2,
} as const;

/** Words of a backend's slot. */
export const BackendWord = {
  /** Grows by one with every change of its endpoints' health: balancers then look again. */
  GENERATION: 0,
  /** Requests in progress, waiting for a connection, and being retried; open connections (counts with shares). */
  ACTIVE: 1,
  PENDING: 2,
  RETRIES: 3,
  CONNECTIONS: 4,
  /**
   * Circuit breakers: bit 1 << class (0: default, 1: high) where the control thread wants to hear of the next admitted
   * request, as it does while a limit is half open. Set by it, cleared by the worker that admits the request.
   */
  BREAKER_TRIALS: 6,
  /** Retry budget: number of the present period, and requests and retries of it and of the one before. */
  BUDGET_PERIOD: 20,
  BUDGET_REQUESTS: 21,
  BUDGET_RETRIES: 22,
  BUDGET_REQUESTS_BEFORE: 23,
  BUDGET_RETRIES_BEFORE: 24,
  /** The same of hedges. */
  BUDGET_HEDGES: 60,
  BUDGET_HEDGES_BEFORE: 61,
  /** The counts of requests of priority high, which ACTIVE, PENDING and RETRIES are without (counts with shares). */
  HIGH_ACTIVE: 25,
  HIGH_PENDING: 26,
  HIGH_RETRIES: 27,
  /** What circuit breakers have refused, by limit (BreakerLimit); of priority high 4 words further (30 to 37). */
  OVERFLOWS: 30,
  /** Priority levels whose endpoints are used whatever their health: bit of each. Written by balancers. */
  PANIC_LEVELS: 5,
  /** Endpoints that are ejected now, and ejections so far by cause: index `EJECTIONS + EjectionCause` (10 to 19). */
  EJECTED: 10,
  EJECTIONS: 11,
  /** Adaptive concurrency: requests in progress (a count with shares), and refused ones. */
  ADAPTIVE_ACTIVE: 40,
  ADAPTIVE_REFUSED: 41,
  /** Its limit (0: none yet), and since when the least latency is measured (0: not now). Written by the control thread. */
  ADAPTIVE_LIMIT: 42,
  ADAPTIVE_MEASURING_MS: 43,
  WORDS: 64,
} as const;

/** Bytes of a node state for so many endpoints, backends and workers. */
function stateBytes(endpointsMax: number, backendsMax: number, workers: number): number {
  const words = endpointsMax * EndpointWord.WORDS + backendsMax * BackendWord.WORDS;
  return (Header.WORDS + words + workers * (words + 1)) * 4;
}

/** Makes the state of a node with so many packet workers, all zeros. Smaller capacities are for tests. */
export function createNodeState(
  workers: number,
  endpointsMax: number = NODE_ENDPOINTS_MAX,
  backendsMax: number = NODE_BACKENDS_MAX,
): SharedArrayBuffer {
  const buffer = new SharedArrayBuffer(stateBytes(endpointsMax, backendsMax, workers));
  const header = new Int32Array(buffer, 0, Header.WORDS);
  header[Header.ENDPOINTS_MAX] = endpointsMax;
  header[Header.BACKENDS_MAX] = backendsMax;
  header[Header.WORKERS] = workers;
  header[Header.ID] = Math.floor(Math.random() * 2 ** 32);
  return buffer;
}

/** One thread's view of a node state. */
export class NodeState {
  readonly buffer: SharedArrayBuffer;
  /** The words of endpoints and backends; positions come from `endpointAt` and `backendAt`. */
  readonly words: Int32Array;
  readonly endpointsMax: number;
  readonly backendsMax: number;
  private readonly header: Int32Array;
  /** What this worker has added to each word; null for the control thread. */
  private readonly shares: Int32Array | null;
  /** Index of the packet worker; -1 for the control thread. */
  readonly worker: number;

  /** `worker` is the index of a packet worker, or -1 for the control thread. Throws when there is no such worker. */
  constructor(buffer: SharedArrayBuffer, worker: number) {
    const header = new Int32Array(buffer, 0, Header.WORDS);
    this.buffer = buffer;
    this.header = header;
    this.worker = worker;
    this.endpointsMax = header[Header.ENDPOINTS_MAX]!;
    this.backendsMax = header[Header.BACKENDS_MAX]!;
    const count = this.endpointsMax * EndpointWord.WORDS + this.backendsMax * BackendWord.WORDS;
    if (worker >= header[Header.WORKERS]!) throw new Error(`the node state has no share for worker ${worker}`);
    this.words = new Int32Array(buffer, Header.WORDS * 4, count);
    // One word more than shares: whether a worker of this index has been here before.
    this.shares =
      worker < 0 ? null : new Int32Array(buffer, (Header.WORDS + count + worker * (count + 1)) * 4, count + 1);
  }

  /** Whether this is the view of a buffer's memory, which each message brings to a thread as another object. */
  isViewOf(buffer: SharedArrayBuffer): boolean {
    return new Int32Array(buffer, 0, Header.WORDS)[Header.ID] === this.header[Header.ID];
  }

  /** How overloaded the gateway is: OverloadLevel (core/exchange/overload.ts). */
  get overload(): number {
    return Atomics.load(this.header, Header.OVERLOAD);
  }

  /** Whether connections are closed after the request that they carry, since there are too many. */
  get connectionsScarce(): boolean {
    return Atomics.load(this.header, Header.CONNECTIONS_SCARCE) !== 0;
  }

  /** Says how overloaded the gateway is. For the control thread. */
  setOverload(level: number, connectionsScarce: boolean): void {
    Atomics.store(this.header, Header.OVERLOAD, level);
    Atomics.store(this.header, Header.CONNECTIONS_SCARCE, connectionsScarce ? 1 : 0);
  }

  /** Counts a request that was shed. */
  countShed(low: boolean): void {
    Atomics.add(this.header, low ? Header.SHED_LOW : Header.SHED_OTHERS, 1);
  }

  /** Requests shed so far: of rules with priority low, or of all others. Wraps around at 2^32. */
  shed(low: boolean): number {
    return Atomics.load(this.header, low ? Header.SHED_LOW : Header.SHED_OTHERS) >>> 0;
  }

  /** Position of an endpoint's first word. */
  endpointAt(slot: number): number {
    return slot * EndpointWord.WORDS;
  }

  /** Position of a backend's first word. */
  backendAt(slot: number): number {
    return this.endpointsMax * EndpointWord.WORDS + slot * BackendWord.WORDS;
  }

  /** Adds to a count with shares and returns what it was before, of all workers. */
  add(at: number, delta: number): number {
    if (this.shares !== null) this.shares[at] += delta;
    return Atomics.add(this.words, at, delta);
  }

  /** Takes back all that a predecessor of this worker had counted and did not live to take back. */
  reclaim(): void {
    const { shares, words } = this;
    if (shares === null) return;
    const last = shares.length - 1;
    // The first worker of its index has nothing to look for, and a start has no time for it.
    if (shares[last] === 0) {
      shares[last] = 1;
      return;
    }
    for (let at = 0; at < last; at++) {
      const left = shares[at]!;
      if (left === 0) continue;
      Atomics.sub(words, at, left);
      shares[at] = 0;
    }
  }

  /** Says that the health or load rules of a backend's endpoints have changed. */
  changed(backendSlot: number): void {
    Atomics.add(this.words, this.backendAt(backendSlot) + BackendWord.GENERATION, 1);
  }
}
