// What wrk is made to send, and how its figures are read. The first half needs wrk itself.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { type TestContext, test } from 'node:test';
import { describeErrors, errorCount } from '../../../bench/lib/figures.ts';
import { cleanUp, findExecutable } from '../../../bench/lib/processes.ts';
import { parseWrk, runWrk, type WrkOptions } from '../../../bench/lib/wrk.ts';

const withoutWrk = findExecutable('wrk') === null ? 'wrk is not installed' : false;

interface Seen {
  hosts: Set<string>;
  paths: Set<string>;
  headBytes: number;
  bodyBytes: Set<number>;
}

/** Runs wrk briefly against a server that answers `status`; what the server saw and wrk's figures. */
async function load(t: TestContext, options: Partial<WrkOptions>, status = 200) {
  const seen: Seen = { hosts: new Set(), paths: new Set(), headBytes: 0, bodyBytes: new Set() };
  const server = createServer((request, response) => {
    seen.hosts.add(request.headers.host ?? '');
    seen.paths.add(request.url ?? '');
    const fields = request.rawHeaders.reduce((bytes, text) => bytes + text.length + 2, 0);
    seen.headBytes = `${request.method} ${request.url} HTTP/1.1\r\n`.length + fields + 2;
    let bodyBytes = 0;
    request.on('data', (chunk: Buffer) => {
      bodyBytes += chunk.length;
    });
    request.on('end', () => {
      seen.bodyBytes.add(bodyBytes);
      response.writeHead(status, { 'content-length': 2 }).end('ok');
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => {
    server.close();
    server.closeAllConnections();
    cleanUp();
  });
  const { port } = server.address() as AddressInfo;
  const result = await runWrk({
    port,
    tls: false,
    path: '/some/path',
    kind: 'get',
    uploadBytes: 0,
    connections: 4,
    durationSeconds: 0.5,
    core: null,
    ...options,
  });
  return { seen, result };
}

test('a request has the size and path that the description promises', { skip: withoutWrk }, async (t) => {
  const { seen, result } = await load(t, {});
  assert.deepEqual([...seen.paths], ['/some/path']);
  assert.ok(seen.headBytes > 320 && seen.headBytes < 380, `${seen.headBytes} bytes`);
  assert.ok(result.requests > 0);
  assert.equal(errorCount(result.errors), 0);
});

test('an upload carries the whole body', { skip: withoutWrk }, async (t) => {
  const { seen } = await load(t, { kind: 'upload', uploadBytes: 70_000 });
  assert.deepEqual([...seen.bodyBytes], [70_000]);
});

test('the many-routes load visits many hostnames and every prefix', { skip: withoutWrk }, async (t) => {
  const { seen } = await load(t, { kind: 'routes' });
  assert.ok(seen.hosts.size > 50, `${seen.hosts.size} hosts`);
  assert.equal(seen.paths.size, 10);
});

test('answers with an error status are counted as errors', { skip: withoutWrk }, async (t) => {
  const { result } = await load(t, {}, 503);
  assert.ok(result.errors.status > 0);
  assert.match(describeErrors(result.errors), /^\d+ status$/);
});

test('output without the result line is no result', () => {
  assert.equal(parseWrk('unable to connect to 127.0.0.1:1 Connection refused\n'), null);
  assert.equal(parseWrk('BENCH-RESULT {broken\n'), null);
});
