// Request heads as filters change them: what goes upstream, and what logs go on showing.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { ProxyContext } from '../../../../core/exchange/context.ts';
import { Exchange } from '../../../../core/exchange/exchange.ts';
import { HeadFilters } from '../../../../core/exchange/filters.ts';
import { editRequestHead } from '../../../../core/exchange/request-edits.ts';
import { writeRequestHead } from '../../../../core/exchange/request-head.ts';
import { RequestIds } from '../../../../core/exchange/request-id.ts';
import { RequestHead } from '../../../../core/http1/message.ts';
import { parseRequestHead } from '../../../../core/http1/request-parser.ts';
import type { HeadEditSettings, HeadFilterSettings } from '../../../../core/workers/filter-settings.ts';
import type { HttpSettings } from '../../../../core/workers/snapshot.ts';
import { seededRandom } from '../io/seed.ts';
import { randomField, randomValue } from './random-heads.ts';
import { clientFrom, fieldsOf, memoryReactor, runtimeOf, textOf, wideLimits } from './support.ts';

const KEPT_BYTES = 3000;
const reactor = memoryReactor();
const context = { reactor, memory: reactor.memory } as ProxyContext;
const head = new RequestHead();
const ids = new RequestIds((words) => words.set([1, 2, 3, 4]));
const client = clientFrom('192.0.2.1');

interface Edited {
  /** The request line, and "name: value" of each field. */
  line: string;
  fields: string[];
  /** What logs show. */
  shown: { method: string; path: string; host: string; id: string; forwardedFor: string };
  exchange: Exchange;
  /** What request-encoder.ts takes for the target and for Host. */
  target: string;
  authority: string;
}

const none: HeadFilterSettings = { requestHeaders: null, responseHeaders: null, rewrite: null };

function edits(drop: string[], ...lines: [string, string][]): HeadEditSettings {
  return { drop, lines: lines.map(([name, value]) => ({ name, value })) };
}

/** What becomes of a head; a number if it is refused. */
function edit(input: string, settings: Partial<HeadFilterSettings>, http: Partial<HttpSettings> = {}): Edited | number {
  const { memory, arena } = reactor;
  const runtime = runtimeOf(http);
  memory.set(Buffer.from(input, 'latin1'), arena.receiveOffset);
  const parsed = parseRequestHead(memory, arena.receiveOffset, input.length, wideLimits, head);
  assert.equal(parsed, input.length, `the input is not one head (${parsed})`);
  const exchange = new Exchange();
  exchange.method = head.method;
  writeRequestHead(reactor, arena.editOffset, head, exchange, runtime, client, new Uint8Array(), ids);
  const before = {
    method: textOf(memory, exchange.headOffset, exchange.methodLength),
    path: textOf(memory, exchange.pathOffset, exchange.pathLength),
    host: textOf(memory, exchange.hostOffset, exchange.hostLength),
    id: textOf(memory, exchange.requestIdOffset, exchange.requestIdLength),
    forwardedFor: textOf(memory, exchange.forwardedForOffset, exchange.forwardedForLength),
  };
  const used = arena.used;
  const end = editRequestHead(context, exchange, new HeadFilters({ ...none, ...settings }), KEPT_BYTES);
  if (end <= 0) {
    assert.equal(arena.used, used, 'a block was kept');
    return end;
  }
  assert.ok(end + KEPT_BYTES <= exchange.headBlock + arena.sizeOf(exchange.headBlock), 'no room for what is kept');
  // The texts must not depend on the edit area any more.
  memory.fill(0xa5, arena.editOffset, arena.editOffset + 70_000);
  const text = textOf(memory, exchange.headOffset, exchange.headLength);
  const shown = {
    method: textOf(memory, exchange.headOffset, exchange.methodLength),
    path: textOf(memory, exchange.pathOffset, exchange.pathLength),
    host: textOf(memory, exchange.hostOffset, exchange.hostLength),
    id: textOf(memory, exchange.requestIdOffset, exchange.requestIdLength),
    forwardedFor: textOf(memory, exchange.forwardedForOffset, exchange.forwardedForLength),
  };
  assert.deepEqual(shown, before, 'logs would show something else');
  const again = parseRequestHead(memory, exchange.headOffset, exchange.headLength, wideLimits, head);
  assert.equal(again, exchange.headLength, `the edited head is not one head (${again}): ${text}`);
  const { rewrittenPathLength, rewrittenHostOffset, rewrittenHostLength, headOffset, methodLength } = exchange;
  const result = {
    line: text.slice(0, text.indexOf('\r\n')),
    fields: fieldsOf(memory, head.headers),
    shown,
    exchange,
    target: rewrittenPathLength > 0 ? textOf(memory, headOffset + methodLength + 1, rewrittenPathLength) : shown.path,
    authority: rewrittenHostLength > 0 ? textOf(memory, rewrittenHostOffset, rewrittenHostLength) : shown.host,
  };
  arena.free(exchange.headBlock);
  return result;
}

function edited(input: string, settings: Partial<HeadFilterSettings>, http: Partial<HttpSettings> = {}): Edited {
  const result = edit(input, settings, http);
  assert.ok(typeof result !== 'number', `refused with ${result}`);
  return result;
}

const plain = 'GET /a?b HTTP/1.1\r\nHost: a.test\r\nX-A: 1\r\nx-b: 2\r\nX-a: 3\r\n\r\n';

