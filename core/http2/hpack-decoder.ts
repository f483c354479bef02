// Decodes HPACK header blocks into text that looks like HTTP/1 field lines, and a header table over it.
//
//   block  82 84 41 8a ...   ->   memory  ":method: GET\r\n:path: /\r\n:authority: a.example\r\n"
//                                 table   (name offset, name length, value offset, value length, id) per field
//
// One decoder per connection; it owns nothing but numbers until the peer inserts into the dynamic
// table. Entries are kept as finished lines with their id and what is wrong with them, so that a
// reference to one costs the copy of its line. What a block says beyond its fields is in properties,
// valid until the next call.
// A block that is too large still has to be decoded, since later blocks build on the table: `follow` does
// that without output, at a cost bounded by the block's length.
// Owned by one worker. Hot module: no allocation per block once the table has grown.
// Spec: RFC 7541 (HPACK), RFC 9113 §8.2 (fields), §8.3 (pseudo-header fields), §10.5.1 (limits).

import * as chars from '../http1/chars.ts';
import { knownHeaderId } from '../http1/header-hash.ts';
import * as headerTable from '../http1/header-table.ts';
import { wordView } from '../http1/word-view.ts';
import * as dynamicTable from './hpack-dynamic-table.ts';
import { isNeverIndexed } from './hpack-encoder.ts';
import * as errors from './hpack-errors.ts';
import * as staticTable from './hpack-static.ts';
import { huffmanDecode, huffmanDecodedBytesMax, huffmanDecodedLength } from './huffman.ts';
import * as pseudo from './pseudo-ids.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { CR, COLON, HTAB, LF, SP } = chars.Byte;
const { fieldByte, tokenByte } = chars;
const { FIELD_WORDS, HEADER_COUNT_CAPACITY } = headerTable;
const { ENTRY_OVERHEAD_BYTES } = dynamicTable;
const { STATIC_COUNT, RECORD_WORDS, staticRecords, staticView } = staticTable;
const { PSEUDO_FIRST, pseudoId } = pseudo;
const {
  NAME_EMPTY,
  NAME_INVALID,
  NAME_UPPER_CASE,
  PSEUDO_AFTER_REGULAR,
  PSEUDO_DUPLICATE,
  PSEUDO_UNKNOWN,
  VALUE_INVALID,
  VALUE_WHITE_SPACE,
} = errors.Malformed;
const INDEX_INVALID = -errors.HpackError.INDEX_INVALID;
const TRUNCATED = -errors.HpackError.TRUNCATED;
const INTEGER_OVERFLOW = -errors.HpackError.INTEGER_OVERFLOW;
const HUFFMAN_EOS = -errors.HpackError.HUFFMAN_EOS;
const HUFFMAN_PADDING = -errors.HpackError.HUFFMAN_PADDING;
const SIZE_UPDATE_TOO_LARGE = -errors.HpackError.SIZE_UPDATE_TOO_LARGE;
const SIZE_UPDATE_MISPLACED = -errors.HpackError.SIZE_UPDATE_MISPLACED;
const SIZE_UPDATE_MISSING = -errors.HpackError.SIZE_UPDATE_MISSING;
const TABLE_FLOODED = -errors.HpackError.TABLE_FLOODED;

/** SETTINGS_HEADER_TABLE_SIZE until it is changed (RFC 9113 §6.5.2). */
export const TABLE_BYTES_DEFAULT = 4096;

/** Bytes at the end of the output range that lines never use: texts are written eight bytes at a time. */
export const OUTPUT_SPARE_BYTES = 8;

/** ": " and CR LF around a field. */
const LINE_OVERHEAD_BYTES = 4;
const LINE_END_BYTES = 2;
const COLON_SP = COLON | (SP << 8);
const CR_LF = CR | (LF << 8);

/** First bits of a representation (RFC 7541 §6). */
const INDEXED = 0x80;
const WITH_INDEXING = 0x40;
const SIZE_UPDATE = 0x20;
const NEVER_INDEXED = 0x10;
const HUFFMAN = 0x80;

