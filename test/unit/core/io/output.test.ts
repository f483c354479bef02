// The sending side: whatever the socket takes at a time, all bytes leave once, in order.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Errno } from '../../../../core/ffi/errno.ts';
import { Epoll, SEGMENTS_MAX } from '../../../../core/ffi/kernel.ts';
import { LARGE_BLOCK_BYTES } from '../../../../core/io/arena.ts';
import { type Bench, openBench, pattern } from './fake-kernel.ts';
import { seededRandom } from './seed.ts';

/** Puts bytes into scratch memory, as a message under construction; returns where. */
function stage(bench: Bench, bytes: Uint8Array, at = 0): number {
  const offset = bench.reactor.arena.scratchOffset + at;
  bench.reactor.memory.set(bytes, offset);
  return offset;
}

test('what the socket takes at once needs no buffer', () => {
  const bench = openBench();
  const { connection, socket } = bench.open();
  const bytes = pattern(3000);
  assert.equal(bench.reactor.output.send(connection, stage(bench, bytes), bytes.length, true), true);
  assert.deepEqual(socket.takenBytes, Buffer.from(bytes));
  assert.equal(socket.more, true);
  assert.equal(connection.outputBytes, 0);
  assert.equal(bench.reactor.arena.used, 0);
});

test('a send cut short at any byte keeps the rest, however little the socket takes afterwards', () => {
  const bytes = pattern(40);
  for (let cut = 0; cut < bytes.length; cut++) {
    const bench = openBench();
    const { connection, socket } = bench.open();
    const offset = stage(bench, bytes);
    socket.answers.push(cut === 0 ? -Errno.EAGAIN : cut);
    assert.equal(bench.reactor.output.send(connection, offset, bytes.length, false), true);
    assert.equal(connection.outputBytes, bytes.length - cut);
    // The scratch memory is somebody else's by the time that the socket takes more.
    bench.reactor.memory.fill(0xee, offset, offset + bytes.length);
    while (connection.outputBytes > 0) {
      socket.answers.push(3, -Errno.EAGAIN);
      assert.equal(bench.reactor.output.flush(connection), true);
    }
    assert.deepEqual(socket.takenBytes, Buffer.from(bytes), `cut at ${cut}`);
    assert.equal(bench.reactor.arena.used, 0);
  }
});

test('a pair cut short at any byte leaves in order', () => {
  const first = pattern(15);
  const second = pattern(20, 100);
  for (let cut = 0; cut <= first.length + second.length; cut++) {
    const bench = openBench();
    const { connection, socket } = bench.open();
    const at1 = stage(bench, first);
    const at2 = stage(bench, second, 500);
    socket.answers.push(cut === 0 ? -Errno.EAGAIN : cut);
    assert.equal(bench.reactor.output.sendPair(connection, at1, first.length, at2, second.length), true);
    assert.equal(connection.outputBytes, first.length + second.length - cut);
    bench.reactor.memory.fill(0xee, at1, at2 + second.length);
    assert.equal(bench.reactor.output.flush(connection), true);
    assert.deepEqual(socket.takenBytes, Buffer.concat([first, second]), `cut at ${cut}`);
    assert.equal(bench.reactor.arena.used, 0);
  }
});

test('bytes sent while others wait are queued behind them, without a system call', () => {
  const bench = openBench();
  const { connection, socket } = bench.open();
  socket.answers.push(-Errno.EAGAIN);
  const { reactor } = bench;
  reactor.output.send(connection, stage(bench, pattern(10)), 10, false);
  reactor.output.send(connection, stage(bench, pattern(10, 10)), 10, false);
  reactor.output.sendPair(connection, stage(bench, pattern(10, 20)), 10, stage(bench, pattern(10, 30), 100), 10);
  assert.equal(socket.sendCalls, 1);
  assert.equal(connection.outputBytes, 40);
  assert.equal(reactor.output.flush(connection), true);
  assert.deepEqual(socket.takenBytes, Buffer.from(pattern(40)));
});

test('an interrupted send or pair goes out at once: no event would come for a socket that is not full', () => {
  const bench = openBench();
  const { connection, socket } = bench.open();
  socket.answers.push(-Errno.EINTR);
  assert.equal(bench.reactor.output.send(connection, stage(bench, pattern(10)), 10, false), true);
  assert.equal(connection.outputBytes, 0);
  socket.answers.push(-Errno.EINTR);
  const at = stage(bench, pattern(20, 10));
  assert.equal(bench.reactor.output.sendPair(connection, at, 10, at + 10, 10), true);
  assert.equal(connection.outputBytes, 0);
  socket.answers.push(-Errno.EAGAIN, -Errno.EINTR);
  assert.equal(bench.reactor.output.send(connection, stage(bench, pattern(10, 30)), 10, false), true);
  assert.equal(bench.reactor.output.flush(connection), true);
  assert.deepEqual(socket.takenBytes, Buffer.from(pattern(40)));
});

