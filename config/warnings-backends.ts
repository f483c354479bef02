// Warnings about the policies of backends: balancing, health, limits.
//
// Control thread. Reads the configuration as written with its defaults, without taking for granted that
// a feature is there.

import type { BackendConfig } from './config.ts';
import { isMapping, type Mapping } from './semantics-walk.ts';
import { parseDurationMs } from './units.ts';
import type { Judged, Warn } from './warnings.ts';
import { endpointCount } from './warnings-rules.ts';
import type { Path } from './yaml.ts';

/** Reports backends whose parts do not fit together. */
export function warnOfBackends({ config, input }: Judged, warn: Warn): void {
  const retried = new Set<string>();
  const important = new Set<string>();
  for (const { kind, rules } of input.routes as readonly Mapping[]) {
    if (kind !== 'HTTP') continue;
    for (const { backendRefs, retry, priority } of rules as Mapping[]) {
      for (const { name } of (backendRefs as { name: string }[] | undefined) ?? []) {
        if (retry !== undefined) retried.add(name);
        if (priority === 'high') important.add(name);
      }
    }
  }
  for (const [index, backend] of config.backends.entries()) {
    const written = input.backends[index] as Mapping;
    const path = ['backends', index];
    warnOfHealthCheck(written.healthCheck, [...path, 'healthCheck'], warn);
    warnOfOutliers(written, backend, path, warn);
    warnOfBalancer(written.loadBalancer, backend, [...path, 'loadBalancer'], warn);
    const breaker = written.circuitBreaker;
    if (!isMapping(breaker)) continue;
    const at = [...path, 'circuitBreaker'];
    if (breaker.maxRetries !== undefined && !retried.has(backend.name)) {
      const message = 'no rule with this backend has retry, so there is nothing to limit; remove it, or add retry';
      warn('ineffective-policy', [...at, 'maxRetries'], message);
    }
    if (breaker.highPriority !== undefined && !important.has(backend.name)) {
      const message = 'no rule with this backend has priority: high; remove it, or give a rule that priority';
      warn('ineffective-policy', [...at, 'highPriority'], message, 'key');
    }
  }
}

function warnOfHealthCheck(check: unknown, path: Path, warn: Warn): void {
  if (!isMapping(check)) return;
  const intervalMs = durationMs(check.interval);
  const timeoutMs = durationMs(check.timeout);
  if (timeoutMs <= intervalMs) return;
  const message = `a check may take longer (${timeoutMs} ms) than the interval (${intervalMs} ms), so that an endpoint that hangs is noticed late; make timeout shorter`;
  warn('timeout-nesting', [...path, 'timeout'], message);
}

function warnOfOutliers(written: Mapping, backend: BackendConfig, path: Path, warn: Warn): void {
  const detection = written.outlierDetection;
  if (!isMapping(detection)) return;
  const at = [...path, 'outlierDetection'];
  const count = endpointCount(backend);
  if (count === 1) {
    const message = `backend ${JSON.stringify(backend.name)} has one endpoint, and nobody takes its place when it is ejected; remove it, or add endpoints`;
    warn('single-endpoint', at, message, 'key');
    return;
  }
  for (const key of ['successRate', 'failurePercentage']) {
    const rate = detection[key];
    if (!isMapping(rate) || count === undefined || Number(rate.minimumHosts) <= count) continue;
    const message = `the backend has ${count} endpoints, so that this never ejects one; lower minimumHosts`;
    warn('impossible-threshold', [...at, key, 'minimumHosts'], message);
  }
  const panic = isMapping(written.loadBalancer) ? written.loadBalancer.panicThreshold : undefined;
  if (detection.maxEjectionPercent === 100 && panic === 0) {
    const message =
      'all endpoints may be ejected at a time, and with panicThreshold 0 every request then gets 503; lower one, or raise the other';
    warn('impossible-threshold', [...at, 'maxEjectionPercent'], message);
  }
}

function warnOfBalancer(balancer: unknown, backend: BackendConfig, path: Path, warn: Warn): void {
  if (!isMapping(balancer)) return;
  const { policy, panicThreshold, hashOn, zoneAware } = balancer;
  const count = endpointCount(backend);
  if (panicThreshold === 100) {
    const message =
      'with one endpoint unusable, all are used whatever their health, so that health checks and ejections have no effect; lower it';
    warn('impossible-threshold', [...path, 'panicThreshold'], message);
  }
  if (count === 1) {
    if (policy === 'RoundRobin') return;
    const message = `backend ${JSON.stringify(backend.name)} has one endpoint, which gets every request whatever the policy; remove it, or add endpoints`;
    warn('single-endpoint', [...path, 'policy'], message);
    return;
  }
  if ((policy === 'RingHash' || policy === 'Maglev') && Array.isArray(hashOn) && hashOn.length === 0) {
    const message = `without hashOn no request has a key, and ${policy} chooses at random; add hashOn, or take another policy`;
    warn('ineffective-policy', [...path, 'policy'], message);
  }
  if (!isMapping(zoneAware) || count === undefined) return;
  if (Number(zoneAware.minEndpoints) > count) {
    const message = `the backend has ${count} endpoints, so that zones never matter; lower minEndpoints`;
    warn('impossible-threshold', [...path, 'zoneAware', 'minEndpoints'], message);
  } else if (backend.endpoints.every(({ policy: { place } }) => place.zone === '')) {
    warn('ineffective-policy', [...path, 'zoneAware'], 'no endpoint says its zone; add zone to the endpoints', 'key');
  }
}

function durationMs(value: unknown): number {
  return value === undefined ? 0 : (parseDurationMs(String(value)) ?? 0);
}
