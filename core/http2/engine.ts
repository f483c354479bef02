// HTTP/2 connections of one worker, whichever side we are on: the frame loop, and what each frame means.
//
// The engine is the protocol of connections that speak HTTP/2; a stream in one is a connection of its own
// (reactor.openVirtual), whose transport is stream-transport.ts and whose protocol is the role's. What streams
// carry is the role's business (role.ts); what they cost is the engine's: windows, limits, errors.
// Errors of the connection never close it where they are found, in the middle of somebody's call, but at
// the end of the batch.
// Owned by one worker. Hot module: no allocation, exception, promise, closure or log line per frame.
// Spec: RFC 9113 §4 to §6, §7, §10.5.

import { Errno } from '../ffi/errno.ts';
import type { Connection, Protocol } from '../io/connection.ts';
import { FILL_AGAIN, FILL_END, FILL_ERROR, type Input } from '../io/input.ts';
import type { Output } from '../io/output.ts';
import type { Reactor } from '../io/reactor.ts';
import type { ReceiveArea } from '../io/receive-area.ts';
import { CloseCause, Counter } from '../telemetry/metrics.ts';
import * as errors from './errors.ts';
import { FloodKind, Floods } from './floods.ts';
import * as frames from './frames.ts';
import { HeaderBlocks } from './header-blocks.ts';
import { Http2Output } from './output.ts';
import type { Http2Role } from './role.ts';
import { type Http2Limits, Http2Session } from './session.ts';
import { applySettings, SettingsId, HEADER_TABLE_BYTES_DEFAULT as TABLE_BYTES_DEFAULT } from './settings.ts';
import { Shutdowns } from './shutdown.ts';
import type { Http2Stream } from './stream.ts';
import type { StreamTransport } from './stream-transport.ts';
import { Streams } from './streams.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { checkFrame, checkPriority, frameFlags, frameLength, frameStreamId, frameType, matchPreface } = frames;
const { readDataContent, readErrorCode, readUint31, readWindowIncrement } = frames;
const { writePingAck, writeSettings, writeSettingsAck } = frames;
const { FRAME_HEADER_BYTES, FRAME_BYTES_MAX_DEFAULT, PREFACE_BYTES, PREFACE } = frames;
const { PING_BYTES, SETTINGS_ACK_BYTES } = frames;
const { DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION } = frames.FrameType;
const { ACK, END_STREAM } = frames.Flag;
const { PROTOCOL_ERROR, FLOW_CONTROL_ERROR, STREAM_CLOSED, INTERNAL_ERROR } = errors.ErrorCode;
const { SCOPE_STREAM, ERROR_CODE_MASK } = errors;
const { RULE_SHIFT } = errors;
const { INITIAL_WINDOW_SIZE, MAX_HEADER_LIST_SIZE, MAX_CONCURRENT_STREAMS, ENABLE_PUSH, ENABLE_CONNECT_PROTOCOL } =
  SettingsId;
const HEADER_BYTES = FRAME_HEADER_BYTES;
const HEADER_TABLE_BYTES_DEFAULT = TABLE_BYTES_DEFAULT;
const FRAME_MAX = FRAME_BYTES_MAX_DEFAULT;
const WINDOW_MAX = 0x7fff_ffff;
const { HTTP2_RESETS_RECEIVED } = Counter;

/** Receives of up to 128 KiB per turn of one connection, so that a fast sender does not starve the others. */
const RECEIVES_PER_TURN = 4;

/** Settings that we send: identifier and value each, at most this many. */
const SETTINGS_SENT_MAX = 4;

export class Http2Engine implements Protocol {
  readonly output: Http2Output;
  readonly streams: Streams;
  readonly transport: StreamTransport;
  readonly shutdowns: Shutdowns;
  private readonly reactor: Reactor;
  private readonly receiveArea: ReceiveArea;
  private readonly input: Input;
  /** What leaves on sockets, whatever it is. */
  private readonly sockets: Output;
  private readonly memory: Uint8Array;
  private readonly counters: Float64Array;
  private readonly blocks: HeaderBlocks;
  private readonly floods: Floods;
  private readonly content = new frames.FrameContent();
  private readonly settings = new Uint32Array(SETTINGS_SENT_MAX * 2);

