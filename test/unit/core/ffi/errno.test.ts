// Error numbers as names and phrases, the same as Node's own for this platform.

import assert from 'node:assert/strict';
import { constants } from 'node:os';
import { test } from 'node:test';
import { Errno, errnoName, errnoSentence } from '../../../../core/ffi/errno.ts';

test('every number is the one that the system uses', () => {
  const system: Record<string, number | undefined> = constants.errno;
  let known = 0;
  for (const [name, number] of Object.entries(Errno)) {
    // Node does not list them all.
    if (system[name] === undefined) continue;
    assert.equal(number, system[name], name);
    known++;
  }
  assert.ok(known > 20, `${known} compared`);
});

test('a number is named whichever sign it has, and an unknown one keeps its number', () => {
  assert.equal(errnoName(Errno.ECONNREFUSED), 'ECONNREFUSED');
  assert.equal(errnoName(-Errno.ECONNREFUSED), 'ECONNREFUSED');
  assert.equal(errnoName(4095), 'errno 4095');
  assert.equal(errnoSentence(-Errno.EMFILE), 'the process has no more file descriptors (EMFILE)');
  assert.equal(errnoSentence(4095), 'errno 4095');
});

test('a phrase always ends in a name that can be looked up', () => {
  for (const [name, number] of Object.entries(Errno)) assert.ok(errnoSentence(number).includes(name), name);
});
