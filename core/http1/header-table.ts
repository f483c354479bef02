// The header table: where each field of a message head lies in memory.
//
// The one form that routing, filters and serialisers know. HTTP/1 fills it with positions in the
// receive buffer; HTTP/2 will fill it with positions of decoded fields. It holds no bytes and
// makes no strings. Owned by one worker and reused for every message.
// Hot module: no allocation per message.

import type { HeaderId } from './header-ids.ts';

/** Words per field: name offset, name length, value offset, value length, known-header id. */
export const FIELD_WORDS = 5;

/** Most fields a table can hold; the configured `limits.maxHeaders` may be lower. */
export const HEADER_COUNT_CAPACITY = 256;

/** Positions of the fields of one head or trailer section. */
export class HeaderTable {
  /** Number of fields. */
  count = 0;
  /** Trailers that came by HTTP/2 with never-indexed fields (HpackDecoder.secret). */
  secret = false;
  /** FIELD_WORDS words per field, in order of arrival. */
  readonly words = new Int32Array(HEADER_COUNT_CAPACITY * FIELD_WORDS);

  nameOffset(field: number): number {
    return this.words[field * FIELD_WORDS]!;
  }
  nameLength(field: number): number {
    return this.words[field * FIELD_WORDS + 1]!;
  }
  valueOffset(field: number): number {
    return this.words[field * FIELD_WORDS + 2]!;
  }
  valueLength(field: number): number {
    return this.words[field * FIELD_WORDS + 3]!;
  }
  /** Known-header id (see header-ids.ts); `HeaderId.OTHER` for the rest. */
  id(field: number): number {
    return this.words[field * FIELD_WORDS + 4]!;
  }

  /** First field with a known id at or after `from`, or -1. */
  find(id: number, from = 0): number {
    const words = this.words;
    for (let field = from; field < this.count; field++) {
      if (words[field * FIELD_WORDS + 4] === id) return field;
    }
    return -1;
  }

  /** Whether a known header is present. `id` must not be `HeaderId.OTHER`. */
  has(id: Exclude<HeaderId, typeof HeaderId.OTHER>): boolean {
    return this.find(id) >= 0;
  }
}