  constructor(reactor: Reactor, counters: Float64Array) {
    this.reactor = reactor;
    this.receiveArea = reactor.receiveArea;
    this.input = reactor.input;
    this.sockets = reactor.output;
    this.memory = reactor.memory;
    this.counters = counters;
    this.output = new Http2Output(reactor, counters);
    this.shutdowns = new Shutdowns(reactor, this.output, counters);
    this.floods = new Floods(reactor, this.shutdowns, counters);
    this.streams = new Streams(reactor, this.output, this.floods, this.shutdowns, counters);
    this.transport = this.streams.transport;
    this.blocks = new HeaderBlocks(reactor, this.streams, this.floods, this.shutdowns);
  }

  // -- connections ------------------------------------------------------------------------

  /**
   * Makes a connection an HTTP/2 connection and sends our preface: settings and the
   * connection's window. Input that has come already must have
   * been kept (`input.keep`); `readable` is to be called for it.
   */
  open(connection: Connection, role: Http2Role, limits: Http2Limits): Http2Session {
    const session = new Http2Session(connection, role, limits);
    connection.http2Session = session;
    connection.protocol = this;
    connection.smallInput = false;
    this.sendPreface(session);
    session.handshakeDeadlineMs = this.reactor.nowMs + limits.headTimeoutMs;
    this.shutdowns.becameIdle(session);
    this.shutdowns.arm(session);
    return session;
  }

  private sendPreface(session: Http2Session): void {
    const { settings, memory, output } = this;
    const { limits } = session;
    settings[0] = INITIAL_WINDOW_SIZE;
    settings[1] = limits.streamWindowBytes;
    settings[2] = MAX_HEADER_LIST_SIZE;
    settings[3] = limits.headBytesMax;
    settings[4] = session.isServer ? MAX_CONCURRENT_STREAMS : ENABLE_PUSH;
    settings[5] = session.isServer ? limits.concurrentStreamsMax : 0;
    // RFC 8441 §3: WebSocket over HTTP/2. Servers only.
    settings[6] = ENABLE_CONNECT_PROTOCOL;
    settings[7] = 1;
    const count = session.isServer ? 4 : 3;
    const at = output.reserve(session, PREFACE_BYTES + HEADER_BYTES + count * frames.SETTING_BYTES);
    if (at === 0) return;
    let end = at;
    if (!session.isServer) {
      memory.set(PREFACE, end);
      end += PREFACE_BYTES;
    }
    output.commit(session, writeSettings(memory, end, settings, count));
    session.settingsUnacked++;
    const raiseBytes = limits.connectionWindowBytes - session.receiveWindowBytes;
    if (raiseBytes > 0) {
      session.receiveWindowBytes += raiseBytes;
      output.putWindowUpdate(session, 0, raiseBytes);
    }
  }

  // -- events -----------------------------------------------------------------------------

  readable(connection: Connection): void {
    const session = connection.http2Session!;
    const { input } = this;
    if (session.lingering) {
      this.shutdowns.discard(session);
      return;
    }
    // What came with the first bytes, before this was known to be HTTP/2, or was left for another turn.
    let kept = connection.inputLength > 0 && connection.inputScanned === 0;
    for (let turn = 0; ; turn++) {
      if (session.fatal !== 0 || session.broken) return;
      if (kept) {
        kept = false;
        if (!this.take(session, connection.inputOffset, connection.inputLength)) return;
        continue;
      }
      if (!connection.readReady) return;
      if (turn >= RECEIVES_PER_TURN) {
        this.reactor.enqueue(connection);
        return;
      }
      const before = connection.inputLength;
      const status = input.fill(connection, this.receiveArea.heldReceiveBytesMax);
      if (status <= 0) {
        if (status !== FILL_AGAIN) this.fillFailed(session, status);
        return;
      }
      this.counters[session.role.bytesInCounter] += status - before;
      if (!this.take(session, input.offset, input.length)) return;
    }
  }

