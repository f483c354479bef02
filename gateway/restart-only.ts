// Settings that a reload cannot change: they size the worker threads. Pure.

import { availableParallelism } from 'node:os';
import type { Config } from '../config/config.ts';

/** Most packet workers, also on larger machines (the schema's maximum). */
const WORKERS_MAX = 256;

/** Number of packet workers of a configuration. */
export function workerCountOf(config: Config): number {
  return config.workers === 'auto' ? Math.min(availableParallelism(), WORKERS_MAX) : config.workers;
}

/**
 * One sentence for each setting that differs and waits for a restart.
 *
 * The number of workers is among them because a worker cannot be taken away without loss: closing
 * its socket of a SO_REUSEPORT group resets the connections that wait in that socket's queue.
 */
export function restartOnlyChanges(before: Config, after: Config): string[] {
  const sentences: string[] = [];
  const note = (key: string, old: number | string, now: number | string): void => {
    if (old !== now) sentences.push(`${key} stays ${old}: a change to ${now} takes effect at the next restart`);
  };
  note('workers', workerCountOf(before), workerCountOf(after));
  note('ioUring', before.ioUring, after.ioUring);
  note('limits.maxConnections', before.limits.connectionsMax, after.limits.connectionsMax);
  note('limits.bufferMemory', before.limits.bufferBytes, after.limits.bufferBytes);
  return sentences;
}
