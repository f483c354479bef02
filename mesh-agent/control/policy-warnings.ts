// Authorisation policies that are valid and hardly meant: what they deny is more than their authors may think of.
//
// Control thread of the control plane, and the command line. Pure. Finds what can be told by comparing texts: two
// patterns are the same or they are not, whatever they match.
// Spec: docs/mesh/authorization.md; core/authorization is what decides.

import type { Path } from '../../config/yaml.ts';
import { selects } from '../model/mesh-index.ts';
import type {
  AuthorizationPolicy,
  MeshState,
  PolicyCondition,
  PolicyOperation,
  PolicyRule,
  PolicySource,
  Workload,
} from '../model/mesh-state.ts';

/** Names of warnings, and what they mean. */
export const policyWarnings = {
  contradiction: 'what one policy allows, another denies, for some workloads or all',
  'deny-everything': 'a rule that denies has no condition, so that nothing reaches the workloads of its policy',
  'deny-closes-tcp': 'a rule that denies asks of requests only, and so closes every connection to ports with TCP',
} as const;

/** One of them. */
export type PolicyWarningName = keyof typeof policyWarnings;

/** A warning about one policy. */
export interface PolicyFinding {
  name: PolicyWarningName;
  policy: AuthorizationPolicy;
  /** In its document. */
  path: Path;
  problem: string;
}

/** Most policies that one is compared with; with more of them only some contradictions are found. */
const COMPARED_MAX = 256;

/** Conditions that only requests have an answer to; `remote.ip` is that of the connection where no proxy is trusted. */
const OF_REQUESTS = /^request\./;

/** Judges all policies of a state. Those that only record are passed over: they refuse nothing. */
export function judgePolicies(state: MeshState): PolicyFinding[] {
  const found: PolicyFinding[] = [];
  const reach = new Reach(state);
  const enforced = [...state.policies.values()].filter(({ dryRun }) => !dryRun);
  const denying = enforced.filter(({ action }) => action === 'deny');
  for (const policy of denying) {
    policy.rules.forEach((rule, index) => {
      const at = { policy, path: ['spec', 'rules', index] };
      if (isEverything(rule)) {
        const problem = `${nameOf(policy)}: rule ${index + 1} has no condition, so that nothing reaches ${reach.textOf(policy)}; give it from, to or when unless that is meant`;
        found.push({ name: 'deny-everything', ...at, problem });
        return;
      }
      if (!asksAnybody(rule)) return;
      const ports = closedPorts(rule, reach.tcpPorts(policy));
      if (ports.length === 0) return;
      const problem = `${nameOf(policy)}: rule ${index + 1} asks of requests only, which connections of TCP do not have, so that it closes all of them to port ${ports.join(', ')}; give it the ports that it is for`;
      found.push({ name: 'deny-closes-tcp', ...at, problem });
    });
  }
  // Of a policy that denies everything that has been said.
  const rivals = denying.filter(({ rules }) => !rules.some(isEverything));
  const byNamespace = Map.groupBy(rivals, ({ scope, namespace }) => (scope === 'global' ? '' : namespace));
  for (const allow of enforced) {
    if (allow.action !== 'allow' || allow.rules.length === 0) continue;
    const near =
      allow.scope === 'global' ? rivals : [...(byNamespace.get('') ?? []), ...(byNamespace.get(allow.namespace) ?? [])];
    for (const deny of near.slice(0, COMPARED_MAX)) {
      if (!allow.rules.every((rule) => deny.rules.some((other) => covers(other, rule)))) continue;
      const where = reach.shared(allow, deny);
      if (where === null) continue;
      const problem = `${nameOf(allow)} and ${nameOf(deny)} contradict each other: what the first allows the second denies${where}, and deny decides`;
      found.push({ name: 'contradiction', policy: allow, path: ['spec', 'action'], problem });
    }
  }
  return found;
}

