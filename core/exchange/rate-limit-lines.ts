// What responses say of rate limits: RateLimit-Policy and RateLimit, and Retry-After of those that refuse.
// Owned by one worker. Hot module: no allocation.
// Spec: draft-ietf-httpapi-ratelimit-headers-10 (structured fields), RFC 9110 §10.2.3.

import { putDecimal, putLineEnd, putText, Text } from '../io/bytes.ts';
import type { Reactor } from '../io/reactor.ts';
import type { Exchange } from './exchange.ts';

const rateLimitName = new Text('ratelimit: ');
const secondsParameter = new Text(';t=');
const separator = new Text(', ');
const retryAfterName = new Text('retry-after: ');

/** Writes the lines RateLimit-Policy and RateLimit of an exchange whose limits are shown. Returns the offset after them. */
export function putRateLimitLines(reactor: Reactor, exchange: Exchange, at: number): number {
  const { memory, view } = reactor;
  const { all, policyLine } = exchange.policy!.limits!;
  const outcome = exchange.limits!;
  const start = putText(view, at, policyLine);
  let dest = putText(view, start, rateLimitName);
  const first = dest;
  for (let i = 0; i < outcome.count; i++) {
    // Those after the one that refused have not been looked at.
    const { remaining, seconds } = outcome.each[i];
    if (!all[i].shown || remaining < 0) continue;
    if (dest > first) dest = putText(view, dest, separator);
    dest = putText(view, dest, all[i].itemStart);
    dest = putDecimal(memory, dest, remaining);
    dest = putText(view, dest, secondsParameter);
    dest = putDecimal(memory, dest, seconds);
  }
  return dest === first ? start : putLineEnd(view, dest);
}

/** Writes Retry-After, whole seconds. Returns the offset after it. */
export function putRetryAfterLine(reactor: Reactor, exchange: Exchange, at: number): number {
  const dest = putText(reactor.view, at, retryAfterName);
  return putLineEnd(reactor.view, putDecimal(reactor.memory, dest, exchange.retryAfterSeconds));
}
