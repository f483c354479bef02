// `npm run demo:mesh`: a mesh of three nodes on this machine, with six small services, traffic and policies, to look at.
//
// Nodes and workloads are network namespaces; the control plane, the node proxies and the applications are real
// processes in them. Everything is removed at the end, also after Ctrl-C; what a killed run left behind is removed by the next one.

import { join } from 'node:path';
import type { GraphEdge } from '../gateway/admin/workload-metrics.ts';
import { ConstantLoad, startApp } from '../test/support/mesh/apps.ts';
import { meshSkipReason, TestMesh } from '../test/support/mesh/mesh.ts';
import { Capture, type Captured, chosenVersion, tlsRecords } from '../test/support/mesh/packets.ts';
import { TUNNEL_PORT } from '../test/support/mesh/peers.ts';
import { type MeshPlan, virtualAddresses } from '../test/support/mesh/plan.ts';
import type { Lifetime } from '../test/support/mesh/sockets.ts';

/** How long there is traffic. */
const TRAFFIC_MS = 5_000;
const TLS_1_3 = 0x0304;

const PLAN: MeshPlan = {
  nodes: {
    'node-1': { 'shopper-0': {}, 'web-0': {}, 'cart-0': {} },
    'node-2': { 'catalog-0': {}, 'prices-0': {}, 'reviews-0': {} },
    'node-3': { 'catalog-1': {}, 'reviews-1': {}, 'payments-0': {} },
  },
  services: {
    web: [{ port: 80, targetPort: 8080, protocol: 'http' }],
    cart: [{ port: 80, targetPort: 8080, protocol: 'http' }],
    catalog: [{ port: 80, targetPort: 8080, protocol: 'http' }],
    prices: [{ port: 80, targetPort: 8080, protocol: 'http' }],
    reviews: [{ port: 80, targetPort: 8080, protocol: 'http' }],
    payments: [{ port: 7000, targetPort: 7000, protocol: 'tcp' }],
  },
  policies: `
kind: AuthorizationPolicy
metadata: {name: only-cart-pays, namespace: shop}
spec:
  selector: {matchLabels: {app: payments}}
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/cart]}}]}]
---
kind: AuthorizationPolicy
metadata: {name: prices-are-read, namespace: shop}
spec:
  selector: {matchLabels: {app: prices}}
  rules: [{to: [{operation: {methods: [GET]}}]}]
---
kind: TrafficPolicy
metadata: {name: reviews, namespace: shop}
spec:
  service: reviews
  rules: [{retry: {attempts: 2, conditions: [connect-failure, refused-stream, reset, gateway-error]}}]
`,
};

/** What each service asks in turn, for every request. */
const CALLS: Record<string, string[]> = {
  web: ['cart', 'catalog'],
  cart: ['payments'],
  catalog: ['prices', 'reviews'],
};

const bold = (text: string): string => (process.stdout.isTTY ? `\x1b[1m${text}\x1b[0m` : text);
const faint = (text: string): string => (process.stdout.isTTY ? `\x1b[2m${text}\x1b[0m` : text);

function step(title: string, remark = ''): void {
  console.log(`\n${bold(title)}${remark === '' ? '' : `  ${faint(remark)}`}`);
}

function lines(text: string): void {
  for (const line of text.trimEnd().split('\n')) console.log(`  ${line}`);
}

/** What belongs to the demo, ended in the order of its making. */
class Ends implements Lifetime {
  private readonly ends: (() => void | Promise<void>)[] = [];

  after(end: () => void | Promise<void>): void {
    this.ends.push(end);
  }

  async run(): Promise<void> {
    for (let end = this.ends.shift(); end !== undefined; end = this.ends.shift()) await end();
  }
}

function urlOf(service: string): string {
  const [{ port, protocol }] = PLAN.services[service]!;
  return `${protocol === 'tcp' ? 'tcp' : 'http'}://${virtualAddresses(PLAN, service)[0]}:${port}/`;
}

async function startServices(mesh: TestMesh): Promise<void> {
  const workloads = Object.values(PLAN.nodes).flatMap((node) => Object.keys(node));
  await Promise.all(
    workloads
      .filter((name) => name !== 'shopper-0')
      .map((name) => {
        const service = name.replace(/-\d+$/, '');
        const [{ targetPort, protocol }] = PLAN.services[service]!;
        const calls = (CALLS[service] ?? []).map(urlOf);
        const kind = protocol === 'tcp' ? 'echo' : 'http';
        return startApp(mesh.at(name), name, { port: targetPort!, kind, calls });
      }),
  );
}

/** Edges of the graph, added up over workloads of the same service and over both of an edge's ends. */
async function graph(mesh: TestMesh): Promise<string> {
  const rows = new Map<
    string,
    { protocol: string; connections: number; requests: number; failures: number; denied: number }
  >();
  const nameOf = (text: string): string => /\/sa\/([a-z]+)|^shop\/([a-z]+)/.exec(text)?.slice(1).join('') ?? text;
  for (const node of mesh.nodes.values()) {
    const edges = JSON.parse(await node.page('/mesh/graph')) as GraphEdge[];
    for (const { reporter, source, destination, protocol, ...counts } of edges) {
      const key = `${nameOf(source).padEnd(9)}-> ${nameOf(destination).padEnd(9)}`;
      const row = rows.get(key) ?? { protocol, connections: 0, requests: 0, failures: 0, denied: 0 };
      rows.set(key, row);
      row.denied += counts.denied;
      if (reporter === 'destination') continue;
      row.connections += counts.connections;
      row.requests += counts.requests;
      row.failures += counts.failures;
    }
  }
  const lines = [...rows].map(([key, { protocol, connections, requests, failures, denied }]) => {
    const amount = protocol === 'tcp' ? `${connections} connections` : `${requests} requests`;
    return `${key}${protocol.padEnd(6)}${amount.padStart(18)}${`${failures} failed`.padStart(12)}${`${denied} denied`.padStart(12)}`;
  });
  return lines.sort().join('\n');
}

