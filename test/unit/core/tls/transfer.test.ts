// Bytes through sessions: large transfers with partial reads and writes, ends and truncations, what
// is no TLS at all, and that reading can rely on edges (`readMore`).

import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import net from 'node:net';
import { test } from 'node:test';
import tls from 'node:tls';
import { Errno } from '../../../../core/ffi/errno.ts';
import { Epoll } from '../../../../core/ffi/kernel.ts';
import { alertName, TlsFailure } from '../../../../core/tls/errors.ts';
import { HANDSHAKE_DONE, HANDSHAKE_FAILED, TLS_TRUNCATED } from '../../../../core/tls/session.ts';
import {
  clientContext,
  connectPair,
  connectTo,
  files,
  good,
  handshake,
  IN,
  inTime,
  kernel,
  Listener,
  nodeClient,
  nodeServer,
  OUT,
  openssl,
  outputOf,
  receive,
  sendAll,
  serverContext,
  sessions,
  ticketKey,
  turn,
  until,
} from './support.ts';

const { EAGAIN, EPROTO } = Errno;

/** More than the buffers of two loopback sockets hold. */
const DATA_BYTES = 16_000_000;

/** Whole numbers in [1, max] from a fixed seed. */
function sizes(seed: number): (max: number) => number {
  let state = seed;
  return (max) => {
    state = (Math.imul(state, 1103515245) + 12345) & 0x7fffffff;
    return 1 + (state % max);
  };
}

for (const maxVersion of ['1.2', '1.3'] as const) {
  test(`TLS ${maxVersion}: megabytes go both ways at once through partial reads and writes, unchanged`, async (t) => {
    const { server, client } = await connectPair(t, serverContext(t, { maxVersion }), clientContext(t));
    const size = sizes(maxVersion === '1.2' ? 5 : 6);
    const ways = [
      { from: server, to: client },
      { from: client, to: server },
    ].map((way) => ({
      ...way,
      data: randomBytes(DATA_BYTES),
      sent: 0,
      received: 0,
      blocked: 0,
      hash: createHash('sha256'),
    }));
    await until('the transfer', () => {
      for (const way of ways) {
        // Sends until the socket is full; each retry has another size and place.
        while (way.sent < way.data.length) {
          const piece = Math.min(size(50_000), way.data.length - way.sent);
          const at = OUT + size(60_000);
          kernel.memory.set(way.data.subarray(way.sent, way.sent + piece), at);
          const count = sessions.send(way.from.ssl, at, piece);
          // What was offered is no longer needed, taken or not.
          kernel.memory.fill(0xee, at, at + piece);
          if (count === -EAGAIN) {
            way.blocked++;
            break;
          }
          assert.ok(count > 0 && count <= piece, `${count} ${sessions.failureText}`);
          way.sent += count;
        }
        for (let i = 0; i < 20; i++) {
          const count = sessions.recv(way.to.ssl, IN, size(70_000));
          if (count === -EAGAIN) break;
          assert.ok(count > 0, `${count} ${sessions.failureText}`);
          way.hash.update(kernel.memory.subarray(IN, IN + count));
          way.received += count;
        }
      }
      return ways.every(({ data, received }) => received === data.length) ? true : undefined;
    });
    for (const way of ways) {
      assert.ok(way.blocked > 0, 'the socket was full at least once');
      assert.equal(way.sent, way.data.length);
      assert.equal(way.hash.digest('hex'), createHash('sha256').update(way.data).digest('hex'));
    }
  });
}

test('megabytes to and from node:tls arrive unchanged', async (t) => {
  const data = randomBytes(2_000_000);
  const listener = new Listener(t);
  const { socket } = nodeClient(t, listener.port);
  const fd = await listener.accept();
  const ssl = sessions.accept(serverContext(t), fd);
  assert.equal(await handshake(ssl), HANDSHAKE_DONE);
  const parts: Buffer[] = [];
  socket.on('data', (chunk: Buffer) => parts.push(chunk));
  socket.end(data);
  const [received] = await Promise.all([receive(ssl), sendAll(ssl, data)]);
  assert.equal(received.end, 0);
  assert.ok(received.data.equals(data));
  sessions.shutdown(ssl);
  await inTime('the end', once(socket, 'end'));
  assert.ok(Buffer.concat(parts).equals(data));
  sessions.free(ssl);
  kernel.close(fd);
});