test('more blocks than one writev takes leave in several, all of them', () => {
  const bench = openBench({ bufferBytes: 8 * 1024 * 1024 });
  const { connection, socket } = bench.open();
  socket.answers.push(-Errno.EAGAIN);
  const blocks = SEGMENTS_MAX + 7;
  const bytes = pattern(LARGE_BLOCK_BYTES - 100);
  const sent: Uint8Array[] = [];
  for (let i = 0; i < blocks; i++) {
    assert.equal(bench.reactor.output.send(connection, stage(bench, bytes), bytes.length, false), true);
    sent.push(bytes);
  }
  assert.ok(bench.reactor.arena.used > SEGMENTS_MAX);
  assert.equal(bench.reactor.output.flush(connection), true);
  assert.equal(socket.segmentsMax, SEGMENTS_MAX);
  assert.equal(Buffer.compare(socket.takenBytes, Buffer.concat(sent)), 0);
  assert.equal(bench.reactor.arena.used, 0);
});

test('a failed send says how, and closing frees what was kept', () => {
  const bench = openBench();
  const { reactor } = bench;
  for (const failing of ['send', 'pair', 'flush']) {
    const { connection, socket } = bench.open();
    const at = stage(bench, pattern(30));
    if (failing === 'flush') socket.answers.push(5);
    socket.answers.push(-Errno.ECONNRESET);
    let result = true;
    if (failing === 'pair') result = reactor.output.sendPair(connection, at, 10, at + 10, 20);
    else result = reactor.output.send(connection, at, 30, false);
    if (failing === 'flush') {
      assert.equal(result, true);
      result = reactor.output.flush(connection);
    }
    assert.equal(result, false, failing);
    assert.equal(connection.errno, Errno.ECONNRESET);
    reactor.close(connection, true);
    assert.equal(socket.aborted && socket.closed, true);
    assert.equal(reactor.arena.used, 0);
  }
});

test('without a free block a send fails with ENOBUFS instead of losing bytes', () => {
  const bench = openBench();
  const { arena } = bench.reactor;
  const { connection, socket } = bench.open();
  while (arena.allocate(LARGE_BLOCK_BYTES) !== 0);
  const used = arena.used;
  socket.answers.push(4);
  assert.equal(bench.reactor.output.send(connection, stage(bench, pattern(10)), 10, false), false);
  assert.equal(connection.errno, Errno.ENOBUFS);
  assert.equal(arena.used, used);
});

test('dropping unsent output leaves a connection that can send again', () => {
  const bench = openBench();
  const { connection, socket } = bench.open();
  socket.answers.push(-Errno.EAGAIN);
  bench.reactor.output.send(connection, stage(bench, pattern(10)), 10, false);
  bench.reactor.output.free(connection);
  assert.equal(bench.reactor.arena.used, 0);
  assert.equal(bench.reactor.output.send(connection, stage(bench, pattern(10, 50)), 10, false), true);
  assert.deepEqual(socket.takenBytes, Buffer.from(pattern(10, 50)));
});

test('random sends to a moody socket arrive whole and in order', (t) => {
  const { random, label } = seededRandom(t);
  const bench = openBench({ bufferBytes: 4 * 1024 * 1024 });
  const { reactor } = bench;
  for (let round = 0; round < 20; round++) {
    const { connection, socket } = bench.open();
    bench.protocol.onWritable = (each) => assert.equal(reactor.output.flush(each), true, label);
    const expected: Uint8Array[] = [];
    let total = 0;
    for (let step = 0; step < 60; step++) {
      for (let i = random.int(0, 3); i > 0; i--) {
        socket.answers.push(random.pick([-Errno.EAGAIN, -Errno.EINTR, random.size(1, 200_000)]));
      }
      if (connection.outputBytes < 1024 * 1024 && random.chance(0.7)) {
        const bytes = pattern(random.size(1, 60_000), total);
        const at = stage(bench, bytes);
        const split = random.int(1, bytes.length);
        const pair = split < bytes.length && random.chance(0.5);
        const result = pair
          ? reactor.output.sendPair(connection, at, split, at + split, bytes.length - split)
          : reactor.output.send(connection, at, bytes.length, random.chance(0.5));
        assert.equal(result, true, label);
        reactor.memory.fill(0xee, at, at + bytes.length);
        expected.push(bytes);
        total += bytes.length;
      } else {
        bench.kernel.raise(socket, Epoll.OUT);
        reactor.runBatch(0);
      }
    }
    socket.answers.length = 0;
    assert.equal(reactor.output.flush(connection), true, label);
    assert.equal(Buffer.compare(socket.takenBytes, Buffer.concat(expected)), 0, label);
    reactor.close(connection, false);
    assert.equal(reactor.arena.used, 0, label);
  }
});
