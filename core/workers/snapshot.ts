// The immutable snapshot of the configuration that packet workers run on.
//
// Compiled by config/, handed over whole, swapped between two batches. An exchange keeps the
// snapshot that it started with until it ends. Routing lives in one SharedArrayBuffer that all
// workers read in place (core/routing/route-table.ts); the rest is a small plain object.

import type { RateLimitTable } from '../limits/limit-settings.ts';
import type { RecorderSettings } from '../telemetry/request-recorder.ts';
import type { ListenerMeshSettings, MeshSettings, OriginalDestinationScope } from './mesh-settings.ts';
import type {
  BackendPolicySettings,
  EndpointPolicySettings,
  RefPolicySettings,
  RulePolicySettings,
} from './policies.ts';

/** Limits and timeouts of one generation of the configuration. 0 means "no limit" where noted. */
export interface HttpSettings {
  /** Largest request head in bytes, request line included. */
  requestHeadBytesMax: number;
  /** Largest response head in bytes. */
  responseHeadBytesMax: number;
  /** Most header fields of a request or response. */
  headerCountMax: number;
  /** Longest request target in bytes. */
  uriBytesMax: number;
  /** Largest request body in bytes; 0: no limit. */
  requestBodyBytesMax: number;
  /** Requests after which a downstream connection is closed; 0: no limit. */
  requestsPerConnectionMax: number;
  /** Time for a whole request head, from its first byte (from accept for the first request). */
  requestHeadTimeoutMs: number;
  /** Time a kept-alive downstream connection may wait for its next request. */
  idleTimeoutMs: number;
  /** Time without one byte of progress during an exchange. */
  streamIdleTimeoutMs: number;
  /** Time without one byte in either direction of a tunnel; 0: no limit. */
  tunnelIdleTimeoutMs: number;
  /** Number of trusted proxies in front of this one (X-Forwarded-For). */
  trustedHops: number;
  /** Whether X-Forwarded-For, -Proto and -Host are sent upstream. */
  forwardedHeaders: boolean;
  /** Whether X-Request-Id is generated (or kept, when `trustedHops` > 0) and sent upstream. */
  requestIdHeader: boolean;
  /** Pseudonym for Via; empty: no Via. */
  via: string;
  /** Server of responses: empty passes the upstream's through, anything else replaces it. */
  server: string;
  /** Name of a response header that carries the reason flag of generated responses; empty: none. */
  reasonHeader: string;
  /** Protocols that Upgrade may ask for, lower case. */
  upgradeProtocols: string[];
  http2: Http2Settings;
}

/** HTTP/2 towards clients: what is announced, and limits against abuse. */
export interface Http2Settings {
  concurrentStreamsMax: number;
  /** Window of each stream, and of the connection, for request bodies. */
  streamWindowBytes: number;
  connectionWindowBytes: number;
  /** Streams that one connection may reset, or make us reset, in one second before it is closed (CVE-2023-44487, CVE-2025-8671). */
  resetsPerSecondMax: number;
  /** SETTINGS, PING, PRIORITY, empty DATA and other frames without use in one second. */
  controlFramesPerSecondMax: number;
}

/** One listening address. Its socket is a descriptor that the control thread opened. */
export interface ListenerSettings {
  name: string;
  /** Address text as configured, for logs. */
  address: string;
  /** Port that `X-Forwarded-Port`-style features and logs name. */
  port: number;
  /** Whether CONNECT is accepted (and tunnelled to the backend that the route names). */
  allowConnect: boolean;
  /** Scheme of requests on this listener. */
  scheme: 'http' | 'https';
  /** HTTP/1.1 is spoken. */
  http1: boolean;
  /** HTTP/2 is spoken: by ALPN with TLS, else by prior knowledge (RFC 9113 §3.3). */
  http2: boolean;
  /** Bytes are passed on unread, as stream routes say; excludes http1 and http2. */
  tcp: boolean;
  /** Null: no TLS. */
  tls: ListenerTlsSettings | null;
  /** Every connection must begin with a PROXY protocol header, whose addresses then count. */
  proxyProtocol: boolean;
  /** CONNECT is taken for a connection to one of these listeners, by the port that it names; null: it is not. */
  tunnels: ListenerTunnelSettings[] | null;
  /** Every request is answered with a redirect to https; null: no. */
  redirectToHttps: RedirectSettings | null;
  /** What it is on a node proxy; null: a gateway's. */
  mesh: ListenerMeshSettings | null;
}

