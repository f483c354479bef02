// The reactor's slots, events, ready queue and timers: the right connection is told, once, in turn.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Errno } from '../../../../core/ffi/errno.ts';
import { Epoll } from '../../../../core/ffi/kernel.ts';
import type { Connection } from '../../../../core/io/connection.ts';
import { Reactor } from '../../../../core/io/reactor.ts';
import { FakeKernel, openBench } from './fake-kernel.ts';

test('an event is handed to the connection it is for: writable first, then readable', () => {
  const bench = openBench();
  bench.open();
  const { socket } = bench.open();
  bench.kernel.raise(socket, Epoll.IN | Epoll.OUT);
  assert.equal(bench.reactor.runBatch(0), 1);
  assert.deepEqual(bench.protocol.takeCalls(), ['writable 1', 'readable 1']);
  bench.kernel.raise(socket, Epoll.OUT);
  bench.reactor.runBatch(0);
  assert.deepEqual(bench.protocol.takeCalls(), ['writable 1']);
  bench.kernel.raise(socket, Epoll.ERR | Epoll.HUP);
  bench.reactor.runBatch(0);
  assert.deepEqual(bench.protocol.takeCalls(), ['writable 1', 'readable 1']);
});

test('events of an earlier occupant of a slot are ignored, in the same batch and later', () => {
  const bench = openBench();
  const first = bench.open();
  const other = bench.open();
  const { generation } = first.connection;
  bench.protocol.onReadable = (connection) => {
    if (connection !== other.connection) return;
    bench.reactor.close(first.connection, false);
    const next = bench.open();
    assert.equal(next.connection.slot, first.connection.slot, 'the slot is reused at once');
  };
  bench.kernel.raise(other.socket, Epoll.IN);
  bench.kernel.raise(first.socket, Epoll.IN | Epoll.OUT);
  bench.reactor.runBatch(0);
  assert.deepEqual(bench.protocol.takeCalls(), ['readable 1']);
  assert.notEqual(first.connection.generation, generation);
  bench.kernel.raise(first.socket, Epoll.HUP);
  bench.reactor.runBatch(0);
  assert.deepEqual(bench.protocol.takeCalls(), []);
});

test('a connection closed while it is told that it is writable is not told that it is readable', () => {
  const bench = openBench();
  const { socket } = bench.open();
  bench.protocol.onWritable = (connection) => bench.reactor.close(connection, false);
  bench.kernel.raise(socket, Epoll.IN | Epoll.OUT);
  bench.reactor.runBatch(0);
  assert.deepEqual(bench.protocol.takeCalls(), ['writable 0']);
});

test('events for slots that never existed are ignored', () => {
  const bench = openBench();
  const { socket } = bench.open();
  socket.slot = 5;
  bench.kernel.raise(socket, Epoll.IN);
  bench.reactor.runBatch(0);
  assert.deepEqual(bench.protocol.calls, []);
});

test('the ready queue serves in turn, each once per batch, and never sleeps while it has somebody', () => {
  const bench = openBench();
  const opened = [bench.open(), bench.open(), bench.open()];
  bench.protocol.onReadable = (connection) => bench.reactor.enqueue(connection);
  for (const { connection } of [opened[2], opened[0], opened[1], opened[0]]) bench.reactor.enqueue(connection);
  for (let batch = 0; batch < 5; batch++) {
    bench.reactor.runBatch(-1);
    assert.equal(bench.kernel.waitedMs, 0);
    assert.deepEqual(bench.protocol.takeCalls(), ['readable 2', 'readable 0', 'readable 1']);
  }
  bench.protocol.onReadable = () => undefined;
  bench.reactor.runBatch(-1);
  assert.equal(bench.reactor.hasReady, false);
  bench.reactor.runBatch(-1);
  assert.equal(bench.kernel.waitedMs, -1);
});

