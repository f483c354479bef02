// Scripted HTTP/2 upstreams: what the gateway sends as a client, frame by frame, and any answer to it.

import assert from 'node:assert/strict';
import type { Lab, Upstream } from '../http/support.ts';
import { type Message, openWire, type Wire } from '../http/wire.ts';
import { block, Client, Flag, type Frame, frame, PREFACE, settings, Type, word } from '../http2/frames.ts';

/** Settings that a server of a test may announce. */
export const Setting = { MAX_STREAMS: 3, WINDOW: 4, CONNECT_PROTOCOL: 8 } as const;

/** A request as it came: its stream, fields as `name: value`, body, trailers. */
export interface Request {
  stream: number;
  fields: string[];
  body: string;
  trailers: string[];
  /** END_STREAM was on HEADERS. */
  isWhole: boolean;
}

/** The server's end of one connection of the gateway. */
export class Server extends Client {
  /** Waits for a request and all of its body; gives windows back. Nothing else may come between its frames. */
  async request(): Promise<Request> {
    const head = await this.next(Type.HEADERS);
    const request = this.headOf(head);
    for (let last: Frame = head; (last.flags & Flag.END_STREAM) === 0; ) {
      last = await this.read();
      if (last.stream !== head.stream) continue;
      if (last.type === Type.RST_STREAM) throw new Error(`reset with ${last.payload.readUInt32BE(0)}`);
      if (last.type === Type.HEADERS) request.trailers = this.fields(last);
      if (last.type !== Type.DATA) continue;
      request.body += last.payload.toString('latin1');
      if (last.payload.length > 0) await this.giveBack(head.stream, last.payload.length);
    }
    return request;
  }

  /** Waits for the head of a request only. */
  async head(): Promise<Request> {
    return this.headOf(await this.next(Type.HEADERS));
  }

  private headOf(head: Frame): Request {
    const isWhole = (head.flags & Flag.END_STREAM) !== 0;
    return { stream: head.stream, fields: this.fields(head), body: '', trailers: [], isWhole };
  }

  /** Opens the windows of a stream and the connection again. */
  async giveBack(stream: number, bytes: number): Promise<void> {
    await this.send(frame(Type.WINDOW_UPDATE, 0, stream, word(bytes)), frame(Type.WINDOW_UPDATE, 0, 0, word(bytes)));
  }

  /** Sends a whole response in one piece. */
  respond(stream: number, body: string, ...fields: [string, string][]): Promise<void> {
    return this.send(...response(stream, body, ...fields));
  }

  /** Sends GOAWAY. */
  leave(lastStream: number, code = 0): Promise<void> {
    return this.send(frame(Type.GOAWAY, 0, 0, Buffer.concat([word(lastStream), word(code)])));
  }

  /** Answers every request from now on. */
  serve(answer: (request: Request) => Buffer[]): void {
    const loop = async (): Promise<void> => {
      for (;;) await this.send(...answer(await this.request()));
    };
    loop().catch(() => {});
  }
}

/** Frames of a whole response: status 200 unless `fields` begin with another. */
export function response(stream: number, body: string, ...fields: [string, string][]): Buffer[] {
  const all: [string, string][] = fields[0]?.[0] === ':status' ? fields : [[':status', '200'], ...fields];
  if (body === '') return [frame(Type.HEADERS, Flag.END_HEADERS | Flag.END_STREAM, stream, block(...all))];
  return [
    frame(Type.HEADERS, Flag.END_HEADERS, stream, block(...all)),
    frame(Type.DATA, Flag.END_STREAM, stream, body),
  ];
}

/** Takes the gateway's next connection, checks its preface, and greets it with settings. */
export async function accept(upstream: Upstream, ...pairs: [number, number][]): Promise<Server> {
  return greetGateway(await upstream.connection(), ...pairs);
}

/** The same on a connection that has been taken. */
export async function greetGateway(wire: Wire, ...pairs: [number, number][]): Promise<Server> {
  assert.equal((await wire.bytes(PREFACE.length)).toString('latin1'), PREFACE);
  const server = new Server(wire);
  const first = await server.read();
  assert.equal(first.type, Type.SETTINGS);
  await server.send(frame(Type.SETTINGS, 0, 0, settings(...pairs)), frame(Type.SETTINGS, Flag.ACK, 0));
  return server;
}

/** An HTTP/1.1 client that asks one thing. */
export async function ask(lab: Lab, text: string, method = 'GET'): Promise<Message> {
  const client = await openWire(lab.port);
  try {
    await client.send(text);
    return await client.response(method);
  } finally {
    client.close();
  }
}
