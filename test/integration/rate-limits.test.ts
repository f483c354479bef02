// Rate limits of rules, from YAML to the wire: who is refused, what responses say, and what is counted.

import assert from 'node:assert/strict';
import { request } from 'node:http';
import { connect } from 'node:http2';
import { test } from 'node:test';
import { SharedGateway } from './shared-gateway.ts';
import { type Answer, type Gateway, get, namedUpstream, startGateway } from './support.ts';

/** The gateway of most tests. Limits of one name are one limit, so that each has a name of its own. */
const shared = new SharedGateway('responseReasonHeader: x-reason\naccessLog: {path: "-"}\ntrustedHops: 1');

/** A listener whose one rule has `limits`. */
function limited(limits: string): ReturnType<SharedGateway['part']> {
  return withRules(`[{rateLimits: ${limits}, backendRefs: [{name: app}]}]`);
}

/** A listener with these rules. */
function withRules(rules: string): ReturnType<SharedGateway['part']> {
  return shared.part((name) => ({
    routes: `  - {name: ${name}, listeners: [${name}], rules: ${rules}}`,
    backends: '',
  }));
}

shared.part(async (_name, lifetime) => ({
  routes: '',
  backends: `  - {name: app, endpoints: ["127.0.0.1:${await namedUpstream(lifetime, 'app')}"]}`,
}));

function configOf(upstream: number, limits: string, extra = ''): string {
  return `
workers: 2
admin: {address: "127.0.0.1:0"}
${extra}
listeners: [{name: http, address: "127.0.0.1:0"}]
routes: [{name: all, rules: [{rateLimits: ${limits}, backendRefs: [{name: app}]}]}]
backends: [{name: app, endpoints: ["127.0.0.1:${upstream}"]}]
`;
}

/** Statuses of requests one after the other, each on a connection of its own, so that both workers get some. */
async function statuses(
  port: number,
  count: number,
  headers: Record<string, string> = {},
  path = '/',
): Promise<number[]> {
  const all: number[] = [];
  for (let i = 0; i < count; i++) all.push((await get(port, path, false, headers)).status);
  return all;
}

async function metrics(gateway: Gateway): Promise<string> {
  return (await get(await gateway.adminPort(), '/metrics')).body;
}

/** Requests that were refused by limits so far, whichever they are. */
async function refusals(gateway: Gateway): Promise<number> {
  const line = /^portcullis_request_failures_total\{reason="RL"\} (\d+)$/m.exec(await metrics(gateway));
  return Number(line?.[1] ?? 0);
}

function bearer(claims: unknown): Record<string, string> {
  const part = (value: unknown): string => Buffer.from(JSON.stringify(value)).toString('base64url');
  return { authorization: `Bearer ${part({ alg: 'none' })}.${part(claims)}.c2ln` };
}

const total = limited('[{name: total, requests: 5, period: 1h}]');

test('the requests of a limit pass, further ones get 429 with Retry-After, on all workers together', async () => {
  const { gateway, port } = await total();
  const before = await refusals(gateway);
  const answers = await Promise.all(Array.from({ length: 30 }, () => get(port)));
  const passed = answers.filter(({ status }) => status === 200);
  const refused = answers.filter(({ status }) => status === 429);
  assert.equal(passed.length, 5);
  assert.equal(refused.length, 25);
  for (const { headers, body } of refused) {
    // One request every 12 minutes.
    assert.ok(
      Number(headers['retry-after']) > 700 && Number(headers['retry-after']) <= 724,
      `${headers['retry-after']}`,
    );
    assert.equal(headers['ratelimit-policy'], '"total";q=5;w=3600');
    assert.match(String(headers.ratelimit), /^"total";r=0;t=7\d\d$/);
    assert.equal(headers['x-reason'], 'RL');
    assert.match(body, /^429 Too Many Requests: RL: A rate limit refused the request\./);
  }
  const left = passed.map(({ headers }) => Number(/r=(\d+)/.exec(String(headers.ratelimit))![1])).sort();
  assert.deepEqual(left, [0, 1, 2, 3, 4]);
  const page = await metrics(gateway);
  assert.match(page, /portcullis_rate_limit_requests_total\{limit="total",result="allowed"\} 5\n/);
  assert.match(page, /portcullis_rate_limit_requests_total\{limit="total",result="denied"\} 25\n/);
  assert.equal((await refusals(gateway)) - before, 25);
});

test('a request that is refused for its length uses up no limit', async (t) => {
  const limits = '[{name: total, requests: 1, period: 1h}]';
  const config = configOf(await namedUpstream(t, 'app'), limits, 'limits: {maxRequestBodySize: 1KiB}');
  const gateway = startGateway(t, config);
  await gateway.serving();
  const port = await gateway.port();
  const post = (bytes: number): Promise<number> =>
    new Promise((resolve, reject) => {
      const outgoing = request({ port, method: 'POST', agent: false }, (response) => {
        response.resume();
        resolve(response.statusCode!);
      });
      outgoing.on('error', reject);
      outgoing.end('x'.repeat(bytes));
    });
  assert.deepEqual([await post(1025), await post(1025), await post(1024), await post(1024)], [413, 413, 200, 429]);
  assert.equal(await post(1025), 413);
});

