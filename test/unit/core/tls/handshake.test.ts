// Handshakes of our server with node:tls and `openssl s_client`, and of our client with node:tls and
// `openssl s_server`: versions, choice of certificate and cipher, ALPN, what the session tells.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Worker } from 'node:worker_threads';
import { Alpn, sessionAlpn } from '../../../../core/tls/alpn.ts';
import { alertName, TlsFailure } from '../../../../core/tls/errors.ts';
import { peerCertificate, sessionResumed, sessionVersion } from '../../../../core/tls/peer.ts';
import { HANDSHAKE_DONE, HANDSHAKE_FAILED } from '../../../../core/tls/session.ts';
import { makeCertificate } from './certificates.ts';
import {
  clientContext,
  connectPair,
  connectTo,
  files,
  good,
  handshake,
  inTime,
  kernel,
  Listener,
  nodeClient,
  nodeServer,
  openssl,
  outputOf,
  pair,
  receive,
  sendAll,
  serverContext,
  sessionCipher,
  sessionGroup,
  sessionServerName,
  sessions,
} from './support.ts';

for (const version of ['TLSv1.2', 'TLSv1.3'] as const) {
  test(`our server and node:tls speak ${version}, in both directions`, async (t) => {
    const listener = new Listener(t);
    const { socket, outcome } = nodeClient(t, listener.port, { minVersion: version, maxVersion: version });
    const fd = await listener.accept();
    const ssl = sessions.accept(serverContext(t), fd);
    assert.equal(await handshake(ssl), HANDSHAKE_DONE);
    assert.equal(await inTime('the peer', outcome), 'connected');
    assert.equal(sessionVersion(ssl), version);
    assert.equal(sessionServerName(ssl), 'a.example');
    assert.equal(sessionResumed(ssl), false);
    assert.equal(
      sessionCipher(ssl),
      version === 'TLSv1.3' ? 'TLS_AES_128_GCM_SHA256' : 'ECDHE-ECDSA-AES128-GCM-SHA256',
    );
    assert.equal(sessionAlpn(ssl), Alpn.NONE);
    assert.equal(peerCertificate(ssl), null);
    const answer = new Promise<string>((resolve) => socket.once('data', (chunk) => resolve(String(chunk))));
    socket.write('question');
    assert.equal(String((await receive(ssl, 8)).data), 'question');
    await sendAll(ssl, 'answer');
    assert.equal(await inTime('the peer', answer), 'answer');
    sessions.free(ssl);
    kernel.close(fd);
  });

  test(`our client and node:tls speak ${version}, in both directions`, async (t) => {
    const { port } = await nodeServer(t, { minVersion: version, maxVersion: version }, (socket) => socket.pipe(socket));
    const fd = connectTo(port);
    const ssl = sessions.connect(clientContext(t), fd, 'a.example', null);
    assert.equal(await handshake(ssl), HANDSHAKE_DONE);
    assert.equal(sessionVersion(ssl), version);
    await sendAll(ssl, 'there and back');
    assert.equal(String((await receive(ssl, 14)).data), 'there and back');
    const certificate = peerCertificate(ssl)!;
    assert.equal(certificate.subject, 'CN=server');
    assert.equal(certificate.issuer, 'CN=test authority');
    assert.equal(certificate.pem.replaceAll('\n', ''), good.server.pem.replaceAll('\n', ''));
    assert.deepEqual(certificate.names, { dns: ['a.example'], uri: [], ip: ['127.0.0.1'], email: [] });
    assert.equal(certificate.verified, true);
    assert.match(certificate.sha256, /^[0-9a-f]{64}$/);
    sessions.free(ssl);
    kernel.close(fd);
  });
}

