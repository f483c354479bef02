// From the configuration as written to the one the program uses: defaults, units, absolute paths.
//
// Control thread. Runs only on input that passed validation and semantic checks, so nothing here fails.
// Invariant: defaults come from the schema and from nowhere else.

import { dirname, resolve } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import type { RuleFilterSettings } from '../core/workers/filter-settings.ts';
import {
  type BackendPolicySettings,
  type EndpointPolicySettings,
  noBackendPolicy,
  noEndpointPolicy,
  noRefPolicy,
  noRulePolicy,
  type RefPolicySettings,
  type RulePolicySettings,
} from '../core/workers/policies.ts';
import { adaptiveSettings } from './adaptive-schema.ts';
import { balancerSettings, endpointPlaceSettings, sessionSettings, subsetSettings } from './balancer-normalise.ts';
import { breakerSettings } from './breaker-normalise.ts';
import { compressionSettings, mirrorSettings } from './compression-normalise.ts';
import type {
  AcmeConfig,
  AdminConfig,
  BackendConfig,
  BackendRefConfig,
  Config,
  EndpointConfig,
  ListenerConfig,
  RouteConfig,
  RuleConfig,
  StreamRouteConfig,
} from './config.ts';
import { dnsConfig, endpointPlace } from './endpoint-normalise.ts';
import { endpointFileSchema } from './endpoint-schema.ts';
import { refFilters, ruleFilters } from './filter-normalise.ts';
import { healthCheckConfig, outlierSettings } from './health-normalise.ts';
import { matchConfig } from './match-normalise.ts';
import { canonicalHostname, listenAddress } from './names.ts';
import { overloadConfig, rateLimits, redisConfig } from './rate-limit-normalise.ts';
import { recorderConfig } from './recorder-schema.ts';
import { hedgeSettings, priorityNumber, retryBudgetSettings, retrySettings } from './retry-normalise.ts';
import { type ConfigInput, configSchema } from './schema.ts';
import { nodeOf, type SchemaNode } from './schema-builder.ts';
import { backendTlsConfig, listenerProtocols, listenerTlsConfig } from './tls-normalise.ts';
import { parseDurationMs, parseSizeBytes } from './units.ts';

type BackendInput = ConfigInput['backends'][number];
type EndpointInput = NonNullable<BackendInput['endpoints']>[number];
type ListenerInput = ConfigInput['listeners'][number];
type RouteInput = ConfigInput['routes'][number];
type RuleInput = RouteInput['rules'][number];
type RefInput = NonNullable<RuleInput['backendRefs']>[number];

