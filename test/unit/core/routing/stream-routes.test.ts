// Which route takes a connection by listener and name, and how weights share connections.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { StreamRoutes } from '../../../../core/routing/stream-routes.ts';
import type { StreamRouteSettings } from '../../../../core/workers/snapshot.ts';

function route(name: string, hostnames: string[], listeners = [0], weights = [1]): StreamRouteSettings {
  return { name, listeners, hostnames, backendRefs: weights.map((weight, backend) => ({ backend, weight })) };
}

/** Name of the route that takes a connection; undefined: none. */
function taken(routes: StreamRoutes, serverName: string | null, listener = 0): string | undefined {
  const found = routes.lookup(listener, serverName);
  return found === null ? undefined : Buffer.from(found.nameBytes).toString();
}

test('an exact name comes before a wildcard, a longer wildcard before a shorter one, any name last', () => {
  const routes = new StreamRoutes([
    route('any', []),
    route('short', ['*.example']),
    route('long', ['*.b.example']),
    route('exact', ['a.b.example']),
  ]);
  assert.equal(taken(routes, 'a.b.example'), 'exact');
  assert.equal(taken(routes, 'x.b.example'), 'long');
  assert.equal(taken(routes, 'x.y.b.example'), 'long');
  assert.equal(taken(routes, 'b.example'), 'short');
  assert.equal(taken(routes, 'x.example'), 'short');
  assert.equal(taken(routes, 'example'), 'any');
  assert.equal(taken(routes, 'x.test'), 'any');
  assert.equal(taken(routes, null), 'any');
});

test('a wildcard does not stand for nothing, nor for part of a label', () => {
  const routes = new StreamRoutes([route('wild', ['*.b.example'])]);
  assert.equal(taken(routes, 'b.example'), undefined);
  assert.equal(taken(routes, 'ab.example'), undefined);
  assert.equal(taken(routes, '.b.example'), 'wild');
  assert.equal(taken(routes, null), undefined);
  assert.equal(taken(routes, ''), undefined);
});

test('a name that a client sends cannot pass for a wildcard or for another listener', () => {
  const routes = new StreamRoutes([route('wild', ['*.a.example'], [0]), route('other', ['a.example'], [1])]);
  assert.equal(taken(routes, 'a.example', 0), undefined);
  assert.equal(taken(routes, '1/a.example', 0), undefined);
  assert.equal(taken(routes, 'a.example', 1), 'other');
  assert.equal(taken(routes, 'x.a.example', 1), undefined);
});

test('a route may belong to several listeners, and the first of two for the same name wins', () => {
  const routes = new StreamRoutes([route('first', ['a.example'], [0, 2]), route('second', ['a.example'], [2, 3])]);
  assert.deepEqual(
    [0, 1, 2, 3].map((listener) => taken(routes, 'a.example', listener)),
    ['first', undefined, 'first', 'second'],
  );
});

test('numbers drawn evenly share connections exactly by weight', () => {
  const found = new StreamRoutes([route('r', [], [0], [3, 0, 1])]).lookup(0, null)!;
  const counts = [0, 0, 0];
  for (let random = 0; random < 400; random++) counts[found.pick(random)]++;
  assert.deepEqual(counts, [300, 0, 100]);
  assert.ok([0, 2].includes(found.pick(2 ** 31 - 1)));
});

test('a route whose weights are all 0 has no backend', () => {
  const found = new StreamRoutes([route('r', [], [0], [0, 0])]).lookup(0, null)!;
  assert.equal(found.pick(5), -1);
});