/**
 * Word 2 of a record: bits 0-7 the field's id, 8-15 what is wrong with the name, 16-23 with the value
 * (Malformed numbers).
 */
const NAME_FAULT_SHIFT = 8;
const VALUE_FAULT_SHIFT = 16;
const NAME_TAG_MASK = 0xffff;
/** Id of an entry inserted by `follow`, which has no view to compute it with: done when it is used. */
const ID_UNRESOLVED = 255;

/** Continuation bytes of an integer: values up to 2^28 + 126, far above every limit (RFC 7541 §5.1). */
const CONTINUATION_BYTES_MAX = 4;

/**
 * What `follow` may write into the table per byte of the block, plus twice the table. Repeating
 * names of common length stays below; repeating the name of an entry that fills the table does not.
 */
const FOLLOW_COPY_FACTOR = 64;

/** Name bytes: 0 not allowed, 1 allowed, 2 upper case. RFC 9113 §8.2.1 allows more; HTTP/1 upstreams would not. */
const nameByte: Uint8Array = tokenByte.map((allowed, byte) => (byte >= 0x41 && byte <= 0x5a ? 2 : allowed));

/** Which fields of the last block were never-indexed, by position. One per thread, as the header table is. */
const sensitiveWords = new Int32Array(HEADER_COUNT_CAPACITY >> 5);
let sensitiveAny = false;

/** Where `follow` puts entries together; grows to the largest table limit of the thread's decoders. */
let scratch = new Uint8Array(0);
let scratchView = new DataView(scratch.buffer);

/** Marks bytes that may not stand in a value: below 0x20, or 0x7f, and sometimes one above such a byte. */
function stopMarks(word: number): number {
  return ((word - 0x20202020) | (word + 0x01010101)) & ~word & 0x80808080;
}

/** What is wrong with the name at [offset, offset + length): a Malformed number in its place in a tag, or 0. */
function nameFault(memory: Uint8Array, offset: number, length: number): number {
  if (length === 0) return NAME_EMPTY << NAME_FAULT_SHIFT;
  const end = (offset + length) | 0;
  let i = offset | 0;
  const isPseudo = memory[i] === COLON;
  if (isPseudo) i = (i + 1) | 0;
  for (; i < end; i = (i + 1) | 0) {
    const kind = nameByte[memory[i]];
    if (kind !== 1) return (kind === 2 ? NAME_UPPER_CASE : NAME_INVALID) << NAME_FAULT_SHIFT;
  }
  return isPseudo && pseudoId(memory, offset, length) === 0 ? PSEUDO_UNKNOWN << NAME_FAULT_SHIFT : 0;
}

/** What is wrong with the value at [offset, offset + length): a Malformed number in its place in a tag, or 0. */
function valueFault(memory: Uint8Array, view: DataView, offset: number, length: number): number {
  if (length === 0) return 0;
  const end = (offset + length) | 0;
  const first = memory[offset];
  const last = memory[end - 1];
  let marks = 0;
  if (length >= 4) {
    const lastWord = (end - 4) | 0;
    for (let i = offset | 0; i < lastWord; i = (i + 4) | 0) marks |= stopMarks(view.getInt32(i, true));
    marks |= stopMarks(view.getInt32(lastWord, true));
  } else marks = 1;
  if (marks !== 0) {
    // A control byte, or a tab, which may be there, or the byte above one.
    for (let i = offset | 0; i < end; i = (i + 1) | 0) {
      if (fieldByte[memory[i]] === 0) return VALUE_INVALID << VALUE_FAULT_SHIFT;
    }
  }
  return first === SP || first === HTAB || last === SP || last === HTAB ? VALUE_WHITE_SPACE << VALUE_FAULT_SHIFT : 0;
}

/** Copies `length` bytes, and up to seven more, to a range that does not overlap. */
function copyWords(from: DataView, offset: number, to: DataView, at: number, length: number): void {
  for (let i = 0; i < length; i = (i + 8) | 0) {
    to.setInt32(at + i, from.getInt32(offset + i, true), true);
    to.setInt32(at + i + 4, from.getInt32(offset + i + 4, true), true);
  }
}

