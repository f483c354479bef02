// Which endpoints a balancer chooses among at the moment: by priority level and zone, each with a picker.
//
// Made anew whenever health, draining or a slow start has changed something, in time linear in the
// number of endpoints; a pick then costs the same however many there are.
// A view is immutable, apart from where its pickers stand. Owned by one worker.

import type { BackendSettings } from '../workers/snapshot.ts';
import { fallsForRefusals, leftOutMs } from './connect-failures.ts';
import { mix } from './hash.ts';
import { LeastRequest, WeightedLeastRequest } from './least-request.ts';
import { Maglev } from './maglev.ts';
import { CheckState, EndpointWord } from './node-state.ts';
import { PeakEwma } from './peak-ewma.ts';
import { type Clock, equalWeights, type Members, type Picker, type RandomSource } from './picker.ts';
import { type LevelHealth, levelLoads } from './priority-load.ts';
import { WeightedRandom } from './random.ts';
import { pointsPerWeight, RingHash, RingPoints } from './ring-hash.ts';
import { RoundRobin } from './round-robin.ts';
import type { BalancerSettings, EndpointPlace, SlowStartSettings, SubsetSettings } from './settings.ts';
import { zoneShares } from './zone-shares.ts';

/** What stays the same of a backend's endpoints, by index. */
export interface EndpointTable {
  count: number;
  weights: Float64Array;
  /** Position of each one's first word in the node state. */
  positions: Int32Array;
  /** Hash of each one's address. */
  hashes: Int32Array;
  /** Levels in the order in which they are used: indexes of their endpoints. */
  levels: readonly (readonly number[])[];
  zones: readonly string[];
  /** Without outlier detection nothing is withheld, whatever its words say: old exchanges may still count failures. */
  detectsOutliers: boolean;
}

/** What views are made with. */
export interface ViewContext {
  readonly words: Int32Array;
  readonly random: RandomSource;
  readonly clock: Clock;
}

/** Endpoints that share a picker. */
export class Group {
  /** Indexes of the backend's endpoints. */
  readonly endpoints: Int32Array;
  readonly picker: Picker;

  constructor(endpoints: Int32Array, picker: Picker) {
    this.endpoints = endpoints;
    this.picker = picker;
  }
}

/** One priority level that gets requests. */
export class Level {
  /** Requests whose number (0 to 99) is below this, and not below that of the level before, go here. */
  readonly upTo: number;
  readonly panic: boolean;
  /** One, or one for each zone that gets requests. */
  readonly groups: readonly Group[];
  /** The same for groups, of 2^32. */
  readonly groupUpTo: Float64Array;

  constructor(upTo: number, panic: boolean, groups: readonly Group[], shares: readonly number[]) {
    this.upTo = upTo;
    this.panic = panic;
    this.groups = groups;
    const total = shares.reduce((sum, share) => sum + share, 0);
    let sum = 0;
    this.groupUpTo = Float64Array.from(shares, (share) => {
      sum += share;
      return (sum / total) * WORDS;
    });
  }
}

/** All levels that get requests. */
export interface View {
  levels: readonly Level[];
  /** The only group, where there is no more than one; null otherwise. */
  only: Group | null;
  /** Usable endpoints of each level, also of those that get no requests, for attempts that find no other place. */
  reserve: readonly Int32Array[];
  /** Bits of the levels that panic. */
  panicLevels: number;
  /** Usable endpoints, and all that are not draining. */
  usable: number;
  total: number;
  /** When weights have changed by so much that the view is to be made anew; infinity: never. */
  refreshAtMs: number;
}

const WORDS = 2 ** 32;
/** Weights are multiplied by this where parts of them count, so that pickers get whole numbers. */
const WEIGHT_PARTS = 1000;
/** Steps of a slow start: as often are weights worked out anew. */
const SLOW_START_STEPS = 10;

/**
 * The view of endpoints at this moment; `members` (indexes) are those of a subset, or null for all. `rings` keeps, by
 * level, what further views of the same members need not work out again; empty at first.
 */
