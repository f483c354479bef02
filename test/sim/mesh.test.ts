// The packet core of a node proxy on the simulated kernel: where connections of workloads go, and what is refused.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { WorkloadCounter } from '../../core/telemetry/workload-metrics.ts';
import { addressOf, BACKEND, MeshBench, PORTS, send, textOf, VIP } from './mesh-bench.ts';
import type { SimSocket } from './tcp.ts';

const GET = 'GET /a HTTP/1.1\r\nHost: a\r\n\r\n';
const OK = 'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok';

/** Sends a request and answers it at the last connection of the service's server. */
function exchange(bench: MeshBench, client: SimSocket): string {
  send(client, GET);
  bench.run();
  assert.match(textOf(bench.server.last), /^GET \/a HTTP\/1\.1\r\n/);
  send(bench.server.last, OK);
  bench.run();
  return textOf(client);
}

/** Nothing is open or held any more. */
function assertNothingLeft(bench: MeshBench): void {
  assert.deepEqual(bench.stats, { connections: 0, exchanges: 0, blocksInUse: 0 });
  assert.deepEqual(bench.gauges, { downstream: 0, inFlight: 0, upstream: 0, tunnels: 0 });
}

test('a captured connection to a service is served by its rules, and goes to one of its workloads', () => {
  const bench = new MeshBench();
  const client = bench.leave(1, VIP, PORTS.http);
  bench.run();
  assert.match(exchange(bench, client), /^HTTP\/1\.1 200 OK\r\n/);
  client.closed();
  bench.server.last.closed();
  bench.run();
  assertNothingLeft(bench);
});

test('a captured connection to a TCP port is passed on as it is', () => {
  const bench = new MeshBench();
  const client = bench.leave(1, VIP, PORTS.tcp);
  bench.run();
  send(bench.server.last, 'welcome');
  send(client, 'hello');
  bench.run();
  assert.equal(textOf(bench.server.last), 'hello');
  assert.equal(textOf(client), 'welcome');
  client.closed();
  bench.run();
  bench.server.last.closed();
  bench.run();
  assertNothingLeft(bench);
});

test('a connection to outside reaches the very address that it was for', () => {
  const bench = new MeshBench();
  const outside = bench.serve({ host: '192.0.2.7', port: 5432 });
  const client = bench.leave(1, '192.0.2.7', 5432);
  bench.run();
  send(client, 'select 1');
  bench.run();
  assert.equal(textOf(outside.last), 'select 1');
});

test('a connection to outside is refused where the node says so, and the record says why', () => {
  const bench = new MeshBench({ egressRefused: true });
  const outside = bench.serve({ host: '192.0.2.7', port: 5432 });
  const client = bench.leave(1, '192.0.2.7', 5432);
  bench.run();
  assert.equal(client.state, 'closed');
  assert.equal(outside.dials, 0);
  assert.deepEqual(bench.details, ['egress_refused']);
  assertNothingLeft(bench);
});

test('a connection that nobody has redirected is refused: its destination would be the node proxy', () => {
  const bench = new MeshBench();
  const client = bench.leave(1, null);
  bench.run();
  assert.equal(client.state, 'closed');
  assert.deepEqual(bench.details, ['not_captured']);
  assertNothingLeft(bench);
});

test('plain text reaches a workload by the port that it was for, or is refused where only the mesh may come', () => {
  const bench = new MeshBench();
  const app = bench.serve({ host: addressOf(1), port: 80 });
  const client = bench.arrive(1, 80);
  bench.run();
  send(client, GET);
  bench.run();
  assert.match(textOf(app.last), /^GET \/a /);
  send(app.last, OK);
  bench.run();
  assert.match(textOf(client), /200 OK/);

  bench.use({ settings: { strict: true } });
  const refused = bench.arrive(1, 80);
  bench.run();
  assert.equal(refused.state, 'closed');
  assert.deepEqual(bench.details, ['plaintext_refused']);
  // A connection from before gets nothing more through.
  send(client, GET);
  bench.run();
  assert.match(textOf(client), /^HTTP\/1\.1 403 /);
  assert.equal(textOf(app.last), '');
});

