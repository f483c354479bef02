// Sockets and programs inside other network namespaces, for control threads.
//
// One thread per `NamespaceSockets` enters namespaces and does nothing else (netns-open.ts says how); descriptors
// are numbers of the whole process, so the sockets it opens are handed over as they are. It is started by the
// first request, holds no namespace between requests (a workload that ends takes its namespace with it), and is
// replaced by the next request if it dies. An idle one does not keep the process alive, and ends: it takes 12 MiB.

import { Worker } from 'node:worker_threads';
import { closeDescriptor } from './listen.ts';
import type { SocketRequest } from './netns-open.ts';
import { failure, type NamespaceFailure, type NamespaceOpened, type NamespaceTarget } from './netns-open.ts';

export type {
  DialRequest,
  ListenRequest,
  NamespaceErrorCode,
  NamespaceFailure,
  NamespaceOpened,
  NamespaceTarget,
  SocketRequest,
  UnconnectedRequest,
} from './netns-open.ts';

/** What the thread is asked. */
export type ThreadMessage =
  | { kind: 'open'; id: number; target: NamespaceTarget; request: SocketRequest; count: number }
  | { kind: 'identify'; id: number; target: NamespaceTarget }
  | { kind: 'spawn'; id: number; target: NamespaceTarget; command: string; args: string[] }
  | { kind: 'write'; id: number; text: string }
  | { kind: 'end' | 'kill'; id: number }
  | { kind: 'stop' };

/** What it answers. */
export type ThreadAnswer =
  | { kind: 'opened'; id: number; result: NamespaceOpened | NamespaceFailure }
  | { kind: 'identified'; id: number; result: NamespaceIdentified | NamespaceFailure }
  | { kind: 'stdout' | 'stderr'; id: number; text: string }
  | { kind: 'ended'; id: number; result: { ok: true; code: number | null } | NamespaceFailure };

/** Which namespace a path or process leads to now. */
export interface NamespaceIdentified {
  ok: true;
  /** See `NamespaceOpened`. */
  identity: string;
}

/** How a program ended: its exit status (null: killed), with all that it wrote. */
export interface CommandResult {
  ok: true;
  code: number | null;
  stdout: string;
  stderr: string;
}

/** Most bytes that are kept of what a program writes; the rest is dropped. */
const OUTPUT_MAX = 16 * 1024 * 1024;

/** Most sockets of one request. */
const COUNT_MAX = 1024;

/** A thread that nobody has asked for anything for so long, and that has no program running, ends. */
const IDLE_MS = 500;

/** A program that `run` starts is killed after this time. */
const RUN_LIMIT_MS = 30_000;

/** A program inside a namespace. When the process that started it dies, the program's input ends, and no more than that. */
export class NamespaceProcess {
  /** Everything written so far, up to 16 MiB each. */
  stdout = '';
  stderr = '';
  /** Called when more was written. */
  onOutput: () => void = () => {};
  /** Resolves when the program has ended and all output is here, or with why it never started. */
  readonly ended: Promise<CommandResult | NamespaceFailure>;
  private readonly send: (message: { kind: 'write'; text: string } | { kind: 'end' | 'kill' }) => void;
  private settle!: (result: CommandResult | NamespaceFailure) => void;

  constructor(send: NamespaceProcess['send']) {
    this.send = send;
    this.ended = new Promise((resolve) => {
      this.settle = resolve;
    });
  }

  /** Writes to the program's input. */
  write(text: string): void {
    this.send({ kind: 'write', text });
  }

  /** Ends the program's input. */
  end(): void {
    this.send({ kind: 'end' });
  }

  /** Kills the program. */
  kill(): void {
    this.send({ kind: 'kill' });
  }

  /** An answer of the thread (called by `NamespaceSockets`). */
  take(answer: Extract<ThreadAnswer, { kind: 'stdout' | 'stderr' | 'ended' }>): void {
    if (answer.kind === 'ended') {
      const { result } = answer;
      this.settle(result.ok ? { ...result, stdout: this.stdout, stderr: this.stderr } : result);
      return;
    }
    if (this[answer.kind].length < OUTPUT_MAX) this[answer.kind] += answer.text;
    this.onOutput();
  }

  /** The thread is gone (called by `NamespaceSockets`). */
  fail(reason: NamespaceFailure): void {
    this.settle(reason);
  }
}

/** Opens sockets and runs programs in network namespaces, on a thread of its own. */
export class NamespaceSockets {
  private thread: Worker | undefined;
  private idleTimer: NodeJS.Timeout | undefined;
  private nextId = 0;
  private readonly opening = new Map<number, (result: NamespaceOpened | NamespaceFailure) => void>();
  private readonly identifying = new Map<number, (result: NamespaceIdentified | NamespaceFailure) => void>();
  private readonly programs = new Map<number, NamespaceProcess>();
  private closed = false;
  private readonly idleMs: number;

  /** `idleMs`: how long a thread with nothing to do is kept. */
  constructor(idleMs = IDLE_MS) {
    this.idleMs = idleMs;
  }

