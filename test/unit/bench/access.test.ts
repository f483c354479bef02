// The clients that check proxies before they are measured, and those that are only held.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer, type ServerHttp2Session, type ServerHttp2Stream } from 'node:http2';
import type { AddressInfo } from 'node:net';
import { type TestContext, test } from 'node:test';
import { askOnce } from '../../../bench/lib/access.ts';
import { GRPC_BODY_BYTES, GRPC_PATH, grpcMessage } from '../../../bench/lib/grpc.ts';
import { RawHttp2Connection } from '../../../bench/lib/raw-http2.ts';

/** An HTTP/2 server without TLS; its port and its sessions. */
async function serve(t: TestContext, answer: (stream: ServerHttp2Stream, path: string) => void) {
  const sessions: ServerHttp2Session[] = [];
  const server = createServer();
  server.on('session', (session) => {
    sessions.push(session);
    session.on('error', () => {});
  });
  server.on('stream', (stream: ServerHttp2Stream, headers) => {
    stream.on('error', () => {});
    answer(stream, String(headers[':path']));
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => {
    server.close();
    for (const session of sessions) session.destroy();
  });
  return { port: (server.address() as AddressInfo).port, sessions };
}

function answerGrpc(trailers: Record<string, string> | null) {
  return (stream: ServerHttp2Stream) => {
    stream.resume();
    stream.once('end', () => {
      stream.respond({ ':status': 200, 'content-type': 'application/grpc' }, { waitForTrailers: trailers !== null });
      stream.once('wantTrailers', () => stream.sendTrailers(trailers ?? {}));
      stream.end(grpcMessage());
    });
  };
}

test('an answer over HTTP/2 has status and length', async (t) => {
  const { port } = await serve(t, (stream) => {
    stream.respond({ ':status': 404 });
    stream.end('abc');
  });
  const answer = await askOnce({ port, tls: false, protocol: 'h2' }, '/x', 'localhost');
  assert.equal(answer.status, 404);
  assert.equal(answer.bodyBytes, 3);
});

test('a gRPC call succeeds with status 0 in the trailers', async (t) => {
  const { port } = await serve(t, answerGrpc({ 'grpc-status': '0' }));
  const answer = await askOnce({ port, tls: false, protocol: 'grpc' }, GRPC_PATH, 'localhost');
  assert.equal(answer.bodyBytes, GRPC_BODY_BYTES);
});

test('a gRPC call fails with another status, and without trailers', async (t) => {
  const failing = await serve(t, answerGrpc({ 'grpc-status': '14' }));
  const lost = await serve(t, answerGrpc(null));
  const ask = (port: number) => askOnce({ port, tls: false, protocol: 'grpc' }, GRPC_PATH, 'localhost');
  await assert.rejects(ask(failing.port), /status is 14/);
  await assert.rejects(ask(lost.port), /status is missing/);
});

test('a held HTTP/2 connection asks again and again and counts the bodies', async (t) => {
  const paths: string[] = [];
  const { port } = await serve(t, (stream, path) => {
    paths.push(path);
    stream.respond({ ':status': 200 });
    stream.end('x'.repeat(20_000));
  });
  const connection = await RawHttp2Connection.connect(port);
  for (const path of ['/1', '/2', '/3']) await connection.get(path, 'localhost');
  assert.equal(connection.bodyBytes, 60_000);
  assert.deepEqual(paths, ['/1', '/2', '/3']);
  assert.equal(connection.closed, false);
  connection.destroy();
});

test('a download stops at the window and goes on when more is allowed', async (t) => {
  const { port } = await serve(t, (stream) => {
    stream.respond({ ':status': 200 });
    stream.end('x'.repeat(3000));
  });
  const connection = await RawHttp2Connection.connect(port, 1024);
  const done = connection.get('/', 'localhost');
  const first = await Promise.race([done.then(() => 'done'), reached(connection, 1024)]);
  assert.equal(first, 1024);
  connection.allow(1000);
  assert.equal(await reached(connection, 2024), 2024);
  connection.allow(1000);
  await done;
  assert.equal(connection.bodyBytes, 3000);
  connection.destroy();
});

/** Resolves with the number of body bytes as soon as there are `bytes` of them. */
async function reached(connection: RawHttp2Connection, bytes: number): Promise<number> {
  while (connection.bodyBytes < bytes) await new Promise((resolve) => setImmediate(resolve));
  return connection.bodyBytes;
}

test('a reset stream and a connection that is ended reject the request with the code', async (t) => {
  const resetting = await serve(t, (stream) => stream.close(7));
  const ending = await serve(t, (stream) => stream.session?.goaway(11));
  const connection = await RawHttp2Connection.connect(resetting.port);
  await assert.rejects(connection.get('/', 'localhost'), /reset with code 7/);
  const ended = await RawHttp2Connection.connect(ending.port);
  await assert.rejects(ended.get('/', 'localhost'), /ended with code 11/);
  assert.equal(ended.closed, true);
});
