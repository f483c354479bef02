// The control plane against a client that shares no code with it: the protocol as go-control-plane has it,
// the resources as Istio's own Go package reads them (control-peer/main.go).

import assert from 'node:assert/strict';
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { type TestContext, test } from 'node:test';
import { controlPeer } from '../../support/go-programs.ts';
import { CART, endpointOf, policy, service, setState, workload } from '../../unit/mesh-agent/control/support.ts';
import { ControlPlane } from './control-support.ts';

const peer = controlPeer();
const skip = 'missing' in peer ? peer.missing : false;

interface Line {
  type: string;
  version: string;
  resources: { name: string; version: string; aliases: string[] | null; content: Content; unknownBytes: number }[];
  removed: string[] | null;
}

// biome-ignore lint/suspicious/noExplicitAny: messages of two types as JSON
type Content = any;

class Peer {
  private readonly child: ChildProcessWithoutNullStreams;
  private readonly lines: AsyncIterator<string>;
  stderr = '';

  constructor(t: TestContext, port: number, scope: string, names: string[], token = 'node:node-a') {
    const path = join((peer as { path: string }).path, 'control-peer');
    this.child = spawn(path, [`127.0.0.1:${port}`, token, 'node-a', scope, ...names]);
    this.child.stderr.on('data', (chunk) => (this.stderr += chunk));
    this.lines = createInterface(this.child.stdout)[Symbol.asyncIterator]();
    t.after(() => this.child.kill('SIGKILL'));
  }

  /** The next response. */
  async next(): Promise<Line> {
    const { value, done } = await this.lines.next();
    if (done) throw new Error(`the peer has ended: ${this.stderr}`);
    return JSON.parse(value);
  }

  /** Makes the next response be refused. */
  refuseNext(reason: string): void {
    this.child.stdin.write(`${reason}\n`);
  }

  ended(): Promise<void> {
    return new Promise((resolve) => this.child.on('close', () => resolve()));
  }
}

const web = workload('web', {
  addresses: ['10.0.0.3', '2001:db8::3'],
  trustDomain: 'mesh.example',
  locality: { region: 'r', zone: 'z', subzone: 's' },
  networkNamespace: '/run/netns/web',
});
const cart0 = workload('cart-0', {
  addresses: ['10.0.0.1'],
  node: 'node-b',
  hostNetwork: true,
  status: 'draining',
  protocol: 'none',
  ...endpointOf(CART),
});
const cart = service('cart', {
  vips: ['10.9.0.1'],
  ports: [
    { servicePort: 80, targetPort: 8080, protocol: 'http' },
    { servicePort: 81, targetPort: 0, protocol: 'grpc' },
  ],
  configuration: '{"rules":[{}]}',
});
const guard = policy('guard', {
  scope: 'workload',
  selector: { app: 'web' },
  action: 'deny',
  dryRun: true,
  rules: [
    {
      from: [
        {
          ...{
            identities: ['spiffe://cluster.local/ns/a/sa/b'],
            notIdentities: [],
            namespaces: ['bank*'],
            notNamespaces: [],
          },
          ...{ ipBlocks: ['10.0.0.0/8'], notIpBlocks: [] },
        },
      ],
      to: [
        {
          ...{
            ports: [80],
            notPorts: [81],
            hosts: [],
            notHosts: [],
            paths: ['/x'],
            notPaths: [],
            methods: [],
            notMethods: [],
          },
        },
      ],
      when: [],
    },
  ],
});

