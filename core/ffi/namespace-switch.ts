// Being in another network namespace for the length of one call, so that a socket opened there belongs to it.
//
// `setns` moves the calling thread only. Nothing asynchronous starts between `enter` and `leave`, so no thread of the
// runtime is ever created inside. Twice 2 us per socket; handing stocks of sockets from thread to thread costs more
// and runs dry. Owned by one thread. Entering needs CAP_SYS_ADMIN.
// Source: setns(2), network_namespaces(7).

import { openSync } from 'node:fs';
import koffi from 'koffi';

const CLONE_NEWNET = 0x40000000;

/** Switches the network namespace of the thread that made it. */
export class NamespaceSwitch {
  private readonly setns: (fd: number, type: number) => number;
  private readonly ownFd: number;

  /** Throws when the thread's own namespace cannot be opened. */
  constructor() {
    this.setns = koffi.load(null).func('int setns(int fd, int type)') as (fd: number, type: number) => number;
    this.ownFd = openSync('/proc/thread-self/ns/net', 'r');
  }

  /** Enters the namespace of a descriptor: 0, or a negative error number; then nothing has changed. */
  enter(namespaceFd: number): number {
    return this.setns(namespaceFd, CLONE_NEWNET) < 0 ? -koffi.errno() : 0;
  }

  /** Goes back. Throws when that fails: the thread must not serve any more. */
  leave(): void {
    if (this.setns(this.ownFd, CLONE_NEWNET) < 0) {
      throw new Error(`cannot return to the own network namespace (error ${koffi.errno()})`);
    }
  }
}
