// Objects for tests, as a cluster would have them.

import type { StoredObject } from './store.ts';

/** What differs between the pods of tests. */
export interface PodOptions {
  namespace?: string;
  ip?: string | null;
  ips?: string[];
  node?: string;
  labels?: Record<string, string>;
  serviceAccount?: string;
  ready?: boolean;
  phase?: string;
  hostNetwork?: boolean;
  terminating?: boolean;
  created?: string;
  uid?: string;
  ports?: { name: string; containerPort: number; protocol?: string }[];
  owner?: { kind: string; name: string };
}

/** A running, ready pod, unless told otherwise. */
export function pod(name: string, options: PodOptions = {}): StoredObject {
  const { namespace = 'shop', ip = '10.0.0.1', node = 'node-a', labels = {}, ready = true } = options;
  const podIPs = (options.ips ?? (ip === null ? [] : [ip])).map((address) => ({ ip: address }));
  return {
    metadata: {
      name,
      namespace,
      labels,
      ...(options.uid === undefined ? {} : { uid: options.uid }),
      ...(options.created === undefined ? {} : { creationTimestamp: options.created }),
      ...(options.terminating === true ? { deletionTimestamp: '2026-01-02T00:00:00Z' } : {}),
      ...(options.owner === undefined
        ? {}
        : { ownerReferences: [{ apiVersion: 'apps/v1', uid: 'o', controller: true, ...options.owner }] }),
    },
    spec: {
      nodeName: node,
      serviceAccountName: options.serviceAccount ?? 'default',
      ...(options.hostNetwork === true ? { hostNetwork: true } : {}),
      containers: [{ name: 'main', image: 'example', ports: options.ports ?? [] }],
    },
    status: {
      phase: options.phase ?? 'Running',
      ...(podIPs.length === 0 ? {} : { podIP: podIPs[0]!.ip, podIPs }),
      conditions: [{ type: 'Ready', status: ready ? 'True' : 'False' }],
    },
  };
}

/** A service; `clusterIP: 'None'` makes it headless, `selector: null` leaves its endpoints to slices. */
export function service(
  name: string,
  options: {
    namespace?: string;
    clusterIP?: string;
    clusterIPs?: string[];
    type?: string;
    selector?: Record<string, string> | null;
    ports?: Record<string, unknown>[];
  } = {},
): StoredObject {
  const { namespace = 'shop', clusterIP = '10.96.0.1', selector = { app: name }, type = 'ClusterIP' } = options;
  return {
    metadata: { name, namespace },
    spec: {
      type,
      clusterIP,
      clusterIPs: options.clusterIPs ?? [clusterIP],
      ports: options.ports ?? [{ name: 'http', port: 80, targetPort: 8080, protocol: 'TCP' }],
      ...(selector === null ? {} : { selector }),
    },
  };
}

/** A slice of a service, made by hand unless `managedBy` says otherwise. */
export function endpointSlice(
  name: string,
  options: {
    namespace?: string;
    service: string;
    endpoints: Record<string, unknown>[];
    ports?: Record<string, unknown>[];
    managedBy?: string;
    addressType?: string;
  },
): StoredObject {
  const labels: Record<string, string> = { 'kubernetes.io/service-name': options.service };
  if (options.managedBy !== undefined) labels['endpointslice.kubernetes.io/managed-by'] = options.managedBy;
  return {
    metadata: { name, namespace: options.namespace ?? 'shop', labels },
    addressType: options.addressType ?? 'IPv4',
    endpoints: options.endpoints,
    ports: options.ports ?? [{ name: 'http', port: 8080, protocol: 'TCP' }],
  };
}

/** A namespace, with the mesh's label if given. */
export function namespace(name: string, mesh?: string): StoredObject {
  return { metadata: { name, labels: mesh === undefined ? {} : { 'portcullis.dev/mesh': mesh } } };
}

/** A node in a zone. */
export function node(name: string, zone = '', region = ''): StoredObject {
  const labels = { 'topology.kubernetes.io/zone': zone, 'topology.kubernetes.io/region': region };
  return { metadata: { name, labels }, spec: {}, status: { conditions: [] } };
}

/** A service account. */
export function serviceAccount(name: string, namespaceName = 'shop'): StoredObject {
  return { metadata: { name, namespace: namespaceName } };
}
