// The server of the node-to-node benchmarks: an nginx inside a workload's namespace, on every address of it.

import { closeSync, ftruncateSync, mkdirSync, openSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { TestNamespace } from '../../test/support/netns/network.ts';
import { grpcServer, nginxConfig, SMALL_BODY_BYTES } from '../lib/backend.ts';
import { grpcMessage } from '../lib/grpc.ts';
import { BenchProcess, temporaryDir } from '../lib/processes.ts';

/** HTTP/1.1. */
export const HTTP_PORT = 8080;
/** The same, for connections that are passed on unread. */
export const TCP_PORT = 8081;
/** Unary calls over HTTP/2 without TLS. */
export const GRPC_PORT = 8082;
/** Size of a large answer, at `/b/` and this number. */
export const LARGE_BODY_BYTES = 1_048_576;

/** Starts it on a core; it serves shortly after. */
export function startHopBackend(at: TestNamespace, core: number): BenchProcess {
  const dir = join(temporaryDir(), `backend-${at.name}`);
  mkdirSync(join(dir, 'b'), { recursive: true });
  const file = openSync(join(dir, 'b', String(LARGE_BODY_BYTES)), 'w');
  ftruncateSync(file, LARGE_BODY_BYTES);
  closeSync(file);
  writeFileSync(join(dir, 'message'), grpcMessage());
  const http = `  server {
    listen ${HTTP_PORT} backlog=4096; listen ${TCP_PORT} backlog=4096;
    root ${dir};
    location / { default_type text/plain; return 200 "${'x'.repeat(SMALL_BODY_BYTES)}"; }
    location = /b/${LARGE_BODY_BYTES} { }
  }`;
  const config = join(dir, 'nginx.conf');
  writeFileSync(config, nginxConfig(`${http}\n${grpcServer(`listen ${GRPC_PORT}`, dir)}`, dir));
  const args = ['-p', dir, '-e', join(dir, 'error.log'), '-c', config];
  return new BenchProcess({ label: 'nginx', command: 'nginx', args, dir, core, namespace: at.path });
}
