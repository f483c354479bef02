import assert from 'node:assert/strict';
import { createPublicKey } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import * as der from '../../../../mesh-agent/identity/asn1.ts';
import { CSR_BYTES_MAX, createSigningRequest, readSigningRequest } from '../../../../mesh-agent/identity/csr.ts';
import { asIdentityError, IdentityError } from '../../../../mesh-agent/identity/errors.ts';
import { generateIssuer } from '../../../../mesh-agent/identity/issuer.ts';
import { generateKey, publicKeyInfo, signatureAlgorithm, signBytes } from '../../../../mesh-agent/identity/keys.ts';
import { mint } from '../../../../mesh-agent/identity/mint.ts';
import { fromPem, toPem } from '../../../../mesh-agent/identity/pem.ts';
import { CART, openssl, refusal, requestFor, seeded, TRUST_DOMAIN, temporaryDirectory } from './support.ts';

/** A request that openssl makes: kind of key, subject, lines of the extensions section. */
function opensslRequest(
  t: TestContext,
  key: string[],
  subject: string,
  extensions: string[],
  more: string[] = [],
): string {
  const config = join(temporaryDirectory(t), 'csr.cnf');
  writeFileSync(
    config,
    `[req]\ndistinguished_name=dn\n${extensions.length > 0 ? 'req_extensions=ext\n' : ''}[dn]\n[ext]\n${extensions.join('\n')}\n`,
  );
  return openssl([
    'req',
    '-new',
    '-nodes',
    '-newkey',
    ...key,
    '-keyout',
    '/dev/null',
    '-subj',
    subject,
    '-config',
    config,
    ...more,
  ]);
}

const P256 = ['ec', '-pkeyopt', 'ec_paramgen_curve:P-256'];
const SAN = [`subjectAltName=critical,URI:${CART}`];

test('our request is what openssl verifies: an empty subject and the identity in a critical SAN', async () => {
  const key = await generateKey();
  const text = openssl(['req', '-noout', '-text', '-verify'], createSigningRequest(CART, key));
  assert.match(text, /Subject: *\n/);
  assert.match(text, /X509v3 Subject Alternative Name: critical\s+URI:spiffe:\/\/mesh\.example\/ns\/shop\/sa\/cart\n/);
  const request = readSigningRequest(createSigningRequest(CART, key));
  assert.equal(request.identity, CART);
  assert.equal(request.keyKind, 'P-256');
  assert.deepEqual(request.publicKeyInfo, createPublicKey(key).export({ type: 'spki', format: 'der' }));
});

test('requests of openssl are taken, with every kind of key that is strong enough', (t) => {
  for (const [key, kind] of [
    [P256, 'P-256'],
    [['ec', '-pkeyopt', 'ec_paramgen_curve:P-384'], 'P-384'],
    [['rsa:2048'], 'RSA'],
    [['ed25519'], 'Ed25519'],
  ] as const) {
    const request = readSigningRequest(opensslRequest(t, [...key], '/', SAN));
    assert.equal(request.keyKind, kind);
    assert.equal(request.identity, CART);
  }
  // One without any name leaves it to the CA; SANs need not be critical; SHA-512 is fine.
  assert.equal(readSigningRequest(opensslRequest(t, P256, '/', [])).identity, null);
  assert.equal(
    readSigningRequest(opensslRequest(t, P256, '/', [`subjectAltName=URI:${CART}`], ['-sha512'])).identity,
    CART,
  );
});

test('weak, odd and badly signed keys are refused', (t) => {
  for (const key of [
    ['rsa:1024'],
    ['ec', '-pkeyopt', 'ec_paramgen_curve:P-521'],
    ['ec', '-pkeyopt', 'ec_paramgen_curve:secp256k1'],
    ['ed448'],
  ]) {
    assert.throws(
      () => readSigningRequest(opensslRequest(t, key, '/', SAN)),
      refusal('csr-key-type', /its key is/),
      key.join(),
    );
  }
  assert.throws(
    () => readSigningRequest(opensslRequest(t, ['rsa:2048'], '/', SAN, ['-sha1'])),
    refusal('csr-key-type', /signature algorithm/),
  );
  assert.throws(
    () => readSigningRequest(opensslRequest(t, ['rsa:2048'], '/', SAN, ['-sigopt', 'rsa_padding_mode:pss'])),
    refusal('csr-key-type', /signature algorithm/),
  );
});

