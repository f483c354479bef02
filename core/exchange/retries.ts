// Further attempts of requests that have failed, as their rule asks for them.
//
//   attempt --> failed or answered --> wait (`resumeMs`, nothing attached upstream) --> next attempt ...
//                     \--> passed on: nothing to retry, not safe, or no attempts, budget, body or time left
//
// A request that the upstream may have acted on is sent again only if its method is idempotent, or the rule
// says otherwise (`retryUnsafe`, or the status of an RPC by name). Not acted on: no connection, refused stream,
// GOAWAY, not one byte sent. Once the response to the client has begun, it is too late.
// Owned by one worker. Hot module: no allocation, exception, promise, closure or log line per request.
// Spec: RFC 9110 §9.2.2 (idempotent methods), §10.2.3 (Retry-After); Gateway API HTTPRouteRetry.

import type { ResponseHead } from '../http1/message.ts';
import { equalsLower, lowerLiteral } from '../http1/word-view.ts';
import { RetryCause } from '../lb/attempt-settings.ts';
import { Counter } from '../telemetry/metrics.ts';
import type { ProxyContext } from './context.ts';
import { BodyFraming, type Exchange } from './exchange.ts';
import { grpcStatusInHead, reduceGrpcTimeout } from './grpc.ts';
import { isIdempotent } from './methods.ts';
import { Detail, Reason } from './reasons.ts';
import { takeRetry } from './retry-budget.ts';
import { AttemptFailure, RetryEnd } from './retry-outcome.ts';
import type { RetryPolicy } from './retry-policy.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { CONNECT_FAILURE, REFUSED_STREAM, RESET_BEFORE_REQUEST, RESET, TIMEOUT, STATUS, GRPC_STATUS } = RetryCause;
const { RETRIES, RETRIES_SUCCEEDED, RETRIES_NOT_MADE } = Counter;
const { NONE, SUCCEEDED, EXHAUSTED, BUDGET, LIMIT, UNSAFE, BODY, TIME } = RetryEnd;
const { LENGTH, STREAM } = BodyFraming;

/** Cause of what is never tried again. */
const NO_CAUSE = -1;

/** A Retry-After that says nothing. */
const NOT_SAID = -1;

/** Digits of a Retry-After in seconds that are looked at; more are beyond any bound. */
const DELAY_DIGITS_MAX = 8;
const DELAY_MS_MAX = 0x7fff_ffff;

const literalRetryAfter = lowerLiteral('retry-after');

export class Retries {
  private readonly context: ProxyContext;

  constructor(context: ProxyContext) {
    this.context = context;
  }

  /** The first attempt of an exchange with retries begins. */
  began(exchange: Exchange, policy: RetryPolicy): void {
    const { requestBuffers } = this.context;
    const { bodyBufferBytes } = policy.settings;
    if (exchange.requestComplete || bodyBufferBytes === 0) return;
    const { requestFraming } = exchange;
    // What is known to be too long is not even begun to be kept.
    if ((requestFraming === LENGTH || requestFraming === STREAM) && exchange.requestRemaining > bodyBufferBytes) return;
    exchange.requestBuffer = requestBuffers.want(exchange.requestBuffer, bodyBufferBytes);
  }

  /** An attempt has failed; its connection has been let go. True: the exchange waits for the next attempt. */
  failed(exchange: Exchange, policy: RetryPolicy, reason: number, detail: number): boolean {
    const cause = exchange.responseStarted ? NO_CAUSE : causeOf(exchange, reason, detail);
    if (cause === NO_CAUSE) return false;
    exchange.attemptFailure = detail === Detail.NONE ? AttemptFailure.REASON + reason : detail;
    if ((policy.settings.failures & (1 << cause)) === 0) return false;
    const end = this.decide(exchange, policy, cause <= RESET_BEFORE_REQUEST || !exchange.requestSent, NOT_SAID);
    if (end !== NONE) {
      this.end(exchange, end);
      return false;
    }
    this.schedule(exchange, cause);
    return true;
  }

