// The one source of chance in a simulation: a small seeded generator.
//
// Everything that a run decides (splits, delays, faults, scripts) is drawn from generators that
// descend from the printed seed, so that the same seed gives the same run on every machine.
// `fork` gives a part of the simulation its own stream: drawing more in one part then leaves the
// others as they were, which keeps a failing seed failing while it is being examined.
// Algorithm: sfc32 (Chris Doty-Humphrey's PractRand), seeded through a 32-bit mixer.

/** A seeded stream of random numbers. Not for secrets. */
export class Random {
  private a: number;
  private b: number;
  private c: number;
  private counter = 1;

  /** `seed`: any integer; equal seeds give equal streams. */
  constructor(seed: number) {
    this.a = mix(seed);
    this.b = mix(this.a ^ 0x51ed270b);
    this.c = mix(this.b ^ Math.floor(seed / 2 ** 32));
    for (let i = 0; i < 8; i++) this.next();
  }

  /** The next 32 random bits, as an integer of 0 to 2^32 - 1. */
  next(): number {
    const out = (this.a + this.b + this.counter) | 0;
    this.counter = (this.counter + 1) | 0;
    this.a = this.b ^ (this.b >>> 9);
    this.b = (this.c + (this.c << 3)) | 0;
    this.c = (((this.c << 21) | (this.c >>> 11)) + out) | 0;
    return out >>> 0;
  }

  /** A number of 0 (included) to 1 (excluded). */
  float(): number {
    return this.next() / 2 ** 32;
  }

  /** An integer of `low` to `high`, both included. */
  int(low: number, high: number): number {
    return low + Math.floor(this.float() * (high - low + 1));
  }

  /** A number of `low` to `high`. */
  between(low: number, high: number): number {
    return low + this.float() * (high - low);
  }

  /** True with probability `p`. */
  chance(p: number): boolean {
    return this.float() < p;
  }

  /** One element of a list that is not empty. */
  pick<T>(list: readonly T[]): T {
    return list[Math.floor(this.float() * list.length)]!;
  }

  /** One key of `weights`, each as likely as its weight; weights are >= 0 and not all zero. */
  weighted<K extends string>(weights: Readonly<Partial<Record<K, number>>>): K {
    const entries = Object.entries(weights) as [K, number][];
    let left = this.float() * entries.reduce((sum, [, weight]) => sum + weight, 0);
    for (const [key, weight] of entries) {
      left -= weight;
      if (left < 0) return key;
    }
    return entries[entries.length - 1]![0];
  }

  /** A size of `low` to `high` bytes where small ones are as likely as large ones (log-uniform). */
  size(low: number, high: number): number {
    return Math.min(high, Math.floor((low + 1) * ((high + 2) / (low + 1)) ** this.float()) - 1);
  }

  /** A new stream that depends on this one only through the bits drawn here. */
  fork(): Random {
    return new Random(this.next());
  }
}

function mix(value: number): number {
  let bits = value | 0;
  bits = Math.imul(bits ^ (bits >>> 16), 0x85ebca6b);
  bits = Math.imul(bits ^ (bits >>> 13), 0xc2b2ae35);
  return (bits ^ (bits >>> 16) ^ 0x9e3779b9) | 0;
}
