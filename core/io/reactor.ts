// The event loop of one packet worker: wait, handle the whole batch, go round again.
//
// Sockets are watched edge-triggered and registered once: readiness is remembered in the connection
// until it is used up, so pausing a reader for backpressure costs no system call. A paused reader
// that is resumed, or one that used its turn, waits in the ready queue and is served in the same or
// the next batch. Owned by one worker; knows sockets, slots, timers and buffers, no protocol.
// Hot module: no allocation, exception, promise, closure or log line per event.

import type { WorkloadRuntime } from '../exchange/mesh-runtime.ts';
import { Errno } from '../ffi/errno.ts';
import { BATCH_MAX, BATCH_WORDS, Epoll, type Kernel, SEGMENTS_MAX, Shutdown } from '../ffi/kernel.ts';
import { Family } from '../ffi/sockaddr.ts';
import {
  AHEAD_BYTES_MAX,
  AHEAD_STRIDE_BYTES,
  Arena,
  BULK_RECEIVE_BYTES_MAX,
  HEADROOM_BYTES,
  LARGE_BLOCK_BYTES,
  RECEIVE_AREA_BYTES,
  RECEIVE_BYTES_MAX,
  SMALL_BLOCK_BYTES,
  TAILROOM_BYTES,
} from './arena.ts';
import { noBytes } from './bytes.ts';
import { Connection, type PeerAddress, type Protocol } from './connection.ts';
import { TimerWheel } from './timer-wheel.ts';
import type { Transport } from './transport.ts';
import { type Party, RESUMED, Turns } from './turns.ts';

/** A stream socket: everything, edge-triggered, registered once for its whole life. */
const STREAM_EVENTS = Epoll.IN | Epoll.OUT | Epoll.RDHUP | Epoll.ET;

/** Most sends put off to the end of a batch. */
const DEFERRED_MAX = 1024;

/** Words of a deferred send: generation, offset, length, and the block to free afterwards or 0. */
const DEFERRED_WORDS = 4;

/** Most bytes that are gathered for one socket: as much as a block holds, in case it takes none. */
const GATHERED_BYTES_MAX = LARGE_BLOCK_BYTES;

/** A receive this short makes its connection one whose next message is received ahead. */
const SMALL_INPUT_BYTES = 1024;

/** Results of a receive ahead besides counts and negative error numbers: end of the stream, no block to keep it. */
const AHEAD_END = -0x10000;
const AHEAD_NO_BUFFER = -0x10001;

/** Why a connection that was ready is not: nothing had come. */
const NOTHING_AHEAD = -Errno.EAGAIN;

const CACHE_LINE_BYTES = 64;

/** Held input may reach as far into the receive area as leaves room for the largest receive behind it. */
const HELD_BYTES_MAX =
  RECEIVE_AREA_BYTES - BULK_RECEIVE_BYTES_MAX - 2 * HEADROOM_BYTES - 2 * TAILROOM_BYTES - CACHE_LINE_BYTES;

/** Connections within each other whose output leaves in one batch, the outermost included; what is deeper, in the next. */
const NESTING_MAX = 3;

/** Turns that are taken before what they wrote leaves, where one workload has them all, and where several do. */
const TURNS_PER_BATCH = 64;
const TURNS_PER_SHARED_BATCH = 16;

/** Turns that are taken before the system is asked who else is ready: what somebody else may have to wait for. */
const TURNS_PER_LOOK = 8;

/** How often the wall clock is read: a clock that is set shows after at most this time. */
const WALL_CHECK_MS = 500;

/** Result of `fill` when there is nothing to read now. */
export const FILL_AGAIN = -1;
/** Result of `fill` when the peer has finished sending, and all it sent has been taken. */
export const FILL_END = 0;
/** Result of `fill` after a receive error; `connection.errno` says which. */
export const FILL_ERROR = -2;
/** Result of `fill` when no block is left to hold what has to be kept. */
export const FILL_NO_BUFFER = -3;
/** Result of `fill` when the unread input already fills a large block. */
export const FILL_FULL = -4;

export class Reactor {
  readonly kernel: Kernel;
  readonly arena: Arena;
  readonly memory: Uint8Array;
  /** The same bytes, for writing words. */
  readonly view: DataView;
  readonly timers: TimerWheel;
  /** Monotonic time of the current batch. */
  nowMs = 0;
  /** Wall-clock time of the current batch. */
  wallMs = 0;
  /** Bytes available after `fill`: where, and how many. */
  inputOffset = 0;
  inputLength = 0;
  private wallOffsetMs = 0;
  private wallCheckMs = 0;
  /** Connections open now. */
  open = 0;

  private readonly epoll: number;
  private readonly connections: (Connection | undefined)[] = [];
  private readonly slotsMax: number;
  private readonly freeSlots: Int32Array;
  private freeSlotCount = 0;
  /** Descriptor plus one of each slot, shared with the control thread (see protocol.ts). */
  private readonly descriptors: Int32Array;
  /** Ring of slots to serve. A slot is in it at most once; its present occupant is served. */
  private readonly readyQueue: Int32Array;
  private readyHead = 0;
  private readyCount = 0;
  /** Deferred sends of this batch, and the next one to do: DEFERRED_WORDS of each. */
  private readonly deferredConnections: Connection[] = [];
  private readonly deferredWords = new Int32Array(DEFERRED_MAX * DEFERRED_WORDS);
  private deferredCount = 0;
  private deferredNext = 0;
  /** Connections whose deferred send has failed, and the next one to be told; with their generations. */
  private readonly failedConnections: Connection[] = [];
  private readonly failedGenerations: number[] = [];
  private failedCount = 0;
  private failedNext = 0;
  /** Connections of the operations in `kernel.batch`, while it is sent. */
  private readonly sending: Connection[] = [];
  /** Connections of the present group that something was received for ahead of their turn. */
  private readonly aheadConnections: Connection[] = [];
  private readonly aheadGenerations = new Int32Array(BATCH_MAX);
  private aheadCount = 0;
  /** Bytes of the receive area that messages received ahead still need. */
  private aheadBytes = 0;
  /** Bytes of the receive area that deferred sends still need, and that `holdInput` keeps. */
  private deferredBytes = 0;
  private heldBytes = 0;
  /** Bytes of the receive area that all of those still need. */
  private stagedBytes = 0;
  /** Node proxies: told when a connection that counts at a workload is over. */
  onWorkloadConnectionClosed: (workload: WorkloadRuntime, side: number) => void = () => {};
  /** Node proxies: whose turn it is; null: this is a gateway. */
  turns: Turns | null = null;
  /** Node proxies: the next batch is measured, turn by turn (`Party.busyMs`). */
  measured = false;
  /** Connections that have something to do at the end of the batch; with their generations. */
  private readonly endConnections: Connection[] = [];
  private readonly endGenerations: number[] = [];
  private endCount = 0;
  private readonly segments = new Int32Array(SEGMENTS_MAX * 2);
  /** Connection whose transport is corked; with its generation. */
  private corked: Connection | null = null;
  private corkedGeneration = 0;
  /** What is sent with `sendGathered` is gathered, since somebody ends that. */
  private gathering = false;
  /** Connection that something is gathered for, and that: offset and length of each piece. */
  private gathered: Connection | null = null;
  private readonly gatheredSegments = new Int32Array(SEGMENTS_MAX * 2);
  private gatheredCount = 0;
  private gatheredBytes = 0;
  private readonly expire = (slot: number): void => {
    const connection = this.connections[slot];
    if (connection !== undefined && connection.protocol !== null) connection.protocol.expired(connection);
  };

