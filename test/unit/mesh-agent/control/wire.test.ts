// Workloads, services and policies as bytes: what goes in comes out, and what is wrong is refused.

import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { loadSync, type MessageTypeDefinition } from '@grpc/proto-loader';
import { codec } from '../../../../mesh-agent/control/protocol.ts';
import { parseTraffic } from '../../../../mesh-agent/control/traffic-rules.ts';
import {
  addressText,
  decodeAddress,
  encodeService,
  encodeWorkload,
} from '../../../../mesh-agent/control/wire-address.ts';
import { decodePolicy, denyInstead, encodePolicy } from '../../../../mesh-agent/control/wire-policy.ts';
import type {
  AuthorizationPolicy,
  PolicyOperation,
  PolicySource,
  Workload,
} from '../../../../mesh-agent/model/mesh-state.ts';
import { CART, endpointOf, policy, service, workload } from './support.ts';

const address = codec<Record<string, unknown>>('istio.workload.Address');
const authorization = codec<Record<string, unknown>>('istio.security.Authorization');

function operation(more: Partial<PolicyOperation> = {}): PolicyOperation {
  const none = {
    ports: [],
    notPorts: [],
    hosts: [],
    notHosts: [],
    paths: [],
    notPaths: [],
    methods: [],
    notMethods: [],
  };
  return { ...none, ...more };
}

function source(more: Partial<PolicySource> = {}): PolicySource {
  const none = { identities: [], notIdentities: [], namespaces: [], notNamespaces: [], ipBlocks: [], notIpBlocks: [] };
  return { ...none, ...more };
}

function backAndForth(one: Workload): Workload {
  const decoded = decodeAddress(encodeWorkload(one, ['shop/guard']));
  assert.ok('workload' in decoded);
  return decoded.workload;
}

test('a workload comes back as it was, with the names of its policies', () => {
  const full = workload('cart-0', {
    addresses: ['10.0.0.1', '2001:db8::1'],
    trustDomain: 'mesh.example',
    hostNetwork: true,
    protocol: 'none',
    status: 'draining',
    locality: { region: 'r', zone: 'z', subzone: 's' },
    networkNamespace: '/run/netns/cart-0',
    podUid: '1b4e28ba-2fa1-11d2-883f-0016d3cca427',
    labels: { version: 'v2', app: 'cart' },
    sidecar: true,
    mode: 'permissive',
    ...endpointOf(CART, 'shop/web.example'),
  });
  assert.deepEqual(backAndForth(full), { ...full, authorizationPolicies: ['shop/guard'] });
  const plain = workload('web', { serviceAccount: 'default' });
  assert.deepEqual(backAndForth(plain), { ...plain, authorizationPolicies: ['shop/guard'] });
  const strict = workload('web', { labels: {}, mode: 'strict' });
  assert.deepEqual(backAndForth(strict), { ...strict, authorizationPolicies: ['shop/guard'] });
});

test('a workload with a sidecar is one that takes its tunnels itself to those who know no sidecars', () => {
  const nativeTunnel = (sidecar?: true): unknown =>
    (address.decode(encodeWorkload(workload('web', sidecar && { sidecar }), [])) as { workload: object }).workload;
  assert.equal((nativeTunnel(true) as { nativeTunnel: boolean }).nativeTunnel, true);
  assert.equal((nativeTunnel() as { nativeTunnel: boolean }).nativeTunnel, false);
});

test('labels are the same bytes in whatever order a source has them, and one object for all that have the same', () => {
  const one = workload('web', { labels: { b: '2', a: '1' } });
  const other = { ...one, labels: { a: '1', b: '2' } };
  assert.deepEqual(encodeWorkload(one, []), encodeWorkload(other, []));
  assert.equal(backAndForth(one).labels, backAndForth(workload('cart', { labels: { b: '2', a: '1' } })).labels);
});

test('a draining workload is unhealthy for those who do not know draining', () => {
  const message = address.decode(encodeWorkload(workload('web', { status: 'draining' }), [])) as {
    workload: { status: string };
  };
  assert.equal(message.workload.status, 'UNHEALTHY');
});

