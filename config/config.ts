// The configuration after validation: defaults filled in, durations in milliseconds, sizes in bytes.
//
// Made by load.ts, read by compile.ts and by the control thread. Plain data, structured-cloneable,
// never changed after loading. Names follow core/workers/snapshot.ts. 0 means "no limit" where noted.

/** A whole valid configuration. */
export interface Config {
  /** Absolute path of the file, or the name given to `loadConfig` made absolute. */
  file: string;
  /** Number of packet workers, 1 to 256. */
  workers: number | 'auto';
  /** Whether batches of system calls may go through io_uring. */
  ioUring: 'auto' | 'off';
  /** Admin listener; null: off. */
  admin: AdminConfig | null;
  log: { level: LogLevel };
  /** Access log; null: none. */
  accessLog: AccessLogConfig | null;
  /** 0: every request is recorded. */
  failureRecords: { slowThresholdMs: number };
  /** 0: do not wait for requests in flight. */
  drainTimeoutMs: number;
  /** Header of generated responses that carries the reason; empty: none. */
  responseReasonHeader: string;
  headers: {
    requestId: boolean;
    forwarded: boolean;
    /** Pseudonym for Via; empty: none. */
    via: string;
    /** Server of responses; empty: the backend's passes through. */
    server: string;
  };
  /** 0 to 16. */
  trustedHops: number;
  /** Lower case, each once. */
  upgrades: string[];
  limits: LimitsConfig;
  timeouts: TimeoutsConfig;
  listeners: ListenerConfig[];
  routes: RouteConfig[];
  backends: BackendConfig[];
}

/** Least important level that is logged. */
export type LogLevel = 'debug' | 'info' | 'warn' | 'error';

/** Where the admin listener listens. */
export interface AdminConfig {
  /** As written. */
  address: string;
  /** IP address. */
  host: string;
  /** 0 takes a free port. */
  port: number;
}

/** Access log file and format. */
export interface AccessLogConfig {
  /** Absolute path, or `-` for standard output. */
  path: string;
  /** `json`, `common` or a valid template. */
  format: string;
}

/** Limits of HTTP messages and of memory. */
export interface LimitsConfig {
  requestHeadBytesMax: number;
  responseHeadBytesMax: number;
  headerCountMax: number;
  uriBytesMax: number;
  /** 0: no limit. */
  requestBodyBytesMax: number;
  /** 0: no limit. */
  requestsPerConnectionMax: number;
  /** Of the whole process. */
  connectionsMax: number | 'auto';
  /** Per worker. */
  bufferBytes: number;
}

/** Timeouts of downstream connections and streams. */
export interface TimeoutsConfig {
  requestHeadMs: number;
  idleMs: number;
  streamIdleMs: number;
  /** 0: no limit. */
  tunnelIdleMs: number;
}

/** One listening address. */
export interface ListenerConfig {
  name: string;
  /** As written. */
  address: string;
  /** IP address. */
  host: string;
  /** 0 takes a free port. */
  port: number;
  allowConnect: boolean;
}

/** One route. */
export interface RouteConfig {
  name: string;
  /** Names of listeners; null: all. */
  listeners: string[] | null;
  /** Lower case, without a dot at the end; `*.` starts a wildcard. Null: any. */
  hostnames: string[] | null;
  rules: RuleConfig[];
}

/** One rule of a route. */
export interface RuleConfig {
  /** 1 or more; the rule takes a request that meets any of them. */
  matches: MatchConfig[];
  /** 0: no limit. */
  requestTimeoutMs: number;
  /** 0: no limit. */
  backendRequestTimeoutMs: number;
  /** 1 or more, with a sum of weights above 0. */
  backendRefs: BackendRefConfig[];
}

/** One condition. */
export interface MatchConfig {
  path: { type: 'Exact' | 'PathPrefix'; value: string };
}

/** A backend and its share. */
export interface BackendRefConfig {
  name: string;
  /** 0 to 1,000,000. */
  weight: number;
}

/** One backend. */
export interface BackendConfig {
  name: string;
  endpoints: EndpointConfig[];
  protocol: 'http/1.1';
  policy: 'RoundRobin';
  connectTimeoutMs: number;
  idleTimeoutMs: number;
  /** Per endpoint and worker. */
  idleConnectionsMax: number;
  /** 0: no limit. */
  requestsPerConnectionMax: number;
}

/** One endpoint as configured; a DNS name may stand for several addresses. */
export interface EndpointConfig {
  /** `host:port` as written. */
  address: string;
  /** IP address without brackets, or lower-case DNS name. */
  host: string;
  port: number;
  /** Whether `host` is an IP address, so that nothing needs resolving. */
  isIp: boolean;
  /** 1 to 65535. */
  weight: number;
}
