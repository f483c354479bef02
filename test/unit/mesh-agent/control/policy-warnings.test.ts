// Policies that are valid and hardly meant: which are named, and which are left in peace.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { judgePolicies } from '../../../../mesh-agent/control/policy-warnings.ts';
import type {
  AuthorizationPolicy,
  PolicyCondition,
  PolicyOperation,
  PolicyRule,
  PolicySource,
} from '../../../../mesh-agent/model/mesh-state.ts';
import { authorizationOf, type ShortRule, verdictOf } from '../../core/authorization/support.ts';
import { CART, endpointOf, policy, service, stateOf, workload } from './support.ts';

const SOURCE: PolicySource = {
  ...{ identities: [], notIdentities: [], namespaces: [], notNamespaces: [], ipBlocks: [], notIpBlocks: [] },
};
const OPERATION: PolicyOperation = {
  ...{ ports: [], notPorts: [], hosts: [], notHosts: [], paths: [], notPaths: [], methods: [], notMethods: [] },
};

interface Asked {
  from?: Partial<PolicySource>[];
  to?: Partial<PolicyOperation>[];
  when?: Partial<PolicyCondition>[];
}

function rule({ from = [], to = [], when = [] }: Asked): PolicyRule {
  return {
    from: from.map((one) => ({ ...SOURCE, ...one })),
    to: to.map((one) => ({ ...OPERATION, ...one })),
    when: when.map((one) => ({ key: 'request.headers[x]', values: [], notValues: [], ...one })),
  };
}

type More = Partial<AuthorizationPolicy>;

const allow = (asked: Asked | Asked[], more: More = {}): AuthorizationPolicy =>
  policy('open', { action: 'allow', rules: [asked].flat().map(rule), ...more });
const deny = (asked: Asked | Asked[], more: More = {}): AuthorizationPolicy =>
  policy('shut', { action: 'deny', rules: [asked].flat().map(rule), ...more });

const selecting = (app: string): More => ({ scope: 'workload', selector: { app } });

/** Two workloads of a namespace, one of another. */
const WORKLOADS = [workload('cart'), workload('web'), workload('bank', { namespace: 'bank' })];

function found(...things: Parameters<typeof stateOf>): string[] {
  return judgePolicies(stateOf(...things)).map(({ name }) => name);
}

const web: Asked = { from: [{ identities: ['cluster.local/ns/shop/sa/web'] }] };

for (const [what, allowed, denied] of [
  ['the same', web, web],
  ['the scheme of an identity', web, { from: [{ identities: ['spiffe://cluster.local/ns/shop/sa/web'] }] }],
  ['more values', { to: [{ methods: ['GET'] }] }, { to: [{ methods: ['POST', 'GET'] }] }],
  ['a field less', { to: [{ methods: ['GET'], paths: ['/a'] }] }, { to: [{ methods: ['GET'] }] }],
  ['a part less', { ...web, to: [{ methods: ['GET'] }] }, web],
  ['a condition less', { ...web, when: [{ values: ['1'] }] }, web],
  ['a condition with more values', { when: [{ values: ['1'] }] }, { when: [{ values: ['1', '2'] }] }],
  ['fewer exceptions', { to: [{ notPorts: [80, 81] }] }, { to: [{ notPorts: [80] }] }],
  ['an exception less', { ...web, to: [{ notPaths: ['/x'] }] }, web],
  ['one of several sources', web, { from: [{ namespaces: ['bank'] }, ...web.from!] }],
  ['a source for any', web, { ...web, from: [{}], to: [{ ports: [] }], when: [] } as Asked],
  ['each rule by one of several', [web, { to: [{ ports: [80] }] }], [{ to: [{ ports: [80, 81] }] }, web]],
] as [string, Asked | Asked[], Asked | Asked[]][]) {
  test(`a denial that covers what is allowed contradicts it: ${what}`, () => {
    const names = found(...WORKLOADS, allow(allowed), deny(denied));
    // What denies everything has a name of its own, which says that nothing else matters.
    assert.deepEqual(names, [what === 'a source for any' ? 'deny-everything' : 'contradiction']);
  });
}

