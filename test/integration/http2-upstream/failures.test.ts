// What becomes of requests when an HTTP/2 upstream resets streams, says GOAWAY, breaks rules or disappears.
// Spec: RFC 9113 §5.4 (errors), §6.4 (RST_STREAM), §6.7 (PING), §6.8 (GOAWAY), §8.1 (early answers), §8.7 (retries).

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { request, startLab } from '../http/support.ts';
import { openWire, type Wire } from '../http/wire.ts';
import { block, Code, connectHttp2, Flag, frame, get, Type, word } from '../http2/frames.ts';
import { accept, ask, response, type Server, Setting } from './support.ts';

const lab = await startLab({
  kinds: {
    t: { upstreams: 40, backend: 'protocol: h2c, http2: {maxConnections: 2}' },
    // Only one that means to be given up has little time to answer a PING.
    stuck: { upstreams: 1, backend: 'protocol: h2c, http2: {pingInterval: 200ms, pingTimeout: 300ms}' },
    pinged: { upstreams: 1, backend: 'protocol: h2c, http2: {pingInterval: 200ms, pingTimeout: 20s}' },
  },
});

const { INTERNAL, REFUSED } = { INTERNAL: 2, REFUSED: Code.REFUSED_STREAM };

function rst(stream: number, code: number): Buffer {
  return frame(Type.RST_STREAM, 0, stream, word(code));
}

/** Answers pings, so that a connection which says nothing else lives. */
function keepAlive(server: Server): void {
  const loop = async (): Promise<void> => {
    for (;;) {
      const { payload, flags } = await server.next(Type.PING);
      if ((flags & Flag.ACK) === 0) await server.send(frame(Type.PING, Flag.ACK, 0, payload));
    }
  };
  loop().catch(() => {});
}

for (const method of ['GET', 'POST']) {
  test(`a ${method} that the upstream refuses to act on is sent again`, async () => {
    const upstream = lab.upstream();
    const before = await lab.metric('portcullis_upstream_http2_refused_retries_total');
    const answer = ask(lab, request(`${method} /`, upstream.host));
    const server = await accept(upstream);
    const first = await server.request();
    await server.send(rst(first.stream, REFUSED));
    // On another connection if there may be one.
    const other = await accept(upstream);
    const second = await other.request();
    assert.ok(second.fields.includes(`:method: ${method}`));
    await other.respond(second.stream, 'ok');
    assert.equal((await answer).body, 'ok');
    assert.equal(await lab.metric('portcullis_upstream_http2_refused_retries_total'), before + 1);
  });
}

test('a request is not sent a fourth time, and the reason is named', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  await client.send(request('GET /', upstream.host));
  const serve = async (): Promise<void> => {
    const server = await accept(upstream);
    for (;;) await server.send(rst((await server.request()).stream, REFUSED));
  };
  serve().catch(() => {});
  serve().catch(() => {});
  const message = await client.response();
  assert.equal(message.status, 502);
  assert.equal(message.value('x-reason'), 'UC');
  await client.send(request('GET /', upstream.host));
  await client.response();
});

test('a request whose body is on its way is not sent again', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  await client.send(`${request('PUT /', upstream.host, 'Content-Length: 10')}12345`);
  const server = await accept(upstream);
  const { stream } = await server.head();
  await server.next(Type.DATA, stream);
  await server.send(rst(stream, REFUSED));
  assert.equal((await client.response()).status, 502);
  assert.equal(upstream.accepted, 1);
});

test('another RST_STREAM is answered with 502, or cuts the response that has begun', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  await client.send(request('GET /', upstream.host));
  const server = await accept(upstream);
  await server.send(rst((await server.request()).stream, INTERNAL));
  const message = await client.response();
  assert.equal(message.status, 502);
  assert.equal(message.value('x-reason'), 'UC');

  await client.send(request('GET /', upstream.host));
  const { stream } = await server.request();
  await server.send(
    frame(Type.HEADERS, Flag.END_HEADERS, stream, block([':status', '200'], ['content-length', '100'])),
    frame(Type.DATA, 0, stream, 'part'),
  );
  await client.until('part');
  await server.send(rst(stream, INTERNAL));
  assert.equal(await client.rest(), '');

  // The connection to the upstream has not suffered.
  const next = ask(lab, request('GET /', upstream.host));
  await server.respond((await server.request()).stream, 'ok');
  assert.equal((await next).body, 'ok');
  assert.equal(upstream.accepted, 1);
});

