// The policy of a rule as a worker uses it: settings prepared for the packet path.
// Made once per snapshot and policy, immutable afterwards. An exchange whose rule has none has null.

import { Subset } from '../lb/balancer-view.ts';
import type { RefPolicySettings, RulePolicySettings } from '../workers/policies.ts';
import { CompressionPolicy } from './content-coding.ts';
import { HeadFilters, RuleFilters } from './filters.ts';
import { HedgePolicy } from './hedge-policy.ts';
import { MirrorTarget } from './mirror-target.ts';
import { RetryPolicy } from './retry-policy.ts';
import type { RuleLimits } from './rule-limits.ts';
import { SessionPersistence } from './session-persistence.ts';

/** Policy of a rule, prepared. */
export class RulePolicy {
  readonly settings: RulePolicySettings;
  /** Null: heads pass as they are, and requests go to a backend. */
  readonly filters: RuleFilters | null;
  /** 0: as the snapshot says for all. */
  readonly streamIdleTimeoutMs: number;
  /** Null: what fails is not tried again. */
  readonly retry: RetryPolicy | null;
  /** Null: a slow request is waited for. */
  readonly hedge: HedgePolicy | null;
  /** Null: every request is balanced anew. */
  readonly session: SessionPersistence | null;
  /** Null: responses are not compressed. */
  readonly compression: CompressionPolicy | null;
  /** Null: requests are not mirrored. */
  readonly mirrors: MirrorTarget[] | null;
  /** Rate limits, on the tables of the snapshot; null: none. */
  readonly limits: RuleLimits | null;

  constructor(settings: RulePolicySettings, limits: RuleLimits | null) {
    this.settings = settings;
    this.filters = settings.filters === null ? null : new RuleFilters(settings.filters);
    this.limits = limits;
    this.session = settings.sessionPersistence === null ? null : new SessionPersistence(settings.sessionPersistence);
    this.streamIdleTimeoutMs = settings.streamIdleTimeoutMs;
    this.retry = settings.retry === null ? null : new RetryPolicy(settings.retry);
    this.hedge = settings.hedge === null ? null : new HedgePolicy(settings.hedge);
    this.mirrors = settings.mirrors.length === 0 ? null : settings.mirrors.map((mirror) => new MirrorTarget(mirror));
    this.compression = settings.compression === null ? null : new CompressionPolicy(settings.compression);
  }
}

/** Policy of a backend reference, prepared. */
export class RefPolicy {
  readonly settings: RefPolicySettings;
  /** Changes to heads, those of the rule included; null: as the rule says. */
  readonly filters: HeadFilters | null;
  /** Labels that endpoints must have; null: all are used. */
  readonly subset: Subset | null;

  constructor(settings: RefPolicySettings) {
    this.settings = settings;
    this.filters = settings.filters === null ? null : new HeadFilters(settings.filters);
    this.subset = settings.subset === null ? null : new Subset(settings.subset);
  }
}