const tiny = limited('[{name: tiny, requests: 1, period: 1h}]');

test('explain and the access log name the limit that refused a request', async () => {
  const { gateway, port } = await tiny();
  await get(port);
  const { headers } = await get(port);
  await gateway.printed(/"status":429,"reason":"RL","detail":"limit_tiny"/);
  const explained = await get(await gateway.adminPort(), `/explain?id=${headers['x-request-id']}`);
  assert.match(explained.body, /The limit is \\"tiny\\"/);
});

const byField = limited('[{name: fields, requests: 2, period: 1h, key: [{header: X-Api-Key}]}]');

test('requests are counted apart by the value of a field, and together without it', async () => {
  const { port } = await byField();
  assert.deepEqual(await statuses(port, 3, { 'x-api-key': 'one' }), [200, 200, 429]);
  assert.deepEqual(await statuses(port, 3, { 'X-API-KEY': 'two' }), [200, 200, 429]);
  assert.deepEqual(await statuses(port, 3), [200, 200, 429]);
  assert.deepEqual(await statuses(port, 1, { 'x-api-key': 'One' }), [200], 'values differ by case');
});

const byClaim = limited('[{name: claims, requests: 1, period: 1h, key: [path, {jwtClaim: sub}]}]');

test('requests are counted apart by path without the query, and by a claim of the token', async () => {
  const { port } = await byClaim();
  assert.deepEqual(await statuses(port, 2, bearer({ sub: 'ann' }), '/a?x=1'), [200, 429]);
  assert.deepEqual(await statuses(port, 1, bearer({ sub: 'ann' }), '/a?x=2'), [429]);
  assert.deepEqual(await statuses(port, 2, bearer({ sub: 'ann' }), '/b'), [200, 429]);
  assert.deepEqual(await statuses(port, 2, bearer({ sub: 'bob', admin: true }), '/a'), [200, 429]);
  // What is no token, or has no such claim, is counted together.
  assert.deepEqual(await statuses(port, 1, { authorization: 'Bearer a.%%%.c' }, '/a'), [200]);
  assert.deepEqual(await statuses(port, 1, { authorization: 'Bearer bm90.bm90.bm90' }, '/a'), [429]);
  assert.deepEqual(await statuses(port, 1, bearer({ name: 'ann' }), '/a'), [429]);
  assert.deepEqual(await statuses(port, 1, {}, '/a'), [429]);
});

const byAddress = limited('[{name: clients, requests: 1, period: 1h, key: [sourceAddress]}]');

test("requests are counted apart by the client's address, behind trusted proxies by that of the real client", async () => {
  const { port } = await byAddress();
  const from = (address: string): Promise<number[]> => statuses(port, 2, { 'x-forwarded-for': address });
  assert.deepEqual(await from('192.0.2.1'), [200, 429]);
  assert.deepEqual(await from('192.0.2.2'), [200, 429]);
  assert.deepEqual(await from('198.51.100.9, 192.0.2.1'), [429, 429], 'only what the proxy adds counts');
  assert.deepEqual(await from('2001:db8:1:2::1'), [200, 429]);
  assert.deepEqual(await from('2001:db8:1:2:ffff::9'), [429, 429], 'the same /64 network');
  assert.deepEqual(await from('2001:db8:1:3::1'), [200, 429]);
});

const several = limited(
  '[{name: all, requests: 4, period: 1h}, {name: each, requests: 2, period: 1h, key: [{header: x-key}]}]',
);

test('of several limits the first that is used up refuses, and what others have counted is given back', async () => {
  const { port } = await several();
  assert.deepEqual(await statuses(port, 5, { 'x-key': 'a' }), [200, 200, 429, 429, 429]);
  // Refused by "each": "all" has still two.
  const answer = await get(port, '/', false, { 'x-key': 'b' });
  assert.equal(answer.status, 200);
  assert.equal(answer.headers['ratelimit-policy'], '"all";q=4;w=3600, "each";q=2;w=3600');
  assert.match(String(answer.headers.ratelimit), /^"all";r=1;t=\d+, "each";r=1;t=\d+$/);
  assert.deepEqual(await statuses(port, 2, { 'x-key': 'c' }), [200, 429]);
});

const trial = limited('[{name: trial, requests: 1, period: 1h, dryRun: true}]');

test('a dry run refuses nothing, shows nothing, and counts what it would refuse', async () => {
  const { gateway, port } = await trial();
  const answers: Answer[] = [];
  for (let i = 0; i < 4; i++) answers.push(await get(port));
  assert.deepEqual(
    answers.map(({ status }) => status),
    [200, 200, 200, 200],
  );
  assert.ok(
    answers.every(({ headers }) => headers.ratelimit === undefined && headers['ratelimit-policy'] === undefined),
  );
  assert.match(await metrics(gateway), /rate_limit_requests_total\{limit="trial",result="denied"\} 3\n/);
});

const quiet = limited('[{name: quiet, requests: 1, period: 1h, headers: false}]');

