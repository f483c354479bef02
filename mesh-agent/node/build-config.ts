// From what a node knows of the mesh to the configuration that its packet workers run on.
//
// Pure: the same input gives the same configuration. The gateway's own machinery (gateway/app.ts) takes it
// from there, as if it had been read from a file.

import { hash } from 'node:crypto';
import type { BackendConfig, Config, ListenerConfig } from '../../config/config.ts';
import { formatAddress } from '../../config/names.ts';
import { normalise } from '../../config/normalise.ts';
import type { ConfigInput } from '../../config/schema.ts';
import type { AuthorizationSettings, PolicySettings } from '../../core/authorization/settings.ts';
import type { WorkloadCertificateSettings, WorkloadSettings } from '../../core/workers/mesh-settings.ts';
import { CAPTURE_MARK, DEFAULT_INBOUND_PORT, DEFAULT_OUTBOUND_PORT, TUNNEL_PORT } from '../capture/spec.ts';
import type { MeshIndex } from '../model/mesh-index.ts';
import { identityOf, policyKey, type Service, type Workload } from '../model/mesh-state.ts';
import { addServices } from './build-services.ts';
import { ConfigParts, type Destination, directRule, listener, streamRoute, virtualListener } from './config-parts.ts';
import type { NodeConfig } from './node-config.ts';

/** A workload of this node that can be served. */
export interface LocalWorkload {
  workload: Workload;
  /** Descriptor of its network namespace. */
  namespaceFd: number;
  /** Null: there is no valid one. */
  certificate: WorkloadCertificateSettings | null;
}

/** What a configuration is made of. */
export interface BuildInput {
  node: NodeConfig;
  index: MeshIndex;
  /** In any order. */
  workloads: readonly LocalWorkload[];
  /** Whether all is known that belongs to a service; until it is, its addresses are unknown ones. Absent: all are. */
  isWhole?: (service: Service) => boolean;
}

/** Names of the virtual listeners that are always there. */
const DIRECT = 'direct';
const PASSTHROUGH = 'passthrough';
const INBOUND = { auto: 'inbound-auto', http: 'inbound-http', tcp: 'inbound-tcp' } as const;
/** Name of the backend that delivers to workloads. */
const DELIVERY = 'inbound';

const HTTP: ListenerConfig['protocols'] = ['http/1.1', 'h2c'];

/** A gateway without a single key set: whence everything comes that the mesh does not decide. */
let defaults: { config: Config; backend: BackendConfig } | undefined;

function gatewayDefaults(): { config: Config; backend: BackendConfig } {
  if (defaults === undefined) {
    const input = { listeners: [], routes: [], backends: [{ name: 'any', endpoints: ['127.0.0.1:1'] }] };
    const config = normalise(input as unknown as ConfigInput, '/');
    defaults = { config: { ...config, backends: [] }, backend: { ...config.backends[0]!, endpoints: [] } };
  }
  return defaults;
}

/** The configuration, and what in the mesh cannot be done as it is written. */
export function buildConfig({ node, index, workloads, isWhole = () => true }: BuildInput): {
  config: Config;
  problems: string[];
} {
  const { config, backend } = gatewayDefaults();
  const parts = new ConfigParts(backend);
  const local = [...workloads].sort((a, b) => (a.workload.uid < b.workload.uid ? -1 : 1));
  const zone = local.map(({ workload }) => workload.locality.zone).find((name) => name !== '') ?? '';
  addSockets(parts, local);
  addDelivery(parts, backend);
  const otherListener = addEgress(parts, node, backend);
  addServices(parts, { index, backend, zone, isWhole, hasRedis: node.redis !== null });
  addWorkloads(parts, index);
  return {
    config: {
      ...config,
      file: node.file,
      workers: node.workers,
      admin: node.admin,
      log: { level: node.logLevel },
      accessLog: node.accessLog,
      drainTimeoutMs: node.drainTimeoutMs,
      redis: node.redis,
      // Applications are to notice nothing: no field says that somebody stands between them.
      headers: { requestId: true, forwarded: false, via: '', server: '' },
      listeners: parts.listeners,
      routes: parts.routes,
      streamRoutes: parts.streamRoutes,
      backends: parts.backends,
      mesh: {
        workloads: local.map((one) => workloadSettings(one, node, index)),
        destinations: parts.destinations,
        discovery: node.discovery.scope === 'all' ? null : { networks: node.discovery.networks },
        otherListener,
        inbound: INBOUND,
        inboundProtocols: inboundProtocols(local, index),
      },
    },
    problems: [...parts.problems].sort(),
  };
}

/** The sockets inside the namespaces of workloads, for each family of addresses that they have. */
function addSockets(parts: ConfigParts, local: readonly LocalWorkload[]): void {
  local.forEach(({ workload }, index) => {
    const label = local.some((other) => other.workload !== workload && nameOf(other.workload) === nameOf(workload))
      ? workload.uid
      : nameOf(workload);
    const families = [
      ...(workload.addresses.some((address) => !address.includes(':')) ? ['0.0.0.0'] : []),
      ...(workload.addresses.some((address) => address.includes(':')) ? ['::'] : []),
    ];
    families.forEach((host, family) => {
      const suffix = family === 0 ? '' : ' (IPv6)';
      const roles = [
        ['outbound', DEFAULT_OUTBOUND_PORT, ['tcp']],
        ['inbound', DEFAULT_INBOUND_PORT, ['tcp']],
        ['tunnels', TUNNEL_PORT, ['h2']],
      ] as const;
      for (const [role, port, protocols] of roles) {
        const mesh = { role, workload: index, detect: false };
        parts.listeners.push(listener(`${label} ${role}${suffix}`, host, port, [...protocols], mesh));
      }
    });
  });
}

