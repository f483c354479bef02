// The running gateway, seen from the control thread: configuration, sockets, workers, admin port,
// access log, and the changes from one generation of the configuration to the next.
//
// A change is all or nothing: whatever can fail (sockets, files, compilation) is done before the
// workers hear of it, and is undone when something else fails.
// Owned by the control thread. Invariant: changes never overlap (SerialQueue).

import { compileSnapshot } from '../config/compile.ts';
import { compileRoutesOffThread } from '../config/compile-off-thread.ts';
import { compileRoutes, routeTableInput } from '../config/compile-routes.ts';
import type { Config } from '../config/config.ts';
import type { LoadResult } from '../config/load.ts';
import { formatAddress } from '../config/names.ts';
import { errnoSentence } from '../core/ffi/errno.ts';
import { raiseDescriptorLimit } from '../core/ffi/process.ts';
import { ExitCode, ExitError } from '../core/process/exit-codes.ts';
import type { Logger } from '../core/process/log.ts';
import { MemoryReturn } from '../core/process/memory-return.ts';
import type { RecorderSettings } from '../core/telemetry/request-recorder.ts';
import { isEqualData } from '../core/workers/equal-data.ts';
import { ListeningSockets, type ListenPlan } from '../core/workers/listening-sockets.ts';
import { NodeSlots } from '../core/workers/node-slots.ts';
import { WORKER_FILE } from '../core/workers/prestart.ts';
import type { DestinationAnswer, DestinationQuestion, UsedDestinations } from '../core/workers/protocol.ts';
import type { Snapshot } from '../core/workers/snapshot.ts';
import { type ApplyReport, Supervisor } from '../core/workers/supervisor.ts';
import { AccessLogOutput } from './access-log-output.ts';
import type { AcmeCertificates } from './acme/certificates.ts';
import { AdaptiveConcurrency } from './adaptive-concurrency.ts';
import { AdminPort } from './admin-port.ts';
import { BreakerWatch } from './breaker-watch.ts';
import { workerConnections } from './capacity.ts';
import { Certificates } from './certificates/certificates.ts';
import { tryTls } from './certificates/try-tls.ts';
import { errorsForLog, logWarnings } from './check.ts';
import { Discovery } from './discovery/discovery.ts';
import { Health } from './health/health.ts';
import { type Dial, dialDirectly } from './health/probe-connection.ts';
import { probeThrough } from './health/probes.ts';
import { type LeaveOut, openListeners, planListeners } from './listeners.ts';
import { OverloadMonitor, openDescriptors } from './overload.ts';
import { RateLimiting } from './rate-limit/rate-limiting.ts';
import { recorderSettings } from './replay/recordings.ts';
import { restartOnlyChanges, workerCountOf } from './restart-only.ts';
import { SerialQueue } from './serial-queue.ts';
import { GatewayState } from './state.ts';

/** Reads the configuration anew. */
export type LoadConfig = () => LoadResult;

/** What became of a reload. */
export interface Reloaded {
  /** The new configuration is in use. */
  applied: boolean;
  /** Workers that have not switched to it yet; they will, unless they are dying. */
  late: number;
  /** Why it was refused, one sentence each; empty: it was not. */
  errors: string[];
}

/**
 * How long an idle kept-alive connection may still bring a request once the gateway drains. It
 * covers a request that is already on its way; closing at once would lose it.
 */
const IDLE_GRACE_MS = 1000;

