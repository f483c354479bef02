// The listening sockets of the process: which addresses are open, with one socket per worker each.
//
// The control thread owns them, so they outlive a dead worker and a reload that leaves them alone.
// A change is planned first: every new socket is open before anything else happens, and a plan
// that cannot be had whole leaves everything as it was.
// Owned by the control thread. Invariant: `current` has exactly `workerCount` sockets per address.

import { addressInUse, closeDescriptor, localPort, openListeningSocket } from '../ffi/listen.ts';

/** An address to listen on. */
export interface ListenAddress {
  /** Listener name; only tells apart several addresses with port 0. */
  name: string;
  /** IP address, without brackets. */
  host: string;
  /** 0 to 65535; 0 lets the kernel choose. */
  port: number;
}

/** An address that is listened on. */
export interface OpenListener {
  /** Same key: same sockets. */
  key: string;
  host: string;
  /** The port in use, also where 0 was asked for. */
  port: number;
  /** One descriptor per worker, by worker index. */
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

  constructor(workerCount: number) {
    this.workerCount = workerCount;
  }

  /**
   * Opens what `addresses` needs beyond what is open. On failure nothing stays open that was not
   * before. Follow up with `commit` or `abandon`.
   */
  plan(addresses: readonly ListenAddress[]): ListenPlan | { failure: ListenFailure } {
    const plan: ListenPlan = { listeners: [], added: [], kept: [], removed: [] };
    for (const address of addresses) {
      const key = keyOf(address);
      const existing = this.current.find((listener) => listener.key === key);
      if (existing !== undefined) {
        plan.kept.push(existing);
        plan.listeners.push(existing);
        continue;
      }
      const ownFds = [...this.current, ...plan.added].filter(({ port }) => port === address.port);
      const opened = this.open(
        address,
        ownFds.flatMap(({ fds }) => fds),
      );
      if (typeof opened === 'number') {
        this.abandon(plan);
        return { failure: { address, errno: -opened } };
      }
      plan.added.push(opened);
      plan.listeners.push(opened);
    }
    plan.removed = this.current.filter((listener) => !plan.kept.includes(listener));
    return plan;
  }

  /** Makes a plan the current set. Its removed sockets stay open until `closeOf`. */
  commit(plan: ListenPlan): void {
    this.current = plan.listeners;
  }

  /** Closes the sockets that a plan opened. */
  abandon(plan: ListenPlan): void {
    for (const listener of plan.added) for (const fd of listener.fds) closeDescriptor(fd);
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

  private open(address: ListenAddress, ownFds: readonly number[]): OpenListener | number {
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

function keyOf({ name, host, port }: ListenAddress): string {
  return port === 0 ? `${host}|0|${name}` : `${host}|${port}`;
}