/** Listens on the wire of node-1; null: tcpdump is not installed. */
async function listen(mesh: TestMesh): Promise<Capture | null> {
  if (meshSkipReason('tcpdump') !== false) return null;
  return Capture.start(mesh.at('node-1'), 'up0', join(mesh.directory, 'wire.pcap'));
}

function wireSummary({ flows, file }: Captured): string {
  const tunnels = flows.filter(({ to }) => to.port === TUNNEL_PORT).length;
  const servers = flows.filter(({ from }) => from.port === TUNNEL_PORT);
  const encrypted = servers.every((flow) => chosenVersion(tlsRecords(flow) ?? []) === TLS_1_3);
  const legible = file.indexOf('HTTP/1.1') >= 0;
  const version = encrypted ? 'all TLS 1.3' : 'NOT all TLS 1.3';
  return `on the wire of node-1: ${(file.length / 1e6).toFixed(1)} MB in ${tunnels} connections, ${version}, ${legible ? 'LEGIBLE' : 'nothing legible'}`;
}

async function demo(ends: Ends): Promise<void> {
  const startMs = performance.now();
  const seconds = (): string => `${((performance.now() - startMs) / 1000).toFixed(1)} s`;
  step('A mesh of three nodes', 'network namespaces on this machine');
  for (const [node, workloads] of Object.entries(PLAN.nodes)) lines(`${node}  ${Object.keys(workloads).join('  ')}`);
  const mesh = await TestMesh.create(ends, PLAN, { mode: 'strict' });
  await startServices(mesh);
  lines(faint(`control plane, three node proxies and eight applications run after ${seconds()}`));

  step('Traffic', 'shopper -> web -> cart -> payments, catalog -> prices, reviews; every hop in mutual TLS');
  const capture = await listen(mesh);
  const load = new ConstantLoad(mesh.at('shopper-0'), { url: urlOf('web'), lanes: 4, perConnection: 20, rate: 100 });
  await new Promise((resolve) => setTimeout(resolve, TRAFFIC_MS));
  const { requests, failed, failures, p50Ms, p99Ms } = await load.stop();
  lines(
    `${requests} requests of five hops each, ${failed} failed, p50 ${p50Ms.toFixed(1)} ms, p99 ${p99Ms.toFixed(1)} ms`,
  );
  for (const failure of failures.slice(0, 3)) lines(failure);
  if (capture !== null) lines(wireSummary(await capture.stop()));

  for (const view of ['status', 'services']) {
    step(`portcullis mesh ${view}`);
    lines(await mesh.command(view, '--admin', mesh.controlAdmin));
  }

  step('Who may do what');
  const pay = async (from: string): Promise<string> =>
    (await mesh.clients.exchange(mesh.at(from), mesh.vip('payments'), 7000, 'pay\n', 4).catch(() => '')) === 'pay\n'
      ? 'paid'
      : 'connection closed';
  lines(`cart-0 -> payments               ${await pay('cart-0')}`);
  lines(`reviews-0 -> payments            ${await pay('reviews-0')}  ${faint('only-cart-pays')}`);
  const price = async (method: string): Promise<number> =>
    (await mesh.clients.request(mesh.at('catalog-0'), mesh.vip('prices'), 80, { method })).status;
  lines(`catalog-0 -> GET prices          ${await price('GET')}`);
  lines(`catalog-0 -> DELETE prices       ${await price('DELETE')}  ${faint('prices-are-read')}`);

  step('Who talks to whom', '/mesh/graph of every node');
  lines(await graph(mesh));
  const admins = [...mesh.nodes.values()].map(({ admin }) => admin).join();
  step('portcullis mesh graph', 'the same, with every workload apart, as both ends have seen it');
  lines(await mesh.command('graph', '--admin', admins));

  step('The proxy of node-3 is killed', 'its workloads are cut off, as failing closed means; the others go on');
  await mesh.node('node-3').kill();
  const review = async (): Promise<string> => {
    const { status, body } = await mesh.clients.request(mesh.at('web-0'), mesh.vip('reviews'), 80);
    return status === 200 ? `200 from ${JSON.parse(body).app}` : `${status}`;
  };
  for (let count = 1; count <= 3; count++) lines(`web-0 -> reviews                 ${await review()}`);
  await mesh.node('node-3').start();
  lines(faint('it is back'));
}

const reason = meshSkipReason();
if (reason !== false) {
  console.error(`The demo makes network namespaces, routes and packet filter rules of its own: it ${reason}.`);
  process.exit(1);
}
const ends = new Ends();
let stopping = false;
for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  process.on(signal, () => {
    if (stopping) return;
    stopping = true;
    ends.run().then(() => process.exit(130));
  });
}
try {
  await demo(ends);
} catch (error) {
  if (!stopping) {
    console.error(error);
    process.exitCode = 1;
  }
} finally {
  if (!stopping) {
    await ends.run();
    console.log(faint('\nEverything has been removed again.'));
  }
}
