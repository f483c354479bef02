// Circuit breakers: how much of a backend may be in use at a time, by all workers of the node together.
//
//   request --> maxRequests --> [no connection: maxConnections --> waits: maxPendingRequests, pendingTimeout]
//   further attempt --> maxRetries
//
// Counts are words of the backend's slot in the node state, with shares. A count is taken first and given back
// if it was one too many, so that all workers together keep to the limit. What an exchange has taken is noted
// in `held`, what a connection has in `breakerSlot`.
// HTTP/1 requests that wait are queued here, per worker and backend, those of priority high before the others,
// otherwise first come first served; those that wait
// for a stream of HTTP/2 in lb/http2-pool.ts, and are counted here. A worker whose requests wait hears of its
// own connections at the end of the batch, and looks for what other workers gave up every POLL_MS.
// Owned by one worker. Hot module where a backend has a breaker: no allocation per request.

import type { Connection, Protocol } from '../io/connection.ts';
import { noTransport } from '../io/transport.ts';
import { type BreakerLimits, Priority } from '../lb/attempt-settings.ts';
import { BackendWord } from '../lb/node-state.ts';
import type { ProxyContext } from './context.ts';
import type { Exchange } from './exchange.ts';
import { Detail, Reason } from './reasons.ts';
import type { BackendRuntime, Runtime } from './runtime.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { ACTIVE, PENDING, RETRIES, CONNECTIONS, HIGH_ACTIVE, HIGH_PENDING, HIGH_RETRIES, OVERFLOWS, BREAKER_TRIALS } =
  BackendWord;
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

/** Bit of a class of requests in BackendWord.BREAKER_TRIALS. */
export function trialBit(high: boolean): number {
  return high ? 2 : 1;
}

/** How often a worker whose requests wait looks whether another one has closed a connection. */
const POLL_MS = 10;

/** How often an unused connection looks whether requests wait for its place. */
export const IDLE_LOOK_MS = 250;

/** Requests of one worker and class that wait for a connection to one backend. */
class PendingQueue {
  first: Exchange | null = null;
  last: Exchange | null = null;
  count = 0;
}

/** Those of both classes. */
class PendingQueues {
  readonly high = new PendingQueue();
  readonly normal = new PendingQueue();
}

export class CircuitBreakers implements Protocol {
  private readonly context: ProxyContext;
  /** By slot of the backend; made with the first request that waits. */
  private readonly queues = new Map<number, PendingQueues>();
  private readonly all: PendingQueues[] = [];
  /** Backends with a breaker by name, while a reload is taken in. */
  private readonly reloadedBackends = new Map<string, BackendRuntime>();
  private readonly countReloaded: (connection: Connection) => void;
  /** Backends of the runtime in force by slot, and whose they are. */
  private readonly backends = new Map<number, BackendRuntime>();
  private backendsOf: Runtime | null = null;
  private backendsKnown = 0;
  private waiting = 0;
  /** Whose timer and batch end serve the queues; made at first use. */
  private clock: Connection | null = null;
  private served = false;

