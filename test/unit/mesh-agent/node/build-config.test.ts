// Configurations of a node proxy: what becomes of services, workloads, policies and certificates.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { compileSnapshot } from '../../../../config/compile.ts';
import type { Config } from '../../../../config/config.ts';
import { normalise } from '../../../../config/normalise.ts';
import type { ConfigInput } from '../../../../config/schema.ts';
import { ruleLimits } from '../../../../core/exchange/rule-limits.ts';
import { NodeSlots } from '../../../../core/workers/node-slots.ts';
import type { Snapshot } from '../../../../core/workers/snapshot.ts';
import { parseTraffic, type Traffic } from '../../../../mesh-agent/control/traffic-rules.ts';
import { MeshIndex } from '../../../../mesh-agent/model/mesh-index.ts';
import type { AuthorizationPolicy, Service, Workload } from '../../../../mesh-agent/model/mesh-state.ts';
import { buildConfig, type LocalWorkload } from '../../../../mesh-agent/node/build-config.ts';
import type { NodeConfig } from '../../../../mesh-agent/node/node-config.ts';
import { CART, endpointOf, policy, service, stateOf, workload } from '../control/support.ts';
import { nodeConfig, redisAt } from './support.ts';

type Thing = Workload | Service | AuthorizationPolicy;

const PRICES = 'shop/prices.shop.svc.cluster.local';
const cart = (more: Partial<Service> = {}): Service => service('cart', { vips: ['10.96.0.1'], ...more });
const cart0 = (more: Partial<Workload> = {}): Workload =>
  workload('cart-0', { addresses: ['10.1.0.5'], node: 'node-b', ...endpointOf(CART), ...more });
const web0 = (more: Partial<Workload> = {}): Workload => workload('web-0', { addresses: ['10.0.0.9'], ...more });

/** The configuration of node-a with these in the mesh; its workloads have descriptors from 10 on. */
function build(things: Thing[], node: Partial<NodeConfig> = {}): Config & { problems: string[] } {
  const index = new MeshIndex(stateOf(...things));
  const workloads = index
    .onNode('node-a')
    .map((one, i): LocalWorkload => ({ workload: one, namespaceFd: 10 + i, certificate: null }));
  const { config, problems } = buildConfig({ node: nodeConfig(node), index, workloads });
  // Whatever is built, workers can run on.
  compileSnapshot(config, 1, new Map());
  return { ...config, problems };
}

/** A traffic policy with these settings of the backend. */
function trafficOf(backend: object): Traffic {
  const traffic = parseTraffic({ backend }, CART, (name) => name);
  assert.ok('rules' in traffic);
  return traffic;
}

const byName = <T extends { name: string }>(list: readonly T[], name: string): T | undefined =>
  list.find((one) => one.name === name);

test('without services or workloads there are the listeners that are always there, and no socket', () => {
  const { listeners, mesh, backends } = build([]);
  assert.deepEqual(
    listeners.map(({ name, mesh: own }) => [name, own!.role, own!.detect]),
    [
      ['inbound-auto', 'virtual', true],
      ['inbound-http', 'virtual', false],
      ['inbound-tcp', 'virtual', false],
      ['direct', 'virtual', true],
      ['passthrough', 'virtual', false],
    ],
  );
  assert.ok(backends.every(({ originalDestination, endpoints }) => originalDestination && endpoints.length === 0));
  assert.deepEqual([mesh!.otherListener, mesh!.workloads, mesh!.destinations.size], ['passthrough', [], 0]);
});

test('no route is for all listeners, or the rules of one service would be those of others', () => {
  const { routes, streamRoutes } = build([cart(), cart0(), web0()]);
  assert.ok(routes.length > 0 && routes.every(({ listeners }) => listeners?.length === 1));
  assert.ok(streamRoutes.every(({ listeners }) => listeners.length === 1));
});

