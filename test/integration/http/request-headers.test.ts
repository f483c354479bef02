// Request heads as they reach the upstream, byte for byte.
// Spec: RFC 9110 §7.6.1 (hop-by-hop), §7.6.3 (Via), §7.2 (Host); RFC 9112 §3.2 (request target).

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { normal, ok, request, startLab, type Upstream } from './support.ts';

const lab = await startLab({ upstreams: 12, top: 'headers: {via: edge}' });

/** Sends a head and gives the head that the upstream got, with generated parts replaced. */
async function forwarded(upstream: Upstream, head: string): Promise<string> {
  const client = await lab.client();
  await client.send(head);
  const wire = upstream.wires.at(-1) ?? (await upstream.connection());
  const received = await wire.request();
  await wire.send(ok('x'));
  assert.equal((await client.response()).status, 200);
  client.close();
  return normal(received.head);
}

/** The fields that the gateway adds for a request to `host`. */
function added(host: string): string {
  return (
    'x-forwarded-for: 127.0.0.1\r\nx-forwarded-proto: http\r\n' +
    `x-forwarded-host: ${host}\r\nx-request-id: ID\r\nvia: 1.1 edge\r\n\r\n`
  );
}

test('a plain head passes unchanged, in order and spelling, and the gateway adds its own fields', async () => {
  const upstream = lab.upstream();
  const head = `GET /a/b%2Fc?q=1&r=%20 HTTP/1.1\r\nHost: ${upstream.host}\r\nX-oDd: 1\r\nAccept: */*\r\nX-oDd: 2\r\nX-Empty:\r\n`;
  assert.equal(await forwarded(upstream, `${head}\r\n`), head + added(upstream.host));
});

test('hop-by-hop fields, and those that Connection names, stay on their hop', async () => {
  const upstream = lab.upstream();
  const { host } = upstream;
  const head = await forwarded(
    upstream,
    request(
      'GET /',
      host,
      'X-First: 1',
      'Connection: keep-alive, X-Hop, x-other-hop',
      'Keep-Alive: timeout=5',
      'X-HOP: secret',
      'X-Other-Hop: secret',
      'X-Other-Hop: secret2',
      'Proxy-Connection: keep-alive',
      'Proxy-Authorization: Basic c2VjcmV0',
      'TE: gzip',
      'Upgrade: h2c',
      'HTTP2-Settings: AAMAAABk',
      'X-Last: 1',
    ),
  );
  assert.equal(head, `GET / HTTP/1.1\r\nHost: ${host}\r\nX-First: 1\r\nX-Last: 1\r\n${added(host)}`);
});

test('TE: trailers survives, as a hop-by-hop field of the next hop', async () => {
  const upstream = lab.upstream();
  const head = await forwarded(upstream, request('GET /', upstream.host, 'TE: trailers', 'Connection: TE'));
  assert.equal(
    head,
    `GET / HTTP/1.1\r\nHost: ${upstream.host}\r\nte: trailers\r\nconnection: te\r\n${added(upstream.host)}`,
  );
});

test('end-to-end fields for authentication, cookies and tracing pass', async () => {
  const upstream = lab.upstream();
  const fields = [
    'Authorization: Bearer x',
    'Cookie: a=b',
    'traceparent: 00-a-b-01',
    'Range: bytes=0-1',
    'Via: 1.0 old',
  ];
  const head = await forwarded(upstream, request('GET /', upstream.host, ...fields));
  assert.equal(
    head,
    `${['GET / HTTP/1.1', `Host: ${upstream.host}`, ...fields].join('\r\n')}\r\n${added(upstream.host)}`,
  );
});

test('an absolute-form target decides the host, over the Host field', async () => {
  const upstream = lab.upstream();
  const head = await forwarded(
    upstream,
    `GET http://${upstream.host}:8080/path?q HTTP/1.1\r\nHost: other.test\r\nX-A: 1\r\n\r\n`,
  );
  const host = `${upstream.host}:8080`;
  assert.equal(head, `GET /path?q HTTP/1.1\r\nX-A: 1\r\nhost: ${host}\r\n${added(host)}`);
});

test('an absolute-form target without a path asks for "/", and with OPTIONS for "*"', async () => {
  const upstream = lab.upstream();
  const { host } = upstream;
  const lines = async (head: string): Promise<string> => (await forwarded(upstream, head)).split('\r\n')[0];
  assert.equal(await lines(`GET http://${host} HTTP/1.1\r\nHost: ${host}\r\n\r\n`), 'GET / HTTP/1.1');
  assert.equal(await lines(`GET http://${host}?a=b HTTP/1.1\r\nHost: ${host}\r\n\r\n`), 'GET /?a=b HTTP/1.1');
  assert.equal(await lines(`OPTIONS http://${host} HTTP/1.1\r\nHost: ${host}\r\n\r\n`), 'OPTIONS * HTTP/1.1');
  assert.equal(await lines(request('OPTIONS *', host)), 'OPTIONS * HTTP/1.1');
});

test('Host keeps its port and spelling, and routing ignores both', async () => {
  const upstream = lab.upstream();
  const host = `${upstream.host.toUpperCase()}:8443`;
  assert.equal(await forwarded(upstream, request('GET /', host)), `GET / HTTP/1.1\r\nHost: ${host}\r\n${added(host)}`);
});

test('an HTTP/1.0 head goes up as HTTP/1.1, and Via tells the version that was received', async () => {
  const upstream = lab.upstream();
  const head = await forwarded(upstream, `GET /x HTTP/1.0\r\nHost: ${upstream.host}\r\n\r\n`);
  assert.equal(
    head,
    `GET /x HTTP/1.1\r\nHost: ${upstream.host}\r\n${added(upstream.host).replace('via: 1.1', 'via: 1.0')}`,
  );
});

test('every token is a method, and reaches the upstream', async () => {
  const upstream = lab.upstream();
  for (const method of ['PATCH', 'PROPFIND', 'get', 'M-SEARCH', 'X', 'TRACE']) {
    const head = await forwarded(upstream, request(`${method} /`, upstream.host));
    assert.equal(head.split('\r\n')[0], `${method} / HTTP/1.1`);
  }
});

test('white space around field values is not part of them, and bytes above 127 pass', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  await client.send(request('GET /', upstream.host, 'X-A:\t padded \t', 'X-B: caf\u00e9 \u00ff'));
  const wire = await upstream.connection();
  const received = await wire.request();
  assert.equal(received.value('x-a'), 'padded');
  assert.equal(received.value('x-b'), 'caf\u00e9 \u00ff');
  await wire.send(ok('x'));
  assert.equal((await client.response()).status, 200);
});
