import assert from 'node:assert/strict';
import { test } from 'node:test';
import { LATENCY_PERIOD_MS, LATENCY_SAMPLES_MIN, LatencyQuantile } from '../../../../core/lb/latency-quantile.ts';
import { Random } from '../../../sim/random.ts';

test('nothing is known before there are enough samples', () => {
  const latency = new LatencyQuantile(0.95);
  for (let i = 1; i < LATENCY_SAMPLES_MIN; i++) latency.add(5, 1000);
  assert.equal(latency.valueUs(1000), 0);
  latency.add(5, 1000);
  assert.ok(latency.valueUs(1000) > 0);
});

for (const quantile of [0.5, 0.9, 0.95, 0.99]) {
  test(`quantile ${quantile} of a long-tailed distribution is at most an eighth too high, and never too low`, () => {
    const random = new Random(7);
    const latency = new LatencyQuantile(quantile);
    const samples: number[] = [];
    for (let i = 0; i < 5000; i++) {
      const ms = 0.05 / Math.max(1e-5, random.next()) ** 1.5;
      samples.push(Math.round(ms * 1000));
      latency.add(ms, i);
    }
    samples.sort((a, b) => a - b);
    const exact = samples[Math.ceil(samples.length * quantile) - 1]!;
    const value = latency.valueUs(5000);
    assert.ok(value > exact && value <= exact * 1.125 + 1, `${value} for ${exact}`);
  });
}

test('what was long ago is forgotten', () => {
  const latency = new LatencyQuantile(0.9);
  for (let i = 0; i < 1000; i++) latency.add(100, 0);
  assert.ok(latency.valueUs(0) > 100_000);
  const nextMs = LATENCY_PERIOD_MS;
  for (let i = 0; i < 1000; i++) latency.add(1, nextMs);
  assert.ok(latency.valueUs(nextMs) > 100_000, 'half of what is looked at is still slow');
  const laterMs = 2 * LATENCY_PERIOD_MS;
  for (let i = 0; i < 200; i++) latency.add(1, laterMs);
  assert.ok(latency.valueUs(laterMs) < 1200);
  assert.equal(latency.valueUs(laterMs + 2 * LATENCY_PERIOD_MS), 0, 'after a pause nothing is known');
});

test('latencies beyond all bounds are counted in the last bucket', () => {
  const latency = new LatencyQuantile(0.5);
  for (let i = 0; i < 200; i++) latency.add(i % 2 === 0 ? 1e12 : -5, 0);
  assert.equal(latency.valueUs(0), 1);
  for (let i = 0; i < 200; i++) latency.add(1e12, 0);
  assert.ok(latency.valueUs(0) >= 2 ** 29);
});
