// One control plane at a time on the CA's directory: two would sign with different states of a rotation.
//
//   DIRECTORY/lock   who uses it (core/process/lock-file.ts)
//
// A process of this machine is known to live or not. Of another one (a container, a host with the same volume) only
// its signs of life tell: then it takes a while until it is clear. Control thread.

import { join } from 'node:path';
import { type Clock, sleep, systemClock } from '../../core/process/clock.ts';
import { LOCK_REFRESH_MS, LockAttempts, LockFile, type LockHolder, lockHolder } from '../../core/process/lock-file.ts';
import type { Log } from '../../core/workers/log.ts';
import { IdentityError, storageError } from './errors.ts';

/** Three signs of life missed, and some time for a slow disk. */
const STALE_MS = 3 * LOCK_REFRESH_MS + 5_000;
const POLL_MS = 500;

/** How a lock is taken. */
export interface DirectoryLockOptions {
  log: Log;
  /** The lock was taken away while held, because this process stood still for too long: it must not sign any more. */
  lost: () => void;
  clock?: Clock;
}

/**
 * Takes the lock of a private directory, which exists. Rejects with an IdentityError: `in-use` when another process has
 * it, `storage`. Waits up to 35 s where only time can tell whether the other is still there.
 */
export async function lockDirectory(
  directory: string,
  { log, lost, clock = systemClock }: DirectoryLockOptions,
): Promise<LockFile> {
  const attempts = new LockAttempts(lockPath(directory), clock, STALE_MS);
  let first: LockHolder | null = null;
  for (;;) {
    const result = await attempts.take(lost).catch((error) => {
      throw storageError('cannot write the lock', lockPath(directory), error);
    });
    if (result instanceof LockFile) return result;
    if (result.certain || (first !== null && result.sign !== first.sign)) throw inUse(directory, result);
    if (first === null) {
      first = result;
      log('warn', "the CA's directory was in use by another machine or container; waiting to see whether it still is", {
        directory,
        owner: result.owner,
        waitMs: STALE_MS,
      });
    }
    // Timers of the clock do not keep a process alive, and nothing else may be open yet.
    const alive = setInterval(() => {}, POLL_MS);
    await sleep(clock, POLL_MS, new AbortController().signal).finally(() => clearInterval(alive));
  }
}

/** Who uses the directory of a CA; null: nobody, as far as can be told from this machine. */
export async function directoryHolder(directory: string): Promise<LockHolder | null> {
  try {
    return await lockHolder(lockPath(directory));
  } catch (error) {
    throw storageError('cannot read', lockPath(directory), error);
  }
}

function lockPath(directory: string): string {
  return join(directory, 'lock');
}

function inUse(directory: string, { owner, since }: LockHolder): IdentityError {
  return new IdentityError(
    'in-use',
    `the CA in ${directory} is in use by another control plane (${owner}${since === '' ? '' : `, since ${since}`})`,
    'stop that one first, or give this one a directory of its own',
  );
}