test('who becomes ready during a batch waits for the next one', () => {
  const bench = openBench();
  const first = bench.open();
  const second = bench.open();
  bench.protocol.onReadable = (connection) => {
    if (connection === first.connection) bench.reactor.enqueue(second.connection);
  };
  bench.kernel.raise(first.socket, Epoll.IN);
  bench.reactor.runBatch(0);
  assert.deepEqual(bench.protocol.takeCalls(), ['readable 0']);
  bench.reactor.runBatch(0);
  assert.deepEqual(bench.protocol.takeCalls(), ['readable 1']);
});

test('a slot closed while queued is passed over; its next occupant can be queued and is served once', () => {
  const bench = openBench({ slots: 2 });
  const { connection } = bench.open();
  bench.reactor.enqueue(connection);
  bench.reactor.close(connection, false);
  bench.reactor.runBatch(0);
  assert.deepEqual(bench.protocol.takeCalls(), []);

  const second = bench.open();
  bench.reactor.enqueue(second.connection);
  bench.reactor.close(second.connection, false);
  const third = bench.open();
  assert.equal(third.connection.slot, second.connection.slot);
  bench.reactor.enqueue(third.connection);
  bench.reactor.runBatch(0);
  assert.deepEqual(bench.protocol.takeCalls(), ['readable 0']);
  assert.equal(bench.reactor.hasReady, false);
  bench.reactor.enqueue(third.connection);
  bench.reactor.runBatch(0);
  assert.deepEqual(bench.protocol.takeCalls(), ['readable 0']);
});

test('the ready queue holds every slot there is, over and over', () => {
  const slots = 5;
  const bench = openBench({ slots });
  const opened = Array.from({ length: slots }, () => bench.open());
  for (let round = 0; round < 7; round++) {
    const order = opened.map((_, i) => opened[(i + round) % slots].connection);
    for (const connection of order) bench.reactor.enqueue(connection);
    bench.reactor.runBatch(0);
    assert.deepEqual(
      bench.protocol.takeCalls(),
      order.map(({ slot }) => `readable ${slot}`),
    );
  }
});

test('a resumed reader is served if it has anything to read, and not otherwise', () => {
  const bench = openBench();
  const { connection } = bench.open();
  bench.reactor.resume(connection);
  assert.equal(bench.reactor.hasReady, false);
  connection.readReady = true;
  bench.reactor.resume(connection);
  assert.equal(bench.reactor.hasReady, true);
});

test('without a free slot a stream is refused and its descriptor closed', () => {
  const bench = openBench({ slots: 2 });
  bench.open();
  bench.open();
  assert.equal(bench.reactor.slotsFree, 0);
  const fd = bench.kernel.create();
  const socket = bench.kernel.socket(fd);
  assert.equal(bench.reactor.openStream(fd, bench.protocol), null);
  assert.equal(socket.closed, true);
  assert.equal(bench.reactor.open, 2);
});

test('a descriptor that the system will not watch is closed and its slot is free again', () => {
  const bench = openBench({ slots: 1 });
  bench.kernel.addAnswer = -Errno.ENOSPC;
  const fd = bench.kernel.create();
  const socket = bench.kernel.socket(fd);
  assert.equal(bench.reactor.openStream(fd, bench.protocol), null);
  assert.equal(socket.closed, true);
  const watched = bench.kernel.create();
  assert.equal(bench.reactor.openWatch(watched, bench.protocol), null);
  assert.equal(bench.kernel.socket(watched).closed, false, 'a watched descriptor stays its owner’s');
  bench.kernel.addAnswer = 0;
  assert.equal(bench.reactor.slotsFree, 1);
  bench.open();
  assert.equal(bench.reactor.open, 1);
});

test('the shared table names every open descriptor, and none that is closed or only watched', () => {
  const bench = openBench({ slots: 3 });
  const watch = bench.reactor.openWatch(bench.kernel.create(), bench.protocol)!;
  const { connection } = bench.open();
  bench.reactor.noteSpare(99);
  assert.deepEqual([...bench.descriptors], [0, connection.fd + 1, 0, 3 + 1, 100]);
  bench.reactor.close(connection, false);
  bench.reactor.noteSpare(-Errno.EMFILE);
  bench.reactor.closeWatch(watch);
  assert.deepEqual([...bench.descriptors], [0, 0, 0, 4, 0]);
  assert.equal(bench.reactor.open, 0);
  bench.reactor.destroy();
  assert.deepEqual([...bench.descriptors], [0, 0, 0, 0, 0]);
});

