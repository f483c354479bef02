// Whether one workload can starve another of the same node: latencies of a quiet one, alone and beside a flood.
//
//   scripts/node bench/mesh/fairness.ts [SECONDS] [ROUNDS]     default 5 and 3; needs root
//
//   core 0: the proxies of both nodes                core 1: applications and clients
//   one: quiet-0, 200 requests/s on 4 connections; flood-0, wrk with 256     two: page-0, well-0, an nginx each
//
// Goal: p99 of the quiet one beside the flood at most twice its value alone. Rounds alternate, and medians count. The
// clients share a core, so part of what the flood costs is their own; `nice` keeps that small.

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { ConstantLoad, type LoadResult, startNginx } from '../../test/support/mesh/apps.ts';
import { meshSkipReason, TestMesh } from '../../test/support/mesh/mesh.ts';

const GOAL = 2;
const PROXY_CORE = 0;
const CLIENT_CORE = 1;

const seconds = Number(process.argv[2] ?? 5);
const rounds = Number(process.argv[3] ?? 3);
const reason = meshSkipReason('nginx', 'wrk', 'taskset', 'nice');
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

async function pin(pid: number, core: number): Promise<void> {
  await mesh.at('one').run('taskset', ['-a', '-c', '-p', String(core), String(pid)]);
}

async function quiet(): Promise<LoadResult> {
  const load = new ConstantLoad(mesh.at('quiet-0'), {
    url: `http://${mesh.vip('page')}/`,
    lanes: 4,
    perConnection: 1e9,
    rate: 200,
  });
  await pin(load.pid, CLIENT_CORE);
  await delay(seconds * 1000);
  return load.stop();
}

async function flooded(): Promise<{ quiet: LoadResult; flood: string }> {
  const args = ['-c', String(CLIENT_CORE), 'nice', '-n19', 'wrk', '-t1', '-c256', `-d${seconds + 1}s`];
  const flood = mesh.at('flood-0').run('taskset', [...args, `http://${mesh.vip('well')}/`]);
  await delay(500);
  const result = await quiet();
  return { quiet: result, flood: /Requests\/sec: +(\S+)/.exec((await flood).stdout)?.[1] ?? 'none' };
}

const mesh = await TestMesh.create(lifetime, {
  nodes: { one: { 'quiet-0': {}, 'flood-0': {} }, two: { 'page-0': {}, 'well-0': {} } },
  services: {
    page: [{ port: 80, targetPort: 8080, protocol: 'http' }],
    well: [{ port: 80, targetPort: 8080, protocol: 'http' }],
  },
});
try {
  for (const { proxy } of mesh.nodes.values()) await pin(proxy!.pid, PROXY_CORE);
  for (const name of ['page-0', 'well-0']) {
    const directory = mkdtempSync(join(tmpdir(), 'portcullis-nginx-'));
    ends.push(() => rmSync(directory, { recursive: true, force: true }));
    const nginx = await startNginx(mesh.at(name), directory, 8080, name);
    await pin(nginx.pid, CLIENT_CORE);
  }
  const alone: LoadResult[] = [];
  const beside: LoadResult[] = [];
  for (let round = 0; round < rounds; round++) {
    alone.push(await quiet());
    const { quiet: result, flood } = await flooded();
    beside.push(result);
    const show = ({ requests, failed, p50Ms, p99Ms }: LoadResult): string =>
      `${requests} requests, ${failed} failed, p50 ${p50Ms.toFixed(2)} ms, p99 ${p99Ms.toFixed(2)} ms`;
    console.log(`alone:               ${show(alone.at(-1)!)}`);
    console.log(`beside ${flood.padStart(8)} req/s: ${show(result)}`);
  }
  const ratio = median(beside.map(({ p99Ms }) => p99Ms)) / median(alone.map(({ p99Ms }) => p99Ms));
  const failed = [...alone, ...beside].reduce((sum, result) => sum + result.failed, 0);
  console.log(
    `p99 beside the flood: ${ratio.toFixed(2)} of that alone; goal ${GOAL}: ${ratio <= GOAL ? 'met' : 'MISSED'}`,
  );
  process.exitCode = failed === 0 ? 0 : 1;
} finally {
  if (!stopping) for (const end of ends) await end();
}
