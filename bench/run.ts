// `npm run bench`: end-to-end benchmarks, Portcullis side by side with the proxies installed here.
//
// Invariant: whatever happens, all processes are ended and the temporary directory is removed
// (lib/processes.ts). Exit code: 0 measured without errors; 1 errors happened while measuring
// (missed targets are not errors); 2 the benchmark could not be run as asked.

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { BenchContext } from './lib/context.ts';
import { BUSY_LOAD, describeMachine, firstLine } from './lib/machine.ts';
import { parseOptions, USAGE, UsageError } from './lib/options.ts';
import { cleanUp, findExecutable } from './lib/processes.ts';
import { renderReport, renderScenario, renderTargets, type ScenarioResult } from './lib/report.ts';
import { allPeers } from './peers/index.ts';
import type { Peer } from './peers/peer.ts';
import { allScenarios } from './scenarios/index.ts';
import type { Scenario } from './scenarios/scenario.ts';

async function main(args: readonly string[]): Promise<number> {
  const options = parseOptions(args, join(import.meta.dirname, 'RESULTS.md'));
  if (options.help) {
    console.log(`${USAGE}\nScenarios: ${allScenarios.map((scenario) => scenario.name).join(', ')}`);
    console.log(`Proxies: ${allPeers.map((peer) => peer.name).join(', ')}`);
    return 0;
  }
  const scenarios = chosenScenarios(options.only);
  requireTools();
  const { peers, versions } = chosenPeers(options.peers);
  const machine = describeMachine();
  if (machine.load > BUSY_LOAD) {
    console.error(`!! This machine is busy (load average ${machine.load.toFixed(2)}): the figures will be doubtful.`);
  }
  for (const version of versions) console.log(version);
  const context = new BenchContext(options, machine, peers);
  const results: ScenarioResult[] = [];
  for (const scenario of scenarios) {
    results.push(await runScenario(context, scenario));
    console.log(`\n${renderScenario(results[results.length - 1])}\n`);
  }
  await context.stopFleet();
  console.log(`${renderTargets(results)}\n`);
  const report = renderReport({ machine, options, versions, dateIso: new Date().toISOString() }, results);
  if (options.out !== null) {
    writeFileSync(options.out, report);
    console.log(`Results are in ${options.out}.`);
  }
  return results.some((result) => result.problems.length > 0) ? 1 : 0;
}

async function runScenario(context: BenchContext, scenario: Scenario): Promise<ScenarioResult> {
  const { name, title, description } = scenario;
  console.log(`${name}: ${title}`);
  try {
    const { table, targets } = await scenario.run(context);
    return { name, title, description, table, targets, problems: context.takeProblems() };
  } catch (error) {
    context.problem(error instanceof Error ? error.message : String(error));
    const table = { columns: ['proxy'], rows: [] };
    return { name, title, description, table, targets: [], problems: context.takeProblems() };
  }
}

function chosenScenarios(only: readonly string[]): readonly Scenario[] {
  const unknown = only.find((wanted) => !allScenarios.some(({ name }) => isMeant(wanted, name)));
  if (unknown !== undefined) throw new UsageError(`there is no scenario ${unknown}; try --help`);
  return only.length === 0
    ? allScenarios
    : allScenarios.filter(({ name }) => only.some((wanted) => isMeant(wanted, name)));
}

/** Whether `--only wanted` means the scenario `name`; a star at the end stands for the rest of a name. */
function isMeant(wanted: string, name: string): boolean {
  return wanted.endsWith('*') ? name.startsWith(wanted.slice(0, -1)) : wanted === name;
}

/** The proxies to run, Portcullis always among them, and their versions with those that are missing. */
function chosenPeers(wanted: readonly string[] | null): { peers: Peer[]; versions: string[] } {
  const unknown = wanted?.find((name) => !allPeers.some((peer) => peer.name === name));
  if (unknown !== undefined) throw new UsageError(`there is no proxy ${unknown}; try --help`);
  const peers: Peer[] = [];
  const versions = [`wrk: ${firstLine('sh', ['-c', 'wrk -v | head -1'])?.split(' Copyright')[0] ?? 'unknown'}`];
  // Only some scenarios need these two, and say so if they are missing.
  versions.push(`h2load: ${firstLine('h2load', ['--version']) ?? 'not found, no HTTP/2 measured'}`);
  versions.push(`openssl: ${firstLine('openssl', ['version']) ?? 'not found, no TLS measured'}`);
  for (const peer of allPeers) {
    if (wanted !== null && peer.name !== 'portcullis' && !wanted.includes(peer.name)) continue;
    const version = peer.version();
    versions.push(`${peer.name}: ${version ?? 'not found, not measured'}`);
    if (version !== null) peers.push(peer);
  }
  return { peers, versions };
}

function requireTools(): void {
  for (const [tool, origin] of [
    ['wrk', 'wrk'],
    ['taskset', 'util-linux'],
  ] as const) {
    if (findExecutable(tool) === null) throw new UsageError(`${tool} is not installed (apt-get install ${origin})`);
  }
  if (describeMachine().cores < 2) throw new UsageError('two cores are needed: one for the proxy, one for the load');
}

try {
  process.exitCode = await main(process.argv.slice(2));
} catch (error) {
  console.error(error instanceof UsageError ? error.message : error);
  process.exitCode = 2;
} finally {
  cleanUp();
}