test('headers: false shows nothing but Retry-After', async () => {
  const { port } = await quiet();
  assert.equal((await get(port)).headers.ratelimit, undefined);
  const { status, headers } = await get(port);
  assert.equal(status, 429);
  assert.equal(headers.ratelimit, undefined);
  assert.ok(Number(headers['retry-after']) > 3500);
});

const once = limited('[{name: once, requests: 1, period: 1h}]');

test('HTTP/2 clients get the same, and gRPC clients UNAVAILABLE', async (t) => {
  const { port } = await once();
  const session = connect(`http://127.0.0.1:${port}`);
  t.after(() => session.destroy());
  const ask = (headers: Record<string, string>): Promise<Record<string, unknown>> =>
    new Promise((resolve, reject) => {
      const stream = session.request({ ':path': '/', ...headers });
      stream.once('response', (response) => {
        stream.resume();
        resolve(response);
      });
      stream.once('error', reject);
    });
  const first = await ask({});
  assert.equal(first[':status'], 200);
  assert.match(String(first.ratelimit), /^"once";r=0;t=\d+$/);
  const second = await ask({});
  assert.equal(second[':status'], 429);
  assert.ok(Number(second['retry-after']) > 3500);
  const rpc = await ask({ ':method': 'POST', 'content-type': 'application/grpc', te: 'trailers' });
  assert.equal(rpc[':status'], 200);
  assert.equal(rpc['grpc-status'], '14');
  assert.ok(Number(rpc['retry-after']) > 3500);
});

test('a reload that leaves a limit as it is keeps its counts; another number is another limit', async (t) => {
  const upstream = await namedUpstream(t, 'app');
  const tiny = '[{name: tiny, requests: 2, period: 1h}]';
  const gateway = startGateway(t, configOf(upstream, tiny));
  await gateway.serving();
  const port = await gateway.port();
  assert.deepEqual(await statuses(port, 2), [200, 200]);
  gateway.configure(configOf(upstream, `${tiny.slice(0, -1)}, {name: other, requests: 9}]`));
  gateway.kill('SIGHUP');
  await gateway.log(/info configuration reloaded/);
  assert.deepEqual(await statuses(port, 1), [429]);
  gateway.configure(configOf(upstream, '[{name: tiny, requests: 3, period: 1h}]'));
  gateway.kill('SIGHUP');
  await gateway.log(/info configuration reloaded/, 2);
  assert.deepEqual(await statuses(port, 4), [200, 200, 200, 429]);
});

const common = '{name: shared, requests: 2, period: 1h}';
const sharing = (path: string): string =>
  `{matches: [{path: {value: ${path}}}], rateLimits: [${common}], backendRefs: [{name: app}]}`;
const together = withRules(`[${sharing('/a')}, ${sharing('/b')}]`);

test('rules whose limits have one name share it', async () => {
  const { port } = await together();
  assert.deepEqual(await statuses(port, 1, {}, '/a'), [200]);
  assert.deepEqual(await statuses(port, 1, {}, '/b'), [200]);
  assert.deepEqual(await statuses(port, 1, {}, '/a'), [429]);
  assert.deepEqual(await statuses(port, 1, {}, '/b'), [429]);
});

const uploads = limited('[{name: one, requests: 1, period: 1h, key: [{header: x-key}]}]');

test('a refused upload ends the connection, and the next one is served', async () => {
  const { port } = await uploads();
  const upload = async (key: string): Promise<number> => {
    const response = await fetch(`http://127.0.0.1:${port}/`, {
      method: 'POST',
      headers: { 'x-key': key },
      body: Buffer.alloc(300_000, 'x'),
    });
    await response.text();
    return response.status;
  };
  assert.equal(await upload('a'), 200);
  // The client may see the answer, or the end of the connection while it still sends.
  const refused = await upload('a').catch(() => 429);
  assert.equal(refused, 429);
  assert.equal(await upload('b'), 200);
});

const filters =
  '[{type: RequestHeaderModifier, requestHeaderModifier: {remove: [authorization, x-key], set: [{name: x-other, value: "1"}]}}, {type: CORS, cors: {allowOrigins: ["https://a.example"]}}]';
const filtered = limited(
  `[{name: both, requests: 1, period: 1h, key: [{header: x-key}, {jwtClaim: sub}]}], filters: ${filters}`,
);

test('filters of the rule change nothing about what is counted, and preflights are not counted', async () => {
  const { port } = await filtered();
  const preflight = async (): Promise<number> => {
    const headers = { origin: 'https://a.example', 'access-control-request-method': 'GET' };
    return (await fetch(`http://127.0.0.1:${port}/`, { method: 'OPTIONS', headers })).status;
  };
  for (let i = 0; i < 3; i++) assert.ok((await preflight()) < 300);
  assert.deepEqual(await statuses(port, 2, { 'x-key': 'a', ...bearer({ sub: 'ann' }) }), [200, 429]);
  assert.deepEqual(await statuses(port, 2, { 'x-key': 'b', ...bearer({ sub: 'ann' }) }), [200, 429]);
  assert.deepEqual(await statuses(port, 2, { 'x-key': 'a', ...bearer({ sub: 'bob' }) }), [200, 429]);
});