test('what is decided for a workload goes before the configuration of its proxy', () => {
  const strict = (mode: NodeConfig['mode'], own?: Workload['mode']): boolean =>
    build([web0(own === undefined ? {} : { mode: own })], { mode }).mesh!.workloads[0]!.strict;
  assert.deepEqual(
    [strict('strict'), strict('permissive'), strict('strict', 'permissive'), strict('permissive', 'strict')],
    [true, false, false, true],
  );
});

test('applications see no header fields that a gateway would add', () => {
  const { headers } = build([]);
  assert.deepEqual(headers, { requestId: true, forwarded: false, via: '', server: '' });
});

test('workloads in the network of their node are reached in plain text, as nobody takes tunnels for them there', () => {
  const on = (hostNetwork: boolean) =>
    byName(build([cart(), cart0({ hostNetwork })]).backends, `${CART}:80`)!.endpoints.map(({ identity }) => identity);
  assert.deepEqual(on(false), ['spiffe://cluster.local/ns/shop/sa/cart-0']);
  assert.deepEqual(on(true), [undefined]);
});

test('each workload has three sockets in its namespace for each family of its addresses', () => {
  const { listeners, mesh } = build([web0({ addresses: ['10.0.0.9', 'fd00::9'] }), workload('api-0')]);
  const sockets = listeners.filter(({ mesh: own }) => own!.role !== 'virtual');
  assert.deepEqual(
    sockets.map(({ name, address, protocols, mesh: own }) => [name, address, protocols, own!.role, own!.workload]),
    [
      ['shop/web-0 outbound', '0.0.0.0:15001', ['tcp'], 'outbound', 1],
      ['shop/web-0 inbound', '0.0.0.0:15006', ['tcp'], 'inbound', 1],
      ['shop/web-0 tunnels', '0.0.0.0:15008', ['h2'], 'tunnels', 1],
      ['shop/web-0 outbound (IPv6)', '[::]:15001', ['tcp'], 'outbound', 1],
      ['shop/web-0 inbound (IPv6)', '[::]:15006', ['tcp'], 'inbound', 1],
      ['shop/web-0 tunnels (IPv6)', '[::]:15008', ['h2'], 'tunnels', 1],
    ],
  );
  const { identity, namespaceFd, mark, strict } = mesh!.workloads[1]!;
  assert.deepEqual([identity, namespaceFd, mark, strict], ['spiffe://cluster.local/ns/shop/sa/web-0', 11, 0x539, true]);
});

test('workloads of two clusters with one name have listeners of different names', () => {
  const twin = { ...web0(), uid: 'other//Workload/shop/web-0', addresses: ['10.0.0.10'] };
  const names = build([web0(), twin]).listeners.map(({ name }) => name);
  assert.equal(new Set(names).size, names.length);
});

test('the declared protocol of a port decides how it is listened on and what its workloads are spoken to in', () => {
  const ports = (['http', 'http2', 'grpc', 'tcp', 'auto'] as const).map((protocol, i) => ({
    ...{ servicePort: 80 + i, targetPort: 8080 + i, protocol },
  }));
  const { listeners, routes, streamRoutes, backends } = build([cart({ ports })]);
  const seen = ports.map(({ servicePort, protocol }) => {
    const name = `${CART}:${servicePort}`;
    const { protocols, mesh } = byName(listeners, name)!;
    const backend = byName(backends, name)!;
    const http = byName(routes, name) !== undefined;
    const tcp = byName(streamRoutes, name) !== undefined;
    return [protocol, protocols, mesh!.detect, backend.protocol, backend.sameProtocol, http, tcp];
  });
  assert.deepEqual(seen, [
    ['http', ['http/1.1', 'h2c'], false, 'http/1.1', false, true, false],
    ['http2', ['h2c'], false, 'h2c', false, true, false],
    ['grpc', ['h2c'], false, 'h2c', false, true, false],
    ['tcp', ['tcp'], false, 'http/1.1', false, false, true],
    ['auto', ['http/1.1', 'h2c'], true, 'http/1.1', true, true, true],
  ]);
});

