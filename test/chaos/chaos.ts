// A chaos run: a real gateway in front of real backends that die, freeze, slow down, flap and answer
// errors, under a steady load and constant reloads.
//
// What must hold: with retries on, a safe request never fails. Without retries failures happen, but
// each has its reason, and they end with the trouble. No answer ever belongs to another request.
// Troubles come from a seed; their timing, being that of real processes, does not repeat exactly.

import { type ChildProcess, fork } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { Agent, request } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { Gateway, launch } from '../integration/support.ts';
import { Random } from '../sim/random.ts';
import type { Behaviour } from './backend.ts';

/** What is to be run. */
export interface ChaosOptions {
  seed: number;
  seconds: number;
  /** Reloads, spread over the run. */
  reloads: number;
  /** Told what happens. */
  log: (line: string) => void;
}

/** What came of it. */
export interface ChaosReport {
  /** Requests with retries, and what went wrong with them. */
  safe: number;
  safeFailures: string[];
  /** Requests without retries, and how often each reason was given. */
  plain: number;
  plainReasons: Record<string, number>;
  /** Answers without a reason, or of another request: never right. */
  wrong: string[];
  troubles: number;
  reloads: number;
  /** Exit code of the gateway after SIGTERM. */
  exitCode: number | null;
}

const BACKENDS = 6;
/** Most backends in trouble at a time. With more, the balancer would have to use all of them (panic threshold). */
const IN_TROUBLE_MAX = 2;
/** Requests in progress at a time, of each kind. */
const SAFE_CLIENTS = 8;
const PLAIN_CLIENTS = 4;
/** Pause of a client between two requests. */
const THINK_MS = 5;

const calm: Behaviour = { delayMs: 0, errors: false };

/** Runs chaos for a while. Everything that it starts is ended. */
export async function runChaos(options: ChaosOptions): Promise<ChaosReport> {
  const random = new Random(options.seed);
  const directory = mkdtempSync(join(tmpdir(), 'portcullis-chaos-'));
  const backends = Array.from({ length: BACKENDS }, (_, index) => new Backend(`b${index}`));
  let gateway: Gateway | undefined;
  try {
    await Promise.all(backends.map((backend) => backend.start()));
    const configFile = join(directory, 'gateway.yaml');
    writeFileSync(configFile, configText(backends, 0));
    gateway = new Gateway(launch(['run', '--config', configFile], {}), configFile);
    await gateway.serving();
    return await new ChaosRun(options, random, backends, gateway).run();
  } finally {
    for (const backend of backends) backend.kill();
    if (gateway !== undefined) {
      gateway.kill('SIGKILL');
      await gateway.finished;
    }
    rmSync(directory, { recursive: true, force: true });
  }
}

class ChaosRun {
  private readonly options: ChaosOptions;
  private readonly random: Random;
  private readonly backends: Backend[];
  private readonly gateway: Gateway;
  private readonly agent = new Agent({ keepAlive: true });
  private readonly report: ChaosReport = {
    safe: 0,
    safeFailures: [],
    plain: 0,
    plainReasons: {},
    wrong: [],
    troubles: 0,
    reloads: 0,
    exitCode: null,
  };
  private over = false;

  constructor(options: ChaosOptions, random: Random, backends: Backend[], gateway: Gateway) {
    this.options = options;
    this.random = random;
    this.backends = backends;
    this.gateway = gateway;
  }

  async run(): Promise<ChaosReport> {
    const port = await this.gateway.port();
    const work = [
      ...Array.from({ length: SAFE_CLIENTS }, (_, index) => this.client(port, index, true)),
      ...Array.from({ length: PLAIN_CLIENTS }, (_, index) => this.client(port, index, false)),
      this.makeTrouble(),
      this.reload(),
    ];
    const timer = setTimeout(() => (this.over = true), this.options.seconds * 1000);
    await Promise.all(work);
    clearTimeout(timer);
    this.agent.destroy();
    this.gateway.kill('SIGTERM');
    this.report.exitCode = (await this.gateway.finished).code;
    return this.report;
  }

  /** One client: one request after the other until the run is over. */
  private async client(port: number, index: number, safe: boolean): Promise<void> {
    const { report } = this;
    for (let number = 0; !this.over; number++) {
      const path = `/${safe ? 'safe' : 'plain'}/${index}/${number}`;
      const answer = await ask(port, path, this.agent);
      if (safe) report.safe++;
      else report.plain++;
      if (answer.status === 200) {
        if (answer.body !== `GET ${path} `) report.wrong.push(`${path} got ${JSON.stringify(answer.body)}`);
      } else if (safe) {
        report.safeFailures.push(`${path}: ${answer.status} ${answer.reason} ${answer.body}`);
      } else if (answer.reason === '' && answer.status !== 500) {
        report.wrong.push(`${path}: ${answer.status} without a reason: ${answer.body}`);
      } else {
        const reason = answer.reason === '' ? 'status 500 of the backend' : answer.reason;
        report.plainReasons[reason] = (report.plainReasons[reason] ?? 0) + 1;
      }
      await pause(THINK_MS);
    }
  }

