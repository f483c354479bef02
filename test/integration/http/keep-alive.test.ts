// Persistent client connections: keep-alive of both versions, close, limits and pipelining.
// Spec: RFC 9112 §9.3 (persistence), §9.3.2 (pipelining).

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { normal, ok, request, startLab } from './support.ts';

const lab = await startLab({ upstreams: 10, top: 'limits: {maxRequestsPerConnection: 50}' });

test('an HTTP/1.1 client sends many requests on one connection, and they share one upstream connection', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  upstream.serve(({ start }) => ok(start));
  for (let i = 0; i < 20; i++) {
    await client.send(request(`GET /${i}`, upstream.host));
    const response = await client.response();
    assert.equal(response.body, `GET /${i} HTTP/1.1`);
    assert.equal(response.value('connection'), undefined);
  }
  assert.equal(upstream.accepted, 1);
  assert.equal(client.ending, undefined);
});

test('an HTTP/1.0 client keeps its connection only when it asks, and is told so', async () => {
  const upstream = lab.upstream();
  upstream.serve(() => ok('x'));
  const client = await lab.client();
  for (let i = 0; i < 2; i++) {
    await client.send(`GET / HTTP/1.0\r\nHost: ${upstream.host}\r\nConnection: keep-alive\r\n\r\n`);
    const response = await client.response();
    assert.equal(response.start, 'HTTP/1.1 200 OK');
    assert.equal(response.value('connection'), 'keep-alive');
  }
  await client.send(`GET / HTTP/1.0\r\nHost: ${upstream.host}\r\n\r\n`);
  const last = await client.response();
  assert.equal(last.value('connection'), 'close');
  assert.equal(last.body, 'x');
  assert.equal(await client.ended(), 'fin');
});

test('Connection: close of the client is honoured and does not close the upstream connection', async () => {
  const upstream = lab.upstream();
  upstream.serve(({ start }) => ok(start));
  for (const path of ['/one', '/two']) {
    const client = await lab.client();
    await client.send(request(`GET ${path}`, upstream.host, 'Connection: close'));
    const bytes = normal(await client.rest());
    assert.equal(
      bytes,
      'HTTP/1.1 200 OK\r\ndate: NOW\r\nconnection: close\r\n' +
        `Content-Length: ${13 + path.length}\r\n\r\nGET ${path} HTTP/1.1`,
    );
    assert.equal(client.ending, 'fin');
  }
  assert.equal(upstream.accepted, 1);
});

test('Connection: close of the upstream ends only the upstream connection', async () => {
  const upstream = lab.upstream();
  upstream.serve(() => ok('x', 'Connection: close'));
  const client = await lab.client();
  for (let i = 0; i < 3; i++) {
    await client.send(request('GET /', upstream.host));
    const response = await client.response();
    assert.equal(response.value('connection'), undefined);
    assert.equal(await upstream.wires[i].ended(), 'fin');
  }
  assert.equal(upstream.accepted, 3);
});

test('an HTTP/1.0 upstream is asked in HTTP/1.1 and its connection is used once', async () => {
  const upstream = lab.upstream();
  upstream.serve(({ start }) => `HTTP/1.0 200 OK\r\nContent-Length: ${start.length}\r\n\r\n${start}`);
  const client = await lab.client();
  for (let i = 0; i < 2; i++) {
    await client.send(request('GET /', upstream.host));
    const response = await client.response();
    assert.equal(response.start, 'HTTP/1.1 200 OK');
    assert.equal(response.body, 'GET / HTTP/1.1');
  }
  assert.equal(upstream.accepted, 2);
});

test('pipelined requests with bodies, and with requests for no route in between, are answered in order', async () => {
  const upstream = lab.upstream();
  upstream.serve(({ start, body }) => ok(`${start.split(' ')[1]}:${body}`));
  const client = await lab.client();
  let bytes = '';
  for (let i = 0; i < 10; i++) {
    bytes += `${request(`POST /length/${i}`, upstream.host, 'Content-Length: 5')}abcd${i}`;
    bytes += request(`GET /nowhere/${i}`, 'unknown.test');
    bytes += `${request(`POST /chunked/${i}`, upstream.host, 'Transfer-Encoding: chunked')}2\r\nxy\r\n1\r\n${i}\r\n0\r\n\r\n`;
    bytes += request(`GET /plain/${i}`, upstream.host);
  }
  await client.send(bytes);
  for (let i = 0; i < 10; i++) {
    assert.equal((await client.response()).body, `/length/${i}:abcd${i}`);
    const missing = await client.response();
    assert.equal(missing.status, 404);
    assert.equal(missing.value('x-reason'), 'NR');
    assert.equal((await client.response()).body, `/chunked/${i}:xy${i}`);
    assert.equal((await client.response()).body, `/plain/${i}:`);
  }
  assert.equal(client.unread, '');
  assert.equal(client.ending, undefined);
});

test('a pipelined request waits until the one before it has been answered', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  await client.send(request('GET /first', upstream.host) + request('GET /second', upstream.host));
  const wire = await upstream.connection();
  assert.equal((await wire.request()).start, 'GET /first HTTP/1.1');
  // Another client's whole exchange later, it would have been sent if it was sent ahead of time.
  const other = await lab.client();
  await other.send(request('GET /', 'unknown.test'));
  assert.equal((await other.response()).status, 404);
  assert.equal(wire.unread, '');
  assert.equal(upstream.accepted, 1);
  await wire.send(ok('1'));
  assert.equal((await wire.request()).start, 'GET /second HTTP/1.1');
  await wire.send(ok('2'));
  assert.equal((await client.response()).body, '1');
  assert.equal((await client.response()).body, '2');
});

test('requests pipelined behind a Connection: close are never served', async () => {
  const upstream = lab.upstream();
  const seen: string[] = [];
  upstream.serve(({ start }) => {
    seen.push(start);
    return ok('x');
  });
  const client = await lab.client();
  await client.send(request('GET /last', upstream.host, 'Connection: close') + request('GET /over', upstream.host));
  const bytes = await client.rest();
  assert.equal(bytes.match(/HTTP\/1\.1 200/g)?.length, 1);
  assert.deepEqual(seen, ['GET /last HTTP/1.1']);
});

test('the last request that the limit per connection allows is answered with Connection: close', async () => {
  const upstream = lab.upstream();
  upstream.serve(() => ok('x'));
  const client = await lab.client();
  // One more than allowed, all at once: the last one gets no answer.
  await client.send(request('GET /', upstream.host).repeat(51));
  for (let i = 1; i < 50; i++) assert.equal((await client.response()).value('connection'), undefined);
  const last = await client.response();
  assert.equal(last.status, 200);
  assert.equal(last.value('connection'), 'close');
  assert.equal(await client.rest(), '');
  assert.equal(client.ending, 'fin');
});

test('two empty lines before a request are skipped, as old clients send them after a body', async () => {
  const upstream = lab.upstream();
  upstream.serve(({ body }) => ok(body));
  const client = await lab.client();
  await client.send(`${request('POST /', upstream.host, 'Content-Length: 1')}a\r\n${request('GET /', upstream.host)}`);
  assert.equal((await client.response()).body, 'a');
  assert.equal((await client.response()).status, 200);
});