test('our server speaks to openssl s_client, and our client to openssl s_server', async (t) => {
  const directory = files(t, {
    'ca.pem': good.authority.pem,
    'cert.pem': good.server.pem,
    'key.pem': good.server.keyPem,
  });
  const listener = new Listener(t);
  const target = `127.0.0.1:${listener.port}`;
  const client = openssl(
    t,
    's_client',
    '-connect',
    target,
    '-servername',
    'a.example',
    '-CAfile',
    `${directory}/ca.pem`,
  );
  const fd = await listener.accept();
  const ssl = sessions.accept(serverContext(t), fd);
  assert.equal(await handshake(ssl), HANDSHAKE_DONE);
  client.child.stdin!.write('from s_client\n');
  assert.equal(String((await receive(ssl, 14)).data), 'from s_client\n');
  await sendAll(ssl, 'from our server\n');
  await outputOf(client, /from our server/);
  assert.match(client.output(), /Verify return code: 0 \(ok\)/);
  sessions.shutdown(ssl);
  sessions.free(ssl);
  kernel.close(fd);

  const arguments_ = [
    's_server',
    '-accept',
    '127.0.0.1:0',
    '-cert',
    `${directory}/cert.pem`,
    '-key',
    `${directory}/key.pem`,
  ];
  const server = openssl(t, ...arguments_);
  const [, port] = /ACCEPT 127\.0\.0\.1:(\d+)/.exec(await outputOf(server, /ACCEPT .*\n/))!;
  const clientFd = connectTo(Number(port));
  const clientSsl = sessions.connect(clientContext(t), clientFd, 'a.example', null);
  assert.equal(await handshake(clientSsl), HANDSHAKE_DONE, sessions.failureText);
  await sendAll(clientSsl, 'from our client\n');
  await outputOf(server, /from our client/);
  server.child.stdin!.write('from s_server\n');
  assert.equal(String((await receive(clientSsl, 14)).data), 'from s_server\n');
  sessions.free(clientSsl);
  kernel.close(clientFd);
});

test('with an ECDSA and an RSA certificate a client gets the one that it can check', async (t) => {
  const context = serverContext(t, { certificates: [pair(good.server), pair(good.rsaServer)] });
  const subject = async (options: object): Promise<string> => {
    const listener = new Listener(t);
    const { socket, outcome } = nodeClient(t, listener.port, options);
    const fd = await listener.accept();
    const ssl = sessions.accept(context, fd);
    assert.equal(await handshake(ssl), HANDSHAKE_DONE, sessions.failureText);
    assert.equal(await inTime('the peer', outcome), 'connected');
    sessions.free(ssl);
    kernel.close(fd);
    return socket.getPeerCertificate().subject.CN as string;
  };
  assert.equal(await subject({ sigalgs: 'RSA-PSS+SHA256' }), 'rsa');
  assert.equal(await subject({ sigalgs: 'ECDSA+SHA256' }), 'server');
  assert.equal(await subject({ maxVersion: 'TLSv1.2', ciphers: 'ECDHE-RSA-AES128-GCM-SHA256' }), 'rsa');
  assert.equal(await subject({ maxVersion: 'TLSv1.2', ciphers: 'ECDHE-ECDSA-AES128-GCM-SHA256' }), 'server');
  assert.equal(await subject({}), 'server');
});

test('both sides use the post-quantum hybrid group, and fall back to X25519 in one round trip', async (t) => {
  const both = await connectPair(t, serverContext(t), clientContext(t));
  assert.equal(sessionGroup(both.client.ssl), 'X25519MLKEM768');
  const classical = await connectPair(t, serverContext(t, { groups: 'X25519:P-256' }), clientContext(t));
  assert.equal(sessionGroup(classical.client.ssl).toLowerCase(), 'x25519');
});

test('ALPN: the server prefers in its own order, and no offer means no protocol', async (t) => {
  const context = serverContext(t, { alpn: ['h2', 'http/1.1'] });
  const agreed = async (offer: string[]): Promise<number[]> => {
    const { server, client, close } = await connectPair(t, context, clientContext(t, { alpn: offer }));
    assert.equal(server.status, HANDSHAKE_DONE);
    const result = [sessionAlpn(server.ssl), sessionAlpn(client.ssl)];
    close();
    return result;
  };
  assert.deepEqual(await agreed(['http/1.1', 'h2']), [Alpn.H2, Alpn.H2]);
  assert.deepEqual(await agreed(['spdy/1', 'http/1.1']), [Alpn.HTTP1, Alpn.HTTP1]);
  assert.deepEqual(await agreed([]), [Alpn.NONE, Alpn.NONE]);
  const other = await connectPair(t, serverContext(t, { alpn: ['dot'] }), clientContext(t, { alpn: ['dot'] }));
  assert.equal(sessionAlpn(other.server.ssl), Alpn.OTHER);
  const none = await connectPair(t, serverContext(t), clientContext(t, { alpn: ['h2'] }));
  assert.equal(none.server.status, HANDSHAKE_DONE);
  assert.equal(sessionAlpn(none.client.ssl), Alpn.NONE);
});

