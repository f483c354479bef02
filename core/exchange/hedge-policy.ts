// The hedging of a rule, prepared for the packet path. Made once per snapshot and policy.
// Hot module: no allocation per request.

import type { HedgeSettings } from '../lb/attempt-settings.ts';
import { LatencyQuantile } from '../lb/latency-quantile.ts';

/** Most rules whose latency a worker knows; with more, all are learned anew. */
const KNOWN_MAX = 8192;

/** What a worker has learned of the latency of rules, across snapshots: by `HedgeSettings.key` and quantile. */
export class HedgeLatencies {
  private readonly known = new Map<string, LatencyQuantile>();

  /** The latency of a rule, which may be new. */
  of(settings: HedgeSettings): LatencyQuantile {
    const key = `${settings.key} ${settings.quantile}`;
    let latency = this.known.get(key);
    if (latency === undefined) {
      if (this.known.size >= KNOWN_MAX) this.known.clear();
      latency = new LatencyQuantile(settings.quantile);
      this.known.set(key, latency);
    }
    return latency;
  }
}

export class HedgePolicy {
  readonly settings: HedgeSettings;
  /** Of a rule with `quantile`: its latency, from its first request on. */
  latency: LatencyQuantile | null = null;

  constructor(settings: HedgeSettings) {
    this.settings = settings;
  }

  /** Milliseconds after which a second attempt is due, from 0 on; -1: not known yet. */
  delayMs(latencies: HedgeLatencies, nowMs: number): number {
    const { settings } = this;
    if (settings.quantile === 0) return settings.delayMs;
    if (this.latency === null) this.latency = latencies.of(settings);
    const us = this.latency.valueUs(nowMs);
    return us === 0 ? -1 : Math.max(us / 1000, settings.delayMs);
  }
}
