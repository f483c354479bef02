// Compressed responses of a real gateway, with real clients and upstreams that decide when to go on.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { Agent, type IncomingMessage, request, type ServerResponse } from 'node:http';
import { connect as connectHttp2, constants, createServer as createHttp2Server } from 'node:http2';
import { type AddressInfo, connect } from 'node:net';
import { join } from 'node:path';
import type { Transform } from 'node:stream';
import { test } from 'node:test';
import { promisify } from 'node:util';
import * as zlib from 'node:zlib';
import { sendPieces, textOf } from './compression-bodies.ts';
import { SharedGateway } from './shared-gateway.ts';
import { type Gateway, get, type Lifetime, startGateway, startUpstream, temporaryDirectory } from './support.ts';

const MIB = 1024 * 1024;

const decoders: Record<string, { whole: (bytes: Buffer) => Buffer; stream: () => Transform }> = {
  gzip: { whole: zlib.gunzipSync, stream: () => zlib.createGunzip() },
  br: { whole: zlib.brotliDecompressSync, stream: () => zlib.createBrotliDecompress() },
  zstd: { whole: zlib.zstdDecompressSync, stream: () => zlib.createZstdDecompress() },
};

/** A configuration with one route that compresses; `filter` has further members of the filter. */
function config(upstreamPort: number, filter = '', backend = ''): string {
  return `
workers: 2
admin: {address: "127.0.0.1:0"}
listeners: [{name: http, address: "127.0.0.1:0"}]
routes:
  - name: all
    rules:
      - filters: [{type: Compression${filter}}]
        backendRefs: [{name: app}]
backends: [{name: app, endpoints: ["127.0.0.1:${upstreamPort}"]${backend}}]
`;
}

interface Response {
  status: number;
  headers: IncomingMessage['headers'];
  body: Buffer;
}

/** One request; rejects when the response is cut. */
function fetchRaw(
  port: number,
  path: string,
  encoding: string | undefined,
  options: { method?: string; agent?: Agent | false; headers?: Record<string, string> } = {},
): Promise<Response> {
  const { method = 'GET', agent = false } = options;
  const headers = { ...options.headers, ...(encoding === undefined ? {} : { 'accept-encoding': encoding }) };
  return new Promise((resolve, reject) => {
    const outgoing = request({ port, path, method, agent, headers }, (incoming) => {
      const chunks: Buffer[] = [];
      incoming.on('data', (chunk: Buffer) => chunks.push(chunk));
      incoming.on('error', reject);
      incoming.on('end', () =>
        resolve({ status: incoming.statusCode!, headers: incoming.headers, body: Buffer.concat(chunks) }),
      );
    });
    outgoing.on('error', reject);
    outgoing.end();
  });
}

/** Begins a request and gives its response as soon as its head is there. */
function begin(port: number, path: string, encoding: string): Promise<IncomingMessage> {
  return new Promise((resolve, reject) => {
    const outgoing = request({ port, path, agent: false, headers: { 'accept-encoding': encoding } }, resolve);
    outgoing.on('error', reject);
    outgoing.end();
  });
}

/** Value of a metric without labels, or with the given ones. */
async function metric(gateway: Gateway, name: string): Promise<number> {
  const { body } = await get(await gateway.adminPort(), '/metrics');
  const line = body.split('\n').find((text) => text.startsWith(`portcullis_${name} `));
  assert.ok(line !== undefined, `no metric ${name}`);
  return Number(line.split(' ').at(-1));
}

/** Waits until a metric has a value: gauges of buffers follow at the end of a batch. */
async function metricBecomes(gateway: Gateway, name: string, value: number): Promise<void> {
  while ((await metric(gateway, name)) !== value);
}

const small = textOf(5000);
const large = textOf(4 * MIB);

/** Answers as the path says. */
function answer(incoming: IncomingMessage, response: ServerResponse): void {
  incoming.resume();
  const headers: Record<string, string> = { 'content-type': 'text/plain; charset=utf-8' };
  switch (incoming.url) {
    case '/length':
      response.writeHead(200, { ...headers, 'content-length': small.length, etag: '"v1"', 'accept-ranges': 'bytes' });
      response.end(small);
      return;
    case '/chunked':
      response.writeHead(200, headers);
      void sendPieces(response, small, 700);
      return;
    case '/large':
      response.writeHead(200, { ...headers, 'content-length': large.length });
      void sendPieces(response, large, 100_000);
      return;
    case '/large-chunked':
      response.writeHead(200, headers);
      void sendPieces(response, large, 33_333);
      return;
    case '/close':
      response.shouldKeepAlive = false;
      response.removeHeader('transfer-encoding');
      response.useChunkedEncodingByDefault = false;
      response.writeHead(200, headers);
      response.end(small);
      return;
    default:
      response.writeHead(404, headers);
      response.end();
  }
}