/** The gateway process. Create it with `App.start`. */
export class App {
  /** What the admin port shows. */
  readonly state: GatewayState;
  private readonly load: LoadConfig;
  private readonly leaveOut: LeaveOut;
  private readonly logger: Logger;
  /** The configuration that sized the workers. */
  private readonly startConfig: Config;
  private readonly workerCount: number;
  private readonly slots: NodeSlots;
  private readonly sockets: ListeningSockets;
  private readonly supervisor: Supervisor;
  private readonly rateLimiting: RateLimiting;
  private readonly overload: OverloadMonitor;
  private readonly adaptive: AdaptiveConcurrency;
  private readonly discovery: Discovery;
  private readonly health: Health;
  private readonly breakers: BreakerWatch;
  private readonly accessLog: AccessLogOutput;
  private readonly memory = new MemoryReturn();
  /** Questions of workers from before there was somebody to ask. */
  private readonly earlyQuestions: DestinationQuestion[] = [];
  private onDestinationQuestions = (questions: DestinationQuestion[]): void =>
    void this.earlyQuestions.push(...questions);
  /** Certificates in use; ACME supplies its own and sets its challenges here. */
  readonly certificates: Certificates;
  /** Loaded when a configuration first asks for it: most never do. */
  private acme: AcmeCertificates | undefined;
  private admin: AdminPort | null = null;
  /** What requests of the running configuration are recorded with. */
  private recorder: RecorderSettings | null = null;
  /** Compiled routes of the running configuration. */
  private routes = new SharedArrayBuffer(0);
  private readonly changes = new SerialQueue();
  private reloadWaiting: Promise<Reloaded> | undefined;

  /**
   * Starts everything and resolves once all workers serve. Throws an ExitError with one sentence
   * when the machine does not allow it (descriptors, ports, files). `leaveOut` and `dial`, by which health checks
   * connect: of a node proxy.
   */
  static async start(
    first: Config,
    load: LoadConfig,
    logger: Logger,
    certificates = new Certificates(logger.log),
    leaveOut: LeaveOut = () => {},
    dial: Dial = dialDirectly,
  ): Promise<App> {
    logger.level = first.log.level;
    const workerCount = workerCountOf(first);
    const capacity = workerConnections({
      workers: workerCount,
      listeners: first.listeners.length,
      maxConnections: first.limits.connectionsMax,
      descriptorLimit: raiseDescriptorLimit().soft,
    });
    if ('sentence' in capacity) throw new ExitError(ExitCode.TOO_FEW_DESCRIPTORS, capacity.sentence);
    const sockets = new ListeningSockets(workerCount);
    const { config, plan } = openListeners(sockets, first, () => loadAgain(load), leaveOut);
    AccessLogOutput.check(config.accessLog);
    const state = new GatewayState(workerCount, config);
    const app = new App(config, load, leaveOut, dial, logger, sockets, capacity.connectionsMax, state, certificates);
    try {
      await app.firstApply(config, plan);
    } catch (error) {
      await app.stop();
      throw error;
    }
    return app;
  }

  private constructor(
    config: Config,
    load: LoadConfig,
    leaveOut: LeaveOut,
    dial: Dial,
    logger: Logger,
    sockets: ListeningSockets,
    connectionsMax: number,
    state: GatewayState,
    certificates: Certificates,
  ) {
    this.startConfig = config;
    this.load = load;
    this.leaveOut = leaveOut;
    this.logger = logger;
    this.sockets = sockets;
    this.state = state;
    this.workerCount = state.areas.length;
    this.slots = new NodeSlots(this.workerCount);
    this.supervisor = new Supervisor({
      workerCount: this.workerCount,
      workerFile: WORKER_FILE,
      bufferBytes: config.limits.bufferBytes,
      connectionsMax,
      ioUring: config.ioUring === 'auto',
      shared: (index) => state.areas[index]!,
      sockets,
      log: logger.log,
      onLimitQuestions: (questions, answer) => this.rateLimiting.ask(questions, answer),
      onDestinationQuestions: (questions) => this.onDestinationQuestions(questions),
    });
    this.rateLimiting = new RateLimiting(this.slots.limits, logger.log);
    state.rateLimiting = this.rateLimiting;
    this.overload = new OverloadMonitor(
      {
        metrics: state.metrics,
        connectionsMax,
        descriptorsMax: raiseDescriptorLimit().soft,
        descriptorsFixed: openDescriptors(),
        node: this.slots.state,
      },
      logger.log,
    );
    state.overload = this.overload;
    this.adaptive = new AdaptiveConcurrency(this.slots.state);
    state.adaptiveStates = () => this.adaptive.states();
    state.workerStates = () => this.supervisor.states();
    this.accessLog = new AccessLogOutput(
      state.areas.map(({ accessLog }) => accessLog),
      logger.log,
    );
    this.discovery = new Discovery(logger.log, () => this.endpointsChanged());
    this.health = new Health(this.slots.state, logger.log, { probe: probeThrough(dial) });
    state.backendStates = () => this.health.states();
    this.breakers = new BreakerWatch(this.slots.state, logger.log);
    state.breakerStates = () => this.breakers.states();
    state.workloadSlots = this.slots.workloads;
    this.certificates = certificates;
    state.certificateStates = () => certificates.states();
    certificates.listen({
      changed: () => this.certificatesChanged(),
      // In its turn: a snapshot that is under way carries the keys of before.
      ticketKeys: (keys) => void this.changes.run(async () => this.supervisor.useTicketKeys([...keys])),
      challenges: (challenges) => this.supervisor.useChallenges(challenges),
    });
  }

