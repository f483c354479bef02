// The one workload of a sidecar, and the namespace that the two share.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { failure } from '../../../../core/ffi/netns-open.ts';
import { MeshIndex } from '../../../../mesh-agent/model/mesh-index.ts';
import { OwnNamespace } from '../../../../mesh-agent/node/own-namespace.ts';
import { servedWorkloads } from '../../../../mesh-agent/node/served-workloads.ts';
import { stateOf, workload } from '../control/support.ts';
import { nodeConfig } from './support.ts';

const web = workload('web-0', { serviceAccount: 'web', addresses: ['10.0.0.9', 'fd00::9'], sidecar: true });
const identified = { ok: true as const, identity: '77' };

function ownNamespace(addresses: string[], identify: typeof identified | ReturnType<typeof failure> = identified) {
  return new OwnNamespace({ identify: async () => identify }, () => addresses);
}

test('the namespace of the process is that of the workload when it has an address of it, and no descriptor is opened', async () => {
  const own = ownNamespace(['127.0.0.1', 'fd00::9']);
  assert.deepEqual(await own.update([web]), { changed: true, dropped: [] });
  assert.deepEqual(own.get(web.uid), { fd: -1, path: '/proc/self/ns/net', identity: '77', inode: '' });
  assert.equal(own.problemOf(web.uid), undefined);
  assert.deepEqual(await own.update([web]), { changed: false, dropped: [] });
  assert.deepEqual(await own.update([]), { changed: true, dropped: [] });
  assert.equal(own.get(web.uid), undefined);
});

test('a sidecar in a wrong place serves nobody, and captures nothing there', async () => {
  const own = ownNamespace(['127.0.0.1', '192.0.2.1']);
  await own.update([web]);
  assert.equal(own.get(web.uid), undefined);
  assert.match(own.problemOf(web.uid)!, /not in its network namespace: no interface here has 10\.0\.0\.9, fd00::9/);
  const broken = ownNamespace(['10.0.0.9'], failure('THREAD_LOST', 0, 'the thread is gone'));
  await broken.update([web]);
  assert.equal(broken.problemOf(web.uid), 'the thread is gone');
});

test('a workload that could not be listened for is left out for a while', async () => {
  const own = ownNamespace(['10.0.0.9']);
  await own.update([web]);
  assert.deepEqual(own.leaveOut(web.uid, 'port 15008 is taken'), []);
  assert.deepEqual(await own.update([web]), { changed: false, dropped: [] });
  assert.deepEqual([own.get(web.uid), own.problemOf(web.uid)], [undefined, 'port 15008 is taken']);
});

test('of the workloads with its identity a sidecar serves the one with its name or address', async () => {
  const sidecar = { namespace: 'shop', name: 'web-0', address: null, serviceAccount: 'web' };
  const others = [
    { ...web, uid: 'b', name: 'web-1', addresses: ['10.0.0.10'] },
    { ...web, uid: 'c', name: 'plain', addresses: ['10.0.0.11'], sidecar: undefined },
    workload('web-0', { uid: 'd', namespace: 'bank', serviceAccount: 'web', addresses: ['10.0.0.12'], sidecar: true }),
    { ...web, uid: 'e', serviceAccount: 'other' },
  ] as (typeof web)[];
  const index = new MeshIndex(stateOf(web, ...others));
  const served = (more: Partial<typeof sidecar> | { name: null; address: string }): string[] =>
    servedWorkloads(nodeConfig({ sidecar: { ...sidecar, ...more } }), index).map(({ uid }) => uid);
  assert.deepEqual(served({}), [web.uid]);
  assert.deepEqual(served({ name: null, address: '10.0.0.10' }), ['b']);
  assert.deepEqual(served({ name: 'web-0', address: '10.0.0.10' } as never), [], 'both have to hold');
  assert.deepEqual(served({ name: 'plain' }), [], 'the mesh does not say that it has a sidecar');
  assert.deepEqual(
    servedWorkloads(nodeConfig(), index).map(({ uid }) => uid),
    ['c'],
  );
  const own = ownNamespace(['10.0.0.9']);
  await own.update([web, others[0]!]);
  assert.match(own.problemOf('b')!, /serves one workload, not shop\/web-0, shop\/web-1/);
});
