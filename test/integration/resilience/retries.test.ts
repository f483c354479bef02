// Further attempts over HTTP/1.1: when they are made, what they send, and what the client sees.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { becomes, ok, request, startLab, type Upstream } from '../http/support.ts';
import type { Wire } from '../http/wire.ts';

const lab = await startLab({
  upstreams: 30,
  top: 'accessLog: {path: access.log}',
  rule: 'retry: {attempts: 2, codes: [503], backoff: 1ms, bodyBuffer: 16KiB}, timeouts: {request: 20s, backendRequest: 15s}',
  backend: 'retryBudget: {percent: 100, minPerSecond: 1000}',
});

const NO_SERVICE = 'HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy';

/** The access log line of a request to an upstream; waits for it. */
async function logged(upstream: Upstream): Promise<Record<string, unknown>> {
  let line: string | undefined;
  await becomes(`log line of ${upstream.host}`, async () => {
    const lines = readFileSync(join(lab.directory, 'access.log'), 'utf8').split('\n');
    line = lines.find((text) => text.includes(`"host":"${upstream.host}"`));
    return line !== undefined;
  });
  return JSON.parse(line!);
}

/** A client that has sent something. */
async function asking(text: string): Promise<Wire> {
  const client = await lab.client();
  await client.send(text);
  return client;
}

test('a response with a listed status is replaced by that of a further attempt, on the same connection', async () => {
  const upstream = lab.upstream();
  const client = await asking(request('GET /a?b=c', upstream.host, 'X-A: 1'));
  const wire = await upstream.connection();
  const first = await wire.request();
  await wire.send(NO_SERVICE);
  const second = await wire.request();
  assert.equal(second.head, first.head);
  await wire.send(ok('good'));
  const response = await client.response();
  assert.equal(response.status, 200);
  assert.equal(response.body, 'good');
  const { attempts, retry, attemptFailure, status } = await logged(upstream);
  assert.deepEqual([attempts, retry, attemptFailure, status], [2, 'succeeded', 'status_503', 200]);
  // The client's connection is as good as before.
  await client.send(request('GET /next', upstream.host));
  assert.equal((await wire.request()).start, 'GET /next HTTP/1.1');
  await wire.send(ok('next'));
  assert.equal((await client.response()).body, 'next');
  assert.equal(upstream.accepted, 1);
});

test('when all attempts are used up, the last answer is passed on', async () => {
  const upstream = lab.upstream();
  const client = await asking(request('GET /', upstream.host));
  const wire = await upstream.connection();
  for (const body of ['no1', 'no2', 'no3']) {
    await wire.request();
    await wire.send(`HTTP/1.1 503 No\r\nContent-Length: 3\r\n\r\n${body}`);
  }
  assert.equal((await client.response()).body, 'no3');
  const { attempts, retry, status } = await logged(upstream);
  assert.deepEqual([attempts, retry, status], [3, 'exhausted', 503]);
});

test('a status that is not listed is passed on at once', async () => {
  const upstream = lab.upstream();
  const client = await asking(request('GET /', upstream.host));
  const wire = await upstream.connection();
  await wire.request();
  await wire.send('HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n');
  assert.equal((await client.response()).status, 500);
  const { attempts, retry } = await logged(upstream);
  assert.deepEqual([attempts, retry], [1, null]);
});

test('a response that is not wanted and not whole ends its connection', async () => {
  const upstream = lab.upstream();
  const client = await asking(request('GET /', upstream.host));
  const wire = await upstream.connection();
  await wire.request();
  await wire.send('HTTP/1.1 503 No\r\nContent-Length: 1000000\r\n\r\nbegin');
  const next = await upstream.connection();
  await next.request();
  await next.send(ok('good'));
  assert.equal((await client.response()).body, 'good');
  assert.ok(await wire.ended());
});

for (const end of ['close', 'reset'] as const) {
  test(`a GET whose connection ends with a ${end} before an answer is tried again`, async () => {
    const upstream = lab.upstream();
    const client = await asking(request('GET /', upstream.host));
    const wire = await upstream.connection();
    await wire.request();
    wire[end]();
    const next = await upstream.connection();
    await next.request();
    await next.send(ok('good'));
    assert.equal((await client.response()).body, 'good');
  });
}

