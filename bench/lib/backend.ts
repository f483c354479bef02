// The upstream server of all benchmarks: nginx by default, or backend.c.
//
//   GET /b/16384 ...   that many bytes        POST /upload   reads the whole body, then 128 bytes
//   anything else      128 bytes
//
// Keep-alive without limits and no log, so that it is never what a figure is about.

import { closeSync, ftruncateSync, mkdirSync, openSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { buildCProgram } from './c-programs.ts';
import { descriptorsMax } from './machine.ts';
import { freePort } from './ports.ts';
import { BenchProcess, findExecutable, temporaryDir } from './processes.ts';
import { waitUntilServing } from './serving.ts';

/** Size of every small answer. */
export const SMALL_BODY_BYTES = 128;
/** Larger bodies that the backend has, besides SMALL_BODY_BYTES. */
export const BODY_SIZES = [16_384, 1_048_576, 64 * 1_048_576] as const;
/** Path that takes uploads. */
export const UPLOAD_PATH = '/upload';

/** A backend that runs. */
export interface Backend {
  kind: 'nginx' | 'c';
  port: number;
  process: BenchProcess;
}

/** Path of a body of `bytes` (SMALL_BODY_BYTES or one of BODY_SIZES). */
export function bodyPath(bytes: number): string {
  return `/b/${bytes}`;
}

/** Starts a backend pinned to `core` and waits until it serves. */
export async function startBackend(kind: 'nginx' | 'c', core: number | null): Promise<Backend> {
  const port = await freePort();
  const dir = join(temporaryDir(), `backend-${port}`);
  mkdirSync(dir, { recursive: true });
  const process = kind === 'c' ? await startC(port, dir, core) : startNginx(port, dir, core);
  await waitUntilServing(process, port, bodyPath(SMALL_BODY_BYTES), 'localhost');
  return { kind, port, process };
}

async function startC(port: number, dir: string, core: number | null): Promise<BenchProcess> {
  const command = await buildCProgram('backend');
  return new BenchProcess({ label: 'backend-c', command, args: [String(port)], dir, core });
}

function startNginx(port: number, dir: string, core: number | null): BenchProcess {
  const command = findExecutable('nginx');
  if (command === null) throw new Error('nginx, the default backend, is not installed (apt-get install nginx-light)');
  mkdirSync(join(dir, 'b'), { recursive: true });
  for (const bytes of BODY_SIZES) {
    const file = openSync(join(dir, 'b', String(bytes)), 'w');
    ftruncateSync(file, bytes);
    closeSync(file);
  }
  const config = join(dir, 'nginx.conf');
  writeFileSync(config, nginxConfig(port, dir));
  const args = ['-p', dir, '-e', join(dir, 'error.log'), '-c', config];
  return new BenchProcess({ label: 'backend-nginx', command, args, dir, core });
}

// An upload is answered only when the whole body was read: proxy_pass with request buffering does
// that, and passes on an empty request to a socket of the same worker. `return` alone would answer
// before the body has arrived.
function nginxConfig(port: number, dir: string): string {
  const small = `default_type text/plain; return 200 "${'x'.repeat(SMALL_BODY_BYTES)}";`;
  return `daemon off; worker_processes 1; pid ${dir}/nginx.pid; error_log ${dir}/error.log crit;
${process.getuid?.() === 0 ? 'user root;' : ''}
worker_rlimit_nofile ${descriptorsMax()};
events { worker_connections ${Math.floor(descriptorsMax() * 0.95)}; }
http {
  access_log off; sendfile on; tcp_nopush on; default_type text/plain;
  keepalive_timeout 3600s; keepalive_requests 1000000000; keepalive_time 24h;
  client_max_body_size 0; client_body_buffer_size 2m; client_body_temp_path ${dir}/body;
  proxy_temp_path ${dir}/proxy; fastcgi_temp_path ${dir}/f; uwsgi_temp_path ${dir}/u; scgi_temp_path ${dir}/s;
  open_file_cache max=16 inactive=24h; open_file_cache_valid 24h;
  upstream answered { server unix:${dir}/answered.sock; keepalive 64; keepalive_requests 1000000000; }
  server { listen unix:${dir}/answered.sock; location / { ${small} } }
  server {
    listen 127.0.0.1:${port} backlog=4096;
    root ${dir};
    location = /b/${SMALL_BODY_BYTES} { ${small} }
    location /b/ { }
    location = ${UPLOAD_PATH} {
      proxy_pass http://answered; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_pass_request_body off; proxy_set_header Content-Length "";
    }
    location / { ${small} }
  }
}
`;
}
