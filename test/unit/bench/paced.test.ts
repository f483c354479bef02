// The load that does not wait for answers: how many there are, where they go, and what their latencies are counted from.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer, type RequestListener } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import { type TestContext, test } from 'node:test';
import { runPaced } from '../../../bench/lib/paced.ts';

async function serve(t: TestContext, handler: RequestListener): Promise<number> {
  const server = createServer(handler).listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => server.closeAllConnections());
  t.after(() => server.close());
  return (server.address() as AddressInfo).port;
}

const load = { host: '127.0.0.1', path: '/some/path', durationSeconds: 0.5, core: null, arrivals: 'random' as const };

test('paced requests come at the rate that was asked for, on so many connections, and are all answered', async (t) => {
  const paths = new Set<string>();
  const ports = new Set<number>();
  let served = 0;
  const port = await serve(t, (request, response) => {
    served++;
    paths.add(request.url!);
    ports.add(request.socket.remotePort!);
    response.setHeader('Content-Length', 3).end('abc');
  });
  const figures = await runPaced({ ...load, port, connections: 3, requestsPerSecond: 200 });
  assert.equal(figures.requests, served);
  assert.equal(figures.bytes, served * 3);
  // 300 are due on average; this far off is as good as impossible, and the arrivals are always the same.
  assert.ok(served > 220 && served < 380, `${served} requests`);
  assert.deepEqual([...paths], ['/some/path']);
  assert.ok(ports.size <= 3);
  assert.deepEqual(Object.values(figures.errors), [0, 0, 0, 0, 0]);
  assert.ok(figures.latencyP99Us >= figures.latencyP50Us && figures.latencyP50Us > 0);
});

test('a request that finds no free connection is late from the moment it was due', async (t) => {
  const port = await serve(t, (_request, response) => {
    setTimeout(() => response.setHeader('Content-Length', 0).end(), 50);
  });
  // One connection takes less than 20 a second, so the queue grows, but not beyond what is waited for in the end.
  const run = () => runPaced({ ...load, port, connections: 1, requestsPerSecond: 30 });
  let figures = await run();
  // On a busy machine none of those that count may have been answered, so that there is no quantile.
  for (let tries = 0; !(figures.latencyP50Us > 0) && tries < 10; tries++) figures = await run();
  assert.ok(figures.latencyP50Us > 200_000, `p50 is ${figures.latencyP50Us} us`);
});

test('error statuses and lost connections are counted', async (t) => {
  let served = 0;
  const port = await serve(t, (_request, response) => {
    if (++served > 40) response.destroy();
    else response.writeHead(503, { 'Content-Length': 0 }).end();
  });
  const figures = await runPaced({ ...load, port, connections: 2, requestsPerSecond: 100 });
  assert.equal(figures.requests, 40);
  assert.equal(figures.errors.status, 40);
  assert.equal(figures.errors.read, 2);
  assert.ok(figures.errors.timeout > 0, 'the requests that found no connection are not missed');
});

test('a connection that ends while it is idle is an error, and the others take its requests', async (t) => {
  const sockets: Socket[] = [];
  let served = 0;
  const port = await serve(t, ({ socket }, response) => {
    if (!sockets.includes(socket)) sockets.push(socket);
    response.setHeader('Content-Length', 0).end();
    // Its answer has been taken when the next one is asked for.
    if (++served === 20) for (const other of sockets) if (other !== socket) other.destroy();
  });
  const figures = await runPaced({ ...load, port, connections: 2, requestsPerSecond: 40 });
  assert.equal(figures.requests, served);
  assert.ok(served > 30, `${served} requests`);
  assert.deepEqual(figures.errors, { connect: 0, read: 1, write: 0, timeout: 0, status: 0 });
});

test('a server that is not there is an error', async () => {
  await assert.rejects(
    runPaced({ ...load, port: 1, connections: 1, requestsPerSecond: 10 }),
    /cannot connect to 127\.0\.0\.1:1/,
  );
});
