// Circuit breakers: what waits, what is refused, and that all workers keep to one limit.

import assert from 'node:assert/strict';
import { createServer, request as httpRequest } from 'node:http';
import { createServer as createHttp2Server } from 'node:http2';
import type { AddressInfo } from 'node:net';
import { test } from 'node:test';
import { becomes, ok, request, startLab, type Upstream } from '../http/support.ts';
import type { Wire } from '../http/wire.ts';
import { SharedGateway } from '../shared-gateway.ts';
import { get, namedUpstream, startGateway, startUpstream } from '../support.ts';

const lab = await startLab({
  kinds: {
    connections: {
      upstreams: 10,
      backend: 'circuitBreaker: {maxConnections: 1, maxPendingRequests: 2, pendingTimeout: 10s}',
    },
    requests: { upstreams: 5, backend: 'circuitBreaker: {maxRequests: 1}' },
    brief: { upstreams: 4, backend: 'circuitBreaker: {maxConnections: 1, pendingTimeout: 50ms}' },
    retries: {
      upstreams: 4,
      rule: 'retry: {attempts: 1, codes: [503], backoff: 1ms}',
      backend: 'circuitBreaker: {maxRetries: 1}',
    },
  },
});

async function asking(upstream: Upstream, path = '/'): Promise<Wire> {
  const client = await lab.client();
  await client.send(request(`GET ${path}`, upstream.host));
  return client;
}

function inUse(upstream: Upstream, limit: string): Promise<number> {
  return lab.metric(
    `portcullis_circuit_breaker_in_use{backend="${upstream.host}",priority="default",limit="${limit}"}`,
  );
}

async function inUseBecomes(upstream: Upstream, limit: string, count: number): Promise<void> {
  await becomes(`${limit} ${count}`, async () => (await inUse(upstream, limit)) === count);
}

test('requests beyond maxConnections wait, and get the connection in turn', async () => {
  const upstream = lab.upstream('connections');
  const first = await asking(upstream, '/1');
  const wire = await upstream.connection();
  assert.equal((await wire.request()).start, 'GET /1 HTTP/1.1');
  const second = await asking(upstream, '/2');
  await inUseBecomes(upstream, 'maxPendingRequests', 1);
  const third = await asking(upstream, '/3');
  await inUseBecomes(upstream, 'maxPendingRequests', 2);
  for (const [client, path] of [[first, '1'] as const, [second, '2'] as const, [third, '3'] as const]) {
    if (path !== '1') assert.equal((await wire.request()).start, `GET /${path} HTTP/1.1`);
    await wire.send(ok(path));
    assert.equal((await client.response()).body, path);
  }
  assert.equal(upstream.accepted, 1);
  await inUseBecomes(upstream, 'maxPendingRequests', 0);
  assert.equal(await inUse(upstream, 'maxConnections'), 1);
});

test('a connection that closes makes room for one that is new', async () => {
  const upstream = lab.upstream('connections');
  const first = await asking(upstream);
  const wire = await upstream.connection();
  await wire.request();
  const second = await asking(upstream, '/2');
  await inUseBecomes(upstream, 'maxPendingRequests', 1);
  await wire.send('HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx');
  wire.finish();
  assert.equal((await first.response()).body, 'x');
  const next = await upstream.connection();
  assert.equal((await next.request()).start, 'GET /2 HTTP/1.1');
  await next.send(ok('2'));
  assert.equal((await second.response()).body, '2');
});

test('what comes when enough wait is refused at once', async () => {
  const upstream = lab.upstream('connections');
  const first = await asking(upstream);
  const wire = await upstream.connection();
  await wire.request();
  const waiting = [await asking(upstream), await asking(upstream)];
  await inUseBecomes(upstream, 'maxPendingRequests', 2);
  const refused = await (await asking(upstream)).response();
  assert.equal(refused.status, 503);
  assert.equal(refused.value('x-reason'), 'UO');
  const series = `portcullis_circuit_breaker_overflows_total{backend="${upstream.host}",priority="default",limit="maxPendingRequests"}`;
  assert.equal(await lab.metric(series), 1);
  await lab.gateway.log(new RegExp(`circuit breaker open backend=${upstream.host}`));
  for (const client of [first, ...waiting]) {
    if (client !== first) await wire.request();
    await wire.send(ok('x'));
    await client.response();
  }
});