test('endpoints are the workloads that take traffic, with the identity that their tunnel must show', () => {
  const zone = { locality: { region: 'r', zone: 'z1', subzone: '' } };
  const { backends } = build([
    cart(),
    cart0(zone),
    cart0({ uid: 'b', addresses: ['fd00::5'], status: 'draining' }),
    cart0({ uid: 'c', addresses: ['10.1.0.7'], status: 'unhealthy' }),
    cart0({ uid: 'd', addresses: ['10.1.0.8'], protocol: 'none' }),
    cart0({ uid: 'e', addresses: [] }),
  ]);
  const endpoints = byName(backends, `${CART}:80`)!.endpoints;
  assert.deepEqual(
    endpoints.map(({ address, identity, policy: { place, draining } }) => [address, identity, place.zone, draining]),
    [
      ['[fd00::5]:8080', 'spiffe://cluster.local/ns/shop/sa/cart-0', '', true],
      ['10.1.0.8:8080', undefined, '', false],
      ['10.1.0.5:8080', 'spiffe://cluster.local/ns/shop/sa/cart-0', 'z1', false],
    ],
  );
});

test('a virtual address leads to its ports, and no further', () => {
  const { mesh, backends, streamRoutes } = build([cart({ vips: ['10.96.0.1', 'fd96::1'] }), cart0()]);
  const { destinations } = mesh!;
  for (const at of ['10.96.0.1:80', '[fd96::1]:80']) assert.equal(destinations.get(at)!.listener, `${CART}:80`);
  for (const vip of ['10.96.0.1', 'fd96::1']) assert.equal(destinations.get(vip)!.listener, 'refused');
  const [ref] = byName(streamRoutes, 'refused')!.backendRefs;
  const { endpoints, originalDestination } = byName(backends, ref!.name)!;
  assert.deepEqual([endpoints, originalDestination], [[], undefined]);
});

test('a workload is reached at its own address, through its tunnel if it has one, unless a service has the address', () => {
  const host = workload('agent', { addresses: ['192.168.0.1'], hostNetwork: true });
  const plain = workload('old', { addresses: ['10.1.0.6'], protocol: 'none' });
  const shadow = workload('shadow', { addresses: ['10.96.0.1'] });
  const { destinations } = build([cart(), cart0(), plain, host, shadow]).mesh!;
  assert.deepEqual(destinations.get('10.1.0.5'), {
    listener: 'direct',
    identity: 'spiffe://cluster.local/ns/shop/sa/cart-0',
  });
  assert.deepEqual(destinations.get('10.1.0.6'), { listener: 'direct', identity: null });
  assert.equal(destinations.get('10.96.0.1')!.listener, 'refused');
  assert.equal(destinations.has('192.168.0.1'), false);
});

test('a service that is not whole is no destination, its workloads are, and rules of others may name it', () => {
  const traffic = parseTraffic({ rules: [{ backendRefs: [{ name: 'cart' }] }] }, PRICES, () => CART);
  const prices = service('prices', { vips: ['10.96.0.2'], ...traffic });
  const index = new MeshIndex(stateOf(cart(), cart0(), prices));
  const isWhole = ({ name }: Service): boolean => name === 'prices';
  const { config } = buildConfig({ node: nodeConfig(), index, workloads: [], isWhole });
  assert.deepEqual([...config.mesh!.destinations.keys()].sort(), ['10.1.0.5', '10.96.0.2', '10.96.0.2:80']);
  assert.equal(byName(config.listeners, `${CART}:80`), undefined);
  assert.equal(byName(config.backends, `${CART}:80`)?.endpoints.length, 1);
});

test('workers ask for what they do not know, unless the node is told of all there is', () => {
  const networks = ['10.0.0.0/8'];
  const asks = (scope: 'used' | 'all') =>
    build([], { discovery: { scope, networks, idleTimeoutMs: 1 } }).mesh!.discovery;
  assert.deepEqual([asks('used'), asks('all')], [{ networks }, null]);
});

