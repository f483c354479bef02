// Policies from a directory beside another source, which has the workloads and services.

import assert from 'node:assert/strict';
import { mkdtempSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { CombinedSource } from '../../../../mesh-agent/control/combined-source.ts';
import { DirectorySource } from '../../../../mesh-agent/control/directory-source.ts';
import {
  changesBetween,
  emptyMeshState,
  type MeshSource,
  type MeshState,
  type MeshUpdate,
} from '../../../../mesh-agent/model/mesh-state.ts';
import { CART, endpointOf, logLines, service, stateOf, workload } from './support.ts';

/** Stands for a cluster. */
class Cluster implements MeshSource {
  readonly name = 'cluster';
  behindMs = 0;
  private state: MeshState = emptyMeshState('cluster.local');
  private tell: (update: MeshUpdate) => void = () => {};
  private readonly first: MeshState;

  constructor(...things: Parameters<typeof stateOf>) {
    this.first = stateOf(...things);
  }

  async start(onUpdate: (update: MeshUpdate) => void): Promise<void> {
    this.tell = onUpdate;
    this.becomes(this.first);
  }

  becomes(state: MeshState): void {
    const changes = changesBetween(this.state, state);
    this.state = state;
    this.tell({ state, changes });
  }

  async close(): Promise<void> {}
}

const ALLOW = `kind: AuthorizationPolicy
metadata: {name: cart, namespace: shop}
spec: {selector: {matchLabels: {app: cart}}}
`;
const traffic = (rules = 'timeouts: {request: 3s}', name = 'cart'): string => `kind: TrafficPolicy
metadata: {name: ${name}, namespace: shop}
spec: {service: ${name}, rules: [{${rules}}]}
`;

interface Setup {
  cluster: Cluster;
  updates: MeshUpdate[];
  lines: string[];
  source: CombinedSource;
  problems: () => string[];
  write(name: string, text: string): void;
  /** The update after this many. */
  update(count: number): Promise<MeshUpdate>;
}

async function setUp(t: TestContext, cluster: Cluster, files: Record<string, string>): Promise<Setup> {
  const directory = mkdtempSync(join(tmpdir(), 'portcullis-combined-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  const write = (name: string, text: string): void => {
    writeFileSync(join(directory, `.${name}`), text);
    renameSync(join(directory, `.${name}`), join(directory, name));
  };
  for (const [name, text] of Object.entries(files)) write(name, text);
  const { log, lines } = logLines();
  const box: { policies?: DirectorySource } = {};
  const source = new CombinedSource('cluster.local', cluster, (services) => {
    const times = { quietMs: 5, delayMaxMs: 50, pollMs: 50 };
    const more = { trustDomain: 'cluster.local', lastGoodDirectory: null, env: {}, log, times, services };
    box.policies = new DirectorySource({ directory, ...more });
    return box.policies;
  });
  t.after(() => source.close());
  const updates: MeshUpdate[] = [];
  let wake = (): void => {};
  await source.start((update) => {
    updates.push(update);
    wake();
  });
  const update = async (count: number): Promise<MeshUpdate> => {
    while (updates.length <= count) await new Promise<void>((resolve) => (wake = resolve));
    return updates[count]!;
  };
  return { cluster, updates, lines, source, write, update, problems: () => box.policies!.errors.map((e) => e.problem) };
}

const web = workload('web');
const cart = workload('cart', endpointOf(CART));

test('the first state has both, in one update with everything in it as changed', async (t) => {
  const cluster = new Cluster(service('cart'), cart);
  const { updates, source } = await setUp(t, cluster, { 'a.yaml': `${ALLOW}---\n${traffic()}` });
  assert.equal(updates.length, 1);
  const { state, changes } = updates[0]!;
  assert.match(source.name, /^cluster, policies of directory /);
  cluster.behindMs = 7;
  assert.equal(source.behindMs, 7, 'what the cluster misses, the whole does');
  assert.deepEqual([...state.policies.keys()], ['shop/cart']);
  assert.equal(state.services.get(CART)!.rules!.length, 1);
  assert.match(state.services.get(CART)!.configuration!, /"request":"3s"/);
  assert.deepEqual(
    [[...changes.workloads], [...changes.services], [...changes.policies]],
    [[cart.uid], [CART], ['shop/cart']],
  );
});

test('a traffic policy waits for its service, and policies in the same file do not', async (t) => {
  const cluster = new Cluster(web);
  const { updates, lines, problems } = await setUp(t, cluster, { 'a.yaml': `${ALLOW}---\n${traffic()}` });
  assert.deepEqual([...updates[0]!.state.policies.keys()], ['shop/cart']);
  assert.deepEqual(problems(), []);
  assert.match(
    lines.join('\n'),
    /warn traffic policy waits for a service .*a\.yaml:7:\d+: .*there is no service \\"cart\\" now/,
  );
  // The service comes with its policy, in one change, and again without it.
  cluster.becomes(stateOf(web, service('cart', { vips: ['10.9.0.1'] })));
  assert.equal(updates.length, 2);
  const { state, changes } = updates[1]!;
  assert.deepEqual([[...changes.services], [...changes.policies]], [[CART], []]);
  assert.deepEqual(state.services.get(CART)!.vips, ['10.9.0.1']);
  assert.equal(state.services.get(CART)!.rules!.length, 1);
  cluster.becomes(stateOf(web));
  assert.deepEqual(
    [updates.length, updates[2]!.state.services.size, [...updates[2]!.changes.services]],
    [3, 0, [CART]],
  );
  // Workloads alone leave services and policies what they are.
  cluster.becomes(stateOf(web, cart));
  assert.deepEqual([[...updates[3]!.changes.workloads], updates[3]!.changes.services.size], [[cart.uid], 0]);
});

test('a rule that names a service which is not there waits too, and what is wrong besides is said', async (t) => {
  const cluster = new Cluster(service('cart'));
  const rule = 'backendRefs: [{name: cart, weight: 9}, {name: v2}]';
  const { cluster: _, updates, write, problems, update } = await setUp(t, cluster, { 'a.yaml': traffic(rule) });
  assert.equal(updates[0]!.state.services.get(CART)!.rules, null);
  assert.deepEqual(problems(), []);
  cluster.becomes(stateOf(service('cart'), service('v2')));
  assert.equal(updates[1]!.state.services.get(CART)!.rules!.length, 1);
  write('a.yaml', traffic(`${rule}, timeouts: {request: 1s, backendRequest: 2s}`));
  write('b.yaml', traffic('timeouts: {request: 4s}', 'v2'));
  const later = await update(2);
  assert.equal(problems().length, 1);
  assert.match(problems()[0]!, /spec\.rules\[0\]/);
  assert.equal(later.state.services.get(CART)!.rules!.length, 1, 'what was good stays');
});

test('files of such a directory hold policies only', async (t) => {
  const { updates, problems } = await setUp(t, new Cluster(service('cart')), {
    'a.yaml': ALLOW,
    'b.yaml': 'kind: Workload\nmetadata: {name: x}\nspec: {addresses: [10.0.0.1]}\n',
  });
  assert.deepEqual([...updates[0]!.state.policies.keys()], ['shop/cart']);
  assert.equal(updates[0]!.state.workloads.size, 0);
  assert.deepEqual(problems(), ['Workloads of this mesh come from its other source']);
});
