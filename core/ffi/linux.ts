// The Kernel interface over Linux: libc through koffi.
//
// With core/ffi/listen.ts the only place that knows addresses. Every offset is checked once, here,
// before it becomes an address; a bad one is a broken invariant and throws, which ends the worker.
// Addresses are passed as plain numbers (always below 2^53): measured at a third of the cost of
// passing views or BigInts, and less still when they are below 2^31 (memory.ts). One per thread.
// Struct layouts: sys/epoll.h (packed on x64 only), netinet/in.h, sys/uio.h.

import koffi from 'koffi';
import { Errno } from './errno.ts';
import { BatchRing, type RingMemory } from './io-uring.ts';
import {
  BATCH_MAX,
  BATCH_WORDS,
  EVENTS_MAX,
  KERNEL_RESERVED_BYTES,
  type Kernel,
  recvEach,
  SEGMENTS_MAX,
  sendEach,
} from './kernel.ts';
import { type MappedMemory, viewMemory } from './memory.ts';
import { NamespaceSwitch } from './namespace-switch.ts';
import { OriginalDestination } from './original-destination.ts';
import { Family } from './sockaddr.ts';

const SOCK_STREAM = 1;
const SOCK_NONBLOCK = 0o4000;
const SOCK_CLOEXEC = 0o2000000;
const EPOLL_CLOEXEC = 0o2000000;
const EFD_NONBLOCK = 0o4000;
const EFD_CLOEXEC = 0o2000000;
const EPOLL_CTL_ADD = 1;
const EPOLL_CTL_DEL = 2;
const EPOLL_CTL_MOD = 3;
const MSG_PEEK = 0x02;
const MSG_NOSIGNAL = 0x4000;
const MSG_MORE = 0x8000;
const SOL_SOCKET = 1;
const SO_ERROR = 4;
const SO_LINGER = 13;
const SO_MARK = 36;
const IPPROTO_TCP = 6;
const TCP_NODELAY = 1;
const MADV_DONTNEED = 4;
const PAGE_BYTES = 4096;

// Where the reserved start of the memory is used for what.
const EVENTS_OFFSET = 0;
const ADDRESS_OFFSET = 8192;
const ADDRESS_BYTES = 128;
const LENGTH_OFFSET = ADDRESS_OFFSET + ADDRESS_BYTES;
const VALUE_OFFSET = LENGTH_OFFSET + 16;
const EVENT_ARGUMENT_OFFSET = VALUE_OFFSET + 16;
const VECTOR_OFFSET = EVENT_ARGUMENT_OFFSET + 16;

const packedEvents = process.arch === 'x64';
const EVENT_STRIDE_WORDS = packedEvents ? 3 : 4;
const EVENT_DATA_WORD = packedEvents ? 1 : 2;

if (EVENTS_MAX * EVENT_STRIDE_WORDS * 4 > ADDRESS_OFFSET || VECTOR_OFFSET + SEGMENTS_MAX * 16 > KERNEL_RESERVED_BYTES) {
  throw new Error('the reserved kernel area is too small for EVENTS_MAX and SEGMENTS_MAX');
}

