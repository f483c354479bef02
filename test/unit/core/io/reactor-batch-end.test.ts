// What protocols of many streams on one connection need of the reactor: a call at the end of the batch, blocks
// that leave with the deferred sends, and input that nested receives leave alone.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Errno } from '../../../../core/ffi/errno.ts';
import { BULK_RECEIVE_BYTES_MAX, RECEIVE_BYTES_MAX } from '../../../../core/io/arena.ts';
import type { Connection } from '../../../../core/io/connection.ts';
import { noTransport } from '../../../../core/io/transport.ts';
import { openBench, pattern } from './fake-kernel.ts';

/** A bench whose protocol notes the ends of batches and then does what it is told. */
function benchWithEnds(then: (connection: Connection) => void = () => {}) {
  const bench = openBench();
  const ended: Connection[] = [];
  Object.assign(bench.protocol, {
    batchEnd(connection: Connection): void {
      ended.push(connection);
      then(connection);
    },
  });
  return { ...bench, ended };
}

test('the end of a batch is told once to those that asked, and the batch before it does not sleep', () => {
  const { reactor, kernel, open, ended } = benchWithEnds();
  const { connection } = open();
  open();
  reactor.atBatchEnd(connection);
  assert.equal(reactor.hasReady, true);
  reactor.runBatch(-1);
  assert.equal(kernel.waitedMs, 0);
  assert.deepEqual(ended, [connection]);
  reactor.runBatch(0);
  assert.deepEqual(ended, [connection]);
});

test('a connection that was closed before the end of the batch is not told, nor is the next one in its slot', () => {
  const { reactor, open, ended } = benchWithEnds();
  const { connection } = open();
  reactor.atBatchEnd(connection);
  reactor.close(connection, false);
  open();
  reactor.runBatch(0);
  assert.deepEqual(ended, []);
});

test('a block given away at the end of the batch leaves in the same batch, and is freed', () => {
  const { reactor, open } = benchWithEnds((connection) => {
    const block = reactor.arena.allocate(100);
    reactor.memory.set(pattern(100), block);
    assert.equal(reactor.output.sendBlockDeferred(connection, block, 100), true);
  });
  const { connection, socket } = open();
  reactor.atBatchEnd(connection);
  reactor.runBatch(0);
  assert.deepEqual(socket.takenBytes, Buffer.from(pattern(100)));
  assert.equal(reactor.arena.used, 0);
});

test('a block is freed whatever becomes of its connection: refused, partly taken, failed, closed', () => {
  const bench = openBench();
  const { reactor } = bench;
  const give = (connection: Connection): boolean => {
    const block = reactor.arena.allocate(100);
    reactor.memory.set(pattern(100), block);
    return reactor.output.sendBlockDeferred(connection, block, 100);
  };
  const [refused, partly, failed, closed, twice] = Array.from({ length: 5 }, () => bench.open());
  refused.socket.answers.push(-Errno.EAGAIN);
  partly.socket.answers.push(30);
  failed.socket.answers.push(-Errno.ECONNRESET);
  for (const { connection } of [refused, partly, failed, closed, twice]) give(connection);
  reactor.close(closed.connection, false);
  assert.equal(give(twice.connection), true);
  reactor.runBatch(0);
  assert.equal(twice.socket.takenBytes.length, 200);
  for (const { connection, socket } of [refused, partly]) {
    assert.ok(connection.outputBytes > 0);
    assert.equal(reactor.output.flush(connection), true);
    assert.deepEqual(socket.takenBytes, Buffer.from(pattern(100)));
  }
  reactor.close(failed.connection, true);
  assert.equal(reactor.arena.used, 0);
});

