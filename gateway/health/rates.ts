// Which endpoints of a backend stand out by their rates of failure.
//
// Pure arithmetic over the counts of one interval. Semantics: Envoy's success rate and failure percentage.

import type { OutlierSettings } from '../../core/lb/outlier-detection.ts';

/** Requests of one endpoint in an interval. */
export interface RateCounts {
  requests: number;
  failures: number;
}

/** An endpoint (index in the counts) that is to be ejected, with its rate in percent. */
export interface RateOutlier {
  index: number;
  percent: number;
}

/** Success rate in percent below which an endpoint is an outlier; undefined for too few of them. */
export function successRateThreshold(
  rates: readonly number[],
  settings: NonNullable<OutlierSettings['successRate']>,
): number | undefined {
  if (rates.length === 0 || rates.length < settings.minimumHosts) return undefined;
  const mean = rates.reduce((sum, rate) => sum + rate, 0) / rates.length;
  const variance = rates.reduce((sum, rate) => sum + (rate - mean) ** 2, 0) / rates.length;
  return mean - settings.stdevFactor * Math.sqrt(variance);
}

/** Endpoints whose success rate is too far below the mean; `percent` is that rate. */
export function successRateOutliers(
  counts: readonly RateCounts[],
  settings: NonNullable<OutlierSettings['successRate']>,
): RateOutlier[] {
  const judged = judgedOf(counts, settings.requestVolume);
  const threshold = successRateThreshold(
    judged.map(({ percent }) => 100 - percent),
    settings,
  );
  if (threshold === undefined) return [];
  return judged
    .map(({ index, percent }) => ({ index, percent: 100 - percent }))
    .filter(({ percent }) => percent < threshold);
}

/** Endpoints that fail too large a part of their requests; `percent` is that part. */
export function failurePercentageOutliers(
  counts: readonly RateCounts[],
  settings: NonNullable<OutlierSettings['failurePercentage']>,
): RateOutlier[] {
  const judged = judgedOf(counts, settings.requestVolume);
  if (judged.length < settings.minimumHosts) return [];
  return judged.filter(({ percent }) => percent >= settings.threshold);
}

/** Failures in percent of the endpoints that had enough requests. */
function judgedOf(counts: readonly RateCounts[], requestVolume: number): RateOutlier[] {
  const judged: RateOutlier[] = [];
  counts.forEach(({ requests, failures }, index) => {
    // An answer that is cut counts as a failure of its own after its request has been counted.
    if (requests >= requestVolume) judged.push({ index, percent: (100 * Math.min(failures, requests)) / requests });
  });
  return judged;
}
