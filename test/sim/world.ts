// One simulated run: a packet worker on a simulated kernel, with clients and upstreams around it.
//
// `runSeed` draws everything from the seed, runs until all is quiet, and reports what broke the
// rules. Besides the fate of every request (judge.ts) it watches the worker itself: it must not
// spin, and when everybody has left, nothing may be left open, held or counted.

import { compileSnapshot } from '../../config/compile.ts';
import { collectPolicies } from '../../config/compile-policies.ts';
import type { Config } from '../../config/config.ts';
import { loadConfig } from '../../config/load.ts';
import { kernelMemoryBytes } from '../../core/io/arena.ts';
import { BackendWord, createNodeState, EndpointWord } from '../../core/lb/node-state.ts';
import { ALL_WITHHELD } from '../../core/lb/outlier-detection.ts';
import { createByteRing } from '../../core/telemetry/byte-ring.ts';
import { createFlightBuffer } from '../../core/telemetry/flight-layout.ts';
import { Counter, createMetricsBuffer, WorkerMetrics } from '../../core/telemetry/metrics.ts';
import { NodeSlots } from '../../core/workers/node-slots.ts';
import { PacketWorker } from '../../core/workers/packet-worker.ts';
import type { ControlMessage, WorkerMessage } from '../../core/workers/protocol.ts';
import type { Snapshot } from '../../core/workers/snapshot.ts';
import { SnapshotDeltas } from '../../core/workers/snapshot-delta.ts';
import { OutlierControl } from '../../gateway/health/outlier-control.ts';
import { REASON_FIELD, SimClient } from './client.ts';
import { backendText, drawFeatures, type Features, featureSeed, markRequests, ruleText } from './features.ts';
import { SimHttp2Client } from './http2-client.ts';
import { adaptUpgrade, drawHttp2Clients } from './http2-plan.ts';
import { Judge } from './judge.ts';
import { type KernelFaults, noFaults, SimKernel } from './kernel.ts';
import {
  type ClientPlan,
  drawClients,
  drawLink,
  drawTroubles,
  limitedBodyBytes,
  limitedRequests,
  type RequestPlan,
  streamIdleMs,
  type Troubles,
} from './plan.ts';
import { Random } from './random.ts';
import { Scheduler } from './scheduler.ts';
import { ShadowServer, shadowAddress } from './shadow.ts';
import { SimUpstream } from './upstream.ts';

/** What came of a run. */
export interface RunReport {
  seed: number;
  kind: WorldKind;
  /** Broken rules; empty when all is well. */
  violations: string[];
  /** Families of trouble that were on. */
  troubles: string[];
  /** Requests by outcome. */
  tally: Record<string, number>;
  /** Worker batches. */
  batches: number;
}

/** Which protocols are spoken: HTTP/1.1 only, or HTTP/2 by most clients. */
export type WorldKind = 'http1' | 'http2';

/** All worlds of a seed. */
export const worldKinds: readonly WorldKind[] = ['http1', 'http2'];

/** Keeps what is drawn for HTTP/2 away from the seeds of everything else. */
const HTTP2_SEEDS = 2 ** 33;

const listenerAddress = { host: '127.0.0.1', port: 8080 };
const extraAddress = { host: '127.0.0.1', port: 8081 };
/** Longest a batch sleeps, so that control messages could be delivered without a wake-up. */
const BATCH_WAIT_MS = 1000;
/** Batches in a row that may return although nothing moved, neither here nor outside. */
const IDLE_BATCHES_MAX = 64;
/** Virtual time in which every client must be done. Above all timeouts, retries and slow readers. */
const RUN_MS_MAX = 1_800_000;
/** Virtual time after the last client in which everything must be closed. */
const SETTLE_MS_MAX = 400_000;

/** Blocks for request bodies that wait, as many as the default window of a connection allows, and some partly filled. */
const HTTP2_BLOCKS_MAX = (1024 * 1024) / 16_384 + 16;

/** Connections that a client opens one after the other to get its requests done. */
const RECONNECTS_MAX = 6;

/** Longest request body that is kept for another attempt, and the blocks that it takes. */
const RETRY_BODY_BYTES = 128 * 1024;
const RETRY_BODY_BLOCKS = 4;

