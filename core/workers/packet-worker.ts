// One packet worker: reactor, protocols and configuration put together, driven by messages and
// batches. Knows nothing of threads: worker.ts runs it on a real kernel in a worker thread, and the
// simulation runs it on a simulated one.

import { randomFillSync } from 'node:crypto';
import { Acceptor } from '../exchange/acceptor.ts';
import type { Compressor } from '../exchange/compression.ts';
import { Connector } from '../exchange/connector.ts';
import { ProxyContext } from '../exchange/context.ts';
import { Detection } from '../exchange/detection.ts';
import { DownstreamHttp1, DownstreamState } from '../exchange/downstream-http1.ts';
import { DownstreamHttp2 } from '../exchange/downstream-http2.ts';
import { DownstreamTcp } from '../exchange/downstream-tcp.ts';
import { Mesh } from '../exchange/mesh.ts';
import { Mirrors } from '../exchange/mirror.ts';
import { Preamble } from '../exchange/preamble.ts';
import { type RandomWords, RequestIds } from '../exchange/request-id.ts';
import { ListenerRuntime, Runtime } from '../exchange/runtime.ts';
import { Tunnel } from '../exchange/tunnel.ts';
import { Upstream } from '../exchange/upstream.ts';
import { UpstreamHttp1 } from '../exchange/upstream-http1.ts';
import { UpstreamHttp2 } from '../exchange/upstream-http2.ts';
import { UpstreamTunnels } from '../exchange/upstream-tunnels.ts';
import { type Kernel, Shutdown } from '../ffi/kernel.ts';
import type { Connection, Protocol } from '../io/connection.ts';
import { Reactor } from '../io/reactor.ts';
import type { BalancerEnvironment } from '../lb/balancer.ts';
import { NodeState } from '../lb/node-state.ts';
import { AccessLog } from '../telemetry/access-log.ts';
import { FlightRecorder } from '../telemetry/flight-recorder.ts';
import { CloseCause, Counter, WorkerMetrics } from '../telemetry/metrics.ts';
import { RequestRecorder } from '../telemetry/request-recorder.ts';
import type { TlsSessions } from '../tls/session.ts';
import { CompressSlots } from './compress-slots.ts';
import type { ControlMessage, PacketWorkerStart, ReloadReport, WorkerMessage } from './protocol.ts';
import type { Snapshot } from './snapshot.ts';
import { applyDelta } from './snapshot-delta.ts';

/** What a worker holds at a moment, for tests and checks. */
export interface WorkerStats {
  /** Open downstream and upstream connections. */
  connections: number;
  /** Exchanges in progress. */
  exchanges: number;
  /** Arena blocks in use. */
  blocksInUse: number;
}

/** Busy time is measured on one batch in so many: reading the clock costs as much as parsing a field. */
const BUSY_SAMPLE = 64;

/** Batches of so many events are all measured for the loop's lag, and others now and then: long ones are large. */
const LAG_EVENTS = 32;
const LAG_INTERVAL_MS = 100;

/** The lag shown is the longest of this time and of one such time before. */
const LAG_WINDOW_MS = 1000;

/** Fills words with the system's random numbers. */
const systemRandom: RandomWords = (words) => {
  // The global `crypto` would load all of Web Crypto.
  randomFillSync(words as Uint32Array<ArrayBuffer>);
};

export class PacketWorker {
  private readonly reactor: Reactor;
  private readonly context: ProxyContext;
  private readonly acceptor: Acceptor;
  private readonly metrics: WorkerMetrics;
  private readonly start: PacketWorkerStart;
  private readonly post: (message: WorkerMessage) => void;
  private readonly wake: Connection;
  /** Listeners by descriptor. */
  private readonly listeners = new Map<number, ListenerRuntime>();
  private idleCloseMs = Number.POSITIVE_INFINITY;
  private drainEndMs = Number.POSITIVE_INFINITY;
  private drainReported = false;
  private batchNumber = 0;
  private lagMeasuredMs = 0;
  private lagWindowMs = 0;
  private lagMs = 0;
  private lagBeforeMs = 0;
  private node: NodeState | null = null;
  /** The last one that was handed over. */
  private snapshot: Snapshot | null = null;
  private readonly balancing: Omit<BalancerEnvironment, 'node'>;
  /** The wake-up descriptor was written to: messages are waiting on the port. */
  messagesWaiting = false;
  stopped = false;

