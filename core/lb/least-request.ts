// The endpoint with the fewest requests in progress, as Envoy documents it.
//
// Equal weights: of some endpoints drawn at random the least busy is taken ("power of two choices",
// Mitzenmacher 2001), which keeps the longest queue short and needs no look at all of them. Other
// weights: a schedule by earliest deadline in which an endpoint's turn comes after
// (requests in progress + 1) / weight.
// Requests are counted over all workers, in the node state. Owned by one worker.
// Hot module: no allocation in `pick`.

import { mix, placeOf } from './hash.ts';
import { EndpointWord } from './node-state.ts';
import type { Members, Picker } from './picker.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { ACTIVE } = EndpointWord;

/** Step between the words of random bits that one pick uses. */
const STEP = 0x9e3779b9 | 0;
const WORDS = 2 ** 32;

/** Power of n choices among endpoints of equal weight. */
export class LeastRequest implements Picker {
  private readonly positions: Int32Array;
  private readonly words: Int32Array;
  private readonly choices: number;

  /** `words`: of the node state. `choices`: 2 or more. */
  constructor(members: Members, words: Int32Array, choices: number) {
    this.positions = members.positions;
    this.words = words;
    this.choices = choices;
  }

  pick(bits: number): number {
    const { positions, words, choices } = this;
    const count = positions.length;
    if (count < 2) return count - 1;
    const first = placeOf(mix(bits), count);
    // The second is another one than the first; more of them may repeat.
    let other = placeOf(mix(bits + STEP), count - 1);
    if (other >= first) other++;
    let best = first;
    let least = words[positions[first] + ACTIVE];
    for (let choice = 2; ; choice++) {
      const active = words[positions[other] + ACTIVE];
      if (active < least) {
        best = other;
        least = active;
      }
      if (choice >= choices) return best;
      other = placeOf(mix(bits + Math.imul(STEP, choice)), count);
    }
  }
}

/** Earliest deadline first among endpoints of different weight. */
export class WeightedLeastRequest implements Picker {
  private readonly positions: Int32Array;
  private readonly weights: Float64Array;
  private readonly words: Int32Array;
  private readonly deadlines: Float64Array;
  /** Members as a binary heap, the earliest deadline first. */
  private readonly heap: Int32Array;

  /** `words`: of the node state. `bits` says where in their first turn the endpoints stand. */
  constructor(members: Members, words: Int32Array, bits: number) {
    this.positions = members.positions;
    this.weights = members.weights;
    this.words = words;
    this.deadlines = Float64Array.from(
      members.weights,
      (weight, i) => (mix(bits + Math.imul(STEP, i)) >>> 0) / WORDS / weight,
    );
    this.heap = Int32Array.from(this.deadlines.keys()).sort((a, b) => this.deadlines[a] - this.deadlines[b]);
  }

  pick(): number {
    const { heap, deadlines, weights, words, positions } = this;
    const count = heap.length;
    if (count === 0) return -1;
    const top = heap[0];
    const deadline = deadlines[top] + (words[positions[top] + ACTIVE] + 1) / weights[top];
    deadlines[top] = deadline;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= count) break;
      if (child + 1 < count && deadlines[heap[child + 1]] < deadlines[heap[child]]) child++;
      if (deadlines[heap[child]] >= deadline) break;
      heap[at] = heap[child];
      at = child;
    }
    heap[at] = top;
    return top;
  }
}
