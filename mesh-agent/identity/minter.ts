// The pool that mints: one thread, started at the first request and ended when it has been idle.
//
// One, because a core signs some 700 certificates a second (bench/mesh/mint.ts) and the control plane has
// other things to do. Requests wait in a bounded queue. Control thread.

import type { Piscina } from 'piscina';
import { checkRequestSize } from './csr.ts';
import { IdentityError } from './errors.ts';
import type { Minted, MintTask } from './mint.ts';
import type { JobResult } from './mint-job.ts';

/** Most requests that wait: some seconds of work, after which callers would have given up. */
const QUEUE_MAX = 8192;
/** How long the thread stays without work; starting one takes about 0.1 s. */
const IDLE_MS = 30_000;

/** Signs certificates and reads requests off the control thread. */
export class Minter {
  private pool: Promise<Piscina> | undefined;
  private closed = false;

  /** Signs a certificate. Rejects with an IdentityError: `csr-*`, `issuer-expired`, `overloaded`. */
  async mint(task: MintTask): Promise<Minted> {
    checkRequestSize(task.csr);
    return this.run<Minted>('mintJob', task);
  }

  /** The SPIFFE id that a request names; null: none. Rejects with an IdentityError: `csr-*`, `overloaded`. */
  async inspect(csr: string): Promise<string | null> {
    checkRequestSize(csr);
    return this.run<string | null>('inspectJob', csr);
  }

  /** Ends the thread; what waits is rejected. */
  async close(): Promise<void> {
    this.closed = true;
    await (await this.pool)?.destroy();
  }

  private async run<T>(name: string, task: unknown): Promise<T> {
    if (this.closed) throw new IdentityError('overloaded', 'the mesh CA is stopping');
    this.pool ??= startPool();
    const pool = await this.pool;
    if (pool.queueSize >= QUEUE_MAX) {
      throw new IdentityError('overloaded', `${QUEUE_MAX} certificate requests are waiting`);
    }
    let result: JobResult<T>;
    try {
      result = await pool.run(task, { name });
    } catch (error) {
      throw new IdentityError('overloaded', `a certificate was not signed: ${(error as Error).message}`);
    }
    if (!result.ok) throw new IdentityError(result.code, result.cause, result.advice);
    return result.value;
  }
}

async function startPool(): Promise<Piscina> {
  const { Piscina } = await import('piscina');
  return new Piscina({
    filename: new URL('./mint-job.ts', import.meta.url).href,
    minThreads: 0,
    maxThreads: 1,
    idleTimeout: IDLE_MS,
    maxQueue: QUEUE_MAX,
    // Options of the process (a test runner's, an inspector's) are not meant for this thread.
    execArgv: [],
  });
}