test('what has reached the client cannot be tried again', async () => {
  const upstream = lab.upstream();
  const client = await asking(request('GET /', upstream.host));
  const wire = await upstream.connection();
  await wire.request();
  await wire.send('HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf');
  await client.until('half');
  wire.reset();
  assert.ok(await client.ended());
  const { attempts, detail } = await logged(upstream);
  assert.equal(attempts, 1);
  assert.match(String(detail), /upstream_/);
  assert.equal(upstream.accepted, 1);
});

test('a POST that the backend may have acted on is not tried again', async () => {
  const upstream = lab.upstream();
  const client = await asking(`${request('POST /', upstream.host, 'Content-Length: 3')}abc`);
  const wire = await upstream.connection();
  await wire.request();
  await wire.send(NO_SERVICE);
  assert.equal((await client.response()).status, 503);
  const { attempts, retry, attemptFailure } = await logged(upstream);
  assert.deepEqual([attempts, retry, attemptFailure], [1, 'unsafe', 'status_503']);
});

test('a body with a length is sent again whole, also what came in pieces', async () => {
  const upstream = lab.upstream();
  const client = await asking(`${request('PUT /', upstream.host, 'Content-Length: 9000')}${'a'.repeat(3000)}`);
  const wire = await upstream.connection();
  await wire.head();
  await wire.bytes(3000);
  await client.send('b'.repeat(3000));
  await wire.bytes(3000);
  await client.send('c'.repeat(3000));
  await wire.bytes(3000);
  wire.reset();
  const next = await upstream.connection();
  const again = await next.request();
  assert.equal(again.body, 'a'.repeat(3000) + 'b'.repeat(3000) + 'c'.repeat(3000));
  await next.send(ok('good'));
  assert.equal((await client.response()).body, 'good');
});

test('an attempt that begins in the middle of a body goes on with what the client has yet to send', async () => {
  const upstream = lab.upstream();
  const client = await asking(`${request('PUT /', upstream.host, 'Content-Length: 9000')}${'a'.repeat(5000)}`);
  const wire = await upstream.connection();
  await wire.head();
  await wire.bytes(5000);
  wire.reset();
  const next = await upstream.connection();
  await next.head();
  assert.equal((await next.bytes(5000)).toString('latin1'), 'a'.repeat(5000));
  await client.send('b'.repeat(4000));
  assert.equal((await next.bytes(4000)).toString('latin1'), 'b'.repeat(4000));
  await next.send(ok('good'));
  assert.equal((await client.response()).body, 'good');
});

test('a chunked body is sent again with framing of its own, twice if need be', async () => {
  const upstream = lab.upstream();
  const head = request('PUT /', upstream.host, 'Transfer-Encoding: chunked');
  const client = await asking(`${head}5\r\nhello\r\n`);
  for (let attempt = 0; attempt < 2; attempt++) {
    const wire = await upstream.connection();
    await wire.until('hello\r\n');
    wire.reset();
  }
  const last = await upstream.connection();
  await last.until('hello\r\n').then((text) => assert.match(text, /\r\n\r\n5\r\nhello\r\n$/));
  await client.send(`7\r\n, world\r\n0\r\n\r\n`);
  assert.equal(await last.until('0\r\n\r\n'), '7\r\n, world\r\n0\r\n\r\n');
  await last.send(ok('good'));
  assert.equal((await client.response()).body, 'good');
});

test('a whole chunked body, and one without a byte, are sent again with their end', async () => {
  for (const [chunks, body] of [
    ['4\r\nabcd\r\n6\r\nefghij\r\n0\r\n\r\n', 'abcdefghij'] as const,
    ['0\r\n\r\n', ''] as const,
  ]) {
    const upstream = lab.upstream();
    const client = await asking(request('PUT /', upstream.host, 'Transfer-Encoding: chunked') + chunks);
    const wire = await upstream.connection();
    assert.equal((await wire.request()).body, body);
    await wire.send(NO_SERVICE);
    const again = await wire.request();
    assert.equal(again.body, body);
    await wire.send(ok('good'));
    assert.equal((await client.response()).body, 'good');
  }
});

