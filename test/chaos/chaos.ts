// A chaos run: a real gateway in front of real backends that die, freeze, slow down, flap and answer errors, whose
// names come and go in a DNS that fails now and then, with a Redis that dies and freezes; under a steady load and
// constant reloads.
//
// What must hold: with retries on, a safe request never fails. Without retries failures happen, but each has its
// reason, they are few for each trouble, and they end with the trouble. No answer ever belongs to another request. A limit that
// is counted in Redis, and fails open, refuses nobody who has not used it up.
// Troubles come from a seed; their timing, being that of real processes, does not repeat exactly.

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { Agent, request } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { Gateway, launch } from '../integration/support.ts';
import { Random } from '../sim/random.ts';
import type { Behaviour } from './backend.ts';
import { configText, FEW_REQUESTS, KEY_FIELD, type Known } from './config.ts';
import { ChaosNames } from './names.ts';
import { lastingPort } from './ports.ts';
import { Backend, Redis } from './processes.ts';

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
  /** Troubles of backends, of DNS and of Redis, by kind. */
  troubles: Record<string, number>;
  /** Times that the gateway had other endpoints, and lookups of it that failed for a while. */
  endpointChanges: number;
  lookupsFailed: number;
  /** Whether there is a Redis server to run with. */
  redis: boolean;
  /** Safe requests with a global limit: Redis has counted them, or they passed since it did not answer. */
  countedByRedis: number;
  failedOpen: number;
  /** Requests that a used up limit refused. */
  limited: number;
  redisOutages: number;
  reloads: number;
  /** What has not become well again after all troubles were over. */
  lasting: string[];
  /** Exit code of the gateway after SIGTERM. */
  exitCode: number | null;
}

/** Most backends in trouble at a time. With more, the balancer would have to use all of them (panic threshold). */
const IN_TROUBLE_MAX = 2;
/** Requests in progress at a time, of each kind. */
const SAFE_CLIENTS = 5;
const COUNTED_CLIENTS = 3;
const FEW_CLIENTS = 1;
const PLAIN_CLIENTS = 4;
/** Requests of a client of a small limit with one key. */
const REQUESTS_PER_KEY = FEW_REQUESTS + 4;
/** Pause of a client between two requests. */
const THINK_MS = 5;
/** Good requests in a row after which all is well again, and how long it is waited for. */
const WELL_AGAIN = 30;
const RECOVERY_MS = 20_000;

/** Most failures of requests without retries for each trouble. */
export const PLAIN_FAILURES_PER_TROUBLE = 5;

const calm: Behaviour = { delayMs: 0, errors: false };

const backendTroubles = ['kill', 'freeze', 'slow', 'errors', 'flap'] as const;
const nameTroubles = ['leave', 'move', 'vanish', 'dead', 'servfail', 'nxdomain', 'silence'] as const;
const redisTroubles = ['redis-kill', 'redis-freeze'] as const;

/** Failed requests without retries. */
export function plainFailures({ plainReasons }: ChaosReport): number {
  return Object.values(plainReasons).reduce((sum, count) => sum + count, 0);
}

/** Runs chaos for a while. Everything that it starts is ended. */
export async function runChaos(options: ChaosOptions): Promise<ChaosReport> {
  const directory = mkdtempSync(join(tmpdir(), 'portcullis-chaos-'));
  const port = await lastingPort();
  // All are known by names: if a failed lookup took them away, there would be none.
  const byService = [await lastingBackend('s0'), await lastingBackend('s1'), await lastingBackend('s2')];
  const byName = [2, 3, 4].map((number) => new Backend(`n${number}`, `127.0.0.${number}`, port));
  const backends = [...byService, ...byName];
  const names = await ChaosNames.start(byName, byService);
  const redis = Redis.installed ? new Redis(await lastingPort(), directory) : null;
  let gateway: Gateway | undefined;
  try {
    await Promise.all([...backends.map((backend) => backend.start()), redis?.start()]);
    const known: Known = { byName, names, redis };
    const configFile = join(directory, 'gateway.yaml');
    const accessLog = join(directory, 'access.log');
    writeFileSync(configFile, configText(known, accessLog, 0));
    gateway = new Gateway(launch(['run', '--config', configFile], {}), configFile);
    await gateway.serving();
    return await new ChaosRun(options, known, backends, byService, gateway, accessLog).run();
  } finally {
    for (const backend of backends) backend.kill();
    await redis?.kill();
    if (gateway !== undefined) {
      gateway.kill('SIGKILL');
      await gateway.finished;
    }
    names.close();
    rmSync(directory, { recursive: true, force: true });
  }
}

async function lastingBackend(name: string): Promise<Backend> {
  return new Backend(name, '127.0.0.1', await lastingPort());
}