/** What a run has of retries and circuit breakers. By seed alone, so that all else is drawn as without. */
interface Resilience {
  /** Further attempts; 0: none. */
  retries: number;
  /** Time after which a slow request is sent a second time; 0: never. */
  hedgeMs: number;
  breakers: boolean;
}

/** Time between two looks of the control thread at ejected endpoints. */
const OUTLIER_TICK_MS = 100;

/** The endpoints of a backend in one generation of the configuration. */
interface EndpointSet {
  backend: string;
  backendSlot: number;
  members: { upstream: SimUpstream; slot: number }[];
  /** When another generation took its place; infinite while it is in force. */
  replacedMs: number;
  /** Since when all of them are ejected (infinite: they are not), and when that last ended. */
  allEjectedMs: number;
  allEjectedUntilMs: number;
}

const snapshotCache = new Map<string, Config>();

function configText(
  troubles: Troubles,
  kind: WorldKind,
  http2Backends: readonly string[],
  addresses: Readonly<Record<string, string[]>>,
  extra: boolean,
  { retries, hedgeMs, breakers }: Resilience,
  features: Features,
): string {
  // The time for the acknowledgement of settings too, which the slowest of networks need.
  const requestHead = kind === 'http1' ? '10s' : '120s';
  // Small enough that bytes for which no window is given back stop the connection.
  const windows = kind === 'http2' && troubles.clients ? 'http2: {streamWindow: 64KiB, connectionWindow: 128KiB}' : '';
  const retry =
    retries === 0
      ? ''
      : `retry: {attempts: ${retries}, conditions: [5xx], backoff: 20ms, bodyBuffer: ${RETRY_BODY_BYTES}, maxRetryAfter: 1s}`;
  const hedge = hedgeMs === 0 ? '' : `hedge: {delay: ${hedgeMs}ms, budgetPercent: 100}`;
  const members = (name: string, text: string): string =>
    [text, retry, hedge, ...ruleText(features, name)].filter((part) => part !== '').join(', ');
  const breaker = breakers
    ? ', circuitBreaker: {maxConnections: 2, maxPendingRequests: 20, maxRequests: 60, pendingTimeout: 20s}'
    : '';
  const budget = retries === 0 ? '' : ', retryBudget: {percent: 100, minPerSecond: 1000}';
  const betaTimeouts = troubles.responses ? 'timeouts: {request: 5s, backendRequest: 3s}' : '';
  const route = (name: string, extra: string): string => `
  - name: ${name}
    hostnames: [${name}.test]
    rules: [{matches: [{path: {value: /r}}], backendRefs: [{name: ${name}}]${extra === '' ? '' : `, ${extra}`}}]`;
  const h2c =
    ', protocol: h2c, http2: {maxConcurrentStreams: 20, maxConnections: 3, pingInterval: 6s, pingTimeout: 20s}';
  const backend = (name: string): string => `
  - {name: ${name}, endpoints: [${addresses[name]!.map((text) => `"${text}"`).join(', ')}], connectTimeout: 2s, idleTimeout: 40s${http2Backends.includes(name) ? h2c : ''}${troubles.limits ? `, maxRequestsPerConnection: ${limitedRequests}` : ''}${breaker}${budget}${backendText(features)}}`;
  const shadow = `
  - {name: shadow, endpoints: ["${shadowAddress.host}:${shadowAddress.port}"], connectTimeout: 1s, idleTimeout: 20s}`;
  const listener = (name: string, at: typeof listenerAddress): string => `
  - {name: ${name}, address: "${at.host}:${at.port}"}`;
  const limits = `limits: {maxRequestBodySize: ${limitedBodyBytes}, maxRequestsPerConnection: ${limitedRequests}}`;
  return `
accessLog: {path: "-"}
responseReasonHeader: ${REASON_FIELD}
timeouts: {requestHead: ${requestHead}, idle: 50s, streamIdle: ${streamIdleMs / 1000}s, tunnelIdle: 60s}
${windows}
${troubles.limits ? limits : ''}
listeners:${listener('main', listenerAddress)}${extra ? listener('extra', extraAddress) : ''}
routes:${route('alpha', members('alpha', ''))}${route('beta', members('beta', betaTimeouts))}
backends:${backend('alpha')}${backend('beta')}${features.mirror === undefined ? '' : shadow}
`;
}

