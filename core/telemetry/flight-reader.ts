// The flight recorder's reader: turns the records of all workers into plain objects.
//
// Runs on the control thread while the workers go on writing. Each record is copied and its
// sequence number compared before and after, so that a half-written one is never shown.

import { attemptFailureName } from '../exchange/retry-outcome.ts';
import { Family } from '../ffi/sockaddr.ts';
import {
  FLIGHT_HEADER_BYTES,
  RECORD_BYTES,
  RecordFlag,
  RecordFloat,
  RecordText,
  RecordWord,
  recordCapacity,
  recordTextBytesMax,
  STORED_LENGTHS,
  TEXTS_OFFSET,
  TRUE_LENGTHS,
} from './flight-layout.ts';
import { putAddress } from './log-bytes.ts';
import { protocolNames } from './log-source.ts';
import { detailName, reasonFlag } from './outcome-names.ts';

/** A text of a record: bytes that are not UTF-8 show as U+FFFD. */
export interface RecordedText {
  text: string;
  /** Bytes of the whole text, at most 65,535; more than `text` has when it was cut. */
  length: number;
  truncated: boolean;
}

/** One recorded exchange. Durations are milliseconds; null means "did not happen". */
export interface FlightRecord {
  worker: number;
  /** Position among all records of that worker, from 1. */
  number: number;
  /** When the exchange ended, RFC 3339 in UTC. */
  time: string;
  wallMs: number;
  requestId: RecordedText;
  method: string;
  host: RecordedText;
  path: RecordedText;
  protocol: string;
  /** IP address without port, or empty. */
  clientAddress: string;
  clientPort: number;
  listener: string;
  epoch: number;
  /** Route and rule; empty: none matched. */
  route: string;
  backend: string;
  endpoint: string;
  attempts: number;
  /** RetryEnd (exchange/retry-outcome.ts). */
  retryEnd: number;
  /** Word for the last attempt that was not passed on (`status_503`, `upstream_fin`), empty for none. */
  attemptFailure: string;
  reusedConnection: boolean;
  /** Requests that the upstream connection had served before, and its age in the last attempt. */
  upstreamConnectionUses: number;
  upstreamConnectionAgeMs: number;
  durationMs: number;
  /** From the start until an upstream connection was ready. */
  connectMs: number | null;
  /** From upstream connection ready to the first response byte. */
  upstreamMs: number | null;
  /** Body bytes from and to the client. */
  bytesReceived: number;
  bytesSent: number;
  /** 0: no response was sent. */
  status: number;
  reason: number;
  /** Flag of the reason (`UF`), empty for none. */
  reasonFlag: string;
  detail: number;
  /** Word for the detail (`connect_errno`), empty for none. */
  detailName: string;
  errno: number;
  generated: boolean;
  responseStarted: boolean;
  responseComplete: boolean;
  tunnel: boolean;
  /** Node proxies: the workload, `namespace/name`; empty: not of a mesh. What follows is as in the access log. */
  workload: string;
  side: 'outbound' | 'inbound' | '';
  peer: string;
  service: string;
  policy: string;
}

/** Attempts at a record that is being written before it is left out. */
const READ_ATTEMPTS = 4;

/** Bytes of a text kept for comparing request ids. */
const REQUEST_ID_BYTES_MAX = 64;

/**
 * The newest `limit` records of all workers, newest first; with `wanted` of those that it says yes to. `buffers[i]`
 * belongs to worker i.
 */
export function readRecords(
  buffers: readonly SharedArrayBuffer[],
  limit = Number.POSITIVE_INFINITY,
  wanted: (record: FlightRecord) => boolean = () => true,
): FlightRecord[] {
  const all: FlightRecord[] = [];
  buffers.forEach((buffer, worker) => {
    // No worker contributes more than `limit` records to the newest `limit` of all.
    let taken = 0;
    for (const copy of newestFirst(buffer)) {
      if (taken >= limit) break;
      const record = decode(copy, worker);
      if (!wanted(record)) continue;
      taken++;
      all.push(record);
    }
  });
  all.sort((a, b) => b.wallMs - a.wallMs || b.number - a.number);
  return all.slice(0, limit);
}

