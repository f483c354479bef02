// What a node proxy makes of responses: bad resources are refused by name, the last good ones stay.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ADDRESS_TYPE, AUTHORIZATION_TYPE } from '../../../../mesh-agent/control/protocol.ts';
import { ProxyState } from '../../../../mesh-agent/control/proxy-state.ts';
import { encodeWorkload } from '../../../../mesh-agent/control/wire-address.ts';
import { encodePolicy } from '../../../../mesh-agent/control/wire-policy.ts';
import { FakeProxy, newDiscovery, policy, service, setState, workload } from './support.ts';

const web = workload('web', { addresses: ['10.0.0.1'] });

function resource(name: string, value: Uint8Array, type = ADDRESS_TYPE, version = '1') {
  return { name, version, aliases: [], resource: { type_url: type, value } };
}

const junk = Buffer.from([0xff, 0xff]);

test('a bad resource is refused by name, the good ones beside it are taken', () => {
  const state = new ProxyState('cluster.local');
  const resources = [resource(web.uid, encodeWorkload(web, [])), resource('broken', junk)];
  const { refused, update } = state.apply({ typeUrl: ADDRESS_TYPE, resources, removedResources: [] });
  assert.deepEqual(
    refused.map(({ name }) => name),
    ['broken'],
  );
  assert.deepEqual([...update.changes.workloads], [web.uid]);
  assert.deepEqual(state.versions(ADDRESS_TYPE), { [web.uid]: '1' });
});

test('the last good version of a resource stays when a bad one comes', () => {
  const state = new ProxyState('cluster.local');
  const apply = (value: Uint8Array, version: string) =>
    state.apply({
      typeUrl: ADDRESS_TYPE,
      resources: [resource(web.uid, value, ADDRESS_TYPE, version)],
      removedResources: [],
    });
  apply(encodeWorkload(web, []), '1');
  assert.equal(apply(junk, '2').refused.length, 1);
  assert.equal(state.index.byAddress('10.0.0.1')?.kind, 'workload');
  assert.deepEqual(state.versions(ADDRESS_TYPE), { [web.uid]: '1' });
});

test('a resource under another name than its own is refused', () => {
  const state = new ProxyState('cluster.local');
  const resources = [resource('not-web', encodeWorkload(web, []))];
  const { refused } = state.apply({ typeUrl: ADDRESS_TYPE, resources, removedResources: [] });
  assert.match(refused[0]!.reason, /says that its name is/);
  assert.equal(state.state.workloads.size, 0);
});

test('a policy that cannot be read denies everything until it can be, or is gone', () => {
  const state = new ProxyState('cluster.local');
  const apply = (value: Uint8Array) =>
    state.apply({
      typeUrl: AUTHORIZATION_TYPE,
      resources: [resource('shop/guard', value, AUTHORIZATION_TYPE)],
      removedResources: [],
    });
  assert.equal(apply(junk).refused.length, 1);
  assert.deepEqual(state.deniedPolicies, ['shop/guard']);
  assert.deepEqual(
    state.index.policiesOf(web).policies.map(({ action, rules }) => [action, rules.length]),
    [['deny', 1]],
  );
  assert.deepEqual(state.versions(AUTHORIZATION_TYPE), {}, 'it is not what the control plane sent');
  apply(encodePolicy(policy('guard')));
  assert.deepEqual(state.deniedPolicies, []);
  assert.deepEqual(
    state.index.policiesOf(web).policies.map(({ action }) => action),
    ['allow'],
  );
  assert.equal(apply(junk).refused.length, 1);
  assert.deepEqual(
    state.index.policiesOf(web).policies.map(({ action }) => action),
    ['allow'],
    'the last good one',
  );
  state.apply({ typeUrl: AUTHORIZATION_TYPE, resources: [], removedResources: ['shop/guard'] });
  assert.deepEqual(state.index.policiesOf(web).policies, []);
});

test('states that were given out do not change', () => {
  const state = new ProxyState('cluster.local');
  const before = state.state;
  state.apply({ typeUrl: ADDRESS_TYPE, resources: [resource(web.uid, encodeWorkload(web, []))], removedResources: [] });
  assert.equal(before.workloads.size, 0);
});

test('what is saved is loaded again, with versions and names that were asked for', () => {
  const { discovery } = newDiscovery();
  setState(discovery, web, service('cart', { vips: ['10.9.0.1'] }), policy('wide'));
  const proxy = new FakeProxy(discovery);
  const state = new ProxyState('cluster.local');
  proxy.policies();
  state.apply(proxy.responses[0]!);
  proxy.settle();
  proxy.addresses('*', '/10.9.0.1');
  state.apply(proxy.responses[0]!);
  const loaded = new ProxyState('cluster.local');
  // Some time in this century, in seconds.
  const absences = [{ name: '/10.9.0.2', confirmedS: 3_999_999_999 }];
  const { update, ...names } = loaded.load(state.save({ subscriptions: ['/10.9.0.1'], absences }));
  assert.deepEqual(names, { subscriptions: ['/10.9.0.1'], absences, trust: null });
  assert.deepEqual(loaded.state, state.state);
  assert.equal(update.changes.workloads.size, 1);
  assert.deepEqual(loaded.versions(ADDRESS_TYPE), state.versions(ADDRESS_TYPE));
  assert.throws(
    () => new ProxyState('another.example').load(state.save({ subscriptions: [], absences })),
    /trust domain cluster.local/,
  );
  assert.throws(() => new ProxyState('cluster.local').load(junk));
});
