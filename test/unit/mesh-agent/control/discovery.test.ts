// What proxies are told: subscriptions, differences, order, refusals, and when a version is served.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Discovery } from '../../../../mesh-agent/control/discovery.ts';
import {
  ADDRESS_TYPE,
  AUTHORIZATION_TYPE,
  REFUSED_TYPE,
  refusedCodec,
} from '../../../../mesh-agent/control/protocol.ts';
import { ProxyState } from '../../../../mesh-agent/control/proxy-state.ts';
import type { ResourceType } from '../../../../mesh-agent/control/resources.ts';
import { meshStatus } from '../../../../mesh-agent/control/status.ts';
import { parseTraffic } from '../../../../mesh-agent/control/traffic-rules.ts';
import { identityOf } from '../../../../mesh-agent/model/mesh-state.ts';
import {
  CART,
  endpointOf,
  FakeProxy,
  logLines,
  names,
  newDiscovery,
  policy,
  service,
  setState,
  workload,
} from './support.ts';

const cart0 = workload('cart-0', { addresses: ['10.0.0.1'], ...endpointOf(CART) });
const cart1 = workload('cart-1', { addresses: ['10.0.0.2'], node: 'node-b', ...endpointOf(CART) });
const web = workload('web', { addresses: ['10.0.0.3'] });
const other = workload('other', { addresses: ['10.0.0.4'], node: 'node-b' });
const cart = service('cart', { vips: ['10.9.0.1'] });

test('a subscription to everything gets everything, and later only what changes', () => {
  const { discovery } = newDiscovery();
  setState(discovery, cart0, cart1, cart);
  const proxy = new FakeProxy(discovery, { scope: '' });
  proxy.addresses('*');
  const first = proxy.take();
  assert.deepEqual(names(first), [CART, cart0.uid, cart1.uid].sort());
  assert.equal(first.resources.find(({ name }) => name === cart0.uid)?.resource?.type_url, ADDRESS_TYPE);
  assert.deepEqual(first.resources.find(({ name }) => name === CART)?.aliases, ['/10.9.0.1']);
  proxy.acknowledge(first);
  setState(discovery, cart0, { ...cart1, status: 'unhealthy' }, cart, web);
  assert.deepEqual(proxy.settle(), { got: [cart1.uid, web.uid].sort(), removed: [], types: ['addresses'] });
  setState(discovery, cart0, cart);
  assert.deepEqual(proxy.settle().removed, [cart1.uid, web.uid].sort());
});

test('a node whose workloads need a proxy that is not connected is named', () => {
  const { discovery } = newDiscovery();
  const outside = workload('outside', { node: 'node-c', protocol: 'none' });
  const own = workload('own', { node: 'node-b', sidecar: true });
  setState(discovery, cart0, cart1, other, outside, own);
  const absent = (): unknown => meshStatus(discovery).absent;
  assert.deepEqual(absent(), [
    { node: 'node-a', workloads: 1 },
    { node: 'node-b', workloads: 2 },
    { node: identityOf(own), workloads: 1 },
  ]);
  const proxy = new FakeProxy(discovery, { node: 'node-b' });
  proxy.addresses('*');
  proxy.settle();
  assert.deepEqual(absent(), [
    { node: 'node-a', workloads: 1 },
    { node: identityOf(own), workloads: 1 },
  ]);
  discovery.disconnect(proxy.stream);
  assert.equal(meshStatus(discovery).absent.length, 3);
});

test('an update that changes nothing is not sent', () => {
  const { discovery } = newDiscovery();
  setState(discovery, cart0);
  const proxy = new FakeProxy(discovery, { scope: '' });
  proxy.addresses('*');
  proxy.settle();
  discovery.update({
    state: discovery.state,
    changes: { workloads: new Set([cart0.uid]), services: new Set(), policies: new Set() },
  });
  assert.deepEqual(proxy.responses, []);
  assert.equal(proxy.stream.served, discovery.version);
});

test('the first request of a type is answered even when there is nothing to tell', () => {
  const { discovery } = newDiscovery();
  const proxy = new FakeProxy(discovery);
  proxy.addresses('*');
  assert.deepEqual(names(proxy.take()), []);
});

