// Small messages received ahead of their turn: whoever reads notices nothing, and nothing is lost.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Errno } from '../../../../core/ffi/errno.ts';
import { Epoll } from '../../../../core/ffi/kernel.ts';
import { AHEAD_BYTES_MAX, RECEIVE_BYTES_MAX } from '../../../../core/io/arena.ts';
import type { Connection } from '../../../../core/io/connection.ts';
import { FILL_AGAIN, FILL_END, FILL_ERROR, FILL_NO_BUFFER } from '../../../../core/io/input.ts';
import { type Bench, type FakeSocket, openBench, pattern } from './fake-kernel.ts';

type Opened = { connection: Connection; socket: FakeSocket };

/** Connections whose last message was small. */
function openSmall(bench: Bench, count: number): Opened[] {
  return Array.from({ length: count }, (_, index) => {
    const opened = bench.open();
    opened.socket.incoming.push(pattern(50, index));
    assert.equal(bench.reactor.input.fill(opened.connection), 50);
    return opened;
  });
}

/** Runs a batch in which all of `opened` have something to read. */
function run(bench: Bench, opened: Opened[]): void {
  for (const { socket } of opened) bench.kernel.raise(socket, Epoll.IN);
  bench.reactor.runBatch(0);
}

function taken(bench: Bench): Buffer {
  const { input, memory } = bench.reactor;
  return Buffer.from(memory.subarray(input.offset, input.offset + input.length));
}

test('each connection reads its own message, whatever those before it do to theirs', () => {
  const bench = openBench({ slots: 200 });
  const all = openSmall(bench, 150);
  const read: Buffer[] = [];
  all.forEach(({ socket }, index) => {
    socket.incoming.push(pattern(100 + index, index));
  });
  bench.protocol.onReadable = (connection) => {
    const length = bench.reactor.input.fill(connection);
    const message = taken(bench);
    read[connection.slot] = message;
    assert.equal(length, message.length);
    // A handler rewrites in place, with room around it, and puts its answer off.
    const { offset } = bench.reactor.input;
    bench.reactor.memory.fill(255, offset - 1000, offset);
    bench.reactor.output.sendDeferred(connection, offset, length);
  };
  run(bench, all);
  all.forEach(({ socket, connection }, index) => {
    const expected = Buffer.from(pattern(100 + index, index));
    assert.deepEqual(read[connection.slot], expected, `message ${index}`);
    assert.deepEqual(socket.takenBytes, expected, `answer ${index}`);
    assert.equal(connection.readReady, false, 'a short message has emptied the socket');
  });
});

test('a large receive in the middle of a group destroys no message of the group', () => {
  const bench = openBench({ slots: 80 });
  const all = openSmall(bench, 64);
  const large = all[10]!;
  large.connection.smallInput = false;
  large.socket.incoming.push(pattern(RECEIVE_BYTES_MAX, 3));
  const read: number[] = [];
  all.forEach(({ socket }, index) => {
    if (socket !== large.socket) socket.incoming.push(pattern(300, index));
  });
  bench.protocol.onReadable = (connection) => {
    const length = bench.reactor.input.fill(connection);
    if (connection !== large.connection) {
      assert.deepEqual(taken(bench), Buffer.from(pattern(300, connection.slot)));
      bench.reactor.output.sendDeferred(connection, bench.reactor.input.offset, length);
    }
    read.push(length);
  };
  run(bench, all);
  assert.equal(read.length, 64);
  assert.equal(read[10], RECEIVE_BYTES_MAX);
  for (const { socket, connection } of all) {
    if (socket !== large.socket) assert.deepEqual(socket.takenBytes, Buffer.from(pattern(300, connection.slot)));
  }
});