/** The normalised configuration of a valid `input` that was read from `file`. Changes `input`. */
export function normalise(input: ConfigInput, file: string): Config {
  fillDefaults(nodeOf(configSchema), input);
  const path = resolve(file);
  const limits = input.limits!;
  const timeouts = input.timeouts!;
  const headers = input.headers!;
  const http2 = input.http2!;
  const fileOf = (name: string): string => filePath(name, path);
  const listeners = input.listeners.map((listener) => listenerConfig(listener, fileOf));
  return {
    file: path,
    workers: input.workers!,
    ioUring: input.ioUring!,
    admin: adminConfig(input.admin!),
    log: { level: input.log!.level! },
    accessLog:
      input.accessLog === undefined
        ? null
        : { path: filePath(input.accessLog.path, path), format: input.accessLog.format! },
    failureRecords: { slowThresholdMs: durationMs(input.failureRecords!.slowThreshold!) },
    recorder: recorderConfig(input.recorder),
    drainTimeoutMs: durationMs(input.drainTimeout!),
    responseReasonHeader: input.responseReasonHeader ?? '',
    headers: {
      requestId: headers.requestId!,
      forwarded: headers.forwarded!,
      via: headers.via ?? '',
      server: headers.server === 'passthrough' ? '' : headers.server!,
    },
    trustedHops: input.trustedHops!,
    upgrades: [...new Set(input.upgrades!.map((protocol) => protocol.toLowerCase()))],
    limits: {
      requestHeadBytesMax: sizeBytes(limits.maxRequestHeadSize!),
      responseHeadBytesMax: sizeBytes(limits.maxResponseHeadSize!),
      headerCountMax: limits.maxHeaders!,
      uriBytesMax: sizeBytes(limits.maxUriLength!),
      requestBodyBytesMax: sizeBytes(limits.maxRequestBodySize!),
      requestsPerConnectionMax: limits.maxRequestsPerConnection!,
      connectionsMax: limits.maxConnections!,
      bufferBytes: sizeBytes(limits.bufferMemory!),
    },
    timeouts: {
      requestHeadMs: durationMs(timeouts.requestHead!),
      idleMs: durationMs(timeouts.idle!),
      streamIdleMs: durationMs(timeouts.streamIdle!),
      tlsHandshakeMs: durationMs(timeouts.tlsHandshake!),
      tunnelIdleMs: durationMs(timeouts.tunnelIdle!),
    },
    http2: {
      concurrentStreamsMax: http2.maxConcurrentStreams!,
      streamWindowBytes: sizeBytes(http2.streamWindow!),
      connectionWindowBytes: sizeBytes(http2.connectionWindow!),
      resetsPerSecondMax: http2.maxResetsPerSecond!,
      controlFramesPerSecondMax: http2.maxControlFramesPerSecond!,
    },
    acme: input.acme === undefined ? null : acmeConfig(input.acme, fileOf),
    dns: dnsConfig(input.dns!),
    redis: input.redis === undefined ? null : redisConfig(input.redis, fileOf),
    overload: overloadConfig(input.overload!),
    listeners,
    routes: input.routes.filter(({ kind }) => kind === 'HTTP').map((route) => routeConfig(route, fileOf)),
    streamRoutes: input.routes
      .filter(({ kind }) => kind !== 'HTTP')
      .map((route) => streamRouteConfig(route, listeners)),
    backends: input.backends.map((backend) => backendConfig(backend, fileOf, input.zone ?? '')),
  };
}

/**
 * Puts the default of every absent key of `schema` into `value`, in place. A mapping that is a
 * branch of a union (`admin`, an endpoint) gets the defaults of that branch.
 */
function fillDefaults(schema: SchemaNode, value: unknown): void {
  if (Array.isArray(value)) {
    for (const item of value) fillDefaults(schema.items!, item);
    return;
  }
  if (typeof value !== 'object' || value === null) return;
  const { properties } = schema.anyOf?.find((branch) => branch.properties !== undefined) ?? schema;
  const object = value as Record<string, unknown>;
  for (const key in properties ?? {}) {
    const property = properties![key]!;
    // Every use gets its own copy: defaults of mappings are filled further.
    if (object[key] === undefined && property.default !== undefined) object[key] = structuredClone(property.default);
    if (typeof object[key] === 'object') fillDefaults(property, object[key]);
  }
}

function adminConfig(input: NonNullable<ConfigInput['admin']>): AdminConfig | null {
  if (input === 'off') return null;
  const { host, port } = listenAddress(input.address!);
  return { address: input.address!, host, port };
}

function acmeConfig(input: NonNullable<ConfigInput['acme']>, fileOf: (name: string) => string): AcmeConfig {
  return {
    directory: input.directory!,
    email: input.email ?? null,
    storage: fileOf(input.storage),
    externalAccount: input.externalAccount ?? null,
    caFile: input.caCertificates === undefined ? null : fileOf(input.caCertificates),
  };
}

