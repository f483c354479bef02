// A backend that takes its time: run by itself it serves, imported it starts itself as a process.
//
// Every answer is the small one of the other backends, SLOW_MS late, as from a server in trouble.

import { createServer } from 'node:http';
import { SMALL_BODY_BYTES } from './backend.ts';
import { freePort } from './ports.ts';
import { BenchProcess, temporaryDir } from './processes.ts';
import { waitUntilServing } from './serving.ts';

/** How late its answers are. */
export const SLOW_MS = 50;

/** A slow backend that runs. */
export interface SlowServer {
  /** `address:port`. */
  address: string;
  process: BenchProcess;
}

/** Starts one, pinned to `core`, and waits until it serves. */
export async function startSlowServer(core: number | null): Promise<SlowServer> {
  const port = await freePort();
  const process_ = new BenchProcess({
    label: 'slow-backend',
    command: process.execPath,
    args: [import.meta.filename, String(port)],
    dir: temporaryDir(),
    core,
  });
  await waitUntilServing(process_, { port, tls: false, protocol: 'http/1.1' }, '/', 'localhost');
  return { address: `127.0.0.1:${port}`, process: process_ };
}

if (import.meta.main) {
  const body = 'x'.repeat(SMALL_BODY_BYTES);
  const server = createServer((_request, response) => {
    setTimeout(() => response.end(body), SLOW_MS);
  });
  server.keepAliveTimeout = 3_600_000;
  server.listen(Number(process.argv[2]), '127.0.0.1');
}
