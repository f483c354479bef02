// What becomes of pods, services, slices, namespaces and nodes in the mesh's state.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isDeepStrictEqual } from 'node:util';
import { changesBetween, emptyMeshState, identityOf, type MeshState } from '../../../mesh-agent/model/mesh-state.ts';
import { type Followed, follow, startApi } from '../../support/kube-api/harness.ts';
import { endpointSlice, namespace, node, pod, service, serviceAccount } from '../../support/kube-api/objects.ts';
import type { KubeApi } from '../../support/kube-api/server.ts';

const CART = 'shop/cart.shop.svc.cluster.local';

/** Waits until everything written so far is in the state: a pod written last is. */
let marks = 0;
async function settled(api: KubeApi, followed: Followed): Promise<void> {
  await api.until(() => api.watches().length === 6);
  const name = `mark-${++marks}`;
  api.store.put('pods', pod(name, { namespace: 'marks', ip: `10.9.${marks >> 8}.${marks & 255}` }));
  await followed.until(name, () => followed.pod(name, 'marks') !== undefined);
  await new Promise((resolve) => setTimeout(resolve, 0));
}

test('a pod becomes a workload with its identity, addresses, node, zone and labels', async (t) => {
  const api = await startApi(t);
  api.store.put('namespaces', namespace('shop', 'enabled'));
  api.store.put('nodes', node('node-a', 'zone-1', 'north'));
  const labels = { app: 'cart', 'pod-template-hash': '5d4f' };
  const owner = { kind: 'ReplicaSet', name: 'cart-5d4f' };
  api.store.put('pods', pod('cart-5d4f-x', { ips: ['10.0.0.7', 'FD00:0::7'], labels, owner, serviceAccount: 'cart' }));
  api.store.put('services', service('cart'));
  const followed = await follow(t, api, { trustDomain: 'example.org' });
  const { podUid, ...cart } = followed.pod('cart-5d4f-x')!;
  assert.match(podUid!, /^[0-9a-f-]{36}$/);
  assert.deepEqual(cart, {
    uid: 'Kubernetes//Pod/shop/cart-5d4f-x',
    name: 'cart-5d4f-x',
    namespace: 'shop',
    trustDomain: 'example.org',
    serviceAccount: 'cart',
    node: 'node-a',
    addresses: ['10.0.0.7', 'fd00::7'],
    hostNetwork: false,
    protocol: 'hbone',
    status: 'healthy',
    locality: { region: 'north', zone: 'zone-1', subzone: '' },
    labels,
    canonicalName: 'cart',
    services: { [CART]: [{ servicePort: 80, targetPort: 8080 }] },
  });
  assert.equal(identityOf(followed.pod('cart-5d4f-x')!), 'spiffe://example.org/ns/shop/sa/cart');
  assert.deepEqual(followed.state.services.get(CART), {
    namespace: 'shop',
    name: 'cart',
    hostname: 'cart.shop.svc.cluster.local',
    vips: ['10.96.0.1'],
    ports: [{ servicePort: 80, targetPort: 8080, protocol: 'http' }],
    rules: null,
    backend: null,
    configuration: null,
  });
});

test('the label of a pod goes before that of its namespace, and that before the default', async (t) => {
  const api = await startApi(t);
  api.store.put('namespaces', namespace('shop', 'enabled'));
  api.store.put('namespaces', namespace('plain'));
  const off = { 'portcullis.dev/mesh': 'disabled' };
  api.store.put('pods', pod('in', { ip: '10.0.0.1' }));
  api.store.put('pods', pod('out', { ip: '10.0.0.2', labels: off }));
  api.store.put('pods', pod('odd', { ip: '10.0.0.3', labels: { 'portcullis.dev/mesh': 'yes' } }));
  api.store.put('pods', pod('plain', { ip: '10.0.0.4', namespace: 'plain' }));
  api.store.put('pods', pod('host', { ip: '192.168.0.1', hostNetwork: true }));
  const followed = await follow(t, api);
  const protocols = (): unknown[] =>
    [...followed.state.workloads.values()]
      .filter(({ namespace }) => namespace !== 'marks')
      .map(({ name, protocol }) => `${name} ${protocol}`)
      .sort();
  assert.deepEqual(protocols(), ['host none', 'in hbone', 'odd hbone', 'out none', 'plain none']);
  api.store.put('namespaces', namespace('shop', 'disabled'));
  api.store.put('namespaces', namespace('plain', 'enabled'));
  await followed.until('turned', () => followed.pod('plain', 'plain')!.protocol === 'hbone');
  await followed.untilPod('in', ({ protocol }) => protocol === 'none');
  assert.deepEqual(protocols(), ['host none', 'in none', 'odd none', 'out none', 'plain hbone']);
});

