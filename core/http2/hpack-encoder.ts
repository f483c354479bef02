// Encodes header lists with HPACK, field by field, from memory into memory.
//
// What becomes of a field:
//   in the static table with its value      one byte
//   in the dynamic table                    one or two bytes
//   NEVER    authorization, short cookies, all fields of a head with another that arrived never-indexed: a
//            literal that no hop may index, so that nobody can guess secrets by sizes (RFC 7541 §7.1.3)
//   PLAIN    values that are (nearly) unique, such as paths, dates and lengths: a literal, table untouched
//   AT_ONCE  values that the whole connection shares, such as :authority and server: into the table
//   SECOND   all others: into the table when they are seen for the second time, so that values that come
//            once push out nothing. A connection to an upstream carries many clients' fields, so
//            this is the rule also for fields as steady as user-agent.
//
// One encoder per connection and direction; it owns only numbers until the first field that may be
// inserted. Our table has at most 4 KiB even if the peer allows more: it saves bytes up to there and
// memory per connection beyond. Strings are Huffman-coded when that is shorter.
// Owned by one worker. Hot module: no allocation per field once the table has grown.
// Spec: RFC 7541 §4.2 (size changes), §5 (integers, strings), §6 (representations), §7.1 (secrets).

import { HeaderId, headerNames } from '../http1/header-ids.ts';
import { wordView } from '../http1/word-view.ts';
import * as dynamicTable from './hpack-dynamic-table.ts';
import { idOfName, staticEntries, staticRecords, STATIC_COUNT as statics, staticView } from './hpack-static.ts';
import { huffmanEncode, huffmanEncodedLength } from './huffman.ts';
import { PSEUDO_FIRST, PseudoId, pseudoNames } from './pseudo-ids.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { ENTRY_OVERHEAD_BYTES } = dynamicTable;
const STATIC_COUNT = statics;
const STATIC_RECORD_WORDS = 3;

/** Largest table that an encoder uses, in bytes; also the protocol's default (RFC 9113 §6.5.2). */
const ENCODER_TABLE_BYTES_MAX = 4096;

/** Static table indices of the fields that requests nearly always have, for `putIndexed`. */
export const StaticIndex = {
  METHOD_GET: 2,
  METHOD_POST: 3,
  PATH_ROOT: 4,
  SCHEME_HTTP: 6,
  SCHEME_HTTPS: 7,
  STATUS_200: 8,
} as const;

/** What becomes of a field that is in no table; see the head of this file. From SECOND on it may be inserted. */
const Policy = { NEVER: 0, PLAIN: 1, COOKIE: 2, SECOND: 3, AT_ONCE: 4 } as const;
const { NEVER, COOKIE, PLAIN, SECOND, AT_ONCE } = Policy;

const neverNames = ['authorization', 'proxy-authorization'];
const cookieNames = ['cookie', 'set-cookie'];
const plainNames = [
  ':path',
  'age',
  'content-disposition',
  'content-length',
  'content-location',
  'content-range',
  'date',
  'etag',
  'expires',
  'forwarded',
  'if-match',
  'if-modified-since',
  'if-none-match',
  'if-range',
  'if-unmodified-since',
  'last-modified',
  'link',
  'location',
  'proxy-authenticate',
  'range',
  'referer',
  'retry-after',
  'traceparent',
  'www-authenticate',
  'x-forwarded-for',
  'x-request-id',
];
const atOnceNames = [':authority', ':method', ':protocol', ':scheme', ':status', 'content-type', 'server', 'te'];

/** Cookies below this length may be guessed byte by byte from sizes, were they in a table. */
const COOKIE_SECRET_BYTES = 20;

/** Whether fields with this known-header id and length are never-indexed whatever they came as. */
export function isNeverIndexed(id: number, valueLength: number): boolean {
  const { policy } = namesById[id];
  return policy === NEVER || (policy === COOKIE && valueLength < COOKIE_SECRET_BYTES);
}
/** Longer values are not worth a place in the table, nor the time to look for them. */
const TABLE_VALUE_BYTES_MAX = 512;
/** Entries of more than this part of the table would push out too much. */
const TABLE_SHARE = 2;
/** Shorter strings go as they are: coding saves a byte or two, and most of them are a Content-Length. */
const HUFFMAN_BYTES_MIN = 8;
/** Longer strings go as they are: coding costs more than it is worth, and a bound on it has to be. */
const HUFFMAN_BYTES_MAX = 2048;
/** Most strings fit their length into one byte, Huffman-coded or not. */
const ONE_BYTE_LENGTH_MAX = 126;