  /**
   * Builds a worker on `kernel`. `post` sends a message to the control thread; `sessions` is the TLS of
   * the thread (null: there is none, and no listener or backend may ask for it); `random` gives the
   * seed of request ids. Throws when the system refuses what a worker cannot do without.
   */
  constructor(
    kernel: Kernel,
    start: PacketWorkerStart,
    post: (message: WorkerMessage) => void,
    sessions: TlsSessions | null,
    random: RandomWords = systemRandom,
  ) {
    this.start = start;
    this.post = post;
    this.metrics = new WorkerMetrics(start.metrics);
    this.metrics.resetGauges();
    this.reactor = new Reactor(kernel, start.connectionsMax, new Int32Array(start.descriptors));
    this.context = new ProxyContext(
      this.reactor,
      this.metrics,
      new AccessLog(start.accessLog, '', start.index, this.metrics),
      new FlightRecorder(start.flightRecords),
      new RequestIds(random),
      sessions,
    );
    this.context.connectionLog.log = (level, message) => post({ type: 'log', level, message });
    this.balancing = {
      random: this.context.ids,
      clock: this.reactor,
      log: (level, message) => post({ type: 'log', level, message }),
    };
    this.context.preamble = new Preamble(this.context);
    this.context.mesh = new Mesh(this.context);
    this.context.detection = new Detection(this.context);
    this.reactor.onWorkloadConnectionClosed = (workload, side) => this.context.mesh.closed(workload, side);
    this.context.onEndpoint = ({ address }, backend, detail, errno) => {
      post({ type: 'endpoint', report: { address, backend, detail, errno } });
    };
    this.context.downstreamHttp1 = new DownstreamHttp1(this.context);
    this.context.downstreamHttp2 = new DownstreamHttp2(this.context);
    this.context.downstreamTcp = new DownstreamTcp(this.context);
    this.context.mirrors = new Mirrors(this.context);
    this.context.upstream = new Upstream(this.context);
    this.context.upstreamHttp1 = new UpstreamHttp1(this.context);
    this.context.upstreamHttp2 = new UpstreamHttp2(this.context);
    this.context.upstreamTunnels = new UpstreamTunnels(this.context);
    this.context.connector = new Connector(this.context);
    this.context.tunnel = new Tunnel(this.context);
    this.acceptor = new Acceptor(this.context);
    const wake = this.reactor.openWatch(start.wakeFd, new WakeUp(this, kernel));
    if (wake === null) throw new Error('cannot watch the wake-up descriptor');
    this.wake = wake;
    this.metrics.counters[Counter.BUFFERS_TOTAL] = this.reactor.arena.capacityBytes;
  }

  /** Takes a message of the control thread. Call between batches only. */
  handle(message: ControlMessage): void {
    switch (message.type) {
      case 'snapshot':
        this.snapshot = 'base' in message.snapshot ? applyDelta(this.snapshot!, message.snapshot) : message.snapshot;
        this.apply(this.snapshot, message.listenerFds);
        break;
      case 'drain':
        this.drain(message.idleGraceMs, message.timeoutMs);
        break;
      case 'ticketKeys':
        this.context.tlsContexts.updateTicketKeys(message.keys);
        break;
      case 'acmeChallenges':
        this.context.acme.use(message.challenges);
        break;
      case 'stop':
        this.stop();
        break;
      case 'compressor':
        this.context.compression.use(
          message.link === null ? null : new CompressSlots(message.link.area, message.link.bell),
        );
        break;
      case 'destinationAnswers':
        this.context.destinationGate.receive(message.answers);
        break;
      case 'reportDestinations':
        this.post({ type: 'destinationsUsed', token: message.token, used: this.context.destinationGate.takeUsed() });
        break;
      case 'rateLimitAnswers':
        this.context.limitGate.receive(message.answers);
        // Served by the wake-up, within the next batch.
        this.reactor.enqueue(this.wake);
        break;
      case 'ping':
        this.post({ type: 'pong', token: message.token });
        break;
    }
  }

