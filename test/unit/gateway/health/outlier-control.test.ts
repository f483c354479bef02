// Returning, rates and accounts of outlier detection, over a clock of the test.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BackendWord, createNodeState, EndpointWord, NodeState } from '../../../../core/lb/node-state.ts';
import { noteFailure, noteSuccess, type OutlierSettings } from '../../../../core/lb/outlier-detection.ts';
import type { LogFields } from '../../../../core/workers/log.ts';
import { noBackendPolicy } from '../../../../core/workers/policies.ts';
import type { BackendSettings } from '../../../../core/workers/snapshot.ts';
import { OutlierControl } from '../../../../gateway/health/outlier-control.ts';

const base: OutlierSettings = {
  consecutive5xx: 2,
  consecutiveGatewayFailures: 0,
  intervalMs: 60_000,
  baseEjectionMs: 10_000,
  maxEjectionMs: 25_000,
  maxEjectionPercent: 50,
  successRate: null,
  failurePercentage: null,
  ramp: [1, 25, 100],
  rampStepMs: 5000,
};

/** A backend with four endpoints, in slots 0 to 3; time begins a second before 32 bits end. */
function harness(more: Partial<OutlierSettings> = {}) {
  const settings = { ...base, ...more };
  const node = new NodeState(createNodeState(1, 16, 4), -1);
  const lines: string[] = [];
  const control = new OutlierControl(node, (level, message, fields: LogFields = {}) => {
    const { endpoint, cause, forMs, sharePercent } = fields;
    lines.push([level, message, endpoint, cause, forMs, sharePercent].filter((part) => part !== undefined).join(' '));
  });
  const backend = (slots: number[], outlierDetection: OutlierSettings | null = settings): BackendSettings =>
    ({
      name: 'app',
      slot: 1,
      endpoints: slots.map((slot) => ({ address: `e${slot}`, slot })),
      policy: { ...noBackendPolicy, outlierDetection },
    }) as unknown as BackendSettings;
  let nowMs = 0x7fffffff - 1000;
  control.use([backend([0, 1, 2, 3])], nowMs | 0);
  const word = (slot: number, index: number): number => node.words[node.endpointAt(slot) + index]!;
  return {
    control,
    node,
    lines,
    backend,
    word,
    withheld: (slot: number): number => word(slot, EndpointWord.WITHHELD_PERMILLE),
    ejected: (): number => node.words[node.backendAt(1) + BackendWord.EJECTED]!,
    generation: (): number => node.words[node.backendAt(1) + BackendWord.GENERATION]!,
    fail: (slot: number, times = 1): void => {
      for (let i = 0; i < times; i++) noteFailure(node, settings, 1, slot, 4, true, true, nowMs | 0);
    },
    succeed: (slot: number, times: number): void => {
      for (let i = 0; i < times; i++) noteSuccess(node, settings, slot);
    },
    /** Ticks once a second for so long. */
    pass: (ms: number): void => {
      for (const endMs = nowMs + ms; nowMs < endMs; ) {
        nowMs += 1000;
        control.tick(nowMs | 0);
      }
    },
    now: (): number => nowMs | 0,
  };
}

test('an ejected endpoint is back step by step after its time, over the end of 32 bits of clock', () => {
  const { fail, pass, withheld, lines, ejected, generation } = harness();
  fail(0, 2);
  pass(9000);
  assert.equal(withheld(0), 1000);
  assert.equal(ejected(), 1);
  pass(1000);
  assert.equal(withheld(0), 990);
  assert.equal(ejected(), 0);
  pass(4000);
  assert.equal(withheld(0), 990);
  pass(1000);
  assert.equal(withheld(0), 750);
  pass(5000);
  assert.equal(withheld(0), 0);
  assert.equal(generation(), 4);
  assert.deepEqual(lines, [
    'warn endpoint ejected e0 2 failures (5xx or no answer) in a row 10000',
    'info endpoint returns from ejection e0 1',
    'debug endpoint returns from ejection e0 25',
    'info endpoint back after ejection e0',
  ]);
});

test('errors of before the ejection do not count after it', () => {
  const { fail, pass, withheld } = harness({ ramp: [100] });
  fail(0, 2);
  fail(0, 5);
  pass(10_000);
  assert.equal(withheld(0), 0);
  fail(0, 1);
  assert.equal(withheld(0), 0);
});

