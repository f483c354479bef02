// The control plane by simulation: 10,000 workloads, 1,000 services, 100 agents, everything in one process
// and over loopback gRPC, so that the figures hold the cost of both ends.
//
//   scripts/node bench/mesh/control.ts [workloads] [services] [agents]

import * as grpc from '@grpc/grpc-js';
import { Discovery } from '../../mesh-agent/control/discovery.ts';
import { XdsClient } from '../../mesh-agent/control/xds-client.ts';
import { addDiscoveryService, xdsServerOptions } from '../../mesh-agent/control/xds-service.ts';
import { changesBetween, emptyMeshState, type MeshState, type Workload } from '../../mesh-agent/model/mesh-state.ts';

const [workloadCount = 10_000, serviceCount = 1_000, agentCount = 100] = process.argv.slice(2).map(Number);

/** Services that every agent asks for, besides those of its own workloads. */
const ASKED = 20;
const ROUNDS = 5;

function address(prefix: number, number: number): string {
  return `${prefix}.${(number >> 16) & 255}.${(number >> 8) & 255}.${number & 255}`;
}

function workload(number: number, status: Workload['status'] = 'healthy'): Workload {
  const service = number % serviceCount;
  const namespace = `namespace-${service % 50}`;
  return {
    uid: `cluster//Pod/${namespace}/service-${service}-${number}`,
    name: `service-${service}-${number}`,
    namespace,
    trustDomain: 'cluster.local',
    serviceAccount: `service-${service}`,
    node: `node-${number % agentCount}`,
    addresses: [address(10, number + 1)],
    hostNetwork: false,
    protocol: 'hbone',
    status,
    locality: { region: 'region', zone: `zone-${number % 3}`, subzone: '' },
    labels: { app: `service-${service}`, version: 'v1' },
    canonicalName: `service-${service}`,
    services: { [serviceName(service)]: [{ servicePort: 80, targetPort: 8080 }] },
  };
}

function serviceName(number: number): string {
  return `namespace-${number % 50}/service-${number}.namespace-${number % 50}.svc.cluster.local`;
}

function mesh(): MeshState {
  const state = emptyMeshState('cluster.local');
  const workloads = new Map<string, Workload>();
  for (let number = 0; number < workloadCount; number++) {
    const made = workload(number);
    workloads.set(made.uid, made);
  }
  const services = new Map(
    Array.from({ length: serviceCount }, (_, number) => {
      const key = serviceName(number);
      const [namespace, hostname] = key.split('/') as [string, string];
      const vips = [address(172, number + 1)];
      const ports = [{ servicePort: 80, targetPort: 8080, protocol: 'http' as const }];
      const rest = { rules: null, backend: null, configuration: null };
      return [key, { namespace, hostname, name: `service-${number}`, vips, ports, ...rest }];
    }),
  );
  return { ...state, workloads, services };
}

function report(what: string, ms: number, limitMs: number): void {
  console.log(`${what.padEnd(64)} ${ms.toFixed(0).padStart(6)} ms   (limit ${limitMs})`);
}

const log = (): void => {};
const discovery = new Discovery(log, 'cluster.local');
let state = mesh();
let startMs = performance.now();
discovery.update({ state, changes: changesBetween(emptyMeshState('cluster.local'), state) });
report(
  `control plane: ${workloadCount} workloads, ${serviceCount} services taken in`,
  performance.now() - startMs,
  2000,
);

const server = new grpc.Server(xdsServerOptions);
addDiscoveryService(
  server,
  discovery,
  async (evidence) => ({ name: evidence.header('x-id')!, node: evidence.header('x-node')! }),
  log,
);
const port = await new Promise<number>((resolve, reject) =>
  server.bindAsync('127.0.0.1:0', grpc.ServerCredentials.createInsecure(), (error, bound) =>
    error ? reject(error) : resolve(bound),
  ),
);

function agent(number: number, scope: 'node' | 'mesh', onUpdate = (): void => {}): XdsClient {
  const [id, node] = [`${scope}-agent-${number}`, `node-${number}`];
  return new XdsClient({
    ...{ address: `127.0.0.1:${port}`, id, node, scope, trustDomain: 'cluster.local', stateFile: null, onUpdate, log },
    credentials: () => grpc.credentials.createInsecure(),
    headers: () => ({ 'x-id': id, 'x-node': node }),
  });
}

for (const time of ['first, encoding included', 'encoded before']) {
  const whole = agent(0, 'mesh');
  startMs = performance.now();
  await whole.start();
  await whole.synced();
  report(`full sync of one agent with everything (${time})`, performance.now() - startMs, 2000);
  if (whole.state.workloads.size !== workloadCount) throw new Error(`${whole.state.workloads.size} workloads arrived`);
  await whole.close();
}

startMs = performance.now();
const agents = Array.from({ length: agentCount }, (_, number) => agent(number, 'node'));
await Promise.all(agents.map((one) => one.start()));
await Promise.all(agents.map((one) => one.synced()));
report(`${agentCount} agents connect, each with the workloads of its node`, performance.now() - startMs, 10_000);

startMs = performance.now();
await Promise.all(
  agents.flatMap((one) => Array.from({ length: ASKED }, (_, number) => one.lookup(serviceName(number), 30_000))),
);
report(`${agentCount} agents ask for ${ASKED} services each`, performance.now() - startMs, 10_000);

const times: number[] = [];
for (let round = 0; round < ROUNDS; round++) {
  const changed = workload(round, 'unhealthy');
  const workloads = new Map(state.workloads).set(changed.uid, changed);
  const next = { ...state, workloads };
  startMs = performance.now();
  const version = discovery.update({ state: next, changes: changesBetween(state, next) });
  const { complete, slowest, proxies } = await discovery.applied(version, 30_000);
  times.push(performance.now() - startMs);
  if (!complete || proxies !== agentCount) throw new Error(`not complete: ${JSON.stringify(slowest)}`);
  for (const one of agents) {
    if (one.state.workloads.get(changed.uid)?.status !== 'unhealthy')
      throw new Error('an agent did not get the change');
  }
  state = next;
}
report(`a changed endpoint reaches ${agentCount} agents, slowest of ${ROUNDS}`, Math.max(...times), 1000);
console.log(
  `each agent has ${agents[0]!.state.workloads.size} workloads and ${agents[0]!.state.services.size} services`,
);
console.log(
  `resident memory of control plane and agents together: ${(process.memoryUsage.rss() / 1048576).toFixed(0)} MiB`,
);
await Promise.all(agents.map((one) => one.close()));
server.forceShutdown();
