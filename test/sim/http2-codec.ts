// HTTP/2 as the simulated clients and upstreams speak it: frames and header compression, written by hand.
//
// It shares nothing with core/http2 but the lengths of the Huffman code and the static table, both of which
// are data of the specification. It accepts only what a careful sender writes.
// Spec: RFC 9113 §4 (frames), §6 (their content), RFC 7541 (header compression).

import { staticEntries } from '../../core/http2/hpack-static.ts';
import { huffmanLengths } from '../../core/http2/huffman.ts';
import { CodecError } from './http-codec.ts';
import type { Random } from './random.ts';

/** Frame types (RFC 9113 §6). */
export const Type = {
  DATA: 0,
  HEADERS: 1,
  PRIORITY: 2,
  RST_STREAM: 3,
  SETTINGS: 4,
  PUSH_PROMISE: 5,
  PING: 6,
  GOAWAY: 7,
  WINDOW_UPDATE: 8,
  CONTINUATION: 9,
} as const;

/** Frame flags. */
export const Flags = { END_STREAM: 1, ACK: 1, END_HEADERS: 4, PADDED: 8, PRIORITY: 32 } as const;

/** Settings (RFC 9113 §6.5.2, RFC 8441 §3). */
export const Setting = {
  HEADER_TABLE_SIZE: 1,
  ENABLE_PUSH: 2,
  MAX_CONCURRENT_STREAMS: 3,
  INITIAL_WINDOW_SIZE: 4,
  MAX_FRAME_SIZE: 5,
  MAX_HEADER_LIST_SIZE: 6,
  ENABLE_CONNECT_PROTOCOL: 8,
} as const;

/** Names of error codes, by number (RFC 9113 §7). */
export const codeNames = [
  'NO_ERROR',
  'PROTOCOL_ERROR',
  'INTERNAL_ERROR',
  'FLOW_CONTROL_ERROR',
  'SETTINGS_TIMEOUT',
  'STREAM_CLOSED',
  'FRAME_SIZE_ERROR',
  'REFUSED_STREAM',
  'CANCEL',
  'COMPRESSION_ERROR',
  'CONNECT_ERROR',
  'ENHANCE_YOUR_CALM',
  'INADEQUATE_SECURITY',
  'HTTP_1_1_REQUIRED',
] as const;

/** Name of an error code. */
export type CodeName = (typeof codeNames)[number];

/** What a client sends first (RFC 9113 §3.4). */
export const preface: Uint8Array = Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n', 'latin1');

/** The window that connections and streams begin with, and the largest payload of a frame. */
export const WINDOW_BYTES_DEFAULT = 65_535;
export const FRAME_BYTES_MAX = 16_384;
/** The largest window (RFC 9113 §6.9.1). */
export const WINDOW_BYTES_MAX = 2 ** 31 - 1;
const HEADER_BYTES = 9;
const TABLE_BYTES_DEFAULT = 4096;
/** First index of the dynamic table. */
const STATIC_END = 62;

/** A field, as header lists hold them. */
export type Field = [name: string, value: string];

/** One frame. */
export interface Frame {
  type: number;
  flags: number;
  streamId: number;
  payload: Uint8Array;
}

/** The bytes of a frame; `length` if its header is to lie about it. */
export function encodeFrame(
  type: number,
  flags: number,
  streamId: number,
  payload: Uint8Array,
  length = payload.length,
): Uint8Array {
  const out = Buffer.alloc(HEADER_BYTES + payload.length);
  out.writeUIntBE(length, 0, 3);
  out[3] = type;
  out[4] = flags;
  out.writeUInt32BE(streamId >>> 0, 5);
  out.set(payload, HEADER_BYTES);
  return out;
}

/** Numbers as 32 bits each, big-endian. */
export function words(...values: number[]): Uint8Array {
  const out = Buffer.alloc(values.length * 4);
  for (const [index, value] of values.entries()) out.writeUInt32BE(value >>> 0, index * 4);
  return out;
}

/** Word `index` of a payload. */
export function wordAt(payload: Uint8Array, index: number): number {
  return Buffer.from(payload.buffer, payload.byteOffset, payload.length).readUInt32BE(index * 4);
}