test('names other than the one identity are refused', (t) => {
  assert.throws(
    () => readSigningRequest(opensslRequest(t, P256, '/CN=cart', SAN)),
    refusal('csr-subject', /common name/),
  );
  for (const extra of [
    'DNS:evil.example',
    'URI:spiffe://mesh.example/ns/a/sa/b',
    'IP:10.0.0.1',
    'email:a@b.example',
    'RID:1.2.3',
  ]) {
    assert.throws(
      () => readSigningRequest(opensslRequest(t, P256, '/', [`${SAN[0]},${extra}`])),
      refusal('csr-names'),
      extra,
    );
  }
  for (const only of ['DNS:evil.example', 'URI:https://evil.example/', 'URI:spiffe://mesh.example/a//b']) {
    assert.throws(
      () => readSigningRequest(opensslRequest(t, P256, '/', [`subjectAltName=${only}`])),
      refusal('csr-names'),
      only,
    );
  }
});

test('wishes that are not the requester’s to make are refused', (t) => {
  for (const extension of [
    'basicConstraints=critical,CA:true',
    'keyUsage=keyCertSign',
    'extendedKeyUsage=codeSigning',
  ]) {
    assert.throws(
      () => readSigningRequest(opensslRequest(t, P256, '/', [...SAN, extension])),
      refusal('csr-extensions'),
      extension,
    );
    assert.throws(
      () => readSigningRequest(opensslRequest(t, P256, '/', [extension])),
      refusal('csr-extensions'),
      extension,
    );
  }
});

test('a request signed by another key, or changed afterwards, is refused', async () => {
  const key = await generateKey();
  const info = der.sequence(
    der.integer(Uint8Array.of(0)),
    der.sequence(),
    der.fromDer(publicKeyInfo(key)),
    der.context(0),
  );
  const forged = der.sequence(
    info,
    signatureAlgorithm(key),
    der.bitString(signBytes(der.toDer(info), await generateKey())),
  );
  assert.throws(() => readSigningRequest(toPem('CERTIFICATE REQUEST', der.toDer(forged))), refusal('csr-signature'));
  const bytes = Buffer.from(fromPem('CERTIFICATE REQUEST', createSigningRequest(CART, key))!);
  const at = bytes.indexOf('/sa/cart') + 4;
  bytes[at] = 'd'.charCodeAt(0);
  assert.throws(() => readSigningRequest(toPem('CERTIFICATE REQUEST', bytes)), refusal('csr-signature'));
});

test('text and encodings that are no request are refused as malformed', async () => {
  const pem = await requestFor(CART);
  const bytes = fromPem('CERTIFICATE REQUEST', pem)!;
  const wrap = (data: Uint8Array): string => toPem('CERTIFICATE REQUEST', data);
  // The same request with a length in a longer form than needed: BER and not DER, and the signature still holds.
  const content = bytes.subarray(bytes[1]! < 0x80 ? 2 : 2 + (bytes[1]! & 0x7f));
  const longer = Buffer.concat([Buffer.of(0x30, 0x83, 0, content.length >> 8, content.length & 0xff), content]);
  for (const [name, text] of [
    ['nothing', ''],
    ['no PEM', 'hello'],
    ['two blocks', pem + pem],
    ['another label', pem.replaceAll('CERTIFICATE REQUEST', 'CERTIFICATE')],
    ['text before it', `x\n${pem}`],
    ['broken base64', pem.replace(/[A-Z]{2}/, '!!')],
    ['no bytes', '-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n'],
    ['cut off', wrap(bytes.subarray(0, -1))],
    ['bytes behind', wrap(Buffer.concat([bytes, Buffer.of(0)]))],
    ['BER', wrap(longer)],
    ['only an INTEGER', wrap(Buffer.of(2, 1, 0))],
    ['deeply nested', wrap(nested(2000))],
    ['a giant length', wrap(Buffer.of(0x30, 0x84, 0x7f, 0xff, 0xff, 0xff))],
    ['an endless length', wrap(Buffer.of(0x30, 0x80, 0x30, 0x80))],
  ] as const) {
    assert.throws(() => readSigningRequest(text), refusal('csr-malformed'), name);
  }
  assert.throws(() => readSigningRequest(`${pem}${' '.repeat(CSR_BYTES_MAX)}`), refusal('csr-oversized'));
  assert.equal(readSigningRequest(pem.replaceAll('\n', '\r\n')).identity, CART);
});