/** Where the tunnels of a listener lead. */
export interface ListenerTunnelSettings {
  /** Port of the authority; 0: any other. */
  port: number;
  /** Index of the listener that takes the connection, as if it had accepted it. */
  listener: number;
}

/** Redirect of all requests of a listener to https. */
export interface RedirectSettings {
  status: number;
  /** Port of the https listener as clients see it; 443 is left out of the Location. */
  port: number;
}

/** TLS of a listener. */
export interface ListenerTlsSettings {
  /** TLS is not terminated: stream routes choose by SNI, and the bytes are passed on. */
  passthrough: boolean;
  /** Which server context a name in SNI gets: exact names and `*.` wildcards, lower case. */
  names: { hostname: string; context: number }[];
  /** Server context for other names and for clients without SNI; -1: such handshakes are refused. */
  defaultContext: number;
  handshakeTimeoutMs: number;
}

/** A certificate chain and its key, PEM. */
export interface CertificateSettings {
  chainPem: string;
  keyPem: string;
}

/** One server context (SSL_CTX). Workers keep theirs across snapshots while `key` stays the same. */
export interface ServerContextSettings {
  /** Hash of everything below. */
  key: string;
  /** At most one of each key type. */
  certificates: CertificateSettings[];
  minVersion: '1.2' | '1.3';
  maxVersion: '1.2' | '1.3';
  /** OpenSSL lists; empty: the defaults of core/tls/context.ts. */
  cipherSuites: string;
  ciphers: string;
  /** In order of preference. */
  alpn: string[];
  clientValidation: { caPem: string; mode: 'optional' | 'required' } | null;
  sessionTickets: boolean;
}

/** TLS of all listeners. */
export interface TlsSettings {
  contexts: ServerContextSettings[];
  /** Session ticket keys, 80 bytes each: the first encrypts, all decrypt. */
  ticketKeys: Uint8Array[];
}

/** A TCP or TLS route: connections of its listeners, by SNI if `hostnames` are given. */
export interface StreamRouteSettings {
  /** For logs. */
  name: string;
  /** Indexes of listeners. */
  listeners: number[];
  /** Exact names and `*.` wildcards, lower case; empty: any, also without SNI. */
  hostnames: string[];
  backendRefs: { backend: number; weight: number }[];
}

/** One resolved endpoint of a backend. */
export interface EndpointSettings {
  /** `ip:port`, the key under which workers keep its connections across snapshots. */
  address: string;
  host: string;
  port: number;
  /** Relative share, 1 or more. */
  weight: number;
  /** Place in the node state (core/lb/node-state.ts), given by NodeSlots. */
  slot: number;
  policy: EndpointPolicySettings;
  /** Node proxies: reached through a tunnel whose other end must have this SPIFFE identity; null: directly. */
  identity: string | null;
}

/** One backend. Its index in `Snapshot.backends` is what the route table refers to. */
export interface BackendSettings {
  name: string;
  /** Place in the node state (core/lb/node-state.ts), given by NodeSlots. */
  slot: number;
  endpoints: EndpointSettings[];
  policy: BackendPolicySettings;
  connectTimeoutMs: number;
  /** Time an unused upstream connection is kept. */
  idleTimeoutMs: number;
  /** Most idle connections kept per endpoint and worker. */
  idleConnectionsMax: number;
  /** Requests after which an upstream connection is closed; 0: no limit. */
  requestsPerConnectionMax: number;
  protocol: 'http/1.1' | 'h2';
  /** Null: plain TCP (HTTP/2 then by prior knowledge). */
  tls: BackendTlsSettings | null;
  /** Connections go through a tunnel that begins at this port of the endpoint's host; null: directly. Then `tls` is null. */
  tunnel: BackendTunnelSettings | null;
  /** PROXY protocol header at the start of each connection: its version, or 0 for none. */
  proxyProtocol: 0 | 1 | 2;
  http2: BackendHttp2Settings;
  /** Its endpoints are the addresses that captured connections were for (core/exchange/mesh.ts); null: it has its own. */
  originalDestination: OriginalDestinationScope | null;
  /** It is spoken to as the client speaks, HTTP/1.1 or HTTP/2, whatever `protocol` says. */
  sameProtocol: boolean;
}

