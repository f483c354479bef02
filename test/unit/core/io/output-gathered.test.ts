// Bytes gathered for one socket, and transports that hold back what they are given: one call for many pieces, and
// nothing lost, doubled or out of order on the way.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Errno } from '../../../../core/ffi/errno.ts';
import { BULK_RECEIVE_BYTES_MAX, RECEIVE_BYTES_MAX } from '../../../../core/io/arena.ts';
import type { Connection } from '../../../../core/io/connection.ts';
import { noTransport, type Transport } from '../../../../core/io/transport.ts';
import { type Bench, openBench, pattern } from './fake-kernel.ts';

/** Pieces of different lengths with frame headers between them, as a receive brings them. */
function receivePieces(bench: Bench, lengths: number[]): { pieces: [offset: number, length: number][]; bytes: Buffer } {
  const pieces: [number, number][] = [];
  const parts: Uint8Array[] = [];
  let offset = bench.reactor.arena.receiveOffset;
  for (const [index, length] of lengths.entries()) {
    offset += 9;
    const bytes = pattern(length, index * 7);
    bench.reactor.memory.set(bytes, offset);
    pieces.push([offset, length]);
    parts.push(bytes);
    offset += length;
  }
  return { pieces, bytes: Buffer.concat(parts) };
}

function sendAll(bench: Bench, connection: Connection, pieces: [offset: number, length: number][]): void {
  const { output } = bench.reactor;
  for (const [offset, length] of pieces) assert.equal(output.sendGathered(connection, offset, length), true);
}

test('pieces for one socket leave with one call', () => {
  const bench = openBench();
  const { connection, socket } = bench.open();
  const { pieces, bytes } = receivePieces(bench, [16_384, 16_384, 300, 16_384]);
  const before = bench.reactor.output.beginGathering();
  sendAll(bench, connection, pieces);
  assert.equal(socket.sendCalls, 0);
  bench.reactor.output.endGathering(before);
  assert.deepEqual([socket.sendCalls, socket.segmentsMax], [1, 4]);
  assert.deepEqual(socket.takenBytes, bytes);
});

test('where nobody gathers, they leave at once', () => {
  const bench = openBench();
  const { connection, socket } = bench.open();
  const { pieces, bytes } = receivePieces(bench, [100, 200]);
  sendAll(bench, connection, pieces);
  assert.equal(socket.sendCalls, 2);
  assert.deepEqual(socket.takenBytes, bytes);
});

for (const answer of [0, 1, 99, 100, 101, 250, 599, -Errno.EAGAIN, -Errno.EINTR]) {
  test(`what the socket leaves is kept in order when it answers ${answer}`, () => {
    const bench = openBench();
    const { connection, socket } = bench.open();
    const { pieces, bytes } = receivePieces(bench, [100, 200, 300]);
    socket.answers.push(answer);
    const before = bench.reactor.output.beginGathering();
    sendAll(bench, connection, pieces);
    bench.reactor.output.endGathering(before);
    // What has been kept is kept for good: the receive area is used again.
    bench.reactor.memory.fill(0xee, pieces[0]![0], pieces[2]![0] + 300);
    assert.equal(bench.reactor.output.flush(connection), true);
    assert.equal(connection.outputBytes, 0);
    assert.deepEqual(socket.takenBytes, bytes);
  });
}

test('a slow reader has no more gathered for it than a block, and then what it is sent is kept', () => {
  const bench = openBench();
  const { connection, socket } = bench.open();
  const { pieces, bytes } = receivePieces(bench, Array(7).fill(16_375));
  socket.answers.push(1000);
  const before = bench.reactor.output.beginGathering();
  sendAll(bench, connection, pieces.slice(0, 4));
  assert.equal(connection.outputBytes, 0);
  sendAll(bench, connection, pieces.slice(4, 5));
  assert.equal(socket.sendCalls, 1);
  assert.equal(connection.outputBytes, 5 * 16_375 - 1000);
  sendAll(bench, connection, pieces.slice(5));
  bench.reactor.output.endGathering(before);
  assert.equal(socket.sendCalls, 1, 'nothing is tried behind what is kept');
  assert.equal(bench.reactor.output.flush(connection), true);
  assert.deepEqual(socket.takenBytes, bytes);
});

test('more pieces than one call takes leave in several', () => {
  const bench = openBench();
  const { connection, socket } = bench.open();
  const { pieces, bytes } = receivePieces(bench, Array(150).fill(10));
  const before = bench.reactor.output.beginGathering();
  sendAll(bench, connection, pieces);
  bench.reactor.output.endGathering(before);
  assert.equal(socket.sendCalls, 3);
  assert.deepEqual(socket.takenBytes, bytes);
});