/** libc functions of the running process, bound once per thread. */
function bindLibc() {
  const libc = koffi.load(null);
  return {
    epollCreate1: libc.func('int epoll_create1(int flags)') as (flags: number) => number,
    epollCtl: libc.func('int epoll_ctl(int ep, int op, int fd, uint64 event)') as NumberCall,
    epollWait: libc.func('int epoll_wait(int ep, uint64 events, int max, int timeout)') as NumberCall,
    eventfd: libc.func('int eventfd(uint value, int flags)') as NumberCall,
    read: libc.func('int read(int fd, uint64 buffer, uint64 length)') as NumberCall,
    write: libc.func('int write(int fd, uint64 buffer, uint64 length)') as NumberCall,
    accept4: libc.func('int accept4(int fd, uint64 address, uint64 length, int flags)') as NumberCall,
    socket: libc.func('int socket(int domain, int type, int protocol)') as NumberCall,
    connect: libc.func('int connect(int fd, uint64 address, uint length)') as NumberCall,
    getsockopt: libc.func('int getsockopt(int fd, int level, int name, uint64 value, uint64 length)') as NumberCall,
    setsockopt: libc.func('int setsockopt(int fd, int level, int name, uint64 value, uint length)') as NumberCall,
    getsockname: libc.func('int getsockname(int fd, uint64 address, uint64 length)') as NumberCall,
    recv: libc.func('int recv(int fd, uint64 buffer, uint64 length, int flags)') as NumberCall,
    send: libc.func('int send(int fd, uint64 buffer, uint64 length, int flags)') as NumberCall,
    writev: libc.func('int writev(int fd, uint64 vector, int count)') as NumberCall,
    shutdown: libc.func('int shutdown(int fd, int how)') as NumberCall,
    close: libc.func('int close(int fd)') as NumberCall,
    madvise: libc.func('int madvise(uint64 address, uint64 length, int advice)') as NumberCall,
  };
}

type NumberCall = (...args: number[]) => number;

/** The Kernel of one packet thread. */
class LinuxKernel implements Kernel {
  readonly memory: Uint8Array;
  readonly events: Int32Array;
  readonly eventStride = EVENT_STRIDE_WORDS;
  readonly eventDataIndex = EVENT_DATA_WORD;
  readonly addressOffset = ADDRESS_OFFSET;
  readonly batch = new Int32Array(BATCH_MAX * BATCH_WORDS);

  private readonly base: number;
  private readonly size: number;
  private readonly view: DataView;
  private readonly libc = bindLibc();
  private readonly ring: BatchRing | null;
  /** Made when first needed: node proxies only. */
  private namespaces: NamespaceSwitch | undefined;
  private destinations: OriginalDestination | undefined;
  /** `performance` of a thread counts from the thread's start; times in the node state are all threads'. */
  private readonly clockOriginMs = Number(process.hrtime.bigint()) / 1e6 - performance.now();

  constructor(memory: MappedMemory, ring: RingMemory | null) {
    const buffer = viewMemory(memory);
    this.memory = new Uint8Array(buffer);
    this.events = new Int32Array(buffer, EVENTS_OFFSET, EVENTS_MAX * EVENT_STRIDE_WORDS);
    this.view = new DataView(buffer);
    this.base = memory.address;
    this.size = memory.bytes;
    this.ring = ring === null ? null : new BatchRing(ring);
  }

  nowMs(): number {
    return this.clockOriginMs + performance.now();
  }

  wallMs(): number {
    return Date.now();
  }

  epollCreate(): number {
    return result(this.libc.epollCreate1(EPOLL_CLOEXEC));
  }

  epollAdd(epoll: number, fd: number, events: number, slot: number, generation: number): number {
    return this.control(epoll, EPOLL_CTL_ADD, fd, events, slot, generation);
  }

  epollModify(epoll: number, fd: number, events: number, slot: number, generation: number): number {
    return this.control(epoll, EPOLL_CTL_MOD, fd, events, slot, generation);
  }

  epollDelete(epoll: number, fd: number): number {
    return this.control(epoll, EPOLL_CTL_DEL, fd, 0, 0, 0);
  }

  epollWait(epoll: number, timeoutMs: number): number {
    return result(this.libc.epollWait(epoll, this.base + EVENTS_OFFSET, EVENTS_MAX, timeoutMs));
  }

