// The configuration of a chaos run.

import { addressName, type ChaosNames, serviceName } from './names.ts';
import type { Backend, Redis } from './processes.ts';

/** Requests that a key of the limit `few` may make in an hour. */
export const FEW_REQUESTS = 5;

/** Field with the key of the limit `few`. */
export const KEY_FIELD = 'x-key';

/** What the gateway is told of. */
export interface Known {
  /** Backends with A records; others have SRV records. */
  byName: readonly Backend[];
  names: ChaosNames;
  redis: Redis | null;
}

/** The configuration; `generation` changes something that matters to nobody. */
export function configText({ byName, names, redis }: Known, accessLog: string, generation: number): string {
  const entries = [`srv:${serviceName}`, `${addressName}:${byName[0]!.port}`];
  const endpoints = entries.map((address, index) => {
    return `{address: "${address}", weight: ${index === generation % entries.length ? 2 : 1}}`;
  });
  const retried = `
        timeouts: {request: 5s, backendRequest: 300ms}
        retry: {attempts: 4, codes: [500, 502, 503, 504], conditions: [connect-failure, reset], backoff: 10ms}
        backendRefs: [{name: app}]`;
  const counted = `
      - matches: [{path: {value: /counted}}]
        rateLimits: [{name: all, global: true, requests: 1000000}]${retried}
      - matches: [{path: {value: /few}}]
        rateLimits: [{name: few, global: true, requests: ${FEW_REQUESTS}, period: 1h, key: [{header: ${KEY_FIELD}}]}]${retried}`;
  return `
workers: 2
admin: {address: "127.0.0.1:0"}
accessLog: {path: ${accessLog}}
responseReasonHeader: x-reason
dns: {servers: ["${names.address}"], timeout: 300ms, minTtl: 100ms}
${redis === null ? '' : `redis: {address: "127.0.0.1:${redis.port}", timeout: 100ms, failure: open}`}
listeners: [{name: http, address: "127.0.0.1:0"}]
routes:
  - name: chaos
    rules:
      - matches: [{path: {value: /safe}}]${retried}
      - matches: [{path: {value: /plain}}]
        timeouts: {request: 2s}
        backendRefs: [{name: app}]${redis === null ? '' : counted}
backends:
  - name: app
    endpoints: [${endpoints.join(', ')}]
    connectTimeout: 200ms
    loadBalancer: {policy: LeastRequest, panicThreshold: 20}
    healthCheck: {type: HTTP, path: /healthz, interval: 200ms, timeout: 100ms, unhealthyThreshold: 2, healthyThreshold: 1}
    outlierDetection: {consecutive5xx: 5, interval: 500ms, baseEjectionTime: 300ms, maxEjectionTime: 1s, maxEjectionPercent: 50, ramp: [25, 100], rampStep: 200ms}
    circuitBreaker: {maxConnections: 1000, maxPendingRequests: 1000, maxRetries: 1000}
`;
}
