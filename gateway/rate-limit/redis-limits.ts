// Global rate limits: asks Redis, for all packet workers.
//
// Questions of workers become one script call each; those of one turn of the event loop leave in one write. Every
// question is answered: with what Redis says, or with "no answer", upon which the worker follows the
// failure policy. While Redis is away workers are told so in shared memory, and do not ask at all.
//
//   away --connected, and the script works--> up
//   up --connection lost, script refused, or SILENT_MAX turns without an answer in time--> away
//
// What comes late is as good as no answer, also to a probe: a Redis that is too slow for its timeout stays away.
//
// Away is logged once, and so is the return. Owned by the control thread.

import { readFileSync } from 'node:fs';
import { createClient } from '@redis/client';
import type { RedisConfig } from '../../config/config.ts';
import { type RateLimitSettings, RedisWord } from '../../core/limits/limit-settings.ts';
import type { Log } from '../../core/workers/log.ts';
import type { LimitAnswer, LimitQuestion } from '../../core/workers/protocol.ts';
import { limitScript, ScriptLimit } from './script.ts';

/** Time for establishing a connection. */
const CONNECT_TIMEOUT_MS = 2000;

/** Longest time between two attempts to connect. */
const RECONNECT_MS_MAX = 2000;

/** While Redis is away but connected (frozen, or refusing the script), it is tried this often. */
const PROBE_INTERVAL_MS = 500;

/** A connection on which nothing has come for so long, although something was asked, is given up. */
const SILENCE_MS = 5000;

/** Turns in a row that Redis leaves without an answer in time before it counts as away. */
const SILENT_MAX = 3;

/** Counters for the metrics. */
export interface RedisLimitsState {
  up: boolean;
  /** Questions that Redis has answered, and those it has not, or not in time. */
  answered: number;
  unanswered: number;
  /** Times that it went away. */
  outages: number;
}

type Client = ReturnType<typeof createClient>;

/** What is called with the answers to the questions of one worker. */
export type AnswerLimits = (answers: LimitAnswer[]) => void;

/** A question that Redis has been asked. */
interface Asked {
  ask: number;
  answer: AnswerLimits;
  open: boolean;
}

/** The connection to Redis, and the limits that are counted there. */
export class RedisLimits {
  readonly state: RedisLimitsState = { up: false, answered: 0, unanswered: 0, outages: 0 };
  private readonly shared: Int32Array;
  private readonly log: Log;
  private readonly nowMs: () => number;
  private config: RedisConfig | null = null;
  private client: Client | null = null;
  private limits = new Map<string, ScriptLimit>();
  private silentTurns = 0;
  /** When the connection last brought a reply, whatever it said; by `nowMs`. */
  private lastHeardMs = 0;
  /** The last authorities that could be read. */
  private authorities: Buffer | null = null;
  /** Whether its absence has been logged. */
  private absenceLogged = false;
  private probeTimer: NodeJS.Timeout | undefined;
  private answers = new Map<AnswerLimits, LimitAnswer[]>();
  private answering = false;

  /** `shared` has RedisWord for all workers; `nowMs` is a clock that never goes back. */
  constructor(shared: SharedArrayBuffer, log: Log, nowMs: () => number = () => performance.now()) {
    this.shared = new Int32Array(shared);
    this.log = log;
    this.nowMs = nowMs;
  }

  /**
   * From now on these limits are counted there. Null: nowhere. The connection is kept where it is the same. `always`
   * says that there is to be one although no limit is there yet.
   */
  use(config: RedisConfig | null, limits: readonly RateLimitSettings[], always = false): void {
    this.limits = new Map();
    if (config !== null) {
      for (const limit of limits) {
        if (limit.global) this.limits.set(limit.name, new ScriptLimit(limit, config.keyPrefix));
      }
    }
    const wanted = this.limits.size > 0 || always ? config : null;
    if (JSON.stringify(connectionOf(wanted)) === JSON.stringify(connectionOf(this.config))) {
      this.config = wanted;
      return;
    }
    this.close();
    this.authorities = null;
    this.config = wanted;
    if (wanted !== null) this.connect(wanted);
  }

