// Caddy as a peer: JSON configuration, idle upstream connections kept (its default of 32 for each
// host would make it reconnect all the time), GOMAXPROCS as many as workers asked for.

import { writeFileSync } from 'node:fs';
import { request } from 'node:http';
import { join } from 'node:path';
import { TLS_HOST } from '../lib/certificate.ts';
import { firstLine } from '../lib/machine.ts';
import { freePort } from '../lib/ports.ts';
import { BenchProcess, findExecutable } from '../lib/processes.ts';
import { allHosts, allPrefixes, NEW_HOST } from '../lib/routes.ts';
import { ALL_FEATURES, allBackends, GZIP_LEVELS, type Peer, type ProxyOptions, type StartedProxy } from './peer.ts';

/** Caddy in one process. */
export const caddy: Peer = {
  name: 'caddy',
  // Bytes unread need a module that is not part of it.
  features: { ...ALL_FEATURES, tcp: false, tlsPassthrough: false },
  gzipLevels: GZIP_LEVELS,
  version() {
    const version = findExecutable('caddy') === null ? null : firstLine('caddy', ['version']);
    return version === null ? null : `Caddy ${version.split(' ')[0]}`;
  },
  async start(options: ProxyOptions): Promise<StartedProxy> {
    const { dir } = options;
    const adminPort = await freePort();
    const config = join(dir, 'caddy.json');
    writeFileSync(config, configText(options, adminPort, false));
    const child = new BenchProcess({
      label: 'caddy',
      command: findExecutable('caddy') ?? 'caddy',
      args: ['run', '--config', config],
      dir,
      env: {
        GOMAXPROCS: String(options.workers),
        HOME: dir,
        XDG_CONFIG_HOME: dir,
        XDG_DATA_HOME: dir,
      },
      core: options.core,
    });
    return { process: child, reload: () => post(adminPort, '/load', configText(options, adminPort, true)) };
  },
};

function configText(options: ProxyOptions, adminPort: number, withNewHost: boolean): string {
  const proxy = {
    handler: 'reverse_proxy',
    upstreams: allBackends(options).map((dial) => ({ dial })),
    load_balancing: { selection_policy: { policy: options.balance === 'RoundRobin' ? 'round_robin' : 'least_conn' } },
    transport: {
      protocol: 'http',
      compression: false,
      ...(options.upstreamProtocol === 'h2c' ? { versions: ['h2c', '2'] } : {}),
      keep_alive: { max_idle_conns: 4096, max_idle_conns_per_host: 4096, idle_timeout: '1h' },
    },
  };
  const logs =
    options.accessLogPath === null
      ? { default: { level: 'ERROR' } }
      : {
          default: { level: 'ERROR', exclude: ['http.log.access.log0'] },
          log0: {
            writer: { output: 'file', filename: options.accessLogPath, roll: false },
            include: ['http.log.access.log0'],
          },
        };
  const tlsPolicy = { protocol_min: 'tls1.3', curves: ['x25519'], default_sni: TLS_HOST };
  const { certificate, key } = options.tls ?? {};
  return JSON.stringify({
    admin: { listen: `127.0.0.1:${adminPort}`, config: { persist: false } },
    logging: { logs },
    apps: {
      ...(options.tls === null ? {} : { tls: { certificates: { load_files: [{ certificate, key }] } } }),
      http: {
        servers: {
          s: {
            listen: [`127.0.0.1:${options.port}`],
            automatic_https: { disable: true },
            idle_timeout: '1h',
            protocols: options.protocol === 'h2' ? ['h1', options.tls === null ? 'h2c' : 'h2'] : ['h1'],
            ...(options.tls === null ? {} : { tls_connection_policies: [tlsPolicy] }),
            ...(options.accessLogPath === null ? {} : { logs: { default_logger_name: 'log0' } }),
            routes: routes(options, proxy, withNewHost),
          },
        },
      },
    },
  });
}

function routes(options: ProxyOptions, proxy: object, withNewHost: boolean): object[] {
  if (options.routes === 'one') return [{ handle: [...gzip(options), proxy] }];
  const byPrefix = allPrefixes().map((prefix) => ({ match: [{ path: [`${prefix}/*`] }], handle: [proxy] }));
  const byHost: object[] = allHosts().map((host) => ({
    match: [{ host: [host] }],
    handle: [{ handler: 'subroute', routes: byPrefix }],
    terminal: true,
  }));
  if (withNewHost) byHost.push({ match: [{ host: [NEW_HOST] }], handle: [proxy], terminal: true });
  return [...byHost, { handle: [{ handler: 'static_response', status_code: 404 }] }];
}

/** The handler that compresses (application/json is one of its default types); none for the default. */
function gzip({ gzipLevel }: ProxyOptions): object[] {
  if (gzipLevel === null) return [];
  return [{ handler: 'encode', encodings: { gzip: { level: gzipLevel } }, prefer: ['gzip'], minimum_length: 1024 }];
}

/** Posts JSON to the admin port; rejects unless the answer is 200. */
function post(port: number, path: string, body: string): Promise<void> {
  return new Promise((resolve, reject) => {
    const headers = { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) };
    const outgoing = request({ host: '127.0.0.1', port, path, method: 'POST', headers }, (incoming) => {
      incoming.resume();
      if (incoming.statusCode === 200) incoming.once('end', () => resolve());
      else reject(new Error(`the admin port answered ${incoming.statusCode}`));
    });
    outgoing.once('error', reject);
    outgoing.end(body);
  });
}
