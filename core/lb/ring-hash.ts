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

/** How many points an endpoint has: parts of a point are rounded by its own hash, right on average and whoever else is there. */
function pointCount(hash: number, exact: number): number {
  return Math.max(1, Math.floor(exact * (1 + ROUNDING) + (mix(hash) >>> 0) / WORDS));
}

/** All points that endpoints can have, in order: rings of those that are usable at the moment are made of them. */
export class RingPoints {
  /** Points in order, whose they are, and which of the owner's points each is. */
  readonly points: Uint32Array;
  readonly owners: Uint32Array;
  readonly ordinals: Uint32Array;

  /** The points of endpoints with these hashes, so many for each unit of their whole weights. */
  constructor(hashes: ArrayLike<number>, weights: ArrayLike<number>, perWeight: number) {
    const count = hashes.length;
    const starts = new Uint32Array(count + 1);
    for (let i = 0; i < count; i++) starts[i + 1] = starts[i] + pointCount(hashes[i], perWeight * weights[i]);
    const size = starts[count];
    const points = new Uint32Array(size);
    const numbers = new Uint32Array(size);
    const owners = new Uint32Array(size);
    let made = 0;
    for (let i = 0; i < count; i++) {
      const hash = hashes[i];
      const end = starts[i + 1];
      for (let n = 0; made < end; n++, made++) {
        points[made] = mix(hashWord(hash, n));
        numbers[made] = made;
        owners[made] = i;
      }
    }
    sortPoints(points, numbers);
    const ordinals = new Uint32Array(size);
    for (let place = 0; place < size; place++) {
      const number = numbers[place];
      const owner = owners[number];
      ordinals[place] = number - starts[owner];
      numbers[place] = owner;
    }
    this.points = points;
    this.owners = numbers;
    this.ordinals = ordinals;
  }
}

export class RingHash implements Picker {
  /** Points in order, and whose they are. */
  private readonly points: Uint32Array;
  private readonly owners: Uint32Array;

  /**
   * A ring with so many points for each unit of weight of the members. `all` are points of more endpoints than the
   * members, with no less weight, and `memberOf` says which member each of those is (-1: none): a pass through points
   * that are in order takes a small part of the time of making and sorting them.
   */
  constructor(members: Members, perWeight: number, all: RingPoints | null = null, memberOf: Int32Array | null = null) {
    const { count, weights, hashes } = members;
    if (all === null || memberOf === null) {
      const own = new RingPoints(hashes, weights, perWeight);
      this.points = own.points;
      this.owners = own.owners;
      return;
    }
    const counts = new Uint32Array(memberOf.length);
    let size = 0;
    for (let i = 0; i < memberOf.length; i++) {
      const member = memberOf[i];
      if (member < 0) continue;
      counts[i] = pointCount(hashes[member], perWeight * weights[member]);
      size += counts[i];
    }
    const points = new Uint32Array(count === 0 ? 0 : size);
    const owners = new Uint32Array(points.length);
    const { points: allPoints, owners: allOwners, ordinals } = all;
    let made = 0;
    for (let place = 0; place < allPoints.length && made < points.length; place++) {
      const owner = allOwners[place];
      if (ordinals[place] >= counts[owner]) continue;
      points[made] = allPoints[place];
      owners[made++] = memberOf[owner];
    }
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