test('a response that is complete before the request ends the request, and is not lost by a reset behind it', async () => {
  const upstream = lab.upstream();
  for (const behind of [[], [0], [8]]) {
    const client = await lab.client();
    await client.send(`${request('POST /', upstream.host, 'Content-Length: 1000')}abc`);
    const server: Server = upstream.accepted === 0 ? await accept(upstream) : early!;
    early = server;
    const { stream } = await server.head();
    await server.send(...response(stream, 'too large', [':status', '413']), ...behind.map((code) => rst(stream, code)));
    const message = await client.response();
    assert.equal(message.status, 413);
    assert.equal(message.body, 'too large');
    if (behind.length === 0) assert.equal(await server.reset(stream), Code.NO_ERROR);
    client.close();
  }
  assert.equal(upstream.accepted, 1);
});
let early: Server | undefined;

test('a client that leaves cancels its stream and not the connection', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  await client.send(request('GET /', upstream.host));
  const server = await accept(upstream);
  const { stream } = await server.request();
  client.close();
  assert.equal(await server.reset(stream), Code.CANCEL);
  const next = ask(lab, request('GET /', upstream.host));
  await server.respond((await server.request()).stream, 'ok');
  assert.equal((await next).body, 'ok');
});

test('GOAWAY: streams above its number go to a new connection, those below end where they are', async () => {
  const upstream = lab.upstream();
  const goaways = await lab.metric('portcullis_upstream_http2_goaways_received_total');
  const clients: Wire[] = [];
  const server = (async () => {
    clients.push(await lab.client());
    await clients[0].send(request('POST /1', upstream.host));
    return accept(upstream);
  })();
  const old = await server;
  const streams = [(await old.request()).stream];
  for (const path of ['/2', '/3']) {
    const client = await lab.client();
    clients.push(client);
    await client.send(request(`POST ${path}`, upstream.host));
    streams.push((await old.request()).stream);
  }
  await old.leave(streams[0]);
  const fresh = await accept(upstream);
  for (let i = 0; i < 2; i++) {
    const { stream, fields } = await fresh.request();
    await fresh.respond(stream, fields.find((line) => line.startsWith(':path'))!);
  }
  assert.equal((await clients[1].response()).body, ':path: /2');
  assert.equal((await clients[2].response()).body, ':path: /3');
  await old.respond(streams[0], 'from the old one');
  assert.equal((await clients[0].response()).body, 'from the old one');
  // The old connection has no streams any more: the gateway says goodbye and closes it.
  await old.next(Type.GOAWAY);
  assert.equal(await old.wire.ended(), 'fin');
  const next = ask(lab, request('GET /', upstream.host));
  await fresh.respond((await fresh.request()).stream, 'ok');
  assert.equal((await next).body, 'ok');
  assert.equal(await lab.metric('portcullis_upstream_http2_goaways_received_total'), goaways + 1);
});

test('GOAWAY on an idle connection: the next request opens a new one', async () => {
  const upstream = lab.upstream();
  const one = ask(lab, request('GET /', upstream.host));
  const old = await accept(upstream);
  await old.respond((await old.request()).stream, 'one');
  assert.equal((await one).body, 'one');
  await old.leave(1);
  await old.wire.ended();
  const two = ask(lab, request('POST /', upstream.host));
  const fresh = await accept(upstream);
  await fresh.respond((await fresh.request()).stream, 'two');
  assert.equal((await two).body, 'two');
});

