// HTTP/1.1 and HTTP/2 requests through the gateway to an HTTP/2 upstream and back: what each side gets to see.
// Spec: RFC 9113 §8 (messages), RFC 8441 (WebSocket), RFC 9110 §10.1.1 (Expect).

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { normal, request, startLab } from '../http/support.ts';
import { block, connectHttp2, Flag, frame, get, post, Type } from '../http2/frames.ts';
import { accept, ask, Setting } from './support.ts';

const lab = await startLab({
  upstreams: 20,
  top: 'headers: {via: edge}',
  backend: 'protocol: h2c',
});

test('a request goes upstream with pseudo-header fields, lower-case names and without fields of the connection', async () => {
  const upstream = lab.upstream();
  const answer = ask(
    lab,
    request(
      'GET /a?b=c',
      upstream.host,
      'X-Upper: Case',
      'Connection: x-gone',
      'X-Gone: 1',
      'TE: trailers',
      'Cookie: a=1; b=2',
    ),
  );
  const server = await accept(upstream);
  const { stream, fields, isWhole } = await server.request();
  assert.equal(stream, 1);
  assert.ok(isWhole);
  assert.deepEqual(
    fields.map((line) => normal(line)),
    [
      ':method: GET',
      ':scheme: http',
      `:authority: ${upstream.host}`,
      ':path: /a?b=c',
      'x-upper: Case',
      'cookie: a=1; b=2',
      'te: trailers',
      'x-forwarded-for: 127.0.0.1',
      'x-forwarded-proto: http',
      `x-forwarded-host: ${upstream.host}`,
      'x-request-id: ID',
      'via: 1.1 edge',
    ],
  );
  await server.respond(stream, 'hello', ['content-type', 'text/plain'], ['content-length', '5']);
  const { start, body, fields: got } = await answer;
  assert.equal(start, 'HTTP/1.1 200 OK');
  assert.equal(body, 'hello');
  assert.deepEqual(got.map(([name, value]) => normal(`${name}: ${value}`)).sort(), [
    'content-length: 5',
    'content-type: text/plain',
    'date: NOW',
    'via: 2.0 edge',
  ]);
});

test('bodies of a known length, and chunked ones with trailers, arrive whole', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  await client.send(`${request('POST /', upstream.host, 'Content-Length: 5')}12345`);
  const server = await accept(upstream);
  const first = await server.request();
  assert.equal(first.body, '12345');
  assert.ok(first.fields.includes('content-length: 5'));
  await server.respond(first.stream, 'ok');
  const chunked = await client.response();
  assert.equal(chunked.body, 'ok');
  assert.equal(chunked.value('transfer-encoding'), 'chunked');

  await client.send(
    `${request('PUT /', upstream.host, 'Transfer-Encoding: chunked', 'Trailer: x-sum')}3\r\nabc\r\n4\r\ndefg\r\n0\r\nX-Sum: 7\r\n\r\n`,
  );
  const second = await server.request();
  assert.equal(second.body, 'abcdefg');
  assert.deepEqual(second.trailers, ['x-sum: 7']);
  assert.ok(!second.fields.some((line) => line.startsWith('transfer-encoding') || line.startsWith('content-length')));
  await server.respond(second.stream, '', ['content-length', '0']);
  const empty = await client.response();
  assert.equal(empty.value('content-length'), '0');
  assert.equal(upstream.accepted, 1);
});

test('trailers of a response reach clients of both protocols', async () => {
  const upstream = lab.upstream();
  const frames = (stream: number): Buffer[] => [
    frame(Type.HEADERS, Flag.END_HEADERS, stream, block([':status', '200'])),
    frame(Type.DATA, 0, stream, 'body'),
    frame(Type.HEADERS, Flag.END_HEADERS | Flag.END_STREAM, stream, block(['x-sum', '4'])),
  ];
  const one = ask(lab, request('GET /', upstream.host));
  const server = await accept(upstream);
  await server.send(...frames((await server.request()).stream));
  const message = await one;
  assert.equal(message.body, 'body');
  assert.deepEqual(message.trailers, ['x-sum: 4']);

  const client = await connectHttp2(lab);
  await client.headers(1, get(upstream.host));
  await server.send(...frames((await server.request()).stream));
  client.fields(await client.next(Type.HEADERS, 1));
  const trailers = await client.next(Type.HEADERS, 1);
  assert.deepEqual(client.fields(trailers), ['x-sum: 4']);
  assert.ok((trailers.flags & Flag.END_STREAM) !== 0);
});

test('an HTTP/2 request passes to an HTTP/2 upstream with its body and trailers', async () => {
  const upstream = lab.upstream();
  const client = await connectHttp2(lab);
  await client.headers(1, [...post(upstream.host, '/x'), ['te', 'trailers']], 0);
  await client.send(
    frame(Type.DATA, 0, 1, 'abc'),
    frame(Type.HEADERS, Flag.END_HEADERS | Flag.END_STREAM, 1, block(['x-end', 'yes'])),
  );
  const server = await accept(upstream);
  const { stream, fields, body, trailers } = await server.request();
  assert.deepEqual(fields.slice(0, 4), [':method: POST', ':scheme: http', `:authority: ${upstream.host}`, ':path: /x']);
  assert.ok(fields.includes('via: 2.0 edge'));
  assert.equal(body, 'abc');
  assert.deepEqual(trailers, ['x-end: yes']);
  await server.respond(stream, 'done', ['x-from', 'upstream']);
  const answer = await client.answer(1);
  assert.equal(answer.body, 'done');
  assert.ok(answer.fields.includes('x-from: upstream'));
});

