// The life of streams within their connections: opened, failed, let go; and their windows.
// Owned by one worker. Hot module: no allocation once the pools have grown.
// Spec: RFC 9113 §5.1 (states), §5.4.2 (stream errors), §6.4 (RST_STREAM), §6.9.2 (initial windows).

import type { Connection, Protocol } from '../io/connection.ts';
import type { Reactor } from '../io/reactor.ts';
import { Counter } from '../telemetry/metrics.ts';
import * as errors from './errors.ts';
import type { Floods } from './floods.ts';
import type { Http2Output } from './output.ts';
import type { Http2Session } from './session.ts';
import type { Shutdowns } from './shutdown.ts';
import { Http2Stream, StreamTable } from './stream.ts';
import { type StreamOwner, StreamTransport } from './stream-transport.ts';
import { TrailerSections } from './trailers.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { NO_ERROR, CANCEL, REFUSED_STREAM } = errors.ErrorCode;
const { HTTP2_RESETS_SENT, HTTP2_RESETS_SENT_ERROR, HTTP2_RESETS_SENT_REFUSED, HTTP2_STREAMS } = Counter;
const WINDOW_MAX = 0x7fff_ffff;

/** What the peer may assume of our windows until it has seen our settings (RFC 9113 §6.9.2). */
const INITIAL_WINDOW_BYTES = 65_535;

export class Streams implements StreamOwner {
  readonly transport: StreamTransport;
  readonly trailers: TrailerSections;
  private readonly reactor: Reactor;
  private readonly output: Http2Output;
  private readonly floods: Floods;
  private readonly shutdowns: Shutdowns;
  readonly counters: Float64Array;
  private readonly pool: Http2Stream[] = [];
  private readonly tablePool: StreamTable[] = [];

  constructor(reactor: Reactor, output: Http2Output, floods: Floods, shutdowns: Shutdowns, counters: Float64Array) {
    this.reactor = reactor;
    this.output = output;
    this.floods = floods;
    this.shutdowns = shutdowns;
    this.counters = counters;
    this.trailers = new TrailerSections(reactor, output);
    this.transport = new StreamTransport(reactor, output, this);
  }

  /** Whether a stream number has not been used yet. */
  isIdle(session: Http2Session, id: number): boolean {
    const ours = (id & 1) === (session.isServer ? 0 : 1);
    return ours ? id >= session.nextStreamId : id > session.lastPeerStreamId;
  }

  /** Whether we may open a stream now (clients). */
  mayOpen(session: Http2Session): boolean {
    return (
      !session.isDraining &&
      session.settingsReceived &&
      session.streamCount < session.peer.maxConcurrentStreams &&
      session.nextStreamId < WINDOW_MAX
    );
  }

  /** Opens the next stream of ours (clients; `mayOpen` says whether). Null: no slot is free. */
  open(session: Http2Session, protocol: Protocol): Http2Stream | null {
    const stream = this.add(session, session.nextStreamId, protocol);
    if (stream === null) return null;
    session.nextStreamId += 2;
    stream.unsent = true;
    return stream;
  }

  /** The same on a connection that exists already, and has no other transport than one that only waits. */
  openOn(session: Http2Session, connection: Connection): Http2Stream {
    connection.transport = this.transport;
    const stream = this.attach(session, session.nextStreamId, connection);
    session.nextStreamId += 2;
    stream.unsent = true;
    return stream;
  }

  /** Takes up a stream that the peer has opened. Null: no slot is free. */
  accept(session: Http2Session, id: number, protocol: Protocol): Http2Stream | null {
    const stream = this.add(session, id, protocol);
    if (stream === null) return null;
    session.peerStreams++;
    this.counters[HTTP2_STREAMS]++;
    const connection = stream.connection!;
    const below = session.connection;
    connection.listener = below.listener;
    connection.peerFamily = below.peerFamily;
    connection.peerPort = below.peerPort;
    connection.peer0 = below.peer0;
    connection.peer1 = below.peer1;
    connection.peer2 = below.peer2;
    connection.peer3 = below.peer3;
    connection.serverName = below.serverName;
    connection.serverNameBytes = below.serverNameBytes;
    connection.tlsVersion = below.tlsVersion;
    connection.clientCertificate = below.clientCertificate;
    connection.workload = below.workload;
    connection.destination = below.destination;
    connection.access = below.access;
    return stream;
  }

