// nginx as a peer: upstream keep-alive, request bodies streamed, nothing spilled to disk. It passes
// connections on unread with its stream module, built in or loaded (Debian: libnginx-mod-stream).

import { existsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type CertificateFiles, TLS_HOST, TLS_SUITE } from '../lib/certificate.ts';
import { descriptorsMax, firstLine } from '../lib/machine.ts';
import { BenchProcess, findExecutable } from '../lib/processes.ts';
import { allHosts, allPrefixes, NEW_HOST } from '../lib/routes.ts';
import { ALL_FEATURES, allBackends, GZIP_LEVELS, type Peer, type ProxyOptions, type StartedProxy } from './peer.ts';

/** nginx, one worker process for each worker asked for. */
export const nginx: Peer = {
  name: 'nginx',
  get features() {
    const stream = streamModule() !== null;
    return { ...ALL_FEATURES, tcp: stream, tlsPassthrough: stream };
  },
  gzipLevels: GZIP_LEVELS,
  version() {
    const command = findExecutable('nginx');
    return command === null ? null : firstLine(command, ['-v']);
  },
  async start(options: ProxyOptions): Promise<StartedProxy> {
    const { dir } = options;
    const config = join(dir, 'nginx.conf');
    writeFileSync(config, configText(options, false));
    const child = new BenchProcess({
      label: 'nginx',
      command: findExecutable('nginx') ?? 'nginx',
      args: ['-p', dir, '-e', join(dir, 'error.log'), '-c', config],
      dir,
      core: options.core,
    });
    return {
      process: child,
      async reload() {
        writeFileSync(config, configText(options, true));
        child.signal('SIGHUP');
      },
    };
  },
};

let foundStreamModule: string | null | undefined;

/** The directive that brings in the stream module, empty where it is built in; null: there is none. */
function streamModule(): string | null {
  if (foundStreamModule === undefined) foundStreamModule = findStreamModule();
  return foundStreamModule;
}

function findStreamModule(): string | null {
  const command = findExecutable('nginx');
  const built = command === null ? null : firstLine('sh', ['-c', '"$1" -V 2>&1 | grep arguments', 'sh', command]);
  if (built === null) return null;
  if (/--with-stream(\s|$)/.test(built)) return '';
  const dir = process.env.PORTCULLIS_NGINX_MODULES ?? /--modules-path=(\S+)/.exec(built)?.[1];
  const file = join(dir ?? '', 'ngx_stream_module.so');
  return dir !== undefined && existsSync(file) ? `load_module ${file};` : null;
}

function configText(options: ProxyOptions, withNewHost: boolean): string {
  const unread = options.protocol === 'tcp' || options.protocol === 'tls-passthrough';
  return unread ? `${streamModule()}\n${mainText(options)}${streamText(options)}` : httpText(options, withNewHost);
}

/** What stands before the blocks. */
function mainText({ dir, workers }: ProxyOptions): string {
  const connections = Math.floor(descriptorsMax() * 0.95);
  return `daemon off; worker_processes ${workers}; pid ${dir}/nginx.pid; error_log ${dir}/error.log crit;
${process.getuid?.() === 0 ? 'user root;' : ''}
worker_rlimit_nofile ${descriptorsMax()};
events { worker_connections ${connections}; }
`;
}

function streamText({ protocol, port, backendPort }: ProxyOptions): string {
  const bySni = `map $ssl_preread_server_name $chosen { ${TLS_HOST} b; }`;
  const passthrough = protocol === 'tls-passthrough';
  return `stream {
  tcp_nodelay on; proxy_timeout 1h;
  upstream b { server 127.0.0.1:${backendPort}; }
  ${passthrough ? bySni : ''}
  server {
    listen 127.0.0.1:${port} backlog=4096;
    ${passthrough ? 'ssl_preread on; proxy_pass $chosen;' : 'proxy_pass b;'}
  }
}
`;
}

function httpText(options: ProxyOptions, withNewHost: boolean): string {
  const { dir } = options;
  const log = options.accessLogPath === null ? 'access_log off;' : `access_log ${options.accessLogPath};`;
  return `${mainText(options)}http {
  ${log} default_type text/plain;
  keepalive_timeout 3600s; keepalive_requests 1000000000; keepalive_time 24h;
  client_max_body_size 0; client_body_buffer_size 128k; client_body_temp_path ${dir}/body;
  proxy_temp_path ${dir}/proxy; fastcgi_temp_path ${dir}/f; uwsgi_temp_path ${dir}/u; scgi_temp_path ${dir}/s;
  server_names_hash_max_size 8192; server_names_hash_bucket_size 128;
  proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $http_host;
  proxy_request_buffering off; proxy_max_temp_file_size 0; proxy_buffers 16 16k; proxy_busy_buffers_size 64k;
  ${options.tls === null ? '' : tlsText(options.tls)}
  ${options.gzipLevel === null ? '' : gzipText(options.gzipLevel)}
  upstream b {
    ${options.balance === 'RoundRobin' ? '' : 'least_conn;'}
    ${allBackends(options)
      .map((address) => `server ${address} max_fails=0;`)
      .join(' ')}
    keepalive 2048; keepalive_requests 1000000000; keepalive_time 24h; keepalive_timeout 3600s;
  }
${servers(options, withNewHost)}
}
`;
}

function servers(options: ProxyOptions, withNewHost: boolean): string {
  // One accept queue for each worker, so that connections spread evenly over them.
  const listen = `listen 127.0.0.1:${options.port}`;
  const modes = `${options.tls === null ? '' : ' ssl'}${options.protocol === 'h2' ? ' http2' : ''}`;
  const first = `${listen}${modes} default_server backlog=4096${options.workers > 1 ? ' reuseport' : ''};`;
  const pass = options.upstreamProtocol === 'h2c' ? 'grpc_pass grpc://b;' : 'proxy_pass http://b;';
  if (options.routes === 'one') return `  server { ${first} location / { ${pass} } }`;
  const locations = allPrefixes()
    .map((prefix) => `location ${prefix} { proxy_pass http://b; }`)
    .join(' ');
  const lines = [`  server { ${first} location / { return 404; } }`];
  for (const host of allHosts()) lines.push(`  server { ${listen}; server_name ${host}; ${locations} }`);
  if (withNewHost) lines.push(`  server { ${listen}; server_name ${NEW_HOST}; location / { proxy_pass http://b; } }`);
  return lines.join('\n');
}

/** Compression, with the Vary field that caches need. */
function gzipText(level: number): string {
  return `gzip on; gzip_comp_level ${level}; gzip_types application/json; gzip_min_length 1024; gzip_vary on;`;
}

/** Certificate and TLS. Tickets resume sessions; nginx stores none unless it is told to. */
function tlsText(tls: CertificateFiles): string {
  return `ssl_certificate ${tls.certificate}; ssl_certificate_key ${tls.key}; ssl_protocols TLSv1.3;
  ssl_conf_command Ciphersuites ${TLS_SUITE}; ssl_ecdh_curve X25519:prime256v1;`;
}