/** A snapshot on its way. */
interface SnapshotMessage {
  type: 'snapshot';
  snapshot: Snapshot;
  listenerFds: number[];
}

type SimMessage = Exclude<ControlMessage, { type: 'snapshot' }> | SnapshotMessage;

function snapshotOf(text: string, epoch: number, slots: NodeSlots, nowMs: number): Snapshot {
  let config = snapshotCache.get(text);
  if (config === undefined) {
    const loaded = loadConfig(text, 'simulation.yaml', {});
    if ('errors' in loaded) throw new Error(`the configuration of the simulation: ${JSON.stringify(loaded.errors)}`);
    config = loaded.config;
    snapshotCache.set(text, config);
  }
  // Made before the snapshot is, which would take the clock of the machine for that of the simulation.
  slots.limits.assign(collectPolicies(config.routes).rulePolicies, nowMs);
  return compileSnapshot(config, epoch, new Map(), undefined, undefined, slots);
}

/** The run of one seed, step by step. */
class World {
  readonly judge: Judge;
  readonly troubles: Troubles;
  batches = 0;
  private readonly kind: WorldKind;
  private readonly resilience: Resilience;
  private readonly features: Features;
  private readonly shadow: ShadowServer | undefined;
  /** Backends that speak h2c. */
  private readonly http2Backends: readonly string[] = [];
  private readonly random: Random;
  private readonly scheduler = new Scheduler();
  private readonly kernel: SimKernel;
  private readonly worker: PacketWorker;
  private readonly metrics = createMetricsBuffer();
  private readonly wakeFd: number;
  private readonly listenerFd: number;
  private readonly upstreams = new Map<string, SimUpstream>();
  private readonly clients: (SimClient | SimHttp2Client)[] = [];
  private readonly inbox: SimMessage[] = [];
  /** The snapshot handed over last. */
  private handed: Snapshot | null = null;
  private readonly posted: WorkerMessage[] = [];
  /** Addresses of the endpoints of each generation. */
  private readonly wanted = new Map<number, Set<string>>();
  private readonly trace: ((line: string) => void) | undefined;
  private readonly baseDescriptors: number;
  private epoch = 1;
  /** Who has which words of the node state, across generations. */
  private readonly slots = new NodeSlots(1, createNodeState(1, 64, 8));
  /** What the control thread does about ejected endpoints. */
  private readonly outliers = new OutlierControl(this.slots.state, (level, message, fields) =>
    this.trace?.(`control: ${level} ${message} ${JSON.stringify(fields)}`),
  );
  private nextTickMs = 0;
  private readonly endpointSets: EndpointSet[] = [];
  /** Connections that clients are going to open. */
  private clientsComing = 0;
  private listenerOpen = true;
  /** A second listener, that a reload may remove. */
  private readonly extraFd: number;
  private extraOpen: boolean;
  private extraWanted: boolean;
  private idleBatches = 0;
  /** Whether ejections have had their failures has been looked at. */
  private ejectionsChecked = false;