test('with egress refused nothing leads out of the mesh', () => {
  const { listeners, mesh } = build([cart()], { egress: 'refuse' });
  assert.equal(mesh!.otherListener, null);
  assert.equal(byName(listeners, 'passthrough'), undefined);
});

test('rules send to the port of the same number of the services that they name, or to the only one', () => {
  const traffic = parseTraffic(
    {
      rules: [
        {
          matches: [{ path: { type: 'PathPrefix', value: '/p' } }],
          timeouts: { request: '3s' },
          filters: [{ type: 'RequestMirror', requestMirror: { backendRef: { name: 'prices' } } }],
          backendRefs: [{ name: 'prices', weight: 3 }, { name: 'gone' }],
        },
        { backendRefs: [{ name: 'cart' }] },
      ],
      backend: { loadBalancer: { policy: 'PeakEWMA' }, connectTimeout: '123ms' },
    },
    CART,
    (name) => `shop/${name}.shop.svc.cluster.local`,
  );
  assert.ok('rules' in traffic);
  const prices = service('prices', { ports: [{ servicePort: 9000, targetPort: 1, protocol: 'grpc' }] });
  const { routes, backends } = build([cart({ rules: traffic.rules, backend: traffic.backend }), cart0(), prices]);
  const { rules } = byName(routes, `${CART}:80`)!;
  assert.deepEqual(
    rules.map(({ backendRefs }) => backendRefs.map(({ name, weight }) => [name, weight])),
    [
      [
        [`${PRICES}:9000`, 3],
        ['shop/gone.shop.svc.cluster.local:80', 1],
      ],
      [[`${CART}:80`, 1]],
    ],
  );
  assert.equal(rules[0]!.requestTimeoutMs, 3000);
  assert.equal(rules[0]!.policy!.mirrors[0]!.backend, `${PRICES}:9000`);
  assert.equal(byName(backends, `${PRICES}:9000`)!.protocol, 'h2c');
  assert.deepEqual(byName(backends, 'shop/gone.shop.svc.cluster.local:80')!.endpoints, []);
  const own = byName(backends, `${CART}:80`)!;
  assert.deepEqual([own.policy.balancer!.policy, own.connectTimeoutMs, own.endpoints.length], ['PeakEWMA', 123, 1]);
});

test('balancing by zone counts from the zone of this node', () => {
  const traffic = trafficOf({ loadBalancer: { zoneAware: { minEndpoints: 1 } } });
  const here = web0({ locality: { region: 'r', zone: 'z7', subzone: '' } });
  const { backends, problems } = build([cart({ backend: traffic.backend }), cart0(), here]);
  const { policy: settings } = byName(backends, `${CART}:80`)!;
  assert.equal(settings.balancer!.zoneAware!.zone, 'z7');
  assert.deepEqual(problems, []);
});

test('health checks are those of the policy, for every port where they can see the application', () => {
  const ports = [
    { servicePort: 80, targetPort: 8080, protocol: 'http' as const },
    { servicePort: 70, targetPort: 7000, protocol: 'tcp' as const },
  ];
  const things = (check: object): Thing[] => [
    cart({ backend: trafficOf({ healthCheck: check }).backend, ports }),
    cart0({ services: { [CART]: ports } }),
    web0(),
  ];
  const checked = ({ backends }: Config): (string | undefined)[] =>
    [80, 70].map((port) => byName(backends, `${CART}:${port}`)!.healthCheck?.type);
  const byHttp = build(things({ path: '/healthz', interval: '2s' }));
  assert.deepEqual(checked(byHttp), ['HTTP', 'HTTP']);
  assert.deepEqual(byHttp.problems, []);
  const { path, intervalMs } = byName(byHttp.backends, `${CART}:80`)!.healthCheck!;
  assert.deepEqual([path, intervalMs], ['/healthz', 2000]);
  const byTcp = build(things({ type: 'TCP' }));
  assert.deepEqual(checked(byTcp), [undefined, 'TCP']);
  assert.deepEqual(byTcp.problems, [
    `${CART}:80: not checked, as a TCP check of a port that speaks HTTP would end at the proxy of the workload`,
  ]);
  // Another port is what that is, whichever port of the service asks.
  assert.deepEqual(checked(build(things({ type: 'TCP', port: 7000 }))), ['TCP', 'TCP']);
  assert.deepEqual(checked(build(things({ type: 'TCP', port: 8080 }))), [undefined, undefined]);
  const without = [cart({ ports }), cart0({ services: { [CART]: ports } }), web0()];
  assert.deepEqual(checked(build(without)), [undefined, undefined]);
});

