// The load of handshakes: every connection is new, and of the kind that was asked for.

import assert from 'node:assert/strict';
import { constants } from 'node:crypto';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import type { AddressInfo } from 'node:net';
import { type TestContext, test } from 'node:test';
import { createServer, type TlsOptions } from 'node:tls';
import { certificateFiles } from '../../../bench/lib/certificate.ts';
import { runHandshakes } from '../../../bench/lib/handshakes.ts';
import { cleanUp, findExecutable } from '../../../bench/lib/processes.ts';

const withoutOpenssl = findExecutable('openssl') === null ? 'openssl is not installed' : false;

/** A server that answers one request with `status` and closes; its port and what it saw. */
async function serve(t: TestContext, options: TlsOptions = {}, status = 200) {
  const files = await certificateFiles();
  const seen = { full: 0, resumed: 0, requests: new Set<string>(), serverNames: new Set<unknown>() };
  const pair = { cert: readFileSync(files.certificate), key: readFileSync(files.key) };
  const server = createServer({ ...pair, ...options }, (socket) => {
    if (socket.isSessionReused()) seen.resumed++;
    else seen.full++;
    seen.serverNames.add((socket as { servername?: unknown }).servername);
    socket.on('error', () => {});
    socket.once('data', (chunk: Buffer) => {
      seen.requests.add(chunk.toString('latin1'));
      socket.end(`HTTP/1.1 ${status} X\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc`);
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => server.close());
  return { port: (server.address() as AddressInfo).port, seen };
}

function run(port: number, resumed: boolean) {
  return runHandshakes({ port, path: '/some/path', resumed, connections: 2, durationSeconds: 0.5, core: null });
}

test.after(cleanUp);

test('full handshakes are all full, with SNI and one request each', { skip: withoutOpenssl }, async (t) => {
  const { port, seen } = await serve(t);
  const figures = await run(port, false);
  assert.ok(figures.requests > 0);
  assert.equal(seen.full, figures.requests);
  assert.equal(seen.resumed, 0);
  assert.equal(figures.bytes, figures.requests * 3);
  assert.deepEqual([...seen.serverNames], ['localhost']);
  const [request] = seen.requests;
  assert.match(request, /^GET \/some\/path HTTP\/1\.1\r\n/);
  assert.match(request, /\r\nConnection: close\r\n\r\n$/);
});

test('resumed handshakes are all resumed but the first of each client', { skip: withoutOpenssl }, async (t) => {
  const { port, seen } = await serve(t);
  const figures = await run(port, true);
  assert.ok(seen.full <= 2, `${seen.full} full handshakes`);
  assert.ok(seen.resumed > 0);
  assert.equal(seen.full + seen.resumed, figures.requests);
});

test('a server that resumes nothing does not pass for one that does', { skip: withoutOpenssl }, async (t) => {
  const { port } = await serve(t, { secureOptions: constants.SSL_OP_NO_TICKET });
  await assert.rejects(run(port, true), /handshakes were not resumed/);
});

test('answers with an error status are errors, and a run of nothing else has no figures', {
  skip: withoutOpenssl,
}, async (t) => {
  const { port } = await serve(t, {}, 503);
  await assert.rejects(run(port, false), /no handshake succeeded: HTTP\/1\.1 503/);
});

test('a server without TLS 1.3 has no figures', { skip: withoutOpenssl }, async (t) => {
  const { port } = await serve(t, { maxVersion: 'TLSv1.2' });
  await assert.rejects(run(port, false), /no handshake succeeded/);
});
