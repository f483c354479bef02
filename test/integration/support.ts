// Starts real Portcullis processes and small upstreams for integration tests.
//
// Ports are never fixed: configurations say port 0 and tests read the real one from the log. All
// processes and servers are ended when the test that started them is over, however it ends.

import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { Agent, createServer, type IncomingMessage, type RequestListener, request, type Server } from 'node:http';
import { type AddressInfo, createServer as createTcpServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** The launcher. */
export const portcullis = fileURLToPath(new URL('../../portcullis', import.meta.url));

/** A safety net only: no test waits this long for anything that works. */
const WAIT_LIMIT_MS = 60_000;

/** What a finished process left behind. */
export interface Finished {
  code: number | null;
  signal: NodeJS.Signals | null;
  stdout: string;
  stderr: string;
}

/** A running command, with everything it has written so far. */
export class Running {
  readonly child: ChildProcess;
  readonly finished: Promise<Finished>;
  stdout = '';
  stderr = '';
  private over = false;
  private readonly checks = new Set<() => void>();

  constructor(child: ChildProcess) {
    this.child = child;
    const notify = (): void => {
      for (const check of [...this.checks]) check();
    };
    child.stdout!.on('data', (chunk) => {
      this.stdout += chunk;
      notify();
    });
    child.stderr!.on('data', (chunk) => {
      this.stderr += chunk;
      notify();
    });
    this.finished = new Promise((resolve, reject) => {
      child.once('error', reject);
      child.once('close', (code, signal) => {
        this.over = true;
        notify();
        resolve({ code, signal, stdout: this.stdout, stderr: this.stderr });
      });
    });
  }

  get pid(): number {
    return this.child.pid!;
  }

  /** Waits for the `count`-th match in the log; fails with the whole log when the process ends before. */
  log(pattern: RegExp, count = 1): Promise<RegExpMatchArray> {
    return this.wait('stderr', pattern, count);
  }

  /** Waits for the `count`-th match in what the process prints. */
  printed(pattern: RegExp, count = 1): Promise<RegExpMatchArray> {
    return this.wait('stdout', pattern, count);
  }

  private wait(stream: 'stdout' | 'stderr', pattern: RegExp, count: number): Promise<RegExpMatchArray> {
    return new Promise((resolve, reject) => {
      const settle = (): void => {
        clearTimeout(timer);
        this.checks.delete(check);
      };
      const check = (): void => {
        const matches = [...this[stream].matchAll(new RegExp(pattern, 'gm'))];
        if (matches.length >= count) {
          settle();
          resolve(matches[count - 1]!);
        } else if (this.over) {
          settle();
          reject(new Error(`the process ended before ${pattern} (${count}):\n${this.stderr}`));
        }
      };
      const timer = setTimeout(() => {
        settle();
        reject(new Error(`no ${pattern} (${count}) on ${stream}:\n${this.stderr}`));
      }, WAIT_LIMIT_MS);
      this.checks.add(check);
      check();
    });
  }

  kill(signal: NodeJS.Signals): void {
    this.child.kill(signal);
  }
}

/** A running gateway. */
export class Gateway extends Running {
  readonly configFile: string;

  constructor(child: ChildProcess, configFile: string) {
    super(child);
    this.configFile = configFile;
  }

  /** Port of a listener, once it serves. */
  async port(listener = 'http'): Promise<number> {
    const match = await this.log(new RegExp(`info listening listener=${listener} address=\\S+:(\\d+)$`));
    return Number(match[1]);
  }

  /** Port of the admin listener, once it serves. */
  async adminPort(): Promise<number> {
    return Number((await this.log(/info admin port address=\S+:(\d+)$/))[1]);
  }

  /** Waits until all workers serve. */
  async serving(): Promise<void> {
    await this.log(/info serving /);
  }

  /** Replaces the configuration file; SIGHUP is the caller's. */
  configure(text: string): void {
    writeFileSync(this.configFile, text);
  }
}

/**
 * Ports of loopback on which nobody listens, and that nobody gets who asks for a free one: unlike those that were given
 * back a moment ago.
 */
export const CLOSED_PORTS = [1, 2] as const;

/**
 * An address of loopback of this process alone. A port that was given back there stays free until it is taken again, as
 * others ask for ports of other addresses.
 */
export const OWN_HOST = `127.${64 + (process.pid >> 16)}.${(process.pid >> 8) & 255}.${process.pid & 255}`;

const given = new Set<number>();

/** A free port of `OWN_HOST`, for programs that cannot say which one they took. */
export async function freePort(): Promise<number> {
  const server = createTcpServer();
  await new Promise<void>((resolve) => server.listen(0, OWN_HOST, resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  if (given.has(port)) return freePort();
  given.add(port);
  return port;
}

/** Whatever something belongs to until it is over: a test, or a whole file (`fileLifetime`). */
export interface Lifetime {
  after(end: () => unknown): void;
}

/** A directory that goes away with the test. */
export function temporaryDirectory(t: Lifetime): string {
  const directory = mkdtempSync(join(tmpdir(), 'portcullis-test-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
}

/** How a process is started; `command` is the launcher unless told otherwise. */
export interface StartOptions {
  command?: string;
  env?: NodeJS.ProcessEnv;
  cwd?: string;
  uid?: number;
}

/** Starts `portcullis` with arguments; it is killed after the test if it still runs. */
export function start(t: Lifetime, args: string[], options: StartOptions = {}): Running {
  const running = new Running(launch(args, options));
  endAfter(t, running);
  return running;
}

/** Runs `portcullis` with arguments to its end. */
export function runToEnd(t: Lifetime, ...args: string[]): Promise<Finished> {
  return start(t, args).finished;
}

/** Starts a gateway on a configuration. */
export function startGateway(t: Lifetime, config: string, options: StartOptions = {}): Gateway {
  const configFile = join(temporaryDirectory(t), 'gateway.yaml');
  writeFileSync(configFile, config);
  const gateway = new Gateway(launch(['run', '--config', configFile], options), configFile);
  endAfter(t, gateway);
  return gateway;
}

/** Starts an upstream on a free loopback port and returns its port. */
export async function startUpstream(t: Lifetime, listener: RequestListener): Promise<number> {
  const server: Server = createServer(listener);
  server.keepAliveTimeout = 120_000;
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.after(() => {
    server.close();
    server.closeAllConnections();
  });
  return (server.address() as AddressInfo).port;
}

/** One upstream that answers every request with its name. */
export function namedUpstream(t: Lifetime, name: string): Promise<number> {
  return startUpstream(t, (incoming, response) => {
    incoming.resume();
    response.end(name);
  });
}

/** A configuration with one listener `http` and one route to one endpoint. */
export function simpleConfig(upstreamPort: number, extra = ''): string {
  return `
workers: 2
admin: {address: "127.0.0.1:0"}
${extra}
listeners: [{name: http, address: "127.0.0.1:0"}]
routes: [{name: all, rules: [{backendRefs: [{name: app}]}]}]
backends: [{name: app, endpoints: ["127.0.0.1:${upstreamPort}"]}]
`;
}

/** An HTTP answer, read whole. */
export interface Answer {
  status: number;
  headers: IncomingMessage['headers'];
  body: string;
}

/** One GET, on a connection of its own unless an agent is given. Rejects when the connection fails or the body is cut. */
export function get(
  port: number,
  path = '/',
  agent: Agent | false = false,
  headers: Record<string, string> = {},
  host = '127.0.0.1',
): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const outgoing = request({ host, port, path, agent, headers }, (incoming) => {
      let body = '';
      incoming.setEncoding('utf8');
      incoming.on('data', (chunk) => (body += chunk));
      incoming.on('error', reject);
      incoming.on('end', () => resolve({ status: incoming.statusCode!, headers: incoming.headers, body }));
    });
    outgoing.on('error', reject);
    outgoing.end();
  });
}

/** Constant load of several keep-alive clients, counting what goes wrong. */
export class Load {
  requests = 0;
  readonly failures: string[] = [];
  private running = true;
  private readonly agent = new Agent({ keepAlive: true });
  private readonly lanes: Promise<void>[];
  private readonly waiters: { requests: number; resolve: () => void }[] = [];

  /** Half of the clients keep their connection, the others open one per request. */
  constructor(port: number, clients: number, path = '/') {
    this.lanes = Array.from({ length: clients }, (_, index) => this.lane(port, path, index % 2 === 0));
  }

  /** Waits until so many more requests have ended. */
  more(requests: number): Promise<void> {
    return new Promise((resolve) => this.waiters.push({ requests: this.requests + requests, resolve }));
  }

  /** Ends the load and asserts that nothing failed. */
  async stop(): Promise<void> {
    await this.end();
    assert.deepEqual(this.failures, []);
  }

  /** Ends the load and asserts that nothing failed but what the test has caused. */
  async stopAllowing(pattern: RegExp): Promise<void> {
    await this.end();
    assert.deepEqual(
      this.failures.filter((failure) => !pattern.test(failure)),
      [],
    );
  }

  private async end(): Promise<void> {
    this.running = false;
    await Promise.all(this.lanes);
    this.agent.destroy();
  }

  private async lane(port: number, path: string, keepAlive: boolean): Promise<void> {
    while (this.running) {
      try {
        const { status } = await get(port, path, keepAlive ? this.agent : false);
        if (status !== 200) this.failures.push(`status ${status}`);
      } catch (error) {
        this.failures.push(String(error));
      }
      this.requests++;
      for (const waiter of this.waiters) if (this.requests >= waiter.requests) waiter.resolve();
    }
  }
}

/** Starts a command and leaves its end to the caller; tests want `start`. */
export function launch(args: string[], options: StartOptions): ChildProcess {
  const { command = portcullis, env, ...rest } = options;
  return spawn(command, args, { ...rest, stdio: ['ignore', 'pipe', 'pipe'], env: { ...process.env, ...env } });
}

function endAfter(t: Lifetime, running: Running): void {
  t.after(async () => {
    running.child.kill('SIGKILL');
    await running.finished;
  });
}
