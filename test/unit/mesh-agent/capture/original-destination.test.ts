// Lookups on loopback, without rules: needs no rights. With rules: test/integration/mesh/capture.test.ts.

import assert from 'node:assert/strict';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { type TestContext, test } from 'node:test';
import { Errno } from '../../../../core/ffi/errno.ts';
import { Lookup, OriginalDestination } from '../../../../core/ffi/original-destination.ts';
import { decodeSockaddr, Family } from '../../../../core/ffi/sockaddr.ts';

async function accepted(t: TestContext, listenHost: string, host: string): Promise<{ fd: number; port: number }> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen({ host: listenHost, port: 0 }, resolve));
  const { port } = server.address() as AddressInfo;
  const incoming = new Promise<Socket>((resolve) => server.once('connection', resolve));
  const client = connect(port, host);
  const socket = await incoming;
  t.after(() => {
    client.destroy();
    socket.destroy();
    server.close();
  });
  return { fd: (socket as unknown as { _handle: { fd: number } })._handle.fd, port };
}

function openLookup(t: TestContext): OriginalDestination {
  const lookup = new OriginalDestination();
  t.after(() => lookup.close());
  return lookup;
}

test('the local address is the destination of a transparent connection, in numbers and for connect', async (t) => {
  const { fd, port } = await accepted(t, '127.0.0.1', '127.0.0.1');
  const lookup = openLookup(t);
  assert.equal(lookup.transparent(fd), Lookup.FOUND);
  assert.deepEqual([lookup.family, lookup.port, ...lookup.address], [Family.INET, port, 0x7f000001, 0, 0, 0]);
  assert.deepEqual(decodeSockaddr(lookup.sockaddr4, 0), { host: '127.0.0.1', port });
});

test('IPv6 has four words, and IPv4 inside IPv6 is IPv4', async (t) => {
  const six = await accepted(t, '::1', '::1').catch(() => undefined);
  if (six === undefined) return t.skip('this machine has no IPv6');
  const lookup = openLookup(t);
  assert.equal(lookup.transparent(six.fd), Lookup.FOUND);
  assert.deepEqual([lookup.family, lookup.port, ...lookup.address], [Family.INET6, six.port, 0, 0, 0, 1]);
  assert.deepEqual(decodeSockaddr(lookup.sockaddr6, 0), { host: '::1', port: six.port });
  const mapped = await accepted(t, '::', '127.0.0.1');
  assert.equal(lookup.transparent(mapped.fd), Lookup.FOUND);
  assert.deepEqual([lookup.family, ...lookup.address], [Family.INET, 0x7f000001, 0, 0, 0]);
  assert.deepEqual(decodeSockaddr(lookup.sockaddr4, 0), { host: '127.0.0.1', port: mapped.port });
});

test('a connection that nothing redirected is never taken for a captured one', async (t) => {
  const { fd } = await accepted(t, '127.0.0.1', '127.0.0.1');
  const status = openLookup(t).redirected(fd, Family.INET);
  // Whether connection tracking is at work decides which of the two.
  assert.ok(status === Lookup.DIRECT || status === -Errno.ENOENT || status === -92, `${status}`);
});

test('a descriptor that is none is an error number', (t) => {
  const lookup = openLookup(t);
  assert.equal(lookup.transparent(-1), -Errno.EBADF);
  assert.equal(lookup.redirected(-1, Family.INET), -Errno.EBADF);
});