  constructor(seed: number, kind: WorldKind, trace: ((line: string) => void) | undefined) {
    this.random = new Random(seed);
    this.kind = kind;
    const hedgeMs = seed % 6 === 0 ? 20 + (seed % 180) : 0;
    this.resilience = { retries: seed % 3 === 0 ? 2 : 0, hedgeMs, breakers: seed % 5 === 0 };
    this.troubles = drawTroubles(this.random.fork());
    const clients = drawClients(this.random.fork(), this.troubles);
    if (kind === 'http2') {
      const http2Random = new Random(seed + HTTP2_SEEDS);
      drawHttp2Clients(http2Random, this.troubles, clients);
      this.http2Backends = http2Random.pick([[], [], ['alpha'], ['beta'], ['alpha', 'beta']]);
      for (const client of clients) for (const plan of client.requests) adaptUpgrade(plan, this.http2Backends);
    }
    this.judge = new Judge(this.troubles, clients, () => this.scheduler.nowMs);
    // A hedge is one more attempt to the judge.
    this.judge.retries = this.resilience.retries + (hedgeMs > 0 ? 1 : 0);
    this.judge.breakers = this.resilience.breakers;
    const featureRandom = new Random(featureSeed(seed));
    this.features = drawFeatures(featureRandom);
    markRequests(featureRandom, this.features, clients);
    this.judge.features = this.features;
    this.judge.allEjected = (backend, sinceMs) => this.allEjected(backend, sinceMs);
    this.trace = trace === undefined ? undefined : (line) => trace(`${this.scheduler.nowMs.toFixed(3)} ${line}`);
    this.judge.trace = this.trace;
    const linkRandom = this.random.fork();
    const tight = this.troubles.resources && this.random.chance(0.5);
    const bufferBytes = tight ? 1024 * 1024 : 4 * 1024 * 1024;
    this.kernel = new SimKernel({
      random: this.random.fork(),
      scheduler: this.scheduler,
      memoryBytes: kernelMemoryBytes(bufferBytes),
      faults: this.faults(),
      links: () => ({ out: drawLink(linkRandom, this.troubles, true), in: drawLink(linkRandom, this.troubles, false) }),
      eventStride: this.random.pick([3, 4]),
      trace: this.trace,
    });
    if (this.features.mirror !== undefined) {
      this.shadow = new ShadowServer(this.features.mirror.manner, this.scheduler, featureRandom, this.judge);
      this.kernel.setEndpoint(shadowAddress, this.shadow);
    }
    this.wakeFd = this.kernel.eventfd();
    this.listenerFd = this.kernel.createListener(listenerAddress);
    this.extraFd = this.troubles.reload ? this.kernel.createListener(extraAddress) : -1;
    this.extraOpen = this.troubles.reload;
    this.extraWanted = this.troubles.reload;
    const connectionsMax = this.troubles.resources && this.random.chance(0.5) ? this.random.int(4, 12) : 256;
    this.worker = new PacketWorker(
      this.kernel,
      {
        index: 0,
        wakeFd: this.wakeFd,
        connectionsMax,
        metrics: this.metrics,
        accessLog: createByteRing(64 * 1024),
        flightRecords: createFlightBuffer(),
        descriptors: new SharedArrayBuffer(connectionsMax * 4),
      },
      (message) => this.posted.push(message),
      null,
      (words) => {
        for (let i = 0; i < words.length; i++) words[i] = this.random.next();
      },
    );
    this.baseDescriptors = this.kernel.openDescriptors().length;
    const first = this.snapshot(0);
    this.handOver(first);
    this.applied(first.snapshot);
    this.clientsComing = clients.length;
    for (const [index, plan] of clients.entries()) {
      const clientRandom = this.random.fork();
      this.scheduler.after(plan.startMs, () => {
        this.clientsComing--;
        this.startClient(index, 0, clientRandom, plan);
      });
    }
    this.planEvents();
  }

  /** Runs to the end. */
  run(): void {
    const limitMs = this.scheduler.nowMs + RUN_MS_MAX;
    while (!this.clientsDone() && this.scheduler.nowMs < limitMs) this.batch();
    this.judge.finish();
    this.trace?.('all clients are done');
    if (this.random.chance(0.2)) {
      // Stopped in the middle of things.
      this.checkStop();
      return;
    }
    // Upstreams that hang, and kept connections, end now or by the gateway's own timers.
    if (this.random.chance(0.5)) {
      // What is still in progress for clients that have left fails by that, which no plan says.
      if (this.features.outliers !== undefined) this.checkEjections(this.features.outliers);
      this.ejectionsChecked = true;
      for (const upstream of this.upstreams.values()) upstream.closeAll();
      this.shadow?.closeAll();
    }
    const settleMs = this.scheduler.nowMs + SETTLE_MS_MAX;
    // One batch more than seems needed: a connection may still wait to be accepted, or a message to be taken.
    do {
      while (!this.quiet() && this.scheduler.nowMs < settleMs) this.batch();
      this.batch();
    } while ((!this.quiet() || this.inbox.length > 0) && this.scheduler.nowMs < settleMs);
    this.judge.checkMirrors();
    if (this.inbox.length > 0) this.judge.violation('control messages were never taken');
    this.checkLeaks();
    this.checkStop();
  }

