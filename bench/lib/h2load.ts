// Runs h2load (of nghttp2) and reads its figures.
//
// h2load prints no percentiles, so it also writes a log with a line for every request; p50 and p99
// come from there. It runs for a time, not for a number of requests, so that proxies of every speed
// are under load equally long; requests in flight at the end are not counted. h2load 1.52 never ends
// when the time is over before all its connections stand, so it is watched, and given more time then.

import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { TLS_HOST } from './certificate.ts';
import { BROWSER_HEADERS, type LoadFigures, noErrors } from './figures.ts';
import { grpcMessage } from './grpc.ts';
import { findExecutable, runCommand, temporaryDir } from './processes.ts';
import { percentile } from './stats.ts';

/** One h2load run. */
export interface H2loadOptions {
  /** IPv4 address; default 127.0.0.1. */
  host?: string;
  port: number;
  tls: boolean;
  path: string;
  /** GET with the headers of a browser, or a unary gRPC call. */
  kind: 'get' | 'grpc';
  connections: number;
  /** Most streams at once on one connection. */
  streams: number;
  durationSeconds: number;
  /** Core for h2load; null: not pinned. */
  core: number | null;
  /** Path of the network namespace that it runs in; default: ours. */
  namespace?: string;
}

/** Shortest run: connections that have to shake hands need their time. */
const SECONDS_MIN = 1;
const ATTEMPTS = 3;
/** How much longer than asked for it may run. */
const GRACE_MS = 5000;

/** Runs h2load with one thread, for a second at least. Rejects when it cannot be run or reports nothing. */
export async function runH2load(options: H2loadOptions): Promise<LoadFigures> {
  if (findExecutable('h2load') === null) throw new Error('h2load is not installed (apt-get install nghttp2-client)');
  let durationSeconds = Math.max(SECONDS_MIN, options.durationSeconds);
  for (let attempt = 1; attempt <= ATTEMPTS; attempt++) {
    const figures = await runOnce({ ...options, durationSeconds });
    if (figures !== null) return figures;
    durationSeconds *= 2;
  }
  throw new Error(`h2load did not end in ${ATTEMPTS} attempts: connecting took longer than the whole run`);
}

/** One run; null when it had to be killed. */
async function runOnce(options: H2loadOptions): Promise<LoadFigures | null> {
  const log = join(temporaryDir(), 'h2load.log');
  // It appends to the log of an earlier run.
  rmSync(log, { force: true });
  const args = ['-t1', `-c${options.connections}`, `-m${options.streams}`];
  const durationMs = Math.round(options.durationSeconds * 1000);
  args.push('-D', `${durationMs}ms`, `--log-file=${log}`);
  if (options.kind === 'get') {
    for (const [name, value] of Object.entries(BROWSER_HEADERS)) args.push('-H', `${name.toLowerCase()}: ${value}`);
  } else {
    const message = join(temporaryDir(), 'grpc-message');
    writeFileSync(message, grpcMessage());
    args.push(
      '-d',
      message,
      '-H',
      'content-type: application/grpc',
      '-H',
      'te: trailers',
      '-H',
      'user-agent: grpc-c/1',
    );
  }
  args.push(`--connect-to=${options.host ?? '127.0.0.1'}:${options.port}`);
  args.push(`${options.tls ? 'https' : 'http'}://${TLS_HOST}:${options.port}${options.path}`);
  const { core, namespace } = options;
  const killAfterMs = durationMs + GRACE_MS;
  const { code, stdout, stderr } = await runCommand('h2load', args, { core, namespace, killAfterMs });
  if (code === null) return null;
  const figures = parseH2load(stdout);
  if (figures === null) throw new Error(`h2load reported no result: ${(stderr || stdout).trim().slice(-500)}`);
  const latencies = parseLog(readFileSync(log, 'utf8'));
  rmSync(log, { force: true });
  figures.latencyP50Us = percentile(latencies, 50);
  figures.latencyP99Us = percentile(latencies, 99);
  return figures;
}

/** Figures from h2load's output, without latencies (NaN); null when a line of it is missing. */
export function parseH2load(stdout: string): LoadFigures | null {
  const finished = /^finished in ([\d.]+)(us|ms|s|m|h),/m.exec(stdout);
  const requests =
    /^requests: \d+ total, \d+ started, (\d+) done, \d+ succeeded, (\d+) failed, (\d+) errored, (\d+) timeout/m.exec(
      stdout,
    );
  const statuses = /^status codes: \d+ 2xx, \d+ 3xx, (\d+) 4xx, (\d+) 5xx/m.exec(stdout);
  const traffic = /^traffic: .* \((\d+)\) data$/m.exec(stdout);
  if (finished === null || requests === null || statuses === null || traffic === null) return null;
  const [done, failed, errored, timeout] = requests.slice(1).map(Number);
  const errors = noErrors();
  errors.status = Number(statuses[1]) + Number(statuses[2]);
  // "Failed" contains answers with an error status and streams that "errored"; these have no answer at all.
  errors.read = Math.max(errored, failed - errors.status);
  errors.timeout = timeout;
  return {
    requests: done - errors.read,
    durationUs: Number(finished[1]) * UNIT_US[finished[2]],
    bytes: Number(traffic[1]),
    latencyP50Us: Number.NaN,
    latencyP99Us: Number.NaN,
    errors,
  };
}

const UNIT_US: Record<string, number> = { us: 1, ms: 1000, s: 1e6, m: 60e6, h: 3600e6 };

/** Latencies in microseconds, ascending, from h2load's log: start, status (-1: failed), microseconds. */
export function parseLog(text: string): Float64Array {
  const latencies: number[] = [];
  for (const line of text.split('\n')) {
    const [, status, latencyUs] = line.split('\t');
    if (latencyUs !== undefined && status !== '-1') latencies.push(Number(latencyUs));
  }
  return Float64Array.from(latencies).sort();
}
