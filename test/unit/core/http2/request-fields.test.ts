// HTTP/2 requests as the HTTP/1 parser would have left them: the head that `RequestFields` lays out is parsed
// again by that parser, and both must say the same of it.
// Spec: RFC 9113 §8.3.1, §8.5, RFC 8441 §5.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ParseError } from '../../../../core/http1/errors.ts';
import { HeaderTable } from '../../../../core/http1/header-table.ts';
import { Method, RequestHead, TargetForm } from '../../../../core/http1/message.ts';
import { parseRequestHead } from '../../../../core/http1/request-parser.ts';
import { HpackDecoder } from '../../../../core/http2/hpack-decoder.ts';
import { HpackEncoder } from '../../../../core/http2/hpack-encoder.ts';
import { REQUEST_MALFORMED, RequestFields } from '../../../../core/http2/request-fields.ts';
import type { HeaderBlock } from '../../../../core/http2/role.ts';
import { SCRATCH_BYTES } from '../../../../core/io/arena.ts';
import { memoryReactor, textOf, wideLimits } from '../exchange/support.ts';

type Field = [name: string, value: string];

const reactor = memoryReactor();
const { memory } = reactor;
const { scratchOffset } = reactor.arena;
let random = 1;
const fields = new RequestFields(reactor, { next: () => (random = Math.imul(random, 48_271)) });

/** Writes a text somewhere the decoder's output does not reach, and returns where. */
function place(text: string, at: number): number {
  Buffer.from(memory.buffer, memory.byteOffset).write(text, at, 'latin1');
  return at;
}

/** Decodes a list of fields as the engine does. */
function decode(list: Field[], listBytesMax = 65_536): HeaderBlock {
  const encoder = new HpackEncoder();
  const source = reactor.arena.allocate(60_000);
  const encoded = reactor.arena.allocate(60_000);
  let end = encoder.begin(memory, encoded);
  let at = source;
  for (const [name, value] of list) {
    const nameAt = place(name, at);
    const valueAt = place(value, at + name.length);
    end = encoder.putField(memory, end, nameAt, name.length, valueAt, value.length, 0, false);
    at = valueAt + value.length;
  }
  const textOffset = scratchOffset + 1024;
  const block: HeaderBlock = {
    headers: new HeaderTable(),
    decoder: new HpackDecoder(4096, listBytesMax),
    textOffset,
    textLength: 0,
    roomBefore: 1024,
    textLimit: scratchOffset + SCRATCH_BYTES - 8,
  };
  const limit = block.textLimit - textOffset;
  assert.equal(block.decoder.decode(memory, encoded, end - encoded, textOffset, limit, block.headers, 200), 0);
  block.textLength = block.decoder.outLength;
  reactor.arena.free(source);
  reactor.arena.free(encoded);
  return block;
}

/** What both parsers say of a head, as texts and numbers without offsets. */
function observed(head: RequestHead): Record<string, unknown> {
  const { headers } = head;
  return {
    method: head.method,
    methodText: textOf(memory, head.methodOffset, head.methodLength),
    target: textOf(memory, head.targetOffset, head.targetLength),
    targetForm: head.targetForm,
    path: textOf(memory, head.pathOffset, head.pathLength),
    pathOnlyLength: head.pathOnlyLength,
    authority: textOf(memory, head.authorityOffset, head.authorityLength),
    hostLength: head.hostLength,
    versionMinor: head.versionMinor,
    contentLength: head.contentLength,
    chunked: head.chunked,
    keepAlive: head.keepAlive,
    expectContinue: head.expectContinue,
    upgradeField: head.upgradeField,
    connectionNamesFields: head.connectionNamesFields,
    hasHopByHop: head.hasHopByHop,
    seen: head.seen,
    fields: Array.from({ length: headers.count }, (_, field) => [
      textOf(memory, headers.nameOffset(field), headers.nameLength(field)),
      textOf(memory, headers.valueOffset(field), headers.valueLength(field)),
      headers.id(field),
    ]),
    length: head.endOffset - head.methodOffset,
  };
}

/** Reads a request and asserts that the HTTP/1 parser reads the same from the text it has become. */
function read(list: Field[], endStream = true): { head: RequestHead; text: string } {
  const head = new RequestHead();
  assert.equal(fields.read(decode(list), endStream, wideLimits, head), 0);
  const length = head.endOffset - head.methodOffset;
  const again = new RequestHead();
  assert.equal(parseRequestHead(memory, head.methodOffset, length, wideLimits, again), length);
  const text = textOf(memory, head.methodOffset, length);
  assert.deepEqual(observed(head), observed(again), text);
  return { head, text };
}

function get(...more: Field[]): Field[] {
  return [[':method', 'GET'], [':scheme', 'https'], [':authority', 'a.test:8443'], [':path', '/p/q?r=s'], ...more];
}

