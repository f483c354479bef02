// Certificates of clients: required or optional, told to upstreams, logged; bad ones refused.

import assert from 'node:assert/strict';
import { createHash, X509Certificate } from 'node:crypto';
import { test } from 'node:test';
import type { ConnectionOptions } from 'node:tls';
import { makeCertificate } from '../../unit/core/tls/certificates.ts';
import { request } from '../http/support.ts';
import { authority, filesOf, issue, openUpstream, pairOf, startSite, tlsOf } from './support.ts';

const upstream = await openUpstream();
upstream.serve(({ head }) => `HTTP/1.1 200 OK\r\nContent-Length: ${head.length}\r\n\r\n${head}`);
const clients = makeCertificate({ name: 'client authority', ca: true });
const alice = makeCertificate({
  name: 'alice "a", b',
  issuer: clients,
  names: ['uri:spiffe://test/alice', 'dns:alice.example'],
  usage: 'client',
});
const expired = makeCertificate({ name: 'late', issuer: clients, fromDays: -9, toDays: -1 });
const stranger = makeCertificate({ name: 'stranger', issuer: authority });
const site = await startSite({
  files: { ...filesOf({ site: issue('site', ['dns:a.example']) }), 'clients.crt': clients.pem },
  config: `
workers: 1
admin: {address: "127.0.0.1:0"}
accessLog: {path: access.log}
listeners:
  - name: required
    address: "127.0.0.1:0"
    protocols: [http/1.1]
    tls: {certificates: [${pairOf('site')}], clientValidation: {caCertificates: clients.crt}}
  - name: optional
    address: "127.0.0.1:0"
    protocols: [http/1.1]
    tls: {certificates: [${pairOf('site')}], clientValidation: {caCertificates: clients.crt, mode: optional}}
  - {name: none, address: "127.0.0.1:0", protocols: [http/1.1], tls: {certificates: [${pairOf('site')}]}}
  - {name: plain, address: "127.0.0.1:0"}
routes: [{name: all, rules: [{backendRefs: [{name: app}]}]}]
backends: [{name: app, endpoints: ["127.0.0.1:${upstream.port}"]}]
`,
});
const failures = (name: string): string => `tls_handshake_failures_total{failure="${name}"}`;
const shown = (certificate: { pem: string; keyPem: string }): ConnectionOptions => ({
  cert: certificate.pem,
  key: certificate.keyPem,
});
const hash = createHash('sha256').update(new X509Certificate(alice.pem).raw).digest('hex');
// The name is escaped as RFC 2253 says, and then once more inside the quotes.
const forwarded = `x-forwarded-client-cert: Hash=${hash};Subject="CN=alice \\\\\\"a\\\\\\"\\\\, b";URI=spiffe://test/alice;DNS=alice.example`;

/** Values of X-Forwarded-Client-Cert at the upstream. */
async function forwardedBy(listener: string, options: ConnectionOptions, ...fields: string[]): Promise<string[]> {
  const wire = await site.secure(listener, options);
  await wire.send(request(`GET /${listener}`, 'a.example', ...fields));
  const { body } = await wire.response();
  wire.close();
  return body.split('\r\n').filter((line) => /^x-forwarded-client-cert:/i.test(line));
}

for (const listener of ['required', 'optional']) {
  test(`${listener}: the verified certificate is told to the upstream, and what the client claims is removed`, async () => {
    const spoofed = ['X-Forwarded-Client-Cert: Hash=00;Subject="CN=root"', 'x-forwarded-client-cert: By=me'];
    assert.deepEqual(await forwardedBy(listener, shown(alice), ...spoofed), [forwarded]);
    const line = await site.logged({ path: `/${listener}` });
    assert.equal(line.clientSubject, 'CN=alice \\"a\\"\\, b');
  });

  test(`${listener}: a certificate of another authority, or an expired one, is refused with an alert`, async () => {
    for (const [certificate, failure] of [
      [stranger, 'unknown_ca'],
      [expired, 'certificate_expired'],
    ] as const) {
      const before = await site.metric(failures(failure));
      // TLS 1.3: the client hears of it with its first read.
      const wire = await site.secure(listener, shown(certificate)).catch(() => undefined);
      await wire?.ended();
      await site.metricBecomes(failures(failure), before + 1);
      await assert.rejects(site.secure(listener, { ...shown(certificate), maxVersion: 'TLSv1.2' }), /alert/);
      await site.metricBecomes(failures(failure), before + 2);
    }
  });
}

test('failures are logged, one line each, with the client and the cause', () => {
  const lines = site.gateway.stderr.split('\n').filter((line) => /on listener required/.test(line));
  assert.equal(lines.length, 4);
  assert.equal(lines.filter((line) => /no trusted authority signed the peer's certificate/.test(line)).length, 2);
  assert.equal(lines.filter((line) => /the peer's certificate has expired/.test(line)).length, 2);
  for (const line of lines) assert.match(line, / info .*TLS handshake failed with client 127\.0\.0\.1 on listener/);
});

test('required: without a certificate there is no connection, and nothing reaches the upstream', async () => {
  const before = upstream.accepted;
  const counted = await site.metric(failures('client_certificate_required'));
  const wire = await site.secure('required');
  await wire.send(request('GET /without', 'a.example'));
  await wire.ended();
  await assert.rejects(site.secure('required', { maxVersion: 'TLSv1.2' }), /alert/);
  await site.metricBecomes(failures('client_certificate_required'), counted + 2);
  assert.equal(upstream.accepted, before);
});

test('optional: without a certificate a request says nothing of one', async () => {
  assert.deepEqual(await forwardedBy('optional', {}, 'X-Forwarded-Client-Cert: Hash=00'), []);
});

test('listeners that ask for no certificate remove what clients claim', async () => {
  assert.deepEqual(await forwardedBy('none', shown(alice), 'X-Forwarded-Client-Cert: Hash=00'), []);
  const wire = await site.plain('plain');
  await wire.send(request('GET /', 'a.example', 'X-Forwarded-Client-Cert: Hash=00'));
  assert.doesNotMatch((await wire.response()).body, /x-forwarded-client-cert/i);
});

test('a resumed session still has the certificate', async () => {
  const wire = await site.secure('required', { ...shown(alice), maxVersion: 'TLSv1.2' });
  const session = tlsOf(wire).getSession();
  await wire.send(request('GET /first', 'a.example'));
  await wire.response();
  const again = await site.secure('required', { ...shown(alice), maxVersion: 'TLSv1.2', session: session! });
  assert.ok(tlsOf(again).isSessionReused());
  await again.send(request('GET /resumed', 'a.example'));
  assert.ok((await again.response()).body.includes(forwarded));
});

test('a session of a listener without validation does not get past one that validates', async () => {
  const wire = await site.secure('none', { maxVersion: 'TLSv1.2' });
  const session = tlsOf(wire).getSession();
  await assert.rejects(site.secure('required', { maxVersion: 'TLSv1.2', session: session! }), /alert/);
});