test('a node gets its own workloads and their services, and nothing of other nodes', () => {
  const { discovery } = newDiscovery();
  setState(discovery, cart0, cart1, web, other, cart);
  const proxy = new FakeProxy(discovery);
  proxy.addresses('*');
  assert.deepEqual(proxy.settle().got, [CART, cart0.uid, web.uid].sort());
  setState(discovery, cart0, cart1, web, { ...other, status: 'unhealthy' }, cart);
  assert.deepEqual(proxy.responses, []);
  assert.equal(proxy.stream.served, discovery.version);
  setState(discovery, cart0, cart1, web, { ...other, node: 'node-a' }, cart);
  assert.deepEqual(proxy.settle().got, [other.uid]);
  setState(discovery, cart0, cart1, web, other, cart);
  assert.deepEqual(proxy.settle().removed, [other.uid]);
});

test('a sidecar gets its own workloads and the policies for them; the proxy of their node gets neither', () => {
  const { discovery } = newDiscovery();
  const own = { ...web, sidecar: true as const };
  const guard = policy('guard', { scope: 'workload', selector: own.labels });
  setState(
    discovery,
    cart0,
    own,
    other,
    cart,
    guard,
    policy('others', { scope: 'workload', selector: { app: 'other' } }),
  );
  const sidecar = new FakeProxy(discovery, { node: '', own: identityOf(own) });
  sidecar.policies();
  sidecar.addresses('*');
  assert.deepEqual(sidecar.settle().got, ['shop/guard', own.uid]);
  const all = new FakeProxy(discovery, { node: '', own: identityOf(own), scope: 'mesh' });
  all.policies();
  assert.deepEqual(all.settle().got, ['shop/guard']);
  const node = new FakeProxy(discovery);
  node.policies();
  node.addresses('*');
  assert.deepEqual(node.settle().got, [CART, cart0.uid].sort());
  setState(discovery, cart0, web, other, cart, guard);
  assert.deepEqual(
    [sidecar.settle().removed, node.settle().got],
    [['shop/guard', own.uid].sort(), ['shop/guard', web.uid]],
  );
});

test('a sidecar that asks for the whole mesh is refused, and gets nothing', () => {
  const { discovery } = newDiscovery();
  const own = { ...web, sidecar: true as const };
  setState(discovery, own, cart, cart1);
  for (const scope of ['mesh', '']) {
    const sidecar = new FakeProxy(discovery, { node: '', own: identityOf(own), scope });
    sidecar.addresses('/10.9.0.1');
    sidecar.settle();
    sidecar.addresses('*');
    assert.equal(sidecar.ended?.code, 7);
    assert.match(sidecar.ended!.message, /not told the whole mesh/);
    assert.deepEqual(sidecar.responses, []);
  }
});

test('a sidecar that asks for policies by name gets those of its own workloads only', () => {
  const { discovery } = newDiscovery();
  const own = { ...web, sidecar: true as const };
  const guard = policy('guard', { scope: 'workload', selector: own.labels });
  setState(discovery, own, other, guard, policy('others', { scope: 'workload', selector: { app: 'other' } }));
  const sidecar = new FakeProxy(discovery, { node: '', own: identityOf(own) });
  sidecar.request(AUTHORIZATION_TYPE, { resourceNamesSubscribe: ['shop/guard', 'shop/others'] });
  const { got, removed } = sidecar.settle();
  assert.deepEqual([got, removed], [['shop/guard'], ['shop/others']]);
  sidecar.request(AUTHORIZATION_TYPE, { resourceNamesSubscribe: ['*', 'shop/others'] });
  assert.deepEqual(sidecar.settle().got, []);
  const node = new FakeProxy(discovery);
  node.request(AUTHORIZATION_TYPE, { resourceNamesSubscribe: ['shop/others'] });
  assert.deepEqual(node.settle().got, ['shop/others']);
});

for (const [what, name] of [
  ['its key', CART],
  ['its address', '/10.9.0.1'],
  ['its address in another network notation', 'network/10.9.0.1'],
]) {
  test(`a service asked for by ${what} brings its endpoints, also those that come later`, () => {
    const { discovery } = newDiscovery();
    setState(discovery, cart1, cart, other);
    const proxy = new FakeProxy(discovery);
    proxy.addresses('*');
    proxy.settle();
    proxy.addresses(name!);
    assert.deepEqual(proxy.settle().got, [CART, cart1.uid].sort());
    const late = workload('cart-2', { node: 'node-b', ...endpointOf(CART) });
    setState(discovery, cart1, late, cart, other);
    assert.deepEqual(proxy.settle().got, [late.uid]);
    proxy.request(ADDRESS_TYPE, { resourceNamesUnsubscribe: [name!] });
    assert.deepEqual(proxy.settle().removed, [CART, cart1.uid, late.uid].sort());
  });
}

