// Warnings about the timeouts, retries and filters of rules.
//
// Control thread. Reads the configuration as written with its defaults, without taking for granted that
// a feature is there.

import type { BackendConfig } from './config.ts';
import { isMapping, type Mapping } from './semantics-walk.ts';
import { parseDurationMs } from './units.ts';
import type { Judged, Warn } from './warnings.ts';
import type { Path } from './yaml.ts';

/** Requests that one request may become before it is worth a warning. */
const AMPLIFICATION_MAX = 3;

/** Share of retries in the requests of a backend, in percent, from which the budget hardly is one. */
const BUDGET_PERCENT_MAX = 50;

/** Methods that may be sent twice without harm (RFC 9110 §9.2.2). */
const safeMethods = ['GET', 'HEAD', 'OPTIONS', 'TRACE'];
const idempotentMethods = ['GET', 'HEAD', 'OPTIONS', 'TRACE', 'PUT', 'DELETE'];

/** Statuses of RPCs after which the server may have acted. */
const uncertainStatuses = ['cancelled', 'deadline-exceeded', 'internal'];

/** Default of `connectTimeout`: who has not written it is not told that it is too long. */
const CONNECT_TIMEOUT_DEFAULT_MS = 2000;

/** Reports rules whose parts do not fit together. */
export function warnOfRules({ config, input }: Judged, warn: Warn): void {
  const backends = new Map(config.backends.map((backend) => [backend.name, backend]));
  const budgets = new Map(input.backends.map((backend) => [backend.name, (backend as Mapping).retryBudget]));
  const validating = new Set(
    config.listeners.filter(({ tls }) => tls !== null && tls.clientValidation !== null).map(({ name }) => name),
  );
  for (const [index, route] of (input.routes as readonly Mapping[]).entries()) {
    if (route.kind !== 'HTTP') continue;
    const bound = (route.listeners as string[] | undefined) ?? config.listeners.map(({ name }) => name);
    const certificates = bound.some((name) => validating.has(name));
    for (const [number, rule] of (route.rules as Mapping[]).entries()) {
      const check = new RuleCheck(rule, ['routes', index, 'rules', number], backends, budgets, warn);
      check.timeouts();
      check.retries();
      check.hedging();
      check.copies();
      check.filters();
      check.subsets();
      if (!certificates) check.certificateMatches();
    }
  }
}

/** Checks of one rule. */
class RuleCheck {
  private readonly rule: Mapping;
  private readonly path: Path;
  private readonly known: Map<string, BackendConfig>;
  private readonly budgets: Map<string, unknown>;
  private readonly warn: Warn;
  /** Distinct backends of the rule. */
  private readonly backends: string[];
  private readonly allFilters: Mapping[];

  constructor(rule: Mapping, path: Path, known: Map<string, BackendConfig>, budgets: Map<string, unknown>, warn: Warn) {
    this.rule = rule;
    this.path = path;
    this.known = known;
    this.budgets = budgets;
    this.warn = warn;
    const refs = (rule.backendRefs as { name: string; weight?: number }[] | undefined) ?? [];
    this.backends = [...new Set(refs.filter(({ weight }) => weight !== 0).map(({ name }) => name))];
    this.allFilters = (rule.filters as Mapping[] | undefined) ?? [];
  }

  timeouts(): void {
    const { path } = this;
    const { requestMs, attemptMs } = this.limits();
    const limitMs = attemptMs > 0 ? attemptMs : requestMs;
    if (limitMs === 0) return;
    const key = attemptMs > 0 ? 'backendRequest' : 'request';
    for (const name of this.backends) {
      const { connectTimeoutMs } = this.known.get(name)!;
      if (connectTimeoutMs < limitMs || connectTimeoutMs === CONNECT_TIMEOUT_DEFAULT_MS) continue;
      const message = `connectTimeout of backend ${quoted(name)} (${connectTimeoutMs} ms) never runs out, because ${key} does so first; make connectTimeout shorter`;
      this.warn('timeout-nesting', [...path, 'timeouts', key], message);
    }
  }

  hedging(): void {
    const at = [...this.path, 'hedge'];
    if (!isMapping(this.rule.hedge)) return;
    if (this.backends.length === 0) {
      const message = 'the gateway itself answers the requests of this rule, so none is ever sent twice; remove it';
      this.warn('ineffective-policy', at, message, 'key');
    } else if (this.methods()?.every((method) => !safeMethods.includes(method))) {
      const message = 'no method of this rule is safe, so no request is ever sent twice; remove it';
      this.warn('ineffective-policy', at, message, 'key');
    }
  }

