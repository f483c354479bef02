// HAProxy as a peer: http-reuse always, one thread for each worker asked for, master-worker mode
// where it is to be reloaded. Many routes are one prefix map, which is a tree lookup.

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { TLS_HOST, TLS_SUITE } from '../lib/certificate.ts';
import { descriptorsMax, firstLine } from '../lib/machine.ts';
import { BenchProcess, findExecutable } from '../lib/processes.ts';
import { allHosts, allPrefixes, NEW_HOST } from '../lib/routes.ts';
import { ALL_FEATURES, allBackends, type Peer, type ProxyOptions, type StartedProxy } from './peer.ts';

/** HAProxy in one process. */
export const haproxy: Peer = {
  name: 'haproxy',
  features: ALL_FEATURES,
  // libslz, which Debian builds it with, has one way to compress: a fast one, without levels.
  gzipLevels: [1],
  version() {
    const command = findExecutable('haproxy');
    return command === null ? null : firstLine(command, ['-v']);
  },
  async start(options: ProxyOptions): Promise<StartedProxy> {
    const { dir } = options;
    const config = join(dir, 'haproxy.cfg');
    const map = join(dir, 'routes.map');
    writeFileSync(config, configText(options, map));
    writeFileSync(map, mapText(false));
    const child = new BenchProcess({
      label: 'haproxy',
      command: findExecutable('haproxy') ?? 'haproxy',
      args: [options.routes === 'many' ? '-W' : '-db', '-f', config],
      dir,
      core: options.core,
      ...(options.accessLogPath === null ? {} : { stdoutPath: options.accessLogPath }),
    });
    return {
      process: child,
      async reload() {
        writeFileSync(map, mapText(true));
        child.signal('SIGUSR2');
      },
    };
  },
};

function configText(options: ProxyOptions, map: string): string {
  const log = options.accessLogPath === null ? 'no log' : 'log stdout format raw local0\n  option httplog';
  // HAProxy wants two descriptors for each connection, and refuses to start with fewer.
  const connectionsMax = Math.min(20_000, Math.floor((descriptorsMax() - 300) / 2));
  const unread = options.protocol === 'tcp' || options.protocol === 'tls-passthrough';
  const serverKeys = `pool-purge-delay 1h${options.upstreamProtocol === 'h2c' ? ' proto h2' : ''}`;
  const route = options.routes === 'one' ? defaultRoute(options) : `use_backend %[base,map_beg(${map},none)]`;
  return `global
  nbthread ${options.workers}
  maxconn ${connectionsMax}
  stats socket ${options.dir}/admin.sock mode 600 level admin expose-fd listeners
  tune.ssl.cachesize 0
defaults
  mode ${unread ? 'tcp' : 'http'}
  ${log}
  timeout connect 5s
  timeout client 1h
  timeout server 1h
${unread ? '' : '  timeout http-keep-alive 1h\n  http-reuse always'}
frontend in
  bind 127.0.0.1:${options.port} backlog 4096${bindKeys(options)}
  ${route}
backend b
${options.gzipLevel === null ? '' : '  compression algo gzip\n  compression type application/json'}
  balance ${options.balance === 'RoundRobin' ? 'roundrobin' : 'leastconn'}
${allBackends(options)
  .map((address, index) => `  server s${index} ${address} ${serverKeys}`)
  .join('\n')}
${unread ? '' : 'backend none\n  http-request return status 404'}
`;
}

/** Protocol and TLS of the listening socket. Tickets resume sessions; the cache that is off would only cost. */
function bindKeys({ protocol, tls }: ProxyOptions): string {
  if (tls === null) return protocol === 'h2' ? ' proto h2' : '';
  const alpn = protocol === 'h2' ? 'h2,http/1.1' : 'http/1.1';
  return ` ssl crt ${tls.combined} alpn ${alpn} ssl-min-ver TLSv1.3 ciphersuites ${TLS_SUITE} curves X25519:P-256`;
}

/** What sends everything to the backend; by the name in SNI where TLS is passed on. */
function defaultRoute({ protocol }: ProxyOptions): string {
  if (protocol !== 'tls-passthrough') return 'default_backend b';
  return `tcp-request inspect-delay 5s
  tcp-request content accept if { req.ssl_hello_type 1 }
  use_backend b if { req.ssl_sni -i ${TLS_HOST} }`;
}

function mapText(withNewHost: boolean): string {
  const lines = allHosts().flatMap((host) => allPrefixes().map((prefix) => `${host}${prefix} b`));
  if (withNewHost) lines.push(`${NEW_HOST}/ b`);
  return `${lines.join('\n')}\n`;
}
