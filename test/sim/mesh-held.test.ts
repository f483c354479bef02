// Connections to destinations that a node does not know, on the simulated kernel: how they wait, and what becomes of them.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ASKED_BURST, ASKED_PER_SECOND, HELD_PER_WORKLOAD_MAX, HOLD_MS } from '../../core/exchange/destination-gate.ts';
import { WorkloadCounter } from '../../core/telemetry/workload-metrics.ts';
import { addressOf, type BenchOptions, MeshBench, PORTS, send, textOf, VIP } from './mesh-bench.ts';

const GET = 'GET /a HTTP/1.1\r\nHost: a\r\n\r\n';
const OK = 'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok';
/** Addresses that somebody tries. */
const TRIED = 16_000;
const OUTSIDE = { host: '192.0.2.7', port: 5432 };

/** A node that knows nothing of the mesh but its workloads, and asks. */
function newBench(more: BenchOptions = {}): MeshBench {
  return new MeshBench({ discoveryNetworks: [], vips: [], ...more });
}

/** Nothing is open or held any more. */
function assertNothingLeft(bench: MeshBench): void {
  assert.deepEqual(bench.stats, { connections: 0, exchanges: 0, blocksInUse: 0 });
  assert.deepEqual(bench.gauges, { downstream: 0, inFlight: 0, upstream: 0, tunnels: 0 });
}

for (const [port, kind] of [
  [PORTS.http, 'a port for HTTP'],
  [PORTS.auto, 'a port of which nothing is said'],
] as const) {
  test(`a connection to ${kind} of an unknown service waits, with what it has sent, until that is known`, () => {
    const bench = newBench();
    const early = bench.leave(1, VIP, port);
    send(early, GET);
    bench.run();
    assert.deepEqual(bench.takeQuestions(), [`uid-1 ${VIP}`]);
    const late = bench.leave(1, VIP, port);
    bench.run(1000);
    assert.deepEqual(bench.takeQuestions(), [], 'asked once');
    assert.equal(bench.server.dials, 0);
    bench.use({});
    bench.run();
    assert.equal(bench.server.dials, 0, 'a snapshot without it is no answer');
    bench.use({ vips: [VIP] });
    bench.run();
    assert.match(textOf(bench.server.sockets[0]!), /^GET \/a /);
    send(bench.server.sockets[0]!, OK);
    bench.run();
    assert.match(textOf(early), /200 OK/);
    send(late, GET);
    bench.run();
    const used = bench.server.sockets.find((socket) => socket.readableBytes > 0)!;
    assert.match(textOf(used), /^GET \/a /);
    send(used, OK);
    bench.run();
    assert.match(textOf(late), /200 OK/);
    const known = bench.leave(1, VIP, port);
    bench.run();
    assert.equal(known.state, 'established');
    assert.deepEqual(bench.takeQuestions(), [], 'what is known is not asked for');
    for (const client of [early, late, known]) client.abort();
    bench.run();
    for (const socket of bench.server.sockets) socket.closed();
    bench.run();
    assertNothingLeft(bench);
  });
}

test('a server that speaks first is heard by a client that has waited', () => {
  for (const port of [PORTS.tcp, PORTS.auto]) {
    const bench = newBench();
    const client = bench.leave(1, VIP, port);
    bench.run();
    bench.use({ vips: [VIP] });
    bench.run();
    send(bench.server.last, '220 hello');
    bench.run();
    assert.equal(textOf(client), '220 hello');
  }
});

test('a client that has said all it has to say before its destination is known gets its answer', () => {
  for (const port of [PORTS.tcp, PORTS.auto]) {
    const bench = newBench();
    const client = bench.leave(1, VIP, port);
    send(client, '\0 question');
    client.closed();
    bench.run(50);
    assert.equal(bench.gauges.downstream, 1);
    bench.use({ vips: [VIP] });
    bench.run();
    assert.equal(textOf(bench.server.last), '\0 question');
    assert.ok(bench.server.last.ended, 'the end of it is passed on, too');
  }
});

