// The memory that packet workers do their input and output in.
//
// It is mapped outside the JavaScript heap by the control thread, once per worker, and outlives the
// worker's thread: a successor takes it over, so a crash leaks nothing. Where possible it lies in
// the lowest 2 GiB of the address space: an address then is a small integer to the engine, and
// passing one to a system call needs no boxed number (about 40 ns of each call).
// Untouched pages cost nothing. Source: mmap(2).

import koffi from 'koffi';

const PROT_READ_WRITE = 3;
const MAP_PRIVATE = 0x02;
const MAP_ANONYMOUS = 0x20;
const MAP_32BIT = 0x40;
const MAP_NORESERVE = 0x4000;
const MAP_FIXED_NOREPLACE = 0x100000;

/** Where arm64, which has no MAP_32BIT, is asked for low addresses; the steps of the search. */
const LOW_START = 0x1000_0000;
const LOW_END = 0x8000_0000;
const LOW_STEP = 0x0400_0000;

/** A mapped range; plain numbers, so that it can be handed to a worker thread. */
export interface MappedMemory {
  address: number;
  bytes: number;
}

let bound: ReturnType<typeof bindLibc> | undefined;

function bindLibc() {
  const libc = koffi.load(null);
  return {
    mmap: libc.func('uint64 mmap(uint64 address, uint64 length, int protection, int flags, int fd, int64 offset)'),
    munmap: libc.func('int munmap(uint64 address, uint64 length)'),
  };
}

/** Maps `bytes` of zeroed memory. Throws when the system refuses. */
export function mapMemory(bytes: number): MappedMemory {
  bound ??= bindLibc();
  const flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  const map = (hint: number, extra: number) => {
    const address = Number(bound!.mmap(hint, bytes, PROT_READ_WRITE, flags | extra, -1, 0));
    // MAP_FAILED is the highest address; page addresses of user space are far below.
    return address > 2 ** 62 ? -1 : address;
  };
  let address = -1;
  if (process.arch === 'x64') {
    address = map(0, MAP_32BIT);
  } else {
    for (let hint = LOW_START; address < 0 && hint + bytes <= LOW_END; hint += LOW_STEP) {
      address = map(hint, MAP_FIXED_NOREPLACE);
    }
  }
  if (address < 0) address = map(0, 0);
  if (address < 0) throw new Error(`cannot map ${bytes} bytes of memory (mmap errno ${koffi.errno()})`);
  return { address, bytes };
}

/** Gives a range back. Nothing may refer to it any more: the threads that used it have ended. */
export function unmapMemory(memory: MappedMemory): void {
  bound ??= bindLibc();
  bound.munmap(memory.address, memory.bytes);
}

/** The bytes of a mapped range. The view does not own them. */
export function viewMemory(memory: MappedMemory): ArrayBuffer {
  return koffi.view(memory.address, memory.bytes);
}
