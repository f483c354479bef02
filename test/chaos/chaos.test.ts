// A short chaos run; `test/chaos/run.ts` does long ones.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { runChaos } from './chaos.ts';

test('safe requests with retries survive backends that die, freeze, slow down, flap and fail', async (t) => {
  const seed = Number(process.env.CHAOS_SEED ?? Date.now() % 1_000_000);
  t.diagnostic(`seed ${seed}`);
  const lines: string[] = [];
  const report = await runChaos({ seed, seconds: 8, reloads: 12, log: (line) => lines.push(line) });
  assert.deepEqual(report.safeFailures, [], `seed ${seed}\n${lines.join('\n')}`);
  assert.deepEqual(report.wrong, [], `seed ${seed}`);
  assert.ok(report.troubles > 3 && report.safe > 100 && report.reloads > 5, JSON.stringify(report));
  assert.equal(report.exitCode, 0);
});
