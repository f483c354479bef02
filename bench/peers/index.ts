// All proxies that the benchmark knows, in the order of its tables.

import { caddy } from './caddy.ts';
import { envoy } from './envoy.ts';
import { haproxy } from './haproxy.ts';
import { limit } from './limit.ts';
import { nginx } from './nginx.ts';
import type { Peer } from './peer.ts';
import { portcullis } from './portcullis.ts';
import { uwebsockets } from './uwebsockets.ts';

/** Portcullis first, then the proxies it is compared with. */
export const allPeers: readonly Peer[] = [portcullis, limit, nginx, haproxy, caddy, envoy, uwebsockets];
