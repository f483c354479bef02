// Texts that authorisation policies compare: exact, `prefix*`, `*suffix`, `*`, and templates of paths.
//
// Compiled once per snapshot; compared as bytes where they lie. Immutable.
// Hot module: no allocation per comparison.
// Spec: Istio AuthorizationPolicy (string match; `{*}` and `{**}` of Operation.paths).

const SLASH = 47;

/** How a text is compared. */
export const MatchKind = {
  EXACT: 0,
  PREFIX: 1,
  SUFFIX: 2,
  /** Any text, the empty one included; whether there is one at all is the caller's to say. */
  PRESENT: 3,
  /** Segments of a path, some of which stand for any. */
  TEMPLATE: 4,
} as const;

const { EXACT, PREFIX, SUFFIX, PRESENT } = MatchKind;

/** Segments of a template that stand for one segment, and for any number of them. */
const ONE = new Uint8Array(0);
const MANY = new Uint8Array(0);

const encoder = new TextEncoder();
const noSegments: readonly Uint8Array[] = [];

/** One text to compare with. */
export class TextMatch {
  readonly kind: number;
  /** What is compared: in lower case where case does not matter; nothing of a template. */
  readonly bytes: Uint8Array;
  private readonly foldCase: boolean;
  private readonly segments: readonly Uint8Array[];

  private constructor(kind: number, bytes: Uint8Array, foldCase: boolean, segments: readonly Uint8Array[]) {
    this.kind = kind;
    this.bytes = bytes;
    this.foldCase = foldCase;
    this.segments = segments;
  }

  /** Reads a value of a policy; null: it has a `*` at both ends, which nothing says the meaning of. */
  static of(value: string, foldCase = false): TextMatch | null {
    const text = foldCase ? value.toLowerCase() : value;
    if (text === '*') return new TextMatch(PRESENT, encoder.encode(''), foldCase, noSegments);
    const starts = text.startsWith('*');
    const ends = text.endsWith('*');
    if (starts && ends) return null;
    if (starts) return new TextMatch(SUFFIX, encoder.encode(text.slice(1)), foldCase, noSegments);
    if (ends) return new TextMatch(PREFIX, encoder.encode(text.slice(0, -1)), foldCase, noSegments);
    return new TextMatch(EXACT, encoder.encode(text), foldCase, noSegments);
  }

  /** The same kind of comparison with other bytes. */
  withBytes(bytes: Uint8Array): TextMatch {
    return new TextMatch(this.kind, bytes, this.foldCase, this.segments);
  }

  /**
   * Reads a template: whole segments are `{*}` for one segment that is not empty, or `{**}`, the last of all, for any
   * number. Null: it is none that is valid.
   */
  static template(value: string): TextMatch | null {
    if (!value.startsWith('/')) return null;
    const segments: Uint8Array[] = [];
    for (const segment of value.slice(1).split('/')) {
      if (segments.at(-1) === MANY) return null;
      if (segment === '{*}') segments.push(ONE);
      else if (segment === '{**}') segments.push(MANY);
      else if (/[{}*]/.test(segment)) return null;
      else segments.push(encoder.encode(segment));
    }
    return new TextMatch(MatchKind.TEMPLATE, encoder.encode(''), false, segments);
  }

  /** Whether the `length` bytes at `offset` are what is asked for. */
  holds(memory: Uint8Array, offset: number, length: number): boolean {
    const { bytes, kind } = this;
    const size = bytes.length;
    switch (kind) {
      case EXACT:
        return length === size && this.isAt(memory, offset);
      case PREFIX:
        return length >= size && this.isAt(memory, offset);
      case SUFFIX:
        return length >= size && this.isAt(memory, offset + length - size);
      case PRESENT:
        return true;
      default:
        return this.isOfTemplate(memory, offset, offset + length);
    }
  }

  private isAt(memory: Uint8Array, offset: number): boolean {
    const { bytes, foldCase } = this;
    for (let i = 0; i < bytes.length; i++) {
      let byte = memory[offset + i]!;
      if (foldCase && byte >= 65 && byte <= 90) byte |= 32;
      if (byte !== bytes[i]) return false;
    }
    return true;
  }

  private isOfTemplate(memory: Uint8Array, offset: number, end: number): boolean {
    const { segments } = this;
    let at = offset;
    for (let i = 0; i < segments.length; i++) {
      const segment = segments[i]!;
      if (segment === MANY) return at === end || memory[at] === SLASH;
      if (at >= end || memory[at] !== SLASH) return false;
      const start = ++at;
      while (at < end && memory[at] !== SLASH) at++;
      if (segment === ONE) {
        if (at === start) return false;
        continue;
      }
      if (at - start !== segment.length) return false;
      for (let n = 0; n < segment.length; n++) if (memory[start + n] !== segment[n]) return false;
    }
    return at === end;
  }
}

/** Values of which any one will do. */
export class TextList {
  readonly matches: readonly TextMatch[];
  /** There is a value whose meaning is not known: the list may hold whatever is compared. */
  readonly unknown: boolean;

  constructor(matches: readonly (TextMatch | null)[]) {
    const known: TextMatch[] = [];
    for (const match of matches) if (match !== null) known.push(match);
    this.matches = known;
    this.unknown = known.length < matches.length;
  }

  /** Whether the bytes are in the list; with `lenient` also if that cannot be told. */
  has(memory: Uint8Array, offset: number, length: number, lenient: boolean): boolean {
    if (this.unknown && lenient) return true;
    const { matches } = this;
    for (let i = 0; i < matches.length; i++) if (matches[i]!.holds(memory, offset, length)) return true;
    return false;
  }
}
