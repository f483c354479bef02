// The access log as a packet worker sees it: one line per exchange, as bytes into its ring.
//
// Owned by one worker. A line is written whole or not at all: when the ring lacks room for the
// longest form that this line could take, it is dropped and counted, and the worker goes on. The
// thread of access-log-writer.ts takes the lines to the disk. A line is written straight into the
// ring; only one that might cross its end is made in a buffer aside first.
// Hot module: no strings, objects or system calls per line (see byte-ring.ts for the one exception).

import {
  DETAIL_LIMIT,
  DETAIL_PARSE,
  DETAIL_POLICY,
  DETAIL_TLS,
  REASON_COUNT,
  reasonText,
} from '../exchange/reasons.ts';
import { attemptFailureName, retryEndNames } from '../exchange/retry-outcome.ts';
import { type CompiledFormat, compileAccessLogFormat, LogField } from './access-log-format.ts';
import { RingProducer } from './byte-ring.ts';
import {
  ESCAPED_BYTES_MAX,
  FIXED_BYTES_MAX,
  FIXED_OVERRUN_BYTES,
  fixedText,
  jsonNameEscapes,
  jsonWireEscapes,
  LogClock,
  putAddress,
  putFixed,
  putMillis,
  putNumber,
  putText,
  putWireText,
  textNameEscapes,
  textWireEscapes,
} from './log-bytes.ts';
import { type LogSource, noBytes, protocolNames } from './log-source.ts';
import { Counter, PARSE_ERROR_CAPACITY, TLS_FAILURE_CAPACITY, type WorkerMetrics } from './metrics.ts';
import { DETAIL_COUNT, detailName } from './outcome-names.ts';

const nullText = fixedText('null');
const dashText = fixedText('-');

/** Flag of each reason; empty for "no reason". */
const reasonFlags = Array.from({ length: REASON_COUNT }, (_, reason) =>
  reason === 0 ? noBytes : encode(reasonText(reason).flag),
);

/** Words for details, by number, in two tables: the ordinary ones, and parse errors by their code. */
const detailWords = Array.from({ length: DETAIL_COUNT }, (_, detail) => encode(detailName(detail)));
const parseWords = Array.from({ length: PARSE_ERROR_CAPACITY }, (_, code) => encode(detailName(DETAIL_PARSE + code)));
const tlsWords = Array.from({ length: TLS_FAILURE_CAPACITY }, (_, code) => encode(detailName(DETAIL_TLS + code)));

/** Words of rate limits, made when first logged. */
const limitWords: (Uint8Array | undefined)[] = [];

function limitWord(id: number): Uint8Array {
  let word = limitWords[id];
  if (word === undefined) {
    word = encode(detailName(DETAIL_LIMIT + id));
    limitWords[id] = word;
  }
  return word;
}

/** Words of policies, made when first logged: of any length, unlike the others. */
const policyWords = new Map<number, Uint8Array>();

function policyWord(detail: number): Uint8Array {
  let word = policyWords.get(detail);
  if (word === undefined) {
    word = encode(detailName(detail));
    policyWords.set(detail, word);
  }
  return word;
}

for (const words of [reasonFlags, detailWords, parseWords, tlsWords]) {
  if (words.some((word) => word.length > FIXED_BYTES_MAX)) throw new Error('FIXED_BYTES_MAX is too small for a word');
}

const retryWords = retryEndNames.map(encode);

/** Words of failed attempts by number, made when first logged. */
const failureWords = new Map<number, Uint8Array>();

function failureWord(failure: number): Uint8Array {
  let word = failureWords.get(failure);
  if (word === undefined) {
    word = encode(attemptFailureName(failure));
    failureWords.set(failure, word);
  }
  return word;
}

/** Quotation marks around a JSON text. */
const QUOTES_BYTES = 2;

