// The parser cases of test/data/http1, each fed whole, split at every byte, and byte by byte.
// Very long inputs are split at every byte of their beginning and end and at even distances between.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { findHeadEnd } from '../../../../core/http1/head-scan.ts';
import type { ParserLimits } from '../../../../core/http1/message.ts';
import { loadCaseFiles, type ParserCase } from './case-file.ts';
import { type Outcome, observeChunked, observeRequest, observeResponse, wideLimits } from './observe.ts';

/** Inputs up to this length are split everywhere. */
const SPLIT_EVERYWHERE_MAX = 700;
/** Bytes at each end of a longer input that are split everywhere, and the distance between. */
const SPLIT_EDGE = 80;
const SPLIT_STEP = 211;

/** Where to split an input of `length` bytes: 0 to length - 1. */
function splitPoints(length: number): number[] {
  const points: number[] = [];
  for (let at = 0; at < length; at++) {
    const atEdge = at < SPLIT_EDGE || at >= length - SPLIT_EDGE;
    if (length <= SPLIT_EVERYWHERE_MAX || atEdge || at % SPLIT_STEP === 0) points.push(at);
  }
  return points;
}

/** Compares one outcome with the expectations of a case; `field` lines must be complete and in order. */
function checkExpectations(outcome: Outcome, parserCase: ParserCase): void {
  const fields = parserCase.expect.filter(({ name }) => name === 'field').map(({ value }) => value);
  if (fields.length > 0) assert.deepEqual(outcome.fields, fields);
  for (const { name, value } of parserCase.expect) {
    if (name === 'field') continue;
    if (name === 'more') {
      assert.deepEqual(outcome, { more: true });
      continue;
    }
    if (name === 'no-fields') {
      assert.deepEqual(outcome.fields, []);
      continue;
    }
    assert.ok(name in outcome, `no "${name}" in ${JSON.stringify(outcome)}`);
    assert.equal(String(outcome[name]), value, name);
  }
}

function checkHead(parserCase: ParserCase, observe: (input: Uint8Array, limits: ParserLimits) => Outcome): void {
  const limits = { ...wideLimits, ...parserCase.limits };
  const { input } = parserCase;
  const whole = observe(input, limits);
  checkExpectations(whole, parserCase);

  const headBytes = typeof whole.bytes === 'number' ? whole.bytes : Number.POSITIVE_INFINITY;
  for (const length of splitPoints(input.length)) {
    const part = observe(input.subarray(0, length), limits);
    if (length >= headBytes) assert.deepEqual(part, whole, `split at ${length}`);
    else if (part.error === undefined) assert.deepEqual(part, { more: true }, `split at ${length}`);
    else assert.deepEqual(part, whole, `split at ${length}`);
  }

  // As a connection does it when bytes trickle in: scan, and parse once the end is there.
  let scanned = 0;
  for (let length = 1; length <= input.length; length++) {
    const end = findHeadEnd(input, 0, length, scanned);
    if (end >= 0) {
      assert.equal(end, findHeadEnd(input, 0, input.length, 0), 'a resumed scan finds another end');
      assert.deepEqual(observe(input.subarray(0, end), limits), whole, 'the scanned head parses otherwise');
      return;
    }
    scanned = length;
  }
  assert.equal(whole.bytes, undefined, 'a head that parses has an end');
}

function checkChunked(parserCase: ParserCase): void {
  const { input } = parserCase;
  const maxTrailerBytes = parserCase.limits.maxTrailerBytes ?? 8192;
  const whole = observeChunked(input, [input.length], maxTrailerBytes);
  checkExpectations(whole, parserCase);
  for (const first of splitPoints(input.length)) {
    const split = observeChunked(input, [first, input.length - first], maxTrailerBytes);
    assert.deepEqual(split, whole, `split at ${first}`);
  }
  assert.deepEqual(observeChunked(input, new Array(input.length).fill(1), maxTrailerBytes), whole, 'byte by byte');
}

for (const { file, cases } of loadCaseFiles()) {
  describe(file, () => {
    for (const parserCase of cases) {
      test(parserCase.name, () => {
        if (parserCase.kind === 'chunked') checkChunked(parserCase);
        else checkHead(parserCase, parserCase.kind === 'request' ? observeRequest : observeResponse);
      });
    }
  });
}
