// `portcullis mesh apply` and `mesh wait`: files into a running mesh, and what the node proxies say to them.

import assert from 'node:assert/strict';
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { Client, credentials, Metadata } from '@grpc/grpc-js';
import {
  ADDRESS_TYPE,
  AUTHORIZATION_TYPE,
  DELTA_PATH,
  type DeltaRequest,
  type DeltaResponse,
  requestCodec,
  responseCodec,
} from '../../../mesh-agent/control/protocol.ts';
import { configFor, startApi } from '../../support/kube-api/harness.ts';
import { temporaryDirectory } from '../../unit/mesh-agent/commands/support.ts';
import { runToEnd } from '../support.ts';
import { CONFIG, Control, createToken, Host, workload } from './control-process.ts';

/** A proxy of the host's node that refuses policies, or answers nothing. */
function startStubborn(t: TestContext, host: Host, address: string, does: 'refuses' | 'is silent'): void {
  const { chainPem, keyPem } = host.certificate!;
  const channel = credentials.createSsl(Buffer.from(host.roots), Buffer.from(keyPem), Buffer.from(chainPem));
  const client = new Client(address, channel, { 'grpc.ssl_target_name_override': 'localhost' });
  t.after(() => client.close());
  const encode = (request: DeltaRequest): Buffer => requestCodec.encode(request);
  const decode = (bytes: Buffer): DeltaResponse => responseCodec.decode(bytes);
  const call = client.makeBidiStreamRequest(DELTA_PATH, encode, decode, new Metadata());
  call.on('error', () => {});
  const request = (typeUrl: string, more: Partial<DeltaRequest>): void =>
    void call.write({
      ...{ node: { id: `proxy that ${does}`, metadata: null }, typeUrl, resourceNamesUnsubscribe: [] },
      ...{ resourceNamesSubscribe: [], initialResourceVersions: {}, responseNonce: '', errorDetail: null },
      ...more,
    });
  let responses = 0;
  call.on('data', ({ nonce, resources, typeUrl }: DeltaResponse) => {
    // Whoever is silent was there at the beginning.
    if (does === 'is silent' && ++responses > 2) return;
    const bad = does === 'refuses' && typeUrl === AUTHORIZATION_TYPE && resources.length > 0;
    const errorDetail = bad ? { code: 3, message: 'no room for policies', details: [] } : null;
    request(typeUrl, { responseNonce: nonce, errorDetail });
  });
  for (const type of [AUTHORIZATION_TYPE, ADDRESS_TYPE]) request(type, { resourceNamesSubscribe: ['*'] });
}

const POLICY = 'kind: AuthorizationPolicy\nmetadata: {name: all, namespace: shop}\nspec: {rules: [{}]}\n';

/** Runs a command of the mesh; its lines and exit code. */
async function run(t: TestContext, ...args: string[]): Promise<{ code: number | null; out: string; err: string }> {
  const { code, stdout, stderr } = await runToEnd(t, 'mesh', ...args);
  return { code, out: stdout, err: stderr };
}

async function connected(control: Control, count: number): Promise<void> {
  for (;;) {
    const { mesh } = JSON.parse((await control.get('/status')).body);
    const serving = mesh.proxies.filter(({ version }: { version: number }) => version === mesh.version);
    if (serving.length === count) return;
  }
}

/** Waits until a proxy serves the mesh as it is. */
async function caughtUp(control: Control, proxy: string): Promise<void> {
  for (;;) {
    const { mesh } = JSON.parse((await control.get('/status')).body);
    const found = mesh.proxies.find((one: { proxy: string }) => one.proxy === proxy);
    if (found?.version === mesh.version) return;
  }
}

