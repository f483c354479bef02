// One HTTP/2 stream as plain data, and the table that finds the streams of a connection by number.
//
// To everything above the engine a stream is a Connection without a descriptor; what HTTP/2 itself
// has to know of it is here. Streams are pooled: no garbage per request.
// Owned by one worker. Hot module: no allocation once the pools have grown.
// Spec: RFC 9113 §5.1 (states), §5.2 (flow control), §8.1.1 (content-length).

import type { HeaderTable } from '../http1/header-table.ts';
import type { Connection } from '../io/connection.ts';
import type { Http2Session } from './session.ts';

/** One stream from its first frame until nothing of it is in use any more. */
export class Http2Stream {
  id = 0;
  session: Http2Session | null = null;
  /** What the layers above know it as. */
  connection: Connection | null = null;

  // -- state (RFC 9113 §5.1) ----------------------------------------------------
  /** The peer has sent END_STREAM. */
  remoteEnded = false;
  /** We have sent END_STREAM. */
  localEnded = false;
  /** We, as the client, have sent nothing yet: its number is not known to the peer. */
  unsent = false;
  /** A reset has been sent or received: nothing more may be sent. */
  reset = false;
  /** The head of the message has come: a further header block is a trailer section. */
  headReceived = false;
  /** Code of the RST_STREAM that `close` sends if the stream has not ended on both sides. */
  resetCode = 0;

  // -- receiving ------------------------------------------------------------------
  /** Bytes that the peer may still send. */
  receiveWindowBytes = 0;
  /** Bytes that have been consumed and not yet given back by WINDOW_UPDATE. */
  receiveDueBytes = 0;
  /** Content-Length of the message that is being received; -1: none given. */
  contentLength = -1;
  /** Payload of its DATA frames so far. */
  receivedBytes = 0;
  /** Payload of the frame at hand, offered where it lies (`connection.ahead`) and not taken yet. */
  offeredBytes = 0;
  /** Payload of the frame at hand that `recv` is to copy, and where it lies. */
  frameOffset = 0;
  frameBytes = 0;
  /** DATA that nobody has taken yet: a chain of blocks (one small one, or large ones). */
  inputFirst = 0;
  inputLast = 0;
  /** Where unread bytes start in the first block, and end in the last. */
  inputStart = 0;
  inputEnd = 0;
  inputBytes = 0;
  /** Trailer section; its lines are in `trailersBlock`. */
  trailers: HeaderTable | null = null;
  trailersBlock = 0;

  // -- sending ----------------------------------------------------------------------
  /** Bytes that the peer's stream window takes; negative after it was made smaller. */
  sendWindowBytes = 0;
  /** The connection's unsent output is the last of the message: END_STREAM goes with its last byte. */
  ending = false;
  /** Block with a trailer section, as lines from `tailOffset` to `tailLength`, that goes after the unsent output; 0: none. */
  tailBlock = 0;
  tailOffset = 0;
  tailLength = 0;
  /** Its fields are never-indexed. */
  tailSecret = false;
  /** Where its last frame ends in what has been written to the connection (`session.writtenBytes`). */
  writtenEnd = 0;
  /** Waits for its own window: a WINDOW_UPDATE wakes it up. */
  windowBlocked = false;
  /** Waits in the session's queue for the connection's window or socket. */
  queued = false;
  queueNext: Http2Stream | null = null;
  queuePrevious: Http2Stream | null = null;

  /** Back to the state of a new stream; its blocks must have been freed. */
  clear(): void {
    this.id = 0;
    this.session = null;
    this.connection = null;
    this.remoteEnded = false;
    this.localEnded = false;
    this.unsent = false;
    this.reset = false;
    this.headReceived = false;
    this.resetCode = 0;
    this.receiveWindowBytes = 0;
    this.receiveDueBytes = 0;
    this.contentLength = -1;
    this.receivedBytes = 0;
    this.offeredBytes = 0;
    this.frameBytes = 0;
    this.inputFirst = 0;
    this.inputLast = 0;
    this.inputStart = 0;
    this.inputEnd = 0;
    this.inputBytes = 0;
    this.trailers = null;
    this.trailersBlock = 0;
    this.sendWindowBytes = 0;
    this.ending = false;
    this.tailBlock = 0;
    this.tailOffset = 0;
    this.tailLength = 0;
    this.tailSecret = false;
    this.writtenEnd = 0;
    this.windowBlocked = false;
    this.queued = false;
    this.queueNext = null;
    this.queuePrevious = null;
  }
}

const TABLE_SLOTS_MIN = 16;

/** Streams of one connection by number: open addressing, at most half full. */
export class StreamTable {
  /** A power of two of them. */
  private slots: (Http2Stream | null)[] = new Array<Http2Stream | null>(TABLE_SLOTS_MIN).fill(null);
  count = 0;

  /** Stream with a number, or null. */
  get(id: number): Http2Stream | null {
    const { slots } = this;
    const mask = slots.length - 1;
    for (let slot = (id >> 1) & mask; ; slot = (slot + 1) & mask) {
      const stream = slots[slot];
      if (stream === null || stream.id === id) return stream;
    }
  }

  /** Adds a stream whose number is in the table not yet. */
  add(stream: Http2Stream): void {
    if ((this.count + 1) * 2 > this.slots.length) this.grow();
    this.count++;
    this.place(stream);
  }

  /** Removes a stream that is in the table. */
  remove(stream: Http2Stream): void {
    const { slots } = this;
    const mask = slots.length - 1;
    let hole = (stream.id >> 1) & mask;
    while (slots[hole] !== stream) hole = (hole + 1) & mask;
    this.count--;
    // Those behind the hole that would not be found any more move up.
    for (let slot = (hole + 1) & mask; ; slot = (slot + 1) & mask) {
      const other = slots[slot];
      if (other === null) break;
      const home = (other.id >> 1) & mask;
      if (((slot - home) & mask) < ((slot - hole) & mask)) continue;
      slots[hole] = other;
      hole = slot;
    }
    slots[hole] = null;
  }

  /** Number of places; `at` gives what is in each. Removing streams moves others. */
  get capacity(): number {
    return this.slots.length;
  }

  /** Stream in a place, or null. */
  at(slot: number): Http2Stream | null {
    return this.slots[slot];
  }

  /** Any stream, or null if there is none. */
  any(): Http2Stream | null {
    if (this.count === 0) return null;
    for (const stream of this.slots) if (stream !== null) return stream;
    return null;
  }

  private place(stream: Http2Stream): void {
    const { slots } = this;
    const mask = slots.length - 1;
    let slot = (stream.id >> 1) & mask;
    while (slots[slot] !== null) slot = (slot + 1) & mask;
    slots[slot] = stream;
  }

  private grow(): void {
    const old = this.slots;
    this.slots = new Array<Http2Stream | null>(old.length * 2).fill(null);
    for (const stream of old) if (stream !== null) this.place(stream);
  }
}