test('a send that the socket refuses is taken up by any later offer of the same bytes', async (t) => {
  const { server, client } = await connectPair(t, serverContext(t), clientContext(t));
  const data = randomBytes(65_536);
  let sent = 0;
  const offer = (length: number): number => {
    for (let i = 0; i < length; i++) kernel.memory[OUT + i] = data[(sent + i) % data.length];
    const count = sessions.send(server.ssl, OUT, length);
    if (count > 0) sent += count;
    return count;
  };
  while (offer(65_536) > 0);
  assert.equal(offer(1), -EAGAIN);
  assert.equal(offer(30_000), -EAGAIN);
  // close_notify must not pass what waits.
  assert.equal(sessions.shutdown(server.ssl), 0);
  let received = 0;
  const check = (count: number): void => {
    for (let i = 0; i < count; i++, received++) {
      if (kernel.memory[IN + i] !== data[received % data.length]) assert.fail(`byte ${received} differs`);
    }
  };
  await until('all that was sent', () => {
    const count = sessions.recv(client.ssl, IN, 65_536);
    if (count > 0) check(count);
    else assert.equal(count, -EAGAIN);
    offer(1);
    return received > 500_000 + sent / 2 ? true : undefined;
  });
});

test('close_notify is a clean end, a TCP end without it a truncation', async (t) => {
  const context = clientContext(t);
  const clean = await connectPair(t, serverContext(t), context);
  await sendAll(clean.server.ssl, 'all of it');
  assert.equal(sessions.shutdown(clean.server.ssl), 0);
  const { data, end } = await receive(clean.client.ssl);
  assert.equal(String(data), 'all of it');
  assert.equal(end, 0);
  assert.equal(sessions.recv(clean.client.ssl, IN, 10), 0);

  const cut = await connectPair(t, serverContext(t), context);
  await sendAll(cut.server.ssl, 'some of it');
  kernel.shutdown(cut.server.fd, 1);
  const rest = await receive(cut.client.ssl);
  assert.equal(String(rest.data), 'some of it');
  assert.equal(rest.end, TLS_TRUNCATED);
  assert.equal(sessions.failure, TlsFailure.TRUNCATED);
  assert.equal(sessions.recv(cut.client.ssl, IN, 10), TLS_TRUNCATED, 'and stays so');
  assert.equal(sessions.shutdown(cut.client.ssl), 0);
});

test('an end that was read together with bytes is not left lying', async (t) => {
  const { server, client } = await connectPair(t, serverContext(t), clientContext(t));
  const epoll = kernel.epollCreate();
  t.after(() => kernel.close(epoll));
  kernel.epollAdd(epoll, client.fd, Epoll.RDHUP, 1, 1);
  await sendAll(server.ssl, 'the last bytes');
  sessions.shutdown(server.ssl);
  kernel.shutdown(server.fd, 1);
  await until('all of it at the client', () => (kernel.epollWait(epoll, 0) > 0 ? true : undefined));
  assert.equal(sessions.recv(client.ssl, IN, 1000), 14);
  assert.equal(sessions.readMore, true);
  assert.equal(sessions.recv(client.ssl, IN, 1000), 0);
});

