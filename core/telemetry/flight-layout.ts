// Layout of the flight recorder's shared memory: a header and a ring of records of fixed size.
//
// Written by one packet worker (flight-recorder.ts), read by the control thread (flight-reader.ts).
// A record is numbers at fixed places and, behind them, its texts one after the other: each cut to
// its own maximum, the path to whatever is left, and all with their true lengths beside them.

/** Bytes of one record. */
export const RECORD_BYTES = 1024;

/** Records of a worker unless told otherwise: 4 MiB, touched as they are written. */
const RECORD_COUNT_DEFAULT = 4096;

/** Bytes before the first record; the first eight hold the number of records written so far. */
export const FLIGHT_HEADER_BYTES = 64;

/** 32-bit words of a record. */
export const RecordWord = {
  /** Odd while the record is being written. */
  SEQUENCE: 0,
  EPOCH: 1,
  /** RetryEnd, and the last attempt that was not passed on (exchange/retry-outcome.ts). */
  RETRY_END: 18,
  ATTEMPT_FAILURE: 19,
  STATUS: 20,
  REASON: 21,
  DETAIL: 22,
  ERRNO: 23,
  ATTEMPTS: 24,
  FLAGS: 25,
  PROTOCOL: 26,
  CLIENT_FAMILY: 27,
  CLIENT_PORT: 28,
  /** Four words, network order within each. */
  CLIENT_ADDRESS: 29,
  UPSTREAM_USES: 33,
} as const;

/** 64-bit floats of a record, by index. */
export const RecordFloat = {
  /** Position in the sequence of all records of this worker, from 1. */
  NUMBER: 1,
  WALL_MS: 2,
  DURATION_MS: 3,
  CONNECT_MS: 4,
  UPSTREAM_MS: 5,
  BYTES_RECEIVED: 6,
  BYTES_SENT: 7,
  UPSTREAM_AGE_MS: 8,
} as const;

/** Bits of `RecordWord.FLAGS`. */
export const RecordFlag = {
  GENERATED: 1,
  REUSED_CONNECTION: 2,
  RESPONSE_STARTED: 4,
  RESPONSE_COMPLETE: 8,
  TUNNEL: 16,
  /** The exchange of a workload of a node proxy, begun by it or come to it. */
  OUTBOUND: 32,
  INBOUND: 64,
  /** Its listener is that of the service that was meant. */
  SERVICE: 128,
} as const;

/** Texts of a record, in the order in which they are stored; the path is last and takes the rest. */
export const RecordText = {
  REQUEST_ID: 0,
  METHOD: 1,
  HOST: 2,
  LISTENER: 3,
  ROUTE: 4,
  BACKEND: 5,
  ENDPOINT: 6,
  WORKLOAD: 7,
  PEER: 8,
  POLICY: 9,
  PATH: 10,
} as const;

/**
 * Most stored bytes of each text but the path, by `RecordText`. The endpoint fits `[IPv6]:port`; names of a mesh are
 * made of several names of Kubernetes.
 */
export const recordTextBytesMax: Uint16Array = Uint16Array.of(64, 16, 64, 96, 96, 96, 48, 96, 128, 96);

/** 16-bit indexes where the stored lengths and the true lengths of the texts begin. */
export const STORED_LENGTHS = 68;
export const TRUE_LENGTHS = 79;

/** Byte of a record at which its texts begin. */
export const TEXTS_OFFSET = 184;

/** A zeroed flight recorder for one worker; `records` is 1 or more. */
export function createFlightBuffer(records = RECORD_COUNT_DEFAULT): SharedArrayBuffer {
  if (!Number.isInteger(records) || records < 1)
    throw new RangeError(`a flight recorder needs records, not ${records}`);
  return new SharedArrayBuffer(FLIGHT_HEADER_BYTES + records * RECORD_BYTES);
}

/** Number of records that a flight recorder holds. */
export function recordCapacity(buffer: SharedArrayBuffer): number {
  return Math.floor((buffer.byteLength - FLIGHT_HEADER_BYTES) / RECORD_BYTES);
}
