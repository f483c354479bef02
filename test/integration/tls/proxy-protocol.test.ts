// The PROXY protocol: addresses taken from headers of a load balancer in front, and told to backends.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { existsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { becomes, request } from '../http/support.ts';
import { openWire } from '../http/wire.ts';
import { freePort, OWN_HOST } from '../support.ts';
import { filesOf, issue, openUpstream, pairOf, run, startSite, startTls } from './support.ts';

const upstream = await openUpstream();
upstream.serve(({ head }) => `HTTP/1.1 200 OK\r\nContent-Length: ${head.length}\r\n\r\n${head}`);
const receiver = await openUpstream();
const haproxyPort = await freePort();
const site = await startSite({
  files: filesOf({ site: issue('site', ['dns:a.example']) }),
  config: `
workers: 1
admin: {address: "127.0.0.1:0"}
accessLog: {path: access.log}
timeouts: {requestHead: 3s}
listeners:
  - {name: http, address: "127.0.0.1:0", proxyProtocol: required}
  - {name: tls, address: "127.0.0.1:0", protocols: [http/1.1], proxyProtocol: required, tls: {certificates: [${pairOf('site')}]}}
  - {name: tcp, address: "127.0.0.1:0", protocols: [tcp], proxyProtocol: required}
  - {name: tcp2, address: "127.0.0.1:0", protocols: [tcp]}
  - {name: plain, address: "127.0.0.1:0"}
routes:
  - {name: all, rules: [{backendRefs: [{name: app}]}]}
  - {name: v1, hostnames: [v1.test], rules: [{backendRefs: [{name: v1}]}]}
  - {name: v2, hostnames: [v2.test], rules: [{backendRefs: [{name: v2}]}]}
  - {name: haproxy, hostnames: [haproxy.test], rules: [{backendRefs: [{name: haproxy}]}]}
  - {name: haproxy1, hostnames: [haproxy1.test], rules: [{backendRefs: [{name: haproxy1}]}]}
  - {name: tcp, kind: TCP, listeners: [tcp], rules: [{backendRefs: [{name: v1}]}]}
  - {name: tcp2, kind: TCP, listeners: [tcp2], rules: [{backendRefs: [{name: v2}]}]}
backends:
  - {name: app, endpoints: ["127.0.0.1:${upstream.port}"]}
  - {name: v1, endpoints: ["127.0.0.1:${receiver.port}"], proxyProtocol: v1}
  - {name: v2, endpoints: ["127.0.0.1:${receiver.port}"], proxyProtocol: v2}
  - {name: haproxy, endpoints: ["${OWN_HOST}:${haproxyPort}"], proxyProtocol: v2}
  - {name: haproxy1, endpoints: ["${OWN_HOST}:${haproxyPort}"], proxyProtocol: v1}
`,
});
site.beforeClose(() => {
  upstream.close();
  receiver.close();
});

/** A version 2 header for IPv4 addresses. */
function v2(source: string, sourcePort: number, destination = '10.9.9.9', port = 443): Buffer {
  const words = [...source.split('.'), ...destination.split('.')].map(Number);
  const body = Buffer.from([...words, sourcePort >> 8, sourcePort & 255, port >> 8, port & 255]);
  return Buffer.concat([signature, Buffer.from([0x21, 0x11, 0, body.length]), body]);
}
const signature = Buffer.from('0d0a0d0a000d0a515549540a', 'hex');

test('version 1 gives the address that upstream and access log see', async () => {
  const wire = await site.plain('http');
  await wire.send('PROXY TCP4 192.0.2.7 198.51.100.1 5555 80\r\n');
  await wire.send(request('GET /v1', 'a.test'));
  assert.match((await wire.response()).body, /\r\nx-forwarded-for: 192\.0\.2\.7\r\n/i);
  const line = await site.logged({ path: '/v1' });
  assert.deepEqual([line.clientAddress, line.clientPort], ['192.0.2.7', 5555]);
});

