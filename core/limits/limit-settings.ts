// Rate limits as plain data: what a rule says of one, as compiled by config/, and what all workers share of it.

/** One part of the key by which a limit tells clients apart. */
export type RateLimitKeyPart =
  /** The client's address; of IPv6 its /64 network, which is what one client has. */
  | { type: 'sourceAddress' }
  /** The path, without the query. */
  | { type: 'path' }
  /** The first field of this name (lower case). */
  | { type: 'header'; name: string }
  /** A claim of the token in Authorization, which is not verified here. */
  | { type: 'jwtClaim'; claim: string };

/** A limit of a rule. Rules whose limits have the same name share it, and say the same of it. */
export interface RateLimitSettings {
  name: string;
  /** What responses call it; absent: by its name. Names of a mesh say whose limit it is, which is no business of clients. */
  shownAs?: string;
  /** So many requests per period in the long run. 1 to 1,000,000,000, and at most a million a second. */
  requests: number;
  periodMs: number;
  /** Most requests at once after a pause, 1 or more. */
  burst: number;
  /** Empty: one count for all requests. */
  key: RateLimitKeyPart[];
  /** Keys that are counted at a time. */
  keysMax: number;
  /** Counted in Redis, for all gateways together. */
  global: boolean;
  /** Counts what it would refuse, and refuses nothing. */
  dryRun: boolean;
  /** Shown in RateLimit and RateLimit-Policy. */
  headers: boolean;
}

/** Words that control thread and workers share about Redis. */
export const RedisWord = {
  /** 1: it answers. */
  UP: 0,
  WORDS: 16,
} as const;

/** What workers share of a limit. */
export interface RateLimitTable {
  name: string;
  /** Number of the name, for `DETAIL_LIMIT`; never given to another name, but for the last (LIMIT_NAMES_MAX). */
  id: number;
  /** See core/limits/limit-table.ts. */
  buffer: SharedArrayBuffer;
}
