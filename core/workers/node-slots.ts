// Gives endpoints and backends their slots of the node state, and keeps them across snapshots.
//
// Owned by the control thread. A slot whose endpoint has left the configuration rests: it goes back to the same
// endpoint as it is, whenever that returns (an address may be missing from one DNS answer and stand in the next). Another
// endpoint gets it only when no fresh slot is left, after a time in which exchanges of old snapshots end,
// and not as long as anything is still counted in it; it is cleared then.

import { createLatencySamples } from '../lb/latency-samples.ts';
import { BackendWord, createNodeState, EndpointWord, NodeState } from '../lb/node-state.ts';
import { monotonicMs } from './clock.ts';
import { LimitTables } from './limit-tables.ts';
import type { BackendSettings } from './snapshot.ts';
import { WorkloadSlots } from './workload-slots.ts';

/** Time until a slot that is not used any more is given to another. Longer than nearly all exchanges. */
const SLOT_REST_MS = 15 * 60_000;

const { ACTIVE: ENDPOINT_ACTIVE } = EndpointWord;
const { ACTIVE, PENDING, RETRIES, CONNECTIONS, HIGH_ACTIVE, HIGH_PENDING, HIGH_RETRIES, ADAPTIVE_ACTIVE } = BackendWord;

/** Words of a slot that count what is in progress: who has added to them takes it away again, however late. */
const ENDPOINT_COUNTS = [ENDPOINT_ACTIVE];
const BACKEND_COUNTS = [
  ACTIVE,
  PENDING,
  RETRIES,
  CONNECTIONS,
  HIGH_ACTIVE,
  HIGH_PENDING,
  HIGH_RETRIES,
  ADAPTIVE_ACTIVE,
];

/** Slots of one kind. */
class Slots {
  private readonly capacity: number;
  private readonly what: string;
  private readonly byKey = new Map<string, number>();
  /** By key, those that have rested longest first. */
  private readonly resting = new Map<string, { slot: number; sinceMs: number }>();
  private readonly words: Int32Array;
  private readonly positionOf: (slot: number) => number;
  private readonly length: number;
  /** Words that must be 0 before a slot is given to another key. */
  private readonly counts: readonly number[];
  private used = 0;

  constructor(
    capacity: number,
    what: string,
    words: Int32Array,
    positionOf: (slot: number) => number,
    length: number,
    counts: readonly number[],
  ) {
    this.capacity = capacity;
    this.what = what;
    this.words = words;
    this.positionOf = positionOf;
    this.length = length;
    this.counts = counts;
  }

  /** The slot of `key`: the one that it has or had, with all that is in it, or one of zeros. Throws when there is none. */
  take(key: string, nowMs: number): number {
    const slot = this.byKey.get(key) ?? this.revive(key) ?? this.takeFresh() ?? this.takeRested(nowMs);
    if (slot === undefined) throw new Error(`more than ${this.capacity} ${this.what}`);
    this.byKey.set(key, slot);
    return slot;
  }

  private revive(key: string): number | undefined {
    const slot = this.resting.get(key)?.slot;
    this.resting.delete(key);
    return slot;
  }

  private takeFresh(): number | undefined {
    return this.used < this.capacity ? this.used++ : undefined;
  }

  private takeRested(nowMs: number): number | undefined {
    for (const [key, { slot, sinceMs }] of this.resting) {
      if (nowMs - sinceMs < SLOT_REST_MS) return undefined;
      const at = this.positionOf(slot);
      if (this.counts.some((word) => Atomics.load(this.words, at + word) !== 0)) continue;
      this.resting.delete(key);
      this.words.fill(0, at, at + this.length);
      return slot;
    }
    return undefined;
  }

  /** Lets the slot of a key rest. */
  rest(key: string, nowMs: number): void {
    const slot = this.byKey.get(key);
    if (slot === undefined) return;
    this.byKey.delete(key);
    this.resting.set(key, { slot, sinceMs: nowMs });
  }