  /**
   * A reactor with `slotsMax` connection slots. `descriptors` has one Int32 per slot; two more, if
   * there are, take the epoll instance and what `noteSpare` is told.
   * Throws when the system refuses an epoll instance.
   */
  constructor(kernel: Kernel, slotsMax: number, descriptors: Int32Array) {
    this.kernel = kernel;
    this.arena = new Arena(kernel);
    this.memory = kernel.memory;
    this.view = new DataView(this.memory.buffer, this.memory.byteOffset, this.memory.byteLength);
    this.slotsMax = slotsMax;
    this.freeSlots = new Int32Array(slotsMax);
    this.descriptors = descriptors;
    this.readyQueue = new Int32Array(slotsMax);
    this.timers = new TimerWheel(slotsMax, kernel.nowMs());
    this.readClocks();
    this.epoll = kernel.epollCreate();
    if (this.epoll < 0) throw new Error(`epoll_create1 failed: errno ${-this.epoll}`);
    descriptors[slotsMax] = this.epoll + 1;
  }

  /** Notes a descriptor that is no connection (negative: none any more), so that it outlives no crash. */
  noteSpare(fd: number): void {
    this.descriptors[this.slotsMax + 1] = Math.max(fd, -1) + 1;
  }

  /** Slots that can still be given out. */
  get slotsFree(): number {
    return this.freeSlotCount + this.slotsMax - this.connections.length;
  }

  /**
   * Waits for events, at most until the next deadline or `maxWaitMs` (-1: no limit), and handles
   * them all. Returns the number of events.
   */
  runBatch(maxWaitMs: number): number {
    let waitMs = this.hasReady ? 0 : maxWaitMs;
    if (waitMs !== 0) {
      const timerMs = this.timers.waitMs(this.nowMs);
      if (timerMs >= 0 && (waitMs < 0 || timerMs < waitMs)) waitMs = timerMs;
    }
    let count = this.kernel.epollWait(this.epoll, waitMs);
    this.readClocks();
    if (this.turns !== null) count = this.runTurns(this.turns, count);
    else this.runEvents(count);
    if (this.timers.isDue(this.nowMs)) this.timers.advance(this.nowMs, this.expire);
    // What a deferred send puts into a stream leaves with the connection that carries the stream, in the same batch.
    for (let depth = 0; depth < NESTING_MAX; depth++) {
      if (this.endCount > 0) this.endBatch();
      if (this.deferredCount > 0) this.flushDeferred();
      if (this.endCount === 0) break;
    }
    if (this.failedCount > 0) this.tellFailed();
    return Math.max(count, 0);
  }

  private runEvents(count: number): void {
    // Only those that wait already are served: what queues itself in this batch has its turn in the next.
    const waiting = this.readyCount;
    for (let first = 0; first < count; first += BATCH_MAX) {
      const end = Math.min(first + BATCH_MAX, count);
      if (first > 0 && this.deferredCount > 0) this.flushDeferred();
      if (end - first > 1) this.receiveAhead(first, end);
      for (let i = first; i < end; i++) this.dispatch(i);
      if (this.aheadCount > 0) this.endAhead();
    }
    for (let i = 0; i < waiting; i++) this.serveReady();
  }

  /** Whether a connection waits in the ready queue or for the end of a batch, so that the next batch must not sleep. */
  get hasReady(): boolean {
    return this.readyCount > 0 || this.endCount > 0 || (this.turns !== null && this.turns.waiting > 0);
  }

  // -- node proxies: turns ------------------------------------------------------

  /** From now on workloads take turns, and the blocks that they take are counted. */
  shareFairly(): void {
    this.turns ??= new Turns(this.slotsMax);
    this.arena.keepOwners();
  }

  /** Lets everything that is ready wait for its turn, and serves those whose turn it is. Returns how many. */
  private runTurns(turns: Turns, count: number): number {
    const { epoll, kernel } = this;
    const { events, eventStride, eventDataIndex } = kernel;
    this.arena.party = null;
    this.queueEvents(turns, count);
    // Only those that wait already: what queues itself in this batch has its turn in the next.
    for (let left = this.readyCount; left > 0; left--) {
      const slot = this.takeReady();
      const connection = this.connections[slot];
      if (connection === undefined) continue;
      turns.add(slot, connection.generation, RESUMED, partyOf(connection) ?? turns.nobody);
    }
    for (let served = 0; ; ) {
      const taken = turns.take(events, eventStride, eventDataIndex, TURNS_PER_LOOK);
      if (taken > 1) this.receiveAhead(0, taken);
      this.serveTurns(turns, taken);
      if (this.aheadCount > 0) this.endAhead();
      served += taken;
      // What the others wrote can wait for more of the same; what one of few turns wrote would wait for theirs.
      const most = turns.isShared ? TURNS_PER_SHARED_BATCH : TURNS_PER_BATCH;
      if (turns.waiting === 0 || turns.tookLight || served >= most) return served;
      this.queueEvents(turns, kernel.epollWait(epoll, 0));
    }
  }

  private queueEvents(turns: Turns, count: number): void {
    const { events, eventStride, eventDataIndex } = this.kernel;
    for (let i = 0; i < count; i++) {
      const word = i * eventStride;
      const slot = events[word + eventDataIndex];
      const generation = events[word + eventDataIndex + 1];
      const connection = this.connections[slot];
      if (connection === undefined || connection.generation !== generation) continue;
      turns.add(slot, generation, events[word], partyOf(connection) ?? turns.nobody);
    }
  }