function listenerConfig(input: ListenerInput, fileOf: (name: string) => string): ListenerConfig {
  const { host, port } = listenAddress(input.address);
  const redirect = input.redirectToHttps!;
  return {
    name: input.name,
    address: input.address,
    host,
    port,
    protocols: listenerProtocols(input),
    tls: input.tls === undefined ? null : listenerTlsConfig(input.tls, fileOf),
    proxyProtocol: input.proxyProtocol === 'required',
    redirectToHttps: typeof redirect === 'object' ? redirectConfig(redirect) : redirect ? redirectConfig({}) : null,
    allowConnect: input.allowConnect!,
    tunnels: input.tunnels?.map(({ port = 0, listener }) => ({ port, listener })) ?? null,
  };
}

/** `true` stands for a mapping without keys, whose defaults have not been filled in. */
function redirectConfig(input: { port?: number; status?: number }): { port: number; status: number } {
  const branches = nodeOf(configSchema).properties!.listeners!.items!.properties!.redirectToHttps!.anyOf!;
  const defaults = branches.find(({ properties }) => properties !== undefined)!.properties!;
  return {
    port: input.port ?? (defaults.port!.default as number),
    status: input.status ?? (defaults.status!.default as number),
  };
}

function routeConfig(input: RouteInput, fileOf: (name: string) => string): RouteConfig {
  return {
    name: input.name,
    listeners: input.listeners ?? null,
    hostnames: input.hostnames?.map(canonicalHostname) ?? null,
    rules: input.rules.map((rule, index) => ruleConfig(rule, fileOf, `${input.name}/${index}`)),
  };
}

/** The first rule is the only one. Listeners left out are all that suit the kind. */
function streamRouteConfig(input: RouteInput, listeners: readonly ListenerConfig[]): StreamRouteConfig {
  const kind = input.kind as 'TCP' | 'TLS';
  const passthrough = kind === 'TLS';
  const suitable = listeners.filter(
    ({ protocols, tls }) => protocols[0] === 'tcp' && (tls?.passthrough === true) === passthrough,
  );
  return {
    name: input.name,
    kind,
    listeners: input.listeners ?? suitable.map(({ name }) => name),
    hostnames: input.hostnames?.map(canonicalHostname) ?? [],
    backendRefs: (input.rules[0]!.backendRefs ?? []).map((ref) => refConfig(ref, null, [])),
  };
}

/** `place` names the rule in the file. */
function ruleConfig(input: RuleInput, fileOf: (name: string) => string, place: string): RuleConfig {
  const matches = input.matches!.length > 0 ? input.matches! : [{ path: { type: 'PathPrefix', value: '/' } } as const];
  const filters = ruleFilters(input.filters!, input.matches!, fileOf);
  return {
    matches: matches.map(matchConfig),
    requestTimeoutMs: durationMs(input.timeouts!.request!),
    backendRequestTimeoutMs: durationMs(input.timeouts!.backendRequest!),
    grpcWeb: input.filters!.some(({ type }) => type === 'GrpcWeb'),
    policy: rulePolicy(input, filters, place),
    backendRefs: (input.backendRefs ?? []).map((ref) => refConfig(ref, filters, input.matches!)),
  };
}

function refConfig(
  input: RefInput,
  filters: RuleFilterSettings | null,
  matches: NonNullable<RuleInput['matches']>,
): BackendRefConfig {
  return { name: input.name, weight: input.weight!, policy: refPolicy(input, filters, matches) };
}

/** The policy of a rule, or null when it says nothing beyond the defaults. */
function rulePolicy(input: RuleInput, filters: RuleFilterSettings | null, place: string): RulePolicySettings | null {
  const policy: RulePolicySettings = {
    retry: retrySettings(input.retry),
    hedge: hedgeSettings(input.hedge, place),
    priority: priorityNumber(input.priority!),
    filters,
    sessionPersistence: sessionSettings(input, place),
    streamIdleTimeoutMs: durationMs(input.timeouts!.streamIdle!),
    rateLimits: rateLimits(input.rateLimits!),
    compression: compressionSettings(input.filters!),
    mirrors: mirrorSettings(input.filters!),
  };
  return isDeepStrictEqual(policy, noRulePolicy) ? null : policy;
}

