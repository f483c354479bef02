// The deadlines of an exchange: one timer serves for all of them, and is set to the one that comes first.
// Hot module: no allocation, exception, promise, closure or log line.

import type { Exchange } from './exchange.ts';

/** Milliseconds until the first deadline of an exchange that has just made progress: a whole number. */
export function nextDeadlineMs(exchange: Exchange, nowMs: number): number {
  const { policy } = exchange;
  let delayMs =
    policy !== null && policy.streamIdleTimeoutMs > 0
      ? policy.streamIdleTimeoutMs
      : exchange.runtime!.http.streamIdleTimeoutMs;
  if (exchange.resumeMs > 0) delayMs = wholeMs(exchange.resumeMs - nowMs);
  if (exchange.pendingDeadlineMs > 0) delayMs = Math.min(delayMs, wholeMs(exchange.pendingDeadlineMs - nowMs));
  if (exchange.requestDeadlineMs > 0) delayMs = Math.min(delayMs, wholeMs(exchange.requestDeadlineMs - nowMs));
  if (exchange.attemptDeadlineMs > 0) delayMs = Math.min(delayMs, wholeMs(exchange.attemptDeadlineMs - nowMs));
  if (exchange.hedgeAtMs > 0) delayMs = Math.min(delayMs, wholeMs(exchange.hedgeAtMs - nowMs));
  return delayMs;
}

/** Whether a deadline that ends the exchange, or its attempt, has come. */
export function isDue(exchange: Exchange, nowMs: number): boolean {
  const { requestDeadlineMs, attemptDeadlineMs, pendingDeadlineMs } = exchange;
  if (requestDeadlineMs > 0 && requestDeadlineMs <= nowMs) return true;
  if (attemptDeadlineMs > 0 && attemptDeadlineMs <= nowMs) return true;
  return pendingDeadlineMs > 0 && pendingDeadlineMs <= nowMs;
}

/** Whole milliseconds until a deadline, never too few. */
function wholeMs(ms: number): number {
  return ms <= 0 ? 0 : Math.ceil(ms);
}