  /** Addresses in use, by listener name; for log lines and the demo's banner. */
  addresses(): { name: string; address: string }[] {
    return this.state.config.listeners.flatMap(({ name, mesh }, index) => {
      if (mesh?.role === 'virtual') return [];
      const { host, port } = this.sockets.current[index]!;
      return { name, address: formatAddress(host, port) };
    });
  }

  /** Address of the admin port, or undefined when it is off. */
  get adminAddress(): string | undefined {
    return this.admin?.address;
  }

  /** Whether packet workers batch their system calls through io_uring, and if not, why; for the log. */
  get ioUring(): string {
    if (this.startConfig.ioUring === 'off') return 'off';
    const { ringErrno } = this.supervisor;
    return ringErrno === 0 ? 'on' : `not available: ${errnoSentence(ringErrno)}`;
  }

  /**
   * Reads the configuration again and brings all workers to it. A configuration with errors, or one
   * that the machine refuses, is logged and changes nothing. Calls during a reload that has not yet
   * read its file are one with it. Never rejects.
   */
  reload(): Promise<Reloaded> {
    this.reloadWaiting ??= this.changes.run(() => {
      this.reloadWaiting = undefined;
      return this.reloadNow();
    });
    return this.reloadWaiting;
  }

  /** Node proxies: `receive` is told of destinations that workers do not know. */
  takeDestinationQuestions(receive: (questions: DestinationQuestion[]) => void): void {
    this.onDestinationQuestions = receive;
    receive(this.earlyQuestions.splice(0));
  }

  /** Node proxies: tells all workers what is known of destinations. */
  answerDestinations(answers: readonly DestinationAnswer[]): void {
    this.supervisor.answerDestinations(answers);
  }

  /** Node proxies: destinations that have been in use since this was last asked. */
  usedDestinations(): Promise<UsedDestinations> {
    return this.supervisor.usedDestinations();
  }

  /** Opens the access log again under its name, after it was rotated away. */
  reopenAccessLog(): void {
    void this.accessLog.reopen();
  }

  /**
   * Stops accepting and lets running exchanges end. Resolves to the number of connections that had
   * not ended within `drainTimeout` and were cut.
   */
  async drain(): Promise<number> {
    const { drainTimeoutMs } = this.state.config;
    this.state.draining = true;
    this.discovery.close();
    this.health.close();
    this.breakers.close();
    await this.acme?.stop();
    this.certificates.close();
    return this.changes.run(() => this.supervisor.drain(Math.min(IDLE_GRACE_MS, drainTimeoutMs), drainTimeoutMs));
  }

  /** Ends all threads and closes everything, without waiting for exchanges. */
  async stop(): Promise<void> {
    this.state.draining = true;
    this.discovery.close();
    this.health.close();
    this.breakers.close();
    await this.acme?.stop();
    this.certificates.close();
    await this.supervisor.stop();
    this.rateLimiting.close();
    this.overload.close();
    this.adaptive.close();
    this.memory.close();
    await this.accessLog.close();
    this.admin?.close();
  }

