// HTTP/2 requests through the gateway to an HTTP/1.1 upstream and back: what each side gets to see.
// Spec: RFC 9113 §8 (messages), RFC 8441 (WebSocket), RFC 9110 §7.6.3 (Via), §9.3.6 (CONNECT).

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { connect as connectHttp2Node } from 'node:http2';
import { join } from 'node:path';
import { test } from 'node:test';
import { becomes, normal, ok, startLab } from '../http/support.ts';
import { block, Client, Code, connectHttp2, Flag, frame, get, PREFACE, post, settings, Type } from './frames.ts';

const lab = await startLab({
  upstreams: 20,
  top: 'headers: {via: edge}',
  listener: 'allowConnect: true',
});

test('a request goes upstream as HTTP/1.1, with Host, lower-case names and the usual additions', async () => {
  const upstream = lab.upstream();
  const client = await connectHttp2(lab);
  await client.headers(1, [...get(upstream.host, '/a?b=c'), ['user-agent', 'me'], ['accept', '*/*']]);
  const wire = await upstream.connection();
  const { head } = await wire.request();
  assert.equal(
    normal(head),
    [
      'GET /a?b=c HTTP/1.1',
      `host: ${upstream.host}`,
      'user-agent: me',
      'accept: */*',
      'x-forwarded-for: 127.0.0.1',
      'x-forwarded-proto: http',
      `x-forwarded-host: ${upstream.host}`,
      'x-request-id: ID',
      'via: 2.0 edge',
      '',
      '',
    ].join('\r\n'),
  );
  await wire.send(
    'HTTP/1.1 200 OK\r\nX-Upper: Case\r\nConnection: x-gone\r\nX-Gone: 1\r\nKeep-Alive: timeout=5\r\nContent-Length: 2\r\n\r\nhi',
  );
  const { fields, body } = await client.answer(1);
  assert.deepEqual(
    fields.map((line) => normal(line)),
    [':status: 200', 'x-upper: Case', 'content-length: 2', 'date: NOW', 'via: 1.1 edge'],
  );
  assert.equal(body, 'hi');
});

test('cookie crumbs become one Cookie field, and fields around them stay', async () => {
  const upstream = lab.upstream();
  const client = await connectHttp2(lab);
  await client.headers(1, [
    ...get(upstream.host),
    ['cookie', 'a=1'],
    ['x-one', '1'],
    ['cookie', 'b=2'],
    ['x-two', '2'],
    ['cookie', 'c=3'],
  ]);
  const wire = await upstream.connection();
  const { fields } = await wire.request();
  assert.deepEqual(fields.slice(1, 4), [
    ['x-one', '1'],
    ['x-two', '2'],
    ['cookie', 'a=1; b=2; c=3'],
  ]);
  await wire.send(ok('fine'));
  assert.equal((await client.answer(1)).body, 'fine');
});

test('host stands in for a missing :authority, and an equal one beside it is not sent twice', async () => {
  const upstream = lab.upstream();
  const seen: string[][] = [];
  upstream.serve((message) => {
    seen.push(message.fields.filter(([name]) => name === 'host').map(([, value]) => value));
    return ok('fine');
  });
  const client = await connectHttp2(lab);
  const noAuthority = get(upstream.host).slice(0, 3);
  await client.headers(1, [...noAuthority, ['host', upstream.host]]);
  await client.answer(1);
  await client.headers(3, [...get(upstream.host), ['host', upstream.host.toUpperCase()]]);
  await client.answer(3);
  assert.deepEqual(seen, [[upstream.host], [upstream.host.toUpperCase()]]);
});

