// The life of ACME certificates: orders, renewals, reloads, and the end.

import assert from 'node:assert/strict';
import { existsSync, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
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