/** The gateway of tests that neither reload nor count. */
const shared = new SharedGateway();

/** A listener whose one route compresses; `filter` and `backend` have further members. */
function compressing(
  upstream: (lifetime: Lifetime) => Promise<number>,
  filter = '',
  backend = '',
): ReturnType<SharedGateway['part']> {
  return shared.part(async (name, lifetime) => ({
    routes: `
  - name: ${name}
    listeners: [${name}]
    rules:
      - filters: [{type: Compression${filter}}]
        backendRefs: [{name: ${name}}]
`,
    backends: `  - {name: ${name}, endpoints: ["127.0.0.1:${await upstream(lifetime)}"]${backend}}`,
  }));
}

const plain = compressing((file) => startUpstream(file, answer));

test('clients get every coding that they ask for, whatever the framing, and what they decode is the body', async () => {
  const { port } = await plain();
  for (const encoding of ['gzip', 'br', 'zstd']) {
    for (const [path, body] of [
      ['/length', small],
      ['/chunked', small],
      ['/close', small],
      ['/large', large],
      ['/large-chunked', large],
    ] as const) {
      const response = await fetchRaw(port, path, encoding);
      const what = `${encoding} ${path}`;
      assert.equal(response.status, 200, what);
      assert.equal(response.headers['content-encoding'], encoding, what);
      assert.equal(response.headers['content-length'], undefined, what);
      assert.match(response.headers.vary ?? '', /accept-encoding/, what);
      assert.ok(response.body.length < body.length / 1.5, `${what}: ${response.body.length} of ${body.length}`);
      assert.ok(decoders[encoding]!.whole(response.body).equals(body), what);
    }
  }
});

test('the head of a compressed response has a weak validator and no ranges; others only say that they vary', async () => {
  const { port } = await plain();
  const coded = await fetchRaw(port, '/length', 'gzip');
  assert.equal(coded.headers.etag, 'W/"v1"');
  assert.equal(coded.headers['accept-ranges'], undefined);
  for (const encoding of [undefined, 'identity', 'gzip;q=0', 'deflate, compress', 'identity, gzip;q=0.5', '']) {
    const plain = await fetchRaw(port, '/length', encoding);
    assert.equal(plain.headers['content-encoding'], undefined, String(encoding));
    assert.equal(plain.headers['content-length'], String(small.length));
    assert.equal(plain.headers.etag, '"v1"');
    assert.equal(plain.headers['accept-ranges'], 'bytes');
    assert.match(plain.headers.vary ?? '', /accept-encoding/);
    assert.ok(plain.body.equals(small));
  }
});

test('one connection carries compressed and other responses in turn', async (t) => {
  const { port } = await plain();
  const agent = new Agent({ keepAlive: true, maxSockets: 1 });
  t.after(() => agent.destroy());
  const sockets = new Set<unknown>();
  for (let i = 0; i < 30; i++) {
    const encoding = ['gzip', 'br', 'zstd', undefined][i % 4];
    const response = await fetchRaw(port, i % 3 === 0 ? '/length' : '/chunked', encoding, { agent });
    const body = encoding === undefined ? response.body : decoders[encoding]!.whole(response.body);
    assert.ok(body.equals(small), `request ${i}`);
    for (const list of Object.values(agent.freeSockets)) for (const socket of list ?? []) sockets.add(socket);
  }
  assert.equal(sockets.size, 1);
});

test('curl takes what it gets with --compressed', async () => {
  const { port } = await plain();
  const { stdout } = await promisify(execFile)('curl', ['-sS', '--compressed', `http://127.0.0.1:${port}/large`], {
    encoding: 'buffer',
    maxBuffer: 32 * MIB,
  });
  assert.ok(stdout.equals(large));
});

