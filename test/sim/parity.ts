// Small scripts of system calls that run alike on any Kernel and write down what they saw.
//
// kernel.test.ts runs each on the simulated kernel and on Linux and compares the records: what
// edge-triggered epoll reports and what sockets answer at the end of their lives is the ground
// that the simulation stands on. Both ends of a connection belong to the script.

import { errnoName } from '../../core/ffi/errno.ts';
import { Epoll, KERNEL_RESERVED_BYTES, type Kernel, Shutdown } from '../../core/ffi/kernel.ts';

/** Longest time for something that has to happen; reaching it shows in the record. */
const EVENT_WAIT_MS = 5000;
/** Time in which something that must not happen is waited for. */
const QUIET_WAIT_MS = 20;
const BUFFER = KERNEL_RESERVED_BYTES;
const CHUNK_BYTES = 65536;
/** Memory a kernel needs for these scripts. */
export const PARITY_MEMORY_BYTES = BUFFER + CHUNK_BYTES;

const EDGE_BOTH = Epoll.IN | Epoll.OUT | Epoll.RDHUP | Epoll.ET;

/** A run of one script: a kernel, and the record of what it answered. */
export class ParityRun {
  readonly kernel: Kernel;
  readonly record: string[] = [];
  private readonly listener: number;
  private readonly address: Uint8Array;
  private readonly fds: number[] = [];

  /** `listener` is a listening descriptor and `address` the socket address that leads to it. */
  constructor(kernel: Kernel, listener: number, address: Uint8Array) {
    this.kernel = kernel;
    this.listener = listener;
    this.address = address;
  }

  /** A connection: [the accepted end, the connecting end]. */
  pair(): [number, number] {
    const other = this.keep(this.kernel.connect(this.address));
    const epoll = this.kernel.epollCreate();
    this.kernel.epollAdd(epoll, this.listener, Epoll.IN, 0, 0);
    this.kernel.epollWait(epoll, EVENT_WAIT_MS);
    this.kernel.epollDelete(epoll, this.listener);
    this.kernel.epollAdd(epoll, other, Epoll.OUT | Epoll.ET, 0, 0);
    const own = this.keep(this.kernel.accept(this.listener));
    this.kernel.epollWait(epoll, EVENT_WAIT_MS);
    this.kernel.close(epoll);
    return [own, other];
  }

  /** Starts connecting to an address (default: the listener's) without waiting. */
  connect(address = this.address): number {
    return this.keep(this.kernel.connect(address));
  }

  /** A new epoll instance that watches one descriptor. */
  watch(fd: number, events: number = EDGE_BOTH): number {
    const epoll = this.keep(this.kernel.epollCreate());
    this.note('watch', this.kernel.epollAdd(epoll, fd, events, 5, 6));
    return epoll;
  }

  /** Records the events of one wait that must bring some. */
  expectEvents(epoll: number): void {
    this.record.push(`events: ${this.wait(epoll, EVENT_WAIT_MS)}`);
  }

  /** Records that nothing (more) comes. */
  expectQuiet(epoll: number): void {
    this.record.push(`then: ${this.wait(epoll, QUIET_WAIT_MS)}`);
  }

  /** Lets what is on its way arrive. */
  settle(): void {
    const epoll = this.kernel.epollCreate();
    this.kernel.epollWait(epoll, QUIET_WAIT_MS);
    this.kernel.close(epoll);
  }

  send(fd: number, text: string): void {
    this.kernel.memory.set(Buffer.from(text, 'latin1'), BUFFER);
    this.note(`send ${text.length}`, this.kernel.send(fd, BUFFER, text.length, false));
  }

  recv(fd: number, length = 100): void {
    const count = this.kernel.recv(fd, BUFFER, length);
    const text = count > 0 ? Buffer.from(this.kernel.memory.subarray(BUFFER, BUFFER + count)).toString('latin1') : '';
    this.note(`recv ${length}${text === '' ? '' : ` "${text}"`}`, count);
  }

  /** Sends until neither buffer has room; returns the number of bytes taken. */
  fill(fd: number): number {
    let total = 0;
    for (let before = -1; before !== total; this.settle()) {
      before = total;
      let count = this.kernel.send(fd, BUFFER, CHUNK_BYTES, false);
      for (; count > 0; count = this.kernel.send(fd, BUFFER, CHUNK_BYTES, false)) total += count;
      if (before === total) this.note('fill ends with', count);
    }
    return total;
  }

