// Adaptive concurrency: the gradient controller against a simulated backend, and the buckets that its latencies come in.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type AdaptiveConcurrencySettings, GradientController } from '../../../../core/lb/gradient.ts';
import {
  addLatency,
  createLatencySamples,
  LATENCY_BUCKETS,
  latencyPercentile,
  takeLatencies,
} from '../../../../core/lb/latency-samples.ts';

const settings: AdaptiveConcurrencySettings = {
  sampleIntervalMs: 100,
  percentile: 50,
  limitMin: 3,
  limitMax: 1000,
  minRttIntervalMs: 60_000,
  minRttJitterPercent: 0,
  minRttRequests: 50,
  minRttBufferPercent: 25,
};

/**
 * A backend that works on `parallel` requests at a time, each for `serviceMs`; further ones wait. `offered` is how many
 * clients ask at a time. Steps of one sample interval; returns the limit after each.
 */
class Backend {
  readonly samples = new Int32Array(createLatencySamples(1));
  parallel = 20;
  serviceMs = 10;
  offered = 500;
  nowMs = 1000;
  readonly controller: GradientController;

  constructor(changes: Partial<AdaptiveConcurrencySettings> = {}, random: () => number = () => 0) {
    this.controller = new GradientController({ ...settings, ...changes }, random);
  }

  get latencyMs(): number {
    const inProgress = Math.min(this.controller.limit, this.offered);
    return this.serviceMs * Math.max(1, inProgress / this.parallel);
  }

  step(count = 1): void {
    for (let i = 0; i < count; i++) {
      const inProgress = Math.min(this.controller.limit, this.offered);
      const answers = Math.floor((100 / this.latencyMs) * inProgress);
      for (let n = 0; n < answers; n++) addLatency(this.samples, 0, this.latencyMs * 1000);
      this.nowMs += 100;
      this.controller.tick(takeLatencies(this.samples, 0, this.controller.buckets), this.nowMs);
    }
  }
}

test('percentiles come out of the buckets to a few percent, from microseconds to seconds', () => {
  for (const us of [20, 150, 999, 5000, 64_000, 1_000_000, 9_000_000]) {
    const samples = new Int32Array(createLatencySamples(2));
    for (let i = 0; i < 100; i++) addLatency(samples, 1, us);
    const counts = new Float64Array(LATENCY_BUCKETS);
    assert.equal(takeLatencies(samples, 0, counts), 0, 'another backend has its own');
    assert.equal(takeLatencies(samples, 1, counts), 100);
    const median = latencyPercentile(counts, 50);
    assert.ok(Math.abs(median / us - 1) < 0.06, `${us} us: ${median}`);
    assert.equal(takeLatencies(samples, 1, counts), 0, 'they have been taken');
  }
  const counts = new Float64Array(LATENCY_BUCKETS);
  const samples = new Int32Array(createLatencySamples(1));
  for (let i = 1; i <= 1000; i++) addLatency(samples, 0, i * 100);
  addLatency(samples, 0, 0);
  addLatency(samples, 0, 2 ** 30);
  takeLatencies(samples, 0, counts);
  for (const percent of [10, 50, 90, 99]) {
    const value = latencyPercentile(counts, percent);
    assert.ok(Math.abs(value / (percent * 1000) - 1) < 0.06, `${percent}: ${value}`);
  }
});

test('the least latency is measured first, with few requests at a time', () => {
  const backend = new Backend();
  assert.ok(backend.controller.measuring);
  assert.equal(backend.controller.limit, 3);
  backend.step();
  assert.ok(backend.controller.measuring, '30 answers are too few');
  backend.step();
  assert.ok(!backend.controller.measuring);
  assert.ok(Math.abs(backend.controller.minRttUs - 10_000) < 600);
});

test('the limit settles where latency just begins to grow, and not at what clients ask for', () => {
  const backend = new Backend();
  backend.step(200);
  // 20 at a time are worked on; a quarter more and the headroom wait.
  for (let i = 0; i < 50; i++) {
    backend.step();
    const { limit } = backend.controller;
    assert.ok(limit >= 20 && limit <= 45, `${limit}`);
  }
  assert.ok(backend.latencyMs < 25, `${backend.latencyMs} ms instead of ${(500 / 20) * 10}`);
});

test('a backend that becomes slower gets less, and one that recovers gets more again', () => {
  const backend = new Backend();
  backend.step(100);
  const before = backend.controller.limit;
  backend.parallel = 5;
  backend.step(20);
  const { limit } = backend.controller;
  assert.ok(limit < before / 2, `${limit} after ${before}`);
  backend.parallel = 20;
  backend.step(50);
  assert.ok(backend.controller.limit >= 20);
});

test('without load the limit grows to its maximum, and stays there', () => {
  const backend = new Backend({ limitMax: 200 });
  backend.offered = 10;
  backend.step(100);
  assert.equal(backend.controller.limit, 200);
});

test('nothing changes while nobody asks', () => {
  const backend = new Backend();
  backend.step(50);
  const { limit } = backend.controller;
  backend.offered = 0;
  backend.step(20);
  assert.equal(backend.controller.limit, limit);
});

test('the least latency is measured again after the interval and its jitter, and the limit goes on from before', () => {
  const backend = new Backend({ minRttIntervalMs: 10_000, minRttJitterPercent: 50 }, () => 1);
  backend.step(2);
  const measuredMs = backend.nowMs;
  while (!backend.controller.measuring) backend.step();
  assert.equal(backend.nowMs - measuredMs, 15_000);
  assert.equal(backend.controller.limit, 3);
  backend.serviceMs = 20;
  while (backend.controller.measuring) backend.step();
  assert.ok(backend.controller.limit >= 20);
  assert.ok(Math.abs(backend.controller.minRttUs - 20_000) < 1200);
});

test('a backend whose latency has grown for good is not held at the minimum', () => {
  const backend = new Backend();
  backend.step(100);
  backend.serviceMs = 100;
  backend.step(200);
  assert.ok(Math.abs(backend.controller.minRttUs - 100_000) < 6000, `${backend.controller.minRttUs}`);
  assert.ok(backend.controller.limit >= 20, `${backend.controller.limit}`);
});
