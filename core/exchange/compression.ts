// Compression of response bodies, as the packet worker sees it: it hands bytes to a compressor, which runs in
// another thread, and passes on what comes back. The response waits meanwhile.
//
//   piece of the body --> slot (or, while that is busy, blocks) --> compressor --> slot --> client
//
// One piece at a time is with the compressor, whose answer is flushed: a client has all that the upstream sent
// before it paused. While bytes are there, or the client has not taken what it was sent, nothing more is read
// from the upstream; so an exchange holds two pieces at most (and what a reset HTTP/2 stream had left behind).
// An exchange that ends for another reason leaves its slot to be cleared by the compressor.
// Owned by one worker. Hot module: no allocation, exception, promise, closure or log line.

import { Method, type ResponseHead } from '../http1/message.ts';
import { HEADROOM_BYTES, LARGE_BLOCK_BYTES } from '../io/arena.ts';
import type { Reactor } from '../io/reactor.ts';
import { Counter } from '../telemetry/metrics.ts';
import { BodyPiece } from './body.ts';
import { ContentCoding, isCompressible, rewriteCodedHead } from './content-coding.ts';
import { BodyFraming, type Exchange } from './exchange.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { GZIP, IDENTITY } = ContentCoding;
const { NONE } = BodyFraming;
const { HEAD } = Method;
const { COMPRESSED_RESPONSES, COMPRESSION_BYTES_IN, COMPRESSION_BYTES_OUT, COMPRESSION_SKIPPED } = Counter;

/** What a compressor answered: give more input; there is more output; the body is complete; it failed. */
export const CompressorResult = { READY: 0, MORE: 1, ENDED: 2, FAILED: 3 } as const;

const { ENDED, FAILED, MORE } = CompressorResult;

/** What compresses, in slots, one body in each. A slot belongs to either side in turn. */
export interface Compressor {
  /** Slots are 0 to this. */
  readonly slotCount: number;
  /** Most bytes that a slot takes at once. */
  readonly inputBytesMax: number;
  /** Answers are there for which nobody will wake the worker: the compressor has no thread of its own. */
  readonly hasAnswers: boolean;
  /** Takes a slot for a body in a coding (ContentCoding) at a level; -1: there is none. */
  open(coding: number, level: number): number;
  /** Lays bytes of `memory` into a slot of ours, behind those that are there: as many as it takes. */
  put(slot: number, memory: Uint8Array, offset: number, length: number): void;
  /** Gives the slot to the compressor; `end`: the body ends with what is in it. */
  submit(slot: number, end: boolean): void;
  /** A slot that has been answered since (or has lost its compressor), or -1. */
  next(): number;
  /** CompressorResult of a slot that was answered, and the length of its output. */
  resultOf(slot: number): number;
  outputBytes(slot: number): number;
  /** Lays the output into `memory`. */
  take(slot: number, memory: Uint8Array, offset: number): void;
  /** Gives back a slot of ours; what is unfinished in it is forgotten. */
  close(slot: number): void;
}

/** A response body on its way through a compressor. One per slot, reused. */
export class CompressedBody {
  readonly slot: number;
  /** Null: nobody waits for it any more. */
  exchange: Exchange | null = null;
  /** The compressor has the slot. */
  busy = false;
  /** It has more output than fits. */
  more = false;
  /** The whole body has come, and been submitted; and the upstream has been let go. */
  inputEnded = false;
  endSubmitted = false;
  upstreamDone = false;
  /** Bytes that wait for the slot, in a chain of large blocks. */
  firstBlock = 0;
  lastBlock = 0;
  start = 0;
  end = 0;
  pendingBytes = 0;

  constructor(slot: number) {
    this.slot = slot;
  }
}

export class Compression {
  private readonly reactor: Reactor;
  private readonly counters: Float64Array;
  private readonly piece = new BodyPiece();
  private compressor: Compressor | null = null;
  private bodies: CompressedBody[] = [];

  constructor(reactor: Reactor, counters: Float64Array) {
    this.reactor = reactor;
    this.counters = counters;
  }

  /** Answers may be there although nobody wakes the worker for them. */
  get hasAnswers(): boolean {
    return this.compressor?.hasAnswers === true;
  }

