// The policies of rules and backend references, each distinct one once.
//
// Both the route table, which may be compiled in another thread, and the snapshot are made from this:
// the same routes give the same indexes.

import type { RefPolicySettings, RulePolicySettings } from '../core/workers/policies.ts';
import type { BackendRefConfig, RouteConfig, RuleConfig } from './config.ts';

/** Policies of all routes, and the index of each rule's and reference's; -1: it has none. */
export interface CollectedPolicies {
  rulePolicies: RulePolicySettings[];
  refPolicies: RefPolicySettings[];
  ofRule: (rule: RuleConfig) => number;
  ofRef: (ref: BackendRefConfig) => number;
}

/** Collects the policies of `routes` in file order. */
export function collectPolicies(routes: readonly RouteConfig[]): CollectedPolicies {
  const rulePolicies = new Distinct<RulePolicySettings>();
  const refPolicies = new Distinct<RefPolicySettings>();
  for (const { rules } of routes) {
    for (const rule of rules) {
      rulePolicies.index(rule.policy);
      for (const ref of rule.backendRefs) refPolicies.index(ref.policy);
    }
  }
  return {
    rulePolicies: rulePolicies.values,
    refPolicies: refPolicies.values,
    ofRule: ({ policy }) => rulePolicies.index(policy),
    ofRef: ({ policy }) => refPolicies.index(policy),
  };
}

/** Values that are equal as JSON, once. */
class Distinct<T> {
  readonly values: T[] = [];
  private readonly indexes = new Map<string, number>();

  index(value: T | null): number {
    if (value === null) return -1;
    const key = JSON.stringify(value);
    const known = this.indexes.get(key);
    if (known !== undefined) return known;
    this.indexes.set(key, this.values.length);
    this.values.push(value);
    return this.values.length - 1;
  }
}