  private async firstApply(config: Config, plan: ListenPlan): Promise<void> {
    // The worker threads boot meanwhile.
    const snapshot = await this.compile(config, 1);
    this.admin = await AdminPort.open(config.admin, this.state);
    await this.accessLog.use(config.accessLog);
    this.health.admit(snapshot);
    const report = await this.supervisor.apply(snapshot, plan);
    if (report.late === this.workerCount) throw new ExitError(ExitCode.INTERNAL, 'no packet worker could be started.');
    this.adopt(config, snapshot);
    this.state.recordApplied(report, performance.now());
  }

  private async reloadNow(): Promise<Reloaded> {
    if (this.state.draining) return { applied: false, late: 0, errors: ['the process ends'] };
    const startMs = performance.now();
    const refuse = (errors: string[]): Reloaded => {
      for (const error of errors) this.logger.log('error', error);
      this.logger.log('error', 'reload refused: the configuration of before goes on', { epoch: this.state.epoch });
      this.state.recordRefused(errors, performance.now() - startMs);
      return { applied: false, late: 0, errors };
    };
    try {
      const loaded = this.load();
      if ('errors' in loaded) return refuse(errorsForLog(loaded.errors));
      const late = await this.change(loaded.config, startMs);
      await logWarnings(loaded, this.logger.log);
      return { applied: true, late, errors: [] };
    } catch (error) {
      if (error instanceof ExitError) return refuse([error.message]);
      return refuse([`internal error: ${error instanceof Error ? error.stack : String(error)}`]);
    }
  }

  /** Brings the workers to a newly loaded configuration; number of those that have not switched yet. */
  private async change(loaded: Config, startMs: number): Promise<number> {
    const before = this.state.config;
    for (const sentence of restartOnlyChanges(this.startConfig, loaded)) this.logger.log('warn', sentence);
    const { config, plan } = openListeners(this.sockets, loaded, () => loadAgain(this.load), this.leaveOut);
    let snapshot: Snapshot;
    let admin = this.admin;
    try {
      AccessLogOutput.check(config.accessLog);
      if (config.admin?.address !== before.admin?.address) admin = await AdminPort.open(config.admin, this.state);
      snapshot = await this.compile(config, this.state.epoch + 1);
    } catch (error) {
      this.sockets.abandon(plan);
      if (admin !== this.admin) admin?.close();
      throw error;
    }
    // From here on nothing is refused.
    this.logger.level = config.log.level;
    this.health.admit(snapshot);
    const report = await this.supervisor.apply(snapshot, plan);
    // Afterwards, so that nothing is missing where it ends; where it begins, lines wait in the rings.
    await this.accessLog.use(config.accessLog);
    if (admin !== this.admin) {
      this.admin?.close();
      this.admin = admin;
    }
    this.adopt(config, snapshot);
    this.reportReload(report, plan, performance.now() - startMs);
    return report.late;
  }

  private reportReload(report: ApplyReport, plan: ListenPlan, durationMs: number): void {
    // A node proxy is given another one for every endpoint that comes or goes.
    const level = this.state.config.mesh === undefined ? 'info' : 'debug';
    this.logger.log(level, 'configuration reloaded', {
      epoch: this.state.epoch,
      durationMs,
      pauseMs: report.pauseMs,
      connectionsKept: report.kept,
      connectionsDraining: report.drained,
      connectionsClosed: report.closed,
      upstreamConnectionsClosed: report.upstreamClosed,
      listenersAdded: plan.added.length,
      listenersKept: plan.kept.length,
      listenersRemoved: plan.removed.length,
    });
    for (const { name, address } of this.addresses()) {
      if (plan.added.some(({ host, port }) => formatAddress(host, port) === address)) {
        this.logger.log(level, 'listening', { listener: name, address });
      }
    }
    this.state.recordApplied(report, durationMs);
  }

  /** Other addresses behind names, or other endpoints in files: a new snapshot of the same configuration. */
  private endpointsChanged(): void {
    this.changes
      .run(async () => {
        if (this.state.draining || this.state.epoch === 0) return;
        const report = await this.applySame(this.state.config);
        this.logger.log('info', 'endpoints changed', {
          epoch: this.state.epoch,
          upstreamConnectionsClosed: report.upstreamClosed,
        });
      })
      .catch((error: Error) => this.logger.log('error', 'endpoints not updated', { cause: error.stack }));
  }

