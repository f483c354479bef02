// Chooses the endpoint of a backend for each request.
//
// One per backend and worker; it outlives snapshots in which its backend stays as it is. Health and load are
// in the node state: a generation number there says when health has changed, and the balancer then makes
// its view anew before the next pick. Otherwise a pick is a few array reads.
// Hot module: no allocation in `pick`, except when the view is made anew.

import type { Exchange } from '../exchange/exchange.ts';
import type { BackendSettings } from '../workers/snapshot.ts';
import {
  type EndpointTable,
  type Group,
  makeView,
  panicSentence,
  ringPointsPerWeight,
  type Subset,
  SubsetView,
  sameData,
  usablePermille,
  type View,
  type ViewContext,
} from './balancer-view.ts';
import { fallsForRefusals } from './connect-failures.ts';
import { hashText, mix } from './hash.ts';
import { BackendWord, type NodeState } from './node-state.ts';
import type { Clock, RandomSource } from './picker.ts';
import type { RingPoints } from './ring-hash.ts';
import { type BalancerSettings, defaultBalancer } from './settings.ts';

/** What balancers of a worker share. */
export interface BalancerEnvironment {
  readonly node: NodeState;
  readonly random: RandomSource;
  readonly clock: Clock;
  /** Writes to the gateway's log. */
  readonly log: (level: 'info' | 'warn', message: string) => void;
}

/** Why a pick gave nothing. */
export const PickFailure = {
  /** The backend has no endpoints at all. */
  NONE: 0,
  /** It has, but none can be used. */
  UNUSABLE: 1,
  /** No endpoint has the labels that the backend reference asks for. */
  SUBSET_EMPTY: 2,
} as const;

/** Whether a policy goes by the requests in progress, which then have to be counted. */
export function countsActive(settings: BalancerSettings | null): boolean {
  return settings !== null && (settings.policy === 'LeastRequest' || settings.policy === 'PeakEWMA');
}

/** Picks that may give the endpoint to be avoided before another one is taken from the list. */
const AVOIDING_PICKS = 3;

export class Balancer {
  readonly settings: BalancerSettings;
  /** Time constant of latencies, milliseconds; 0: nobody wants them. */
  readonly decayMs: number;
  /** It wants to hear of connections that could not be made. */
  readonly hearsOfRefusals: boolean;
  /** The last pick was made in a level that panics. */
  inPanic = false;
  private readonly backend: BackendSettings;
  private readonly environment: BalancerEnvironment;
  private readonly context: ViewContext;
  private readonly words: Int32Array;
  private readonly random: RandomSource;
  private readonly clock: Clock;
  /** Positions in the node state. */
  private readonly generationAt: number;
  private readonly panicAt: number;
  private readonly table: EndpointTable;
  /** Views of subsets in use, by `Subset.key`. */
  private readonly subsets = new Map<string, SubsetView>();
  /** For `makeView`. */
  private readonly rings: RingPoints[] = [];
  private generation = 0;
  private refreshAtMs = Number.NEGATIVE_INFINITY;
  /** Until then the view stays as it is, so that a wave of changes does not take all the time there is. */
  private notBeforeMs = Number.NEGATIVE_INFINITY;
  private readonly restMs: number;
  private whole: View | null = null;

