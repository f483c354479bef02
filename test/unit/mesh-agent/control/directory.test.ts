// A mesh from files: what they say, what is wrong with them and where, and what stays when one is broken.

import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { formatConfigError } from '../../../../config/errors.ts';
import { DirectorySource } from '../../../../mesh-agent/control/directory-source.ts';
import type { MeshState, MeshUpdate } from '../../../../mesh-agent/model/mesh-state.ts';
import { logLines } from './support.ts';

const CART = `
kind: Service
metadata: {name: cart, namespace: shop}
spec:
  addresses: [10.9.0.1]
  selector: {app: cart}
  ports: [{port: 80, targetPort: 8080, protocol: http}]
`;
const CART_0 = `
kind: Workload
metadata: {name: cart-0, namespace: shop, labels: {app: cart}}
spec: {addresses: [10.0.0.1], serviceAccount: cart, node: host-a}
`;
const GUARD = `
apiVersion: portcullis.dev/v1
kind: AuthorizationPolicy
metadata: {name: guard, namespace: shop}
spec:
  selector: {matchLabels: {app: cart}}
  action: DENY
  rules:
    - from: [{source: {namespaces: [bank], ipBlocks: [10.0.0.0/8]}}]
      to: [{operation: {ports: ["80", 443], paths: ["/admin*"]}}]
      when: [{key: "request.headers[x-team]", notValues: [red]}]
`;
const TRAFFIC = `
kind: TrafficPolicy
metadata: {name: cart, namespace: shop}
spec:
  service: cart
  rules:
    - matches: [{path: {type: PathPrefix, value: /a}}]
      backendRefs: [{name: cart}]
  backend: {loadBalancer: {policy: PeakEWMA}}
`;

// biome-ignore lint/suspicious/noTemplateCurlyInString: the syntax of variables
const VARIABLE = '"${HOST}"';

class Directory {
  readonly path = mkdtempSync(join(tmpdir(), 'portcullis-mesh-'));
  readonly good = mkdtempSync(join(tmpdir(), 'portcullis-good-'));
  readonly lines: string[];
  readonly updates: MeshUpdate[] = [];
  source: DirectorySource;
  private readonly make: () => DirectorySource;
  private waiting: (() => void)[] = [];

  constructor(t: TestContext, files: Record<string, string>, env: Record<string, string> = {}) {
    const { log, lines } = logLines();
    this.lines = lines;
    const noted: typeof log = (level, message, fields) => {
      log(level, message, fields);
      for (const wake of this.waiting.splice(0)) wake();
    };
    this.write(files);
    const times = { quietMs: 5, delayMaxMs: 50, pollMs: 60_000 };
    const options = {
      trustDomain: 'mesh.example',
      directory: this.path,
      lastGoodDirectory: this.good,
      env,
      log: noted,
      times,
    };
    this.make = () => new DirectorySource(options);
    this.source = this.make();
    t.after(async () => {
      await this.source.close();
      for (const path of [this.path, this.good]) rmSync(path, { recursive: true });
    });
  }

  get state(): MeshState {
    return this.updates.at(-1)!.state;
  }

  get errors(): string[] {
    return this.source.errors.map(formatConfigError);
  }

  /** Replaces files as editors and tools should: each whole. */
  write(files: Record<string, string>): void {
    for (const [name, text] of Object.entries(files)) {
      mkdirSync(dirname(join(this.path, name)), { recursive: true });
      writeFileSync(join(this.path, `.${name.replaceAll('/', '-')}.new`), text);
      renameSync(join(this.path, `.${name.replaceAll('/', '-')}.new`), join(this.path, name));
    }
  }

  async start(): Promise<this> {
    await this.source.start((update) => void this.updates.push(update));
    return this;
  }

  /** As a new process. */
  async restart(): Promise<void> {
    await this.source.close();
    this.source = this.make();
    await this.start();
  }

  /** Waits for something that the watcher brings about. */
  async until(condition: () => boolean): Promise<void> {
    while (!condition()) await new Promise<void>((resolve) => this.waiting.push(resolve));
  }
}