  /** One trouble after the other. */
  private async makeTrouble(): Promise<void> {
    const running = new Set<Promise<void>>();
    while (!this.over) {
      await pause(100 + this.random.int(0, 300));
      const well = this.backends.filter((backend) => !backend.inTrouble);
      if (BACKENDS - well.length >= IN_TROUBLE_MAX) continue;
      const trouble = this.trouble(this.random.pick(well));
      running.add(trouble);
      trouble.finally(() => running.delete(trouble));
    }
    await Promise.all(running);
  }

  private async trouble(backend: Backend): Promise<void> {
    const { random, report, options } = this;
    backend.inTrouble = true;
    report.troubles++;
    const lengthMs = 200 + random.int(0, 1000);
    const kind = random.pick(['kill', 'freeze', 'slow', 'errors', 'flap']);
    options.log(`${backend.name}: ${kind} for ${lengthMs} ms`);
    switch (kind) {
      case 'kill':
        backend.kill();
        await pause(lengthMs);
        await backend.start();
        break;
      case 'freeze':
        backend.signal('SIGSTOP');
        await pause(lengthMs);
        backend.signal('SIGCONT');
        break;
      case 'slow':
        backend.behave({ delayMs: 150, errors: false });
        await pause(lengthMs);
        backend.behave(calm);
        break;
      case 'errors':
        backend.behave({ delayMs: 0, errors: true });
        await pause(lengthMs);
        backend.behave(calm);
        break;
      default:
        for (let i = 0; i < 3; i++) {
          backend.kill();
          await pause(lengthMs / 6);
          await backend.start();
          await pause(lengthMs / 6);
        }
    }
    backend.inTrouble = false;
  }

  private async reload(): Promise<void> {
    const { seconds, reloads } = this.options;
    for (let i = 1; i <= reloads && !this.over; i++) {
      await pause((seconds * 1000) / (reloads + 1));
      this.gateway.configure(configText(this.backends, i));
      this.gateway.kill('SIGHUP');
      this.report.reloads++;
    }
  }
}

/** A backend process that comes back on the same port. */
class Backend {
  readonly name: string;
  port = 0;
  inTrouble = false;
  private child: ChildProcess | undefined;

  constructor(name: string) {
    this.name = name;
  }

  async start(): Promise<void> {
    const child = fork(join(import.meta.dirname, 'backend.ts'), [String(this.port)]);
    this.child = child;
    this.port = await new Promise<number>((resolve, reject) => {
      child.once('message', (port) => resolve(port as number));
      child.once('exit', () => reject(new Error(`${this.name} did not start`)));
    });
  }

  behave(behaviour: Behaviour): void {
    this.child!.send(behaviour);
  }

  signal(signal: NodeJS.Signals): void {
    this.child!.kill(signal);
  }

  kill(): void {
    this.child?.removeAllListeners('exit');
    this.child?.kill('SIGKILL');
  }
}

/** An answer, or status 0 and what went wrong with the connection. */
function ask(port: number, path: string, agent: Agent): Promise<{ status: number; reason: string; body: string }> {
  return new Promise((resolve) => {
    const outgoing = request({ host: '127.0.0.1', port, path, agent }, (incoming) => {
      let body = '';
      incoming.setEncoding('latin1');
      incoming.on('data', (chunk) => (body += chunk));
      incoming.on('end', () => {
        const reason = incoming.headers['x-reason'];
        resolve({ status: incoming.statusCode!, reason: typeof reason === 'string' ? reason : '', body });
      });
      incoming.on('error', (error) => resolve({ status: 0, reason: '', body: error.message }));
    });
    outgoing.on('error', (error) => resolve({ status: 0, reason: '', body: error.message }));
    outgoing.end();
  });
}

/** The configuration; `generation` changes something that matters to nobody. */
function configText(backends: readonly Backend[], generation: number): string {
  const endpoints = backends.map(({ port }, index) => {
    return `{address: "127.0.0.1:${port}", weight: ${index === generation % backends.length ? 2 : 1}}`;
  });
  return `
workers: 2
admin: off
responseReasonHeader: x-reason
listeners: [{name: http, address: "127.0.0.1:0"}]
routes:
  - name: safe
    rules:
      - matches: [{path: {value: /safe}}]
        timeouts: {request: 5s, backendRequest: 300ms}
        retry: {attempts: 4, codes: [500, 502, 503, 504], conditions: [connect-failure, reset], backoff: 10ms}
        backendRefs: [{name: app}]
      - matches: [{path: {value: /plain}}]
        timeouts: {request: 2s}
        backendRefs: [{name: app}]
backends:
  - name: app
    endpoints: [${endpoints.join(', ')}]
    connectTimeout: 200ms
    loadBalancer: {policy: LeastRequest, panicThreshold: 20}
    healthCheck: {type: HTTP, path: /healthz, interval: 200ms, timeout: 100ms, unhealthyThreshold: 2, healthyThreshold: 1}
    outlierDetection: {consecutive5xx: 5, interval: 500ms, baseEjectionTime: 300ms, maxEjectionPercent: 50}
    circuitBreaker: {maxConnections: 1000, maxPendingRequests: 1000, maxRetries: 1000}
`;
}
