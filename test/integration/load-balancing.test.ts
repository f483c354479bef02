// Load balancing from YAML through the launcher, with real servers: policies, keys, sessions, subsets, priorities,
// reloads.

import assert from 'node:assert/strict';
import { createServer as createHttpServer } from 'node:http';
import { connect as connectHttp2 } from 'node:http2';
import type { AddressInfo } from 'node:net';
import { connect, createServer } from 'node:net';
import { test } from 'node:test';
import { SharedGateway } from './shared-gateway.ts';
import {
  CLOSED_PORTS,
  type Gateway,
  get,
  type Lifetime,
  namedUpstream,
  startGateway,
  startUpstream,
} from './support.ts';

/** Starts upstreams that answer with their names, and gives their ports. */
function upstreams(t: Lifetime, names: string): Promise<number[]> {
  return Promise.all([...names].map((name) => namedUpstream(t, name)));
}

interface Parts {
  /** Lines of the rules of the one route. */
  rules?: string;
  endpoints: string[];
  loadBalancer?: string;
  workers?: number;
  extra?: string;
}

/** The gateway of the tests that reload nothing. */
const shared = new SharedGateway(
  'zone: z1\nresponseReasonHeader: x-reason\naccessLog: {path: "-", format: "%{path} %{reason} %{detail}"}',
);

/** A listener with a backend of its own; `rules` get its name. */
function balanced(
  plan: (lifetime: Lifetime) => Promise<string[]>,
  loadBalancer = '{}',
  rules = (app: string): string => `[{backendRefs: [{name: ${app}}]}]`,
): ReturnType<SharedGateway['part']> {
  return shared.part(async (name, lifetime) => ({
    routes: `  - {name: ${name}, listeners: [${name}], rules: ${rules(name)}}`,
    backends: `  - {name: ${name}, endpoints: [${(await plan(lifetime)).join(', ')}], loadBalancer: ${loadBalancer}}`,
  }));
}

function configOf({
  rules = '- backendRefs: [{name: app}]',
  endpoints,
  loadBalancer = '{}',
  workers = 2,
  extra = '',
}: Parts) {
  return `
workers: ${workers}
admin: {address: "127.0.0.1:0"}
${extra}
listeners: [{name: http, address: "127.0.0.1:0"}]
routes:
  - name: all
    rules:
${rules.replaceAll(/^/gm, '      ')}
backends:
  - name: app
    endpoints: [${endpoints.join(', ')}]
    loadBalancer: ${loadBalancer}
`;
}

/** Answers of so many requests, each on a connection of its own. */
async function bodies(
  port: number,
  count: number,
  path = '/',
  headers: Record<string, string> = {},
): Promise<string[]> {
  const answers: string[] = [];
  for (let i = 0; i < count; i++) answers.push((await get(port, path, false, headers)).body);
  return answers;
}

async function reload(gateway: Gateway, config: string, count: number): Promise<void> {
  gateway.configure(config);
  gateway.kill('SIGHUP');
  await gateway.log(/info configuration reloaded/, count);
}

const quoted = (ports: readonly number[]): string[] => ports.map((port) => `"127.0.0.1:${port}"`);

for (const policy of ['RoundRobin', 'LeastRequest', 'Random', 'RingHash', 'Maglev', 'PeakEWMA']) {
  const reaching = balanced(async (file) => quoted(await upstreams(file, 'abcd')), `{policy: ${policy}}`);
  test(`${policy} reaches every endpoint and serves every request`, async () => {
    const { port } = await reaching();
    const seen = await bodies(port, 80);
    assert.deepEqual([...new Set(seen)].toSorted(), ['a', 'b', 'c', 'd']);
  });
}

const flaky = createHttpServer((_request, response) => void response.end('x'));
const listenAt = (at: number): Promise<void> => new Promise((resolve) => flaky.listen(at, '127.0.0.1', resolve));
let flakyPort = 0;
const avoiding = balanced(async (file) => {
  await listenAt(0);
  flakyPort = (flaky.address() as AddressInfo).port;
  await new Promise((resolve) => flaky.close(resolve));
  return quoted([flakyPort, ...(await upstreams(file, 'abc'))]);
}, '{policy: LeastRequest}');