test('ALPN: without overlap the client gets the no_application_protocol alert', async (t) => {
  const context = serverContext(t, { alpn: ['h2'] });
  const { server, client } = await connectPair(t, context, clientContext(t, { alpn: ['http/1.1'] }));
  assert.equal(server.status, HANDSHAKE_FAILED);
  assert.equal(server.failure, TlsFailure.ALPN_MISMATCH);
  assert.equal(client.failure, TlsFailure.PEER_ALERT);
  assert.equal(alertName(client.alert), 'no_application_protocol');
});

test('a TLS-ALPN-01 challenge is answered with the challenge certificate', async (t) => {
  // RFC 8737 §3: the validator offers acme-tls/1 alone and looks at acmeIdentifier, without verifying.
  const challenge = makeCertificate({ name: 'challenge', names: ['dns:a.example'], acmeDigest: new Uint8Array(34) });
  const context = serverContext(t, { certificates: [pair(challenge)], alpn: ['acme-tls/1'] });
  const listener = new Listener(t);
  const validator = nodeClient(t, listener.port, { ALPNProtocols: ['acme-tls/1'], rejectUnauthorized: false });
  const fd = await listener.accept();
  const ssl = sessions.accept(context, fd);
  assert.equal(await handshake(ssl), HANDSHAKE_DONE, sessions.failureText);
  assert.equal(await inTime('the peer', validator.outcome), 'connected');
  assert.equal(sessionAlpn(ssl), Alpn.ACME);
  assert.equal(validator.socket.alpnProtocol, 'acme-tls/1');
  assert.equal(validator.socket.getPeerCertificate().subject.CN, 'challenge');
  sessions.free(ssl);
  kernel.close(fd);
});

test('a peer below the least version is refused with the protocol_version alert', async (t) => {
  const strict = await connectPair(t, serverContext(t, { minVersion: '1.3' }), clientContext(t, { maxVersion: '1.2' }));
  assert.equal(strict.server.failure, TlsFailure.PROTOCOL_VERSION);
  assert.equal(strict.client.failure, TlsFailure.PROTOCOL_VERSION);
  assert.equal(alertName(strict.client.alert), 'protocol_version');
  const upstream = await connectPair(
    t,
    serverContext(t, { maxVersion: '1.2' }),
    clientContext(t, { minVersion: '1.3' }),
  );
  assert.notEqual(upstream.client.status, HANDSHAKE_DONE);
  assert.equal(upstream.server.failure, TlsFailure.PROTOCOL_VERSION);
});

test('no cipher in common is named', async (t) => {
  const { server, client } = await connectPair(
    t,
    serverContext(t, { maxVersion: '1.2', ciphers: 'ECDHE-ECDSA-AES128-GCM-SHA256' }),
    clientContext(t, { maxVersion: '1.2', ciphers: 'ECDHE-ECDSA-AES256-GCM-SHA384' }),
  );
  assert.equal(server.failure, TlsFailure.NO_SHARED_CIPHER);
  assert.equal(alertName(client.alert), 'handshake_failure');
});

test('the defaults take no cipher without forward secrecy or authenticated encryption', async (t) => {
  const listener = new Listener(t);
  const context = serverContext(t, { certificates: [pair(good.rsaServer)] });
  for (const ciphers of ['AES128-GCM-SHA256', 'ECDHE-RSA-AES128-SHA', 'ECDHE-RSA-AES128-SHA256']) {
    const { outcome } = nodeClient(t, listener.port, { maxVersion: 'TLSv1.2', ciphers });
    const fd = await listener.accept();
    const ssl = sessions.accept(context, fd);
    assert.equal(await handshake(ssl), HANDSHAKE_FAILED, ciphers);
    assert.equal(sessions.failure, TlsFailure.NO_SHARED_CIPHER);
    assert.equal(await inTime('the peer', outcome), 'ERR_SSL_SSL/TLS_ALERT_HANDSHAKE_FAILURE');
    sessions.free(ssl);
    kernel.close(fd);
  }
});

test('contexts and their callbacks work in a worker thread, and in several at a time', async () => {
  const script = new URL('worker.ts', import.meta.url);
  const run = () =>
    new Promise<unknown>((resolve, reject) => {
      const worker = new Worker(script);
      worker.once('message', resolve);
      worker.once('error', reject);
    });
  const results = await Promise.all([run(), run()]);
  const expected = { alpn: Alpn.H2, first: false, second: true, text: 'hello' };
  assert.deepEqual(results, [expected, expected]);
});
