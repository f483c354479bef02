// Circuit breakers where a reload has changed the limits, and the order of those who wait.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { CircuitBreakers, IDLE_LOOK_MS } from '../../../../core/exchange/circuit-breaker.ts';
import type { ProxyContext } from '../../../../core/exchange/context.ts';
import { Exchange } from '../../../../core/exchange/exchange.ts';
import { RulePolicy } from '../../../../core/exchange/rule-policy.ts';
import { type BackendRuntime, Runtime } from '../../../../core/exchange/runtime.ts';
import { UpstreamHttp1, UpstreamState } from '../../../../core/exchange/upstream-http1.ts';
import { Connection } from '../../../../core/io/connection.ts';
import { type BreakerLimits, Priority } from '../../../../core/lb/attempt-settings.ts';
import type { Endpoint } from '../../../../core/lb/endpoint.ts';
import { BackendWord, NodeState } from '../../../../core/lb/node-state.ts';
import { TlsContexts } from '../../../../core/tls/contexts.ts';
import { noRulePolicy } from '../../../../core/workers/policies.ts';
import { endpointSettings, plainBackend, snapshotOf } from './support.ts';

const { CONNECTIONS, PENDING, HIGH_PENDING } = BackendWord;
const SLOT = 3;

function limits(connectionsMax: number): BreakerLimits {
  return { connectionsMax, pendingMax: 0, requestsMax: 0, retriesMax: 0 };
}

/** What a reload may change. */
interface Breaker {
  normal: number;
  high?: number;
}

/** One worker with a backend of two endpoints; connections and requests are made by hand. */
class Worker {
  private readonly snapshot = snapshotOf({}, [], 1);
  private readonly endpoints = new Map<string, Endpoint>();
  private readonly node = new NodeState(this.snapshot.nodeState, 0);
  readonly context: ProxyContext;
  readonly breakers: CircuitBreakers;
  readonly http1: UpstreamHttp1;
  /** Requests that have been given a connection, in order. */
  readonly begun: Exchange[] = [];
  readonly closed: Connection[] = [];
  readonly open: Connection[] = [];
  readonly timers = new Map<Connection, number>();
  private slots = 0;

  constructor(breaker: Breaker | null) {
    const reactor = {
      nowMs: 1000,
      atBatchEnd: () => {},
      openVirtual: () => new Connection(99),
      setTimer: (connection: Connection, ms: number) => void this.timers.set(connection, ms),
      forEach: (visit: (connection: Connection) => void) =>
        this.open.filter((connection) => !this.closed.includes(connection)).forEach(visit),
      close: (connection: Connection) => this.closed.push(connection),
    };
    const downstreamSide = { progress: () => {}, responseComplete: () => {} };
    this.downstreamSide = downstreamSide as unknown as Exchange['downstreamSide'];
    const input = { free: () => {} };
    this.context = { reactor, input, counters: new Int32Array(1024), draining: false } as unknown as ProxyContext;
    this.breakers = new CircuitBreakers(this.context);
    this.http1 = new UpstreamHttp1(this.context);
    this.http1.beginAdmitted = (exchange) => {
      this.begun.push(exchange);
    };
    Object.assign(this.context, { upstream: { breakers: this.breakers }, upstreamHttp1: this.http1 });
    this.reload(breaker);
  }

  private readonly downstreamSide: Exchange['downstreamSide'];

  reload(breaker: Breaker | null): void {
    const circuitBreaker =
      breaker === null
        ? null
        : {
            normal: limits(breaker.normal),
            high: breaker.high === undefined ? null : limits(breaker.high),
            pendingTimeoutMs: 1000,
          };
    const backend = {
      ...plainBackend,
      slot: SLOT,
      idleConnectionsMax: 100,
      idleTimeoutMs: 60_000,
      endpoints: ['10.0.0.1:80', '10.0.0.2:80'].map((address, slot) => ({ ...endpointSettings(address), slot })),
      policy: { ...plainBackend.policy, circuitBreaker },
    };
    this.context.runtime = new Runtime(
      { ...this.snapshot, backends: [backend] },
      this.node,
      this.endpoints,
      new TlsContexts(() => {}),
      { random: { next: () => 0 }, clock: { nowMs: 0 }, log: () => {} },
    );
  }

  get backend(): BackendRuntime {
    return this.context.runtime.backends[0]!;
  }

  get closedSlots(): number[] {
    return this.closed.map(({ slot }) => slot);
  }

  count(word: number): number {
    return this.node.words[this.node.backendAt(SLOT) + word]!;
  }

  /** Somebody else has, or waits for, so many more. */
  others(word: number, count: number): void {
    this.node.words[this.node.backendAt(SLOT) + word]! += count;
  }

  exchange(high = false): Exchange {
    const exchange = new Exchange();
    exchange.runtime = this.context.runtime;
    exchange.backend = 0;
    exchange.endpoint = 0;
    exchange.requestComplete = true;
    exchange.replayNext = -1;
    exchange.downstreamSide = this.downstreamSide;
    if (high) exchange.policy = new RulePolicy({ ...noRulePolicy, priority: Priority.HIGH }, null);
    return exchange;
  }

  /** A connection that the breaker, if there is one, has admitted, in use by an exchange. */
  busy(endpoint = 0): Connection {
    const { backend } = this;
    const connection = new Connection(this.slots++);
    const exchange = this.exchange();
    connection.endpoint = backend.endpoints[endpoint]!;
    connection.backend = backend;
    connection.state = UpstreamState.BODY;
    connection.reusable = true;
    connection.readReady = false;
    connection.wholeResponse = true;
    connection.exchange = exchange;
    exchange.upstream = connection;
    this.open.push(connection);
    if (backend.settings.policy.circuitBreaker !== null) {
      assert.ok(this.breakers.admitConnection(exchange, backend));
      this.breakers.opened(connection, backend);
    }
    return connection;
  }

