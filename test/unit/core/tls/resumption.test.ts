// Session tickets: resumption across contexts (workers) that share keys, key rotation, and what must
// never be resumed.

import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { freeContext, type TlsContext, updateTicketKeys } from '../../../../core/tls/context.ts';
import { peerCertificate, sessionResumed } from '../../../../core/tls/peer.ts';
import { HANDSHAKE_DONE, HANDSHAKE_FAILED } from '../../../../core/tls/session.ts';
import { makeCertificate } from './certificates.ts';
import {
  clientContext,
  connectPair,
  connectTo,
  good,
  handshake,
  inTime,
  kernel,
  Listener,
  nodeClient,
  nodeServer,
  pair,
  receive,
  sendAll,
  serverContext,
  sessions,
  ticketKey,
} from './support.ts';

/** Connects, exchanges a byte (tickets of TLS 1.3 come with it), and takes what allows resumption. */
async function resumptionFrom(t: TestContext, serverSide: TlsContext, clientSide: TlsContext, offer = 0) {
  const { server, client, close } = await connectPair(t, serverSide, clientSide, { resumption: offer });
  assert.equal(server.status, HANDSHAKE_DONE, server.text);
  assert.equal(client.status, HANDSHAKE_DONE, client.text);
  await sendAll(server.ssl, 'x');
  await receive(client.ssl, 1);
  const taken = sessions.takeResumption(client.ssl);
  const resumed = sessionResumed(server.ssl);
  assert.equal(sessionResumed(client.ssl), resumed);
  close();
  return { taken, resumed };
}

for (const maxVersion of ['1.2', '1.3'] as const) {
  test(`TLS ${maxVersion}: a ticket of one context is good in another that shares its keys`, async (t) => {
    const options = { ticketKeys: [ticketKey(1)] };
    const client = clientContext(t, { maxVersion });
    const { taken, resumed } = await resumptionFrom(t, serverContext(t, options), client);
    assert.equal(resumed, false);
    assert.notEqual(taken, 0);
    const again = await resumptionFrom(t, serverContext(t, options), client, taken);
    assert.equal(again.resumed, true);
    const foreign = await resumptionFrom(t, serverContext(t, { ticketKeys: [ticketKey(2)] }), client, taken);
    assert.equal(foreign.resumed, false);
  });

  test(`TLS ${maxVersion}: after a rotation old tickets are good and replaced, forgotten ones are not`, async (t) => {
    const context = serverContext(t, { ticketKeys: [ticketKey(1)] });
    const client = clientContext(t, { maxVersion });
    const { taken: underOne } = await resumptionFrom(t, context, client);
    updateTicketKeys(context, [ticketKey(2), ticketKey(1)]);
    const { taken: underTwo, resumed } = await resumptionFrom(t, context, client, underOne);
    assert.equal(resumed, true);
    updateTicketKeys(context, [ticketKey(3), ticketKey(2)]);
    assert.equal((await resumptionFrom(t, context, client, underOne)).resumed, false);
    assert.equal((await resumptionFrom(t, context, client, underTwo)).resumed, true);
  });
}

test('without ticket keys no session can be resumed, in either version', async (t) => {
  for (const maxVersion of ['1.2', '1.3'] as const) {
    const context = serverContext(t);
    const client = clientContext(t, { maxVersion });
    const { taken } = await resumptionFrom(t, context, client);
    if (taken === 0) continue;
    assert.equal((await resumptionFrom(t, context, client, taken)).resumed, false);
    sessions.freeResumption(taken);
  }
});