test('a client that leaves while its request waits gives up its place', async () => {
  const upstream = lab.upstream('connections');
  const first = await asking(upstream);
  const wire = await upstream.connection();
  await wire.request();
  const second = await asking(upstream, '/gone');
  await inUseBecomes(upstream, 'maxPendingRequests', 1);
  const third = await asking(upstream, '/stays');
  await inUseBecomes(upstream, 'maxPendingRequests', 2);
  second.reset();
  await inUseBecomes(upstream, 'maxPendingRequests', 1);
  await wire.send(ok('1'));
  assert.equal((await first.response()).body, '1');
  assert.equal((await wire.request()).start, 'GET /stays HTTP/1.1');
  await wire.send(ok('3'));
  assert.equal((await third.response()).body, '3');
});

test('a request that waits too long is answered with 503', async () => {
  const upstream = lab.upstream('brief');
  const first = await asking(upstream);
  const wire = await upstream.connection();
  await wire.request();
  const refused = await (await asking(upstream)).response();
  assert.equal(refused.status, 503);
  assert.equal(refused.value('x-reason'), 'UO');
  assert.match(refused.body, /UO/);
  await inUseBecomes(upstream, 'maxPendingRequests', 0);
  await wire.send(ok('x'));
  assert.equal((await first.response()).status, 200);
});

test('requests beyond maxRequests are refused, until one has ended', async () => {
  const upstream = lab.upstream('requests');
  const first = await asking(upstream);
  const wire = await upstream.connection();
  await wire.request();
  const second = await asking(upstream);
  const refused = await second.response();
  assert.equal(refused.status, 503);
  assert.equal(refused.value('x-reason'), 'UO');
  await wire.send(ok('x'));
  await first.response();
  await second.send(request('GET /again', upstream.host));
  await wire.request();
  await wire.send(ok('y'));
  assert.equal((await second.response()).body, 'y');
  await inUseBecomes(upstream, 'maxRequests', 0);
});

const tried = lab.upstream('requests');
const state = (): Promise<number> =>
  lab.metric(`portcullis_circuit_breaker_state{backend="${tried.host}",priority="default",limit="maxRequests"}`);

test('a breaker that has refused is open, and half open while requests prove that it need not', async () => {
  const upstream = tried;
  assert.equal(await state(), 0);
  const first = await asking(upstream);
  const wire = await upstream.connection();
  await wire.request();
  assert.equal((await (await asking(upstream)).response()).status, 503);
  assert.equal(await state(), 2);
  await lab.gateway.log(new RegExp(`warn circuit breaker open backend=${upstream.host} limit=maxRequests`));
  await wire.send(ok('x'));
  await first.response();
  await becomes('half open', async () => (await state()) === 1);
  const { body } = await get(lab.adminPort, '/breakers');
  const { circuitBreakers } = JSON.parse(body) as { circuitBreakers: { backend: string; state: string }[] };
  assert.equal(circuitBreakers.find(({ backend }) => backend === upstream.host)!.state, 'half_open');
  await first.send(request('GET /again', upstream.host));
  await wire.request();
  await wire.send(ok('y'));
  assert.equal((await first.response()).status, 200);
});

test('a request whose client leaves, and one whose upstream fails, give back their place', async () => {
  const upstream = lab.upstream('requests');
  for (const end of ['client', 'upstream']) {
    const client = await asking(upstream);
    const wire = await upstream.connection();
    await wire.request();
    await inUseBecomes(upstream, 'maxRequests', 1);
    if (end === 'client') client.reset();
    else wire.reset();
    await inUseBecomes(upstream, 'maxRequests', 0);
  }
});

test('further attempts beyond maxRetries are not made', async () => {
  const upstream = lab.upstream('retries');
  const series = `portcullis_circuit_breaker_in_use{backend="${upstream.host}",priority="default",limit="maxRetries"}`;
  const first = await asking(upstream);
  const wire = await upstream.connection();
  await wire.request();
  await wire.send('HTTP/1.1 503 Later\r\nRetry-After: 2\r\nContent-Length: 1\r\n\r\n1');
  await lab.metricBecomes(series, 1);
  const second = await asking(upstream);
  await wire.request();
  await wire.send('HTTP/1.1 503 Later\r\nContent-Length: 1\r\n\r\n2');
  assert.equal((await second.response()).body, '2');
  assert.equal(await lab.metric('portcullis_retries_not_made_total{why="limit"}'), 1);
  await wire.request();
  await wire.send(ok('good'));
  assert.equal((await first.response()).body, 'good');
  await lab.metricBecomes(series, 0);
});

