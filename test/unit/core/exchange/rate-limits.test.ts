// Rate limits at the request: keys, order and giving back, what is said in the response, and Redis absent.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Exchange } from '../../../../core/exchange/exchange.ts';
import { ClaimReader } from '../../../../core/exchange/jwt-claim.ts';
import { limitKeyText } from '../../../../core/exchange/limit-key-text.ts';
import { putRateLimitLines, putRetryAfterLine } from '../../../../core/exchange/rate-limit-lines.ts';
import { LimitFailure, RateLimits } from '../../../../core/exchange/rate-limits.ts';
import { DETAIL_LIMIT } from '../../../../core/exchange/reasons.ts';
import { LimitState, type RuleLimits, ruleLimits } from '../../../../core/exchange/rule-limits.ts';
import { RequestHead } from '../../../../core/http1/message.ts';
import { parseRequestHead } from '../../../../core/http1/request-parser.ts';
import type { Reactor } from '../../../../core/io/reactor.ts';
import { KeyHash } from '../../../../core/limits/key-hash.ts';
import { limitName } from '../../../../core/limits/limit-names.ts';
import type { RateLimitKeyPart, RateLimitSettings } from '../../../../core/limits/limit-settings.ts';
import { LimitCounter } from '../../../../core/limits/limit-table.ts';
import { detailName } from '../../../../core/telemetry/outcome-names.ts';
import { LIMIT_NAMES_MAX, LimitTables } from '../../../../core/workers/limit-tables.ts';
import { noRulePolicy } from '../../../../core/workers/policies.ts';

const NOW_MS = 1_000_000;

function limit(name: string, changes: Partial<RateLimitSettings> = {}): RateLimitSettings {
  return {
    name,
    requests: 2,
    periodMs: 60_000,
    burst: 2,
    key: [],
    keysMax: 64,
    global: false,
    dryRun: false,
    headers: true,
    ...changes,
  };
}

/** One rule with limits, and requests for it. */
class Bench {
  readonly memory = new Uint8Array(16 * 1024);
  readonly view = new DataView(this.memory.buffer);
  readonly reactor = { memory: this.memory, view: this.view, nowMs: NOW_MS } as unknown as Reactor;
  readonly limits = new RateLimits(this.reactor);
  readonly head = new RequestHead();
  readonly rule: RuleLimits;
  readonly peer = { peerFamily: 2, peerPort: 0, peer0: 1, peer1: 0, peer2: 0, peer3: 0 };
  trustedHops = 0;

  constructor(...settings: RateLimitSettings[]) {
    const tables = new LimitTables(1).assign([{ ...noRulePolicy, rateLimits: settings }], NOW_MS);
    this.rule = ruleLimits(settings, tables, 0)!;
  }

  /** Applies the limits to a request; `fields` are lines of its head. */
  ask(fields: string[] = [], path = '/', redisUp = false, failure: number = LimitFailure.LOCAL): Exchange {
    const text = [`GET ${path} HTTP/1.1`, 'host: a', ...fields, '', ''].join('\r\n');
    this.memory.set(new TextEncoder().encode(text), 1024);
    const limits = { headBytesMax: 8192, headerCountMax: 64, uriBytesMax: 4096 };
    assert.ok(parseRequestHead(this.memory, 1024, text.length, limits, this.head) > 0, text);
    const exchange = new Exchange();
    exchange.policy = { limits: this.rule } as unknown as Exchange['policy'];
    exchange.downstream = this.peer as unknown as Exchange['downstream'];
    exchange.runtime = { http: { trustedHops: this.trustedHops } } as unknown as Exchange['runtime'];
    this.limits.apply(exchange, this.head, redisUp, failure);
    return exchange;
  }

  /** Whether requests with these fields pass, one after the other. */
  passes(count: number, fields: string[] = [], path = '/'): boolean[] {
    return Array.from({ length: count }, () => this.ask(fields, path).limitState === LimitState.NONE);
  }

  lines(exchange: Exchange): string {
    const end = putRateLimitLines(this.reactor, exchange, 8192);
    return new TextDecoder().decode(this.memory.subarray(8192, end));
  }

  counter(index: number, counter: number): number {
    return this.rule.all[index]!.table.counters[counter]!;
  }
}

