// Loading: files, defaults from the schema, and errors that are about the file itself.
// What single files load as, or are refused with, is in cases.test.ts.

import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
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
    mkdirSync(join(directory, 'logs'));
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
    const bytes = (...values: (string | number)[]): string => {
      const path = join(directory, 'file.yaml');
      writeFileSync(
        path,
        Buffer.concat(values.map((value) => Buffer.from(typeof value === 'string' ? value : [value]))),
      );
      return message(path).slice(path.length);
    };
    assert.equal(
      bytes('# \ufffd é\nworkers: ', 0xe9, '\n'),
      ':2:10: the file is not UTF-8: the byte 0xE9 here is no part of a character, expected a YAML file in UTF-8',
    );
    assert.equal(bytes(0xff, 0xfe, 'w', 0), ':1:1: the file is UTF-16, not UTF-8, expected a YAML file in UTF-8');
    assert.equal(
      bytes('\x7fELF', 2, 1),
      ':1:1: the file is not text: it holds the control character U+007F here, expected a YAML file in UTF-8',
    );
  });
});

test('an access log that cannot be written where it is configured is an error with its place', () => {
  withDirectory((directory) => {
    const problemOf = (path: string): string | undefined => {
      const file = join(directory, 'gateway.yaml');
      writeFileSync(file, `${minimal}accessLog:\n  path: ${path}\n`);
      const result = loadConfigFile(file, {});
      if ('config' in result) return undefined;
      const expected = ', expected a file in a directory that exists, or "-" for standard output';
      const text = result.errors.map(formatConfigError).join('\n');
      const start = `${file}:5:9: accessLog.path: `;
      assert.ok(text.startsWith(start) && text.endsWith(expected), text);
      return text.slice(start.length, -expected.length);
    };
    mkdirSync(join(directory, 'logs'));
    writeFileSync(join(directory, 'file'), '');
    symlinkSync('logs', join(directory, 'link'));
    assert.equal(problemOf('none/access.log'), `the directory ${join(directory, 'none')} does not exist`);
    assert.equal(problemOf('logs'), `${join(directory, 'logs')} is a directory`);
    assert.equal(problemOf('link'), `${join(directory, 'link')} is a directory`);
    assert.equal(problemOf('file/access.log'), `${join(directory, 'file')} is not a directory`);
    for (const path of ['access.log', 'logs/access.log', 'link/access.log', 'file', '"-"', '/dev/null']) {
      assert.equal(problemOf(path), undefined, path);
    }
  });
});

test('a large file gets the same checks of other files as a small one', () => {
  withDirectory((directory) => {
    const file = join(directory, 'gateway.yaml');
    writeFileSync(file, `${minimal}accessLog: {path: none/access.log}\n${'# filler\n'.repeat(10_000)}`);
    const result = loadConfigFile(file, {});
    assert.ok('errors' in result);
    assert.match(formatConfigError(result.errors[0]!), /:4:19: accessLog\.path: the directory .*none does not exist/);
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

test('values nested so deeply that a parser would give up are an error with its place, in every style', () => {
  const texts = [
    `listeners: ${'['.repeat(100_000)}`,
    `listeners: ${'{a: '.repeat(100_000)}`,
    `listeners:\n  ${'- '.repeat(100_000)}x\n`,
    Array.from({ length: 1000 }, (_, level) => `${' '.repeat(level)}a:\n`).join(''),
    `listeners: ${'['.repeat(100_000)}${']'.repeat(100_000)}`,
  ];
  for (const text of texts) {
    const result = loadConfig(text, 'deep.yaml', {});
    assert.ok('errors' in result);
    assert.equal(result.errors.length, 1);
    assert.match(
      formatConfigError(result.errors[0]!),
      /^deep\.yaml:\d+:\d\d+: values are nested more than 64 levels deep, /,
    );
  }
});
