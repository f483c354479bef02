// Whether one workload can starve another of the same node: latencies of a quiet one, alone and beside a flood.
//
//   scripts/node bench/mesh/fairness.ts [SECONDS] [ROUNDS]     default 5 and 3; needs root
//
//   core 0: the proxies            core 1: applications and clients, those of the flood only when nobody else wants it
//   quiet-0, 180 requests/s at random moments on 4 connections, asks page-0, an nginx
//   flood-0, wrk with 256 connections, asks well-0, another one
//
// Within one node all four are its workloads: nothing but the proxy and the machine is shared, and the goal counts.
// Between two nodes the applications are on the other one. Its proxy has to be on the same core here, so that the
// system's turns between the two processes (some milliseconds each, four per request) are measured as well.
//
// Goal: p99 of the quiet one beside the flood at most twice its value alone. Rounds alternate, and medians count.

import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { startNginx } from '../../test/support/mesh/apps.ts';
import { meshSkipReason, TestMesh } from '../../test/support/mesh/mesh.ts';
import type { LoadFigures } from '../lib/figures.ts';
import { runPaced } from '../lib/paced.ts';
import { describeStalls, measureStalls } from '../lib/stalls.ts';

const GOAL = 2;
const PROXY_CORE = 0;
const CLIENT_CORE = 1;
const QUIET_PER_SECOND = 180;
/** Whether the kernel makes a group of each session; then priorities count only within one. */
const AUTOMATIC_GROUPS = '/proc/sys/kernel/sched_autogroup_enabled';

const seconds = Number(process.argv[2] ?? 5);
const rounds = Number(process.argv[3] ?? 3);
const reason = meshSkipReason('nginx', 'wrk', 'taskset', 'chrt');
if (reason !== false) {
  console.error(`This ${reason}.`);
  process.exit(2);
}

const ends: (() => void | Promise<void>)[] = [];
const lifetime = { after: (end: () => void | Promise<void>) => void ends.push(end) };
let stopping = false;
process.on('SIGINT', async () => {
  stopping = true;
  for (const end of ends) await end();
  process.exit(130);
});

const median = (values: number[]): number => values.sort((a, b) => a - b)[Math.floor(values.length / 2)]!;

/** Where the proxies are, and who is on which node. */
interface Topology {
  title: string;
  counts: boolean;
  nodes: Record<string, Record<string, object>>;
}

const topologies: readonly Topology[] = [
  {
    title: 'within one node',
    counts: true,
    nodes: { one: { 'quiet-0': {}, 'flood-0': {}, 'page-0': {}, 'well-0': {} } },
  },
  {
    title: 'between two nodes',
    counts: false,
    nodes: { one: { 'quiet-0': {}, 'flood-0': {} }, two: { 'page-0': {}, 'well-0': {} } },
  },
];

const services = {
  page: [{ port: 80, targetPort: 8080, protocol: 'http' as const }],
  well: [{ port: 80, targetPort: 8080, protocol: 'http' as const }],
};

/** Puts a process on one core, with all its threads. */
async function pin(mesh: TestMesh, pid: number, core: number): Promise<void> {
  await mesh.at('quiet-0').run('taskset', ['-a', '-c', '-p', String(core), String(pid)]);
}

/** The quiet workload for one round. */
function quiet(mesh: TestMesh): Promise<LoadFigures> {
  return runPaced({
    ...{ host: mesh.vip('page'), port: 80, path: '/', connections: 4, requestsPerSecond: QUIET_PER_SECOND },
    arrivals: 'random',
    ...{ namespace: mesh.at('quiet-0').path, durationSeconds: seconds, core: CLIENT_CORE },
  });
}

async function flooded(mesh: TestMesh): Promise<{ figures: LoadFigures; flood: string }> {
  const args = ['-c', String(CLIENT_CORE), 'chrt', '--idle', '0', 'wrk', '-t1', '-c256', `-d${seconds + 3}s`];
  const flood = mesh.at('flood-0').run('taskset', [...args, `http://${mesh.vip('well')}/`]);
  await delay(1000);
  const figures = await quiet(mesh);
  return { figures, flood: /Requests\/sec: +(\S+)/.exec((await flood).stdout)?.[1] ?? 'none' };
}

/** Has priorities count between all processes until this one ends. */
function withoutAutomaticGroups(): void {
  if (!existsSync(AUTOMATIC_GROUPS)) return;
  const before = readFileSync(AUTOMATIC_GROUPS, 'utf8');
  writeFileSync(AUTOMATIC_GROUPS, '0');
  process.on('exit', () => writeFileSync(AUTOMATIC_GROUPS, before));
}

const failures = ({ errors }: LoadFigures): number => Object.values(errors).reduce((sum, count) => sum + count, 0);

function show(figures: LoadFigures): string {
  const { requests, latencyP50Us, latencyP99Us } = figures;
  const ms = (us: number): string => (us / 1000).toFixed(2);
  return `${requests} requests, ${failures(figures)} failed, p50 ${ms(latencyP50Us)} ms, p99 ${ms(latencyP99Us)} ms`;
}

/** Rounds of one topology: p99 beside the flood over that alone, and how many requests failed. */
async function measure({ nodes }: Topology): Promise<{ ratio: number; failed: number }> {
  const mesh = await TestMesh.create(lifetime, { nodes, services });
  for (const { proxy } of mesh.nodes.values()) await pin(mesh, proxy!.pid, PROXY_CORE);
  for (const name of ['page-0', 'well-0']) {
    const directory = mkdtempSync(join(tmpdir(), 'portcullis-nginx-'));
    ends.push(() => rmSync(directory, { recursive: true, force: true }));
    const nginx = await startNginx(mesh.at(name), directory, 8080, name);
    await pin(mesh, nginx.pid, CLIENT_CORE);
    if (name === 'well-0') await mesh.at(name).run('chrt', ['--idle', '--pid', '0', String(nginx.pid)]);
  }
  // What runs for the first time is compiled.
  await flooded(mesh);
  const alone: LoadFigures[] = [];
  const beside: LoadFigures[] = [];
  for (let round = 0; round < rounds; round++) {
    alone.push(await quiet(mesh));
    const { figures, flood } = await flooded(mesh);
    beside.push(figures);
    console.log(`alone:               ${show(alone.at(-1)!)}`);
    console.log(`beside ${flood.padStart(8)} req/s: ${show(figures)}`);
  }
  const p99 = (rounds: LoadFigures[]): number => median(rounds.map(({ latencyP99Us }) => latencyP99Us));
  const failed = [...alone, ...beside].reduce((sum, figures) => sum + failures(figures), 0);
  return { ratio: p99(beside) / p99(alone), failed };
}

async function end(): Promise<void> {
  for (const step of ends.splice(0)) await step();
}

withoutAutomaticGroups();
console.log(describeStalls(PROXY_CORE, await measureStalls(PROXY_CORE, seconds)));
try {
  for (const topology of topologies) {
    console.log(`\n${topology.title}`);
    const { ratio, failed } = await measure(topology);
    const verdict = topology.counts ? `; goal ${GOAL}: ${ratio <= GOAL ? 'met' : 'MISSED'}` : '';
    console.log(`p99 beside the flood: ${ratio.toFixed(2)} of that alone${verdict}`);
    if (failed > 0) process.exitCode = 1;
    await end();
  }
} finally {
  if (!stopping) await end();
}
