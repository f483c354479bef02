// Endpoints to which no connection could be made, for policies that go by the requests in progress.
//
// An endpoint that refuses connections never has any in progress: LeastRequest would send it most of all requests. So
// the worker whose attempt has found no connection notes that in the node state, and all balancers leave the endpoint
// out for a short while, as long as there is another one. Health is another matter: the endpoint is not ejected, its weight counts
// for panic and priorities, and where all are noted, all are used.
//
//   FAILURE --> left out for FIRST_MS --> used --> FAILURE soon --> twice as long, up to MOST_MS
//                                              \-> a while in peace --> forgotten
//
// Nothing is looked at for a pick: views (balancer-view.ts) are made anew when GENERATION says so and when a time is over.
// Hot module: no allocation. Times in words are whole milliseconds of the monotonic clock, cut to 32 bits.

import { EndpointWord, type NodeState } from './node-state.ts';
import type { BalancerSettings } from './settings.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { CONNECT_FAILED_AT_MS, LEFT_OUT_FOR_MS } = EndpointWord;

/** Time for which an endpoint is left out after a first failure. */
export const LEFT_OUT_FIRST_MS = 1000;

/** Longest time, after failures that follow one another. */
export const LEFT_OUT_MOST_MS = 16_000;

/** Whether a policy prefers endpoints that fail at once, unless they are left out. */
export function fallsForRefusals(settings: BalancerSettings): boolean {
  return settings.policy === 'LeastRequest';
}

/** No connection to an endpoint could be made. */
export function noteConnectFailure(node: NodeState, backendSlot: number, endpointSlot: number, nowMs: number): void {
  const { words } = node;
  const at = node.endpointAt(endpointSlot);
  const now = nowMs | 0;
  const lastForMs = Atomics.load(words, at + LEFT_OUT_FOR_MS);
  const agoMs = (now - Atomics.load(words, at + CONNECT_FAILED_AT_MS)) | 0;
  let forMs = LEFT_OUT_FIRST_MS;
  if (lastForMs > 0 && agoMs >= 0) {
    // It is left out already; this attempt was under way, or had no other endpoint to go to.
    if (agoMs < lastForMs) return;
    // As long as that in peace, and the past is forgotten.
    if (agoMs < 2 * lastForMs) forMs = Math.min(2 * lastForMs, LEFT_OUT_MOST_MS);
  }
  // The time first: who looks in between sees a failure of now with the time of before.
  Atomics.store(words, at + CONNECT_FAILED_AT_MS, now);
  Atomics.store(words, at + LEFT_OUT_FOR_MS, forMs);
  node.changed(backendSlot);
}

/** For how many milliseconds more an endpoint, whose words begin at `at`, is left out; 0: it is not. */
export function leftOutMs(words: Int32Array, at: number, nowMs: number): number {
  const forMs = words[at + LEFT_OUT_FOR_MS]!;
  if (forMs === 0) return 0;
  const agoMs = ((nowMs | 0) - words[at + CONNECT_FAILED_AT_MS]!) | 0;
  // Another worker's clock may be a little ahead; a stamp from the far future is one from long ago.
  if (agoMs < -LEFT_OUT_MOST_MS) return 0;
  return Math.max(0, forMs - Math.max(0, agoMs));
}