test('with `meshByDefault` pods are in the mesh where neither they nor their namespaces say otherwise', async (t) => {
  const api = await startApi(t);
  api.store.put('namespaces', namespace('off', 'disabled'));
  api.store.put('namespaces', namespace('plain'));
  const label = (value: string) => ({ labels: { 'portcullis.dev/mesh': value } });
  api.store.put('pods', pod('in', { ip: '10.0.0.1', namespace: 'plain' }));
  api.store.put('pods', pod('out', { ip: '10.0.0.2', namespace: 'plain', ...label('disabled') }));
  api.store.put('pods', pod('off', { ip: '10.0.0.3', namespace: 'off' }));
  api.store.put('pods', pod('on', { ip: '10.0.0.4', namespace: 'off', ...label('enabled') }));
  api.store.put('pods', pod('host', { ip: '192.168.0.1', namespace: 'plain', hostNetwork: true }));
  const protocols = async (meshByDefault: boolean): Promise<string[]> => {
    const { state } = await follow(t, api, { meshByDefault });
    return [...state.workloads.values()].map(({ name, protocol }) => `${name} ${protocol}`).sort();
  };
  assert.deepEqual(await protocols(true), ['host none', 'in hbone', 'off none', 'on hbone', 'out none']);
  assert.deepEqual(await protocols(false), ['host none', 'in none', 'off none', 'on hbone', 'out none']);
});

test('services are named after the domain of the cluster, and pods are endpoints by these names', async (t) => {
  const api = await startApi(t);
  api.store.put('services', service('cart'));
  api.store.put('pods', pod('cart-0', { labels: { app: 'cart' } }));
  const followed = await follow(t, api, { clusterDomain: 'mesh.internal' });
  const key = 'shop/cart.shop.svc.mesh.internal';
  assert.deepEqual([...followed.state.services.keys()], [key]);
  assert.equal(followed.state.services.get(key)!.hostname, 'cart.shop.svc.mesh.internal');
  assert.deepEqual(Object.keys(followed.pod('cart-0')!.services), [key]);
});

test('a pod says that it has a sidecar, and what becomes of plain text, unless its namespace does; a node has no right to it', async (t) => {
  const api = await startApi(t);
  const labels = (mesh?: string, mode?: string): Record<string, string> => ({
    ...(mesh === undefined ? {} : { 'portcullis.dev/mesh': mesh }),
    ...(mode === undefined ? {} : { 'portcullis.dev/mode': mode }),
  });
  api.store.put('namespaces', { metadata: { name: 'shop', labels: labels('sidecar', 'strict') } });
  const put = (name: string, ip: string, ...wishes: (string | undefined)[]) =>
    api.store.put('pods', pod(name, { ip, serviceAccount: name, labels: labels(...wishes) }));
  put('own', '10.0.0.1', 'sidecar');
  put('lax', '10.0.0.2', 'enabled', 'permissive');
  put('odd', '10.0.0.3', 'enabled', 'lax');
  put('none', '10.0.0.4');
  for (const name of ['own', 'lax']) api.store.put('serviceaccounts', serviceAccount(name));
  const followed = await follow(t, api);
  const seen = (name: string): string => {
    const { protocol, sidecar, mode } = followed.pod(name)!;
    return `${protocol} ${sidecar} ${mode}`;
  };
  assert.deepEqual(
    ['own', 'lax', 'odd', 'none'].map(seen),
    ['hbone true strict', 'hbone undefined permissive', 'hbone undefined strict', 'none undefined undefined'],
    'a namespace cannot say that each of its pods has a container',
  );
  const allowed = (name: string) => followed.source.runsOnNode('node-a', `spiffe://cluster.local/ns/shop/sa/${name}`);
  assert.deepEqual([await allowed('lax'), await allowed('own')], [true, false]);
  api.store.put('namespaces', { metadata: { name: 'shop', labels: {} } });
  await followed.untilPod('own', ({ mode }) => mode === undefined);
});