test('a service comes back as it was, with its rules parsed by the gateway', () => {
  const traffic = parseTraffic(
    {
      rules: [{ matches: [{ path: { type: 'PathPrefix', value: '/a' } }], retry: { attempts: 2 } }],
      backend: { loadBalancer: { policy: 'PeakEWMA' } },
    },
    CART,
    () => undefined,
  );
  assert.ok('configuration' in traffic);
  for (const protocol of ['http', 'http2', 'grpc', 'tcp', 'auto'] as const) {
    const full = service('cart', {
      vips: ['10.9.0.1', '::1'],
      ports: [{ servicePort: 80, targetPort: 0, protocol }],
      ...traffic,
    });
    assert.deepEqual(decodeAddress(encodeService(full, 'v1')), { service: full });
  }
  assert.equal(traffic.rules?.[0]?.policy?.retry?.attempts, 2);
  assert.equal(traffic.backend?.name, CART);
});

for (const [what, message, problem] of [
  ['neither a workload nor a service', {}, /neither a workload nor a service/],
  ['a workload without uid', { workload: { name: 'x' } }, /no uid/],
  ['an address of five bytes', { workload: { uid: 'x', addresses: [Buffer.alloc(5)] } }, /5 bytes/],
  [
    'a port above 65535',
    { workload: { uid: 'x', services: { a: { ports: [{ servicePort: 65536, targetPort: 1 }] } } } },
    /65536 is not a port/,
  ],
  ['no target port', { workload: { uid: 'x', services: { a: { ports: [{ servicePort: 80 }] } } } }, /service port 80/],
  [
    'an unknown tunnel',
    { workload: { uid: 'x', tunnelProtocol: 'LEGACY_ISTIO_MTLS' } },
    /LEGACY_ISTIO_MTLS is not known/,
  ],
  ['a service without hostname', { service: { name: 'x' } }, /no hostname/],
] as const) {
  test(`refused: ${what}`, () => {
    assert.throws(() => decodeAddress(address.encode(message)), problem);
  });
}

test('refused: rules that the gateway would refuse', () => {
  const broken = service('cart', { configuration: '{"rules":[{"retries":{}}]}' });
  assert.throws(() => decodeAddress(encodeService(broken, 'v1')), /unknown key "retries"/);
  assert.throws(() => decodeAddress(encodeService({ ...broken, configuration: '{' }, 'v1')), /JSON/);
});

test('bytes that are no message are refused', () => {
  assert.throws(() => decodeAddress(Buffer.from([0x0a, 0x7f, 1])), Error);
  assert.throws(() => decodeAddress(Buffer.from([0xff])), Error);
  assert.throws(() => decodePolicy(Buffer.from([0xff])), Error);
});

test('IPv4 addresses in IPv6 are IPv4', () => {
  assert.equal(addressText(Buffer.from('00000000000000000000ffff0a000001', 'hex')), '10.0.0.1');
});

const full: AuthorizationPolicy = policy('guard', {
  action: 'deny',
  dryRun: true,
  rules: [
    {
      from: [
        source({ identities: ['spiffe://cluster.local/ns/a/sa/b', '*/sa/x'], notIpBlocks: ['10.0.0.0/8'] }),
        source({ namespaces: ['*'] }),
      ],
      to: [operation({ ports: [80], paths: ['/a*'], notMethods: ['GET'] })],
      when: [{ key: 'request.headers[x-team]', values: ['red'], notValues: [] }],
    },
  ],
});

test('a policy comes back as it was, without its selector', () => {
  assert.deepEqual(decodePolicy(encodePolicy(full)), full);
  const selecting = policy('by-label', { scope: 'workload', selector: { app: 'web' } });
  assert.deepEqual(decodePolicy(encodePolicy(selecting)), { ...selecting, selector: {} });
});

/** What a reader gets that knows nothing of extensions. */
function forOthers(one: AuthorizationPolicy): { rules: { matches: Record<string, unknown[]>[] }[] }[] {
  const message = authorization.decode(encodePolicy(one)) as {
    groups: { rules: { matches: Record<string, unknown[]>[] }[] }[];
  };
  for (const { rules } of message.groups) {
    for (const clause of rules) {
      clause.matches = clause.matches.map((match) =>
        Object.fromEntries(Object.entries(match).filter(([, list]) => list.length > 0)),
      );
    }
  }
  return message.groups;
}

