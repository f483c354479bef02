// What a run has of mirrors, injected faults, rate limits and outlier detection: drawn by seed alone and laid over
// plans that were drawn without, so that all else of a seed stays as it is.

import type { ClientPlan } from './plan.ts';
import type { Random } from './random.ts';

/** How the server behaves that gets the mirrored requests. Nobody may notice, whatever it does. */
export type ShadowManner = 'good' | 'refuses' | 'silent' | 'resets' | 'garbage' | 'dribbles' | 'all';

/** A fault for requests with the field `x-fault`. */
export interface FaultPlan {
  /** 0: no delay. */
  delayMs: number;
  /** 0: no abort. */
  status: number;
}

/** A rate limit of both routes, each of which counts for itself; times in milliseconds. */
export interface LimitPlan {
  name: string;
  requests: number;
  periodMs: number;
  burst: number;
  /** Requests are counted by the field `x-key`. */
  keyed: boolean;
}

/** Outlier detection of both backends. */
export interface OutlierPlan {
  consecutive5xx: number;
  baseEjectionMs: number;
  maxEjectionMs: number;
  /** Whether endpoints return by steps. */
  gradual: boolean;
}

/** The features of a run. */
export interface Features {
  mirror: { manner: ShadowManner; bodyBytesMax: number } | undefined;
  /** By backend. */
  faults: Readonly<Record<string, FaultPlan>> | undefined;
  limits: readonly LimitPlan[];
  outliers: OutlierPlan | undefined;
}

/** Keeps what is drawn here away from the seeds of everything else. */
const FEATURE_SEEDS = 2 ** 34;

/** Seed of the source that features are drawn from. */
export function featureSeed(seed: number): number {
  return seed + FEATURE_SEEDS;
}

/** Draws the features of a run. */
export function drawFeatures(random: Random): Features {
  const manners: ShadowManner[] = ['good', 'good', 'refuses', 'silent', 'resets', 'garbage', 'dribbles', 'all'];
  const mirror = { manner: random.pick(manners), bodyBytesMax: random.pick([0, 1000, 20_000]) };
  const faults = { alpha: drawFault(random), beta: drawFault(random) };
  const limits = drawLimits(random);
  const outliers = {
    consecutive5xx: random.pick([1, 2, 2, 3]),
    baseEjectionMs: random.pick([50, 300, 1500]),
    maxEjectionMs: 3000,
    gradual: random.chance(0.5),
  };
  return {
    mirror: random.chance(0.3) ? mirror : undefined,
    faults: random.chance(0.3) ? faults : undefined,
    limits: random.chance(0.3) ? limits : [],
    outliers: random.chance(0.35) ? outliers : undefined,
  };
}

function drawFault(random: Random): FaultPlan {
  const delayMs = random.pick([0, 1, 20, 700]);
  return { delayMs, status: delayMs === 0 || random.chance(0.6) ? random.pick([400, 418, 429, 500, 503]) : 0 };
}

function drawLimits(random: Random): LimitPlan[] {
  const wide = { requests: random.int(1, 8), periodMs: 2000, burst: random.int(2, 6), keyed: true };
  const narrow = { requests: random.int(1, 3), periodMs: random.pick([50, 500, 20_000]), burst: random.int(1, 3) };
  const limits = [
    { name: 'wide', ...wide },
    { name: 'narrow', ...narrow, keyed: false },
  ];
  return random.pick([limits, limits.slice(1), limits.slice(0, 1), limits]);
}

/** Marks the requests that faults are for, and gives all of them keys. */
export function markRequests(random: Random, features: Features, clients: readonly ClientPlan[]): void {
  for (const { requests } of clients) {
    for (const plan of requests) {
      if (features.faults !== undefined && plan.malformed === undefined) plan.faulted = random.chance(0.35);
      if (features.limits.length > 0 && plan.malformed === undefined) plan.key = random.pick(['a', 'a', 'b']);
    }
  }
}

/** What the features put into a rule that leads to `backend`, as members of a YAML mapping. */
export function ruleText({ mirror, faults, limits }: Features, backend: string): string[] {
  const filters: string[] = [];
  if (mirror !== undefined) {
    const options = `backendRef: {name: shadow}, bodyBuffer: ${mirror.bodyBytesMax}, timeout: 5s`;
    filters.push(`{type: RequestMirror, requestMirror: {${options}}}`);
  }
  const fault = faults?.[backend];
  if (fault !== undefined) {
    const parts = ['headers: [{name: x-fault, value: "yes"}]'];
    if (fault.delayMs > 0) parts.push(`delay: {duration: ${fault.delayMs}ms, percent: 100}`);
    if (fault.status > 0) parts.push(`abort: {statusCode: ${fault.status}, percent: 100}`);
    filters.push(`{type: FaultInjection, faultInjection: {${parts.join(', ')}}}`);
  }
  const members: string[] = [];
  if (filters.length > 0) members.push(`filters: [${filters.join(', ')}]`);
  if (limits.length > 0) {
    const texts = limits.map(({ name, requests, periodMs, burst, keyed }) => {
      const key = keyed ? ', key: [{header: x-key}], maxKeys: 64' : '';
      return `{name: ${backend}-${name}, requests: ${requests}, period: ${periodMs}ms, burst: ${burst}${key}}`;
    });
    members.push(`rateLimits: [${texts.join(', ')}]`);
  }
  return members;
}

/** What the features put into a backend. */
export function backendText({ outliers }: Features): string {
  if (outliers === undefined) return '';
  const { consecutive5xx, baseEjectionMs, maxEjectionMs, gradual } = outliers;
  const ramp = gradual ? 'ramp: [30, 100], rampStep: 200ms' : 'ramp: [100]';
  // Endpoints that are ejected get nothing, even if there is no other.
  return `, loadBalancer: {panicThreshold: 0}, outlierDetection: {consecutive5xx: ${consecutive5xx}, interval: 1s, baseEjectionTime: ${baseEjectionMs}ms, maxEjectionTime: ${maxEjectionMs}ms, maxEjectionPercent: 50, ${ramp}}`;
}
