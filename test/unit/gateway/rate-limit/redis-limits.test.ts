// When Redis counts as away, and when as back: a server that answers at the moment, and in the way, that a test wants.

import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import type { RedisConfig } from '../../../../config/config.ts';
import { type RateLimitSettings, RedisWord } from '../../../../core/limits/limit-settings.ts';
import type { LimitAnswer } from '../../../../core/workers/protocol.ts';
import { RedisLimits } from '../../../../gateway/rate-limit/redis-limits.ts';

const TIMEOUT_MS = 50;
const PROBE_INTERVAL_MS = 500;
const PASSED = '*4\r\n:1\r\n:0\r\n:1\r\n:0\r\n';

const limit: RateLimitSettings = {
  name: 'shared',
  requests: 10,
  periodMs: 1000,
  burst: 10,
  key: [],
  keysMax: 64,
  global: true,
  dryRun: false,
  headers: true,
};

/** A server that knows the script, and keeps its answers to it until `reply`. */
class FakeRedis {
  connections = 0;
  port = 0;
  private waiting: Socket[] = [];
  private arrived: () => void = () => {};
  private accepted: () => void = () => {};

  async listen(t: TestContext): Promise<void> {
    const sockets = new Set<Socket>();
    const server = createServer((socket) => {
      this.connections++;
      this.accepted();
      sockets.add(socket);
      let text = '';
      socket.on('error', () => {});
      socket.on('data', (chunk) => {
        text += chunk.toString('latin1');
        for (let command = takeCommand(text); command !== null; command = takeCommand(text)) {
          text = text.slice(command.length);
          if (!command.name.startsWith('EVAL')) socket.write('+OK\r\n');
          else this.waiting.push(socket);
        }
        this.arrived();
      });
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    this.port = (server.address() as { port: number }).port;
    t.after(() => {
      for (const socket of sockets) socket.destroy();
      server.close();
    });
  }

  /** Waits until it has been called so often, and answers all calls. */
  async reply(text: string, calls = 1): Promise<void> {
    await this.called(calls);
    for (const socket of this.waiting.splice(0)) socket.write(text);
  }

  async connected(connections: number): Promise<void> {
    while (this.connections < connections) {
      await new Promise<void>((resolve) => {
        this.accepted = resolve;
      });
    }
  }

  async called(calls: number): Promise<void> {
    while (this.waiting.length < calls) {
      await new Promise<void>((resolve) => {
        this.arrived = resolve;
      });
    }
  }
}

/** Name and length of the command that `text` begins with; null: not all of it is there. */
function takeCommand(text: string): { name: string; length: number } | null {
  const lengthEnd = text.indexOf('\r\n');
  if (lengthEnd < 0) return null;
  let at = lengthEnd + 2;
  let name = '';
  for (let parts = Number(text.slice(1, lengthEnd)); parts > 0; parts--) {
    const end = text.indexOf('\r\n', at);
    if (end < 0) return null;
    const start = end + 2;
    at = start + Number(text.slice(at + 1, end)) + 2;
    if (at > text.length) return null;
    if (name === '') name = text.slice(start, at - 2).toUpperCase();
  }
  return { name, length: at };
}

/** Limits that are counted in a fake Redis. Time stands still but for `pass`. */
class Bench {
  readonly redis = new FakeRedis();
  readonly shared = new Int32Array(new SharedArrayBuffer(RedisWord.WORDS * 4));
  readonly lines: string[] = [];
  readonly limits: RedisLimits;
  nowMs = 1000;
  private readonly t: TestContext;
  private logged: () => void = () => {};
  /** How often the clock has been looked at: once for each reply, too. */
  private readings = 0;
  private read: () => void = () => {};

  constructor(t: TestContext) {
    this.t = t;
    t.mock.timers.enable({ apis: ['setTimeout', 'setInterval'] });
    this.limits = new RedisLimits(
      this.shared.buffer as SharedArrayBuffer,
      (_level, message, fields) => {
        this.lines.push(`${message} ${String((fields as Record<string, unknown>).cause ?? '')}`.trim());
        this.logged();
      },
      () => {
        this.readings++;
        this.read();
        return this.nowMs;
      },
    );
    t.after(() => this.limits.close());
  }

  config(changes: Partial<RedisConfig> = {}): RedisConfig {
    return {
      address: `127.0.0.1:${this.redis.port}`,
      host: '127.0.0.1',
      port: this.redis.port,
      username: null,
      password: null,
      database: 0,
      tls: null,
      timeoutMs: TIMEOUT_MS,
      failure: 'open',
      keyPrefix: '',
      ...changes,
    };
  }

  get up(): boolean {
    return this.shared[RedisWord.UP] === 1;
  }

  async connect(): Promise<void> {
    await this.redis.listen(this.t);
    this.limits.use(this.config(), [limit]);
    await this.redis.reply(PASSED);
    await this.printed('redis connected');
  }

  pass(ms: number): void {
    this.nowMs += ms;
    this.t.mock.timers.tick(ms);
  }

  async printed(line: string): Promise<void> {
    while (!this.lines.includes(line)) {
      await new Promise<void>((resolve) => {
        this.logged = resolve;
      });
    }
  }

  ask(): Promise<LimitAnswer[]> {
    return new Promise((resolve) => {
      this.limits.ask([{ ask: 1, limits: [{ name: 'shared', key: '' }] }], resolve);
    });
  }

  /** Answers a call, and returns once the answer has been dealt with. */
  async reply(text: string): Promise<void> {
    await this.redis.called(1);
    const { readings } = this;
    await this.redis.reply(text);
    while (this.readings === readings) {
      await new Promise<void>((resolve) => {
        this.read = resolve;
      });
    }
    await new Promise((resolve) => setImmediate(resolve));
  }
}

test('a Redis whose answers come in time is up; single late ones do not matter', async (t) => {
  const bench = new Bench(t);
  await bench.connect();
  for (let turn = 0; turn < 8; turn++) {
    const answer = bench.ask();
    if (turn % 3 === 2) {
      await bench.reply(PASSED);
    } else {
      await bench.redis.called(1);
      bench.pass(TIMEOUT_MS);
      await bench.reply(PASSED);
    }
    const inTime = (await answer)[0]!.results !== null;
    assert.equal(inTime, turn % 3 === 2);
    bench.pass(TIMEOUT_MS);
  }
  assert.ok(bench.up);
  assert.deepEqual([bench.limits.state.answered, bench.limits.state.unanswered], [2, 6]);
});

test('a Redis that always answers too late counts as away, and stays so until it is quick again', async (t) => {
  const bench = new Bench(t);
  await bench.connect();
  const answers: Promise<LimitAnswer[]>[] = [];
  for (let turn = 0; turn < 3; turn++) {
    assert.ok(bench.up, `turn ${turn}`);
    answers.push(bench.ask());
    await bench.redis.called(1);
    bench.pass(TIMEOUT_MS);
    await bench.reply(PASSED);
  }
  for (const answer of answers) assert.equal((await answer)[0]!.results, null);
  assert.ok(!bench.up);
  assert.equal(bench.limits.state.outages, 1);
  assert.deepEqual(bench.lines, [
    'redis connected',
    'redis does not answer: global rate limits follow their failure policy no answer within 50 ms',
  ]);
  // Probes that take as long as that do not bring it back.
  bench.pass(PROBE_INTERVAL_MS);
  for (let tries = 0; tries < 2; tries++) {
    bench.nowMs += 60;
    await bench.reply(PASSED);
  }
  assert.ok(!bench.up);
  bench.pass(PROBE_INTERVAL_MS);
  await bench.reply(PASSED);
  await bench.printed('redis is back');
  assert.ok(bench.up);
});

test('a connection on which Redis refuses the script is kept, one on which nothing comes is not', async (t) => {
  const bench = new Bench(t);
  await bench.connect();
  const answer = bench.ask();
  await bench.reply("-READONLY You can't write against a read only replica.\r\n");
  assert.equal((await answer)[0]!.results, null);
  assert.ok(!bench.up);
  for (let probe = 0; probe < 20; probe++) {
    bench.pass(PROBE_INTERVAL_MS);
    await bench.reply('-LOADING Redis is loading the dataset in memory\r\n');
  }
  assert.equal(bench.redis.connections, 1);
  for (let probe = 0; probe < 11; probe++) bench.pass(PROBE_INTERVAL_MS);
  await bench.redis.connected(2);
});

test('a file of authorities that cannot be read is waited for', async (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'portcullis-'));
  t.after(() => rmSync(directory, { recursive: true }));
  const bench = new Bench(t);
  await bench.redis.listen(t);
  const caFile = join(directory, 'ca.pem');
  bench.limits.use(bench.config({ tls: { serverName: '', caFile } }), [limit]);
  assert.match(bench.lines[0]!, /ENOENT/);
  bench.pass(PROBE_INTERVAL_MS);
  assert.equal(bench.lines.length, 1, 'said once');
  assert.deepEqual(await bench.ask(), [{ ask: 1, results: null }]);
  assert.equal(bench.redis.connections, 0);
  writeFileSync(caFile, '');
  bench.pass(PROBE_INTERVAL_MS);
  await bench.redis.connected(1);
});