test('a destination that is not of the mesh is reached as it is, and not asked for again until that is taken back', () => {
  const bench = newBench();
  const outside = bench.serve(OUTSIDE);
  const client = bench.leave(1, OUTSIDE.host, OUTSIDE.port);
  send(client, 'select 1');
  bench.run();
  assert.equal(outside.dials, 0);
  assert.deepEqual(bench.takeQuestions(), ['uid-1 192.0.2.7']);
  bench.answer(OUTSIDE.host, 'outside');
  bench.run();
  assert.equal(textOf(outside.last), 'select 1');
  bench.leave(1, OUTSIDE.host, OUTSIDE.port);
  bench.run();
  assert.equal(outside.dials, 2);
  assert.deepEqual(bench.takeQuestions(), []);
  bench.answer(OUTSIDE.host, 'forgotten');
  bench.leave(1, OUTSIDE.host, OUTSIDE.port);
  bench.run();
  assert.equal(outside.dials, 2);
  assert.deepEqual(bench.takeQuestions(), ['uid-1 192.0.2.7']);
});

test('an address outside is refused where the node says so, once it is known to be that', () => {
  const bench = newBench({ egressRefused: true });
  const client = bench.leave(1, OUTSIDE.host, OUTSIDE.port);
  bench.run();
  assert.equal(client.state, 'established');
  bench.answer(OUTSIDE.host, 'outside');
  bench.run();
  assert.equal(client.state, 'closed');
  assert.deepEqual(bench.details, ['egress_refused']);
  assertNothingLeft(bench);
});

test('what comes to be a service is one, although it has been outside', () => {
  const bench = newBench();
  bench.answer(VIP, 'outside');
  bench.use({ vips: [VIP] });
  const client = bench.leave(1, VIP, PORTS.http);
  send(client, GET);
  bench.run();
  assert.match(textOf(bench.server.last), /^GET \/a /);
});

test('addresses that are in none of the networks of the mesh are outside without a question', () => {
  const bench = newBench({ discoveryNetworks: ['10.0.0.0/8', 'fd00::/8'] });
  const outside = bench.serve(OUTSIDE);
  bench.leave(1, OUTSIDE.host, OUTSIDE.port);
  bench.leave(1, VIP, PORTS.http);
  bench.run();
  assert.equal(outside.dials, 1);
  assert.deepEqual(bench.takeQuestions(), [`uid-1 ${VIP}`]);
});

test('a connection is refused with the reason when nobody can tell what is at its destination', () => {
  const bench = newBench();
  const [away, unanswered, silent] = [1, 2, 3].map((last) => bench.leave(1, `10.96.0.${last}`, 80));
  bench.run();
  bench.answer('10.96.0.1', 'away');
  bench.answer('10.96.0.2', 'unanswered');
  bench.run();
  assert.deepEqual([away!.state, unanswered!.state, silent!.state], ['closed', 'closed', 'established']);
  bench.run(HOLD_MS + 100);
  assert.equal(silent!.state, 'closed');
  assert.deepEqual(bench.details, ['discovery_away', 'discovery_timeout', 'discovery_timeout']);
  assert.equal(bench.server.dials, 0);
  assertNothingLeft(bench);
  // Everything has been asked again by whoever comes next.
  bench.takeQuestions();
  bench.leave(1, '10.96.0.1', 80);
  bench.run();
  assert.deepEqual(bench.takeQuestions(), ['uid-1 10.96.0.1']);
});

test('an address is asked for again when the question about it was lost, however many connections wait for it', () => {
  const bench = newBench();
  bench.leave(1, VIP, PORTS.http);
  bench.run();
  assert.deepEqual(bench.takeQuestions(), [`uid-1 ${VIP}`]);
  bench.run(HOLD_MS / 2);
  const second = bench.leave(1, VIP, PORTS.http);
  bench.run();
  assert.deepEqual(bench.takeQuestions(), []);
  // The first one has had no answer.
  bench.run(HOLD_MS / 2 + 100);
  assert.equal(second.state, 'established');
  assert.deepEqual(bench.takeQuestions(), [`uid-1 ${VIP}`]);
  bench.use({ vips: [VIP] });
  send(second, GET);
  bench.run();
  assert.match(textOf(bench.server.last), /^GET \/a /);
});

