// How often and on what conditions a request is tried, and how much of a backend may be in use at a
// time, as plain data: members of the policies of rules and backends (policies.ts).

/** What a further attempt is made for; bit `1 << cause` in `RetrySettings.failures` for those below STATUS. */
export const RetryCause = {
  /** No connection could be established. */
  CONNECT_FAILURE: 0,
  /** The upstream says that it has not acted on the request (REFUSED_STREAM, GOAWAY). */
  REFUSED_STREAM: 1,
  /** The connection or stream was lost before a byte of the request was sent on it. */
  RESET_BEFORE_REQUEST: 2,
  /** It was lost, or broke the protocol, before an answer came. */
  RESET: 3,
  /** No answer came in time. */
  TIMEOUT: 4,
  /** The status of the response. */
  STATUS: 5,
  /** The status of the RPC, in a response without messages. */
  GRPC_STATUS: 6,
} as const;

/** Word of each cause, for metrics. */
export const retryCauseNames: readonly string[] = Object.keys(RetryCause).map((name) => name.toLowerCase());

/** How requests of a rule are tried again. */
export interface RetrySettings {
  /** Most further attempts, 1 or more. */
  attempts: number;
  /** Failures to retry: bits of RetryCause. */
  failures: number;
  /** Statuses of responses to retry, 400 to 599, each once. */
  codes: number[];
  /** Statuses of RPCs to retry: bit per number. */
  grpcStatuses: number;
  /** Mean wait before the first further attempt is half of it, in milliseconds; doubles with each. */
  backoffMs: number;
  /** Most that it grows to. */
  backoffMaxMs: number;
  /** Also requests that may have been acted on and whose method is not idempotent. */
  retryUnsafe: boolean;
  /** Longest body that is kept for another attempt; 0: none. */
  bodyBufferBytes: number;
  /** Longest Retry-After that is waited for; 0: Retry-After is not looked at. */
  retryAfterMaxMs: number;
}

/** A second attempt of a request that has had no answer for a while, without giving up the first. */
export interface HedgeSettings {
  /** Name of the rule, under which its latency is learned; empty unless `quantile` is set. */
  key: string;
  /** Time without an answer; with `quantile`, the least. */
  delayMs: number;
  /** Share of the requests of the rule whose latency is waited for, below 1; 0: `delayMs` is. */
  quantile: number;
  /** Most second attempts, as a share of the backend's requests of the last ten seconds, 0 to 100. */
  budgetPercent: number;
}

/** Share of a backend's requests that may be further attempts. */
export interface RetryBudgetSettings {
  /** Of the requests of the last ten seconds, 0 to 100. */
  percent: number;
  /** Further attempts per second that are allowed in any case. */
  minPerSecond: number;
}

/** The budget of a backend that says nothing. */
export const defaultRetryBudget: RetryBudgetSettings = { percent: 20, minPerSecond: 3 };

/** Limits of a circuit breaker for one class of requests; 0: no limit. All workers together. */
export interface BreakerLimits {
  connectionsMax: number;
  pendingMax: number;
  requestsMax: number;
  retriesMax: number;
}

/** Circuit breaker of a backend. */
export interface BreakerSettings {
  normal: BreakerLimits;
  /** For requests of priority high, which are then counted by themselves; null: they are counted with the others. */
  high: BreakerLimits | null;
  /** Longest time that a request waits for a connection or a stream, in milliseconds. */
  pendingTimeoutMs: number;
}

/** Importance of a rule's requests. */
export const Priority = { DEFAULT: 0, HIGH: 1, LOW: 2 } as const;
