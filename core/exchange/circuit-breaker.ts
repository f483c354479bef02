// Circuit breakers: how much of a backend may be in use at a time, by all workers of the node together.
//
//   request --> maxRequests --> [no connection: maxConnections --> waits: maxPendingRequests, pendingTimeout]
//   further attempt --> maxRetries
//
// Counts are words of the backend's slot in the node state, with shares. A count is taken first and given back
// if it was one too many, so that all workers together keep to the limit. What an exchange has taken is noted
// in `held`, what a connection has in `breakerSlot`.
// HTTP/1 requests that wait are queued here, per worker and backend, first come first served; those that wait
// for a stream of HTTP/2 in lb/http2-pool.ts, and are counted here. A worker whose requests wait hears of its
// own connections at the end of the batch, and looks for what other workers gave up every POLL_MS.
// Owned by one worker. Hot module where a backend has a breaker: no allocation per request.

import type { Connection, Protocol } from '../io/connection.ts';
import type { Transport } from '../io/transport.ts';
import { type BreakerLimits, Priority } from '../lb/attempt-settings.ts';
import { BackendWord } from '../lb/node-state.ts';
import type { ProxyContext } from './context.ts';
import type { Exchange } from './exchange.ts';
import { Detail, Reason } from './reasons.ts';
import type { BackendRuntime } from './runtime.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { ACTIVE, PENDING, RETRIES, CONNECTIONS, HIGH_ACTIVE, HIGH_PENDING, HIGH_RETRIES, OVERFLOWS } = BackendWord;
const { HIGH } = Priority;

/** What an exchange has taken: bits of `Exchange.held`. */
const HELD_REQUEST = 1;
const HELD_PENDING = 2;
const HELD_RETRY = 4;

/** Limits of a breaker, in the order of their counts of overflows in the node state. */
export const BreakerLimit = { CONNECTIONS: 0, PENDING: 1, REQUESTS: 2, RETRIES: 3 } as const;

/** Names of the limits in the configuration, by BreakerLimit. */
export const breakerLimitNames: readonly string[] = [
  'maxConnections',
  'maxPendingRequests',
  'maxRequests',
  'maxRetries',
];

/** Word of the count of overflows of a limit, for one class of requests. */
export function overflowWord(limit: number, high: boolean): number {
  return OVERFLOWS + limit + (high ? breakerLimitNames.length : 0);
}

/** How often a worker whose requests wait looks whether another one has closed a connection. */
const POLL_MS = 10;

/** How often an unused connection looks whether requests wait for its place. */
export const IDLE_LOOK_MS = 250;

/** Bytes of a timer: there are none. */
const noTransport: Transport = {
  recv: () => 0,
  send: () => 0,
  hasMore: () => false,
  shutdownWrite: () => {},
  error: () => 0,
  close: () => {},
};

/** Requests of one worker that wait for a connection to one backend. */
class PendingQueue {
  first: Exchange | null = null;
  last: Exchange | null = null;
  count = 0;
}

export class CircuitBreakers implements Protocol {
  private readonly context: ProxyContext;
  /** By slot of the backend; made with the first request that waits. */
  private readonly queues = new Map<number, PendingQueue>();
  private readonly all: PendingQueue[] = [];
  private waiting = 0;
  /** Whose timer and batch end serve the queues; made at first use. */
  private clock: Connection | null = null;
  private served = false;

  constructor(context: ProxyContext) {
    this.context = context;
  }

  // -- requests and retries -------------------------------------------------------------

  /** An attempt begins. False: the limit on requests is reached, and nothing has been taken. */
  admitRequest(exchange: Exchange, backend: BackendRuntime): boolean {
    const high = isHigh(exchange);
    const limits = limitsOf(backend, high);
    if (!this.take(backend, high ? HIGH_ACTIVE : ACTIVE, limits.requestsMax)) {
      this.overflowed(backend, BreakerLimit.REQUESTS, high);
      return false;
    }
    exchange.held |= HELD_REQUEST;
    return true;
  }

  /** A further attempt is to be made. False: the limit on retries is reached. */
  admitRetry(exchange: Exchange, backend: BackendRuntime): boolean {
    const high = isHigh(exchange);
    const limits = limitsOf(backend, high);
    this.releaseRetry(exchange);
    if (!this.take(backend, high ? HIGH_RETRIES : RETRIES, limits.retriesMax)) {
      this.overflowed(backend, BreakerLimit.RETRIES, high);
      return false;
    }
    exchange.held |= HELD_RETRY;
    return true;
  }

