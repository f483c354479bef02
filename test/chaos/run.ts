// A long chaos run from the command line.
//
//   node test/chaos/run.ts [--seconds 60] [--seed 1] [--reloads 100]

import { parseArgs } from 'node:util';
import { runChaos } from './chaos.ts';

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
if (report.safeFailures.length + report.wrong.length > 0 || report.exitCode !== 0) process.exitCode = 1;
