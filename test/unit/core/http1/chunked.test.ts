// What the data files cannot say of the chunked coding: where payload lies, and the writing side.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ChunkedState, ChunkPhase, decodeChunked, writeChunkHeader } from '../../../../core/http1/chunked.ts';
import { ParseError } from '../../../../core/http1/errors.ts';

function decoder(): ChunkedState {
  const state = new ChunkedState();
  state.reset();
  return state;
}

test('the payload of a single chunk stays where it arrived', () => {
  const memory = new Uint8Array(Buffer.from('....5;x=y\r\nhello\r\n0\r\n\r\n'));
  const before = memory.slice();
  const state = decoder();
  assert.equal(decodeChunked(memory, 4, memory.length - 4, state, 64), 0);
  assert.equal(state.payloadOffset, 11);
  assert.equal(state.payloadLength, 5);
  assert.equal(state.phase, ChunkPhase.DONE);
  assert.deepEqual(memory, before);
});

test('payload of several chunks is contiguous from the first payload byte on', () => {
  const memory = new Uint8Array(Buffer.from('1\r\na\r\n2\r\nbc\r\n0\r\n\r\n'));
  const state = decoder();
  assert.equal(decodeChunked(memory, 0, memory.length, state, 64), 0);
  assert.equal(state.payloadOffset, 3);
  assert.equal(Buffer.from(memory.subarray(3, 3 + state.payloadLength)).toString(), 'abc');
});

test('input without payload reports none', () => {
  const memory = new Uint8Array(Buffer.from('400'));
  const state = decoder();
  assert.equal(decodeChunked(memory, 0, 3, state, 64), 0);
  assert.equal(state.payloadLength, 0);
  assert.equal(state.consumed, 3);
});

test('a chunk larger than the input is passed on piece by piece', () => {
  const state = decoder();
  const memory = new Uint8Array(Buffer.from('10000000000\r\nabcdef'));
  assert.equal(decodeChunked(memory, 0, memory.length, state, 64), 0);
  assert.equal(state.payloadLength, 6);
  for (let piece = 0; piece < 3; piece++) {
    assert.equal(decodeChunked(memory, 5, 10, state, 64), 0);
    assert.deepEqual([state.payloadOffset, state.payloadLength, state.consumed], [5, 10, 10]);
  }
  assert.equal(state.remaining, 0x10000000000 - 36);
});

test('an unfinished trailer section is left with the caller from its first byte', () => {
  const memory = new Uint8Array(Buffer.from('1\r\na\r\n0\r\nk: v\r\n\r\n'));
  const state = decoder();
  assert.equal(decodeChunked(memory, 0, memory.length - 1, state, 64), 0);
  assert.equal(state.needTrailers, true);
  assert.equal(state.consumed, 9);
  assert.equal(Buffer.from(memory.subarray(state.payloadOffset, state.payloadOffset + 1)).toString(), 'a');
  // Again with nothing new: nothing happens, and nothing is delivered twice.
  assert.equal(decodeChunked(memory, 9, memory.length - 10, state, 64), 0);
  assert.deepEqual([state.needTrailers, state.consumed, state.payloadLength], [true, 0, 0]);
  assert.equal(decodeChunked(memory, 9, memory.length - 9, state, 64), 0);
  assert.deepEqual([state.needTrailers, state.phase, state.trailers.count], [false, ChunkPhase.DONE, 1]);
});

test('trailers that arrive byte by byte are only searched where they are new', () => {
  const memory = new Uint8Array(Buffer.from('0\r\nk: v'));
  const state = decoder();
  decodeChunked(memory, 0, memory.length, state, 64);
  assert.equal(state.consumed, 3);
  // An end planted among the bytes already searched must not be found.
  const planted = new Uint8Array(Buffer.from('\r\n\r\nxxxx'));
  assert.equal(decodeChunked(planted, 0, 6, state, 64), 0);
  assert.equal(state.needTrailers, true);
});

test('a finished decoder takes nothing more until it is reset', () => {
  const memory = new Uint8Array(Buffer.from('0\r\n\r\n'));
  const state = decoder();
  decodeChunked(memory, 0, 5, state, 64);
  assert.equal(decodeChunked(memory, 0, 5, state, 64), 0);
  assert.deepEqual([state.consumed, state.phase], [0, ChunkPhase.DONE]);
  state.reset();
  decodeChunked(memory, 0, 5, state, 64);
  assert.deepEqual([state.consumed, state.phase], [5, ChunkPhase.DONE]);
});

test('the extension budget is per body, and reset gives it back', () => {
  const memory = new Uint8Array(Buffer.from(`1;${'e'.repeat(4000)}\r\nx\r\n`));
  const state = decoder();
  for (let chunk = 0; chunk < 4; chunk++) assert.equal(decodeChunked(memory, 0, memory.length, state, 64), 0);
  assert.equal(decodeChunked(memory, 0, memory.length, state, 64), -ParseError.CHUNK_EXTENSION_TOO_LARGE);
  state.reset();
  assert.equal(decodeChunked(memory, 0, memory.length, state, 64), 0);
});

for (const [size, line] of [
  [0, '0\r\n'],
  [1, '1\r\n'],
  [10, 'A\r\n'],
  [16, '10\r\n'],
  [16_384, '4000\r\n'],
  [0xabcdef, 'ABCDEF\r\n'],
  [0x7fffffff, '7FFFFFFF\r\n'],
] as const) {
  test(`the line of a chunk of ${size} bytes ends directly before its payload`, () => {
    const memory = new Uint8Array(32).fill(0x2e);
    const start = writeChunkHeader(memory, 20, size);
    assert.equal(Buffer.from(memory).toString('latin1'), `${'.'.repeat(start)}${line}${'.'.repeat(12)}`);
    assert.equal(start, 20 - line.length);
  });
}

test('what is written can be read', () => {
  const state = decoder();
  const memory = new Uint8Array(64).fill(0x61);
  const start = writeChunkHeader(memory, 16, 26);
  memory.set(Buffer.from('\r\n0\r\n\r\n'), 42);
  assert.equal(decodeChunked(memory, start, 49 - start, state, 64), 0);
  assert.deepEqual([state.payloadOffset, state.payloadLength, state.phase], [16, 26, ChunkPhase.DONE]);
});
