// What further attempts are made for, where they go, and what bounds them.

import assert from 'node:assert/strict';
import { createServer as createHttp2Server, type Http2Server, type ServerHttp2Stream } from 'node:http2';
import type { AddressInfo } from 'node:net';
import { test } from 'node:test';
import { becomes, ok, request, startLab } from '../http/support.ts';
import { openWire } from '../http/wire.ts';
import { block, Flag, frame, Type } from '../http2/frames.ts';
import { accept } from '../http2-upstream/support.ts';
import { SharedGateway } from '../shared-gateway.ts';
import {
  CLOSED_PORTS,
  type Gateway,
  get,
  type Lifetime,
  namedUpstream,
  startGateway,
  startUpstream,
} from '../support.ts';

const lab = await startLab({
  kinds: {
    multiplexed: {
      upstreams: 10,
      rule: 'retry: {attempts: 2, conditions: [refused-stream, reset, unavailable], codes: [503], backoff: 1ms}, timeouts: {request: 20s}',
      backend: 'protocol: h2c, retryBudget: {percent: 100, minPerSecond: 1000}',
    },
    timeouts: {
      upstreams: 3,
      rule: 'retry: {attempts: 1, backoff: 1ms}, timeouts: {request: 20s, backendRequest: 1s}',
    },
  },
});

/** Value of one line of /metrics; 0 if there is none. */
async function metric(gateway: Gateway, series: string): Promise<number> {
  const { body } = await get(await gateway.adminPort(), '/metrics');
  const line = body.split('\n').find((text) => text.startsWith(`${series} `));
  return line === undefined ? 0 : Number(line.slice(series.length + 1));
}

const BUDGET = 'retryBudget: {percent: 100, minPerSecond: 1000}';

/** The gateway of all tests but the last one. */
const shared = new SharedGateway('responseReasonHeader: x-reason', 1);

/** A listener with one rule and one backend with these endpoints. */
function retrying(
  endpoints: (lifetime: Lifetime) => Promise<(number | string)[]>,
  rule: string,
  backend = BUDGET,
): ReturnType<SharedGateway['part']> {
  return shared.part(async (name, lifetime) => ({
    routes: `  - {name: ${name}, listeners: [${name}], rules: [{backendRefs: [{name: ${name}}], ${rule}}]}`,
    backends: `  - {name: ${name}, endpoints: [${listed(await endpoints(lifetime))}], ${backend}}`,
  }));
}

function listed(endpoints: (number | string)[]): string {
  return endpoints.map((one) => (typeof one === 'string' ? one : `"127.0.0.1:${one}"`)).join(', ');
}

async function send(port: number, text: string): Promise<{ status: number; body: string; reason: string | undefined }> {
  const wire = await openWire(port);
  try {
    await wire.send(text);
    const response = await wire.response();
    return { status: response.status, body: response.body, reason: response.value('x-reason') };
  } finally {
    wire.close();
  }
}

// -- HTTP/2 ---------------------------------------------------------------------------

test('a response over HTTP/2 that is not wanted is cancelled, and its body and the next attempt stay apart', async () => {
  const upstream = lab.upstream('multiplexed');
  const client = await lab.client();
  await client.send(`${request('PUT /', upstream.host, 'Content-Length: 5')}hello`);
  const server = await accept(upstream);
  const first = await server.request();
  assert.equal(first.body, 'hello');
  await server.send(
    frame(Type.HEADERS, Flag.END_HEADERS, first.stream, block([':status', '503'])),
    frame(Type.DATA, 0, first.stream, 'not this'),
  );
  await server.next(Type.RST_STREAM);
  const second = await server.request();
  assert.equal(second.body, 'hello');
  assert.deepEqual(second.fields, first.fields);
  await server.respond(second.stream, 'good');
  const response = await client.response();
  assert.equal(response.status, 200);
  assert.equal(response.body, 'good');
});

test('a POST whose stream is refused after its body was sent is sent again whole', async () => {
  const upstream = lab.upstream('multiplexed');
  const client = await lab.client();
  await client.send(`${request('POST /', upstream.host, 'Transfer-Encoding: chunked')}3\r\nabc\r\n0\r\n\r\n`);
  const server = await accept(upstream);
  const first = await server.request();
  assert.equal(first.body, 'abc');
  await server.send(frame(Type.RST_STREAM, 0, first.stream, Buffer.from([0, 0, 0, 7])));
  const again = await accept(upstream);
  const second = await again.request();
  assert.equal(second.body, 'abc');
  await again.respond(second.stream, 'good');
  assert.equal((await client.response()).body, 'good');
});

test('a stream that is reset is tried again for a GET, and not for a POST', async () => {
  for (const method of ['GET', 'POST']) {
    const upstream = lab.upstream('multiplexed');
    const client = await lab.client();
    await client.send(request(`${method} /`, upstream.host));
    const server = await accept(upstream);
    const first = await server.request();
    await server.send(frame(Type.RST_STREAM, 0, first.stream, Buffer.from([0, 0, 0, 2])));
    if (method === 'GET') await server.respond((await server.request()).stream, 'good');
    assert.equal((await client.response()).status, method === 'GET' ? 200 : 502);
  }
});

