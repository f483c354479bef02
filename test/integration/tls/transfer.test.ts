// Large bodies, WebSocket and ends of connections over TLS: byte for byte, in bounded memory.

import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { test } from 'node:test';
import { becomes, ok, request } from '../http/support.ts';
import type { Wire } from '../http/wire.ts';
import { get } from '../support.ts';
import { filesOf, issue, openUpstream, pairOf, run, startSite } from './support.ts';

const MIB = 1024 * 1024;
const BYTES = 64 * MIB;
const upstream = await openUpstream();
const site = await startSite({
  files: filesOf({ site: issue('site', ['dns:a.example']) }),
  config: `
workers: 1
admin: {address: "127.0.0.1:0"}
accessLog: {path: access.log}
listeners:
  - {name: https, address: "127.0.0.1:0", protocols: [http/1.1], tls: {certificates: [${pairOf('site')}]}}
routes: [{name: all, rules: [{backendRefs: [{name: app}]}]}]
backends: [{name: app, endpoints: ["127.0.0.1:${upstream.port}"], maxIdleConnections: 0}]
`,
});
site.beforeClose(() => upstream.close());
const block = randomBytes(MIB);

/** Sends the same block until there are BYTES. */
async function sendAll(wire: Wire): Promise<void> {
  for (let sent = 0; sent < BYTES; sent += MIB) await wire.send(block);
}

/** Takes BYTES, slowly, and compares each; gives the most that the gateway's memory grew. */
async function takeAll(wire: Wire, slowly: boolean): Promise<number> {
  const admin = await site.gateway.adminPort();
  const before = site.residentBytes();
  let growth = 0;
  for (let taken = 0; taken < BYTES; taken += MIB) {
    wire.socket.resume();
    assert.ok((await wire.bytes(MIB)).equals(block), `MiB ${taken / MIB}`);
    if (!slowly) continue;
    wire.socket.pause();
    // A round trip through the gateway: time to read ahead as far as it will. (Metrics would cost memory of their own.)
    await get(admin, '/healthz');
    growth = Math.max(growth, site.residentBytes() - before);
  }
  wire.socket.resume();
  return growth;
}

test('64 MiB to a client that reads slowly arrive unchanged and cost little memory', async () => {
  for (const slowly of [false, true]) {
    const client = await site.secure('https');
    await client.send(request('GET /down', 'a.example'));
    const wire = await upstream.connection();
    await wire.request();
    await wire.send(`HTTP/1.1 200 OK\r\nContent-Length: ${BYTES}\r\n\r\n`);
    const sent = sendAll(wire);
    await client.head();
    const growth = await takeAll(client, slowly);
    await sent;
    assert.ok(growth < 8 * MIB, `grew by ${growth} bytes`);
    client.close();
  }
});

test('64 MiB to an upstream that reads slowly arrive unchanged and cost little memory', async () => {
  for (const slowly of [false, true]) {
    const client = await site.secure('https');
    await client.send(request('POST /up', 'a.example', `Content-Length: ${BYTES}`));
    const wire = await upstream.connection();
    await wire.head();
    const sent = sendAll(client);
    const growth = await takeAll(wire, slowly);
    await sent;
    await wire.send(ok('done'));
    assert.equal((await client.response()).body, 'done');
    assert.ok(growth < 8 * MIB, `grew by ${growth} bytes`);
    client.close();
  }
});

test('a response that fills the socket is followed by close_notify once the client reads', async () => {
  const digest = (bytes: Buffer | string): string => createHash('sha256').update(bytes).digest('hex');
  // Sizes around those at which sockets are full: the end must not be lost behind the data.
  for (const bytes of [100_000, 2_000_000, 6_000_000]) {
    const client = await site.secure('https');
    client.socket.pause();
    const body = randomBytes(bytes);
    await client.send(request('GET /', 'a.example', 'Connection: close'));
    const wire = await upstream.connection();
    await wire.request();
    await wire.send(`HTTP/1.1 200 OK\r\nContent-Length: ${bytes}\r\n\r\n`);
    void wire.send(body);
    await site.metric('requests_in_flight');
    client.socket.resume();
    await client.head();
    assert.equal(digest(await client.bytes(bytes)), digest(body));
    assert.equal(await client.ended(), 'fin');
    client.close();
  }
});

test('a WebSocket passes bytes both ways, and either side may close', async () => {
  const client = await site.secure('https');
  const fields = ['Connection: Upgrade', 'Upgrade: websocket', 'Sec-WebSocket-Version: 13'];
  await client.send(request('GET /socket', 'a.example', ...fields, 'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=='));
  const wire = await upstream.connection();
  const { head } = await wire.head();
  assert.match(head, /\r\nupgrade: websocket\r\n/i);
  await wire.send('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello');
  assert.equal((await client.head()).status, 101);
  assert.equal((await client.bytes(5)).toString(), 'hello');
  const up = randomBytes(300_000);
  const down = randomBytes(300_000);
  void client.send(up);
  void wire.send(down);
  assert.ok((await wire.bytes(up.length)).equals(up));
  assert.ok((await client.bytes(down.length)).equals(down));
  await wire.finish();
  assert.equal(await client.ended(), 'fin');
  await client.send('bye');
  assert.equal((await wire.bytes(3)).toString(), 'bye');
  await client.finish();
  assert.equal(await wire.ended(), 'fin');
});

test('a client that is cut off in an upload ends the request, and the upstream does not take it for whole', async () => {
  const client = await site.secure('https');
  await client.send(`${request('POST /cut', 'a.example', 'Transfer-Encoding: chunked')}5\r\nhello\r\n`);
  const wire = await upstream.connection();
  await wire.until('hello');
  client.close();
  await wire.ended();
  assert.doesNotMatch(wire.unread, /0\r\n\r\n/);
  assert.equal((await site.logged({ path: '/cut' })).reason, 'DC');
});

test('a response that lasts until the end of the connection and is cut off ends without close_notify', async () => {
  const out = 'downstream_bytes_total{direction="out"}';
  const args = ['s_client', '-connect', `127.0.0.1:${await site.gateway.port('https')}`, '-quiet', '-ign_eof', '-msg'];
  for (const whole of [true, false]) {
    const path = `/until-the-end-${whole}`;
    const before = await site.metric(out);
    const client = run('openssl', args, `GET ${path} HTTP/1.0\r\nHost: a.example\r\n\r\n`);
    const wire = await upstream.connection();
    await wire.request();
    await wire.send('HTTP/1.1 200 OK\r\n\r\nbody');
    // The response has begun before the upstream ends one way or the other.
    await becomes('bytes to the client', async () => (await site.metric(out)) > before);
    if (whole) await wire.finish();
    else wire.reset();
    const { output } = await client;
    assert.equal(/<<< TLS 1\.3, Alert .*close_notify/.test(output), whole, output);
    assert.equal((await site.logged({ path })).reason, whole ? null : 'UC');
    wire.close();
  }
});