  /** Asks Redis; `answer` is called, once or several times, until all questions have their answer. */
  ask(questions: readonly LimitQuestion[], answer: AnswerLimits): void {
    const { client, config } = this;
    if (client === null || config === null || !client.isReady) {
      this.state.unanswered += questions.length;
      answer(questions.map(({ ask }) => ({ ask, results: null })));
      return;
    }
    const turn = questions.map(({ ask }): Asked => ({ ask, answer, open: true }));
    questions.forEach(({ limits }, index) => {
      void this.run(client, limits).then((results) => this.settle(turn[index]!, results));
    });
    setTimeout(() => this.turnOver(turn, client), config.timeoutMs);
  }

  /** Lets the connection go. */
  close(): void {
    clearInterval(this.probeTimer);
    this.probeTimer = undefined;
    this.setUp(false);
    this.absenceLogged = false;
    this.silentTurns = 0;
    const { client } = this;
    this.client = null;
    this.config = null;
    client?.removeAllListeners();
    client?.on('error', () => {});
    if (client?.isOpen) client.destroy();
  }

  private connect(config: RedisConfig): void {
    this.open(config);
    this.probeTimer = setInterval(() => this.look(), PROBE_INTERVAL_MS);
    this.probeTimer.unref();
  }

  /** Starts a connection; none (`client` stays null) while the file of its authorities cannot be read. */
  private open(config: RedisConfig): void {
    const { host, port, tls, relay } = config;
    if (tls !== null && tls.caFile !== null) {
      try {
        this.authorities = readFileSync(tls.caFile);
      } catch (error) {
        // What it held before will do.
        if (this.authorities === null) {
          this.away(causeOf(error));
          return;
        }
      }
    }
    const reconnectStrategy = (retries: number): number =>
      Math.min(50 * 2 ** Math.min(retries, 10), RECONNECT_MS_MAX) * (0.75 + Math.random() / 2);
    const base = {
      ...{ host, port, connectTimeout: CONNECT_TIMEOUT_MS, reconnectStrategy },
      // With a path, host and port only say whose certificate is expected.
      ...(relay === undefined ? {} : { path: relay }),
    };
    const client = createClient({
      socket:
        tls === null
          ? base
          : {
              ...base,
              tls: true as const,
              ...(tls.serverName === '' ? {} : { servername: tls.serverName }),
              ...(tls.caFile === null ? {} : { ca: this.authorities! }),
            },
      ...(config.username === null ? {} : { username: config.username }),
      ...(config.password === null ? {} : { password: config.password }),
      database: config.database,
      name: 'portcullis',
      disableOfflineQueue: true,
      disableClientInfo: true,
      RESP: 2,
    });
    this.client = client as unknown as Client;
    client.on('error', (error: Error) => {
      // What a connection from before still has to say is of no interest once there is another.
      if (!client.isReady) this.away(causeOf(error));
    });
    client.on('ready', () => {
      this.lastHeardMs = this.nowMs();
      void this.probe(this.client!);
    });
    // Rejects only when it is closed meanwhile: it tries again by itself.
    client.connect().catch(() => {});
  }

  /** Every PROBE_INTERVAL_MS: is there a connection, and does it still say something? */
  private look(): void {
    const { client } = this;
    const config = this.config!;
    if (client === null) {
      this.open(config);
    } else if (this.state.up || !client.isReady) {
      this.lastHeardMs = this.nowMs();
    } else if (this.nowMs() - this.lastHeardMs > SILENCE_MS) {
      // Perhaps only this connection is dead.
      this.reconnect(config);
    } else {
      void this.probe(client);
    }
  }

  /** A new connection instead of one that is silent. What is known of its absence stays. */
  private reconnect(config: RedisConfig): void {
    const { absenceLogged } = this;
    this.close();
    this.config = config;
    this.absenceLogged = absenceLogged;
    this.connect(config);
  }

  /** Tries the script on a bucket of its own; it is there afterwards, if it can be. */
  private async probe(client: Client): Promise<void> {
    const { config } = this;
    if (config === null) return;
    let late = true;
    // The first one may have to bring the script along: the second tells how long it takes.
    for (let tries = 0; tries < 2 && late; tries++) {
      const startMs = this.nowMs();
      try {
        await this.evaluate(client, [`${config.keyPrefix}probe`], ['0.001', '1', '1', '1']);
      } catch (error) {
        if (client === this.client) this.away(causeOf(error));
        return;
      }
      if (client !== this.client) return;
      late = this.nowMs() - startMs > this.config!.timeoutMs;
    }
    if (late) {
      this.awayLate();
      return;
    }
    this.silentTurns = 0;
    if (this.state.up) return;
    this.setUp(true);
    const { address } = config;
    this.log('info', this.absenceLogged ? 'redis is back' : 'redis connected', { address });
    this.absenceLogged = false;
  }

