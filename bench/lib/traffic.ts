// Traffic features as parts of Portcullis' configuration: what they cost when they do nothing, and when
// they work.

/** A set of features. */
export type TrafficSet = 'idle' | 'rate-limit' | 'headers' | 'retries' | 'mirror';

/** Where the features stand in the configuration: lines at the top, keys of the backend, keys of the rule. */
export interface TrafficConfig {
  top: string[];
  backend: string;
  rule: string;
}

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
  'rate-limit': {
    rule: ', rateLimits: [{name: per-client, requests: 1000000, key: [sourceAddress], headers: false}]',
  },
  headers: {
    rule:
      `, filters: [{type: RequestHeaderModifier, requestHeaderModifier: ${modifier}}` +
      `, {type: ResponseHeaderModifier, responseHeaderModifier: ${modifier}}]`,
  },
  retries: {
    backend: `, ${circuitBreaker}`,
    rule: ', retry: {attempts: 2, codes: [503], conditions: [connect-failure, reset]}',
  },
  mirror: { rule: ', filters: [{type: RequestMirror, requestMirror: {backendRef: {name: b}}}]' },
};
