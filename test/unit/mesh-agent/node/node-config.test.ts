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
import { nodeConfig } from './support.ts';

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
    ...{ file: join(base, 'node.yaml'), trustDomain: 'cluster.local', node: hostname().toLowerCase() },
    controlPlane: { address: '[fd00::1]:15012', serverName: null, rootsFile: join(base, 'roots.pem') },
    token: { kind: 'serviceAccount', file: join(base, 'token') },
    ...{ stateDirectory: join(base, 'state'), mode: 'strict', egress: 'passthrough' },
    capture: { failClosed: true },
    limits: { connectionsMax: 0, connectionsPerSecondMax: 0, bufferPercentMax: 50 },
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
capture: {failClosed: false, excludeInbound: [192.168.0.0/16], excludeOutboundPorts: ["53"]}
limits: {connections: 5}
workers: 2
admin: off
log: {level: warn}
accessLog: {path: "-", format: common}
drainTimeout: 0
`,
    base,
  );
  assert.deepEqual(config, {
    ...{ file: join(base, 'node.yaml'), trustDomain: 'mesh.example', node: 'host-9' },
    controlPlane: { address: '10.0.0.1:15012', serverName: 'control.internal', rootsFile: join(base, 'roots.pem') },
    token: { kind: 'join', file: join(base, 'token') },
    ...{ stateDirectory: '/var/lib/portcullis', mode: 'permissive', egress: 'refuse' },
    capture: { failClosed: false, excludeInbound: ['192.168.0.0/16'], excludeOutboundPorts: ['53'] },
    limits: { connectionsMax: 5, connectionsPerSecondMax: 0, bufferPercentMax: 50 },
    ...{ workers: 2, admin: null, logLevel: 'warn' },
    accessLog: { path: '-', format: 'common' },
    drainTimeoutMs: 0,
  });
  assert.equal(load(`${nodeExample}capture: off\n`.replace(/capture:\n(?: .*\n)+/, ''), base).capture, null);
});

test('a reload takes over what it can, and names what waits for a restart', () => {
  const before = nodeConfig();
  const after = nodeConfig({
    ...{ mode: 'permissive', egress: 'refuse', workers: 4, stateDirectory: '/other', drainTimeoutMs: 1 },
    limits: { connectionsMax: 9, connectionsPerSecondMax: 0, bufferPercentMax: 50 },
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
