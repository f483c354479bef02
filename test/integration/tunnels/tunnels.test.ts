// Tunnels (HBONE) from end to end: one gateway reaches the backend through them, another one ends them.
//
//   client --> near: listeners --> tunnel: CONNECT in mutual TLS --> far: listener with tunnels --> app

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readFileSync, writeFileSync } from 'node:fs';
import { createServer, request as httpRequest } from 'node:http';
import * as http2 from 'node:http2';
import { type AddressInfo, connect, createServer as createTcpServer, type Server, type Socket } from 'node:net';
import { join } from 'node:path';
import { test } from 'node:test';
import { makeCertificate } from '../../unit/core/tls/certificates.ts';
import { becomes } from '../http/support.ts';
import { fileLifetime } from '../shared-gateway.ts';
import { type Gateway, get, type Lifetime, startGateway, temporaryDirectory } from '../support.ts';
import { authority, issue } from '../tls/support.ts';

const files: Record<string, string> = {};
for (const [name, certificate] of Object.entries({
  far: issue('far', ['dns:far.test', 'uri:spiffe://mesh.test/ns/shop/sa/cart']),
  near: issue('near', ['uri:spiffe://mesh.test/ns/web/sa/edge']),
  other: issue('other', ['uri:spiffe://mesh.test/ns/web/sa/edge']),
  stranger: makeCertificate({ name: 'stranger', names: ['uri:spiffe://mesh.test/ns/web/sa/edge'] }),
})) {
  files[`${name}.crt`] = certificate.pem;
  files[`${name}.key`] = certificate.keyPem;
}
files['ca.crt'] = authority.pem;

/** A directory with all certificates. */
function certificates(t: Lifetime): string {
  const directory = temporaryDirectory(t);
  for (const [name, text] of Object.entries(files)) writeFileSync(join(directory, name), text);
  return directory;
}

async function listening(t: Lifetime, server: Server): Promise<number> {
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => server.close());
  return (server.address() as AddressInfo).port;
}

/** HTTP/1.1, HTTP/2 and plain bytes at the far end of the tunnels. */
interface Apps {
  http: number;
  http2: number;
  tcp: number;
  /** Connections that the application of `http` has accepted. */
  accepted: () => number;
}

async function startApps(t: Lifetime): Promise<Apps> {
  let accepted = 0;
  const app = createServer(async (incoming, response) => {
    const chunks: Buffer[] = [];
    for await (const chunk of incoming) chunks.push(chunk);
    response.setHeader('x-certificate', incoming.headers['x-forwarded-client-cert'] ?? '');
    response.end(incoming.method === 'GET' ? `${incoming.url} of ${incoming.headers.host}` : Buffer.concat(chunks));
  });
  app.on('connection', () => accepted++);
  app.on('upgrade', (_incoming, socket: Socket) => {
    socket.write('HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n');
    socket.pipe(socket);
  });
  const plain = createTcpServer({ allowHalfOpen: true }, (socket) => {
    socket.on('error', () => {});
    socket.pipe(socket);
  });
  const multiplexed = http2.createServer((incoming, response) => {
    response.writeHead(200, { 'x-version': incoming.httpVersion });
    incoming.pipe(response);
  });
  t.after(() => app.closeAllConnections());
  return {
    http: await listening(t, app),
    tcp: await listening(t, plain),
    http2: await listening(t, multiplexed as unknown as Server),
    accepted: () => accepted,
  };
}

/** The gateway that ends the tunnels. */
async function startFar(t: Lifetime, apps: Apps, port = 0): Promise<Gateway> {
  const directory = certificates(t);
  const gateway = startGateway(
    t,
    `workers: 1
admin: {address: "127.0.0.1:0"}
listeners:
  - name: hbone
    address: "127.0.0.1:${port}"
    protocols: [h2]
    tls:
      certificates: [{certificate: ${directory}/far.crt, key: ${directory}/far.key}]
      clientValidation: {caCertificates: ${directory}/ca.crt}
    tunnels: [{port: 81, listener: web}, {port: 82, listener: bytes}]
  - {name: web, address: "127.0.0.1:0"}
  - {name: bytes, address: "127.0.0.1:0", protocols: [tcp]}
routes:
  - name: http2
    hostnames: [h2.test]
    rules: [{backendRefs: [{name: http2}]}]
  - name: web
    rules: [{matches: [{clientCertificate: {subjectAltNames: [{value: "spiffe://mesh.test/ns/web/sa/edge"}]}}], backendRefs: [{name: http}]}]
  - {name: bytes, kind: TCP, listeners: [bytes], rules: [{backendRefs: [{name: tcp}]}]}
backends:
  - {name: http, endpoints: ["127.0.0.1:${apps.http}"]}
  - {name: http2, endpoints: ["127.0.0.1:${apps.http2}"], protocol: h2c}
  - {name: tcp, endpoints: ["127.0.0.1:${apps.tcp}"]}
`,
  );
  await gateway.serving();
  return gateway;
}

