// The retry budget of a backend: further attempts are at most a share of its recent requests, or a few a second.
// Without it, a backend that fails under its load would get a multiple of that load. Hedges have a share of
// their own.
//
// Node-wide, in words of the backend's slot: requests and retries of the present period and of the one
// before, whose share in the last PERIOD_MS is taken to be even (a sliding window of two buckets).
// Whoever meets the end of a period first moves the counts on; a count that is added meanwhile may fall
// into either. Hot module: no allocation.

import type { RetryBudgetSettings } from '../lb/attempt-settings.ts';
import { BackendWord, type NodeState } from '../lb/node-state.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { BUDGET_PERIOD, BUDGET_REQUESTS, BUDGET_RETRIES, BUDGET_REQUESTS_BEFORE, BUDGET_RETRIES_BEFORE } = BackendWord;
const { BUDGET_HEDGES, BUDGET_HEDGES_BEFORE } = BackendWord;

/** Time that the budget looks back. */
export const BUDGET_PERIOD_MS = 10_000;

/** Counts a request that may be tried again. */
export function countRequest(node: NodeState, backendSlot: number, nowMs: number): void {
  const at = node.backendAt(backendSlot);
  moveOn(node, at, nowMs);
  Atomics.add(node.words, at + BUDGET_REQUESTS, 1);
}

/** Takes one further attempt out of the budget, if there is one left. */
export function takeRetry(node: NodeState, backendSlot: number, budget: RetryBudgetSettings, nowMs: number): boolean {
  const { words } = node;
  const at = node.backendAt(backendSlot);
  moveOn(node, at, nowMs);
  const beforeShare = 1 - (nowMs % BUDGET_PERIOD_MS) / BUDGET_PERIOD_MS;
  const requests = words[at + BUDGET_REQUESTS] + words[at + BUDGET_REQUESTS_BEFORE] * beforeShare;
  const allowed = (requests * budget.percent) / 100 + (budget.minPerSecond * BUDGET_PERIOD_MS) / 1000;
  const retriesBefore = words[at + BUDGET_RETRIES_BEFORE] * beforeShare;
  // Taken first and given back if it was one too many, so that all workers together keep to it.
  const taken = Atomics.add(words, at + BUDGET_RETRIES, 1) + 1;
  if (taken + retriesBefore <= allowed) return true;
  Atomics.sub(words, at + BUDGET_RETRIES, 1);
  return false;
}

/** Takes one second attempt out of what hedges may have, `percent` of the requests but at least one in a period. */
export function takeHedge(node: NodeState, backendSlot: number, percent: number, nowMs: number): boolean {
  const { words } = node;
  const at = node.backendAt(backendSlot);
  moveOn(node, at, nowMs);
  const beforeShare = 1 - (nowMs % BUDGET_PERIOD_MS) / BUDGET_PERIOD_MS;
  const requests = words[at + BUDGET_REQUESTS] + words[at + BUDGET_REQUESTS_BEFORE] * beforeShare;
  const before = words[at + BUDGET_HEDGES_BEFORE] * beforeShare;
  const taken = Atomics.add(words, at + BUDGET_HEDGES, 1) + 1;
  if (taken + before <= Math.max(1, (requests * percent) / 100)) return true;
  Atomics.sub(words, at + BUDGET_HEDGES, 1);
  return false;
}

function moveOn(node: NodeState, at: number, nowMs: number): void {
  const { words } = node;
  const period = Math.floor(nowMs / BUDGET_PERIOD_MS) | 0;
  const known = Atomics.load(words, at + BUDGET_PERIOD);
  if (known === period) return;
  // Clocks of threads are read per batch: one that is a little behind must not turn the counts back.
  if (((period - known) | 0) < 0) return;
  if (Atomics.compareExchange(words, at + BUDGET_PERIOD, known, period) !== known) return;
  const isNext = ((known + 1) | 0) === period;
  const requests = Atomics.exchange(words, at + BUDGET_REQUESTS, 0);
  const retries = Atomics.exchange(words, at + BUDGET_RETRIES, 0);
  const hedges = Atomics.exchange(words, at + BUDGET_HEDGES, 0);
  Atomics.store(words, at + BUDGET_HEDGES_BEFORE, isNext ? hedges : 0);
  Atomics.store(words, at + BUDGET_REQUESTS_BEFORE, isNext ? requests : 0);
  Atomics.store(words, at + BUDGET_RETRIES_BEFORE, isNext ? retries : 0);
}
