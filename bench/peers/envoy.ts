// Envoy as a peer, where its binary is in PATH: static configuration, circuit breakers out of the way.

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type CertificateFiles, TLS_HOST } from '../lib/certificate.ts';
import { firstLine } from '../lib/machine.ts';
import { BenchProcess, findExecutable } from '../lib/processes.ts';
import { allHosts, allPrefixes } from '../lib/routes.ts';
import {
  ALL_FEATURES,
  allBackends,
  GZIP_LEVELS,
  noReload,
  type Peer,
  type ProxyOptions,
  type StartedProxy,
} from './peer.ts';

const TYPE = 'type.googleapis.com/envoy.extensions';

/** Envoy. It is not reloaded here: a static configuration has no reload, xDS would need a server. */
export const envoy: Peer = {
  name: 'envoy',
  features: { ...ALL_FEATURES, reload: false },
  gzipLevels: GZIP_LEVELS,
  version() {
    const text = findExecutable('envoy') === null ? null : firstLine('envoy', ['--version']);
    const number = text === null ? undefined : /version: \w+\/(\d+\.\d+\.\d+)/.exec(text)?.[1];
    return number === undefined ? text : `Envoy ${number}`;
  },
  async start(options: ProxyOptions): Promise<StartedProxy> {
    const config = join(options.dir, 'envoy.json');
    writeFileSync(config, configText(options));
    const child = new BenchProcess({
      label: 'envoy',
      command: findExecutable('envoy') ?? 'envoy',
      args: ['-c', config, '--concurrency', String(options.workers), '--disable-hot-restart', '--log-level', 'error'],
      dir: options.dir,
      core: options.core,
    });
    return { process: child, reload: noReload };
  },
};

function configText(options: ProxyOptions): string {
  const manager = {
    '@type': `${TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager`,
    stat_prefix: 'http',
    codec_type: options.protocol === 'h2' ? 'HTTP2' : 'HTTP1',
    stream_idle_timeout: '0s',
    common_http_protocol_options: { idle_timeout: '3600s' },
    route_config: { name: 'routes', virtual_hosts: virtualHosts(options) },
    http_filters: [
      ...gzip(options),
      { name: 'envoy.filters.http.router', typed_config: { '@type': `${TYPE}.filters.http.router.v3.Router` } },
    ],
    ...(options.accessLogPath === null
      ? {}
      : {
          access_log: [
            {
              name: 'envoy.access_loggers.file',
              typed_config: {
                '@type': `${TYPE}.access_loggers.file.v3.FileAccessLog`,
                path: options.accessLogPath,
              },
            },
          ],
        }),
  };
  const unread = options.protocol === 'tcp' || options.protocol === 'tls-passthrough';
  const threshold = {
    max_connections: 100_000,
    max_pending_requests: 100_000,
    max_requests: 100_000,
  };
  return JSON.stringify({
    static_resources: {
      listeners: [
        {
          name: 'http',
          address: socketAddress(options.port),
          tcp_backlog_size: 4096,
          ...(options.protocol === 'tls-passthrough' ? { listener_filters: [tlsInspector] } : {}),
          filter_chains: [
            {
              filters: [unread ? tcpProxy : { name: `${NETWORK}.http_connection_manager`, typed_config: manager }],
              ...(options.protocol === 'tls-passthrough' ? { filter_chain_match: { server_names: [TLS_HOST] } } : {}),
              ...(options.tls === null ? {} : { transport_socket: tlsSocket(options.tls, options.protocol) }),
            },
          ],
        },
      ],
      clusters: [
        {
          name: 'b',
          type: 'STATIC',
          connect_timeout: '5s',
          lb_policy: options.balance === 'RoundRobin' ? 'ROUND_ROBIN' : 'LEAST_REQUEST',
          ...(options.upstreamProtocol === 'h2c' ? { typed_extension_protocol_options: http2Upstream } : {}),
          circuit_breakers: { thresholds: [threshold] },
          load_assignment: {
            cluster_name: 'b',
            endpoints: [
              { lb_endpoints: allBackends(options).map((address) => ({ endpoint: { address: addressOf(address) } })) },
            ],
          },
        },
      ],
    },
  });
}

/** The filter that compresses, with the window and memory of zlib's defaults; none for the default. */
function gzip({ gzipLevel }: ProxyOptions): object[] {
  if (gzipLevel === null) return [];
  const common = { min_content_length: 1024, content_type: ['application/json'] };
  const library = {
    '@type': `${TYPE}.compression.gzip.compressor.v3.Gzip`,
    compression_level: `COMPRESSION_LEVEL_${gzipLevel}`,
    window_bits: 15,
    memory_level: 8,
  };
  const typed_config = {
    '@type': `${TYPE}.filters.http.compressor.v3.Compressor`,
    response_direction_config: { common_config: common },
    compressor_library: { name: 'gzip', typed_config: library },
  };
  return [{ name: 'envoy.filters.http.compressor', typed_config }];
}

const NETWORK = 'envoy.filters.network';

const tcpProxy = {
  name: `${NETWORK}.tcp_proxy`,
  typed_config: {
    '@type': `${TYPE}.filters.network.tcp_proxy.v3.TcpProxy`,
    stat_prefix: 'tcp',
    cluster: 'b',
    idle_timeout: '3600s',
  },
};

const tlsInspector = {
  name: 'envoy.filters.listener.tls_inspector',
  typed_config: { '@type': `${TYPE}.filters.listener.tls_inspector.v3.TlsInspector` },
};

const http2Upstream = {
  'envoy.extensions.upstreams.http.v3.HttpProtocolOptions': {
    '@type': `${TYPE}.upstreams.http.v3.HttpProtocolOptions`,
    explicit_http_config: { http2_protocol_options: {} },
  },
};

function tlsSocket(tls: CertificateFiles, protocol: ProxyOptions['protocol']): object {
  const pair = { certificate_chain: { filename: tls.certificate }, private_key: { filename: tls.key } };
  const version = { tls_minimum_protocol_version: 'TLSv1_3', tls_maximum_protocol_version: 'TLSv1_3' };
  return {
    name: 'envoy.transport_sockets.tls',
    typed_config: {
      '@type': `${TYPE}.transport_sockets.tls.v3.DownstreamTlsContext`,
      common_tls_context: {
        tls_params: { ...version, ecdh_curves: ['X25519'] },
        tls_certificates: [pair],
        alpn_protocols: protocol === 'h2' ? ['h2', 'http/1.1'] : ['http/1.1'],
      },
    },
  };
}

function virtualHosts(options: ProxyOptions): object[] {
  const route = (prefix: string) => ({ match: { prefix }, route: { cluster: 'b', timeout: '0s' } });
  if (options.routes === 'one') return [{ name: 'all', domains: ['*'], routes: [route('/')] }];
  return allHosts().map((host) => ({ name: host, domains: [host], routes: allPrefixes().map(route) }));
}

function socketAddress(port: number): object {
  return addressOf(`127.0.0.1:${port}`);
}

function addressOf(text: string): object {
  const [address, port] = text.split(':');
  return { socket_address: { address, port_value: Number(port) } };
}
