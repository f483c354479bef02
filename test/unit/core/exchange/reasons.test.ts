// The vocabulary of failure: every number has its words, and no two reasons share a flag.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Detail, detailSentence, REASON_COUNT, Reason, reasonText } from '../../../../core/exchange/reasons.ts';

test('reasons are numbered without gaps, so that counters can be indexed by them', () => {
  assert.deepEqual(Object.values(Reason), [...Array(REASON_COUNT).keys()]);
  assert.deepEqual(Object.values(Detail), [...Array(Object.keys(Detail).length).keys()]);
});

test('every reason has a flag of its own and a sentence', () => {
  const flags = new Set<string>();
  for (const reason of Object.values(Reason)) {
    const { flag, sentence } = reasonText(reason);
    assert.match(flag, /^([A-Z]{2,4}|-)$/);
    assert.match(sentence, /^[A-Z].*\.$/);
    flags.add(flag);
  }
  assert.equal(flags.size, REASON_COUNT);
});

test('every detail but NONE has a sentence of its own', () => {
  const sentences = Object.values(Detail).map(detailSentence);
  assert.equal(sentences[0], '');
  for (const sentence of sentences.slice(1)) assert.match(sentence, /^[A-Z](?!etail \d).*\.$/);
  assert.equal(new Set(sentences).size, sentences.length);
});

test('an unknown number is named, not hidden', () => {
  assert.match(reasonText(999).sentence, /999/);
  assert.match(detailSentence(999), /999/);
});
