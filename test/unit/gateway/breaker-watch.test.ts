// What the control thread says of circuit breakers.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BreakerLimit, overflowWord, trialBit } from '../../../core/exchange/circuit-breaker.ts';
import { BackendWord, createNodeState, NodeState } from '../../../core/lb/node-state.ts';
import type { BackendSettings } from '../../../core/workers/snapshot.ts';
import { BreakerWatch } from '../../../gateway/breaker-watch.ts';

const limits = { connectionsMax: 2, pendingMax: 5, requestsMax: 0, retriesMax: 0 };

function backend(name: string, slot: number, high: typeof limits | null = null): BackendSettings {
  const circuitBreaker = { normal: limits, high, pendingTimeoutMs: 1000 };
  return { name, slot, policy: { circuitBreaker } } as unknown as BackendSettings;
}

interface Setup {
  node: NodeState;
  watch: BreakerWatch;
  lines: string[];
  /** Looks at this time. */
  at: (ms: number) => void;
  /** Counts a refusal, as a worker does. */
  refuse: (limit: number, high?: boolean) => void;
  /** A worker admits a request, with what it does of its trial. */
  admit: (high?: boolean) => void;
  /** States of the first breaker, its own first. */
  states: () => string[];
}

function watch(): Setup {
  const node = new NodeState(createNodeState(1, 1, 4), -1);
  const lines: string[] = [];
  let nowMs = 0;
  const log = (level: string, message: string, fields: object = {}): void =>
    void lines.push(`${nowMs} ${level} ${message} ${JSON.stringify(fields)}`);
  const result = new BreakerWatch(node, log, () => nowMs);
  const trials = node.backendAt(1) + BackendWord.BREAKER_TRIALS;
  return {
    node,
    watch: result,
    lines,
    at: (ms) => {
      nowMs = ms;
      result.look();
    },
    refuse: (limit, high = false) => void Atomics.add(node.words, node.backendAt(1) + overflowWord(limit, high), 1),
    admit: (high = false) => void Atomics.and(node.words, trials, ~trialBit(high)),
    states: () => {
      const { state, limits } = result.states()[0]!;
      return [state, ...limits.map((limit) => limit.state)];
    },
  };
}

test('a breaker tells what is in use, what it has refused and its state', () => {
  const { node, watch: breakers, refuse } = watch();
  breakers.use([backend('a', 1)]);
  breakers.close();
  node.words[node.backendAt(1) + BackendWord.CONNECTIONS] = 2;
  assert.deepEqual(
    breakers.states()[0]!.limits[0],
    { limit: 'maxConnections', priority: 'default', state: 'closed', inUse: 2, max: 2, overflows: 0 },
    'a limit that is reached refuses nobody yet',
  );
  refuse(BreakerLimit.CONNECTIONS);
  assert.deepEqual(breakers.states(), [
    {
      backend: 'a',
      state: 'open',
      limits: [
        { limit: 'maxConnections', priority: 'default', state: 'open', inUse: 2, max: 2, overflows: 1 },
        { limit: 'maxPendingRequests', priority: 'default', state: 'closed', inUse: 0, max: 5, overflows: 0 },
      ],
    },
  ]);
});

test('a limit is open while it refuses, then half open for ten seconds with requests, then closed', () => {
  const { watch: breakers, at, refuse, admit, states } = watch();
  breakers.use([backend('a', 1)]);
  breakers.close();
  at(0);
  for (let second = 1; second <= 3; second++) {
    refuse(BreakerLimit.PENDING);
    at(second * 1000);
    assert.deepEqual(states(), ['open', 'closed', 'open']);
  }
  at(4000);
  assert.deepEqual(states(), ['half_open', 'closed', 'half_open']);
  admit();
  at(12_900);
  assert.deepEqual(states(), ['half_open', 'closed', 'half_open']);
  at(13_000);
  assert.deepEqual(states(), ['closed', 'closed', 'closed']);
});

test('a refusal in its half-open time opens a limit again, and its trial begins anew', () => {
  const { watch: breakers, at, refuse, admit, states } = watch();
  breakers.use([backend('a', 1)]);
  breakers.close();
  refuse(BreakerLimit.CONNECTIONS);
  at(1000);
  admit();
  at(10_000);
  assert.equal(states()[0], 'half_open');
  refuse(BreakerLimit.CONNECTIONS);
  at(10_500);
  assert.equal(states()[0], 'open');
  at(11_500);
  admit();
  at(20_400);
  assert.equal(states()[0], 'half_open');
  at(20_500);
  assert.equal(states()[0], 'closed');
});

test('a limit stays half open until a request of its class has been admitted since the last refusal', () => {
  const { watch: breakers, at, refuse, admit, states } = watch();
  breakers.use([backend('a', 1, limits)]);
  breakers.close();
  refuse(BreakerLimit.PENDING, true);
  at(1000);
  at(60_000);
  assert.deepEqual(states(), ['half_open', 'closed', 'closed', 'closed', 'half_open']);
  admit(false);
  at(61_000);
  assert.deepEqual(states(), ['half_open', 'closed', 'closed', 'closed', 'half_open']);
  admit(true);
  at(62_000);
  assert.deepEqual(states(), ['closed', 'closed', 'closed', 'closed', 'closed']);
});

test('breakers keep their states over a reload, unless the limit is gone', () => {
  const { watch: breakers, at, refuse, states } = watch();
  breakers.use([backend('a', 1, limits)]);
  refuse(BreakerLimit.PENDING, false);
  refuse(BreakerLimit.PENDING, true);
  at(1000);
  breakers.use([backend('a', 1, limits)]);
  assert.deepEqual(states(), ['open', 'closed', 'open', 'closed', 'open']);
  breakers.use([backend('a', 1)]);
  assert.deepEqual(states(), ['open', 'closed', 'open']);
  breakers.use([backend('a', 1, limits)]);
  assert.deepEqual(states(), ['open', 'closed', 'open', 'closed', 'closed']);
  breakers.close();
});

test('the log says once that a breaker refuses, that it has stopped, and that it is closed', () => {
  const { node, watch: breakers, lines, at, admit } = watch();
  breakers.use([backend('a', 1), backend('quiet', 2)]);
  breakers.close();
  const refused = node.backendAt(1) + overflowWord(BreakerLimit.PENDING, false);
  at(0);
  for (let second = 1; second <= 30; second++) {
    if (second <= 15) node.words[refused] += 2;
    at(second * 1000);
    admit();
  }
  assert.deepEqual(lines, [
    '1000 warn circuit breaker open {"backend":"a","limit":"maxPendingRequests","overflows":2}',
    '16000 info circuit breaker half open {"backend":"a","overflows":30}',
    '26000 info circuit breaker closed {"backend":"a","overflows":30}',
  ]);
});

test('a breaker that opens and closes all the time gets a line every ten seconds at most', () => {
  const { watch: breakers, lines, at, refuse, admit } = watch();
  breakers.use([backend('a', 1)]);
  breakers.close();
  at(0);
  for (let second = 1; second <= 120; second++) {
    if (second % 24 < 2) refuse(BreakerLimit.CONNECTIONS);
    at(second * 1000);
    admit();
  }
  const times = lines.map((line) => Number(line.split(' ')[0]));
  for (let i = 1; i < times.length; i++) assert.ok(times[i]! - times[i - 1]! >= 10_000, lines.join('\n'));
  assert.ok(lines.some((line) => line.includes('open')) && lines.some((line) => line.includes('closed')));
});
