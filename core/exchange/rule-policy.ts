// The policy of a rule as a worker uses it: settings prepared for the packet path.
// Made once per snapshot and policy, immutable afterwards. An exchange whose rule has none has null.

import type { RefPolicySettings, RulePolicySettings } from '../workers/policies.ts';

/** Policy of a rule, prepared. */
export class RulePolicy {
  readonly settings: RulePolicySettings;
  /** 0: as the snapshot says for all. */
  readonly streamIdleTimeoutMs: number;

  constructor(settings: RulePolicySettings) {
    this.settings = settings;
    this.streamIdleTimeoutMs = settings.streamIdleTimeoutMs;
  }
}

/** Policy of a backend reference, prepared. */
export class RefPolicy {
  readonly settings: RefPolicySettings;

  constructor(settings: RefPolicySettings) {
    this.settings = settings;
  }
}
