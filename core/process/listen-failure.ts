// Why an address cannot be listened on, in one sentence for the operator. Pure.

import { Errno, errnoSentence } from '../core/ffi/errno.ts';

/** One sentence for a failed address; `errno` is positive. `what` names who wanted it. */
export function listenFailureSentence(what: string, address: string, errno: number): string {
  const start = `cannot listen on ${address} for ${what}`;
  if (errno === Errno.EADDRINUSE) return `${start}: another process already listens there.`;
  if (errno === Errno.EACCES) {
    return `${start}: no permission (ports below 1024 need root or the capability CAP_NET_BIND_SERVICE).`;
  }
  if (errno === Errno.EADDRNOTAVAIL) return `${start}: this machine does not have that address.`;
  if (errno === Errno.EAFNOSUPPORT) return `${start}: this machine has no IPv6.`;
  return `${start}: ${errnoSentence(errno)}.`;
}
