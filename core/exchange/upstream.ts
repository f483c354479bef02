// The way of an exchange to an upstream: choosing backend and endpoint, and handing each attempt to
// the protocol that the backend speaks.
// Owned by one worker. Hot module: no allocation, exception, promise, closure or log line.

import { Method, type ResponseHead } from '../http1/message.ts';
import { noBytes } from '../io/bytes.ts';
import type { BackendSettings } from '../workers/snapshot.ts';
import { admitAdaptive, releaseAdaptive } from './adaptive-limit.ts';
import { AttemptEnd } from './attempt-tracker.ts';
import type { BodyPiece } from './body.ts';
import { CircuitBreakers } from './circuit-breaker.ts';
import type { ProxyContext } from './context.ts';
import { chooseEndpoint, noEndpointDetail, pickEndpoint } from './endpoint-choice.ts';
import { type Exchange, HttpVersion } from './exchange.ts';
import { Hedges } from './hedges.ts';
import { judgedStatus } from './outlier-judge.ts';
import { Detail, Reason } from './reasons.ts';
import { ResponseLines } from './response-lines.ts';
import { Retries } from './retries.ts';
import { countRequest } from './retry-budget.ts';
import { RetryEnd } from './retry-outcome.ts';
import type { RulePolicy } from './rule-policy.ts';
import { resumeSession } from './session-persistence.ts';

const { HEDGE_WON, NONE } = RetryEnd;
const { HTTP_2 } = HttpVersion;

/** Picks for an endpoint that no attempt has failed at, before one that failed earlier has to do. */
const UNTRIED_PICKS = 8;

export class Upstream {
  readonly retries: Retries;
  readonly breakers: CircuitBreakers;
  readonly hedges: Hedges;
  private readonly context: ProxyContext;

  constructor(context: ProxyContext) {
    this.context = context;
    this.retries = new Retries(context);
    this.breakers = new CircuitBreakers(context);
    this.hedges = new Hedges(context, this);
  }

  /**
   * Chooses backend and endpoint for an exchange whose rule is known, and gives the endpoint's
   * address (empty if there is none to choose).
   */
  choose(exchange: Exchange): Uint8Array {
    const runtime = exchange.runtime!;
    const { routes } = runtime;
    const rule = exchange.rule;
    const count = routes.backendRefCount(rule);
    if (count === 0) return noBytes;
    const { requestHead } = this.context;
    const { policy } = exchange;
    if (policy !== null && policy.session !== null) {
      exchange.responseLines |= ResponseLines.SESSION;
      if (resumeSession(this.context, exchange, requestHead, policy.session)) {
        return runtime.backends[exchange.backend].endpoints[exchange.endpoint].addressBytes;
      }
    }
    let ref = 0;
    if (count > 1) {
      let share = (this.context.ids.next() >>> 1) % routes.backendRefWeightTotal(rule);
      while (share >= routes.backendRefWeight(rule, ref)) share -= routes.backendRefWeight(rule, ref++);
    }
    exchange.backend = runtime.backendFor(routes.backendRefIndex(rule, ref), exchange.downstream!.workload);
    exchange.refPolicy = runtime.refPolicyOf(rule, ref);
    chooseEndpoint(this.context, exchange, requestHead);
    return exchange.endpoint < 0
      ? noBytes
      : runtime.backends[exchange.backend].endpoints[exchange.endpoint].addressBytes;
  }

  /** Chooses another endpoint of the same backend for a further attempt; the same one where there is no other. */
  chooseAgain(exchange: Exchange): void {
    // `avoidEndpoint` keeps it from the last one; of two dead ones, the other would be next in turn.
    for (let pick = 0; pick < UNTRIED_PICKS; pick++) {
      pickEndpoint(this.context, exchange);
      if (exchange.endpoint < 0 || (exchange.triedEndpoints & (1 << (exchange.endpoint & 31))) === 0) return;
    }
  }

