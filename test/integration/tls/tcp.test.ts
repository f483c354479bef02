// TCP routes: bytes both ways, half-close, weights, failures, and TLS ended before them.

import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { test } from 'node:test';
import { becomes } from '../http/support.ts';
import { openWire } from '../http/wire.ts';
import { CLOSED_PORTS } from '../support.ts';
import { filesOf, issue, openUpstream, pairOf, Site, startSite } from './support.ts';

const MIB = 1024 * 1024;
const upstream = await openUpstream();
const heavy = await openUpstream();
const light = await openUpstream();
const idle = await openUpstream();
const ports: Record<string, number> = {
  app: upstream.port,
  heavy: heavy.port,
  light: light.port,
  down: CLOSED_PORTS[0],
};
const config = (tunnelIdle: string): string => `
workers: 1
admin: {address: "127.0.0.1:0"}
accessLog: {path: access.log}
drainTimeout: 3s
timeouts: {tunnelIdle: ${tunnelIdle}}
listeners:
  - {name: tcp, address: "127.0.0.1:0", protocols: [tcp]}
  - {name: weighted, address: "127.0.0.1:0", protocols: [tcp]}
  - {name: down, address: "127.0.0.1:0", protocols: [tcp]}
  - {name: nowhere, address: "127.0.0.1:0", protocols: [tcp]}
  - {name: tls, address: "127.0.0.1:0", protocols: [tcp], tls: {certificates: [${pairOf('site')}]}}
routes:
  - {name: tcp, kind: TCP, listeners: [tcp, tls], rules: [{backendRefs: [{name: app}]}]}
  - name: weighted
    kind: TCP
    listeners: [weighted]
    rules: [{backendRefs: [{name: heavy, weight: 9}, {name: light, weight: 1}, {name: app, weight: 0}]}]
  - {name: down, kind: TCP, listeners: [down], rules: [{backendRefs: [{name: down}]}]}
backends:
${Object.entries(ports)
  .map(([name, port]) => `  - {name: ${name}, endpoints: ["127.0.0.1:${port}"]}`)
  .join('\n')}
`;
const files = filesOf({ site: issue('site', ['dns:a.example']) });
const site = await startSite({ config: config('1h'), files });
site.beforeClose(() => {
  for (const one of [upstream, heavy, light, idle]) one.close();
});

for (const listener of ['tcp', 'tls']) {
  const open = () => (listener === 'tls' ? site.secure('tls') : site.plain('tcp'));

  test(`${listener}: megabytes pass unchanged both ways at the same time`, async () => {
    const client = await open();
    const server = await upstream.connection();
    const up = randomBytes(4 * MIB);
    const down = randomBytes(4 * MIB);
    void client.send(up);
    void server.send(down);
    const [atServer, atClient] = await Promise.all([server.bytes(up.length), client.bytes(down.length)]);
    assert.ok(atServer.equals(up));
    assert.ok(atClient.equals(down));
    client.close();
    await server.ended();
    server.close();
  });

  test(`${listener}: each side may finish first, and still hears the other`, async () => {
    const before = await site.metric('tunnels_open');
    for (const first of ['client', 'server']) {
      const client = await open();
      const server = await upstream.connection();
      const [early, late] = first === 'client' ? [client, server] : [server, client];
      await early.send('first');
      await early.finish();
      assert.equal(await late.rest(), 'first');
      assert.equal(late.ending, 'fin');
      await late.send('second');
      await late.finish();
      assert.equal(await early.rest(), 'second');
      assert.equal(early.ending, 'fin');
    }
    await site.metricBecomes('tunnels_open', before);
  });

  test(`${listener}: an upstream that speaks first is heard`, async () => {
    const client = await open();
    const server = await upstream.connection();
    await server.send('220 ready\r\n');
    assert.equal(await client.until('\r\n'), '220 ready\r\n');
    client.close();
    await server.ended();
    server.close();
  });

  test(`${listener}: a reset of either side ends both`, async () => {
    for (const first of ['client', 'server']) {
      const raw = await openWire(await site.gateway.port('tcp'));
      const server = await upstream.connection();
      await raw.send('x');
      await server.bytes(1);
      (first === 'client' ? raw : server).reset();
      assert.equal(await (first === 'client' ? server : raw).ended(), 'reset');
      raw.close();
    }
  });
}

test('bytes and the end that were sent before the upstream was connected arrive', async () => {
  const client = await site.plain('tcp');
  void client.send('all at once');
  void client.finish();
  const server = await upstream.connection();
  assert.equal(await server.rest(), 'all at once');
  await server.send('answer');
  await server.finish();
  assert.equal(await client.rest(), 'answer');
});

