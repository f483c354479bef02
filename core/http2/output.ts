// What leaves on an HTTP/2 connection: frames of all its streams, gathered in one block per batch.
//
// Small payloads are copied behind their frame headers, so that a batch of responses leaves with one send at its
// end; large ones go at once from where they lie. Through TLS each of those is a record of its own with its header,
// as large as records get, and the records of a batch leave together (`cork`). While the socket has not taken what it
// was given, no stream gets further: memory per connection stays bounded, whatever the number of streams.
//
// A stream that cannot send waits either for its own window (`windowBlocked`), or in its session's queue for
// the connection's window or the socket. Those in the queue have turns of one frame, or of a few if they are tunnels.
// Owned by one worker. Hot module: no allocation, exception, promise, closure or log line.
// Spec: RFC 9113 §5.2 (flow control), §6.1 (DATA), §6.2 (HEADERS), §6.10 (CONTINUATION).

import { Errno } from '../ffi/errno.ts';
import { LARGE_BLOCK_BYTES } from '../io/arena.ts';
import { SPILL_BYTES } from '../io/bytes.ts';
import type { Connection } from '../io/connection.ts';
import type { Output } from '../io/output.ts';
import type { Reactor } from '../io/reactor.ts';
import * as frames from './frames.ts';
import { HpackEncoder } from './hpack-encoder.ts';
import type { Http2Session } from './session.ts';
import type { Http2Stream } from './stream.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { FRAME_HEADER_BYTES, FRAME_BYTES_MAX_DEFAULT, RST_STREAM_BYTES, WINDOW_UPDATE_BYTES } = frames;
const { writeFrameHeader, writeRstStream, writeWindowUpdate } = frames;
const { DATA, HEADERS, CONTINUATION } = frames.FrameType;
const { END_STREAM, END_HEADERS } = frames.Flag;
const { ECONNRESET, EAGAIN } = Errno;
const HEADER_BYTES = FRAME_HEADER_BYTES;
const FRAME_MAX = FRAME_BYTES_MAX_DEFAULT;

/** Payloads from here on are not copied: the call that sends them by themselves costs less. */
const IN_PLACE_BYTES_MIN = 8 * 1024;

/** Payload of a frame that fills a TLS record (RFC 8446 §5.1) with its header. */
const RECORD_PAYLOAD_BYTES = 16384 - HEADER_BYTES;

/** A turn of a tunnel: the other node can give so much to its socket at once. Nobody looks at single frames there. */
const TUNNEL_TURN_BYTES = 4 * RECORD_PAYLOAD_BYTES;

/** Frames that a peer does not read although it causes them: beyond this the connection ends. */
const BACKLOG_BYTES_MAX = 512 * 1024;

/** WINDOW_UPDATE frames that one DATA frame of ours pays for: a receiver may give back bytes in small steps. */
const UPDATES_PER_DATA = 4;
const UPDATE_CREDIT_MAX = 4096;

export class Http2Output {
  private readonly reactor: Reactor;
  /** What leaves on sockets, whatever it is. */
  private readonly sockets: Output;
  private readonly memory: Uint8Array;
  private readonly counters: Float64Array;
  /** Where a header block is being encoded: its own block, if it may not fit into one frame; else 0. */
  private headersBlock = 0;
  private headersStart = 0;

  /** `counters` takes the bytes sent, at the place that a session's role names. */
  constructor(reactor: Reactor, counters: Float64Array) {
    this.reactor = reactor;
    this.sockets = reactor.output;
    this.memory = reactor.memory;
    this.counters = counters;
  }

  // -- the block of this batch ---------------------------------------------------------

  /**
   * Room for `bytes` (at most LARGE_BLOCK_BYTES - SPILL_BYTES) behind the frames of this batch: its offset, or 0
   * when the connection is beyond use. `commit` says how much has been written.
   */
  reserve(session: Http2Session, bytes: number): number {
    if (session.broken) return 0;
    const { arena } = this.reactor;
    const need = bytes + SPILL_BYTES;
    let block = session.outBlock;
    if (block !== 0) {
      if (session.outLength + need <= arena.sizeOf(block)) return block + session.outLength;
      if (session.outLength + need <= LARGE_BLOCK_BYTES) {
        const larger = arena.allocate(LARGE_BLOCK_BYTES);
        if (larger !== 0) {
          this.memory.copyWithin(larger, block, block + session.outLength);
          arena.free(block);
          session.outBlock = larger;
          return larger + session.outLength;
        }
      }
      if (!this.flush(session)) return 0;
    }
    block = arena.allocate(need);
    if (block === 0) {
      this.fail(session, Errno.ENOBUFS);
      return 0;
    }
    session.outBlock = block;
    session.outLength = 0;
    this.askBatchEnd(session);
    return block;
  }

