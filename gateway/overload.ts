// Overload protection of the gateway itself: looks at descriptors, connections, buffers, memory and the lag of
// the workers' loops, and tells workers what to do without (OverloadLevel in core/exchange/overload.ts).
//
//   pressure of a trigger     0 .. 1    at its threshold (1st level: no new connections)
//                             1 .. 2    a third of the way from there to 100 %, or twice the lag (2nd: priority low)
//                             2 ..      two thirds, or three times the lag (3rd: priority default)
//
// The trigger with the greatest pressure decides. A level ends half a step below where it began, so that a
// gateway at the edge does not flap, and one level at a time; it begins at once.
// Owned by the control thread.

import { readdirSync } from 'node:fs';
import { totalmem } from 'node:os';
import type { OverloadConfig } from '../config/config.ts';
import { OverloadLevel } from '../core/exchange/overload.ts';
import type { NodeState } from '../core/lb/node-state.ts';
import { Counter } from '../core/telemetry/metrics.ts';
import type { Log } from '../core/workers/log.ts';
import type { OverloadState } from './admin/state.ts';

/** How often the gateway looks. */
const INTERVAL_MS = 200;

/** Memory is read less often: it changes slowly, and asking the system costs something. */
const MEMORY_INTERVAL_MS = 1000;

/** Least time between two levels on the way down. */
const CALM_MS = 1000;

/** How far below its beginning a level ends, in steps. */
const HYSTERESIS = 0.5;

/** What is watched. */
export type Trigger = 'descriptors' | 'connections' | 'buffers' | 'memory' | 'loopLag';

/** How much of each is in use: shares from 0 to 1, the lag in milliseconds. */
export type Readings = Record<Trigger, number>;

/** Judges readings. Pure but for what it remembers. */
export class OverloadJudge {
  level: number = OverloadLevel.NONE;
  /** Trigger that decided last; undefined while there is no overload. */
  trigger: Trigger | undefined;
  /** Pressure of each trigger that is watched; 1 is its threshold. */
  readonly pressures = new Map<Trigger, number>();
  private changedMs = Number.NEGATIVE_INFINITY;

  /** Judges at a monotonic time in milliseconds; true when the level has changed. */
  judge(readings: Readings, config: OverloadConfig, nowMs: number): boolean {
    this.pressures.clear();
    let worst: Trigger | undefined;
    let steps = Number.NEGATIVE_INFINITY;
    for (const trigger of Object.keys(readings) as Trigger[]) {
      const stepsOf = stepsBeyond(trigger, readings[trigger], config);
      if (stepsOf === undefined) continue;
      this.pressures.set(trigger, Math.max(0, 1 + stepsOf));
      if (stepsOf <= steps) continue;
      steps = stepsOf;
      worst = trigger;
    }
    const wanted = Math.min(Math.max(Math.floor(steps) + 1, OverloadLevel.NONE), OverloadLevel.DEFAULT);
    const { level } = this;
    if (wanted > level) {
      this.level = wanted;
    } else if (level > 0 && steps < level - 1 - HYSTERESIS && nowMs - this.changedMs >= CALM_MS) {
      this.level = level - 1;
    }
    if (this.level === OverloadLevel.NONE) this.trigger = undefined;
    else if (wanted >= this.level) this.trigger = worst;
    if (this.level === level) return false;
    this.changedMs = nowMs;
    return true;
  }
}

/** How many steps a reading lies beyond the first level of its trigger; undefined where it is not watched. */
function stepsBeyond(trigger: Trigger, reading: number, config: OverloadConfig): number | undefined {
  if (trigger === 'loopLag') return config.loopLagMs === 0 ? undefined : reading / config.loopLagMs - 1;
  const threshold = config[trigger] / 100;
  return threshold === 0 ? undefined : (reading - threshold) / ((1 - threshold) / 3);
}

/** What the monitor reads. */
export interface OverloadSources {
  /** Counters of each worker. */
  metrics: readonly SharedArrayBuffer[];
  /** Connection slots of each worker. */
  connectionsMax: number;
  /** Descriptors that the process may have, and those that are no connections. */
  descriptorsMax: number;
  descriptorsFixed: number;
  node: NodeState;
}