test('version 1 with IPv6, and version 2 with and without a header behind it', async () => {
  const six = await site.plain('http');
  await six.send(`PROXY TCP6 2001:db8::7 2001:db8::1 5556 80\r\n${request('GET /six', 'a.test')}`);
  assert.match((await six.response()).body, /\r\nx-forwarded-for: 2001:db8::7\r\n/i);
  const two = await site.plain('http');
  await two.send(Buffer.concat([v2('203.0.113.9', 7777), Buffer.from(request('GET /two', 'a.test'))]));
  assert.match((await two.response()).body, /\r\nx-forwarded-for: 203\.0\.113\.9\r\n/i);
  assert.equal((await site.logged({ path: '/two' })).clientPort, 7777);
  // The next request of the connection has the same client.
  await two.send(request('GET /again', 'a.test'));
  assert.match((await two.response()).body, /\r\nx-forwarded-for: 203\.0\.113\.9\r\n/i);
});

test('LOCAL and UNKNOWN leave the address of the connection', async () => {
  for (const header of [Buffer.concat([signature, Buffer.from([0x20, 0, 0, 0])]), Buffer.from('PROXY UNKNOWN\r\n')]) {
    const wire = await site.plain('http');
    await wire.send(Buffer.concat([header, Buffer.from(request('GET /local', 'a.test'))]));
    assert.match((await wire.response()).body, /\r\nx-forwarded-for: 127\.0\.0\.1\r\n/i);
  }
});

test('a header may come byte by byte, with TLS behind it', async () => {
  for (const header of [Buffer.from('PROXY TCP4 192.0.2.8 198.51.100.1 5557 443\r\n'), v2('192.0.2.8', 5557)]) {
    const raw = await openWire(await site.gateway.port('tls'));
    for (const byte of header) await raw.send(Buffer.of(byte));
    raw.socket.removeAllListeners('data');
    const wire = site.keep(await startTls(raw.socket));
    await wire.send(request('GET /behind', 'a.example'));
    assert.match((await wire.response()).body, /\r\nx-forwarded-for: 192\.0\.2\.8\r\n/i);
    wire.close();
  }
});

test('header and ClientHello in one segment', async () => {
  const { clientHello } = await import('./support.ts');
  const wire = await site.plain('tls');
  await wire.send(Buffer.concat([v2('192.0.2.8', 5557), await clientHello()]));
  const answer = await wire.bytes(6);
  assert.deepEqual([answer[0], answer[5]], [22, 2]);
  wire.close();
});

test('a missing or malformed header closes the connection, and is counted', async () => {
  const before = await site.metric('proxy_header_errors_total');
  const bad = [
    request('GET / HTTP', 'a.test'),
    'PROXY TCP4 192.0.2.300 198.51.100.1 1 2\r\n',
    'PROXY UDP4 192.0.2.3 198.51.100.1 1 2\r\n',
    `PROXY TCP4 ${'1'.repeat(200)}`,
    `${signature.toString('latin1')}\x31\x11\x00\x0c`,
    '\x16\x03\x01',
  ];
  for (const text of bad) {
    const wire = await site.plain('http');
    await wire.send(text);
    await wire.ended();
    assert.equal(wire.received, 0, text);
  }
  await site.metricBecomes('proxy_header_errors_total', before + bad.length);
  await site.gateway.log(
    /PROXY header refused with client 127\.0\.0\.1:?\S* on listener http: The PROXY line holds a malformed address\./,
  );
});

test('a header that does not come in time, or is cut off, ends the connection', () =>
  site.leavingNothing(async () => {
    for (const text of ['', 'PROXY TCP4']) {
      const slow = await site.plain('http');
      await slow.send(text);
      await slow.ended();
      const cut = await site.plain('http');
      await cut.send(text);
      await cut.finish();
      await cut.ended();
      slow.close();
      cut.close();
    }
  }));