  private faults(): KernelFaults {
    if (!this.troubles.network) return { ...noFaults, syscallMsMax: 0.002 };
    return {
      sendSqueeze: this.random.chance(0.4) ? this.random.pick([0.02, 0.3]) : 0,
      acceptAborted: this.troubles.clients ? 0.05 : 0,
      interrupted: this.random.chance(0.3) ? 0.02 : 0,
      syscallMsMax: this.random.pick([0.002, 0.05, 1]),
    };
  }

  /** The snapshot of a generation; the endpoints change from one to the next, some stay. */
  private snapshot(generation: number, withoutExtra = false): SnapshotMessage {
    const addresses: Record<string, string[]> = {
      alpha: [`10.1.0.${generation + 1}:80`, `10.1.0.${generation + 2}:80`],
      beta: [`10.2.0.${generation + 1}:8080`],
    };
    const wanted = new Set<string>();
    for (const [backend, list] of Object.entries(addresses)) {
      for (const text of list) {
        wanted.add(text);
        const [host, port] = text.split(':');
        if (this.upstreams.has(text)) continue;
        const upstream = new SimUpstream(
          backend,
          this.http2Backends.includes(backend),
          this.scheduler,
          this.random.fork(),
          this.judge,
        );
        this.upstreams.set(text, upstream);
        this.kernel.setEndpoint({ host: host!, port: Number(port) }, upstream);
      }
    }
    this.wanted.set(this.epoch, wanted);
    if (withoutExtra) this.extraWanted = false;
    const snapshot = snapshotOf(
      configText(
        this.troubles,
        this.kind,
        this.http2Backends,
        addresses,
        this.extraWanted,
        this.resilience,
        this.features,
      ),
      this.epoch++,
      this.slots,
      this.scheduler.nowMs,
    );
    const listenerFds = snapshot.listeners.map((listener) =>
      listener.name === 'extra' ? this.extraFd : this.listenerFd,
    );
    return { type: 'snapshot', snapshot, listenerFds };
  }

  /** Opens a client's connection; `attempt` counts those it had before. */
  private startClient(index: number, attempt: number, random: Random, plan: ClientPlan): void {
    const from = { host: `10.9.0.${index + 1}`, port: 50000 + attempt };
    const address = plan.extraListener ? extraAddress : listenerAddress;
    const socket = this.kernel.dialIn(address, from);
    const again = (rest: RequestPlan[]): boolean => {
      if (attempt >= RECONNECTS_MAX) return false;
      const next = {
        ...plan,
        requests: rest,
        cut: undefined,
        leaveAtByte: undefined,
        halfClose: false,
        extraListener: false,
        http2: plan.http2 === undefined ? undefined : { ...plan.http2, fatal: undefined },
      };
      this.judge.moved(rest, next);
      // Nobody comes back at once to a server that has just turned them away.
      const waitMs = random.between(0, this.troubles.resources ? 1000 : 20);
      this.clientsComing++;
      this.scheduler.after(waitMs, () => {
        this.clientsComing--;
        this.startClient(index, attempt + 1, random.fork(), next);
      });
      return true;
    };
    const name = `client ${index + 1}.${attempt}`;
    const client = plan.http2 === undefined ? SimClient : SimHttp2Client;
    this.clients.push(new client(name, socket, this.scheduler, random, plan, this.judge, again));
  }

  /** Plans what happens to the worker itself during the run. */
  private planEvents(): void {
    const { random, scheduler, troubles } = this;
    if (troubles.reload) {
      for (let generation = 1; generation <= random.int(1, 3); generation++) {
        scheduler.after(random.size(0, 400), () => this.tell(this.snapshot(generation, random.chance(0.4))));
      }
    }
    if (troubles.drain) {
      const timeoutMs = random.pick([0, 50, 5000]);
      const idleGraceMs = Math.min(timeoutMs, random.pick([0, 20, 1000]));
      scheduler.after(random.int(0, 600), () => this.tell({ type: 'drain', idleGraceMs, timeoutMs }));
    }
    if (troubles.resources) {
      const startMs = scheduler.nowMs + random.between(0, 50);
      scheduler.at(startMs, () => {
        this.kernel.descriptorsMax = this.kernel.openDescriptors().length + random.int(0, 3);
      });
      scheduler.at(startMs + random.between(1, 3000), () => {
        this.kernel.descriptorsMax = 1024;
      });
    }
    scheduler.after(random.between(0, 300), () => this.tell({ type: 'ping', token: 77 }));
  }