test('a body with Content-Length keeps it; one without goes in chunks, with its trailers', async () => {
  const upstream = lab.upstream();
  const client = await connectHttp2(lab);
  await client.headers(1, [...post(upstream.host), ['content-length', '6']], 0);
  await client.send(frame(Type.DATA, 0, 1, 'abc'), frame(Type.DATA, Flag.END_STREAM, 1, 'def'));
  const wire = await upstream.connection();
  const whole = await wire.request();
  assert.equal(whole.value('content-length'), '6');
  assert.equal(whole.framed, 'abcdef');
  await wire.send(ok('one'));
  await client.answer(1);
  await client.headers(3, post(upstream.host), 0);
  await client.send(frame(Type.DATA, 0, 3, 'abc'), frame(Type.DATA, Flag.PADDED, 3, '\x03def\0\0\0'));
  await client.headers(3, [['x-sum', '9']]);
  const chunked = await wire.request();
  assert.equal(chunked.value('transfer-encoding'), 'chunked');
  assert.equal(chunked.value('content-length'), undefined);
  assert.equal(chunked.body, 'abcdef');
  assert.deepEqual(chunked.trailers, ['x-sum: 9']);
  await wire.send(ok('two'));
  assert.equal((await client.answer(3)).body, 'two');
});

test('many requests in one piece are answered each on its stream', async () => {
  const upstream = lab.upstream();
  upstream.serve((message) => ok(message.start.split(' ')[1] + message.body));
  const client = await connectHttp2(lab);
  const ids = Array.from({ length: 50 }, (_, i) => 2 * i + 1);
  await client.send(
    ...ids.flatMap((id) => [
      frame(Type.HEADERS, Flag.END_HEADERS, id, block(...post(upstream.host, `/${id}`))),
      frame(Type.DATA, Flag.END_STREAM, id, `body of ${id}`),
    ]),
  );
  const bodies = new Map<number, string>();
  for (let open = ids.length; open > 0; ) {
    const { type, stream, flags, payload } = await client.read();
    if (type === Type.DATA) bodies.set(stream, (bodies.get(stream) ?? '') + payload.toString());
    if ((type === Type.DATA || type === Type.HEADERS) && (flags & Flag.END_STREAM) !== 0) open--;
  }
  assert.deepEqual(
    [...bodies].sort(([a], [b]) => a - b),
    ids.map((id) => [id, `/${id}body of ${id}`]),
  );
});

test('a response in chunks ends its stream with its trailers; HEAD, 204 and 304 end it with the head', async () => {
  const upstream = lab.upstream();
  const client = await connectHttp2(lab);
  await client.headers(1, get(upstream.host));
  const wire = await upstream.connection();
  await wire.request();
  await wire.send('HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n3\r\nabc\r\n');
  const head = await client.next(Type.HEADERS, 1);
  assert.deepEqual(
    client.fields(head).filter((line) => !/^(date|via)/.test(line)),
    [':status: 200', 'trailer: X-Sum'],
  );
  assert.equal((await client.next(Type.DATA, 1)).payload.toString(), 'abc');
  await wire.send('0\r\nX-Sum: 3\r\n\r\n');
  const trailers = await client.next(Type.HEADERS, 1);
  assert.deepEqual(client.fields(trailers), ['x-sum: 3']);
  assert.equal(trailers.flags & Flag.END_STREAM, Flag.END_STREAM);
  let id = 3;
  for (const [method, response] of [
    ['HEAD', 'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n'],
    ['GET', 'HTTP/1.1 204 No Content\r\n\r\n'],
    ['GET', 'HTTP/1.1 304 Not Modified\r\nETag: "x"\r\n\r\n'],
  ]) {
    await client.headers(id, [[':method', method], ...get(upstream.host).slice(1)]);
    await wire.request();
    await wire.send(response);
    const found = await client.next(Type.HEADERS, id);
    client.fields(found);
    assert.equal(found.flags & Flag.END_STREAM, Flag.END_STREAM, response);
    id += 2;
  }
});

test('a response until the end of the upstream connection ends its stream; one that is cut off resets it', async () => {
  const upstream = lab.upstream();
  const client = await connectHttp2(lab);
  await client.headers(1, get(upstream.host));
  const first = await upstream.connection();
  await first.request();
  await first.send('HTTP/1.1 200 OK\r\n\r\nall of it');
  first.close();
  assert.equal((await client.answer(1)).body, 'all of it');
  await client.headers(3, get(upstream.host));
  const second = await upstream.connection();
  await second.request();
  await second.send('HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nnot all of it');
  client.fields(await client.next(Type.HEADERS, 3));
  await client.next(Type.DATA, 3);
  second.close();
  assert.equal(await client.reset(3), 2);
});