/** The gateway that reaches backends through tunnels to `port`. */
async function startNear(
  t: Lifetime,
  port: number,
  certificate = 'near',
  more = '',
  bytesPort = port,
): Promise<Gateway> {
  const directory = certificates(t);
  const tunnelTo = (peer: number): string =>
    `tunnel: {port: ${peer}}, tls: {serverName: far.test, caCertificates: ${directory}/ca.crt, certificate: ${directory}/${certificate}.crt, key: ${directory}/${certificate}.key}`;
  const tunnel = tunnelTo(port);
  const gateway = startGateway(
    t,
    `workers: 1
admin: {address: "127.0.0.1:0"}
responseReasonHeader: x-reason
listeners:
  - {name: http, address: "127.0.0.1:0"}
  - {name: tcp, address: "127.0.0.1:0", protocols: [tcp]}
routes:
  - {name: nowhere, hostnames: [nowhere.test], rules: [{backendRefs: [{name: nowhere}]}]}
  - {name: http2, hostnames: [h2.test], rules: [{backendRefs: [{name: http2}]}]}
  - {name: web, listeners: [http], rules: [{backendRefs: [{name: web}]}]}
  - {name: bytes, kind: TCP, listeners: [tcp], rules: [{backendRefs: [{name: bytes}]}]}
backends:
  - {name: web, endpoints: ["127.0.0.1:81"], ${more}${tunnel}}
  - {name: bytes, endpoints: ["127.0.0.1:82"], ${tunnelTo(bytesPort)}}
  - {name: nowhere, endpoints: ["127.0.0.1:83"], ${tunnel}}
  - {name: http2, endpoints: ["127.0.0.1:81"], protocol: h2c, ${tunnel}}
`,
  );
  await gateway.serving();
  return gateway;
}

interface Reply {
  status: number;
  body: Buffer;
  headers: NodeJS.Dict<string | string[]>;
}

function ask(port: number, path: string, host: string, body?: Buffer): Promise<Reply> {
  return new Promise((resolve, reject) => {
    const method = body === undefined ? 'GET' : 'POST';
    const outgoing = httpRequest({ port, path, method, headers: { host } }, async (incoming) => {
      const chunks: Buffer[] = [];
      for await (const chunk of incoming) chunks.push(chunk);
      resolve({ status: incoming.statusCode!, body: Buffer.concat(chunks), headers: incoming.headers });
    });
    outgoing.on('error', reject);
    outgoing.end(body);
  });
}

async function metric(gateway: Gateway, series: string): Promise<number> {
  const { body } = await get(await gateway.adminPort(), '/metrics');
  const line = body.split('\n').find((text) => text.startsWith(`${series} `));
  return line === undefined ? 0 : Number(line.slice(series.length + 1));
}

/** Once nobody asks any more, nothing is left in the gateways but kept connections. */
async function assertIdle(...gateways: Gateway[]): Promise<void> {
  for (const gateway of gateways) {
    await becomes('no request in flight', async () => (await metric(gateway, 'portcullis_requests_in_flight')) === 0);
  }
}

/** They are idle, and end in order. */
async function assertEmpty(...gateways: Gateway[]): Promise<void> {
  await assertIdle(...gateways);
  for (const gateway of gateways) {
    gateway.kill('SIGTERM');
    const { code, stderr } = await gateway.finished;
    assert.equal(code, 0, stderr);
    assert.doesNotMatch(stderr, /worker (ended|crashed)|error /);
  }
}

/** What is started for several tests, when the first of them asks for it. */
function shared<T>(start: (file: Lifetime) => Promise<T>): () => Promise<T> {
  const file = fileLifetime();
  let started: Promise<T> | undefined;
  return () => {
    started ??= start(file);
    return started;
  };
}

/** Two gateways and what is behind them, for tests that leave them as they are. */
const pair = shared(async (file) => {
  const apps = await startApps(file);
  const far = await startFar(file, apps);
  const near = await startNear(file, await far.port('hbone'));
  file.after(() => assertEmpty(near, far));
  return { apps, far, near };
});

const large = Buffer.alloc(3 * 1024 * 1024, 'portcullis ');

