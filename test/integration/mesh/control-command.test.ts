// `portcullis control` and `portcullis mesh` as an operator and a node meet them: the real process, the real clients.

import assert from 'node:assert/strict';
import { readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { configFor, startApi } from '../../support/kube-api/harness.ts';
import { pod } from '../../support/kube-api/objects.ts';
import { temporaryDirectory } from '../../unit/mesh-agent/commands/support.ts';
import { runToEnd } from '../support.ts';
import { CONFIG, Control, createToken, Host, NODE, workload } from './control-process.ts';

const CART = 'spiffe://cluster.local/ns/shop/sa/cart';

test('a host joins with a token, follows the mesh, and the commands show it', async (t) => {
  const control = new Control(t, {
    'cart.yaml': workload('cart', '10.1.0.5'),
    'web.yaml': workload('web', '10.1.0.6'),
  });
  const host = await Host.of(t, control, await createToken(control, '--node', 'host-a'));
  await host.join();
  const { xds, until } = await host.follow(t);
  await until(() => xds.state.workloads.size === 2 && xds.state.services.size === 2);

  // What the node may have, and what it may not; the token was good for one certificate.
  assert.match((await host.request(CART)).chainPem, /^-----BEGIN CERTIFICATE-----/);
  await assert.rejects(host.request('spiffe://cluster.local/ns/shop/sa/db'), { code: 'identity-not-allowed' });
  host.certificate = null;
  await assert.rejects(host.request(NODE), { code: 'unauthenticated', message: /is used up/ });

  // A change, and a broken file beside a good one.
  control.write('cart.yaml', workload('cart', '10.1.0.7', ', status: draining'));
  const cart = (): string => [...xds.state.workloads.values()].find(({ name }) => name === 'cart')!.status;
  await until(() => cart() === 'draining');
  control.write('cart.yaml', 'kind: Workload\nmetadata: {nmae: cart}\n');
  await control.process.log(/error file of the mesh directory refused file=cart.yaml .*its last good content stays/);
  control.write('web.yaml', workload('web', '10.1.0.8'));
  await until(() => [...xds.state.workloads.values()].some(({ addresses }) => addresses.includes('10.1.0.8')));
  assert.equal(cart(), 'draining', 'the broken file is what it last was');

  const admin = ['--admin', await control.admin()];
  // Confirmed a moment after it was applied.
  let status = await control.mesh('status', ...admin);
  while (!/serving +3/.test(status)) status = await control.mesh('status', ...admin);
  assert.match(status, /^control plane {2}serving on 127\.0\.0\.1:\d+, version \d/m);
  assert.match(status, /^mesh {11}cluster\.local, version 3: 2 workloads, 2 services, 0 policies$/m);
  assert.match(
    status,
    /^source .*, 3 problems:\n(?: +cart\.yaml:\d: .*\n){2} +cart\.yaml:2: metadata: unknown key "nmae"$/m,
  );
  assert.match(status, /^certificates {3}2 issued, refused: 1 identity-not-allowed, 1 unauthenticated$/m);
  assert.match(status, /^proxy-a +host-a +serving +3 +4 +0 +\d+s +-$/m);
  assert.match(
    await control.mesh('services', ...admin),
    /^shop\/cart\.shop\.svc\.cluster\.local +- +80:8080\/http +0 +1 +0$/m,
  );
  assert.match(
    await control.mesh('workloads', ...admin),
    /^shop\/web +host-a +10\.1\.0\.8 +healthy +hbone +spiffe:\S+ +-$/m,
  );
  assert.match(await control.mesh('policies', ...admin), /^the mesh has no policies/);
  const json = JSON.parse(await control.mesh('status', '--json', ...admin));
  assert.equal(json.mesh.proxies[0].node, 'host-a');
  const { body } = await control.get('/metrics');
  for (const line of [
    'portcullis_mesh_version 3',
    'portcullis_mesh_proxies{state="serving"} 1',
    'portcullis_mesh_certificates_issued_total 2',
    'portcullis_mesh_certificates_refused_total{code="identity-not-allowed"} 1',
  ]) {
    assert.ok(body.split('\n').includes(line), `${line} in\n${body}`);
  }
  assert.doesNotMatch(body, /portcullis_mesh_source_errors 0/);
  assert.deepEqual([(await control.get('/healthz')).status, (await control.get('/readyz')).status], [200, 200]);

  // A lost node is locked out at once, without a restart; another change says that it needs one.
  writeFileSync(
    control.file,
    `${CONFIG.replace('"127.0.0.1:0"', '"127.0.0.1:1"')}attestation: {blockedIdentities: ["${NODE}"]}\n`,
  );
  control.process.kill('SIGHUP');
  await control.process.log(/warn a change needs a restart to take effect key=listen/);
  await control.process.log(/info configuration applied/);
  await until(() => !xds.status.connected);
  await control.process.log(/warn proxy refused .*is blocked/);
  writeFileSync(control.file, 'trustDomain: 1');
  control.process.kill('SIGHUP');
  await control.process.log(/error the configuration was refused, the old one stays/);

  control.process.kill('SIGTERM');
  assert.equal((await control.process.finished).code, 0);
});

test('connected proxies do not hold up the end, and a new process has the same CA', async (t) => {
  const base = temporaryDirectory(t);
  const first = new Control(t, { 'cart.yaml': workload('cart', '10.1.0.5') }, CONFIG, base);
  const host = await Host.of(t, first, await createToken(first, '--node', 'host-a', '--uses', 'unlimited'));
  await host.join();
  const { xds, until } = await host.follow(t);
  await until(() => xds.status.synced || xds.state.workloads.size === 1);
  first.process.kill('SIGTERM');
  const { code, stderr } = await first.process.finished;
  assert.equal(code, 0, stderr);
  assert.match(stderr, /info drained/);
  // With its file broken meanwhile, the mesh is what it was.
  const second = new Control(t, { 'cart.yaml': 'kind: [' }, CONFIG, base);
  const again = await Host.of(t, second, host.token);
  assert.equal(again.roots, host.roots);
  await again.join();
  const followed = await again.follow(t);
  await followed.until(() => followed.xds.state.workloads.size === 1);
  second.process.kill('SIGINT');
  assert.equal((await second.process.finished).code, 6);
});

test('join tokens are listed and revoked, and a revoked one is refused', async (t) => {
  const control = new Control(t, {});
  const token = await createToken(control, '--namespace', 'shop,blog', '--uses', '5', '--expires', '30m');
  const id = token.split('_')[1]!;
  const list = (): Promise<string> => control.mesh('token', 'list', '--config', control.file);
  assert.match(await list(), new RegExp(`^${id} +namespace shop, namespace blog +0 +5 +in (29|30)m$`, 'm'));
  const host = await Host.of(t, control, token);
  await host.request(CART);
  assert.match(await list(), new RegExp(`^${id} .* 1 +5 `, 'm'));
  await control.mesh('token', 'revoke', '--config', control.file, id);
  assert.equal(await list(), 'there are no join tokens\n');
  await assert.rejects(host.request(CART), { code: 'unauthenticated' });
  const gone = await runToEnd(t, 'mesh', 'token', 'revoke', '--config', control.file, id);
  assert.deepEqual(
    [gone.code, gone.stderr],
    [1, `portcullis: there is no join token ${id}: see \`portcullis mesh token list\`.\n`],
  );
});

test('what cannot begin ends with one sentence and the exit code that says why', async (t) => {
  const busy = new Control(t, {});
  const taken = await busy.address();
  const cases: [config: string, code: number, sentence: RegExp][] = [
    ['trustDomian: x\n', 1, /control\.yaml:1:1: unknown key "trustDomian".*did you mean "trustDomain"\?\n/],
    [CONFIG.replace('127.0.0.1:0', taken), 3, /cannot listen on \S+ for node proxies: another process already listens/],
    [CONFIG.replace('{address: "127.0.0.1:0"}', `{address: "${taken}"}`), 3, /for the admin port: another process/],
    [CONFIG.replace('state/ca', 'control.yaml'), 1, /cannot use the directory \S+: .*\(storage\)/],
    [
      CONFIG.replace('directory: mesh', 'kubernetes: {kubeConfig: missing.yaml}'),
      1,
      /no Kubernetes credentials in \S+missing\.yaml: .*\(no-credentials\)/,
    ],
  ];
  const runs = cases.map(async ([config, code, sentence]) => {
    const { code: actual, stderr } = await new Control(t, {}, config).process.finished;
    assert.equal(actual, code, stderr);
    assert.match(stderr, sentence);
    assert.doesNotMatch(stderr, /internal error/);
  });
  await Promise.all(runs);
});

test('a second control plane on the same CA is refused, and one that was killed leaves nothing in the way', async (t) => {
  const base = temporaryDirectory(t);
  const first = new Control(t, {}, CONFIG, base);
  await first.address();
  const second = await new Control(t, {}, CONFIG, base).process.finished;
  assert.equal(second.code, 1);
  assert.match(
    second.stderr,
    new RegExp(
      `portcullis: the CA in \\S+state/ca is in use by another control plane \\(\\S+, process ${first.process.pid}, since \\S+\\) \\(in-use\\); stop that one first`,
    ),
  );
  first.process.kill('SIGKILL');
  await first.process.finished;
  const third = new Control(t, {}, CONFIG, base);
  await third.address();
  third.process.kill('SIGTERM');
  assert.equal((await third.process.finished).code, 0);
  assert.deepEqual(readdirSync(join(base, 'state/ca')).includes('lock'), false);
});

test('with a Kubernetes cluster as its source it is ready when the cluster is known', async (t) => {
  const api = await startApi(t);
  api.store.put('pods', pod('cart-0'));
  api.access.required = true;
  const base = temporaryDirectory(t);
  writeFileSync(join(base, 'kube.yaml'), configFor(api, { token: 'control' }).exportConfig());
  // With policies from a directory beside it.
  const config = CONFIG.replace('directory: mesh', 'directory: mesh, kubernetes: {kubeConfig: kube.yaml}');
  const policy = 'kind: AuthorizationPolicy\nmetadata: {name: all, namespace: shop}\nspec: {rules: [{}]}\n';
  const control = new Control(t, { 'all.yaml': policy }, `${config}attestation: {kubernetes: {}}\n`, base);
  await control.process.log(/kubernetes cannot be followed .*cause=unauthenticated/);
  assert.deepEqual([(await control.get('/healthz')).status, (await control.get('/readyz')).status], [200, 503]);
  assert.match(
    await control.mesh('status', '--admin', await control.admin()),
    /^control plane {2}waiting for the source/,
  );
  api.access.tokens.set('control', { username: 'system:serviceaccount:portcullis:portcullis-control' });
  api.access.rules.set('system:serviceaccount:portcullis:portcullis-control', [
    { apiGroups: ['*'], resources: ['*'], verbs: ['list', 'watch'] },
  ]);
  await control.address();
  assert.match(await control.mesh('workloads', '--admin', await control.admin()), /\/cart-0 .* shop\/all$/m);
  const policies = await control.mesh('policies', '--admin', await control.admin());
  assert.match(policies, /^shop\/all +namespace +allow +1 +1 +yes$/m);
  control.process.kill('SIGTERM');
  assert.equal((await control.process.finished).code, 0);
});
