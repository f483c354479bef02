// A server of a test on a port of its own.

import type { AddressInfo, Server, Socket } from 'node:net';
import type { TestContext } from 'node:test';

/** Has a server listen on a free port of 127.0.0.1 until the test is over, and cuts what is left then. Resolves to the port. */
export async function portOf(t: TestContext, server: Server): Promise<number> {
  const sockets = new Set<Socket>();
  server.on('connection', (socket: Socket) => {
    sockets.add(socket.on('error', () => {}).on('close', () => sockets.delete(socket)));
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.after(() => {
    server.close();
    for (const socket of sockets) socket.destroy();
  });
  return (server.address() as AddressInfo).port;
}