  /** Frames have been written up to `end`. */
  commit(session: Http2Session, end: number): void {
    session.outLength = end - session.outBlock;
  }

  /** Has the reactor call `batchEnd` for this connection. */
  askBatchEnd(session: Http2Session): void {
    if (session.batchEndAsked) return;
    session.batchEndAsked = true;
    this.reactor.atBatchEnd(session.connection);
  }

  /** Sends the frames of this batch now. Returns whether the connection is still of use. */
  flush(session: Http2Session): boolean {
    const block = session.outBlock;
    const { connection } = session;
    const { sockets } = this;
    if (block === 0 && !sockets.isCorked(connection)) return !session.broken;
    let sent = true;
    if (block !== 0) {
      sent = this.sendBlock(session);
      session.outBlock = 0;
      this.reactor.arena.free(block);
    }
    if (!sockets.uncork(connection) || !sent) this.fail(session, connection.errno);
    else this.checkBacklog(session);
    return !session.broken;
  }

  /** Gives what is in the block of this batch to the socket; the block stays. Returns false when the connection has failed. */
  private sendBlock(session: Http2Session): boolean {
    const length = session.outLength;
    session.outLength = 0;
    if (length === 0 || session.broken) return true;
    this.noteSent(session, length);
    return this.sockets.send(session.connection, session.outBlock, length, false);
  }

  private noteSent(session: Http2Session, bytes: number): void {
    this.counters[session.role.bytesOutCounter] += bytes;
    session.writtenBytes = (session.writtenBytes + bytes) | 0;
  }

  /** Leaves the frames of this batch to the reactor, which sends them with those of all connections. */
  flushDeferred(session: Http2Session): void {
    const block = session.outBlock;
    if (this.sockets.isCorked(session.connection)) {
      this.flush(session);
      return;
    }
    if (block === 0) return;
    const length = session.outLength;
    session.outBlock = 0;
    session.outLength = 0;
    if (length === 0 || session.broken) {
      this.reactor.arena.free(block);
      return;
    }
    const { connection } = session;
    this.noteSent(session, length);
    if (!this.sockets.sendBlockDeferred(connection, block, length)) this.fail(session, connection.errno);
    else this.checkBacklog(session);
  }

  /** Drops what has not been given to the socket. */
  drop(session: Http2Session): void {
    if (session.outBlock !== 0) this.reactor.arena.free(session.outBlock);
    session.outBlock = 0;
    session.outLength = 0;
  }

  /** Marks a connection as beyond use; it is closed at the end of the batch. */
  fail(session: Http2Session, errno: number): void {
    session.broken = true;
    if (session.connection.errno === 0) session.connection.errno = errno;
    this.askBatchEnd(session);
  }

  private checkBacklog(session: Http2Session): void {
    if (session.connection.outputBytes > BACKLOG_BYTES_MAX) this.fail(session, Errno.ENOBUFS);
  }

  // -- small frames ------------------------------------------------------------------------

  /** Writes a RST_STREAM and remembers it. */
  putReset(session: Http2Session, streamId: number, code: number): void {
    session.noteReset(streamId);
    const at = this.reserve(session, RST_STREAM_BYTES);
    if (at !== 0) this.commit(session, writeRstStream(this.memory, at, streamId, code));
  }

  /** Writes a WINDOW_UPDATE; stream 0: the connection's window. */
  putWindowUpdate(session: Http2Session, streamId: number, incrementBytes: number): void {
    const at = this.reserve(session, WINDOW_UPDATE_BYTES);
    if (at !== 0) this.commit(session, writeWindowUpdate(this.memory, at, streamId, incrementBytes));
  }

  // -- header blocks -------------------------------------------------------------------------

  /** The header encoder of a connection; made at first use. */
  encoderOf(session: Http2Session): HpackEncoder {
    if (session.encoder === null) {
      session.encoder = new HpackEncoder();
      session.encoder.setTableSizeMax(session.peer.headerTableBytes);
    }
    return session.encoder;
  }

  /**
   * Begins a header block of at most `bytesMax` (hpackBytesMax) for a stream. Returns where it is to be encoded,
   * or 0: no room, or it might be larger than LARGE_BLOCK_BYTES. Nothing else may be written before `endHeaders`.
   */
  beginHeaders(session: Http2Session, bytesMax: number): number {
    if (bytesMax <= FRAME_MAX) {
      const at = this.reserve(session, HEADER_BYTES + bytesMax);
      this.headersBlock = 0;
      this.headersStart = at;
      return at === 0 ? 0 : at + HEADER_BYTES;
    }
    if (bytesMax > LARGE_BLOCK_BYTES) return 0;
    this.headersBlock = this.reactor.arena.allocate(bytesMax);
    this.headersStart = this.headersBlock;
    return this.headersBlock;
  }

