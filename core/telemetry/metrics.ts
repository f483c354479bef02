// Layout of one worker's counters in shared memory, and the writer that the packet worker uses.
//
// One buffer per worker: that worker is the only writer, the control thread reads at scrape time.
// Values are 64-bit floats: whole numbers stay exact up to 2^53, and an aligned 8-byte store is one
// instruction on x64 and arm64, so a reader never sees half a value. No atomics are needed.
// The buffer outlives the worker: a replacement goes on counting in it, so that counters never go
// backwards; it must call `resetGauges()` first.
// Hot module: every method is plain indexed arithmetic and allocates nothing.

import { POLICY_SLOTS } from '../authorization/policy-numbers.ts';
import { REASON_COUNT } from '../exchange/reasons.ts';

/** Counters (growing) and gauges (current values), by index in `WorkerMetrics.counters`. */
export const Counter = {
  /** Requests whose exchange ended. */
  REQUESTS: 0,
  /** Responses by first digit of the status: index `STATUS_1XX + digit - 1`. */
  STATUS_1XX: 1,
  STATUS_2XX: 2,
  STATUS_3XX: 3,
  STATUS_4XX: 4,
  STATUS_5XX: 5,
  /** Exchanges that ended before any response could be sent. */
  STATUS_NONE: 6,
  /** Gauge: exchanges begun and not ended. */
  REQUESTS_IN_FLIGHT: 7,
  /** Bytes from and to clients, heads and framing included. */
  DOWNSTREAM_BYTES_IN: 8,
  DOWNSTREAM_BYTES_OUT: 9,
  /** Bytes from and to upstreams, heads and framing included. */
  UPSTREAM_BYTES_IN: 10,
  UPSTREAM_BYTES_OUT: 11,
  DOWNSTREAM_ACCEPTED: 12,
  /** Gauge: client connections open now. */
  DOWNSTREAM_OPEN: 13,
  /** Upstream connections for which connecting was started. */
  UPSTREAM_OPENED: 14,
  /** Gauge: upstream connections open now, idle ones included. */
  UPSTREAM_OPEN: 15,
  /** Gauge: upstream connections kept without a request. */
  UPSTREAM_IDLE: 16,
  /** Requests sent on an upstream connection that had served one before. */
  UPSTREAM_REUSED: 17,
  UPSTREAM_CONNECT_FAILURES: 18,
  /** Requests sent again because a kept upstream connection turned out to be closed. */
  STALE_RETRIES: 19,
  /** accept() calls that failed (for example, no descriptors left). */
  ACCEPT_FAILURES: 20,
  /** Client connections closed at once because a limit was reached. */
  CONNECTIONS_SHED: 21,
  /** Gauge: arena buffers in use, and how many there are. */
  BUFFERS_IN_USE: 22,
  BUFFERS_TOTAL: 23,
  /** Batches: returns of epoll_wait with work to do; and the events they brought. */
  BATCHES: 24,
  EVENTS: 25,
  /** Milliseconds spent outside epoll_wait. */
  LOOP_BUSY_MS: 26,
  ACCESS_LOG_LINES: 27,
  /** Lines given up because the ring was full: the disk could not keep up. */
  ACCESS_LOG_DROPPED: 28,
  /** Gauge: tunnels (upgraded or CONNECT connections) open now. */
  TUNNELS_OPEN: 29,
  /** Exchanges written to the flight recorder. */
  FLIGHT_RECORDS: 30,
  /** TLS handshakes with clients that were completed, and those of them that resumed a session. */
  TLS_HANDSHAKES: 31,
  TLS_RESUMED: 32,
  /** The same with upstreams. */
  UPSTREAM_TLS_HANDSHAKES: 33,
  UPSTREAM_TLS_RESUMED: 34,
  /** Connections without a valid PROXY protocol header on a listener that requires one. */
  PROXY_HEADER_ERRORS: 35,
  /** Streams that HTTP/2 clients have opened. */
  HTTP2_STREAMS: 36,
  /** RST_STREAM frames received for streams in use. */
  HTTP2_RESETS_RECEIVED: 37,
  /** RST_STREAM frames sent: NO_ERROR and CANCEL; REFUSED_STREAM; all other codes. */
  HTTP2_RESETS_SENT: 38,
  HTTP2_RESETS_SENT_REFUSED: 39,
  HTTP2_RESETS_SENT_ERROR: 40,
  /** GOAWAY frames sent: NO_ERROR; all other codes. */
  HTTP2_GOAWAYS_SENT: 41,
  HTTP2_GOAWAYS_SENT_ERROR: 42,
  /** Requests and responses refused as malformed (RFC 9113 §8.1.1). */
  HTTP2_MALFORMED: 43,
  /** Connections ended with ENHANCE_YOUR_CALM by kind of flood: index `HTTP2_FLOODS + FloodKind` (http2/floods.ts). */
  HTTP2_FLOODS: 44,
  /** Streams opened to HTTP/2 upstreams. */
  UPSTREAM_HTTP2_STREAMS: 52,
  /** Requests sent again because the upstream had not acted on their stream (REFUSED_STREAM, GOAWAY). */
  UPSTREAM_HTTP2_REFUSED_RETRIES: 53,
  /** GOAWAY frames received from upstreams. */
  UPSTREAM_HTTP2_GOAWAYS: 54,
  /** Upstream connections closed because a PING was not answered. */
  UPSTREAM_HTTP2_PING_TIMEOUTS: 55,
  /** Gauge: longest batch of the last second or two, milliseconds: so long may an event have waited. */
  LOOP_LAG_MS: 56,
  HTTP2_FLOODS_LAST: 51,
  /** Requests balanced over all endpoints of a level, since too few of them were usable. */
  BALANCER_PANIC_PICKS: 90,
  /** Further attempts that retries have brought, by cause: index `RETRIES + RetryCause` (attempt-settings.ts). */
  RETRIES: 96,
  RETRIES_LAST: 102,
  /** Requests for which such an attempt brought an answer that needed no other. */
  RETRIES_SUCCEEDED: 104,
  /** Requests that were not tried (again), by why: index `RETRIES_NOT_MADE + RetryEnd` (exchange/retry-outcome.ts). */
  RETRIES_NOT_MADE: 106,
  RETRIES_NOT_MADE_LAST: 121,
  /** Responses compressed with gzip; brotli; zstd: index `COMPRESSED_RESPONSES + coding - GZIP` (content-coding.ts). */
  COMPRESSED_RESPONSES: 130,
  COMPRESSED_RESPONSES_BR: 131,
  COMPRESSED_RESPONSES_ZSTD: 132,
  /** Bytes of response bodies before and after compression. */
  COMPRESSION_BYTES_IN: 133,
  COMPRESSION_BYTES_OUT: 134,
  /** Responses left as they are since every slot of the compressor was in use, or there was none. */
  COMPRESSION_SKIPPED: 135,
  /** Gauge: mirrored requests in progress. */
  MIRRORS_IN_FLIGHT: 136,
  /** Mirrored requests that were answered, whatever the status; and that failed. */
  MIRRORS_ANSWERED: 137,
  MIRRORS_FAILED: 138,
  /** Mirrored requests that were not sent: body too large; too many in flight; no buffer or slot; request incomplete. */
  MIRRORS_DROPPED_BODY: 139,
  MIRRORS_DROPPED_LIMIT: 140,
  MIRRORS_DROPPED_RESOURCES: 141,
  MIRRORS_DROPPED_INCOMPLETE: 142,
  /** Second attempts of slow requests; those whose answer was used; those that the budget did not allow. */
  HEDGES: 150,
  HEDGES_WON: 151,
  HEDGES_NOT_MADE: 152,
} as const;