test('files are applied as one change, and the command returns when every node proxy serves it', async (t) => {
  const control = new Control(t, { 'cart.yaml': workload('cart', '10.1.0.5') });
  const admin = ['--admin', await control.admin()];
  const host = await Host.of(t, control, await createToken(control, '--node', 'host-a'));
  await host.join();
  const { xds } = await host.follow(t);
  await connected(control, 1);

  const files = join(temporaryDirectory(t), 'new');
  mkdirSync(join(files, 'team'), { recursive: true });
  writeFileSync(join(files, 'team', 'web.yaml'), workload('web', '10.1.0.6'));
  writeFileSync(join(files, 'all.yml'), POLICY);
  writeFileSync(join(files, 'notes.txt'), 'not of the mesh');
  const applied = await run(t, 'apply', '--wait', ...admin, files);
  assert.deepEqual([applied.code, applied.err], [0, '']);
  assert.match(
    applied.out,
    /^2 files, 2 written to \S+\/mesh\nversion 2 is served by 1 node proxy, proxy-a after \d+\.\d\d s\n$/,
  );
  assert.deepEqual([...xds.state.policies.keys()], ['shop/all']);
  assert.equal(xds.state.workloads.size, 2);
  const mesh = join(control.base, 'mesh');
  assert.equal(readFileSync(join(mesh, 'team/web.yaml'), 'utf8'), workload('web', '10.1.0.6'));
  assert.deepEqual(
    readdirSync(mesh).filter((name) => name.endsWith('.new') || name.endsWith('.lock') || name.endsWith('.txt')),
    [],
  );
  const again = await run(t, 'apply', '--wait', '--config', control.file, ...admin, files);
  assert.match(again.out, /^2 files, unchanged\nversion 2 is served by /);
  assert.match((await run(t, 'wait', ...admin)).out, /^version 2 is served by 1 node proxy/);

  // What is wrong is said with its place before anything is written, of the mesh as a whole.
  writeFileSync(join(files, 'all.yml'), POLICY.replace('rules', 'ruels'));
  writeFileSync(join(files, 'twice.yaml'), workload('cart', '10.1.0.9'));
  const wrong = await run(t, 'apply', '--wait', ...admin, files);
  assert.equal(wrong.code, 1);
  assert.match(wrong.err, /^all\.yml:3:8: spec: unknown key "ruels", .*did you mean "rules"\?$/m);
  assert.match(
    wrong.err,
    /^twice\.yaml:2:18: Workload shop\/cart is taken already by Workload shop\/cart at cart\.yaml:2:18$/m,
  );
  assert.match(wrong.err, /^portcullis: \d errors, and nothing was written\.$/m);
  assert.equal(readFileSync(join(mesh, 'all.yml'), 'utf8'), POLICY);
  // Nor when there is nobody to wait for.
  writeFileSync(join(files, 'all.yml'), POLICY.replace('all', 'every'));
  rmSync(join(files, 'twice.yaml'));
  const nobody = await run(t, 'apply', '--wait', '--config', control.file, '--admin', '127.0.0.1:1', files);
  assert.deepEqual([nobody.code, /cannot reach/.test(nobody.err)], [1, true]);
  assert.equal(readFileSync(join(mesh, 'all.yml'), 'utf8'), POLICY);
  const lone = await run(t, 'apply', '--config', control.file, join(files, 'notes.txt'));
  assert.deepEqual([lone.code, /notes\.txt would be passed over/.test(lone.err)], [2, true]);
});

test('a node proxy that refuses is named with its reason, one that does not answer when the time is over', async (t) => {
  const control = new Control(t, { 'cart.yaml': workload('cart', '10.1.0.5') });
  const admin = ['--admin', await control.admin()];
  const host = await Host.of(t, control, await createToken(control, '--node', 'host-a'));
  await host.join();
  await host.follow(t);
  startStubborn(t, host, await control.address(), 'refuses');
  await connected(control, 2);
  const file = join(temporaryDirectory(t), 'all.yaml');
  writeFileSync(file, POLICY);
  const refused = await run(t, 'apply', '--wait', ...admin, file);
  assert.equal(refused.code, 7);
  assert.match(refused.err, /^proxy that refuses refuses shop\/all: no room for policies$/m);
  assert.match(refused.err, /^version 2 is not served by 1 of 2 node proxies, the slowest proxy-a after \d\.\d\d s$/m);

  startStubborn(t, host, await control.address(), 'is silent');
  await control.process.log(/info proxy connected/, 3);
  await caughtUp(control, 'proxy that is silent');
  writeFileSync(file, POLICY.replace('all', 'none'));
  const late = await run(t, 'apply', '--wait', '--timeout', '5s', ...admin, file);
  assert.equal(late.code, 7);
  assert.match(late.err, /^proxy that is silent does not serve it after 5 s$/m);
  assert.match(late.err, /^proxy that refuses refuses /m);
  assert.match(late.err, /^version 3 is not served by 2 of 3 node proxies/m);
});

test('a mesh that comes from Kubernetes alone has another way', async (t) => {
  const api = await startApi(t);
  const base = temporaryDirectory(t);
  writeFileSync(join(base, 'kube.yaml'), configFor(api, { token: 'control' }).exportConfig());
  const control = new Control(t, {}, CONFIG.replace('directory: mesh', 'kubernetes: {kubeConfig: kube.yaml}'), base);
  const admin = ['--admin', await control.admin()];
  writeFileSync(join(base, 'all.yaml'), POLICY);
  // While it starts it may be too busy to answer a command in time.
  await control.address();
  const refused = await run(t, 'apply', ...admin, join(base, 'all.yaml'));
  assert.deepEqual(refused, {
    code: 1,
    out: '',
    err: 'portcullis: this mesh comes from Kubernetes and has no directory: use kubectl, then `portcullis mesh wait`.\n',
  });
  assert.equal((await run(t, 'wait', ...admin)).out, 'version 1 is in force; no node proxy is connected\n');
});
