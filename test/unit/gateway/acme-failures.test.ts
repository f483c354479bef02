// What goes wrong between the manager of ACME certificates and a CA: what is said, and when it is tried again.

import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import type { WantedCertificate } from '../../../gateway/acme/manager.ts';
import { FakeCa, makeManager, problem, temporaryDirectory } from './acme-support.ts';

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

test('a failed challenge is explained, and tried again later and later', async (t) => {
  const ca = await FakeCa.start(t);
  const storage = temporaryDirectory(t);
  const { manager, log, clock, answers } = makeManager(t, {
    directoryUrl: ca.directoryUrl,
    caPem: ca.rootPem,
    storage,
  });
  clock.randomValue = 0.999;
  ca.validate = () => false;
  await manager.load(single);
  manager.start();
  const waits: number[] = [];
  for (let failure = 1; failure <= 8; failure++) {
    const { level, fields } = await log.wait('certificate not obtained', failure);
    assert.equal(level, 'error');
    assert.equal(fields.failures, failure);
    assert.match(String(fields.cause), /http-01 challenge for a\.example failed.*connection: Connection refused/);
    assert.match(String(fields.advice), /port 80/);
    assert.match(String(fields.inUse), /placeholder/);
    await manager.settled();
    const waitMs = manager.statuses()[0]!.nextAttemptMs - clock.nowMs();
    waits.push(Math.round(waitMs / MINUTE_MS));
    assert.equal(ca.count('/new-order'), failure);
    if (failure < 8) clock.advance(waitMs + 1000);
  }
  assert.deepEqual(waits, [2, 6, 18, 54, 162, 486, 1439, 1439]);
  assert.equal(answers.size, 0);
});

test('failures are remembered over a restart', async (t) => {
  const ca = await FakeCa.start(t);
  const settings = { directoryUrl: ca.directoryUrl, caPem: ca.rootPem, storage: temporaryDirectory(t) };
  const first = makeManager(t, settings);
  ca.validate = () => false;
  await first.manager.load(single);
  first.manager.start();
  const { fields } = await first.log.wait('certificate not obtained');
  await first.manager.stop();

  const second = makeManager(t, settings);
  await second.manager.load(single);
  const [status] = second.manager.statuses();
  assert.equal(status!.failures, 1);
  assert.equal(new Date(status!.nextAttemptMs).toISOString(), fields.nextAttempt);
  assert.match(status!.cause ?? '', /Connection refused/);
  second.manager.start();
  second.clock.advance(30_000);
  await second.manager.settled();
  assert.equal(ca.count('/new-order'), 1, 'not before its time');
  ca.validate = () => true;
  second.clock.advance(5 * MINUTE_MS);
  await second.log.wait('certificate obtained');
});

test('a process that dies during an order waits before the next', async (t) => {
  const ca = await FakeCa.start(t);
  const settings = { directoryUrl: ca.directoryUrl, caPem: ca.rootPem, storage: temporaryDirectory(t) };
  const { manager } = makeManager(t, settings);
  let state = '';
  ca.validate = () => {
    state = readFileSync(fileOf(settings.storage, '.retry'), 'utf8');
    return true;
  };
  await manager.load(single);
  manager.start();
  while (state === '') await new Promise((resolve) => setImmediate(resolve));
  const { failures, nextAttemptMs } = JSON.parse(state) as { failures: number; nextAttemptMs: number };
  assert.equal(failures, 1);
  assert.ok(nextAttemptMs > Date.now() + 30_000);
});

