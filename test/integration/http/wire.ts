// One raw TCP connection of a test, and HTTP/1 messages read from it byte for byte.
//
// Nothing is hidden: heads keep their exact text, bodies are available as sent and as decoded, and the
// way in which the other side ended (FIN or reset) is part of what a test can assert.
// Waits are for conditions; their time limit is only a safety net.

import { connect, type Socket } from 'node:net';

/** A safety net only: no test waits this long for anything that works. */
const WAIT_LIMIT_MS = 60_000;

/** How the other side ended its half: an orderly end, or a reset. */
export type Ending = 'fin' | 'reset';

/** One HTTP/1 message as it came. Texts are latin1, one character per byte. */
export class Message {
  /** Everything up to and with the empty line. */
  readonly head: string;
  /** Request line or status line. */
  readonly start: string;
  /** Names and values as sent, in order. */
  readonly fields: [name: string, value: string][];
  /** Body without chunk framing. */
  body = '';
  /** Body as on the wire, chunk framing and trailers included. */
  framed = '';
  /** Trailer lines, without line ends. */
  trailers: string[] = [];
  /** The sender closed its side to end the body. */
  closeDelimited = false;

  constructor(head: string) {
    this.head = head;
    const [start, ...lines] = head.slice(0, -4).split('\r\n');
    this.start = start;
    this.fields = lines.map((line) => {
      const colon = line.indexOf(':');
      return [line.slice(0, colon), line.slice(colon + 1).trim()];
    });
  }

  /** Status code of a response. */
  get status(): number {
    return Number(this.start.slice(9, 12));
  }

  /** Values of a field, joined as RFC 9110 §5.3 allows; undefined if there is none. */
  value(name: string): string | undefined {
    const values = this.fields.filter(([field]) => field.toLowerCase() === name.toLowerCase());
    return values.length === 0 ? undefined : values.map(([, value]) => value).join(', ');
  }
}

/** A raw connection with everything received and not yet taken. */
export class Wire {
  readonly socket: Socket;
  /** Set once the other side has ended. */
  ending: Ending | undefined;
  /** Bytes received so far. */
  received = 0;
  private chunks: Buffer[] = [];
  private size = 0;
  private readonly checks = new Set<() => void>();

  constructor(socket: Socket) {
    this.socket = socket;
    const noteEnd = (ending: Ending): void => {
      this.ending ??= ending;
      for (const check of [...this.checks]) check();
    };
    socket.setNoDelay(true);
    socket.on('data', (chunk: Buffer) => {
      this.chunks.push(chunk);
      this.size += chunk.length;
      this.received += chunk.length;
      for (const check of [...this.checks]) check();
    });
    socket.on('end', () => noteEnd('fin'));
    socket.on('error', () => noteEnd('reset'));
    socket.on('close', () => noteEnd('fin'));
  }

  /** Sends text (latin1) or bytes; resolves when the system has taken them. */
  send(data: string | Buffer): Promise<void> {
    return new Promise((resolve) => this.socket.write(data as string, 'latin1', () => resolve()));
  }

  /** Finishes sending (FIN) and goes on receiving; resolves when the system has done it. */
  finish(): Promise<void> {
    return new Promise((resolve) => this.socket.end(() => resolve()));
  }

  /** Ends the connection with a reset (RST). */
  reset(): void {
    this.socket.resetAndDestroy();
  }

  /** Closes the connection. */
  close(): void {
    this.socket.destroy();
  }

  /** Waits for a text and takes everything through it. */
  until(mark: string): Promise<string> {
    return this.wait(JSON.stringify(mark), () => {
      const at = this.peek().indexOf(mark);
      return at < 0 ? undefined : this.cut(at + mark.length).toString('latin1');
    });
  }

  /** Waits for so many bytes and takes them. */
  async bytes(count: number): Promise<Buffer> {
    return this.wait(`${count} bytes`, () => (this.size < count ? undefined : this.cut(count)));
  }