test('a body longer than bodyBuffer is not tried again once it was sent', async () => {
  const upstream = lab.upstream();
  const client = await asking(request('PUT /', upstream.host, 'Content-Length: 20000') + 'x'.repeat(20000));
  const wire = await upstream.connection();
  await wire.request();
  await wire.send(NO_SERVICE);
  assert.equal((await client.response()).status, 503);
  assert.equal((await logged(upstream)).retry, 'body');
});

test('a chunked body that outgrows bodyBuffer is passed on whole, and not tried again', async () => {
  const upstream = lab.upstream();
  const client = await asking(request('PUT /', upstream.host, 'Transfer-Encoding: chunked'));
  const wire = await upstream.connection();
  await wire.head();
  for (const letter of ['a', 'b', 'c']) await client.send(`2000\r\n${letter.repeat(0x2000)}\r\n`);
  await client.send('0\r\n\r\n');
  const text = (await wire.until('0\r\n\r\n')).replace(/\r\n[0-9a-f]*\r\n|^[0-9a-f]+\r\n/g, '');
  assert.equal(text.replace(/[^abc]/g, ''), 'a'.repeat(0x2000) + 'b'.repeat(0x2000) + 'c'.repeat(0x2000));
  await wire.send(NO_SERVICE);
  assert.equal((await client.response()).status, 503);
  assert.equal((await logged(upstream)).retry, 'body');
});

test('Retry-After is waited for, and the request survives a reload meanwhile', async () => {
  const upstream = lab.upstream();
  const client = await asking(request('GET /', upstream.host));
  const wire = await upstream.connection();
  await wire.request();
  await wire.send('HTTP/1.1 503 Later\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n');
  // Connections of other tests may end meanwhile.
  await becomes('an idle connection', async () => {
    const idle = await lab.metric('portcullis_upstream_connections_idle');
    return idle === (await lab.metric('portcullis_upstream_connections_open'));
  });
  lab.gateway.kill('SIGHUP');
  await lab.gateway.log(/info configuration reloaded/);
  await wire.request();
  await wire.send(ok('good'));
  assert.equal((await client.response()).body, 'good');
  assert.ok(Number((await logged(upstream)).durationMs) >= 1000);
});

test('a Retry-After longer than is waited for is passed on', async () => {
  const upstream = lab.upstream();
  const client = await asking(request('GET /', upstream.host));
  const wire = await upstream.connection();
  await wire.request();
  await wire.send('HTTP/1.1 503 Later\r\nRetry-After: 600\r\nContent-Length: 0\r\n\r\n');
  assert.equal((await client.response()).value('retry-after'), '600');
  assert.equal((await logged(upstream)).retry, 'time');
});

test('a client that leaves during the wait ends its request', async () => {
  const upstream = lab.upstream();
  const client = await asking(request('GET /', upstream.host));
  const wire = await upstream.connection();
  await wire.request();
  await wire.send('HTTP/1.1 503 Later\r\nRetry-After: 4\r\nContent-Length: 0\r\n\r\n');
  await lab.metricBecomes('portcullis_requests_in_flight', 1);
  client.reset();
  const { reason, attempts, status } = await logged(upstream);
  assert.deepEqual([reason, attempts, status], ['DC', 1, 0]);
  await lab.metricBecomes('portcullis_requests_in_flight', 0);
});

test('a HEAD request whose body the upstream keeps to itself is tried again', async () => {
  const upstream = lab.upstream();
  const client = await asking(request('HEAD /', upstream.host));
  const wire = await upstream.connection();
  await wire.request();
  await wire.send('HTTP/1.1 503 No\r\nContent-Length: 400\r\n\r\n');
  await wire.request();
  await wire.send('HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n');
  assert.equal((await client.response('HEAD')).status, 200);
});

test('100 Continue may come in each attempt', async () => {
  const upstream = lab.upstream();
  const client = await asking(request('PUT /', upstream.host, 'Content-Length: 2', 'Expect: 100-continue'));
  const wire = await upstream.connection();
  await wire.head();
  await wire.send('HTTP/1.1 100 Continue\r\n\r\n');
  assert.equal((await client.response()).status, 100);
  await client.send('hi');
  await wire.bytes(2);
  await wire.send(NO_SERVICE);
  await wire.head();
  assert.equal((await wire.bytes(2)).toString(), 'hi');
  await wire.send(ok('good'));
  assert.equal((await client.response()).body, 'good');
});