test('requests, bodies, WebSocket and plain connections pass through tunnels of one connection', async () => {
  // The first that uses the two: nothing has been counted.
  const { apps, far, near } = await pair();
  const port = await near.port();
  const first = await ask(port, '/a', 'web.test');
  assert.deepEqual([first.status, first.body.toString()], [200, '/a of web.test']);
  assert.match(String(first.headers['x-certificate']), /URI=spiffe:\/\/mesh\.test\/ns\/web\/sa\/edge/);
  for (let i = 0; i < 20; i++) assert.equal((await ask(port, `/${i}`, 'web.test')).status, 200);
  assert.equal(apps.accepted(), 1, 'the tunnel is kept from request to request');

  const echoed = await Promise.all(Array.from({ length: 8 }, () => ask(port, '/', 'web.test', large)));
  for (const { status, body } of echoed) assert.ok(status === 200 && body.equals(large));

  const socket = connect(port, '127.0.0.1');
  socket.write('GET / HTTP/1.1\r\nHost: web.test\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nhello');
  let text = '';
  for await (const chunk of socket) {
    text += chunk;
    if (text.endsWith('hello')) break;
  }
  assert.match(text, /^HTTP\/1\.1 101 /);

  const plain = connect(await near.port('tcp'), '127.0.0.1');
  plain.end(large);
  const received: Buffer[] = [];
  for await (const chunk of plain) received.push(chunk);
  assert.ok(Buffer.concat(received).equals(large));

  assert.equal(await metric(far, 'portcullis_tls_handshakes_total'), 1);
  await assertIdle(near, far);
});

test('HTTP/2 inside a tunnel, and many streams in it', async (t) => {
  const { far, near } = await pair();
  const client = http2.connect(`http://127.0.0.1:${await near.port()}`);
  t.after(() => client.destroy());
  const answers = Array.from({ length: 50 }, async (_, i) => {
    const stream = client.request({ ':method': 'POST', ':authority': 'h2.test' });
    const body = large.subarray(0, i * 1000);
    stream.end(body);
    const [headers] = (await once(stream, 'response')) as [http2.IncomingHttpHeaders];
    const chunks: Buffer[] = [];
    for await (const chunk of stream) chunks.push(chunk);
    assert.equal(headers['x-version'], '2.0');
    assert.ok(Buffer.concat(chunks).equals(body));
  });
  await Promise.all(answers);
  client.close();
  await assertIdle(near, far);
});

test('a tunnel that is not to be had is a 503 that says why', async (t) => {
  const { apps, far, near } = await pair();
  const accepted = apps.accepted();
  const nowhere = await ask(await near.port(), '/', 'nowhere.test');
  assert.equal(nowhere.status, 503);
  assert.equal(nowhere.headers['x-reason'], 'UF');
  const stranger = await startNear(t, await far.port('hbone'), 'stranger');
  const refused = await ask(await stranger.port(), '/', 'web.test');
  assert.equal(refused.status, 503);
  assert.equal(apps.accepted(), accepted);
  await assertIdle(near);
  await assertEmpty(stranger);
});

test('requests whose tunnel breaks fail, and the next ones have a new one', async (t) => {
  const apps = await startApps(t);
  const far = await startFar(t, apps);
  const near = await startNear(t, await far.port('hbone'));
  const port = await near.port();
  assert.equal((await ask(port, '/', 'web.test')).status, 200);
  const plain = connect(await near.port('tcp'), '127.0.0.1');
  plain.on('error', () => {});
  plain.write('x');
  await once(plain, 'data');
  const hbone = await far.port('hbone');
  const closed = new Promise((resolve) => plain.on('close', resolve));
  far.kill('SIGKILL');
  await far.finished;
  await closed;
  // One that had tunnels, and one that never had.
  for (const host of ['web.test', 'h2.test']) assert.equal((await ask(port, '/', host)).status, 503, host);
  const again = await startFar(t, apps, hbone);
  assert.equal((await ask(port, '/', 'web.test')).status, 200);
  await assertEmpty(near, again);
});

