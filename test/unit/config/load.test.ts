// Loading: files, defaults from the schema, and errors that are about the file itself.
// What single files load as, or are refused with, is in cases.test.ts.

import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { jsonSchema } from '../../../config/json-schema.ts';
import { formatConfigError, loadConfig, loadConfigFile } from '../../../config/load.ts';

/** Taken before anything is loaded. */
const schemaBefore = structuredClone(jsonSchema());

const minimal = 'listeners: [{name: http, address: ":8080"}]\nroutes: []\nbackends: []\n';

function withDirectory(run: (directory: string) => void): void {
  const directory = mkdtempSync(join(tmpdir(), 'portcullis-config-'));
  try {
    run(directory);
  } finally {
    rmSync(directory, { recursive: true });
  }
}

test('a file is loaded, and paths in it are relative to it', () => {
  withDirectory((directory) => {
    const file = join(directory, 'gateway.yaml');
    writeFileSync(file, `\ufeff${minimal}accessLog: {path: logs/a.log}\n`);
    const result = loadConfigFile(file, {});
    assert.ok('config' in result, JSON.stringify(result));
    assert.equal(result.config.file, file);
    assert.equal(result.config.accessLog?.path, join(directory, 'logs/a.log'));
  });
});

test('a file that is missing, a directory or not UTF-8 is an error with its name', () => {
  withDirectory((directory) => {
    const message = (path: string): string => {
      const result = loadConfigFile(path, {});
      assert.ok('errors' in result);
      return result.errors.map(formatConfigError).join('\n');
    };
    const missing = join(directory, 'none.yaml');
    assert.equal(message(missing), `${missing}: there is no such file, expected a readable YAML file`);
    assert.equal(message(directory), `${directory}: is a directory, expected a readable YAML file`);
    const binary = join(directory, 'binary.yaml');
    writeFileSync(binary, Buffer.from([0x61, 0x3a, 0xff, 0xfe]));
    assert.equal(message(binary), `${binary}: the file is not UTF-8 text, expected a readable YAML file`);
  });
});

test('loading leaves the schema as it was, and two configurations share nothing', () => {
  const load = (): { upgrades: string[] } => {
    const result = loadConfig(minimal, '/a.yaml', {});
    assert.ok('config' in result);
    return result.config;
  };
  load().upgrades.push('changed');
  assert.deepEqual(load().upgrades, ['websocket']);
  assert.deepEqual(jsonSchema(), schemaBefore);
});

test('errors come in the order of the file and say where exactly, also with Windows line ends', () => {
  const text = 'listeners:\r\n  - name: http\r\n    address: ":x"\r\nroutes: []\r\nbackends: []\r\nworkers: 0\r\n';
  const result = loadConfig(text, 'w.yaml', {});
  assert.ok('errors' in result);
  assert.deepEqual(
    result.errors.map(({ line, column }) => [line, column]),
    [
      [3, 14],
      [6, 10],
    ],
  );
});

test('values nested so deeply that a parser gives up are an error, not a crash', () => {
  const result = loadConfig(`listeners: ${'['.repeat(100_000)}`, 'deep.yaml', {});
  assert.ok('errors' in result && result.errors.length > 0);
});
