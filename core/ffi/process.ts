// Calls of the control thread that concern the whole process: descriptor limit, wake-up
// descriptors of the workers, the C heap, the last way out.
//
// Runs at start, reload and stop only; nothing here is on the packet path.
// Source: getrlimit(2), eventfd(2), malloc_trim(3), _exit(2).

import koffi from 'koffi';

const RLIMIT_NOFILE = 7;
const EFD_NONBLOCK = 0o4000;
const EFD_CLOEXEC = 0o2000000;

/** Limit of open descriptors: `soft` is what holds now, `hard` how far it may be raised. */
export interface DescriptorLimit {
  soft: number;
  hard: number;
}

let bound: ReturnType<typeof bindLibc> | undefined;

function bindLibc() {
  const libc = koffi.load(null);
  return {
    getrlimit: libc.func('int getrlimit(int resource, _Out_ uint64 *limit)'),
    setrlimit: libc.func('int setrlimit(int resource, const uint64 *limit)'),
    eventfd: libc.func('int eventfd(uint value, int flags)'),
    eventfdWrite: libc.func('int eventfd_write(int fd, uint64 value)'),
    exitNow: libc.func('void _exit(int status)'),
    // glibc's own (malloc_trim(3)), which the runtime needs anyway.
    mallocTrim: libc.func('int malloc_trim(size_t pad)'),
  };
}

function libc(): ReturnType<typeof bindLibc> {
  bound ??= bindLibc();
  return bound;
}

/**
 * Raises the soft limit of open descriptors to the hard one and returns what holds afterwards.
 * "Unlimited" comes as 2^53-1. A refused raise is not an error: the result shows it.
 */
export function raiseDescriptorLimit(): DescriptorLimit {
  const before = readLimit();
  if (before.soft < before.hard) {
    const raw = new BigUint64Array(2);
    libc().getrlimit(RLIMIT_NOFILE, raw);
    raw[0] = raw[1]!;
    libc().setrlimit(RLIMIT_NOFILE, raw);
  }
  return readLimit();
}

function readLimit(): DescriptorLimit {
  const raw = new BigUint64Array(2);
  if (libc().getrlimit(RLIMIT_NOFILE, raw) < 0) return { soft: 1024, hard: 1024 };
  const [soft, hard] = [...raw].map((value) => Number(value < 2n ** 53n ? value : 2n ** 53n - 1n));
  return { soft: soft!, hard: hard! };
}

/** Opens a wake-up descriptor; the caller owns it. Returns it, or a negative error number. */
export function openWakeup(): number {
  return result(libc().eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
}

/** Wakes whoever waits on the descriptor: 0, or a negative error number. */
export function wake(fd: number): number {
  return result(libc().eventfdWrite(fd, 1));
}

/** Gives the free pages of the C heap, of all threads, back to the system; takes milliseconds. */
export function trimHeap(): void {
  libc().mallocTrim(0);
}

/**
 * Ends the process without waiting for any thread. `process.exit` joins the worker threads, and
 * one that cannot be woken would hold it for ever.
 */
export function exitNow(status: number): never {
  libc().exitNow(status);
  throw new Error('_exit returned');
}

function result(value: number): number {
  return value < 0 ? -koffi.errno() : value;
}