test('a connection that comes when others have just been told that there is no answer asks for itself', () => {
  const bench = newBench();
  bench.leave(1, VIP, PORTS.http);
  bench.run();
  bench.takeQuestions();
  const late = bench.leave(1, VIP, PORTS.http);
  bench.answer(VIP, 'unanswered');
  bench.run();
  assert.equal(late.state, 'established');
  assert.deepEqual(bench.takeQuestions(), [`uid-1 ${VIP}`]);
});

test('a workload that may know no further address is refused, and another that waits for the same waits on', () => {
  const bench = newBench({ workloads: [1, 2] });
  const [greedy, other] = [bench.leave(1, VIP, PORTS.http), bench.leave(2, VIP, PORTS.http)];
  send(other, GET);
  bench.run();
  bench.answerLimit(VIP, 'uid-1');
  bench.run();
  assert.deepEqual([greedy.state, other.state], ['closed', 'established']);
  assert.deepEqual([bench.gauges.downstream, bench.details.at(-1)], [1, 'discovery_limit']);
  assert.equal(bench.counters(1)[WorkloadCounter.LIMITED], 1);
  bench.use({ vips: [VIP] });
  bench.run();
  assert.match(textOf(bench.server.last), /^GET \/a /);
});

test('a client that resets its connection while it waits is let go', () => {
  const bench = newBench();
  const [gone, other] = [bench.leave(1, VIP, PORTS.http), bench.leave(1, VIP, PORTS.http)];
  bench.run();
  gone.abort();
  bench.run();
  assert.equal(bench.gauges.downstream, 1);
  bench.use({ vips: [VIP] });
  send(other, GET);
  bench.run();
  assert.match(textOf(bench.server.last), /^GET \/a /);
});

test('connections of a workload that leaves while they wait end, and those of others go on waiting', () => {
  const bench = newBench({ workloads: [1, 2] });
  const [leaving, staying] = [bench.leave(2, VIP, PORTS.tcp), bench.leave(1, VIP, PORTS.tcp)];
  bench.run();
  assert.deepEqual(bench.takeQuestions().sort(), [`uid-1 ${VIP}`, `uid-2 ${VIP}`]);
  bench.use({ workloads: [1] });
  bench.run();
  assert.deepEqual([leaving.state, staying.state], ['closed', 'established']);
  assert.deepEqual(bench.details, ['workload_gone']);
  bench.use({ vips: [VIP] });
  bench.run();
  assert.equal(bench.server.sockets.length, 1);
});

test('a worker that ends refuses what still waits after the time that idle clients have', () => {
  const bench = newBench();
  const client = bench.leave(1, VIP, PORTS.http);
  bench.run();
  bench.drain(100, 5000);
  bench.run(50);
  assert.equal(client.state, 'established');
  bench.run(100);
  assert.equal(client.state, 'closed');
  assertNothingLeft(bench);
  assert.ok(bench.posted.some((message) => message.type === 'drained' && message.remaining === 0));
});

test('a workload that connects to thousands of addresses waits for a few, and holds up nobody else', () => {
  const bench = newBench({ workloads: [1, 2], connectionsMax: 700 });
  const outside = bench.serve(OUTSIDE);
  bench.answer(OUTSIDE.host, 'outside');
  for (let count = 0; count < TRIED; count++) {
    const scan = bench.leave(1, `10.${(count >> 16) + 100}.${(count >> 8) & 255}.${count & 255}`, 80);
    if (count % 64 !== 63) continue;
    bench.run(1);
    if (count >= HELD_PER_WORKLOAD_MAX) assert.equal(scan.state, 'closed', `connection ${count}`);
  }
  bench.run();
  assert.equal(bench.gauges.downstream, HELD_PER_WORKLOAD_MAX);
  assert.equal(bench.takeQuestions().length, HELD_PER_WORKLOAD_MAX, 'what is refused is not asked for');
  assert.equal(bench.counters(1)[WorkloadCounter.LIMITED], TRIED - HELD_PER_WORKLOAD_MAX);
  assert.equal(bench.details.at(-1), 'discovery_limit');
  assert.deepEqual(bench.takeUsed(), { hosts: [], all: false }, 'what is only tried is not used');
  // Itself where it is known what is there, and others, who wait for themselves.
  bench.leave(1, OUTSIDE.host, OUTSIDE.port);
  const other = bench.leave(2, VIP, PORTS.http);
  send(other, GET);
  bench.run();
  assert.equal(outside.sockets.length, 1);
  assert.deepEqual(bench.takeQuestions(), [`uid-2 ${VIP}`]);
  bench.use({ vips: [VIP] });
  bench.run();
  assert.match(textOf(bench.server.last), /^GET \/a /);
  bench.run(HOLD_MS + 100);
  assert.equal(bench.counters(1)[WorkloadCounter.OUTBOUND_OPEN], 1);
  assert.equal(bench.counters(2)[WorkloadCounter.OUTBOUND_OPEN], 1);
});

