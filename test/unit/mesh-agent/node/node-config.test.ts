// Configurations of the node proxy: every case of test/data/node, with the exact errors, and what the good ones come
// to. Adding a case needs no code.

import assert from 'node:assert/strict';
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { formatConfigError } from '../../../../config/load.ts';
import { nodeConfigurationPage, nodeExample } from '../../../../mesh-agent/commands/docs.ts';
import { nodeJsonSchema } from '../../../../mesh-agent/commands/main.ts';
import { loadNode, type NodeConfig, reloaded } from '../../../../mesh-agent/node/node-config.ts';
import { temporaryDirectory, writeConfig } from '../commands/support.ts';
import { nodeConfig, redisAt } from './support.ts';

const directory = fileURLToPath(new URL('../../../data/node/', import.meta.url));

for (const name of readdirSync(directory).filter((file) => file.endsWith('.yaml'))) {
  test(`${name} is refused with the expected errors`, () => {
    const loaded = loadNode(join(directory, name), {});
    assert.ok('errors' in loaded);
    const text = loaded.errors.map((error) => `${formatConfigError(error).replace(directory, '')}\n`).join('');
    assert.equal(text, readFileSync(join(directory, name.replace(/yaml$/, 'errors')), 'utf8'));
  });
}

function load(text: string, base: string): NodeConfig {
  writeFileSync(join(base, 'roots.pem'), '');
  writeFileSync(join(base, 'node.yaml'), text);
  const loaded = loadNode(join(base, 'node.yaml'), { NODE_NAME: 'host-9' });
  assert.ok('config' in loaded, 'errors' in loaded ? loaded.errors.map(formatConfigError).join('\n') : '');
  return loaded.config;
}

test('the least that is needed has safe defaults, and paths are relative to the file', (t) => {
  const base = temporaryDirectory(t);
  const config = load(
    `trustDomain: cluster.local
controlPlane: {address: "[fd00::1]:15012", roots: roots.pem}
serviceAccountToken: {file: token}
stateDirectory: state
`,
    base,
  );
  assert.deepEqual(config, {
    ...{ file: join(base, 'node.yaml'), trustDomain: 'cluster.local', node: hostname().toLowerCase(), sidecar: null },
    controlPlane: { address: '[fd00::1]:15012', serverName: null, rootsFile: join(base, 'roots.pem') },
    token: { kind: 'serviceAccount', file: join(base, 'token') },
    ...{ stateDirectory: join(base, 'state'), mode: 'strict', egress: 'passthrough' },
    discovery: { scope: 'used', networks: [], idleTimeoutMs: 3_600_000 },
    capture: { failClosed: true },
    limits: { connectionsMax: 0, connectionsPerSecondMax: 0, bufferPercentMax: 50 },
    redis: null,
    workers: 'auto',
    admin: { address: '127.0.0.1:9902', host: '127.0.0.1', port: 9902 },
    ...{ logLevel: 'info', accessLog: null, drainTimeoutMs: 30_000 },
  });
});

test('everything that can be said is taken over', (t) => {
  const base = temporaryDirectory(t);
  const config = load(
    `trustDomain: mesh.example
node: "\${NODE_NAME}"
controlPlane: {address: "10.0.0.1:15012", serverName: control.internal, roots: roots.pem}
joinToken: {file: token}
stateDirectory: /var/lib/portcullis
mode: permissive
egress: refuse
discovery: {scope: all, networks: ["10.0.0.0/8", "fd00::/8"], idleTimeout: 10m}
capture: {failClosed: false, excludeInbound: [192.168.0.0/16], excludeOutboundPorts: ["53"]}
limits: {connections: 5}
redis:
  address: redis.internal:6380
  username: mesh
  password: "\${NODE_NAME}"
  database: 3
  tls: {caCertificates: roots.pem}
  timeout: 20ms
  failure: closed
  keyPrefix: "mesh:"
workers: 2
admin: off
log: {level: warn}
accessLog: {path: "-", format: common}
drainTimeout: 0
`,
    base,
  );
  assert.deepEqual(config, {
    ...{ file: join(base, 'node.yaml'), trustDomain: 'mesh.example', node: 'host-9', sidecar: null },
    controlPlane: { address: '10.0.0.1:15012', serverName: 'control.internal', rootsFile: join(base, 'roots.pem') },
    token: { kind: 'join', file: join(base, 'token') },
    ...{ stateDirectory: '/var/lib/portcullis', mode: 'permissive', egress: 'refuse' },
    discovery: { scope: 'all', networks: ['10.0.0.0/8', 'fd00::/8'], idleTimeoutMs: 600_000 },
    capture: { failClosed: false, excludeInbound: ['192.168.0.0/16'], excludeOutboundPorts: ['53'] },
    limits: { connectionsMax: 5, connectionsPerSecondMax: 0, bufferPercentMax: 50 },
    redis: {
      ...{ address: 'redis.internal:6380', host: 'redis.internal', port: 6380 },
      ...{ username: 'mesh', password: 'host-9', database: 3 },
      tls: { serverName: 'redis.internal', caFile: join(base, 'roots.pem') },
      ...{ timeoutMs: 20, failure: 'closed', keyPrefix: 'mesh:' },
    },
    ...{ workers: 2, admin: null, logLevel: 'warn' },
    accessLog: { path: '-', format: 'common' },
    drainTimeoutMs: 0,
  });
  assert.equal(load(`${nodeExample}capture: off\n`.replace(/capture:\n(?: .*\n)+/, ''), base).capture, null);
});

