// Many receives or sends with one system call, through io_uring.
//
// Where a system call costs most of a microsecond (page-table isolation, speculation barriers),
// entering the kernel is a third of what a small message costs; a batch of 64 enters once. epoll stays the
// engine: only sockets that are known to be ready are put into a batch, every operation is
// MSG_DONTWAIT, and all have completed when `run` returns. Nothing is ever in flight between two
// calls, so a ring needs no state besides its memory. The control thread opens one ring per worker; like the
// worker's memory it outlives the thread, and a successor takes it over.
// Where io_uring is missing or forbidden (old kernels, container profiles), callers do the same
// operations one by one. Source: io_uring_setup(2), io_uring_enter(2), linux/io_uring.h.
// Hot module: no allocation.

import koffi from 'koffi';
import { BATCH_MAX, BATCH_WORDS } from './kernel.ts';

const SYS_IO_URING_SETUP = 425;
const SYS_IO_URING_ENTER = 426;

const SETUP_SUBMIT_ALL = 1 << 7;
const SETUP_COOP_TASKRUN = 1 << 8;
const FEAT_SINGLE_MMAP = 1 << 0;
/** Kernels from 5.7 on: they have SEND and RECV, too. */
const FEAT_FAST_POLL = 1 << 5;
const ENTER_GETEVENTS = 1 << 0;
const OFFSET_SQES = 0x1000_0000;

const OP_SEND = 26;
const OP_RECV = 27;
const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;

const PARAMS_BYTES = 120;
const SQE_WORDS = 16;
const CQE_WORDS = 4;

const PROT_READ_WRITE = 3;
const MAP_SHARED = 0x01;
const MAP_POPULATE = 0x8000;

/** An open ring as plain numbers, so that it can be handed to a worker thread. */
export interface RingMemory {
  fd: number;
  /** Address and size of the mapped queues, and of the mapped submission entries. */
  queues: number;
  queuesBytes: number;
  entries: number;
  entriesBytes: number;
  /** Offsets in the queues, in 32-bit words: submission tail; completion head, tail and entries. */
  submissionTail: number;
  completionHead: number;
  completionTail: number;
  completions: number;
  submissionMask: number;
  completionMask: number;
}

let bound: ReturnType<typeof bindLibc> | undefined;

function bindLibc() {
  const libc = koffi.load(null);
  return {
    setup: libc.func('long syscall(long number, uint entries, void *params)') as (
      number: number,
      entries: number,
      params: Uint8Array,
    ) => number,
    mmap: libc.func('uint64 mmap(uint64 address, uint64 length, int protection, int flags, int fd, int64 offset)'),
    munmap: libc.func('int munmap(uint64 address, uint64 length)'),
    close: libc.func('int close(int fd)') as (fd: number) => number,
  };
}

/**
 * Opens a ring for batches of up to BATCH_MAX operations. Returns a positive error number where the
 * system has no io_uring that will do, or does not allow it.
 */
export function openRing(): RingMemory | number {
  bound ??= bindLibc();
  const params = Buffer.alloc(PARAMS_BYTES);
  let fd = -1;
  for (const flags of [SETUP_SUBMIT_ALL | SETUP_COOP_TASKRUN, 0]) {
    params.fill(0);
    params.writeUInt32LE(flags, 8);
    fd = bound.setup(SYS_IO_URING_SETUP, BATCH_MAX, params);
    if (fd >= 0) break;
  }
  if (fd < 0) return koffi.errno();
  const features = params.readUInt32LE(20);
  const ENOSYS = 38;
  if ((features & FEAT_SINGLE_MMAP) === 0 || (features & FEAT_FAST_POLL) === 0) {
    bound.close(fd);
    return ENOSYS;
  }
  const submissionEntries = params.readUInt32LE(0);
  const completionEntries = params.readUInt32LE(4);
  // struct io_sqring_offsets begins at 40, struct io_cqring_offsets at 80.
  const arrayOffset = params.readUInt32LE(40 + 24);
  const completionsOffset = params.readUInt32LE(80 + 20);
  const queuesBytes = Math.max(arrayOffset + submissionEntries * 4, completionsOffset + completionEntries * 16);
  const entriesBytes = submissionEntries * SQE_WORDS * 4;
  const queues = map(fd, queuesBytes, 0);
  const entries = queues < 0 ? -1 : map(fd, entriesBytes, OFFSET_SQES);
  if (entries < 0) {
    const errno = koffi.errno();
    if (queues >= 0) bound.munmap(queues, queuesBytes);
    bound.close(fd);
    return errno;
  }
  // Submission slot i always holds entry i.
  const words = new Int32Array(koffi.view(queues, queuesBytes));
  for (let i = 0; i < submissionEntries; i++) words[arrayOffset / 4 + i] = i;
  return {
    fd,
    queues,
    queuesBytes,
    entries,
    entriesBytes,
    submissionTail: params.readUInt32LE(40 + 4) / 4,
    completionHead: params.readUInt32LE(80) / 4,
    completionTail: params.readUInt32LE(80 + 4) / 4,
    completions: completionsOffset / 4,
    submissionMask: submissionEntries - 1,
    completionMask: completionEntries - 1,
  };
}