  /**
   * One round: waits for events, at most `maxWaitMs` (-1: as long as there is no timer), and handles
   * all of them. Returns the number of events.
   */
  runBatch(maxWaitMs: number): number {
    let waitMs = maxWaitMs;
    if (this.context.draining) {
      const nextMs = Math.min(this.idleCloseMs, this.drainEndMs) - this.reactor.nowMs;
      if (nextMs !== Number.POSITIVE_INFINITY) {
        const boundMs = Math.max(0, Math.ceil(nextMs));
        waitMs = waitMs < 0 ? boundMs : Math.min(waitMs, boundMs);
      }
    }
    const { compression, mirrors } = this.context;
    if (mirrors.hasLaunched) waitMs = waitMs < 0 ? mirrors.waitMs : Math.min(waitMs, mirrors.waitMs);
    if (compression.hasAnswers) {
      compression.collect();
      if (compression.hasAnswers) waitMs = 0;
    }
    const sampled = ++this.batchNumber % BUSY_SAMPLE === 0;
    const { turnLoop } = this.reactor;
    if (turnLoop !== null) turnLoop.measured = sampled;
    const events = this.reactor.runBatch(waitMs);
    if (mirrors.hasLaunched) mirrors.batchDone(events);
    const { counters } = this.metrics;
    if (sampled || events >= LAG_EVENTS || this.reactor.nowMs - this.lagMeasuredMs >= LAG_INTERVAL_MS) {
      const busyMs = this.reactor.kernel.nowMs() - this.reactor.nowMs;
      if (sampled) {
        counters[Counter.LOOP_BUSY_MS] += busyMs * BUSY_SAMPLE;
        if (turnLoop !== null) this.context.mesh.shareTime(turnLoop.turns, busyMs * BUSY_SAMPLE);
      }
      this.noteLag(busyMs);
    }
    if (events > 0) {
      counters[Counter.BATCHES]++;
      counters[Counter.EVENTS] += events;
    }
    counters[Counter.BUFFERS_IN_USE] = this.reactor.arena.usedBytes;
    const questions = this.context.limitGate.takeQuestions();
    if (questions !== null) this.post({ type: 'rateLimitQuestions', questions });
    const unknown = this.context.destinationGate.takeQuestions();
    if (unknown !== null) this.post({ type: 'destinationQuestions', questions: unknown });
    if (this.context.draining) this.continueDrain();
    return events;
  }

  /** Somebody has written to the wake-up descriptor: the compressor may have answered. */
  wokenUp(): void {
    this.context.compression.collect();
  }

  /** Gives the worker a compressor of its own (the simulation, which has no threads). */
  useCompressor(compressor: Compressor): void {
    this.context.compression.use(compressor);
  }

  /** Notes how long a batch has taken. */
  private noteLag(busyMs: number): void {
    const { nowMs } = this.reactor;
    this.lagMeasuredMs = nowMs;
    if (nowMs - this.lagWindowMs >= LAG_WINDOW_MS) {
      this.lagBeforeMs = nowMs - this.lagWindowMs < 2 * LAG_WINDOW_MS ? this.lagMs : 0;
      this.lagMs = 0;
      this.lagWindowMs = nowMs;
    }
    if (busyMs > this.lagMs) this.lagMs = busyMs;
    this.metrics.counters[Counter.LOOP_LAG_MS] = Math.max(this.lagMs, this.lagBeforeMs);
  }

  /** Goes on with requests that waited for the control thread. Within a batch only. */
  serveAnswers(): void {
    this.context.limitGate.serve();
  }

  /** Monotonic time of the last batch, in milliseconds. */
  get nowMs(): number {
    return this.reactor.nowMs;
  }

  /** What the worker holds now. */
  stats(): WorkerStats {
    return {
      connections: this.reactor.open,
      exchanges: this.context.exchanges,
      blocksInUse: this.reactor.arena.used,
    };
  }

  // -- configuration ------------------------------------------------------------

  private apply(snapshot: Snapshot, listenerFds: readonly number[]): void {
    const { context, reactor } = this;
    const startMs = reactor.kernel.nowMs();
    const report: ReloadReport = { kept: 0, drained: 0, closed: 0, upstreamClosed: 0, pauseMs: 0 };
    for (const endpoint of context.endpoints.values()) endpoint.removed = true;
    context.tlsContexts.begin(snapshot.tls);
    const runtime = new Runtime(
      snapshot,
      this.nodeState(snapshot.nodeState),
      context.endpoints,
      context.tlsContexts,
      this.balancing,
      context.runtime ?? null,
    );
    if (snapshot.recorder !== null) runtime.recorder = new RequestRecorder(snapshot.recorder, this.start.index);
    context.runtime = runtime;
    context.flight.slowThresholdMs = snapshot.flightRecords.slowThresholdMs;
    context.accessLog = new AccessLog(
      this.start.accessLog,
      snapshot.accessLog.enabled ? snapshot.accessLog.format : '',
      this.start.index,
      this.metrics,
      snapshot.mesh !== null,
    );
    for (const endpoint of context.endpoints.values()) {
      if (!endpoint.removed) continue;
      while (endpoint.idle !== null) {
        context.upstreamHttp1.closeIdle(endpoint.idle);
        report.upstreamClosed++;
      }
      report.upstreamClosed += context.upstreamHttp2.connections.retireAll(endpoint);
      context.upstreamTunnels.retireAll(endpoint);
      context.dropEndpoint(endpoint);
    }
    context.upstream.breakers.reloaded();
    this.applyListeners(snapshot, listenerFds);
    for (const listener of this.listeners.values()) listener.useContexts(snapshot.tls.contexts, context.tlsContexts);
    context.tlsContexts.end();
    reactor.forEach((connection) => {
      if (connection.listener === null || connection.listener.watch === connection) return;
      if (!connection.listener.removed && !connection.workload?.removed) report.kept++;
      else if (this.closeIfIdle(connection)) report.closed++;
      else report.drained++;
    });
    if (runtime.mesh !== null) {
      reactor.shareFairly();
      runtime.mesh.limitBuffers(reactor.arena.capacityBytes);
      for (const listener of this.listeners.values()) {
        // Accepting is work for the workload, too.
        if (listener.watch !== null) listener.watch.workload = listener.workload;
      }
      context.rechecks.begin();
      context.destinationGate.reloaded();
    }
    report.pauseMs = reactor.kernel.nowMs() - startMs;
    this.post({ type: 'applied', epoch: snapshot.epoch, report });
  }

