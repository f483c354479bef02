// A mesh of real programs in network namespaces for benchmarks: as tests have it (test/support/mesh), but without
// access logs, with the node proxies pinned to one core, and gone however the benchmark ends.
//
// Invariant: everything is in the benchmark's temporary directory, a child of this process, or a namespace with its
// process id in its name.

import { spawnSync } from 'node:child_process';
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { JoinTokens } from '../../mesh-agent/identity/join-tokens.ts';
import { type MeshNode, TestMesh } from '../../test/support/mesh/mesh.ts';
import type { MeshPlan } from '../../test/support/mesh/plan.ts';
import type { Lifetime } from '../../test/support/mesh/sockets.ts';
import { processTree } from '../lib/cpu.ts';
import { runCommand, temporaryDir } from '../lib/processes.ts';

const TRUST_DOMAIN = 'cluster.local';
const TOKEN_LIFETIME_MS = 3_600_000;
/** The mesh of tests waits 20 s, which is short for hundreds of workloads on a slow machine. */
const SETTLE_ATTEMPTS = 3;

/** What is ended in the order of its making. */
export class Ends implements Lifetime {
  private ends: (() => void | Promise<void>)[] = [];

  after(end: () => void | Promise<void>): void {
    this.ends.push(end);
  }

  /** Ends it all. */
  async run(): Promise<void> {
    const { ends } = this;
    this.ends = [];
    for (const end of ends) await end();
  }
}

/**
 * Has everything removed when this process ends in another way than by itself (Ctrl-C, an exception): call it
 * before anything is started. Nothing asynchronous runs then, so this knows only what the system knows.
 */
export function removeEverythingAtExit(): void {
  process.on('exit', () => {
    for (const pid of processTree(process.pid)) {
      if (pid === process.pid) continue;
      try {
        process.kill(pid, 'SIGKILL');
      } catch {
        // Already gone.
      }
    }
    // As netns/network.ts names them.
    const own = namespaceNames().filter((name) => name.startsWith(`pctest-${process.pid}-`));
    const input = own.map((name) => `netns del ${name}\n`).join('');
    if (own.length > 0) spawnSync('ip', ['-force', '-batch', '-'], { input, stdio: ['pipe', 'ignore', 'ignore'] });
  });
  // Registers the handlers of signals, and the removal of files: after the above, or proxies would go on writing.
  process.env.TMPDIR = temporaryDir();
}

/** Starts a mesh; the node proxies run on `core`, with `more` lines in their configurations. */
export async function startBenchMesh(lifetime: Lifetime, plan: MeshPlan, core: number, more = ''): Promise<TestMesh> {
  const mesh = await TestMesh.create(lifetime, plan, { start: false });
  await mesh.startControl();
  const roots = await mesh.command('roots', '--admin', mesh.controlAdmin);
  const tokens = new JoinTokens(join(mesh.directory, 'state', 'join-tokens'), TRUST_DOMAIN);
  for (const node of mesh.nodes.values()) {
    const token = await tokens.create({ node: node.name, expiresMs: Date.now() + TOKEN_LIFETIME_MS, uses: null });
    node.configure({ mode: 'strict', more }, roots, token);
    withoutAccessLog(node);
  }
  await Promise.all([...mesh.nodes.values()].map((node) => node.start()));
  for (let attempt = 1; ; attempt++) {
    try {
      await mesh.settled();
      break;
    } catch (error) {
      if (attempt === SETTLE_ATTEMPTS) throw error;
    }
  }
  for (const node of mesh.nodes.values()) {
    await runCommand('taskset', ['-a', '-c', '-p', String(core), String(node.proxy!.pid)]);
  }
  return mesh;
}

function withoutAccessLog({ directory }: MeshNode): void {
  const file = join(directory, 'node.yaml');
  const lines = readFileSync(file, 'utf8').split('\n');
  const kept = lines.filter((line) => !line.startsWith('accessLog:'));
  if (kept.length !== lines.length - 1) throw new Error(`the access log was not found in ${file}`);
  writeFileSync(file, kept.join('\n'));
}

function namespaceNames(): string[] {
  try {
    return readdirSync('/run/netns');
  } catch {
    return []; // No namespace was ever named here.
  }
}
