// Noticing that files have changed, also the way in which Kubernetes changes them.

import assert from 'node:assert/strict';
import { mkdirSync, readFileSync, renameSync, rmSync, symlinkSync, watch, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { FileWatcher, lookups, type WatchTimes } from '../../../../gateway/certificates/watch.ts';
import { temporaryDirectory } from './support.ts';

/** No poll within any test, unless it asks for one. */
const times: WatchTimes = { quietMs: 20, delayMaxMs: 200, pollMs: 3_600_000 };

/** Waits for a condition that is looked at after every call of a watcher. */
class Watched {
  readonly watcher: FileWatcher;
  private waiting: { condition: () => boolean; resolve: () => void } | undefined;

  constructor(t: TestContext, watchTimes = times) {
    this.watcher = new FileWatcher(() => this.look(), watchTimes);
    t.after(() => this.watcher.close());
  }

  /** Resolves once `condition` holds at a call of the watcher; the test runner ends a test that hangs. */
  async seen(condition: () => boolean): Promise<void> {
    // The watcher's timers keep no process alive; this one does.
    const alive = setInterval(() => {}, 1000);
    await new Promise<void>((resolve) => {
      this.waiting = { condition, resolve };
    });
    clearInterval(alive);
  }

  private look(): void {
    if (this.waiting?.condition() !== true) return;
    this.waiting.resolve();
    this.waiting = undefined;
  }
}

/** Puts new content into a volume as Kubernetes does: a new directory, then a renamed link to it. */
function publish(volume: string, version: string): void {
  mkdirSync(join(volume, `..${version}`));
  writeFileSync(join(volume, `..${version}`, 'tls.crt'), version);
  symlinkSync(`..${version}`, join(volume, '..data_tmp'));
  renameSync(join(volume, '..data_tmp'), join(volume, '..data'));
}

test('every name on the way to a file is looked up in its directory, links included', (t) => {
  const directory = temporaryDirectory(t);
  const volume = join(directory, 'volume');
  mkdirSync(volume);
  publish(volume, 'v1');
  symlinkSync('..data/tls.crt', join(volume, 'tls.crt'));
  mkdirSync(join(directory, 'etc'));
  symlinkSync('../volume/tls.crt', join(directory, 'etc', 'site.crt'));
  assert.deepEqual(
    lookups(join(directory, 'etc', 'site.crt')).map(([at, name]) => `${at.slice(directory.length)} ${name}`),
    ['/etc site.crt', '/volume tls.crt', '/volume ..data', '/volume/..v1 tls.crt'],
  );
  assert.deepEqual(lookups('/none/a.crt'), [['/none', 'a.crt']]);
  symlinkSync('loop', join(directory, 'loop'));
  assert.ok(lookups(join(directory, 'loop')).length > 1, 'a link to itself comes to an end');
});

test('a file that is written, replaced or removed is noticed', async (t) => {
  const directory = temporaryDirectory(t);
  const file = join(directory, 'a.crt');
  writeFileSync(file, '1');
  const watched = new Watched(t);
  watched.watcher.watch([file]);
  let seen = watched.seen(() => readFileSync(file, 'utf8') === '2');
  writeFileSync(file, '2');
  await seen;
  writeFileSync(join(directory, 'new'), '3');
  seen = watched.seen(() => readFileSync(file, 'utf8') === '3');
  renameSync(join(directory, 'new'), file);
  await seen;
  seen = watched.seen(() => true);
  rmSync(file);
  await seen;
});

test('a volume of Kubernetes is noticed again and again, also through a link from elsewhere', async (t) => {
  const directory = temporaryDirectory(t);
  const volume = join(directory, 'volume');
  mkdirSync(volume);
  publish(volume, 'v1');
  symlinkSync('..data/tls.crt', join(volume, 'tls.crt'));
  const link = join(directory, 'site.crt');
  symlinkSync('volume/tls.crt', link);
  const watched = new Watched(t);
  watched.watcher.watch([link]);
  for (const version of ['v2', 'v3', 'v4']) {
    const seen = watched.seen(() => readFileSync(link, 'utf8') === version);
    publish(volume, version);
    await seen;
    assert.deepEqual(watched.watcher.directories.sort(), [directory, volume, join(volume, `..${version}`)].sort());
  }
});

test('other files of a directory, such as an access log, are not news', async (t) => {
  t.mock.timers.enable({ apis: ['setTimeout'] });
  const directory = temporaryDirectory(t);
  const file = join(directory, 'a.crt');
  writeFileSync(file, '1');
  let calls = 0;
  const watcher = new FileWatcher(() => calls++, times);
  t.after(() => watcher.close());
  watcher.watch([file]);
  // Events of a directory reach those who watch it in the order in which they began to.
  const written = async (name: string): Promise<void> => {
    const after = watch(directory);
    const seen = new Promise<void>((resolve) => after.on('change', (_type, changed) => changed === name && resolve()));
    writeFileSync(join(directory, name), '2');
    await seen;
    after.close();
  };
  await written('access.log');
  t.mock.timers.tick(times.delayMaxMs);
  assert.equal(calls, 0);
  await written('a.crt');
  t.mock.timers.tick(times.delayMaxMs);
  assert.equal(calls, 1);
});

test('where there are no events, the poll finds a file that appears later', async (t) => {
  const directory = temporaryDirectory(t);
  const file = join(directory, 'not', 'yet', 'a.crt');
  const watched = new Watched(t, { ...times, pollMs: 10 });
  watched.watcher.watch([file]);
  assert.deepEqual(watched.watcher.directories, []);
  const seen = watched.seen(() => watched.watcher.directories.length === 1);
  mkdirSync(join(directory, 'not', 'yet'), { recursive: true });
  writeFileSync(file, '1');
  await seen;
  assert.deepEqual(watched.watcher.directories, [join(directory, 'not', 'yet')]);
});

test('files that are no longer watched leave nothing open', (t) => {
  const directory = temporaryDirectory(t);
  mkdirSync(join(directory, 'a'));
  mkdirSync(join(directory, 'b'));
  const { watcher } = new Watched(t);
  watcher.watch([join(directory, 'a', 'x'), join(directory, 'a', 'y')]);
  assert.deepEqual(watcher.directories, [join(directory, 'a')]);
  watcher.watch([join(directory, 'b', 'x')]);
  assert.deepEqual(watcher.directories, [join(directory, 'b')]);
  watcher.watch([]);
  assert.deepEqual(watcher.directories, []);
});
