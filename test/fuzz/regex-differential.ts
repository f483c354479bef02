// Our regular expressions against two others: JavaScript's, and re2js, a port of RE2.
//
// Well-formed patterns from a grammar must match the same texts in all three. Patterns of random
// characters must be accepted and refused as RE2 does, but for what we name as not supported.

import { RE2JS } from 're2js';
import { compileRegex, type Dfa } from '../../core/routing/regex-dfa.ts';
import { RegexError } from '../../core/routing/regex-syntax.ts';
import { Random } from '../sim/random.ts';

/** What a run has found. */
export interface RegexReport {
  patterns: number;
  /** Texts that were compared, and those that matched. */
  texts: number;
  matches: number;
  /** Random patterns that both accepted, and that both refused. */
  accepted: number;
  refused: number;
  /** Well-formed patterns that need too many states. */
  tooLarge: number;
  /** One line each. */
  findings: string[];
}

/** Whether a text, as UTF-8, matches. */
export function matches({ classes, classCount, rows, start }: Dfa, text: string | Uint8Array): boolean {
  let state = start;
  for (const byte of typeof text === 'string' ? Buffer.from(text) : text) state = rows[state + classes[byte]!]!;
  return rows[state + classCount] === 1;
}

/** Compares `count` patterns of each kind. */
export function fuzzRegex(seed: number, count: number): RegexReport {
  const random = new Random(seed);
  const report: RegexReport = { patterns: 0, texts: 0, matches: 0, accepted: 0, refused: 0, tooLarge: 0, findings: [] };
  for (let i = 0; i < count && report.findings.length < 5; i++) {
    comparePattern(random, report);
    compareGarbage(random, report);
  }
  return report;
}

// -- well-formed patterns -----------------------------------------------------------

/** Characters of texts. Without those that JavaScript and RE2 disagree about: \v, \r, U+2028, K and s of other scripts. */
const alphabet = ['a', 'b', 'c', 'A', 'B', '0', '7', '_', '-', '/', '.', ' ', '\t', '\n', 'é', '€', '😀'];

const atoms = [
  ...['a', 'b', 'c', 'A', '0', '/', '-', 'é', '€', '😀', '.', '.', '\\.', '\\d', '\\D', '\\w', '\\W', '\\s', '\\S'],
  ...[
    '[ab]',
    '[^ab]',
    '[a-c]',
    '[^a-c0]',
    '[\\d_]',
    '[^\\w]',
    '[\\/.]',
    '[a\\-c]',
    '[é-€]',
    '[^é]',
    '\\x61',
    '\\t',
    '\\n',
  ],
];
const operators = ['*', '+', '?', '*?', '+?', '??', '{2}', '{0}', '{1,2}', '{0,3}', '{2,}', '{1,3}?'];

function pattern(random: Random, depth: number): string {
  let text = '';
  const parts = random.int(0, 3);
  for (let i = 0; i <= parts; i++) {
    const kind = random.int(0, 19);
    if (kind === 0) text += '^';
    else if (kind === 1) text += '$';
    else if (kind < 6 && depth > 0) {
      const opening = random.pick(['(', '(?:', '(?i:', '(?s:', '(?<n>', '(?i-s:']);
      // A name may stand once in JavaScript.
      text += `${opening.replace('<n>', `<n${random.next()}>`)}${pattern(random, depth - 1)})`;
      if (random.int(0, 2) === 0) text += random.pick(operators);
    } else {
      text += random.pick(atoms);
      if (random.int(0, 2) === 0) text += random.pick(operators);
    }
  }
  if (depth > 0 && random.int(0, 4) === 0) text += `|${random.int(0, 5) === 0 ? '' : pattern(random, depth - 1)}`;
  return text;
}

function comparePattern(random: Random, report: RegexReport): void {
  const text = pattern(random, 3);
  const ours = compiled(text);
  report.patterns++;
  if (ours instanceof RegexError) {
    if (ours.message.includes('too large')) report.tooLarge++;
    else report.findings.push(`${JSON.stringify(text)} ${ours.message}`);
    return;
  }
  const javascript = new RegExp(`^(?:${text})$`, 'u');
  const re2 = RE2JS.compile(text);
  for (let i = 0; i < 12; i++) {
    // Short ones: JavaScript takes exponential time.
    const subject = Array.from({ length: random.int(0, 6) }, () => random.pick(alphabet)).join('');
    const expected = javascript.test(subject);
    const said = { ours: matches(ours, subject), javascript: expected, re2: re2.matches(subject) };
    report.texts++;
    if (expected) report.matches++;
    // Where JavaScript and RE2 differ (V8 has a defect with `(?i:` and negated or listed characters), RE2 is right.
    if (said.ours !== said.re2) {
      report.findings.push(`${JSON.stringify(text)} on ${JSON.stringify(subject)}: ${JSON.stringify(said)}`);
      return;
    }
  }
}

// -- any characters -----------------------------------------------------------------

const pieces = [
  ...[
    'a',
    'b',
    '0',
    '-',
    ',',
    ':',
    '=',
    '!',
    '<',
    '>',
    'P',
    'i',
    's',
    'é',
    ' ',
    '(',
    ')',
    '[',
    ']',
    '{',
    '}',
    '^',
    '$',
  ],
  ...[
    '.',
    '*',
    '+',
    '?',
    '|',
    '\\',
    '(?',
    '(?:',
    '[^',
    '[a-',
    '{2',
    '{1,',
    '\\d',
    '\\x4',
    '\\x{',
    '[[:',
    'alpha:]]',
    '\\A',
    '\\z',
  ],
];

function compareGarbage(random: Random, report: RegexReport): void {
  const text = Array.from({ length: random.int(1, 7) }, () => random.pick(pieces)).join('');
  const ours = compiled(text);
  let re2: RE2JS | undefined;
  try {
    re2 = RE2JS.compile(text);
  } catch {
    re2 = undefined;
  }
  report.patterns++;
  if (ours instanceof RegexError) {
    if (re2 !== undefined && !isKnownRefusal(ours.message)) {
      report.findings.push(`${JSON.stringify(text)} is a pattern to RE2, but ${ours.message}`);
    }
    report.refused++;
    return;
  }
  if (re2 === undefined) {
    report.findings.push(`${JSON.stringify(text)} is no pattern to RE2`);
    return;
  }
  report.accepted++;
  for (let i = 0; i < 6; i++) {
    const subject = Array.from({ length: random.int(0, 5) }, () => random.pick(pieces)).join('');
    report.texts++;
    if (matches(ours, subject) !== re2.matches(subject)) {
      report.findings.push(`${JSON.stringify(text)} on ${JSON.stringify(subject)}: RE2 says ${re2.matches(subject)}`);
      return;
    }
  }
}

/** Refused although RE2 takes it: said in docs/routing.md. */
function isKnownRefusal(message: string): boolean {
  return /which is not supported|too large|"\[:" without/.test(message);
}

function compiled(text: string): Dfa | RegexError {
  try {
    return compileRegex(text);
  } catch (error) {
    if (error instanceof RegexError) return error;
    throw error;
  }
}
