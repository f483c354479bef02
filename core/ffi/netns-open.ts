// Opening sockets inside another network namespace: the calls of the thread that netns.ts starts.
//
// A thread is inside a foreign namespace only between two `setns` calls of one synchronous function; nothing
// asynchronous starts in between, so no thread of the runtime is ever created there. A socket belongs to the
// namespace of the thread that made it, for as long as it lives, whoever uses its descriptor.
// Owned by that thread. Entering needs CAP_SYS_ADMIN; marks and transparent sockets need CAP_NET_ADMIN.
// Source: setns(2), network_namespaces(7), ip(7) (IP_TRANSPARENT), ipv6(7), socket(7) (SO_MARK).

import { type BigIntStats, fstatSync } from 'node:fs';
import koffi from 'koffi';
import { Errno, errnoSentence } from './errno.ts';
import { LISTEN_BACKLOG } from './listen.ts';
import { decodeSockaddr, encodeSockaddr, Family } from './sockaddr.ts';

const O_CLOEXEC = 0o2000000;
/** A path that names a FIFO must not hold the thread. */
const O_NONBLOCK = 0o4000;
const CLONE_NEWNET = 0x40000000;
const ENOTDIR = 20;
const ESRCH = 3;

const AF_UNIX = 1;
const SOCK_STREAM = 1;
const SOCK_DGRAM = 2;
const SOCK_NONBLOCK = 0o4000;
const SOCK_CLOEXEC = 0o2000000;
const SOL_SOCKET = 1;
const SO_REUSEADDR = 2;
const SO_REUSEPORT = 15;
const SO_MARK = 36;
const SO_NETNS_COOKIE = 71;
const SOL_IP = 0;
const IP_TRANSPARENT = 19;
const IP_BIND_ADDRESS_NO_PORT = 24;
const IPPROTO_TCP = 6;
const TCP_NODELAY = 1;
const SOL_IPV6 = 41;
const IPV6_V6ONLY = 26;
const IPV6_TRANSPARENT = 75;
const ADDRESS_BYTES = 128;

/**
 * A network namespace: the path of a namespace file (`/run/netns/NAME`, `/proc/PID/ns/net`), or a process id.
 * With `identity` (see `NamespaceOpened`) it must still be the very same namespace: a process id or a name that
 * was used again is refused.
 */
export type NamespaceTarget = string | number | { path: string; identity: string };

/** What to open. Addresses are IP text without brackets; all sockets are non-blocking and close-on-exec. */
export type SocketRequest = ListenRequest | DialRequest | UnconnectedRequest;

/** Options that every socket may have. */
export interface SocketOptions {
  /** SO_MARK of everything that the socket sends, such as `CAPTURE_MARK`; needs CAP_NET_ADMIN. */
  mark?: number;
  /** IP_TRANSPARENT: may use addresses that are not of the namespace; needs CAP_NET_ADMIN. */
  transparent?: boolean;
}

/** A listening socket; with `count`, all share one port by SO_REUSEPORT. */
export interface ListenRequest extends SocketOptions {
  kind: 'listen';
  host: string;
  /** 0: the kernel chooses; all of one request get the same. */
  port: number;
}

/** A socket that is connecting or connected: wait until it is writable, then read SO_ERROR. */
export interface DialRequest extends SocketOptions {
  kind: 'dial';
  host: string;
  port: number;
  /** Own address; port 0 leaves the port to the kernel. Foreign addresses need `transparent`. */
  source?: { host: string; port: number };
}

/** A socket for whoever gets it to connect: a stock of them saves a thread the way here. */
export interface UnconnectedRequest extends SocketOptions {
  kind: 'unconnected';
  family: 4 | 6;
}

/** Why a namespace or a socket in it could not be had. */
export type NamespaceErrorCode =
  /** There is no such file or process. */
  | 'NAMESPACE_NOT_FOUND'
  /** The file cannot be opened: no permission, or no descriptors left. */
  | 'NAMESPACE_UNREADABLE'
  /** The file is something else, such as the empty one that a removed namespace leaves behind. */
  | 'NOT_A_NAMESPACE'
  /** Not permitted to enter (CAP_SYS_ADMIN). */
  | 'NAMESPACE_FORBIDDEN'
  /** The path leads to another namespace than the expected one. */
  | 'NAMESPACE_CHANGED'
  /** A socket call inside failed. */
  | 'SOCKET_FAILED'
  /** A program could not be started, or ran too long. */
  | 'COMMAND_FAILED'
  /** The thread ended before it answered. */
  | 'THREAD_LOST'
  /** The `NamespaceSockets` has been closed. */
  | 'CLOSED';

/** A failure, by name. */
export interface NamespaceFailure {
  ok: false;
  code: NamespaceErrorCode;
  /** Positive error number (core/ffi/errno.ts); 0 when there was none. */
  errno: number;
  /** One sentence with the namespace and the call that failed. */
  message: string;
}

