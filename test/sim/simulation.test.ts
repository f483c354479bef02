// Whole-proxy runs on the simulated kernel: as many seeds as fit the time, each named when it fails.
//
// Every run of the tests takes the same seeds, unless SIM_START and SIM_SEEDS say otherwise. `node test/sim/run.ts --trace SEED` shows what happened in a seed.

import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { type RunReport, runSeed, type WorldKind, worldKinds } from './world.ts';

const START = Number(process.env.SIM_START ?? 1);
/** Time for the seeds of each world; fewer run when the machine is slow. */
const BUDGET_MS = 15_000;
/** Seeds that are run whatever the time. */
const SEEDS_MIN = 50;

/** Runs the seeds of one world. Returns what became of all requests, and how many seeds ran. */
function run(context: TestContext, kind: WorldKind, seeds: number): { tally: Record<string, number>; ran: number } {
  const endMs = performance.now() + BUDGET_MS;
  const failed: RunReport[] = [];
  const tally: Record<string, number> = {};
  let ran = 0;
  while (ran < seeds && (ran < SEEDS_MIN || performance.now() < endMs)) {
    const report = runSeed(START + ran++, kind);
    for (const [name, count] of Object.entries(report.tally)) tally[name] = (tally[name] ?? 0) + count;
    if (report.violations.length > 0) failed.push(report);
  }
  context.diagnostic(`seeds ${START} to ${START + ran - 1}: ${JSON.stringify(tally)}`);
  const details = failed.map((report) => `seed ${report.seed}: ${report.violations[0]}`);
  assert.deepEqual(details, [], `run one with: node test/sim/run.ts --only ${kind} --trace SEED`);
  return { tally, ran };
}

test('whatever peers and the kernel do, every request ends right and nothing is left behind', (context) => {
  const { tally, ran } = run(context, 'http1', Number(process.env.SIM_SEEDS ?? 1500));
  // A simulation in which nothing succeeds, or nothing fails, shows nothing.
  assert.ok((tally.complete ?? 0) > ran);
  assert.ok((tally.truncated ?? 0) > 0 && (tally.DPE ?? 0) > 0 && (tally.tunnel ?? 0) > 0);
  for (const name of ['mirrored', 'FI', 'RL', 'UH']) assert.ok((tally[name] ?? 0) > ran / 30, name);
});

test('the same holds for the streams of HTTP/2 connections, towards clients and upstreams', (context) => {
  const { tally, ran } = run(context, 'http2', Number(process.env.SIM_SEEDS ?? 150));
  assert.ok((tally.complete ?? 0) > ran);
  assert.ok((tally.truncated ?? 0) > 0 && (tally.UC ?? 0) > 0 && (tally.tunnel ?? 0) > 0);
});

for (const kind of worldKinds) {
  test(`a seed gives the same run again (${kind})`, () => {
    const lines = (): string[] => {
      const out: string[] = [];
      runSeed(7, kind, (line) => out.push(line));
      return out;
    };
    assert.deepEqual(lines(), lines());
  });
}