/** What takes connections to workloads of this node. */
function addDelivery(parts: ConfigParts, backend: BackendConfig): void {
  const { auto, http, tcp } = INBOUND;
  parts.listeners.push(virtualListener(auto, HTTP, true));
  parts.listeners.push(virtualListener(http, HTTP, false));
  parts.listeners.push(virtualListener(tcp, ['tcp'], false));
  parts.backends.push({ ...backend, name: DELIVERY, originalDestination: 'own', sameProtocol: true });
  // A route of each one's own: those of one listener are found at once, whatever the number of services.
  for (const name of [auto, http]) {
    parts.routes.push({ name, listeners: [name], hostnames: null, rules: [directRule(DELIVERY)] });
  }
  for (const name of [auto, tcp]) parts.streamRoutes.push(streamRoute(name, [name], DELIVERY));
}

/** What takes connections to workloads by their own address, and those that leave the mesh; name of the latter. */
function addEgress(parts: ConfigParts, node: NodeConfig, backend: BackendConfig): string | null {
  parts.listeners.push(virtualListener(DIRECT, HTTP, true));
  parts.backends.push({ ...backend, name: DIRECT, originalDestination: 'mesh', sameProtocol: true });
  parts.routes.push({ name: DIRECT, listeners: [DIRECT], hostnames: null, rules: [directRule(DIRECT)] });
  parts.streamRoutes.push(streamRoute(DIRECT, [DIRECT], DIRECT));
  if (node.egress === 'refuse') return null;
  parts.listeners.push(virtualListener(PASSTHROUGH, ['tcp'], false));
  parts.backends.push({ ...backend, name: PASSTHROUGH, originalDestination: 'any' });
  parts.streamRoutes.push(streamRoute(PASSTHROUGH, [PASSTHROUGH], PASSTHROUGH));
  return PASSTHROUGH;
}

/** Workloads by their own addresses; an address of a service is the service's. */
function addWorkloads({ destinations }: ConfigParts, index: MeshIndex): void {
  for (const { addresses, hostNetwork } of index.state.workloads.values()) {
    if (hostNetwork) continue;
    for (const address of addresses) {
      if (destinations.has(address)) continue;
      // Of several that claim it the index knows which has it.
      const owner = index.workloadAt(address);
      if (owner === undefined) continue;
      destinations.set(address, directTo(owner));
    }
  }
}

/** Where connections to workloads go; versions of a workload are immutable, and there are thousands. */
const direct = new WeakMap<Workload, Destination>();

function directTo(owner: Workload): Destination {
  let destination = direct.get(owner);
  if (destination === undefined) {
    destination = { listener: DIRECT, identity: owner.protocol === 'hbone' ? identityOf(owner) : null };
    direct.set(owner, destination);
  }
  return destination;
}

/** Ports of local workloads whose protocol a service declares; services that contradict each other declare nothing. */
function inboundProtocols(local: readonly LocalWorkload[], index: MeshIndex): Map<string, 'http' | 'tcp'> {
  const protocols = new Map<string, 'http' | 'tcp'>();
  const unclear = new Set<string>();
  for (const { workload } of local) {
    for (const { service, ports } of index.servicesOf(workload)) {
      for (const { servicePort, targetPort } of ports) {
        const declared = service.ports.find((port) => port.servicePort === servicePort)?.protocol ?? 'auto';
        if (declared === 'auto') continue;
        const protocol = declared === 'tcp' ? 'tcp' : 'http';
        for (const address of workload.addresses) {
          const at = formatAddress(address, targetPort);
          if ((protocols.get(at) ?? protocol) !== protocol) unclear.add(at);
          protocols.set(at, protocol);
        }
      }
    }
  }
  for (const at of unclear) protocols.delete(at);
  return protocols;
}

function workloadSettings(local: LocalWorkload, node: NodeConfig, index: MeshIndex): WorkloadSettings {
  const { workload, namespaceFd, certificate } = local;
  return {
    uid: workload.uid,
    name: nameOf(workload),
    identity: identityOf(workload),
    addresses: [...workload.addresses],
    namespaceFd,
    mark: CAPTURE_MARK,
    certificate,
    strict: (workload.mode ?? node.mode) === 'strict',
    slot: -1,
    ...node.limits,
    authorization: authorizationOf(workload, index),
  };
}

/** Who may reach a workload; null: everybody. */
function authorizationOf(workload: Workload, index: MeshIndex): AuthorizationSettings | null {
  const { policies, missing } = index.policiesOf(workload);
  if (policies.length + missing.length === 0) return null;
  const settings: PolicySettings[] = policies.map((policy) => ({
    name: policyKey(policy),
    action: policy.action,
    dryRun: policy.dryRun,
    rules: structuredClone(policy.rules) as PolicySettings['rules'],
  }));
  // What it denies is not known: everything.
  const everything = { from: [], to: [], when: [] };
  for (const name of missing) settings.push({ name, action: 'deny', dryRun: false, rules: [everything] });
  return { key: hash('sha256', JSON.stringify(settings), 'base64url'), policies: settings };
}

function nameOf({ namespace, name }: Workload): string {
  return `${namespace}/${name}`;
}
