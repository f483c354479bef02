// What the control thread says of circuit breakers.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BreakerLimit, overflowWord } from '../../../core/exchange/circuit-breaker.ts';
import { BackendWord, createNodeState, NodeState } from '../../../core/lb/node-state.ts';
import type { BackendSettings } from '../../../core/workers/snapshot.ts';
import { BreakerWatch } from '../../../gateway/breaker-watch.ts';

const limits = { connectionsMax: 2, pendingMax: 5, requestsMax: 0, retriesMax: 0 };

function backend(name: string, slot: number): BackendSettings {
  const circuitBreaker = { normal: limits, high: null, pendingTimeoutMs: 1000 };
  return { name, slot, policy: { circuitBreaker } } as unknown as BackendSettings;
}

function watch(): { node: NodeState; watch: BreakerWatch; lines: string[]; at: (ms: number) => void } {
  const node = new NodeState(createNodeState(1, 1, 4), -1);
  const lines: string[] = [];
  let nowMs = 0;
  const log = (level: string, message: string, fields: object = {}): void =>
    void lines.push(`${nowMs} ${level} ${message} ${JSON.stringify(fields)}`);
  const result = new BreakerWatch(node, log, () => nowMs);
  return {
    node,
    watch: result,
    lines,
    at: (ms) => {
      nowMs = ms;
      result.look();
    },
  };
}

test('a breaker is open while a limit is reached', () => {
  const { node, watch: breakers } = watch();
  breakers.use([backend('a', 1)]);
  breakers.close();
  const connections = node.backendAt(1) + BackendWord.CONNECTIONS;
  assert.equal(breakers.states()[0]!.open, false);
  node.words[connections] = 2;
  node.words[node.backendAt(1) + overflowWord(BreakerLimit.CONNECTIONS, false)] = 7;
  assert.deepEqual(breakers.states(), [
    {
      backend: 'a',
      open: true,
      limits: [
        { limit: 'maxConnections', priority: 'default', inUse: 2, max: 2, open: true, overflows: 7 },
        { limit: 'maxPendingRequests', priority: 'default', inUse: 0, max: 5, open: false, overflows: 0 },
      ],
    },
  ]);
});

test('the log says once that a breaker refuses, and once that it has stopped', () => {
  const { node, watch: breakers, lines, at } = watch();
  breakers.use([backend('a', 1), backend('quiet', 2)]);
  breakers.close();
  const refused = node.backendAt(1) + overflowWord(BreakerLimit.PENDING, false);
  at(0);
  for (let second = 1; second <= 30; second++) {
    if (second <= 15) node.words[refused] += 2;
    at(second * 1000);
  }
  assert.deepEqual(lines, [
    '1000 warn circuit breaker open {"backend":"a","limit":"maxPendingRequests","overflows":2}',
    '25000 info circuit breaker closed {"backend":"a","overflows":30}',
  ]);
});

test('a breaker that opens and closes all the time gets a line every ten seconds at most', () => {
  const { node, watch: breakers, lines, at } = watch();
  breakers.use([backend('a', 1)]);
  breakers.close();
  const refused = node.backendAt(1) + overflowWord(BreakerLimit.REQUESTS, true);
  at(0);
  for (let second = 1; second <= 120; second++) {
    if (second % 24 < 2) node.words[refused]++;
    at(second * 1000);
  }
  const times = lines.map((line) => Number(line.split(' ')[0]));
  for (let i = 1; i < times.length; i++) assert.ok(times[i]! - times[i - 1]! >= 10_000, lines.join('\n'));
  assert.ok(lines.some((line) => line.includes('open')) && lines.some((line) => line.includes('closed')));
});
