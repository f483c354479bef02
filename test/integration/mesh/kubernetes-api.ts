// A real API server: does it accept what we install, give the control plane what it needs and nothing more, and say
// what the source and the certificate service rely on (kubernetes-cluster.test.ts)?

import assert from 'node:assert/strict';
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { fileURLToPath } from 'node:url';
import { isDeepStrictEqual } from 'node:util';
import { parseAllDocuments } from 'yaml';
import type { LoadKubeConfig } from '../../../mesh-agent/kubernetes/api-client.ts';
import { Followed } from '../../support/kube-api/harness.ts';
import { KubeCluster, type KubeObject } from '../../support/kube-cluster/cluster.ts';
import { Relay } from '../../support/kube-cluster/relay.ts';
import { temporaryDirectory } from '../support.ts';
import { Control, Host, NODE } from './control-process.ts';

const manifests = fileURLToPath(new URL('../../../deploy/manifests', import.meta.url));
const manifest = (file: string): string => readFileSync(join(manifests, file), 'utf8');
const CONTROL = 'portcullis-control';
const LABEL = 'pod-security.kubernetes.io/enforce';

/** All of it, in one cluster. */
export async function testApi(t: TestContext): Promise<void> {
  const cluster = await KubeCluster.start(t);
  await t.test('accepts every manifest, strictly', async () => {
    const others = readdirSync(manifests).filter((file) => file.endsWith('.yaml') && file !== 'namespace.yaml');
    for (const file of ['namespace.yaml', ...others]) await cluster.applyAll(manifest(file));
    const unknown = await cluster.apply({
      apiVersion: 'v1',
      kind: 'ConfigMap',
      metadata: { name: 'x', namespace: 'portcullis' },
      dta: {},
    });
    assert.match(unknown.body.message, /dta: field not declared in schema/, 'or the above would say nothing');
  });
  await t.test('admits the pods of the templates at the Pod Security levels that are documented', () =>
    admitted(cluster),
  );
  await t.test('lets the control plane read what it reads, and nothing else', (t) => allowed(t, cluster));
  await t.test('is followed through a cut, a restart and a compaction', (t) => resumed(t, cluster));
  await t.test('says whose tokens are whose, and changes reach a node', (t) => attested(t, cluster));
}

/** Each of our pods in namespaces of the three levels, without keeping it. */
async function admitted(cluster: KubeCluster): Promise<void> {
  const levels = ['restricted', 'baseline', 'privileged'];
  const found: Record<string, string> = {};
  for (const [file, kind] of [
    ['control.yaml', 'Deployment'],
    ['gateway.yaml', 'Deployment'],
    ['node.yaml', 'DaemonSet'],
    ['sidecar.yaml', 'Deployment'],
  ] as const) {
    const object = parseAllDocuments(manifest(file))
      .map((document) => document.toJS())
      .find((object) => object?.kind === kind);
    const { metadata, spec } = object.spec.template;
    const body = { metadata: { ...metadata, name: 'trial' }, spec };
    for (const level of levels) {
      const namespace = `level-${level}`;
      const about = { name: namespace, labels: { [LABEL]: level } };
      await cluster.apply({ apiVersion: 'v1', kind: 'Namespace', metadata: about });
      await account(cluster, namespace, spec.serviceAccountName);
      const path = `/api/v1/namespaces/${namespace}/pods?dryRun=All&fieldValidation=Strict`;
      const answer = await cluster.request('POST', path, { body });
      if (answer.status === 403) assert.match(answer.body.message, /violates PodSecurity/);
      else assert.equal(answer.status, 201, JSON.stringify(answer.body));
      if (answer.status === 201) found[file] ??= level;
    }
  }
  assert.deepEqual(found, {
    'control.yaml': 'restricted',
    'gateway.yaml': 'restricted',
    'node.yaml': 'privileged',
    'sidecar.yaml': 'privileged',
  });
}