test('an HTTP/1.0 client gets a compressed body that ends with the connection', async () => {
  const { port } = await plain();
  const socket = connect(port, '127.0.0.1');
  const chunks: Buffer[] = [];
  socket.on('data', (chunk: Buffer) => chunks.push(chunk));
  socket.write('GET /length HTTP/1.0\r\nHost: a\r\nAccept-Encoding: gzip\r\n\r\n');
  await once(socket, 'end');
  const all = Buffer.concat(chunks);
  const headEnd = all.indexOf('\r\n\r\n') + 4;
  const head = all.subarray(0, headEnd).toString('latin1');
  assert.match(head, /\r\ncontent-encoding: gzip\r\n/);
  assert.doesNotMatch(head, /transfer-encoding|content-length/i);
  assert.ok(zlib.gunzipSync(all.subarray(headEnd)).equals(small));
});

const cases: Record<string, { status?: number; headers?: Record<string, string>; body?: string; method?: string }> = {
  '/encoded': { headers: { 'content-encoding': 'br' } },
  '/image': { headers: { 'content-type': 'image/png' } },
  '/no-type': { headers: { 'content-type': '' } },
  '/grpc': { headers: { 'content-type': 'application/grpc+proto' } },
  '/no-transform': { headers: { 'cache-control': 'public, No-Transform' } },
  '/partial': { status: 206, headers: { 'content-range': 'bytes 0-4999/9999' } },
  '/digest': { headers: { 'content-digest': 'sha-256=:AAAA:' } },
  '/trailers': { headers: { trailer: 'x-sum' } },
  '/short': { body: 'x'.repeat(1023) },
  '/head': { method: 'HEAD' },
  '/no-content': { status: 204, body: '' },
  '/not-modified': { status: 304, body: '' },
};
const staying = compressing(
  (file) =>
    startUpstream(file, (incoming, response) => {
      incoming.resume();
      const { status = 200, headers = {}, body = small.toString() } = cases[incoming.url!]!;
      const all: Record<string, string> = { 'content-type': 'text/plain', ...headers };
      if (all['content-type'] === '') delete all['content-type'];
      response.writeHead(status, all);
      response.end(incoming.method === 'HEAD' || status === 204 || status === 304 ? undefined : body);
    }),
  ', compression: {contentTypes: ["text/*", "application/*"]}',
);

test('responses that must stay as they are do', async () => {
  const { port } = await staying();
  for (const [path, { status = 200, headers = {}, body = small.toString(), method = 'GET' }] of Object.entries(cases)) {
    const response = await fetchRaw(port, path, 'gzip', { method });
    assert.equal(response.status, status, path);
    assert.equal(response.headers['content-encoding'], headers['content-encoding'], path);
    if (method === 'GET') assert.equal(response.body.toString(), body, path);
  }
});

const preferring = compressing(
  (file) => startUpstream(file, answer),
  ', compression: {encodings: [br, gzip], minSize: 0, levels: {br: 1, gzip: 9}, contentTypes: [text/plain]}',
);

test('preferences of rule and client decide together, and minSize 0 compresses everything', async () => {
  const { port } = await preferring();
  const codingFor = async (accept: string): Promise<string | undefined> =>
    (await fetchRaw(port, '/length', accept)).headers['content-encoding'];
  assert.equal(await codingFor('gzip, br, zstd'), 'br');
  assert.equal(await codingFor('zstd, gzip'), 'gzip');
  assert.equal(await codingFor('br;q=0.2, gzip;q=0.9'), 'gzip');
  assert.equal(await codingFor('*'), 'br');
  assert.equal(await codingFor('zstd'), undefined);
});

let send: ((event: string | undefined) => void) | undefined;
const events = compressing((file) =>
  startUpstream(file, (incoming, response) => {
    incoming.resume();
    response.writeHead(200, { 'content-type': 'text/event-stream' });
    response.flushHeaders();
    send = (event) => (event === undefined ? response.end() : response.write(event));
  }),
);

test('events reach the client as they are sent, in every coding', async () => {
  const { port } = await events();
  for (const [encoding, { stream }] of Object.entries(decoders)) {
    const response = await begin(port, '/', encoding);
    assert.equal(response.headers['content-encoding'], encoding);
    const decoded = response.pipe(stream());
    for (let i = 0; i < 5; i++) {
      const event = `data: event ${i} of ${encoding}\n\n`;
      // The next one is sent only when this one has come: one that is held back would wait for ever.
      send!(event);
      let seen = '';
      while (seen.length < event.length) seen += String((await once(decoded, 'data'))[0]);
      assert.equal(seen, event);
    }
    send!(undefined);
    decoded.resume();
    await once(decoded, 'end');
  }
});

