import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { LogFields } from '../../../../core/workers/log.ts';
import type { Answer } from '../../../../gateway/discovery/dns.ts';
import { EndpointResolver, queryKey } from '../../../../gateway/discovery/resolver.ts';

const config = { servers: [], timeoutMs: 5000, ttlMinMs: 1000, ttlMaxMs: 300_000 };
const settle = () => new Promise((resolve) => setImmediate(resolve));
const query = (name: string, srv = false) => ({ name, srv });

/** A resolver over a changeable table of names; time is the test's. */
function harness() {
  const table = new Map<string, { hosts: string[]; ttlMs?: number }>();
  const lines: string[] = [];
  const asked: string[] = [];
  /** Lookups of these names wait. */
  const held = new Map<string, Promise<void>>();
  const state = { changes: 0, nowMs: 0 };
  const resolver = new EndpointResolver(
    (level, message, fields?: LogFields) =>
      lines.push(`${level} ${message} ${fields?.name} ${fields?.consequence ?? ''}`.trim()),
    () => state.changes++,
    ({ servers }) =>
      async (name, srv) => {
        asked.push(queryKey(query(name, srv)) + servers.map((server) => `@${server}`).join(''));
        await held.get(name);
        const found = table.get(name);
        if (found === undefined) throw Object.assign(new Error('no such name'), { code: 'ENOTFOUND' });
        const answers = found.hosts.map((host): Answer => ({ host, port: srv ? 80 : 0, weight: 3, priority: 0 }));
        return { answers, ttlMs: found.ttlMs };
      },
    () => state.nowMs,
  );
  const resolve = async (...names: string[]) => {
    const queries = names.map((name) => query(name));
    resolver.adopt(queries, await resolver.prepare(queries, config));
    const answers = resolver.lastAnswers(queries);
    return names.map((name) => answers.get(name)?.map(({ host }) => host));
  };
  return { table, lines, asked, held, resolver, state, resolve };
}

test('answers are sorted and free of duplicates, so their order never looks like a change', async () => {
  const { table, resolve } = harness();
  table.set('a.internal', { hosts: ['10.0.0.2', '10.0.0.1', '10.0.0.2'] });
  assert.deepEqual(await resolve('a.internal'), [['10.0.0.1', '10.0.0.2']]);
});

test('SRV records that name an address twice add up their weights', async () => {
  const { table, resolver } = harness();
  table.set('s.internal', { hosts: ['10.0.0.1', '10.0.0.1'] });
  const queries = [query('s.internal', true)];
  const answers = resolver.lastAnswers(queries, await resolver.prepare(queries, config));
  assert.deepEqual(answers.get('srv:s.internal'), [{ host: '10.0.0.1', port: 80, weight: 6, priority: 0 }]);
});

test('a name that stops resolving keeps its last addresses and is logged once per change of state', async () => {
  const { table, lines, resolve } = harness();
  table.set('a.internal', { hosts: ['10.0.0.1'] });
  await resolve('a.internal');
  table.delete('a.internal');
  await resolve('a.internal');
  assert.deepEqual(await resolve('a.internal'), [['10.0.0.1']]);
  assert.deepEqual(lines, ['warn endpoint name does not resolve a.internal its last addresses stay in use']);
  table.set('a.internal', { hosts: ['10.0.0.9'] });
  assert.deepEqual(await resolve('a.internal'), [['10.0.0.9']]);
  assert.equal(lines[1], 'info endpoint name resolves again a.internal');
});

test('a name that never resolved has no addresses and a warning says so', async () => {
  const { lines, resolve } = harness();
  assert.deepEqual(await resolve('b.internal'), [undefined]);
  assert.deepEqual(lines, ['warn endpoint name does not resolve b.internal the backend has no such endpoint for now']);
});