for (const [what, allowed, denied] of [
  ['fewer values', { to: [{ methods: ['GET', 'POST'] }] }, { to: [{ methods: ['GET'] }] }],
  ['a field more', { to: [{ methods: ['GET'] }] }, { to: [{ methods: ['GET'], paths: ['/a'] }] }],
  ['a part more', web, { ...web, to: [{ ports: [80] }] }],
  ['a condition more', web, { ...web, when: [{ values: ['1'] }] }],
  ['a condition on something else', { when: [{ key: 'source.ip', values: ['1'] }] }, { when: [{ values: ['1'] }] }],
  ['more exceptions', { to: [{ notPorts: [80] }] }, { to: [{ notPorts: [80, 81] }] }],
  ['another source', web, { from: [{ namespaces: ['bank'] }] }],
  ['one of two sources', { from: [...web.from!, { namespaces: ['bank'] }] }, web],
  ['any source', {}, web],
  ['one of two rules', [web, { to: [{ ports: [80] }] }], web],
  ['a pattern', { to: [{ paths: ['/a'] }] }, { to: [{ paths: ['/*'] }] }],
  ['nothing allowed', [], web],
] as [string, Asked | Asked[], Asked | Asked[]][]) {
  test(`a denial of something else, or of a part, contradicts nothing: ${what}`, () => {
    assert.deepEqual(found(...WORKLOADS, allow(allowed), deny(denied)), []);
  });
}

for (const [what, allowed, denied, where] of [
  ['the mesh and a namespace', { scope: 'global' }, {}, ' for 2 of its 3 workloads, and deny'],
  ['a namespace and the mesh', {}, { scope: 'global', namespace: 'root' }, ' denies, and deny'],
  ['a namespace and a selector', {}, selecting('cart'), ' for 1 of its 2 workloads, and deny'],
  ['a selector and a namespace', selecting('cart'), {}, ' denies, and deny'],
  ['two selectors', { ...selecting('cart') }, { scope: 'workload', selector: { tier: 'back' } }, ' denies, and deny'],
  ['selectors without workloads', selecting('x'), selecting('x'), ' denies, and deny'],
  ['a selector without workloads and its namespace', selecting('x'), {}, ' denies, and deny'],
] as [string, More, More, string][]) {
  test(`policies of any scopes contradict each other where they meet: ${what}`, () => {
    const workloads = [workload('cart', { labels: { app: 'cart', tier: 'back' } }), ...WORKLOADS.slice(1)];
    const [one, ...others] = judgePolicies(stateOf(...workloads, allow(web, allowed), deny(web, denied)));
    assert.deepEqual([one?.name, others.length], ['contradiction', 0]);
    assert.equal(one!.policy.name, 'open');
    assert.ok(one!.problem.includes(where), one!.problem);
  });
}

for (const [what, allowed, denied] of [
  ['two namespaces', {}, { namespace: 'bank' }],
  ['selectors of different workloads', selecting('cart'), selecting('web')],
  ['selectors that no workload has both of', selecting('cart'), { scope: 'workload', selector: { app: 'x', v: '1' } }],
  ['one that only records', {}, { dryRun: true }],
  ['one that only records what it would allow', { dryRun: true }, {}],
] as [string, More, More][]) {
  test(`policies that do not meet do not contradict each other: ${what}`, () => {
    assert.deepEqual(found(...WORKLOADS, allow(web, allowed), deny(web, denied)), []);
  });
}

test('without workloads what is written decides where policies meet', () => {
  assert.deepEqual(found(allow(web), deny(web, selecting('cart'))), ['contradiction']);
  assert.deepEqual(found(allow(web, selecting('cart')), deny(web, selecting('web'))), []);
});

test('a denial without a condition closes everything, and allowing, recording or conditions do not', () => {
  const [one] = judgePolicies(stateOf(...WORKLOADS, deny([web, {}])));
  assert.deepEqual([one!.name, one!.path], ['deny-everything', ['spec', 'rules', 1]]);
  assert.match(
    one!.problem,
    /^AuthorizationPolicy shop\/shut: rule 2 has no condition, .*any workload of namespace shop/,
  );
  assert.deepEqual(found(...WORKLOADS, deny({ from: [web.from![0]!, {}] })), ['deny-everything']);
  for (const other of [
    deny([]),
    allow({}),
    deny({}, { dryRun: true }),
    deny(web),
    deny({ when: [{ values: ['1'] }] }),
  ]) {
    assert.deepEqual(found(...WORKLOADS, other), [], JSON.stringify(other));
  }
});

