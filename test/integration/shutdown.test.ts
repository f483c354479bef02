// SIGTERM, SIGINT and what becomes of open connections.

import assert from 'node:assert/strict';
import type { ServerResponse } from 'node:http';
import { connect } from 'node:net';
import { type TestContext, test } from 'node:test';
import {
  type Answer,
  type Gateway,
  get,
  Load,
  namedUpstream,
  simpleConfig,
  startGateway,
  startUpstream,
} from './support.ts';

/** A gateway with one request in flight whose response the test holds back. */
interface InFlight {
  gateway: Gateway;
  port: number;
  answer: Promise<Answer>;
  response: ServerResponse;
}

async function requestInFlight(t: TestContext, extra = ''): Promise<InFlight> {
  let arrived: (response: ServerResponse) => void = () => {};
  const arrival = new Promise<ServerResponse>((resolve) => {
    arrived = resolve;
  });
  const upstream = await startUpstream(t, (incoming, response) => {
    incoming.resume();
    arrived(response);
  });
  const gateway = startGateway(t, simpleConfig(upstream, extra));
  const port = await gateway.port();
  await gateway.serving();
  const answer = get(port);
  // Tests look at it only after the gateway has ended.
  answer.catch(() => {});
  return { gateway, port, answer, response: await arrival };
}

/** Waits until new connections are refused. */
async function refused(port: number): Promise<void> {
  for (;;) {
    const code = await new Promise<string>((resolve) => {
      const socket = connect(port, '127.0.0.1');
      socket.once('connect', () => {
        socket.destroy();
        resolve('');
      });
      socket.once('error', (error: NodeJS.ErrnoException) => resolve(error.code!));
    });
    if (code === 'ECONNREFUSED') return;
  }
}

test('SIGTERM refuses new clients, lets the slow response end, and exits with 0', async (t) => {
  const { gateway, port, answer, response } = await requestInFlight(t);
  gateway.kill('SIGTERM');
  await gateway.log(/info draining timeoutMs=30000$/);
  await refused(port);
  assert.equal((await get(await gateway.adminPort(), '/readyz')).status, 503);

  response.write('half ');
  response.end('and half');
  const { status, headers, body } = await answer;
  assert.equal(status, 200);
  assert.equal(body, 'half and half');
  assert.equal(headers.connection, 'close');
  const { code } = await gateway.finished;
  assert.equal(code, 0);
  assert.match(gateway.stderr, /info drained$/m);
});

test('SIGTERM under load fails no request that was accepted', async (t) => {
  const gateway = startGateway(t, simpleConfig(await namedUpstream(t, 'hello')));
  const port = await gateway.port();
  const load = new Load(port, 6);
  await load.more(60);
  gateway.kill('SIGTERM');
  const { code } = await gateway.finished;
  // A connect that fails, by refusal or by reset, has sent no request; anything later has lost one.
  await load.stopAllowing(/connect (ECONNREFUSED|ECONNRESET)/);
  assert.equal(code, 0);
});

test('an idle kept-alive connection does not hold up the end', async (t) => {
  const gateway = startGateway(t, simpleConfig(await namedUpstream(t, 'hello')));
  const socket = connect(await gateway.port(), '127.0.0.1');
  t.after(() => socket.destroy());
  socket.write('GET / HTTP/1.1\r\nHost: a\r\n\r\n');
  await new Promise((resolve) => socket.once('data', resolve));
  const ended = new Promise<void>((resolve, reject) => socket.resume().once('end', resolve).once('error', reject));
  gateway.kill('SIGTERM');
  await ended;
  assert.equal((await gateway.finished).code, 0);
});

test('a response that outlasts drainTimeout is cut and the exit code says so', async (t) => {
  const { gateway, answer } = await requestInFlight(t, 'drainTimeout: 300ms');
  gateway.kill('SIGTERM');
  const { code, stderr } = await gateway.finished;
  assert.equal(code, 6);
  assert.match(stderr, /warn drain timed out connectionsCut=1$/m);
  // Either a generated error response or a closed connection, but nothing that looks complete.
  const outcome = await answer.then(
    ({ status }) => status,
    () => 0,
  );
  assert.notEqual(outcome, 200);
});

test('a second SIGTERM stops at once', async (t) => {
  const { gateway } = await requestInFlight(t);
  gateway.kill('SIGTERM');
  await gateway.log(/info draining/);
  gateway.kill('SIGTERM');
  const { code, stderr } = await gateway.finished;
  assert.equal(code, 6);
  assert.match(stderr, /info stopping at once cause="a second SIGTERM"$/m);
});

test('SIGINT stops at once with a request in flight', async (t) => {
  const { gateway } = await requestInFlight(t);
  gateway.kill('SIGINT');
  const { code, signal, stderr } = await gateway.finished;
  assert.equal(signal, null);
  assert.equal(code, 6);
  assert.match(stderr, /info stopping at once cause=SIGINT$/m);
});
