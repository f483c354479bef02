// Filters of a real gateway, with real clients and upstreams: what each side gets to see.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { Agent, request } from 'node:http';
import {
  connect as connectHttp2,
  createServer as createHttp2Server,
  type IncomingHttpHeaders,
  type ServerHttp2Stream,
} from 'node:http2';
import { type AddressInfo, connect } from 'node:net';
import { join } from 'node:path';
import { test } from 'node:test';
import { promisify } from 'node:util';
import { fileLifetime, type PartPlan, SharedGateway } from './shared-gateway.ts';
import { CLOSED_PORTS, type Lifetime, runToEnd, startUpstream, temporaryDirectory } from './support.ts';

/** What an upstream got. */
interface Seen {
  version: string;
  method: string;
  path: string;
  host: string;
  headers: IncomingHttpHeaders;
  body: string;
}

/** An upstream that answers with what it got, over HTTP/1.1 or HTTP/2, and with some fields of its own. */
async function echo(t: Lifetime, protocol: 'http/1.1' | 'h2c'): Promise<number> {
  const fields = { 'x-up': 'up', server: 'origin', 'access-control-allow-origin': 'https://evil.test' };
  if (protocol === 'http/1.1') {
    return startUpstream(t, (incoming, response) => {
      let body = '';
      incoming.on('data', (chunk) => (body += chunk));
      incoming.on('end', () => {
        const { method, url: path, headers } = incoming;
        response.writeHead(incoming.headers['x-status'] === '503' ? 503 : 200, fields);
        response.end(JSON.stringify({ version: '1', method, path, host: headers.host ?? '', headers, body }));
      });
    });
  }
  const server = createHttp2Server();
  server.on('stream', (stream: ServerHttp2Stream, headers: IncomingHttpHeaders) => {
    let body = '';
    stream.on('data', (chunk) => (body += chunk));
    stream.on('end', () => {
      stream.respond({ ':status': 200, ...fields });
      const { ':method': method, ':path': path, ':authority': host = '' } = headers;
      stream.end(JSON.stringify({ version: '2', method, path, host, headers, body }));
    });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.after(() => server.close());
  return (server.address() as AddressInfo).port;
}

interface Answer {
  status: number;
  headers: IncomingHttpHeaders;
  body: string;
}

interface Ask {
  path: string;
  method?: string;
  headers?: Record<string, string>;
  body?: string;
}

function askHttp1(port: number, { path, method = 'GET', headers = {}, body }: Ask, agent?: Agent): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const outgoing = request({ port, path, method, headers, agent: agent ?? false }, (incoming) => {
      let text = '';
      incoming.setEncoding('utf8');
      incoming.on('data', (chunk) => (text += chunk));
      incoming.on('error', reject);
      incoming.on('end', () => resolve({ status: incoming.statusCode!, headers: incoming.headers, body: text }));
    });
    outgoing.on('error', reject);
    outgoing.end(body);
  });
}

function askHttp2(port: number, { path, method = 'GET', headers = {}, body }: Ask): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const session = connectHttp2(`http://127.0.0.1:${port}`);
    session.on('error', reject);
    const stream = session.request(
      { ':path': path, ':method': method, ...authorityOf(headers) },
      { endStream: body === undefined },
    );
    let status = 0;
    let fields: IncomingHttpHeaders = {};
    let text = '';
    stream.setEncoding('utf8');
    stream.on('response', (response) => {
      status = response[':status']!;
      fields = response;
    });
    stream.on('data', (chunk) => (text += chunk));
    stream.on('error', reject);
    stream.on('end', () => {
      session.close();
      resolve({ status, headers: fields, body: text });
    });
    if (body !== undefined) stream.end(body);
  });
}

/** Fields with `host` as HTTP/2 has it. */
function authorityOf({ host, ...fields }: Record<string, string>): Record<string, string> {
  return host === undefined ? fields : { ...fields, ':authority': host };
}

const clients = { 'HTTP/1.1': askHttp1, 'HTTP/2': askHttp2 };

const file = fileLifetime();

/** The gateway of most tests: with backends `one` and `two` over both protocols. */
const shared = new SharedGateway('accessLog: {path: "-"}');
shared.part(async (name, lifetime) => ({
  routes: `  - {name: ${name}, listeners: [${name}], rules: [{backendRefs: [{name: one}]}]}`,
  backends: `
  - {name: one, endpoints: ["127.0.0.1:${await echo(lifetime, 'http/1.1')}"]}
  - {name: two, endpoints: ["127.0.0.1:${await echo(lifetime, 'h2c')}"], protocol: h2c}
`,
}));

