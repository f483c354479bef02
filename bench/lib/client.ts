// A small HTTP/1.1 client on one kept-alive connection, for everything that is not wrk's work:
// checks before measuring, start-up time, idle connections, the steady prober of a reload.
//
// One request at a time. Bodies are counted, not kept. Knows Content-Length framing only, which is
// what the backends answer with; anything else is reported as an error, not guessed at.

import { createConnection, type Socket } from 'node:net';
import { connect as connectTls } from 'node:tls';
import { TLS_HOST } from './certificate.ts';

/** What one request got. */
export interface Answer {
  status: number;
  bodyBytes: number;
  /** Whether the connection cannot be used again. */
  closes: boolean;
}

/** One client connection to 127.0.0.1. */
export class ClientConnection {
  readonly #socket: Socket;
  #pending: { resolve: (answer: Answer) => void; reject: (error: Error) => void } | null = null;
  #head = '';
  #answer: Answer | null = null;
  #remainingBytes = 0;
  #closed = false;
  #failure = 'the connection was closed';

  private constructor(socket: Socket) {
    this.#socket = socket;
    socket.setNoDelay(true);
    socket.on('data', (chunk: Buffer) => this.#receive(chunk));
    socket.on('error', (error) => {
      this.#failure = error.message;
    });
    socket.on('end', () => this.#end());
    socket.on('close', () => this.#end());
  }

  /** Connects to a port of 127.0.0.1, with TLS where wanted; rejects when that fails. */
  static connect(port: number, tls = false): Promise<ClientConnection> {
    return new Promise((resolve, reject) => {
      const to = { host: '127.0.0.1', port };
      const socket = tls
        ? connectTls({ ...to, rejectUnauthorized: false, servername: TLS_HOST, ALPNProtocols: ['http/1.1'] })
        : createConnection(to);
      socket.once('error', reject);
      socket.once(tls ? 'secureConnect' : 'connect', () => {
        socket.off('error', reject);
        resolve(new ClientConnection(socket));
      });
    });
  }

  /** Whether the peer closed the connection or it failed. */
  get closed(): boolean {
    return this.#closed;
  }

  /** Sends a GET; rejects when the connection ends before the whole answer is there. */
  get(path: string, host: string): Promise<Answer> {
    if (this.#pending !== null) throw new Error('one request at a time');
    return new Promise((resolve, reject) => {
      if (this.#closed) {
        reject(new Error(this.#failure));
        return;
      }
      this.#pending = { resolve, reject };
      this.#socket.write(`GET ${path} HTTP/1.1\r\nHost: ${host}\r\nAccept: */*\r\n\r\n`);
    });
  }

  /** Closes at once. */
  destroy(): void {
    this.#socket.destroy();
    this.#end();
  }

  #receive(chunk: Buffer): void {
    if (this.#pending === null) {
      this.#fail('bytes arrived that no request asked for');
      return;
    }
    let bodyBytes = chunk.length;
    if (this.#answer === null) {
      this.#head += chunk.toString('latin1');
      const end = this.#head.indexOf('\r\n\r\n');
      if (end < 0) return;
      bodyBytes = this.#head.length - end - 4;
      const answer = parseHead(this.#head.slice(0, end + 2));
      this.#head = '';
      if (answer === null) {
        this.#fail('the answer is not HTTP/1.1 with a Content-Length');
        return;
      }
      this.#answer = answer;
      this.#remainingBytes = answer.bodyBytes;
    }
    this.#remainingBytes -= bodyBytes;
    if (this.#remainingBytes < 0) this.#fail('the answer is longer than its Content-Length');
    else if (this.#remainingBytes === 0) {
      const { resolve } = this.#pending;
      const answer = this.#answer;
      this.#pending = null;
      this.#answer = null;
      resolve(answer);
    }
  }

  #fail(reason: string): void {
    this.#failure = reason;
    this.#socket.destroy();
    this.#end();
  }

  #end(): void {
    this.#closed = true;
    const pending = this.#pending;
    this.#pending = null;
    pending?.reject(new Error(this.#failure));
  }
}

/** One GET on a connection of its own. */
export async function getOnce(port: number, path: string, host: string): Promise<Answer> {
  const connection = await ClientConnection.connect(port);
  try {
    return await connection.get(path, host);
  } finally {
    connection.destroy();
  }
}

/** Status, length and persistence of a response head; null for what this client does not read. */
function parseHead(head: string): Answer | null {
  const status = /^HTTP\/1\.1 (\d{3})[ \r]/.exec(head);
  const length = /\r\ncontent-length:[ \t]*(\d+)[ \t]*\r\n/i.exec(head);
  if (status === null || length === null) return null;
  return {
    status: Number(status[1]),
    bodyBytes: Number(length[1]),
    closes: /\r\nconnection:[ \t]*close[ \t]*\r\n/i.test(head),
  };
}