function keyed(...key: RateLimitKeyPart[]): Bench {
  return new Bench(limit('keyed', { key }));
}

function viewOf(text: string): DataView {
  return new DataView(new TextEncoder().encode(text).buffer);
}

test('the same bytes in other parts, and an absent part and an empty one, are different keys', () => {
  const hash = new KeyHash();
  const bytes = viewOf('abcdefgh');
  const of = (...parts: [offset: number, length: number][]): string => {
    hash.begin(1, 2);
    for (const [offset, length] of parts) hash.part(bytes, offset, length);
    hash.end();
    return `${hash.low} ${hash.high}`;
  };
  const all = [
    of([0, 8]),
    of([0, 4], [4, 4]),
    of([0, 3], [3, 5]),
    of([0, 8], [0, 0]),
    of([0, 8], [0, -1]),
    of([0, 0], [0, 8]),
    of([0, -1]),
    of([0, 0]),
    of([0, 7]),
    of(),
  ];
  assert.equal(new Set(all).size, all.length);
  hash.begin(1, 3);
  hash.part(bytes, 0, 8);
  hash.end();
  assert.notEqual(`${hash.low} ${hash.high}`, all[0], 'another seed is another hash');
});

test('a hash is that of HalfSipHash-1-4 on the words of the parts and their lengths', () => {
  const seed: [number, number] = [0x1234_5678, -99];
  // Each part is its length, and then its words: the last two of "abcdefghi" overlap, "ab" is padded, one is absent.
  const words = [9, 0x6463_6261, 0x6867_6665, 0x6968_6766, 2, 0x6261, -1];
  // The algorithm as it is written down, a step at a time.
  let [v0, v1, v2, v3] = [seed[0], seed[1], 0x6c79_6765 ^ seed[0], 0x7465_6462 ^ seed[1]];
  const turn = (word: number, bits: number): number => (word << bits) | (word >>> (32 - bits));
  const round = (): void => {
    v0 = (v0 + v1) | 0;
    v1 = turn(v1, 5) ^ v0;
    v0 = turn(v0, 16);
    v2 = (v2 + v3) | 0;
    v3 = turn(v3, 8) ^ v2;
    v0 = (v0 + v3) | 0;
    v3 = turn(v3, 7) ^ v0;
    v2 = (v2 + v1) | 0;
    v1 = turn(v1, 13) ^ v2;
    v2 = turn(v2, 16);
  };
  for (const word of words) {
    v3 ^= word;
    round();
    v0 ^= word;
  }
  v2 ^= 0xff;
  for (let i = 0; i < 4; i++) round();
  const hash = new KeyHash();
  hash.begin(...seed);
  const bytes = viewOf('abcdefghi');
  hash.part(bytes, 0, 9);
  hash.part(bytes, 0, 2);
  hash.part(bytes, 0, -1);
  hash.end();
  assert.deepEqual([hash.low, hash.high], [v1 ^ v3, v0 ^ v2]);
});

test('a part is all of its bytes and nothing else, wherever it lies', () => {
  const hash = new KeyHash();
  const of = (view: DataView, offset: number, length: number): string => {
    hash.begin(5, 6);
    hash.part(view, offset, length);
    hash.end();
    return `${hash.low} ${hash.high}`;
  };
  const seen = new Set<string>();
  for (let length = 0; length <= 13; length++) {
    // A view of just these bytes: whatever reads beyond them throws.
    const bytes = new Uint8Array(length);
    const view = new DataView(bytes.buffer);
    seen.add(of(view, 0, length));
    for (let at = 0; at < length; at++) {
      bytes[at] = 200;
      const hashed = of(view, 0, length);
      seen.add(hashed);
      const among = new Uint8Array(32).fill(7);
      among.set(bytes, 9);
      assert.equal(of(new DataView(among.buffer), 9, length), hashed, `${length} bytes between others`);
      bytes[at] = 0;
    }
  }
  // Zeros of any length, and one byte that is none at any place.
  assert.equal(seen.size, 14 + (13 * 14) / 2);
});