  private serveTurns(turns: Turns, count: number): void {
    const { arena, kernel, measured } = this;
    const { events, eventStride, eventDataIndex } = kernel;
    let beforeMs = measured ? kernel.nowMs() : 0;
    for (let i = 0; i < count; i++) {
      const word = i * eventStride;
      const bits = events[word];
      const connection = this.connections[events[word + eventDataIndex]]!;
      // The handler may close it.
      const party = partyOf(connection);
      arena.party = party;
      if ((bits & RESUMED) === 0) {
        this.dispatch(i);
      } else {
        connection.queued = false;
        events[word] = bits & ~RESUMED;
        if (events[word] !== 0) this.dispatch(i);
        if ((events[word] & ~Epoll.OUT) === 0 && connection.protocol !== null) connection.protocol.readable(connection);
      }
      if (measured) {
        const afterMs = kernel.nowMs();
        (party ?? turns.nobody).busyMs += afterMs - beforeMs;
        beforeMs = afterMs;
      }
    }
    arena.party = null;
  }

  /**
   * Has `protocol.batchEnd` called once at the end of this batch (of the next one between two batches),
   * before the deferred sends leave. To be called at most once per connection and batch.
   */
  atBatchEnd(connection: Connection): void {
    this.endConnections[this.endCount] = connection;
    this.endGenerations[this.endCount++] = connection.generation;
  }

  /** Those that ask for it meanwhile have their turn in the same round. */
  private endBatch(): void {
    for (let i = 0; i < this.endCount; i++) {
      const connection = this.endConnections[i];
      if (connection.generation === this.endGenerations[i]) connection.protocol!.batchEnd!(connection);
    }
    this.endCount = 0;
  }

  /**
   * Takes a slot for a stream socket and watches it. Returns null, with the descriptor closed,
   * when no slot is free or the system refuses.
   */
  openStream(fd: number, protocol: Protocol): Connection | null {
    return this.register(fd, protocol, STREAM_EVENTS);
  }

  /** Watches a listening socket or eventfd level-triggered; the descriptor stays the caller's on failure. */
  openWatch(fd: number, protocol: Protocol): Connection | null {
    return this.register(fd, protocol, Epoll.IN);
  }

  /**
   * Takes a slot for a stream inside another connection: no descriptor, no events; whoever drives the
   * transport calls its protocol. Returns null when no slot is free.
   */
  openVirtual(protocol: Protocol, transport: Transport): Connection | null {
    const connection = this.takeSlot();
    if (connection === null) return null;
    connection.protocol = protocol;
    connection.transport = transport;
    connection.openedMs = this.nowMs;
    return connection;
  }

  /** Stops watching a descriptor that the control thread owns, without closing it. */
  closeWatch(connection: Connection): void {
    this.kernel.epollDelete(this.epoll, connection.fd);
    this.recycle(connection);
  }

  /** Stops or starts events for a watched listener (for a pause while descriptors are short). */
  pauseWatch(connection: Connection, paused: boolean): void {
    this.kernel.epollModify(this.epoll, connection.fd, paused ? 0 : Epoll.IN, connection.slot, connection.generation);
  }

  /** Closes the socket, frees its buffers and its slot. With `abort` the peer sees a reset. */
  close(connection: Connection, abort: boolean): void {
    if (this.gathered === connection) this.flushGathered();
    if (connection.transport !== null) {
      connection.transport.close(connection, abort);
    } else {
      if (abort) this.kernel.abortOnClose(connection.fd);
      this.kernel.close(connection.fd);
    }
    this.freeInput(connection);
    this.freeAhead(connection);
    this.freeOutput(connection);
    this.recycle(connection);
  }

  /** Tells the peer that our side is finished. Everything must have been sent. */
  shutdownWrite(connection: Connection): void {
    if (this.gathered === connection) this.flushGathered();
    if (connection.transport !== null) connection.transport.shutdownWrite(connection);
    else this.kernel.shutdown(connection.fd, Shutdown.WRITE);
  }

  /** Why a connection failed, or 0. */
  socketError(connection: Connection): number {
    if (connection.transport !== null) return connection.transport.error(connection);
    return this.kernel.socketError(connection.fd);
  }

  /** Has `protocol.expired` called after `delayMs` (a whole number); replaces an earlier timer. */
  setTimer(connection: Connection, delayMs: number): void {
    this.timers.setDelay(connection.slot, delayMs);
  }

  /** Removes the timer of a connection. */
  clearTimer(connection: Connection): void {
    this.timers.clear(connection.slot);
  }

  /** Puts a connection into the ready queue: its `readable` is called again soon. */
  enqueue(connection: Connection): void {
    if (connection.queued) return;
    connection.queued = true;
    let tail = this.readyHead + this.readyCount;
    if (tail >= this.slotsMax) tail -= this.slotsMax;
    this.readyQueue[tail] = connection.slot;
    this.readyCount++;
  }

  /** Resumes a reader that had been paused: served soon if it has anything to read. */
  resume(connection: Connection): void {
    if (connection.readReady || connection.inputLength > 0) this.enqueue(connection);
  }

  /** Reads the monotonic clock; the wall clock follows it and is only read again now and then. */
  private readClocks(): void {
    const nowMs = this.kernel.nowMs();
    if (nowMs >= this.wallCheckMs) {
      this.wallOffsetMs = this.kernel.wallMs() - nowMs;
      this.wallCheckMs = nowMs + WALL_CHECK_MS;
    }
    this.nowMs = nowMs;
    this.timers.nowMs = nowMs;
    this.wallMs = nowMs + this.wallOffsetMs;
  }

  // -- input -----------------------------------------------------------------

  /**
   * Makes unread bytes of a connection available at `inputOffset` / `inputLength`: what it kept
   * plus what one receive brings. Without kept bytes they lie in the shared receive area and are
   * valid only until the next `fill`. Returns the number of available bytes if any are new,
   * or one of the FILL_ values. `bytesMax` (up to BULK_RECEIVE_BYTES_MAX) may be larger than the
   * default only when at most RECEIVE_BYTES_MAX of them will have to be kept as input.
   */
  fill(connection: Connection, bytesMax = RECEIVE_BYTES_MAX): number {
    if (connection.ahead !== 0) return this.takeAhead(connection);
    if (this.stagedBytes + HEADROOM_BYTES + bytesMax + TAILROOM_BYTES > RECEIVE_AREA_BYTES) {
      const { generation } = connection;
      this.flushDeferred();
      // A failure handler may have closed this very connection.
      if (connection.generation !== generation) return FILL_AGAIN;
    }
    let offset = this.arena.receiveOffset + this.stagedBytes;
    let capacity = bytesMax;
    if (connection.inputLength > 0) {
      const status = this.makeInputRoom(connection);
      if (status !== 0) return status;
      offset = connection.inputOffset + connection.inputLength;
      capacity = connection.inputBlock + this.arena.sizeOf(connection.inputBlock) - TAILROOM_BYTES - offset;
    }
    const { transport } = connection;
    const count =
      transport === null
        ? this.kernel.recv(connection.fd, offset, capacity)
        : transport.recv(connection, offset, capacity);
    if (count > 0) {
      if (transport === null) {
        // A short read has emptied the socket, unless the end of the stream is waiting behind it.
        if (count < capacity && !connection.readHangup) connection.readReady = false;
        connection.smallInput = count <= SMALL_INPUT_BYTES;
      } else {
        connection.readReady = transport.hasMore(connection);
      }
      if (connection.inputLength > 0) {
        connection.inputLength += count;
        this.inputOffset = connection.inputOffset;
        this.inputLength = connection.inputLength;
      } else {
        this.inputOffset = offset;
        this.inputLength = count;
      }
      return this.inputLength;
    }
    if (count === -Errno.EAGAIN) {
      connection.readReady = false;
      return FILL_AGAIN;
    }
    if (count === -Errno.EINTR) {
      this.enqueue(connection);
      return FILL_AGAIN;
    }
    connection.readReady = false;
    connection.readEnded = true;
    if (count === 0) return FILL_END;
    connection.errno = -count;
    return FILL_ERROR;
  }

