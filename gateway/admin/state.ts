// What the admin port shows, as the rest of the gateway provides it.
//
// The control thread implements AdminState with getters over its own state; the admin server reads
// it anew for every request and keeps nothing. Nothing here can change the gateway.

import type { RecorderSettings } from '../../core/telemetry/request-recorder.ts';
import type { ReloadReport } from '../../core/workers/protocol.ts';
import type { WorkerState } from '../../core/workers/worker-slot.ts';

export type { WorkerState };

/** One attempt to load the configuration, the first load included. */
export interface ReloadRecord {
  /** When it ended, milliseconds since 1970. */
  atMs: number;
  result: 'applied' | 'refused';
  /** Epoch that runs since; for a refused load the one that went on running. */
  epoch: number;
  /** From signal to the last worker's answer, in milliseconds. */
  durationMs: number;
  /** What became of connections, over all workers; undefined for a refused load. */
  report?: ReloadReport | undefined;
  /** Why it was refused, one sentence each; empty when applied. */
  errors: readonly string[];
}

/** A certificate that listeners or backends are shown. */
export interface CertificateState {
  /** Its first DNS name, else its subject. */
  name: string;
  /** Absolute path, or `acme`. */
  file: string;
  /** SHA-256, lower-case hexadecimal. */
  fingerprint: string;
  /** Milliseconds since 1970. */
  notAfterMs: number;
}

/** An endpoint and what is known of its health. */
export interface EndpointState {
  /** `ip:port`. */
  address: string;
  weight: number;
  /** By active checks; null: it is not checked. */
  health: 'unknown' | 'healthy' | 'unhealthy' | null;
  /** Why the last check was not good; empty when it was. */
  healthCause: string;
  /** Gets no new requests, by the configuration. */
  draining: boolean;
  /** Gets none for a while, by outlier detection. */
  ejected: boolean;
  /** The same as the state of a circuit breaker; null: the backend has no outlier detection. */
  circuitBreaker: BreakerStateName | null;
  /** LeastRequest leaves it out for a moment, since no connection could be made (core/lb/connect-failures.ts). */
  leftOut: boolean;
  /** Share of its weight that outlier detection leaves it; below 100 during its return. */
  sharePercent: number;
  /** How often it was ejected; null: the backend has no outlier detection. */
  ejections: number | null;
  /** Why it is not back to its whole share; empty when it is. */
  ejectionCause: string;
  /** Requests in progress; counted only where something needs it. */
  activeRequests: number;
}

/** One edge of the graph: who talks to whom. */
export interface GraphEdge {
  /** Whose node has counted it. Of a connection inside the mesh there are both. */
  reporter: 'source' | 'destination';
  /** Workload; where the destination reports, identity, or `unknown`. */
  source: string;
  /** Service port, identity or kind of destination; where the destination reports, workload. */
  destination: string;
  protocol: string;
  connections: number;
  requests: number;
  failures: number;
  denied: number;
}

/** A backend of the running configuration. */
export interface BackendState {
  name: string;
  endpoints: EndpointState[];
  /** Active checks since the start, by outcome; null: it has none. */
  checks: { success: number; refusal: number; failure: number; timeout: number } | null;
  /** Ejections since the start, by EjectionCause; null: it has no outlier detection. */
  ejections: number[] | null;
}

/** What is known of rate limits. */
export interface RateLimitingState {
  readonly tables: {
    /** A counter (LimitCounter) of every limit in use. */
    counters(counter: number): { name: string; value: number }[];
  };
  /** Null where nothing is counted in Redis. */
  readonly redisState: { up: boolean; answered: number; unanswered: number; outages: number } | null;
}

/**
 * States of a circuit breaker; their indexes are the values of its metrics. A limit of a backend is open while it refuses
 * something, half open until it has stood the test of requests without refusing anything (gateway/breaker-watch.ts), and
 * closed otherwise. An endpoint is open while outlier detection has ejected it, and half open during its return.
 */
