import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { StorageLock } from '../../../gateway/acme/lock.ts';
import { MovableClock, temporaryDirectory } from './acme-support.ts';

const never = new AbortController().signal;

function acquire(
  directory: string,
  clock = new MovableClock(),
  {
    signal = never,
    waits = () => {},
    lost = () => {},
  }: { signal?: AbortSignal; waits?: (owner: string) => void; lost?: () => void } = {},
): Promise<StorageLock> {
  return StorageLock.acquire(directory, clock, signal, waits, lost);
}

/** Takes the lock in another process, and returns the process. */
async function acquireElsewhere(directory: string) {
  const url = (path: string): string => JSON.stringify(new URL(`../../../${path}`, import.meta.url).href);
  const code = `
    import { StorageLock } from ${url('gateway/acme/lock.ts')};
    import { systemClock } from ${url('core/process/clock.ts')};
    await StorageLock.acquire(process.argv[1], systemClock, new AbortController().signal, () => {}, () => {});
    process.stdout.write('held');
    process.stdin.resume();
  `;
  const child = spawn(process.execPath, ['--input-type=module', '-e', code, directory], {
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  await once(child.stdout, 'data');
  return child;
}

test('the lock says who holds it since when, and goes with its release', async (t) => {
  const directory = temporaryDirectory(t);
  const lock = await acquire(directory);
  const content = JSON.parse(readFileSync(join(directory, 'lock'), 'utf8')) as Record<string, unknown>;
  assert.match(String(content.owner), new RegExp(`process ${process.pid}$`));
  assert.ok(Math.abs(Date.parse(String(content.since)) - Date.now()) < 60_000);
  await lock.release();
  assert.deepEqual(readdirSync(directory), []);
});

test('a second one waits until the first is done, and is told who has it', async (t) => {
  const directory = temporaryDirectory(t);
  const clock = new MovableClock();
  const first = await acquire(directory, clock);
  const told = Promise.withResolvers<string>();
  let second: StorageLock | undefined;
  const waiting = acquire(directory, clock, { waits: told.resolve }).then((lock) => {
    second = lock;
  });
  assert.match(await told.promise, /process/);
  clock.advance(2000);
  assert.equal(second, undefined);
  await first.release();
  clock.advance(2000);
  await waiting;
  await second!.release();
});

test('the lock of a process that was killed is taken over at once', async (t) => {
  const directory = temporaryDirectory(t);
  const child = await acquireElsewhere(directory);
  child.kill('SIGKILL');
  await once(child, 'exit');
  const lock = await acquire(directory, undefined, { waits: () => assert.fail('no wait is needed') });
  await lock.release();
});

test('the lock of a living process is respected', async (t) => {
  const directory = temporaryDirectory(t);
  const child = await acquireElsewhere(directory);
  t.after(() => child.kill('SIGKILL'));
  const told = Promise.withResolvers<string>();
  const stop = new AbortController();
  const waiting = acquire(directory, undefined, { signal: stop.signal, waits: told.resolve });
  assert.match(await told.promise, new RegExp(`process ${child.pid}$`));
  stop.abort(new Error('enough'));
  await assert.rejects(waiting, /enough/);
  assert.ok(existsSync(join(directory, 'lock')));
});

test('the lock of another machine is taken over when it has not been refreshed for a minute', async (t) => {
  const directory = temporaryDirectory(t);
  const foreign = { token: 'x', owner: 'other, process 1', pid: 1, pidSpace: 'other', startTicks: '1', refreshed: 0 };
  writeFileSync(join(directory, 'lock'), JSON.stringify(foreign));
  const clock = new MovableClock();
  const told = Promise.withResolvers<string>();
  const waiting = acquire(directory, clock, { waits: told.resolve });
  assert.equal(await told.promise, 'other, process 1');
  clock.advance(61_000);
  const lock = await waiting;
  assert.doesNotMatch(readFileSync(join(directory, 'lock'), 'utf8'), /other/);
  await lock.release();
});

test('a damaged lock file does not stop anything for ever', async (t) => {
  const directory = temporaryDirectory(t);
  writeFileSync(join(directory, 'lock'), '{"tok');
  const clock = new MovableClock();
  const told = Promise.withResolvers<string>();
  const waiting = acquire(directory, clock, { waits: told.resolve });
  await told.promise;
  clock.advance(61_000);
  await (await waiting).release();
});

test('a holder refreshes its lock, and notices when it was taken away', async (t) => {
  const directory = temporaryDirectory(t);
  const path = join(directory, 'lock');
  const clock = new MovableClock();
  const lost = Promise.withResolvers<void>();
  const lock = await acquire(directory, clock, { lost: lost.resolve });
  const before = readFileSync(path, 'utf8');
  clock.advance(10_000);
  while (readFileSync(path, 'utf8') === before) await new Promise((resolve) => setImmediate(resolve));

  const foreign = JSON.stringify({ ...JSON.parse(before), token: 'somebody else' });
  writeFileSync(path, foreign);
  while (clock.waits().length === 0) await new Promise((resolve) => setImmediate(resolve));
  clock.advance(10_000);
  await lost.promise;
  await lock.release();
  assert.equal(readFileSync(path, 'utf8'), foreign, "another's lock is not removed");
});

test('twenty that want the lock at once never hold it together', async (t) => {
  const directory = temporaryDirectory(t);
  let holders = 0;
  let done = 0;
  const clock = new MovableClock();
  const pump = setInterval(() => clock.advance(500), 1);
  t.after(() => clearInterval(pump));
  // A stale lock on top: all of them want to take it over.
  writeFileSync(join(directory, 'lock'), JSON.stringify({ token: 'x', pidSpace: 'other' }));
  await Promise.all(
    Array.from({ length: 20 }, async () => {
      const lock = await acquire(directory, clock);
      assert.equal(++holders, 1);
      await new Promise((resolve) => setImmediate(resolve));
      holders--;
      done++;
      await lock.release();
    }),
  );
  assert.equal(done, 20);
  assert.deepEqual(readdirSync(directory), []);
});
