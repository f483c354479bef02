// The configuration of the node proxy as the program uses it: absolute paths, every default filled in.
//
// Control thread of the node proxy.

import { isIP } from 'node:net';
import { hostname } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import type { AccessLogConfig, AdminConfig, LogLevel, RedisConfig } from '../../config/config.ts';
import type { Environment } from '../../config/env.ts';
import type { ConfigError } from '../../config/errors.ts';
import { loadValueFile } from '../../config/load.ts';
import { formatAddress, listenAddress, parseAddress } from '../../config/names.ts';
import { canonicalAddress } from '../../config/networks.ts';
import { normalise as normaliseGateway } from '../../config/normalise.ts';
import type { ConfigInput } from '../../config/schema.ts';
import { parseDurationMs } from '../../config/units.ts';
import type { CaptureInput } from '../capture/spec.ts';
import { isNamespaceName, isSubdomain } from '../identity/spiffe.ts';
import { NODE_ADMIN_DEFAULT } from './admin-address.ts';
import { REDIS_SOCKET, relayPath } from './control-relay.ts';
import { checkNode, type NodeInput } from './node-schema.ts';

/** A valid configuration. */
export interface NodeConfig {
  /** Absolute path of the file. */
  file: string;
  trustDomain: string;
  /** Name of the node; of a sidecar that of its workload, for people. */
  node: string;
  /** The one workload that it serves; null: it serves a node. */
  sidecar: SidecarConfig | null;
  controlPlane: {
    /** `host:port`. */
    address: string;
    /** Null: the host of the address. */
    serverName: string | null;
    rootsFile: string;
  };
  /** How this node proves who it is, before it has a certificate. */
  token: { kind: 'join' | 'serviceAccount'; file: string };
  stateDirectory: string;
  mode: 'strict' | 'permissive';
  egress: 'passthrough' | 'refuse';
  discovery: {
    /** What the node is told of the mesh: what its workloads use, or all of it. */
    scope: 'used' | 'all';
    /** Networks that workloads and services have their addresses from; empty: anything may be of the mesh. */
    networks: string[];
    /** Time without use after which something is not kept up to date any more; 0: it always is. */
    idleTimeoutMs: number;
  };
  /** Null: somebody else installs rules. */
  capture: (Pick<CaptureInput, ExclusionKey> & { failClosed: boolean }) | null;
  limits: {
    /** Of each workload, in each direction and per worker; 0: no limit. */
    connectionsMax: number;
    /** Of each workload, per worker; 0: no limit. */
    connectionsPerSecondMax: number;
    bufferPercentMax: number;
  };
  /** Where global rate limits are counted; null: on this node. */
  redis: RedisConfig | null;
  workers: number | 'auto';
  admin: AdminConfig | null;
  logLevel: LogLevel;
  accessLog: AccessLogConfig | null;
  drainTimeoutMs: number;
}

/** Which workload a sidecar serves. At least one of name and address is given. */
export interface SidecarConfig {
  namespace: string;
  name: string | null;
  /** In the form of `canonicalAddress`. */
  address: string | null;
  serviceAccount: string;
}

type ExclusionKey = 'excludeOutbound' | 'excludeOutboundPorts' | 'excludeInbound' | 'excludeInboundPorts';

/** Loads a configuration file: all of it, or everything that is wrong with it. */
export function loadNode(file: string, env: Environment): { config: NodeConfig } | { errors: ConfigError[] } {
  const loaded = loadValueFile(file, env, (value) => checkNode(value, file));
  if ('errors' in loaded) return loaded;
  const input = loaded.value as NodeInput;
  const sidecar = input.sidecar === undefined ? null : sidecarOf(input.sidecar, env);
  if (typeof sidecar === 'string') {
    const expected = 'it in `sidecar`, or in the environment';
    return { errors: [{ file, line: 0, column: 0, problem: sidecar, expected }] };
  }
  const config = normalise(input, sidecar, file);
  if (sidecar !== null || isSubdomain(config.node)) return { config };
  const problem = `the name of this host, ${JSON.stringify(config.node)}, cannot be that of a node`;
  return { errors: [{ file, line: 0, column: 0, problem, expected: 'a name in `node`' }] };
}

/** Keys whose change takes effect at once; all others wait for a restart. */
const RELOADED: ReadonlySet<keyof NodeConfig> = new Set([
  ...(['mode', 'egress', 'limits', 'redis', 'admin', 'logLevel', 'accessLog', 'drainTimeoutMs'] as const),
]);

/** The configuration after a reload of `after`, and the keys that wait for a restart. */
export function reloaded(before: NodeConfig, after: NodeConfig): { config: NodeConfig; waiting: string[] } {
  const keys = Object.keys(after) as (keyof NodeConfig)[];
  const changed = keys.filter((key) => JSON.stringify(before[key]) !== JSON.stringify(after[key]));
  const taken = Object.fromEntries(keys.filter((key) => RELOADED.has(key)).map((key) => [key, after[key]]));
  return { config: { ...before, ...taken }, waiting: changed.filter((key) => !RELOADED.has(key)) };
}

