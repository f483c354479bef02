// The benchmark's own client: what it must not take for a good answer.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { type AddressInfo, createServer, type Server, type Socket } from 'node:net';
import { type TestContext, test } from 'node:test';
import { ClientConnection } from '../../../bench/lib/client.ts';

/** A server that runs `answer` for each chunk received; closed after the test. */
async function serve(t: TestContext, answer: (socket: Socket, call: number) => void): Promise<number> {
  let calls = 0;
  const server: Server = createServer((socket) => {
    socket.on('error', () => {});
    socket.on('data', () => answer(socket, calls++));
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => server.close());
  return (server.address() as AddressInfo).port;
}

async function connect(t: TestContext, port: number): Promise<ClientConnection> {
  const connection = await ClientConnection.connect(port);
  t.after(() => connection.destroy());
  return connection;
}

test('an answer that arrives in pieces is counted whole, and the connection can be used again', async (t) => {
  const port = await serve(t, (socket, call) => {
    if (call > 0) {
      socket.write('HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n');
      return;
    }
    socket.write('HTTP/1.1 200 OK\r\ncontent-le');
    setImmediate(() => {
      socket.write('ngth: 5\r\n\r\nab');
      setImmediate(() => socket.write('cde'));
    });
  });
  const connection = await connect(t, port);
  assert.deepEqual(await connection.get('/', 'h'), { status: 200, bodyBytes: 5, closes: false });
  assert.deepEqual(await connection.get('/', 'h'), { status: 404, bodyBytes: 0, closes: true });
});

test('an answer that ends before its length is a failure', async (t) => {
  const port = await serve(t, (socket) => socket.end('HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab'));
  await assert.rejects((await connect(t, port)).get('/', 'h'), /closed/);
});

test('an answer longer than its length is a failure', async (t) => {
  const port = await serve(t, (socket) => socket.write('HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nabc'));
  await assert.rejects((await connect(t, port)).get('/', 'h'), /longer/);
});

test('an answer without a length is refused rather than guessed at', async (t) => {
  const port = await serve(t, (socket) => socket.write('HTTP/1.1 200 OK\r\n\r\n'));
  await assert.rejects((await connect(t, port)).get('/', 'h'), /Content-Length/);
});

test('a connection that the server closes while idle is seen as closed', async (t) => {
  let socketOfServer: Socket | undefined;
  const port = await serve(t, (socket) => {
    socketOfServer = socket;
    socket.write('HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n');
  });
  const connection = await connect(t, port);
  await connection.get('/', 'h');
  assert.equal(connection.closed, false);
  socketOfServer?.end();
  while (!connection.closed) await new Promise((resolve) => setImmediate(resolve));
  await assert.rejects(connection.get('/', 'h'), /closed/);
});