/** A part with these rules. */
const withRules =
  (rules: string): PartPlan =>
  (name) => ({ routes: `  - name: ${name}\n    listeners: [${name}]\n    rules:\n${rules}`, backends: '' });

const modifiers = (path: string, backend: string): string => `
      - matches: [{path: {value: ${path}}}]
        filters:
          - type: RequestHeaderModifier
            requestHeaderModifier:
              set: [{name: X-Set, value: new}, {name: user-agent, value: gateway}]
              add: [{name: x-add, value: "2"}]
              remove: [x-gone]
          - type: ResponseHeaderModifier
            responseHeaderModifier:
              set: [{name: Server, value: mine}]
              add: [{name: x-up, value: added}, {name: x-long, value: ${'l'.repeat(3000)}}]
              remove: [access-control-allow-origin]
          - type: URLRewrite
            urlRewrite: {hostname: inner.test, path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}
        backendRefs: [{name: ${backend}}]`;

const modified = shared.part(withRules(modifiers('/one', 'one') + modifiers('/two', 'two')));

test('heads are modified and rewritten over every pair of protocols', async () => {
  const { port } = await modified();
  for (const [client, ask] of Object.entries(clients)) {
    for (const [backend, version] of [
      ['one', '1'],
      ['two', '2'],
    ]) {
      const label = `${client} to ${backend}`;
      const headers = { 'x-set': 'old', 'x-add': '1', 'x-gone': '1', 'user-agent': 'me' };
      const answer = await ask(port, { path: `/${backend}/a?b=/c`, method: 'POST', headers, body: 'payload' });
      assert.equal(answer.status, 200, label);
      const seen = JSON.parse(answer.body) as Seen;
      assert.deepEqual(
        [seen.version, seen.path, seen.host, seen.body],
        [version, '/new/a?b=/c', 'inner.test', 'payload'],
        label,
      );
      assert.equal(seen.headers['x-set'], 'new', label);
      assert.equal(seen.headers['x-add'], '1, 2', label);
      assert.equal(seen.headers['user-agent'], 'gateway', label);
      assert.ok(!('x-gone' in seen.headers), label);
      assert.match(String(seen.headers['x-forwarded-host']), /^(localhost|127\.0\.0\.1):/, label);
      assert.equal(answer.headers.server, 'mine', label);
      assert.equal(answer.headers['x-up'], 'up, added', label);
      assert.equal(String(answer.headers['x-long']).length, 3000, label);
      assert.ok(!('access-control-allow-origin' in answer.headers), label);
    }
  }
});

test('logs go on showing the path and host that the client asked for', async () => {
  const { gateway, port } = await modified();
  const { body } = await askHttp1(port, { path: '/one/a?b', headers: { host: 'outer.test' } });
  assert.equal((JSON.parse(body) as Seen).host, 'inner.test');
  const line = JSON.parse((await gateway.printed(/^\{.*(inner|outer)\.test.*\}$/))[0]);
  assert.deepEqual([line.path, line.host, line.status], ['/one/a?b', 'outer.test', 200]);
});

test('requests on one connection are changed one by one, and large responses come whole', async (t) => {
  const { port } = await modified();
  const agent = new Agent({ keepAlive: true, maxSockets: 1 });
  t.after(() => agent.destroy());
  const body = 'x'.repeat(300_000);
  for (const text of ['', 'a', body, 'b']) {
    const answer = await askHttp1(port, { path: '/one', method: 'POST', body: text }, agent);
    assert.equal((JSON.parse(answer.body) as Seen).body.length, text.length);
    assert.equal(answer.headers['x-up'], 'up, added');
  }
});

const references = shared.part(
  withRules(`
      - filters:
          - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-a, value: rule}, {name: x-b, value: rule}]}}
          - {type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: x-from, value: rule}]}}
        backendRefs:
          - {name: one}
          - name: two
            filters:
              - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-a, value: ref}], remove: [x-b]}}
              - {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-from, value: ref}]}}
              - {type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /two}}}`),
);