  /**
   * Receives small messages of a group of events with one system call, before any of them is handled.
   * Handlers notice nothing: the bytes wait for their `fill`. Which connections get it is learnt from
   * what they received last, since bytes beyond AHEAD_BYTES_MAX would take a second receive.
   */
  private receiveAhead(first: number, end: number): void {
    const { kernel, connections } = this;
    const { batch, events, eventStride, eventDataIndex } = kernel;
    let offset = this.arena.receiveOffset + this.stagedBytes;
    let count = 0;
    for (let i = first; i < end; i++) {
      const word = i * eventStride;
      const bits = events[word];
      if ((bits & (Epoll.IN | Epoll.RDHUP | Epoll.HUP | Epoll.ERR)) !== Epoll.IN) continue;
      const connection = connections[events[word + eventDataIndex]];
      if (connection === undefined || !connection.smallInput) continue;
      if (connection.generation !== events[word + eventDataIndex + 1]) continue;
      if (connection.inputLength > 0 || connection.ahead !== 0) continue;
      const operation = count * BATCH_WORDS;
      batch[operation] = connection.fd;
      batch[operation + 1] = offset;
      batch[operation + 2] = AHEAD_BYTES_MAX;
      this.aheadConnections[count] = connection;
      this.aheadGenerations[count] = connection.generation;
      offset += AHEAD_STRIDE_BYTES;
      count++;
    }
    if (count < 2) return;
    kernel.recvBatch(count);
    this.aheadCount = count;
    this.aheadBytes = offset - this.arena.receiveOffset;
    this.stagedBytes = this.aheadBytes;
    for (let i = 0; i < count; i++) {
      const connection = this.aheadConnections[i];
      const result = batch[i * BATCH_WORDS + 3];
      connection.ahead = result === 0 ? AHEAD_END : result;
      connection.aheadOffset = batch[i * BATCH_WORDS + 1];
    }
  }

  /** What was received ahead, as `fill` gives it. */
  private takeAhead(connection: Connection): number {
    const result = connection.ahead;
    connection.ahead = 0;
    if (result > 0) {
      // A message that fills the room may go on behind it, and so may one that has waited for its turn.
      if (connection.transport !== null) connection.readReady = connection.transport.hasMore(connection);
      else if (result === AHEAD_BYTES_MAX) connection.smallInput = false;
      else if (!connection.readHangup && connection.aheadBlock === 0) connection.readReady = false;
      this.inputOffset = connection.aheadOffset;
      this.inputLength = result;
      if (connection.aheadBlock !== 0) {
        // Handlers rewrite what they get in place, and need the room around it.
        if (this.stagedBytes + HEADROOM_BYTES + RECEIVE_BYTES_MAX + TAILROOM_BYTES > RECEIVE_AREA_BYTES) {
          const { generation } = connection;
          this.flushDeferred();
          if (connection.generation !== generation) return FILL_AGAIN;
        }
        const offset = this.arena.receiveOffset + this.stagedBytes;
        this.memory.copyWithin(offset, connection.aheadOffset, connection.aheadOffset + result);
        this.inputOffset = offset;
        this.freeAhead(connection);
      }
      return result;
    }
    if (result === AHEAD_NO_BUFFER) return FILL_NO_BUFFER;
    if (result === -Errno.EINTR) {
      this.enqueue(connection);
      return FILL_AGAIN;
    }
    connection.readReady = false;
    if (result === NOTHING_AHEAD) return FILL_AGAIN;
    connection.readEnded = true;
    if (result === AHEAD_END) return FILL_END;
    connection.errno = -result;
    return FILL_ERROR;
  }

  /** After the group: what a paused connection has not taken moves out of the receive area. */
  private endAhead(): void {
    for (let i = 0; i < this.aheadCount; i++) {
      const connection = this.aheadConnections[i];
      if (connection.ahead === 0 || connection.generation !== this.aheadGenerations[i]) continue;
      if (connection.ahead === NOTHING_AHEAD) {
        connection.ahead = 0;
        connection.readReady = false;
      } else if (connection.ahead > 0) {
        if (this.turns !== null) this.arena.party = partyOf(connection);
        const block = this.arena.allocate(connection.ahead);
        this.arena.party = null;
        if (block === 0) {
          connection.ahead = AHEAD_NO_BUFFER;
        } else {
          this.memory.copyWithin(block, connection.aheadOffset, connection.aheadOffset + connection.ahead);
          connection.aheadBlock = block;
          connection.aheadOffset = block;
        }
      }
    }
    this.aheadCount = 0;
    this.aheadBytes = 0;
    this.restage();
  }

  private restage(): void {
    this.stagedBytes = Math.max(this.aheadBytes, this.deferredBytes, this.heldBytes);
  }

  /**
   * Keeps what the last `fill` has put at [inputOffset, end) where it is while handlers of other connections
   * run, which may fill too. Returns what `releaseInput` is to be given afterwards, or -1: there is no room
   * for that in the receive area, and `keepInput` must move the bytes to a block first.
   */
  holdInput(end: number): number {
    const before = this.heldBytes;
    const bytes = end + TAILROOM_BYTES - this.arena.receiveOffset;
    // In a block, or in front of everything that a nested receive may write to.
    if (bytes <= 0 || bytes > RECEIVE_AREA_BYTES) return before;
    if (bytes > HELD_BYTES_MAX) return -1;
    if (bytes > before) {
      this.heldBytes = ((bytes + CACHE_LINE_BYTES - 1) & -CACHE_LINE_BYTES) + HEADROOM_BYTES;
      this.restage();
    }
    return before;
  }

