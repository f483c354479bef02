// What operators see of requests: access log lines, explain, and counters.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { isDeepStrictEqual } from 'node:util';
import { get, runToEnd } from '../support.ts';
import { becomes, ok, request, startLab } from './support.ts';

const lab = await startLab({ upstreams: 8, top: 'accessLog: {path: access.log}' });

/** The access log line of a path. */
async function logged(path: string): Promise<Record<string, unknown>> {
  let line: Record<string, unknown> | undefined;
  await becomes(`log line of ${path}`, async () => {
    const lines = readFileSync(join(lab.directory, 'access.log'), 'utf8').split('\n').slice(0, -1);
    line = lines.map((text) => JSON.parse(text) as Record<string, unknown>).find((entry) => entry.path === path);
    return line !== undefined;
  });
  return line!;
}

test('a request that went well is logged with where it came from, where it went and what it cost', async () => {
  const upstream = lab.upstream();
  upstream.serve(({ body }) => ok(`${body}!`));
  const client = await lab.client();
  const { localPort } = client.socket;
  const startMs = Date.now();
  await client.send(
    `${request('POST /good?x="y"', upstream.host, 'Content-Length: 5', 'User-Agent: me', 'Referer: here')}hello`,
  );
  await client.response();
  const { time, durationMs, upstreamMs, requestId, ...line } = await logged('/good?x="y"');
  assert.deepEqual(line, {
    method: 'POST',
    path: '/good?x="y"',
    host: upstream.host,
    protocol: 'HTTP/1.1',
    status: 200,
    reason: null,
    detail: null,
    bytesReceived: 5,
    bytesSent: 6,
    clientAddress: '127.0.0.1',
    clientPort: localPort,
    userAgent: 'me',
    referer: 'here',
    route: `${upstream.host} rule 1`,
    backend: upstream.host,
    endpoint: `127.0.0.1:${upstream.port}`,
    listener: 'http',
    attempts: 1,
    epoch: 1,
    worker: 0,
    tlsVersion: null,
    serverName: null,
    clientSubject: null,
    retry: null,
    attemptFailure: null,
  });
  assert.ok(Date.parse(String(time)) >= startMs - 1000 && Date.parse(String(time)) <= Date.now() + 1000, String(time));
  assert.ok(Number(durationMs) >= Number(upstreamMs), `${durationMs} >= ${upstreamMs}`);
  assert.match(String(requestId), /^[0-9a-f-]{36}$/);
});

test('body bytes are counted without chunk framing', async () => {
  const upstream = lab.upstream();
  upstream.serve(() => 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n');
  const client = await lab.client();
  await client.send(
    `${request('POST /chunks', upstream.host, 'Transfer-Encoding: chunked')}2;ext=1\r\nab\r\n1\r\nc\r\n0\r\n\r\n`,
  );
  await client.response();
  const line = await logged('/chunks');
  assert.equal(line.bytesReceived, 3);
  assert.equal(line.bytesSent, 6);
});

test('a failed request is logged with its reason, and explain tells what happened to it', async (t) => {
  const upstream = lab.upstream();
  const client = await lab.client();
  await client.send(request('GET /broken', upstream.host));
  const wire = await upstream.connection();
  await wire.request();
  wire.close();
  const response = await client.response();
  const id = response.value('x-request-id')!;
  assert.match(response.body, new RegExp(`request id: ${id}\n$`));
  const line = await logged('/broken');
  assert.equal(line.status, 502);
  assert.equal(line.reason, 'UC');
  assert.equal(line.requestId, id);

  const { code, stdout, stderr } = await runToEnd(t, 'explain', id, '--admin', `127.0.0.1:${lab.adminPort}`);
  assert.equal(code, 0, stderr);
  assert.match(stdout, new RegExp(`asked for GET /broken of ${upstream.host} on listener "http"`));
  assert.match(stdout, new RegExp(`It went to endpoint 127\\.0\\.0\\.1:${upstream.port}\\.`));
  assert.match(stdout, /The client got status 502, made by this gateway/);
  assert.match(stdout, /Reason UC: The upstream closed its connection before its response was complete\./);
  assert.match(stdout, /The upstream finished its side of the connection \(FIN\)\./);
});

test('a truncated response keeps the status that was sent, and gets the reason', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  await client.send(request('GET /cut', upstream.host));
  const wire = await upstream.connection();
  await wire.request();
  await wire.send('HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345');
  await client.until('12345');
  wire.reset();
  await client.ended();
  const line = await logged('/cut');
  assert.equal(line.status, 200);
  assert.equal(line.reason, 'UC');
  assert.equal(line.bytesSent, 5);
});

test('a client that leaves is logged as such', async () => {
  const upstream = lab.upstream();
  const client = await lab.client();
  await client.send(request('GET /gone', upstream.host));
  await (await upstream.connection()).request();
  client.close();
  const line = await logged('/gone');
  assert.equal(line.status, 0);
  assert.equal(line.reason, 'DC');
});

test('an unknown id is said to be unknown', async (t) => {
  const admin = `127.0.0.1:${lab.adminPort}`;
  const { code, stderr } = await runToEnd(t, 'explain', '00000000-0000-4000-8000-000000000000', '--admin', admin);
  assert.equal(code, 1);
  assert.match(stderr, /^no record of request 00000000/);
});

test('/metrics counts requests by status, failures by reason, parse errors and bytes', async () => {
  const upstream = lab.upstream();
  upstream.serve(() => ok('0123456789'));
  const series = [
    'portcullis_requests_total{status_class="2xx"}',
    'portcullis_requests_total{status_class="4xx"}',
    'portcullis_request_failures_total{reason="NR"}',
    'portcullis_request_failures_total{reason="DPE"}',
    'portcullis_request_duration_seconds_count',
    'portcullis_downstream_connections_accepted_total',
    'portcullis_upstream_connections_opened_total',
    'portcullis_upstream_connection_reuses_total',
    'portcullis_downstream_bytes_total{direction="in"}',
  ];
  const read = (): Promise<number[]> => Promise.all(series.map((name) => lab.metric(name)));
  const before = await read();
  const good = request('GET /', upstream.host);
  const missing = request('GET /', 'unknown.test');
  const bad = 'GET / HTTP/1.1\r\nX Y: 1\r\n\r\n';
  const client = await lab.client();
  await client.send(good.repeat(7) + missing.repeat(2) + bad);
  await client.rest();
  const expected = [7, 3, 2, 1, 10, 1, 1, 6, 7 * good.length + 2 * missing.length + bad.length];
  let differences: number[] = [];
  // The last of them may be counted a moment after the connection has ended.
  await becomes('what is counted', async () => {
    differences = (await read()).map((value, i) => value - before[i]);
    return isDeepStrictEqual(differences, expected);
  }).catch(() => assert.deepEqual(differences, expected));
  const { body } = await get(lab.adminPort, '/metrics');
  assert.match(body, /^portcullis_request_parse_errors_total\{error="[a-z_]+"\} 1$/m);
});