  retries(): void {
    const { rule, path } = this;
    const retry = rule.retry;
    if (!isMapping(retry)) return;
    const at = [...path, 'retry'];
    if (this.backends.length === 0) {
      const message = 'the gateway itself answers the requests of this rule, so nothing is ever tried again; remove it';
      this.warn('ineffective-policy', at, message, 'key');
      return;
    }
    const attempts = Number(retry.attempts);
    const { requestMs, attemptMs } = this.limits();
    const totalMs = attemptMs * (attempts + 1);
    if (requestMs > 0 && attemptMs > 0 && totalMs > requestMs) {
      const message = `${attempts + 1} attempts of backendRequest (${attemptMs} ms) take up to ${totalMs} ms, and timeouts.request ends them after ${requestMs} ms; shorten backendRequest, or allow fewer attempts`;
      this.warn('retry-time', [...at, 'attempts'], message);
    }
    if (requestMs > 0 && attemptMs === 0 && (retry.conditions as string[]).includes('reset')) {
      const message =
        'an attempt without an answer lasts until timeouts.request, when it is too late for another; set timeouts.backendRequest';
      this.warn('retry-time', at, message, 'key');
    }
    if (retry.retryUnsafe === true) {
      if (this.methods()?.every((method) => idempotentMethods.includes(method))) {
        const message = 'all methods of this rule may be sent again anyway, so this has no effect; remove it';
        this.warn('ineffective-policy', [...at, 'retryUnsafe'], message);
      } else {
        const message =
          'POST and PATCH are sent again although the backend may have acted on them, so they may take effect twice; do this only where requests carry a key by which the backend recognises them';
        this.warn('unsafe-retry', [...at, 'retryUnsafe'], message);
      }
    }
    for (const [index, condition] of (retry.conditions as string[]).entries()) {
      if (!uncertainStatuses.includes(condition)) continue;
      const message = `the server may have acted on an RPC that ends with ${condition}, and it is called again; leave it to clients that know whether that does harm`;
      this.warn('unsafe-retry', [...at, 'conditions', index], message);
    }
    for (const name of this.backends) {
      const budget = this.budgets.get(name);
      if (!isMapping(budget) || budget.percent !== 0 || budget.minPerSecond !== 0) continue;
      const message = `retryBudget of backend ${quoted(name)} allows no further attempt, so its requests are never tried again; raise the budget, or remove retry`;
      this.warn('ineffective-policy', at, message, 'key');
    }
  }

  /** Worst case of requests that one request becomes: attempts, and mirrors. */
  copies(): void {
    const { rule, path } = this;
    const retry = isMapping(rule.retry) ? rule.retry : undefined;
    const attempts = retry === undefined ? 0 : Number(retry.attempts);
    const mirrors = new Map<string, number>();
    for (const { requestMirror } of this.allFilters) {
      if (!isMapping(requestMirror) || !isMapping(requestMirror.backendRef) || mirrorShare(requestMirror) === 0)
        continue;
      const name = String(requestMirror.backendRef.name);
      mirrors.set(name, (mirrors.get(name) ?? 0) + 1);
    }
    for (const name of new Set([...this.backends, ...mirrors.keys()])) {
      const own = this.backends.includes(name) ? 1 + attempts : 0;
      const copies = mirrors.get(name) ?? 0;
      const total = own + copies;
      const budget = this.budgets.get(name);
      const percent = isMapping(budget) ? Number(budget.percent) : 0;
      const loose = own > 1 && attempts > 0 && percent >= BUDGET_PERCENT_MAX;
      // Reported already: such retries never happen.
      if (isMapping(budget) && percent === 0 && budget.minPerSecond === 0 && copies === 0) continue;
      if (total <= AMPLIFICATION_MAX && !(own > 0 && copies > 0) && !loose) continue;
      const parts: string[] = [];
      if (attempts > 0 && own > 0) parts.push(`${attempts} ${attempts === 1 ? 'retry' : 'retries'}`);
      if (copies > 0) parts.push(`${copies} ${copies === 1 ? 'mirror' : 'mirrors'}`);
      const bound =
        attempts > 0 && own > 0 && isMapping(budget)
          ? `; all together, retries add at most ${percent} % to its load, or ${budget.minPerSecond} per second`
          : '';
      const advice = copies > 0 && own > 0 ? 'mirror to another backend' : 'allow fewer, or a smaller retryBudget';
      const where = attempts > 0 && own > 0 ? [...path, 'retry', 'attempts'] : path;
      const message = `one request can become ${total} requests to backend ${quoted(name)} (${parts.join(', ')})${bound}; ${advice}`;
      this.warn('retry-amplification', where, message);
    }
  }

