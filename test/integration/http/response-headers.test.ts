// Response heads as they reach the client, byte for byte.
// Spec: RFC 9110 §7.6.1 (hop-by-hop), §6.6.1 (Date), §7.6.3 (Via), §10.2.4 (Server).

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { normal, request, startLab, type Upstream } from './support.ts';

const withServer = 'headers: {via: edge, server: ours}';
const lab = await startLab({ upstreams: 10, top: 'headers: {via: edge}' });

/** Gives the head that the client gets for a response head of the upstream. */
async function relayed(upstream: Upstream, head: string): Promise<string> {
  const client = await lab.client();
  await client.send(request('GET /', upstream.host));
  const wire = await upstream.connection();
  await wire.request();
  await wire.send(head);
  const response = await client.response();
  client.close();
  wire.close();
  await client.ended();
  return normal(response.head);
}

test('fields of the upstream pass in order and spelling; Date and Via are added', async () => {
  const fields = 'X-oDd: 1\r\nSet-Cookie: a=b\r\nServer: theirs\r\nSet-Cookie: c=d\r\nContent-Length: 0\r\n\r\n';
  assert.equal(
    await relayed(lab.upstream(), `HTTP/1.1 200 Fine\r\n${fields}`),
    `HTTP/1.1 200 Fine\r\ndate: NOW\r\nvia: 1.1 edge\r\n${fields}`,
  );
});

test('a Date of the upstream is kept', async () => {
  const fields = 'Date: Tue, 15 Nov 1994 08:12:31 GMT\r\nContent-Length: 0\r\n\r\n';
  assert.equal(
    await relayed(lab.upstream(), `HTTP/1.1 200 OK\r\n${fields}`),
    `HTTP/1.1 200 OK\r\nvia: 1.1 edge\r\n${fields}`,
  );
});

test('a Date that the gateway adds is the present time', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  await client.send(request('GET /', upstream.host));
  const wire = await upstream.connection();
  await wire.request();
  const before = Math.floor(Date.now() / 1000) * 1000;
  await wire.send('HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n');
  const sentMs = Date.parse((await client.response()).value('date')!);
  // The gateway may read its clock half a second late.
  assert.ok(sentMs >= before - 1000 && sentMs <= Date.now(), `${sentMs} is not in ${before}..${Date.now()}`);
});

test('hop-by-hop fields, and those that Connection names, stay on their hop', async () => {
  const head = await relayed(
    lab.upstream(),
    'HTTP/1.1 200 OK\r\nX-First: 1\r\nConnection: keep-alive, x-hop\r\nKeep-Alive: timeout=5\r\nX-Hop: secret\r\n' +
      'Proxy-Connection: keep-alive\r\nUpgrade: h2c\r\nTE: trailers\r\nX-Last: 1\r\nContent-Length: 0\r\n\r\n',
  );
  assert.equal(
    head,
    'HTTP/1.1 200 OK\r\ndate: NOW\r\nvia: 1.1 edge\r\nX-First: 1\r\nX-Last: 1\r\nContent-Length: 0\r\n\r\n',
  );
});

test('an HTTP/1.0 response is relayed as HTTP/1.1, and Via tells the version that was received', async () => {
  assert.equal(
    await relayed(lab.upstream(), 'HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n'),
    'HTTP/1.1 200 OK\r\ndate: NOW\r\nvia: 1.0 edge\r\nContent-Length: 0\r\n\r\n',
  );
});

test('a head of many fields, with dropped ones all through it, is put together right', async () => {
  const kept: string[] = [];
  let head = 'HTTP/1.1 200 OK\r\nConnection: close';
  for (let i = 0; i < 40; i++) head += `, h${i}`;
  head += '\r\n';
  for (let i = 0; i < 40; i++) {
    kept.push(`X-${i}: ${'v'.repeat(i)}`);
    head += `${kept[i]}\r\nH${i}: ${'d'.repeat(40 - i)}\r\n`;
  }
  assert.equal(
    await relayed(lab.upstream(), `${head}Content-Length: 0\r\n\r\n`),
    `HTTP/1.1 200 OK\r\ndate: NOW\r\nvia: 1.1 edge\r\n${kept.join('\r\n')}\r\nContent-Length: 0\r\n\r\n`,
  );
});

test('responses of the gateway itself say who made them, why, and which request it was', async () => {
  const client = await lab.client();
  await client.send(request('GET /', 'unknown.test'));
  const response = await client.response();
  const body =
    '404 Not Found: NR: No route matches this host and path on this listener.\n' +
    `request id: ${response.value('x-request-id')}\n`;
  assert.equal(response.body, body);
  assert.equal(
    normal(response.head),
    'HTTP/1.1 404 Not Found\r\ndate: NOW\r\nserver: portcullis\r\ncontent-type: text/plain; charset=utf-8\r\n' +
      `content-length: ${body.length}\r\nx-request-id: ID\r\nx-reason: NR\r\n\r\n`,
  );
  await client.send(request('HEAD /', 'unknown.test'));
  const head = await client.response('HEAD');
  assert.equal(head.status, 404);
  assert.equal(head.value('content-length'), String(body.length));
  await client.send(request('GET /', 'unknown.test', 'Connection: close'));
  assert.equal((await client.response()).status, 404);
  assert.equal(await client.rest(), '');
});

// Last, since it changes the configuration of the gateway.
test('headers.server replaces the Server of upstreams, and that of generated responses', async () => {
  lab.gateway.configure(lab.config(withServer));
  lab.gateway.kill('SIGHUP');
  await lab.gateway.log(/configuration reloaded epoch=2/);
  assert.equal(
    await relayed(lab.upstream(), 'HTTP/1.1 200 OK\r\nServer: theirs\r\nContent-Length: 0\r\nserver: again\r\n\r\n'),
    'HTTP/1.1 200 OK\r\ndate: NOW\r\nserver: ours\r\nvia: 1.1 edge\r\nContent-Length: 0\r\n\r\n',
  );
  const client = await lab.client();
  await client.send(request('GET /', 'unknown.test'));
  assert.equal((await client.response()).value('server'), 'ours');
});