test('workloads, services, policies and traffic rules come out of any number of files and documents', async (t) => {
  const files = {
    'cart.yaml': `# the cart\n---${CART}---${CART_0}...\n`,
    'more/policies.yml': GUARD,
    'traffic.json': TRAFFIC,
    '.hidden.yaml': '{',
  };
  const { state, errors } = await new Directory(t, files).start();
  assert.deepEqual(errors, []);
  const workload = state.workloads.get('directory//Workload/shop/cart-0')!;
  assert.equal(workload.trustDomain, 'mesh.example');
  assert.deepEqual(workload.services, { 'shop/cart.shop.svc.cluster.local': [{ servicePort: 80, targetPort: 8080 }] });
  const service = state.services.get('shop/cart.shop.svc.cluster.local')!;
  assert.deepEqual(service.vips, ['10.9.0.1']);
  assert.equal(service.rules?.[0]?.backendRefs[0]?.name, 'shop/cart.shop.svc.cluster.local');
  assert.equal(service.backend?.name, 'shop/cart.shop.svc.cluster.local');
  const guard = state.policies.get('shop/guard')!;
  assert.equal(guard.scope, 'workload');
  assert.equal(guard.action, 'deny');
  assert.deepEqual(guard.rules[0]!.to[0]!.ports, [80, 443]);
  assert.deepEqual(guard.rules[0]!.when, [{ key: 'request.headers[x-team]', values: [], notValues: ['red'] }]);
});

test('what is decided of plain text for a workload goes before its namespace, and a sidecar is one that is said', async (t) => {
  const text = (name: string, more: string) =>
    `{kind: Workload, metadata: {name: ${name}, namespace: shop}, spec: {addresses: [], ${more}}}\n---\n`;
  const workloads = `${text('a', '')}${text('b', 'mode: strict, sidecar: true')}${text('c', 'sidecar: false')}`;
  const elsewhere = text('d', '').replace('shop', 'bank');
  const directory = await new Directory(t, {
    'a.yaml': `${workloads}${elsewhere}`,
    'b.yaml': 'kind: Namespace\nmetadata: {name: shop}\nspec: {mode: permissive}\n',
  }).start();
  const seen = (): string[] => [...directory.state.workloads.values()].map(({ mode, sidecar }) => `${mode} ${sidecar}`);
  assert.deepEqual(directory.errors, []);
  assert.deepEqual(seen(), ['permissive undefined', 'strict true', 'permissive undefined', 'undefined undefined']);
});