test('a workload has no more connections in each direction than its limit, and another after one has ended', () => {
  const bench = new MeshBench({ settings: { connectionsMax: 2 }, workloads: [1, 2] });
  const clients = [1, 2, 3].map(() => bench.leave(1, VIP, PORTS.tcp));
  bench.run();
  assert.deepEqual(
    clients.map(({ state }) => state),
    ['established', 'established', 'closed'],
  );
  assert.deepEqual(bench.details, ['workload_connections']);
  assert.equal(bench.counters(1)[WorkloadCounter.LIMITED], 1);
  // Neither the other direction nor another workload has used anything.
  bench.serve({ host: addressOf(1), port: 9000 });
  const others = [bench.arrive(1, 9000), bench.leave(2, VIP, PORTS.tcp)];
  bench.run();
  assert.deepEqual(
    others.map(({ state }) => state),
    ['established', 'established'],
  );
  clients[0]!.abort();
  bench.run();
  const next = bench.leave(1, VIP, PORTS.tcp);
  bench.run();
  assert.equal(next.state, 'established');
});

test('a workload that a reload removes gets no new connections; those that it has go on', () => {
  const bench = new MeshBench({ workloads: [1, 2] });
  const client = bench.leave(2, VIP, PORTS.tcp);
  const waiting = bench.leave(2, VIP, PORTS.http);
  bench.run();
  bench.use({ workloads: [1] });
  const late = bench.leave(2, VIP, PORTS.tcp);
  send(client, 'still here');
  bench.run();
  assert.equal(textOf(bench.server.last), 'still here');
  assert.equal(late.state, 'closed');
  assert.ok(waiting.ended, 'a connection without a request ends');
  client.abort();
  waiting.closed();
  bench.run();
  assertNothingLeft(bench);
});

test('a request of a workload that has left in the middle of it begins no connection in its name', () => {
  const bench = new MeshBench({ workloads: [1, 2] });
  const client = bench.leave(2, VIP, PORTS.http);
  send(client, GET.slice(0, 10));
  bench.run();
  bench.use({ workloads: [1] });
  send(client, GET.slice(10));
  bench.run();
  assert.match(textOf(client), /^HTTP\/1\.1 503 .*\r\n(.+\r\n)*connection: close\r\n/i);
  assert.equal(bench.server.dials, 0);
  assert.deepEqual(bench.details, ['workload_gone']);
});

test('time of the worker is that of the workload whose connections are served', () => {
  const bench = new MeshBench({ workloads: [1, 2], syscallMsMax: 0.02 });
  const [busy, quiet] = [bench.leave(1, VIP, PORTS.http), bench.leave(2, VIP, PORTS.http)];
  bench.run();
  send(quiet, GET);
  bench.run();
  for (let round = 0; round < 300; round++) exchange(bench, busy);
  const [used, other] = [1, 2].map((workload) => bench.counters(workload)[WorkloadCounter.BUSY_MS]!);
  assert.ok(used! > 1, `${used} ms`);
  assert.ok(other! < used! / 10, `${other} of ${used} ms`);
});

test('two workloads never share a connection to a server, not even a kept one, nor across a reload', () => {
  const bench = new MeshBench({ workloads: [1, 2] });
  const owners = new Map<SimSocket, number>();
  const use = (workload: number): void => {
    const client = bench.leave(workload, VIP, PORTS.http);
    bench.run();
    const before = bench.server.sockets.length;
    send(client, GET);
    bench.run();
    const used = bench.server.sockets.find((socket) => socket.readableBytes > 0)!;
    if (bench.server.sockets.length > before) owners.set(used, workload);
    assert.equal(owners.get(used), workload);
    textOf(used);
    send(used, OK);
    bench.run();
    assert.match(textOf(client), /200 OK/);
    client.closed();
    bench.run();
  };
  for (const workload of [1, 2, 1, 2, 2, 1]) use(workload);
  assert.equal(bench.server.sockets.length, 2, 'each has kept its own');
  bench.use({ workloads: [2, 1] });
  for (const workload of [1, 2]) use(workload);
  assert.equal(bench.server.sockets.length, 2, 'and so after a reload that turns them round');
  // Whoever comes back under the name of another is somebody else.
  bench.use({ workloads: [2] });
  bench.use({ workloads: [2, 1] });
  for (const workload of [1, 2, 1]) use(workload);
  assert.equal(bench.server.sockets.length, 3);
});