test('others get what is decided of connections: identities without scheme, patterns, networks, ports', () => {
  const rule = {
    from: [
      source({
        identities: ['spiffe://cluster.local/ns/a/sa/b', 'cluster.local/*'],
        notNamespaces: ['*-test', '*'],
        ipBlocks: ['10.1.0.0/16', '::1'],
      }),
    ],
    to: [operation({ ports: [80, 443] })],
    when: [{ key: 'destination.port', values: ['81'], notValues: [] }],
  };
  const [group] = forOthers(policy('p', { rules: [rule] }));
  const [from, to, when] = group!.rules.map(({ matches }) => matches[0]!);
  const texts = (list: unknown[]): unknown[] =>
    list.map((one) => Object.entries(one as object).filter(([key]) => key !== 'matchType')[0]);
  assert.deepEqual(texts(from!.principals!), [
    ['exact', 'cluster.local/ns/a/sa/b'],
    ['prefix', 'cluster.local/'],
  ]);
  assert.deepEqual(texts(from!.notNamespaces!), [
    ['suffix', '-test'],
    ['presence', {}],
  ]);
  assert.deepEqual(from!.sourceIps, [
    { address: Buffer.from([10, 1, 0, 0]), length: 16 },
    { address: Buffer.from('00000000000000000000000000000001', 'hex'), length: 128 },
  ]);
  assert.deepEqual(to, { destinationPorts: [80, 443] });
  assert.deepEqual(when, { destinationPorts: [81] });
});

test('others never allow what asks about requests', () => {
  const rules = [
    { from: [source({ namespaces: ['a'] })], to: [operation({ paths: ['/x'] })], when: [] },
    {
      from: [source({ namespaces: ['b'] })],
      to: [],
      when: [{ key: 'request.headers[x]', values: ['1'], notValues: [] }],
    },
  ];
  assert.deepEqual(forOthers(policy('p', { rules })), []);
});

test('others deny more rather than less', () => {
  const rules = [
    { from: [source({ namespaces: ['a'] })], to: [operation({ paths: ['/x'] }), operation({ ports: [1] })], when: [] },
  ];
  const [group] = forOthers(policy('p', { action: 'deny', rules }));
  assert.equal(group!.rules.length, 1, 'what is asked for does not matter any more');
  assert.deepEqual(Object.keys(group!.rules[0]!.matches[0]!), ['namespaces']);
});

test('a rule that asks for nothing matches everything for others, too', () => {
  assert.deepEqual(forOthers(policy('p', { rules: [{ from: [], to: [], when: [] }] })), [{ rules: [] }]);
  assert.deepEqual(forOthers(policy('p', { rules: [{ from: [source()], to: [], when: [] }] })), [{ rules: [] }]);
});

test('policies of another control plane are read', () => {
  const bytes = authorization.encode({
    ...{ name: 'p', namespace: 'n', scope: 'NAMESPACE', action: 'DENY' },
    groups: [
      {
        rules: [
          {
            matches: [{ principals: [{ exact: 'x' }] }, { serviceAccounts: [{ namespace: 'a', serviceAccount: 'b' }] }],
          },
          { matches: [{ destinationPorts: [80] }, { destinationPorts: [81], notDestinationPorts: [82] }] },
          { matches: [{ destinationIps: [{ address: Buffer.from([10, 0, 0, 0]), length: 8 }] }] },
        ],
      },
    ],
  });
  assert.deepEqual(decodePolicy(bytes).rules, [
    {
      from: [source({ identities: ['x'] }), source({ identities: ['*/ns/a/sa/b'] })],
      to: [operation({ ports: [80] }), operation({ ports: [81], notPorts: [82] })],
      when: [{ key: 'destination.ip', values: ['10.0.0.0/8'], notValues: [] }],
    },
  ]);
});

test('policies that cannot be used are refused', () => {
  const base = { name: 'p', namespace: 'n', scope: 'NAMESPACE' };
  const mixed = { rules: [{ matches: [{ principals: [{ exact: 'x' }] }, { destinationPorts: [1] }] }] };
  const length = { rules: [{ matches: [{ sourceIps: [{ address: Buffer.alloc(4), length: 33 }] }] }] };
  assert.throws(() => decodePolicy(authorization.encode({ ...base, groups: [mixed] })), /different kinds/);
  assert.throws(() => decodePolicy(authorization.encode({ ...base, groups: [length] })), /33 bits/);
  assert.throws(() => decodePolicy(authorization.encode({ ...base, name: '' })), /no name/);
  const unknown = Buffer.concat([authorization.encode(base), Buffer.from([0x20, 9])]);
  assert.throws(() => decodePolicy(unknown), /action 9 is not known/);
});

