// HTTP/1.1 as the simulated clients and upstreams speak it: a second, simple implementation.
//
// It shares nothing with core/http1, so that one misreading cannot hide on both sides. It accepts
// only what a careful sender writes: what the gateway emits must satisfy the strictest reader.
// Spec: RFC 9112 §2.1 (messages), §6.3 (length), §7.1 (chunked).

/** A message head: the start line and its fields, names in lower case. */
export interface Head {
  startLine: string;
  fields: [name: string, value: string][];
}

/** How long the body that follows a head is. */
export type Framing =
  | { type: 'none' }
  | { type: 'length'; bytes: number }
  | { type: 'chunked' }
  /** Until the sender closes. */
  | { type: 'close' }
  /** Everything from here on is not HTTP. */
  | { type: 'tunnel' };

/** Takes what a `MessageReader` finds. */
export interface MessageSink {
  /** A head is complete; the answer says what follows it. */
  head(head: Head): Framing;
  body(bytes: Uint8Array): void;
  end(trailers: [string, string][]): void;
}

/** The bytes are not valid HTTP. */
export class CodecError extends Error {}

const State = { HEAD: 0, LENGTH: 1, CHUNK_SIZE: 2, CHUNK: 3, CHUNK_END: 4, TRAILER: 5, CLOSE: 6, TUNNEL: 7 } as const;

