// The reader of request recorders: turns the records of all workers into plain objects, oldest first.
//
// Runs on the control thread while the workers go on writing. A ring is copied as a whole, and what its
// worker has overwritten meanwhile is left out. Bytes from the wire become one character each, so that
// the bytes can be had back; names from the configuration are UTF-8.

import { Family } from '../ffi/sockaddr.ts';
import { putAddress } from './log-bytes.ts';
import {
  RECORD_TEXT_OFFSET,
  RECORDER_HEADER_BYTES,
  RecorderWord,
  RecordLine,
  RequestFlag,
  RequestWord,
} from './recorder-layout.ts';

/** One recorded request. Texts from the wire have one character per byte. */
export interface RecordedRequest {
  /** When its head was complete, RFC 3339 in UTC. */
  time: string;
  /** Generation of the configuration that routed it. */
  epoch: number;
  listener: string;
  method: string;
  /** host[:port]; empty: none was given. */
  host: string;
  /** Path with query, `*`, or host:port of CONNECT. */
  path: string;
  protocol: 'HTTP/1.0' | 'HTTP/1.1' | 'HTTP/2';
  /** Names in lower case, with their values, in the order of arrival. */
  headers: [name: string, value: string][];
  /** IP address of the connection's other end. */
  client: string;
  tls: boolean;
  /** Name by SNI; empty: none. */
  serverName: string;
  /** Verified client certificate: its fingerprint in hexadecimal, and its names; null: none. */
  certificate: { sha256: string; subjectAltNames: string[] } | null;
  /** Route name and rule number, such as `shop rule 2`; empty: none matched. */
  route: string;
  /** Backend that was chosen; empty: none. */
  backend: string;
  /** Backends among which the rule chooses, with their weights. */
  backends: Record<string, number>;
  /** What the client got; 0: nothing, or not yet. */
  status: number;
  /** Why the gateway answered itself, a number of core/exchange/reasons.ts; 0: nothing went wrong. */
  reason: number;
  /** The response was the gateway's own. */
  generated: boolean;
}

/** A whole record whose text has not been looked at. */
export interface RawRequest {
  /** Milliseconds since 1970. */
  wallMs: number;
  /** The record's bytes; a part of a copy. */
  bytes: Uint8Array<ArrayBuffer>;
}

/** The records of all workers that began at `sinceMs` or later, oldest first. */
export function readRecordings(buffers: readonly SharedArrayBuffer[], sinceMs: number): RawRequest[] {
  return buffers
    .flatMap((buffer) => [...recordsOf(buffer)])
    .filter(({ wallMs }) => wallMs >= sinceMs)
    .sort((a, b) => a.wallMs - b.wallMs);
}

/** Requests that were left out because their heads were too long, over all workers. */
export function recordingsTooLong(buffers: readonly SharedArrayBuffer[]): number {
  return buffers.reduce(
    (sum, buffer) => sum + new Int32Array(buffer, 0, RECORDER_HEADER_BYTES / 4)[RecorderWord.TOO_LONG]!,
    0,
  );
}

function* recordsOf(buffer: SharedArrayBuffer): Generator<RawRequest> {
  const header = new Int32Array(buffer, 0, RECORDER_HEADER_BYTES / 4);
  const head = Atomics.load(header, RecorderWord.HEAD);
  const copy = new Uint8Array(buffer.byteLength - RECORDER_HEADER_BYTES);
  copy.set(new Uint8Array(buffer, RECORDER_HEADER_BYTES));
  // A read-modify-write, unlike a load, cannot be done before the copying above on arm64.
  let position = Atomics.or(header, RecorderWord.TAIL, 0);
  const words = new Int32Array(copy.buffer);
  const floats = new Float64Array(copy.buffer);
  const mask = copy.length - 1;
  while (((head - position) | 0) > 0) {
    const start = position & mask;
    const word = start >> 2;
    const length = words[word + RequestWord.LENGTH]!;
    if (length <= 0) return;
    position = (position + length) | 0;
    if (length < RECORD_TEXT_OFFSET || (words[word + RequestWord.FLAGS]! & RequestFlag.FILLER) !== 0) continue;
    yield { wallMs: floats[(word + RequestWord.WALL_MS) >> 1]!, bytes: copy.subarray(start, start + length) };
  }
}

const protocols = new Map<number, RecordedRequest['protocol']>([
  [10, 'HTTP/1.0'],
  [11, 'HTTP/1.1'],
  [20, 'HTTP/2'],
]);

/** Decodes a record. */
export function decodeRequest({ wallMs, bytes }: RawRequest): RecordedRequest {
  const words = new Int32Array(bytes.buffer, bytes.byteOffset, RequestWord.WORDS);
  const text = Buffer.from(
    bytes.buffer,
    bytes.byteOffset + RECORD_TEXT_OFFSET,
    words[RequestWord.TEXT_LENGTH]!,
  ).toString('latin1');
  const lines = text.split('\n');
  const named = (line: number): string => Buffer.from(lines[line]!, 'latin1').toString('utf8');
  const flags = words[RequestWord.FLAGS]!;
  const method = lines[RecordLine.METHOD]!;
  return {
    time: new Date(wallMs).toISOString(),
    epoch: words[RequestWord.EPOCH]!,
    listener: named(RecordLine.LISTENER),
    method,
    host: lines[RecordLine.AUTHORITY]!,
    path: lines[RecordLine.TARGET]! || (method === 'OPTIONS' ? '*' : '/'),
    protocol: protocols.get(words[RequestWord.VERSION]!) ?? 'HTTP/1.1',
    headers: lines.slice(RecordLine.FIELDS, -1).map((line) => {
      const colon = line.indexOf(':');
      return [line.slice(0, colon).toLowerCase(), line.slice(colon + 1)];
    }),
    client: clientAddress(words),
    tls: (flags & RequestFlag.TLS) !== 0,
    serverName: lines[RecordLine.SERVER_NAME]!,
    certificate: certificateOf(named(RecordLine.CERTIFICATE)),
    route: named(RecordLine.ROUTE),
    backend: named(RecordLine.BACKEND),
    backends: sharesOf(named(RecordLine.SHARES)),
    status: words[RequestWord.STATUS]!,
    reason: words[RequestWord.REASON]!,
    generated: (flags & RequestFlag.GENERATED) !== 0,
  };
}

function certificateOf(text: string): RecordedRequest['certificate'] {
  if (text === '') return null;
  const [sha256, ...subjectAltNames] = text.split(' ');
  return { sha256: sha256!, subjectAltNames };
}

/** Weights of `name=weight,name=weight`. */
function sharesOf(text: string): Record<string, number> {
  const shares: Record<string, number> = {};
  for (const share of text.split(',')) {
    const equals = share.lastIndexOf('=');
    if (equals > 0) shares[share.slice(0, equals)] = Number(share.slice(equals + 1));
  }
  return shares;
}

function clientAddress(words: Int32Array): string {
  const family = words[RequestWord.FAMILY]!;
  if (family !== Family.INET && family !== Family.INET6) return '';
  const [peer0, peer1, peer2, peer3] = words.subarray(RequestWord.ADDRESS, RequestWord.ADDRESS + 4);
  const text = new Uint8Array(64);
  const peer = { peerFamily: family, peerPort: 0, peer0: peer0!, peer1: peer1!, peer2: peer2!, peer3: peer3! };
  return Buffer.from(text.buffer, 0, putAddress(text, 0, peer)).toString('latin1');
}
