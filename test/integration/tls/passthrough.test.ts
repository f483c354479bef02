// TLS that is passed on unread: the name in SNI chooses the backend, whose certificate the client sees.

import assert from 'node:assert/strict';
import type { AddressInfo } from 'node:net';
import { after, test } from 'node:test';
import tls from 'node:tls';
import { makeCertificate } from '../../unit/core/tls/certificates.ts';
import { openWire } from '../http/wire.ts';
import { clientHello, issue, startSite, startTls, subjectOf, trickling } from './support.ts';

/** A backend that ends TLS itself and answers each byte with its name. */
async function backend(name: string, names: string[], certificate = issue(name, names)): Promise<number> {
  const server = tls.createServer({ cert: certificate.pem, key: certificate.keyPem }, (socket) => {
    socket.on('error', () => {});
    socket.on('data', () => socket.write(name));
  });
  server.on('tlsClientError', () => {});
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  after(() => server.close());
  return (server.address() as AddressInfo).port;
}

const exact = await backend('exact', ['dns:a.example']);
const wild = await backend('wild', ['dns:*.b.example', 'dns:x.y.b.example']);
const foreign = await backend('foreign', [], makeCertificate({ name: 'foreign', names: ['dns:c.example'] }));
const fallback = await backend('fallback', ['dns:other.example']);
const site = await startSite({
  config: `
workers: 1
admin: {address: "127.0.0.1:0"}
accessLog: {path: access.log}
listeners:
  - {name: sni, address: "127.0.0.1:0", tls: {mode: Passthrough}}
  - {name: all, address: "127.0.0.1:0", tls: {mode: Passthrough}}
routes:
  - {name: exact, kind: TLS, listeners: [sni, all], hostnames: [a.example], rules: [{backendRefs: [{name: exact}]}]}
  - {name: wild, kind: TLS, listeners: [sni, all], hostnames: ["*.b.example"], rules: [{backendRefs: [{name: wild}]}]}
  - {name: foreign, kind: TLS, listeners: [sni], hostnames: [c.example], rules: [{backendRefs: [{name: foreign}]}]}
  - {name: rest, kind: TLS, listeners: [all], rules: [{backendRefs: [{name: fallback}]}]}
backends:
  - {name: exact, endpoints: ["127.0.0.1:${exact}"]}
  - {name: wild, endpoints: ["127.0.0.1:${wild}"]}
  - {name: foreign, endpoints: ["127.0.0.1:${foreign}"]}
  - {name: fallback, endpoints: ["127.0.0.1:${fallback}"]}
`,
});

/** The backend that answers a client who asks for a name; the certificate is checked for it. */
async function answerFor(listener: string, servername: string, check?: () => undefined): Promise<string> {
  const options = { servername, ...(check === undefined ? {} : { checkServerIdentity: check }) };
  const wire = await site.secure(listener, options);
  await wire.send('?');
  const subject = subjectOf(wire);
  assert.equal((await wire.bytes(subject.length)).toString(), subject);
  wire.close();
  return subject;
}

test('the name in SNI chooses the backend, whose own certificate the client verifies', async () => {
  assert.equal(await answerFor('sni', 'a.example'), 'exact');
  assert.equal(await answerFor('sni', 'A.Example'), 'exact');
  assert.equal(await answerFor('sni', 'x.b.example'), 'wild');
  assert.equal(
    await answerFor('sni', 'x.y.b.example'),
    'wild',
    'a wildcard of a route stands for any number of labels',
  );
  await assert.rejects(answerFor('sni', 'c.example'), { code: 'DEPTH_ZERO_SELF_SIGNED_CERT' });
  const line = await site.logged({ serverName: 'x.b.example' });
  assert.deepEqual([line.route, line.backend, line.listener, line.tlsVersion], ['wild', 'wild', 'sni', null]);
});

test('a name without a route, and no name at all, are closed with NR', async () => {
  for (const servername of ['unknown.example', 'b.example', '']) {
    await assert.rejects(site.secure('sni', { servername }));
    const line = await site.logged({ serverName: servername === '' ? null : servername, reason: 'NR' });
    assert.equal(line.route, null);
  }
});

test('a route without hostnames takes other names, and clients without SNI', async () => {
  const check = (): undefined => undefined;
  assert.equal(await answerFor('all', 'a.example', check), 'exact');
  assert.equal(await answerFor('all', 'b.example', check), 'fallback');
  assert.equal(await answerFor('all', '', check), 'fallback');
});

test('a hello in pieces is passed on whole', async () => {
  const raw = await openWire(await site.gateway.port('sni'));
  raw.socket.removeAllListeners('data');
  const wire = site.keep(await startTls(trickling(raw.socket)));
  await wire.send('?');
  assert.equal((await wire.bytes(5)).toString(), 'exact');
});

test('what is not TLS is closed; plain HTTP hears why', async () => {
  const wire = await site.plain('sni');
  await wire.send('SSH-2.0-x\r\n');
  await wire.ended();
  const http = await site.plain('sni');
  await http.send('GET / HTTP/1.1\r\nHost: a.example\r\n\r\n');
  assert.match(await http.rest(), /^HTTP\/1\.1 400 .*use https/s);
});

test('a client that leaves in the middle of its hello leaves nothing behind', () =>
  site.leavingNothing(async () => {
    const wire = await site.plain('sni');
    await wire.send((await clientHello()).subarray(0, 50));
    await wire.finish();
    await wire.ended();
    wire.close();
  }));
