// Upgrade and WebSocket: the connection becomes a tunnel whose halves end separately.
// Spec: RFC 9110 §7.8 (Upgrade), RFC 6455 §1.3, §4 (handshake), §5.2 (frames).

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { test } from 'node:test';
import { becomes, normal, ok, request, startLab, type Upstream } from './support.ts';
import type { Wire } from './wire.ts';

const lab = await startLab({ upstreams: 12, top: 'timeouts: {tunnelIdle: 2500ms}' });

const offer = ['Connection: Upgrade', 'Upgrade: websocket', 'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=='];
const switching = 'HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n';

/** A tunnel through the gateway: the client's and the upstream's end. */
async function tunnel(upstream: Upstream): Promise<{ client: Wire; wire: Wire }> {
  const client = await lab.client();
  await client.send(request('GET /chat', upstream.host, ...offer));
  const wire = await upstream.connection();
  await wire.request();
  await wire.send(switching);
  assert.equal((await client.response()).status, 101);
  return { client, wire };
}

test('the handshake passes with Connection and Upgrade of each hop', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  await client.send(request('GET /chat', upstream.host, ...offer, 'Sec-WebSocket-Version: 13'));
  const wire = await upstream.connection();
  assert.equal(
    normal((await wire.request()).head).split('x-forwarded-for')[0],
    `GET /chat HTTP/1.1\r\nHost: ${upstream.host}\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n` +
      'Sec-WebSocket-Version: 13\r\nconnection: upgrade\r\nupgrade: websocket\r\n',
  );
  // Bytes of the new protocol may come with the head.
  await wire.send(`${switching}early`);
  assert.equal(
    await client.until('early'),
    'HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nUpgrade: websocket\r\n\r\nearly',
  );
  client.close();
});

test('bytes pass both ways, in any order and amount, with nothing added or lost', async () => {
  const { client, wire } = await tunnel(lab.upstream());
  await client.send('from client');
  assert.equal(await wire.until('client'), 'from client');
  await wire.send('from server');
  assert.equal(await client.until('server'), 'from server');
  const up = Buffer.alloc(3_000_000, 'up-');
  const down = Buffer.alloc(5_000_000, 'down-');
  void client.send(up);
  void wire.send(down);
  const [gotUp, gotDown] = await Promise.all([wire.bytes(up.length), client.bytes(down.length)]);
  assert.ok(gotUp.equals(up) && gotDown.equals(down));
  client.close();
});

test('an unmasked echo of WebSocket frames survives a real handshake', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  await client.send(request('GET /', upstream.host, ...offer, 'Sec-WebSocket-Version: 13'));
  const wire = await upstream.connection();
  const key = (await wire.request()).value('sec-websocket-key');
  const accept = createHash('sha1').update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest('base64');
  await wire.send(switching.replace('\r\n\r\n', `\r\nSec-WebSocket-Accept: ${accept}\r\n\r\n`));
  // The sample of RFC 6455 §1.3.
  assert.equal((await client.response()).value('sec-websocket-accept'), 's3pPLMBiTxaQ9kYGzzhZRbK+xOo=');
  const frame = Buffer.from('818537fa213d7f9f4d5158', 'hex'); // "Hello", masked: RFC 6455 §5.7
  await client.send(frame);
  assert.ok((await wire.bytes(frame.length)).equals(frame));
  client.close();
});

test('a client that finishes sending still gets what the server sends afterwards', async () => {
  const { client, wire } = await tunnel(lab.upstream());
  await client.send('last words');
  await client.finish();
  assert.equal(await wire.rest(), 'last words');
  assert.equal(wire.ending, 'fin');
  await wire.send('answer');
  await wire.finish();
  assert.equal(await client.rest(), 'answer');
  assert.equal(client.ending, 'fin');
});

test('a server that finishes sending still gets what the client sends afterwards', async () => {
  const { client, wire } = await tunnel(lab.upstream());
  await wire.send('last words');
  await wire.finish();
  assert.equal(await client.rest(), 'last words');
  assert.equal(client.ending, 'fin');
  await client.send('answer');
  await client.finish();
  assert.equal(await wire.rest(), 'answer');
  assert.equal(wire.ending, 'fin');
});

test('a long answer to a client that has finished sending is not truncated', async () => {
  const { client, wire } = await tunnel(lab.upstream());
  await client.finish();
  assert.equal(await wire.rest(), '');
  const bytes = 16 * 1024 * 1024;
  void wire.send(Buffer.alloc(bytes, 'x')).then(() => wire.finish());
  assert.equal((await client.bytes(bytes)).length, bytes);
  assert.equal(await client.rest(), '');
});

test('a reset on one side resets the other', async () => {
  const first = await tunnel(lab.upstream());
  first.client.reset();
  assert.equal(await first.wire.ended(), 'reset');
  const second = await tunnel(lab.upstream());
  second.wire.reset();
  assert.equal(await second.client.ended(), 'reset');
});

test('a protocol that is not allowed is taken off the request, h2c above all', async () => {
  const upstream = lab.upstream();
  upstream.serve(({ head }) => ok(head.toLowerCase()));
  const client = await lab.client();
  const offers = [
    ['Connection: Upgrade, HTTP2-Settings', 'Upgrade: h2c', 'HTTP2-Settings: AAMAAABk'],
    ['Connection: upgrade', 'Upgrade: h2c, websocket'],
    ['Connection: upgrade', 'Upgrade: websocket2'],
    ['Connection: upgrade', 'Upgrade: websocket', 'Upgrade: h2c'],
    ['Upgrade: websocket'],
  ];
  for (const fields of offers) {
    await client.send(request('GET /', upstream.host, ...fields));
    const response = await client.response();
    assert.equal(response.status, 200);
    assert.doesNotMatch(response.body, /upgrade|http2-settings|connection:/, fields.join());
  }
});

test('an upstream that declines the upgrade is an ordinary response, and both connections are kept', async () => {
  const upstream = lab.upstream();
  upstream.serve(() => ok('no sockets here'));
  const client = await lab.client();
  for (let i = 0; i < 2; i++) {
    await client.send(request('GET /chat', upstream.host, ...offer));
    assert.equal((await client.response()).body, 'no sockets here');
  }
  assert.equal(upstream.accepted, 1);
});

test('a tunnel in which no byte passes ends after tunnelIdle, on both sides', async () => {
  const { client, wire } = await tunnel(lab.upstream());
  await client.ended();
  await wire.ended();
  await lab.metricBecomes('portcullis_tunnels_open', 0);
});

test('a tunnel in which bytes pass now and then stays open', async () => {
  const { client, wire } = await tunnel(lab.upstream());
  const endMs = Date.now() + 5000;
  await becomes('twice the idle time', async () => {
    await client.send('.');
    assert.equal((await wire.bytes(1)).toString(), '.');
    return Date.now() > endMs;
  });
  assert.equal(client.ending, undefined);
  client.close();
});