export function makeView(
  table: EndpointTable,
  members: ReadonlySet<number> | null,
  settings: BalancerSettings,
  context: ViewContext,
  rings: RingPoints[],
): View {
  const { words } = context;
  const levels: LevelState[] = [];
  const { nowMs } = context.clock;
  const leavesOut = fallsForRefusals(settings);
  let backInMs = Number.POSITIVE_INFINITY;
  for (const level of table.levels) {
    const configured = members === null ? level : level.filter((endpoint) => members.has(endpoint));
    const candidates: number[] = [];
    const reserve: number[] = [];
    let usable = 0;
    for (const endpoint of configured) {
      if (words[table.positions[endpoint]! + EndpointWord.DRAINING] !== 0) continue;
      candidates.push(endpoint);
      const permille = usablePermille(table, endpoint, words);
      if (permille > 0) reserve.push(endpoint);
      const outMs = leavesOut ? leftOutMs(words, table.positions[endpoint]!, nowMs) : 0;
      if (outMs > 0) backInMs = Math.min(backInMs, outMs);
      usable += permille / 1000;
    }
    levels.push({ configured, candidates, reserve: Int32Array.from(reserve), total: candidates.length, usable });
  }
  const loads = levelLoads(levels, settings.overprovisioningPercent, settings.panicThresholdPercent);
  const made: Level[] = [];
  const ramp = new Ramp(settings.slowStart, context);
  let upTo = 0;
  let panicLevels = 0;
  levels.forEach(({ configured, candidates }, index) => {
    const { percent, panic } = loads[index]!;
    if (panic) panicLevels |= 1 << Math.min(index, 31);
    // Also for levels without a share: whose endpoints start there, start.
    const weights = panic
      ? candidates.map((endpoint) => table.weights[endpoint]! * WEIGHT_PARTS)
      : candidates.map((endpoint) => currentWeight(table, endpoint, words, ramp));
    if (percent === 0) return;
    upTo += percent;
    const ring = settings.policy === 'RingHash' ? new LevelRing(table, configured, settings, rings, index) : null;
    made.push(makeLevel(table, candidates, weights, panic, upTo, ring, settings, context));
  });
  return {
    levels: made,
    only: made.length === 1 && made[0]!.groups.length === 1 ? made[0]!.groups[0]! : null,
    reserve: levels.map(({ reserve }) => reserve),
    panicLevels,
    usable: levels.reduce((sum, level) => sum + level.usable, 0),
    total: levels.reduce((sum, level) => sum + level.total, 0),
    refreshAtMs: Math.min(ramp.refreshAtMs, nowMs + backInMs),
  };
}

interface LevelState extends LevelHealth {
  /** All that belong to it, and those that are not draining. */
  configured: readonly number[];
  candidates: number[];
  reserve: Int32Array;
}

/** What rings of a level's endpoints are made of. */
class LevelRing {
  /** Points for each unit of weight in parts. */
  readonly perWeight: number;
  readonly points: RingPoints;
  /** Indexes of the endpoints whose points they are. */
  private readonly configured: readonly number[];

  constructor(
    table: EndpointTable,
    configured: readonly number[],
    settings: BalancerSettings,
    rings: RingPoints[],
    level: number,
  ) {
    this.configured = configured;
    this.perWeight = ringPointsPerWeight(table, configured, settings) / WEIGHT_PARTS;
    rings[level] ??= new RingPoints(
      configured.map((endpoint) => table.hashes[endpoint]!),
      configured.map((endpoint) => table.weights[endpoint]! * WEIGHT_PARTS),
      this.perWeight,
    );
    this.points = rings[level];
  }

  /** A ring of some of them. */
  of(members: Members, endpoints: readonly number[], count: number): RingHash {
    const memberOfEndpoint = new Int32Array(count).fill(-1);
    for (let member = 0; member < endpoints.length; member++) memberOfEndpoint[endpoints[member]!] = member;
    const { configured } = this;
    const memberOf = new Int32Array(configured.length);
    for (let i = 0; i < configured.length; i++) memberOf[i] = memberOfEndpoint[configured[i]!]!;
    return new RingHash(members, this.perWeight, this.points, memberOf);
  }
}

/** Points that a ring of these configured endpoints has for each unit of weight; 0: the policy has no ring. */
export function ringPointsPerWeight(
  table: EndpointTable,
  configured: readonly number[],
  { policy, ringSizeMin, ringSizeMax }: BalancerSettings,
): number {
  if (policy !== 'RingHash') return 0;
  const weights = Float64Array.from(configured, (endpoint) => table.weights[endpoint]!);
  return pointsPerWeight(weights, ringSizeMin, ringSizeMax);
}

