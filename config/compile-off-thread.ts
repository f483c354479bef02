// Compiles large route tables in a thread of their own, so that a reload does not hold up the
// control thread (metrics, health checks, signals) while it runs.
//
// Control thread. The thread exists only while there is work: reloads are rare, and an idle thread
// holds memory.

import type { Piscina } from 'piscina';
import { compileRoutes, routeTableInput } from './compile-routes.ts';
import type { Config } from './config.ts';

/** Most rules that are compiled on the calling thread; starting a thread takes longer than that. */
export const RULES_ON_THREAD_MAX = 1000;

let pool: Piscina | undefined;
let jobs = 0;

/** Number of rules of a configuration. */
export function ruleCount(config: Pick<Config, 'routes'>): number {
  return config.routes.reduce((count, route) => count + route.rules.length, 0);
}

/** Compiles the routes of a valid configuration, off the calling thread when there are many. */
export async function compileRoutesOffThread(
  config: Pick<Config, 'listeners' | 'routes' | 'backends'>,
): Promise<SharedArrayBuffer> {
  if (ruleCount(config) <= RULES_ON_THREAD_MAX) return compileRoutes(config);
  const { Piscina } = await import('piscina');
  pool ??= new Piscina({
    filename: new URL('./compile-job.ts', import.meta.url).href,
    minThreads: 0,
    maxThreads: 1,
    // Options of the process (a test runner's, an inspector's) are not meant for this thread.
    execArgv: [],
  });
  const current = pool;
  jobs++;
  try {
    return await current.run(routeTableInput(config));
  } finally {
    if (--jobs === 0) {
      pool = undefined;
      await current.destroy();
    }
  }
}
