// What is kept of the objects of the API server: the few fields that the mesh needs, in a form that compares well.
//
// A pod as it comes has some 10 kB; its record a few hundred bytes. A change that does not show in a record (a
// heartbeat, a restart counter) is no change. Fields are looked at with care: an object that was written by another
// version of Kubernetes, or by hand, may lack any of them.
// Control threads. Spec: v1 Pod, Service, Namespace, Node, ServiceAccount; discovery.k8s.io/v1 EndpointSlice.

import { isIP } from 'node:net';
import type { V1EndpointSlice, V1Pod, V1Service } from '@kubernetes/client-node';
import { canonicalAddress } from '../../config/networks.ts';
import type { MeshMode, PortProtocol, WorkloadStatus } from '../model/mesh-state.ts';
import type { ApiObject } from './watch-stream.ts';

/**
 * Label on namespaces and pods: `enabled` or `disabled`; the pod's goes before the namespace's. Of a pod also
 * `sidecar`: it is in the mesh, with a proxy of its own.
 */
const MESH_LABEL = 'portcullis.dev/mesh';

/** Label on namespaces and pods: `strict` or `permissive`; the pod's goes before the namespace's. */
const MODE_LABEL = 'portcullis.dev/mode';

/** A pod that has, or will have, addresses. */
export interface PodRecord {
  uid: string;
  name: string;
  namespace: string;
  /** RFC 3339; compares as text. */
  created: string;
  serviceAccount: string;
  node: string;
  hostNetwork: boolean;
  addresses: string[];
  ready: boolean;
  terminating: boolean;
  /** What its own label says about the mesh; null: nothing. */
  mesh: boolean | null;
  /** It is in the mesh with a proxy of its own. */
  sidecar: boolean;
  /** What its own label says of connections in plain text; null: nothing. */
  mode: MeshMode | null;
  labels: Record<string, string>;
  canonicalName: string;
  /** Named TCP ports of its containers. */
  ports: Record<string, number>;
}

/** A service; those that stand for a name elsewhere (ExternalName) have no record. */
export interface ServiceRecord {
  name: string;
  namespace: string;
  vips: string[];
  /** Labels of its pods; null: its endpoints are in EndpointSlices that somebody else writes. */
  selector: Record<string, string> | null;
  ports: ServicePortRecord[];
}

/** A TCP port of a service. */
export interface ServicePortRecord {
  name: string;
  port: number;
  /** Number, or the name of a container's port. */
  target: number | string;
  protocol: PortProtocol;
}

/** An EndpointSlice that no controller of Kubernetes derives from a selector. */
export interface SliceRecord {
  name: string;
  namespace: string;
  service: string;
  /** Ports by name (`''`: the only one). */
  ports: Record<string, number>;
  endpoints: SliceEndpoint[];
}

/** An endpoint of a slice. */
export interface SliceEndpoint {
  addresses: string[];
  status: WorkloadStatus;
  node: string;
  zone: string;
  /** Name of its pod; empty: it is none. */
  pod: string;
}

/** What counts for pods without a word of their own; null: the namespace does not say. */
export interface NamespaceRecord {
  /** Whether they are in the mesh. */
  mesh: boolean | null;
  mode: MeshMode | null;
}

/** Where a node is. */
export interface NodeRecord {
  region: string;
  zone: string;
}

