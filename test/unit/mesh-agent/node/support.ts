// Configurations of a node proxy for tests.

import type { RedisConfig } from '../../../../config/config.ts';
import { parseAddress } from '../../../../config/names.ts';
import type { NodeConfig } from '../../../../mesh-agent/node/node-config.ts';

/** That of node-a, with nothing special about it. */
export function nodeConfig(more: Partial<NodeConfig> = {}): NodeConfig {
  return {
    ...{ file: '/etc/portcullis/node.yaml', trustDomain: 'cluster.local', node: 'node-a', sidecar: null },
    controlPlane: { address: 'control:15012', serverName: null, rootsFile: '/etc/portcullis/roots.pem' },
    token: { kind: 'join', file: '/etc/portcullis/token' },
    ...{ stateDirectory: '/var/lib/portcullis', mode: 'strict', egress: 'passthrough', capture: null },
    discovery: { scope: 'used', networks: [], idleTimeoutMs: 3_600_000 },
    limits: { connectionsMax: 0, connectionsPerSecondMax: 0, bufferPercentMax: 50 },
    redis: null,
    ...{ workers: 1, admin: null, logLevel: 'info', accessLog: null, drainTimeoutMs: 30_000 },
    ...more,
  };
}

/** Redis at an address, with nothing special about it. */
export function redisAt(address: string): RedisConfig {
  const { host, port } = parseAddress(address) as { host: string; port: number };
  return {
    ...{ address, host, port, username: null, password: null, database: 0, tls: null },
    ...{ timeoutMs: 50, failure: 'local', keyPrefix: 'portcullis:' },
  };
}
