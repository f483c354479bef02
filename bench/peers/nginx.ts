// nginx as a peer: upstream keep-alive, request bodies streamed, nothing spilled to disk.

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { descriptorsMax, firstLine } from '../lib/machine.ts';
import { BenchProcess, findExecutable } from '../lib/processes.ts';
import { allHosts, allPrefixes, NEW_HOST } from '../lib/routes.ts';
import { ALL_FEATURES, type Peer, type ProxyOptions, type StartedProxy } from './peer.ts';

/** nginx, one worker process for each worker asked for. */
export const nginx: Peer = {
  name: 'nginx',
  features: ALL_FEATURES,
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

function configText(options: ProxyOptions, withNewHost: boolean): string {
  const { dir } = options;
  const log = options.accessLogPath === null ? 'access_log off;' : `access_log ${options.accessLogPath};`;
  const connections = Math.floor(descriptorsMax() * 0.95);
  return `daemon off; worker_processes ${options.workers}; pid ${dir}/nginx.pid; error_log ${dir}/error.log crit;
${process.getuid?.() === 0 ? 'user root;' : ''}
worker_rlimit_nofile ${descriptorsMax()};
events { worker_connections ${connections}; }
http {
  ${log} default_type text/plain;
  keepalive_timeout 3600s; keepalive_requests 1000000000; keepalive_time 24h;
  client_max_body_size 0; client_body_buffer_size 128k; client_body_temp_path ${dir}/body;
  proxy_temp_path ${dir}/proxy; fastcgi_temp_path ${dir}/f; uwsgi_temp_path ${dir}/u; scgi_temp_path ${dir}/s;
  server_names_hash_max_size 8192; server_names_hash_bucket_size 128;
  proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $http_host;
  proxy_request_buffering off; proxy_max_temp_file_size 0; proxy_buffers 16 16k; proxy_busy_buffers_size 64k;
  upstream b {
    server 127.0.0.1:${options.backendPort};
    keepalive 2048; keepalive_requests 1000000000; keepalive_time 24h; keepalive_timeout 3600s;
  }
${servers(options, withNewHost)}
}
`;
}

function servers(options: ProxyOptions, withNewHost: boolean): string {
  // One accept queue for each worker, so that connections spread evenly over them.
  const listen = `listen 127.0.0.1:${options.port}`;
  const first = `${listen} default_server backlog=4096${options.workers > 1 ? ' reuseport' : ''};`;
  if (options.routes === 'one') return `  server { ${first} location / { proxy_pass http://b; } }`;
  const locations = allPrefixes()
    .map((prefix) => `location ${prefix} { proxy_pass http://b; }`)
    .join(' ');
  const lines = [`  server { ${first} location / { return 404; } }`];
  for (const host of allHosts()) lines.push(`  server { ${listen}; server_name ${host}; ${locations} }`);
  if (withNewHost) lines.push(`  server { ${listen}; server_name ${NEW_HOST}; location / { proxy_pass http://b; } }`);
  return lines.join('\n');
}
