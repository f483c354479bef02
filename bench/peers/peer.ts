// What the benchmark knows of a proxy under test: how to find it, start it and reload it.
//
// Every peer is set up as a person who knows it well would do it: kept-alive upstream connections
// without limits, no log unless asked for, no work that Portcullis does not do too.

import type { CertificateFiles } from '../lib/certificate.ts';
import type { BenchProcess } from '../lib/processes.ts';
import type { TrafficSet } from '../lib/traffic.ts';

/** What a proxy can be asked to do. Scenarios skip the proxies that lack what they need. */
export interface PeerFeatures {
  accessLog: boolean;
  manyRoutes: boolean;
  reload: boolean;
  /** More than one worker. */
  workers: boolean;
  /** Holds idle and slow connections as a proxy in production would. */
  production: boolean;
  /** Terminates TLS. */
  tls: boolean;
  /** HTTP/2 from clients, and with gRPC also to backends. */
  http2: boolean;
  /** Passes connections on unread. */
  tcp: boolean;
  /** Passes TLS on unread, by the name in SNI. */
  tlsPassthrough: boolean;
  /** Spreads requests over several backends by how busy they are. */
  balancing: boolean;
}

/** What clients speak to the proxy; `tcp` and `tls-passthrough` are bytes that it does not read. */
export type FrontProtocol = 'http/1.1' | 'h2' | 'tcp' | 'tls-passthrough';

/** How requests are spread over several backends; proxies without PeakEWMA are not asked for it. */
export type Balance = 'RoundRobin' | 'LeastRequest' | 'PeakEWMA';

/** How a proxy is to run. */
export interface ProxyOptions {
  /** Empty directory of its own. */
  dir: string;
  /** Port of 127.0.0.1 to listen on. */
  port: number;
  /** Port of 127.0.0.1 of the one upstream. */
  backendPort: number;
  workers: number;
  /** Core to pin it to; null: not pinned. */
  core: number | null;
  /** File for the access log; null: no log. */
  accessLogPath: string | null;
  /** One route for everything, or the 10,000 of lib/routes.ts, where unknown hosts get no 200. */
  routes: 'one' | 'many';
  /** Never HTTP/2 nor bytes together with many routes. */
  protocol: FrontProtocol;
  /** Certificate to terminate TLS 1.3 with; null: no TLS. `h2` without it is prior knowledge. */
  tls: CertificateFiles | null;
  /** Further upstreams, "address:port", beside the one at `backendPort`. */
  moreBackends: readonly string[];
  balance: Balance;
  /** Traffic features in the configuration (lib/traffic.ts); only Portcullis is asked for any. */
  traffic: TrafficSet | null;
  /** Port of a backend that gets copies of requests only (`mirror-elsewhere`); null: there is none. */
  bystanderPort: number | null;
  /** Compress responses of type application/json with gzip at this level; null: none. Never with `traffic`. */
  gzipLevel: number | null;
  /** What it speaks to the upstream; `h2c` only where clients speak `h2`, and then it is gRPC. */
  upstreamProtocol: 'http/1.1' | 'h2c';
}

/** A proxy that was started (it may not serve yet). */
export interface StartedProxy {
  process: BenchProcess;
  /** Adds the route for NEW_HOST to the configuration and has the proxy load it. */
  reload(): Promise<void>;
}

/** One kind of proxy. */
export interface Peer {
  /** Name on the command line and in tables. */
  name: string;
  features: PeerFeatures;
  /** Levels of gzip that it compresses responses with, of GZIP_LEVELS; absent: it compresses none. */
  gzipLevels?: readonly number[];
  /** One line for the results; null when the proxy is not installed. */
  version(): string | null;
  /** Starts it. Rejects when its configuration cannot be made; waiting until it serves is the caller's. */
  start(options: ProxyOptions): Promise<StartedProxy>;
}

/** The levels of gzip that are measured: the fastest one, and zlib's default. */
export const GZIP_LEVELS = [1, 6] as const;

/** Features of a complete proxy. */
export const ALL_FEATURES: PeerFeatures = {
  accessLog: true,
  manyRoutes: true,
  reload: true,
  workers: true,
  production: true,
  tls: true,
  http2: true,
  tcp: true,
  tlsPassthrough: true,
  balancing: true,
};

/** Features of something that only forwards plain requests; to be spread and added to. */
export const NO_FEATURES: PeerFeatures = {
  accessLog: false,
  manyRoutes: false,
  reload: false,
  workers: false,
  production: false,
  tls: false,
  http2: false,
  tcp: false,
  tlsPassthrough: false,
  balancing: false,
};

/** Addresses of all upstreams of a proxy. */
export function allBackends({ backendPort, moreBackends }: ProxyOptions): string[] {
  return [`127.0.0.1:${backendPort}`, ...moreBackends];
}

/** Reload of a proxy that has none; scenarios do not call it (see PeerFeatures.reload). */
export function noReload(): Promise<void> {
  return Promise.reject(new Error('this proxy is not reloaded by the benchmark'));
}