  /** The node's state; what a predecessor of this worker has left in it is taken back first. */
  private nodeState(buffer: SharedArrayBuffer): NodeState {
    if (this.node === null || !this.node.isViewOf(buffer)) {
      this.node = new NodeState(buffer, this.start.index);
      this.node.reclaim();
    }
    return this.node;
  }

  private applyListeners(snapshot: Snapshot, listenerFds: readonly number[]): void {
    const { context } = this;
    const workloads = context.runtime.mesh?.workloads;
    snapshot.listeners.forEach((settings, index) => {
      const fd = listenerFds[index];
      const known = this.listeners.get(fd);
      if (known !== undefined) {
        known.update(settings, index);
        return;
      }
      const listener = new ListenerRuntime(settings, index, fd);
      this.listeners.set(fd, listener);
      // A virtual one has no socket.
      if (this.context.draining || fd < 0) return;
      const watch = this.reactor.openWatch(fd, this.acceptor);
      if (watch === null) {
        this.post({ type: 'log', level: 'error', message: `cannot watch listener ${settings.name}` });
        return;
      }
      watch.listener = listener;
      listener.watch = watch;
    });
    snapshot.listeners.forEach(({ tunnels, mesh }, index) => {
      const of = (at: number): ListenerRuntime => this.listeners.get(listenerFds[at])!;
      of(index).tunnels =
        tunnels?.map(({ port, listener }) => ({ port, target: of(listener) })) ??
        (mesh?.role === 'tunnels' ? [] : null);
    });
    context.listeners = listenerFds.map((fd) => this.listeners.get(fd)!);
    for (const listener of context.listeners) listener.workload = workloads?.[listener.settings.mesh!.workload] ?? null;
    // Last: connections that wait at one that goes are taken by what is in force from now on.
    const wanted = new Set(listenerFds);
    for (const [fd, listener] of this.listeners) {
      if (wanted.has(fd)) continue;
      listener.remove();
      this.stopListening(listener);
      this.listeners.delete(fd);
    }
  }

  /** Takes all connections that the system has accepted for us, then refuses further ones at once. */
  private stopListening(listener: ListenerRuntime): void {
    const { watch } = listener;
    if (watch === null) return;
    this.acceptor.takeAll(watch);
    // Between now and the close by the control thread nobody would accept: refusing is better than a reset.
    this.reactor.kernel.shutdown(watch.fd, Shutdown.READ);
    this.unwatch(listener);
  }

  private unwatch(listener: ListenerRuntime): void {
    if (listener.watch !== null) this.reactor.closeWatch(listener.watch);
    listener.watch = null;
  }

  private closeIfIdle(connection: Connection): boolean {
    const { destinationGate, detection, downstreamHttp1, downstreamHttp2, http2, preamble } = this.context;
    if (connection.protocol === destinationGate) {
      destinationGate.drop(connection);
      return true;
    }
    if (connection.protocol === preamble || connection.protocol === detection) {
      // It has not said what it wants, or is in its handshake.
      preamble.close(connection, CloseCause.DRAIN);
      return true;
    }
    if (connection.exchange?.detecting && connection.exchange.downstream === connection) {
      // Nobody has said anything on it yet.
      detection.abandon(connection.exchange);
      preamble.close(connection, CloseCause.DRAIN);
      return true;
    }
    if (connection.protocol === http2) return downstreamHttp2.closeIfIdle(connection);
    return connection.protocol === downstreamHttp1 && downstreamHttp1.closeIfIdle(connection);
  }