  /** Takes so many bytes as they come, without keeping them. */
  async skipBytes(count: number): Promise<void> {
    let left = count;
    while (left > 0) {
      await this.wait('a byte', () => (this.size > 0 ? true : undefined));
      const part = Math.min(left, this.size);
      this.cut(part);
      left -= part;
    }
  }

  /** Waits for the end of what the other side sends, however it comes, and takes all of it. */
  async rest(): Promise<string> {
    await this.ended();
    return this.cut(this.size).toString('latin1');
  }

  /** Waits until the other side has ended. */
  ended(): Promise<Ending> {
    return this.wait('the end', () => this.ending);
  }

  /** What has come and was not taken. */
  get unread(): string {
    return this.peek().toString('latin1');
  }

  /** Waits for one message head. */
  async head(): Promise<Message> {
    return new Message(await this.until('\r\n\r\n'));
  }

  /** Waits for one whole request. */
  async request(): Promise<Message> {
    const message = await this.head();
    if (message.value('transfer-encoding') !== undefined) await this.chunked(message);
    else await this.sized(message, Number(message.value('content-length') ?? 0));
    return message;
  }

  /** Waits for one whole response, an informational one included, to a request with this method. */
  async response(method = 'GET'): Promise<Message> {
    const message = await this.head();
    const { status } = message;
    if (method === 'HEAD' || status < 200 || status === 204 || status === 304) return message;
    const length = message.value('content-length');
    if (message.value('transfer-encoding') !== undefined) {
      await this.chunked(message);
    } else if (length !== undefined) {
      await this.sized(message, Number(length));
    } else {
      message.closeDelimited = true;
      message.body = await this.rest();
      message.framed = message.body;
    }
    return message;
  }

  private async sized(message: Message, length: number): Promise<void> {
    message.framed = (await this.bytes(length)).toString('latin1');
    message.body = message.framed;
  }

  private async chunked(message: Message): Promise<void> {
    for (;;) {
      const line = await this.until('\r\n');
      message.framed += line;
      const length = Number.parseInt(line, 16);
      if (length === 0) break;
      const data = (await this.bytes(length + 2)).toString('latin1');
      message.framed += data;
      message.body += data.slice(0, -2);
    }
    for (;;) {
      const line = await this.until('\r\n');
      message.framed += line;
      if (line === '\r\n') return;
      message.trailers.push(line.slice(0, -2));
    }
  }

  private peek(): Buffer {
    if (this.chunks.length !== 1) this.chunks = [Buffer.concat(this.chunks)];
    return this.chunks[0];
  }

  private cut(count: number): Buffer {
    const all = this.peek();
    this.chunks = [all.subarray(count)];
    this.size -= count;
    return all.subarray(0, count);
  }

  private wait<T>(what: string, attempt: () => T | undefined): Promise<T> {
    return new Promise((resolve, reject) => {
      const settle = (): void => {
        clearTimeout(timer);
        this.checks.delete(check);
      };
      const fail = (why: string): void => {
        settle();
        reject(new Error(`${why} while waiting for ${what}; unread: ${JSON.stringify(this.unread.slice(0, 500))}`));
      };
      const check = (): void => {
        const result = attempt();
        if (result !== undefined) {
          settle();
          resolve(result);
        } else if (this.ending !== undefined) {
          fail(`the connection ended (${this.ending})`);
        }
      };
      const timer = setTimeout(() => fail('nothing happened'), WAIT_LIMIT_MS);
      this.checks.add(check);
      check();
    });
  }
}

/** Opens a connection; both halves end separately. */
export function openWire(port: number, host = '127.0.0.1'): Promise<Wire> {
  return new Promise((resolve, reject) => {
    const socket = connect({ port, host, allowHalfOpen: true });
    socket.once('error', reject);
    socket.once('connect', () => {
      socket.off('error', reject);
      resolve(new Wire(socket));
    });
  });
}