test('LeastRequest leaves an endpoint that refuses connections to itself, and comes back to it', async (t) => {
  const { gateway, port } = await avoiding();
  t.after(() => flaky.close());
  const leftOut = async (): Promise<boolean> => {
    const { body } = await get(await gateway.adminPort(), '/backends');
    const { backends } = JSON.parse(body) as { backends: { endpoints: { address: string; leftOut: boolean }[] }[] };
    const endpoints = backends.flatMap((backend) => backend.endpoints);
    return endpoints.find(({ address }) => address === `127.0.0.1:${flakyPort}`)!.leftOut;
  };
  let refused = 0;
  let count = 0;
  for (; count < 200 || (count < 2000 && !(await leftOut())); count++) if ((await get(port)).status === 503) refused++;
  // Its pauses are 1, 2, 4 ... seconds. Without them it would get half of all requests.
  assert.ok(refused >= 1 && refused <= 12, `${refused} of ${count}`);
  await listenAt(flakyPort);
  for (let body = ''; body !== 'x'; ) body = (await get(port)).body;
  assert.equal(await leftOut(), false);
});

for (const policy of ['LeastRequest', 'PeakEWMA']) {
  let notify = (): void => {};
  const stopping = balanced(async (file) => {
    const stuck = await startUpstream(file, (incoming) => {
      incoming.resume();
      notify();
    });
    return quoted([stuck, ...(await upstreams(file, 'ab'))]);
  }, `{policy: ${policy}}`);

  test(`${policy} sends nothing more to an endpoint that has stopped answering`, async () => {
    const { port } = await stopping();
    // Several clients at a time. One that meets the stuck endpoint waits for ever; if all of them did, they would
    // have met it again and again.
    const clients = 6;
    let answers = 0;
    let waiting = 0;
    await new Promise<void>((resolve) => {
      const next = (): void => {
        if (answers >= 150 || waiting === clients) resolve();
        else
          get(port).then(
            () => {
              answers++;
              next();
            },
            () => {},
          );
      };
      notify = (): void => {
        waiting++;
        if (waiting === clients) resolve();
      };
      for (let i = 0; i < clients; i++) next();
    });
    assert.ok(answers >= 150, `${answers} answers, and then all ${waiting} clients were stuck`);
  });
}

test('RingHash and Maglev: a key stays with its endpoint, over workers and a reload that adds another', async (t) => {
  const ports = await upstreams(t, 'abcd');
  const policies = ['RingHash', 'Maglev'];
  const config = (endpoints: string[]): string => `
workers: 2
admin: {address: "127.0.0.1:0"}
listeners: [{name: http, address: "127.0.0.1:0"}]
routes:
  - name: all
    rules:
${policies.map((policy) => `      - {matches: [{path: {value: /${policy}}}], backendRefs: [{name: ${policy}}]}`).join('\n')}
backends:
${policies
  .map(
    (policy) =>
      `  - {name: ${policy}, endpoints: [${endpoints}], loadBalancer: {policy: ${policy}, hashOn: [{header: x-user}, {queryParam: u}]}}`,
  )
  .join('\n')}
`;
  const gateway = startGateway(t, config(quoted(ports.slice(0, 3))));
  const port = await gateway.port();
  const before = policies.map((policy) => ({ policy, users: new Map<string, string>() }));
  for (const { policy, users } of before) {
    for (let user = 0; user < 60; user++) {
      const answers = await bodies(port, 2, `/${policy}`, { 'x-user': `u${user}` });
      assert.equal(new Set(answers).size, 1, `${policy}: user ${user}`);
      users.set(`u${user}`, answers[0]!);
      assert.equal((await get(port, `/${policy}?u=u${user}`)).body, answers[0], 'the same key from another place');
    }
    assert.equal(new Set(users.values()).size, 3, policy);
  }
  await reload(gateway, config(quoted(ports)), 1);
  for (const { policy, users } of before) {
    let moved = 0;
    for (const [user, was] of users) {
      const { body } = await get(port, `/${policy}`, false, { 'x-user': user });
      if (body !== was) moved++;
    }
    // A quarter of the keys, and for Maglev and a small ring some more.
    assert.ok(moved > 3 && moved < 30, `${policy}: ${moved} of 60 moved`);
  }
});

const byCookie = balanced(
  async (file) => quoted(await upstreams(file, 'abc')),
  '{policy: Maglev, hashOn: [{cookie: {name: id, ttl: 1h, path: /}}]}',
);

