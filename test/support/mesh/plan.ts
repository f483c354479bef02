// What a mesh for tests is to be, in the few words that differ from test to test, and the documents that the
// control plane reads for it.

import type { Topology } from '../netns/network.ts';

/** A workload; every key has a default that suits most tests. */
export interface WorkloadPlan {
  /** Label `app`, by which services choose it. Default: its name without the number at the end. */
  app?: string;
  /** Default: `app`. */
  account?: string;
  /** Default: shop. */
  namespace?: string;
  status?: 'healthy' | 'unhealthy' | 'draining';
  /** Further labels. */
  labels?: Record<string, string>;
  /** A proxy of its own serves it, which the test starts. */
  sidecar?: boolean;
  mode?: 'strict' | 'permissive';
  /** False: a machine that the mesh knows nothing of. */
  member?: boolean;
}

/** A port of a service. */
export interface PortPlan {
  port: number;
  targetPort?: number;
  protocol?: 'http' | 'http2' | 'grpc' | 'tcp' | 'auto';
}

/** A mesh: workloads by node, and services by the value of their workloads' label `app`. */
export interface MeshPlan {
  nodes: Record<string, Record<string, WorkloadPlan>>;
  services: Record<string, PortPlan[]>;
  /** AuthorizationPolicy, TrafficPolicy and whatever else the mesh holds, as YAML. */
  policies?: string;
}

/** Addresses of the namespaces of workloads, by name. */
export type Addresses = (workload: string) => { address: string; address6: string; path: string };

/** Namespace of everything that is not said to be elsewhere. */
export const NAMESPACE = 'shop';

/** Virtual addresses of a service: nothing routes there, as the node proxy takes the connections. */
export function virtualAddresses(plan: MeshPlan, service: string): [v4: string, v6: string] {
  const index = Object.keys(plan.services).indexOf(service);
  if (index < 0) throw new Error(`no service ${service} in this mesh`);
  return [`10.96.0.${index + 1}`, `fd96::${(index + 1).toString(16)}`];
}

/** SPIFFE id of a workload of the plan. */
export function identityIn(plan: MeshPlan, workload: string): string {
  for (const workloads of Object.values(plan.nodes)) {
    const found = workloads[workload];
    if (found === undefined) continue;
    const { app, account, namespace } = withDefaults(workload, found);
    return `spiffe://cluster.local/ns/${namespace}/sa/${account ?? app}`;
  }
  throw new Error(`no workload ${workload} in this mesh`);
}

/** The namespaces that a plan needs; the control plane has a node of its own, without workloads. */
export function topologyOf(plan: MeshPlan): Topology {
  const nodes = Object.entries(plan.nodes).map(([node, workloads]) => [node, Object.keys(workloads)]);
  return { ...Object.fromEntries(nodes), [CONTROL_NODE]: [] };
}

/** Node of the control plane. */
export const CONTROL_NODE = 'control';

/** Number of workloads of a node that its proxy serves. */
export function membersOf(plan: MeshPlan, node: string): number {
  return Object.values(plan.nodes[node] ?? {}).filter(({ member, sidecar }) => member !== false && sidecar !== true)
    .length;
}

/** Files of the control plane's directory. */
export function documentsOf(plan: MeshPlan, addresses: Addresses): Record<string, string> {
  const workloads = Object.entries(plan.nodes).flatMap(([node, members]) =>
    Object.entries(members)
      .filter(([, { member }]) => member !== false)
      .map(([name, member]) => workloadDocument(name, node, member, addresses)),
  );
  const services = Object.entries(plan.services).map(([name, ports]) => ({
    kind: 'Service',
    metadata: { name, namespace: NAMESPACE },
    spec: { addresses: virtualAddresses(plan, name), selector: { app: name }, ports },
  }));
  return {
    'workloads.yaml': textOf(workloads),
    'services.yaml': textOf(services),
    'policies.yaml': plan.policies ?? '',
  };
}

function withDefaults(name: string, plan: WorkloadPlan) {
  return { app: name.replace(/-\d+$/, ''), namespace: NAMESPACE, ...plan };
}

function workloadDocument(name: string, node: string, plan: WorkloadPlan, addresses: Addresses): object {
  const { app, account = app, namespace, status = 'healthy', labels, sidecar, mode } = withDefaults(name, plan);
  const { address, address6, path } = addresses(name);
  return {
    kind: 'Workload',
    metadata: { name, namespace, labels: { app, ...labels } },
    spec: {
      ...{ addresses: [address, address6], serviceAccount: account, node, status, networkNamespace: path },
      ...{ sidecar, mode },
    },
  };
}

/** JSON is YAML. */
function textOf(documents: object[]): string {
  return documents.map((document) => `${JSON.stringify(document)}\n`).join('---\n');
}
