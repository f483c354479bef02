// Configurations of the control plane: every case of test/data/control that is wrong, with the exact errors, and
// what the good ones come to. Adding a case needs no code.

import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { formatConfigError } from '../../../../config/load.ts';
import { loadControl, restartOnlyChanges } from '../../../../mesh-agent/commands/control-config.ts';
import { controlConfigurationPage, controlExample } from '../../../../mesh-agent/commands/docs.ts';
import { controlJsonSchema } from '../../../../mesh-agent/commands/main.ts';
import { temporaryDirectory, writeConfig } from './support.ts';

const directory = fileURLToPath(new URL('../../../data/control/', import.meta.url));

for (const name of readdirSync(directory).filter((file) => file.endsWith('.yaml'))) {
  test(`${name} is refused with the expected errors`, () => {
    const loaded = loadControl(join(directory, name), {});
    assert.ok('errors' in loaded);
    const text = loaded.errors.map((error) => `${formatConfigError(error).replace(directory, '')}\n`).join('');
    assert.equal(text, readFileSync(join(directory, name.replace(/yaml$/, 'errors')), 'utf8'));
  });
}

test('a file that is not there is an error like any other', () => {
  const loaded = loadControl(join(directory, 'nothing.yml'), {});
  assert.ok('errors' in loaded);
  assert.match(formatConfigError(loaded.errors[0]!), /nothing\.yml: there is no such file/);
});

test('paths are relative to the file, and what is left out lies beside the directory of the CA', (t) => {
  const file = writeConfig(t, 'trustDomain: mesh.example\nca: {directory: state/ca}\nsource: {directory: .}\n');
  const loaded = loadControl(file, {});
  assert.ok('config' in loaded);
  const base = join(file, '..');
  const { admin, attestation, ca, listen, logLevel, serverNames, serviceAccount, source } = loaded.config;
  assert.deepEqual(ca, {
    directory: join(base, 'state/ca'),
    files: null,
    nextFiles: null,
    certificateLifetimeMs: 86_400_000,
  });
  assert.deepEqual(source, {
    kind: 'directory',
    directory: base,
    lastGoodDirectory: join(base, 'state/last-good'),
  });
  assert.deepEqual(attestation, {
    joinTokenDirectory: join(base, 'state/join-tokens'),
    kubernetes: null,
    blockedIdentities: [],
  });
  assert.deepEqual([listen.port, admin?.port, logLevel], [15012, 9903, 'info']);
  assert.deepEqual(serviceAccount, { namespace: 'portcullis', name: 'portcullis-control' });
  assert.ok(serverNames.includes('localhost') && serverNames.includes('127.0.0.1'));
});

test('a directory beside Kubernetes holds its policies', (t) => {
  const source = 'source: {directory: ., kubernetes: {clusterId: east}}';
  const loaded = loadControl(writeConfig(t, `trustDomain: mesh.example\nca: {directory: ca}\n${source}\n`), {});
  assert.ok('config' in loaded && loaded.config.source.kind === 'kubernetes');
  assert.equal(loaded.config.source.clusterId, 'east');
  assert.match(loaded.config.source.policies!.lastGoodDirectory, /\/last-good$/);
});

test('variables are substituted, and what a reload cannot change is named', (t) => {
  const text = `trustDomain: mesh.example
listen: "127.0.0.1:\${PORT}"
log:
  level: \${LEVEL}
admin: off
attestation: {joinTokens: off}
ca: {directory: ca}
source: {kubernetes: {}}
`;
  const file = writeConfig(t, text);
  const [one, two] = [
    { PORT: '1', LEVEL: 'debug' },
    { PORT: '2', LEVEL: 'warn' },
  ].map((env) => loadControl(file, env));
  assert.ok(one !== undefined && 'config' in one && two !== undefined && 'config' in two);
  assert.equal(one.config.logLevel, 'debug');
  assert.equal(one.config.admin, null);
  assert.equal(one.config.attestation.joinTokenDirectory, null);
  assert.deepEqual(restartOnlyChanges(one.config, two.config), ['listen']);
});

test('the documentation is what the schema says (npm run docs writes it), and its example is valid', (t) => {
  const page = readFileSync(new URL('../../../../docs/mesh/control-configuration.md', import.meta.url), 'utf8');
  assert.equal(page, controlConfigurationPage());
  const base = temporaryDirectory(t);
  const loaded = loadControl(writeConfig(t, controlExample, ['mesh'], base), {});
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
  const keys = [...keysOf((await controlJsonSchema()) as Node, '')];
  assert.ok(keys.length > 25);
  for (const [path, { description, default: fallback }, required] of keys) {
    assert.match(description ?? '', /\.$/, path);
    if (!required && fallback === undefined) assert.match(description!, /Absent: |Default: /, path);
  }
});
