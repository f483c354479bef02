// Several files of a mesh directory that are replaced as one change: the source sees all of it or nothing.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdtempSync, renameSync, rmSync, utimesSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { Worker } from 'node:worker_threads';
import { changeDirectory, changeMark } from '../../../../mesh-agent/control/directory-list.ts';
import { DirectorySource } from '../../../../mesh-agent/control/directory-source.ts';
import type { MeshUpdate } from '../../../../mesh-agent/model/mesh-state.ts';
import { noLog } from './support.ts';

const policy = (name: string): string =>
  `kind: AuthorizationPolicy\nmetadata: {name: ${name}, namespace: shop}\nspec: {action: ALLOW}\n`;

function newDirectory(t: TestContext): string {
  const directory = mkdtempSync(join(tmpdir(), 'portcullis-change-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
}

function sourceOf(t: TestContext, directory: string): DirectorySource {
  const times = { quietMs: 1, delayMaxMs: 2, pollMs: 2 };
  const source = new DirectorySource({
    ...{ directory, trustDomain: 'cluster.local', lastGoodDirectory: null, env: {}, log: noLog, times },
  });
  t.after(() => source.close());
  return source;
}

function write(directory: string, name: string, text: string): void {
  writeFileSync(join(directory, `.${name}`), text);
  renameSync(join(directory, `.${name}`), join(directory, name));
}

/** Changes three files thirty times, half of each change a while before the rest; a thread of its own. */
const WRITER = `
const { workerData: { directory, module } } = require('node:worker_threads');
const { renameSync, writeFileSync } = require('node:fs');
const pause = (ms) => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);
const write = (name, action) => {
  const text = 'kind: AuthorizationPolicy\\nmetadata: {name: ' + name + ', namespace: shop}\\nspec: {action: ' + action + '}\\n';
  writeFileSync(directory + '/.' + name, text);
  renameSync(directory + '/.' + name, directory + '/' + name + '.yaml');
};
import(module).then(async ({ changeDirectory }) => {
  for (let round = 1; round <= 30; round++) {
    const action = round % 2 === 0 ? 'ALLOW' : 'DENY';
    await changeDirectory(directory, () => {
      write('a', action);
      pause(6);
      for (const name of ['b', 'c']) write(name, action);
    });
    pause(6);
  }
});
`;

test('a source that looks all the time never sees half of a change', async (t) => {
  const directory = newDirectory(t);
  for (const name of ['a', 'b', 'c']) write(directory, `${name}.yaml`, policy(name));
  const source = sourceOf(t, directory);
  const seen: string[] = [];
  await source.start(({ state }: MeshUpdate) => {
    const actions = new Set([...state.policies.values()].map(({ action }) => action));
    seen.push([...actions].join());
  });
  const module = new URL('../../../../mesh-agent/control/directory-list.ts', import.meta.url).href;
  // On a busy machine the source may hardly ever look while the other thread writes.
  for (let tries = 0; seen.length <= 3 && tries < 10; tries++) {
    await once(new Worker(WRITER, { eval: true, workerData: { directory, module } }), 'exit');
  }
  assert.ok(seen.length > 3, `${seen.length} states`);
  assert.deepEqual([...new Set(seen)].sort(), ['allow', 'deny']);
});

test('while a change is open nothing is read, and one that was cut short does not stop the source for ever', async (t) => {
  const directory = newDirectory(t);
  write(directory, 'a.yaml', policy('a'));
  const updates: MeshUpdate[] = [];
  const source = sourceOf(t, directory);
  const mark = join(directory, '.portcullis-apply');
  writeFileSync(mark, JSON.stringify({ id: 'x', open: true }));
  assert.equal(changeMark(directory), null);
  const started = source.start((update) => void updates.push(update));
  await new Promise((resolve) => setTimeout(resolve, 30));
  assert.equal(updates.length, 0);
  writeFileSync(mark, JSON.stringify({ id: 'x', open: false }));
  await started;
  assert.deepEqual([...updates[0]!.state.policies.keys()], ['shop/a']);
  writeFileSync(mark, JSON.stringify({ id: 'y', open: true }));
  utimesSync(mark, 0, 0);
  assert.notEqual(changeMark(directory), null);
});

test('changes come one after another', async (t) => {
  const directory = newDirectory(t);
  let inner: Promise<void> | undefined;
  await changeDirectory(directory, () => {
    inner = changeDirectory(directory, () => {});
    inner.catch(() => {});
  });
  await assert.rejects(inner!, /being replaced by .*process/);
  await changeDirectory(directory, () => {});
});
