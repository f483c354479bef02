// Accept-Encoding, which responses are compressed, and what their heads say then.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  CODED_HEAD_BYTES_MAX,
  CompressionPolicy,
  ContentCoding,
  isCompressible,
  negotiateCoding,
  rewriteCodedHead,
} from '../../../../core/exchange/content-coding.ts';
import { RequestHead, ResponseHead } from '../../../../core/http1/message.ts';
import { parseRequestHead } from '../../../../core/http1/request-parser.ts';
import { parseResponseHead } from '../../../../core/http1/response-parser.ts';
import { Reactor } from '../../../../core/io/reactor.ts';
import type { CompressionSettings } from '../../../../core/workers/policies.ts';
import { FakeKernel } from '../io/fake-kernel.ts';
import { wideLimits } from './support.ts';

const settings: CompressionSettings = {
  codings: ['zstd', 'br', 'gzip'],
  minBytes: 1000,
  contentTypes: ['text/*', 'Application/JSON'],
  gzipLevel: 6,
  brotliLevel: 4,
  zstdLevel: 3,
};
const policy = new CompressionPolicy(settings);
const names = ['', 'identity', 'gzip', 'br', 'zstd'];

function negotiate(fields: string, codings = settings.codings): string {
  const memory = Buffer.from(`GET / HTTP/1.1\r\nHost: h\r\n${fields}\r\n`, 'latin1');
  const head = new RequestHead();
  assert.ok(parseRequestHead(memory, 0, memory.length, wideLimits, head) > 0, fields);
  return names[negotiateCoding(memory, head.headers, new CompressionPolicy({ ...settings, codings }))]!;
}

test('the coding with the highest weight wins, then the first of the rule', () => {
  const cases: [accept: string, coding: string][] = [
    ['gzip', 'gzip'],
    ['GZip', 'gzip'],
    ['x-gzip', 'gzip'],
    ['gzip, deflate, br, zstd', 'zstd'],
    ['gzip, br', 'br'],
    ['gzip;q=1, br;q=0.999', 'gzip'],
    ['gzip;q=0.001', 'gzip'],
    ['br;q=0.3,gzip;q=0.31, zstd;q=0.29', 'gzip'],
    ['br ; q=0.5 , gzip\t;\tQ=0.6', 'gzip'],
    ['*', 'zstd'],
    ['*;q=0.5, gzip;q=0.8', 'gzip'],
    ['*, zstd;q=0', 'br'],
    ['*;q=0', 'identity'],
    ['gzip;q=0, *', 'zstd'],
    ['gzip;q=0, br;q=0, zstd;q=0.0', 'identity'],
    ['identity', 'identity'],
    ['identity;q=0.5, gzip;q=0.4', 'identity'],
    ['identity;q=0.5, gzip;q=0.5', 'gzip'],
    ['identity;q=0, gzip;q=0.1', 'gzip'],
    ['identity;q=0', 'identity'],
    ['deflate, compress', 'identity'],
    ['', 'identity'],
    [', ,gzip,,', 'gzip'],
    // Malformed elements are as good as absent, the others count.
    ['gzip;q=2, br;q=0.5', 'br'],
    ['gzip;q=1.001', 'identity'],
    ['gzip;q=', 'identity'],
    ['gzip;q=.5', 'identity'],
    ['gzip;q=0.5000', 'identity'],
    ['gzip;q=0.x', 'identity'],
    ['gzip;level=9', 'identity'],
    ['gzip br', 'identity'],
    ['gzipp, ggzip', 'identity'],
  ];
  for (const [accept, coding] of cases) {
    assert.equal(negotiate(`Accept-Encoding: ${accept}\r\n`), coding, JSON.stringify(accept));
  }
});

test('fields add up, and without the field nothing is compressed', () => {
  assert.equal(negotiate('Accept-Encoding: deflate\r\nX-A: 1\r\naccept-encoding: br\r\n'), 'br');
  assert.equal(negotiate('Accept-Encoding: br;q=0\r\nAccept-Encoding: *;q=0.1\r\n', ['br', 'gzip']), 'gzip');
  assert.equal(negotiate('Accept: gzip\r\nX-Accept-Encoding: gzip\r\n'), 'identity');
  assert.equal(negotiate('Accept-Encoding: br, gzip\r\n', ['gzip', 'br']), 'gzip');
  assert.equal(negotiate('Accept-Encoding: zstd\r\n', ['gzip', 'br']), 'identity');
  // What one request says is forgotten with it.
  assert.equal(negotiate('Accept-Encoding: gzip, *\r\n', ['gzip']), 'gzip');
  assert.equal(negotiate('Accept-Encoding: br\r\n', ['gzip']), 'identity');
});

const HEAD_AT = 4096;

function load(reactor: Reactor, text: string): ResponseHead {
  const head = new ResponseHead();
  reactor.memory.set(Buffer.from(text, 'latin1'), HEAD_AT);
  assert.ok(parseResponseHead(reactor.memory, HEAD_AT, text.length, wideLimits, head) > 0, text);
  return head;
}

function reactor(): Reactor {
  return new Reactor(new FakeKernel(), 16, new Int32Array(18));
}

