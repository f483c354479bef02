// Counters of the workloads of a node, and of whom each talks to: layout in shared memory, writer and reader.
//
//   worker 0: slot 0 | slot 1 ... | worker 1: slot 0 ...        a slot: counters | peers (one PEER_WORDS each)
//
// Made for node proxies only. Each worker writes its own part with plain stores, like its metrics; the control thread
// reads at scrape time, gives out the slots (core/workers/workload-slots.ts), and clears one that changes hands.
// A part outlives its worker: the next one goes on counting, once it has reset the gauges.
// Hot module: counting allocates nothing.

/** Slots of workloads; the last one is that of all workloads beyond. */
export const WORKLOAD_SLOTS = 512;

/** Peers that are counted apart per workload and worker; the last place is that of all others. */
export const WORKLOAD_PEERS = 64;

/** Counters of a workload. Those of OUTBOUND, INBOUND and TUNNELS lie one behind the other. */
export const WorkloadCounter = {
  /** Gauges: open connections that it has begun; that came to it; tunnels from other nodes that carry such. */
  OUTBOUND_OPEN: 0,
  INBOUND_OPEN: 1,
  TUNNELS_OPEN: 2,
  /** The same, accepted so far. */
  OUTBOUND_ACCEPTED: 3,
  INBOUND_ACCEPTED: 4,
  TUNNELS_ACCEPTED: 5,
  /** Requests that it sent; that came to it. */
  OUTBOUND_REQUESTS: 6,
  INBOUND_REQUESTS: 7,
  /** Requests, and connections passed on unread, that ended with a 5xx or for another reason than they should. */
  OUTBOUND_FAILURES: 8,
  INBOUND_FAILURES: 9,
  /** Those to it that policies have refused. */
  DENIED: 10,
  /** Connections and requests that a limit of the workload has refused. */
  LIMITED: 11,
  /** Payload: bodies, and bytes of connections that are passed on unread. */
  SENT_BYTES: 12,
  RECEIVED_BYTES: 13,
  /** Milliseconds of the worker. */
  BUSY_MS: 14,
  /** Gauge: bytes of buffers that it holds. */
  BUFFER_BYTES: 15,
} as const;

const COUNTER_WORDS = 16;
const gauges = [
  WorkloadCounter.OUTBOUND_OPEN,
  WorkloadCounter.INBOUND_OPEN,
  WorkloadCounter.TUNNELS_OPEN,
  WorkloadCounter.BUFFER_BYTES,
];

/** Counters of one peer, spoken to by one protocol. */
export const PeerCounter = {
  /** Established, of those that are passed on unread; with HTTP those that have had an answer. */
  CONNECTIONS: 1,
  REQUESTS: 2,
  FAILURES: 3,
  DENIED: 4,
} as const;

/** What is spoken with a peer. */
export const PeerProtocol = { TCP: 0, HTTP: 1, GRPC: 2 } as const;

/** Names of PeerProtocol. */
export const peerProtocolNames: readonly string[] = ['tcp', 'http', 'grpc'];

/** Which way a peer is: the workload has called it, or was called by it. */
export const PeerSide = { DESTINATION: 0, SOURCE: 1 } as const;

/**
 * A peer: state word (0: free; else 1 + side + 2 * protocol, as Int32), counters, bytes of the name, the name in UTF-8.
 */
const PEER_WORDS = 32;
const STATE = 0;
const NAME_LENGTH = 5;
const NAME = 6;
const NAME_BYTES_MAX = (PEER_WORDS - NAME) * 8;

const SLOT_WORDS = COUNTER_WORDS + WORKLOAD_PEERS * PEER_WORDS;
const WORKER_WORDS = WORKLOAD_SLOTS * SLOT_WORDS;

/** Name of the peers that have no place of their own. */
const OTHERS = 'others';

const encoder = new TextEncoder();
const decoder = new TextDecoder();

/** The counters of so many workers, all zero. The system gives memory to slots that are used only. */
export function createWorkloadMetrics(workers: number): SharedArrayBuffer {
  return new SharedArrayBuffer(workers * WORKER_WORDS * 8);
}

/** The counters of one workload in one worker, for that worker to write. */
export class WorkloadCounters {
  /** Every value, for `words[base + WorkloadCounter.X] += n`. */
  readonly words: Float64Array;
  readonly base: number;
  private readonly states: Int32Array;
  private readonly bytes: Uint8Array;
  private readonly peers = new Map<string, Peer>();

  /** `slot` of the part of `worker`. Without `buffer`, or with slot -1, they count for nobody. */
  constructor(buffer: SharedArrayBuffer | null, worker: number, slot: number) {
    const shown = buffer !== null && slot >= 0;
    this.words = shown ? new Float64Array(buffer) : new Float64Array(SLOT_WORDS);
    this.base = shown ? worker * WORKER_WORDS + slot * SLOT_WORDS : 0;
    this.states = new Int32Array(this.words.buffer);
    this.bytes = new Uint8Array(this.words.buffer);
  }

  /** A peer on one side, whatever is spoken with it. The same object for the same name. */
  peer(side: number, name: string): Peer {
    const key = `${side}${name}`;
    let peer = this.peers.get(key);
    if (peer === undefined) {
      // Whoever meets very many has most of them under "others" already.
      if (this.peers.size >= 4 * WORKLOAD_PEERS) this.peers.clear();
      peer = new Peer(this, side, name);
      this.peers.set(key, peer);
    }
    return peer;
  }

