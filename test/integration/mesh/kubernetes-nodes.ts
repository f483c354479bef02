// Node proxies in a mesh whose pods, services, slices and tokens are those of a real API server; the pods themselves
// are network namespaces of this machine (kubernetes-cluster.test.ts).

import assert from 'node:assert/strict';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { fileURLToPath } from 'node:url';
import { NamespaceSockets } from '../../../core/ffi/netns.ts';
import { KubeCluster, type KubeObject } from '../../support/kube-cluster/cluster.ts';
import { Relay } from '../../support/kube-cluster/relay.ts';
import { startApp } from '../../support/mesh/apps.ts';
import { eventually, meshSkipReason, TestMesh } from '../../support/mesh/mesh.ts';

const manifests = fileURLToPath(new URL('../../../deploy/manifests', import.meta.url));
const API_PORT = 6443;

/** The whole, in one cluster and one mesh. Skips where there can be no mesh. */
export async function testNodes(t: TestContext): Promise<void> {
  const reason = meshSkipReason();
  if (reason !== false) return t.skip(reason);
  const cluster = await KubeCluster.start(t);
  for (const name of ['namespace', 'control', 'node']) {
    await cluster.applyAll(readFileSync(join(manifests, `${name}.yaml`), 'utf8'));
  }
  const mesh = await TestMesh.create(
    t,
    { nodes: { one: { 'web-0': {} }, two: { 'cart-0': {}, 'cart-1': {}, outside: { member: false } } }, services: {} },
    { start: false },
  );
  const labels = { 'portcullis.dev/mesh': 'enabled' };
  await cluster.apply({ apiVersion: 'v1', kind: 'Namespace', metadata: { name: 'shop', labels } });
  for (const [name, node] of [
    ['web-0', 'one'],
    ['cart-0', 'two'],
    ['cart-1', 'two'],
  ] as const) {
    const account = name.slice(0, -2);
    await cluster.apply({ apiVersion: 'v1', kind: 'ServiceAccount', metadata: { name: account, namespace: 'shop' } });
    const ip = mesh.at(name).address;
    await cluster.runPod(name, { namespace: 'shop', account, node, ip, labels: { app: account } });
  }
  const cart = await service(cluster, 'cart', { selector: { app: 'cart' } });
  const old = await service(cluster, 'old', {});
  await slice(cluster, 'old', '192.0.2.200');

  await startControl(t, cluster, mesh);
  const roots = await mesh.command('roots', '--admin', mesh.controlAdmin);
  for (const [name, node] of mesh.nodes) {
    const agent = `agent-${name}`;
    const where = { namespace: 'portcullis', account: 'portcullis-node', node: name, ip: node.namespace.address };
    const { metadata } = await cluster.runPod(agent, where);
    const boundObjectRef = { apiVersion: 'v1', kind: 'Pod', name: agent, uid: metadata.uid };
    const spec = { audiences: ['portcullis'], boundObjectRef };
    node.configure({ mode: 'strict' }, roots, await cluster.token('portcullis', 'portcullis-node', spec));
    const file = join(node.directory, 'node.yaml');
    writeFileSync(file, readFileSync(file, 'utf8').replace('joinToken:', 'serviceAccountToken:'));
    await node.start();
  }
  // Pods are found by their processes.
  for (const name of ['web-0', 'cart-0', 'cart-1', 'outside']) {
    await startApp(mesh.at(name), name, { port: 8080, kind: 'http' });
  }
  await mesh.settled();
  const appsAt = async (vip: string): Promise<string[]> => {
    const apps = new Set<string>();
    for (let request = 0; request < 4; request++) {
      apps.add(JSON.parse(await mesh.curl('web-0', `http://${vip}/`)).app);
    }
    return [...apps].sort();
  };
  const becomes = (vip: string, ...apps: string[]): Promise<true> =>
    eventually(`${vip} is ${apps}`, async () => {
      const found = await appsAt(vip);
      if (found.join() !== apps.join()) throw new Error(`it is ${found}`);
      return true;
    });

  await t.test('requests go from pod to pod by cluster IP, with the identity of the account', async () => {
    assert.deepEqual(await appsAt(cart), ['cart-0', 'cart-1']);
    const { policy, peer } = mesh.node('two').accessLog().at(-1)!;
    assert.deepEqual([policy, peer], ['shop/web-only', 'spiffe://cluster.local/ns/shop/sa/web']);
    await assert.rejects(mesh.curl('outside', `http://${mesh.at('cart-0').address}:8080/`), /ended with (56|52)/);
  });

  await t.test('a pod that is not ready and a slice that is replaced are followed', async () => {
    const conditions = [{ type: 'Ready', status: 'False' }];
    await cluster.patchStatus('/api/v1/namespaces/shop/pods/cart-0', { conditions });
    await becomes(cart, 'cart-1');
    await slice(cluster, 'old', mesh.at('outside').address);
    await becomes(old, 'outside');
  });

  await t.test(
    'traffic goes on while API server and control plane are away, and changes when they are back',
    async () => {
      await cluster.killApi();
      await mesh.killControl();
      assert.deepEqual(await appsAt(cart), ['cart-1']);
      await cluster.startApi();
      await mesh.startControl();
      await cluster.must('DELETE', '/api/v1/namespaces/shop/pods/cart-1');
      const conditions = [{ type: 'Ready', status: 'True' }];
      await cluster.patchStatus('/api/v1/namespaces/shop/pods/cart-0', { conditions });
      await becomes(cart, 'cart-0');
    },
  );
}

