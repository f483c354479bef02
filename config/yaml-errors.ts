// Syntax errors in words for the author of a file: what is wrong, where, and what was expected.
//
// Control thread. The yaml package reports where its grammar stopped; people need the place of the
// mistake. Each usual mistake (a colon or a space left out, an open quotation mark or bracket,
// indentation, ...) is recognised from the package's error and the text around it.
// Invariant: every finding has a place and says what was expected.

import { type CST, type Document, isCollection, isScalar, type Node, Scalar, visit, type YAMLParseError } from 'yaml';
import { mentionsVariable } from './env.ts';
import type { Finding } from './errors.ts';

/** What a line of a mapping looks like. */
const KEY_AND_VALUE = '"key: value", with a colon and a space';

const ONE_COLUMN = 'the keys of a mapping in one column, and the items of a list in one column';

/** One line of the text. */
interface Line {
  start: number;
  /** Offset of its line feed, or of the end of the text. */
  end: number;
  text: string;
}

/** A finding, after which nothing more is reported if what follows could only be its consequence. */
interface Diagnosis {
  finding: Finding;
  last?: boolean;
}

/** Findings for the syntax errors of a document, one for each line; empty when it has none. */
export function syntaxFindings(document: Document.Parsed, text: string): Finding[] {
  const findings: Finding[] = [];
  const carriageReturn = /\r(?!\n)/.exec(text);
  if (document.errors.length > 0 && carriageReturn !== null) {
    const problem = 'a line ends in a carriage return alone';
    return [{ offset: carriageReturn.index, problem, expected: 'line feeds at the ends of lines' }];
  }
  let coveredTo = -1;
  for (const error of document.errors) {
    if (error.pos[0] <= coveredTo) continue;
    const { finding, last } = diagnose(error, document, text);
    coveredTo = Math.max(lineAt(text, error.pos[0]).end, lineAt(text, finding.offset).end);
    findings.push(finding);
    if (last === true) break;
  }
  return findings;
}

function diagnose(error: YAMLParseError, document: Document.Parsed, text: string): Diagnosis {
  const [offset] = error.pos;
  const line = lineAt(text, offset);
  const tab = /^ *\t/.exec(line.text);
  if (tab !== null || error.code === 'TAB_AS_INDENT') {
    const at = tab === null ? offset : line.start + tab[0].length - 1;
    return { finding: { offset: at, problem: 'a tab is used for indentation', expected: 'spaces' } };
  }
  const rest = text.slice(offset, line.end);
  switch (error.code) {
    case 'MULTIPLE_DOCS':
      return {
        finding: { offset, problem: 'a second document starts here', expected: 'one document in a file' },
        last: true,
      };
    case 'MULTILINE_IMPLICIT_KEY':
      return { finding: notKeyAndValue(offset, rest) };
    case 'MISSING_CHAR':
      return missingCharacter(error, document, text, offset, rest);
    case 'BAD_INDENT':
      return error.message.startsWith('Flow')
        ? unclosedBracket(document, offset)
        : { finding: { offset: contentStart(line), problem: 'this line is indented wrongly', expected: ONE_COLUMN } };
    case 'BLOCK_AS_IMPLICIT_KEY':
      return { finding: nestedWrongly(error, text, offset, line) };
    case 'BLOCK_IN_FLOW':
      return { finding: blockInFlow(offset, rest) };
    case 'UNEXPECTED_TOKEN':
      return unexpected(error, offset, line, rest);
    case 'BAD_SCALAR_START': {
      const problem = `a value cannot start with ${JSON.stringify(text[offset])}`;
      return { finding: { offset, problem, expected: 'quotes around the value' } };
    }
    case 'BAD_ALIAS': {
      const expected = 'quotes around a value that starts with "*"';
      return { finding: { offset, problem: '"*" has a meaning of its own in YAML', expected } };
    }
    case 'BAD_DQ_ESCAPE': {
      const problem = `${rest.slice(0, 2)} means nothing between double quotes`;
      return { finding: { offset, problem, expected: 'single quotes, or \\\\ for a backslash' } };
    }
    case 'KEY_OVER_1024_CHARS':
      return { finding: { offset, problem: 'a key is longer than 1024 characters', expected: KEY_AND_VALUE } };
    default:
      return { finding: { offset, problem: `not valid YAML: ${lowerFirst(error.message)}`, expected: KEY_AND_VALUE } };
  }
}

