// Files of endpoints as they change, without a watcher: what is taken, refused and said.

import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import type { Config } from '../../../../config/config.ts';
import type { LogFields } from '../../../../core/workers/log.ts';
import { EndpointFiles } from '../../../../gateway/discovery/files.ts';

function harness(t: TestContext, text: string) {
  const directory = mkdtempSync(join(tmpdir(), 'portcullis-test-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  const file = join(directory, 'list.yaml');
  const lines: string[] = [];
  const files = new EndpointFiles((level, message, fields: LogFields = {}) => {
    lines.push(`${level} ${message} ${String(fields.problem ?? '').replaceAll(`${directory}/`, '')}`.trim());
  });
  const config = { backends: [{ name: 'app', endpoints: [], endpointsFile: file }] } as unknown as Config;
  const write = (content: string): void => writeFileSync(file, content);
  write(text);
  return {
    files,
    file,
    config,
    lines,
    write,
    weights: (): string[] =>
      files.complete(config).backends[0]!.endpoints.map(({ address, weight }) => `${address} ${weight}`),
  };
}

test('a file is taken with the defaults of endpoints, and only other endpoints count as a change', (t) => {
  const { files, config, write, weights } = harness(t, '["10.0.0.1:80", {"address": "a.test:81", "weight": 3}]');
  files.adopt(config, files.prepare(config));
  assert.deepEqual(weights(), ['10.0.0.1:80 1', 'a.test:81 3']);
  write('# the same\n- 10.0.0.1:80\n- {address: "a.test:81", weight: 3}\n');
  assert.equal(files.rereadAll(), false);
  write('- "10.0.0.1:80"\n');
  assert.equal(files.rereadAll(), true);
  assert.deepEqual(weights(), ['10.0.0.1:80 1']);
});

test('a broken file is told of once, and the endpoints of before stay until it is good', (t) => {
  const { files, config, write, weights, lines } = harness(t, '- "10.0.0.1:80"\n');
  files.adopt(config, files.prepare(config));
  write('- "10.0.0.1:80"\n- "10.0.0.1:80"\n');
  assert.equal(files.rereadAll(), false);
  assert.equal(files.rereadAll(), false);
  files.adopt(config, files.prepare(config));
  assert.deepEqual(lines, [
    'error endpoints file refused list.yaml:2:3: [1]: the endpoint "10.0.0.1:80" is used already by [0], expected each endpoint once, with a weight for a larger share',
  ]);
  assert.deepEqual(weights(), ['10.0.0.1:80 1']);
  write('- "10.0.0.1:80" \n');
  assert.equal(files.rereadAll(), false);
  assert.equal(lines[1], 'info endpoints file is good again');
});

test('a file that is gone is told of once, and so is one that is no list, or not of endpoints', (t) => {
  const { files, file, config, write, lines } = harness(t, '[]');
  files.adopt(config, files.prepare(config));
  rmSync(file);
  files.rereadAll();
  files.rereadAll();
  write('{a: 1}');
  files.rereadAll();
  write('');
  files.rereadAll();
  write('- [');
  files.rereadAll();
  assert.deepEqual(
    lines.map((line) => line.replace(/^error endpoints file refused /, '')),
    [
      'list.yaml does not exist',
      'list.yaml:1:1: a mapping is not valid, expected a list',
      'list.yaml:1:1: the file is empty, expected a list',
      lines[3]!.replace(/^error endpoints file refused /, ''),
    ],
  );
  assert.match(lines[3]!, /list\.yaml:1:\d+: /);
});

test('a file that cannot be used at the start is an error in one sentence', (t) => {
  const { files, config } = harness(t, '- nothing\n');
  assert.throws(() => files.prepare(config), /^Error: endpoints file \S+list\.yaml:1:3: \[0\]: "nothing" has no port/);
});

test('what a refused configuration has read is still news, and is told once', (t) => {
  const { files, config, write, weights, lines } = harness(t, '- "10.0.0.1:80"\n');
  files.adopt(config, files.prepare(config));
  write('- "10.0.0.2:80"\n');
  const contents = files.prepare(config);
  assert.equal(files.complete(config, contents).backends[0]!.endpoints[0]!.address, '10.0.0.2:80');
  assert.deepEqual(weights(), ['10.0.0.1:80 1']);
  assert.equal(files.rereadAll(), true);
  assert.deepEqual(weights(), ['10.0.0.2:80 1']);
  write('nonsense');
  files.prepare(config);
  assert.equal(files.rereadAll(), false);
  assert.equal(lines.length, 1);
});
