// Who the peer is: client certificates at our server, and every way in which an upstream can fail to
// be who it should be.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { ClientValidation } from '../../../../core/tls/context.ts';
import { alertName, TlsFailure, tlsFailureName } from '../../../../core/tls/errors.ts';
import { parseAlternativeNames, peerCertificate } from '../../../../core/tls/peer.ts';
import { ANY_NAME, HANDSHAKE_DONE, HANDSHAKE_FAILED } from '../../../../core/tls/session.ts';
import { type Certificate, makeCertificate } from './certificates.ts';
import {
  clientContext,
  connectPair,
  connectTo,
  good,
  handshake,
  kernel,
  Listener,
  nodeClient,
  nodeServer,
  pair,
  receive,
  serverContext,
  sessions,
} from './support.ts';

const { authority } = good;
const stranger = makeCertificate({ name: 'another authority', ca: true });

const validation = (mode: ClientValidation['mode']): ClientValidation => ({ caPem: authority.pem, mode });

test('a client certificate is optional, required and told with its identity', async (t) => {
  const id = 'spiffe://example.org/ns/shop/sa/cart';
  const client = makeCertificate({ name: 'cart', issuer: authority, usage: 'client', names: [`uri:${id}`] });
  for (const mode of ['optional', 'required'] as const) {
    const context = serverContext(t, { clientValidation: validation(mode) });
    const { server } = await connectPair(t, context, clientContext(t, { certificate: pair(client) }));
    assert.equal(server.status, HANDSHAKE_DONE, server.text);
    const shown = peerCertificate(server.ssl)!;
    assert.equal(shown.spiffeId, id);
    assert.equal(shown.subject, 'CN=cart');
    assert.equal(shown.verified, true);
    assert.deepEqual(shown.names.uri, [id]);
  }
  const optional = await connectPair(
    t,
    serverContext(t, { clientValidation: validation('optional') }),
    clientContext(t),
  );
  assert.equal(optional.server.status, HANDSHAKE_DONE);
  assert.equal(peerCertificate(optional.server.ssl), null);
});

test('without the required certificate the client is refused by name, in both versions', async (t) => {
  const context = serverContext(t, { clientValidation: validation('required') });
  const old = await connectPair(t, context, clientContext(t, { maxVersion: '1.2' }));
  assert.equal(old.server.failure, TlsFailure.CLIENT_CERTIFICATE_REQUIRED);
  assert.equal(old.client.failure, TlsFailure.PEER_ALERT);
  // A client of TLS 1.3 is done first and learns it with its first read.
  const { server, client } = await connectPair(t, context, clientContext(t));
  assert.equal(server.failure, TlsFailure.CLIENT_CERTIFICATE_REQUIRED);
  assert.equal(client.status, HANDSHAKE_DONE);
  assert.ok((await receive(client.ssl)).end < 0);
  assert.equal(sessions.failure, TlsFailure.PEER_ALERT);
  assert.equal(alertName(sessions.alert), 'certificate_required');
});

for (const mode of ['optional', 'required'] as const) {
  test(`a bad client certificate is refused where one is ${mode}`, async (t) => {
    const refused = async (certificate: Certificate): Promise<string> => {
      const context = serverContext(t, { clientValidation: validation(mode) });
      const { server } = await connectPair(t, context, clientContext(t, { certificate: pair(certificate) }));
      assert.equal(server.status, HANDSHAKE_FAILED);
      return tlsFailureName(server.failure as TlsFailure);
    };
    const client = { name: 'client', usage: 'client' as const };
    assert.equal(await refused(makeCertificate({ ...client, issuer: stranger })), 'unknown_ca');
    assert.equal(await refused(makeCertificate(client)), 'self_signed');
    assert.equal(await refused(makeCertificate({ ...client, issuer: authority, toDays: -0.5 })), 'certificate_expired');
    assert.equal(
      await refused(makeCertificate({ ...client, issuer: authority, fromDays: 1 })),
      'certificate_not_yet_valid',
    );
    assert.equal(
      await refused(makeCertificate({ ...client, issuer: authority, usage: 'server' })),
      'certificate_purpose',
    );
    assert.equal(await refused(makeCertificate({ ...client, issuer: authority, badSignature: true })), 'bad_signature');
  });
}