  /** Most bytes of a receive that `holdInput` can hold while other connections fill. */
  get heldReceiveBytesMax(): number {
    const end = this.stagedBytes + HEADROOM_BYTES + BULK_RECEIVE_BYTES_MAX + TAILROOM_BYTES;
    return end <= HELD_BYTES_MAX ? BULK_RECEIVE_BYTES_MAX : RECEIVE_BYTES_MAX;
  }

  /** Ends a hold; `before` is what `holdInput` returned. */
  releaseInput(before: number): void {
    this.heldBytes = before;
    this.restage();
  }

  private freeAhead(connection: Connection): void {
    connection.ahead = 0;
    if (connection.aheadBlock === 0) return;
    this.arena.free(connection.aheadBlock);
    connection.aheadBlock = 0;
  }

  /**
   * Whether nothing has come on a connection that nothing is expected from: neither bytes nor its end.
   * Takes them if there are any, so the connection is of no use when the answer is no.
   */
  isSilent(connection: Connection): boolean {
    if (connection.ahead !== 0 && connection.ahead !== NOTHING_AHEAD) return false;
    const { scratchOffset } = this.arena;
    if (connection.transport !== null) return connection.transport.recv(connection, scratchOffset, 1) === -Errno.EAGAIN;
    return this.kernel.recv(connection.fd, scratchOffset, 1) === -Errno.EAGAIN;
  }

  /**
   * Keeps `length` bytes at `offset` as the connection's unread input; they lie either in the
   * receive area or at the end of what it kept already. Returns false when no block is left.
   */
  keepInput(connection: Connection, offset: number, length: number): boolean {
    if (length === 0) {
      this.freeInput(connection);
      return true;
    }
    if (connection.inputBlock !== 0) {
      connection.inputOffset = offset;
      connection.inputLength = length;
      return true;
    }
    const block = this.arena.allocate(length + HEADROOM_BYTES + TAILROOM_BYTES);
    if (block === 0) return false;
    this.memory.copyWithin(block + HEADROOM_BYTES, offset, offset + length);
    connection.inputBlock = block;
    connection.inputOffset = block + HEADROOM_BYTES;
    connection.inputLength = length;
    return true;
  }

  /** Drops unread input. */
  freeInput(connection: Connection): void {
    if (connection.inputBlock === 0) return;
    this.arena.free(connection.inputBlock);
    connection.inputBlock = 0;
    connection.inputOffset = 0;
    connection.inputLength = 0;
    connection.inputScanned = 0;
  }

  /** Moves kept input to the start of its block, or into a larger one, so that a receive has room. */
  private makeInputRoom(connection: Connection): number {
    const block = connection.inputBlock;
    const start = block + HEADROOM_BYTES;
    const roomBytes = this.arena.sizeOf(block) - HEADROOM_BYTES - TAILROOM_BYTES - connection.inputLength;
    if (roomBytes >= this.arena.sizeOf(block) >> 2) {
      if (connection.inputOffset !== start) {
        this.memory.copyWithin(start, connection.inputOffset, connection.inputOffset + connection.inputLength);
        connection.inputOffset = start;
      }
      return 0;
    }
    if (this.arena.sizeOf(block) === LARGE_BLOCK_BYTES) {
      if (roomBytes <= 0) return FILL_FULL;
      if (connection.inputOffset !== start) {
        this.memory.copyWithin(start, connection.inputOffset, connection.inputOffset + connection.inputLength);
        connection.inputOffset = start;
      }
      return 0;
    }
    const larger = this.arena.allocate(SMALL_BLOCK_BYTES + 1);
    if (larger === 0) return FILL_NO_BUFFER;
    this.memory.copyWithin(
      larger + HEADROOM_BYTES,
      connection.inputOffset,
      connection.inputOffset + connection.inputLength,
    );
    this.arena.free(block);
    connection.inputBlock = larger;
    connection.inputOffset = larger + HEADROOM_BYTES;
    return 0;
  }

  // -- output ----------------------------------------------------------------

  /**
   * Sends bytes now, or keeps what the socket does not take until it does. `more` says that
   * further bytes follow in this batch. Returns false when the connection has failed (`errno`
   * says how) or no block is left (`errno` is ENOBUFS); the caller must then close it.
   */
  send(connection: Connection, offset: number, length: number, more: boolean): boolean {
    if (this.gathered === connection && !this.flushGathered()) return false;
    if (connection.deferred && !this.flushOwn(connection)) return false;
    if (connection.outputBytes > 0) return this.keepOutput(connection, offset, length);
    const count =
      connection.transport === null
        ? this.kernel.send(connection.fd, offset, length, more)
        : connection.transport.send(connection, offset, length);
    if (count === length) return true;
    return this.sentPart(connection, count, offset, length);
  }

  /** Like `send` for two pieces that lie apart, with one system call. */
  sendPair(connection: Connection, offset1: number, length1: number, offset2: number, length2: number): boolean {
    if (this.gathered === connection && !this.flushGathered()) return false;
    if (connection.deferred && !this.flushOwn(connection)) return false;
    if (connection.outputBytes > 0) {
      return this.keepOutput(connection, offset1, length1) && this.keepOutput(connection, offset2, length2);
    }
    if (connection.transport !== null) {
      return this.send(connection, offset1, length1, true) && this.send(connection, offset2, length2, false);
    }
    const segments = this.segments;
    segments[0] = offset1;
    segments[1] = length1;
    segments[2] = offset2;
    segments[3] = length2;
    const count = this.kernel.writev(connection.fd, segments, 2);
    if (count === length1 + length2) return true;
    if (count > length1) return this.sentPart(connection, count - length1, offset2, length2);
    const kept = this.sentPart(connection, count, offset1, length1) && this.keepOutput(connection, offset2, length2);
    // After an interruption the socket may have room, so that no event would come for the second piece.
    return kept && (count !== -Errno.EINTR || this.flush(connection));
  }

  /**
   * What is sent on a connection from now on may wait for `uncork`, if its transport can do that: one system call
   * and few packets then serve for all of it. Whoever corks a connection uncorks it at the end of the batch
   * (`atBatchEnd`). Only one is corked at a time: another one that is gets uncorked.
   */
  cork(connection: Connection): void {
    const before = this.corked;
    if (before === connection && this.corkedGeneration === connection.generation) return;
    const { transport } = connection;
    if (transport === null || transport.cork === undefined || connection.outputBytes > 0) return;
    if (before !== null && before.generation === this.corkedGeneration && !this.uncork(before)) this.noteFailed(before);
    if (!transport.cork(connection)) return;
    this.corked = connection;
    this.corkedGeneration = connection.generation;
  }

