// What all protocol handlers of one worker share: the reactor, the configuration in force, pools,
// counters and logs. Also the end of every exchange: the one place that counts and logs it.
// Owned by one worker. Hot module: no allocation per request.

import { RequestHead, ResponseHead } from '../http1/message.ts';
import { Http2Engine } from '../http2/engine.ts';
import { noBytes } from '../io/bytes.ts';
import type { Connection } from '../io/connection.ts';
import type { Input } from '../io/input.ts';
import type { Output } from '../io/output.ts';
import type { Reactor } from '../io/reactor.ts';
import type { Endpoint } from '../lb/endpoint.ts';
import { RouteRequest } from '../routing/route-request.ts';
import type { AccessLog } from '../telemetry/access-log.ts';
import type { FlightRecorder } from '../telemetry/flight-recorder.ts';
import { LogSource } from '../telemetry/log-source.ts';
import { Counter, type WorkerMetrics } from '../telemetry/metrics.ts';
import { Alpn } from '../tls/alpn.ts';
import { TlsContexts } from '../tls/contexts.ts';
import type { TlsSessions } from '../tls/session.ts';
import { TlsTransport } from '../tls/transport.ts';
import { AcmeChallenges } from './acme-challenges.ts';
import { AttemptTracker } from './attempt-tracker.ts';
import { Authorizer } from './authorizer.ts';
import { Compression } from './compression.ts';
import { ConnectionLog } from './connection-log.ts';
import type { Connector } from './connector.ts';
import { DestinationGate } from './destination-gate.ts';
import type { Detection } from './detection.ts';
import type { DownstreamHttp1 } from './downstream-http1.ts';
import type { DownstreamHttp2 } from './downstream-http2.ts';
import type { DownstreamTcp } from './downstream-tcp.ts';
import { Exchange } from './exchange.ts';
import { FaultState } from './faults.ts';
import { readForwardedClient } from './forwarded-client.ts';
import { LimitGate } from './limit-gate.ts';
import { LocalAnswers } from './local-answers.ts';
import type { Mesh } from './mesh.ts';
import { clearMesh, loadMesh } from './mesh-log.ts';
import type { Mirrors } from './mirror.ts';
import { PeerTrust } from './peer-trust.ts';
import type { Preamble } from './preamble.ts';
import { Detail, Reason } from './reasons.ts';
import { Rechecks } from './rechecks.ts';
import { RequestBuffers } from './request-buffer.ts';
import type { RequestIds } from './request-id.ts';
import { DateLine } from './response-head.ts';
import type { ListenerRuntime, Runtime } from './runtime.ts';
import type { Tunnel } from './tunnel.ts';
import type { Upstream } from './upstream.ts';
import type { UpstreamHttp1 } from './upstream-http1.ts';
import type { UpstreamHttp2 } from './upstream-http2.ts';
import type { UpstreamTunnels } from './upstream-tunnels.ts';
import { countEnded } from './workload-traffic.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { FLIGHT_RECORDS, REQUESTS_IN_FLIGHT } = Counter;
const { DELAYED } = FaultState;
const { FAULT_DELAY } = Detail;
const { DELAY_INJECTED, UPSTREAM_CONNECT_FAILURE } = Reason;

/**
 * Least time between two reports that the same endpoint fails. They are repeated as long as it
 * fails, so that whoever puts the reports of all workers together can tell old ones from true ones.
 */
export const ENDPOINT_REPORT_INTERVAL_MS = 10_000;

/** Told of an endpoint that fails, or works again (`detail` 0), see workers/protocol.ts. */
export type EndpointListener = (endpoint: Endpoint, backend: string, detail: number, errno: number) => void;

