// Certificates that change while the gateway runs, and reloads, shutdowns and shortages in the middle of
// handshakes.

import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { test } from 'node:test';
import { request } from '../http/support.ts';
import {
  clientHello,
  filesOf,
  issue,
  named,
  openUpstream,
  pairOf,
  run,
  Site,
  startSite,
  subjectOf,
} from './support.ts';

const upstream = await openUpstream();
upstream.serve(named('ok'));
const first = issue('first', ['dns:a.example']);
const next = issue('next', ['dns:a.example']);
const listener = (tls: string, handshake = '4s'): string => `
workers: 1
admin: {address: "127.0.0.1:0"}
timeouts: {tlsHandshake: ${handshake}}
drainTimeout: 20s
listeners:
  - {name: https, address: "127.0.0.1:0", protocols: [http/1.1]${tls}}
routes: [{name: all, rules: [{backendRefs: [{name: app}]}]}]
backends: [{name: app, endpoints: ["127.0.0.1:${upstream.port}"]}]
`;
const certificate = `, tls: {certificates: [${pairOf('site')}]}`;
const secure = listener(certificate);
const site = await startSite({ config: secure, files: filesOf({ site: first }) });
site.beforeClose(() => upstream.close());

/** The certificate that a new client gets, and that it is served. */
async function shown(): Promise<string> {
  const wire = await site.secure('https');
  await wire.send(request('GET /', 'a.example'));
  assert.equal((await wire.response()).body, 'ok');
  const subject = subjectOf(wire);
  wire.close();
  return subject;
}

test('new files are taken under load: connections go on, new ones get the new certificate', async () => {
  const kept = await site.secure('https');
  const ask = async (): Promise<void> => {
    await kept.send(request('GET /', 'a.example'));
    assert.equal((await kept.response()).body, 'ok');
  };
  await ask();
  let running = true;
  const seen = new Set<string>();
  const lanes = Array.from({ length: 4 }, async () => {
    while (running) seen.add(await shown());
  });
  while (seen.size === 0) await ask();
  site.write('site.crt', next.pem);
  site.write('site.key', next.keyPem);
  while (!seen.has('next')) await ask();
  running = false;
  await Promise.all(lanes);
  await site.gateway.log(/info certificates reloaded .*connectionsKept=\d+/);
  await ask();
  assert.equal(subjectOf(kept), 'first', 'the connection of before went on');
  assert.equal(await shown(), 'next');
  assert.deepEqual([...seen].sort(), ['first', 'next']);
});

test('a key that does not fit, an expired certificate and rubbish are refused by name; the one of before stays', async () => {
  const expired = issue('expired', ['dns:a.example'], { fromDays: -9, toDays: -1 });
  const bad: [crt: string, key: string, said: RegExp][] = [
    [next.pem, first.keyPem, /error .*site\.(crt|key) .*the one of before stays in use/],
    [expired.pem, expired.keyPem, /error .*site\.crt .*expired.*the one of before stays in use/],
    ['rubbish', next.keyPem, /error .*site\.crt .*the one of before stays in use/],
  ];
  for (const [crt, key, said] of bad) {
    const from = site.gateway.stderr.length;
    site.write('site.crt', crt);
    site.write('site.key', key);
    const already = [...site.gateway.stderr.slice(0, from).matchAll(new RegExp(said, 'g'))].length;
    await site.gateway.log(said, already + 1);
    assert.equal(await shown(), 'next');
  }
  site.write('site.crt', first.pem);
  site.write('site.key', first.keyPem);
  await site.gateway.log(/info certificates reloaded/, 2);
  assert.equal(await shown(), 'first');
});

test('a reload in the middle of a handshake does not disturb it', async () => {
  const hello = await clientHello();
  const wire = await site.plain('https');
  await wire.send(hello.subarray(0, 60));
  await site.reload(listener(`, tls: {minVersion: "1.3", certificates: [${pairOf('site')}]}`));
  await wire.send(hello.subarray(60));
  assert.equal((await wire.bytes(1))[0], 22);
  wire.close();
  await site.reload(secure);
});

test('a reload that takes TLS off in the middle of a handshake ends that connection only', async () => {
  const hello = await clientHello();
  const wire = await site.plain('https');
  await wire.send(hello.subarray(0, 60));
  await site.reload(listener(''));
  await wire.send(hello.subarray(60));
  await wire.ended();
  const plain = await site.plain('https');
  await plain.send(request('GET /', 'a.example'));
  assert.equal((await plain.response()).body, 'ok');
  plain.close();
  await site.reload(secure);
  assert.equal(await shown(), 'first');
});

test('a handshake that takes too long is ended, wherever it is', async () => {
  await site.reload(listener(certificate, '300ms'));
  await site.leavingNothing(async () => {
    const before = await site.metric('tls_handshake_failures_total{failure="timeout"}');
    const hello = await clientHello();
    for (const part of [0, 30, hello.length]) {
      const wire = await site.plain('https');
      await wire.send(hello.subarray(0, part));
      await wire.ended();
      wire.close();
    }
    await site.metricBecomes('tls_handshake_failures_total{failure="timeout"}', before + 3);
  });
  await site.reload(secure);
});

test('when descriptors run out, clients are turned away, and served again afterwards', async () => {
  const { pid } = site.gateway;
  const used = readdirSync(`/proc/${pid}/fd`).length;
  await site.leavingNothing(async () => {
    await run('prlimit', ['--pid', String(pid), `--nofile=${used + 4}:`]);
    const clients = await Promise.allSettled(Array.from({ length: 40 }, () => site.secure('https')));
    const refused = clients.filter(({ status }) => status === 'rejected').length;
    assert.ok(refused > 0 && refused < 40, `${refused} of 40`);
    for (const client of clients) if (client.status === 'fulfilled') client.value.close();
    await run('prlimit', ['--pid', String(pid), '--nofile=4096:']);
  });
  assert.equal(await shown(), 'first');
});

test('SIGTERM in the middle of handshakes: those that go on are served, those that do not are ended', async () => {
  const other = await new Site({ config: secure, files: filesOf({ site: first }) }).started();
  try {
    const hello = await clientHello();
    const stuck = await other.plain('https');
    await stuck.send(hello.subarray(0, 60));
    const answered = await other.plain('https');
    await answered.send(hello);
    await answered.bytes(1);
    const busy = await other.secure('https');
    other.gateway.kill('SIGTERM');
    await other.gateway.log(/draining/);
    await busy.send(request('GET /', 'a.example'));
    const response = await busy.response();
    assert.equal(response.body, 'ok');
    assert.equal(response.value('connection'), 'close');
    await stuck.ended();
    await answered.ended();
    const { code, stderr } = await other.gateway.finished;
    assert.equal(code, 0, stderr);
  } finally {
    other.abandon();
  }
});