  find(key: string): number | undefined {
    return this.byKey.get(key);
  }
}

/** The node state of a gateway, and who has which slot of it. */
export class NodeSlots {
  readonly state: NodeState;
  /** Tables of rate limits. */
  readonly limits: LimitTables;
  /** Counters of workloads. */
  readonly workloads: WorkloadSlots;
  /** Settings with slots of this node, by what they were compiled from, where that is all that they depend on. */
  readonly settings = new WeakMap<object, BackendSettings>();
  /** Settings in force: they have their slots. */
  private current: ReadonlySet<BackendSettings> = new Set();
  /** Settings that were given slots since, in force or not. */
  private readonly assigned = new Set<BackendSettings>();
  private samples: SharedArrayBuffer | null = null;
  private readonly endpoints: Slots;
  private readonly backends: Slots;

  /** For so many packet workers; a `state` that is given is used instead of a new one. */
  constructor(workers: number, state: SharedArrayBuffer = createNodeState(workers)) {
    this.state = new NodeState(state, -1);
    this.limits = new LimitTables(workers);
    this.workloads = new WorkloadSlots(workers);
    const { state: node } = this;
    this.endpoints = new Slots(
      node.endpointsMax,
      'endpoints of all backends',
      node.words,
      (slot) => node.endpointAt(slot),
      EndpointWord.WORDS,
      ENDPOINT_COUNTS,
    );
    this.backends = new Slots(
      node.backendsMax,
      'backends',
      node.words,
      (slot) => node.backendAt(slot),
      BackendWord.WORDS,
      BACKEND_COUNTS,
    );
  }

  /**
   * Sets `slot` of backends and endpoints: known ones keep theirs. An endpoint that comes to a known backend, for the
   * first time or again, starts now (`nowMs`: the clock of the packet workers). Throws when there are too many.
   */
  assign(backends: readonly BackendSettings[], nowMs: number = monotonicMs()): void {
    const { state } = this;
    for (const backend of backends) {
      if (this.current.has(backend)) continue;
      this.assigned.add(backend);
      // The endpoints that a backend begins with all start at once, which is no start to be slow about.
      const startsSlowly = this.backends.find(backend.name) !== undefined;
      backend.slot = this.backends.take(backend.name, nowMs);
      for (const endpoint of backend.endpoints) {
        const key = endpointKey(backend.name, endpoint.address);
        const isNew = this.endpoints.find(key) === undefined;
        endpoint.slot = this.endpoints.take(key, nowMs);
        if (isNew && startsSlowly) {
          Atomics.store(state.words, state.endpointAt(endpoint.slot) + EndpointWord.STARTED_AT_MS, nowMs | 0 || 1);
        }
      }
    }
  }

  /** Latencies of backends (core/lb/latency-samples.ts), made when first asked for. */
  get latencySamples(): SharedArrayBuffer {
    this.samples ??= createLatencySamples(this.state.backendsMax);
    return this.samples;
  }

  /** These backends are now in force: slots of all others rest from now on. */
  keepOnly(backends: readonly BackendSettings[], nowMs: number = monotonicMs()): void {
    const next = new Set(backends);
    const gone = [...this.current, ...this.assigned].filter((backend) => !next.has(backend));
    this.current = next;
    this.assigned.clear();
    if (gone.length === 0) return;
    const byName = new Map(backends.map((backend) => [backend.name, backend]));
    for (const { name, endpoints } of gone) {
      const successor = byName.get(name);
      if (successor === undefined) this.backends.rest(name, nowMs);
      const kept = new Set(successor?.endpoints.map(({ address }) => address));
      for (const { address } of endpoints) {
        if (!kept.has(address)) this.endpoints.rest(endpointKey(name, address), nowMs);
      }
    }
  }
}

function endpointKey(backend: string, address: string): string {
  return `${backend} ${address}`;
}
