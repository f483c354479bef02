// DATA frames on their way into TLS: each fills a record, all of a batch wait for its end, and the memory in front of
// a payload, which the frame's header takes for a moment, is as it was before.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Errno } from '../../../../core/ffi/errno.ts';
import { Http2Output } from '../../../../core/http2/output.ts';
import type { Http2Role } from '../../../../core/http2/role.ts';
import { type Http2Limits, Http2Session } from '../../../../core/http2/session.ts';
import { Http2Stream } from '../../../../core/http2/stream.ts';
import type { Connection } from '../../../../core/io/connection.ts';
import { noTransport, type Transport } from '../../../../core/io/transport.ts';
import { openBench, pattern } from '../io/fake-kernel.ts';

const RECORD_BYTES = 16_384;

/** Takes what it is given, in pieces as records would be. */
class Records implements Transport {
  readonly pieces: Buffer[] = [];
  readonly answers: number[] = [];
  corked = 0;
  uncorked = 0;
  private readonly memory: Uint8Array;
  recv = noTransport.recv;
  hasMore = noTransport.hasMore;
  shutdownWrite = noTransport.shutdownWrite;
  error = noTransport.error;
  close = noTransport.close;

  constructor(memory: Uint8Array) {
    this.memory = memory;
  }

  send(_connection: Connection, offset: number, length: number): number {
    const count = this.answers.shift() ?? length;
    if (count > 0) this.pieces.push(Buffer.from(this.memory.subarray(offset, offset + count)));
    return count;
  }

  cork(): boolean {
    this.corked++;
    return true;
  }

  uncork(): number {
    this.uncorked++;
    return 0;
  }
}

function openOutput() {
  const bench = openBench();
  const { reactor } = bench;
  const records = new Records(reactor.memory);
  const connection = reactor.openVirtual(bench.protocol, records)!;
  const output = new Http2Output(reactor, new Float64Array(100));
  const role = { isServer: true, bytesOutCounter: 0 } as unknown as Http2Role;
  const session = new Http2Session(connection, role, {} as Http2Limits);
  session.sendWindowBytes = 1 << 20;
  const streamOf = (id: number): Http2Stream => {
    const stream = new Http2Stream();
    Object.assign(stream, { id, session, connection, sendWindowBytes: 1 << 20 });
    return stream;
  };
  return { bench, reactor, records, connection, output, session, streamOf };
}

/** Payload of DATA frames of a stream. */
function payloadOf(bytes: Buffer, streamId: number): Buffer {
  const parts: Buffer[] = [];
  for (let at = 0; at < bytes.length; ) {
    const length = bytes.readUIntBE(at, 3);
    if (bytes[at + 3] === 0 && bytes.readUInt32BE(at + 5) === streamId)
      parts.push(bytes.subarray(at + 9, at + 9 + length));
    at += 9 + length;
  }
  return Buffer.concat(parts);
}

test('a large payload becomes frames that fill a record each, and memory is as before', () => {
  const { reactor, records, output, streamOf } = openOutput();
  const at = reactor.arena.receiveOffset;
  reactor.memory.set(pattern(80_020, 3), at - 20);
  const before = Buffer.from(reactor.memory.subarray(at - 20, at + 80_000));
  const length = 4 * (RECORD_BYTES - 9) + 9000;
  assert.equal(output.sendData(streamOf(1), at, length, length), length);
  assert.deepEqual(
    records.pieces.map((piece) => piece.length),
    [RECORD_BYTES, RECORD_BYTES, RECORD_BYTES, RECORD_BYTES, 9 + 9000],
  );
  assert.ok(payloadOf(Buffer.concat(records.pieces), 1).equals(before.subarray(20, 20 + length)));
  assert.ok(before.equals(reactor.memory.subarray(at - 20, at + 80_000)));
});