const multiplexed = compressing(
  async (file) => {
    const server = createHttp2Server((incoming, response) => {
      incoming.resume();
      response.writeHead(200, { 'content-type': 'application/json', etag: '"e"' });
      const body = incoming.url === '/large' ? large : small;
      let at = 0;
      const more = (): void => {
        while (at < body.length) {
          const part = body.subarray(at, at + 50_000);
          at += part.length;
          if (!response.write(part)) {
            response.once('drain', more);
            return;
          }
        }
        response.end();
      };
      more();
    });
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    file.after(() => server.close());
    return (server.address() as AddressInfo).port;
  },
  '',
  ', protocol: h2c',
);

test('HTTP/2 clients and upstreams: bodies, and streams side by side', async (t) => {
  const { port } = await multiplexed();
  const session = connectHttp2(`http://127.0.0.1:${port}`);
  session.on('error', () => {});
  t.after(() => session.destroy());
  const fetchStream = async (path: string, encoding: string): Promise<void> => {
    const stream = session.request({ ':path': path, 'accept-encoding': encoding });
    const chunks: Buffer[] = [];
    stream.on('data', (chunk: Buffer) => chunks.push(chunk));
    const [headers] = await once(stream, 'response');
    await once(stream, 'end');
    assert.equal(headers['content-encoding'], encoding);
    assert.equal(headers['content-length'], undefined);
    assert.equal(headers.etag, 'W/"e"');
    assert.ok(decoders[encoding]!.whole(Buffer.concat(chunks)).equals(path === '/large' ? large : small));
  };
  await Promise.all(
    ['gzip', 'br', 'zstd'].flatMap((encoding) => [
      fetchStream('/large', encoding),
      ...Array.from({ length: 8 }, () => fetchStream('/small', encoding)),
    ]),
  );
});

test('a client that reads slowly holds the upstream back, and costs a few buffers', async (t) => {
  const total = 40 * MIB;
  let sent = 0;
  // Random bytes: what comes out is as long as what goes in.
  const piece = randomBytes(MIB);
  const upstream = await startUpstream(t, async (incoming, response) => {
    incoming.resume();
    response.writeHead(200, { 'content-type': 'text/plain' });
    for (; sent < total; sent += piece.length) {
      if (!response.write(piece)) await once(response, 'drain');
    }
    response.end();
  });
  const gateway = startGateway(t, config(upstream));
  const port = await gateway.port();
  await gateway.serving();
  const response = await begin(port, '/', 'gzip');
  // It has stopped when nothing has moved over many looks; without a bound everything goes through.
  let before = -1;
  for (let same = 0; same < 30; ) {
    const now = await metric(gateway, 'compression_bytes_in_total');
    same = now === before && now > 0 ? same + 1 : 0;
    before = now;
  }
  assert.ok(before < total / 2, `${before} bytes were compressed for a client that read nothing`);
  const buffers = await metric(gateway, 'buffers_in_use');
  assert.ok(buffers <= MIB, `${buffers} bytes of buffers in use`);
  // And it goes on when the client does.
  let length = 0;
  const decoded = response.pipe(zlib.createGunzip());
  decoded.on('data', (chunk: Buffer) => (length += chunk.length));
  await once(decoded, 'end');
  assert.equal(length, total);
});

test('clients that leave in the middle free their compressor', async (t) => {
  const upstream = await startUpstream(t, (incoming, response) => {
    incoming.resume();
    response.writeHead(200, { 'content-type': 'text/plain' });
    response.write(small);
    if (incoming.url === '/whole') response.end();
    response.on('error', () => {});
  });
  const gateway = startGateway(t, config(upstream).replace('workers: 2', 'workers: 1'));
  const port = await gateway.port();
  await gateway.serving();
  // More than there are places, a few at a time.
  for (let round = 0; round < 30; round++) {
    const responses = await Promise.all(Array.from({ length: 10 }, () => begin(port, '/endless', 'br')));
    for (const response of responses) {
      assert.equal(response.headers['content-encoding'], 'br');
      await once(response, 'data');
      response.destroy();
    }
    await metricBecomes(gateway, 'requests_in_flight', 0);
  }
  const response = await fetchRaw(port, '/whole', 'br');
  assert.ok(zlib.brotliDecompressSync(response.body).equals(small));
  assert.equal(await metric(gateway, 'compression_skipped_total'), 0);
  await metricBecomes(gateway, 'buffers_in_use', 0);
});