test('a service brings the endpoints of the services that its rules name, also when those come later', () => {
  const { discovery } = newDiscovery();
  const key = 'shop/v2.shop.svc.cluster.local';
  const traffic = parseTraffic({ rules: [{ backendRefs: [{ name: 'v2' }] }] }, CART, () => key);
  assert.ok('configuration' in traffic);
  const routed = { ...cart, ...traffic };
  const v2 = workload('v2-0', { node: 'node-b', ...endpointOf(key) });
  setState(discovery, routed, v2);
  const proxy = new FakeProxy(discovery);
  proxy.addresses(CART);
  assert.deepEqual(proxy.settle().got, [CART]);
  setState(discovery, routed, v2, service('v2'));
  assert.deepEqual(proxy.settle().got, [key, v2.uid].sort());
});

test('while the source is cut off nothing is said of an address that is not known, and what is known is told', () => {
  const { discovery } = newDiscovery();
  const proxy = new FakeProxy(discovery);
  proxy.policies();
  proxy.addresses('*', '/10.7.0.1');
  assert.deepEqual(proxy.settle().removed, [], 'there is no state at all');
  setState(discovery, cart0, cart);
  assert.deepEqual(proxy.settle().removed, ['/10.7.0.1']);

  discovery.setCutOff(true);
  proxy.addresses('/10.7.0.2', '/10.7.0.3', '/10.9.0.1', 'shop/none.shop.svc.cluster.local');
  const { got, removed } = proxy.settle();
  assert.deepEqual([got, removed], [[CART, cart0.uid].sort(), ['shop/none.shop.svc.cluster.local']]);
  // Nobody waits for the proxy because of that.
  assert.equal(proxy.stream.served, discovery.version);
  // An answer out of turn says no more.
  const second = new FakeProxy(discovery, { id: 'second' });
  second.policies();
  second.addresses('*');
  second.settle();
  setState(discovery, { ...cart0, status: 'unhealthy' }, cart);
  second.addresses('/10.7.0.2', '/10.7.0.9');
  assert.deepEqual(second.settle().removed, []);
  // Nor does the end of something that there was.
  second.addresses('/10.9.0.1');
  second.settle();
  setState(discovery, cart0);
  assert.deepEqual(second.settle().removed, [CART]);
  proxy.settle();

  // What has come to be is told; what was given up, or is there now, is not said to be nothing's.
  setState(discovery, cart0, other);
  proxy.settle();
  proxy.addresses('/10.0.0.4');
  proxy.request(ADDRESS_TYPE, { resourceNamesUnsubscribe: ['/10.7.0.2'] });
  proxy.settle();
  second.settle();
  discovery.setCutOff(false);
  assert.deepEqual(proxy.settle().removed, ['/10.7.0.3', '/10.9.0.1']);
  assert.deepEqual(second.settle().removed, ['/10.7.0.2', '/10.7.0.9', '/10.9.0.1']);
  proxy.addresses('/10.7.0.4');
  assert.deepEqual(proxy.settle().removed, ['/10.7.0.4']);
});

test('while the source is cut off a proxy keeps what only it knows of, and is told of what went since', () => {
  const { discovery } = newDiscovery();
  const guard = policy('guard');
  setState(discovery, cart0, cart, guard);
  discovery.setCutOff(true);
  const has = { [CART]: 'earlier', [cart0.uid]: 'earlier', [web.uid]: 'earlier' };
  const whole = new FakeProxy(discovery, { scope: '' });
  const node = new FakeProxy(discovery, { id: 'node' });
  for (const proxy of [whole, node]) {
    proxy.request(AUTHORIZATION_TYPE, {
      resourceNamesSubscribe: ['*'],
      initialResourceVersions: { 'shop/guard': 'earlier', 'shop/deny': 'earlier' },
    });
    proxy.request(ADDRESS_TYPE, { resourceNamesSubscribe: ['*'], initialResourceVersions: has });
    // A workload of its own says which policies select it, and not all of those are known.
    assert.deepEqual(proxy.settle(), { got: [CART, 'shop/guard'], removed: [], types: ['policies', 'addresses'] });
    // Nobody waits for it because of that.
    assert.equal(proxy.stream.served, discovery.version);
  }
  // What is seen to go is gone, whatever else is not known.
  setState(discovery, cart);
  assert.deepEqual(whole.settle().removed, ['shop/guard']);
  assert.deepEqual(node.settle().removed, [CART, 'shop/guard']);
  // What comes to be known is told, and ends like anything else.
  const late = workload('late');
  setState(discovery, cart, late);
  for (const proxy of [whole, node]) assert.ok(proxy.settle().got.includes(late.uid));
  setState(discovery, cart);
  for (const proxy of [whole, node]) assert.ok(proxy.settle().removed.includes(late.uid));
  discovery.setCutOff(false);
  for (const proxy of [whole, node]) {
    assert.deepEqual(proxy.settle().removed, ['shop/deny', cart0.uid, web.uid].sort());
  }
});

