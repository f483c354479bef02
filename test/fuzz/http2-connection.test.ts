// HTTP/2 connections that break every rule, over as many seeds as fit the time. See http2-connection.ts.
//
// Every run takes the same seeds, unless FUZZ_START and FUZZ_SEEDS say otherwise.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { fuzzConnection, targets } from './http2-connection.ts';

const START = Number(process.env.FUZZ_START ?? 1);
const SEEDS = Number(process.env.FUZZ_SEEDS ?? 150);
/** Fewer seeds run when the machine is slow. */
const BUDGET_MS = 10_000;
const SEEDS_MIN = 30;

for (const target of targets) {
  test(`whatever an HTTP/2 ${target} sends, the worker and its other connections go on`, (context) => {
    const endMs = performance.now() + BUDGET_MS;
    const failed: string[] = [];
    const tally: Record<string, number> = {};
    let ran = 0;
    while (ran < SEEDS && (ran < SEEDS_MIN || performance.now() < endMs)) {
      const seed = START + ran++;
      const { violations, endings } = fuzzConnection(seed, target);
      for (const ending of endings) tally[ending] = (tally[ending] ?? 0) + 1;
      if (violations.length > 0) failed.push(`seed ${seed}: ${violations[0]}`);
    }
    context.diagnostic(`${ran} seeds: ${JSON.stringify(tally)}`);
    assert.deepEqual(failed, []);
    // Mutations that all meet the same end would show little.
    assert.ok(Object.keys(tally).length >= 4);
  });
}
