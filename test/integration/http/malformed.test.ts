// Requests that are not acceptable: each is refused with its status, its connection is closed, and
// not one byte reaches an upstream. Request smuggling starts where any of these passes.
// Spec: RFC 9112 §2.2, §3, §5.1, §6.1, §6.3, §11.2; RFC 9110 §15.5, §15.6.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ok, request, startLab } from './support.ts';

const lab = await startLab({
  upstreams: 6,
  // Where HTTP/2 is spoken too, its preface is no error.
  listener: 'protocols: [http/1.1]',
  top: 'limits: {maxRequestHeadSize: 4KiB, maxUriLength: 512B, maxHeaders: 20, maxRequestBodySize: 1KiB}',
});
const upstream = lab.upstream();
const { host } = upstream;
const hidden = request('GET /smuggled', host);

/** What is wrong, and the bytes; the host is one that has a route. */
const bad: [status: number, reason: string, what: string, bytes: string][] = [
  [400, 'DPE', 'no Host', 'GET / HTTP/1.1\r\n\r\n'],
  [400, 'DPE', 'two Hosts', request('GET /', host, `Host: ${host}`)],
  [400, 'DPE', 'a Host with a path', request('GET /', `${host}/x`)],
  [400, 'DPE', 'a Host with userinfo', request('GET /', `user@${host}`)],
  [400, 'DPE', 'a Host with a space', request('GET /', `${host} other`)],
  [400, 'DPE', 'two lengths', `${request('POST /', host, 'Content-Length: 3', 'Content-Length: 4')}abcd`],
  [400, 'DPE', 'two equal lengths', `${request('POST /', host, 'Content-Length: 3', 'Content-Length: 3')}abc`],
  [400, 'DPE', 'a list of lengths', `${request('POST /', host, 'Content-Length: 3, 3')}abc`],
  [400, 'DPE', 'a signed length', `${request('POST /', host, 'Content-Length: +3')}abc`],
  [400, 'DPE', 'a hexadecimal length', `${request('POST /', host, 'Content-Length: 0x3')}abc`],
  [400, 'DPE', 'an empty length', request('POST /', host, 'Content-Length:')],
  [400, 'DPE', 'a length beyond counting', request('POST /', host, 'Content-Length: 99999999999999999999')],
  [
    400,
    'DPE',
    'length and chunks',
    `${request('POST /', host, 'Content-Length: 5', 'Transfer-Encoding: chunked')}0\r\n\r\n${hidden}`,
  ],
  [
    400,
    'DPE',
    'chunks twice',
    `${request('POST /', host, 'Transfer-Encoding: chunked', 'Transfer-Encoding: chunked')}0\r\n\r\n`,
  ],
  [400, 'DPE', 'chunks not last', request('POST /', host, 'Transfer-Encoding: chunked, gzip')],
  [400, 'DPE', 'identity', `${request('POST /', host, 'Transfer-Encoding: identity')}${hidden}`],
  [400, 'DPE', 'vertical tab', `${request('POST /', host, 'Transfer-Encoding: \x0bchunked')}0\r\n\r\n${hidden}`],
  [400, 'DPE', 'chunks in HTTP/1.0', `POST / HTTP/1.0\r\nHost: ${host}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n`],
  [400, 'DPE', 'a space before the colon', request('POST /', host, 'Content-Length : 3')],
  [400, 'DPE', 'a folded line', request('GET /', host, 'X-A: 1', ' folded')],
  [400, 'DPE', 'a folded first line', `GET / HTTP/1.1\r\n Host: ${host}\r\nHost: ${host}\r\n\r\n`],
  [400, 'DPE', 'a line without a colon', request('GET /', host, 'X-A')],
  [400, 'DPE', 'a field without a name', request('GET /', host, ': 1')],
  [400, 'DPE', 'a name with a bracket', request('GET /', host, 'X(A): 1')],
  [400, 'DPE', 'a zero byte in a value', request('GET /', host, 'X-A: a\0b')],
  [400, 'DPE', 'a bare CR in a value', request('GET /', host, 'X-A: a\rContent-Length: 3')],
  [400, 'DPE', 'bare LFs', `GET / HTTP/1.1\nHost: ${host}\n\n`],
  [400, 'DPE', 'one bare LF', `GET / HTTP/1.1\r\nHost: ${host}\nX-A: 1\r\n\r\n`],
  [400, 'DPE', 'two spaces', `GET  / HTTP/1.1\r\nHost: ${host}\r\n\r\n`],
  [400, 'DPE', 'a tab', `GET\t/ HTTP/1.1\r\nHost: ${host}\r\n\r\n`],
  [400, 'DPE', 'a space in the target', `GET /a b HTTP/1.1\r\nHost: ${host}\r\n\r\n`],
  [400, 'DPE', 'a fragment', `GET /a#b HTTP/1.1\r\nHost: ${host}\r\n\r\n`],
  [400, 'DPE', 'no slash', `GET a HTTP/1.1\r\nHost: ${host}\r\n\r\n`],
  [400, 'DPE', 'an asterisk', `GET * HTTP/1.1\r\nHost: ${host}\r\n\r\n`],
  [400, 'DPE', 'another scheme', `GET ftp://${host}/ HTTP/1.1\r\nHost: ${host}\r\n\r\n`],
  [400, 'DPE', 'HTTP/0.9', 'GET /\r\n\r\n'],
  [400, 'DPE', 'a version in lower case', `GET / http/1.1\r\nHost: ${host}\r\n\r\n`],
  [400, 'DPE', 'a method with a colon', `GE:T / HTTP/1.1\r\nHost: ${host}\r\n\r\n`],
  [400, 'DPE', 'TLS', '\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03'],
  [400, 'DPE', 'Connection naming Host', request('GET /', host, 'Connection: host')],
  [
    400,
    'DPE',
    'Connection naming Content-Length',
    `${request('POST /', host, 'Content-Length: 1', 'Connection: content-length')}a`,
  ],
  [505, 'DPE', 'HTTP/2.0', `GET / HTTP/2.0\r\nHost: ${host}\r\n\r\n`],
  [505, 'DPE', 'the preface of HTTP/2', 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'],
  [417, 'DPE', 'an unknown expectation', request('GET /', host, 'Expect: the-unexpected')],
  [501, 'NI', 'an unknown coding', request('POST /', host, 'Transfer-Encoding: gzip, chunked')],
  [501, 'NI', 'an endless method', `${'M'.repeat(40)} / HTTP/1.1\r\nHost: ${host}\r\n\r\n`],
  [414, 'RQL', 'a long target', request(`GET /${'x'.repeat(512)}`, host)],
  [431, 'RQL', 'a long head', request('GET /', host, `X-A: ${'x'.repeat(4096)}`)],
  [431, 'RQL', 'many fields', request('GET /', host, ...Array.from({ length: 20 }, (_, i) => `X-${i}: 1`))],
];

for (const [status, reason, what, bytes] of bad) {
  test(`${what} gives ${status}, the end of the connection, and nothing upstream`, async () => {
    const client = await lab.client();
    await client.send(bytes + hidden);
    const response = await client.response();
    assert.equal(response.status, status, response.body);
    assert.equal(response.value('x-reason'), reason);
    assert.equal(response.value('connection'), 'close');
    assert.ok(response.value('x-request-id'), 'an id to ask about');
    assert.equal(await client.rest(), '');
    assert.equal(client.ending, 'fin');
    assert.equal(upstream.accepted, 0);
  });
}

test('a request that is bad in its middle is refused before its end has come', async () => {
  const client = await lab.client();
  await client.send(`GET / HTTP/1.1\r\nHost: ${host}\r\nBad Name: 1\r\n`);
  assert.equal((await client.response()).status, 400);
  assert.equal(upstream.accepted, 0);
});

test('a bad request behind a good one is refused after the good one was answered', async () => {
  const good = lab.upstream();
  good.serve(() => ok('good'));
  const client = await lab.client();
  await client.send(`${request('GET /', good.host)}GET / HTTP/1.1\r\nBad Name: 1\r\n\r\n`);
  assert.equal((await client.response()).body, 'good');
  const refused = await client.response();
  assert.equal(refused.status, 400);
  assert.equal(refused.value('connection'), 'close');
  assert.equal(await client.rest(), '');
});

test('an announced body over the limit gives 413 before anything goes upstream', async () => {
  const client = await lab.client();
  await client.send(request('POST /', host, 'Content-Length: 1025'));
  const response = await client.response();
  assert.equal(response.status, 413);
  assert.equal(response.value('x-reason'), 'RQL');
  assert.equal(response.value('connection'), 'close');
  assert.equal(await client.rest(), '');
  assert.equal(upstream.accepted, 0);
});

test('a chunked body that grows over the limit gives 413, and the upstream does not see its end', async () => {
  const own = lab.upstream();
  const client = await lab.client();
  await client.send(`${request('POST /', own.host, 'Transfer-Encoding: chunked')}400\r\n${'x'.repeat(1024)}\r\n`);
  const wire = await own.connection();
  await wire.until(`${'x'.repeat(1024)}\r\n`);
  await client.send('1\r\nx\r\n0\r\n\r\n');
  const response = await client.response();
  assert.equal(response.status, 413);
  assert.equal(response.value('connection'), 'close');
  assert.equal(await wire.ended(), 'reset');
  assert.equal(wire.unread, '');
});

test('what is exactly at a limit passes', async () => {
  const own = lab.upstream();
  own.serve(({ body }) => ok(String(body.length)));
  const client = await lab.client();
  await client.send(request(`GET /${'x'.repeat(511)}`, own.host));
  assert.equal((await client.response()).status, 200);
  await client.send(request('GET /', own.host, ...Array.from({ length: 19 }, (_, i) => `X-${i}: 1`)));
  assert.equal((await client.response()).status, 200);
  await client.send(request('POST /', own.host, 'Content-Length: 1024') + 'x'.repeat(1024));
  assert.equal((await client.response()).body, '1024');
  const start = request('GET /', own.host, 'X-A: ');
  await client.send(request('GET /', own.host, `X-A: ${'x'.repeat(4096 - start.length)}`));
  assert.equal((await client.response()).status, 200);
});
