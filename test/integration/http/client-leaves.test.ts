// Clients that leave, or finish sending, in the middle of an exchange.
// Half-close: see core/exchange/downstream-http1.ts. A FIN while waiting counts as leaving; a FIN that
// comes together with the request's last bytes means "this was my last request".

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ok, request, startLab } from './support.ts';

const lab = await startLab({ upstreams: 10 });

for (const end of ['close', 'finish', 'reset'] as const) {
  test(`a client that ends with "${end}" while the upstream works cancels the request there`, async () => {
    const upstream = lab.upstream();
    const client = await lab.client();
    await client.send(request('GET /work', upstream.host));
    const wire = await upstream.connection();
    await wire.request();
    client[end]();
    assert.equal(await wire.ended(), 'reset');
    await lab.metricBecomes('portcullis_requests_in_flight', 0);
  });
}

test('a client that leaves in the middle of its response cancels the rest of it', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  await client.send(request('GET /big', upstream.host));
  const wire = await upstream.connection();
  await wire.request();
  await wire.send('HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nsome');
  await client.until('some');
  client.close();
  assert.equal(await wire.ended(), 'reset');
});

test('a client that leaves between requests costs the upstream nothing: its connection is used by the next', async () => {
  const upstream = lab.upstream();
  upstream.serve(() => ok('x'));
  for (let i = 0; i < 3; i++) {
    const client = await lab.client();
    await client.send(request('GET /', upstream.host));
    await client.response();
    client.close();
    await client.ended();
  }
  assert.equal(upstream.accepted, 1);
});

test('a FIN that comes together with the request is answered, and ends the connection', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  await lab.whileStopped(async () => {
    await client.send(request('GET /last', upstream.host));
    await client.finish();
  });
  const wire = await upstream.connection();
  await wire.request();
  await wire.send(ok('answer'));
  assert.equal((await client.response()).body, 'answer');
  assert.equal(await client.rest(), '');
  assert.equal(client.ending, 'fin');
});

test('a FIN that comes together with the request does not truncate a long response', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  const bytes = 16 * 1024 * 1024;
  await lab.whileStopped(async () => {
    await client.send(request('GET /last', upstream.host));
    await client.finish();
  });
  const wire = await upstream.connection();
  await wire.request();
  void wire.send(`HTTP/1.1 200 OK\r\nContent-Length: ${bytes}\r\n\r\n`);
  void wire.send(Buffer.alloc(bytes, 'x'));
  const head = await client.head();
  assert.equal(head.status, 200);
  assert.equal((await client.bytes(bytes)).length, bytes);
});

test('pipelined requests that come together with a FIN are all answered', async () => {
  const upstream = lab.upstream();
  upstream.serve(({ start }) => ok(start));
  const client = await lab.client();
  await lab.whileStopped(async () => {
    await client.send(request('GET /1', upstream.host) + request('GET /2', upstream.host));
    await client.finish();
  });
  assert.equal((await client.response()).body, 'GET /1 HTTP/1.1');
  assert.equal((await client.response()).body, 'GET /2 HTTP/1.1');
  assert.equal(await client.rest(), '');
});

test('a client that leaves while its request waits for a connection leaves nothing behind', async () => {
  const upstream = lab.upstream();
  await lab.whileStopped(async () => {
    const client = await lab.client();
    await client.send(request('GET /', upstream.host));
    client.reset();
  });
  await lab.metricBecomes('portcullis_requests_in_flight', 0);
  await lab.metricBecomes('portcullis_downstream_connections_open', 0);
});
