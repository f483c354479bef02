// From a valid configuration and resolved DNS names to the snapshot that packet workers run on.
//
// Control thread. Plain data in, plain data out; nothing is looked up here.
// Invariant: `Snapshot.listeners` and `Snapshot.backends` have the order of the configuration, which
// is what the route table's indexes refer to.

import { numberPolicies } from '../core/authorization/policy-numbers.ts';
import type { HostPort } from '../core/ffi/sockaddr.ts';
import { createNodeState } from '../core/lb/node-state.ts';
import type { RecorderSettings } from '../core/telemetry/request-recorder.ts';
import { monotonicMs } from '../core/workers/clock.ts';
import type { DestinationSettings, MeshSettings } from '../core/workers/mesh-settings.ts';
import { NodeSlots } from '../core/workers/node-slots.ts';
import type { EndpointPolicySettings } from '../core/workers/policies.ts';
import type {
  BackendSettings,
  BackendTlsSettings,
  EndpointSettings,
  HttpSettings,
  ListenerSettings,
  ListenerTlsSettings,
  RateLimitsSnapshot,
  Snapshot,
  StreamRouteSettings,
} from '../core/workers/snapshot.ts';
import { collectPolicies } from './compile-policies.ts';
import { compileRoutes } from './compile-routes.ts';
import { compileTls, NO_TLS_MATERIAL, type TlsMaterial } from './compile-tls.ts';
import type { BackendConfig, Config, EndpointConfig, ListenerConfig, MeshConfig, RedisConfig } from './config.ts';
import { formatAddress } from './names.ts';

/** An address behind the name of an endpoint. SRV records also tell a share and a priority, which come on top of the endpoint's own. */
export interface ResolvedAddress extends HostPort {
  weight?: number;
  priority?: number;
}

/** Addresses that DNS gave for the endpoints that are names; keys are their `host:port` as configured. */
export type ResolvedEndpoints = ReadonlyMap<string, readonly ResolvedAddress[]>;

/** Most that the weights of an endpoint and of its SRV record come to. */
const WEIGHT_MAX = 1_000_000;

/**
 * The snapshot of a configuration, its routes compiled on the calling thread unless `routes` brings
 * them compiled. `material` has what the files of a configuration with TLS hold. `slots` belong to the running
 * node; without them the snapshot gets a small node state of its own. A name without an entry in `resolved` has no addresses, so its backend may end up
 * without endpoints (and answers 503).
 */
export function compileSnapshot(
  config: Config,
  epoch: number,
  resolved: ResolvedEndpoints,
  routes: SharedArrayBuffer = compileRoutes(config),
  material: TlsMaterial = NO_TLS_MATERIAL,
  slots: NodeSlots = slotsOfItsOwn(),
  recorder: RecorderSettings | null = null,
): Snapshot {
  const compiled = compileTls(config, material);
  const { rulePolicies, refPolicies } = collectPolicies(config.routes);
  const backends = config.backends.map((backend, index) =>
    backendSettings(backend, resolved, compiled.backends[index]!, slots),
  );
  slots.assign(backends);
  const listenerIndexes = new Map(config.listeners.map(({ name }, index) => [name, index]));
  return {
    epoch,
    routes,
    rulePolicies,
    refPolicies,
    rateLimits: {
      tables: slots.limits.assign(rulePolicies, monotonicMs()),
      redis: config.redis === null ? null : redisSettings(config.redis, slots.limits.redis),
    },
    latencySamples: backends.some(({ policy }) => policy.adaptiveConcurrency !== null) ? slots.latencySamples : null,
    nodeState: slots.state.buffer,
    http: httpSettings(config),
    listeners: config.listeners.map((listener, index) =>
      listenerSettings(listener, compiled.listeners[index]!, listenerIndexes),
    ),
    tls: compiled.tls,
    streamRoutes: streamRoutes(config),
    backends,
    accessLog: { enabled: config.accessLog !== null, format: config.accessLog?.format ?? 'json' },
    flightRecords: { slowThresholdMs: config.failureRecords.slowThresholdMs },
    recorder,
    mesh: config.mesh === undefined ? null : meshSettings(config.mesh, listenerIndexes, slots),
  };
}

