// Networks for tests: nodes and workloads as network namespaces on this machine.
//
// A fabric (one bridge) joins the nodes; each node routes for its workloads, which are behind a bridge of its own,
// as in a cluster. Every address is IPv4 and IPv6. All links are inside namespaces, so nothing but names under
// /run/netns appears outside; the names say which process they belong to, and a later run removes what a crashed
// one left behind. Programs started inside die with the test's process.

import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { accessSync, constants, readdirSync, readFileSync } from 'node:fs';
import type { TestContext } from 'node:test';

const PREFIX = 'pctest-';

/** Where the programs are for users whose PATH leaves them out. */
const PATH = `${process.env.PATH}:/usr/sbin:/sbin`;

/** What is to be made: the workloads of each node, by name. At most 200 nodes with 200 workloads each. */
export type Topology = Record<string, string[]>;

/** How a program inside a namespace ended. */
export interface Ended {
  code: number | null;
  stdout: string;
  stderr: string;
}

let sequence = 0;

/** Why networks cannot be made here, as a reason to skip; false: they can. Further programs may be asked for. */
export function netnsSkipReason(...programs: string[]): string | false {
  if (process.getuid!() !== 0) return 'needs root';
  for (const program of ['ip', 'nsenter', 'setpriv', ...programs]) {
    if (!hasProgram(program)) return `needs ${program}`;
  }
  const name = ownName('probe');
  const added = spawnSync('ip', ['netns', 'add', name], { env: { ...process.env, PATH } });
  if (added.status !== 0) return 'network namespaces cannot be made here';
  spawnSync('ip', ['netns', 'del', name], { env: { ...process.env, PATH } });
  return false;
}

/** A namespace of a test network. */
export class TestNamespace {
  readonly name: string;
  /** The namespace file. */
  readonly path: string;
  /** Addresses on the network; empty for a namespace without links. */
  readonly address: string;
  readonly address6: string;
  private readonly children = new Set<ChildProcess>();

  constructor(name: string, address = '', address6 = '') {
    this.name = name;
    this.path = `/run/netns/${name}`;
    this.address = address;
    this.address6 = address6;
  }

  /** Starts a program inside; it ends with the network. */
  spawn(command: string, args: string[]): ChildProcess {
    const child = spawn('nsenter', [`--net=${this.path}`, 'setpriv', '--pdeathsig', 'KILL', command, ...args], {
      env: { ...process.env, PATH },
    });
    this.children.add(child);
    child.once('close', () => this.children.delete(child));
    return child;
  }

  /** Runs a program inside to its end. Rejects only when it cannot be started. */
  run(command: string, args: string[], input = ''): Promise<Ended> {
    const child = this.spawn(command, args);
    let stdout = '';
    let stderr = '';
    child.stdout!.setEncoding('utf8').on('data', (text) => (stdout += text));
    child.stderr!.setEncoding('utf8').on('data', (text) => (stderr += text));
    child.stdin!.on('error', () => {});
    child.stdin!.end(input);
    return new Promise((resolve, reject) => {
      child.once('error', reject);
      child.once('close', (code) => resolve({ code, stdout, stderr }));
    });
  }

  /** Kills what still runs inside and waits for its end. */
  async close(): Promise<void> {
    await Promise.all(
      [...this.children].map((child) => {
        const ended = new Promise((resolve) => child.once('close', resolve));
        child.kill('SIGKILL');
        return ended;
      }),
    );
  }
}

/** A network for one test, removed when the test is over. */
export class TestNetwork {
  private readonly namespaces = new Map<string, TestNamespace>();

  /** Makes the network; its end belongs to the test. Throws what `ip` says. */
  static async create(t: Pick<TestContext, 'after'>, topology: Topology): Promise<TestNetwork> {
    await removeLeftovers();
    const network = new TestNetwork();
    t.after(() => network.close());
    await network.build(topology);
    return network;
  }

  /** The namespace of a node or workload. */
  get(name: string): TestNamespace {
    const found = this.namespaces.get(name);
    if (found === undefined) throw new Error(`no namespace ${name} in this network`);
    return found;
  }

  /** Makes namespaces that have a loopback interface and nothing else. */
  async addIsolated(names: string[]): Promise<TestNamespace[]> {
    const added = names.map((name) => this.register(name));
    await ip(
      ['-batch', '-'],
      added.map(({ name }) => `netns add ${name}`),
    );
    await Promise.all(added.map(({ name }) => ip(['-n', name, 'link', 'set', 'lo', 'up'])));
    return added;
  }

  /** Removes a namespace's name; the namespace ends with its last socket and process. */
  async remove(name: string): Promise<void> {
    const namespace = this.get(name);
    this.namespaces.delete(name);
    await namespace.close();
    await ip(['netns', 'del', namespace.name]);
  }

  /** Removes everything. */
  async close(): Promise<void> {
    const all = [...this.namespaces.values()];
    this.namespaces.clear();
    await Promise.all(all.map((namespace) => namespace.close()));
    await ip(
      ['-force', '-batch', '-'],
      all.map(({ name }) => `netns del ${name}`),
    ).catch(() => {});
  }