test('settings of HTTP/2 are for the ports that speak it, and change no protocol', () => {
  const ports = (['http', 'grpc'] as const).map((protocol, i) => ({ servicePort: 80 + i, targetPort: 8080, protocol }));
  const traffic = parseTraffic({ backend: { http2: { maxConnections: 7 } } }, CART, (name) => name);
  assert.ok('rules' in traffic);
  const { backends } = build([cart({ backend: traffic.backend, ports })]);
  const seen = [80, 81].map((port) => {
    const { http2, protocol } = byName(backends, `${CART}:${port}`)!;
    return [protocol, http2.connectionsMax];
  });
  assert.deepEqual(seen, [
    ['http/1.1', 7],
    ['h2c', 7],
  ]);
});

/** A service with virtual addresses whose only rule has these limits. */
function limited(name: string, vip: string, rateLimits: object[], ports?: Service['ports']): Service {
  const key = `shop/${name}.shop.svc.cluster.local`;
  const traffic = parseTraffic({ rules: [{ rateLimits }] }, key, (other) => other);
  assert.ok('rules' in traffic);
  return service(name, { vips: [vip], rules: traffic.rules, ...(ports === undefined ? {} : { ports }) });
}

test('limits of one name are those of their services, the same on every node and port, and clients see the name', () => {
  const ports = [80, 81].map((servicePort) => ({ servicePort, targetPort: 8080, protocol: 'http' as const }));
  const things = [
    limited('cart', '10.96.0.1', [{ name: 'total', requests: 10, global: true }], ports),
    limited('prices', '10.96.0.2', [{ name: 'total', requests: 3, key: ['path'], maxKeys: 16 }]),
  ];
  const on = (node: string, more: Thing[]): unknown => {
    const { routes, redis } = build([...things, ...more], { node, redis: redisAt('10.0.0.1:6379') });
    const named = ['shop/cart', 'shop/prices'].flatMap((start) => routes.filter(({ name }) => name.startsWith(start)));
    const limits = named.map(({ name, rules }) => {
      const [limit] = rules[0]!.policy!.rateLimits;
      return [name, limit!.name, limit!.shownAs, limit!.requests];
    });
    return { limits, address: redis!.address };
  };
  const expected = {
    limits: [
      [`${CART}:80`, `${CART}/total`, 'total', 10],
      [`${CART}:81`, `${CART}/total`, 'total', 10],
      [`${PRICES}:80`, `${PRICES}/total`, 'total', 3],
    ],
    address: '10.0.0.1:6379',
  };
  assert.deepEqual(on('node-a', [web0()]), expected);
  assert.deepEqual(on('node-b', [cart0(), web0({ node: 'node-b' })]), expected);
});