test('all workers together keep to maxConnections, and nothing is refused', async (t) => {
  let open = 0;
  let most = 0;
  const port = await startUpstream(t, (incoming, response) => {
    incoming.resume();
    setImmediate(() => response.end('x'));
  });
  const backend = `{name: app, endpoints: ["127.0.0.1:${port}"], circuitBreaker: {maxConnections: 2, pendingTimeout: 30s}}`;
  const gateway = startGateway(
    t,
    `
workers: 4
admin: {address: "127.0.0.1:0"}
listeners: [{name: http, address: "127.0.0.1:0"}]
routes: [{name: all, rules: [{backendRefs: [{name: app}]}]}]
backends: [${backend}]
`,
  );
  const listener = await gateway.port();
  const admin = await gateway.adminPort();
  await gateway.serving();
  // Connections as the kernel sees them: those of the gateway to the upstream's port.
  const looks = (async () => {
    while (open >= 0) {
      const { body } = await get(admin, '/metrics');
      const count = Number(/^portcullis_upstream_connections_open (\d+)/m.exec(body)![1]);
      most = Math.max(most, count);
    }
  })();
  const statuses = await Promise.all(
    Array.from({ length: 60 }, async () => {
      const seen: number[] = [];
      for (let turn = 0; turn < 5; turn++) {
        await new Promise<void>((resolve, reject) => {
          const outgoing = httpRequest({ host: '127.0.0.1', port: listener, path: '/', agent: false }, (incoming) => {
            seen.push(incoming.statusCode!);
            incoming.resume();
            incoming.on('end', resolve);
          });
          outgoing.on('error', reject);
          outgoing.end();
        });
      }
      return seen;
    }),
  );
  open = -1;
  await looks;
  assert.deepEqual([...new Set(statuses.flat())], [200]);
  assert.ok(most <= 2, `${most} connections`);
});

const shared = new SharedGateway('', 1);
const yielding = shared.part(async (name, lifetime) => {
  const ports = await Promise.all(['a', 'b'].map((text) => namedUpstream(lifetime, text)));
  return {
    routes: `  - {name: ${name}, listeners: [${name}], rules: [{backendRefs: [{name: ${name}}]}]}`,
    backends: `  - {name: ${name}, endpoints: [${ports.map((port) => `"127.0.0.1:${port}"`).join(', ')}], circuitBreaker: {maxConnections: 1, pendingTimeout: 30s}}`,
  };
});

test('an unused connection to one endpoint gives way to another endpoint', async () => {
  const { port } = await yielding();
  const bodies: string[] = [];
  for (let i = 0; i < 6; i++) bodies.push((await get(port)).body);
  assert.deepEqual(bodies.sort(), ['a', 'a', 'a', 'b', 'b', 'b']);
});

let release: (() => void) | undefined;
const classes = shared.part(async (name, lifetime) => {
  const upstream = await startUpstream(lifetime, (incoming, response) => {
    incoming.resume();
    if (incoming.url === '/slow') release = () => response.end('slow');
    else response.end('x');
  });
  return {
    routes: `
  - name: ${name}
    listeners: [${name}]
    rules:
      - {matches: [{path: {value: /high}}], priority: high, backendRefs: [{name: ${name}}]}
      - {backendRefs: [{name: ${name}}]}
`,
    backends: `  - {name: ${name}, endpoints: ["127.0.0.1:${upstream}"], circuitBreaker: {maxRequests: 1, highPriority: {maxRequests: 1}}}`,
  };
});

test('requests of priority high have limits of their own', async () => {
  const { port: listener } = await classes();
  const slow = get(listener, '/slow');
  await becomes('slow request', async () => release !== undefined);
  assert.equal((await get(listener, '/other')).status, 503);
  assert.equal((await get(listener, '/high')).status, 200);
  release!();
  assert.equal((await slow).body, 'slow');
});

