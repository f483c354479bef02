// Health of endpoints with real processes: checks and outlier detection take endpoints out of use and bring
// them back, on all workers.

import assert from 'node:assert/strict';
import { createServer, type Server } from 'node:http';
import { type AddressInfo, createServer as createTcpServer } from 'node:net';
import { test } from 'node:test';
import { becomes } from './http/support.ts';
import { SharedGateway } from './shared-gateway.ts';
import { type Gateway, get, type Lifetime, startGateway, startUpstream } from './support.ts';

/** An upstream whose answers a test changes, and that can be killed and brought back on its port. */
class Backend {
  readonly name: string;
  port = 0;
  status = 200;
  checks = 0;
  /** Statuses that requests (not checks) have got. */
  readonly served: number[] = [];
  private server: Server | undefined;

  constructor(name: string) {
    this.name = name;
  }

  async up(): Promise<this> {
    const server = createServer((incoming, response) => {
      incoming.resume();
      if (incoming.url === '/healthz') this.checks++;
      else this.served.push(this.status);
      response.statusCode = this.status;
      response.end(this.name);
    });
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.listen(this.port, '127.0.0.1', resolve);
    });
    this.port = (server.address() as AddressInfo).port;
    this.server = server;
    return this;
  }

  async down(): Promise<void> {
    const { server } = this;
    this.server = undefined;
    if (server === undefined) return;
    const closed = new Promise((resolve) => server.close(resolve));
    server.closeAllConnections();
    await closed;
  }
}

async function backends(t: Lifetime, ...names: string[]): Promise<Backend[]> {
  const all = await Promise.all(names.map((name) => new Backend(name).up()));
  t.after(() => Promise.all(all.map((backend) => backend.down())));
  return all;
}

function config(ports: readonly number[], backend: string): string {
  const endpoints = ports.map((port) => `"127.0.0.1:${port}"`).join(', ');
  return `
workers: 2
admin: {address: "127.0.0.1:0"}
log: {level: debug}
failureRecords: {slowThreshold: 0}
listeners: [{name: http, address: "127.0.0.1:0"}]
routes:
  - name: all
    rules:
      - {matches: [{path: {value: /other}}], backendRefs: [{name: app}]}
      - backendRefs: [{name: app}]
backends: [{name: app, endpoints: [${endpoints}], ${backend}}]
`;
}

/** The gateway of tests that reload nothing. */
const shared = new SharedGateway('log: {level: debug}\nfailureRecords: {slowThreshold: 0}');

interface Watched {
  gateway: Gateway;
  port: number;
  /** Name of the backend. */
  app: string;
  a: Backend;
  b: Backend;
}

/** A listener whose backend has endpoints a and b, and further keys. */
function watched(keys: string): () => Promise<Watched> {
  let app = '';
  let both: Backend[] = [];
  const part = shared.part(async (name, lifetime) => {
    app = name;
    both = await backends(lifetime, 'a', 'b');
    const endpoints = both.map(({ port }) => `"127.0.0.1:${port}"`).join(', ');
    const ref = `backendRefs: [{name: ${name}}]`;
    return {
      routes: `  - {name: ${name}, listeners: [${name}], rules: [{matches: [{path: {value: /other}}], ${ref}}, {${ref}}]}`,
      backends: `  - {name: ${name}, endpoints: [${endpoints}], ${keys}}`,
    };
  });
  return async () => ({ ...(await part()), app, a: both[0]!, b: both[1]! });
}

/** A line of the log about an endpoint of a backend. */
function told(event: string, app: string, more = ''): RegExp {
  return new RegExp(String.raw`${event} endpoint=\S+ backend=${app}${more}$`);
}

/** Bodies of so many answers, each on a connection of its own, so that all workers serve some. */
async function bodies(port: number, count: number, path = '/'): Promise<string[]> {
  const found: string[] = [];
  for (let i = 0; i < count; i++) found.push((await get(port, path)).body);
  return found;
}

async function metric(gateway: Gateway, series: string): Promise<number> {
  const { body } = await get(await gateway.adminPort(), '/metrics');
  const line = body.split('\n').find((text) => text.startsWith(`portcullis_${series} `));
  return line === undefined ? Number.NaN : Number(line.slice(line.lastIndexOf(' ') + 1));
}

interface EndpointPage {
  address: string;
  health: string | null;
  healthCause: string;
  ejected: boolean;
  draining: boolean;
  sharePercent: number;
  ejections: number | null;
  circuitBreaker: string | null;
}

async function endpointsOf(gateway: Gateway, app = 'app'): Promise<EndpointPage[]> {
  const { body } = await get(await gateway.adminPort(), '/backends');
  const { backends } = JSON.parse(body) as { backends: { name: string; endpoints: EndpointPage[] }[] };
  return backends.find(({ name }) => name === app)!.endpoints;
}

const checks = 'healthCheck: {path: /healthz, interval: 100ms, timeout: 2s}';

