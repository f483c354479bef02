// Reads regular expressions in the syntax of RE2, as far as an automaton over bytes can run them.
//
// Control thread, and the thread that compiles route tables. Gives a small tree (regex-dfa.ts makes an
// automaton of it) or says what is wrong and where. Characters are Unicode code points.
// What needs memory of the text or looks around (back-references, look-around, word boundaries) is
// refused: nothing that it could be turned into would run in linear time and constant memory.
// Syntax: https://github.com/google/re2/wiki/Syntax

/** A part of a regular expression. */
export type RegexNode =
  /** One character out of inclusive ranges [first, last, first, last, ...], sorted and apart. */
  | { kind: 'class'; ranges: number[] }
  | { kind: 'sequence'; parts: RegexNode[] }
  | { kind: 'either'; branches: RegexNode[] }
  /** `max` -1: no limit. */
  | { kind: 'repeat'; node: RegexNode; min: number; max: number }
  /** Holds only at the start of the text, only at its end. */
  | { kind: 'start' }
  | { kind: 'end' };

/** What is wrong with a pattern. */
export class RegexError extends Error {
  /** Says it, to follow the pattern itself in a sentence; with the position where there is one. */
  override readonly message: string;

  constructor(message: string) {
    super(message);
    this.message = message;
  }
}

/** Largest count in `{n,m}`, as in RE2. */
export const REPEAT_MAX = 1000;

/** Deepest nesting of groups. */
export const DEPTH_MAX = 100;

const CODE_POINT_MAX = 0x10ffff;
const digits = [0x30, 0x39];
const upperLetters = [0x41, 0x5a];
const lowerLetters = [0x61, 0x7a];
const letters = [...upperLetters, ...lowerLetters];
const word = [...digits, ...upperLetters, 0x5f, 0x5f, ...lowerLetters];
/** As in RE2: without vertical tab. */
const space = [9, 10, 12, 13, 32, 32];

const escapedClasses: Record<string, number[]> = { d: digits, w: word, s: space };

const escapedCharacters: Record<string, number> = { a: 7, f: 12, n: 10, r: 13, t: 9, v: 11 };

const posixClasses: Record<string, number[]> = {
  alnum: [...digits, ...letters],
  alpha: letters,
  ascii: [0, 0x7f],
  blank: [9, 9, 32, 32],
  cntrl: [0, 31, 127, 127],
  digit: digits,
  graph: [33, 126],
  lower: lowerLetters,
  print: [32, 126],
  punct: [33, 47, 58, 64, 91, 96, 123, 126],
  space: [9, 13, 32, 32],
  upper: upperLetters,
  word,
  xdigit: [...digits, 0x41, 0x46, 0x61, 0x66],
};

interface Flags {
  ignoreCase: boolean;
  dotAll: boolean;
}

/** Reads a pattern. Throws RegexError. */
export function parseRegex(pattern: string): RegexNode {
  return new Parser(pattern).parse();
}

/** A pattern for exactly this text. */
export function quoteRegex(text: string): string {
  return text.replace(/[\\^$.*+?()[\]{}|]/g, '\\$&');
}

class Parser {
  /** Code points of the pattern, each as text. */
  private readonly text: string[];
  private at = 0;
  private depth = 0;

  constructor(pattern: string) {
    this.text = Array.from(pattern);
  }

  parse(): RegexNode {
    const node = this.alternatives({ ignoreCase: false, dotAll: false });
    if (this.at < this.text.length) this.fail('")" without "("');
    return node;
  }

  private fail(what: string, at = this.at): never {
    throw new RegexError(`is not a regular expression: ${what} at character ${at + 1}`);
  }

  private refuse(what: string, at: number): never {
    throw new RegexError(`has ${what} at character ${at + 1}, which is not supported`);
  }

  private next(text: string): boolean {
    for (let i = 0; i < text.length; i++) if (this.text[this.at + i] !== text[i]) return false;
    return true;
  }

  /** `a|b|c`; flags set inside hold until its end. */
  private alternatives(outer: Flags): RegexNode {
    const flags = { ...outer };
    const branches = [this.sequence(flags)];
    while (this.next('|')) {
      this.at++;
      branches.push(this.sequence(flags));
    }
    return branches.length === 1 ? branches[0]! : { kind: 'either', branches };
  }

  private sequence(flags: Flags): RegexNode {
    const parts: RegexNode[] = [];
    while (this.at < this.text.length && !this.next('|') && !this.next(')')) {
      const atom = this.atom(flags);
      if (atom !== null) {
        parts.push(this.repeated(atom));
        continue;
      }
      // RE2 repeats what is before the flags, JavaScript knows no such thing.
      const { at } = this;
      if (this.repetition() !== undefined) this.refuse('a repetition behind a change of flags', at);
    }
    return parts.length === 1 ? parts[0]! : { kind: 'sequence', parts };
  }