  // -- shutdown -------------------------------------------------------------------

  private drain(idleGraceMs: number, timeoutMs: number): void {
    const { context, reactor } = this;
    if (context.draining) return;
    for (const listener of this.listeners.values()) this.stopListening(listener);
    context.draining = true;
    const nowMs = reactor.kernel.nowMs();
    this.idleCloseMs = nowMs + idleGraceMs;
    this.drainEndMs = nowMs + timeoutMs;
    for (const endpoint of context.endpoints.values()) {
      while (endpoint.idle !== null) context.upstreamHttp1.closeIdle(endpoint.idle);
      context.upstreamHttp2.connections.retireAll(endpoint);
      context.upstreamTunnels.retireAll(endpoint);
    }
    this.forEachDownstream((connection) => {
      if (connection.protocol === context.http2) context.downstreamHttp2.closeIfIdle(connection);
    });
    this.continueDrain();
  }

  private continueDrain(): void {
    const { reactor } = this;
    if (reactor.nowMs >= this.idleCloseMs) {
      // Clients had their time to send one more request and be told to go; what is idle goes now.
      this.idleCloseMs = Number.POSITIVE_INFINITY;
      this.forEachDownstream((connection) => this.closeIfIdle(connection));
    }
    if (reactor.nowMs >= this.drainEndMs) {
      this.drainEndMs = Number.POSITIVE_INFINITY;
      const remaining = this.countActive();
      this.terminateAll();
      this.reportDrained(remaining);
      return;
    }
    if (this.countDownstream() === 0) this.reportDrained(0);
  }

  private reportDrained(remaining: number): void {
    if (this.drainReported) return;
    this.drainReported = true;
    this.idleCloseMs = Number.POSITIVE_INFINITY;
    this.drainEndMs = Number.POSITIVE_INFINITY;
    this.post({ type: 'drained', remaining });
  }

  private stop(): void {
    if (this.stopped) return;
    this.stopped = true;
    for (const listener of this.listeners.values()) this.unwatch(listener);
    this.terminateAll();
    for (const endpoint of this.context.endpoints.values()) {
      while (endpoint.idle !== null) this.context.upstreamHttp1.closeIdle(endpoint.idle);
    }
    this.context.upstreamHttp2.connections.closeAll();
    this.context.upstreamTunnels.closeAll();
    this.context.trust.close();
    this.context.rechecks.close();
    this.context.upstream.breakers.destroy();
    this.reactor.closeWatch(this.wake);
    this.acceptor.close();
    this.reactor.destroy();
  }

  private terminateAll(): void {
    const { destinationGate, downstreamHttp1, downstreamHttp2, http2, mirrors, tunnel } = this.context;
    this.forEachDownstream((connection) => {
      if (connection.protocol === destinationGate) destinationGate.drop(connection);
      else if (connection.protocol === tunnel) tunnel.terminate(connection);
      else if (connection.protocol === http2) downstreamHttp2.terminateConnection(connection);
      else if (connection.protocol === downstreamHttp2) downstreamHttp2.terminate(connection);
      else downstreamHttp1.terminate(connection);
    });
    this.reactor.forEach((connection) => {
      if (connection.protocol === mirrors) mirrors.terminate(connection);
    });
  }

  private countDownstream(): number {
    return this.metrics.counters[Counter.DOWNSTREAM_OPEN];
  }

  private countActive(): number {
    let count = 0;
    this.forEachDownstream((connection) => {
      if (connection.state !== DownstreamState.LINGER && connection.state !== DownstreamState.IDLE) count++;
    });
    return count;
  }

  private forEachDownstream(visit: (connection: Connection) => void): void {
    this.reactor.forEach((connection) => {
      if (connection.listener !== null && connection.listener.watch !== connection) visit(connection);
    });
  }
}

/** The eventfd: says that messages wait; they are taken between two batches. */
class WakeUp implements Protocol {
  private readonly worker: PacketWorker;
  private readonly kernel: Kernel;

  constructor(worker: PacketWorker, kernel: Kernel) {
    this.worker = worker;
    this.kernel = kernel;
  }

  readable(connection: Connection): void {
    this.kernel.eventfdRead(connection.fd);
    this.worker.messagesWaiting = true;
    this.worker.serveAnswers();
    this.worker.wokenUp();
  }

  writable(): void {}

  sendFailed(): void {}

  expired(): void {}
}
