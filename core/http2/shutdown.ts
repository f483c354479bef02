// How HTTP/2 connections end: errors, GOAWAY, draining, deadlines, and a last wait for the peer.
//
//   in use --error--> GOAWAY with its code ----\
//          --drain--> GOAWAY notice, then the last stream's number, then the last stream ends
//          --idle---> GOAWAY NO_ERROR ----------+--> our side finished, linger --> closed
//          --peer gone-------------------------------------------------------> closed
//
// A connection is only ever torn down from `end`, at the end of a batch, or from its timer.
// Owned by one worker. Hot module: no allocation, exception, promise, closure or log line.
// Spec: RFC 9113 §5.4.1 (connection errors), §6.8 (GOAWAY), §9.1 (connection management).

import { Errno } from '../ffi/errno.ts';
import { FILL_AGAIN, FILL_END, FILL_ERROR } from '../io/input.ts';
import type { Reactor } from '../io/reactor.ts';
import { CloseCause, Counter } from '../telemetry/metrics.ts';
import * as errors from './errors.ts';
import * as frames from './frames.ts';
import type { Http2Output } from './output.ts';
import type { Http2Session } from './session.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { NO_ERROR, PROTOCOL_ERROR, ENHANCE_YOUR_CALM, SETTINGS_TIMEOUT, CANCEL } = errors.ErrorCode;
const { ERROR_CODE_MASK, errorCodeOf, frameErrorSentence } = errors;
const { GOAWAY_BYTES_MIN, writeGoaway } = frames;
const { HTTP2_GOAWAYS_SENT, HTTP2_GOAWAYS_SENT_ERROR } = Counter;

/** How long an ended connection waits for the peer to close: a reset would destroy what is on its way. */
const LINGER_MS = 2000;

/** How long after the notice new streams are still taken: those that were on their way. */
const NOTICE_MS = 1000;

const DISCARDS_PER_TURN = 8;
const STREAM_ID_MAX = 0x7fff_ffff;

const encoder = new TextEncoder();
const noText = new Uint8Array(0);
/** Texts of GOAWAY as bytes, made when first needed. */
const texts = new Map<string, Uint8Array>();

function textBytes(text: string): Uint8Array {
  if (text === '') return noText;
  let bytes = texts.get(text);
  if (bytes === undefined) {
    bytes = encoder.encode(text);
    texts.set(text, bytes);
  }
  return bytes;
}

/** The earlier of two deadlines, 0 being none. */
function earlier(a: number, b: number): number {
  if (a === 0) return b;
  return b === 0 || a < b ? a : b;
}

export class Shutdowns {
  private readonly reactor: Reactor;
  private readonly output: Http2Output;
  private readonly counters: Float64Array;

  constructor(reactor: Reactor, output: Http2Output, counters: Float64Array) {
    this.reactor = reactor;
    this.output = output;
    this.counters = counters;
  }

  // -- errors -------------------------------------------------------------------------------

  /** Ends a connection with an error code at the end of the batch; `text` goes into GOAWAY. The first error counts. */
  fail(session: Http2Session, code: number, text: string): void {
    if (session.fatal !== 0) return;
    session.fatal = code === NO_ERROR ? PROTOCOL_ERROR : code;
    session.reasonText = text;
    session.closeCause = CloseCause.PROTOCOL_ERROR;
    this.output.askBatchEnd(session);
  }

  /** The same for an error of errors.ts. */
  failFrame(session: Http2Session, error: number): void {
    this.fail(session, errorCodeOf(error), frameErrorSentence(error));
  }

  /** The peer has finished sending, or the socket has failed: nobody waits for what is in progress. */
  peerLeft(session: Http2Session, cause: number): void {
    session.closeCause = cause;
    this.output.fail(session, session.connection.errno);
  }

  // -- the orderly way -------------------------------------------------------------------------

  /** Tells the peer that the connection will end, without refusing what is on its way already. */
  announce(session: Http2Session): void {
    if (session.goawayNoticeSent || session.goawaySent || session.fatal !== 0 || session.broken) return;
    session.goawayNoticeSent = true;
    this.putGoaway(session, STREAM_ID_MAX, NO_ERROR, '');
    session.goawayDeadlineMs = this.reactor.nowMs + NOTICE_MS;
    this.arm(session);
  }

