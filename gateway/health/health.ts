// Health of all endpoints of the running configuration: active checks, outlier detection, draining.
//
// Owned by the control thread; what it finds goes to the node state, which balancers read.

import type { Config } from '../../config/config.ts';
import { fallsForRefusals, leftOutMs } from '../../core/lb/connect-failures.ts';
import { BackendWord, EndpointWord, type NodeState } from '../../core/lb/node-state.ts';
import { ALL_WITHHELD, EJECTION_CAUSES } from '../../core/lb/outlier-detection.ts';
import { monotonicMs } from '../../core/workers/clock.ts';
import type { Log } from '../../core/workers/log.ts';
import type { BackendSettings, EndpointSettings, Snapshot } from '../../core/workers/snapshot.ts';
import type { BackendState, BreakerStateName, EndpointState } from '../admin/state.ts';
import { type CheckOptions, HealthChecks } from './health-checks.ts';
import { ejectionSentence, OutlierControl } from './outlier-control.ts';

/** Time between two looks at ejections. */
const TICK_MS = 1000;

export class Health {
  private readonly node: NodeState;
  private readonly checks: HealthChecks;
  private readonly outliers: OutlierControl;
  private backends: readonly BackendSettings[] = [];
  private timer: NodeJS.Timeout | undefined;
  private closed = false;

  constructor(node: NodeState, log: Log, options: CheckOptions = {}) {
    this.node = node;
    this.checks = new HealthChecks(node, log, options);
    this.outliers = new OutlierControl(node, log);
  }

  /** A snapshot is about to be given to the workers: marks its draining endpoints. */
  admit({ backends }: Snapshot): void {
    for (const backend of backends) {
      for (const { slot, policy } of backend.endpoints) {
        const at = this.node.endpointAt(slot) + EndpointWord.DRAINING;
        const draining = policy.draining ? 1 : 0;
        if (Atomics.exchange(this.node.words, at, draining) !== draining) this.node.changed(backend.slot);
      }
    }
  }

  /** A snapshot of this configuration is in force. */
  adopt(config: Config, { backends }: Snapshot): void {
    if (this.closed) return;
    this.backends = backends;
    const byName = new Map(config.backends.map(({ name, healthCheck }) => [name, healthCheck]));
    this.checks.use(backends.map((settings) => ({ settings, check: byName.get(settings.name) ?? null })));
    this.outliers.use(backends, monotonicMs() | 0);
    if (this.outliers.active) {
      // Goes on across snapshots: with more than one a second it would never come to its end otherwise.
      this.timer ??= setInterval(() => this.outliers.tick(monotonicMs() | 0), TICK_MS).unref();
    } else {
      clearInterval(this.timer);
      this.timer = undefined;
    }
  }

  /** Ends all checks; health stays as it is. */
  close(): void {
    this.closed = true;
    clearInterval(this.timer);
    this.checks.close();
  }

  /** What is known of all backends now. */
  states(): BackendState[] {
    return this.backends.map((backend) => {
      const at = this.node.backendAt(backend.slot) + BackendWord.EJECTIONS;
      return {
        name: backend.name,
        endpoints: backend.endpoints.map((endpoint) => this.endpointState(backend, endpoint)),
        checks: this.checks.countsOf(backend.name) ?? null,
        ejections:
          backend.policy.outlierDetection === null
            ? null
            : Array.from({ length: EJECTION_CAUSES }, (_, cause) => Atomics.load(this.node.words, at + cause)),
      };
    });
  }

  private endpointState({ name, policy }: BackendSettings, { address, weight, slot }: EndpointSettings): EndpointState {
    const at = this.node.endpointAt(slot);
    const word = (index: number): number => Atomics.load(this.node.words, at + index);
    const checked = this.checks.stateOf(name, address);
    // Exchanges of before may still eject where nothing is withheld any more.
    const withheld = policy.outlierDetection === null ? 0 : word(EndpointWord.WITHHELD_PERMILLE);
    const ejectedTimes = word(EndpointWord.EJECTED_TIMES);
    return {
      address,
      weight,
      health: checked?.health ?? null,
      healthCause: checked?.cause ?? '',
      draining: word(EndpointWord.DRAINING) !== 0,
      ejected: withheld === ALL_WITHHELD,
      circuitBreaker: policy.outlierDetection === null ? null : breakerStateOf(withheld),
      leftOut:
        policy.balancer !== null &&
        fallsForRefusals(policy.balancer) &&
        leftOutMs(this.node.words, at, monotonicMs()) > 0,
      sharePercent: 100 - withheld / 10,
      ejections: policy.outlierDetection === null ? null : ejectedTimes,
      ejectionCause: withheld === 0 || ejectedTimes === 0 ? '' : ejectionSentence(this.node, slot),
      activeRequests: word(EndpointWord.ACTIVE),
    };
  }
}

function breakerStateOf(withheldPermille: number): BreakerStateName {
  if (withheldPermille === 0) return 'closed';
  return withheldPermille === ALL_WITHHELD ? 'open' : 'half_open';
}
