// Hedging: when a second attempt is sent, whose answer the client gets, and what becomes of the other.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { LATENCY_SAMPLES_MIN } from '../../../core/lb/latency-quantile.ts';
import { becomes, ok, request, startLab, type Upstream } from '../http/support.ts';
import type { Wire } from '../http/wire.ts';
import { Type } from '../http2/frames.ts';
import { accept, response } from '../http2-upstream/support.ts';

const RACE = 'hedge: {delay: 20ms, budgetPercent: 100}';
const lab = await startLab({
  top: 'accessLog: {path: access.log}',
  kinds: {
    t: { upstreams: 16, rule: `${RACE}, timeouts: {request: 15s}` },
    retrying: {
      upstreams: 3,
      rule: `${RACE}, retry: {attempts: 1, codes: [503], backoff: 1ms}, timeouts: {request: 15s}`,
    },
    multiplexed: { upstreams: 3, rule: RACE, backend: 'protocol: h2c' },
    learning: { upstreams: 2, rule: 'hedge: {quantile: 0.9, minDelay: 1ms, budgetPercent: 50}' },
    breaking: { upstreams: 2, rule: RACE, backend: 'circuitBreaker: {maxConnections: 1}' },
    quick: { upstreams: 1, rule: `${RACE}, timeouts: {request: 2s}` },
    tight: { upstreams: 1, rule: 'hedge: {delay: 20ms, budgetPercent: 2}' },
  },
});

const won = 'portcullis_hedges_total{outcome="won"}';
const lost = 'portcullis_hedges_total{outcome="lost"}';
const notMade = 'portcullis_hedges_not_made_total';

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

/** A client that has asked, and the connections of both attempts with their requests read. */
async function race(upstream: Upstream): Promise<{ client: Wire; first: Wire; second: Wire }> {
  const client = await lab.client();
  await client.send(request('GET /slow?x=1', upstream.host, 'X-A: 1'));
  const first = await upstream.connection();
  const { head } = await first.request();
  const second = await upstream.connection();
  assert.equal((await second.request()).head, head, 'both attempts ask the same');
  return { client, first, second };
}

test('the answer of a second attempt is used when it comes first, and the first attempt ends', async () => {
  const upstream = lab.upstream();
  const before = await lab.metric(won);
  const { client, first, second } = await race(upstream);
  await second.send(ok('fast'));
  assert.equal((await client.response()).body, 'fast');
  await first.ended();
  const { attempts, retry, status } = await logged(upstream);
  assert.deepEqual([attempts, retry, status], [2, 'hedge_won', 200]);
  assert.equal(await lab.metric(won), before + 1);
  // Both the client's connection and that of the second attempt are as good as before.
  await client.send(request('GET /next', upstream.host));
  assert.equal((await second.request()).start, 'GET /next HTTP/1.1');
  await second.send(ok('next'));
  assert.equal((await client.response()).body, 'next');
});

test('a long answer of a second attempt comes whole, however it is cut', async () => {
  const upstream = lab.upstream();
  const { client, second } = await race(upstream);
  await second.send('HTTP/1.1 200 OK\r\nTransfer-');
  const answer = client.response();
  await second.send('Encoding: chunked\r\n\r\n5\r\nhello');
  for (let i = 0; i < 40; i++) await second.send(`\r\n2710\r\n${'x'.repeat(10_000)}`);
  await second.send('\r\n0\r\n\r\n');
  assert.equal((await answer).body, `hello${'x'.repeat(400_000)}`);
});

test('the answer of the first attempt is used when it comes first, and the second attempt ends', async () => {
  const upstream = lab.upstream();
  const before = await lab.metric(lost);
  const { client, first, second } = await race(upstream);
  await first.send(ok('after all'));
  assert.equal((await client.response()).body, 'after all');
  await second.ended();
  const { attempts, retry } = await logged(upstream);
  assert.deepEqual([attempts, retry], [2, 'hedge_lost']);
  assert.equal(await lab.metric(lost), before + 1);
});