const guarded = workload('guarded', { addresses: ['10.0.0.9'] });
const selecting = policy('selecting', { scope: 'workload', selector: guarded.labels, action: 'deny' });
const everywhere = policy('everywhere', { action: 'deny' });
const enforced = ({ index }: ProxyState): unknown => {
  const { policies, missing } = index.policiesOf(guarded);
  return [policies.map(({ name }) => name), missing];
};
const endpoints = ({ state, index }: ProxyState): unknown => [
  [...state.services.keys()],
  index.endpointsOf(CART).map(({ uid }) => uid),
];
for (const [what, known, remaining, of, asked] of [
  ['what denies to a workload of its own, when only that is known', [guarded, selecting], [guarded], enforced, []],
  ['what denies to all of a namespace, when only that is known', [guarded, everywhere], [everywhere], enforced, []],
  ['what denies to a workload that is not known', [guarded, selecting], [selecting], enforced, []],
  ['the endpoints of a service that is not known', [cart, cart1], [cart1], endpoints, ['/10.9.0.1']],
  ['a service that is asked for by its key', [cart, cart1], [], endpoints, [CART]],
] as const) {
  for (const scope of ['node', '']) {
    test(`a proxy that comes back to who is cut off keeps ${what}, scope "${scope}"`, () => {
      const [has, fresh] = [new ProxyState('cluster.local'), new ProxyState('cluster.local')];
      const { discovery: before } = newDiscovery();
      setState(before, ...known);
      const { discovery } = newDiscovery();
      setState(discovery, ...remaining);
      discovery.setCutOff(true);
      const connect = (to: Discovery, state: ProxyState): FakeProxy => {
        const proxy = new FakeProxy(to, { scope });
        const initial = (type: ResourceType) => ({ initialResourceVersions: state.versions(type) });
        proxy.request(AUTHORIZATION_TYPE, { resourceNamesSubscribe: ['*'], ...initial(AUTHORIZATION_TYPE) });
        proxy.request(ADDRESS_TYPE, { resourceNamesSubscribe: ['*', ...asked], ...initial(ADDRESS_TYPE) });
        return proxy;
      };
      const settle = (proxy: FakeProxy, state: ProxyState): void => {
        for (let next = proxy.responses.shift(); next !== undefined; next = proxy.responses.shift()) {
          state.apply(next);
          proxy.acknowledge(next);
        }
      };
      settle(connect(before, has), has);
      const held = of(has);
      const proxy = connect(discovery, has);
      settle(proxy, has);
      assert.deepEqual(of(has), held);
      // Nobody waits for it because of that.
      assert.equal(proxy.stream.served, discovery.version);
      discovery.setCutOff(false);
      settle(proxy, has);
      settle(connect(discovery, fresh), fresh);
      for (const type of [AUTHORIZATION_TYPE, ADDRESS_TYPE] as const) {
        assert.deepEqual(has.versions(type), fresh.versions(type));
      }
    });
  }
}

test('a name that nothing has is reported as removed, and sent when it comes to be', () => {
  const { discovery } = newDiscovery();
  setState(discovery);
  const proxy = new FakeProxy(discovery);
  proxy.addresses('*', '/10.0.0.4');
  assert.deepEqual(proxy.settle().removed, ['/10.0.0.4']);
  setState(discovery, other);
  assert.deepEqual(proxy.settle().got, [other.uid]);
  const next = workload('next', { node: 'node-b', addresses: ['10.0.0.4'] });
  setState(discovery, next);
  assert.deepEqual(proxy.settle(), { got: [next.uid], removed: [other.uid], types: ['addresses'] });
  setState(discovery);
  assert.deepEqual(proxy.settle().removed, ['/10.0.0.4', next.uid]);
});

