// CONNECT: refused by default, a tunnel to the routed backend where the listener allows it.
// Spec: RFC 9110 §9.3.6.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ok, request, startLab } from './support.ts';

const lab = await startLab({ upstreams: 6 });
const open = await startLab({ upstreams: 6, listener: 'allowConnect: true' });

test('CONNECT is refused with 501 by default, and nothing reaches an upstream', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  await client.send(`CONNECT ${upstream.host}:443 HTTP/1.1\r\nHost: ${upstream.host}:443\r\n\r\n`);
  const response = await client.response();
  assert.equal(response.status, 501);
  assert.equal(response.value('x-reason'), 'CR');
  assert.equal(upstream.accepted, 0);
});

test('bytes sent after a refused CONNECT are never taken for a request', async () => {
  const upstream = lab.upstream();
  upstream.serve(() => ok('x'));
  const client = await lab.client();
  // A client that does not wait for the answer already speaks the tunnelled protocol.
  await client.send(
    `CONNECT ${upstream.host}:443 HTTP/1.1\r\nHost: ${upstream.host}:443\r\n\r\n${request('GET /inside', upstream.host)}`,
  );
  assert.equal((await client.response()).status, 501);
  assert.equal(await client.rest(), '');
  assert.equal(upstream.accepted, 0);
});

test('an allowed CONNECT is answered with 200 and no body framing, and then bytes pass both ways', async () => {
  const upstream = open.upstream();
  const client = await open.client();
  await client.send(`CONNECT ${upstream.host}:443 HTTP/1.1\r\nHost: ${upstream.host}:443\r\n\r\n`);
  const wire = await upstream.connection();
  assert.equal(await client.until('\r\n\r\n'), 'HTTP/1.1 200 OK\r\n\r\n');
  await client.send('\x16\x03\x01client');
  assert.equal(await wire.until('client'), '\x16\x03\x01client');
  await wire.send('server');
  assert.equal(await client.until('server'), 'server');
  await client.finish();
  assert.equal(await wire.rest(), '');
  await wire.send('after');
  await wire.finish();
  assert.equal(await client.rest(), 'after');
});

test('bytes that come along with an allowed CONNECT go into the tunnel', async () => {
  const upstream = open.upstream();
  const client = await open.client();
  await client.send(`CONNECT ${upstream.host}:443 HTTP/1.1\r\nHost: ${upstream.host}:443\r\n\r\neager`);
  const wire = await upstream.connection();
  assert.equal(await wire.until('eager'), 'eager');
  assert.equal(await client.until('\r\n\r\n'), 'HTTP/1.1 200 OK\r\n\r\n');
  client.reset();
  assert.equal(await wire.ended(), 'reset');
});

test('CONNECT never uses a kept connection, and its connection is never kept', async () => {
  const upstream = open.upstream();
  const client = await open.client();
  await client.send(request('GET /', upstream.host));
  const first = await upstream.connection();
  await first.request();
  await first.send(ok('x'));
  await client.response();
  await client.send(`CONNECT ${upstream.host}:443 HTTP/1.1\r\nHost: ${upstream.host}:443\r\n\r\n`);
  const second = await upstream.connection();
  await client.until('\r\n\r\n');
  await second.finish();
  await client.finish();
  await second.ended();
  const other = await open.client();
  await other.send(request('GET /next', upstream.host));
  assert.equal((await first.request()).start, 'GET /next HTTP/1.1');
  await first.send(ok('next'));
  assert.equal((await other.response()).body, 'next');
});

test('CONNECT without a route is 404, without a port 400, with content 400', async () => {
  const host = open.upstream().host;
  const cases: [head: string, status: number][] = [
    ['CONNECT unknown.test:443 HTTP/1.1\r\nHost: unknown.test:443\r\n\r\n', 404],
    [`CONNECT ${host} HTTP/1.1\r\nHost: ${host}\r\n\r\n`, 400],
    [`CONNECT ${host}:0 HTTP/1.1\r\nHost: ${host}:0\r\n\r\n`, 400],
    [`CONNECT / HTTP/1.1\r\nHost: ${host}\r\n\r\n`, 400],
    [`CONNECT ${host}:443 HTTP/1.1\r\nHost: ${host}:443\r\nContent-Length: 3\r\n\r\nabc`, 400],
  ];
  for (const [head, status] of cases) {
    const client = await open.client();
    await client.send(head);
    assert.equal((await client.response()).status, status, head);
  }
});
