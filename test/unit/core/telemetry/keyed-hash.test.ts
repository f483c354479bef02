// The hash that stands in for secrets, against the test vectors of its paper and of its reference code.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { KeyedHash } from '../../../../core/telemetry/keyed-hash.ts';

/** Key of the vectors: bytes 0 to 15. */
const key = new Int32Array(Uint8Array.from({ length: 16 }, (_, index) => index).buffer);

/** Results for the inputs of 0, 1, ... bytes 00 01 02 ...; SipHash reference code, vectors_sip64. */
const vectors: readonly [length: number, result: bigint][] = [
  [0, 0x726fdb47dd0e0e31n],
  [1, 0x74f839c593dc67fdn],
  [7, 0xab0200f58b01d137n],
  [8, 0x93f5f5799a932462n],
  [15, 0xa129ca6149be45e5n],
];

function hashOf(hash: KeyedHash, bytes: Uint8Array, offset = 0, length = bytes.length): bigint {
  hash.hash(bytes, offset, length);
  return (BigInt(hash.high >>> 0) << 32n) | BigInt(hash.low >>> 0);
}

test('hashes are those of SipHash-2-4', () => {
  const hash = new KeyedHash(key);
  for (const [length, result] of vectors) {
    const input = Uint8Array.from({ length }, (_, index) => index);
    assert.equal(hashOf(hash, input).toString(16), result.toString(16), `${length} bytes`);
  }
});

test('a hash depends on the bytes and on the key, and not on where the bytes lie', () => {
  const hash = new KeyedHash(key);
  const text = Buffer.from('xxBearer secretxx');
  assert.equal(hashOf(hash, text, 2, 13), hashOf(hash, Buffer.from('Bearer secret')));
  assert.notEqual(hashOf(hash, text, 2, 13), hashOf(hash, text, 2, 12));
  assert.notEqual(hashOf(hash, text), hashOf(new KeyedHash([1, 2, 3, 4]), text));
});
