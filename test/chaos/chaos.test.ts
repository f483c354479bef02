// A short chaos run; `test/chaos/run.ts` does long ones.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { PLAIN_FAILURES_PER_TROUBLE, plainFailures, runChaos } from './chaos.ts';

test('safe requests with retries survive backends, DNS and Redis that die, freeze and fail', async (t) => {
  const seed = Number(process.env.CHAOS_SEED ?? Date.now() % 1_000_000);
  t.diagnostic(`seed ${seed}`);
  const lines: string[] = [];
  const report = await runChaos({ seed, seconds: 5, reloads: 10, log: (line) => lines.push(line) });
  const what = `seed ${seed}\n${lines.join('\n')}\n${JSON.stringify(report)}`;
  assert.deepEqual(report.safeFailures, [], what);
  assert.deepEqual(report.wrong, [], what);
  assert.deepEqual(report.lasting, [], what);
  const troubles = Object.values(report.troubles).reduce((sum, count) => sum + count, 0);
  assert.ok(plainFailures(report) <= troubles * PLAIN_FAILURES_PER_TROUBLE, what);
  assert.ok(troubles > 6 && report.safe > 100 && report.reloads > 5, what);
  assert.ok(report.lookupsFailed + report.endpointChanges > 0, what);
  if (report.redis) assert.ok(report.countedByRedis > 0 && report.failedOpen > 0, what);
  assert.equal(report.exitCode, 0);
});
