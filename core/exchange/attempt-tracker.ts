// Keeps account of attempts at endpoints: load for balancing, and what health and limits are judged by.
//
// Told of the attempts at backends that need it (BackendRuntime.tracked), once each: began, answered
// (if it was), ended. Counts go to the node state, which all workers share.
// Owned by one worker. Hot module: no allocation, exception, promise, closure or log line.

import { EndpointWord } from '../lb/node-state.ts';
import type { Exchange } from './exchange.ts';

const { ACTIVE } = EndpointWord;

/** How an attempt ended. */
export const AttemptEnd = {
  /** The whole response has come. */
  COMPLETE: 0,
  /** It failed; the reason and detail that are given with it say how. */
  FAILED: 1,
  /** Nobody wants its answer any more: the client has left, or another attempt was faster. */
  CANCELLED: 2,
} as const;

export class AttemptTracker {
  /** An attempt begins; backend and endpoint are chosen. */
  began(exchange: Exchange): void {
    const runtime = exchange.runtime!;
    const slot = runtime.backends[exchange.backend]!.settings.endpoints[exchange.endpoint]!.slot;
    runtime.node.add(runtime.node.endpointAt(slot) + ACTIVE, 1);
  }

  /** The final response head is here, with this status. */
  answered(_exchange: Exchange, _status: number): void {}

  /** An attempt has ended (`end`: AttemptEnd); for a failed one with its Reason and Detail. */
  ended(exchange: Exchange, _end: number, _reason: number, _detail: number): void {
    const runtime = exchange.runtime!;
    const slot = runtime.backends[exchange.backend]!.settings.endpoints[exchange.endpoint]!.slot;
    runtime.node.add(runtime.node.endpointAt(slot) + ACTIVE, -1);
  }
}