/** Share of an endpoint that can be used, 0 to 1000. */
export function usablePermille(table: EndpointTable, endpoint: number, words: Int32Array): number {
  const at = table.positions[endpoint]!;
  if (words[at + EndpointWord.CHECK] === CheckState.UNHEALTHY || words[at + EndpointWord.DRAINING] !== 0) return 0;
  if (!table.detectsOutliers) return 1000;
  return Math.max(0, 1000 - words[at + EndpointWord.WITHHELD_PERMILLE]!);
}

/** Weight of an endpoint in parts, by what passive health and slow start leave of it; 0: it cannot be used. */
function currentWeight(table: EndpointTable, endpoint: number, words: Int32Array, ramp: Ramp): number {
  const at = table.positions[endpoint]!;
  const permille = usablePermille(table, endpoint, words);
  const factor = ramp.factor(words, at, permille > 0);
  if (permille === 0) return 0;
  return Math.max(1, Math.round(((table.weights[endpoint]! * permille) / 1000) * factor * WEIGHT_PARTS));
}

/** Slow start as Envoy documents it: a new endpoint gets its full weight only after some time. */
class Ramp {
  refreshAtMs = Number.POSITIVE_INFINITY;
  private readonly settings: SlowStartSettings | null;
  private readonly nowMs: number;

  constructor(settings: SlowStartSettings | null, { clock }: ViewContext) {
    this.settings = settings;
    this.nowMs = clock.nowMs;
  }

  /** Share of its weight that an endpoint has; notes when it starts and when it has started. */
  factor(words: Int32Array, at: number, usable: boolean): number {
    const { settings, nowMs } = this;
    if (settings === null) return 1;
    if (!usable) {
      Atomics.store(words, at + EndpointWord.WAS_UNUSABLE, 1);
      return 1;
    }
    // Who sees the return notes the start first: another worker may look in between. Two that see it note the same time.
    if (Atomics.load(words, at + EndpointWord.WAS_UNUSABLE) !== 0) {
      Atomics.store(words, at + EndpointWord.STARTED_AT_MS, nowMs | 0 || 1);
      Atomics.store(words, at + EndpointWord.WAS_UNUSABLE, 0);
    }
    const startedMs = Atomics.load(words, at + EndpointWord.STARTED_AT_MS);
    if (startedMs === 0) return 1;
    const elapsedMs = ((nowMs | 0) - startedMs) | 0;
    if (elapsedMs >= settings.windowMs) {
      Atomics.compareExchange(words, at + EndpointWord.STARTED_AT_MS, startedMs, 0);
      return 1;
    }
    this.refreshAtMs = Math.min(this.refreshAtMs, nowMs + Math.max(1, settings.windowMs / SLOW_START_STEPS));
    const time = Math.max(elapsedMs, 1) / settings.windowMs;
    return Math.max(settings.minWeightPercent / 100, time ** (1 / settings.aggression));
  }
}

function makeLevel(
  table: EndpointTable,
  candidates: readonly number[],
  weights: readonly number[],
  panic: boolean,
  upTo: number,
  ring: LevelRing | null,
  settings: BalancerSettings,
  context: ViewContext,
): Level {
  const chosen: number[] = [];
  const chosenWeights: number[] = [];
  const { words, clock } = context;
  const take = (leavesOut: boolean): void => {
    for (let i = 0; i < candidates.length; i++) {
      const endpoint = candidates[i]!;
      if (weights[i]! === 0) continue;
      if (leavesOut && leftOutMs(words, table.positions[endpoint]!, clock.nowMs) > 0) continue;
      chosen.push(endpoint);
      chosenWeights.push(weights[i]!);
    }
  };
  take(fallsForRefusals(settings));
  // Where nobody takes connections, one is as good as the other.
  if (chosen.length === 0) take(false);
  const { zoneAware } = settings;
  // Who panics needs every endpoint that still answers, wherever it is.
  if (zoneAware === null || panic || chosen.length < zoneAware.endpointsMin) {
    return new Level(upTo, panic, [makeGroup(table, chosen, chosenWeights, ring, settings, context)], [1]);
  }
  const byZone = new Map<string, number>();
  chosen.forEach((endpoint, i) => {
    const zone = table.zones[endpoint]!;
    byZone.set(zone, (byZone.get(zone) ?? 0) + chosenWeights[i]!);
  });
  const zones = new Set(candidates.map((endpoint) => table.zones[endpoint]!)).add(zoneAware.zone);
  const shares = zoneShares(byZone, zoneAware.zone, zones.size);
  const groups = [...shares.keys()].map((zone) => {
    const places = chosen.keys().filter((i) => table.zones[chosen[i]!] === zone);
    const indexes = [...places];
    return makeGroup(
      table,
      indexes.map((i) => chosen[i]!),
      indexes.map((i) => chosenWeights[i]!),
      ring,
      settings,
      context,
    );
  });
  return new Level(upTo, panic, groups, [...shares.values()]);
}

