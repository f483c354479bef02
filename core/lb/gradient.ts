// The gradient controller of adaptive concurrency: how many requests a backend may have in progress, judged by how much
// slower it has become. One per backend and node; runs on the control thread.
//
//   measuring --enough samples at the least concurrency--> steady --interval (with jitter), or at the minimum for long--> measuring
//
// steady, after every sample interval:
//   gradient = (minRTT + buffer) / sampleRTT, between 0.5 and 2
//   limit    = gradient * limit + sqrt(gradient * limit)      (the root is the headroom for trying more)
// Source: Envoy's adaptive concurrency filter; Netflix concurrency-limits (Gradient).

import { LATENCY_BUCKETS, latencyPercentile } from './latency-samples.ts';

/** Settings of `adaptiveConcurrency`. */
export interface AdaptiveConcurrencySettings {
  sampleIntervalMs: number;
  /** Percentile of latencies that both RTTs are. */
  percentile: number;
  limitMin: number;
  limitMax: number;
  /** Time between two measurements of the minRTT, and percent by which it is longer at random. */
  minRttIntervalMs: number;
  minRttJitterPercent: number;
  /** Samples of one measurement. */
  minRttRequests: number;
  /** Percent of the minRTT that the sampleRTT may be above it without a change of the limit. */
  minRttBufferPercent: number;
}

const GRADIENT_MIN = 0.5;
const GRADIENT_MAX = 2;

/** Sample intervals at the least limit after which the minRTT is measured anew: it may just have grown. */
const MINIMUM_INTERVALS_MAX = 5;

/** Fewer samples say nothing; an interval with fewer is put together with the next one. */
const SAMPLES_MIN = 5;

export class GradientController {
  /** Requests that the backend may have in progress. */
  limit: number;
  measuring = true;
  /** 0: not known yet. */
  minRttUs = 0;
  /** Of the last interval. */
  sampleRttUs = 0;
  private readonly settings: AdaptiveConcurrencySettings;
  private readonly random: () => number;
  private readonly counts = new Float64Array(LATENCY_BUCKETS);
  private samples = 0;
  /** Limit before the measurement, to go on from. */
  private limitBefore: number;
  private measureAtMs = 0;
  private atMinimum = 0;

  /** `random` gives numbers from 0 to 1, for the jitter. */
  constructor(settings: AdaptiveConcurrencySettings, random: () => number = Math.random) {
    this.settings = settings;
    this.random = random;
    this.limit = settings.limitMin;
    this.limitBefore = settings.limitMin;
  }

  /** Where `takeLatencies` adds what has been counted since the last `tick`. */
  get buckets(): Float64Array {
    return this.counts;
  }

  /** One sample interval is over, in which `added` samples came into `buckets`. Sets `limit` and `measuring`. */
  tick(added: number, nowMs: number): void {
    const { settings } = this;
    this.samples += added;
    if (this.measuring) {
      if (this.samples < settings.minRttRequests) return;
      this.minRttUs = latencyPercentile(this.counts, settings.percentile);
      this.clear();
      this.measuring = false;
      this.limit = this.limitBefore;
      this.atMinimum = 0;
      this.measureAtMs = nowMs + settings.minRttIntervalMs * (1 + (settings.minRttJitterPercent / 100) * this.random());
      return;
    }
    if (this.samples >= SAMPLES_MIN) {
      this.sampleRttUs = latencyPercentile(this.counts, settings.percentile);
      this.clear();
      this.limit = this.next();
      this.atMinimum = this.limit === settings.limitMin ? this.atMinimum + 1 : 0;
    }
    if (nowMs >= this.measureAtMs || this.atMinimum >= MINIMUM_INTERVALS_MAX) this.measure();
  }

  /** Drops what has been sampled: requests that began before the limit changed say nothing of it. */
  clear(): void {
    this.counts.fill(0);
    this.samples = 0;
  }

  private next(): number {
    const { minRttBufferPercent, limitMin, limitMax } = this.settings;
    const allowedUs = this.minRttUs * (1 + minRttBufferPercent / 100);
    const gradient = Math.min(Math.max(allowedUs / this.sampleRttUs, GRADIENT_MIN), GRADIENT_MAX);
    const limit = gradient * this.limit;
    return Math.min(Math.max(Math.floor(limit + Math.sqrt(limit)), limitMin), limitMax);
  }

  private measure(): void {
    this.measuring = true;
    this.limitBefore = this.limit;
    this.limit = this.settings.limitMin;
    this.clear();
  }
}
