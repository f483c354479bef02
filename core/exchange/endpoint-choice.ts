// Which endpoint a request goes to: its session's, the one its key leads to, or what the balancer says.
// Owned by one worker. Hot module: no allocation, exception, promise, closure or log line.

import type { RequestHead } from '../http1/message.ts';
import { PickFailure } from '../lb/balancer.ts';
import { Counter } from '../telemetry/metrics.ts';
import type { ProxyContext } from './context.ts';
import type { Exchange } from './exchange.ts';
import { readHashKey } from './hash-key.ts';
import { Detail } from './reasons.ts';
import { ResponseLines } from './response-lines.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { BALANCER_PANIC_PICKS } = Counter;
const { AFFINITY } = ResponseLines;
const { SUBSET_EMPTY, UNUSABLE } = PickFailure;

/**
 * Chooses an endpoint of `exchange.backend` for a request whose head is at hand (`head`; null: a connection that is
 * passed on unread). `exchange.endpoint` is -1 when there is none.
 */
export function chooseEndpoint(context: ProxyContext, exchange: Exchange, head: RequestHead | null): void {
  const { hashKeys } = exchange.runtime!.backends[exchange.backend];
  if (hashKeys !== null) {
    readHashKey(context, exchange, hashKeys, head);
    if (exchange.affinityLow !== 0) exchange.responseLines |= AFFINITY;
  }
  pickEndpoint(context, exchange);
}

/** Chooses anew for a further attempt: another one than `exchange.avoidEndpoint` where there is one. */
export function pickEndpoint(context: ProxyContext, exchange: Exchange): void {
  const { balancer, destinations } = exchange.runtime!.backends[exchange.backend];
  if (destinations !== null) {
    if (destinations.isFull) context.mesh.makeRoom(destinations);
    exchange.endpoint = destinations.endpointOf(exchange.downstream!.destination);
    return;
  }
  exchange.endpoint = balancer.pick(exchange);
  if (balancer.inPanic) context.counters[BALANCER_PANIC_PICKS]++;
}

/** Why there is no endpoint for an exchange whose backend is chosen (Detail). */
export function noEndpointDetail(exchange: Exchange): number {
  if (exchange.backend < 0) return Detail.NO_ENDPOINTS;
  switch (exchange.runtime!.backends[exchange.backend].balancer.failure(exchange)) {
    case UNUSABLE:
      return Detail.NO_USABLE_ENDPOINTS;
    case SUBSET_EMPTY:
      return Detail.SUBSET_EMPTY;
    default:
      return Detail.NO_ENDPOINTS;
  }
}
