// The access log as a packet worker sees it: one line per exchange, as bytes into its ring.
//
// Owned by one worker. A line is written whole or not at all: when the ring lacks room for the
// longest form that this line could take, it is dropped and counted, and the worker goes on. The
// thread of access-log-writer.ts takes the lines to the disk.
// Hot module: no strings, objects or system calls per line (see byte-ring.ts for the one exception).

import { DETAIL_PARSE, REASON_COUNT, reasonText } from '../exchange/reasons.ts';
import { type CompiledFormat, compileAccessLogFormat, LogField } from './access-log-format.ts';
import { RingProducer } from './byte-ring.ts';
import {
  ESCAPED_BYTES_MAX,
  FIXED_BYTES_MAX,
  jsonNameEscapes,
  jsonWireEscapes,
  LogClock,
  putAddress,
  putBytes,
  putMillis,
  putNumber,
  putText,
  textNameEscapes,
  textWireEscapes,
} from './log-bytes.ts';
import { type LogSource, protocolNames } from './log-source.ts';
import { Counter, PARSE_ERROR_CAPACITY, type WorkerMetrics } from './metrics.ts';
import { DETAIL_COUNT, detailName } from './outcome-names.ts';

const noBytes = new Uint8Array(0);
const nullBytes = encode('null');
const dashBytes = encode('-');

/** Flag of each reason; empty for "no reason". */
const reasonFlags = Array.from({ length: REASON_COUNT }, (_, reason) =>
  reason === 0 ? noBytes : encode(reasonText(reason).flag),
);

/** Words for details, by number, in two tables: the ordinary ones, and parse errors by their code. */
const detailWords = Array.from({ length: DETAIL_COUNT }, (_, detail) => encode(detailName(detail)));
const parseWords = Array.from({ length: PARSE_ERROR_CAPACITY }, (_, code) => encode(detailName(DETAIL_PARSE + code)));

const protocolBytes = protocolNames.map(encode);

/** Writes access log lines of one worker in one format. */
export class AccessLog {
  /** Whether lines are written at all. */
  readonly enabled: boolean;
  private readonly ring: RingProducer;
  private readonly format: CompiledFormat;
  private readonly metrics: WorkerMetrics;
  private readonly workerIndex: number;
  private readonly clock = new LogClock();
  private readonly wireEscapes: Uint8Array;
  private readonly nameEscapes: Uint8Array;
  /** Bytes of a line without its texts, at most. */
  private readonly baseBytes: number;

  /**
   * `format` is `json`, `common`, a template, or empty for no log; an invalid template throws. Lines
   * and drops are counted in `metrics`. Several logs may share a ring as long as one thread uses them.
   */
  constructor(ring: SharedArrayBuffer, format: string, workerIndex: number, metrics: WorkerMetrics) {
    this.enabled = format !== '';
    this.ring = new RingProducer(ring);
    this.format = this.enabled
      ? compileAccessLogFormat(format)
      : { literals: [noBytes], fields: new Int32Array(0), json: false };
    this.workerIndex = workerIndex;
    this.metrics = metrics;
    this.wireEscapes = this.format.json ? jsonWireEscapes : textWireEscapes;
    this.nameEscapes = this.format.json ? jsonNameEscapes : textNameEscapes;
    this.baseBytes = this.format.literals.reduce((sum, literal) => sum + literal.length, 0);
  }

  /** Writes the line of one ended exchange, or drops and counts it when the ring lacks room. */
  log(source: LogSource): void {
    if (!this.enabled) return;
    const { ring, format } = this;
    const { fields, literals } = format;
    let longest = this.baseBytes;
    for (let i = 0; i < fields.length; i++) longest += longestField(fields[i], source);
    if (longest > ring.free()) {
      this.metrics.counters[Counter.ACCESS_LOG_DROPPED]++;
      return;
    }
    let position = putBytes(ring.data, ring.mask, ring.begin(), literals[0]);
    for (let i = 0; i < fields.length; i++) {
      position = this.putField(position, fields[i], source);
      position = putBytes(ring.data, ring.mask, position, literals[i + 1]);
    }
    ring.publish(position);
    this.metrics.counters[Counter.ACCESS_LOG_LINES]++;
  }