  private register(name: string, address?: string, address6?: string): TestNamespace {
    if (this.namespaces.has(name)) throw new Error(`two namespaces are named ${name}`);
    const namespace = new TestNamespace(ownName(name), address, address6);
    this.namespaces.set(name, namespace);
    return namespace;
  }

  private async build(topology: Topology): Promise<void> {
    const nodes = Object.entries(topology).map(([name, workloads], index) => {
      const n = index + 1;
      return {
        n,
        namespace: this.register(name, `10.9.0.${n}`, `fd09::${n}`),
        workloads: workloads.map((workload, i) =>
          this.register(workload, `10.9.${n}.${10 + i}`, `fd09:0:0:${n}::${10 + i}`),
        ),
      };
    });
    const fabric = this.register('fabric');
    await ip(
      ['-batch', '-'],
      [...this.namespaces.values()].map(({ name }) => `netns add ${name}`),
    );
    await Promise.all([...this.namespaces.values()].map(({ path }) => setUp(path)));
    await ip(
      ['-n', fabric.name, '-batch', '-'],
      [
        'link add br0 type bridge',
        'link set br0 up',
        ...nodes.flatMap(({ n, namespace }) => [
          `link add node${n} type veth peer name up0 netns ${namespace.name}`,
          `link set node${n} master br0 up`,
        ]),
      ],
    );
    await Promise.all(
      nodes.map(async ({ n, namespace, workloads }) => {
        const others = nodes.filter((other) => other.n !== n).map((other) => other.n);
        await ip(
          ['-n', namespace.name, '-batch', '-'],
          [
            'link add br0 type bridge',
            ...address('br0', `10.9.${n}.1/24`, `fd09:0:0:${n}::1/64`),
            ...address('up0', `10.9.0.${n}/24`, `fd09::${n}/64`),
            ...others.flatMap((other) => [
              `route add 10.9.${other}.0/24 via 10.9.0.${other}`,
              `route add fd09:0:0:${other}::/64 via fd09::${other}`,
            ]),
            ...workloads.flatMap((workload, i) => [
              `link add wl${i} type veth peer name eth0 netns ${workload.name}`,
              `link set wl${i} master br0 up`,
            ]),
          ],
        );
        await Promise.all(
          workloads.map((workload) =>
            ip(
              ['-n', workload.name, '-batch', '-'],
              [
                ...address('eth0', `${workload.address}/24`, `${workload.address6}/64`),
                `route add default via 10.9.${n}.1`,
                `route add ::/0 via fd09:0:0:${n}::1`,
              ],
            ),
          ),
        );
      }),
    );
  }
}

/** Removes namespaces of test processes that are not there any more. */
export async function removeLeftovers(): Promise<void> {
  let names: string[];
  try {
    names = readdirSync('/run/netns');
  } catch {
    return; // No namespace was ever named here.
  }
  const dead = names.filter((name) => {
    const [, pid, start] = new RegExp(`^${PREFIX}(\\d+)-(\\w+)-`).exec(name) ?? [];
    return pid !== undefined && startTime(pid) !== start;
  });
  // Two runs may clean up at the same time, so a name that is gone already is fine.
  if (dead.length > 0)
    await ip(
      ['-force', '-batch', '-'],
      dead.map((name) => `netns del ${name}`),
    ).catch(() => {});
}

function address(link: string, v4: string, v6: string): string[] {
  return [`addr add ${v4} dev ${link}`, `addr add ${v6} dev ${link} nodad`, `link set ${link} up`];
}

/** Loopback, forwarding, and no waiting for IPv6 addresses. */
function setUp(path: string): Promise<void> {
  const script = [
    'ip link set lo up',
    'echo 1 > /proc/sys/net/ipv4/ip_forward',
    'for f in all default; do for s in forwarding:1 accept_dad:0 router_solicitations:0; do',
    '  f6=/proc/sys/net/ipv6/conf/$f/$' + '{s%:*}; [ ! -e $f6 ] || echo $' + '{s#*:} > $f6; done; done',
  ].join('\n');
  return command('nsenter', [`--net=${path}`, 'sh', '-ec', script]);
}

function ip(args: string[], lines: string[] = []): Promise<void> {
  return command('ip', args, lines.map((line) => `${line}\n`).join(''));
}

function command(program: string, args: string[], input = ''): Promise<void> {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, { env: { ...process.env, PATH }, stdio: ['pipe', 'ignore', 'pipe'] });
    let errors = '';
    child.stderr.on('data', (text) => (errors += text));
    child.stdin.on('error', () => {});
    child.stdin.end(input);
    child.once('error', reject);
    child.once('close', (code) =>
      code === 0 ? resolve() : reject(new Error(`${program} ${args.join(' ')}: ${errors}`)),
    );
  });
}

/** Unique on this machine, and telling which process it belongs to. */
function ownName(name: string): string {
  return `${PREFIX}${process.pid}-${startTime(String(process.pid))}-${sequence++}-${name}`;
}

/** When a process started, in ticks since boot; undefined: there is none. Tells a process id's users apart. */
function startTime(pid: string): string | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19];
  } catch {
    return undefined;
  }
}

function hasProgram(name: string): boolean {
  return PATH.split(':').some((folder) => {
    try {
      accessSync(`${folder}/${name}`, constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}
