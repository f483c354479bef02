// What is made of a client's certificate for upstreams and logs.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ClientCertificate } from '../../../../core/exchange/client-certificate.ts';
import type { PeerCertificate } from '../../../../core/tls/peer.ts';

function certificate(
  subject: string,
  names: Partial<PeerCertificate['names']> = {},
  verified = true,
): ClientCertificate {
  return new ClientCertificate({
    der: new Uint8Array(),
    pem: '',
    subject,
    issuer: '',
    names: { dns: [], uri: [], ip: [], email: [], ...names },
    sha256: 'ab12',
    serial: '01',
    notBeforeMs: 0,
    notAfterMs: 0,
    spiffeId: names.uri?.[0] ?? '',
    verified,
  });
}

const text = (bytes: Uint8Array): string => Buffer.from(bytes).toString('latin1');

test('the element has hash, subject, URIs and DNS names, in this order', () => {
  const made = certificate('O=Example\nCN=alice', { uri: ['spiffe://t/a', 'urn:x'], dns: ['a.test', 'b.test'] });
  assert.equal(
    text(made.forwarded),
    'Hash=ab12;Subject="CN=alice,O=Example";URI=spiffe://t/a;URI=urn:x;DNS=a.test;DNS=b.test',
  );
  assert.equal(text(made.subjectBytes), 'CN=alice,O=Example');
  assert.equal(made.spiffeId, 'spiffe://t/a');
  assert.deepEqual(made.dnsNames, ['a.test', 'b.test']);
});

test('an empty subject is an empty string', () => {
  assert.equal(text(certificate('').forwarded), 'Hash=ab12;Subject=""');
});

test('nothing in a name can end its element or the field', () => {
  const made = certificate('CN=a";Hash=00,b\\', { uri: ['urn:a,By=x;URI="y"'], dns: ['a=b'] });
  assert.equal(
    text(made.forwarded),
    'Hash=ab12;Subject="CN=a\\";Hash=00,b\\\\";URI="urn:a,By=x;URI=\\"y\\"";DNS="a=b"',
  );
});

test('bytes that a field value may not hold become question marks', () => {
  const made = certificate('CN=a\r\tb\u00e9\u4e16', { dns: ['x\r\ny'] });
  const forwarded = text(made.forwarded);
  assert.match(forwarded, /^[\x20-\x7e]+$/);
  assert.equal(forwarded, 'Hash=ab12;Subject="CN=a??b??";DNS=x??y');
});

test('whether the chain holds is kept', () => {
  assert.equal(certificate('', {}, false).verified, false);
});

test('routes see the names of every kind, in the form that they are compared in', () => {
  const made = certificate('CN=a', {
    dns: ['Shop.Example.COM'],
    uri: ['spiffe://T/A'],
    ip: ['10.0.0.1', '2001:DB8:0:0:0:0:0:1'],
    email: ['Me@Example.com'],
  });
  assert.deepEqual(made.subjectAltNames.map(text), [
    'shop.example.com',
    'spiffe://T/A',
    '10.0.0.1',
    '2001:db8::1',
    'Me@Example.com',
  ]);
  assert.equal(text(made.sha256Bytes), 'ab12');
});
