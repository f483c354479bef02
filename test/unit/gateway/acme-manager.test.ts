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
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import type { WantedCertificate } from '../../../gateway/acme/manager.ts';
import { DAY_MS, FakeCa, leafOf, makeManager, problem, temporaryDirectory } from './acme-support.ts';

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

function expectedAuthorization(answer: { token: string; keyAuthorization: string }): void {
  assert.match(answer.keyAuthorization, new RegExp(`^${answer.token}\\.[\\w-]{43}$`));
}

test('a placeholder is delivered before any network, then the certificate', async (t) => {
  const ca = await FakeCa.start(t);
  const storage = temporaryDirectory(t);
  const { manager, log, delivered, answers, answersSeen } = makeManager(t, {
    directoryUrl: ca.directoryUrl,
    caPem: ca.rootPem,
    storage,
    email: 'ops@a.example',
  });
  const shown: string[] = [];
  ca.validate = (hostname, type, keyAuthorization) => {
    const there = [...answers].some(
      (answer) =>
        answer.type === 'http-01' && answer.hostname === hostname && answer.keyAuthorization === keyAuthorization,
    );
    shown.push(`${hostname} ${type}`);
    return there;
  };
  await manager.load(wanted);
  assert.deepEqual(
    delivered.map(({ placeholder }) => placeholder),
    [true],
  );
  assert.ok(leafOf(delivered[0]!).checkHost('b.example'));
  assert.equal(manager.statuses()[0]!.state, 'placeholder');
  assert.deepEqual(ca.requests, []);

  manager.start();
  await log.wait('certificate obtained');
  await manager.stop();
  assert.equal(delivered.length, 2);
  const { placeholder, keyPem, chainPem } = delivered[1]!;
  assert.equal(placeholder, false);
  assert.equal(chainPem.match(/BEGIN CERTIFICATE/g)?.length, 2);
  assert.match(keyPem, /BEGIN PRIVATE KEY/);
  assert.ok(leafOf(delivered[1]!).checkHost('a.example') && leafOf(delivered[1]!).checkHost('b.example'));
  assert.deepEqual(shown, ['a.example http-01', 'b.example http-01']);
  for (const answer of answersSeen) if (answer.type === 'http-01') expectedAuthorization(answer);
  assert.equal(answers.size, 0, 'all challenges are taken back');
  assert.deepEqual(ca.accounts[0]!.contact, ['mailto:ops@a.example']);
  assert.equal(manager.statuses()[0]!.state, 'valid');
});

test('the storage is for its owner alone', async (t) => {
  const ca = await FakeCa.start(t);
  const storage = join(temporaryDirectory(t), 'deep', 'storage');
  const { manager, log } = makeManager(t, { directoryUrl: ca.directoryUrl, caPem: ca.rootPem, storage });
  await manager.load(single);
  manager.start();
  await log.wait('certificate obtained');
  await manager.stop();
  const directory = caDirectory(storage);
  assert.equal(statSync(storage).mode & 0o777, 0o700);
  assert.equal(statSync(directory).mode & 0o777, 0o700);
  const names = readdirSync(directory);
  assert.equal(names.length, 3, `account, certificate, retry state and no lock: ${names}`);
  for (const name of names) assert.equal(statSync(join(directory, name)).mode & 0o777, 0o600, name);
});

test('a stored certificate is used at start without network, and its account afterwards', async (t) => {
  const ca = await FakeCa.start(t);
  const settings = { directoryUrl: ca.directoryUrl, caPem: ca.rootPem, storage: temporaryDirectory(t) };
  const first = makeManager(t, settings);
  await first.manager.load(wanted);
  first.manager.start();
  await first.log.wait('certificate obtained');
  await first.manager.stop();
  const requests = ca.requests.length;

  const second = makeManager(t, settings);
  // The same hostnames in another order are the same certificate.
  await second.manager.load([{ hostnames: ['b.example', 'a.example'], challenge: 'http-01' }]);
  assert.equal(ca.requests.length, requests);
  assert.equal(second.delivered.length, 1);
  assert.equal(second.delivered[0]!.placeholder, false);
  assert.equal(second.delivered[0]!.chainPem, first.delivered[1]!.chainPem);
  assert.equal(second.delivered[0]!.keyPem, first.delivered[1]!.keyPem);

  const third = makeManager(t, settings);
  await third.manager.load([...wanted, ...single]);
  third.manager.start();
  await third.log.wait('certificate obtained');
  assert.equal(ca.count('/new-account'), 1, 'the account is used again');
});