/** The policy of a backend reference, or null when it says nothing beyond the defaults. */
function refPolicy(
  input: RefInput,
  filters: RuleFilterSettings | null,
  matches: NonNullable<RuleInput['matches']>,
): RefPolicySettings | null {
  const policy: RefPolicySettings = {
    subset: subsetSettings(input.subset),
    filters: refFilters(input.filters ?? [], filters, matches),
  };
  return isDeepStrictEqual(policy, noRefPolicy) ? null : policy;
}

/** The endpoints of a valid list that stands in a file of its own. Changes `input`. */
export function normaliseEndpoints(input: EndpointInput[]): EndpointConfig[] {
  fillDefaults(nodeOf(endpointFileSchema), input);
  return input.map(endpointConfig);
}

function endpointConfig(endpoint: EndpointInput): EndpointConfig {
  const address = typeof endpoint === 'string' ? endpoint : endpoint.address;
  const weight = typeof endpoint === 'string' ? 1 : endpoint.weight!;
  return { address, ...endpointPlace(address), weight, policy: endpointPolicy(endpoint) };
}

function backendConfig(input: BackendInput, fileOf: (name: string) => string, zone: string): BackendConfig {
  const endpoints = (input.endpoints ?? []).map(endpointConfig);
  const http2 = input.http2!;
  return {
    name: input.name,
    endpoints,
    endpointsFile: input.endpointsFile === undefined ? null : fileOf(input.endpointsFile),
    healthCheck: input.healthCheck === undefined ? null : healthCheckConfig(input.healthCheck, input.tls !== undefined),
    protocol: input.protocol!,
    tls:
      input.tls === undefined
        ? null
        : backendTlsConfig(
            input.tls,
            endpoints.filter(({ srv }) => !srv),
            fileOf,
          ),
    tunnel: input.tunnel === undefined ? null : { port: input.tunnel.port! },
    proxyProtocol: input.proxyProtocol === undefined ? 0 : input.proxyProtocol === 'v1' ? 1 : 2,
    http2: {
      streamsPerConnectionMax: http2.maxConcurrentStreams!,
      connectionsMax: http2.maxConnections!,
      pingIntervalMs: durationMs(http2.pingInterval!),
      pingTimeoutMs: durationMs(http2.pingTimeout!),
    },
    policy: backendPolicy(input, zone),
    connectTimeoutMs: durationMs(input.connectTimeout!),
    idleTimeoutMs: durationMs(input.idleTimeout!),
    idleConnectionsMax: input.maxIdleConnections!,
    requestsPerConnectionMax: input.maxRequestsPerConnection!,
  };
}

/** How a backend's requests are balanced, limited and judged. */
function backendPolicy(input: BackendInput, zone: string): BackendPolicySettings {
  return {
    ...noBackendPolicy,
    balancer: balancerSettings(input.loadBalancer!, zone),
    circuitBreaker: breakerSettings(input.circuitBreaker),
    adaptiveConcurrency: adaptiveSettings(input.adaptiveConcurrency),
    retryBudget: retryBudgetSettings(input.retryBudget!),
    outlierDetection: input.outlierDetection === undefined ? null : outlierSettings(input.outlierDetection),
  };
}

/** What is known of an endpoint besides its address and weight. */
function endpointPolicy(input: EndpointInput): EndpointPolicySettings {
  if (typeof input === 'string') return noEndpointPolicy;
  return { ...noEndpointPolicy, place: endpointPlaceSettings(input), draining: input.draining! };
}

function durationMs(value: string | number): number {
  return parseDurationMs(String(value))!;
}

function sizeBytes(value: string | number): number {
  return parseSizeBytes(String(value))!;
}

function filePath(path: string, configFile: string): string {
  return path === '-' ? path : resolve(dirname(configFile), path);
}
