// A bounded run of the HPACK fuzzer as part of the suite. The seed is printed; repeat it with
//   FUZZ_SEED=<seed> FUZZ_CASES=<connections> node --test test/fuzz/hpack-differential.test.ts

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { fuzz } from './hpack-differential.ts';

const seed = Number(process.env.FUZZ_SEED ?? Math.floor(Math.random() * 2 ** 32));
const connections = Number(process.env.FUZZ_CASES ?? 1_200);

test('nghttp2 reads what we write, we read what it writes, and both refuse the same blocks', (t) => {
  t.diagnostic(`FUZZ_SEED=${seed} FUZZ_CASES=${connections}`);
  const report = fuzz(seed, connections);
  assert.deepEqual(report.findings, [], `FUZZ_SEED=${seed}`);
  assert.equal(report.connections, connections);
  // The generator must make blocks of every kind, or nothing has been compared.
  assert.ok(report.refused > connections / 50, `only ${report.refused} blocks were refused`);
  assert.ok(report.tooLarge > connections / 50, `only ${report.tooLarge} blocks were too large`);
  assert.ok(report.blocks - report.refused > connections, `only ${report.blocks} hostile blocks`);
});

test('a run from one seed is always the same', () => {
  assert.deepEqual(fuzz(7, 80), fuzz(7, 80));
});