/** Copies exactly `length` bytes, to a range that does not overlap. */
function copyExactly(from: DataView, offset: number, to: DataView, at: number, length: number): void {
  const whole = length & ~3;
  for (let i = 0; i < whole; i = (i + 4) | 0) to.setInt32(at + i, from.getInt32(offset + i, true), true);
  for (let i = whole; i < length; i = (i + 1) | 0) to.setUint8(at + i, from.getUint8(offset + i));
}

/** Whether field `field` of the block decoded last on this thread must stay never-indexed (RFC 7541 §6.2.3). */
export function isSensitive(field: number): boolean {
  return ((sensitiveWords[field >> 5] >> (field & 31)) & 1) !== 0;
}

/** The receiving half of one connection's header compression. */
export class HpackDecoder {
  /** Limit on a header list: names + values + 32 per field (RFC 9113 §10.5.1), in bytes. */
  listBytesMax: number;

  /** After `decode`: bytes of text written. */
  outLength = 0;
  /** After `decode`: known fields present, bit `id` for ids 1 to 31, as in FieldBits. */
  seen = 0;
  /** After `decode`: known fields present more than once. */
  repeated = 0;
  /** After `decode`: pseudo-header fields present, bit `id - PSEUDO_FIRST`. */
  pseudoSeen = 0;
  /** After `decode`: number of pseudo-header fields; they come first in the table. */
  pseudoCount = 0;
  /** After `decode`: number of never-indexed fields; `isSensitive` says which. */
  sensitiveCount = 0;
  /**
   * After `decode`: a field is never-indexed that our own encoder would not send so by itself. Heads are kept as text,
   * which cannot say which one, so all of such a head go on never-indexed (RFC 7541 §6.2.3).
   */
  secret = false;
  /**
   * After `decode`: the first rule of RFC 9113 §8.2, §8.3 that a field broke (a Malformed number), or 0.
   * Fields that break one are left out of text and table, so that no byte of them can get further.
   */
  malformed = 0;
  /** After `decode`: the list passed `listBytesMax`, the output range or `countMax`; the fields are its start. */
  tooLarge = false;

  private readonly table: dynamicTable.DynamicTable;
  /** Limit on size updates: the SETTINGS_HEADER_TABLE_SIZE that the peer has acknowledged. */
  private sizeLimit: number;
  /** Size that the next block's first update may have at most, and has to be there; or -1 (RFC 7541 §4.2). */
  private requiredSize = -1;
  /** Offset behind the integer that `readInteger` read. */
  private next = 0;

  /**
   * `tableBytesLimit`: the largest SETTINGS_HEADER_TABLE_SIZE that this side announces on the
   * connection, 0 to 65,535 (RangeError). The table may have TABLE_BYTES_DEFAULT bytes until the peer
   * acknowledges another size, so a smaller limit has to be set with `setSizeLimit` then, and counts as 4,096 here.
   * `listBytesMax`: limit on a header list, see there.
   */
  constructor(tableBytesLimit: number, listBytesMax: number) {
    const limit = Math.max(tableBytesLimit, TABLE_BYTES_DEFAULT);
    this.table = new dynamicTable.DynamicTable(limit, RECORD_WORDS, LINE_OVERHEAD_BYTES);
    this.table.sizeMax = TABLE_BYTES_DEFAULT;
    this.sizeLimit = TABLE_BYTES_DEFAULT;
    this.listBytesMax = listBytesMax;
  }

  /**
   * Our SETTINGS_HEADER_TABLE_SIZE, in bytes, to be called when the peer acknowledges it (RFC 9113 §6.5.3).
   * If it is below the table's size, the next block has to start with a size update. RangeError above the
   * constructor's limit.
   */
  setSizeLimit(bytes: number): void {
    if (!(bytes >= 0 && bytes <= this.table.limitBytes)) {
      throw new RangeError(`a header table of ${bytes} bytes; this one has at most ${this.table.limitBytes}`);
    }
    this.sizeLimit = bytes;
    if (bytes < this.table.sizeMax && (this.requiredSize < 0 || bytes < this.requiredSize)) this.requiredSize = bytes;
  }

