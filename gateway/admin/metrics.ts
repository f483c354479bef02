// /metrics: what is exported, and how it is read from shared memory.
//
// One table defines every metric; docs/observability.md is generated from it. prom-client keeps the
// registry and writes the exposition format; values are read from the workers' counters when a
// scrape comes, so that counting costs the packet path nothing.
// Runs on the control thread. Spec: Prometheus text format 0.0.4 and its naming conventions.

import type { Registry } from 'prom-client';
import { REASON_COUNT, reasonText } from '../../core/exchange/reasons.ts';
import { floodKindNames } from '../../core/http2/floods.ts';
import { type MetricDefinition as Definition, registryOf, type Sample } from '../../core/process/exposition.ts';
import { processMetrics } from '../../core/process/process-metrics.ts';
import {
  Counter,
  closeCauseNames,
  HISTOGRAM_WORDS,
  latencyBoundsMs,
  METRIC_WORDS,
  MetricSection,
  PARSE_ERROR_CAPACITY,
  TLS_FAILURE_CAPACITY,
} from '../../core/telemetry/metrics.ts';
import { parseErrorWord, tlsWord } from '../../core/telemetry/outcome-names.ts';
import { adaptiveMetrics } from './adaptive-metrics.ts';
import { authorizationMetrics } from './authorization-metrics.ts';
import { backendMetrics } from './backend-metrics.ts';
import { bodyMetrics } from './body-metrics.ts';
import { overloadMetrics } from './overload-metrics.ts';
import { rateLimitMetrics } from './rate-limit-metrics.ts';
import { resilienceMetrics } from './resilience-metrics.ts';
import type { AdminState, WorkerState } from './state.ts';
import { workloadMetrics } from './workload-metrics.ts';

export type { Sample } from '../../core/process/exposition.ts';

/** One metric of the gateway. */
export type MetricDefinition = Definition<Scrape>;

/** What one scrape sees. */
export interface Scrape {
  state: AdminState;
  /** Counters of all workers, summed. */
  totals: Float64Array;
}

const DAY_MS = 86_400_000;

const statusClasses = ['1xx', '2xx', '3xx', '4xx', '5xx', 'none'];

