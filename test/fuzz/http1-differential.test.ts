// A bounded run of the differential fuzzer as part of the suite. The seed is printed; repeat it with
//   FUZZ_SEED=<seed> FUZZ_CASES=<cases> node --test test/fuzz/http1-differential.test.ts

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { fuzz } from './http1-differential.ts';

const seed = Number(process.env.FUZZ_SEED ?? Math.floor(Math.random() * 2 ** 32));
const cases = Number(process.env.FUZZ_CASES ?? 8_000);

test('whatever our parser accepts means the same to llhttp and http-parser-js, or the reason is listed', (t) => {
  t.diagnostic(`FUZZ_SEED=${seed} FUZZ_CASES=${cases}`);
  const report = fuzz(seed, cases);
  assert.deepEqual(report.findings, [], `FUZZ_SEED=${seed}`);
  assert.equal(report.cases, cases);
  // The generator must make streams that get through, or nothing has been compared.
  assert.ok(report.accepted > cases / 10, `only ${report.accepted} messages were accepted`);
});

test('a run from one seed is always the same', () => {
  assert.deepEqual(fuzz(7, 300), fuzz(7, 300));
});
