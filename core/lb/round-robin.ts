// Weighted round robin: every endpoint gets its share, spread as evenly as its weight allows.
//
// The order of one full round is worked out once, when a snapshot arrives, so that a pick is one
// array read whatever the number of endpoints. The spreading is "smooth": weights 5, 1, 1 give
// a b a a a c a and not a a a a a b c. Each worker starts at another place of the round, so that
// workers do not all begin with the first endpoint.
// Owned by one worker. Hot module: no allocation in `pick`.

import { mix } from './hash.ts';
import type { Picker } from './picker.ts';
import { placesOf, smoothRound } from './smooth-round.ts';

/** Turns in a row that may be left unused before one is used all the same. */
const UNUSED_MAX = 16;

const WORDS = 2 ** 32;

export class RoundRobin implements Picker {
  private readonly round: Int32Array;
  /** An endpoint uses its turn for random bits below this; null: all of them always do. */
  private readonly uses: Float64Array | null;
  private position: number;

  /**
   * A picker over endpoints with the given weights (whole numbers above 0).
   * `seed` (0 to 1) says where in the round to start.
   */
  constructor(weights: ArrayLike<number>, seed: number) {
    const places = placesOf(weights);
    this.uses = places.some((count) => count < 1) ? Float64Array.from(places, (count) => count * WORDS) : null;
    this.round = smoothRound(places.map((count) => Math.max(1, Math.round(count))));
    this.position = Math.floor(seed * this.round.length);
  }

  pick(bits: number): number {
    const { round, uses } = this;
    if (round.length === 0) return -1;
    if (this.position >= round.length) this.position = 0;
    let endpoint = round[this.position++];
    if (uses === null) return endpoint;
    let random = bits;
    for (let unused = 0; unused < UNUSED_MAX && random >>> 0 >= uses[endpoint]; unused++) {
      if (this.position >= round.length) this.position = 0;
      endpoint = round[this.position++];
      random = mix(random + 1);
    }
    return endpoint;
  }
}
