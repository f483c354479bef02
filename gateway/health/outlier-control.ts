// The control thread's half of outlier detection: ends ejections, lets endpoints return by steps, ejects by
// rates, and logs what has happened. Workers do the rest (core/lb/outlier-detection.ts).
//
// Owned by the control thread; `tick` is called every second while any backend has outlier detection.
// Times are whole milliseconds of the monotonic clock cut to 32 bits, as in the node state.
// Semantics: Envoy's outlier detection; the gradual return is our own.

import { BackendWord, EndpointWord, type NodeState } from '../../core/lb/node-state.ts';
import {
  ALL_WITHHELD,
  EjectionCause,
  eject,
  type OutlierSettings,
  withheldAtStep,
} from '../../core/lb/outlier-detection.ts';
import type { Log } from '../../core/workers/log.ts';
import type { BackendSettings } from '../../core/workers/snapshot.ts';
import { failurePercentageOutliers, type RateOutlier, successRateOutliers } from './rates.ts';

const { EJECTED } = BackendWord;

/** An endpoint of a backend with outlier detection. */
interface Member {
  address: string;
  slot: number;
  /** EJECTED_TIMES that has been logged. */
  timesLogged: number;
}

/** A backend with outlier detection. */
interface Watched {
  name: string;
  slot: number;
  settings: OutlierSettings;
  members: Member[];
  intervalStartMs: number;
  /** Difference between EJECTED and what it should be, as the last tick found it. */
  miscount: number;
}

export class OutlierControl {
  private readonly node: NodeState;
  private readonly log: Log;
  private watched = new Map<string, Watched>();
  /** Backends that have outlier detection no more: exchanges of before may still eject, for as long as they last. */
  private released = new Map<string, { slot: number; slots: number[] }>();

  constructor(node: NodeState, log: Log) {
    this.node = node;
    this.log = log;
  }

  /** Whether there is anything to do at a tick. */
  get active(): boolean {
    return this.watched.size > 0 || this.released.size > 0;
  }

  /** These backends are in force now. */
  use(backends: readonly BackendSettings[], nowMs: number): void {
    const before = this.watched;
    const releasedBefore = this.released;
    this.watched = new Map();
    this.released = new Map();
    for (const { name, slot, endpoints, policy } of backends) {
      const known = before.get(name);
      if (policy.outlierDetection === null) {
        const slots = endpoints.map((endpoint) => endpoint.slot);
        // Endpoints that come back may have left while they were ejected; old exchanges may have ejected others since.
        const left = slots.some((one) => this.word(one, EndpointWord.WITHHELD_PERMILLE) !== 0);
        if (known !== undefined || left) this.release(slot, slots);
        if (known !== undefined || left || releasedBefore.has(name)) this.released.set(name, { slot, slots });
        continue;
      }
      const membersBefore = new Map(known?.members.map((member) => [member.slot, member]));
      const watched: Watched = {
        name,
        slot,
        settings: policy.outlierDetection,
        members: endpoints.map(
          (endpoint) =>
            membersBefore.get(endpoint.slot) ?? {
              address: endpoint.address,
              slot: endpoint.slot,
              timesLogged: this.word(endpoint.slot, EndpointWord.EJECTED_TIMES),
            },
        ),
        intervalStartMs: known?.intervalStartMs ?? nowMs,
        miscount: 0,
      };
      this.watched.set(name, watched);
      // Ejected endpoints may have left.
      Atomics.store(this.node.words, this.node.backendAt(slot) + EJECTED, this.ejectedOf(watched));
    }
  }

  /** Does what is due. */
  tick(nowMs: number): void {
    for (const { slot, slots } of this.released.values()) {
      if (slots.some((one) => this.word(one, EndpointWord.WITHHELD_PERMILLE) !== 0)) this.release(slot, slots);
    }
    for (const watched of this.watched.values()) {
      for (const member of watched.members) {
        this.logEjection(watched, member);
        this.advance(watched, member, nowMs);
      }
      if (((nowMs - watched.intervalStartMs) | 0) >= watched.settings.intervalMs) this.endInterval(watched, nowMs);
      this.recount(watched);
    }
  }

  // -- return ----------------------------------------------------------------------

  /** Ends an ejection, or takes the next step of a return, when it is time. */
  private advance(watched: Watched, { address, slot }: Member, nowMs: number): void {
    const { settings } = watched;
    const at = this.node.endpointAt(slot);
    const { words } = this.node;
    const withheld = Atomics.load(words, at + EndpointWord.WITHHELD_PERMILLE);
    if (withheld === 0) return;
    let step = 0;
    if (withheld === ALL_WITHHELD) {
      const ejectedMs = (nowMs - Atomics.load(words, at + EndpointWord.EJECTED_AT_MS)) | 0;
      if (ejectedMs < this.ejectionMs(settings, slot)) return;
      Atomics.store(words, at + EndpointWord.CONSECUTIVE_5XX, 0);
      Atomics.store(words, at + EndpointWord.CONSECUTIVE_GATEWAY_FAILURES, 0);
    } else {
      const stepMs = (nowMs - Atomics.load(words, at + EndpointWord.RAMPED_AT_MS)) | 0;
      if (stepMs < settings.rampStepMs) return;
      // Steps of a configuration of before count by what they withhold.
      step = settings.ramp.findIndex((_, index) => withheldAtStep(settings, index) < withheld);
    }
    const next = withheldAtStep(settings, step);
    Atomics.store(words, at + EndpointWord.RAMPED_AT_MS, nowMs);
    if (Atomics.compareExchange(words, at + EndpointWord.WITHHELD_PERMILLE, withheld, next) !== withheld) return;
    if (withheld === ALL_WITHHELD) Atomics.sub(words, this.node.backendAt(watched.slot) + EJECTED, 1);
    this.node.changed(watched.slot);
    const fields = { endpoint: address, backend: watched.name };
    if (next === 0) this.log('info', 'endpoint back after ejection', fields);
    else {
      const level = withheld === ALL_WITHHELD ? 'info' : 'debug';
      this.log(level, 'endpoint returns from ejection', { ...fields, sharePercent: settings.ramp[step] });
    }
  }

