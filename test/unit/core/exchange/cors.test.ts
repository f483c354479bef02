// CORS by the Fetch standard: whose pages are allowed, what preflight requests and others are told.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Cors, CorsState } from '../../../../core/exchange/cors.ts';
import { Exchange } from '../../../../core/exchange/exchange.ts';
import { RequestHead } from '../../../../core/http1/message.ts';
import { parseRequestHead } from '../../../../core/http1/request-parser.ts';
import type { CorsSettings } from '../../../../core/workers/filter-settings.ts';
import { memoryReactor, textOf, wideLimits } from './support.ts';

const { ALLOWED, PREFLIGHT } = CorsState;
const reactor = memoryReactor();
const head = new RequestHead();

const settings: CorsSettings = {
  allowOrigins: ['https://shop.example.com'],
  allowMethods: [],
  allowHeaders: [],
  exposeHeaders: [],
  maxAgeSeconds: 5,
  allowCredentials: false,
};

/** State, and lines of the response, for a request with these fields. */
function judged(wanted: Partial<CorsSettings>, method: string, fields: string[]): { state: number; lines: string[] } {
  const { memory, arena } = reactor;
  const cors = new Cors({ ...settings, ...wanted });
  const text = `${method} / HTTP/1.1\r\nHost: a\r\n${fields.map((field) => `${field}\r\n`).join('')}\r\n`;
  memory.set(Buffer.from(text, 'latin1'), arena.receiveOffset);
  assert.equal(parseRequestHead(memory, arena.receiveOffset, text.length, wideLimits, head), text.length);
  const exchange = new Exchange();
  exchange.method = head.method;
  const kept = cors.judge(memory, head, exchange);
  const block = arena.allocate(Math.max(kept, 1));
  memory.fill(0xa5, block, block + kept + 8);
  if (kept > 0) cors.keep(memory, head.headers, exchange, block);
  assert.equal(memory[block + kept], 0xa5, 'more was kept than was said');
  // What is received next takes the place of the head.
  memory.fill(0xa5, arena.receiveOffset, arena.receiveOffset + text.length);
  const end = cors.put(reactor, arena.editOffset, exchange);
  assert.ok(end - arena.editOffset <= cors.linesBytesMax);
  const lines = textOf(memory, arena.editOffset, end - arena.editOffset)
    .split('\r\n')
    .slice(0, -1);
  arena.free(block);
  return { state: exchange.cors, lines };
}

test('origins are compared whole: scheme, host and port', () => {
  const allowOrigins = ['https://shop.example.com', 'https://*.example.org', 'http://*.local:8080'];
  for (const [origin, allowed] of [
    ['https://shop.example.com', true],
    ['HTTPS://Shop.Example.Com', true],
    ['http://shop.example.com', false],
    ['https://shop.example.com:443', false],
    ['https://shop.example.com.evil', false],
    ['https://evil-shop.example.com', false],
    ['https://a.example.org', true],
    ['https://a.b-1.example.org', true],
    ['https://example.org', false],
    ['https://.example.org', false],
    ['https://aexample.org', false],
    ['https://a.example.org:1', false],
    ['https://evil.test/.example.org', false],
    ['https://evil.test:1.example.org', false],
    ['https://user@a.example.org', false],
    ['http://a.local:8080', true],
    ['http://a.local', false],
    ['null', false],
    ['', false],
    [`https://${'a'.repeat(600)}.example.org`, false],
  ] as const) {
    const { state, lines } = judged({ allowOrigins }, 'GET', [`Origin: ${origin}`]);
    assert.equal(state, allowed ? ALLOWED : 0, origin);
    assert.deepEqual(lines, [...(allowed ? [`access-control-allow-origin: ${origin}`] : []), 'vary: origin'], origin);
  }
});

test('two origins are none, and a request without one is told nothing but Vary', () => {
  const origin = 'Origin: https://shop.example.com';
  assert.deepEqual(judged({}, 'GET', [origin, origin]), { state: 0, lines: ['vary: origin'] });
  assert.deepEqual(judged({}, 'GET', []), { state: 0, lines: ['vary: origin'] });
});

