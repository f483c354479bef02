// Checks of retries and circuit breakers that look at more than one key.
// Control thread. A part of semantics.ts, with its terms: nothing is taken for granted about shapes.

import { describeValue } from './errors.ts';
import { isMapping, items, type Mapping, mappings, type Report, refuse, unique } from './semantics-walk.ts';
import { parseDurationMs } from './units.ts';
import type { Path } from './yaml.ts';

/** Reports contradictions in retries and circuit breakers. */
export function checkRetries(root: Mapping, report: Report): void {
  for (const [route, path] of mappings(root.routes, ['routes'])) {
    for (const [rule, rulePath] of mappings(route.rules, [...path, 'rules'])) {
      if (isMapping(rule.hedge)) checkHedge(rule, rule.hedge, [...rulePath, 'hedge'], report);
      if (isMapping(rule.retry)) checkRetry(rule, rule.retry, [...rulePath, 'retry'], report);
    }
  }
  for (const [backend, path] of mappings(root.backends, ['backends'])) {
    if (isMapping(backend.circuitBreaker)) checkBreaker(backend.circuitBreaker, [...path, 'circuitBreaker'], report);
  }
}

function checkRetry(rule: Mapping, retry: Mapping, path: Path, report: Report): void {
  const backoffMs = durationOf(retry.backoff);
  const maxMs = durationOf(retry.maxBackoff);
  if (backoffMs !== undefined && maxMs !== undefined && maxMs < backoffMs) {
    const problem = `${describeValue(retry.maxBackoff)} is shorter than backoff`;
    refuse(report, [...path, 'maxBackoff'], problem, `at least ${describeValue(retry.backoff)}`);
  }
  if (retry.retryAfter === false && retry.maxRetryAfter !== undefined) {
    refuse(report, [...path, 'maxRetryAfter'], 'has no meaning with retryAfter: false', undefined, undefined, 'key');
  }
  const seen = new Map<string, Path>();
  for (const [condition, at] of items(retry.conditions, [...path, 'conditions'])) {
    unique(seen, condition, at, 'the condition', 'each condition once', report);
    const hasCodes = Array.isArray(retry.codes) && retry.codes.length > 0;
    if (condition === 'retriable-status-codes' && !hasCodes) {
      refuse(report, at, '"retriable-status-codes" needs codes', 'codes: [503], for example');
    }
  }
  const timeouts = isMapping(rule.timeouts) ? rule.timeouts : {};
  const requestMs = durationOf(timeouts.request) ?? 0;
  if (requestMs > 0 && backoffMs !== undefined && backoffMs >= requestMs * 2) {
    const problem = `${describeValue(retry.backoff)} is a wait that timeouts.request (${describeValue(timeouts.request)}) hardly ever leaves time for`;
    refuse(report, [...path, 'backoff'], problem, 'less than timeouts.request');
  }
}

function checkHedge(rule: Mapping, hedge: Mapping, path: Path, report: Report): void {
  const { delay, quantile } = hedge;
  if (delay === undefined && quantile === undefined) {
    refuse(report, path, 'does not say when the second attempt is sent', 'delay or quantile', undefined, 'key');
  }
  if (delay !== undefined && quantile !== undefined) {
    refuse(report, [...path, 'quantile'], 'contradicts delay', 'one of the two', undefined, 'key');
  }
  if (delay !== undefined && hedge.minDelay !== undefined) {
    refuse(report, [...path, 'minDelay'], 'has no meaning with delay', 'quantile, or no minDelay', undefined, 'key');
  }
  if (rule.sessionPersistence !== undefined) {
    const problem = 'sends requests of a session to another endpoint than sessionPersistence does';
    refuse(report, path, problem, 'one of the two', undefined, 'key');
  }
  const timeouts = isMapping(rule.timeouts) ? rule.timeouts : {};
  for (const name of ['request', 'backendRequest']) {
    const endMs = durationOf(timeouts[name]) ?? 0;
    for (const key of ['delay', 'minDelay']) {
      const waitMs = durationOf(hedge[key]);
      if (waitMs === undefined || endMs === 0 || waitMs < endMs) continue;
      const problem = `${describeValue(hedge[key])} is when timeouts.${name} (${describeValue(timeouts[name])}) has ended the attempt`;
      refuse(report, [...path, key], problem, `less than timeouts.${name}`);
    }
  }
}

function checkBreaker(breaker: Mapping, path: Path, report: Report): void {
  const limits = ['maxConnections', 'maxPendingRequests', 'maxRequests', 'maxRetries'];
  const high = isMapping(breaker.highPriority) ? breaker.highPriority : {};
  if (!limits.some((limit) => breaker[limit] !== undefined || high[limit] !== undefined)) {
    refuse(report, path, 'sets no limit', `one of ${limits.join(', ')}`, undefined, 'key');
  }
}

function durationOf(value: unknown): number | undefined {
  return typeof value === 'string' || value === 0 ? parseDurationMs(String(value)) : undefined;
}