test('pieces for several sockets in turns all arrive in order', () => {
  const bench = openBench();
  const [first, second] = [bench.open(), bench.open()];
  const { pieces } = receivePieces(bench, [10, 20, 30, 40, 50, 60]);
  const before = bench.reactor.output.beginGathering();
  pieces.forEach(([offset, length], index) => {
    bench.reactor.output.sendGathered(index % 3 === 2 ? second.connection : first.connection, offset, length);
  });
  bench.reactor.output.endGathering(before);
  const at = (index: number) => Buffer.from(pattern(10 * (index + 1), index * 7));
  assert.deepEqual(first.socket.takenBytes, Buffer.concat([at(0), at(1), at(3), at(4)]));
  assert.deepEqual(second.socket.takenBytes, Buffer.concat([at(2), at(5)]));
});

test('whatever else is sent goes behind what is gathered', () => {
  const { reactor, open } = openBench();
  const { scratchOffset: at } = reactor.arena;
  reactor.memory.set(pattern(50), at);
  const ways: [what: string, send: (connection: Connection) => void][] = [
    ['send', (connection) => void reactor.output.send(connection, at + 20, 30, false)],
    ['sendPair', (connection) => void reactor.output.sendPair(connection, at + 20, 10, at + 30, 20)],
    ['sendDeferred', (connection) => void reactor.output.sendDeferred(connection, at + 20, 30)],
  ];
  for (const [what, send] of ways) {
    const { connection, socket } = open();
    const before = reactor.output.beginGathering();
    reactor.output.sendGathered(connection, at, 20);
    send(connection);
    reactor.output.endGathering(before);
    reactor.output.flushDeferred();
    assert.deepEqual(socket.takenBytes, Buffer.from(pattern(50)), what);
  }
});

test('what is gathered leaves before our side is finished, and before the socket is closed', () => {
  const { reactor, open } = openBench();
  const { scratchOffset: at } = reactor.arena;
  reactor.memory.set(pattern(20), at);
  for (const end of ['shutdownWrite', 'close'] as const) {
    const { connection, socket } = open();
    const before = reactor.output.beginGathering();
    reactor.output.sendGathered(connection, at, 20);
    if (end === 'close') reactor.close(connection, false);
    else reactor.shutdownWrite(connection);
    assert.deepEqual(socket.takenBytes, Buffer.from(pattern(20)), end);
    reactor.output.endGathering(before);
    assert.equal(socket.sendCalls, 1, end);
  }
});

test('a failure is told to the protocol at the end of the batch, once', () => {
  const bench = openBench();
  const { connection, socket } = bench.open();
  const { pieces } = receivePieces(bench, [10, 20]);
  socket.answers.push(-Errno.EPIPE);
  bench.protocol.onSendFailed = (failed) => bench.reactor.close(failed, true);
  const before = bench.reactor.output.beginGathering();
  sendAll(bench, connection, pieces);
  bench.reactor.output.endGathering(before);
  assert.deepEqual(bench.protocol.takeCalls(), []);
  assert.equal(connection.errno, Errno.EPIPE);
  bench.reactor.runBatch(0);
  assert.deepEqual(bench.protocol.takeCalls(), ['sendFailed 0']);
  bench.reactor.runBatch(0);
  assert.deepEqual(bench.protocol.takeCalls(), []);
});

test('a failure that whoever asks to flush learns of is not told again', () => {
  const bench = openBench();
  const { connection, socket } = bench.open();
  const { pieces } = receivePieces(bench, [10]);
  socket.answers.push(-Errno.ECONNRESET);
  const before = bench.reactor.output.beginGathering();
  sendAll(bench, connection, pieces);
  assert.equal(bench.reactor.output.flushGather(connection), false);
  assert.equal(connection.errno, Errno.ECONNRESET);
  bench.reactor.output.endGathering(before);
  bench.reactor.runBatch(0);
  assert.deepEqual(bench.protocol.takeCalls(), []);
});

test('a receive inside another one gathers by itself, and leaves nothing behind', () => {
  const bench = openBench();
  const { connection, socket } = bench.open();
  const { pieces, bytes } = receivePieces(bench, [10, 20, 30]);
  const outer = bench.reactor.output.beginGathering();
  sendAll(bench, connection, pieces.slice(0, 1));
  const inner = bench.reactor.output.beginGathering();
  sendAll(bench, connection, pieces.slice(1, 2));
  bench.reactor.output.endGathering(inner);
  assert.equal(socket.taken.length, 30, 'the memory of the inner receive may be used again');
  sendAll(bench, connection, pieces.slice(2));
  assert.equal(socket.taken.length, 30, 'the outer one goes on gathering');
  bench.reactor.output.endGathering(outer);
  assert.deepEqual(socket.takenBytes, bytes);
});