const CR = 13;
const LF = 10;
const LINE_BYTES_MAX = 128 * 1024;
const fieldPattern =
  /^([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*((?:[\x21-\x7e\x80-\xff](?:[ \t\x21-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?)[ \t]*$/;
const chunkPattern =
  /^([0-9a-fA-F]{1,8})((?:[ \t]*;[ \t]*[!#$%&'*+.^_`|~0-9A-Za-z-]+(?:=(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+|"[^"]*"))?)*)$/;

/** Cuts a stream of bytes into messages. */
export class MessageReader {
  /** Messages that ended so far. */
  complete = 0;
  private readonly sink: MessageSink;
  private state: number = State.HEAD;
  private left = 0;
  private line: number[] = [];
  private lines: string[] = [];

  constructor(sink: MessageSink) {
    this.sink = sink;
  }

  /** Takes the next bytes; throws a CodecError at the first that is not valid. */
  feed(bytes: Uint8Array): void {
    let at = 0;
    while (at < bytes.length) {
      if (this.state === State.LENGTH || this.state === State.CHUNK) {
        const part = bytes.subarray(at, at + this.left);
        at += part.length;
        this.left -= part.length;
        this.sink.body(part);
        if (this.left > 0) return;
        if (this.state === State.CHUNK) this.state = State.CHUNK_END;
        else this.finish([]);
      } else if (this.state === State.CLOSE || this.state === State.TUNNEL) {
        this.sink.body(bytes.subarray(at));
        return;
      } else {
        this.byte(bytes[at++]!);
      }
    }
  }

  /** The stream ended in order. Returns what that means for the message that was being read. */
  finishStream(): 'between' | 'complete' | 'truncated' {
    if (this.state === State.TUNNEL) return 'complete';
    if (this.state === State.CLOSE) {
      this.finish([]);
      return 'complete';
    }
    return this.isBetween() ? 'between' : 'truncated';
  }

  /** Whether no message has begun that has not ended. */
  isBetween(): boolean {
    return this.state === State.HEAD && this.line.length === 0 && this.lines.length === 0;
  }

  /** What follows the message that just ended is not HTTP any more. */
  enterTunnel(): void {
    this.state = State.TUNNEL;
  }

  private byte(value: number): void {
    const line = this.line;
    if (value === LF) {
      if (line.pop() !== CR) throw new CodecError('a line ends in LF without CR');
      this.line = [];
      this.takeLine(String.fromCharCode(...line));
      return;
    }
    if (line.length > 0 && line[line.length - 1] === CR) throw new CodecError('CR without LF');
    if (line.length > LINE_BYTES_MAX) throw new CodecError('a line without end');
    line.push(value);
  }

  private takeLine(line: string): void {
    switch (this.state) {
      case State.HEAD:
        if (line !== '') this.lines.push(line);
        else if (this.lines.length === 0) throw new CodecError('an empty line instead of a start line');
        else this.takeHead();
        return;
      case State.CHUNK_SIZE: {
        const match = chunkPattern.exec(line);
        if (match === null) throw new CodecError(`a chunk size of "${line}"`);
        this.left = Number.parseInt(match[1]!, 16);
        this.state = this.left === 0 ? State.TRAILER : State.CHUNK;
        return;
      }
      case State.CHUNK_END:
        if (line !== '') throw new CodecError(`"${line}" after a chunk`);
        this.state = State.CHUNK_SIZE;
        return;
      default:
        if (line !== '') this.lines.push(line);
        else this.finish(this.lines.map(parseField));
    }
  }

  private takeHead(): void {
    const [startLine, ...fieldLines] = this.lines;
    this.lines = [];
    const framing = this.sink.head({ startLine: startLine!, fields: fieldLines.map(parseField) });
    switch (framing.type) {
      case 'none':
        this.finish([]);
        return;
      case 'length':
        this.left = framing.bytes;
        if (this.left === 0) this.finish([]);
        else this.state = State.LENGTH;
        return;
      case 'chunked':
        this.state = State.CHUNK_SIZE;
        return;
      case 'close':
        this.state = State.CLOSE;
        return;
      case 'tunnel':
        this.state = State.TUNNEL;
    }
  }

  private finish(trailers: [string, string][]): void {
    this.lines = [];
    this.state = State.HEAD;
    this.complete++;
    this.sink.end(trailers);
  }
}

function parseField(line: string): [string, string] {
  const match = fieldPattern.exec(line);
  if (match === null) throw new CodecError(`a field line "${line}"`);
  return [match[1]!.toLowerCase(), match[2]!];
}

/** The value of a field that must occur at most once; undefined if it does not. */
export function field(head: Head, name: string): string | undefined {
  const values = head.fields.filter((entry) => entry[0] === name);
  if (values.length > 1) throw new CodecError(`${values.length} fields named ${name}`);
  return values[0]?.[1];
}

/** Whether the Connection field names an option. */
export function connectionHas(head: Head, option: string): boolean {
  return head.fields.some(
    ([name, value]) => name === 'connection' && value.split(',').some((part) => part.trim().toLowerCase() === option),
  );
}

/** Length of the body after a head by Transfer-Encoding and Content-Length; undefined if neither is there. */
export function declaredFraming(head: Head): Framing | undefined {
  const coding = field(head, 'transfer-encoding');
  const length = field(head, 'content-length');
  if (coding !== undefined && length !== undefined) throw new CodecError('both Transfer-Encoding and Content-Length');
  if (coding !== undefined) {
    if (coding.toLowerCase() !== 'chunked') throw new CodecError(`Transfer-Encoding: ${coding}`);
    return { type: 'chunked' };
  }
  if (length === undefined) return undefined;
  if (!/^[0-9]{1,15}$/.test(length)) throw new CodecError(`Content-Length: ${length}`);
  return { type: 'length', bytes: Number(length) };
}

/** The bytes of a head. */
export function encodeHead(startLine: string, fields: readonly (readonly [string, string])[]): Uint8Array {
  return latin1(`${startLine}\r\n${fields.map(([name, value]) => `${name}: ${value}\r\n`).join('')}\r\n`);
}

/** The bytes of one chunk; none at all for an empty body part, which would end the message. */
export function encodeChunk(bytes: Uint8Array, extension = ''): Uint8Array {
  if (bytes.length === 0) return bytes;
  return Buffer.concat([latin1(`${bytes.length.toString(16)}${extension}\r\n`), bytes, latin1('\r\n')]);
}

/** The bytes that end a chunked body. */
export function encodeLastChunk(trailers: readonly (readonly [string, string])[]): Uint8Array {
  return latin1(`0\r\n${trailers.map(([name, value]) => `${name}: ${value}\r\n`).join('')}\r\n`);
}

/** Text to bytes, one byte per character. */
export function latin1(text: string): Uint8Array {
  return Buffer.from(text, 'latin1');
}