test('filters of a backend reference come after those of its rule, and only where it was chosen', async () => {
  const { port } = await references();
  const seen = new Set<string>();
  for (let i = 0; i < 60; i++) {
    const { headers, body } = await askHttp1(port, { path: '/x' });
    const { version, path, headers: got } = JSON.parse(body) as Seen;
    seen.add(JSON.stringify([version, path, got['x-a'], got['x-b'] ?? null, headers['x-from']]));
  }
  assert.deepEqual([...seen].sort(), ['["1","/x","rule","rule","rule"]', '["2","/two","ref",null,"ref"]']);
});

/** A rule that answers by itself. */
const direct = (path: string, settings: string): string => `
      - matches: [{path: {value: ${path}}}]
        filters:
          - {type: DirectResponse, directResponse: {${settings}}}
          - {type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: x-by, value: filter}]}}`;

const pageFile = join(temporaryDirectory(file), 'page.html');
const page = `<p>${'é'.repeat(32_000)}</p>`;
writeFileSync(pageFile, page);
const answering = shared.part(
  withRules(`
      - matches: [{path: {value: /old}}]
        filters:
          - type: RequestRedirect
            requestRedirect: {scheme: https, hostname: new.test, path: {type: ReplacePrefixMatch, replacePrefixMatch: /}, statusCode: 301}
      - matches: [{path: {value: /port}}]
        filters: [{type: RequestRedirect, requestRedirect: {hostname: new.test}}]
      ${direct('/text', 'statusCode: 503, body: "geschlossen für heute\\n"')}
      ${direct('/file', `bodyFile: ${pageFile}, contentType: text/html`)}
      ${direct('/none', 'statusCode: 204')}`),
);

test('redirects and direct responses need no backend, and are the same over every protocol', async () => {
  const { gateway, port } = await answering();
  for (const [client, ask] of Object.entries(clients)) {
    const redirect = await ask(port, { path: '/old/a?b=c' });
    assert.deepEqual(
      [redirect.status, redirect.headers.location, redirect.body],
      [301, 'https://new.test/a?b=c', ''],
      client,
    );
    // The listener has a port that the system chose: the client knows which.
    assert.equal((await ask(port, { path: '/port' })).headers.location, `http://new.test:${port}/port`, client);

    const text = await ask(port, { path: '/text' });
    assert.deepEqual(
      [text.status, text.body, text.headers['x-by']],
      [503, 'geschlossen für heute\n', 'filter'],
      client,
    );
    assert.equal(text.headers['content-type'], 'text/plain; charset=utf-8', client);
    const head = await ask(port, { path: '/text', method: 'HEAD' });
    assert.deepEqual([head.status, head.body, head.headers['content-length']], [503, '', '23'], client);

    const html = await ask(port, { path: '/file' });
    assert.deepEqual([html.status, html.headers['content-type']], [200, 'text/html'], client);
    assert.ok(html.body === page, `${client}: ${html.body.length} characters`);
    const none = await ask(port, { path: '/none', method: 'POST', body: 'unread' });
    assert.deepEqual([none.status, none.body], [204, ''], client);
  }

  // The file is read again with the configuration.
  writeFileSync(pageFile, 'new');
  gateway.kill('SIGHUP');
  await gateway.log(/info configuration reloaded/);
  assert.equal((await askHttp1(port, { path: '/file' })).body, 'new');
});

const mixed = shared.part(withRules(`${direct('/a', 'body: A')}\n      - backendRefs: [{name: one}]`));

test('a connection serves on after answers of filters', async (t) => {
  const { port } = await mixed();
  const agent = new Agent({ keepAlive: true, maxSockets: 1 });
  t.after(() => agent.destroy());
  const bodies: string[] = [];
  for (const path of ['/a', '/b', '/a', '/b']) {
    const { body } = await askHttp1(port, { path }, agent);
    bodies.push(body.length === 1 ? body : (JSON.parse(body) as Seen).path);
  }
  assert.deepEqual(bodies, ['A', '/b', 'A', '/b']);
});

const abort = '{abort: {grpcStatus: 7}}';
const rpcs = shared.part(
  withRules(`
      ${direct('/closed', 'statusCode: 503, body: closed 100%')}
      - matches: [{path: {value: /fault}}]
        filters: [{type: FaultInjection, faultInjection: ${abort}}]
        backendRefs: [{name: two}]`),
);

