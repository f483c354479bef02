// What the benchmark runs on: machine, kernel, load, limits. Read from /proc and node:os.

import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { cpus, loadavg, release, type as systemName, totalmem } from 'node:os';

/** Load average of the last minute above which figures are doubtful. */
export const BUSY_LOAD = 0.3;

/** Facts for the head of the results. */
export interface Machine {
  cpu: string;
  cores: number;
  memoryGiB: number;
  kernel: string;
  node: string;
  /** Load average of the last minute when the benchmark began. */
  load: number;
  /** Most file descriptors a process may open. */
  descriptorsMax: number;
}

/** Describes this machine as it is now. */
export function describeMachine(): Machine {
  return {
    cpu: cpus()[0]?.model.trim() ?? 'unknown',
    cores: cpus().length,
    memoryGiB: Math.round(totalmem() / 2 ** 30),
    kernel: `${systemName()} ${release()}`,
    node: process.version,
    load: loadavg()[0],
    descriptorsMax: descriptorsMax(),
  };
}

/** Hard limit on open descriptors of this process and what it starts. */
export function descriptorsMax(): number {
  const hard = /^Max open files\s+\S+\s+(\S+)/m.exec(readFileSync('/proc/self/limits', 'utf8'))?.[1] ?? '1024';
  return hard === 'unlimited' ? 1_000_000 : Number(hard);
}

/** First line that `command args` prints (stdout or stderr); null when it cannot be run. */
export function firstLine(command: string, args: readonly string[]): string | null {
  try {
    // Some programs (nginx) print their version on stderr.
    const text = execFileSync('/bin/sh', ['-c', '"$@" 2>&1', 'sh', command, ...args], { encoding: 'utf8' });
    return text.trim().split('\n')[0];
  } catch {
    return null;
  }
}
