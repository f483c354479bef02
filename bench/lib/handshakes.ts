// Runs the load of handshakes (handshake-client.ts) and checks what kind they were.

import { join } from 'node:path';
import type { LoadFigures } from './figures.ts';
import type { HandshakeResult } from './handshake-client.ts';
import { runCommand } from './processes.ts';

/** One run. */
export interface HandshakeOptions {
  port: number;
  path: string;
  /** Whether sessions are resumed. */
  resumed: boolean;
  /** Connections at once. */
  connections: number;
  durationSeconds: number;
  /** Core of the client; null: not pinned. */
  core: number | null;
}

/** One new connection for each request; rejects when the client fails or handshakes were of another kind. */
export async function runHandshakes(options: HandshakeOptions): Promise<LoadFigures> {
  const script = join(import.meta.dirname, 'handshake-client.ts');
  const kind = options.resumed ? 'resumed' : 'full';
  const args = [script, String(options.port), options.path, String(options.connections)];
  args.push(String(Math.round(options.durationSeconds * 1000)), kind);
  const { code, stdout, stderr } = await runCommand(process.execPath, args, { core: options.core });
  if (code !== 0) throw new Error(`the client of handshakes failed: ${stderr.trim().slice(-500)}`);
  const result = JSON.parse(stdout) as HandshakeResult;
  const { figures } = result;
  if (result.otherVersion > 0) throw new Error(`${result.otherVersion} handshakes were not TLS 1.3`);
  if (result.otherKind > 0) {
    throw new Error(`${result.otherKind} of ${figures.requests} handshakes were not ${kind}`);
  }
  if (figures.requests === 0) throw new Error(`no handshake succeeded: ${result.firstError}`);
  return figures;
}
