// One check at a time against real servers: node's own of every protocol, and grpc-js.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { createServer, type IncomingMessage, type RequestListener } from 'node:http';
import { createServer as createHttp2Server, createSecureServer, type ServerHttp2Stream } from 'node:http2';
import { createServer as createHttpsServer } from 'node:https';
import { createServer as createTcpServer, type Server } from 'node:net';
import { test } from 'node:test';
import { promisify } from 'node:util';
import { Server as GrpcServer, ServerCredentials } from '@grpc/grpc-js';
import type { HealthCheckConfig } from '../../../../config/config.ts';
import type { BackendTlsSettings } from '../../../../core/workers/snapshot.ts';
import { healthRequest, readHealthResponse } from '../../../../gateway/health/grpc-health.ts';
import { type ProbeTarget, probe, probeThrough } from '../../../../gateway/health/probes.ts';
import { portOf } from '../../../support/port-of.ts';
import { makeCertificate } from '../../core/tls/certificates.ts';

const httpCheck: HealthCheckConfig = {
  type: 'HTTP',
  path: '/healthz?deep=1',
  host: '',
  method: 'GET',
  headers: [],
  expectedStatuses: [[200, 299]],
  grpcService: '',
  port: 0,
  intervalMs: 1000,
  timeoutMs: 5000,
  jitterPercent: 0,
  unhealthyThreshold: 3,
  healthyThreshold: 2,
};

function check(port: number, more: Partial<ProbeTarget> = {}, signal = new AbortController().signal) {
  const plain = { host: '127.0.0.1', port, proxyProtocol: 0 as const, tls: null, identity: null };
  const target = { ...plain, http2: false, check: httpCheck };
  return probe({ ...target, ...more }, signal);
}

const success = { outcome: 'success', cause: '' };

test('an HTTP check asks as configured, and takes the expected statuses only', async (t) => {
  const seen: IncomingMessage[] = [];
  let status = 200;
  const port = await portOf(
    t,
    createServer((incoming, response) => {
      seen.push(incoming);
      response.statusCode = status;
      response.end('well');
    }),
  );
  assert.deepEqual(await check(port), success);
  assert.equal(seen[0]!.url, '/healthz?deep=1');
  assert.equal(seen[0]!.headers.host, `127.0.0.1:${port}`);
  const special: HealthCheckConfig = {
    ...httpCheck,
    method: 'HEAD',
    host: 'health.test',
    headers: [
      { name: 'X-A', value: '1' },
      { name: 'x-a', value: '2' },
    ],
    expectedStatuses: [
      [204, 204],
      [301, 308],
    ],
  };
  status = 302;
  assert.deepEqual(await check(port, { check: special }), success);
  assert.equal(seen[1]!.method, 'HEAD');
  assert.equal(seen[1]!.headers.host, 'health.test');
  assert.equal(seen[1]!.headers['x-a'], '1, 2');
  status = 200;
  assert.deepEqual(await check(port, { check: special }), {
    outcome: 'refusal',
    cause: 'it answered with status 200',
  });
});

test('no answer is a failure with its cause', async (t) => {
  const gone = createTcpServer();
  const gonePort = await portOf(t, gone);
  await new Promise((resolve) => gone.close(resolve));
  assert.deepEqual(await check(gonePort), { outcome: 'failure', cause: 'connection refused' });

  const resetting = await portOf(
    t,
    createTcpServer((socket) => socket.once('data', () => socket.resetAndDestroy())),
  );
  assert.deepEqual(await check(resetting), { outcome: 'failure', cause: 'connection reset' });

  const closing = await portOf(
    t,
    createTcpServer((socket) => socket.once('data', () => socket.end())),
  );
  assert.equal((await check(closing)).outcome, 'failure');

  const other = await portOf(
    t,
    createTcpServer((socket) => socket.end('SSH-2.0-x\r\n')),
  );
  assert.match((await check(other)).cause, /Parse Error/);
});

test('what this machine has run out of says nothing of the endpoint', async () => {
  const target = { host: '127.0.0.1', port: 1, proxyProtocol: 0 as const, tls: null, identity: null };
  const resultOf = (code: string, signal = new AbortController().signal) =>
    probeThrough(() => Promise.reject(Object.assign(new Error(`connect ${code}`), { code })))(
      { ...target, http2: false, check: httpCheck },
      signal,
    );
  for (const code of ['EMFILE', 'ENFILE', 'ENOBUFS', 'ENOMEM', 'EADDRNOTAVAIL']) {
    const { outcome, cause } = await resultOf(code);
    assert.equal(outcome, null);
    assert.match(cause, new RegExp(`^not checked: .+\\(${code}\\)$`));
  }
  assert.equal((await resultOf('EMFILE', AbortSignal.abort())).outcome, null);
  assert.deepEqual(await resultOf('ENETUNREACH'), { outcome: 'failure', cause: 'no route to the address' });
});