test('a pod that ends drains, then goes; one that has finished or has no address is not there', async (t) => {
  const api = await startApi(t);
  api.store.put('pods', pod('serving', { ip: '10.0.0.1' }));
  api.store.put('pods', pod('job', { ip: '10.0.0.2', phase: 'Succeeded' }));
  api.store.put('pods', pod('pending', { ip: null, ready: false }));
  const followed = await follow(t, api);
  assert.deepEqual(
    [...followed.state.workloads.values()].map(({ name }) => name),
    ['serving'],
  );
  api.store.put('pods', pod('serving', { ip: '10.0.0.1', terminating: true, ready: true }));
  await followed.untilPod('serving', ({ status }) => status === 'draining');
  api.store.put('pods', pod('serving', { ip: '10.0.0.1', terminating: true, ready: false, phase: 'Failed' }));
  await followed.until('gone', () => followed.pod('serving') === undefined);
});

test('an address that was given to a new pod is the new one’s alone', async (t) => {
  const api = await startApi(t);
  api.store.put('pods', pod('old', { ip: '10.0.0.5', created: '2026-01-01T00:00:00Z' }));
  const followed = await follow(t, api);
  api.store.put('pods', pod('new', { ip: '10.0.0.5', created: '2026-01-03T00:00:00Z' }));
  await followed.untilPod('new');
  assert.equal(followed.pod('old'), undefined);
  api.store.put('pods', pod('new', { ip: '10.0.0.5', created: '2026-01-03T00:00:00Z', terminating: true }));
  await followed.untilPod('old');
  assert.equal(followed.pod('new'), undefined);
  api.store.delete('pods', 'shop/old');
  await followed.untilPod('new');
});

test('named ports are looked up in each pod, and a pod without the name is left out of that port', async (t) => {
  const api = await startApi(t);
  const labels = { app: 'cart' };
  const ports = [
    { name: 'web', port: 80, targetPort: 'http' },
    { name: 'grpc-api', port: 9000, targetPort: 9001 },
    { name: 'dns', port: 53, protocol: 'UDP' },
    { name: 'db', port: 5432, appProtocol: 'tcp' },
    { name: 'ws', port: 81, appProtocol: 'kubernetes.io/ws' },
    { name: 'odd', port: 82, appProtocol: 'example.com/own' },
  ];
  api.store.put('services', service('cart', { ports }));
  api.store.put('pods', pod('a', { ip: '10.0.0.1', labels, ports: [{ name: 'http', containerPort: 8080 }] }));
  api.store.put('pods', pod('b', { ip: '10.0.0.2', labels, ports: [{ name: 'http', containerPort: 8081 }] }));
  api.store.put(
    'pods',
    pod('c', { ip: '10.0.0.3', labels, ports: [{ name: 'http', containerPort: 1, protocol: 'UDP' }] }),
  );
  const followed = await follow(t, api);
  const targetOf80 = (name: string): number | undefined =>
    followed.pod(name)!.services[CART]!.find(({ servicePort }) => servicePort === 80)?.targetPort;
  assert.deepEqual(['a', 'b', 'c'].map(targetOf80), [8080, 8081, undefined]);
  assert.deepEqual(followed.pod('c')!.services[CART]![0], { servicePort: 9000, targetPort: 9001 });
  assert.deepEqual(
    followed.state.services
      .get(CART)!
      .ports.map(({ servicePort, targetPort, protocol }) => [servicePort, targetPort, protocol]),
    [
      [80, 0, 'auto'],
      [9000, 9001, 'grpc'],
      [5432, 5432, 'tcp'],
      [81, 81, 'http'],
      [82, 82, 'auto'],
    ],
  );
});

test('headless, dual-stack and alias services are what they are', async (t) => {
  const api = await startApi(t);
  api.store.put('services', service('headless', { clusterIP: 'None' }));
  api.store.put('services', service('dual', { clusterIP: '10.96.0.2', clusterIPs: ['10.96.0.2', 'fd00:96:0::2'] }));
  api.store.put('services', service('alias', { type: 'ExternalName', selector: null }));
  api.store.put('pods', pod('h-0', { labels: { app: 'headless' } }));
  const followed = await follow(t, api);
  assert.deepEqual([...followed.state.services.values()].map(({ name, vips }) => [name, vips]).sort(), [
    ['dual', ['10.96.0.2', 'fd00:96::2']],
    ['headless', []],
  ]);
  assert.deepEqual(Object.keys(followed.pod('h-0')!.services), ['shop/headless.shop.svc.cluster.local']);
});