test('a truncation in the middle of a record gives none of the record', async (t) => {
  const listener = net.createServer();
  listener.listen(0, '127.0.0.1');
  await once(listener, 'listening');
  t.after(() => listener.close());
  // Between our client and node:tls stands a relay that cuts the last record.
  const { port } = await nodeServer(t, {}, (socket) => socket.once('data', () => socket.write(Buffer.alloc(1000))));
  listener.on('connection', (near) => {
    const far = net.connect(port, '127.0.0.1');
    near.pipe(far);
    far.on('data', (chunk: Buffer) => {
      const isLast = chunk.length > 1000 && chunk[0] === 23;
      near.write(isLast ? chunk.subarray(0, chunk.length - 10) : chunk);
      if (isLast) near.end();
    });
    t.after(() => {
      near.destroy();
      far.destroy();
    });
  });
  const fd = connectTo((listener.address() as net.AddressInfo).port);
  const ssl = sessions.connect(clientContext(t, { maxVersion: '1.2' }), fd, 'a.example', null);
  assert.equal(await handshake(ssl), HANDSHAKE_DONE);
  await sendAll(ssl, 'go on');
  const { data, end } = await receive(ssl);
  assert.equal(data.length, 0);
  assert.equal(end, TLS_TRUNCATED);
  sessions.free(ssl);
  kernel.close(fd);
});

test('a forged record ends the session, and our side tells the peer', async (t) => {
  const { server, client } = await connectPair(t, serverContext(t), clientContext(t));
  const forged = Buffer.from([23, 3, 3, 0, 32, ...randomBytes(32)]);
  kernel.memory.set(forged, OUT);
  kernel.send(client.fd, OUT, forged.length, false);
  assert.equal((await receive(server.ssl)).end, -EPROTO);
  assert.equal(sessions.failure, TlsFailure.PROTOCOL_ERROR);
  assert.match(sessions.failureText, /bad record mac/);
  assert.equal((await receive(client.ssl)).end, -EPROTO);
  assert.equal(alertName(sessions.alert), 'bad_record_mac');
  assert.equal(sessions.send(server.ssl, OUT, 10), -EPROTO);
});

test('a reset is told by its error number', async (t) => {
  const { server, client } = await connectPair(t, serverContext(t), clientContext(t));
  kernel.abortOnClose(client.fd);
  kernel.close(client.fd);
  assert.equal((await receive(server.ssl)).end, -Errno.ECONNRESET);
  assert.equal(sessions.failure, TlsFailure.SOCKET);
  client.fd = kernel.eventfd(); // The pair closes it.
});

/** Sends raw bytes to our server and returns how its handshake fails. */
async function failureOf(t: import('node:test').TestContext, bytes: Buffer): Promise<number> {
  const listener = new Listener(t);
  const socket = net.connect(listener.port, '127.0.0.1');
  socket.on('error', () => {});
  t.after(() => socket.destroy());
  socket.end(bytes);
  const fd = await listener.accept();
  const ssl = sessions.accept(serverContext(t), fd);
  assert.equal(await handshake(ssl), HANDSHAKE_FAILED);
  const { failure } = sessions;
  sessions.free(ssl);
  kernel.close(fd);
  return failure;
}

test('plain HTTP, garbage and an early end are each told apart', async (t) => {
  for (const method of ['GET', 'POST', 'HEAD', 'PUT']) {
    const request = Buffer.from(`${method} / HTTP/1.1\r\nHost: a.example\r\n\r\n`);
    assert.equal(await failureOf(t, request), TlsFailure.PLAIN_HTTP, method);
  }
  assert.equal(await failureOf(t, Buffer.from('CONNECT a.example:443 HTTP/1.1\r\n\r\n')), TlsFailure.PLAIN_HTTP);
  assert.equal(await failureOf(t, Buffer.from('SSH-2.0-OpenSSH_9.2\r\n')), TlsFailure.NOT_TLS);
  assert.equal(await failureOf(t, Buffer.alloc(64, 0xff)), TlsFailure.NOT_TLS);
  assert.equal(await failureOf(t, Buffer.alloc(0)), TlsFailure.PEER_CLOSED);
  assert.equal(await failureOf(t, Buffer.from([22, 3, 1, 2, 0, 1])), TlsFailure.PEER_CLOSED);
});