test('an upstream is told the client of a TCP connection, in version 1', async () => {
  const client = await site.plain('tcp');
  const port = await site.gateway.port('tcp');
  await client.send(Buffer.concat([v2('192.0.2.9', 4444), Buffer.from('hello')]));
  const wire = await receiver.connection();
  assert.equal(await wire.until('\r\n'), `PROXY TCP4 192.0.2.9 127.0.0.1 4444 ${port}\r\n`);
  assert.equal((await wire.bytes(5)).toString(), 'hello');
  client.close();
});

test('an upstream is told the client of a TCP connection, in version 2', async () => {
  const client = await site.plain('tcp2');
  const port = await site.gateway.port('tcp2');
  const { localPort } = client.socket;
  await client.send('hello');
  const wire = await receiver.connection();
  assert.deepEqual(await wire.bytes(28), v2('127.0.0.1', localPort!, '127.0.0.1', port));
  assert.equal((await wire.bytes(5)).toString(), 'hello');
  client.close();
});

test('an upstream is told the client of a request, on a connection that serves no other client', async () => {
  const before = receiver.accepted;
  for (const [index, address] of ['192.0.2.21', '192.0.2.22', '192.0.2.22'].entries()) {
    const client = await site.plain('http');
    await client.send(`PROXY TCP4 ${address} 198.51.100.1 1${index} 80\r\n${request('GET /', 'v1.test')}`);
    const wire = await receiver.connection();
    assert.match(
      await wire.until('\r\n'),
      new RegExp(`^PROXY TCP4 ${address.replaceAll('.', '\\.')} 127\\.0\\.0\\.1 1${index} `),
    );
    await wire.request();
    await wire.send('HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok');
    assert.equal((await client.response()).body, 'ok');
    await wire.ended();
  }
  assert.equal(receiver.accepted, before + 3);
});

test('an IPv6 client of an IPv4 connection is told as IPv6', async () => {
  const client = await site.plain('http');
  await client.send(`PROXY TCP6 2001:db8::7 2001:db8::1 5556 80\r\n${request('GET /', 'v1.test')}`);
  const wire = await receiver.connection();
  const [, family, source, destination, port] = (await wire.until('\r\n')).split(' ');
  assert.deepEqual([family, port], ['TCP6', '5556']);
  assert.equal(new URL(`http://[${source}]`).hostname, '[2001:db8::7]');
  assert.equal(new URL(`http://[${destination}]`).hostname, '[::ffff:7f00:1]');
  await wire.request();
  await wire.send('HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n');
  await client.response();
});

test('HAProxy takes the headers, of both versions', { skip: !existsSync('/usr/sbin/haproxy') }, async () => {
  const file = join(site.directory, 'haproxy.cfg');
  writeFileSync(
    file,
    `defaults
  mode http
  timeout client 10s
  timeout connect 10s
  timeout server 10s
frontend f
  bind ${OWN_HOST}:${haproxyPort} accept-proxy
  http-request return status 200 content-type text/plain lf-string "%[src]:%[src_port]"
`,
  );
  const haproxy = spawn('/usr/sbin/haproxy', ['-db', '-f', file], { stdio: 'ignore' });
  after(() => haproxy.kill('SIGKILL'));
  await becomes('HAProxy', () =>
    openWire(haproxyPort, OWN_HOST).then(
      (wire) => {
        wire.close();
        return true;
      },
      () => false,
    ),
  );
  for (const host of ['haproxy.test', 'haproxy1.test']) {
    const client = await site.plain('http');
    await client.send(`PROXY TCP4 192.0.2.77 198.51.100.1 4321 80\r\n${request('GET /', host)}`);
    assert.equal((await client.response()).body, '192.0.2.77:4321', host);
  }
});

test('curl --haproxy-protocol is understood', async () => {
  const port = await site.gateway.port('http');
  const { output } = await run('curl', ['-s', '--haproxy-protocol', `http://127.0.0.1:${port}/curl`]);
  assert.match(output, /x-forwarded-for: 127\.0\.0\.1/i);
});