test('an informational response passes before the final one', async () => {
  const upstream = lab.upstream();
  const client = await connectHttp2(lab);
  await client.headers(1, get(upstream.host));
  const wire = await upstream.connection();
  await wire.request();
  await wire.send('HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi');
  const hints = await client.next(Type.HEADERS, 1);
  assert.deepEqual(client.fields(hints).slice(0, 2), [':status: 103', 'link: </a.css>']);
  assert.equal(hints.flags & Flag.END_STREAM, 0);
  assert.equal((await client.answer(1)).body, 'hi');
});

test('an answer before the request body has come ends the stream with NO_ERROR, and the rest of the body is ignored', async () => {
  const upstream = lab.upstream();
  const client = await connectHttp2(lab);
  await client.headers(1, post(upstream.host), 0);
  const wire = await upstream.connection();
  await wire.head();
  await wire.send('HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno');
  assert.equal((await client.answer(1)).fields[0], ':status: 403');
  assert.equal(await client.reset(1), Code.NO_ERROR);
  await client.send(frame(Type.DATA, Flag.END_STREAM, 1, 'too late'));
  await client.synced();
});

test('a generated answer has status, reason and a body, and the connection goes on', async () => {
  const client = await connectHttp2(lab);
  for (const id of [1, 3]) {
    await client.headers(id, get('nobody.test'));
    const { fields, body } = await client.answer(id);
    assert.equal(fields[0], ':status: 404');
    assert.ok(fields.includes('x-reason: NR'), fields.join('\n'));
    assert.ok(!fields.some((line) => line.startsWith('connection')));
    assert.match(body, /^404 Not Found: NR: /);
  }
});

test('a stream that the client resets lets its upstream go, and the others go on', async () => {
  const upstream = lab.upstream();
  const client = await connectHttp2(lab);
  await client.headers(1, get(upstream.host));
  const wire = await upstream.connection();
  await wire.request();
  await client.send(frame(Type.RST_STREAM, 0, 1, Buffer.from([0, 0, 0, Code.CANCEL])));
  await wire.ended();
  await client.headers(3, get(upstream.host));
  const other = await upstream.connection();
  await other.request();
  await other.send(ok('fine'));
  assert.equal((await client.answer(3)).body, 'fine');
});

test('WebSocket by extended CONNECT becomes an HTTP/1.1 upgrade and a tunnel', async () => {
  const upstream = lab.upstream();
  const client = await connectHttp2(lab);
  const fields: [string, string][] = [
    [':method', 'CONNECT'],
    [':protocol', 'websocket'],
    [':scheme', 'http'],
    [':path', '/chat'],
    [':authority', upstream.host],
    ['sec-websocket-version', '13'],
  ];
  await client.headers(1, fields, 0);
  await client.send(frame(Type.DATA, 0, 1, 'early'));
  const wire = await upstream.connection();
  const request = await wire.head();
  assert.equal(request.start, 'GET /chat HTTP/1.1');
  assert.equal(request.value('upgrade'), 'websocket');
  assert.equal(request.value('connection'), 'upgrade');
  assert.match(request.value('sec-websocket-key') ?? '', /^[A-Za-z0-9+/]{21}[AQgw]==$/);
  await wire.send(
    'HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\nhello',
  );
  const head = await client.next(Type.HEADERS, 1);
  assert.deepEqual(
    client.fields(head).map((line) => line.split(': ')[0]),
    [':status', 'date', 'via'],
  );
  assert.equal((await client.next(Type.DATA, 1)).payload.toString(), 'hello');
  assert.equal((await wire.bytes(5)).toString(), 'early');
  await wire.send('x'.repeat(40_000));
  let received = 0;
  while (received < 40_000) received += (await client.next(Type.DATA, 1)).payload.length;
  await client.send(frame(Type.DATA, Flag.END_STREAM, 1, 'bye'));
  assert.equal((await wire.bytes(3)).toString(), 'bye');
  assert.equal(await wire.ended(), 'fin');
  wire.close();
  assert.equal((await client.next(Type.DATA, 1)).flags & Flag.END_STREAM, Flag.END_STREAM);
});