  /** Sends what has waited, if the connection is corked. Returns false when it has failed, as `send` does. */
  uncork(connection: Connection): boolean {
    if (this.corked !== connection) return true;
    this.corked = null;
    if (this.corkedGeneration !== connection.generation) return true;
    const status = connection.transport!.uncork!(connection);
    if (status === 0) return true;
    // The byte stands for what the transport has not got rid of; its value is never looked at.
    return this.sentPart(connection, status, this.arena.receiveOffset, 1);
  }

  /** Whether `cork` is in force for a connection. */
  isCorked(connection: Connection): boolean {
    return this.corked === connection && this.corkedGeneration === connection.generation;
  }

  /**
   * Until `endGathering` is given the result, what is sent with `sendGathered` stays where it is. To be called around
   * handlers that are given one piece of a receive after the other.
   */
  beginGathering(): boolean {
    const before = this.gathering;
    this.gathering = true;
    return before;
  }

  /** Sends what has been gathered; `before` is what `beginGathering` returned. Failures are told at the end of the batch. */
  endGathering(before: boolean): void {
    this.gathering = before;
    if (this.gathered === null) return;
    const connection = this.gathered;
    if (!this.flushGathered()) this.noteFailed(connection);
  }

  /**
   * Like `send`, but pieces that follow each other on one socket leave with one system call where somebody gathers
   * them. The bytes stay as they are until then. A failure may be told to `protocol.sendFailed` instead.
   */
  sendGathered(connection: Connection, offset: number, length: number): boolean {
    if (!this.gathering || connection.transport !== null || connection.outputBytes > 0 || connection.deferred) {
      return this.send(connection, offset, length, false);
    }
    const before = this.gathered;
    if (before !== connection) {
      if (before !== null && !this.flushGathered()) this.noteFailed(before);
      this.gathered = connection;
    } else if (this.gatheredCount === SEGMENTS_MAX || this.gatheredBytes + length > GATHERED_BYTES_MAX) {
      if (!this.flushGathered()) return false;
      if (connection.outputBytes > 0) return this.keepOutput(connection, offset, length);
      this.gathered = connection;
    }
    const word = this.gatheredCount++ * 2;
    this.gatheredSegments[word] = offset;
    this.gatheredSegments[word + 1] = length;
    this.gatheredBytes += length;
    return true;
  }

  /** Sends now what is gathered for a connection, so that its unsent output is known. False: it has failed. */
  flushGather(connection: Connection): boolean {
    return this.gathered !== connection || this.flushGathered();
  }

  private flushGathered(): boolean {
    const connection = this.gathered!;
    const { gatheredSegments: segments, gatheredCount: count, gatheredBytes: bytes, kernel } = this;
    this.gathered = null;
    this.gatheredCount = 0;
    this.gatheredBytes = 0;
    const sent =
      count === 1
        ? kernel.send(connection.fd, segments[0], segments[1], false)
        : kernel.writev(connection.fd, segments, count);
    if (sent === bytes) return true;
    if (sent < 0 && sent !== -Errno.EAGAIN && sent !== -Errno.EINTR) {
      connection.errno = -sent;
      return false;
    }
    let before = Math.max(sent, 0);
    for (let i = 0; i < count; i++) {
      const length = segments[i * 2 + 1];
      const skipped = Math.min(before, length);
      before -= skipped;
      if (skipped < length && !this.keepOutput(connection, segments[i * 2] + skipped, length - skipped)) return false;
    }
    // After an interruption the socket may have room, so that no event would come.
    return sent !== -Errno.EINTR || this.flush(connection);
  }

  /**
   * Sends bytes at the end of the batch, all such sends of the batch in a row: the kernel's send path
   * and the JavaScript between two of them then do not push each other out of the processor's caches.
   * The bytes lie in the receive area, or in a block that stays as it is until the end of the batch.
   * A failure is told to `protocol.sendFailed`. When too many wait already, it sends at once and
   * returns what `send` does; else true.
   */
  sendDeferred(connection: Connection, offset: number, length: number): boolean {
    if (connection.deferred || this.deferredCount === DEFERRED_MAX) return this.send(connection, offset, length, false);
    this.defer(connection, offset, length, 0);
    const end = offset + length - this.arena.receiveOffset;
    if (end > 0 && end <= RECEIVE_AREA_BYTES) {
      // The next receive goes behind it, with room in front for a head of its own.
      const stagedBytes = ((end + CACHE_LINE_BYTES - 1) & -CACHE_LINE_BYTES) + HEADROOM_BYTES;
      if (stagedBytes > this.deferredBytes) this.deferredBytes = stagedBytes;
      if (stagedBytes > this.stagedBytes) this.stagedBytes = stagedBytes;
    }
    return true;
  }

  /** Like `sendDeferred` for the first `length` bytes of a block, which becomes the reactor's and is freed. */
  sendBlockDeferred(connection: Connection, block: number, length: number): boolean {
    if (connection.deferred || this.deferredCount === DEFERRED_MAX) {
      const sent = this.send(connection, block, length, false);
      this.arena.free(block);
      return sent;
    }
    this.defer(connection, block, length, block);
    return true;
  }

  /**
   * Gives back a block that has just been sent from. If `sendDeferred` has put that off, the block becomes the
   * reactor's and is freed when the bytes have left.
   */
  freeSent(block: number): void {
    if (this.deferredCount > this.deferredNext) {
      const word = (this.deferredCount - 1) * DEFERRED_WORDS;
      const offset = this.deferredWords[word + 1];
      if (offset >= block && offset < block + this.arena.sizeOf(block) && this.deferredWords[word + 3] === 0) {
        this.deferredWords[word + 3] = block;
        return;
      }
    }
    this.arena.free(block);
  }

  private defer(connection: Connection, offset: number, length: number, block: number): void {
    const index = this.deferredCount++;
    const word = index * DEFERRED_WORDS;
    connection.deferred = true;
    this.deferredConnections[index] = connection;
    this.deferredWords[word] = connection.generation;
    this.deferredWords[word + 1] = offset;
    this.deferredWords[word + 2] = length;
    this.deferredWords[word + 3] = block;
  }