test('every bit of a key changes half of the bits of its hash', () => {
  const hash = new KeyHash();
  const of = (bytes: Uint8Array): [number, number] => {
    hash.begin(0x1234567, -99);
    hash.part(new DataView(bytes.buffer), 0, bytes.length);
    hash.end();
    return [hash.low, hash.high];
  };
  const ones = (word: number): number => (word >>> 0).toString(2).replaceAll('0', '').length;
  let changed = 0;
  let pairs = 0;
  for (let key = 0; key < 200; key++) {
    const bytes = new TextEncoder().encode(`client-${key}`);
    const [low, high] = of(bytes);
    for (let bit = 0; bit < bytes.length * 8; bit++) {
      bytes[bit >> 3]! ^= 1 << (bit & 7);
      const [otherLow, otherHigh] = of(bytes);
      bytes[bit >> 3]! ^= 1 << (bit & 7);
      changed += ones(low ^ otherLow) + ones(high ^ otherHigh);
      pairs++;
    }
  }
  assert.ok(Math.abs(changed / pairs - 32) < 0.5, `${changed / pairs} of 64 bits`);
});

test('a field is found whatever its case, and only the first of a name counts', () => {
  const bench = keyed({ type: 'header', name: 'x-key' });
  assert.deepEqual(bench.passes(3, ['X-Key: a']), [true, true, false]);
  assert.deepEqual(bench.passes(1, ['x-keys: a', 'x-key: b', 'x-key: a']), [true]);
  assert.deepEqual(bench.passes(2, ['x-key: b']), [true, false]);
  assert.deepEqual(bench.passes(3, ['x-key:']), [true, true, false], 'empty');
  assert.deepEqual(bench.passes(3, []), [true, true, false], 'absent');
});

test('of a field that comes in two lines the first decides, whichever client repeats it', () => {
  const bench = keyed({ type: 'header', name: 'x-key' });
  assert.deepEqual(bench.passes(3, ['X-KEY: a', 'x-key: 1']), [true, true, false]);
  assert.deepEqual(
    bench.passes(1, ['x-key: a', 'accept: */*', 'X-Key: 2']),
    [false],
    'another second line is no way out',
  );
  assert.deepEqual(bench.passes(2, ['x-key:', 'x-key: a']), [true, true], 'an empty first line is the empty value');
  assert.deepEqual(bench.passes(1, ['x-key:  ']), [false]);
});

test('values of a key in several parts do not run into one another', () => {
  const bench = keyed({ type: 'header', name: 'x-a' }, { type: 'header', name: 'x-b' }, { type: 'path' });
  const requests: [string[], string][] = [
    [['x-a: abcd', 'x-b: efgh'], '/'],
    [['x-a: abcdefgh', 'x-b:'], '/'],
    [['x-a: abcdefgh'], '/'],
    [['x-b: abcdefgh'], '/'],
    [['x-a: abc', 'x-b: defgh'], '/'],
    [['x-a: efgh', 'x-b: abcd'], '/'],
    [['x-a: abcd', 'x-b: efgh'], '/a'],
  ];
  for (const [fields, path] of requests) {
    assert.deepEqual(bench.passes(3, fields, path), [true, true, false], `${fields} ${path}`);
  }
});

test('names of any length are told apart from those that begin or end alike', () => {
  for (const name of ['k', 'key', 'keys', 'x-key', 'x-my-key', 'x-my-key^']) {
    const bench = keyed({ type: 'header', name });
    const others = [`${name.slice(0, -1)}!: v`, `!${name.slice(1)}: v`, `${name}s: v`, `a${name}: v`];
    if (name.length > 4) others.push(`${name.slice(0, 2)}!${name.slice(3)}: v`);
    // It differs from ^ only by the bit that makes upper case lower case, and is no letter.
    others.push(`${name.slice(0, -1)}~: v`);
    assert.deepEqual(bench.passes(3, [`${name.toUpperCase()}: v`]), [true, true, false], name);
    // All of these are requests without the field: of all together two pass.
    const passed = others.map((field) => bench.passes(1, [field])[0]);
    assert.deepEqual(passed.slice(0, 2), [true, true], name);
    assert.ok(!passed.slice(2).includes(true), name);
    assert.deepEqual(bench.passes(1, [`${name}: other`]), [true], name);
  }
});