test('what stands for a policy that cannot be read denies everything, as far as the policy may reach', () => {
  const bytes = authorization.encode({ name: 'p', namespace: 'n', scope: 'NAMESPACE' });
  const nothing = [{ from: [], to: [], when: [] }];
  assert.deepEqual(denyInstead('n/p', bytes), policy('p', { namespace: 'n', action: 'deny', rules: nothing }));
  assert.equal(denyInstead('n/p', Buffer.from([0xff])).scope, 'global');
});

/** Numbers of fields as the public definitions have them, for machines that cannot ask Istio's own package. */
const numbers: Record<string, Record<string, number>> = {
  'istio.workload.Address': { workload: 1, service: 2 },
  'istio.workload.Workload': {
    ...{ name: 1, namespace: 2, addresses: 3, network: 4, tunnelProtocol: 5, trustDomain: 6, serviceAccount: 7 },
    ...{ waypoint: 8, node: 9, canonicalName: 10, canonicalRevision: 11, workloadType: 12, workloadName: 13 },
    ...{ nativeTunnel: 14, authorizationPolicies: 16, status: 17, clusterId: 18, networkGateway: 19, uid: 20 },
    ...{
      hostname: 21,
      services: 22,
      applicationTunnel: 23,
      locality: 24,
      networkMode: 25,
      extensions: 26,
      capacity: 27,
    },
  },
  'istio.workload.Service': {
    ...{
      name: 1,
      namespace: 2,
      hostname: 3,
      addresses: 4,
      ports: 5,
      subjectAltNames: 6,
      waypoint: 7,
      loadBalancing: 8,
    },
    ...{ ipFamilies: 9, extensions: 10, canonical: 11, ingressUseWaypoint: 12, weightedWaypoints: 13, visibility: 14 },
  },
  'istio.workload.Port': { servicePort: 1, targetPort: 2, appProtocol: 3 },
  'istio.workload.NetworkAddress': { network: 1, address: 2, length: 3 },
  'istio.security.Authorization': { name: 1, namespace: 2, scope: 3, action: 4, groups: 5, dryRun: 6, extensions: 7 },
  'istio.security.Match': {
    ...{ namespaces: 1, notNamespaces: 2, principals: 3, notPrincipals: 4, sourceIps: 5, notSourceIps: 6 },
    ...{ destinationIps: 7, notDestinationIps: 8, destinationPorts: 9, notDestinationPorts: 10 },
    ...{ serviceAccounts: 11, notServiceAccounts: 12, extensions: 13 },
  },
  'istio.security.StringMatch': { exact: 1, prefix: 2, suffix: 3, presence: 4 },
  'envoy.service.discovery.v3.DeltaDiscoveryRequest': {
    ...{ node: 1, typeUrl: 2, resourceNamesSubscribe: 3, resourceNamesUnsubscribe: 4, initialResourceVersions: 5 },
    ...{ responseNonce: 6, errorDetail: 7 },
  },
  'envoy.service.discovery.v3.DeltaDiscoveryResponse': {
    ...{ systemVersionInfo: 1, resources: 2, typeUrl: 4, nonce: 5, removedResources: 6, controlPlane: 7 },
  },
  'envoy.service.discovery.v3.Resource': { version: 1, resource: 2, name: 3, aliases: 4, ttl: 6 },
  'envoy.config.core.v3.Node': { id: 1, cluster: 2, metadata: 3, locality: 4, userAgentName: 6, userAgentVersion: 7 },
  'google.rpc.Status': { code: 1, message: 2, details: 3 },
};

test('fields have the numbers of the public definitions', () => {
  const includeDirs = [join(import.meta.dirname, '../../../../mesh-agent/proto')];
  const loaded = loadSync(['discovery.proto', 'authorization.proto', 'mesh.proto'], { includeDirs });
  for (const [message, expected] of Object.entries(numbers)) {
    const { field } = (loaded[message] as MessageTypeDefinition<object, object>).type as {
      field: { name: string; number: number }[];
    };
    assert.deepEqual(Object.fromEntries(field.map(({ name, number }) => [name, number])), expected, message);
  }
});