/** An answer, or status 0 and what went wrong with the connection. */
interface Answer {
  status: number;
  /** Flag of the gateway's own answers. */
  reason: string;
  /** Name of the backend that gave it. */
  backend: string;
  /** A rate limit is told, so that Redis has counted the request. */
  counted: boolean;
  body: string;
}

class ChaosRun {
  private readonly options: ChaosOptions;
  private readonly random: Random;
  private readonly known: Known;
  private readonly backends: readonly Backend[];
  private readonly byService: readonly Backend[];
  private readonly gateway: Gateway;
  private readonly accessLog: string;
  private readonly agent = new Agent({ keepAlive: true });
  private readonly report: ChaosReport = {
    safe: 0,
    safeFailures: [],
    plain: 0,
    plainReasons: {},
    wrong: [],
    troubles: {},
    endpointChanges: 0,
    lookupsFailed: 0,
    redis: Redis.installed,
    countedByRedis: 0,
    failedOpen: 0,
    limited: 0,
    redisOutages: 0,
    reloads: 0,
    lasting: [],
    exitCode: null,
  };
  private over = false;
  private port = 0;

  constructor(
    options: ChaosOptions,
    known: Known,
    backends: readonly Backend[],
    byService: readonly Backend[],
    gateway: Gateway,
    accessLog: string,
  ) {
    this.options = options;
    this.random = new Random(options.seed);
    this.known = known;
    this.backends = backends;
    this.byService = byService;
    this.gateway = gateway;
    this.accessLog = accessLog;
  }

  async run(): Promise<ChaosReport> {
    const { known, gateway, report } = this;
    this.port = await gateway.port();
    if (known.redis !== null) await gateway.log(/info redis connected/);
    const counted = known.redis === null ? 0 : COUNTED_CLIENTS;
    const few = known.redis === null ? 0 : FEW_CLIENTS;
    const work = [
      ...Array.from({ length: SAFE_CLIENTS }, (_, index) => this.client(`/safe/${index}`, true)),
      ...Array.from({ length: counted }, (_, index) => this.client(`/counted/${index}`, true)),
      ...Array.from({ length: few }, (_, index) => this.fewClient(`/few/${index}`)),
      ...Array.from({ length: PLAIN_CLIENTS }, (_, index) => this.client(`/plain/${index}`, false)),
      this.troubleBackends(this.random.fork()),
      this.troubleNames(this.random.fork()),
      ...(known.redis === null ? [] : [this.troubleRedis(known.redis, this.random.fork())]),
      this.reload(),
    ];
    const timer = setTimeout(() => (this.over = true), this.options.seconds * 1000);
    await Promise.all(work);
    clearTimeout(timer);
    await this.recover();
    this.agent.destroy();
    gateway.kill('SIGTERM');
    const { code, stderr } = await gateway.finished;
    report.exitCode = code;
    report.endpointChanges = [...stderr.matchAll(/info endpoints changed /g)].length;
    report.lookupsFailed = [...stderr.matchAll(/warn endpoint name does not resolve /g)].length;
    report.redisOutages = [...stderr.matchAll(/warn redis does not answer/g)].length;
    this.explainFailures();
    return report;
  }

  // -- load ------------------------------------------------------------------------

  /** One client: one request after the other until the run is over. */
  private async client(prefix: string, safe: boolean): Promise<void> {
    const { report } = this;
    for (let number = 0; !this.over; number++) {
      const path = `${prefix}/${number}`;
      const answer = await ask(this.port, path, this.agent);
      if (safe) this.judgeSafe(path, answer);
      else this.judgePlain(path, answer);
      if (path.startsWith('/counted')) {
        if (answer.counted) report.countedByRedis++;
        else report.failedOpen++;
      }
      await pause(THINK_MS);
    }
  }

  /** A client that uses one key of a small limit after the other up, and goes on for a while with each. */
  private async fewClient(prefix: string): Promise<void> {
    const { report } = this;
    for (let key = 0; !this.over; key++) {
      let passed = 0;
      for (let number = 0; number < REQUESTS_PER_KEY && !this.over; number++) {
        const path = `${prefix}/${key}/${number}`;
        const answer = await ask(this.port, path, this.agent, { [KEY_FIELD]: `${prefix}/${key}` });
        if (answer.status !== 429) {
          passed++;
          this.judgeSafe(path, answer);
        } else {
          report.limited++;
          const why = `${path}: refused (${answer.reason}) after ${passed} of ${FEW_REQUESTS} requests`;
          if (passed < FEW_REQUESTS || answer.reason !== 'RL') report.wrong.push(why);
        }
        await pause(THINK_MS);
      }
    }
  }

  private judgeSafe(path: string, answer: Answer): void {
    const { report } = this;
    report.safe++;
    if (answer.status === 200) this.judgeBody(path, answer);
    else report.safeFailures.push(`${path}: ${answer.status} ${answer.reason} ${answer.body}`);
  }