/** The record of a pod; null: it has ended, and its addresses may be somebody else's by now. */
export function podRecord(object: ApiObject): PodRecord | null {
  const { metadata, spec, status } = object as unknown as V1Pod;
  if (status?.phase === 'Succeeded' || status?.phase === 'Failed') return null;
  const labels = textsOf(metadata?.labels);
  const name = metadata?.name ?? '';
  const addresses = [status?.podIP, ...(status?.podIPs ?? []).map(({ ip }) => ip)].filter(isAddress);
  return {
    uid: metadata?.uid ?? '',
    name,
    namespace: metadata?.namespace ?? '',
    created: String(metadata?.creationTimestamp ?? ''),
    // The API server fills in `default`; an object from elsewhere may have neither.
    serviceAccount: spec?.serviceAccountName ?? 'default',
    node: spec?.nodeName ?? '',
    hostNetwork: spec?.hostNetwork === true,
    addresses: [...new Set(addresses.map(canonicalAddress))],
    ready: (status?.conditions ?? []).some(({ type, status }) => type === 'Ready' && status === 'True'),
    terminating: metadata?.deletionTimestamp !== undefined && metadata.deletionTimestamp !== null,
    mesh: labels[MESH_LABEL] === 'sidecar' ? true : meshWish(labels),
    sidecar: labels[MESH_LABEL] === 'sidecar',
    mode: modeWish(labels),
    labels,
    canonicalName: canonicalName(name, labels, metadata?.ownerReferences),
    ports: namedPorts(spec),
  };
}

/** The record of a service; null: a mere DNS alias. */
export function serviceRecord(object: ApiObject): ServiceRecord | null {
  const { metadata, spec } = object as unknown as V1Service;
  if (spec === undefined || spec.type === 'ExternalName') return null;
  const selector = textsOf(spec.selector);
  const ports: ServicePortRecord[] = [];
  for (const { name, port, targetPort, protocol, appProtocol } of spec.ports ?? []) {
    if ((protocol ?? 'TCP') !== 'TCP' || !isPort(port)) continue;
    // 0 is what an absent IntOrString turns into on its way through some tools.
    const target = targetPort === undefined || targetPort === 0 || targetPort === '' ? port : targetPort;
    ports.push({ name: name ?? '', port, target: targetOf(target, port), protocol: portProtocol(appProtocol, name) });
  }
  const vips = [spec.clusterIP, ...(spec.clusterIPs ?? [])].filter(isAddress).map(canonicalAddress);
  return {
    name: metadata?.name ?? '',
    namespace: metadata?.namespace ?? '',
    vips: [...new Set(vips)],
    selector: Object.keys(selector).length === 0 ? null : selector,
    ports,
  };
}

/** The record of a slice; null: of no service, or of an address type that the mesh has no use for. */
export function sliceRecord(object: ApiObject): SliceRecord | null {
  const { metadata, addressType, endpoints, ports } = object as unknown as V1EndpointSlice;
  const service = metadata?.labels?.['kubernetes.io/service-name'];
  if (service === undefined || service === '' || addressType === 'FQDN') return null;
  const named: Record<string, number> = {};
  for (const { name, port, protocol } of ports ?? []) {
    if ((protocol ?? 'TCP') === 'TCP' && isPort(port)) named[name ?? ''] = port;
  }
  return {
    name: metadata?.name ?? '',
    namespace: metadata?.namespace ?? '',
    service,
    ports: named,
    endpoints: (endpoints ?? []).map(({ addresses, conditions, nodeName, zone, targetRef }) => ({
      addresses: [...new Set((addresses ?? []).filter(isAddress).map(canonicalAddress))],
      // Unknown readiness is to be taken for ready.
      status: conditions?.terminating === true ? 'draining' : conditions?.ready === false ? 'unhealthy' : 'healthy',
      node: nodeName ?? '',
      zone: zone ?? '',
      pod: targetRef?.kind === 'Pod' ? (targetRef.name ?? '') : '',
    })),
  };
}

/** The record of a namespace. */
export function namespaceRecord({ metadata }: ApiObject): NamespaceRecord {
  return { mesh: meshWish(metadata?.labels), mode: modeWish(metadata?.labels) };
}

/** The record of a node. */
export function nodeRecord({ metadata }: ApiObject): NodeRecord {
  const labels = metadata?.labels ?? {};
  return {
    region: labels['topology.kubernetes.io/region'] ?? labels['failure-domain.beta.kubernetes.io/region'] ?? '',
    zone: labels['topology.kubernetes.io/zone'] ?? labels['failure-domain.beta.kubernetes.io/zone'] ?? '',
  };
}

