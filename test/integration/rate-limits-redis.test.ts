// Global rate limits with a real Redis server, which is killed, frozen and started again in the middle.

import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { type TestContext, test } from 'node:test';
import { becomes } from './http/support.ts';
import {
  freePort,
  type Gateway,
  get,
  namedUpstream,
  OWN_HOST,
  Running,
  startGateway,
  temporaryDirectory,
} from './support.ts';

const absent = spawnSync('redis-server', ['--version']).error !== undefined && process.env.CI === undefined;
const options = { skip: absent ? 'redis-server is not installed' : false };

async function startRedis(t: TestContext, port: number, ...more: string[]): Promise<Running> {
  const directory = temporaryDirectory(t);
  const args = ['--port', String(port), '--bind', OWN_HOST, '--save', '', '--dir', directory, ...more];
  const redis = new Running(spawn('redis-server', args, { stdio: ['ignore', 'pipe', 'pipe'] }));
  t.after(async () => {
    redis.kill('SIGKILL');
    await redis.finished;
  });
  await redis.printed(/Ready to accept connections/);
  return redis;
}

async function gatewayOn(
  t: TestContext,
  redis: string,
  limits: string,
  upstream?: number,
): Promise<{ gateway: Gateway; port: number }> {
  const app = upstream ?? (await namedUpstream(t, 'app'));
  const gateway = startGateway(
    t,
    `
workers: 2
admin: {address: "127.0.0.1:0"}
redis: ${redis}
listeners: [{name: http, address: "127.0.0.1:0"}]
routes: [{name: all, rules: [{rateLimits: ${limits}, backendRefs: [{name: app}]}]}]
backends: [{name: app, endpoints: ["127.0.0.1:${app}"]}]
`,
  );
  await gateway.serving();
  return { gateway, port: await gateway.port() };
}

async function statuses(port: number, count: number, key = 'k'): Promise<number[]> {
  const answers = await Promise.all(Array.from({ length: count }, () => get(port, '/', false, { 'x-key': key })));
  return answers.map(({ status }) => status).sort();
}

/** So many of the first status, then so many of the second. */
function split(first: number, second: number): number[] {
  return [...Array(first).fill(200), ...Array(second).fill(429)];
}

const keyed = (more: string): string => `[{name: shared, global: true, period: 1h, key: [{header: x-key}], ${more}}]`;

test('two gateways count one limit together, exactly, and say the same of it', options, async (t) => {
  const redisPort = await freePort();
  await startRedis(t, redisPort, '--requirepass', 'secret');
  const redis = `{address: "${OWN_HOST}:${redisPort}", password: secret, timeout: 10s}`;
  const one = await gatewayOn(t, redis, keyed('requests: 20'));
  const two = await gatewayOn(t, redis, keyed('requests: 20'));
  await one.gateway.log(/info redis connected/);
  await two.gateway.log(/info redis connected/);
  const [first, second] = await Promise.all([statuses(one.port, 30), statuses(two.port, 30)]);
  assert.equal([...first, ...second].filter((status) => status === 200).length, 20);
  const { headers } = await get(one.port, '/', false, { 'x-key': 'k' });
  assert.equal(headers['ratelimit-policy'], '"shared";q=20;w=3600');
  assert.match(String(headers.ratelimit), /^"shared";r=0;t=\d+$/);
  assert.ok(Number(headers['retry-after']) > 150 && Number(headers['retry-after']) <= 181);
  // Another key is another bucket.
  assert.deepEqual(await statuses(two.port, 25, 'other'), split(20, 5));
  const admin = await one.gateway.adminPort();
  const page = (await get(admin, '/metrics')).body;
  assert.match(page, /portcullis_redis_up 1\n/);
  assert.match(page, /portcullis_rate_limit_global_total\{limit="shared",by="redis"\} 31\n/);
  const config = (await get(admin, '/config')).body;
  assert.ok(!config.includes('secret'), 'the password is not shown');
});

