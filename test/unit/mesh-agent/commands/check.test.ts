// `portcullis mesh check`: what a directory is told, with the places, and the exit codes.

import assert from 'node:assert/strict';
import { mkdirSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { runCli } from '../../../../gateway/cli.ts';
import { temporaryDirectory, writeConfig } from './support.ts';

const CART = `kind: Service
metadata: {name: cart, namespace: shop}
spec: {selector: {app: cart}, ports: [{port: 80}]}
---
kind: Workload
metadata: {name: cart-0, namespace: shop, labels: {app: cart}}
spec: {addresses: [10.0.0.1], serviceAccount: cart}
`;

async function check(
  t: TestContext,
  files: Record<string, string>,
  ...options: string[]
): Promise<{ code: number; out: string; err: string }> {
  const directory = join(temporaryDirectory(t), 'mesh');
  mkdirSync(directory);
  for (const [name, text] of Object.entries(files)) {
    mkdirSync(dirname(join(directory, name)), { recursive: true });
    writeFileSync(join(directory, name), text);
  }
  let [out, err] = ['', ''];
  const io = { out: (text: string) => void (out += text), err: (text: string) => void (err += text) };
  const code = await runCli(['mesh', 'check', directory, ...options], io);
  // The file as it is found from here, with the path before it cut off.
  const short = (text: string): string => text.replaceAll(/[^\s"]*\/mesh\//g, '').replaceAll(directory, 'mesh');
  return { code, out: short(out), err: short(err) };
}

test('a good directory is summed up, with everything that a control plane passes over left out', async (t) => {
  const files = { 'a/cart.yaml': CART, '.hidden.yaml': 'kind: [', 'README.md': 'text' };
  assert.deepEqual(await check(t, files), {
    code: 0,
    out: 'mesh is valid: 1 file, 1 workload, 1 service, 0 authorisation policies\n',
    err: '',
  });
});

test('every error of every file is told with its place, also those that only show together', async (t) => {
  const { code, out, err } = await check(t, {
    'cart.yaml': CART,
    'broken.yaml': 'kind: Workload\nmetadata: {nmae: x}\nspec: {addresses: [10.0.0.300]}\n',
    'taken.yaml': CART.replaceAll('cart', 'card'),
    'traffic.yaml': 'kind: TrafficPolicy\nmetadata: {name: t, namespace: shop}\nspec: {service: cat}\n',
  });
  assert.equal(code, 1);
  assert.equal(out, '');
  assert.deepEqual(err.split('\n'), [
    'broken.yaml:2:11: metadata: key "name" is missing, expected a name of lower-case letters, digits, "-" and "."',
    'broken.yaml:2:12: metadata: unknown key "nmae", expected one of name, namespace, labels, did you mean "name"?',
    'broken.yaml:3:20: spec.addresses[0]: "10.0.0.300" is not an IP address, expected an IP address',
    'taken.yaml:7:20: address 10.0.0.1 is taken already by Workload shop/cart-0 at cart.yaml:7:19',
    'traffic.yaml:3:17: spec.service: there is no service "cat", did you mean cart?',
    '5 errors in mesh',
    '',
  ]);
});

test('what is valid and probably not meant is a warning with a name', async (t) => {
  const policies = `kind: AuthorizationPolicy
metadata: {name: typo, namespace: shop}
spec: {selector: {matchLabels: {app: crat}}}
---
kind: AuthorizationPolicy
metadata: {name: nobody, namespace: shop}
spec:
  rules:
    - from: [{source: {principals: [cluster.local/ns/shop/sa/cart, "*", cluster.local/ns/shop/sa/wbe, other/ns/a/sa/b]}}]
---
kind: AuthorizationPolicy
metadata: {name: elsewhere, namespace: blog}
spec: {action: DENY}
---
kind: Service
metadata: {name: idle, namespace: shop}
spec: {selector: {app: idle}, ports: [{port: 80}]}
`;
  const files = { 'cart.yaml': CART, 'policies.yaml': policies };
  const { code, out, err } = await check(t, files);
  assert.equal(code, 0);
  assert.match(out, /^mesh is valid, with 4 warnings: 2 files, /);
  assert.deepEqual(err.split('\n'), [
    'policies.yaml:3:18: warning[unused-policy]: AuthorizationPolicy shop/typo: namespace shop has no workload that the selector matches',
    'policies.yaml:9:73: warning[unknown-principal]: AuthorizationPolicy shop/nobody: no workload has the identity spiffe://cluster.local/ns/shop/sa/wbe',
    'policies.yaml:12:18: warning[unused-policy]: AuthorizationPolicy blog/elsewhere: namespace blog has no workload at all',
    'policies.yaml:17:18: warning[service-without-workloads]: Service shop/idle: no workload of namespace shop has the labels, so that every request to it fails',
    '',
  ]);
  assert.equal((await check(t, files, '--warnings-as-errors')).code, 1);
  const json = JSON.parse((await check(t, files, '--format', 'json')).out);
  assert.deepEqual(json[0], {
    ...{ file: 'policies.yaml', line: 3, column: 18, severity: 'warning', name: 'unused-policy' },
    message: 'AuthorizationPolicy shop/typo: namespace shop has no workload that the selector matches',
  });
  // Identities are those of the trust domain that is named.
  assert.match((await check(t, files, '--trust-domain', 'other')).err, /other\/ns\/a\/sa\/b$/m);
});

test('policies beside a cluster are judged without the services that only the cluster knows', async (t) => {
  const config = writeConfig(t, 'trustDomain: cluster.local\nca: {directory: ca}\nsource: {kubernetes: {}}\n');
  const traffic = 'kind: TrafficPolicy\nmetadata: {name: t, namespace: shop}\nspec: {service: cart, rules: [{}]}\n';
  const good = await check(t, { 'traffic.yaml': traffic }, '--config', config);
  assert.deepEqual([good.code, good.err], [0, '']);
  const wrong = await check(t, { 'w.yaml': CART, 't.yaml': traffic.replace('rules', 'ruels') }, '--config', config);
  assert.equal(wrong.code, 1);
  assert.match(wrong.err, /^t\.yaml:3:23: .*did you mean "rules"\?$/m);
  assert.match(wrong.err, /^w\.yaml:1:7: Services of this mesh come from its other source/m);
});

test('wrong use is said', async (t) => {
  for (const [args, text] of [
    [['check'], /needs a directory, or --config FILE/],
    [['check', 'a', 'b'], /takes one directory, not b as well/],
    [['check', 'a', '--format', 'xml'], /--format is text or json, not xml/],
    [['aply'], /unknown command aply: did you mean apply\?/],
    [['apply'], /needs a file or a directory/],
    [['apply', '--timeout', '5', 'x'], /--timeout: 5 is not a duration/],
    [['wait', 'x'], /takes no argument x/],
    [['rotate'], /needs --config FILE/],
    [['rotate', '--config', 'x', '--abort', '--forget', 'y'], /contradict each other/],
  ] as const) {
    let err = '';
    const code = await runCli(['mesh', ...args], { out: () => {}, err: (message) => void (err += message) });
    assert.equal(code, 2, args.join(' '));
    assert.match(err, text);
  }
  let err = '';
  const nowhere = join(temporaryDirectory(t), 'nowhere');
  assert.equal(await runCli(['mesh', 'check', nowhere], { out: () => {}, err: (text) => void (err += text) }), 1);
  assert.match(err, /cannot read \S+nowhere: it does not exist\./);
  for (const command of ['check', 'apply', 'wait', 'rotate']) {
    let out = '';
    assert.equal(await runCli(['mesh', command, '--help'], { out: (text) => void (out += text), err: () => {} }), 0);
    assert.match(out, new RegExp(`portcullis mesh ${command} `));
  }
});