  /** Takes no further streams, and closes when the last one has ended; at once if there is none. */
  finish(session: Http2Session, cause: number): void {
    if (session.fatal !== 0 || session.broken || session.closing) return;
    if (!session.goawaySent) {
      session.goawaySent = true;
      session.goawayLastId = session.lastPeerStreamId;
      session.goawayDeadlineMs = 0;
      session.closeCause = cause;
      this.putGoaway(session, session.lastPeerStreamId, NO_ERROR, session.reasonText);
    }
    if (session.streamCount === 0) {
      session.closing = true;
      this.output.askBatchEnd(session);
    }
  }

  private putGoaway(session: Http2Session, lastId: number, code: number, text: string): void {
    const debug = textBytes(text);
    this.counters[code === NO_ERROR ? HTTP2_GOAWAYS_SENT : HTTP2_GOAWAYS_SENT_ERROR]++;
    const at = this.output.reserve(session, GOAWAY_BYTES_MIN + debug.length);
    if (at !== 0) this.output.commit(session, writeGoaway(this.reactor.memory, at, lastId, code, debug));
  }

  /** The last stream has ended. */
  becameIdle(session: Http2Session): void {
    if (session.lingering) return;
    if (session.goawaySent) {
      this.finish(session, session.closeCause);
      return;
    }
    const { idleTimeoutMs } = session.limits;
    if (idleTimeoutMs > 0) {
      session.idleDeadlineMs = this.reactor.nowMs + idleTimeoutMs;
      this.arm(session);
    }
    session.role.sessionIdle(session);
  }

  /** Ends a connection now, with everything in it: shutdown, drain timeout. */
  terminate(session: Http2Session): void {
    if (!session.lingering && !session.broken) {
      session.closeCause = CloseCause.DRAIN;
      this.resetStreams(session);
      if (!session.goawaySent) this.putGoaway(session, session.lastPeerStreamId, NO_ERROR, '');
      this.output.flush(session);
    }
    this.close(session);
  }

  // -- the end -----------------------------------------------------------------------------------

  /** What carried the connection has gone: closes it now, with everything in it. */
  lost(session: Http2Session): void {
    session.closeCause = CloseCause.CLIENT_RESET;
    session.broken = true;
    this.close(session);
  }

  /** At the end of a batch: tears down a connection that has failed or is finished. */
  end(session: Http2Session): void {
    if (session.lingering && !session.broken) {
      this.output.flush(session);
      this.flushed(session);
      return;
    }
    const { broken } = session;
    if (session.fatal !== 0 && !broken)
      this.putGoaway(session, lastIdOf(session), session.fatal & ERROR_CODE_MASK, session.reasonText);
    this.resetStreams(session);
    if (!broken) this.output.flush(session);
    // Nothing of ours that an upstream has not read yet is worth waiting for.
    if (session.broken || (!session.isServer && session.connection.outputBytes === 0)) {
      this.close(session);
      return;
    }
    session.lingering = true;
    session.connection.state = session.role.lingerState;
    this.reactor.input.free(session.connection);
    this.reactor.setTimer(session.connection, LINGER_MS);
    this.noteStall(session);
    this.flushed(session);
  }

  /** Everything has been given to the socket, or not yet: finishes our side when it has. */
  flushed(session: Http2Session): void {
    const { connection } = session;
    if (connection.outputBytes > 0 || connection.writeEnded) return;
    connection.writeEnded = true;
    this.reactor.setTimer(connection, LINGER_MS);
    this.reactor.shutdownWrite(connection);
    connection.readReady = true;
    this.reactor.enqueue(connection);
  }

  /** Throws away what the peer still sends, until it closes. */
  discard(session: Http2Session): void {
    const { reactor } = this;
    const { connection } = session;
    for (let turn = 0; turn < DISCARDS_PER_TURN; turn++) {
      if (!connection.readReady) return;
      const status = reactor.input.fill(connection);
      if (status === FILL_AGAIN) return;
      if (status === FILL_END || status === FILL_ERROR) {
        this.close(session);
        return;
      }
      reactor.input.free(connection);
    }
    reactor.enqueue(connection);
  }

  /** Tells the role of every stream that it is over. */
  private resetStreams(session: Http2Session): void {
    session.closing = true;
    while (session.streams !== null) {
      const stream = session.streams.any()!;
      stream.reset = true;
      session.role.streamReset(stream, session.fatal === 0 ? CANCEL : session.fatal & ERROR_CODE_MASK);
    }
  }