function meshSettings(mesh: MeshConfig, indexes: ReadonlyMap<string, number>, slots: NodeSlots): MeshSettings {
  const { destinations, otherListener, inbound } = mesh;
  const of = (name: string): number => indexes.get(name)!;
  return {
    ...mesh,
    workloads: slots.workloads.assign(mesh.workloads),
    counters: slots.workloads.buffer,
    policyNumbers: numberPolicies(mesh.workloads.map(({ authorization }) => authorization)),
    destinations: destinationsOf(destinations, of),
    otherListener: otherListener === null ? -1 : of(otherListener),
    inbound: { auto: of(inbound.auto), http: of(inbound.http), tcp: of(inbound.tcp) },
  };
}

/** What was made of destinations, of which a mesh has thousands. */
const destinationsMade = new WeakMap<object, DestinationSettings>();

function destinationsOf(
  destinations: MeshConfig['destinations'],
  listenerOf: (name: string) => number,
): MeshSettings['destinations'] {
  const all = new Map<string, DestinationSettings>();
  for (const [key, destination] of destinations) {
    const listener = listenerOf(destination.listener);
    let made = destinationsMade.get(destination);
    if (made?.listener !== listener) {
      made = { listener, identity: destination.identity };
      destinationsMade.set(destination, made);
    }
    all.set(key, made);
  }
  return all;
}

function redisSettings({ timeoutMs, failure }: RedisConfig, state: SharedArrayBuffer): RateLimitsSnapshot['redis'] {
  return { state, timeoutMs, failure };
}

/** For callers without a running node: tests and benchmarks. */
function slotsOfItsOwn(): NodeSlots {
  return new NodeSlots(8, createNodeState(8, 1024, 256));
}

function httpSettings(config: Config): HttpSettings {
  const { limits, timeouts, headers } = config;
  return {
    requestHeadBytesMax: limits.requestHeadBytesMax,
    responseHeadBytesMax: limits.responseHeadBytesMax,
    headerCountMax: limits.headerCountMax,
    uriBytesMax: limits.uriBytesMax,
    requestBodyBytesMax: limits.requestBodyBytesMax,
    requestsPerConnectionMax: limits.requestsPerConnectionMax,
    requestHeadTimeoutMs: timeouts.requestHeadMs,
    idleTimeoutMs: timeouts.idleMs,
    streamIdleTimeoutMs: timeouts.streamIdleMs,
    tunnelIdleTimeoutMs: timeouts.tunnelIdleMs,
    trustedHops: config.trustedHops,
    forwardedHeaders: headers.forwarded,
    requestIdHeader: headers.requestId,
    via: headers.via,
    server: headers.server,
    reasonHeader: config.responseReasonHeader,
    upgradeProtocols: config.upgrades,
    http2: config.http2,
  };
}

function listenerSettings(
  listener: ListenerConfig,
  tls: ListenerTlsSettings | null,
  indexes: ReadonlyMap<string, number>,
): ListenerSettings {
  const { name, address, port, protocols, proxyProtocol, redirectToHttps, allowConnect, tunnels, mesh } = listener;
  const isAlone = tls === null && tunnels === null;
  const known = isAlone ? listenersMade.get(listener) : undefined;
  if (known !== undefined) return known;
  const settings: ListenerSettings = {
    name,
    address,
    port,
    allowConnect,
    scheme: tls === null ? 'http' : 'https',
    http1: protocols.includes('http/1.1'),
    http2: protocols.includes('h2') || protocols.includes('h2c'),
    tcp: protocols.includes('tcp'),
    tls,
    proxyProtocol,
    redirectToHttps,
    tunnels: tunnels?.map(({ port, listener: name }) => ({ port, listener: indexes.get(name)! })) ?? null,
    mesh: mesh ?? null,
  };
  if (isAlone) listenersMade.set(listener, settings);
  return settings;
}