  /** First word of the place of a peer, which is taken if there is none yet; that of all others when none is free. */
  place(side: number, protocol: number, name: string): number {
    const state = 1 + side + 2 * protocol;
    const text = encoder.encode(name);
    const length = Math.min(text.length, NAME_BYTES_MAX);
    let at = this.base + COUNTER_WORDS;
    for (let i = 0; i < WORKLOAD_PEERS - 1; i++, at += PEER_WORDS) {
      const taken = this.states[(at + STATE) * 2]!;
      if (taken === 0) return this.take(at, state, text.subarray(0, length));
      if (taken === state && this.words[at + NAME_LENGTH] === length && this.hasName(at, text, length)) return at;
    }
    if (this.states[(at + STATE) * 2] === 0) this.take(at, 1 + 2 * PeerProtocol.TCP, encoder.encode(OTHERS));
    return at;
  }

  private hasName(at: number, text: Uint8Array, length: number): boolean {
    const start = (at + NAME) * 8;
    for (let i = 0; i < length; i++) if (this.bytes[start + i] !== text[i]) return false;
    return true;
  }

  private take(at: number, state: number, text: Uint8Array): number {
    this.bytes.set(text, (at + NAME) * 8);
    this.words[at + NAME_LENGTH] = text.length;
    // Readers see the name once they see this.
    Atomics.store(this.states, (at + STATE) * 2, state);
    return at;
  }
}

/** Whom a workload talks to, or who talks to it. */
export class Peer {
  private readonly counters: WorkloadCounters;
  private readonly side: number;
  private readonly name: string;
  /** Places by protocol, looked for when first used; -1: not yet. */
  private readonly places = new Int32Array(3).fill(-1);

  constructor(counters: WorkloadCounters, side: number, name: string) {
    this.counters = counters;
    this.side = side;
    this.name = name;
  }

  /** Adds one to a counter (PeerCounter) of what is spoken (PeerProtocol). */
  count(protocol: number, counter: number): void {
    let place = this.places[protocol]!;
    if (place < 0) {
      place = this.counters.place(this.side, protocol, this.name);
      this.places[protocol] = place;
    }
    this.counters.words[place + counter]!++;
  }
}

/** Sets the gauges of one worker to 0: what a predecessor of it had open is gone. */
export function resetWorkloadGauges(buffer: SharedArrayBuffer, worker: number): void {
  const words = new Float64Array(buffer, worker * WORKER_WORDS * 8, WORKER_WORDS);
  for (let slot = 0; slot < WORKLOAD_SLOTS; slot++) {
    // Where nothing is, nothing is written: untouched memory costs none.
    for (const gauge of gauges) if (words[slot * SLOT_WORDS + gauge] !== 0) words[slot * SLOT_WORDS + gauge] = 0;
  }
}

/** Counters of a slot, all workers together, by WorkloadCounter. */
export function readWorkload(buffer: SharedArrayBuffer, slot: number): Float64Array {
  const words = new Float64Array(buffer);
  const sum = new Float64Array(COUNTER_WORDS);
  for (let base = slot * SLOT_WORDS; base < words.length; base += WORKER_WORDS) {
    for (let i = 0; i < COUNTER_WORDS; i++) sum[i]! += words[base + i]!;
  }
  return sum;
}

/** Whether anything in a slot is in use still. */
export function isWorkloadOpen(buffer: SharedArrayBuffer, slot: number): boolean {
  const sum = readWorkload(buffer, slot);
  return gauges.some((gauge) => sum[gauge]! > 0);
}

/** Empties a slot for another workload. */
export function clearWorkload(buffer: SharedArrayBuffer, slot: number): void {
  const words = new Float64Array(buffer);
  for (let base = slot * SLOT_WORDS; base < words.length; base += WORKER_WORDS) {
    words.fill(0, base, base + SLOT_WORDS);
  }
}

/** What a workload and one peer have had to do with each other. */
export interface PeerTraffic {
  /** PeerSide of the peer. */
  side: number;
  /** PeerProtocol. */
  protocol: number;
  /** Name of the service or group of destinations, or identity of the source (empty: it has shown none). */
  name: string;
  connections: number;
  requests: number;
  failures: number;
  denied: number;
}

/** Peers of a slot, all workers together, in no order. */
export function readPeers(buffer: SharedArrayBuffer, slot: number): PeerTraffic[] {
  const words = new Float64Array(buffer);
  const states = new Int32Array(buffer);
  const peers = new Map<string, PeerTraffic>();
  for (let base = slot * SLOT_WORDS; base < words.length; base += WORKER_WORDS) {
    for (let i = 0; i < WORKLOAD_PEERS; i++) {
      const at = base + COUNTER_WORDS + i * PEER_WORDS;
      const state = Atomics.load(states, (at + STATE) * 2) - 1;
      if (state < 0) continue;
      const start = (at + NAME) * 8;
      // Decoders refuse shared memory.
      const name = decoder.decode(new Uint8Array(buffer, start, words[at + NAME_LENGTH]!).slice());
      const key = `${state} ${name}`;
      const known = peers.get(key);
      const peer = known ?? { side: state & 1, protocol: state >> 1, name, ...noTraffic };
      if (known === undefined) peers.set(key, peer);
      peer.connections += words[at + PeerCounter.CONNECTIONS]!;
      peer.requests += words[at + PeerCounter.REQUESTS]!;
      peer.failures += words[at + PeerCounter.FAILURES]!;
      peer.denied += words[at + PeerCounter.DENIED]!;
    }
  }
  return [...peers.values()];
}

const noTraffic = { connections: 0, requests: 0, failures: 0, denied: 0 };