  /** Writes one value. Every `LogField` has its case; the default is the common format's time. */
  private putField(position: number, field: number, source: LogSource): number {
    const { data, mask } = this.ring;
    switch (field) {
      case LogField.TIME:
        if (!this.format.json) return this.clock.putIso(data, mask, position, source.wallMs);
        data[position++ & mask] = 0x22;
        position = this.clock.putIso(data, mask, position, source.wallMs);
        data[position++ & mask] = 0x22;
        return position;
      case LogField.METHOD:
        return this.putWire(position, source.memory, source.methodOffset, source.methodLength);
      case LogField.PATH:
        return this.putWire(position, source.memory, source.pathOffset, source.pathLength);
      case LogField.HOST:
        return this.putWire(position, source.memory, source.hostOffset, source.hostLength);
      case LogField.USER_AGENT:
        return this.putWire(position, source.memory, source.userAgentOffset, source.userAgentLength);
      case LogField.REFERER:
        return this.putWire(position, source.memory, source.refererOffset, source.refererLength);
      case LogField.REQUEST_ID:
        return this.putWire(position, source.memory, source.requestIdOffset, source.requestIdLength);
      case LogField.CLIENT_ADDRESS:
        return this.putClient(position, source);
      case LogField.PROTOCOL:
        return this.putName(position, protocolBytes[source.protocol]);
      case LogField.REASON:
        return this.putName(position, reasonBytes(source.reason));
      case LogField.DETAIL:
        return this.putName(position, detailBytes(source.detail));
      case LogField.ROUTE:
        return this.putName(position, source.route);
      case LogField.BACKEND:
        return this.putName(position, source.backend);
      case LogField.ENDPOINT:
        return this.putName(position, source.endpoint);
      case LogField.LISTENER:
        return this.putName(position, source.listener);
      case LogField.STATUS:
        return putNumber(data, mask, position, source.status);
      case LogField.BYTES_RECEIVED:
        return putNumber(data, mask, position, source.bytesReceived);
      case LogField.BYTES_SENT:
        return putNumber(data, mask, position, source.bytesSent);
      case LogField.DURATION_MS:
        return putMillis(data, mask, position, source.durationMs);
      case LogField.UPSTREAM_MS:
        if (source.upstreamMs < 0) return this.putAbsent(position);
        return putMillis(data, mask, position, source.upstreamMs);
      case LogField.CLIENT_PORT:
        return putNumber(data, mask, position, source.client.peerPort);
      case LogField.ATTEMPTS:
        return putNumber(data, mask, position, source.attempts);
      case LogField.EPOCH:
        return putNumber(data, mask, position, source.epoch);
      case LogField.WORKER:
        return putNumber(data, mask, position, this.workerIndex);
      default:
        return this.clock.putCommon(data, mask, position, source.wallMs);
    }
  }

  private putWire(position: number, bytes: Uint8Array, offset: number, length: number): number {
    if (length === 0) return this.putAbsent(position);
    return this.putEscaped(position, bytes, offset, length, this.wireEscapes);
  }

  private putName(position: number, bytes: Uint8Array): number {
    if (bytes.length === 0) return this.putAbsent(position);
    return this.putEscaped(position, bytes, 0, bytes.length, this.nameEscapes);
  }

  private putEscaped(position: number, bytes: Uint8Array, offset: number, length: number, table: Uint8Array): number {
    const { data, mask } = this.ring;
    if (!this.format.json) return putText(data, mask, position, bytes, offset, length, table);
    data[position++ & mask] = 0x22;
    position = putText(data, mask, position, bytes, offset, length, table);
    data[position++ & mask] = 0x22;
    return position;
  }

  private putClient(position: number, source: LogSource): number {
    const { data, mask } = this.ring;
    if (source.client.peerFamily === 0) return this.putAbsent(position);
    if (!this.format.json) return putAddress(data, mask, position, source.client);
    data[position++ & mask] = 0x22;
    position = putAddress(data, mask, position, source.client);
    data[position++ & mask] = 0x22;
    return position;
  }

  private putAbsent(position: number): number {
    return putBytes(this.ring.data, this.ring.mask, position, this.format.json ? nullBytes : dashBytes);
  }
}

/** Most bytes that a field can take: texts at their worst escaping, anything else a fixed bound. */
function longestField(field: number, source: LogSource): number {
  const fixed = FIXED_BYTES_MAX + 2;
  switch (field) {
    case LogField.METHOD:
      return fixed + source.methodLength * ESCAPED_BYTES_MAX;
    case LogField.PATH:
      return fixed + source.pathLength * ESCAPED_BYTES_MAX;
    case LogField.HOST:
      return fixed + source.hostLength * ESCAPED_BYTES_MAX;
    case LogField.USER_AGENT:
      return fixed + source.userAgentLength * ESCAPED_BYTES_MAX;
    case LogField.REFERER:
      return fixed + source.refererLength * ESCAPED_BYTES_MAX;
    case LogField.REQUEST_ID:
      return fixed + source.requestIdLength * ESCAPED_BYTES_MAX;
    case LogField.DETAIL:
      return fixed + detailBytes(source.detail).length;
    case LogField.ROUTE:
      return fixed + source.route.length * ESCAPED_BYTES_MAX;
    case LogField.BACKEND:
      return fixed + source.backend.length * ESCAPED_BYTES_MAX;
    case LogField.ENDPOINT:
      return fixed + source.endpoint.length * ESCAPED_BYTES_MAX;
    case LogField.LISTENER:
      return fixed + source.listener.length * ESCAPED_BYTES_MAX;
    default:
      return fixed;
  }
}

function reasonBytes(reason: number): Uint8Array {
  return reason > 0 && reason < REASON_COUNT ? reasonFlags[reason] : noBytes;
}

function detailBytes(detail: number): Uint8Array {
  if (detail >= DETAIL_PARSE && detail < DETAIL_PARSE + PARSE_ERROR_CAPACITY) return parseWords[detail - DETAIL_PARSE];
  return detail > 0 && detail < detailWords.length ? detailWords[detail] : noBytes;
}

function encode(text: string): Uint8Array {
  return new TextEncoder().encode(text);
}