  /** The balancer of a backend; its view is made with the first pick. */
  constructor(backend: BackendSettings, environment: BalancerEnvironment) {
    const { node, random, clock } = environment;
    const { endpoints } = backend;
    this.settings = backend.policy.balancer ?? defaultBalancer;
    this.backend = backend;
    this.environment = environment;
    this.words = node.words;
    this.random = random;
    this.clock = clock;
    this.context = { words: node.words, random, clock };
    this.decayMs = this.settings.policy === 'PeakEWMA' ? this.settings.decayMs : 0;
    this.hearsOfRefusals = fallsForRefusals(this.settings);
    this.generationAt = node.backendAt(backend.slot) + BackendWord.GENERATION;
    this.panicAt = node.backendAt(backend.slot) + BackendWord.PANIC_LEVELS;
    const levels = new Map<number, number[]>();
    endpoints.forEach(({ policy }, index) => {
      const level = levels.get(policy.place.priority);
      if (level === undefined) levels.set(policy.place.priority, [index]);
      else level.push(index);
    });
    this.table = {
      count: endpoints.length,
      // SRV records may have a weight of 0, which is hardly any.
      weights: Float64Array.from(endpoints, ({ weight }) => Math.max(1, weight)),
      positions: Int32Array.from(endpoints, ({ slot }) => node.endpointAt(slot)),
      hashes: Int32Array.from(endpoints, ({ address }) => hashText(address, 0)),
      levels: [...levels].sort(([a], [b]) => a - b).map(([, members]) => members),
      zones: endpoints.map(({ policy }) => policy.place.zone),
      detectsOutliers: backend.policy.outlierDetection !== null,
    };
    const work = endpoints.length + this.tablePlaces() / 8;
    this.restMs = work < WORK_FREE ? 0 : work / WORK_PER_REST_MS;
  }

  /** Whether it would be the same for these settings, on this node state. */
  suits(backend: BackendSettings, node: NodeState): boolean {
    const known = this.backend;
    if (node !== this.environment.node || backend.slot !== known.slot) return false;
    if (backend.name !== known.name || backend.endpoints.length !== known.endpoints.length) return false;
    for (let i = 0; i < backend.endpoints.length; i++) {
      const a = backend.endpoints[i];
      const b = known.endpoints[i];
      if (a.address !== b.address || a.weight !== b.weight || a.slot !== b.slot) return false;
    }
    return sameData(backend, known);
  }

  /**
   * Index of the endpoint that is to get a request (the next attempt of `exchange`); -1: there is none that can be
   * used (see `failure`). Another one than `exchange.avoidEndpoint` where there is one: in its zone and level, or
   * else in another zone, or else in another level.
   */
  pick(exchange: Exchange): number {
    if (this.words[this.generationAt] !== this.generation || this.refreshAtMs <= this.clock.nowMs) this.refresh();
    const { refPolicy, avoidEndpoint } = exchange;
    const subset = refPolicy === null ? null : refPolicy.subset;
    const view = subset === null ? this.whole! : this.viewOf(subset);
    const bits = exchange.hashed ? exchange.hash : this.random.next();
    const { only } = view;
    let group = only;
    this.inPanic = view.panicLevels !== 0;
    if (group === null) {
      const { levels } = view;
      if (levels.length === 0) return -1;
      group = this.groupOf(view, bits);
    }
    const endpoint = group.endpoints.length === 0 ? -1 : group.endpoints[group.picker.pick(bits)];
    return endpoint === avoidEndpoint && endpoint >= 0 ? this.pickAnother(view, group, bits, avoidEndpoint) : endpoint;
  }

  /** Whether an endpoint can be used for what belongs to it: healthy, not ejected, not draining. */
  isUsable(endpoint: number): boolean {
    return usablePermille(this.table, endpoint, this.words) > 0;
  }

  /** Whether an endpoint has the labels of a subset. */
  isInSubset(endpoint: number, subset: Subset): boolean {
    this.viewOf(subset);
    return this.subsets.get(subset.key)!.members.has(endpoint);
  }

  /** Why the last pick for this exchange gave nothing: PickFailure. */
  failure(exchange: Exchange): number {
    if (this.table.count === 0) return PickFailure.NONE;
    const subset = exchange.refPolicy === null ? null : exchange.refPolicy.subset;
    if (subset !== null && this.subsets.get(subset.key)!.members.size === 0) return PickFailure.SUBSET_EMPTY;
    return PickFailure.UNUSABLE;
  }

  /** The group of a view with several, for these bits. Those of one key always give the same. */
  private groupOf(view: View, bits: number): Group {
    const { levels } = view;
    const number = (mix(bits + LEVEL_STEP) >>> 0) % 100;
    let index = 0;
    while (index < levels.length - 1 && number >= levels[index].upTo) index++;
    const level = levels[index];
    this.inPanic = level.panic;
    const { groups, groupUpTo } = level;
    if (groups.length === 1) return groups[0];
    const share = mix(bits + ZONE_STEP) >>> 0;
    let zone = 0;
    while (zone < groups.length - 1 && share >= groupUpTo[zone]) zone++;
    return groups[zone];
  }

