// A raw HTTP/2 client of a test: frames written and read one by one, valid or not.
//
// Header blocks are literals without indexing and without Huffman coding, written here by hand, so that any
// byte can be sent. Blocks that come are decoded with a decoder of their own connection.

import { HeaderTable } from '../../../core/http1/header-table.ts';
import { HpackDecoder } from '../../../core/http2/hpack-decoder.ts';
import type { Lab } from '../http/support.ts';
import type { Wire } from '../http/wire.ts';

export const Type = {
  DATA: 0,
  HEADERS: 1,
  PRIORITY: 2,
  RST_STREAM: 3,
  SETTINGS: 4,
  PING: 6,
  GOAWAY: 7,
  WINDOW_UPDATE: 8,
  CONTINUATION: 9,
} as const;

export const Flag = { END_STREAM: 1, ACK: 1, END_HEADERS: 4, PADDED: 8, PRIORITY: 0x20 } as const;

export const Code = {
  NO_ERROR: 0,
  PROTOCOL_ERROR: 1,
  FLOW_CONTROL_ERROR: 3,
  STREAM_CLOSED: 5,
  REFUSED_STREAM: 7,
  CANCEL: 8,
  COMPRESSION_ERROR: 9,
  ENHANCE_YOUR_CALM: 11,
} as const;

export const PREFACE = 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n';

/** One frame as it came. */
export interface Frame {
  type: number;
  flags: number;
  stream: number;
  payload: Buffer;
}

/** A frame as bytes. */
export function frame(type: number, flags: number, stream: number, payload: Buffer | string = ''): Buffer {
  const body = Buffer.from(payload);
  const head = Buffer.alloc(9);
  head.writeUIntBE(body.length, 0, 3);
  head[3] = type;
  head[4] = flags;
  head.writeUInt32BE(stream, 5);
  return Buffer.concat([head, body]);
}

/** 32 bits in network order. */
export function word(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value >>> 0);
  return bytes;
}

/** A SETTINGS payload. */
export function settings(...pairs: [id: number, value: number][]): Buffer {
  return Buffer.concat(pairs.map(([id, value]) => Buffer.concat([Buffer.from([id >> 8, id & 255]), word(value)])));
}

function hpackString(text: string): Buffer {
  const bytes = Buffer.from(text, 'latin1');
  if (bytes.length < 127) return Buffer.concat([Buffer.from([bytes.length]), bytes]);
  const length = [127];
  let rest = bytes.length - 127;
  for (; rest >= 128; rest >>= 7) length.push((rest & 127) | 128);
  return Buffer.concat([Buffer.from([...length, rest]), bytes]);
}

/** A header block of literals. */
export function block(...fields: [name: string, value: string][]): Buffer {
  return Buffer.concat(
    fields.map(([name, value]) => Buffer.concat([Buffer.from([0]), hpackString(name), hpackString(value)])),
  );
}

/** The fields of a GET. */
export function get(host: string, path = '/'): [string, string][] {
  return [
    [':method', 'GET'],
    [':scheme', 'http'],
    [':path', path],
    [':authority', host],
  ];
}

/** The fields of a POST. */
export function post(host: string, path = '/'): [string, string][] {
  return [[':method', 'POST'], ...get(host, path).slice(1)];
}

/** A connection of a test. */
export class Client {
  readonly wire: Wire;
  /** Frames that `next` has taken while it looked for another. */
  readonly seen: Frame[] = [];
  private readonly memory = new Uint8Array(256 * 1024);
  private readonly table = new HeaderTable();
  private readonly decoder = new HpackDecoder(4096, 64 * 1024);

  constructor(wire: Wire) {
    this.wire = wire;
  }

  /** Sends frames in one piece. */
  send(...frames: (Buffer | string)[]): Promise<void> {
    return this.wire.send(Buffer.concat(frames.map((bytes) => Buffer.from(bytes))));
  }

  /** Sends HEADERS with END_HEADERS. */
  headers(stream: number, fields: [string, string][], flags: number = Flag.END_STREAM): Promise<void> {
    return this.send(frame(Type.HEADERS, Flag.END_HEADERS | flags, stream, block(...fields)));
  }

  /** The next frame, whatever it is. */
  async read(): Promise<Frame> {
    const head = await this.wire.bytes(9);
    const payload = await this.wire.bytes(head.readUIntBE(0, 3));
    return { type: head[3], flags: head[4], stream: head.readUInt32BE(5), payload };
  }

  /** The next frame of a type (on a stream); others before it are kept in `seen`. */
  async next(type: number, stream?: number): Promise<Frame> {
    for (;;) {
      const found = await this.read();
      if (found.type === type && (stream === undefined || found.stream === stream)) return found;
      this.seen.push(found);
    }
  }

  /** Fields of a HEADERS frame, `name: value` each. Every block of the connection must be given, in order. */
  fields({ payload }: Frame): string[] {
    this.memory.set(payload);
    const result = this.decoder.decode(this.memory, 0, payload.length, 65_536, 131_072, this.table, 200);
    if (result !== 0) throw new Error(`HPACK error ${-result}`);
    const text = Buffer.from(this.memory.subarray(65_536, 65_536 + this.decoder.outLength)).toString('latin1');
    return text.split('\r\n').slice(0, -1);
  }

  /** Code and text of the GOAWAY that is to come. */
  async goaway(): Promise<{ code: number; lastStream: number; text: string }> {
    const { payload } = await this.next(Type.GOAWAY);
    return { lastStream: payload.readUInt32BE(0), code: payload.readUInt32BE(4), text: payload.toString('latin1', 8) };
  }

  /** Code of the RST_STREAM of a stream that is to come. */
  async reset(stream: number): Promise<number> {
    return (await this.next(Type.RST_STREAM, stream)).payload.readUInt32BE(0);
  }

  /** Whole answer on a stream that ends: fields of the head, body. Gives no window back. */
  async answer(stream: number): Promise<{ fields: string[]; body: string }> {
    const head = await this.next(Type.HEADERS, stream);
    const fields = this.fields(head);
    let body = '';
    for (let last = head; (last.flags & Flag.END_STREAM) === 0; ) {
      last = await this.read();
      if (last.stream !== stream) continue;
      if (last.type === Type.RST_STREAM) throw new Error(`reset with ${last.payload.readUInt32BE(0)}`);
      if (last.type === Type.DATA) body += last.payload.toString('latin1');
    }
    return { fields, body };
  }

  /** Waits until the gateway has handled everything sent so far. */
  async synced(): Promise<void> {
    await this.send(frame(Type.PING, 0, 0, 'roundtrp'));
    await this.next(Type.PING);
  }
}

/** A connection that has sent preface and settings, and seen those of the gateway acknowledged. */
export async function connectHttp2(lab: Lab, ...pairs: [number, number][]): Promise<Client> {
  return greet(new Client(await lab.client()), ...pairs);
}

/** Sends preface and settings on a new connection, and waits until the settings are acknowledged. */
export async function greet(client: Client, ...pairs: [number, number][]): Promise<Client> {
  await client.send(PREFACE, frame(Type.SETTINGS, 0, 0, settings(...pairs)), frame(Type.SETTINGS, Flag.ACK, 0));
  for (;;) {
    const { type, flags } = await client.read();
    if (type === Type.SETTINGS && (flags & Flag.ACK) !== 0) return client;
  }
}