/** Starts the control plane with its own account; it reaches the API server where it is, in its namespace. */
async function startControl(t: TestContext, cluster: KubeCluster, mesh: TestMesh): Promise<void> {
  const sockets = new NamespaceSockets();
  t.after(() => sockets.close());
  const opened = await sockets.open(mesh.at('control').path, { kind: 'listen', host: '127.0.0.1', port: API_PORT });
  assert.ok(opened.ok);
  await Relay.to(t, cluster.url, opened.fds[0]!);
  const tokenFile = join(mesh.directory, 'control-token');
  writeFileSync(tokenFile, await cluster.token('portcullis', 'portcullis-control'), { mode: 0o600 });
  mkdirSync(join(mesh.directory, 'policies'));
  mesh.write(
    'policies/web-only.yaml',
    `kind: AuthorizationPolicy
metadata: {name: web-only, namespace: shop}
spec:
  selector: {matchLabels: {app: cart}}
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]}]
`,
  );
  mesh.write(
    'control.yaml',
    `trustDomain: cluster.local
listen: "${mesh.controlAddress}:15012"
serverNames: ["${mesh.controlAddress}"]
admin: {address: "${mesh.controlAdmin}"}
ca: {directory: state/ca}
source:
  kubernetes: {kubeConfig: ${cluster.configFile(t, tokenFile, `https://127.0.0.1:${API_PORT}`)}}
  directory: policies
attestation: {joinTokens: off, kubernetes: {nodeAccounts: [portcullis/portcullis-node]}}
`,
  );
  await mesh.startControl();
}

/** Makes a service on port 80; returns its cluster IP. */
async function service(cluster: KubeCluster, name: string, spec: KubeObject): Promise<string> {
  const { status, body } = await cluster.apply({
    apiVersion: 'v1',
    kind: 'Service',
    metadata: { name, namespace: 'shop' },
    spec: { ...spec, ports: [{ name: 'http', port: 80, targetPort: 8080 }] },
  });
  assert.ok(status < 300, JSON.stringify(body));
  return body.spec.clusterIP;
}

/** Makes or replaces the slice of a service without selector. */
async function slice(cluster: KubeCluster, of: string, address: string): Promise<void> {
  const { status, body } = await cluster.apply({
    apiVersion: 'discovery.k8s.io/v1',
    kind: 'EndpointSlice',
    metadata: { name: `${of}-1`, namespace: 'shop', labels: { 'kubernetes.io/service-name': of } },
    addressType: 'IPv4',
    ports: [{ name: 'http', port: 8080 }],
    endpoints: [{ addresses: [address] }],
  });
  assert.ok(status < 300, JSON.stringify(body));
}
