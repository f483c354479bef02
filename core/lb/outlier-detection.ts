// Passive health of endpoints: counts what requests meet, and ejects the endpoint that fails.
//
// Counts are words of the node state, one record per endpoint for all routes and workers of the node.
// The worker that counts the error that is one too many ejects at once, and wakes nobody: balancers see
// the new GENERATION with their next pick. The control thread ends ejections, lets endpoints return by
// steps, and ejects by rates (gateway/health/outlier-control.ts).
//
//   WITHHELD_PERMILLE   0 --ejected--> 1000 --time is over--> 1000 - first step --steps--> 0
//                                       ^--------any error---------/
//
// Hot module: no allocation. Invariant: whoever changes WITHHELD_PERMILLE does so by compare-and-swap, after it has
// written the time that belongs to the new value; EJECTED_TIMES grows last, when all figures are there.
// Semantics: Envoy's outlier detection; the gradual return is our own.

import { BackendWord, EndpointWord, type NodeState } from './node-state.ts';

const {
  DRAINING,
  WITHHELD_PERMILLE,
  CONSECUTIVE_5XX,
  CONSECUTIVE_GATEWAY_FAILURES,
  INTERVAL_REQUESTS,
  INTERVAL_FAILURES,
  EJECTIONS,
  EJECTED_AT_MS,
  EJECTION_CAUSE,
  EJECTION_FIGURE,
  EJECTED_TIMES,
  RAMPED_AT_MS,
} = EndpointWord;
const { EJECTED, EJECTIONS: EJECTIONS_BY_CAUSE } = BackendWord;

/** WITHHELD_PERMILLE of an ejected endpoint. */
export const ALL_WITHHELD = 1000;

/** Longest wait of one ejection for the others that happen in the same microsecond. */
const TRIES_MAX = 1000;

/** Outlier detection of a backend. Times in milliseconds, shares in percent. */
export interface OutlierSettings {
  /** Failed requests in a row that eject; 0: they do not. */
  consecutive5xx: number;
  /** Gateway failures in a row that eject; 0: they do not. */
  consecutiveGatewayFailures: number;
  /** Time over which rates are taken. */
  intervalMs: number;
  /** Time of a first ejection, and the longest of all. */
  baseEjectionMs: number;
  maxEjectionMs: number;
  /** Most endpoints of the backend that may be ejected at a time; one always may. */
  maxEjectionPercent: number;
  /** Null: success rates do not eject. */
  successRate: { minimumHosts: number; requestVolume: number; stdevFactor: number } | null;
  /** Null: failure percentages do not eject. */
  failurePercentage: { threshold: number; minimumHosts: number; requestVolume: number } | null;
  /** Shares of its weight by which an endpoint returns, rising, the last one 100. */
  ramp: number[];
  rampStepMs: number;
}

/** Why an endpoint was ejected. */
export const EjectionCause = {
  CONSECUTIVE_5XX: 0,
  CONSECUTIVE_GATEWAY_FAILURES: 1,
  SUCCESS_RATE: 2,
  FAILURE_PERCENTAGE: 3,
  /** It failed during its gradual return. */
  RETURN_FAILED: 4,
} as const;

/** Label values of the causes, by number. */
export const ejectionCauseNames: readonly string[] = Object.keys(EjectionCause).map((name) => name.toLowerCase());

/** How many causes there are. */
export const EJECTION_CAUSES = ejectionCauseNames.length;

/** Whether requests are counted for rates. */
function takesRates(settings: OutlierSettings): boolean {
  return settings.successRate !== null || settings.failurePercentage !== null;
}

/** WITHHELD_PERMILLE during a step of the gradual return. */
export function withheldAtStep(settings: OutlierSettings, step: number): number {
  return ALL_WITHHELD - settings.ramp[step] * 10;
}

/** An endpoint (slot `endpointSlot`) has answered a request as it should. */
export function noteSuccess(node: NodeState, settings: OutlierSettings, endpointSlot: number): void {
  const { words } = node;
  const at = node.endpointAt(endpointSlot);
  if (takesRates(settings)) Atomics.add(words, at + INTERVAL_REQUESTS, 1);
  // Looked at first: a store with every request would have all workers fight for the cache line.
  if (words[at + CONSECUTIVE_5XX] !== 0) Atomics.store(words, at + CONSECUTIVE_5XX, 0);
  if (words[at + CONSECUTIVE_GATEWAY_FAILURES] !== 0) Atomics.store(words, at + CONSECUTIVE_GATEWAY_FAILURES, 0);
}

/**
 * An endpoint of a backend with so many endpoints has failed a request. `isGatewayFailure`: it gave no
 * answer, or 502, 503 or 504. `isRequest`: the request has not been counted yet.
 */
