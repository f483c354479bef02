// Measures proxies under load (of wrk, h2load or the client of handshakes): rounds interleaved over the proxies (A B C A B C ...), so that
// a slow minute of the machine hits all of them, and medians over the rounds.

import { bodyPath, UPLOAD_PATH } from './backend.ts';
import { type BenchContext, LOAD_CORE, type RunningProxy } from './context.ts';
import { cpuBetweenNs, machineBusyNs, ownCpuNs, readCpu } from './cpu.ts';
import { describeErrors, errorCount, type LoadErrors, type LoadFigures, noErrors } from './figures.ts';
import { GRPC_PATH } from './grpc.ts';
import { runH2load } from './h2load.ts';
import { runHandshakes } from './handshakes.ts';
import { pause } from './processes.ts';
import { checkAnswer } from './serving.ts';
import { median, spread } from './stats.ts';
import { type RequestKind, runWrk } from './wrk.ts';

/** What is sent, and by which generator. */
export type LoadKind =
  /** By wrk. */
  | RequestKind
  /** GETs by h2load. */
  | 'h2'
  /** Unary calls by h2load. */
  | 'grpc'
  /** A TLS connection for each GET, by handshake-client.ts. */
  | 'handshake-full'
  | 'handshake-resumed';

/** The load of one scenario. */
export interface Load {
  kind: LoadKind;
  connections: number;
  /** Most streams at once on a connection, for HTTP/2; default 1. */
  streams?: number;
  /** Bytes of the response body. */
  bodyBytes: number;
  /** Bytes of the request body of an upload, otherwise 0. */
  uploadBytes: number;
  /** Whether the generator is pinned to LOAD_CORE. */
  pinned: boolean;
  /** Where to ask instead of for a plain body of that size. */
  path?: string;
  /** Request fields beside or in place of a browser's; wrk's loads only. */
  headers?: Readonly<Record<string, string>>;
  /** Mean pause of a connection between an answer and its next request; wrk's loads only. Default 0. */
  pauseMs?: number;
  /**
   * Measured rounds for each one that was asked for, of at most a second; default 1, of any length. Pauses of the
   * machine hit few of many short rounds, so that the median of their 99th percentiles is that of the proxy.
   */
  shortRounds?: number | undefined;
  /** Whether answers may be smaller than their bodies; then a scenario looks at `bytesPerRequest` itself. */
  compressed?: boolean;
}

/** One measured round of one proxy. */
export interface Round {
  requests: number;
  /** Bytes received for each answer; with wrk its head counts too. */
  bytesPerRequest: number;
  /** CPU microseconds of the proxy's process tree for each request. */
  cpuUsPerRequest: number;
  requestsPerSecond: number;
  latencyP50Us: number;
  latencyP99Us: number;
  /** CPU time of the proxy over wall time: 1 is one core busy. */
  proxyCores: number;
  /** CPU time of everything that is not part of the benchmark, over wall time. */
  otherCores: number;
  errors: LoadErrors;
}

/** Medians over the rounds of one proxy. */
export interface LoadSummary {
  name: string;
  peerName: string;
  cpuUsPerRequest: number;
  /** (largest - smallest) / median of the CPU time over the rounds. */
  cpuSpread: number;
  requestsPerSecond: number;
  latencyP50Us: number;
  latencyP99Us: number;
  proxyCores: number;
  /** CPU milliseconds for 10^9 bytes of body, both directions counted. */
  cpuMsPerGb: number;
  /** Errors of all rounds, for people; empty when there were none. */
  errors: string;
}

/** Share of a core that foreign processes may take before a round is called doubtful. */
const OTHER_CORES_MAX = 0.15;
/** Least part of the expected bytes; in-flight responses at the end make the last one incomplete. */
const BYTES_MIN_SHARE = 0.98;
const SETTLE_MS = 60;

/** For scenarios that look at more than the figures of a round. */
export interface RoundHooks {
  before?(proxy: RunningProxy): Promise<void>;
  after?(proxy: RunningProxy, round: Round): Promise<void>;
}

/** Warms each proxy up, then runs the rounds. A proxy that answers wrongly is a problem and left out. */
export async function measureLoad(
  context: BenchContext,
  proxies: readonly RunningProxy[],
  load: Load,
  hooks: RoundHooks = {},
): Promise<LoadSummary[]> {
  const path = pathOf(load);
  const rounds = new Map<RunningProxy, Round[]>();
  for (const proxy of proxies) {
    try {
      if (load.kind !== 'routes') await checkAnswer(proxy.name, proxy.access, path, 'localhost', load.bodyBytes);
      await generate(proxy, load, path, context.options.quick ? 0.2 : 1.5);
      rounds.set(proxy, []);
    } catch (error) {
      context.problem(error instanceof Error ? error.message : String(error));
    }
  }
  for (let number = 1; number <= context.options.rounds * (load.shortRounds ?? 1); number++) {
    for (const [proxy, measured] of rounds) {
      await pause(SETTLE_MS);
      await hooks.before?.(proxy);
      try {
        const round = await runRound(context, proxy, load, path);
        measured.push(round);
        report(context, proxy, round, number);
        await hooks.after?.(proxy, round);
      } catch (error) {
        context.problem(`${proxy.name}, round ${number}: ${error instanceof Error ? error.message : error}`);
      }
    }
  }
  const complete = [...rounds].filter(([, measured]) => measured.length > 0);
  return complete.map(([proxy, measured]) => summarise(proxy, measured, load));
}