  /** Ends the header block of a stream, encoded up to `end`, and with `endStream` our side of the stream. */
  endHeaders(stream: Http2Stream, end: number, endStream: boolean): void {
    const session = stream.session!;
    const endFlag = endStream ? END_STREAM : 0;
    if (endStream) stream.localEnded = true;
    stream.unsent = false;
    if (this.headersBlock === 0) {
      const length = end - this.headersStart - HEADER_BYTES;
      writeFrameHeader(this.memory, this.headersStart, length, HEADERS, END_HEADERS | endFlag, stream.id);
      this.commit(session, end);
      noteWritten(stream, session);
      return;
    }
    let start = this.headersBlock;
    let type: number = HEADERS;
    while (start < end) {
      const length = Math.min(end - start, FRAME_MAX);
      const last = start + length === end;
      const flags = (last ? END_HEADERS : 0) | (type === HEADERS ? endFlag : 0);
      let at = this.reserve(session, HEADER_BYTES + length);
      if (at === 0) break;
      at = writeFrameHeader(this.memory, at, length, type, flags, stream.id);
      this.memory.copyWithin(at, start, start + length);
      this.commit(session, at + length);
      start += length;
      type = CONTINUATION;
    }
    noteWritten(stream, session);
    this.reactor.arena.free(this.headersBlock);
    this.headersBlock = 0;
  }

  // -- DATA ----------------------------------------------------------------------------------

  /**
   * Sends what the windows and the socket take of [offset, offset + length), `totalBytes` being all that the
   * stream has to send now. Returns the count, -EAGAIN when the stream waits for its turn now, or -ECONNRESET.
   */
  sendData(stream: Http2Stream, offset: number, length: number, totalBytes: number): number {
    const session = stream.session!;
    if (stream.reset || stream.localEnded || session.broken || session.fatal !== 0) return -ECONNRESET;
    const { connection } = session;
    const payloadMax = payloadBytesMax(connection);
    let sent = 0;
    while (sent < length) {
      if (session.turn !== stream ? session.queueLength > 0 : session.turnBytes <= 0 && session.queueLength > 0) {
        this.queue(stream);
        break;
      }
      if (stream.sendWindowBytes <= 0) {
        stream.windowBlocked = true;
        break;
      }
      if (session.sendWindowBytes <= 0 || connection.outputBytes > 0) {
        this.queue(stream);
        break;
      }
      const count = Math.min(length - sent, payloadMax, stream.sendWindowBytes, session.sendWindowBytes);
      const last = stream.ending && sent + count === totalBytes;
      const flags = last && stream.tailBlock === 0 ? END_STREAM : 0;
      if (!this.putData(stream, offset + sent, count, flags)) return -ECONNRESET;
      stream.sendWindowBytes -= count;
      session.sendWindowBytes -= count;
      session.turnBytes -= count;
      if (session.updateCredit < UPDATE_CREDIT_MAX) session.updateCredit += UPDATES_PER_DATA;
      sent += count;
      if (last && flags !== 0) stream.localEnded = true;
    }
    return sent > 0 ? sent : -EAGAIN;
  }

  /** Ends our side of a stream that has nothing unsent, with an empty DATA frame. */
  endStream(stream: Http2Stream): void {
    if (stream.reset || stream.localEnded) return;
    stream.localEnded = true;
    this.putData(stream, 0, 0, END_STREAM);
  }

  private putData(stream: Http2Stream, offset: number, count: number, flags: number): boolean {
    const session = stream.session!;
    const { memory } = this;
    if (count < IN_PLACE_BYTES_MIN) {
      let at = this.reserve(session, HEADER_BYTES + count);
      if (at === 0) return false;
      at = writeFrameHeader(memory, at, count, DATA, flags, stream.id);
      if (count > 0) memory.copyWithin(at, offset, offset + count);
      this.commit(session, at + count);
      noteWritten(stream, session);
      return true;
    }
    if (session.connection.transport !== null) return this.putRecord(stream, session, offset, count, flags);
    const at = this.reserve(session, HEADER_BYTES);
    if (at === 0) return false;
    this.commit(session, writeFrameHeader(memory, at, count, DATA, flags, stream.id));
    const { connection, outBlock: block, outLength: length } = session;
    this.noteSent(session, length + count);
    const sent = this.sockets.sendPair(connection, block, length, offset, count);
    // The block stays for what follows in this batch.
    session.outLength = 0;
    noteWritten(stream, session);
    if (!sent) this.fail(session, connection.errno);
    return sent;
  }