/** First bits of a representation (RFC 7541 §6) and what is left of the byte for an integer. */
const INDEXED = 0x80;
const WITH_INDEXING = 0x40;
const SIZE_UPDATE = 0x20;
const NEVER_INDEXED = 0x10;
const WITHOUT_INDEXING = 0x00;
const HUFFMAN = 0x80;

/** Words per record: offset, lengths, hash of name and value, hash of the name, older entries of the same slots. */
const RECORD_WORDS = 6;
/** Slots of the two indices over the table, by field and by name. */
const SLOT_MASK = 63;
const NAME_SLOTS = 64;
/** Hashes of the fields seen once most recently: a ring, since two that shared a slot would never get in. */
const ONCE_SLOTS = 128;
const ONCE_MASK = 31;
const INDEX_WORDS = ONCE_SLOTS + ONCE_MASK + 1;
/** Entries looked at per slot: what a peer can make us do by values whose hashes collide. */
const CHAIN_MAX = 16;
const SEQUENCE_MASK = 0x3fffffff;

const NO_INDEX = new Int32Array(0);

/** Texts up to this length are hashed whole; of longer ones the ends and the middle, as equality is checked anyway. */
const HASH_WHOLE_BYTES_MAX = 40;

/** Adds eight bytes to a hash. */
function hashEight(view: DataView, offset: number, hash: number): number {
  const low = view.getInt32(offset, true);
  const high = view.getInt32(offset + 4, true);
  hash = (Math.imul(hash ^ low, 0x9e3779b1) + Math.imul(high, 0x85ebca77)) | 0;
  return hash ^ (hash >>> 15);
}

/** Hash of a text, continuing `seed`. Not for secrets. */
function hashText(view: DataView, offset: number, length: number, seed: number): number {
  let hash = (seed ^ Math.imul(length, 0x27d4eb2f)) | 0;
  const end = (offset + length) | 0;
  if (length >= 8) {
    const lastEight = (end - 8) | 0;
    if (length <= HASH_WHOLE_BYTES_MAX) {
      for (let i = offset | 0; i < lastEight; i = (i + 8) | 0) hash = hashEight(view, i, hash);
    } else {
      hash = hashEight(view, offset, hash);
      hash = hashEight(view, offset + 8, hash);
      hash = hashEight(view, (offset + (length >> 1)) | 0, hash);
      hash = hashEight(view, lastEight - 8, hash);
    }
    return hashEight(view, lastEight, hash);
  }
  if (length >= 4) {
    hash = Math.imul(hash ^ view.getInt32(offset, true), 0x9e3779b1);
    hash = (Math.imul(hash ^ (hash >>> 15), 0x9e3779b1) + Math.imul(view.getInt32(end - 4, true), 0x85ebca77)) | 0;
  } else {
    for (let i = offset | 0; i < end; i = (i + 1) | 0) hash = Math.imul(hash ^ view.getUint8(i), 0x9e3779b1);
  }
  return hash ^ (hash >>> 15);
}

/** Whether two texts of one length are the same. */
function textsEqual(a: DataView, aOffset: number, b: DataView, bOffset: number, length: number): boolean {
  if (length < 4) {
    for (let i = 0; i < length; i = (i + 1) | 0) {
      if (a.getUint8(aOffset + i) !== b.getUint8(bOffset + i)) return false;
    }
    return true;
  }
  const last = (length - 4) | 0;
  for (let i = 0; i < last; i = (i + 4) | 0) {
    if (a.getInt32(aOffset + i, true) !== b.getInt32(bOffset + i, true)) return false;
  }
  return a.getInt32(aOffset + last, true) === b.getInt32(bOffset + last, true);
}

/** Copies exactly `length` bytes, to a range that does not overlap. */
function copyExactly(from: DataView, offset: number, to: DataView, at: number, length: number): void {
  const whole = length & ~3;
  for (let i = 0; i < whole; i = (i + 4) | 0) to.setInt32(at + i, from.getInt32(offset + i, true), true);
  for (let i = whole; i < length; i = (i + 1) | 0) to.setUint8(at + i, from.getUint8(offset + i));
}