  private close(session: Http2Session): void {
    const { connection } = session;
    this.resetStreams(session);
    this.output.drop(session);
    if (session.blockBuffer !== 0) this.reactor.arena.free(session.blockBuffer);
    session.blockBuffer = 0;
    if (session.closeCause === CloseCause.CLIENT && connection.errno !== 0) {
      session.closeCause = connection.errno === Errno.ENOBUFS ? CloseCause.SHED : CloseCause.CLIENT_RESET;
    }
    session.role.sessionClosed(connection, session, session.closeCause, connection.errno);
    this.reactor.close(connection, session.broken && connection.errno !== 0);
  }

  // -- deadlines -----------------------------------------------------------------------------------

  /** A frame has begun that is no DATA: the rest of it, and of its header block, must come in time. */
  blockBegun(session: Http2Session): void {
    if (session.blockDeadlineMs > 0) return;
    session.blockDeadlineMs = this.reactor.nowMs + session.limits.headTimeoutMs;
    this.arm(session);
  }

  /** Sets the deadline for the socket to take more, if it has not taken everything. */
  noteStall(session: Http2Session): void {
    if (session.connection.outputBytes === 0) {
      session.stallDeadlineMs = 0;
    } else if (session.stallDeadlineMs === 0) {
      session.stallDeadlineMs = this.reactor.nowMs + session.limits.stallTimeoutMs;
      if (!session.lingering) this.arm(session);
    }
  }

  /** Sets the connection's timer to the next deadline. Later ones than the timer's are looked at when it runs out. */
  arm(session: Http2Session): void {
    let nextMs = earlier(session.handshakeDeadlineMs, session.blockDeadlineMs);
    nextMs = earlier(nextMs, session.idleDeadlineMs);
    nextMs = earlier(nextMs, session.stallDeadlineMs);
    nextMs = earlier(nextMs, session.goawayDeadlineMs);
    nextMs = earlier(nextMs, session.pingDeadlineMs);
    if (nextMs === 0 || (session.timerMs > 0 && session.timerMs <= nextMs)) return;
    session.timerMs = nextMs;
    this.reactor.setTimer(session.connection, Math.max(0, Math.ceil(nextMs - this.reactor.nowMs)));
  }

  /** The connection's timer has run out. */
  expired(session: Http2Session): void {
    const { nowMs } = this.reactor;
    session.timerMs = 0;
    if (session.lingering) {
      this.lingered(session);
      return;
    }
    if (isDue(session.stallDeadlineMs, nowMs) || isDue(session.pingDeadlineMs, nowMs)) {
      session.closeCause = CloseCause.TIMEOUT;
      this.output.fail(session, 0);
    } else if (isDue(session.handshakeDeadlineMs, nowMs)) {
      this.fail(
        session,
        SETTINGS_TIMEOUT,
        'The preface, or the acknowledgement of our settings, has not come in time.',
      );
      session.closeCause = CloseCause.TIMEOUT;
    } else if (isDue(session.blockDeadlineMs, nowMs)) {
      this.fail(session, ENHANCE_YOUR_CALM, 'The rest of a frame or header block has not come in time.');
      session.closeCause = CloseCause.TIMEOUT;
    } else if (isDue(session.goawayDeadlineMs, nowMs)) {
      this.finish(session, CloseCause.DRAIN);
    } else if (isDue(session.idleDeadlineMs, nowMs)) {
      // Who is still reading the last response is not idle.
      if (session.connection.outputBytes > 0) session.idleDeadlineMs = nowMs + session.limits.idleTimeoutMs;
      else this.finish(session, CloseCause.IDLE_TIMEOUT);
    }
    // One that ends has a timer of its own.
    if (session.fatal === 0 && !session.closing && !session.broken) this.arm(session);
  }

  /** A connection has waited for its end: longer if the peer is still taking what it was sent before. */
  private lingered(session: Http2Session): void {
    const { nowMs } = this.reactor;
    const { connection, stallDeadlineMs } = session;
    if (session.fatal === 0 && connection.outputBytes > 0 && stallDeadlineMs > nowMs) {
      this.reactor.setTimer(connection, Math.ceil(stallDeadlineMs - nowMs));
      return;
    }
    session.broken = true;
    this.close(session);
  }
}

function isDue(deadlineMs: number, nowMs: number): boolean {
  return deadlineMs > 0 && deadlineMs <= nowMs;
}

/** Last stream for a GOAWAY frame: never above what an earlier one has said (RFC 9113 §6.8). */
function lastIdOf(session: Http2Session): number {
  return Math.min(session.lastPeerStreamId, session.goawayLastId);
}
