// redirectToHttps, and the answers to ACME challenges that come before it.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { request } from '../http/support.ts';
import { openUpstream, run, startSite } from './support.ts';

const upstream = await openUpstream();
const site = await startSite({
  config: `
workers: 1
admin: {address: "127.0.0.1:0"}
accessLog: {path: access.log}
listeners:
  - {name: http, address: "127.0.0.1:0", redirectToHttps: true}
  - {name: port, address: "127.0.0.1:0", redirectToHttps: {port: 8443, status: 308}}
  - {name: serving, address: "127.0.0.1:0"}
routes: [{name: all, rules: [{backendRefs: [{name: app}]}]}]
backends: [{name: app, endpoints: ["127.0.0.1:${upstream.port}"]}]
`,
});
site.beforeClose(() => upstream.close());

/** Location of the answer to a request, whose status must be this one. */
async function location(text: string, listener = 'http', status = 301): Promise<string | undefined> {
  const wire = await site.plain(listener);
  await wire.send(text);
  const response = await wire.response(text.split(' ')[0]);
  assert.equal(response.status, status);
  wire.close();
  return response.value('location');
}

test('host, path and query stay, the port of plain HTTP goes', async () => {
  assert.equal(await location(request('GET /a/b?c=d&e', 'a.example')), 'https://a.example/a/b?c=d&e');
  assert.equal(await location(request('GET /', 'a.example:8080')), 'https://a.example/');
  assert.equal(await location(request('GET /', '192.0.2.1:8080')), 'https://192.0.2.1/');
  assert.equal(await location(request('GET /', '[2001:db8::1]')), 'https://[2001:db8::1]/');
  assert.equal(await location(request('GET /x', '[2001:db8::1]:8080')), 'https://[2001:db8::1]/x');
});

test('port and status are configurable', async () => {
  assert.equal(await location(request('GET /x', 'a.example:80'), 'port', 308), 'https://a.example:8443/x');
  assert.equal(await location(request('GET /x', '[::1]'), 'port', 308), 'https://[::1]:8443/x');
});

test('absolute targets are redirected to the host that they name', async () => {
  assert.equal(await location(request('GET http://b.example:81/y?z', 'b.example:81')), 'https://b.example/y?z');
  assert.equal(await location(request('GET http://b.example', 'b.example')), 'https://b.example/');
  assert.equal(await location(request('GET http://b.example?q', 'b.example')), 'https://b.example/?q');
});

test('HEAD gets the head, and the connection goes on', async () => {
  const wire = await site.plain('http');
  await wire.send(request('HEAD /h', 'a.example') + request('GET /g', 'a.example'));
  assert.equal((await wire.response('HEAD')).value('location'), 'https://a.example/h');
  assert.equal((await wire.response()).value('location'), 'https://a.example/g');
});

test('a POST is redirected without waiting for its body', async () => {
  const wire = await site.plain('http');
  await wire.send(request('POST /form', 'a.example', 'Content-Length: 1000000'));
  const response = await wire.response();
  assert.equal(response.value('location'), 'https://a.example/form');
  assert.equal(response.value('connection'), 'close', 'the body would pass for the next request');
  await wire.send(Buffer.alloc(100_000));
  assert.equal(await wire.ended(), 'fin');
});

test('a small body that came along is not taken for a request', async () => {
  const wire = await site.plain('http');
  await wire.send(`${request('POST /form', 'a.example', 'Content-Length: 30')}GET /smuggled HTTP/1.1\r\nX: 1234`);
  assert.equal((await wire.response()).value('location'), 'https://a.example/form');
  assert.equal(await wire.rest(), '');
});

test('what cannot be redirected is refused, and never served', async () => {
  const refused: [string, number][] = [
    ['GET /old HTTP/1.0\r\n\r\n', 400],
    [request('OPTIONS *', 'a.example'), 301],
    [request('CONNECT a.example:443', 'a.example:443'), 501],
  ];
  for (const [text, status] of refused) {
    const wire = await site.plain('http');
    await wire.send(text);
    const response = await wire.response();
    assert.equal(response.status, status, text);
    const target = response.value('location');
    if (target !== undefined) assert.equal(target, 'https://a.example/');
  }
  assert.equal(upstream.accepted, 0);
});

test('a target as long as the limits allow is redirected whole', async () => {
  const path = `/${'x'.repeat(8000)}`;
  assert.equal(await location(request(`GET ${path}`, 'a.example')), `https://a.example${path}`);
});

test('an answer of its own is logged with its status, and no upstream is asked', async () => {
  await location(request('GET /logged', 'a.example'));
  const line = await site.logged({ path: '/logged' });
  assert.deepEqual([line.status, line.reason], [301, null]);
  assert.equal(upstream.accepted, 0);
});

test('curl follows to https', async () => {
  const port = await site.gateway.port('http');
  const { output } = await run('curl', [
    '-s',
    '-o',
    '/dev/null',
    '-w',
    '%{redirect_url}',
    `http://127.0.0.1:${port}/curl`,
  ]);
  assert.equal(output, 'https://127.0.0.1/curl');
});
