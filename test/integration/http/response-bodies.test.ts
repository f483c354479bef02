// Response bodies on their way down: Content-Length, chunked, close-delimited, and none.
// Spec: RFC 9112 §6.3 (message length), §7.1 (chunked); RFC 9110 §9.3.2 (HEAD), §15.3.5, §15.4.5.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { normal, ok, request, startLab, type Upstream } from './support.ts';
import type { Message, Wire } from './wire.ts';

const lab = await startLab({ upstreams: 16 });

/** Sends one request and lets the upstream answer it with `bytes`; gives its connection. */
async function answered(
  upstream: Upstream,
  client: Wire,
  bytes: string,
  line = 'GET /',
  version = '1.1',
): Promise<Wire> {
  await client.send(request(line, upstream.host).replace('HTTP/1.1', `HTTP/${version}`));
  const wire = await upstream.connection();
  await wire.request();
  await wire.send(bytes);
  return wire;
}

/** Asserts that the connection to the upstream can serve another request. */
async function stillUsable(upstream: Upstream, client: Wire, wire: Wire): Promise<void> {
  await client.send(request('GET /again', upstream.host));
  assert.equal((await wire.request()).start, 'GET /again HTTP/1.1');
  await wire.send(ok('again'));
  assert.equal((await client.response()).body, 'again');
}

test('a body with Content-Length comes down byte for byte', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  const body = String.fromCharCode(...Array.from({ length: 256 }, (_, byte) => byte));
  const wire = await answered(upstream, client, ok(body, 'Date: then', 'X-A: 1'));
  const head = 'HTTP/1.1 200 OK\r\nDate: then\r\nX-A: 1\r\nContent-Length: 256\r\n\r\n';
  assert.equal((await client.bytes(head.length + 256)).toString('latin1'), head + body);
  await stillUsable(upstream, client, wire);
});

test('a chunked body comes down chunked: extensions are dropped, trailers are kept', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  const wire = await answered(
    upstream,
    client,
    'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n' +
      '5;a=b\r\nhello\r\n6;c="d;e"\r\n world\r\n0;last\r\nX-Sum: 7\r\nSet-Cookie: no=1\r\n\r\n',
  );
  const response = await client.response();
  assert.equal(response.value('transfer-encoding'), 'chunked');
  assert.equal(response.body, 'hello world');
  assert.doesNotMatch(response.framed, /a=b|d;e|last/);
  assert.deepEqual(response.trailers, ['X-Sum: 7']);
  await stillUsable(upstream, client, wire);
});

test('every piece of a chunked response is passed on when it comes', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  const wire = await answered(upstream, client, 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n');
  await client.head();
  for (const event of ['data: 1\n\n', 'data: 2\n\n', 'data: 3\n\n']) {
    await wire.send(`${event.length.toString(16)}\r\n${event}\r\n`);
    assert.match(await client.until('\n\n'), new RegExp(`^(\\r\\n)?9\\r\\n${event}$`));
  }
  await wire.send('0\r\n\r\n');
  assert.equal(await client.until('0\r\n\r\n'), '\r\n0\r\n\r\n');
  await stillUsable(upstream, client, wire);
});

test('a close-delimited body becomes chunked for an HTTP/1.1 client, whose connection is kept', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  const wire = await answered(upstream, client, 'HTTP/1.1 200 OK\r\n\r\npart one, ');
  await client.until('part one, ');
  await wire.send('part two');
  wire.finish();
  await client.until('part two');
  assert.equal(await client.until('0\r\n\r\n'), '\r\n0\r\n\r\n');
  await client.send(request('GET /again', upstream.host));
  const next = await upstream.connection();
  await next.request();
  await next.send('HTTP/1.0 200 OK\r\n\r\nall at once');
  next.finish();
  const response = await client.response();
  assert.equal(response.value('transfer-encoding'), 'chunked');
  assert.equal(response.body, 'all at once');
});