test('Retry-After of a rate limit is respected', async (t) => {
  const ca = await FakeCa.start(t);
  const { manager, log, clock } = makeManager(t, {
    directoryUrl: ca.directoryUrl,
    caPem: ca.rootPem,
    storage: temporaryDirectory(t),
  });
  const text = 'too many certificates (5) already issued for this exact set of identifiers';
  ca.next('/new-order', problem(429, 'rateLimited', text, { 'retry-after': String(34 * 3600) }));
  await manager.load(single);
  manager.start();
  const { fields } = await log.wait('certificate not obtained');
  assert.match(String(fields.cause), /too many certificates/);
  const [status] = manager.statuses();
  assert.ok(status!.nextAttemptMs - clock.nowMs() > 33.9 * HOUR_MS);
  clock.advance(33 * HOUR_MS);
  await manager.settled();
  assert.equal(ca.count('/new-order'), 1);
  clock.advance(6 * HOUR_MS);
  await log.wait('certificate obtained');
});

test('a rate limit of one certificate does not hold up the others', async (t) => {
  const ca = await FakeCa.start(t);
  const { manager, log } = makeManager(t, {
    directoryUrl: ca.directoryUrl,
    caPem: ca.rootPem,
    storage: temporaryDirectory(t),
  });
  ca.next('/new-order', problem(429, 'rateLimited', 'no', { 'retry-after': '86400' }));
  await manager.load([...single, { hostnames: ['c.example'], challenge: 'http-01' }]);
  manager.start();
  const { fields } = await log.wait('certificate obtained');
  assert.equal(fields.hostnames, 'c.example');
});

test('a CA that is down is asked once for all certificates, and its return is noticed within the hour', async (t) => {
  const ca = await FakeCa.start(t);
  const { manager, log, clock } = makeManager(t, {
    directoryUrl: ca.directoryUrl,
    caPem: ca.rootPem,
    storage: temporaryDirectory(t),
  });
  for (let i = 0; i < 10; i++) ca.next('/directory', { status: 503, body: 'down for maintenance' });
  await manager.load([...single, ...wanted]);
  manager.start();
  for (let outage = 1; outage <= 10; outage++) {
    const { fields } = await log.wait('certificate not obtained', outage);
    assert.match(String(fields.cause), /directory .* cannot be read: the CA says status 503/);
    await manager.settled();
    assert.equal(ca.count('/directory'), outage);
    const waitMs = Date.parse(String(fields.nextAttempt)) - clock.nowMs();
    assert.ok(waitMs <= HOUR_MS && waitMs > 30_000, `${waitMs}`);
    clock.advance(waitMs + 1000);
  }
  await log.wait('certificate obtained', 2);
  assert.equal(manager.statuses()[0]!.failures, 0);
});

test('an order that the CA always breaks off does not keep the others from being made', async (t) => {
  const ca = await FakeCa.start(t);
  const { manager, log, clock } = makeManager(t, {
    directoryUrl: ca.directoryUrl,
    caPem: ca.rootPem,
    storage: temporaryDirectory(t),
  });
  ca.next('/finalize', problem(500, 'serverInternal', 'oops'));
  await manager.load([...single, { hostnames: ['c.example'], challenge: 'http-01' }]);
  manager.start();
  const { fields } = await log.wait('certificate not obtained');
  assert.equal(fields.hostnames, 'a.example');
  await manager.settled();
  clock.advance(5 * MINUTE_MS);
  assert.equal((await log.wait('certificate obtained')).fields.hostnames, 'c.example');
});

test('Retry-After of a CA that is busy holds all certificates back', async (t) => {
  const ca = await FakeCa.start(t);
  const { manager, log, clock } = makeManager(t, {
    directoryUrl: ca.directoryUrl,
    caPem: ca.rootPem,
    storage: temporaryDirectory(t),
  });
  ca.next('/new-order', problem(503, 'rateLimited', 'Service busy', { 'retry-after': '7200' }));
  ca.next('/new-order', { status: 503, headers: { 'retry-after': '7200' } });
  await manager.load([...single, ...wanted]);
  manager.start();
  await log.wait('certificate not obtained', 2);
  await manager.settled();
  for (const status of manager.statuses()) assert.ok(status.nextAttemptMs - clock.nowMs() > 1.9 * HOUR_MS);
});