test('an RPC gets a gRPC status from a direct response and from an abort', async () => {
  const { port } = await rpcs();
  const headers = { 'content-type': 'application/grpc', te: 'trailers' };
  const closed = await askHttp2(port, { path: '/closed', method: 'POST', headers, body: '' });
  assert.deepEqual([closed.status, closed.headers['grpc-status']], [200, '14']);
  assert.equal(closed.headers['grpc-message'], 'closed 100%25');
  assert.equal(closed.headers['x-by'], 'filter');
  const fault = await askHttp2(port, { path: '/fault', method: 'POST', headers, body: '' });
  assert.deepEqual([fault.status, fault.headers['grpc-status']], [200, '7']);
  const plain = await askHttp2(port, { path: '/fault' });
  assert.equal(plain.status, 403);
});

const gone = shared.part(async (name) => ({
  routes: `
  - name: ${name}
    listeners: [${name}]
    hostnames: [a.test]
    rules:
      - filters:
          - type: ResponseHeaderModifier
            responseHeaderModifier: {set: [{name: server, value: mine}], add: [{name: x-by, value: filter}], remove: [x-request-id]}
          - {type: CORS, cors: {allowOrigins: ["https://a.test"]}}
        backendRefs: [{name: gone}]
`,
  backends: `  - {name: gone, endpoints: ["127.0.0.1:${CLOSED_PORTS[0]}"]}`,
}));

test('responses that the gateway generates for a matched rule get the fields of its filters', async () => {
  const { port } = await gone();
  for (const [client, ask] of Object.entries(clients)) {
    const { status, headers, body } = await ask(port, {
      path: '/',
      headers: { host: 'a.test', origin: 'https://a.test' },
    });
    assert.equal(status, 503, client);
    assert.deepEqual([headers.server, headers['x-by'], headers['x-request-id']], ['mine', 'filter', undefined], client);
    assert.equal(headers['access-control-allow-origin'], 'https://a.test', client);
    assert.match(body, /^503 Service Unavailable: UF: /, client);
    assert.equal(Number(headers['content-length']), body.length, client);
  }
  const elsewhere = await askHttp1(port, { path: '/', headers: { host: 'b.test' } });
  assert.deepEqual([elsewhere.status, elsewhere.headers['x-by']], [404, undefined]);
});

const pages = shared.part(
  withRules(`
      - filters:
          - type: CORS
            cors: {allowOrigins: ["https://*.a.test"], allowMethods: [PUT], allowHeaders: [x-a], exposeHeaders: [x-up], maxAge: 60}
        backendRefs: [{name: one}, {name: two}]`),
);

test('pages of allowed origins get through CORS, as a browser would go about it', async () => {
  const { port } = await pages();
  for (const [client, ask] of Object.entries(clients)) {
    const origin = 'https://shop.a.test';
    const preflight = await ask(port, {
      path: '/api',
      method: 'OPTIONS',
      headers: { origin, 'access-control-request-method': 'PUT', 'access-control-request-headers': 'x-a' },
    });
    assert.deepEqual([preflight.status, preflight.body], [200, ''], client);
    assert.equal(preflight.headers['access-control-allow-origin'], origin, client);
    assert.equal(preflight.headers['access-control-allow-methods'], 'PUT', client);
    assert.equal(preflight.headers['access-control-allow-headers'], 'x-a', client);
    assert.equal(preflight.headers['access-control-max-age'], '60', client);
    // Often enough that both backends answer.
    for (let i = 0; i < 8; i++) {
      const put = await ask(port, { path: '/api', method: 'PUT', headers: { origin }, body: 'x' });
      assert.equal((JSON.parse(put.body) as Seen).method, 'PUT', client);
      assert.equal(put.headers['access-control-allow-origin'], origin, client);
      assert.equal(put.headers['access-control-expose-headers'], 'x-up', client);
      assert.equal(put.headers.vary, 'origin', client);
      const other = await ask(port, { path: '/api', headers: { origin: 'https://evil.test' } });
      assert.equal(other.headers['access-control-allow-origin'], undefined, client);
    }
    const options = await ask(port, { path: '/api', method: 'OPTIONS', headers: { origin } });
    assert.equal((JSON.parse(options.body) as Seen).method, 'OPTIONS', `${client}: no preflight request`);
  }
});

const fault = (path: string, settings: string, more = ''): string => `
      - matches: [{path: {value: ${path}}}]
        filters: [{type: FaultInjection, faultInjection: {${settings}}}]
        ${more}
        backendRefs: [{name: one}]`;