test('informational responses pass, and Expect: 100-continue works', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  await client.send(request('POST /', upstream.host, 'Expect: 100-continue', 'Content-Length: 4'));
  const server = await accept(upstream);
  const { stream, fields, isWhole } = await server.head();
  assert.ok(!isWhole);
  assert.ok(fields.includes('expect: 100-continue'));
  await server.send(frame(Type.HEADERS, Flag.END_HEADERS, stream, block([':status', '100'])));
  assert.equal((await client.head()).status, 100);
  await server.send(frame(Type.HEADERS, Flag.END_HEADERS, stream, block([':status', '103'], ['link', '</a.css>'])));
  const hints = await client.head();
  assert.equal(hints.start, 'HTTP/1.1 103 Early Hints');
  assert.equal(hints.value('link'), '</a.css>');
  await client.send('body');
  assert.equal((await server.next(Type.DATA, stream)).payload.toString(), 'body');
  await server.respond(stream, 'ok', [':status', '201']);
  assert.equal((await client.response()).status, 201);
});

test('HEAD, 204 and 304 have no body, whatever their Content-Length says', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  await client.send(request('HEAD /', upstream.host));
  const server = await accept(upstream);
  let { stream } = await server.request();
  await server.respond(stream, '', ['content-length', '1000']);
  const head = await client.response('HEAD');
  assert.equal(head.value('content-length'), '1000');

  for (const status of ['204', '304']) {
    await client.send(request('GET /', upstream.host));
    ({ stream } = await server.request());
    await server.respond(stream, '', [':status', status]);
    const message = await client.response();
    assert.equal(message.start.slice(9, 12), status);
    assert.equal(message.value('transfer-encoding'), undefined);
  }
});

test('a head that comes before its body is passed on at once', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  await client.send(request('GET /', upstream.host));
  const server = await accept(upstream);
  const { stream } = await server.request();
  await server.send(frame(Type.HEADERS, Flag.END_HEADERS, stream, block([':status', '200'])));
  assert.equal((await client.head()).status, 200);
  await server.send(frame(Type.DATA, 0, stream, 'one'));
  assert.equal(await client.until('one\r\n'), '3\r\none\r\n');
  await server.send(frame(Type.DATA, Flag.END_STREAM, stream));
  assert.equal(await client.until('0\r\n\r\n'), '0\r\n\r\n');
});

test('responses of many sizes arrive whole, in one frame behind their head or in several', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  const server = accept(upstream);
  server.then((it) =>
    it.serve(({ stream, fields }) => {
      const bytes = Number(fields.find((line) => line.startsWith(':path: /'))!.slice(8));
      const frames = [frame(Type.HEADERS, Flag.END_HEADERS, stream, block([':status', '200']))];
      for (let left = bytes; left >= 0; left -= 16_384) {
        const last = left <= 16_384;
        frames.push(frame(Type.DATA, last ? Flag.END_STREAM : 0, stream, Buffer.alloc(Math.min(left, 16_384), 'x')));
        if (last) break;
      }
      return frames;
    }),
  );
  for (const bytes of [0, 1, 100, 700, 1000, 2048, 8191, 16_384, 16_385, 40_000, 65_000]) {
    await client.send(request(`GET /${bytes}`, upstream.host));
    const { body } = await client.response();
    assert.equal(body, 'x'.repeat(bytes), `${bytes} bytes`);
  }
});

test('an HTTP/1.0 client gets a body that ends with the connection', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  await client.send(`GET / HTTP/1.0\r\nHost: ${upstream.host}\r\n\r\n`);
  const server = await accept(upstream);
  await server.respond((await server.request()).stream, 'old');
  const text = await client.rest();
  assert.match(text, /^HTTP\/1\.1 200 OK\r\n/);
  assert.doesNotMatch(text, /transfer-encoding/);
  assert.ok(text.endsWith('\r\n\r\nold'));
});