test('the time grows with each ejection up to the longest, and shrinks with each interval in peace', () => {
  const { fail, pass, lines, withheld } = harness({ ramp: [100] });
  const ejectAndReturn = (ms: number): void => {
    fail(0, 2);
    pass(ms - 1000);
    assert.equal(withheld(0), 1000);
    pass(1000);
    assert.equal(withheld(0), 0);
  };
  ejectAndReturn(10_000);
  ejectAndReturn(20_000);
  ejectAndReturn(25_000);
  // 55 s have passed: the next interval ends soon, and one more after it.
  pass(65_000);
  ejectAndReturn(20_000);
  assert.deepEqual(
    lines.filter((line) => line.startsWith('warn')).map((line) => line.split(' ').at(-1)),
    ['10000', '20000', '25000', '20000'],
  );
});

test('an error during the return is logged with the share that was reached', () => {
  const { fail, pass, lines } = harness();
  fail(0, 2);
  pass(15_000);
  fail(0, 1);
  pass(1000);
  assert.equal(lines.at(-1), 'warn endpoint ejected e0 a failure during its return, at 25 % of its share 20000');
});

test('an endpoint with a success rate far below the others is ejected at the end of the interval', () => {
  const { succeed, fail, pass, withheld, lines } = harness({
    consecutive5xx: 0,
    successRate: { minimumHosts: 4, requestVolume: 10, stdevFactor: 1.5 },
  });
  for (const slot of [0, 1, 2]) succeed(slot, 10);
  succeed(3, 5);
  fail(3, 5);
  pass(59_000);
  assert.equal(withheld(3), 0);
  pass(1000);
  assert.deepEqual([0, 1, 2, 3].map(withheld), [0, 0, 0, 1000]);
  assert.equal(lines[0], 'warn endpoint ejected e3 a success rate of 50 %, far below that of the others 10000');
});

test('an endpoint that fails most of its requests is ejected, and what counts is one interval only', () => {
  const { succeed, fail, pass, withheld, lines } = harness({
    consecutive5xx: 0,
    failurePercentage: { threshold: 60, minimumHosts: 1, requestVolume: 10 },
  });
  fail(0, 9);
  pass(60_000);
  fail(0, 9);
  pass(60_000);
  assert.equal(withheld(0), 0);
  succeed(0, 4);
  fail(0, 6);
  pass(60_000);
  assert.equal(withheld(0), 1000);
  assert.equal(lines[0], 'warn endpoint ejected e0 60 % of its requests failed 10000');
});

test('an ejected endpoint that leaves makes room for others', () => {
  const { fail, control, backend, ejected, withheld, now } = harness();
  fail(0, 2);
  fail(1, 2);
  fail(2, 2);
  assert.equal(withheld(2), 0);
  control.use([backend([1, 2, 3])], now());
  assert.equal(ejected(), 1);
});

test('known endpoints stay ejected over a new snapshot, and are told of once', () => {
  const { fail, control, backend, withheld, lines, pass, now } = harness();
  fail(0, 2);
  pass(1000);
  control.use([backend([0, 1, 2, 3])], now());
  pass(1000);
  assert.equal(withheld(0), 1000);
  assert.equal(lines.length, 1);
});

test('a backend without outlier detection has no ejected endpoints any more', () => {
  const { fail, control, backend, withheld, ejected, generation, now, pass, lines } = harness();
  fail(0, 2);
  const before = generation();
  control.use([backend([0, 1, 2, 3], null)], now());
  assert.equal(withheld(0), 0);
  assert.equal(ejected(), 0);
  assert.equal(generation(), before + 1);
  // Exchanges of before go on counting failures.
  fail(1, 2);
  assert.equal(ejected(), 1);
  assert.equal(control.active, true);
  pass(1000);
  assert.deepEqual([withheld(1), ejected()], [0, 0]);
  control.use([backend([0, 1, 2, 3], null)], now());
  fail(1, 2);
  pass(1000);
  assert.equal(withheld(1), 0);
  // When it has it again, what was before is no news.
  control.use([backend([0, 1, 2, 3])], now());
  pass(1000);
  assert.deepEqual(lines, []);
  control.use([], now());
  assert.equal(control.active, false);
});

test('an ejected endpoint that comes back to a backend without outlier detection is not ejected', () => {
  const { fail, control, backend, withheld, ejected, now } = harness();
  fail(0, 2);
  control.use([], now());
  assert.equal(withheld(0), 1000);
  control.use([backend([0, 1, 2, 3], null)], now());
  assert.deepEqual([withheld(0), ejected()], [0, 0]);
});

test('a count that a dead worker left wrong is put right at the second look', () => {
  const { node, pass, ejected } = harness();
  Atomics.add(node.words, node.backendAt(1) + BackendWord.EJECTED, 1);
  pass(1000);
  assert.equal(ejected(), 1);
  pass(1000);
  assert.equal(ejected(), 0);
});