test('a check of a process without descriptors is not made', async () => {
  const program = `
    import { openSync } from 'node:fs';
    import { probe } from ${JSON.stringify(import.meta.resolve('../../../../gateway/health/probes.ts'))};
    const check = ${JSON.stringify(httpCheck)};
    const place = { host: '127.0.0.1', port: 1, proxyProtocol: 0, tls: null, identity: null };
    // A thread of Node.js may close a file in between: then there was a descriptor, and the port is closed.
    let result;
    do {
      try { for (;;) openSync('/dev/null'); } catch (error) { if (error.code !== 'EMFILE') throw error; }
      result = await probe({ ...place, http2: false, check }, new AbortController().signal);
    } while (result.cause === 'connection refused');
    process.stdout.write(JSON.stringify(result));
  `;
  const limited = ['-c', 'ulimit -n 64; exec "$@"', 'sh', process.execPath, '--input-type=module', '-e', program];
  const { stdout } = await promisify(execFile)('sh', limited, { timeout: 60_000 });
  assert.deepEqual(JSON.parse(stdout), {
    outcome: null,
    cause: 'not checked: the process has no more file descriptors (EMFILE)',
  });
});

test('an answer whose body does not end in time is none', async (t) => {
  const controller = new AbortController();
  const port = await portOf(
    t,
    createServer((_incoming, response) => {
      response.write('half');
      response.on('close', () => {});
      setImmediate(() => controller.abort());
    }),
  );
  assert.deepEqual(await check(port, {}, controller.signal), {
    outcome: 'timeout',
    cause: 'no answer within 5000 ms',
  });
});

test('a TCP check needs a connection, no answer', async (t) => {
  const port = await portOf(t, createTcpServer());
  assert.deepEqual(await check(port, { check: { ...httpCheck, type: 'TCP' } }), success);
});

test('a backend that wants the PROXY protocol gets a header that speaks of no client', async (t) => {
  for (const [version, expected] of [
    [1, 'PROXY UNKNOWN\r\nGET /'],
    [2, '\r\n\r\n\0\r\nQUIT\n\x20\0\0\0GET /'],
  ] as const) {
    let received = '';
    const server = createTcpServer((socket) => {
      socket.on('data', (chunk) => {
        received += chunk.toString('latin1');
        if (received.endsWith('\r\n\r\n')) socket.end('HTTP/1.1 204 No Content\r\n\r\n');
      });
    });
    assert.deepEqual(await check(await portOf(t, server), { proxyProtocol: version }), success);
    assert.ok(received.startsWith(expected), JSON.stringify(received));
  }
});

const authority = makeCertificate({ name: 'authority', ca: true });
const serverCertificate = makeCertificate({
  name: 'server',
  issuer: authority,
  names: ['dns:app.test', 'ip:127.0.0.1', 'uri:spiffe://test/app'],
});
const clientCertificate = makeCertificate({ name: 'client', issuer: authority, usage: 'client' });
const serverTls = { cert: serverCertificate.pem, key: serverCertificate.keyPem };

function tlsOf(more: Partial<BackendTlsSettings> = {}): BackendTlsSettings {
  const settings: BackendTlsSettings = {
    key: '',
    serverName: 'app.test',
    verifyNames: null,
    caPem: authority.pem,
    certificate: null,
    verify: true,
    minVersion: '1.2',
    maxVersion: '1.3',
    ...more,
  };
  return { ...settings, key: JSON.stringify(settings) };
}

const hello: RequestListener = (_incoming, response) => response.end('well');

test('an HTTPS check trusts what the backend is trusted for, and nothing else', async (t) => {
  const port = await portOf(t, createHttpsServer(serverTls, hello));
  assert.deepEqual(await check(port, { tls: tlsOf() }), success);
  assert.deepEqual(await check(port, { tls: tlsOf({ serverName: '127.0.0.1' }) }), success);
  assert.deepEqual(
    await check(port, { tls: tlsOf({ serverName: 'x.test', verifyNames: ['spiffe://test/app'] }) }),
    success,
  );
  assert.deepEqual(await check(port, { tls: tlsOf({ serverName: 'other.test' }) }), {
    outcome: 'failure',
    cause: 'the certificate is not for other.test',
  });
  const stranger = makeCertificate({ name: 'stranger', ca: true });
  assert.match((await check(port, { tls: tlsOf({ caPem: stranger.pem }) })).cause, /certificate/);
  const careless = tlsOf({ caPem: stranger.pem, serverName: 'other.test', verify: false });
  assert.deepEqual(await check(port, { tls: careless }), success);
});

test('the environment cannot turn the verification of an HTTPS check off', async (t) => {
  const port = await portOf(t, createHttpsServer(serverTls, hello));
  const { NODE_TLS_REJECT_UNAUTHORIZED: before } = process.env;
  process.env.NODE_TLS_REJECT_UNAUTHORIZED = '0';
  t.after(() => {
    if (before === undefined) delete process.env.NODE_TLS_REJECT_UNAUTHORIZED;
    else process.env.NODE_TLS_REJECT_UNAUTHORIZED = before;
  });
  const stranger = makeCertificate({ name: 'stranger', ca: true });
  assert.match((await check(port, { tls: tlsOf({ caPem: stranger.pem }) })).cause, /certificate/);
  assert.equal((await check(port, { tls: tlsOf({ serverName: 'other.test' }) })).outcome, 'failure');
});

