// The HTTP/2 connections of one worker to one endpoint, and the exchanges that wait for a stream on one.
//
// Streams go to the connection that has the fewest. A further connection is asked for before the last stream is
// taken, and whenever more exchanges wait than those being opened will carry. The queue is first-in-first-out
// and bounded; its exchanges keep their deadlines.
// Knows counts and order, no frames: core/exchange/http2-connections.ts opens and closes.
// Owned by one worker. Hot module: no allocation per request.
// Spec: RFC 9113 §5.1.2 (stream concurrency), §9.1 (connection management).

import type { Exchange } from '../exchange/exchange.ts';
import type { Http2Session } from '../http2/session.ts';
import type { Connection } from '../io/connection.ts';
import type { BackendHttp2Settings } from '../workers/snapshot.ts';
import type { Endpoint } from './endpoint.ts';

/** Most exchanges that wait for a stream to one endpoint; the next one is answered with 503. */
export const WAITING_MAX = 1024;

/** From this share of its streams on a connection counts as full for the question whether to open another. */
const FULL_SHARE = 0.8;

/** Highest stream number (RFC 9113 §5.1.1): a connection that has used it up takes no more streams. */
const STREAM_ID_MAX = 0x7fff_ffff;

/** One connection, from the attempt to connect until it is closed. */
export class Http2Member {
  readonly pool: Http2Pool;
  readonly connection: Connection;
  /** Null until the connection is established. */
  session: Http2Session | null = null;
  /** Streams opened so far. */
  uses = 0;
  /** Takes no more streams; closes when the last one has ended. */
  retired = false;
  /** Has refused its last stream (REFUSED_STREAM), and not answered one since. */
  refuses = false;
  /** Counted as idle: established, and without streams. */
  idle = false;
  /** The TLS session of the connection has been kept for the next one. */
  resumptionSaved = false;
  /** See BackendHttp2Settings, as of when it was opened. */
  pingIntervalMs = 0;
  pingTimeoutMs = 0;

  constructor(pool: Http2Pool, connection: Connection) {
    this.pool = pool;
    this.connection = connection;
  }

  /** Most streams at a time, if there is a session: what the peer allows, or what is configured. */
  streamsMax(settings: BackendHttp2Settings): number {
    return Math.min(this.session!.peer.maxConcurrentStreams, settings.streamsPerConnectionMax);
  }

  /** Whether a stream may be opened now. */
  hasRoom(settings: BackendHttp2Settings): boolean {
    const { session } = this;
    return (
      session !== null &&
      !this.retired &&
      session.settingsReceived &&
      !session.closing &&
      !session.isDraining &&
      session.nextStreamId < STREAM_ID_MAX &&
      session.streamCount < this.streamsMax(settings)
    );
  }
}

export class Http2Pool {
  readonly endpoint: Endpoint;
  /** All connections that have not been closed. */
  readonly members: Http2Member[] = [];
  /** Exchanges that wait, in order. */
  first: Exchange | null = null;
  waiting = 0;
  /** Streams at a time that the upstream has last allowed on a connection; 0: not known yet. */
  streamsKnown = 0;
  private last: Exchange | null = null;

  constructor(endpoint: Endpoint) {
    this.endpoint = endpoint;
  }

  // -- connections ------------------------------------------------------------------------

  /** Adds a connection that is being opened. */
  add(connection: Connection): Http2Member {
    const member = new Http2Member(this, connection);
    this.members.push(member);
    return member;
  }

  /** Forgets a connection. */
  remove(member: Http2Member): void {
    const index = this.members.indexOf(member);
    if (index >= 0) this.members.splice(index, 1);
  }

  /**
   * The connection that is to carry the next stream: the one with the fewest; null if none can. One that has just
   * refused a stream is taken only when no other is, or may come.
   */
  pick(settings: BackendHttp2Settings): Http2Member | null {
    let best: Http2Member | null = null;
    let bestStreams = 0;
    let refusing: Http2Member | null = null;
    let usable = 0;
    let opening = 0;
    for (const member of this.members) {
      if (member.retired) continue;
      usable++;
      if (member.session === null || !member.session.settingsReceived) opening++;
      if (!member.hasRoom(settings)) continue;
      if (member.refuses) {
        refusing = member;
        continue;
      }
      const streams = member.session!.streamCount;
      if (best !== null && streams >= bestStreams) continue;
      best = member;
      bestStreams = streams;
    }
    return best === null && opening === 0 && usable >= settings.connectionsMax ? refusing : best;
  }

  /** No further connection can be made: one that has refused a stream has to do. */
  forgiveRefusals(): void {
    for (const member of this.members) member.refuses = false;
  }

  /** Whether anything can still give a stream to those who wait: a connection in use, or one being opened. */
  get hasHope(): boolean {
    for (const member of this.members) if (!member.retired) return true;
    return false;
  }

  /** Whether one more connection is to be opened now. */
  wantsConnection(settings: BackendHttp2Settings): boolean {
    let usable = 0;
    let opening = 0;
    let hasSpare = false;
    for (const member of this.members) {
      if (member.retired) continue;
      usable++;
      const { session } = member;
      if (session === null || !session.settingsReceived) opening++;
      else if (session.streamCount < member.streamsMax(settings) * FULL_SHARE) hasSpare = true;
    }
    if (usable >= settings.connectionsMax) return false;
    if (this.waiting > 0) {
      const { streamsPerConnectionMax } = settings;
      const streams =
        this.streamsKnown > 0 ? Math.min(this.streamsKnown, streamsPerConnectionMax) : streamsPerConnectionMax;
      return this.waiting > opening * streams * FULL_SHARE;
    }
    return usable > 0 && opening === 0 && !hasSpare;
  }

  // -- those who wait ---------------------------------------------------------------------

  /** Puts an exchange at the end of the queue. Returns false when the queue is full. */
  enqueue(exchange: Exchange): boolean {
    if (this.waiting >= WAITING_MAX) return false;
    exchange.waiting = true;
    exchange.waitingPrevious = this.last;
    exchange.waitingNext = null;
    if (this.last === null) this.first = exchange;
    else this.last.waitingNext = exchange;
    this.last = exchange;
    this.waiting++;
    return true;
  }

  /** Takes an exchange that waits out of the queue, wherever it is. */
  dequeue(exchange: Exchange): void {
    const { waitingNext: next, waitingPrevious: previous } = exchange;
    if (previous === null) this.first = next;
    else previous.waitingNext = next;
    if (next === null) this.last = previous;
    else next.waitingPrevious = previous;
    exchange.waiting = false;
    exchange.waitingNext = null;
    exchange.waitingPrevious = null;
    this.waiting--;
  }
}
