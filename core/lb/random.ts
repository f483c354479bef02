// Weighted random choice by the alias method (Walker 1977, Vose 1991): two table reads a pick,
// whatever the number of endpoints.
// Immutable once made. Hot module: no allocation in `pick`.

import { mix, placeOf } from './hash.ts';
import type { Picker } from './picker.ts';

const WORDS = 2 ** 32;
/** Makes a second word of random bits from the first. */
const SECOND = 0x5851f42d;

export class WeightedRandom implements Picker {
  /** A column keeps its own endpoint for coins below this. */
  private readonly keep: Float64Array;
  private readonly alias: Int32Array;

  /** A picker over endpoints with the given weights (above 0). */
  constructor(weights: ArrayLike<number>) {
    const count = weights.length;
    this.keep = new Float64Array(count).fill(WORDS);
    this.alias = new Int32Array(count);
    let sum = 0;
    for (let i = 0; i < count; i++) sum += weights[i];
    const scaled = Float64Array.from(weights, (weight) => (weight * count) / sum);
    const small: number[] = [];
    const large: number[] = [];
    for (let i = 0; i < count; i++) (scaled[i] < 1 ? small : large).push(i);
    while (small.length > 0 && large.length > 0) {
      const poor = small.pop()!;
      const rich = large[large.length - 1];
      this.keep[poor] = scaled[poor] * WORDS;
      this.alias[poor] = rich;
      scaled[rich] -= 1 - scaled[poor];
      if (scaled[rich] < 1) small.push(large.pop()!);
    }
  }

  pick(bits: number): number {
    const { keep } = this;
    if (keep.length === 0) return -1;
    const column = placeOf(bits, keep.length);
    return mix(bits ^ SECOND) >>> 0 < keep[column] ? column : this.alias[column];
  }
}