  private add(session: Http2Session, id: number, protocol: Protocol): Http2Stream | null {
    const connection = this.reactor.openVirtual(protocol, this.transport);
    return connection === null ? null : this.attach(session, id, connection);
  }

  private attach(session: Http2Session, id: number, connection: Connection): Http2Stream {
    const stream = this.pool.pop() ?? new Http2Stream();
    stream.id = id;
    stream.session = session;
    // Nothing of it is among what the socket has not taken.
    stream.writtenEnd = (session.writtenBytes - session.connection.outputBytes) | 0;
    stream.connection = connection;
    connection.http2Stream = stream;
    stream.sendWindowBytes = session.peer.initialWindowBytes;
    const { streamWindowBytes } = session.limits;
    const acknowledged = session.settingsUnacked === 0;
    stream.receiveWindowBytes = acknowledged ? streamWindowBytes : Math.max(streamWindowBytes, INITIAL_WINDOW_BYTES);
    if (session.streams === null) session.streams = this.tablePool.pop() ?? new StreamTable();
    session.streams.add(stream);
    session.idleDeadlineMs = 0;
    return stream;
  }

  /** A stream's connection is being closed: ends the stream, and gives everything back. */
  release(stream: Http2Stream): void {
    const session = stream.session!;
    const over = stream.localEnded && stream.remoteEnded;
    if (!over && !stream.reset && !stream.unsent && session.fatal === 0 && !session.broken) {
      this.putReset(session, stream.id, stream.resetCode);
    }
    const { arena } = this.reactor;
    this.output.unqueue(stream);
    this.transport.dropKept(stream);
    if (stream.trailersBlock !== 0) this.trailers.release(stream);
    if (stream.tailBlock !== 0) arena.free(stream.tailBlock);
    const streams = session.streams!;
    streams.remove(stream);
    if (session.isServer === ((stream.id & 1) === 1)) session.peerStreams--;
    stream.clear();
    this.pool.push(stream);
    if (streams.count === 0) {
      session.streams = null;
      this.tablePool.push(streams);
      this.shutdowns.becameIdle(session);
    }
    if (!session.isServer && session.fatal === 0 && !session.closing) session.role.streamsAvailable(session);
  }

  /** Sends and counts a RST_STREAM. */
  putReset(session: Http2Session, id: number, code: number): void {
    if (code === NO_ERROR || code === CANCEL) this.counters[HTTP2_RESETS_SENT]++;
    else if (code === REFUSED_STREAM) this.counters[HTTP2_RESETS_SENT_REFUSED]++;
    else this.counters[HTTP2_RESETS_SENT_ERROR]++;
    this.output.putReset(session, id, code);
  }

  /** Ends a stream for an error of the peer; `_rule` is the number of the rule in an error, or 0. */
  failStream(stream: Http2Stream, code: number, _rule: number): void {
    const session = stream.session!;
    this.floods.causedReset(session);
    this.putReset(session, stream.id, code);
    stream.reset = true;
    session.role.streamFailed(stream, code);
  }

  /** The stream's window may have opened: sends what waits for it. */
  wake(stream: Http2Stream): void {
    if (!stream.windowBlocked || stream.sendWindowBytes <= 0) return;
    stream.windowBlocked = false;
    const connection = stream.connection!;
    connection.protocol!.writable(connection);
  }

  /** Applies a change of the peer's initial window to all streams. Returns false when one gets too large. */
  shiftWindows(session: Http2Session, changeBytes: number): boolean {
    const { streams } = session;
    if (streams === null) return true;
    for (let slot = 0; slot < streams.capacity; slot++) {
      const stream = streams.at(slot);
      if (stream === null) continue;
      if (stream.sendWindowBytes + changeBytes > WINDOW_MAX) return false;
      stream.sendWindowBytes += changeBytes;
    }
    if (changeBytes <= 0) return true;
    // Waking a stream may end it, and then others move in the table, or the table goes: look again from the start.
    for (let slot = 0; session.streams === streams && slot < streams.capacity; slot++) {
      const stream = streams.at(slot);
      if (stream === null || !stream.windowBlocked || stream.sendWindowBytes <= 0) continue;
      const { count } = streams;
      this.wake(stream);
      if (streams.count !== count) slot = -1;
    }
    return true;
  }

  /** Sends the trailers that were kept until everything before them had gone. */
  sendTail(stream: Http2Stream): void {
    this.trailers.sendKept(stream);
  }
}
