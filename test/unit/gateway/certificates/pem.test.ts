// Certificates and keys as PEM texts: what is taken, in which order, and why the rest is refused.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { generateKeyPairSync, X509Certificate } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import {
  authoritiesProblem,
  type ParsedCertificate,
  type Purpose,
  parsePair,
} from '../../../../gateway/certificates/pem.ts';
import { makeCertificate } from '../../core/tls/certificates.ts';
import { certificateFor, temporaryDirectory } from './support.ts';

const DAY_MS = 86_400_000;

const root = makeCertificate({ name: 'root', ca: true });
const upper = makeCertificate({ name: 'upper', ca: true, issuer: root });
const lower = makeCertificate({ name: 'lower', ca: true, issuer: upper });
const site = makeCertificate({
  name: 'site',
  issuer: lower,
  names: ['dns:Site.test', 'dns:*.site.test', 'ip:10.0.0.1'],
});
const other = certificateFor(['other.test']);

function good(certificate: string, key: string, purpose: Purpose = 'server', nowMs = Date.now()): ParsedCertificate {
  const parsed = parsePair(certificate, key, purpose, nowMs);
  assert.ok(!('problem' in parsed), JSON.stringify(parsed));
  return parsed;
}

function problem(certificate: string, key: string, purpose: Purpose = 'server', nowMs = Date.now()): string {
  const parsed = parsePair(certificate, key, purpose, nowMs);
  assert.ok('problem' in parsed);
  return `${parsed.part} ${parsed.problem}`;
}

function pem(label: string, body = 'AAAA'): string {
  return `-----BEGIN ${label}-----\n${body}\n-----END ${label}-----\n`;
}

test('a pair gives its names, type of key, fingerprint and dates', () => {
  const parsed = good(site.pem, site.keyPem);
  const x509 = new X509Certificate(site.pem);
  assert.deepEqual(parsed.names, ['site.test', '*.site.test']);
  assert.equal(parsed.keyType, 'ec');
  assert.equal(parsed.label, 'site.test');
  assert.equal(parsed.fingerprint, x509.fingerprint256.replaceAll(':', '').toLowerCase());
  assert.equal(parsed.notAfterMs, Date.parse(x509.validTo));
  assert.equal(parsed.notBeforeMs, Date.parse(x509.validFrom));
  const nameless = makeCertificate({ name: 'plain', keyType: 'rsa' });
  const other = good(nameless.pem, nameless.keyPem);
  assert.deepEqual([other.names, other.keyType, other.label], [[], 'rsa', 'CN=plain']);
});

test('intermediates in any order come out behind the leaf, without the root and without strangers', () => {
  const expected = [site, lower, upper].map(({ pem }) => pem.trim()).join('\n');
  for (const order of [
    [site, lower, upper],
    [root, upper, lower, site],
    [upper, site, root, lower],
    [site, upper, upper, lower, site],
  ]) {
    const parsed = good(order.map(({ pem }) => pem).join('some text between\n'), site.keyPem);
    assert.equal(parsed.chainPem.trim(), expected);
    assert.equal(parsed.strangers, 0);
  }
  const withStranger = good(
    site.pem + upper.pem + lower.pem + makeCertificate({ name: 'x', issuer: root }).pem,
    site.keyPem,
  );
  assert.equal(withStranger.chainPem.trim(), expected);
  assert.equal(withStranger.strangers, 1);
  assert.equal(good(site.pem, site.keyPem).chainPem.trim(), site.pem.trim(), 'missing ones are not looked for');
});

test('one file may hold both certificate and key', () => {
  const both = site.keyPem + site.pem + lower.pem;
  const parsed = good(both, both);
  assert.ok(!parsed.chainPem.includes('PRIVATE'));
  assert.equal(parsed.keyPem.trim(), site.keyPem.trim());
});

test('a key that belongs to another certificate is refused with the subject of the certificate', () => {
  assert.equal(problem(site.pem, other.keyPem), 'key does not belong to the certificate, whose subject is CN=site');
});

test('a certificate that is no longer or not yet valid is refused with the date', () => {
  const nowMs = Date.UTC(2030, 0, 1);
  const fromNow = (Date.now() - nowMs) / DAY_MS;
  const dated = makeCertificate({ name: 'a', fromDays: -fromNow - 1, toDays: -fromNow + 1 });
  const { notAfterMs, notBeforeMs } = good(dated.pem, dated.keyPem, 'server', nowMs);
  const text = (ms: number): string => new Date(ms).toISOString().replace('.000Z', 'Z');
  const at = (ms: number): string => problem(dated.pem, dated.keyPem, 'server', ms);
  assert.equal(at(notAfterMs), `certificate expired on ${text(notAfterMs)}`);
  assert.equal(at(notBeforeMs - 1), `certificate is not valid before ${text(notBeforeMs)}`);
  good(dated.pem, dated.keyPem, 'server', notAfterMs - 1);
  good(dated.pem, dated.keyPem, 'server', notBeforeMs);
});

