// Copies of requests that wait for a quiet moment: how many may, where none comes.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { ProxyContext } from '../../../../core/exchange/context.ts';
import { Exchange } from '../../../../core/exchange/exchange.ts';
import { MIRRORS_MAX, Mirrors } from '../../../../core/exchange/mirror.ts';
import { MirrorTarget } from '../../../../core/exchange/mirror-target.ts';
import { Counter } from '../../../../core/telemetry/metrics.ts';
import { openBench } from '../io/fake-kernel.ts';

/** Mirrors of a worker that has a request under way all the time. */
class Bench {
  readonly counters = new Float64Array(1024);
  /** Copies that have been sent, by the number of their request. */
  readonly sent: number[] = [];
  private readonly io = openBench({ slots: 2 * MIRRORS_MAX, bufferBytes: 8 * 1024 * 1024 });
  private readonly mirrors: Mirrors;
  private readonly target = new MirrorTarget({ backend: 'copy', share: 1, timeoutMs: 1000, bodyBytesMax: 0 });
  private readonly runtime = {
    http: { streamIdleTimeoutMs: 1000 },
    backends: [{ settings: { name: 'copy' }, destinations: null, balancer: { pick: () => 0 } }],
    backendFor: (backend: number) => backend,
  } as unknown as Exchange['runtime'];

  constructor() {
    this.counters[Counter.REQUESTS_IN_FLIGHT] = 1;
    this.mirrors = new Mirrors({
      reactor: this.io.reactor,
      counters: this.counters,
      ids: { next: () => 0 },
      beginExchange: () => {
        this.counters[Counter.REQUESTS_IN_FLIGHT]!++;
        return new Exchange();
      },
      upstream: { start: (copy: Exchange) => this.sent.push(copy.rule) },
    } as unknown as ProxyContext);
  }

  /** Requests from number `first` up to `end` begin, complete and with a copy each; then their batch is over. */
  request(first: number, end: number): void {
    for (let number = first; number < end; number++) {
      const exchange = new Exchange();
      exchange.runtime = this.runtime;
      exchange.downstream = this.io.open().connection;
      exchange.headBlock = this.io.reactor.arena.allocate(1000);
      exchange.headOffset = exchange.headBlock;
      exchange.headLength = 100;
      exchange.requestComplete = true;
      exchange.rule = number;
      this.mirrors.began(exchange, [this.target]);
    }
    this.mirrors.batchDone(end - first);
    this.io.reactor.runBatch(0);
  }
}

test('copies that wait for a quiet moment take a quarter of the places, and beyond that the oldest are sent', () => {
  const bench = new Bench();
  const most = MIRRORS_MAX / 4;
  bench.request(0, most);
  assert.deepEqual(bench.sent, []);
  bench.request(most, most + 3);
  assert.deepEqual(bench.sent, [0, 1, 2]);
  bench.request(most + 3, most + 4);
  assert.deepEqual(bench.sent, [0, 1, 2, 3]);
  assert.equal(bench.counters[Counter.MIRRORS_IN_FLIGHT], most + 4);
});