  /**
   * Opens a socket inside a namespace, or `count` (1 to 1024) alike: all or none. Never rejects. The caller owns
   * the descriptors.
   */
  open(target: NamespaceTarget, request: SocketRequest, count = 1): Promise<NamespaceOpened | NamespaceFailure> {
    if (!Number.isInteger(count) || count < 1 || count > COUNT_MAX) throw new RangeError(`${count} sockets`);
    if (this.closed) return Promise.resolve(closedFailure());
    const id = this.nextId++;
    return new Promise((resolve) => {
      this.opening.set(id, resolve);
      this.post({ kind: 'open', id, target, request, count });
    });
  }

  /** Which namespace this is now, to be asked for again later by `{path, identity}`. Never rejects. */
  identify(target: NamespaceTarget): Promise<NamespaceIdentified | NamespaceFailure> {
    if (this.closed) return Promise.resolve(closedFailure());
    const id = this.nextId++;
    return new Promise((resolve) => {
      this.identifying.set(id, resolve);
      this.post({ kind: 'identify', id, target });
    });
  }

  /** Starts a program inside a namespace, its input open. Whether it could be started shows in `ended`. */
  spawn(target: NamespaceTarget, command: string, args: string[]): NamespaceProcess {
    const id = this.nextId++;
    const program = new NamespaceProcess((message) => {
      if (this.programs.has(id)) this.post({ ...message, id });
    });
    if (this.closed) {
      program.fail(closedFailure());
      return program;
    }
    this.programs.set(id, program);
    this.post({ kind: 'spawn', id, target, command, args });
    return program;
  }

  /** Runs a program inside a namespace to its end, at most 30 s, with `input` as its input. Never rejects. */
  async run(
    target: NamespaceTarget,
    command: string,
    args: string[],
    input = '',
  ): Promise<CommandResult | NamespaceFailure> {
    const program = this.spawn(target, command, args);
    if (input !== '') program.write(input);
    program.end();
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      program.kill();
    }, RUN_LIMIT_MS);
    const result = await program.ended;
    clearTimeout(timer);
    return late ? failure('COMMAND_FAILED', 0, `${command} was killed after ${RUN_LIMIT_MS / 1000} s`) : result;
  }

  /** Answers what was asked, kills programs that still run, and ends the thread. */
  async close(): Promise<void> {
    this.closed = true;
    clearTimeout(this.idleTimer);
    const { thread } = this;
    if (thread === undefined) return;
    await new Promise<void>((resolve) => {
      thread.once('exit', () => resolve());
      thread.ref();
      thread.postMessage({ kind: 'stop' } satisfies ThreadMessage);
    });
  }

  private post(message: ThreadMessage): void {
    clearTimeout(this.idleTimer);
    this.thread ??= this.launch();
    this.thread.ref();
    this.thread.postMessage(message);
  }

  private launch(): Worker {
    const thread = new Worker(new URL('./netns-thread.ts', import.meta.url));
    let cause = 'it ended';
    thread.on('message', (answer: ThreadAnswer) => this.take(answer));
    thread.on('error', (error) => {
      cause = error instanceof Error ? error.message : String(error);
    });
    thread.on('exit', () => {
      // One that was idle has nothing to answer; what is waiting waits for its successor.
      if (this.thread !== thread) return;
      this.thread = undefined;
      const lost = this.closed ? closedFailure() : failure('THREAD_LOST', 0, `the namespace thread failed: ${cause}`);
      for (const resolve of this.opening.values()) resolve(lost);
      for (const resolve of this.identifying.values()) resolve(lost);
      for (const program of this.programs.values()) program.fail(lost);
      this.identifying.clear();
      this.opening.clear();
      this.programs.clear();
    });
    return thread;
  }

  private take(answer: ThreadAnswer): void {
    if (answer.kind === 'opened') {
      const resolve = this.opening.get(answer.id);
      this.opening.delete(answer.id);
      if (resolve !== undefined) resolve(answer.result);
      else if (answer.result.ok) answer.result.fds.forEach(closeDescriptor);
    } else if (answer.kind === 'identified') {
      this.identifying.get(answer.id)?.(answer.result);
      this.identifying.delete(answer.id);
    } else {
      this.programs.get(answer.id)?.take(answer);
      if (answer.kind === 'ended') this.programs.delete(answer.id);
    }
    const waiting = this.opening.size + this.identifying.size + this.programs.size;
    if (waiting > 0 || this.closed) return;
    this.thread?.unref();
    clearTimeout(this.idleTimer);
    this.idleTimer = setTimeout(() => this.retire(), this.idleMs).unref();
  }

  private retire(): void {
    const { thread } = this;
    this.thread = undefined;
    thread?.postMessage({ kind: 'stop' } satisfies ThreadMessage);
  }
}

function closedFailure(): NamespaceFailure {
  return failure('CLOSED', 0, 'the namespace thread has been closed');
}
