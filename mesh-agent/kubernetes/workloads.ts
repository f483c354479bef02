// Makes workloads and services of the mesh from the records of a cluster.
//
// Pure: everything comes from the records. A pod's place in a service is decided by the service's selector and the
// pod itself, not by the EndpointSlices that a controller derives from the same: those come later, and a pod that is
// going away has to stop getting requests now.
// Control threads.

import { type Locality, type PortMapping, type Service, serviceKey, type Workload } from '../model/mesh-state.ts';
import type { Cluster } from './cluster.ts';
import type { PodRecord, ServicePortRecord, ServiceRecord, SliceEndpoint, SliceRecord } from './records.ts';

/** What is the same for the whole cluster. */
export interface ClusterSettings {
  /** First part of every uid, such as `Kubernetes`; different for each cluster of a mesh. */
  clusterId: string;
  /** Domain of service names, such as `cluster.local`. */
  clusterDomain: string;
  trustDomain: string;
  /** Whether pods are in the mesh where neither they nor their namespace have the label. */
  meshByDefault: boolean;
}

const NO_SERVICES: Workload['services'] = {};

/** Identity of a pod's workload; a pod that takes the name of another (StatefulSets) takes its place. */
export function podUid({ clusterId }: ClusterSettings, pod: Pick<PodRecord, 'namespace' | 'name'>): string {
  return `${clusterId}//Pod/${pod.namespace}/${pod.name}`;
}

/** The workload of a pod; null: nothing can reach it (yet). */
export function podWorkload(cluster: Cluster, settings: ClusterSettings, pod: PodRecord): Workload | null {
  const key = `${pod.namespace}/${pod.name}`;
  const addresses = pod.hostNetwork
    ? pod.addresses
    : pod.addresses.filter((address) => cluster.hasAddress(key, pod, address));
  if (addresses.length === 0) return null;
  const inMesh = isInMesh(cluster, settings, pod);
  const mode = pod.mode ?? cluster.modeOfNamespace(pod.namespace);
  return {
    uid: podUid(settings, pod),
    name: pod.name,
    namespace: pod.namespace,
    trustDomain: settings.trustDomain,
    serviceAccount: pod.serviceAccount,
    node: pod.node,
    addresses,
    hostNetwork: pod.hostNetwork,
    protocol: inMesh ? 'hbone' : 'none',
    // A pod that is ending stays until its processes have: what is under way goes on.
    status: pod.terminating ? 'draining' : pod.ready ? 'healthy' : 'unhealthy',
    locality: localityOf(cluster, pod.node, ''),
    labels: pod.labels,
    canonicalName: pod.canonicalName,
    services: servicesOf(cluster, settings, key, pod),
    ...(inMesh && pod.uid !== '' ? { podUid: pod.uid } : {}),
    ...(inMesh && pod.sidecar ? { sidecar: true as const } : {}),
    ...(inMesh && mode !== null ? { mode } : {}),
  };
}

/** A pod in the network of its node has no traffic of its own that could be told apart: it is never in the mesh. */
function isInMesh(cluster: Cluster, settings: ClusterSettings, pod: PodRecord): boolean {
  if (pod.hostNetwork) return false;
  return pod.mesh ?? cluster.meshOfNamespace(pod.namespace) ?? settings.meshByDefault;
}

function servicesOf(cluster: Cluster, settings: ClusterSettings, key: string, pod: PodRecord): Workload['services'] {
  let services: Record<string, PortMapping[]> | null = null;
  for (const { service, slice } of cluster.servicesOf(key, pod)) {
    const mappings = slice === null ? mappingsOfPod(service, pod) : mappingsOfSlice(service, slice);
    services ??= {};
    const name = nameOf(settings, service);
    // Two slices of one service may each have some of its ports.
    services[name] = [...(services[name] ?? []), ...mappings];
  }
  return services ?? NO_SERVICES;
}

/** Where this pod listens; a named port that none of its containers has is left out, as in Kubernetes. */
function mappingsOfPod(service: ServiceRecord, pod: PodRecord): PortMapping[] {
  const mappings: PortMapping[] = [];
  for (const { port, target } of service.ports) {
    const targetPort = typeof target === 'number' ? target : pod.ports[target];
    if (targetPort !== undefined) mappings.push({ servicePort: port, targetPort });
  }
  return mappings;
}