test('a node:http2 client opens tunnels', async (t) => {
  const { far } = await pair();
  const session = http2.connect(`https://127.0.0.1:${await far.port('hbone')}`, {
    ca: files['ca.crt'],
    cert: files['near.crt'],
    key: files['near.key'],
    servername: 'far.test',
  });
  t.after(() => session.destroy());
  const open = async (authorityName: string): Promise<http2.ClientHttp2Stream> => {
    const stream = session.request({ ':method': 'CONNECT', ':authority': authorityName });
    const [headers] = (await once(stream, 'response')) as [http2.IncomingHttpHeaders];
    assert.equal(headers[':status'], 200);
    return stream;
  };
  const web = await open('10.1.2.3:81');
  web.setEncoding('utf8');
  // Byte by byte, two requests at once, and one that ends the connection.
  for (const byte of 'GET /slow HTTP/1.1\r\nHost: web.test\r\n\r\n') web.write(byte);
  let text = '';
  web.on('data', (chunk: string) => (text += chunk));
  await becomes('an answer', async () => text.endsWith('/slow of web.test'));
  text = '';
  web.write('GET /1 HTTP/1.1\r\nHost: web.test\r\n\r\nGET /2 HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n\r\n');
  await once(web, 'end');
  assert.match(text, /\/1 of web\.test[\s\S]*\/2 of web\.test$/);

  const chunked = await open('10.1.2.3:81');
  chunked.setEncoding('utf8');
  let echo = '';
  chunked.on('data', (chunk: string) => (echo += chunk));
  chunked.write('POST / HTTP/1.1\r\nHost: web.test\r\nTransfer-Encoding: chunked\r\n\r\n');
  for (let i = 0; i < 20; i++) chunked.write(`4\r\nab${String(i).padStart(2, '0')}\r\n`);
  chunked.write('0\r\n\r\n');
  await becomes('the echo', async () => echo.includes('ab19'));
  assert.match(echo, /ab00ab01/);
  chunked.close(http2.constants.NGHTTP2_CANCEL);

  const bytes = await open('10.1.2.3:82');
  bytes.end('over and out');
  const received: Buffer[] = [];
  for await (const chunk of bytes) received.push(chunk as Buffer);
  assert.equal(Buffer.concat(received).toString(), 'over and out');

  const lost = session.request({ ':method': 'CONNECT', ':authority': '10.1.2.3:99' });
  const [headers] = (await once(lost, 'response')) as [http2.IncomingHttpHeaders];
  assert.equal(headers[':status'], 404);
  lost.close();
  session.close();
  await once(session, 'close');
  await assertIdle(far);
});

/** What a server of node:http2 was asked. */
const asked: http2.IncomingHttpHeaders[] = [];

/** A gateway whose tunnels go to that server, and to one that says nothing for plain connections. */
const odd = shared(async (file) => {
  const server = http2.createSecureServer({
    cert: files['far.crt'],
    key: files['far.key'],
    ca: files['ca.crt'],
    requestCert: true,
  });
  server.on('stream', (stream: http2.ServerHttp2Stream, headers) => {
    asked.push(headers);
    stream.on('error', () => {});
    stream.respond({ ':status': 200 });
    let head = '';
    stream.on('data', (chunk) => {
      head += chunk;
      if (!head.endsWith('\r\n\r\n')) return;
      head = '';
      stream.write('HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok');
    });
  });
  const mute = createTcpServer((socket) => socket.on('error', () => {}));
  const ports = [await listening(file, server as unknown as Server), await listening(file, mute)] as const;
  const near = await startNear(file, ports[0], 'near', '', ports[1]);
  file.after(() => assertEmpty(near));
  return near;
});

test('a node:http2 server sees CONNECT with the address of the endpoint and nothing else', async () => {
  const near = await odd();
  const port = await near.port();
  const answers = await Promise.all(Array.from({ length: 5 }, () => ask(port, '/', 'web.test')));
  for (const { status, body } of answers) assert.deepEqual([status, body.toString()], [200, 'ok']);
  assert.ok(asked.length >= 1 && asked.length <= 5);
  for (const headers of asked) {
    assert.deepEqual(Object.entries(headers).sort(), [
      [':authority', '127.0.0.1:81'],
      [':method', 'CONNECT'],
    ]);
  }
  await assertIdle(near);
});

test('a reload does not count the connections that carry tunnels among those of the backend', async (t) => {
  const { far } = await pair();
  const before = await metric(far, 'portcullis_tls_handshakes_total');
  const near = await startNear(t, await far.port('hbone'), 'near', 'circuitBreaker: {maxConnections: 1}, ');
  const port = await near.port();
  const inUse = 'portcullis_circuit_breaker_in_use{backend="web",priority="default",limit="maxConnections"}';
  for (let round = 1; round <= 3; round++) {
    assert.equal((await ask(port, '/', 'web.test')).status, 200);
    assert.equal(await metric(near, inUse), 1);
    near.kill('SIGHUP');
    await near.log(/info configuration reloaded /, round);
  }
  assert.equal((await ask(port, '/', 'web.test')).status, 200);
  assert.equal((await metric(far, 'portcullis_tls_handshakes_total')) - before, 1);
  await assertEmpty(near);
});