/** The newest record with this request id (compared in its first 64 bytes), or undefined. */
export function findRecord(buffers: readonly SharedArrayBuffer[], id: string): FlightRecord | undefined {
  const wanted = new TextEncoder().encode(id);
  if (wanted.length === 0) return undefined;
  let found: FlightRecord | undefined;
  buffers.forEach((buffer, worker) => {
    for (const copy of newestFirst(buffer)) {
      if (!hasId(copy, wanted)) continue;
      const record = decode(copy, worker);
      if (found === undefined || record.wallMs > found.wallMs) found = record;
      break;
    }
  });
  return found;
}

/** Whole copies of a worker's records, newest first; those being overwritten are left out. */
function* newestFirst(buffer: SharedArrayBuffer): Generator<Uint8Array<ArrayBuffer>> {
  const capacity = recordCapacity(buffer);
  const written = new Float64Array(buffer, 0, 1)[0];
  for (let number = written; number > Math.max(0, written - capacity); number--) {
    const copy = copyRecord(buffer, (number - 1) % capacity);
    // A record overwritten since we began carries a newer number: it was not asked for.
    if (copy !== undefined && floatsOf(copy)[RecordFloat.NUMBER] === number) yield copy;
  }
}

/** A copy of record `index` that no write has touched meanwhile; undefined when there was none. */
function copyRecord(buffer: SharedArrayBuffer, index: number): Uint8Array<ArrayBuffer> | undefined {
  const offset = FLIGHT_HEADER_BYTES + index * RECORD_BYTES;
  const words = new Int32Array(buffer, offset, RECORD_BYTES / 4);
  const bytes = new Uint8Array(buffer, offset, RECORD_BYTES);
  for (let attempt = 0; attempt < READ_ATTEMPTS; attempt++) {
    const before = Atomics.load(words, RecordWord.SEQUENCE);
    if ((before & 1) !== 0) continue;
    const copy = new Uint8Array(RECORD_BYTES);
    copy.set(bytes);
    // A read-modify-write, unlike a load, cannot be done before the copying above on arm64.
    if (Atomics.or(words, RecordWord.SEQUENCE, 0) === before) return copy;
  }
  return undefined;
}

function hasId(copy: Uint8Array<ArrayBuffer>, wanted: Uint8Array): boolean {
  const halves = new Uint16Array(copy.buffer);
  if (halves[TRUE_LENGTHS + RecordText.REQUEST_ID] !== wanted.length) return false;
  const length = Math.min(wanted.length, REQUEST_ID_BYTES_MAX);
  for (let i = 0; i < length; i++) {
    if (copy[TEXTS_OFFSET + i] !== wanted[i]) return false;
  }
  return true;
}

/** The name of a workload as records have it, which is cut if it is a very long one. */
export function recordedWorkload(name: string): string {
  const bytes = new TextEncoder().encode(name);
  return new TextDecoder().decode(bytes.subarray(0, recordTextBytesMax[RecordText.WORKLOAD]));
}