  constructor(context: ProxyContext) {
    this.context = context;
    this.countReloaded = (connection) => {
      if (connection.listener !== null || connection.backend === null || connection.breakerSlot >= 0) return;
      if (connection.backend.isTunnel) return;
      const backend = this.reloadedBackends.get(connection.backend.settings.name);
      if (backend === undefined) return;
      this.countOpen(connection, backend);
      // From now on it has to look whether its place is wanted.
      if (!isIdle(connection)) return;
      connection.idleSinceMs = context.reactor.nowMs;
      context.reactor.setTimer(connection, Math.min(IDLE_LOOK_MS, backend.settings.idleTimeoutMs));
    };
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
    const { node } = this.context.runtime;
    const trialsAt = node.backendAt(backend.settings.slot) + BREAKER_TRIALS;
    if (node.words[trialsAt] !== 0) Atomics.and(node.words, trialsAt, ~trialBit(high));
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
    // Unused connections to other endpoints give way.
    if (this.makeRoom(backend, connectionsMax) && this.take(backend, CONNECTIONS, connectionsMax)) return true;
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

  /** A connection that is open already counts from now on. */
  countOpen(connection: Connection, backend: BackendRuntime): void {
    this.countConnection(backend);
    this.opened(connection, backend);
  }

  /** A runtime has come into force: connections to backends that have a breaker by now count, whenever they were opened. */
  reloaded(): void {
    const { reactor, runtime } = this.context;
    this.reloadedBackends.clear();
    for (let i = 0; i < runtime.backends.length; i++) {
      const backend = runtime.backends[i];
      if (backend.settings.policy.circuitBreaker !== null) this.reloadedBackends.set(backend.settings.name, backend);
    }
    if (this.reloadedBackends.size > 0) reactor.forEach(this.countReloaded);
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

  /**
   * Whether an unused connection that is counted in a slot had better be closed: more are open than the limits in
   * force allow, as after a reload, or requests of other workers wait for its place.
   */
  isUnwanted(slot: number): boolean {
    const backend = this.backendInForce(slot);
    if (backend === null) return false;
    const { circuitBreaker } = backend.settings.policy;
    if (circuitBreaker === null) return false;
    const { normal, high } = circuitBreaker;
    const { node } = this.context.runtime;
    const { words } = node;
    const at = node.backendAt(slot);
    const open = words[at + CONNECTIONS];
    const queues = this.queues.get(slot);
    const normalMax = normal.connectionsMax;
    const othersWait = words[at + PENDING] > (queues === undefined ? 0 : queues.normal.count);
    if (high === null) return normalMax > 0 && (open > normalMax || (open === normalMax && othersWait));
    const highMax = high.connectionsMax;
    // What one class may have open is not too much because the other may not.
    if (normalMax > 0 && highMax > 0 && open > normalMax && open > highMax) return true;
    if (normalMax > 0 && open >= normalMax && othersWait) return true;
    const othersWaitHigh = words[at + HIGH_PENDING] > (queues === undefined ? 0 : queues.high.count);
    return highMax > 0 && open >= highMax && othersWaitHigh;
  }

  private backendInForce(slot: number): BackendRuntime | null {
    const { runtime } = this.context;
    // A node proxy's come one by one, as they are first used.
    if (this.backendsOf !== runtime || this.backendsKnown !== runtime.backends.length) {
      this.backendsOf = runtime;
      this.backendsKnown = runtime.backends.length;
      this.backends.clear();
      for (let i = 0; i < runtime.backends.length; i++) {
        this.backends.set(runtime.backends[i].settings.slot, runtime.backends[i]);
      }
    }
    const backend = this.backends.get(slot);
    return backend === undefined ? null : backend;
  }

  /**
   * Closes as many unused connections as it takes for one more to be within the limit. Where this worker has not so
   * many it closes none: that would help nobody.
   */
  private makeRoom(backend: BackendRuntime, connectionsMax: number): boolean {
    const { node } = this.context.runtime;
    const { slot } = backend.settings;
    const excess = node.words[node.backendAt(slot) + CONNECTIONS] - connectionsMax + 1;
    return this.idleOf(backend, excess, false) >= excess && this.idleOf(backend, excess, true) >= excess;
  }

  /** Counts unused connections that have a place of the backend, up to `most`, and closes them if asked to. */
  private idleOf(backend: BackendRuntime, most: number, close: boolean): number {
    const { slot } = backend.settings;
    const { endpoints } = backend;
    let count = 0;
    for (let i = 0; i < endpoints.length; i++) {
      let connection = endpoints[i].idle;
      while (connection !== null && count < most) {
        const next: Connection | null = connection.idleNext;
        if (connection.breakerSlot === slot) {
          count++;
          if (close) this.context.upstreamHttp1.closeIdle(connection);
        }
        connection = next;
      }
    }
    return count;
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
    let queues = this.queues.get(slot);
    if (queues === undefined) {
      queues = new PendingQueues();
      this.queues.set(slot, queues);
      this.all.push(queues);
    }
    const queue = isHigh(exchange) ? queues.high : queues.normal;
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
    const { high, normal } = this.queues.get(exchange.runtime!.backends[exchange.backend].settings.slot)!;
    this.unlink(isHigh(exchange) ? high : normal, exchange);
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
    return this.makeRoom(backend, connectionsMax) && this.take(backend, CONNECTIONS, connectionsMax);
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
    for (let i = 0; i < this.all.length; i++) {
      const { high, normal } = this.all[i];
      this.serve(high);
      // Their limit may be another one: what is too much for the former may do for these.
      this.serve(normal);
    }
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

/** Whether a connection is in the idle list of its endpoint. */
function isIdle(connection: Connection): boolean {
  return connection.idlePrevious !== null || connection.endpoint!.idle === connection;
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
