// Kept request bodies: what is kept, what overflows, and that every block is given back once.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { CHUNK_HEADER_BYTES_MAX, frameChunk, framedOffset } from '../../../../core/exchange/body.ts';
import {
  REQUEST_BUFFER_BYTES_MAX,
  type RequestBuffer,
  RequestBuffers,
} from '../../../../core/exchange/request-buffer.ts';
import type { Kernel } from '../../../../core/ffi/kernel.ts';
import { HeaderTable } from '../../../../core/http1/header-table.ts';
import { Arena, kernelMemoryBytes } from '../../../../core/io/arena.ts';

const MIB = 1024 * 1024;

function arenaOf(bufferBytes = 16 * MIB): Arena {
  const memory = new Uint8Array(kernelMemoryBytes(bufferBytes));
  return new Arena({ memory, release: () => {} } as unknown as Kernel);
}

/** Appends a text as it would arrive: in the scratch area, whose bytes are then overwritten. */
function append(arena: Arena, buffer: RequestBuffer, bytes: Uint8Array, end: boolean): void {
  for (let at = 0; ; at += 16_384) {
    const part = bytes.subarray(at, at + 16_384);
    const last = at + 16_384 >= bytes.length;
    arena.memory.set(part, arena.scratchOffset);
    buffer.append(arena.scratchOffset, part.length, end && last, null);
    arena.memory.fill(0xee, arena.scratchOffset, arena.scratchOffset + part.length);
    if (last) return;
  }
}

function content(arena: Arena, buffer: RequestBuffer): Buffer {
  const parts: Uint8Array[] = [];
  for (let piece = 0; piece < buffer.pieceCount; piece++) {
    const start = buffer.pieceOffset(piece);
    parts.push(arena.memory.slice(start, start + buffer.pieceLength(piece)));
  }
  return Buffer.concat(parts);
}

function bodyOf(length: number): Buffer {
  return Buffer.from(Array.from({ length }, (_, at) => (at * 31 + (at >> 8)) & 0xff));
}

for (const length of [0, 1, 2000, 2016, 2017, 65_000, 70_000, 200_000, REQUEST_BUFFER_BYTES_MAX]) {
  test(`a body of ${length} bytes is kept as it came, in pieces that can be framed in place again and again`, () => {
    const arena = arenaOf();
    const buffers = new RequestBuffers(arena);
    const buffer = buffers.want(null, REQUEST_BUFFER_BYTES_MAX);
    const body = bodyOf(length);
    append(arena, buffer, body, true);
    assert.equal(buffer.whole, true);
    assert.equal(buffer.length, length);
    for (let attempt = 0; attempt < 2; attempt++) {
      const framed: Buffer[] = [];
      for (let piece = 0; piece < buffer.pieceCount; piece++) {
        const bytes = buffer.pieceLength(piece);
        const end = frameChunk(arena.memory, buffer.pieceOffset(piece), bytes, piece === buffer.pieceCount - 1);
        const header = framedOffset() - buffer.pieceOffset(piece);
        assert.ok(header >= -CHUNK_HEADER_BYTES_MAX);
        const chunk = Buffer.from(arena.memory.slice(framedOffset(), end));
        assert.equal(Number.parseInt(chunk.toString('latin1'), 16), bytes);
        framed.push(chunk.subarray(-header, -header + bytes));
      }
      assert.ok(Buffer.concat(framed).equals(body));
    }
    assert.ok(content(arena, buffer).equals(body));
    buffers.release(buffer);
    assert.equal(arena.used, 0);
  });
}

test('a small body takes one small block', () => {
  const arena = arenaOf();
  const buffers = new RequestBuffers(arena);
  append(arena, buffers.want(null, MIB), bodyOf(100), false);
  assert.equal(arena.usedBytes, 2048);
});

test('a body beyond its limit is not kept, and its blocks are free at once', () => {
  const arena = arenaOf();
  const buffers = new RequestBuffers(arena);
  const buffer = buffers.want(null, 70_000);
  append(arena, buffer, bodyOf(70_000), false);
  assert.equal(buffer.length, 70_000);
  append(arena, buffer, bodyOf(1), true);
  assert.deepEqual(
    [buffer.overflowed, buffer.whole, buffer.length, buffer.pieceCount, arena.used],
    [true, false, 0, 0, 0],
  );
  append(arena, buffer, bodyOf(1), true);
  assert.deepEqual([buffer.whole, arena.used], [false, 0]);
  buffers.release(buffer);
  assert.equal(arena.used, 0);
});

test('a body that ends with trailers is not kept', () => {
  const arena = arenaOf();
  const buffer = new RequestBuffers(arena).want(null, 1000);
  append(arena, buffer, bodyOf(10), false);
  buffer.append(arena.scratchOffset, 0, true, new HeaderTable());
  assert.deepEqual([buffer.overflowed, arena.used], [true, 0]);
});

test('bodies leave a quarter of the blocks to the requests themselves', () => {
  const arena = arenaOf(2 * MIB);
  const buffers = new RequestBuffers(arena);
  const kept: RequestBuffer[] = [];
  for (;;) {
    const buffer = buffers.want(null, MIB);
    kept.push(buffer);
    append(arena, buffer, bodyOf(60_000), true);
    if (buffer.overflowed) break;
  }
  assert.ok(arena.usedBytes > arena.capacityBytes * 0.7 && arena.usedBytes < arena.capacityBytes * 0.85);
  for (const buffer of kept) buffers.release(buffer);
  assert.equal(arena.used, 0);
});

test('a buffer that two want has the larger limit, and lasts as long as one holds it', () => {
  const arena = arenaOf();
  const buffers = new RequestBuffers(arena);
  const buffer = buffers.want(null, 100);
  assert.equal(buffers.want(buffer, 5000), buffer);
  assert.equal(buffers.want(buffer, 50), buffer);
  append(arena, buffer, bodyOf(4000), true);
  buffers.hold(buffer);
  buffers.release(buffer);
  assert.ok(content(arena, buffer).equals(bodyOf(4000)));
  buffers.release(buffer);
  assert.equal(arena.used, 0);
  // It is used again, as good as new.
  const next = buffers.want(null, 10);
  assert.deepEqual(
    [next.length, next.whole, next.overflowed, next.bytesMax, next.pieceCount],
    [0, false, false, 10, 0],
  );
});