  /** Entries in the dynamic table. */
  get tableCount(): number {
    return this.table.count;
  }

  /** Size of the dynamic table (RFC 7541 §4.1). */
  get tableBytes(): number {
    return this.table.size;
  }

  /** Bytes of the buffers that the dynamic table owns: 0 before the first insertion. */
  get ownedBytes(): number {
    return this.table.ownedBytes;
  }

  /**
   * Decodes one complete header block (CONTINUATION frames joined) at [offset, offset + length).
   *
   * Lines go to [outOffset, outOffset + outBytesMax), less OUTPUT_SPARE_BYTES, in the same memory; the
   * ranges must not overlap. `headers` receives their positions, at most `countMax` of them.
   * Returns 0, or a negated HpackError: then the connection is to be closed with COMPRESSION_ERROR and
   * the decoder not to be used again.
   */
  decode(
    memory: Uint8Array,
    offset: number,
    length: number,
    outOffset: number,
    outBytesMax: number,
    headers: headerTable.HeaderTable,
    countMax: number,
  ): number {
    const view = wordView(memory);
    const { table, listBytesMax } = this;
    const words = headers.words;
    const wordsMax = (countMax > HEADER_COUNT_CAPACITY ? HEADER_COUNT_CAPACITY : countMax | 0) * FIELD_WORDS;
    const end = (offset + length) | 0;
    const outEnd = (outOffset + outBytesMax - OUTPUT_SPARE_BYTES) | 0;
    let out = outOffset | 0;
    let word = 0;
    let listBytes = 0;
    let seen = 0;
    let repeated = 0;
    let pseudoSeen = 0;
    let pseudoCount = 0;
    let malformed = 0;
    let started = false;
    let result = 0;
    if (sensitiveAny) {
      sensitiveWords.fill(0);
      sensitiveAny = false;
    }
    this.sensitiveCount = 0;
    this.secret = false;
    this.tooLarge = false;

    let i = offset | 0;
    while (i < end) {
      const fieldStart = i;
      const byte = memory[i];
      i = (i + 1) | 0;
      const mask = byte >= INDEXED ? 0x7f : byte >= WITH_INDEXING ? 0x3f : byte >= SIZE_UPDATE ? 0x1f : 0x0f;
      let index = byte & mask;
      if (index === mask) {
        index = this.readInteger(memory, i, end, mask);
        if (index < 0) {
          result = index;
          break;
        }
        i = this.next;
      }
      if (mask === 0x1f) {
        result = started ? SIZE_UPDATE_MISPLACED : this.updateSize(index);
        if (result < 0) break;
        continue;
      }
      if (!started) {
        if (this.requiredSize >= 0) break;
        started = true;
      }

      // The entry that the whole field, or its name, comes from.
      let records = staticRecords;
      let record = (index * RECORD_WORDS) | 0;
      let source = staticView;
      if (index > STATIC_COUNT) {
        const age = (index - STATIC_COUNT - 1) | 0;
        if (age >= table.count) {
          result = INDEX_INVALID;
          break;
        }
        records = table.records;
        record = table.record(age);
        source = table.view;
      }

      let nameLength = 0;
      let valueLength = 0;
      let tag = 0;
      if (mask === 0x7f) {
        if (index === 0) {
          result = INDEX_INVALID;
          break;
        }
        const lengths = records[record + 1];
        nameLength = lengths >>> 16;
        valueLength = lengths & 0xffff;
        tag = records[record + 2];
        const lineBytes = (nameLength + valueLength + LINE_OVERHEAD_BYTES) | 0;
        if (out + lineBytes > outEnd) {
          i = fieldStart;
          this.tooLarge = true;
          break;
        }
        copyWords(source, records[record], view, out, lineBytes);
        if ((tag & 0xff) === ID_UNRESOLVED) {
          tag = (tag & ~0xff) | knownHeaderId(memory, out, nameLength);
          records[record + 2] = tag;
        }
      } else {
        if (index !== 0) {
          nameLength = records[record + 1] >>> 16;
          tag = records[record + 2] & NAME_TAG_MASK;
          if (out + nameLength + LINE_OVERHEAD_BYTES > outEnd) {
            i = fieldStart;
            this.tooLarge = true;
            break;
          }
          copyWords(source, records[record], view, out, nameLength + 2);
          if ((tag & 0xff) === ID_UNRESOLVED) tag = (tag & ~0xff) | knownHeaderId(memory, out, nameLength);
        } else {
          const nameEnd = this.readString(memory, view, i, end, out, outEnd - LINE_OVERHEAD_BYTES);
          if (nameEnd < 0) {
            result = nameEnd;
            break;
          }
          if (nameEnd === 0) {
            i = fieldStart;
            this.tooLarge = true;
            break;
          }
          i = this.next;
          nameLength = (nameEnd - out) | 0;
          tag = nameFault(memory, out, nameLength);
          if (tag === 0) {
            tag = memory[out] === COLON ? pseudoId(memory, out, nameLength) : knownHeaderId(memory, out, nameLength);
          }
        }
        const valueStart = (out + nameLength + 2) | 0;
        const valueEnd = this.readString(memory, view, i, end, valueStart, outEnd - LINE_END_BYTES);
        if (valueEnd < 0) {
          result = valueEnd;
          break;
        }
        if (valueEnd === 0) {
          i = fieldStart;
          this.tooLarge = true;
          break;
        }
        i = this.next;
        valueLength = (valueEnd - valueStart) | 0;
        tag |= valueFault(memory, view, valueStart, valueLength);
        view.setInt16(valueStart - 2, COLON_SP, true);
        view.setInt16(valueEnd, CR_LF, true);
      }

      const fieldBytes = (nameLength + valueLength + ENTRY_OVERHEAD_BYTES) | 0;
      const id = tag & 0xff;
      let fault = tag >> NAME_FAULT_SHIFT;
      if (fault !== 0) fault = (fault & 0xff) !== 0 ? fault & 0xff : fault >> 8;
      else if (id >= PSEUDO_FIRST) {
        if (pseudoCount * FIELD_WORDS !== word) fault = PSEUDO_AFTER_REGULAR;
        else if ((pseudoSeen & (1 << (id - PSEUDO_FIRST))) !== 0) fault = PSEUDO_DUPLICATE;
      }
      if (listBytes + fieldBytes > listBytesMax || (fault === 0 && word >= wordsMax)) {
        i = fieldStart;
        this.tooLarge = true;
        break;
      }
      listBytes = (listBytes + fieldBytes) | 0;

      if (mask === 0x3f) {
        // The line is complete in memory, so the eviction of its name's entry does no harm (RFC 7541 §4.4).
        const inserted = table.insert(nameLength, valueLength);
        if (inserted >= 0) {
          table.records[inserted + 2] = tag;
          copyWords(view, out, table.view, table.records[inserted], nameLength + valueLength + LINE_OVERHEAD_BYTES);
        }
      }
      if (fault !== 0) {
        if (malformed === 0) malformed = fault;
        continue;
      }
      if (id >= PSEUDO_FIRST) {
        pseudoSeen |= 1 << (id - PSEUDO_FIRST);
        pseudoCount = (pseudoCount + 1) | 0;
      } else if (id !== 0) {
        const bit = id < 32 ? 1 << id : 1;
        repeated |= seen & bit;
        seen |= bit;
      }
      if (mask === 0x0f && (byte & NEVER_INDEXED) !== 0) {
        const field = (word / FIELD_WORDS) | 0;
        sensitiveWords[field >> 5] |= 1 << (field & 31);
        sensitiveAny = true;
        this.sensitiveCount = (this.sensitiveCount + 1) | 0;
        if (!isNeverIndexed(id, valueLength)) this.secret = true;
      }
      words[word] = out;
      words[word + 1] = nameLength;
      words[word + 2] = out + nameLength + 2;
      words[word + 3] = valueLength;
      words[word + 4] = id;
      word = (word + FIELD_WORDS) | 0;
      out = (out + nameLength + valueLength + LINE_OVERHEAD_BYTES) | 0;
    }

    if (result === 0 && this.requiredSize >= 0) result = SIZE_UPDATE_MISSING;
    headers.count = (word / FIELD_WORDS) | 0;
    this.outLength = (out - outOffset) | 0;
    this.seen = seen;
    this.repeated = repeated;
    this.pseudoSeen = pseudoSeen;
    this.pseudoCount = pseudoCount;
    this.malformed = malformed;
    return this.tooLarge ? this.follow(memory, i, end) : result;
  }

