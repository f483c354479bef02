// The one door between the packet core and the operating system.
//
// `core/ffi/linux.ts` implements it with libc calls; `test/sim/` implements it in memory, with
// faults chosen from a seed. Everything above this interface runs unchanged on both.
// A kernel belongs to one thread. It owns one block of memory; callers name bytes by their offset
// in it, never by address, and every call checks its range once, here at the border.
// Hot module: the calls below are made several times per request and allocate nothing.

/** Readiness bits of epoll (sys/epoll.h). */
export const Epoll = {
  IN: 0x001,
  OUT: 0x004,
  ERR: 0x008,
  HUP: 0x010,
  RDHUP: 0x2000,
  /** Edge-triggered: one event per change, none while a state lasts. */
  ET: 1 << 31,
} as const;

/** Half of a connection that `shutdown` closes. */
export const Shutdown = { READ: 0, WRITE: 1, BOTH: 2 } as const;

/**
 * Bytes at the start of `Kernel.memory` that belong to the kernel itself: event list, socket
 * addresses, I/O vectors. Callers place nothing below this offset.
 */
export const KERNEL_RESERVED_BYTES = 32 * 1024;

/** Most events one `epollWait` returns; bounds the work of one batch. */
export const EVENTS_MAX = 512;

/** Most segments one `writev` takes. */
export const SEGMENTS_MAX = 64;

/** Most operations of one `recvBatch` or `sendBatch`. */
export const BATCH_MAX = 64;

/** Words of an operation in `Kernel.batch`: descriptor, offset, length, result. */
export const BATCH_WORDS = 4;

/**
 * System calls of one packet thread. Unless stated otherwise each returns a value >= 0, or a
 * negative error number (`-Errno.EAGAIN`). All sockets are non-blocking and close-on-exec.
 */
export interface Kernel {
  /** The memory that all offsets refer to. Never resized, never moved. */
  readonly memory: Uint8Array;

  /** Event `i` of the last wait: bits at `i * eventStride`, see `eventDataIndex`. */
  readonly events: Int32Array;
  /** Distance between events in `events`, in 32-bit words (the struct is packed on x64 only). */
  readonly eventStride: number;
  /** Word of an event that holds the slot given to `epollAdd`; the generation follows it. */
  readonly eventDataIndex: number;

  /** Time of CLOCK_MONOTONIC in milliseconds, with fractions: the same in all threads. */
  nowMs(): number;
  /** Wall-clock time in milliseconds since 1970. */
  wallMs(): number;

  epollCreate(): number;
  /** Watches `fd`; events carry `slot` and `generation` back. */
  epollAdd(epoll: number, fd: number, events: number, slot: number, generation: number): number;
  epollModify(epoll: number, fd: number, events: number, slot: number, generation: number): number;
  epollDelete(epoll: number, fd: number): number;
  /** Waits up to `timeoutMs` (-1 without limit, 0 not at all) and returns the number of events. */
  epollWait(epoll: number, timeoutMs: number): number;

  /** A wake-up descriptor: becomes readable when any thread writes to it. */
  eventfd(): number;
  eventfdWrite(fd: number): number;
  /** Takes all wake-ups so far; `-EAGAIN` if there were none. */
  eventfdRead(fd: number): number;

  /**
   * Takes one connection from a listening socket; its peer's socket address is at `addressOffset`
   * until the next call.
   */
  accept(listener: number): number;
  /** Where `accept` and `localAddress` leave a socket address (see sockaddr.ts). */
  readonly addressOffset: number;
  /** Opens a TCP socket of the address's family and starts connecting: the descriptor, or an error. */
  connect(sockaddr: Uint8Array): number;
  /**
   * Like `connect`, with a socket of the network namespace of a descriptor (-1: the thread's own) that marks what it
   * sends (SO_MARK; 0: not). Throws when the thread cannot return to its own namespace.
   */
  connectIn(sockaddr: Uint8Array, namespaceFd: number, mark: number): number;
  /**
   * Puts where an accepted connection was going before it was redirected at `addressOffset`: Lookup.FOUND or DIRECT
   * (original-destination.ts), or an error. `family` is that of its peer.
   */
  originalDestination(fd: number, family: number): number;
  /** How a started connection ended: 0, or a positive error number of SO_ERROR. */
  socketError(fd: number): number;
  /** Puts the local address of a socket at `addressOffset`. */
  localAddress(fd: number): number;

  /** Reads up to `length` bytes into memory; 0 means the peer has finished sending. */
  recv(fd: number, offset: number, length: number): number;
  /** Like `recv`, but leaves the bytes where they are. */
  peek(fd: number, offset: number, length: number): number;
  /** Writes from memory; never raises SIGPIPE. `more` tells TCP that further bytes follow at once. */
  send(fd: number, offset: number, length: number, more: boolean): number;
  /** Operations of the next batch, BATCH_WORDS words each; results are stored there. */
  readonly batch: Int32Array;
  /** Does `recv` for the first `count` operations of `batch`, where possible with one system call. */
  recvBatch(count: number): void;
  /** Does `send` for the first `count` operations of `batch`; no two are for the same descriptor. */
  sendBatch(count: number): void;
  /** Writes `count` segments, given as (offset, length) pairs in `segments`. */
  writev(fd: number, segments: Int32Array, count: number): number;
  shutdown(fd: number, how: number): number;
  /** Makes the next `close` send a reset, so that the peer cannot take what it got for complete. */
  abortOnClose(fd: number): number;
  close(fd: number): number;

  /** Gives the pages wholly inside a range back to the system; its bytes read as zero afterwards. */
  release(offset: number, length: number): number;
}

/** Does the operations `first` to `count` of `kernel.batch` as single receives. */
export function recvEach(kernel: Kernel, first: number, count: number): void {
  const { batch } = kernel;
  for (let word = first * BATCH_WORDS; word < count * BATCH_WORDS; word += BATCH_WORDS) {
    batch[word + 3] = kernel.recv(batch[word], batch[word + 1], batch[word + 2]);
  }
}

/** Does the operations `first` to `count` of `kernel.batch` as single sends. */
export function sendEach(kernel: Kernel, first: number, count: number): void {
  const { batch } = kernel;
  for (let word = first * BATCH_WORDS; word < count * BATCH_WORDS; word += BATCH_WORDS) {
    batch[word + 3] = kernel.send(batch[word], batch[word + 1], batch[word + 2], false);
  }
}