test('a held receive may be of the largest size only where those inside it have their room', () => {
  const { reactor, open } = openBench();
  const sizes = [BULK_RECEIVE_BYTES_MAX, RECEIVE_BYTES_MAX, BULK_RECEIVE_BYTES_MAX];
  const places = sizes.map((bytes, index) => {
    const { connection, socket } = open();
    socket.incoming.push(pattern(bytes, index));
    if (index < 2) assert.equal(reactor.receiveArea.heldReceiveBytesMax, bytes);
    assert.equal(reactor.input.fill(connection, bytes), bytes);
    if (index < 2) assert.ok(reactor.receiveArea.hold(reactor.input.offset + bytes) >= 0);
    return reactor.input.offset;
  });
  for (const [index, bytes] of sizes.entries()) {
    const at = places[index]!;
    assert.ok(Buffer.from(pattern(bytes, index)).equals(reactor.memory.subarray(at, at + bytes)), `receive ${index}`);
  }
});

// -- transports that hold back -----------------------------------------------------

/** Writes down what it is asked for; `uncork` answers what it is told to. */
class Corks implements Transport {
  readonly calls: string[] = [];
  readonly answers: number[] = [];
  recv = noTransport.recv;
  hasMore = noTransport.hasMore;
  shutdownWrite = noTransport.shutdownWrite;
  error = noTransport.error;
  close = noTransport.close;

  send({ slot }: Connection, _offset: number, length: number): number {
    this.calls.push(`send ${slot} ${length}`);
    return length;
  }

  cork({ slot }: Connection): boolean {
    this.calls.push(`cork ${slot}`);
    return true;
  }

  uncork({ slot }: Connection): number {
    this.calls.push(`uncork ${slot}`);
    return this.answers.shift() ?? 0;
  }

  take(): string[] {
    return this.calls.splice(0);
  }
}

function openCorked(): { bench: Bench; corks: Corks; open: () => Connection } {
  const bench = openBench();
  const corks = new Corks();
  return { bench, corks, open: () => bench.reactor.openVirtual(bench.protocol, corks)! };
}

test('a transport is corked once, and uncorked once', () => {
  const { bench, corks, open } = openCorked();
  const connection = open();
  bench.reactor.output.cork(connection);
  bench.reactor.output.cork(connection);
  assert.equal(bench.reactor.output.isCorked(connection), true);
  assert.equal(bench.reactor.output.uncork(connection), true);
  assert.equal(bench.reactor.output.uncork(connection), true);
  assert.equal(bench.reactor.output.isCorked(connection), false);
  assert.deepEqual(corks.take(), ['cork 0', 'uncork 0']);
});

test('what the transport has not got rid of counts as one unsent byte, and is offered again', () => {
  const { bench, corks, open } = openCorked();
  const connection = open();
  corks.answers.push(-Errno.EAGAIN);
  bench.reactor.output.cork(connection);
  assert.equal(bench.reactor.output.uncork(connection), true);
  assert.equal(connection.outputBytes, 1);
  bench.reactor.output.cork(connection);
  assert.equal(bench.reactor.output.isCorked(connection), false, 'no room for anything');
  assert.equal(bench.reactor.output.flush(connection), true);
  assert.equal(connection.outputBytes, 0);
  assert.deepEqual(corks.take(), ['cork 0', 'uncork 0', 'send 0 1']);
});

test('only one connection is corked: another one uncorks it', () => {
  const { bench, corks, open } = openCorked();
  const [first, second] = [open(), open()];
  corks.answers.push(-Errno.EAGAIN);
  bench.reactor.output.cork(first);
  bench.reactor.output.cork(second);
  assert.deepEqual(corks.take(), ['cork 0', 'uncork 0', 'cork 1']);
  assert.equal(first.outputBytes, 1);
  assert.equal(bench.reactor.output.isCorked(second), true);
});

test('a failure shows to who uncorks, or is told to the protocol at the end of the batch', () => {
  const { bench, corks, open } = openCorked();
  const [first, second] = [open(), open()];
  corks.answers.push(-Errno.EPIPE, -Errno.EPIPE);
  bench.reactor.output.cork(first);
  assert.equal(bench.reactor.output.uncork(first), false);
  assert.equal(first.errno, Errno.EPIPE);
  bench.reactor.output.cork(second);
  bench.reactor.output.cork(first);
  bench.reactor.runBatch(0);
  assert.deepEqual(bench.protocol.takeCalls(), ['sendFailed 1']);
});

test('a slot that is used again is not corked, nor is its successor uncorked', () => {
  const { bench, corks, open } = openCorked();
  const connection = open();
  bench.reactor.output.cork(connection);
  bench.reactor.close(connection, false);
  const successor = open();
  assert.equal(successor, connection, 'the slot is used again');
  assert.equal(bench.reactor.output.isCorked(successor), false);
  bench.reactor.output.uncork(successor);
  bench.reactor.output.cork(successor);
  assert.deepEqual(corks.take(), ['cork 0', 'cork 0']);
});

test('plain sockets and transports that hold nothing back are not corked', () => {
  const bench = openBench();
  const { connection } = bench.open();
  const plain = bench.reactor.openVirtual(bench.protocol, noTransport)!;
  for (const each of [connection, plain]) {
    bench.reactor.output.cork(each);
    assert.equal(bench.reactor.output.isCorked(each), false);
    assert.equal(bench.reactor.output.uncork(each), true);
  }
});