test('a certificate for clients only is refused for servers', () => {
  const client = makeCertificate({ name: 'c', usage: 'client' });
  assert.equal(problem(client.pem, client.keyPem), 'certificate is not for servers (extended key usage)');
  good(client.pem, client.keyPem, 'client');
});

test('keys that need a passphrase, are too short or of no use are refused', () => {
  const encrypted = site.key.export({ type: 'pkcs8', format: 'pem', cipher: 'aes-128-cbc', passphrase: 'x' }) as string;
  assert.equal(problem(site.pem, encrypted), 'key is encrypted, and nobody is there to type the passphrase');
  const old = site.key.export({ type: 'sec1', format: 'pem', cipher: 'aes-128-cbc', passphrase: 'x' }) as string;
  assert.match(old, /Proc-Type: 4,ENCRYPTED/);
  assert.equal(problem(site.pem, old), 'key is encrypted, and nobody is there to type the passphrase');
  const exported = { type: 'pkcs8', format: 'pem' } as const;
  const short = generateKeyPairSync('rsa', { modulusLength: 1024 }).privateKey.export(exported) as string;
  assert.equal(problem(site.pem, short), 'key has an RSA key of only 1024 bits');
  const exchange = generateKeyPairSync('x25519').privateKey.export(exported) as string;
  assert.equal(problem(site.pem, exchange), 'key has a key of type x25519, which TLS has no use for');
});

test('an Ed25519 pair, and an EC key with its parameters in front, are taken', (t) => {
  const directory = temporaryDirectory(t);
  const make = (...args: string[]): void => {
    execFileSync('openssl', args, { cwd: directory, stdio: 'ignore' });
  };
  make('req', '-x509', '-newkey', 'ed25519', '-nodes', '-keyout', 'e.key', '-out', 'e.crt', '-subj', '/CN=e');
  const text = (name: string): string => readFileSync(join(directory, name), 'utf8');
  assert.equal(good(text('e.crt'), text('e.key')).keyType, 'ed25519');
  make('ecparam', '-name', 'prime256v1', '-genkey', '-out', 'p.key');
  make('req', '-x509', '-key', 'p.key', '-out', 'p.crt', '-subj', '/CN=p');
  assert.match(text('p.key'), /BEGIN EC PARAMETERS/);
  assert.match(good(text('p.crt'), text('p.key')).keyPem, /^-----BEGIN EC PRIVATE KEY/);
});

test('files with something else in them are refused with what it is', () => {
  const cases: [string, string, string][] = [
    ['', site.keyPem, 'certificate is empty'],
    ['\x30\x82', site.keyPem, 'certificate is not in PEM format'],
    [site.keyPem, site.keyPem, 'certificate holds a private key and no certificate'],
    [pem('CERTIFICATE REQUEST'), site.keyPem, 'certificate holds a request for a certificate, and none'],
    [
      pem('TRUSTED CERTIFICATE'),
      site.keyPem,
      'certificate holds a TRUSTED CERTIFICATE, which only OpenSSL itself reads',
    ],
    [pem('X509 CRL'), site.keyPem, 'certificate holds X509 CRL and no certificate'],
    [site.pem.slice(0, -30), site.keyPem, 'certificate is cut off: a PEM block has no end'],
    [site.pem, '', 'key is empty'],
    [site.pem, 'x', 'key holds no private key in PEM format'],
    [site.pem, site.pem, 'key holds a certificate and no private key'],
    [site.pem, pem('PUBLIC KEY'), 'key holds a public key and no private one'],
    [site.pem, site.keyPem.slice(0, 80), 'key is cut off: a PEM block has no end'],
    [site.pem, site.keyPem + other.keyPem, 'key holds 2 private keys'],
  ];
  for (const [certificate, key, expected] of cases) assert.equal(problem(certificate, key), expected);
  assert.match(
    problem(site.pem + pem('CERTIFICATE'), site.keyPem),
    /^certificate holds a certificate \(number 2\) that cannot be read: ./,
  );
  assert.match(problem(site.pem, pem('PRIVATE KEY')), /^key holds a private key that cannot be read: ./);
});

test('a list of authorities needs certificates that can be read, expired ones included', () => {
  assert.equal(
    authoritiesProblem(root.pem + makeCertificate({ name: 'old', ca: true, toDays: -1, fromDays: -2 }).pem),
    undefined,
  );
  assert.equal(authoritiesProblem(root.keyPem)?.problem, 'holds a private key and no certificate');
  assert.equal(authoritiesProblem('')?.problem, 'is empty');
});
