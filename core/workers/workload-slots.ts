// Gives the workloads of a node their places among the counters (core/telemetry/workload-metrics.ts), and keeps them
// across snapshots.
//
// Owned by the control thread. The place of a workload that has left rests, with all that is in it, and is the same
// workload's again if it returns. Another one gets it only when there is no fresh one left, some time later, and not as
// long as a connection is counted in it. What comes when there is none shares the last place.

import { clearWorkload, createWorkloadMetrics, isWorkloadOpen, WORKLOAD_SLOTS } from '../telemetry/workload-metrics.ts';
import { monotonicMs } from './clock.ts';
import type { WorkloadSettings } from './mesh-settings.ts';

/** Time until a place that is not used any more is given to another workload. */
const REST_MS = 15 * 60_000;

/** The place that workloads share when there are too many. */
const SHARED = WORKLOAD_SLOTS - 1;

/** Name under which those are shown. */
const OTHERS = 'others';

/** A workload whose counters are shown. */
export interface CountedWorkload {
  slot: number;
  /** `namespace/name`. */
  name: string;
}

/** Who has which place. */
export class WorkloadSlots {
  private readonly workers: number;
  private area: SharedArrayBuffer | null = null;
  private readonly byUid = new Map<string, { slot: number; name: string }>();
  /** Those that have rested longest first. */
  private readonly resting = new Map<string, { slot: number; sinceMs: number }>();
  private fresh = 0;

  /** For so many packet workers. */
  constructor(workers: number) {
    this.workers = workers;
  }

  /** The counters; made when first asked for, which a gateway never does. */
  get buffer(): SharedArrayBuffer {
    this.area ??= createWorkloadMetrics(this.workers);
    return this.area;
  }

  /** The workloads with their places. */
  assign(workloads: readonly WorkloadSettings[], nowMs: number = monotonicMs()): WorkloadSettings[] {
    return workloads.map((workload) => {
      const { uid, name } = workload;
      const slot =
        this.byUid.get(uid)?.slot ?? this.revive(uid) ?? this.takeFresh() ?? this.takeRested(nowMs) ?? SHARED;
      this.byUid.set(uid, { slot, name });
      return { ...workload, slot };
    });
  }

  /** These workloads are now in force: the places of all others rest from now on. */
  keepOnly(workloads: readonly WorkloadSettings[], nowMs: number = monotonicMs()): void {
    const kept = new Set(workloads.map(({ uid }) => uid));
    for (const [uid, { slot }] of this.byUid) {
      if (kept.has(uid)) continue;
      this.byUid.delete(uid);
      if (slot !== SHARED) this.resting.set(uid, { slot, sinceMs: nowMs });
    }
  }

  /** The workloads that there are, and the place of those that share one. */
  get workloads(): CountedWorkload[] {
    const own = [...this.byUid.values()].filter(({ slot }) => slot !== SHARED);
    return own.length === this.byUid.size ? own : [...own, { slot: SHARED, name: OTHERS }];
  }

  private revive(uid: string): number | undefined {
    const slot = this.resting.get(uid)?.slot;
    this.resting.delete(uid);
    return slot;
  }

  private takeFresh(): number | undefined {
    return this.fresh < SHARED ? this.fresh++ : undefined;
  }

  private takeRested(nowMs: number): number | undefined {
    for (const [uid, { slot, sinceMs }] of this.resting) {
      if (nowMs - sinceMs < REST_MS) return undefined;
      if (isWorkloadOpen(this.buffer, slot)) continue;
      this.resting.delete(uid);
      clearWorkload(this.buffer, slot);
      return slot;
    }
    return undefined;
  }
}
