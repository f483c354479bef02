// Latencies of each backend since they were last taken, counted in buckets that all workers share: what the
// gradient controller of adaptive concurrency goes by (core/lb/gradient.ts).
//
// 16 buckets per power of two from 16 us to 16 s, so that a latency is known to 6 percent and, by
// interpolation, better. One block of buckets per backend slot; blocks of backends without adaptive concurrency are
// never touched. Hot module: no allocation.

import { NODE_BACKENDS_MAX } from './node-state.ts';

const OCTAVES = 20;
const PER_OCTAVE_BITS = 4;
const FIRST_OCTAVE = 4;

/** Buckets of one backend. */
export const LATENCY_BUCKETS = OCTAVES << PER_OCTAVE_BITS;

/** Makes the buckets of a node's backends. */
export function createLatencySamples(backendsMax: number = NODE_BACKENDS_MAX): SharedArrayBuffer {
  return new SharedArrayBuffer(backendsMax * LATENCY_BUCKETS * 4);
}

/** Counts a latency in whole microseconds for the backend in `slot`. */
export function addLatency(samples: Int32Array, slot: number, us: number): void {
  Atomics.add(samples, slot * LATENCY_BUCKETS + bucketOf(us), 1);
}

/** Moves the counts of a backend into `counts` (added), and returns how many there were. */
export function takeLatencies(samples: Int32Array, slot: number, counts: Float64Array): number {
  let total = 0;
  const first = slot * LATENCY_BUCKETS;
  for (let bucket = 0; bucket < LATENCY_BUCKETS; bucket++) {
    if (samples[first + bucket] === 0) continue;
    const count = Atomics.exchange(samples, first + bucket, 0);
    counts[bucket] += count;
    total += count;
  }
  return total;
}

/** The latency in microseconds below which `percent` of `counts` lie; 0 without any. */
export function latencyPercentile(counts: Float64Array, percent: number): number {
  let total = 0;
  for (let bucket = 0; bucket < LATENCY_BUCKETS; bucket++) total += counts[bucket]!;
  if (total === 0) return 0;
  const rank = (total * percent) / 100;
  let before = 0;
  for (let bucket = 0; bucket < LATENCY_BUCKETS; bucket++) {
    const count = counts[bucket]!;
    if (count > 0 && before + count >= rank) {
      const low = lowerBoundUs(bucket);
      return low + ((lowerBoundUs(bucket + 1) - low) * (rank - before)) / count;
    }
    before += count;
  }
  return lowerBoundUs(LATENCY_BUCKETS);
}

function bucketOf(us: number): number {
  if (us < 1 << FIRST_OCTAVE) return 0;
  const octave = 31 - Math.clz32(us);
  if (octave >= FIRST_OCTAVE + OCTAVES) return LATENCY_BUCKETS - 1;
  const part = (us >> (octave - PER_OCTAVE_BITS)) & ((1 << PER_OCTAVE_BITS) - 1);
  return ((octave - FIRST_OCTAVE) << PER_OCTAVE_BITS) + part;
}

function lowerBoundUs(bucket: number): number {
  const part = bucket & ((1 << PER_OCTAVE_BITS) - 1);
  return ((1 << PER_OCTAVE_BITS) + part) * 2 ** ((bucket >> PER_OCTAVE_BITS) + FIRST_OCTAVE - PER_OCTAVE_BITS);
}