test('the host is a key also where it comes as an authority', () => {
  const bench = keyed({ type: 'header', name: 'host' });
  assert.deepEqual(bench.passes(3), [true, true, false]);
  const from = (authority: string): boolean[] => bench.passes(2, [], `http://${authority}/`);
  // The target's authority counts (RFC 9112 §3.2.2), and HTTP/2 has nothing else.
  assert.deepEqual(from('a'), [false, false]);
  assert.deepEqual(from('b'), [true, true]);
  assert.deepEqual(from('b'), [false, false]);
});

test('an IPv4 address counts whole, an IPv6 one by its /64 network, a mapped one as IPv4', () => {
  const bench = keyed({ type: 'sourceAddress' });
  const from = (family: number, ...words: number[]): boolean[] => {
    [bench.peer.peer0, bench.peer.peer1, bench.peer.peer2, bench.peer.peer3] = words as [
      number,
      number,
      number,
      number,
    ];
    bench.peer.peerFamily = family;
    return bench.passes(2);
  };
  assert.deepEqual(from(2, 10, 0, 0, 0), [true, true]);
  assert.deepEqual(from(2, 11, 0, 0, 0), [true, true]);
  assert.deepEqual(from(10, 0, 0, 0xffff, 10), [false, false], 'the IPv4 address from before');
  assert.deepEqual(from(10, 10, 0, 0, 0), [true, true]);
  assert.deepEqual(from(10, 10, 0, 9, 9), [false, false]);
  assert.deepEqual(from(10, 10, 1, 9, 9), [true, true]);
  assert.deepEqual(from(10, 10, 4, 0, 0), [true, true], 'no network is taken for an IPv4 address');
});

test('claims are read from any honest token, and from nothing else', () => {
  const token = (payload: string): string => `authorization: Bearer h.${Buffer.from(payload).toString('base64url')}.s`;
  const bench = keyed({ type: 'jwtClaim', claim: 'sub' });
  assert.deepEqual(bench.passes(3, [token('{"sub":"a"}')]), [true, true, false]);
  assert.deepEqual(bench.passes(1, [token('{"sub":"ä"}')]), [true]);
  assert.deepEqual(bench.passes(1, [token('{"sub":7}')]), [true]);
  assert.deepEqual(bench.passes(1, [token('{"sub":["a","b"]}')]), [true]);
  // All of these are requests without a claim.
  const without = [
    token('{"other":"a"}'),
    token('not json'),
    token('null'),
    token('"sub"'),
    'authorization: Basic dTpw',
    'authorization: Bearer abc',
    `authorization: Bearer h.${'A'.repeat(3000)}.s`,
    token('{"__proto__":{"sub":"a"}}'),
  ];
  assert.deepEqual(
    without.map((field) => bench.passes(1, [field])[0]),
    [true, true, false, false, false, false, false, false],
  );
});

test('of two limits, what the first has taken is given back when the second refuses', () => {
  const bench = new Bench(limit('first', { burst: 5 }), limit('second', { burst: 1 }));
  assert.deepEqual(bench.passes(4), [true, false, false, false]);
  assert.equal(bench.counter(0, LimitCounter.ALLOWED), 1);
  assert.equal(bench.counter(1, LimitCounter.DENIED), 3);
  const exchange = bench.ask();
  assert.equal(exchange.limits!.denied, 1);
  assert.equal(exchange.limits!.each[0]!.remaining, 3, 'of five one is gone, and one would be for this request');
});

test('what is given back goes to the bucket of the same key', () => {
  const bench = new Bench(
    limit('by path', { burst: 3, key: [{ type: 'path' }] }),
    limit('by field', { burst: 1, key: [{ type: 'header', name: 'x-key' }] }),
  );
  assert.deepEqual(bench.passes(4, ['x-key: a'], '/one'), [true, false, false, false]);
  // Of the three of /one two are left, for whoever has not had his own.
  assert.deepEqual(bench.passes(1, ['x-key: b'], '/one'), [true]);
  assert.deepEqual(bench.passes(1, ['x-key: c'], '/one'), [true]);
  assert.equal(bench.ask(['x-key: d'], '/one').limits!.denied, 0);
  assert.deepEqual(bench.passes(1, ['x-key: d'], '/two'), [true], 'what the first refuses, the second has not counted');
});

test('a dry run counts and lets pass, whatever the others say', () => {
  const bench = new Bench(limit('trial', { dryRun: true, burst: 1 }), limit('real'));
  assert.deepEqual(bench.passes(4), [true, true, false, false]);
  assert.equal(bench.counter(0, LimitCounter.DENIED), 1);
  assert.equal(bench.counter(0, LimitCounter.ALLOWED), 1);
});

