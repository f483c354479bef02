// Adaptive concurrency on the packet path: lets an attempt at a backend begin or not, and samples how long
// answers take. The limit is the control thread's (gateway/adaptive-concurrency.ts); it and the count of attempts in
// progress are words of the node state, so that it holds for all workers together.
// Owned by one worker. Hot module: no allocation, exception, promise, closure or log line.

import { Method } from '../http1/message.ts';
import { addLatency } from '../lb/latency-samples.ts';
import { BackendWord } from '../lb/node-state.ts';
import type { Exchange } from './exchange.ts';

const { ADAPTIVE_ACTIVE, ADAPTIVE_LIMIT, ADAPTIVE_MEASURING_MS, ADAPTIVE_REFUSED } = BackendWord;
const { CONNECT } = Method;

/** Whether an attempt at the exchange's backend, which has adaptive concurrency, may begin; it is counted then. */
export function admitAdaptive(exchange: Exchange): boolean {
  // A tunnel says nothing about the speed of answers, and may last for days.
  if (exchange.upgradeRequested || exchange.method === CONNECT) return true;
  const { node, backends } = exchange.runtime!;
  const at = node.backendAt(backends[exchange.backend].settings.slot);
  const limit = Atomics.load(node.words, at + ADAPTIVE_LIMIT);
  const before = node.add(at + ADAPTIVE_ACTIVE, 1);
  // 0: the control thread has not begun to watch it.
  if (limit > 0 && before >= limit) {
    node.add(at + ADAPTIVE_ACTIVE, -1);
    Atomics.add(node.words, at + ADAPTIVE_REFUSED, 1);
    return false;
  }
  exchange.adaptiveHeld = true;
  return true;
}

/** The attempt that `admitAdaptive` has counted is over. */
export function releaseAdaptive(exchange: Exchange): void {
  exchange.adaptiveHeld = false;
  const { node, backends } = exchange.runtime!;
  node.add(node.backendAt(backends[exchange.backend].settings.slot) + ADAPTIVE_ACTIVE, -1);
}

/** Samples the answer to an attempt that `admitAdaptive` has counted. */
export function sampleAdaptive(exchange: Exchange, samples: Int32Array, nowMs: number): void {
  const { node, backends } = exchange.runtime!;
  const { slot } = backends[exchange.backend].settings;
  const measuringMs = Atomics.load(node.words, node.backendAt(slot) + ADAPTIVE_MEASURING_MS);
  // While the least latency is measured, requests from before, under a higher limit, do not count.
  if (measuringMs !== 0 && (exchange.attemptStartMs | 0) - measuringMs < 0) return;
  addLatency(samples, slot, ((nowMs - exchange.attemptStartMs) * 1000) | 0);
}
