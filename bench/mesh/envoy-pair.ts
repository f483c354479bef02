// Two Envoys in a row as sidecars would be: the first beside the client, the second beside the server, mutual TLS
// between them, static configuration, circuit breakers out of the way. Pure, but for writing files.
//
// The second verifies the first by a certificate that has to come from the same root and to have the right SPIFFE
// id, and the other way round: what node proxies do, too.

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Forger, type Papers } from '../../test/support/mesh/peers.ts';

const TYPE = 'type.googleapis.com/envoy.extensions';
const NETWORK = 'envoy.filters.network';

const CLIENT_ID = 'spiffe://cluster.local/ns/shop/sa/client';
const SERVER_ID = 'spiffe://cluster.local/ns/shop/sa/server';

/** What two Envoys can speak with each other. */
export type EnvoyHop =
  /** HTTP routed by both, HTTP/2 in between. */
  | 'h2'
  /** HTTP routed by both, HTTP/1.1 in between. */
  | 'h1'
  /** gRPC routed by both, HTTP/2 everywhere. */
  | 'grpc'
  /** Bytes, in a TLS connection for each. */
  | 'tls'
  /** Bytes, in HTTP/2 CONNECT: many connections in one of TLS, as HBONE has it. */
  | 'connect';

/** All of them. */
export const ENVOY_HOPS: readonly EnvoyHop[] = ['h2', 'h1', 'grpc', 'tls', 'connect'];

/** Port of the first Envoy for each, where clients connect; the second one listens on 100 more. */
export function envoyPort(hop: EnvoyHop): number {
  return 16_000 + ENVOY_HOPS.indexOf(hop);
}

const betweenPort = (hop: EnvoyHop): number => envoyPort(hop) + 100;

/** Where the parts are. */
export interface EnvoyPlaces {
  /** IPv4 address of the first Envoy's namespace. */
  client: string;
  /** IPv4 address of the second Envoy's namespace, and of the server. */
  server: string;
  /** Ports of the server. */
  http: number;
  grpc: number;
  tcp: number;
}

/** Writes certificates and configurations into a directory; returns the files of the first and the second Envoy. */
export async function writeEnvoyFiles(
  directory: string,
  places: EnvoyPlaces,
): Promise<[first: string, second: string]> {
  const forger = await Forger.stranger();
  const root = join(directory, 'root.pem');
  writeFileSync(root, forger.rootPem);
  const write = async (name: string, identity: string): Promise<Pair> => {
    const papers: Papers = await forger.issue(identity);
    const pair = { certificate: join(directory, `${name}.crt`), key: join(directory, `${name}.key`), root };
    writeFileSync(pair.certificate, papers.chainPem);
    writeFileSync(pair.key, papers.keyPem, { mode: 0o600 });
    return pair;
  };
  const [client, server] = [await write('client', CLIENT_ID), await write('server', SERVER_ID)];
  const files: [string, string] = [join(directory, 'first.json'), join(directory, 'second.json')];
  writeFileSync(files[0], firstConfig(places, client));
  writeFileSync(files[1], secondConfig(places, server));
  return files;
}

/** Files of one Envoy. */
interface Pair {
  certificate: string;
  key: string;
  root: string;
}

function firstConfig(places: EnvoyPlaces, pair: Pair): string {
  const listeners = ENVOY_HOPS.map((hop) => {
    const filter =
      hop === 'tls'
        ? tcpProxy(hop)
        : hop === 'connect'
          ? // The name is only what is asked for: the second Envoy has one route.
            tcpProxy(hop, { tunneling_config: { hostname: `${places.server}:${places.tcp}` } })
          : httpManager(hop === 'grpc' ? 'HTTP2' : 'HTTP1', [route(hop)]);
    return listener(hop, places.client, envoyPort(hop), filter);
  });
  const clusters = ENVOY_HOPS.map((hop) => {
    const protocol = hop === 'h1' ? 'http/1.1' : hop === 'tls' ? null : 'h2';
    return cluster(hop, places.server, betweenPort(hop), protocol === 'h2', tlsOf('Upstream', pair, protocol));
  });
  return JSON.stringify({ static_resources: { listeners, clusters } });
}

function secondConfig(places: EnvoyPlaces, pair: Pair): string {
  const backends = { h2: places.http, h1: places.http, grpc: places.grpc, tls: places.tcp, connect: places.tcp };
  const listeners = ENVOY_HOPS.map((hop) => {
    const protocol = hop === 'h1' ? 'http/1.1' : hop === 'tls' ? null : 'h2';
    const filter =
      hop === 'tls'
        ? tcpProxy(hop)
        : httpManager(protocol === 'h2' ? 'HTTP2' : 'HTTP1', [route(hop)], hop === 'connect' ? CONNECT : {});
    return listener(hop, places.server, betweenPort(hop), filter, tlsOf('Downstream', pair, protocol));
  });
  const clusters = ENVOY_HOPS.map((hop) => cluster(hop, places.server, backends[hop], hop === 'grpc'));
  return JSON.stringify({ static_resources: { listeners, clusters } });
}