function map(fd: number, bytes: number, offset: number): number {
  const address = Number(bound!.mmap(0, bytes, PROT_READ_WRITE, MAP_SHARED | MAP_POPULATE, fd, offset));
  // MAP_FAILED is the highest address.
  return address > 2 ** 62 ? -1 : address;
}

/** Closes a ring and gives its memory back. The threads that used it have ended. */
export function closeRing(ring: RingMemory): void {
  bound ??= bindLibc();
  bound.munmap(ring.entries, ring.entriesBytes);
  bound.munmap(ring.queues, ring.queuesBytes);
  bound.close(ring.fd);
}

/** A ring as one packet thread uses it. */
export class BatchRing {
  private readonly ring: RingMemory;
  private readonly queues: Int32Array;
  private readonly entries: Int32Array;
  private readonly enter: (
    number: number,
    fd: number,
    submit: number,
    complete: number,
    flags: number,
    signals: number,
    size: number,
  ) => number;

  constructor(ring: RingMemory) {
    this.ring = ring;
    this.queues = new Int32Array(koffi.view(ring.queues, ring.queuesBytes));
    this.entries = new Int32Array(koffi.view(ring.entries, ring.entriesBytes));
    this.enter = koffi
      .load(null)
      .func('long syscall(long number, uint fd, uint submit, uint complete, uint flags, uint64 signals, uint64 size)');
    // What a predecessor that died between two steps may have left.
    this.queues[ring.completionHead] = this.queues[ring.completionTail];
  }

  /**
   * Runs the first `count` operations of `batch` (see Kernel.batch; offsets are relative to the address
   * `base`): receives, or sends. Returns how many have been done, in order, their results stored; fewer than
   * `count` only when the system was out of memory.
   */
  run(batch: Int32Array, count: number, base: number, sending: boolean): number {
    const { ring, queues, entries } = this;
    const operation = sending ? OP_SEND : OP_RECV;
    const flags = sending ? MSG_DONTWAIT | MSG_NOSIGNAL : MSG_DONTWAIT;
    const first = queues[ring.submissionTail];
    const mask = ring.submissionMask;
    for (let i = 0; i < count; i++) {
      const at = ((first + i) & mask) * SQE_WORDS;
      const word = i * BATCH_WORDS;
      const address = base + batch[word + 1];
      entries[at] = operation;
      entries[at + 1] = batch[word];
      entries[at + 4] = address | 0;
      entries[at + 5] = (address / 0x1_0000_0000) | 0;
      entries[at + 6] = batch[word + 2];
      entries[at + 7] = flags;
      entries[at + 8] = i;
    }
    Atomics.store(queues, ring.submissionTail, (first + count) | 0);
    const submitted = this.enter(SYS_IO_URING_ENTER, ring.fd, count, count, ENTER_GETEVENTS, 0, 0);
    const done = Math.max(submitted, 0);
    // Entries that the kernel has not taken are taken back; it reads the tail only when it is entered.
    if (done < count) Atomics.store(queues, ring.submissionTail, (first + done) | 0);
    let head = queues[ring.completionHead];
    let left = done;
    while (left > 0) {
      if (head === Atomics.load(queues, ring.completionTail)) {
        // An interrupted wait: nearly always all have completed all the same.
        this.enter(SYS_IO_URING_ENTER, ring.fd, 0, left, ENTER_GETEVENTS, 0, 0);
        continue;
      }
      const at = ring.completions + (head & ring.completionMask) * CQE_WORDS;
      batch[queues[at] * BATCH_WORDS + 3] = queues[at + 2];
      head = (head + 1) | 0;
      left--;
    }
    Atomics.store(queues, ring.completionHead, head);
    return done;
  }
}
