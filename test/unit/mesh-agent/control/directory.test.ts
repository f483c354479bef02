// A mesh from files: what they say, what is wrong with them and where, and what stays when one is broken.

import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, readdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { formatConfigError } from '../../../../config/errors.ts';
import { LastGood } from '../../../../mesh-agent/control/directory-last-good.ts';
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

/** The same with a health check. */
const withCheck = (check: string): string =>
  TRAFFIC.replace('{loadBalancer: {policy: PeakEWMA}}', `{healthCheck: {${check}}}`);

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

  constructor(t: TestContext, files: Record<string, string>, env: Record<string, string> = {}, pollMs = 60_000) {
    const { log, lines } = logLines();
    this.lines = lines;
    const noted: typeof log = (level, message, fields) => {
      log(level, message, fields);
      for (const wake of this.waiting.splice(0)) wake();
    };
    this.write(files);
    const times = { quietMs: 5, delayMaxMs: 50, pollMs };
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
  [
    'a health check by HTTPS',
    `${CART}---${withCheck('type: HTTPS')}`,
    /^a\.yaml:16:33: spec\.backend\.healthCheck\.type: "HTTPS" is not possible in the mesh/,
  ],
  [
    'a health check of the proxy',
    `${CART}---${withCheck('port: 15008')}`,
    /^a\.yaml:16:33: spec\.backend\.healthCheck\.port: 15008 is a port of the proxy/,
  ],
  [
    'a health check that ends at the proxy',
    `${CART}---${withCheck('type: TCP')}`,
    /^a\.yaml:16:33: spec\.backend\.healthCheck\.type: a TCP check of a port that speaks HTTP would end at the proxy/,
  ],
  [
    'a health check with a key for another type',
    `${CART}---${withCheck('type: GRPC, path: /')}`,
    /^a\.yaml:16:39: spec\.backend\.healthCheck\.path: has no meaning for checks of type GRPC/,
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

test('health checks that can be made are taken', async (t) => {
  const taken = [withCheck('path: /healthz'), withCheck('type: GRPC'), withCheck('type: TCP, port: 9000')];
  for (const text of taken) {
    const { state, errors } = await new Directory(t, { 'a.yaml': `${CART}---${text}` }).start();
    assert.deepEqual(errors, []);
    assert.notEqual(state.services.get('shop/cart.shop.svc.cluster.local')!.backend!.healthCheck, null);
  }
  const tcp = CART.replace('protocol: http', 'protocol: tcp');
  assert.deepEqual((await new Directory(t, { 'a.yaml': `${tcp}---${withCheck('type: TCP')}` }).start()).errors, []);
});

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
  assert.equal(directory.source.behindMs, 0);
  renameSync(directory.path, `${directory.path}-away`);
  t.after(() => rmSync(`${directory.path}-away`, { recursive: true, force: true }));
  await directory.until(() => directory.lines.some((line) => line.includes('cannot be read, what it held stays')));
  assert.equal(directory.state.workloads.size, 1);
  const { behindMs } = directory.source;
  while (directory.source.behindMs <= behindMs) await new Promise(setImmediate);
  await assert.rejects(directory.restart(), /ENOENT/);
  mkdirSync(directory.path);
});

const POLL_MS = 5;

/** A directory that is looked at all the time: what replaces a directory sends its events to nobody. */
function polled(t: TestContext, files: Record<string, string>): Promise<Directory> {
  return new Directory(t, files, {}, POLL_MS).start();
}

const said = (directory: Directory, text: string): boolean => directory.lines.some((line) => line.includes(text));