test('workers have a table for the limit of each service, and responses name it as it is written', () => {
  const config = build([
    limited('cart', '10.96.0.1', [{ name: 'total', requests: 10 }]),
    limited('prices', '10.96.0.2', [{ name: 'total', requests: 3, key: ['path'], maxKeys: 16 }]),
  ]);
  const { rulePolicies, rateLimits } = compileSnapshot(config, 1, new Map());
  assert.deepEqual(rateLimits.tables.map(({ name }) => name).sort(), [`${CART}/total`, `${PRICES}/total`]);
  const lines = rulePolicies.map((policy) => ruleLimits(policy.rateLimits, rateLimits.tables, 0)!);
  const read = ({ bytes, length }: { bytes: Uint8Array; length: number }): string =>
    Buffer.from(bytes).toString('latin1', 0, length);
  assert.deepEqual(lines.map(({ policyLine }) => read(policyLine)).sort(), [
    'ratelimit-policy: "total";q=10;w=1\r\n',
    'ratelimit-policy: "total";q=3;w=1\r\n',
  ]);
  assert.equal(read(lines[0]!.all[0]!.itemStart), '"total";r=');
});

test('global limits on a node without redis are named, with what becomes of them', () => {
  const limits = [
    { name: 'total', requests: 10, global: true },
    { name: 'here', requests: 5 },
  ];
  const tcp: Service['ports'] = [{ servicePort: 81, targetPort: 8080, protocol: 'tcp' }];
  const things = [limited('cart', '10.96.0.1', limits), limited('prices', '10.96.0.2', [limits[1]!])];
  const { problems, redis } = build(things);
  assert.deepEqual(problems, [
    `${CART}: global rate limits (total) are counted on this node alone, which has no redis`,
  ]);
  assert.equal(redis, null);
  assert.deepEqual(build(things, { redis: redisAt('10.0.0.1:6379') }).problems, []);
  assert.deepEqual(build([limited('cart', '10.96.0.1', limits, tcp)]).problems, [], 'nothing of TCP is counted');
});

test('protocols of local ports are what services declare, and nothing where they contradict each other', () => {
  const ports = [
    { servicePort: 80, targetPort: 8080, protocol: 'http' as const },
    { servicePort: 70, targetPort: 7000, protocol: 'tcp' as const },
    { servicePort: 60, targetPort: 6000, protocol: 'auto' as const },
  ];
  const other = service('other', { ports: [{ servicePort: 1, targetPort: 7000, protocol: 'grpc' }] });
  const mine = web0({
    services: { [CART]: ports, 'shop/other.shop.svc.cluster.local': [{ servicePort: 1, targetPort: 7000 }] },
  });
  const only = web0({ uid: 'only', addresses: ['fd00::a'], services: { [CART]: ports } });
  assert.deepEqual(
    build([cart({ ports }), other, mine, only, cart0()]).mesh!.inboundProtocols,
    new Map([
      ['10.0.0.9:8080', 'http'],
      ['[fd00::a]:8080', 'http'],
      ['[fd00::a]:7000', 'tcp'],
    ]),
  );
});

test('policies that apply to a workload come with it, and one that is not known denies everything', () => {
  const deny = policy('no', { action: 'deny', rules: [{ from: [], to: [], when: [] }] });
  const named = (keys: string[]): Workload => web0({ authorizationPolicies: keys });
  const of = (...things: Thing[]) => build(things).mesh!.workloads[0]!.authorization;
  assert.equal(of(web0()), null);
  assert.deepEqual(
    of(named([]), deny)!.policies.map(({ name, action }) => [name, action]),
    [['shop/no', 'deny']],
  );
  const missing = of(named(['shop/lost']))!;
  assert.deepEqual(missing.policies, [
    { name: 'shop/lost', action: 'deny', dryRun: false, rules: [{ from: [], to: [], when: [] }] },
  ]);
  assert.equal(missing.key, of(named(['shop/lost']))!.key);
  assert.notEqual(missing.key, of(named([]), deny)!.key);
});