/** Why a client connection was closed; index into the close counters. */
export const CloseCause = {
  /** The client finished its side. */
  CLIENT: 0,
  CLIENT_RESET: 1,
  /** After a complete exchange: `Connection: close`, HTTP/1.0, or the request limit of a connection. */
  FINISHED: 2,
  IDLE_TIMEOUT: 3,
  /** A client too slow in sending or reading. */
  TIMEOUT: 4,
  /** Bytes that are not valid HTTP, or over a limit. */
  PROTOCOL_ERROR: 5,
  /** Aborted because the upstream failed while its response was being passed on. */
  UPSTREAM_ABORT: 6,
  /** Shutdown or a removed listener. */
  DRAIN: 7,
  /** No slots, buffers or descriptors left. */
  SHED: 8,
  TUNNEL_END: 9,
  INTERNAL: 10,
} as const;

/** Label value of each close cause, by number. */
export const closeCauseNames: readonly string[] = Object.keys(CloseCause).map((name) => name.toLowerCase());

/** Highest bound of each latency bucket in milliseconds; one more bucket takes everything above. */
export const latencyBoundsMs: Float64Array = Float64Array.of(
  0.1,
  0.25,
  0.5,
  1,
  2.5,
  5,
  10,
  25,
  50,
  100,
  250,
  500,
  1000,
  2500,
  5000,
  10_000,
  30_000,
  60_000,
);