const unwell = watched(checks);

test('an endpoint that says it is unwell gets no requests until two good checks', async () => {
  const { gateway, port, app, b } = await unwell();
  await gateway.log(told('debug endpoint healthy', app), 2);
  assert.deepEqual(new Set(await bodies(port, 12)), new Set(['a', 'b']));

  b.status = 503;
  await gateway.log(told('warn endpoint unhealthy', app, ' cause="it answered with status 503"'));
  assert.deepEqual(new Set(await bodies(port, 12)), new Set(['a']));
  assert.equal(await metric(gateway, `backend_endpoints{backend="${app}",state="unhealthy"}`), 1);
  assert.ok((await metric(gateway, `health_checks_total{backend="${app}",outcome="refusal"}`)) >= 1);
  const ill = (await endpointsOf(gateway, app)).find(({ address }) => address.endsWith(`:${b.port}`))!;
  assert.equal(ill.health, 'unhealthy');
  assert.equal(ill.healthCause, 'it answered with status 503');

  b.status = 200;
  await gateway.log(told('info endpoint healthy', app));
  assert.deepEqual(new Set(await bodies(port, 12)), new Set(['a', 'b']));
});

const killed = watched(checks);

test('a backend that is killed is taken out of use, and back when it runs again', async () => {
  const { gateway, port, app, b } = await killed();
  await gateway.log(told('debug endpoint healthy', app), 2);
  await b.down();
  await gateway.log(told('warn endpoint unhealthy', app, ' cause="connection refused"'));
  assert.deepEqual(new Set(await bodies(port, 12)), new Set(['a']));
  await b.up();
  await gateway.log(told('info endpoint healthy', app));
  assert.deepEqual(new Set(await bodies(port, 12)), new Set(['a', 'b']));
});

test('checks go on with the same state over a reload that leaves them as they are, and end with their endpoint', async (t) => {
  const [a, b] = await backends(t, 'a', 'b');
  b!.status = 503;
  const gateway = startGateway(t, config([a!.port, b!.port], checks));
  const port = await gateway.port();
  await gateway.log(/warn endpoint unhealthy/);
  gateway.configure(config([a!.port, b!.port], `${checks}, connectTimeout: 3s`));
  gateway.kill('SIGHUP');
  await gateway.log(/configuration reloaded epoch=2/);
  assert.deepEqual(new Set(await bodies(port, 12)), new Set(['a']));
  assert.equal(gateway.stderr.match(/endpoint unhealthy/g)!.length, 1);

  gateway.configure(config([b!.port], 'connectTimeout: 3s'));
  gateway.kill('SIGHUP');
  await gateway.log(/configuration reloaded epoch=3/);
  // Nobody says any more that it is unwell.
  assert.deepEqual(await bodies(port, 4), ['b', 'b', 'b', 'b']);
  assert.equal((await endpointsOf(gateway))[0]!.health, null);
  assert.ok(Number.isNaN(await metric(gateway, 'health_checks_total{backend="app",outcome="success"}')));
});

test('an endpoint that accepts connections and never answers is unhealthy for it', async (t) => {
  const silent = createTcpServer((socket) => socket.on('error', () => {}));
  await new Promise<void>((resolve) => silent.listen(0, '127.0.0.1', resolve));
  t.after(() => silent.close());
  const [a] = await backends(t, 'a');
  const { port: silentPort } = silent.address() as AddressInfo;
  const check = 'healthCheck: {path: /healthz, interval: 100ms, timeout: 50ms, unhealthyThreshold: 2}';
  const gateway = startGateway(t, config([a!.port, silentPort], check));
  await gateway.log(/warn endpoint unhealthy .*cause="no answer within 50 ms"$/);
  assert.ok((await metric(gateway, 'health_checks_total{backend="app",outcome="timeout"}')) >= 1);
});

const quickEjection = 'outlierDetection: {consecutive5xx: 5, baseEjectionTime: 1s, interval: 1h, ramp: [100]}';

const failing = watched(quickEjection.replace('1s', '1h'));

test('the configured number of errors ejects, counted over routes and workers, and not one more reaches the endpoint', async () => {
  const { gateway, port, app, a, b } = await failing();
  b.status = 500;
  for (let i = 0; i < 30; i++) await get(port, i % 2 === 0 ? '/' : '/other');
  assert.deepEqual(b.served, [500, 500, 500, 500, 500]);
  assert.equal(a.served.length, 25);
  await gateway.log(
    told(
      'warn endpoint ejected',
      app,
      String.raw` cause="5 failures \(5xx or no answer\) in a row" forMs=3600000 ejections=1`,
    ),
  );
  assert.equal(await metric(gateway, `outlier_ejections_total{backend="${app}",cause="consecutive_5xx"}`), 1);
  assert.equal(await metric(gateway, `backend_endpoints{backend="${app}",state="ejected"}`), 1);
  const [, ejected] = await endpointsOf(gateway, app);
  assert.equal(ejected!.ejected, true);
  assert.equal(ejected!.ejections, 1);

  // An earlier request to it can now be explained with what has become of it.
  const { requests } = JSON.parse((await get(await gateway.adminPort(), '/requests')).body) as {
    requests: { requestId: { text: string }; status: number }[];
  };
  const { requestId } = requests.find(({ status }) => status === 500)!;
  const explained = (await get(await gateway.adminPort(), `/explain?id=${requestId.text}`)).body;
  assert.match(explained, /Now, endpoint \S+ is ejected by outlier detection: 5 failures/);
});

