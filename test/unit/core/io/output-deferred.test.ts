// Deferred sends: they leave at the end of the batch, in order, and lose nothing on the way.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Errno } from '../../../../core/ffi/errno.ts';
import { BULK_RECEIVE_BYTES_MAX, RECEIVE_BYTES_MAX } from '../../../../core/io/arena.ts';
import type { Connection } from '../../../../core/io/connection.ts';
import { FILL_AGAIN } from '../../../../core/io/input.ts';
import { openBench, pattern } from './fake-kernel.ts';

test('a deferred send leaves at the end of the batch', () => {
  const bench = openBench();
  const { connection, socket } = bench.open();
  socket.incoming.push(pattern(300));
  const length = bench.reactor.input.fill(connection);
  bench.reactor.output.sendDeferred(connection, bench.reactor.input.offset, length);
  assert.equal(socket.sendCalls, 0);
  bench.reactor.runBatch(0);
  assert.deepEqual(socket.takenBytes, Buffer.from(pattern(300)));
  assert.equal(connection.deferred, false);
});

test('messages received after a deferred one do not overwrite it, however many there are', () => {
  const bench = openBench({ slots: 700 });
  const pairs = Array.from({ length: 600 }, () => bench.open());
  pairs.forEach(({ connection, socket }, index) => {
    socket.incoming.push(pattern(200 + index, index));
    const length = bench.reactor.input.fill(connection);
    assert.equal(length, 200 + index);
    bench.reactor.output.sendDeferred(connection, bench.reactor.input.offset, length);
  });
  bench.reactor.runBatch(0);
  pairs.forEach(({ socket }, index) => {
    assert.deepEqual(socket.takenBytes, Buffer.from(pattern(200 + index, index)), `message ${index}`);
  });
});

test('a receive of full size after deferred messages still has its room', () => {
  const bench = openBench();
  const first = bench.open();
  const second = bench.open();
  first.socket.incoming.push(pattern(500));
  const length = bench.reactor.input.fill(first.connection);
  bench.reactor.output.sendDeferred(first.connection, bench.reactor.input.offset, length);
  second.socket.incoming.push(pattern(RECEIVE_BYTES_MAX));
  assert.equal(bench.reactor.input.fill(second.connection), RECEIVE_BYTES_MAX);
  bench.reactor.runBatch(0);
  assert.deepEqual(first.socket.takenBytes, Buffer.from(pattern(500)));
});

test('a send at once on a connection with a deferred one leaves after it', () => {
  const bench = openBench();
  const { connection, socket } = bench.open();
  const { scratchOffset } = bench.reactor.arena;
  bench.reactor.memory.set([1, 2, 3, 4], scratchOffset);
  bench.reactor.output.sendDeferred(connection, scratchOffset, 2);
  assert.equal(bench.reactor.output.send(connection, scratchOffset + 2, 2, false), true);
  assert.deepEqual(socket.takenBytes, Buffer.from([1, 2, 3, 4]));
  bench.reactor.runBatch(0);
  assert.deepEqual(socket.takenBytes, Buffer.from([1, 2, 3, 4]));
});

test('what the socket does not take of a deferred send is kept', () => {
  const bench = openBench();
  const { connection, socket } = bench.open();
  const { scratchOffset } = bench.reactor.arena;
  bench.reactor.memory.set(pattern(50), scratchOffset);
  socket.answers.push(20);
  bench.reactor.output.sendDeferred(connection, scratchOffset, 50);
  bench.reactor.output.flushDeferred();
  assert.equal(connection.outputBytes, 30);
  assert.equal(bench.reactor.output.flush(connection), true);
  assert.deepEqual(socket.takenBytes, Buffer.from(pattern(50)));
});

test('a failed deferred send is told to the protocol, which may defer again', () => {
  const bench = openBench();
  const { connection, socket } = bench.open();
  const other = bench.open();
  const { scratchOffset } = bench.reactor.arena;
  bench.reactor.memory.set([7, 8], scratchOffset);
  socket.answers.push(-Errno.EPIPE);
  const told: number[] = [];
  bench.protocol.onSendFailed = (failed: Connection) => {
    told.push(failed.slot, failed.errno);
    bench.reactor.close(failed, false);
    bench.reactor.output.sendDeferred(other.connection, scratchOffset, 2);
  };
  const { slot } = connection;
  bench.reactor.output.sendDeferred(connection, scratchOffset, 2);
  bench.reactor.runBatch(0);
  assert.deepEqual(told, [slot, Errno.EPIPE]);
  assert.deepEqual(other.socket.takenBytes, Buffer.from([7, 8]));
});

test('a connection closed before the end of the batch sends nothing, nor does its successor', () => {
  const bench = openBench();
  const { connection, socket } = bench.open();
  bench.reactor.output.sendDeferred(connection, bench.reactor.arena.scratchOffset, 2);
  bench.reactor.close(connection, false);
  const successor = bench.open();
  assert.equal(successor.connection, connection, 'the slot is used again');
  bench.reactor.runBatch(0);
  assert.equal(socket.sendCalls, 0);
  assert.equal(successor.socket.sendCalls, 0);
});

test('a send after a deferred one that fails reports the failure itself and calls no handler', () => {
  const bench = openBench();
  const { connection, socket } = bench.open();
  const { scratchOffset } = bench.reactor.arena;
  socket.answers.push(-Errno.ECONNRESET);
  assert.equal(bench.reactor.output.sendDeferred(connection, scratchOffset, 2), true);
  assert.equal(bench.reactor.output.send(connection, scratchOffset, 2, false), false);
  assert.equal(connection.errno, Errno.ECONNRESET);
  assert.deepEqual(bench.protocol.takeCalls(), []);
  bench.reactor.runBatch(0);
  assert.deepEqual(bench.protocol.takeCalls(), [], 'the failed piece is not sent again');
});

test('a connection whose deferred send fails during its own receive is recycled once', () => {
  const bench = openBench({ slots: 300 });
  bench.protocol.onSendFailed = (failed: Connection) => bench.reactor.close(failed, true);
  const victim = bench.open();
  const receive = ({ connection, socket }: typeof victim, bytes: number) => {
    socket.incoming.push(pattern(bytes));
    const length = bench.reactor.input.fill(connection);
    bench.reactor.output.sendDeferred(connection, bench.reactor.input.offset, length);
  };
  receive(victim, 100);
  victim.socket.answers.push(-Errno.EPIPE);
  for (let index = 0; index < 55; index++) receive(bench.open(), 2000);
  // There is no room for this one before the deferred sends are done.
  assert.equal(bench.reactor.input.fill(victim.connection, BULK_RECEIVE_BYTES_MAX), FILL_AGAIN);
  bench.reactor.runBatch(0);
  const [first, second] = [bench.open().connection, bench.open().connection];
  assert.notEqual(first, second, 'no slot is given out twice');
});

test('more deferred sends than the queue holds all leave', () => {
  const bench = openBench({ slots: 1100 });
  const { scratchOffset } = bench.reactor.arena;
  bench.reactor.memory.set([9], scratchOffset);
  const opened = Array.from({ length: 1100 }, () => bench.open());
  const { output } = bench.reactor;
  for (const { connection } of opened) assert.equal(output.sendDeferred(connection, scratchOffset, 1), true);
  bench.reactor.runBatch(0);
  assert.ok(opened.every(({ socket }) => socket.takenBytes.equals(Buffer.from([9]))));
});