test('a client over TLS that is cut off does not look like one that has finished', async () => {
  const client = await site.secure('tls');
  const server = await upstream.connection();
  await client.send('half');
  await server.bytes(4);
  client.close();
  assert.equal(await server.ended(), 'reset');
});

test('a connection is one line in the access log', async () => {
  const client = await site.secure('tls');
  const server = await upstream.connection();
  const address = client.socket.localPort;
  await client.send('12345');
  await server.bytes(5);
  await server.send('123');
  await client.bytes(3);
  await client.finish();
  await server.finish();
  await client.ended();
  const line = await site.logged({ clientPort: address, listener: 'tls' });
  assert.deepEqual(
    {
      bytesReceived: line.bytesReceived,
      bytesSent: line.bytesSent,
      route: line.route,
      backend: line.backend,
      endpoint: line.endpoint,
      reason: line.reason,
      attempts: line.attempts,
      serverName: line.serverName,
      tlsVersion: line.tlsVersion,
    },
    {
      bytesReceived: 5,
      bytesSent: 3,
      route: 'tcp',
      backend: 'app',
      endpoint: `127.0.0.1:${upstream.port}`,
      reason: null,
      attempts: 1,
      serverName: 'a.example',
      tlsVersion: 'TLSv1.3',
    },
  );
});

test('300 connections at once each reach a connection of their own', async () => {
  const before = upstream.accepted;
  const clients = await Promise.all(Array.from({ length: 300 }, () => site.plain('tcp')));
  await Promise.all(clients.map((client, index) => client.send(`${index}\n`)));
  const servers = await Promise.all(clients.map(() => upstream.connection()));
  await Promise.all(servers.map(async (server) => server.send(`you are ${await server.until('\n')}`)));
  for (const [index, client] of clients.entries()) assert.equal(await client.until('\n'), `you are ${index}\n`);
  assert.equal(upstream.accepted, before + 300);
  for (const client of clients) client.close();
});

test('connections are shared by weight, and a backend of weight 0 gets none', async () => {
  const before = upstream.accepted;
  for (let i = 0; i < 200; i++) {
    const client = await site.plain('weighted');
    await becomes('connection', async () => heavy.accepted + light.accepted === i + 1);
    client.close();
  }
  // 20 of 200 are expected; 3 or fewer, or 50 or more, come once in a million runs.
  assert.ok(light.accepted > 3 && light.accepted < 50, `${light.accepted} of 200`);
  assert.equal(upstream.accepted, before);
});

test('when the upstream is down the connection is closed, and logged with UF', async () => {
  await site.plain('down').then(
    (client) => client.ended(),
    () => {},
  );
  const line = await site.logged({ listener: 'down' });
  assert.equal(line.reason, 'UF');
  assert.equal(line.detail, 'connect_errno');
});

test('a listener without a route closes connections with NR', async () => {
  // It may be closed before the client has noticed that it was opened.
  await site.plain('nowhere').then(
    (client) => client.ended(),
    () => {},
  );
  assert.equal((await site.logged({ listener: 'nowhere' })).reason, 'NR');
});

test('a slow reader costs a bounded amount of memory', async () => {
  const client = await site.secure('tls');
  const server = await upstream.connection();
  const warm = Buffer.alloc(8 * MIB, 'x');
  void server.send(warm);
  await client.skipBytes(warm.length);
  const before = site.residentBytes();
  client.socket.pause();
  void server.send(Buffer.alloc(64 * MIB, 'y'));
  let growth = 0;
  for (let taken = 0; taken < 64; taken++) {
    client.socket.resume();
    await client.skipBytes(MIB);
    client.socket.pause();
    await site.metric('tunnels_open');
    growth = Math.max(growth, site.residentBytes() - before);
  }
  client.socket.resume();
  client.close();
  assert.ok(growth < 12 * MIB, `grew by ${growth} bytes`);
});

test('a tunnel without traffic is ended and says why; a drain waits for tunnels, then ends them', async () => {
  const other = await new Site({ config: config('200ms'), files }).started();
  try {
    const client = await other.plain('tcp');
    const { localPort } = client.socket;
    await (await upstream.connection()).ended();
    await client.ended();
    const line = await other.logged({ clientPort: localPort });
    assert.deepEqual([line.reason, line.detail], ['UT', 'tunnel_idle_timer']);

    await other.reload(config('1h'));
    const open = await other.plain('tcp');
    const openPort = open.socket.localPort;
    const server = await upstream.connection();
    other.gateway.kill('SIGTERM');
    await other.gateway.log(/draining/);
    await open.send('still there');
    assert.equal((await server.bytes(11)).toString(), 'still there');
    await server.ended();
    await other.gateway.finished;
    assert.equal((await other.logged({ clientPort: openPort })).reason, 'DR');
  } finally {
    other.abandon();
  }
});
