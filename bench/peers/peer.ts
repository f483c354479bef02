// What the benchmark knows of a proxy under test: how to find it, start it and reload it.
//
// Every peer is set up as a person who knows it well would do it: kept-alive upstream connections
// without limits, no log unless asked for, no work that Portcullis does not do too.

import type { BenchProcess } from '../lib/processes.ts';

/** What a proxy can be asked to do. Scenarios skip the proxies that lack what they need. */
export interface PeerFeatures {
  accessLog: boolean;
  manyRoutes: boolean;
  reload: boolean;
  /** More than one worker. */
  workers: boolean;
  /** Holds idle and slow connections as a proxy in production would. */
  production: boolean;
}

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
  /** One line for the results; null when the proxy is not installed. */
  version(): string | null;
  /** Starts it. Rejects when its configuration cannot be made; waiting until it serves is the caller's. */
  start(options: ProxyOptions): Promise<StartedProxy>;
}

/** Features of a complete proxy. */
export const ALL_FEATURES: PeerFeatures = {
  accessLog: true,
  manyRoutes: true,
  reload: true,
  workers: true,
  production: true,
};

/** Reload of a proxy that has none; scenarios do not call it (see PeerFeatures.reload). */
export function noReload(): Promise<void> {
  return Promise.reject(new Error('this proxy is not reloaded by the benchmark'));
}