  /** Receives exactly `bytes`, however they come. */
  drain(fd: number, bytes: number): void {
    const epoll = this.kernel.epollCreate();
    this.kernel.epollAdd(epoll, fd, Epoll.IN, 0, 0);
    for (let left = bytes; left > 0; ) {
      if (this.kernel.epollWait(epoll, EVENT_WAIT_MS) < 1) throw new Error(`${left} bytes never came`);
      left -= Math.max(0, this.kernel.recv(fd, BUFFER, CHUNK_BYTES));
    }
    this.kernel.close(epoll);
  }

  socketError(fd: number): void {
    this.note('socketError', -this.kernel.socketError(fd));
  }

  shutdown(fd: number): void {
    this.note('shutdown', this.kernel.shutdown(fd, Shutdown.WRITE));
  }

  close(fd: number): void {
    this.fds.splice(this.fds.indexOf(fd), 1);
    this.note('close', this.kernel.close(fd));
  }

  /** Closes with a reset. */
  abort(fd: number): void {
    this.kernel.abortOnClose(fd);
    this.close(fd);
  }

  modify(epoll: number, fd: number, events: number = EDGE_BOTH): void {
    this.note('modify', this.kernel.epollModify(epoll, fd, events, 7, 8));
  }

  /** The listening descriptor. */
  listenerFd(): number {
    return this.listener;
  }

  /** Has `finish` close a descriptor; throws when it is an error number. */
  keep(fd: number): number {
    if (fd < 0) throw new Error(`no descriptor: ${errnoName(fd)}`);
    this.fds.push(fd);
    return fd;
  }

  /** Records the result of a call. */
  note(what: string, result: number): void {
    this.record.push(`${what} = ${result < 0 ? errnoName(result) : result}`);
  }

  /** Closes whatever the script left open. */
  finish(): void {
    for (const fd of this.fds) this.kernel.close(fd);
  }

  private wait(epoll: number, timeoutMs: number): string {
    const count = this.kernel.epollWait(epoll, timeoutMs);
    const events: string[] = [];
    for (let i = 0; i < count; i++) {
      const word = i * this.kernel.eventStride;
      const data = word + this.kernel.eventDataIndex;
      const { events: words } = this.kernel;
      events.push(`${bitNames(words[word]!)} slot ${words[data]} generation ${words[data + 1]}`);
    }
    return events.length === 0 ? 'none' : events.join(', ');
  }
}

function bitNames(bits: number): string {
  return (['IN', 'OUT', 'ERR', 'HUP', 'RDHUP'] as const).filter((name) => (bits & Epoll[name]) !== 0).join('|');
}

