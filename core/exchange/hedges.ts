// Hedging: a second attempt of a request that has had no answer for a while, while the first goes on.
//
//   first attempt --> `hedgeAtMs` --> second attempt at another endpoint --> first good answer: the other attempt ends
//                \--> answered or failed before: no second attempt
//
// The second attempt is an exchange of its own ("hedge"), whose client is a connection without a socket, until its
// answer is wanted: then its connection or stream moves to the exchange of the client, and the hedge is over. It
// sends the head that lies in the client's exchange, so it must end before that does. Both know each other as
// `rival`. It is retried by nobody and is in no access log; where the first attempt fails while it is under way, it
// takes its place, before any retry.
// Only requests without body whose method is safe (RFC 9110 §9.2.1) have one, and only with their first attempt.
// Owned by one worker. Hot module: no allocation, exception, promise, closure or log line per request.

import type { ResponseHead } from '../http1/message.ts';
import type { Connection } from '../io/connection.ts';
import { noTransport } from '../io/transport.ts';
import { Counter } from '../telemetry/metrics.ts';
import { AttemptEnd } from './attempt-tracker.ts';
import type { ProxyContext } from './context.ts';
import type { Exchange } from './exchange.ts';
import { HedgeLatencies, type HedgePolicy } from './hedge-policy.ts';
import { isSafe } from './methods.ts';
import { Detail, Reason } from './reasons.ts';
import { takeHedge } from './retry-budget.ts';
import { RetryEnd } from './retry-outcome.ts';
import type { Upstream } from './upstream.ts';
import { VirtualClient } from './virtual-client.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { HEDGES, HEDGES_WON, HEDGES_NOT_MADE } = Counter;
const { HEDGE_WON, HEDGE_LOST } = RetryEnd;

export class Hedges extends VirtualClient {
  private readonly upstream: Upstream;
  private readonly latencies = new HedgeLatencies();

  constructor(context: ProxyContext, upstream: Upstream) {
    super(context);
    this.upstream = upstream;
  }

  // -- the client's exchange --------------------------------------------------------

  /** The first attempt of an exchange begins. */
  began(exchange: Exchange, policy: HedgePolicy): void {
    if (!isSafe(exchange.method) || !exchange.requestComplete || exchange.requestBodyBytes > 0) return;
    if (exchange.upgradeRequested) return;
    const { nowMs } = this.context.reactor;
    exchange.hedgeStartMs = nowMs;
    const delayMs = policy.delayMs(this.latencies, nowMs);
    if (delayMs < 0) return;
    exchange.hedgeAtMs = nowMs + delayMs;
    exchange.downstreamSide!.progress(exchange);
  }

  /** An exchange is answered for which a second attempt was an option: learns how long the first took, at least. */
  settled(exchange: Exchange): void {
    if (exchange.retryEnd === HEDGE_WON) this.context.counters[HEDGES_WON]++;
    const { latency } = exchange.policy!.hedge!;
    const { nowMs } = this.context.reactor;
    if (latency !== null) latency.add(nowMs - exchange.hedgeStartMs, nowMs);
    exchange.hedgeStartMs = 0;
    if (exchange.hedgeAtMs === 0) return;
    exchange.hedgeAtMs = 0;
    // The timer is no longer to run out when the second attempt would have been due.
    exchange.downstreamSide!.progress(exchange);
  }

  /** `hedgeAtMs` has come: sends the second attempt, if there is reason and room for one. */
  due(exchange: Exchange): void {
    const { reactor, counters } = this.context;
    exchange.hedgeAtMs = 0;
    exchange.downstreamSide!.progress(exchange);
    if (exchange.responseStarted) return;
    const runtime = exchange.runtime!;
    const backend = runtime.backends[exchange.backend];
    const connection = reactor.openVirtual(this, noTransport);
    if (connection === null) return;
    const hedge = this.copy(exchange, connection);
    this.upstream.chooseAgain(hedge);
    const same = hedge.endpoint === exchange.endpoint && backend.endpoints.length > 1;
    const { budgetPercent } = exchange.policy!.hedge!.settings;
    if (hedge.endpoint < 0 || same) {
      this.endCopy(hedge);
    } else if (!takeHedge(runtime.node, backend.settings.slot, budgetPercent, reactor.nowMs)) {
      counters[HEDGES_NOT_MADE]++;
      this.endCopy(hedge);
    } else {
      counters[HEDGES]++;
      exchange.attempts++;
      exchange.retryEnd = HEDGE_LOST;
      exchange.rival = hedge;
      hedge.rival = exchange;
      this.upstream.start(hedge);
    }
  }

