// Records that leave together: fewer system calls, the same bytes in the same order, also when the socket takes none,
// when OpenSSL itself has something to say meanwhile, and when a session ends with some of them unsent.

import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { type TestContext, test } from 'node:test';
import koffi from 'koffi';
import { Errno } from '../../../../core/ffi/errno.ts';
import { clientContext, connectPair, IN, kernel, OUT, receive, serverContext, sessions, until } from './support.ts';

const { EAGAIN, EPIPE } = Errno;

/** A record without plaintext in TLS 1.3. */
const OVERHEAD_BYTES = 22;

/** Calls of write(2) that this thread has made: what OpenSSL uses. */
function writeCalls(): number {
  return Number(/syscw: (\d+)/.exec(readFileSync('/proc/thread-self/io', 'latin1'))![1]);
}

/** Bytes that wait in a socket, by lengths of their records. */
function recordsIn(fd: number): number[] {
  const count = kernel.peek(fd, IN, 512 * 1024);
  const lengths: number[] = [];
  for (let at = 0; at < count; ) {
    const length = kernel.memory[IN + at + 3]! * 256 + kernel.memory[IN + at + 4]!;
    lengths.push(length + 5);
    at += length + 5;
  }
  return lengths;
}

function put(bytes: Uint8Array, at = OUT): void {
  kernel.memory.set(bytes, at);
}

const pairOf = (t: TestContext) => connectPair(t, serverContext(t), clientContext(t));

/** Sends until the socket refuses; returns all that counts as taken, and the one byte that is owed, if it is. */
function fillSocket(ssl: number, data: Uint8Array): number {
  let sent = 0;
  for (;;) {
    const piece = data.subarray(sent, sent + 130_000);
    put(piece);
    const count = sessions.send(ssl, OUT, piece.length);
    if (count === -EAGAIN) return sent;
    assert.ok(count > 0, `${count} ${sessions.failureText}`);
    sent += count;
    if (count < piece.length) return sent;
  }
}

test('several records leave without a call of their own each', async (t) => {
  const { server, client } = await pairOf(t);
  const data = randomBytes(65_536);
  put(data);
  const before = writeCalls();
  assert.equal(sessions.send(server.ssl, OUT, data.length), data.length);
  assert.equal(writeCalls() - before, 0);
  const full = 16_384 + OVERHEAD_BYTES;
  assert.deepEqual(recordsIn(client.fd), [full, full, full, full]);
  assert.deepEqual((await receive(client.ssl, data.length)).data, data);
});

test('what is corked waits, a queue of it at most, and comes in order', async (t) => {
  const { server, client } = await pairOf(t);
  const data = randomBytes(10 * 16_384 + 100);
  assert.equal(sessions.cork(server.ssl), true);
  put(data.subarray(0, 16_384));
  assert.equal(sessions.send(server.ssl, OUT, 16_384), 16_384);
  put(data.subarray(16_384, 16_484));
  assert.equal(sessions.send(server.ssl, OUT, 100), 100);
  assert.deepEqual(recordsIn(client.fd), []);
  put(data.subarray(16_484));
  assert.equal(sessions.send(server.ssl, OUT, data.length - 16_484), data.length - 16_484);
  const early = recordsIn(client.fd);
  assert.ok(early.length > 0 && early.length < 11, `${early}`);
  assert.equal(sessions.uncork(server.ssl), 0);
  const full = 16_384 + OVERHEAD_BYTES;
  assert.deepEqual(recordsIn(client.fd).slice(0, 3), [full, 100 + OVERHEAD_BYTES, full]);
  assert.deepEqual((await receive(client.ssl, data.length)).data, data);
});