/** A SETTINGS frame. */
export function encodeSettings(settings: readonly (readonly [id: number, value: number])[]): Uint8Array {
  const payload = Buffer.alloc(settings.length * 6);
  for (const [index, [id, value]] of settings.entries()) {
    payload.writeUInt16BE(id, index * 6);
    payload.writeUInt32BE(value >>> 0, index * 6 + 2);
  }
  return encodeFrame(Type.SETTINGS, 0, 0, payload);
}

/** The settings in a payload. */
export function decodeSettings(payload: Uint8Array): [id: number, value: number][] {
  if (payload.length % 6 !== 0) throw new CodecError('a SETTINGS frame of odd length');
  const view = Buffer.from(payload.buffer, payload.byteOffset, payload.length);
  const out: [number, number][] = [];
  for (let at = 0; at < payload.length; at += 6) out.push([view.readUInt16BE(at), view.readUInt32BE(at + 2)]);
  return out;
}

/** HEADERS and CONTINUATION frames for a block, cut where `random` says; padding and priority as it likes. */
export function encodeBlock(block: Uint8Array, streamId: number, endStream: boolean, random: Random): Uint8Array {
  const end = endStream ? Flags.END_STREAM : 0;
  const padded = random.chance(0.1);
  const priority = random.chance(0.1);
  const cut = random.chance(0.15) || block.length > 16_000;
  const first = cut ? block.subarray(0, random.int(0, Math.min(block.length, 16_000))) : block;
  let rest = block.subarray(first.length);
  const padding = padded ? random.int(0, 100) : 0;
  const content = Buffer.concat([
    ...(padded ? [Buffer.from([padding])] : []),
    ...(priority ? [words(random.chance(0.5) ? 0 : 0x8000_0000), Buffer.from([random.int(0, 255)])] : []),
    first,
    Buffer.alloc(padding),
  ]);
  const flags =
    end |
    (padded ? Flags.PADDED : 0) |
    (priority ? Flags.PRIORITY : 0) |
    (rest.length === 0 && !cut ? Flags.END_HEADERS : 0);
  const frames = [encodeFrame(Type.HEADERS, flags, streamId, content)];
  // An empty last fragment is allowed.
  for (let pieces = 0; cut; pieces++) {
    const part =
      pieces >= 5 ? rest.subarray(0, 16_000) : rest.subarray(0, random.int(0, Math.min(16_000, rest.length)));
    rest = rest.subarray(part.length);
    const last = rest.length === 0;
    frames.push(encodeFrame(Type.CONTINUATION, last ? Flags.END_HEADERS : 0, streamId, part));
    if (last) break;
  }
  return Buffer.concat(frames);
}

/** Cuts a stream of bytes into frames. */
export class FrameReader {
  private held: Uint8Array = new Uint8Array(0);

  /** Takes the next bytes and calls `take` for every frame that is complete. */
  feed(bytes: Uint8Array, take: (frame: Frame) => void): void {
    let data = this.held.length === 0 ? Buffer.from(bytes) : Buffer.concat([this.held, bytes]);
    while (data.length >= HEADER_BYTES) {
      const length = data.readUIntBE(0, 3);
      if (length > FRAME_BYTES_MAX) throw new CodecError(`a frame of ${length} bytes`);
      if (data.length < HEADER_BYTES + length) break;
      const word = data.readUInt32BE(5);
      if (word > WINDOW_BYTES_MAX) throw new CodecError('the reserved bit of a frame header is set');
      const payload = data.subarray(HEADER_BYTES, HEADER_BYTES + length);
      const frame = { type: data[3]!, flags: data[4]!, streamId: word, payload };
      data = data.subarray(HEADER_BYTES + length);
      this.held = data;
      take(frame);
    }
    this.held = data;
  }

  /** Whether the last frame is complete. */
  get isBetween(): boolean {
    return this.held.length === 0;
  }
}