test('an HTTPS check shows the client certificate of the backend', async (t) => {
  const options = { ...serverTls, ca: authority.pem, requestCert: true, rejectUnauthorized: true };
  const port = await portOf(t, createHttpsServer(options, hello));
  assert.equal((await check(port, { tls: tlsOf() })).outcome, 'failure');
  const certificate = { chainPem: clientCertificate.pem, keyPem: clientCertificate.keyPem };
  assert.deepEqual(await check(port, { tls: tlsOf({ certificate }) }), success);
});

test('an HTTP check speaks HTTP/2 to backends that do, with and without TLS', async (t) => {
  const seen: string[] = [];
  const answer = (stream: ServerHttp2Stream, headers: Record<string, unknown>): void => {
    seen.push(`${headers[':scheme']} ${headers[':authority']} ${headers[':path']}`);
    stream.on('error', () => {});
    stream.respond({ ':status': 200 });
    stream.end('well');
  };
  const plain = await portOf(t, createHttp2Server().on('stream', answer) as unknown as Server);
  assert.deepEqual(await check(plain, { http2: true }), success);
  const secure = await portOf(t, createSecureServer(serverTls).on('stream', answer) as unknown as Server);
  assert.deepEqual(await check(secure, { http2: true, tls: tlsOf() }), success);
  assert.deepEqual(seen, [`http 127.0.0.1:${plain} /healthz?deep=1`, 'https app.test /healthz?deep=1']);
  const http1 = await portOf(t, createServer(hello));
  assert.equal((await check(http1, { http2: true })).outcome, 'failure');
});

test('a gRPC check asks the health service, and SERVING alone is well', async (t) => {
  const states: Record<string, number> = { '': 1, 'shop.v1.Cart': 2 };
  const server = new GrpcServer();
  const method = {
    path: '/grpc.health.v1.Health/Check',
    requestStream: false as const,
    responseStream: false as const,
    requestSerialize: (bytes: Buffer) => bytes,
    requestDeserialize: (bytes: Buffer) => bytes,
    responseSerialize: (bytes: Buffer) => bytes,
    responseDeserialize: (bytes: Buffer) => bytes,
  };
  server.addService(
    { check: method },
    {
      check: (call: { request: Buffer }, reply: (error: object | null, bytes?: Buffer) => void) => {
        const name = call.request.length === 0 ? '' : call.request.toString('utf8', 2);
        const state = states[name];
        if (state === undefined) reply({ code: 5, details: 'unknown service' });
        else reply(null, Buffer.of(0x08, state));
      },
    },
  );
  const port = await new Promise<number>((resolve, reject) => {
    server.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, bound) =>
      error === null ? resolve(bound) : reject(error),
    );
  });
  t.after(() => server.forceShutdown());
  const ask = (grpcService: string) => check(port, { http2: true, check: { ...httpCheck, type: 'GRPC', grpcService } });
  assert.deepEqual(await ask(''), success);
  assert.deepEqual(await ask('shop.v1.Cart'), { outcome: 'refusal', cause: 'it says that it is NOT_SERVING' });
  assert.deepEqual(await ask('shop.v1.None'), {
    outcome: 'refusal',
    cause: 'it answered with gRPC status 5 (unknown service)',
  });
});

test('a gRPC check of a server that speaks no gRPC is not well', async (t) => {
  const plain = await portOf(
    t,
    createHttp2Server().on('stream', (stream: ServerHttp2Stream) => {
      stream.respond({ ':status': 404 });
      stream.end();
    }) as unknown as Server,
  );
  const grpc = { http2: true, check: { ...httpCheck, type: 'GRPC' as const } };
  assert.deepEqual(await check(plain, grpc), { outcome: 'refusal', cause: 'it answered with HTTP status 404' });
});

test('messages of the health protocol', () => {
  assert.deepEqual([...healthRequest('')], [0, 0, 0, 0, 0]);
  assert.deepEqual([...healthRequest('ab')], [0, 0, 0, 0, 4, 10, 2, 97, 98]);
  assert.equal(healthRequest('x'.repeat(200)).length, 5 + 3 + 200);
  const read = (...bytes: number[]): string | undefined =>
    readHealthResponse(Uint8Array.from([0, 0, 0, 0, bytes.length, ...bytes]));
  assert.equal(read(8, 1), 'SERVING');
  assert.equal(read(), 'UNKNOWN');
  assert.equal(read(8, 3), 'SERVICE_UNKNOWN');
  // Fields that are not known are passed over.
  assert.equal(read(18, 2, 9, 9, 8, 1, 29, 1, 2, 3, 4), 'SERVING');
  for (const bad of [[8], [8, 0x80], [18, 5, 1], [11], [8, 1, 29, 1]]) assert.equal(read(...bad), undefined, `${bad}`);
  assert.equal(readHealthResponse(Uint8Array.from([1, 0, 0, 0, 2, 8, 1])), undefined);
  assert.equal(readHealthResponse(Uint8Array.from([0, 0, 0, 0, 9, 8, 1])), undefined);
});
