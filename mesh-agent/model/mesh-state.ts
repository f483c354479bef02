// The state of the mesh as plain types: what sources produce, the control plane distributes and node
// proxies act on.
//
// Control threads. A state and everything in it is immutable: a source that learns something makes new
// objects for what changed and shares the rest. Plain data, structured-cloneable.
// Spec: the model of Istio ambient (istio.workload, istio.security), with the gateway's own traffic rules.

import type { BackendConfig, RuleConfig } from '../../config/config.ts';

/** Where a workload runs; empty texts: unknown. */
export interface Locality {
  region: string;
  zone: string;
  subzone: string;
}

/** A port of a service, and where a workload of it listens for that. */
export interface PortMapping {
  /** 1 to 65535. */
  servicePort: number;
  /** 1 to 65535; 0 in a service: each workload has its own. */
  targetPort: number;
}

/** How traffic reaches a workload: in an HBONE tunnel, or as it is. */
export type TunnelProtocol = 'hbone' | 'none';

/** Connections to a workload that do not come through a tunnel: refused, or let in as from nobody. */
export type MeshMode = 'strict' | 'permissive';

/** Whether a workload takes traffic. `draining`: what is under way goes on, nothing new is sent there. */
export type WorkloadStatus = 'healthy' | 'unhealthy' | 'draining';

/** One running instance: a pod, or a network namespace or group of processes on a plain host. */
export interface Workload {
  /** Unique in the mesh, such as `Kubernetes//Pod/shop/cart-0`; names the resource in xDS. */
  uid: string;
  name: string;
  namespace: string;
  /** Trust domain of the identity; the state's own unless the workload is from elsewhere. */
  trustDomain: string;
  serviceAccount: string;
  /** Name of the node that it runs on; empty: outside of every node. */
  node: string;
  /** IP addresses in the form of `canonicalAddress`, each once; may be empty. */
  addresses: readonly string[];
  /** Shares the network (and the addresses) of its node, so an address does not identify it. */
  hostNetwork: boolean;
  protocol: TunnelProtocol;
  status: WorkloadStatus;
  locality: Locality;
  labels: Readonly<Record<string, string>>;
  /** Name that graphs and metrics show for all instances of the same thing. */
  canonicalName: string;
  /** Services that it is an endpoint of, by `serviceKey`. */
  services: Readonly<Record<string, readonly PortMapping[]>>;
  /** Plain hosts: path or name of the network namespace that it runs in. */
  networkNamespace?: string;
  /** It has a proxy of its own in its network namespace, and the proxy of its node leaves it alone. Absent: it has none. */
  sidecar?: true;
  /** Kubernetes: uid of its Pod, which the control groups of its processes name, too. Absent: not known. */
  podUid?: string;
  /** What is decided for it, or for its namespace; absent: what its proxy is configured to. */
  mode?: MeshMode;
  /** Keys of the policies of scope `workload` that apply, as the control plane decided; absent: decide by `labels`. */
  authorizationPolicies?: readonly string[];
}

/** What is spoken on a port; `auto`: found out from the first bytes. */
export type PortProtocol = 'http' | 'http2' | 'grpc' | 'tcp' | 'auto';

/** A port of a service. */
export interface ServicePort extends PortMapping {
  protocol: PortProtocol;
}

/** A name and addresses that stand for the workloads whose `services` name it. */
export interface Service {
  namespace: string;
  name: string;
  /** Lower case, such as `cart.shop.svc.cluster.local`. */
  hostname: string;
  /** Virtual IP addresses in the form of `canonicalAddress`; empty: headless. */
  vips: readonly string[];
  ports: readonly ServicePort[];
  /** HTTP rules, parsed by the gateway's schema; null: every request goes to the endpoints. */
  rules: readonly RuleConfig[] | null;
  /** How endpoints are used (balancing, outlier detection ...), without endpoints; null: the defaults. */
  backend: BackendConfig | null;
  /** `rules` and `backend` as they were written, in JSON, which is how they travel; null: neither. */
  configuration: string | null;
}

/** What a policy applies to: the whole mesh, its namespace, or the workloads that its selector matches. */
export type PolicyScope = 'global' | 'namespace' | 'workload';

/** Who asks; all given lists must hold, in each any value. Empty lists ask nothing. */
export interface PolicySource {
  /** `spiffe://` texts or Istio's form without the scheme; `*`, `prefix*` and `*suffix` match. */
  identities: readonly string[];
  notIdentities: readonly string[];
  namespaces: readonly string[];
  notNamespaces: readonly string[];
  /** Networks in CIDR form, or addresses. */
  ipBlocks: readonly string[];
  notIpBlocks: readonly string[];
}

