// New paths of requests and redirects, by the tables of the Gateway API.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { PathRewrite } from '../../../../core/exchange/path-rewrite.ts';
import type { PathRewriteSettings } from '../../../../core/workers/filter-settings.ts';
import { seededRandom } from '../io/seed.ts';

const memory = new Uint8Array(4096);

function rewritten(settings: PathRewriteSettings, path: string): string {
  const rewrite = new PathRewrite(settings);
  memory.fill(0xa5);
  memory.set(Buffer.from(path), 100);
  const end = rewrite.put(memory, 1000, 100, path.length);
  assert.ok(end - 1000 <= rewrite.bytesMax(path.length), 'longer than its bound');
  assert.ok(
    memory.subarray(end).every((byte) => byte === 0xa5),
    'wrote behind its end',
  );
  return Buffer.from(memory.subarray(1000, end)).toString();
}

/** As filter-normalise.ts makes it: without slashes at the end, longest prefix first. */
function prefix(value: string, ...prefixes: string[]): PathRewriteSettings {
  const bare = (text: string): string => (text.endsWith('/') ? text.slice(0, -1) : text);
  const sorted = prefixes.map(bare).sort((a, b) => b.length - a.length);
  return { type: 'ReplacePrefixMatch', value: bare(value), prefixes: sorted };
}

test('ReplacePrefixMatch follows the table of the Gateway API', () => {
  for (const [path, match, value, expected] of [
    ['/foo/bar', '/foo', '/xyz', '/xyz/bar'],
    ['/foo/bar', '/foo', '/xyz/', '/xyz/bar'],
    ['/foo/bar', '/foo/', '/xyz', '/xyz/bar'],
    ['/foo/bar', '/foo/', '/xyz/', '/xyz/bar'],
    ['/foo', '/foo', '/xyz', '/xyz'],
    ['/foo/', '/foo', '/xyz', '/xyz/'],
    ['/foo/bar', '/foo', '', '/bar'],
    ['/foo/', '/foo', '', '/'],
    ['/foo', '/foo', '', '/'],
    ['/foo/', '/foo', '/', '/'],
    ['/foo', '/foo', '/', '/'],
    ['/bar', '/', '/xyz', '/xyz/bar'],
    ['/', '/', '/xyz', '/xyz/'],
  ]) {
    assert.equal(rewritten(prefix(value, match), path), expected, `${path} ${match} ${value}`);
    assert.equal(rewritten(prefix(value, match), `${path}?a=/b?c`), `${expected}?a=/b?c`, `${path}, with a query`);
  }
});

test('of several prefixes the longest that takes the path is replaced, and only whole elements count', () => {
  const settings = prefix('/new', '/a', '/a/b', '/a/b/c');
  assert.equal(rewritten(settings, '/a/b/c/d'), '/new/d');
  assert.equal(rewritten(settings, '/a/b/cd'), '/new/cd');
  assert.equal(rewritten(settings, '/a/bc'), '/new/bc');
  // No rule would bring it here; it stays as it is.
  assert.equal(rewritten(settings, '/ab'), '/ab');
});

test('ReplaceFullPath keeps nothing but the query', () => {
  const settings: PathRewriteSettings = { type: 'ReplaceFullPath', value: '/new', prefixes: [] };
  assert.equal(rewritten(settings, '/a/b/c'), '/new');
  assert.equal(rewritten(settings, '/'), '/new');
  assert.equal(rewritten(settings, '/?'), '/new?');
  assert.equal(rewritten(settings, '/a?x=/y'), '/new?x=/y');
});

test('a target without a path stays', () => {
  for (const settings of [prefix('/new', '/'), { ...prefix('/new'), type: 'ReplaceFullPath' as const }]) {
    assert.equal(rewritten(settings, '*'), '*');
    assert.equal(rewritten(settings, 'example.com:443'), 'example.com:443');
    assert.equal(rewritten(settings, ''), '');
  }
});

test('random paths become what a plain description says', (t) => {
  const { random, label } = seededRandom(t);
  const element = (): string => random.pick(['', 'a', 'b', 'ab', 'x'.repeat(random.int(1, 40))]);
  const path = (): string => `/${Array.from({ length: random.int(0, 4) }, element).join('/')}`;
  for (let round = 0; round < 3000; round++) {
    const match = path().replace(/\/+$/, '');
    const value = path();
    const rest = random.pick(['', path()]);
    const query = random.pick(['', '?', '?/a/b?']);
    const bare = value.replace(/\/$/, '');
    const expected = `${bare}${rest}` === '' ? '/' : `${bare}${rest}`;
    const asked = match + rest === '' ? '/' : match + rest;
    // An empty rest of the root prefix is the path "/" itself.
    const wanted = match + rest === '' ? `${bare}/` : expected;
    assert.equal(
      rewritten(prefix(value, match), asked + query),
      wanted + query,
      `${label} ${JSON.stringify({ match, value, rest })}`,
    );
  }
});