  /**
   * Takes a compressor; null: there is none any more. What another one had in work has failed. Between two
   * batches, seldom.
   */
  use(compressor: Compressor | null): void {
    for (let i = 0; i < this.bodies.length; i++) this.abandon(this.bodies[i]);
    this.compressor = compressor;
    this.bodies = [];
    const count = compressor === null ? 0 : compressor.slotCount;
    for (let slot = 0; slot < count; slot++) this.addBody(slot);
  }

  private addBody(slot: number): void {
    this.bodies.push(new CompressedBody(slot));
  }

  private abandon(body: CompressedBody): void {
    const { exchange } = body;
    if (exchange === null) return;
    this.detach(body);
    exchange.downstreamSide!.compressionFailed(exchange);
  }

  // -- responses ------------------------------------------------------------------

  /**
   * Decides whether a response is compressed, before its head is written: then its head has been changed, and
   * `exchange.compression` is set. `piece` is the first piece of the body. Returns where the head starts now.
   */
  begin(exchange: Exchange, headOffset: number, head: ResponseHead, piece: BodyPiece): number {
    const { reactor, compressor, counters } = this;
    const policy = exchange.policy!.compression!;
    if (exchange.grpc !== 0 || exchange.generated || exchange.tunnel) return headOffset;
    if (exchange.method === HEAD || exchange.responseOutFraming === NONE || head.contentLength === 0) return headOffset;
    if (piece.end && piece.trailers !== null) return headOffset;
    const knownBytes = piece.end ? piece.payloadLength : head.contentLength;
    if (!isCompressible(reactor.memory, head, knownBytes, policy)) return headOffset;
    let { coding } = exchange;
    let slot = -1;
    if (coding !== IDENTITY) {
      if (compressor !== null) slot = compressor.open(coding, policy.levels[coding]);
      if (slot < 0) counters[COMPRESSION_SKIPPED]++;
    }
    if (slot < 0) coding = IDENTITY;
    const start = rewriteCodedHead(reactor, headOffset, head, coding);
    if (start < 0) {
      if (slot >= 0) compressor!.close(slot);
      return headOffset;
    }
    if (slot < 0) return start;
    const body = this.bodies[slot];
    body.exchange = exchange;
    exchange.compression = body;
    counters[COMPRESSED_RESPONSES + coding - GZIP]++;
    return start;
  }

  /** Takes a piece of the body. Returns false when no buffer is left for it. */
  push(exchange: Exchange, piece: BodyPiece): boolean {
    const { reactor, counters } = this;
    const body = exchange.compression!;
    const { memory } = reactor;
    counters[COMPRESSION_BYTES_IN] += piece.payloadLength;
    let offset = piece.payloadOffset;
    let length = piece.payloadLength;
    if (piece.end) body.inputEnded = true;
    if (this.isFree(body) && exchange.downstream!.outputBytes === 0 && (length > 0 || piece.end)) {
      const compressor = this.compressor!;
      const count = Math.min(length, compressor.inputBytesMax);
      if (count > 0) compressor.put(body.slot, memory, offset, count);
      offset += count;
      length -= count;
      this.submit(body, length === 0);
    }
    if (length > 0 && !this.keep(body, offset, length)) return false;
    exchange.responsePaused = body.busy || body.pendingBytes > 0;
    return true;
  }

  /** The upstream has sent everything. Returns true when the response ends only later. */
  upstreamDone(exchange: Exchange): boolean {
    if (exchange.compression === null) return false;
    exchange.compression.upstreamDone = true;
    return true;
  }

  /** The client has taken everything that was sent to it. */
  drained(exchange: Exchange): void {
    const body = exchange.compression!;
    if (!body.busy) this.goOn(body);
  }

  /** An exchange is over, whatever of its body is still on the way. */
  release(exchange: Exchange): void {
    const body = exchange.compression!;
    this.detach(body);
    if (this.bodies[body.slot] === body && !body.busy) this.closeSlot(body);
  }

  /** Takes the answers of the compressor. */
  collect(): void {
    const { compressor } = this;
    if (compressor === null) return;
    for (;;) {
      const slot = compressor.next();
      if (slot < 0) return;
      this.answered(this.bodies[slot]);
      // A handler may have ended the compressor's time.
      if (this.compressor !== compressor) return;
    }
  }

  // -- one body ---------------------------------------------------------------------

  private isFree(body: CompressedBody): boolean {
    return !body.busy && !body.more && body.pendingBytes === 0;
  }

  private submit(body: CompressedBody, all: boolean): void {
    body.busy = true;
    body.endSubmitted = body.inputEnded && all;
    this.compressor!.submit(body.slot, body.endSubmitted);
  }

