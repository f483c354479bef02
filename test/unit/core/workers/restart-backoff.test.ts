import assert from 'node:assert/strict';
import { test } from 'node:test';
import { HEALTHY_AFTER_MS, RestartBackoff } from '../../../../core/workers/restart-backoff.ts';

test('the first restart is immediate and a storm slows down to one restart in ten seconds', () => {
  const backoff = new RestartBackoff();
  const delays = Array.from({ length: 9 }, () => backoff.next(10));
  assert.deepEqual(delays, [0, 250, 500, 1000, 2000, 4000, 8000, 10_000, 10_000]);
});

test('a worker that lived for a minute is replaced at once again', () => {
  const backoff = new RestartBackoff();
  for (let i = 0; i < 5; i++) backoff.next(10);
  assert.equal(backoff.next(HEALTHY_AFTER_MS), 0);
  assert.equal(backoff.next(10), 250);
});