/** Every metric, in the order of the exposition. */
export const metricDefinitions: readonly MetricDefinition[] = [
  family(
    'requests_total',
    'counter',
    'Requests that ended, by class of the status sent ("none": no response could be sent).',
    ['status_class'],
    ({ totals }) =>
      statusClasses.map((name, index) => sample(totals[Counter.STATUS_1XX + index], { status_class: name })),
  ),
  total('requests_in_flight', 'gauge', 'Requests begun and not ended.', Counter.REQUESTS_IN_FLIGHT),
  family(
    'request_failures_total',
    'counter',
    'Requests that did not end as they should, by reason flag.',
    ['reason'],
    ({ totals }) =>
      Array.from({ length: REASON_COUNT - 1 }, (_, index) =>
        sample(totals[MetricSection.REASONS + index + 1], { reason: reasonText(index + 1).flag }),
      ),
  ),
  family(
    'request_parse_errors_total',
    'counter',
    'Requests refused as malformed, by error; only errors that have occurred.',
    ['error'],
    ({ totals }) =>
      nonZero(totals, MetricSection.PARSE_ERRORS, PARSE_ERROR_CAPACITY, (code) => ({ error: parseErrorWord(code) })),
  ),
  histogram(
    'request_duration_seconds',
    'Time from the start of a request to the end of its response.',
    MetricSection.REQUEST_LATENCY,
  ),
  histogram(
    'upstream_first_byte_seconds',
    "Time from an upstream connection being ready to its response's first byte.",
    MetricSection.UPSTREAM_LATENCY,
  ),
  directions(
    'downstream_bytes_total',
    'Bytes from clients (in) and to clients (out), heads and framing included.',
    Counter.DOWNSTREAM_BYTES_IN,
    Counter.DOWNSTREAM_BYTES_OUT,
  ),
  directions(
    'upstream_bytes_total',
    'Bytes from upstreams (in) and to upstreams (out), heads and framing included.',
    Counter.UPSTREAM_BYTES_IN,
    Counter.UPSTREAM_BYTES_OUT,
  ),
  total(
    'downstream_connections_accepted_total',
    'counter',
    'Client connections accepted.',
    Counter.DOWNSTREAM_ACCEPTED,
  ),
  total('downstream_connections_open', 'gauge', 'Client connections open now.', Counter.DOWNSTREAM_OPEN),
  family(
    'downstream_connections_closed_total',
    'counter',
    'Client connections closed, by cause.',
    ['cause'],
    ({ totals }) => closeCauseNames.map((cause, index) => sample(totals[MetricSection.CLOSES + index], { cause })),
  ),
  total(
    'downstream_connections_shed_total',
    'counter',
    'Client connections closed at once because a limit was reached.',
    Counter.CONNECTIONS_SHED,
  ),
  total('tls_handshakes_total', 'counter', 'TLS handshakes with clients that were completed.', Counter.TLS_HANDSHAKES),
  total(
    'tls_resumed_handshakes_total',
    'counter',
    'Those of them that resumed an earlier session.',
    Counter.TLS_RESUMED,
  ),
  family(
    'tls_handshake_failures_total',
    'counter',
    'TLS handshakes with clients that failed, by failure; only failures that have occurred.',
    ['failure'],
    ({ totals }) =>
      nonZero(totals, MetricSection.TLS_FAILURES, TLS_FAILURE_CAPACITY, (code) => ({ failure: tlsWord(code) })),
  ),
  total(
    'upstream_tls_handshakes_total',
    'counter',
    'TLS handshakes with upstreams that were completed.',
    Counter.UPSTREAM_TLS_HANDSHAKES,
  ),
  total(
    'upstream_tls_resumed_handshakes_total',
    'counter',
    'Those of them that resumed an earlier session.',
    Counter.UPSTREAM_TLS_RESUMED,
  ),
  family(
    'upstream_tls_handshake_failures_total',
    'counter',
    'TLS handshakes with upstreams that failed, by failure; only failures that have occurred.',
    ['failure'],
    ({ totals }) =>
      nonZero(totals, MetricSection.UPSTREAM_TLS_FAILURES, TLS_FAILURE_CAPACITY, (code) => ({
        failure: tlsWord(code),
      })),
  ),
  total(
    'proxy_header_errors_total',
    'counter',
    'Connections without a valid PROXY protocol header on a listener that requires one.',
    Counter.PROXY_HEADER_ERRORS,
  ),
  total('accept_failures_total', 'counter', 'Failed attempts to accept a connection.', Counter.ACCEPT_FAILURES),
  total('http2_streams_total', 'counter', 'Streams that HTTP/2 clients have opened.', Counter.HTTP2_STREAMS),
  total(
    'http2_resets_received_total',
    'counter',
    'RST_STREAM frames received for streams in use, from clients and upstreams.',
    Counter.HTTP2_RESETS_RECEIVED,
  ),
  family(
    'http2_resets_sent_total',
    'counter',
    'RST_STREAM frames sent: no_error and cancel ("ended"), refused_stream ("refused"), all others ("error").',
    ['code'],
    ({ totals }) => [
      sample(totals[Counter.HTTP2_RESETS_SENT], { code: 'ended' }),
      sample(totals[Counter.HTTP2_RESETS_SENT_REFUSED], { code: 'refused' }),
      sample(totals[Counter.HTTP2_RESETS_SENT_ERROR], { code: 'error' }),
    ],
  ),
  family(
    'http2_goaways_sent_total',
    'counter',
    'GOAWAY frames sent, without and with an error.',
    ['code'],
    ({ totals }) => [
      sample(totals[Counter.HTTP2_GOAWAYS_SENT], { code: 'no_error' }),
      sample(totals[Counter.HTTP2_GOAWAYS_SENT_ERROR], { code: 'error' }),
    ],
  ),
  total('http2_malformed_total', 'counter', 'HTTP/2 messages refused as malformed.', Counter.HTTP2_MALFORMED),
  family(
    'http2_floods_total',
    'counter',
    'HTTP/2 connections ended with ENHANCE_YOUR_CALM, by kind of flood.',
    ['kind'],
    ({ totals }) => floodKindNames.map((kind, index) => sample(totals[Counter.HTTP2_FLOODS + index], { kind })),
  ),
  total(
    'upstream_connections_opened_total',
    'counter',
    'Upstream connections for which connecting was started.',
    Counter.UPSTREAM_OPENED,
  ),
  total(
    'upstream_connections_open',
    'gauge',
    'Upstream connections open now, idle ones included.',
    Counter.UPSTREAM_OPEN,
  ),
  total('upstream_connections_idle', 'gauge', 'Upstream connections kept without a request.', Counter.UPSTREAM_IDLE),
  total(
    'upstream_connection_reuses_total',
    'counter',
    'Requests sent on an upstream connection that had served one before.',
    Counter.UPSTREAM_REUSED,
  ),
  total(
    'upstream_connect_failures_total',
    'counter',
    'Upstream connections that could not be established.',
    Counter.UPSTREAM_CONNECT_FAILURES,
  ),
  total(
    'upstream_stale_retries_total',
    'counter',
    'Requests sent again because a kept upstream connection turned out to be closed.',
    Counter.STALE_RETRIES,
  ),
  total(
    'balancer_panic_picks_total',
    'counter',
    'Requests balanced over all endpoints of a level, since too few were usable (loadBalancer.panicThreshold).',
    Counter.BALANCER_PANIC_PICKS,
  ),
  ...resilienceMetrics,
  total(
    'upstream_http2_streams_total',
    'counter',
    'Streams opened to HTTP/2 upstreams.',
    Counter.UPSTREAM_HTTP2_STREAMS,
  ),
  total(
    'upstream_http2_refused_retries_total',
    'counter',
    'Requests sent again because the HTTP/2 upstream had not acted on them (REFUSED_STREAM, GOAWAY).',
    Counter.UPSTREAM_HTTP2_REFUSED_RETRIES,
  ),
  total(
    'upstream_http2_goaways_received_total',
    'counter',
    'GOAWAY frames received from upstreams.',
    Counter.UPSTREAM_HTTP2_GOAWAYS,
  ),
  total(
    'upstream_http2_ping_timeouts_total',
    'counter',
    'Upstream connections closed because a PING was not answered.',
    Counter.UPSTREAM_HTTP2_PING_TIMEOUTS,
  ),
  total('tunnels_open', 'gauge', 'Tunnels (upgraded connections and CONNECT) open now.', Counter.TUNNELS_OPEN),
  total('buffers_in_use', 'gauge', 'Buffers of the workers in use.', Counter.BUFFERS_IN_USE),
  total('buffers', 'gauge', 'Buffers of the workers, used or not.', Counter.BUFFERS_TOTAL),
  total('loop_batches_total', 'counter', 'Event batches handled.', Counter.BATCHES),
  total('loop_events_total', 'counter', 'Events handled.', Counter.EVENTS),
  family(
    'worker_busy_seconds_total',
    'counter',
    'Time that a worker spent working rather than waiting for events.',
    ['worker'],
    ({ state }) =>
      state.metrics.map((buffer, worker) =>
        sample(new Float64Array(buffer)[Counter.LOOP_BUSY_MS] / 1000, { worker: String(worker) }),
      ),
  ),
  total('access_log_lines_total', 'counter', 'Access log lines handed to the writer.', Counter.ACCESS_LOG_LINES),
  total(
    'access_log_dropped_lines_total',
    'counter',
    'Access log lines dropped because the disk could not keep up.',
    Counter.ACCESS_LOG_DROPPED,
  ),
  total('flight_records_total', 'counter', 'Failed or slow requests recorded for explain.', Counter.FLIGHT_RECORDS),
  family('build_info', 'gauge', 'Always 1; the labels say what runs.', ['version', 'node'], ({ state }) => [
    sample(1, { version: state.version, node: process.version }),
  ]),
  family(
    'config_epoch',
    'gauge',
    'Number of the configuration that runs; grows by one with every load.',
    [],
    ({ state }) => [sample(state.epoch)],
  ),
  family(
    'config_loaded_timestamp_seconds',
    'gauge',
    'When the configuration that runs was loaded.',
    [],
    ({ state }) => [sample(state.loadedAtMs / 1000)],
  ),
  family('config_reloads_total', 'counter', 'Loads of the configuration, by result.', ['result'], ({ state }) => [
    sample(state.reloadsApplied, { result: 'applied' }),
    sample(state.reloadsRefused, { result: 'refused' }),
  ]),
  family(
    'certificate_days_until_expiry',
    'gauge',
    'Days until a certificate in use expires; negative once it has.',
    ['certificate', 'file'],
    ({ state }) =>
      state.certificates.map(({ name, file, notAfterMs }) =>
        sample((notAfterMs - Date.now()) / DAY_MS, { certificate: name, file }),
      ),
  ),
  family('draining', 'gauge', '1 while the gateway is shutting down.', [], ({ state }) => [
    sample(state.draining ? 1 : 0),
  ]),
  perWorker('worker_up', 'gauge', '1 while the worker runs.', (worker) => (worker.up ? 1 : 0)),
  perWorker('worker_restarts_total', 'counter', 'Threads that replaced a dead one.', (worker) => worker.restarts),
  perWorker(
    'worker_config_epoch',
    'gauge',
    'Number of the configuration that the worker runs on.',
    (worker) => worker.epochApplied,
  ),
  ...rateLimitMetrics,
  ...authorizationMetrics,
  ...overloadMetrics,
  ...adaptiveMetrics,
  ...backendMetrics,
  ...bodyMetrics,
  ...workloadMetrics,
  ...processMetrics,
];

