// The gateway between programs that others wrote: curl, nginx, wrk, and Node's own HTTP.

import assert from 'node:assert/strict';
import { execFile, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { Agent, createServer, request as httpRequest } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { promisify } from 'node:util';
import { freePort, OWN_HOST } from '../support.ts';
import { becomes, startLab } from './support.ts';
import { openWire } from './wire.ts';

const run = promisify(execFile);

/** Why a test of a tool is skipped, or false when the tool is there. */
function missing(tool: string): string | false {
  try {
    execFileSync('/bin/sh', ['-c', `PATH=$PATH:/usr/sbin command -v ${tool}`]);
    return false;
  } catch {
    return `${tool} is not installed`;
  }
}

const noNginx = missing('nginx');
const nginxPort = await freePort();

// Node's server: answers with what it got.
const echo = createServer((incoming, response) => {
  response.setHeader('x-method', incoming.method!);
  response.setHeader('x-url', incoming.url!);
  incoming.pipe(response);
});
echo.on('upgrade', (incoming, socket) => {
  socket.write(
    `HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: ${incoming.headers.upgrade}\r\n\r\n`,
  );
  socket.pipe(socket);
});
echo.listen(0, '127.0.0.1');
await once(echo, 'listening');
after(() => {
  echo.close();
  echo.closeAllConnections();
});

const lab = await startLab({
  upstreams: 0,
  routes: [
    '{name: nginx, hostnames: [nginx.test], rules: [{backendRefs: [{name: nginx}]}]}',
    '{name: echo, rules: [{backendRefs: [{name: echo}]}]}',
  ],
  backends: [
    `{name: nginx, endpoints: ["${OWN_HOST}:${nginxPort}"]}`,
    `{name: echo, endpoints: ["127.0.0.1:${(echo.address() as AddressInfo).port}"]}`,
  ],
});
if (noNginx === false) await startNginx();

async function startNginx(): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), 'portcullis-nginx-'));
  const root = join(directory, 'www');
  mkdirSync(root);
  writeFileSync(join(root, 'index.html'), 'hello from nginx\n');
  writeFileSync(join(root, 'large.bin'), Buffer.alloc(3_000_000, 'nginx '));
  const file = join(directory, 'nginx.conf');
  const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi']
    .map((name) => `${name}_temp_path ${directory}/${name};`)
    .join(' ');
  writeFileSync(
    file,
    `daemon off; worker_processes 1; pid ${directory}/nginx.pid; error_log stderr crit;
${process.getuid?.() === 0 ? 'user root;' : ''}
events {}
http { access_log off; keepalive_requests 100; ${temporary}
  server { listen ${OWN_HOST}:${nginxPort}; root ${root};
    location = /old { return 301 http://nginx.test/; }
    location = /empty { return 204; } } }
`,
  );
  const child = spawn('/bin/sh', ['-c', 'PATH=$PATH:/usr/sbin exec nginx -c "$0"', file], { stdio: 'inherit' });
  const exit = once(child, 'exit');
  lab.beforeClose(async () => {
    child.kill('SIGTERM');
    await exit;
    rmSync(directory, { recursive: true, force: true });
  });
  await becomes('nginx', () =>
    openWire(nginxPort, OWN_HOST).then(
      (wire) => {
        wire.close();
        return true;
      },
      () => false,
    ),
  );
}

const host = ['-H', 'Host: nginx.test'];
const url = (path: string): string => `http://127.0.0.1:${lab.port}${path}`;

/** Runs curl; gives what it wrote. */
async function curl(...args: string[]): Promise<string> {
  const { stdout } = await run('curl', ['-sS', '--max-time', '20', ...args], { maxBuffer: 64 * 1024 * 1024 });
  return stdout;
}

test('curl fetches files, ranges and status codes of nginx', { skip: missing('curl') || noNginx }, async () => {
  assert.equal(await curl(...host, url('/')), 'hello from nginx\n');
  assert.equal((await curl(...host, url('/large.bin'))).length, 3_000_000);
  assert.equal(await curl(...host, '-r', '6-10', url('/')), 'from ');
  assert.equal(await curl(...host, '--http1.0', url('/')), 'hello from nginx\n');
  const status = ['-o', '/dev/null', '-w', '%{http_code} %{size_download}'];
  assert.match(await curl(...host, ...status, url('/old')), /^301 \d+$/);
  assert.equal(await curl(...host, ...status, url('/empty')), '204 0');
  assert.match(await curl(...host, ...status, url('/absent')), /^404 \d+$/);
  assert.match(await curl(...host, '-I', url('/large.bin')), /^Content-Length: 3000000\r$/m);
});