  filters(): void {
    const { path, rule } = this;
    const keys = this.limitKeys();
    for (const [index, filter] of this.allFilters.entries()) {
      const at = [...path, 'filters', index];
      const { requestMirror, faultInjection, requestHeaderModifier } = filter;
      if (isMapping(requestMirror) && mirrorShare(requestMirror) === 0) {
        const message = 'no request is mirrored; remove the filter, or give it a share';
        this.warn('ineffective-policy', [...at, 'requestMirror'], message, 'key');
      }
      if (isMapping(faultInjection)) this.faults(faultInjection, [...at, 'faultInjection']);
      if (!isMapping(requestHeaderModifier)) continue;
      for (const key of ['set', 'remove'] as const) {
        for (const [field, item] of ((requestHeaderModifier[key] as unknown[] | undefined) ?? []).entries()) {
          const name = (isMapping(item) ? String(item.name) : String(item)).toLowerCase();
          const what = keys.get(name);
          if (what === undefined) continue;
          const message = `${what} by ${name} goes by what the client sends, because it comes before this filter; a client can choose its key`;
          this.warn('ineffective-policy', [...at, 'requestHeaderModifier', key, field], message);
        }
      }
    }
    if (isMapping(rule.sessionPersistence) && this.backends.length > 0) {
      const single = this.backends.every((name) => endpointCount(this.known.get(name)!) === 1);
      if (single && this.backends.length === 1) {
        const message = `backend ${quoted(this.backends[0]!)} has one endpoint, to which all requests go anyway; remove it, or add endpoints`;
        this.warn('single-endpoint', [...path, 'sessionPersistence'], message, 'key');
      }
    }
  }

  /** Matches that ask for a certificate which no listener of the route asks clients for. */
  certificateMatches(): void {
    for (const [index, match] of ((this.rule.matches as Mapping[] | undefined) ?? []).entries()) {
      if (match.clientCertificate === undefined) continue;
      const message =
        'no listener of this route asks clients for a certificate, so this match never takes a request; add tls.clientValidation to the listener';
      this.warn('impossible-match', [...this.path, 'matches', index, 'clientCertificate'], message, 'key');
    }
  }

  /** Subsets that no endpoint is in. */
  subsets(): void {
    for (const [index, ref] of ((this.rule.backendRefs as Mapping[] | undefined) ?? []).entries()) {
      const { subset } = ref;
      const backend = this.known.get(String(ref.name))!;
      if (!isMapping(subset) || endpointCount(backend) === undefined) continue;
      const wanted = Object.entries(subset);
      const fits = backend.endpoints.some(({ policy }) => {
        const { labels } = policy.place;
        return wanted.every(([name, value]) => labels[name] === value);
      });
      if (fits) continue;
      const message = `no endpoint of backend ${quoted(backend.name)} has these labels, so that its requests get 503; correct the labels of one side`;
      this.warn('impossible-match', [...this.path, 'backendRefs', index, 'subset'], message);
    }
  }

  private faults(fault: Mapping, at: Path): void {
    const parts: string[] = [];
    for (const [key, what] of [
      ['abort', 'aborted'],
      ['delay', 'delayed'],
    ] as const) {
      const part = fault[key];
      if (isMapping(part) && part.percent !== 0) parts.push(`${part.percent} % of its requests are ${what}`);
    }
    if (parts.length === 0) {
      this.warn('ineffective-policy', at, 'no request is delayed or aborted; remove the filter', 'key');
      return;
    }
    const condition = Array.isArray(fault.headers) && fault.headers.length > 0;
    // A condition on a field is how tests ask for faults.
    if (condition) return;
    this.warn(
      'active-fault',
      at,
      `${parts.join(', and ')}, on purpose and for every client; remove the filter after the test, or give it headers`,
      'key',
    );
  }

  /** Fields by which limits and balancers tell requests apart: lower-case name, and what does so. */
  private limitKeys(): Map<string, string> {
    const keys = new Map<string, string>();
    for (const { name, key } of (this.rule.rateLimits as Mapping[] | undefined) ?? []) {
      for (const part of Array.isArray(key) ? key : []) {
        if (isMapping(part) && typeof part.header === 'string') {
          keys.set(part.header.toLowerCase(), `the rate limit ${quoted(String(name))}`);
        }
      }
    }
    return keys;
  }

  private limits(): { requestMs: number; attemptMs: number } {
    const timeouts = isMapping(this.rule.timeouts) ? this.rule.timeouts : {};
    return { requestMs: durationMs(timeouts.request), attemptMs: durationMs(timeouts.backendRequest) };
  }

  /** Methods that the rule takes; undefined: any. */
  private methods(): string[] | undefined {
    const methods = ((this.rule.matches as Mapping[] | undefined) ?? []).map(({ method }) => method);
    return methods.length > 0 && methods.every((method) => typeof method === 'string') ? methods : undefined;
  }
}

/** Number of endpoints of a backend; undefined where DNS or a file says it. */
export function endpointCount({ endpoints, endpointsFile }: BackendConfig): number | undefined {
  return endpointsFile === null && endpoints.every(({ isIp }) => isIp) ? endpoints.length : undefined;
}

/** Share of requests that a mirror gets, from 0. */
function mirrorShare({ percent, fraction }: Mapping): number {
  if (typeof percent === 'number') return percent;
  return isMapping(fraction) ? Number(fraction.numerator) : 100;
}

/** Milliseconds of a duration as written; 0 for none. */
function durationMs(value: unknown): number {
  return value === undefined ? 0 : (parseDurationMs(String(value)) ?? 0);
}

function quoted(name: string): string {
  return JSON.stringify(name);
}
