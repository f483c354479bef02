// What the peer of an HTTP/2 connection has announced in its SETTINGS frames.
// One object per connection, reused; changed only by `applySettings`. Hot module: no allocation.
// Spec: RFC 9113 §6.5 (settings), RFC 8441 §3 (ENABLE_CONNECT_PROTOCOL), RFC 9218 §2.1 (NO_RFC7540_PRIORITIES).

import * as errors from './errors.ts';
import * as frames from './frames.ts';
import { readWord } from './frames.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { FRAME_BYTES_MAX_DEFAULT, FRAME_BYTES_MAX_LIMIT, SETTING_BYTES } = frames;
const {
  ENABLE_CONNECT_INVALID,
  ENABLE_PUSH_INVALID,
  INITIAL_WINDOW_TOO_LARGE,
  MAX_FRAME_SIZE_INVALID,
  NO_PRIORITIES_INVALID,
  SETTINGS_TOO_MANY,
} = errors.FrameError;

/** Identifiers of settings (RFC 9113 §6.5.2, RFC 8441 §3, RFC 9218 §2.1). */
export const SettingsId = {
  HEADER_TABLE_SIZE: 0x1,
  ENABLE_PUSH: 0x2,
  MAX_CONCURRENT_STREAMS: 0x3,
  INITIAL_WINDOW_SIZE: 0x4,
  MAX_FRAME_SIZE: 0x5,
  MAX_HEADER_LIST_SIZE: 0x6,
  ENABLE_CONNECT_PROTOCOL: 0x8,
  NO_RFC7540_PRIORITIES: 0x9,
} as const;

const {
  ENABLE_CONNECT_PROTOCOL,
  ENABLE_PUSH,
  HEADER_TABLE_SIZE,
  INITIAL_WINDOW_SIZE,
  MAX_CONCURRENT_STREAMS,
  MAX_FRAME_SIZE,
  MAX_HEADER_LIST_SIZE,
  NO_RFC7540_PRIORITIES,
} = SettingsId;

/**
 * Most settings in one frame. There are eight, and clients add one or two meaningless ones; a frame of
 * thousands is an attack (CVE-2020-11080). nghttp2 draws the line at 32.
 */
export const SETTINGS_COUNT_MAX = 64;

/** The largest value that is kept: larger ones mean no more than this. Also the initial "no limit". */
const UNLIMITED = 0x7fff_ffff;

/** Values of RFC 9113 §6.5.2 before any SETTINGS frame. */
export const HEADER_TABLE_BYTES_DEFAULT = 4096;
const INITIAL_WINDOW_BYTES_DEFAULT = 65_535;

/** The settings of one peer, that is, what we may send to it. Values are at most UNLIMITED. */
export class PeerSettings {
  /** Limit of the dynamic table of our header encoder. */
  headerTableBytes = HEADER_TABLE_BYTES_DEFAULT;
  /**
   * The smallest headerTableBytes that the last frame went through, its last value included: an encoder
   * has to announce that one too (RFC 7541 §4.2). Equal to headerTableBytes if the frame did not mention it.
   */
  headerTableBytesLeast = HEADER_TABLE_BYTES_DEFAULT;
  /** The peer takes pushed streams (clients only; we push none). */
  enablePush = true;
  /** Streams that we may have open at a time. 0 is possible and not an error. */
  maxConcurrentStreams = UNLIMITED;
  /** Flow-control window of a new stream. A change also shifts the windows of open streams (§6.9.2). */
  initialWindowBytes = INITIAL_WINDOW_BYTES_DEFAULT;
  /** Largest payload of a frame that we send. */
  frameBytesMax = FRAME_BYTES_MAX_DEFAULT;
  /** Largest header list that we should send (advice; counted with 32 bytes per field). */
  headerListBytesMax = UNLIMITED;
  /** The peer, a server, takes extended CONNECT (RFC 8441). */
  enableConnectProtocol = false;

  /** Back to the values before the first SETTINGS frame, for the next connection. */
  reset(): void {
    this.headerTableBytes = HEADER_TABLE_BYTES_DEFAULT;
    this.headerTableBytesLeast = HEADER_TABLE_BYTES_DEFAULT;
    this.enablePush = true;
    this.maxConcurrentStreams = UNLIMITED;
    this.initialWindowBytes = INITIAL_WINDOW_BYTES_DEFAULT;
    this.frameBytesMax = FRAME_BYTES_MAX_DEFAULT;
    this.headerListBytesMax = UNLIMITED;
    this.enableConnectProtocol = false;
  }
}

/** Checks and stores one setting; `value` has 32 bits, so negative numbers stand for those from 2^31. */
function applySetting(settings: PeerSettings, id: number, value: number, fromServer: boolean): number {
  const clamped = value < 0 ? UNLIMITED : value;
  const flag = value === 0 || value === 1;
  switch (id) {
    case HEADER_TABLE_SIZE:
      settings.headerTableBytes = clamped;
      if (clamped < settings.headerTableBytesLeast) settings.headerTableBytesLeast = clamped;
      return 0;
    case ENABLE_PUSH:
      // RFC 9113 §6.5.2: a server never sets it to 1, and a client that sees that ends the connection.
      if (!flag || (fromServer && value === 1)) return ENABLE_PUSH_INVALID;
      settings.enablePush = value === 1;
      return 0;
    case MAX_CONCURRENT_STREAMS:
      settings.maxConcurrentStreams = clamped;
      return 0;
    case INITIAL_WINDOW_SIZE:
      if (value < 0) return INITIAL_WINDOW_TOO_LARGE;
      settings.initialWindowBytes = value;
      return 0;
    case MAX_FRAME_SIZE:
      if (value < FRAME_BYTES_MAX_DEFAULT || value > FRAME_BYTES_MAX_LIMIT) return MAX_FRAME_SIZE_INVALID;
      settings.frameBytesMax = value;
      return 0;
    case MAX_HEADER_LIST_SIZE:
      settings.headerListBytesMax = clamped;
      return 0;
    case ENABLE_CONNECT_PROTOCOL:
      if (!flag || (settings.enableConnectProtocol && value === 0)) return ENABLE_CONNECT_INVALID;
      settings.enableConnectProtocol = value === 1;
      return 0;
    case NO_RFC7540_PRIORITIES:
      return flag ? 0 : NO_PRIORITIES_INVALID;
    default:
      // RFC 9113 §6.5.2: unknown settings are ignored.
      return 0;
  }
}

/**
 * Applies the payload of a SETTINGS frame that is no acknowledgement, at [at, at + length); `checkFrame`
 * has passed and all of it has arrived. `fromServer`: the peer is an upstream.
 *
 * Settings take effect in their order (RFC 9113 §6.5.3), so compare `initialWindowBytes` from before and
 * after to shift the windows of open streams. Returns 0 or an error of the connection, after which
 * the settings may be half applied.
 */
export function applySettings(
  memory: Uint8Array,
  at: number,
  length: number,
  settings: PeerSettings,
  fromServer: boolean,
): number {
  if (length > SETTINGS_COUNT_MAX * SETTING_BYTES) return SETTINGS_TOO_MANY;
  const end = (at + length) | 0;
  settings.headerTableBytesLeast = UNLIMITED;
  for (let i = at | 0; i < end; i = (i + SETTING_BYTES) | 0) {
    const id = (memory[i] << 8) | memory[i + 1];
    const error = applySetting(settings, id, readWord(memory, i + 2), fromServer);
    if (error !== 0) return error;
  }
  if (settings.headerTableBytesLeast > settings.headerTableBytes) {
    settings.headerTableBytesLeast = settings.headerTableBytes;
  }
  return 0;
}