test('what is asked for again is sent again, whatever the proxy was sent before', () => {
  const { discovery } = newDiscovery();
  setState(discovery, other);
  const proxy = new FakeProxy(discovery);
  proxy.addresses('/10.0.0.4');
  proxy.settle();
  proxy.addresses('/10.0.0.4');
  assert.deepEqual(proxy.settle().got, [other.uid]);
});

test('names that are asked for one by one, and given up, come to the same as if all had been asked for at once', () => {
  const { discovery } = newDiscovery();
  const key = 'shop/v2.shop.svc.cluster.local';
  const traffic = parseTraffic({ rules: [{ backendRefs: [{ name: 'v2' }] }] }, CART, () => key);
  const routed = { ...cart, vips: ['10.9.0.1'], ...traffic };
  const v2 = workload('v2-0', { node: 'node-b', addresses: ['10.0.0.7'], ...endpointOf(key) });
  setState(discovery, cart1, other, routed, v2, service('v2'));
  const proxy = new FakeProxy(discovery, { node: 'node-z' });
  proxy.addresses('*');
  proxy.settle();
  setState(discovery, cart1, other, routed);
  proxy.addresses('/10.9.0.1');
  assert.deepEqual(proxy.settle().got, [CART, cart1.uid].sort());
  setState(discovery, cart1, other, routed, v2, service('v2'));
  assert.deepEqual(proxy.settle().got, [key, v2.uid].sort(), 'what a rule names comes when it comes to be');
  for (const absent of ['/10.77.0.1', '/10.77.0.2', '/10.0.0.7']) proxy.addresses(absent);
  const { got, removed } = proxy.settle();
  assert.deepEqual([got, removed], [[v2.uid, key].sort(), ['/10.77.0.1', '/10.77.0.2']]);
  // Nothing else is new: not because of names that were given up, nor after something has come to have one.
  proxy.request(ADDRESS_TYPE, { resourceNamesUnsubscribe: ['/10.77.0.1'] });
  setState(
    discovery,
    cart1,
    other,
    routed,
    v2,
    service('v2'),
    workload('one', { addresses: ['10.77.0.1'], node: 'x' }),
  );
  assert.deepEqual(proxy.settle(), { got: [], removed: [], types: [] });
  const two = workload('two', { addresses: ['10.77.0.2'], node: 'x' });
  setState(discovery, cart1, other, routed, v2, service('v2'), two);
  assert.deepEqual(proxy.settle().got, [two.uid]);
  proxy.request(ADDRESS_TYPE, { resourceNamesUnsubscribe: ['/10.9.0.1'] });
  assert.deepEqual(proxy.settle().removed, [CART, cart1.uid].sort(), 'what is asked for in another way stays');
});

test('subscribing to everything and taking it back in one request leaves the workloads of the node', () => {
  const { discovery } = newDiscovery();
  setState(discovery, cart0, cart1, cart);
  const proxy = new FakeProxy(discovery, { scope: '' });
  proxy.request(ADDRESS_TYPE, { resourceNamesSubscribe: ['*'], resourceNamesUnsubscribe: ['*'] });
  assert.deepEqual(proxy.settle().got, [CART, cart0.uid].sort());
});

test('after a reconnect only differences are sent, also by another control plane', () => {
  const first = newDiscovery().discovery;
  setState(first, cart0, web, other);
  const proxy = new FakeProxy(first, { scope: '' });
  proxy.addresses('*');
  const versions = Object.fromEntries(proxy.take().resources.map(({ name, version }) => [name, version]));
  const second = newDiscovery().discovery;
  setState(second, cart0, { ...web, status: 'draining' }, cart);
  const again = new FakeProxy(second, { scope: '' });
  again.request(ADDRESS_TYPE, { resourceNamesSubscribe: ['*'], initialResourceVersions: versions });
  assert.deepEqual(again.settle(), { got: [CART, web.uid].sort(), removed: [other.uid], types: ['addresses'] });
});

test('a node gets the policies that apply to its workloads', () => {
  const { discovery } = newDiscovery();
  const mine = policy('mine', { scope: 'workload', selector: { app: 'web' } });
  const others = policy('others', { scope: 'workload', selector: { app: 'other' } });
  const wide = policy('wide');
  const foreign = policy('foreign', { namespace: 'bank' });
  const everywhere = policy('everywhere', { namespace: 'root', scope: 'global' });
  const all = [mine, others, wide, foreign, everywhere];
  setState(discovery, web, other, ...all);
  const proxy = new FakeProxy(discovery);
  proxy.policies();
  assert.deepEqual(proxy.settle().got, ['root/everywhere', 'shop/mine', 'shop/wide']);
  const teller = workload('teller', { namespace: 'bank' });
  setState(discovery, web, other, teller, ...all);
  assert.deepEqual(proxy.settle().got, ['bank/foreign']);
  setState(discovery, web, other, ...all);
  assert.deepEqual(proxy.settle().removed, ['bank/foreign']);
});

