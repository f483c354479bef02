// Ring hash (Karger 1997; ketama), sized as Envoy documents: every endpoint has points on a ring of
// 2^32, as many as its weight asks for, and a key goes to the next point. When one of n endpoints goes,
// only its keys move, to its neighbours.
// Immutable once made. Hot module: no allocation in `pick`.

import { hashWord, mix } from './hash.ts';
import type { Members, Picker } from './picker.ts';

export class RingHash implements Picker {
  /** Points in order, and whose they are. */
  private readonly points: Uint32Array;
  private readonly owners: Int32Array;

  /** A ring of about `sizeMin` to `sizeMax` points. */
  constructor(members: Members, sizeMin: number, sizeMax: number) {
    const { count, weights, hashes } = members;
    let sum = 0;
    let least = Number.POSITIVE_INFINITY;
    for (let i = 0; i < count; i++) {
      sum += weights[i];
      least = Math.min(least, weights[i]);
    }
    // So many points that the lightest endpoint has a whole number of them.
    const share = least / sum;
    const scale = count === 0 ? 0 : Math.min(Math.ceil(share * sizeMin) / share, sizeMax);
    const size = Math.ceil(scale - 1e-9 * scale);
    const order = new Float64Array(size);
    let made = 0;
    let target = 0;
    for (let i = 0; i < count; i++) {
      target += (scale * weights[i]) / sum;
      // Sorted as one number: the point above, the owner below (2^53 leaves 21 bits for it).
      for (let n = 0; made < target - 1e-6 && made < size; n++, made++) {
        order[made] = (mix(hashWord(hashes[i], n)) >>> 0) * OWNERS + i;
      }
    }
    const sorted = order.subarray(0, made).sort();
    this.points = Uint32Array.from(sorted, (value) => Math.floor(value / OWNERS));
    this.owners = Int32Array.from(sorted, (value) => value % OWNERS);
  }

  /** Points on the ring. */
  get size(): number {
    return this.points.length;
  }

  pick(bits: number): number {
    const { points, owners } = this;
    const count = points.length;
    if (count === 0) return -1;
    const key = bits >>> 0;
    let low = 0;
    let high = count;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (points[middle] < key) low = middle + 1;
      else high = middle;
    }
    return owners[low === count ? 0 : low];
  }
}

/** More than the endpoints of a node. */
const OWNERS = 2 ** 20;
