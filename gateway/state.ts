// What the admin port shows of the running gateway, kept by the control thread.
// Nothing here decides anything; app.ts writes it, admin/server.ts reads it.

import type { Config } from '../config/config.ts';
import { version } from '../core/process/version.ts';
import { createByteRing } from '../core/telemetry/byte-ring.ts';
import { createFlightBuffer } from '../core/telemetry/flight-layout.ts';
import { createMetricsBuffer } from '../core/telemetry/metrics.ts';
import type { RecorderSettings } from '../core/telemetry/request-recorder.ts';
import type { ReloadReport, WorkerStart } from '../core/workers/protocol.ts';
import type { Snapshot } from '../core/workers/snapshot.ts';
import type { WorkloadSlots } from '../core/workers/workload-slots.ts';
import type {
  AdaptiveConcurrencyState,
  AdminState,
  BackendState,
  BreakerState,
  CertificateState,
  MeshState,
  OverloadState,
  RateLimitingState,
  ReloadRecord,
  WorkerState,
  WorkloadCountersState,
} from './admin/state.ts';
import { DEMO_NAME } from './demo.ts';

/** Loads that `/reloads` remembers. */
const RELOADS_KEPT = 32;

/** Shared areas of one worker; they outlive its threads. */
export type WorkerAreas = Pick<WorkerStart, 'metrics' | 'accessLog' | 'flightRecords'>;

/** The gateway's state for the admin port. */
export class GatewayState implements AdminState {
  readonly version = version();
  readonly startedAtMs = performance.timeOrigin;
  readonly reloads: ReloadRecord[] = [];
  reloadsApplied = 0;
  reloadsRefused = 0;
  epoch = 0;
  loadedAtMs = 0;
  draining = false;
  config: Config;
  recorder: RecorderSettings | null = null;
  /** Set by a node proxy. */
  mesh: MeshState | undefined;
  /** Who has which counters, on a node proxy. */
  workloadSlots: WorkloadSlots | undefined;
  /** Set once there are rate limits. */
  rateLimiting: RateLimitingState | null = null;
  /** Set once somebody watches. */
  overload: OverloadState | null = null;
  /** Set once somebody controls it. */
  adaptiveStates: () => AdaptiveConcurrencyState[] = () => [];
  /** By worker index. */
  readonly areas: WorkerAreas[];
  readonly metrics: SharedArrayBuffer[];
  readonly flightRecords: SharedArrayBuffer[];
  /** Set once there is a supervisor. */
  workerStates: () => WorkerState[] = () => [];
  /** Set once there are certificates. */
  certificateStates: () => CertificateState[] = () => [];
  /** Set once there is health. */
  backendStates: () => BackendState[] = () => [];

  /** Set once there are breakers. */
  breakerStates: () => BreakerState[] = () => [];

  /** `config` is what is about to start. */
  constructor(workerCount: number, config: Config) {
    this.config = config;
    this.areas = Array.from({ length: workerCount }, () => ({
      metrics: createMetricsBuffer(),
      accessLog: createByteRing(),
      flightRecords: createFlightBuffer(),
    }));
    this.metrics = this.areas.map(({ metrics }) => metrics);
    this.flightRecords = this.areas.map(({ flightRecords }) => flightRecords);
  }

  get configFile(): string | undefined {
    return this.config.file.endsWith(DEMO_NAME) ? undefined : this.config.file;
  }

  get workers(): WorkerState[] {
    return this.workerStates();
  }

  get backends(): BackendState[] {
    return this.backendStates();
  }

  get circuitBreakers(): BreakerState[] {
    return this.breakerStates();
  }

  get workloads(): WorkloadCountersState | undefined {
    const slots = this.workloadSlots;
    if (slots === undefined || this.config.mesh === undefined) return undefined;
    return { buffer: slots.buffer, workloads: slots.workloads };
  }

  get certificates(): CertificateState[] {
    return this.certificateStates();
  }

  get adaptiveConcurrency(): AdaptiveConcurrencyState[] {
    return this.adaptiveStates();
  }

  /** All workers have been given this generation. */
  applied(config: Config, snapshot: Snapshot): void {
    this.config = config;
    this.epoch = snapshot.epoch;
    this.recorder = snapshot.recorder;
    this.loadedAtMs = Date.now();
  }

  /** A load took effect; to be called after `applied`. */
  recordApplied(report: ReloadReport, durationMs: number): void {
    this.reloadsApplied++;
    this.record({ result: 'applied', durationMs, report, errors: [] });
  }

  /** A load was refused and changed nothing. */
  recordRefused(errors: readonly string[], durationMs: number): void {
    this.reloadsRefused++;
    this.record({ result: 'refused', durationMs, errors });
  }

  private record(load: Omit<ReloadRecord, 'atMs' | 'epoch'>): void {
    this.reloads.push({ atMs: Date.now(), epoch: this.epoch, ...load });
    if (this.reloads.length > RELOADS_KEPT) this.reloads.shift();
  }
}