test('a reused slot starts afresh', () => {
  const bench = openBench();
  const { connection } = bench.open();
  const fresh = { ...connection };
  Object.assign(connection, {
    state: 3,
    readReady: true,
    readHangup: true,
    readEnded: true,
    writeEnded: true,
    errno: 5,
    inputScanned: 7,
    exchanges: 9,
    reusable: false,
  });
  bench.reactor.setTimer(connection, 10);
  bench.reactor.close(connection, false);
  const next = bench.open();
  assert.equal(next.connection, connection);
  assert.deepEqual({ ...connection, fd: 0, generation: 0 }, { ...fresh, fd: 0, generation: 0 });
  bench.kernel.timeMs += 1000;
  bench.reactor.runBatch(0);
  assert.deepEqual(bench.protocol.calls, [], 'the timer of the earlier occupant is gone');
});

test('a timer wakes the wait in time and tells its connection, after the events of the batch', () => {
  const bench = openBench();
  const { connection } = bench.open();
  const { socket } = bench.open();
  bench.reactor.setTimer(connection, 200);
  bench.reactor.runBatch(-1);
  assert.ok(bench.kernel.waitedMs >= 200 && bench.kernel.waitedMs <= 210, `${bench.kernel.waitedMs}`);
  assert.deepEqual(bench.protocol.takeCalls(), []);
  bench.reactor.runBatch(50);
  assert.equal(bench.kernel.waitedMs, 50);
  bench.kernel.timeMs += 210;
  bench.kernel.raise(socket, Epoll.IN);
  bench.reactor.runBatch(-1);
  assert.deepEqual(bench.protocol.takeCalls(), ['readable 1', 'expired 0']);
  bench.reactor.setTimer(connection, 200);
  bench.reactor.clearTimer(connection);
  bench.kernel.timeMs += 500;
  bench.reactor.runBatch(0);
  assert.deepEqual(bench.protocol.takeCalls(), []);
});

test('the wall clock is followed when it is set', () => {
  const bench = openBench();
  bench.reactor.runBatch(0);
  assert.equal(bench.reactor.wallMs, bench.kernel.wallTimeMs);
  bench.kernel.timeMs += 1000;
  bench.kernel.wallTimeMs += 3_600_000;
  bench.reactor.runBatch(0);
  assert.equal(bench.reactor.wallMs, bench.kernel.wallTimeMs);
});

test('a paused listener gives no events until it is resumed', () => {
  const bench = openBench();
  const fd = bench.kernel.create();
  const watch = bench.reactor.openWatch(fd, bench.protocol)!;
  const socket = bench.kernel.socket(fd);
  assert.equal(socket.watched, Epoll.IN);
  bench.reactor.pauseWatch(watch, true);
  assert.equal(socket.watched, 0);
  bench.reactor.pauseWatch(watch, false);
  assert.equal(socket.watched, Epoll.IN);
});

test('visiting all connections finds each open one, also when the visitor closes them', () => {
  const bench = openBench();
  const opened = [bench.open(), bench.open(), bench.open()];
  bench.reactor.close(opened[1].connection, false);
  const seen: Connection[] = [];
  bench.reactor.forEach((connection) => {
    seen.push(connection);
    bench.reactor.close(connection, false);
  });
  assert.deepEqual(
    seen.map(({ slot }) => slot),
    [0, 2],
  );
  assert.equal(bench.reactor.open, 0);
});

test('a reactor without an epoll instance says so', () => {
  const kernel = new FakeKernel();
  kernel.epollCreate = () => -Errno.EMFILE;
  assert.throws(() => new Reactor(kernel, 1, new Int32Array(3)), /epoll_create1 failed: errno 24/);
});
