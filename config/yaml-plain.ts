// Reads the plain part of YAML that large, mostly generated files consist of, thirty times faster.
//
// A file of ten thousand rules takes the yaml package over a second, which a reload must not. This
// reader knows block and flow collections, plain and quoted scalars on one line, comments and JSON.
// At anything else, and at any mistake, it gives up, and the caller reads the file with the package,
// which also finds the place of mistakes. Control thread.
// Invariant: where it does not give up, the value is the one that readYaml gives (tests compare them).
// Spec: YAML 1.2.2 §7 (flow styles), §8.2 (block collections), §10.3 (core schema).

import { type Environment, mentionsVariable, plainScalarValue, substitute } from './env.ts';

/** Thrown inside this module at what it does not read. */
const giveUp = new Error('not plain YAML');

/** Deepest nesting, as in readYaml. */
const DEPTH_MAX = 64;

/** Keys: every key of the configuration is a plain word. */
const BLOCK_KEY = /([A-Za-z][A-Za-z0-9]*):(?= |\n|$)/y;
const FLOW_KEY = /(?:([A-Za-z][A-Za-z0-9]*):(?= |\n)|"([A-Za-z][A-Za-z0-9]*)" *:)/y;

/** Plain scalars that begin like nothing else in YAML. They end at the line's end, or at a comment. */
const BLOCK_PLAIN = /[A-Za-z0-9_./$~+*-][^\n]*/y;
const FLOW_PLAIN = /[A-Za-z0-9_./$~+*-][^\n,[\]{}"'#]*/y;
const QUOTED = /"([^"\\\n]*)"|'([^'\n]*)'/y;
const LINE_REST = / *(?: #[^\n]*)?(?:\n|$)/y;

/** The value of a whole document, or undefined where the yaml package has to look at it. */
export function readPlainYaml(text: string, env: Environment): unknown {
  // Tabs, line ends of other systems, document markers, directives and other alphabets are rare.
  if (/[^\n\x20-\x7e]|^(?:---|\.\.\.|%)/m.test(text)) return undefined;
  try {
    return new PlainReader(text, env).readDocument();
  } catch (error) {
    if (error === giveUp) return undefined;
    throw error;
  }
}

class PlainReader {
  private readonly text: string;
  private readonly env: Environment;
  /** Position in the text. In block context, the start of a line's content or of a value. */
  private at = 0;
  private depth = 0;

  constructor(text: string, env: Environment) {
    this.text = text;
    this.env = env;
  }

  readDocument(): unknown {
    const indent = this.nextLine();
    if (indent !== 0) throw giveUp;
    let value: unknown;
    if (this.text[this.at] === '{') {
      value = this.readFlow(true);
      this.endLine();
    } else {
      value = this.readBlock(0);
    }
    if (this.nextLine() >= 0) throw giveUp;
    return value;
  }

  // -- block context -----------------------------------------------------------

  /**
   * Goes to the next line with content, if `at` is at the start of a line, and returns its
   * indentation; -1 at the end of the text.
   */
  private nextLine(): number {
    const text = this.text;
    for (let lineStart = this.at; lineStart < text.length; ) {
      let at = lineStart;
      while (text[at] === ' ') at++;
      if (text[at] !== '\n' && text[at] !== '#' && at < text.length) {
        this.at = at;
        return at - lineStart;
      }
      const end = text.indexOf('\n', at);
      lineStart = end < 0 ? text.length : end + 1;
      this.at = lineStart;
    }
    return -1;
  }

  /** Indentation of the next line with content, without going there. */
  private peekIndent(): number {
    const at = this.at;
    const indent = this.nextLine();
    this.peeked = this.at;
    this.at = at;
    return indent;
  }
  private peeked = 0;

  /** A block collection whose first line's content is at `at`, in column `indent`. */
  private readBlock(indent: number): unknown {
    if (++this.depth > DEPTH_MAX) throw giveUp;
    const value = this.isItem(this.at) ? this.readSequence(indent) : this.readMapping(indent);
    this.depth--;
    return value;
  }

  private readSequence(indent: number): unknown[] {
    const items: unknown[] = [];
    for (;;) {
      const dash = this.at;
      if (!this.isItem(dash)) throw giveUp;
      this.at = dash + 1;
      while (this.text[this.at] === ' ') this.at++;
      const column = indent + this.at - dash;
      BLOCK_KEY.lastIndex = this.at;
      if (this.isItem(this.at)) throw giveUp;
      items.push(BLOCK_KEY.test(this.text) ? this.readBlock(column) : this.readValue(indent, false));
      if (!this.goOn(indent)) return items;
      if (!this.isItem(this.at)) {
        // The mapping that this list is in, at the same indentation, goes on.
        this.at -= indent;
        return items;
      }
    }
  }

  private readMapping(indent: number): Record<string, unknown> {
    const mapping: Record<string, unknown> = {};
    for (;;) {
      BLOCK_KEY.lastIndex = this.at;
      const match = BLOCK_KEY.exec(this.text);
      if (match === null) throw giveUp;
      this.at = BLOCK_KEY.lastIndex;
      while (this.text[this.at] === ' ') this.at++;
      this.set(mapping, match[1]!, this.readValue(indent, true));
      if (!this.goOn(indent)) return mapping;
    }
  }

  /** Whether the collection at `indent` has another line; goes to its content if so. */
  private goOn(indent: number): boolean {
    const next = this.peekIndent();
    // Deeper lines would continue a scalar.
    if (next > indent) throw giveUp;
    if (next < indent) return false;
    this.at = this.peeked;
    return true;
  }

  /** What follows a key or a dash on the same line, or on the lines below; then the rest of the line. */
  private readValue(indent: number, afterKey: boolean): unknown {
    LINE_REST.lastIndex = this.text[this.at - 1] === ' ' ? this.at - 1 : this.at;
    if (LINE_REST.test(this.text)) {
      this.endLine();
      const next = this.peekIndent();
      const listInMapping = afterKey && next === indent && this.isItem(this.peeked);
      if (next <= indent && !listInMapping) return null;
      this.at = this.peeked;
      return this.readBlock(next);
    }
    const first = this.text[this.at];
    let value: unknown;
    if (first === '[' || first === '{') value = this.readFlow(false);
    else if (first === '"' || first === "'") value = this.readQuoted();
    else return this.readBlockPlain();
    this.endLine();
    return value;
  }

  private readBlockPlain(): unknown {
    BLOCK_PLAIN.lastIndex = this.at;
    const match = BLOCK_PLAIN.exec(this.text);
    if (match === null) throw giveUp;
    const comment = match[0].indexOf(' #');
    const source = (comment < 0 ? match[0] : match[0].slice(0, comment)).trimEnd();
    this.checkPlain(source);
    this.at = BLOCK_PLAIN.lastIndex + 1;
    return this.scalar(source, true);
  }

  /** Goes to the start of the next line; nothing but a comment may be before it. */
  private endLine(): void {
    LINE_REST.lastIndex = this.text[this.at - 1] === ' ' ? this.at - 1 : this.at;
    if (!LINE_REST.test(this.text)) throw giveUp;
    this.at = LINE_REST.lastIndex;
  }

  private isItem(at: number): boolean {
    if (this.text[at] !== '-') return false;
    const next = this.text[at + 1];
    return next === ' ' || next === '\n' || next === undefined;
  }

  // -- flow context ------------------------------------------------------------

  /** A flow collection at `at`. Only a whole document may go over several lines. */
  private readFlow(lines: boolean): unknown {
    if (++this.depth > DEPTH_MAX) throw giveUp;
    const isMapping = this.text[this.at++] === '{';
    const close = isMapping ? '}' : ']';
    const items: unknown[] = [];
    const mapping: Record<string, unknown> = {};
    this.skipSpace(lines);
    if (this.text[this.at] !== close) {
      for (;;) {
        if (isMapping) {
          const key = this.readFlowKey();
          this.skipSpace(lines);
          this.set(mapping, key, this.readFlowValue(lines));
        } else {
          items.push(this.readFlowValue(lines));
        }
        this.skipSpace(lines);
        const next = this.text[this.at];
        if (next === close) break;
        if (next !== ',') throw giveUp;
        this.at++;
        this.skipSpace(lines);
      }
    }
    this.at++;
    this.depth--;
    return isMapping ? mapping : items;
  }

  private readFlowKey(): string {
    FLOW_KEY.lastIndex = this.at;
    const match = FLOW_KEY.exec(this.text);
    if (match === null) throw giveUp;
    this.at = FLOW_KEY.lastIndex;
    return (match[1] ?? match[2])!;
  }

  private readFlowValue(lines: boolean): unknown {
    const first = this.text[this.at];
    if (first === '[' || first === '{') return this.readFlow(lines);
    if (first === '"' || first === "'") return this.readQuoted();
    FLOW_PLAIN.lastIndex = this.at;
    const match = FLOW_PLAIN.exec(this.text);
    if (match === null) throw giveUp;
    this.at = FLOW_PLAIN.lastIndex;
    const source = match[0].trimEnd();
    this.checkPlain(source);
    return this.scalar(source, true);
  }

  private skipSpace(lines: boolean): void {
    while (this.text[this.at] === ' ' || (lines && this.text[this.at] === '\n')) this.at++;
  }

  // -- scalars -----------------------------------------------------------------

  private readQuoted(): unknown {
    QUOTED.lastIndex = this.at;
    const match = QUOTED.exec(this.text);
    if (match === null) throw giveUp;
    this.at = QUOTED.lastIndex;
    return this.scalar((match[1] ?? match[2])!, false);
  }

  /** Gives up at plain text that could be something else: an alias, an item, a key, a second key. */
  private checkPlain(source: string): void {
    if (/^\*|^-(?![A-Za-z0-9_.])|:(?: |$)/.test(source)) throw giveUp;
  }

  private scalar(source: string, plain: boolean): unknown {
    let text = source;
    if (mentionsVariable(source)) {
      const result = substitute(source, this.env, () => {});
      if (result === undefined) throw giveUp;
      text = result;
    }
    return plain ? plainScalarValue(text) : text;
  }

  private set(mapping: Record<string, unknown>, key: string, value: unknown): void {
    if (Object.hasOwn(mapping, key)) throw giveUp;
    mapping[key] = value;
  }
}
