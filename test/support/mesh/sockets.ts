// Connections from inside a namespace, for clients that live in the test's own process.

import { Agent, type IncomingHttpHeaders, request } from 'node:http';
import { connect as connectHttp2 } from 'node:http2';
import { Socket } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { NamespaceSockets } from '../../../core/ffi/netns.ts';
import type { TestNamespace } from '../netns/network.ts';

/** Whatever something belongs to until it is over: a test, or the demo. */
export interface Lifetime {
  after(end: () => void | Promise<void>): void;
}

/** An answer, read whole. */
export interface Answer {
  status: number;
  headers: IncomingHttpHeaders;
  body: string;
}

/** What a request may have besides its address. */
export interface RequestOptions {
  method?: string;
  path?: string;
  headers?: Record<string, string>;
  body?: string;
}

/** A safety net: connections on which nothing happens for so long are given up. */
const SILENCE_MS = 60_000;

/** Clients inside namespaces. Everything that they opened ends with `close`. */
export class Clients {
  private readonly sockets = new NamespaceSockets();
  private readonly open = new Set<Socket>();

  constructor(lifetime: Lifetime) {
    lifetime.after(() => this.close());
  }

  /** A connection, which may still be under way: what becomes of it shows in its events. */
  async connect(from: TestNamespace, host: string, port: number): Promise<Socket> {
    const opened = await this.sockets.open(from.path, { kind: 'dial', host, port });
    if (!opened.ok) throw new Error(`${opened.code}: ${opened.message}`);
    const socket = new Socket({ fd: opened.fds[0]!, readable: true, writable: true });
    this.open.add(socket);
    socket.setTimeout(SILENCE_MS, () => socket.destroy(new Error(`nothing came from ${host}:${port} in time`)));
    socket.once('close', () => this.open.delete(socket));
    return socket;
  }

  /** One request on a connection of its own. Rejects when the connection fails or the answer is cut. */
  async request(from: TestNamespace, host: string, port: number, options: RequestOptions = {}): Promise<Answer> {
    const socket = await this.connect(from, host, port);
    const { method = 'GET', path = '/', headers = {}, body = '' } = options;
    return new Promise((resolve, reject) => {
      socket.once('error', reject);
      const outgoing = request({
        method,
        path,
        headers: {
          host: host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`,
          connection: 'close',
          ...headers,
        },
        agent: new OneSocket(socket),
      });
      outgoing.on('response', (incoming) => {
        let text = '';
        incoming.setEncoding('utf8');
        incoming.on('data', (chunk) => (text += chunk));
        incoming.on('error', reject);
        incoming.on('end', () => {
          socket.destroy();
          resolve({ status: incoming.statusCode!, headers: incoming.headers, body: text });
        });
      });
      outgoing.on('error', reject);
      outgoing.end(body);
    });
  }

  /** One request by HTTP/2 with prior knowledge, of a client that first waits. */
  async requestHttp2(from: TestNamespace, host: string, port: number, path: string, waitMs = 0): Promise<Answer> {
    const socket = await this.connect(from, host, port);
    await delay(waitMs);
    return new Promise((resolve, reject) => {
      const session = connectHttp2(`http://${host}:${port}`, { createConnection: () => socket });
      session.once('error', reject);
      session.once('close', () => reject(new Error('the connection was closed')));
      const stream = session.request({ ':path': path });
      let headers: Record<string, unknown> = {};
      let text = '';
      stream.once('response', (fields) => {
        headers = fields;
      });
      stream.setEncoding('utf8').on('data', (chunk) => (text += chunk));
      stream.once('error', reject);
      stream.once('end', () => {
        resolve({ status: Number(headers[':status']), headers: headers as IncomingHttpHeaders, body: text });
        session.destroy();
      });
    });
  }

  /** Sends bytes and collects what comes until the other side ends, or `enough` of it is there. */
  async exchange(from: TestNamespace, host: string, port: number, send: string, enough = Infinity): Promise<string> {
    const socket = await this.connect(from, host, port);
    return new Promise((resolve, reject) => {
      let text = '';
      const finish = (): void => {
        socket.destroy();
        resolve(text);
      };
      socket.setEncoding('utf8');
      socket.on('data', (chunk) => {
        text += chunk;
        if (text.length >= enough) finish();
      });
      socket.once('end', finish);
      socket.once('error', reject);
      if (send !== '') socket.write(send);
    });
  }

  private async close(): Promise<void> {
    for (const socket of this.open) socket.destroy();
    await this.sockets.close();
  }
}

/** Gives node:http the one connection that there is. */
class OneSocket extends Agent {
  private readonly socket: Socket;

  constructor(socket: Socket) {
    super();
    this.socket = socket;
  }

  override createConnection(): Socket {
    return this.socket;
  }
}
