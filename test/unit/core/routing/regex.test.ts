// Regular expressions case by case; test/fuzz/regex.test.ts compares them with other engines.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { DfaRecord, dfaAccepts, dfaRun, dfaStart } from '../../../../core/routing/dfa.ts';
import { compileRegex, DFA_STATES_MAX, regexProblem } from '../../../../core/routing/regex-dfa.ts';
import { quoteRegex } from '../../../../core/routing/regex-syntax.ts';
import { matches } from '../../../fuzz/regex-differential.ts';

/** Asserts which texts a pattern matches: `yes` and `no` are lists without spaces in the texts. */
function assertMatches(pattern: string, yes: string[], no: string[]): void {
  const dfa = compileRegex(pattern);
  for (const text of yes) assert.ok(matches(dfa, text), `${pattern} matches ${JSON.stringify(text)}`);
  for (const text of no) assert.ok(!matches(dfa, text), `${pattern} does not match ${JSON.stringify(text)}`);
}

test('a pattern must match the whole text', () => {
  assertMatches('/v[0-9]+', ['/v1', '/v42'], ['/v', '/v1/', 'x/v1', '/v1x']);
  assertMatches('/v[0-9]+/.*', ['/v1/', '/v1/a/b'], ['/v1', '/vx/']);
  assertMatches('a|bc', ['a', 'bc'], ['ac', 'b', 'abc']);
  assertMatches('', [''], ['a']);
});

test('anchors hold at the ends of the text and nowhere else', () => {
  assertMatches('^/a$', ['/a'], ['/a\n', '/ab']);
  assertMatches('\\A/a\\z', ['/a'], ['/a\n']);
  assertMatches('(^|/)a(/|$)', ['a', '/a', 'a/', '/a/'], ['b/a', 'ab']);
  assertMatches('a^b|a$b', [], ['ab', 'a', 'b']);
  assertMatches('$^', [''], ['a']);
});

test('repetitions, greedy or lazy, match the same texts', () => {
  for (const lazy of ['', '?']) {
    assertMatches(`a*${lazy}`, ['', 'a', 'aaa'], ['b', 'ab']);
    assertMatches(`(ab)+${lazy}`, ['ab', 'abab'], ['', 'aba']);
    assertMatches(`a?${lazy}b`, ['b', 'ab'], ['aab']);
    assertMatches(`a{2,3}${lazy}`, ['aa', 'aaa'], ['a', 'aaaa']);
    assertMatches(`a{2,}${lazy}`, ['aa', 'aaaaaaaa'], ['a', '']);
    assertMatches(`a{3}${lazy}`, ['aaa'], ['aa', 'aaaa']);
  }
  assertMatches('(a*)*b', ['b', 'aaab'], ['aaa']);
  assertMatches('a{,2}', ['a{,2}'], ['a', 'aa']);
});

test('classes: ranges, negation, escapes and the names of POSIX', () => {
  assertMatches('[a-c-]+', ['abc', '-', 'a-c'], ['d', '']);
  assertMatches('[]^]', [']', '^'], ['a']);
  assertMatches('[^]^]', ['a'], [']', '^']);
  assertMatches('\\d\\w\\s', ['1_ ', '0a\t'], ['aa ', '11\v']);
  assertMatches('\\D\\W\\S', ['a-b'], ['1-b', 'aab', 'a- ']);
  assertMatches('[\\d.]+', ['1.2'], ['a']);
  assertMatches('[^\\d.]+', ['ab'], ['1', '.']);
  assertMatches('[[:alpha:][:^space:]]', ['a', '1'], [' ']);
  assertMatches('\\x41\\x{e9}\\.', ['Aé.'], ['Aéx']);
});

test('names that every object has are no classes', () => {
  for (const name of ['constructor', 'toString', 'valueOf']) {
    assert.match(regexProblem(`[[:${name}:]]`)!, /"\[:" without the name of a class/, name);
    assert.match(regexProblem(`[[:^${name}:]]`)!, /"\[:" without the name of a class/, name);
  }
});

