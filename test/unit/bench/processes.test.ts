// Invariant under test: however a benchmark ends, nothing that it started goes on.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { cpuBetweenNs, processTree, readCpu } from '../../../bench/lib/cpu.ts';
import { freePort } from '../../../bench/lib/ports.ts';
import { BenchProcess, cleanUp, runCommand, temporaryDir } from '../../../bench/lib/processes.ts';

const processesModule = join(import.meta.dirname, '../../../bench/lib/processes.ts');
const treeModule = join(import.meta.dirname, '../../../bench/lib/cpu.ts');

/** A program that starts a shell with a child, prints their pids and its directory, then does `ending`. */
function program(ending: string): string {
  return `
    import { BenchProcess, temporaryDir } from ${JSON.stringify(processesModule)};
    import { processTree } from ${JSON.stringify(treeModule)};
    const dir = temporaryDir();
    const shell = new BenchProcess({ label: 'shell', command: 'sh', args: ['-c', 'sleep 1000 & wait'], dir, core: null });
    while (processTree(shell.pid).length < 2) await new Promise((resolve) => setTimeout(resolve, 5));
    console.log(JSON.stringify({ dir, pids: processTree(shell.pid) }));
    ${ending}
    await new Promise((resolve) => setTimeout(resolve, 100_000));
  `;
}

/** Whether the process runs: one that was killed but not yet collected by its parent does not. */
function runs(pid: number): boolean {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    return stat[stat.lastIndexOf(')') + 2] !== 'Z';
  } catch {
    return false;
  }
}

for (const [how, ending, signal] of [
  ['an exception', "throw new Error('on purpose');", null],
  ['Ctrl-C', '', 'SIGINT'],
  ['SIGTERM', '', 'SIGTERM'],
] as const) {
  test(`${how} ends every process that was started and removes the directory`, { timeout: 60_000 }, async () => {
    const child = spawn(process.execPath, ['--input-type=module-typescript', '-e', program(ending)], {
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    let output = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      output += text;
      if (signal !== null && output.includes('\n')) child.kill(signal);
    });
    await once(child, 'close');
    const { dir, pids } = JSON.parse(output) as { dir: string; pids: number[] };
    assert.equal(pids.length, 2);
    assert.equal(existsSync(dir), false);
    while (pids.some(runs)) await new Promise((resolve) => setImmediate(resolve));
  });
}

test('a process is stopped together with its children', { timeout: 60_000 }, async (t) => {
  t.after(cleanUp);
  const dir = temporaryDir();
  const args = ['-c', "trap '' TERM; sleep 1000 & wait; wait"];
  const shell = new BenchProcess({ label: 'stubborn', command: 'sh', args, dir, core: null });
  while (processTree(shell.pid).length < 2) await new Promise((resolve) => setImmediate(resolve));
  const pids = processTree(shell.pid);
  await shell.stop();
  assert.equal(shell.exited, true);
  while (pids.some(runs)) await new Promise((resolve) => setImmediate(resolve));
  assert.deepEqual(processTree(shell.pid), []);
});

test('CPU time of a tree includes what a child of the process used', { timeout: 60_000 }, async (t) => {
  t.after(cleanUp);
  const dir = temporaryDir();
  const busy = 'i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done';
  const args = ['-c', `sh -c '${busy}; : > done; sleep 1000' & wait`];
  const shell = new BenchProcess({ label: 'busy', command: 'sh', args, dir, core: null });
  const before = readCpu(shell.pid);
  while (!existsSync(join(dir, 'done'))) await new Promise((resolve) => setTimeout(resolve, 5));
  const usedNs = cpuBetweenNs(before, readCpu(shell.pid));
  await shell.stop();
  assert.ok(usedNs > 1e6, `${usedNs} ns for 200,000 turns of a loop`);
});

test('nanoseconds are used while they agree with the ticks, and ticks when a thread took its count with it', () => {
  const before = { schedNs: 1_000_000_000, ticksNs: 1_000_000_000 };
  assert.equal(cpuBetweenNs(before, { schedNs: 1_503_000_000, ticksNs: 1_500_000_000 }), 503_000_000);
  assert.equal(cpuBetweenNs(before, { schedNs: 700_000_000, ticksNs: 1_500_000_000 }), 500_000_000);
  assert.equal(cpuBetweenNs(before, { schedNs: null, ticksNs: 1_500_000_000 }), 500_000_000);
});

test('a command that does not exist gives no exit code instead of an exception', async () => {
  assert.equal((await runCommand('no-such-command-here', [])).code, null);
});

test('ports are handed out once', async () => {
  const ports = await Promise.all(Array.from({ length: 20 }, () => freePort()));
  assert.equal(new Set(ports).size, ports.length);
});
