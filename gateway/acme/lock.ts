// One at a time: the lock file that keeps gateways with one storage directory from ordering at once.
//
// core/process/lock-file.ts knows who lives; this waits for its turn. Control thread only.

import { join } from 'node:path';
import { type Clock, sleep } from '../../core/process/clock.ts';
import { LockAttempts, LockFile } from '../../core/process/lock-file.ts';
import { storageError } from './errors.ts';

/** A lock that has not been refreshed for so long is of a holder that is gone, or cannot write. */
const STALE_MS = 60_000;
/** How often a waiter looks; spread, so that many waiters do not look at once. */
const POLL_MS = 1_000;

/** The lock of a storage directory. */
export class StorageLock {
  private readonly file: LockFile;

  private constructor(file: LockFile) {
    this.file = file;
  }

  /**
   * Takes the lock of a directory, waiting for others. Throws an AcmeError of kind `storage` when the
   * directory cannot be written, or the signal's reason. `waits(owner)` is called once if somebody else
   * has it; `lost()` when it was taken away while held, because this process stood still for too long.
   */
  static async acquire(
    directory: string,
    clock: Clock,
    signal: AbortSignal,
    waits: (owner: string) => void,
    lost: () => void,
  ): Promise<StorageLock> {
    const attempts = new LockAttempts(join(directory, 'lock'), clock, STALE_MS);
    let said = false;
    for (;;) {
      signal.throwIfAborted();
      const result = await attempts.take(lost).catch((error) => {
        throw storageError('the lock file cannot be written', directory, error as NodeJS.ErrnoException);
      });
      if (result instanceof LockFile) return new StorageLock(result);
      if (!said) {
        said = true;
        waits(result.owner);
      }
      await sleep(clock, POLL_MS * (0.5 + clock.random()), signal);
    }
  }

  /** Gives the lock back. Never rejects: a file that stays is found stale by the next. */
  release(): Promise<void> {
    return this.file.release();
  }
}