test('policies arrive, confirmed, before the workloads that need them, and go after them', () => {
  const { discovery } = newDiscovery();
  const proxy = new FakeProxy(discovery);
  proxy.policies();
  proxy.addresses('*');
  proxy.settle();
  const guard = policy('guard', { scope: 'workload', selector: { app: 'web' } });
  setState(discovery, web, guard);
  const policies = proxy.take();
  assert.equal(policies.typeUrl, AUTHORIZATION_TYPE);
  assert.equal(proxy.stream.served, 0);
  proxy.acknowledge(policies);
  const addresses = proxy.take();
  assert.deepEqual(names(addresses), [web.uid]);
  proxy.acknowledge(addresses);
  assert.equal(proxy.stream.served, discovery.version);
  setState(discovery);
  assert.deepEqual(proxy.settle(), {
    got: [],
    removed: ['shop/guard', web.uid].sort(),
    types: ['addresses', 'policies'],
  });
});

test('the list of policies of a workload follows labels and selectors', () => {
  const { discovery } = newDiscovery();
  const guard = policy('guard', { scope: 'workload', selector: { tier: 'front' } });
  setState(discovery, web, guard);
  const proxy = new FakeProxy(discovery);
  proxy.policies();
  proxy.addresses('*');
  assert.deepEqual(proxy.settle().got, [web.uid]);
  setState(discovery, { ...web, labels: { tier: 'front' } }, guard);
  assert.deepEqual(proxy.settle().got, ['shop/guard', web.uid].sort());
  setState(discovery, { ...web, labels: { tier: 'front' } }, { ...guard, selector: { tier: 'back' } });
  assert.deepEqual(proxy.settle(), { got: [web.uid], removed: ['shop/guard'], types: ['addresses', 'policies'] });
});

test('a proxy that does not answer gets one response, and then what has become of everything meanwhile', () => {
  const { discovery } = newDiscovery();
  setState(discovery, web);
  const proxy = new FakeProxy(discovery, { scope: '' });
  proxy.addresses('*');
  const first = proxy.take();
  for (let round = 0; round < 1000; round++) {
    setState(discovery, { ...web, canonicalName: `web-${round}` }, workload(`short-lived-${round}`));
  }
  assert.deepEqual(proxy.responses, []);
  proxy.acknowledge(first);
  const second = proxy.take();
  assert.deepEqual(names(second), [web.uid, 'test//Workload/shop/short-lived-999'].sort());
  assert.deepEqual(second.removedResources, []);
  proxy.acknowledge(second);
  assert.equal(proxy.stream.served, discovery.version);
});

test('much is sent in several responses, each of which is confirmed', () => {
  const { discovery } = newDiscovery();
  const many = Array.from({ length: 3000 }, (_, number) =>
    workload(`w-${number}`, { canonicalName: 'x'.repeat(1000) }),
  );
  setState(discovery, ...many);
  const proxy = new FakeProxy(discovery, { scope: '' });
  proxy.addresses('*');
  const sizes: number[] = [];
  const versions: string[] = [];
  while (proxy.responses.length > 0) {
    const response = proxy.take();
    sizes.push(response.resources.length);
    versions.push(response.systemVersionInfo);
    assert.equal(proxy.stream.served, 0);
    proxy.acknowledge(response);
  }
  assert.equal(
    sizes.reduce((sum, size) => sum + size, 0),
    3000,
  );
  assert.ok(sizes.length > 1);
  assert.deepEqual(
    versions.map((version) => version.endsWith('+')),
    sizes.map((_, index) => index < sizes.length - 1),
  );
  assert.equal(proxy.stream.served, discovery.version);
});

test('answers to anything but the last response are ignored', () => {
  const { discovery } = newDiscovery();
  setState(discovery, web);
  const proxy = new FakeProxy(discovery, { scope: '' });
  proxy.addresses('*');
  const response = proxy.take();
  proxy.request(ADDRESS_TYPE, { responseNonce: 'another' });
  assert.equal(proxy.stream.served, 0);
  proxy.acknowledge(response);
  assert.equal(proxy.stream.served, discovery.version);
});