test('a request becomes the head that an HTTP/1 client would have sent', () => {
  const { text } = read(get(['accept', '*/*'], ['te', 'trailers'], ['x-a', '']));
  assert.equal(text, 'GET /p/q?r=s HTTP/1.1\r\nhost: a.test:8443\r\naccept: */*\r\nte: trailers\r\nx-a: \r\n\r\n');
});

test('the order of the pseudo-header fields makes no difference', () => {
  const [method, scheme, authority, path] = get();
  const expected = read(get(['x-a', 'b'])).text;
  for (const order of [
    [path, authority, scheme, method],
    [authority, path, method, scheme],
    [scheme, method, path, authority],
  ]) {
    assert.equal(read([...order, ['x-a', 'b']]).text, expected);
  }
});

test('a head without any field, and OPTIONS *', () => {
  const { text } = read([
    [':method', 'OPTIONS'],
    [':scheme', 'http'],
    [':path', '*'],
    [':authority', 'a'],
  ]);
  assert.equal(text, 'OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n');
});

test('a body without Content-Length is chunked, one with keeps it', () => {
  const post: Field[] = [[':method', 'POST'], ...get().slice(1)];
  assert.match(read(post, false).text, /\r\ntransfer-encoding: chunked\r\n/);
  const { head, text } = read([...post, ['content-length', '12']], false);
  assert.equal(head.contentLength, 12);
  assert.doesNotMatch(text, /transfer-encoding/);
});

test('CONNECT is in authority form; extended CONNECT is an upgrade with a key', () => {
  const connect = read(
    [
      [':method', 'CONNECT'],
      [':authority', 'a.test:443'],
    ],
    false,
  );
  assert.equal(connect.text, 'CONNECT a.test:443 HTTP/1.1\r\nhost: a.test:443\r\n\r\n');
  assert.equal(connect.head.targetForm, TargetForm.AUTHORITY);
  const socket = read(
    [...get().map(([n, v]): Field => [n, n === ':method' ? 'CONNECT' : v]), [':protocol', 'websocket']].sort(
      ([a], [b]) => (a < b ? -1 : 1),
    ) as Field[],
    false,
  );
  assert.equal(socket.head.method, Method.GET);
  assert.match(
    socket.text,
    /^GET \/p\/q\?r=s HTTP\/1\.1\r\nhost: a\.test:8443\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: [A-Za-z0-9+/]{21}[AQgw]==\r\n\r\n$/,
  );
});

test('cookie crumbs are joined wherever they stand', () => {
  const { text } = read(
    get(['cookie', 'a=1'], ['x-1', '1'], ['x-2', '2'], ['cookie', 'b=2'], ['cookie', 'c=3'], ['x-3', '3']),
  );
  assert.equal(text.slice(text.indexOf('x-1')), 'x-1: 1\r\nx-2: 2\r\nx-3: 3\r\ncookie: a=1; b=2; c=3\r\n\r\n');
});

test('long paths and heads that nearly fill the memory for them are laid out right', () => {
  const longPath = `/${'p'.repeat(20_000)}?${'q'.repeat(10_000)}`;
  const list = get(...Array.from({ length: 8 }, (_, i): Field => [`x-${i}`, 'v'.repeat(3_000)]));
  list[3][1] = longPath;
  const { head } = read(list);
  assert.equal(head.pathLength, longPath.length);
});

test('what is over a limit is answered, not reset', () => {
  const head = new RequestHead();
  assert.equal(
    fields.read(decode(get(['x', 'y'.repeat(500)]), 300), true, wideLimits, head),
    ParseError.HEAD_TOO_LARGE,
  );
  assert.equal(fields.read(decode(get()), true, { ...wideLimits, uriBytesMax: 7 }, head), ParseError.URI_TOO_LONG);
  const two = get(['x-1', ''], ['x-2', '']);
  assert.equal(fields.read(decode(two), true, { ...wideLimits, headerCountMax: 1 }, head), ParseError.TOO_MANY_FIELDS);
  assert.equal(fields.read(decode(two), true, { ...wideLimits, headerCountMax: 2 }, head), 0);
  assert.equal(fields.read(decode(get(['expect', 'tea'])), true, wideLimits, head), ParseError.EXPECTATION_UNKNOWN);
});

test('a request with its own Sec-WebSocket-Key is no extended CONNECT', () => {
  const list: Field[] = [
    [':method', 'CONNECT'],
    [':protocol', 'websocket'],
    ...get().slice(1),
    ['sec-websocket-key', 'x'],
  ];
  assert.equal(fields.read(decode(list), false, wideLimits, new RequestHead()), REQUEST_MALFORMED);
});

test('no block is left over after all of these', () => {
  assert.equal(reactor.arena.used, 0);
});
