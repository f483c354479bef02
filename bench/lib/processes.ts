// Processes that a benchmark starts, and the temporary directory that they share.
//
// Invariant: whatever ends the benchmark (success, an exception, Ctrl-C, SIGTERM), every process
// started here is killed and the temporary directory is removed. Each process leads its own
// process group, so its children go with it.

import { type ChildProcess, spawn } from 'node:child_process';
import { accessSync, closeSync, constants, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { processTree } from './cpu.ts';

/** How to start a process. */
export interface StartOptions {
  /** Short name for messages and for the name of its output file. */
  label: string;
  /** Absolute path, or a name that is looked up in PATH. */
  command: string;
  args: readonly string[];
  /** Directory for its stderr; also its working directory. */
  dir: string;
  /** Added to the environment. */
  env?: Record<string, string>;
  /** Core that it is pinned to; null: not pinned. */
  core: number | null;
  /** Whether it runs only where nobody else wants the core (SCHED_IDLE); default: no. */
  idle?: boolean;
  /** Path of the network namespace that it runs in; default: ours. */
  namespace?: string;
  /** File that takes its stdout; default: discarded. */
  stdoutPath?: string;
}

const STOP_GRACE_MS = 300;

const running = new Set<ChildProcess>();
let temporaryDirectory = '';
let cleanupInstalled = false;

/** A process that runs until it is stopped. */
export class BenchProcess {
  readonly label: string;
  readonly pid: number;
  /** When it was started, from performance.now(). */
  readonly startedAtMs: number;
  /** Resolves with the exit code when the process has ended; null after a signal. */
  readonly ended: Promise<number | null>;
  /** Whether it has ended. */
  exited = false;
  /** How it ended, for people: `exit code 1`, `killed by SIGKILL`; empty while it runs. */
  ending = '';
  readonly #stderrPath: string;

  constructor(options: StartOptions) {
    this.label = options.label;
    this.#stderrPath = join(options.dir, `${options.label}.stderr`);
    const stderrFd = openSync(this.#stderrPath, 'a');
    const stdoutFd = options.stdoutPath === undefined ? -1 : openSync(options.stdoutPath, 'a');
    const [command, args] = placed(options.command, options.args, options);
    this.startedAtMs = performance.now();
    const child = spawn(command, args, {
      cwd: options.dir,
      env: { ...process.env, ...options.env },
      stdio: ['ignore', stdoutFd < 0 ? 'ignore' : stdoutFd, stderrFd],
      detached: true,
    });
    closeSync(stderrFd);
    if (stdoutFd >= 0) closeSync(stdoutFd);
    this.pid = child.pid ?? 0;
    if (options.idle) yieldAsGroup(this.pid);
    this.ended = track(child).then((code) => {
      this.exited = true;
      this.ending =
        code === null ? `killed by ${child.signalCode ?? 'nobody: it could not be started'}` : `exit code ${code}`;
      return code;
    });
  }

  /**
   * Ends the process and waits for its end: SIGTERM, so that it can wait for its own children, and
   * after a short while SIGKILL for it and everything that it started.
   */
  async stop(): Promise<void> {
    if (!this.exited) {
      this.signal('SIGTERM');
      await Promise.race([this.ended, pause(STOP_GRACE_MS)]);
    }
    killTree(this.pid);
    await this.ended;
  }

  /** Sends `signal` to the process itself (not to its children). */
  signal(signal: NodeJS.Signals): void {
    process.kill(this.pid, signal);
  }

  /** The last lines that it wrote to stderr, for error messages. */
  stderrTail(): string {
    const text = readFileSync(this.#stderrPath, 'utf8').trim();
    return text.split('\n').slice(-8).join('\n');
  }
}

/** What a command that ran to its end gave back. */
export interface CommandResult {
  /** Exit code; null after a signal or when the command could not be started. */
  code: number | null;
  stdout: string;
  stderr: string;
}

/** Runs a command to its end. `interruptAfterMs` sends SIGINT after that time, `killAfterMs` SIGKILL. Never rejects. */
export async function runCommand(
  command: string,
  args: readonly string[],
  options: {
    core?: number | null;
    namespace?: string | undefined;
    cwd?: string;
    interruptAfterMs?: number;
    killAfterMs?: number;
  } = {},
): Promise<CommandResult> {
  const [file, fileArgs] = placed(command, args, options);
  const child = spawn(file, fileArgs, {
    cwd: options.cwd ?? process.cwd(),
    stdio: ['ignore', 'pipe', 'pipe'],
    detached: true,
  });
  let stdout = '';
  let stderr = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    stdout += text;
  });
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    stderr += text;
  });
  const outputClosed = new Promise<void>((resolve) => child.once('close', () => resolve()));
  const timer =
    options.interruptAfterMs === undefined
      ? undefined
      : setTimeout(() => child.kill('SIGINT'), options.interruptAfterMs).unref();
  const killer =
    options.killAfterMs === undefined
      ? undefined
      : setTimeout(() => killTree(child.pid ?? 0), options.killAfterMs).unref();
  const code = await track(child);
  clearTimeout(timer);
  clearTimeout(killer);
  if (child.pid !== undefined) await outputClosed;
  return { code, stdout, stderr };
}

