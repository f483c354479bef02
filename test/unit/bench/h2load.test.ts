// What h2load is made to send, and how its figures are read. The runs need h2load itself.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer, type IncomingHttpHeaders, type ServerHttp2Session, type ServerHttp2Stream } from 'node:http2';
import type { AddressInfo } from 'node:net';
import { type TestContext, test } from 'node:test';
import { errorCount } from '../../../bench/lib/figures.ts';
import { GRPC_PATH, grpcMessage } from '../../../bench/lib/grpc.ts';
import { type H2loadOptions, parseH2load, parseLog, runH2load } from '../../../bench/lib/h2load.ts';
import { cleanUp, findExecutable } from '../../../bench/lib/processes.ts';

const withoutH2load = findExecutable('h2load') === null ? 'h2load is not installed' : false;

const OUTPUT = `starting benchmark...
Main benchmark duration is over for thread #0. Stopping all clients.

finished in 1.50s, 30000.00 req/s, 5.94MB/s
requests: 45003 total, 45259 started, 45003 done, 45000 succeeded, 3 failed, 1 errored, 0 timeout
status codes: 45000 2xx, 0 3xx, 1 4xx, 1 5xx
traffic: 4.54MB (4760784) total, 2.23MB (2340000) headers (space savings 37.10%), 1.32MB (1380000) data
                     min         max         mean         sd        +/- sd
`;

test('requests, time and body bytes are those that h2load printed', () => {
  const figures = parseH2load(OUTPUT);
  assert.equal(figures?.requests, 45_002);
  assert.equal(figures?.durationUs, 1_500_000);
  assert.equal(figures?.bytes, 1_380_000);
});

test('failed streams and answers with an error status are errors, each counted once', () => {
  const errors = parseH2load(OUTPUT)?.errors;
  assert.deepEqual(errors, { connect: 0, read: 1, write: 0, timeout: 0, status: 2 });
});

test('a run in milliseconds is not taken for one in seconds', () => {
  assert.equal(parseH2load(OUTPUT.replace('1.50s', '764.82ms'))?.durationUs, 764_820);
});

test('output that lacks a line is no result', () => {
  for (const line of ['finished in', 'requests:', 'status codes:', 'traffic:']) {
    assert.equal(parseH2load(OUTPUT.replace(line, 'x')), null, line);
  }
});

test('latencies come sorted from the log, without failed streams', () => {
  assert.deepEqual([...parseLog('17\t200\t900\n18\t200\t80\n19\t-1\t5\n20\t404\t1000\n')], [80, 900, 1000]);
});

/** Runs h2load briefly against a server that answers `status`; what the server saw and h2load's figures. */
async function load(t: TestContext, options: Partial<H2loadOptions>, status = 200) {
  const seen = { headers: {} as IncomingHttpHeaders, bodies: new Set<string>(), sessions: 0, streamsMax: 0 };
  const sessions = new Set<ServerHttp2Session>();
  const server = createServer();
  server.on('session', (session) => {
    seen.sessions++;
    sessions.add(session);
    session.on('error', () => {});
  });
  const open = new Map<unknown, number>();
  server.on('stream', (stream: ServerHttp2Stream, headers) => {
    const { session } = stream;
    open.set(session, (open.get(session) ?? 0) + 1);
    seen.streamsMax = Math.max(seen.streamsMax, open.get(session) ?? 0);
    seen.headers = headers;
    const chunks: Buffer[] = [];
    stream.on('error', () => {});
    stream.on('data', (chunk: Buffer) => chunks.push(chunk));
    stream.on('end', () => {
      seen.bodies.add(Buffer.concat(chunks).toString('latin1'));
      open.set(session, (open.get(session) ?? 0) - 1);
      stream.respond({ ':status': status });
      stream.end('ok');
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => {
    server.close();
    for (const session of sessions) session.destroy();
    cleanUp();
  });
  const { port } = server.address() as AddressInfo;
  const common = { port, tls: false, path: '/some/path', kind: 'get', connections: 3, streams: 4 } as const;
  const figures = await runH2load({ ...common, durationSeconds: 1, core: null, ...options });
  return { seen, figures };
}

test('a GET has the path and the header fields of a browser, on as many connections as asked for', {
  skip: withoutH2load,
}, async (t) => {
  const { seen, figures } = await load(t, {});
  assert.equal(seen.headers[':method'], 'GET');
  assert.equal(seen.headers[':path'], '/some/path');
  assert.match(String(seen.headers['user-agent']), /^Mozilla/);
  assert.match(String(seen.headers.cookie), /session=/);
  assert.equal(seen.sessions, 3);
  assert.ok(seen.streamsMax <= 4);
  assert.ok(figures.requests > 0);
  assert.ok(figures.latencyP50Us > 0 && figures.latencyP99Us >= figures.latencyP50Us);
  assert.equal(errorCount(figures.errors), 0);
});

test('a gRPC call carries one whole message', { skip: withoutH2load }, async (t) => {
  const { seen } = await load(t, { kind: 'grpc', path: GRPC_PATH });
  assert.equal(seen.headers[':method'], 'POST');
  assert.equal(seen.headers[':path'], GRPC_PATH);
  assert.equal(seen.headers['content-type'], 'application/grpc');
  assert.equal(seen.headers.te, 'trailers');
  // Calls that were cut off by the end of the run may have sent nothing.
  seen.bodies.delete('');
  assert.deepEqual([...seen.bodies], [grpcMessage().toString('latin1')]);
});

test('answers with an error status are errors', { skip: withoutH2load }, async (t) => {
  const { figures } = await load(t, {}, 503);
  assert.ok(figures.errors.status > 0);
});