/** Writes an integer whose first byte has `bits` above the prefix (RFC 7541 §5.1). `prefix` is 2^N - 1. */
function putInteger(view: DataView, at: number, bits: number, prefix: number, value: number): number {
  if (value < prefix) {
    view.setUint8(at, bits | value);
    return at + 1;
  }
  view.setUint8(at, bits | prefix);
  at = (at + 1) | 0;
  value = (value - prefix) | 0;
  while (value >= 0x80) {
    view.setUint8(at, (value & 0x7f) | 0x80);
    at = (at + 1) | 0;
    value >>>= 7;
  }
  view.setUint8(at, value);
  return at + 1;
}

/** Writes a string literal (RFC 7541 §5.2), Huffman-coded if that is shorter by more than it costs. */
function putString(view: DataView, at: number, source: DataView, offset: number, length: number): number {
  if (length < HUFFMAN_BYTES_MIN) {
    view.setUint8(at, length);
    for (let i = 0; i < length; i++) view.setUint8(at + 1 + i, source.getUint8(offset + i));
    return at + 1 + length;
  }
  if (length <= ONE_BYTE_LENGTH_MAX) {
    // Coding at once and giving up when it gets too long costs less than counting first.
    const end = huffmanEncode(source, offset, length, view, at + 1);
    if (end >= 0) {
      view.setUint8(at, HUFFMAN | (end - at - 1));
      return end;
    }
  } else if (length <= HUFFMAN_BYTES_MAX) {
    const encodedLength = huffmanEncodedLength(source, offset, length);
    if (encodedLength < length) {
      at = putInteger(view, at, HUFFMAN, 0x7f, encodedLength);
      return huffmanEncode(source, offset, length, view, at);
    }
  }
  at = putInteger(view, at, 0, 0x7f, length);
  copyExactly(source, offset, view, at, length);
  return at + length;
}

/** A view of the bytes of a text of Latin-1 characters. */
function viewOf(text: string): DataView {
  const view = new DataView(new ArrayBuffer(text.length));
  for (let i = 0; i < text.length; i++) view.setUint8(i, text.charCodeAt(i));
  return view;
}

/** A field name prepared at load. Lower case; with its colon if it is a pseudo-header field. */
export class HpackName {
  readonly view: DataView;
  readonly length: number;
  readonly hash: number;
  /** First entry of the static table with this name, or 0. */
  readonly staticIndex: number;
  /** Number of entries from there on that have a value. */
  readonly staticValues: number;
  /** A Policy. */
  readonly policy: number;

  constructor(name: string) {
    this.view = viewOf(name);
    this.length = name.length;
    this.hash = hashText(this.view, 0, name.length, 0);
    this.staticIndex = Math.max(0, name === '' ? 0 : staticEntries.findIndex((entry) => entry[0] === name));
    this.staticValues = name === '' ? 0 : staticEntries.filter((entry) => entry[0] === name && entry[1] !== '').length;
    this.policy = neverNames.includes(name)
      ? NEVER
      : cookieNames.includes(name)
        ? COOKIE
        : plainNames.includes(name)
          ? PLAIN
          : atOnceNames.includes(name)
            ? AT_ONCE
            : SECOND;
  }
}

/** A whole field prepared at load, for `putConstant`. Name and value are valid; the value is Latin-1. */
export class HpackConstant {
  readonly name: HpackName;
  readonly view: DataView;
  readonly length: number;

  constructor(name: string, value: string) {
    this.name = new HpackName(name);
    this.view = viewOf(value);
    this.length = value.length;
  }
}

/** Stands for all names that are in no list; only its policy is used. */
const otherName = new HpackName('');

/** By known-header or pseudo-header id. */
const namesById: HpackName[] = [];
for (let id = 0; id < PSEUDO_FIRST + pseudoNames.length; id++) {
  const text = id < headerNames.length ? headerNames[id] : pseudoNames[id - PSEUDO_FIRST];
  namesById.push(text === undefined || text === '' ? otherName : new HpackName(text));
}

/** Names of the static table and of `plainNames` that have no id, by hash: open addressing. */
const NAME_TABLE_MASK = 127;
const nameTable: HpackName[] = new Array(NAME_TABLE_MASK + 1).fill(otherName);
for (const text of new Set([...staticEntries.slice(1).map((entry) => entry[0]), ...plainNames, ...atOnceNames])) {
  if (idOfName(text) !== HeaderId.OTHER) continue;
  const name = new HpackName(text);
  let slot = name.hash & NAME_TABLE_MASK;
  while (nameTable[slot] !== otherName) slot = (slot + 1) & NAME_TABLE_MASK;
  nameTable[slot] = name;
}

