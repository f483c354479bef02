// Connections that speak just enough HTTP/2 (prior knowledge, no TLS) to be held in their thousands:
// one GET each, then silence, or a download at the reader's pace. node:http2 would need ten times the memory.
//
// Owns its socket. Header blocks that arrive are counted but not decoded; whether a proxy answers
// rightly was checked before with a complete client (access.ts). Spec: RFC 9113 §4.1, §6; RFC 7541 §6.2.2.

import { createConnection, type Socket } from 'node:net';

const PREFACE = 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n';
const FRAME_HEADER_BYTES = 9;
const DATA = 0;
const HEADERS = 1;
const RST_STREAM = 3;
const SETTINGS = 4;
const PING = 6;
const GOAWAY = 7;
const WINDOW_UPDATE = 8;
const ACK = 1;
const END_STREAM = 1;
const END_HEADERS = 4;
const PADDED = 8;
const SETTINGS_INITIAL_WINDOW_SIZE = 4;
const WINDOW_DEFAULT = 65_535;
const EMPTY: Buffer = Buffer.alloc(0);

/** One connection to 127.0.0.1. */
export class RawHttp2Connection {
  /** Bytes of DATA so far, of all streams. */
  bodyBytes = 0;
  readonly #socket: Socket;
  #unread: Buffer = EMPTY;
  #streamId = -1;
  #answered: (() => void) | null = null;
  #failed: ((error: Error) => void) | null = null;
  #closed = false;
  #failure = 'the connection was closed';

  private constructor(socket: Socket, window: number) {
    this.#socket = socket;
    socket.on('data', (chunk: Buffer) => this.#receive(chunk));
    socket.on('error', (error) => {
      this.#failure = error.message;
    });
    socket.on('end', () => this.#end());
    socket.on('close', () => this.#end());
    const setting = Buffer.alloc(6);
    setting.writeUInt16BE(SETTINGS_INITIAL_WINDOW_SIZE, 0);
    setting.writeUInt32BE(window, 2);
    socket.write(Buffer.concat([Buffer.from(PREFACE), frame(SETTINGS, 0, 0, setting)]));
  }

  /** Connects; `window` is the initial window of its streams in bytes. Rejects when that fails. */
  static connect(port: number, window = WINDOW_DEFAULT): Promise<RawHttp2Connection> {
    return new Promise((resolve, reject) => {
      const socket = createConnection({ host: '127.0.0.1', port });
      socket.once('error', reject);
      socket.once('connect', () => {
        socket.off('error', reject);
        resolve(new RawHttp2Connection(socket, window));
      });
    });
  }

  /** Whether it was closed, by a GOAWAY too. */
  get closed(): boolean {
    return this.#closed;
  }

  /** Sends a GET on a new stream; resolves at its end, rejects when stream or connection end otherwise. */
  get(path: string, host: string): Promise<void> {
    if (this.#answered !== null) throw new Error('one request at a time');
    return new Promise((resolve, reject) => {
      if (this.#closed) {
        reject(new Error(this.#failure));
        return;
      }
      this.#answered = resolve;
      this.#failed = reject;
      this.#streamId += 2;
      // :method GET and :scheme http from the static table; :path (4) and :authority (1) as literals.
      const block = Buffer.concat([Buffer.from([0x82, 0x86]), literal(4, path), literal(1, host)]);
      this.#socket.write(frame(HEADERS, END_HEADERS | END_STREAM, this.#streamId, block));
    });
  }

  /** Lets the server send `bytes` more, on the stream of the request and on the connection. */
  allow(bytes: number): void {
    const increment = Buffer.alloc(4);
    increment.writeUInt32BE(bytes);
    const both = [frame(WINDOW_UPDATE, 0, this.#streamId, increment), frame(WINDOW_UPDATE, 0, 0, increment)];
    this.#socket.write(Buffer.concat(both));
  }

  /** Closes at once. */
  destroy(): void {
    this.#socket.destroy();
    this.#end();
  }

  #receive(chunk: Buffer): void {
    this.#unread = this.#unread.length === 0 ? chunk : Buffer.concat([this.#unread, chunk]);
    while (!this.#closed && this.#unread.length >= FRAME_HEADER_BYTES) {
      const end = FRAME_HEADER_BYTES + this.#unread.readUIntBE(0, 3);
      if (this.#unread.length < end) return;
      const streamId = this.#unread.readUInt32BE(5) & 0x7fffffff;
      this.#frame(this.#unread[3], this.#unread[4], streamId, this.#unread.subarray(FRAME_HEADER_BYTES, end));
      this.#unread = this.#unread.subarray(end);
    }
    // An idle connection must not hold the buffer that its last bytes came in.
    if (this.#unread.length === 0) this.#unread = EMPTY;
  }

  #frame(type: number, flags: number, streamId: number, payload: Buffer): void {
    if (type === DATA) this.bodyBytes += payload.length - (flags & PADDED ? 1 + payload[0] : 0);
    if ((type === DATA || type === HEADERS) && flags & END_STREAM && streamId === this.#streamId) {
      const answered = this.#answered;
      this.#answered = null;
      this.#failed = null;
      answered?.();
    } else if ((type === SETTINGS || type === PING) && !(flags & ACK)) {
      this.#socket.write(frame(type, ACK, 0, type === PING ? payload : EMPTY));
    } else if (type === RST_STREAM && this.#answered !== null) {
      this.#fail(`the stream was reset with code ${payload.readUInt32BE(0)}`);
    } else if (type === GOAWAY) {
      this.#fail(`the connection was ended with code ${payload.readUInt32BE(4)}`);
    }
  }

  #fail(reason: string): void {
    this.#failure = reason;
    this.#socket.destroy();
    this.#end();
  }

  #end(): void {
    this.#closed = true;
    this.#answered = null;
    const failed = this.#failed;
    this.#failed = null;
    failed?.(new Error(this.#failure));
  }
}

/** A whole frame. */
function frame(type: number, flags: number, streamId: number, payload: Buffer): Buffer {
  const bytes = Buffer.alloc(FRAME_HEADER_BYTES + payload.length);
  bytes.writeUIntBE(payload.length, 0, 3);
  bytes[3] = type;
  bytes[4] = flags;
  bytes.writeUInt32BE(streamId, 5);
  payload.copy(bytes, FRAME_HEADER_BYTES);
  return bytes;
}

/** A field without indexing whose name is in the static table; the value is shorter than 127 bytes. */
function literal(nameIndex: number, value: string): Buffer {
  return Buffer.concat([Buffer.from([nameIndex, value.length]), Buffer.from(value, 'latin1')]);
}