  /** The first attempt begins; the limits of the backend have let it pass. */
  private began(exchange: Exchange, policy: RulePolicy): void {
    const { retry, hedge, mirrors } = policy;
    if (retry !== null || hedge !== null) {
      const runtime = exchange.runtime!;
      countRequest(runtime.node, runtime.backends[exchange.backend].settings.slot, this.context.reactor.nowMs);
    }
    if (retry !== null) this.retries.began(exchange, retry);
    if (hedge !== null) this.hedges.began(exchange, hedge);
    if (mirrors !== null) this.context.mirrors.began(exchange, mirrors);
  }

  /** Begins an attempt: sends the exchange to its endpoint. */
  start(exchange: Exchange): void {
    const { context } = this;
    const downstream = exchange.downstreamSide!;
    if (exchange.endpoint < 0) {
      this.failed(exchange, 503, Reason.NO_HEALTHY_UPSTREAM, noEndpointDetail(exchange), 0);
      return;
    }
    const runtime = exchange.runtime!;
    const backend = runtime.backends[exchange.backend];
    const endpoint = backend.endpoints[exchange.endpoint];
    // A connection that is passed on unread has no rule.
    const timeoutMs = exchange.rule < 0 ? 0 : runtime.routes.backendRequestTimeoutMs(exchange.rule);
    if (exchange.attempts > 0) {
      exchange.requestSent = false;
      if (exchange.bodyStreamed) {
        exchange.bodyStreamed = false;
        exchange.replayNext = 0;
      }
    }
    if (exchange.tracked) {
      // What is sent again at once, since a kept connection was stale, is an attempt of its own in the place it has.
      context.tracker.ended(exchange, AttemptEnd.CANCELLED, Reason.NONE, Detail.NONE);
    } else {
      if (backend.settings.policy.adaptiveConcurrency !== null && !admitAdaptive(exchange)) {
        this.failed(exchange, 503, Reason.UPSTREAM_OVERFLOW, Detail.ADAPTIVE_LIMIT, 0);
        return;
      }
      if (backend.settings.policy.circuitBreaker !== null && !this.breakers.admitRequest(exchange, backend)) {
        if (exchange.adaptiveHeld) releaseAdaptive(exchange);
        this.failed(exchange, 503, Reason.UPSTREAM_OVERFLOW, Detail.REQUESTS_LIMIT, 0);
        return;
      }
    }
    if (exchange.attempts === 0 && exchange.policy !== null) this.began(exchange, exchange.policy);
    exchange.attempts++;
    if (backend.tracked) {
      exchange.tracked = true;
      exchange.answered = false;
      context.tracker.began(exchange);
    }
    if (timeoutMs > 0) {
      exchange.attemptDeadlineMs = context.reactor.nowMs + timeoutMs;
      downstream.progress(exchange);
    }
    // A tunnel that CONNECT asks for has a connection of its own, whatever is spoken in it.
    if (speaksHttp2(exchange, backend.settings) && exchange.method !== Method.CONNECT) {
      context.upstreamHttp2.begin(exchange, endpoint);
    } else {
      context.upstreamHttp1.begin(exchange, endpoint);
    }
  }

  /** Whether body bytes can be passed on now. */
  acceptsBody(exchange: Exchange): boolean {
    return exchange.upstreamSide?.acceptsBody(exchange) ?? false;
  }

  /** Sends a piece of the request body. Returns false when the connection has failed. */
  sendBody(exchange: Exchange, piece: BodyPiece): boolean {
    return exchange.upstreamSide!.sendBody(exchange, piece);
  }

  /** The request cannot be written any further. */
  writeFailed(exchange: Exchange): void {
    exchange.upstreamSide!.writeFailed(exchange);
  }

  /** Goes on with an exchange whose wait (`resumeMs`) is over. */
  resume(exchange: Exchange): void {
    if (exchange.retryPending) {
      this.retries.prepare(exchange);
      this.chooseAgain(exchange);
    }
    this.start(exchange);
  }