  /**
   * Reads the rest of an integer whose prefix is full (RFC 7541 §5.1). Returns it, or a negated
   * HpackError; `next` is the offset behind it.
   */
  private readInteger(memory: Uint8Array, offset: number, end: number, prefix: number): number {
    let value = prefix;
    for (let count = 0; count < CONTINUATION_BYTES_MAX; count++) {
      if (offset + count >= end) return TRUNCATED;
      const byte = memory[offset + count];
      value = (value + ((byte & 0x7f) << (count * 7))) | 0;
      if (byte < 0x80) {
        this.next = (offset + count + 1) | 0;
        return value;
      }
    }
    return INTEGER_OVERFLOW;
  }

  /** Applies a dynamic table size update (RFC 7541 §6.3). Returns 0 or a negated HpackError. */
  private updateSize(bytes: number): number {
    // The smallest size since the last block is signalled first (RFC 7541 §4.2).
    if (bytes > this.sizeLimit || (this.requiredSize >= 0 && bytes > this.requiredSize)) return SIZE_UPDATE_TOO_LARGE;
    this.requiredSize = -1;
    this.table.resize(bytes);
    return 0;
  }

  /**
   * Reads a string literal (RFC 7541 §5.2) and writes it decoded to `out`. Returns the offset after what it
   * wrote, 0 if that would pass `textEnd`, or a negated HpackError; `next` is the offset behind the literal.
   */
  private readString(
    memory: Uint8Array,
    view: DataView,
    offset: number,
    end: number,
    out: number,
    textEnd: number,
  ): number {
    if (offset >= end) return TRUNCATED;
    const first = memory[offset];
    let start = (offset + 1) | 0;
    let length = first & 0x7f;
    if (length === 0x7f) {
      length = this.readInteger(memory, start, end, 0x7f);
      if (length < 0) return length;
      start = this.next;
    }
    if (length > end - start) return TRUNCATED;
    this.next = (start + length) | 0;
    const room = (textEnd - out) | 0;
    if ((first & HUFFMAN) === 0) {
      if (length > room) return 0;
      copyExactly(view, start, view, out, length);
      return out + length;
    }
    if (huffmanDecodedBytesMax(length) > room) {
      const exact = huffmanDecodedLength(memory, start, length);
      if (exact < 0) return huffmanError(exact);
      if (exact > room) return 0;
    }
    const outAfter = huffmanDecode(memory, start, length, memory, view, out);
    return outAfter < 0 ? huffmanError(outAfter) : outAfter;
  }