/** Opened sockets. The caller owns the descriptors. */
export interface NamespaceOpened {
  ok: true;
  fds: number[];
  /** Local port of listening sockets; 0 for others. */
  port: number;
  /** Which namespace it was: equal only for the same one (before Linux 5.14 only among those that live). */
  identity: string;
}

/** The thread cannot get back to its own namespace: it must not serve any more. */
export class NamespaceLost extends Error {}

type Libc = ReturnType<typeof bindLibc>;

function bindLibc() {
  const libc = koffi.load(null);
  return {
    open: libc.func('int open(const char *path, int flags, uint mode)') as (...args: unknown[]) => number,
    setns: libc.func('int setns(int fd, int type)') as (...args: number[]) => number,
    socket: libc.func('int socket(int domain, int type, int protocol)') as (...args: number[]) => number,
    setsockopt: libc.func('int setsockopt(int fd, int level, int name, const void *value, uint length)'),
    bind: libc.func('int bind(int fd, const void *address, uint length)'),
    connect: libc.func('int connect(int fd, const void *address, uint length)'),
    listen: libc.func('int listen(int fd, int backlog)') as (...args: number[]) => number,
    getsockopt: libc.func('int getsockopt(int fd, int level, int name, _Out_ void *value, _Inout_ uint *length)'),
    getsockname: libc.func('int getsockname(int fd, _Out_ void *address, _Inout_ uint *length)'),
    close: libc.func('int close(int fd)') as (...args: number[]) => number,
  };
}

/** The file of a target, and the identity that it must have, if any. */
export function namespaceFile(target: NamespaceTarget): { path: string; identity: string | undefined } {
  if (typeof target === 'number') return { path: `/proc/${target}/ns/net`, identity: undefined };
  if (typeof target === 'string') return { path: target, identity: undefined };
  return target;
}

/** Enters namespaces, for the one thread that makes it. */
export class NamespaceEntry {
  private readonly libc: Libc = bindLibc();
  private readonly own: number;
  private readonly ownFile: BigIntStats;

  /** Throws when the thread's own namespace cannot be opened: there would be no way back. */
  constructor() {
    this.own = this.libc.open('/proc/thread-self/ns/net', O_CLOEXEC, 0);
    if (this.own < 0) throw new Error(`the own network namespace cannot be opened: ${errnoSentence(koffi.errno())}`);
    this.ownFile = fstatSync(this.own, { bigint: true });
  }

  /** Gives the way back up; `inside` must not be called any more. */
  close(): void {
    this.libc.close(this.own);
  }

  /**
   * Runs a synchronous function inside the namespace, with its identity. Throws `NamespaceLost` when there is no
   * way back, after which the thread must end. What `body` throws is a defect and ends the thread as well.
   * Being in the own namespace needs no right.
   */
  inside<T>(target: NamespaceTarget, body: (identity: string) => T | NamespaceFailure): T | NamespaceFailure {
    const { libc } = this;
    const { path, identity: expected } = namespaceFile(target);
    const fd = libc.open(path, O_CLOEXEC | O_NONBLOCK, 0);
    if (fd < 0) return openFailure(path, koffi.errno());
    const { dev, ino } = fstatSync(fd, { bigint: true });
    const isOwn = dev === this.ownFile.dev && ino === this.ownFile.ino;
    const entered = isOwn ? 0 : libc.setns(fd, CLONE_NEWNET);
    const errno = entered < 0 ? koffi.errno() : 0;
    libc.close(fd);
    if (errno === Errno.EPERM) return failure('NAMESPACE_FORBIDDEN', errno, `${path} cannot be entered`);
    if (errno !== 0) return failure('NOT_A_NAMESPACE', errno, `${path} is not a network namespace`);
    const identity = this.cookie() ?? `${dev}:${ino}`;
    const value =
      expected === undefined || identity === expected
        ? body(identity)
        : failure('NAMESPACE_CHANGED', 0, `${path} is another network namespace than before`);
    if (!isOwn && libc.setns(this.own, CLONE_NEWNET) < 0) {
      throw new NamespaceLost(`no way back from ${path}: ${errnoSentence(koffi.errno())}`);
    }
    return value;
  }

  /** Opens `count` sockets inside the namespace: all of them, or none. */
  open(target: NamespaceTarget, request: SocketRequest, count: number): NamespaceOpened | NamespaceFailure {
    const { path } = namespaceFile(target);
    const fds: number[] = [];
    try {
      return this.inside(target, (identity): NamespaceOpened | NamespaceFailure => {
        let port = request.kind === 'listen' ? request.port : 0;
        for (let i = 0; i < count; i++) {
          const opened = this.openOne(request, port);
          if (typeof opened !== 'number') {
            for (const fd of fds) this.libc.close(fd);
            return failure('SOCKET_FAILED', opened.errno, `${opened.step} in ${path} failed`);
          }
          fds.push(opened);
          if (request.kind === 'listen' && port === 0) port = this.localPort(opened);
        }
        return { ok: true, fds, port, identity };
      });
    } catch (error) {
      for (const fd of fds) this.libc.close(fd);
      throw error;
    }
  }