test('the response shows limits in the syntax of the draft, and only those that were looked at', () => {
  const bench = new Bench(
    limit('half', { requests: 3, periodMs: 500, burst: 3 }),
    limit('hidden', { headers: false }),
    limit('slow', { requests: 10, periodMs: 90_000, burst: 1 }),
    limit('last'),
  );
  assert.equal(
    bench.lines(bench.ask()),
    'ratelimit-policy: "half";q=6;w=1, "slow";q=10;w=90, "last";q=2;w=60\r\n' +
      'ratelimit: "half";r=2;t=1, "slow";r=0;t=9, "last";r=1;t=30\r\n',
  );
  const refused = bench.ask();
  assert.equal(refused.limitState, LimitState.DENIED);
  assert.match(bench.lines(refused), /\r\nratelimit: "half";r=1;t=1, "slow";r=0;t=9\r\n$/);
  const end = putRetryAfterLine(bench.reactor, refused, 8192);
  assert.equal(new TextDecoder().decode(bench.memory.subarray(8192, end)), 'retry-after: 9\r\n');
});

test('without Redis: open lets pass, closed refuses, local counts here', () => {
  const of = (): Bench => new Bench(limit('global', { global: true, burst: 1 }));
  const states = (bench: Bench, failure: number): number[] =>
    [0, 1].map(() => bench.ask([], '/', false, failure).limitState);
  assert.deepEqual(states(of(), LimitFailure.OPEN), [LimitState.NONE, LimitState.NONE]);
  assert.deepEqual(states(of(), LimitFailure.CLOSED), [LimitState.DENIED, LimitState.DENIED]);
  assert.deepEqual(states(of(), LimitFailure.LOCAL), [LimitState.NONE, LimitState.DENIED]);
  const closed = of().ask([], '/', false, LimitFailure.CLOSED);
  assert.equal(closed.retryAfterSeconds, 1);
  const trial = new Bench(limit('global', { global: true, dryRun: true }));
  assert.deepEqual(states(trial, LimitFailure.CLOSED), [LimitState.NONE, LimitState.NONE]);
});

test('without Redis, each global limit counts by its own key, also when Redis goes away meanwhile', () => {
  const bench = new Bench(
    limit('local', { burst: 9, key: [{ type: 'path' }] }),
    limit('global', { global: true, burst: 1, key: [{ type: 'header', name: 'x-key' }] }),
  );
  assert.deepEqual(bench.passes(2, ['x-key: a']), [true, false]);
  assert.deepEqual(bench.passes(2, ['x-key: b']), [true, false]);
  const waiting = bench.ask(['x-key: c'], '/', true);
  assert.equal(waiting.limitState, LimitState.ASK);
  // By then the head is not there any more.
  bench.memory.fill(0);
  bench.limits.decideWithoutRedis(waiting, LimitFailure.LOCAL);
  assert.equal(waiting.limitState, LimitState.NONE);
  assert.deepEqual(bench.passes(1, ['x-key: c']), [false]);
});

test('without Redis, what a global limit has taken here is given back when another one refuses', () => {
  const bench = new Bench(
    limit('local', { burst: 5 }),
    limit('first', { global: true, burst: 5 }),
    limit('second', { global: true, burst: 1 }),
  );
  assert.deepEqual(bench.passes(4), [true, false, false, false]);
  const { limits } = bench.ask();
  assert.equal(limits!.denied, 2);
  // Of five one is gone, and one would be for this request.
  assert.deepEqual(
    limits!.each.map(({ remaining }) => remaining),
    [3, 3, 0],
  );
});

test('what Redis has counted is not given back to the buckets of this node', () => {
  const bench = new Bench(limit('first', { global: true, burst: 5 }), limit('second', { global: true, burst: 5 }));
  bench.passes(2);
  const exchange = bench.ask([], '/', true);
  bench.limits.answer(exchange, 0, true, 4, 1);
  bench.limits.answer(exchange, 1, false, 0, 9);
  bench.limits.settled(exchange);
  assert.equal(exchange.limitState, LimitState.DENIED);
  assert.equal(bench.ask().limits!.each[0]!.remaining, 2, 'the third of five');
});

