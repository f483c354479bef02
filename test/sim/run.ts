// Runs simulations over many seeds from the command line.
//
//   node test/sim/run.ts --seeds 1000 [--start S]     run seeds S .. S + 999, print those that fail
//                         [--failures N]            stop after N failing seeds (10)
//   node test/sim/run.ts --trace SEED                 run one seed and print everything that happens

import { parseArgs } from 'node:util';
import { type RunReport, runSeed } from './world.ts';

const { values } = parseArgs({
  options: {
    seeds: { type: 'string', default: '1000' },
    start: { type: 'string', default: '1' },
    trace: { type: 'string' },
    failures: { type: 'string', default: '10' },
  },
});

function describe(report: RunReport): string {
  const counts = Object.entries(report.tally).map(([name, count]) => `${name} ${count}`);
  const troubles = report.troubles.length === 0 ? 'none' : report.troubles.join(' ');
  return `seed ${report.seed}: troubles: ${troubles}; requests: ${counts.join(', ')}; ${report.batches} batches`;
}

if (values.trace !== undefined) {
  const report = runSeed(Number(values.trace), (line) => console.log(line));
  console.log(describe(report));
  for (const violation of report.violations) console.log(`  ${violation}`);
  process.exitCode = report.violations.length > 0 ? 1 : 0;
} else {
  const start = Number(values.start);
  const failuresMax = Number(values.failures);
  const total: Record<string, number> = {};
  const startMs = performance.now();
  let failures = 0;
  let ran = 0;
  for (let seed = start; seed < start + Number(values.seeds) && failures < failuresMax; seed++) {
    const report = runSeed(seed);
    ran++;
    for (const [name, count] of Object.entries(report.tally)) total[name] = (total[name] ?? 0) + count;
    if (report.violations.length === 0) continue;
    failures++;
    console.log(describe(report));
    for (const violation of report.violations.slice(0, 5)) console.log(`  ${violation}`);
  }
  const seconds = (performance.now() - startMs) / 1000;
  console.log(`${ran} seeds, ${failures} failed, ${((seconds * 1000) / ran).toFixed(1)} ms each`);
  console.log(
    `requests: ${Object.entries(total)
      .map(([name, count]) => `${name} ${count}`)
      .join(', ')}`,
  );
  process.exitCode = failures > 0 ? 1 : 0;
}
