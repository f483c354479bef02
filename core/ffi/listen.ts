// Listening sockets: opened by the control thread, used by packet workers as plain numbers.
//
// One SO_REUSEPORT socket per worker and address, so that the kernel spreads connections and no
// worker waits for another. SO_REUSEPORT would also let a second process of the same user share
// the port silently; `addressInUse` asks the kernel before the first socket of an address opens.
// Owned by the control thread; runs at start and reload only.
// Source: socket(7), ip(7), ipv6(7), proc_net_tcp(5).

import { fstatSync, readFileSync } from 'node:fs';
import koffi from 'koffi';
import { Errno } from './errno.ts';
import { decodeSockaddr, encodeSockaddr, Family, type HostPort } from './sockaddr.ts';

const SOCK_STREAM = 1;
const SOCK_NONBLOCK = 0o4000;
const SOCK_CLOEXEC = 0o2000000;
const SOL_SOCKET = 1;
const SO_REUSEADDR = 2;
const SO_REUSEPORT = 15;
const IPPROTO_TCP = 6;
const TCP_NODELAY = 1;
const IPPROTO_IPV6 = 41;
const IPV6_V6ONLY = 26;
const ADDRESS_BYTES = 128;

/** State column of a listening socket in /proc/net/tcp. */
const PROC_STATE_LISTEN = '0A';

/**
 * Connections that may wait for `accept` on each socket. The kernel caps it at
 * net.core.somaxconn (4096 on current kernels); a burst after a worker's death must fit.
 */
export const LISTEN_BACKLOG = 4096;

/** libc on the control thread. Buffers, not addresses: these calls are rare. */
let bound: ReturnType<typeof bindLibc> | undefined;

function bindLibc() {
  const libc = koffi.load(null);
  return {
    socket: libc.func('int socket(int domain, int type, int protocol)'),
    setsockopt: libc.func('int setsockopt(int fd, int level, int name, const void *value, uint length)'),
    bind: libc.func('int bind(int fd, const void *address, uint length)'),
    listen: libc.func('int listen(int fd, int backlog)'),
    getsockname: libc.func('int getsockname(int fd, _Out_ void *address, _Inout_ uint *length)'),
    close: libc.func('int close(int fd)'),
  };
}

function libc(): ReturnType<typeof bindLibc> {
  bound ??= bindLibc();
  return bound;
}

/**
 * Opens one non-blocking listening TCP socket with SO_REUSEPORT.
 *
 * `host` is an IPv4 or IPv6 address without brackets; port 0 lets the kernel choose, see
 * `localPort`. An IPv6 socket takes IPv6 only, so that `[::]:80` and `0.0.0.0:80` may stand side
 * by side. The caller owns the descriptor. Returns it, or a negative error number; -EINVAL when
 * `host` is not an IP address.
 */
export function openListeningSocket(host: string, port: number): number {
  return openBound(host, port, true, LISTEN_BACKLOG);
}

/**
 * Why the address cannot be had, before its first socket opens: 0 when it is free, or a negative
 * error number (-EADDRINUSE when somebody else listens on it, -EACCES, -EADDRNOTAVAIL ...).
 *
 * A plain bind answers this for all cases but one: our own listening sockets on an overlapping
 * address (127.0.0.1:80 while 0.0.0.0:80 is about to replace it) make it fail as well. Only then
 * the kernel's table of listening sockets is read, and `ownFds` do not count.
 */
export function addressInUse(host: string, port: number, ownFds: readonly number[]): number {
  const probe = openBound(host, port, false, 0);
  if (probe >= 0) {
    closeDescriptor(probe);
    return 0;
  }
  if (probe !== -Errno.EADDRINUSE || ownFds.length === 0) return probe;
  return listenedByOthers(port, ownFds) ? probe : 0;
}

/** Local port of a bound socket, or a negative error number. */
export function localPort(fd: number): number {
  const address = localAddress(fd);
  return typeof address === 'number' ? address : address.port;
}

/** Closes a descriptor: 0, or a negative error number. */
export function closeDescriptor(fd: number): number {
  return result(libc().close(fd));
}

function openBound(host: string, port: number, sharePort: boolean, backlog: number): number {
  const address = encodeSockaddr(host, port);
  if (address === undefined) return -Errno.EINVAL;
  const { socket, bind, listen } = libc();
  const family = address[0]! as number;
  const fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0) as number;
  if (fd < 0) return -koffi.errno();
  let status = setOption(fd, SOL_SOCKET, SO_REUSEADDR);
  if (status === 0 && sharePort) status = setOption(fd, SOL_SOCKET, SO_REUSEPORT);
  if (status === 0 && family === Family.INET6) status = setOption(fd, IPPROTO_IPV6, IPV6_V6ONLY);
  // Accepted sockets inherit it, so no connection can be met by Nagle's delay.
  if (status === 0) status = setOption(fd, IPPROTO_TCP, TCP_NODELAY);
  if (status === 0) status = result(bind(fd, address, address.length));
  if (status === 0 && backlog > 0) status = result(listen(fd, backlog));
  if (status < 0) {
    closeDescriptor(fd);
    return status;
  }
  return fd;
}

function localAddress(fd: number): HostPort | number {
  const bytes = new Uint8Array(ADDRESS_BYTES);
  const length = [ADDRESS_BYTES];
  const status = result(libc().getsockname(fd, bytes, length));
  if (status < 0) return status;
  return decodeSockaddr(bytes, 0) ?? -Errno.EAFNOSUPPORT;
}

/** Whether a socket that is none of `ownFds` listens on the port, on any address. */
function listenedByOthers(port: number, ownFds: readonly number[]): boolean {
  const own = new Set(ownFds.map((fd) => String(fstatSync(fd).ino)));
  const portHex = port.toString(16).toUpperCase().padStart(4, '0');
  for (const file of ['/proc/net/tcp', '/proc/net/tcp6']) {
    let table: string;
    try {
      table = readFileSync(file, 'latin1');
    } catch {
      continue; // No /proc, or no IPv6: the bind that follows still has the last word.
    }
    for (const line of table.split('\n')) {
      // "sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode ..."
      const columns = line.trim().split(/\s+/);
      if (columns[3] !== PROC_STATE_LISTEN || !columns[1]!.endsWith(`:${portHex}`)) continue;
      if (!own.has(columns[9]!)) return true;
    }
  }
  return false;
}

function setOption(fd: number, level: number, name: number): number {
  const value = new Int32Array([1]);
  return result(libc().setsockopt(fd, level, name, value, 4));
}

function result(value: number): number {
  return value < 0 ? -koffi.errno() : value;
}