function roundSeconds({ options }: BenchContext, { shortRounds }: Load): number {
  return shortRounds === undefined ? options.seconds : Math.min(options.seconds, 1);
}

async function runRound(context: BenchContext, proxy: RunningProxy, load: Load, path: string): Promise<Round> {
  const { pid } = proxy.started.process;
  const backendPid = proxy.backend.process.pid;
  const startMs = performance.now();
  const busyBefore = machineBusyNs() - ownCpuNs();
  const backendBefore = readCpu(backendPid);
  const before = readCpu(pid);
  const result = await generate(proxy, load, path, roundSeconds(context, load));
  const cpuNs = cpuBetweenNs(before, readCpu(pid));
  const backendNs = cpuBetweenNs(backendBefore, readCpu(backendPid));
  const otherNs = machineBusyNs() - ownCpuNs() - busyBefore - cpuNs - backendNs;
  const wallNs = (performance.now() - startMs) * 1e6;
  if (proxy.started.process.exited) {
    throw new Error(`it died under load (${proxy.started.process.ending}): ${proxy.started.process.stderrTail()}`);
  }
  const expectedBytes = result.requests * load.bodyBytes * BYTES_MIN_SHARE;
  if (result.bytes < expectedBytes && !load.compressed) {
    context.problem(`${proxy.name}: ${result.bytes} bytes for ${result.requests} responses are too few`);
  }
  return {
    requests: result.requests,
    bytesPerRequest: result.bytes / result.requests,
    cpuUsPerRequest: cpuNs / 1000 / result.requests,
    requestsPerSecond: (result.requests / result.durationUs) * 1e6,
    latencyP50Us: result.latencyP50Us,
    latencyP99Us: result.latencyP99Us,
    proxyCores: cpuNs / wallNs,
    otherCores: Math.max(0, otherNs / wallNs),
    errors: result.errors,
  };
}

/** Path of the requests. */
function pathOf(load: Load): string {
  if (load.path !== undefined) return load.path;
  if (load.kind === 'grpc') return GRPC_PATH;
  return load.kind === 'upload' ? UPLOAD_PATH : bodyPath(load.bodyBytes);
}

/** Runs the generator of this kind of load once. */
function generate(proxy: RunningProxy, load: Load, path: string, durationSeconds: number): Promise<LoadFigures> {
  const { kind, connections, uploadBytes, streams = 1, headers = {}, pauseMs = 0 } = load;
  const { port, tls } = proxy.access;
  const common = { port, path, connections, durationSeconds, core: load.pinned ? LOAD_CORE : null };
  switch (kind) {
    case 'h2':
      return runH2load({ ...common, tls, kind: 'get', streams });
    case 'grpc':
      return runH2load({ ...common, tls, kind: 'grpc', streams });
    case 'handshake-full':
    case 'handshake-resumed':
      return runHandshakes({ ...common, resumed: kind === 'handshake-resumed' });
    default:
      return runWrk({ ...common, tls, kind, uploadBytes, headers, pauseMs });
  }
}

function report(context: BenchContext, proxy: RunningProxy, round: Round, number: number): void {
  const cpu = `${round.cpuUsPerRequest.toFixed(2)} us/request`;
  const rate = `${Math.round(round.requestsPerSecond)}/s`;
  console.log(
    `  round ${number}/${context.options.rounds}  ${proxy.name.padEnd(28)} ${cpu.padStart(20)} ${rate.padStart(10)}`,
  );
  if (errorCount(round.errors) > 0 || round.requests === 0) {
    context.problem(
      `${proxy.name}, round ${number}: errors: ${describeErrors(round.errors) || 'no request was answered'}`,
    );
  }
  if (round.otherCores > OTHER_CORES_MAX) {
    const percent = Math.round(round.otherCores * 100);
    context.problem(`${proxy.name}, round ${number}: other processes used ${percent} % of a core meanwhile`);
  }
}

function summarise(proxy: RunningProxy, rounds: readonly Round[], load: Load): LoadSummary {
  const cpu = rounds.map((round) => round.cpuUsPerRequest);
  const errors: LoadErrors = noErrors();
  for (const round of rounds) {
    for (const kind of Object.keys(errors) as (keyof LoadErrors)[]) errors[kind] += round.errors[kind];
  }
  return {
    name: proxy.name,
    peerName: proxy.peer.name,
    cpuUsPerRequest: median(cpu),
    cpuSpread: spread(cpu),
    requestsPerSecond: median(rounds.map((round) => round.requestsPerSecond)),
    latencyP50Us: median(rounds.map((round) => round.latencyP50Us)),
    latencyP99Us: median(rounds.map((round) => round.latencyP99Us)),
    proxyCores: median(rounds.map((round) => round.proxyCores)),
    // Microseconds for one byte, times 10^9 bytes, in milliseconds.
    cpuMsPerGb: (median(cpu) / (load.bodyBytes + load.uploadBytes)) * 1e6,
    errors: describeErrors(errors),
  };
}
