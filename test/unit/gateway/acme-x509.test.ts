import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { createHash, createPrivateKey, createPublicKey, X509Certificate } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import {
  buildCertificate,
  createChallengeCertificate,
  createPlaceholder,
  createSigningRequest,
  generateKey,
  keyToPem,
  readCertificate,
  toPem,
} from '../../../gateway/acme/x509.ts';
import { DAY_MS, temporaryDirectory } from './acme-support.ts';

/** OpenSSL's reading of a text; null where the command is missing. */
function openssl(...args: string[]): string | null {
  try {
    return execFileSync('openssl', args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
    throw error;
  }
}

const names = ['a.example', `${'l'.repeat(63)}.${'m'.repeat(63)}.${'n'.repeat(63)}.example`];

test('a signing request verifies in OpenSSL and names all hostnames', (t) => {
  const path = join(temporaryDirectory(t), 'csr.pem');
  writeFileSync(path, toPem('CERTIFICATE REQUEST', createSigningRequest(names, generateKey())));
  const text = openssl('req', '-in', path, '-noout', '-text', '-verify');
  if (text === null) return t.skip('the openssl command is not there');
  for (const name of names) assert.ok(text.includes(`DNS:${name}`));
  assert.match(text, /prime256v1/);
});

test('a challenge certificate carries the digest in a critical extension (RFC 8737)', (t) => {
  const pair = createChallengeCertificate('a.example', 'token.thumbprint', Date.now());
  const certificate = new X509Certificate(pair.chainPem);
  assert.equal(certificate.subjectAltName, 'DNS:a.example');
  assert.ok(certificate.checkPrivateKey(createPrivateKey(pair.keyPem)));
  assert.ok(certificate.verify(certificate.publicKey), 'self-signed');
  const digest = createHash('sha256').update('token.thumbprint').digest('hex');
  // Extension: OID 1.3.6.1.5.5.7.1.31, critical, OCTET STRING around OCTET STRING of 32 bytes.
  assert.ok(certificate.raw.toString('hex').includes(`06082b0601050507011f0101ff04220420${digest}`));
  const path = join(temporaryDirectory(t), 'cert.pem');
  writeFileSync(path, pair.chainPem);
  const text = openssl('x509', '-in', path, '-noout', '-text');
  if (text !== null) assert.match(text, /(1\.3\.6\.1\.5\.5\.7\.1\.31|ACME Identifier): critical/i);
});

test('a placeholder is for its hostnames, says what it is, and lasts', () => {
  const facts = readCertificate(createPlaceholder(names, Date.now()));
  assert.deepEqual(facts.hostnames, names);
  assert.match(facts.issuer, /placeholder/);
  assert.ok(facts.notAfterMs > Date.now() + 300 * DAY_MS);
});

test('dates on both sides of 2050 are read back as they were written', () => {
  const key = generateKey();
  for (const year of [2026, 2049, 2050, 2120]) {
    const notBeforeMs = Date.UTC(year, 0, 2, 3, 4, 5);
    const bytes = buildCertificate({
      commonName: 'x',
      hostnames: ['x.example'],
      notBeforeMs,
      notAfterMs: notBeforeMs + DAY_MS,
      publicKey: createPublicKey(key),
      issuer: { commonName: 'x', privateKey: key },
    });
    const facts = readCertificate({ chainPem: toPem('CERTIFICATE', bytes), keyPem: keyToPem(key) });
    assert.equal(facts.notBeforeMs, notBeforeMs);
    assert.equal(facts.notAfterMs, notBeforeMs + DAY_MS);
  }
});

test('the renewal id is that of RFC 9773', () => {
  // Key identifier and serial number as OpenSSL's parser in node:crypto shows them.
  for (let i = 0; i < 50; i++) {
    const pair = createPlaceholder(['a.example'], Date.now());
    const { renewalId } = readCertificate(pair);
    const [keyId, serial] = renewalId!.split('.').map((part) => Buffer.from(part, 'base64url').toString('hex'));
    const certificate = new X509Certificate(pair.chainPem);
    assert.equal(serial!.replace(/^00/, ''), certificate.serialNumber.toLowerCase());
    const spki = certificate.publicKey.export({ type: 'spki', format: 'der' });
    assert.equal(keyId, createHash('sha256').update(spki).digest('hex').slice(0, 40));
  }
});

test('what is not a pair is said to be none', () => {
  const one = createPlaceholder(['a.example'], Date.now());
  const two = createPlaceholder(['a.example'], Date.now());
  assert.throws(() => readCertificate({ ...one, keyPem: two.keyPem }), /not that of its certificate/);
  assert.throws(() => readCertificate({ ...one, keyPem: 'x' }), /private key cannot be parsed/);
  assert.throws(() => readCertificate({ ...one, chainPem: '' }), /no certificate/);
  const cut = one.chainPem.replace(/.{20}\n-----END/, '\n-----END');
  assert.throws(() => readCertificate({ ...one, chainPem: cut }), /cannot be parsed/);
});