test('node:tls resumes with our server, and our client with node:tls', async (t) => {
  const context = serverContext(t, { ticketKeys: [ticketKey(1)] });
  const listener = new Listener(t);
  let ticket: Buffer | undefined;
  for (const round of [0, 1, 2]) {
    const { socket, outcome } = nodeClient(t, listener.port, ticket === undefined ? {} : { session: ticket });
    const kept = new Promise<Buffer>((resolve) => socket.once('session', resolve));
    const fd = await listener.accept();
    const ssl = sessions.accept(context, fd);
    assert.equal(await handshake(ssl), HANDSHAKE_DONE);
    assert.equal(await inTime('the handshake', outcome), 'connected');
    assert.equal(sessionResumed(ssl), round > 0);
    ticket = await inTime('a ticket', kept);
    sessions.free(ssl);
    kernel.close(fd);
  }

  const { port } = await nodeServer(t, {}, (socket) => socket.end('x'));
  const client = clientContext(t);
  let resumption = 0;
  for (const round of [0, 1, 2]) {
    const fd = connectTo(port);
    const ssl = sessions.connect(client, fd, 'a.example', null, resumption);
    assert.equal(await handshake(ssl), HANDSHAKE_DONE, sessions.failureText);
    assert.equal(sessionResumed(ssl), round > 0);
    await receive(ssl);
    if (resumption !== 0) sessions.freeResumption(resumption);
    resumption = sessions.takeResumption(ssl);
    assert.notEqual(resumption, 0);
    sessions.free(ssl);
    kernel.close(fd);
  }
});

test('a ticket from a listener that asks for no client certificate does not get past one that does', async (t) => {
  const options = { ticketKeys: [ticketKey(1)] };
  const open = serverContext(t, options);
  const closed = serverContext(t, { ...options, clientValidation: { caPem: good.authority.pem, mode: 'required' } });
  const client = clientContext(t);
  const { taken } = await resumptionFrom(t, open, client);
  const { server } = await connectPair(t, closed, client, { resumption: taken });
  assert.equal(server.status, HANDSHAKE_FAILED);
  assert.match(server.text, /the client sent no certificate/);
});

test('a ticket given under one client authority is not good under another', async (t) => {
  const other = makeCertificate({ name: 'other authority', ca: true });
  const client = clientContext(t, {
    certificate: pair(makeCertificate({ name: 'client', issuer: good.authority, usage: 'client' })),
  });
  const options = { ticketKeys: [ticketKey(1)] };
  const trusts = (caPem: string) => serverContext(t, { ...options, clientValidation: { caPem, mode: 'required' } });
  const context = trusts(good.authority.pem);
  const { taken } = await resumptionFrom(t, context, client);
  const again = await connectPair(t, context, client, { resumption: taken });
  assert.equal(sessionResumed(again.server.ssl), true);
  assert.equal(peerCertificate(again.server.ssl)?.subject, 'CN=client');
  const { server } = await connectPair(t, trusts(other.pem), client, { resumption: taken });
  assert.equal(server.status, HANDSHAKE_FAILED);
  assert.match(server.text, /no trusted authority/);
});

test('a resumed upstream session is still checked against the names asked for', async (t) => {
  const context = serverContext(t, { ticketKeys: [ticketKey(1)] });
  const client = clientContext(t);
  const { taken } = await resumptionFrom(t, context, client);
  const { client: end } = await connectPair(t, context, client, { resumption: taken, names: ['b.example'] });
  assert.equal(end.status, HANDSHAKE_FAILED);
  assert.match(end.text, /another name/);
});

test('a context that is given back during a handshake still seals tickets, and goes with its last session', async (t) => {
  const context = serverContext(t, { ticketKeys: [ticketKey(1)], alpn: ['h2'] });
  const listener = new Listener(t);
  const { outcome, socket } = nodeClient(t, listener.port, { ALPNProtocols: ['h2'] });
  const ticket = new Promise<Buffer>((resolve) => socket.once('session', resolve));
  const fd = await listener.accept();
  const ssl = sessions.accept(context, fd);
  freeContext(context);
  assert.equal(sessions.accept(context, fd), 0);
  assert.match(sessions.failureText, /its context is gone/);
  assert.equal(await handshake(ssl), HANDSHAKE_DONE);
  assert.equal(await inTime('the handshake', outcome), 'connected');
  assert.ok((await inTime('a ticket', ticket)).length > 0);
  assert.equal(context.sessions, 1);
  sessions.free(ssl);
  assert.equal(context.sessions, 0);
  kernel.close(fd);
});