test("Istio's package reads workloads, services and policies as they were meant", { skip }, async (t) => {
  const control = await new ControlPlane().listen(t);
  setState(control.discovery, web, cart0, cart, guard);
  const client = new Peer(t, control.port, '', ['*']);
  const policies = await client.next();
  assert.equal(policies.type, 'type.googleapis.com/istio.security.Authorization');
  assert.deepEqual(
    policies.resources.map(({ content, unknownBytes }) => ({ content, unknownBytes })),
    [
      {
        unknownBytes: 0,
        content: {
          ...{ name: 'guard', namespace: 'shop', scope: 'WORKLOAD_SELECTOR', action: 'DENY', dryRun: true },
          groups: [
            {
              rules: [
                {
                  matches: [
                    {
                      principals: [{ exact: 'cluster.local/ns/a/sa/b' }],
                      namespaces: [{ prefix: 'bank' }],
                      sourceIps: [{ address: Buffer.from([10, 0, 0, 0]).toString('base64'), length: 8 }],
                    },
                  ],
                },
                { matches: [{ destinationPorts: [80], notDestinationPorts: [81] }] },
              ],
            },
          ],
        },
      },
    ],
  );
  const addresses = await client.next();
  const byName = new Map(addresses.resources.map((one) => [one.name, one]));
  assert.deepEqual(
    addresses.resources.map(({ unknownBytes }) => unknownBytes),
    [0, 0, 0],
  );
  assert.deepEqual(byName.get(web.uid)?.aliases, ['/10.0.0.3', '/2001:db8::3']);
  assert.deepEqual(byName.get(web.uid)?.content.workload, {
    ...{ uid: web.uid, name: 'web', namespace: 'shop', trustDomain: 'mesh.example', serviceAccount: 'web' },
    ...{ node: 'node-a', canonicalName: 'web', tunnelProtocol: 'HBONE', authorizationPolicies: ['shop/guard'] },
    addresses: ['CgAAAw==', 'IAENuAAAAAAAAAAAAAAAAw=='],
    locality: { region: 'r', zone: 'z', subzone: 's' },
  });
  assert.deepEqual(byName.get(cart0.uid)?.content.workload, {
    ...{ uid: cart0.uid, name: 'cart-0', namespace: 'shop', serviceAccount: 'cart-0', node: 'node-b' },
    ...{ canonicalName: 'cart-0', status: 'UNHEALTHY', networkMode: 'HOST_NETWORK', addresses: ['CgAAAQ=='] },
    services: { [CART]: { ports: [{ servicePort: 80, targetPort: 8080 }] } },
  });
  assert.deepEqual(byName.get(CART)?.content.service, {
    ...{ name: 'cart', namespace: 'shop', hostname: 'cart.shop.svc.cluster.local' },
    addresses: [{ address: 'CgkAAQ==' }],
    ports: [
      { servicePort: 80, targetPort: 8080, appProtocol: 'HTTP11' },
      { servicePort: 81, appProtocol: 'GRPC' },
    ],
  });
});

test('another client is told of changes and removals, and its confirmations count', { skip }, async (t) => {
  const control = await new ControlPlane().listen(t);
  setState(control.discovery, web, cart);
  const client = new Peer(t, control.port, '', ['*']);
  await client.next();
  await client.next();
  const version = setState(control.discovery, { ...web, status: 'unhealthy' });
  const { resources, removed } = await client.next();
  assert.deepEqual(
    resources.map(({ content }) => content.workload.status),
    ['UNHEALTHY'],
  );
  assert.deepEqual(removed, [CART]);
  const applied = await control.discovery.applied(version, 10_000);
  assert.deepEqual(
    { complete: applied.complete, slowest: applied.slowest?.proxy },
    { complete: true, slowest: 'ztunnel~node-a' },
  );
});

test('another client loads on demand: its own node unasked, the rest by address', { skip }, async (t) => {
  const control = await new ControlPlane().listen(t);
  setState(control.discovery, web, cart0, cart, workload('other', { node: 'node-c' }));
  const client = new Peer(t, control.port, 'node', ['*', '/10.9.0.1', '/10.77.0.1']);
  await client.next();
  const { resources, removed } = await client.next();
  assert.deepEqual(resources.map(({ name }) => name).sort(), [CART, web.uid, cart0.uid].sort());
  assert.deepEqual(removed, ['/10.77.0.1']);
});

test('the refusal of another client is kept with its reason', { skip }, async (t) => {
  const control = await new ControlPlane().listen(t);
  setState(control.discovery, web);
  const client = new Peer(t, control.port, '', ['*']);
  await client.next();
  await client.next();
  client.refuseNext('I do not like it');
  const applied = await (async () => {
    // The refusal takes its own way into the program: changes go on until one has met it.
    for (let round = 0; ; round++) {
      const version = setState(control.discovery, { ...web, canonicalName: `round-${round}` });
      const result = await control.discovery.applied(version, 10_000);
      if (!result.complete || round > 1000) return result;
    }
  })();
  assert.deepEqual(applied.refused, [{ proxy: 'ztunnel~node-a', reason: 'I do not like it', resources: [web.uid] }]);
});

test('another client that is not known is refused', { skip }, async (t) => {
  const control = await new ControlPlane().listen(t);
  const client = new Peer(t, control.port, '', ['*'], 'wrong');
  await client.ended();
  assert.match(client.stderr, /Unauthenticated.*the token is not known/);
});