test('an RPC that ends with a listed status and without a message is tried again, with less time', async () => {
  const upstream = lab.upstream('multiplexed');
  const client = await lab.client();
  const head = request(
    'POST /a.B/C',
    upstream.host,
    'Content-Type: application/grpc',
    'TE: trailers',
    'grpc-timeout: 10S',
    'Content-Length: 5',
  );
  await client.send(`${head}\0\0\0\0\0`);
  const server = await accept(upstream);
  const first = await server.request();
  const grpc: [string, string][] = [
    [':status', '200'],
    ['content-type', 'application/grpc'],
  ];
  await server.send(
    ...[frame(Type.HEADERS, Flag.END_HEADERS | Flag.END_STREAM, first.stream, block(...grpc, ['grpc-status', '14']))],
  );
  const second = await server.request();
  const timeoutMs = ({ fields }: { fields: string[] }): number => {
    const [, digits, unit] = /^grpc-timeout: (\d+)([mS])$/.exec(
      fields.find((field) => field.startsWith('grpc-timeout'))!,
    )!;
    return Number(digits) * (unit === 'S' ? 1000 : 1);
  };
  assert.ok(timeoutMs(first) <= 10_000);
  assert.ok(timeoutMs(second) < timeoutMs(first), `${timeoutMs(second)} is not less than ${timeoutMs(first)}`);
  assert.ok(timeoutMs(second) > 1000);
  // Another status is the RPC's own answer.
  await server.send(
    frame(Type.HEADERS, Flag.END_HEADERS | Flag.END_STREAM, second.stream, block(...grpc, ['grpc-status', '5'])),
  );
  assert.equal((await client.response()).value('grpc-status'), '5');
});