const protocolBytes = protocolNames.map(encode);

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const {
  ATTEMPT_FAILURE,
  ATTEMPTS,
  BACKEND,
  BYTES_RECEIVED,
  BYTES_SENT,
  CLIENT_ADDRESS,
  CLIENT_PORT,
  CLIENT_SUBJECT,
  DETAIL,
  DURATION_MS,
  ENDPOINT,
  EPOCH,
  HOST,
  LISTENER,
  METHOD,
  PATH,
  PEER,
  POLICY,
  PROTOCOL,
  REASON,
  REFERER,
  REQUEST_ID,
  RETRY,
  ROUTE,
  SERVER_NAME,
  SERVICE,
  SIDE,
  STATUS,
  TIME,
  TLS_VERSION,
  UPSTREAM_MS,
  USER_AGENT,
  WORKER,
  WORKLOAD,
} = LogField;

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
  /** Most bytes that one byte of a text can bring to a line. */
  private readonly bytesPerTextByte: number;
  private readonly ringView: DataView;
  private aside = noBytes;
  private asideView = new DataView(noBytes.buffer);
  /** Where the current line goes: the ring, or `aside`. */
  private data: Uint8Array;
  private view: DataView;

  /**
   * `format` is `json`, `common`, a template, or empty for no log; an invalid template throws. Lines
   * and drops are counted in `metrics`. Several logs may share a ring as long as one thread uses them.
   * `mesh`: the log of a node proxy.
   */
  constructor(ring: SharedArrayBuffer, format: string, workerIndex: number, metrics: WorkerMetrics, mesh = false) {
    this.enabled = format !== '';
    this.ring = new RingProducer(ring);
    this.format = compileAccessLogFormat(this.enabled ? format : 'json', mesh);
    this.workerIndex = workerIndex;
    this.metrics = metrics;
    const { literals, fields, json, repeats } = this.format;
    this.wireEscapes = json ? jsonWireEscapes : textWireEscapes;
    this.nameEscapes = json ? jsonNameEscapes : textNameEscapes;
    const literalBytes = literals.reduce((sum, literal) => sum + literal.length, 0);
    this.baseBytes = literalBytes + fields.length * (FIXED_BYTES_MAX + QUOTES_BYTES) + FIXED_OVERRUN_BYTES;
    this.bytesPerTextByte = ESCAPED_BYTES_MAX * repeats;
    this.ringView = new DataView(ring, this.ring.data.byteOffset, this.ring.data.length);
    this.data = this.ring.data;
    this.view = this.ringView;
  }

  /** Writes the line of one ended exchange, or drops and counts it when the ring lacks room. */
  log(source: LogSource): void {
    if (!this.enabled) return;
    const ring = this.ring;
    const longest = this.baseBytes + this.bytesPerTextByte * textBytes(source);
    if (longest > ring.free()) {
      this.metrics.counters[Counter.ACCESS_LOG_DROPPED]++;
      return;
    }
    const begin = ring.begin();
    if (begin + longest <= ring.data.length) {
      this.data = ring.data;
      this.view = this.ringView;
      ring.publish(this.putLine(begin, source));
    } else {
      this.useAside(longest);
      const length = this.putLine(0, source);
      for (let i = 0; i < length; i++) ring.data[(begin + i) & ring.mask] = this.aside[i];
      ring.publish(begin + length);
    }
    this.metrics.counters[Counter.ACCESS_LOG_LINES]++;
  }

  /** Lets the line go to the buffer aside, which grows to the longest line ever near the ring's end. */
  private useAside(bytes: number): void {
    if (this.aside.length < bytes) {
      this.aside = new Uint8Array(bytes * 2);
      this.asideView = new DataView(this.aside.buffer);
    }
    this.data = this.aside;
    this.view = this.asideView;
  }

  private putLine(position: number, source: LogSource): number {
    const { fields, literals } = this.format;
    position = putFixed(this.view, position, literals[0]);
    for (let i = 0; i < fields.length; i++) {
      position = this.putField(position, fields[i], source);
      position = putFixed(this.view, position, literals[i + 1]);
    }
    return position;
  }

  /** Writes one value. Every `LogField` has its case; the default is the common format's time. */
  private putField(position: number, field: number, source: LogSource): number {
    const data = this.data;
    switch (field) {
      case TIME:
        if (!this.format.json) return this.clock.putIso(data, position, source.wallMs);
        data[position++] = 0x22;
        position = this.clock.putIso(data, position, source.wallMs);
        data[position++] = 0x22;
        return position;
      case METHOD:
        return this.putWire(position, source.memory, source.methodOffset, source.methodLength);
      case PATH:
        return this.putWire(position, source.memory, source.pathOffset, source.pathLength);
      case HOST:
        return this.putWire(position, source.memory, source.hostOffset, source.hostLength);
      case USER_AGENT:
        return this.putWire(position, source.memory, source.userAgentOffset, source.userAgentLength);
      case REFERER:
        return this.putWire(position, source.memory, source.refererOffset, source.refererLength);
      case REQUEST_ID:
        return this.putWire(position, source.memory, source.requestIdOffset, source.requestIdLength);
      case CLIENT_ADDRESS:
        return this.putClient(position, source);
      case PROTOCOL:
        return this.putName(position, protocolBytes[source.protocol]);
      case REASON:
        return this.putName(position, reasonBytes(source.reason));
      case DETAIL:
        return this.putName(position, detailBytes(source.detail));
      case RETRY:
        return this.putName(position, retryWords[source.retryEnd]);
      case ATTEMPT_FAILURE:
        return this.putName(position, failureWord(source.attemptFailure));
      case ROUTE:
        return this.putName(position, source.route);
      case BACKEND:
        return this.putName(position, source.backend);
      case ENDPOINT:
        return this.putName(position, source.endpoint);
      case LISTENER:
        return this.putName(position, source.listener);
      case TLS_VERSION:
        return this.putName(position, source.tlsVersion);
      case SERVER_NAME:
        return this.putName(position, source.serverName);
      case CLIENT_SUBJECT:
        return this.putName(position, source.clientSubject);
      case WORKLOAD:
        return this.putName(position, source.workload);
      case SIDE:
        return this.putName(position, source.side);
      case PEER:
        return this.putName(position, source.peer);
      case SERVICE:
        return this.putName(position, source.service);
      case POLICY:
        return this.putName(position, source.policy);
      case STATUS:
        return putNumber(data, position, source.status);
      case BYTES_RECEIVED:
        return putNumber(data, position, source.bytesReceived);
      case BYTES_SENT:
        return putNumber(data, position, source.bytesSent);
      case DURATION_MS:
        return putMillis(data, position, source.durationMs);
      case UPSTREAM_MS:
        if (source.upstreamMs < 0) return this.putAbsent(position);
        return putMillis(data, position, source.upstreamMs);
      case CLIENT_PORT:
        return putNumber(data, position, source.client.peerPort);
      case ATTEMPTS:
        return putNumber(data, position, source.attempts);
      case EPOCH:
        return putNumber(data, position, source.epoch);
      case WORKER:
        return putNumber(data, position, this.workerIndex);
      default:
        return this.clock.putCommon(data, position, source.wallMs);
    }
  }

  private putWire(position: number, bytes: Uint8Array, offset: number, length: number): number {
    if (length === 0) return this.putAbsent(position);
    const { data, view, wireEscapes } = this;
    if (!this.format.json) return putWireText(data, view, position, bytes, offset, length, wireEscapes);
    data[position++] = 0x22;
    position = putWireText(data, view, position, bytes, offset, length, wireEscapes);
    data[position++] = 0x22;
    return position;
  }

  private putName(position: number, bytes: Uint8Array): number {
    if (bytes.length === 0) return this.putAbsent(position);
    const { data, nameEscapes } = this;
    if (!this.format.json) return putText(data, position, bytes, 0, bytes.length, nameEscapes);
    data[position++] = 0x22;
    position = putText(data, position, bytes, 0, bytes.length, nameEscapes);
    data[position++] = 0x22;
    return position;
  }

  private putClient(position: number, source: LogSource): number {
    const data = this.data;
    if (source.client.peerFamily === 0) return this.putAbsent(position);
    if (!this.format.json) return putAddress(data, position, source.client);
    data[position++] = 0x22;
    position = putAddress(data, position, source.client);
    data[position++] = 0x22;
    return position;
  }

  private putAbsent(position: number): number {
    return putFixed(this.view, position, this.format.json ? nullText : dashText);
  }
}

