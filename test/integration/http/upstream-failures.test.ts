// Upstreams that fail in the middle of an exchange: a truncated response never looks complete, and
// bytes of one response never reach the client of another.
// Spec: RFC 9112 §8 (incomplete messages), §9.5 (failures), RFC 9110 §15.6.3 (502).

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ok, request, startLab, type Upstream } from './support.ts';
import type { Wire } from './wire.ts';

const lab = await startLab({ upstreams: 20 });

/** Sends a request and gives the upstream's connection, on which the request has arrived. */
async function begun(upstream: Upstream, client: Wire, version = '1.1'): Promise<Wire> {
  await client.send(request('GET /', upstream.host).replace('HTTP/1.1', `HTTP/${version}`));
  const wire = await upstream.connection();
  await wire.request();
  return wire;
}

/** Asserts that the client, whose connection is kept, is served over a new upstream connection. */
async function servedAfresh(upstream: Upstream, client: Wire): Promise<void> {
  await client.send(request('GET /fresh', upstream.host));
  const wire = await upstream.connection();
  assert.equal((await wire.request()).start, 'GET /fresh HTTP/1.1');
  await wire.send(ok('fresh'));
  assert.equal((await client.response()).body, 'fresh');
}

test('an upstream that closes or resets without an answer gives 502 with its reason, and the client is kept', async () => {
  for (const end of ['close', 'finish', 'reset'] as const) {
    const upstream = lab.upstream();
    const client = await lab.client();
    const wire = await begun(upstream, client);
    wire[end]();
    const response = await client.response();
    assert.equal(response.status, 502, end);
    assert.equal(response.value('x-reason'), 'UC');
    assert.equal(response.value('connection'), undefined);
    assert.match(response.body, /^502 Bad Gateway: UC: The upstream closed/);
    await servedAfresh(upstream, client);
  }
});

test('an upstream that closes within its response head gives 502', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  const wire = await begun(upstream, client);
  await wire.send('HTTP/1.1 200 OK\r\nContent-Le');
  wire.close();
  assert.equal((await client.response()).value('x-reason'), 'UC');
  await servedAfresh(upstream, client);
});

test('a Content-Length body that ends early ends the client connection short of its length', async () => {
  for (const end of ['close', 'reset'] as const) {
    const upstream = lab.upstream();
    const client = await lab.client();
    const wire = await begun(upstream, client);
    await wire.send('HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npartial');
    assert.match(await client.until('partial'), /Content-Length: 100/);
    wire[end]();
    assert.equal(await client.rest(), '', end);
  }
});

test('a chunked body that ends early ends the client connection without a last chunk', async () => {
  for (const end of ['close', 'reset'] as const) {
    const upstream = lab.upstream();
    const client = await lab.client();
    const wire = await begun(upstream, client);
    await wire.send('HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7\r\npartial\r\n5\r\nhel');
    await client.until('hel');
    wire[end]();
    const rest = await client.rest();
    assert.doesNotMatch(rest, /0\r\n/, end);
  }
});

test('a close-delimited body that ends in a reset is not ended in order towards the client', async () => {
  const upstream = lab.upstream();
  const modern = await lab.client();
  const wire = await begun(upstream, modern);
  await wire.send('HTTP/1.1 200 OK\r\n\r\npartial');
  await modern.until('partial');
  wire.reset();
  assert.doesNotMatch(await modern.rest(), /0\r\n\r\n/);

  // An HTTP/1.0 client takes a FIN for the end of the body: only a reset can tell it.
  const old = await lab.client();
  const second = await begun(upstream, old, '1.0');
  await second.send('HTTP/1.1 200 OK\r\n\r\npartial');
  await old.until('partial');
  second.reset();
  assert.equal(await old.ended(), 'reset');
});

test('a malformed chunk from the upstream cuts the response', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  const wire = await begun(upstream, client);
  await wire.send('HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n');
  await client.until('abc\r\n');
  await wire.send('nonsense\r\n0\r\n\r\n');
  assert.equal(await client.rest(), '');
  await wire.ended();
});

