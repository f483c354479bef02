// Seeds of randomised unit tests: a new one each run, shown in the test's output, and repeatable.
// CORE_SEED=123 node --test FILE runs the cases of seed 123 again.

import type { TestContext } from 'node:test';
import { Random } from '../../../sim/random.ts';

/** A generator for one test. Its seed is part of the test's output and of `label`. */
export function seededRandom(t: TestContext): { random: Random; label: string } {
  const seed = Number(process.env.CORE_SEED ?? Date.now() % 2 ** 31);
  const label = `CORE_SEED=${seed}`;
  t.diagnostic(label);
  return { random: new Random(seed), label };
}
