// Circuit breakers as the control thread sees them: what is in use and the state of each limit, for metrics and the
// admin port, and a line in the log when a breaker changes its state.
//
//   CLOSED --refuses something--> OPEN --refuses nothing for OPEN_MS--> HALF_OPEN --TRIAL_MS in use--> CLOSED
//                                   ^----------------- refuses something ----/
//
// A breaker on requests is not switched off like a fuse: whatever fits within its limits goes on. Its state tells
// whether something is refused. A limit that is only just reached harms nobody and stays closed. The trial of a half-open
// limit is over TRIAL_MS after its last refusal, if a request of its class has been admitted since: a backend that nobody
// asks has proved nothing, and stays half open until somebody does.
// Owned by the control thread; reads the node state, in which the workers count (core/exchange/circuit-breaker.ts), and
// asks them there for a sign of the next request that they admit (BREAKER_TRIALS).

import { BreakerLimit, breakerLimitNames, overflowWord, trialBit } from '../core/exchange/circuit-breaker.ts';
import { BackendWord, type NodeState } from '../core/lb/node-state.ts';
import type { Log } from '../core/workers/log.ts';
import type { BackendSettings } from '../core/workers/snapshot.ts';
import { type BreakerState, type BreakerStateName, breakerStateNames } from './admin/state.ts';

/** Time between two looks. */
const TICK_MS = 1000;

/** Time after a refusal for which a limit is open; what is refused all the time is seen with every look. */
const OPEN_MS = 1000;

/** Least time after the last refusal until a limit is closed again. */
const TRIAL_MS = 10_000;

/** Least time between two lines about one backend. */
const LINE_INTERVAL_MS = 10_000;

const { ACTIVE, BREAKER_TRIALS, CONNECTIONS, HIGH_ACTIVE, HIGH_PENDING, HIGH_RETRIES, PENDING, RETRIES } = BackendWord;

/** One limit of one class of requests. */
interface Watched {
  limit: number;
  high: boolean;
  /** Refusals counted at the last look, by the workers' count. */
  count: number;
  state: BreakerStateName;
  /** When something was last refused. */
  refusedMs: number;
  /** No request of its class has been admitted since. */
  awaitsRequest: boolean;
}

/** A backend's breaker, and what the log has said of it. */
interface Breaker {
  settings: BackendSettings;
  /** All limits, also those that are off: a reload may turn them on. */
  limits: Watched[];
  told: BreakerStateName;
  /** Refusals since the line that it is open. */
  refused: number;
  /** When the last line was written. */
  lineMs: number;
}

export class BreakerWatch {
  private readonly node: NodeState;
  private readonly log: Log;
  private readonly nowMs: () => number;
  private breakers = new Map<string, Breaker>();
  private timer: NodeJS.Timeout | undefined;

  constructor(node: NodeState, log: Log, nowMs: () => number = () => performance.now()) {
    this.node = node;
    this.log = log;
    this.nowMs = nowMs;
  }

  /** These backends are in force. Breakers that stay keep their states. */
  use(backends: readonly BackendSettings[]): void {
    const before = this.breakers;
    this.breakers = new Map();
    for (const settings of backends) {
      if (settings.policy.circuitBreaker === null) continue;
      const known = before.get(settings.name);
      const breaker = known ?? this.newBreaker(settings);
      breaker.settings = settings;
      // A limit that is off refuses nothing, and would wait for requests of a class that there may be no more.
      for (const watched of breaker.limits) {
        if (maxOf(settings, watched) > 0) continue;
        watched.state = 'closed';
        watched.awaitsRequest = false;
      }
      this.breakers.set(settings.name, breaker);
    }
    clearInterval(this.timer);
    this.timer = this.breakers.size > 0 ? setInterval(() => this.look(), TICK_MS).unref() : undefined;
  }

  close(): void {
    clearInterval(this.timer);
  }

  /** What was refused under an earlier configuration has been told. */
  private newBreaker(settings: BackendSettings): Breaker {
    const limits = [false, true].flatMap((high) =>
      Object.values(BreakerLimit).map(
        (limit): Watched => ({
          limit,
          high,
          count: this.word(settings, overflowWord(limit, high)),
          state: 'closed',
          refusedMs: Number.NEGATIVE_INFINITY,
          awaitsRequest: false,
        }),
      ),
    );
    return { settings, limits, told: 'closed', refused: 0, lineMs: Number.NEGATIVE_INFINITY };
  }

