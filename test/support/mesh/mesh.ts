// A mesh on this machine for tests and the demo: nodes and workloads as network namespaces, a control plane, and a
// node proxy per node, all of them the real programs.
//
// Everything belongs to a lifetime (a test) and is gone after it; what a crashed run left behind is removed by the
// next one (netns/network.ts). Needs root, iproute2 and nftables.

import { mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type { ControlStatus } from '../../../mesh-agent/commands/control-admin.ts';
import { JoinTokens } from '../../../mesh-agent/identity/join-tokens.ts';
import type { NodeMeshPage } from '../../../mesh-agent/node/node-admin.ts';
import { portcullis, Running } from '../../integration/support.ts';
import { netnsSkipReason, type TestNamespace, TestNetwork } from '../netns/network.ts';
import {
  CONTROL_NODE,
  documentsOf,
  identityIn,
  type MeshPlan,
  membersOf,
  topologyOf,
  virtualAddresses,
} from './plan.ts';
import { type Answer, Clients, type Lifetime } from './sockets.ts';

const CONTROL_PORT = 15_012;
const CONTROL_ADMIN_PORT = 9_903;
const NODE_ADMIN_PORT = 9_902;

const TRUST_DOMAIN = 'cluster.local';
const TOKEN_LIFETIME_MS = 3_600_000;

/** Nothing that works takes this long. */
const WAIT_LIMIT_MS = 60_000;

/** Why a mesh cannot be made here, as a reason to skip; false: it can. */
export function meshSkipReason(...programs: string[]): string | false {
  return netnsSkipReason('nft', ...programs);
}

/** Waits until a check holds: until it returns something other than undefined or false, without throwing. */
export async function eventually<T>(
  what: string,
  check: () => T | false | undefined | Promise<T | false | undefined>,
): Promise<T> {
  const endMs = performance.now() + WAIT_LIMIT_MS;
  for (;;) {
    let problem: unknown = 'not yet';
    try {
      const value = await check();
      if (value !== undefined && value !== false) return value;
    } catch (error) {
      problem = error;
    }
    if (performance.now() > endMs) throw new Error(`not in time: ${what}: ${problem}`, { cause: problem });
    await delay(20);
  }
}

/** Settings of node proxies that tests differ in. */
export interface NodeOptions {
  mode?: 'strict' | 'permissive';
  egress?: 'passthrough' | 'refuse';
  /** Further lines of the configuration. */
  more?: string;
  /** Nodes that have no proxy. */
  without?: string[];
}

/** A node: its namespace, its proxy, and what that keeps on disk. */
export class MeshNode {
  readonly name: string;
  readonly namespace: TestNamespace;
  readonly directory: string;
  /** The proxy's process; undefined: it was never started. */
  proxy: Running | undefined;
  private readonly mesh: TestMesh;

  constructor(mesh: TestMesh, name: string, directory: string) {
    this.mesh = mesh;
    this.name = name;
    this.namespace = mesh.at(name);
    this.directory = directory;
  }

  /** Admin port, which the other nodes reach, too. */
  get admin(): string {
    return `${this.namespace.address}:${NODE_ADMIN_PORT}`;
  }

  /** Writes the configuration, with a token of its own. */
  configure(options: NodeOptions, roots: string, token: string): void {
    const { mode = 'permissive', egress = 'passthrough', more = '' } = options;
    writeFileSync(join(this.directory, 'roots.pem'), roots);
    writeFileSync(join(this.directory, 'token'), token, { mode: 0o600 });
    writeFileSync(
      join(this.directory, 'node.yaml'),
      `node: ${this.name}
trustDomain: ${TRUST_DOMAIN}
controlPlane: {address: "${this.mesh.controlAddress}:${CONTROL_PORT}", roots: roots.pem}
joinToken: {file: token}
stateDirectory: state
admin: {address: "${this.admin}"}
accessLog: {path: access.log}
workers: 1
mode: ${mode}
egress: ${egress}
${more}
`,
    );
  }

  /** Starts the proxy; does not wait. */
  launch(): Running {
    this.proxy = new Running(
      this.namespace.spawn(portcullis, ['mesh', 'node', '--config', `${this.directory}/node.yaml`]),
    );
    return this.proxy;
  }

  /** Starts the proxy, and waits until it serves. */
  async start(): Promise<Running> {
    const proxy = this.launch();
    await this.ready();
    return proxy;
  }

  /** Waits until the proxy says that it serves; fails with its log when it has ended. */
  async ready(): Promise<void> {
    const { proxy } = this;
    let over: string | undefined;
    proxy!.finished.then(({ code, stderr }) => (over = `the proxy of ${this.name} ended with ${code}:\n${stderr}`));
    await eventually(`node ${this.name} is ready`, async () => {
      if (over !== undefined) return over;
      const { status, body } = await this.ask('/readyz');
      if (status !== 200) throw new Error(`${body}\n${proxy!.stderr}`);
      return true;
    });
    if (over !== undefined) throw new Error(over);
  }

  /** Waits until it serves so many workloads, all of them whole. */
  async servesAll(count: number): Promise<void> {
    await eventually(`node ${this.name} serves its workloads`, async () => {
      const { workloads } = await this.status();
      const bad = workloads.filter(
        ({ served, capture, problems }) => !served || capture !== 'installed' || problems.length > 0,
      );
      if (workloads.length !== count || bad.length > 0) throw new Error(JSON.stringify(workloads, null, 1));
      return true;
    });
  }

  /** How it stands. */
  async status(): Promise<NodeMeshPage> {
    return JSON.parse(await this.page('/mesh')) as NodeMeshPage;
  }

  /** Ends the proxy as a crash would. */
  async kill(): Promise<void> {
    this.proxy!.kill('SIGKILL');
    await this.proxy!.finished;
  }

  /** A page of the proxy's admin port. */
  ask(path: string): Promise<Answer> {
    return this.mesh.clients.request(this.namespace, this.namespace.address, NODE_ADMIN_PORT, { path });
  }

  /** Entries of the access log up to now. */
  accessLog(): Record<string, unknown>[] {
    const lines = readFileSync(join(this.directory, 'access.log'), 'utf8').split('\n');
    return lines.filter((line) => line.endsWith('}')).map((line) => JSON.parse(line));
  }

  /** Text of a page that must be there. */
  async page(path: string): Promise<string> {
    const { status, body } = await this.ask(path);
    if (status !== 200) throw new Error(`${path} of node ${this.name}: ${status} ${body}`);
    return body;
  }
}

/** The whole. */
export class TestMesh {
  readonly network: TestNetwork;
  readonly clients: Clients;
  readonly nodes = new Map<string, MeshNode>();
  /** Private, and gone with the lifetime. */
  readonly directory: string;
  control!: Running;
  private plan: MeshPlan;

  private constructor(lifetime: Lifetime, network: TestNetwork, plan: MeshPlan) {
    this.network = network;
    this.plan = plan;
    this.directory = mkdtempSync(join(tmpdir(), 'portcullis-mesh-'));
    lifetime.after(() => rmSync(this.directory, { recursive: true, force: true }));
    this.clients = new Clients(lifetime);
  }

  /** Makes a mesh and starts all of it, unless `start` is false: then only networks and files are there. */
  static async create(
    lifetime: Lifetime,
    plan: MeshPlan,
    options: NodeOptions & { start?: boolean } = {},
  ): Promise<TestMesh> {
    const network = await TestNetwork.create(lifetime, topologyOf(plan));
    const mesh = new TestMesh(lifetime, network, plan);
    mesh.write('control.yaml', mesh.controlConfig());
    mesh.makeDirectory('mesh');
    mesh.writeDocuments();
    for (const name of Object.keys(plan.nodes)) {
      if (options.without?.includes(name)) continue;
      mesh.nodes.set(name, new MeshNode(mesh, name, mesh.makeDirectory(`node-${name}`)));
    }
    if (options.start === false) return mesh;
    await mesh.startControl();
    const roots = await mesh.controlPage('/roots');
    const tokens = new JoinTokens(join(mesh.directory, 'state', 'join-tokens'), TRUST_DOMAIN);
    await Promise.all(
      [...mesh.nodes.values()].map(async (node) => {
        const token = await tokens.create({ node: node.name, expiresMs: Date.now() + TOKEN_LIFETIME_MS, uses: null });
        node.configure(options, roots, token);
        await node.start();
      }),
    );
    await mesh.settled();
    return mesh;
  }

  /** Namespace of a workload or node. */
  at(name: string): TestNamespace {
    return this.network.get(name);
  }

  node(name: string): MeshNode {
    return this.nodes.get(name)!;
  }

  /** Virtual IPv4 address of a service. */
  vip(service: string): string {
    return virtualAddresses(this.plan, service)[0];
  }

  /** Virtual IPv6 address of a service. */
  vip6(service: string): string {
    return virtualAddresses(this.plan, service)[1];
  }

  identity(workload: string): string {
    return identityIn(this.plan, workload);
  }

  get controlAddress(): string {
    return this.at(CONTROL_NODE).address;
  }

  get controlAdmin(): string {
    return `${this.controlAddress}:${CONTROL_ADMIN_PORT}`;
  }

  /** Configuration of the control plane. */
  get controlFile(): string {
    return join(this.directory, 'control.yaml');
  }

  /** Starts the control plane, and waits until it serves. */
  async startControl(): Promise<void> {
    this.control = new Running(this.at(CONTROL_NODE).spawn(portcullis, ['control', '--config', this.controlFile]));
    await this.control.log(/info serving /);
  }

  /** Ends the control plane as a crash would. */
  async killControl(): Promise<void> {
    this.control.kill('SIGKILL');
    await this.control.finished;
  }

  /** What a command of `portcullis mesh` prints, run where the control plane is. */
  async command(...args: string[]): Promise<string> {
    const { code, stdout, stderr } = await this.at(CONTROL_NODE).run(portcullis, ['mesh', ...args]);
    if (code !== 0) throw new Error(`mesh ${args.join(' ')} ended with ${code}: ${stderr}`);
    return stdout;
  }

  /** How the control plane stands. */
  async status(): Promise<ControlStatus> {
    return JSON.parse(await this.controlPage('/status')) as ControlStatus;
  }

  /** A page of the control plane's admin port. */
  private async controlPage(path: string): Promise<string> {
    const { body } = await this.clients.request(this.at(CONTROL_NODE), this.controlAddress, CONTROL_ADMIN_PORT, {
      path,
    });
    return body;
  }

  /** Changes the plan's documents, and waits until every connected proxy serves them. */
  async change(plan: Partial<MeshPlan>): Promise<void> {
    const { version } = (await this.status()).mesh;
    this.plan = { ...this.plan, ...plan };
    this.writeDocuments();
    await this.settled(version + 1);
  }

  /** Changes one workload, as `change`. */
  changeWorkload(node: string, workload: string, change: MeshPlan['nodes'][string][string]): Promise<void> {
    const { nodes } = this.plan;
    const changed = { ...nodes[node]![workload], ...change };
    return this.change({ nodes: { ...nodes, [node]: { ...nodes[node], [workload]: changed } } });
  }

  /**
   * Waits until every node's proxy is connected and serves the mesh as it is, at least in this version, and all
   * workloads of its node.
   */
  async settled(least = 1): Promise<void> {
    const running = [...this.nodes.values()].filter(({ proxy }) => proxy?.child.exitCode === null);
    await eventually('every proxy serves the mesh', async () => {
      const { mesh, source } = await this.status();
      if (source.problems.length > 0) throw new Error(source.problems.join('\n'));
      const refused = mesh.proxies.flatMap((proxy) => proxy.refused);
      if (refused.length > 0) throw new Error(JSON.stringify(refused));
      return (
        mesh.version >= least &&
        mesh.proxies.length >= running.length &&
        mesh.proxies.every(({ state, version }) => state === 'serving' && version >= mesh.version)
      );
    });
    await Promise.all(running.map((node) => node.servesAll(membersOf(this.plan, node.name))));
  }

  /** curl, as it is installed, in a workload. Fails when curl does, unless told which exit code is meant. */
  async curl(from: string, url: string, ...args: string[]): Promise<string> {
    const { code, stdout, stderr } = await this.at(from).run('curl', ['-sS', '--max-time', '30', ...args, url]);
    if (code !== 0) throw new Error(`curl ${url} from ${from} ended with ${code}: ${stderr}${stdout}`);
    return stdout;
  }

  /** Cuts all traffic of workloads between a node and the others, or the node's own too, until the result is called. */
  async cut(node: string, ...hooks: ('forward' | 'input' | 'output')[]): Promise<() => Promise<void>> {
    const { namespace } = this.node(node);
    const matches = { forward: ['iifname', 'oifname'], input: ['iifname'], output: ['oifname'] };
    const chains = hooks.flatMap((hook) => [
      `add chain inet cut ${hook} { type filter hook ${hook} priority 0; }`,
      ...matches[hook].map((match) => `add rule inet cut ${hook} ${match} "up0" drop`),
    ]);
    await succeed(
      namespace,
      'nft',
      ['add table inet cut', ...chains].map((line) => `${line};`),
    );
    return () => succeed(namespace, 'nft', ['delete table inet cut']);
  }

  /** Replaces a file of the mesh's directory at once, as an operator's tools do. */
  write(name: string, text: string): void {
    const path = join(this.directory, name);
    writeFileSync(`${path}.new~`, text);
    renameSync(`${path}.new~`, path);
  }

  private writeDocuments(): void {
    for (const [name, text] of Object.entries(documentsOf(this.plan, (workload) => this.at(workload)))) {
      this.write(`mesh/${name}`, text);
    }
  }

  private makeDirectory(name: string): string {
    const path = join(this.directory, name);
    mkdirSync(path);
    return path;
  }

  private controlConfig(): string {
    return `trustDomain: ${TRUST_DOMAIN}
listen: "${this.controlAddress}:${CONTROL_PORT}"
serverNames: ["${this.controlAddress}"]
admin: {address: "${this.controlAdmin}"}
ca: {directory: state/ca, certificateLifetime: 5m}
source: {directory: mesh}
`;
  }
}

async function succeed(at: TestNamespace, program: string, args: string[]): Promise<void> {
  const { code, stderr } = await at.run(program, args);
  if (code !== 0) throw new Error(`${program} ${args.join(' ')}: ${stderr}`);
}