test('a certificate is renewed at two thirds of its lifetime, and not before', async (t) => {
  const ca = await FakeCa.start(t);
  const { manager, log, clock, delivered } = makeManager(t, {
    directoryUrl: ca.directoryUrl,
    caPem: ca.rootPem,
    storage: temporaryDirectory(t),
  });
  ca.nowMs = () => clock.nowMs();
  await manager.load(single);
  manager.start();
  await log.wait('certificate obtained');
  const [status] = manager.statuses();
  // 0.5 is the middle of the jitter; the certificate began an hour before it was issued.
  assert.ok(Math.abs(status!.nextAttemptMs - (clock.nowMs() - HOUR_MS + 60 * DAY_MS)) < MINUTE_MS);

  clock.advance(59 * DAY_MS);
  await manager.settled();
  assert.equal(ca.count('/new-order'), 1);
  clock.advance(DAY_MS);
  await log.wait('certificate obtained', 2);
  assert.equal(ca.count('/new-order'), 2);
  await manager.stop();
  assert.equal(delivered.length, 3);
  assert.notEqual(leafOf(delivered[2]!).fingerprint256, leafOf(delivered[1]!).fingerprint256);
  assert.notEqual(delivered[2]!.keyPem, delivered[1]!.keyPem, 'each certificate has a new key');
});

test('renewals of many gateways are spread over days', async (t) => {
  const ca = await FakeCa.start(t);
  const storage = temporaryDirectory(t);
  const times: number[] = [];
  for (const randomValue of [0, 0.999]) {
    const harness = makeManager(t, { directoryUrl: ca.directoryUrl, caPem: ca.rootPem, storage });
    harness.clock.randomValue = randomValue;
    await harness.manager.load(single);
    if (randomValue === 0) {
      harness.manager.start();
      await harness.log.wait('certificate obtained');
    }
    times.push(harness.manager.statuses()[0]!.nextAttemptMs);
    await harness.manager.stop();
  }
  const spreadDays = (times[1]! - times[0]!) / DAY_MS;
  assert.ok(spreadDays > 3 && spreadDays < 5, `${spreadDays} days`);
});

test('the CA decides when to renew, where it has renewal information', async (t) => {
  const ca = await FakeCa.start(t);
  const ids: string[] = [];
  const { manager, log, clock } = makeManager(t, {
    directoryUrl: ca.directoryUrl,
    caPem: ca.rootPem,
    storage: temporaryDirectory(t),
  });
  ca.nowMs = () => clock.nowMs();
  const window = { startMs: clock.nowMs() + 20 * DAY_MS, endMs: clock.nowMs() + 22 * DAY_MS };
  ca.renewalInfo = (id) => {
    ids.push(id);
    const suggestedWindow = {
      start: new Date(window.startMs).toISOString(),
      end: new Date(window.endMs).toISOString(),
    };
    return { status: 200, headers: { 'retry-after': '3600' }, body: { suggestedWindow } };
  };
  await manager.load(single);
  manager.start();
  await log.wait('certificate obtained');
  clock.advance(10 * MINUTE_MS);
  const line = await log.wait('the CA suggests when to renew');
  assert.ok(Math.abs(Date.parse(String(line.fields.renewal)) - (window.startMs + DAY_MS)) < 1000, 'within the window');
  assert.match(ids[0]!, /^[\w-]{27}\.[\w-]+$/);

  // The window moves into the past when the CA revokes: renewed as soon as that is known.
  Object.assign(window, { startMs: clock.nowMs() - 2 * DAY_MS, endMs: clock.nowMs() - DAY_MS });
  clock.advance(HOUR_MS + MINUTE_MS);
  await log.wait('certificate obtained', 2);
  assert.equal(ca.replaced[1], ids[0], 'the order names its predecessor');
});

test('a CA that wants every certificate renewed at once gets at most one order an hour', async (t) => {
  const ca = await FakeCa.start(t);
  const { manager, log, clock } = makeManager(t, {
    directoryUrl: ca.directoryUrl,
    caPem: ca.rootPem,
    storage: temporaryDirectory(t),
  });
  clock.randomValue = 0;
  const past = (daysAgo: number): string => new Date(Date.now() - daysAgo * DAY_MS).toISOString();
  ca.renewalInfo = () => ({ status: 200, body: { suggestedWindow: { start: past(2), end: past(1) } } });
  await manager.load(single);
  manager.start();
  await log.wait('the CA suggests when to renew');
  const [status] = manager.statuses();
  assert.ok(status!.nextAttemptMs - clock.nowMs() > 59 * MINUTE_MS);
  assert.equal(ca.count('/new-order'), 1);
});

test('an order that the CA does not take as a successor is made without', async (t) => {
  const ca = await FakeCa.start(t);
  ca.renewalInfo = () => ({ status: 404 });
  const { manager, log, clock } = makeManager(t, {
    directoryUrl: ca.directoryUrl,
    caPem: ca.rootPem,
    storage: temporaryDirectory(t),
  });
  ca.nowMs = () => clock.nowMs();
  await manager.load(single);
  manager.start();
  await log.wait('certificate obtained');
  ca.next('/new-order', problem(409, 'alreadyReplaced', 'already replaced'));
  clock.advance(61 * DAY_MS);
  await log.wait('certificate obtained', 2);
  assert.deepEqual(ca.replaced, [undefined, undefined]);
  assert.equal(ca.count('/new-order'), 3);
});

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