/** A line that should be a key and its value, and is not: the colon or the space after it is missing. */
function notKeyAndValue(offset: number, rest: string): Finding {
  const content = rest.replace(/\s+#.*$/, '').trimEnd();
  if (content.startsWith('- ') || content === '-') return strayItem(offset);
  const [, key, separator, value] = /^([A-Za-z][A-Za-z0-9]*)(:| +)?(.*)$/.exec(content) ?? [];
  if (key === undefined || (separator === undefined && value !== '')) {
    return { offset, problem: 'this line has no key', expected: KEY_AND_VALUE };
  }
  const problem =
    separator === ':' ? `there is no space after the colon of "${key}"` : `there is no colon after "${key}"`;
  const hint = JSON.stringify(value === '' ? `${key}:` : `${key}: ${value}`.slice(0, 60));
  return { offset, problem, expected: KEY_AND_VALUE, hint: value?.includes('"') === true ? undefined : hint };
}

function strayItem(offset: number): Finding {
  return { offset, problem: 'a list item stands among the keys of a mapping', expected: ONE_COLUMN };
}

function missingCharacter(
  error: YAMLParseError,
  document: Document.Parsed,
  text: string,
  offset: number,
  rest: string,
): Diagnosis {
  if (error.message.startsWith('Missing closing')) {
    const start = openQuote(document, offset);
    const finding = {
      offset: start,
      problem: `the quotation mark ${text[start]} here is not closed`,
      expected: `${text[start]} at the end of the value`,
    };
    return { finding, last: true };
  }
  if (error.message.startsWith('Flow')) return unclosedBracket(document, offset);
  if (error.message.startsWith('Sequence item')) {
    return { finding: { offset, problem: 'this line is indented wrongly', expected: ONE_COLUMN } };
  }
  if (error.message.startsWith('Missing directives-end')) {
    const directive = text.search(/^%/m);
    const expected = 'quotes around a value that starts with "%"';
    return { finding: { offset: Math.max(directive, 0), problem: 'a line starts with "%"', expected }, last: true };
  }
  return { finding: notKeyAndValue(offset, rest) };
}

/** Start of the quoted text that ends at `offset` for want of a quotation mark. */
function openQuote(document: Document.Parsed, offset: number): number {
  return lastStart(document, offset, (node) => {
    return isScalar(node) && (node.type === Scalar.QUOTE_DOUBLE || node.type === Scalar.QUOTE_SINGLE);
  });
}

function unclosedBracket(document: Document.Parsed, offset: number): Diagnosis {
  let open = '[';
  const start = lastStart(document, offset, (node) => {
    const token = isCollection(node) ? (node.srcToken as CST.Token | undefined) : undefined;
    if (token?.type !== 'flow-collection') return false;
    const close = token.start.source === '{' ? 'flow-map-end' : 'flow-seq-end';
    if (token.end.some(({ type }) => type === close)) return false;
    open = token.start.source;
    return true;
  });
  const close = open === '{' ? '}' : ']';
  const finding = {
    offset: start,
    problem: `the bracket ${open} here is not closed`,
    expected: `${close}, with the lines up to it indented deeper than their key`,
  };
  return { finding, last: true };
}

/** Start of the last node before `offset` that is wanted; `offset` itself if there is none. */
function lastStart(document: Document.Parsed, offset: number, wanted: (node: Node) => boolean): number {
  let start = -1;
  visit(document, {
    Node: (_, node) => {
      const from = node.range?.[0];
      if (from !== undefined && from != null && from < offset && from > start && wanted(node)) start = from;
    },
  });
  return start < 0 ? offset : start;
}

/** A mapping or list inside what is a single value already. */
function nestedWrongly(error: YAMLParseError, text: string, offset: number, line: Line): Finding {
  const dash = /^ *-(?=[A-Za-z])/.exec(line.text);
  if (dash !== null) {
    const hint = JSON.stringify(line.text.trim().replace(/^-/, '- ').slice(0, 60));
    const expected = '"- " before each item of a list';
    return { offset: line.start + dash[0].length - 1, problem: 'there is no space after the dash', expected, hint };
  }
  if (error.message.startsWith('A block sequence')) return strayItem(contentStart(line));
  if (/:(?: |$)/.test(text.slice(offset, line.end))) {
    const expected = 'quotes around a value that has ": " in it, or each key on a line of its own';
    return { offset, problem: 'a second key on the same line', expected };
  }
  // The value is complete; the next line is indented as if it went on.
  const next = nextContent(text, line.end);
  const problem = 'this line is indented deeper than the one above, which has its value already';
  return { offset: next, problem, expected: ONE_COLUMN };
}

function blockInFlow(offset: number, rest: string): Finding {
  const expected = 'commas between the parts of { } and [ ]';
  if (/^-(?: |$)/.test(rest)) return { offset, problem: 'a list item with a dash stands inside { } or [ ]', expected };
  const next = /^[^"'\s]+\s+([A-Za-z][A-Za-z0-9]*):/.exec(rest);
  if (next !== null) {
    const at = offset + next[0].length - next[1]!.length - 1;
    return { offset: at, problem: `there is no comma before "${next[1]}"`, expected };
  }
  return { offset, problem: 'a comma or a quotation mark is missing after this', expected };
}

function unexpected(error: YAMLParseError, offset: number, line: Line, rest: string): Diagnosis {
  if (mentionsVariable(line.text)) {
    // biome-ignore lint/suspicious/noTemplateCurlyInString: the syntax of variables
    const expected = 'quotes around ${...} inside { } or [ ], where YAML gives braces a meaning of their own';
    // The braces are unbalanced now: what follows would only confuse.
    return { finding: { offset, problem: 'not valid YAML', expected }, last: true };
  }
  if (/^[\]}]/.test(rest)) {
    const finding = {
      offset,
      problem: `the bracket ${rest[0]} here closes nothing`,
      expected: 'as many [ and { as ] and }',
    };
    return { finding, last: true };
  }
  if (error.message.startsWith('Block scalar header')) {
    const expected = 'nothing else on a line that ends in | or >, or quotes around the value';
    return { finding: { offset, problem: 'more follows a | or > than it can take', expected } };
  }
  const before = line.text.slice(0, offset - line.start).trimEnd();
  if (before === '') {
    return {
      finding: { offset, problem: 'this line does not belong to what is above it', expected: ONE_COLUMN },
      last: true,
    };
  }
  if (/["'\]}]$/.test(before)) {
    const word = /^[^\s,\]}]+/.exec(rest)?.[0] ?? '';
    const bracketed = /\[[^[\]]*\]$/.exec(before)?.[0];
    const hint = bracketed !== undefined && word.startsWith(':') ? JSON.stringify(bracketed + word) : undefined;
    const problem = `more follows the closing ${before.at(-1)} of a value`;
    return { finding: { offset, problem, expected: 'quotes around the whole value, or a comma between two', hint } };
  }
  return {
    finding: { offset, problem: `${JSON.stringify(rest.slice(0, 20))} is not expected here`, expected: KEY_AND_VALUE },
  };
}

function lineAt(text: string, offset: number): Line {
  const start = offset === 0 ? 0 : text.lastIndexOf('\n', offset - 1) + 1;
  const feed = text.indexOf('\n', offset);
  const end = feed < 0 ? text.length : feed;
  return { start, end, text: text.slice(start, end) };
}

function contentStart(line: Line): number {
  return line.start + /^ */.exec(line.text)![0].length;
}

/** Offset of the next content that is not a comment; the end of the text if there is none. */
function nextContent(text: string, from: number): number {
  const match = /(?:\s|(?<=\s)#[^\n]*)*/y;
  match.lastIndex = from;
  return from + (match.exec(text)?.[0].length ?? 0);
}

function lowerFirst(text: string): string {
  return text.charAt(0).toLowerCase() + text.slice(1);
}
