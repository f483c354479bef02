// Building contexts: what is refused, with which words, and where trust comes from.

import assert from 'node:assert/strict';
import { generateKeyPairSync } from 'node:crypto';
import { test } from 'node:test';
import {
  createClientContext,
  createServerContext,
  freeContext,
  type ServerContextOptions,
  systemRootsPem,
  updateTicketKeys,
} from '../../../../core/tls/context.ts';
import { tlsFailureName, tlsFailureSentence, tlsFailures } from '../../../../core/tls/errors.ts';
import { HANDSHAKE_DONE } from '../../../../core/tls/session.ts';
import { makeCertificate } from './certificates.ts';
import { clientContext, connectPair, files, good, pair, serverContext, sessions, ticketKey } from './support.ts';

function refusal(options: Partial<ServerContextOptions>): string {
  try {
    freeContext(createServerContext({ certificates: [pair(good.server)], alpn: [], ticketKeys: null, ...options }));
  } catch (error) {
    return (error as Error).message;
  }
  return 'accepted';
}

test('each part that OpenSSL refuses is named, with the reason', () => {
  const { server, rsaServer } = good;
  const withPair = (chainPem: string, keyPem: string) => refusal({ certificates: [{ chainPem, keyPem }] });
  assert.equal(refusal({ certificates: [] }), 'a TLS server needs at least one certificate');
  assert.equal(withPair('', server.keyPem), 'the certificate has no PEM block of a certificate');
  assert.match(withPair(server.pem.replace(/\n.{9}/, '\n?????????'), server.keyPem), /^the certificate cannot be read/);
  assert.match(
    withPair(`${server.pem}-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n`, server.keyPem),
    /^the certificate cannot be read \(PEM block 2\): \S/,
  );
  assert.equal(withPair(server.pem, 'nothing'), 'the private key has no PEM block of a private key');
  assert.match(withPair(server.pem, rsaServer.keyPem), /^the certificate cannot be used with this private key: \S/);
  const encrypted = generateKeyPairSync('ec', {
    namedCurve: 'P-256',
    publicKeyEncoding: { type: 'spki', format: 'pem' },
    privateKeyEncoding: { type: 'pkcs8', format: 'pem', cipher: 'aes-256-cbc', passphrase: 'secret' },
  }).privateKey;
  assert.match(withPair(server.pem, encrypted), /^the private key is encrypted/);
  assert.match(refusal({ certificates: [pair(server), pair(makeCertificate({ name: 'y' }))] }), /same type of key/);
  assert.match(refusal({ ciphers: 'NONSENSE' }), /^the TLS 1.2 ciphers "NONSENSE" are refused: no cipher match/);
  assert.match(refusal({ cipherSuites: 'NONSENSE' }), /^the TLS 1.3 cipher suites "NONSENSE" are refused/);
  assert.match(refusal({ groups: 'NONSENSE' }), /^the key exchange groups "NONSENSE" are refused/);
  assert.match(refusal({ minVersion: '1.3', maxVersion: '1.2' }), /^the least TLS version 1.3 is above/);
  assert.match(refusal({ alpn: [''] }), /is not a possible ALPN protocol/);
  assert.match(refusal({ alpn: ['x'.repeat(256)] }), /is not a possible ALPN protocol/);
  assert.match(refusal({ ticketKeys: [] }), /takes 1 to 16 session ticket keys, not 0/);
  assert.match(refusal({ ticketKeys: [new Uint8Array(48)] }), /has 80 bytes, not 48/);
  assert.equal(
    refusal({ clientValidation: { caPem: 'x', mode: 'optional' } }),
    'the list of authorities has no PEM block of a certificate',
  );
  assert.equal(refusal({}), 'accepted');
});

test('a refused context leaves nothing behind that disturbs the next', async (t) => {
  for (let i = 0; i < 20; i++) refusal({ certificates: [{ chainPem: good.server.pem, keyPem: 'nothing' }] });
  const { server, client } = await connectPair(t, serverContext(t), clientContext(t));
  assert.equal(server.status, HANDSHAKE_DONE);
  assert.equal(client.status, HANDSHAKE_DONE);
});

test('ticket keys cannot be given to a context without tickets, nor after it has been given back', () => {
  const plain = createServerContext({ certificates: [pair(good.server)], alpn: [], ticketKeys: null });
  assert.throws(() => updateTicketKeys(plain, [ticketKey(1)]), /without session tickets/);
  freeContext(plain);
  freeContext(plain);
  const sealed = createServerContext({ certificates: [pair(good.server)], alpn: [], ticketKeys: [ticketKey(1)] });
  assert.throws(() => updateTicketKeys(sealed, [new Uint8Array(79)]), /80 bytes/);
  freeContext(sealed);
  assert.throws(() => updateTicketKeys(sealed, [ticketKey(2)]), /given back/);
});

test('the roots of the system come from SSL_CERT_FILE, and a wrong one is an error', (t) => {
  const before = process.env.SSL_CERT_FILE;
  t.after(() => {
    if (before === undefined) delete process.env.SSL_CERT_FILE;
    else process.env.SSL_CERT_FILE = before;
  });
  delete process.env.SSL_CERT_FILE;
  assert.match(systemRootsPem(), /-----BEGIN CERTIFICATE-----/);
  const directory = files(t, { 'roots.pem': good.authority.pem });
  process.env.SSL_CERT_FILE = `${directory}/roots.pem`;
  assert.equal(systemRootsPem(), good.authority.pem);
  process.env.SSL_CERT_FILE = `${directory}/missing.pem`;
  assert.throws(() => systemRootsPem(), /SSL_CERT_FILE names a file that cannot be read/);
});

test('a client without a list of authorities uses those of the system, which do not trust a test authority', async (t) => {
  const context = createClientContext({ alpn: [], verify: true });
  t.after(() => freeContext(context));
  const { client } = await connectPair(t, serverContext(t), context);
  assert.match(client.text, /no trusted authority/);
});

test('contexts that are to be made later serve like others, and one that cannot be made fails its sessions, not the thread', async (t) => {
  const certificates = [pair(good.server)];
  const server = createServerContext({ certificates, alpn: ['h2'], ticketKeys: null }, true);
  const client = createClientContext({ caPem: good.authority.pem, alpn: ['h2'], verify: true }, true);
  t.after(() => [server, client].forEach(freeContext));
  for (let i = 0; i < 2; i++) {
    const ends = await connectPair(t, server, client);
    assert.deepEqual([ends.server.status, ends.client.status], [HANDSHAKE_DONE, HANDSHAKE_DONE]);
  }
  const unused = createServerContext({ certificates, alpn: ['h2'], ticketKeys: null }, true);
  freeContext(unused);
  assert.equal(sessions.accept(unused, 0), 0);
  const broken = createServerContext(
    { certificates: [{ chainPem: '', keyPem: '' }], alpn: [], ticketKeys: null },
    true,
  );
  assert.equal(sessions.accept(broken, 0), 0);
  assert.equal(broken.pointer, 0);
  freeContext(broken);
  assert.throws(() => createServerContext({ certificates, alpn: [], ticketKeys: [ticketKey(1)] }, true), /at once/);
});

test('every failure has a stable name of its own and a sentence', () => {
  const names = tlsFailures.map(tlsFailureName);
  assert.equal(new Set(names).size, names.length);
  for (const failure of tlsFailures) {
    assert.match(tlsFailureName(failure), /^[a-z_]+$/);
    assert.match(tlsFailureSentence(failure), /^\S.*[^.]$/);
  }
  assert.deepEqual(
    tlsFailures,
    names.map((_, index) => index),
  );
});
