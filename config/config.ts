// The configuration after validation: defaults filled in, durations in milliseconds, sizes in bytes.
//
// Made by load.ts, read by compile.ts and by the control thread. Plain data, structured-cloneable,
// never changed after loading. Names follow core/workers/snapshot.ts. 0 means "no limit" where noted.

import type { ListenerMeshSettings, MeshSettings, OriginalDestinationScope } from '../core/workers/mesh-settings.ts';
import type {
  BackendPolicySettings,
  EndpointPolicySettings,
  RefPolicySettings,
  RulePolicySettings,
} from '../core/workers/policies.ts';
import type { MatchConditionsConfig } from './match-normalise.ts';

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
  /** Recorder of requests; null: none. */
  recorder: RecorderConfig | null;
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
  http2: Http2Config;
  /** Account for automatic certificates; null: none. */
  acme: AcmeConfig | null;
  dns: DnsConfig;
  /** Where global rate limits are counted; null: there are none. */
  redis: RedisConfig | null;
  overload: OverloadConfig;
  listeners: ListenerConfig[];
  /** Routes of HTTP requests. */
  routes: RouteConfig[];
  /** Routes of connections: kinds TCP and TLS. */
  streamRoutes: StreamRouteConfig[];
  backends: BackendConfig[];
  /** What a node proxy of the mesh adds (made by mesh-agent/node, never read from YAML); absent: this is a gateway. */
  mesh?: MeshConfig;
}