test('a proxy that is to be ready for limits connects before there are any', async (t) => {
  const bench = new Bench(t);
  await bench.redis.listen(t);
  bench.limits.use(bench.config(), [], true);
  await bench.redis.reply(PASSED);
  await bench.printed('redis connected');
  bench.limits.use(bench.config(), [limit], true);
  const answer = bench.ask();
  await bench.reply(PASSED);
  assert.notEqual((await answer)[0]!.results, null);
  assert.equal(bench.redis.connections, 1);
  bench.limits.use(bench.config(), []);
  assert.ok(!bench.up);
});

test('where its own connections are captured it goes by a socket that leads past that, with TLS or without', async (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'portcullis-redis-'));
  t.after(() => rmSync(directory, { recursive: true }));
  const relay = join(directory, 'redis.sock');
  const arrivals: string[] = [];
  let arrived: () => void = () => {};
  const server = createServer((socket) => {
    socket.on('error', () => {});
    socket.once('data', (chunk) => {
      // A handshake of TLS begins with record type 22 (RFC 8446 §5.1), Redis' protocol with an array.
      arrivals.push(chunk[0] === 22 ? 'tls' : chunk.toString('latin1', 0, 1));
      arrived();
      socket.destroy();
    });
  });
  await new Promise<void>((resolve) => server.listen(relay, resolve));
  t.after(() => server.close());
  for (const tls of [null, { serverName: '', caFile: null }]) {
    const bench = new Bench(t);
    const came = new Promise<void>((resolve) => {
      arrived = resolve;
    });
    // Nobody is at the address itself.
    bench.limits.use({ ...bench.config({ relay, tls }), port: 1 }, [limit]);
    await came;
    bench.limits.close();
    t.mock.timers.reset();
  }
  assert.deepEqual(arrivals, ['*', 'tls']);
});
