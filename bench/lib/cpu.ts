// CPU time and resident memory of a process tree, and of the machine, read from /proc.
//
// Two clocks are read. schedstat counts nanoseconds per living thread; stat counts clock ticks
// per process, with threads that have ended. Nanoseconds are used unless the two disagree by
// more than a few ticks, which means that a thread ended in between and took its count with it.
// Spec: proc(5), Documentation/scheduler/sched-stats.rst of the kernel.

import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';

/** One reading of both clocks for a process tree. */
export interface CpuReading {
  /** Sum over living threads; null where the kernel has no schedstat. */
  schedNs: number | null;
  /** User plus system time, in whole clock ticks. */
  ticksNs: number;
}

const DISAGREEMENT_TICKS_MAX = 4;
/** Length of one clock tick of /proc in nanoseconds. */
const tickNs = 1e9 / clockTicksPerSecond();

/** `pid` and all its descendants; empty when the process is gone. */
export function processTree(pid: number): number[] {
  const children = new Map<number, number[]>();
  let found = false;
  for (const name of readdirSync('/proc')) {
    const candidate = Number(name);
    if (!Number.isInteger(candidate)) continue;
    const fields = statFields(candidate);
    if (fields === null) continue;
    if (candidate === pid) found = true;
    const parent = Number(fields[1]);
    const siblings = children.get(parent);
    if (siblings === undefined) children.set(parent, [candidate]);
    else siblings.push(candidate);
  }
  if (!found) return [];
  const tree = [pid];
  for (let i = 0; i < tree.length; i++) tree.push(...(children.get(tree[i]) ?? []));
  return tree;
}

/** CPU time that the tree under `pid` has used so far. */
export function readCpu(pid: number): CpuReading {
  let schedNs: number | null = 0;
  let ticks = 0;
  for (const member of processTree(pid)) {
    const fields = statFields(member);
    // utime and stime are fields 14 and 15; statFields starts at field 3.
    if (fields !== null) ticks += Number(fields[11]) + Number(fields[12]);
    const threadsNs = threadTimeNs(member);
    schedNs = schedNs === null || threadsNs === null ? null : schedNs + threadsNs;
  }
  return { schedNs, ticksNs: ticks * tickNs };
}

/** CPU nanoseconds between two readings of the same tree. */
export function cpuBetweenNs(before: CpuReading, after: CpuReading): number {
  const byTicks = after.ticksNs - before.ticksNs;
  if (before.schedNs === null || after.schedNs === null) return byTicks;
  const bySchedule = after.schedNs - before.schedNs;
  return Math.abs(bySchedule - byTicks) > DISAGREEMENT_TICKS_MAX * tickNs ? byTicks : bySchedule;
}

/** Resident bytes of the tree under `pid` (VmRSS, so pages shared inside the tree count once per process). */
export function residentBytes(pid: number): number {
  let kilobytes = 0;
  for (const member of processTree(pid)) {
    const match = /^VmRSS:\s+(\d+) kB$/m.exec(readText(`/proc/${member}/status`) ?? '');
    if (match !== null) kilobytes += Number(match[1]);
  }
  return kilobytes * 1024;
}

/** Busy time of all cores since boot, time stolen by the hypervisor included, in nanoseconds. */
export function machineBusyNs(): number {
  const line = /^cpu\s+(.*)$/m.exec(readText('/proc/stat') ?? '')?.[1] ?? '';
  const [user, nice, system, , , irq, softirq, steal] = line.split(/\s+/).map(Number);
  return (user + nice + system + irq + softirq + (steal || 0)) * tickNs;
}

/** CPU time of this process and of its children that have ended, in nanoseconds. */
export function ownCpuNs(): number {
  const fields = statFields(process.pid);
  if (fields === null) return 0;
  return (Number(fields[11]) + Number(fields[12]) + Number(fields[13]) + Number(fields[14])) * tickNs;
}

/** Fields of /proc/PID/stat from the third (state) on; the command name before may hold spaces. */
function statFields(pid: number): string[] | null {
  const text = readText(`/proc/${pid}/stat`);
  return text === null ? null : text.slice(text.lastIndexOf(')') + 2).split(' ');
}

/** Time on CPU of all living threads of a process; null without schedstat. */
function threadTimeNs(pid: number): number | null {
  let threads: string[];
  try {
    threads = readdirSync(`/proc/${pid}/task`);
  } catch {
    return 0; // The process ended since the tree was read.
  }
  let sumNs = 0;
  let readable = 0;
  for (const thread of threads) {
    const text = readText(`/proc/${pid}/task/${thread}/schedstat`);
    if (text === null) continue;
    readable++;
    sumNs += Number(text.split(' ')[0]);
  }
  return readable === 0 && threads.length > 0 ? null : sumNs;
}

function readText(path: string): string | null {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return null;
  }
}

function clockTicksPerSecond(): number {
  try {
    return Number(execFileSync('getconf', ['CLK_TCK'], { encoding: 'utf8' })) || 100;
  } catch {
    return 100; // The value of every Linux platform that Node supports.
  }
}
