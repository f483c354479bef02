// Warnings as a user meets them: in `check`, in its JSON, in its exit code, and in the log.

import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { namedUpstream, runToEnd, simpleConfig, startGateway, temporaryDirectory } from './support.ts';

/** A configuration with as many unused backends. */
function withSpareBackends(port: number, count: number): string {
  const spare = Array.from({ length: count }, (_, index) => `  - {name: spare-${index}, endpoints: ["127.0.0.1:9"]}\n`);
  return `${simpleConfig(port).trimEnd()}\n${spare.join('')}`;
}

/** The same list of backends over lines. */
function blockConfig(port: number, spare: number): string {
  return withSpareBackends(port, spare).replace(
    /^backends: \[(.*)\]$/m,
    (_line, backend: string) => `backends:\n  - ${backend}`,
  );
}

test('warnings are shown with name and place, and do not make a file invalid', async (t) => {
  const file = join(temporaryDirectory(t), 'gateway.yaml');
  writeFileSync(file, blockConfig(9001, 1));
  const { code, stdout, stderr } = await runToEnd(t, 'check', '--config', file);
  assert.equal(code, 0);
  assert.match(
    stderr,
    new RegExp(`^${file}:\\d+:5: warning\\[unused-backend\\]: backends\\[1\\]: .* "spare-0"; .*\\n$`),
  );
  assert.match(stdout, /^\S+ is valid, with 1 warning: 1 listener, /);
});

test('--warnings-as-errors turns warnings, and only those, into exit code 1', async (t) => {
  const file = join(temporaryDirectory(t), 'gateway.yaml');
  writeFileSync(file, blockConfig(9001, 2));
  const strict = await runToEnd(t, 'check', '--config', file, '--warnings-as-errors');
  assert.equal(strict.code, 1);
  assert.match(strict.stderr, /^2 warnings in \S+, treated as errors$/m);
  writeFileSync(file, simpleConfig(9001));
  assert.equal((await runToEnd(t, 'check', '--config', file, '--warnings-as-errors')).code, 0);
});

test('--format json gives warnings and errors in one form, and nothing else', async (t) => {
  const file = join(temporaryDirectory(t), 'gateway.yaml');
  writeFileSync(file, blockConfig(9001, 1));
  const warned = await runToEnd(t, 'check', '--config', file, '--format', 'json');
  assert.equal(warned.code, 0);
  assert.equal(warned.stderr, '');
  const [warning, ...others] = JSON.parse(warned.stdout);
  assert.deepEqual(others, []);
  assert.deepEqual(
    { ...warning, line: 0, message: '' },
    {
      file,
      line: 0,
      column: 5,
      severity: 'warning',
      name: 'unused-backend',
      message: '',
    },
  );

  writeFileSync(file, simpleConfig(9001, 'drianTimeout: 5s'));
  const refused = await runToEnd(t, 'check', '--config', file, '--format=json');
  assert.equal(refused.code, 1);
  const [error] = JSON.parse(refused.stdout);
  assert.deepEqual([error.line, error.severity, error.name], [4, 'error', 'invalid']);
  assert.match(error.message, /did you mean "drainTimeout"\?$/);

  writeFileSync(file, simpleConfig(9001));
  assert.equal((await runToEnd(t, 'check', '--config', file, '--format', 'json')).stdout, '[]\n');
  const wrong = await runToEnd(t, 'check', '--config', file, '--format', 'xml');
  assert.equal(wrong.code, 2);
  assert.match(wrong.stderr, /--format is text or json, not xml/);
});

test('a start and a reload log warnings, the first twenty of them, and serve', async (t) => {
  const upstream = await namedUpstream(t, 'up');
  const gateway = startGateway(t, blockConfig(upstream, 1));
  await gateway.serving();
  await gateway.log(/ warn \S+:\d+:5: warning\[unused-backend\]: backends\[1\]: /);
  gateway.configure(blockConfig(upstream, 23));
  gateway.kill('SIGHUP');
  await gateway.log(/info configuration reloaded epoch=2/);
  await gateway.log(/ warn and 3 more warnings; `portcullis check` shows them$/);
  assert.equal(gateway.stderr.match(/warning\[unused-backend\]/g)!.length, 1 + 20);
  // One without warnings logs none: the next line that is one is that of the reload after it.
  for (const config of [simpleConfig(upstream), blockConfig(upstream, 1)]) {
    const reloads = gateway.stderr.match(/info configuration reloaded/g)!.length;
    gateway.configure(config);
    gateway.kill('SIGHUP');
    await gateway.log(/info configuration reloaded/, reloads + 1);
  }
  await gateway.log(/warning\[unused-backend\]/, 1 + 20 + 1);
  assert.equal(gateway.stderr.match(/warning\[unused-backend\]/g)!.length, 1 + 20 + 1);
});