export class ProxyContext {
  readonly reactor: Reactor;
  /** The reactor's: what connections receive and send. */
  readonly input: Input;
  readonly output: Output;
  readonly memory: Uint8Array;
  readonly metrics: WorkerMetrics;
  readonly counters: Float64Array;
  readonly flight: FlightRecorder;
  readonly ids: RequestIds;
  readonly date = new DateLine();
  /** Endpoints by address, across snapshots. */
  readonly endpoints = new Map<string, Endpoint>();
  /** The head being worked on: parsing and rewriting never span two events. */
  readonly requestHead = new RequestHead();
  readonly responseHead = new ResponseHead();
  /** What the head being worked on is routed by. */
  readonly routeRequest: RouteRequest;
  accessLog: AccessLog;
  /** Configuration in force; set before the first connection is accepted. */
  runtime!: Runtime;
  /** Listeners in the order of the configuration in force. */
  listeners: readonly ListenerRuntime[] = [];
  /** Shutting down: no connection outlives its current exchange. */
  draining = false;
  /** Exchanges begun and not ended. */
  exchanges = 0;
  /** Endpoints in use that are marked as failing; while there are none, nobody looks for one. */
  endpointsFailing = 0;
  /** Called at most once per endpoint and ENDPOINT_REPORT_INTERVAL_MS, and when it works again. */
  onEndpoint: EndpointListener = () => {};

  // Set once by PacketWorker, which creates them with this context.
  preamble!: Preamble;
  mesh!: Mesh;
  detection!: Detection;
  downstreamHttp1!: DownstreamHttp1;
  downstreamHttp2!: DownstreamHttp2;
  downstreamTcp!: DownstreamTcp;
  mirrors!: Mirrors;
  upstream!: Upstream;
  upstreamHttp1!: UpstreamHttp1;
  upstreamHttp2!: UpstreamHttp2;
  upstreamTunnels!: UpstreamTunnels;
  connector!: Connector;
  tunnel!: Tunnel;
  readonly tracker: AttemptTracker;
  /** Response bodies that are being compressed. */
  readonly compression: Compression;
  /** Bodies of requests that are kept. */
  readonly requestBuffers: RequestBuffers;

  /** All HTTP/2 connections, to clients and to upstreams. */
  readonly http2: Http2Engine;
  readonly connectionLog: ConnectionLog;
  /** TLS of this worker; null on a kernel that has none (the simulation). */
  readonly tlsSessions: TlsSessions | null;
  readonly tlsTransport: TlsTransport | null;
  readonly tlsContexts = new TlsContexts((sentence) => this.connectionLog.log('error', sentence));
  readonly acme = new AcmeChallenges();
  readonly local: LocalAnswers;
  /** Rate limits. */
  readonly limitGate: LimitGate;
  /** Policies of workloads. */
  readonly authorizer: Authorizer;
  /** Connections to what this node does not know yet. */
  readonly destinationGate: DestinationGate;
  /** Who is at the other ends of tunnels, while they live. */
  readonly trust: PeerTrust;
  /** What is open when policies and trust change. */
  readonly rechecks: Rechecks;

  private readonly pool: Exchange[] = [];
  private readonly source = new LogSource();

  constructor(
    reactor: Reactor,
    metrics: WorkerMetrics,
    accessLog: AccessLog,
    flight: FlightRecorder,
    ids: RequestIds,
    tlsSessions: TlsSessions | null,
  ) {
    this.tracker = new AttemptTracker(reactor);
    this.connectionLog = new ConnectionLog(reactor);
    this.tlsSessions = tlsSessions;
    this.local = new LocalAnswers(reactor, this.acme);
    this.tlsTransport = tlsSessions === null ? null : new TlsTransport(tlsSessions, reactor.kernel);
    this.reactor = reactor;
    this.input = reactor.input;
    this.output = reactor.output;
    this.limitGate = new LimitGate(this);
    this.memory = reactor.memory;
    this.routeRequest = new RouteRequest(reactor.memory, this.requestHead);
    this.requestBuffers = new RequestBuffers(reactor.arena);
    this.compression = new Compression(reactor, metrics.counters);
    this.metrics = metrics;
    this.counters = metrics.counters;
    this.http2 = new Http2Engine(reactor, metrics.counters);
    this.accessLog = accessLog;
    this.flight = flight;
    this.ids = ids;
    this.authorizer = new Authorizer(this);
    this.destinationGate = new DestinationGate(this);
    this.trust = new PeerTrust(this);
    this.rechecks = new Rechecks(this);
  }

