import assert from 'node:assert/strict';
import { X509Certificate } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { MeshAuthority } from '../../../../mesh-agent/identity/authority.ts';
import { bundleToPem } from '../../../../mesh-agent/identity/trust-bundle.ts';
import {
  CART,
  ManualClock,
  openAuthority,
  openssl,
  operatorCa,
  recordingLog,
  refusal,
  requestFor,
  TRUST_DOMAIN,
  temporaryDirectory,
  verifyWithOpenssl,
} from './support.ts';

const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;

test('a workload certificate passes the strictest check of openssl, as server and as client, and says what SPIFFE asks for', async (t) => {
  const authority = await openAuthority(t);
  const { chain, bundle } = await authority.issue(await requestFor(CART), CART);
  for (const purpose of ['sslserver', 'sslclient']) {
    verifyWithOpenssl(temporaryDirectory(t), chain, bundleToPem(bundle), purpose);
  }
  const text = openssl(['x509', '-noout', '-text'], chain[0]);
  assert.match(text, /Subject: *\n/);
  assert.match(text, /Subject Alternative Name: critical\s+URI:spiffe:\/\/mesh\.example\/ns\/shop\/sa\/cart\n/);
  assert.match(text, /Basic Constraints: critical\s+CA:FALSE/);
  assert.match(text, /X509v3 Key Usage: critical\s+Digital Signature\n/);
  assert.match(text, /Extended Key Usage: *\n\s+TLS Web Server Authentication, TLS Web Client Authentication\n/);
  assert.match(text, /Signature Algorithm: ecdsa-with-SHA256/);
  assert.match(text, /ASN1 OID: prime256v1/);
  const intermediate = openssl(['x509', '-noout', '-text'], chain[1]);
  assert.match(intermediate, /Basic Constraints: critical\s+CA:TRUE, pathlen:0/);
  assert.match(intermediate, /Key Usage: critical\s+Certificate Sign, CRL Sign/);
  assert.match(intermediate, /URI:spiffe:\/\/mesh\.example\n/);
});

test('what a leaf signs is not trusted', async (t) => {
  const authority = await openAuthority(t);
  const directory = temporaryDirectory(t);
  const key = join(directory, 'leaf.key');
  openssl(['ecparam', '-name', 'prime256v1', '-genkey', '-noout', '-out', key]);
  writeFileSync(
    join(directory, 'csr.cnf'),
    `[req]\ndistinguished_name=dn\nreq_extensions=e\n[dn]\n[e]\nsubjectAltName=URI:${CART}\n`,
  );
  const csr = openssl(['req', '-new', '-key', key, '-subj', '/', '-config', join(directory, 'csr.cnf')]);
  const { chain, bundle } = await authority.issue(csr, CART);
  writeFileSync(join(directory, 'leaf.crt'), chain[0]!);
  const forged = openssl(
    ['x509', '-req', '-CA', join(directory, 'leaf.crt'), '-CAkey', key, '-set_serial', '1', '-days', '1'],
    csr,
  );
  assert.throws(() => verifyWithOpenssl(directory, [forged, ...chain], bundleToPem(bundle), 'sslclient'), /error/i);
});

test('serial numbers are positive, long and never the same', async (t) => {
  const authority = await openAuthority(t);
  const serials = new Set<string>();
  for (let i = 0; i < 50; i++) {
    const { chain } = await authority.issue(await requestFor(CART), CART);
    const { serialNumber } = new X509Certificate(chain[0]!);
    assert.match(serialNumber, /^[4-7][0-9A-F]{31}$/);
    serials.add(serialNumber);
  }
  assert.equal(serials.size, 50);
});

test('lifetimes: 24 hours from now, back-dated, shorter if wanted, never longer than allowed', async (t) => {
  const clock = new ManualClock();
  const authority = await openAuthority(t, { clock });
  const csr = await requestFor(CART);
  const span = async (lifetimeMs: number): Promise<[number, number]> => {
    const { chain, notAfterMs } = await authority.issue(csr, CART, lifetimeMs);
    const leaf = new X509Certificate(chain[0]!);
    assert.equal(Date.parse(leaf.validTo), notAfterMs);
    return [clock.nowMs() - Date.parse(leaf.validFrom), notAfterMs - clock.nowMs()];
  };
  const near = (value: number, expected: number): void =>
    assert.ok(Math.abs(value - expected) <= 1000, `${value} ${expected}`);
  const [backMs, forwardMs] = await span(0);
  near(backMs, 300_000);
  near(forwardMs, DAY_MS);
  near((await span(HOUR_MS))[1], HOUR_MS);
  near((await span(90 * DAY_MS))[1], DAY_MS);
  near((await span(1))[1], 60_000);
});

