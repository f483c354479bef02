// Runs every case of test/data/config: NAME.yaml is the input, NAME.env (optional) the environment,
// and either NAME.errors the exact error text, or NAME.json (part of) the loaded configuration.
// Adding a case needs no code.

import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { formatConfigError, loadConfig } from '../../../config/load.ts';

const directory = fileURLToPath(new URL('../../data/config/', import.meta.url));
const names = readdirSync(directory)
  .filter((file) => file.endsWith('.yaml'))
  .map((file) => file.slice(0, -'.yaml'.length));

for (const name of names) {
  const read = (extension: string): string | undefined => {
    const path = resolve(directory, `${name}.${extension}`);
    return existsSync(path) ? readFileSync(path, 'utf8') : undefined;
  };
  const errors = read('errors');
  test(`${name}.yaml is ${errors === undefined ? 'loaded as described' : 'refused with the expected errors'}`, () => {
    const env = Object.fromEntries((read('env') ?? '').split('\n').map((line) => line.split(/=(.*)/s, 2)));
    // A file in the root directory makes resolved paths the same everywhere.
    const result = loadConfig(read('yaml')!, `/${name}.yaml`, env);
    const text =
      'errors' in result ? result.errors.map((error) => `${formatConfigError(error).slice(1)}\n`).join('') : '';
    if (errors !== undefined) {
      assert.equal(text, errors);
      return;
    }
    assert.equal(text, '');
    assert.ok('config' in result);
    const expected = JSON.parse(read('json')!);
    assert.deepEqual(pick(result.config, expected), expected);
  });
}

/** The parts of `value` that `shape` mentions; lists are whole. */
function pick(value: unknown, shape: unknown): unknown {
  if (typeof value !== 'object' || value === null || typeof shape !== 'object' || shape === null) return value;
  if (Array.isArray(value) && Array.isArray(shape)) return value.map((item, index) => pick(item, shape[index]));
  const part: Record<string, unknown> = {};
  for (const key of Object.keys(shape)) {
    part[key] = pick((value as Record<string, unknown>)[key], (shape as Record<string, unknown>)[key]);
  }
  return part;
}