  private fillFailed(session: Http2Session, status: number): void {
    const { connection } = session;
    if (status === FILL_END) {
      this.shutdowns.peerLeft(session, CloseCause.CLIENT);
    } else if (status === FILL_ERROR) {
      this.shutdowns.peerLeft(session, CloseCause.CLIENT_RESET);
    } else {
      this.output.fail(session, Errno.ENOBUFS);
      session.closeCause = CloseCause.SHED;
    }
    connection.readReady = false;
  }

  /** Handles the frames in [offset, offset + length) and keeps the rest. Returns whether to read on. */
  private take(session: Http2Session, offset: number, length: number): boolean {
    const { input, receiveArea, sockets } = this;
    const { connection } = session;
    let before = receiveArea.hold(offset + length);
    if (before < 0) {
      if (!input.keep(connection, offset, length)) {
        this.output.fail(session, Errno.ENOBUFS);
        return false;
      }
      offset = connection.inputOffset;
      before = receiveArea.hold(offset + length);
    }
    session.lastFrameMs = this.reactor.nowMs;
    // What belongs to one stream often lies in several frames in a row.
    const gathering = sockets.beginGathering();
    const consumed = this.frames(session, offset, length);
    sockets.endGathering(gathering);
    receiveArea.release(before);
    if (session.fatal !== 0 || session.broken) {
      input.free(connection);
      return false;
    }
    const rest = length - consumed;
    if (!input.keep(connection, offset + consumed, rest)) {
      this.output.fail(session, Errno.ENOBUFS);
      return false;
    }
    connection.inputScanned = rest;
    return true;
  }

  writable(connection: Connection): void {
    const session = connection.http2Session!;
    if (connection.outputBytes > 0) {
      const before = connection.outputBytes;
      if (!this.sockets.flush(connection)) {
        this.output.fail(session, connection.errno);
        return;
      }
      if (connection.outputBytes < before) {
        session.stallDeadlineMs = 0;
        this.output.moved(session, before);
      }
      if (connection.outputBytes > 0) {
        this.shutdowns.noteStall(session);
        return;
      }
    }
    if (session.lingering) this.shutdowns.flushed(session);
    else this.output.serveQueue(session);
  }

  expired(connection: Connection): void {
    this.shutdowns.expired(connection.http2Session!);
  }

  sendFailed(connection: Connection): void {
    const session = connection.http2Session!;
    this.output.fail(session, connection.errno);
  }

  batchEnd(connection: Connection): void {
    const session = connection.http2Session!;
    session.batchEndAsked = false;
    if (session.fatal === 0 && !session.broken && !session.closing) {
      this.output.flushDeferred(session);
      this.shutdowns.noteStall(session);
      if (!session.broken) return;
    }
    this.shutdowns.end(session);
  }

  // -- the frame loop ------------------------------------------------------------------------

  /** Handles complete frames. Returns how many bytes are done with. */
  private frames(session: Http2Session, offset: number, length: number): number {
    const { memory } = this;
    const end = offset + length;
    let at = offset;
    if (!session.prefaceDone) {
      const matched = matchPreface(memory, at, length);
      if (matched < 0) {
        this.shutdowns.fail(session, PROTOCOL_ERROR, 'The connection does not begin with the HTTP/2 preface.');
        return 0;
      }
      if (matched < PREFACE_BYTES) return 0;
      session.prefaceDone = true;
      at += PREFACE_BYTES;
    }
    while (end - at >= HEADER_BYTES) {
      const payloadLength = frameLength(memory, at);
      const type = frameType(memory, at);
      const flags = frameFlags(memory, at);
      const id = frameStreamId(memory, at);
      const error = this.check(session, payloadLength, type, flags, id);
      if (session.fatal !== 0) return at - offset;
      const payload = at + HEADER_BYTES;
      if (payload + payloadLength > end) {
        if (type !== DATA) this.shutdowns.blockBegun(session);
        break;
      }
      if (error !== 0) this.badFrame(session, error, type, id, payloadLength);
      else this.frame(session, type, flags, id, payload, payloadLength);
      at = payload + payloadLength;
      if (session.fatal !== 0 || session.broken) break;
      if (session.blockStreamId === 0) session.blockDeadlineMs = 0;
    }
    return at - offset;
  }