function decode(copy: Uint8Array<ArrayBuffer>, worker: number): FlightRecord {
  const words = new Int32Array(copy.buffer);
  const floats = floatsOf(copy);
  const texts = decodeTexts(copy);
  const flags = words[RecordWord.FLAGS];
  const has = (flag: number): boolean => (flags & flag) !== 0;
  const reason = words[RecordWord.REASON];
  const detail = words[RecordWord.DETAIL];
  const wallMs = floats[RecordFloat.WALL_MS];
  return {
    worker,
    number: floats[RecordFloat.NUMBER],
    time: new Date(wallMs).toISOString(),
    wallMs,
    requestId: texts[RecordText.REQUEST_ID],
    method: texts[RecordText.METHOD].text,
    host: texts[RecordText.HOST],
    path: texts[RecordText.PATH],
    protocol: protocolNames[words[RecordWord.PROTOCOL]] ?? '?',
    clientAddress: addressText(words),
    clientPort: words[RecordWord.CLIENT_PORT],
    listener: texts[RecordText.LISTENER].text,
    epoch: words[RecordWord.EPOCH],
    route: texts[RecordText.ROUTE].text,
    backend: texts[RecordText.BACKEND].text,
    endpoint: texts[RecordText.ENDPOINT].text,
    attempts: words[RecordWord.ATTEMPTS],
    retryEnd: words[RecordWord.RETRY_END],
    attemptFailure: attemptFailureName(words[RecordWord.ATTEMPT_FAILURE]),
    reusedConnection: has(RecordFlag.REUSED_CONNECTION),
    upstreamConnectionUses: words[RecordWord.UPSTREAM_USES],
    upstreamConnectionAgeMs: rounded(floats[RecordFloat.UPSTREAM_AGE_MS]),
    durationMs: rounded(floats[RecordFloat.DURATION_MS]),
    connectMs: optionalMs(floats[RecordFloat.CONNECT_MS]),
    upstreamMs: optionalMs(floats[RecordFloat.UPSTREAM_MS]),
    bytesReceived: floats[RecordFloat.BYTES_RECEIVED],
    bytesSent: floats[RecordFloat.BYTES_SENT],
    status: words[RecordWord.STATUS],
    reason,
    reasonFlag: reasonFlag(reason),
    detail,
    detailName: detailName(detail),
    errno: words[RecordWord.ERRNO],
    generated: has(RecordFlag.GENERATED),
    responseStarted: has(RecordFlag.RESPONSE_STARTED),
    responseComplete: has(RecordFlag.RESPONSE_COMPLETE),
    tunnel: has(RecordFlag.TUNNEL),
    workload: texts[RecordText.WORKLOAD].text,
    side: has(RecordFlag.OUTBOUND) ? 'outbound' : has(RecordFlag.INBOUND) ? 'inbound' : '',
    peer: texts[RecordText.PEER].text,
    service: has(RecordFlag.SERVICE) ? texts[RecordText.LISTENER].text : '',
    policy: texts[RecordText.POLICY].text,
  };
}

function decodeTexts(copy: Uint8Array<ArrayBuffer>): RecordedText[] {
  const halves = new Uint16Array(copy.buffer);
  const decoder = new TextDecoder();
  const out: RecordedText[] = [];
  let at = TEXTS_OFFSET;
  for (let text: number = RecordText.REQUEST_ID; text <= RecordText.PATH; text++) {
    const stored = halves[STORED_LENGTHS + text];
    const length = halves[TRUE_LENGTHS + text];
    out.push({ text: decoder.decode(copy.subarray(at, at + stored)), length, truncated: stored < length });
    at += stored;
  }
  return out;
}

function addressText(words: Int32Array): string {
  const family = words[RecordWord.CLIENT_FAMILY];
  if (family !== Family.INET && family !== Family.INET6) return '';
  const bytes = new Uint8Array(64);
  const length = putAddress(bytes, 0, {
    peerFamily: family,
    peerPort: 0,
    peer0: words[RecordWord.CLIENT_ADDRESS],
    peer1: words[RecordWord.CLIENT_ADDRESS + 1],
    peer2: words[RecordWord.CLIENT_ADDRESS + 2],
    peer3: words[RecordWord.CLIENT_ADDRESS + 3],
  });
  return new TextDecoder().decode(bytes.subarray(0, length));
}

function floatsOf(copy: Uint8Array<ArrayBuffer>): Float64Array {
  return new Float64Array(copy.buffer);
}

function optionalMs(ms: number): number | null {
  return ms < 0 ? null : rounded(ms);
}

/** To the microsecond: what is below is noise. */
function rounded(ms: number): number {
  return Math.round(ms * 1000) / 1000;
}