test('a response that is not HTTP, or framed in two ways, gives 502 and ends the upstream connection', async () => {
  const bad = [
    'SSH-2.0-OpenSSH_9.2\r\n',
    'HTTP/2 200 OK\r\n\r\n',
    'HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n',
    'HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!',
    'HTTP/1.1 200 OK\r\nX-A : 1\r\n\r\n',
    'HTTP/1.1 200 OK\nContent-Length: 0\n\n',
    'HTTP/1.1 200 OK\r\nX-A: 1\r\n folded\r\n\r\n',
    'HTTP/1.1 2000 OK\r\n\r\n',
  ];
  const upstream = lab.upstream();
  const client = await lab.client();
  for (const bytes of bad) {
    const wire = await begun(upstream, client);
    await wire.send(bytes);
    const response = await client.response();
    assert.equal(response.status, 502, bytes);
    assert.equal(response.value('x-reason'), 'UPE', bytes);
    await wire.ended();
  }
});

test('a response head larger than the limit gives 502', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  const wire = await begun(upstream, client);
  await wire.send(`HTTP/1.1 200 OK\r\nX-Big: ${'x'.repeat(40_000)}\r\n\r\n`);
  const response = await client.response();
  assert.equal(response.status, 502);
  assert.equal(response.value('x-reason'), 'UPE');
  await servedAfresh(upstream, client);
});

test('101 that nobody asked for gives 502', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  const wire = await begun(upstream, client);
  await wire.send('HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nsurprise');
  const response = await client.response();
  assert.equal(response.status, 502);
  assert.equal(response.value('x-reason'), 'UPE');
  assert.doesNotMatch(response.body, /surprise/);
  await wire.ended();
  await servedAfresh(upstream, client);
});

test('bytes after a response are thrown away with their connection, and no other request gets them', async () => {
  const poison = 'HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison';
  const firsts = [
    ok('first'),
    'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n0\r\n\r\n',
    'HTTP/1.1 204 No Content\r\n\r\n',
    'HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n',
    ok(''),
  ];
  const upstream = lab.upstream();
  const client = await lab.client();
  for (const first of firsts) {
    const wire = await begun(upstream, client);
    await wire.send(first + poison);
    assert.doesNotMatch((await client.response()).framed, /poison/);
    await wire.ended();
    await servedAfresh(upstream, client);
    await lab.losingIdle(() => upstream.wires.at(-1)!.close());
  }
});

test('a body in answer to HEAD is thrown away with its connection', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  await client.send(request('HEAD /', upstream.host));
  const wire = await upstream.connection();
  await wire.request();
  await wire.send(ok('a body that HEAD must not have'));
  assert.equal((await client.response('HEAD')).status, 200);
  await wire.ended();
  await servedAfresh(upstream, client);
  assert.equal(client.unread, '');
});

test('bytes that nobody asked for close an idle upstream connection', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  const wire = await begun(upstream, client);
  await wire.send(ok('x'));
  assert.equal((await client.response()).status, 200);
  await wire.send('HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison');
  await wire.ended();
  await servedAfresh(upstream, client);
});

test('a 413 that comes while the client still uploads reaches it, and the upload is not read to its end', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  const bytes = 5 * 1024 * 1024;
  await client.send(request('POST /', upstream.host, `Content-Length: ${bytes}`));
  void client.send(Buffer.alloc(bytes, 'x'));
  const wire = await upstream.connection();
  await wire.head();
  wire.socket.pause();
  await wire.send('HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 5\r\n\r\nlarge');
  const response = await client.response();
  assert.equal(response.status, 413);
  assert.equal(response.body, 'large');
  assert.equal(response.value('x-reason'), undefined);
  assert.equal(response.value('connection'), 'close');
  assert.equal(await client.ended(), 'fin');
  wire.close();
});

test('a 413 from an upstream that then closes with the upload unread still reaches the client', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  const bytes = 5 * 1024 * 1024;
  await client.send(request('POST /', upstream.host, `Content-Length: ${bytes}`));
  void client.send(Buffer.alloc(bytes, 'x'));
  const wire = await upstream.connection();
  await wire.head();
  wire.socket.pause();
  await lab.whileStopped(async () => {
    await wire.send('HTTP/1.1 413 Content Too Large\r\nContent-Length: 5\r\n\r\nlarge');
    // Unread bytes turn this close into a reset; answer and reset are there together.
    wire.close();
  });
  const response = await client.response();
  assert.equal(response.status, 413);
  assert.equal(response.body, 'large');
});