  /** The attempt in progress has ended: gives back what it has taken. */
  releaseAttempt(exchange: Exchange): void {
    const { held } = exchange;
    const high = isHigh(exchange);
    const { slot } = exchange.runtime!.backends[exchange.backend].settings;
    exchange.held = held & HELD_RETRY;
    exchange.pendingDeadlineMs = 0;
    if ((held & HELD_REQUEST) !== 0) this.give(slot, high ? HIGH_ACTIVE : ACTIVE);
    if ((held & HELD_PENDING) !== 0) this.give(slot, high ? HIGH_PENDING : PENDING);
  }

  /** The further attempt that was admitted is over. */
  releaseRetry(exchange: Exchange): void {
    if ((exchange.held & HELD_RETRY) === 0) return;
    exchange.held &= ~HELD_RETRY;
    this.give(exchange.runtime!.backends[exchange.backend].settings.slot, isHigh(exchange) ? HIGH_RETRIES : RETRIES);
  }

  /** The exchange has ended. */
  release(exchange: Exchange): void {
    this.releaseAttempt(exchange);
    this.releaseRetry(exchange);
  }

  // -- connections ------------------------------------------------------------------------

  /**
   * A connection to a backend is to be opened for an exchange, or (null) for streams. False: the limit is reached.
   * True: a place has been taken, for `opened` or `notOpened`.
   */
  admitConnection(exchange: Exchange | null, backend: BackendRuntime): boolean {
    const high = exchange !== null && isHigh(exchange);
    const { connectionsMax } = limitsOf(backend, high);
    if (this.take(backend, CONNECTIONS, connectionsMax)) return true;
    // An unused connection to another endpoint gives way.
    if (this.closeOneIdle(backend) && this.take(backend, CONNECTIONS, connectionsMax)) return true;
    this.overflowed(backend, BreakerLimit.CONNECTIONS, high);
    return false;
  }

  /** A connection that no limit holds up is to be opened. */
  countConnection(backend: BackendRuntime): void {
    const { node } = this.context.runtime;
    node.add(node.backendAt(backend.settings.slot) + CONNECTIONS, 1);
  }

  /** The connection for which a place has been taken is there. */
  opened(connection: Connection, backend: BackendRuntime): void {
    connection.breakerSlot = backend.settings.slot;
  }

  /** It is not, and gives its place back. */
  notOpened(backend: BackendRuntime): void {
    this.give(backend.settings.slot, CONNECTIONS);
  }

  /** A connection with a `breakerSlot` is closed. */
  closed(connection: Connection): void {
    this.give(connection.breakerSlot, CONNECTIONS);
    connection.breakerSlot = -1;
    this.wake();
  }

  /** Whether somebody else has more use for the place of an unused connection to a backend. */
  isWanted(backend: BackendRuntime): boolean {
    const breaker = backend.settings.policy.circuitBreaker;
    if (breaker === null) return false;
    const { words } = this.context.runtime.node;
    const at = this.context.runtime.node.backendAt(backend.settings.slot);
    const { connectionsMax } = breaker.normal;
    const isFull = connectionsMax > 0 && words[at + CONNECTIONS] >= connectionsMax;
    const own = this.queues.get(backend.settings.slot)?.count ?? 0;
    return isFull && words[at + PENDING] + words[at + HIGH_PENDING] > own;
  }

  private closeOneIdle(backend: BackendRuntime): boolean {
    for (const endpoint of backend.endpoints) {
      if (endpoint.idle === null) continue;
      this.context.upstreamHttp1.closeIdle(endpoint.idle);
      return true;
    }
    return false;
  }

  // -- those who wait ------------------------------------------------------------------------

  /** Counts an exchange as one that waits. False: too many do. `progress` is the caller's to call. */
  admitPending(exchange: Exchange, backend: BackendRuntime): boolean {
    const high = isHigh(exchange);
    const limits = limitsOf(backend, high);
    if (!this.take(backend, high ? HIGH_PENDING : PENDING, limits.pendingMax)) {
      this.overflowed(backend, BreakerLimit.PENDING, high);
      return false;
    }
    exchange.held |= HELD_PENDING;
    exchange.pendingDeadlineMs = this.context.reactor.nowMs + backend.settings.policy.circuitBreaker!.pendingTimeoutMs;
    return true;
  }

  /** An exchange that was counted as waiting waits no more. */
  pendingEnded(exchange: Exchange): void {
    exchange.pendingDeadlineMs = 0;
    if ((exchange.held & HELD_PENDING) === 0) return;
    exchange.held &= ~HELD_PENDING;
    const { slot } = exchange.runtime!.backends[exchange.backend].settings;
    this.give(slot, isHigh(exchange) ? HIGH_PENDING : PENDING);
  }