const cut = compressing((file) =>
  startUpstream(file, (incoming, response) => {
    incoming.resume();
    response.writeHead(200, { 'content-type': 'text/plain', 'content-length': 1_000_000 });
    response.write(large.subarray(0, 200_000), () => response.socket!.resetAndDestroy());
  }),
);

test('an upstream that is cut in the middle is seen by the client', async (t) => {
  const { port } = await cut();
  for (const encoding of ['gzip', 'br', 'zstd'])
    await assert.rejects(fetchRaw(port, '/', encoding), /aborted|ECONNRESET/);
  const session = connectHttp2(`http://127.0.0.1:${port}`);
  session.on('error', () => {});
  t.after(() => session.destroy());
  const stream = session.request({ ':path': '/', 'accept-encoding': 'gzip' });
  stream.resume();
  const [error] = await once(stream, 'error');
  assert.equal(error.code, 'ERR_HTTP2_STREAM_ERROR');
  assert.equal(stream.rstCode, constants.NGHTTP2_INTERNAL_ERROR);
});

test('a compressor that dies cuts its responses, and is replaced', async (t) => {
  const crashFile = join(temporaryDirectory(t), 'crash');
  const hook = new URL('./compressor-crash-hook.ts', import.meta.url).href;
  const upstream = await startUpstream(t, (incoming, response) => {
    incoming.resume();
    response.writeHead(200, { 'content-type': 'text/plain' });
    response.write(small);
    if (incoming.url === '/whole') response.end();
  });
  const gateway = startGateway(t, config(upstream).replace('workers: 2', 'workers: 1'), {
    env: { NODE_OPTIONS: `--import=${hook}`, CRASH_FILE: crashFile },
  });
  const port = await gateway.port();
  await gateway.serving();
  const response = await begin(port, '/endless', 'gzip');
  await once(response, 'data');
  const cut = once(response, 'error');
  writeFileSync(`${crashFile}.compressor`, '');
  const death = await gateway.log(/error compressor thread died cause="(.*)" restartInMs=0/);
  assert.match(death[1]!, /told to crash by the test/);
  response.resume();
  await cut;
  // Until the new one serves, responses pass as they are.
  for (let coding: string | undefined; coding === undefined; ) {
    const whole = await fetchRaw(port, '/whole', 'gzip');
    coding = whole.headers['content-encoding'];
    const body = coding === undefined ? whole.body : zlib.gunzipSync(whole.body);
    assert.ok(body.equals(small));
  }
});

test('a packet worker that dies comes back with compression', async (t) => {
  const crashFile = join(temporaryDirectory(t), 'crash');
  const hook = new URL('./crash-hook.ts', import.meta.url).href;
  const gateway = startGateway(t, config(await startUpstream(t, answer)).replace('workers: 2', 'workers: 1'), {
    env: { NODE_OPTIONS: `--import=${hook}`, CRASH_FILE: crashFile },
  });
  const port = await gateway.port();
  await gateway.serving();
  await fetchRaw(port, '/length', 'zstd');
  writeFileSync(`${crashFile}.0`, '');
  await gateway.log(/error packet worker died worker=0/);
  const response = await fetchRaw(port, '/length', 'zstd');
  assert.equal(response.headers['content-encoding'], 'zstd');
  assert.ok(zlib.zstdDecompressSync(response.body).equals(small));
});

test('a reload turns compression on and off', async (t) => {
  const upstream = await startUpstream(t, answer);
  const on = config(upstream);
  const off = on.replace('filters: [{type: Compression}]', 'filters: []');
  const gateway = startGateway(t, off);
  const port = await gateway.port();
  await gateway.serving();
  for (const [index, [text, coding]] of [
    [on, 'gzip'],
    [off, undefined],
    [on, 'gzip'],
  ].entries()) {
    gateway.configure(text!);
    gateway.kill('SIGHUP');
    await gateway.log(/info configuration reloaded /, index + 1);
    assert.equal((await fetchRaw(port, '/length', 'gzip')).headers['content-encoding'], coding);
  }
});
