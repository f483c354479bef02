// Adaptive concurrency seen from the control thread: a gradient controller for each backend that asks for it, fed by the
// workers' samples; the limits go into the node state, where workers keep to them.
//
// Owned by the control thread. A controller lives as long as its backend has the same settings, across reloads.

import { GradientController } from '../core/lb/gradient.ts';
import { takeLatencies } from '../core/lb/latency-samples.ts';
import { BackendWord, type NodeState } from '../core/lb/node-state.ts';
import { monotonicMs } from '../core/workers/clock.ts';
import type { BackendSettings } from '../core/workers/snapshot.ts';
import type { AdaptiveConcurrencyState } from './admin/state.ts';

interface Watched {
  slot: number;
  settings: string;
  controller: GradientController;
  intervalMs: number;
  nextMs: number;
}

/** All controllers of a gateway. */
export class AdaptiveConcurrency {
  private readonly node: NodeState;
  private readonly nowMs: () => number;
  private samples: Int32Array = new Int32Array(0);
  private watched = new Map<string, Watched>();
  private timer: NodeJS.Timeout | undefined;

  constructor(node: NodeState, nowMs: () => number = () => Math.floor(monotonicMs())) {
    this.node = node;
    this.nowMs = nowMs;
  }

  /** These backends are in force; `samples` are those of the node, null where no backend asks for it. */
  use(backends: readonly BackendSettings[], samples: SharedArrayBuffer | null): void {
    const before = this.watched;
    this.watched = new Map();
    clearInterval(this.timer);
    this.timer = undefined;
    if (samples !== null && this.samples.buffer !== samples) this.samples = new Int32Array(samples);
    let shortestMs = Number.POSITIVE_INFINITY;
    for (const { name, slot, policy } of backends) {
      if (policy.adaptiveConcurrency === null) continue;
      const settings = JSON.stringify(policy.adaptiveConcurrency);
      const { sampleIntervalMs } = policy.adaptiveConcurrency;
      shortestMs = Math.min(shortestMs, sampleIntervalMs);
      const known = before.get(name);
      if (known !== undefined && known.settings === settings && known.slot === slot) {
        this.watched.set(name, known);
        continue;
      }
      const controller = new GradientController(policy.adaptiveConcurrency);
      const watched = { slot, settings, controller, intervalMs: sampleIntervalMs, nextMs: 0 };
      this.watched.set(name, watched);
      // What an earlier backend of this slot has left does not count.
      takeLatencies(this.samples, slot, controller.buckets);
      controller.clear();
      this.publish(watched, true);
    }
    for (const [name, { slot }] of before) if (!this.watched.has(name)) this.write(slot, 0, 0);
    if (this.watched.size > 0) this.timer = setInterval(() => this.tick(), shortestMs).unref();
  }

  close(): void {
    clearInterval(this.timer);
  }

  /** All controllers, in the order of the configuration. */
  states(): AdaptiveConcurrencyState[] {
    return [...this.watched].map(([backend, { slot, controller }]) => {
      const at = this.node.backendAt(slot);
      return {
        backend,
        limit: controller.limit,
        inProgress: Math.max(0, Atomics.load(this.node.words, at + BackendWord.ADAPTIVE_ACTIVE)),
        refused: Atomics.load(this.node.words, at + BackendWord.ADAPTIVE_REFUSED) >>> 0,
        measuring: controller.measuring,
        minRttMs: controller.minRttUs / 1000,
        sampleRttMs: controller.sampleRttUs / 1000,
      };
    });
  }

  private tick(): void {
    const nowMs = this.nowMs();
    for (const watched of this.watched.values()) {
      if (nowMs < watched.nextMs) continue;
      // A timer may come a little early, and must not wait for a whole interval then.
      watched.nextMs = nowMs + watched.intervalMs * 0.75;
      const { controller, slot } = watched;
      const wasMeasuring = controller.measuring;
      controller.tick(takeLatencies(this.samples, slot, controller.buckets), nowMs);
      this.publish(watched, controller.measuring && !wasMeasuring);
    }
  }

  private publish({ slot, controller }: Watched, measurementBegins: boolean): void {
    const at = this.node.backendAt(slot) + BackendWord.ADAPTIVE_MEASURING_MS;
    const since = measurementBegins ? this.nowMs() | 0 || 1 : Atomics.load(this.node.words, at);
    this.write(slot, controller.limit, controller.measuring ? since : 0);
  }

  private write(slot: number, limit: number, measuringMs: number): void {
    const { node } = this;
    const at = node.backendAt(slot);
    Atomics.store(node.words, at + BackendWord.ADAPTIVE_MEASURING_MS, measuringMs);
    Atomics.store(node.words, at + BackendWord.ADAPTIVE_LIMIT, limit);
  }
}