test('keys are stored as hashes, and are gone when their bucket is full', options, async (t) => {
  const redisPort = await freePort();
  await startRedis(t, redisPort);
  const limits = '[{name: shared, global: true, requests: 100, period: 1h, key: [{header: x-key}]}]';
  const { gateway, port } = await gatewayOn(
    t,
    `{address: "${OWN_HOST}:${redisPort}", keyPrefix: "edge:", timeout: 10s}`,
    limits,
  );
  await gateway.log(/info redis connected/);
  await statuses(port, 1, 'very-secret');
  const cli = (...args: string[]): string =>
    spawnSync('redis-cli', ['-h', OWN_HOST, '-p', String(redisPort), ...args], { encoding: 'utf8' }).stdout.trim();
  const keys = cli('keys', 'edge:limit:*').split('\n');
  assert.equal(keys.length, 1);
  assert.match(keys[0]!, /^edge:limit:shared:[A-Za-z0-9_-]{22}$/);
  const ttl = Number(cli('pttl', keys[0]!));
  // One of 100 in an hour, and a second.
  assert.ok(ttl > 0 && ttl <= 37_000, `${ttl}`);
});

test('local and global limits of one rule: a request that either refuses costs neither', options, async (t) => {
  const redisPort = await freePort();
  await startRedis(t, redisPort);
  const limits = `[{name: here, requests: 10, period: 1h}, ${keyed('requests: 3').slice(1, -1)}, {name: trial, global: true, requests: 1, period: 1h, dryRun: true}]`;
  const { gateway, port } = await gatewayOn(t, `{address: "${OWN_HOST}:${redisPort}", timeout: 10s}`, limits);
  await gateway.log(/info redis connected/);
  assert.deepEqual(await statuses(port, 8, 'a'), split(3, 5));
  assert.deepEqual(await statuses(port, 8, 'b'), split(3, 5));
  assert.deepEqual(await statuses(port, 3, 'c'), split(3, 0));
  // "here" has one left, although 19 requests have come.
  assert.deepEqual(await statuses(port, 3, 'd'), split(1, 2));
});

test(
  'redis killed in the middle: limits go on on this node, and in redis again when it is back',
  options,
  async (t) => {
    const redisPort = await freePort();
    const redis = await startRedis(t, redisPort);
    const { gateway, port } = await gatewayOn(
      t,
      `{address: "${OWN_HOST}:${redisPort}", timeout: 10s, failure: local}`,
      keyed('requests: 5'),
    );
    await gateway.log(/info redis connected/);
    assert.deepEqual(await statuses(port, 8, 'a'), split(5, 3));
    redis.kill('SIGKILL');
    await gateway.log(/warn redis does not answer: .*failure=local/);
    assert.deepEqual(await statuses(port, 8, 'b'), split(5, 3));
    assert.deepEqual(await statuses(port, 3, 'b'), split(0, 3));
    const page = (await get(await gateway.adminPort(), '/metrics')).body;
    assert.match(page, /portcullis_redis_up 0\n/);
    assert.match(page, /portcullis_redis_outages_total 1\n/);
    assert.match(page, /portcullis_rate_limit_global_total\{limit="shared",by="failure_policy"\} 11\n/);
    const again = await startRedis(t, redisPort);
    await gateway.log(/info redis is back/);
    // A server that knows nothing, not even the script.
    assert.deepEqual(await statuses(port, 8, 'b'), split(5, 3));
    again.kill('SIGKILL');
    await gateway.log(/warn redis does not answer/, 2);
    assert.equal([...gateway.stderr.matchAll(/redis does not answer/g)].length, 2, 'once for each outage');
  },
);