/** Tunnels to the endpoints of a backend (core/exchange/upstream-tunnels.ts). */
export interface BackendTunnelSettings {
  port: number;
  tls: BackendTlsSettings;
}

/** TLS towards a backend. Workers keep the client context while `key` stays the same. */
export interface BackendTlsSettings {
  /** Hash of everything below that goes into the context. */
  key: string;
  /** For SNI; empty: none. */
  serverName: string;
  /** Names of which the certificate must have one; null: `serverName`. */
  verifyNames: string[] | null;
  /** Trusted authorities; null: those of the system. */
  caPem: string | null;
  certificate: CertificateSettings | null;
  /** False: any certificate is taken. */
  verify: boolean;
  minVersion: '1.2' | '1.3';
  maxVersion: '1.2' | '1.3';
}

/** HTTP/2 connections to a backend. */
export interface BackendHttp2Settings {
  /** Most streams that one connection carries, if the upstream does not allow fewer. */
  streamsPerConnectionMax: number;
  /** Most connections to one endpoint per worker. */
  connectionsMax: number;
  /** A connection without a frame for so long is asked for a sign of life; 0: never. */
  pingIntervalMs: number;
  /** A ping without an answer for so long ends its connection. */
  pingTimeoutMs: number;
}

/** Access log switch and format as the workers need it. */
export interface AccessLogSettings {
  enabled: boolean;
  /** Compiled template, see core/telemetry/access-log.ts. */
  format: string;
}

/** Which exchanges the flight recorder keeps. */
export interface FlightRecordSettings {
  /** Duration from which a good exchange is kept as slow; 0 keeps every one. */
  slowThresholdMs: number;
}

/** Rate limits of all rules. */
export interface RateLimitsSnapshot {
  /** One of each name. */
  tables: RateLimitTable[];
  /** Where global limits are counted; null: there are none. */
  redis: {
    /** RedisWord (core/limits/limit-settings.ts), shared by all threads. */
    state: SharedArrayBuffer;
    /** Time that an answer may take. */
    timeoutMs: number;
    /** What decides without one. */
    failure: 'open' | 'closed' | 'local';
  } | null;
}

/** Everything a packet worker needs to know of one generation of the configuration. */
export interface Snapshot {
  /** Number of this generation; grows by one with every accepted load. */
  epoch: number;
  /** Compiled routes. */
  routes: SharedArrayBuffer;
  /** What else rules and backend references say; the route table has the indexes. */
  rulePolicies: RulePolicySettings[];
  refPolicies: RefPolicySettings[];
  rateLimits: RateLimitsSnapshot;
  /** Latencies by backend slot (core/lb/latency-samples.ts); null: no backend has adaptive concurrency. */
  latencySamples: SharedArrayBuffer | null;
  /** Load and health of endpoints and backends on this node (core/lb/node-state.ts). */
  nodeState: SharedArrayBuffer;
  http: HttpSettings;
  listeners: ListenerSettings[];
  tls: TlsSettings;
  streamRoutes: StreamRouteSettings[];
  backends: BackendSettings[];
  accessLog: AccessLogSettings;
  flightRecords: FlightRecordSettings;
  /** Null: requests are not recorded. */
  recorder: RecorderSettings | null;
  /** Null: this is a gateway. */
  mesh: MeshSettings | null;
}
