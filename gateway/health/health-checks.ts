// Active health checks of all endpoints, once per node: schedules them, keeps their results, tells balancers.
//
// Owned by the control thread. Results go to EndpointWord.CHECK; what an endpoint was found to be outlives
// a reload that leaves what is asked as it is: other times, thresholds or certificates change the next
// checks only. The checks of an endpoint never overlap.

import type { HealthCheckConfig } from '../../config/config.ts';
import { CheckState, EndpointWord, type NodeState } from '../../core/lb/node-state.ts';
import type { Log } from '../../core/workers/log.ts';
import type { BackendSettings } from '../../core/workers/snapshot.ts';
import { type CheckOutcome, CheckRecord, type Health } from './check-record.ts';
import { type Probe, type ProbeResult, type ProbeTarget, probe } from './probes.ts';

/** Checks at a time; more wait, so that the checks of a large node take no descriptors from clients. */
const CHECKS_MAX = 512;

/** First checks of endpoints that come together follow each other in this time. */
const FIRST_SPACING_MS = 2;

const words: Record<Health, number> = {
  unknown: CheckState.UNKNOWN,
  healthy: CheckState.HEALTHY,
  unhealthy: CheckState.UNHEALTHY,
};

/** Checks of a backend by their outcome, since the start. */
export type CheckCounts = Record<CheckOutcome, number>;

/** A backend and how its endpoints are checked; null: not. */
export interface CheckedBackend {
  settings: BackendSettings;
  check: HealthCheckConfig | null;
}

/** What is known of an endpoint from its checks. */
export interface CheckedState {
  health: Health;
  /** Why the last check was not good; empty when it was. */
  cause: string;
}

/** Chance and probes, for tests. */
export interface CheckOptions {
  random?: () => number;
  probe?: Probe;
}

/** The checks of one endpoint. */
interface Checker {
  backend: string;
  address: string;
  backendSlot: number;
  slot: number;
  target: ProbeTarget;
  /** Tells whether the same is asked still. */
  identity: string;
  record: CheckRecord;
  cause: string;
  checked: boolean;
  timer: NodeJS.Timeout | undefined;
  /** Of the check that runs. */
  running: AbortController | undefined;
  stopped: boolean;
}

export class HealthChecks {
  private readonly node: NodeState;
  private readonly log: Log;
  private readonly random: () => number;
  private readonly probe: Probe;
  /** By backend and address. */
  private checkers = new Map<string, Checker>();
  private readonly counts = new Map<string, CheckCounts>();
  private running = 0;
  private readonly waiting: Checker[] = [];

  constructor(node: NodeState, log: Log, options: CheckOptions = {}) {
    this.node = node;
    this.log = log;
    this.random = options.random ?? Math.random;
    this.probe = options.probe ?? probe;
  }

  /** Checks the endpoints of these backends from now on, and no others. */
  use(backends: readonly CheckedBackend[]): void {
    const before = this.checkers;
    this.checkers = new Map();
    let first = 0;
    for (const { settings, check } of backends) {
      for (const endpoint of settings.endpoints) {
        const key = keyOf(settings.name, endpoint.address);
        const known = before.get(key);
        before.delete(key);
        if (check === null) {
          if (known !== undefined) stop(known);
          // Also what is left of a time when it was checked, before it came back.
          if (this.healthOf(endpoint.slot) !== 'unknown') this.setWord(settings.slot, endpoint.slot, 'unknown');
          continue;
        }
        const ofPort = check.port === 0 || check.port === endpoint.port;
        const target: ProbeTarget = {
          host: endpoint.host,
          port: check.port === 0 ? endpoint.port : check.port,
          proxyProtocol: settings.proxyProtocol,
          tls: check.type === 'HTTP' ? null : settings.tls,
          http2: settings.protocol === 'h2' && ofPort,
          identity: endpoint.identity,
          check,
        };
        const identity = identityOf(target);
        if (known?.identity === identity) {
          known.slot = endpoint.slot;
          known.backendSlot = settings.slot;
          this.retarget(known, target);
          this.checkers.set(key, known);
          continue;
        }
        if (known !== undefined) stop(known);
        const checker: Checker = {
          backend: settings.name,
          address: endpoint.address,
          backendSlot: settings.slot,
          slot: endpoint.slot,
          identity,
          target,
          record: new CheckRecord(check, known?.record.health ?? this.healthOf(endpoint.slot)),
          cause: '',
          checked: false,
          timer: undefined,
          running: undefined,
          stopped: false,
        };
        this.checkers.set(key, checker);
        this.schedule(checker, Math.min(FIRST_SPACING_MS * first++, check.intervalMs));
      }
    }
    for (const gone of before.values()) stop(gone);
    const names = new Set(backends.filter(({ check }) => check !== null).map(({ settings }) => settings.name));
    for (const name of this.counts.keys()) if (!names.has(name)) this.counts.delete(name);
    for (const name of names) {
      if (!this.counts.has(name)) this.counts.set(name, { success: 0, refusal: 0, failure: 0, timeout: 0 });
    }
  }