test('with Redis: it is asked about global limits once the local ones have passed, and its answers decide', () => {
  const bench = new Bench(
    limit('local', { burst: 1 }),
    limit('global', { global: true, key: [{ type: 'header', name: 'x-key' }, { type: 'path' }] }),
  );
  const exchange = bench.ask(['x-key: k'], '/p?q', true);
  assert.equal(exchange.limitState, LimitState.ASK);
  assert.equal(exchange.limits!.each[1]!.key, '1:k;2:/p;');
  bench.limits.answer(exchange, 1, false, 0, 42);
  bench.limits.settled(exchange);
  assert.equal(exchange.limitState, LimitState.DENIED);
  assert.equal(exchange.retryAfterSeconds, 42);
  // "local" got its request back, and takes it again.
  const second = bench.ask([], '/p', true);
  assert.equal(second.limitState, LimitState.ASK);
  assert.equal(second.limits!.each[1]!.key, '-;2:/p;');
  bench.limits.answer(second, 1, true, 7, 3);
  bench.limits.settled(second);
  assert.equal(second.limitState, LimitState.NONE);
  assert.match(bench.lines(second), /"global";r=7;t=3/);
  assert.equal(
    bench.ask([], '/p', true).limitState,
    LimitState.DENIED,
    'Redis is not asked about what is refused here',
  );
});

test('texts of keys are as different as the keys', () => {
  const bench = keyed({ type: 'header', name: 'x-a' }, { type: 'header', name: 'x-b' }, { type: 'sourceAddress' });
  const text = (...fields: string[]): string => {
    bench.ask(fields);
    return limitKeyText(bench.rule.all[0]!.key, bench.reactor, new ClaimReader(), bench.head, bench.peer);
  };
  const all = [
    text('x-a: 1;1:2', 'x-b: 3'),
    text('x-a: 1', 'x-b: 2;1:3'),
    text('x-a: 1', 'x-b:'),
    text('x-a: 1'),
    text('x-a: -', 'x-b: -'),
    text(),
  ];
  assert.equal(new Set(all).size, all.length);
});

test('tables are kept while a limit stays as it is, and forgotten once no rule has it', () => {
  const tables = new LimitTables(2);
  const policy = (...rateLimits: RateLimitSettings[]) => [{ ...noRulePolicy, rateLimits }];
  const [first] = tables.assign(policy(limit('a'), limit('b')), NOW_MS);
  assert.equal(limitName(first!.id), 'a');
  const again = tables.assign(policy(limit('b', { headers: false }), limit('a', { dryRun: true })), NOW_MS);
  assert.equal(again[1]!.buffer, first!.buffer, 'what does not change the count does not matter');
  const changed = tables.assign(policy(limit('a', { burst: 9 })), NOW_MS);
  assert.notEqual(changed[0]!.buffer, first!.buffer);
  assert.equal(changed[0]!.id, first!.id, 'a name keeps its number');
  tables.keepOnly(changed);
  assert.deepEqual(
    tables.counters(LimitCounter.ALLOWED).map(({ name }) => name),
    ['a'],
  );
  assert.notEqual(tables.assign(policy(limit('b')), NOW_MS)[0]!.buffer, again[0]!.buffer);
});

test('when all numbers of limits are given, further names share the last one, which is no name’s', () => {
  const tables = new LimitTables(1);
  const assign = (...names: string[]) =>
    tables.assign([{ ...noRulePolicy, rateLimits: names.map((name) => limit(name)) }], NOW_MS);
  for (let next = 0; next < LIMIT_NAMES_MAX; next++) {
    assign(`gone-${next}`);
    // Numbers stay given when nothing has the names any more.
    if (next % 1000 === 0) tables.keepOnly([]);
  }
  const [late, later, known] = assign('late', 'later', 'gone-7');
  assert.deepEqual([late!.id, later!.id, known!.id], [LIMIT_NAMES_MAX, LIMIT_NAMES_MAX, 7]);
  assert.notEqual(late!.buffer, later!.buffer, 'each counts for itself');
  assert.equal(detailName(DETAIL_LIMIT + late!.id), `limit_limit_${LIMIT_NAMES_MAX}`, 'not that of a policy');
});
