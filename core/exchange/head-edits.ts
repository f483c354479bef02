// Changes to the fields of heads, prepared for the packet path: names to drop, and lines to add.
// Made once per snapshot and policy, immutable afterwards. Hot module: no allocation.
// Spec: Gateway API HTTPHeaderFilter (set replaces all of a name, add appends, remove drops).

import { HeaderId, headerNames } from '../http1/header-ids.ts';
import { FIELD_WORDS, type HeaderTable } from '../http1/header-table.ts';
import { Text } from '../io/bytes.ts';
import type { HeadEditSettings } from '../workers/filter-settings.ts';
import { valueEquals } from './fields.ts';
import { LeftOut } from './response-head.ts';

const { KEEP_ALIVE } = HeaderId;

const encoder = new TextEncoder();

/** Changes to the fields of one head. */
export class HeadEdits {
  /** The lines that are added, `name: value\r\n` each. */
  readonly lines: Text;
  readonly lineCount: number;
  /** Bits of LeftOut: fields of the gateway's own that must not be added to a response. */
  readonly leftOut: number;
  /** Dropped names that have an id: bit `id` for ids to 31, bit `id - 32` for higher ones. */
  private readonly lowIds: number;
  private readonly highIds: number;
  /** Those that have none, lower case, and the lengths that they have: bit `length`, 31 for longer ones. */
  private readonly names: Uint8Array[];
  private readonly lengths: number;

  constructor(settings: HeadEditSettings) {
    this.lines = new Text(settings.lines.map(({ name, value }) => `${name}: ${value}\r\n`).join(''));
    this.lineCount = settings.lines.length;
    const ids = settings.drop.map((name) => headerNames.indexOf(name)).filter((id) => id > 0);
    this.lowIds = ids.filter((id) => id < 32).reduce((bits, id) => bits | (1 << id), 0);
    this.highIds = ids.filter((id) => id >= 32).reduce((bits, id) => bits | (1 << (id - 32)), 0);
    this.names = settings.drop.filter((name) => !headerNames.includes(name)).map((name) => encoder.encode(name));
    this.lengths = this.names.reduce((bits, { length }) => bits | lengthBit(length), 0);
    this.leftOut =
      (settings.drop.includes('server') ? LeftOut.SERVER : 0) | (settings.drop.includes('via') ? LeftOut.VIA : 0);
  }

  /** Whether a field is dropped. */
  drops(memory: Uint8Array, headers: HeaderTable, field: number): boolean {
    const word = field * FIELD_WORDS;
    const { words } = headers;
    const id = words[word + 4];
    if (id !== 0) return ((id < 32 ? this.lowIds >> id : this.highIds >> (id - 32)) & 1) !== 0;
    const length = words[word + 1];
    if ((this.lengths & lengthBit(length)) === 0) return false;
    const { names } = this;
    for (let i = 0; i < names.length; i++) if (valueEquals(memory, words[word], length, names[i])) return true;
    return false;
  }

  /**
   * Gives the dropped fields of a response head the id of one that never passes, so that rewriting leaves them
   * out. Returns whether there are any; `seen` of the head has then to have the bit of KEEP_ALIVE.
   */
  mark(memory: Uint8Array, headers: HeaderTable): boolean {
    let marked = false;
    for (let field = 0; field < headers.count; field++) {
      if (!this.drops(memory, headers, field)) continue;
      headers.words[field * FIELD_WORDS + 4] = KEEP_ALIVE;
      marked = true;
    }
    return marked;
  }
}

function lengthBit(length: number): number {
  return 1 << Math.min(length, 31);
}
