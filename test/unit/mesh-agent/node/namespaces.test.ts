// Namespaces of workloads: what is tried in them before they are served, and what is not tried again at once.

import assert from 'node:assert/strict';
import { renameSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import type { NamespaceSockets, NamespaceTarget, SocketRequest } from '../../../../core/ffi/netns.ts';
import type { NamespaceFinder } from '../../../../mesh-agent/node/namespace-finder.ts';
import { Namespaces } from '../../../../mesh-agent/node/namespaces.ts';
import { temporaryDirectory } from '../commands/support.ts';
import { workload } from '../control/support.ts';

const V4 = ['0.0.0.0:15001', '0.0.0.0:15006', '0.0.0.0:15008'];

/** Namespaces that are plain files, one for all workloads, with these addresses taken in it. */
function machine(t: TestContext, taken: string[] = []) {
  const path = join(temporaryDirectory(t), 'ns');
  writeFileSync(path, 'first');
  const tried: string[] = [];
  const identified: NamespaceTarget[] = [];
  let whileOpening = (): void => {};
  const found: { path: string; inode?: string } = { path };
  const finder: NamespaceFinder = { refresh: () => {}, find: () => found };
  const sockets = {
    identify: async (target: NamespaceTarget) => {
      whileOpening();
      identified.push(target);
      return { ok: true, identity: '7' };
    },
    open: async ({ path: at }: { path: string }, request: SocketRequest) => {
      const { host, port } = request as { host: string; port: number };
      tried.push(`${host}:${port}`);
      if (!taken.includes(`${host}:${port}`)) return { ok: true, fds: [], port, identity: '7' };
      return { ok: false, message: `bind to ${host} in ${at} failed` };
    },
  } as unknown as NamespaceSockets;
  const namespaces = new Namespaces(finder, sockets);
  t.after(() => namespaces.closeAll());
  const replace = (): void => {
    writeFileSync(`${path}.new`, 'second');
    renameSync(`${path}.new`, path);
  };
  return { namespaces, path, found, tried, identified, replace, opening: (body: () => void) => (whileOpening = body) };
}

test('all that the workers will listen on is tried: IPv6 as well for a workload that has such an address', async (t) => {
  const web = workload('web', { addresses: ['10.0.0.1', 'fd00::1'] });
  const { namespaces, path, tried } = machine(t, [':::15008']);
  await namespaces.update([web]);
  assert.equal(namespaces.get(web.uid), undefined);
  assert.equal(namespaces.problemOf(web.uid), `bind to :: in ${path} failed`);
  assert.deepEqual(tried.sort(), [...V4, ':::15001', ':::15006', ':::15008'].sort());
  const plain = machine(t, [':::15008']);
  await plain.namespaces.update([workload('web', { addresses: ['10.0.0.1'] })]);
  assert.deepEqual(plain.tried, V4);
});

test('it is the open namespace that is identified, also when its path leads to another one meanwhile', async (t) => {
  const web = workload('web');
  const { namespaces, identified, opening, replace } = machine(t);
  opening(replace);
  await namespaces.update([web]);
  const { fd } = namespaces.get(web.uid)!;
  assert.deepEqual(identified, [`/proc/self/fd/${fd}`]);
  opening(() => {});
  const { dropped } = await namespaces.update([web]);
  assert.deepEqual(
    dropped.map((one) => one.fd),
    [fd],
    'the other one is noticed',
  );
});

test('a path that leads elsewhere than when it was looked at is not opened for the workload', async (t) => {
  const web = workload('web');
  const { namespaces, path, found, identified, replace } = machine(t);
  found.inode = String(statSync(path).ino);
  replace();
  await namespaces.update([web]);
  assert.equal(namespaces.get(web.uid), undefined);
  assert.match(namespaces.problemOf(web.uid)!, /another network namespace/);
  assert.deepEqual(identified, []);
  found.inode = String(statSync(path).ino);
  await namespaces.update([web]);
  const open = namespaces.get(web.uid);
  assert.ok(open);
  // One that is open already, and was found again, stays, wherever the path leads by now.
  replace();
  assert.deepEqual(await namespaces.update([web]), { changed: false, dropped: [] });
  assert.equal(namespaces.get(web.uid), open);
});

test('a workload that was left out is tried again after a while, or at once in another namespace', async (t) => {
  t.mock.method(performance, 'now', () => nowMs);
  let nowMs = 1000;
  const web = workload('web');
  const { namespaces, replace } = machine(t);
  await namespaces.update([web]);
  const first = namespaces.get(web.uid)!;
  assert.deepEqual(namespaces.leaveOut(web.uid, 'taken'), [first]);
  assert.deepEqual(await namespaces.update([web]), { changed: false, dropped: [] });
  assert.equal(namespaces.problemOf(web.uid), 'taken');
  nowMs += 5_000;
  assert.equal((await namespaces.update([web])).changed, true);
  assert.equal(namespaces.problemOf(web.uid), undefined);
  namespaces.leaveOut(web.uid, 'taken');
  replace();
  await namespaces.update([web]);
  assert.ok(namespaces.get(web.uid));
});
