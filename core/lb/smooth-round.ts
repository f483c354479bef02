// The order of one full round of a weighted round robin, worked out when weights change.
// Pure.

/**
 * Longest round; larger weight sums are scaled down to it. A share is then off by at most half a place
 * of the round per endpoint. An endpoint always has one place; if it is worth less than one, it uses its
 * turns only sometimes.
 */
const ROUND_LENGTH_MAX = 16384;

/** Places of the round for each endpoint: by the greatest common divisor, or scaled to fit, and then no whole numbers. */
export function placesOf(weights: ArrayLike<number>): number[] {
  let divisor = 0;
  let sum = 0;
  for (let i = 0; i < weights.length; i++) {
    divisor = gcd(divisor, weights[i]);
    sum += weights[i];
  }
  const bound = Math.max(ROUND_LENGTH_MAX, weights.length);
  const factor = sum <= bound * divisor ? 1 / divisor : bound / sum;
  return Array.from(weights, (weight) => weight * factor);
}

function gcd(a: number, b: number): number {
  return b === 0 ? a : gcd(b, a % b);
}

/** More than the endpoints of a node; and what is left of 2^53 for the places. */
const OWNERS = 2 ** 20;
const FRACTION = 2 ** 32;

/** Multiples of it, modulo 1, are spread evenly however many there are. */
const GOLDEN_RATIO = 0.6180339887498949;

/**
 * Spreads endpoint i over `weights[i]` places of the round: its n-th place is wanted at
 * (n + phase) / weight of the way, and the places are taken in that order. Each endpoint has a phase
 * of its own (0 to 1): with one for all, endpoints of equal weight would come in a bunch.
 */
export function smoothRound(weights: readonly number[]): Int32Array {
  let count = 0;
  for (const weight of weights) count += weight;
  // Sorted as one number: where the place is wanted above, whose it is below.
  const places = new Float64Array(count);
  let place = 0;
  weights.forEach((weight, endpoint) => {
    const phase = (0.5 + endpoint * GOLDEN_RATIO) % 1;
    for (let n = 0; n < weight; n++)
      places[place++] = Math.floor(((n + phase) / weight) * FRACTION) * OWNERS + endpoint;
  });
  return Int32Array.from(places.sort(), (value) => value % OWNERS);
}
