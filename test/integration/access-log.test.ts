// The access log of a real gateway: written, rotated on SIGUSR1, complete at the end.

import assert from 'node:assert/strict';
import { existsSync, readFileSync, renameSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { get, namedUpstream, simpleConfig, startGateway, temporaryDirectory } from './support.ts';

function paths(file: string): string[] {
  const lines = readFileSync(file, 'utf8').split('\n').slice(0, -1);
  return lines.map((line) => (JSON.parse(line) as { path: string }).path);
}

test('SIGUSR1 continues in a new file after the old one was renamed, and no line is lost', async (t) => {
  const file = join(temporaryDirectory(t), 'access.log');
  const gateway = startGateway(t, simpleConfig(await namedUpstream(t, 'hello'), `accessLog: {path: ${file}}`));
  const port = await gateway.port();
  for (let i = 0; i < 20; i++) await get(port, `/before/${i}`);
  renameSync(file, `${file}.1`);
  gateway.kill('SIGUSR1');
  await gateway.log(/info access log reopened path=/);
  for (let i = 0; i < 20; i++) await get(port, `/after/${i}`);
  gateway.kill('SIGTERM');
  assert.equal((await gateway.finished).code, 0);

  assert.ok(existsSync(file));
  const [old, young] = [paths(`${file}.1`), paths(file)];
  const expected = ['before', 'after'].flatMap((word) => Array.from({ length: 20 }, (_, i) => `/${word}/${i}`));
  assert.deepEqual([...old, ...young].sort(), expected.sort());
  assert.ok(
    old.every((path) => path.startsWith('/before/')),
    'the renamed file gets no line of later requests',
  );
});

test('a reload switches the access log on and off', async (t) => {
  const upstream = await namedUpstream(t, 'hello');
  const file = join(temporaryDirectory(t), 'access.log');
  const gateway = startGateway(t, simpleConfig(upstream));
  const port = await gateway.port();
  await get(port, '/silent');
  gateway.configure(simpleConfig(upstream, `accessLog: {path: ${file}}`));
  gateway.kill('SIGHUP');
  await gateway.log(/configuration reloaded epoch=2/);
  await get(port, '/logged');
  gateway.configure(simpleConfig(upstream));
  gateway.kill('SIGHUP');
  await gateway.log(/configuration reloaded epoch=3/);
  await get(port, '/silent-again');
  gateway.kill('SIGTERM');
  await gateway.finished;
  assert.deepEqual(paths(file), ['/logged']);
});

test('SIGUSR1 without a log file says that there is nothing to reopen', async (t) => {
  const upstream = await namedUpstream(t, 'hello');
  const gateway = startGateway(t, simpleConfig(upstream));
  await gateway.serving();
  gateway.kill('SIGUSR1');
  await gateway.log(/info no access log to reopen: none is configured$/);
  gateway.configure(simpleConfig(upstream, 'accessLog: {path: "-"}'));
  gateway.kill('SIGHUP');
  await gateway.log(/configuration reloaded epoch=2/);
  gateway.kill('SIGUSR1');
  await gateway.log(/info no access log to reopen: it goes to standard output$/);
  assert.doesNotMatch(gateway.stderr, /access log reopened/);
});
