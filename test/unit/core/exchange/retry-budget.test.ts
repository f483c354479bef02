// The arithmetic of retry budgets, and that all workers draw on one.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BUDGET_PERIOD_MS, countRequest, takeRetry } from '../../../../core/exchange/retry-budget.ts';
import { createNodeState, NodeState } from '../../../../core/lb/node-state.ts';

const SLOT = 2;

function nodes(workers: number): NodeState[] {
  const state = createNodeState(workers, 4, 4);
  return Array.from({ length: workers }, (_, worker) => new NodeState(state, worker));
}

/** How many retries are allowed at a time, one after another. */
function taken(node: NodeState, percent: number, minPerSecond: number, nowMs: number): number {
  let count = 0;
  while (count < 10_000 && takeRetry(node, SLOT, { percent, minPerSecond }, nowMs)) count++;
  return count;
}

test('without requests only the minimum is allowed, for the whole window', () => {
  const [node] = nodes(1);
  assert.equal(taken(node!, 20, 3, 5), 30);
  assert.equal(taken(node!, 20, 0, 5), 0);
});

test('a share of the requests of the window is allowed on top', () => {
  const [node] = nodes(1);
  for (let i = 0; i < 500; i++) countRequest(node!, SLOT, 100 + i);
  assert.equal(taken(node!, 20, 3, 700), 130);
  assert.equal(taken(node!, 20, 3, 9000), 0);
});

test('requests and retries of the period before count with the share of it that is still in the window', () => {
  const [node] = nodes(1);
  for (let i = 0; i < 1000; i++) countRequest(node!, SLOT, 10);
  assert.equal(taken(node!, 20, 0, 10), 200);
  // Three quarters of the requests (750) allow 150, as many as three quarters of the retries have used.
  assert.equal(taken(node!, 20, 0, BUDGET_PERIOD_MS * 1.25), 0);
  for (let i = 0; i < 100; i++) countRequest(node!, SLOT, BUDGET_PERIOD_MS * 1.25);
  assert.equal(taken(node!, 20, 0, BUDGET_PERIOD_MS * 1.25), 20);
});

test('what is older than two periods is forgotten', () => {
  const [node] = nodes(1);
  for (let i = 0; i < 1000; i++) countRequest(node!, SLOT, 10);
  assert.equal(taken(node!, 20, 1, 3 * BUDGET_PERIOD_MS), 10);
});

test('all workers draw on one budget, and backends have their own', () => {
  const [first, second] = nodes(2);
  for (let i = 0; i < 100; i++) countRequest(i % 2 === 0 ? first! : second!, SLOT, 20);
  assert.equal(taken(first!, 20, 0, 30), 20);
  assert.equal(taken(second!, 20, 0, 30), 0);
  assert.equal(takeRetry(second!, SLOT + 1, { percent: 20, minPerSecond: 1 }, 30), true);
});

test('a worker whose clock is a little behind does not turn the counts back', () => {
  const [first, second] = nodes(2);
  for (let i = 0; i < 100; i++) countRequest(first!, SLOT, BUDGET_PERIOD_MS + 1);
  countRequest(second!, SLOT, BUDGET_PERIOD_MS - 1);
  assert.equal(taken(first!, 20, 0, BUDGET_PERIOD_MS + 2), 20);
});