test('any origin without credentials gets one constant answer, with credentials its own name', () => {
  const fields = ['Origin: https://a.test'];
  const any = { allowOrigins: ['*'] };
  assert.deepEqual(judged(any, 'GET', fields).lines, ['access-control-allow-origin: *']);
  assert.deepEqual(judged(any, 'GET', []).lines, []);
  assert.deepEqual(judged({ ...any, allowCredentials: true }, 'GET', fields).lines, [
    'access-control-allow-origin: https://a.test',
    'access-control-allow-credentials: true',
    'vary: origin',
  ]);
});

const preflight = [
  'Origin: https://shop.example.com',
  'Access-Control-Request-Method: PUT',
  'Access-Control-Request-Headers: x-a,content-type',
];

test('a preflight request is told what is allowed, a simple one what it may read', () => {
  const wanted = {
    allowMethods: ['PUT', 'DELETE'],
    allowHeaders: ['x-a', 'x-b'],
    exposeHeaders: ['x-c'],
    maxAgeSeconds: 600,
  };
  assert.deepEqual(judged(wanted, 'OPTIONS', preflight), {
    state: ALLOWED | PREFLIGHT,
    lines: [
      'access-control-allow-origin: https://shop.example.com',
      'access-control-allow-methods: PUT, DELETE',
      'access-control-allow-headers: x-a, x-b',
      'access-control-max-age: 600',
      'vary: origin',
    ],
  });
  assert.deepEqual(judged(wanted, 'PUT', preflight), {
    state: ALLOWED,
    lines: [
      'access-control-allow-origin: https://shop.example.com',
      'access-control-expose-headers: x-c',
      'vary: origin',
    ],
  });
});

test('OPTIONS without a method to ask for is no preflight request', () => {
  assert.equal(judged({}, 'OPTIONS', preflight.slice(0, 1)).state, ALLOWED);
  assert.equal(judged({}, 'OPTIONS', preflight.slice(1)).state, 0);
});

test('a preflight request from elsewhere is one, and is told nothing', () => {
  const fields = ['Origin: https://evil.test', ...preflight.slice(1)];
  assert.deepEqual(judged({ allowMethods: ['*'] }, 'OPTIONS', fields), { state: PREFLIGHT, lines: ['vary: origin'] });
});

test('wildcards are said as such, and with credentials, where they mean nothing, what is asked for is repeated', () => {
  const wanted = { allowMethods: ['*'], allowHeaders: ['*'] };
  assert.deepEqual(judged(wanted, 'OPTIONS', preflight).lines.slice(1, 3), [
    'access-control-allow-methods: *',
    'access-control-allow-headers: *',
  ]);
  assert.deepEqual(judged({ ...wanted, allowCredentials: true }, 'OPTIONS', preflight).lines, [
    'access-control-allow-origin: https://shop.example.com',
    'access-control-allow-credentials: true',
    'access-control-allow-methods: PUT',
    'access-control-allow-headers: x-a,content-type',
    'access-control-max-age: 5',
    'vary: origin, access-control-request-method, access-control-request-headers',
  ]);
  const long = [`Access-Control-Request-Headers: ${'h'.repeat(5000)}`];
  const { lines } = judged({ ...wanted, allowCredentials: true }, 'OPTIONS', [...preflight.slice(0, 2), ...long]);
  assert.ok(lines.every((line) => !line.startsWith('access-control-allow-headers')));
});

test('a method that is longer than any is not repeated, and not allowed', () => {
  const { state, lines } = judged({ allowMethods: ['*'], allowCredentials: true }, 'OPTIONS', [
    'Origin: https://shop.example.com',
    `Access-Control-Request-Method: ${'M'.repeat(20_000)}`,
  ]);
  assert.equal(state, ALLOWED | PREFLIGHT);
  assert.deepEqual(
    lines.filter((line) => line.startsWith('access-control-allow-methods')),
    [],
  );
});
