// The schema as documentation: JSON Schema for editors, and the generated page.

import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { test } from 'node:test';
import { Check } from 'typebox/value';
import { configurationPage, exampleConfig } from '../../../config/docs.ts';
import { jsonSchema } from '../../../config/json-schema.ts';
import { formatConfigError, loadConfig } from '../../../config/load.ts';
import { configSchema } from '../../../config/schema.ts';
import { checkSemantics } from '../../../config/semantics.ts';
import { parseDurationMs } from '../../../config/units.ts';
import { validate } from '../../../config/validate.ts';
import { readYaml } from '../../../config/yaml.ts';

interface SchemaNode {
  $schema?: string;
  description?: string;
  default?: unknown;
  properties?: Record<string, SchemaNode>;
  required?: string[];
  items?: SchemaNode;
  anyOf?: SchemaNode[];
  $ref?: string;
  pattern?: string;
}

/** Every key below a node, with its path and whether it is required. */
function* keysOf(node: SchemaNode, path: string): Generator<[string, SchemaNode, boolean]> {
  for (const [key, property] of Object.entries(node.properties ?? {})) {
    yield [`${path}.${key}`, property, node.required?.includes(key) === true];
    yield* keysOf(property, `${path}.${key}`);
  }
  if (node.items !== undefined) yield* keysOf(node.items, `${path}[]`);
  for (const branch of node.anyOf ?? []) yield* keysOf(branch, path);
}

const schema = jsonSchema() as SchemaNode;

test('the JSON Schema is plain data of draft 2020-12', () => {
  assert.equal(schema.$schema, 'https://json-schema.org/draft/2020-12/schema');
  const text = JSON.stringify(schema);
  assert.deepEqual(JSON.parse(text), schema);
  assert.ok(!text.includes('x-portcullis'));
});

test('every key has a description, and every optional key a default or says what its absence means', () => {
  let count = 0;
  for (const [path, node, required] of keysOf(schema, '')) {
    count++;
    assert.ok(node.description?.endsWith('.'), `${path} has no description`);
    if (required || node.default !== undefined) continue;
    assert.match(node.description!, /Absent: |Default: /, `${path} does not say what its absence means`);
  }
  assert.ok(count > 50);
});

test('editors accept variables where a value is not free text', () => {
  const branches = schema.properties!.workers!.anyOf!;
  assert.ok(branches.some((branch) => branch.$ref === '#/$defs/variable'));
  const duration = schema.properties!.drainTimeout!.anyOf!.find(({ pattern }) => pattern !== undefined)!;
  for (const text of ['1h30m', '250ms', '1.5s', '0', '', '5', 'x', '1s ', '-1s', '1d', '.5s']) {
    assert.equal(new RegExp(duration.pattern!).test(text), parseDurationMs(text) !== undefined, text);
  }
});

test('docs/configuration.md is what the schema says (npm run docs writes it)', () => {
  const page = readFileSync(new URL('../../../docs/configuration.md', import.meta.url), 'utf8');
  assert.equal(page, configurationPage());
});

test('the documentation mentions every key, and its example is valid', () => {
  const page = configurationPage();
  for (const [path] of keysOf(schema, '')) assert.ok(page.includes(`\`${path.slice(1)}\``), path);
  const result = loadConfig(exampleConfig, '/example.yaml', {});
  assert.equal('errors' in result ? result.errors.map(formatConfigError).join('\n') : '', '');
});

test("what TypeBox's own validator refuses is refused here, and what is accepted here it accepts too", () => {
  const directory = new URL('../../data/config/', import.meta.url);
  const counts = { accepted: 0, refused: 0 };
  for (const file of readdirSync(directory).filter((name) => name.endsWith('.yaml'))) {
    const { value, findings } = readYaml(readFileSync(new URL(file, directory), 'utf8'), { WORKERS: '8', PORT: '1' });
    if (value === undefined || findings.length > 0) continue;
    const valid = validate(configSchema, value).length === 0;
    const second = Check(configSchema, value);
    // Ours is stricter: notes say more than JSON Schema can.
    assert.ok(second || !valid, `${file} is accepted here only`);
    counts[second ? 'accepted' : 'refused']++;
  }
  assert.ok(counts.accepted > 5 && counts.refused > 10, JSON.stringify(counts));
});

test('a value of the wrong shape is refused at every single place of a full configuration', () => {
  const file = readFileSync(new URL('../../data/config/every-key.yaml', import.meta.url), 'utf8');
  const whole = readYaml(file, {}).value;
  assert.deepEqual(validate(configSchema, whole), []);
  let places = 0;
  const visit = (parent: Record<string, unknown>, key: string): void => {
    const original = parent[key];
    for (const wrong of [true, 1.5, -7, '\u0001', [[]], { unknown: 1 }, null]) {
      if (typeof wrong === typeof original && typeof wrong === 'boolean') continue;
      // True stands for a redirect with all defaults.
      if (key === 'redirectToHttps' && wrong === true) continue;
      if (key === 'stdevFactor' && wrong === 1.5) continue;
      parent[key] = wrong;
      const refused = validate(configSchema, whole).length > 0 || checkSemantics(whole).length > 0;
      assert.ok(refused, `${key}: ${JSON.stringify(wrong)} is accepted`);
      places++;
    }
    parent[key] = original;
    if (typeof original === 'object' && original !== null) {
      for (const inner of Object.keys(original)) visit(original as Record<string, unknown>, inner);
    }
  };
  for (const key of Object.keys(whole as object)) visit(whole as Record<string, unknown>, key);
  assert.ok(places > 400);
});