  /** Gives an accepted connection to the protocol that it speaks (`alpn`: see core/tls/alpn.ts). */
  handOver(connection: Connection, alpn: number): void {
    const { settings } = connection.listener!;
    if (settings.tcp) {
      this.downstreamTcp.accepted(connection);
    } else if (alpn === Alpn.H2 || (settings.http2 && !settings.http1)) {
      this.downstreamHttp2.accepted(connection);
    } else {
      connection.protocol = this.downstreamHttp1;
      this.downstreamHttp1.accepted(connection);
    }
  }

  /** Takes an exchange from the pool, on the configuration in force. */
  beginExchange(): Exchange {
    const exchange = this.pool.pop() ?? new Exchange();
    exchange.runtime = this.runtime;
    exchange.startMs = this.reactor.nowMs;
    this.exchanges++;
    this.counters[REQUESTS_IN_FLIGHT]++;
    return exchange;
  }

  /** The listener at an index of the configuration in force. */
  listenerAt(index: number): ListenerRuntime {
    return this.listeners[index]!;
  }

  /** Frees an exchange that turned out to be none: nobody hears of it. */
  forgetExchange(exchange: Exchange): void {
    this.counters[REQUESTS_IN_FLIGHT]--;
    this.recycle(exchange);
  }

  /** Counts, logs and frees an exchange that is over. Its connections are the caller's business. */
  endExchange(exchange: Exchange): void {
    const { reactor, metrics } = this;
    if (exchange.isMirror || exchange.isHedge) {
      if (this.endpointsFailing > 0 && exchange.reason !== UPSTREAM_CONNECT_FAILURE) this.endpointAnswered(exchange);
      this.recycle(exchange);
      return;
    }
    const durationMs = reactor.nowMs - exchange.startMs;
    if ((exchange.fault & DELAYED) !== 0 && exchange.reason === 0) {
      exchange.reason = DELAY_INJECTED;
      exchange.detail = FAULT_DELAY;
    }
    metrics.countOutcome(exchange.status, exchange.reason);
    if (exchange.downstream!.workload !== null) countEnded(exchange);
    if (this.endpointsFailing > 0 && exchange.reason !== UPSTREAM_CONNECT_FAILURE) this.endpointAnswered(exchange);
    if (!exchange.tunnel) metrics.recordLatency(durationMs);
    if (exchange.firstByteMs > 0) metrics.recordUpstreamLatency(exchange.firstByteMs - exchange.connectedMs);
    const isSlow = durationMs >= this.flight.slowThresholdMs;
    if (this.accessLog.enabled || exchange.reason !== 0 || exchange.status >= 500 || isSlow) {
      this.record(exchange);
    }
    if (exchange.recorded !== 0) {
      exchange.runtime!.recorder!.end(exchange.recorded, exchange.status, exchange.reason, exchange.generated);
    }
    this.counters[REQUESTS_IN_FLIGHT]--;
    this.recycle(exchange);
  }

  /** Frees what an exchange has, and takes it back into the pool. */
  private recycle(exchange: Exchange): void {
    const { arena } = this.reactor;
    if (exchange.rival !== null) this.upstream.hedges.drop(exchange);
    if (exchange.mirrorNext !== null) this.mirrors.parentEnded(exchange);
    // Tunnels, and whatever else ends without an answer.
    if (exchange.tracked) this.upstream.completed(exchange);
    if (exchange.held !== 0) this.upstream.breakers.release(exchange);
    this.exchanges--;
    if (exchange.headBlock !== 0) arena.free(exchange.headBlock);
    if (exchange.requestBuffer !== null) this.requestBuffers.release(exchange.requestBuffer);
    if (exchange.compression !== null) this.compression.release(exchange);
    exchange.reset();
    this.pool.push(exchange);
  }

