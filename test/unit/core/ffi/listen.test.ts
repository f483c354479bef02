// Listening sockets against the real kernel, on loopback and free ports.

import assert from 'node:assert/strict';
import { createServer, type Server } from 'node:net';
import { afterEach, type TestContext, test } from 'node:test';
import { Errno } from '../../../../core/ffi/errno.ts';
import { addressInUse, closeDescriptor, localPort, openListeningSocket } from '../../../../core/ffi/listen.ts';

const open: number[] = [];

afterEach(() => {
  for (const fd of open.splice(0)) closeDescriptor(fd);
});

function listen(host: string, port: number): number {
  const fd = openListeningSocket(host, port);
  if (fd >= 0) open.push(fd);
  return fd;
}

function serve(t: TestContext, host: string): Promise<Server> {
  return new Promise((resolve) => {
    const server = createServer();
    t.after(() => server.close());
    server.listen(0, host, () => resolve(server));
  });
}

test('several sockets share a port that the first one picked', () => {
  const first = listen('127.0.0.1', 0);
  const port = localPort(first);
  assert.ok(port > 0);
  const second = listen('127.0.0.1', port);
  assert.ok(second > 0);
  assert.equal(localPort(second), port);
});

test('IPv6 and IPv4 wildcards stand side by side on one port', (t) => {
  const six = listen('::', 0);
  if (six === -Errno.EAFNOSUPPORT) return t.skip('this machine has no IPv6');
  assert.ok(six > 0);
  assert.ok(listen('0.0.0.0', localPort(six)) > 0);
});

test('a port that another server listens on is in use, on its address and on the wildcard', async (t) => {
  const server = await serve(t, '127.0.0.1');
  const { port } = server.address() as { port: number };
  assert.equal(addressInUse('127.0.0.1', port, []), -Errno.EADDRINUSE);
  assert.equal(addressInUse('0.0.0.0', port, []), -Errno.EADDRINUSE);
  assert.equal(listen('127.0.0.1', port), -Errno.EADDRINUSE);
  await new Promise((resolve) => server.close(resolve));
  assert.equal(addressInUse('127.0.0.1', port, []), 0);
});

test('another process of the same user cannot share a port silently', () => {
  // A socket with SO_REUSEPORT that is not ours is all that a second process would be.
  const foreign = listen('127.0.0.1', 0);
  const port = localPort(foreign);
  const own = listen('127.0.0.1', 0);
  assert.equal(addressInUse('127.0.0.1', port, []), -Errno.EADDRINUSE);
  assert.equal(addressInUse('127.0.0.1', port, [own]), -Errno.EADDRINUSE);
});

test('our own sockets on an overlapping address do not count as in use', () => {
  const own = listen('127.0.0.1', 0);
  const port = localPort(own);
  assert.equal(addressInUse('0.0.0.0', port, [own]), 0);
  assert.ok(listen('0.0.0.0', port) > 0);
});

test('an address of another machine, and text that is no address, give their error numbers', () => {
  assert.equal(listen('192.0.2.1', 0), -Errno.EADDRNOTAVAIL);
  assert.equal(listen('example.com', 80), -Errno.EINVAL);
});
