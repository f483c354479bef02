// Rate limits seen from the control thread: the tables that workers share, and Redis for global ones.
//
// Owned by the control thread. The Redis client is loaded when a configuration first asks for it: most never do.

import type { Config } from '../../config/config.ts';
import type { RateLimitSettings } from '../../core/limits/limit-settings.ts';
import { monotonicMs } from '../../core/workers/clock.ts';
import { LIMIT_SWEEP_INTERVAL_MS, type LimitTables } from '../../core/workers/limit-tables.ts';
import type { Log } from '../../core/workers/log.ts';
import type { LimitQuestion } from '../../core/workers/protocol.ts';
import type { Snapshot } from '../../core/workers/snapshot.ts';
import type { AnswerLimits, RedisLimits, RedisLimitsState } from './redis-limits.ts';

/** Rate limits of a gateway. */
export class RateLimiting {
  readonly tables: LimitTables;
  private readonly log: Log;
  private readonly sweepTimer: NodeJS.Timeout;
  private redis: RedisLimits | null = null;
  private loading: Promise<void> | null = null;
  /** What is to be counted in Redis. */
  private wanted: { config: Config['redis']; limits: RateLimitSettings[]; always: boolean } = {
    ...{ config: null, limits: [], always: false },
  };
  private closed = false;

  constructor(tables: LimitTables, log: Log) {
    this.tables = tables;
    this.log = log;
    this.sweepTimer = setInterval(() => tables.sweep(monotonicMs()), LIMIT_SWEEP_INTERVAL_MS);
    this.sweepTimer.unref();
  }

  /** What Redis does; null where nothing is counted there. */
  get redisState(): RedisLimitsState | null {
    return this.wanted.config === null ? null : (this.redis?.state ?? null);
  }

  /** This configuration is in force. */
  adopt(config: Config, snapshot: Snapshot): void {
    this.tables.keepOnly(snapshot.rateLimits.tables);
    const limits = snapshot.rulePolicies.flatMap(({ rateLimits }) => rateLimits);
    // A node proxy learns of a limit with the request that it is to count, which should not have to wait for a connection.
    const always = config.mesh !== undefined;
    this.wanted = { config: config.redis, limits, always };
    if (this.redis !== null) this.redis.use(config.redis, limits, always);
    else if (config.redis !== null) this.loading ??= this.load();
  }

  /** Asks Redis whether requests pass; see RedisLimits.ask. */
  ask(questions: LimitQuestion[], answer: AnswerLimits): void {
    if (this.redis !== null) this.redis.ask(questions, answer);
    else answer(questions.map(({ ask }) => ({ ask, results: null })));
  }

  /** Ends timers and connections. */
  close(): void {
    this.closed = true;
    clearInterval(this.sweepTimer);
    this.redis?.close();
  }

  private async load(): Promise<void> {
    const { RedisLimits } = await import('./redis-limits.ts');
    if (this.closed) return;
    this.redis = new RedisLimits(this.tables.redis, this.log);
    const { config, limits, always } = this.wanted;
    this.redis.use(config, limits, always);
  }
}