test('a WebSocket of an HTTP/1.1 client becomes an extended CONNECT', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  const key = 'dGhlIHNhbXBsZSBub25jZQ==';
  await client.send(
    request(
      'GET /chat',
      upstream.host,
      'Connection: Upgrade',
      'Upgrade: websocket',
      `Sec-WebSocket-Key: ${key}`,
      'Sec-WebSocket-Version: 13',
    ),
  );
  const server = await accept(upstream, [Setting.CONNECT_PROTOCOL, 1]);
  const { stream, fields, isWhole } = await server.head();
  assert.ok(!isWhole);
  assert.deepEqual(fields.slice(0, 5), [
    ':method: CONNECT',
    ':protocol: websocket',
    ':scheme: http',
    `:authority: ${upstream.host}`,
    ':path: /chat',
  ]);
  assert.ok(fields.includes('sec-websocket-version: 13'));
  assert.ok(!fields.some((line) => /^(sec-websocket-key|upgrade|connection|host)/.test(line)));
  await server.send(
    frame(Type.HEADERS, Flag.END_HEADERS, stream, block([':status', '200'], ['sec-websocket-protocol', 'chat'])),
  );
  const message = await client.head();
  assert.equal(message.status, 101);
  // The example of RFC 6455 §1.3.
  assert.equal(message.value('sec-websocket-accept'), 's3pPLMBiTxaQ9kYGzzhZRbK+xOo=');
  assert.equal(message.value('upgrade'), 'websocket');
  assert.equal(message.value('sec-websocket-protocol'), 'chat');
  await client.send('ping');
  assert.equal((await server.next(Type.DATA, stream)).payload.toString(), 'ping');
  await server.send(frame(Type.DATA, 0, stream, 'pong'));
  assert.equal((await client.bytes(4)).toString(), 'pong');
  await server.send(frame(Type.DATA, Flag.END_STREAM, stream, 'bye'));
  await client.finish();
  assert.equal(await client.rest(), 'bye');
  assert.ok(((await server.next(Type.DATA, stream)).flags & Flag.END_STREAM) !== 0);
});

test('a WebSocket that the upstream cuts ends for the client too', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  await client.send(
    request('GET /', upstream.host, 'Connection: Upgrade', 'Upgrade: websocket', 'Sec-WebSocket-Key: x'),
  );
  const server = await accept(upstream, [Setting.CONNECT_PROTOCOL, 1]);
  const { stream } = await server.head();
  await server.send(frame(Type.HEADERS, Flag.END_HEADERS, stream, block([':status', '200'])));
  assert.equal((await client.head()).status, 101);
  await server.send(frame(Type.RST_STREAM, 0, stream, Buffer.from([0, 0, 0, 8])));
  await client.ended();
});

test('a WebSocket goes from an HTTP/2 client to an HTTP/2 upstream', async () => {
  const upstream = lab.upstream();
  const client = await connectHttp2(lab);
  await client.headers(
    1,
    [
      [':method', 'CONNECT'],
      [':protocol', 'websocket'],
      [':scheme', 'http'],
      [':path', '/chat'],
      [':authority', upstream.host],
      ['sec-websocket-version', '13'],
    ],
    0,
  );
  const server = await accept(upstream, [Setting.CONNECT_PROTOCOL, 1]);
  const { stream, fields } = await server.head();
  assert.deepEqual(fields.slice(0, 2), [':method: CONNECT', ':protocol: websocket']);
  await server.send(frame(Type.HEADERS, Flag.END_HEADERS, stream, block([':status', '200'])));
  const answer = client.fields(await client.next(Type.HEADERS, 1));
  assert.equal(answer[0], ':status: 200');
  assert.ok(!answer.some((line) => line.startsWith('sec-websocket-accept')));
  await client.send(frame(Type.DATA, 0, 1, 'ping'));
  assert.equal((await server.next(Type.DATA, stream)).payload.toString(), 'ping');
  await server.send(frame(Type.DATA, 0, stream, 'pong'));
  assert.equal((await client.next(Type.DATA, 1)).payload.toString(), 'pong');
  await client.send(frame(Type.RST_STREAM, 0, 1, Buffer.from([0, 0, 0, 8])));
  assert.equal(await server.reset(stream), 8);
});

test('a WebSocket to an upstream without RFC 8441 is answered with 502 and the reason', async () => {
  const upstream = lab.upstream();
  const answer = ask(
    lab,
    request('GET /', upstream.host, 'Connection: Upgrade', 'Upgrade: websocket', 'Sec-WebSocket-Key: x'),
  );
  await accept(upstream);
  const message = await answer;
  assert.equal(message.status, 502);
  assert.equal(message.value('x-reason'), 'NI');
});

test('a head that is kept until its body comes is not touched by heads of other streams', async () => {
  const upstream = lab.upstream();
  const one = ask(lab, request('GET /one', upstream.host));
  const server = await accept(upstream);
  const first = await server.request();
  const other = await lab.client();
  await other.send(request('GET /two', upstream.host));
  const second = await server.request();
  // All in one go: the first head waits for its body while the other stream's is read and passed on.
  await server.send(
    frame(Type.HEADERS, Flag.END_HEADERS, first.stream, block([':status', '200'], ['x-of', 'one'])),
    frame(Type.HEADERS, Flag.END_HEADERS, second.stream, block([':status', '103'], ['x-of', 'two'], ['link', '</a>'])),
  );
  await server.send(frame(Type.DATA, Flag.END_STREAM, first.stream, 'body of one'));
  const answer = await one;
  assert.deepEqual([answer.status, answer.value('x-of'), answer.body], [200, 'one', 'body of one']);
  assert.equal((await other.head()).status, 103);
  await server.respond(second.stream, 'body of two', ['x-of', 'two']);
  const last = await other.response();
  assert.deepEqual([last.status, last.value('x-of'), last.body], [200, 'two', 'body of two']);
});