test('a failed session leaves no trace in another', async (t) => {
  const { server, client } = await connectPair(t, serverContext(t), clientContext(t));
  await failureOf(t, Buffer.from('GET / HTTP/1.1\r\n\r\n'));
  assert.equal(sessions.recv(server.ssl, IN, 10), -EAGAIN);
  // Even if somebody else on the thread leaves an error behind.
  assert.throws(() => tls.createSecureContext({ cert: 'no certificate' }));
  const { openSsl } = await import('../../../../core/ffi/openssl.ts');
  openSsl().SSL_CTX_set_cipher_list(openSsl().SSL_get_SSL_CTX(server.ssl), 'NO-SUCH-CIPHER');
  assert.equal(sessions.recv(server.ssl, IN, 10), -EAGAIN);
  await sendAll(client.ssl, 'still well');
  assert.equal(String((await receive(server.ssl, 10)).data), 'still well');
});

test('edges suffice: a reader that stops when readMore is false never misses bytes', async (t) => {
  const { server, client } = await connectPair(t, serverContext(t, { ticketKeys: [ticketKey(1)] }), clientContext(t));
  const epoll = kernel.epollCreate();
  t.after(() => kernel.close(epoll));
  kernel.epollAdd(epoll, client.fd, Epoll.IN | Epoll.ET, 1, 1);
  const size = sizes(9);
  let expected = 0;
  let received = 0;
  for (let round = 0; round < 60; round++) {
    // Bursts of records whose sizes straddle the limits of records and read buffers.
    const burst = round % 3 === 0 ? size(400) : size(120_000);
    for (let left = burst; left > 0; ) {
      const count = sessions.send(server.ssl, OUT, Math.min(left, 60_000));
      assert.ok(count > 0 || count === -EAGAIN);
      if (count < 0) break;
      left -= count;
      expected += count;
    }
    await until('the bytes of a burst', () => {
      // One event, then reads only as long as `readMore` asks for them.
      if (kernel.epollWait(epoll, 0) > 0) {
        do {
          const count = sessions.recv(client.ssl, IN, size(70_000));
          if (count === -EAGAIN) break;
          assert.ok(count > 0);
          received += count;
        } while (sessions.readMore);
      }
      // A byte of a refused record counts as not sent until it is offered again.
      return received >= expected ? true : undefined;
    });
  }
});

test('reading into a small buffer says that there is more', async (t) => {
  const { server, client } = await connectPair(t, serverContext(t), clientContext(t));
  await sendAll(server.ssl, 'x'.repeat(1000));
  await until('the record', () => (sessions.recv(client.ssl, IN, 10) === 10 ? true : undefined));
  assert.equal(sessions.readMore, true);
  assert.equal(sessions.pending(client.ssl), true);
  let count = 10;
  while (sessions.readMore) count += sessions.recv(client.ssl, IN, 100);
  assert.equal(count, 1000);
  assert.equal(sessions.pending(client.ssl), false);
});

test('ranges outside the memory are refused', async (t) => {
  const { server } = await connectPair(t, serverContext(t), clientContext(t));
  assert.throws(() => sessions.recv(server.ssl, 0, 10), RangeError);
  assert.throws(() => sessions.recv(server.ssl, kernel.memory.length - 5, 10), RangeError);
  assert.throws(() => sessions.send(server.ssl, kernel.memory.length, 10), RangeError);
});

test('a renegotiation that a client asks for is refused without harm', async (t) => {
  const directory = files(t, { 'ca.pem': good.authority.pem });
  const listener = new Listener(t);
  const target = `127.0.0.1:${listener.port}`;
  const client = openssl(t, 's_client', '-tls1_2', '-connect', target, '-CAfile', `${directory}/ca.pem`);
  const fd = await listener.accept();
  const ssl = sessions.accept(serverContext(t), fd);
  assert.equal(await handshake(ssl), HANDSHAKE_DONE);
  await outputOf(client, /Verify return code/);
  client.child.stdin!.write('R\n');
  let ended = false;
  void client.closed.then(() => (ended = true));
  await until('the refusal', () => {
    const count = sessions.recv(ssl, IN, 1000);
    assert.ok(count <= 0, 'no bytes');
    return /no renegotiation/.test(client.output()) || ended ? true : undefined;
  });
  await turn();
  assert.match(client.output(), /RENEGOTIATING[\s\S]*no renegotiation/);
  sessions.free(ssl);
  kernel.close(fd);
});
