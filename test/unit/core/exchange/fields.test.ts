// Small questions about fields: list membership and case-insensitive equality, byte by byte.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { connectionNames, valueEquals } from '../../../../core/exchange/fields.ts';
import { RequestHead } from '../../../../core/http1/message.ts';
import { parseRequestHead } from '../../../../core/http1/request-parser.ts';
import { wideLimits } from './support.ts';

function named(fields: string): boolean[] {
  const memory = Buffer.from(`GET / HTTP/1.1\r\nHost: h\r\n${fields}\r\n`, 'latin1');
  const head = new RequestHead();
  assert.ok(parseRequestHead(memory, 0, memory.length, wideLimits, head) > 0);
  return Array.from({ length: head.headers.count - 1 }, (_, i) => connectionNames(memory, head.headers, i + 1));
}

test('Connection names whole elements, in any case and any of its fields', () => {
  assert.deepEqual(named('Connection: x-a\r\nX-A: 1\r\nx-ab: 1\r\nx: 1\r\n'), [false, true, false, false]);
  assert.deepEqual(named('a: 1\r\nConnection: , b ,\t\r\nconnection:A,c\r\nc: 1\r\nb: 1\r\n'), [
    true,
    false,
    false,
    true,
    true,
  ]);
  assert.deepEqual(named('a: 1\r\n'), [false]);
  assert.deepEqual(named('a: 1\r\nConnection:\r\n'), [false, false]);
});

test('values are equal whatever the case of their letters, and only letters have a case', () => {
  const equals = (value: string, text: string): boolean =>
    valueEquals(Buffer.from(`<${value}>`, 'latin1'), 1, value.length, Buffer.from(text));
  assert.equal(equals('WebSocket', 'websocket'), true);
  assert.equal(equals('websocket', 'websockets'), false);
  assert.equal(equals('websockets', 'websocket'), false);
  assert.equal(equals('A[', 'a{'), false);
  assert.equal(equals('@Z', '`z'), false);
  assert.equal(equals('', ''), true);
});
