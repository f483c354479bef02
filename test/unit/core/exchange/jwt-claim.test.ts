// Claims of tokens, read without making objects: the same as by JSON.parse for whatever is JSON, and bounded.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ClaimReader } from '../../../../core/exchange/jwt-claim.ts';
import { RequestHead } from '../../../../core/http1/message.ts';
import { parseRequestHead } from '../../../../core/http1/request-parser.ts';

const memory = new Uint8Array(64 * 1024);
const view = new DataView(memory.buffer);
const head = new RequestHead();
const reader = new ClaimReader();
const encoder = new TextEncoder();

/** The claim of a request with this Authorization, as text; null: none. */
function claimOf(authorization: string, name = 'sub'): string | null {
  const text = `GET / HTTP/1.1\r\nhost: a\r\nauthorization: ${authorization}\r\n\r\n`;
  memory.set(encoder.encode(text));
  const limits = { headBytesMax: 60_000, headerCountMax: 8, uriBytesMax: 100 };
  assert.ok(parseRequestHead(memory, 0, text.length, limits, head) > 0);
  if (!reader.read(memory, view, head, encoder.encode(name))) return null;
  return new TextDecoder().decode(reader.bytes.subarray(reader.offset, reader.offset + reader.length));
}

function token(payload: string): string {
  return `Bearer h.${Buffer.from(payload).toString('base64url')}.s`;
}

/** A generator of numbers below `count`, the same in every run. */
function generator(seed: number): (count: number) => number {
  let state = seed;
  return (count) => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) | 0;
    return ((state >>> 8) % count) | 0;
  };
}

const characters = [
  'a',
  'Z',
  '7',
  ' ',
  '"',
  '\\',
  '/',
  '\n',
  '\t',
  '\b',
  '{',
  '}',
  '[',
  ',',
  ':',
  'ä',
  '€',
  '😀',
  '\u0001',
];

/** Random JSON, with blanks and escapes that JSON.stringify would not use. */
function randomJson(next: (count: number) => number, depth: number): string {
  const blank = (): string => ['', '', ' ', '\n', '\t\r '][next(5)]!;
  const text = (): string => {
    let all = '';
    for (let i = next(6); i > 0; i--) {
      const character = characters[next(characters.length)]!;
      const escaped = [...Array(character.length).keys()].map(
        (unit) => `\\u${character.charCodeAt(unit).toString(16).padStart(4, '0')}`,
      );
      all += next(4) === 0 ? escaped.join('') : JSON.stringify(character).slice(1, -1);
    }
    return `"${all}"`;
  };
  const kind = depth === 0 ? next(4) : next(6);
  if (kind === 0) return text();
  if (kind === 1) return ['0', '-7', '1.5', '2e3'][next(4)]!;
  if (kind === 2) return ['true', 'false', 'null'][next(3)]!;
  if (kind === 3) return text();
  const values = Array.from({ length: next(4) }, () => randomJson(next, depth - 1));
  if (kind === 4) return `[${values.map((value) => blank() + value + blank()).join(',')}]`;
  return `{${values.map((value) => `${blank()}${text()}${blank()}:${blank()}${value}${blank()}`).join(',')}}`;
}

test('a claim has the value that JSON gives it, whatever stands around it and however it is written', () => {
  const next = generator(7);
  for (let round = 0; round < 3000; round++) {
    const members = Array.from({ length: next(4) }, (_, i) => `"m${i}" : ${randomJson(next, 3)}`);
    const name = ['"sub"', '"\\u0073ub"', '"s\\u0075b"'][next(3)]!;
    for (let i = next(3); i > 0; i--) members.splice(next(members.length + 1), 0, `${name}:${randomJson(next, 3)}`);
    const payload = ` {${members.join(' , ')} }\n`;
    const claims = JSON.parse(payload) as Record<string, unknown>;
    const found = claimOf(token(payload));
    if (!Object.hasOwn(claims, 'sub')) assert.equal(found, null, payload);
    else if (typeof claims.sub === 'string') assert.equal(found, claims.sub, payload);
    else assert.deepEqual(JSON.parse(found!), claims.sub, payload);
  }
});

test('of a name that comes twice the last value counts, and half of a pair is no character', () => {
  assert.equal(claimOf(token('{"sub":"a","sub":"b"}')), 'b');
  assert.equal(claimOf(token('{"sub":"\\ud83d!"}')), '\ufffd!');
  assert.equal(claimOf(token('{"sub":"\\ud83d\\u0041"}')), '\ufffdA');
  assert.equal(claimOf(token('{"ключ":"a"}'), 'ключ'), 'a');
});

test('a token that is cut off anywhere has no claim, and neither has what is no token', () => {
  const payload = '{"a":[1,{"b":"]"}],"sub":"x\\u00e4\\n","c":{"sub":2},"d":-1.5}';
  assert.equal(claimOf(token(payload)), 'xä\n');
  for (let length = 0; length < payload.length; length++) {
    assert.equal(claimOf(token(payload.slice(0, length))), null, payload.slice(0, length));
  }
  const encoded = Buffer.from('{"sub":"a"}').toString('base64url');
  assert.equal(claimOf(`bEARER   h.${encoded}.`), 'a');
  for (const value of [
    '',
    'Bearer',
    `Bearer${encoded}`,
    `Bearers h.${encoded}.s`,
    `Basic h.${encoded}.s`,
    `Bearer .${encoded}.s`,
    `Bearer h.${encoded}`,
    `Bearer h.${encoded}.s.t`,
    `Bearer h.${encoded}=.s`,
    `Bearer h.${encoded}.s s`,
    'Bearer h..s',
    token('["sub"]'),
    token('{"sub"}'),
    token('{"sub":}'),
    token('{"sub":"a",}'),
    token('{"sub":"a"}}'),
    token('{"sub":"a" "b":1}'),
    token('{"sub":1"}'),
    token('{"sub":"\\x"}'),
    token('{"sub":"\\u00g0"}'),
    token('{"sub":"a\nb"}'),
    token('{sub:"a"}'),
    token('{}'),
  ]) {
    assert.equal(claimOf(value), null, value);
  }
});

test('a payload is looked at up to 16 KiB, and as deep as it likes', () => {
  const of = (fill: number): string => token(`{"a":"${'x'.repeat(fill)}","sub":"s"}`);
  const most = 12 * 1024 - '{"a":"","sub":"s"}'.length;
  assert.equal(claimOf(of(most)), 's');
  assert.equal(claimOf(of(most + 1)), null);
  assert.equal(claimOf(token(`{"a":${'['.repeat(5000)}${']'.repeat(5000)},"sub":"s"}`)), 's');
});
