// Request ids: random UUIDs that do not repeat, whatever the seed.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type RandomWords, REQUEST_ID_BYTES, RequestIds } from '../../../../core/exchange/request-id.ts';

const UUID_V4 = /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/;
const system: RandomWords = (words) => void crypto.getRandomValues(words as Uint32Array<ArrayBuffer>);
const memory = new Uint8Array(64);
const view = new DataView(memory.buffer);

function nextId(ids: RequestIds): string {
  memory.fill(0xa5);
  assert.equal(ids.put(view, 8), 8 + REQUEST_ID_BYTES);
  assert.ok(memory.subarray(0, 8).every((byte) => byte === 0xa5));
  assert.ok(memory.subarray(8 + REQUEST_ID_BYTES).every((byte) => byte === 0xa5));
  return Buffer.from(memory.subarray(8, 8 + REQUEST_ID_BYTES)).toString('latin1');
}

test('ids are valid UUIDs of version 4 and do not repeat', () => {
  const ids = new RequestIds(system);
  const seen = new Set<string>();
  for (let i = 0; i < 50_000; i++) {
    const id = nextId(ids);
    assert.match(id, UUID_V4);
    seen.add(id);
  }
  assert.equal(seen.size, 50_000);
});

test('every digit that is free takes every value', () => {
  const ids = new RequestIds(system);
  const seen = Array.from({ length: REQUEST_ID_BYTES }, () => new Set<string>());
  for (let i = 0; i < 2000; i++) for (const [at, digit] of [...nextId(ids)].entries()) seen[at].add(digit);
  const expected = [...'xxxxxxxx-xxxx-4xxx-yxxx-xxxxxxxxxxxx'].map((kind) => ({ x: 16, y: 4 })[kind] ?? 1);
  assert.deepEqual(
    seen.map(({ size }) => size),
    expected,
  );
});

test('workers with other seeds make other ids, the same seed the same', () => {
  const from = (seed: number): string => nextId(new RequestIds((words) => words.set([seed, 2, 3, 4])));
  assert.equal(from(1), from(1));
  assert.notEqual(from(1), from(2));
});

test('a source of only zeros does not make the generator stand still', () => {
  const ids = new RequestIds(() => undefined);
  for (let i = 0; i < 10; i++) nextId(ids);
  assert.notEqual(nextId(ids), nextId(ids));
});