  /** Has an HTTP/1 exchange wait for a connection, or fails it when too many wait already. */
  wait(exchange: Exchange, backend: BackendRuntime): void {
    if (!this.admitPending(exchange, backend)) {
      this.context.upstream.failed(exchange, 503, Reason.UPSTREAM_OVERFLOW, Detail.PENDING_LIMIT, 0);
      return;
    }
    const { slot } = backend.settings;
    let queue = this.queues.get(slot);
    if (queue === undefined) {
      queue = new PendingQueue();
      this.queues.set(slot, queue);
      this.all.push(queue);
    }
    exchange.waiting = true;
    exchange.waitingPrevious = queue.last;
    exchange.waitingNext = null;
    if (queue.last === null) queue.first = exchange;
    else queue.last.waitingNext = exchange;
    queue.last = exchange;
    queue.count++;
    this.waiting++;
    exchange.downstreamSide!.progress(exchange);
    this.startClock();
  }

  /** Takes an exchange that waits for a connection out of its queue. */
  withdraw(exchange: Exchange): void {
    const queue = this.queues.get(exchange.runtime!.backends[exchange.backend].settings.slot)!;
    this.unlink(queue, exchange);
    this.pendingEnded(exchange);
  }

  private unlink(queue: PendingQueue, exchange: Exchange): void {
    const { waitingNext: next, waitingPrevious: previous } = exchange;
    if (previous === null) queue.first = next;
    else previous.waitingNext = next;
    if (next === null) queue.last = previous;
    else next.waitingPrevious = previous;
    exchange.waiting = false;
    exchange.waitingNext = null;
    exchange.waitingPrevious = null;
    queue.count--;
    this.waiting--;
  }

  private serve(queue: PendingQueue): void {
    const { upstreamHttp1 } = this.context;
    while (queue.first !== null) {
      const exchange = queue.first;
      const backend = exchange.runtime!.backends[exchange.backend];
      const endpoint = backend.endpoints[exchange.endpoint];
      const kept = endpoint.idle !== null;
      if (!kept && !this.admitWaiting(exchange, backend)) return;
      this.unlink(queue, exchange);
      this.pendingEnded(exchange);
      exchange.downstreamSide!.progress(exchange);
      upstreamHttp1.beginAdmitted(exchange, endpoint, !kept);
    }
  }

  /** `admitConnection` for one that waits already: a place that is still not there is no new overflow. */
  private admitWaiting(exchange: Exchange, backend: BackendRuntime): boolean {
    const { connectionsMax } = limitsOf(backend, isHigh(exchange));
    if (this.take(backend, CONNECTIONS, connectionsMax)) return true;
    return this.closeOneIdle(backend) && this.take(backend, CONNECTIONS, connectionsMax);
  }

  // -- when to look again -------------------------------------------------------------------

  /** A connection has become free, or has gone: those who wait are served at the end of the batch. */
  wake(): void {
    if (this.waiting === 0 || this.served || this.clock === null) return;
    this.served = true;
    this.context.reactor.atBatchEnd(this.clock);
  }

  batchEnd(): void {
    this.served = false;
    for (let i = 0; i < this.all.length; i++) this.serve(this.all[i]);
  }

  private startClock(): void {
    const { reactor } = this.context;
    this.clock ??= reactor.openVirtual(this, noTransport);
    if (this.clock === null) return;
    if (this.waiting === 1) reactor.setTimer(this.clock, POLL_MS);
  }

  expired(clock: Connection): void {
    this.batchEnd();
    if (this.waiting > 0) this.context.reactor.setTimer(clock, POLL_MS);
  }

  readable(): void {}

  writable(): void {}

  sendFailed(): void {}

  /** The worker ends. */
  destroy(): void {
    if (this.clock !== null) this.context.reactor.close(this.clock, false);
    this.clock = null;
  }

  // -- counts -----------------------------------------------------------------------------------

  private take(backend: BackendRuntime, word: number, max: number): boolean {
    const { node } = this.context.runtime;
    const at = node.backendAt(backend.settings.slot) + word;
    if (node.add(at, 1) < max || max === 0) return true;
    node.add(at, -1);
    return false;
  }

  private give(slot: number, word: number): void {
    const { node } = this.context.runtime;
    node.add(node.backendAt(slot) + word, -1);
  }

  private overflowed(backend: BackendRuntime, limit: number, high: boolean): void {
    const { node } = this.context.runtime;
    Atomics.add(node.words, node.backendAt(backend.settings.slot) + overflowWord(limit, high), 1);
  }
}

/** Whether an exchange, whose backend has a breaker, is counted among those of priority high. */
function isHigh(exchange: Exchange): boolean {
  const { policy } = exchange;
  if (policy === null || policy.settings.priority !== HIGH) return false;
  return exchange.runtime!.backends[exchange.backend].settings.policy.circuitBreaker!.high !== null;
}

function limitsOf(backend: BackendRuntime, high: boolean): BreakerLimits {
  const breaker = backend.settings.policy.circuitBreaker!;
  return high ? breaker.high! : breaker.normal;
}