test('an upstream that does not upgrade is no tunnel: its good status becomes 502', async () => {
  const upstream = lab.upstream();
  const client = await connectHttp2(lab);
  const fields: [string, string][] = [
    [':method', 'CONNECT'],
    [':protocol', 'websocket'],
    [':scheme', 'http'],
    [':path', '/'],
    [':authority', upstream.host],
  ];
  await client.headers(1, fields, 0);
  const wire = await upstream.connection();
  await wire.head();
  await wire.send(ok('a web page'));
  assert.equal((await client.answer(1)).fields[0], ':status: 502');
});

test('CONNECT becomes a tunnel', async () => {
  const upstream = lab.upstream();
  const client = await connectHttp2(lab);
  await client.headers(
    1,
    [
      [':method', 'CONNECT'],
      [':authority', `${upstream.host}:443`],
    ],
    0,
  );
  const head = await client.next(Type.HEADERS, 1);
  assert.equal(client.fields(head)[0], ':status: 200');
  const wire = await upstream.connection();
  await client.send(frame(Type.DATA, 0, 1, 'ping'));
  assert.equal((await wire.bytes(4)).toString(), 'ping');
  await wire.send('pong');
  assert.equal((await client.next(Type.DATA, 1)).payload.toString(), 'pong');
  wire.reset();
  assert.equal(await client.reset(1), 10);
});

test('the preface is recognised however it is cut, and what only resembles it is HTTP/1', async () => {
  const upstream = lab.upstream();
  upstream.serve(() => ok('fine'));
  const client = new Client(await lab.client());
  for (const byte of PREFACE) await client.send(byte);
  await client.send(frame(Type.SETTINGS, 0, 0, settings()));
  await client.headers(1, get(upstream.host));
  assert.equal((await client.answer(1)).body, 'fine');
  const other = await lab.client();
  await other.send('PRI * HTTP/2.0\r\n');
  await other.send('\r\nSN\r\n\r\n');
  assert.equal((await other.response()).status, 505);
});

test('Node sends 5 MB both ways at once, and finds every byte back', async () => {
  const upstream = lab.upstream();
  const session = connectHttp2Node(`http://127.0.0.1:${lab.port}`);
  const sent = Buffer.alloc(5_000_000, 'the quick brown fox ');
  const [a, b] = ['/a', '/b'].map((path) =>
    session.request({ ':method': 'POST', ':path': path, ':authority': upstream.host }),
  );
  const bodies = [a, b].map(async (stream) => {
    stream.end(sent);
    const chunks: Buffer[] = [];
    for await (const chunk of stream) chunks.push(chunk as Buffer);
    return Buffer.concat(chunks);
  });
  for (let i = 0; i < 2; i++) {
    const wire = await upstream.connection();
    void wire.request().then(({ body }) => wire.send(ok(body)));
  }
  for (const body of await Promise.all(bodies)) assert.ok(body.equals(sent));
  session.close();
});

test('the access log names the protocol', async () => {
  const file = join(lab.directory, 'access.log');
  lab.gateway.configure(lab.config(`headers: {via: edge}\naccessLog: {path: ${file}}`));
  lab.gateway.kill('SIGHUP');
  await lab.gateway.log(/configuration reloaded epoch=2/);
  const client = await connectHttp2(lab);
  await client.headers(1, get('nobody.test', '/logged'));
  await client.answer(1);
  await becomes('a line in the access log', async () => readFileSync(file, 'utf8').includes('/logged'));
  assert.match(readFileSync(file, 'utf8'), /"path":"\/logged".*"protocol":"HTTP\/2\.0","status":404/);
});
