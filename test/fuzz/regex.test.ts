// A bounded run of the comparison with JavaScript and RE2 as part of the suite. The seed is printed; repeat it with
//   FUZZ_SEED=<seed> FUZZ_CASES=<cases> node --test test/fuzz/regex.test.ts

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { fuzzRegex } from './regex-differential.ts';

const seed = Number(process.env.FUZZ_SEED ?? Math.floor(Math.random() * 2 ** 32));
const cases = Number(process.env.FUZZ_CASES ?? 1_000);

test('a pattern matches what it matches in JavaScript and in RE2, and what is no pattern there is none here', (t) => {
  t.diagnostic(`FUZZ_SEED=${seed} FUZZ_CASES=${cases}`);
  const report = fuzzRegex(seed, cases);
  assert.deepEqual(report.findings, [], `FUZZ_SEED=${seed}`);
  assert.equal(report.patterns, 2 * cases);
  // The generators must make patterns and texts that get through, or nothing has been compared.
  assert.ok(report.tooLarge < cases / 50, `${report.tooLarge} were too large`);
  assert.ok(report.matches > cases / 4, `only ${report.matches} texts matched`);
  assert.ok(report.accepted > cases / 10 && report.refused > cases / 10, JSON.stringify(report));
});

test('a run from one seed is always the same', () => {
  assert.deepEqual(fuzzRegex(7, 60), fuzzRegex(7, 60));
});