const replaying = retrying(
  async (file) => {
    const seen = new Map<string, number>();
    const server: Http2Server = createHttp2Server();
    server.on('stream', (stream: ServerHttp2Stream, headers) => {
      const path = headers[':path']!;
      const attempt = (seen.get(path) ?? 0) + 1;
      seen.set(path, attempt);
      stream.on('error', () => {});
      let body = '';
      stream.setEncoding('latin1');
      stream.on('data', (chunk) => {
        body += chunk;
        // Every other one fails in the middle, the others when they are here whole.
        if (attempt === 1 && body.length > 20_000 && Number(path.slice(1)) % 2 === 0) stream.close(2);
      });
      stream.on('end', () => {
        if (stream.destroyed || stream.closed) return;
        stream.respond({ ':status': attempt === 1 ? 503 : 200 });
        stream.end(body);
      });
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    const sessions = new Set<{ destroy(): void }>();
    server.on('session', (session) => sessions.add(session));
    file.after(() => {
      for (const session of sessions) session.destroy();
      server.close();
    });
    return [(server.address() as AddressInfo).port];
  },
  'retry: {attempts: 3, conditions: [reset, 5xx], bodyBuffer: 256KiB, backoff: 1ms}',
  `protocol: h2c, ${BUDGET}`,
);

test('many requests with bodies over one HTTP/2 connection are replayed byte for byte', async () => {
  const { gateway, port } = await replaying();
  await Promise.all(
    Array.from({ length: 20 }, async (_, index) => {
      const body = Array.from({ length: 1 + index * 6000 }, (_, at) =>
        String.fromCharCode(97 + ((at * 7 + index) % 26)),
      ).join('');
      const answer = await send(port, `${request(`PUT /${index}`, 'x', `Content-Length: ${body.length}`)}${body}`);
      assert.equal(answer.status, 200);
      assert.ok(answer.body === body, `body ${index} differs`);
    }),
  );
  await becomes('free buffers', async () => (await metric(gateway, 'portcullis_buffers_in_use')) === 0);
});

// -- timeouts, endpoints ------------------------------------------------------------------

test('an attempt without an answer within backendRequest is given up for the next one', async () => {
  const upstream = lab.upstream('timeouts');
  const client = await lab.client();
  await client.send(request('GET /', upstream.host));
  const slow = await upstream.connection();
  await slow.request();
  const next = await upstream.connection();
  await next.request();
  await next.send(ok('good'));
  assert.equal((await client.response()).body, 'good');
  assert.ok(await slow.ended());
});

test('when no attempt is answered in time, the client gets 504', async () => {
  const upstream = lab.upstream('timeouts');
  const client = await lab.client();
  await client.send(request('GET /', upstream.host));
  await (await upstream.connection()).request();
  await (await upstream.connection()).request();
  const response = await client.response();
  assert.equal(response.status, 504);
  assert.equal(response.value('x-reason'), 'UT');
});

const balancing = retrying(async (file) => {
  const bad = await startUpstream(file, (incoming, response) => {
    incoming.resume();
    response.statusCode = 502;
    response.end('bad');
  });
  // Balancing alone would hardly ever choose the good one.
  return [`{address: "127.0.0.1:${bad}", weight: 50}`, await namedUpstream(file, 'good')];
}, 'retry: {attempts: 1, conditions: [gateway-error], backoff: 1ms}');

test('a further attempt goes to another endpoint', async () => {
  const { port } = await balancing();
  const answers: string[] = [];
  for (let i = 0; i < 20; i++) answers.push((await get(port)).body);
  assert.deepEqual([...new Set(answers)], ['good']);
});

const connecting = retrying(async (file) => {
  const good = await startUpstream(file, (incoming, response) => {
    let body = '';
    incoming.on('data', (chunk) => (body += chunk));
    incoming.on('end', () => response.end(body));
  });
  return [CLOSED_PORTS[0], good];
}, 'retry: {backoff: 1ms}');

test('a request of any method that found no connection goes to another endpoint', async () => {
  const { gateway, port } = await connecting();
  for (let i = 0; i < 10; i++) {
    assert.deepEqual(await send(port, `${request('POST /', 'x', 'Content-Length: 3')}a${i}c`), {
      status: 200,
      body: `a${i}c`,
      reason: undefined,
    });
  }
  assert.ok((await metric(gateway, 'portcullis_retries_total{cause="connect_failure"}')) >= 4);
});

let posts = 0;
const unsafe = retrying(
  async (file) => [
    await startUpstream(file, (incoming, response) => {
      incoming.resume();
      incoming.on('end', () => {
        response.statusCode = ++posts === 1 ? 503 : 200;
        response.end();
      });
    }),
  ],
  'retry: {codes: [503], retryUnsafe: true, backoff: 1ms}',
);

test('with retryUnsafe a POST is tried again like any other', async () => {
  const { port } = await unsafe();
  assert.equal((await send(port, `${request('POST /', 'x', 'Content-Length: 3')}abc`)).status, 200);
  assert.equal(posts, 2);
});

// -- budget, time, end of the process ----------------------------------------------------------

let requests = 0;
const failing = async (file: Lifetime): Promise<number[]> => [
  await startUpstream(file, (incoming, response) => {
    requests++;
    incoming.resume();
    response.statusCode = 503;
    response.end();
  }),
];
const none = retrying(
  failing,
  'retry: {attempts: 3, codes: [503], backoff: 1ms}',
  'retryBudget: {percent: 0, minPerSecond: 0}',
);
const standard = retrying(failing, 'retry: {attempts: 3, codes: [503], backoff: 1ms}', 'connectTimeout: 2s');

test('the retry budget bounds further attempts, by default too', async () => {
  const { gateway, port } = await none();
  const notMade = (): Promise<number> => metric(gateway, 'portcullis_retries_not_made_total{why="budget"}');
  const before = await notMade();
  for (let i = 0; i < 5; i++) assert.equal((await get(port)).status, 503);
  assert.equal(requests, 5);
  assert.equal((await notMade()) - before, 5);
  requests = 0;
  const { port: standardPort } = await standard();
  await Promise.all(Array.from({ length: 100 }, () => get(standardPort)));
  // 3 a second for ten seconds, and 20 % of 100. The window may move on once meanwhile.
  const retries = requests - 100;
  assert.ok(retries >= 30 && retries <= 2 * 50, `${retries} retries`);
  assert.ok((await notMade()) - before > 5);
});

const hurried = retrying(
  async (file) => [
    await startUpstream(file, (incoming, response) => {
      incoming.resume();
      response.writeHead(503, { 'retry-after': '4' });
      response.end('later');
    }),
  ],
  'retry: {codes: [503]}, timeouts: {request: 3s, backendRequest: 3s}',
);

test('a wait that timeouts.request leaves no time for is not begun', async () => {
  const { gateway, port } = await hurried();
  const { status, body } = await get(port);
  assert.deepEqual([status, body], [503, 'later']);
  assert.equal(await metric(gateway, 'portcullis_retries_not_made_total{why="time"}'), 1);
});

test('a request that waits for its next attempt when the gateway shuts down is served', async (t) => {
  let attempts = 0;
  const upstream = await startUpstream(t, (incoming, response) => {
    incoming.resume();
    if (++attempts === 1) response.writeHead(503, { 'retry-after': '1' });
    response.end('good');
  });
  const gateway = startGateway(
    t,
    `
workers: 1
admin: off
drainTimeout: 20s
listeners: [{name: http, address: "127.0.0.1:0"}]
routes: [{name: all, rules: [{backendRefs: [{name: app}], retry: {codes: [503], backoff: 1ms}}]}]
backends: [{name: app, endpoints: ["127.0.0.1:${upstream}"], ${BUDGET}}]
`,
  );
  const port = await gateway.port();
  await gateway.serving();
  const answer = get(port);
  await becomes('first attempt', async () => attempts === 1);
  gateway.kill('SIGTERM');
  assert.deepEqual([(await answer).status, (await answer).body], [200, 'good']);
  assert.equal((await gateway.finished).code, 0);
});
