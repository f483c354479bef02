// Compiles a regular expression to a deterministic automaton over bytes: one table look-up per byte of
// the text, no memory, no allocation, whatever pattern and text are. Matches whole texts, like
// Envoy's safe_regex (RE2 FullMatch).
//
// Control thread, and the thread that compiles route tables; core/routing/dfa.ts runs the result.
// Way: tree -> nondeterministic automaton over bytes of UTF-8 -> sets of its states. A pattern whose
// automaton would be too large is refused; so is one that takes too long to find that out.
// Invariant: state 0 is dead; no text leads out of it.

import { parseRegex, RegexError, type RegexNode } from './regex-syntax.ts';

/** Most states of a compiled expression. */
export const DFA_STATES_MAX = 4096;

/** Most words of its table: 1 MiB. */
const DFA_WORDS_MAX = 256 * 1024;

/** Most states before it is made deterministic. */
const NFA_STATES_MAX = 20_000;

/** Most steps of making it deterministic, some tens of milliseconds. */
const STEPS_MAX = 5_000_000;

/** A compiled expression; see core/routing/dfa.ts for how it is run. */
export interface Dfa {
  /** Class of each byte: bytes of one class are never told apart. */
  classes: Uint8Array;
  classCount: number;
  /** Where the row of the first state begins. */
  start: number;
  /**
   * One row for each state: for each class where the row of the next state begins, then 1 if the text
   * may end here, else 0. The first row is the dead state's.
   */
  rows: Int32Array;
}

/** Compiles a pattern. Throws RegexError, whose message follows the pattern in a sentence. */
export function compileRegex(pattern: string): Dfa {
  const nfa = new Nfa();
  nfa.start = nfa.build(parseRegex(pattern), nfa.add(Op.MATCH, 0, 0));
  return new DfaBuilder(nfa).build();
}

/** What is wrong with a pattern, to follow the pattern itself; undefined when it can be used. */
export function regexProblem(pattern: string): string | undefined {
  try {
    compileRegex(pattern);
    return undefined;
  } catch (error) {
    if (error instanceof RegexError) return error.message;
    throw error;
  }
}

/** What a state of the nondeterministic automaton does. */
const Op = {
  /** Takes a byte from `low` to `high` and goes to `next`. */
  BYTES: 0,
  /** Goes to `next` and to `other` at once. */
  SPLIT: 1,
  /** Goes to `next` at the start of the text only, at its end only. */
  START: 2,
  END: 3,
  MATCH: 4,
} as const;

class Nfa {
  start = 0;
  readonly ops: number[] = [];
  readonly next: number[] = [];
  /** SPLIT: the second way. */
  readonly other: number[] = [];
  readonly low: number[] = [];
  readonly high: number[] = [];

  add(op: number, next: number, other: number, low = 0, high = 0): number {
    if (this.ops.length >= NFA_STATES_MAX) throw tooLarge();
    this.ops.push(op);
    this.next.push(next);
    this.other.push(other);
    this.low.push(low);
    this.high.push(high);
    return this.ops.length - 1;
  }

  /** The state from which `node` leads to `next`. Built backwards, so that everything has its successor. */
  build(node: RegexNode, next: number): number {
    switch (node.kind) {
      case 'class':
        return this.buildClass(node.ranges, next);
      case 'sequence':
        return node.parts.reduceRight((after, part) => this.build(part, after), next);
      case 'either':
        return node.branches
          .map((branch) => this.build(branch, next))
          .reduceRight((other, branch) => this.add(Op.SPLIT, branch, other));
      case 'repeat':
        return this.buildRepeat(node.node, node.min, node.max, next);
      case 'start':
        return this.add(Op.START, next, 0);
      case 'end':
        return this.add(Op.END, next, 0);
    }
  }

