// What the filters of rules and backend references do to heads, as plain data.
//
// Compiled by config/ (filter-normalise.ts), part of the policies of a snapshot. Names of fields are in lower case.
// Spec: Gateway API HTTPRouteFilter; Envoy's fault filter.

/** Changes to the fields of a head: first `drop`, then `lines` are added. */
export interface HeadEditSettings {
  drop: string[];
  lines: { name: string; value: string }[];
}

/** A new path. The query stays. */
export interface PathRewriteSettings {
  type: 'ReplaceFullPath' | 'ReplacePrefixMatch';
  /** The whole path, or what stands for the prefix; without a slash at the end then. */
  value: string;
  /** ReplacePrefixMatch: prefixes of the rule, longest first, without a slash at the end. */
  prefixes: string[];
}

/** URLRewrite. */
export interface RewriteSettings {
  /** Host that goes upstream; empty: the client's. */
  hostname: string;
  path: PathRewriteSettings | null;
}

/** RequestRedirect. */
export interface RedirectSettings {
  /** Empty: that of the request. */
  scheme: '' | 'http' | 'https';
  /** Empty: that of the request. */
  hostname: string;
  path: PathRewriteSettings | null;
  /** 0: that of `scheme`, or of the listener. */
  port: number;
  status: number;
}

/** DirectResponse. */
export interface DirectResponseSettings {
  /** 200 to 599. */
  status: number;
  /** Empty: none. */
  contentType: string;
  /** In base64, at most DIRECT_BODY_BYTES_MAX bytes. */
  body: string;
}

/** Most bytes of the body of a direct response. */
export const DIRECT_BODY_BYTES_MAX = 64 * 1024;

/** CORS. */
export interface CorsSettings {
  /** `*`, `https://a.example.com`, `https://*.example.com`, with or without a port; lower case. */
  allowOrigins: string[];
  /** Methods and names as written; `*` alone: all. */
  allowMethods: string[];
  allowHeaders: string[];
  exposeHeaders: string[];
  maxAgeSeconds: number;
  allowCredentials: boolean;
}

/** FaultInjection. Shares are of a million. */
export interface FaultSettings {
  /** 0: none. */
  delayMs: number;
  delayShare: number;
  /** HTTP status of the abort; 0: by `grpcStatus`, or none. */
  abortStatus: number;
  /** -1: none. */
  abortGrpcStatus: number;
  abortShare: number;
  /** All of them must be in the request, with exactly this value. */
  headers: { name: string; value: string }[];
}

/** Filters that change heads where they go to, and come from, a backend. */
export interface HeadFilterSettings {
  requestHeaders: HeadEditSettings | null;
  responseHeaders: HeadEditSettings | null;
  rewrite: RewriteSettings | null;
}

/** Filters of a rule. */
export interface RuleFilterSettings extends HeadFilterSettings {
  redirect: RedirectSettings | null;
  direct: DirectResponseSettings | null;
  cors: CorsSettings | null;
  fault: FaultSettings | null;
}
