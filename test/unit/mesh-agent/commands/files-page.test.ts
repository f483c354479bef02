// The reference of the mesh's files, and their schema for editors.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { formatConfigError } from '../../../../config/errors.ts';
import { runCli } from '../../../../gateway/cli.ts';
import { filesExample, filesPage } from '../../../../mesh-agent/commands/docs.ts';
import { checkMesh, readOne } from '../../../../mesh-agent/control/directory-check.ts';
import { documentSchemas, KINDS } from '../../../../mesh-agent/control/directory-schema.ts';

interface Node {
  description?: string;
  default?: unknown;
  const?: string;
  enum?: string[];
  required?: string[];
  properties?: Record<string, Node>;
  items?: Node;
  anyOf?: Node[];
}

test('the documentation is what the schemas say (npm run docs writes it), and its example is valid', () => {
  const page = readFileSync(new URL('../../../../docs/mesh/files.md', import.meta.url), 'utf8');
  assert.equal(page, filesPage());
  assert.doesNotMatch(page, /\[object|undefined/);
  for (const kind of KINDS) assert.ok(page.includes(`\n## \`${kind}\`\n`), kind);
  const file = readOne(Buffer.from(filesExample), 'example.yaml', {});
  const { errors, state } = checkMesh(new Map([['example.yaml', file]]), {
    trustDomain: 'cluster.local',
    domain: 'cluster.local',
  });
  assert.deepEqual(errors.map(formatConfigError), []);
  assert.deepEqual([state.workloads.size, state.services.size, state.policies.size], [1, 1, 1]);
  assert.deepEqual(
    [...new Set(filesExample.match(/^kind: \w+$/gm))],
    KINDS.map((kind) => `kind: ${kind}`),
  );
});

/** What is below rules and settings of a gateway is described, and tested, with its configuration. */
function* keysOf(node: Node, path: string): Generator<[string, Node, boolean]> {
  for (const [key, property] of Object.entries(node.properties ?? {})) {
    yield [`${path}.${key}`, property, node.required?.includes(key) === true];
    if (/^TrafficPolicy\.spec\.(rules|backend)$/.test(`${path}.${key}`)) continue;
    yield* keysOf(property, `${path}.${key}`);
  }
  if (node.items !== undefined) yield* keysOf(node.items, `${path}[]`);
}

test('every key has a description, and every optional key a default or says what its absence means', () => {
  const keys = KINDS.flatMap((kind) => [...keysOf(documentSchemas[kind] as Node, kind)]);
  assert.ok(keys.length > 60, `${keys.length}`);
  for (const [path, { description, default: fallback }, required] of keys) {
    assert.match(description ?? '', /\.$/, path);
    if (!required && fallback === undefined) assert.match(description!, /Absent: |Default: /, path);
  }
});

test('`schema mesh` prints the schema of a document of any kind', async () => {
  let out = '';
  const code = await runCli(['schema', 'mesh'], { out: (text) => void (out += text), err: () => {} });
  assert.equal(code, 0);
  const { anyOf } = JSON.parse(out) as Node;
  const kinds = anyOf!.map(({ properties }) => JSON.stringify(properties!.kind));
  for (const [index, kind] of KINDS.entries()) assert.match(kinds[index]!, new RegExp(`"${kind}"`));
});
