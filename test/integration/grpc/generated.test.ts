// Answers of the gateway itself, as a real gRPC client understands them.

import assert from 'node:assert/strict';
import { connect } from 'node:http2';
import { createServer, type Socket } from 'node:net';
import { type TestContext, test } from 'node:test';
import { status as Code } from '@grpc/grpc-js';
import { SharedGateway } from '../shared-gateway.ts';
import { CLOSED_PORTS, type Lifetime } from '../support.ts';
import { assertGenerated, EchoClient, grpcGateway, limited, service, startServer } from './support.ts';

const message = Buffer.from('hello');

/** A port on which connections are accepted and nothing is ever said. */
async function silentPort(t: Lifetime): Promise<number> {
  const sockets: Socket[] = [];
  const server = createServer((socket) => {
    sockets.push(socket);
    socket.on('error', () => {});
    socket.resume();
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.after(() => {
    server.close();
    for (const socket of sockets) socket.destroy();
  });
  const address = server.address();
  assert.ok(typeof address === 'object' && address !== null);
  return address.port;
}

/** The gateway of the tests whose backend is not there, or says nothing. */
const shared = new SharedGateway('responseReasonHeader: x-reason\naccessLog: {path: "-", format: json}', 1);

/** A listener whose route of the service has a backend at a port, and further keys. */
function serving(port: (file: Lifetime) => Promise<number>, rule = ''): ReturnType<SharedGateway['part']> {
  return shared.part(async (name, file) => ({
    routes: `
  - name: ${name}
    listeners: [${name}]
    rules:
      - {matches: [{path: {type: PathPrefix, value: /test.Echo}}], backendRefs: [{name: ${name}}]${rule}}
`,
    backends: `  - {name: ${name}, protocol: h2c, endpoints: ["127.0.0.1:${await port(file)}"]}`,
  }));
}

const closed = serving(async () => CLOSED_PORTS[0]);
const silent = serving(silentPort);
const impatient = serving(silentPort, ', timeouts: {request: 150ms}');
const patient = serving(silentPort, ', timeouts: {request: 60s}');

test('a method without a route is UNIMPLEMENTED', async (t) => {
  const { port } = await closed();
  const { status } = await new EchoClient(t, port).unary(message, {}, '/other.Service/Method');
  assertGenerated(status, Code.UNIMPLEMENTED, 'NR');
  assert.deepEqual(status.metadata.get('x-reason'), ['NR']);
  // The message names the id under which the gateway knows the request.
  const [id] = status.metadata.get('x-request-id');
  assert.match(status.details, new RegExp(` Request id: ${id}$`));
});

test('a server that cannot be reached is UNAVAILABLE', async (t) => {
  const { port } = await closed();
  const { status } = await new EchoClient(t, port).unary(message);
  assertGenerated(status, Code.UNAVAILABLE, 'UF');
});

test('the timeout of the rule is DEADLINE_EXCEEDED, for the client as for the log', async (t) => {
  const { port, gateway } = await impatient();
  const { status } = await new EchoClient(t, port).unary(message);
  assertGenerated(status, Code.DEADLINE_EXCEEDED, 'UT');
  await gateway.printed(/request_timer/i);
});

test('a grpc-timeout that runs out is DEADLINE_EXCEEDED, and the log names it', async (t) => {
  const { port, gateway } = await patient();
  // A client that does not watch its deadline itself.
  const answer = await rawCall(t, port, { 'grpc-timeout': '150m' });
  assert.deepEqual([answer[':status'], answer['grpc-status']], [200, '4']);
  await gateway.printed(/grpc_timer/i);
});

test('a message above the limit of the gateway is RESOURCE_EXHAUSTED', async (t) => {
  const { port: serverPort } = await startServer(t, { unary: () => {} });
  const { port } = await grpcGateway(t, [serverPort], { top: 'limits: {maxRequestBodySize: 64KiB}' });
  const client = new EchoClient(t, port);
  const { status } = await client.unary(Buffer.alloc(100_000));
  assertGenerated(status, Code.RESOURCE_EXHAUSTED, 'RQL');
});

test('a malformed grpc-timeout is refused with a sentence that says so', async (t) => {
  const { port } = await silent();
  for (const timeout of ['soon', '5', '123456789m']) {
    const answer = await rawCall(t, port, { 'grpc-timeout': timeout });
    assert.deepEqual([answer[':status'], answer['grpc-status']], [200, '13'], timeout);
    assert.match(String(answer['grpc-message']), /^DPE: .*grpc-timeout/);
    assert.equal(answer['content-type'], 'application/grpc');
  }
});

test('other requests on the same connection get answers of HTTP', async (t) => {
  const { port } = await closed();
  const answer = await rawCall(t, port, { 'content-type': 'application/json' });
  assert.equal(answer[':status'], 503);
  assert.equal(answer['grpc-status'], undefined);
  assert.match(String(answer['content-type']), /^text\/plain/);
});

test('a server that comes back is used again', async (t) => {
  const first = await startServer(t, {});
  const { port } = await grpcGateway(t, [first.port]);
  const client = new EchoClient(t, port);
  // The server's own answer: it has no such method.
  assert.equal((await client.unary(message)).status.code, Code.UNIMPLEMENTED);
  first.server.forceShutdown();
  const down = (await client.unary(message)).status;
  assert.equal(down.code, Code.UNAVAILABLE, down.details);
  await startServer(
    t,
    { unary: (_call: unknown, done: (e: null, b: Buffer) => void) => done(null, message) },
    {},
    first.port,
  );
  assert.deepEqual((await client.unary(message)).message, message);
});

/** Response head of an RPC made by hand, whose one message is empty. */
async function rawCall(
  t: TestContext,
  port: number,
  fields: Record<string, string>,
): Promise<Record<string, string | number | string[] | undefined>> {
  const session = connect(`http://127.0.0.1:${port}`);
  // The gateway may be gone before it.
  session.on('error', () => {});
  t.after(() => session.destroy());
  const stream = session.request({
    ':method': 'POST',
    ':path': service.unary.path,
    'content-type': 'application/grpc',
    te: 'trailers',
    ...fields,
  });
  stream.resume();
  stream.on('error', () => {});
  stream.end(Buffer.alloc(5));
  return limited(new Promise((resolve) => stream.on('response', resolve)));
}