  /** The atom with the operator behind it, if there is one. */
  private repeated(atom: RegexNode): RegexNode {
    const count = this.repetition();
    if (count === undefined) return atom;
    // Lazy forms match the same whole texts.
    if (this.next('?')) this.at++;
    const second = this.at;
    if (this.next('+')) this.refuse('a possessive repetition', second);
    if (this.repetition() !== undefined) this.fail('a second repetition', second);
    return { kind: 'repeat', node: atom, min: count[0], max: count[1] };
  }

  private repetition(): [min: number, max: number] | undefined {
    const simple: Record<string, [number, number]> = { '*': [0, -1], '+': [1, -1], '?': [0, 1] };
    const found = simple[this.text[this.at] ?? ''];
    if (found !== undefined) {
      this.at++;
      return found;
    }
    if (!this.next('{')) return undefined;
    // What does not look like a count is ordinary text, as in RE2.
    const counted = /^\{(\d+)(,(\d*))?\}/.exec(this.text.slice(this.at, this.at + 24).join(''));
    if (counted === null) return undefined;
    const min = Number(counted[1]);
    const max = counted[2] === undefined ? min : counted[3] === '' ? -1 : Number(counted[3]);
    if (min > REPEAT_MAX || max > REPEAT_MAX) this.fail(`a count above ${REPEAT_MAX}`);
    if (max >= 0 && max < min) this.fail('a range of counts that ends before it begins');
    this.at += counted[0].length;
    return [min, max];
  }

  /** One character, class, group or anchor; null for a change of flags. */
  private atom(flags: Flags): RegexNode | null {
    const start = this.at;
    const character = this.text[this.at++]!;
    switch (character) {
      case '(':
        return this.group(flags, start);
      case '[':
        return this.characterClass(flags, start);
      case '.':
        return {
          kind: 'class',
          ranges: normalRanges(flags.dotAll ? [0, CODE_POINT_MAX] : [0, 9, 11, CODE_POINT_MAX]),
        };
      case '^':
        return { kind: 'start' };
      case '$':
        return { kind: 'end' };
      case '*':
      case '+':
      case '?':
        return this.fail(`nothing to repeat before "${character}"`, start);
      case '{':
        this.at = start;
        if (this.repetition() !== undefined) this.fail('nothing to repeat before "{"', start);
        this.at = start + 1;
        return { kind: 'class', ranges: single(0x7b) };
      case '\\':
        if (this.next('A') || this.next('z')) return { kind: this.text[this.at++] === 'A' ? 'start' : 'end' };
        return { kind: 'class', ranges: folded(this.escape(start), flags) };
      default:
        return { kind: 'class', ranges: folded(single(character.codePointAt(0)!), flags) };
    }
  }

  private group(flags: Flags, start: number): RegexNode | null {
    let inner = flags;
    if (this.next('?')) {
      if (this.next('?=') || this.next('?!')) this.refuse('a look-ahead', start);
      if (this.next('?<=') || this.next('?<!')) this.refuse('a look-behind', start);
      if (this.next('?>')) this.refuse('an atomic group', start);
      const named = /^\?P?<[A-Za-z_][A-Za-z0-9_]*>/.exec(this.text.slice(this.at, this.at + 128).join(''));
      if (named !== null) {
        this.at += named[0].length;
      } else {
        inner = { ...flags };
        this.at++;
        if (this.readFlags(inner, start)) {
          Object.assign(flags, inner);
          return null;
        }
      }
    }
    if (++this.depth > DEPTH_MAX) this.fail(`more than ${DEPTH_MAX} groups inside each other`, start);
    const node = this.alternatives(inner);
    this.depth--;
    if (!this.next(')')) this.fail('a group without its end', start);
    this.at++;
    return node;
  }

  /** Reads `i`, `s-i:` and the like behind `(?`. True when they stand alone, for what follows them. */
  private readFlags(flags: Flags, start: number): boolean {
    let value = true;
    for (;;) {
      const flag = this.text[this.at++];
      if (flag === 'i') flags.ignoreCase = value;
      else if (flag === 's') flags.dotAll = value;
      // Ungreedy: the same whole texts.
      else if (flag === 'U') continue;
      else if (flag === 'm' && value) this.refuse('the flag m (many lines)', this.at - 1);
      else if (flag === 'm') continue;
      else if (flag === '-' && value && this.text[this.at] !== ')' && this.text[this.at] !== ':') value = false;
      else if (flag === ':') return false;
      else if (flag === ')') return true;
      else this.fail('an unknown kind of group', start);
    }
  }