/** The prepared name with this text, or `otherName`. */
function preparedName(view: DataView, offset: number, length: number, hash: number): HpackName {
  for (let slot = hash & NAME_TABLE_MASK; ; slot = (slot + 1) & NAME_TABLE_MASK) {
    const name = nameTable[slot];
    if (name === otherName) return otherName;
    if (name.hash === hash && name.length === length && textsEqual(name.view, 0, view, offset, length)) return name;
  }
}

/** Index of the static entry with one of the values that `name` has there, or 0. */
function staticMatch(name: HpackName, view: DataView, offset: number, length: number): number {
  const end = (name.staticIndex + name.staticValues) | 0;
  for (let index = name.staticIndex; index < end; index = (index + 1) | 0) {
    const record = index * STATIC_RECORD_WORDS;
    const lengths = staticRecords[record + 1];
    if ((lengths & 0xffff) !== length) continue;
    // The text is the line `name: value`.
    const value = (staticRecords[record] + (lengths >>> 16) + 2) | 0;
    if (textsEqual(staticView, value, view, offset, length)) return index;
  }
  return 0;
}

/** :status fields that have been sent by this thread, by status; made when first needed. */
const statusConstants: (HpackConstant | undefined)[] = new Array(1000).fill(undefined);
const statusIndices = new Uint8Array(1000);
for (let index = 1; index <= STATIC_COUNT; index++) {
  const [name, value] = staticEntries[index];
  if (name === pseudoNames[PseudoId.STATUS - PSEUDO_FIRST]) statusIndices[Number(value)] = index;
}

/**
 * Most bytes that a block of `fieldCount` fields with `textBytes` bytes of names and values takes, size
 * updates and bytes that are written beyond its end included.
 */
export function hpackBytesMax(fieldCount: number, textBytes: number): number {
  return 16 + fieldCount * 13 + textBytes;
}

/** The sending half of one connection's header compression. */
export class HpackEncoder {
  private readonly table: dynamicTable.DynamicTable;
  /** Newest sequence numbers per slot by field and by name, then hashes of fields seen once. */
  private index: Int32Array = NO_INDEX;
  /** Place of the next hash in the ring of fields seen once. */
  private onceNext = 0;
  /** Size that the peer will know after the next `begin`. */
  private sizeTarget: number;
  /** Smallest size since the last `begin`, which has to be signalled too; -1 if the size has not changed. */
  private sizeLowest = -1;

  /** `tableBytesMax`: largest table to use, in bytes, at most ENCODER_TABLE_BYTES_MAX; 0 for none. */
  constructor(tableBytesMax: number = ENCODER_TABLE_BYTES_MAX) {
    const limit = Math.max(0, Math.min(tableBytesMax, ENCODER_TABLE_BYTES_MAX));
    this.table = new dynamicTable.DynamicTable(limit, RECORD_WORDS, 0);
    this.sizeTarget = limit;
    // The peer assumes the default until it is told otherwise (RFC 7541 §4.2).
    if (limit !== ENCODER_TABLE_BYTES_MAX) this.sizeLowest = limit;
  }

  /** The peer's SETTINGS_HEADER_TABLE_SIZE, in bytes; to be called when it arrives. Takes effect with the next `begin`. */
  setTableSizeMax(bytes: number): void {
    const size = Math.min(bytes, this.table.limitBytes);
    if (size === this.sizeTarget) return;
    this.sizeTarget = size;
    if (this.sizeLowest < 0 || size < this.sizeLowest) this.sizeLowest = size;
  }

  /** Entries in the dynamic table. */
  get tableCount(): number {
    return this.table.count;
  }

  /** Size of the dynamic table (RFC 7541 §4.1). */
  get tableBytes(): number {
    return this.table.size;
  }

  /** Bytes of the buffers that the encoder owns: 0 before the first field that may be inserted. */
  get ownedBytes(): number {
    return this.table.ownedBytes + this.index.byteLength;
  }

  /**
   * Starts a header block at `at`: tells the peer about a changed table size. Returns the offset for the first field.
   * Every `put` function likewise returns the offset after what it wrote, and may write up to 3 bytes more.
   * The caller has left `hpackBytesMax` bytes; source ranges and output do not overlap.
   */
  begin(memory: Uint8Array, at: number): number {
    if (this.sizeLowest < 0) return at;
    const view = wordView(memory);
    const { sizeLowest, sizeTarget } = this;
    this.sizeLowest = -1;
    if (sizeLowest < sizeTarget) {
      at = putInteger(view, at, SIZE_UPDATE, 0x1f, sizeLowest);
      this.table.resize(sizeLowest);
    }
    this.table.resize(sizeTarget);
    return putInteger(view, at, SIZE_UPDATE, 0x1f, sizeTarget);
  }