/** What is asked for; all given lists must hold, in each any value. Empty lists ask nothing. */
export interface PolicyOperation {
  /** Ports of the workload, 1 to 65535. */
  ports: readonly number[];
  notPorts: readonly number[];
  hosts: readonly string[];
  notHosts: readonly string[];
  paths: readonly string[];
  notPaths: readonly string[];
  methods: readonly string[];
  notMethods: readonly string[];
}

/** A further condition, with the keys of Istio's AuthorizationPolicy, such as `request.headers[x-team]`. */
export interface PolicyCondition {
  key: string;
  values: readonly string[];
  notValues: readonly string[];
}

/** A rule: any of `from` (if given), any of `to` (if given) and all of `when`. All empty: every request. */
export interface PolicyRule {
  from: readonly PolicySource[];
  to: readonly PolicyOperation[];
  when: readonly PolicyCondition[];
}

/** Who may talk to whom. Without a rule it matches nothing: `allow` with no rules allows nobody. */
export interface AuthorizationPolicy {
  namespace: string;
  name: string;
  scope: PolicyScope;
  /** Labels that a workload must have; empty unless the scope is `workload`. */
  selector: Readonly<Record<string, string>>;
  action: 'allow' | 'deny';
  /** Decide and record, but do not enforce. */
  dryRun: boolean;
  rules: readonly PolicyRule[];
}

/** Everything that is known of the mesh at one moment. */
export interface MeshState {
  /** By `uid`. */
  workloads: ReadonlyMap<string, Workload>;
  /** By `serviceKey`. */
  services: ReadonlyMap<string, Service>;
  /** By `policyKey`. */
  policies: ReadonlyMap<string, AuthorizationPolicy>;
  /** Trust domain of the mesh, such as `cluster.local`. */
  trustDomain: string;
}

/** Keys of what was added, changed or removed between two states. */
export interface MeshChanges {
  workloads: ReadonlySet<string>;
  services: ReadonlySet<string>;
  policies: ReadonlySet<string>;
}

/** A new state, and in what it differs from the one before. */
export interface MeshUpdate {
  state: MeshState;
  changes: MeshChanges;
}

/** Where the state of the mesh comes from: a directory, Kubernetes. */
export interface MeshSource {
  /** For log lines and status, such as `directory /etc/portcullis/mesh`. */
  readonly name: string;
  /**
   * Begins; `onUpdate` gets the first complete state (with everything in it as changed) and then every
   * later one. Resolves after the first; rejects when the source cannot work at all.
   */
  start(onUpdate: (update: MeshUpdate) => void): Promise<void>;
  /**
   * How long it may have missed what is new, as far as it can know, in milliseconds; 0: it follows. Counts from when it
   * last did, so that an ordinary break shows as a short time.
   */
  readonly behindMs: number;
  /** Ends; no update follows. */
  close(): Promise<void>;
}

/** Key of a service: `namespace/hostname`. */
export function serviceKey(service: Pick<Service, 'namespace' | 'hostname'>): string {
  return `${service.namespace}/${service.hostname}`;
}

/** Key of a policy: `namespace/name`. */
export function policyKey(policy: Pick<AuthorizationPolicy, 'namespace' | 'name'>): string {
  return `${policy.namespace}/${policy.name}`;
}

/** Identity of a workload: `spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>`. */
export function identityOf(workload: Pick<Workload, 'trustDomain' | 'namespace' | 'serviceAccount'>): string {
  return `spiffe://${workload.trustDomain}/ns/${workload.namespace}/sa/${workload.serviceAccount}`;
}

/**
 * Which proxy serves a workload: that of the node with this name, or its own, by its identity (`spiffe://...`, which is
 * no name of a node). The sidecars of one service account are one in this.
 */
export function proxyOf(workload: Workload): string {
  return workload.sidecar === true ? identityOf(workload) : workload.node;
}

/** A state with nothing in it. */
export function emptyMeshState(trustDomain: string): MeshState {
  return { workloads: new Map(), services: new Map(), policies: new Map(), trustDomain };
}

/** What differs between two states, by identity of the objects first and by their content then. */
export function changesBetween(before: MeshState, after: MeshState): MeshChanges {
  return {
    workloads: changedKeys(before.workloads, after.workloads),
    services: changedKeys(before.services, after.services),
    policies: changedKeys(before.policies, after.policies),
  };
}

function changedKeys<T>(before: ReadonlyMap<string, T>, after: ReadonlyMap<string, T>): Set<string> {
  const changed = new Set<string>();
  for (const [key, value] of after) {
    const old = before.get(key);
    if (old !== value && (old === undefined || JSON.stringify(old) !== JSON.stringify(value))) changed.add(key);
  }
  for (const key of before.keys()) if (!after.has(key)) changed.add(key);
  return changed;
}
