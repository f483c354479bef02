// What `portcullis mesh status | services | workloads | policies` show, as data.
//
// Control thread of the control plane. Plain objects that go through JSON as they are; sorted by name.

import { compareTexts, type MeshIndex } from '../model/mesh-index.ts';
import { type AuthorizationPolicy, identityOf, policyKey, serviceKey, type Workload } from '../model/mesh-state.ts';
import type { Discovery } from './discovery.ts';
import { ADDRESS_TYPE, AUTHORIZATION_TYPE } from './protocol.ts';

/** How a proxy stands. */
export interface ProxyStatus {
  proxy: string;
  /** Of a sidecar the identity of its workload. */
  node: string;
  /** Newest version that it serves all of; 0: none. */
  version: number;
  /** `serving` the newest version, `waiting` for its answer, or having `refused` something. */
  state: 'serving' | 'waiting' | 'refused';
  connectedMs: number;
  /** Since when it owes an answer, in milliseconds; null: it owes none. */
  unansweredMs: number | null;
  addresses: number;
  policies: number;
  refused: { reason: string; resources: string[] }[];
}

/** How the mesh stands. */
export interface MeshStatus {
  version: number;
  trustDomain: string;
  workloads: number;
  services: number;
  policies: number;
  proxies: ProxyStatus[];
  /** Nodes, and identities of workloads with a sidecar, whose proxy is not connected here though workloads need it. */
  absent: { node: string; workloads: number }[];
}

/** A service. */
export interface ServiceStatus {
  service: string;
  addresses: readonly string[];
  ports: string[];
  /** Endpoints that take traffic, and all. */
  healthy: number;
  endpoints: number;
  rules: number;
}

/** A workload. */
export interface WorkloadStatusRow {
  workload: string;
  uid: string;
  node: string;
  /** It has a proxy of its own. */
  sidecar: boolean;
  addresses: readonly string[];
  /** Empty: it has none, such as an address outside of the cluster. */
  identity: string;
  protocol: Workload['protocol'];
  status: Workload['status'];
  services: string[];
  policies: string[];
  /** Policies that it needs and that are not there; until they are, nothing is let in. */
  missingPolicies: string[];
}

/** A policy. */
export interface PolicyStatus {
  policy: string;
  scope: AuthorizationPolicy['scope'];
  action: AuthorizationPolicy['action'];
  dryRun: boolean;
  rules: number;
  /** Number of workloads that it applies to. */
  workloads: number;
}

/** How the mesh and its proxies stand. */
export function meshStatus(discovery: Discovery): MeshStatus {
  const { index, state, version } = discovery;
  const nowMs = discovery.nowMs;
  const present = new Set(discovery.proxies.map(({ node }) => node));
  const absent = [...index.neededProxies()].filter(([node]) => !present.has(node));
  const proxies = discovery.proxies.map((stream): ProxyStatus => {
    const refused = stream.refusals.map(({ reason, names }) => ({ reason, resources: names }));
    return {
      proxy: stream.name,
      node: stream.node,
      version: stream.served,
      state: stream.served < version ? 'waiting' : refused.length > 0 ? 'refused' : 'serving',
      connectedMs: nowMs - stream.connectedMs,
      unansweredMs: stream.unansweredMs,
      addresses: stream.resourceCount(ADDRESS_TYPE),
      policies: stream.resourceCount(AUTHORIZATION_TYPE),
      refused,
    };
  });
  return {
    version,
    trustDomain: state.trustDomain,
    workloads: state.workloads.size,
    services: state.services.size,
    policies: state.policies.size,
    proxies: proxies.sort((a, b) => compareTexts(a.proxy, b.proxy)),
    absent: absent.map(([node, workloads]) => ({ node, workloads })).sort((a, b) => compareTexts(a.node, b.node)),
  };
}

/** The services. */
export function serviceStatus(index: MeshIndex): ServiceStatus[] {
  return sorted(index.state.services, (service) => {
    const endpoints = index.endpointsOf(serviceKey(service));
    return {
      service: serviceKey(service),
      addresses: service.vips,
      ports: service.ports.map(({ servicePort, targetPort, protocol }) => `${servicePort}:${targetPort}/${protocol}`),
      healthy: endpoints.filter(({ status }) => status === 'healthy').length,
      endpoints: endpoints.length,
      rules: service.rules?.length ?? 0,
    };
  });
}

/** The workloads. */
export function workloadStatus(index: MeshIndex): WorkloadStatusRow[] {
  return sorted(index.state.workloads, (workload) => {
    const { policies, missing } = index.policiesOf(workload);
    return {
      workload: `${workload.namespace}/${workload.name}`,
      uid: workload.uid,
      node: workload.node,
      sidecar: workload.sidecar === true,
      addresses: workload.addresses,
      identity: workload.serviceAccount === '' ? '' : identityOf(workload),
      protocol: workload.protocol,
      status: workload.status,
      services: Object.keys(workload.services).sort(compareTexts),
      policies: policies.map(policyKey),
      missingPolicies: missing,
    };
  });
}

/** The policies. */
export function policyStatus(index: MeshIndex): PolicyStatus[] {
  const counts = new Map<string, number>();
  for (const workload of index.state.workloads.values()) {
    for (const policy of index.policiesOf(workload).policies) {
      counts.set(policyKey(policy), (counts.get(policyKey(policy)) ?? 0) + 1);
    }
  }
  return sorted(index.state.policies, (policy) => ({
    policy: policyKey(policy),
    scope: policy.scope,
    action: policy.action,
    dryRun: policy.dryRun,
    rules: policy.rules.length,
    workloads: counts.get(policyKey(policy)) ?? 0,
  }));
}

function sorted<T, R>(objects: ReadonlyMap<string, T>, row: (object: T) => R): R[] {
  return [...objects].sort(([a], [b]) => compareTexts(a, b)).map(([, object]) => row(object));
}
