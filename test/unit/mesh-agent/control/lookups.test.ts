// Which names of a node proxy have been answered: the questions, and responses that only look like answers.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ABSENCE_AGE_MAX_MS, Lookups } from '../../../../mesh-agent/control/lookups.ts';

const LONG_MS = 60_000;
const HOUR_MS = 60 * 60_000;

/** Something is known that has any name. */
const there = (): boolean => true;
const nothing = (): boolean => false;

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
  lookups.received([barrier!], true, there);
  return barrier!;
}

test('a name is answered by the response that ends the question, not by one that was on its way', async () => {
  const { lookups, questions, ask } = newLookups();
  const barrier = connected(lookups);
  const answer = ask('/10.0.0.1');
  assert.deepEqual(questions, [['/10.0.0.1', barrier]]);
  assert.deepEqual(lookups.received([], true, there), []);
  assert.deepEqual(lookups.received(['/10.0.0.9'], true, there), []);
  assert.equal(lookups.isAnswered('/10.0.0.1'), false);
  // The answer comes in two parts.
  assert.deepEqual(lookups.received([barrier], false, there), []);
  assert.deepEqual(lookups.received(['/10.0.0.1'], true, there), ['/10.0.0.1']);
  assert.equal(await answer, '/10.0.0.1 answered');
  assert.equal(lookups.wasAbsent('/10.0.0.1'), true);
});

test('what is asked while a question is under way makes the next one', async () => {
  const { lookups, questions, ask } = newLookups();
  const barrier = connected(lookups);
  const answers = ['/a', '/b', '/c'].map(ask);
  assert.deepEqual(questions, [['/a', barrier]]);
  assert.deepEqual(lookups.received([barrier], true, there), ['/a']);
  assert.deepEqual(questions[1], ['/b', '/c', barrier]);
  lookups.received([barrier], true, there);
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
  assert.deepEqual(lookups.received([barrier], true, there), []);
  assert.equal(lookups.isAnswered('/a'), false);
  assert.deepEqual(lookups.received([barrier], true, there), ['/a']);
  assert.equal(await again, '/a answered');
});

test('a new stream asks for everything, and answers by its first responses', async () => {
  const { lookups, questions, ask } = newLookups();
  const barrier = connected(lookups);
  lookups.load(['/known'], new Map([['/outside', 0]]), 0);
  assert.deepEqual(
    ['/known', '/outside'].map((name) => lookups.wasAbsent(name)),
    [false, true],
  );
  const answer = ask('/a');
  lookups.lost(0);
  const other = ask('/b');
  assert.deepEqual(lookups.release(['/outside']), [], 'nobody has to be told');
  assert.deepEqual(lookups.begin(), ['/known', '/a', '/b', barrier]);
  assert.deepEqual(lookups.received([barrier, '/a'], true, there), ['/a', '/b']);
  assert.deepEqual(await Promise.all([answer, other]), ['/a answered', '/b answered']);
  assert.equal(questions.length, 1);
});

test('a name that something has come to have which cannot be used is not absent any more, and may be again', async () => {
  const { lookups, ask } = newLookups();
  const barrier = connected(lookups);
  void ask('/a');
  lookups.received(['/a', barrier], true, there);
  assert.equal(lookups.wasAbsent('/a'), true);
  assert.deepEqual(lookups.doubt(['/a', '/b']), ['/a']);
  assert.deepEqual([lookups.isAnswered('/a'), lookups.wasAbsent('/a')], [true, false]);
  lookups.received(['/a'], true, there);
  assert.equal(lookups.wasAbsent('/a'), true);
});

test('what nothing had is believed for a day without the control plane, and for as long as it is there', async () => {
  const { lookups, ask } = newLookups();
  let barrier = connected(lookups);
  void ask('/a');
  lookups.received(['/a', barrier], true, nothing);
  const years = 1000 * 365 * 24 * HOUR_MS;
  assert.deepEqual([lookups.oldAbsences(years), lookups.keepsAbsences], [[], true]);
  assert.equal(lookups.confirmedMs('/a', 5 * HOUR_MS), 5 * HOUR_MS);
  lookups.lost(10 * HOUR_MS);
  assert.deepEqual([lookups.oldAbsences(10 * HOUR_MS + ABSENCE_AGE_MAX_MS), lookups.keepsAbsences], [[], false]);
  assert.equal(lookups.confirmedMs('/a', 20 * HOUR_MS), 10 * HOUR_MS);
  // A stream that is there and has said nothing yet makes nothing younger, nor does one that is lost again.
  barrier = lookups.begin().at(-1)!;
  lookups.lost(30 * HOUR_MS);
  assert.deepEqual(lookups.oldAbsences(10 * HOUR_MS + ABSENCE_AGE_MAX_MS + 1), ['/a']);
  lookups.begin();
  lookups.received([barrier], true, nothing);
  assert.deepEqual(lookups.oldAbsences(10 * HOUR_MS + ABSENCE_AGE_MAX_MS + 1), ['/a'], 'it has not said so again');
  lookups.received(['/a'], true, nothing);
  assert.deepEqual(lookups.oldAbsences(years), []);
});

test('what an earlier process was told is as old as that, and not believed when its time cannot be', () => {
  const { lookups } = newLookups();
  const nowMs = 100 * HOUR_MS;
  const times = new Map([
    ['/new', nowMs - ABSENCE_AGE_MAX_MS],
    ['/old', nowMs - ABSENCE_AGE_MAX_MS - 1],
    ['/set-back', nowMs + 60_000],
    ['/future', nowMs + HOUR_MS],
    ['/never', 0],
  ]);
  lookups.load([], times, nowMs);
  assert.deepEqual(lookups.answered, ['/new', '/set-back']);
  assert.deepEqual(lookups.oldAbsences(nowMs + 1), ['/new']);
});

test('a name of which nothing is said waits on, and is answered by what is said later', async () => {
  const { lookups, questions, ask } = newLookups();
  const barrier = connected(lookups);
  const answers = ['/outside', '/there', '/refused', '/never'].map(ask);
  // Two questions, the first of one name.
  for (let count = 0; count < 2; count++) lookups.received([barrier], true, nothing);
  assert.deepEqual(lookups.answered, []);
  // Meanwhile others have their answers.
  const known = ask('/known');
  assert.deepEqual(questions[2], ['/known', barrier]);
  lookups.received([barrier], true, (name) => name === '/known');
  assert.equal(await known, '/known answered');
  lookups.received(['/outside'], false, nothing);
  assert.deepEqual(lookups.answered, ['/known'], 'more of it follows');
  lookups.received([], true, nothing);
  lookups.doubt(['/refused']);
  lookups.received([], true, (name) => name === '/there');
  assert.deepEqual(await Promise.all(answers.slice(0, 3)), [
    '/outside answered',
    '/there answered',
    '/refused answered',
  ]);
  assert.equal(lookups.wasAbsent('/refused'), false);
  lookups.release(['/never']);
  assert.deepEqual(lookups.received([], true, there), [], 'nobody waits for it any more');
  lookups.close();
});

test('who waits is told when the process ends', async () => {
  const { lookups, ask } = newLookups();
  connected(lookups);
  const answer = ask('/a');
  lookups.close();
  assert.equal(await answer, '/a deadline');
});