  /** The number that the kernel gives to each namespace once (5.14); inode numbers are used again. */
  private cookie(): string | undefined {
    const { libc } = this;
    const fd = libc.socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return undefined;
    const value = new BigUint64Array(1);
    const status = libc.getsockopt(fd, SOL_SOCKET, SO_NETNS_COOKIE, value, [8]);
    libc.close(fd);
    return status < 0 ? undefined : String(value[0]);
  }

  private openOne(request: SocketRequest, port: number): number | StepFailure {
    const address = request.kind === 'unconnected' ? undefined : encodeSockaddr(request.host, port || request.port);
    if (request.kind !== 'unconnected' && address === undefined) {
      return { errno: Errno.EINVAL, step: `an address from "${request.host}"` };
    }
    const family =
      address?.[0] ?? (request.kind === 'unconnected' && request.family === 6 ? Family.INET6 : Family.INET);
    const fd = this.libc.socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return { errno: koffi.errno(), step: 'socket' };
    const failed = this.prepare(fd, family, request) ?? this.attach(fd, family, request, address);
    if (failed === undefined) return fd;
    this.libc.close(fd);
    return failed;
  }

  private prepare(fd: number, family: number, request: SocketRequest): StepFailure | undefined {
    const { mark } = request;
    const transparent = family === Family.INET6 ? [SOL_IPV6, IPV6_TRANSPARENT] : [SOL_IP, IP_TRANSPARENT];
    return (
      // Accepted sockets inherit it, so no connection can be met by Nagle's delay.
      this.set(fd, IPPROTO_TCP, TCP_NODELAY, 1, 'TCP_NODELAY') ??
      (mark === undefined ? undefined : this.set(fd, SOL_SOCKET, SO_MARK, mark, 'SO_MARK')) ??
      (request.transparent === true ? this.set(fd, transparent[0]!, transparent[1]!, 1, 'IP_TRANSPARENT') : undefined)
    );
  }

  private attach(fd: number, family: number, request: SocketRequest, address: Uint8Array | undefined) {
    const { libc } = this;
    if (request.kind === 'listen') {
      return (
        this.set(fd, SOL_SOCKET, SO_REUSEADDR, 1, 'SO_REUSEADDR') ??
        this.set(fd, SOL_SOCKET, SO_REUSEPORT, 1, 'SO_REUSEPORT') ??
        (family === Family.INET6 ? this.set(fd, SOL_IPV6, IPV6_V6ONLY, 1, 'IPV6_V6ONLY') : undefined) ??
        step(libc.bind(fd, address, address!.length), `bind to ${request.host} port ${request.port}`) ??
        step(libc.listen(fd, LISTEN_BACKLOG), 'listen')
      );
    }
    if (request.kind === 'unconnected') return undefined;
    if (request.source !== undefined) {
      const { host, port } = request.source;
      const source = encodeSockaddr(host, port);
      if (source === undefined) return { errno: Errno.EINVAL, step: `a source address from "${host}"` };
      const failed =
        // The port is chosen at connect, so that one address has 64 Ki of them per destination, not in all.
        (port === 0 ? this.set(fd, SOL_IP, IP_BIND_ADDRESS_NO_PORT, 1, 'IP_BIND_ADDRESS_NO_PORT') : undefined) ??
        step(libc.bind(fd, source, source.length), `bind to ${host}`);
      if (failed !== undefined) return failed;
    }
    const failed = step(libc.connect(fd, address, address!.length), `connect to ${request.host}`);
    return failed?.errno === Errno.EINPROGRESS ? undefined : failed;
  }

  private set(fd: number, level: number, name: number, value: number, text: string): StepFailure | undefined {
    return step(this.libc.setsockopt(fd, level, name, new Int32Array([value]), 4), text);
  }

  private localPort(fd: number): number {
    const bytes = new Uint8Array(ADDRESS_BYTES);
    this.libc.getsockname(fd, bytes, [ADDRESS_BYTES]);
    return decodeSockaddr(bytes, 0)?.port ?? 0;
  }
}

interface StepFailure {
  errno: number;
  step: string;
}

function step(value: number, text: string): StepFailure | undefined {
  return value < 0 ? { errno: koffi.errno(), step: text } : undefined;
}

/** A failure whose sentence ends with the error number's, if there is one. */
export function failure(code: NamespaceErrorCode, errno: number, what: string): NamespaceFailure {
  return { ok: false, code, errno, message: errno === 0 ? what : `${what}: ${errnoSentence(errno)}` };
}

function openFailure(path: string, errno: number): NamespaceFailure {
  if (errno === Errno.ENOENT || errno === ENOTDIR || errno === ESRCH) {
    return failure('NAMESPACE_NOT_FOUND', errno, `there is no network namespace ${path}`);
  }
  return failure('NAMESPACE_UNREADABLE', errno, `${path} cannot be opened`);
}