  private judgePlain(path: string, answer: Answer): void {
    const { report } = this;
    report.plain++;
    if (answer.status === 200) {
      this.judgeBody(path, answer);
    } else if (answer.reason === '' && (answer.status !== 500 || answer.backend === '')) {
      report.wrong.push(`${path}: ${answer.status} without a reason: ${answer.body}`);
    } else {
      const reason = answer.reason === '' ? 'status 500 of the backend' : answer.reason;
      report.plainReasons[reason] = (report.plainReasons[reason] ?? 0) + 1;
    }
  }

  private judgeBody(path: string, { body }: Answer): void {
    if (body !== `GET ${path} `) this.report.wrong.push(`${path} got ${JSON.stringify(body)}`);
  }

  /** Adds to safe requests that failed what the access log says of them. */
  private explainFailures(): void {
    const { report } = this;
    if (report.safeFailures.length === 0) return;
    const lines = readFileSync(this.accessLog, 'utf8').split('\n');
    report.safeFailures = report.safeFailures.map((failure) => {
      const path = failure.slice(0, failure.indexOf(':'));
      return `${failure}\n  ${lines.find((line) => line.includes(`"${path}"`)) ?? 'not in the access log'}`;
    });
  }

  // -- troubles of backends ------------------------------------------------------------

  private note(kind: string, what: string): void {
    const { troubles } = this.report;
    troubles[kind] = (troubles[kind] ?? 0) + 1;
    this.options.log(`${kind}: ${what}`);
  }

  /** A backend that is well, and is in trouble from now on; undefined while too many are. */
  private victim(random: Random, among: readonly Backend[]): Backend | undefined {
    const troubled = this.backends.filter(({ inTrouble }) => inTrouble).length;
    const well = among.filter(({ inTrouble }) => !inTrouble);
    if (troubled >= IN_TROUBLE_MAX || well.length === 0) return undefined;
    const backend = random.pick(well);
    backend.inTrouble = true;
    return backend;
  }

  /** One trouble of backends after the other. */
  private async troubleBackends(random: Random): Promise<void> {
    const running = new Set<Promise<void>>();
    const kinds = new Deck(random, backendTroubles);
    while (!this.over) {
      await pause(100 + random.int(0, 300));
      if (this.over) break;
      const backend = this.victim(random, this.backends);
      if (backend === undefined) continue;
      const trouble = this.troubleBackend(random, kinds.draw(), backend);
      running.add(trouble);
      trouble.finally(() => running.delete(trouble));
    }
    await Promise.all(running);
  }