  /**
   * The final response head of an attempt is here. True: the response is not wanted, and the exchange waits for
   * the next attempt; the caller lets the upstream go.
   */
  answered(exchange: Exchange, policy: RetryPolicy, head: ResponseHead): boolean {
    const { status } = head;
    let cause: number = NO_CAUSE;
    let told = false;
    if (policy.wantsStatus(status)) {
      cause = STATUS;
      exchange.attemptFailure = AttemptFailure.STATUS + status;
    } else if (exchange.grpc !== 0 && policy.settings.grpcStatuses !== 0 && status === 200) {
      const rpcStatus = grpcStatusInHead(this.context.memory, head.headers);
      if (rpcStatus > 0 && rpcStatus < 32 && (policy.settings.grpcStatuses & (1 << rpcStatus)) !== 0) {
        cause = GRPC_STATUS;
        // Whoever names the statuses of RPCs knows that all RPCs are POST.
        told = true;
        exchange.attemptFailure = AttemptFailure.GRPC_STATUS + rpcStatus;
      }
    }
    if (cause === NO_CAUSE) {
      if (exchange.retries > 0) this.end(exchange, SUCCEEDED);
      this.forgetBody(exchange);
      return false;
    }
    const end = this.decide(exchange, policy, told, this.retryAfterMs(policy, head));
    if (end !== NONE) {
      this.end(exchange, end);
      this.forgetBody(exchange);
      return false;
    }
    this.schedule(exchange, cause);
    return true;
  }

  /** The wait is over: makes the exchange ready for its next attempt. */
  prepare(exchange: Exchange): void {
    const { memory, reactor } = this.context;
    const { routes } = exchange.runtime!;
    exchange.retryPending = false;
    exchange.connectedMs = 0;
    exchange.firstByteMs = 0;
    if (exchange.grpcTimeoutEnd === 0) return;
    let remainingMs = exchange.requestDeadlineMs > 0 ? exchange.requestDeadlineMs - reactor.nowMs : DELAY_MS_MAX;
    const attemptMs = routes.backendRequestTimeoutMs(exchange.rule);
    if (attemptMs > 0 && attemptMs < remainingMs) remainingMs = attemptMs;
    reduceGrpcTimeout(memory, exchange.grpcTimeoutEnd, Math.max(1, Math.floor(remainingMs)));
  }

  /** RetryEnd.NONE if there is to be another attempt, whose time is then in `resumeMs`; else why not. */
  private decide(exchange: Exchange, policy: RetryPolicy, allowed: boolean, retryAfterMs: number): number {
    const { reactor, ids, upstream } = this.context;
    const { settings } = policy;
    if (exchange.retries >= settings.attempts) return EXHAUSTED;
    if (!allowed && !settings.retryUnsafe && !isIdempotent(exchange.method)) return UNSAFE;
    if (!mayReplay(exchange)) return BODY;
    // Exponential backoff with full jitter: any wait up to the bound is as likely.
    const boundMs = Math.min(settings.backoffMaxMs, settings.backoffMs * 2 ** exchange.retries);
    let delayMs = Math.ceil((boundMs * (ids.next() >>> 1)) / 0x8000_0000);
    if (retryAfterMs !== NOT_SAID) {
      if (retryAfterMs > settings.retryAfterMaxMs) return TIME;
      delayMs += retryAfterMs;
    }
    const resumeMs = reactor.nowMs + Math.max(1, delayMs);
    if (exchange.requestDeadlineMs > 0 && resumeMs >= exchange.requestDeadlineMs) return TIME;
    const runtime = exchange.runtime!;
    const backend = runtime.backends[exchange.backend];
    const { slot, policy: backendPolicy } = backend.settings;
    if (!takeRetry(runtime.node, slot, backendPolicy.retryBudget, reactor.nowMs)) return BUDGET;
    if (backendPolicy.circuitBreaker !== null && !upstream.breakers.admitRetry(exchange, backend)) return LIMIT;
    exchange.resumeMs = resumeMs;
    return NONE;
  }

  private schedule(exchange: Exchange, cause: number): void {
    this.context.counters[RETRIES + cause]++;
    exchange.retries++;
    exchange.retryPending = true;
    exchange.resent = false;
    exchange.avoidEndpoint = exchange.endpoint;
    exchange.triedEndpoints |= 1 << (exchange.endpoint & 31);
    exchange.attemptDeadlineMs = 0;
    exchange.downstreamSide!.progress(exchange);
  }