/** The one temporary directory of this benchmark run, made at the first call. */
export function temporaryDir(): string {
  installCleanup();
  if (temporaryDirectory === '') temporaryDirectory = mkdtempSync(join(tmpdir(), 'portcullis-bench-'));
  return temporaryDirectory;
}

/** Absolute path of an executable in PATH or the usual sbin directories; null when there is none. */
export function findExecutable(name: string): string | null {
  const directories = (process.env.PATH ?? '').split(':').concat('/usr/local/sbin', '/usr/sbin', '/sbin');
  for (const directory of directories) {
    const path = join(directory, name);
    try {
      accessSync(path, constants.X_OK);
      return path;
    } catch {
      // Not here: try the next directory.
    }
  }
  return null;
}

/** Resolves after `ms` milliseconds. */
export function pause(ms: number): Promise<void> {
  return sleep(ms);
}

/** Kills everything still running and removes the temporary directory. Safe to call again. */
export function cleanUp(): void {
  for (const child of running) if (child.pid !== undefined) killTree(child.pid);
  if (temporaryDirectory !== '') rmSync(temporaryDirectory, { recursive: true, force: true, maxRetries: 5 });
  temporaryDirectory = '';
}

/**
 * The command line with `taskset` in front when a core is given, `chrt` when it is to be idle, and `nsenter` when a
 * network namespace is given. All of them exec, so the pid is the command's own.
 */
function placed(
  command: string,
  args: readonly string[],
  { core = null, idle = false, namespace }: { core?: number | null; idle?: boolean; namespace?: string | undefined },
): [string, string[]] {
  const line = [command, ...args];
  if (core !== null) line.unshift('taskset', '-c', String(core));
  if (idle) line.unshift('chrt', '--idle', '0');
  if (namespace !== undefined) line.unshift('nsenter', `--net=${namespace}`);
  return [line[0], line.slice(1)];
}

/**
 * Gives the group of a process the least share of a core: with the kernel's automatic groups all processes that
 * lead a session count alike, whatever their own policy. Where there are none, its policy is enough.
 */
function yieldAsGroup(pid: number): void {
  try {
    writeFileSync(`/proc/${pid}/autogroup`, '19');
  } catch {
    // Not this kernel, or not for us.
  }
}

/** Notes a child as running until it ends; resolves with its exit code. */
function track(child: ChildProcess): Promise<number | null> {
  installCleanup();
  running.add(child);
  return new Promise((resolve) => {
    child.once('error', () => {
      running.delete(child);
      resolve(null);
    });
    child.once('exit', (code) => {
      running.delete(child);
      resolve(code);
    });
  });
}

/** Kills a process, its group, and descendants that have moved to a group of their own. */
function killTree(pid: number): void {
  for (const target of [-pid, ...processTree(pid)]) {
    try {
      process.kill(target, 'SIGKILL');
    } catch {
      // Already gone.
    }
  }
}

function installCleanup(): void {
  if (cleanupInstalled) return;
  cleanupInstalled = true;
  process.on('exit', cleanUp);
  // The default action of these signals would skip the exit handler.
  for (const [signal, number] of [
    ['SIGINT', 2],
    ['SIGTERM', 15],
    ['SIGHUP', 1],
  ] as const) {
    process.on(signal, () => process.exit(128 + number));
  }
}