const between = watched(quickEjection);

test('a success in between starts the count anew', async () => {
  const { gateway, port, app, b } = await between();
  const failures = async (count: number): Promise<void> => {
    const until = b.served.length + count;
    while (b.served.length < until) await get(port);
  };
  b.status = 500;
  await failures(4);
  b.status = 404;
  await failures(1);
  b.status = 500;
  await failures(4);
  assert.equal(await metric(gateway, `outlier_ejections_total{backend="${app}",cause="consecutive_5xx"}`), 0);
  await failures(1);
  assert.equal(await metric(gateway, `outlier_ejections_total{backend="${app}",cause="consecutive_5xx"}`), 1);
});

// Longer than thirty requests take, or the endpoint is tried again among them.
const dead = watched(quickEjection.replace('1s', '5s'));

test('a dead endpoint is ejected for connect failures, and is back after its time', async () => {
  const { gateway, port, app, b } = await dead();
  await b.down();
  let failed = 0;
  for (let i = 0; i < 30; i++) if ((await get(port)).status === 503) failed++;
  assert.equal(failed, 5);
  await b.up();
  await gateway.log(told('info endpoint back after ejection', app));
  await becomes('requests at b', async () => (await bodies(port, 4)).includes('b'));
});

const returning = watched(
  'outlierDetection: {consecutive5xx: 3, baseEjectionTime: 1s, interval: 1h, ramp: [50, 100], rampStep: 1h}',
);

test('an endpoint returns by steps, and one error on the way ejects it again, for longer', async () => {
  const { gateway, port, app, a, b } = await returning();
  const breakers = async (): Promise<(string | null)[]> =>
    (await endpointsOf(gateway, app)).map(({ circuitBreaker }) => circuitBreaker);
  const series = `endpoint_circuit_breaker_state{backend="${app}",endpoint="127.0.0.1:${b.port}"}`;
  assert.deepEqual([await breakers(), await metric(gateway, series)], [['closed', 'closed'], 0]);
  b.status = 500;
  while (b.served.length < 3) await get(port);
  assert.deepEqual([await breakers(), await metric(gateway, series)], [['closed', 'open'], 2]);
  await gateway.log(told('info endpoint returns from ejection', app, ' sharePercent=50'));
  assert.deepEqual([await breakers(), await metric(gateway, series)], [['closed', 'half_open'], 1]);
  const served = b.served.length;
  while (b.served.length === served) await get(port);
  await gateway.log(
    told(
      'warn endpoint ejected',
      app,
      ' cause="a failure during its return, at 50 % of its share" forMs=2000 ejections=2',
    ),
  );
  assert.equal(b.served.length, served + 1);

  b.status = 200;
  await gateway.log(told('info endpoint returns from ejection', app, ' sharePercent=50'), 2);
  b.served.length = 0;
  a.served.length = 0;
  await bodies(port, 60);
  // Half of a share of one half: a third.
  assert.ok(b.served.length >= 10 && b.served.length <= 30, `${b.served.length} of 60`);
});

test('an endpoint that drains gets no new requests, and the running one ends in peace', async (t) => {
  let release = (): void => {};
  let arrived = (): void => {};
  const waiting = new Promise<void>((resolve) => {
    arrived = resolve;
  });
  const slow = await startUpstream(t, (_incoming, response) => {
    release = () => response.end('slow');
    arrived();
  });
  const [a] = await backends(t, 'a');
  const gateway = startGateway(t, config([slow], 'connectTimeout: 1s'));
  const port = await gateway.port();
  const running = get(port);
  await waiting;
  const draining = config([a!.port], 'connectTimeout: 1s').replace(
    `"127.0.0.1:${a!.port}"`,
    `"127.0.0.1:${a!.port}", {address: "127.0.0.1:${slow}", draining: true}`,
  );
  gateway.configure(draining);
  gateway.kill('SIGHUP');
  await gateway.log(/configuration reloaded epoch=2/);
  assert.deepEqual(await bodies(port, 6), ['a', 'a', 'a', 'a', 'a', 'a']);
  assert.deepEqual(
    (await endpointsOf(gateway)).map((endpoint) => endpoint.draining),
    [false, true],
  );
  release();
  assert.equal((await running).body, 'slow');
});
