// How a server is spoken to, and a client for each way: for the checks before measuring and for
// connections that only have to be there. Nothing here is fast enough to be a load.

import { type ClientHttp2Session, connect } from 'node:http2';
import { TLS_HOST } from './certificate.ts';
import { type Answer, ClientConnection } from './client.ts';
import { grpcMessage } from './grpc.ts';

/** A way to speak to a server on 127.0.0.1. */
export interface Access {
  port: number;
  tls: boolean;
  /** `grpc` is HTTP/2 with unary calls instead of GETs. */
  protocol: 'http/1.1' | 'h2' | 'grpc';
}

/** One connection; one request at a time. */
export interface Client {
  /** Asks for `path`; rejects when no complete answer comes. gRPC: calls it; rejects also unless the status is 0. */
  get(path: string, host: string): Promise<Answer>;
  /** Closes at once. */
  destroy(): void;
}

const ANSWER_TIMEOUT_MS = 5000;

/** Connects; rejects when that fails, in TLS or in the choice of protocol too. */
export async function connectClient(access: Access): Promise<Client> {
  if (access.protocol === 'http/1.1') return ClientConnection.connect(access.port, access.tls);
  return Http2Client.connect(access);
}

/** One request on a connection of its own. */
export async function askOnce(access: Access, path: string, host: string): Promise<Answer> {
  const client = await connectClient(access);
  try {
    return await client.get(path, host);
  } finally {
    client.destroy();
  }
}

/** A client of node:http2. */
class Http2Client implements Client {
  readonly #session: ClientHttp2Session;
  readonly #access: Access;

  private constructor(session: ClientHttp2Session, access: Access) {
    this.#session = session;
    this.#access = access;
    // Failures reach the requests; without a listener an idle session's would end the benchmark.
    session.on('error', () => {});
  }

  static connect(access: Access): Promise<Http2Client> {
    const authority = `${access.tls ? 'https' : 'http'}://127.0.0.1:${access.port}`;
    return new Promise((resolve, reject) => {
      const session = connect(authority, { rejectUnauthorized: false, servername: TLS_HOST });
      session.once('error', reject);
      session.once('close', () => reject(new Error('the connection was closed')));
      session.once('remoteSettings', () => resolve(new Http2Client(session, access)));
      session.setTimeout(ANSWER_TIMEOUT_MS, () => session.destroy(new Error('no answer within 5 s')));
    });
  }

  get(path: string, host: string): Promise<Answer> {
    const grpc = this.#access.protocol === 'grpc';
    const scheme = this.#access.tls ? 'https' : 'http';
    const pseudo = { ':method': grpc ? 'POST' : 'GET', ':path': path, ':scheme': scheme, ':authority': host };
    return new Promise((resolve, reject) => {
      const stream = grpc
        ? this.#session.request({ ...pseudo, 'content-type': 'application/grpc', te: 'trailers' })
        : this.#session.request({ ...pseudo, accept: '*/*' });
      const answer: Answer = { status: 0, bodyBytes: 0, closes: false };
      let grpcStatus = 'missing';
      stream.on('response', (headers) => {
        answer.status = headers[':status'] ?? 0;
        if (headers['grpc-status'] !== undefined) grpcStatus = String(headers['grpc-status']);
      });
      stream.on('trailers', (trailers) => {
        if (trailers['grpc-status'] !== undefined) grpcStatus = String(trailers['grpc-status']);
      });
      stream.on('data', (chunk: Buffer) => {
        answer.bodyBytes += chunk.length;
      });
      let ended = false;
      stream.once('error', reject);
      stream.once('end', () => {
        ended = true;
      });
      // Trailers may come after the last byte, so only the end of the stream tells whether all is there.
      stream.once('close', () => {
        if (!ended) reject(new Error(`the stream was closed with code ${stream.rstCode}`));
        else if (grpc && answer.status === 200 && grpcStatus !== '0') {
          reject(new Error(`the gRPC status is ${grpcStatus}`));
        } else resolve(answer);
      });
      stream.end(grpc ? grpcMessage() : undefined);
    });
  }

  destroy(): void {
    this.#session.destroy();
  }
}