test('a reload keeps what is there, forgets what is not wanted, and orders what is new', async (t) => {
  const ca = await FakeCa.start(t);
  const { manager, log, delivered } = makeManager(t, {
    directoryUrl: ca.directoryUrl,
    caPem: ca.rootPem,
    storage: temporaryDirectory(t),
  });
  await manager.load(single);
  manager.start();
  await log.wait('certificate obtained');
  await manager.load([...single, { hostnames: ['new.example'], challenge: 'tls-alpn-01' }]);
  await log.wait('certificate obtained', 2);
  await manager.load([{ hostnames: ['new.example'], challenge: 'tls-alpn-01' }]);
  assert.deepEqual(
    manager.statuses().map(({ hostnames }) => hostnames),
    [['new.example']],
  );
  assert.deepEqual(
    delivered.map(({ hostnames, placeholder }) => `${hostnames} ${placeholder}`),
    ['a.example true', 'a.example false', 'new.example true', 'new.example false'],
  );
});

test('a reload does not wait for a running order, and what it drops is not delivered', async (t) => {
  const ca = await FakeCa.start(t);
  const { manager, log, delivered } = makeManager(t, {
    directoryUrl: ca.directoryUrl,
    caPem: ca.rootPem,
    storage: temporaryDirectory(t),
  });
  const asked = Promise.withResolvers<void>();
  const answer = Promise.withResolvers<boolean>();
  ca.validate = () => {
    asked.resolve();
    return answer.promise;
  };
  await manager.load([...single, ...wanted]);
  manager.start();
  await asked.promise;
  await manager.load([{ hostnames: ['new.example'], challenge: 'http-01' }]);
  assert.deepEqual(delivered.at(-1)!.hostnames, ['new.example']);
  ca.validate = () => true;
  answer.resolve(true);
  const { fields } = await log.wait('certificate obtained', 2);
  assert.equal(fields.hostnames, 'new.example');
  assert.deepEqual(
    delivered.filter(({ placeholder }) => !placeholder).map(({ hostnames }) => hostnames),
    [['new.example']],
  );
});

test('stop ends a running order and takes its challenges back', async (t) => {
  const ca = await FakeCa.start(t);
  const storage = temporaryDirectory(t);
  const { manager, answers, log } = makeManager(t, { directoryUrl: ca.directoryUrl, caPem: ca.rootPem, storage });
  const asked = Promise.withResolvers<void>();
  ca.validate = () => {
    asked.resolve();
    return new Promise(() => {});
  };
  await manager.load(single);
  manager.start();
  await asked.promise;
  assert.equal(answers.size, 1);
  await manager.stop();
  assert.equal(answers.size, 0);
  assert.ok(!existsSync(join(caDirectory(storage), 'lock')));
  assert.equal(log.all('certificate not obtained').length, 0, 'a stop is no failure');
});

test('a challenge that cannot be put in place fails the order before the CA is told', async (t) => {
  const ca = await FakeCa.start(t);
  const { manager, log } = makeManager(
    t,
    { directoryUrl: ca.directoryUrl, caPem: ca.rootPem, storage: temporaryDirectory(t) },
    {
      challenges: {
        set: () => Promise.reject(new Error('no listener on port 80')),
        clear: () => {},
      },
    },
  );
  await manager.load(single);
  manager.start();
  const { fields } = await log.wait('certificate not obtained');
  assert.match(String(fields.cause), /no listener on port 80/);
  assert.equal(ca.count('/challenge'), 0);
});

test('hostnames that no CA can validate are refused at once', async (t) => {
  const { manager } = makeManager(t, { directoryUrl: 'https://ca.example/directory', storage: '/nonexistent' });
  const load = (...hostnames: string[]): Promise<void> => manager.load([{ hostnames, challenge: 'http-01' }]);
  await assert.rejects(load('*.a.example'), /dns-01/);
  await assert.rejects(load('A.example'), /not a DNS name in lower case/);
  await assert.rejects(load('../../etc/passwd'), /not a DNS name/);
  await assert.rejects(load('192.0.2.1'), /not a DNS name/);
  await assert.rejects(load(), /at least one hostname/);
  await assert.rejects(load('a.example', 'a.example'), /twice/);
  assert.deepEqual(manager.statuses(), []);
});

test('a directory that is not https is refused', (t) => {
  assert.throws(
    () => makeManager(t, { directoryUrl: 'http://ca.example/', storage: '/nonexistent' }),
    /not an https URL/,
  );
});

test('a certificate that has expired by the clock of this machine counts as a failure', async (t) => {
  const ca = await FakeCa.start(t);
  ca.nowMs = () => Date.now() - 100 * DAY_MS;
  const { manager, log } = makeManager(t, {
    directoryUrl: ca.directoryUrl,
    caPem: ca.rootPem,
    storage: temporaryDirectory(t),
  });
  await manager.load(single);
  manager.start();
  const { fields } = await log.wait('certificate not obtained');
  assert.match(String(fields.advice), /clock/);
});