test('a refusal is logged with its reason and kept until what was refused has changed and is taken', () => {
  const { log, lines } = logLines();
  const { discovery } = newDiscovery(log);
  setState(discovery, web, other);
  const proxy = new FakeProxy(discovery, { scope: '' });
  proxy.addresses('*');
  proxy.refuse(proxy.take(), 'web: no such port');
  assert.match(lines.join('\n'), /error proxy refused resources .*"reason":"web: no such port"/);
  assert.deepEqual(proxy.responses, [], 'the same is not sent again');
  setState(discovery, web, other, cart);
  assert.deepEqual(proxy.settle().got, [CART], 'what is not in doubt goes on');
  assert.equal(proxy.stream.refusals[0]?.reason, 'web: no such port');
  setState(discovery, { ...web, status: 'unhealthy' }, other, cart);
  assert.deepEqual(proxy.settle().got, [other.uid, web.uid].sort(), 'all that may have been refused comes again');
  assert.deepEqual(proxy.stream.refusals, []);
});

test('a proxy that names what it refused has only that in doubt', () => {
  const { discovery } = newDiscovery();
  setState(discovery, web, other);
  const proxy = new FakeProxy(discovery, { scope: '' });
  proxy.addresses('*');
  const { typeUrl, nonce } = proxy.take();
  const value = refusedCodec.encode({ names: [web.uid, 'made up'] });
  const details = [{ type_url: REFUSED_TYPE, value }];
  proxy.request(typeUrl, { responseNonce: nonce, errorDetail: { code: 3, message: 'no', details } });
  assert.deepEqual(proxy.stream.refusals[0]?.names, [web.uid]);
  setState(discovery, other);
  assert.deepEqual(proxy.settle().removed, [web.uid]);
  assert.deepEqual(proxy.stream.refusals, []);
});

test('a version is applied when every proxy has confirmed it, and the slowest is named', async () => {
  const { discovery, clock } = newDiscovery();
  setState(discovery, web);
  const proxies = ['quick', 'slow'].map((id) => new FakeProxy(discovery, { scope: '', id }));
  for (const proxy of proxies) proxy.addresses('*');
  const [quick, slow] = proxies.map((proxy) => proxy.take());
  clock.nowMs += 5;
  proxies[0]!.acknowledge(quick!);
  let done = false;
  const applied = discovery.applied(discovery.version, 60_000).then((result) => {
    done = true;
    return result;
  });
  await Promise.resolve();
  assert.equal(done, false);
  clock.nowMs += 70;
  proxies[1]!.acknowledge(slow!);
  const result = await applied;
  assert.deepEqual(result.slowest, { proxy: 'slow', ms: 75 });
  assert.equal(result.complete, true);
  assert.equal(result.proxies, 2);
});

test('waiting for a version ends when the last proxy that owed it leaves', async () => {
  const { discovery } = newDiscovery();
  setState(discovery, web);
  const proxy = new FakeProxy(discovery, { scope: '' });
  proxy.addresses('*');
  const applied = discovery.applied(discovery.version, 60_000);
  proxy.close();
  assert.deepEqual(await applied, { version: 1, complete: true, proxies: 0, slowest: null, refused: [], waiting: [] });
});

test('waiting for a version tells who refused it, and who has not answered in time', async () => {
  const { discovery } = newDiscovery();
  setState(discovery, web);
  const refusing = new FakeProxy(discovery, { scope: '', id: 'refusing' });
  refusing.addresses('*');
  refusing.refuse(refusing.take(), 'not like this');
  const first = await discovery.applied(1, 60_000);
  assert.equal(first.complete, false);
  assert.deepEqual(first.refused, [{ proxy: 'refusing', reason: 'not like this', resources: [web.uid] }]);
  new FakeProxy(discovery, { scope: '', id: 'silent' }).addresses('*');
  assert.deepEqual((await discovery.applied(1, 1)).waiting, ['silent']);
});