test('what a gateway has by default, a node proxy has', () => {
  const input = { listeners: [], routes: [], backends: [{ name: 'a', endpoints: ['127.0.0.1:1'] }] };
  const gateway = normalise(input as unknown as ConfigInput, '/');
  const { limits, timeouts, http2, overload, trustedHops, backends } = build([cart()]);
  assert.deepEqual(
    { limits, timeouts, http2, overload, trustedHops },
    {
      limits: gateway.limits,
      timeouts: gateway.timeouts,
      http2: gateway.http2,
      overload: gateway.overload,
      trustedHops: 0,
    },
  );
  assert.equal(byName(backends, `${CART}:80`)!.connectTimeoutMs, gateway.backends[0]!.connectTimeoutMs);
});

test('what a change does not concern stays the same objects, from the service to the settings of workers', () => {
  const slots = new NodeSlots(1);
  let epoch = 0;
  const settings = (...things: Thing[]): { config: Config; snapshot: Snapshot } => {
    const config = build(things);
    return { config, snapshot: compileSnapshot(config, ++epoch, new Map(), undefined, undefined, slots) };
  };
  const [one, two, web] = [cart(), service('prices', { vips: ['10.96.0.2'] }), web0()];
  const price0 = workload('prices-0', { addresses: ['10.1.0.6'], node: 'node-b', ...endpointOf(PRICES) });
  const before = settings(one, two, cart0(), price0, web);
  const after = settings(one, two, cart0({ addresses: ['10.1.0.7'] }), price0, web);
  for (const [what, list] of [
    ['backends', ({ config }) => config.backends],
    ['settings of backends', ({ snapshot }) => snapshot.backends],
  ] as [string, (of: typeof before) => readonly { name: string; endpoints: readonly { address: string }[] }[]][]) {
    assert.equal(byName(list(after), `${PRICES}:80`), byName(list(before), `${PRICES}:80`), what);
    assert.deepEqual(
      byName(list(after), `${CART}:80`)!.endpoints.map(({ address }) => address),
      ['10.1.0.7:8080'],
      what,
    );
  }
  for (const key of [CART, PRICES]) {
    assert.equal(byName(after.config.routes, `${key}:80`), byName(before.config.routes, `${key}:80`));
    assert.equal(byName(after.snapshot.listeners, `${key}:80`), byName(before.snapshot.listeners, `${key}:80`));
  }
  const destination = ({ snapshot }: typeof before, at: string) => snapshot.mesh!.destinations.get(at);
  for (const at of ['10.96.0.1:80', '10.96.0.2', '10.1.0.6']) {
    assert.equal(destination(after, at), destination(before, at), at);
  }
  // A service that comes moves listeners to other places.
  const more = settings(service('a', { vips: ['10.96.0.9'] }), one, two, cart0(), price0, web);
  const listener = destination(more, '10.96.0.1:80')!.listener;
  assert.equal(more.snapshot.listeners[listener]!.name, `${CART}:80`);
  // One that goes unhealthy is no endpoint any more, and comes back.
  const sick = settings(one, two, cart0({ status: 'unhealthy' }), price0, web);
  assert.deepEqual(byName(sick.snapshot.backends, `${CART}:80`)!.endpoints, []);
  assert.equal(byName(settings(one, two, cart0(), price0, web).config.backends, `${CART}:80`)!.endpoints.length, 1);
});

test('rules that have not changed follow the ports of services that have', () => {
  const traffic = parseTraffic({ rules: [{ backendRefs: [{ name: 'prices' }] }] }, CART, () => PRICES);
  assert.ok('rules' in traffic);
  const one = cart({ rules: traffic.rules });
  const target = (ports: number[]): string => {
    const prices = service('prices', {
      vips: ['10.96.0.2'],
      ports: ports.map((servicePort) => ({ servicePort, targetPort: 8080, protocol: 'http' })),
    });
    return byName(build([one, prices]).routes, `${CART}:80`)!.rules[0]!.backendRefs[0]!.name;
  };
  assert.equal(target([80, 81]), `${PRICES}:80`);
  assert.equal(target([8000]), `${PRICES}:8000`);
  assert.equal(target([80]), `${PRICES}:80`);
});
