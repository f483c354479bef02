// How long the API server is left alone.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Backoff, pause } from '../../../../mesh-agent/kubernetes/backoff.ts';

test('waits double up to a bound, with the upper half left to chance, and start over after success', () => {
  for (const [chance, factor] of [
    [0, 0.5],
    [0.999999, 1],
  ] as const) {
    const backoff = new Backoff({ firstMs: 100, maxMs: 1000 }, () => chance);
    const waits = Array.from({ length: 6 }, () => Math.round(backoff.next()));
    assert.deepEqual(
      waits,
      [100, 200, 400, 800, 1000, 1000].map((fullMs) => fullMs * factor),
    );
    backoff.reset();
    assert.equal(Math.round(backoff.next()), 100 * factor);
  }
});

test('what the server asks for is a lower bound, and not the same for everybody', () => {
  assert.equal(new Backoff({ firstMs: 100, maxMs: 1000 }, () => 0.5).next(5000), 5050);
});

test('a pause ends at once when its signal aborts, also before it began', async () => {
  const abort = new AbortController();
  const waiting = pause(1_000_000, abort.signal);
  abort.abort();
  await waiting;
  await pause(1_000_000, abort.signal);
});