test('a cookie that is made keeps a client at its endpoint, over HTTP/1 and HTTP/2', async (t) => {
  const { port } = await byCookie();
  const first = await get(port);
  const [line] = first.headers['set-cookie']!;
  const [, cookie] = /^(id=[0-9a-f]{16}); Path=\/; Max-Age=3600; HttpOnly$/.exec(line!)!;
  for (let i = 0; i < 6; i++) {
    const { body, headers } = await get(port, '/', false, { cookie: cookie! });
    assert.equal(body, first.body);
    assert.equal(headers['set-cookie'], undefined);
  }
  const session = connectHttp2(`http://127.0.0.1:${port}`);
  t.after(() => session.destroy());
  const over2 = await new Promise<string>((resolve, reject) => {
    const stream = session.request({ ':path': '/', cookie: cookie! });
    let body = '';
    stream.on('data', (chunk) => (body += chunk));
    stream.on('end', () => resolve(body));
    stream.on('error', reject);
    stream.end();
  });
  assert.equal(over2, first.body);
});

test('session persistence: a client stays at its endpoint until that is gone, and then at another', async (t) => {
  const ports = await upstreams(t, 'abcd');
  const rules = '- {sessionPersistence: {sessionName: sid}, backendRefs: [{name: app}]}';
  const gateway = startGateway(t, configOf({ rules, endpoints: quoted(ports) }));
  const port = await gateway.port();
  const first = await get(port);
  const cookie = first.headers['set-cookie']![0]!.split(';')[0]!;
  assert.match(cookie, /^sid=[0-9a-f]{16}$/);
  assert.ok(!first.headers['set-cookie']![0]!.includes('127.0.0.1'));
  for (const body of await bodies(port, 12, '/', { cookie })) assert.equal(body, first.body);
  // Another order, and one endpoint less: the session's is still there.
  const index = 'abcd'.indexOf(first.body);
  const others = ports.filter((_, i) => i !== index);
  await reload(gateway, configOf({ rules, endpoints: quoted([...others.slice(1), ports[index]!]) }), 1);
  for (const body of await bodies(port, 8, '/', { cookie })) assert.equal(body, first.body);
  await reload(gateway, configOf({ rules, endpoints: quoted(others) }), 2);
  const next = await get(port, '/', false, { cookie });
  assert.notEqual(next.body, first.body);
  const renewed = next.headers['set-cookie']![0]!.split(';')[0]!;
  for (const body of await bodies(port, 8, '/', { cookie: renewed })) assert.equal(body, next.body);
});

const byHeader = balanced(
  async (file) => quoted(await upstreams(file, 'abc')),
  '{}',
  (app) => `[{sessionPersistence: {sessionName: X-Session, type: Header}, backendRefs: [{name: ${app}}]}]`,
);

test('session persistence by header, over HTTP/2 too', async (t) => {
  const { port } = await byHeader();
  const first = await get(port);
  const token = String(first.headers['x-session']);
  assert.match(token, /^[0-9a-f]{16}$/);
  for (const body of await bodies(port, 8, '/', { 'x-session': token })) assert.equal(body, first.body);
  const session = connectHttp2(`http://127.0.0.1:${port}`);
  t.after(() => session.destroy());
  const headers = await new Promise<Record<string, unknown>>((resolve, reject) => {
    const stream = session.request({ ':path': '/' });
    stream.on('response', resolve);
    stream.on('error', reject);
    stream.end();
  });
  assert.match(String(headers['x-session']), /^[0-9a-f]{16}$/);
});

const labelled = balanced(
  async (file) =>
    (await upstreams(file, 'abc')).map(
      (port, i) => `{address: "127.0.0.1:${port}", labels: {version: v${i === 0 ? 1 : 2}}}`,
    ),
  '{}',
  (app) => `[
      {matches: [{path: {value: /one}}], backendRefs: [{name: ${app}, subset: {version: v1}}]},
      {matches: [{path: {value: /two}}], backendRefs: [{name: ${app}, subset: {version: v2}}]},
      {matches: [{path: {value: /none}}], backendRefs: [{name: ${app}, subset: {version: v3}}]},
      {backendRefs: [{name: ${app}}]}]`,
);

test('subsets: a rule uses only the endpoints with its labels, and without any answers UH with the cause', async () => {
  const { gateway, port } = await labelled();
  assert.deepEqual([...new Set(await bodies(port, 8, '/one'))], ['a']);
  assert.deepEqual([...new Set(await bodies(port, 12, '/two'))].toSorted(), ['b', 'c']);
  assert.deepEqual([...new Set(await bodies(port, 24))].toSorted(), ['a', 'b', 'c']);
  const { status, headers } = await get(port, '/none');
  assert.deepEqual([status, headers['x-reason']], [503, 'UH']);
  await gateway.printed(/\/none UH subset_empty/);
});