  /**
   * The final response head of the attempt in progress is here. True: the response is not wanted, the upstream side
   * has been dropped, and the exchange waits until it is tried again.
   */
  answered(exchange: Exchange, head: ResponseHead): boolean {
    this.judge(exchange, head);
    const { policy } = exchange;
    if (policy === null) return false;
    if (exchange.hedgeStartMs > 0) this.hedges.settled(exchange);
    if (policy.retry === null) return false;
    if (!this.retries.answered(exchange, policy.retry, head)) return false;
    if (exchange.tracked) this.endTracking(exchange, AttemptEnd.COMPLETE, Reason.NONE, Detail.NONE);
    exchange.upstreamSide!.discard(exchange);
    return true;
  }

  /** Has the endpoint judged by the response head of the attempt in progress. */
  judge(exchange: Exchange, head: ResponseHead): void {
    if (!exchange.tracked) return;
    exchange.answered = true;
    this.context.tracker.answered(exchange, judgedStatus(exchange, this.context.memory, head));
  }

  /** The attempt in progress has become a tunnel: its endpoint serves, however long the tunnel lasts. */
  joined(exchange: Exchange): void {
    if (exchange.answered) return;
    exchange.answered = true;
    this.context.tracker.answered(exchange, exchange.status);
  }

  /** The whole response of the attempt in progress has come. */
  completed(exchange: Exchange): void {
    if (exchange.tracked) this.endTracking(exchange, AttemptEnd.COMPLETE, Reason.NONE, Detail.NONE);
  }

  /** The attempt in progress has failed, and its connection has been let go: answers, or cuts what has begun. */
  failed(exchange: Exchange, status: number, reason: number, detail: number, errno: number): void {
    if (exchange.tracked) this.endTracking(exchange, AttemptEnd.FAILED, reason, detail);
    if (reason === Reason.UPSTREAM_CONNECT_FAILURE) this.context.connectFailed(exchange, detail, errno);
    if (exchange.rival !== null && this.hedges.failed(exchange)) return;
    exchange.resumeMs = 0;
    forgetHedge(exchange);
    const { policy } = exchange;
    if (policy !== null && policy.retry !== null && this.retries.failed(exchange, policy.retry, reason, detail)) return;
    exchange.downstreamSide!.fail(exchange, status, reason, detail, errno);
  }

  /** The attempt in progress has come to nothing, and that is not the endpoint's fault: answers at once. */
  givenUp(exchange: Exchange, status: number, reason: number, detail: number): void {
    if (exchange.tracked) this.endTracking(exchange, AttemptEnd.CANCELLED, reason, detail);
    if (exchange.rival !== null && this.hedges.failed(exchange)) return;
    exchange.resumeMs = 0;
    forgetHedge(exchange);
    exchange.downstreamSide!.fail(exchange, status, reason, detail, 0);
  }

  /** Drops the upstream side of an exchange that was too slow; `failed` follows. */
  timedOut(exchange: Exchange): void {
    exchange.upstreamSide?.cancel(exchange);
  }

  /** Drops the upstream side of an exchange that ends for another reason. */
  cancel(exchange: Exchange): void {
    if (exchange.rival !== null) this.hedges.drop(exchange);
    if (!exchange.responseStarted) forgetHedge(exchange);
    exchange.upstreamSide?.cancel(exchange);
    if (exchange.tracked) this.endTracking(exchange, AttemptEnd.CANCELLED, Reason.NONE, Detail.NONE);
  }

  /** The attempt in progress is over (AttemptEnd): gives back what it has taken. */
  endTracking(exchange: Exchange, end: number, reason: number, detail: number): void {
    exchange.tracked = false;
    if (exchange.adaptiveHeld) releaseAdaptive(exchange);
    if (exchange.held !== 0) this.breakers.releaseAttempt(exchange);
    this.context.tracker.ended(exchange, end, reason, detail);
  }
}

/** There will be no answer that hedging could have brought, or learned from. */
function forgetHedge(exchange: Exchange): void {
  exchange.hedgeAtMs = 0;
  exchange.hedgeStartMs = 0;
  if (exchange.retryEnd >= HEDGE_WON) exchange.retryEnd = NONE;
}

function speaksHttp2({ httpVersion }: Exchange, { protocol, sameProtocol }: BackendSettings): boolean {
  return sameProtocol ? httpVersion === HTTP_2 : protocol === 'h2';
}