/** Which workload is meant; a text: why that cannot be told. */
function sidecarOf(input: NonNullable<NodeInput['sidecar']>, env: Environment): SidecarConfig | string {
  const given = (value: string | undefined, variable: string): string | null => value ?? (env[variable] || null);
  const namespace = given(input.namespace, 'POD_NAMESPACE');
  const name = given(input.name, 'POD_NAME');
  const address = given(input.address, 'POD_IP');
  const serviceAccount = given(input.serviceAccount, 'POD_SERVICE_ACCOUNT') ?? 'default';
  if (namespace === null) return 'a sidecar does not know the namespace of its workload (POD_NAMESPACE)';
  if (name === null && address === null)
    return 'a sidecar knows neither the name nor the address of its workload (POD_NAME, POD_IP)';
  if (!isNamespaceName(namespace)) return `${JSON.stringify(namespace)} cannot be the name of a namespace`;
  const wrong = [name, serviceAccount].find((text) => text !== null && !isSubdomain(text));
  if (wrong !== undefined) return `${JSON.stringify(wrong)} cannot be the name of a workload or service account`;
  if (address !== null && isIP(address) === 0) return `${JSON.stringify(address)} is not an IP address`;
  return { namespace, name, address: address === null ? null : canonicalAddress(address), serviceAccount };
}

function normalise(input: NodeInput, sidecar: SidecarConfig | null, file: string): NodeConfig {
  const absolute = (path: string): string => (path === '-' ? path : resolve(dirname(file), path));
  const { controlPlane, joinToken, serviceAccountToken, accessLog, capture = {}, admin = {} } = input;
  const address = parseAddress(controlPlane.address) as { host: string; port: number };
  return {
    file: resolve(file),
    trustDomain: input.trustDomain,
    node: sidecar === null ? (input.node ?? hostname().toLowerCase()) : workloadOf(sidecar),
    sidecar,
    controlPlane: {
      address: formatAddress(address.host, address.port),
      serverName: controlPlane.serverName ?? null,
      rootsFile: absolute(controlPlane.roots),
    },
    token:
      joinToken === undefined
        ? { kind: 'serviceAccount', file: absolute(serviceAccountToken!.file) }
        : { kind: 'join', file: absolute(joinToken.file) },
    stateDirectory: absolute(input.stateDirectory),
    mode: input.mode ?? 'strict',
    egress: input.egress ?? 'passthrough',
    discovery: {
      scope: input.discovery?.scope ?? 'used',
      networks: input.discovery?.networks ?? [],
      idleTimeoutMs: parseDurationMs(String(input.discovery?.idleTimeout ?? '1h'))!,
    },
    capture: capture === 'off' ? null : { ...capture, failClosed: capture.failClosed ?? true },
    limits: {
      connectionsMax: input.limits?.connections ?? 0,
      connectionsPerSecondMax: input.limits?.connectionsPerSecond ?? 0,
      bufferPercentMax: input.limits?.bufferPercent ?? 50,
    },
    redis: input.redis === undefined ? null : redisOf(input.redis, sidecar, absolute(input.stateDirectory), file),
    workers: input.workers ?? 'auto',
    admin: admin === 'off' ? null : adminConfig(admin.address ?? NODE_ADMIN_DEFAULT),
    logLevel: input.log?.level ?? 'info',
    accessLog: accessLog === undefined ? null : { path: absolute(accessLog.path), format: accessLog.format ?? 'json' },
    drainTimeoutMs: parseDurationMs(String(input.drainTimeout ?? '30s'))!,
  };
}

/** As the gateway has it: with its defaults, and paths relative to the file. */
function redisOf(
  redis: NonNullable<ConfigInput['redis']>,
  sidecar: SidecarConfig | null,
  stateDirectory: string,
  file: string,
): RedisConfig {
  const config = normaliseGateway({ listeners: [], routes: [], backends: [], redis } as ConfigInput, file).redis!;
  // What a sidecar connects to is captured with what its workload does.
  return sidecar === null ? config : { ...config, relay: relayPath(stateDirectory, REDIS_SOCKET) };
}

function workloadOf({ namespace, name, address }: SidecarConfig): string {
  return `${namespace}/${name ?? address}`;
}

function adminConfig(address: string): AdminConfig {
  const { host, port } = listenAddress(address);
  return { address, host, port };
}

/** Names of what is kept in the state directory. */
export function statePaths(directory: string): { certificates: string; trust: string; mesh: string } {
  return {
    certificates: join(directory, 'certificates'),
    trust: join(directory, 'trust.json'),
    mesh: join(directory, 'mesh.state'),
  };
}