/** Bytes of all texts of a source that may be in a line, before escaping. */
function textBytes(source: LogSource): number {
  return (
    source.methodLength +
    source.pathLength +
    source.hostLength +
    source.userAgentLength +
    source.refererLength +
    source.requestIdLength +
    source.listener.length +
    source.tlsVersion.length +
    source.serverName.length +
    source.clientSubject.length +
    source.route.length +
    source.backend.length +
    source.endpoint.length +
    source.workload.length +
    source.side.length +
    source.peer.length +
    source.service.length +
    source.policy.length +
    // Names that users give: the only words of any length.
    (source.detail >= DETAIL_LIMIT ? detailBytes(source.detail).length : 0)
  );
}

function reasonBytes(reason: number): Uint8Array {
  return reason > 0 && reason < REASON_COUNT ? reasonFlags[reason] : noBytes;
}

function detailBytes(detail: number): Uint8Array {
  if (detail >= DETAIL_PARSE && detail < DETAIL_PARSE + PARSE_ERROR_CAPACITY) return parseWords[detail - DETAIL_PARSE];
  if (detail >= DETAIL_TLS && detail < DETAIL_TLS + TLS_FAILURE_CAPACITY) return tlsWords[detail - DETAIL_TLS];
  if (detail >= DETAIL_POLICY) return policyWord(detail);
  if (detail >= DETAIL_LIMIT) return limitWord(detail - DETAIL_LIMIT);
  return detail > 0 && detail < detailWords.length ? detailWords[detail] : noBytes;
}

function encode(text: string): Uint8Array {
  return new TextEncoder().encode(text);
}
