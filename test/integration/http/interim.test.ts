// Informational responses end to end: 100 Continue, 102, 103 Early Hints.
// Spec: RFC 9110 §10.1.1 (Expect), §15.2 (1xx); RFC 8297 (103).

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ok, request, startLab } from './support.ts';

const lab = await startLab({ upstreams: 8 });

test('Expect: 100-continue goes to the upstream, whose 100 comes back before the body is sent', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  for (let i = 0; i < 2; i++) {
    await client.send(request('POST /', upstream.host, 'Expect: 100-continue', 'Content-Length: 4'));
    const wire = upstream.wires[0] ?? (await upstream.connection());
    assert.equal((await wire.head()).value('expect'), '100-continue');
    await wire.send('HTTP/1.1 100 Continue\r\n\r\n');
    assert.equal((await client.response()).head, 'HTTP/1.1 100 Continue\r\n\r\n');
    await client.send('body');
    assert.equal((await wire.bytes(4)).toString(), 'body');
    await wire.send(ok('thanks'));
    assert.equal((await client.response()).body, 'thanks');
  }
  assert.equal(upstream.accepted, 1);
});

test('an upstream that refuses instead of continuing is heard, and no body is waited for', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  await client.send(request('POST /', upstream.host, 'Expect: 100-continue', 'Content-Length: 1000000'));
  const wire = await upstream.connection();
  await wire.head();
  await wire.send('HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n');
  const response = await client.response();
  assert.equal(response.status, 401);
  // Whether the client would still have sent the body is unknown, so neither connection can be kept.
  assert.equal(await client.ended(), 'fin');
  await wire.ended();
});

test('a client that does not wait for 100 is served all the same', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  await client.send(`${request('POST /', upstream.host, 'Expect: 100-Continue', 'Content-Length: 4')}body`);
  const wire = await upstream.connection();
  assert.equal((await wire.request()).body, 'body');
  await wire.send(`HTTP/1.1 100 Continue\r\n\r\n${ok('x')}`);
  assert.equal((await client.response()).status, 100);
  assert.equal((await client.response()).status, 200);
});

test('103 Early Hints are relayed at once, with their fields, before the final response exists', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  await client.send(request('GET /', upstream.host));
  const wire = await upstream.connection();
  await wire.request();
  const hints = 'HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n';
  await wire.send(hints);
  assert.equal((await client.response()).head, hints);
  await wire.send(hints.replace('a.css', 'b.css'));
  assert.equal((await client.response()).value('link'), '</b.css>; rel=preload');
  await wire.send(ok('page'));
  assert.equal((await client.response()).body, 'page');
});

test('several informational responses in one segment with the final one keep their order', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  await client.send(request('GET /', upstream.host));
  const wire = await upstream.connection();
  await wire.request();
  await wire.send(
    `HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: <x>\r\nConnection: x-hop\r\nX-Hop: 1\r\n\r\n${ok('end')}`,
  );
  assert.equal((await client.response()).status, 102);
  const hints = await client.response();
  assert.equal(hints.head, 'HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n');
  assert.equal((await client.response()).body, 'end');
});

test('an HTTP/1.0 client gets no informational response, only the final one', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  await client.send(`GET / HTTP/1.0\r\nHost: ${upstream.host}\r\n\r\n`);
  const wire = await upstream.connection();
  await wire.request();
  await wire.send('HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n');
  await wire.send(`HTTP/1.1 100 Continue\r\n\r\n${ok('final')}`);
  const bytes = await client.rest();
  assert.match(bytes, /^HTTP\/1\.1 200 OK\r\n/);
  assert.doesNotMatch(bytes, /HTTP\/1\.1 1\d\d/);
  assert.match(bytes, /\r\n\r\nfinal$/);
});

test('Expect in an HTTP/1.0 request does not reach the upstream', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  await client.send(`POST / HTTP/1.0\r\nHost: ${upstream.host}\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx`);
  const wire = await upstream.connection();
  const received = await wire.request();
  assert.equal(received.start, 'POST / HTTP/1.1');
  assert.equal(received.value('expect'), undefined);
  await wire.send(ok('x'));
  assert.equal((await client.response()).status, 200);
});
