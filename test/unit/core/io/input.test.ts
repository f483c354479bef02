// The receiving side: `fill`, what a connection keeps between receives, and how it grows.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Errno } from '../../../../core/ffi/errno.ts';
import { Epoll } from '../../../../core/ffi/kernel.ts';
import {
  HEADROOM_BYTES,
  LARGE_BLOCK_BYTES,
  RECEIVE_BYTES_MAX,
  SMALL_BLOCK_BYTES,
  TAILROOM_BYTES,
} from '../../../../core/io/arena.ts';
import type { Connection } from '../../../../core/io/connection.ts';
import { FILL_AGAIN, FILL_END, FILL_ERROR, FILL_FULL, FILL_NO_BUFFER } from '../../../../core/io/input.ts';
import { type Bench, openBench, pattern } from './fake-kernel.ts';
import { seededRandom } from './seed.ts';

/** The bytes that the last fill made available. */
function available(bench: Bench): Buffer {
  const { input, memory } = bench.reactor;
  return Buffer.from(memory.subarray(input.offset, input.offset + input.length));
}

/** Keeps everything available except the first `used` bytes. */
function keepAfter(bench: Bench, connection: Connection, used: number): boolean {
  const { input } = bench.reactor;
  return input.keep(connection, input.offset + used, input.length - used);
}

test('received bytes lie in the shared area and cost no block', () => {
  const bench = openBench();
  const { connection, socket } = bench.open();
  socket.incoming.push(pattern(100));
  assert.equal(bench.reactor.input.fill(connection), 100);
  assert.deepEqual(available(bench), Buffer.from(pattern(100)));
  assert.equal(bench.reactor.input.offset, bench.reactor.arena.receiveOffset);
  assert.equal(socket.receiveAskedMax, RECEIVE_BYTES_MAX);
  assert.equal(bench.reactor.arena.used, 0);
});

test('says what a receive came to: nothing yet, the end, an error', () => {
  const bench = openBench();
  const { connection, socket } = bench.open();
  connection.readReady = true;
  assert.equal(bench.reactor.input.fill(connection), FILL_AGAIN);
  assert.equal(connection.readReady, false);
  assert.equal(connection.readEnded, false);
  socket.finished = true;
  assert.equal(bench.reactor.input.fill(connection), FILL_END);
  assert.equal(connection.readEnded, true);
  assert.equal(connection.errno, 0);

  const other = bench.open();
  other.socket.incoming.push(-Errno.ECONNRESET);
  assert.equal(bench.reactor.input.fill(other.connection), FILL_ERROR);
  assert.equal(other.connection.errno, Errno.ECONNRESET);
  assert.equal(other.connection.readEnded, true);
});

test('an interrupted receive is tried again without a new event', () => {
  const bench = openBench();
  const { connection, socket } = bench.open();
  connection.readReady = true;
  socket.incoming.push(-Errno.EINTR, pattern(5));
  assert.equal(bench.reactor.input.fill(connection), FILL_AGAIN);
  assert.equal(bench.reactor.hasReady, true);
  bench.protocol.onReadable = (each) => assert.equal(bench.reactor.input.fill(each), 5);
  bench.reactor.runBatch(-1);
  assert.deepEqual(bench.protocol.calls, ['readable 0']);
});

test('a short receive has emptied the socket, unless the end of the stream is waiting behind it', () => {
  const bench = openBench();
  const { connection, socket } = bench.open();
  connection.readReady = true;
  socket.incoming.push(pattern(10), pattern(RECEIVE_BYTES_MAX), pattern(10));
  bench.reactor.input.fill(connection);
  assert.equal(connection.readReady, false);
  connection.readReady = true;
  bench.reactor.input.fill(connection);
  assert.equal(connection.readReady, true, 'a full receive may have left something');
  connection.readHangup = true;
  bench.reactor.input.fill(connection);
  assert.equal(connection.readReady, true, 'the end is still to be read');
});

