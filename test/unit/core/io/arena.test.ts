// The arena: which blocks it gives out, when it has none left, and what it gives back to the system.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  Arena,
  BUFFER_BYTES_MIN,
  LARGE_BLOCK_BYTES,
  RECEIVE_BYTES_MAX,
  SCRATCH_BYTES,
  SMALL_BLOCK_BYTES,
  TAILROOM_BYTES,
} from '../../../../core/io/arena.ts';
import { FakeKernel } from './fake-kernel.ts';
import { seededRandom } from './seed.ts';

function exhaust(arena: Arena, bytes: number): number[] {
  const blocks: number[] = [];
  for (let block = arena.allocate(bytes); block !== 0; block = arena.allocate(bytes)) blocks.push(block);
  return blocks;
}

test('blocks, receive area and scratch never overlap and stay inside the memory', () => {
  const kernel = new FakeKernel(3 * 1024 * 1024 + 12_345);
  const arena = new Arena(kernel);
  const ranges = [
    { start: 0, end: 32 * 1024 },
    { start: arena.receiveOffset, end: arena.receiveOffset + RECEIVE_BYTES_MAX + TAILROOM_BYTES },
    { start: arena.scratchOffset, end: arena.scratchOffset + SCRATCH_BYTES },
  ];
  for (const block of exhaust(arena, SMALL_BLOCK_BYTES)) {
    ranges.push({ start: block, end: block + arena.sizeOf(block) });
  }
  ranges.sort((a, b) => a.start - b.start);
  for (let i = 1; i < ranges.length; i++) assert.ok(ranges[i].start >= ranges[i - 1].end, JSON.stringify(ranges[i]));
  assert.ok(ranges.at(-1)!.end <= kernel.memory.length);
});

test('counts what is in use, and an arena emptied again is as before', () => {
  const arena = new Arena(new FakeKernel());
  assert.equal(arena.used, 0);
  const small = arena.allocate(1);
  const large = arena.allocate(SMALL_BLOCK_BYTES + 1);
  assert.equal(arena.sizeOf(small), SMALL_BLOCK_BYTES);
  assert.equal(arena.sizeOf(large), LARGE_BLOCK_BYTES);
  assert.equal(arena.used, 2);
  assert.equal(arena.usedBytes, SMALL_BLOCK_BYTES + LARGE_BLOCK_BYTES);
  arena.free(small);
  arena.free(large);
  assert.equal(arena.used, 0);
  assert.equal(arena.usedBytes, 0);
});

test('gives out every byte it has, then 0, then what has been freed', () => {
  const arena = new Arena(new FakeKernel(2 * BUFFER_BYTES_MIN));
  const small = exhaust(arena, SMALL_BLOCK_BYTES);
  assert.equal(arena.usedBytes, arena.capacityBytes);
  assert.ok(arena.capacityBytes > 2 * BUFFER_BYTES_MIN - SMALL_BLOCK_BYTES - LARGE_BLOCK_BYTES);
  assert.equal(new Set(small).size, small.length);
  assert.equal(arena.allocate(1), 0);
  assert.equal(arena.allocate(LARGE_BLOCK_BYTES), 0);
  arena.free(small[3]);
  assert.equal(arena.allocate(LARGE_BLOCK_BYTES), 0, 'a small block does not do for a large request');
  assert.equal(arena.allocate(1), small[3]);
});

test('a small request takes a large block when small ones have run out, and returns it as one', () => {
  const arena = new Arena(new FakeKernel());
  const smallCount = exhaust(arena, 1).filter((block) => arena.sizeOf(block) === SMALL_BLOCK_BYTES).length;
  const other = new Arena(new FakeKernel());
  for (let i = 0; i < smallCount; i++) assert.equal(other.sizeOf(other.allocate(1)), SMALL_BLOCK_BYTES);
  const block = other.allocate(1);
  assert.equal(other.sizeOf(block), LARGE_BLOCK_BYTES);
  other.free(block);
  assert.equal(other.usedBytes, smallCount * SMALL_BLOCK_BYTES);
  assert.equal(other.allocate(LARGE_BLOCK_BYTES), block);
});

test('reuses the block freed last first, so that few pages are touched', () => {
  const arena = new Arena(new FakeKernel());
  for (const bytes of [1, LARGE_BLOCK_BYTES]) {
    const blocks = [arena.allocate(bytes), arena.allocate(bytes), arena.allocate(bytes)];
    for (const block of blocks) arena.free(block);
    assert.deepEqual([arena.allocate(bytes), arena.allocate(bytes), arena.allocate(bytes)], blocks.toReversed());
  }
});

test('chains of large blocks keep their links', () => {
  const arena = new Arena(new FakeKernel());
  const blocks = [0, 0, 0].map(() => arena.allocate(LARGE_BLOCK_BYTES));
  arena.setNext(blocks[0], blocks[2]);
  arena.setNext(blocks[2], blocks[1]);
  arena.setNext(blocks[1], 0);
  assert.deepEqual([arena.next(blocks[0]), arena.next(blocks[2]), arena.next(blocks[1])], [blocks[2], blocks[1], 0]);
});

test('large blocks beyond the reserve go back to the system, small ones never', () => {
  const kernel = new FakeKernel(16 * 1024 * 1024);
  const arena = new Arena(kernel);
  const large = exhaust(arena, LARGE_BLOCK_BYTES);
  const reserve = 64;
  assert.ok(large.length > reserve + 10);
  for (const block of large) arena.free(block);
  assert.deepEqual(
    kernel.released,
    large.slice(reserve).map((offset) => ({ offset, length: LARGE_BLOCK_BYTES })),
  );
  kernel.released.length = 0;
  for (const block of exhaust(arena, 1).filter((each) => arena.sizeOf(each) === SMALL_BLOCK_BYTES)) arena.free(block);
  assert.deepEqual(kernel.released, []);
});

test('refuses to run with less memory than it needs', () => {
  const kernel = new FakeKernel();
  const short = Object.create(kernel, { memory: { value: kernel.memory.subarray(1) } }) as FakeKernel;
  assert.throws(() => new Arena(short), RangeError);
});

test('random use never hands out a block twice', (t) => {
  const { random, label } = seededRandom(t);
  const arena = new Arena(new FakeKernel());
  const held: { block: number; mark: number }[] = [];
  let bytes = 0;
  for (let step = 0; step < 20_000; step++) {
    if (random.chance(0.55)) {
      const wanted = random.chance(0.5) ? random.int(1, SMALL_BLOCK_BYTES) : random.int(1, LARGE_BLOCK_BYTES);
      const block = arena.allocate(wanted);
      if (block === 0) continue;
      assert.ok(arena.sizeOf(block) >= wanted, label);
      const mark = step % 256;
      arena.memory.fill(mark, block, block + arena.sizeOf(block));
      held.push({ block, mark });
      bytes += arena.sizeOf(block);
    } else if (held.length > 0) {
      const [{ block, mark }] = held.splice(random.int(0, held.length - 1), 1);
      const size = arena.sizeOf(block);
      assert.equal(arena.memory[block], mark, label);
      assert.equal(arena.memory[block + size - 1], mark, label);
      arena.free(block);
      bytes -= size;
    }
    assert.equal(arena.used, held.length, label);
    assert.equal(arena.usedBytes, bytes, label);
  }
});