/** The mesh as a node proxy configures it: like the settings of the packet core, with names instead of indexes. */
export interface MeshConfig
  extends Omit<MeshSettings, 'counters' | 'policyNumbers' | 'destinations' | 'otherListener' | 'inbound'> {
  destinations: ReadonlyMap<string, { listener: string; identity: string | null }>;
  /** Name of a virtual listener; null: refused. */
  otherListener: string | null;
  /** Names of virtual listeners. */
  inbound: { auto: string; http: string; tcp: string };
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

/** Recorder of requests. */
export interface RecorderConfig {
  /** Over all workers. */
  bytes: number;
  maxAgeMs: number;
  /** Lower case, each once. */
  redactHeaders: string[];
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
  tlsHandshakeMs: number;
  /** 0: no limit. */
  tunnelIdleMs: number;
}

/** HTTP/2 towards clients. */
export interface Http2Config {
  concurrentStreamsMax: number;
  streamWindowBytes: number;
  connectionWindowBytes: number;
  resetsPerSecondMax: number;
  controlFramesPerSecondMax: number;
}

/** Thresholds of overload, in percent; 0: not watched. */
export interface OverloadConfig {
  descriptors: number;
  connections: number;
  buffers: number;
  memory: number;
  /** 0: not watched. */
  loopLagMs: number;
}

/** A Redis server. */
export interface RedisConfig {
  /** As written. */
  address: string;
  /** IP address or DNS name. */
  host: string;
  port: number;
  /** Unix socket that leads there instead, of a proxy whose own connections are captured; absent: there is none. */
  relay?: string;
  /** Null: the default user. */
  username: string | null;
  /** Null: none. */
  password: string | null;
  database: number;
  /** Null: no TLS. `caFile` null: the authorities of the system; `serverName` empty: the address itself. */
  tls: { serverName: string; caFile: string | null } | null;
  /** Time that an answer may take. */
  timeoutMs: number;
  /** What decides without one. */
  failure: 'open' | 'closed' | 'local';
  keyPrefix: string;
}

/** Account at a certificate authority (RFC 8555). */
export interface AcmeConfig {
  /** URL. */
  directory: string;
  /** Null: none is given to the authority. */
  email: string | null;
  /** Absolute path of a directory that may not exist yet. */
  storage: string;
  /** External account binding; null: none. */
  externalAccount: { keyId: string; hmacKey: string } | null;
  /** Authorities to trust when talking to the directory, absolute path; null: the system's. */
  caFile: string | null;
}

/** How names of endpoints are looked up. */
export interface DnsConfig {
  /** `ip:port`; empty: the servers of the system, and its other sources of names. */
  servers: string[];
  timeoutMs: number;
  ttlMinMs: number;
  ttlMaxMs: number;
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
  /** In order of preference; `tcp` stands alone. */
  protocols: ListenerProtocol[];
  /** Null: no TLS. */
  tls: ListenerTlsConfig | null;
  /** Whether every connection must begin with a PROXY protocol header. */
  proxyProtocol: boolean;
  /** Null: requests are served. */
  redirectToHttps: { port: number; status: number } | null;
  allowConnect: boolean;
  /** Where tunnels lead that end here, by port (0: any other); null: CONNECT is not taken for one. */
  tunnels: { port: number; listener: string }[] | null;
  /** Listeners of a node proxy: what it is there. TLS of role `tunnels` comes from its workload. */
  mesh?: ListenerMeshSettings;
}

/** What clients may speak. */
export type ListenerProtocol = 'http/1.1' | 'h2' | 'h2c' | 'tcp';

/** A TLS version. */
export type TlsVersion = '1.2' | '1.3';

/** TLS of a listener. */
export interface ListenerTlsConfig {
  /** TLS is left to the backend; then there are no certificates. */
  passthrough: boolean;
  certificates: CertificateConfig[];
  minVersion: TlsVersion;
  maxVersion: TlsVersion;
  /** OpenSSL's names; empty: the defaults. */
  ciphers: string[];
  cipherSuites: string[];
  /** Null: clients are not asked for a certificate. */
  clientValidation: { caFile: string; mode: 'required' | 'optional' } | null;
  sessionTickets: boolean;
  /** Null: no automatic certificates. */
  acme: ListenerAcmeConfig | null;
}

/** A certificate of a listener. */
export interface CertificateConfig extends CertificateFiles {
  /** Lower case; null: the names in the certificate. */
  hostnames: string[] | null;
}

/** A certificate and its key, absolute paths. */
export interface CertificateFiles {
  certificateFile: string;
  keyFile: string;
}

/** Automatic certificates of a listener. */
export interface ListenerAcmeConfig {
  /** Lower case, no wildcards; 1 or more. */
  hostnames: string[];
  challenge: 'http-01' | 'tls-alpn-01';
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

/** A route of connections. */
export interface StreamRouteConfig {
  name: string;
  kind: 'TCP' | 'TLS';
  /** Names of listeners that suit the kind: as written, or all of them. */
  listeners: string[];
  /** Names in SNI, lower case; `*.` starts a wildcard. Empty: any, and none. */
  hostnames: string[];
  backendRefs: BackendRefConfig[];
}

/** One rule of a route. */
export interface RuleConfig {
  /** 1 or more; the rule takes a request that meets any of them. */
  matches: MatchConfig[];
  /** 0: no limit. */
  requestTimeoutMs: number;
  /** 0: no limit. */
  backendRequestTimeoutMs: number;
  /** gRPC-Web requests are translated to gRPC (filter GrpcWeb); absent: no. */
  grpcWeb: boolean;
  /** What else is done to requests; null: nothing. */
  policy: RulePolicySettings | null;
  /** 1 or more, with a sum of weights above 0. */
  backendRefs: BackendRefConfig[];
}

/** One match: all of it must hold. */
export interface MatchConfig {
  /** Matches of gRPC have the path of their service and method here. */
  path: { type: 'Exact' | 'PathPrefix' | 'RegularExpression'; value: string };
  /** What else is asked of a request; null or absent: nothing. */
  conditions?: MatchConditionsConfig | null;
}

/** A backend and its share. */
export interface BackendRefConfig {
  name: string;
  /** 0 to 1,000,000. */
  weight: number;
  /** What is done to requests that it gets; null: nothing. */
  policy: RefPolicySettings | null;
}

/** One backend. */
export interface BackendConfig {
  name: string;
  /** Without those of `endpointsFile`; may be empty. */
  endpoints: EndpointConfig[];
  /** Absolute path of a file with further endpoints; null: none. */
  endpointsFile: string | null;
  /** Active health checks; null: none. */
  healthCheck: HealthCheckConfig | null;
  protocol: 'http/1.1' | 'h2' | 'h2c';
  /** Null: no TLS. */
  tls: BackendTlsConfig | null;
  /** Tunnels lead to the endpoints, with `tls`; null: they are reached themselves. */
  tunnel: { port: number } | null;
  /** Version of the PROXY protocol header; 0: none. */
  proxyProtocol: 0 | 1 | 2;
  http2: BackendHttp2Config;
  policy: BackendPolicySettings;
  connectTimeoutMs: number;
  idleTimeoutMs: number;
  /** Per endpoint and worker. */
  idleConnectionsMax: number;
  /** 0: no limit. */
  requestsPerConnectionMax: number;
  /** Node proxies: it has no endpoints of its own, and connections go where the client wanted to. */
  originalDestination?: OriginalDestinationScope;
  /** Node proxies: HTTP/2 is spoken with it when the client speaks that, whatever `protocol` says. */
  sameProtocol?: boolean;
}

/** Active health checks of a backend. */
export interface HealthCheckConfig {
  type: 'HTTP' | 'HTTPS' | 'TCP' | 'GRPC';
  path: string;
  /** Empty: from the endpoint's address. */
  host: string;
  method: string;
  headers: { name: string; value: string }[];
  /** First and last status of each range. */
  expectedStatuses: [first: number, last: number][];
  /** Empty: the whole server. */
  grpcService: string;
  /** 0: the endpoint's own. */
  port: number;
  intervalMs: number;
  timeoutMs: number;
  /** Share of the interval in percent. */
  jitterPercent: number;
  unhealthyThreshold: number;
  healthyThreshold: number;
}

/** TLS towards a backend. */
export interface BackendTlsConfig {
  /** Empty: no SNI; then the certificate is not verified, or by `subjectAltNames`. */
  serverName: string;
  /** Null: `serverName` counts. */
  subjectAltNames: string[] | null;
  /** Absolute path; null: the authorities of the system. */
  caFile: string | null;
  /** Shown to the backend; null: none. */
  certificate: CertificateFiles | null;
  /** False: any certificate is taken. */
  verify: boolean;
  minVersion: TlsVersion;
  maxVersion: TlsVersion;
}

/** HTTP/2 towards a backend. */
export interface BackendHttp2Config {
  streamsPerConnectionMax: number;
  /** Per endpoint and worker. */
  connectionsMax: number;
  /** 0: never. */
  pingIntervalMs: number;
  pingTimeoutMs: number;
}

/** One endpoint as configured; a DNS name may stand for several addresses. */
export interface EndpointConfig {
  /** `host:port` as written. */
  address: string;
  /** IP address without brackets, or lower-case DNS name. */
  host: string;
  /** 0 for SRV records. */
  port: number;
  /** Whether `host` is an IP address, so that nothing needs resolving. */
  isIp: boolean;
  /** Whether `host` is the name of SRV records. */
  srv: boolean;
  /** 1 to 65535. */
  weight: number;
  policy: EndpointPolicySettings;
  /** Node proxies: it is reached through a tunnel, whose other end must have this SPIFFE identity. */
  identity?: string;
}