  /**
   * Keeps the table in step with the rest of a block that is too large: checks everything, writes nothing out.
   * Only fields that are inserted are put together, in `scratch`. Returns 0 or a negated HpackError.
   */
  private follow(memory: Uint8Array, offset: number, end: number): number {
    const { table } = this;
    let copyBytesLeft = (end - offset) * FOLLOW_COPY_FACTOR + 2 * table.limitBytes;
    let i = offset | 0;
    while (i < end) {
      const byte = memory[i];
      i = (i + 1) | 0;
      const mask = byte >= INDEXED ? 0x7f : byte >= WITH_INDEXING ? 0x3f : byte >= SIZE_UPDATE ? 0x1f : 0x0f;
      let index = byte & mask;
      if (index === mask) {
        index = this.readInteger(memory, i, end, mask);
        if (index < 0) return index;
        i = this.next;
      }
      if (mask === 0x1f) return SIZE_UPDATE_MISPLACED;
      const age = (index - STATIC_COUNT - 1) | 0;
      if (age >= table.count) return INDEX_INVALID;
      if (mask === 0x7f) {
        if (index === 0) return INDEX_INVALID;
        continue;
      }

      let nameAt = 0;
      let nameLength = 0;
      let nameRecord = 0;
      let records = staticRecords;
      let source = staticView;
      if (index !== 0) {
        nameRecord = index * RECORD_WORDS;
        if (age >= 0) {
          records = table.records;
          source = table.view;
          nameRecord = table.record(age);
        }
        nameLength = records[nameRecord + 1] >>> 16;
      } else {
        nameAt = i;
        nameLength = this.measureString(memory, i, end);
        if (nameLength < 0) return nameLength;
        i = this.next;
      }
      const valueAt = i;
      const valueLength = this.measureString(memory, i, end);
      if (valueLength < 0) return valueLength;
      i = this.next;
      if (mask !== 0x3f) continue;

      const textBytes = (nameLength + valueLength + LINE_OVERHEAD_BYTES) | 0;
      if (nameLength + valueLength + ENTRY_OVERHEAD_BYTES > table.sizeMax) {
        table.evictTo(0);
        continue;
      }
      copyBytesLeft -= textBytes;
      if (copyBytesLeft < 0) return TABLE_FLOODED;
      // Offset 1 and not 0: `readString` returns 0 for a text that does not fit.
      const need = textBytes + 1 + OUTPUT_SPARE_BYTES;
      if (scratch.length < need) {
        scratch = new Uint8Array(new ArrayBuffer(table.limitBytes + OUTPUT_SPARE_BYTES));
        scratchView = new DataView(scratch.buffer);
      }
      let tag = 0;
      const line = 1;
      if (index !== 0) {
        tag = records[nameRecord + 2] & NAME_TAG_MASK;
        copyWords(source, records[nameRecord], scratchView, line, nameLength + 2);
      } else {
        this.copyString(memory, nameAt, end, line);
        tag = nameFault(scratch, line, nameLength);
        if (tag === 0) tag = scratch[line] === COLON ? pseudoId(scratch, line, nameLength) : ID_UNRESOLVED;
      }
      const valueStart = (line + nameLength + 2) | 0;
      this.copyString(memory, valueAt, end, valueStart);
      tag |= valueFault(scratch, scratchView, valueStart, valueLength);
      scratchView.setInt16(valueStart - 2, COLON_SP, true);
      scratchView.setInt16(valueStart + valueLength, CR_LF, true);
      const inserted = table.insert(nameLength, valueLength);
      table.records[inserted + 2] = tag;
      copyWords(scratchView, line, table.view, table.records[inserted], textBytes);
    }
    return 0;
  }