/** Watches the gateway. */
export class OverloadMonitor implements OverloadState {
  private readonly sources: OverloadSources;
  private readonly log: Log;
  private readonly judge = new OverloadJudge();
  private readonly counters: Float64Array[];
  private config: OverloadConfig | null = null;
  private timer: NodeJS.Timeout | undefined;
  private memoryShare = 0;
  private memoryReadMs = Number.NEGATIVE_INFINITY;

  constructor(sources: OverloadSources, log: Log) {
    this.sources = sources;
    this.log = log;
    this.counters = sources.metrics.map((buffer) => new Float64Array(buffer));
  }

  get level(): number {
    return this.judge.level;
  }

  get pressures(): ReadonlyMap<string, number> {
    return this.judge.pressures;
  }

  get shedLow(): number {
    return this.sources.node.shed(true);
  }

  get shedOthers(): number {
    return this.sources.node.shed(false);
  }

  /** These thresholds are in force. */
  use(config: OverloadConfig): void {
    this.config = config;
    this.timer ??= setInterval(() => this.look(performance.now()), INTERVAL_MS).unref();
  }

  /** Stops watching, and sheds nothing any more. */
  close(): void {
    clearInterval(this.timer);
    this.timer = undefined;
    this.sources.node.setOverload(OverloadLevel.NONE, false);
  }

  private look(nowMs: number): void {
    const { judge, sources } = this;
    const readings = this.read(nowMs);
    const changed = judge.judge(readings, this.config!, nowMs);
    const scarce = ['connections', 'descriptors'].some(
      (trigger) => (judge.pressures.get(trigger as Trigger) ?? 0) >= 1,
    );
    sources.node.setOverload(judge.level, scarce);
    if (changed) this.report(readings);
  }

  private report(readings: Readings): void {
    const { level, trigger } = this.judge;
    if (trigger === undefined) {
      this.log('info', 'no longer overloaded');
      return;
    }
    const actions = [
      '',
      'new connections wait',
      'new connections wait, requests of priority low are refused',
      'new connections wait, requests of priority low and default are refused',
    ];
    const reading = readings[trigger];
    const value = trigger === 'loopLag' ? `${Math.round(reading)} ms` : `${Math.round(reading * 100)} %`;
    this.log('warn', `overloaded: ${actions[level]}`, { level, trigger, value });
  }

  private read(nowMs: number): Readings {
    const { connectionsMax, descriptorsMax, descriptorsFixed } = this.sources;
    let open = 0;
    const readings: Readings = { descriptors: 0, connections: 0, buffers: 0, memory: this.memory(nowMs), loopLag: 0 };
    for (const counters of this.counters) {
      const connections = counters[Counter.DOWNSTREAM_OPEN]! + counters[Counter.UPSTREAM_OPEN]!;
      open += connections;
      readings.connections = Math.max(readings.connections, connections / connectionsMax);
      const total = counters[Counter.BUFFERS_TOTAL]!;
      if (total > 0) readings.buffers = Math.max(readings.buffers, counters[Counter.BUFFERS_IN_USE]! / total);
      readings.loopLag = Math.max(readings.loopLag, counters[Counter.LOOP_LAG_MS]!);
    }
    readings.descriptors = (open + descriptorsFixed) / descriptorsMax;
    return readings;
  }

  private memory(nowMs: number): number {
    if (nowMs - this.memoryReadMs >= MEMORY_INTERVAL_MS) {
      this.memoryReadMs = nowMs;
      try {
        this.memoryShare = process.memoryUsage.rss() / memoryMax();
      } catch {
        // It is read from a file, and there is no descriptor left: what was true a second ago has to do.
      }
    }
    return this.memoryShare;
  }
}

/** Bytes of memory that the process may have. */
function memoryMax(): number {
  const limit = process.constrainedMemory();
  const total = totalmem();
  return limit > 0 && limit < total ? limit : total;
}

/** Descriptors that are open now; what is no connection stays about the same afterwards. */
export function openDescriptors(): number {
  return readdirSync('/proc/self/fd').length;
}
