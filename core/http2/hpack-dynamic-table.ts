// The dynamic table of one direction of one connection: entries first in, first out, and their text.
//
//   bytes    ....[oldest text][...][newest text]....   contiguous; moved to the start when the end is reached
//   records  ring of RecordWords, one per entry, at (sequence number & mask)
//
// Entries are numbered in order of insertion, so that their HPACK index is a difference. An
// empty table owns no buffers; they grow with what the peer (or we) insert, up to 1.5 times the size limit,
// and then stay. Owned by one decoder or encoder. Hot module: no allocation once grown.
// Spec: RFC 7541 §2.3.2 (order), §4.1 (size), §4.3, §4.4 (eviction).

/** Size of an entry beyond its name and value (RFC 7541 §4.1). */
export const ENTRY_OVERHEAD_BYTES = 32;

/** Largest size limit: name and value lengths are kept in 16 bits each. */
const TABLE_BYTES_LIMIT = 65_535;

/** Bytes behind the text that may be read or written, because texts are copied eight bytes at a time. */
const SLACK_BYTES = 8;
const FIRST_TEXT_BYTES = 512;
const FIRST_RECORDS = 16;
const SEQUENCE_MASK = 0x3fffffff;

const NO_BYTES: DataView = new DataView(new ArrayBuffer(0));
const NO_RECORDS = new Int32Array(0);

/** Entries and their text. Word 0 of a record is the text's offset, word 1 name length << 16 | value length. */
export class DynamicTable {
  /** Largest size that this table may ever have, in bytes as of RFC 7541 §4.1. */
  readonly limitBytes: number;
  /** Words per record. */
  readonly recordWords: number;
  /** Bytes of text per entry beyond name and value. */
  readonly textOverhead: number;
  /** Size that the entries may have now. */
  sizeMax: number;
  /** Size that the entries have. */
  size = 0;
  /** Number of entries. */
  count = 0;
  /** Sequence number of the newest entry, modulo 2^30. */
  newest = 0;
  /** Number of records less one; records are a power of two. */
  slotMask = -1;
  records: Int32Array = NO_RECORDS;
  view: DataView = NO_BYTES;
  /** Text of the entries: [textStart, textEnd). */
  private textStart = 0;
  private textEnd = 0;

  /** Throws RangeError for a limit above TABLE_BYTES_LIMIT. */
  constructor(limitBytes: number, recordWords: number, textOverhead: number) {
    if (!(limitBytes >= 0 && limitBytes <= TABLE_BYTES_LIMIT)) {
      throw new RangeError(`a header table of ${limitBytes} bytes; 0 to ${TABLE_BYTES_LIMIT} are possible`);
    }
    this.limitBytes = limitBytes;
    this.sizeMax = limitBytes;
    this.recordWords = recordWords;
    this.textOverhead = textOverhead;
  }

  /** First word of the record of the entry inserted `age` insertions before the newest one; `age` < `count`. */
  record(age: number): number {
    return ((this.newest - age) & this.slotMask) * this.recordWords;
  }

  /** Sets `sizeMax` (at most `limitBytes`) and evicts what no longer fits. */
  resize(bytes: number): void {
    this.sizeMax = bytes;
    this.evictTo(bytes);
  }

  /** Evicts from the oldest entry on until at most `bytes` are left. */
  evictTo(bytes: number): void {
    const { records, recordWords, slotMask } = this;
    let oldest = (this.newest - this.count + 1) | 0;
    while (this.size > bytes) {
      const lengths = records[(oldest & slotMask) * recordWords + 1];
      const textBytes = ((lengths >>> 16) + (lengths & 0xffff)) | 0;
      this.size = (this.size - textBytes - ENTRY_OVERHEAD_BYTES) | 0;
      this.textStart = (this.textStart + textBytes + this.textOverhead) | 0;
      this.count = (this.count - 1) | 0;
      oldest = (oldest + 1) | 0;
    }
    if (this.count === 0) {
      this.textStart = 0;
      this.textEnd = 0;
    }
  }

  /**
   * Inserts an entry, evicting older ones. Returns the first word of its record, with words 0 and 1
   * set, or -1 if it is larger than the table, which is then empty (RFC 7541 §4.4). The caller
   * writes the text to `view` at the record's offset, spilling up to SLACK_BYTES, and the other words.
   */
  insert(nameLength: number, valueLength: number): number {
    const size = (nameLength + valueLength + ENTRY_OVERHEAD_BYTES) | 0;
    if (size > this.sizeMax) {
      this.evictTo(0);
      return -1;
    }
    if (this.size + size > this.sizeMax) this.evictTo((this.sizeMax - size) | 0);
    const textBytes = (nameLength + valueLength + this.textOverhead) | 0;
    if (this.textEnd + textBytes + SLACK_BYTES > this.view.byteLength) this.makeTextRoom(textBytes);
    if (this.count > this.slotMask) this.growRecords();
    this.newest = (this.newest + 1) & SEQUENCE_MASK;
    this.count = (this.count + 1) | 0;
    this.size = (this.size + size) | 0;
    const record = ((this.newest & this.slotMask) * this.recordWords) | 0;
    this.records[record] = this.textEnd;
    this.records[record + 1] = (nameLength << 16) | valueLength;
    this.textEnd = (this.textEnd + textBytes) | 0;
    return record;
  }

  /** Bytes of the buffers that this table owns. */
  get ownedBytes(): number {
    return this.view.byteLength + this.records.byteLength;
  }

  /**
   * Moves the text to the start of the buffer, or to a larger one. At least a third of the buffer is free
   * afterwards, so that a byte of text is moved less than twice, on average.
   */
  private makeTextRoom(textBytes: number): void {
    const live = this.textEnd - this.textStart;
    const needed = live + textBytes;
    const largest = this.limitBytes + (this.limitBytes >> 1);
    const capacity = this.view.byteLength - SLACK_BYTES;
    const { records, recordWords, slotMask, newest, count, textStart, view } = this;
    if (capacity < largest && needed > (capacity * 2) / 3) {
      const grown = Math.max(needed, Math.min(largest, Math.max(FIRST_TEXT_BYTES, needed * 2)));
      this.view = new DataView(new ArrayBuffer(grown + SLACK_BYTES));
    }
    // Not Uint8Array.set: it would need a new view of the text each time. Overlap is fine, as it moves down.
    const target = this.view;
    for (let i = 0; i < live; i += 4) target.setInt32(i, view.getInt32(textStart + i, true), true);
    for (let age = 0; age < count; age++) records[((newest - age) & slotMask) * recordWords] -= textStart;
    this.textStart = 0;
    this.textEnd = live;
  }

  /** Doubles the records. */
  private growRecords(): void {
    const { records, recordWords, slotMask, newest, count } = this;
    const slots = Math.max(FIRST_RECORDS, (slotMask + 1) * 2);
    const grown = new Int32Array(slots * recordWords);
    for (let age = 0; age < count; age++) {
      const from = ((newest - age) & slotMask) * recordWords;
      grown.set(records.subarray(from, from + recordWords), ((newest - age) & (slots - 1)) * recordWords);
    }
    this.records = grown;
    this.slotMask = slots - 1;
  }
}
