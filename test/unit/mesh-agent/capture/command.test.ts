import assert from 'node:assert/strict';
import { test } from 'node:test';
import { captureCommand } from '../../../../mesh-agent/capture/command.ts';
import { isNamespaceFile, listNamespaces, namespacePath } from '../../../../mesh-agent/capture/discovery.ts';

async function run(...args: string[]): Promise<{ code: number; out: string; err: string }> {
  let out = '';
  let err = '';
  const code = await captureCommand(args, { out: (text) => (out += text), err: (text) => (err += text) });
  return { code, out, err };
}

test('rules can be seen without being installed', async () => {
  const { code, out } = await run(
    'print',
    '--netns',
    'shop',
    '--outbound-port',
    '16001',
    '--exclude-outbound',
    '10.0.0.0/8',
  );
  assert.equal(code, 0);
  assert.match(out, /^add rule inet portcullis outbound meta l4proto tcp redirect to :16001 comment "capture"$/m);
  assert.match(out, /\{ 10\.0\.0\.0\/8 \}/);
});

test('wrong usage is said in one sentence', async () => {
  const wrong: [string[], RegExp][] = [
    [['instal'], /did you mean install\?/],
    [['install'], /exactly one of/],
    [['install', '--netns', 'a', '--pid', '1'], /exactly one of/],
    [['install', '--netns', 'a/b'], /neither a name nor an absolute path/],
    [['install', '--pid', '-1'], /not a process id/],
    [['install', '--uid', 'root', '--name', 'x'], /NaN is not a user id/],
    [['install', '--netns', 'a', '--outbound-port', 'http'], /NaN is not a port/],
    [['install', '--netns', 'a', '--exclude-outbound', 'x'], /"x" is not an address/],
    [['remove', '--netns', 'a', '--fail-open'], /unknown option/],
    [['remove', '--netns', 'a', 'b'], /takes no argument b/],
  ];
  for (const [args, message] of wrong) await assert.rejects(run(...args), { code: 2, message }, args.join(' '));
  const help = await run('--help');
  assert.deepEqual([help.code, help.out.includes('--fail-open')], [0, true]);
});

test('the own namespace is among those found', async () => {
  const own = listNamespaces().filter((namespace) => namespace.own);
  assert.equal(own.length, 1);
  assert.ok(own[0]!.pids.includes(process.pid));
  const { out } = await run('list', '--json');
  assert.ok(JSON.parse(out).some((namespace: { own: boolean }) => namespace.own));
});

test('names and paths of namespaces', () => {
  assert.equal(namespacePath('shop'), '/run/netns/shop');
  assert.equal(namespacePath('/proc/1/ns/net'), '/proc/1/ns/net');
  for (const name of ['', '.', '..', 'a/b']) assert.equal(namespacePath(name), undefined);
  assert.equal(isNamespaceFile('/proc/self/ns/net'), true);
  assert.equal(isNamespaceFile('/etc/passwd'), false);
});