test('nothing listening at the directory is said as such', async (t) => {
  const ca = await FakeCa.start(t);
  ca.stop();
  const { manager, log } = makeManager(t, {
    directoryUrl: ca.directoryUrl,
    caPem: ca.rootPem,
    storage: temporaryDirectory(t),
  });
  await manager.load(single);
  manager.start();
  const { fields } = await log.wait('certificate not obtained');
  assert.match(String(fields.cause), /the CA localhost:\d+ cannot be reached \(ECONNREFUSED\)/);
  assert.match(String(fields.advice), /connections to the CA/);
});

test("a CA whose server's certificate is not trusted is not talked to", async (t) => {
  const ca = await FakeCa.start(t);
  const { manager, log } = makeManager(t, { directoryUrl: ca.directoryUrl, storage: temporaryDirectory(t) });
  await manager.load(single);
  manager.start();
  const { fields } = await log.wait('certificate not obtained');
  assert.match(String(fields.cause), /not trusted/);
  assert.match(String(fields.advice), /root certificate/);
  assert.deepEqual(ca.requests, []);
});

test('terms of service and account bindings that the CA demands are asked for', async (t) => {
  const ca = await FakeCa.start(t);
  const settings = { directoryUrl: ca.directoryUrl, caPem: ca.rootPem, storage: temporaryDirectory(t) };
  ca.meta = { termsOfService: 'https://ca.example/terms' };
  const first = makeManager(t, { ...settings, termsOfServiceAgreed: false });
  await first.manager.load(single);
  first.manager.start();
  const terms = await first.log.wait('certificate not obtained');
  assert.match(String(terms.fields.advice), /https:\/\/ca\.example\/terms/);
  assert.equal(ca.count('/new-account'), 0);
  await first.manager.stop();

  ca.meta = { externalAccountRequired: true };
  const second = makeManager(t, { ...settings, storage: temporaryDirectory(t) });
  await second.manager.load(single);
  second.manager.start();
  const binding = await second.log.wait('certificate not obtained');
  assert.match(String(binding.fields.advice), /external account binding/);
  assert.equal(ca.count('/new-account'), 0);
});

test('an account that the CA has forgotten is registered again', async (t) => {
  const ca = await FakeCa.start(t);
  const { manager, log } = makeManager(t, {
    directoryUrl: ca.directoryUrl,
    caPem: ca.rootPem,
    storage: temporaryDirectory(t),
  });
  await manager.load(single);
  manager.start();
  await log.wait('certificate obtained');
  ca.forgetAccounts();
  await manager.load([...single, ...wanted]);
  await log.wait('certificate obtained', 2);
  assert.equal(ca.count('/new-account'), 2);
});

test('another email address reaches the CA', async (t) => {
  const ca = await FakeCa.start(t);
  const settings = { directoryUrl: ca.directoryUrl, caPem: ca.rootPem, storage: temporaryDirectory(t) };
  for (const [index, email] of ['one@a.example', 'two@a.example'].entries()) {
    const { manager, log } = makeManager(t, { ...settings, email });
    await manager.load([{ hostnames: [`h${index}.example`], challenge: 'http-01' }]);
    manager.start();
    await log.wait('certificate obtained');
    await manager.stop();
  }
  assert.deepEqual(
    ca.accounts.map(({ contact }) => contact),
    [['mailto:one@a.example'], ['mailto:two@a.example']],
  );
});

test('a nonce that the CA refuses is replaced', async (t) => {
  const ca = await FakeCa.start(t);
  const { manager, log } = makeManager(t, {
    directoryUrl: ca.directoryUrl,
    caPem: ca.rootPem,
    storage: temporaryDirectory(t),
  });
  ca.next('/new-order', problem(400, 'badNonce', 'no good', { 'replay-nonce': 'stale' }));
  await manager.load(single);
  manager.start();
  await log.wait('certificate obtained');
  assert.equal(log.all('certificate not obtained').length, 0);
});
