// One node-to-node hop: two node proxies in a row beside two Envoys doing the same, and beside no mesh at all.
//
//   scripts/node bench/mesh/hop.ts [--rounds N] [--seconds S] [--only http,latency,arrivals,grpc,tcp,memory] [--out FILE]
//
//   core 0: both proxies of a side                core 1: load generator and server
//
// Needs root, two quiet cores, iproute2, nftables, wrk, h2load, nginx, and Envoy for the comparison. Rounds are
// interleaved over the sides; figures are medians. Exit code: 0 measured without errors; 1 errors happened; 2 it could
// not be run as asked. Nothing is left behind, also not after Ctrl-C.

import { writeFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { meshSkipReason } from '../../test/support/mesh/mesh.ts';
import { LOAD_CORE, PROXY_CORE } from '../lib/context.ts';
import { cpuBetweenNs, machineBusyNs, ownCpuNs, readCpu } from '../lib/cpu.ts';
import { describeErrors, errorCount, type LoadFigures } from '../lib/figures.ts';
import { runH2load } from '../lib/h2load.ts';
import { BUSY_LOAD, describeMachine, firstLine } from '../lib/machine.ts';
import { runPaced } from '../lib/paced.ts';
import { pause } from '../lib/processes.ts';
import { atMost, grouped, renderScenario, renderTargets, type ScenarioResult, type Target } from '../lib/report.ts';
import { describeStalls, measureStalls } from '../lib/stalls.ts';
import { median, spread } from '../lib/stats.ts';
import { runWrk } from '../lib/wrk.ts';
import { envoy } from '../peers/envoy.ts';
import { portcullis } from '../peers/portcullis.ts';
import { Ends, removeEverythingAtExit } from './bench-mesh.ts';
import {
  ANSWERS,
  ENVOY_CONNECT,
  ENVOY_H1,
  ENVOY_H2,
  ENVOY_TLS,
  type Kind,
  NO_MESH,
  PORTCULLIS,
  type Side,
  startSides,
} from './hop-sides.ts';
import { measureNodeMemory } from './node-memory.ts';

const WARM_SECONDS = 4;
/** What is seldom called is compiled as late as this. */
const LONG_WARM_SECONDS = 10;
const REQUESTS_PER_SECOND = 1000;
const SETTLE_MS = 60;
/** The core of the proxies is watched for this long before the run. */
const STALLS_SECONDS = 5;
/** Share of a core that foreign processes and the hypervisor may take, or a round is done again. */
const OTHER_CORES_MAX = 0.15;
/** A round is done again so often at most; then the last one counts, and is called doubtful. */
const AGAIN_MAX = 2;
const MEMORY = 'memory';

/** Medians over the rounds of one side. */
interface Summary {
  name: string;
  /** Microseconds of both proxies for each request. */
  cpuUs: number;
  cpuSpread: number;
  /** Milliseconds of both proxies for 10^9 bytes. */
  cpuMsPerGb: number;
  requestsPerSecond: number;
  p50Us: number;
  p99Us: number;
  /** CPU time of both proxies over wall time: 1 is their core busy. */
  cores: number;
  errors: string;
}

/** One comparison. */
interface Hop {
  name: string;
  title: string;
  what: string;
  kind: Kind;
  /** Measured rounds for each one asked for, of two seconds at most: a tail is known from many short ones. Default 1. */
  shortRounds?: number;
  /** Runs load before the measurement, so that both sides are as they are after days; default: `load`. */
  warm?(side: Side): Promise<LoadFigures>;
  /** Runs the load against a side. */
  load(side: Side, seconds: number): Promise<LoadFigures>;
  targets(summaries: readonly Summary[]): Target[];
}

const HOPS: readonly Hop[] = [
  {
    name: 'http',
    title: 'HTTP/1.1, 64 connections',
    what: 'GETs with the head of a browser and answers of 128 bytes, without pauses.',
    kind: 'http',
    load: (side, seconds) => wrk(side, 64, seconds),
    targets: (summaries) => [
      atMost(`CPU of both proxies ÷ ${ENVOY_H2}`, ratio(summaries, ENVOY_H2, 'cpuUs'), 0.6),
      atMost(`CPU of both proxies ÷ ${ENVOY_H1}`, ratio(summaries, ENVOY_H1, 'cpuUs'), 0.6),
    ],
  },
  {
    name: 'latency',
    title: 'HTTP/1.1, 1,000 requests a second',
    what: 'The same requests, due every millisecond and sent on one of 16 connections that is free. A latency is from the moment at which a request was due to its whole answer.',
    kind: 'http',
    shortRounds: 4,
    warm: (side) => warmPaced(side, 'even'),
    load: (side, seconds) => paced(side, Math.min(seconds, 2), 'even'),
    targets: (summaries) => [
      atMost('p50 beyond no mesh', added(summaries, PORTCULLIS, 'p50Us'), 400, ' µs'),
      atMost('p99 beyond no mesh', added(summaries, PORTCULLIS, 'p99Us'), 1000, ' µs'),
    ],
  },
  {
    name: 'arrivals',
    title: 'HTTP/1.1, about 1,000 requests a second at random moments',
    what: 'The same as above, but due at random moments: some meet, and wait for each other on the one core of both proxies.',
    kind: 'http',
    shortRounds: 4,
    warm: (side) => warmPaced(side, 'random'),
    load: (side, seconds) => paced(side, Math.min(seconds, 2), 'random'),
    targets: () => [],
  },
  {
    name: 'grpc',
    title: 'gRPC, unary',
    what: '16 connections with 16 calls at once, messages of 64 bytes both ways.',
    kind: 'grpc',
    load: ({ client, host, port }, seconds) =>
      runH2load({
        ...{ host, port, namespace: client.path, tls: false, path: ANSWERS.grpc.path, kind: 'grpc' },
        ...{ connections: 16, streams: 16, durationSeconds: seconds, core: LOAD_CORE },
      }),
    targets: () => [],
  },
  {
    name: 'tcp',
    title: 'TCP stream',
    what: 'Connections that nobody reads, 16 of them, each with answers of 1 MiB one after another. CONNECT is what node proxies have between them, too.',
    kind: 'tcp',
    load: (side, seconds) => wrk(side, 16, seconds),
    targets: (summaries) => [
      atMost(`CPU per GB ÷ ${ENVOY_TLS}`, ratio(summaries, ENVOY_TLS, 'cpuMsPerGb'), 1),
      atMost(`CPU per GB ÷ ${ENVOY_CONNECT}`, ratio(summaries, ENVOY_CONNECT, 'cpuMsPerGb'), 1),
    ],
  },
];

async function warmPaced(side: Side, arrivals: 'even' | 'random'): Promise<LoadFigures> {
  await wrk(side, 64, WARM_SECONDS);
  return paced(side, LONG_WARM_SECONDS, arrivals);
}

function paced({ client, host, port, kind }: Side, seconds: number, arrivals: 'even' | 'random') {
  return runPaced({
    ...{ host, port, namespace: client.path, path: ANSWERS[kind].path, connections: 16, core: LOAD_CORE },
    ...{ requestsPerSecond: REQUESTS_PER_SECOND, arrivals, durationSeconds: seconds },
  });
}

function wrk({ client, host, port, kind }: Side, connections: number, seconds: number) {
  const path = ANSWERS[kind].path;
  return runWrk({
    ...{ host, port, namespace: client.path, tls: false, path, kind: 'get', uploadBytes: 0 },
    ...{ connections, durationSeconds: seconds, core: LOAD_CORE },
  });
}

function find(summaries: readonly Summary[], name: string): Summary | undefined {
  return summaries.find((summary) => summary.name === name);
}

/** Portcullis over another side; null: one is missing. */
function ratio(summaries: readonly Summary[], name: string, figure: 'cpuUs' | 'cpuMsPerGb'): number | null {
  const [ours, theirs] = [find(summaries, PORTCULLIS), find(summaries, name)];
  return ours === undefined || theirs === undefined ? null : ours[figure] / theirs[figure];
}

/** What a side adds to a latency; null: one is missing, or the difference is less than nothing. */
function added(summaries: readonly Summary[], name: string, figure: 'p50Us' | 'p99Us'): number | null {
  const [below, above] = [find(summaries, NO_MESH), find(summaries, name)];
  // A machine that was better to who has more to do says nothing.
  return below === undefined || above === undefined || above[figure] < below[figure]
    ? null
    : above[figure] - below[figure];
}

function addedText(microseconds: number | null): string {
  return microseconds === null ? '?' : grouped(microseconds);
}

interface Round {
  cpuNs: number;
  wallNs: number;
  /** Cores that were busy with something else, on average. */
  otherCores: number;
  figures: LoadFigures;
}

/** The run: what was asked for, and what went wrong. */
class HopBench {
  readonly rounds: number;
  readonly seconds: number;
  private problems: string[] = [];
  /** Rounds of the present comparison that were done again. */
  private disturbed = 0;

  constructor(rounds: number, seconds: number) {
    this.rounds = rounds;
    this.seconds = seconds;
  }

  /** Measures one comparison. A side that breaks is a problem and left out. */
  async measure(hop: Hop, all: readonly Side[]): Promise<ScenarioResult> {
    console.log(`${hop.name}: ${hop.title}`);
    const sides = all.filter(({ kind }) => kind === hop.kind);
    const measured = new Map<Side, Round[]>(sides.map((side) => [side, []]));
    for (const side of sides) {
      try {
        await (hop.warm?.(side) ?? hop.load(side, WARM_SECONDS));
      } catch (error) {
        this.problem(`${side.name} is left out: ${error instanceof Error ? error.message : error}`);
        measured.delete(side);
      }
    }
    for (let number = 1; number <= this.rounds * (hop.shortRounds ?? 1); number++) {
      for (const [side, rounds] of measured) {
        await pause(SETTLE_MS);
        const label = `${side.name}, round ${number}`;
        try {
          rounds.push(await this.quietRound(hop, side, label));
        } catch (error) {
          this.problem(`${label}: ${error instanceof Error ? error.message : error}`);
        }
      }
    }
    const summaries = [...measured].filter(([, rounds]) => rounds.length > 0).map(([side, of]) => summarise(side, of));
    const problems = this.takeProblems();
    const { name, title, what } = hop;
    const done = this.rounds * (hop.shortRounds ?? 1) * sides.length + this.disturbed;
    const description = `${what}${this.disturbed > 0 ? ` Of ${done} rounds, ${this.disturbed} were done again: other processes, or other machines of the host, took more than ${OTHER_CORES_MAX * 100} % of a core meanwhile.` : ''}`;
    this.disturbed = 0;
    return {
      name,
      title,
      description,
      table: tableOf(summaries, hop.kind === 'tcp'),
      targets: hop.targets(summaries),
      problems,
    };
  }

  /** One round in which nothing else took much of the machine, or the last of some that were not so quiet. */
  private async quietRound(hop: Hop, side: Side, label: string): Promise<Round> {
    for (let again = 0; ; again++) {
      const round = await this.round(hop, side, label);
      if (round.otherCores <= OTHER_CORES_MAX) return round;
      if (again < AGAIN_MAX) this.disturbed++;
      else {
        this.problem(`${label}: other processes used ${Math.round(round.otherCores * 100)} % of a core meanwhile`);
        return round;
      }
    }
  }

  private async round(hop: Hop, side: Side, label: string): Promise<Round> {
    const startMs = performance.now();
    const othersBefore = machineBusyNs() - ownCpuNs();
    const serverBefore = readCpu(side.server.pid);
    const before = side.proxies.map(readCpu);
    const figures = await hop.load(side, this.seconds);
    const cpuNs = side.proxies.reduce((sum, pid, index) => sum + cpuBetweenNs(before[index]!, readCpu(pid)), 0);
    const serverNs = cpuBetweenNs(serverBefore, readCpu(side.server.pid));
    const othersNs = machineBusyNs() - ownCpuNs() - othersBefore - cpuNs - serverNs;
    const wallNs = (performance.now() - startMs) * 1e6;
    const broken = side.broken();
    if (broken !== '') throw new Error(broken);
    if (figures.requests === 0) throw new Error('no request was answered');
    const cpu = `${(cpuNs / 1000 / figures.requests).toFixed(2)} µs/request`;
    const rate = `${grouped((figures.requests / figures.durationUs) * 1e6)}/s`;
    const latency = `p50 ${grouped(figures.latencyP50Us)} µs`;
    console.log(`  ${label.padEnd(34)} ${cpu.padStart(20)} ${rate.padStart(10)}  ${latency}`);
    if (errorCount(figures.errors) > 0) this.problem(`${label}: errors: ${describeErrors(figures.errors)}`);
    if (figures.bytes < figures.requests * ANSWERS[side.kind].bytes * 0.98) {
      this.problem(`${label}: ${figures.bytes} bytes for ${figures.requests} answers are too few`);
    }
    return { cpuNs, wallNs, otherCores: othersNs / wallNs, figures };
  }

  /** Notes what makes figures doubtful. */
  problem(text: string): void {
    this.problems.push(text);
    console.error(`  !! ${text}`);
  }

  /** Problems since the last call. */
  takeProblems(): string[] {
    return this.problems.splice(0);
  }
}

function summarise({ name }: Side, rounds: readonly Round[]): Summary {
  const of = (figure: (round: Round) => number): number[] => rounds.map(figure);
  const cpu = of(({ cpuNs, figures }) => cpuNs / 1000 / figures.requests);
  return {
    name,
    cpuUs: median(cpu),
    cpuSpread: spread(cpu),
    // Nanoseconds for one byte, times 10^9 bytes, in milliseconds.
    cpuMsPerGb: median(of(({ cpuNs, figures }) => (cpuNs / figures.bytes) * 1000)),
    requestsPerSecond: median(of(({ figures }) => (figures.requests / figures.durationUs) * 1e6)),
    p50Us: median(of(({ figures }) => figures.latencyP50Us)),
    p99Us: median(of(({ figures }) => figures.latencyP99Us)),
    cores: median(of(({ cpuNs, wallNs }) => cpuNs / wallNs)),
    errors: [...new Set(of(({ figures }) => errorCount(figures.errors)))].some((count) => count > 0) ? '**yes**' : '0',
  };
}

/** `stream`: bytes are what counts, not requests. */
function tableOf(summaries: readonly Summary[], stream: boolean): ScenarioResult['table'] {
  const columns = ['side', stream ? 'CPU ms/GB' : 'CPU µs/request', 'spread', 'requests/s', 'p50 µs', 'p99 µs'];
  columns.push('p50 added', 'p99 added', 'cores used', 'errors', 'Portcullis ÷ it');
  const rows = summaries.map((summary) => {
    const none = summary.name === NO_MESH;
    const relative = none ? null : ratio(summaries, summary.name, stream ? 'cpuMsPerGb' : 'cpuUs');
    const more = (figure: 'p50Us' | 'p99Us'): string =>
      none ? '-' : addedText(added(summaries, summary.name, figure));
    return [
      summary.name,
      none ? '-' : stream ? grouped(summary.cpuMsPerGb) : summary.cpuUs.toFixed(2),
      none ? '-' : `${Math.round(summary.cpuSpread * 100)} %`,
      grouped(summary.requestsPerSecond),
      grouped(summary.p50Us),
      grouped(summary.p99Us),
      more('p50Us'),
      more('p99Us'),
      none ? '-' : summary.cores.toFixed(2),
      summary.errors,
      relative === null ? '-' : relative.toFixed(2),
    ];
  });
  return { columns, rows };
}

/** A command line that cannot be obeyed. */
class UsageError extends Error {}

interface Options {
  rounds: number;
  seconds: number;
  only: string[];
  out: string | null;
}

function readOptions(): Options {
  const known = [...HOPS.map(({ name }) => name), MEMORY];
  const text = { type: 'string' } as const;
  let values: { rounds?: string; seconds?: string; only?: string; out?: string };
  try {
    ({ values } = parseArgs({ options: { rounds: text, seconds: text, only: text, out: text } }));
  } catch (error) {
    throw new UsageError((error as Error).message);
  }
  const [rounds, seconds] = [Number(values.rounds ?? 3), Number(values.seconds ?? 3)];
  const only = values.only?.split(',') ?? known;
  if (!Number.isInteger(rounds) || rounds < 1) throw new UsageError('--rounds needs a whole number of 1 or more');
  if (!(seconds >= 0.2 && seconds < 3600)) throw new UsageError('--seconds needs a number of 0.2 or more');
  const unknown = only.find((name) => !known.includes(name));
  if (unknown !== undefined) throw new UsageError(`--only knows ${known.join(', ')}, not ${unknown}`);
  return { rounds, seconds, only, out: values.out ?? null };
}

async function main(options: Options): Promise<number> {
  const reason = meshSkipReason('nginx', 'wrk', 'h2load', 'taskset');
  if (reason !== false) throw new UsageError(`This ${reason}.`);
  const machine = describeMachine();
  if (machine.cores < 2) throw new UsageError('two cores are needed: one for the proxies, one for the load');
  const envoyVersion = envoy.version();
  const head = [
    '# One node-to-node hop',
    '',
    `- Date: ${new Date().toISOString()}`,
    `- Machine: ${machine.cpu}, ${machine.cores} cores, ${machine.memoryGiB} GiB; ${machine.kernel}`,
    `- Load average before the run: ${machine.load.toFixed(2)}`,
    describeStalls(PROXY_CORE, await measureStalls(PROXY_CORE, STALLS_SECONDS)),
    `- Rounds: ${options.rounds} of ${options.seconds} s for each side, interleaved; medians`,
    `- Both proxies on core 0, load generator and server (nginx) on core 1. Node ${machine.node}`,
    `- ${portcullis.version()}; ${envoyVersion ?? 'Envoy: not found, not measured'}`,
    `- ${firstLine('sh', ['-c', 'wrk -v | head -1'])?.split(' Copyright')[0]}; ${firstLine('h2load', ['--version'])}`,
  ].join('\n');
  console.log(head);
  if (machine.load > BUSY_LOAD) console.error('!! This machine is busy: the figures will be doubtful.');
  const bench = new HopBench(options.rounds, options.seconds);
  const results: ScenarioResult[] = [];
  const done = (result: ScenarioResult): void => {
    results.push(result);
    console.log(`\n${renderScenario(result)}\n`);
  };
  const hops = HOPS.filter(({ name }) => options.only.includes(name));
  if (hops.length > 0) {
    await withEnds(async (ends) => {
      const sides = await startSides(ends);
      for (const hop of hops) done(await bench.measure(hop, sides));
      for (const { server } of sides) await server.stop();
    });
  }
  if (options.only.includes(MEMORY)) {
    console.log('memory: a node proxy with many workloads and services');
    for (const scope of ['all', 'used'] as const) done(await withEnds((ends) => measureNodeMemory(ends, scope)));
  }
  const targets = renderTargets(results);
  console.log(targets);
  if (options.out !== null) {
    writeFileSync(options.out, `${[head, '## Targets', targets, ...results.map(renderScenario)].join('\n\n')}\n`);
  }
  return results.some(({ problems }) => problems.length > 0) ? 1 : 0;
}

async function withEnds<T>(run: (ends: Ends) => Promise<T>): Promise<T> {
  const ends = new Ends();
  try {
    return await run(ends);
  } finally {
    await ends.run();
  }
}

removeEverythingAtExit();
try {
  // Not left to itself: Envoys and servers are still running.
  process.exit(await main(readOptions()));
} catch (error) {
  console.error(error instanceof UsageError ? error.message : error);
  process.exit(2);
}