/** The /metrics page of one gateway. */
export class MetricsPage {
  private readonly registry: Registry;
  private readonly state: AdminState;
  private readonly scrape: Scrape;

  constructor(state: AdminState) {
    this.state = state;
    this.scrape = { state, totals: new Float64Array(METRIC_WORDS) };
    this.registry = registryOf(metricDefinitions, this.scrape);
  }

  /** Content-Type of the page. */
  get contentType(): string {
    return this.registry.contentType;
  }

  /** Reads all counters and renders the page. */
  render(): Promise<string> {
    const { totals } = this.scrape;
    totals.fill(0);
    for (const buffer of this.state.metrics) {
      const counters = new Float64Array(buffer);
      for (let i = 0; i < totals.length; i++) totals[i] += counters[i];
    }
    return this.registry.metrics();
  }
}

function sample(value: number, labels: Record<string, string> = {}): Sample {
  return { labels, value };
}

function family(
  name: string,
  type: MetricDefinition['type'],
  help: string,
  labels: readonly string[],
  collect: (scrape: Scrape) => Sample[],
): MetricDefinition {
  return { name: `portcullis_${name}`, type, help, labels, collect };
}

/** A metric with one value: a counter or gauge summed over all workers. */
function total(name: string, type: 'counter' | 'gauge', help: string, counter: number): MetricDefinition {
  return family(name, type, help, [], ({ totals }) => [sample(totals[counter])]);
}

