// The field lines of an HTTP/1 head or trailer section, from the first name to the empty line.
//
// Shared by requests, responses and trailers. One pass; values are scanned eight bytes at a time.
// What a field means is decided afterwards, from the positions and two bit sets.
// Strict where RFC 9112 lets a recipient be lenient: lines end in CRLF only (§2.2), no folding
// (§5.2), no space before the colon (§5.1), no controls in values (RFC 9110 §5.5).
// Owned by one worker. Hot module: no allocation per message.

import * as chars from './chars.ts';
import { ParseError } from './errors.ts';
import { knownHeaderId } from './header-hash.ts';
import * as table from './header-table.ts';
import { wordView } from './word-view.ts';

// Constants of other modules are read through a cell on every use; local copies are compiled in.
const { CR, LF, SP, HTAB, COLON } = chars.Byte;
const { fieldByte, tokenLower } = chars;
const { FIELD_WORDS, HEADER_COUNT_CAPACITY } = table;

/** Which known fields a section holds: bit `id` for ids 1 to 31; bit 0 stands for all higher ids. */
export class FieldBits {
  /** Present at least once. */
  seen = 0;
  /** Present more than once. */
  repeated = 0;
}

/** Why a line is not "name, colon": found at byte `byte`, `atStart` when the name would be empty. */
function nameError(byte: number, atStart: boolean): number {
  if (byte === LF) return -ParseError.BARE_LF;
  if (atStart) {
    if (byte === SP || byte === HTAB) return -ParseError.FIELD_FOLDED;
    return byte === COLON ? -ParseError.FIELD_NAME_EMPTY : -ParseError.FIELD_NAME_INVALID;
  }
  if (byte === SP || byte === HTAB) return -ParseError.FIELD_SPACE_BEFORE_COLON;
  return byte === CR ? -ParseError.FIELD_COLON_MISSING : -ParseError.FIELD_NAME_INVALID;
}

/**
 * Marks with 0x80 each byte of a word that may end a value: below 0x20 (word - 0x20 borrows into the
 * high bit) or 0x7f (word + 1 carries into it), in both cases with its own high bit clear. A carry
 * from the byte below can mark one too many, never one too few, and never below the first true one.
 */
function stopMarks(word: number): number {
  return ((word - 0x20202020) | (word + 0x01010101)) & ~word & 0x80808080;
}

/**
 * Parses field lines in [offset, end) up to and including the empty line that ends them.
 *
 * `headers` receives the positions (white space around values removed), `bits` the known fields.
 * Returns the offset after the empty line, 0 if more bytes are needed, or -(ParseError).
 * `countMax` beyond HEADER_COUNT_CAPACITY counts as that. Reads nothing outside the range.
 */
export function parseFields(
  memory: Uint8Array,
  offset: number,
  end: number,
  countMax: number,
  headers: table.HeaderTable,
  bits: FieldBits,
): number {
  const view = wordView(memory);
  const words = headers.words;
  // `| 0` and the comparison keep these as machine integers; Math.min would make them floating point.
  const wordsMax = (countMax > HEADER_COUNT_CAPACITY ? HEADER_COUNT_CAPACITY : countMax | 0) * FIELD_WORDS;
  end |= 0;
  const lastEight = end - 8;
  let word = 0;
  let seen = 0;
  let repeated = 0;
  let i = offset | 0;
  for (;;) {
    if (i >= end) return 0;
    let byte = memory[i];
    if (byte === CR) {
      if (i + 1 >= end) return 0;
      if (memory[i + 1] !== LF) return -ParseError.BARE_CR;
      break;
    }
    if (word >= wordsMax) return -ParseError.TOO_MANY_FIELDS;

    const nameStart = i;
    while (tokenLower[byte] !== 0) {
      i = (i + 1) | 0;
      if (i >= end) return 0;
      byte = memory[i];
    }
    if (byte !== COLON || i === nameStart) return nameError(byte, i === nameStart);
    const nameLength = (i - nameStart) | 0;

    do {
      i = (i + 1) | 0;
      if (i >= end) return 0;
      byte = memory[i];
    } while (byte === SP || byte === HTAB);
    const valueStart = i;
    while (i <= lastEight) {
      let marks = stopMarks(view.getInt32(i, true));
      if (marks === 0) {
        i = (i + 4) | 0;
        marks = stopMarks(view.getInt32(i, true));
        if (marks === 0) {
          i = (i + 4) | 0;
          continue;
        }
      }
      // Offset of the lowest marked byte: its mark is the lowest set bit.
      i = (i + ((31 - Math.clz32(marks & -marks)) >> 3)) | 0;
      break;
    }
    // The last bytes of the range, and values with tabs, go byte by byte.
    for (;;) {
      if (i >= end) return 0;
      byte = memory[i];
      if (fieldByte[byte] === 0) break;
      i = (i + 1) | 0;
    }
    if (byte !== CR) return byte === LF ? -ParseError.BARE_LF : -ParseError.FIELD_VALUE_INVALID;
    let valueEnd = i;
    i = (i + 1) | 0;
    if (i >= end) return 0;
    if (memory[i] !== LF) return -ParseError.BARE_CR;
    i = (i + 1) | 0;
    while (valueEnd > valueStart) {
      const last = memory[valueEnd - 1];
      if (last !== SP && last !== HTAB) break;
      valueEnd = (valueEnd - 1) | 0;
    }

    const id = knownHeaderId(memory, nameStart, nameLength);
    if (id !== 0) {
      const bit = id < 32 ? 1 << id : 1;
      repeated |= seen & bit;
      seen |= bit;
    }
    words[word] = nameStart;
    words[word + 1] = nameLength;
    words[word + 2] = valueStart;
    words[word + 3] = valueEnd - valueStart;
    words[word + 4] = id;
    word = (word + FIELD_WORDS) | 0;
  }
  headers.count = (word / FIELD_WORDS) | 0;
  bits.seen = seen;
  bits.repeated = repeated;
  return i + 2;
}