  /**
   * Sends now what one connection has deferred, so that what follows keeps its place. Calls no handler:
   * returns false when the connection has failed (`errno` says how).
   */
  flushOwn(connection: Connection): boolean {
    connection.deferred = false;
    for (let index = this.deferredCount - 1; index >= this.deferredNext; index--) {
      const word = index * DEFERRED_WORDS;
      if (this.deferredConnections[index] !== connection) continue;
      if (this.deferredWords[word] !== connection.generation) continue;
      // Done, even if the connection defers again in this batch.
      this.deferredWords[word] = (connection.generation - 1) | 0;
      const offset = this.deferredWords[word + 1];
      const length = this.deferredWords[word + 2];
      let sent = true;
      if (connection.outputBytes > 0) {
        sent = this.keepOutput(connection, offset, length);
      } else {
        const count = this.sendOnce(connection, offset, length);
        if (count !== length) sent = this.sentPart(connection, count, offset, length);
      }
      this.freeDeferred(word);
      return sent;
    }
    return true;
  }

  private freeDeferred(word: number): void {
    const block = this.deferredWords[word + 3];
    if (block === 0) return;
    this.deferredWords[word + 3] = 0;
    this.arena.free(block);
  }

  /** Does all deferred sends now. A failure handler may defer, send or flush again. */
  flushDeferred(): void {
    const { batch } = this.kernel;
    const words = this.deferredWords;
    while (this.deferredNext < this.deferredCount) {
      const first = this.deferredNext;
      let count = 0;
      let index = first;
      for (; index < this.deferredCount && count < BATCH_MAX; index++) {
        const connection = this.deferredConnections[index];
        const word = index * DEFERRED_WORDS;
        if (connection.generation !== words[word] || !connection.deferred) {
          this.freeDeferred(word);
          continue;
        }
        connection.deferred = false;
        if (connection.outputBytes > 0) {
          if (!this.keepOutput(connection, words[word + 1], words[word + 2])) this.noteFailed(connection);
          this.freeDeferred(word);
          continue;
        }
        if (connection.transport !== null) {
          const sent = connection.transport.send(connection, words[word + 1], words[word + 2]);
          if (sent !== words[word + 2] && !this.sentPart(connection, sent, words[word + 1], words[word + 2])) {
            this.noteFailed(connection);
          }
          this.freeDeferred(word);
          continue;
        }
        const operation = count++ * BATCH_WORDS;
        batch[operation] = connection.fd;
        batch[operation + 1] = words[word + 1];
        batch[operation + 2] = words[word + 2];
        this.sending[count - 1] = connection;
      }
      this.deferredNext = index;
      if (count > 0) this.kernel.sendBatch(count);
      // No handler runs before all results are known: one may send more on a connection further down.
      for (let i = 0; i < count; i++) {
        const operation = i * BATCH_WORDS;
        const result = batch[operation + 3];
        if (result === batch[operation + 2]) continue;
        const connection = this.sending[i];
        if (!this.sentPart(connection, result, batch[operation + 1], batch[operation + 2])) this.noteFailed(connection);
      }
      for (let i = first; i < index; i++) this.freeDeferred(i * DEFERRED_WORDS);
      if (this.failedCount > 0) this.tellFailed();
    }
    this.deferredNext = 0;
    this.deferredCount = 0;
    this.deferredBytes = 0;
    this.restage();
  }

  private noteFailed(connection: Connection): void {
    this.failedConnections[this.failedCount] = connection;
    this.failedGenerations[this.failedCount++] = connection.generation;
  }

  private tellFailed(): void {
    while (this.failedNext < this.failedCount) {
      const index = this.failedNext++;
      const connection = this.failedConnections[index];
      if (connection.generation === this.failedGenerations[index]) connection.protocol!.sendFailed(connection);
    }
    this.failedNext = 0;
    this.failedCount = 0;
  }

  /**
   * Sends kept output as far as the socket takes it. Returns false when the connection has failed.
   * `outputBytes` is 0 afterwards if everything has gone.
   */
  flush(connection: Connection): boolean {
    while (connection.outputBytes > 0) {
      const count = this.writeChain(connection);
      if (count === -Errno.EAGAIN) return true;
      if (count === -Errno.EINTR) continue;
      if (count < 0) {
        connection.errno = -count;
        return false;
      }
      this.dropOutput(connection, count);
    }
    return true;
  }

  /** Drops unsent output. */
  freeOutput(connection: Connection): void {
    let block = connection.outputFirst;
    while (block !== 0) {
      const next = this.arena.next(block);
      this.arena.free(block);
      block = next;
    }
    connection.outputFirst = 0;
    connection.outputLast = 0;
    connection.outputBytes = 0;
  }

  private sendOnce(connection: Connection, offset: number, length: number): number {
    if (connection.transport !== null) return connection.transport.send(connection, offset, length);
    return this.kernel.send(connection.fd, offset, length, false);
  }

  private sentPart(connection: Connection, count: number, offset: number, length: number): boolean {
    if (count >= 0) return this.keepOutput(connection, offset + count, length - count);
    if (count === -Errno.EAGAIN) return this.keepOutput(connection, offset, length);
    if (count === -Errno.EINTR) return this.keepOutput(connection, offset, length) && this.flush(connection);
    connection.errno = -count;
    return false;
  }

  private keepOutput(connection: Connection, offset: number, length: number): boolean {
    while (length > 0) {
      let last = connection.outputLast;
      if (last === 0 || connection.outputEnd === last + LARGE_BLOCK_BYTES) {
        // Also at the end of a batch, when it is nobody's turn.
        if (this.turns !== null) this.arena.party = partyOf(connection) ?? this.arena.party;
        const block = this.arena.allocate(LARGE_BLOCK_BYTES);
        if (block === 0) {
          connection.errno = Errno.ENOBUFS;
          return false;
        }
        this.arena.setNext(block, 0);
        if (last === 0) {
          connection.outputFirst = block;
          connection.outputStart = block;
        } else {
          this.arena.setNext(last, block);
        }
        connection.outputLast = block;
        connection.outputEnd = block;
        last = block;
      }
      const part = Math.min(length, last + LARGE_BLOCK_BYTES - connection.outputEnd);
      this.memory.copyWithin(connection.outputEnd, offset, offset + part);
      connection.outputEnd += part;
      connection.outputBytes += part;
      offset += part;
      length -= part;
    }
    return true;
  }

  private writeChain(connection: Connection): number {
    const first = connection.outputFirst;
    if (first === connection.outputLast) {
      return this.sendOnce(connection, connection.outputStart, connection.outputBytes);
    }
    if (connection.transport !== null) {
      const length = first + LARGE_BLOCK_BYTES - connection.outputStart;
      return connection.transport.send(connection, connection.outputStart, length);
    }
    const segments = this.segments;
    let count = 0;
    let start = connection.outputStart;
    for (let block = first; block !== 0 && count < SEGMENTS_MAX; block = this.arena.next(block)) {
      const end = block === connection.outputLast ? connection.outputEnd : block + LARGE_BLOCK_BYTES;
      segments[count * 2] = start;
      segments[count * 2 + 1] = end - start;
      count++;
      const next = this.arena.next(block);
      start = next;
    }
    return this.kernel.writev(connection.fd, segments, count);
  }