  private async run(client: Client, limits: LimitQuestion['limits']): Promise<number[] | null> {
    const scripts = limits.map(({ name }) => this.limits.get(name));
    // A request of an older configuration, whose limits are not counted there any more.
    if (scripts.some((script) => script === undefined)) return null;
    const keys = limits.map(({ key }, index) => scripts[index]!.bucket(key));
    const args = scripts.flatMap((script) => script!.args);
    try {
      const reply = (await this.evaluate(client, keys, args)) as number[];
      return scripts.flatMap((script, index) => script!.result(Number(reply[index * 2]), Number(reply[index * 2 + 1])));
    } catch (error) {
      if (client === this.client) this.away(causeOf(error));
      return null;
    }
  }

  private settle(asked: Asked, results: number[] | null): void {
    if (!asked.open) return;
    asked.open = false;
    if (results === null) {
      this.state.unanswered++;
    } else {
      this.state.answered++;
      this.silentTurns = 0;
    }
    const { answers } = this;
    const list = answers.get(asked.answer);
    if (list === undefined) answers.set(asked.answer, [{ ask: asked.ask, results }]);
    else list.push({ ask: asked.ask, results });
    if (this.answering) return;
    // Replies of one read resolve one after another: they leave in one message.
    this.answering = true;
    setImmediate(() => {
      this.answering = false;
      this.answers = new Map();
      for (const [answer, of] of answers) answer(of);
    });
  }

  /** The time of a turn is over: what has no answer gets none. */
  private turnOver(turn: readonly Asked[], client: Client): void {
    const late = turn.filter(({ open }) => open);
    for (const asked of late) this.settle(asked, null);
    if (late.length === 0 || late.length < turn.length || client !== this.client) return;
    this.silentTurns++;
    if (this.silentTurns >= SILENT_MAX) this.awayLate();
  }

  private awayLate(): void {
    this.away(`no answer within ${this.config!.timeoutMs} ms`);
  }

  private away(cause: string): void {
    const { config } = this;
    if (config === null) return;
    if (this.state.up) this.state.outages++;
    this.setUp(false);
    if (this.absenceLogged) return;
    this.absenceLogged = true;
    const { address, failure } = config;
    this.log('warn', 'redis does not answer: global rate limits follow their failure policy', {
      address,
      failure,
      cause,
    });
  }

  private setUp(up: boolean): void {
    this.state.up = up;
    Atomics.store(this.shared, RedisWord.UP, up ? 1 : 0);
  }

  /** Runs the script; rejects with what Redis says instead, or when the connection ends. */
  private async evaluate(client: Client, keys: readonly string[], args: readonly string[]): Promise<unknown> {
    try {
      return await evaluate(client, keys, args);
    } finally {
      // Also a refusal (LOADING, READONLY) shows that the connection lives; one that has ended is not ready anyway.
      if (client === this.client) this.lastHeardMs = this.nowMs();
    }
  }
}

/** Runs the script; Redis learns it again where it has forgotten it. */
async function evaluate(client: Client, keys: readonly string[], args: readonly string[]): Promise<unknown> {
  const rest = [String(keys.length), ...keys, ...args];
  try {
    return await client.sendCommand(['EVALSHA', limitScript.sha1, ...rest]);
  } catch (error) {
    if (!(error instanceof Error) || !error.message.startsWith('NOSCRIPT')) throw error;
    return client.sendCommand(['EVAL', limitScript.source, ...rest]);
  }
}

/** What makes a connection another one. */
function connectionOf(config: RedisConfig | null): unknown {
  if (config === null) return null;
  const { host, port, relay, username, password, database, tls, keyPrefix } = config;
  return { host, port, relay, username, password, database, tls, keyPrefix };
}

function causeOf(error: unknown): string {
  if (error instanceof AggregateError && error.errors.length > 0) return causeOf(error.errors[0]);
  return error instanceof Error ? error.message || error.name : String(error);
}