/** What a DATA or HEADERS frame carries once padding and priority are taken off. */
export function content(frame: Frame): Uint8Array {
  let { payload } = frame;
  let padding = 0;
  if ((frame.flags & Flags.PADDED) !== 0) {
    padding = payload[0] ?? 256;
    payload = payload.subarray(1);
  }
  if (frame.type === Type.HEADERS && (frame.flags & Flags.PRIORITY) !== 0) payload = payload.subarray(5);
  if (padding > payload.length) throw new CodecError('padding longer than its frame');
  return payload.subarray(0, payload.length - padding);
}

// -- header compression ---------------------------------------------------------------

/** The dynamic table (RFC 7541 §2.3.2), newest first. */
class DynamicTable {
  readonly entries: Field[] = [];
  bytesMax = TABLE_BYTES_DEFAULT;
  private bytes = 0;

  add(name: string, value: string): void {
    this.bytes += entryBytes(name, value);
    this.entries.unshift([name, value]);
    this.evict();
  }

  resize(bytesMax: number): void {
    this.bytesMax = bytesMax;
    this.evict();
  }

  /** Entry by index over both tables. */
  at(index: number): Field {
    const entry = index < STATIC_END ? staticEntries[index] : this.entries[index - STATIC_END];
    if (entry === undefined || index === 0) throw new CodecError(`index ${index} into a header table`);
    return [entry[0], entry[1]];
  }

  private evict(): void {
    while (this.bytes > this.bytesMax) {
      const [name, value] = this.entries.pop()!;
      this.bytes -= entryBytes(name, value);
    }
  }
}

function entryBytes(name: string, value: string): number {
  return name.length + value.length + 32;
}

/** Codes by symbol, and symbols by "length:code": the code is canonical. */
const huffmanCodes: string[] = [];
const huffmanSymbols = new Map<string, number>();
{
  const symbols = [...huffmanLengths.keys()].sort((a, b) => huffmanLengths[a]! - huffmanLengths[b]! || a - b);
  let code = 0;
  let bits = 0;
  for (const symbol of symbols) {
    code <<= huffmanLengths[symbol]! - bits;
    bits = huffmanLengths[symbol]!;
    const text = code.toString(2).padStart(bits, '0');
    huffmanCodes[symbol] = text;
    huffmanSymbols.set(text, symbol);
    code++;
  }
}

function huffmanText(bytes: Uint8Array): string {
  let out = '';
  let code = '';
  for (const byte of bytes) {
    for (let bit = 7; bit >= 0; bit--) {
      code += (byte >> bit) & 1 ? '1' : '0';
      const symbol = huffmanSymbols.get(code);
      if (symbol === undefined) continue;
      out += String.fromCharCode(symbol);
      code = '';
    }
  }
  if (code.length > 7 || code.includes('0')) throw new CodecError('bad padding of a Huffman string');
  return out;
}

function huffmanBytes(text: string): Uint8Array {
  let bits = '';
  for (let i = 0; i < text.length; i++) bits += huffmanCodes[text.charCodeAt(i)]!;
  bits += '1'.repeat((8 - (bits.length % 8)) % 8);
  return Uint8Array.from({ length: bits.length / 8 }, (_, i) => Number.parseInt(bits.slice(i * 8, i * 8 + 8), 2));
}

/** Reads header blocks (RFC 7541), and holds the sender to the table size that was agreed on. */
export class HeaderDecoder {
  private readonly table = new DynamicTable();
  private limit = TABLE_BYTES_DEFAULT;
  /** The next block must begin with a size update of at most this; undefined: none is due. */
  private due: number | undefined;
  private bytes: Uint8Array = new Uint8Array(0);
  private at = 0;

  /** SETTINGS_HEADER_TABLE_SIZE that the other side has acknowledged. */
  setLimit(bytes: number): void {
    this.limit = bytes;
    if (bytes < this.table.bytesMax) this.due = Math.min(bytes, this.due ?? bytes);
  }