test('content type, length and what the response forbids decide whether it is compressed', () => {
  const shared = reactor();
  const judge = (fields: string, knownBytes = -1, status = '200 OK'): boolean => {
    const head = load(shared, `HTTP/1.1 ${status}\r\n${fields}\r\n`);
    return isCompressible(shared.memory, head, knownBytes, policy);
  };
  const text = 'Content-Type: text/html\r\n';
  assert.equal(judge(text), true);
  assert.equal(judge('content-type:  TEXT/Plain ; charset=utf-8\r\n'), true);
  assert.equal(judge('Content-Type: application/json\r\n'), true);
  assert.equal(judge('Content-Type: application/json;charset=utf-8\r\n'), true);
  assert.equal(judge('Content-Type: application/jsonp\r\n'), false);
  assert.equal(judge('Content-Type: application/jso\r\n'), false);
  assert.equal(judge('Content-Type: text/\r\n'), false);
  assert.equal(judge('Content-Type: text\r\n'), false);
  assert.equal(judge('Content-Type: image/png\r\n'), false);
  assert.equal(judge('X-A: 1\r\n'), false);
  assert.equal(judge(text, 1000), true);
  assert.equal(judge(text, 999), false);
  assert.equal(judge(text, 0), false);
  assert.equal(judge(text, -1, '404 Not Found'), true);
  assert.equal(judge(text, -1, '206 Partial Content'), false);
  assert.equal(judge(`${text}Content-Encoding: gzip\r\n`), false);
  assert.equal(judge(`${text}Content-Range: bytes 0-1/2\r\n`), false);
  assert.equal(judge(`${text}Trailer: x-a\r\n`), false);
  assert.equal(judge(`${text}Cache-Control: max-age=1, No-Transform\r\n`), false);
  assert.equal(judge(`${text}Cache-Control: max-age=1\r\nCache-Control: no-transform\r\n`), false);
  assert.equal(judge(`${text}Cache-Control: no-transforms, xno-transform\r\n`), true);
  for (const name of ['Content-MD5', 'Digest', 'Content-Digest', 'Repr-Digest']) {
    assert.equal(judge(`${text}${name}: x\r\n`), false, name);
  }
  const all = new CompressionPolicy({ ...settings, minBytes: 0, contentTypes: ['application/*'] });
  const grpc = load(shared, 'HTTP/1.1 200 OK\r\nContent-Type: application/grpc+proto\r\n\r\n');
  assert.equal(isCompressible(shared.memory, grpc, -1, all), false);
});

/** The head after the rewrite: its text, and that it was parsed again. */
function rewrite(text: string, coding: number): string {
  const shared = reactor();
  const head = load(shared, text);
  const { endOffset } = head;
  const behind = Buffer.from('the body');
  shared.memory.set(behind, endOffset);
  const start = rewriteCodedHead(shared, HEAD_AT, head, coding);
  assert.ok(start >= HEAD_AT - CODED_HEAD_BYTES_MAX, `${HEAD_AT - start} bytes more`);
  assert.equal(head.endOffset, endOffset);
  assert.equal(Buffer.from(shared.memory.subarray(endOffset, endOffset + behind.length)).toString(), 'the body');
  const result = Buffer.from(shared.memory.subarray(start, endOffset)).toString('latin1');
  const again = new ResponseHead();
  assert.ok(parseResponseHead(shared.memory, start, endOffset - start, wideLimits, again) > 0);
  assert.equal(head.headers.count, again.headers.count);
  for (let field = 0; field < again.headers.count; field++) {
    assert.equal(head.headers.valueOffset(field), again.headers.valueOffset(field));
  }
  assert.equal(head.contentLength, again.contentLength);
  return result;
}

test('a coded head says its coding, and nothing about the body that it is not', () => {
  assert.equal(
    rewrite(
      'HTTP/1.1 200 OK\r\nContent-Length: 5000\r\nETag: "a"\r\nAccept-Ranges: bytes\r\nX-A:  b\r\n\r\n',
      ContentCoding.BR,
    ),
    'HTTP/1.1 200 OK\r\nETag: W/"a"\r\nX-A:  b\r\ncontent-encoding: br\r\nvary: accept-encoding\r\n\r\n',
  );
  assert.equal(
    rewrite(
      'HTTP/1.1 200 Fine\r\netag: W/"a"\r\nVary: Origin\r\nTransfer-Encoding: chunked\r\n\r\n',
      ContentCoding.ZSTD,
    ),
    'HTTP/1.1 200 Fine\r\netag: W/"a"\r\nVary: Origin\r\nTransfer-Encoding: chunked\r\ncontent-encoding: zstd\r\nvary: accept-encoding\r\n\r\n',
  );
  assert.equal(
    rewrite('HTTP/1.1 200 OK\r\nVary: Origin, Accept-Encoding\r\n\r\n', ContentCoding.GZIP),
    'HTTP/1.1 200 OK\r\nVary: Origin, Accept-Encoding\r\ncontent-encoding: gzip\r\n\r\n',
  );
  assert.equal(
    rewrite('HTTP/1.1 200 OK\r\nVary: *\r\nETag:\r\n\r\n', ContentCoding.GZIP),
    'HTTP/1.1 200 OK\r\nVary: *\r\nETag:\r\ncontent-encoding: gzip\r\n\r\n',
  );
});

test('a head that might have been coded only says that it varies', () => {
  assert.equal(
    rewrite(
      'HTTP/1.1 200 OK\r\nContent-Length: 5\r\nETag: "a"\r\nAccept-Ranges: bytes\r\n\r\n',
      ContentCoding.IDENTITY,
    ),
    'HTTP/1.1 200 OK\r\nContent-Length: 5\r\nETag: "a"\r\nAccept-Ranges: bytes\r\nvary: accept-encoding\r\n\r\n',
  );
  const same = 'HTTP/1.1 200 OK\r\nvary: accept-encoding\r\n\r\n';
  assert.equal(rewrite(same, ContentCoding.IDENTITY), same);
});
