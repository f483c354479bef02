// One HTTP/2 connection as plain data, whichever side we are on.
//
// Small when idle: header tables, the stream table and output blocks come with the first request,
// and what is not state of the protocol goes back to a pool when the last stream has ended.
// Owned by one worker; changed only by the engine and its parts. Hot module: no allocation.
// Spec: RFC 9113 §3.4 (preface), §5.1.1 (stream numbers), §6.5 (settings), §6.8 (GOAWAY), §6.9 (flow control).

import type { Connection } from '../io/connection.ts';
import type { HpackDecoder } from './hpack-decoder.ts';
import type { HpackEncoder } from './hpack-encoder.ts';
import type { Http2Role } from './role.ts';
import { PeerSettings } from './settings.ts';
import type { Http2Stream, StreamTable } from './stream.ts';

/** Streams that we have reset lately: frames that were on their way are no errors. */
const RECENT_RESETS = 64;

/** What we announce and enforce on a connection. */
export interface Http2Limits {
  /** Streams that the peer may have open at a time; 0 towards a server, which opens none. */
  concurrentStreamsMax: number;
  streamWindowBytes: number;
  connectionWindowBytes: number;
  /** Streams that the peer may reset, or make us reset, in one second. */
  resetsPerSecondMax: number;
  /** Frames without use in one second. */
  controlFramesPerSecondMax: number;
  /** Header list, and compressed header block, of a message in bytes. */
  headBytesMax: number;
  headerCountMax: number;
  /** Time for the preface, for a header block, and for the acknowledgement of our settings. */
  headTimeoutMs: number;
  /** Time that a connection without streams is kept; 0: until its owner closes it. */
  idleTimeoutMs: number;
  /** Time in which the socket must take some of what it has been given. */
  stallTimeoutMs: number;
}

export class Http2Session {
  readonly connection: Connection;
  readonly role: Http2Role;
  readonly limits: Http2Limits;
  /** We are the server. */
  readonly isServer: boolean;
  readonly peer = new PeerSettings();
  decoder: HpackDecoder | null = null;
  encoder: HpackEncoder | null = null;
  /** Streams that are open or half-closed; null while there are none. */
  streams: StreamTable | null = null;
  /** Streams that the peer has opened and that are not closed. */
  peerStreams = 0;
  /** For the owner of a client session: whatever it needs to find its own state. */
  owner: object | null = null;

  // -- stream numbers ---------------------------------------------------------------
  /** Highest number that the peer has used. */
  lastPeerStreamId = 0;
  /** Number of the next stream that we open (clients: odd). */
  nextStreamId: number;

  // -- flow control -------------------------------------------------------------------
  sendWindowBytes = 65_535;
  receiveWindowBytes = 65_535;
  receiveDueBytes = 0;
  /** Streams that have bytes to send and wait for the connection, in order. */
  queueFirst: Http2Stream | null = null;
  queueLast: Http2Stream | null = null;
  queueLength = 0;
  /** The stream whose turn it is; others wait behind it. */
  turn: Http2Stream | null = null;
  turnBytes = 0;

  // -- settings and handshake -----------------------------------------------------------
  /** The client's preface has been seen (true from the start on our own connections to servers). */
  prefaceDone: boolean;
  /** The peer's first SETTINGS frame has been seen. */
  settingsReceived = false;
  /** Our settings frames that the peer has not acknowledged yet. */
  settingsUnacked = 0;

  // -- a header block that is not complete -------------------------------------------------
  /** Its stream, or 0; until it is complete nothing but its CONTINUATION frames may come (§6.10). */
  blockStreamId = 0;
  blockFlags = 0;
  /** Error that the frame it began with had, which must wait until the block is decoded; or 0. */
  blockError = 0;
  /** Arena block that joins the fragments; 0: none. */
  blockBuffer = 0;
  blockLength = 0;
  blockFrames = 0;

