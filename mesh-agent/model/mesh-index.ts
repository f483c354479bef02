// Indexes over the state of the mesh: what an address is, who runs on a node, who serves a service, which
// policies apply to a workload.
//
// Control threads. Follows a state change by change, in time proportional to the change; one owner calls
// `apply`, everybody may look. Looking never changes anything.

import {
  type AuthorizationPolicy,
  changesBetween,
  emptyMeshState,
  type MeshChanges,
  type MeshState,
  type MeshUpdate,
  policyKey,
  proxyOf,
  type Service,
  type Workload,
} from './mesh-state.ts';

/** What an address stands for. */
export type AddressOwner = { kind: 'workload'; workload: Workload } | { kind: 'service'; service: Service };

/** Policies that decide about a workload's inbound traffic. */
export interface AppliedPolicies {
  policies: AuthorizationPolicy[];
  /** Keys that the workload names and nobody knows: until they do, nothing may be let in. */
  missing: string[];
}

const none: ReadonlySet<never> = new Set<never>();

/** Indexes that follow a state. */
export class MeshIndex {
  /** The state that the indexes are of. */
  state: MeshState;
  private readonly workloadsByAddress = new Map<string, Set<string>>();
  private readonly servicesByAddress = new Map<string, Set<string>>();
  private readonly workloadsByProxy = new Map<string, Set<string>>();
  private readonly workloadsByNamespace = new Map<string, Set<string>>();
  private readonly workloadsByService = new Map<string, Set<string>>();
  /** Keys of global policies, and of the others by namespace. */
  private readonly policiesByNamespace = new Map<string, Set<string>>();

  constructor(state: MeshState = emptyMeshState('cluster.local')) {
    this.state = emptyMeshState(state.trustDomain);
    this.apply({ state, changes: changesBetween(this.state, state) });
  }

  /** Goes over to a later state; `changes` names at least everything that differs. */
  apply({ state, changes }: MeshUpdate): void {
    const before = this.state;
    for (const uid of changes.workloads) {
      this.indexWorkload(before.workloads.get(uid), false);
      this.indexWorkload(state.workloads.get(uid), true);
    }
    for (const key of changes.services) {
      for (const vip of before.services.get(key)?.vips ?? []) put(this.servicesByAddress, vip, key, false);
      for (const vip of state.services.get(key)?.vips ?? []) put(this.servicesByAddress, vip, key, true);
    }
    for (const key of changes.policies) {
      const [old, now] = [before.policies.get(key), state.policies.get(key)];
      if (old !== undefined) put(this.policiesByNamespace, policyBucket(old), key, false);
      if (now !== undefined) put(this.policiesByNamespace, policyBucket(now), key, true);
    }
    this.state = state;
  }

  /** Goes over to a later state without knowing what differs; gives it. */
  applyState(state: MeshState): MeshChanges {
    const changes = changesBetween(this.state, state);
    this.apply({ state, changes });
    return changes;
  }

  /**
   * What an IP address (in canonical form) stands for. A service comes before a workload, and of several
   * workloads one that takes traffic; addresses of the host network belong to nobody.
   */
  byAddress(address: string): AddressOwner | undefined {
    const service = first(this.servicesByAddress.get(address));
    if (service !== undefined) return { kind: 'service', service: this.state.services.get(service)! };
    const workload = this.workloadAt(address);
    return workload === undefined ? undefined : { kind: 'workload', workload };
  }

  /** The workload with an address of its own; never a service. */
  workloadAt(address: string): Workload | undefined {
    let best: Workload | undefined;
    for (const uid of this.workloadsByAddress.get(address) ?? none) {
      const workload = this.state.workloads.get(uid)!;
      if (best === undefined || before(workload, best)) best = workload;
    }
    return best;
  }

  /** Workloads that a proxy serves (see `proxyOf`): of a node all without a sidecar; by uid. */
  onNode(node: string): Workload[] {
    return this.workloads(this.workloadsByProxy.get(node));
  }

  /** Uids of the workloads that a proxy serves. */
  uidsOnNode(node: string): ReadonlySet<string> {
    return this.workloadsByProxy.get(node) ?? none;
  }

  /** The proxies that workloads with a tunnel need (see `proxyOf`), and the number of those. */
  neededProxies(): Map<string, number> {
    const needed = new Map<string, number>();
    for (const [proxy, uids] of this.workloadsByProxy) {
      let count = 0;
      for (const uid of uids) if (this.state.workloads.get(uid)!.protocol === 'hbone') count++;
      if (proxy !== '' && count > 0) needed.set(proxy, count);
    }
    return needed;
  }