/** Parse error codes that are told apart; codes beyond are counted under the last one. */
export const PARSE_ERROR_CAPACITY = 128;

/** Reasons that fit the layout. */
const REASON_CAPACITY = 64;

/** Words of one histogram: its buckets, the one above all bounds, and the sum. */
export const HISTOGRAM_WORDS: number = latencyBoundsMs.length + 2;

const SCALAR_CAPACITY = 192;
const CLOSE_CAPACITY = 16;
/** TLS failures (core/tls/errors.ts) that are told apart; codes beyond are counted under the last one. */
export const TLS_FAILURE_CAPACITY = 64;

/** Words of all sections before those of policies. */
const BASE_WORDS =
  SCALAR_CAPACITY +
  REASON_CAPACITY +
  PARSE_ERROR_CAPACITY +
  CLOSE_CAPACITY +
  2 * HISTOGRAM_WORDS +
  2 * TLS_FAILURE_CAPACITY;

/** First index of each section of the buffer. */
export const MetricSection = {
  SCALARS: 0,
  REASONS: SCALAR_CAPACITY,
  PARSE_ERRORS: SCALAR_CAPACITY + REASON_CAPACITY,
  CLOSES: SCALAR_CAPACITY + REASON_CAPACITY + PARSE_ERROR_CAPACITY,
  /** Failed handshakes with clients, and with upstreams. */
  TLS_FAILURES: SCALAR_CAPACITY + REASON_CAPACITY + PARSE_ERROR_CAPACITY + CLOSE_CAPACITY + 2 * HISTOGRAM_WORDS,
  UPSTREAM_TLS_FAILURES:
    SCALAR_CAPACITY +
    REASON_CAPACITY +
    PARSE_ERROR_CAPACITY +
    CLOSE_CAPACITY +
    2 * HISTOGRAM_WORDS +
    TLS_FAILURE_CAPACITY,
  /** Whole requests, head complete to response complete. */
  REQUEST_LATENCY: SCALAR_CAPACITY + REASON_CAPACITY + PARSE_ERROR_CAPACITY + CLOSE_CAPACITY,
  /** From upstream connection ready to its first response byte. */
  UPSTREAM_LATENCY: SCALAR_CAPACITY + REASON_CAPACITY + PARSE_ERROR_CAPACITY + CLOSE_CAPACITY + HISTOGRAM_WORDS,
  /** By policy (authorization/policy-numbers.ts): what it has refused, and would have refused if it were not on trial. */
  POLICY_DENIALS: BASE_WORDS,
  POLICY_TRIALS: BASE_WORDS + POLICY_SLOTS,
} as const;

/** Values of one buffer. */
export const METRIC_WORDS: number = MetricSection.POLICY_TRIALS + POLICY_SLOTS;

const gauges: readonly number[] = [
  Counter.REQUESTS_IN_FLIGHT,
  Counter.DOWNSTREAM_OPEN,
  Counter.UPSTREAM_OPEN,
  Counter.UPSTREAM_IDLE,
  Counter.BUFFERS_IN_USE,
  Counter.BUFFERS_TOTAL,
  Counter.TUNNELS_OPEN,
  Counter.LOOP_LAG_MS,
  Counter.MIRRORS_IN_FLIGHT,
];

