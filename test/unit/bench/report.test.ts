// The report of the benchmarks: verdicts, ratios, and errors that cannot be overlooked.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { LoadSummary } from '../../../bench/lib/load.ts';
import { atMost, cpuRatio, loadTable, renderReport, renderScenario, renderTargets } from '../../../bench/lib/report.ts';
import { median } from '../../../bench/lib/stats.ts';

function summary(name: string, cpuUsPerRequest: number, errors = ''): LoadSummary {
  return {
    name,
    peerName: name,
    cpuUsPerRequest,
    cpuSpread: 0.1,
    requestsPerSecond: 100_000,
    latencyP50Us: 500,
    latencyP99Us: 900,
    proxyCores: 0.9,
    cpuMsPerGb: 400,
    errors,
  };
}

function result(targets: ReturnType<typeof atMost>[], problems: string[] = []) {
  const summaries = [summary('portcullis', 8), summary('nginx', 10, '3 read')];
  return { name: 'c64', title: 'T', description: 'D', table: loadTable(summaries), targets, problems };
}

test('a target is reached at its limit and missed just above it', () => {
  assert.equal(atMost('x', 0.8, 0.8).reached, true);
  assert.equal(atMost('x', 0.8001, 0.8).reached, false);
});

test('a value just above its limit does not look equal to it', () => {
  assert.equal(atMost('x', 0.8004, 0.8).measured, '0.8004');
  assert.equal(atMost('x', 500.3, 500, ' ms').measured, '500.3 ms');
  assert.equal(atMost('x', 499, 500, ' ms').measured, '499 ms');
});

test('what was not measured is neither reached nor missed', () => {
  for (const measured of [null, Number.NaN]) {
    const target = atMost('x', measured, 1);
    assert.equal(target.reached, null);
    assert.match(renderTargets([result([target])]), /not measured \|\s+- \|/);
  }
});

test('a missed target stands out', () => {
  assert.match(renderTargets([result([atMost('x', 2, 1)])]), /\*\*missed\*\*/);
  assert.match(renderTargets([result([atMost('x', 1, 1)])]), /\| +reached \|/);
});

test('ratios are Portcullis over the other, and missing without one of them', () => {
  const summaries = [summary('portcullis', 8), summary('nginx', 10)];
  assert.equal(cpuRatio(summaries, 'nginx'), 0.8);
  assert.equal(cpuRatio(summaries, 'haproxy'), null);
  assert.equal(cpuRatio([summary('nginx', 10)], 'nginx'), null);
});

test('errors of a proxy are bold in its row, and problems are listed and named at the top', () => {
  const doubtful = result([], ['nginx, round 1: errors: 3 read']);
  assert.match(renderScenario(doubtful), /\*\*3 read\*\*/);
  assert.match(renderScenario(doubtful), /- \*\*!\*\* nginx, round 1/);
  const head = {
    machine: { cpu: 'C', cores: 2, memoryGiB: 4, kernel: 'Linux', node: 'v26', load: 1.25, descriptorsMax: 20_000 },
    options: {
      help: false,
      quick: true,
      only: [],
      peers: null,
      rounds: 1,
      seconds: 1,
      backend: 'nginx' as const,
      out: null,
    },
    versions: ['nginx: 1'],
    dateIso: '2026-01-01',
  };
  const report = renderReport(head, [doubtful]);
  assert.match(report, /disturbances happened in `c64`/);
  assert.match(report, /A quick run/);
  assert.match(report, /Load average before the run: 1\.25/);
});

test('the rows of a table are all as wide as its head', () => {
  const lines = renderScenario(result([])).split('\n');
  const rows = lines.filter((line) => line.startsWith('|'));
  assert.equal(rows.length, 4);
  for (const row of rows) assert.equal(row.split('|').length, rows[0].split('|').length);
});

test('the median is the middle, or the mean of the two in the middle', () => {
  assert.equal(median([9, 1, 5]), 5);
  assert.equal(median([10, 9, 1, 2]), 5.5);
  assert.ok(Number.isNaN(median([])));
});