test('a chain longer than the verify depth is refused', async (t) => {
  const middle = makeCertificate({ name: 'intermediate', issuer: authority, ca: true });
  const client = makeCertificate({ name: 'client', issuer: middle, usage: 'client' });
  const status = async (depth: number): Promise<number> => {
    const context = serverContext(t, { clientValidation: { ...validation('required'), depth } });
    return (await connectPair(t, context, clientContext(t, { certificate: pair(client, middle) }))).server.status;
  };
  assert.equal(await status(1), HANDSHAKE_DONE);
  assert.equal(await status(0), HANDSHAKE_FAILED);
});

test('our client shows its certificate to node:tls, and node:tls its own to us', async (t) => {
  const certificate = makeCertificate({ name: 'gateway', issuer: authority, usage: 'client' });
  let subject = '';
  const { port } = await nodeServer(t, { requestCert: true, ca: authority.pem }, (socket) => {
    subject = socket.getPeerCertificate().subject.CN as string;
    socket.end('seen');
  });
  const fd = connectTo(port);
  const ssl = sessions.connect(clientContext(t, { certificate: pair(certificate) }), fd, 'a.example', null);
  assert.equal(await handshake(ssl), HANDSHAKE_DONE);
  assert.equal(String((await receive(ssl)).data), 'seen');
  assert.equal(subject, 'gateway');
  sessions.free(ssl);
  kernel.close(fd);

  const listener = new Listener(t);
  nodeClient(t, listener.port, { cert: certificate.pem, key: certificate.keyPem });
  const serverFd = await listener.accept();
  const serverSsl = sessions.accept(serverContext(t, { clientValidation: validation('required') }), serverFd);
  assert.equal(await handshake(serverSsl), HANDSHAKE_DONE);
  assert.equal(peerCertificate(serverSsl)?.subject, 'CN=gateway');
  sessions.free(serverSsl);
  kernel.close(serverFd);
});

test('each fault of an upstream certificate has its name', async (t) => {
  const names = ['dns:a.example'];
  const cases: [string, Certificate][] = [
    ['certificate_expired', makeCertificate({ name: 'x', issuer: authority, names, toDays: -0.5 })],
    ['certificate_not_yet_valid', makeCertificate({ name: 'x', issuer: authority, names, fromDays: 1 })],
    ['unknown_ca', makeCertificate({ name: 'x', issuer: stranger, names })],
    ['self_signed', makeCertificate({ name: 'x', names })],
    ['wrong_host', makeCertificate({ name: 'x', issuer: authority, names: ['dns:b.example'] })],
    ['wrong_host', makeCertificate({ name: 'a.example', issuer: authority })],
    ['certificate_purpose', makeCertificate({ name: 'x', issuer: authority, names, usage: 'client' })],
    ['bad_signature', makeCertificate({ name: 'x', issuer: authority, names, badSignature: true })],
  ];
  for (const [expected, certificate] of cases) {
    const { client, server } = await connectPair(
      t,
      serverContext(t, { certificates: [pair(certificate)] }),
      clientContext(t),
    );
    assert.equal(client.status, HANDSHAKE_FAILED);
    assert.equal(tlsFailureName(client.failure as TlsFailure), expected, client.text);
    assert.equal(server.failure, TlsFailure.PEER_ALERT);
    // The same upstream is taken by a context that does not verify.
    const careless = clientContext(t, { verify: false });
    const taken = await connectPair(t, serverContext(t, { certificates: [pair(certificate)] }), careless);
    assert.equal(taken.client.status, HANDSHAKE_DONE, taken.client.text);
  }
});

test('a chain with its root at the end is taken for no more than it is', async (t) => {
  const leaf = makeCertificate({ name: 'x', issuer: stranger, names: ['dns:a.example'] });
  const { client } = await connectPair(t, serverContext(t, { certificates: [pair(leaf, stranger)] }), clientContext(t));
  assert.equal(client.failure, TlsFailure.UNKNOWN_CA);
});

