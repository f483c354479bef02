// Limits on frames that cost us more than their sender: counts per second and connection.
//
// A peer over a limit gets GOAWAY with ENHANCE_YOUR_CALM and a sentence that says which; other connections do
// not notice. Streams reset by the peer (CVE-2023-44487) and streams that the peer makes us reset
// (CVE-2025-8671) count together: either way a request was begun for nothing.
// Owned by one worker. Hot module: no allocation.
// Spec: RFC 9113 §10.5 (denial of service).

import type { Reactor } from '../io/reactor.ts';
import { Counter } from '../telemetry/metrics.ts';
import * as errors from './errors.ts';
import type { Http2Session } from './session.ts';
import type { Shutdowns } from './shutdown.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { ENHANCE_YOUR_CALM } = errors.ErrorCode;
const { HTTP2_FLOODS } = Counter;

/** Kinds of floods; the first seven are frames without use. Indexes into counters: append only. */
export const FloodKind = {
  PING: 0,
  SETTINGS: 1,
  PRIORITY: 2,
  EMPTY_DATA: 3,
  WINDOW_UPDATE: 4,
  OTHER: 5,
  CONTINUATION: 6,
  RESET: 7,
} as const;

/** Label value of each kind. */
export const floodKindNames: readonly string[] = Object.keys(FloodKind).map((name) => name.toLowerCase());

const sentences: readonly string[] = [
  'Too many PING frames.',
  'Too many SETTINGS frames.',
  'Too many PRIORITY frames.',
  'Too many empty DATA frames.',
  'Too many WINDOW_UPDATE frames.',
  'Too many frames without use.',
  'A header block is too large, or in too many CONTINUATION frames.',
  'Too many streams were reset.',
];

const PERIOD_MS = 1000;

export class Floods {
  private readonly reactor: Reactor;
  private readonly shutdowns: Shutdowns;
  private readonly counters: Float64Array;

  constructor(reactor: Reactor, shutdowns: Shutdowns, counters: Float64Array) {
    this.reactor = reactor;
    this.shutdowns = shutdowns;
    this.counters = counters;
  }

  /** Counts a frame without use. */
  control(session: Http2Session, kind: number): void {
    this.startPeriod(session);
    if (++session.rateControls > session.limits.controlFramesPerSecondMax) this.flood(session, kind);
  }

  /** Counts a stream that the peer has reset. A server may reset what it likes. */
  receivedReset(session: Http2Session): void {
    if (session.isServer) this.causedReset(session);
  }

  /** Counts a stream that we had to reset by the peer's fault. */
  causedReset(session: Http2Session): void {
    this.startPeriod(session);
    if (++session.rateResets > session.limits.resetsPerSecondMax) this.flood(session, FloodKind.RESET);
  }

  /** Ends a connection for a flood. */
  flood(session: Http2Session, kind: number): void {
    if (session.fatal !== 0) return;
    this.counters[HTTP2_FLOODS + kind]++;
    this.shutdowns.fail(session, ENHANCE_YOUR_CALM, sentences[kind]);
  }

  private startPeriod(session: Http2Session): void {
    const { nowMs } = this.reactor;
    if (nowMs - session.rateStartMs < PERIOD_MS) return;
    session.rateStartMs = nowMs;
    session.rateResets = 0;
    session.rateControls = 0;
  }
}