test('a partial message is kept, and its rest is appended to it', () => {
  const bench = openBench();
  const { connection, socket } = bench.open();
  socket.incoming.push(pattern(100), pattern(50, 100));
  bench.reactor.input.fill(connection);
  assert.equal(keepAfter(bench, connection, 30), true);
  assert.equal(bench.reactor.arena.usedBytes, SMALL_BLOCK_BYTES);
  // Another connection uses the receive area meanwhile.
  const other = bench.open();
  other.socket.incoming.push(pattern(3000, 7));
  bench.reactor.input.fill(other.connection);
  assert.equal(bench.reactor.input.fill(connection), 120);
  assert.deepEqual(available(bench), Buffer.from(pattern(120, 30)));
  assert.equal(keepAfter(bench, connection, 120), true);
  assert.equal(connection.inputLength, 0);
  assert.equal(bench.reactor.arena.used, 0);
});

test('kept input has room for a rewritten head before it and a chunk end after it', () => {
  const bench = openBench();
  const { connection, socket } = bench.open();
  for (const length of [1, 959, 960, 961, 5000, RECEIVE_BYTES_MAX]) {
    socket.incoming.push(pattern(length));
    bench.reactor.input.fill(connection);
    assert.equal(keepAfter(bench, connection, 0), true);
    const { inputBlock, inputOffset, inputLength } = connection;
    assert.ok(inputOffset - inputBlock >= HEADROOM_BYTES);
    assert.ok(inputBlock + bench.reactor.arena.sizeOf(inputBlock) - inputOffset - inputLength >= TAILROOM_BYTES);
    bench.reactor.input.free(connection);
  }
});

test('a receive behind kept input leaves the same room after it', () => {
  const bench = openBench();
  for (const kept of [1, 448, 449, 5000]) {
    const { connection, socket } = bench.open();
    socket.incoming.push(pattern(kept), pattern(RECEIVE_BYTES_MAX, kept));
    bench.reactor.input.fill(connection);
    keepAfter(bench, connection, 0);
    assert.ok(bench.reactor.input.fill(connection) > kept);
    const { inputBlock, inputOffset, inputLength } = connection;
    assert.ok(inputBlock + bench.reactor.arena.sizeOf(inputBlock) - inputOffset - inputLength >= TAILROOM_BYTES);
    bench.reactor.close(connection, false);
  }
});

test('input that comes byte by byte grows from a small to a large block and ends as FULL', () => {
  const bench = openBench();
  const { connection, socket } = bench.open();
  const all = pattern(RECEIVE_BYTES_MAX);
  let sawSmall = false;
  for (let at = 0; at < all.length; at += 97) {
    socket.incoming.push(all.subarray(at, Math.min(at + 97, all.length)));
    assert.equal(bench.reactor.input.fill(connection), Math.min(at + 97, all.length));
    assert.equal(keepAfter(bench, connection, 0), true);
    sawSmall ||= bench.reactor.arena.usedBytes === SMALL_BLOCK_BYTES;
    assert.equal(bench.reactor.arena.used, 1);
  }
  assert.equal(sawSmall, true);
  assert.equal(bench.reactor.arena.usedBytes, LARGE_BLOCK_BYTES);
  socket.incoming.push(pattern(1));
  assert.equal(bench.reactor.input.fill(connection), FILL_FULL);
  const kept = bench.reactor.memory.subarray(connection.inputOffset, connection.inputOffset + connection.inputLength);
  assert.equal(Buffer.compare(kept, all), 0);
  assert.equal(socket.incoming.length, 1, 'nothing was received that could not be kept');
});

