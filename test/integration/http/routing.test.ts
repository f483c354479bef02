// Which upstream gets a request, seen from outside: matching, exact round robin, weights.

import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { listen, ok, request, startLab, Upstream } from './support.ts';

/** An upstream that answers with its name, outside the laboratory's own. */
async function named(name: string): Promise<Upstream> {
  const upstream = new Upstream(name, await listen());
  upstream.serve(() => ok(name));
  after(() => upstream.close());
  return upstream;
}

const names = ['a', 'b', 'c'];
const [a, b, c] = await Promise.all(names.map(named));
const endpoints = (...list: [Upstream, number][]): string =>
  list.map(([{ port }, weight]) => `{address: "127.0.0.1:${port}", weight: ${weight}}`).join(', ');

const lab = await startLab({
  upstreams: 0,
  routes: [
    `{name: even, hostnames: [even.test], rules: [{backendRefs: [{name: even}]}]}`,
    `{name: weighted, hostnames: [weighted.test], rules: [{backendRefs: [{name: weighted}]}]}`,
    `{name: split, hostnames: [split.test], rules: [{backendRefs: [{name: a, weight: 90}, {name: b, weight: 10}]}]}`,
    `{name: off, hostnames: [off.test], rules: [{backendRefs: [{name: a, weight: 0}, {name: b, weight: 1}]}]}`,
    `{name: exact, hostnames: [site.test], rules: [{matches: [{path: {type: Exact, value: /x}}], backendRefs: [{name: a}]}]}`,
    `{name: prefix, hostnames: [site.test], rules: [{matches: [{path: {value: /x}}], backendRefs: [{name: b}]}]}`,
    `{name: wild, hostnames: ["*.site.test"], rules: [{backendRefs: [{name: c}]}]}`,
  ],
  backends: [
    ...names.map((name, i) => `{name: ${name}, endpoints: ["127.0.0.1:${[a, b, c][i].port}"]}`),
    `{name: even, endpoints: [${endpoints([a, 1], [b, 1], [c, 1])}]}`,
    `{name: weighted, endpoints: [${endpoints([a, 5], [b, 2], [c, 1])}]}`,
  ],
});

/** Bodies of `count` pipelined requests to a host and path. */
async function answers(host: string, path: string, count: number): Promise<string[]> {
  const client = await lab.client();
  await client.send(request(`GET ${path}`, host).repeat(count));
  const bodies: string[] = [];
  for (let i = 0; i < count; i++) bodies.push((await client.response()).body);
  client.close();
  return bodies;
}

function shares(bodies: string[]): Record<string, number> {
  const result: Record<string, number> = {};
  for (const body of bodies) result[body] = (result[body] ?? 0) + 1;
  return result;
}

test('equal endpoints take turns', async () => {
  const bodies = await answers('even.test', '/', 30);
  const turn = bodies.slice(0, 3);
  assert.deepEqual([...turn].sort(), names);
  for (let i = 0; i < 30; i++) assert.equal(bodies[i], turn[i % 3]);
});

test('endpoints get exactly their weight in every round, wherever one starts to count', async () => {
  const bodies = await answers('weighted.test', '/', 80);
  for (let start = 0; start + 8 <= 80; start++) {
    assert.deepEqual(shares(bodies.slice(start, start + 8)), { a: 5, b: 2, c: 1 });
  }
});

test('the turns go on over connections and paths, they do not start anew', async () => {
  const bodies: string[] = [];
  for (let i = 0; i < 16; i++) bodies.push(...(await answers('weighted.test', `/${i}`, 1)));
  assert.deepEqual(shares(bodies), { a: 10, b: 4, c: 2 });
});

test('weights of backendRefs share the requests', async () => {
  const count = 2000;
  const { a: major = 0, b: minor = 0 } = shares(await answers('split.test', '/', count));
  assert.equal(major + minor, count);
  // 10 % of 2000, by chance: six standard deviations are 80.
  assert.ok(minor > 120 && minor < 280, `b got ${minor} of ${count}`);
});

test('a backendRef with weight 0 gets nothing', async () => {
  assert.deepEqual(shares(await answers('off.test', '/', 50)), { b: 50 });
});

test('the most specific route takes a request', async () => {
  const first = async (host: string, path: string): Promise<string> => (await answers(host, path, 1))[0];
  assert.equal(await first('site.test', '/x'), 'a');
  assert.equal(await first('site.test', '/x?query=/y'), 'a');
  assert.equal(await first('site.test', '/x/'), 'b');
  assert.equal(await first('site.test', '/x/y'), 'b');
  assert.match(await first('site.test', '/xy'), /^404 /);
  assert.match(await first('site.test', '/'), /^404 /);
  assert.equal(await first('deep.er.SITE.test.', '/'), 'c');
  assert.equal(await first('one.site.test:8080', '/x'), 'c');
  assert.match(await first('othersite.test', '/x'), /^404 /);
});

test('a dot segment is not resolved: a prefix cannot be left by it', async () => {
  assert.deepEqual(await answers('site.test', '/x/../secret', 1), ['b']);
});