  /** What can be said before the payload is here. Returns a stream error, or 0; others are fatal. */
  private check(session: Http2Session, length: number, type: number, flags: number, id: number): number {
    const error = checkFrame(length, type, flags, id, FRAME_MAX);
    if (!session.settingsReceived && (type !== SETTINGS || (flags & ACK) !== 0)) {
      this.shutdowns.fail(session, PROTOCOL_ERROR, 'The first frame is not SETTINGS.');
      return 0;
    }
    if (session.blockStreamId !== 0 && (type !== CONTINUATION || id !== session.blockStreamId)) {
      this.shutdowns.fail(session, PROTOCOL_ERROR, 'A header block is interrupted by another frame.');
      return 0;
    }
    if (error === 0) return 0;
    // Not worth skipping megabytes for: an oversized frame ends the connection (RFC 9113 §5.4.1 allows that).
    if ((error & SCOPE_STREAM) !== 0 && length <= FRAME_MAX) return error;
    this.shutdowns.failFrame(session, error);
    return 0;
  }

  private badFrame(session: Http2Session, error: number, type: number, id: number, length: number): void {
    if (type === DATA) {
      session.receiveWindowBytes -= length;
      this.transport.consumedByConnection(session, length);
    }
    this.streamError(session, id, error);
  }

  /** An error in a frame that ends its stream, or the connection if there is no such stream. */
  private streamError(session: Http2Session, id: number, error: number): void {
    const stream = session.stream(id);
    if (stream === null) {
      if (!this.streams.isIdle(session, id) && session.wasReset(id)) return;
      this.shutdowns.failFrame(session, error & ~SCOPE_STREAM);
      return;
    }
    this.streams.failStream(stream, error & ERROR_CODE_MASK, error >> RULE_SHIFT);
  }

  private frame(session: Http2Session, type: number, flags: number, id: number, at: number, length: number): void {
    switch (type) {
      case DATA:
        this.data(session, flags, id, at, length);
        return;
      case HEADERS:
        this.blocks.headers(session, flags, id, at, length);
        return;
      case CONTINUATION:
        this.blocks.continuation(session, flags, id, at, length);
        return;
      case RST_STREAM:
        this.resetReceived(session, id, readErrorCode(this.memory, at));
        return;
      case SETTINGS:
        this.settingsFrame(session, flags, at, length);
        return;
      case PING:
        this.ping(session, flags, at);
        return;
      case WINDOW_UPDATE:
        this.windowUpdate(session, id, at);
        return;
      case PRIORITY:
        this.floods.control(session, FloodKind.PRIORITY);
        if (checkPriority(this.memory, at, id) !== 0) this.streamError(session, id, checkPriority(this.memory, at, id));
        return;
      case GOAWAY: {
        this.floods.control(session, FloodKind.OTHER);
        const lastId = readUint31(this.memory, at);
        session.goawayReceived = true;
        if (lastId < session.goawayReceivedLastId) session.goawayReceivedLastId = lastId;
        session.role.goaway(session, readErrorCode(this.memory, at + 4));
        return;
      }
      default:
        // Unknown types are ignored (RFC 9113 §5.5).
        this.floods.control(session, FloodKind.OTHER);
    }
  }

  // -- DATA -----------------------------------------------------------------------------------