  /** Sends a control message as the control thread does: into the inbox, then the wake-up. */
  private tell(message: SimMessage): void {
    this.trace?.(`control: ${message.type}`);
    this.inbox.push(message);
    this.kernel.eventfdWrite(this.wakeFd);
  }

  private batch(): void {
    const progressBefore = this.kernel.progress + this.scheduler.executed;
    const beforeMs = this.scheduler.nowMs;
    const events = this.worker.runBatch(BATCH_WAIT_MS);
    this.batches++;
    this.checkMemory();
    if (this.features.outliers !== undefined) this.controlOutliers();
    if (this.worker.messagesWaiting) this.deliver();
    for (const message of this.posted.splice(0)) this.hear(message);
    const slept = this.scheduler.nowMs - beforeMs > 0.9;
    const progress = this.kernel.progress + this.scheduler.executed;
    if (progress !== progressBefore || (events === 0 && slept)) this.idleBatches = 0;
    else if (++this.idleBatches > IDLE_BATCHES_MAX) {
      throw new Error(`the worker spins: ${IDLE_BATCHES_MAX} batches moved nothing`);
    }
  }

  /** Streams must hold little, however slow the other side is. Small and large blocks count alike. */
  private checkMemory(): void {
    const { connections, exchanges, blocksInUse } = this.worker.stats();
    const http2Clients = this.clients.filter((client) => client instanceof SimHttp2Client).length;
    const keeps = this.resilience.retries > 0 || this.features.mirror !== undefined;
    const kept = keeps ? exchanges * RETRY_BODY_BLOCKS : 0;
    const most = 2 * (connections + exchanges) + kept + 2 + http2Clients * HTTP2_BLOCKS_MAX;
    if (blocksInUse > most)
      throw new Error(`${blocksInUse} blocks for ${connections} connections, ${exchanges} exchanges`);
  }

  /** Hands a snapshot over as worker slots do: as what differs from the one before, copied. */
  private handOver({ snapshot, listenerFds }: SnapshotMessage): void {
    const sent = structuredClone(new SnapshotDeltas().between(this.handed, snapshot));
    this.handed = snapshot;
    this.worker.handle({ type: 'snapshot', snapshot: sent, listenerFds });
  }

  /** Hands over control messages between two batches, as the worker thread does when it was woken. */
  private deliver(): void {
    this.worker.messagesWaiting = false;
    for (const message of this.inbox.splice(0)) {
      this.kernel.progress++;
      if (message.type !== 'snapshot') {
        this.worker.handle(message);
        continue;
      }
      this.handOver(message);
      this.applied(message.snapshot);
      const wanted = this.wanted.get(message.snapshot.epoch)!;
      for (const [address, upstream] of this.upstreams) upstream.setConfigured(wanted.has(address));
      // The control thread closes a removed listener once every worker has applied the change.
      if (message.listenerFds.length === 1 && this.extraOpen) this.closeListener('extra');
    }
  }

  // -- outlier detection -----------------------------------------------------------------

  /** A snapshot is in force. */
  private applied({ backends }: Snapshot): void {
    if (this.features.outliers === undefined) return;
    const { nowMs } = this.scheduler;
    this.outliers.use(backends, nowMs | 0);
    for (const set of this.endpointSets) set.replacedMs = Math.min(set.replacedMs, nowMs);
    for (const { name, slot: backendSlot, endpoints } of backends) {
      if (name === 'shadow') continue;
      this.endpointSets.push({
        backend: name,
        backendSlot,
        members: endpoints.map(({ address, slot }) => ({ upstream: this.upstreams.get(address)!, slot })),
        replacedMs: Number.POSITIVE_INFINITY,
        allEjectedMs: Number.POSITIVE_INFINITY,
        allEjectedUntilMs: Number.NEGATIVE_INFINITY,
      });
    }
  }

