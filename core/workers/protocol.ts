// Messages between the control thread and a packet worker, and what a worker is started with.
// Control to worker: a message on the port, then a write to the worker's eventfd to wake it.

import type { RingMemory } from '../ffi/io-uring.ts';
import type { MappedMemory } from '../ffi/memory.ts';
import type { CompressorLink } from './compressor-pool.ts';
import type { Snapshot } from './snapshot.ts';
import type { SnapshotDelta } from './snapshot-delta.ts';

/** What a packet worker needs, whatever kernel it runs on. */
export interface PacketWorkerStart {
  /** Index of the worker, 0-based; stable across restarts. */
  index: number;
  /** Descriptor that wakes the worker. */
  wakeFd: number;
  /** Connection slots of the worker. */
  connectionsMax: number;
  /** Shared areas, one per worker; see core/telemetry/. */
  metrics: SharedArrayBuffer;
  accessLog: SharedArrayBuffer;
  flightRecords: SharedArrayBuffer;
  /**
   * Descriptor of each connection slot plus one, 0 if free: lets the control thread close what a dead
   * worker left open. Two more entries take descriptors that are no connections.
   */
  descriptors: SharedArrayBuffer;
}

/** `workerData` of a packet worker's thread. */
export interface WorkerStart extends PacketWorkerStart {
  /** Mapped once per worker; a replacement thread takes it over. */
  memory: MappedMemory;
  /** For batches of system calls; null where the system has or allows none. */
  ring: RingMemory | null;
}

/** What the control thread tells a worker. */
export type ControlMessage =
  | {
      type: 'snapshot';
      /** As a whole, or what differs from the one sent before. */
      snapshot: Snapshot | SnapshotDelta;
      /** This worker's listening descriptor for each of `snapshot.listeners`. */
      listenerFds: number[];
    }
  /** Stop accepting; answer with `Connection: close`; close what is idle after `idleGraceMs`, everything after `timeoutMs`. */
  | { type: 'drain'; idleGraceMs: number; timeoutMs: number }
  | { type: 'stop' }
  /** New session ticket keys for all listeners: the first encrypts, all decrypt (80 bytes each). */
  | { type: 'ticketKeys'; keys: Uint8Array[] }
  /** The ACME challenges that are open now. */
  | { type: 'acmeChallenges'; challenges: AcmeChallengeSettings }
  /** The compressor thread is new, or (null) there is none now: what the old one had in work is lost. */
  | { type: 'compressor'; link: CompressorLink | null }
  /** What Redis says to questions of `rateLimitQuestions`. */
  | { type: 'rateLimitAnswers'; answers: LimitAnswer[] }
  /** Node proxies: what is known now of destinations. */
  | { type: 'destinationAnswers'; answers: readonly DestinationAnswer[] }
  /** Node proxies: tell which destinations are in use (`destinationsUsed`). */
  | { type: 'reportDestinations'; token: number }
  | { type: 'ping'; token: number };

/** An address that a workload connects to, and that the snapshot does not know. */
export interface DestinationQuestion {
  /** IP address. */
  host: string;
  /** Uid of the workload. */
  workload: string;
}

/**
 * What is known of an address: it is not of the mesh (`outside`), until that is taken back (`forgotten`); or nothing,
 * since the control plane is `away`, or has given no answer that could be used (`unanswered`), or since the workload has
 * as many addresses of the mesh in use as it may (`limit`; for others this is no answer). What is of the mesh comes in a
 * snapshot.
 */
export type DestinationAnswer =
  | { host: string; verdict: 'outside' | 'forgotten' | 'away' | 'unanswered' }
  | { host: string; verdict: 'limit' /** Uid of the workload. */; workload: string };

/** Destinations that are in use. */
export interface UsedDestinations {
  /** IP addresses. */
  hosts: string[];
  /** There are more of them: any may be in use. */
  all: boolean;
}

/** A request that global rate limits count. */
export interface LimitQuestion {
  /** Number of the question, for its answer. */
  ask: number;
  /** Names of the limits, and the key of the request for each. */
  limits: { name: string; key: string }[];
}

/** What Redis says to a LimitQuestion. */
export interface LimitAnswer {
  ask: number;
  /** For each of the limits: 1 (allowed) or 0, requests left, and seconds until there are more; null: no answer. */
  results: number[] | null;
}

/** Answers that an ACME server is waiting for. */
export interface AcmeChallengeSettings {
  http: { token: string; keyAuthorization: string }[];
  tls: { hostname: string; chainPem: string; keyPem: string }[];
}

/** What became of a worker's connections at a reload. */
export interface ReloadReport {
  /** Downstream connections that go on as they were. */
  kept: number;
  /** Downstream connections of removed listeners: they end with their current exchange. */
  drained: number;
  /** Idle downstream connections of removed listeners, closed at once. */
  closed: number;
  /** Idle upstream connections closed because their endpoint is gone. */
  upstreamClosed: number;
  /** How long the worker was busy with the swap, in milliseconds. */
  pauseMs: number;
}

/** What a worker has seen of an endpoint. */
export interface EndpointReport {
  /** `ip:port`. */
  address: string;
  /** Backend of the request that showed it. */
  backend: string;
  /** Why connecting failed, as a `Detail` of exchange/reasons.ts; 0: it works again. */
  detail: number;
  /** Error number of the system, positive; 0: none. */
  errno: number;
}

/** What a worker tells the control thread. */
export type WorkerMessage =
  | { type: 'ready' }
  | { type: 'applied'; epoch: number; report: ReloadReport }
  | { type: 'drained'; remaining: number }
  | { type: 'pong'; token: number }
  | { type: 'endpoint'; report: EndpointReport }
  /** Requests that global rate limits are to be asked about. */
  | { type: 'rateLimitQuestions'; questions: LimitQuestion[] }
  /** Somebody connects to what is not known; not asked again as long as connections wait for the answer. */
  | { type: 'destinationQuestions'; questions: DestinationQuestion[] }
  /** The answer to `reportDestinations`: what has been used since the last one. */
  | { type: 'destinationsUsed'; token: number; used: UsedDestinations }
  | { type: 'log'; level: 'debug' | 'info' | 'warn' | 'error'; message: string };