  eventfd(): number {
    return result(this.libc.eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  }

  eventfdWrite(fd: number): number {
    this.view.setBigUint64(VALUE_OFFSET, 1n, true);
    return result(this.libc.write(fd, this.base + VALUE_OFFSET, 8));
  }

  eventfdRead(fd: number): number {
    return result(this.libc.read(fd, this.base + VALUE_OFFSET, 8));
  }

  accept(listener: number): number {
    this.view.setUint32(LENGTH_OFFSET, ADDRESS_BYTES, true);
    const fd = this.libc.accept4(
      listener,
      this.base + ADDRESS_OFFSET,
      this.base + LENGTH_OFFSET,
      SOCK_NONBLOCK | SOCK_CLOEXEC,
    );
    if (fd < 0) return -koffi.errno();
    this.setOption(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    return fd;
  }

  connect(sockaddr: Uint8Array): number {
    const family = sockaddr[0]! | (sockaddr[1]! << 8);
    const fd = this.libc.socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return -koffi.errno();
    this.setOption(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    return this.startConnect(fd, sockaddr);
  }

  private startConnect(fd: number, sockaddr: Uint8Array): number {
    this.memory.set(sockaddr, ADDRESS_OFFSET);
    if (this.libc.connect(fd, this.base + ADDRESS_OFFSET, sockaddr.length) < 0) {
      const errno = koffi.errno();
      if (errno !== Errno.EINPROGRESS) {
        this.libc.close(fd);
        return -errno;
      }
    }
    return fd;
  }

  connectIn(sockaddr: Uint8Array, namespaceFd: number, mark: number): number {
    const { libc } = this;
    const family = sockaddr[0]! | (sockaddr[1]! << 8);
    if (namespaceFd >= 0) {
      this.namespaces ??= new NamespaceSwitch();
      const status = this.namespaces.enter(namespaceFd);
      if (status < 0) return status;
    }
    const fd = libc.socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    const errno = fd < 0 ? koffi.errno() : 0;
    if (namespaceFd >= 0) this.namespaces!.leave();
    if (fd < 0) return -errno;
    this.setOption(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    if (mark !== 0 && this.setOption(fd, SOL_SOCKET, SO_MARK, mark) < 0) {
      // Without its mark, the connection would be captured, and come back here for ever.
      const markErrno = koffi.errno();
      this.libc.close(fd);
      return -markErrno;
    }
    return this.startConnect(fd, sockaddr);
  }

  originalDestination(fd: number, family: number): number {
    this.destinations ??= new OriginalDestination();
    const { destinations } = this;
    const status = destinations.redirected(fd, family);
    if (status < 0) return status;
    this.memory.set(
      destinations.family === Family.INET ? destinations.sockaddr4 : destinations.sockaddr6,
      ADDRESS_OFFSET,
    );
    return status;
  }

  socketError(fd: number): number {
    this.view.setInt32(VALUE_OFFSET, 0, true);
    this.view.setUint32(LENGTH_OFFSET, 4, true);
    const status = this.libc.getsockopt(fd, SOL_SOCKET, SO_ERROR, this.base + VALUE_OFFSET, this.base + LENGTH_OFFSET);
    return status < 0 ? koffi.errno() : this.view.getInt32(VALUE_OFFSET, true);
  }

  localAddress(fd: number): number {
    this.view.setUint32(LENGTH_OFFSET, ADDRESS_BYTES, true);
    return result(this.libc.getsockname(fd, this.base + ADDRESS_OFFSET, this.base + LENGTH_OFFSET));
  }

  recv(fd: number, offset: number, length: number): number {
    this.check(offset, length);
    const count = this.libc.recv(fd, this.base + offset, length, 0);
    return count < 0 ? -koffi.errno() : count;
  }

  peek(fd: number, offset: number, length: number): number {
    this.check(offset, length);
    return result(this.libc.recv(fd, this.base + offset, length, MSG_PEEK));
  }

  send(fd: number, offset: number, length: number, more: boolean): number {
    this.check(offset, length);
    const count = this.libc.send(fd, this.base + offset, length, more ? MSG_NOSIGNAL | MSG_MORE : MSG_NOSIGNAL);
    return count < 0 ? -koffi.errno() : count;
  }

  recvBatch(count: number): void {
    recvEach(this, this.runBatch(count, false), count);
  }

  sendBatch(count: number): void {
    sendEach(this, this.runBatch(count, true), count);
  }

  /** Operations done through the ring; the caller does the others one by one. */
  private runBatch(count: number, sending: boolean): number {
    if (this.ring === null || count < 2) return 0;
    const { batch } = this;
    for (let i = 0; i < count; i++) this.check(batch[i * BATCH_WORDS + 1], batch[i * BATCH_WORDS + 2]);
    return this.ring.run(batch, count, this.base, sending);
  }

  writev(fd: number, segments: Int32Array, count: number): number {
    if (count > SEGMENTS_MAX) throw new RangeError(`writev of ${count} segments`);
    for (let i = 0; i < count; i++) {
      const offset = segments[i * 2]!;
      const length = segments[i * 2 + 1]!;
      this.check(offset, length);
      this.setAddress(VECTOR_OFFSET + i * 16, this.base + offset);
      this.setAddress(VECTOR_OFFSET + i * 16 + 8, length);
    }
    return result(this.libc.writev(fd, this.base + VECTOR_OFFSET, count));
  }

  shutdown(fd: number, how: number): number {
    return result(this.libc.shutdown(fd, how));
  }

  abortOnClose(fd: number): number {
    this.view.setInt32(VALUE_OFFSET, 1, true);
    this.view.setInt32(VALUE_OFFSET + 4, 0, true);
    return result(this.libc.setsockopt(fd, SOL_SOCKET, SO_LINGER, this.base + VALUE_OFFSET, 8));
  }

  close(fd: number): number {
    return result(this.libc.close(fd));
  }

  release(offset: number, length: number): number {
    this.check(offset, length);
    const start = Math.ceil((this.base + offset) / PAGE_BYTES) * PAGE_BYTES;
    const end = Math.floor((this.base + offset + length) / PAGE_BYTES) * PAGE_BYTES;
    return end > start ? result(this.libc.madvise(start, end - start, MADV_DONTNEED)) : 0;
  }

  private check(offset: number, length: number): void {
    if (offset < KERNEL_RESERVED_BYTES || length < 0 || offset + length > this.size) {
      throw new RangeError(`memory range ${offset}+${length} is outside ${KERNEL_RESERVED_BYTES}..${this.size}`);
    }
  }

  private control(epoll: number, op: number, fd: number, events: number, slot: number, generation: number): number {
    this.view.setInt32(EVENT_ARGUMENT_OFFSET, events, true);
    this.view.setInt32(EVENT_ARGUMENT_OFFSET + EVENT_DATA_WORD * 4, slot, true);
    this.view.setInt32(EVENT_ARGUMENT_OFFSET + EVENT_DATA_WORD * 4 + 4, generation, true);
    return result(this.libc.epollCtl(epoll, op, fd, this.base + EVENT_ARGUMENT_OFFSET));
  }

  private setOption(fd: number, level: number, name: number, value: number): number {
    this.view.setInt32(VALUE_OFFSET, value, true);
    return this.libc.setsockopt(fd, level, name, this.base + VALUE_OFFSET, 4);
  }

  private setAddress(offset: number, value: number): void {
    this.view.setUint32(offset, value % 0x100000000, true);
    this.view.setUint32(offset + 4, Math.floor(value / 0x100000000), true);
  }
}

function result(value: number): number {
  return value < 0 ? -koffi.errno() : value;
}

/**
 * Opens the kernel for the calling thread over mapped memory (see memory.ts), of which the first
 * KERNEL_RESERVED_BYTES are its own, and, where there is one, a ring for batches. Both must
 * outlive the kernel.
 */
export function createLinuxKernel(memory: MappedMemory, ring: RingMemory | null): Kernel {
  return new LinuxKernel(memory, ring);
}
