// Matches of rules on a running gateway: which backend a request gets, over every protocol, by what the
// client sends, who it is and where it comes from.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { connect, createServer, type IncomingHttpHeaders, type OutgoingHttpHeaders } from 'node:http2';
import type { AddressInfo } from 'node:net';
import { test } from 'node:test';
import type { ConnectionOptions } from 'node:tls';
import { makeCertificate } from '../unit/core/tls/certificates.ts';
import { request } from './http/support.ts';
import type { Wire } from './http/wire.ts';
import { filesOf, issue, openUpstream, pairOf, startSite } from './tls/support.ts';

const names = ['main', 'canary', 'admin', 'search', 'office', 'alice', 'mesh', 'post', 'pattern'];
const upstreams = await Promise.all(names.map(() => openUpstream()));
for (const [i, upstream] of upstreams.entries()) {
  upstream.serve(() => `HTTP/1.1 200 OK\r\nContent-Length: ${names[i]!.length}\r\n\r\n${names[i]}`);
}

/** Answers calls of gRPC with its name in a field. */
async function grpcServer(name: string): Promise<{ port: number; close: () => void }> {
  const server = createServer((incoming, response) => {
    incoming.resume();
    response.writeHead(200, { 'content-type': 'application/grpc', 'x-name': name, 'grpc-status': '0' });
    response.end();
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return { port: (server.address() as AddressInfo).port, close: () => server.close() };
}

const cart = await grpcServer('cart');
const add = await grpcServer('add');
const health = await grpcServer('health');

const clients = makeCertificate({ name: 'client authority', ca: true });
const alice = makeCertificate({ name: 'alice', issuer: clients, names: ['dns:Alice.Example'], usage: 'client' });
const workload = makeCertificate({
  name: 'cart',
  issuer: clients,
  names: ['uri:spiffe://c.local/ns/shop/sa/cart'],
  usage: 'client',
});
const bob = makeCertificate({ name: 'bob', issuer: clients, names: ['dns:bob.example'], usage: 'client' });

const site = await startSite({
  files: { ...filesOf({ site: issue('site', ['dns:a.example']) }), 'clients.crt': clients.pem },
  config: `
workers: 1
admin: {address: "127.0.0.1:0"}
accessLog: {path: access.log}
trustedHops: 1
listeners:
  - {name: http, address: "127.0.0.1:0"}
  - {name: proxied, address: "127.0.0.1:0", proxyProtocol: required}
  - name: tls
    address: "127.0.0.1:0"
    protocols: [http/1.1]
    tls: {certificates: [${pairOf('site')}], clientValidation: {caCertificates: clients.crt, mode: optional}}
routes:
  - name: site
    hostnames: [site.test]
    rules:
      - backendRefs: [{name: main}]
      - matches: [{headers: [{name: X-Canary, value: "yes"}]}, {headers: [{name: cookie, type: RegularExpression, value: "(.*; )?canary=1(;.*)?"}]}]
        backendRefs: [{name: canary}]
      - matches: [{method: POST}]
        backendRefs: [{name: post}]
      - matches: [{path: {value: /search}, queryParams: [{name: q, type: RegularExpression, value: "[a-z ]{1,20}"}]}]
        backendRefs: [{name: search}]
      - matches: [{path: {type: RegularExpression, value: "/v[0-9]+/items/[^/]+"}}]
        backendRefs: [{name: pattern}]
      - matches: [{path: {type: Exact, value: /v1/items/special}}]
        backendRefs: [{name: admin}]
  - name: clients
    hostnames: [clients.test]
    rules:
      - matches: [{clientCertificate: {subjectAltNames: [{value: alice.example}]}}]
        backendRefs: [{name: alice}]
      - matches: [{clientCertificate: {subjectAltNames: [{type: Prefix, value: "spiffe://c.local/ns/shop/"}]}}]
        backendRefs: [{name: mesh}]
      - matches: [{sourceAddresses: [10.0.0.0/8, "2001:db8::/32"]}]
        backendRefs: [{name: office}]
      - backendRefs: [{name: main}]
  - name: calls
    hostnames: [grpc.test]
    rules:
      - matches: [{grpc: {service: shop.v1.Cart}}]
        backendRefs: [{name: cart}]
      - matches: [{grpc: {service: shop.v1.Cart, method: Add}}]
        backendRefs: [{name: add}]
      - matches: [{grpc: {type: RegularExpression, service: "grpc[.]health[.].*", method: "Check|Watch"}}]
        backendRefs: [{name: health}]
backends:
${upstreams.map(({ port }, i) => `  - {name: ${names[i]}, endpoints: ["127.0.0.1:${port}"]}`).join('\n')}
  - {name: cart, protocol: h2c, endpoints: ["127.0.0.1:${cart.port}"]}
  - {name: add, protocol: h2c, endpoints: ["127.0.0.1:${add.port}"]}
  - {name: health, protocol: h2c, endpoints: ["127.0.0.1:${health.port}"]}
`,
});
site.beforeClose(() => {
  for (const upstream of upstreams) upstream.close();
});
site.beforeClose(() => {
  for (const server of [cart, add, health]) server.close();
});

/** Name of the upstream that a request over a connection gets. */
async function over(wire: Wire, line: string, host: string, ...fields: string[]): Promise<string> {
  await wire.send(request(line, host, ...fields));
  const { status, body } = await wire.response();
  return status === 200 ? body : String(status);
}

/** Sends the requests over HTTP/1.1 and over HTTP/2, and asserts which upstream each gets. */
async function assertGoes(
  host: string,
  expected: [line: string, fields: Record<string, string>, name: string][],
): Promise<void> {
  const wire = await site.plain('http');
  const session = connect(`http://127.0.0.1:${await site.gateway.port('http')}`);
  try {
    for (const [line, fields, name] of expected) {
      const list = Object.entries(fields).map(([field, value]) => `${field}: ${value}`);
      assert.equal(await over(wire, line, host, ...list), name, `${line} ${list}`);
      const [method, path] = line.split(' ');
      const { 'content-length': _length, ...others } = fields;
      const headers = { ':method': method, ':path': path, ':authority': host, ...others };
      assert.equal((await exchange(session, headers)).body, name, `HTTP/2: ${line} ${list}`);
    }
  } finally {
    wire.close();
    session.close();
  }
}

function exchange(
  session: ReturnType<typeof connect>,
  headers: OutgoingHttpHeaders,
): Promise<{ headers: IncomingHttpHeaders; body: string }> {
  return new Promise((resolve, reject) => {
    const stream = session.request(headers, { endStream: true });
    let head: IncomingHttpHeaders = {};
    let body = '';
    stream.setEncoding('utf8');
    stream.on('response', (fields) => (head = fields));
    stream.on('data', (chunk) => (body += chunk));
    stream.on('error', reject);
    stream.on('end', () => resolve({ headers: head, body }));
  });
}

test('fields, cookies, methods and query parameters choose among rules of one path', async () => {
  await assertGoes('site.test', [
    ['GET /', {}, 'main'],
    ['GET /', { 'x-canary': 'yes' }, 'canary'],
    ['GET /', { 'x-canary': 'no' }, 'main'],
    ['GET /x', { cookie: 'a=b; canary=1; c=d' }, 'canary'],
    ['GET /x', { cookie: 'a=b; canary=10' }, 'main'],
    ['POST /', { 'content-length': '0' }, 'post'],
    // The method counts before the number of fields.
    ['POST /', { 'content-length': '0', 'x-canary': 'yes' }, 'post'],
    ['GET /search?q=red%20shoes', {}, 'search'],
    ['GET /search?q=RED', {}, 'main'],
    ['GET /search?p=1&q=a&q=B', {}, 'search'],
    ['GET /search', {}, 'main'],
    // A longer path counts before fields.
    ['GET /search?q=a', { 'x-canary': 'yes' }, 'search'],
  ]);
});

test('a regular expression goes behind Exact and before prefixes', async () => {
  await assertGoes('site.test', [
    ['GET /v2/items/shoes', {}, 'pattern'],
    ['GET /v2/items/shoes?x=/', { 'x-canary': 'yes' }, 'pattern'],
    ['GET /v1/items/special', {}, 'admin'],
    ['GET /v2/items/a/b', {}, 'main'],
    ['GET /v/items/a', { 'x-canary': 'yes' }, 'canary'],
  ]);
});

test('the access log names the rule', async () => {
  const wire = await site.plain('http');
  assert.equal(await over(wire, 'GET /labelled', 'site.test', 'x-canary: yes'), 'canary');
  assert.equal((await site.logged({ path: '/labelled' })).route, 'site rule 2');
});

test('a cookie in several fields of HTTP/2 is one', async () => {
  const session = connect(`http://127.0.0.1:${await site.gateway.port('http')}`);
  const headers = { ':path': '/', ':authority': 'site.test', cookie: ['a=b', 'canary=1', 'c=d'] };
  assert.equal((await exchange(session, headers)).body, 'canary');
  session.close();
});

test('a verified client certificate chooses by its names, and an absent one chooses nothing', async () => {
  const shown = (certificate: { pem: string; keyPem: string } | null): ConnectionOptions =>
    certificate === null ? {} : { cert: certificate.pem, key: certificate.keyPem };
  for (const [certificate, name] of [
    [alice, 'alice'],
    [workload, 'mesh'],
    [bob, 'main'],
    [null, 'main'],
  ] as const) {
    const wire = await site.secure('tls', shown(certificate));
    assert.equal(await over(wire, 'GET /', 'clients.test'), name);
  }
});

test('the address of the client is that behind the trusted proxy', async () => {
  const wire = await site.plain('http');
  const goes = (...fields: string[]): Promise<string> => over(wire, 'GET /', 'clients.test', ...fields);
  assert.equal(await goes(), 'main');
  assert.equal(await goes('x-forwarded-for: 10.1.2.3'), 'office');
  assert.equal(await goes('x-forwarded-for: 2001:db8:1::5'), 'office');
  // Only the last entry was written by the proxy.
  assert.equal(await goes('x-forwarded-for: 10.1.2.3, 192.0.2.1'), 'main');
  assert.equal(await goes('x-forwarded-for: 192.0.2.1', 'x-forwarded-for: 10.1.2.3'), 'office');
  assert.equal(await goes('x-forwarded-for: nonsense'), 'main');
});

test('the address of the client is that of the PROXY protocol', async () => {
  for (const [address, name] of [
    ['10.9.9.9', 'office'],
    ['192.0.2.7', 'main'],
  ]) {
    const wire = await site.plain('proxied');
    await wire.send(`PROXY TCP4 ${address} 198.51.100.1 5555 80\r\n`);
    assert.equal(await over(wire, 'GET /', 'clients.test'), name);
  }
});

test('calls of gRPC go by service and method, and other requests to the same path go nowhere', async () => {
  const session = connect(`http://127.0.0.1:${await site.gateway.port('http')}`);
  const call = async (path: string, type = 'application/grpc', method = 'POST'): Promise<unknown> => {
    const fields = {
      ':method': method,
      ':path': path,
      ':authority': 'grpc.test',
      'content-type': type,
      te: 'trailers',
    };
    const { headers } = await exchange(session, fields);
    return headers['x-name'] ?? headers['grpc-status'] ?? headers[':status'];
  };
  assert.equal(await call('/shop.v1.Cart/Add'), 'add');
  assert.equal(await call('/shop.v1.Cart/Remove', 'application/grpc+proto'), 'cart');
  assert.equal(await call('/grpc.health.v1.Health/Check'), 'health');
  // No rule: UNIMPLEMENTED to clients of gRPC, 404 to others.
  assert.equal(await call('/grpc.health.v1.Health/List'), '12');
  assert.equal(await call('/shop.v1.Carts/Add'), '12');
  assert.equal(await call('/shop.v1.Cart/Add', 'application/json'), 404);
  assert.equal(await call('/shop.v1.Cart/Add', 'application/json', 'GET'), 404);
  session.close();
});

test('a reload changes the matches, and one with a bad pattern is refused with its place', async () => {
  const wire = await site.plain('http');
  assert.equal(await over(wire, 'GET /', 'site.test', 'x-canary: yes'), 'canary');
  const text = readFileSync(site.gateway.configFile, 'utf8');
  site.gateway.configure(text.replace('/v[0-9]+/items/[^/]+', '/v[0-9+/items'));
  site.gateway.kill('SIGHUP');
  await site.gateway.log(
    /matches\[0\]\.path\.value: .*is not a regular expression: a class without its end at character 3/,
  );
  assert.equal(await over(wire, 'GET /v1/items/x', 'site.test'), 'pattern');
  site.gateway.configure(text.replace('X-Canary, value: "yes"', 'X-Canary, type: RegularExpression, value: "y(es)?"'));
  site.gateway.kill('SIGHUP');
  await site.gateway.log(/info configuration reloaded epoch=2 /);
  const after = await site.plain('http');
  assert.equal(await over(after, 'GET /', 'site.test', 'x-canary: y'), 'canary');
});