  /** Decoded length of the string literal at `offset`, or a negated HpackError; `next` is the offset behind it. */
  private measureString(memory: Uint8Array, offset: number, end: number): number {
    if (offset >= end) return TRUNCATED;
    const first = memory[offset];
    let start = (offset + 1) | 0;
    let length = first & 0x7f;
    if (length === 0x7f) {
      length = this.readInteger(memory, start, end, 0x7f);
      if (length < 0) return length;
      start = this.next;
    }
    if (length > end - start) return TRUNCATED;
    this.next = (start + length) | 0;
    if ((first & HUFFMAN) === 0) return length;
    const exact = huffmanDecodedLength(memory, start, length);
    return exact < 0 ? huffmanError(exact) : exact;
  }

  /** Writes the string literal at `offset`, which `measureString` has checked, to `scratch`. */
  private copyString(memory: Uint8Array, offset: number, end: number, out: number): void {
    const first = memory[offset];
    let start = (offset + 1) | 0;
    let length = first & 0x7f;
    if (length === 0x7f) {
      length = this.readInteger(memory, start, end, 0x7f);
      start = this.next;
    }
    if ((first & HUFFMAN) === 0) copyExactly(wordView(memory), start, scratchView, out, length);
    else huffmanDecode(memory, start, length, scratch, scratchView, out);
  }
}

/** The HpackError of a HuffmanError, both negated. */
function huffmanError(error: number): number {
  return error === -1 ? HUFFMAN_EOS : HUFFMAN_PADDING;
}
