// The immutable snapshot of the configuration that packet workers run on.
//
// Compiled by config/, handed over whole, swapped between two batches. An exchange keeps the
// snapshot that it started with until it ends. Routing lives in one SharedArrayBuffer that all
// workers read in place (core/routing/route-table.ts); the rest is a small plain object.

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
}

/** One resolved endpoint of a backend. */
export interface EndpointSettings {
  /** `ip:port`, the key under which workers keep its connections across snapshots. */
  address: string;
  host: string;
  port: number;
  /** Relative share, 1 or more. */
  weight: number;
}

/** One backend. Its index in `Snapshot.backends` is what the route table refers to. */
export interface BackendSettings {
  name: string;
  endpoints: EndpointSettings[];
  policy: 'RoundRobin';
  connectTimeoutMs: number;
  /** Time an unused upstream connection is kept. */
  idleTimeoutMs: number;
  /** Most idle connections kept per endpoint and worker. */
  idleConnectionsMax: number;
  /** Requests after which an upstream connection is closed; 0: no limit. */
  requestsPerConnectionMax: number;
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

/** Everything a packet worker needs to know of one generation of the configuration. */
export interface Snapshot {
  /** Number of this generation; grows by one with every accepted load. */
  epoch: number;
  /** Compiled routes. */
  routes: SharedArrayBuffer;
  http: HttpSettings;
  listeners: ListenerSettings[];
  backends: BackendSettings[];
  accessLog: AccessLogSettings;
  flightRecords: FlightRecordSettings;
}