  private copy(exchange: Exchange, connection: Connection): Exchange {
    const hedge = this.attachCopy(connection, exchange, 0);
    hedge.isHedge = true;
    hedge.versionMinor = exchange.versionMinor;
    hedge.httpVersion = exchange.httpVersion;
    hedge.requestRemaining = exchange.requestRemaining;
    hedge.requestComplete = true;
    hedge.policy = exchange.policy;
    hedge.refPolicy = exchange.refPolicy;
    hedge.backend = exchange.backend;
    hedge.endpoint = exchange.endpoint;
    hedge.hash = exchange.hash;
    hedge.hashed = exchange.hashed;
    hedge.avoidEndpoint = exchange.endpoint;
    hedge.triedEndpoints = 1 << (exchange.endpoint & 31);
    hedge.requestDeadlineMs = exchange.requestDeadlineMs;
    // It begins nothing that a first attempt begins: no mirrors, no further hedge.
    hedge.attempts = 1;
    return hedge;
  }

  // -- the race ---------------------------------------------------------------------

  /**
   * The final response head of one of two attempts is here, its body not yet looked at. Returns the client's
   * exchange, to which the attempt now belongs, if this is the answer; else null: the attempt has been dropped.
   */
  answered(exchange: Exchange, head: ResponseHead): Exchange | null {
    const { upstream } = this;
    const rival = exchange.rival!;
    const { retry } = exchange.policy!;
    const bad = retry === null ? head.status >= 500 : retry.wantsStatus(head.status);
    if (bad) {
      upstream.judge(exchange, head);
      exchange.upstreamSide!.cancel(exchange);
      if (exchange.tracked) upstream.endTracking(exchange, AttemptEnd.COMPLETE, Reason.NONE, Detail.NONE);
      if (exchange.isHedge) this.release(exchange);
      else this.takeOver(exchange, rival);
      return null;
    }
    if (!exchange.isHedge) {
      this.drop(exchange);
      return exchange;
    }
    // What the first attempt has taken so far is the least that its endpoint needs.
    rival.upstreamSide!.cancel(rival);
    if (rival.tracked) upstream.endTracking(rival, AttemptEnd.OUTRUN, Reason.NONE, Detail.NONE);
    this.takeOver(rival, exchange);
    return rival;
  }

  /**
   * One of two attempts has failed, and its connection has been let go. Returns false if that is the end of the
   * request: the exchange is the client's, and out of time.
   */
  failed(exchange: Exchange): boolean {
    if (exchange.isHedge) {
      this.release(exchange);
      return true;
    }
    const { requestDeadlineMs } = exchange;
    if (requestDeadlineMs > 0 && requestDeadlineMs <= this.context.reactor.nowMs) {
      this.drop(exchange);
      return false;
    }
    this.takeOver(exchange, exchange.rival!);
    return true;
  }

  /** Ends the second attempt of a client's exchange: it has its answer, or wants none any more. */
  drop(exchange: Exchange): void {
    const hedge = exchange.rival!;
    hedge.upstreamSide?.cancel(hedge);
    if (hedge.tracked) this.upstream.endTracking(hedge, AttemptEnd.CANCELLED, Reason.NONE, Detail.NONE);
    this.release(hedge);
  }

  /** The second attempt takes the place of the first, which is over. */
  private takeOver(exchange: Exchange, hedge: Exchange): void {
    const connection = hedge.upstream;
    exchange.avoidEndpoint = exchange.endpoint;
    exchange.triedEndpoints |= 1 << (exchange.endpoint & 31);
    exchange.endpoint = hedge.endpoint;
    exchange.retryEnd = HEDGE_WON;
    exchange.hedgeAtMs = 0;
    if (connection === null) {
      // It still waits for a connection or stream: does so again, as the client's.
      this.drop(exchange);
      exchange.attempts--;
      this.upstream.start(exchange);
      return;
    }
    connection.exchange = exchange;
    exchange.upstream = connection;
    exchange.upstreamSide = hedge.upstreamSide;
    exchange.held |= hedge.held;
    exchange.tracked = hedge.tracked;
    exchange.answered = hedge.answered;
    exchange.answerFailed = hedge.answerFailed;
    exchange.adaptiveHeld = hedge.adaptiveHeld;
    exchange.attemptStartMs = hedge.attemptStartMs;
    exchange.attemptDeadlineMs = hedge.attemptDeadlineMs;
    exchange.pendingDeadlineMs = 0;
    exchange.reusedConnection = hedge.reusedConnection;
    exchange.upstreamConnectionUses = hedge.upstreamConnectionUses;
    exchange.upstreamConnectionAgeMs = hedge.upstreamConnectionAgeMs;
    exchange.connectedMs = hedge.connectedMs;
    exchange.firstByteMs = hedge.firstByteMs;
    exchange.requestSent = hedge.requestSent;
    exchange.resent = hedge.resent;
    hedge.upstream = null;
    hedge.held = 0;
    hedge.tracked = false;
    hedge.adaptiveHeld = false;
    this.release(hedge);
    exchange.downstreamSide!.progress(exchange);
  }

  /** The second attempt is over. */
  private release(hedge: Exchange): void {
    hedge.rival!.rival = null;
    hedge.rival = null;
    this.endCopy(hedge);
  }

  // Its answer goes to the exchange of the client, or nowhere (`answered`).

  protected writeResponse(): boolean {
    return false;
  }

  protected writeBody(): boolean {
    return false;
  }

  protected writeGenerated(): boolean {
    return false;
  }

  protected finish(): void {}
}