  private buildRepeat(node: RegexNode, min: number, max: number, next: number): number {
    let state = next;
    let copies = min;
    if (max < 0) {
      const loop = this.add(Op.SPLIT, 0, next);
      const body = this.build(node, loop);
      this.next[loop] = body;
      state = min === 0 ? loop : body;
      copies = Math.max(0, min - 1);
    } else {
      for (let i = min; i < max; i++) state = this.add(Op.SPLIT, this.build(node, state), next);
    }
    for (let i = 0; i < copies; i++) {
      const before = this.build(node, state);
      // An empty node adds no state, so that no limit would ever end its repetitions.
      if (before === state) break;
      state = before;
    }
    return state;
  }

  /** Sequences of bytes for the characters; equal ends are shared. A class without characters leads nowhere. */
  private buildClass(ranges: number[], next: number): number {
    const made = new Map<number, number>();
    const starts = new Set<number>();
    eachUtf8Sequence(ranges, (sequence) => {
      let state = next;
      for (let i = sequence.length - 2; i >= 0; i -= 2) {
        const key = (state * 256 + sequence[i]!) * 256 + sequence[i + 1]!;
        let before = made.get(key);
        if (before === undefined) {
          before = this.add(Op.BYTES, state, 0, sequence[i], sequence[i + 1]);
          made.set(key, before);
        }
        state = before;
      }
      starts.add(state);
    });
    if (starts.size === 0) return this.add(Op.BYTES, next, 0, 1, 0);
    return [...starts].reduce((other, state) => this.add(Op.SPLIT, state, other));
  }
}

/** Gives the UTF-8 of characters as sequences of byte ranges [low, high, low, high, ...]. Surrogates have none. */
function eachUtf8Sequence(ranges: readonly number[], take: (sequence: number[]) => void): void {
  const limits = [0x7f, 0x7ff, 0xd7ff, 0xdfff, 0xffff, 0x10ffff];
  for (let i = 0; i < ranges.length; i += 2) {
    let from = ranges[i]!;
    for (const limit of limits) {
      const to = Math.min(ranges[i + 1]!, limit);
      if (from > to) continue;
      if (limit !== 0xdfff) split(from, to, limit <= 0x7f ? 1 : limit <= 0x7ff ? 2 : limit <= 0xffff ? 3 : 4, take);
      from = to + 1;
    }
  }
}

/** Splits characters of one length until each byte of a part varies independently of those before it. */
function split(from: number, to: number, bytes: number, take: (sequence: number[]) => void): void {
  for (let i = 1; i < bytes; i++) {
    const mask = (1 << (6 * i)) - 1;
    if ((from & ~mask) === (to & ~mask)) continue;
    let cut = -1;
    if ((from & mask) !== 0) cut = from | mask;
    else if ((to & mask) !== mask) cut = (to & ~mask) - 1;
    if (cut < 0) continue;
    split(from, cut, bytes, take);
    split(cut + 1, to, bytes, take);
    return;
  }
  const first = Buffer.from(String.fromCodePoint(from));
  const last = Buffer.from(String.fromCodePoint(to));
  const sequence: number[] = [];
  for (let i = 0; i < bytes; i++) sequence.push(first[i]!, last[i]!);
  take(sequence);
}

class DfaBuilder {
  private readonly nfa: Nfa;
  private readonly classes = new Uint8Array(256);
  private readonly classCount: number;
  /** Sets of BYTES states, sorted; a set stands for a state of the result. Index 0: the dead one. */
  private readonly sets: number[][] = [[]];
  private readonly accepting: boolean[] = [false];
  private readonly indexes = new Map<string, number>([['0:', 0]]);
  /** Round of `closure` in which a state was last met. */
  private readonly met: Int32Array;
  private round = 0;
  private steps = 0;