/** Which workloads policies concern. */
class Reach {
  private readonly state: MeshState;
  private readonly byNamespace: Map<string, Workload[]>;
  private readonly selected = new Map<AuthorizationPolicy, ReadonlySet<Workload>>();
  private readonly ports = new Map<AuthorizationPolicy, ReadonlySet<number>>();

  constructor(state: MeshState) {
    this.state = state;
    this.byNamespace = Map.groupBy(state.workloads.values(), ({ namespace }) => namespace);
  }

  /** What a policy is about, for people. */
  textOf(policy: AuthorizationPolicy): string {
    if (policy.scope === 'global') return 'any workload of the mesh';
    if (policy.scope === 'namespace') return `any workload of namespace ${policy.namespace}`;
    return 'the workloads that it selects';
  }

  /**
   * Where two policies meet, as the end of a clause; null: nowhere. Where workloads are not known, or one of the two has
   * none, what is written decides: one has to be about all that the other is about.
   */
  shared(allow: AuthorizationPolicy, deny: AuthorizationPolicy): string | null {
    const [allowed, denied] = [this.workloadsOf(allow), this.workloadsOf(deny)];
    if (allowed.size === 0 || denied.size === 0) return includes(deny, allow) || includes(allow, deny) ? '' : null;
    let both = 0;
    for (const workload of allowed) if (denied.has(workload)) both++;
    if (both === 0) return null;
    return both === allowed.size ? '' : ` for ${both} of its ${allowed.size} workloads`;
  }

  /** Ports of the workloads of a policy on which connections are passed on unread, as services declare it. */
  tcpPorts(policy: AuthorizationPolicy): ReadonlySet<number> {
    let ports = this.ports.get(policy);
    if (ports === undefined) {
      ports = new Set([...this.workloadsOf(policy)].flatMap((workload) => this.tcpPortsOf(workload)));
      this.ports.set(policy, ports);
    }
    return ports;
  }

  /** As node proxies have it: services that contradict each other declare nothing. */
  private tcpPortsOf({ services }: Workload): number[] {
    const declared = new Map<number, boolean>();
    for (const [key, mappings] of Object.entries(services)) {
      const known = this.state.services.get(key)?.ports ?? [];
      for (const { servicePort, targetPort } of mappings) {
        const protocol = known.find((port) => port.servicePort === servicePort)?.protocol ?? 'auto';
        if (protocol === 'auto') continue;
        declared.set(targetPort, protocol === 'tcp' && declared.get(targetPort) !== false);
      }
    }
    return [...declared].filter(([, isTcp]) => isTcp).map(([port]) => port);
  }

  private workloadsOf(policy: AuthorizationPolicy): ReadonlySet<Workload> {
    let workloads = this.selected.get(policy);
    if (workloads === undefined) {
      const { state, byNamespace } = this;
      const near =
        policy.scope === 'global' ? [...state.workloads.values()] : (byNamespace.get(policy.namespace) ?? []);
      workloads = new Set(near.filter((workload) => selects(policy, workload)));
      this.selected.set(policy, workloads);
    }
    return workloads;
  }
}

/** Whether a policy is about every workload that another one may be about. */
function includes(wide: AuthorizationPolicy, narrow: AuthorizationPolicy): boolean {
  if (wide.scope === 'global') return true;
  if (narrow.scope === 'global' || wide.namespace !== narrow.namespace) return false;
  return Object.entries(wide.selector).every(([label, value]) => narrow.selector[label] === value);
}

/** Whether everything matches a rule. */
function isEverything({ from, to, when }: PolicyRule): boolean {
  return isUnasked(from) && isUnasked(to) && when.length === 0;
}

/** Whether a list of alternatives asks nothing: it is not given, or one of them has no condition. */
function isUnasked(alternatives: readonly (PolicySource | PolicyOperation)[]): boolean {
  return alternatives.length === 0 || alternatives.some((one) => Object.values(one).every((list) => list.length === 0));
}

