// Circuit breakers as the control thread sees them: what is in use, for the admin port, and a line in the
// log when one begins to refuse requests and when it has stopped.
//
// Owned by the control thread; reads the node state, in which the workers count (core/exchange/circuit-breaker.ts).
// A breaker is open while one of its limits is reached. The log goes by what was refused: a limit that
// is only just reached harms nobody.

import { BreakerLimit, breakerLimitNames, overflowWord } from '../core/exchange/circuit-breaker.ts';
import type { BreakerLimits } from '../core/lb/attempt-settings.ts';
import { BackendWord, type NodeState } from '../core/lb/node-state.ts';
import type { Log } from '../core/workers/log.ts';
import type { BackendSettings } from '../core/workers/snapshot.ts';
import type { BreakerLimitState, BreakerState } from './admin/state.ts';

/** Time between two looks. */
const TICK_MS = 1000;

/** Least time between two lines about one backend, and time without a refusal after which it is over. */
const LINE_INTERVAL_MS = 10_000;

/** What the log has said of a backend's breaker. */
interface Told {
  /** Refusals counted at the last look, per limit and class, and since the line that it is open. */
  counts: number[];
  refused: number;
  open: boolean;
  /** When something was last refused, and when the last line was written. */
  refusedMs: number;
  lineMs: number;
}

export class BreakerWatch {
  private readonly node: NodeState;
  private readonly log: Log;
  private readonly nowMs: () => number;
  private backends: readonly BackendSettings[] = [];
  private readonly told = new Map<string, Told>();
  private timer: NodeJS.Timeout | undefined;

  constructor(node: NodeState, log: Log, nowMs: () => number = () => performance.now()) {
    this.node = node;
    this.log = log;
    this.nowMs = nowMs;
  }

  /** These backends are in force. */
  use(backends: readonly BackendSettings[]): void {
    this.backends = backends.filter(({ policy }) => policy.circuitBreaker !== null);
    const names = new Set(this.backends.map(({ name }) => name));
    for (const name of this.told.keys()) if (!names.has(name)) this.told.delete(name);
    clearInterval(this.timer);
    this.timer = this.backends.length > 0 ? setInterval(() => this.look(), TICK_MS).unref() : undefined;
  }

  close(): void {
    clearInterval(this.timer);
  }

  /** All breakers, in the order of the configuration. */
  states(): BreakerState[] {
    return this.backends.map((backend) => {
      const { normal, high } = backend.policy.circuitBreaker!;
      const limits = this.limitStates(backend, normal, false);
      if (high !== null) limits.push(...this.limitStates(backend, high, true));
      return { backend: backend.name, open: limits.some(({ open }) => open), limits };
    });
  }

  private limitStates(backend: BackendSettings, limits: BreakerLimits, high: boolean): BreakerLimitState[] {
    const { ACTIVE, CONNECTIONS, HIGH_ACTIVE, HIGH_PENDING, HIGH_RETRIES, PENDING, RETRIES } = BackendWord;
    const rows: [limit: number, max: number, word: number][] = [
      [BreakerLimit.CONNECTIONS, limits.connectionsMax, CONNECTIONS],
      [BreakerLimit.PENDING, limits.pendingMax, high ? HIGH_PENDING : PENDING],
      [BreakerLimit.REQUESTS, limits.requestsMax, high ? HIGH_ACTIVE : ACTIVE],
      [BreakerLimit.RETRIES, limits.retriesMax, high ? HIGH_RETRIES : RETRIES],
    ];
    return rows
      .filter(([, max]) => max > 0)
      .map(([limit, max, word]) => {
        const inUse = Math.max(0, this.word(backend, word));
        return {
          limit: breakerLimitNames[limit]!,
          priority: high ? 'high' : 'default',
          inUse,
          max,
          open: inUse >= max,
          overflows: this.word(backend, overflowWord(limit, high)) >>> 0,
        };
      });
  }

  /** Looks what has been refused since the last look. */
  look(): void {
    for (const backend of this.backends) this.lookAt(backend, this.nowMs());
  }

  private lookAt(backend: BackendSettings, nowMs: number): void {
    const counts: number[] = [];
    for (const high of [false, true]) {
      for (const limit of Object.values(BreakerLimit)) counts.push(this.word(backend, overflowWord(limit, high)));
    }
    const told = this.told.get(backend.name);
    if (told === undefined) {
      // What was refused under an earlier configuration has been told.
      this.told.set(backend.name, {
        counts,
        refused: 0,
        open: false,
        refusedMs: Number.NEGATIVE_INFINITY,
        lineMs: Number.NEGATIVE_INFINITY,
      });
      return;
    }
    const grown = counts.map((count, index) => (count - told.counts[index]!) | 0);
    told.counts = counts;
    const refused = grown.reduce((sum, count) => sum + count, 0);
    if (refused > 0) told.refusedMs = nowMs;
    told.refused += refused;
    if (nowMs - told.lineMs < LINE_INTERVAL_MS) return;
    if (!told.open && refused > 0) {
      told.open = true;
      told.lineMs = nowMs;
      const most = grown.indexOf(Math.max(...grown));
      const limit = breakerLimitNames[most % breakerLimitNames.length]!;
      this.log('warn', 'circuit breaker open', { backend: backend.name, limit, overflows: refused });
    } else if (told.open && nowMs - told.refusedMs >= LINE_INTERVAL_MS) {
      told.open = false;
      told.lineMs = nowMs;
      this.log('info', 'circuit breaker closed', { backend: backend.name, overflows: told.refused });
      told.refused = 0;
    }
  }

  private word(backend: BackendSettings, word: number): number {
    return Atomics.load(this.node.words, this.node.backendAt(backend.slot) + word);
  }
}