const port = (targetPort: number, protocol: 'tcp' | 'http' | 'auto') => {
  return { ports: [{ servicePort: 80, targetPort, protocol }] };
};
const DATABASE = 'shop/db.shop.svc.cluster.local';
/** A workload with a port of TCP (8080 of `cart`), and one with a port of HTTP. */
const MIXED = [
  service('cart', port(8080, 'tcp')),
  service('db', port(5432, 'http')),
  workload('cart', endpointOf(CART)),
  workload('db', { services: { [DATABASE]: [{ servicePort: 80, targetPort: 5432 }] } }),
];

for (const [what, asked] of [
  ['methods', { to: [{ methods: ['POST'] }] }],
  ['anything but some paths', { to: [{ notPaths: ['/a'] }] }],
  ['a field', { when: [{ values: ['1'] }] }],
  ['methods of any source', { from: [{}], to: [{ methods: ['POST'] }] }],
  ['methods at that port', { to: [{ ports: [8080], methods: ['POST'] }] }],
  ['a field at that port', { to: [{ ports: [8080] }], when: [{ values: ['1'] }] }],
  ['methods at all ports but another', { to: [{ notPorts: [5432], hosts: ['a'] }] }],
] as [string, Asked][]) {
  test(`a denial of requests closes ports of TCP: ${what}`, () => {
    const [one, ...others] = judgePolicies(stateOf(...MIXED, deny(asked)));
    assert.deepEqual([one?.name, others.length], ['deny-closes-tcp', 0]);
    assert.deepEqual(one!.path, ['spec', 'rules', 0]);
    assert.match(one!.problem, /closes all of them to port 8080;/);
    // And that is what the proxy of the workload does.
    const decided = authorizationOf([
      { name: 'shop/shut', action: 'deny', rules: [structuredClone(rule(asked)) as unknown as ShortRule] },
    ]);
    assert.notEqual(verdictOf(decided, { to: '10.1.0.5:8080' }).ofConnection, null);
  });
}

for (const [what, asked, more] of [
  ['methods at another port', { to: [{ ports: [5432], methods: ['POST'] }] }, {}],
  ['methods at all ports but that', { to: [{ notPorts: [8080], methods: ['POST'] }] }, {}],
  ['methods of some', { ...web, to: [{ methods: ['POST'] }] }, {}],
  ['a field of some', { when: [{ values: ['1'] }, { key: 'source.ip', values: ['10.0.0.1'] }] }, {}],
  ['clients that are those of connections', { when: [{ key: 'remote.ip', values: ['10.0.0.1'] }] }, {}],
  ['the port as such', { to: [{ ports: [8080] }] }, {}],
  ['the port as such, and methods elsewhere', { to: [{ ports: [8080] }, { methods: ['POST'] }] }, {}],
  ['methods of a workload without TCP', { to: [{ methods: ['POST'] }] }, selecting('db')],
  ['methods, recorded only', { to: [{ methods: ['POST'] }] }, { dryRun: true }],
] as [string, Asked, More][]) {
  test(`a denial that leaves ports of TCP alone, or means them, is none that closes them: ${what}`, () => {
    assert.deepEqual(found(...MIXED, deny(asked, more)), []);
  });
}

for (const [what, declared] of [
  ['found out', [port(8080, 'auto')]],
  ['HTTP', [port(8080, 'http')]],
  ['declared both ways', [port(8080, 'tcp'), port(8080, 'http')]],
] as const) {
  test(`a port whose protocol is ${what} is not one of TCP`, () => {
    const keys = declared.map((_one, i) => `shop/s${i}.shop.svc.cluster.local`);
    const services = declared.map((ports, i) => service(`s${i}`, ports));
    const things = [...services, workload('cart', endpointOf(...keys))];
    assert.deepEqual(found(...things, deny({ to: [{ methods: ['POST'] }] })), []);
  });
}
