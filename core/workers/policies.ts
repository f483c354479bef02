// What rules and backend references do to requests besides choosing a backend, as plain data.
//
// Compiled by config/, part of a snapshot; each distinct policy is there once, and the route table
// names it by its index. A worker makes a RulePolicy of it (core/exchange/rule-policy.ts).
// Invariant: a rule without any of this has no policy (index -1), and costs nothing.

/** Policy of a rule. */
export interface RulePolicySettings {
  /** Time without one byte of progress during an exchange; 0: as timeouts.streamIdle says. */
  streamIdleTimeoutMs: number;
}

/** How a backend's requests are balanced, limited and judged. */
export type BackendPolicySettings = Record<never, never>;

/** What is known of an endpoint besides its address and weight. */
export type EndpointPolicySettings = Record<never, never>;

/** Policy of a backend reference. */
export type RefPolicySettings = Record<never, never>;

/** The policy of a rule that says nothing. */
export const noRulePolicy: RulePolicySettings = { streamIdleTimeoutMs: 0 };

/** The policy of a backend that says nothing. */
export const noBackendPolicy: BackendPolicySettings = {};

/** What is known of an endpoint of which nothing is said. */
export const noEndpointPolicy: EndpointPolicySettings = {};

/** The policy of a backend reference that says nothing. */
export const noRefPolicy: RefPolicySettings = {};