test('counting nothing costs nothing, however often', () => {
  // A thousand times a thousand times ... of an empty text: nobody would live to see the end of it.
  const many = (inner: string): string => `${'('.repeat(9)}${inner}${'){1000}'.repeat(9)}`;
  assertMatches(many(''), [''], ['a']);
  assertMatches(`a${many('b{0}')}c`, ['ac'], ['abc', '']);
  assert.match(regexProblem(many('a'))!, /too large/);
});

test('a dot is one character of UTF-8, but not a line feed unless s is set', () => {
  assertMatches('.', ['a', 'é', '€', '😀', '\r'], ['', 'ab', '\n']);
  assertMatches('(?s).', ['\n'], ['']);
  assertMatches('a(?s:.)b.', ['a\nbc'], ['a\nb\n']);
  assertMatches('[^a]', ['é', '\n'], ['a']);
  const dot = compileRegex('.*');
  for (const bytes of [[0xff], [0xc3], [0xc0, 0x80], [0xed, 0xa0, 0x80], [0xf4, 0x90, 0x80, 0x80]]) {
    assert.ok(!matches(dot, Uint8Array.from(bytes)), `${bytes} is no UTF-8`);
  }
});

test('case is ignored for ASCII letters where i is set', () => {
  assertMatches('(?i)Ab-[c-d]', ['aB-D', 'AB-c'], ['ab-e']);
  assertMatches('a(?i:b)c', ['abc', 'aBc'], ['Abc', 'abC']);
  assertMatches('a(?i)b(?-i)c', ['aBc'], ['ABc', 'abC']);
  assertMatches('(?i)[^a]', ['b'], ['a', 'A']);
});

test('groups of every kind only group', () => {
  assertMatches('(a)(?:b)(?P<n>c)(?<m>d)', ['abcd'], ['abc']);
  assertMatches('(|a)b', ['b', 'ab'], ['aab']);
});

test('a quoted text matches itself only', () => {
  const text = 'a.b*c(d)[e]{f}^$|\\+?';
  assertMatches(quoteRegex(text), [text], ['axb*c(d)[e]{f}^$|\\+?']);
});

test('a pattern that needs too many states is refused, one that barely fits is taken', () => {
  assert.match(regexProblem('(a|b)*a(a|b){12}')!, new RegExp(`more than ${DFA_STATES_MAX} states`));
  assert.equal(regexProblem('(a|b)*a(a|b){10}'), undefined);
  // Each would need gigabytes before anybody could count its states.
  for (const pattern of ['((a{1000}){1000}){1000}', '(((.{9}){9}){9}){9}', '(.*a){1000}', '(a?){1000}a{1000}']) {
    assert.match(regexProblem(pattern)!, /too large/, pattern);
  }
  assert.match(regexProblem('('.repeat(200) + ')'.repeat(200))!, /more than 100 groups/);
  assert.equal(regexProblem('(a*)*(b*)*'), undefined);
});

test('an expression runs in shared words, over pieces of a text as over the whole', () => {
  const { classes, classCount, start, rows } = compileRegex('a+b|cd');
  // Somewhere inside larger sections, as in a route table.
  const words = new Int32Array(7 + DfaRecord.ROWS + rows.length);
  words.set([50, classCount, start], 7);
  words.set(rows, 7 + DfaRecord.ROWS);
  const bytes = new Uint8Array(400);
  bytes.set(classes, 50);
  const memory = Buffer.from('xxaaabxx');
  const run = (state: number, from: number, to: number): number => dfaRun(words, bytes, 7, state, memory, from, to);
  assert.ok(dfaAccepts(words, 7, run(dfaStart(words, 7), 2, 6)));
  assert.ok(dfaAccepts(words, 7, run(run(dfaStart(words, 7), 2, 4), 4, 6)));
  assert.ok(!dfaAccepts(words, 7, run(dfaStart(words, 7), 2, 5)));
  assert.equal(run(dfaStart(words, 7), 1, 6), 0);
});