  /** Writes an entry of the static table (see `StaticIndex`) as a whole field. */
  putIndexed(memory: Uint8Array, at: number, staticIndex: number): number {
    memory[at] = INDEXED | staticIndex;
    return at + 1;
  }

  /** Writes `:status`, 100 to 999. */
  putStatus(memory: Uint8Array, at: number, status: number): number {
    const index = statusIndices[status];
    if (index !== 0) return this.putIndexed(memory, at, index);
    let constant = statusConstants[status];
    if (constant === undefined) {
      constant = new HpackConstant(':status', String(status));
      statusConstants[status] = constant;
    }
    return this.putConstant(memory, at, constant);
  }

  /** Writes a field that was prepared at load. */
  putConstant(memory: Uint8Array, at: number, field: HpackConstant): number {
    const { name } = field;
    return this.put(
      wordView(memory),
      at,
      name,
      name.view,
      0,
      name.length,
      name.hash,
      name.policy,
      field.view,
      0,
      field.length,
    );
  }

  /** Writes a field whose name was prepared at load and whose value is in memory. */
  putNamed(
    memory: Uint8Array,
    at: number,
    name: HpackName,
    valueOffset: number,
    valueLength: number,
    sensitive: boolean,
  ): number {
    const view = wordView(memory);
    const policy = sensitive ? NEVER : name.policy;
    return this.put(view, at, name, name.view, 0, name.length, name.hash, policy, view, valueOffset, valueLength);
  }

  /**
   * Writes a field. The name is lower case, name and value are valid. `id` is the known-header or
   * pseudo-header id; if it is not 0, the name is not read. `sensitive`: the field arrived never-indexed,
   * or is to be (RFC 7541 §7.1.3).
   */
  putField(
    memory: Uint8Array,
    at: number,
    nameOffset: number,
    nameLength: number,
    valueOffset: number,
    valueLength: number,
    id: number,
    sensitive: boolean,
  ): number {
    const view = wordView(memory);
    let name = namesById[id];
    let nameView = name.view;
    let hash = name.hash;
    if (id === 0) {
      hash = hashText(view, nameOffset, nameLength, 0);
      name = preparedName(view, nameOffset, nameLength, hash);
      nameView = view;
    } else {
      nameOffset = 0;
      nameLength = name.length;
    }
    const policy = sensitive ? NEVER : name.policy;
    return this.put(view, at, name, nameView, nameOffset, nameLength, hash, policy, view, valueOffset, valueLength);
  }

  /** Writes a field with name and value in any two views. `name` gives its place in the static table. */
  private put(
    view: DataView,
    at: number,
    name: HpackName,
    nameView: DataView,
    nameOffset: number,
    nameLength: number,
    nameHash: number,
    policy: number,
    valueView: DataView,
    valueOffset: number,
    valueLength: number,
  ): number {
    const { table } = this;
    let bits: number = WITHOUT_INDEXING;
    if (policy === NEVER) bits = NEVER_INDEXED;
    else if (policy === COOKIE) bits = valueLength < COOKIE_SECRET_BYTES ? NEVER_INDEXED : WITHOUT_INDEXING;
    else {
      if (name.staticValues !== 0) {
        const index = staticMatch(name, valueView, valueOffset, valueLength);
        if (index !== 0) {
          view.setUint8(at, INDEXED | index);
          return at + 1;
        }
      }
      if (policy >= SECOND && valueLength <= TABLE_VALUE_BYTES_MAX) {
        const size = (nameLength + valueLength + ENTRY_OVERHEAD_BYTES) | 0;
        if (size * TABLE_SHARE <= table.sizeMax) {
          const hash = hashText(valueView, valueOffset, valueLength, nameHash);
          const age = this.find(hash, nameView, nameOffset, nameLength, valueView, valueOffset, valueLength);
          if (age >= 0) return putInteger(view, at, INDEXED, 0x7f, STATIC_COUNT + 1 + age);
          if (this.isToBeInserted(hash, policy)) {
            // The name's index counts before the insertion and what it evicts.
            at = this.putName(view, at, WITH_INDEXING, 0x3f, name, nameView, nameOffset, nameLength, nameHash);
            this.insert(hash, nameHash, nameView, nameOffset, nameLength, valueView, valueOffset, valueLength);
            return putString(view, at, valueView, valueOffset, valueLength);
          }
        }
      }
    }
    at = this.putName(view, at, bits, 0x0f, name, nameView, nameOffset, nameLength, nameHash);
    return putString(view, at, valueView, valueOffset, valueLength);
  }