function makeGroup(
  table: EndpointTable,
  endpoints: readonly number[],
  weights: readonly number[],
  ring: LevelRing | null,
  settings: BalancerSettings,
  context: ViewContext,
): Group {
  const members: Members = {
    count: endpoints.length,
    weights: Float64Array.from(weights),
    positions: Int32Array.from(endpoints, (endpoint) => table.positions[endpoint]!),
    hashes: Int32Array.from(endpoints, (endpoint) => table.hashes[endpoint]!),
  };
  const picker = ring === null ? makePicker(members, settings, context) : ring.of(members, endpoints, table.count);
  return new Group(Int32Array.from(endpoints), picker);
}

/** A picker of the configured policy, unless that is a ring. */
function makePicker(members: Members, settings: BalancerSettings, context: ViewContext): Picker {
  const { words, random, clock } = context;
  switch (settings.policy) {
    case 'RoundRobin':
      return new RoundRobin(members.weights, (random.next() >>> 0) / WORDS);
    case 'LeastRequest':
      return equalWeights(members.weights)
        ? new LeastRequest(members, words, settings.choiceCount)
        : new WeightedLeastRequest(members, words, mix(random.next()));
    case 'Random':
      return new WeightedRandom(members.weights);
    case 'Maglev':
      return new Maglev(members, settings.tableSize);
    case 'PeakEWMA':
      return new PeakEwma(members, words, clock, settings.decayMs);
    case 'RingHash':
      throw new Error('a ring is made of the points of its level');
  }
}

/** The subset of a backend that a reference asks for, prepared. */
export class Subset {
  readonly labels: SubsetSettings;
  /** The same for equal labels. */
  readonly key: string;

  constructor(labels: SubsetSettings) {
    this.labels = labels;
    this.key = JSON.stringify(labels);
  }
}

/** Endpoints with certain labels. */
export class SubsetView {
  readonly members = new Set<number>();
  /** Null: to be made with the next pick. */
  view: View | null = null;
  /** For `makeView`. */
  readonly rings: RingPoints[] = [];

  constructor({ endpoints }: BackendSettings, { labels }: Subset) {
    endpoints.forEach(({ policy }, index) => {
      if (labels.every(([name, value]) => policy.place.labels[name] === value)) this.members.add(index);
    });
  }
}

/** Whether balancers of two backends would be the same, whose endpoints' addresses, weights and slots are the same. */
export function sameData(a: BackendSettings, b: BackendSettings): boolean {
  if ((a.policy.outlierDetection === null) !== (b.policy.outlierDetection === null)) return false;
  if (JSON.stringify(a.policy.balancer) !== JSON.stringify(b.policy.balancer)) return false;
  for (let i = 0; i < a.endpoints.length; i++) {
    if (!samePlace(a.endpoints[i]!.policy.place, b.endpoints[i]!.policy.place)) return false;
  }
  return true;
}

/** Field by field: a reload compares the places of thousands of endpoints, and packets wait for it. */
function samePlace(a: EndpointPlace, b: EndpointPlace): boolean {
  if (a.priority !== b.priority || a.zone !== b.zone) return false;
  let count = 0;
  for (const name in a.labels) {
    if (a.labels[name] !== b.labels[name]) return false;
    count++;
  }
  for (const _ in b.labels) count--;
  return count === 0;
}

/** What the log says of a backend that begins or ends to use unusable endpoints. */
export function panicSentence(backend: string, { panicLevels, usable, total }: View): string {
  const state = `${Math.round(usable)} of ${total} endpoints are usable`;
  return panicLevels === 0
    ? `backend ${backend}: only usable endpoints are used again, ${state}`
    : `backend ${backend}: ${state}, so that all of them are used whatever their health (loadBalancer.panicThreshold)`;
}