test('without a free block the input stays in the socket, or where it is', () => {
  const bench = openBench();
  const { arena } = bench.reactor;
  const { connection, socket } = bench.open();
  socket.incoming.push(pattern(900));
  bench.reactor.input.fill(connection);
  assert.equal(keepAfter(bench, connection, 0), true);
  while (arena.allocate(LARGE_BLOCK_BYTES) !== 0);
  socket.incoming.push(pattern(900));
  assert.equal(bench.reactor.input.fill(connection), FILL_NO_BUFFER);
  assert.equal(connection.inputLength, 900);
  while (arena.allocate(1) !== 0);
  const other = bench.open();
  other.socket.incoming.push(pattern(10));
  assert.equal(bench.reactor.input.fill(other.connection), 10);
  assert.equal(keepAfter(bench, other.connection, 0), false);
  assert.equal(other.connection.inputBlock, 0);
});

test('a random mix of receiving, using and keeping loses and repeats nothing', (t) => {
  const { random, label } = seededRandom(t);
  const bench = openBench({ bufferBytes: 2 * 1024 * 1024, slots: 4 });
  const streams = Array.from({ length: 4 }, () => ({ ...bench.open(), sent: 0, used: 0 }));
  for (let step = 0; step < 3000; step++) {
    const stream = random.pick(streams);
    const { connection, socket } = stream;
    if (random.chance(0.5)) {
      const bytes = pattern(random.size(1, 30_000), stream.sent);
      socket.incoming.push(bytes);
      stream.sent += bytes.length;
    }
    connection.readReady = true;
    const result = bench.reactor.input.fill(connection);
    if (result === FILL_FULL) {
      // A full buffer: its owner uses everything.
      const kept = bench.reactor.memory.subarray(
        connection.inputOffset,
        connection.inputOffset + connection.inputLength,
      );
      assert.equal(Buffer.compare(kept, pattern(kept.length, stream.used)), 0, label);
      stream.used += kept.length;
      bench.reactor.input.free(connection);
      continue;
    }
    if (result === FILL_AGAIN) continue;
    assert.ok(result > 0, `${label}: ${result}`);
    assert.equal(Buffer.compare(available(bench), pattern(result, stream.used)), 0, label);
    const used = random.pick([0, result, random.int(0, result)]);
    assert.equal(keepAfter(bench, connection, used), true, label);
    stream.used += used;
  }
  for (const { connection } of streams) bench.reactor.close(connection, false);
  assert.equal(bench.reactor.arena.used, 0, label);
});

test('closing a connection frees its kept input', () => {
  const bench = openBench();
  const { connection, socket } = bench.open();
  socket.incoming.push(pattern(10));
  bench.reactor.input.fill(connection);
  keepAfter(bench, connection, 0);
  bench.reactor.close(connection, false);
  assert.equal(bench.reactor.arena.used, 0);
  assert.equal(socket.closed && !socket.aborted, true);
});

test('the peer address comes from the socket address of accept', () => {
  const bench = openBench();
  const { connection } = bench.open();
  const at = bench.kernel.addressOffset;
  bench.kernel.memory.set([2, 0, 0x1f, 0x90, 192, 0, 2, 255], at);
  bench.reactor.readAddress(connection);
  assert.deepEqual(
    [connection.peerFamily, connection.peerPort, connection.peer0 >>> 0],
    [2, 8080, ((192 << 24) | (2 << 8) | 255) >>> 0],
  );
  const v6 = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0xff, 0xfe, 0, 0, 0, 9];
  bench.kernel.memory.set([10, 0, 0, 80, 0, 0, 0, 0, ...v6], at);
  bench.reactor.readAddress(connection);
  const { peer0, peer1, peer2, peer3 } = connection;
  assert.deepEqual([peer0, peer1, peer2, peer3], [0x20010db8, 0, 0xfffe, 9]);
  assert.equal(connection.peerFamily, 10);
});

test('the readiness bits of an event are remembered until used', () => {
  const bench = openBench();
  const { connection, socket } = bench.open();
  bench.kernel.raise(socket, Epoll.IN | Epoll.RDHUP);
  bench.reactor.runBatch(0);
  assert.equal(connection.readReady && connection.readHangup, true);
});
