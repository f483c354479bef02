// Properties of the head parsers that single cases do not show: reuse, every byte value, rescans.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { findHeadEnd } from '../../../../core/http1/head-scan.ts';
import { RequestHead, ResponseHead } from '../../../../core/http1/message.ts';
import { parseRequestHead } from '../../../../core/http1/request-parser.ts';
import { parseResponseHead } from '../../../../core/http1/response-parser.ts';
import { fieldTexts, observeRequest, wideLimits } from './observe.ts';

const bytes = (text: string): Uint8Array => new Uint8Array(Buffer.from(text, 'latin1'));

/** All members of a head except the words of its table, which keep old fields beyond `count`. */
function members(head: RequestHead | ResponseHead): Record<string, unknown> {
  const { headers, ...rest } = head;
  return { ...rest, count: headers.count };
}

test('a request head object that has served other requests tells nothing of them', () => {
  const rich = bytes(
    'POST http://x.example:8/p?q HTTP/1.1\r\nHost: a\r\nConnection: close, upgrade, x\r\nUpgrade: u\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n',
  );
  const chunked = bytes('CONNECT a:1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n');
  const plain = bytes('GET / HTTP/1.0\r\n\r\n');
  const fresh = new RequestHead();
  assert.ok(parseRequestHead(plain, 0, plain.length, wideLimits, fresh) > 0);
  const used = new RequestHead();
  for (const input of [rich, chunked, plain]) parseRequestHead(input, 0, input.length, wideLimits, used);
  const kept = members(used);
  const expected = members(fresh);
  assert.deepEqual(kept, expected);
});

test('a response head object that has served other responses tells nothing of them', () => {
  const rich = bytes(
    'HTTP/1.1 101 Switching\r\nConnection: close, upgrade, x\r\nUpgrade: u\r\nTransfer-Encoding: chunked\r\n\r\n',
  );
  const plain = bytes('HTTP/1.0 200\r\n\r\n');
  const fresh = new ResponseHead();
  assert.ok(parseResponseHead(plain, 0, plain.length, wideLimits, fresh) > 0);
  const used = new ResponseHead();
  assert.ok(parseResponseHead(rich, 0, rich.length, wideLimits, used) > 0);
  assert.ok(parseResponseHead(plain, 0, plain.length, wideLimits, used) > 0);
  assert.deepEqual(members(used), members(fresh));
});

test('positions refer to the memory and not to the start of the head', () => {
  const memory = bytes(`${'#'.repeat(1000)}GET /x HTTP/1.1\r\nHost: h\r\nA: b\r\n\r\n`);
  const head = new RequestHead();
  assert.equal(parseRequestHead(memory, 1000, memory.length - 1000, wideLimits, head), memory.length - 1000);
  assert.equal(head.targetOffset, 1004);
  assert.equal(head.endOffset, memory.length);
  assert.deepEqual(fieldTexts(memory, head.headers), ['Host: h', 'A: b']);
});

test('of the 256 bytes exactly the allowed ones may stand in each place', () => {
  const token = /[!#$%&'*+\-.^_`|~0-9A-Za-z]/;
  const host = /[!$&'()*+,;=\-._~0-9A-Za-z]/;
  for (let value = 0; value < 256; value++) {
    const byte = String.fromCharCode(value);
    const accepts = (text: string): boolean => 'bytes' in observeRequest(bytes(text), wideLimits);
    const method = accepts(`A${byte}A / HTTP/1.0\r\n\r\n`);
    assert.equal(method, token.test(byte), `method with ${value}`);
    const target = accepts(`GET /a${byte}a HTTP/1.0\r\n\r\n`);
    assert.equal(target, value > 0x20 && value < 0x7f && byte !== '#', `target with ${value}`);
    const name = accepts(`GET / HTTP/1.0\r\na${byte}a: b\r\n\r\n`);
    // A colon in a name ends it earlier: "a", with the value "a: b".
    assert.equal(name, token.test(byte) || byte === ':', `name with ${value}`);
    const hostField = accepts(`GET / HTTP/1.0\r\nHost: a${byte}b\r\n\r\n`);
    assert.equal(hostField, host.test(byte), `Host with ${value}`);
    for (let before = 0; before < 9; before++) {
      const text = `GET / HTTP/1.0\r\na: ${'v'.repeat(before)}${byte}${'v'.repeat(12)}\r\n\r\n`;
      assert.equal(accepts(text), value === 9 || (value >= 0x20 && value !== 0x7f), `value with ${value} at ${before}`);
    }
  }
});

test('a resumed scan does not look again at what was scanned before', () => {
  const memory = bytes('a\r\n\r\nbcdef\r\n\r\n');
  assert.equal(findHeadEnd(memory, 0, memory.length, 0), 5);
  assert.equal(findHeadEnd(memory, 0, memory.length, 5), memory.length);
});

test('a scan finds ends made of bare line feeds, so that they are refused early', () => {
  for (const end of ['\r\n\r\n', '\n\n', '\n\r\n', '\r\n\n']) {
    const memory = bytes(`GET / HTTP/1.1${end}body\r\n\r\n`);
    assert.equal(findHeadEnd(memory, 0, memory.length, 0), 14 + end.length, JSON.stringify(end));
  }
  assert.equal(findHeadEnd(bytes('GET / HTTP/1.1\r\r\nA: b\r\n'), 0, 24, 0), -1);
});

test('empty lines before a request are not its end', () => {
  const memory = bytes('\r\n\r\nGET / HTTP/1.1\r\n\r\n');
  assert.equal(findHeadEnd(memory, 0, 4, 0), -1);
  assert.equal(findHeadEnd(memory, 0, memory.length, 4), memory.length);
  const third = bytes('\r\n\r\n\r\n');
  assert.equal(findHeadEnd(third, 0, 6, 4), 6);
});

test('parsing allocates nothing', () => {
  const request = bytes(
    'POST /a?b HTTP/1.1\r\nHost: a.example:8080\r\nUser-Agent: x\r\nConnection: keep-alive, x-a\r\nExpect: 100-continue\r\nContent-Length: 12\r\n\r\n',
  );
  const response = bytes('HTTP/1.1 200 OK\r\nServer: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n');
  const memory = new Uint8Array(1024);
  memory.set(request);
  memory.set(response, 512);
  const requestHead = new RequestHead();
  const responseHead = new ResponseHead();
  const parseMany = (): number => {
    const before = process.memoryUsage().heapUsed;
    for (let i = 0; i < 20_000; i++) {
      parseRequestHead(memory, 0, request.length, wideLimits, requestHead);
      parseResponseHead(memory, 512, response.length, wideLimits, responseHead);
    }
    return process.memoryUsage().heapUsed - before;
  };
  // The first rounds are interpreted and compiled, and a collection may fall into any; one byte per
  // call in the quietest round would already show.
  let quietest = Number.POSITIVE_INFINITY;
  for (let round = 0; round < 12; round++) quietest = Math.min(quietest, Math.abs(parseMany()));
  assert.ok(quietest < 20_000, `${quietest} bytes were allocated in 20,000 rounds`);
});