  private ejectionMs(settings: OutlierSettings, slot: number): number {
    const times = Math.max(1, this.word(slot, EndpointWord.EJECTIONS));
    return Math.min(settings.baseEjectionMs * times, settings.maxEjectionMs);
  }

  // -- rates -----------------------------------------------------------------------

  private endInterval(watched: Watched, nowMs: number): void {
    const { settings, members } = watched;
    const { words } = this.node;
    watched.intervalStartMs = nowMs;
    const counts = members.map(({ slot }) => {
      const at = this.node.endpointAt(slot);
      const failures = Atomics.exchange(words, at + EndpointWord.INTERVAL_FAILURES, 0);
      return { failures, requests: Atomics.exchange(words, at + EndpointWord.INTERVAL_REQUESTS, 0) };
    });
    // An interval in peace makes up for one ejection.
    for (const { slot } of members) {
      const at = this.node.endpointAt(slot);
      if (Atomics.load(words, at + EndpointWord.WITHHELD_PERMILLE) !== 0) continue;
      const times = Atomics.load(words, at + EndpointWord.EJECTIONS);
      // A worker that ejects at this moment keeps its count.
      if (times > 0) Atomics.compareExchange(words, at + EndpointWord.EJECTIONS, times, times - 1);
    }
    if (settings.successRate !== null) {
      this.ejectAll(watched, successRateOutliers(counts, settings.successRate), EjectionCause.SUCCESS_RATE, nowMs);
    }
    if (settings.failurePercentage !== null) {
      const outliers = failurePercentageOutliers(counts, settings.failurePercentage);
      this.ejectAll(watched, outliers, EjectionCause.FAILURE_PERCENTAGE, nowMs);
    }
  }

  private ejectAll(watched: Watched, outliers: readonly RateOutlier[], cause: number, nowMs: number): void {
    const { settings, members, slot } = watched;
    for (const { index, percent } of outliers) {
      const member = members[index]!;
      const withheld = this.word(member.slot, EndpointWord.WITHHELD_PERMILLE);
      if (withheld === ALL_WITHHELD) continue;
      const figure = Math.round(percent * 10);
      if (eject(this.node, settings, slot, member.slot, members.length, withheld, cause, figure, nowMs)) {
        this.logEjection(watched, member);
      }
    }
  }

  // -- accounts --------------------------------------------------------------------

  private logEjection(watched: Watched, member: Member): void {
    const times = this.word(member.slot, EndpointWord.EJECTED_TIMES);
    if (times === member.timesLogged) return;
    member.timesLogged = times;
    this.log('warn', 'endpoint ejected', {
      endpoint: member.address,
      backend: watched.name,
      cause: ejectionSentence(this.node, member.slot),
      forMs: this.ejectionMs(watched.settings, member.slot),
      ejections: times,
    });
  }

  /** A worker that died between two steps of an ejection may have left the count wrong. */
  private recount(watched: Watched): void {
    const at = this.node.backendAt(watched.slot) + EJECTED;
    const counted = Atomics.load(this.node.words, at);
    const miscount = counted - this.ejectedOf(watched);
    // What is wrong for a moment only is an ejection under way.
    if (miscount !== 0 && miscount === watched.miscount) {
      Atomics.compareExchange(this.node.words, at, counted, counted - miscount);
    }
    watched.miscount = miscount;
  }

  private ejectedOf({ members }: Watched): number {
    return members.filter(({ slot }) => this.word(slot, EndpointWord.WITHHELD_PERMILLE) === ALL_WITHHELD).length;
  }

  /** A backend has no outlier detection any more: all its endpoints are back. */
  private release(backendSlot: number, slots: readonly number[]): void {
    const { words } = this.node;
    for (const slot of slots) {
      const at = this.node.endpointAt(slot);
      for (const word of [
        EndpointWord.WITHHELD_PERMILLE,
        EndpointWord.CONSECUTIVE_5XX,
        EndpointWord.CONSECUTIVE_GATEWAY_FAILURES,
        EndpointWord.EJECTIONS,
      ]) {
        Atomics.store(words, at + word, 0);
      }
    }
    Atomics.store(words, this.node.backendAt(backendSlot) + EJECTED, 0);
    this.node.changed(backendSlot);
  }

  private word(slot: number, word: number): number {
    return Atomics.load(this.node.words, this.node.endpointAt(slot) + word);
  }
}

/** Why an endpoint was last ejected. */
export function ejectionSentence(node: NodeState, slot: number): string {
  const at = node.endpointAt(slot);
  const figure = Atomics.load(node.words, at + EndpointWord.EJECTION_FIGURE);
  switch (Atomics.load(node.words, at + EndpointWord.EJECTION_CAUSE)) {
    case EjectionCause.CONSECUTIVE_5XX:
      return `${figure} ${figure === 1 ? 'failure' : 'failures'} (5xx or no answer) in a row`;
    case EjectionCause.CONSECUTIVE_GATEWAY_FAILURES:
      return `${figure} gateway ${figure === 1 ? 'failure' : 'failures'} in a row`;
    case EjectionCause.SUCCESS_RATE:
      return `a success rate of ${figure / 10} %, far below that of the others`;
    case EjectionCause.FAILURE_PERCENTAGE:
      return `${figure / 10} % of its requests failed`;
    default:
      return `a failure during its return, at ${figure} % of its share`;
  }
}