  /** Forgets an endpoint that no snapshot refers to any more. */
  dropEndpoint(endpoint: Endpoint): void {
    if (endpoint.failing) this.endpointsFailing--;
    endpoint.failing = false;
    this.endpoints.delete(endpoint.key);
    if (endpoint.resumption !== 0) this.tlsSessions!.freeResumption(endpoint.resumption);
    endpoint.resumption = 0;
  }

  /** An attempt has found no connection to its endpoint. */
  connectFailed(exchange: Exchange, detail: number, errno: number): void {
    const backend = exchange.runtime!.backends[exchange.backend];
    const endpoint = backend.endpoints[exchange.endpoint];
    if (endpoint.removed) return;
    if (!endpoint.failing) this.endpointsFailing++;
    const { nowMs } = this.reactor;
    endpoint.failing = true;
    endpoint.failedMs = nowMs;
    if (nowMs - endpoint.failureReportedMs < ENDPOINT_REPORT_INTERVAL_MS) return;
    endpoint.failureReportedMs = nowMs;
    endpoint.failureOpen = true;
    this.onEndpoint(endpoint, backend.settings.name, detail, errno);
  }

  /** A connection from before the failure, kept or busy until now, proves nothing: only a newer one does. */
  private endpointAnswered(exchange: Exchange): void {
    if (exchange.endpoint < 0 || exchange.connectedMs === 0 || exchange.reusedConnection) return;
    const backend = exchange.runtime!.backends[exchange.backend];
    const endpoint = backend.endpoints[exchange.endpoint];
    if (!endpoint.failing || exchange.connectedMs <= endpoint.failedMs) return;
    endpoint.failing = false;
    this.endpointsFailing--;
    if (!endpoint.failureOpen) return;
    endpoint.failureOpen = false;
    this.onEndpoint(endpoint, backend.settings.name, 0, 0);
  }

  private record(exchange: Exchange): void {
    const { source, reactor } = this;
    const runtime = exchange.runtime!;
    const downstream = exchange.downstream!;
    source.loadExchange(exchange, this.memory, reactor.nowMs, reactor.wallMs);
    source.client =
      runtime.http.trustedHops > 0
        ? readForwardedClient(
            this.memory,
            exchange.forwardedForOffset,
            exchange.forwardedForLength,
            runtime.http.trustedHops,
            downstream,
          )
        : downstream;
    if (downstream.workload !== null) loadMesh(source, exchange, downstream);
    else if (source.hasMesh) clearMesh(source);
    source.epoch = runtime.epoch;
    source.tunnel = exchange.tunnel;
    source.tlsVersion = downstream.tlsVersion;
    source.serverName = downstream.serverNameBytes;
    const certificate = downstream.clientCertificate;
    source.clientSubject = certificate?.verified ? certificate.subjectBytes : noBytes;
    source.listener = downstream.listener === null ? noBytes : downstream.listener.nameBytes;
    source.route = exchange.streamRoute === null ? runtime.ruleLabel(exchange.rule) : exchange.streamRoute.nameBytes;
    const backend = exchange.backend < 0 ? null : runtime.backends[exchange.backend];
    source.backend = backend === null ? noBytes : backend.nameBytes;
    source.endpoint =
      backend === null || exchange.endpoint < 0 ? noBytes : backend.endpoints[exchange.endpoint].addressBytes;
    if (this.accessLog.enabled) this.accessLog.log(source);
    if (this.flight.recordIfNotable(source)) this.counters[FLIGHT_RECORDS]++;
  }
}
