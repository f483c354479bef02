// The flight recorder's writer: keeps the last failed and slow exchanges of one worker.
//
// Owned by one packet worker, over shared memory that outlives it. Readers on other threads copy a
// record and check its sequence number before and after (flight-reader.ts), so writing takes no lock.
// Hot module: runs on the packet path for the exchanges worth keeping, and allocates nothing.

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
import type { LogSource } from './log-source.ts';

export { createFlightBuffer } from './flight-layout.ts';

/** Writes flight records of one worker. */
export class FlightRecorder {
  private readonly bytes: Uint8Array;
  private readonly halves: Uint16Array;
  private readonly words: Int32Array;
  private readonly floats: Float64Array;
  private readonly capacity: number;
  /**
   * Duration from which a good exchange is recorded as slow, in milliseconds; 0 records every one.
   * Follows the configuration: set when a snapshot is applied.
   */
  slowThresholdMs: number;

  /** Continues the recorder in `buffer` (see `createFlightBuffer`). */
  constructor(buffer: SharedArrayBuffer, slowThresholdMs = Number.POSITIVE_INFINITY) {
    this.bytes = new Uint8Array(buffer);
    this.halves = new Uint16Array(buffer);
    this.words = new Int32Array(buffer);
    this.floats = new Float64Array(buffer);
    this.capacity = recordCapacity(buffer);
    this.slowThresholdMs = slowThresholdMs;
  }

  /**
   * Whether an exchange is worth keeping: it failed, answered 5xx, or took long. A tunnel that ended
   * well is not slow, it was only used for long.
   */
  isNotable(source: LogSource): boolean {
    if (source.reason !== 0 || source.status >= 500) return true;
    return source.durationMs >= this.slowThresholdMs && !source.tunnel;
  }

  /** Records an exchange if it is worth keeping, and says whether it was. */
  recordIfNotable(source: LogSource): boolean {
    if (!this.isNotable(source)) return false;
    this.record(source);
    return true;
  }

  /** Writes one record over the oldest. */
  record(source: LogSource): void {
    const number = this.floats[0];
    const start = FLIGHT_HEADER_BYTES + (number % this.capacity) * RECORD_BYTES;
    const word = start >> 2;
    // A predecessor that died while writing has left the sequence odd; it stays odd then. Atomic
    // read-modify-writes keep the plain stores between them from moving out, also on arm64.
    const odd = Atomics.or(this.words, word + RecordWord.SEQUENCE, 1) | 1;
    this.putNumbers(source, word, start >> 3, number + 1);
    this.putTexts(source, start);
    Atomics.exchange(this.words, word + RecordWord.SEQUENCE, (odd + 1) | 0);
    this.floats[0] = number + 1;
  }

  private putNumbers(source: LogSource, word: number, float: number, number: number): void {
    const { words, floats } = this;
    words[word + RecordWord.EPOCH] = source.epoch;
    words[word + RecordWord.STATUS] = source.status;
    words[word + RecordWord.REASON] = source.reason;
    words[word + RecordWord.DETAIL] = source.detail;
    words[word + RecordWord.ERRNO] = source.errno;
    words[word + RecordWord.ATTEMPTS] = source.attempts;
    words[word + RecordWord.RETRY_END] = source.retryEnd;
    words[word + RecordWord.ATTEMPT_FAILURE] = source.attemptFailure;
    words[word + RecordWord.FLAGS] =
      (source.generated ? RecordFlag.GENERATED : 0) |
      (source.reusedConnection ? RecordFlag.REUSED_CONNECTION : 0) |
      (source.responseStarted ? RecordFlag.RESPONSE_STARTED : 0) |
      (source.responseComplete ? RecordFlag.RESPONSE_COMPLETE : 0) |
      (source.tunnel ? RecordFlag.TUNNEL : 0) |
      (source.hasMesh ? meshFlags(source) : 0);
    words[word + RecordWord.PROTOCOL] = source.protocol;
    words[word + RecordWord.CLIENT_FAMILY] = source.client.peerFamily;
    words[word + RecordWord.CLIENT_PORT] = source.client.peerPort;
    words[word + RecordWord.CLIENT_ADDRESS] = source.client.peer0;
    words[word + RecordWord.CLIENT_ADDRESS + 1] = source.client.peer1;
    words[word + RecordWord.CLIENT_ADDRESS + 2] = source.client.peer2;
    words[word + RecordWord.CLIENT_ADDRESS + 3] = source.client.peer3;
    words[word + RecordWord.UPSTREAM_USES] = source.upstreamConnectionUses;
    floats[float + RecordFloat.NUMBER] = number;
    floats[float + RecordFloat.WALL_MS] = source.wallMs;
    floats[float + RecordFloat.DURATION_MS] = source.durationMs;
    floats[float + RecordFloat.CONNECT_MS] = source.connectMs;
    floats[float + RecordFloat.UPSTREAM_MS] = source.upstreamMs;
    floats[float + RecordFloat.BYTES_RECEIVED] = source.bytesReceived;
    floats[float + RecordFloat.BYTES_SENT] = source.bytesSent;
    floats[float + RecordFloat.UPSTREAM_AGE_MS] = source.upstreamConnectionAgeMs;
  }

  private putTexts(source: LogSource, start: number): void {
    const { memory, listener, route, backend, endpoint, workload, peer, policy } = source;
    let at = start + TEXTS_OFFSET;
    at = this.putText(start, at, RecordText.REQUEST_ID, memory, source.requestIdOffset, source.requestIdLength);
    at = this.putText(start, at, RecordText.METHOD, memory, source.methodOffset, source.methodLength);
    at = this.putText(start, at, RecordText.HOST, memory, source.hostOffset, source.hostLength);
    at = this.putText(start, at, RecordText.LISTENER, listener, 0, listener.length);
    at = this.putText(start, at, RecordText.ROUTE, route, 0, route.length);
    at = this.putText(start, at, RecordText.BACKEND, backend, 0, backend.length);
    at = this.putText(start, at, RecordText.ENDPOINT, endpoint, 0, endpoint.length);
    at = this.putText(start, at, RecordText.WORKLOAD, workload, 0, workload.length);
    at = this.putText(start, at, RecordText.PEER, peer, 0, peer.length);
    at = this.putText(start, at, RecordText.POLICY, policy, 0, policy.length);
    this.putText(start, at, RecordText.PATH, memory, source.pathOffset, source.pathLength);
  }

  /** Stores a text at `at`, cut to its maximum, with both lengths; returns where the next one goes. */
  private putText(start: number, at: number, text: number, source: Uint8Array, offset: number, length: number): number {
    const most = text === RecordText.PATH ? start + RECORD_BYTES - at : recordTextBytesMax[text];
    const stored = Math.min(length, most);
    for (let i = 0; i < stored; i++) this.bytes[at + i] = source[offset + i];
    const half = start >> 1;
    this.halves[half + STORED_LENGTHS + text] = stored;
    this.halves[half + TRUE_LENGTHS + text] = Math.min(length, 0xffff);
    return at + stored;
  }
}

/** What of an exchange of a mesh needs no text of its own. */
function meshFlags({ service, isInbound }: LogSource): number {
  return (isInbound ? RecordFlag.INBOUND : RecordFlag.OUTBOUND) | (service.length > 0 ? RecordFlag.SERVICE : 0);
}