test('names are looked up again when their TTL is over, within the bounds, and only other addresses count as a change', async (t) => {
  t.mock.timers.enable({ apis: ['setTimeout'] });
  const { table, resolver, asked, state, resolve } = harness();
  const pass = async (ms: number): Promise<string[]> => {
    asked.length = 0;
    state.nowMs += ms;
    t.mock.timers.tick(ms);
    await settle();
    return [...asked];
  };
  table.set('short', { hosts: ['10.0.0.1'], ttlMs: 0 });
  table.set('middle', { hosts: ['10.0.0.1'], ttlMs: 8000 });
  table.set('long', { hosts: ['10.0.0.1'], ttlMs: 86_400_000 });
  table.set('untold', { hosts: ['10.0.0.1'] });
  const names = ['short', 'middle', 'long', 'untold'];
  await resolve(...names);

  assert.deepEqual(await pass(999), []);
  assert.deepEqual(await pass(1), ['short']);
  assert.equal(state.changes, 0);
  table.set('short', { hosts: ['10.0.0.1'], ttlMs: 400_000 });
  await pass(1000);
  assert.deepEqual(await pass(5999), []);
  table.set('middle', { hosts: ['10.0.0.1', '10.0.0.2'], ttlMs: 400_000 });
  assert.deepEqual(await pass(1), ['middle']);
  assert.equal(state.changes, 1);
  assert.deepEqual(await pass(21_999), []);
  assert.deepEqual(await pass(1), ['untold']);
  table.set('untold', { hosts: ['10.0.0.1'], ttlMs: 400_000 });
  await pass(30_000);
  // Ten minutes of TTL are five at most.
  assert.deepEqual(await pass(239_999), []);
  assert.deepEqual(await pass(1), ['long']);
  resolver.close();
  assert.deepEqual(await pass(600_000), []);
});

test('a name without an answer is tried again after five seconds', async (t) => {
  t.mock.timers.enable({ apis: ['setTimeout'] });
  const { table, state, resolve } = harness();
  await resolve('late.internal');
  table.set('late.internal', { hosts: ['10.0.0.1'] });
  state.nowMs = 4999;
  t.mock.timers.tick(4999);
  await settle();
  assert.equal(state.changes, 0);
  state.nowMs = 5000;
  t.mock.timers.tick(1);
  await settle();
  assert.equal(state.changes, 1);
});

test('names that no endpoint has any more are forgotten', async () => {
  const { table, resolver, resolve } = harness();
  table.set('a.internal', { hosts: ['10.0.0.1'] });
  await resolve('a.internal');
  resolver.adopt([]);
  assert.equal(resolver.lastAnswers([query('a.internal')]).size, 0);
});

test('names of a configuration that is refused leave no trace, nor do its name servers', async (t) => {
  t.mock.timers.enable({ apis: ['setTimeout'] });
  const { table, asked, resolver, state, resolve } = harness();
  table.set('a.internal', { hosts: ['10.0.0.1'], ttlMs: 5000 });
  table.set('b.internal', { hosts: ['10.0.0.3'], ttlMs: 5000 });
  await resolve('a.internal');
  table.set('a.internal', { hosts: ['10.0.0.2'], ttlMs: 5000 });
  const queries = [query('a.internal'), query('b.internal')];
  const names = await resolver.prepare(queries, { ...config, servers: ['192.0.2.1'] });
  assert.equal(resolver.lastAnswers(queries, names).get('a.internal')?.[0]?.host, '10.0.0.2');
  assert.deepEqual(
    [...resolver.lastAnswers(queries)].map(([name, [answer]]) => [name, answer?.host]),
    [['a.internal', '10.0.0.1']],
  );
  asked.length = 0;
  state.nowMs = 5000;
  t.mock.timers.tick(5000);
  await settle();
  assert.deepEqual(asked, ['a.internal']);
  // What the refused configuration has seen is news all the same.
  assert.equal(state.changes, 1);
});

test('no timer runs while all names are being looked up, and the last answer sets it again', async (t) => {
  const { table, asked, held, resolver, state, resolve } = harness();
  table.set('a.internal', { hosts: ['10.0.0.1'], ttlMs: 5000 });
  await resolve('a.internal');
  const delays: (number | undefined)[] = [];
  const mocked = t.mock.method(globalThis, 'setTimeout', (fire: () => void, delayMs?: number) => {
    delays.push(delayMs);
    fires.push(fire);
    return { unref: () => {} };
  });
  t.mock.method(globalThis, 'clearTimeout', () => {});
  const fires: (() => void)[] = [];
  resolver.adopt([query('a.internal')]);
  assert.deepEqual(delays, [5000]);
  const { promise, resolve: release } = Promise.withResolvers<void>();
  held.set('a.internal', promise);
  state.nowMs = 5000;
  asked.length = 0;
  delays.length = 0;
  fires[0]!();
  // A reload comes while the lookup is under way: the only timer is the bound of the lookup.
  resolver.adopt([query('a.internal')]);
  assert.deepEqual(delays, [config.timeoutMs]);
  release();
  await settle();
  assert.deepEqual([asked, delays], [['a.internal'], [config.timeoutMs, 5000]]);
  mocked.mock.restore();
});
