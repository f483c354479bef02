// Ring hash (Karger 1997; ketama), sized as Envoy documents: every endpoint has points on a ring of
// 2^32, as many as its weight asks for, and a key goes to the next point. When one of n endpoints goes,
// only its keys move, to its neighbours.
//
// How many points a weight has is worked out from all configured endpoints, whatever their health: an endpoint
// that is worth less for a while has the first of its points only, and nobody else's change.
// Immutable once made. Hot module: no allocation in `pick`.

import { hashWord, mix } from './hash.ts';
import type { Members, Picker } from './picker.ts';

/** Most points that a ring is made for, so that no worker is held up by one; each endpoint has at least one. */
export const RING_POINTS_MAX = 2 ** 18;

/**
 * Points for each unit of weight on a ring of about `sizeMin` to `sizeMax` points, for all `weights` (above 0) that are
 * configured: so many that the lightest endpoint has a whole number of them.
 */
export function pointsPerWeight(weights: ArrayLike<number>, sizeMin: number, sizeMax: number): number {
  let sum = 0;
  let least = Number.POSITIVE_INFINITY;
  for (let i = 0; i < weights.length; i++) {
    sum += weights[i];
    least = Math.min(least, weights[i]);
  }
  if (sum === 0) return 0;
  const share = least / sum;
  return Math.min(Math.ceil(share * sizeMin) / share, sizeMax, RING_POINTS_MAX) / sum;
}

export class RingHash implements Picker {
  /** Points in order, and whose they are. */
  private readonly points: Uint32Array;
  private readonly owners: Uint32Array;

  /** A ring with so many points for each unit of weight of the members. */
  constructor(members: Members, perWeight: number) {
    const { count, weights, hashes } = members;
    const counts = new Int32Array(count);
    let size = 0;
    for (let i = 0; i < count; i++) {
      // Parts of a point are rounded by the endpoint's own hash: right on average, and the same whoever else is there.
      const exact = perWeight * weights[i] * (1 + ROUNDING);
      counts[i] = Math.max(1, Math.floor(exact + (mix(hashes[i]) >>> 0) / WORDS));
      size += counts[i];
    }
    const points = new Uint32Array(size);
    const owners = new Uint32Array(size);
    let made = 0;
    for (let i = 0; i < count; i++) {
      for (let n = 0; n < counts[i]; n++, made++) {
        points[made] = mix(hashWord(hashes[i], n));
        owners[made] = i;
      }
    }
    sortPoints(points, owners);
    this.points = points;
    this.owners = owners;
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

const WORDS = 2 ** 32;
/** More than what divisions may have lost of a whole number of points. */
const ROUNDING = 1e-9;

const DIGIT_BITS = 8;
const DIGITS = 2 ** DIGIT_BITS;

/** Sorts points, and their owners with them, digit by digit: in linear time; equal points stay in order. */
function sortPoints(points: Uint32Array, owners: Uint32Array): void {
  const otherPoints = new Uint32Array(points.length);
  const otherOwners = new Uint32Array(points.length);
  for (let shift = 0; shift < 32; shift += 2 * DIGIT_BITS) {
    sortByDigit(points, owners, otherPoints, otherOwners, shift);
    sortByDigit(otherPoints, otherOwners, points, owners, shift + DIGIT_BITS);
  }
}

function sortByDigit(
  points: Uint32Array,
  owners: Uint32Array,
  toPoints: Uint32Array,
  toOwners: Uint32Array,
  shift: number,
): void {
  const places = new Uint32Array(DIGITS + 1);
  for (const point of points) places[((point >>> shift) & (DIGITS - 1)) + 1]++;
  for (let digit = 1; digit < DIGITS; digit++) places[digit] += places[digit - 1];
  for (let i = 0; i < points.length; i++) {
    const place = places[(points[i] >>> shift) & (DIGITS - 1)]++;
    toPoints[place] = points[i];
    toOwners[place] = owners[i];
  }
}