test('set replaces all fields of a name, add leaves them, remove drops them', () => {
  const set = edited(plain, { requestHeaders: edits(['x-a'], ['x-a', 'new']) });
  assert.deepEqual(set.fields, ['Host: a.test', 'x-b: 2', 'x-a: new']);
  const add = edited(plain, { requestHeaders: edits([], ['x-a', 'new']) });
  assert.deepEqual(add.fields, ['Host: a.test', 'X-A: 1', 'x-b: 2', 'X-a: 3', 'x-a: new']);
  const remove = edited(plain, { requestHeaders: edits(['x-a', 'x-none']) });
  assert.deepEqual(remove.fields, ['Host: a.test', 'x-b: 2']);
  for (const { line } of [set, add, remove]) assert.equal(line, 'GET /a?b HTTP/1.1');
});

test('a filter has the last word on the fields that the gateway adds itself', () => {
  const { fields, shown } = edited(
    plain,
    { requestHeaders: edits(['x-request-id', 'x-forwarded-for', 'via'], ['x-request-id', 'mine']) },
    { forwardedHeaders: true, requestIdHeader: true, via: 'edge' },
  );
  assert.deepEqual(fields.slice(4), ['x-forwarded-proto: http', 'x-forwarded-host: a.test', 'x-request-id: mine']);
  assert.equal(shown.id.length, 36);
  assert.equal(shown.forwardedFor, '192.0.2.1');
});

test('a rewritten host and path go upstream, while logs show those of the client', () => {
  const { line, fields, shown, target, authority } = edited(plain, {
    rewrite: { hostname: 'b.test', path: { type: 'ReplaceFullPath', value: '/new', prefixes: [] } },
  });
  assert.equal(line, 'GET /new?b HTTP/1.1');
  assert.deepEqual(fields, ['host: b.test', 'X-A: 1', 'x-b: 2', 'X-a: 3']);
  assert.deepEqual([shown.path, shown.host, target, authority], ['/a?b', 'a.test', '/new?b', 'b.test']);
});

test('a rewritten host takes the place of one in the target, of an empty one, and of none', () => {
  const rewrite = { hostname: 'b.test', path: null };
  for (const input of [
    'GET http://a.test/x HTTP/1.1\r\nHost: other\r\n\r\n',
    'GET /x HTTP/1.1\r\nHost:\r\n\r\n',
    'GET /x HTTP/1.0\r\n\r\n',
  ]) {
    const { line, fields, authority } = edited(input, { rewrite });
    assert.equal(line, 'GET /x HTTP/1.1');
    assert.deepEqual(fields, ['host: b.test']);
    assert.equal(authority, 'b.test');
  }
});

test('a head that would be too large, or have too many fields, is refused and keeps no block', () => {
  const large = {
    requestHeaders: edits([], ...Array.from({ length: 2 }, () => ['x-l', 'l'.repeat(4000)] as [string, string])),
  };
  const long = `GET /${'p'.repeat(30_000)} HTTP/1.1\r\nHost: a\r\n\r\n`;
  const path = { type: 'ReplaceFullPath' as const, value: '/n', prefixes: [] };
  assert.equal(edit(long, { ...large, rewrite: { hostname: '', path } }), -1);
  const many = `GET / HTTP/1.1\r\nHost: a\r\n${'x: y\r\n'.repeat(254)}\r\n`;
  assert.equal(edit(many, { requestHeaders: edits([], ['x-one', '1'], ['x-two', '2']) }), -1);
  assert.equal(typeof edit(plain, large), 'object');
});

test('random heads and changes give exactly the fields that a plain description says', (t) => {
  const { random, label } = seededRandom(t);
  const names = [
    'x-a',
    'x-ab',
    'x-b',
    'accept',
    'user-agent',
    'cookie',
    'via',
    'forwarded',
    'x-forwarded-for',
    'x-request-id',
  ];
  for (let round = 0; round < 2000; round++) {
    const fields = Array.from({ length: random.int(0, 12) }, () =>
      randomField(random, random.pick(names), randomValue(random)),
    );
    fields.splice(random.int(0, fields.length), 0, randomField(random, 'host', 'a.test'));
    const path = random.pick(['/', '/a/b', `/${'p'.repeat(random.int(0, 600))}`]) + random.pick(['', '?q=1']);
    const input = `GET ${path} HTTP/1.1\r\n${fields.map(({ line }) => line).join('')}\r\n`;
    const drop = names.filter(() => random.chance(0.3));
    const lines = Array.from({ length: random.int(0, 4) }, (): [string, string] => [
      random.pick([...names, 'x-new']),
      'v'.repeat(random.int(1, 300)),
    ]);
    const hostname = random.pick(['', 'b.test']);
    const newPath = random.chance(0.5);
    const http = {
      forwardedHeaders: random.chance(0.5),
      requestIdHeader: random.chance(0.5),
      via: random.pick(['', 'edge']),
    };
    const description = `${label}, round ${round}`;
    // What goes upstream without filters.
    const before = edited(input, {}, http).fields.map(lower);
    const { line, fields: after } = edited(
      input,
      {
        requestHeaders: edits(drop, ...lines),
        rewrite: { hostname, path: newPath ? { type: 'ReplacePrefixMatch', value: '/n', prefixes: [''] } : null },
      },
      http,
    );
    const kept = before.filter((field) => {
      const name = field.slice(0, field.indexOf(':'));
      return !drop.includes(name) && !(name === 'host' && hostname !== '');
    });
    const expected = [
      ...(hostname === '' ? [] : [`host: ${hostname}`]),
      ...kept,
      ...lines.map(([name, value]) => `${name}: ${value}`),
    ];
    const ids36 = (list: string[]): string[] => list.map((field) => field.replace(/[0-9a-f-]{36}$/, 'ID'));
    assert.deepEqual(ids36(after.map(lower)), ids36(expected), description);
    assert.equal(line, `GET ${newPath ? `/n${path}` : path} HTTP/1.1`, description);
  }
});

/** A field with its name in lower case. */
function lower(field: string): string {
  const colon = field.indexOf(':');
  return field.slice(0, colon).toLowerCase() + field.slice(colon);
}
