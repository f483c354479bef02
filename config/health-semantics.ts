// Checks of health checks and outlier detection that look at more than one key.
//
// Control thread. A part of semantics.ts, with its terms: nothing is taken for granted about shapes.

import { describeValue } from './errors.ts';
import { isMapping, items, type Mapping, mappings, type Report, refuse } from './semantics-walk.ts';
import { parseDurationMs } from './units.ts';
import type { Path } from './yaml.ts';

/** Which types of check have a use for a key. */
const usedBy: Record<string, readonly string[]> = {
  path: ['HTTP', 'HTTPS'],
  method: ['HTTP', 'HTTPS'],
  headers: ['HTTP', 'HTTPS', 'GRPC'],
  host: ['HTTP', 'HTTPS', 'GRPC'],
  expectedStatuses: ['HTTP', 'HTTPS'],
  grpcService: ['GRPC'],
};

/** Reports contradictions in the health settings of backends. */
export function checkHealth(root: Mapping, report: Report): void {
  for (const [backend, path] of mappings(root.backends, ['backends'])) {
    const { healthCheck, outlierDetection } = backend;
    if (isMapping(healthCheck)) checkHealthCheck(backend, healthCheck, [...path, 'healthCheck'], report);
    if (isMapping(outlierDetection)) checkOutlierDetection(outlierDetection, [...path, 'outlierDetection'], report);
  }
}

function checkHealthCheck(backend: Mapping, check: Mapping, path: Path, report: Report): void {
  const type = check.type ?? (backend.tls === undefined ? 'HTTP' : 'HTTPS');
  if (check.type === 'HTTPS' && backend.tls === undefined) {
    refuse(report, [...path, 'type'], '"HTTPS" needs the tls of the backend', 'tls, which may be {}, or HTTP', 'HTTP');
  }
  for (const [key, types] of Object.entries(usedBy)) {
    if (check[key] === undefined || typeof type !== 'string' || types.includes(type)) continue;
    // An unknown type has been reported.
    if (!['HTTP', 'HTTPS', 'TCP', 'GRPC'].includes(type)) continue;
    refuse(report, [...path, key], `has no meaning for checks of type ${type}`, types.join(' or '), undefined, 'key');
  }
}

function checkOutlierDetection(detection: Mapping, path: Path, report: Report): void {
  const baseMs = durationOf(detection.baseEjectionTime);
  const maxMs = durationOf(detection.maxEjectionTime);
  if (baseMs !== undefined && maxMs !== undefined && maxMs < baseMs) {
    const problem = `${describeValue(detection.maxEjectionTime)} is shorter than baseEjectionTime`;
    const expected = `at least ${describeValue(detection.baseEjectionTime)}`;
    refuse(report, [...path, 'maxEjectionTime'], problem, expected);
  }
  const never =
    detection.consecutive5xx === 0 &&
    (detection.consecutiveGatewayFailures === undefined || detection.consecutiveGatewayFailures === 0) &&
    detection.successRate === undefined &&
    detection.failurePercentage === undefined;
  if (never) {
    const expected = 'a number above 0, or consecutiveGatewayFailures, successRate or failurePercentage';
    refuse(report, [...path, 'consecutive5xx'], 'is 0, so that nothing ever ejects an endpoint', expected);
  }
  checkRamp(detection.ramp, [...path, 'ramp'], report);
}

function checkRamp(ramp: unknown, path: Path, report: Report): void {
  const shares = [...items(ramp, path)];
  let before = 0;
  for (const [share, at] of shares) {
    if (typeof share !== 'number') return;
    if (share <= before) {
      refuse(
        report,
        at,
        `${share} is not above the share before it, ${before}`,
        'shares that rise, such as [1, 5, 25, 100]',
      );
      return;
    }
    before = share;
  }
  if (shares.length === 0 || before === 100 || before > 100) return;
  refuse(report, path, `ends with ${before}, so that an endpoint would never be back`, '100 as the last share');
}

function durationOf(value: unknown): number | undefined {
  return typeof value === 'string' || typeof value === 'number' ? parseDurationMs(String(value)) : undefined;
}
