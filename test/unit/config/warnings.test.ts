// Runs every case of test/data/warnings: NAME.yaml is the input, NAME.warnings the exact text of all
// warnings, NAME.env (optional) the environment. Adding a case needs no code.

import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { exampleConfig } from '../../../config/docs.ts';
import { type ConfigWarning, formatConfigWarning } from '../../../config/errors.ts';
import { type Loaded, loadConfig } from '../../../config/load.ts';
import { warningNames } from '../../../config/warnings.ts';

const directory = fileURLToPath(new URL('../../data/warnings/', import.meta.url));
const names = readdirSync(directory)
  .filter((file) => file.endsWith('.yaml'))
  .map((file) => file.slice(0, -'.yaml'.length));

function load(text: string, file: string): Loaded {
  const result = loadConfig(text, file, {});
  if ('errors' in result) assert.fail(result.errors.map(({ problem }) => problem).join('\n'));
  return result;
}

function textOf(warnings: readonly ConfigWarning[]): string {
  return warnings.map((warning) => `${formatConfigWarning(warning).slice(1)}\n`).join('');
}

for (const name of names) {
  test(`${name}.yaml is judged with the expected warnings`, async () => {
    const loaded = load(readFileSync(`${directory}${name}.yaml`, 'utf8'), `/${name}.yaml`);
    assert.equal(textOf(await loaded.warnings()), readFileSync(`${directory}${name}.warnings`, 'utf8'));
  });
}

test('every warning has a case, and a line in docs/check.md', () => {
  const expected = names.map((name) => readFileSync(`${directory}${name}.warnings`, 'utf8')).join('');
  const page = readFileSync(new URL('../../../docs/check.md', import.meta.url), 'utf8');
  for (const [name, meaning] of Object.entries(warningNames)) {
    assert.ok(expected.includes(`warning[${name}]: `), `a case for ${name}`);
    assert.ok(page.includes(`| \`${name}\` | ${meaning} |`), `docs/check.md: | \`${name}\` | ${meaning} |`);
  }
});

test('every case has an expectation', () => {
  for (const file of readdirSync(directory)) {
    const [name, extension] = file.split('.') as [string, string];
    assert.ok(existsSync(`${directory}${name}.${extension === 'yaml' ? 'warnings' : 'yaml'}`), file);
  }
});

test('the example of the documentation gives no cause for warnings', async () => {
  assert.equal(textOf(await load(exampleConfig, '/example.yaml').warnings()), '');
});

test('a large file is judged without looking up places when that is to be quick', async () => {
  const routes = Array.from({ length: 1500 }, (_, index) => {
    return `  - {name: r${index}, hostnames: [h${index}.test], rules: [{backendRefs: [{name: app}]}]}\n`;
  }).join('');
  const text = `listeners: [{name: http, address: "127.0.0.1:8080"}]\nroutes:\n${routes}backends:\n  - {name: app, endpoints: ["127.0.0.1:1"]}\n  - {name: spare, endpoints: ["127.0.0.1:1"]}\n`;
  const loaded = load(text, '/large.yaml');
  const message = 'backends[1]: no route refers to backend "spare"; remove it, or add a backendRef';
  assert.equal(textOf(await loaded.warnings(true)), `large.yaml: warning[unused-backend]: ${message}\n`);
  assert.equal(textOf(await loaded.warnings()), `large.yaml:1505:5: warning[unused-backend]: ${message}\n`);
});