  private end(exchange: Exchange, end: number): void {
    exchange.retryEnd = end;
    if (end === SUCCEEDED) this.context.counters[RETRIES_SUCCEEDED]++;
    else this.context.counters[RETRIES_NOT_MADE + end]++;
  }

  /** No further attempt can come: what was kept for it is given back, unless somebody else needs it. */
  private forgetBody(exchange: Exchange): void {
    const buffer = exchange.requestBuffer;
    if (buffer === null || buffer.holders > 1 || exchange.replayNext >= 0 || exchange.mirrorNext !== null) return;
    this.context.requestBuffers.release(buffer);
    exchange.requestBuffer = null;
  }

  /** What Retry-After asks for, in milliseconds; NOT_SAID where it does not count. */
  private retryAfterMs(policy: RetryPolicy, head: ResponseHead): number {
    const { status } = head;
    if (policy.settings.retryAfterMaxMs === 0 || (status !== 429 && status !== 503)) return NOT_SAID;
    const field = this.find(head, literalRetryAfter);
    if (field < 0) return NOT_SAID;
    const offset = head.headers.valueOffset(field);
    const length = head.headers.valueLength(field);
    const seconds = this.wholeNumber(offset, length);
    if (seconds >= 0) return Math.min(seconds * 1000, DELAY_MS_MAX);
    return this.untilDate(offset, length);
  }

  /** Milliseconds until a date (RFC 9110 §5.6.7); rare, so that it may make a string. */
  private untilDate(offset: number, length: number): number {
    if (length > 64) return NOT_SAID;
    const { memory, reactor } = this.context;
    const dateMs = Date.parse(Buffer.from(memory.subarray(offset, offset + length)).toString('latin1'));
    return Number.isNaN(dateMs) ? NOT_SAID : Math.max(0, dateMs - reactor.wallMs);
  }

  private find(head: ResponseHead, name: Int32Array): number {
    const { memory } = this.context;
    const { headers } = head;
    for (let field = 0; field < headers.count; field++) {
      if (equalsLower(memory, headers.nameOffset(field), headers.nameLength(field), name)) return field;
    }
    return -1;
  }

  /** Value of decimal digits; -1 for anything else. */
  private wholeNumber(offset: number, length: number): number {
    const { memory } = this.context;
    if (length === 0) return -1;
    let value = 0;
    for (let i = 0; i < length; i++) {
      const digit = memory[offset + i] - 48;
      if (digit < 0 || digit > 9) return -1;
      if (i < DELAY_DIGITS_MAX) value = value * 10 + digit;
      else value = DELAY_MS_MAX;
    }
    return value;
  }
}

/** Whether all that has been read of the body can be sent again. */
export function mayReplay(exchange: Exchange): boolean {
  if (!exchange.bodyStreamed || exchange.replayNext >= 0) return true;
  const buffer = exchange.requestBuffer;
  return buffer !== null && !buffer.overflowed;
}

/** RetryCause of a failed attempt, or NO_CAUSE. Whatever is this gateway's own doing is not tried again. */
function causeOf(exchange: Exchange, reason: number, detail: number): number {
  switch (reason) {
    case Reason.UPSTREAM_CONNECT_FAILURE:
      return CONNECT_FAILURE;
    case Reason.UPSTREAM_CONNECTION_TERMINATION:
    case Reason.STALE_UPSTREAM_CONNECTION:
    case Reason.UPSTREAM_PROTOCOL_ERROR:
      if (detail === Detail.UPSTREAM_STREAM_REFUSED || detail === Detail.UPSTREAM_GOAWAY) return REFUSED_STREAM;
      return exchange.requestSent ? RESET : RESET_BEFORE_REQUEST;
    case Reason.UPSTREAM_TIMEOUT:
      return detail === Detail.REQUEST_TIMER || detail === Detail.GRPC_TIMER ? NO_CAUSE : TIMEOUT;
    default:
      return NO_CAUSE;
  }
}