function directions(name: string, help: string, counterIn: number, counterOut: number): MetricDefinition {
  return family(name, 'counter', help, ['direction'], ({ totals }) => [
    sample(totals[counterIn], { direction: 'in' }),
    sample(totals[counterOut], { direction: 'out' }),
  ]);
}

function perWorker(
  name: string,
  type: 'counter' | 'gauge',
  help: string,
  value: (worker: WorkerState) => number,
): MetricDefinition {
  return family(name, type, help, ['worker'], ({ state }) =>
    state.workers.map((worker) => sample(value(worker), { worker: String(worker.index) })),
  );
}

function nonZero(
  totals: Float64Array,
  start: number,
  count: number,
  labels: (index: number) => Record<string, string>,
): Sample[] {
  const out: Sample[] = [];
  for (let i = 0; i < count; i++) {
    if (totals[start + i] > 0) out.push(sample(totals[start + i], labels(i)));
  }
  return out;
}

/** A histogram kept in milliseconds at `section`, shown in seconds with cumulative buckets. */
function histogram(shortName: string, help: string, section: number): MetricDefinition {
  const name = `portcullis_${shortName}`;
  return family(shortName, 'histogram', help, ['le'], ({ totals }) => {
    const out: Sample[] = [];
    let count = 0;
    latencyBoundsMs.forEach((boundMs, index) => {
      count += totals[section + index];
      out.push({ metricName: `${name}_bucket`, labels: { le: String(boundMs / 1000) }, value: count });
    });
    count += totals[section + latencyBoundsMs.length];
    out.push({ metricName: `${name}_bucket`, labels: { le: '+Inf' }, value: count });
    out.push({ metricName: `${name}_sum`, labels: {}, value: totals[section + HISTOGRAM_WORDS - 1] / 1000 });
    out.push({ metricName: `${name}_count`, labels: {}, value: count });
    return out;
  });
}
