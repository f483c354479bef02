// Control plane and node proxy's client over gRPC: connecting, asking, losing each other, coming back.

import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { connect, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { credentials, ServerCredentials } from '@grpc/grpc-js';
import { ABSENCE_AGE_MAX_MS } from '../../../mesh-agent/control/lookups.ts';
import { ProxyState } from '../../../mesh-agent/control/proxy-state.ts';
import { SavedFile } from '../../../mesh-agent/control/saved-file.ts';
import { meshStatus, policyStatus, serviceStatus, workloadStatus } from '../../../mesh-agent/control/status.ts';
import { xdsServerOptions } from '../../../mesh-agent/control/xds-service.ts';
import { authenticate, CertificateAttestor } from '../../../mesh-agent/identity/attestation.ts';
import { formatNodeIdentity } from '../../../mesh-agent/identity/spiffe.ts';
import type { Service } from '../../../mesh-agent/model/mesh-state.ts';
import { makeCertificate } from '../../unit/core/tls/certificates.ts';
import { CART, endpointOf, policy, service, setState, workload } from '../../unit/mesh-agent/control/support.ts';
import { ControlPlane, NodeClient } from './control-support.ts';

const web = workload('web', { addresses: ['10.0.0.3'] });
const cart = service('cart', { vips: ['10.9.0.1'] });
const cart0 = workload('cart-0', { addresses: ['10.0.0.1'], node: 'node-b', ...endpointOf(CART) });
const guard = policy('guard', { scope: 'workload', selector: { app: 'web' } });

function stateFile(t: TestContext): string {
  const directory = mkdtempSync(join(tmpdir(), 'portcullis-proxy-'));
  t.after(() => rmSync(directory, { recursive: true }));
  return join(directory, 'mesh', 'state');
}

test('a node proxy gets what concerns its node, and asks for the rest when it is used', async (t) => {
  const control = await new ControlPlane().listen(t);
  setState(control.discovery, web, cart, cart0, guard);
  const { client } = new NodeClient(t, control.port);
  await client.start();
  await client.synced();
  assert.deepEqual([...client.state.workloads.keys()], [web.uid]);
  assert.deepEqual(
    client.index.policiesOf(client.state.workloads.get(web.uid)!).policies.map(({ name }) => name),
    ['guard'],
  );
  const found = await client.lookup('/10.9.0.1', 10_000);
  assert.ok(found.status === 'found' && found.owner.kind === 'service');
  assert.deepEqual(
    client.index.endpointsOf(CART).map(({ uid }) => uid),
    [cart0.uid],
  );
  assert.deepEqual(await client.lookup('/10.77.0.1', 10_000), { status: 'absent' });
  assert.deepEqual(await client.lookup('/10.77.0.1', 10_000), { status: 'absent' });
});

test('a control plane that is cut off from its source has no answer about what is not known, until it is not', async (t) => {
  const control = await new ControlPlane().listen(t);
  setState(control.discovery, web, cart, cart0);
  const { client } = new NodeClient(t, control.port);
  await client.start();
  await client.synced();
  control.discovery.setCutOff(true);
  assert.deepEqual(await client.lookup('/10.77.0.1', 50), { status: 'deadline', connected: true });
  const waiting = client.lookup('/10.77.0.2', 10_000);
  assert.equal((await client.lookup('/10.9.0.1', 10_000)).status, 'found', 'nothing is held up by that');
  assert.equal(client.known('/10.77.0.2'), null);
  control.discovery.setCutOff(false);
  assert.deepEqual(await waiting, { status: 'absent' });
});

test('a control plane that stays cut off ends its streams, and what was outside is believed for a day from then on', async (t) => {
  // As docs/mesh/control.md has it; gRPC varies the age by a tenth.
  const { 'grpc.max_connection_age_ms': ageMs, 'grpc.max_connection_age_grace_ms': graceMs } = xdsServerOptions;
  assert.ok(ageMs * 1.1 + graceMs < 35 * 60_000);
  const age = { 'grpc.max_connection_age_ms': 100, 'grpc.max_connection_age_grace_ms': 10 };
  const control = await new ControlPlane(undefined, age).listen(t);
  setState(control.discovery, web);
  let nowMs = 0;
  const old: string[] = [];
  const proxy = new NodeClient(t, control.port, {
    nowMs: () => nowMs,
    onOld: (names) => void old.push(...names),
  });
  const { client } = proxy;
  await client.start();
  await client.synced();
  assert.equal((await client.lookup('/10.77.0.1', 10_000)).status, 'absent');
  control.discovery.setCutOff(true);
  // Later streams of a control plane that is cut off say nothing of it.
  const ends = (): number => proxy.lines.filter((line) => line.includes('control plane is away')).length;
  const before = ends();
  await proxy.until(() => ends() > before);
  nowMs = ABSENCE_AGE_MAX_MS / 2;
  await proxy.until(() => ends() >= before + 3);
  nowMs = ABSENCE_AGE_MAX_MS;
  client.review();
  assert.equal(client.known('/10.77.0.1')?.status, 'absent');
  nowMs++;
  client.review();
  assert.deepEqual([old, client.known('/10.77.0.1')], [['/10.77.0.1'], null]);
});

test('an address that did not exist is found when it comes to be', async (t) => {
  const control = await new ControlPlane().listen(t);
  setState(control.discovery);
  const proxy = new NodeClient(t, control.port);
  await proxy.client.start();
  await proxy.client.synced();
  assert.equal((await proxy.client.lookup('/10.9.0.1', 10_000)).status, 'absent');
  setState(control.discovery, cart);
  await proxy.until(() => proxy.client.state.services.size === 1);
  assert.equal((await proxy.client.lookup('/10.9.0.1', 10_000)).status, 'found');
  proxy.client.release('/10.9.0.1');
  await proxy.until(() => proxy.client.state.services.size === 0);
});

test('a service of a workload of the node is not whole before it is asked for, or its other endpoints would be missed', async (t) => {
  const control = await new ControlPlane().listen(t);
  const own = workload('cart-1', { addresses: ['10.0.0.9'], ...endpointOf(CART) });
  setState(control.discovery, own, cart, cart0);
  const { client } = new NodeClient(t, control.port);
  await client.start();
  await client.synced();
  const known = (): Service => client.state.services.get(CART)!;
  assert.equal(client.index.endpointsOf(CART).length, 1);
  assert.equal(client.isWhole(known()), false);
  await client.lookup('/10.9.0.1', 10_000);
  assert.equal(client.isWhole(known()), true);
  assert.equal(client.index.endpointsOf(CART).length, 2);
  client.release('/10.9.0.1');
  assert.equal(client.isWhole(known()), false);
});

test('what nothing has is remembered without the control plane, and by a later process, until something has it', async (t) => {
  const file = stateFile(t);
  const control = await new ControlPlane().listen(t);
  setState(control.discovery, web);
  const before = new NodeClient(t, control.port, { stateFile: file });
  await before.client.start();
  await before.client.synced();
  assert.equal((await before.client.lookup('/10.9.0.1', 10_000)).status, 'absent');
  before.client.save();
  control.stop();
  await before.until(() => !before.client.status.connected);
  assert.equal((await before.client.lookup('/10.9.0.1', 10_000)).status, 'absent');
  await before.client.close();
  const after = new NodeClient(t, control.port, { stateFile: file });
  await after.client.start();
  assert.deepEqual([after.client.known('/10.9.0.1'), after.client.known('/10.9.0.2')], [{ status: 'absent' }, null]);
  const second = new ControlPlane();
  setState(second.discovery, web, cart, cart0);
  await second.listen(t, control.port);
  await after.client.synced();
  assert.equal((await after.client.lookup('/10.9.0.1', 10_000)).status, 'found');
});

test('an address that nothing had is not outside any more when the service that comes there cannot be used', async (t) => {
  const control = await new ControlPlane().listen(t);
  setState(control.discovery, web);
  const doubted: string[] = [];
  const onDoubt = (names: readonly string[]): void => void doubted.push(...names);
  const proxy = new NodeClient(t, control.port, { onDoubt });
  const { client, lines } = proxy;
  await client.start();
  await client.synced();
  assert.equal((await client.lookup('/10.9.0.1', 10_000)).status, 'absent');
  setState(control.discovery, web, { ...cart, configuration: '{"rules":[{"teleport":true}]}' });
  await proxy.until(() => lines.some((line) => line.includes('resource refused')));
  assert.deepEqual([client.known('/10.9.0.1'), doubted], [null, ['/10.9.0.1']]);
  setState(control.discovery, web);
  // Nothing in the state changes with that.
  while (client.known('/10.9.0.1') === null) await new Promise(setImmediate);
  assert.deepEqual(client.known('/10.9.0.1'), { status: 'absent' });
});

test('what was there and cannot be read by this version any more is not known, and least of all outside', async (t) => {
  const file = stateFile(t);
  const saved = new SavedFile(file, () => {});
  // The service of one name is missing; of the other the control plane has said that nothing has it.
  const absences = [{ name: '/10.9.0.2', confirmedS: Math.floor(Date.now() / 1000) }];
  saved.write(() => new ProxyState('cluster.local').save({ subscriptions: ['/10.9.0.1'], absences }));
  await saved.close();
  const control = await new ControlPlane().listen(t);
  const { client } = new NodeClient(t, control.port, { stateFile: file });
  await client.start();
  assert.deepEqual([client.known('/10.9.0.1'), client.known('/10.9.0.2')], [null, { status: 'absent' }]);
  assert.deepEqual(client.names, ['/10.9.0.2']);
});

test('what was saved as nothing’s is believed for a day; then it is not known, and asked for again', async (t) => {
  const hourMs = 60 * 60_000;
  // Whole seconds are saved.
  const clock = { nowMs: Math.floor(Date.now() / 1000) * 1000 };
  const nowMs = (): number => clock.nowMs;
  const file = stateFile(t);
  const old: string[] = [];
  const onOld = (names: readonly string[]): void => void old.push(...names);
  const start = async (port: number): Promise<NodeClient> => {
    const node = new NodeClient(t, port, { stateFile: file, nowMs, onOld });
    await node.client.start();
    return node;
  };
  const control = await new ControlPlane().listen(t);
  setState(control.discovery, web);
  const before = await start(control.port);
  await before.client.synced();
  await before.client.lookup('/10.9.0.1', 10_000);
  // However long that goes on, the control plane would have told. What is on disk is as new as that in the end.
  clock.nowMs += 100 * hourMs;
  before.client.review();
  assert.deepEqual([before.client.known('/10.9.0.1'), old], [{ status: 'absent' }, []]);
  await before.client.close();
  control.stop();

  clock.nowMs += 20 * hourMs;
  const within = await start(control.port);
  assert.deepEqual(within.client.known('/10.9.0.1'), { status: 'absent' });
  // A restart makes nothing younger, nor does time that passes while the process is there.
  await within.client.close();
  const again = await start(control.port);
  clock.nowMs += 4 * hourMs;
  again.client.review();
  assert.deepEqual([again.client.known('/10.9.0.1'), old], [{ status: 'absent' }, []]);
  clock.nowMs += 1000;
  again.client.review();
  assert.deepEqual([again.client.known('/10.9.0.1'), old, again.client.names], [null, ['/10.9.0.1'], []]);
  assert.deepEqual(await again.client.lookup('/10.9.0.1', 20), { status: 'deadline', connected: false });
  await again.client.close();

  const saved = new SavedFile(file, () => {});
  const confirmedS = Math.floor(clock.nowMs / 1000) - 25 * 3600;
  // As earlier versions have written it, too: without a time.
  const subscriptions = ['!/10.9.0.2'];
  saved.write(() =>
    new ProxyState('cluster.local').save({ subscriptions, absences: [{ name: '/10.9.0.1', confirmedS }] }),
  );
  await saved.close();
  const late = await start(control.port);
  assert.deepEqual(
    [late.client.known('/10.9.0.1'), late.client.known('/10.9.0.2'), late.client.names],
    [null, null, []],
  );
  const waiting = late.client.lookup('/10.9.0.2', 10_000);
  const second = new ControlPlane();
  setState(second.discovery, web, cart);
  await second.listen(t, control.port);
  assert.deepEqual(await waiting, { status: 'absent' });
  assert.equal((await late.client.lookup('/10.9.0.1', 10_000)).status, 'found');
});

test('a process that ends without a word has written down within an hour that what was nothing’s still is', async (t) => {
  const clock = { nowMs: Date.now() };
  const file = stateFile(t);
  const control = await new ControlPlane().listen(t);
  setState(control.discovery, web);
  const { client } = new NodeClient(t, control.port, { stateFile: file, nowMs: () => clock.nowMs });
  await client.start();
  await client.synced();
  await client.lookup('/10.9.0.1', 10_000);
  client.save();
  const savedS = async (): Promise<number | undefined> => {
    const bytes = await new SavedFile(file, () => {}).read();
    return bytes && new ProxyState('cluster.local').load(bytes).absences[0]?.confirmedS;
  };
  const firstS = Math.floor(clock.nowMs / 1000);
  while ((await savedS()) !== firstS) await new Promise(setImmediate);
  clock.nowMs += 60 * 60_000;
  client.review();
  while ((await savedS()) !== firstS + 3600) await new Promise(setImmediate);
});

test('a saved state that is a part of the mesh is not taken for all of it', async (t) => {
  const file = stateFile(t);
  const control = await new ControlPlane().listen(t);
  setState(control.discovery, web, cart, cart0);
  const part = new NodeClient(t, control.port, { stateFile: file });
  await part.client.start();
  await part.client.synced();
  await part.client.close();
  control.stop();
  const first = new NodeClient(t, control.port, { stateFile: file, scope: 'mesh' });
  await first.client.start();
  assert.equal(first.updates.length, 0, 'what it lacks would be outside');
  const second = await new ControlPlane().listen(t, control.port);
  setState(second.discovery, web, cart, cart0);
  await first.client.synced();
  assert.equal(first.client.state.workloads.size, 2);
  await first.client.close();
  second.stop();
  const later = new NodeClient(t, control.port, { stateFile: file, scope: 'mesh' });
  await later.client.start();
  assert.deepEqual(later.updates[0]?.state.workloads.size, 2, 'this is the whole mesh');
});

test('an address whose service cannot be used is not taken for one that nothing has', async (t) => {
  const control = await new ControlPlane().listen(t);
  setState(control.discovery, web, { ...cart, configuration: '{"rules":[{"teleport":true}]}' });
  const { client } = new NodeClient(t, control.port);
  await client.start();
  await client.synced();
  assert.deepEqual(await client.lookup('/10.9.0.1', 10_000), { status: 'unusable' });
});

test('a lookup ends at its deadline when nobody answers', async (t) => {
  const { client } = new NodeClient(t, 1);
  await client.start();
  assert.deepEqual(await client.lookup('/10.9.0.1', 20), { status: 'deadline', connected: false });
});

test('a change is applied when the proxies serve it, and the status tells so', async (t) => {
  const control = await new ControlPlane().listen(t);
  setState(control.discovery, web, guard, cart, cart0);
  const proxies = ['proxy-a', 'proxy-b'].map((id) => new NodeClient(t, control.port, { id }));
  for (const { client } of proxies) {
    await client.start();
    await client.synced();
  }
  const version = setState(control.discovery, { ...web, status: 'draining' }, guard, cart, cart0);
  const applied = await control.discovery.applied(version, 10_000);
  assert.equal(applied.complete, true);
  assert.equal(applied.proxies, 2);
  assert.ok(['proxy-a', 'proxy-b'].includes(applied.slowest!.proxy));
  for (const { client } of proxies) assert.equal(client.state.workloads.get(web.uid)?.status, 'draining');
  const { proxies: rows, workloads } = meshStatus(control.discovery);
  assert.equal(workloads, 2);
  assert.deepEqual(
    rows.map(({ proxy, node, state, addresses, policies }) => ({ proxy, node, state, addresses, policies })),
    [
      { proxy: 'proxy-a', node: 'node-a', state: 'serving', addresses: 1, policies: 1 },
      { proxy: 'proxy-b', node: 'node-a', state: 'serving', addresses: 1, policies: 1 },
    ],
  );
  const { index } = control.discovery;
  assert.deepEqual(serviceStatus(index), [
    { service: CART, addresses: ['10.9.0.1'], ports: ['80:8080/http'], healthy: 1, endpoints: 1, rules: 0 },
  ]);
  const [, row] = workloadStatus(index);
  assert.deepEqual(row?.policies, ['shop/guard']);
  assert.equal(row?.identity, 'spiffe://cluster.local/ns/shop/sa/web');
  assert.deepEqual(policyStatus(index), [
    { policy: 'shop/guard', scope: 'workload', action: 'allow', dryRun: false, rules: 0, workloads: 1 },
  ]);
});

test('a change counts as served only when the proxy has put it to use, and as refused when it cannot', async (t) => {
  const control = await new ControlPlane().listen(t);
  setState(control.discovery, web, guard);
  const uses: PromiseWithResolvers<void>[] = [];
  let wake = (): void => {};
  const used = async (count: number): Promise<void> => {
    while (uses.length < count) await new Promise<void>((resolve) => (wake = resolve));
  };
  let holds = false;
  const { client } = new NodeClient(t, control.port, {
    use: () => {
      if (!holds) return Promise.resolve();
      uses.push(Promise.withResolvers());
      wake();
      return uses.at(-1)!.promise;
    },
  });
  await client.start();
  await client.synced();
  await control.discovery.applied(control.discovery.version, 10_000);
  holds = true;
  const draining = setState(control.discovery, { ...web, status: 'draining' }, guard);
  await used(1);
  assert.equal(client.state.workloads.get(web.uid)?.status, 'draining');
  assert.deepEqual((await control.discovery.applied(draining, 50)).waiting, ['proxy-a']);
  // Who connects to something new does not wait for that.
  assert.equal((await client.lookup('/10.77.0.1', 10_000)).status, 'absent');
  uses[0]!.resolve();
  assert.equal((await control.discovery.applied(draining, 10_000)).complete, true);

  const unhealthy = setState(control.discovery, { ...web, status: 'unhealthy' }, guard);
  await used(2);
  uses[1]!.reject(new Error('no room for it'));
  const { complete, refused } = await control.discovery.applied(unhealthy, 10_000);
  assert.equal(complete, false);
  assert.deepEqual(
    refused.map(({ proxy, reason, resources }) => [proxy, reason, resources]),
    [['proxy-a', 'no room for it', [web.uid]]],
  );
  // What could not be used is in use after all: the control plane hears of it without a change.
  holds = false;
  client.withdrawRefusals();
  const states = (): string =>
    meshStatus(control.discovery)
      .proxies.map(({ state }) => state)
      .join();
  while (states() !== 'serving') await new Promise(setImmediate);
});

test('when the control plane goes away the state stays, and the next one sends only what differs', async (t) => {
  const first = await new ControlPlane().listen(t);
  const extra = Array.from({ length: 50 }, (_, number) => workload(`w-${number}`));
  setState(first.discovery, web, cart, cart0, ...extra);
  const proxy = new NodeClient(t, first.port);
  await proxy.client.start();
  await proxy.client.synced();
  await proxy.client.lookup('/10.9.0.1', 10_000);
  first.stop();
  await proxy.until(() => !proxy.client.status.connected);
  assert.equal(proxy.client.state.workloads.size, 52);
  assert.equal((await proxy.client.lookup('/10.9.0.1', 10_000)).status, 'found', 'what is known is known');
  const second = new ControlPlane();
  setState(second.discovery, { ...web, status: 'unhealthy' }, cart, cart0, ...extra.slice(1));
  const before = proxy.updates.length;
  await second.listen(t, first.port);
  await proxy.client.synced();
  const changed = proxy.updates.slice(before).flatMap(({ changes }) => [...changes.workloads, ...changes.services]);
  assert.deepEqual(changed.sort(), [extra[0]!.uid, web.uid].sort());
  assert.equal(proxy.client.index.endpointsOf(CART).length, 1);
  const away = proxy.lines.filter((line) => line.includes('control plane is away'));
  assert.equal(away.filter((line) => line.startsWith('warn')).length, 1, 'said once');
});

test('a proxy that starts without the control plane serves what it knew', async (t) => {
  const file = stateFile(t);
  const control = await new ControlPlane().listen(t);
  setState(control.discovery, web, cart, cart0, guard);
  const before = new NodeClient(t, control.port, { stateFile: file });
  await before.client.start();
  await before.client.synced();
  await before.client.lookup('/10.9.0.1', 10_000);
  await before.client.close();
  control.stop();
  assert.equal(statSync(file).mode & 0o777, 0o600);
  assert.equal(readdirSync(join(file, '..')).length, 1, 'nothing is left over');
  const after = new NodeClient(t, control.port, { stateFile: file });
  await after.client.start();
  assert.deepEqual(after.client.state, before.client.state);
  assert.equal(after.client.index.byAddress('10.9.0.1')?.kind, 'service');
  const second = new ControlPlane();
  setState(second.discovery, web, { ...cart, vips: ['10.9.0.1', '10.9.0.2'] }, cart0, guard);
  await second.listen(t, control.port);
  await after.client.synced();
  assert.equal(after.client.state.services.get(CART)?.vips.length, 2, 'it still asks for what it asked for');
});

test('a saved state that is damaged is not used, and said', async (t) => {
  const file = stateFile(t);
  const control = await new ControlPlane().listen(t);
  setState(control.discovery, web);
  const before = new NodeClient(t, control.port, { stateFile: file });
  await before.client.start();
  await before.client.synced();
  await before.client.close();
  const bytes = readFileSync(file);
  bytes[bytes.length - 3]! ^= 1;
  writeFileSync(file, bytes);
  control.stop();
  const after = new NodeClient(t, control.port, { stateFile: file });
  await after.client.start();
  assert.equal(after.client.state.workloads.size, 0);
  assert.match(after.lines.join('\n'), /warn saved state of the mesh is damaged/);
});

test('a bad resource is refused by name with the reason, and its last good version stays', async (t) => {
  const control = await new ControlPlane().listen(t);
  setState(control.discovery, web, cart);
  const proxy = new NodeClient(t, control.port);
  await proxy.client.start();
  await proxy.client.synced();
  await proxy.client.lookup(CART, 10_000);
  // A control plane of another version could know keys that this proxy does not.
  const strange = { ...cart, vips: ['10.9.0.9'], configuration: '{"rules":[{"teleport":true}]}' };
  const version = setState(control.discovery, { ...web, status: 'unhealthy' }, strange);
  const { complete, refused } = await control.discovery.applied(version, 10_000);
  assert.equal(complete, false);
  assert.deepEqual(
    refused.map(({ proxy, resources }) => ({ proxy, resources })),
    [{ proxy: 'proxy-a', resources: [CART] }],
  );
  assert.match(refused[0]!.reason, /unknown key "teleport"/);
  assert.equal(meshStatus(control.discovery).proxies[0]?.state, 'refused');
  assert.deepEqual(proxy.client.state.services.get(CART)?.vips, ['10.9.0.1']);
  assert.equal(proxy.client.state.workloads.get(web.uid)?.status, 'unhealthy');
  assert.equal(proxy.client.status.refused[0]?.name, CART);
  const mended = setState(control.discovery, web, { ...cart, vips: ['10.9.0.9'] });
  assert.equal((await control.discovery.applied(mended, 10_000)).complete, true);
  assert.deepEqual(proxy.client.status.refused, []);
});

test('callers that are not known, or no proxy of a node, are refused with the reason and get nothing', async (t) => {
  const control = await new ControlPlane().listen(t);
  setState(control.discovery, web);
  for (const [token, reason] of [
    ['wrong', /the token is not known/],
    ['node:', /neither the proxy of a node nor a sidecar/],
    ['node:node-b', /proxy of node node-b, not of node-a/],
  ] as const) {
    const proxy = new NodeClient(t, control.port, { token });
    await proxy.client.start();
    await proxy.until(() => proxy.client.status.problem !== 'not connected yet');
    assert.match(proxy.client.status.problem, reason);
    assert.equal(proxy.client.state.workloads.size, 0);
    await proxy.client.close();
  }
  assert.equal(control.discovery.proxies.length, 0);
});

test('over TLS the certificate of a node says which proxy it is, and that of a workload is none', async (t) => {
  const ca = makeCertificate({ name: 'mesh', ca: true });
  const issue = (identity: string) =>
    makeCertificate({ name: '', issuer: ca, names: ['dns:control.mesh.internal', `uri:${identity}`] });
  const pair = ({ pem, keyPem }: { pem: string; keyPem: string }) => ({
    cert_chain: Buffer.from(pem),
    private_key: Buffer.from(keyPem),
  });
  const root = Buffer.from(ca.pem);
  const server = issue('spiffe://cluster.local/ns/mesh-system/sa/control');
  const control = new ControlPlane((evidence) => authenticate([new CertificateAttestor('cluster.local')], evidence));
  await control.listen(t, 0, ServerCredentials.createSsl(root, [pair(server)], true));
  setState(control.discovery, web);
  const connect = (identity: string): NodeClient => {
    const own = issue(identity);
    const { private_key: key, cert_chain: chain } = pair(own);
    return new NodeClient(t, control.port, {
      credentials: () => credentials.createSsl(root, key, chain),
      serverName: 'control.mesh.internal',
      headers: () => ({}),
    });
  };
  const node = connect(formatNodeIdentity('cluster.local', 'node-a'));
  await node.client.start();
  await node.client.synced();
  assert.equal(node.client.state.workloads.size, 1);
  for (const [identity, reason] of [
    [formatNodeIdentity('cluster.local', 'node-b'), /proxy of node node-b, not of node-a/],
    ['spiffe://cluster.local/ns/shop/sa/web', /neither the proxy of a node nor a sidecar/],
    [formatNodeIdentity('elsewhere.example', 'node-a'), /neither a token nor a certificate of this mesh/],
  ] as const) {
    const other = connect(identity);
    await other.client.start();
    await other.until(() => other.client.status.problem !== 'not connected yet');
    assert.match(other.client.status.problem, reason);
    await other.client.close();
  }
});

test('a sidecar is one whose identity a workload with a sidecar has, and gets that one', async (t) => {
  const identities = { web: 'spiffe://cluster.local/ns/shop/sa/web', cart: 'spiffe://cluster.local/ns/shop/sa/cart' };
  const byToken = async ({ header }: { header(name: string): string | undefined }) => {
    const name = header('authorization')!.slice('Bearer '.length) as keyof typeof identities;
    return { name: identities[name], node: null, identities: [identities[name]] };
  };
  const control = await new ControlPlane(byToken).listen(t);
  const own = workload('web', { sidecar: true });
  setState(control.discovery, own, workload('cart'));
  const connect = (token: keyof typeof identities, node: string): NodeClient =>
    new NodeClient(t, control.port, { token, node, scope: 'node' });
  const sidecar = connect('web', identities.web);
  await sidecar.client.start();
  await sidecar.client.synced();
  assert.deepEqual([...sidecar.client.state.workloads.keys()], [own.uid]);
  assert.deepEqual(
    sidecar.client.index.onNode(identities.web).map(({ uid }) => uid),
    [own.uid],
  );
  for (const [token, node, reason] of [
    ['cart', identities.cart, /neither the proxy of a node nor a sidecar/],
    ['web', 'node-a', /is the proxy of node spiffe:.*web, not of node-a/],
    ['web', identities.cart, /not of spiffe:.*cart/],
  ] as const) {
    const other = connect(token, node);
    await other.client.start();
    await other.until(() => other.client.status.problem !== 'not connected yet');
    assert.match(other.client.status.problem, reason);
    await other.client.close();
  }
});

test('a control plane that is frozen is noticed, and the proxy connects again', async (t) => {
  const control = await new ControlPlane().listen(t);
  setState(control.discovery, web);
  // A relay that stops to pass bytes on, as a host does that has lost its network.
  let frozen = false;
  const sockets: Socket[] = [];
  const relay = createServer((socket) => {
    const upstream = connect(control.port, '127.0.0.1').on('error', () => socket.destroy());
    socket.on('error', () => upstream.destroy());
    sockets.push(socket, upstream);
    const mine = frozen ? null : sockets.length;
    socket.on('data', (bytes) => (frozen && mine !== null ? undefined : upstream.write(bytes)));
    upstream.on('data', (bytes) => (frozen && mine !== null ? undefined : socket.write(bytes)));
  });
  await new Promise<void>((resolve) => relay.listen(0, '127.0.0.1', resolve));
  t.after(() => {
    for (const socket of sockets) socket.destroy();
    relay.close();
  });
  const proxy = new NodeClient(t, (relay.address() as { port: number }).port, {
    keepalive: { intervalMs: 200, timeoutMs: 200 },
  });
  await proxy.client.start();
  await proxy.client.synced();
  frozen = true;
  await proxy.until(() => !proxy.client.status.connected);
  await proxy.client.synced();
  assert.deepEqual([...proxy.client.state.workloads.keys()], [web.uid]);
});