  private controlOutliers(): void {
    this.watchEjections();
    const { nowMs } = this.scheduler;
    if (nowMs < this.nextTickMs) return;
    this.nextTickMs = nowMs + OUTLIER_TICK_MS;
    this.outliers.tick(nowMs | 0);
    this.watchEjections();
  }

  /** Notes who is ejected. */
  private watchEjections(): void {
    const { nowMs } = this.scheduler;
    for (const set of this.endpointSets) {
      let ejected = 0;
      for (const { upstream, slot } of set.members) {
        const isEjected = this.withheld(slot) === ALL_WITHHELD;
        if (isEjected) ejected++;
        if (!isEjected) upstream.ejectedMs = Number.POSITIVE_INFINITY;
        else if (upstream.ejectedMs === Number.POSITIVE_INFINITY) upstream.ejectedMs = nowMs;
      }
      const inForce = set.replacedMs === Number.POSITIVE_INFINITY;
      if (inForce && ejected > 1) this.judge.violation(`${ejected} endpoints of ${set.backend} are ejected at a time`);
      if (ejected === set.members.length) {
        set.allEjectedMs = Math.min(set.allEjectedMs, nowMs);
      } else if (set.allEjectedMs !== Number.POSITIVE_INFINITY) {
        set.allEjectedMs = Number.POSITIVE_INFINITY;
        set.allEjectedUntilMs = nowMs;
      }
    }
  }

  private withheld(slot: number): number {
    const { state } = this.slots;
    return state.words[state.endpointAt(slot) + EndpointWord.WITHHELD_PERMILLE]!;
  }

  private allEjected(backend: string, sinceMs: number): boolean {
    if (this.features.outliers === undefined) return false;
    this.watchEjections();
    return this.endpointSets.some(
      (set) =>
        set.backend === backend &&
        set.replacedMs >= sinceMs &&
        (set.allEjectedMs !== Number.POSITIVE_INFINITY || set.allEjectedUntilMs >= sinceMs),
    );
  }

  /** Ejections need their failures. */
  private checkEjections(outliers: NonNullable<Features['outliers']>): void {
    const { judge, troubles } = this;
    const { state } = this.slots;
    // Other troubles may fail requests that their plan says nothing of.
    const exact = !troubles.stale && !troubles.responses && !troubles.early && !troubles.resources;
    for (const { members } of this.endpointSets) {
      for (const { upstream, slot } of members) {
        const times = state.words[state.endpointAt(slot) + EndpointWord.EJECTED_TIMES]!;
        const { consecutive5xx, gradual } = outliers;
        const least = times === 0 ? 0 : gradual ? consecutive5xx + times - 1 : consecutive5xx * times;
        if (exact && upstream.failures < least) {
          judge.violation(
            `${times} ejections of an endpoint of ${upstream.backend} after ${upstream.failures} failures`,
          );
        }
      }
    }
  }

  /** Ejections need their failures, and end. */
  private checkOutliers(outliers: NonNullable<Features['outliers']>): void {
    const { judge, scheduler } = this;
    const { state } = this.slots;
    if (!this.ejectionsChecked) this.checkEjections(outliers);
    let nowMs = scheduler.nowMs;
    for (let step = 0; step < 10; step++) {
      nowMs += outliers.maxEjectionMs;
      this.outliers.tick(nowMs | 0);
    }
    for (const { backend, backendSlot, members, replacedMs } of this.endpointSets) {
      if (replacedMs !== Number.POSITIVE_INFINITY) continue;
      for (const { slot } of members) {
        if (this.withheld(slot) !== 0) judge.violation(`an endpoint of ${backend} does not come back`);
      }
      const ejected = state.words[state.backendAt(backendSlot) + BackendWord.EJECTED];
      if (ejected !== 0) judge.violation(`${ejected} ejected endpoints of ${backend} are counted, and there are none`);
    }
  }

  private hear(message: WorkerMessage): void {
    this.trace?.(`worker: ${JSON.stringify(message)}`);
    if (message.type === 'pong' && message.token !== 77) this.judge.violation('a pong for another ping');
    if (message.type === 'log' && message.level === 'error') this.judge.violation(`logged: ${message.message}`);
    if (message.type !== 'drained') return;
    this.closeListener('main');
    this.closeListener('extra');
  }