test('the frames of a batch wait for its end, with what is written in between in its place', () => {
  const { bench, reactor, records, connection, output, session, streamOf } = openOutput();
  const at = reactor.arena.receiveOffset;
  reactor.memory.set(pattern(40_000), at);
  bench.protocol.onWritable = () => assert.fail();
  Object.assign(bench.protocol, { batchEnd: () => output.flushDeferred(session) });
  output.sendData(streamOf(1), at, 20_000, 20_000);
  output.putWindowUpdate(session, 3, 77);
  output.sendData(streamOf(5), at + 20_000, 20_000, 20_000);
  output.putWindowUpdate(session, 7, 88);
  assert.deepEqual([records.corked, records.uncorked], [1, 0]);
  reactor.runBatch(0);
  assert.deepEqual([records.corked, records.uncorked], [1, 1]);
  assert.equal(reactor.output.isCorked(connection), false);
  const bytes = Buffer.concat(records.pieces);
  const types: number[] = [];
  for (let frame = 0; frame < bytes.length; frame += 9 + bytes.readUIntBE(frame, 3)) types.push(bytes[frame + 3]!);
  assert.deepEqual(types, [0, 0, 8, 0, 0, 8]);
  assert.deepEqual(payloadOf(bytes, 1), Buffer.from(pattern(20_000)));
  assert.deepEqual(payloadOf(bytes, 5), Buffer.from(pattern(40_000)).subarray(20_000));
});

test('what is flushed does not wait', () => {
  const { reactor, records, output, session, streamOf } = openOutput();
  output.sendData(streamOf(1), reactor.arena.receiveOffset, 20_000, 20_000);
  assert.equal(output.flush(session), true);
  assert.equal(records.uncorked, 1);
  assert.equal(output.flush(session), true);
  assert.equal(records.uncorked, 1);
});

test('a frame that the socket takes a part of is kept with its header, and nothing is sent behind it', () => {
  const { reactor, records, connection, output, streamOf } = openOutput();
  const at = reactor.arena.receiveOffset;
  reactor.memory.set(pattern(50_000), at);
  records.answers.push(RECORD_BYTES, 4);
  const stream = streamOf(1);
  const sent = output.sendData(stream, at, 50_000, 50_000);
  assert.equal(sent, 2 * (RECORD_BYTES - 9));
  assert.equal(connection.outputBytes, RECORD_BYTES - 4);
  reactor.memory.fill(0xee, at, at + 50_000);
  assert.equal(reactor.output.flush(connection), true);
  assert.deepEqual(payloadOf(Buffer.concat(records.pieces), 1), Buffer.from(pattern(50_000)).subarray(0, sent));
});

test('a failure marks the session, and memory is as before', () => {
  const { reactor, records, output, session, streamOf } = openOutput();
  const at = reactor.arena.receiveOffset;
  reactor.memory.set(pattern(100), at - 50);
  records.answers.push(-Errno.EPIPE);
  assert.equal(output.sendData(streamOf(1), at, 20_000, 20_000), -Errno.ECONNRESET);
  assert.equal(session.broken, true);
  assert.equal(session.connection.errno, Errno.EPIPE);
  assert.deepEqual(reactor.memory.subarray(at - 50, at), pattern(100).subarray(0, 50));
});

for (const [what, peer, frames] of [
  ['requests', false, 1],
  ['tunnels', true, 4],
] as const) {
  test(`${what} that wait for a connection have turns of ${frames}`, () => {
    const { bench, reactor, records, output, session } = openOutput();
    const at = reactor.arena.receiveOffset;
    const left = new Map<Connection, number>();
    session.sendWindowBytes = 0;
    bench.protocol.onWritable = (connection) => {
      const bytes = left.get(connection)!;
      const sent = output.sendData(connection.http2Stream!, at, bytes, bytes);
      if (sent > 0) left.set(connection, bytes - sent);
    };
    for (const id of [1, 3]) {
      const connection = reactor.openVirtual(bench.protocol, noTransport)!;
      const stream = new Http2Stream();
      Object.assign(stream, { id, session, connection, sendWindowBytes: 1 << 20 });
      connection.http2Stream = stream;
      if (peer) connection.tunnelPeer = connection;
      const bytes = 6 * (RECORD_BYTES - 9);
      left.set(connection, bytes);
      assert.equal(output.sendData(stream, at, bytes, bytes), -Errno.EAGAIN);
    }
    session.sendWindowBytes = 1 << 20;
    output.serveQueue(session);
    const order = records.pieces.map((piece) => piece.readUInt32BE(5));
    const turns = peer ? [1, 1, 1, 1, 3, 3, 3, 3, 1, 1, 3, 3] : [1, 3, 1, 3, 1, 3, 1, 3, 1, 3, 1, 3];
    assert.deepEqual(order, turns);
  });
}
