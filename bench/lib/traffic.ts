// Traffic features as parts of Portcullis' configuration: what they cost when they do nothing, and when
// they work. Compression is not here, since other proxies are asked for it too (ProxyOptions.gzipLevel).

/** A set of features. */
export type TrafficSet =
  | 'idle'
  | 'rate-limit'
  | 'rate-limit-header'
  | 'rate-limit-jwt'
  | 'headers'
  | 'cors'
  | 'retries'
  | 'breaker'
  | 'outlier'
  | 'hedge'
  | 'adaptive'
  | 'session'
  | 'session-renewed'
  | 'fault-never'
  | 'fault-delay'
  | 'fault-abort'
  | 'recorder'
  | 'mirror'
  | 'mirror-elsewhere';

/** Where the features stand in the configuration: lines at the top, keys of the backend, keys of the rule. */
export interface TrafficConfig {
  top: string[];
  backend: string;
  rule: string;
}

/** Request field that says who is asking, for `rate-limit-header`. */
export const KEY_FIELD = 'X-Api-Key';
/** Request field that faults ask for (with the value `1`), so that the checks before measuring meet none. */
export const FAULT_FIELD = 'X-Fault';
/** The origin that `cors` allows. */
export const ALLOWED_ORIGIN = 'https://shop.example.com';
/** Cookies of `session` and `session-renewed`. */
export const SESSION_COOKIES = { session: 'bench-session', 'session-renewed': 'bench-renewed' } as const;

/** Name of the backend that only gets what nobody waits for, for `mirror-elsewhere`. */
export const BYSTANDER = 'bystander';

/** The configuration of a set. */
export function trafficConfig(set: TrafficSet): TrafficConfig {
  return { top: [], backend: '', rule: '', ...configs[set] };
}

const circuitBreaker = 'circuitBreaker: {maxConnections: 10000, maxPendingRequests: 10000, maxRequests: 10000}';
const modifier = '{set: [{name: x-one, value: a}, {name: x-two, value: b}], remove: [x-three]}';

const configs: Record<TrafficSet, Partial<TrafficConfig>> = {
  idle: {
    backend: `, healthCheck: {type: TCP, interval: 5s}, outlierDetection: {consecutive5xx: 5}, ${circuitBreaker}`,
    rule:
      ', timeouts: {request: 30s}, retry: {attempts: 2, codes: [503], conditions: [connect-failure, reset]}' +
      ', filters: [{type: CORS, cors: {allowOrigins: ["https://example.com"]}}' +
      ', {type: FaultInjection, faultInjection: {abort: {statusCode: 503, percent: 0.001}, headers: [{name: x-fault, value: "1"}]}}' +
      ', {type: Compression, compression: {}}, {type: RequestMirror, requestMirror: {backendRef: {name: b}, percent: 0}}]',
  },
  'rate-limit': { rule: rateLimit('sourceAddress') },
  'rate-limit-header': { rule: rateLimit(`{header: ${KEY_FIELD}}`) },
  'rate-limit-jwt': { rule: rateLimit('{jwtClaim: sub}') },
  headers: {
    rule:
      `, filters: [{type: RequestHeaderModifier, requestHeaderModifier: ${modifier}}` +
      `, {type: ResponseHeaderModifier, responseHeaderModifier: ${modifier}}]`,
  },
  cors: {
    rule:
      `, filters: [{type: CORS, cors: {allowOrigins: ["https://example.com", "${ALLOWED_ORIGIN}"]` +
      ', allowMethods: [GET, PUT], allowHeaders: [authorization], exposeHeaders: [x-total], allowCredentials: true}}]',
  },
  retries: {
    backend: `, ${circuitBreaker}`,
    rule: ', retry: {attempts: 2, codes: [503], conditions: [connect-failure, reset]}',
  },
  breaker: { backend: `, ${circuitBreaker}` },
  outlier: {
    backend:
      `, ${circuitBreaker}, outlierDetection: {consecutive5xx: 5, consecutiveGatewayFailures: 5` +
      ', interval: 1s, successRate: {}, failurePercentage: {}}',
  },
  hedge: { rule: ', hedge: {quantile: 0.95}' },
  // More than the load has connections, or requests would be refused while the least latency is measured.
  adaptive: { backend: ', adaptiveConcurrency: {minLimit: 200}' },
  session: { rule: session(SESSION_COOKIES.session, '') },
  'session-renewed': { rule: session(SESSION_COOKIES['session-renewed'], ', idleTimeout: 1h') },
  // One in a million: every request draws its lot, and about none is hit.
  'fault-never': { rule: fault('abort: {statusCode: 503, percent: 0}, delay: {duration: 1ms, percent: 0.0001}') },
  'fault-delay': { rule: fault('delay: {duration: 5ms, percent: 1}') },
  // 200, since wrk takes any status from 400 on for an error; the gateway does the same work for it.
  'fault-abort': { rule: fault('abort: {statusCode: 200, percent: 10}') },
  recorder: { top: ['recorder: {}'] },
  mirror: { rule: mirror('b') },
  'mirror-elsewhere': { rule: mirror(BYSTANDER) },
};

function mirror(backend: string): string {
  return `, filters: [{type: RequestMirror, requestMirror: {backendRef: {name: ${backend}}}}]`;
}

function rateLimit(key: string): string {
  return `, rateLimits: [{name: per-client, requests: 1000000, key: [${key}], headers: false}]`;
}

function session(name: string, keys: string): string {
  return `, sessionPersistence: {sessionName: ${name}, secret: of-the-benchmark${keys}}`;
}

function fault(keys: string): string {
  const headers = `headers: [{name: ${FAULT_FIELD}, value: "1"}]`;
  return `, filters: [{type: FaultInjection, faultInjection: {${keys}, ${headers}}}]`;
}
