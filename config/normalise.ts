// From the configuration as written to the one the program uses: defaults, units, absolute paths.
//
// Control thread. Runs only on input that passed validation and semantic checks, so nothing here fails.
// Invariant: defaults come from the schema and from nowhere else.

import { dirname, resolve } from 'node:path';
import type { AdminConfig, BackendConfig, Config, ListenerConfig, RouteConfig, RuleConfig } from './config.ts';
import { canonicalHostname, listenAddress, parseAddress } from './names.ts';
import { type ConfigInput, configSchema } from './schema.ts';
import { nodeOf, type SchemaNode } from './schema-builder.ts';
import { parseDurationMs, parseSizeBytes } from './units.ts';

type BackendInput = ConfigInput['backends'][number];
type ListenerInput = ConfigInput['listeners'][number];
type RouteInput = ConfigInput['routes'][number];
type RuleInput = RouteInput['rules'][number];

/** The normalised configuration of a valid `input` that was read from `file`. Changes `input`. */
export function normalise(input: ConfigInput, file: string): Config {
  fillDefaults(nodeOf(configSchema), input);
  const path = resolve(file);
  const limits = input.limits!;
  const timeouts = input.timeouts!;
  const headers = input.headers!;
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
      tunnelIdleMs: durationMs(timeouts.tunnelIdle!),
    },
    listeners: input.listeners.map(listenerConfig),
    routes: input.routes.map(routeConfig),
    backends: input.backends.map(backendConfig),
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

function listenerConfig(input: ListenerInput): ListenerConfig {
  const { host, port } = listenAddress(input.address);
  return { name: input.name, address: input.address, host, port, allowConnect: input.allowConnect! };
}

function routeConfig(input: RouteInput): RouteConfig {
  return {
    name: input.name,
    listeners: input.listeners ?? null,
    hostnames: input.hostnames?.map(canonicalHostname) ?? null,
    rules: input.rules.map(ruleConfig),
  };
}

function ruleConfig(input: RuleInput): RuleConfig {
  const matches = input.matches!.length > 0 ? input.matches! : [{ path: { type: 'PathPrefix', value: '/' } } as const];
  return {
    matches: matches.map((match) => ({ path: { type: match.path!.type!, value: match.path!.value! } })),
    requestTimeoutMs: durationMs(input.timeouts!.request!),
    backendRequestTimeoutMs: durationMs(input.timeouts!.backendRequest!),
    backendRefs: input.backendRefs.map((ref) => ({ name: ref.name, weight: ref.weight! })),
  };
}

function backendConfig(input: BackendInput): BackendConfig {
  return {
    name: input.name,
    endpoints: input.endpoints.map((endpoint) => {
      const address = typeof endpoint === 'string' ? endpoint : endpoint.address;
      const parsed = parseAddress(address);
      if (typeof parsed === 'string') throw new Error(`address "${address}" ${parsed}`);
      return { address, ...parsed, weight: typeof endpoint === 'string' ? 1 : endpoint.weight! };
    }),
    protocol: input.protocol!,
    policy: input.loadBalancer!.policy!,
    connectTimeoutMs: durationMs(input.connectTimeout!),
    idleTimeoutMs: durationMs(input.idleTimeout!),
    idleConnectionsMax: input.maxIdleConnections!,
    requestsPerConnectionMax: input.maxRequestsPerConnection!,
  };
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