function mappingsOfSlice(service: ServiceRecord, slice: SliceRecord): PortMapping[] {
  const mappings: PortMapping[] = [];
  for (const port of service.ports) {
    const targetPort = portOfSlice(port, service, slice);
    if (targetPort !== undefined) mappings.push({ servicePort: port.port, targetPort });
  }
  return mappings;
}

/** Ports of slices go by the names of the service's ports. */
function portOfSlice({ name }: ServicePortRecord, service: ServiceRecord, slice: SliceRecord): number | undefined {
  const port = slice.ports[name];
  if (port !== undefined) return port;
  // Mirrored from Endpoints that were written by hand, the only port may have lost or gained its name.
  const ports = Object.values(slice.ports);
  return service.ports.length === 1 && ports.length === 1 ? ports[0] : undefined;
}

/**
 * Workloads of a slice's endpoints that are no pods: machines outside of the cluster, never in the mesh. An address
 * of a pod is that pod, or traffic to it would go around its tunnel.
 */
export function sliceWorkloads(cluster: Cluster, settings: ClusterSettings, slice: SliceRecord): Workload[] {
  const service = cluster.services.get(`${slice.namespace}/${slice.service}`);
  // With a selector the pods decide; a slice that somebody added by hand would be a way around it.
  if (service === undefined || service.selector !== null) return [];
  const workloads = new Map<string, Workload>();
  const services = { [nameOf(settings, service)]: mappingsOfSlice(service, slice) };
  for (const endpoint of slice.endpoints) {
    const [address] = endpoint.addresses;
    if (endpoint.pod !== '' || address === undefined || endpoint.addresses.some((a) => cluster.isPodAddress(a)))
      continue;
    const uid = `${settings.clusterId}/discovery.k8s.io/EndpointSlice/${slice.namespace}/${slice.name}/${address}`;
    workloads.set(uid, externalWorkload(cluster, settings, slice, endpoint, uid, services));
  }
  return [...workloads.values()];
}

function externalWorkload(
  cluster: Cluster,
  settings: ClusterSettings,
  slice: SliceRecord,
  endpoint: SliceEndpoint,
  uid: string,
  services: Workload['services'],
): Workload {
  return {
    uid,
    name: `${slice.name}-${endpoint.addresses[0]}`,
    namespace: slice.namespace,
    trustDomain: settings.trustDomain,
    serviceAccount: '',
    // It may stand beside a node, but no node proxy serves it.
    node: '',
    addresses: endpoint.addresses,
    hostNetwork: false,
    protocol: 'none',
    status: endpoint.status,
    locality: localityOf(cluster, endpoint.node, endpoint.zone),
    labels: {},
    canonicalName: slice.service,
    services,
  };
}

/** The service as the mesh has it. */
export function meshService(settings: ClusterSettings, service: ServiceRecord): Service {
  return {
    namespace: service.namespace,
    name: service.name,
    hostname: hostnameOf(settings, service),
    vips: service.vips,
    ports: service.ports.map(({ port, target, protocol }) => ({
      servicePort: port,
      targetPort: typeof target === 'number' && service.selector !== null ? target : 0,
      protocol,
    })),
    rules: null,
    backend: null,
    configuration: null,
  };
}

/** Key of a service in the state. */
export function nameOf(settings: ClusterSettings, service: Pick<ServiceRecord, 'namespace' | 'name'>): string {
  return serviceKey({ namespace: service.namespace, hostname: hostnameOf(settings, service) });
}

function hostnameOf(
  { clusterDomain }: ClusterSettings,
  { name, namespace }: Pick<ServiceRecord, 'namespace' | 'name'>,
): string {
  return `${name}.${namespace}.svc.${clusterDomain}`.toLowerCase();
}

function localityOf(cluster: Cluster, nodeName: string, zone: string): Locality {
  const node = cluster.node(nodeName);
  return { region: node?.region ?? '', zone: zone || (node?.zone ?? ''), subzone: '' };
}
