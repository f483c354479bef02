import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ParseError, parseErrorName, parseErrorSentence, parseErrorStatus } from '../../../../core/http1/errors.ts';

test('every parse error has its own number, a status and one sentence of its own', () => {
  const numbers = Object.values(ParseError);
  assert.deepEqual(
    numbers,
    numbers.map((_, index) => index + 1),
    'numbers start at 1 and have no gap',
  );
  const sentences = numbers.map((error) => parseErrorSentence(error));
  assert.equal(new Set(sentences).size, numbers.length);
  for (const error of numbers) {
    assert.ok([400, 414, 417, 431, 501, 502, 505].includes(parseErrorStatus(error)), parseErrorName(error));
    assert.match(parseErrorSentence(error), /^[A-Z].*\.$/);
  }
});

test('statuses say what the client can do about it', () => {
  assert.equal(parseErrorStatus(ParseError.BARE_LF), 400);
  assert.equal(parseErrorStatus(ParseError.URI_TOO_LONG), 414);
  assert.equal(parseErrorStatus(ParseError.EXPECTATION_UNKNOWN), 417);
  assert.equal(parseErrorStatus(ParseError.HEAD_TOO_LARGE), 431);
  assert.equal(parseErrorStatus(ParseError.TOO_MANY_FIELDS), 431);
  assert.equal(parseErrorStatus(ParseError.METHOD_TOO_LONG), 501);
  assert.equal(parseErrorStatus(ParseError.TRANSFER_CODING_UNSUPPORTED), 501);
  assert.equal(parseErrorStatus(ParseError.VERSION_UNSUPPORTED), 505);
});

test('a number that is no error is still describable', () => {
  assert.equal(parseErrorName(9999), 'UNKNOWN');
  assert.equal(parseErrorStatus(9999), 400);
  assert.equal(parseErrorSentence(9999), 'Unknown parse error 9999.');
});