  /** Services that a workload is an endpoint of, with the ports; those that do not exist are left out. */
  servicesOf(workload: Workload): { service: Service; ports: Workload['services'][string] }[] {
    return Object.entries(workload.services).flatMap(([key, ports]) => {
      const service = this.state.services.get(key);
      return service === undefined ? [] : [{ service, ports }];
    });
  }

  /** Workloads that are endpoints of a service, whatever their status, by uid. */
  endpointsOf(key: string): Workload[] {
    return this.workloads(this.workloadsByService.get(key));
  }

  /** Uids of the endpoints of a service. */
  endpointUids(key: string): ReadonlySet<string> {
    return this.workloadsByService.get(key) ?? none;
  }

  /**
   * Policies that apply to a workload: of the mesh, of its namespace, and those that select it. By the
   * names that the control plane gave it, if it did, else by its labels.
   */
  policiesOf(workload: Workload): AppliedPolicies {
    const policies: AuthorizationPolicy[] = [];
    const named = workload.authorizationPolicies;
    for (const bucket of ['*', workload.namespace]) {
      for (const key of this.policiesByNamespace.get(bucket) ?? none) {
        const policy = this.state.policies.get(key)!;
        if (policy.scope !== 'workload' || (named === undefined && selects(policy, workload))) policies.push(policy);
      }
    }
    const missing: string[] = [];
    for (const key of named ?? []) {
      const policy = this.state.policies.get(key);
      if (policy === undefined) missing.push(key);
      else if (!policies.includes(policy)) policies.push(policy);
    }
    return { policies: policies.sort((a, b) => compareTexts(policyKey(a), policyKey(b))), missing };
  }

  /** Keys of the policies whose selectors match a workload; what `authorizationPolicies` of it is to be. */
  selectedBy(workload: Workload): readonly string[] {
    if (workload.authorizationPolicies !== undefined) return workload.authorizationPolicies;
    const keys: string[] = [];
    for (const key of this.policiesByNamespace.get(workload.namespace) ?? none) {
      const policy = this.state.policies.get(key)!;
      if (policy.scope === 'workload' && selects(policy, workload)) keys.push(key);
    }
    return keys.sort(compareTexts);
  }

  /** Keys of the policies of a scope that apply to a whole namespace, or to the mesh (`*`). */
  widePolicies(namespace: string): string[] {
    const keys = [...(this.policiesByNamespace.get(namespace) ?? none)];
    return keys.filter((key) => this.state.policies.get(key)!.scope !== 'workload');
  }

  /** Workloads of a namespace, by uid. */
  inNamespace(namespace: string): Workload[] {
    return this.workloads(this.workloadsByNamespace.get(namespace));
  }

  /** Services by their name in DNS. */
  byHostname(hostname: string): Service[] {
    return [...this.state.services.values()].filter((service) => service.hostname === hostname);
  }

  private workloads(uids: ReadonlySet<string> = none): Workload[] {
    return [...uids].sort(compareTexts).map((uid) => this.state.workloads.get(uid)!);
  }

  private indexWorkload(workload: Workload | undefined, present: boolean): void {
    if (workload === undefined) return;
    const { uid } = workload;
    put(this.workloadsByProxy, proxyOf(workload), uid, present);
    put(this.workloadsByNamespace, workload.namespace, uid, present);
    for (const key of Object.keys(workload.services)) put(this.workloadsByService, key, uid, present);
    if (workload.hostNetwork) return;
    for (const address of workload.addresses) put(this.workloadsByAddress, address, uid, present);
  }
}

/** Whether the selector of a policy matches a workload of the same namespace. */
export function selects(policy: AuthorizationPolicy, workload: Workload): boolean {
  if (policy.scope === 'global') return true;
  if (policy.namespace !== workload.namespace) return false;
  return (
    policy.scope === 'namespace' ||
    Object.entries(policy.selector).every(([name, value]) => workload.labels[name] === value)
  );
}

/** Order of texts by their code units, the same on every machine. */
export function compareTexts(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

const rank = { healthy: 0, unhealthy: 1, draining: 2 } as const;

/** An address that was given to a new workload while the old one still drains belongs to the new one. */
function before(a: Workload, b: Workload): boolean {
  return rank[a.status] === rank[b.status] ? a.uid < b.uid : rank[a.status] < rank[b.status];
}

function policyBucket(policy: AuthorizationPolicy): string {
  return policy.scope === 'global' ? '*' : policy.namespace;
}

function first(keys: ReadonlySet<string> | undefined): string | undefined {
  let least: string | undefined;
  for (const key of keys ?? none) if (least === undefined || key < least) least = key;
  return least;
}

function put(index: Map<string, Set<string>>, key: string, value: string, present: boolean): void {
  const values = index.get(key);
  if (present) {
    if (values === undefined) index.set(key, new Set([value]));
    else values.add(value);
  } else if (values?.delete(value) === true && values.size === 0) {
    index.delete(key);
  }
}
