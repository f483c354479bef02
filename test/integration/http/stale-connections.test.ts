// Kept upstream connections that turn out to be closed when a request is sent on them.
// A request is sent again only where nothing was answered and it cannot have been acted upon twice.
// Spec: RFC 9112 §9.3.1 (retrying), RFC 9110 §9.2.2 (idempotent methods).

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ok, request, startLab, type Upstream } from './support.ts';
import type { Wire } from './wire.ts';

const lab = await startLab({ upstreams: 16, backend: 'maxRequestsPerConnection: 5' });

/** A client and an upstream connection that has served one request and is kept. */
async function kept(upstream: Upstream): Promise<{ client: Wire; wire: Wire }> {
  const client = await lab.client();
  await client.send(request('GET /first', upstream.host));
  const wire = await upstream.connection();
  await wire.request();
  await wire.send(ok('first'));
  assert.equal((await client.response()).body, 'first');
  return { client, wire };
}

for (const end of ['close', 'reset'] as const) {
  test(`a GET that meets a ${end} on a kept connection is sent again once and succeeds`, async () => {
    const upstream = lab.upstream();
    const { client, wire } = await kept(upstream);
    const retriesBefore = await lab.metric('portcullis_upstream_stale_retries_total');
    await client.send(request('GET /second', upstream.host, 'X-A: 1'));
    const lost = await wire.request();
    wire[end]();
    const retry = await upstream.connection();
    const again = await retry.request();
    // The same request, with the same id: the upstream can tell that it is a repetition.
    assert.equal(again.head, lost.head);
    await retry.send(ok('second'));
    assert.equal((await client.response()).body, 'second');
    assert.equal((await lab.metric('portcullis_upstream_stale_retries_total')) - retriesBefore, 1);
  });

  test(`a POST with a body that meets a ${end} on a kept connection is not sent again`, async () => {
    const upstream = lab.upstream();
    const { client, wire } = await kept(upstream);
    await client.send(`${request('POST /pay', upstream.host, 'Content-Length: 3')}abc`);
    await wire.request();
    wire[end]();
    const response = await client.response();
    assert.equal(response.status, 502);
    assert.equal(response.value('x-reason'), 'UCS');
    await client.send(request('GET /other', upstream.host));
    const next = await upstream.connection();
    assert.equal((await next.request()).start, 'GET /other HTTP/1.1');
    await next.send(ok('x'));
    assert.equal((await client.response()).status, 200);
    assert.equal(upstream.accepted, 2);
  });
}

test('a POST without a body, once it was sent, is not sent again either', async () => {
  const upstream = lab.upstream();
  const { client, wire } = await kept(upstream);
  await client.send(request('POST /pay', upstream.host));
  await wire.request();
  wire.close();
  const response = await client.response();
  assert.equal(response.status, 502);
  assert.equal(response.value('x-reason'), 'UCS');
  assert.equal(upstream.accepted, 1);
});

test('a PUT whose body has gone is not sent again, although it is idempotent: the body is not kept', async () => {
  const upstream = lab.upstream();
  const { client, wire } = await kept(upstream);
  await client.send(`${request('PUT /x', upstream.host, 'Content-Length: 3')}abc`);
  await wire.request();
  wire.close();
  assert.equal((await client.response()).value('x-reason'), 'UCS');
  assert.equal(upstream.accepted, 1);
});

test('a GET is not sent again when the kept connection had begun to answer', async () => {
  const upstream = lab.upstream();
  const { client, wire } = await kept(upstream);
  await client.send(request('GET /second', upstream.host));
  await wire.request();
  await wire.send('HTTP/1.1 200 OK\r\nContent-');
  wire.close();
  const response = await client.response();
  assert.equal(response.status, 502);
  assert.equal(upstream.accepted, 1);
});

test('a GET is sent again once only, and a new connection that fails gives 502', async () => {
  const upstream = lab.upstream();
  const { client, wire } = await kept(upstream);
  await client.send(request('GET /second', upstream.host));
  await wire.request();
  wire.close();
  const retry = await upstream.connection();
  await retry.request();
  retry.close();
  const response = await client.response();
  assert.equal(response.status, 502);
  assert.equal(response.value('x-reason'), 'UC');
  assert.equal(upstream.accepted, 2);
});

test('a GET that fails on a new connection is not sent again', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  await client.send(request('GET /', upstream.host));
  const wire = await upstream.connection();
  await wire.request();
  wire.close();
  assert.equal((await client.response()).value('x-reason'), 'UC');
  assert.equal(upstream.accepted, 1);
});

test('a POST whose write the kept connection refuses has not been sent, and goes to a new one', async () => {
  const upstream = lab.upstream();
  const { client, wire } = await kept(upstream);
  // Request first, then the reset; the gateway sees both only when it goes on.
  await lab.whileStopped(async () => {
    await client.send(request('POST /pay', upstream.host));
    wire.reset();
  });
  const next = await upstream.connection();
  assert.equal((await next.request()).start, 'POST /pay HTTP/1.1');
  await next.send(ok('paid'));
  assert.equal((await client.response()).body, 'paid');
  assert.equal(upstream.accepted, 2);
});

test('a kept connection that was closed before the request came is not used, whatever the method', async () => {
  const upstream = lab.upstream();
  const { client, wire } = await kept(upstream);
  await lab.losingIdle(() => wire.close());
  await client.send(`${request('POST /pay', upstream.host, 'Content-Length: 3')}abc`);
  const next = await upstream.connection();
  assert.equal((await next.request()).body, 'abc');
  await next.send(ok('paid'));
  assert.equal((await client.response()).body, 'paid');
});

test('an upstream connection is closed after the number of requests that the backend allows', async () => {
  const upstream = lab.upstream();
  const { client, wire } = await kept(upstream);
  for (let i = 2; i <= 5; i++) {
    await client.send(request('GET /', upstream.host));
    await wire.request();
    await wire.send(ok('x'));
    await client.response();
  }
  assert.equal(await wire.ended(), 'fin');
  await client.send(request('GET /sixth', upstream.host));
  const next = await upstream.connection();
  assert.equal((await next.request()).start, 'GET /sixth HTTP/1.1');
  await next.send(ok('x'));
  assert.equal((await client.response()).status, 200);
});