test('pods follow when a service changes its selector or goes', async (t) => {
  const api = await startApi(t);
  api.store.put('services', service('cart', { selector: { app: 'cart', tier: 'front' } }));
  api.store.put('pods', pod('a', { ip: '10.0.0.1', labels: { app: 'cart', tier: 'front' } }));
  api.store.put('pods', pod('b', { ip: '10.0.0.2', labels: { app: 'cart', tier: 'back' } }));
  api.store.put('pods', pod('c', { ip: '10.0.0.3', namespace: 'else', labels: { app: 'cart', tier: 'front' } }));
  const followed = await follow(t, api);
  const members = (): string[] =>
    [...followed.state.workloads.values()].filter(({ services }) => CART in services).map(({ name }) => name);
  assert.deepEqual(members(), ['a']);
  api.store.put('services', service('cart', { selector: { app: 'cart', tier: 'back' } }));
  await followed.untilPod('b', ({ services }) => CART in services);
  assert.deepEqual(members(), ['b']);
  api.store.delete('services', 'shop/cart');
  await followed.until('no service', () => !followed.state.services.has(CART));
  assert.deepEqual(members(), []);
});

test('slices of a service without a selector: machines outside, and pods by name or by address', async (t) => {
  const api = await startApi(t);
  api.store.put('nodes', node('node-a', 'zone-1'));
  api.store.put('services', service('cart', { selector: null, ports: [{ port: 80 }] }));
  api.store.put('pods', pod('named', { ip: '10.0.0.1' }));
  api.store.put('pods', pod('meant', { ip: '10.0.0.2', labels: { 'portcullis.dev/mesh': 'enabled' } }));
  const endpoints = [
    { addresses: ['192.0.2.1'], conditions: { ready: true }, nodeName: 'node-a' },
    { addresses: ['192.0.2.2'], conditions: { ready: false } },
    { addresses: ['192.0.2.3'], conditions: { ready: true, terminating: true }, zone: 'zone-9' },
    { addresses: ['192.0.2.4'] },
    { addresses: ['10.0.0.1'], targetRef: { kind: 'Pod', name: 'named' } },
    { addresses: ['10.0.0.2'] },
  ];
  api.store.put(
    'endpointslices',
    endpointSlice('cart-1', { service: 'cart', endpoints, ports: [{ name: '', port: 7000 }] }),
  );
  api.store.put(
    'endpointslices',
    endpointSlice('names', { service: 'cart', endpoints: [{ addresses: ['x.org'] }], addressType: 'FQDN' }),
  );
  const followed = await follow(t, api);
  const uid = (address: string): string => `Kubernetes/discovery.k8s.io/EndpointSlice/shop/cart-1/${address}`;
  const outside = (): (readonly string[])[] =>
    [...followed.state.workloads.values()]
      .filter(({ uid }) => uid.includes('EndpointSlice'))
      .map(({ addresses, status, protocol, locality }) => [...addresses, status, protocol, locality.zone]);
  assert.deepEqual(outside(), [
    ['192.0.2.1', 'healthy', 'none', 'zone-1'],
    ['192.0.2.2', 'unhealthy', 'none', ''],
    ['192.0.2.3', 'draining', 'none', 'zone-9'],
    ['192.0.2.4', 'healthy', 'none', ''],
  ]);
  const mapping = { [CART]: [{ servicePort: 80, targetPort: 7000 }] };
  assert.deepEqual(followed.state.workloads.get(uid('192.0.2.1'))!.services, mapping);
  assert.deepEqual(followed.pod('named')!.services, mapping);
  assert.deepEqual(followed.pod('meant')!.services, mapping, 'an address of a pod is the pod, in its tunnel');

  api.store.delete('pods', 'shop/meant');
  await followed.until('a machine now', () => followed.state.workloads.has(uid('10.0.0.2')));
  api.store.put('pods', pod('meant', { ip: '10.0.0.2' }));
  await followed.until('a pod again', () => !followed.state.workloads.has(uid('10.0.0.2')));
  assert.deepEqual(followed.pod('meant')!.services, mapping);
  api.store.delete('endpointslices', 'shop/cart-1');
  await followed.until('no slice', () => outside().length === 0);
  assert.deepEqual(followed.pod('named')!.services, {});
});

test('a slice cannot add endpoints to a service that has a selector', async (t) => {
  const api = await startApi(t);
  api.store.put('services', service('cart'));
  api.store.put(
    'endpointslices',
    endpointSlice('extra', { service: 'cart', endpoints: [{ addresses: ['192.0.2.1'] }] }),
  );
  const followed = await follow(t, api);
  assert.equal(followed.state.workloads.size, 0);
});