  // -- output of this batch ---------------------------------------------------------------
  /** Arena block with frames that have not been given to the socket; 0: none. */
  outBlock = 0;
  outLength = 0;
  /** Bytes of frames given to the socket, or queued for it, so far; modulo 2^32. */
  writtenBytes = 0;
  /** The reactor calls `batchEnd`. */
  batchEndAsked = false;

  // -- end ----------------------------------------------------------------------------------
  /** Errors end the connection at the end of the batch: an Http2 error (errors.ts), or 0. */
  fatal = 0;
  /** The socket has failed, or no buffer is left: nothing more can be sent. */
  broken = false;
  /** The last stream has ended and no further one is taken, or the connection is being torn down. */
  closing = false;
  /** Only waits for the peer to close. */
  lingering = false;
  /** A GOAWAY has been sent: with 2^31 - 1 (a notice), or with the number of the last stream. */
  goawayNoticeSent = false;
  goawaySent = false;
  /** Last stream that we act on; above it everything is ignored after `goawaySent`. */
  goawayLastId = 0x7fff_ffff;
  goawayReceived = false;
  /** Last of our streams that the peer acts on. */
  goawayReceivedLastId = 0x7fff_ffff;
  /** CloseCause for when it closes. */
  closeCause = 0;
  /** Text for the debug data of GOAWAY. */
  reasonText = '';

  // -- limits against abuse: counts of the present second -------------------------------------
  rateStartMs = 0;
  rateResets = 0;
  rateControls = 0;
  /** WINDOW_UPDATE frames that are paid for by DATA that we have sent. */
  updateCredit = 0;
  private recentCount = 0;
  private recent: Int32Array | null = null;

  // -- deadlines, monotonic milliseconds; 0: none ------------------------------------------------
  handshakeDeadlineMs = 0;
  blockDeadlineMs = 0;
  idleDeadlineMs = 0;
  stallDeadlineMs = 0;
  goawayDeadlineMs = 0;
  pingDeadlineMs = 0;
  /** Time for the answer to the last ping of ours, from when that has gone; and where it ends, like `writtenEnd` of a stream. */
  pingTimeoutMs = 0;
  pingEnd = 0;
  /** What the connection's timer is set to. */
  timerMs = 0;
  /** When the last frame came: for keep-alive pings of clients. */
  lastFrameMs = 0;

  constructor(connection: Connection, role: Http2Role, limits: Http2Limits) {
    this.connection = connection;
    this.role = role;
    this.limits = limits;
    this.isServer = role.isServer;
    this.nextStreamId = role.isServer ? 2 : 1;
    this.prefaceDone = !role.isServer;
  }

  /** Streams that are open or half-closed. */
  get streamCount(): number {
    return this.streams === null ? 0 : this.streams.count;
  }

  /**
   * A stream of ours that the peer's GOAWAY says it has not acted on, marked as reset; null: there is none (left).
   * To be called again after each, since what is done about one may end others.
   */
  takeUnacted(): Http2Stream | null {
    const { streams } = this;
    if (streams === null) return null;
    for (let slot = 0; slot < streams.capacity; slot++) {
      const stream = streams.at(slot);
      if (stream === null || stream.id <= this.goawayReceivedLastId || stream.reset) continue;
      stream.reset = true;
      return stream;
    }
    return null;
  }

  /** Stream with a number, or null. */
  stream(id: number): Http2Stream | null {
    return this.streams === null ? null : this.streams.get(id);
  }

  /** Whether no more streams are accepted or opened. */
  get isDraining(): boolean {
    return this.goawaySent || this.goawayReceived || this.goawayNoticeSent || this.fatal !== 0 || this.broken;
  }

  /** Remembers that we have reset a stream: what the peer sent before it knew is no error. */
  noteReset(id: number): void {
    // The first one on a connection; later ones find the ring.
    this.recent ??= new Int32Array(RECENT_RESETS);
    this.recent[this.recentCount++ & (RECENT_RESETS - 1)] = id;
  }

  /** Whether we have reset a stream lately. */
  wasReset(id: number): boolean {
    return this.recent?.includes(id) ?? false;
  }
}
