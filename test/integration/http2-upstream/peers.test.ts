// HTTP/2 upstreams that others wrote: Node's server with and without TLS, and nghttpd; large bodies both ways, slow
// readers, and many requests at once.

import assert from 'node:assert/strict';
import { execFile, execFileSync, spawn } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import http2 from 'node:http2';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { promisify } from 'node:util';
import { makeCertificate } from '../../unit/core/tls/certificates.ts';
import { becomes, request, startLab } from '../http/support.ts';
import type { Wire } from '../http/wire.ts';
import { freePort, OWN_HOST } from '../support.ts';

const run = promisify(execFile);
const MIB = 1024 * 1024;
const body = randomBytes(10 * MIB);
const digest = sha256(body);

function sha256(bytes: Buffer): string {
  return createHash('sha256').update(bytes).digest('hex');
}

/** Why a test of a tool is skipped, or false when the tool is there. */
function missing(tool: string): string | false {
  try {
    execFileSync('/bin/sh', ['-c', `PATH=$PATH:/usr/sbin command -v ${tool}`]);
    return false;
  } catch {
    return `${tool} is not installed`;
  }
}

const noNghttpd = missing('nghttpd');
const noNginx = missing('nginx');
const directory = mkdtempSync(join(tmpdir(), 'portcullis-h2-'));
after(() => rmSync(directory, { recursive: true, force: true }));

/** Answers with the body it got; `/down/N` with N MiB; `/count` with a counter. */
let count = 0;
let trailersSeen = '';
let secretsSeen: string[] = [];
/** Which fields came never-indexed; the types of Node know it for sending only. */
type Marked = { [http2.sensitiveHeaders]?: string[] };
function handle(stream: http2.ServerHttp2Stream, headers: http2.IncomingHttpHeaders): void {
  stream.on('error', () => {});
  const path = headers[':path']!;
  if (path.startsWith('/down/')) {
    let left = Number(path.slice(6));
    stream.respond({ ':status': 200, 'content-length': left * MIB });
    const write = (): void => {
      while (left > 0) {
        left--;
        if (!stream.write(Buffer.alloc(MIB, left))) {
          stream.once('drain', write);
          return;
        }
      }
      stream.end();
    };
    write();
    return;
  }
  if (path === '/count') {
    count++;
    stream.respond({ ':status': 200, 'x-path': path });
    stream.end(String(count));
    return;
  }
  if (path.startsWith('/secret')) {
    secretsSeen = (headers as Marked)[http2.sensitiveHeaders] ?? [];
    const marked = headers['x-plain'] === undefined ? { [http2.sensitiveHeaders]: ['x-answer'] } : {};
    stream.respond({ ':status': 200, 'x-answer': 'word', ...marked });
    stream.end();
    return;
  }
  stream.on('trailers', (trailers) => {
    trailersSeen = String(trailers['x-sum']);
    secretsSeen = (trailers as Marked)[http2.sensitiveHeaders] ?? [];
  });
  stream.respond({ ':status': 200, 'x-scheme': headers[':scheme'] }, { waitForTrailers: true });
  stream.on('wantTrailers', () => stream.sendTrailers({ 'x-done': 'yes' }));
  stream.pipe(stream);
}

