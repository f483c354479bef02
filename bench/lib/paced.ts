// Runs the load that does not wait for answers (paced-client.ts).

import { join } from 'node:path';
import type { LoadFigures } from './figures.ts';
import { runCommand } from './processes.ts';

/** One run. */
export interface PacedOptions {
  /** IPv4 address. */
  host: string;
  port: number;
  path: string;
  connections: number;
  requestsPerSecond: number;
  /** At equal distances, or at random moments. */
  arrivals: 'even' | 'random';
  /** Time whose latencies count; a second more goes before it. */
  durationSeconds: number;
  /** Core of the client; null: not pinned. */
  core: number | null;
  /** Path of the network namespace that it runs in; default: ours. */
  namespace?: string;
}

/** GETs at their moments, whatever becomes of earlier ones; rejects when the client fails. */
export async function runPaced(options: PacedOptions): Promise<LoadFigures> {
  const script = join(import.meta.dirname, 'paced-client.ts');
  const { host, port, path, connections, requestsPerSecond, durationSeconds, core, namespace, arrivals } = options;
  const numbers = [connections, requestsPerSecond, durationSeconds].map(String);
  const args = [script, host, String(port), path, ...numbers, arrivals];
  const { code, stdout, stderr } = await runCommand(process.execPath, args, { core, namespace });
  if (code !== 0) throw new Error(`the client of paced requests failed: ${stderr.trim().slice(-500)}`);
  return JSON.parse(stdout) as LoadFigures;
}