test('what a paused connection does not read in its turn waits for it, at the cost of one block', () => {
  const bench = openBench();
  const [first, paused] = openSmall(bench, 2) as [Opened, Opened];
  bench.protocol.onReadable = (connection) => {
    if (connection === first.connection) bench.reactor.input.fill(connection);
  };
  first.socket.incoming.push(pattern(10));
  paused.socket.incoming.push(pattern(700, 9));
  run(bench, [first, paused]);
  assert.equal(bench.reactor.arena.used, 1);
  // The next batches use the receive area again, and more comes for the paused one.
  first.socket.incoming.push(pattern(500, 77));
  paused.socket.incoming.push(pattern(20, 200));
  run(bench, [first, paused]);
  assert.equal(bench.reactor.input.fill(paused.connection), 700);
  assert.deepEqual(taken(bench), Buffer.from(pattern(700, 9)));
  assert.equal(bench.reactor.arena.used, 0);
  assert.equal(paused.connection.readReady, true, 'what came meanwhile had its event already');
  assert.equal(bench.reactor.input.fill(paused.connection), 20);
  assert.deepEqual(taken(bench), Buffer.from(pattern(20, 200)));
});

test('ends, errors and nothing at all are told at the next fill', () => {
  const bench = openBench();
  const [ended, failed, empty] = openSmall(bench, 3) as [Opened, Opened, Opened];
  ended.socket.finished = true;
  failed.socket.incoming.push(-Errno.ECONNRESET);
  run(bench, [ended, failed, empty]);
  assert.equal(empty.connection.readReady, false);
  assert.equal(bench.reactor.input.fill(ended.connection), FILL_END);
  assert.equal(ended.connection.readEnded, true);
  assert.equal(bench.reactor.input.fill(failed.connection), FILL_ERROR);
  assert.equal(failed.connection.errno, Errno.ECONNRESET);
  assert.equal(bench.reactor.input.fill(empty.connection), FILL_AGAIN);
});

test('a message that fills its room is followed by a receive', () => {
  const bench = openBench();
  const [first, long] = openSmall(bench, 2) as [Opened, Opened];
  long.socket.incoming.push(pattern(AHEAD_BYTES_MAX + 100));
  first.socket.incoming.push(pattern(1));
  const lengths: number[] = [];
  bench.protocol.onReadable = (connection) => {
    while (connection.readReady) lengths.push(bench.reactor.input.fill(connection));
  };
  run(bench, [first, long]);
  assert.deepEqual(lengths, [1, AHEAD_BYTES_MAX, 100]);
});

test('a connection closed by a handler before its turn loses its message without a trace', () => {
  const bench = openBench();
  const [first, victim] = openSmall(bench, 2) as [Opened, Opened];
  first.socket.incoming.push(pattern(5));
  victim.socket.incoming.push(pattern(600));
  let successor: Opened | undefined;
  bench.protocol.onReadable = (connection) => {
    if (connection !== first.connection) return;
    bench.reactor.input.fill(connection);
    bench.reactor.close(victim.connection, false);
    successor = bench.open();
  };
  run(bench, [first, victim]);
  assert.equal(successor!.connection, victim.connection, 'the slot is in use again');
  assert.equal(bench.reactor.input.fill(successor!.connection), FILL_AGAIN);
  assert.equal(bench.reactor.arena.used, 0);
});

test('without a block to keep it, a message that waits is a failure, not a loss nobody sees', () => {
  const bench = openBench();
  const [first, paused] = openSmall(bench, 2) as [Opened, Opened];
  const { arena } = bench.reactor;
  const blocks: number[] = [];
  for (let block = arena.allocate(10); block !== 0; block = arena.allocate(10)) blocks.push(block);
  paused.socket.incoming.push(pattern(30));
  run(bench, [first, paused]);
  assert.equal(bench.reactor.input.fill(paused.connection), FILL_NO_BUFFER);
  for (const block of blocks) arena.free(block);
});

test('an idle connection is silent only if nothing has come, ahead or not', () => {
  const bench = openBench();
  const [idle, spoken, other] = openSmall(bench, 3) as [Opened, Opened, Opened];
  spoken.socket.incoming.push(pattern(3));
  run(bench, [spoken, other]);
  assert.equal(bench.reactor.input.isSilent(idle.connection), true);
  assert.equal(bench.reactor.input.isSilent(spoken.connection), false);
  idle.socket.incoming.push(pattern(3));
  assert.equal(bench.reactor.input.isSilent(idle.connection), false);
});