  /** An endpoint that is not `avoid`, which has just been picked in `group`; `avoid` if there is no other. */
  private pickAnother(view: View, group: Group, bits: number, avoid: number): number {
    const { endpoints, picker } = group;
    const count = endpoints.length;
    if (count < 2) return this.pickElsewhere(view, group, bits, avoid);
    let word = bits;
    for (let attempt = 0; attempt < AVOIDING_PICKS; attempt++) {
      word = mix(word + AVOID_STEP);
      const endpoint = endpoints[picker.pick(word)];
      if (endpoint !== avoid) return endpoint;
    }
    const place = (mix(word) >>> 0) % count;
    return endpoints[place] === avoid ? endpoints[place + 1 < count ? place + 1 : 0] : endpoints[place];
  }

  /** The same where the group has no other: of another group of its level, or of what is usable in any level. */
  private pickElsewhere(view: View, group: Group, bits: number, avoid: number): number {
    const word = mix(bits + AVOID_STEP);
    for (const { groups } of view.levels) {
      if (!groups.includes(group)) continue;
      const first = (word >>> 0) % groups.length;
      for (let i = 0; i < groups.length; i++) {
        const { endpoints, picker } = groups[(first + i) % groups.length];
        const endpoint = endpoints.length === 0 ? -1 : endpoints[picker.pick(word)];
        if (endpoint >= 0 && endpoint !== avoid) return endpoint;
      }
    }
    for (const endpoints of view.reserve) {
      const count = endpoints.length;
      if (count === 0) continue;
      const place = (word >>> 0) % count;
      const endpoint = endpoints[place] === avoid ? endpoints[place + 1 < count ? place + 1 : 0] : endpoints[place];
      if (endpoint === avoid) continue;
      this.inPanic = false;
      return endpoint;
    }
    return avoid;
  }

  /** Places of the tables that a new view takes to fill. */
  private tablePlaces(): number {
    const { settings, table } = this;
    if (settings.policy === 'Maglev') return settings.tableSize * table.levels.length;
    let places = 0;
    for (const level of table.levels) {
      const perWeight = ringPointsPerWeight(table, level, settings);
      for (const endpoint of level) places += perWeight * table.weights[endpoint];
    }
    return places;
  }

  /** Makes the view anew, after a change of health or for the next step of a slow start. */
  private refresh(): void {
    const { nowMs } = this.clock;
    if (nowMs < this.notBeforeMs) return;
    this.notBeforeMs = nowMs + this.restMs;
    // First: what changes from here on shows at the next pick.
    this.generation = Atomics.load(this.words, this.generationAt);
    const view = makeView(this.table, null, this.settings, this.context, this.rings);
    this.whole = view;
    this.refreshAtMs = view.refreshAtMs;
    for (const subset of this.subsets.values()) subset.view = null;
    const before = Atomics.exchange(this.words, this.panicAt, view.panicLevels);
    if (before === view.panicLevels) return;
    this.environment.log(view.panicLevels === 0 ? 'info' : 'warn', panicSentence(this.backend.name, view));
  }

  private viewOf(subset: Subset): View {
    let known = this.subsets.get(subset.key);
    if (known === undefined) {
      known = new SubsetView(this.backend, subset);
      this.subsets.set(subset.key, known);
    }
    known.view ??= makeView(this.table, known.members, this.settings, this.context, known.rings);
    return known.view;
  }
}

/** Endpoints, or places of a table by eight, that are looked through at once; and for each millisecond of rest afterwards. */
const WORK_FREE = 256;
const WORK_PER_REST_MS = 100;

/** Steps that make independent words of the same bits. */
const LEVEL_STEP = 0x3c6ef372;
const ZONE_STEP = 0x1b56c4e9;
const AVOID_STEP = 0x5bd1e995;
