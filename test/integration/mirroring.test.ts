// Mirrored requests of a real gateway: recording servers as mirrors, and mirrors that are slow, dead or broken.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { Agent, type IncomingHttpHeaders, request } from 'node:http';
import {
  connect as connectHttp2,
  createServer as createHttp2Server,
  type Http2Server,
  type ServerHttp2Stream,
} from 'node:http2';
import { type AddressInfo, connect, createServer } from 'node:net';
import { type TestContext, test } from 'node:test';
import { type Gateway, get, startGateway, startUpstream } from './support.ts';

/** A configuration with one route, whose filters mirror. */
function config(appPort: number, filters: string, mirrors: Record<string, string>): string {
  const backends = Object.entries(mirrors).map(([name, rest]) => `  - {name: ${name}, ${rest}}\n`);
  return `
workers: 1
admin: {address: "127.0.0.1:0"}
accessLog: {path: "-", format: "%{path} %{status}"}
headers: {requestId: true}
listeners: [{name: http, address: "127.0.0.1:0"}]
routes:
  - name: all
    rules:
      - filters: [${filters}]
        backendRefs: [{name: app}]
backends:
  - {name: app, endpoints: ["127.0.0.1:${appPort}"]}
${backends.join('')}`;
}

const mirrorTo = (name: string, rest = ''): string =>
  `{type: RequestMirror, requestMirror: {backendRef: {name: ${name}}${rest}}}`;
const at = (port: number, rest = ''): string => `endpoints: ["127.0.0.1:${port}"]${rest}`;

interface Recorded {
  method: string;
  path: string;
  headers: IncomingHttpHeaders;
  body: string;
}

/** Keeps what came, and lets tests wait for it. */
class Recorder {
  readonly requests: Recorded[] = [];
  private readonly waiters: (() => void)[] = [];

  add(recorded: Recorded): void {
    this.requests.push(recorded);
    for (const wake of this.waiters.splice(0)) wake();
  }

  async have(count: number): Promise<Recorded[]> {
    while (this.requests.length < count) await new Promise<void>((resolve) => this.waiters.push(resolve));
    return this.requests;
  }
}

/** An upstream that records, and answers with its name. */
async function recordingUpstream(t: TestContext, name: string): Promise<{ port: number; recorder: Recorder }> {
  const recorder = new Recorder();
  const port = await startUpstream(t, (incoming, response) => {
    let body = '';
    incoming.setEncoding('latin1');
    incoming.on('data', (chunk) => (body += chunk));
    incoming.on('end', () => {
      recorder.add({ method: incoming.method!, path: incoming.url!, headers: incoming.headers, body });
      response.end(name);
    });
  });
  return { port, recorder };
}

/** One request with a body; gives status and body of the answer. */
function send(
  port: number,
  options: { path?: string; method?: string; headers?: Record<string, string>; agent?: Agent },
  pieces: string[] = [],
): Promise<{ status: number; body: string }> {
  return new Promise((resolve, reject) => {
    const outgoing = request({ port, agent: false, ...options }, (incoming) => {
      let body = '';
      incoming.setEncoding('utf8');
      incoming.on('data', (chunk) => (body += chunk));
      incoming.on('error', reject);
      incoming.on('end', () => resolve({ status: incoming.statusCode!, body }));
    });
    outgoing.on('error', reject);
    for (const piece of pieces) outgoing.write(piece);
    outgoing.end();
  });
}

async function metrics(gateway: Gateway): Promise<Map<string, number>> {
  const { body } = await get(await gateway.adminPort(), '/metrics');
  const lines = body.split('\n').filter((line) => line.startsWith('portcullis_'));
  return new Map(lines.map((line) => [line.slice(11, line.lastIndexOf(' ')), Number(line.split(' ').at(-1))]));
}

/** Waits until a metric has a value; the metrics at that moment. */
async function until(gateway: Gateway, name: string, value: number): Promise<Map<string, number>> {
  for (;;) {
    const now = await metrics(gateway);
    assert.ok(now.has(name), `no metric ${name}`);
    if (now.get(name) === value) return now;
  }
}

const answered = 'mirrored_requests_total{outcome="answered"}';
const failed = 'mirrored_requests_total{outcome="failed"}';
const dropped = (why: string): string => `mirrors_dropped_total{why="${why}"}`;

