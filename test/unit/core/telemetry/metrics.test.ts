// Counters in shared memory: classes, buckets, bounds, and what a replaced worker finds.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { REASON_COUNT, Reason } from '../../../../core/exchange/reasons.ts';
import {
  CloseCause,
  Counter,
  createMetricsBuffer,
  HISTOGRAM_WORDS,
  latencyBoundsMs,
  MetricSection,
  PARSE_ERROR_CAPACITY,
  WorkerMetrics,
} from '../../../../core/telemetry/metrics.ts';

function histogram(metrics: WorkerMetrics, section: number): { buckets: number[]; sum: number } {
  const words = [...metrics.counters.subarray(section, section + HISTOGRAM_WORDS)];
  return { sum: words.pop()!, buckets: words };
}

test('an outcome is counted in total, in its status class and under its reason', () => {
  const metrics = new WorkerMetrics(createMetricsBuffer());
  for (const status of [101, 200, 204, 302, 404, 499, 503, 599]) metrics.countOutcome(status, 0);
  metrics.countOutcome(502, Reason.UPSTREAM_CONNECT_FAILURE);
  metrics.countOutcome(0, Reason.DOWNSTREAM_CONNECTION_TERMINATION);
  const { counters } = metrics;
  assert.equal(counters[Counter.REQUESTS], 10);
  assert.deepEqual([...counters.subarray(Counter.STATUS_1XX, Counter.STATUS_NONE + 1)], [1, 2, 1, 2, 3, 1]);
  const reasons = [...counters.subarray(MetricSection.REASONS, MetricSection.REASONS + REASON_COUNT)];
  assert.equal(reasons[Reason.NONE], 0, 'success is no reason');
  assert.equal(reasons[Reason.UPSTREAM_CONNECT_FAILURE], 1);
  assert.equal(reasons[Reason.DOWNSTREAM_CONNECTION_TERMINATION], 1);
});

test('a latency falls into the first bucket whose bound is not below it', () => {
  latencyBoundsMs.forEach((bound, index) => {
    for (const [ms, bucket] of [
      [bound, index],
      [bound * 1.001, index + 1],
      [bound * 0.999, index],
    ]) {
      const metrics = new WorkerMetrics(createMetricsBuffer());
      metrics.recordLatency(ms);
      const { buckets, sum } = histogram(metrics, MetricSection.REQUEST_LATENCY);
      assert.equal(buckets.indexOf(1), bucket, `${ms} ms`);
      assert.equal(sum, ms);
    }
  });
});

test('the two histograms are separate, and hold zero and very long times', () => {
  const metrics = new WorkerMetrics(createMetricsBuffer());
  metrics.recordLatency(0);
  metrics.recordUpstreamLatency(1e9);
  const whole = histogram(metrics, MetricSection.REQUEST_LATENCY);
  const upstream = histogram(metrics, MetricSection.UPSTREAM_LATENCY);
  assert.equal(whole.buckets[0], 1);
  assert.equal(upstream.buckets.at(-1), 1);
  assert.equal(upstream.sum, 1e9);
  assert.equal(
    metrics.counters.reduce((sum, value) => sum + value),
    2 + 1e9,
  );
});

test('parse errors and close causes out of range do not touch other counters', () => {
  const metrics = new WorkerMetrics(createMetricsBuffer());
  metrics.countParseError(16);
  metrics.countParseError(5000);
  metrics.countParseError(-1);
  metrics.countClose(CloseCause.IDLE_TIMEOUT);
  metrics.countClose(99);
  const { counters } = metrics;
  assert.equal(counters[MetricSection.PARSE_ERRORS + 16], 1);
  assert.equal(counters[MetricSection.PARSE_ERRORS + PARSE_ERROR_CAPACITY - 1], 2);
  assert.equal(counters[MetricSection.CLOSES + CloseCause.IDLE_TIMEOUT], 1);
  assert.equal(
    counters.reduce((sum, value) => sum + value),
    4,
  );
});

test('a replaced worker goes on counting, with its gauges at zero', () => {
  const buffer = createMetricsBuffer();
  const dead = new WorkerMetrics(buffer);
  dead.countOutcome(200, 0);
  dead.counters[Counter.DOWNSTREAM_OPEN] = 17;
  dead.counters[Counter.BUFFERS_IN_USE] = 4;
  const fresh = new WorkerMetrics(buffer);
  fresh.resetGauges();
  fresh.countOutcome(200, 0);
  assert.equal(fresh.counters[Counter.STATUS_2XX], 2);
  assert.equal(fresh.counters[Counter.DOWNSTREAM_OPEN], 0);
  assert.equal(fresh.counters[Counter.BUFFERS_IN_USE], 0);
});

test('scalar counters have numbers of their own, inside their section', () => {
  const numbers = Object.values(Counter);
  assert.equal(new Set(numbers).size, numbers.length);
  for (const number of numbers) assert.ok(number < MetricSection.REASONS);
});

test('a buffer of another size is refused', () => {
  assert.throws(() => new WorkerMetrics(new SharedArrayBuffer(64)), RangeError);
});
