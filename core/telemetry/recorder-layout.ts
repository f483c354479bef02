// Layout of a request recorder's shared memory: a header and a ring of records of different lengths.
//
// Written by one packet worker (request-recorder.ts), read by the control thread (recorder-reader.ts).
// Positions are byte counters that wrap at 2^32; `position & mask` is a place in the ring, and only
// their differences matter. A record never wraps around the end of the ring: what is left there is
// filled up with a record that says nothing.

/** Words of the ring's header. */
export const RecorderWord = {
  /** Position behind the newest record. */
  HEAD: 0,
  /** Position of the oldest record. Moved before its bytes are overwritten. */
  TAIL: 1,
  /** Requests whose heads were too long for the ring. */
  TOO_LONG: 2,
} as const;

/** Bytes before the first record. */
export const RECORDER_HEADER_BYTES = 64;

/** Words of a record. */
export const RequestWord = {
  /** Bytes of the record, a multiple of 8. */
  LENGTH: 0,
  /** Its own position: tells it from another that has taken its place. */
  POSITION: 1,
  EPOCH: 2,
  /** Status that the client got; 0: none yet. */
  STATUS: 3,
  REASON: 4,
  /** Bit set of RequestFlag. */
  FLAGS: 5,
  /** 10, 11 or 20: HTTP/1.0, HTTP/1.1, HTTP/2. */
  VERSION: 6,
  FAMILY: 7,
  PORT: 8,
  /** Four words, network order within each. */
  ADDRESS: 9,
  TEXT_LENGTH: 13,
  /** A 64-bit float, milliseconds since 1970. */
  WALL_MS: 14,
  WORDS: 16,
} as const;

/** Bits of `RequestWord.FLAGS`. */
export const RequestFlag = {
  /** Fills the end of the ring; only its length counts. */
  FILLER: 1,
  /** The exchange is over: status and reason are final. */
  ENDED: 2,
  /** The response was made by the gateway. */
  GENERATED: 4,
  TLS: 8,
} as const;

/** Bytes before a record's text. */
export const RECORD_TEXT_OFFSET: number = RequestWord.WORDS * 4;

/**
 * Lines of a record's text, each ended by a line feed, which none of them can contain; behind them is
 * one line `name:value` per field of the head.
 */
export const RecordLine = {
  METHOD: 0,
  /** host[:port] as the client named it; may be empty. */
  AUTHORITY: 1,
  /** Path with query. */
  TARGET: 2,
  LISTENER: 3,
  /** Route name and rule number; empty: none. */
  ROUTE: 4,
  /** Weights of the backends that the rule chooses among, `name=weight,name=weight`; UTF-8, as names are. */
  SHARES: 5,
  BACKEND: 6,
  /** Name by SNI. */
  SERVER_NAME: 7,
  /** SHA-256 of a verified client certificate and its names, with spaces between them. */
  CERTIFICATE: 8,
  FIELDS: 9,
} as const;

/** Stands in for a secret, with 16 hexadecimal digits behind it. */
export const HASHED_PREFIX = 'hashed:';

/** Smallest ring of one worker. */
const RECORDER_BYTES_MIN = 64 * 1024;

/** Data bytes of each worker's ring so that all together have at most `totalBytes`: a power of two. */
export function recorderBytesPerWorker(totalBytes: number, workerCount: number): number {
  const share = Math.max(RECORDER_BYTES_MIN, Math.floor(totalBytes / workerCount));
  return 2 ** Math.min(30, Math.floor(Math.log2(share)));
}

/** An empty ring of `bytes` data bytes, a power of two from RECORDER_BYTES_MIN to 2^30 (RangeError otherwise). */
export function createRecorderBuffer(bytes: number): SharedArrayBuffer {
  if (bytes < RECORDER_BYTES_MIN || bytes > 2 ** 30 || (bytes & (bytes - 1)) !== 0) {
    throw new RangeError(`a recorder's size must be a power of two from 64 KiB to 1 GiB, not ${bytes}`);
  }
  return new SharedArrayBuffer(RECORDER_HEADER_BYTES + bytes);
}