  private data(session: Http2Session, flags: number, id: number, at: number, length: number): void {
    const { transport, streams, content } = this;
    session.receiveWindowBytes -= length;
    if (session.receiveWindowBytes < 0) {
      this.shutdowns.fail(session, FLOW_CONTROL_ERROR, 'More DATA than the window of the connection allows.');
      return;
    }
    const stream = session.stream(id);
    if (stream === null || stream.remoteEnded || !stream.headReceived) {
      transport.consumedByConnection(session, length);
      this.dataOutOfPlace(session, stream, id);
      return;
    }
    const error = readDataContent(this.memory, at, length, flags, content);
    if (error !== 0) {
      this.shutdowns.failFrame(session, error);
      return;
    }
    stream.receiveWindowBytes -= length;
    const payloadLength = content.length;
    stream.receivedBytes += payloadLength;
    const end = (flags & END_STREAM) !== 0;
    if (stream.receiveWindowBytes < 0) {
      transport.consumedByConnection(session, length);
      streams.failStream(stream, FLOW_CONTROL_ERROR, 0);
      return;
    }
    const { contentLength } = stream;
    if (contentLength >= 0 && (stream.receivedBytes > contentLength || (end && stream.receivedBytes < contentLength))) {
      transport.consumedByConnection(session, length);
      this.counters[Counter.HTTP2_MALFORMED]++;
      streams.failStream(stream, PROTOCOL_ERROR, 0);
      return;
    }
    if (length > payloadLength) transport.consumed(stream, length - payloadLength);
    if (end) stream.remoteEnded = true;
    else if (payloadLength === 0) {
      this.floods.control(session, FloodKind.EMPTY_DATA);
      return;
    }
    this.deliver(stream, content.offset, payloadLength);
  }

  private dataOutOfPlace(session: Http2Session, stream: Http2Stream | null, id: number): void {
    if (stream !== null) {
      this.streams.failStream(stream, stream.remoteEnded ? STREAM_CLOSED : PROTOCOL_ERROR, 0);
    } else if (this.streams.isIdle(session, id)) {
      this.shutdowns.fail(session, PROTOCOL_ERROR, 'DATA on a stream that has not been opened.');
    } else if (!session.wasReset(id) && id <= session.goawayLastId) {
      this.floods.causedReset(session);
      this.streams.putReset(session, id, STREAM_CLOSED);
    }
  }

  /**
   * Offers a payload where it lies; keeps it if it is not taken. Consumers rewrite in place, and may write up to
   * seven bytes beyond it, where the next frame begins: those are put back.
   */
  private deliver(stream: Http2Stream, offset: number, length: number): void {
    const { reactor } = this;
    const connection = stream.connection!;
    const { generation } = connection;
    connection.readReady = true;
    if (stream.inputBytes > 0) {
      // Its reader is paused.
      this.keep(stream, offset, length);
      return;
    }
    if (length === 0) {
      connection.protocol!.readable(connection);
      return;
    }
    if (connection.protocol !== stream.session!.role.streamProtocol && connection.tunnelPeer === null) {
      this.deliverCopied(stream, connection, offset, length);
      return;
    }
    connection.ahead = length;
    connection.aheadOffset = offset;
    connection.inputEnds = stream.remoteEnded;
    stream.offeredBytes = length;
    const { view } = reactor;
    const behind = offset + length;
    const low = view.getInt32(behind, true);
    const high = view.getInt32(behind + 4, true);
    connection.protocol!.readable(connection);
    view.setInt32(behind, low, true);
    view.setInt32(behind + 4, high, true);
    if (connection.generation !== generation || connection.ahead === 0) return;
    connection.ahead = 0;
    connection.inputEnds = false;
    stream.offeredBytes = 0;
    this.keep(stream, offset, length);
  }

  /**
   * A protocol inside a tunnel receives as from a socket: it writes before and behind what it gets, and sends it
   * later from where it lies, which the frames around it would not survive.
   */
  private deliverCopied(stream: Http2Stream, connection: Connection, offset: number, length: number): void {
    const { generation } = connection;
    stream.frameOffset = offset;
    stream.frameBytes = length;
    connection.protocol!.readable(connection);
    if (connection.generation !== generation || stream.frameBytes === 0) return;
    const { frameOffset, frameBytes } = stream;
    stream.frameBytes = 0;
    this.keep(stream, frameOffset, frameBytes);
  }

  private keep(stream: Http2Stream, offset: number, length: number): void {
    if (!this.transport.keep(stream, offset, length)) this.streams.failStream(stream, INTERNAL_ERROR, 0);
  }

  // -- other frames -------------------------------------------------------------------------------

