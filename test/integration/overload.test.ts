// Overload of the gateway itself, with real processes: what it does without, and that it recovers.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { type TestContext, test } from 'node:test';
import { type Gateway, get, namedUpstream, startGateway } from './support.ts';

async function gatewayWith(t: TestContext, overload: string): Promise<{ gateway: Gateway; port: number }> {
  const upstream = await namedUpstream(t, 'app');
  const rule = (priority: string): string =>
    `{matches: [{path: {value: /${priority}}}], priority: ${priority}, backendRefs: [{name: app}]}`;
  const gateway = startGateway(
    t,
    `
workers: 1
admin: {address: "127.0.0.1:0"}
responseReasonHeader: x-reason
limits: {maxConnections: 80}
overload: ${overload}
listeners: [{name: http, address: "127.0.0.1:0"}]
routes: [{name: all, rules: [${rule('low')}, ${rule('high')}, {backendRefs: [{name: app}]}]}]
backends: [{name: app, endpoints: ["127.0.0.1:${upstream}"]}]
`,
  );
  await gateway.serving();
  return { gateway, port: await gateway.port() };
}

/** From now on, connections are watched. */
function watchConnections(gateway: Gateway, percent: number): void {
  const text = readFileSync(gateway.configFile, 'utf8');
  gateway.configure(text.replace('overload: {}', `overload: {connections: ${percent}}`));
  gateway.kill('SIGHUP');
}

/** Connections that are open and say nothing; the gateway need not have accepted them yet. */
async function idle(t: TestContext, port: number, count: number): Promise<Socket[]> {
  const sockets = await Promise.all(
    Array.from(
      { length: count },
      () =>
        new Promise<Socket>((resolve, reject) => {
          const socket = connect(port, '127.0.0.1', () => resolve(socket));
          socket.once('error', reject);
        }),
    ),
  );
  t.after(() => {
    for (const socket of sockets) socket.destroy();
  });
  return sockets;
}

/** One request on a connection that is open already; resolves with all that comes until it has gone quiet for the response. */
function ask(socket: Socket, path: string): Promise<string> {
  return new Promise((resolve, reject) => {
    let text = '';
    const take = (chunk: Buffer): void => {
      text += chunk.toString('latin1');
      const head = text.indexOf('\r\n\r\n');
      const length = Number(/content-length: (\d+)/i.exec(text)?.[1] ?? 0);
      if (head < 0 || text.length < head + 4 + length) return;
      socket.off('data', take);
      resolve(text);
    };
    socket.on('data', take);
    socket.once('error', reject);
    socket.write(`GET ${path} HTTP/1.1\r\nhost: a\r\n\r\n`);
  });
}

test('with too many connections, new ones wait, then low and default requests are refused, never high ones', async (t) => {
  const { gateway, port } = await gatewayWith(t, '{}');
  // They are all in before anybody looks, or the first level would keep the others out: 70 of 80 is beyond the last one.
  const [low, other, high, ...rest] = await idle(t, port, 70);
  const admin = await gateway.adminPort();
  while (!(await get(admin, '/metrics')).body.includes('portcullis_downstream_connections_open 70\n'));
  watchConnections(gateway, 40);
  await gateway.log(/warn overloaded: .*priority low and default are refused level=3 trigger=connections/);
  const refused = await ask(low!, '/low');
  assert.match(refused, /^HTTP\/1\.1 503 Service Unavailable\r\n/);
  assert.match(refused, /\r\nx-reason: OM\r\n/i);
  const seconds = Number(/\r\nretry-after: (\d+)\r\n/i.exec(refused)![1]);
  assert.ok(seconds >= 2 && seconds <= 4, `${seconds}`);
  assert.match(await ask(other!, '/'), /^HTTP\/1\.1 503 /);
  const served = await ask(high!, '/high');
  assert.match(served, /^HTTP\/1\.1 200 /);
  assert.match(served, /\r\nconnection: close\r\n/i, 'connections are scarce');
  // A new client waits; it is not refused.
  const waiting = get(port, '/high');
  const metrics = (await get(admin, '/metrics')).body;
  assert.match(metrics, /portcullis_overload_level 3\n/);
  assert.match(metrics, /portcullis_overload_shed_requests_total\{priority="low"\} 1\n/);
  assert.match(metrics, /portcullis_overload_shed_requests_total\{priority="default"\} 1\n/);
  for (const socket of rest) socket.destroy();
  await gateway.log(/info no longer overloaded/);
  assert.equal((await waiting).status, 200);
  assert.equal((await get(port, '/low')).status, 200);
});

test('descriptors are watched unless told otherwise, and a reload changes what is watched', async (t) => {
  const { gateway, port } = await gatewayWith(t, '{}');
  await idle(t, port, 70);
  const admin = await gateway.adminPort();
  const page = async (): Promise<string> => (await get(admin, '/metrics')).body;
  while (!(await page()).includes('portcullis_overload_pressure{trigger="descriptors"}'));
  assert.ok(!(await page()).includes('{trigger="connections"}'));
  watchConnections(gateway, 60);
  await gateway.log(/warn overloaded: .*trigger=connections/);
});