test('an answer that has begun may take longer than the time after which there would have been a second attempt', async () => {
  const upstream = lab.upstream();
  const [client, other] = [await lab.client(), await lab.client()];
  await client.send(request('GET /begun', upstream.host));
  const first = await upstream.connection();
  await first.request();
  await first.send('HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf');
  // A later request is hedged: the time of the first one has come and gone.
  await other.send(request('GET /other', upstream.host));
  const later = await upstream.connection();
  await later.request();
  const second = await upstream.connection();
  await second.request();
  await second.send(ok('other'));
  await first.send('half');
  assert.equal((await client.response()).body, 'halfhalf');
  assert.equal((await other.response()).body, 'other');
});

test('requests that are not safe, or have a body, are not sent twice', async () => {
  const upstream = lab.upstream();
  const [posting, sending, asking] = [await lab.client(), await lab.client(), await lab.client()];
  await posting.send(request('POST /', upstream.host, 'Content-Length: 0'));
  const post = await upstream.connection();
  await post.request();
  await sending.send(`${request('GET /', upstream.host, 'Content-Length: 2')}ab`);
  const withBody = await upstream.connection();
  await withBody.request();
  await asking.send(request('GET /', upstream.host));
  const plain = await upstream.connection();
  await plain.request();
  // Their second attempts would have been due before this one.
  const second = await upstream.connection();
  assert.equal((await second.request()).start, 'GET / HTTP/1.1');
  for (const wire of [post, withBody, second]) await wire.send(ok('done'));
  for (const client of [posting, sending, asking]) assert.equal((await client.response()).body, 'done');
  assert.equal(upstream.accepted, 4);
});

test('a second attempt that is answered with an error is dropped', async () => {
  const upstream = lab.upstream();
  const { client, first, second } = await race(upstream);
  await second.send('HTTP/1.1 500 Oops\r\nContent-Length: 3\r\n\r\nbad');
  await second.ended();
  await first.send(ok('good'));
  assert.equal((await client.response()).body, 'good');
});

for (const [what, fail] of [
  ['is answered with an error', (wire: Wire) => wire.send('HTTP/1.1 502 Oops\r\nContent-Length: 3\r\n\r\nbad')],
  ['is reset', async (wire: Wire) => wire.reset()],
  ['is closed', async (wire: Wire) => wire.close()],
] as const) {
  test(`when the first attempt ${what} meanwhile, the second takes its place`, async () => {
    const upstream = lab.upstream();
    const { client, first, second } = await race(upstream);
    await fail(first);
    await first.ended();
    await second.send(ok('good'));
    assert.equal((await client.response()).body, 'good');
    assert.equal((await logged(upstream)).status, 200);
    assert.equal(upstream.accepted, 2);
  });
}

test('when both attempts fail the client is told so, once', async () => {
  const upstream = lab.upstream();
  const { client, first, second } = await race(upstream);
  first.reset();
  await first.ended();
  second.reset();
  const answer = await client.response();
  assert.equal(answer.status, 502);
  const { attempts, retry } = await logged(upstream);
  assert.deepEqual([attempts, retry], [2, null]);
});

test('a client that leaves ends both attempts', async () => {
  const upstream = lab.upstream();
  const { client, first, second } = await race(upstream);
  client.close();
  await Promise.all([first.ended(), second.ended()]);
});

test('a request that runs out of time ends both attempts', async () => {
  const upstream = lab.upstream('quick');
  const { client, first, second } = await race(upstream);
  assert.equal((await client.response()).status, 504);
  await Promise.all([first.ended(), second.ended()]);
});

test('an informational response of the first attempt does not decide', async () => {
  const upstream = lab.upstream();
  const { client, first, second } = await race(upstream);
  await first.send('HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n');
  assert.equal((await client.head()).status, 103);
  await second.send(ok('fast'));
  assert.equal((await client.response()).body, 'fast');
});

test('retries begin when both attempts have failed', async () => {
  const upstream = lab.upstream('retrying');
  const { client, first, second } = await race(upstream);
  await first.send('HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nno');
  await first.ended();
  await second.send('HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nno');
  // Its connection is as good as before.
  await second.request();
  await second.send(ok('third'));
  assert.equal((await client.response()).body, 'third');
  const { attempts, retry } = await logged(upstream);
  assert.deepEqual([attempts, retry], [3, 'succeeded']);
});

