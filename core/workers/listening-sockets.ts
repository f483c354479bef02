// The listening sockets of the process: which addresses are open, with one socket per worker each.
//
// The control thread owns them, so they outlive a dead worker and a reload that leaves them alone.
// A change is planned first: every new socket is open before anything else happens, and a plan
// that cannot be had whole leaves everything as it was.
// Owned by the control thread. Invariant: `current` has exactly `workerCount` sockets per address.

import { fstatSync } from 'node:fs';
import { addressInUse, closeDescriptor, localPort, openListeningSocket } from '../ffi/listen.ts';
import { NamespaceSwitch } from '../ffi/namespace-switch.ts';

/** An address to listen on. */
export interface ListenAddress {
  /** Listener name; only tells apart several addresses with port 0. */
  name: string;
  /** IP address, without brackets. */
  host: string;
  /** 0 to 65535; 0 lets the kernel choose. */
  port: number;
  /** Descriptor of the network namespace to listen in; absent: that of the process. */
  namespaceFd?: number;
  /** It has no socket: other listeners hand connections to it. */
  virtual?: boolean;
}

/** An address that is listened on. */
export interface OpenListener {
  /** Same key: same sockets. */
  key: string;
  host: string;
  /** The port in use, also where 0 was asked for. */
  port: number;
  /** One descriptor per worker, by worker index. A virtual listener has negative numbers of its own. */
  fds: number[];
}

/** Why a plan could not be had. */
export interface ListenFailure {
  address: ListenAddress;
  /** Positive error number, such as `Errno.EADDRINUSE`. */
  errno: number;
}

/** A change of listening addresses whose new sockets are open already. */
export interface ListenPlan {
  /** In the order of the addresses that were asked for. */
  listeners: OpenListener[];
  added: OpenListener[];
  kept: OpenListener[];
  /** Still open; the caller closes them with `closeOf` once their workers have let go. */
  removed: OpenListener[];
}

/** The set of listening sockets. */
export class ListeningSockets {
  /** Listeners in use. */
  current: OpenListener[] = [];
  private readonly workerCount: number;
  private nextVirtual = -2;
  private namespaces: NamespaceSwitch | undefined;

  constructor(workerCount: number) {
    this.workerCount = workerCount;
  }

  /**
   * Opens what `addresses` needs beyond what is open. On failure nothing stays open that was not
   * before. Follow up with `commit` or `abandon`.
   */
  plan(addresses: readonly ListenAddress[]): ListenPlan | { failure: ListenFailure } {
    const plan: ListenPlan = { listeners: [], added: [], kept: [], removed: [] };
    const current = new Map(this.current.map((listener) => [listener.key, listener]));
    for (const address of addresses) {
      const key = keyOf(address);
      const existing = current.get(key);
      if (existing !== undefined) {
        plan.kept.push(existing);
        plan.listeners.push(existing);
        continue;
      }
      const opened = address.virtual ? this.virtual(key) : this.open(address, [...this.current, ...plan.added]);
      if (typeof opened === 'number') {
        this.abandon(plan);
        return { failure: { address, errno: -opened } };
      }
      plan.added.push(opened);
      plan.listeners.push(opened);
    }
    const kept = new Set(plan.kept);
    plan.removed = this.current.filter((listener) => !kept.has(listener));
    return plan;
  }

  /** Makes a plan the current set. Its removed sockets stay open until `closeOf`. */
  commit(plan: ListenPlan): void {
    this.current = plan.listeners;
  }

  /** Closes the sockets that a plan opened. */
  abandon(plan: ListenPlan): void {
    for (const listener of plan.added) for (const fd of listener.fds) if (fd >= 0) closeDescriptor(fd);
  }

  /** Closes one worker's sockets of the given listeners. */
  closeOf(worker: number, listeners: readonly OpenListener[]): void {
    for (const listener of listeners) {
      const fd = listener.fds[worker];
      if (fd === undefined || fd < 0) continue;
      listener.fds[worker] = -1;
      closeDescriptor(fd);
    }
  }

  private virtual(key: string): OpenListener {
    const fds = Array.from({ length: this.workerCount }, () => this.nextVirtual);
    this.nextVirtual--;
    return { key, host: '', port: 0, fds };
  }

  private open(address: ListenAddress, known: readonly OpenListener[]): OpenListener | number {
    const { namespaceFd = -1 } = address;
    if (namespaceFd < 0) return this.openHere(address, known);
    this.namespaces ??= new NamespaceSwitch();
    const status = this.namespaces.enter(namespaceFd);
    if (status < 0) return status;
    try {
      return this.openHere(address, known);
    } finally {
      this.namespaces.leave();
    }
  }

  private openHere(address: ListenAddress, known: readonly OpenListener[]): OpenListener | number {
    const ownFds = known.filter(({ port }) => port === address.port).flatMap(({ fds }) => fds);
    if (address.port !== 0) {
      const status = addressInUse(address.host, address.port, ownFds);
      if (status < 0) return status;
    }
    const listener: OpenListener = { key: keyOf(address), host: address.host, port: address.port, fds: [] };
    for (let worker = 0; worker < this.workerCount; worker++) {
      const fd = openListeningSocket(address.host, listener.port);
      if (fd >= 0) {
        listener.fds.push(fd);
        // The first socket picks the port, the others join it.
        if (listener.port === 0) listener.port = localPort(fd);
      }
      if (fd < 0 || listener.port < 0) {
        for (const open of listener.fds) closeDescriptor(open);
        return fd < 0 ? fd : listener.port;
      }
    }
    return listener;
  }
}

function keyOf({ name, host, port, namespaceFd, virtual }: ListenAddress): string {
  if (virtual) return `virtual|${name}`;
  // A descriptor's number may stand for another namespace later; the inode is the namespace's as long as it is open.
  if (namespaceFd !== undefined) return `${host}|${port}|namespace ${fstatSync(namespaceFd).ino}`;
  return port === 0 ? `${host}|0|${name}` : `${host}|${port}`;
}
