// What all protocol handlers of one worker share: the reactor, the configuration in force, pools,
// counters and logs. Also the end of every exchange: the one place that counts and logs it.
// Owned by one worker. Hot module: no allocation per request.

import { RequestHead, ResponseHead } from '../http1/message.ts';
import type { Reactor } from '../io/reactor.ts';
import type { Endpoint } from '../lb/endpoint.ts';
import type { AccessLog } from '../telemetry/access-log.ts';
import { type FlightRecorder, SLOW_MS_DEFAULT } from '../telemetry/flight-recorder.ts';
import { LogSource } from '../telemetry/log-source.ts';
import { Counter, type WorkerMetrics } from '../telemetry/metrics.ts';
import type { DownstreamHttp1 } from './downstream-http1.ts';
import { Exchange } from './exchange.ts';
import { readForwardedClient } from './forwarded-client.ts';
import type { RequestIds } from './request-id.ts';
import { DateLine } from './response-head.ts';
import type { Runtime } from './runtime.ts';
import type { Tunnel } from './tunnel.ts';
import type { UpstreamHttp1 } from './upstream-http1.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { FLIGHT_RECORDS, REQUESTS_IN_FLIGHT } = Counter;

const noBytes = new Uint8Array(0);

export class ProxyContext {
  readonly reactor: Reactor;
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
  accessLog: AccessLog;
  /** Configuration in force; set before the first connection is accepted. */
  runtime!: Runtime;
  /** Shutting down: no connection outlives its current exchange. */
  draining = false;
  /** Exchanges begun and not ended. */
  exchanges = 0;

  // Set once by PacketWorker, which creates them with this context.
  downstream!: DownstreamHttp1;
  upstream!: UpstreamHttp1;
  tunnel!: Tunnel;

  private readonly pool: Exchange[] = [];
  private readonly source = new LogSource();

  constructor(reactor: Reactor, metrics: WorkerMetrics, accessLog: AccessLog, flight: FlightRecorder, ids: RequestIds) {
    this.reactor = reactor;
    this.memory = reactor.memory;
    this.metrics = metrics;
    this.counters = metrics.counters;
    this.accessLog = accessLog;
    this.flight = flight;
    this.ids = ids;
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

  /** Counts, logs and frees an exchange that is over. Its connections are the caller's business. */
  endExchange(exchange: Exchange): void {
    const { reactor, metrics } = this;
    const durationMs = reactor.nowMs - exchange.startMs;
    metrics.countOutcome(exchange.status, exchange.reason);
    if (!exchange.tunnel) metrics.recordLatency(durationMs);
    if (exchange.firstByteMs > 0) metrics.recordUpstreamLatency(exchange.firstByteMs - exchange.connectedMs);
    if (this.accessLog.enabled || exchange.reason !== 0 || exchange.status >= 500 || durationMs >= SLOW_MS_DEFAULT) {
      this.record(exchange);
    }
    this.counters[REQUESTS_IN_FLIGHT]--;
    this.exchanges--;
    if (exchange.headBlock !== 0) reactor.arena.free(exchange.headBlock);
    exchange.reset();
    this.pool.push(exchange);
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
    source.epoch = runtime.epoch;
    source.tunnel = exchange.tunnel;
    source.listener = downstream.listener === null ? noBytes : downstream.listener.nameBytes;
    source.route = runtime.ruleLabel(exchange.rule);
    const backend = exchange.backend < 0 ? null : runtime.backends[exchange.backend];
    source.backend = backend === null ? noBytes : backend.nameBytes;
    source.endpoint =
      backend === null || exchange.endpoint < 0 ? noBytes : backend.endpoints[exchange.endpoint].addressBytes;
    if (this.accessLog.enabled) this.accessLog.log(source);
    if (this.flight.recordIfNotable(source)) this.counters[FLIGHT_RECORDS]++;
  }
}
