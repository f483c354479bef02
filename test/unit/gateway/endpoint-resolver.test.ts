import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { LogFields } from '../../../core/workers/log.ts';
import { EndpointResolver } from '../../../gateway/endpoint-resolver.ts';

/** A resolver over a changeable table of names. */
function harness() {
  const table = new Map<string, string[]>();
  const lines: string[] = [];
  let changes = 0;
  const resolver = new EndpointResolver(
    async (name) => {
      const answer = table.get(name);
      if (answer === undefined) throw Object.assign(new Error('no such name'), { code: 'ENOTFOUND' });
      return answer;
    },
    (level, message, fields?: LogFields) =>
      lines.push(`${level} ${message} ${fields?.name} ${fields?.consequence ?? ''}`.trim()),
    () => changes++,
  );
  return { table, lines, resolver, changes: () => changes };
}

test('answers are sorted and free of duplicates, so their order never looks like a change', async () => {
  const { table, resolver } = harness();
  table.set('a.internal', ['10.0.0.2', '10.0.0.1', '10.0.0.2']);
  const answers = await resolver.resolve(['a.internal']);
  assert.deepEqual(answers.get('a.internal'), ['10.0.0.1', '10.0.0.2']);
});

test('a name that stops resolving keeps its last addresses and is logged once per change of state', async () => {
  const { table, lines, resolver } = harness();
  table.set('a.internal', ['10.0.0.1']);
  await resolver.resolve(['a.internal']);
  table.delete('a.internal');
  await resolver.resolve(['a.internal']);
  const answers = await resolver.resolve(['a.internal']);
  assert.deepEqual(answers.get('a.internal'), ['10.0.0.1']);
  assert.deepEqual(lines, ['warn endpoint name does not resolve a.internal its last addresses stay in use']);
  table.set('a.internal', ['10.0.0.9']);
  assert.deepEqual((await resolver.resolve(['a.internal'])).get('a.internal'), ['10.0.0.9']);
  assert.equal(lines[1], 'info endpoint name resolves again a.internal');
});

test('a name that never resolved has no addresses and a warning says so', async () => {
  const { lines, resolver } = harness();
  const answers = await resolver.resolve(['b.internal']);
  assert.equal(answers.size, 0);
  assert.deepEqual(lines, ['warn endpoint name does not resolve b.internal the backend has no such endpoint for now']);
});

test('watched names are looked up again, and only other addresses count as a change', async (t) => {
  t.mock.timers.enable({ apis: ['setTimeout'] });
  const settle = () => new Promise((resolve) => setImmediate(resolve));
  const { table, resolver, changes } = harness();
  table.set('a.internal', ['10.0.0.1']);
  await resolver.resolve(['a.internal']);
  resolver.watch(['a.internal']);

  t.mock.timers.tick(30_000);
  await settle();
  assert.equal(changes(), 0);

  table.set('a.internal', ['10.0.0.1', '10.0.0.2']);
  t.mock.timers.tick(30_000);
  await settle();
  assert.equal(changes(), 1);
  assert.deepEqual(resolver.lastAnswers(['a.internal']).get('a.internal'), ['10.0.0.1', '10.0.0.2']);

  resolver.close();
  table.set('a.internal', ['10.0.0.3']);
  t.mock.timers.tick(60_000);
  await settle();
  assert.equal(changes(), 1);
});

test('a name without any answer is tried again after five seconds', async (t) => {
  t.mock.timers.enable({ apis: ['setTimeout'] });
  const settle = () => new Promise((resolve) => setImmediate(resolve));
  const { table, resolver, changes } = harness();
  await resolver.resolve(['late.internal']);
  resolver.watch(['late.internal']);
  table.set('late.internal', ['10.0.0.1']);
  t.mock.timers.tick(4_999);
  await settle();
  assert.equal(changes(), 0);
  t.mock.timers.tick(1);
  await settle();
  assert.equal(changes(), 1);
});