  /** The response on a connection has come whole. Returns whether it is kept. */
  done(connection: Connection): boolean {
    this.http1.discard(connection.exchange!);
    return !this.closed.includes(connection);
  }

  idle(endpoint = 0): Connection {
    const connection = this.busy(endpoint);
    assert.ok(this.done(connection));
    return connection;
  }

  /** The idle connections look whether they are of use. */
  look(connections: Connection[]): void {
    for (const connection of connections) if (!this.closed.includes(connection)) this.http1.expired(connection);
  }
}

test('connections beyond a limit that a reload has lowered are closed when they are unused', () => {
  const worker = new Worker({ normal: 6 });
  const idle = [worker.idle(), worker.idle(), worker.idle()];
  const busy = [worker.busy(), worker.busy(), worker.busy()];
  worker.reload({ normal: 2 });
  worker.look(idle);
  assert.equal(worker.count(CONNECTIONS), 3);
  assert.deepEqual(
    busy.map((connection) => worker.done(connection)),
    [false, true, true],
  );
  assert.equal(worker.count(CONNECTIONS), 2);
});

test('a connection from before a reload gives way to requests that wait in another worker', () => {
  const worker = new Worker({ normal: 6 });
  const idle = [worker.idle(), worker.idle()];
  worker.reload({ normal: 2 });
  worker.look(idle);
  assert.equal(worker.closed.length, 0);
  worker.others(PENDING, 1);
  worker.look(idle);
  assert.deepEqual(worker.closedSlots, [idle[0]!.slot]);
});

test('a kept connection belongs to the configuration of its last request', () => {
  const worker = new Worker({ normal: 6 });
  const connection = worker.busy();
  worker.reload({ normal: 6 });
  connection.exchange!.runtime = worker.context.runtime;
  worker.done(connection);
  assert.ok(connection.backend === worker.backend);
});

test('a connection from before the breaker counts once it has been used', () => {
  const worker = new Worker(null);
  const connection = worker.busy();
  worker.reload({ normal: 1 });
  connection.exchange!.runtime = worker.context.runtime;
  assert.ok(worker.done(connection));
  assert.equal(worker.count(CONNECTIONS), 1);
});

test('connections from before the breaker count when the reload is taken in, and unused ones soon look who waits', () => {
  const worker = new Worker(null);
  const [busy, idle] = [worker.busy(), worker.idle()];
  worker.reload({ normal: 2 });
  worker.breakers.reloaded();
  assert.equal(worker.count(CONNECTIONS), 2);
  assert.equal(worker.timers.get(idle), IDLE_LOOK_MS);
  assert.ok(!worker.timers.has(busy));
  worker.others(PENDING, 1);
  worker.look([idle]);
  assert.deepEqual(worker.closedSlots, [idle.slot]);
  assert.equal(worker.count(CONNECTIONS), 1);
  worker.breakers.reloaded();
  assert.equal(worker.count(CONNECTIONS), 1, 'once only');
});

test('what high priority may have open is kept although it is too much for the others', () => {
  const worker = new Worker({ normal: 1, high: 3 });
  const first = worker.idle();
  worker.others(CONNECTIONS, 2);
  worker.look([first]);
  assert.equal(worker.closed.length, 0);
  worker.others(HIGH_PENDING, 1);
  worker.look([first]);
  assert.deepEqual(worker.closedSlots, [first.slot]);
});

test('requests of priority high get a connection before the others, otherwise in order', () => {
  const worker = new Worker({ normal: 1, high: 1 });
  const connection = worker.busy();
  const [a, b, c, d] = [false, true, false, true].map((high) => worker.exchange(high)) as [
    Exchange,
    Exchange,
    Exchange,
    Exchange,
  ];
  for (const exchange of [a, b, c, d]) worker.breakers.wait(exchange, worker.backend);
  worker.done(connection);
  worker.breakers.batchEnd();
  // The kept connection stays for all of them, since here nobody takes it.
  assert.deepEqual(
    worker.begun.map((exchange) => [a, b, c, d].indexOf(exchange)),
    [1, 3, 0, 2],
  );
  assert.deepEqual([worker.count(PENDING), worker.count(HIGH_PENDING)], [0, 0]);
});

test('others are served where only the limit of high priority is reached', () => {
  const worker = new Worker({ normal: 5, high: 1 });
  worker.others(CONNECTIONS, 5);
  const high = worker.exchange(true);
  const normal = worker.exchange();
  worker.breakers.wait(high, worker.backend);
  worker.breakers.wait(normal, worker.backend);
  worker.others(CONNECTIONS, -2);
  worker.breakers.batchEnd();
  assert.ok(worker.begun.length === 1 && worker.begun[0] === normal);
  worker.breakers.withdraw(high);
  assert.equal(worker.count(HIGH_PENDING), 0);
});

test('unused connections are closed for another endpoint only if that is enough', () => {
  const worker = new Worker({ normal: 3 });
  const idle = worker.idle(1);
  worker.others(CONNECTIONS, 3);
  assert.equal(worker.breakers.admitConnection(worker.exchange(), worker.backend), false);
  assert.equal(worker.closed.length, 0);
  worker.others(CONNECTIONS, -1);
  assert.equal(worker.breakers.admitConnection(worker.exchange(), worker.backend), true);
  assert.deepEqual(worker.closedSlots, [idle.slot]);
});
