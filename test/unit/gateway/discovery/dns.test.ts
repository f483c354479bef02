// Lookups against a real DNS server, with hosts and resolv.conf files of the test.

import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { lookupBy } from '../../../../gateway/discovery/dns.ts';
import { addressesInHosts, searchNames } from '../../../../gateway/discovery/system-names.ts';
import { startDnsServer } from './dns-server.ts';

function files(t: TestContext, hosts = '', resolvConf = ''): { hosts: string; resolvConf: string } {
  const directory = mkdtempSync(join(tmpdir(), 'portcullis-test-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  writeFileSync(join(directory, 'hosts'), hosts);
  writeFileSync(join(directory, 'resolv.conf'), resolvConf);
  return { hosts: join(directory, 'hosts'), resolvConf: join(directory, 'resolv.conf') };
}

async function lookup(t: TestContext, hosts = '') {
  const server = await startDnsServer(t);
  const config = { servers: [server.address], timeoutMs: 3000, ttlMinMs: 1000, ttlMaxMs: 300_000 };
  return { server, ask: lookupBy(config, files(t, hosts)) };
}

const plain = (host: string) => ({ host, port: 0, weight: 1, priority: 0 });

test('both address families are asked for, and the shortest TTL counts', async (t) => {
  const { server, ask } = await lookup(t);
  server.zones.set('app.test', { addresses: ['10.0.0.1', '10.0.0.2', '::7'], ttl: 17 });
  assert.deepEqual(await ask('app.test', false, []), {
    answers: [plain('10.0.0.1'), plain('10.0.0.2'), plain('::7')],
    ttlMs: 17_000,
  });
});

test('a name with addresses of one family only is fine', async (t) => {
  const { server, ask } = await lookup(t);
  server.zones.set('six.test', { addresses: ['::8'] });
  assert.deepEqual((await ask('six.test', false, [])).answers, [plain('::8')]);
});

test('a family that the server fails to tell keeps its last addresses', async (t) => {
  const { server, ask } = await lookup(t);
  server.zones.set('app.test', { addresses: ['10.0.0.1', '::7'], fail: ['AAAA'] });
  const before = [plain('10.0.0.9'), plain('::9')];
  assert.deepEqual((await ask('app.test', false, before)).answers, [plain('10.0.0.1'), plain('::9')]);
});

test('a name that does not exist, and a server that fails, are told apart', async (t) => {
  const { server, ask } = await lookup(t);
  await assert.rejects(ask('none.test', false, []), { code: 'ENOTFOUND' });
  server.zones.set('broken.test', { addresses: ['10.0.0.1'], fail: ['A', 'AAAA'] });
  await assert.rejects(ask('broken.test', false, [plain('10.0.0.9')]), { code: 'ESERVFAIL' });
});

test('the hosts file has the first word, without a question to the server', async (t) => {
  const { server, ask } = await lookup(t, '# none\n10.1.1.1 other App.test # mine\n10.1.1.2\tapp.test\n');
  server.zones.set('app.test', { addresses: ['10.0.0.1'] });
  const found = await ask('app.test', false, []);
  assert.deepEqual(found, { answers: [plain('10.1.1.1'), plain('10.1.1.2')], ttlMs: undefined });
  assert.deepEqual(server.questions, []);
});

test('SRV records give hosts, ports and weights, and their priorities become levels', async (t) => {
  const { server, ask } = await lookup(t);
  server.zones.set('a.test', { addresses: ['10.0.0.1'], ttl: 5 });
  server.zones.set('b.test', { addresses: ['10.0.0.2', '::2'], ttl: 9 });
  server.zones.set('_http._tcp.shop.test', {
    services: [
      { priority: 20, weight: 0, port: 81, target: 'b.test' },
      { priority: 5, weight: 30, port: 80, target: 'A.test' },
    ],
  });
  const { answers, ttlMs } = await ask('_http._tcp.shop.test', true, []);
  assert.deepEqual(
    answers.toSorted((a, b) => (a.host < b.host ? -1 : 1)),
    [
      { host: '10.0.0.1', port: 80, weight: 30, priority: 0 },
      { host: '10.0.0.2', port: 81, weight: 1, priority: 1 },
      { host: '::2', port: 81, weight: 1, priority: 1 },
    ],
  );
  assert.equal(ttlMs, 5000);
});

test('an SRV target that does not exist takes nothing from the others, but one that nobody could tell fails', async (t) => {
  const { server, ask } = await lookup(t);
  server.zones.set('a.test', { addresses: ['10.0.0.1'] });
  const record = { priority: 1, weight: 1, port: 80 };
  server.zones.set('_x._tcp.test', {
    services: [
      { ...record, target: 'a.test' },
      { ...record, target: 'gone.test' },
    ],
  });
  assert.deepEqual(
    (await ask('_x._tcp.test', true, [])).answers.map(({ host }) => host),
    ['10.0.0.1'],
  );
  server.zones.set('gone.test', { fail: ['A', 'AAAA'] });
  await assert.rejects(ask('_x._tcp.test', true, []), { code: 'ESERVFAIL' });
});

test('a service that is said not to be offered has no endpoints', async (t) => {
  const { server, ask } = await lookup(t);
  server.zones.set('_x._tcp.test', { services: [{ priority: 0, weight: 0, port: 0, target: '' }] });
  await assert.rejects(ask('_x._tcp.test', true, []), /no service is offered/);
});

test('search domains are tried as ndots says', (t) => {
  const few = files(t, '', 'nameserver 10.0.0.1\nsearch ns.svc.test svc.test.\noptions ndots:5 timeout:1\n');
  assert.deepEqual(searchNames('cart', few), ['cart.ns.svc.test', 'cart.svc.test', 'cart']);
  const none = files(t, '', 'search corp.test\n');
  assert.deepEqual(searchNames('cart.other', none), ['cart.other', 'cart.other.corp.test']);
  assert.deepEqual(searchNames('cart', files(t)), ['cart']);
});

test('a hosts file that cannot be read knows nothing', () => {
  assert.deepEqual(addressesInHosts('app.test', { hosts: '/nonexistent', resolvConf: '/nonexistent' }), []);
});