  /** Files of certificates may have changed, or ACME has brought one: the same configuration with those. */
  private certificatesChanged(): void {
    this.changes
      .run(async () => {
        if (this.state.draining || this.state.epoch === 0 || !this.certificates.reread()) return;
        const report = await this.applySame(this.state.config);
        this.logger.log('info', 'certificates reloaded', {
          epoch: this.state.epoch,
          connectionsKept: report.kept,
          upstreamConnectionsClosed: report.upstreamClosed,
        });
      })
      .catch((error: Error) => this.logger.log('error', 'certificates not reloaded', { cause: error.stack }));
  }

  /** Brings the workers to a new snapshot of the running configuration: other addresses or certificates. */
  private async applySame(config: Config): Promise<ApplyReport> {
    const found = await this.discovery.rediscover(config);
    const plan = planListeners(this.sockets, config);
    const epoch = this.state.epoch + 1;
    const material = this.certificates.material();
    const { routes, slots, recorder } = this;
    const snapshot = compileSnapshot(found.config, epoch, found.resolved, routes, material, slots, recorder);
    this.health.admit(snapshot);
    const report = await this.supervisor.apply(snapshot, plan);
    this.adopt(config, snapshot);
    return report;
  }

  /** Snapshot of a newly loaded configuration. */
  private async compile(config: Config, epoch: number): Promise<Snapshot> {
    if (config.acme !== null) {
      const { AcmeCertificates } = await import('./acme/certificates.ts');
      this.acme ??= new AcmeCertificates(this.certificates, this.logger.log);
    }
    await this.acme?.prepare(config);
    const [found, routes] = await Promise.all([this.discovery.discover(config), this.routesOf(config)]);
    const snapshot = compileSnapshot(
      found.config,
      epoch,
      found.resolved,
      routes,
      this.certificates.prepare(config),
      this.slots,
      recorderSettings(config, this.recorder, this.workerCount),
    );
    tryTls(snapshot);
    return snapshot;
  }

  /**
   * A node proxy has many routes of one rule, and new ones for every endpoint that comes or goes: starting a thread
   * would take longer than compiling them.
   */
  private async routesOf(config: Config): Promise<SharedArrayBuffer> {
    // Endpoints have come or gone, or something else that routes know nothing of.
    if (this.state.epoch > 0 && isEqualData(routeTableInput(config), routeTableInput(this.state.config))) {
      return this.routes;
    }
    return config.mesh === undefined ? compileRoutesOffThread(config) : compileRoutes(config);
  }

  /** What the workers run on is from now on what the gateway shows, compares with and keeps fresh. */
  private adopt(config: Config, snapshot: Snapshot): void {
    this.routes = snapshot.routes;
    this.recorder = snapshot.recorder;
    this.slots.keepOnly(snapshot.backends);
    if (snapshot.mesh !== null) this.slots.workloads.keepOnly(snapshot.mesh.workloads);
    this.breakers.use(snapshot.backends);
    this.rateLimiting.adopt(config, snapshot);
    this.overload.use(config.overload);
    this.adaptive.use(snapshot.backends, snapshot.latencySamples);
    this.state.applied(config, snapshot);
    this.discovery.adopt(config);
    this.health.adopt(config, snapshot);
    this.certificates.adopt(config);
    // A gateway is reloaded now and then, a node proxy follows every change of the mesh, and has little room.
    if (config.mesh !== undefined) this.memory.changed();
    if (!this.state.draining) this.acme?.start();
  }
}

/** A configuration in place of one that cannot be listened for. Throws an ExitError. */
function loadAgain(load: LoadConfig): Config {
  const loaded = load();
  if ('config' in loaded) return loaded.config;
  throw new ExitError(ExitCode.CONFIG_INVALID, errorsForLog(loaded.errors).join('; '));
}
