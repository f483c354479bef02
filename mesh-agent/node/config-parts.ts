// Pieces that the configuration of a node proxy is put together from.
//
// Pure. See build-config.ts.

import type {
  BackendConfig,
  ListenerConfig,
  MeshConfig,
  RouteConfig,
  RuleConfig,
  StreamRouteConfig,
} from '../../config/config.ts';
import type { ListenerMeshSettings } from '../../core/workers/mesh-settings.ts';

/** Name of the listener and backend for what leads nowhere. */
const REFUSED = 'refused';

/** Where connections to an address go. */
export type Destination = MeshConfig['destinations'] extends ReadonlyMap<string, infer D> ? D : never;

const toRefused: Destination = { listener: REFUSED, identity: null };

/** A configuration in the making. */
export class ConfigParts {
  readonly listeners: ListenerConfig[] = [];
  readonly routes: RouteConfig[] = [];
  readonly streamRoutes: StreamRouteConfig[] = [];
  readonly backends: BackendConfig[] = [];
  readonly destinations = new Map<string, Destination>();
  /** What is not as written, one sentence each. */
  readonly problems = new Set<string>();
  private readonly defaults: BackendConfig;
  private hasRefused = false;

  /** `defaults`: a backend of which nothing is said. */
  constructor(defaults: BackendConfig) {
    this.defaults = defaults;
  }

  /** To the virtual listener whose connections are refused. */
  refused(): Destination {
    if (!this.hasRefused) {
      this.hasRefused = true;
      this.listeners.push(virtualListener(REFUSED, ['tcp'], false));
      this.backends.push({ ...this.defaults, name: REFUSED, endpoints: [] });
      this.streamRoutes.push(streamRoute(REFUSED, [REFUSED], REFUSED));
    }
    return toRefused;
  }
}

/** A listener without a socket. */
export function virtualListener(
  name: string,
  protocols: ListenerConfig['protocols'],
  detect: boolean,
  port = 0,
): ListenerConfig {
  return listener(name, '', port, protocols, detect ? virtualDetecting : virtualPlain);
}

const virtualPlain: ListenerMeshSettings = { role: 'virtual', workload: -1, detect: false };
const virtualDetecting: ListenerMeshSettings = { role: 'virtual', workload: -1, detect: true };

/** A listener of a node proxy; `host` empty: none. */
export function listener(
  name: string,
  host: string,
  port: number,
  protocols: ListenerConfig['protocols'],
  mesh: ListenerMeshSettings,
): ListenerConfig {
  return {
    ...{ name, host, port, protocols, mesh },
    address: host === '' ? '' : `${host.includes(':') ? `[${host}]` : host}:${port}`,
    ...{ tls: null, proxyProtocol: false, redirectToHttps: null, allowConnect: false, tunnels: null },
  };
}

/** A route of all connections of listeners. */
export function streamRoute(name: string, listeners: string[], backend: string): StreamRouteConfig {
  return { name, kind: 'TCP', listeners, hostnames: [], backendRefs: [{ name: backend, weight: 1, policy: null }] };
}

const everyPath: RuleConfig['matches'] = [{ path: { type: 'PathPrefix', value: '/' } }];

/** A rule that sends everything to one backend. */
export function directRule(backend: string): RuleConfig {
  return {
    matches: everyPath,
    ...{ requestTimeoutMs: 0, backendRequestTimeoutMs: 0, grpcWeb: false, policy: null },
    backendRefs: [{ name: backend, weight: 1, policy: null }],
  };
}