test(
  'redis frozen: requests wait no longer than the timeout, and nobody waits once it is known',
  options,
  async (t) => {
    const redisPort = await freePort();
    const redis = await startRedis(t, redisPort);
    const { gateway, port } = await gatewayOn(
      t,
      `{address: "${OWN_HOST}:${redisPort}", timeout: 100ms, failure: open}`,
      keyed('requests: 1'),
    );
    // The machine may be too busy for 100 ms, so that it is away and back in between.
    const isAway = (): boolean =>
      gateway.stderr
        .match(/ redis (connected|is back|does not answer)/g)!
        .at(-1)!
        .endsWith('answer');
    await gateway.log(/info redis (connected|is back)/);
    redis.kill('SIGSTOP');
    // Each turn without an answer lets its requests pass, and after three of them redis counts as away.
    while (!isAway()) assert.deepEqual(await statuses(port, 2), [200, 200]);
    await gateway.log(/warn redis does not answer: .*failure=open cause="no answer within 100 ms"/);
    redis.kill('SIGCONT');
    await becomes('redis in use', async () => !isAway());
    // The machine may be too busy for 100 ms now and then.
    while (!(await statuses(port, 3, 'new')).includes(429));
  },
);

test('clients that leave while redis is asked, and answers that come too late, hit nobody else', options, async (t) => {
  const redisPort = await freePort();
  const redis = await startRedis(t, redisPort);
  const { gateway, port } = await gatewayOn(
    t,
    `{address: "${OWN_HOST}:${redisPort}", timeout: 10s, failure: closed}`,
    keyed('requests: 1000'),
  );
  await gateway.log(/info redis connected/);
  redis.kill('SIGSTOP');
  const gone = Array.from({ length: 20 }, () => {
    const abort = new AbortController();
    const request = fetch(`http://127.0.0.1:${port}/`, { signal: abort.signal, headers: { 'x-key': 'x' } });
    return { abort, request: request.then((response) => response.status).catch(() => 0) };
  });
  const admin = await gateway.adminPort();
  const inFlight = async (): Promise<number> =>
    Number(/portcullis_requests_in_flight (\d+)/.exec((await get(admin, '/metrics')).body)![1]);
  while ((await inFlight()) < 20);
  for (const { abort } of gone) abort.abort();
  while ((await inFlight()) > 0);
  redis.kill('SIGCONT');
  await Promise.all(gone.map(({ request }) => request));
  assert.deepEqual(await statuses(port, 10, 'y'), split(10, 0));
});

test('redis that is not there at the start is a warning, and `closed` refuses until it comes', options, async (t) => {
  const redisPort = await freePort();
  const { gateway, port } = await gatewayOn(
    t,
    `{address: "${OWN_HOST}:${redisPort}", timeout: 10s, failure: closed}`,
    keyed('requests: 5'),
  );
  await gateway.log(/warn redis does not answer: .*failure=closed/);
  const { status, headers } = await get(port, '/', false, { 'x-key': 'k' });
  assert.equal(status, 429);
  assert.equal(headers['retry-after'], '1');
  assert.equal(headers.ratelimit, undefined);
  await startRedis(t, redisPort);
  await gateway.log(/info redis is back/);
  assert.deepEqual(await statuses(port, 6), split(5, 1));
});

test('a reload takes redis away, brings it back, and moves to another one', options, async (t) => {
  const upstream = await namedUpstream(t, 'app');
  const first = await freePort();
  const second = await freePort();
  await startRedis(t, first);
  await startRedis(t, second);
  const of = (redisPort: number): string => `{address: "${OWN_HOST}:${redisPort}", timeout: 10s}`;
  const { gateway, port } = await gatewayOn(t, of(first), keyed('requests: 3'), upstream);
  await gateway.log(/info redis connected/);
  assert.deepEqual(await statuses(port, 4), split(3, 1));
  const config = (redis: string, limits: string): string => `
workers: 2
admin: {address: "127.0.0.1:0"}
${redis}
listeners: [{name: http, address: "127.0.0.1:0"}]
routes: [{name: all, rules: [{rateLimits: ${limits}, backendRefs: [{name: app}]}]}]
backends: [{name: app, endpoints: ["127.0.0.1:${upstream}"]}]
`;
  gateway.configure(config('', '[]'));
  gateway.kill('SIGHUP');
  await gateway.log(/info configuration reloaded/);
  assert.deepEqual(await statuses(port, 6), split(6, 0));
  gateway.configure(config(`redis: ${of(second)}`, keyed('requests: 3')));
  gateway.kill('SIGHUP');
  await gateway.log(/info redis connected/, 2);
  assert.deepEqual(await statuses(port, 4), split(3, 1));
});
