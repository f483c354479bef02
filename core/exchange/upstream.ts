// The way of an exchange to an upstream: choosing backend and endpoint, and handing each attempt to
// the protocol that the backend speaks.
// Owned by one worker. Hot module: no allocation, exception, promise, closure or log line.

import { Method } from '../http1/message.ts';
import { noBytes } from '../io/bytes.ts';
import { AttemptEnd } from './attempt-tracker.ts';
import type { BodyPiece } from './body.ts';
import type { ProxyContext } from './context.ts';
import type { Exchange } from './exchange.ts';
import { Detail, Reason } from './reasons.ts';

export class Upstream {
  private readonly context: ProxyContext;

  constructor(context: ProxyContext) {
    this.context = context;
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
    let ref = 0;
    if (count > 1) {
      let share = (this.context.ids.next() >>> 1) % routes.backendRefWeightTotal(rule);
      while (share >= routes.backendRefWeight(rule, ref)) share -= routes.backendRefWeight(rule, ref++);
    }
    exchange.backend = routes.backendRefIndex(rule, ref);
    exchange.refPolicy = runtime.refPolicyOf(rule, ref);
    const backend = runtime.backends[exchange.backend];
    exchange.endpoint = backend.picker.pick();
    return exchange.endpoint < 0 ? noBytes : backend.endpoints[exchange.endpoint].addressBytes;
  }

  /** Begins an attempt: sends the exchange to its endpoint. */
  start(exchange: Exchange): void {
    const { context } = this;
    const downstream = exchange.downstreamSide!;
    if (exchange.endpoint < 0) {
      this.failed(exchange, 503, Reason.NO_HEALTHY_UPSTREAM, Detail.NO_ENDPOINTS, 0);
      return;
    }
    const runtime = exchange.runtime!;
    const backend = runtime.backends[exchange.backend];
    const endpoint = backend.endpoints[exchange.endpoint];
    const timeoutMs = runtime.routes.backendRequestTimeoutMs(exchange.rule);
    exchange.attempts++;
    // What is sent again at once, since a kept connection was stale, is an attempt of its own.
    if (exchange.tracked) this.endTracking(exchange, AttemptEnd.CANCELLED, Reason.NONE, Detail.NONE);
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
    if (backend.settings.protocol === 'h2' && exchange.method !== Method.CONNECT) {
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
    this.start(exchange);
  }

  /**
   * The final response head of the attempt in progress is here, with this status. True: the response is
   * not wanted, the upstream side has been dropped, and the exchange is tried again.
   */
  answered(exchange: Exchange, status: number): boolean {
    if (exchange.tracked) {
      exchange.answered = true;
      this.context.tracker.answered(exchange, status);
    }
    return false;
  }

  /** The whole response of the attempt in progress has come. */
  completed(exchange: Exchange): void {
    if (exchange.tracked) this.endTracking(exchange, AttemptEnd.COMPLETE, Reason.NONE, Detail.NONE);
  }

  /** The attempt in progress has failed, and its connection has been let go: answers, or cuts what has begun. */
  failed(exchange: Exchange, status: number, reason: number, detail: number, errno: number): void {
    if (exchange.tracked) this.endTracking(exchange, AttemptEnd.FAILED, reason, detail);
    exchange.downstreamSide!.fail(exchange, status, reason, detail, errno);
  }

  /** Drops the upstream side of an exchange that was too slow; `failed` follows. */
  timedOut(exchange: Exchange): void {
    exchange.upstreamSide?.cancel(exchange);
  }

  /** Drops the upstream side of an exchange that ends for another reason. */
  cancel(exchange: Exchange): void {
    exchange.upstreamSide?.cancel(exchange);
    if (exchange.tracked) this.endTracking(exchange, AttemptEnd.CANCELLED, Reason.NONE, Detail.NONE);
  }

  private endTracking(exchange: Exchange, end: number, reason: number, detail: number): void {
    exchange.tracked = false;
    this.context.tracker.ended(exchange, end, reason, detail);
  }
}

/** Methods that may be sent twice (RFC 9110 §9.2.2). */
export function isIdempotent(method: number): boolean {
  switch (method) {
    case Method.GET:
    case Method.HEAD:
    case Method.PUT:
    case Method.DELETE:
    case Method.OPTIONS:
    case Method.TRACE:
      return true;
    default:
      return false;
  }
}
