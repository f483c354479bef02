// Runs simulations over many seeds from the command line.
//
//   node test/sim/run.ts --seeds 1000 [--start S]     run seeds S .. S + 999, print those that fail
//                         [--failures N]            stop after N failing seeds (10)
//                         [--only http1|http2]      one of the two worlds of every seed
//   node test/sim/run.ts --trace SEED [--only ...]    run one seed and print everything that happens

import { parseArgs } from 'node:util';
import { type RunReport, runSeed, type WorldKind, worldKinds } from './world.ts';

const { values } = parseArgs({
  options: {
    seeds: { type: 'string', default: '1000' },
    start: { type: 'string', default: '1' },
    trace: { type: 'string' },
    only: { type: 'string' },
    failures: { type: 'string', default: '10' },
  },
});

const kinds = values.only === undefined ? worldKinds : [values.only as WorldKind];
if (kinds.some((kind) => !worldKinds.includes(kind))) throw new Error(`--only takes ${worldKinds.join(' or ')}`);

function describe(report: RunReport): string {
  const counts = Object.entries(report.tally).map(([name, count]) => `${name} ${count}`);
  const troubles = report.troubles.length === 0 ? 'none' : report.troubles.join(' ');
  return `seed ${report.seed} ${report.kind}: troubles: ${troubles}; requests: ${counts.join(', ')}; ${report.batches} batches`;
}

if (values.trace !== undefined) {
  for (const kind of kinds) {
    const report = runSeed(Number(values.trace), kind, (line) => console.log(line));
    console.log(describe(report));
    for (const violation of report.violations) console.log(`  ${violation}`);
    if (report.violations.length > 0) process.exitCode = 1;
  }
} else {
  const start = Number(values.start);
  const failuresMax = Number(values.failures);
  const total: Record<string, number> = {};
  const startMs = performance.now();
  let failures = 0;
  let ran = 0;
  for (let seed = start; seed < start + Number(values.seeds) && failures < failuresMax; seed++) {
    ran++;
    for (const kind of kinds) {
      const report = runSeed(seed, kind);
      for (const [name, count] of Object.entries(report.tally)) total[name] = (total[name] ?? 0) + count;
      if (report.violations.length === 0) continue;
      failures++;
      console.log(describe(report));
      for (const violation of report.violations.slice(0, 5)) console.log(`  ${violation}`);
    }
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
