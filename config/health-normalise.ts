// Health checks and outlier detection from the configuration as written to the one the program uses.
//
// Control thread. A part of normalise.ts, with its terms: valid input, defaults filled in.

import type { OutlierSettings } from '../core/lb/outlier-detection.ts';
import type { HealthCheckConfig } from './config.ts';
import { statusRange } from './health-schema.ts';
import type { ConfigInput } from './schema.ts';
import { parseDurationMs } from './units.ts';

type BackendInput = ConfigInput['backends'][number];

/** Checks of a backend. */
export function healthCheckConfig(
  input: NonNullable<BackendInput['healthCheck']>,
  backendHasTls: boolean,
): HealthCheckConfig {
  return {
    type: input.type ?? (backendHasTls ? 'HTTPS' : 'HTTP'),
    path: input.path!,
    host: input.host ?? '',
    method: input.method!,
    headers: input.headers!.map(({ name, value }) => ({ name, value })),
    expectedStatuses: input.expectedStatuses!.map((range) => statusRange(String(range))!),
    grpcService: input.grpcService!,
    port: input.port!,
    intervalMs: durationMs(input.interval!),
    timeoutMs: durationMs(input.timeout!),
    jitterPercent: input.jitter!,
    unhealthyThreshold: input.unhealthyThreshold!,
    healthyThreshold: input.healthyThreshold!,
  };
}

/** Outlier detection of a backend. */
export function outlierSettings(input: NonNullable<BackendInput['outlierDetection']>): OutlierSettings {
  const { successRate, failurePercentage } = input;
  const baseEjectionMs = durationMs(input.baseEjectionTime!);
  return {
    consecutive5xx: input.consecutive5xx!,
    consecutiveGatewayFailures: input.consecutiveGatewayFailures!,
    intervalMs: durationMs(input.interval!),
    baseEjectionMs,
    // A base above the default of the longest time means what it says.
    maxEjectionMs: Math.max(baseEjectionMs, durationMs(input.maxEjectionTime!)),
    maxEjectionPercent: input.maxEjectionPercent!,
    successRate:
      successRate === undefined
        ? null
        : {
            minimumHosts: successRate.minimumHosts!,
            requestVolume: successRate.requestVolume!,
            stdevFactor: successRate.stdevFactor!,
          },
    failurePercentage:
      failurePercentage === undefined
        ? null
        : {
            threshold: failurePercentage.threshold!,
            minimumHosts: failurePercentage.minimumHosts!,
            requestVolume: failurePercentage.requestVolume!,
          },
    ramp: [...input.ramp!],
    rampStepMs: durationMs(input.rampStep!),
  };
}

function durationMs(value: string | number): number {
  return parseDurationMs(String(value))!;
}