export function noteFailure(
  node: NodeState,
  settings: OutlierSettings,
  backendSlot: number,
  endpointSlot: number,
  endpointCount: number,
  isGatewayFailure: boolean,
  isRequest: boolean,
  nowMs: number,
): void {
  const { words } = node;
  const at = node.endpointAt(endpointSlot);
  if (takesRates(settings)) {
    if (isRequest) Atomics.add(words, at + INTERVAL_REQUESTS, 1);
    Atomics.add(words, at + INTERVAL_FAILURES, 1);
  }
  const failures = Atomics.add(words, at + CONSECUTIVE_5XX, 1) + 1;
  let gatewayFailures = 0;
  if (isGatewayFailure) gatewayFailures = Atomics.add(words, at + CONSECUTIVE_GATEWAY_FAILURES, 1) + 1;
  else Atomics.store(words, at + CONSECUTIVE_GATEWAY_FAILURES, 0);
  const withheld = Atomics.load(words, at + WITHHELD_PERMILLE);
  if (withheld === ALL_WITHHELD) return;
  if (withheld > 0) {
    returnFailed(node, settings, backendSlot, endpointSlot, endpointCount, withheld, nowMs);
  } else if (settings.consecutive5xx > 0 && failures >= settings.consecutive5xx) {
    eject(node, settings, backendSlot, endpointSlot, endpointCount, 0, EjectionCause.CONSECUTIVE_5XX, failures, nowMs);
  } else if (settings.consecutiveGatewayFailures > 0 && gatewayFailures >= settings.consecutiveGatewayFailures) {
    eject(
      node,
      settings,
      backendSlot,
      endpointSlot,
      endpointCount,
      0,
      EjectionCause.CONSECUTIVE_GATEWAY_FAILURES,
      gatewayFailures,
      nowMs,
    );
  }
}

/**
 * Ejects an endpoint whose WITHHELD_PERMILLE is `withheld`, for a cause (EjectionCause) with its figure. False
 * when it must not be: too many are ejected already, it is leaving, or another thread was faster.
 */
export function eject(
  node: NodeState,
  settings: OutlierSettings,
  backendSlot: number,
  endpointSlot: number,
  endpointCount: number,
  withheld: number,
  cause: number,
  figure: number,
  nowMs: number,
): boolean {
  const { words } = node;
  const at = node.endpointAt(endpointSlot);
  const backendAt = node.backendAt(backendSlot);
  if (Atomics.load(words, at + DRAINING) !== 0) return false;
  if (!takePlace(words, backendAt + EJECTED, settings.maxEjectionPercent, endpointCount)) return false;
  Atomics.store(words, at + EJECTED_AT_MS, nowMs);
  if (Atomics.compareExchange(words, at + WITHHELD_PERMILLE, withheld, ALL_WITHHELD) !== withheld) {
    Atomics.sub(words, backendAt + EJECTED, 1);
    return false;
  }
  Atomics.store(words, at + EJECTION_CAUSE, cause);
  Atomics.store(words, at + EJECTION_FIGURE, figure);
  // No more than lead to the longest ejection, so that good behaviour counts soon.
  if (Atomics.load(words, at + EJECTIONS) * settings.baseEjectionMs < settings.maxEjectionMs) {
    Atomics.add(words, at + EJECTIONS, 1);
  }
  Atomics.add(words, at + EJECTED_TIMES, 1);
  Atomics.add(words, backendAt + EJECTIONS_BY_CAUSE + cause, 1);
  node.changed(backendSlot);
  return true;
}

/** Counts one more ejected endpoint, unless there are too many: one may always be ejected. */
function takePlace(words: Int32Array, at: number, maxPercent: number, endpointCount: number): boolean {
  for (let tries = 0; tries < TRIES_MAX; tries++) {
    const ejected = Atomics.load(words, at);
    if (ejected > 0 && (ejected + 1) * 100 > maxPercent * endpointCount) return false;
    if (Atomics.compareExchange(words, at, ejected, ejected + 1) === ejected) return true;
  }
  return false;
}

/** The first error during a gradual return ejects again; where that must not be, the return begins anew. */
function returnFailed(
  node: NodeState,
  settings: OutlierSettings,
  backendSlot: number,
  endpointSlot: number,
  endpointCount: number,
  withheld: number,
  nowMs: number,
): void {
  const share = ((ALL_WITHHELD - withheld) / 10) | 0;
  const cause = EjectionCause.RETURN_FAILED;
  if (eject(node, settings, backendSlot, endpointSlot, endpointCount, withheld, cause, share, nowMs)) return;
  const { words } = node;
  const at = node.endpointAt(endpointSlot);
  Atomics.store(words, at + RAMPED_AT_MS, nowMs);
  const first = withheldAtStep(settings, 0);
  if (withheld === first) return;
  if (Atomics.compareExchange(words, at + WITHHELD_PERMILLE, withheld, first) === withheld) node.changed(backendSlot);
}