test('the trusted list may hold an intermediate or the certificate itself', async (t) => {
  const middle = makeCertificate({ name: 'intermediate', issuer: authority, ca: true });
  const leaf = makeCertificate({ name: 'x', issuer: middle, names: ['dns:a.example'] });
  for (const caPem of [middle.pem, leaf.pem]) {
    const context = serverContext(t, { certificates: [pair(leaf, middle)] });
    assert.equal((await connectPair(t, context, clientContext(t, { caPem }))).client.status, HANDSHAKE_DONE);
  }
});

test('names to verify: DNS, wildcard, address, URI, and any of several', async (t) => {
  const id = 'spiffe://example.org/ns/a/sa/b';
  const certificate = makeCertificate({
    name: 'x',
    issuer: authority,
    names: ['dns:a.example', 'dns:*.w.example', 'ip:127.0.0.1', `uri:${id}`],
  });
  const context = serverContext(t, { certificates: [pair(certificate)] });
  const client = clientContext(t);
  const verdict = async (name: string, names: readonly string[] | null): Promise<boolean> => {
    const end = (await connectPair(t, context, client, { name, names })).client;
    assert.equal(end.failure, end.status === HANDSHAKE_DONE ? TlsFailure.NONE : TlsFailure.WRONG_HOST);
    return end.status === HANDSHAKE_DONE;
  };
  assert.equal(await verdict('a.example', null), true);
  assert.equal(await verdict('a.example.', null), true);
  assert.equal(await verdict('A.EXAMPLE', null), true);
  assert.equal(await verdict('x.w.example', null), true);
  assert.equal(await verdict('x.y.w.example', null), false);
  assert.equal(await verdict('w.example', null), false);
  assert.equal(await verdict('127.0.0.1', null), true);
  assert.equal(await verdict('127.0.0.2', null), false);
  assert.equal(await verdict('b.example', ['a.example']), true);
  assert.equal(await verdict('a.example', ['b.example']), false);
  assert.equal(await verdict('a.example', ['b.example', 'a.example']), true);
  assert.equal(await verdict('', [id]), true);
  assert.equal(await verdict('', [`${id}x`]), false);
  assert.equal(await verdict('', ['10.0.0.1', '127.0.0.1']), true);
  assert.equal(await verdict('', ['10.0.0.1', 'b.example', `${id}/`]), false);
  assert.equal(await verdict('whatever', ANY_NAME), true);
});

test('a verifying client without any name to verify does not connect', (t) => {
  const context = clientContext(t);
  assert.equal(sessions.connect(context, 0, '', null), 0);
  assert.equal(sessions.failure, TlsFailure.NO_NAME);
  assert.equal(sessions.connect(context, 0, 'a.example', []), 0);
  assert.equal(sessions.failure, TlsFailure.NO_NAME);
});

test('an address is verified, but not sent as a server name', async (t) => {
  const seen: unknown[] = [];
  const { port } = await nodeServer(t, {}, (socket) => {
    seen.push(socket.servername);
    socket.end();
  });
  for (const name of ['127.0.0.1', 'a.example']) {
    const fd = connectTo(port);
    const ssl = sessions.connect(clientContext(t), fd, name, null);
    assert.equal(await handshake(ssl), HANDSHAKE_DONE);
    await receive(ssl);
    sessions.free(ssl);
    kernel.close(fd);
  }
  assert.deepEqual(seen, [false, 'a.example']);
});

test('a quoted alternative name cannot pass for two', () => {
  assert.deepEqual(parseAlternativeNames('DNS:a.example, IP Address:127.0.0.1, email:x@y'), {
    dns: ['a.example'],
    uri: [],
    ip: ['127.0.0.1'],
    email: ['x@y'],
  });
  assert.deepEqual(parseAlternativeNames('URI:"spiffe://a, DNS:evil.example", DNS:a.example'), {
    dns: ['a.example'],
    uri: ['spiffe://a, DNS:evil.example'],
    ip: [],
    email: [],
  });
});