test('a directory that cannot be read is a problem of the source for as long as it cannot', async (t) => {
  const directory = await polled(t, { 'a.yaml': CART_0 });
  t.after(() => rmSync(`${directory.path}-away`, { recursive: true, force: true }));
  renameSync(directory.path, `${directory.path}-away`);
  await directory.until(() => directory.errors.length > 0);
  assert.equal(directory.errors.length, 1);
  assert.match(directory.errors[0]!, /^\/\S+: the directory cannot be read \(ENOENT.*and what it held stays in use$/);
  assert.ok(directory.errors[0]!.startsWith(`${directory.path}: `));
  renameSync(`${directory.path}-away`, directory.path);
  await directory.until(() => said(directory, 'info mesh directory can be read again'));
  assert.deepEqual(directory.errors, []);
  assert.equal(directory.source.behindMs, 0);
  assert.equal(directory.updates.length, 1, 'nothing has changed meanwhile');
});

for (const [what, empty] of [
  ['all files are removed', ({ path }: Directory) => rmSync(join(path, 'more'), { recursive: true })],
  [
    'an empty directory takes its place',
    ({ path }: Directory) => {
      renameSync(path, `${path}-lost`);
      mkdirSync(path);
    },
  ],
] as const) {
  test(`a mesh whose files are gone all at once stays, and that is a problem: ${what}`, async (t) => {
    const directory = await polled(t, { 'more/a.yaml': CART_0, 'more/b.yaml': `${CART}---${GUARD}` });
    t.after(() => rmSync(`${directory.path}-lost`, { recursive: true, force: true }));
    empty(directory);
    await directory.until(() => said(directory, 'has lost all of its files'));
    assert.equal(directory.updates.length, 1);
    assert.equal(directory.errors.length, 1);
    assert.match(
      directory.errors[0]!,
      /all 2 files that were in use are gone, .*stays in use; bring the files back, or, if .* put a file there \(empty\.yaml without content will do\)$/,
    );
    const { behindMs } = directory.source;
    while (directory.source.behindMs <= behindMs) await new Promise(setImmediate);
    // Another look changes nothing, and does not say it again. Timers of one length fire in the order of their making.
    directory.write({ '.passed-over.yaml': CART_0 });
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    assert.equal(directory.updates.length, 1);
    assert.equal(directory.lines.filter((line) => line.includes('has lost all of its files')).length, 1);
    directory.write({ 'more/a.yaml': CART_0, 'more/b.yaml': `${CART}---${GUARD}` });
    await directory.until(() => said(directory, 'info mesh directory has files again'));
    assert.deepEqual(directory.errors, []);
    assert.equal(directory.source.behindMs, 0);
  });
}

test('what was last good of files that are gone is still there for a file that comes back broken', async (t) => {
  const directory = await polled(t, { 'guard.yaml': GUARD });
  rmSync(join(directory.path, 'guard.yaml'));
  await directory.until(() => directory.errors.length > 0);
  assert.match(directory.errors[0]!, /the only file that was in use is gone/);
  directory.write({ 'guard.yaml': '}' });
  await directory.until(() => directory.errors.some((error) => error.startsWith('guard.yaml')));
  assert.deepEqual([...directory.state.policies.keys()], ['shop/guard']);
});

test('an empty file says that the mesh is to be empty, and then its own end is none', async (t) => {
  const directory = await polled(t, { 'a.yaml': CART_0 });
  rmSync(join(directory.path, 'a.yaml'));
  await directory.until(() => directory.errors.length > 0);
  directory.write({ 'empty.yaml': '' });
  await directory.until(() => directory.updates.length === 2);
  assert.equal(directory.state.workloads.size, 0);
  assert.deepEqual(directory.errors, []);
  rmSync(join(directory.path, 'empty.yaml'));
  while (directory.source.fileStates.length > 0) await new Promise(setImmediate);
  assert.deepEqual(directory.errors, []);
});

test('what cannot be kept for a restart is a problem of its file until it can, and ends nothing', async (t) => {
  t.mock.timers.enable({ apis: ['setInterval'] });
  const directory = await new Directory(t, { 'a.yaml': CART_0, 'b.yaml': CART }).start();
  renameSync(directory.good, `${directory.good}-away`);
  writeFileSync(directory.good, '');
  t.after(() => rmSync(`${directory.good}-away`, { recursive: true, force: true }));
  rmSync(join(directory.path, 'b.yaml'));
  directory.write({ 'a.yaml': CART_0.replace('host-a', 'host-b'), 'guard.yaml': GUARD });
  t.mock.timers.tick(60_000);
  assert.deepEqual(sizes(directory), [1, 0, 1]);
  // A copy that stays would come back with a directory that was lost.
  assert.deepEqual(directory.errors.map((error) => error.slice(0, error.indexOf(':'))).sort(), [
    'a.yaml',
    'b.yaml',
    'guard.yaml',
  ]);
  for (const error of directory.errors) {
    assert.match(error, /: what a restart would need of it cannot be kept \((ENOTDIR|EEXIST)/);
  }
  assert.ok(directory.source.fileStates.every(({ inUse }) => inUse));
  t.mock.timers.tick(60_000);
  assert.equal(directory.lines.filter((line) => line.includes('last good content cannot be kept')).length, 3);

  rmSync(directory.good);
  renameSync(`${directory.good}-away`, directory.good);
  t.mock.timers.tick(60_000);
  assert.deepEqual(directory.errors, []);
  await directory.source.close();
  for (const name of ['a.yaml', 'guard.yaml']) rmSync(join(directory.path, name));
  await directory.restart();
  assert.deepEqual(sizes(directory), [1, 0, 1]);
  assert.equal([...directory.state.workloads.values()][0]?.node, 'host-b');
});

test('a copy that could not be removed is not taken for what a file that comes back broken held', async (t) => {
  t.mock.timers.enable({ apis: ['setInterval'] });
  const directory = await new Directory(t, { 'a.yaml': CART_0, 'guard.yaml': GUARD }).start();
  const refuse = t.mock.method(LastGood.prototype, 'forget', () => {
    throw new Error('EROFS: read-only file system');
  });
  rmSync(join(directory.path, 'guard.yaml'));
  t.mock.timers.tick(60_000);
  assert.match(directory.errors.join(), /^guard\.yaml: .*cannot be kept \(EROFS/);
  directory.write({ 'guard.yaml': '}' });
  t.mock.timers.tick(60_000);
  assert.deepEqual(sizes(directory), [1, 0, 0]);
  refuse.mock.restore();
  t.mock.timers.tick(60_000);
  await directory.restart();
  assert.deepEqual(sizes(directory), [1, 0, 0]);
});

/** Of the workloads, services and policies. */
const sizes = ({ state: { workloads, services, policies } }: Directory): number[] =>
  [workloads, services, policies].map(({ size }) => size);

/** Runs, is stopped, and its directory is empty when the next process begins, as after a mount that failed. */
async function restartedEmpty(t: TestContext, files: Record<string, string>): Promise<Directory> {
  const directory = await polled(t, files);
  await directory.source.close();
  for (const name of Object.keys(files)) rmSync(join(directory.path, name));
  return directory;
}

test('a directory that is empty at a restart has what was last good of it, and that is a problem', async (t) => {
  const files = { 'a.yaml': CART_0, 'more/b.yaml': `${CART}---${GUARD}` };
  const directory = await restartedEmpty(t, files);
  for (let restarts = 0; restarts < 2; restarts++) {
    await directory.restart();
    assert.deepEqual(sizes(directory), [1, 1, 1]);
    assert.equal(directory.errors.length, 1);
    assert.match(directory.errors[0]!, /all 2 files that were in use are gone, .*stays in use; .* put a file there/);
    // For how long, and what else there was, nobody knows.
    assert.equal(directory.source.behindMs, Number.POSITIVE_INFINITY);
  }
  const updates = directory.updates.length;
  directory.write(files);
  await directory.until(() => said(directory, 'info mesh directory has files again'));
  assert.deepEqual(directory.errors, []);
  assert.equal(directory.source.behindMs, 0);
  assert.equal(directory.updates.length, updates, 'nothing has changed meanwhile');
  rmSync(join(directory.path, 'a.yaml'));
  await directory.until(() => directory.updates.length > updates);
  assert.deepEqual(sizes(directory), [0, 1, 1]);
});

test('an empty file ends a mesh that was gone at a restart, and nothing of it comes back', async (t) => {
  const directory = await restartedEmpty(t, { 'a.yaml': CART_0 });
  await directory.restart();
  directory.write({ 'empty.yaml': '' });
  await directory.until(() => directory.updates.length === 3);
  assert.deepEqual(sizes(directory), [0, 0, 0]);
  await directory.source.close();
  rmSync(join(directory.path, 'empty.yaml'));
  await directory.restart();
  assert.deepEqual(sizes(directory), [0, 0, 0]);
  assert.deepEqual(directory.errors, []);
});

test('an empty file that is there at a restart says that the mesh is to be empty', async (t) => {
  const directory = await restartedEmpty(t, { 'a.yaml': CART_0 });
  directory.write({ 'empty.yaml': '' });
  await directory.restart();
  assert.deepEqual(sizes(directory), [0, 0, 0]);
  assert.deepEqual(directory.errors, []);
});

test('a file that goes while no process is there does not come back with the others', async (t) => {
  const directory = await polled(t, { 'a.yaml': CART_0, 'guard.yaml': GUARD });
  await directory.source.close();
  rmSync(join(directory.path, 'guard.yaml'));
  await directory.restart();
  await directory.source.close();
  rmSync(join(directory.path, 'a.yaml'));
  await directory.restart();
  assert.deepEqual(sizes(directory), [1, 0, 0]);
});

test('copies whose path is not known are used, too, and make room for the files', async (t) => {
  const directory = await restartedEmpty(t, { 'a.yaml': CART_0 });
  for (const name of readdirSync(directory.good)) if (name.endsWith('.path')) rmSync(join(directory.good, name));
  await directory.restart();
  assert.deepEqual(sizes(directory), [1, 0, 0]);
  directory.write({ 'a.yaml': CART_0 });
  await directory.until(() => said(directory, 'info mesh directory has files again'));
  assert.deepEqual(sizes(directory), [1, 0, 0]);
  assert.deepEqual(directory.errors, []);
});

test('an empty directory whose last content cannot be used is no mesh without anything', async (t) => {
  const directory = await restartedEmpty(t, { 'a.yaml': CART_0 });
  for (const name of readdirSync(directory.good)) {
    if (name.endsWith('.yaml')) writeFileSync(join(directory.good, name), 'kind: Nothing\n');
  }
  await assert.rejects(
    directory.restart(),
    /is empty, and nothing in \S+, .* \(a\.yaml:1:7: kind: .*bring the files back/,
  );
  rmSync(directory.good, { recursive: true });
  writeFileSync(directory.good, '');
  await assert.rejects(
    directory.restart(),
    /is empty, and what was there last cannot be read \(ENOTDIR.*put a file there/,
  );
  assert.equal(directory.updates.length, 1);
});

test('files that come back one after another are read when all of them are there', async (t) => {
  const directory = await new Directory(t, { 'a.yaml': CART_0, 'b.yaml': CART }).start();
  for (const name of ['a.yaml', 'b.yaml']) rmSync(join(directory.path, name));
  await directory.until(() => said(directory, 'has lost all of its files'));
  const updates = directory.updates.length;
  const before = sizes(directory);
  directory.write({ 'guard.yaml': GUARD });
  await directory.until(() => said(directory, 'files of the mesh directory come back'));
  assert.deepEqual(sizes(directory), before);
  assert.match(
    directory.errors[0]!,
    /files come back, .*stays in use until all .* \([12] missing\), or none has changed for 180 s$/,
  );
  assert.equal(directory.updates.length, updates);
  directory.write({ 'a.yaml': CART_0, 'b.yaml': CART });
  await directory.until(() => sizes(directory).join() === '1,1,1');
  assert.deepEqual(directory.errors, []);
});

test('or when they have been the same for three polls', async (t) => {
  t.mock.timers.enable({ apis: ['setInterval'] });
  const directory = await new Directory(t, { 'a.yaml': CART_0, 'b.yaml': CART }).start();
  // Nothing is awaited from here on, so that no event leads to a look in between.
  const poll = (times: number): void => {
    for (let i = 0; i < times; i++) t.mock.timers.tick(60_000);
  };
  for (const name of ['a.yaml', 'b.yaml']) rmSync(join(directory.path, name));
  poll(1);
  for (const text of [CART_0.replace('host-a', 'host-b'), CART_0.replace('host-a', 'host-c')]) {
    directory.write({ 'a.yaml': text });
    poll(3);
    assert.deepEqual(sizes(directory), [1, 1, 0]);
    assert.equal(directory.errors.length, 1);
  }
  poll(1);
  assert.deepEqual(sizes(directory), [1, 0, 0]);
  assert.equal([...directory.state.workloads.values()][0]?.node, 'host-c');
  assert.equal(directory.updates.length, 2);
  assert.deepEqual(directory.errors, []);
});

test('what comes back to a directory that was away is waited for, too', async (t) => {
  t.mock.timers.enable({ apis: ['setInterval'] });
  const directory = await new Directory(t, { 'a.yaml': CART_0, 'b.yaml': CART }).start();
  rmSync(directory.path, { recursive: true });
  t.mock.timers.tick(60_000);
  directory.write({ 'a.yaml': CART_0 });
  t.mock.timers.tick(60_000);
  assert.deepEqual(sizes(directory), [1, 1, 0]);
  assert.match(directory.errors[0]!, /files come back/);
  directory.write({ 'b.yaml': CART });
  t.mock.timers.tick(60_000);
  assert.deepEqual(directory.errors, []);
  assert.equal(directory.updates.length, 1);
});
