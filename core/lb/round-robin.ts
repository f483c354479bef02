// Weighted round robin: every endpoint gets its share, spread as evenly as its weight allows.
//
// The order of one full round is worked out once, when a snapshot arrives, so that a pick is one
// array read whatever the number of endpoints. The spreading is "smooth": weights 5, 1, 1 give
// a b a a a c a and not a a a a a b c. Each worker starts at another place of the round, so that
// workers do not all begin with the first endpoint.

import type { Picker } from './picker.ts';

/**
 * Longest round; larger weight sums are scaled down to it. A share is then off by at most half a place
 * of the round per endpoint, and an endpoint always keeps one place.
 */
const ROUND_LENGTH_MAX = 16384;

export class RoundRobin implements Picker {
  private readonly round: Int32Array;
  private position: number;

  /**
   * A picker over endpoints with the given weights (1 or more each).
   * `seed` (0 to 1) says where in the round to start.
   */
  constructor(weights: readonly number[], seed: number) {
    this.round = smoothRound(scaled(weights));
    this.position = Math.floor(seed * this.round.length);
  }

  pick(): number {
    const round = this.round;
    if (round.length === 0) return -1;
    if (this.position >= round.length) this.position = 0;
    return round[this.position++];
  }
}

/** Divides by the greatest common divisor, then scales so that the sum fits a round. */
function scaled(weights: readonly number[]): number[] {
  let divisor = 0;
  for (const weight of weights) divisor = gcd(divisor, weight);
  const reduced = weights.map((weight) => weight / Math.max(divisor, 1));
  const sum = reduced.reduce((total, weight) => total + weight, 0);
  const bound = Math.max(ROUND_LENGTH_MAX, weights.length);
  if (sum <= bound) return reduced;
  return reduced.map((weight) => Math.max(1, Math.round((weight * bound) / sum)));
}

function gcd(a: number, b: number): number {
  return b === 0 ? a : gcd(b, a % b);
}

/** Multiples of it, modulo 1, are spread evenly however many there are. */
const GOLDEN_RATIO = 0.6180339887498949;

/**
 * Spreads endpoint i over `weights[i]` places of the round: its n-th place is wanted at
 * (n + phase) / weight of the way, and the places are taken in that order. Each endpoint has a phase
 * of its own (0 to 1): with one for all, endpoints of equal weight would come in a bunch.
 */
function smoothRound(weights: readonly number[]): Int32Array {
  const places: { endpoint: number; at: number }[] = [];
  weights.forEach((weight, endpoint) => {
    const phase = (0.5 + endpoint * GOLDEN_RATIO) % 1;
    for (let n = 0; n < weight; n++) places.push({ endpoint, at: (n + phase) / weight });
  });
  places.sort((a, b) => a.at - b.at || a.endpoint - b.endpoint);
  return Int32Array.from(places, (place) => place.endpoint);
}
