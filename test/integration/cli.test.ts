// The command line as a user meets it: output, hints and exit codes.

import assert from 'node:assert/strict';
import { mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { portcullis, runToEnd, simpleConfig, start, temporaryDirectory } from './support.ts';

test('--help names the commands, the signals and the exit codes', async (t) => {
  const { code, stdout, stderr } = await runToEnd(t, '--help');
  assert.equal(code, 0);
  assert.equal(stderr, '');
  for (const word of ['run', 'check', 'schema', 'explain', 'SIGHUP', 'SIGTERM', 'SIGUSR1', 'Exit codes']) {
    assert.match(stdout, new RegExp(`\\b${word}\\b`));
  }
});

test('--version prints the version of the package', async (t) => {
  const { version } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8'));
  const { code, stdout } = await runToEnd(t, '--version');
  assert.equal(code, 0);
  assert.equal(stdout, `portcullis ${version}\n`);
});

test('a mistyped command or option is answered with what was probably meant', async (t) => {
  const command = await runToEnd(t, 'chekc');
  assert.equal(command.code, 2);
  assert.equal(command.stderr, 'portcullis: unknown command chekc: did you mean check?\n');
  const option = await runToEnd(t, 'run', '--confg', 'x.yaml');
  assert.equal(option.code, 2);
  assert.equal(option.stderr, 'portcullis: unknown option --confg: did you mean --config?\n');
});

test('a file without --config is refused with the right form', async (t) => {
  const { code, stderr } = await runToEnd(t, 'run', 'gateway.yaml');
  assert.equal(code, 2);
  assert.match(stderr, /--config gateway\.yaml/);
});

test('no command at all, and check without a file, are usage errors', async (t) => {
  assert.equal((await runToEnd(t)).code, 2);
  const check = await runToEnd(t, 'check');
  assert.equal(check.code, 2);
  assert.match(check.stderr, /check needs --config FILE/);
});

test('check says in one line what a valid file contains', async (t) => {
  const file = join(temporaryDirectory(t), 'gateway.yaml');
  writeFileSync(file, simpleConfig(9001));
  const { code, stdout, stderr } = await runToEnd(t, 'check', '--config', file);
  assert.equal(code, 0);
  assert.equal(stderr, '');
  assert.equal(stdout, `${file} is valid: 1 listener, 1 route with 1 rule, 1 backend with 1 endpoint\n`);
});

test('check reports every error with its place, and run refuses the same file', async (t) => {
  const file = join(temporaryDirectory(t), 'gateway.yaml');
  writeFileSync(file, simpleConfig(9001, 'drianTimeout: 5s\naccessLog: {path: a.log, formt: json}'));
  const check = await runToEnd(t, 'check', '--config', file);
  assert.equal(check.code, 1);
  assert.equal(check.stdout, '');
  assert.match(check.stderr, new RegExp(`^${file}:4:\\d+: .*did you mean "drainTimeout"\\?$`, 'm'));
  assert.match(check.stderr, new RegExp(`^${file}:5:\\d+: .*did you mean "format"\\?$`, 'm'));
  assert.match(check.stderr, /^2 errors in /m);

  const run = await runToEnd(t, 'run', '--config', file);
  assert.equal(run.code, 1);
  assert.match(run.stderr, new RegExp(`^${file}:4:\\d+: `, 'm'));
  assert.match(run.stderr, /^portcullis: the configuration is not valid, and nothing was started\.$/m);
});

test('check shows all errors of a file, up to a thousand', async (t) => {
  const file = join(temporaryDirectory(t), 'gateway.yaml');
  const keys = (count: number): string => Array.from({ length: count }, (_, index) => `key${index}: 1\n`).join('');
  const lines = async (count: number): Promise<string[]> => {
    writeFileSync(file, `${simpleConfig(9001)}${keys(count)}`);
    const { code, stderr } = await runToEnd(t, 'check', '--config', file);
    assert.equal(code, 1);
    return stderr.trimEnd().split('\n');
  };
  const all = await lines(100);
  assert.equal(all.length, 101);
  assert.match(all[99]!, /unknown key "key99"/);
  const some = await lines(1001);
  assert.equal(some.length, 1002);
  assert.deepEqual(some.slice(1000), ['and 1 more error', `1001 errors in ${file}`]);
});

test('check says when the directory of the access log is missing, and run refuses the same file', async (t) => {
  const file = join(temporaryDirectory(t), 'gateway.yaml');
  writeFileSync(file, simpleConfig(9001, 'accessLog: {path: logs/access.log}'));
  for (const command of ['check', 'run']) {
    const { code, stderr } = await runToEnd(t, command, '--config', file);
    assert.equal(code, 1);
    assert.match(
      stderr,
      /gateway\.yaml:4:19: accessLog\.path: the directory \S+\/logs does not exist, expected a file in/,
    );
  }
});

test('a file that does not exist is an error of the configuration', async (t) => {
  const { code, stderr } = await runToEnd(t, 'check', '--config', '/nonexistent/gateway.yaml');
  assert.equal(code, 1);
  assert.match(stderr, /^\/nonexistent\/gateway\.yaml: there is no such file/);
});

test('schema prints a JSON Schema that knows the top-level keys', async (t) => {
  const { code, stdout } = await runToEnd(t, 'schema');
  assert.equal(code, 0);
  const schema = JSON.parse(stdout);
  assert.match(schema.$schema, /json-schema\.org/);
  assert.ok(Object.keys(schema.properties).includes('listeners'));
});

test('the launcher works from any directory, through symbolic links and in paths with spaces', async (t) => {
  const directory = join(temporaryDirectory(t), 'with space');
  mkdirSync(directory);
  symlinkSync(portcullis, join(directory, 'first'));
  symlinkSync('first', join(directory, 'second'));
  const running = start(t, ['--version'], { cwd: '/', command: join(directory, 'second') });
  const { code, stdout, stderr } = await running.finished;
  assert.equal(stderr, '');
  assert.equal(code, 0);
  assert.match(stdout, /^portcullis \d/);
});

test('a node proxy, of which every machine has one, is started to take little memory, and nothing else is', async (t) => {
  const directory = temporaryDirectory(t);
  writeFileSync(join(directory, 'portcullis'), readFileSync(portcullis), { mode: 0o755 });
  for (const arch of ['x64', 'arm64']) {
    const bin = join(directory, 'node_modules', `node-linux-${arch}`, 'bin');
    mkdirSync(bin, { recursive: true });
    writeFileSync(join(bin, 'node'), '#!/bin/sh\necho "$MALLOC_ARENA_MAX $*"\n', { mode: 0o755 });
  }
  const startedWith = async (...args: string[]): Promise<string> =>
    (await start(t, args, { command: join(directory, 'portcullis') }).finished).stdout.trim();
  const main = join(directory, 'gateway/main.ts');
  assert.equal(
    await startedWith('mesh', 'node', '--config', 'a b'),
    `2 --max-semi-space-size=1 --v8-pool-size=2 ${main} mesh node --config a b`,
  );
  assert.equal(await startedWith('mesh', 'status'), `${main} mesh status`);
  assert.equal(await startedWith('run'), `${main} run`);
  assert.equal(await startedWith(), main);
});

test('without installed dependencies one sentence says what to do', async (t) => {
  const directory = temporaryDirectory(t);
  writeFileSync(join(directory, 'portcullis'), readFileSync(portcullis), { mode: 0o755 });
  const { code, stderr } = await start(t, ['run'], { command: join(directory, 'portcullis') }).finished;
  assert.equal(code, 4);
  assert.equal(stderr, `portcullis: the dependencies are not installed: run \`npm ci\` in ${directory} first.\n`);
});

test('on another operating system one sentence says what is supported', async (t) => {
  // A `uname` of our own in front of the real one.
  const directory = temporaryDirectory(t);
  writeFileSync(join(directory, 'uname'), '#!/bin/sh\necho Darwin arm64\n', { mode: 0o755 });
  const env = { PATH: `${directory}:${process.env.PATH}` };
  const { code, stderr } = await start(t, ['run'], { env }).finished;
  assert.equal(code, 4);
  assert.equal(
    stderr,
    'portcullis: this machine is Darwin arm64, and Portcullis runs on Linux on x64 and arm64 only.\n',
  );
});
