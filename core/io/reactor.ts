// The event loop of one packet worker: wait, handle the whole batch, go round again.
//
// Sockets are watched edge-triggered and registered once: readiness is remembered in the connection
// until it is used up, so pausing a reader for backpressure costs no system call. A paused reader
// that is resumed, or one that used its turn, waits in the ready queue and is served in the same or
// the next batch. What connections receive is the business of input.ts, what they send that of output.ts; on a node
// proxy turn-loop.ts serves what is ready here. Owned by one worker; knows sockets, slots and timers, no protocol.
// Hot module: no allocation, exception, promise, closure or log line per event.

import type { WorkloadRuntime } from '../exchange/mesh-runtime.ts';
import { BATCH_MAX, Epoll, type Kernel, Shutdown } from '../ffi/kernel.ts';
import { Family } from '../ffi/sockaddr.ts';
import { Arena } from './arena.ts';
import { Connection, type PeerAddress, type Protocol } from './connection.ts';
import { dispatch } from './dispatch.ts';
import { Input } from './input.ts';
import { Output } from './output.ts';
import { ReadyQueue } from './ready-queue.ts';
import { ReceiveArea } from './receive-area.ts';
import { TimerWheel } from './timer-wheel.ts';
import type { Transport } from './transport.ts';
import { TurnLoop } from './turn-loop.ts';

/** A stream socket: everything, edge-triggered, registered once for its whole life. */
const STREAM_EVENTS = Epoll.IN | Epoll.OUT | Epoll.RDHUP | Epoll.ET;

/** Connections within each other whose output leaves in one batch, the outermost included; what is deeper, in the next. */
const NESTING_MAX = 3;

/** How often the wall clock is read: a clock that is set shows after at most this time. */
const WALL_CHECK_MS = 500;

export class Reactor {
  readonly kernel: Kernel;
  readonly arena: Arena;
  readonly memory: Uint8Array;
  /** The same bytes, for writing words. */
  readonly view: DataView;
  readonly timers: TimerWheel;
  /** Which part of the receive area is in use. */
  readonly receiveArea: ReceiveArea;
  /** What connections send. */
  readonly output: Output;
  /** What connections receive. */
  readonly input: Input;
  /** Monotonic time of the current batch. */
  nowMs = 0;
  /** Wall-clock time of the current batch. */
  wallMs = 0;
  private wallOffsetMs = 0;
  private wallCheckMs = 0;
  /** Connections open now. */
  open = 0;
  /** Node proxies: serves workloads in turns; null: this is a gateway. */
  turnLoop: TurnLoop | null = null;
  /** Node proxies: told when a connection that counts at a workload is over. */
  onWorkloadConnectionClosed: (workload: WorkloadRuntime, side: number) => void = () => {};

  private readonly epoll: number;
  private readonly connections: (Connection | undefined)[] = [];
  private readonly slotsMax: number;
  private readonly freeSlots: Int32Array;
  private freeSlotCount = 0;
  /** Descriptor plus one of each slot, shared with the control thread (see protocol.ts). */
  private readonly descriptors: Int32Array;
  private readonly ready: ReadyQueue;
  /** Connections that have something to do at the end of the batch; with their generations. */
  private readonly endConnections: Connection[] = [];
  private readonly endGenerations: number[] = [];
  private endCount = 0;
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
    this.ready = new ReadyQueue(slotsMax);
    this.timers = new TimerWheel(slotsMax, kernel.nowMs());
    this.receiveArea = new ReceiveArea(this.arena);
    this.output = new Output(kernel, this.arena, this.receiveArea);
    this.input = new Input(kernel, this.arena, this.receiveArea, this.output, this.ready, this.connections);
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
    const { output, turnLoop } = this;
    let count = this.kernel.epollWait(this.epoll, waitMs);
    this.readClocks();
    if (turnLoop !== null) count = turnLoop.run(count);
    else this.runEvents(count);
    if (this.timers.isDue(this.nowMs)) this.timers.advance(this.nowMs, this.expire);
    // What a deferred send puts into a stream leaves with the connection that carries the stream, in the same batch.
    for (let depth = 0; depth < NESTING_MAX; depth++) {
      if (this.endCount > 0) this.endBatch();
      if (output.hasDeferred) output.flushDeferred();
      if (this.endCount === 0) break;
    }
    if (output.hasFailed) output.tellFailed();
    return Math.max(count, 0);
  }

  private runEvents(count: number): void {
    const { connections, input, output, ready } = this;
    const { events, eventStride, eventDataIndex } = this.kernel;
    // Only those that wait already are served: what queues itself in this batch has its turn in the next.
    const waiting = ready.count;
    for (let first = 0; first < count; first += BATCH_MAX) {
      const end = Math.min(first + BATCH_MAX, count);
      if (first > 0 && output.hasDeferred) output.flushDeferred();
      if (end - first > 1) input.receiveAhead(first, end);
      for (let i = first; i < end; i++) dispatch(connections, events, i * eventStride, eventDataIndex);
      if (input.hasAhead) input.endAhead();
    }
    for (let i = 0; i < waiting; i++) this.serveReady();
  }

  /** Whether a connection waits in the ready queue or for the end of a batch, so that the next batch must not sleep. */
  get hasReady(): boolean {
    return this.ready.count > 0 || this.endCount > 0 || (this.turnLoop !== null && this.turnLoop.turns.waiting > 0);
  }

  /** From now on workloads take turns, and the blocks that they take are counted. */
  shareFairly(): void {
    const { arena, connections, epoll, input, kernel, ready, slotsMax } = this;
    this.turnLoop ??= new TurnLoop(kernel, epoll, arena, input, ready, connections, slotsMax);
    arena.keepOwners();
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
    this.output.flushGather(connection);
    if (connection.transport !== null) {
      connection.transport.close(connection, abort);
    } else {
      if (abort) this.kernel.abortOnClose(connection.fd);
      this.kernel.close(connection.fd);
    }
    this.input.free(connection);
    this.input.freeAhead(connection);
    this.output.free(connection);
    this.recycle(connection);
  }

  /** Tells the peer that our side is finished. Everything must have been sent. */
  shutdownWrite(connection: Connection): void {
    this.output.flushGather(connection);
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
    this.ready.add(connection);
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
    if (connection.workloadSide !== 0) {
      // Told of the workload only: the connection itself is nobody's any more.
      this.onWorkloadConnectionClosed(connection.workload!, connection.workloadSide);
    }
    connection.reset();
    this.freeSlots[this.freeSlotCount++] = connection.slot;
  }

  private serveReady(): void {
    const connection = this.connections[this.ready.take()];
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