  /** Fields of a block. Throws a CodecError at anything that is wrong. */
  decode(block: Uint8Array): Field[] {
    const fields: Field[] = [];
    const { table } = this;
    this.bytes = block;
    this.at = 0;
    while (this.at < block.length) {
      const first = block[this.at]!;
      if ((first & 0xe0) === 0x20) {
        const size = this.integer(5);
        if (fields.length > 0) throw new CodecError('a table size update after a field');
        if (size > this.limit) throw new CodecError(`a table of ${size} bytes where ${this.limit} are allowed`);
        if (this.due !== undefined && size <= this.due) this.due = undefined;
        table.resize(size);
        continue;
      }
      if (this.due !== undefined) throw new CodecError(`no table size update to ${this.due} or less`);
      if ((first & 0x80) !== 0) {
        fields.push(table.at(this.integer(7)));
        continue;
      }
      const indexing = (first & 0x40) !== 0;
      const index = this.integer(indexing ? 6 : 4);
      const name = index === 0 ? this.string() : table.at(index)[0];
      const value = this.string();
      if (indexing) table.add(name, value);
      fields.push([name, value]);
    }
    return fields;
  }

  private integer(prefix: number): number {
    const mask = (1 << prefix) - 1;
    let value = this.byte() & mask;
    if (value < mask) return value;
    for (let shift = 0; ; shift += 7) {
      const byte = this.byte();
      value += (byte & 0x7f) * 2 ** shift;
      if ((byte & 0x80) === 0) return value;
      if (shift > 28) throw new CodecError('an integer without end in a header block');
    }
  }

  private string(): string {
    const huffman = (this.bytes[this.at]! & 0x80) !== 0;
    const length = this.integer(7);
    const end = this.at + length;
    if (end > this.bytes.length) throw new CodecError('a string beyond the end of its header block');
    const bytes = this.bytes.subarray(this.at, end);
    this.at = end;
    return huffman ? huffmanText(bytes) : Buffer.from(bytes).toString('latin1');
  }

  private byte(): number {
    if (this.at >= this.bytes.length) throw new CodecError('a header block ends in the middle of a field');
    return this.bytes[this.at++]!;
  }
}

/** Writes header blocks in any of the ways that RFC 7541 leaves open. */
export class HeaderEncoder {
  private readonly table = new DynamicTable();
  private readonly random: Random;

  constructor(random: Random) {
    this.random = random;
  }

  /** The block for fields. Names that are not lower case are written as they are. */
  encode(fields: readonly Field[]): Uint8Array {
    const { random, table } = this;
    const parts: Uint8Array[] = [];
    if (random.chance(0.05)) {
      const size = random.pick([0, 100, 1000, TABLE_BYTES_DEFAULT]);
      table.resize(size);
      parts.push(integer(0x20, 5, size));
    }
    for (const [name, value] of fields) {
      const index = this.find((entry) => entry[0] === name && entry[1] === value);
      if (index > 0 && random.chance(0.8)) {
        parts.push(integer(0x80, 7, index));
        continue;
      }
      const nameIndex = random.chance(0.7) ? this.find((entry) => entry[0] === name) : 0;
      const form = random.pick(['indexing', 'plain', 'never'] as const);
      if (form === 'indexing') parts.push(integer(0x40, 6, nameIndex));
      else parts.push(integer(form === 'never' ? 0x10 : 0, 4, nameIndex));
      if (nameIndex === 0) parts.push(this.string(name));
      parts.push(this.string(value));
      if (form === 'indexing') table.add(name, value);
    }
    return Buffer.concat(parts);
  }

  private find(matches: (entry: readonly [string, string]) => boolean): number {
    const fixed = staticEntries.findIndex(matches);
    if (fixed > 0) return fixed;
    const own = this.table.entries.findIndex(matches);
    return own < 0 ? 0 : own + STATIC_END;
  }

  private string(text: string): Uint8Array {
    const huffman = text.length < 300 && this.random.chance(0.4);
    const bytes = huffman ? huffmanBytes(text) : Buffer.from(text, 'latin1');
    return Buffer.concat([integer(huffman ? 0x80 : 0, 7, bytes.length), bytes]);
  }
}

function integer(pattern: number, prefix: number, value: number): Uint8Array {
  const mask = (1 << prefix) - 1;
  if (value < mask) return Uint8Array.of(pattern | value);
  const out = [pattern | mask];
  let rest = value - mask;
  for (; rest >= 128; rest = Math.floor(rest / 128)) out.push((rest % 128) | 0x80);
  out.push(rest);
  return Uint8Array.from(out);
}