  constructor(nfa: Nfa) {
    this.nfa = nfa;
    this.met = new Int32Array(nfa.ops.length);
    const starts = new Uint8Array(257);
    for (const [state, op] of nfa.ops.entries()) {
      if (op !== Op.BYTES || nfa.low[state]! > nfa.high[state]!) continue;
      starts[nfa.low[state]!] = 1;
      starts[nfa.high[state]! + 1] = 1;
    }
    let count = 0;
    for (let byte = 0; byte < 256; byte++) {
      if (byte > 0 && starts[byte] === 1) count++;
      this.classes[byte] = count;
    }
    this.classCount = count + 1;
  }

  build(): Dfa {
    const { nfa, classCount } = this;
    const width = classCount + 1;
    const start = this.closure([nfa.start], true);
    const rows: number[][] = [];
    for (let index = 0; index < this.sets.length; index++) {
      const targets: number[][] = Array.from({ length: classCount }, () => []);
      for (const state of this.sets[index]!) {
        const last = this.classes[nfa.high[state]!]!;
        for (let one = this.classes[nfa.low[state]!]!; one <= last; one++) targets[one]!.push(nfa.next[state]!);
        this.count(last + 1);
      }
      // Most classes lead where the class before them leads.
      let before: number[] | undefined;
      const row: number[] = [];
      for (const target of targets) {
        const same = before !== undefined && before.length === target.length && before.every((s, i) => s === target[i]);
        row.push(same ? row[row.length - 1]! : target.length === 0 ? 0 : this.closure(target, false) * width);
        before = target;
      }
      row.push(this.accepting[index] ? 1 : 0);
      rows.push(row);
    }
    return { classes: this.classes, classCount, start: start * width, rows: Int32Array.from(rows.flat()) };
  }

  /** Index of the state that stands for everything reachable from `from` without a byte. */
  private closure(from: readonly number[], atStart: boolean): number {
    const { nfa } = this;
    const set: number[] = [];
    const ends: number[] = [];
    let accepts = false;
    this.follow(from, atStart, (state) => {
      const op = nfa.ops[state]!;
      if (op === Op.BYTES) set.push(state);
      else if (op === Op.END) ends.push(state);
      else if (op === Op.MATCH) accepts = true;
      return op === Op.SPLIT;
    });
    // What follows an end counts only if the text ends here.
    if (ends.length > 0 && !accepts) {
      this.follow(ends, atStart, (state) => {
        const op = nfa.ops[state]!;
        if (op === Op.MATCH) accepts = true;
        return op === Op.SPLIT || op === Op.END;
      });
    }
    if (set.length === 0 && !accepts) return 0;
    set.sort((a, b) => a - b);
    const key = `${accepts ? 1 : 0}:${set.join(',')}`;
    let index = this.indexes.get(key);
    if (index !== undefined) return index;
    index = this.sets.length;
    if (index >= DFA_STATES_MAX || (index + 1) * (this.classCount + 1) > DFA_WORDS_MAX) throw tooLarge();
    this.indexes.set(key, index);
    this.sets.push(set);
    this.accepting.push(accepts);
    return index;
  }

  /** Visits what can be reached from `from`; `visit` says whether to go on from there. */
  private follow(from: readonly number[], atStart: boolean, visit: (state: number) => boolean): void {
    const { nfa, met } = this;
    const round = ++this.round;
    const stack = [...from];
    for (let state = stack.pop(); state !== undefined; state = stack.pop()) {
      if (met[state] === round) continue;
      met[state] = round;
      this.count(1);
      const further = nfa.ops[state] === Op.START ? atStart : visit(state);
      if (!further) continue;
      if (nfa.ops[state] === Op.SPLIT) stack.push(nfa.other[state]!);
      stack.push(nfa.next[state]!);
    }
  }

  private count(steps: number): void {
    this.steps += steps;
    if (this.steps > STEPS_MAX) throw tooLarge();
  }
}

function tooLarge(): RegexError {
  return new RegexError(
    `is too large a regular expression: it would need more than ${DFA_STATES_MAX} states, as long counts and repetitions of repetitions do`,
  );
}
