// Requests that are no valid HTTP/2: reset with PROTOCOL_ERROR, counted, and not one byte of them reaches an
// upstream; the connection goes on. This is also what keeps requests from being smuggled by downgrade.
// Spec: RFC 9113 §8.1.1, §8.2, §8.3, §8.5; RFC 9110 §7.2.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ok, startLab } from '../http/support.ts';
import { block, Code, connectHttp2, Flag, frame, get, post, Type } from './frames.ts';

const lab = await startLab({ upstreams: 4, top: 'http2: {maxResetsPerSecond: 10000}' });
const target = lab.upstream();
target.serve(() => ok('fine'));
const host = target.host;

/** `get` without one field, or with another value for it. */
function replaced(name: string, value?: string): [string, string][] {
  return get(host).flatMap(([n, v]): [string, string][] =>
    n !== name ? [[n, v]] : value === undefined ? [] : [[n, value]],
  );
}

const cases: Record<string, [string, string][]> = {
  'no :method': replaced(':method'),
  'no :scheme': replaced(':scheme'),
  'no :path': replaced(':path'),
  'no :authority and no host': replaced(':authority'),
  'empty :path': replaced(':path', ''),
  ':path without slash': replaced(':path', 'a'),
  ':path with a space': replaced(':path', '/a HTTP/1.1'),
  ':path with a fragment': replaced(':path', '/a#b'),
  ':path * for GET': replaced(':path', '*'),
  ':path in absolute form': replaced(':path', `http://${host}/`),
  ':path with CR LF': replaced(':path', '/a\r\nx: y'),
  ':method with a space': replaced(':method', 'GET /x HTTP/1.1'),
  'empty :method': replaced(':method', ''),
  ':scheme that is none': replaced(':scheme', 'ftp'),
  ':authority with userinfo': replaced(':authority', `user@${host}`),
  ':authority with a path': replaced(':authority', `${host}/a`),
  'empty :authority': replaced(':authority', ''),
  ':status in a request': [...get(host), [':status', '200']],
  'unknown pseudo-header field': [...get(host), [':version', '2']],
  ':path twice': [...get(host), [':path', '/b']],
  'pseudo-header field behind a regular one': [['accept', '*/*'], ...get(host)],
  'host that differs from :authority': [...get(host), ['host', 'other.test']],
  'host twice': [...get(host), ['host', host], ['host', host]],
  connection: [...get(host), ['connection', 'keep-alive']],
  'keep-alive': [...get(host), ['keep-alive', 'timeout=5']],
  'proxy-connection': [...get(host), ['proxy-connection', 'close']],
  'transfer-encoding': [...get(host), ['transfer-encoding', 'chunked']],
  upgrade: [...get(host), ['upgrade', 'h2c']],
  'te other than trailers': [...get(host), ['te', 'gzip']],
  'te with more than trailers': [...get(host), ['te', 'trailers, gzip']],
  'name in upper case': [...get(host), ['X-A', 'b']],
  'empty name': [...get(host), ['', 'b']],
  'name with a colon': [...get(host), ['x:y', 'b']],
  'name with a space': [...get(host), ['x y', 'b']],
  'name with CR LF': [...get(host), ['x\r\ny', 'b']],
  'value with CR': [...get(host), ['x', 'a\rb']],
  'value with LF': [...get(host), ['x', 'a\nb']],
  'value with NUL': [...get(host), ['x', 'a\0b']],
  'value with leading space': [...get(host), ['x', ' a']],
  'content-length twice': [...get(host), ['content-length', '0'], ['content-length', '0']],
  'content-length that is no number': [...get(host), ['content-length', '+0']],
  'content-length of a body that does not come': [...get(host), ['content-length', '5']],
  'CONNECT with :path': [...replaced(':method', 'CONNECT')],
  'CONNECT without a port': [
    [':method', 'CONNECT'],
    [':authority', host],
  ],
  ':protocol without CONNECT': [...get(host), [':protocol', 'websocket']],
};

for (const [name, fields] of Object.entries(cases)) {
  test(`refused: ${name}`, async () => {
    const before = await lab.metric('portcullis_http2_malformed_total');
    const client = await connectHttp2(lab);
    await client.headers(1, fields);
    assert.equal(await client.reset(1), Code.PROTOCOL_ERROR);
    await client.headers(3, get(host));
    assert.equal((await client.answer(3)).body, 'fine');
    await lab.metricBecomes('portcullis_http2_malformed_total', before + 1);
    client.wire.close();
  });
}

test('none of them has reached the upstream', () => {
  const { length } = target.wires;
  assert.equal(length, 1, 'the good requests share one connection');
});

test('a body longer than its Content-Length resets the stream, and the upstream sees its request cut off', async () => {
  const upstream = lab.upstream();
  const client = await connectHttp2(lab);
  await client.headers(1, [...post(upstream.host), ['content-length', '3']], 0);
  const wire = await upstream.connection();
  await wire.head();
  await client.send(frame(Type.DATA, 0, 1, 'abcd'));
  assert.equal(await client.reset(1), Code.PROTOCOL_ERROR);
  assert.equal(await wire.rest(), '');
});

test('a body shorter than its Content-Length resets the stream, and the upstream sees its request cut off', async () => {
  const upstream = lab.upstream();
  const client = await connectHttp2(lab);
  await client.headers(1, [...post(upstream.host), ['content-length', '10']], 0);
  const wire = await upstream.connection();
  await wire.head();
  await client.send(frame(Type.DATA, Flag.END_STREAM, 1, 'abc'));
  assert.equal(await client.reset(1), Code.PROTOCOL_ERROR);
  await wire.ended();
});

test('trailers with a pseudo-header field reset the stream', async () => {
  const upstream = lab.upstream();
  const client = await connectHttp2(lab);
  await client.headers(1, post(upstream.host), 0);
  await client.headers(1, [[':path', '/x']]);
  assert.equal(await client.reset(1), Code.PROTOCOL_ERROR);
});

test('an even stream number, a stream number that goes back and frames on idle streams end the connection', async () => {
  const even = await connectHttp2(lab);
  await even.headers(2, get(host));
  assert.equal((await even.goaway()).code, Code.PROTOCOL_ERROR);
  const back = await connectHttp2(lab);
  await back.headers(5, get(host));
  await back.answer(5);
  await back.headers(3, get(host));
  assert.equal((await back.goaway()).code, Code.STREAM_CLOSED);
  const idle = await connectHttp2(lab);
  await idle.send(frame(Type.DATA, Flag.END_STREAM, 1, 'x'));
  assert.equal((await idle.goaway()).code, Code.PROTOCOL_ERROR);
});

test('frames that were on their way when the gateway reset their stream are no errors', async () => {
  const client = await connectHttp2(lab);
  const bad = block(...get(host), ['connection', 'close']);
  await client.send(
    frame(Type.HEADERS, Flag.END_HEADERS, 1, bad),
    frame(Type.DATA, 0, 1, 'late'),
    frame(Type.HEADERS, Flag.END_HEADERS | Flag.END_STREAM, 1, block(['x-late', 'trailer'])),
    frame(Type.RST_STREAM, 0, 1, Buffer.from([0, 0, 0, 8])),
  );
  assert.equal(await client.reset(1), Code.PROTOCOL_ERROR);
  await client.headers(3, get(host));
  assert.equal((await client.answer(3)).body, 'fine');
});
