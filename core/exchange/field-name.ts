// The name of a field that is looked up for every request, prepared so that it is compared four bytes at a time.
//
// By name and not by known id, which a filter may have changed to mark a field that is to be dropped.
// Hot module: no allocation.

import { FIELD_WORDS, type HeaderTable } from '../http1/header-table.ts';

const encoder = new TextEncoder();

/** A field name. */
export class FieldName {
  readonly length: number;
  readonly bytes: Uint8Array;
  /** All four bytes of the name at 0, 4 and so on, and the last four, which may overlap; none for a shorter name. */
  readonly words: Int32Array;
  /** The bit that makes upper case lower case, in the places of `words` where the name has a letter; and in those of `bytes`. */
  readonly wordCases: Int32Array;
  readonly byteCases: Uint8Array;

  /** `name` is lower case, and a token (RFC 9110 §5.6.2). */
  constructor(name: string) {
    this.bytes = encoder.encode(name);
    this.byteCases = this.bytes.map((byte) => (byte >= 97 && byte <= 122 ? 32 : 0));
    const { length } = this.bytes;
    this.length = length;
    const count = length < 4 ? 0 : Math.ceil(length / 4);
    const wordsOf = (bytes: Uint8Array): Int32Array => {
      const view = new DataView(bytes.buffer, bytes.byteOffset, length);
      return Int32Array.from({ length: count }, (_, i) => view.getInt32(Math.min(i * 4, length - 4), true));
    };
    this.words = wordsOf(this.bytes);
    this.wordCases = wordsOf(this.byteCases);
  }
}

/** First field of a name, whatever the case of its letters, or -1. `view` is on the memory of `headers`. */
export function findField(view: DataView, headers: HeaderTable, name: FieldName): number {
  const { count, words } = headers;
  const { length } = name;
  for (let field = 0, at = 0; field < count; field++, at += FIELD_WORDS) {
    if (words[at + 1] === length && isName(view, words[at]!, name)) return field;
  }
  return -1;
}

function isName(view: DataView, offset: number, name: FieldName): boolean {
  const { length, words, wordCases } = name;
  const last = words.length - 1;
  if (last < 0) return isShortName(view, offset, name);
  // Names often begin alike: x-forwarded-...
  if ((view.getInt32(offset + length - 4, true) | wordCases[last]!) !== words[last]) return false;
  for (let i = 0, at = offset; i < last; i++, at += 4) {
    if ((view.getInt32(at, true) | wordCases[i]!) !== words[i]) return false;
  }
  return true;
}

function isShortName(view: DataView, offset: number, { length, bytes, byteCases }: FieldName): boolean {
  for (let i = 0; i < length; i++) if ((view.getUint8(offset + i) | byteCases[i]!) !== bytes[i]) return false;
  return true;
}