  private resetReceived(session: Http2Session, id: number, code: number): void {
    const stream = session.stream(id);
    if (stream === null) {
      if (this.streams.isIdle(session, id)) {
        this.shutdowns.fail(session, PROTOCOL_ERROR, 'RST_STREAM on a stream that has not been opened.');
      } else {
        this.floods.control(session, FloodKind.OTHER);
      }
      return;
    }
    this.counters[HTTP2_RESETS_RECEIVED]++;
    stream.reset = true;
    this.floods.receivedReset(session);
    session.role.streamReset(stream, code);
  }

  private settingsFrame(session: Http2Session, flags: number, at: number, length: number): void {
    const { memory, output } = this;
    const { peer } = session;
    if ((flags & ACK) !== 0) {
      if (session.settingsUnacked === 0) {
        this.floods.control(session, FloodKind.SETTINGS);
        return;
      }
      session.settingsUnacked--;
      session.handshakeDeadlineMs = 0;
      return;
    }
    if (session.settingsReceived) this.floods.control(session, FloodKind.SETTINGS);
    session.settingsReceived = true;
    const windowBefore = peer.initialWindowBytes;
    const error = applySettings(memory, at, length, peer, !session.isServer);
    if (error !== 0) {
      this.shutdowns.failFrame(session, error);
      return;
    }
    // An encoder made later would not announce a table that was smaller in between (RFC 7541 §4.2).
    if (session.encoder !== null || peer.headerTableBytesLeast < HEADER_TABLE_BYTES_DEFAULT) {
      const encoder = output.encoderOf(session);
      encoder.setTableSizeMax(peer.headerTableBytesLeast);
      encoder.setTableSizeMax(peer.headerTableBytes);
    }
    const ack = output.reserve(session, SETTINGS_ACK_BYTES);
    if (ack !== 0) output.commit(session, writeSettingsAck(memory, ack));
    const change = peer.initialWindowBytes - windowBefore;
    if (change !== 0 && !this.streams.shiftWindows(session, change)) {
      this.shutdowns.fail(session, FLOW_CONTROL_ERROR, 'New settings make a window larger than 2147483647.');
      return;
    }
    session.role.streamsAvailable(session);
  }

  private ping(session: Http2Session, flags: number, at: number): void {
    if ((flags & ACK) !== 0) {
      if (session.pingDeadlineMs === 0) this.floods.control(session, FloodKind.PING);
      session.pingDeadlineMs = 0;
      return;
    }
    this.floods.control(session, FloodKind.PING);
    const ack = this.output.reserve(session, PING_BYTES);
    if (ack !== 0) this.output.commit(session, writePingAck(this.memory, ack, at));
  }

  private windowUpdate(session: Http2Session, id: number, at: number): void {
    if (session.updateCredit > 0) session.updateCredit--;
    else this.floods.control(session, FloodKind.WINDOW_UPDATE);
    const increment = readWindowIncrement(this.memory, at, id);
    if (id === 0) {
      if (increment < 0) {
        this.shutdowns.failFrame(session, -increment);
        return;
      }
      if (session.sendWindowBytes + increment > WINDOW_MAX) {
        this.shutdowns.fail(session, FLOW_CONTROL_ERROR, 'The window of the connection grows beyond 2147483647.');
        return;
      }
      session.sendWindowBytes += increment;
      this.output.serveQueue(session);
      return;
    }
    const stream = session.stream(id);
    if (stream === null) {
      if (this.streams.isIdle(session, id)) {
        this.shutdowns.fail(session, PROTOCOL_ERROR, 'WINDOW_UPDATE on a stream that has not been opened.');
      }
      return;
    }
    if (increment < 0) {
      this.streams.failStream(stream, PROTOCOL_ERROR, -increment >> RULE_SHIFT);
      return;
    }
    if (stream.sendWindowBytes + increment > WINDOW_MAX) {
      this.streams.failStream(stream, FLOW_CONTROL_ERROR, 0);
      return;
    }
    stream.sendWindowBytes += increment;
    this.streams.wake(stream);
  }
}
