// The block cipher of session names.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Speck } from '../../../../core/exchange/speck.ts';

test('a block is encrypted as in the test vector of the paper', () => {
  const cipher = new Speck(0x03020100, 0x0b0a0908, 0x13121110, 0x1b1a1918);
  cipher.encrypt(0x3b726574, 0x7475432d);
  assert.deepEqual([cipher.high >>> 0, cipher.low >>> 0], [0x8c6fa548, 0x454e028b]);
  cipher.decrypt(cipher.high, cipher.low);
  assert.deepEqual([cipher.high >>> 0, cipher.low >>> 0], [0x3b726574, 0x7475432d]);
});

test('every block comes back, whatever its bits and the key', () => {
  let word = 1;
  const next = (): number => {
    word = (Math.imul(word, 1664525) + 1013904223) | 0;
    return word;
  };
  for (let round = 0; round < 500; round++) {
    const cipher = new Speck(next(), next(), next(), next());
    const [high, low] = [next(), next()];
    cipher.encrypt(high, low);
    assert.notDeepEqual([cipher.high, cipher.low], [high, low]);
    cipher.decrypt(cipher.high, cipher.low);
    assert.deepEqual([cipher.high, cipher.low], [high, low]);
  }
});
