// Indexes over the mesh: the same whether they followed changes or were made at once.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { MeshIndex } from '../../../../mesh-agent/model/mesh-index.ts';
import { changesBetween, identityOf, type MeshState } from '../../../../mesh-agent/model/mesh-state.ts';
import { CART, endpointOf, policy, service, stateOf, workload } from '../control/support.ts';

const cart = service('cart', { vips: ['10.9.0.1'] });
const cart0 = workload('cart-0', { addresses: ['10.0.0.1', '2001:db8::1'], ...endpointOf(CART) });

test('an address stands for its service or its workload', () => {
  const index = new MeshIndex(stateOf(cart, cart0));
  assert.deepEqual(index.byAddress('10.9.0.1'), { kind: 'service', service: cart });
  assert.deepEqual(index.byAddress('2001:db8::1'), { kind: 'workload', workload: cart0 });
  assert.equal(index.byAddress('10.0.0.9'), undefined);
});

test('an address of the host network stands for nobody', () => {
  const index = new MeshIndex(stateOf({ ...cart0, hostNetwork: true }));
  assert.equal(index.byAddress('10.0.0.1'), undefined);
});

test('an address that was given on while its old owner drains belongs to the new one, then again to the old', () => {
  const old = workload('a-old', { addresses: ['10.0.0.1'], status: 'draining' });
  const index = new MeshIndex(stateOf(old, cart0));
  assert.equal(index.workloadAt('10.0.0.1')?.name, 'cart-0');
  index.applyState(stateOf(old));
  assert.equal(index.workloadAt('10.0.0.1')?.name, 'a-old');
});

test('services of a workload, endpoints of a service, workloads of a node', () => {
  const web = workload('web', { node: 'node-b', ...endpointOf('shop/unknown.example') });
  const index = new MeshIndex(stateOf(cart, cart0, web));
  assert.deepEqual(
    index.servicesOf(cart0).map(({ service: { name }, ports }) => [name, ports]),
    [['cart', [{ servicePort: 80, targetPort: 8080 }]]],
  );
  assert.deepEqual(index.servicesOf(web), []);
  assert.deepEqual(index.endpointsOf(CART), [cart0]);
  assert.deepEqual(index.onNode('node-b'), [web]);
  assert.deepEqual(index.byHostname('cart.shop.svc.cluster.local'), [cart]);
});

test('a workload with a sidecar is its own proxy’s, by its identity, and not that of its node', () => {
  const [a, b] = [
    workload('web-0', { serviceAccount: 'web' }),
    workload('web-1', { serviceAccount: 'web', node: 'node-b' }),
  ];
  const index = new MeshIndex(stateOf(a, b));
  const served = (): string[] =>
    ['node-a', 'node-b', identityOf(a)].map((proxy) =>
      index
        .onNode(proxy)
        .map(({ name }) => name)
        .join(),
    );
  assert.deepEqual(served(), ['web-0', 'web-1', '']);
  index.applyState(stateOf({ ...a, sidecar: true }, { ...b, sidecar: true }));
  assert.deepEqual(served(), ['', '', 'web-0,web-1']);
  index.applyState(stateOf(a, { ...b, sidecar: true }));
  assert.deepEqual(served(), ['web-0', '', 'web-1']);
});

test('policies of the mesh, of the namespace and by selector apply to a workload', () => {
  const policies = [
    policy('everywhere', { namespace: 'root', scope: 'global', selector: {} }),
    policy('wide'),
    policy('by-label', { scope: 'workload', selector: { app: 'cart-0' } }),
    policy('other-label', { scope: 'workload', selector: { app: 'web' } }),
    policy('two-labels', { scope: 'workload', selector: { app: 'cart-0', tier: 'front' } }),
    policy('foreign', { namespace: 'bank', scope: 'workload', selector: { app: 'cart-0' } }),
  ];
  const index = new MeshIndex(stateOf(cart0, ...policies));
  const { policies: applied, missing } = index.policiesOf(cart0);
  assert.deepEqual(
    applied.map(({ name }) => name),
    ['everywhere', 'by-label', 'wide'],
  );
  assert.deepEqual(missing, []);
  assert.deepEqual(index.selectedBy(cart0), ['shop/by-label']);
});

test('a workload that came with the names of its policies goes by them, and those not there are named', () => {
  const named = { ...cart0, labels: {}, authorizationPolicies: ['shop/by-label', 'shop/not-there'] };
  const index = new MeshIndex(stateOf(named, policy('by-label', { scope: 'workload' }), policy('wide')));
  const { policies, missing } = index.policiesOf(named);
  assert.deepEqual(
    policies.map(({ name }) => name),
    ['by-label', 'wide'],
  );
  assert.deepEqual(missing, ['shop/not-there']);
});

test('the identity of a workload is made of trust domain, namespace and account', () => {
  assert.equal(identityOf(cart0), 'spiffe://cluster.local/ns/shop/sa/cart-0');
});

test('indexes that followed changes are those of the last state', () => {
  let seed = 20261121;
  const random = (below: number): number => {
    seed = (Math.imul(seed, 1103515245) + 12345) >>> 0;
    return (seed >>> 8) % below;
  };
  const randomState = (): MeshState => {
    const things = [];
    for (let i = 0; i < 8; i++) {
      if (random(3) === 0) continue;
      const services = endpointOf(...[0, 1, 2].filter(() => random(2) === 0).map((n) => `shop/s${n}.x`));
      const addresses = [`10.0.0.${random(6)}`];
      things.push(
        workload(`w${i}`, { node: `node-${random(3)}`, addresses, hostNetwork: random(5) === 0, ...services }),
      );
    }
    for (let i = 0; i < 3; i++)
      if (random(2) === 0) things.push(service(`s${i}`, { hostname: `s${i}.x`, vips: [`10.9.0.${random(3)}`] }));
    for (let i = 0; i < 3; i++) {
      const scope = (['global', 'namespace', 'workload'] as const)[random(3)]!;
      if (random(2) === 0)
        things.push(policy(`p${i}`, { scope, selector: scope === 'workload' ? { app: `w${random(8)}` } : {} }));
    }
    return stateOf(...things);
  };
  const view = (index: MeshIndex): unknown => [
    [0, 1, 2, 3, 4, 5].map((n) => [index.byAddress(`10.0.0.${n}`), index.byAddress(`10.9.0.${n}`)]),
    [0, 1, 2].map((n) => [index.onNode(`node-${n}`), index.endpointsOf(`shop/s${n}.x`)]),
    [...index.state.workloads.values()].map((one) => [one.uid, index.policiesOf(one), index.servicesOf(one)]).sort(),
    index.inNamespace('shop'),
  ];
  const followed = new MeshIndex(stateOf());
  for (let round = 0; round < 300; round++) {
    const state = randomState();
    followed.apply({ state, changes: changesBetween(followed.state, state) });
    assert.deepEqual(view(followed), view(new MeshIndex(state)), `round ${round}`);
  }
});
