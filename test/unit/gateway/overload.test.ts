// How overload is judged: which level, decided by what, and how it ends.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { OverloadLevel } from '../../../core/exchange/overload.ts';
import { createNodeState, NodeState } from '../../../core/lb/node-state.ts';
import { Counter, createMetricsBuffer } from '../../../core/telemetry/metrics.ts';
import { OverloadJudge, OverloadMonitor, type Readings } from '../../../gateway/overload.ts';

const { ACCEPT, DEFAULT, LOW, NONE } = OverloadLevel;

const config = { descriptors: 70, connections: 0, buffers: 70, memory: 70, loopLagMs: 100 };

function readings(changes: Partial<Readings> = {}): Readings {
  return { descriptors: 0, connections: 0, buffers: 0, memory: 0, loopLag: 0, ...changes };
}

test('levels follow each other from the threshold on, by thirds of the way to 100 percent', () => {
  for (const trigger of ['descriptors', 'buffers', 'memory'] as const) {
    for (const [share, level] of [
      [0.69, NONE],
      [0.7, ACCEPT],
      [0.79, ACCEPT],
      [0.81, LOW],
      [0.89, LOW],
      [0.91, DEFAULT],
      [1.5, DEFAULT],
    ] as const) {
      const judge = new OverloadJudge();
      judge.judge(readings({ [trigger]: share }), config, 0);
      assert.equal(judge.level, level, `${trigger} ${share}`);
      assert.equal(judge.trigger, level === NONE ? undefined : trigger);
    }
  }
});

test('the lag of the loop counts in multiples', () => {
  for (const [lag, level] of [
    [99, NONE],
    [100, ACCEPT],
    [199, ACCEPT],
    [200, LOW],
    [300, DEFAULT],
    [5000, DEFAULT],
  ] as const) {
    const judge = new OverloadJudge();
    judge.judge(readings({ loopLag: lag }), config, 0);
    assert.equal(judge.level, level, `${lag} ms`);
  }
});

test('what is not watched does not count', () => {
  const judge = new OverloadJudge();
  const off = { descriptors: 0, connections: 0, buffers: 0, memory: 0, loopLagMs: 0 };
  assert.ok(!judge.judge(readings({ descriptors: 1, connections: 1, buffers: 1, memory: 1, loopLag: 9999 }), off, 0));
  assert.equal(judge.level, NONE);
  assert.equal(judge.pressures.size, 0);
});

test('the worst trigger decides', () => {
  const judge = new OverloadJudge();
  judge.judge(readings({ buffers: 0.72, loopLag: 250, memory: 0.5 }), config, 0);
  assert.equal(judge.level, LOW);
  assert.equal(judge.trigger, 'loopLag');
  assert.ok(Math.abs(judge.pressures.get('loopLag')! - 2.5) < 1e-9);
});

test('a level begins at once, and ends half a step lower, one at a time', () => {
  const judge = new OverloadJudge();
  assert.ok(judge.judge(readings({ buffers: 0.95 }), config, 0));
  assert.equal(judge.level, DEFAULT);
  // Below its beginning, but not by half a step.
  assert.ok(!judge.judge(readings({ buffers: 0.87 }), config, 5000));
  assert.ok(judge.judge(readings({ buffers: 0.84 }), config, 6000));
  assert.equal(judge.level, LOW);
  assert.ok(!judge.judge(readings({ buffers: 0 }), config, 6500), 'a second must pass between two levels');
  assert.ok(judge.judge(readings({ buffers: 0 }), config, 7000));
  assert.equal(judge.level, ACCEPT);
  assert.ok(judge.judge(readings({ buffers: 0 }), config, 8000));
  assert.equal(judge.level, NONE);
  assert.equal(judge.trigger, undefined);
});

test('a gateway at the edge does not flap', () => {
  const judge = new OverloadJudge();
  let changes = 0;
  for (let i = 0; i < 1000; i++) {
    if (judge.judge(readings({ buffers: i % 2 === 0 ? 0.705 : 0.695 }), config, i * 200)) changes++;
  }
  assert.equal(changes, 1);
});

test('the monitor reads the workers, tells them the level, and takes it back in the end', (t) => {
  t.mock.timers.enable({ apis: ['setInterval'] });
  const node = new NodeState(createNodeState(2, 1, 1), -1);
  const metrics = [createMetricsBuffer(), createMetricsBuffer()];
  const counters = metrics.map((buffer) => new Float64Array(buffer));
  const lines: string[] = [];
  const monitor = new OverloadMonitor(
    { metrics, connectionsMax: 100, descriptorsMax: 1000, descriptorsFixed: 20, node },
    (level, message, fields) => lines.push(`${level} ${message} ${JSON.stringify(fields ?? {})}`),
  );
  monitor.use({ descriptors: 0, connections: 70, buffers: 70, memory: 0, loopLagMs: 0 });
  t.mock.timers.tick(200);
  assert.equal(node.overload, NONE);
  // One worker is enough.
  counters[1]![Counter.DOWNSTREAM_OPEN] = 60;
  counters[1]![Counter.UPSTREAM_OPEN] = 22;
  t.mock.timers.tick(200);
  assert.equal(node.overload, LOW);
  assert.ok(node.connectionsScarce);
  assert.deepEqual(lines, [
    'warn overloaded: new connections wait, requests of priority low are refused {"level":2,"trigger":"connections","value":"82 %"}',
  ]);
  node.countShed(true);
  node.countShed(false);
  node.countShed(false);
  assert.deepEqual([monitor.shedLow, monitor.shedOthers], [1, 2]);
  monitor.close();
  assert.equal(node.overload, NONE);
  assert.ok(!node.connectionsScarce);
});

test('it goes on judging when no descriptor is left to read the memory with', (t) => {
  t.mock.timers.enable({ apis: ['setInterval'] });
  t.mock.method(process.memoryUsage, 'rss', () => {
    throw Object.assign(new Error('EMFILE: too many open files, uv_resident_set_memory'), { code: 'EMFILE' });
  });
  const node = new NodeState(createNodeState(1, 1, 1), -1);
  const metrics = [createMetricsBuffer()];
  const sources = { metrics, connectionsMax: 100, descriptorsMax: 100, descriptorsFixed: 20, node };
  const monitor = new OverloadMonitor(sources, () => {});
  t.after(() => monitor.close());
  monitor.use({ descriptors: 70, connections: 0, buffers: 0, memory: 70, loopLagMs: 0 });
  new Float64Array(metrics[0]!)[Counter.DOWNSTREAM_OPEN] = 80;
  t.mock.timers.tick(200);
  assert.equal(node.overload, DEFAULT);
});