test('what Kubernetes derives from selectors, and finished pods, are left at the server', async (t) => {
  const api = await startApi(t);
  const managedBy = 'endpointslice-controller.k8s.io';
  api.store.put(
    'endpointslices',
    endpointSlice('cart-x', { service: 'cart', managedBy, endpoints: [{ addresses: ['10.0.0.1'] }] }),
  );
  api.store.put('pods', pod('done', { phase: 'Failed' }));
  const followed = await follow(t, api);
  const objects = (name: string): number =>
    followed.source.state.collections.find(({ resource }) => resource === name)!.objects;
  assert.equal(objects('endpointslices'), 0);
  assert.equal(objects('pods'), 0);
  const partial = api.seen.filter(({ accept }) => accept.includes('PartialObjectMetadata')).map(({ plural }) => plural);
  assert.deepEqual([...new Set(partial)].sort(), ['namespaces', 'nodes', 'serviceaccounts']);
});

test('a server that knows no metadata-only answers serves as well', async (t) => {
  const api = await startApi(t);
  api.knowsMetadataOnly = false;
  api.store.put('namespaces', namespace('shop', 'enabled'));
  api.store.put('pods', pod('a'));
  const followed = await follow(t, api);
  assert.equal(followed.pod('a')!.protocol, 'hbone');
});

test('changes that do not concern the mesh make no state', async (t) => {
  const api = await startApi(t);
  api.store.put('nodes', node('node-a', 'zone-1'));
  api.store.put('pods', pod('a'));
  const followed = await follow(t, api);
  await settled(api, followed);
  const before = followed.updates.length;
  const heartbeat = node('node-a', 'zone-1');
  heartbeat.metadata.annotations = { heartbeat: '2' };
  api.store.put('nodes', heartbeat);
  const restarted = pod('a');
  (restarted.status as Record<string, unknown>).containerStatuses = [{ name: 'main', restartCount: 7 }];
  api.store.put('pods', restarted);
  await settled(api, followed);
  assert.equal(followed.updates.length, before + 1, 'only the mark');
  assert.deepEqual([...followed.updates.at(-1)!.changes.workloads].length, 1);
});

test('objects that are not as they should be are left out by name, and the others served', async (t) => {
  const api = await startApi(t);
  api.store.put('pods', pod('good'));
  api.store.put('pods', { metadata: { name: 'bare', namespace: 'shop' } });
  api.store.put('pods', {
    metadata: { name: 'odd', namespace: 'shop' },
    spec: { containers: 'none' },
    status: { podIPs: 7 },
  });
  api.store.put('pods', pod('address', { ip: 'not-an-address' }));
  api.store.put('services', { metadata: { name: 'bare', namespace: 'shop' } });
  api.store.put('endpointslices', { metadata: { name: 'bare', namespace: 'shop' } });
  const followed = await follow(t, api);
  assert.deepEqual(
    [...followed.state.workloads.values()].map(({ name }) => name),
    ['good'],
  );
  const left = followed.lines.filter(({ level }) => level === 'error').map(({ fields }) => fields.object);
  assert.deepEqual(left, ['shop/odd']);
});

test('a node may have the identities of the pods that run there, and of no others', async (t) => {
  const api = await startApi(t);
  api.store.put('pods', pod('a', { ip: '10.0.0.1', node: 'node-a', serviceAccount: 'cart' }));
  api.store.put('pods', pod('b', { ip: '10.0.0.2', node: 'node-b', serviceAccount: 'pay' }));
  api.store.put('serviceaccounts', serviceAccount('cart'));
  const followed = await follow(t, api);
  const { source } = followed;
  assert.equal(await source.runsOnNode('node-a', 'spiffe://cluster.local/ns/shop/sa/cart'), true);
  assert.equal(await source.runsOnNode('node-a', 'spiffe://cluster.local/ns/shop/sa/pay'), false);
  assert.equal(await source.runsOnNode('node-a', 'spiffe://other/ns/shop/sa/cart'), false);
  assert.equal(await source.runsOnNode('node-c', 'spiffe://cluster.local/ns/shop/sa/cart'), false);

  // The watch of accounts may be behind that of pods; and an account that is deleted has no identity any more.
  const late = source.runsOnNode('node-b', 'spiffe://cluster.local/ns/shop/sa/pay');
  api.store.put('serviceaccounts', serviceAccount('pay'));
  assert.equal(await late, true);
  api.store.delete('serviceaccounts', 'shop/cart');
  api.store.put('pods', pod('c', { ip: '10.0.0.3', node: 'node-c', serviceAccount: 'cart' }));
  await followed.untilPod('c');
  const accounts = (): number | undefined =>
    source.state.collections.find(({ resource }) => resource === 'serviceaccounts')?.objects;
  while (accounts() !== 1) await new Promise((resolve) => setImmediate(resolve));
  const refused = source.runsOnNode('node-c', 'spiffe://cluster.local/ns/shop/sa/cart');
  await source.close();
  assert.equal(await refused, false);
});