  private async troubleBackend(random: Random, kind: (typeof backendTroubles)[number], backend: Backend) {
    const lengthMs = 200 + random.int(0, 1000);
    this.note(kind, `${backend.name} for ${lengthMs} ms`);
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

  // -- troubles of DNS -----------------------------------------------------------------

  /** One trouble of names after the other. */
  private async troubleNames(random: Random): Promise<void> {
    const kinds = new Deck(random, nameTroubles);
    while (!this.over) {
      await pause(50 + random.int(0, 200));
      if (this.over) return;
      await this.troubleName(random, kinds.draw());
    }
  }

  private async troubleName(random: Random, kind: (typeof nameTroubles)[number]): Promise<void> {
    const { known, byService } = this;
    const { names, byName } = known;
    const lengthMs = 200 + random.int(0, 500);
    if (kind === 'servfail' || kind === 'nxdomain' || kind === 'silence') {
      this.note(kind, `for ${lengthMs} ms`);
      names.answer(kind);
      await pause(lengthMs);
      names.answer('well');
      return;
    }
    if (kind === 'dead') {
      this.note(kind, `an address where nobody listens, for ${lengthMs} ms`);
      names.listDead(true);
      await pause(lengthMs);
      names.listDead(false);
      return;
    }
    const among = kind === 'move' ? byService : [...byService, ...byName];
    let backend = this.victim(random, among);
    for (; backend === undefined && !this.over; backend = this.victim(random, among)) await pause(20);
    if (backend === undefined) return;
    this.note(kind, `${backend.name} for ${lengthMs} ms`);
    switch (kind) {
      case 'leave':
        // In good order: first the name, then, when nobody should ask any more, the server.
        names.list(backend, false);
        await pause(lengthMs);
        backend.kill();
        await pause(lengthMs / 4);
        await backend.start();
        names.list(backend, true);
        break;
      case 'move': {
        // A new server elsewhere, and only then the end of the old one.
        const port = await lastingPort();
        const old = new Backend(backend.name, backend.host, backend.port);
        backend.release(old);
        backend.port = port;
        await backend.start();
        names.publish();
        await pause(lengthMs);
        old.kill();
        break;
      }
      default:
        // Name and server at once.
        names.list(backend, false);
        backend.kill();
        await pause(lengthMs);
        await backend.start();
        names.list(backend, true);
    }
    backend.inTrouble = false;
  }

  // -- troubles of Redis, reloads --------------------------------------------------------

  private async troubleRedis(redis: Redis, random: Random): Promise<void> {
    const kinds = new Deck(random, redisTroubles);
    while (!this.over) {
      await pause(500 + random.int(0, 1000));
      if (this.over) return;
      const kind = kinds.draw();
      const lengthMs = 200 + random.int(0, 800);
      this.note(kind, `for ${lengthMs} ms`);
      if (kind === 'redis-kill') {
        await redis.kill();
        await pause(lengthMs);
        await redis.start();
      } else {
        redis.signal('SIGSTOP');
        await pause(lengthMs);
        redis.signal('SIGCONT');
      }
    }
  }

  private async reload(): Promise<void> {
    const { seconds, reloads } = this.options;
    for (let i = 1; i <= reloads && !this.over; i++) {
      await pause((seconds * 1000) / (reloads + 1));
      this.configure(i);
    }
  }

  private configure(generation: number): void {
    this.gateway.configure(configText(this.known, this.accessLog, generation));
    this.gateway.kill('SIGHUP');
    this.report.reloads++;
  }

  // -- afterwards ------------------------------------------------------------------------

  /** All troubles are over: their consequences must end, too. */
  private async recover(): Promise<void> {
    // Names are looked up again with a reload; else only some seconds after a lookup that failed.
    this.configure(this.options.reloads + 1);
    await this.recovers('requests without retries fail', WELL_AGAIN, async (number) => {
      return (await ask(this.port, `/plain/after/${number}`, this.agent)).status === 200;
    });
    const absent = new Set(this.backends.map(({ name }) => name));
    await this.recovers('backends get no requests', 1, async (number) => {
      absent.delete((await ask(this.port, `/plain/all/${number}`, this.agent)).backend);
      if (absent.size > 0) await pause(1);
      return absent.size === 0;
    });
    for (const name of absent) this.report.lasting.push(`backend ${name} gets no requests`);
    if (absent.size > 0) {
      const admin = await this.gateway.adminPort();
      this.report.lasting.push((await ask(admin, '/backends', this.agent)).body);
    }
    if (this.known.redis === null) return;
    const wanted = [...Array(FEW_REQUESTS).fill(200), 429];
    await this.recovers('a global limit is not counted exactly', 1, async (number) => {
      const statuses: number[] = [];
      for (let i = 0; i <= FEW_REQUESTS; i++) {
        const headers = { [KEY_FIELD]: `after ${number}` };
        statuses.push((await ask(this.port, '/few/after', this.agent, headers)).status);
      }
      return statuses.join() === wanted.join();
    });
  }

  /** Tries until `works` was true so many times in a row. */
  private async recovers(what: string, times: number, works: (number: number) => Promise<boolean>): Promise<void> {
    let inRow = 0;
    const endMs = performance.now() + RECOVERY_MS;
    for (let number = 0; performance.now() < endMs; number++) {
      inRow = (await works(number)) ? inRow + 1 : 0;
      if (inRow === times) return;
      if (inRow === 0) await pause(THINK_MS);
    }
    this.report.lasting.push(`${what} ${RECOVERY_MS} ms after all troubles`);
  }
}

/** Draws every kind once before any comes again. */
class Deck<T> {
  private readonly random: Random;
  private readonly kinds: readonly T[];
  private left: T[] = [];

  constructor(random: Random, kinds: readonly T[]) {
    this.random = random;
    this.kinds = kinds;
  }

  draw(): T {
    if (this.left.length === 0) this.left = [...this.kinds];
    return this.left.splice(this.random.int(0, this.left.length - 1), 1)[0]!;
  }
}

function ask(port: number, path: string, agent: Agent, headers: Record<string, string> = {}): Promise<Answer> {
  return new Promise((resolve) => {
    const failed = (error: Error): void =>
      resolve({ status: 0, reason: '', backend: '', counted: false, body: error.message });
    const outgoing = request({ host: '127.0.0.1', port, path, agent, headers }, (incoming) => {
      let body = '';
      incoming.setEncoding('latin1');
      incoming.on('data', (chunk) => (body += chunk));
      incoming.on('end', () => {
        const text = (name: string): string => String(incoming.headers[name] ?? '');
        const counted = incoming.headers.ratelimit !== undefined;
        resolve({ status: incoming.statusCode!, reason: text('x-reason'), backend: text('x-backend'), counted, body });
      });
      incoming.on('error', failed);
    });
    outgoing.on('error', failed);
    outgoing.end();
  });
}
