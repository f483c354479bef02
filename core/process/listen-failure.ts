// Why an address cannot be listened on, in one sentence for the operator. Pure.

import { Errno, errnoSentence } from '../ffi/errno.ts';
import { ExitCode, ExitError } from './exit-codes.ts';

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

/** What to end with when the system refused to listen; an error that is not the system's is given back as it is. */
export function cannotListen(what: string, address: string, error: unknown): unknown {
  const errno = Math.abs((error as NodeJS.ErrnoException).errno ?? 0);
  if (errno === 0) return error;
  return new ExitError(ExitCode.CANNOT_LISTEN, listenFailureSentence(what, address, errno));
}