export const breakerStateNames = ['closed', 'half_open', 'open'] as const;
export type BreakerStateName = (typeof breakerStateNames)[number];

/** One limit of a circuit breaker. */
export interface BreakerLimitState {
  /** Its key in the configuration. */
  limit: string;
  priority: 'default' | 'high';
  state: BreakerStateName;
  inUse: number;
  max: number;
  /** What it has refused since the backend is known. */
  overflows: number;
}

/** Circuit breaker of a backend. */
export interface BreakerState {
  backend: string;
  /** The state of that of its limits that is furthest from closed. */
  state: BreakerStateName;
  limits: BreakerLimitState[];
}

/** Adaptive concurrency of a backend. */
export interface AdaptiveConcurrencyState {
  readonly backend: string;
  /** Requests that it may have in progress, and has. */
  readonly limit: number;
  readonly inProgress: number;
  /** Requests refused so far. */
  readonly refused: number;
  /** Its least latency is being measured. */
  readonly measuring: boolean;
  /** 0: not known yet. */
  readonly minRttMs: number;
  readonly sampleRttMs: number;
}

/** How overloaded the gateway is. */
export interface OverloadState {
  /** OverloadLevel of core/exchange/overload.ts. */
  readonly level: number;
  /** By trigger; 1 is its threshold. */
  readonly pressures: ReadonlyMap<string, number>;
  /** Requests refused because of it, of rules with priority low and of all others. */
  readonly shedLow: number;
  readonly shedOthers: number;
}

/** What a node proxy adds to the admin port. */
export interface MeshState {
  /** Why it should not be counted on yet; none: it serves. */
  unready(): string[];
  /** Workloads, certificates and what is wrong, to be shown as JSON. */
  page(): object;
}

/** Counters of the workloads of a node. */
export interface WorkloadCountersState {
  /** See core/telemetry/workload-metrics.ts. */
  buffer: SharedArrayBuffer;
  workloads: readonly { slot: number; name: string }[];
}

/** Read-only view of the running gateway. */
export interface AdminState {
  readonly version: string;
  /** When the process started, milliseconds since 1970. */
  readonly startedAtMs: number;
  /** Epoch of the configuration that runs; 0: none yet. */
  readonly epoch: number;
  /** When that configuration was loaded, milliseconds since 1970. */
  readonly loadedAtMs: number;
  /** Path of its file; undefined for the built-in demonstration. */
  readonly configFile: string | undefined;
  /** The configuration with all defaults filled in; must be representable as JSON. */
  readonly config: unknown;
  /** The gateway is shutting down. */
  readonly draining: boolean;
  readonly workers: readonly WorkerState[];
  /** Certificates in use. */
  readonly certificates: readonly CertificateState[];
  /** Backends of the configuration that runs, in its order. */
  readonly backends: readonly BackendState[];
  /** Circuit breakers of the configuration that runs. */
  readonly circuitBreakers: readonly BreakerState[];
  /** The last loads, oldest first; how many are kept is the owner's choice. */
  readonly reloads: readonly ReloadRecord[];
  /** Loads since the start, by result. */
  readonly reloadsApplied: number;
  readonly reloadsRefused: number;
  /** Shared areas by worker index, see core/telemetry/. */
  readonly metrics: readonly SharedArrayBuffer[];
  readonly flightRecords: readonly SharedArrayBuffer[];
  /** Absent: this is no node proxy. */
  readonly mesh?: MeshState | undefined;
  /** Node proxies. */
  readonly workloads?: WorkloadCountersState | undefined;
  /** What requests are recorded with; null: they are not. */
  readonly recorder: RecorderSettings | null;
  /** Null: there is no gateway to ask. */
  readonly rateLimiting: RateLimitingState | null;
  /** Null: nobody watches. */
  readonly overload: OverloadState | null;
  /** Backends that have it. */
  readonly adaptiveConcurrency: readonly AdaptiveConcurrencyState[];
}