test('many workloads that connect to thousands of addresses leave places for one that does not', () => {
  const scanners = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10];
  const bench = newBench({ workloads: [...scanners, 11], connectionsMax: 2600 });
  bench.kernel.descriptorsMax = 4096;
  for (const scanner of scanners) {
    for (let count = 0; count < HELD_PER_WORKLOAD_MAX; count++) {
      bench.leave(scanner, `10.100.${scanner}.${count & 255}`, 80);
      if (count % 64 === 63) bench.run(1);
    }
  }
  bench.takeQuestions();
  const other = bench.leave(11, VIP, PORTS.http);
  send(other, GET);
  bench.run();
  assert.deepEqual(bench.takeQuestions(), [`uid-11 ${VIP}`]);
  bench.use({ vips: [VIP] });
  bench.run();
  assert.match(textOf(bench.server.last), /^GET \/a /);
});

test('a workload that connects and resets at once asks no more than its share, and the others ask', () => {
  const bench = newBench({ workloads: [1, 2] });
  const seconds = 3;
  let questions = 0;
  for (let count = 0; count < seconds * 1000; count++) {
    bench.leave(1, VIP, PORTS.http).abort();
    bench.leave(1, VIP, PORTS.http).abort();
    bench.run(1);
    questions += bench.takeQuestions().length;
  }
  const allowed = ASKED_BURST + seconds * ASKED_PER_SECOND;
  assert.ok(questions <= allowed + ASKED_PER_SECOND, `${questions} questions`);
  assert.ok(questions >= allowed - ASKED_PER_SECOND, `${questions} questions`);
  assert.equal(bench.details.at(-1), 'discovery_limit');
  bench.leave(2, VIP, PORTS.http);
  bench.run();
  assert.deepEqual(bench.takeQuestions(), [`uid-2 ${VIP}`]);
});

test('what is in use is told: what was connected to, and what open connections lead to', () => {
  const bench = newBench({ vips: [VIP] });
  bench.serve(OUTSIDE);
  bench.answer(OUTSIDE.host, 'outside');
  const [open, brief] = [bench.leave(1, VIP, PORTS.tcp), bench.leave(1, OUTSIDE.host, OUTSIDE.port)];
  bench.run();
  brief.abort();
  bench.run();
  assert.deepEqual(bench.takeUsed(), { hosts: [VIP, OUTSIDE.host], all: false });
  assert.deepEqual(bench.takeUsed(), { hosts: [VIP], all: false });
  bench.use({});
  assert.deepEqual(bench.takeUsed(), { hosts: [VIP], all: false }, 'whatever snapshot it was begun with');
  open.abort();
  bench.run();
  assert.deepEqual(bench.takeUsed(), { hosts: [], all: false });
});

test('what is known to a worker that is told of all of the mesh is all there is', () => {
  const bench = newBench({ discoveryNetworks: null });
  const outside = bench.serve(OUTSIDE);
  bench.leave(1, OUTSIDE.host, OUTSIDE.port);
  bench.run();
  assert.equal(outside.dials, 1);
  assert.deepEqual(bench.takeQuestions(), []);
  assert.equal(addressOf(1), '10.2.0.1');
});
