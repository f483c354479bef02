// The storage of ACME certificates when it is damaged, full, read-only, or shared with another gateway.

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import {
  appendFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmdirSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import type { WantedCertificate } from '../../../gateway/acme/manager.ts';
import { DAY_MS, FakeCa, makeManager, temporaryDirectory } from './acme-support.ts';

const HOUR_MS = 3_600_000;
const MINUTE_MS = 60_000;
const wanted: WantedCertificate[] = [{ hostnames: ['a.example', 'b.example'], challenge: 'http-01' }];
const single: WantedCertificate[] = [{ hostnames: ['a.example'], challenge: 'http-01' }];

/** The one directory of a CA in a storage directory. */
function caDirectory(storage: string): string {
  const names = readdirSync(storage);
  assert.equal(names.length, 1);
  return join(storage, names[0]!);
}

function fileOf(storage: string, ending: string): string {
  const directory = caDirectory(storage);
  const found = readdirSync(directory).filter((name) => name.endsWith(ending));
  assert.equal(found.length, 1, `one file ${ending} in ${readdirSync(directory)}`);
  return join(directory, found[0]!);
}

test('a damaged certificate is set aside, reported and ordered anew', async (t) => {
  const ca = await FakeCa.start(t);
  const settings = { directoryUrl: ca.directoryUrl, caPem: ca.rootPem, storage: temporaryDirectory(t) };
  const first = makeManager(t, settings);
  await first.manager.load(single);
  first.manager.start();
  await first.log.wait('certificate obtained');
  await first.manager.stop();
  const path = fileOf(settings.storage, '.pem');
  const whole = readFileSync(path, 'utf8');
  writeFileSync(path, whole.slice(0, whole.length / 2));

  const second = makeManager(t, settings);
  await second.manager.load(single);
  const { fields } = await second.log.wait('a file in the ACME storage is damaged');
  assert.equal(fields.file, path);
  assert.equal(readFileSync(String(fields.keptAs), 'utf8').length, Math.floor(whole.length / 2));
  assert.ok(second.delivered[0]!.placeholder);
  second.manager.start();
  // The last order was a moment ago.
  second.clock.advance(HOUR_MS);
  await second.log.wait('certificate obtained');
  assert.ok(existsSync(path));
});

test('a damaged account is replaced, and its text does not reach the log', async (t) => {
  const ca = await FakeCa.start(t);
  const settings = { directoryUrl: ca.directoryUrl, caPem: ca.rootPem, storage: temporaryDirectory(t) };
  const first = makeManager(t, settings);
  await first.manager.load(single);
  first.manager.start();
  await first.log.wait('certificate obtained');
  await first.manager.stop();
  writeFileSync(fileOf(settings.storage, 'account.json'), 'SECRET');

  const second = makeManager(t, settings);
  await second.manager.load(wanted);
  second.manager.start();
  await second.log.wait('certificate obtained');
  assert.equal(second.log.all('a file in the ACME storage is damaged').length, 1);
  assert.doesNotMatch(JSON.stringify(second.log.lines), /SECRET/);
  assert.equal(ca.count('/new-account'), 2);
});

test('without a storage that can be written nothing is ordered, and a placeholder serves', async (t) => {
  const ca = await FakeCa.start(t);
  const file = join(temporaryDirectory(t), 'file');
  writeFileSync(file, '');
  const { manager, log, delivered } = makeManager(t, {
    directoryUrl: ca.directoryUrl,
    caPem: ca.rootPem,
    storage: join(file, 'storage'),
  });
  await manager.load(single);
  assert.equal(delivered.length, 1);
  manager.start();
  const { fields } = await log.wait('certificate not obtained');
  assert.match(String(fields.cause), /storage directory cannot be used: a file is in the way/);
  assert.deepEqual(ca.requests, []);
});

/** A directory on a small file system of its own, for the test; null where this user may not mount. */
function smallFileSystem(t: TestContext, options: string): string | null {
  const path = mkdtempSync(join(tmpdir(), 'portcullis-acme-'));
  const { status } = spawnSync('mount', ['-t', 'tmpfs', '-o', options, 'tmpfs', path]);
  t.after(() => {
    // Lazily: the manager may still be closing its files.
    if (status === 0) spawnSync('umount', ['-l', path]);
    rmSync(path, { recursive: true, force: true });
  });
  return status === 0 ? path : null;
}

test('on a full disk nothing is ordered, and the log says so', async (t) => {
  const ca = await FakeCa.start(t);
  const storage = smallFileSystem(t, 'size=64k,mode=700');
  if (storage === null) return t.skip('mounting a small file system takes root');
  const { manager, log, clock } = makeManager(t, { directoryUrl: ca.directoryUrl, caPem: ca.rootPem, storage });
  const ballast = join(storage, 'ballast');
  writeFileSync(ballast, '');
  assert.throws(() => {
    for (;;) appendFileSync(ballast, Buffer.alloc(4096));
  }, /ENOSPC/);
  await manager.load(single);
  manager.start();
  const { fields } = await log.wait('certificate not obtained');
  assert.match(String(fields.cause), /disk is full/);
  assert.match(String(fields.advice), /free space/);
  assert.deepEqual(ca.requests, []);
  rmSync(ballast);
  clock.advance(5 * MINUTE_MS);
  await log.wait('certificate obtained');
});

test('a read-only storage serves what it has, and orders nothing', async (t) => {
  const ca = await FakeCa.start(t);
  const storage = smallFileSystem(t, 'size=1m,mode=700');
  if (storage === null) return t.skip('mounting a small file system takes root');
  const settings = { directoryUrl: ca.directoryUrl, caPem: ca.rootPem, storage };
  const first = makeManager(t, settings);
  await first.manager.load(single);
  first.manager.start();
  await first.log.wait('certificate obtained');
  await first.manager.stop();
  const requests = ca.requests.length;
  assert.equal(spawnSync('mount', ['-o', 'remount,ro', storage]).status, 0);

  const second = makeManager(t, settings);
  second.clock.advance(61 * DAY_MS);
  await second.manager.load([...single, ...wanted]);
  assert.deepEqual(
    second.delivered.map(({ placeholder }) => placeholder),
    [false, true],
  );
  second.manager.start();
  const { level, fields } = await second.log.wait('certificate not obtained');
  assert.equal(level, 'warn', 'the old one lasts for weeks');
  assert.match(String(fields.cause), /read-only/);
  assert.equal(ca.requests.length, requests);
});

test('a certificate that cannot be stored is used all the same, and stored when that works again', async (t) => {
  const ca = await FakeCa.start(t);
  const settings = { directoryUrl: ca.directoryUrl, caPem: ca.rootPem, storage: temporaryDirectory(t) };
  const { manager, log, clock, delivered } = makeManager(t, settings);
  let blocker = '';
  ca.validate = () => {
    // A directory under the certificate's name: the rename onto it fails.
    blocker = fileOf(settings.storage, '.retry').replace(/retry$/, 'pem');
    mkdirSync(blocker);
    return true;
  };
  await manager.load(single);
  manager.start();
  const { fields } = await log.wait('the certificate is in use but not stored; a restart would need a new one');
  assert.ok(fields.advice);
  await manager.settled();
  assert.equal(delivered.at(-1)!.placeholder, false);
  rmdirSync(blocker);
  clock.advance(2 * MINUTE_MS);
  while (!existsSync(blocker)) await new Promise((resolve) => setImmediate(resolve));
  assert.equal(ca.count('/new-order'), 1);
  await manager.stop();
  const second = makeManager(t, settings);
  await second.manager.load(single);
  assert.equal(second.delivered[0]!.placeholder, false);
});

test('of two gateways with one storage only one orders, and both get the certificate', async (t) => {
  const ca = await FakeCa.start(t);
  const settings = { directoryUrl: ca.directoryUrl, caPem: ca.rootPem, storage: temporaryDirectory(t) };
  const one = makeManager(t, settings);
  const two = makeManager(t, settings);
  let running = 0;
  ca.validate = () => {
    running++;
    return true;
  };
  await Promise.all([one.manager.load(single), two.manager.load(single)]);
  one.manager.start();
  two.manager.start();
  const taken = 'certificate taken from the storage, where another gateway put it';
  const [orderer, other] = await Promise.race([
    one.log.wait(taken).then(() => [two, one] as const),
    two.log.wait(taken).then(() => [one, two] as const),
  ]);
  assert.equal(running, 1);
  assert.equal(ca.count('/new-order'), 1);
  await Promise.all([one.manager.stop(), two.manager.stop()]);
  assert.equal(orderer.log.all('certificate obtained').length, 1);
  assert.equal(other.delivered.at(-1)!.keyPem, orderer.delivered.at(-1)!.keyPem);
});
