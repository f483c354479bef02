// Maglev hashing (Eisenbud 2016, §3.4), weighted as Envoy does it: a table of prime size in which the
// endpoints take turns in claiming places, each in an order of its own. Nearly equal shares, one
// read a pick; when one of n endpoints goes, its keys move, and a few others.
// Immutable once made. Hot module: no allocation in `pick`.

import { hashWord, mix } from './hash.ts';
import type { Members, Picker } from './picker.ts';

export class Maglev implements Picker {
  private readonly table: Int32Array;

  /** A table of `size` places, a prime; endpoints beyond that number get none. */
  constructor(members: Members, size: number) {
    const { count, weights, hashes } = members;
    this.table = new Int32Array(count === 0 ? 0 : size).fill(-1);
    if (count === 0) return;
    let heaviest = 0;
    for (let i = 0; i < count; i++) heaviest = Math.max(heaviest, weights[i]);
    // The next place that each would claim, and how far it goes on from there.
    const next = Int32Array.from(hashes, (hash) => (mix(hashWord(hash, 1)) >>> 0) % size);
    const skip = Int32Array.from(hashes, (hash) => ((mix(hashWord(hash, 2)) >>> 0) % (size - 1)) + 1);
    const due = new Float64Array(count);
    // Who claims first must not depend on the order of the configuration, nor on who else is there.
    const order = Int32Array.from(hashes.keys()).sort((a, b) => hashes[a] - hashes[b] || a - b);
    let filled = 0;
    for (let turn = 1; filled < size; turn++) {
      for (let k = 0; k < count && filled < size; k++) {
        const i = order[k];
        if (turn * weights[i] < due[i]) continue;
        due[i] += heaviest;
        let place = next[i];
        while (this.table[place] >= 0) place = (place + skip[i]) % size;
        this.table[place] = i;
        next[i] = (place + skip[i]) % size;
        filled++;
      }
    }
  }

  pick(bits: number): number {
    const { table } = this;
    return table.length === 0 ? -1 : table[(bits >>> 0) % table.length];
  }
}
