// What the admin port shows, as the rest of the gateway provides it.
//
// The control thread implements AdminState with getters over its own state; the admin server reads
// it anew for every request and keeps nothing. Nothing here can change the gateway.

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
  /** The last loads, oldest first; how many are kept is the owner's choice. */
  readonly reloads: readonly ReloadRecord[];
  /** Loads since the start, by result. */
  readonly reloadsApplied: number;
  readonly reloadsRefused: number;
  /** Shared areas by worker index, see core/telemetry/. */
  readonly metrics: readonly SharedArrayBuffer[];
  readonly flightRecords: readonly SharedArrayBuffer[];
}