test('held input stays as it is while another connection receives as much as it may', () => {
  const bench = openBench();
  const { reactor } = bench;
  const [outer, inner] = [bench.open(), bench.open()];
  outer.socket.incoming.push(pattern(RECEIVE_BYTES_MAX));
  inner.socket.incoming.push(pattern(BULK_RECEIVE_BYTES_MAX, 7));
  const length = reactor.input.fill(outer.connection);
  const offset = reactor.input.offset;
  const before = reactor.receiveArea.hold(offset + length);
  assert.ok(before >= 0);
  assert.equal(reactor.input.fill(inner.connection, BULK_RECEIVE_BYTES_MAX), BULK_RECEIVE_BYTES_MAX);
  const innerOffset = reactor.input.offset;
  assert.deepEqual(Buffer.from(reactor.memory.subarray(offset, offset + length)), Buffer.from(pattern(length)));
  assert.deepEqual(
    Buffer.from(reactor.memory.subarray(innerOffset, innerOffset + BULK_RECEIVE_BYTES_MAX)),
    Buffer.from(pattern(BULK_RECEIVE_BYTES_MAX, 7)),
  );
  assert.ok(innerOffset + BULK_RECEIVE_BYTES_MAX <= reactor.arena.scratchOffset);
  reactor.receiveArea.release(before);
  inner.socket.incoming.push(pattern(10));
  reactor.input.fill(inner.connection);
  assert.equal(reactor.input.offset, offset, 'the place is free again');
});

test('input that leaves no room behind it is not held in the receive area', () => {
  const { reactor } = openBench();
  assert.equal(reactor.receiveArea.hold(reactor.arena.scratchOffset - 1000), -1);
});

test('a deferred send in the receive area survives a hold that ends before it leaves', () => {
  const bench = openBench();
  const { reactor } = bench;
  const [first, second] = [bench.open(), bench.open()];
  first.socket.incoming.push(pattern(400));
  const length = reactor.input.fill(first.connection);
  const offset = reactor.input.offset;
  const before = reactor.receiveArea.hold(offset + length);
  reactor.output.sendDeferred(second.connection, offset, length);
  reactor.receiveArea.release(before);
  first.socket.incoming.push(pattern(400, 99));
  reactor.input.fill(first.connection);
  reactor.runBatch(0);
  assert.deepEqual(second.socket.takenBytes, Buffer.from(pattern(400)));
});

test('what is sent into a stream within a stream leaves in the same batch', () => {
  const bench = openBench();
  const { reactor } = bench;
  const outer = bench.open();
  /** A stream inside `within`: what it is given goes on at the end of the batch. */
  const within = (carrier: Connection): Connection => {
    const pending: Uint8Array[] = [];
    const stream = reactor.openVirtual(bench.protocol, {
      ...noTransport,
      send(_connection, offset, length) {
        pending.push(reactor.memory.slice(offset, offset + length));
        ends.set(carrier, pending);
        reactor.atBatchEnd(carrier);
        return length;
      },
    });
    return stream!;
  };
  const ends = new Map<Connection, Uint8Array[]>();
  Object.assign(bench.protocol, {
    batchEnd(connection: Connection): void {
      for (const bytes of ends.get(connection)!.splice(0)) {
        const block = reactor.arena.allocate(bytes.length);
        reactor.memory.set(bytes, block);
        reactor.output.sendBlockDeferred(connection, block, bytes.length);
      }
    },
  });
  const inner = within(within(outer.connection));
  const block = reactor.arena.allocate(100);
  reactor.memory.set(pattern(100), block);
  reactor.output.sendBlockDeferred(inner, block, 100);
  reactor.runBatch(0);
  assert.deepEqual(outer.socket.takenBytes, Buffer.from(pattern(100)));
  assert.equal(reactor.hasReady, false, 'the next batch need not hurry');
  assert.equal(reactor.arena.used, 0);
});

test('a connection that asks for the end of the batch at every end does not keep the others waiting', () => {
  const { reactor, open } = benchWithEnds((connection) => {
    const block = reactor.arena.allocate(10);
    reactor.output.sendBlockDeferred(connection, block, 10);
  });
  const { connection } = open();
  const again = reactor.openVirtual(connection.protocol!, {
    ...noTransport,
    send(stream, _offset, length) {
      reactor.atBatchEnd(stream);
      return length;
    },
  })!;
  reactor.atBatchEnd(again);
  reactor.runBatch(0);
  assert.equal(reactor.hasReady, true, 'it goes on in the next batch');
});
