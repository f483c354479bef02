// Peers of sessions that live, verified once more: by other authorities, later.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createServerContext, freeContext } from '../../../../core/tls/context.ts';
import { HANDSHAKE_DONE } from '../../../../core/tls/session.ts';
import { isSessionOf, verifiesPeer } from '../../../../core/tls/verify.ts';
import { type Certificate, makeCertificate } from './certificates.ts';
import { clientContext, connectPair, pair, serverContext, until } from './support.ts';

const root = makeCertificate({ name: 'old root', ca: true });
const middle = makeCertificate({ name: 'middle', ca: true, issuer: root });
const next = makeCertificate({ name: 'new root', ca: true });

const required = (...authorities: Certificate[]) => ({
  caPem: authorities.map(({ pem }) => pem).join(''),
  mode: 'required' as const,
});

test('the peer of a session holds as long as its chain leads to a root that is trusted', async (t) => {
  const client = makeCertificate({ name: 'client', issuer: middle, usage: 'client' });
  const server = makeCertificate({ name: 'server', issuer: middle, usage: 'server', names: ['dns:a.example'] });
  const certificates = [pair(server, middle)];
  const servers = (...authorities: Certificate[]) =>
    serverContext(t, { certificates, clientValidation: required(...authorities) });
  const clients = (...authorities: Certificate[]) =>
    clientContext(t, { caPem: required(...authorities).caPem, certificate: pair(client, middle) });
  const [atServer, atClient] = [servers(root), clients(root)];
  const made = await connectPair(t, atServer, atClient);
  assert.equal(made.server.status, HANDSHAKE_DONE, made.server.text);
  const { ssl } = made.server;
  assert.equal(isSessionOf(ssl, atServer), true);
  assert.equal(verifiesPeer(ssl, atServer), true);
  const both = servers(next, root);
  assert.equal(isSessionOf(ssl, both), false);
  assert.equal(verifiesPeer(ssl, both), true, 'both roots are trusted while one takes the place of the other');
  assert.equal(verifiesPeer(ssl, servers(next)), false, 'and then only the new one');
  assert.equal(verifiesPeer(made.client.ssl, atClient), true);
  assert.equal(verifiesPeer(made.client.ssl, clients(root, next)), true);
  assert.equal(verifiesPeer(made.client.ssl, clients(next)), false);
  // Asking leaves nothing behind that the session would stumble over.
  assert.equal(verifiesPeer(ssl, atServer), true);
});

test('a certificate that has run out since the handshake does not hold', async (t) => {
  const context = serverContext(t, { clientValidation: required(root) });
  const shortLived = () => makeCertificate({ name: 'client', issuer: root, usage: 'client', toDays: 2 / 86_400 });
  const connected = async () =>
    (await connectPair(t, context, clientContext(t, { certificate: pair(shortLived()) }))).server;
  let server = await connected();
  // A busy machine may take longer than that for a handshake.
  while (server.status !== HANDSHAKE_DONE || !verifiesPeer(server.ssl, context)) server = await connected();
  await until('the certificate runs out', () => (verifiesPeer(server.ssl, context) ? undefined : true));
});

test('a peer without a certificate does not hold', async (t) => {
  const context = serverContext(t);
  const { server } = await connectPair(t, context, clientContext(t));
  assert.equal(verifiesPeer(server.ssl, context), false);
});

test('nobody holds by a context that OpenSSL refuses when it is first used', async (t) => {
  const client = makeCertificate({ name: 'client', issuer: root, usage: 'client' });
  const atServer = serverContext(t, { clientValidation: required(root) });
  const { server } = await connectPair(t, atServer, clientContext(t, { certificate: pair(client) }));
  const certificates = [pair(client)];
  const refused = createServerContext({ certificates, alpn: [], ticketKeys: null, cipherSuites: 'none' }, true);
  t.after(() => freeContext(refused));
  assert.equal(verifiesPeer(server.ssl, refused), false);
});