test('a close-delimited and a chunked body end an HTTP/1.0 connection, without chunks', async () => {
  const upstream = lab.upstream();
  const first = await lab.client();
  const wire = await answered(upstream, first, 'HTTP/1.1 200 OK\r\n\r\nhello', 'GET /', '1.0');
  wire.finish();
  const expected = 'HTTP/1.1 200 OK\r\ndate: NOW\r\nconnection: close\r\n\r\nhello';
  assert.equal(normal(await first.rest()), expected);
  assert.equal(first.ending, 'fin');

  const second = await lab.client();
  await answered(
    upstream,
    second,
    'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\nX-T: 1\r\n\r\n',
    'GET /',
    '1.0',
  );
  assert.equal(normal(await second.rest()), expected);
  assert.equal(second.ending, 'fin');
});

test('an HTTP/1.0 client that asks for keep-alive gets a close where the length is not known', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  await client.send(`GET / HTTP/1.0\r\nHost: ${upstream.host}\r\nConnection: keep-alive\r\n\r\n`);
  const wire = await upstream.connection();
  await wire.request();
  await wire.send('HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n');
  const response = await client.response();
  assert.equal(response.value('connection'), 'close');
  assert.equal(response.body, 'hi');
  assert.equal(client.ending, 'fin');
});

test('HEAD gets the length of the body that GET would have, and no body', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  const wire = await answered(upstream, client, 'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n', 'HEAD /');
  const response = await client.response('HEAD');
  assert.equal(response.value('content-length'), '1000');
  await stillUsable(upstream, client, wire);
});

test('HEAD of a chunked response has no body either', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  const wire = await answered(upstream, client, 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n', 'HEAD /');
  assert.equal((await client.response('HEAD')).status, 200);
  await stillUsable(upstream, client, wire);
});

test('204 and 304 have no body, and a 304 keeps the length that it names', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  const wire = await answered(upstream, client, 'HTTP/1.1 204 No Content\r\nX-A: 1\r\n\r\n');
  const none = await client.response();
  assert.equal(normal(none.head), 'HTTP/1.1 204 No Content\r\ndate: NOW\r\nX-A: 1\r\n\r\n');
  await client.send(request('GET /', upstream.host));
  await wire.request();
  await wire.send('HTTP/1.1 304 Not Modified\r\nContent-Length: 4711\r\nETag: "e"\r\n\r\n');
  const unchanged = await client.response();
  assert.equal(unchanged.value('content-length'), '4711');
  assert.equal(unchanged.value('etag'), '"e"');
  await stillUsable(upstream, client, wire);
});

test('a 204 with a length or chunks in its head loses them, since it must not have any', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  const wire = await answered(upstream, client, 'HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n');
  const response = await client.response();
  assert.equal(response.value('content-length'), undefined);
  assert.equal(response.value('transfer-encoding'), undefined);
  await stillUsable(upstream, client, wire);
});

test('an empty body ends at once with every framing', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  const wire = await answered(upstream, client, ok(''));
  assert.equal((await client.response()).body, '');
  await client.send(request('GET /', upstream.host));
  await wire.request();
  await wire.send('HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n');
  assert.equal((await client.response()).framed, '0\r\n\r\n');
  await client.send(request('GET /', upstream.host));
  await wire.request();
  await wire.send('HTTP/1.1 200 OK\r\n\r\n');
  wire.finish();
  const response = await client.response();
  assert.equal(response.value('transfer-encoding'), 'chunked');
  assert.equal(response.framed, '0\r\n\r\n');
});

test('a response that arrives byte by byte is the same response', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  await client.send(request('GET /', upstream.host));
  const wire = await upstream.connection();
  await wire.request();
  const bytes = 'HTTP/1.1 200 OK\r\nX-A: 1\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\nX-T: 2\r\n\r\n';
  for (const byte of bytes) await wire.send(byte);
  const response: Message = await client.response();
  assert.equal(response.value('x-a'), '1');
  assert.equal(response.body, 'hello');
  assert.deepEqual(response.trailers, ['X-T: 2']);
  await stillUsable(upstream, client, wire);
});

test('an unknown status and an empty reason phrase are passed on', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  const wire = await answered(upstream, client, 'HTTP/1.1 299 \r\nContent-Length: 1\r\n\r\nx');
  const response = await client.response();
  assert.equal(response.start, 'HTTP/1.1 299 ');
  await stillUsable(upstream, client, wire);
});