test('a lost connection: what may be repeated is, everything else is answered with 502', async () => {
  const upstream = lab.upstream();
  const warm = ask(lab, request('GET /', upstream.host));
  const server = await accept(upstream);
  await server.respond((await server.request()).stream, 'ok');
  await warm;
  const get = await lab.client();
  const post = await lab.client();
  const begun = await lab.client();
  await get.send(request('GET /again', upstream.host));
  await server.request();
  await post.send(request('POST /', upstream.host));
  await server.request();
  await begun.send(request('GET /begun', upstream.host));
  const { stream } = await server.request();
  await server.send(
    frame(Type.HEADERS, Flag.END_HEADERS, stream, block([':status', '200'], ['content-length', '9'])),
    frame(Type.DATA, 0, stream, 'part'),
  );
  await begun.until('part');
  server.wire.close();
  const fresh = await accept(upstream);
  const again = await fresh.request();
  assert.ok(again.fields.includes(':path: /again'));
  await fresh.respond(again.stream, 'again');
  assert.equal((await get.response()).body, 'again');
  const message = await post.response();
  assert.equal(message.status, 502);
  assert.equal(message.value('x-reason'), 'UC');
  assert.equal(await begun.rest(), '');
});

test('responses that are here whole reach slow clients although the connection has gone', async () => {
  const upstream = lab.upstream();
  const client = await connectHttp2(lab, [Setting.WINDOW, 10]);
  await client.headers(1, get(upstream.host));
  const server = await accept(upstream);
  const { stream } = await server.request();
  await server.send(
    frame(Type.HEADERS, Flag.END_HEADERS, stream, block([':status', '200'])),
    frame(Type.DATA, 0, stream, 'x'.repeat(10)),
    frame(Type.DATA, 0, stream, 'y'.repeat(10_000)),
    frame(Type.DATA, Flag.END_STREAM, stream, 'z'.repeat(10_000)),
  );
  await client.next(Type.HEADERS, 1);
  await client.next(Type.DATA, 1);
  await server.wire.finish();
  await server.wire.ended();
  await client.send(frame(Type.WINDOW_UPDATE, 0, 1, word(100_000)));
  let body = '';
  for (;;) {
    const { payload, flags } = await client.next(Type.DATA, 1);
    body += payload.toString();
    if ((flags & Flag.END_STREAM) !== 0) break;
  }
  assert.equal(body, 'y'.repeat(10_000) + 'z'.repeat(10_000));
});

test('a connection that does not answer pings is given up, its streams fail, and others do not notice', async () => {
  const stuck = lab.upstream('stuck');
  const fine = lab.upstream('pinged');
  const before = await lab.metric('portcullis_upstream_http2_ping_timeouts_total');
  const client = await lab.client();
  await client.send(request('POST /', stuck.host));
  const server = await accept(stuck);
  await server.request();
  const other = await lab.client();
  await other.send(request('POST /', fine.host));
  const alive = await accept(fine);
  const { stream } = await alive.request();
  keepAlive(alive);
  const message = await client.response();
  assert.equal(message.status, 504);
  assert.equal(message.value('x-reason'), 'UT');
  assert.equal((await server.next(Type.PING)).payload.length, 8);
  await server.wire.ended();
  assert.equal(await lab.metric('portcullis_upstream_http2_ping_timeouts_total'), before + 1);
  await alive.respond(stream, 'late');
  assert.equal((await other.response()).body, 'late');
});