/** What was made of listeners that depend on nothing else: a mesh has thousands, and most stay. */
const listenersMade = new WeakMap<ListenerConfig, ListenerSettings>();

function streamRoutes({ listeners, backends, streamRoutes }: Config): StreamRouteSettings[] {
  const listenerIndexes = new Map(listeners.map(({ name }, index) => [name, index]));
  const backendIndexes = new Map(backends.map(({ name }, index) => [name, index]));
  return streamRoutes.map((route) => ({
    name: route.name,
    listeners: route.listeners.map((name) => listenerIndexes.get(name)!),
    hostnames: route.hostnames,
    backendRefs: route.backendRefs.map(({ name, weight }) => ({ backend: backendIndexes.get(name)!, weight })),
  }));
}

function backendSettings(
  backend: BackendConfig,
  resolved: ResolvedEndpoints,
  tls: BackendTlsSettings | null,
  slots: NodeSlots,
): BackendSettings {
  const isAlone = tls === null && backend.endpoints.every(({ isIp }) => isIp);
  const known = isAlone ? slots.settings.get(backend) : undefined;
  if (known !== undefined) return known;
  const settings: BackendSettings = {
    name: backend.name,
    slot: 0,
    endpoints: endpointSettings(backend, resolved),
    policy: backend.policy,
    connectTimeoutMs: backend.connectTimeoutMs,
    idleTimeoutMs: backend.idleTimeoutMs,
    idleConnectionsMax: backend.idleConnectionsMax,
    requestsPerConnectionMax: backend.requestsPerConnectionMax,
    protocol: backend.protocol === 'http/1.1' ? 'http/1.1' : 'h2',
    // TLS is that of the tunnel then, and what goes through it has none.
    tls: backend.tunnel === null ? tls : null,
    tunnel: backend.tunnel === null ? null : { port: backend.tunnel.port, tls: tls! },
    proxyProtocol: backend.proxyProtocol,
    http2: backend.http2,
    originalDestination: backend.originalDestination ?? null,
    sameProtocol: backend.sameProtocol ?? false,
  };
  if (isAlone) slots.settings.set(backend, settings);
  return settings;
}

/**
 * Every address of a name gets the endpoint's weight. An address that several endpoints come to is
 * one endpoint with the sum of their weights: workers keep connections by address.
 */
function endpointSettings(backend: BackendConfig, resolved: ResolvedEndpoints): EndpointSettings[] {
  const byAddress = new Map<string, EndpointSettings>();
  for (const endpoint of backend.endpoints) {
    const hosts: readonly ResolvedAddress[] = endpoint.isIp
      ? [{ host: endpoint.host, port: endpoint.port }]
      : (resolved.get(endpoint.address) ?? []);
    const unique = new Map(hosts.map((host) => [formatAddress(host.host, host.port), host]));
    for (const [address, { host, port, weight = 1, priority = 0 }] of unique) {
      const known = byAddress.get(address);
      const share = Math.min(endpoint.weight * weight, WEIGHT_MAX);
      if (known !== undefined) known.weight += share;
      else
        byAddress.set(address, {
          address,
          host,
          port,
          weight: share,
          slot: 0,
          policy: policyAt(endpoint, priority),
          identity: endpoint.identity ?? null,
        });
    }
  }
  return [...byAddress.values()];
}

/** The priority of an SRV record counts from that of its endpoint. */
function policyAt({ policy }: EndpointConfig, priority: number): EndpointPolicySettings {
  if (priority === 0) return policy;
  return { ...policy, place: { ...policy.place, priority: policy.place.priority + priority } };
}
