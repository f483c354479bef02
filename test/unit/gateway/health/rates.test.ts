// Rates with the figures of Envoy's documentation and with hand-computed ones.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  failurePercentageOutliers,
  successRateOutliers,
  successRateThreshold,
} from '../../../../gateway/health/rates.ts';

const settings = { minimumHosts: 5, requestVolume: 100, stdevFactor: 1.9 };
/** Counts of endpoints with so many failures in 100 requests. */
const failing = (...failures: number[]) => failures.map((count) => ({ requests: 100, failures: count }));

test('the threshold is the mean less 1.9 standard deviations', () => {
  // Mean 90, variance (4 x 10^2 + 40^2) / 5 = 400.
  assert.equal(successRateThreshold([100, 100, 100, 100, 50], settings), 52);
});

test('an endpoint below the threshold stands out, with its success rate', () => {
  assert.deepEqual(successRateOutliers(failing(0, 0, 0, 0, 50), settings), [{ index: 4, percent: 50 }]);
  // With ten endpoints the same one: mean 95, deviation 15, threshold 66.5; 70 does not stand out.
  assert.deepEqual(successRateOutliers(failing(0, 0, 0, 0, 0, 0, 0, 0, 0, 50), settings), [{ index: 9, percent: 50 }]);
});

test('endpoints that all fail alike do not stand out', () => {
  assert.deepEqual(successRateOutliers(failing(80, 80, 80, 80, 80), settings), []);
});

test('endpoints with too few requests are left out, and too few endpoints judge nobody', () => {
  const idle = { requests: 99, failures: 99 };
  assert.deepEqual(successRateOutliers([...failing(0, 0, 0, 50), idle], settings), []);
  assert.deepEqual(successRateOutliers([...failing(0, 0, 0, 0, 50), idle], settings), [{ index: 4, percent: 50 }]);
});

test('the failure percentage judges each endpoint for itself', () => {
  const percentage = { threshold: 85, minimumHosts: 2, requestVolume: 100 };
  assert.deepEqual(failurePercentageOutliers(failing(84, 85, 100), percentage), [
    { index: 1, percent: 85 },
    { index: 2, percent: 100 },
  ]);
  assert.deepEqual(failurePercentageOutliers(failing(100), percentage), []);
});

test('a request that counts as two failures is not more than all', () => {
  const percentage = { threshold: 100, minimumHosts: 1, requestVolume: 1 };
  assert.deepEqual(failurePercentageOutliers([{ requests: 2, failures: 3 }], percentage), [{ index: 0, percent: 100 }]);
});