const CONNECT = { upgrade_configs: [{ upgrade_type: 'CONNECT' }], http2_protocol_options: { allow_connect: true } };

function route(hop: EnvoyHop): object {
  if (hop !== 'connect') return { match: { prefix: '/' }, route: { cluster: hop, timeout: '0s' } };
  const upgrade_configs = [{ upgrade_type: 'CONNECT', connect_config: {} }];
  return { match: { connect_matcher: {} }, route: { cluster: hop, timeout: '0s', upgrade_configs } };
}

function httpManager(codec: 'HTTP1' | 'HTTP2', routes: object[], more: object = {}): object {
  return {
    name: `${NETWORK}.http_connection_manager`,
    typed_config: {
      '@type': `${TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager`,
      stat_prefix: 'http',
      codec_type: codec,
      stream_idle_timeout: '0s',
      common_http_protocol_options: { idle_timeout: '3600s' },
      route_config: { name: 'routes', virtual_hosts: [{ name: 'all', domains: ['*'], routes }] },
      http_filters: [
        { name: 'envoy.filters.http.router', typed_config: { '@type': `${TYPE}.filters.http.router.v3.Router` } },
      ],
      ...more,
    },
  };
}

function tcpProxy(hop: EnvoyHop, more: object = {}): object {
  return {
    name: `${NETWORK}.tcp_proxy`,
    typed_config: {
      '@type': `${TYPE}.filters.network.tcp_proxy.v3.TcpProxy`,
      ...{ stat_prefix: 'tcp', cluster: hop, idle_timeout: '3600s', ...more },
    },
  };
}

function listener(hop: EnvoyHop, address: string, port: number, filter: object, transport_socket?: object): object {
  return {
    name: hop,
    address: socketAddress(address, port),
    tcp_backlog_size: 4096,
    filter_chains: [{ filters: [filter], ...(transport_socket === undefined ? {} : { transport_socket }) }],
  };
}

function cluster(hop: EnvoyHop, address: string, port: number, http2: boolean, transport_socket?: object): object {
  const thresholds = [{ max_connections: 100_000, max_pending_requests: 100_000, max_requests: 100_000 }];
  return {
    ...{ name: hop, type: 'STATIC', connect_timeout: '5s', circuit_breakers: { thresholds } },
    ...(http2 ? { typed_extension_protocol_options: HTTP2_UPSTREAM } : {}),
    ...(transport_socket === undefined ? {} : { transport_socket }),
    load_assignment: {
      cluster_name: hop,
      endpoints: [{ lb_endpoints: [{ endpoint: { address: socketAddress(address, port) } }] }],
    },
  };
}

const HTTP2_UPSTREAM = {
  'envoy.extensions.upstreams.http.v3.HttpProtocolOptions': {
    '@type': `${TYPE}.upstreams.http.v3.HttpProtocolOptions`,
    explicit_http_config: { http2_protocol_options: {} },
  },
};

/** Mutual TLS 1.3, P-256 and X25519 as the mesh has them; the other end's SPIFFE id is checked. */
function tlsOf(side: 'Upstream' | 'Downstream', pair: Pair, alpn: string | null): object {
  const exact = side === 'Upstream' ? SERVER_ID : CLIENT_ID;
  return {
    name: 'envoy.transport_sockets.tls',
    typed_config: {
      '@type': `${TYPE}.transport_sockets.tls.v3.${side}TlsContext`,
      ...(side === 'Downstream' ? { require_client_certificate: true } : {}),
      common_tls_context: {
        tls_params: {
          tls_minimum_protocol_version: 'TLSv1_3',
          tls_maximum_protocol_version: 'TLSv1_3',
          ecdh_curves: ['X25519'],
        },
        tls_certificates: [{ certificate_chain: { filename: pair.certificate }, private_key: { filename: pair.key } }],
        validation_context: {
          trusted_ca: { filename: pair.root },
          match_typed_subject_alt_names: [{ san_type: 'URI', matcher: { exact } }],
        },
        ...(alpn === null ? {} : { alpn_protocols: [alpn] }),
      },
    },
  };
}

function socketAddress(address: string, port_value: number): object {
  return { socket_address: { address, port_value } };
}
