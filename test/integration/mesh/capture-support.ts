// What the tests of captures share: small servers whose sockets are inside a namespace, and where captured
// connections were going.

import { createServer, type Server, type Socket } from 'node:net';
import type { TestContext } from 'node:test';
import { NamespaceSockets, type SocketRequest } from '../../../core/ffi/netns.ts';
import { Lookup, OriginalDestination } from '../../../core/ffi/original-destination.ts';
import { decodeSockaddr, Family } from '../../../core/ffi/sockaddr.ts';
import { Captures } from '../../../mesh-agent/capture/capture.ts';
import { type CaptureInput, type CaptureSpec, parseCapture } from '../../../mesh-agent/capture/spec.ts';
import type { TestNamespace } from '../../support/netns/network.ts';

/** The spec of an input that is right. */
export function specOf(input: CaptureInput = {}): CaptureSpec {
  const parsed = parseCapture(input);
  if ('faults' in parsed) throw new Error(parsed.faults.join('; '));
  return parsed.spec;
}

/** Sockets and captures that end with the test. */
export function openCaptures(t: Pick<TestContext, 'after'>, onReleased?: (table: string) => void) {
  const sockets = new NamespaceSockets();
  const captures = new Captures({ sockets, onReleased: (_target, table) => onReleased?.(table) });
  t.after(async () => {
    await captures.close();
    await sockets.close();
  });
  return { sockets, captures };
}

/** A descriptor opened inside, or the failure as an exception. */
export async function openIn(sockets: NamespaceSockets, at: TestNamespace, request: SocketRequest): Promise<number> {
  const opened = await sockets.open(at.path, request);
  if (!opened.ok) throw new Error(`${opened.code}: ${opened.message}`);
  return opened.fds[0]!;
}

/** A server of this process that listens inside a namespace. */
export async function serveIn(
  t: Pick<TestContext, 'after'>,
  sockets: NamespaceSockets,
  at: TestNamespace,
  host: string,
  port: number,
  serve: (socket: Socket, fd: number) => void,
  request: SocketRequest = { kind: 'listen', host, port },
): Promise<Server> {
  const fd = await openIn(sockets, at, request);
  const connections = new Set<Socket>();
  const server = createServer((socket) => {
    connections.add(socket);
    socket.on('error', () => {});
    socket.on('close', () => connections.delete(socket));
    serve(socket, (socket as unknown as { _handle: { fd: number } })._handle.fd);
  });
  t.after(
    () =>
      new Promise<void>((resolve) => {
        for (const socket of connections) socket.destroy();
        server.close(() => resolve());
      }),
  );
  await new Promise<void>((resolve) => server.listen({ fd }, resolve));
  return server;
}

/** An HTTP answer of one line, after the request's head has arrived. */
export function answerHttp(socket: Socket, text: string): void {
  socket.once('data', () => {
    socket.end(`HTTP/1.1 200 OK\r\ncontent-length: ${text.length}\r\nconnection: close\r\n\r\n${text}`);
  });
}

/** A server that says by HTTP how it was reached. */
export function serveName(
  t: Pick<TestContext, 'after'>,
  sockets: NamespaceSockets,
  at: TestNamespace,
  host: string,
  port: number,
  name: string,
): Promise<Server> {
  return serveIn(t, sockets, at, host, port, (socket) => answerHttp(socket, `${name} from ${socket.remoteAddress}`));
}

/** A proxy's listener that answers by HTTP with the destination that the connection had before its capture. */
export function serveCapture(
  t: Pick<TestContext, 'after'>,
  sockets: NamespaceSockets,
  at: TestNamespace,
  host: string,
  port: number,
): Promise<Server> {
  const lookup = new OriginalDestination();
  t.after(() => lookup.close());
  const family = host.includes(':') ? Family.INET6 : Family.INET;
  return serveIn(t, sockets, at, host, port, (socket, fd) => {
    const status = lookup.redirected(fd, family);
    const bytes = lookup.family === Family.INET6 ? lookup.sockaddr6 : lookup.sockaddr4;
    const where = status < 0 ? undefined : decodeSockaddr(bytes, 0);
    const found = status === Lookup.FOUND ? 'captured' : status === Lookup.DIRECT ? 'direct' : `error ${status}`;
    answerHttp(socket, `${found} ${where?.host} ${where?.port}`);
  });
}

/** What curl gets from inside a namespace: the body, or `curl` and its exit code (7: refused, 28: no answer). */
export async function curl(at: TestNamespace, url: string, ...options: string[]): Promise<string> {
  const result = await at.run('curl', ['--silent', '--globoff', '--max-time', '30', ...options, url]);
  return result.code === 0 ? result.stdout : `curl ${result.code}`;
}
