// A quantile of recent latencies, learned as they come.
//
// Counts per bucket, eight buckets to a factor of two, so that a quantile is at most an eighth too high. Two
// sets of counts: that of the present period and that of the one before, which together are looked at.
// Owned by one worker. Hot module: no allocation after construction.

/** Time after which counts begin to be forgotten. */
export const LATENCY_PERIOD_MS = 30_000;

/** With fewer samples than this, nothing is known. */
export const LATENCY_SAMPLES_MIN = 100;

/** The quantile is worked out again after so many further samples. */
const SAMPLES_PER_LOOK = 64;

/** Longest latency that is told apart, about 18 minutes, in microseconds. */
const LATENCY_US_MAX = 2 ** 30 - 1;

const BUCKETS = 232;

/** Learns one quantile. */
export class LatencyQuantile {
  private readonly quantile: number;
  private counts = new Uint32Array(BUCKETS);
  private countsBefore = new Uint32Array(BUCKETS);
  private total = 0;
  private totalBefore = 0;
  private periodEndMs = 0;
  private samplesToLook = 0;
  private knownUs = 0;

  /** `quantile` lies between 0 and 1. */
  constructor(quantile: number) {
    this.quantile = quantile;
  }

  /** Notes a latency in milliseconds; `nowMs` is the monotonic time. */
  add(latencyMs: number, nowMs: number): void {
    if (nowMs >= this.periodEndMs) this.moveOn(nowMs);
    const us = Math.min(Math.max(Math.round(latencyMs * 1000), 0), LATENCY_US_MAX) | 0;
    this.counts[bucketOf(us)]++;
    this.total++;
    this.samplesToLook--;
  }

  /** The quantile of the last half to whole minute, in microseconds (a whole number); 0: not known yet. */
  valueUs(nowMs: number): number {
    if (nowMs >= this.periodEndMs) this.moveOn(nowMs);
    if (this.samplesToLook <= 0 || this.knownUs === 0) {
      this.samplesToLook = SAMPLES_PER_LOOK;
      this.knownUs = this.look();
    }
    return this.knownUs;
  }

  private look(): number {
    const { counts, countsBefore } = this;
    const total = this.total + this.totalBefore;
    if (total < LATENCY_SAMPLES_MIN) return 0;
    let left = Math.ceil(total * this.quantile);
    for (let bucket = 0; bucket < BUCKETS; bucket++) {
      left -= counts[bucket] + countsBefore[bucket];
      if (left <= 0) return bucketEndUs(bucket);
    }
    return LATENCY_US_MAX;
  }

  private moveOn(nowMs: number): void {
    const { counts } = this;
    // What is older than two periods is not even the one before.
    const isNext = nowMs < this.periodEndMs + LATENCY_PERIOD_MS;
    this.counts = this.countsBefore;
    this.countsBefore = counts;
    this.counts.fill(0);
    if (!isNext) this.countsBefore.fill(0);
    this.totalBefore = isNext ? this.total : 0;
    this.total = 0;
    this.samplesToLook = 0;
    this.periodEndMs = nowMs + LATENCY_PERIOD_MS;
  }
}

function bucketOf(us: number): number {
  if (us < 8) return us;
  const shift = 28 - Math.clz32(us);
  return shift * 8 + (us >> shift);
}

/** First latency above a bucket, in microseconds. */
function bucketEndUs(bucket: number): number {
  if (bucket < 8) return bucket + 1;
  const shift = (bucket >> 3) - 1;
  return ((bucket & 7) + 9) << shift;
}