test('megabytes pass unchanged through corks, with a reader that lets the socket fill up', async (t) => {
  const { server, client } = await pairOf(t);
  const data = randomBytes(12_000_000);
  const received: Buffer[] = [];
  let receivedBytes = 0;
  let sent = 0;
  let refusals = 0;
  let owed = false;
  let seed = 3;
  const size = (max: number): number => {
    seed = (Math.imul(seed, 1_103_515_245) + 12_345) & 0x7fffffff;
    return 1 + (seed % max);
  };
  await until('the transfer', () => {
    for (let full = false; !full && sent < data.length; ) {
      if (owed) {
        // Only its place counts.
        kernel.memory[OUT] = 0xee;
        const count = sessions.send(server.ssl, OUT, 1);
        if (count === -EAGAIN) break;
        assert.equal(count, 1);
        owed = false;
      }
      const corked = size(3) > 1 && sessions.cork(server.ssl);
      for (let pieces = size(4); pieces > 0 && !full && sent < data.length; pieces--) {
        const length = Math.min(size(3) === 1 ? size(300) : size(100_000), data.length - sent);
        put(data.subarray(sent, sent + length));
        const count = sessions.send(server.ssl, OUT, length);
        kernel.memory.fill(0xee, OUT, OUT + length);
        assert.ok(count > 0 || count === -EAGAIN, `${count} ${sessions.failureText}`);
        if (count > 0) sent += count;
        full = count !== length;
      }
      if (corked) {
        const status = sessions.uncork(server.ssl);
        if (status === -EAGAIN) {
          owed = true;
          full = true;
        } else {
          assert.equal(status, 0);
        }
      }
      if (full) refusals++;
    }
    for (let i = 0; i < 8; i++) {
      const count = sessions.recv(client.ssl, IN, size(100_000));
      if (count === -EAGAIN) break;
      assert.ok(count > 0, `${count} ${sessions.failureText}`);
      received.push(Buffer.from(kernel.memory.subarray(IN, IN + count)));
      receivedBytes += count;
    }
    return receivedBytes === data.length ? true : undefined;
  });
  assert.ok(refusals > 1, `the socket was full ${refusals} times`);
  assert.ok(Buffer.concat(received).equals(data));
});

test('a key update that comes while records wait does them no harm', async (t) => {
  const { server, client } = await pairOf(t);
  const lib = koffi.load(null);
  const SSL_key_update = lib.func('int SSL_key_update(uint64 ssl, int type)');
  const SSL_do_handshake = lib.func('int SSL_do_handshake(uint64 ssl)');
  const data = randomBytes(12_000_000);
  let at = fillSocket(server.ssl, data);
  assert.ok(at > 0 && at < data.length);
  // The socket gets room again, so that nothing but its queue keeps the server from writing.
  const received = [(await receive(client.ssl, at / 2)).data];
  let receivedBytes = received[0]!.length;
  // SSL_KEY_UPDATE_REQUESTED: the server has to answer with new keys of its own.
  assert.equal(SSL_key_update(client.ssl, 1), 1);
  assert.equal(SSL_do_handshake(client.ssl), 1);
  put(Buffer.from('hello'));
  assert.equal(sessions.send(client.ssl, OUT, 5), 5);
  assert.equal((await receive(server.ssl, 5)).data.toString(), 'hello');
  await until('the rest', () => {
    if (at < data.length) {
      put(data.subarray(at, at + 50_000));
      const count = sessions.send(server.ssl, OUT, Math.min(50_000, data.length - at));
      assert.ok(count > 0 || count === -EAGAIN, `${count} ${sessions.failureText}`);
      if (count > 0) at += count;
    }
    const count = sessions.recv(client.ssl, IN, 200_000);
    assert.ok(count > 0 || count === -EAGAIN, `${count} ${sessions.failureText}`);
    if (count > 0) {
      received.push(Buffer.from(kernel.memory.subarray(IN, IN + count)));
      receivedBytes += count;
    }
    return receivedBytes === data.length ? true : undefined;
  });
  assert.ok(Buffer.concat(received).equals(data));
});