  /** All breakers as they are now, in the order of the configuration. */
  states(): BreakerState[] {
    this.look();
    return [...this.breakers.values()].map(({ settings, limits }) => ({
      backend: settings.name,
      state: worst(limits),
      limits: limits
        .filter((watched) => maxOf(settings, watched) > 0)
        .map((watched) => ({
          limit: breakerLimitNames[watched.limit]!,
          priority: watched.high ? 'high' : 'default',
          state: watched.state,
          inUse: Math.max(0, this.word(settings, countWord(watched))),
          max: maxOf(settings, watched),
          overflows: this.word(settings, overflowWord(watched.limit, watched.high)) >>> 0,
        })),
    }));
  }

  /** Looks what has been refused, and admitted, since the last look. */
  look(): void {
    const nowMs = this.nowMs();
    for (const breaker of this.breakers.values()) {
      const trialsAt = this.node.backendAt(breaker.settings.slot) + BREAKER_TRIALS;
      const asked = Atomics.load(this.node.words, trialsAt);
      let most: Watched | undefined;
      let refused = 0;
      let mostRefused = 0;
      let trials = 0;
      for (const watched of breaker.limits) {
        const grown = this.advance(breaker, watched, asked, nowMs);
        if (watched.awaitsRequest) trials |= trialBit(watched.high);
        refused += grown;
        if (grown > mostRefused) {
          mostRefused = grown;
          most = watched;
        }
      }
      if (trials !== 0) Atomics.or(this.node.words, trialsAt, trials);
      breaker.refused += refused;
      this.tell(breaker, refused, most, nowMs);
    }
  }

  /** Brings one limit up to date; returns what it has refused since the last look. `asked`: BREAKER_TRIALS. */
  private advance({ settings }: Breaker, watched: Watched, asked: number, nowMs: number): number {
    const { limit, high } = watched;
    const count = this.word(settings, overflowWord(limit, high));
    const grown = (count - watched.count) | 0;
    watched.count = count;
    if (grown > 0) {
      watched.state = 'open';
      watched.refusedMs = nowMs;
      watched.awaitsRequest = true;
      return grown;
    }
    if (watched.state === 'closed') return 0;
    // The bit was set no earlier than the look that saw the last refusal.
    if (watched.awaitsRequest && (asked & trialBit(high)) === 0) watched.awaitsRequest = false;
    const quietMs = nowMs - watched.refusedMs;
    if (quietMs >= TRIAL_MS && !watched.awaitsRequest) watched.state = 'closed';
    else if (quietMs >= OPEN_MS) watched.state = 'half_open';
    return 0;
  }

  /** Writes the line that is due: each is about a change, and there is not more than one in LINE_INTERVAL_MS. */
  private tell(breaker: Breaker, refused: number, most: Watched | undefined, nowMs: number): void {
    const state = worst(breaker.limits);
    if (state === breaker.told || nowMs - breaker.lineMs < LINE_INTERVAL_MS) return;
    // What was refused for a moment, right after a line, is over.
    if (state === 'open' && most === undefined) return;
    const backend = breaker.settings.name;
    breaker.told = state;
    breaker.lineMs = nowMs;
    if (most !== undefined) {
      const limit = breakerLimitNames[most.limit]!;
      const priority = most.high ? { priority: 'high' } : {};
      this.log('warn', 'circuit breaker open', { backend, limit, ...priority, overflows: refused });
    } else if (state === 'half_open') {
      this.log('info', 'circuit breaker half open', { backend, overflows: breaker.refused });
    } else {
      this.log('info', 'circuit breaker closed', { backend, overflows: breaker.refused });
      breaker.refused = 0;
    }
  }

  private word(backend: BackendSettings, word: number): number {
    return Atomics.load(this.node.words, this.node.backendAt(backend.slot) + word);
  }
}

/** What is configured; 0: no limit. */
function maxOf({ policy }: BackendSettings, { limit, high }: Watched): number {
  const limits = high ? policy.circuitBreaker!.high : policy.circuitBreaker!.normal;
  if (limits === null) return 0;
  switch (limit) {
    case BreakerLimit.CONNECTIONS:
      return limits.connectionsMax;
    case BreakerLimit.PENDING:
      return limits.pendingMax;
    case BreakerLimit.REQUESTS:
      return limits.requestsMax;
    default:
      return limits.retriesMax;
  }
}

/** Word of what counts towards a limit; connections of both classes are counted together. */
function countWord({ limit, high }: Watched): number {
  switch (limit) {
    case BreakerLimit.CONNECTIONS:
      return CONNECTIONS;
    case BreakerLimit.PENDING:
      return high ? HIGH_PENDING : PENDING;
    case BreakerLimit.REQUESTS:
      return high ? HIGH_ACTIVE : ACTIVE;
    default:
      return high ? HIGH_RETRIES : RETRIES;
  }
}

function worst(limits: readonly Watched[]): BreakerStateName {
  const states = limits.map(({ state }) => state);
  return breakerStateNames.findLast((name) => states.includes(name))!;
}
