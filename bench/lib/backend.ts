// The upstream server of all benchmarks: nginx by default, or backend.c.
//
//   GET /b/16384 ...   that many bytes        POST /upload   reads the whole body, then 128 bytes
//   GET /json          16 KiB of JSON (nginx) anything else  128 bytes
//
// Two more kinds are nginx too: `tls` serves the same over TLS, for proxies that pass it on unread, and
// `grpc` answers unary calls over HTTP/2 without TLS.
//
// Keep-alive without limits and no log, so that it is never what a figure is about.

import { closeSync, ftruncateSync, mkdirSync, openSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Access } from './access.ts';
import { buildCProgram } from './c-programs.ts';
import { type CertificateFiles, certificateFiles, TLS_SUITE } from './certificate.ts';
import { GRPC_PATH, grpcMessage } from './grpc.ts';
import { jsonText } from './json-text.ts';
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
/** Path of a text to compress; backend.c does not have it. */
export const JSON_PATH = '/json';
/** Its size. */
export const JSON_BYTES = 16_384;

/** Which backend: nginx or backend.c with HTTP/1.1, nginx with HTTP/1.1 over TLS, nginx with gRPC over h2c. */
export type BackendKind = 'nginx' | 'c' | 'tls' | 'grpc';

/** A backend that runs. */
export interface Backend {
  kind: BackendKind;
  port: number;
  access: Access;
  process: BenchProcess;
}

/** Path of a body of `bytes` (SMALL_BODY_BYTES or one of BODY_SIZES). */
export function bodyPath(bytes: number): string {
  return `/b/${bytes}`;
}

/** Path that the backend of this kind answers with little: SMALL_BODY_BYTES, or a gRPC message. */
export function smallPath(kind: BackendKind): string {
  return kind === 'grpc' ? GRPC_PATH : bodyPath(SMALL_BODY_BYTES);
}

/** Further addresses of an HTTP/1.1 backend without TLS, for proxies that balance: eight. */
export function fastAddresses(port: number): string[] {
  return Array.from({ length: 8 }, (_, index) => `127.0.0.${index + 2}:${port}`);
}

/** Starts a backend pinned to `core` and waits until it serves; `idle`: see StartOptions. */
export async function startBackend(kind: BackendKind, core: number | null, idle = false): Promise<Backend> {
  const port = await freePort();
  const dir = join(temporaryDir(), `backend-${port}`);
  mkdirSync(dir, { recursive: true });
  const process = kind === 'c' ? await startC(port, dir, core, idle) : await startNginx(kind, port, dir, core, idle);
  const access: Access = { port, tls: kind === 'tls', protocol: kind === 'grpc' ? 'grpc' : 'http/1.1' };
  await waitUntilServing(process, access, smallPath(kind), 'localhost');
  return { kind, port, access, process };
}

async function startC(port: number, dir: string, core: number | null, idle: boolean): Promise<BenchProcess> {
  const command = await buildCProgram('backend');
  return new BenchProcess({ label: 'backend-c', command, args: [String(port)], dir, core, idle });
}

async function startNginx(
  kind: 'nginx' | 'tls' | 'grpc',
  port: number,
  dir: string,
  core: number | null,
  idle: boolean,
): Promise<BenchProcess> {
  const command = findExecutable('nginx');
  if (command === null) throw new Error('nginx, the default backend, is not installed (apt-get install nginx-light)');
  mkdirSync(join(dir, 'b'), { recursive: true });
  for (const bytes of BODY_SIZES) {
    const file = openSync(join(dir, 'b', String(bytes)), 'w');
    ftruncateSync(file, bytes);
    closeSync(file);
  }
  writeFileSync(join(dir, 'message'), grpcMessage());
  writeFileSync(join(dir, JSON_PATH), jsonText(JSON_BYTES));
  const listen = `listen 127.0.0.1:${port}`;
  const tls = kind === 'tls' ? await certificateFiles() : null;
  const server = kind === 'grpc' ? grpcServer(listen, dir) : httpServer(port, listen, dir, tls);
  const config = join(dir, 'nginx.conf');
  writeFileSync(config, nginxConfig(server, dir));
  const args = ['-p', dir, '-e', join(dir, 'error.log'), '-c', config];
  return new BenchProcess({ label: 'backend-nginx', command, args, dir, core, idle });
}

/** Configuration of such an nginx, whose files are in `dir`, around `server` blocks. */
export function nginxConfig(server: string, dir: string): string {
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
${server}
}
`;
}

// An upload is answered only when the whole body was read: proxy_pass with request buffering does
// that, and passes on an empty request to a socket of the same worker. `return` alone would answer
// before the body has arrived.
function httpServer(port: number, listen: string, dir: string, tls: CertificateFiles | null): string {
  const small = `default_type text/plain; return 200 "${'x'.repeat(SMALL_BODY_BYTES)}";`;
  const certificate =
    tls === null
      ? ''
      : `ssl_certificate ${tls.certificate}; ssl_certificate_key ${tls.key};
    ssl_protocols TLSv1.3; ssl_conf_command Ciphersuites ${TLS_SUITE};`;
  return `  upstream answered { server unix:${dir}/answered.sock; keepalive 64; keepalive_requests 1000000000; }
  server { listen unix:${dir}/answered.sock; location / { ${small} } }
  server {
    ${listen} backlog=4096${tls === null ? '' : ' ssl'};
    ${
      tls === null
        ? fastAddresses(port)
            .map((address) => `listen ${address};`)
            .join(' ')
        : ''
    }
    ${certificate}
    root ${dir};
    location = /b/${SMALL_BODY_BYTES} { ${small} }
    location /b/ { }
    location = ${JSON_PATH} { default_type application/json; }
    location = ${UPLOAD_PATH} {
      proxy_pass http://answered; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_pass_request_body off; proxy_set_header Content-Length "";
    }
    location / { ${small} }
  }`;
}

// A gRPC server answers when it has read the message. Here the request to the mirror makes nginx read the
// body; without it nginx would answer first and reset the stream. A file takes no POST, hence the way
// through the error page. The trailers are what makes it gRPC.
/** Block of a server of unary calls; `listen` is the directive without its end. `dir` has the file `message`. */
export function grpcServer(listen: string, dir: string): string {
  return `  server {
    ${listen} http2 backlog=4096;
    http2_max_concurrent_streams 1000;
    root ${dir};
    location = /mirror { internal; return 204; }
    location = /message { internal; default_type application/grpc; add_trailer grpc-status 0; }
    location = ${GRPC_PATH} { mirror /mirror; error_page 405 =200 /message; alias ${dir}/message; }
  }`;
}