  /** The characters that an escape stands for; `start` is where its backslash is. */
  private escape(start: number): number[] {
    const character = this.text[this.at++];
    if (character === undefined) this.fail('a backslash with nothing behind it', start);
    const lower = character.toLowerCase();
    const set = escapedClasses[lower];
    if (set !== undefined) return character === lower ? set : negated(set);
    const control = escapedCharacters[character];
    if (control !== undefined) return single(control);
    if (character === 'x') return single(this.hexadecimal(start));
    if (/[1-9k]/.test(character)) this.refuse('a back-reference', start);
    if (lower === 'b') this.refuse('a word boundary', start);
    if (lower === 'p') this.refuse('a Unicode class', start);
    if (character === '0') this.refuse('an octal escape', start);
    if (!/[!-~ ]/.test(character) || /[A-Za-z0-9]/.test(character))
      this.fail(`the unknown escape "\\${character}"`, start);
    return single(character.codePointAt(0)!);
  }

  /** `\x41` and `\x{1F600}`. */
  private hexadecimal(start: number): number {
    const match = /^(?:([0-9A-Fa-f]{2})|\{([0-9A-Fa-f]{1,6})\})/.exec(this.text.slice(this.at, this.at + 8).join(''));
    const value = match === null ? -1 : Number.parseInt(match[1] ?? match[2]!, 16);
    if (value < 0 || value > CODE_POINT_MAX) this.fail('\\x without a hexadecimal number', start);
    this.at += match![0].length;
    return value;
  }

  private characterClass(flags: Flags, start: number): RegexNode {
    const negate = this.next('^');
    if (negate) this.at++;
    const ranges: number[] = [];
    for (let first = true; first || !this.next(']'); first = false) {
      if (this.at >= this.text.length) this.fail('a class without its end', start);
      if (this.next('[:')) {
        const posix = /^\[:(\^?)([A-Za-z]*):\]/.exec(this.text.slice(this.at, this.at + 16).join(''));
        const set = posix !== null && Object.hasOwn(posixClasses, posix[2]!) ? posixClasses[posix[2]!] : undefined;
        if (posix === null || set === undefined) this.fail('"[:" without the name of a class and ":]"');
        ranges.push(...(posix[1] === '' ? set : negated(set)));
        this.at += posix[0].length;
        continue;
      }
      const at = this.at;
      const from = this.classMember();
      // A hyphen at the end, or after a set, is itself.
      if (!this.next('-') || this.text[this.at + 1] === ']' || this.at + 1 >= this.text.length) {
        ranges.push(...from);
        continue;
      }
      this.at++;
      const to = this.classMember();
      if (!isSingle(from) || !isSingle(to) || to[0]! < from[0]!) this.fail('a range that is none', at);
      ranges.push(from[0]!, to[0]!);
    }
    this.at++;
    const set = folded(ranges, flags);
    return { kind: 'class', ranges: negate ? negated(set) : set };
  }

  private classMember(): number[] {
    const start = this.at;
    const character = this.text[this.at++]!;
    return character === '\\' ? this.escape(start) : single(character.codePointAt(0)!);
  }
}

function single(codePoint: number): number[] {
  return [codePoint, codePoint];
}

function isSingle(ranges: number[]): boolean {
  return ranges.length === 2 && ranges[0] === ranges[1];
}

/** With the other case of its ASCII letters, if case is ignored; sorted. */
function folded(ranges: number[], flags: Flags): number[] {
  if (!flags.ignoreCase) return normalRanges(ranges);
  const both = [...ranges];
  for (let i = 0; i < ranges.length; i += 2) {
    for (const [letters, other] of [
      [upperLetters, 32],
      [lowerLetters, -32],
    ] as const) {
      const first = Math.max(ranges[i]!, letters[0]!);
      const last = Math.min(ranges[i + 1]!, letters[1]!);
      if (first <= last) both.push(first + other, last + other);
    }
  }
  return normalRanges(both);
}

/** All other characters. */
function negated(ranges: number[]): number[] {
  const sorted = normalRanges(ranges);
  const rest: number[] = [];
  let from = 0;
  for (let i = 0; i < sorted.length; i += 2) {
    if (sorted[i]! > from) rest.push(from, sorted[i]! - 1);
    from = sorted[i + 1]! + 1;
  }
  if (from <= CODE_POINT_MAX) rest.push(from, CODE_POINT_MAX);
  return rest;
}

/** Sorted, and merged where they touch. */
function normalRanges(ranges: number[]): number[] {
  const pairs: [number, number][] = [];
  for (let i = 0; i < ranges.length; i += 2) pairs.push([ranges[i]!, ranges[i + 1]!]);
  pairs.sort((a, b) => a[0] - b[0]);
  const merged: number[] = [];
  for (const [first, last] of pairs) {
    const end = merged.length - 1;
    if (end > 0 && first <= merged[end]! + 1) merged[end] = Math.max(merged[end]!, last);
    else merged.push(first, last);
  }
  return merged;
}