const sessions = new Set<http2.ServerHttp2Session>();
async function start(server: http2.Http2Server | http2.Http2SecureServer): Promise<number> {
  server.on('stream', handle);
  server.on('session', (session: http2.ServerHttp2Session) => {
    sessions.add(session);
    session.on('error', () => {});
    session.on('close', () => sessions.delete(session));
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return (server.address() as AddressInfo).port;
}

const plain = http2.createServer({ maxSessionMemory: 100 });
const plainPort = await start(plain);
const authority = makeCertificate({ name: 'authority', ca: true });
const certificate = makeCertificate({ name: 'up', issuer: authority, names: ['dns:up.test'] });
writeFileSync(join(directory, 'ca.crt'), authority.pem);
writeFileSync(join(directory, 'up.crt'), certificate.pem);
writeFileSync(join(directory, 'up.key'), certificate.keyPem);
const secure = http2.createSecureServer({ maxSessionMemory: 100, cert: certificate.pem, key: certificate.keyPem });
const securePort = await start(secure);

const nghttpdPort = await freePort();
const nginxPort = await freePort();

const lab = await startLab({
  upstreams: 0,
  routes: [
    '{name: tls, hostnames: [tls.test], rules: [{backendRefs: [{name: tls}]}]}',
    '{name: nghttpd, hostnames: [nghttpd.test], rules: [{backendRefs: [{name: nghttpd}]}]}',
    '{name: nginx, hostnames: [nginx.test], rules: [{backendRefs: [{name: nginx}]}]}',
    '{name: plain, rules: [{backendRefs: [{name: plain}]}]}',
  ],
  backends: [
    `{name: plain, endpoints: ["127.0.0.1:${plainPort}"], protocol: h2c}`,
    `{name: tls, endpoints: ["127.0.0.1:${securePort}"], protocol: h2, tls: {serverName: up.test, caCertificates: ${directory}/ca.crt}}`,
    `{name: nghttpd, endpoints: ["${OWN_HOST}:${nghttpdPort}"], protocol: h2c}`,
    `{name: nginx, endpoints: ["${OWN_HOST}:${nginxPort}"], protocol: h2c}`,
  ],
});
lab.beforeClose(() => {
  for (const session of sessions) session.destroy();
  plain.close();
  secure.close();
});

/** Resident memory of the gateway, in bytes. */
function residentBytes(): number {
  const match = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${lab.gateway.pid}/status`, 'latin1'));
  return Number(match![1]) * 1024;
}

/** An HTTP/2 client of the gateway, closed at the end. */
function connectNode(): http2.ClientHttp2Session {
  const session = http2.connect(`http://127.0.0.1:${lab.port}`, { maxSessionMemory: 100 });
  session.on('error', () => {});
  lab.beforeClose(() => session.destroy());
  return session;
}

for (const host of ['plain.test', 'tls.test']) {
  test(`${host}: 10 MiB go up and come back, from HTTP/1.1 and HTTP/2`, async () => {
    const client = await lab.client();
    void client.send(request('POST /', host, `Content-Length: ${body.length}`));
    void client.send(body);
    const message = await client.response();
    assert.equal(message.value('x-scheme'), host === 'tls.test' ? 'https' : 'http');
    assert.equal(sha256(Buffer.from(message.body, 'latin1')), digest);
    assert.deepEqual(message.trailers, ['x-done: yes']);
    client.close();

    const stream = connectNode().request({ ':method': 'POST', ':path': '/', ':authority': host }, {
      waitForTrailers: true,
    } as object);
    stream.on('wantTrailers', () => stream.sendTrailers({ 'x-sum': host, [http2.sensitiveHeaders]: ['x-sum'] }));
    let trailers: http2.IncomingHttpHeaders = {};
    stream.on('trailers', (fields) => (trailers = fields));
    stream.end(body);
    const chunks: Buffer[] = [];
    for await (const chunk of stream) chunks.push(chunk as Buffer);
    assert.equal(sha256(Buffer.concat(chunks)), digest);
    assert.equal(trailers['x-done'], 'yes');
    assert.equal(trailersSeen, host);
    assert.deepEqual(secretsSeen, ['x-sum']);
    assert.deepEqual((trailers as Marked)[http2.sensitiveHeaders] ?? [], []);
  });
}

test('fields that came never-indexed go on never-indexed both ways, and no others do', async () => {
  const session = connectNode();
  const ask = async (fields: http2.OutgoingHttpHeaders): Promise<string[]> => {
    const stream = session.request({ ':path': '/secret', ':authority': 'plain.test', ...fields });
    const [head] = (await once(stream, 'response')) as [Marked];
    stream.resume();
    await once(stream, 'close');
    return head[http2.sensitiveHeaders] ?? [];
  };
  const answered = await ask({ 'x-token': 'secret', [http2.sensitiveHeaders]: ['x-token'] });
  assert.ok(secretsSeen.includes('x-token'), secretsSeen.join());
  assert.ok(answered.includes('x-answer'), answered.join());
  const path = await ask({ ':path': '/secret?key', [http2.sensitiveHeaders]: [':path'] });
  assert.ok(secretsSeen.includes(':path') && path.includes('x-answer'), secretsSeen.join());
  // Short ones are never indexed anyway; together they are long.
  const crumbs = ['a=123456789', 'b=123456789', 'c=123456789'];
  await ask({ cookie: crumbs, [http2.sensitiveHeaders]: ['cookie'] });
  assert.ok(secretsSeen.includes('cookie'), secretsSeen.join());
  // Authorization always goes so, and hides nothing else.
  const marked = { authorization: 'Bearer x', 'x-plain': 'yes', [http2.sensitiveHeaders]: ['authorization'] };
  assert.deepEqual([await ask(marked), secretsSeen], [[], ['authorization']]);
});

test('many requests at once, from HTTP/1.1 and HTTP/2 clients, are all answered over one connection', async () => {
  const opened = await lab.metric('portcullis_upstream_connections_opened_total');
  const session = connectNode();
  const answers = Array.from({ length: 90 }, async () => {
    const stream = session.request({ ':path': '/count', ':authority': 'plain.test' });
    let text = '';
    for await (const chunk of stream) text += String(chunk);
    return Number(text);
  });
  const clients = Array.from({ length: 10 }, async () => {
    const client = await lab.client();
    const numbers: number[] = [];
    for (let i = 0; i < 10; i++) {
      await client.send(request('GET /count', 'plain.test'));
      numbers.push(Number((await client.response()).body));
    }
    client.close();
    return numbers;
  });
  const numbers = [...(await Promise.all(answers)), ...(await Promise.all(clients)).flat()].sort((a, b) => a - b);
  assert.deepEqual(
    numbers,
    Array.from({ length: 190 }, (_, index) => index + 1),
  );
  // It has been there since the test before; a second one is opened when it is nearly full.
  assert.ok((await lab.metric('portcullis_upstream_connections_opened_total')) <= opened + 1);
});

test('64 MiB to clients that read slowly cost little memory, and hold up nobody else', async () => {
  const bytes = 64 * MIB;
  const slow: Wire[] = [];
  const before = residentBytes();
  let growth = 0;
  for (let i = 0; i < 4; i++) {
    const client = await lab.client();
    await client.send(request('GET /down/64', 'plain.test'));
    assert.equal((await client.head()).value('content-length'), String(bytes));
    client.socket.pause();
    slow.push(client);
  }
  for (let step = 0; step < 16; step++) {
    for (const client of slow) {
      client.socket.resume();
      await client.skipBytes(2 * MIB);
      client.socket.pause();
    }
    const other = await lab.client();
    await other.send(request('GET /count', 'plain.test'));
    assert.equal((await other.response()).status, 200);
    other.close();
    growth = Math.max(growth, residentBytes() - before);
  }
  assert.ok(growth < 16 * MIB, `${growth} bytes`);
  for (const client of slow) client.close();
  await lab.metricBecomes('portcullis_requests_in_flight', 0);
  await lab.metricBecomes('portcullis_buffers_in_use', 0);
});

test('a server that is killed in the middle fails what is in progress, and serves again when it is back', async () => {
  const client = await lab.client();
  await client.send(request('GET /down/64', 'tls.test'));
  await client.head();
  await client.skipBytes(1000);
  for (const session of sessions) if (session.encrypted === true) session.destroy();
  await client.ended();
  const next = await lab.client();
  await next.send(request('GET /count', 'tls.test'));
  assert.equal((await next.response()).status, 200);
});

test('TLS sessions are resumed on later connections', async () => {
  const resumed = await lab.metric('portcullis_upstream_tls_resumed_handshakes_total');
  for (const session of sessions) if (session.encrypted === true) session.destroy();
  await becomes('closed connections', async () => [...sessions].every(({ encrypted }) => encrypted !== true));
  const client = await lab.client();
  await client.send(request('GET /count', 'tls.test'));
  assert.equal((await client.response()).status, 200);
  await lab.metricBecomes('portcullis_upstream_tls_resumed_handshakes_total', resumed + 1);
});

test('nghttpd serves files, refuses what is not there, and takes uploads', { skip: noNghttpd }, async () => {
  writeFileSync(join(directory, 'large.bin'), body);
  const server = spawn('nghttpd', ['--no-tls', '-a', OWN_HOST, '-d', directory, String(nghttpdPort)], {
    stdio: 'ignore',
  });
  lab.beforeClose(async () => {
    server.kill();
    await once(server, 'exit');
  });
  const url = (path: string): string => `http://127.0.0.1:${lab.port}${path}`;
  const host = ['-H', 'Host: nghttpd.test'];
  await becomes('nghttpd', async () => {
    const { stdout } = await run('curl', ['-s', '-o', '/dev/null', '-w', '%{http_code}', ...host, url('/ca.crt')]);
    return stdout === '200';
  });
  for (const version of ['--http1.1', '--http2-prior-knowledge']) {
    const { stdout } = await run('curl', ['-s', version, ...host, url('/large.bin')], {
      encoding: 'buffer',
      maxBuffer: 64 * MIB,
    });
    assert.equal(sha256(stdout), digest, version);
    const upload = ['-T', join(directory, 'large.bin')];
    const answer = await run('curl', [
      '-s',
      version,
      '-o',
      '/dev/null',
      '-w',
      '%{http_code}',
      ...upload,
      ...host,
      url('/none'),
    ]);
    assert.equal(answer.stdout, '404', version);
  }
});

test('nginx ends its connections after ten requests each, and not one request is lost', { skip: noNginx }, async () => {
  const www = mkdtempSync(join(tmpdir(), 'portcullis-nginx-'));
  writeFileSync(join(www, 'large.bin'), body);
  writeFileSync(join(www, 'small.txt'), 'hello from nginx\n');
  const file = join(www, 'nginx.conf');
  const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi']
    .map((name) => `${name}_temp_path ${www}/${name};`)
    .join(' ');
  writeFileSync(
    file,
    `daemon off; worker_processes 1; pid ${www}/nginx.pid; error_log stderr crit;
${process.getuid?.() === 0 ? 'user root;' : ''}
events {}
http { access_log off; keepalive_requests 10; ${temporary}
  server { listen ${OWN_HOST}:${nginxPort} http2; root ${www};
    location = /empty { return 204; } } }
`,
  );
  const path = `${process.env.PATH}:/usr/sbin`;
  const server = spawn('nginx', ['-p', www, '-c', file], { stdio: 'ignore', env: { ...process.env, PATH: path } });
  lab.beforeClose(async () => {
    server.kill();
    await once(server, 'exit');
    rmSync(www, { recursive: true, force: true });
  });
  const client = await lab.client();
  await becomes('nginx', async () => {
    await client.send(request('GET /small.txt', 'nginx.test'));
    return (await client.response()).status === 200;
  });
  const goaways = await lab.metric('portcullis_upstream_http2_goaways_received_total');
  for (let i = 0; i < 50; i++) {
    await client.send(request(i % 2 === 0 ? 'GET /small.txt' : 'HEAD /small.txt', 'nginx.test'));
    const message = await client.response(i % 2 === 0 ? 'GET' : 'HEAD');
    assert.equal(message.status, 200);
    assert.equal(message.value('content-length'), '17');
    if (i % 2 === 0) assert.equal(message.body, 'hello from nginx\n');
  }
  assert.ok((await lab.metric('portcullis_upstream_http2_goaways_received_total')) >= goaways + 4);
  await client.send(request('GET /empty', 'nginx.test'));
  assert.equal((await client.response()).status, 204);
  await client.send(request('GET /large.bin', 'nginx.test', 'Range: bytes=5-1000004'));
  const part = await client.response();
  assert.equal(part.status, 206);
  assert.equal(sha256(Buffer.from(part.body, 'latin1')), sha256(body.subarray(5, 1_000_005)));
  await client.send(request('GET /large.bin', 'nginx.test'));
  assert.equal(sha256(Buffer.from((await client.response()).body, 'latin1')), digest);
});