/** What the account of the control plane may do beyond what everybody may. */
async function allowed(t: TestContext, cluster: KubeCluster): Promise<void> {
  await account(cluster, 'portcullis', 'nobody');
  const rulesOf = async (name: string): Promise<string[]> => {
    const token = await cluster.token('portcullis', name);
    const body = { spec: { namespace: 'portcullis' } };
    const path = '/apis/authorization.k8s.io/v1/selfsubjectrulesreviews';
    const { status } = await cluster.must('POST', path, { body, token });
    assert.equal(status.incomplete, false);
    return status.resourceRules.flatMap(({ apiGroups, resources, verbs }: KubeObject) =>
      resources.flatMap((resource: string) => verbs.map((verb: string) => `${verb} ${resource}.${apiGroups}`)),
    );
  };
  const everybody = await rulesOf('nobody');
  const own = (await rulesOf(CONTROL)).filter((rule) => !everybody.includes(rule));
  const read = ['endpointslices.discovery.k8s.io', 'namespaces.', 'nodes.', 'pods.', 'serviceaccounts.', 'services.'];
  const expected = [
    'create tokenreviews.authentication.k8s.io',
    ...read.flatMap((what) => [`list ${what}`, `watch ${what}`]),
  ];
  assert.deepEqual(own.sort(), expected.sort());

  // A right that is missing is named; and the source goes on by itself when it is given.
  const name = 'portcullis-portcullis-control';
  const path = `/apis/rbac.authorization.k8s.io/v1/clusterroles/${name}`;
  const role = await cluster.must('GET', path);
  const rules = role.rules.filter(({ resources }: KubeObject) => !resources.includes('endpointslices'));
  const patch = (rules: unknown): Promise<KubeObject> =>
    cluster.must('PATCH', path, { body: { rules }, type: 'application/merge-patch+json' });
  await patch(rules);
  const followed = await follow(t, async () => cluster.configFor(await cluster.token('portcullis', CONTROL)), false);
  const started = followed.start();
  while (followed.lines.length === 0) await new Promise((resolve) => setImmediate(resolve));
  const { fields } = followed.lines[0]!;
  assert.deepEqual([fields.cause, fields.resource], ['forbidden', 'endpointslices']);
  assert.match(String(fields.error), /portcullis:portcullis-control" cannot list resource "endpointslices"/);
  await patch(role.rules);
  await started;
}

/** Nothing is lost while the source is cut off, the API server restarted and its history gone. */
async function resumed(t: TestContext, cluster: KubeCluster): Promise<void> {
  const relay = await Relay.to(t, cluster.url);
  const token = await cluster.token('portcullis', CONTROL);
  const shop = {
    apiVersion: 'v1',
    kind: 'Namespace',
    metadata: { name: 'shop', labels: { 'portcullis.dev/mesh': 'enabled' } },
  };
  await cluster.apply(shop);
  await account(cluster, 'shop', 'cart');
  const run = (name: string, ip: string): Promise<KubeObject> =>
    cluster.runPod(name, { namespace: 'shop', account: 'cart', node: 'host-a', ip, labels: { app: 'cart' } });
  for (const [name, ip] of [
    ['one', '10.0.0.1'],
    ['two', '10.0.0.2'],
  ] as const)
    await run(name, ip);
  const followed = await follow(t, async () => cluster.configFor(token, relay.url));
  assert.equal(followed.pod('two')?.status, 'healthy');
  assert.equal(followed.pod('one')?.protocol, 'hbone');

  relay.cut();
  await cluster.must('DELETE', '/api/v1/namespaces/shop/pods/one');
  await cluster.patchStatus('/api/v1/namespaces/shop/pods/two', { conditions: [{ type: 'Ready', status: 'False' }] });
  await run('three', '10.0.0.3');
  await cluster.killApi();
  await cluster.compact();
  await cluster.startApi();
  relay.mend();
  await followed.until('what happened meanwhile', () => {
    const names = [...followed.state.workloads.values()].filter(({ namespace }) => namespace === 'shop');
    return isDeepStrictEqual(names.map(({ name, status }) => `${name} ${status}`).sort(), [
      'three healthy',
      'two unhealthy',
    ]);
  });
  const pods = followed.source.state.collections.find(({ resource }) => resource === 'pods')!;
  assert.equal(pods.lists, 2, 'the version that was reached is forgotten');
  assert.ok(followed.lines.some(({ message }) => message.includes('forgot the version')));
}

/** The control plane as a process: tokens, what a node may have, and a change on its way. */
async function attested(t: TestContext, cluster: KubeCluster): Promise<void> {
  const tokenFile = join(temporaryDirectory(t), 'token');
  writeFileSync(tokenFile, `${await cluster.token('portcullis', CONTROL)}\n`);
  const control = new Control(
    t,
    {},
    `trustDomain: cluster.local
listen: "127.0.0.1:0"
admin: {address: "127.0.0.1:0"}
ca: {directory: state/ca}
source: {kubernetes: {kubeConfig: ${cluster.configFile(t, tokenFile)}}}
attestation: {kubernetes: {nodeAccounts: [portcullis/portcullis-node]}}
`,
  );
  await account(cluster, 'shop', 'pay');
  const slot = { namespace: 'portcullis', account: 'portcullis-node', ip: '192.0.2.7' };
  const agent = await cluster.runPod('agent-a', { ...slot, node: 'host-a' });
  await cluster.runPod('pay', { namespace: 'shop', account: 'pay', node: 'host-b', ip: '10.0.0.9' });
  const tokenOf = (spec: object): Promise<string> =>
    cluster.token('portcullis', 'portcullis-node', { audiences: ['portcullis'], ...spec });
  const boundObjectRef = { apiVersion: 'v1', kind: 'Pod', name: 'agent-a', uid: agent.metadata.uid };
  const good = await tokenOf({ boundObjectRef });

  const refused = async (token: string, identity: string, code: string, message: RegExp): Promise<void> => {
    const host = await Host.of(t, control, token);
    await assert.rejects(host.request(identity), (error: Error & { code: string }) => {
      assert.equal(error.code, code);
      assert.match(error.message, message);
      return true;
    });
  };
  const own = 'spiffe://cluster.local/ns/portcullis/sa/portcullis-node';
  const cart = 'spiffe://cluster.local/ns/shop/sa/cart';
  await refused(await cluster.token('portcullis', 'portcullis-node'), own, 'unauthenticated', /audience/);
  await refused(cluster.forge(good, { exp: 1_000_000_000 }), own, 'unauthenticated', /expired/);
  await refused(`${good.slice(0, -8)}AAAAAAAA`, own, 'unauthenticated', /not valid/);
  // Of the right account, and of no pod: it is the account's, and speaks for no node.
  await refused(await tokenOf({}), NODE, 'identity-not-allowed', /may not have/);
  await refused(good, 'spiffe://cluster.local/node/host-b', 'identity-not-allowed', /agent-a may not have/);
  await refused(good, 'spiffe://cluster.local/ns/shop/sa/pay', 'identity-not-allowed', /agent-a may not have/);
  const host = await Host.of(t, control, good);
  await host.join();
  await host.request(cart);
  const shopToken = await cluster.token('shop', 'cart', { audiences: ['portcullis'] });
  await refused(shopToken, NODE, 'identity-not-allowed', /shop\/cart may not have/);

  // A slice of a service without selector, on its way to a node that is connected.
  const { xds, until } = await host.follow(t);
  const about = (name: string): object => ({
    name,
    namespace: 'shop',
    labels: { 'kubernetes.io/service-name': 'old' },
  });
  const slice = (address: string): Promise<unknown> =>
    cluster.apply({
      apiVersion: 'discovery.k8s.io/v1',
      kind: 'EndpointSlice',
      metadata: about('old-1'),
      addressType: 'IPv4',
      ports: [{ name: '', port: 8080 }],
      endpoints: [{ addresses: [address] }],
    });
  const spec = { ports: [{ port: 80 }] };
  await cluster.apply({ apiVersion: 'v1', kind: 'Service', metadata: { name: 'old', namespace: 'shop' }, spec });
  const reaches = (address: string): boolean =>
    [...xds.state.workloads.values()].some(
      ({ addresses, services }) => addresses.includes(address) && 'shop/old.shop.svc.cluster.local' in services,
    );
  await xds.lookup('shop/old.shop.svc.cluster.local', 10_000);
  await slice('198.51.100.1');
  await until(() => reaches('198.51.100.1'));
  await slice('198.51.100.2');
  await until(() => reaches('198.51.100.2') && !reaches('198.51.100.1'));
  const shown = await control.mesh('workloads', '--admin', await control.admin());
  assert.match(shown, /^shop\/old-1-198\.51\.100\.2 +- +198\.51\.100\.2 +healthy +none +- /m, 'no identity');

  // A service account that is deleted has no identity any more, though its pod runs on.
  await cluster.must('DELETE', '/api/v1/namespaces/shop/serviceaccounts/cart');
  const isRefused = (): Promise<boolean> =>
    host.request(cart).then(
      () => false,
      ({ code }) => code === 'identity-not-allowed',
    );
  while (!(await isRefused()));

  // The pod is gone, and so is its token; in other words, because the answer about it is remembered for some seconds.
  await cluster.must('DELETE', '/api/v1/namespaces/portcullis/pods/agent-a');
  await refused(cluster.forge(good, { jti: 'another' }), own, 'unauthenticated', /not valid/);
}

function account(cluster: KubeCluster, namespace: string, name: string): Promise<unknown> {
  return cluster.apply({ apiVersion: 'v1', kind: 'ServiceAccount', metadata: { name, namespace } });
}

async function follow(t: TestContext, load: LoadKubeConfig, start = true): Promise<Followed> {
  const followed = new Followed(load);
  t.after(() => followed.source.close());
  if (start) await followed.start();
  return followed;
}