async function serve(t: TestContext, text: string): Promise<{ gateway: Gateway; port: number }> {
  const gateway = startGateway(t, text);
  const port = await gateway.port();
  await gateway.serving();
  return { gateway, port };
}

test('mirrors get the same request as the backend, and clients get the answer of the backend', async (t) => {
  const app = await recordingUpstream(t, 'app');
  const one = await recordingUpstream(t, 'one');
  const two = await recordingUpstream(t, 'two');
  const text = config(app.port, `${mirrorTo('one')}, ${mirrorTo('two')}`, { one: at(one.port), two: at(two.port) });
  const { gateway, port } = await serve(t, text);
  const chunked = { 'transfer-encoding': 'chunked' };
  const big = 'b'.repeat(60_000);
  const requests: [Parameters<typeof send>[1], string[]][] = [
    [{ path: '/get?a=b', headers: { host: 'shop.example.com', 'x-a': '1' } }, []],
    [{ path: '/head', method: 'HEAD' }, []],
    [{ path: '/length', method: 'POST', headers: { 'content-length': '5' } }, ['hello']],
    [{ path: '/empty', method: 'POST', headers: { 'content-length': '0' } }, []],
    [{ path: '/chunked', method: 'PUT', headers: chunked }, ['one ', 'two ', 'three']],
    [{ path: '/chunked-empty', method: 'PUT', headers: chunked }, []],
    [{ path: '/big', method: 'POST', headers: { 'content-length': '60000' } }, [big]],
    [{ path: '/big-chunked', method: 'POST', headers: chunked }, [big.slice(30_000), big.slice(30_000)]],
  ];
  for (const [index, [options, pieces]] of requests.entries()) {
    const { status, body } = await send(port, options, pieces);
    assert.deepEqual([status, body], [200, options.method === 'HEAD' ? '' : 'app'], String(options.path));
    const original = (await app.recorder.have(index + 1))[index]!;
    assert.equal(original.body, pieces.join(''));
    for (const { recorder } of [one, two]) assert.deepEqual((await recorder.have(index + 1))[index], original);
  }
  assert.equal(app.recorder.requests[0]!.headers.host, 'shop.example.com');
  assert.match(one.recorder.requests[0]!.headers['x-request-id'] as string, /./);
  const now = await until(gateway, answered, 2 * requests.length);
  // Mirrored requests are no requests of clients.
  assert.equal(now.get('requests_total{status_class="2xx"}'), requests.length);
  assert.equal(now.get('requests_in_flight'), 0);
  assert.equal(now.get('mirrors_in_flight'), 0);
  assert.equal(now.get('request_duration_seconds_count'), requests.length);
  await until(gateway, 'buffers_in_use', 0);
  gateway.kill('SIGTERM');
  const { stdout, code } = await gateway.finished;
  assert.equal(code, 0);
  assert.deepEqual(
    stdout.trim().split('\n'),
    requests.map(([{ path }]) => `${path} 200`),
  );
});