/** Every script by name. `deadAddress` leads to a port where nobody listens. */
export const parityScripts: Record<string, (run: ParityRun, deadAddress: Uint8Array) => void> = {
  'a fresh connection is writable once': (run) => {
    const epoll = run.watch(run.pair()[0]);
    run.expectEvents(epoll);
    run.expectQuiet(epoll);
  },
  'every arrival is an edge, even when earlier bytes are unread': (run) => {
    const [own, other] = run.pair();
    const epoll = run.watch(own);
    run.expectEvents(epoll);
    run.send(other, 'hello');
    run.expectEvents(epoll);
    run.expectQuiet(epoll);
    run.recv(own, 2);
    run.expectQuiet(epoll);
    run.send(other, 'more');
    run.expectEvents(epoll);
    run.modify(epoll, own);
    run.expectEvents(epoll);
    run.expectQuiet(epoll);
    run.recv(own);
    run.recv(own);
  },
  'bytes taken before the wait leave only what is still true': (run) => {
    const [own, other] = run.pair();
    const both = run.watch(own);
    const read = run.watch(own, Epoll.IN | Epoll.ET);
    run.expectEvents(both);
    run.send(other, 'x');
    run.settle();
    run.recv(own);
    run.expectQuiet(both);
    run.expectQuiet(read);
  },
  'a watch for writing only is not woken by data': (run) => {
    const [own, other] = run.pair();
    const epoll = run.watch(own, Epoll.OUT | Epoll.ET);
    run.expectEvents(epoll);
    run.send(other, 'x');
    run.expectQuiet(epoll);
    run.modify(epoll, own, Epoll.IN | Epoll.ET);
    run.expectEvents(epoll);
    run.close(other);
    run.expectEvents(epoll);
    run.expectQuiet(epoll);
  },
  'level triggering reports as long as bytes wait': (run) => {
    const [own, other] = run.pair();
    const epoll = run.watch(own, Epoll.IN);
    run.expectQuiet(epoll);
    run.send(other, 'ab');
    run.expectEvents(epoll);
    run.expectEvents(epoll);
    run.recv(own, 1);
    run.expectEvents(epoll);
    run.recv(own, 1);
    run.expectQuiet(epoll);
  },
  'room comes back after the peer has read': (run) => {
    const [own, other] = run.pair();
    const epoll = run.watch(own);
    run.expectEvents(epoll);
    const bytes = run.fill(own);
    run.expectQuiet(epoll);
    run.drain(other, bytes);
    run.expectEvents(epoll);
    run.expectQuiet(epoll);
    run.send(own, 'again');
  },
  'modifying a full connection reports nothing until there is room': (run) => {
    const [own, other] = run.pair();
    const bytes = run.fill(own);
    const epoll = run.watch(own);
    run.expectQuiet(epoll);
    run.modify(epoll, own);
    run.expectQuiet(epoll);
    run.drain(other, bytes);
    run.expectEvents(epoll);
  },
  'FIN is seen after the bytes before it': (run) => {
    const [own, other] = run.pair();
    const epoll = run.watch(own);
    run.expectEvents(epoll);
    run.send(other, 'zz');
    run.close(other);
    run.settle();
    run.expectEvents(epoll);
    run.expectQuiet(epoll);
    run.recv(own, 1);
    run.recv(own, 1);
    run.recv(own);
    run.recv(own);
    run.send(own, 'x');
    run.expectEvents(epoll);
    run.recv(own);
    run.send(own, 'x');
    run.expectQuiet(epoll);
  },
  'a connection half closed by the peer takes bytes, then hangs up': (run) => {
    const [own, other] = run.pair();
    const epoll = run.watch(own);
    run.expectEvents(epoll);
    run.shutdown(other);
    run.expectEvents(epoll);
    run.send(own, 'late');
    run.settle();
    run.recv(other);
    run.shutdown(own);
    run.settle();
    run.expectEvents(epoll);
    run.expectQuiet(epoll);
    run.send(own, 'x');
    run.recv(own);
    run.recv(other);
  },
  'own half close first, then bytes and FIN from the peer': (run) => {
    const [own, other] = run.pair();
    const epoll = run.watch(own);
    run.expectEvents(epoll);
    run.shutdown(own);
    run.settle();
    run.expectEvents(epoll);
    run.send(other, 'q');
    run.expectEvents(epoll);
    run.recv(own);
    run.close(other);
    run.settle();
    run.expectEvents(epoll);
    run.recv(own);
    run.recv(own);
  },
  'a reset is one error after the bytes before it': (run) => {
    const [own, other] = run.pair();
    const epoll = run.watch(own);
    run.expectEvents(epoll);
    run.send(other, 'hello');
    run.settle();
    run.abort(other);
    run.settle();
    run.expectEvents(epoll);
    run.expectQuiet(epoll);
    run.recv(own);
    run.recv(own);
    run.recv(own);
    run.send(own, 'x');
    run.expectQuiet(epoll);
    run.modify(epoll, own);
    run.expectEvents(epoll);
  },
  'sending after a reset reports it once, then a broken pipe': (run) => {
    const [own, other] = run.pair();
    run.abort(other);
    run.settle();
    run.send(own, 'x');
    run.send(own, 'x');
    run.recv(own);
  },
  'SO_ERROR takes the error of a reset': (run) => {
    const [own, other] = run.pair();
    run.abort(other);
    run.settle();
    run.socketError(own);
    run.socketError(own);
    run.recv(own);
    run.send(own, 'x');
  },
  'bytes that meet a closed peer bring a reset': (run) => {
    const [own, other] = run.pair();
    const epoll = run.watch(own);
    run.expectEvents(epoll);
    run.send(other, 'abc');
    run.close(other);
    run.settle();
    run.send(own, 'x');
    run.settle();
    run.expectEvents(epoll);
    run.recv(own, 2);
    run.recv(own);
    run.recv(own);
    run.socketError(own);
    run.send(own, 'x');
  },
  'closing with unread bytes resets the peer': (run) => {
    const [own, other] = run.pair();
    const epoll = run.watch(own);
    run.expectEvents(epoll);
    run.send(own, 'unread');
    run.settle();
    run.close(other);
    run.expectEvents(epoll);
    run.recv(own);
    run.recv(own);
    run.send(own, 'x');
  },
  'a refused connection reports everything at once': (run, deadAddress) => {
    const fd = run.connect(deadAddress);
    const epoll = run.watch(fd);
    run.settle();
    run.expectEvents(epoll);
    run.expectQuiet(epoll);
    run.socketError(fd);
    run.recv(fd);
    run.send(fd, 'x');
    run.modify(epoll, fd);
    run.expectEvents(epoll);
  },
  'a refused connection fails its first send with the reason': (run, deadAddress) => {
    const fd = run.connect(deadAddress);
    run.settle();
    run.send(fd, 'x');
    run.send(fd, 'x');
    run.recv(fd);
    run.socketError(fd);
  },
  'a closed descriptor takes its events with it and its number is given out again': (run) => {
    const [own, other] = run.pair();
    const epoll = run.watch(own);
    run.send(other, 'x');
    run.settle();
    run.close(own);
    run.expectQuiet(epoll);
    const next = run.kernel.eventfd();
    run.note('the same number', next === own ? 1 : 0);
    run.keep(next);
  },
  'wake-ups are counted once and taken together': (run) => {
    const fd = run.keep(run.kernel.eventfd());
    const epoll = run.watch(fd, Epoll.IN);
    run.expectQuiet(epoll);
    run.note('read', run.kernel.eventfdRead(fd));
    run.note('write', run.kernel.eventfdWrite(fd));
    run.note('write', run.kernel.eventfdWrite(fd));
    run.expectEvents(epoll);
    run.expectEvents(epoll);
    run.note('read', run.kernel.eventfdRead(fd));
    run.note('read', run.kernel.eventfdRead(fd));
    run.expectQuiet(epoll);
  },
  'a listener reports while connections wait': (run) => {
    const epoll = run.watch(run.keep(run.kernel.eventfd()), Epoll.IN);
    const listener = run.listenerFd();
    run.note('add', run.kernel.epollAdd(epoll, listener, Epoll.IN, 1, 2));
    run.expectQuiet(epoll);
    run.connect();
    run.connect();
    run.settle();
    run.expectEvents(epoll);
    run.keep(run.kernel.accept(listener));
    run.expectEvents(epoll);
    run.keep(run.kernel.accept(listener));
    run.expectQuiet(epoll);
    run.note('accept', run.kernel.accept(listener));
  },
  'a listener that is shut down refuses newcomers and drops who was waiting': (run) => {
    const waiting = run.connect();
    run.settle();
    run.note('shutdown', run.kernel.shutdown(run.listenerFd(), Shutdown.READ));
    run.settle();
    run.recv(waiting);
    const late = run.connect();
    run.settle();
    run.socketError(late);
  },
  'adding twice, and changing what is not watched, are errors': (run) => {
    const [own] = run.pair();
    const epoll = run.watch(own);
    run.note('add', run.kernel.epollAdd(epoll, own, Epoll.IN, 0, 0));
    run.note('delete', run.kernel.epollDelete(epoll, own));
    run.note('delete', run.kernel.epollDelete(epoll, own));
    run.modify(epoll, own);
  },
  'a client that left before accept is still accepted': (run) => {
    const other = run.connect();
    run.settle();
    run.send(other, 'gone');
    run.abort(other);
    run.settle();
    const own = run.keep(run.kernel.accept(run.listenerFd()));
    run.recv(own);
    run.recv(own);
    run.recv(own);
  },
  'several segments are written in order': (run) => {
    const [own, other] = run.pair();
    run.kernel.memory.set(Buffer.from('abcdef'), BUFFER);
    const segments = Int32Array.of(BUFFER + 3, 3, BUFFER, 2);
    run.note('writev', run.kernel.writev(own, segments, 2));
    run.settle();
    run.recv(other);
  },
  'no connection yet: nothing to read, nothing to send, no error': (run) => {
    const fd = run.connect();
    run.settle();
    run.socketError(fd);
    run.recv(fd);
    run.note('accepted', Math.sign(run.keep(run.kernel.accept(run.listenerFd()))));
  },
};