test('a breaker that a reload adds counts the connections that are open already, http/1.1 and h2c', async (t) => {
  const answer = (_request: unknown, response: { end(text: string): void }): void => response.end('x');
  const backends: { name: string; protocol: string; port: number }[] = [];
  for (const [name, protocol, server] of [
    ['one', 'http/1.1', createServer(answer)],
    ['two', 'h2c', createHttp2Server(answer)],
  ] as const) {
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    t.after(() => server.close());
    backends.push({ name, protocol, port: (server.address() as AddressInfo).port });
  }
  const config = (breaker: string): string => `
workers: 1
admin: {address: "127.0.0.1:0"}
listeners: [{name: http, address: "127.0.0.1:0"}]
routes: [{name: all, rules: [${backends.map(({ name }) => `{matches: [{path: {value: /${name}}}], backendRefs: [{name: ${name}}]}`).join(', ')}]}]
backends: [${backends.map(({ name, protocol, port }) => `{name: ${name}, protocol: ${protocol}, endpoints: ["127.0.0.1:${port}"]${breaker}}`).join(', ')}]
`;
  const gateway = startGateway(t, config(''));
  const ask = async (): Promise<void> => {
    for (const { name } of backends) assert.equal((await get(await gateway.port(), `/${name}`)).status, 200, name);
  };
  const inUseNow = async (): Promise<(string | undefined)[]> => {
    const lines = (await get(await gateway.adminPort(), '/metrics')).body.split('\n');
    return backends.map(({ name }) => {
      const series = `portcullis_circuit_breaker_in_use{backend="${name}",priority="default",limit="maxConnections"} `;
      return lines.find((line) => line.startsWith(series))?.slice(series.length);
    });
  };
  await ask();
  gateway.configure(config(', circuitBreaker: {maxConnections: 5}'));
  gateway.kill('SIGHUP');
  await gateway.log(/configuration reloaded epoch=2/);
  assert.deepEqual(await inUseNow(), ['1', '1']);
  await ask();
  assert.deepEqual(await inUseNow(), ['1', '1'], 'once only');
  gateway.configure(config(''));
  gateway.kill('SIGHUP');
  await gateway.log(/configuration reloaded epoch=3/);
  gateway.configure(config(', circuitBreaker: {maxConnections: 6}'));
  gateway.kill('SIGHUP');
  await gateway.log(/configuration reloaded epoch=4/);
  assert.deepEqual(await inUseNow(), ['1', '1']);
});

test('requests in progress count on over a reload, and give their places back once', async (t) => {
  const waiting: { end(text: string): void }[] = [];
  const upstream = await startUpstream(t, (_request, response) => void waiting.push(response));
  const config = (idle: string): string => `
workers: 1
admin: {address: "127.0.0.1:0"}
listeners: [{name: http, address: "127.0.0.1:0"}]
routes: [{name: all, rules: [{backendRefs: [{name: app}]}]}]
backends: [{name: app, idleTimeout: ${idle}, endpoints: ["127.0.0.1:${upstream}"], circuitBreaker: {maxRequests: 2}}]
`;
  const gateway = startGateway(t, config('60s'));
  const port = await gateway.port();
  const held = [get(port), get(port)];
  await becomes('two requests', async () => waiting.length === 2);
  gateway.configure(config('59s'));
  gateway.kill('SIGHUP');
  await gateway.log(/configuration reloaded epoch=2/);
  assert.equal((await get(port)).status, 503);
  for (const response of waiting.splice(0)) response.end('x');
  for (const one of held) assert.equal((await one).status, 200);
  const again = [get(port), get(port)];
  await becomes('two more requests', async () => waiting.length === 2);
  assert.equal((await get(port)).status, 503, 'and not one more');
  for (const response of waiting.splice(0)) response.end('x');
  for (const one of again) assert.equal((await one).status, 200);
});

// It takes ten seconds, which the other tests have used.
test('a breaker whose half-open time is over is closed', async () => {
  await becomes('closed', async () => (await state()) === 0);
  await lab.gateway.log(new RegExp(`info circuit breaker closed backend=${tried.host} overflows=1`));
});