/** A small generator with a seed (mulberry32). */
function randomOf(seed: number): (below: number) => number {
  return (below) => {
    seed = (seed + 0x6d2b79f5) | 0;
    let mixed = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) % below;
  };
}

test('after any history the state is that of a source which starts fresh, and the changes lead there', async (t) => {
  const api = await startApi(t);
  const seed = Math.floor(Math.random() * 2 ** 31);
  const random = randomOf(seed);
  const followed = await follow(t, api, { pageSize: 3 });
  const name = (kind: string): string => `${kind}${random(4)}`;
  const wish = (): string | undefined => [undefined, 'enabled', 'disabled'][random(3)];
  const steps: (() => void)[] = [
    () => api.store.put('namespaces', namespace(name('ns'), wish())),
    () => api.store.put('nodes', node(name('node'), `zone-${random(3)}`)),
    () => {
      const labels: Record<string, string> = { app: name('app') };
      const label = wish();
      if (label !== undefined) labels['portcullis.dev/mesh'] = label;
      const options = { namespace: name('ns'), ip: `10.0.0.${random(6)}`, node: name('node'), labels };
      const ports = [{ name: 'http', containerPort: 8000 + random(2) }];
      const created = `2026-01-0${1 + random(9)}T00:00:00Z`;
      const flags = { ready: random(3) > 0, terminating: random(4) === 0, hostNetwork: random(8) === 0 };
      api.store.put('pods', pod(name('pod'), { ...options, ...flags, ports, created }));
    },
    () => {
      const selector = random(3) === 0 ? null : { app: name('app') };
      const ports = [{ name: 'http', port: 80, targetPort: random(2) === 0 ? 'http' : 8000 }];
      api.store.put('services', service(name('svc'), { namespace: name('ns'), selector, ports }));
    },
    () => {
      const endpoints = [
        { addresses: [`10.0.0.${random(6)}`], nodeName: name('node') },
        { addresses: [`192.0.2.${random(4)}`] },
        { addresses: ['10.0.0.1'], targetRef: { kind: 'Pod', name: name('pod') } },
      ];
      api.store.put(
        'endpointslices',
        endpointSlice(name('slice'), {
          namespace: name('ns'),
          service: name('svc'),
          endpoints: endpoints.slice(random(3)),
        }),
      );
    },
    () => api.store.delete('pods', `${name('ns')}/${name('pod')}`),
    () => api.store.delete('services', `${name('ns')}/${name('svc')}`),
    () => api.store.delete('endpointslices', `${name('ns')}/${name('slice')}`),
    () => api.store.delete('namespaces', name('ns')),
    () => api.store.delete('nodes', name('node')),
    () => {
      if (random(3) === 0) api.store.compact();
      for (const watch of api.watches()) if (random(3) === 0) watch.destroy();
    },
  ];
  for (let round = 0; round < 6; round++) {
    for (let step = 0; step < 60; step++) steps[random(steps.length)]!();
    await settled(api, followed);
    const fresh = await follow(t, api);
    const sorted = (state: MeshState): unknown => [
      [...state.workloads].sort(([a], [b]) => (a < b ? -1 : 1)),
      [...state.services].sort(([a], [b]) => (a < b ? -1 : 1)),
    ];
    const all = (): boolean => isDeepStrictEqual(sorted(followed.state), sorted(fresh.state));
    if (!all()) await followed.until(`seed ${seed}: the same as a fresh source`, all).catch(() => {});
    assert.deepEqual(sorted(followed.state), sorted(fresh.state), `seed ${seed}`);
    await fresh.source.close();
  }
  let state = emptyMeshState('cluster.local');
  for (const update of followed.updates) {
    const real = changesBetween(state, update.state);
    assert.deepEqual([...update.changes.workloads].sort(), [...real.workloads].sort(), `seed ${seed}`);
    assert.deepEqual([...update.changes.services].sort(), [...real.services].sort(), `seed ${seed}`);
    state = update.state;
  }
});
