// The recorded requests of the running gateway: the memory that workers write them to, and the file
// that is made of them.
//
// Control thread. The file has one JSON value per line: first a header, then one request each, oldest first.

import { randomFillSync } from 'node:crypto';
import type { Config } from '../../config/config.ts';
import { HASH_KEY_WORDS } from '../../core/telemetry/keyed-hash.ts';
import {
  createRecorderBuffer,
  RECORDER_HEADER_BYTES,
  recorderBytesPerWorker,
} from '../../core/telemetry/recorder-layout.ts';
import {
  decodeRequest,
  type RecordedRequest,
  readRecordings,
  recordingsTooLong,
} from '../../core/telemetry/recorder-reader.ts';
import type { RecorderSettings } from '../../core/telemetry/request-recorder.ts';

/** Version of the file's format; a reader refuses any other. */
export const RECORDING_VERSION = 1;

/** Fields whose values are hashed whatever the configuration says. */
const alwaysHashed: readonly string[] = ['authorization', 'proxy-authorization', 'cookie'];

/** First line of a recording. */
export interface RecordingHeader {
  /** RECORDING_VERSION. */
  portcullisRecording: number;
  /** When the file was made, RFC 3339 in UTC. */
  time: string;
  requests: number;
  /** Requests since the recorder began that are missing because their heads were too long for it. */
  tooLong: number;
  /** Lower-case names of the fields whose values are hashed. */
  hashedHeaders: string[];
}

/** Bytes of lines handed out at a time, so that other work gets its turn between two. */
const CHUNK_CHARACTERS = 64 * 1024;

/** One key per process: hashes of one process can be compared with one another and with nothing else. */
let processKey: Int32Array | undefined;

/**
 * What the workers of a configuration record with; null: nothing. The memory of `before` is used
 * further where the size is the same, so that a reload does not forget.
 */
export function recorderSettings(
  { recorder }: Pick<Config, 'recorder'>,
  before: RecorderSettings | null,
  workerCount: number,
): RecorderSettings | null {
  if (recorder === null) return null;
  processKey ??= randomFillSync(new Int32Array(HASH_KEY_WORDS));
  const bytes = recorderBytesPerWorker(recorder.bytes, workerCount);
  const known = before?.buffers;
  const buffers =
    known?.length === workerCount && known[0]!.byteLength === RECORDER_HEADER_BYTES + bytes
      ? known
      : Array.from({ length: workerCount }, () => createRecorderBuffer(bytes));
  return { buffers, key: processKey, redactHeaders: recorder.redactHeaders, maxAgeMs: recorder.maxAgeMs };
}

/** The file, in pieces of whole lines. `nowMs` is the time since 1970. */
export function* recordingLines(settings: RecorderSettings, nowMs: number): Generator<string> {
  const records = readRecordings(settings.buffers, nowMs - settings.maxAgeMs);
  let text = line({
    portcullisRecording: RECORDING_VERSION,
    time: new Date(nowMs).toISOString(),
    requests: records.length,
    tooLong: recordingsTooLong(settings.buffers),
    hashedHeaders: [...new Set([...alwaysHashed, ...settings.redactHeaders])],
  } satisfies RecordingHeader);
  for (const record of records) {
    text += line(decodeRequest(record) satisfies RecordedRequest);
    if (text.length < CHUNK_CHARACTERS) continue;
    yield text;
    text = '';
  }
  yield text;
}

function line(value: object): string {
  return `${JSON.stringify(value)}\n`;
}
