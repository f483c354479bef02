// What a process does about its own defects.

import { exitNow } from '../ffi/process.ts';
import type { Log } from '../workers/log.ts';
import { ExitCode } from './exit-codes.ts';

/** From now on a defect of the control thread ends the process with its cause; a supervisor starts it again. */
export function endOnDefects(log: Log): void {
  const end = (error: unknown): never => {
    log('error', 'internal error', { cause: error instanceof Error ? error.stack : String(error) });
    return exitNow(ExitCode.INTERNAL);
  };
  process.on('uncaughtException', end);
  process.on('unhandledRejection', end);
  // A log reader that went away must not end the process.
  process.stderr.on('error', () => {});
  process.stdout.on('error', () => {});
}