test('connections to servers are kept by a reload that changes the servers, if theirs stays', () => {
  const bench = new MeshBench();
  const client = bench.leave(1, VIP, PORTS.http);
  bench.run();
  exchange(bench, client);
  bench.use({ endpoints: ['10.1.0.9:8080', '10.1.0.10:8080'] });
  bench.use({ endpoints: ['10.1.0.9:8080'] });
  exchange(bench, client);
  assert.equal(bench.server.sockets.length, 1);
  bench.use({ endpoints: ['10.1.0.10:8080'] });
  bench.run();
  assert.ok(bench.server.last.ended, 'the server has left');
});

test('kept connections to addresses outlast a reload, and those that are not used any more are forgotten', () => {
  const bench = new MeshBench();
  const app = bench.serve({ host: addressOf(1), port: 80 });
  const client = bench.arrive(1, 80);
  bench.run();
  for (let round = 0; round < 3; round++) {
    send(client, GET);
    bench.run();
    assert.match(textOf(app.last), /^GET \/a /);
    send(app.last, OK);
    bench.run();
    assert.match(textOf(client), /200 OK/);
    bench.use({});
  }
  assert.equal(app.sockets.length, 1);
  app.last.closed();
  bench.run();
  bench.use({});
  send(client, GET);
  bench.run();
  assert.equal(app.sockets.length, 2);
});

test('what workloads do is counted for them, and for whom they talk to', () => {
  const bench = new MeshBench({ workloads: [1, 2] });
  const client = bench.leave(1, VIP, PORTS.http);
  bench.run();
  exchange(bench, client);
  exchange(bench, client);
  const tcp = bench.leave(1, VIP, PORTS.tcp);
  bench.run();
  send(tcp, '12345');
  bench.run();
  send(bench.server.last, '123');
  bench.run();
  const outbound = bench.counters(1);
  assert.equal(outbound[WorkloadCounter.OUTBOUND_OPEN], 2);
  assert.equal(outbound[WorkloadCounter.OUTBOUND_ACCEPTED], 2);
  assert.equal(outbound[WorkloadCounter.OUTBOUND_REQUESTS], 2);
  assert.equal(outbound[WorkloadCounter.SENT_BYTES], 5);
  assert.equal(outbound[WorkloadCounter.RECEIVED_BYTES], 2 * 2 + 3);
  assert.equal(outbound[WorkloadCounter.OUTBOUND_FAILURES], 0);

  bench.server.refuses = true;
  const fails = bench.leave(1, VIP, PORTS.tcp);
  bench.run();
  assert.equal(fails.state, 'closed');
  assert.equal(bench.counters(1)[WorkloadCounter.OUTBOUND_FAILURES], 1);
  const traffic = bench.peers(1).sort((a, b) => a.protocol - b.protocol);
  assert.deepEqual(traffic, [
    { side: 0, protocol: 0, name: 'service', connections: 1, requests: 0, failures: 1, denied: 0 },
    { side: 0, protocol: 1, name: 'service', connections: 1, requests: 2, failures: 0, denied: 0 },
  ]);

  const app = bench.serve({ host: addressOf(2), port: 9000 });
  const visitor = bench.arrive(2, 9000);
  bench.run();
  send(visitor, 'hello');
  bench.run();
  assert.equal(textOf(app.last), 'hello');
  const inbound = bench.counters(2);
  assert.equal(inbound[WorkloadCounter.INBOUND_OPEN], 1);
  assert.equal(inbound[WorkloadCounter.RECEIVED_BYTES], 5);
  assert.equal(inbound[WorkloadCounter.OUTBOUND_OPEN], 0);
  assert.deepEqual(bench.peers(2), [
    { side: 1, protocol: 0, name: '', connections: 1, requests: 0, failures: 0, denied: 0 },
  ]);
  for (const socket of [client, tcp, visitor]) socket.abort();
  bench.run();
  assert.equal(bench.counters(1)[WorkloadCounter.OUTBOUND_OPEN], 0);
  assert.equal(bench.counters(2)[WorkloadCounter.INBOUND_OPEN], 0);
});