test('an answer that has come whole is not cut when its stream is reset, however slowly the client takes it', async (t) => {
  const server = http2.createSecureServer({ cert: files['far.crt'], key: files['far.key'] });
  server.on('stream', (stream: http2.ServerHttp2Stream) => {
    stream.on('error', () => {});
    stream.respond({ ':status': 200 });
    stream.once('data', () => {
      stream.end(`HTTP/1.1 200 OK\r\nContent-Length: ${100_000}\r\nConnection: close\r\n\r\n${'x'.repeat(100_000)}`);
      stream.on('finish', () => stream.close(http2.constants.NGHTTP2_NO_ERROR));
    });
  });
  const near = await startNear(t, await listening(t, server as unknown as Server));
  const client = http2.connect(`http://127.0.0.1:${await near.port()}`, { settings: { initialWindowSize: 1000 } });
  t.after(() => client.destroy());
  const stream = client.request({ ':authority': 'web.test' });
  const [headers] = (await once(stream, 'response')) as [http2.IncomingHttpHeaders];
  assert.equal(headers[':status'], 200);
  // Its window is full, and the stream between the gateways long gone.
  await becomes(
    'the end of the tunnel',
    async () => (await metric(near, 'portcullis_upstream_connections_idle')) === 0,
  );
  let length = 0;
  for await (const chunk of stream) length += (chunk as Buffer).length;
  assert.equal(length, 100_000);
  client.close();
  await assertEmpty(near);
});

test('a carrier that fails when the time of hedged requests is over ends them and nothing else', async (t) => {
  const sockets: Socket[] = [];
  const mute = createTcpServer((socket) => sockets.push(socket.on('error', () => {})));
  const directory = certificates(t);
  const near = startGateway(
    t,
    `workers: 1
admin: {address: "127.0.0.1:0"}
listeners: [{name: http, address: "127.0.0.1:0"}]
routes:
  - name: web
    rules: [{hedge: {delay: 20ms, budgetPercent: 100}, timeouts: {request: 300ms}, backendRefs: [{name: web}]}]
backends:
  - name: web
    endpoints: ["127.0.0.1:81"]
    tunnel: {port: ${await listening(t, mute)}}
    tls: {serverName: far.test, caCertificates: ${directory}/ca.crt}
    connectTimeout: 10s
`,
  );
  await near.serving();
  const answer = ask(await near.port(), '/', 'web.test');
  await becomes('both attempts', async () => (await metric(near, 'portcullis_hedges_total{outcome="lost"}')) === 1);
  // While it stands still, the time of the request runs out and its carrier fails: it finds both at once. Nothing tells
  // when: the time itself has to pass, and it is longer than the request's.
  near.kill('SIGSTOP');
  for (const socket of sockets) socket.resetAndDestroy();
  await new Promise((resolve) => setTimeout(resolve, 400));
  near.kill('SIGCONT');
  assert.ok((await answer).status >= 500);
  await assertEmpty(near);
});

test('requests begun before their backend gets another certificate are answered', async () => {
  const { near, far } = await pair();
  const port = await near.port();
  const config = readFileSync(near.configFile, 'utf8');
  let over = false;
  const statuses = new Map<number, number>();
  const clients = Array.from({ length: 6 }, async () => {
    while (!over) {
      const { status } = await ask(port, '/', 'web.test');
      statuses.set(status, (statuses.get(status) ?? 0) + 1);
    }
  });
  for (let round = 1; round <= 8; round++) {
    near.configure(round % 2 === 1 ? config.replaceAll('/near.', '/other.') : config);
    near.kill('SIGHUP');
    await near.log(/info configuration reloaded /, round);
  }
  over = true;
  await Promise.all(clients);
  assert.deepEqual([...statuses.keys()], [200], JSON.stringify([...statuses]));
  await assertIdle(near, far);
});

test('a connection that is passed on unread has the time of connectTimeout to get its tunnel, and no other', async () => {
  const near = await odd();
  const plain = connect(await near.port('tcp'), '127.0.0.1');
  await new Promise((resolve) => plain.on('error', () => {}).on('close', resolve));
  const admin = await near.adminPort();
  // The connection to the peer has the same time: either may be seen to have run out first.
  await becomes('a record of it', async () => {
    const [record] = JSON.parse((await get(admin, '/requests?limit=1')).body).requests;
    return /^(connect_timer|tls_timeout)$/.test(record?.detailName);
  });
  await assertIdle(near);
});