test('curl reuses its connection for many requests', { skip: missing('curl') || noNginx }, async () => {
  const written = await curl(...host, '-o', '/dev/null', '-w', '%{num_connects} ', url('/?[1-10]'));
  assert.equal(written, '1 0 0 0 0 0 0 0 0 0 ');
});

test('curl uploads with Expect: 100-continue and with chunks', { skip: missing('curl') }, async () => {
  const data = 'x'.repeat(2_000_000);
  const file = join(lab.directory, 'upload');
  writeFileSync(file, data);
  assert.equal(await curl('-H', 'Expect: 100-continue', '--data-binary', `@${file}`, url('/up')), data);
  assert.equal(await curl('-T', file, '-H', 'Transfer-Encoding: chunked', url('/up')), data);
});

test('wrk gets only good answers, and nginx connections are reused', {
  skip: missing('wrk') || noNginx,
}, async () => {
  const goodBefore = await lab.metric('portcullis_requests_total{status_class="2xx"}');
  const openedBefore = await lab.metric('portcullis_upstream_connections_opened_total');
  // It runs for a time, in which a busy machine may let it do nothing.
  let requests = 0;
  while (requests === 0) {
    const { stdout } = await run('wrk', [
      '-t1',
      '-c20',
      '-d1s',
      '--timeout',
      '20s',
      '-H',
      'Host: nginx.test',
      url('/'),
    ]);
    assert.doesNotMatch(stdout, /Non-2xx|Socket errors/, stdout);
    requests = Number(/(\d+) requests in/.exec(stdout)![1]);
  }
  const good = (await lab.metric('portcullis_requests_total{status_class="2xx"}')) - goodBefore;
  const opened = (await lab.metric('portcullis_upstream_connections_opened_total')) - openedBefore;
  assert.ok(good >= requests, `${good} counted of ${requests}`);
  // nginx closes each after 100 requests; a little above that where wrk ends in the middle of one.
  assert.ok(opened <= good / 50 + 40, `${opened} connections for ${good} requests`);
});

test("Node's agent keeps its connections, also over hundreds of requests with bodies", async () => {
  const agent = new Agent({ keepAlive: true, maxSockets: 4 });
  const sockets = new Set<number | undefined>();
  const post = (index: number): Promise<void> =>
    new Promise((resolve, reject) => {
      const data = `${index}:`.repeat(1 + (index % 50) * 40);
      const outgoing = httpRequest({ port: lab.port, path: `/${index}`, method: 'POST', agent }, (incoming) => {
        sockets.add(incoming.socket.localPort);
        let body = '';
        incoming.setEncoding('utf8');
        incoming.on('data', (chunk) => (body += chunk));
        incoming.on('error', reject);
        incoming.on('end', () => {
          try {
            assert.equal(incoming.headers['x-url'], `/${index}`);
            assert.equal(body, data);
            resolve();
          } catch (error) {
            reject(error as Error);
          }
        });
      });
      outgoing.on('error', reject);
      // In two writes without a length: chunked.
      outgoing.write(data.slice(0, data.length >> 1));
      outgoing.end(data.slice(data.length >> 1));
    });
  await Promise.all(Array.from({ length: 400 }, (_, index) => post(index)));
  agent.destroy();
  assert.ok(sockets.size <= 4, `${sockets.size} connections`);
});

test("Node's upgrade of client and server works through the gateway", async () => {
  const outgoing = httpRequest({
    port: lab.port,
    path: '/socket',
    headers: { connection: 'upgrade', upgrade: 'websocket' },
  });
  outgoing.end();
  const [response, socket] = await once(outgoing, 'upgrade');
  assert.equal(response.statusCode, 101);
  socket.end('through the tunnel and back');
  let text = '';
  for await (const chunk of socket) text += chunk;
  assert.equal(text, 'through the tunnel and back');
});