if (REASON_COUNT > REASON_CAPACITY || closeCauseNames.length > CLOSE_CAPACITY) {
  throw new Error('the metrics layout is too small for its reasons or close causes');
}

/** A zeroed metrics buffer for one worker, about 2.5 KiB. */
export function createMetricsBuffer(): SharedArrayBuffer {
  return new SharedArrayBuffer(METRIC_WORDS * Float64Array.BYTES_PER_ELEMENT);
}

/** Writer over one worker's buffer; only that worker's thread may use its methods. */
export class WorkerMetrics {
  /** Every value, for `counters[Counter.X] += n` and for readers. */
  readonly counters: Float64Array;

  /** Takes a buffer of `createMetricsBuffer`; throws a RangeError for one of another size. */
  constructor(buffer: SharedArrayBuffer) {
    if (buffer.byteLength !== METRIC_WORDS * Float64Array.BYTES_PER_ELEMENT) {
      throw new RangeError(`a metrics buffer has ${METRIC_WORDS * 8} bytes, not ${buffer.byteLength}`);
    }
    this.counters = new Float64Array(buffer);
  }

  /** Counts the outcome of one exchange: total, status class (`status` 0: none sent) and reason. */
  countOutcome(status: number, reason: number): void {
    const counters = this.counters;
    counters[Counter.REQUESTS]++;
    const statusClass = status >= 100 && status < 600 ? (status / 100) | 0 : 0;
    counters[statusClass === 0 ? Counter.STATUS_NONE : Counter.STATUS_1XX + statusClass - 1]++;
    if (reason > 0 && reason < REASON_CAPACITY) counters[MetricSection.REASONS + reason]++;
  }

  /** Counts a parse error of a request by its code (0 to 127; higher ones count as 127). */
  countParseError(code: number): void {
    const index = code < 0 || code >= PARSE_ERROR_CAPACITY ? PARSE_ERROR_CAPACITY - 1 : code;
    this.counters[MetricSection.PARSE_ERRORS + index]++;
  }

  /** Counts the close of a client connection by its `CloseCause`. */
  countClose(cause: number): void {
    if (cause >= 0 && cause < CLOSE_CAPACITY) this.counters[MetricSection.CLOSES + cause]++;
  }

  /** Counts a failed TLS handshake with a client by its TlsFailure. */
  countTlsFailure(failure: number): void {
    this.counters[MetricSection.TLS_FAILURES + Math.min(failure, TLS_FAILURE_CAPACITY - 1)]++;
  }

  /** Counts a failed TLS handshake with an upstream by its TlsFailure. */
  countUpstreamTlsFailure(failure: number): void {
    this.counters[MetricSection.UPSTREAM_TLS_FAILURES + Math.min(failure, TLS_FAILURE_CAPACITY - 1)]++;
  }

  /** Adds a whole request's duration in milliseconds to its histogram. */
  recordLatency(ms: number): void {
    record(this.counters, MetricSection.REQUEST_LATENCY, ms);
  }

  /** Adds an upstream's time to first byte in milliseconds to its histogram. */
  recordUpstreamLatency(ms: number): void {
    record(this.counters, MetricSection.UPSTREAM_LATENCY, ms);
  }

  /** Sets all gauges to 0: the connections and buffers of a predecessor are gone. */
  resetGauges(): void {
    for (const gauge of gauges) this.counters[gauge] = 0;
  }
}

/** Adds one value to the histogram that starts at `section`. A bound belongs to its bucket (Prometheus `le`). */
function record(counters: Float64Array, section: number, ms: number): void {
  // First bound that is not below the value, in at most five steps.
  let low = 0;
  let high = latencyBoundsMs.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (latencyBoundsMs[middle]! < ms) low = middle + 1;
    else high = middle;
  }
  counters[section + low]++;
  counters[section + HISTOGRAM_WORDS - 1] += ms;
}
