// `portcullis control` and `portcullis mesh` as an operator and a node meet them: the real process, the real clients.

import assert from 'node:assert/strict';
import { readdirSync, renameSync, writeFileSync } from 'node:fs';
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

test('an identity that is blocked gets no certificate by its node either, until it is not', async (t) => {
  const blocked = `${CONFIG}attestation: {blockedIdentities: ["${CART}"]}\n`;
  const control = new Control(t, { 'cart.yaml': workload('cart', '10.1.0.5') }, blocked);
  const host = await Host.of(t, control, await createToken(control, '--node', 'host-a'));
  await host.join();
  const reason = { code: 'identity-not-allowed', message: /sa\/cart is blocked \(attestation\.blockedIdentities\)/ };
  await assert.rejects(host.request(CART), reason);
  await control.process.log(/warn a certificate request was refused .*cause=".*sa\/cart is blocked/);
  const reload = async (config: string, count: number): Promise<void> => {
    writeFileSync(control.file, config);
    control.process.kill('SIGHUP');
    await control.process.log(/info configuration applied/, count);
  };
  await reload(CONFIG, 1);
  await host.request(CART);
  await reload(blocked, 2);
  await assert.rejects(host.request(CART), reason);
});

test('a control plane whose source is cut off says of nothing new that it is outside, and all else', async (t) => {
  const control = new Control(t, { 'cart.yaml': workload('cart', '10.1.0.5') });
  const host = await Host.of(t, control, await createToken(control, '--node', 'host-a'));
  await host.join();
  const { xds } = await host.follow(t);
  assert.deepEqual(await xds.lookup('/10.77.0.1', 10_000), { status: 'absent' });
  const directory = join(control.base, 'mesh');
  renameSync(directory, `${directory}-away`);
  await control.process.log(/warn the source of the mesh is cut off .*nodes refuse them/);
  assert.match(await control.mesh('status', '--admin', await control.admin()), /^ +cut off: what it does not know /m);
  assert.deepEqual(await xds.lookup('/10.77.0.2', 100), { status: 'deadline', connected: true });
  assert.equal((await xds.lookup('/10.1.0.5', 10_000)).status, 'found');
  assert.deepEqual(xds.known('/10.77.0.1'), { status: 'absent' });
  const waiting = xds.lookup('/10.77.0.3', 60_000);
  renameSync(`${directory}-away`, directory);
  await control.process.log(/info the source of the mesh is followed again/);
  assert.deepEqual(await waiting, { status: 'absent' });
});

test('a mesh whose directory is empty or away at once goes on, and status, metric and log say so', async (t) => {
  const control = new Control(t, {
    'cart.yaml': workload('cart', '10.1.0.5'),
    'web.yaml': workload('web', '10.1.0.6'),
  });
  const admin = ['--admin', await control.admin()];
  await control.address();
  const directory = join(control.base, 'mesh');
  const problems = async (): Promise<string> => /source_errors (\d+)$/m.exec((await control.get('/metrics')).body)![1]!;
  assert.equal(await problems(), '0');
  for (const name of ['cart.yaml', 'web.yaml']) renameSync(join(directory, name), join(control.base, name));
  await control.process.log(/error mesh directory has lost all of its files, what they held stays in use/);
  const status = await control.mesh('status', ...admin);
  // Two renames may be two looks: the last files that went are those that are missed.
  assert.match(status, /^mesh .*: [12] workloads?, [12] services?,/m);
  assert.match(status, /^source .* problems?:\n +\/\S+\/mesh: .*stays in use; bring the files back, or, if/m);
  assert.notEqual(await problems(), '0');
  // What is applied meanwhile would be all that is left of the mesh.
  const refused = await runToEnd(t, 'mesh', 'apply', ...admin, join(control.base, 'cart.yaml'));
  assert.equal(refused.code, 1);
  assert.match(refused.stderr, /nothing was written to \S+\/mesh: .* gone, .*bring the files back/);
  assert.deepEqual(readdirSync(directory), []);
  for (const name of ['cart.yaml', 'web.yaml']) renameSync(join(control.base, name), join(directory, name));
  await control.process.log(/info mesh directory has files again/);
  assert.equal(await problems(), '0');
  renameSync(directory, `${directory}-away`);
  await control.process.log(/error mesh directory cannot be read/);
  assert.match(await control.mesh('status', ...admin), /^ +\/\S+\/mesh: the directory cannot be read \(ENOENT/m);
  assert.notEqual(await problems(), '0');
  renameSync(`${directory}-away`, directory);
  await control.process.log(/info mesh directory can be read again/);
  assert.equal(await problems(), '0');
  assert.doesNotMatch(await control.mesh('status', ...admin), /problem/);

  // A restart, as after a boot whose mount failed, is no sign that the mesh is to be empty; a file there is one.
  control.process.kill('SIGTERM');
  assert.equal((await control.process.finished).code, 0);
  for (const name of ['cart.yaml', 'web.yaml']) renameSync(join(directory, name), join(control.base, name));
  const next = new Control(t, {}, CONFIG, control.base);
  await next.address();
  const kept = await next.mesh('status', '--admin', await next.admin());
  assert.match(kept, /^mesh .*: 2 workloads, 2 services,/m);
  // Nobody has asked it anything before it knows that it cannot know.
  assert.match(
    kept,
    /^source .* 2 problems:\n +\/\S+\/mesh: all 2 files that were in use are gone, .*bring the files back.*\n +cut off: /m,
  );
  next.process.kill('SIGTERM');
  assert.equal((await next.process.finished).code, 0);
  const last = new Control(t, { 'empty.yaml': '' }, CONFIG, control.base);
  await last.address();
  assert.match(await last.mesh('status', '--admin', await last.admin()), /^mesh .*: 0 workloads, 0 services,/m);
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