for (const [what, text, expected] of [
  [
    'a namespace in a namespace',
    'kind: Namespace\nmetadata: {name: a, namespace: b}\nspec: {mode: strict}\n',
    /^a\.yaml:2:21: metadata\.namespace: a namespace is in no other, expected its name only/,
  ],
  [
    'a mode that is none',
    CART_0.replace('node: host-a', 'mode: lax'),
    /^a\.yaml:4:\d+: spec\.mode: "lax" is not valid, expected strict or permissive/,
  ],
  [
    'an unknown kind',
    'kind: Wrokload\nmetadata: {name: a}\n',
    /^a\.yaml:1:7: kind: "Wrokload" is not known, expected one of Workload, .*did you mean Workload\?/,
  ],
  ['a missing kind', 'metadata: {name: a}\n', /^a\.yaml:1:1: key "kind" is missing/],
  ['a document that is a list', '- a\n', /^a\.yaml:1:1: a document is not a mapping/],
  [
    'a mistake in the second document',
    `${CART_0}---\nkind: Service\nmetadata: {name: x}\nspec: {ports: [{port: 80000}]}\n`,
    /^a\.yaml:8:23: spec\.ports\[0\]\.port: 80000 is out of range/,
  ],
  ['a syntax error in the second document', `${CART_0}---\nkind: [\n`, /^a\.yaml:\d+:\d+: /],
  [
    'an unknown key',
    CART_0.replace('addresses', 'adresses'),
    /^a\.yaml:4:8: spec: unknown key "adresses".*did you mean "addresses"\?/m,
  ],
  ['a name that is none', CART_0.replace('cart-0', 'Cart 0'), /^a\.yaml:3:\d+: metadata\.name: "Cart 0" is not a name/],
  ['an empty selector', CART.replace('{app: cart}', '{}'), /every workload of the namespace would be an endpoint/],
  [
    'a port twice',
    CART.replace('[{port: 80,', '[{port: 80}, {port: 80,'),
    /spec\.ports\[1\]\.port: 80 is the port of ports\[0\] already/,
  ],
  [
    'a policy for the mesh with a selector',
    GUARD.replace('action: DENY', 'scope: global'),
    /a policy for the whole mesh contradicts a selector/,
  ],
  [
    'a value that is asked for and excluded',
    GUARD.replace('paths: ["/admin*"]', 'notPorts: [80]'),
    /^a\.yaml:10:\d+: spec\.rules\[0\]\.to\[0\]\.operation\.notPorts: "80" is in ports too/,
  ],
  [
    'a network with bits behind its prefix',
    GUARD.replace('10.0.0.0/8', '10.0.0.1/8'),
    /"10\.0\.0\.1\/8" has bits behind its prefix/,
  ],
  [
    'a condition on nothing known',
    GUARD.replace('request.headers[x-team]', 'request.auth.claims[x]'),
    /is not something that a condition can look at/,
  ],
  ['a condition without values', GUARD.replace(', notValues: [red]', ''), /has neither values nor notValues/],
  ['a star in the middle', GUARD.replace('/admin*', '/a*n'), /has a "\*" that is not its begin or end/],
  [
    'a body from a file of the node',
    `${CART}---${TRAFFIC.replace('backendRefs: [{name: cart}]', 'filters: [{type: DirectResponse, directResponse: {statusCode: 200, bodyFile: /etc/passwd}}]')}`,
    /files cannot be used in the mesh/,
  ],
  [
    'rules that the gateway refuses',
    `${CART}---${TRAFFIC.replace('backendRefs', 'backendRef')}`,
    /^a\.yaml:15:7: spec\.rules\[0\]: unknown key "backendRef"/,
  ],
  [
    'rules that contradict themselves',
    `${CART}---${TRAFFIC.replace('backendRefs: [', 'timeouts: {request: 1s, backendRequest: 2s}\n      backendRefs: [')}`,
    /^a\.yaml:15:47: spec\.rules\[0\]\.timeouts\.backendRequest: "2s" is longer/,
  ],
  [
    'a traffic policy for nobody',
    `${CART}---${TRAFFIC.replace('service: cart', 'service: card')}`,
    /^a\.yaml:12:12: spec\.service: there is no service "card", did you mean cart\?/,
  ],
  [
    'rules that name no service',
    `${CART}---${TRAFFIC.replace('{name: cart}]', '{name: nobody}]')}`,
    /^a\.yaml:15:28: spec\.rules\[0\]\.backendRefs\[0\]\.name: there is no service "nobody"/,
  ],
  [
    'two traffic policies for a service',
    `${CART}---${TRAFFIC}---${TRAFFIC.replace('{name: cart,', '{name: cart-2,')}`,
    /a traffic policy for shop\/cart.* is taken already by TrafficPolicy shop\/cart at a\.yaml:/,
  ],
  ['a variable that is not set', CART_0.replace('host-a', VARIABLE), /environment variable HOST is not set/],
  ['bytes that are no text', 'kind: \u0001', /control character U\+0001/],
] as const) {
  test(`refused by name and place, the other files serve: ${what}`, async (t) => {
    const directory = await new Directory(t, {
      'a.yaml': text,
      'good.yaml': CART_0.replace('cart-0', 'good').replace('10.0.0.1', '10.0.0.9'),
    }).start();
    assert.match(directory.errors.join('\n'), expected);
    assert.deepEqual([...directory.state.workloads.keys()], ['directory//Workload/shop/good']);
    assert.match(
      directory.lines.join('\n'),
      /error file of the mesh directory refused .*"file":"a\.yaml".*nothing of it is in use/,
    );
  });
}

test('variables are looked up', async (t) => {
  const text = CART_0.replace('host-a', VARIABLE);
  const { state } = await new Directory(t, { 'a.yaml': text }, { HOST: 'host-z' }).start();
  assert.equal([...state.workloads.values()][0]?.node, 'host-z');
});

for (const [what, second, problem] of [
  [
    'a name',
    CART_0.replace('10.0.0.1', '10.0.0.2'),
    /Workload shop\/cart-0 is taken already by Workload shop\/cart-0 at a\.yaml:3:/,
  ],
  [
    'an address',
    CART_0.replace('cart-0', 'cart-1'),
    /address 10\.0\.0\.1 is taken already by Workload shop\/cart-0 at a\.yaml:4:/,
  ],
  [
    'a hostname',
    CART.replace('name: cart,', 'name: kart,')
      .replace('spec:', 'spec:\n  hostname: cart.shop.svc.cluster.local')
      .replace('  addresses: [10.9.0.1]\n', ''),
    /hostname cart\.shop\.svc\.cluster\.local is taken already/,
  ],
] as const) {
  test(`${what} that is taken is refused to the newcomer, whatever the names of the files are`, async (t) => {
    const directory = await new Directory(t, { 'a.yaml': `${CART_0}---${CART}` }).start();
    directory.write({ '0.yaml': second });
    await directory.until(() => directory.errors.length > 0);
    assert.match(directory.errors[0]!, problem);
    assert.match(directory.errors[0]!, /^0\.yaml:/);
    assert.equal(directory.state.workloads.size, 1);
    directory.write({ 'a.yaml': '# empty now\n' });
    await directory.until(() => directory.errors.length === 0);
    assert.equal(directory.state.workloads.size + directory.state.services.size, 1, 'the newcomer has it now');
  });
}

