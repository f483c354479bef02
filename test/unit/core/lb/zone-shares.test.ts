// Shares of zones: local as far as the local endpoints can carry it, the rest where there is room.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { zoneShares } from '../../../../core/lb/zone-shares.ts';

function shares(weights: Record<string, number>, local: string, zones = Object.keys(weights).length) {
  const result = zoneShares(new Map(Object.entries(weights)), local, zones);
  return Object.fromEntries([...result].map(([zone, share]) => [zone, Math.round(share * 1000) / 1000]));
}

test('a zone with at least its share of the endpoints keeps its requests', () => {
  assert.deepEqual(shares({ a: 2, b: 2, c: 2 }, 'a'), { a: 1 });
  assert.deepEqual(shares({ a: 5, b: 2, c: 2 }, 'a'), { a: 1 });
  assert.deepEqual(shares({ a: 3, b: 1, c: 5 }, 'a'), { a: 1 });
});

test('a zone with less keeps what it can carry, and the rest goes to those with room to spare', () => {
  // Half of the needed weight: 1/6 of all where 1/3 is sent.
  assert.deepEqual(shares({ a: 1, b: 2, c: 3 }, 'a'), { a: 0.5, c: 0.5 });
  // b and c have 1/12 and 3/12 above their third.
  assert.deepEqual(shares({ a: 0, b: 5, c: 7 }, 'a'), { b: 0.25, c: 0.75 });
});

test('together the zones load every endpoint equally', () => {
  const weights = { a: 1, b: 2, c: 6 };
  const load: Record<string, number> = { a: 0, b: 0, c: 0 };
  for (const zone of ['a', 'b', 'c']) {
    for (const [to, share] of zoneShares(new Map(Object.entries(weights)), zone, 3)) load[to]! += share / 3;
  }
  for (const [zone, weight] of Object.entries(weights)) {
    assert.ok(Math.abs(load[zone]! - weight / 9) < 1e-9, `${zone}: ${load[zone]}`);
  }
});

test('a gateway in a zone without endpoints spreads over all that have room', () => {
  assert.deepEqual(shares({ b: 2, c: 2 }, 'a', 3), { b: 0.5, c: 0.5 });
  assert.deepEqual(shares({}, 'a', 1), {});
});