test('new connections beyond the rate of a workload wait; those of others do not', () => {
  const bench = new MeshBench({ settings: { connectionsPerSecondMax: 10 }, workloads: [1, 2] });
  // A second's worth at once, and the rest one by one.
  const clients = Array.from({ length: 15 }, () => bench.leave(1, VIP, PORTS.tcp));
  bench.run();
  assert.equal(bench.server.sockets.length, 10);
  const other = bench.leave(2, VIP, PORTS.tcp);
  bench.run();
  assert.equal(bench.server.sockets.length, 11);
  assert.equal(other.state, 'established');
  bench.run(210);
  assert.equal(bench.server.sockets.length, 13);
  bench.run(1000);
  assert.equal(bench.server.sockets.length, 16);
  assert.ok(clients.every(({ state }) => state === 'established'));
});

test('a workload that holds its share of the buffers waits with new connections and requests; others do not', () => {
  const slow = { delayMinMs: 0.01, delayMaxMs: 0.01, segmentBytesMax: 65_536, dribbleBytes: 0 };
  const narrow = { ...slow, sendBufferBytes: 1000, receiveBufferBytes: 1000 };
  const wide = { ...slow, sendBufferBytes: 1 << 20, receiveBufferBytes: 1 << 20 };
  const bench = new MeshBench({
    settings: { bufferPercentMax: 5 },
    workloads: [1, 2],
    links: () => ({ out: narrow, in: wide }),
  });
  const idle = bench.leave(1, VIP, PORTS.http);
  const other = bench.leave(2, VIP, PORTS.http);
  bench.run();
  // Clients that read nothing of what they get.
  const greedy = [1, 2, 3].map(() => bench.leave(1, VIP, PORTS.tcp));
  bench.run();
  for (const socket of bench.server.sockets) socket.send(new Uint8Array(300_000));
  bench.run();
  assert.ok(bench.counters(1)[WorkloadCounter.BUFFER_BYTES]! > 200_000);
  assert.equal(bench.counters(2)[WorkloadCounter.BUFFER_BYTES], 0);
  const dials = bench.server.sockets.length;
  const late = bench.leave(1, VIP, PORTS.tcp);
  send(idle, GET);
  bench.run(20);
  assert.match(textOf(idle), /^HTTP\/1\.1 503 .*\r\n(.+\r\n)*retry-after: /i);
  assert.deepEqual(bench.details, ['workload_buffers']);
  assert.equal(bench.server.sockets.length, dials, 'the new one waits');
  send(other, GET);
  bench.run();
  assert.equal(bench.server.sockets.length, dials + 1);
  for (const socket of greedy) socket.abort();
  bench.run(100);
  assert.ok(bench.counters(1)[WorkloadCounter.BUFFER_BYTES]! < 10_000);
  assert.equal(bench.server.sockets.length, dials + 2, 'its turn has come');
  assert.equal(late.state, 'established');
});

test('a workload with very many busy connections does not make another one wait for all of them', () => {
  const bench = new MeshBench({ workloads: [1, 2], connectionsMax: 2048, bufferBytes: 16 * 1024 * 1024 });
  bench.kernel.descriptorsMax = 4096;
  const many: SimSocket[] = [];
  for (let i = 0; i < 600; i++) {
    many.push(bench.leave(1, VIP, PORTS.tcp));
    if (i % 100 === 99) bench.run(20);
  }
  const one = bench.leave(2, VIP, PORTS.tcp);
  bench.run(20);
  const servers = [...bench.server.sockets];
  assert.equal(servers.length, 601);
  for (const client of many) send(client, 'a');
  send(one, 'b');
  bench.scheduler.advanceTo(bench.scheduler.nowMs + 1);
  // As many as one round of the event loop has taken before it came to the other workload.
  const arrived = (): number => servers.slice(0, 600).filter((socket) => socket.readableBytes > 0).length;
  let batches = 0;
  while (servers[600]!.readableBytes === 0 && batches < 100) {
    bench.batch();
    bench.scheduler.advanceTo(bench.scheduler.nowMs + 0.5);
    batches++;
  }
  assert.ok(arrived() < 300, `${arrived()} of the other workload came first`);
  bench.run(50);
  assert.equal(arrived(), 600, 'and none is forgotten');
});

test('the server of a service is the one that the snapshot names', () => {
  const bench = new MeshBench();
  bench.leave(1, VIP, PORTS.tcp);
  bench.run();
  assert.deepEqual(bench.server.last.local, BACKEND);
});