test('a file that breaks keeps its last good content, is named once, and works again when it is mended', async (t) => {
  const directory = await new Directory(t, { 'a.yaml': CART_0, 'b.yaml': CART }).start();
  directory.write({ 'a.yaml': `${CART_0}  nonsense` });
  await directory.until(() => directory.errors.length > 0);
  assert.equal(directory.updates.length, 1);
  assert.match(directory.lines.join('\n'), /refused .*"file":"a\.yaml".*its last good content stays in use/);
  directory.write({ 'b.yaml': CART.replace('10.9.0.1', '10.9.0.2') });
  await directory.until(() => directory.updates.length === 2);
  assert.equal(directory.state.workloads.size, 1);
  assert.equal(directory.lines.filter((line) => line.includes('refused')).length, 1);
  directory.write({ 'a.yaml': CART_0.replace('host-a', 'host-b') });
  await directory.until(() => directory.updates.length === 3);
  assert.equal([...directory.state.workloads.values()][0]?.node, 'host-b');
  assert.deepEqual([...directory.updates[2]!.changes.workloads], ['directory//Workload/shop/cart-0']);
  assert.deepEqual([...directory.updates[2]!.changes.services], []);
});

test('a policy in a file that was broken before a restart is still there after it', async (t) => {
  const directory = await new Directory(t, { 'guard.yaml': GUARD }).start();
  await directory.source.close();
  directory.write({ 'guard.yaml': `${GUARD}}` });
  await directory.restart();
  assert.equal(directory.errors.length, 1);
  assert.deepEqual([...directory.state.policies.keys()], ['shop/guard']);
});

test('what a file held is gone when the file is, also after a restart', async (t) => {
  const directory = await new Directory(t, { 'guard.yaml': GUARD, 'b.yaml': CART }).start();
  rmSync(join(directory.path, 'guard.yaml'));
  await directory.until(() => directory.updates.length === 2);
  assert.equal(directory.state.policies.size, 0);
  directory.write({ 'guard.yaml': '}' });
  await directory.restart();
  assert.equal(directory.state.policies.size, 0);
});

test('a traffic policy whose service goes away is named, and nothing else of its file is touched', async (t) => {
  const directory = await new Directory(t, { 'a.yaml': CART, 'b.yaml': `${TRAFFIC}---${CART_0}` }).start();
  rmSync(join(directory.path, 'a.yaml'));
  await directory.until(() => directory.errors.length === 1);
  assert.match(directory.errors[0]!, /^b\.yaml:5:12: spec\.service: there is no service "cart"/);
  assert.equal(directory.state.workloads.size, 1);
  directory.write({ 'a.yaml': CART });
  await directory.until(() => directory.errors.length === 0);
  assert.ok(directory.state.services.get('shop/cart.shop.svc.cluster.local')?.rules);
});

test('policies that contradict each other are named, and both are there', async (t) => {
  const directory = await new Directory(t, {
    'a.yaml': GUARD,
    'b.yaml': GUARD.replace('guard', 'open').replace('DENY', 'ALLOW'),
  }).start();
  assert.equal(directory.state.policies.size, 2);
  assert.match(
    directory.lines.join('\n'),
    /warn policies contradict each other .*AuthorizationPolicy shop\/open and AuthorizationPolicy shop\/guard/,
  );
});

test('a directory that is not there is an error at the start, and while it runs what it held stays', async (t) => {
  const directory = await new Directory(t, { 'a.yaml': CART_0 }).start();
  renameSync(directory.path, `${directory.path}-away`);
  t.after(() => rmSync(`${directory.path}-away`, { recursive: true, force: true }));
  await directory.until(() => directory.lines.some((line) => line.includes('cannot be read, what it held stays')));
  assert.equal(directory.state.workloads.size, 1);
  await assert.rejects(directory.restart(), /ENOENT/);
  mkdirSync(directory.path);
});
