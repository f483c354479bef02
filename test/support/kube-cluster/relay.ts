// A way to a server that can be cut, as a network is: for clients that are to be cut off while the server lives.

import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net';
import type { TestContext } from 'node:test';

/** A port of this machine that leads to another, or not. */
export class Relay {
  private readonly server: Server;
  private readonly sockets = new Set<Socket>();
  private isCut = false;

  private constructor(port: number) {
    this.server = createServer((client) => {
      if (this.isCut) {
        client.destroy();
        return;
      }
      const upstream = connect(port, '127.0.0.1');
      for (const [socket, other] of [
        [client, upstream],
        [upstream, client],
      ] as const) {
        this.sockets.add(socket);
        socket.on('error', () => {});
        socket.on('close', () => {
          this.sockets.delete(socket);
          other.destroy();
        });
      }
      client.pipe(upstream).pipe(client);
    });
  }

  /** Leads to a URL's port until the test ends; `fd`: a listening socket, such as one of another network namespace. */
  static async to(t: TestContext, url: string, fd?: number): Promise<Relay> {
    const relay = new Relay(Number(new URL(url).port));
    relay.server.listen(fd === undefined ? { port: 0, host: '127.0.0.1' } : { fd });
    await once(relay.server, 'listening');
    t.after(() => {
      relay.server.close();
      relay.cut();
    });
    return relay;
  }

  get url(): string {
    return `https://127.0.0.1:${(this.server.address() as AddressInfo).port}`;
  }

  /** Breaks all connections, and takes none until `mend`. */
  cut(): void {
    this.isCut = true;
    for (const socket of this.sockets) socket.destroy();
  }

  mend(): void {
    this.isCut = false;
  }
}