  /** Ends all checks. */
  close(): void {
    for (const checker of this.checkers.values()) stop(checker);
    this.checkers.clear();
    this.waiting.length = 0;
  }

  /** Checks of a backend so far; undefined when it has none. */
  countsOf(backend: string): CheckCounts | undefined {
    return this.counts.get(backend);
  }

  /** What is known of an endpoint; undefined when it is not checked. */
  stateOf(backend: string, address: string): CheckedState | undefined {
    const checker = this.checkers.get(keyOf(backend, address));
    return checker === undefined ? undefined : { health: checker.record.health, cause: checker.cause };
  }

  private schedule(checker: Checker, delayMs: number): void {
    checker.timer = setTimeout(() => this.begin(checker), delayMs).unref();
  }

  /** The same is asked from the next check on with other times, thresholds or certificates. */
  private retarget(checker: Checker, target: ProbeTarget): void {
    const { intervalMs } = checker.target.check;
    checker.target = target;
    checker.record.thresholds = target.check;
    if (intervalMs === target.check.intervalMs || !checker.checked) return;
    // Endpoints whose interval changes together part ways again.
    checker.checked = false;
    if (checker.timer === undefined) return;
    clearTimeout(checker.timer);
    this.schedule(checker, this.nextDelayMs(checker));
    checker.checked = true;
  }

  private begin(checker: Checker): void {
    checker.timer = undefined;
    if (this.running >= CHECKS_MAX) this.waiting.push(checker);
    else void this.run(checker);
  }

  private async run(checker: Checker): Promise<void> {
    if (checker.stopped) return;
    const { target } = checker;
    const controller = new AbortController();
    checker.running = controller;
    this.running++;
    const timer = setTimeout(() => controller.abort(), target.check.timeoutMs).unref();
    const result = await this.probe(target, controller.signal);
    clearTimeout(timer);
    this.running--;
    checker.running = undefined;
    if (!checker.stopped) {
      this.note(checker, result);
      this.schedule(checker, this.nextDelayMs(checker));
      checker.checked = true;
    }
    // Those that have been stopped meanwhile do not count.
    for (let next = this.waiting.shift(); next !== undefined; next = this.waiting.shift()) {
      if (next.stopped) continue;
      void this.run(next);
      break;
    }
  }

  /** The second check comes anywhere in the interval: endpoints that came together part ways. */
  private nextDelayMs({ checked, target: { check } }: Checker): number {
    const jitterMs = (check.intervalMs * check.jitterPercent * this.random()) / 100;
    return checked ? check.intervalMs + jitterMs : check.intervalMs * (0.5 + this.random() / 2);
  }

  private note(checker: Checker, { outcome, cause }: ProbeResult): void {
    const { record, backend, address } = checker;
    checker.cause = cause;
    if (outcome === null) return;
    this.counts.get(backend)![outcome]++;
    const before = record.health;
    if (!record.note(outcome)) return;
    this.setWord(checker.backendSlot, checker.slot, record.health);
    if (record.health === 'unhealthy') {
      this.log('warn', 'endpoint unhealthy', { endpoint: address, backend, cause });
    } else {
      // Thousands of endpoints may be found healthy at a start.
      this.log(before === 'unknown' ? 'debug' : 'info', 'endpoint healthy', { endpoint: address, backend });
    }
  }

  /** What the node state says of an endpoint. */
  private healthOf(slot: number): Health {
    const state = Atomics.load(this.node.words, this.node.endpointAt(slot) + EndpointWord.CHECK);
    return state === CheckState.UNHEALTHY ? 'unhealthy' : state === CheckState.HEALTHY ? 'healthy' : 'unknown';
  }

  private setWord(backendSlot: number, slot: number, health: Health): void {
    Atomics.store(this.node.words, this.node.endpointAt(slot) + EndpointWord.CHECK, words[health]);
    this.node.changed(backendSlot);
  }
}

/** All that decides what is asked and what counts as well; not when, how often, and with which certificates. */
function identityOf({ check, tls, ...place }: ProbeTarget): string {
  const {
    intervalMs: _interval,
    timeoutMs: _timeout,
    jitterPercent: _jitter,
    healthyThreshold: _healthy,
    unhealthyThreshold: _unhealthy,
    ...asked
  } = check;
  if (tls === null) return JSON.stringify([place, asked]);
  const { key: _key, caPem: _ca, certificate: _certificate, ...verified } = tls;
  return JSON.stringify([place, asked, verified]);
}

function stop(checker: Checker): void {
  checker.stopped = true;
  clearTimeout(checker.timer);
  checker.running?.abort();
}

function keyOf(backend: string, address: string): string {
  return `${backend} ${address}`;
}
