// nghttp2's HPACK as a second opinion: the library inside Node, called directly.
//
// The node binary exports nghttp2's functions, as it does OpenSSL's, so that its deflater and inflater can be
// asked block by block, tables included, with no HTTP/2 session around them.

import koffi from 'koffi';

/** A field, bytes as Latin-1 characters. */
export interface SeenField {
  name: string;
  value: string;
  /** Never-indexed (RFC 7541 §6.2.3). */
  sensitive: boolean;
}

/** Entries in the static table, which nghttp2 counts with the dynamic ones. */
const STATIC_COUNT = 61;
const EMIT = 2;
const FINAL = 1;
const NO_INDEX = 1;
const OUTPUT_BYTES = 1 << 20;

const node = koffi.load(null);
const pairType = koffi.struct({
  name: 'void *',
  value: 'void *',
  nameLength: 'size_t',
  valueLength: 'size_t',
  flags: 'uint8_t',
});
const newDeflater = node.func('nghttp2_hd_deflate_new', 'int', [koffi.out(koffi.pointer('void *')), 'size_t']);
const deleteDeflater = node.func('nghttp2_hd_deflate_del', 'void', ['void *']);
const resizeDeflater = node.func('nghttp2_hd_deflate_change_table_size', 'int', ['void *', 'size_t']);
const deflate = node.func('nghttp2_hd_deflate_hd2', 'intptr_t', [
  'void *',
  'void *',
  'size_t',
  koffi.pointer(pairType),
  'size_t',
]);
const deflaterEntries = node.func('nghttp2_hd_deflate_get_num_table_entries', 'size_t', ['void *']);
const deflaterBytes = node.func('nghttp2_hd_deflate_get_dynamic_table_size', 'size_t', ['void *']);
const newInflater = node.func('nghttp2_hd_inflate_new', 'int', [koffi.out(koffi.pointer('void *'))]);
const deleteInflater = node.func('nghttp2_hd_inflate_del', 'void', ['void *']);
const resizeInflater = node.func('nghttp2_hd_inflate_change_table_size', 'int', ['void *', 'size_t']);
const inflate = node.func('nghttp2_hd_inflate_hd3', 'intptr_t', [
  'void *',
  koffi.out(koffi.pointer(pairType)),
  koffi.out(koffi.pointer('int')),
  'void *',
  'size_t',
  'int',
]);
const endHeaders = node.func('nghttp2_hd_inflate_end_headers', 'int', ['void *']);
const inflaterEntries = node.func('nghttp2_hd_inflate_get_num_table_entries', 'size_t', ['void *']);
const inflaterBytes = node.func('nghttp2_hd_inflate_get_dynamic_table_size', 'size_t', ['void *']);

function check(status: number): void {
  if (status !== 0) throw new Error(`nghttp2 says ${status}`);
}

function textAt(pointer: unknown, length: number): string {
  if (length === 0) return '';
  return Buffer.from(koffi.decode(pointer as object, 'uint8_t', length) as Uint8Array).toString('latin1');
}

/** nghttp2's encoder. `close` frees it. */
export class Deflater {
  private readonly handle: unknown;
  private readonly output = Buffer.alloc(OUTPUT_BYTES);

  constructor(tableBytesMax = 4096) {
    const handle: unknown[] = [null];
    check(newDeflater(handle, tableBytesMax));
    this.handle = handle[0];
  }

  /** Encodes a block. */
  encode(fields: readonly SeenField[]): Buffer {
    const pairs = fields.map((field) => {
      const name = Buffer.from(`${field.name}\0`, 'latin1');
      const value = Buffer.from(`${field.value}\0`, 'latin1');
      const flags = field.sensitive ? NO_INDEX : 0;
      return { name, value, nameLength: name.length - 1, valueLength: value.length - 1, flags };
    });
    const length = Number(deflate(this.handle, this.output, OUTPUT_BYTES, pairs, pairs.length));
    if (length < 0) throw new Error(`nghttp2 cannot encode: ${length}`);
    return Buffer.from(this.output.subarray(0, length));
  }

  resize(bytes: number): void {
    check(resizeDeflater(this.handle, bytes));
  }

  get tableCount(): number {
    return Number(deflaterEntries(this.handle)) - STATIC_COUNT;
  }

  get tableBytes(): number {
    return Number(deflaterBytes(this.handle));
  }

  close(): void {
    deleteDeflater(this.handle);
  }
}

/** nghttp2's decoder. `close` frees it. */
export class Inflater {
  private readonly handle: unknown;

  constructor() {
    const handle: unknown[] = [null];
    check(newInflater(handle));
    this.handle = handle[0];
  }

  /** Decodes a block; null if it is a compression error. */
  decode(block: Uint8Array): SeenField[] | null {
    const fields: SeenField[] = [];
    // A copy with an end of its own, so that reading too far is not reading the next block.
    let rest = Buffer.from(block);
    for (;;) {
      const pair: Record<string, unknown> = {};
      const flags = [0];
      const input = rest.length === 0 ? Buffer.alloc(1) : rest;
      const used = Number(inflate(this.handle, pair, flags, input, rest.length, 1));
      if (used < 0) return null;
      rest = rest.subarray(used);
      if (flags[0] & EMIT) {
        fields.push({
          name: textAt(pair.name, Number(pair.nameLength)),
          value: textAt(pair.value, Number(pair.valueLength)),
          sensitive: (Number(pair.flags) & NO_INDEX) !== 0,
        });
      }
      if (flags[0] & FINAL) {
        endHeaders(this.handle);
        return fields;
      }
      if (rest.length === 0 && (flags[0] & EMIT) === 0) return null;
    }
  }

  /** Our SETTINGS_HEADER_TABLE_SIZE, acknowledged. */
  resize(bytes: number): void {
    check(resizeInflater(this.handle, bytes));
  }

  get tableCount(): number {
    return Number(inflaterEntries(this.handle)) - STATIC_COUNT;
  }

  get tableBytes(): number {
    return Number(inflaterBytes(this.handle));
  }

  close(): void {
    deleteInflater(this.handle);
  }
}