/** Those of some ports with TCP to which a rule that denies closes every connection by what it asks of requests. */
function closedPorts({ to, when }: PolicyRule, ports: ReadonlySet<number>): number[] {
  const closed = [...ports].filter((port) => {
    const open = to.filter(
      ({ ports: own, notPorts }) => (own.length === 0 || own.includes(port)) && !notPorts.includes(port),
    );
    if (to.length > 0 && open.length === 0) return false;
    // Who names a port and nothing of requests means its connections.
    return when.length > 0 || (to.length > 0 && open.every(asksOfRequests));
  });
  return closed.sort((a, b) => a - b);
}

/** Whether a rule is about all peers, so that it is known of every connection of TCP what it makes of that. */
function asksAnybody({ from, when }: PolicyRule): boolean {
  return isUnasked(from) && when.every(({ key }) => OF_REQUESTS.test(key));
}

function asksOfRequests({ ports: _ports, notPorts: _notPorts, ...ofRequests }: PolicyOperation): boolean {
  return Object.values(ofRequests).some((list) => list.length > 0);
}

/** Whether a rule matches everything that another one matches, as far as texts tell. */
function covers(wide: PolicyRule, narrow: PolicyRule): boolean {
  return (
    coversAlternatives(wide.from, narrow.from, coversSource) &&
    coversAlternatives(wide.to, narrow.to, coversOperation) &&
    wide.when.every((condition) => narrow.when.some((other) => coversCondition(condition, other)))
  );
}

/** Each of `narrow` has to be covered by one of `wide`. */
function coversAlternatives<T extends PolicySource | PolicyOperation>(
  wide: readonly T[],
  narrow: readonly T[],
  one: (wide: T, narrow: T) => boolean,
): boolean {
  if (isUnasked(wide)) return true;
  return narrow.length > 0 && narrow.every((other) => wide.some((own) => one(own, other)));
}

function coversSource(wide: PolicySource, narrow: PolicySource): boolean {
  return (
    coversValues(wide.identities.map(identityText), narrow.identities.map(identityText)) &&
    excludesNoMore(wide.notIdentities.map(identityText), narrow.notIdentities.map(identityText)) &&
    coversValues(wide.namespaces, narrow.namespaces) &&
    excludesNoMore(wide.notNamespaces, narrow.notNamespaces) &&
    coversValues(wide.ipBlocks, narrow.ipBlocks) &&
    excludesNoMore(wide.notIpBlocks, narrow.notIpBlocks)
  );
}

function coversOperation(wide: PolicyOperation, narrow: PolicyOperation): boolean {
  return (
    coversValues(wide.ports, narrow.ports) &&
    excludesNoMore(wide.notPorts, narrow.notPorts) &&
    coversValues(wide.hosts, narrow.hosts) &&
    excludesNoMore(wide.notHosts, narrow.notHosts) &&
    coversValues(wide.paths, narrow.paths) &&
    excludesNoMore(wide.notPaths, narrow.notPaths) &&
    coversValues(wide.methods, narrow.methods) &&
    excludesNoMore(wide.notMethods, narrow.notMethods)
  );
}

function coversCondition(wide: PolicyCondition, narrow: PolicyCondition): boolean {
  return (
    wide.key === narrow.key &&
    coversValues(wide.values, narrow.values) &&
    excludesNoMore(wide.notValues, narrow.notValues)
  );
}

/** Without values everything is meant. */
function coversValues<T>(wide: readonly T[], narrow: readonly T[]): boolean {
  if (wide.length === 0) return true;
  const values = new Set(wide);
  return narrow.length > 0 && narrow.every((value) => values.has(value));
}

function excludesNoMore<T>(wide: readonly T[], narrow: readonly T[]): boolean {
  const values = new Set(narrow);
  return wide.every((value) => values.has(value));
}

/** An identity may be written with its scheme or without. */
function identityText(identity: string): string {
  return identity.replace(/^spiffe:\/\//, '');
}

function nameOf({ namespace, name }: AuthorizationPolicy): string {
  return `AuthorizationPolicy ${namespace}/${name}`;
}
