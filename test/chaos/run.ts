// A long chaos run from the command line.
//
//   node test/chaos/run.ts [--seconds 60] [--seed 1] [--reloads 100]

import { parseArgs } from 'node:util';
import { PLAIN_FAILURES_PER_TROUBLE, plainFailures, runChaos } from './chaos.ts';

const { values } = parseArgs({
  options: {
    seconds: { type: 'string', default: '60' },
    seed: { type: 'string', default: '1' },
    reloads: { type: 'string', default: '100' },
  },
});
const report = await runChaos({
  seed: Number(values.seed),
  seconds: Number(values.seconds),
  reloads: Number(values.reloads),
  log: (line) => console.log(line),
});
console.log(JSON.stringify(report, null, 2));
const failures = [...report.safeFailures, ...report.wrong, ...report.lasting];
const troubles = Object.values(report.troubles).reduce((sum, count) => sum + count, 0);
const tooMany = plainFailures(report) > troubles * PLAIN_FAILURES_PER_TROUBLE;
if (failures.length > 0 || tooMany || report.exitCode !== 0) process.exitCode = 1;
