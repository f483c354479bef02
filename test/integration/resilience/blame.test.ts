// What is not the endpoint's fault does not count against it: clients that do not send, and tunnels
// that last.

import assert from 'node:assert/strict';
import { connect, createServer, type Socket } from 'node:net';
import { type TestContext, test } from 'node:test';
import { freePort, get, OWN_HOST, startGateway, startUpstream } from '../support.ts';

/** Ejections so far, of all causes. */
async function ejections(admin: number): Promise<number> {
  const { body } = await get(admin, '/metrics');
  const lines = [...body.matchAll(/^portcullis_outlier_ejections_total\{.*\} (\d+)$/gm)];
  assert.ok(lines.length > 0, 'the metric is there');
  return lines.reduce((sum, [, count]) => sum + Number(count), 0);
}

/** Sends text on a connection of its own, and reads until the other side closes it. */
function exchange(t: TestContext, port: number, text: string): Promise<string> {
  return new Promise((resolve) => {
    const socket: Socket = connect(port, '127.0.0.1', () => socket.write(text));
    t.after(() => socket.destroy());
    let answer = '';
    socket.on('data', (chunk) => (answer += chunk.toString('latin1')));
    socket.on('close', () => resolve(answer));
    socket.on('error', () => {});
  });
}

test('clients that do not send their bodies in time eject no endpoint', async (t) => {
  const upstream = await startUpstream(t, (incoming, response) => {
    incoming.resume();
    incoming.on('end', () => response.end('ok'));
    incoming.on('error', () => {});
  });
  const gateway = startGateway(
    t,
    `
workers: 1
admin: {address: "127.0.0.1:0"}
listeners: [{name: http, address: "127.0.0.1:0"}]
routes: [{name: all, rules: [{timeouts: {request: 300ms}, retry: {attempts: 2}, backendRefs: [{name: app}]}]}]
backends:
  - name: app
    endpoints: ["127.0.0.1:${upstream}"]
    outlierDetection: {consecutive5xx: 2, consecutiveGatewayFailures: 2}
`,
  );
  const port = await gateway.port();
  const admin = await gateway.adminPort();
  const slow = 'POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 100\r\n\r\nbegun';
  const answers = await Promise.all(Array.from({ length: 6 }, () => exchange(t, port, slow)));
  for (const answer of answers) assert.match(answer, /^HTTP\/1\.1 504 /);
  assert.equal(await ejections(admin), 0);
  assert.equal((await get(port)).status, 200);
});

test('a connection that is passed on says that its endpoint serves', async (t) => {
  let listening = true;
  const server = createServer((socket) => {
    socket.on('error', () => {});
    socket.pipe(socket);
  });
  const listen = (): Promise<void> => new Promise((resolve) => server.listen(upstream, OWN_HOST, resolve));
  const upstream = await freePort();
  await listen();
  t.after(() => {
    if (listening) server.close();
  });
  const gateway = startGateway(
    t,
    `
workers: 1
admin: {address: "127.0.0.1:0"}
listeners: [{name: http, address: "127.0.0.1:0", protocols: [tcp]}]
routes: [{name: all, kind: TCP, rules: [{backendRefs: [{name: app}]}]}]
backends:
  - name: app
    endpoints: ["${OWN_HOST}:${upstream}"]
    outlierDetection: {consecutive5xx: 2, consecutiveGatewayFailures: 2}
`,
  );
  const port = await gateway.port();
  const admin = await gateway.adminPort();
  const echo = (): Promise<void> =>
    new Promise((resolve, reject) => {
      const socket = connect(port, '127.0.0.1', () => socket.write('hello'));
      socket.once('data', () => {
        socket.destroy();
        resolve();
      });
      socket.once('error', reject);
    });
  for (let round = 0; round < 3; round++) {
    // One refused connection, as at a deploy; then it serves again.
    await new Promise((resolve) => server.close(resolve));
    listening = false;
    await exchange(t, port, 'refused');
    await listen();
    listening = true;
    await echo();
  }
  assert.equal(await ejections(admin), 0);
});
