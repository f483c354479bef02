// Heads between HTTP/1.1 text and HTTP/2 header blocks: requests to an upstream and its responses.
// Spec: RFC 9113 §8.2 (fields), §8.3 (pseudo-header fields), RFC 8441 §5 (extended CONNECT).

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { HeaderTable } from '../../../../core/http1/header-table.ts';
import { Method, ResponseHead } from '../../../../core/http1/message.ts';
import { parseResponseHead } from '../../../../core/http1/response-parser.ts';
import { HpackDecoder } from '../../../../core/http2/hpack-decoder.ts';
import { HpackEncoder } from '../../../../core/http2/hpack-encoder.ts';
import type { Http2Output } from '../../../../core/http2/output.ts';
import { RequestEncoder, type RequestParts } from '../../../../core/http2/request-encoder.ts';
import {
  HEAD_MALFORMED,
  HEAD_TOO_LARGE,
  responseContentLength,
  responseStatus,
  writeResponseHead,
} from '../../../../core/http2/response-reader.ts';
import type { HeaderBlock } from '../../../../core/http2/role.ts';
import type { Http2Stream } from '../../../../core/http2/stream.ts';
import { memoryReactor, textOf, wideLimits } from './support.ts';

const reactor = memoryReactor();
const { memory } = reactor;
const TEXT = reactor.arena.scratchOffset;
const BLOCK = TEXT + 20_000;
const LINES = TEXT + 40_000;

type Field = [name: string, value: string];

// -- requests ------------------------------------------------------------------------------

/** Lines of the header block that a request head becomes. */
function encoded(text: string, more: Partial<RequestParts> = {}, https = false): string[] {
  const encoder = new HpackEncoder();
  let end = 0;
  const output = {
    beginHeaders: () => BLOCK,
    encoderOf: () => encoder,
    endHeaders: (_stream: Http2Stream, at: number) => (end = at),
  };
  memory.set(Buffer.from(text, 'latin1'), TEXT);
  const method = text.slice(0, text.indexOf(' '));
  const path = text.split(' ')[1];
  const host = /^host: (.*)$/im.exec(text)?.[1].trimEnd() ?? '';
  const parts: RequestParts = {
    headOffset: TEXT,
    headLength: text.length,
    method: Method[method as keyof typeof Method] ?? Method.OTHER,
    methodLength: method.length,
    pathOffset: TEXT + method.length + 1,
    pathLength: path.length,
    hostOffset: TEXT + text.search(/^host: /im) + 6,
    hostLength: host.length,
    rewrittenPathLength: 0,
    rewrittenHostOffset: 0,
    rewrittenHostLength: 0,
    upgradeRequested: false,
    secretRequest: false,
    ...more,
  };
  const requests = new RequestEncoder(reactor, output as unknown as Http2Output);
  const stream = { session: { broken: false } } as unknown as Http2Stream;
  if (!requests.write(stream, parts, https, true)) return [requests.tooLarge ? 'too large' : 'broken'];
  const decoder = new HpackDecoder(4096, 100_000);
  assert.equal(decoder.decode(memory, BLOCK, end - BLOCK, LINES, 20_000, new HeaderTable(), 256), 0);
  assert.equal(decoder.malformed, 0);
  return textOf(memory, LINES, decoder.outLength).split('\r\n').slice(0, -1);
}

test('methods, schemes, paths and authorities become pseudo-header fields', () => {
  assert.deepEqual(encoded('GET / HTTP/1.1\r\nHost: a.test\r\n\r\n'), [
    ':method: GET',
    ':scheme: http',
    ':authority: a.test',
    ':path: /',
  ]);
  assert.deepEqual(encoded('PURGE /a%20b?c HTTP/1.1\r\nhost: [::1]:8080\r\n\r\n', {}, true), [
    ':method: PURGE',
    ':scheme: https',
    ':authority: [::1]:8080',
    ':path: /a%20b?c',
  ]);
  assert.deepEqual(encoded('OPTIONS * HTTP/1.1\r\nHost: \r\n\r\n'), [':method: OPTIONS', ':scheme: http', ':path: *']);
});

test('what concerns only an HTTP/1.1 connection is left out, and names are in lower case', () => {
  const head = [
    'POST /x HTTP/1.1',
    'Host: a.test',
    'Transfer-Encoding: chunked',
    'TE: trailers',
    'Connection: te',
    'Keep-Alive: 5',
    'Proxy-Connection: x',
    'HTTP2-Settings: x',
    'X-MiXeD: Value',
    'Content-Length: 5',
    'Authorization: Basic abc',
    'x-empty: ',
  ].join('\r\n');
  assert.deepEqual(encoded(`${head}\r\n\r\n`).slice(4), [
    'te: trailers',
    'x-mixed: Value',
    'content-length: 5',
    'authorization: Basic abc',
    'x-empty: ',
  ]);
});

test('an upgrade becomes an extended CONNECT without the key of the handshake', () => {
  const head =
    'GET /chat HTTP/1.1\r\nHost: a.test\r\nSec-WebSocket-Key: abc\r\nOrigin: b\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n';
  assert.deepEqual(encoded(head, { upgradeRequested: true }), [
    ':method: CONNECT',
    ':protocol: websocket',
    ':scheme: http',
    ':authority: a.test',
    ':path: /chat',
    'origin: b',
  ]);
});

