// What rules and backend references do to requests besides choosing a backend, as plain data.
//
// Compiled by config/, part of a snapshot; each distinct policy is there once, and the route table
// names it by its index. A worker makes a RulePolicy of it (core/exchange/rule-policy.ts).
// Invariant: a rule without any of this has no policy (index -1), and costs nothing.

import {
  type BreakerSettings,
  defaultRetryBudget,
  type HedgeSettings,
  type RetryBudgetSettings,
  type RetrySettings,
} from '../lb/attempt-settings.ts';
import type { AdaptiveConcurrencySettings } from '../lb/gradient.ts';
import type { OutlierSettings } from '../lb/outlier-detection.ts';
import {
  type BalancerSettings,
  defaultPlace,
  type EndpointPlace,
  type SessionPersistenceSettings,
  type SubsetSettings,
} from '../lb/settings.ts';
import type { RateLimitSettings } from '../limits/limit-settings.ts';
import type { HeadFilterSettings, RuleFilterSettings } from './filter-settings.ts';

/** Content codings that response bodies can be compressed with. */
export type ContentCodingName = 'gzip' | 'br' | 'zstd';

/** Compression of response bodies. */
export interface CompressionSettings {
  /** Codings offered, in order of preference. */
  codings: ContentCodingName[];
  /** Bodies known to be shorter stay as they are. */
  minBytes: number;
  /** `text/html`, or `text/*` for a whole family. */
  contentTypes: string[];
  gzipLevel: number;
  brotliLevel: number;
  zstdLevel: number;
}

/** Mirroring of requests to another backend. */
export interface MirrorSettings {
  /** Name of the backend. */
  backend: string;
  /** Share of the requests, above 0, at most 1. */
  share: number;
  /** Time for a mirrored request. */
  timeoutMs: number;
  /** Requests with larger bodies are not mirrored. */
  bodyBytesMax: number;
}

/** Policy of a rule. */
export interface RulePolicySettings {
  /** What filters do to heads, and answers in place of a backend; null: nothing. */
  filters: RuleFilterSettings | null;
  /** Null: what fails is not tried again, but for what automatic re-sends repair. */
  retry: RetrySettings | null;
  /** Null: a slow request is waited for. */
  hedge: HedgeSettings | null;
  /** Priority of attempt-settings.ts. */
  priority: number;
  /** Requests of a client go to one endpoint; null: each is balanced anew. */
  sessionPersistence: SessionPersistenceSettings | null;
  /** Time without one byte of progress during an exchange; 0: as timeouts.streamIdle says. */
  streamIdleTimeoutMs: number;
  /** Response bodies are compressed for clients that take it; null: no. */
  compression: CompressionSettings | null;
  /** Copies of requests go to these too. */
  mirrors: MirrorSettings[];
  /** In the order in which they apply; empty: none. */
  rateLimits: RateLimitSettings[];
}

/** How a backend's requests are balanced, limited and judged. */
export interface BackendPolicySettings {
  /** Null: no limits. */
  circuitBreaker: BreakerSettings | null;
  /** Null: the requests in progress are not limited by latency. */
  adaptiveConcurrency: AdaptiveConcurrencySettings | null;
  retryBudget: RetryBudgetSettings;
  /** Null: as defaultBalancer says. */
  balancer: BalancerSettings | null;
  /** Null: answers and failures do not eject endpoints. */
  outlierDetection: OutlierSettings | null;
}

/** What is known of an endpoint besides its address and weight. */
export interface EndpointPolicySettings {
  place: EndpointPlace;
  /** Gets no new requests. */
  draining: boolean;
}

/** Policy of a backend reference. */
export interface RefPolicySettings {
  /** What filters do to heads, those of the rule included; null: as the rule says. */
  filters: HeadFilterSettings | null;
  /** Only endpoints with these labels are used; null: all. */
  subset: SubsetSettings | null;
}

/** The policy of a rule that says nothing. */
export const noRulePolicy: RulePolicySettings = {
  filters: null,
  retry: null,
  hedge: null,
  priority: 0,
  sessionPersistence: null,
  streamIdleTimeoutMs: 0,
  compression: null,
  mirrors: [],
  rateLimits: [],
};

/** The policy of a backend that says nothing. */
export const noBackendPolicy: BackendPolicySettings = {
  circuitBreaker: null,
  adaptiveConcurrency: null,
  retryBudget: defaultRetryBudget,
  balancer: null,
  outlierDetection: null,
};

/** What is known of an endpoint of which nothing is said. */
export const noEndpointPolicy: EndpointPolicySettings = { place: defaultPlace, draining: false };

/** The policy of a backend reference that says nothing. */
export const noRefPolicy: RefPolicySettings = { filters: null, subset: null };