test('what a proxy has just asked for is answered while it has not confirmed a change, and waited for with the change', async () => {
  const { discovery } = newDiscovery();
  setState(discovery, web, cart, cart1);
  const proxy = new FakeProxy(discovery);
  proxy.policies();
  proxy.addresses('*');
  proxy.settle();
  // One of its workers is late.
  const version = setState(discovery, { ...web, status: 'unhealthy' }, cart, { ...cart1, status: 'draining' });
  const change = proxy.take();
  assert.deepEqual(names(change), [web.uid]);
  proxy.addresses('/10.9.0.1', 'none/at.all');
  const answer = proxy.take();
  assert.deepEqual([names(answer), answer.removedResources], [[CART, cart1.uid].sort(), ['none/at.all']]);
  proxy.addresses('/10.77.0.1');
  const nothing = proxy.take();
  assert.deepEqual([nothing.removedResources, nothing.nonce], [['/10.77.0.1'], ''], 'nobody waits for that');
  proxy.acknowledge(nothing);
  const applied = async (): Promise<boolean> => (await discovery.applied(version, 1)).complete;
  proxy.acknowledge(change);
  assert.equal(await applied(), false, 'an endpoint has changed in the answer');
  // What is asked for later is not waited for.
  setState(discovery, web, cart, { ...cart1, status: 'draining' });
  const [back] = [proxy.take()];
  proxy.addresses('/10.9.0.1');
  const later = proxy.take();
  assert.deepEqual(names(later), [CART, cart1.uid].sort());
  proxy.acknowledge(answer);
  assert.equal(await applied(), true);
  proxy.acknowledge(back!);
  proxy.refuse(later, 'no room for it');
  assert.deepEqual(
    proxy.stream.refusals.map(({ reason, names }) => [reason, names.sort()]),
    [['no room for it', [CART, cart1.uid].sort()]],
  );
});

test('an answer out of turn does not bring a workload of the node ahead of its policies, nor ends what is incomplete', () => {
  const { discovery } = newDiscovery();
  const ofWeb = policy('web', { scope: 'workload', selector: { app: 'web' } });
  const guard = policy('guard', { scope: 'workload', selector: { app: 'cart-0' } });
  setState(discovery, web, cart, cart1, ofWeb);
  const proxy = new FakeProxy(discovery);
  proxy.policies();
  proxy.addresses('*');
  proxy.addresses('/10.9.0.1');
  const first = proxy.take();
  assert.equal(first.typeUrl, AUTHORIZATION_TYPE, 'the first response is all there is for the node');
  proxy.acknowledge(first);
  assert.deepEqual(names(proxy.responses[0]!), [CART, cart1.uid, web.uid].sort());
  proxy.settle();
  setState(discovery, web, cart, cart1, cart0, ofWeb, guard);
  const policies = proxy.take();
  assert.equal(policies.typeUrl, AUTHORIZATION_TYPE);
  proxy.addresses('/10.9.0.1', '/10.77.0.1');
  const answer = proxy.take();
  assert.deepEqual([names(answer), answer.removedResources], [[CART, cart1.uid].sort(), ['/10.77.0.1']]);
  proxy.acknowledge(policies);
  assert.ok(proxy.settle().got.includes(cart0.uid));
});

test('a proxy that is back is told what it asks for before all of it has confirmed that no policy is new', () => {
  const { discovery } = newDiscovery();
  setState(discovery, web, cart, cart1);
  const proxy = new FakeProxy(discovery);
  proxy.policies();
  assert.deepEqual(names(proxy.take()), []);
  proxy.addresses('*', '/10.9.0.1');
  assert.ok(names(proxy.take()).includes(CART));
  assert.equal(proxy.stream.served, 0);
});

test('a version that there is not yet is not applied', async () => {
  const { discovery } = newDiscovery();
  assert.equal((await discovery.applied(1, 1)).complete, false);
});

test('a proxy that claims to be of another node than it is gets nothing', () => {
  const { discovery } = newDiscovery();
  setState(discovery, web);
  const proxy = new FakeProxy(discovery, { own: 'node-b', node: 'node-a' });
  proxy.addresses('*');
  assert.equal(proxy.ended?.code, 7);
  assert.match(proxy.ended!.message, /proxy of node node-b, not of node-a/);
  assert.deepEqual(proxy.responses, []);
});

test('a type that is not served is ignored', () => {
  const { discovery } = newDiscovery();
  const proxy = new FakeProxy(discovery);
  proxy.request('type.googleapis.com/envoy.config.cluster.v3.Cluster');
  assert.deepEqual(proxy.responses, []);
  assert.equal(proxy.ended, undefined);
});

test('a proxy that subscribes to ever more names is cut off', () => {
  const { discovery } = newDiscovery();
  const proxy = new FakeProxy(discovery);
  for (let round = 0; round < 5 && proxy.ended === undefined; round++) {
    proxy.addresses(...Array.from({ length: 50_000 }, (_, number) => `name-${round}-${number}`));
    proxy.settle();
  }
  assert.equal(proxy.ended?.code, 8);
});
