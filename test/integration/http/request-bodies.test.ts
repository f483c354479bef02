// Request heads and bodies on their way up: framing kept, chunks and trailers, every way to arrive.
// Spec: RFC 9112 §6 (body), §7.1 (chunked); RFC 9110 §6.5 (trailers).

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ok, request, startLab } from './support.ts';
import type { Wire } from './wire.ts';

const lab = await startLab({ upstreams: 12 });

/** Sends byte by byte, each in a segment of its own. */
async function trickle(wire: Wire, text: string): Promise<void> {
  for (const byte of text) await wire.send(byte);
}

test('a head and a body that arrive byte by byte are served like whole ones', async () => {
  const upstream = lab.upstream();
  upstream.serve(({ start, body }) => ok(`${start}|${body}`));
  const client = await lab.client();
  for (let i = 0; i < 2; i++) {
    await trickle(client, `${request('POST /slow', upstream.host, 'X-Long: abcdefgh', 'Content-Length: 5')}hello`);
    assert.equal((await client.response()).body, 'POST /slow HTTP/1.1|hello');
  }
  await trickle(client, request('PUT /c', upstream.host, 'Transfer-Encoding: chunked'));
  await trickle(client, '5;ext="a b"\r\nhello\r\n1\r\n!\r\n0\r\nX-T: 1\r\n\r\n');
  assert.equal((await client.response()).body, 'PUT /c HTTP/1.1|hello!');
});

test('a body with Content-Length goes up with the same length, streamed as it comes', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  await client.send(`${request('POST /', upstream.host, 'Content-Length: 10')}01234`);
  const wire = await upstream.connection();
  const head = await wire.head();
  assert.equal(head.value('content-length'), '10');
  assert.equal(head.value('transfer-encoding'), undefined);
  // The first half is there although the second has not been sent yet.
  assert.equal((await wire.bytes(5)).toString(), '01234');
  await client.send('56789');
  assert.equal((await wire.bytes(5)).toString(), '56789');
  await wire.send(ok('done'));
  assert.equal((await client.response()).body, 'done');
  assert.equal(wire.unread, '');
});

test('a chunked body goes up chunked: extensions are dropped, trailers are kept', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  await client.send(request('POST /', upstream.host, 'Transfer-Encoding: chunked', 'Trailer: X-Sum'));
  await client.send('3;name=value;flag\r\nabc\r\n0000a\r\n0123456789\r\n0\r\nX-Sum: 42\r\nx-more: yes \r\n\r\n');
  const wire = await upstream.connection();
  const received = await wire.request();
  assert.equal(received.value('transfer-encoding'), 'chunked');
  assert.equal(received.value('content-length'), undefined);
  assert.equal(received.body, 'abc0123456789');
  assert.doesNotMatch(received.framed, /name|flag/);
  assert.deepEqual(received.trailers, ['X-Sum: 42', 'x-more: yes']);
  await wire.send(ok('x'));
  assert.equal((await client.response()).status, 200);
});

test('trailers that would change routing, framing or credentials do not go up', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  await client.send(request('POST /', upstream.host, 'Transfer-Encoding: chunked'));
  await client.send(
    '1\r\na\r\n0\r\nAuthorization: Basic eA==\r\nX-Forwarded-For: 6.6.6.6\r\nCookie: a=b\r\nX-Ok: 1\r\n\r\n',
  );
  const wire = await upstream.connection();
  assert.deepEqual((await wire.request()).trailers, ['X-Ok: 1']);
  await wire.send(ok('x'));
  assert.equal((await client.response()).status, 200);
});

test('an empty chunked body stays chunked, and Content-Length: 0 stays as it is', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  await client.send(`${request('POST /', upstream.host, 'Transfer-Encoding: chunked')}0\r\n\r\n`);
  const wire = await upstream.connection();
  const chunked = await wire.request();
  assert.equal(chunked.value('transfer-encoding'), 'chunked');
  assert.equal(chunked.framed, '0\r\n\r\n');
  await wire.send(ok('a'));
  assert.equal((await client.response()).body, 'a');
  await client.send(request('POST /', upstream.host, 'Content-Length: 0'));
  assert.equal((await wire.request()).value('content-length'), '0');
  await wire.send(ok('b'));
  assert.equal((await client.response()).body, 'b');
  await client.send(request('POST /', upstream.host));
  const bare = await wire.request();
  assert.equal(bare.value('content-length'), undefined);
  assert.equal(bare.value('transfer-encoding'), undefined);
  await wire.send(ok('c'));
  assert.equal((await client.response()).body, 'c');
});

test('a GET may carry a body, and it is passed on', async () => {
  const upstream = lab.upstream();
  upstream.serve(({ body }) => ok(body));
  const client = await lab.client();
  await client.send(`${request('GET /search', upstream.host, 'Content-Length: 7')}{"q":1}`);
  assert.equal((await client.response()).body, '{"q":1}');
});

test('a malformed chunk ends the request with 400, and the upstream never sees it complete', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  await client.send(`${request('POST /', upstream.host, 'Transfer-Encoding: chunked')}3\r\nabc\r\n`);
  const wire = await upstream.connection();
  await wire.until('abc\r\n');
  await client.send('zz\r\nevil\r\n0\r\n\r\n');
  const response = await client.response();
  assert.equal(response.status, 400);
  assert.equal(response.value('x-reason'), 'DPE');
  assert.equal(response.value('connection'), 'close');
  assert.equal(await client.rest(), '');
  // The end of the chunks must not be there, nor an end that looks orderly.
  assert.equal(await wire.ended(), 'reset');
  assert.equal(wire.unread, '');
});

test('chunks of many sizes, split anywhere, arrive as the same bytes', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  let body = '';
  let framed = '';
  for (let i = 0; i < 120; i++) {
    const piece = String.fromCharCode(97 + (i % 26)).repeat(1 + ((i * 997) % 3001));
    body += piece;
    framed += `${piece.length.toString(16).toUpperCase()};n=${i}\r\n${piece}\r\n`;
  }
  framed += '0\r\n\r\n';
  await client.send(request('POST /', upstream.host, 'Transfer-Encoding: chunked'));
  for (let at = 0, step = 1; at < framed.length; at += step, step = (step * 7 + 3) % 5003) {
    await client.send(framed.slice(at, at + step));
  }
  const wire = await upstream.connection();
  assert.equal((await wire.request()).body, body);
  await wire.send(ok('x'));
  assert.equal((await client.response()).status, 200);
});

test('a response that comes before the whole body ends the exchange, and the rest is not taken for a request', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  await client.send(`${request('POST /', upstream.host, 'Content-Length: 100')}abc`);
  const wire = await upstream.connection();
  await wire.until('abc');
  await wire.send(ok('early'));
  const response = await client.response();
  assert.equal(response.body, 'early');
  await client.send(request('GET /smuggled', upstream.host));
  assert.equal(await client.rest(), '');
  await wire.ended();
  assert.equal(wire.unread, '');
  assert.equal(upstream.accepted, 1);
});

test('a body that is cut short never becomes a complete request', async () => {
  const upstream = lab.upstream();
  for (const framing of ['Content-Length: 100', 'Transfer-Encoding: chunked']) {
    const client = await lab.client();
    await client.send(`${request('POST /', upstream.host, framing)}3\r\nabc\r\n`);
    const wire = await upstream.connection();
    await wire.until('abc\r\n');
    client.finish();
    assert.equal(await wire.ended(), 'reset', framing);
    assert.equal(wire.unread, '');
    assert.equal(await client.rest(), '');
  }
});