test('whatever the bytes, a request is refused by name and never signed for another identity', async () => {
  const seed = Number(process.env.SEED ?? Date.now() % 1_000_000);
  const random = seeded(seed);
  const pick = (below: number): number => Math.floor(random() * below);
  const issuer = await generateIssuer(TRUST_DOMAIN, Date.now());
  const original = fromPem('CERTIFICATE REQUEST', await requestFor(CART))!;
  const other = fromPem('CERTIFICATE REQUEST', await requestFor(`spiffe://${TRUST_DOMAIN}/ns/shop/sa/other`))!;
  const codes = new Set<string>();
  for (let round = 0; round < 4000; round++) {
    let bytes = Buffer.from(original);
    for (let changes = 1 + pick(3); changes > 0; changes--) {
      const at = pick(bytes.length);
      const length = pick(12);
      const from = pick(other.length);
      switch (pick(6)) {
        case 0:
          bytes[at]! ^= 1 << pick(8);
          break;
        case 1:
          bytes[at] = pick(256);
          break;
        case 2:
          bytes = Buffer.concat([bytes.subarray(0, at), bytes.subarray(at + length)]);
          break;
        case 3:
          bytes = Buffer.concat([bytes.subarray(0, at), bytes.subarray(at, at + length), bytes.subarray(at)]);
          break;
        case 4:
          bytes = Buffer.concat([
            bytes.subarray(0, at),
            other.subarray(from, from + length),
            bytes.subarray(at + length),
          ]);
          break;
        default:
          bytes = bytes.subarray(0, Math.max(1, at));
      }
      if (bytes.length === 0) bytes = Buffer.of(0);
    }
    if (bytes.equals(original)) continue;
    try {
      mint({
        csr: toPem('CERTIFICATE REQUEST', bytes),
        identity: CART,
        lifetimeMs: 60_000,
        nowMs: Date.now(),
        signer: issuer.signer,
        issuerNotAfterMs: Number.POSITIVE_INFINITY,
      });
      assert.fail(`seed ${seed}, round ${round}: signed ${bytes.toString('hex')}`);
    } catch (error) {
      assert.ok(error instanceof IdentityError, `seed ${seed}, round ${round}: ${(error as Error).stack}`);
      assert.match(error.code, /^csr-/, `seed ${seed}, round ${round}: ${error.message}`);
      codes.add(error.code);
    }
  }
  // The changes get past the outermost layer.
  assert.ok(codes.has('csr-malformed') && codes.has('csr-signature'), [...codes].join());
});

test('an error of the program is not taken for a refusal', () => {
  assert.equal(asIdentityError(new TypeError('x')).code, 'internal');
});

/** SEQUENCEs in each other, whole. */
function nested(depth: number): Buffer {
  let bytes: Buffer = Buffer.of(5, 0);
  for (let i = 0; i < depth; i++) {
    const { length } = bytes;
    const head = length < 128 ? [0x30, length] : [0x30, 0x82, length >> 8, length & 0xff];
    bytes = Buffer.concat([Uint8Array.from(head), bytes]);
  }
  return bytes;
}
