// Linux error numbers as named results. System calls of the `Kernel` interface return a value
// of zero or more, or a negative error number, as the kernel itself does; nothing throws.
// Numbers are those of asm-generic/errno*.h, the same on x64 and arm64.

/** Error numbers the packet core tells apart. */
export const Errno = {
  EPERM: 1,
  ENOENT: 2,
  EINTR: 4,
  EIO: 5,
  EBADF: 9,
  EAGAIN: 11,
  ENOMEM: 12,
  EACCES: 13,
  EEXIST: 17,
  EINVAL: 22,
  ENFILE: 23,
  EMFILE: 24,
  ENOSPC: 28,
  EPIPE: 32,
  EPROTO: 71,
  EAFNOSUPPORT: 97,
  EADDRINUSE: 98,
  EADDRNOTAVAIL: 99,
  ENETDOWN: 100,
  ENETUNREACH: 101,
  ECONNABORTED: 103,
  ECONNRESET: 104,
  ENOBUFS: 105,
  ENOTCONN: 107,
  ETIMEDOUT: 110,
  ECONNREFUSED: 111,
  EHOSTUNREACH: 113,
  EINPROGRESS: 115,
} as const;

const sentences: Record<number, string> = {
  [Errno.EPERM]: 'operation not permitted',
  [Errno.ENOENT]: 'no such file or directory',
  [Errno.EACCES]: 'permission denied',
  [Errno.ENFILE]: 'the system has no more file descriptors',
  [Errno.EMFILE]: 'the process has no more file descriptors',
  [Errno.ENOMEM]: 'out of memory',
  [Errno.ENOBUFS]: 'the kernel has no more socket buffers',
  [Errno.ENOSPC]: 'no space left',
  [Errno.EPIPE]: 'the peer had already closed the connection',
  [Errno.EAFNOSUPPORT]: 'address family not supported',
  [Errno.EADDRINUSE]: 'address already in use',
  [Errno.EADDRNOTAVAIL]: 'the address does not belong to this machine, or no local port is free',
  [Errno.ENETDOWN]: 'network is down',
  [Errno.ENETUNREACH]: 'network unreachable',
  [Errno.ECONNABORTED]: 'connection aborted',
  [Errno.ECONNRESET]: 'connection reset by peer',
  [Errno.ETIMEDOUT]: 'connection timed out',
  [Errno.ECONNREFUSED]: 'connection refused',
  [Errno.EHOSTUNREACH]: 'host unreachable',
};

const names = new Map<number, string>(Object.entries(Errno).map(([name, value]) => [value, name]));

/** The symbolic name of an error number (positive or negative), such as `ECONNREFUSED`. */
export function errnoName(errno: number): string {
  const positive = Math.abs(errno);
  return names.get(positive) ?? `errno ${positive}`;
}

/** One plain phrase for an error number (positive or negative), for log lines and `explain`. */
export function errnoSentence(errno: number): string {
  const positive = Math.abs(errno);
  const sentence = sentences[positive];
  return sentence === undefined ? errnoName(positive) : `${sentence} (${errnoName(positive)})`;
}