test('a head with more fields than can be told apart is too large', () => {
  const fields = (count: number): string => Array.from({ length: count }, (_, i) => `x-${i}: 1\r\n`).join('');
  assert.equal(encoded(`GET / HTTP/1.1\r\nHost: a\r\n${fields(250)}\r\n`).length, 4 + 250);
  assert.deepEqual(encoded(`GET / HTTP/1.1\r\nHost: a\r\n${fields(256)}\r\n`), ['too large']);
});

// -- responses -----------------------------------------------------------------------------

function decoded(fields: Field[], listBytesMax = 100_000): HeaderBlock {
  const encoder = new HpackEncoder();
  let end = encoder.begin(memory, BLOCK);
  for (const [name, value] of fields) {
    memory.set(Buffer.from(name + value, 'latin1'), TEXT);
    end = encoder.putField(memory, end, TEXT, name.length, TEXT + name.length, value.length, 0, false);
  }
  const decoder = new HpackDecoder(4096, listBytesMax);
  const headers = new HeaderTable();
  assert.equal(decoder.decode(memory, BLOCK, end - BLOCK, LINES, 20_000, headers, 256), 0);
  return {
    headers,
    decoder,
    textOffset: LINES,
    textLength: decoder.outLength,
    roomBefore: 0,
    textLimit: LINES + 20_000,
  };
}

/** Everything that the two ways to a ResponseHead must agree on. */
function summary(head: ResponseHead): unknown {
  const { headers, ...rest } = { ...head };
  return { ...rest, versionMinor: 0, words: Array.from(headers.words.subarray(0, headers.count * 5)) };
}

test('a response head reads as if it had been parsed from the text that it becomes', () => {
  const heads: Field[][] = [
    [[':status', '200']],
    [
      [':status', '404'],
      ['content-length', '12'],
      ['server', 'x'],
    ],
    [
      [':status', '599'],
      ['x-empty', ''],
      ['set-cookie', 'a=b'],
      ['set-cookie', 'c=d'],
      ['date', 'today'],
      ['x-high', 'caf\u00e9'],
      ['forwarded', 'for=x'],
    ],
    [
      [':status', '200'],
      ['x-long', 'v'.repeat(5000)],
    ],
  ];
  for (const fields of heads) {
    const block = decoded(fields);
    const status = responseStatus(memory, block);
    assert.equal(status, Number(fields[0][1]));
    const head = new ResponseHead();
    const end = writeResponseHead(reactor, TEXT, block, status, responseContentLength(memory, block), head);
    const text = textOf(memory, TEXT, end - TEXT);
    assert.ok(text.startsWith(`HTTP/1.1 ${status} `));
    const lines = fields.slice(1).map(([name, value]) => `${name}: ${value}\r\n`);
    assert.equal(text.slice(text.indexOf('\r\n') + 2), `${lines.join('')}\r\n`);
    const parsed = new ResponseHead();
    assert.equal(parseResponseHead(memory, TEXT, end - TEXT, wideLimits, parsed), end - TEXT);
    assert.deepEqual(summary(head), summary(parsed));
  }
});

test('a head that is malformed or too large is told from a good one', () => {
  const bad: Field[][] = [
    [],
    [['server', 'x']],
    [[':status', '']],
    [[':status', '20']],
    [[':status', '2000']],
    [[':status', '099']],
    [[':status', '600']],
    [[':status', '+20']],
    [
      [':status', '200'],
      [':status', '200'],
    ],
    [
      [':status', '200'],
      [':path', '/'],
    ],
    [
      ['x-a', 'b'],
      [':status', '200'],
    ],
    [
      [':status', '200'],
      ['connection', 'close'],
    ],
    [
      [':status', '200'],
      ['transfer-encoding', 'chunked'],
    ],
    [
      [':status', '200'],
      ['upgrade', 'h2c'],
    ],
    [
      [':status', '200'],
      ['content-length', '1'],
      ['content-length', '1'],
    ],
    [
      [':status', '200'],
      ['x-a', 'b\r\nc: d'],
    ],
  ];
  for (const fields of bad)
    assert.equal(responseStatus(memory, decoded(fields)), HEAD_MALFORMED, JSON.stringify(fields));
  assert.equal(
    responseStatus(
      memory,
      decoded(
        [
          [':status', '200'],
          ['x-a', 'b'.repeat(100)],
        ],
        60,
      ),
    ),
    HEAD_TOO_LARGE,
  );
  for (const value of ['', '-1', '1,1', '0x1']) {
    const block = decoded([
      [':status', '200'],
      ['content-length', value],
    ]);
    assert.equal(responseContentLength(memory, block), -2, value);
  }
  assert.equal(responseContentLength(memory, decoded([[':status', '200']])), -1);
});

test('a head whose target and host were rewritten says the new ones', () => {
  const text = 'GET /new?q HTTP/1.1\r\nhost: inner.test\r\nx-a: 1\r\n\r\n/old?q outer.test';
  const head = text.indexOf('/old');
  const fields = encoded(text, {
    headLength: head,
    pathOffset: TEXT + head,
    pathLength: '/old?q'.length,
    hostOffset: TEXT + text.indexOf('outer'),
    hostLength: 'outer.test'.length,
    rewrittenPathLength: '/new?q'.length,
    rewrittenHostOffset: TEXT + text.indexOf('inner'),
    rewrittenHostLength: 'inner.test'.length,
  });
  assert.deepEqual(fields, [':method: GET', ':scheme: http', ':authority: inner.test', ':path: /new?q', 'x-a: 1']);
});