/** What the label says; null: nothing, or something that is neither, which is no reason to guess. */
function meshWish(labels: Record<string, string> | undefined): boolean | null {
  const wish = labels?.[MESH_LABEL];
  return wish === 'enabled' ? true : wish === 'disabled' ? false : null;
}

/** What the label says of connections in plain text; null: nothing that is known. */
function modeWish(labels: Record<string, string> | undefined): MeshMode | null {
  const wish = labels?.[MODE_LABEL];
  return wish === 'strict' || wish === 'permissive' ? wish : null;
}

/** Names that other tools show too, then the owner's; a ReplicaSet of a Deployment has that one's name and a hash. */
function canonicalName(
  pod: string,
  labels: Record<string, string>,
  owners: { kind: string; name: string; controller?: boolean }[] | undefined,
): string {
  const label =
    labels['service.istio.io/canonical-name'] || labels['app.kubernetes.io/name'] || labels.app || labels['k8s-app'];
  if (label !== undefined && label !== '') return label;
  const owner = (owners ?? []).find(({ controller }) => controller === true);
  if (owner === undefined) return pod;
  const hash = labels['pod-template-hash'];
  const isDeployment = owner.kind === 'ReplicaSet' && hash !== undefined && owner.name.endsWith(`-${hash}`);
  return isDeployment ? owner.name.slice(0, -hash.length - 1) : owner.name;
}

/** Sidecars are init containers that go on running. */
function namedPorts(spec: V1Pod['spec']): Record<string, number> {
  const ports: Record<string, number> = {};
  const sidecars = (spec?.initContainers ?? []).filter(({ restartPolicy }) => restartPolicy === 'Always');
  for (const container of [...(spec?.containers ?? []), ...sidecars]) {
    for (const { name, containerPort, protocol } of container.ports ?? []) {
      if (name === undefined || name === '' || (protocol ?? 'TCP') !== 'TCP' || !isPort(containerPort)) continue;
      // The first of several with the same name counts, as in Kubernetes.
      ports[name] ??= containerPort;
    }
  }
  return ports;
}

const PROTOCOLS: Record<string, PortProtocol> = {
  http: 'http',
  'kubernetes.io/ws': 'http',
  'grpc-web': 'http',
  http2: 'http2',
  h2c: 'http2',
  'kubernetes.io/h2c': 'http2',
  grpc: 'grpc',
  tcp: 'tcp',
  // Encrypted by the application: nothing to see inside.
  https: 'tcp',
  tls: 'tcp',
  'kubernetes.io/wss': 'tcp',
  // The server speaks first, or the protocol looks like nothing that is known.
  mongo: 'tcp',
  mysql: 'tcp',
  redis: 'tcp',
  postgresql: 'tcp',
};

/** `appProtocol` decides; otherwise the name of the port up to its first dash, as Istio has it (`http-admin`). */
function portProtocol(appProtocol: string | undefined, name: string | undefined): PortProtocol {
  if (appProtocol !== undefined && appProtocol !== '') return known(appProtocol.toLowerCase()) ?? 'auto';
  if (name === undefined || name === '') return 'auto';
  if (name === 'grpc-web' || name.startsWith('grpc-web-')) return 'http';
  return known(name.split('-')[0]!) ?? 'auto';
}

function known(protocol: string): PortProtocol | undefined {
  return Object.hasOwn(PROTOCOLS, protocol) ? PROTOCOLS[protocol] : undefined;
}

function targetOf(target: unknown, port: number): number | string {
  if (typeof target === 'string') return /^\d{1,5}$/.test(target) ? Number(target) : target;
  return isPort(target) ? target : port;
}

function isPort(value: unknown): value is number {
  return typeof value === 'number' && Number.isInteger(value) && value >= 1 && value <= 65_535;
}

/** `None` and the empty text are not addresses. */
function isAddress(value: string | undefined | null): value is string {
  return typeof value === 'string' && isIP(value) !== 0;
}

function textsOf(labels: Record<string, string> | undefined | null): Record<string, string> {
  return { ...labels };
}
