// Which names of a node proxy have been answered: the questions, and responses that only look like answers.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Lookups } from '../../../../mesh-agent/control/lookups.ts';

const LONG_MS = 60_000;

function newLookups(): { lookups: Lookups; questions: string[][]; ask: (name: string) => Promise<string> } {
  const questions: string[][] = [];
  const lookups = new Lookups((names) => void questions.push([...names]));
  const ask = (name: string): Promise<string> => lookups.ask(name, LONG_MS).then((answer) => `${name} ${answer}`);
  return { lookups, questions, ask };
}

/** The stream is there, and its first question, without names, has been answered. */
function connected(lookups: Lookups): string {
  const [barrier, ...more] = lookups.begin();
  assert.deepEqual(more, []);
  lookups.received([barrier!], true);
  return barrier!;
}

test('a name is answered by the response that ends the question, not by one that was on its way', async () => {
  const { lookups, questions, ask } = newLookups();
  const barrier = connected(lookups);
  const answer = ask('/10.0.0.1');
  assert.deepEqual(questions, [['/10.0.0.1', barrier]]);
  assert.deepEqual(lookups.received([], true), []);
  assert.deepEqual(lookups.received(['/10.0.0.9'], true), []);
  assert.equal(lookups.isAnswered('/10.0.0.1'), false);
  // The answer comes in two parts.
  assert.deepEqual(lookups.received([barrier], false), []);
  assert.deepEqual(lookups.received(['/10.0.0.1'], true), ['/10.0.0.1']);
  assert.equal(await answer, '/10.0.0.1 answered');
  assert.equal(lookups.wasAbsent('/10.0.0.1'), true);
});

test('what is asked while a question is under way makes the next one', async () => {
  const { lookups, questions, ask } = newLookups();
  const barrier = connected(lookups);
  const answers = ['/a', '/b', '/c'].map(ask);
  assert.deepEqual(questions, [['/a', barrier]]);
  assert.deepEqual(lookups.received([barrier], true), ['/a']);
  assert.deepEqual(questions[1], ['/b', '/c', barrier]);
  lookups.received([barrier], true);
  assert.deepEqual(await Promise.all(answers), ['/a answered', '/b answered', '/c answered']);
  assert.deepEqual(lookups.answered, ['/a', '/b', '/c']);
  assert.equal(lookups.wasAbsent('/a'), false, 'the control plane has not said so');
});

test('a name that is released and asked for again waits for its own answer', async () => {
  const { lookups, ask } = newLookups();
  const barrier = connected(lookups);
  void ask('/a');
  assert.deepEqual(lookups.release(['/a']), ['/a']);
  const again = ask('/a');
  assert.deepEqual(lookups.received([barrier], true), []);
  assert.equal(lookups.isAnswered('/a'), false);
  assert.deepEqual(lookups.received([barrier], true), ['/a']);
  assert.equal(await again, '/a answered');
});

test('a new stream asks for everything, and answers by its first responses', async () => {
  const { lookups, questions, ask } = newLookups();
  const barrier = connected(lookups);
  lookups.load(['/known', '/outside'], (name) => name === '/known');
  assert.deepEqual(
    ['/known', '/outside'].map((name) => lookups.wasAbsent(name)),
    [false, true],
  );
  const answer = ask('/a');
  lookups.lost();
  const other = ask('/b');
  assert.deepEqual(lookups.release(['/outside']), [], 'nobody has to be told');
  assert.deepEqual(lookups.begin(), ['/known', '/a', '/b', barrier]);
  assert.deepEqual(lookups.received([barrier, '/a'], true), ['/a', '/b']);
  assert.deepEqual(await Promise.all([answer, other]), ['/a answered', '/b answered']);
  assert.equal(questions.length, 1);
});

test('a name that something has come to have which cannot be used is not absent any more, and may be again', async () => {
  const { lookups, ask } = newLookups();
  const barrier = connected(lookups);
  void ask('/a');
  lookups.received(['/a', barrier], true);
  assert.equal(lookups.wasAbsent('/a'), true);
  assert.deepEqual(lookups.doubt(['/a', '/b']), ['/a']);
  assert.deepEqual([lookups.isAnswered('/a'), lookups.wasAbsent('/a')], [true, false]);
  lookups.received(['/a'], true);
  assert.equal(lookups.wasAbsent('/a'), true);
});

test('who waits is told when the process ends', async () => {
  const { lookups, ask } = newLookups();
  connected(lookups);
  const answer = ask('/a');
  lookups.close();
  assert.equal(await answer, '/a deadline');
});
