// Resident memory of a node proxy with 100 workloads on its node, in a mesh of 2,000 services.
//
// The workloads are real network namespaces with real captures; 100 of the services are theirs, the others belong to
// workloads of a node that is not there. The control plane is the real one, with all of it in files.

import { readFileSync } from 'node:fs';
import type { TestMesh } from '../../test/support/mesh/mesh.ts';
import type { MeshPlan } from '../../test/support/mesh/plan.ts';
import type { Lifetime } from '../../test/support/mesh/sockets.ts';
import { SMALL_BODY_BYTES } from '../lib/backend.ts';
import { LOAD_CORE, PROXY_CORE } from '../lib/context.ts';
import { cpuBetweenNs, processTree, readCpu } from '../lib/cpu.ts';
import { errorCount } from '../lib/figures.ts';
import { pause } from '../lib/processes.ts';
import { atMost, grouped, type ScenarioResult } from '../lib/report.ts';
import { runWrk } from '../lib/wrk.ts';
import { startBenchMesh } from './bench-mesh.ts';
import { HTTP_PORT, startHopBackend } from './hop-backend.ts';

const WORKLOADS = 100;
const SERVICES = 2000;
const LIMIT_MIB = 150;
/** Workloads that traffic goes to; the next ones are those that it comes from. */
const TALKING = 10;
const CONNECTIONS = 16;
const TALK_SECONDS = 0.5;
const IDLE_MS = 5000;
const IN_SYNC = 'in sync';

interface Memory {
  when: string;
  totalKiB: number;
  /** Not backed by files: heaps, arenas, stacks; the other part is mostly the Node binary. */
  anonymousKiB: number;
}

/**
 * Builds the mesh, waits for its full sync, and looks. With scope `all` the node knows all of the mesh, and the target
 * is that of DESIGN; with `used`, which is the default, what its workloads use.
 */
export async function measureNodeMemory(lifetime: Lifetime, scope: 'all' | 'used'): Promise<ScenarioResult> {
  const startMs = performance.now();
  const mesh = await startBenchMesh(lifetime, plan(), PROXY_CORE, `discovery: {scope: ${scope}}`);
  const readySeconds = (performance.now() - startMs) / 1000;
  const node = mesh.node('one');
  const { pid } = node.proxy!;
  const known = (await node.status()).mesh;
  const problems: string[] = [];
  if (scope === 'all' && known.services !== SERVICES) problems.push(`the node knows ${known.services} services`);
  const steps = [memoryOf(pid, IN_SYNC)];
  const before = readCpu(pid);
  await pause(IDLE_MS);
  const idleCores = cpuBetweenNs(before, readCpu(pid)) / 1e6 / IDLE_MS;
  steps.push(memoryOf(pid, `${IDLE_MS / 1000} s idle`));
  problems.push(...(await talk(mesh)));
  steps.push(memoryOf(pid, 'after traffic'));
  await pause(IDLE_MS);
  steps.push(memoryOf(pid, `${IDLE_MS / 1000} s later`));
  // What it takes to learn a mesh is given back within seconds.
  const settled = steps.filter(({ when }) => when !== IN_SYNC);
  const most = Math.max(...settled.map(({ totalKiB }) => totalKiB)) / 1024;
  for (const problem of problems) console.error(`  !! ${problem}`);
  return {
    name: `memory-${scope}`,
    title: `Memory of a node proxy, discovery.scope: ${scope}`,
    description: `One node with ${WORKLOADS} workloads (network namespaces, identities and captures of their own), ${grouped(SERVICES)} services in the mesh, of which it knows ${grouped(known.services)}, with ${grouped(known.workloads)} workloads; one packet worker. Ready ${readySeconds.toFixed(1)} s after the first namespace; idle, it takes ${(idleCores * 100).toFixed(1)} % of a core. Traffic: ${TALKING} workloads to ${TALKING} others through their services, ${CONNECTIONS} connections each.`,
    table: {
      columns: ['when', 'resident MiB', 'anonymous MiB', 'of files MiB'],
      rows: steps.map(({ when, totalKiB, anonymousKiB }) => [
        when,
        (totalKiB / 1024).toFixed(1),
        (anonymousKiB / 1024).toFixed(1),
        ((totalKiB - anonymousKiB) / 1024).toFixed(1),
      ]),
    },
    targets:
      scope === 'all'
        ? [
            atMost(
              `most resident memory, settled, ${WORKLOADS} workloads, ${SERVICES} services`,
              most,
              LIMIT_MIB,
              ' MiB',
            ),
          ]
        : [],
    problems,
  };
}

/** Traffic between some workloads; returns what went wrong. */
async function talk(mesh: TestMesh): Promise<string[]> {
  const problems: string[] = [];
  const servers = Array.from({ length: TALKING }, (_, index) => startHopBackend(mesh.at(`local-${index}`), LOAD_CORE));
  for (let index = 0; index < TALKING; index++) {
    const from = mesh.at(`local-${TALKING + index}`);
    const { requests, bytes, errors } = await runWrk({
      ...{ host: virtualAddress(index), port: 80, namespace: from.path, tls: false, path: '/', kind: 'get' },
      ...{ uploadBytes: 0, connections: CONNECTIONS, durationSeconds: TALK_SECONDS, core: LOAD_CORE },
    });
    if (requests === 0 || errorCount(errors) > 0 || bytes < requests * SMALL_BODY_BYTES) {
      problems.push(`service-${index}: ${requests} requests, ${bytes} bytes, ${JSON.stringify(errors)}`);
    }
  }
  await Promise.all(servers.map((server) => server.stop()));
  return problems;
}

function memoryOf(pid: number, when: string): Memory {
  let totalKiB = 0;
  let anonymousKiB = 0;
  for (const member of processTree(pid)) {
    const text = readFileSync(`/proc/${member}/status`, 'utf8');
    totalKiB += Number(/^VmRSS:\s+(\d+)/m.exec(text)?.[1] ?? 0);
    anonymousKiB += Number(/^RssAnon:\s+(\d+)/m.exec(text)?.[1] ?? 0);
  }
  console.log(`  ${when.padEnd(16)} ${(totalKiB / 1024).toFixed(1).padStart(7)} MiB`);
  return { when, totalKiB, anonymousKiB };
}

function plan(): MeshPlan {
  const local = Array.from({ length: WORKLOADS }, (_, index) => [`local-${index}`, { app: `service-${index}` }]);
  const documents = Array.from({ length: SERVICES }, (_, index) => serviceDocument(index));
  for (let index = WORKLOADS; index < SERVICES; index++) documents.push(remoteDocument(index));
  // JSON is YAML, and the file of policies takes documents of every kind.
  const policies = documents.map((document) => `${JSON.stringify(document)}\n`).join('---\n');
  return { nodes: { one: Object.fromEntries(local) }, services: {}, policies };
}

function virtualAddress(index: number): string {
  return `10.97.${index >> 8}.${index & 255}`;
}

function serviceDocument(index: number): object {
  const app = `service-${index}`;
  return {
    kind: 'Service',
    metadata: { name: app, namespace: 'shop' },
    spec: {
      addresses: [virtualAddress(index)],
      selector: { app },
      ports: [{ port: 80, targetPort: HTTP_PORT, protocol: 'http' }],
    },
  };
}

function remoteDocument(index: number): object {
  const app = `service-${index}`;
  return {
    kind: 'Workload',
    metadata: { name: `${app}-0`, namespace: 'shop', labels: { app } },
    spec: { addresses: [`10.64.${index >> 8}.${index & 255}`], serviceAccount: app, node: 'elsewhere' },
  };
}
