// What the status of an RPC says about its endpoint, for outlier detection: as in Envoy, only that of an RPC which ends
// with its head.

import assert from 'node:assert/strict';
import { createServer, type ServerHttp2Session, type ServerHttp2Stream } from 'node:http2';
import type { AddressInfo } from 'node:net';
import { type TestContext, test } from 'node:test';
import { get } from '../support.ts';
import { EchoClient, grpcGateway } from './support.ts';

/** A server that ends each RPC in its own way. */
async function scriptedServer(t: TestContext, answer: (stream: ServerHttp2Stream) => void): Promise<number> {
  const server = createServer();
  const sessions = new Set<ServerHttp2Session>();
  server.on('session', (session) => {
    sessions.add(session);
    session.on('error', () => {});
  });
  server.on('stream', (stream: ServerHttp2Stream) => {
    stream.on('error', () => {});
    stream.resume();
    answer(stream);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.after(() => {
    server.close();
    for (const session of sessions) session.destroy();
  });
  return (server.address() as AddressInfo).port;
}

const head = { ':status': 200, 'content-type': 'application/grpc' };
const UNAVAILABLE = 14;

/** An empty message of an RPC. */
const message = Buffer.alloc(5);

/** How a server says that it is unavailable, and whether that makes its endpoint an outlier. */
const endings: [what: string, answer: (stream: ServerHttp2Stream) => void, ejects: boolean][] = [
  [
    'in the head, which is all of the answer',
    (stream) => stream.respond({ ...head, 'grpc-status': UNAVAILABLE }, { endStream: true }),
    true,
  ],
  [
    'in trailers after a message',
    (stream) => {
      stream.respond(head, { waitForTrailers: true });
      stream.on('wantTrailers', () => stream.sendTrailers({ 'grpc-status': UNAVAILABLE }));
      stream.end(message);
    },
    false,
  ],
  [
    'in trailers after a head and no message',
    (stream) => {
      stream.respond(head, { waitForTrailers: true });
      stream.on('wantTrailers', () => stream.sendTrailers({ 'grpc-status': UNAVAILABLE }));
      stream.end();
    },
    false,
  ],
];

for (const [what, answer, ejects] of endings) {
  test(`UNAVAILABLE ${what} ${ejects ? 'is a gateway failure' : 'is no failure'} of the endpoint`, async (t) => {
    const backend = 'outlierDetection: {consecutive5xx: 0, consecutiveGatewayFailures: 3, baseEjectionTime: 1h}';
    const { gateway, port } = await grpcGateway(t, [await scriptedServer(t, answer)], { backend });
    const client = new EchoClient(t, port);
    for (let i = 0; i < 4; i++) assert.equal((await client.unary(Buffer.from('x'))).status.code, UNAVAILABLE);
    const { body } = await get(await gateway.adminPort(), '/backends');
    const [endpoint] = (JSON.parse(body) as { backends: { endpoints: { circuitBreaker: string }[] }[] }).backends[0]!
      .endpoints;
    assert.equal(endpoint!.circuitBreaker, ejects ? 'open' : 'closed');
  });
}
