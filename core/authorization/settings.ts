// Who may reach a workload, as the packet core decides it: policies of the mesh, compiled.
//
// Made by mesh-agent/node from AuthorizationPolicy (mesh-agent/model/mesh-state.ts). Plain data,
// structured-cloneable, immutable.
// Semantics: Istio's AuthorizationPolicy (deny first, then allow; no allow policy: everybody).

/** The policies that apply to one workload. */
export interface AuthorizationSettings {
  /** Hash of everything below: workers keep what they made of it while it stays the same. */
  key: string;
  policies: PolicySettings[];
}

/** One policy. */
export interface PolicySettings {
  /** `namespace/name`. */
  name: string;
  action: 'allow' | 'deny';
  /** Decided and recorded, not enforced. */
  dryRun: boolean;
  /** It matches what any of them matches; none: nothing. */
  rules: PolicyRuleSettings[];
}

/** One rule, as in the model. */
export interface PolicyRuleSettings {
  from: PolicySourceSettings[];
  to: PolicyOperationSettings[];
  when: PolicyConditionSettings[];
}

/** See PolicySource of the model. */
export interface PolicySourceSettings {
  identities: string[];
  notIdentities: string[];
  namespaces: string[];
  notNamespaces: string[];
  ipBlocks: string[];
  notIpBlocks: string[];
}

/** See PolicyOperation of the model. */
export interface PolicyOperationSettings {
  ports: number[];
  notPorts: number[];
  hosts: string[];
  notHosts: string[];
  paths: string[];
  notPaths: string[];
  methods: string[];
  notMethods: string[];
}

/** See PolicyCondition of the model. */
export interface PolicyConditionSettings {
  key: string;
  values: string[];
  notValues: string[];
}