  private dropOutput(connection: Connection, count: number): void {
    connection.outputBytes -= count;
    while (count > 0) {
      const block = connection.outputFirst;
      const end = block === connection.outputLast ? connection.outputEnd : block + LARGE_BLOCK_BYTES;
      const part = Math.min(count, end - connection.outputStart);
      connection.outputStart += part;
      count -= part;
      if (connection.outputStart < end) return;
      const next = this.arena.next(block);
      this.arena.free(block);
      connection.outputFirst = next;
      connection.outputStart = next;
      if (next === 0) connection.outputLast = 0;
    }
  }

  // -- slots and events --------------------------------------------------------

  private register(fd: number, protocol: Protocol, events: number): Connection | null {
    const connection = this.takeSlot();
    if (connection === null) {
      if (events === STREAM_EVENTS) this.kernel.close(fd);
      return null;
    }
    connection.fd = fd;
    connection.protocol = protocol;
    connection.openedMs = this.nowMs;
    if (this.kernel.epollAdd(this.epoll, fd, events, connection.slot, connection.generation) < 0) {
      if (events === STREAM_EVENTS) this.kernel.close(fd);
      this.recycle(connection);
      return null;
    }
    if (events === STREAM_EVENTS) {
      this.descriptors[connection.slot] = fd + 1;
      this.open++;
    }
    return connection;
  }

  private takeSlot(): Connection | null {
    if (this.freeSlotCount > 0) return this.connections[this.freeSlots[--this.freeSlotCount]]!;
    if (this.connections.length === this.slotsMax) return null;
    const connection = new Connection(this.connections.length);
    this.connections.push(connection);
    return connection;
  }

  /** Returns a slot to the free list with everything reset; its old references become stale. */
  private recycle(connection: Connection): void {
    if (this.descriptors[connection.slot] !== 0) {
      this.descriptors[connection.slot] = 0;
      this.open--;
    }
    this.timers.clear(connection.slot);
    connection.generation = (connection.generation + 1) | 0;
    connection.fd = -1;
    connection.transport = null;
    connection.tls = 0;
    connection.tlsMore = false;
    connection.serverName = null;
    connection.tlsVersion = noBytes;
    connection.serverNameBytes = noBytes;
    connection.clientCertificate = null;
    if (connection.workloadSide !== 0) {
      this.onWorkloadConnectionClosed(connection.workload!, connection.workloadSide);
      connection.workloadSide = 0;
    }
    connection.workload = null;
    connection.destination = null;
    connection.access = null;
    connection.peer = null;
    connection.inputEnds = false;
    connection.trailers = null;
    connection.protocol = null;
    connection.state = 0;
    connection.readReady = false;
    connection.readHangup = false;
    connection.readEnded = false;
    connection.writeEnded = false;
    connection.errno = 0;
    connection.deferred = false;
    connection.smallInput = false;
    connection.inputScanned = 0;
    connection.exchanges = 0;
    connection.reusable = true;
    connection.tunnelled = false;
    connection.breakerSlot = -1;
    connection.exchange = null;
    connection.tunnelPeer = null;
    connection.http2Session = null;
    connection.http2Stream = null;
    connection.listener = null;
    connection.endpoint = null;
    connection.idleNext = null;
    connection.idlePrevious = null;
    connection.connectOwner = null;
    connection.backend = null;
    this.freeSlots[this.freeSlotCount++] = connection.slot;
  }

  private dispatch(index: number): void {
    const events = this.kernel.events;
    const word = index * this.kernel.eventStride;
    const bits = events[word];
    const slot = events[word + this.kernel.eventDataIndex];
    const generation = events[word + this.kernel.eventDataIndex + 1];
    const connection = this.connections[slot];
    if (connection === undefined || connection.generation !== generation) return;
    if ((bits & (Epoll.RDHUP | Epoll.HUP | Epoll.ERR)) !== 0) connection.readHangup = true;
    if ((bits & (Epoll.OUT | Epoll.HUP | Epoll.ERR)) !== 0) {
      connection.protocol!.writable(connection);
      if (connection.generation !== generation) return;
    }
    if ((bits & ~Epoll.OUT) !== 0) {
      connection.readReady = true;
      connection.protocol!.readable(connection);
    }
  }

  private takeReady(): number {
    const slot = this.readyQueue[this.readyHead];
    if (++this.readyHead === this.slotsMax) this.readyHead = 0;
    this.readyCount--;
    return slot;
  }

  private serveReady(): void {
    const connection = this.connections[this.takeReady()];
    if (connection === undefined) return;
    connection.queued = false;
    // Closed, or closed and opened again since: the new occupant takes a call for nothing.
    if (connection.protocol !== null) connection.protocol.readable(connection);
  }

  /** Reads the socket address at `kernel.addressOffset`. */
  readAddress(address: PeerAddress): void {
    const memory = this.memory;
    const at = this.kernel.addressOffset;
    const family = memory[at] | (memory[at + 1] << 8);
    address.peerFamily = family;
    address.peerPort = (memory[at + 2] << 8) | memory[at + 3];
    if (family === Family.INET) {
      address.peer0 = this.word(at + 4);
    } else if (family === Family.INET6) {
      address.peer0 = this.word(at + 8);
      address.peer1 = this.word(at + 12);
      address.peer2 = this.word(at + 16);
      address.peer3 = this.word(at + 20);
    }
  }

  private word(at: number): number {
    const memory = this.memory;
    return (memory[at] << 24) | (memory[at + 1] << 16) | (memory[at + 2] << 8) | memory[at + 3];
  }

  /** Calls `visit` for every open connection; it may close them. For reload, drain and shutdown. */
  forEach(visit: (connection: Connection) => void): void {
    for (const connection of this.connections) {
      if (connection !== undefined && connection.protocol !== null) visit(connection);
    }
  }

  /** All open connections are in slots below this. */
  get slotEnd(): number {
    return this.connections.length;
  }

  /** The connection in a slot; null: there is none. */
  connectionAt(slot: number): Connection | null {
    const connection = this.connections[slot];
    return connection === undefined || connection.protocol === null ? null : connection;
  }

  /** Closes the epoll instance; the reactor is of no use afterwards. */
  destroy(): void {
    this.descriptors[this.slotsMax] = 0;
    this.kernel.close(this.epoll);
  }
}

/** Whose turn it is when a connection is served; null: nobody's. */
function partyOf({ workload, endpoint }: Connection): Party | null {
  return workload ?? (endpoint === null ? null : endpoint.workload);
}