test('HTTP/2 on either side: requests of streams are mirrored, to HTTP/1.1 and HTTP/2', async (t) => {
  const app = await recordingUpstream(t, 'app');
  const one = await recordingUpstream(t, 'one');
  const recorder = new Recorder();
  const server: Http2Server = createHttp2Server();
  server.on('stream', (stream: ServerHttp2Stream, headers) => {
    let body = '';
    stream.setEncoding('latin1');
    stream.on('data', (chunk) => (body += chunk));
    stream.on('end', () => {
      recorder.add({ method: headers[':method']!, path: headers[':path']!, headers, body });
      stream.respond({ ':status': 500 });
      stream.end('thrown away');
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => server.close());
  const h2 = at((server.address() as AddressInfo).port, ', protocol: h2c');
  const text = config(app.port, `${mirrorTo('one')}, ${mirrorTo('h2')}`, { one: at(one.port), h2 });
  const { gateway, port } = await serve(t, text);
  const session = connectHttp2(`http://127.0.0.1:${port}`);
  // The gateway is killed before it.
  session.on('error', () => {});
  t.after(() => session.destroy());
  const big = 'c'.repeat(50_000);
  const bodies = ['', 'hello', big];
  for (const [index, body] of bodies.entries()) {
    for (const length of [false, true]) {
      const stream = session.request({
        ':path': `/${index}`,
        ':method': 'POST',
        ...(length ? { 'content-length': body.length } : {}),
      });
      stream.setEncoding('utf8');
      stream.end(body);
      let answer = '';
      stream.on('data', (chunk) => (answer += chunk));
      await once(stream, 'end');
      assert.equal(answer, 'app');
    }
  }
  const sent = bodies.flatMap((body, index) => [`/${index} ${body}`, `/${index} ${body}`]);
  const came = (records: Recorded[]): string[] => records.map(({ path, body }) => `${path} ${body}`).toSorted();
  assert.deepEqual(came(await app.recorder.have(6)), sent);
  assert.deepEqual(came(await one.recorder.have(6)), sent);
  assert.deepEqual(came(await recorder.have(6)), sent);
  await until(gateway, answered, 12);
});

test('bodies of requests side by side come whole to every mirror that takes their size', async (t) => {
  const app = await recordingUpstream(t, 'app');
  const little = await recordingUpstream(t, 'little');
  const much = await recordingUpstream(t, 'much');
  const filters = `${mirrorTo('little', ', bodyBuffer: 1KiB')}, ${mirrorTo('much')}`;
  const text = config(app.port, filters, { little: at(little.port), much: at(much.port) });
  const { gateway, port } = await serve(t, text);
  const agent = new Agent({ keepAlive: true, maxSockets: 20 });
  t.after(() => agent.destroy());
  // Every other body is too long for the first mirror, which turns out only when it has come.
  const bodies = Array.from({ length: 200 }, (_, i) => `${i} `.repeat(i % 2 === 0 ? 100 : 1000));
  const headers = { 'transfer-encoding': 'chunked' };
  await Promise.all(
    bodies.map((body) => send(port, { method: 'POST', headers, agent }, [body.slice(0, 150), body.slice(150)])),
  );
  const came = async (recorder: Recorder, count: number): Promise<string[]> =>
    (await recorder.have(count)).map(({ body }) => body).toSorted();
  assert.deepEqual(await came(app.recorder, 200), bodies.toSorted());
  assert.deepEqual(await came(much.recorder, 200), bodies.toSorted());
  const short = bodies.filter(({ length }) => length <= 1024).toSorted();
  assert.deepEqual(await came(little.recorder, short.length), short);
  const now = await until(gateway, 'mirrors_in_flight', 0);
  assert.equal(now.get(dropped('body')), 100);
  await until(gateway, 'buffers_in_use', 0);
});

test('percent and fraction mirror their share', async (t) => {
  const app = await recordingUpstream(t, 'app');
  const half = await recordingUpstream(t, 'half');
  const tenth = await recordingUpstream(t, 'tenth');
  const none = await recordingUpstream(t, 'none');
  const filters = [
    mirrorTo('half', ', fraction: {numerator: 1, denominator: 2}'),
    mirrorTo('tenth', ', percent: 10'),
    mirrorTo('none', ', percent: 0'),
  ];
  const { gateway, port } = await serve(
    t,
    config(app.port, filters.join(', '), { half: at(half.port), tenth: at(tenth.port), none: at(none.port) }),
  );
  const agent = new Agent({ keepAlive: true, maxSockets: 4 });
  t.after(() => agent.destroy());
  const count = 2000;
  await Promise.all(Array.from({ length: count }, () => send(port, { agent })));
  await until(gateway, 'mirrors_in_flight', 0);
  const now = await metrics(gateway);
  assert.equal(now.get(failed), 0);
  // Six standard deviations: once in half a billion runs.
  const near = (seen: number, share: number): void => {
    const bound = 6 * Math.sqrt(count * share * (1 - share));
    assert.ok(Math.abs(seen - count * share) < bound, `${seen} of ${count} for ${share}`);
  };
  near(half.recorder.requests.length + now.get(dropped('limit'))! / 2, 0.5);
  near(tenth.recorder.requests.length, 0.1);
  assert.equal(none.recorder.requests.length, 0);
});

test('a mirror that never answers, refuses connections, or resets them changes nothing for clients', async (t) => {
  const app = await recordingUpstream(t, 'app');
  const sockets: { destroy: () => void }[] = [];
  const silent = createServer((socket) => {
    sockets.push(socket);
    socket.on('error', () => {});
    socket.resume();
  });
  const resetting = createServer((socket) => {
    socket.on('error', () => {});
    socket.once('data', () => socket.resetAndDestroy());
  });
  const closed = createServer();
  const ports: number[] = [];
  for (const server of [silent, resetting, closed]) {
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    ports.push((server.address() as AddressInfo).port);
  }
  closed.close();
  t.after(() => {
    for (const socket of sockets) socket.destroy();
    silent.close();
    resetting.close();
  });
  const filters = [
    mirrorTo('silent', ', timeout: 300ms'),
    mirrorTo('resetting'),
    mirrorTo('closed'),
    mirrorTo('nowhere'),
  ];
  const { gateway, port } = await serve(
    t,
    config(app.port, filters.join(', '), {
      silent: at(ports[0]!),
      resetting: at(ports[1]!),
      closed: at(ports[2]!),
      nowhere: 'endpoints: ["nowhere.invalid:80"]',
    }),
  );
  const count = 40;
  for (let i = 0; i < count; i++) {
    const body = i % 2 === 0 ? [] : ['with a body'];
    const method = i % 2 === 0 ? 'GET' : 'POST';
    assert.deepEqual(await send(port, { method }, body), { status: 200, body: 'app' });
  }
  const now = await until(gateway, failed, 4 * count);
  assert.equal(now.get('mirrors_in_flight'), 0);
  assert.equal(now.get('requests_total{status_class="5xx"}'), 0);
  await until(gateway, 'buffers_in_use', 0);
});

test('too large bodies, too many mirrors and requests that are never complete are dropped and counted', async (t) => {
  const app = await recordingUpstream(t, 'app');
  const held: { end: () => void }[] = [];
  const slow = await startUpstream(t, (incoming, response) => {
    incoming.resume();
    held.push(response);
  });
  const text = config(app.port, mirrorTo('slow', ', bodyBuffer: 1KiB'), { slow: at(slow) });
  const { gateway, port } = await serve(t, text);
  const big = 'x'.repeat(1025);
  await send(port, { method: 'POST', headers: { 'content-length': '1025' } }, [big]);
  await send(port, { method: 'POST', headers: { 'transfer-encoding': 'chunked' } }, [big]);
  await until(gateway, dropped('body'), 2);
  const socket = connect(port, '127.0.0.1');
  socket.write('POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf');
  await until(gateway, 'mirrors_in_flight', 1);
  socket.destroy();
  await until(gateway, dropped('incomplete'), 1);
  assert.equal((await metrics(gateway)).get('mirrors_in_flight'), 0);
  // 256 are in flight at most.
  const agent = new Agent({ keepAlive: true, maxSockets: 10 });
  t.after(() => agent.destroy());
  for (let i = 0; i < 26; i++) await Promise.all(Array.from({ length: 10 }, () => send(port, { agent })));
  const now = await until(gateway, 'mirrors_in_flight', 256);
  assert.equal(now.get(dropped('limit')), 4);
  while (held.length < 256) await new Promise((resolve) => setImmediate(resolve));
  for (const response of held) response.end();
  await until(gateway, answered, 256);
});

test('a reload leaves mirrored requests alone, and a drain does not wait for them', async (t) => {
  const app = await recordingUpstream(t, 'app');
  const held: { end: () => void }[] = [];
  let came: () => void = () => {};
  const slow = await startUpstream(t, (incoming, response) => {
    incoming.resume();
    held.push(response);
    came();
  });
  const text = config(app.port, mirrorTo('slow'), { slow: at(slow) });
  const { gateway, port } = await serve(t, text);
  const first = new Promise<void>((resolve) => (came = resolve));
  await send(port, {});
  await first;
  gateway.configure(text.replace(/filters: .*$/m, 'filters: []'));
  gateway.kill('SIGHUP');
  await gateway.log(/info configuration reloaded /);
  held[0]!.end();
  await until(gateway, answered, 1);
  await send(port, {});
  assert.equal(held.length, 1);

  gateway.configure(text);
  gateway.kill('SIGHUP');
  await gateway.log(/info configuration reloaded /, 2);
  const second = new Promise<void>((resolve) => (came = resolve));
  await send(port, {});
  await second;
  // Never answered: the gateway ends all the same, and long before the mirror's timeout.
  gateway.kill('SIGTERM');
  const { code } = await gateway.finished;
  assert.equal(code, 0);
});