  /** Writes the first part of a literal field: the index of its name, or 0 and the name. */
  private putName(
    view: DataView,
    at: number,
    bits: number,
    prefix: number,
    name: HpackName,
    nameView: DataView,
    nameOffset: number,
    nameLength: number,
    nameHash: number,
  ): number {
    if (name.staticIndex !== 0) return putInteger(view, at, bits, prefix, name.staticIndex);
    const age = this.findName(nameHash, nameView, nameOffset, nameLength);
    if (age >= 0) return putInteger(view, at, bits, prefix, STATIC_COUNT + 1 + age);
    view.setUint8(at, bits);
    return putString(view, at + 1, nameView, nameOffset, nameLength);
  }

  /** Age of the entry with this name and value, or -1. */
  private find(
    hash: number,
    nameView: DataView,
    nameOffset: number,
    nameLength: number,
    valueView: DataView,
    valueOffset: number,
    valueLength: number,
  ): number {
    const { table } = this;
    const { count, newest, records } = table;
    if (count === 0) return -1;
    const lengths = (nameLength << 16) | valueLength;
    let sequence = this.index[hash & SLOT_MASK];
    for (let step = 0; step < CHAIN_MAX; step++) {
      const age = (newest - sequence) & SEQUENCE_MASK;
      if (age >= count) return -1;
      const record = table.record(age);
      if (records[record + 2] === hash && records[record + 1] === lengths) {
        const text = records[record];
        if (
          textsEqual(table.view, text, nameView, nameOffset, nameLength) &&
          textsEqual(table.view, text + nameLength, valueView, valueOffset, valueLength)
        ) {
          return age;
        }
      }
      sequence = records[record + 4];
    }
    return -1;
  }

  /** Age of the newest entry with this name, or -1. */
  private findName(nameHash: number, nameView: DataView, nameOffset: number, nameLength: number): number {
    const { table } = this;
    const { count, newest, records } = table;
    if (count === 0) return -1;
    let sequence = this.index[NAME_SLOTS + (nameHash & SLOT_MASK)];
    for (let step = 0; step < CHAIN_MAX; step++) {
      const age = (newest - sequence) & SEQUENCE_MASK;
      if (age >= count) return -1;
      const record = table.record(age);
      if (
        records[record + 3] === nameHash &&
        records[record + 1] >>> 16 === nameLength &&
        textsEqual(table.view, records[record], nameView, nameOffset, nameLength)
      ) {
        return age;
      }
      sequence = records[record + 5];
    }
    return -1;
  }

  /** Whether a field that is not in the table enters it now. Remembers fields seen for the first time. */
  private isToBeInserted(hash: number, policy: number): boolean {
    if (this.index.length === 0) this.index = new Int32Array(INDEX_WORDS);
    if (policy === AT_ONCE) return true;
    const { index } = this;
    for (let slot = ONCE_SLOTS; slot < INDEX_WORDS; slot++) {
      if (index[slot] === hash) return true;
    }
    index[ONCE_SLOTS + this.onceNext] = hash;
    this.onceNext = (this.onceNext + 1) & ONCE_MASK;
    return false;
  }

  /** Inserts a field, which fits. */
  private insert(
    hash: number,
    nameHash: number,
    nameView: DataView,
    nameOffset: number,
    nameLength: number,
    valueView: DataView,
    valueOffset: number,
    valueLength: number,
  ): void {
    const { table, index } = this;
    const record = table.insert(nameLength, valueLength);
    const { records, view, newest } = table;
    const text = records[record];
    copyExactly(nameView, nameOffset, view, text, nameLength);
    copyExactly(valueView, valueOffset, view, text + nameLength, valueLength);
    records[record + 2] = hash;
    records[record + 3] = nameHash;
    const slot = hash & SLOT_MASK;
    records[record + 4] = index[slot];
    index[slot] = newest;
    const nameSlot = NAME_SLOTS + (nameHash & SLOT_MASK);
    records[record + 5] = index[nameSlot];
    index[nameSlot] = newest;
  }
}