const malformed: [what: string, frames: (stream: number) => Buffer[]][] = [
  ['has no status', (stream) => response(stream, '', [':status', '2x0'])],
  ['switches protocols', (stream) => response(stream, '', [':status', '101'])],
  ['has a field of the connection', (stream) => response(stream, 'x', ['transfer-encoding', 'chunked'])],
  ['has an upper-case name', (stream) => response(stream, 'x', ['X-Upper', '1'])],
  ['has a line end in a value', (stream) => response(stream, 'x', ['x-a', 'b\r\nset-cookie: c=d'])],
  ['has two Content-Lengths', (stream) => response(stream, 'x', ['content-length', '1'], ['content-length', '1'])],
  ['has a Content-Length that is no number', (stream) => response(stream, 'x', ['content-length', '+1'])],
  ['ends before its Content-Length', (stream) => response(stream, '', ['content-length', '3'])],
  ['ends with an informational response', (stream) => response(stream, '', [':status', '103'])],
  [
    'has a request pseudo-header field',
    (stream) => [frame(Type.HEADERS, 5, stream, block([':status', '200'], [':path', '/']))],
  ],
  ['begins with DATA', (stream) => [frame(Type.DATA, 0, stream, 'x')]],
];
test('a malformed response is answered with 502, and its stream reset with PROTOCOL_ERROR', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  let server: Server | undefined;
  for (const [what, frames] of malformed) {
    await client.send(request('GET /', upstream.host));
    server ??= await accept(upstream);
    const { stream } = await server.request();
    await server.send(...frames(stream));
    const message = await client.response();
    assert.equal(message.status, 502, `a response that ${what}`);
    assert.equal(message.value('x-reason'), 'UPE', `a response that ${what}`);
    assert.equal(await server.reset(stream), Code.PROTOCOL_ERROR, `a response that ${what}`);
  }
  assert.equal(upstream.accepted, 1);
});

test('a body that is longer or shorter than its Content-Length is cut', async () => {
  const upstream = lab.upstream();
  let server: Server | undefined;
  for (const [length, body] of [
    ['10', 'short'],
    ['2', 'long'],
  ]) {
    const client = await lab.client();
    await client.send(request('GET /', upstream.host));
    server ??= await accept(upstream);
    const { stream } = await server.request();
    await server.send(
      frame(Type.HEADERS, Flag.END_HEADERS, stream, block([':status', '200'], ['content-length', length])),
    );
    await client.head();
    await server.send(frame(Type.DATA, Flag.END_STREAM, stream, body));
    assert.notEqual(await client.rest(), body);
    assert.equal(await server.reset(stream), Code.PROTOCOL_ERROR);
  }
});

test('an error of the connection fails all its streams with the reason, and the next request gets a new one', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  await client.send(request('GET /', upstream.host));
  const server = await accept(upstream);
  await server.request();
  await server.send(frame(Type.WINDOW_UPDATE, 0, 0, word(0)));
  const message = await client.response();
  assert.equal(message.status, 502);
  assert.equal(message.value('x-reason'), 'UPE');
  assert.equal((await server.goaway()).code, Code.PROTOCOL_ERROR);
  await client.send(request('GET /', upstream.host));
  const fresh = await accept(upstream);
  await fresh.respond((await fresh.request()).stream, 'ok');
  assert.equal((await client.response()).body, 'ok');
});

test('an upstream that speaks HTTP/1.1 is told apart, at once', async () => {
  const upstream = lab.upstream();
  const answer = ask(lab, request('GET /', upstream.host));
  const wire = await upstream.connection();
  await wire.send('HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n');
  const message = await answer;
  assert.equal(message.status, 502);
  assert.equal(message.value('x-reason'), 'UPE');
});

test('an upstream that accepts and closes is answered with 502, one that is not there with 503', async () => {
  const upstream = lab.upstream();
  const answer = ask(lab, request('GET /', upstream.host));
  (await upstream.connection()).close();
  assert.equal((await answer).status, 502);
  upstream.close();
  const message = await ask(lab, request('GET /', upstream.host));
  assert.equal(message.status, 503);
  assert.equal(message.value('x-reason'), 'UF');
});

test('a client that leaves while its request waits for a stream leaves nothing behind', async () => {
  const upstream = lab.upstream();
  const client = await openWire(lab.port);
  await client.send(request('GET /gone', upstream.host));
  // Settings have not come yet.
  const wire = await upstream.connection();
  await wire.bytes(24);
  client.close();
  await lab.metricBecomes('portcullis_requests_in_flight', 0);
  const next = ask(lab, request('GET /here', upstream.host));
  await wire.send(frame(Type.SETTINGS, 0, 0));
  const { Server: Peer } = await import('./support.ts');
  const server = new Peer(wire);
  const { stream, fields } = await server.request();
  assert.ok(fields.includes(':path: /here'));
  await server.respond(stream, 'ok');
  assert.equal((await next).body, 'ok');
});