test('priorities: the next level gets requests only when the first is gone', async (t) => {
  const [first, second] = await upstreams(t, 'ab');
  const endpoints = [`"127.0.0.1:${first}"`, `{address: "127.0.0.1:${second}", priority: 1}`];
  const gateway = startGateway(t, configOf({ endpoints }));
  const port = await gateway.port();
  assert.deepEqual([...new Set(await bodies(port, 12))], ['a']);
  await reload(gateway, configOf({ endpoints: [endpoints[1]!] }), 1);
  assert.deepEqual([...new Set(await bodies(port, 4))], ['b']);
});

test('panic: with too few healthy endpoints all are used, which log and metrics say; without it, none', async (t) => {
  const [alive] = await upstreams(t, 'a');
  const dead = [...CLOSED_PORTS];
  const config = (ports: number[], panicThreshold: number): string =>
    `${configOf({
      endpoints: quoted(ports),
      loadBalancer: `{panicThreshold: ${panicThreshold}}`,
      extra: 'responseReasonHeader: x-reason\naccessLog: {path: "-", format: "%{reason} %{detail}"}',
    })}    healthCheck: {type: TCP, interval: 1s, timeout: 500ms}\n`;
  const gateway = startGateway(t, config([alive!, ...dead], 50));
  const port = await gateway.port();
  await gateway.log(/endpoint unhealthy/, 2);
  const reasons: unknown[] = [];
  for (let i = 0; i < 12; i++) reasons.push((await get(port)).headers['x-reason']);
  assert.ok(reasons.includes('UF'), reasons.join(' '));
  await gateway.log(/warn backend app: 1 of 3 endpoints are usable, so that all of them are used/);
  const { body } = await get(await gateway.adminPort(), '/metrics');
  assert.ok(Number(/^portcullis_balancer_panic_picks_total (\d+)$/m.exec(body)![1]) >= 12);
  await reload(gateway, config([alive!, ...dead], 0), 1);
  for (const answer of await bodies(port, 9)) assert.equal(answer, 'a');
  await reload(gateway, config(dead, 0), 2);
  assert.equal((await get(port)).headers['x-reason'], 'UH');
  await gateway.printed(/UH no_usable_endpoints/);
});

const zoned = balanced(
  async (file) => (await upstreams(file, 'abcd')).map((port, i) => `{address: "127.0.0.1:${port}", zone: z${i % 2}}`),
  '{zoneAware: {minEndpoints: 2}}',
);

test('zones: endpoints of the own zone are preferred', async () => {
  const { port } = await zoned();
  assert.deepEqual([...new Set(await bodies(port, 16))].toSorted(), ['b', 'd']);
});

test('slow start: an endpoint that a reload adds gets few requests at first', async (t) => {
  const ports = await upstreams(t, 'ab');
  const loadBalancer = '{slowStart: {window: 1h, minWeightPercent: 1}}';
  const gateway = startGateway(t, configOf({ endpoints: quoted([ports[0]!]), loadBalancer, workers: 1 }));
  const port = await gateway.port();
  await get(port);
  await reload(gateway, configOf({ endpoints: quoted(ports), loadBalancer, workers: 1 }), 1);
  const seen = await bodies(port, 60);
  const share = seen.filter((body) => body === 'b').length;
  assert.ok(share <= 3, `${share} of 60`);
});

const bytes = shared.part(async (name, lifetime) => {
  const ports = await Promise.all(
    [...'abcde'].map(async (text) => {
      const server = createServer((socket) => {
        socket.on('error', () => {});
        socket.end(text);
      });
      await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
      lifetime.after(() => void server.close());
      return (server.address() as AddressInfo).port;
    }),
  );
  return {
    listener: 'protocols: [tcp]',
    routes: `  - {name: ${name}, kind: TCP, listeners: [${name}], rules: [{backendRefs: [{name: ${name}}]}]}`,
    backends: `
  - name: ${name}
    endpoints: [${quoted(ports).join(', ')}]
    loadBalancer: {policy: Maglev, hashOn: [{sourceAddress: true}]}
`,
  };
});

test('TCP routes: the source address decides', async () => {
  const { port } = await bytes();
  const from = (localAddress: string): Promise<string> =>
    new Promise((resolve, reject) => {
      let text = '';
      const socket = connect({ port, host: '127.0.0.1', localAddress });
      socket.on('data', (chunk) => (text += chunk));
      socket.on('end', () => resolve(text));
      socket.on('error', reject);
    });
  const byAddress = new Set<string>();
  for (let last = 1; last <= 12; last++) {
    const first = await from(`127.0.0.${last}`);
    for (let i = 0; i < 3; i++) assert.equal(await from(`127.0.0.${last}`), first);
    byAddress.add(first);
  }
  assert.ok(byAddress.size > 1);
});