  private closeListener(name: 'main' | 'extra'): void {
    if (name === 'main' ? !this.listenerOpen : !this.extraOpen) return;
    if (name === 'main') this.listenerOpen = false;
    else this.extraOpen = false;
    this.kernel.close(name === 'main' ? this.listenerFd : this.extraFd);
  }

  private clientsDone(): boolean {
    return this.clientsComing === 0 && this.clients.every((client) => client.done);
  }

  private quiet(): boolean {
    const { connections, exchanges, blocksInUse } = this.worker.stats();
    return connections === 0 && exchanges === 0 && blocksInUse === 0 && this.clients.every((client) => client.gone);
  }

  /** A stopped worker leaves open only what the control thread had opened. */
  private checkStop(): void {
    this.worker.handle({ type: 'stop' });
    const left = this.kernel.openDescriptors().map((open) => open.fd);
    const lent = [
      this.wakeFd,
      ...(this.listenerOpen ? [this.listenerFd] : []),
      ...(this.extraOpen ? [this.extraFd] : []),
    ];
    if (left.join() !== lent.join()) this.judge.violation(`descriptors ${left} open after a stop, not ${lent}`);
    const { connections, exchanges, blocksInUse } = this.worker.stats();
    if (connections + exchanges + blocksInUse > 0) this.judge.violation('a stopped worker holds something');
  }

  private checkLeaks(): void {
    const { judge } = this;
    const stats = this.worker.stats();
    for (const [name, value] of Object.entries(stats)) {
      if (value !== 0) judge.violation(`${value} ${name} left at the end`);
    }
    if (this.features.outliers !== undefined) this.checkOutliers(this.features.outliers);
    const node = this.slots.state;
    for (let endpoint = 0; endpoint < node.endpointsMax; endpoint++) {
      const active = node.words[node.endpointAt(endpoint) + EndpointWord.ACTIVE];
      if (active !== 0) judge.violation(`ACTIVE of endpoint ${endpoint} stays at ${active}`);
    }
    for (const backend of [0, 1, 2]) {
      for (const name of ['ACTIVE', 'PENDING', 'RETRIES', 'CONNECTIONS'] as const) {
        const count = node.words[node.backendAt(backend) + BackendWord[name]];
        if (count !== 0) judge.violation(`${name} of backend ${backend} stays at ${count}`);
      }
    }
    const open = this.kernel.openDescriptors();
    const closed = (this.listenerOpen ? 0 : 1) + (this.troubles.reload && !this.extraOpen ? 1 : 0);
    const most = this.baseDescriptors - closed;
    // The descriptor that the worker keeps in reserve may have been spent while they were short.
    const least = most - (this.troubles.resources ? 1 : 0);
    if (open.length > most || open.length < least) judge.violation(`descriptors left open: ${JSON.stringify(open)}`);
    const { counters } = new WorkerMetrics(this.metrics);
    for (const name of [
      'REQUESTS_IN_FLIGHT',
      'DOWNSTREAM_OPEN',
      'UPSTREAM_OPEN',
      'UPSTREAM_IDLE',
      'BUFFERS_IN_USE',
      'TUNNELS_OPEN',
      'MIRRORS_IN_FLIGHT',
    ] as const) {
      if (counters[Counter[name]] !== 0) judge.violation(`the gauge ${name} stays at ${counters[Counter[name]]}`);
    }
  }
}

/** Runs one seed. `trace` takes a line for everything that happens. Deterministic for a seed. */
export function runSeed(seed: number, kind: WorldKind, trace?: (line: string) => void): RunReport {
  const world = new World(seed, kind, trace);
  try {
    world.run();
  } catch (error) {
    world.judge.violation(error instanceof Error ? (error.stack ?? error.message) : String(error));
  }
  const troubles = Object.entries(world.troubles).flatMap(([name, on]) => (on ? [name] : []));
  const { judge, batches } = world;
  return { seed, kind, violations: judge.violations, troubles, tally: judge.tally(), batches };
}