test('a status that is not retried is an answer, whichever attempt it comes from', async () => {
  const upstream = lab.upstream('retrying');
  const { client, first, second } = await race(upstream);
  await second.send('HTTP/1.1 500 Oops\r\nContent-Length: 3\r\n\r\nbad');
  assert.equal((await client.response()).status, 500);
  await first.ended();
});

test('over HTTP/2, the attempt that is not needed is cancelled, and its connection stays', async () => {
  const upstream = lab.upstream('multiplexed');
  const client = await lab.client();
  await client.send(request('GET /', upstream.host));
  const server = await accept(upstream);
  const first = await server.request();
  const second = await server.request();
  assert.deepEqual([first.stream, second.stream], [1, 3]);
  assert.deepEqual(second.fields, first.fields);
  await server.send(...response(3, 'fast'));
  assert.equal((await client.response()).body, 'fast');
  assert.equal((await server.next(Type.RST_STREAM)).stream, 1);
  await client.send(request('GET /next', upstream.host));
  const next = await server.request();
  await server.send(...response(next.stream, 'next'));
  assert.equal((await client.response()).body, 'next');
  assert.equal(upstream.accepted, 1);
});

test('over HTTP/2, the first attempt wins and the second is cancelled', async () => {
  const upstream = lab.upstream('multiplexed');
  const client = await lab.client();
  await client.send(request('GET /', upstream.host));
  const server = await accept(upstream);
  await server.request();
  await server.request();
  await server.send(...response(1, 'first'));
  assert.equal((await client.response()).body, 'first');
  assert.equal((await server.next(Type.RST_STREAM)).stream, 3);
});

test('when the connection of both streams is lost, the request is sent again on a new one', async () => {
  const upstream = lab.upstream('multiplexed');
  const client = await lab.client();
  await client.send(request('GET /', upstream.host));
  const server = await accept(upstream);
  await server.request();
  await server.request();
  upstream.wires[0]!.reset();
  const next = await accept(upstream);
  await next.respond((await next.request()).stream, 'again');
  assert.equal((await client.response()).body, 'again');
});

test('with a quantile, a rule learns how long its requests take before it hedges', async () => {
  const upstream = lab.upstream('learning');
  const client = await lab.client();
  const first = lab.client();
  await client.send(request('GET /', upstream.host));
  const wire = await upstream.connection();
  // Not one of these is hedged, however slow: nothing is known yet.
  for (let i = 0; i < LATENCY_SAMPLES_MIN; i++) {
    if (i > 0) await client.send(request('GET /', upstream.host));
    await wire.request();
    await wire.send(ok('quick'));
    await client.response();
  }
  assert.equal(upstream.accepted, 1);
  const slow = await first;
  await slow.send(request('GET /slow', upstream.host));
  assert.equal((await wire.request()).start, 'GET /slow HTTP/1.1');
  const second = await upstream.connection();
  assert.equal((await second.request()).start, 'GET /slow HTTP/1.1');
  await second.send(ok('fast'));
  assert.equal((await slow.response()).body, 'fast');
});

test('a second attempt beyond the budget is not made', async () => {
  const upstream = lab.upstream('tight');
  const before = await lab.metric(notMade);
  const { client, first, second } = await race(upstream);
  await client.send(request('GET /pipelined', upstream.host));
  await first.send(ok('slow'));
  await second.ended();
  assert.equal((await client.response()).body, 'slow');
  await first.request();
  await lab.metricBecomes(notMade, before + 1);
  await first.send(ok('slow again'));
  assert.equal((await client.response()).body, 'slow again');
  assert.equal(upstream.accepted, 2);
});

test('a second attempt does not wait for a connection that the circuit breaker does not allow', async () => {
  const upstream = lab.upstream('breaking');
  const client = await lab.client();
  await client.send(request('GET /', upstream.host));
  const wire = await upstream.connection();
  await wire.request();
  await lab.metricBecomes(
    `portcullis_circuit_breaker_overflows_total{backend="${upstream.host}",priority="default",limit="maxConnections"}`,
    1,
  );
  await wire.send(ok('slow'));
  assert.equal((await client.response()).body, 'slow');
  assert.equal(upstream.accepted, 1);
});