test('a sidecar takes from the environment which workload is its own, unless it is told', (t) => {
  const base = temporaryDirectory(t);
  writeFileSync(join(base, 'roots.pem'), '');
  const read = (sidecar: string, env: Record<string, string>) => {
    const file = join(base, 'node.yaml');
    const rest = `trustDomain: cluster.local
controlPlane: {address: "control:15012", roots: roots.pem}
serviceAccountToken: {file: token}
stateDirectory: state
redis: {address: "10.0.0.1:6379"}
`;
    writeFileSync(file, `${rest}sidecar: ${sidecar}\n`);
    const loaded = loadNode(file, env);
    return 'config' in loaded ? loaded.config : loaded.errors.map(({ problem }) => problem);
  };
  const env = { POD_NAMESPACE: 'shop', POD_NAME: 'web-0', POD_IP: 'FD00::0:5', POD_SERVICE_ACCOUNT: 'web' };
  const { sidecar, node, redis } = read('{}', env) as NodeConfig;
  // Its own connections are captured, too.
  assert.equal(redis!.relay, join(base, 'state', 'redis.sock'));
  assert.deepEqual(sidecar, { namespace: 'shop', name: 'web-0', address: 'fd00::5', serviceAccount: 'web' });
  assert.equal(node, 'shop/web-0');
  const told = read('{namespace: crew, address: 10.0.0.7}', {
    ...env,
    POD_NAME: '',
    POD_SERVICE_ACCOUNT: '',
  }) as NodeConfig;
  assert.deepEqual(told.sidecar, { namespace: 'crew', name: null, address: '10.0.0.7', serviceAccount: 'default' });
  assert.deepEqual(read('{}', { ...env, POD_NAMESPACE: '' }), [
    'a sidecar does not know the namespace of its workload (POD_NAMESPACE)',
  ]);
  assert.deepEqual(read('{}', { POD_NAMESPACE: 'shop' }), [
    'a sidecar knows neither the name nor the address of its workload (POD_NAME, POD_IP)',
  ]);
  assert.deepEqual(read('{}', { ...env, POD_NAME: 'Web 0' }), [
    '"Web 0" cannot be the name of a workload or service account',
  ]);
  assert.deepEqual(read('{}', { ...env, POD_IP: '10.0.0.300' }), ['"10.0.0.300" is not an IP address']);
});

test('a reload takes over what it can, and names what waits for a restart', () => {
  const before = nodeConfig();
  const after = nodeConfig({
    ...{ mode: 'permissive', egress: 'refuse', workers: 4, stateDirectory: '/other', drainTimeoutMs: 1 },
    limits: { connectionsMax: 9, connectionsPerSecondMax: 0, bufferPercentMax: 50 },
    redis: redisAt('10.0.0.1:6379'),
  });
  const { config, waiting } = reloaded(before, after);
  assert.deepEqual(waiting.sort(), ['stateDirectory', 'workers']);
  assert.deepEqual(config, { ...after, workers: before.workers, stateDirectory: before.stateDirectory });
});

test('the documentation is what the schema says (npm run docs writes it), and its example is valid', (t) => {
  const page = readFileSync(new URL('../../../../docs/mesh/node-configuration.md', import.meta.url), 'utf8');
  assert.equal(page, nodeConfigurationPage());
  const base = temporaryDirectory(t);
  writeFileSync(join(base, 'roots.pem'), '');
  const loaded = loadNode(writeConfig(t, nodeExample, [], base), {});
  assert.equal('errors' in loaded ? loaded.errors.map(formatConfigError).join('\n') : '', '');
});

interface Node {
  description?: string;
  default?: unknown;
  required?: string[];
  properties?: Record<string, Node>;
  items?: Node;
  anyOf?: Node[];
}

function* keysOf(node: Node, path: string): Generator<[string, Node, boolean]> {
  for (const [key, property] of Object.entries(node.properties ?? {})) {
    yield [`${path}.${key}`, property, node.required?.includes(key) === true];
    yield* keysOf(property, `${path}.${key}`);
  }
  if (node.items !== undefined) yield* keysOf(node.items, `${path}[]`);
  for (const branch of node.anyOf ?? []) yield* keysOf(branch, path);
}

test('every key has a description, and every optional key a default or says what its absence means', async () => {
  const keys = [...keysOf((await nodeJsonSchema()) as Node, '')];
  assert.ok(keys.length > 25);
  for (const [path, { description, default: fallback }, required] of keys) {
    assert.match(description ?? '', /\.$/, path);
    if (!required && fallback === undefined) assert.match(description!, /Absent: |Default: /, path);
  }
});