test('a large receive ends with a record, and says that there is more', async (t) => {
  const { server, client } = await pairOf(t);
  const data = randomBytes(6 * 16_384);
  // All of them in one read of the socket, and then in two.
  for (const bytes of [3 * 16_384, 6 * 16_384]) {
    put(data.subarray(0, bytes));
    assert.equal(sessions.send(server.ssl, OUT, bytes), bytes);
    assert.equal(sessions.recv(client.ssl, IN, 40_000), 2 * 16_384);
    assert.equal(sessions.readMore, true);
    const rest = await receive(client.ssl, bytes - 2 * 16_384);
    assert.ok(rest.data.equals(data.subarray(2 * 16_384, bytes)));
  }
});

test('close_notify goes behind what is corked', async (t) => {
  const { server, client } = await pairOf(t);
  const data = randomBytes(1000);
  assert.equal(sessions.cork(server.ssl), true);
  put(data);
  assert.equal(sessions.send(server.ssl, OUT, data.length), data.length);
  assert.equal(sessions.shutdown(server.ssl), 0);
  const got = await receive(client.ssl);
  assert.deepEqual(got.data, data);
  assert.equal(got.end, 0, 'the end is in order');
});

test('after records that the socket has refused, the peer sees a truncation, not the end', async (t) => {
  const { server, client } = await pairOf(t);
  const data = randomBytes(12_000_000);
  fillSocket(server.ssl, data);
  assert.equal(sessions.shutdown(server.ssl), 0);
  kernel.shutdown(server.fd, 1);
  const got = await receive(client.ssl);
  assert.ok(got.end < 0, `${got.end}`);
  assert.ok(got.data.length < data.length && got.data.equals(data.subarray(0, got.data.length)));
});

test("what a session leaves unsent is nobody else's", async (t) => {
  const data = randomBytes(12_000_000);
  for (let round = 0; round < 4; round++) {
    const { server, client, close } = await pairOf(t);
    if (round % 2 === 0) {
      fillSocket(server.ssl, data);
    } else {
      sessions.cork(server.ssl);
      put(data.subarray(0, 40_000));
      assert.equal(sessions.send(server.ssl, OUT, 40_000), 40_000);
    }
    close();
    const after = await pairOf(t);
    put(data.subarray(0, 50_000));
    assert.equal(sessions.send(after.client.ssl, OUT, 50_000), 50_000);
    assert.ok((await receive(after.server.ssl, 50_000)).data.equals(data.subarray(0, 50_000)));
    assert.notEqual(client.ssl, 0);
    after.close();
  }
});

test('a socket that fails under queued records fails the session, then and afterwards', async (t) => {
  const { server, client } = await pairOf(t);
  kernel.abortOnClose(client.fd);
  sessions.cork(server.ssl);
  put(randomBytes(40_000));
  assert.equal(sessions.send(server.ssl, OUT, 40_000), 40_000);
  kernel.shutdown(server.fd, 1);
  assert.equal(sessions.uncork(server.ssl), -EPIPE);
  assert.equal(sessions.send(server.ssl, OUT, 10), -EPIPE);
  assert.equal(sessions.send(server.ssl, OUT, 40_000), -EPIPE);
});

test('several sessions may have queues at once', async (t) => {
  const pairs = [await pairOf(t), await pairOf(t), await pairOf(t), await pairOf(t)];
  const data = pairs.map(() => randomBytes(50_000));
  for (const [index, { server }] of pairs.entries()) {
    assert.equal(sessions.cork(server.ssl), true);
    put(data[index]!.subarray(0, 30_000));
    assert.equal(sessions.send(server.ssl, OUT, 30_000), 30_000);
  }
  for (const [index, { server }] of pairs.entries()) {
    put(data[index]!.subarray(30_000));
    assert.equal(sessions.send(server.ssl, OUT, 20_000), 20_000);
  }
  for (const { server } of pairs) assert.equal(sessions.uncork(server.ssl), 0);
  for (const [index, { client }] of pairs.entries()) {
    assert.ok((await receive(client.ssl, 50_000)).data.equals(data[index]!), `session ${index}`);
  }
});