  /**
   * A large payload on a transport: its header goes in front of it in memory, for as long as it takes to send both,
   * since what is given to TLS in two pieces becomes two records. Whoever owns the bytes there gets them back.
   */
  private putRecord(stream: Http2Stream, session: Http2Session, offset: number, count: number, flags: number): boolean {
    const { memory, sockets } = this;
    const { connection } = session;
    const { view } = this.reactor;
    sockets.cork(connection);
    this.askBatchEnd(session);
    let sent = session.outLength === 0 || this.sendBlock(session);
    if (sent) {
      const at = offset - HEADER_BYTES;
      const first = memory[at];
      const low = view.getInt32(at + 1, true);
      const high = view.getInt32(at + 5, true);
      writeFrameHeader(memory, at, count, DATA, flags, stream.id);
      this.noteSent(session, HEADER_BYTES + count);
      sent = sockets.send(connection, at, HEADER_BYTES + count, false);
      memory[at] = first;
      view.setInt32(at + 1, low, true);
      view.setInt32(at + 5, high, true);
      noteWritten(stream, session);
    }
    if (!sent) this.fail(session, connection.errno);
    return sent;
  }

  /**
   * The socket has taken some of the `outputBytes` that it had left: tells the role of the streams that have
   * frames among them, and get no further meanwhile. A ping among them cannot have been answered.
   */
  moved(session: Http2Session, outputBytes: number): void {
    const { role, streams } = session;
    const takenBefore = (session.writtenBytes - outputBytes) | 0;
    if (session.pingDeadlineMs > 0 && ((session.pingEnd - takenBefore) | 0) > 0) {
      session.pingDeadlineMs = this.reactor.nowMs + session.pingTimeoutMs;
    }
    if (role.moved === undefined || streams === null) return;
    for (let slot = 0; slot < streams.capacity; slot++) {
      const stream = streams.at(slot);
      if (stream !== null && ((stream.writtenEnd - takenBefore) | 0) > 0) role.moved(stream);
    }
  }

  // -- turns -----------------------------------------------------------------------------------

  private queue(stream: Http2Stream): void {
    if (stream.queued) return;
    const session = stream.session!;
    stream.queued = true;
    stream.queuePrevious = session.queueLast;
    stream.queueNext = null;
    if (session.queueLast === null) session.queueFirst = stream;
    else session.queueLast.queueNext = stream;
    session.queueLast = stream;
    session.queueLength++;
  }

  /** Takes a stream out of the queue of its session, if it is in it. */
  unqueue(stream: Http2Stream): void {
    if (!stream.queued) return;
    const session = stream.session!;
    stream.queued = false;
    if (stream.queuePrevious === null) session.queueFirst = stream.queueNext;
    else stream.queuePrevious.queueNext = stream.queueNext;
    if (stream.queueNext === null) session.queueLast = stream.queuePrevious;
    else stream.queueNext.queuePrevious = stream.queuePrevious;
    stream.queueNext = null;
    stream.queuePrevious = null;
    session.queueLength--;
  }

  /** Lets the streams in the queue send in turns, for as long as the connection takes anything. */
  serveQueue(session: Http2Session): void {
    if (session.turn !== null) return;
    const { connection } = session;
    while (session.queueFirst !== null && session.sendWindowBytes > 0 && connection.outputBytes === 0) {
      if (session.broken || session.fatal !== 0) break;
      const stream = session.queueFirst;
      this.unqueue(stream);
      session.turn = stream;
      const virtual = stream.connection!;
      session.turnBytes = virtual.tunnelPeer === null ? payloadBytesMax(connection) : TUNNEL_TURN_BYTES;
      virtual.protocol!.writable(virtual);
      session.turn = null;
    }
  }
}

/** Most bytes of a frame: what goes through TLS fills a record with its header, or its two headers inside a tunnel. */
function payloadBytesMax(connection: Connection): number {
  if (connection.transport === null) return FRAME_MAX;
  return connection.http2Stream === null ? RECORD_PAYLOAD_BYTES : RECORD_PAYLOAD_BYTES - HEADER_BYTES;
}

/** A frame of the stream is the last one so far of what leaves on its connection. */
function noteWritten(stream: Http2Stream, session: Http2Session): void {
  stream.writtenEnd = (session.writtenBytes + session.outLength) | 0;
}