/** A gateway whose log and counters show faults and nothing else. */
const faulty = new SharedGateway('accessLog: {path: "-", format: "%{path} %{status} %{reason} %{detail}."}');
const faults = faulty.part(async (name, lifetime) => ({
  routes: `
  - name: ${name}
    listeners: [${name}]
    rules:
      ${fault('/both', 'delay: {duration: 30ms}, abort: {statusCode: 418}, headers: [{name: x-f, value: "1"}]')}
      ${fault('/late', 'delay: {duration: 1h}', 'timeouts: {request: 50ms}')}
      ${fault('/slow', 'delay: {duration: 30ms}')}
`,
  backends: `  - {name: one, endpoints: ["127.0.0.1:${await echo(lifetime, 'http/1.1')}"]}`,
}));

test('delays and aborts are injected, and logs and metrics say so', async () => {
  const { gateway, port } = await faults();
  for (const [client, ask] of Object.entries(clients)) {
    const both = await ask(port, { path: '/both', headers: { 'x-f': '1' } });
    assert.equal(both.status, 418, client);
    assert.match(both.body, /^418: FI: A fault filter /, client);
    const slow = await ask(port, { path: '/slow', method: 'POST', body: 'b'.repeat(100_000) });
    assert.equal((JSON.parse(slow.body) as Seen).body.length, 100_000, client);
    assert.equal((await ask(port, { path: '/both' })).status, 200, client);
    assert.equal((await ask(port, { path: '/late' })).status, 504, client);
  }
  await gateway.printed(/^\/both 418 FI fault_abort\.$/);
  await gateway.printed(/^\/slow 200 DI fault_delay\.$/);
  await gateway.printed(/^\/both 200 - -\.$/);
  await gateway.printed(/^\/late 504 UT request_timer\.$/);
  const { body } = await askHttp1(await gateway.adminPort(), { path: '/metrics' });
  assert.match(body, /reason="FI"[^\n]* 2\n/);
  assert.match(body, /reason="DI"[^\n]* 2\n/);
});

let late = 0;
const leaving = faulty.part(async (name, lifetime) => ({
  routes: `  - {name: ${name}, listeners: [${name}], rules: [{filters: [{type: FaultInjection, faultInjection: {delay: {duration: 1h}}}], backendRefs: [{name: late}]}]}`,
  backends: `  - {name: late, endpoints: ["127.0.0.1:${await startUpstream(lifetime, (_incoming, response) => {
    late++;
    response.end();
  })}"]}`,
}));

test('a client that leaves during a delay is let go, and its request never sent', async (t) => {
  const { gateway, port } = await leaving();
  const socket = connect(port, '127.0.0.1');
  t.after(() => socket.destroy());
  socket.write('GET /gone HTTP/1.1\r\nHost: a\r\n\r\n', () => socket.resetAndDestroy());
  await gateway.printed(/^\/gone \S+ DC /);
  assert.equal(late, 0);
});

const followed = shared.part(
  withRules(`
      - matches: [{path: {value: /from}}]
        filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplaceFullPath, replaceFullPath: /to}, statusCode: 307}}]
      - backendRefs: [{name: two}]`),
);

test('a redirect that curl follows ends where it should', async () => {
  const { port } = await followed();
  const url = `http://127.0.0.1:${port}/from?q=1`;
  const { stdout } = await promisify(execFile)('curl', ['-sL', '-d', 'form', url]);
  const { method, path, body } = JSON.parse(stdout) as Seen;
  assert.deepEqual([method, path, body], ['POST', '/to?q=1', 'form']);
});

test('a body file that is missing or too large is an error of the configuration', async (t) => {
  const directory = temporaryDirectory(t);
  writeFileSync(join(directory, 'large'), 'x'.repeat(65_537));
  const config = join(directory, 'gateway.yaml');
  writeFileSync(
    config,
    `
listeners: [{name: http, address: "127.0.0.1:0"}]
routes:
  - name: all
    rules:
      - filters: [{type: DirectResponse, directResponse: {bodyFile: missing}}]
      - filters: [{type: DirectResponse, directResponse: {bodyFile: large}}]
      - filters: [{type: DirectResponse, directResponse: {bodyFile: .}}]
backends: []
`,
  );
  const { code, stderr, stdout } = await runToEnd(t, 'check', '--config', config);
  assert.equal(code, 1);
  const text = stdout + stderr;
  assert.match(text, /:6:69: .*bodyFile: .*\/missing cannot be read \(.*ENOENT.*\)/);
  assert.match(text, /:7:69: .*bodyFile: .*\/large has 65537 bytes/);
  assert.match(text, /:8:69: .*bodyFile: .* is not a file/);
});