test('no certificate outlives its issuer, and an expired issuer signs nothing', async (t) => {
  const directory = temporaryDirectory(t);
  const files = operatorCa(directory, 'old');
  const endMs = Date.parse(new X509Certificate(readFileSync(files.certificate)).validTo);
  const clock = new ManualClock(endMs - HOUR_MS);
  const { log, lines } = recordingLog();
  const authority = await openAuthority(t, { files, clock, log });
  assert.equal((await authority.issue(await requestFor(CART), CART)).notAfterMs, endMs);
  assert.ok(lines.some(({ message }) => message.includes('about to expire')));
  await clock.advance(HOUR_MS - 30_000);
  await assert.rejects(authority.issue(await requestFor(CART), CART), refusal('issuer-expired', /ends/));
});

test('a request must name the identity that its caller was allowed, or none', async (t) => {
  const authority = await openAuthority(t);
  const other = `spiffe://${TRUST_DOMAIN}/ns/shop/sa/other`;
  await assert.rejects(authority.issue(await requestFor(other), CART), refusal('csr-names', /other/));
  await assert.rejects(authority.issue('junk', CART), refusal('csr-malformed'));
  assert.equal(await authority.inspect(await requestFor(other)), other);
  await assert.rejects(authority.inspect('junk'), refusal('csr-malformed'));
});

test('the intermediate is renewed at half of its life, under the same root', async (t) => {
  const clock = new ManualClock();
  const directory = temporaryDirectory(t);
  const authority = await openAuthority(t, { clock, directory });
  const before = await authority.issue(await requestFor(CART), CART);
  await clock.advance(182 * DAY_MS, async () => {});
  await authority.maintain();
  assert.equal((await authority.issue(await requestFor(CART), CART)).chain[1], before.chain[1]);
  await clock.advance(2 * DAY_MS, async () => {});
  await authority.maintain();
  const after = await authority.issue(await requestFor(CART), CART);
  assert.notEqual(after.chain[1], before.chain[1]);
  assert.equal(after.bundle.sequence, before.bundle.sequence);
  const [root] = after.bundle.roots;
  assert.ok(new X509Certificate(after.chain[1]!).verify(root!.facts.x509.publicKey));
  await authority.close();
  const restarted = await openAuthority(t, { clock, directory });
  assert.equal((await restarted.issue(await requestFor(CART), CART)).chain[1], after.chain[1]);
});

test('a server of the control plane gets a certificate with its names', async (t) => {
  const authority = await openAuthority(t);
  const { chainPem, keyPem } = await authority.issueForServer(`spiffe://${TRUST_DOMAIN}/ns/system/sa/control`, {
    dnsNames: ['control.mesh.internal'],
    ipAddresses: ['127.0.0.1', '::1', '2001:db8::a:0:1', '::ffff:10.0.0.1'],
  });
  const leaf = new X509Certificate(chainPem);
  assert.ok(leaf.checkHost('control.mesh.internal') !== undefined);
  for (const address of ['127.0.0.1', '::1', '2001:db8::a:0:1'])
    assert.ok(leaf.checkIP(address) !== undefined, address);
  assert.match(leaf.subjectAltName!, /0:0:0:0:0:FFFF:A00:1/);
  assert.match(keyPem, /BEGIN PRIVATE KEY/);
  verifyWithOpenssl(
    temporaryDirectory(t),
    chainPem.split(/(?<=-----END CERTIFICATE-----\n)/),
    bundleToPem(authority.bundle),
    'sslserver',
  );
});

test('a trust domain that is none is refused', async (t) => {
  await assert.rejects(
    MeshAuthority.open({ directory: temporaryDirectory(t), trustDomain: 'Not/One', log: () => {} }),
    refusal('spiffe-id'),
  );
});
