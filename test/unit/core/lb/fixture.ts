// What the tests of balancing share: endpoints in a node state, seeded randomness, a clock set by hand.

import { Exchange } from '../../../../core/exchange/exchange.ts';
import { RefPolicy } from '../../../../core/exchange/rule-policy.ts';
import { Balancer } from '../../../../core/lb/balancer.ts';
import { hashText } from '../../../../core/lb/hash.ts';
import { BackendWord, createNodeState, EndpointWord, NodeState } from '../../../../core/lb/node-state.ts';
import type { OutlierSettings } from '../../../../core/lb/outlier-detection.ts';
import type { Members } from '../../../../core/lb/picker.ts';
import { type BalancerSettings, defaultBalancer, type EndpointPlace } from '../../../../core/lb/settings.ts';
import { noEndpointPolicy, noRefPolicy } from '../../../../core/workers/policies.ts';
import type { BackendSettings, EndpointSettings } from '../../../../core/workers/snapshot.ts';
import { Random } from '../../../sim/random.ts';
import { endpointSettings, plainBackend } from '../exchange/support.ts';

/** Random words from a fixed seed: these tests say what holds for it, the same every time. */
export function bitsOf(seed: number): { next(): number } {
  const random = new Random(seed);
  return { next: () => random.next() | 0 };
}

/** Members with these weights, in slots of their own; addresses are `10.0.x.y:80`. */
export function membersOf(weights: readonly number[], first = 0): Members {
  return {
    count: weights.length,
    weights: Float64Array.from(weights),
    positions: Int32Array.from(weights, (_, i) => i * EndpointWord.WORDS),
    hashes: Int32Array.from(weights, (_, i) => hashText(addressOf(first + i), 0)),
  };
}

export function addressOf(index: number): string {
  return `10.${index >> 16}.${(index >> 8) & 255}.${index & 255}:80`;
}

/** How often each index was picked. */
export function countPicks(count: number, picks: number, pick: () => number): number[] {
  const counts = new Array<number>(count).fill(0);
  for (let i = 0; i < picks; i++) counts[pick()]!++;
  return counts;
}

/** An endpoint of a test backend. */
export type Sketch = Partial<EndpointPlace> & { weight?: number };

/** Outlier detection of a backend whose endpoints are withheld by hand. */
export const outlierDetection: OutlierSettings = {
  consecutive5xx: 5,
  consecutiveGatewayFailures: 0,
  intervalMs: 10_000,
  baseEjectionMs: 30_000,
  maxEjectionMs: 300_000,
  maxEjectionPercent: 10,
  successRate: null,
  failurePercentage: null,
  ramp: [100],
  rampStepMs: 1000,
};

/** A backend with a balancer and outlier detection, whose node state, clock and log the test holds. */
export class Bench {
  readonly node: NodeState;
  readonly clock = { nowMs: 1000 };
  readonly lines: string[] = [];
  readonly backend: BackendSettings;
  readonly balancer: Balancer;
  readonly exchange = new Exchange();
  private readonly random: { next(): number };

  constructor(endpoints: readonly Sketch[], settings: Partial<BalancerSettings> = {}, seed = 1) {
    this.node = new NodeState(createNodeState(1, Math.max(16, endpoints.length), 4), 0);
    this.random = bitsOf(seed);
    this.backend = {
      ...plainBackend,
      slot: 1,
      policy: { ...plainBackend.policy, outlierDetection, balancer: { ...defaultBalancer, ...settings } },
      endpoints: endpoints.map(
        ({ weight = 1, ...place }, slot): EndpointSettings => ({
          ...endpointSettings(addressOf(slot), weight),
          slot,
          policy: { ...noEndpointPolicy, place: { ...noEndpointPolicy.place, ...place } },
        }),
      ),
    };
    this.balancer = this.another();
  }

  /** A balancer of the same backend, as a later snapshot or another worker has it. */
  another(): Balancer {
    return new Balancer(this.backend, {
      node: this.node,
      random: this.random,
      clock: this.clock,
      log: (level, message) => this.lines.push(`${level} ${message}`),
    });
  }

  /** Writes a word of an endpoint, as health checks and outlier detection do, and says so; it is then a second later. */
  set(endpoint: number, word: number, value: number): void {
    this.clock.nowMs += 1000;
    this.node.words[this.node.endpointAt(endpoint) + word] = value;
    this.node.changed(this.backend.slot);
  }

  word(endpoint: number, word: number): number {
    return this.node.words[this.node.endpointAt(endpoint) + word]!;
  }

  get panicLevels(): number {
    return this.node.words[this.node.backendAt(this.backend.slot) + BackendWord.PANIC_LEVELS]!;
  }

  /** Requests ask for these labels from now on. */
  ask(labels: Record<string, string>): void {
    this.exchange.refPolicy = new RefPolicy({ ...noRefPolicy, subset: Object.entries(labels) });
  }

  pick(): number {
    return this.balancer.pick(this.exchange);
  }

  /** Shares of the endpoints, of 1. */
  shares(picks = 20_000): number[] {
    return countPicks(this.backend.endpoints.length, picks, () => this.pick()).map((count) => count / picks);
  }
}
