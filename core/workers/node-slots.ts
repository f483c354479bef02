// Gives endpoints and backends their slots of the node state, and keeps them across snapshots.
//
// Owned by the control thread. A slot whose endpoint has left the configuration is given out again
// only after a time in which exchanges of old snapshots end, and is cleared then.

import { createLatencySamples } from '../lb/latency-samples.ts';
import { BackendWord, createNodeState, EndpointWord, NodeState } from '../lb/node-state.ts';
import { monotonicMs } from './clock.ts';
import { LimitTables } from './limit-tables.ts';
import type { BackendSettings } from './snapshot.ts';

/** Time until a slot that is not used any more is given to another. Longer than nearly all exchanges. */
const SLOT_REST_MS = 15 * 60_000;

/** Slots of one kind. */
class Slots {
  private readonly capacity: number;
  private readonly what: string;
  private readonly byKey = new Map<string, number>();
  private readonly resting: { slot: number; sinceMs: number }[] = [];
  private used = 0;

  constructor(capacity: number, what: string) {
    this.capacity = capacity;
    this.what = what;
  }

  /** The slot of `key`; `clear` is called with one that begins a new life. */
  take(key: string, nowMs: number, clear: (slot: number) => void): number {
    const known = this.byKey.get(key);
    if (known !== undefined) return known;
    let slot: number;
    const first = this.resting[0];
    if (first !== undefined && (nowMs - first.sinceMs >= SLOT_REST_MS || this.used === this.capacity)) {
      this.resting.shift();
      slot = first.slot;
      clear(slot);
    } else if (this.used < this.capacity) {
      slot = this.used++;
    } else {
      throw new Error(`more than ${this.capacity} ${this.what}`);
    }
    this.byKey.set(key, slot);
    return slot;
  }

  /** Lets all slots rest whose key is not among `keys`. */
  keepOnly(keys: ReadonlySet<string>, nowMs: number): void {
    for (const [key, slot] of this.byKey) {
      if (keys.has(key)) continue;
      this.byKey.delete(key);
      this.resting.push({ slot, sinceMs: nowMs });
    }
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
  private samples: SharedArrayBuffer | null = null;
  private readonly endpoints: Slots;
  private readonly backends: Slots;

  /** For so many packet workers; a `state` that is given is used instead of a new one. */
  constructor(workers: number, state: SharedArrayBuffer = createNodeState(workers)) {
    this.state = new NodeState(state, -1);
    this.limits = new LimitTables(workers);
    this.endpoints = new Slots(this.state.endpointsMax, 'endpoints of all backends');
    this.backends = new Slots(this.state.backendsMax, 'backends');
  }

  /**
   * Sets `slot` of backends and endpoints: known ones keep theirs. An endpoint that is new to a known backend starts
   * now (`nowMs`: the clock of the packet workers).
   */
  assign(backends: readonly BackendSettings[], nowMs: number = monotonicMs()): void {
    const { state } = this;
    for (const backend of backends) {
      // The endpoints that a backend begins with all start at once, which is no start to be slow about.
      const startsSlowly = this.backends.find(backend.name) !== undefined;
      backend.slot = this.backends.take(backend.name, nowMs, (slot) => {
        state.words.fill(0, state.backendAt(slot), state.backendAt(slot) + BackendWord.WORDS);
      });
      for (const endpoint of backend.endpoints) {
        const key = endpointKey(backend.name, endpoint.address);
        const isNew = this.endpoints.find(key) === undefined;
        endpoint.slot = this.endpoints.take(key, nowMs, (slot) => {
          state.words.fill(0, state.endpointAt(slot), state.endpointAt(slot) + EndpointWord.WORDS);
        });
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
    this.backends.keepOnly(new Set(backends.map(({ name }) => name)), nowMs);
    const keys = backends.flatMap(({ name, endpoints }) => endpoints.map(({ address }) => endpointKey(name, address)));
    this.endpoints.keepOnly(new Set(keys), nowMs);
  }
}

function endpointKey(backend: string, address: string): string {
  return `${backend} ${address}`;
}
