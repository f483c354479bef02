// Keeps account of attempts at endpoints: load for balancing, and what health and limits are judged by.
//
// Told of the attempts at backends that need it (BackendRuntime.tracked), once each: began, answered
// (if it was), ended. Counts go to the node state, which all workers share.
// Owned by one worker. Hot module: no allocation, exception, promise, closure or log line.

import type { Reactor } from '../io/reactor.ts';
import { noteConnectFailure } from '../lb/connect-failures.ts';
import { EndpointWord } from '../lb/node-state.ts';
import { observeFailure, observeLatency } from '../lb/peak-ewma.ts';
import { sampleAdaptive } from './adaptive-limit.ts';
import type { Exchange } from './exchange.ts';
import { isEndpointFailure, judgeAnswer, judgeFailure } from './outlier-judge.ts';
import { Reason } from './reasons.ts';

const { ACTIVE } = EndpointWord;
const { UPSTREAM_CONNECT_FAILURE } = Reason;

/** How an attempt ended. */
export const AttemptEnd = {
  /** The whole response has come. */
  COMPLETE: 0,
  /** It failed; the reason and detail that are given with it say how. */
  FAILED: 1,
  /** Nobody wants its answer any more: the client has left, or has another. */
  CANCELLED: 2,
  /** Another attempt was faster, and this one has had no answer yet. */
  OUTRUN: 3,
} as const;

/** What the tracker needs of a reactor. */
export type Clock = Pick<Reactor, 'nowMs'>;

export class AttemptTracker {
  private readonly clock: Clock;

  constructor(clock: Clock) {
    this.clock = clock;
  }

  /** An attempt begins; backend and endpoint are chosen. */
  began(exchange: Exchange): void {
    exchange.attemptStartMs = this.clock.nowMs;
    const runtime = exchange.runtime!;
    const slot = runtime.backends[exchange.backend]!.settings.endpoints[exchange.endpoint]!.slot;
    runtime.node.add(runtime.node.endpointAt(slot) + ACTIVE, 1);
  }

  /** The final response head is here, to be judged by this status. */
  answered(exchange: Exchange, status: number): void {
    const backend = exchange.runtime!.backends[exchange.backend]!;
    if (backend.settings.policy.outlierDetection !== null) judgeAnswer(exchange, status, this.clock.nowMs | 0);
    if (backend.balancer.decayMs > 0) this.observe(exchange, status >= 500);
    if (exchange.adaptiveHeld) sampleAdaptive(exchange, exchange.runtime!.latencySamples, this.clock.nowMs);
  }

  /** An attempt has ended (`end`: AttemptEnd); for a failed one with its Reason and Detail. */
  ended(exchange: Exchange, end: number, reason: number, detail: number): void {
    const runtime = exchange.runtime!;
    const { balancer, settings } = runtime.backends[exchange.backend]!;
    const slot = settings.endpoints[exchange.endpoint]!.slot;
    if (end === AttemptEnd.FAILED && settings.policy.outlierDetection !== null) {
      judgeFailure(exchange, reason, detail, this.clock.nowMs | 0);
    }
    if (end === AttemptEnd.FAILED && balancer.decayMs > 0 && isEndpointFailure(reason, detail)) {
      this.observe(exchange, true);
    }
    if (end === AttemptEnd.FAILED && balancer.hearsOfRefusals && reason === UPSTREAM_CONNECT_FAILURE) {
      noteConnectFailure(runtime.node, settings.slot, slot, this.clock.nowMs);
    }
    if (end === AttemptEnd.OUTRUN && balancer.decayMs > 0) this.observe(exchange, false);
    runtime.node.add(runtime.node.endpointAt(slot) + ACTIVE, -1);
  }

  /** Notes how long the endpoint took, for a policy that goes by latency. */
  private observe(exchange: Exchange, failed: boolean): void {
    const { node, backends } = exchange.runtime!;
    const { balancer, settings } = backends[exchange.backend]!;
    const { nowMs } = this.clock;
    const at = node.endpointAt(settings.endpoints[exchange.endpoint]!.slot);
    const elapsedUs = (nowMs - exchange.attemptStartMs) * 1000;
    if (failed) observeFailure(node.words, at, elapsedUs, nowMs, balancer.decayMs);
    else observeLatency(node.words, at, elapsedUs, nowMs, balancer.decayMs);
  }
}
