// Gives rate limits their tables in shared memory, and keeps them across snapshots: a reload that leaves a limit
// as it is forgets nothing of what it has counted.
//
// Owned by the control thread. A limit is the same as long as its name and its numbers are.

import { DETAIL_LIMIT, DETAIL_POLICY } from '../exchange/reasons.ts';
import { useLimitNames } from '../limits/limit-names.ts';
import { type RateLimitSettings, type RateLimitTable, RedisWord } from '../limits/limit-settings.ts';
import { createLimitTable, LimitTable, limitCounter, wrapMs } from '../limits/limit-table.ts';
import type { RulePolicySettings } from './policies.ts';

/** How often tables are looked at that may need a sweep; the fastest limits need one every half hour. */
export const LIMIT_SWEEP_INTERVAL_MS = 60_000;

/**
 * Names that get a number of their own. A number is never given to another name, since records of failed requests explain
 * themselves by it long after; so names are not forgotten, and in a mesh services with limits come and go. Beyond the
 * numbers that there are for limits, which are 97,000 names and some 20 MB in every thread, further ones share the last
 * number, which has no name: they limit as all do, and logs call them `limit_96999` until the process is restarted.
 */
export const LIMIT_NAMES_MAX = DETAIL_POLICY - DETAIL_LIMIT - 1;

interface Entry {
  settings: RateLimitSettings;
  table: RateLimitTable;
  view: LimitTable;
  sweptMs: number;
}

/** The tables of a gateway's rate limits. */
export class LimitTables {
  /** RedisWord, for all workers. */
  readonly redis = new SharedArrayBuffer(RedisWord.WORDS * 4);
  private readonly workers: number;
  private readonly entries = new Map<string, Entry>();
  private readonly ids = new Map<string, number>();

  constructor(workers: number) {
    this.workers = workers;
  }

  /** The tables of all limits that some rules have, each once. */
  assign(policies: readonly RulePolicySettings[], nowMs: number): RateLimitTable[] {
    const tables = new Map<string, RateLimitTable>();
    for (const { rateLimits } of policies) {
      for (const settings of rateLimits) {
        if (!tables.has(settings.name)) tables.set(settings.name, this.entry(settings, nowMs).table);
      }
    }
    return [...tables.values()];
  }

  /** These are now in force: all others are forgotten. */
  keepOnly(tables: readonly RateLimitTable[]): void {
    const buffers = new Set(tables.map(({ buffer }) => buffer));
    for (const [identity, { table }] of this.entries) if (!buffers.has(table.buffer)) this.entries.delete(identity);
  }

  /** Keeps tables from being older than their clock; to be called every LIMIT_SWEEP_INTERVAL_MS. */
  sweep(nowMs: number): void {
    for (const entry of this.entries.values()) {
      if (nowMs - entry.sweptMs < wrapMs(entry.settings) / 8) continue;
      entry.sweptMs = nowMs;
      entry.view.sweep(nowMs);
    }
  }

  /** A counter (LimitCounter) of every limit in use, by name. */
  counters(counter: number): { name: string; value: number }[] {
    return [...this.entries.values()].map(({ settings, table }) => ({
      name: settings.name,
      value: limitCounter(table.buffer, counter),
    }));
  }

  private entry(settings: RateLimitSettings, nowMs: number): Entry {
    const { name, requests, periodMs, burst, key, keysMax } = settings;
    const identity = JSON.stringify([name, requests, periodMs, burst, key, keysMax]);
    let entry = this.entries.get(identity);
    if (entry === undefined) {
      const buffer = createLimitTable(settings, this.workers, nowMs, (words) => crypto.getRandomValues(words));
      const table = { name, id: this.idOf(name), buffer };
      entry = { settings, table, view: new LimitTable(buffer, settings, -1), sweptMs: nowMs };
      this.entries.set(identity, entry);
    }
    return entry;
  }

  private idOf(name: string): number {
    let id = this.ids.get(name);
    if (id === undefined) {
      if (this.ids.size >= LIMIT_NAMES_MAX) return LIMIT_NAMES_MAX;
      id = this.ids.size;
      this.ids.set(name, id);
      // For records of failed requests, which this thread explains.
      useLimitNames([{ id, name }]);
    }
    return id;
  }
}