  private answered(body: CompressedBody): void {
    const compressor = this.compressor!;
    const { exchange, slot } = body;
    const result = compressor.resultOf(slot);
    body.busy = false;
    if (exchange === null) {
      this.closeSlot(body);
      return;
    }
    if (result === FAILED) {
      this.abandon(body);
      this.closeSlot(body);
      return;
    }
    const { reactor, piece } = this;
    const downstream = exchange.downstreamSide!;
    const length = compressor.outputBytes(slot);
    body.more = result === MORE;
    piece.payloadOffset = reactor.arena.scratchOffset + HEADROOM_BYTES;
    piece.payloadLength = length;
    piece.end = result === ENDED;
    piece.trailers = null;
    if (length > 0) compressor.take(slot, reactor.memory, piece.payloadOffset);
    this.counters[COMPRESSION_BYTES_OUT] += length;
    if ((length > 0 || piece.end) && !downstream.sendCompressed(exchange, piece)) return;
    if (result === ENDED) {
      const { upstreamDone } = body;
      this.detach(body);
      this.closeSlot(body);
      if (upstreamDone) downstream.compressionComplete(exchange);
    } else if (exchange.downstream!.outputBytes === 0) {
      this.goOn(body);
    }
  }

  /** The slot is ours, and the client takes bytes: what is to be done next. */
  private goOn(body: CompressedBody): void {
    const { reactor } = this;
    const compressor = this.compressor!;
    const exchange = body.exchange!;
    if (body.more) {
      this.submit(body, body.endSubmitted);
    } else if (body.pendingBytes > 0) {
      this.putPending(body, compressor);
      this.submit(body, body.pendingBytes === 0);
    } else if (body.inputEnded && !body.endSubmitted) {
      this.submit(body, true);
    } else {
      exchange.responsePaused = false;
      if (exchange.upstream !== null) reactor.resume(exchange.upstream);
    }
  }

  private detach(body: CompressedBody): void {
    const exchange = body.exchange!;
    exchange.compression = null;
    exchange.responsePaused = false;
    body.exchange = null;
    while (body.firstBlock !== 0) this.dropBlock(body);
    body.pendingBytes = 0;
  }

  private closeSlot(body: CompressedBody): void {
    body.more = false;
    body.inputEnded = false;
    body.endSubmitted = false;
    body.upstreamDone = false;
    this.compressor!.close(body.slot);
  }

  // -- bytes that wait ----------------------------------------------------------------

  /** Keeps bytes until the slot takes them. */
  private keep(body: CompressedBody, offset: number, length: number): boolean {
    const { arena, memory } = this.reactor;
    while (length > 0) {
      if (body.lastBlock === 0 || body.end === body.lastBlock + LARGE_BLOCK_BYTES) {
        // Small blocks cannot be chained.
        const block = arena.allocate(LARGE_BLOCK_BYTES);
        if (block === 0) return false;
        arena.setNext(block, 0);
        if (body.lastBlock === 0) {
          body.firstBlock = block;
          body.start = block;
        } else {
          arena.setNext(body.lastBlock, block);
        }
        body.lastBlock = block;
        body.end = block;
      }
      const count = Math.min(length, body.lastBlock + LARGE_BLOCK_BYTES - body.end);
      memory.copyWithin(body.end, offset, offset + count);
      body.end += count;
      body.pendingBytes += count;
      offset += count;
      length -= count;
    }
    return true;
  }

  /** Lays as many of them as it takes into the slot. */
  private putPending(body: CompressedBody, compressor: Compressor): void {
    const { memory } = this.reactor;
    let room = compressor.inputBytesMax;
    while (room > 0 && body.pendingBytes > 0) {
      const block = body.firstBlock;
      const blockEnd = block === body.lastBlock ? body.end : block + LARGE_BLOCK_BYTES;
      const count = Math.min(room, blockEnd - body.start);
      compressor.put(body.slot, memory, body.start, count);
      body.start += count;
      body.pendingBytes -= count;
      room -= count;
      if (body.start === blockEnd) this.dropBlock(body);
    }
  }

  private dropBlock(body: CompressedBody): void {
    const { arena } = this.reactor;
    const block = body.firstBlock;
    const next = block === body.lastBlock ? 0 : arena.next(block);
    arena.free(block);
    body.firstBlock = next;
    body.start = next;
    if (next === 0) body.lastBlock = 0;
  }
}
